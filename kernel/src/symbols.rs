//! The names of the kernel's own functions, for backtraces and reports.
//!
//! The linker script reserves room in the section `.granule.symbols`; the build reads the linked file's symbols and writes
//! the table into that room: so a report names functions without any file at hand. The kernel trusts nothing in
//! it: a table that was never filled, or that memory corruption has reached, costs a name, not a second fault.
//!
//! ```text
//! "GSYM"  u32 version = 3  u32 blocks  u32 rules  u32 names_size
//! blocks × { u32 offset of the block's first function from __image_start, u32 place of its names }   ascending
//! rules × { two symbols of 12 bits, the first in the low ones }
//! names: for each function its name, a zero byte, and where another of the block follows the distance to it
//! ```
//! All numbers are little-endian. A symbol below 128 is an ASCII character, one from there on a rule: the symbols that it
//! stands for, in turn. A name is symbols, a rule being
//!
//! ```text
//! 0x80..=0xef             one of the first 112 rules, the frequent ones
//! 0xf0..=0xff, a byte     another, by 12 bits, the high ones first
//! ```
//! A distance is in instructions, 7 bits in a byte, the low ones first, all bytes but the last with bit 7 set. So whole
//! names of up to 200 bytes take 10 bytes of the image each; damage to the names reaches one block of them.

#![allow(unsafe_code, reason = "the symbol table that the build puts into the image")]

#[cfg_attr(not(target_os = "none"), path = "symbols/host.rs")]
mod image;

use core::fmt::Write;

use granule_arch::addr::VirtAddr;

const MAGIC: &[u8] = b"GSYM";
const VERSION: u32 = 3;
const HEADER_SIZE: usize = 20;
const BLOCK_SIZE: usize = 8;
const RULE_SIZE: usize = 3;
/// Symbols below this one are characters.
const CHARACTERS: u16 = 128;
/// Rules that take one byte in a name.
const SHORT_RULES: u8 = 112;
/// How deep rules stand in rules.
const DEEPEST: usize = 24;
/// Characters after which a name ends, which a rule that contains itself would not.
const LONGEST: usize = 512;

/// The place of an address in the kernel's text.
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
    /// The encoded symbols, from the name's first; a zero byte ends it.
    symbols: &'a [u8],
    rules: &'a [u8],
}

impl core::fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (mut rest, mut characters) = (self.symbols, 0);
        let mut waiting = heapless::Vec::<u16, DEEPEST>::new();
        while let Some(symbol) = waiting.pop().or_else(|| next_symbol(&mut rest)) {
            if let Some(rule) = symbol.checked_sub(CHARACTERS) {
                let Some([first, second]) = self.rule(rule) else { return Ok(()) };
                if waiting.push(second).is_err() || waiting.push(first).is_err() {
                    return Ok(());
                }
            } else if characters < LONGEST {
                f.write_char(char::from(symbol as u8))?;
                characters += 1;
            } else {
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Name<'_> {
    /// The two symbols that a rule stands for.
    fn rule(&self, rule: u16) -> Option<[u16; 2]> {
        let &[low, middle, high] = self.rules.get(usize::from(rule) * RULE_SIZE..)?.first_chunk()?;
        let both = u32::from_le_bytes([low, middle, high, 0]);
        Some([(both & 0xfff) as u16, (both >> 12) as u16])
    }
}

/// Takes the next symbol of a name from the front of `bytes`; `None` at its end, which it takes too.
fn next_symbol(bytes: &mut &[u8]) -> Option<u16> {
    let first = take(bytes)?;
    match first.checked_sub(CHARACTERS as u8) {
        None => (first != 0).then_some(u16::from(first)),
        Some(rule) if rule < SHORT_RULES => Some(u16::from(first)),
        Some(long) => Some(CHARACTERS + (u16::from(long - SHORT_RULES) << 8 | u16::from(take(bytes)?))),
    }
}

/// Takes a distance from the front of `bytes`, in bytes of the image.
fn next_distance(bytes: &mut &[u8]) -> Option<u32> {
    const INSTRUCTION_SIZE: u32 = 4;
    let mut distance = 0;
    for shift in [0, 7, 14, 21] {
        let byte = take(bytes)?;
        distance |= u32::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(distance * INSTRUCTION_SIZE);
        }
    }
    None
}

/// Takes a byte from the front of `bytes`.
fn take(bytes: &mut &[u8]) -> Option<u8> {
    bytes.split_off_first().copied()
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

/// A table whose header is consistent with its length. The rest is checked as it is used.
struct SymbolTable<'a> {
    blocks: &'a [u8],
    rules: &'a [u8],
    names: &'a [u8],
}

