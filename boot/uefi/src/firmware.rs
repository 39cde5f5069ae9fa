//! What the firmware has for the kernel: arguments, files, tables, random bytes, memory.

#![allow(unsafe_code, reason = "reads what the firmware's tables point to")]

extern crate alloc;

use alloc::boxed::Box;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::ops::Range;
use core::panic::PanicInfo;
use core::ptr::NonNull;

use granule_uefi::memory::{self, Banks, MAX_BANKS, PAGE};
use granule_uefi::options::{self, Arguments, CMDLINE, INITRD, OptionsError};
use granule_uefi::tree::{self, Chosen, Seeds, Tree, TreeError};
use thiserror::Error;
use uefi::boot::{self, AllocateType, SearchType};
use uefi::fs::{FileSystem, Path, PathBuf};
use uefi::mem::memory_map::{MemoryMap as _, MemoryType};
use uefi::proto::device_path::build::{DevicePathBuilder, media};
use uefi::proto::loaded_image::LoadedImage;
use uefi::proto::media::load_file::LoadFile2;
use uefi::proto::rng::Rng;
use uefi::table::cfg::ConfigTableEntry;
use uefi::{CString16, Guid, Handle, Identify as _, Status, entry, guid, println, system};

use crate::handover::{self, Handover, Image};

/// The configuration table that is a device tree (EBBR 2.3).
const DEVICE_TREE: Guid = guid!("b1b621d5-f19c-41a5-830b-d9152c69aae0");
/// Names the one handle that has the initrd (Linux, `LINUX_EFI_INITRD_MEDIA_GUID`).
const INITRD_MEDIA: Guid = guid!("5568e427-68fc-4f3d-ac74-ca555231cc68");

