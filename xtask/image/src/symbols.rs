//! Fills the kernel's table of function names, after the link.
//!
//! The format is `granule::symbols`' own; that module reads what is written here. The kernel resolves addresses by it
//! in backtraces, with nothing but its own image at hand.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context, Result, ensure};
use object::{Object, ObjectSection, ObjectSymbol, SymbolKind};

/// The section that the kernel reserves for the table.
const SECTION: &str = ".granule.symbols";
/// Bytes of the longest names, of which the first that lets the table fit counts: what is cut is the tail of generic
/// arguments.
const LONGEST: [usize; 9] = [usize::MAX, 80, 60, 48, 40, 38, 36, 32, 28];
/// Functions of a block, whose names lie between two places that the table has.
const BLOCK: usize = 32;
/// The first symbol that is a rule.
const FIRST_RULE: u16 = 128;
/// One past the last, which has 12 bits.
const RULES_END: usize = 1 << 12;
/// Rules that take one byte in a name.
const SHORT_RULES: u16 = 112;
/// How deep rules stand in rules, at most.
const DEEPEST: u8 = 23;

/// Writes the table into the ELF's reserved section.
///
/// # Errors
/// When there is no such section, or the functions do not fit.
pub(crate) fn fill(elf: &mut [u8]) -> Result<()> {
    let (functions, offset, room) = read(elf)?;
    ensure!(!functions.is_empty(), "the linked file has no symbols: it is stripped");
    let mut shortest = 0;
    let table = LONGEST.iter().map(|&longest| table(&functions, longest)).find(|table| {
        shortest = table.len();
        shortest <= room
    });
    let table = table.with_context(|| {
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
pub fn address(elf: &[u8], path: &str) -> Result<u64> {
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
    Ok((outlined_together(functions), usize::try_from(offset)?, usize::try_from(room)?))
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

/// Functions without the numbers of those that the compiler made of instructions that several have in common: they lie
/// side by side, and no number tells more than that.
fn outlined_together(functions: BTreeMap<u32, String>) -> BTreeMap<u32, String> {
    const OUTLINED: &str = "OUTLINED_FUNCTION";
    let mut before_is = false;
    let mut kept = BTreeMap::new();
    for (at, name) in functions {
        let is = name.starts_with(OUTLINED);
        if !(is && before_is) {
            kept.insert(at, if is { OUTLINED.to_owned() } else { name });
        }
        before_is = is;
    }
    kept
}

/// A rule: the symbols that it stands for.
type Pair = (u16, u16);

/// Replaces the pairs of symbols that occur most often by rules, until none is worth it, and returns the rules.
///
/// Each round counts all pairs before it replaces any: so pairs that may overlap are left for the next one.
fn make_rules(texts: &mut [Vec<u16>]) -> Vec<Pair> {
    // A rule takes three bytes, and saves one or two at each place.
    const FEWEST: usize = 3;
    let mut rules: Vec<Pair> = Vec::new();
    let mut depths: HashMap<u16, u8> = HashMap::new();
    loop {
        let depth = |(first, second): Pair| {
            1 + [first, second].map(|part| depths.get(&part).map_or(0, |&d| d)).into_iter().max().unwrap_or(0)
        };
        let mut counts: HashMap<Pair, usize> = HashMap::new();
        for pair in texts.iter().flat_map(|text| text.windows(2)) {
            *counts.entry((pair[0], pair[1])).or_default() += 1;
        }
        let mut often: Vec<(usize, Pair, u8)> = counts
            .into_iter()
            .map(|(pair, count)| (count, pair, depth(pair)))
            .filter(|&(count, _, depth)| count >= FEWEST && depth <= DEEPEST)
            .collect();
        often.sort_by_key(|&(count, pair, _)| (Reverse(count), pair));
        let Some(&(most, ..)) = often.first() else { return rules };
        let (mut fronts, mut backs) = (HashSet::new(), HashSet::new());
        let mut chosen = HashMap::new();
        for (_, pair, depth) in often.into_iter().take_while(|&(count, ..)| count * 2 >= most) {
            let symbol = usize::from(FIRST_RULE) + rules.len();
            let overlaps = backs.contains(&pair.0) || fronts.contains(&pair.1);
            if !overlaps && symbol < RULES_END {
                fronts.insert(pair.0);
                backs.insert(pair.1);
                rules.push(pair);
                depths.insert(symbol as u16, depth);
                chosen.insert(pair, symbol as u16);
            }
        }
        if chosen.is_empty() {
            return rules;
        }
        texts.iter_mut().for_each(|text| replace(text, &chosen));
    }
}

/// Replaces pairs by their rules, from the front on.
fn replace(text: &mut Vec<u16>, rules: &HashMap<Pair, u16>) {
    let mut kept = 0;
    let mut at = 0;
    while let Some(&symbol) = text.get(at) {
        let rule = text.get(at + 1).and_then(|&next| rules.get(&(symbol, next)));
        text[kept] = rule.copied().unwrap_or(symbol);
        kept += 1;
        at += if rule.is_some() { 2 } else { 1 };
    }
    text.truncate(kept);
}

/// Numbers the rules anew, those first that names have most often: these take one byte there.
fn put_frequent_first(texts: &mut [Vec<u16>], rules: &mut Vec<Pair>) {
    let mut counts = vec![0; rules.len()];
    let number = |symbol: u16| symbol.checked_sub(FIRST_RULE).map(usize::from);
    texts.iter().flatten().filter_map(|&symbol| number(symbol)).for_each(|rule| counts[rule] += 1);
    let mut order: Vec<usize> = (0..rules.len()).collect();
    order.sort_by_key(|&rule| Reverse(counts[rule]));
    let mut new_symbols = vec![0; rules.len()];
    order.iter().zip(FIRST_RULE..).for_each(|(&rule, symbol)| new_symbols[rule] = symbol);
    let renamed = |symbol: u16| number(symbol).map_or(symbol, |rule| new_symbols[rule]);
    texts.iter_mut().flatten().for_each(|symbol| *symbol = renamed(*symbol));
    *rules = order.into_iter().map(|rule| (renamed(rules[rule].0), renamed(rules[rule].1))).collect();
}

/// The bytes of the table, with names of at most `longest` bytes.
fn table(functions: &BTreeMap<u32, String>, longest: usize) -> Vec<u8> {
    let character = |letter: char| if matches!(letter, ' '..='~') { letter as u16 } else { u16::from(b'?') };
    let mut texts: Vec<Vec<u16>> =
        functions.values().map(|name| name.chars().take(longest).map(character).collect()).collect();
    let mut rules = make_rules(&mut texts);
    put_frequent_first(&mut texts, &mut rules);
    let (mut blocks, mut names) = (Vec::new(), Vec::new());
    let mut before = 0;
    for (index, (&at, text)) in functions.keys().zip(&texts).enumerate() {
        if index % BLOCK == 0 {
            [at, names.len() as u32].iter().for_each(|number| blocks.extend(number.to_le_bytes()));
        } else {
            put_distance(&mut names, (at - before) / 4);
        }
        text.iter().for_each(|&symbol| put_symbol(&mut names, symbol));
        names.push(0);
        before = at;
    }
    let mut table = b"GSYM".to_vec();
    for number in [3, blocks.len() / 8, rules.len(), names.len()] {
        table.extend((number as u32).to_le_bytes());
    }
    table.extend(blocks);
    for (first, second) in rules {
        table.extend(&(u32::from(first) | u32::from(second) << 12).to_le_bytes()[..3]);
    }
    table.extend(names);
    table
}

/// A symbol as a name has it.
fn put_symbol(names: &mut Vec<u8>, symbol: u16) {
    match symbol.checked_sub(FIRST_RULE) {
        Some(rule) if rule >= SHORT_RULES => names.extend([0xf0 | (rule >> 8) as u8, rule as u8]),
        _ => names.push(symbol as u8),
    }
}

/// Instructions to the next function.
fn put_distance(names: &mut Vec<u8>, mut instructions: u32) {
    while instructions > 0x7f {
        names.push(0x80 | instructions as u8);
        instructions >>= 7;
    }
    names.push(instructions as u8);
}

#[cfg(test)]
mod tests {
    use super::{
        FIRST_RULE, Pair, address, make_rules, outlined_together, put_frequent_first, put_symbol, shown, table,
    };

    #[test]
    fn a_function_is_found_by_its_path() {
        let elf = granule_tools::root().join("build/granule.elf");
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
    fn what_the_compiler_outlined_is_one_function() {
        let functions = [(0, "a"), (8, "OUTLINED_FUNCTION_1"), (12, "OUTLINED_FUNCTION_0"), (16, "b")];
        let functions = outlined_together(functions.map(|(at, name)| (at, name.to_owned())).into());
        assert_eq!(
            functions,
            [(0, "a"), (8, "OUTLINED_FUNCTION"), (16, "b")].map(|(at, name)| (at, name.to_owned())).into()
        );
    }

    #[test]
    fn rules_stand_for_the_names() {
        let names = ["mm::space::zap", "mm::space::zap::tables", "mm::space::cow", "aaaaaaa", "b"];
        let mut texts = names.map(|name| name.bytes().map(u16::from).collect::<Vec<_>>());
        let mut rules = make_rules(&mut texts);
        assert!(texts[0].len() < 6 && texts[4] == [u16::from(b'b')], "{texts:?} {rules:?}");
        put_frequent_first(&mut texts, &mut rules);
        assert_eq!(texts.map(|text| expanded(&text, &rules)), names);
    }

    fn expanded(text: &[u16], rules: &[Pair]) -> String {
        let one = |&symbol: &u16| match symbol.checked_sub(FIRST_RULE).map(|rule| rules[usize::from(rule)]) {
            Some((first, second)) => expanded(&[first, second], rules),
            None => char::from(symbol as u8).to_string(),
        };
        text.iter().map(one).collect()
    }

    #[test]
    fn the_table_is_sorted_and_cuts_names() {
        let functions = [(0x20, "b::longname"), (0x10, "ä"), (0x420, "c")].map(|(at, name)| (at, name.to_owned()));
        let bytes = table(&functions.into(), 7);
        assert_eq!(&bytes[..4], b"GSYM");
        let words: Vec<u32> = bytes[4..28].chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
        assert_eq!(words, [3, 1, 0, 15, 0x10, 0]);
        assert_eq!(&bytes[28..], b"?\0\x04b::long\0\x80\x02c\0");
    }

    #[test]
    fn frequent_rules_take_one_byte() {
        let mut names = Vec::new();
        [0x61, FIRST_RULE, FIRST_RULE + 111, FIRST_RULE + 112, 0xfff]
            .iter()
            .for_each(|&symbol| put_symbol(&mut names, symbol));
        assert_eq!(names, [0x61, 0x80, 0xef, 0xf0, 112, 0xff, 0x7f]);
    }
}
