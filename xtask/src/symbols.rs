//! Fills the kernel's table of function names, after the link.
//!
//! The format is `granule::symbols`' own; that module reads what is written here. The kernel resolves addresses by it
//! in backtraces, with nothing but its own image at hand.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// The section that the kernel reserves for the table.
const SECTION: &str = ".granule.symbols";
/// Bytes of the longest names, of which the first that lets the table fit counts: what is cut is the tail of generic
/// arguments.
const LONGEST: [usize; 7] = [usize::MAX, 80, 60, 48, 40, 32, 28];

/// Writes the table into the ELF's reserved section.
///
/// # Errors
/// When there is no such section, or the functions do not fit.
pub(crate) fn fill(elf: &mut [u8]) -> Result<()> {
    let (functions, offset, room) = read(elf)?;
    ensure!(!functions.is_empty(), "the linked file has no symbols: it is stripped");
    let tables: Vec<_> = LONGEST.iter().filter_map(|&longest| table(&functions, longest)).collect();
    let shortest = tables.last().map_or(0, Vec::len);
    let table = tables.iter().find(|table| table.len() <= room).with_context(|| {
        format!(
            "{} functions need {shortest} bytes in {SECTION}, which reserves {room}: raise symbols_size in linker/build.rs",
            functions.len(),
        )
    })?;
    elf[offset..offset + table.len()].copy_from_slice(table);
    elf[offset + table.len()..offset + room].fill(0);
    Ok(())
}

/// The address of a function, by its path without generic arguments and hash.
///
/// # Errors
/// When the file cannot be parsed, or has no such function.
pub(crate) fn address(elf: &[u8], path: &str) -> Result<u64> {
    let file = object::File::parse(elf)?;
    let found = file.symbols().find(|symbol| {
        symbol.kind() == SymbolKind::Text
            && symbol.name().is_ok_and(|name| format!("{:#}", rustc_demangle::demangle(name)) == path)
    });
    Ok(found.with_context(|| format!("the linked file has no function {path}"))?.address())
}

/// The functions' names by offset from the image's start, and where in the file the table goes and how long it may be.
fn read(elf: &[u8]) -> Result<(BTreeMap<u32, String>, usize, usize)> {
    let file = object::File::parse(elf)?;
    let (offset, room) = file
        .section_by_name(SECTION)
        .and_then(|section| section.file_range())
        .with_context(|| format!("the linked file has no {SECTION}"))?;
    let start = file
        .symbols()
        .find(|symbol| symbol.name() == Ok("__image_start"))
        .context("the linker script defines no __image_start")?
        .address();
    let mut functions = BTreeMap::new();
    for symbol in file.symbols() {
        // Assembly marks its functions too; what has no name or no address is no function of this image.
        if symbol.kind() != SymbolKind::Text || symbol.is_undefined() {
            continue;
        }
        let (Ok(name), Some(at)) = (symbol.name(), symbol.address().checked_sub(start)) else { continue };
        // `$x` and `$d` mark code and data within sections.
        if let (Ok(at), false) = (u32::try_from(at), name.is_empty() || name.starts_with('$')) {
            functions.entry(at).or_insert_with(|| shown(&format!("{:#}", rustc_demangle::demangle(name))));
        }
    }
    Ok((functions, usize::try_from(offset)?, usize::try_from(room)?))
}

/// A name as reports show it, without what it has too much of for the image's room: the kernel's crate, of which nearly all
/// are, and the type of a method that stands in another module than its type.
fn shown(name: &str) -> String {
    const IMPL: &str = "::<impl ";
    let mut name = name.replace("granule::", "");
    while let Some(start) = name.find(IMPL) {
        let mut depth = 0;
        let end = name[start..].char_indices().skip(2).find_map(|(at, letter)| {
            depth += i32::from(letter == '<') - i32::from(letter == '>');
            (depth == 0).then_some(start + at + 1)
        });
        name.replace_range(start..end.unwrap_or(name.len()), "");
    }
    name
}