/// Why the kernel is not entered.
#[derive(Debug, Error)]
enum StubError {
    #[error("{0}: {1}")]
    Firmware(&'static str, Status),
    #[error("cannot read {0}: {1}")]
    File(String, uefi::fs::Error),
    #[error("{0} is no path")]
    Path(String),
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
    /// What the firmware gets.
    fn status(&self) -> Status {
        match self {
            Self::Firmware(_, status) => *status,
            Self::NoPlace(_) => Status::OUT_OF_RESOURCES,
            Self::File(..) | Self::NoDescription => Status::NOT_FOUND,
            Self::Tree(_) | Self::NoImage => Status::LOAD_ERROR,
            Self::Path(_) | Self::Text(_) | Self::Options(_) => Status::INVALID_PARAMETER,
        }
    }
}

/// What failed, for a result of the firmware's.
fn failed<D: core::fmt::Debug>(what: &'static str) -> impl FnOnce(uefi::Error<D>) -> StubError {
    move |error| StubError::Firmware(what, error.status())
}

#[entry]
fn main() -> Status {
    match prepare() {
        Ok(handover) => handover.enter(),
        Err(error) => {
            println!("granule: {error}");
            error.status()
        }
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if uefi::table::system_table_raw().is_some() && handover::has_boot_services() {
        println!("granule: the EFI stub panicked: {info}");
        // SAFETY: the stub has no destructor that must run, and the firmware frees its memory.
        unsafe { boot::exit(boot::image_handle(), Status::ABORTED, 0, core::ptr::null_mut()) }
    }
    handover::stop()
}

/// All that can fail.
fn prepare() -> Result<Handover, StubError> {
    let (image, options, device) = loaded_image()?;
    let text = options::decode(&options)?;
    let mut files = Files { device, volume: None };
    let text = if text.is_empty() { files.command_line()? } else { Some(text) };
    let arguments = Arguments::new(text.as_deref().unwrap_or_default())?;
    let initrd = initrd(&mut files, arguments.initrd.as_deref())?;
    let random = random();
    let (device_tree, rsdp) = tables();
    let rsdp = rsdp.filter(|_| device_tree.is_none());
    if device_tree.is_none() && rsdp.is_none() {
        return Err(StubError::NoDescription);
    }
    let initrd = initrd.map(|bytes| {
        let range = bytes.as_ptr_range();
        range.start.addr() as u64..range.end.addr() as u64
    });
    let chosen = Chosen {
        bootargs: text.is_some().then_some(arguments.kernel.as_str()),
        initrd: initrd.clone(),
        seeds: random.map(|(seeds, _)| seeds),
        rsdp,
    };
    let Tree { blob, memory } = tree::build(device_tree, &chosen)?;
    let seed = random.map(|(_, seed)| seed).or_else(|| tree::kaslr_seed(device_tree?));
    let seed = seed.filter(|_| !arguments.is_fixed);
    // Halves: the place in memory does not tell the virtual one.
    let place = place(&image, seed.map(|seed| seed >> 32))?;
    let slide = seed.map_or(0, |seed| memory::slide(image.memory(), seed & u64::from(u32::MAX)));
    let blob = into_pages(&blob)?;
    let span = |range: &Range<*mut u8>| range.start.addr() as u64..range.end.addr() as u64;
    let needed = [span(&place), span(&blob), initrd.unwrap_or_default()];
    report_left_out(&needed)?;
    Ok(Handover { image, place, slide, blob, memory, needed })
}

/// Where the Image is, the load options, and the device that it is from.
fn loaded_image() -> Result<(Image, Vec<u8>, Option<Handle>), StubError> {
    let loaded = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle());
    let loaded = loaded.map_err(failed("no EFI_LOADED_IMAGE_PROTOCOL"))?;
    let options = loaded.load_options_as_bytes().unwrap_or_default().to_vec();
    let (base, size) = loaded.info();
    let base = NonNull::new(base.cast_mut().cast()).ok_or(StubError::NoImage)?;
    // SAFETY: the firmware loaded that many bytes there, and they stay until the stub ends.
    let image = unsafe { Image::behind(base, size) }.ok_or(StubError::NoImage)?;
    Ok((image, options, loaded.device()))
}

/// The volume that the Image is from, opened once it is asked for.
struct Files {
    device: Option<Handle>,
    volume: Option<FileSystem>,
}

impl Files {
    /// A file's bytes; `None` where the device has no volume, or the volume no such file.
    fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>, StubError> {
        let name = CString16::try_from(path).map_err(|_| StubError::Path(path.to_string()))?;
        if self.volume.is_none() && self.device.is_some() {
            self.volume = boot::get_image_file_system(boot::image_handle()).ok().map(FileSystem::new);
        }
        let Some(volume) = &mut self.volume else { return Ok(None) };
        let path_buf = PathBuf::from(name);
        let error = |error| StubError::File(path.to_string(), error);
        let file: &Path = &path_buf;
        if !volume.try_exists(file).map_err(error)? {
            return Ok(None);
        }
        volume.read(file).map(Some).map_err(error)
    }

    /// The boot arguments of the file, where there is one.
    fn command_line(&mut self) -> Result<Option<String>, StubError> {
        let Some(bytes) = self.read(CMDLINE)? else { return Ok(None) };
        Ok(Some(String::from_utf8(bytes).map_err(|_| StubError::Text(CMDLINE))?))
    }
}

/// The initrd: the firmware's or boot manager's own, else the file. It stays where it was read to.
fn initrd(files: &mut Files, named: Option<&str>) -> Result<Option<&'static [u8]>, StubError> {
    if let Some(initrd) = provided_initrd()? {
        return Ok(Some(Box::leak(initrd)));
    }
    let found = files.read(named.unwrap_or(INITRD))?.map(|initrd| &*initrd.leak());
    match (found, named) {
        (None, Some(path)) => Err(StubError::File(path.to_string(), not_found(path))),
        _ => Ok(found.filter(|initrd| !initrd.is_empty())),
    }
}

fn not_found(path: &str) -> uefi::fs::Error {
    let path = CString16::try_from(path).map(PathBuf::from).unwrap_or_default();
    let (context, error) = (uefi::fs::IoErrorContext::OpenError, Status::NOT_FOUND.into());
    uefi::fs::Error::Io(uefi::fs::IoError { path, context, uefi_error: error })
}

