//! The firmware's services: each call of a function of its tables is here.
//!
//! UEFI specification 2.10: 4.3 (system table), 7 (boot services), 12.4 (text output), 13.4 and 13.5 (files).

#![allow(unsafe_code, reason = "calls the firmware by the functions of its tables")]

extern crate alloc;

use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::ffi::c_void;
use core::fmt::{self, Write};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use uefi_raw::protocol::device_path::DevicePathProtocol;
use uefi_raw::protocol::file_system::{FileAttribute, FileMode, FileProtocolV1, SimpleFileSystemProtocol};
use uefi_raw::protocol::media::LoadFile2Protocol;
use uefi_raw::protocol::rng::RngProtocol;
use uefi_raw::table::boot::{AllocateType, BootServices, MemoryDescriptor, MemoryType};
use uefi_raw::table::configuration::ConfigurationTable;
use uefi_raw::table::system::SystemTable;
use uefi_raw::{Boolean, Guid, Handle, Status};

/// The system table, while there are boot services; and the stub's handle.
static TABLE: AtomicPtr<SystemTable> = AtomicPtr::new(ptr::null_mut());
static IMAGE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Takes what the firmware calls the stub with.
pub(crate) fn begin(image: Handle, table: *mut SystemTable) {
    IMAGE.store(image, Ordering::Relaxed);
    TABLE.store(table, Ordering::Relaxed);
}

/// The stub's own handle.
pub(crate) fn image() -> Handle {
    IMAGE.load(Ordering::Relaxed)
}

/// The system table; `None` once boot services have ended.
fn table() -> Option<&'static SystemTable> {
    // SAFETY: the firmware's, which is there until boot services end, and then it is null here.
    unsafe { TABLE.load(Ordering::Relaxed).as_ref() }
}

/// Boot services.
///
/// # Errors
/// They have ended.
fn boot() -> Result<&'static BootServices, Status> {
    // SAFETY: as the table.
    table().and_then(|table| unsafe { table.boot_services.as_ref() }).ok_or(Status::UNSUPPORTED)
}

fn check(status: Status) -> Result<(), Status> {
    if status == Status::SUCCESS { Ok(()) } else { Err(status) }
}

/// The firmware's console.
pub(crate) struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let out = table().map(|table| table.stdout).filter(|out| !out.is_null()).ok_or(fmt::Error)?;
        for character in text.chars() {
            let mut units = [0u16; 4];
            if character == '\n' {
                units[0] = u16::from(b'\r');
                units[1] = u16::from(b'\n');
            } else {
                character.encode_utf16(&mut units);
            }
            // SAFETY: the firmware's protocol, and a string that ends in a zero.
            let _ = unsafe { ((*out).output_string)(out, units.as_ptr()) };
        }
        Ok(())
    }
}

/// Ends the stub, from anywhere in it.
pub(crate) fn exit(status: Status) {
    if let Ok(boot) = boot() {
        // SAFETY: the stub has no destructor that must run, and the firmware frees its memory.
        let _ = unsafe { (boot.exit)(image(), status, 0, ptr::null_mut()) };
    }
}

/// The protocol of a handle.
///
/// # Safety
/// `T` is the protocol of that GUID.
pub(crate) unsafe fn protocol<T>(handle: Handle, guid: &Guid) -> Result<NonNull<T>, Status> {
    let mut found = ptr::null_mut();
    // SAFETY: the pointers are of this function; a handle is checked by the firmware.
    check(unsafe { (boot()?.handle_protocol)(handle, guid, &mut found) })?;
    NonNull::new(found.cast()).ok_or(Status::NOT_FOUND)
}

/// Calls `f` with the configuration tables.
pub(crate) fn configuration() -> &'static [ConfigurationTable] {
    let Some(table) = table() else { return &[] };
    let (start, count) = (table.configuration_table, table.number_of_configuration_table_entries);
    // SAFETY: the firmware has so many there.
    if start.is_null() { &[] } else { unsafe { core::slice::from_raw_parts(start, count) } }
}

