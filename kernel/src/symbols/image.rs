//! Where the image lies in memory, and the part of it that is code.

#![allow(unsafe_code, reason = "symbols of the linker")]

use core::ops::Range;

unsafe extern "C" {
    static __image_start: u8;
    static __image_end: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __symbols_start: u8;
    static __symbols_end: u8;
}

/// First address of the image, which is what offsets count from.
pub(super) fn image_start() -> u64 {
    (&raw const __image_start).addr() as u64
}

/// The code.
pub(super) fn text() -> Option<Range<u64>> {
    Some((&raw const __text_start).addr() as u64..(&raw const __text_end).addr() as u64)
}

/// The table as the build left it.
pub(super) fn filled() -> &'static [u8] {
    let start = &raw const __symbols_start;
    let size = (&raw const __symbols_end).addr() - start.addr();
    // SAFETY: the linker script gives these bytes to the table alone, among the constants: they are never written
    // while the kernel runs.
    unsafe { core::slice::from_raw_parts(start, size) }
}

/// `address` as an offset into the image: what a disassembly of the linked file is searched for.
pub(super) fn image_offset(address: u64) -> Option<u64> {
    let image = image_start()..(&raw const __image_end).addr() as u64;
    image.contains(&address).then(|| address - image.start)
}
