//! The Image as a PE/COFF application of UEFI: the kernel, then the EFI stub, behind headers of both kinds.
//!
//! The first 64 bytes are the header of an arm64 Image and that of a DOS program: `MZ` is an instruction of its first
//! word, and the word at offset 60 says where the PE headers are. A boot loader that knows the first takes the file as
//! before: the stub lies where the kernel has its zeroed data. Firmware that knows the second loads the sections and
//! calls the stub.
//!
//! Addresses relative to the file's start in memory are offsets in the file, so the stub finds the kernel in front of
//! it. Microsoft's PE Format; UEFI 2.1.1 (images), 2.3.6 (AArch64).

use anyhow::{Context, Result, ensure};
use object::elf::{PF_W, PF_X, R_AARCH64_RELATIVE};
use object::pe::{self, ImageDosHeader};
use object::read::elf::ElfFile64;
use object::write::pe::{NtHeaders, Writer};
use object::{Object, RelocationFlags, RelocationTarget};

use crate::image::segments;

/// Sections have pages of their own, in memory and in the file.
const PAGE: u32 = 4096;
/// Bytes of the Image's header. The rest of its page is room for the PE headers (`boot/src/entry.S`).
const IMAGE_HEADER: usize = 64;
/// Offset of the word of 64 bits that says how much memory the kernel needs.
const IMAGE_SIZE: usize = 16;
/// The stub's abilities (Linux, `LINUX_EFISTUB_MAJOR_VERSION`): 1 is an initrd by `LoadFile2`.
const STUB_VERSION: u16 = 1;
/// Tables of addresses in the optional header, up to that of relocations.
const DIRECTORIES: usize = pe::IMAGE_DIRECTORY_ENTRY_BASERELOC + 1;

/// One section of the stub.
struct Section {
    name: [u8; 8],
    characteristics: pe::SectionFlags,
    /// From the file's start.
    address: u32,
    memory: u32,
    bytes: Vec<u8>,
}

/// The application, of the kernel's Image and the stub as the linker wrote it.
///
/// # Errors
/// When one of them is not as the other expects, or the stub is larger than the kernel's zeroed data.
pub(crate) fn application(image: &[u8], stub: &[u8]) -> Result<Vec<u8>> {
    ensure!(image.len() > PAGE as usize, "the Image has {} bytes", image.len());
    let room = &image[IMAGE_HEADER..PAGE as usize];
    ensure!(room.iter().all(|byte| *byte == 0), "the Image has no room for PE headers behind its own");
    let base = u32::try_from(image.len())?.next_multiple_of(PAGE);
    let (sections, places) = load(stub, base)?;
    let linked: ElfFile64<'_> = ElfFile64::parse(stub)?;
    let entry = base + u32::try_from(linked.entry())?;
    let file = write(image, base, &sections, &places, entry)?;
    let needed = u64::from_le_bytes(*image[IMAGE_SIZE..].first_chunk().context("the Image has no header")?);
    let bytes = file.len() as u64;
    ensure!(bytes <= needed, "with the EFI stub the Image has {bytes} bytes, and the kernel in memory only {needed}");
    Ok(file)
}

/// The stub's sections, relocated to `base`, and where addresses are in them.
fn load(stub: &[u8], base: u32) -> Result<(Vec<Section>, Vec<u32>)> {
    let data = pe::IMAGE_SCN_CNT_INITIALIZED_DATA | pe::IMAGE_SCN_MEM_READ;
    let mut sections = Vec::new();
    for segment in segments(stub)? {
        let (name, characteristics) = if segment.flags.contains(PF_X) {
            (*b".text\0\0\0", pe::IMAGE_SCN_CNT_CODE | pe::IMAGE_SCN_MEM_READ | pe::IMAGE_SCN_MEM_EXECUTE)
        } else if segment.flags.contains(PF_W) {
            (*b".data\0\0\0", data | pe::IMAGE_SCN_MEM_WRITE)
        } else {
            (*b".rdata\0\0", data)
        };
        let address = base + u32::try_from(segment.virtual_address)?;
        let (memory, bytes) = (u32::try_from(segment.memory)?, segment.bytes.to_vec());
        sections.push(Section { name, characteristics, address, memory, bytes });
    }
    let file: ElfFile64<'_> = ElfFile64::parse(stub)?;
    let mut places = Vec::new();
    for (address, relocation) in file.dynamic_relocations().into_iter().flatten() {
        let flags = relocation.flags();
        let is_relative = matches!(flags, RelocationFlags::Elf { r_type } if r_type == R_AARCH64_RELATIVE)
            && relocation.target() == RelocationTarget::Absolute;
        ensure!(is_relative, "the stub has a relocation at {address:#x} that is not relative: {flags:?}");
        let place = base + u32::try_from(address)?;
        let section = sections
            .iter_mut()
            .find(|section| (section.address..).contains(&place) && place - section.address < section.memory);
        let section = section.with_context(|| format!("the stub has no section at {address:#x}"))?;
        let at = (place - section.address) as usize;
        let word = section.bytes.get_mut(at..at + 8).context("a relocation is outside of the stub's data")?;
        word.copy_from_slice(&(u64::from(base) + relocation.addend() as u64).to_le_bytes());
        places.push(place);
    }
    places.sort_unstable();
    Ok((sections, places))
}

