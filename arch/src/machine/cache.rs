//! The instructions of cache maintenance, and CTR_EL0.

#![allow(unsafe_code, reason = "cache maintenance by address")]

use arm_sysregs::el0::accessors::read_ctr_el0;

/// The instruction for one line.
macro_rules! line_by {
    ($instruction:literal, $line:expr) => {
        // SAFETY: by the caller's contract the line is mapped. No value that a coherent observer sees changes, unless the
        // caller discards lines, which is what it then asked for; what is dropped is fetched again.
        unsafe {
            core::arch::asm!(concat!($instruction, ", {0}"), in(reg) $line, options(nostack, preserves_flags));
        }
    };
}
pub(crate) use line_by;

/// DC IGVAC for one line.
///
/// # Safety
/// The line is mapped writable as Normal-Tagged, memory has tags, and nothing depends on its tags any more.
#[inline(always)]
pub(crate) unsafe fn invalidate_tag_line(line: u64) {
    // SAFETY: the caller's contract.
    unsafe {
        core::arch::asm!(
            ".arch_extension memtag",
            "dc igvac, {0}",
            ".arch_extension nomemtag",
            in(reg) line,
            options(nostack, preserves_flags),
        );
    }
}

/// CTR_EL0.TminLine.
#[inline(always)]
pub(crate) fn tag_words() -> u8 {
    read_ctr_el0().tminline()
}

/// CTR_EL0.
#[inline(always)]
pub(crate) fn ctr() -> u64 {
    read_ctr_el0().bits()
}

/// IC IALLUIS: empties the instruction caches of all CPUs. No barrier is issued.
pub fn invalidate_all_instructions() {
    // SAFETY: what is dropped is fetched again.
    unsafe {
        core::arch::asm!("ic ialluis", options(nostack, preserves_flags));
    }
}
