//! Which build an image is: a checksum in it, which a board's answer is compared with. A card keeps the image of an earlier
//! build, whose tests have the same names.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use granule_protocol::{IDENTITY, checksum};
use object::{Object, ObjectSection, ObjectSymbol};

/// Writes the checksum of `image`, into which the ELF is flattened, where the ELF has room for one; whether it has.
///
/// # Errors
/// When the ELF cannot be parsed.
pub fn write(elf: &mut [u8], image: &[u8]) -> Result<bool> {
    let Some(place) = place(elf)? else { return Ok(false) };
    elf[place..place + size_of::<u32>()].copy_from_slice(&checksum(image).to_le_bytes());
    Ok(true)
}

/// The checksum in the ELF of a test image.
///
/// # Errors
/// When it cannot be read, or has none.
pub fn read(elf: &Path) -> Result<u32> {
    let bytes = std::fs::read(elf).with_context(|| format!("cannot read {}", elf.display()))?;
    let place = place(&bytes)?.with_context(|| format!("{} has no {IDENTITY}", elf.display()))?;
    let word = bytes.get(place..).and_then(|rest| rest.first_chunk()).context("it lies beyond the file's end")?;
    Ok(u32::from_le_bytes(*word))
}

/// Where in the file it is.
fn place(elf: &[u8]) -> Result<Option<usize>> {
    let file = object::File::parse(elf)?;
    let Some(symbol) = file.symbols().find(|symbol| symbol.name() == Ok(IDENTITY)) else { return Ok(None) };
    let section = symbol.section_index().context("it is in no section")?;
    let section = file.section_by_index(section)?;
    let (start, size) = section.file_range().context("its section is not in the file")?;
    let offset = symbol.address() - section.address();
    ensure!(offset + size_of::<u32>() as u64 <= size, "{IDENTITY} ends outside of its section");
    Ok(Some((start + offset) as usize))
}
