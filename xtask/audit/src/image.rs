//! The image as the audit sees it: functions, pointers in constant memory, places that panics name, lines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use addr2line::gimli;
use anyhow::{Context, Result, ensure};
use granule_image::code::{BARRIERS, Flow, Registers, flow};
use object::elf::SHF_EXECINSTR;
use object::read::elf::{ElfFile64, ElfSection64};
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, SectionFlags};

/// A line of source, as the compiler names it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Line {
    /// As [`short_path`] has it.
    pub file: String,
    /// Where it is on this machine: in the workspace, or absolute.
    pub path: String,
    /// Its number, from 1.
    pub line: u32,
    /// 0 where it is not known.
    pub column: u32,
}

impl Line {
    /// A line of the file at `path`.
    pub fn new(path: &str, line: u32, column: u32) -> Self {
        Self { file: short_path(path), path: path.to_owned(), line, column }
    }
}

/// One function, or one piece of assembly from a label to the next.
#[derive(Debug, Default)]
pub struct Function {
    /// Its names; more than one where the linker made one of equal functions.
    pub names: Vec<String>,
    /// Its first byte's address.
    pub start: u64,
    /// The address past its last.
    pub end: u64,
    /// Whether the symbol table gives its size. Assembly without one may go on at the next label.
    pub(crate) is_sized: bool,
    /// The calls, panics and traps of its instructions.
    pub does: Does,
}

/// The effects of a function's instructions that the audit uses. The first of each pair is the instruction's address.
#[derive(Debug, Default)]
pub struct Does {
    /// Calls and jumps to a function.
    pub(crate) calls: Vec<(u64, usize)>,
    /// Calls and jumps by a pointer.
    pub(crate) pointer_calls: Vec<u64>,
    /// Places of panics whose address is formed.
    pub(crate) places: Vec<(u64, u64)>,
    /// BRK and UDF.
    pub(crate) traps: Vec<u64>,
    /// Whether it can return to its caller, or leave by a pointer.
    pub returns: bool,
}

/// A finished image.
pub struct Image<'a> {
    /// By address.
    pub functions: Vec<Function>,
    /// Functions whose address is formed by code or lies in memory.
    pub(crate) taken: BTreeSet<usize>,
    /// By section, the functions that its constants point to.
    pub(crate) pointed_to: BTreeMap<String, BTreeSet<usize>>,
    /// `core::panic::Location`s by address.
    pub(crate) places: BTreeMap<u64, Line>,
    /// Instructions that may fault on purpose: those of the exception table.
    pub(crate) may_fault: BTreeSet<u64>,
    /// The sections with instructions, each by its address.
    code: Vec<(u64, &'a [u8])>,
    lines: DebugLines<'a>,
}

/// Where an image is linked.
pub const LINKED: u64 = 0xffff_8000_8000_0000;

/// The debug information of an image: which lines of source an instruction is of.
pub struct DebugLines<'a> {
    context: addr2line::Context<gimli::EndianSlice<'a, gimli::LittleEndian>>,
    /// The workspace's path, as the debug information has it, with a slash at its end.
    root: String,
}

/// A frame of an address: a function that was inlined there, or the function itself.
#[derive(Debug)]
pub struct Frame {
    /// Its demangled name.
    pub function: String,
    /// The line that the address is of, in it.
    pub line: Line,
}

impl<'a> Image<'a> {
    /// Reads an ELF with symbols and line tables.
    ///
    /// # Errors
    /// When it is not such a file, or places of panics stay that no code refers to: then the audit has lost some.
    pub fn read(elf: &'a [u8], root: &Path) -> Result<Self> {
        let file = ElfFile64::parse(elf)?;
        let pointers = pointers(&file)?;
        let mut functions = functions(&file)?;
        let places = places(&file, &pointers)?;
        let mut taken: BTreeSet<usize> = pointers.values().filter_map(|pointer| entry(&functions, *pointer)).collect();
        let code = code(&file)?;
        for index in 0..functions.len() {
            let (does, formed) = follow(&functions, index, &code, &pointers, &places);
            functions[index].does = does;
            taken.extend(formed);
        }
        let fixups = linked(&file, ".extable", 8)?;
        let may_fault = fixups.iter().map(|(from, _)| *from).collect();
        for (from, to) in linked(&file, ".alternatives", 12)?.into_iter().chain(fixups) {
            let (Some(from_function), Some(to)) = (containing(&functions, from), containing(&functions, to)) else {
                continue;
            };
            if from_function != to {
                functions[from_function].does.calls.push((from, to));
            }
        }
        let mut pointed_to: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
        for section in file.sections() {
            let range = section.address()..section.address() + section.size();
            let found = pointers.range(range).filter_map(|(_, pointer)| entry(&functions, *pointer));
            pointed_to.insert(section.name()?.to_owned(), found.collect());
        }
        let mut image =
            Self { functions, pointed_to, taken, places, may_fault, code, lines: DebugLines::of(&file, root)? };
        image.check_places()?;
        image.name_shims()?;
        Ok(image)
    }