/// Fills `bytes` with random numbers.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), Status> {
    let mut found = ptr::null_mut();
    // SAFETY: the pointers are of this function.
    check(unsafe { (boot()?.locate_protocol)(&RngProtocol::GUID, ptr::null(), &mut found) })?;
    let rng: NonNull<RngProtocol> = NonNull::new(found.cast()).ok_or(Status::NOT_FOUND)?;
    // SAFETY: the protocol of that GUID; without an algorithm the firmware chooses.
    check(unsafe { (rng.as_ref().get_rng)(rng.as_ptr(), ptr::null(), bytes.len(), bytes.as_mut_ptr()) })
}

/// The file that the device path leads to, by `LoadFile2`; `None` where there is no such device.
///
/// # Safety
/// `path` is a device path, with its end.
pub(crate) unsafe fn load_file(path: &[u8]) -> Result<Option<Vec<u8>>, Status> {
    let mut rest: *const DevicePathProtocol = path.as_ptr().cast();
    let mut handle = ptr::null_mut();
    // SAFETY: the caller's, and pointers of this function.
    let found = unsafe { (boot()?.locate_device_path)(&LoadFile2Protocol::GUID, &mut rest, &mut handle) };
    if found != Status::SUCCESS {
        return Ok(None);
    }
    // SAFETY: the protocol of that GUID.
    let loader = unsafe { protocol::<LoadFile2Protocol>(handle, &LoadFile2Protocol::GUID) }?;
    let mut size = 0;
    let load = |size: &mut usize, buffer: *mut c_void| {
        // SAFETY: the protocol's own device path, and a buffer of that size.
        unsafe { (loader.as_ref().load_file)(loader.as_ptr(), rest, Boolean(0), size, buffer) }
    };
    let asked = load(&mut size, ptr::null_mut());
    if asked != Status::BUFFER_TOO_SMALL {
        check(asked)?;
    }
    let mut bytes = alloc::vec![0; size];
    check(load(&mut size, bytes.as_mut_ptr().cast()))?;
    bytes.truncate(size);
    Ok(Some(bytes))
}

/// A file's bytes, by its path of UTF-16 that ends in a zero; `None` where the volume of `device` has no such file, or the
/// device no volume.
pub(crate) fn read_file(device: Handle, path: &[u16]) -> Result<Option<Vec<u8>>, Status> {
    // SAFETY: the protocol of that GUID.
    let volume = unsafe { protocol::<SimpleFileSystemProtocol>(device, &SimpleFileSystemProtocol::GUID) };
    let Ok(volume) = volume else { return Ok(None) };
    let mut root = ptr::null_mut();
    // SAFETY: the firmware's protocol, and a pointer of this function.
    check(unsafe { (volume.as_ref().open_volume)(volume.as_ptr(), &mut root) })?;
    // SAFETY: the volume was just opened.
    let read = unsafe { read_from(root, path) };
    // SAFETY: as above, and nothing uses it any more.
    let _ = unsafe { ((*root).close)(root) };
    read
}

/// [`read_file`] of an open folder.
///
/// # Safety
/// The folder is open.
unsafe fn read_from(root: *mut FileProtocolV1, path: &[u16]) -> Result<Option<Vec<u8>>, Status> {
    let mut file = ptr::null_mut();
    // SAFETY: the caller's, and a pointer of this function.
    let opened = unsafe { ((*root).open)(root, &mut file, path.as_ptr(), FileMode::READ, FileAttribute::empty()) };
    if opened == Status::NOT_FOUND {
        return Ok(None);
    }
    check(opened)?;
    let mut bytes = Vec::new();
    // SAFETY: the file is open; the end of a file is at position 2^64 - 1 (13.5.13); the buffer has that size.
    let read = unsafe {
        let mut size = 0;
        check(((*file).set_position)(file, u64::MAX))
            .and_then(|()| check(((*file).get_position)(file, &mut size)))
            .and_then(|()| check(((*file).set_position)(file, 0)))
            .and_then(|()| {
                bytes.resize(size as usize, 0);
                let mut count = bytes.len();
                check(((*file).read)(file, &mut count, bytes.as_mut_ptr().cast()))?;
                bytes.truncate(count);
                Ok(())
            })
    };
    // SAFETY: as above, and nothing uses it any more.
    let _ = unsafe { ((*file).close)(file) };
    read.map(|()| Some(bytes))
}

