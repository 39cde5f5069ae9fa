//! The names of the kernel's own functions, for backtraces and reports.
//!
//! The linker script reserves room in the section `.granule.symbols`; the build reads the linked file's symbols and writes
//! the table into that room: so a report names functions without any file at hand. The kernel trusts nothing in
//! it: a table that was never filled, or that memory corruption has reached, costs a name, not a second fault.
//!
//! ```text
//! "GSYM"  u32 version = 2  u32 count  u32 paths_size  u32 names_size
//! count × { u32 offset of the function from __image_start, u16 offset of its path, u16 of its name }   ascending
//! paths: what a name has before its last part; demangled, UTF-8, each ended by a zero byte
//! names: their last parts, the same
//! ```
//! All numbers are little-endian. Most functions share their path with others, which takes a third off the table.

#![allow(unsafe_code, reason = "the symbol table that the build puts into the image")]

use granule_arch::addr::VirtAddr;

const MAGIC: &[u8] = b"GSYM";
const VERSION: u32 = 2;
const HEADER_SIZE: usize = 20;
const ENTRY_SIZE: usize = 8;

/// What an address is called.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Symbol {
    /// The function that it lies in, demangled.
    pub name: Name<'static>,
    /// Bytes from the function's start.
    pub offset: u64,
}

/// The name of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name<'a> {
    /// Empty, or up to and with the last `::` between brackets' ends.
    path: &'a str,
    last: &'a str,
}

impl core::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.path)?;
        f.write_str(self.last)
    }
}

/// The function that `address` lies in; `None` outside the kernel's text, and where the table is not filled.
pub fn resolve(address: VirtAddr) -> Option<Symbol> {
    let text = text()?;
    if !text.contains(&address.0) {
        return None;
    }
    let offset = u32::try_from(address.0 - image_start()).ok()?;
    let (name, start) = SymbolTable::parse(filled())?.lookup(offset)?;
    Some(Symbol { name, offset: u64::from(offset - start) })
}

/// Where the image lies in memory, and the part of it that is code.
#[cfg(target_os = "none")]
mod image {
    use core::ops::Range;

    unsafe extern "C" {
        static __image_start: u8;
        static __image_end: u8;
        static __text_start: u8;
        static __text_end: u8;
        static __symbols_start: u8;
        static __symbols_end: u8;
    }

    /// First address of the image, which is what offsets count from.
    pub(super) fn image_start() -> u64 {
        (&raw const __image_start).addr() as u64
    }

    /// The code.
    pub(super) fn text() -> Option<Range<u64>> {
        Some((&raw const __text_start).addr() as u64..(&raw const __text_end).addr() as u64)
    }

    /// The table as the build left it.
    pub(super) fn filled() -> &'static [u8] {
        let start = &raw const __symbols_start;
        let size = (&raw const __symbols_end).addr() - start.addr();
        // SAFETY: the linker script gives these bytes to the table alone, among the constants: they are never written
        // while the kernel runs.
        unsafe { core::slice::from_raw_parts(start, size) }
    }

    /// `address` as an offset into the image: what a disassembly of the linked file is searched for.
    pub(super) fn image_offset(address: u64) -> Option<u64> {
        let image = image_start()..(&raw const __image_end).addr() as u64;
        image.contains(&address).then(|| address - image.start)
    }
}

/// The host has no image: every address is unknown.
#[cfg(not(target_os = "none"))]
mod image {
    use core::ops::Range;

    pub(super) fn image_start() -> u64 {
        0
    }

    pub(super) fn text() -> Option<Range<u64>> {
        None
    }

    pub(super) fn filled() -> &'static [u8] {
        &[]
    }

    pub(super) fn image_offset(_address: u64) -> Option<u64> {
        None
    }
}

use image::{filled, image_offset, image_start, text};

/// An address as reports print it: number, then function and offset, or the offset into the image where there is no
/// name.
#[derive(Clone, Copy)]
pub struct Named(pub VirtAddr);

impl core::fmt::Display for Named {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#018x}", self.0.0)?;
        if let Some(symbol) = resolve(self.0) {
            write!(f, "  {}+{:#x}", symbol.name, symbol.offset)
        } else if let Some(offset) = image_offset(self.0.0) {
            write!(f, "  image+{offset:#x}")
        } else {
            Ok(())
        }
    }
}

/// A table whose header is consistent with its length. Its entries are checked one by one, as they are used.
struct SymbolTable<'a> {
    entries: &'a [u8],
    paths: &'a [u8],
    names: &'a [u8],
}

