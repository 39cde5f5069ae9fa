//! The firmware's part of a handover: arguments, files, tables, random bytes, memory.

#![allow(unsafe_code, reason = "reads what the firmware's tables point to")]

extern crate alloc;

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt::Write as _;
use core::panic::PanicInfo;
use core::ptr::NonNull;

use granule_uefi::memory::{self, END_OF_MEMORY, MAX_BANKS, PAGE};
use granule_uefi::options::{self, Arguments, CMDLINE, INITRD, OptionsError};
use granule_uefi::tree::{self, Chosen, Seeds, Source, Tree, TreeError};
use thiserror::Error;
use uefi_raw::protocol::loaded_image::LoadedImageProtocol;
use uefi_raw::table::system::SystemTable;
use uefi_raw::{Guid, Handle, Status, guid};

use crate::handover::{self, Handover, Image};
use crate::services::{self, Console, Map, Pages};

/// The configuration tables that are a device tree (EBBR 2.3) and ACPI's RSDP of version 2 and 1 (UEFI 4.6).
const DEVICE_TREE: Guid = guid!("b1b621d5-f19c-41a5-830b-d9152c69aae0");
const RSDP: [Guid; 2] = [guid!("8868e871-e4f1-11d3-bc22-0080c73c8881"), guid!("eb9d2d30-2d88-11d3-9a16-0090273fc14d")];
/// Names the one handle that has the initrd (Linux, `LINUX_EFI_INITRD_MEDIA_GUID`).
const INITRD_MEDIA: Guid = guid!("5568e427-68fc-4f3d-ac74-ca555231cc68");