/// Takes pages of 4096 bytes: at that address, or anywhere.
pub(crate) fn allocate_pages(place: Option<u64>, pages: usize) -> Result<*mut u8, Status> {
    let kind = if place.is_some() { AllocateType::ADDRESS } else { AllocateType::ANY_PAGES };
    let mut start = place.unwrap_or_default();
    // SAFETY: a pointer of this function.
    check(unsafe { (boot()?.allocate_pages)(kind, MemoryType::LOADER_DATA, pages, &mut start) })?;
    Ok(ptr::with_exposed_provenance_mut(start as usize))
}

/// A memory map, with the key by which boot services end.
pub(crate) struct Map {
    bytes: Vec<u64>,
    size: usize,
    stride: usize,
    key: usize,
}

impl Map {
    /// An empty one, with room for what the firmware has and some more.
    fn with_room() -> Result<Self, Status> {
        let mut map = Self { bytes: Vec::new(), size: 0, stride: 0, key: 0 };
        let asked = map.fill();
        if asked != Err(Status::BUFFER_TOO_SMALL) {
            asked?;
        }
        // Allocating, and the end of boot services, make more of it.
        map.bytes = alloc::vec![0; (map.size + 32 * map.stride).div_ceil(8)];
        Ok(map)
    }

    /// The map of now.
    pub(crate) fn new() -> Result<Self, Status> {
        let mut map = Self::with_room()?;
        map.fill()?;
        Ok(map)
    }

    fn fill(&mut self) -> Result<(), Status> {
        self.size = self.bytes.len() * 8;
        let (start, mut version) = (self.bytes.as_mut_ptr().cast(), 0);
        // SAFETY: the buffer has that size, and the other pointers are of this map.
        let got =
            unsafe { (boot()?.get_memory_map)(&mut self.size, start, &mut self.key, &mut self.stride, &mut version) };
        check(got)
    }

    /// The descriptors.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &MemoryDescriptor> + Clone {
        let count = self.size.checked_div(self.stride).unwrap_or_default();
        let start = self.bytes.as_ptr().cast::<u8>();
        // SAFETY: the firmware wrote so many there, each `stride` bytes long and aligned to 8.
        (0..count).map(move |index| unsafe { &*start.add(index * self.stride).cast() })
    }
}

/// Ends boot services: with a new map once more where it has changed meanwhile (7.4.6). Returns the last map, which is
/// never freed.
///
/// # Errors
/// They do not end. Only a reset helps then.
pub(crate) fn end(mut map: Map) -> Result<core::mem::ManuallyDrop<Map>, Status> {
    let boot = boot()?;
    let mut ended = Err(Status::ABORTED);
    for _ in 0..2 {
        map.fill()?;
        // SAFETY: the key is that of the last map. Nothing of the firmware's is used behind it.
        ended = check(unsafe { (boot.exit_boot_services)(image(), map.key) });
        if ended.is_ok() {
            TABLE.store(ptr::null_mut(), Ordering::Relaxed);
            break;
        }
    }
    ended.map(|()| core::mem::ManuallyDrop::new(map))
}

/// The firmware's pool: what is never freed stays the kernel's memory.
struct Pool;

#[global_allocator]
static POOL: Pool = Pool;

// SAFETY: the pool gives memory of that size to one caller, aligned to 8 bytes.
unsafe impl GlobalAlloc for Pool {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut start = ptr::null_mut();
        if let Ok(boot) = boot()
            && layout.align() <= 8
        {
            // SAFETY: a pointer of this function.
            let _ = unsafe { (boot.allocate_pool)(MemoryType::LOADER_DATA, layout.size(), &mut start) };
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, _: Layout) {
        if let Ok(boot) = boot() {
            // SAFETY: it is from the pool, by the caller.
            let _ = unsafe { (boot.free_pool)(start) };
        }
    }
}