    /// [`DebugLines::frames`].
    ///
    /// # Errors
    /// As there.
    pub fn frames(&self, address: u64) -> Result<Vec<Frame>> {
        self.lines.frames(address)
    }

    /// A function's instructions, each with its address.
    pub fn instructions(&self, function: &Function) -> impl Iterator<Item = (u64, u32)> + '_ {
        words(&self.code, function.start, function.end)
    }

    /// A closure or a function that is called by a pointer may be in a function of the toolchain's, whose name is the
    /// same for all of them: it gets the name of what is inlined or called there as well.
    fn name_shims(&mut self) -> Result<()> {
        for index in self.taken.clone() {
            let function = &self.functions[index];
            if !function.names.iter().all(|name| is_generic(name)) {
                continue;
            }
            let mut inside = None;
            for at in (function.start..function.end).step_by(4) {
                let frames = self.frames(at)?;
                inside = frames.into_iter().rev().map(|frame| frame.function).find(|name| !is_generic(name));
                if inside.is_some() {
                    break;
                }
            }
            let called = || function.does.calls.iter().flat_map(|(_, to)| &self.functions[*to].names);
            let inside = inside.or_else(|| called().find(|name| !is_generic(name)).cloned());
            self.functions[index].names.extend(inside);
        }
        Ok(())
    }

    /// Fails where no code refers to the place of a panic: the audit has not followed it, and is not complete.
    fn check_places(&self) -> Result<()> {
        let seen: BTreeSet<u64> = self.functions.iter().flat_map(|f| &f.does.places).map(|(_, place)| *place).collect();
        let lost: Vec<&Line> = self.places.iter().filter(|(at, _)| !seen.contains(at)).map(|(_, line)| line).collect();
        ensure!(lost.is_empty(), "the audit sees no code that uses these places of panics: {lost:?}");
        Ok(())
    }
}

/// The effects of the instructions of one function, and the functions whose addresses they form.
fn follow(
    functions: &[Function],
    index: usize,
    code: &[(u64, &[u8])],
    pointers: &BTreeMap<u64, u64>,
    places: &BTreeMap<u64, Line>,
) -> (Does, Vec<usize>) {
    let function = &functions[index];
    let (mut does, mut formed) = (Does::default(), Vec::new());
    let mut registers = Registers::default();
    let mut last = Flow::Return;
    for (at, word) in words(code, function.start, function.end) {
        let inside = |target: u64| (function.start..function.end).contains(&target);
        // Behind the end of assembly without a size lies what the linker fills with, which is BRK or zeros.
        let fills =
            !function.is_sized && matches!(last, Flow::Return | Flow::Jump(_) | Flow::JumpRegister(_) | Flow::Trap);
        // Barriers behind an ERET do not go on at the next label.
        if last == Flow::Return && BARRIERS.contains(&word) {
            continue;
        }
        last = flow(word, at);
        match last {
            Flow::Call(to) => does.calls.extend(containing(functions, to).map(|to| (at, to))),
            Flow::Jump(to) | Flow::Branch(to) if !inside(to) => {
                does.calls.extend(containing(functions, to).map(|to| (at, to)));
                does.returns = true;
            }
            Flow::CallRegister => does.pointer_calls.push(at),
            Flow::JumpRegister(register) if !registers.is_table_jump(register) => {
                does.pointer_calls.push(at);
                does.returns = true;
            }
            Flow::Return => does.returns = true,
            Flow::Trap if !fills => does.traps.push(at),
            _ => {}
        }
        if let Some(address) = registers.step(word, at, |address| pointers.get(&address).copied()) {
            if places.contains_key(&address) {
                does.places.push((at, address));
            }
            formed.extend(entry(functions, address));
        }
    }
    let goes_on = matches!(last, Flow::Next | Flow::Call(_) | Flow::CallRegister | Flow::Branch(_));
    let next = functions.get(index + 1).filter(|next| next.start == function.end);
    if goes_on && !function.is_sized && next.is_some() {
        does.calls.push((function.end - 4, index + 1));
    }
    (does, formed)
}

