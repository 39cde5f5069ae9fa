//! From ELF to arm64 Image: the loadable segments as they lie in memory, one after the other.
//!
//! The 64-byte header that boot loaders look for (Linux, Documentation/arch/arm64/booting.rst) is part of the text,
//! written in boot's assembly, so nothing is added here; what is zero at the end stays out of the file, and the
//! header's image size accounts for it.

use anyhow::{Context, Result, bail, ensure};
use object::elf::{
    FileHeader64, PF_W, PF_X, PT_LOAD, ProgramFlags, R_AARCH64_ADR_PREL_LO21, R_AARCH64_CONDBR19,
    R_AARCH64_LD_PREL_LO19, R_AARCH64_TSTBR14,
};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationFlags, SectionKind};

use crate::code;

/// Magic number of the header, `ARM\x64` at byte 56.
const HEADER_MAGIC: &[u8] = b"ARM\x64";

/// A segment that is loaded.
pub(crate) struct Segment<'a> {
    /// Where it is linked.
    pub(crate) virtual_address: u64,
    physical_address: u64,
    /// The permissions of its memory.
    pub(crate) flags: ProgramFlags,
    /// Bytes of it in memory.
    pub(crate) memory: u64,
    /// Those that are in the file.
    pub(crate) bytes: &'a [u8],
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

/// Refuses a program with a TLBI that EL1 may not issue, anywhere but where it is at EL2: `tlbi alle1` at EL1 is
/// undefined, or goes to a hypervisor that is not there. Nothing on the way to it would show that before it runs.
///
/// # Errors
/// Names the place.
pub(crate) fn check_tlbis(elf: &[u8]) -> Result<()> {
    let file: ElfFile64<'_> = ElfFile64::parse(elf)?;
    for segment in segments(elf)?.iter().filter(|segment| segment.flags.contains(PF_X)) {
        for offset in tlbis_of_el2(segment.bytes) {
            let address = segment.virtual_address + offset as u64;
            let place = place(&file, address);
            ensure!(code::is_at_el2(place), "{place} has a TLBI at {address:#x} that EL1 may not issue");
        }
    }
    Ok(())
}

/// The symbol at an address, or the last before it.
fn place<'a>(file: &ElfFile64<'a>, address: u64) -> &'a str {
    // Assembly gives its symbols no type; those with a dollar say where code and data alternate.
    let named = |name: &&str| !name.is_empty() && !name.starts_with('$');
    let before = file.symbols().filter(|symbol| symbol.address() <= address);
    let names = before.filter_map(|symbol| Some((symbol.address(), symbol.name().ok().filter(named)?)));
    names.max_by_key(|(address, _)| *address).map_or("?", |(_, name)| name)
}

/// Relocations that reach 1 MiB at most, and 32 KiB: conditional branches, those on a bit, ADR, and literals.
const SHORT_REFERENCES: [object::elf::RelocationType; 4] =
    [R_AARCH64_CONDBR19, R_AARCH64_TSTBR14, R_AARCH64_ADR_PREL_LO21, R_AARCH64_LD_PREL_LO19];

/// Refuses a program with a short reference that was left to the linker: from one section to another, or to a symbol that
/// is global. It would be in range or not by what lies between the two, and an image with more in it would not link.
///
/// # Errors
/// Names the place, or says that the linker left no relocations in the file.
pub(crate) fn check_short_references(elf: &[u8]) -> Result<()> {
    let file: ElfFile64<'_> = ElfFile64::parse(elf)?;
    let mut seen = false;
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        for (address, relocation) in section.relocations() {
            seen = true;
            let RelocationFlags::Elf { r_type } = relocation.flags() else { continue };
            ensure!(
                !SHORT_REFERENCES.contains(&r_type),
                "{} refers to another section or a global symbol at {address:#x}, and reaches no further than 1 MiB: branch \
                 over a B, or name a local label of its own section",
                place(&file, address)
            );
        }
    }
    ensure!(seen, "the linked file has no relocations: linker/build.rs asks for them");
    Ok(())
}

