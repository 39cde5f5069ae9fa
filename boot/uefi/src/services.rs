//! The firmware's services: each call of a function of its tables is here.
//!
//! UEFI specification 2.10: 4.3 (system table), 7 (boot services), 12.4 (text output), 13.4 and 13.5 (files).

#![allow(unsafe_code, reason = "calls the firmware by the functions of its tables")]

extern crate alloc;

use alloc::string::String;
use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::ffi::c_void;
use core::fmt::{self, Write};
use core::mem::ManuallyDrop;
use core::ops::Range;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, Ordering};

use granule_uefi::file;
use granule_uefi::memory::{self, PAGE};
use uefi_raw::protocol::device_path::DevicePathProtocol;
use uefi_raw::protocol::file_system::{FileAttribute, FileMode, FileProtocolV1, SimpleFileSystemProtocol};
use uefi_raw::protocol::media::LoadFile2Protocol;
use uefi_raw::protocol::rng::RngProtocol;
use uefi_raw::table::boot::{AllocateType, BootServices, MemoryDescriptor, MemoryType};
use uefi_raw::table::configuration::ConfigurationTable;
use uefi_raw::table::runtime::ResetType;
use uefi_raw::table::system::SystemTable;
use uefi_raw::{Boolean, Guid, Handle, Status};

use crate::handover;

/// The system table, until the stub begins to end boot services; and the stub's handle.
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

/// The system table; `None` once the stub has begun to end boot services.
fn table() -> Option<&'static SystemTable> {
    // SAFETY: the firmware's, which is there until boot services end, and it is null here before that.
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