/// Why the kernel is not entered.
#[derive(Debug, Error)]
enum StubError {
    #[error("{0}: {1:?}")]
    Firmware(&'static str, Status),
    #[error("cannot read {0}: {1:?}")]
    File(String, Status),
    #[error("{0} is no text in UTF-8")]
    Text(&'static str),
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("the firmware has neither a device tree nor ACPI's tables")]
    NoDescription,
    #[error("no {0} bytes of free memory at a multiple of 2 MiB")]
    NoPlace(u64),
    #[error("the stub is not behind an arm64 Image")]
    NoImage,
}

impl StubError {
    /// The status that the stub returns to the firmware.
    fn status(&self) -> Status {
        match self {
            Self::Firmware(_, status) | Self::File(_, status) => *status,
            Self::NoPlace(_) => Status::OUT_OF_RESOURCES,
            Self::NoDescription => Status::NOT_FOUND,
            Self::Tree(_) | Self::NoImage => Status::LOAD_ERROR,
            Self::Text(_) | Self::Options(_) => Status::INVALID_PARAMETER,
        }
    }
}

/// An error for a status of the firmware's; `what` names the call that failed.
fn failed(what: &'static str) -> impl FnOnce(Status) -> StubError {
    move |status| StubError::Firmware(what, status)
}

#[allow(unsafe_code, reason = "the name that the linker script has as the entry")]
#[unsafe(no_mangle)]
extern "efiapi" fn efi_main(image: Handle, table: *mut SystemTable) -> Status {
    services::begin(image, table);
    let entered = prepare().and_then(|handover| handover.enter().map_err(failed("boot services do not end")));
    let Err(error) = entered;
    let _ = writeln!(Console, "granule: {error}");
    error.status()
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let _ = writeln!(Console, "granule: the EFI stub panicked: {info}");
    services::exit(Status::ABORTED);
    handover::stop()
}

/// All that can fail, and the cheap of it first. An error gives all back that was taken.
fn prepare() -> Result<Handover, StubError> {
    let (image, options, device) = loaded_image()?;
    let (source, rsdp) = description()?;
    let text = boot_arguments(&options, device)?.or_else(|| source.bootargs());
    let arguments = Arguments::new(text.as_deref().unwrap_or_default())?;
    let end = source.cells().end();
    let random = random();
    let seed = random.map(|(_, seed)| seed).or_else(|| source.kaslr_seed());
    let seed = seed.filter(|_| !arguments.is_fixed);
    // Halves: the place in memory does not tell the virtual one, which the kernel chooses.
    let place = place(&image, end, seed.map(|seed| seed >> 32))?;
    let initrd = initrd(device, arguments.initrd.as_deref(), end)?;
    let chosen = Chosen {
        bootargs: text.is_some().then_some(arguments.kernel.as_str()),
        initrd: initrd.as_ref().map(Pages::addresses),
        seeds: random.map(|(seeds, _)| seeds),
        rsdp,
    };
    let Tree { blob, memory } = source.build(&chosen)?;
    let blob = into_pages(&blob, end)?;
    let map = Map::new().map_err(failed("no memory map"))?;
    let handover = Handover { image, place, blob, initrd, memory, map };
    report_left_out(&handover);
    Ok(handover)
}

/// Where the Image is, the load options, and the device that it is from.
fn loaded_image() -> Result<(Image, Vec<u8>, Handle), StubError> {
    // SAFETY: the protocol of that GUID.
    let loaded = unsafe { services::protocol::<LoadedImageProtocol>(services::image(), &LoadedImageProtocol::GUID) };
    let loaded = loaded.map_err(failed("no EFI_LOADED_IMAGE_PROTOCOL"))?;
    // SAFETY: the firmware's protocol stays until the stub ends.
    let loaded = unsafe { loaded.as_ref() };
    let options = NonNull::new(loaded.load_options.cast_mut().cast::<u8>()).map_or_else(Vec::new, |start| {
        // SAFETY: the firmware has that many bytes of options there.
        unsafe { core::slice::from_raw_parts(start.as_ptr(), loaded.load_options_size as usize) }.to_vec()
    });
    let base = NonNull::new(loaded.image_base.cast_mut().cast()).ok_or(StubError::NoImage)?;
    // SAFETY: the firmware loaded that many bytes there, and they stay until the stub ends.
    let image = unsafe { Image::behind(base, loaded.image_size) }.ok_or(StubError::NoImage)?;
    Ok((image, options, loaded.device_handle))
}

/// A file's bytes, below `end`; `None` where the device that the Image is from has no volume, or that no such file.
fn read(device: Handle, path: &str, end: u64) -> Result<Option<Pages>, StubError> {
    let name: Vec<u16> = path.encode_utf16().chain([0]).collect();
    services::read_file(device, &name, end).map_err(|status| StubError::File(path.to_string(), status))
}

/// The boot arguments: the load options, else the file, where there is one. Options that are no text may be a boot
/// manager's own data.
fn boot_arguments(options: &[u8], device: Handle) -> Result<Option<String>, StubError> {
    let text = options::decode(options).unwrap_or_else(|error| {
        let _ = writeln!(Console, "granule: {error}; {CMDLINE} is read");
        String::new()
    });
    if !text.is_empty() {
        return Ok(Some(text));
    }
    let Some(file) = read(device, CMDLINE, END_OF_MEMORY)? else { return Ok(None) };
    let text = core::str::from_utf8(file.bytes()).map_err(|_| StubError::Text(CMDLINE))?;
    services::copy_of(text).map(Some).map_err(|status| StubError::File(CMDLINE.to_string(), status))
}

/// The initrd, below `end`: the firmware's or boot manager's own, else the file. It stays where it was read to.
fn initrd(device: Handle, named: Option<&str>, end: u64) -> Result<Option<Pages>, StubError> {
    let mut path = Vec::from([4, 3, 20, 0]);
    path.extend(INITRD_MEDIA.to_bytes());
    path.extend([0x7f, 0xff, 4, 0]);
    // SAFETY: a vendor's media path of 20 bytes, and the end (UEFI 10.3.1, 10.3.5.3).
    let provided = unsafe { services::load_file(&path, end) }.map_err(failed("the firmware's initrd"))?;
    let found = match (provided, named) {
        (Some(initrd), _) => Some(initrd),
        (None, None) => read(device, INITRD, end)?,
        (None, Some(path)) => {
            let found = read(device, path, end)?;
            Some(found.ok_or_else(|| StubError::File(path.to_string(), Status::NOT_FOUND))?)
        }
    };
    Ok(found.filter(|initrd| !initrd.bytes().is_empty()))
}

/// Random bytes for the kernel, and others for the places; `None` where the firmware has none.
fn random() -> Option<(Seeds, u64)> {
    let mut bytes = [0; 48];
    services::random(&mut bytes).ok()?;
    let (rng, rest) = bytes.split_first_chunk()?;
    let [kaslr, places] = rest.as_chunks().0 else { return None };
    Some((Seeds { rng: *rng, kaslr: u64::from_le_bytes(*kaslr) }, u64::from_le_bytes(*places)))
}

/// The firmware's device tree; where it has none that can be used, an empty one, and the address of ACPI's RSDP.
fn description() -> Result<(Source, Option<u64>), StubError> {
    let find = |guid| services::configuration().iter().find(|table| table.vendor_guid == guid);
    let tree = find(DEVICE_TREE).and_then(|table| NonNull::new(table.vendor_table.cast()));
    // SAFETY: by its GUID a flattened tree is there, which stays until boot services end.
    let error = match tree.map(|tree| unsafe { device_tree(tree) }) {
        Some(Ok(source)) => return Ok((source, None)),
        Some(Err(error)) => Some(error),
        None => None,
    };
    let Some(rsdp) = RSDP.into_iter().find_map(find) else {
        return Err(error.map_or(StubError::NoDescription, StubError::Tree));
    };
    if let Some(error) = error {
        let _ = writeln!(Console, "granule: {error}; ACPI's tables are used");
    }
    Ok((Source::empty()?, Some(rsdp.vendor_table.addr() as u64)))
}

/// The tree at that address.
///
/// # Safety
/// A flattened tree is there, or at least its header, and it stays until boot services end.
unsafe fn device_tree(tree: NonNull<u8>) -> Result<Source, TreeError> {
    // SAFETY: the caller's; a header has 40 bytes.
    let size = tree::size(unsafe { tree.cast::<[u8; 8]>().read() })?;
    // SAFETY: the caller's, with as many bytes as its header says.
    Source::read(unsafe { core::slice::from_raw_parts(tree.as_ptr(), size) })
}

/// Takes memory for the kernel below `end`, all that it needs from its first byte on: the first place that the firmware
/// gives, of those that are free in its map.
fn place(image: &Image, end: u64, seed: Option<u64>) -> Result<Pages, StubError> {
    let size = image.memory().next_multiple_of(PAGE);
    let bytes = usize::try_from(size).map_err(|_| StubError::NoPlace(size))?;
    let map = Map::new().map_err(failed("no memory map"))?;
    let mut places = memory::places(map.entries(), size, end, seed);
    places.find_map(|start| Pages::at(start, bytes).ok()).ok_or(StubError::NoPlace(size))
}

/// A copy on pages of its own below `end`, which the kernel maps.
fn into_pages(blob: &[u8], end: u64) -> Result<Pages, StubError> {
    let mut pages = Pages::below(end, blob.len()).map_err(failed("no memory for the device tree"))?;
    pages.bytes_mut().copy_from_slice(blob);
    Ok(pages)
}

/// Prints how much memory the kernel does not get.
fn report_left_out(handover: &Handover) {
    let left_out = handover.memory.banks(handover.map.entries(), &handover.needed()).left_out;
    if left_out != 0 {
        let _ = writeln!(
            Console,
            "granule: {left_out} bytes of memory are left out: more than {MAX_BANKS} ranges, or too high"
        );
    }
}
