//! Cache maintenance by virtual address (Arm ARM D7.5), and what makes new code executable (B2.7.4).
//!
//! CTR_EL0 has the length of a line and what can be left out. All operations here reach the point they name for every
//! CPU of the inner-shareable domain. On the host they are recorded.

#![allow(unsafe_code, reason = "cache maintenance by address")]

use arm_sysregs::el0::registers::CtrEl0;

use crate::addr::VirtAddr;
use crate::barrier;
pub use crate::machine::cache::invalidate_all_instructions;
use crate::machine::cache::{ctr, invalidate_tag_line, line_by, tag_words};

/// Calls `operation` for each line, of `line` bytes, a power of two, that has a byte in the `bytes` from `start` on.
fn for_each_line(start: VirtAddr, bytes: u64, line: u64, mut operation: impl FnMut(u64)) {
    if bytes == 0 {
        return;
    }
    let first = start.align_down(line).0;
    // Counted, not compared with an end: the range may end with the address space.
    let lines = ((start.0 + (bytes - 1) - first) >> line.trailing_zeros()) + 1;
    let mut address = first;
    for _ in 0..lines {
        operation(address);
        address = address.wrapping_add(line);
    }
}

/// The instruction for each line that has a byte in the range.
macro_rules! each_line {
    ($instruction:literal, $start:expr, $bytes:expr, $line:expr) => {
        for_each_line($start, $bytes, $line, |line| line_by!($instruction, line))
    };
}

/// Writes dirty lines of the range back to memory (point of coherency): what a device or a CPU with its caches off
/// reads is what was written here.
///
/// Complete when the function returns.
///
/// # Safety
/// The range is mapped with read permission at least.
pub unsafe fn clean_to_memory(start: VirtAddr, bytes: u64) {
    each_line!("dc cvac", start, bytes, CodeCaches::of_this_cpu().data_line);
    barrier::dsb_sy();
}

/// Writes dirty lines of the range back to memory and drops all of its lines: the next read comes from memory.
///
/// Complete when the function returns.
///
/// # Safety
/// The range is mapped with read permission at least.
pub unsafe fn clean_and_invalidate_to_memory(start: VirtAddr, bytes: u64) {
    each_line!("dc civac", start, bytes, CodeCaches::of_this_cpu().data_line);
    barrier::dsb_sy();
}

/// Drops the lines of the range without writing them back: the next read comes from memory. Around stores that
/// bypass the caches, such as those with the MMU off: before, so that no older line is written over them; after, so
/// that no line that speculation has fetched hides them. The contents of the dropped lines are lost.
///
/// Begins with a DSB: nothing else orders DC IVAC after stores to Device memory (Arm ARM D7.5.9). Complete when
/// the function returns.
///
/// # Safety
/// The range is mapped writable, or the MMU is off. No cache holds the only copy of a value in one of its lines,
/// also where the first and last line reach beyond the range.
pub unsafe fn invalidate_to_memory(start: VirtAddr, bytes: u64) {
    /// Lines of one turn of a loop.
    const AT_ONCE: u64 = 8;
    barrier::dsb_sy();
    let line = CodeCaches::of_this_cpu().data_line;
    // A page has 64 lines of the usual length.
    if start.is_aligned(AT_ONCE * line) && bytes.is_multiple_of(AT_ONCE * line) {
        let mut at = start.0;
        for _ in 0..bytes / line / AT_ONCE {
            (0..AT_ONCE).for_each(|_| {
                line_by!("dc ivac", at);
                at = at.wrapping_add(line);
            });
        }
    } else {
        each_line!("dc ivac", start, bytes, line);
    }
    barrier::dsb_sy();
}

/// DC IGVAC: drops the lines of allocation tags for the range, without writing them back: memory that held these tags may
/// be used for data then, and no tag is written over it later.
///
/// Complete when the function returns.
///
/// # Safety
/// The range is mapped writable as Normal-Tagged, and memory has tags (FEAT_MTE2). Nothing depends on its tags any more,
/// also where the first and last line reach beyond the range.
pub unsafe fn invalidate_tags_to_memory(start: VirtAddr, bytes: u64) {
    // SAFETY: each line is mapped, and its tags are not needed, by the caller's contract.
    for_each_line(start, bytes, tag_line(), |line| unsafe { invalidate_tag_line(line) });
    barrier::dsb_sy();
}

/// Bytes of data whose tags are in the shortest line (CTR_EL0.TminLine), at least those that have one tag.
fn tag_line() -> u64 {
    (4 << tag_words()).max(crate::mte::GRANULE)
}

/// DC CVAU: writes dirty lines of the range back to the point of unification, where instruction fetches look.
///
/// No barrier is issued. `line` is at most the shortest line of all CPUs, in bytes.
///
/// # Safety
/// The range is mapped with read permission at least.
pub unsafe fn clean_to_unification(start: VirtAddr, bytes: u64, line: u64) {
    each_line!("dc cvau", start, bytes, line);
}

/// IC IVAU: drops the range from the instruction caches of all CPUs. By the address that it is executed at: an
/// instruction cache may be indexed by virtual address, and another alias may miss it.
///
/// No barrier is issued. `line` is at most the shortest line of all CPUs, in bytes.
///
/// # Safety
/// The range is mapped with read permission at least.
pub unsafe fn invalidate_instructions(start: VirtAddr, bytes: u64, line: u64) {
    each_line!("ic ivau", start, bytes, line);
}