/// Offsets of TLBI instructions that belong to EL2 or EL3: SYS (Arm ARM C5.1.3) with CRn 8, or 9 for the nXS forms, and
/// op1 other than 0.
fn tlbis_of_el2(text: &[u8]) -> impl Iterator<Item = usize> {
    let words = text.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
    words.enumerate().filter_map(|(index, word)| {
        let is_sys = word & 0xfff8_0000 == 0xd508_0000;
        let (op1, crn) = (word >> 16 & 7, word >> 12 & 15);
        (is_sys && matches!(crn, 8 | 9) && op1 != 0).then_some(index * 4)
    })
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

/// The segments that are loaded, in the file's order.
///
/// # Errors
/// When this is no ELF file, or a segment is not in it.
pub(crate) fn segments(elf: &[u8]) -> Result<Vec<Segment<'_>>> {
    let header = FileHeader64::<LittleEndian>::parse(elf)?;
    let endian = header.endian()?;
    let mut segments = Vec::new();
    for segment in header.program_headers(endian, elf)? {
        if segment.p_type(endian) == PT_LOAD {
            segments.push(Segment {
                virtual_address: segment.p_vaddr(endian),
                physical_address: segment.p_paddr(endian),
                flags: segment.p_flags(endian),
                memory: segment.p_memsz(endian),
                bytes: segment.data(endian, elf).ok().context("a segment lies outside the file")?,
            });
        }
    }
    Ok(segments)
}

#[cfg(test)]
mod tests {
    use object::elf::{R_AARCH64_CALL26, R_AARCH64_JUMP26};
    use object::write::{Object, Relocation, StandardSection, Symbol, SymbolSection};
    use object::{Architecture, BinaryFormat, Endianness, SymbolFlags, SymbolKind, SymbolScope};

    use super::*;

    /// Two sections of text, of which the first refers to the second.
    fn referring(types: &[object::elf::RelocationType]) -> Vec<u8> {
        let mut file = Object::new(BinaryFormat::Elf, Architecture::Aarch64, Endianness::Little);
        let vectors = file.section_id(StandardSection::Text);
        let el0 = file.add_section(Vec::new(), b".text.el0".to_vec(), SectionKind::Text);
        let mut symbol = |name: &[u8], section| {
            file.add_symbol(Symbol {
                name: name.to_vec(),
                value: 0,
                size: 0,
                kind: SymbolKind::Text,
                scope: SymbolScope::Compilation,
                weak: false,
                section: SymbolSection::Section(section),
                flags: SymbolFlags::None,
            })
        };
        symbol(b"vectors", vectors);
        let symbol = symbol(b"el0_syscall", el0);
        file.append_section_data(vectors, &[0; 64], 4);
        file.append_section_data(el0, &[0; 64], 4);
        for (index, &r_type) in types.iter().enumerate() {
            let offset = index as u64 * 4;
            let flags = RelocationFlags::Elf { r_type };
            file.add_relocation(vectors, Relocation { offset, symbol, addend: 0, flags }).unwrap();
        }
        file.write().unwrap()
    }

    #[test]
    fn a_short_reference_to_a_section_is_refused() {
        check_short_references(&referring(&[R_AARCH64_CALL26, R_AARCH64_JUMP26])).unwrap();
        for short in SHORT_REFERENCES {
            let refused = check_short_references(&referring(&[R_AARCH64_CALL26, short])).unwrap_err().to_string();
            assert!(refused.contains(" at 0x4,"), "{refused}");
        }
        assert!(check_short_references(&referring(&[])).is_err(), "a file that shows nothing");
    }

    /// OpenDevicePartnership/patina #1794, Zircon: `tlbi alle1` issued at EL1.
    #[test]
    fn a_tlbi_that_el1_may_not_issue_is_found() {
        let words: [u32; 8] = [
            0xd508_831f, // tlbi vmalle1is
            0xd50c_879f, // tlbi alle1
            0xd508_82e0, // tlbi rvaale1is, x0
            0xd50c_83df, // tlbi vmalls12e1is
            0xd50e_871f, // tlbi alle3
            0xd50b_7b20, // dc cvau, x0
            0xd508_7100, // ic ialluis, but for the register
            0xd50c_979f, // tlbi alle1nxs
        ];
        let text: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(tlbis_of_el2(&text).collect::<Vec<_>>(), [4, 12, 16, 28]);
    }
}
