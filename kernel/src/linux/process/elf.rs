//! Programs: ELF files for arm64, checked before anything is mapped.
//!
//! The checks are those of Linux's `load_elf_binary`, and those that Linux would make later by a fault: segments in the
//! order of their addresses without a common page, their contents in the file, the entry in code. The checks are here;
//! the crate `elf` reads the format.
//!
//! As on Linux there may be as many segments as the longest table of program headers has, so they are read from there
//! when they are mapped. Of the file that table alone is kept: it may be longer than memory.

use alloc::vec::Vec;
use core::ops::Range;

use elf::abi::{
    ELF_NOTE_GNU, EM_AARCH64, ET_DYN, ET_EXEC, GNU_PROPERTY_AARCH64_FEATURE_1_AND, GNU_PROPERTY_AARCH64_FEATURE_1_BTI,
    NT_GNU_PROPERTY_TYPE_0, PF_R, PF_W, PF_X, PT_DYNAMIC, PT_GNU_PROPERTY, PT_GNU_STACK, PT_INTERP, PT_LOAD,
};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::note::{Note, NoteIterator};
use elf::segment::{ProgramHeader, SegmentTable};
use granule_arch::addr::PAGE;
use thiserror::Error;

use crate::bytes;
use crate::sched::relax;

/// Bytes of the longest table of program headers, as on Linux.
const MOST_HEADERS: usize = 65_536;
/// Bytes of a program header.
const HEADER_SIZE: u16 = 56;
/// Bytes of the longest note with properties, as on Linux.
const LONGEST_NOTE: u64 = 1024;
/// Bytes of the longest path, with its final zero (Linux's `PATH_MAX`).
pub const PATH_MAX: usize = 4096;
const IDENT: usize = 16;
/// Bytes of a file's header.
pub const FILE_HEADER: u64 = 64;

/// Why a file is no program that runs here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ProgramError {
    /// The header is wrong.
    #[error("not an ELF file")]
    NotElf,
    /// 32 bits, big-endian, or of another machine.
    #[error("not a little-endian 64-bit program for arm64")]
    OtherMachine,
    /// An object file, a core dump, ...
    #[error("not an executable: ELF type {0}")]
    NotExecutable(u16),
    /// The table of program headers is wrong.
    #[error("its program headers are outside of the file, too many, or not of the size that they should have")]
    BadHeaders,
    /// Its entry is none of its own: a shared library.
    #[error("a shared library, which has no entry")]
    Library,
    /// PT_INTERP has no path with a zero at its end, or a longer one than paths are.
    #[error("the path of its dynamic linker is not of 1 to {} bytes with a zero after them", PATH_MAX - 1)]
    BadLinker,
    /// The file ends before that path does.
    #[error("the path of its dynamic linker is cut off")]
    CutOffLinker,
    /// No segment at all.
    #[error("nothing to load")]
    Empty,
    /// A segment whose contents are not in the file.
    #[error("the segment at {0:#x} is not in the file")]
    CutOff(u64),
    /// More in the file than in memory, or an address that wraps or is the kernel's.
    #[error("the segment at {0:#x} has a size that is none")]
    BadSize(u64),
    /// Offset and address differ in their page offsets.
    #[error("the segment at {0:#x} is not aligned as it is in the file")]
    Misaligned(u64),
    /// Not in order of addresses, or two in one page.
    #[error("the segment at {0:#x} overlaps its predecessor, or lies before it")]
    Overlap(u64),
    /// The note of PT_GNU_PROPERTY is none of properties that are whole, and in the order of their numbers.
    #[error("its properties are not whole, not in the order of their numbers, or more than {LONGEST_NOTE} bytes")]
    BadPropertyNote,
    /// The file ends before the name of the note.
    #[error("the note with its properties is cut off")]
    CutOffPropertyNote,
    /// The entry is in no segment that may be executed.
    #[error("the entry {0:#x} is not in code")]
    BadEntry(u64),
    /// There is no memory for its headers.
    #[error("no memory for its program headers")]
    OutOfMemory,
}

/// A file that may be a program.
pub trait ProgramFile {
    /// Its bytes.
    fn size(&self) -> u64;

    /// Fills `to` with the bytes from `offset` on; `None` where it has not as many.
    fn read(&self, offset: u64, to: &mut [u8]) -> Option<()>;
}

impl<T: AsRef<[u8]> + ?Sized> ProgramFile for T {
    fn size(&self) -> u64 {
        self.as_ref().len() as u64
    }