/// Where the last part of a name begins: behind the last `::` that no brackets are around.
fn last_part(name: &str) -> usize {
    let mut depth = 0;
    let mut last = 0;
    for (at, letter) in name.char_indices() {
        depth += i32::from("<({[".contains(letter)) - i32::from(">)}]".contains(letter));
        if depth == 0 && name[at..].starts_with("::") {
            last = at + 2;
        }
    }
    last
}

/// Texts, each distinct one once, by their places.
#[derive(Default)]
struct Texts<'a> {
    bytes: Vec<u8>,
    known: HashMap<&'a str, usize>,
}

impl<'a> Texts<'a> {
    /// The place of a text, which is added if it is not there.
    fn place(&mut self, text: &'a str) -> usize {
        *self.known.entry(text).or_insert_with(|| {
            let place = self.bytes.len();
            self.bytes.extend(text.bytes().chain([0]));
            place
        })
    }
}

/// The bytes of the table, with names of at most `longest` bytes; `None` where the places of texts do not fit its entries.
fn table(functions: &BTreeMap<u32, String>, longest: usize) -> Option<Vec<u8>> {
    let (mut paths, mut names) = (Texts::default(), Texts::default());
    let mut entries = Vec::new();
    for (at, name) in functions {
        let end = name.char_indices().map(|(at, _)| at).chain([name.len()]).take_while(|&end| end <= longest).last();
        let name = &name[..end.unwrap_or(0)];
        let (path, last) = name.split_at(last_part(name));
        entries.extend(at.to_le_bytes());
        for place in [paths.place(path), names.place(last)] {
            entries.extend(u16::try_from(place).ok()?.to_le_bytes());
        }
    }
    let mut table = b"GSYM".to_vec();
    for word in [2, functions.len() as u32, paths.bytes.len() as u32, names.bytes.len() as u32] {
        table.extend(word.to_le_bytes());
    }
    [entries, paths.bytes, names.bytes].into_iter().for_each(|part| table.extend(part));
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::{address, last_part, shown, table};

    #[test]
    fn a_function_is_found_by_its_path() {
        let elf = concat!(env!("CARGO_MANIFEST_DIR"), "/../build/granule.elf");
        let elf = std::fs::read(elf).expect("`./x build` comes first");
        assert!(address(&elf, "granule::start::start").unwrap() >> 48 == 0xffff);
        assert!(address(&elf, "granule::start::stop").unwrap_err().to_string().contains("granule::start::stop"));
    }

    #[test]
    fn a_name_is_shown_without_the_kernels_crate() {
        assert_eq!(shown("granule::mm::pool::Pool<granule::smp::Cpu>::put"), "mm::pool::Pool<smp::Cpu>::put");
        assert_eq!(shown("granule_arch::tlbi::plan"), "granule_arch::tlbi::plan");
        assert_eq!(shown("granule::mm::space::zap::<impl granule::mm::Space<Pool<T>>>::zap"), "mm::space::zap::zap");
        assert_eq!(shown("<granule::mm::Space as core::fmt::Debug>::fmt"), "<mm::Space as core::fmt::Debug>::fmt");
    }

    #[test]
    fn the_last_part_of_a_name_is_behind_its_path() {
        for (path, last) in [
            ("", "_start"),
            ("mm::pool::", "put"),
            ("mm::pool::Pool<smp::Cpu>::", "put"),
            ("<mm::Space as core::fmt::Debug>::", "fmt"),
            ("sched::spawn::", "{closure#0}<a::b>"),
        ] {
            assert_eq!(last_part(&format!("{path}{last}")), path.len(), "{path}{last}");
        }
    }

    #[test]
    fn the_table_is_sorted_shares_names_and_cuts_them() {
        let name = str::to_owned;
        let functions = [(0x20, name("b::long<name>")), (0x10, name("a")), (0x30, name("b::a"))].into();
        let bytes = table(&functions, 7).unwrap();
        assert_eq!(&bytes[..4], b"GSYM");
        let words: Vec<u32> = bytes[4..44].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [2, 3, 5, 7, 0x10, 0, 0x20, 1 | 2 << 16, 0x30, 1]);
        assert_eq!(&bytes[44..], b"\0b::\0a\0long\0");
    }
}