/// What the device path of the initrd's GUID leads to.
fn provided_initrd() -> Result<Option<Box<[u8]>>, StubError> {
    let mut storage = Vec::new();
    let path = DevicePathBuilder::with_vec(&mut storage)
        .push(&media::Vendor { vendor_guid: INITRD_MEDIA, vendor_defined_data: &[] })
        .and_then(DevicePathBuilder::finalize);
    let Ok(mut path) = path else { return Ok(None) };
    let Ok(handle) = boot::locate_device_path::<LoadFile2>(&mut path) else { return Ok(None) };
    let file = boot::open_protocol_exclusive::<LoadFile2>(handle);
    let mut file = file.map_err(failed("the firmware's initrd"))?;
    file.load_file(path).map(Some).map_err(failed("the firmware's initrd"))
}

/// Random bytes for the kernel, and others for the places; `None` where the firmware has none.
fn random() -> Option<(Seeds, u64)> {
    let handle = *boot::locate_handle_buffer(SearchType::ByProtocol(&Rng::GUID)).ok()?.first()?;
    let mut bytes = [0; 48];
    boot::open_protocol_exclusive::<Rng>(handle).ok()?.get_rng(None, &mut bytes).ok()?;
    let (rng, rest) = bytes.split_first_chunk()?;
    let [kaslr, places] = rest.as_chunks().0 else { return None };
    Some((Seeds { rng: *rng, kaslr: u64::from_le_bytes(*kaslr) }, u64::from_le_bytes(*places)))
}

/// The firmware's device tree, and the address of ACPI's RSDP.
fn tables() -> (Option<&'static [u8]>, Option<u64>) {
    system::with_config_table(|tables| {
        let find = |guid| tables.iter().find(|table| table.guid == guid).map(|table| table.address);
        let tree = find(DEVICE_TREE).and_then(|address| NonNull::new(address.cast_mut().cast::<[u8; 8]>()));
        let tree = tree.and_then(|tree| {
            // SAFETY: by its GUID a flattened tree is there, whose header has 40 bytes.
            let [magic, size] = unsafe { tree.as_ref() }.as_chunks().0 else { return None };
            let size = u32::from_be_bytes(*size) as usize;
            let is_tree = u32::from_be_bytes(*magic) == 0xd00d_feed && size <= tree::LARGEST_TREE;
            // SAFETY: as above, with as many bytes as its header says.
            is_tree.then(|| unsafe { core::slice::from_raw_parts(tree.as_ptr().cast::<u8>(), size) })
        });
        let rsdp = find(ConfigTableEntry::ACPI2_GUID).or_else(|| find(ConfigTableEntry::ACPI_GUID));
        (tree, rsdp.map(|address| address.addr() as u64))
    })
}

/// Takes memory for the kernel, all that it needs from its first byte on.
fn place(image: &Image, seed: Option<u64>) -> Result<Range<*mut u8>, StubError> {
    let size = image.memory().next_multiple_of(PAGE);
    let map = boot::memory_map(MemoryType::LOADER_DATA).map_err(failed("no memory map"))?;
    let start = memory::place(map.entries(), size, seed).ok_or(StubError::NoPlace(size))?;
    let pages = usize::try_from(size / PAGE).unwrap_or(usize::MAX);
    let taken = boot::allocate_pages(AllocateType::Address(start), MemoryType::LOADER_DATA, pages);
    let start = taken.map_err(failed("no memory for the kernel"))?.as_ptr();
    Ok(start..start.wrapping_add(pages * PAGE as usize))
}

/// A copy on pages of its own, which the kernel maps.
fn into_pages(blob: &[u8]) -> Result<Range<*mut u8>, StubError> {
    let pages = blob.len().div_ceil(PAGE as usize);
    let taken = boot::allocate_pages(AllocateType::AnyPages, MemoryType::LOADER_DATA, pages);
    let start = taken.map_err(failed("no memory for the device tree"))?.as_ptr();
    // SAFETY: as many bytes were just taken, for this alone.
    unsafe { start.copy_from_nonoverlapping(blob.as_ptr(), blob.len()) };
    Ok(start..start.wrapping_add(blob.len()))
}

/// Prints how much memory the kernel does not get, where there are too many ranges of it.
fn report_left_out(needed: &[Range<u64>]) -> Result<(), StubError> {
    let map = boot::memory_map(MemoryType::LOADER_DATA).map_err(failed("no memory map"))?;
    let left_out = Banks::new(map.entries(), needed).left_out;
    if left_out != 0 {
        println!("granule: {left_out} bytes of memory are left out: more than {MAX_BANKS} ranges");
    }
    Ok(())
}