    fn read(&self, offset: u64, to: &mut [u8]) -> Option<()> {
        to.copy_from_slice(self.as_ref().get(usize::try_from(offset).ok()?..)?.get(..to.len())?);
        Some(())
    }
}

/// The addresses of a program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    /// Its own.
    Fixed,
    /// Any: its addresses count from its base.
    Anywhere,
}

/// The permissions of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentAccess {
    /// It may be read.
    pub read: bool,
    /// It may be written.
    pub write: bool,
    /// It may be executed.
    pub execute: bool,
}

/// A segment to load: whole pages from `start` to `end`, where its contents are at `address` and the rest is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ElfSegment {
    /// Its first byte.
    pub address: u64,
    /// Where its contents are in the file.
    pub offset: u64,
    /// Bytes of them.
    pub in_file: u64,
    /// Its bytes in memory.
    pub size: u64,
    /// Its permissions.
    pub access: SegmentAccess,
}

impl ElfSegment {
    /// Its first page's address.
    pub const fn start(&self) -> u64 {
        self.address & !(PAGE - 1)
    }

    /// The first page after it.
    pub const fn end(&self) -> u64 {
        (self.address + self.size).next_multiple_of(PAGE)
    }
}

/// A program: its segments can be mapped as they are, in order, below `limit`.
#[derive(Debug)]
pub struct Program {
    /// Its entry.
    pub entry: u64,
    /// Its addresses.
    pub position: Position,
    /// The bytes of the file.
    size: u64,
    /// Its program headers.
    table: Vec<u8>,
    limit: u64,
    /// The last header of properties.
    properties: Option<ProgramHeader>,
    /// The first header with the path of a dynamic linker.
    linker: Option<ProgramHeader>,
    /// The first page of its segments, of which there is at least one, and the first one after them.
    pages: Range<u64>,
    /// The alignment of the first page, where the program lies anywhere: a power of two, at least a page.
    alignment: u64,
    /// The address of its program headers in memory; 0 if they are in none of its segments. As on Linux, by their
    /// offset in the file: PT_PHDR is ignored.
    pub headers: u64,
    /// How many program headers.
    pub header_count: u16,
    /// Whether its stack is to be executable (PT_GNU_STACK).
    pub executable_stack: bool,
}

impl Program {
    /// Reads a file, for addresses below `limit`.
    ///
    /// # Errors
    /// The file's first defect.
    #[inline(never)]
    pub fn parse<F: ProgramFile + ?Sized>(file: &F, limit: u64) -> Result<Self, ProgramError> {
        let mut bytes = [0; FILE_HEADER as usize];
        file.read(0, &mut bytes).ok_or(ProgramError::NotElf)?;
        let (ident, tail) = bytes.split_at_checked(IDENT).ok_or(ProgramError::NotElf)?;
        if !ident.starts_with(b"\x7fELF") {
            return Err(ProgramError::NotElf);
        }
        let ident = parse_ident::<LittleEndian>(ident).map_err(|_| ProgramError::OtherMachine)?;
        if ident.1 != Class::ELF64 {
            return Err(ProgramError::OtherMachine);
        }
        let header = FileHeader::parse_tail(ident, tail).map_err(|_| ProgramError::NotElf)?;
        if header.e_machine != EM_AARCH64 {
            return Err(ProgramError::OtherMachine);
        }
        let position = match header.e_type {
            ET_EXEC => Position::Fixed,
            ET_DYN => Position::Anywhere,
            other => return Err(ProgramError::NotExecutable(other)),
        };
        let mut program = Self {
            entry: header.e_entry,
            position,
            size: file.size(),
            table: read_table(&header, file)?,
            limit,
            properties: None,
            linker: None,
            pages: 0..0,
            alignment: PAGE,
            headers: 0,
            header_count: header.e_phnum,
            executable_stack: false,
        };
        for index in 0..program.table().len() {
            relax();
            let header = program.table().get(index).map_err(|_| ProgramError::BadHeaders)?;
            program.add(&header)?;
        }
        program.check()?;
        program.headers = program.loaded_at(header.e_phoff).unwrap_or(0);
        Ok(program)
    }

    /// Whether all its code was made for [guarded](granule_arch::descriptor::Protection::GUARDED) pages (PT_GNU_PROPERTY). A
    /// program with a dynamic linker is not asked: the linker guards it.
    ///
    /// # Errors
    /// [`ProgramError::BadPropertyNote`], [`ProgramError::CutOffPropertyNote`]. No memory.
    pub fn accepts_guards<F: ProgramFile + ?Sized>(&self, file: &F) -> Result<bool, ProgramError> {
        self.properties.map_or(Ok(false), |header| accepts_guards(&header, file))
    }

