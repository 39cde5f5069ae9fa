//! The end of boot services, and the way into the kernel: with the MMU and the data cache off, the kernel clean to the
//! point of coherency, x0 the device tree (Linux, Documentation/arch/arm64/booting.rst).

#![allow(unsafe_code, reason = "copies the kernel, and turns the firmware's MMU off")]

use core::arch::{asm, naked_asm};
use core::convert::Infallible;
use core::ops::Range;
use core::ptr::NonNull;

use granule_uefi::tree::MemoryProperty;
use uefi_raw::Status;

use crate::services::{self, Map, Pages};

unsafe extern "C" {
    /// The stub's first byte: the kernel ends there.
    safe static __stub_start: u8;
}

/// The kernel as the firmware loaded it: the bytes in front of the stub, which begin with the header of an arm64 Image.
pub(crate) struct Image {
    start: NonNull<u8>,
    file: usize,
    memory: u64,
}

impl Image {
    /// The kernel in front of the stub, in what the firmware loaded; `None` where that is something else.
    ///
    /// # Safety
    /// `size` bytes at `start` are loaded, and stay so.
    pub(crate) unsafe fn behind(start: NonNull<u8>, size: u64) -> Option<Self> {
        let file = (&raw const __stub_start).addr().checked_sub(start.addr().get())?;
        if file < 64 || file as u64 > size {
            return None;
        }
        // SAFETY: the caller's; 64 bytes are there.
        let header = unsafe { start.cast::<[u8; 64]>().as_ref() };
        let memory = u64::from_le_bytes(*header[16..].first_chunk()?);
        (header[56..60] == *b"ARM\x64" && memory >= file as u64).then_some(Self { start, file, memory })
    }

    /// Bytes that must be free for it.
    pub(crate) fn memory(&self) -> u64 {
        self.memory
    }
}

/// The parts that are ready for the kernel.
pub(crate) struct Handover {
    /// The kernel as it was loaded.
    pub(crate) image: Image,
    /// Where it goes.
    pub(crate) place: Pages,
    /// The device tree.
    pub(crate) blob: Pages,
    /// The initrd.
    pub(crate) initrd: Option<Pages>,
    /// Where in the device tree memory goes.
    pub(crate) memory: MemoryProperty,
    /// A memory map, with room for the last one.
    pub(crate) map: Map,
}

impl Handover {
    /// The memory that the kernel must have: itself, the device tree, the initrd.
    pub(crate) fn needed(&self) -> [Range<u64>; 3] {
        let initrd = self.initrd.as_ref().map(Pages::addresses);
        [self.place.addresses(), self.blob.addresses(), initrd.unwrap_or_default()]
    }

    /// Ends boot services and enters the kernel. Nothing is allocated or freed from there on.
    ///
    /// # Errors
    /// The firmware has not begun to end boot services.
    pub(crate) fn enter(mut self) -> Result<Infallible, Status> {
        let needed = self.needed();
        let Image { start, file, .. } = self.image;
        // SAFETY: as many bytes are loaded there.
        let kernel = unsafe { core::slice::from_raw_parts(start.as_ptr(), file) };
        self.place.bytes_mut()[..file].copy_from_slice(kernel);
        let map = services::end(self.map)?;
        self.memory.write(self.blob.bytes_mut(), map.entries(), &needed);
        let (place, blob) = (self.place.bytes_mut().as_mut_ptr_range(), self.blob.bytes_mut().as_mut_ptr_range());
        clean(&place);
        clean(&blob);
        let (text, end) = (enter_with_mmu_off as *const u8, enter_with_mmu_off as *const u8);
        clean(&(text.cast_mut()..end.wrapping_add(256).cast_mut()));
        // SAFETY: boot services have ended; the kernel is at `place`, and it and the code of the way there are clean.
        unsafe { enter_with_mmu_off(blob.start, place.start) }
    }
}

/// Cleans and invalidates the lines of a range to the point of coherency (Arm ARM D7.5.9).
fn clean(range: &Range<*mut u8>) {
    let line: usize;
    // SAFETY: a read of CTR_EL0.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) line, options(nomem, nostack)) };
    let line = 4 << (line >> 16 & 0xf);
    let mut address = range.start.addr() & !(line - 1);
    while address < range.end.addr() {
        // SAFETY: it changes no value that memory has for a CPU.
        unsafe { asm!("dc civac, {}", in(reg) address, options(nostack)) };
        address += line;
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}

/// Turns the MMU and the caches off, and jumps to `kernel` with x0 = `tree`. It uses no memory but its own code, which
/// is where it was for the firmware: UEFI maps all memory one to one (2.3.6).
///
/// # Safety
/// Boot services have ended. The kernel and this code are clean to the point of coherency.
#[unsafe(naked)]
unsafe extern "C" fn enter_with_mmu_off(tree: *mut u8, kernel: *mut u8) -> ! {
    naked_asm!(
        "msr daifset, #0xf",
        "mov x4, #0x1005", // M, C, I
        "mrs x2, CurrentEL",
        "cmp x2, #(2 << 2)",
        "b.eq 1f",
        "mrs x3, sctlr_el1",
        "bic x3, x3, x4",
        "msr sctlr_el1, x3",
        "isb",
        "b 2f",
        "1: mrs x3, sctlr_el2",
        "bic x3, x3, x4",
        "msr sctlr_el2, x3",
        "isb",
        "2: ic iallu",
        "dsb nsh",
        "isb",
        "mov x4, x1",
        "mov x1, xzr",
        "mov x2, xzr",
        "mov x3, xzr",
        "br x4",
    )
}

/// Where the stub ends if it cannot return.
pub(crate) fn stop() -> ! {
    loop {
        // SAFETY: it waits.
        unsafe { asm!("wfe", options(nomem, nostack)) };
    }
}