/// Properties of the caches that decide how fetches come to see new code: of one CPU as in its CTR_EL0, of several the
/// least of them, since one CPU's register describes its own caches alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CodeCaches {
    /// Bytes in the shortest data cache line.
    pub data_line: u64,
    /// Bytes in the shortest instruction cache line.
    pub instruction_line: u64,
    /// Fetches see stores without a clean.
    pub idc: bool,
    /// Fetches see them without an invalidation of instruction caches.
    pub dic: bool,
}

impl CodeCaches {
    /// This CPU's, where it is the only one that runs.
    pub fn of_this_cpu() -> Self {
        Self::of(ctr())
    }

    /// Decodes a value of CTR_EL0.
    pub fn of(ctr: u64) -> Self {
        let ctr = CtrEl0::from_bits_retain(ctr);
        Self {
            data_line: 4 << ctr.dminline(),
            instruction_line: 4 << ctr.iminline(),
            idc: ctr.contains(CtrEl0::IDC),
            dic: ctr.contains(CtrEl0::DIC),
        }
    }
}

/// Makes instructions that were stored in the range visible to instruction fetch on every CPU, where `caches` holds for
/// all that run.
///
/// Each CPU that may already have fetched from there still owes an ISB before it runs them; this one has issued it when
/// the function returns.
///
/// # Safety
/// The range is mapped with read permission at least. It need not be the address that the stores went through.
pub unsafe fn sync_code(start: VirtAddr, bytes: u64, caches: CodeCaches) {
    if !caches.idc {
        // SAFETY: mapped, by the caller's contract.
        unsafe { clean_to_unification(start, bytes, caches.data_line) };
    }
    // With IDC the stores themselves must be complete before the instruction caches are invalidated.
    barrier::dsb_ish();
    if !caches.dic {
        // SAFETY: mapped, by the caller's contract.
        unsafe { invalidate_instructions(start, bytes, caches.instruction_line) };
        barrier::dsb_ish();
    }
    barrier::isb();
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::{
        CodeCaches, clean_and_invalidate_to_memory, clean_to_memory, for_each_line, invalidate_to_memory, sync_code,
    };
    use crate::addr::VirtAddr;
    use crate::recorded;

    fn lines(start: u64, bytes: u64) -> Vec<u64> {
        let mut lines = Vec::new();
        for_each_line(VirtAddr(start), bytes, 64, |line| lines.push(line));
        lines
    }

    #[test]
    fn each_line_with_a_byte_in_the_range_once() {
        assert_eq!(lines(0x1000, 64), [0x1000]);
        assert_eq!(lines(0x1000, 65), [0x1000, 0x1040]);
        assert_eq!(lines(0x103f, 2), [0x1000, 0x1040]);
        assert_eq!(lines(0x1020, 0), []);
    }

    /// Stores of before must be in memory when the first line is dropped.
    #[test]
    fn an_invalidation_is_between_two_barriers() {
        // SAFETY: the host drops no line.
        let issued = recorded::record(|| unsafe { invalidate_to_memory(VirtAddr(0x1000), 64) });
        assert_eq!(issued, [&["dsb_sy"][..], &["dc ivac"; 16], &["dsb_sy"]].concat());
    }

    /// Every line, and complete at the end, for what no cache of the CPUs serves.
    #[test]
    fn what_goes_to_memory_goes_line_by_line_before_the_barrier() {
        // SAFETY: the host maintains no cache.
        let cleaned = recorded::record(|| unsafe { clean_to_memory(VirtAddr(0x1000), 64) });
        assert_eq!(cleaned, [&["dc cvac"; 16][..], &["dsb_sy"]].concat());
        // SAFETY: the same.
        let dropped = recorded::record(|| unsafe { clean_and_invalidate_to_memory(VirtAddr(0x1000), 64) });
        assert_eq!(dropped, [&["dc civac"; 16][..], &["dsb_sy"]].concat());
    }

    /// IminLine and DminLine are of different caches.
    #[test]
    fn the_fields_of_ctr_el0_are_not_taken_for_each_other() {
        let caches = |data_line, instruction_line, idc, dic| CodeCaches { data_line, instruction_line, idc, dic };
        assert_eq!(CodeCaches::of(0x8444_c004), caches(64, 64, false, false));
        assert_eq!(CodeCaches::of(0x9444_c003), caches(64, 32, true, false));
        assert_eq!(CodeCaches::of(0xa443_c005), caches(32, 128, false, true));
    }

    /// Each cache by its own line, and nothing that the caches make superfluous.
    #[test]
    fn new_code_is_cleaned_by_data_lines_and_invalidated_by_instruction_lines() {
        let issued = |idc, dic| {
            let caches = CodeCaches { data_line: 32, instruction_line: 128, idc, dic };
            // SAFETY: the host maintains no cache.
            recorded::record(|| unsafe { sync_code(VirtAddr(0x1000), 256, caches) })
        };
        let (clean, invalidate) = (["dc cvau"; 8], ["ic ivau"; 2]);
        let behind = [&["dsb_ish"][..], &invalidate, &["dsb_ish", "isb"]].concat();
        assert_eq!(issued(false, false), [&clean[..], &behind].concat());
        assert_eq!(issued(true, false), behind);
        assert_eq!(issued(false, true), [&clean[..], &["dsb_ish", "isb"]].concat());
        assert_eq!(issued(true, true), ["dsb_ish", "isb"]);
    }

    #[test]
    fn the_last_line_of_the_address_space_ends_it() {
        assert_eq!(lines(u64::MAX - 69, 70), [u64::MAX - 127, u64::MAX - 63]);
    }
}