    /// The segments to load, by address; at least one.
    pub fn segments(&self) -> impl Iterator<Item = ElfSegment> {
        // Each was read before without an error.
        let segment = |header: ProgramHeader| {
            relax();
            load(&header, self.size, self.limit).ok().filter(|_| is_loaded(&header))
        };
        self.table().iter().filter_map(segment)
    }

    /// Whether a segment may be written and executed.
    pub fn writes_code(&self) -> bool {
        self.segments().any(|segment| segment.access.write && segment.access.execute)
    }

    fn table(&self) -> SegmentTable<'_, LittleEndian> {
        SegmentTable::new(LittleEndian, Class::ELF64, self.table.as_slice())
    }

    /// The first page's address.
    pub fn start(&self) -> u64 {
        self.pages.start
    }

    /// The first page's address after everything: where the heap may begin.
    pub fn end(&self) -> u64 {
        self.pages.end
    }

    /// The offset that is added to each address of the program, modulo 2⁶⁴: position-independent programs begin at
    /// `anywhere`, or below at the next multiple of the largest alignment of their segments, and all end at `limit` or
    /// below. So a program may be linked above `anywhere` too.
    ///
    /// # Errors
    /// [`ProgramError::BadSize`]: it does not fit.
    pub fn base(&self, anywhere: u64, limit: u64) -> Result<u64, ProgramError> {
        let base = match self.position {
            Position::Fixed => 0,
            Position::Anywhere => (anywhere & !(self.alignment - 1)).wrapping_sub(self.start()),
        };
        let (start, size) = (self.start().wrapping_add(base), self.end() - self.start());
        let fits = start.checked_add(size).is_some_and(|end| end <= limit);
        if fits { Ok(base) } else { Err(ProgramError::BadSize(self.start())) }
    }

    /// The path of the dynamic linker that the program asks for, without its final zero.
    ///
    /// # Errors
    /// As Linux's `load_elf_binary`: [`ProgramError::BadLinker`], [`ProgramError::CutOffLinker`]. No memory.
    pub fn linker<F: ProgramFile + ?Sized>(&self, file: &F) -> Result<Option<Vec<u8>>, ProgramError> {
        let Some(header) = &self.linker else { return Ok(None) };
        if !(2..=PATH_MAX as u64).contains(&header.p_filesz) {
            return Err(ProgramError::BadLinker);
        }
        let mut path = bytes::zeros(header.p_filesz as usize).map_err(|_| ProgramError::OutOfMemory)?;
        file.read(header.p_offset, &mut path).ok_or(ProgramError::CutOffLinker)?;
        if path.pop() != Some(0) {
            return Err(ProgramError::BadLinker);
        }
        path.truncate(path.iter().position(|&byte| byte == 0).unwrap_or(path.len()));
        Ok(Some(path))
    }

    fn add(&mut self, header: &ProgramHeader) -> Result<(), ProgramError> {
        match header.p_type {
            PT_INTERP => self.linker = self.linker.or(Some(*header)),
            PT_GNU_STACK => self.executable_stack = header.p_flags & PF_X != 0,
            PT_GNU_PROPERTY => self.properties = Some(*header),
            // An alignment that is no power of two does not count, as on Linux.
            PT_LOAD if header.p_align.is_power_of_two() => self.alignment = self.alignment.max(header.p_align),
            _ => {}
        }
        if is_loaded(header) {
            let segment = load(header, self.size, self.limit)?;
            if segment.start() < self.pages.end {
                return Err(ProgramError::Overlap(segment.address));
            }
            let start = if self.pages.is_empty() { segment.start() } else { self.pages.start };
            self.pages = start..segment.end();
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ProgramError> {
        if self.pages.is_empty() {
            return Err(ProgramError::Empty);
        }
        // A shared library has the same type as a position-independent program; only the latter has its entry in code.
        let dynamic = self.table().iter().any(|header| header.p_type == PT_DYNAMIC);
        let code = |segment: &ElfSegment| segment.access.execute;
        let inside = |segment: ElfSegment| (segment.address..segment.address + segment.size).contains(&self.entry);
        match self.linker.is_some() || self.segments().filter(code).any(inside) {
            true => Ok(()),
            false if dynamic && self.position == Position::Anywhere && self.entry == 0 => Err(ProgramError::Library),
            false => Err(ProgramError::BadEntry(self.entry)),
        }
    }

    /// The address in memory of the byte at this offset of the file.
    fn loaded_at(&self, offset: u64) -> Option<u64> {
        self.segments().find_map(|segment| {
            let inside = offset.checked_sub(segment.offset).filter(|&inside| inside < segment.in_file)?;
            Some(segment.address + inside)
        })
    }
}

/// Whether the properties of a program (System V ABI for AArch64, "Program property") say that its code was made for
/// guarded pages. The checks are those of Linux's `parse_elf_properties`.
fn accepts_guards<F: ProgramFile + ?Sized>(header: &ProgramHeader, file: &F) -> Result<bool, ProgramError> {
    const ALIGN: usize = 8;
    /// Bytes of a note's header and of its name: with less Linux has read too little.
    const LEAST: usize = 16;
    if header.p_filesz > LONGEST_NOTE {
        return Err(ProgramError::BadPropertyNote);
    }
    // The file may end before the segment does.
    let size = header.p_filesz.min(file.size().saturating_sub(header.p_offset)) as usize;
    if size < LEAST {
        return Err(ProgramError::CutOffPropertyNote);
    }
    let mut bytes = bytes::zeros(size).map_err(|_| ProgramError::OutOfMemory)?;
    file.read(header.p_offset, &mut bytes).ok_or(ProgramError::CutOffPropertyNote)?;
    let Some(Note::Unknown(note)) = NoteIterator::new(LittleEndian, Class::ELF64, ALIGN, &bytes).next() else {
        return Err(ProgramError::BadPropertyNote);
    };
    if note.n_type != NT_GNU_PROPERTY_TYPE_0 || note.name != ELF_NOTE_GNU {
        return Err(ProgramError::BadPropertyNote);
    }
    let (mut rest, mut last, mut accepts) = (note.desc, None, false);
    while !rest.is_empty() {
        let (head, tail) = rest.split_first_chunk::<8>().ok_or(ProgramError::BadPropertyNote)?;
        let words = u64::from_le_bytes(*head);
        let (number, size) = (words as u32, (words >> 32) as usize);
        let (value, next) = tail.split_at_checked(size.next_multiple_of(ALIGN)).ok_or(ProgramError::BadPropertyNote)?;
        if last.is_some_and(|last| number <= last) {
            return Err(ProgramError::BadPropertyNote);
        }
        if number == GNU_PROPERTY_AARCH64_FEATURE_1_AND {
            if size != 4 {
                return Err(ProgramError::BadPropertyNote);
            }
            accepts = value.first().is_some_and(|first| u32::from(*first) & GNU_PROPERTY_AARCH64_FEATURE_1_BTI != 0);
        }
        (rest, last) = (next, Some(number));
    }
    Ok(accepts)
}

/// Whether there is anything to load for a header.
fn is_loaded(header: &ProgramHeader) -> bool {
    header.p_type == PT_LOAD && header.p_memsz != 0
}

/// The program headers of a file.
fn read_table<F: ProgramFile + ?Sized>(header: &FileHeader<LittleEndian>, file: &F) -> Result<Vec<u8>, ProgramError> {
    if header.e_phnum == 0 || header.e_phentsize != HEADER_SIZE {
        return Err(ProgramError::BadHeaders);
    }
    let bytes = usize::from(header.e_phnum) * usize::from(HEADER_SIZE);
    if bytes > MOST_HEADERS {
        return Err(ProgramError::BadHeaders);
    }
    let mut table = bytes::zeros(bytes).map_err(|_| ProgramError::OutOfMemory)?;
    file.read(header.e_phoff, &mut table).ok_or(ProgramError::BadHeaders)?;
    Ok(table)
}

fn load(header: &ProgramHeader, size: u64, limit: u64) -> Result<ElfSegment, ProgramError> {
    let address = header.p_vaddr;
    let end = address.checked_add(header.p_memsz).filter(|&end| end <= limit);
    if end.is_none() || header.p_filesz > header.p_memsz {
        return Err(ProgramError::BadSize(address));
    }
    // A segment without contents has any offset: linkers do not set it.
    let offset = if header.p_filesz == 0 { 0 } else { header.p_offset };
    if header.p_filesz != 0 && offset % PAGE != address % PAGE {
        return Err(ProgramError::Misaligned(address));
    }
    if offset.checked_add(header.p_filesz).is_none_or(|end| end > size) {
        return Err(ProgramError::CutOff(address));
    }
    let has = |flag: u32| header.p_flags & flag != 0;
    Ok(ElfSegment {
        address,
        offset,
        in_file: header.p_filesz,
        size: header.p_memsz,
        access: SegmentAccess { read: has(PF_R), write: has(PF_W), execute: has(PF_X) },
    })
}

#[cfg(test)]
mod tests;
