//! From ELF to arm64 Image: the loadable segments as they lie in memory, one after the other.
//!
//! The 64-byte header that boot loaders look for (Linux, Documentation/arch/arm64/booting.rst) is part of the text,
//! written in boot's assembly, so nothing is added here; what is zero at the end stays out of the file, and the
//! header's image size accounts for it.

use anyhow::{Context, Result, bail, ensure};
use object::elf::{FileHeader64, PF_W, PF_X, PT_LOAD, ProgramFlags};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{LittleEndian, Object, ObjectSymbol};

/// Magic number of the header, `ARM\x64` at byte 56.
const HEADER_MAGIC: &[u8] = b"ARM\x64";

/// A segment that is loaded.
struct Segment<'a> {
    virtual_address: u64,
    physical_address: u64,
    flags: ProgramFlags,
    bytes: &'a [u8],
}

/// Refuses a program with memory that is writable and executable.
///
/// # Errors
/// Names the segment.
pub(crate) fn check_permissions(elf: &[u8]) -> Result<()> {
    for segment in segments(elf)? {
        if segment.flags.contains(PF_W) && segment.flags.contains(PF_X) {
            bail!("the segment at {:#x} is writable and executable", segment.virtual_address);
        }
    }
    Ok(())
}

/// The flat Image.
///
/// # Errors
/// When the segments overlap or do not start at `__image_start`, or the header is not there.
pub(crate) fn flatten(elf: &[u8]) -> Result<Vec<u8>> {
    let file: ElfFile64<'_> = ElfFile64::parse(elf)?;
    let start = file
        .symbols()
        .find(|symbol| symbol.name() == Ok("__image_start"))
        .context("the linker script defines no __image_start")?
        .address();
    let mut segments = segments(elf)?;
    segments.sort_by_key(|segment| segment.physical_address);
    let first = segments.first().context("nothing to load")?;
    ensure!(
        first.virtual_address == start,
        "the first segment is at {:#x}, __image_start at {start:#x}",
        first.virtual_address
    );
    let base = first.physical_address;
    let mut image = Vec::new();
    for segment in &segments {
        let offset = usize::try_from(segment.physical_address - base)?;
        ensure!(offset >= image.len(), "the segment at {:#x} overlaps its predecessor", segment.virtual_address);
        if !segment.bytes.is_empty() {
            image.resize(offset, 0);
            image.extend_from_slice(segment.bytes);
        }
    }
    ensure!(image.get(56..60) == Some(HEADER_MAGIC), "there is no arm64 Image header at __image_start");
    Ok(image)
}

fn segments(elf: &[u8]) -> Result<Vec<Segment<'_>>> {
    let header = FileHeader64::<LittleEndian>::parse(elf)?;
    let endian = header.endian()?;
    let mut segments = Vec::new();
    for segment in header.program_headers(endian, elf)? {
        if segment.p_type(endian) == PT_LOAD {
            segments.push(Segment {
                virtual_address: segment.p_vaddr(endian),
                physical_address: segment.p_paddr(endian),
                flags: segment.p_flags(endian),
                bytes: segment.data(endian, elf).ok().context("a segment lies outside the file")?,
            });
        }
    }
    Ok(segments)
}