/// Lays the file out, and writes it.
fn write(image: &[u8], base: u32, sections: &[Section], places: &[u32], entry: u32) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    let mut writer = Writer::new(true, PAGE, PAGE, &mut file);
    writer.reserve_dos_header();
    writer.reserve_nt_headers(DIRECTORIES);
    let count = sections.len() + 2;
    let headers = writer.reserved_len() as usize + count * size_of::<pe::ImageSectionHeader>();
    writer.reserve_section_headers(u16::try_from(count)?);
    ensure!(headers <= PAGE as usize, "{headers} bytes of headers, more than the Image has room for");
    // The kernel, but for its first page: that is the headers'.
    let kernel = pe::IMAGE_SCN_CNT_INITIALIZED_DATA | pe::IMAGE_SCN_MEM_READ;
    let mut ranges = vec![writer.reserve_section(*b".kernel\0", kernel, base - PAGE, base - PAGE)];
    for section in sections {
        let bytes = u32::try_from(section.bytes.len())?;
        let range = writer.reserve_section(section.name, section.characteristics, section.memory, bytes);
        ensure!(range.virtual_address == section.address, "the stub's sections are not one behind the other");
        ranges.push(range);
    }
    for place in places {
        writer.add_reloc(*place, pe::IMAGE_REL_BASED_DIR64);
    }
    writer.reserve_reloc_section();

    let (header, _) = object::pod::from_bytes::<ImageDosHeader>(image).ok().context("the Image has no header")?;
    let mut header = *header;
    header.e_lfanew.set(object::LittleEndian, writer.nt_headers_offset());
    writer.write_custom_dos_header(&header)?;
    writer.write_nt_headers(nt_headers(entry));
    writer.write_section_headers();
    let mut whole = image[PAGE as usize..].to_vec();
    whole.resize((base - PAGE) as usize, 0);
    let contents = core::iter::once(&whole).chain(sections.iter().map(|section| &section.bytes));
    for (range, bytes) in ranges.iter().zip(contents) {
        writer.write_section(range.file_offset, bytes);
    }
    writer.write_reloc_section();
    let is_whole = writer.len() == writer.reserved_len();
    ensure!(is_whole, "the headers say another size than the file has");
    Ok(file)
}

fn nt_headers(entry: u32) -> NtHeaders {
    NtHeaders {
        machine: pe::IMAGE_FILE_MACHINE_ARM64,
        time_date_stamp: 0,
        characteristics: pe::IMAGE_FILE_EXECUTABLE_IMAGE | pe::IMAGE_FILE_LARGE_ADDRESS_AWARE,
        major_linker_version: 0,
        minor_linker_version: 0,
        address_of_entry_point: entry,
        image_base: 0,
        major_operating_system_version: 0,
        minor_operating_system_version: 0,
        major_image_version: STUB_VERSION,
        minor_image_version: 0,
        major_subsystem_version: 0,
        minor_subsystem_version: 0,
        subsystem: pe::IMAGE_SUBSYSTEM_EFI_APPLICATION,
        dll_characteristics: pe::IMAGE_DLLCHARACTERISTICS_NX_COMPAT,
        size_of_stack_reserve: 0,
        size_of_stack_commit: 0,
        size_of_heap_reserve: 0,
        size_of_heap_commit: 0,
    }
}

#[cfg(test)]
mod tests {
    use object::read::pe::PeFile64;
    use object::{Architecture, LittleEndian as LE, ObjectSection as _, SectionFlags};

    use super::*;
    use granule_tools::root;

    fn built(name: &str) -> Vec<u8> {
        std::fs::read(root().join("build").join(name)).expect("`./x build` comes first")
    }

