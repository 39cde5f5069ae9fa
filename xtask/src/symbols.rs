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
    let mut tables = LONGEST.map(|longest| table(&functions, longest)).into_iter();
    let shortest = tables.as_slice().last().map_or(0, Vec::len);
    let table = tables.find(|table| table.len() <= room).with_context(|| {
        format!(
            "{} functions need {shortest} bytes in {SECTION}, which reserves {room}: raise symbols_size in linker/build.rs",
            functions.len(),
        )
    })?;
    elf[offset..offset + table.len()].copy_from_slice(&table);
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

/// The bytes of the table, with names of at most `longest` bytes; each distinct name once.
fn table(functions: &BTreeMap<u32, String>, longest: usize) -> Vec<u8> {
    let mut names: Vec<u8> = Vec::new();
    let mut known: HashMap<&str, u32> = HashMap::new();
    let mut entries = Vec::new();
    for (at, name) in functions {
        let end = name.char_indices().map(|(at, _)| at).chain([name.len()]).take_while(|&end| end <= longest).last();
        let name = &name[..end.unwrap_or(0)];
        let offset = *known.entry(name).or_insert_with(|| {
            let offset = names.len() as u32;
            names.extend(name.bytes().chain([0]));
            offset
        });
        entries.extend(at.to_le_bytes());
        entries.extend(offset.to_le_bytes());
    }
    let mut table = b"GSYM".to_vec();
    for word in [1, functions.len() as u32, names.len() as u32] {
        table.extend(word.to_le_bytes());
    }
    table.extend(entries);
    table.extend(names);
    table
}

#[cfg(test)]
mod tests {
    use super::{address, shown, table};

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
    fn the_table_is_sorted_shares_names_and_cuts_them() {
        let functions = [(0x20, "b::long<name>".to_owned()), (0x10, "a".to_owned()), (0x30, "a".to_owned())].into();
        let bytes = table(&functions, 7);
        assert_eq!(&bytes[..4], b"GSYM");
        let words: Vec<u32> = bytes[4..40].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [1, 3, 10, 0x10, 0, 0x20, 2, 0x30, 0]);
        assert_eq!(&bytes[40..], b"a\0b::long\0");
    }
}
