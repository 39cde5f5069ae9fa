//! Checks a flattened device tree before anything reads it.
//!
//! `dtoolkit` reads a tree that its own check has accepted, and panics on any other. Its own check refuses names of more
//! than 31 characters, which the specification recommends (2.2.1, 2.2.4) and the trees of real boards do not keep. So
//! [`check`] proves exactly what `dtoolkit`'s readers rely on, and nothing about names but that they are text:
//!
//! - the header lies in the blob, and each block that it names begins in it;
//! - the memory reservation block ends with its empty entry;
//! - each token, each name and each value of the structure block ends in the blob; nodes close in order, properties
//!   precede child nodes, and `FDT_END` follows the root;
//! - each property's name is text that ends in the strings block.
//!
//! The EFI stub is compiled with this file too (`boot/uefi`).
//!
//! Devicetree Specification v0.4, 5.2 to 5.5. The order of the blocks is not checked: no reader relies on it, and boot
//! loaders move them.

use core::ffi::CStr;
use core::ops::Range;

use dtoolkit::fdt::Fdt;
use thiserror::Error;

/// Bytes of the header of version 17 (5.2).
const HEADER: usize = 40;
const VERSION: u32 = 17;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// The defects of a flattened device tree. Offsets are bytes from its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum StructureError {
    /// The blob does not begin with the magic number, or is shorter than a header.
    #[error("no magic number at its start")]
    NoMagic,
    /// The header gives another length than the blob has.
    #[error("its header does not give its length")]
    Length,
    /// Version 17 is not among those that the tree is compatible with.
    #[error("version {0}, and version 17 is needed")]
    Version(u32),
    /// A block that the header names begins or ends outside of the blob.
    #[error("a block of its header is outside of it")]
    Header,
    /// The memory reservation block has no end.
    #[error("the memory reservation block has no last entry")]
    Reservations,
    /// A token is none, or stands where it may not.
    #[error("bad token {token:#x} at offset {offset:#x}")]
    Token {
        /// The token.
        token: u32,
        /// Its place.
        offset: usize,
    },
    /// A token, a name or a value ends outside of the blob.
    #[error("cut off at offset {0:#x}")]
    CutOff(usize),
    /// A name is not text that ends in its block.
    #[error("bad name at offset {0:#x}")]
    Name(usize),
}

/// The tree in `blob`, whose length is in its header.
///
/// # Errors
/// The first defect; nothing else of the tree has been looked at then.
pub(super) fn check(blob: &[u8]) -> Result<Fdt<'_>, StructureError> {
    check_and_find(blob, b"", []).map(|(fdt, [])| fdt)
}

/// Where in a blob a value is.
pub(super) struct Place {
    pub(super) range: Range<usize>,
    /// Neither the header nor another block has bytes there: with another value the tree is as sound as before.
    pub(super) is_alone: bool,
}

/// Where in a blob values are; `None` for what is missing.
type Places<const N: usize> = [Option<Place>; N];

/// As [`check`], with where in the blob the values of these properties are of `node`, a child of the root; of several of
/// one name the first, as in the rest of the kernel.
#[inline(never)]
pub(super) fn check_and_find<'t, const N: usize>(
    blob: &'t [u8],
    node: &[u8],
    names: [&CStr; N],
) -> Result<(Fdt<'t>, Places<N>), StructureError> {
    let words: &[u8; HEADER] = blob.first_chunk().ok_or(StructureError::NoMagic)?;
    let mut cells = words.chunks_exact(4).map_while(|cell| cell.try_into().ok().map(u32::from_be_bytes));
    let mut next = || cells.next().ok_or(StructureError::NoMagic);
    let [magic, size, structure, strings, reservations] = [next()?, next()?, next()?, next()?, next()?];
    let [version, compatible, _boot_cpu, strings_size] = [next()?, next()?, next()?, next()?];
    if magic != 0xd00d_feed {
        return Err(StructureError::NoMagic);
    }
    if size as usize != blob.len() {
        return Err(StructureError::Length);
    }
    if !(compatible..=version).contains(&VERSION) {
        return Err(StructureError::Version(version));
    }
    // A token is aligned to its size (5.4.1), and dtoolkit aligns offsets in the blob, not in the block.
    if !structure.is_multiple_of(4) || (reservations as usize) < HEADER {
        return Err(StructureError::Header);
    }
    let block = blob.get(strings as usize..).and_then(|rest| rest.get(..strings_size as usize));
    let block = block.ok_or(StructureError::Header)?;
    let others = [0..HEADER, strings as usize..strings as usize + block.len(), reserved(blob, reservations as usize)?];
    let mut found = [const { None }; N];
    let mut find = |name: &[u8], range: Range<usize>| {
        let is_alone = others.iter().all(|other| range.end <= other.start || other.end <= range.start);
        let wanted = names.iter().zip(&mut found).find(|(wanted, _)| name.starts_with(wanted.to_bytes_with_nul()));
        wanted.into_iter().for_each(|(_, slot)| _ = slot.get_or_insert(Place { range: range.clone(), is_alone }));
    };
    check_structure(Tokens { blob, at: structure as usize }, block, node, &mut find)?;
    Ok((Fdt::new_unchecked(blob), found))
}