    #[test]
    fn the_kernels_image_is_an_application_of_uefi_and_an_image_still() {
        let image = built("granule.img");
        assert_eq!((&image[..2], &image[56..60]), (&b"MZ"[..], &b"ARM\x64"[..]));
        let file: PeFile64<'_> = PeFile64::parse(&image[..]).unwrap();
        assert_eq!(file.architecture(), Architecture::Aarch64);
        let header = file.nt_headers();
        let optional = &header.optional_header;
        assert_eq!(header.file_header.machine.get(LE), pe::IMAGE_FILE_MACHINE_ARM64);
        assert_eq!(optional.subsystem.get(LE), pe::IMAGE_SUBSYSTEM_EFI_APPLICATION);
        assert_eq!(optional.dll_characteristics.get(LE), pe::IMAGE_DLLCHARACTERISTICS_NX_COMPAT);
        assert_eq!((optional.size_of_headers.get(LE), optional.section_alignment.get(LE)), (PAGE, PAGE));
        let entry = u64::from(optional.address_of_entry_point.get(LE));
        let mut end = u64::from(PAGE);
        let mut names = Vec::new();
        for section in file.sections() {
            let SectionFlags::Coff { characteristics } = section.flags() else { panic!() };
            let is = |flag| characteristics.contains(flag);
            let (name, address) = (section.name().unwrap(), section.address());
            assert!(!(is(pe::IMAGE_SCN_MEM_WRITE) && is(pe::IMAGE_SCN_MEM_EXECUTE)), "{name}");
            assert_eq!(address, end, "{name} is behind the one before");
            end = (address + section.size()).next_multiple_of(u64::from(PAGE));
            if name != ".reloc" {
                assert_eq!(section.file_range().unwrap().0, address, "{name}");
            }
            let has_entry = (address..address + section.size()).contains(&entry);
            assert_eq!(has_entry, name == ".text", "{name}");
            assert_eq!(has_entry, is(pe::IMAGE_SCN_MEM_EXECUTE), "{name}");
            names.push(name.to_owned());
        }
        assert_eq!(names, [".kernel", ".text", ".rdata", ".data", ".reloc"]);
        assert_eq!(u64::from(optional.size_of_image.get(LE)), end);
        // In memory the kernel needs more than the file has: the stub takes nothing from it.
        let needed = u64::from_le_bytes(*image[IMAGE_SIZE..].first_chunk().unwrap());
        assert!(image.len() as u64 <= needed);
        // Images that UEFI does not start have no PE headers.
        assert_eq!(built("granule-tests.img")[60..64], [0; 4]);
    }

    #[test]
    fn each_relocation_is_of_a_word_that_holds_an_address_of_the_file() {
        let image = built("granule.img");
        let file: PeFile64<'_> = PeFile64::parse(&image[..]).unwrap();
        let size = u64::from(file.nt_headers().optional_header.size_of_image.get(LE));
        let mut blocks = file.data_directories().relocation_blocks(&image[..], &file.section_table()).unwrap().unwrap();
        let mut count = 0;
        while let Some(block) = blocks.next().unwrap() {
            for relocation in block {
                let (place, typ) = (relocation.virtual_address as usize, relocation.typ);
                if typ == pe::IMAGE_REL_BASED_ABSOLUTE {
                    continue;
                }
                assert_eq!(typ, pe::IMAGE_REL_BASED_DIR64);
                let address = u64::from_le_bytes(*image[place..].first_chunk().unwrap());
                let names = file
                    .sections()
                    .filter(|section| (section.address()..section.address() + section.size()).contains(&address));
                let names: Vec<_> = names.map(|section| section.name().unwrap().to_owned()).collect();
                assert!(
                    address < size && names != [".kernel"] && names != [".reloc"],
                    "{place:#x}: {address:#x} {names:?}"
                );
                count += 1;
            }
        }
        assert!(count > 0);
    }

    #[test]
    fn an_image_without_room_is_refused() {
        let stub = std::fs::read(root().join("build/granule.elf")).expect("`./x build` comes first");
        let refused = |image: &[u8]| application(image, &stub).unwrap_err().to_string();
        assert!(refused(&[0; 64]).contains("the Image has 64 bytes"));
        let mut image = vec![0; 3 * PAGE as usize];
        image[PAGE as usize - 1] = 1;
        assert!(refused(&image).contains("no room for PE headers"));
        // The kernel is linked too high for a stub.
        image[PAGE as usize - 1] = 0;
        assert!(application(&image, &stub).is_err());
    }
}