impl<'a> SymbolTable<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(HEADER_SIZE)?;
        if !header.starts_with(MAGIC) || word(header, 4)? != VERSION {
            return None;
        }
        let entries_size = (word(header, 8)? as usize).checked_mul(ENTRY_SIZE)?;
        let (entries, rest) = rest.split_at_checked(entries_size)?;
        let (paths, rest) = rest.split_at_checked(word(header, 12)? as usize)?;
        let names = rest.get(..word(header, 16)? as usize)?;
        Some(Self { entries, paths, names })
    }

    /// The last function that starts at or before `offset`: its name and its start.
    fn lookup(&self, offset: u32) -> Option<(Name<'a>, u32)> {
        let (mut low, mut high) = (0, self.entries.len() / ENTRY_SIZE);
        while low < high {
            let middle = low.midpoint(high);
            if word(self.entries, middle * ENTRY_SIZE)? <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let entry = low.checked_sub(1)? * ENTRY_SIZE;
        let start = word(self.entries, entry)?;
        let places = word(self.entries, entry + 4)?;
        let path = text_at(self.paths, places as u16)?;
        let last = text_at(self.names, (places >> 16) as u16)?;
        // In a table out of order the search may end at a later function.
        (start <= offset).then_some((Name { path, last }, start))
    }
}

/// The text at byte `at`, which a zero byte ends.
fn text_at(bytes: &[u8], at: u16) -> Option<&str> {
    core::ffi::CStr::from_bytes_until_nul(bytes.get(usize::from(at)..)?).ok()?.to_str().ok()
}

/// The little-endian number at byte `at`.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(functions: &[(u32, &str)]) -> Vec<u8> {
        let (mut entries, mut paths, mut names) = (Vec::new(), Vec::new(), Vec::new());
        for (offset, name) in functions {
            let (path, last) = name.split_at(name.rfind("::").map_or(0, |at| at + 2));
            entries.extend(offset.to_le_bytes());
            for (text, all) in [(path, &mut paths), (last, &mut names)] {
                entries.extend((all.len() as u16).to_le_bytes());
                all.extend(text.bytes().chain([0]));
            }
        }
        let mut table = MAGIC.to_vec();
        table.extend(VERSION.to_le_bytes());
        for size in [functions.len(), paths.len(), names.len()] {
            table.extend((size as u32).to_le_bytes());
        }
        [entries, paths, names].into_iter().for_each(|part| table.extend(part));
        table
    }

    fn found(table: &SymbolTable<'_>, offset: u32) -> Option<(String, u32)> {
        table.lookup(offset).map(|(name, start)| (name.to_string(), start))
    }

    const FUNCTIONS: [(u32, &str); 3] = [(0x1000, "_start"), (0x1040, "granule::start::start"), (0x2000, "ünïcode")];

    #[test]
    fn an_address_belongs_to_the_last_function_before_it() {
        let bytes = table(&FUNCTIONS);
        let table = SymbolTable::parse(&bytes).unwrap();
        let is = |name: &str, start| Some((name.to_owned(), start));
        assert_eq!(found(&table, 0), None);
        assert_eq!(found(&table, 0xfff), None);
        assert_eq!(found(&table, 0x1000), is("_start", 0x1000));
        assert_eq!(found(&table, 0x103f), is("_start", 0x1000));
        assert_eq!(found(&table, 0x1040), is("granule::start::start", 0x1040));
        assert_eq!(found(&table, u32::MAX), is("ünïcode", 0x2000));
    }

    #[test]
    fn a_table_that_was_not_filled_has_no_names() {
        assert!(SymbolTable::parse(&[0; 4096]).is_none());
        assert!(SymbolTable::parse(filled()).is_none());
        assert_eq!(resolve(VirtAddr(0xffff_8000_8000_1000)), None);
        assert_eq!(SymbolTable::parse(&table(&[])).unwrap().lookup(5), None);
    }

    #[test]
    fn a_table_cut_short_is_refused() {
        let bytes = table(&FUNCTIONS);
        for length in 0..bytes.len() {
            assert!(SymbolTable::parse(&bytes[..length]).is_none(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn garbage_gives_no_fault(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..256),
            count in 0u32..40,
            names in any::<u32>(),
            offset: u32,
        ) {
            if bytes.len() >= HEADER_SIZE {
                bytes[..4].copy_from_slice(MAGIC);
                bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
                bytes[8..12].copy_from_slice(&count.to_le_bytes());
                bytes[12..16].copy_from_slice(&(names % 16).to_le_bytes());
                bytes[16..20].copy_from_slice(&(names % 256).to_le_bytes());
            }
            if let Some((name, start)) = SymbolTable::parse(&bytes).and_then(|table| table.lookup(offset)) {
                prop_assert!(start <= offset && name.to_string().len() < 256);
            }
        }

        #[test]
        fn a_flipped_byte_gives_no_fault(at: prop::sample::Index, value: u8, offset in 0u32..0x3000) {
            let mut bytes = table(&FUNCTIONS);
            let at = at.index(bytes.len());
            bytes[at] = value;
            let _ = SymbolTable::parse(&bytes).map(|table| table.lookup(offset));
        }
    }
}