/// The block of reservations, which ends with an entry of which both words are zero (5.3).
fn reserved(blob: &[u8], at: usize) -> Result<Range<usize>, StructureError> {
    let block = blob.get(at..).ok_or(StructureError::Header)?;
    let last = block.chunks_exact(16).position(|entry| entry.iter().all(|&byte| byte == 0));
    last.map(|last| at..at + (last + 1) * 16).ok_or(StructureError::Reservations)
}

/// Nodes close in order, and names are text. `visit` gets the properties of `node`, the first child of the root of that
/// name: the strings from the property's name on, and where the value is.
fn check_structure(
    mut tokens: Tokens<'_>,
    strings: &[u8],
    node: &[u8],
    visit: &mut dyn FnMut(&[u8], Range<usize>),
) -> Result<(), StructureError> {
    let mut offset = tokens.at;
    // The first token is the root's: dtoolkit does not step over a NOP there.
    let mut token = Some(tokens.next()?).filter(|token| matches!(token, Token::BeginNode { .. }));
    let (mut depth, mut node, mut is_visited) = (0_usize, Some(node), false);
    // Properties precede child nodes (5.4.2).
    let mut properties_may_come = true;
    loop {
        match token {
            Some(Token::BeginNode { name }) => {
                str::from_utf8(name).map_err(|_| StructureError::Name(offset))?;
                depth += 1;
                is_visited = depth == 2 && node.take_if(|node| name == *node).is_some();
                properties_may_come = true;
            }
            Some(Token::EndNode) => {
                depth -= 1;
                properties_may_come = false;
            }
            Some(Token::Property { name, value }) if properties_may_come => {
                let name = strings.get(name..).unwrap_or_default();
                text(name).ok_or(StructureError::Name(offset))?;
                if is_visited {
                    visit(name, value);
                }
            }
            Some(Token::Nop) => {}
            _ => return Err(tokens.bad(offset)),
        }
        offset = tokens.at;
        token = Some(tokens.next()?);
        if depth == 0 {
            return if matches!(token, Some(Token::End)) { Ok(()) } else { Err(tokens.bad(offset)) };
        }
    }
}

/// A token with what belongs to it.
enum Token<'t> {
    /// A node begins.
    BeginNode {
        /// Its name, which may be no text.
        name: &'t [u8],
    },
    /// The innermost open node ends.
    EndNode,
    /// A property.
    Property {
        /// Where its name begins in the strings block, or behind it.
        name: usize,
        /// Where in the blob its value is.
        value: Range<usize>,
    },
    /// Nothing.
    Nop,
    /// The block ends.
    End,
}

/// The tokens of a structure block, from `at` on. Each ends in the blob; their order and names are not looked at.
struct Tokens<'t> {
    blob: &'t [u8],
    at: usize,
}

impl<'t> Tokens<'t> {
    /// The next one.
    fn next(&mut self) -> Result<Token<'t>, StructureError> {
        let offset = self.at;
        Ok(match self.cell()? {
            BEGIN_NODE => {
                let rest = self.blob.get(self.at..).unwrap_or_default();
                let name = CStr::from_bytes_until_nul(rest).map_err(|_| StructureError::Name(offset))?.to_bytes();
                self.skip(name.len() + 1)?;
                Token::BeginNode { name }
            }
            END_NODE => Token::EndNode,
            PROPERTY => {
                let (length, name) = (self.cell()? as usize, self.cell()? as usize);
                let start = self.at;
                self.skip(length)?;
                Token::Property { name, value: start..start + length }
            }
            NOP => Token::Nop,
            END => Token::End,
            _ => return Err(self.bad(offset)),
        })
    }

    /// The error that the token at `offset` is none, or stands where it may not.
    fn bad(&self, offset: usize) -> StructureError {
        let token = Self { blob: self.blob, at: offset }.cell();
        token.map_or_else(|error| error, |token| StructureError::Token { token, offset })
    }

    fn cell(&mut self) -> Result<u32, StructureError> {
        let rest = self.blob.get(self.at..).and_then(<[u8]>::first_chunk).ok_or(StructureError::CutOff(self.at))?;
        self.at += 4;
        Ok(u32::from_be_bytes(*rest))
    }

    /// Steps over `length` bytes that are in the blob, and over what aligns the next token.
    fn skip(&mut self, length: usize) -> Result<(), StructureError> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.blob.len());
        self.at = end.ok_or(StructureError::CutOff(self.at))?.next_multiple_of(4);
        Ok(())
    }
}

/// The text at the start of `bytes`, which a NUL ends.
fn text(bytes: &[u8]) -> Option<&str> {
    CStr::from_bytes_until_nul(bytes).ok()?.to_str().ok()
}