/// The instructions of a range.
fn words<'a>(code: &'a [(u64, &'a [u8])], start: u64, end: u64) -> impl Iterator<Item = (u64, u32)> + 'a {
    let section = code.iter().find(|(base, bytes)| (*base..*base + bytes.len() as u64).contains(&start));
    section.into_iter().flat_map(move |(base, bytes)| {
        let bytes = bytes.get((start - base) as usize..(end - base) as usize).unwrap_or_default();
        (start..end).step_by(4).zip(bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)))
    })
}

/// The function that begins at an address.
fn entry(functions: &[Function], address: u64) -> Option<usize> {
    functions.binary_search_by_key(&address, |function| function.start).ok()
}

/// The function that an address lies in.
pub fn containing(functions: &[Function], address: u64) -> Option<usize> {
    let index = functions.partition_point(|function| function.start <= address).checked_sub(1)?;
    (address < functions[index].end).then_some(index)
}

/// The sections with instructions.
fn code<'a>(file: &ElfFile64<'a, LittleEndian>) -> Result<Vec<(u64, &'a [u8])>> {
    let executable = file.sections().filter(is_executable);
    executable.map(|section| Ok((section.address(), section.data()?))).collect()
}

fn is_executable(section: &ElfSection64<'_, '_, LittleEndian>) -> bool {
    matches!(section.flags(), SectionFlags::Elf { sh_flags, .. } if sh_flags.contains(SHF_EXECINSTR))
}

/// Functions by address, from the symbol table. One without a size ends at the next, as assembly has them.
fn functions(file: &ElfFile64<'_, LittleEndian>) -> Result<Vec<Function>> {
    let mut symbols: BTreeMap<u64, (Vec<String>, u64)> = BTreeMap::new();
    let sections: Vec<(u64, u64)> = file
        .sections()
        .filter(is_executable)
        .map(|section| (section.address(), section.address() + section.size()))
        .collect();
    for symbol in file.symbols() {
        let name = symbol.name().unwrap_or_default();
        let address = symbol.address();
        let in_code = sections.iter().any(|(start, end)| (*start..*end).contains(&address));
        let is_name = !name.is_empty() && !name.starts_with(['$', '.']);
        // The linker script's own mark where things begin and end.
        let is_mark = name.starts_with("__") && symbol.size() == 0;
        if in_code && is_name && !is_mark && !symbol.is_undefined() {
            let known = symbols.entry(address).or_default();
            known.0.push(demangled(name));
            known.1 = known.1.max(symbol.size());
        }
    }
    let starts: Vec<u64> = symbols.keys().copied().collect();
    let mut functions: Vec<Function> = Vec::new();
    for (index, (start, (names, size))) in symbols.into_iter().enumerate() {
        // A label inside a function is no function.
        if functions.last().is_some_and(|before| start < before.end) {
            continue;
        }
        let section = sections.iter().find(|(from, to)| (*from..*to).contains(&start)).context("it is in a section")?;
        let next = starts.get(index + 1).copied().unwrap_or(u64::MAX).min(section.1);
        let end = if size == 0 { next } else { start + size };
        functions.push(Function { names, start, end, is_sized: size != 0, does: Does::default() });
    }
    ensure!(!functions.is_empty(), "the linked file has no symbols: it is stripped");
    Ok(functions)
}

/// The pointers that the image relocates when it starts (RELR: an address, then bitmaps of the 63 words that follow),
/// with what is at each.
fn pointers(file: &ElfFile64<'_, LittleEndian>) -> Result<BTreeMap<u64, u64>> {
    let relr = file.section_by_name(".relr.dyn").context("the linked file has no .relr.dyn")?.data()?;
    let mut at = Vec::new();
    let mut next = 0;
    for entry in relr.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)) {
        if entry & 1 == 0 {
            at.push(entry);
            next = entry + 8;
        } else {
            at.extend((0..63).filter(|bit| entry >> (bit + 1) & 1 != 0).map(|bit| next + bit * 8));
            next += 63 * 8;
        }
    }
    let word =
        |address: u64| read(file, address, 8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
    at.into_iter().map(|address| Ok((address, word(address).context("a relocation of nothing")?))).collect()
}

/// Bytes of the image by address.
fn read<'a>(file: &ElfFile64<'a, LittleEndian>, address: u64, size: u64) -> Option<&'a [u8]> {
    file.sections()
        .filter(|section| section.address() != 0)
        .find_map(|section| section.data_range(address, size).ok()?)
}