impl<'a> SymbolTable<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(HEADER_SIZE)?;
        if !header.starts_with(MAGIC) || word(header, 4)? != VERSION {
            return None;
        }
        let (blocks, rest) = rest.split_at_checked((word(header, 8)? as usize).checked_mul(BLOCK_SIZE)?)?;
        let (rules, rest) = rest.split_at_checked((word(header, 12)? as usize).checked_mul(RULE_SIZE)?)?;
        let names = rest.get(..word(header, 16)? as usize)?;
        Some(Self { blocks, rules, names })
    }

    /// The last function that starts at or before `offset`: its name and its start.
    fn lookup(&self, offset: u32) -> Option<(Name<'a>, u32)> {
        let (mut low, mut high) = (0, self.blocks.len() / BLOCK_SIZE);
        while low < high {
            let middle = low.midpoint(high);
            if word(self.blocks, middle * BLOCK_SIZE)? <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let block = low.checked_sub(1)? * BLOCK_SIZE;
        let place = word(self.blocks, block + 4)? as usize;
        let end = word(self.blocks, block + BLOCK_SIZE + 4).map_or(self.names.len(), |next| next as usize);
        let mut rest = self.names.get(place..end)?;
        let mut start = word(self.blocks, block)?;
        loop {
            let symbols = rest;
            while next_symbol(&mut rest).is_some() {}
            let next = next_distance(&mut rest).and_then(|distance| start.checked_add(distance));
            match next {
                Some(next) if next <= offset => start = next,
                // In a table out of order the search may end at a later block.
                _ => return (start <= offset).then_some((Name { symbols, rules: self.rules }, start)),
            }
        }
    }
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

    /// Rules 0 and 1 of [`table`], 112 and more.
    const START: u16 = CHARACTERS;
    const STARTS: u16 = CHARACTERS + 1;
    const RULES: usize = 120;

    /// A table with two functions in a block.
    fn table(functions: &[(u32, &[u8])]) -> Vec<u8> {
        let (mut blocks, mut names) = (Vec::new(), Vec::new());
        for pair in functions.chunks(2) {
            for number in [pair[0].0, names.len() as u32] {
                blocks.extend(number.to_le_bytes());
            }
            names.extend(pair[0].1.iter().chain(&[0]));
            if let Some((next, symbols)) = pair.get(1) {
                let distance = (next - pair[0].0) / 4;
                names.extend([distance as u8 | 0x80, (distance >> 7) as u8]);
                names.extend(symbols.iter().chain(&[0]));
            }
        }
        let mut rules = vec![[b's'.into(), b't'.into()], [START, b'a'.into()]];
        rules.resize(RULES, [STARTS, START]);
        let mut table = MAGIC.to_vec();
        for number in [VERSION, (blocks.len() / BLOCK_SIZE) as u32, rules.len() as u32, names.len() as u32] {
            table.extend(number.to_le_bytes());
        }
        table.extend(blocks);
        for [first, second] in rules {
            table.extend(&(u32::from(first) | u32::from(second) << 12).to_le_bytes()[..RULE_SIZE]);
        }
        table.extend(names);
        table
    }

    fn found(table: &SymbolTable<'_>, offset: u32) -> Option<(String, u32)> {
        table.lookup(offset).map(|(name, start)| (name.to_string(), start))
    }

    const FUNCTIONS: [(u32, &[u8]); 3] =
        [(0x1000, b"_\x81rt"), (0x1040, b"granule::\x81rt::\x80op"), (0x2000, b"\xf0\x00, \xf0\x77")];

    #[test]
    fn an_address_belongs_to_the_last_function_before_it() {
        let bytes = table(&FUNCTIONS);
        let table = SymbolTable::parse(&bytes).unwrap();
        let is = |name: &str, start| Some((name.to_owned(), start));
        assert_eq!(found(&table, 0), None);
        assert_eq!(found(&table, 0xfff), None);
        assert_eq!(found(&table, 0x1000), is("_start", 0x1000));
        assert_eq!(found(&table, 0x103f), is("_start", 0x1000));
        assert_eq!(found(&table, 0x1040), is("granule::start::stop", 0x1040));
        assert_eq!(found(&table, 0x1fff), is("granule::start::stop", 0x1040));
        assert_eq!(found(&table, u32::MAX), is("st, stast", 0x2000));
    }

    #[test]
    fn a_rule_that_is_missing_or_contains_itself_ends_the_name() {
        let name = |symbols: &[u8], rules: &[u8]| Name { symbols, rules }.to_string();
        assert_eq!(name(b"a\x80b", &[]), "a");
        // Itself and `a`, `a` and itself: what waits fills up, what is written does.
        assert_eq!(name(b"\x80", &[0x80, 0x10, 0x06]), "");
        assert_eq!(name(b"\x80", &[0x61, 0x00, 0x08]), "a".repeat(LONGEST));
    }

    #[test]
    fn a_distance_is_instructions_in_seven_bits_each() {
        let distance = |mut bytes: &[u8]| next_distance(&mut bytes);
        assert_eq!(distance(&[5, 1]), Some(20));
        assert_eq!(distance(&[0x85, 1]), Some((1 << 7 | 5) * 4));
        assert_eq!(distance(&[0xff, 0xff, 0xff, 0x7f]), Some(((1 << 28) - 1) * 4));
        assert_eq!([distance(&[]), distance(&[0x80]), distance(&[0x80; 5])], [None; 3]);
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
            blocks in 0u32..8,
            rules in 0u32..32,
            names in 0u32..256,
            offset: u32,
        ) {
            if bytes.len() >= HEADER_SIZE {
                bytes[..4].copy_from_slice(MAGIC);
                for (at, number) in [VERSION, blocks, rules, names].iter().enumerate() {
                    bytes[4 + at * 4..][..4].copy_from_slice(&number.to_le_bytes());
                }
            }
            if let Some((name, start)) = SymbolTable::parse(&bytes).and_then(|table| table.lookup(offset)) {
                prop_assert!(start <= offset && name.to_string().len() <= LONGEST);
            }
        }

        #[test]
        fn a_flipped_byte_gives_no_fault(at: prop::sample::Index, value: u8, offset in 0u32..0x3000) {
            let mut bytes = table(&FUNCTIONS);
            let at = at.index(bytes.len());
            bytes[at] = value;
            if let Some((name, start)) = SymbolTable::parse(&bytes).and_then(|table| table.lookup(offset)) {
                prop_assert!(start <= offset && name.to_string().len() <= LONGEST);
            }
        }
    }
}