/// Ends the stub, from anywhere in it. The firmware unloads the Image; pages and pool of the stub stay taken (7.4.5):
/// it is for a panic only.
pub(crate) fn exit(status: Status) {
    if let Ok(boot) = boot() {
        // SAFETY: no destructor of the stub's must run: they give memory back.
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

/// The configuration tables.
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

/// The file that the device path leads to, by `LoadFile2`, in pages below `end`; `None` where there is no such device.
///
/// # Safety
/// `path` is a device path, with its end.
pub(crate) unsafe fn load_file(path: &[u8], end: u64) -> Result<Option<Pages>, Status> {
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
    let mut pages = Pages::below(end, size)?;
    check(load(&mut size, pages.bytes_mut().as_mut_ptr().cast()))?;
    pages.shorten(size);
    Ok(Some(pages))
}

/// A file's bytes in pages below `end`, by its path of UTF-16 that ends in a zero; `None` where the volume of `device`
/// has no such file, or the device no volume.
pub(crate) fn read_file(device: Handle, path: &[u16], end: u64) -> Result<Option<Pages>, Status> {
    // SAFETY: the protocol of that GUID.
    let volume = unsafe { protocol::<SimpleFileSystemProtocol>(device, &SimpleFileSystemProtocol::GUID) };
    let Ok(volume) = volume else { return Ok(None) };
    let mut root = ptr::null_mut();
    // SAFETY: the firmware's protocol, and a pointer of this function.
    check(unsafe { (volume.as_ref().open_volume)(volume.as_ptr(), &mut root) })?;
    // SAFETY: the volume was just opened.
    let read = unsafe { read_from(root, path, end) };
    // SAFETY: as above, and nothing uses it any more.
    let _ = unsafe { ((*root).close)(root) };
    read
}

/// [`read_file`] of an open folder.
///
/// # Safety
/// The folder is open.
unsafe fn read_from(root: *mut FileProtocolV1, path: &[u16], end: u64) -> Result<Option<Pages>, Status> {
    let mut file = ptr::null_mut();
    // SAFETY: the caller's, and a pointer of this function.
    let opened = unsafe { ((*root).open)(root, &mut file, path.as_ptr(), FileMode::READ, FileAttribute::empty()) };
    if opened == Status::NOT_FOUND {
        return Ok(None);
    }
    check(opened)?;
    // SAFETY: the file was just opened.
    let contents = unsafe { contents_of(file, end) };
    // SAFETY: as above, and nothing uses it any more.
    let _ = unsafe { ((*file).close)(file) };
    contents.map(Some)
}

/// All bytes of an open file.
///
/// # Safety
/// The file is open.
unsafe fn contents_of(file: *mut FileProtocolV1, end: u64) -> Result<Pages, Status> {
    let mut size = 0;
    // SAFETY: the caller's, and a pointer of this function; the end of a file is at position 2^64 - 1 (13.5.13).
    unsafe {
        check(((*file).set_position)(file, u64::MAX))?;
        check(((*file).get_position)(file, &mut size))?;
        check(((*file).set_position)(file, 0))?;
    }
    let mut pages = Pages::below(end, usize::try_from(size).map_err(|_| Status::OUT_OF_RESOURCES)?)?;
    file::read_whole(pages.bytes_mut(), |piece| {
        let mut count = piece.len();
        // SAFETY: the caller's; the buffer has that size.
        check(unsafe { ((*file).read)(file, &mut count, piece.as_mut_ptr().cast()) })?;
        Ok(count)
    })?;
    Ok(pages)
}

/// A copy of the text, as far as the pool has room.
pub(crate) fn copy_of(text: &str) -> Result<String, Status> {
    let mut copy = String::new();
    copy.try_reserve_exact(text.len()).map_err(|_| Status::OUT_OF_RESOURCES)?;
    copy.push_str(text);
    Ok(copy)
}

/// Bytes on pages of 4096 bytes that are this value's alone. The firmware has them back when it is dropped, unless the
/// stub has begun to end boot services: then they are the kernel's.
pub(crate) struct Pages {
    start: NonNull<u8>,
    bytes: usize,
    count: usize,
}

impl Pages {
    /// Pages at that address.
    pub(crate) fn at(start: u64, bytes: usize) -> Result<Self, Status> {
        Self::new(AllocateType::ADDRESS, start, bytes)
    }

    /// Pages anywhere below `end`.
    pub(crate) fn below(end: u64, bytes: usize) -> Result<Self, Status> {
        Self::new(AllocateType::MAX_ADDRESS, end - 1, bytes)
    }

    fn new(kind: AllocateType, mut address: u64, bytes: usize) -> Result<Self, Status> {
        let count = bytes.div_ceil(PAGE as usize).max(1);
        // SAFETY: a pointer of this function.
        check(unsafe { (boot()?.allocate_pages)(kind, MemoryType::LOADER_DATA, count, &mut address) })?;
        let start = NonNull::new(ptr::with_exposed_provenance_mut(address as usize)).ok_or(Status::OUT_OF_RESOURCES)?;
        // SAFETY: as many bytes were just taken.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { start, bytes, count })
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: as many bytes are this value's, and have been written.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    /// The bytes, to be changed.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Leaves out what is after so many bytes.
    fn shorten(&mut self, bytes: usize) {
        self.bytes = self.bytes.min(bytes);
    }

    /// Where they are.
    pub(crate) fn addresses(&self) -> Range<u64> {
        let start = self.start.addr().get() as u64;
        start..start + self.bytes as u64
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let Ok(boot) = boot() {
            // SAFETY: they were taken by `new`, and nothing refers to them any more.
            let _ = unsafe { (boot.free_pages)(self.start.addr().get() as u64, self.count) };
        }
    }
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
        let asked = map.fill(boot()?);
        if asked != Err(Status::BUFFER_TOO_SMALL) {
            asked?;
        }
        // Allocating, and the end of boot services, make more of it. Not every firmware tells the stride by then.
        let words = (map.size + 32 * map.stride.max(48)).div_ceil(8);
        map.bytes.try_reserve_exact(words).map_err(|_| Status::OUT_OF_RESOURCES)?;
        map.bytes.resize(words, 0);
        Ok(map)
    }

    /// The map of now.
    pub(crate) fn new() -> Result<Self, Status> {
        let mut map = Self::with_room()?;
        map.fill(boot()?)?;
        Ok(map)
    }

    /// Gets the map of now.
    ///
    /// # Errors
    /// The firmware's; `INCOMPATIBLE_VERSION` where its descriptors are shorter than those of UEFI, or not aligned.
    fn fill(&mut self, boot: &BootServices) -> Result<(), Status> {
        self.size = self.bytes.len() * 8;
        let (start, mut version) = (self.bytes.as_mut_ptr().cast(), 0);
        // SAFETY: the buffer has that size, and the other pointers are of this map.
        let got =
            unsafe { (boot.get_memory_map)(&mut self.size, start, &mut self.key, &mut self.stride, &mut version) };
        check(got)?;
        if memory::is_stride(self.stride) { Ok(()) } else { Err(Status::INCOMPATIBLE_VERSION) }
    }

    /// The descriptors.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &MemoryDescriptor> + Clone {
        let count = self.size.checked_div(self.stride).unwrap_or_default();
        let start = self.bytes.as_ptr().cast::<u8>();
        // SAFETY: the firmware wrote so many there, each `stride` bytes long, which `fill` has checked.
        (0..count).map(move |index| unsafe { &*start.add(index * self.stride).cast() })
    }
}

/// Ends boot services: with a new map once more where it has changed since the first (7.4.6). Returns the last map, which is
/// never freed. From the first attempt on nothing is printed, taken or given back: a firmware may have ended a part of
/// its services. Where the second fails, the machine is reset.
///
/// # Errors
/// The firmware has no map. It has not begun to end its services.
pub(crate) fn end(mut map: Map) -> Result<ManuallyDrop<Map>, Status> {
    let (table, boot) = (table().ok_or(Status::UNSUPPORTED)?, boot()?);
    map.fill(boot)?;
    let mut map = ManuallyDrop::new(map);
    TABLE.store(ptr::null_mut(), Ordering::Relaxed);
    // SAFETY: the key is that of the last map. After a success nothing of boot services is used.
    let exit = |map: &Map| check(unsafe { (boot.exit_boot_services)(image(), map.key) });
    if let Err(status) = exit(&map).or_else(|_| map.fill(boot).and_then(|()| exit(&map))) {
        reset(table, status);
    }
    Ok(map)
}

/// Resets the machine (8.5.1).
fn reset(table: &SystemTable, status: Status) -> ! {
    // SAFETY: runtime services are there before and after the end of boot services.
    if let Some(runtime) = unsafe { table.runtime_services.as_ref() } {
        // SAFETY: without data.
        unsafe { (runtime.reset_system)(ResetType::COLD, status, 0, ptr::null()) }
    }
    handover::stop()
}

/// The firmware's pool: what is not freed when boot services end is the kernel's memory.
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