/// Each `core::panic::Location`: a string that ends as the name of a Rust file does, its length, line and column.
fn places(file: &ElfFile64<'_, LittleEndian>, pointers: &BTreeMap<u64, u64>) -> Result<BTreeMap<u64, Line>> {
    const LONGEST_PATH: u64 = 4096;
    let mut places = BTreeMap::new();
    for (at, text) in pointers {
        let Some(rest) = read(file, at + 8, 16) else { continue };
        let (length, numbers) = rest.split_at(8);
        let length = u64::from_le_bytes(length.try_into()?);
        let (line, column) = numbers.split_at(4);
        let (line, column) = (u32::from_le_bytes(line.try_into()?), u32::from_le_bytes(column.try_into()?));
        let path = Some(length).filter(|length| (4..LONGEST_PATH).contains(length)).and_then(|l| read(file, *text, l));
        if let Some(path) = path.and_then(|path| std::str::from_utf8(path).ok())
            && path.ends_with(".rs")
            && (line, column) != (0, 0)
        {
            places.insert(*at, Line::new(path, line, column));
        }
    }
    ensure!(!places.is_empty(), "the linked file has no places of panics");
    Ok(places)
}

/// Records that begin with two offsets, each relative to its own place: pairs of addresses.
fn linked(file: &ElfFile64<'_, LittleEndian>, section: &str, record: usize) -> Result<Vec<(u64, u64)>> {
    let Some(section) = file.section_by_name(section) else { return Ok(Vec::new()) };
    let field = |bytes: &[u8], at: u64| {
        let offset = bytes.first_chunk().map_or(0, |bytes| i32::from_le_bytes(*bytes));
        at.wrapping_add_signed(i64::from(offset))
    };
    let records = (section.address()..).step_by(record).zip(section.data()?.chunks_exact(record));
    Ok(records.map(|(at, bytes)| (field(bytes, at), field(&bytes[4..], at + 4))).collect())
}

impl<'a> DebugLines<'a> {
    /// Of an ELF with line tables.
    ///
    /// # Errors
    /// When it is not such a file.
    pub fn read(elf: &'a [u8], root: &Path) -> Result<Self> {
        Self::of(&ElfFile64::parse(elf)?, root)
    }

    fn of(file: &ElfFile64<'a, LittleEndian>, root: &Path) -> Result<Self> {
        let dwarf = gimli::Dwarf::load(|id| {
            let data = file.section_by_name(id.name()).map_or(Ok(&[][..]), |section| section.data())?;
            Ok::<_, object::Error>(gimli::EndianSlice::new(data, gimli::LittleEndian))
        })?;
        Ok(Self { context: addr2line::Context::from_dwarf(dwarf)?, root: format!("{}/", root.display()) })
    }

    /// The functions that are inlined at `address`, the innermost first, and the one that it lies in.
    ///
    /// # Errors
    /// When the debug information cannot be read.
    pub fn frames(&self, address: u64) -> Result<Vec<Frame>> {
        let mut found = Vec::new();
        let mut frames = self.context.find_frames(address).skip_all_loads()?;
        while let Some(frame) = frames.next()? {
            let name = frame.function.map(|name| anyhow::Ok(demangled(name.raw_name()?.as_ref()))).transpose()?;
            let Some(place) = frame.location else { continue };
            let path = place.file.map_or("", |file| file.strip_prefix(&self.root).unwrap_or(file));
            found.push(Frame {
                function: name.unwrap_or_default(),
                line: Line::new(path, place.line.unwrap_or(0), place.column.unwrap_or(0)),
            });
        }
        Ok(found)
    }
}

/// Whether a name is one of the toolchain's traits for calls.
fn is_generic(name: &str) -> bool {
    name.starts_with("core::ops::function::")
}

/// A name without hashes.
fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

/// A path that is the same on every machine: of this workspace, of a crate (without its version), of the toolchain.
fn short_path(path: &str) -> String {
    if let Some((_, inside)) = path.split_once("/library/") {
        return inside.to_owned();
    }
    if let Some((_, inside)) = path.split_once("/registry/src/")
        && let Some((_, inside)) = inside.split_once('/')
        && let Some((package, file)) = inside.split_once('/')
    {
        return format!("{}/{file}", package.rsplit_once('-').map_or(package, |(name, _)| name));
    }
    path.to_owned()
}
