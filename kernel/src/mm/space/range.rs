//! Which addresses programs may map, and the ranges of pages that calls name.

use granule_arch::addr::{PAGE, VirtAddr};
use granule_pgtable::PageRange;

use super::error::SpaceError;
use crate::mm::frame::FEW;
use crate::mm::page_block::BLOCK_SIZE;

/// The first address that a program may map. Below it a null pointer with an offset always faults.
pub const USER_START: VirtAddr = VirtAddr(0x1_0000);
/// The end of the addresses that programs may map. The kernel uses the rest of the lower half: see
/// [`reserved`](super::reserved).
pub const USER_END: VirtAddr = RESERVED_START;

/// The first address that programs cannot map.
pub const RESERVED_START: VirtAddr = VirtAddr(RESERVED_END.0 - (2 << 20));
/// The end of the lower half.
pub const RESERVED_END: VirtAddr = VirtAddr(1 << 48);

/// Bytes that the kernel leaves free below a stack, so that an overflow faults (Linux's `stack_guard_gap`).
pub(super) const STACK_GUARD: u64 = 256 * PAGE;

/// The range from `start` to `end`, which are page aligned and differ.
#[inline(always)]
pub(super) fn pages(start: VirtAddr, end: VirtAddr) -> PageRange {
    PageRange::lower(start, end).expect("page aligned, in order, and in the lower half")
}

/// The pages of `bytes` bytes from `start` on, at least one, if they are in the space.
pub(super) fn user_range(start: VirtAddr, bytes: u64) -> Option<PageRange> {
    if start > USER_END || bytes > USER_END.0 {
        return None;
    }
    // Of two numbers that small the sum does not wrap.
    let end = VirtAddr(start.0 + bytes.next_multiple_of(PAGE));
    PageRange::lower(start, end).filter(|_| end <= USER_END)
}

/// The pages of `bytes` bytes from `start` on, cut at the end of the space, and whether nothing was cut; `None` where
/// there are no bytes. `wraps` is the error for a range that wraps.
#[inline]
pub(super) fn clamped_range(
    start: VirtAddr,
    bytes: u64,
    wraps: SpaceError,
) -> Result<Option<(PageRange, bool)>, SpaceError> {
    if !start.is_aligned(PAGE) {
        return Err(SpaceError::Invalid);
    }
    let end = bytes.checked_next_multiple_of(PAGE).and_then(|bytes| start.0.checked_add(bytes)).ok_or(wraps)?;
    if end == start.0 {
        return Ok(None);
    }
    if start >= USER_END {
        return Err(SpaceError::NoMemory);
    }
    Ok(Some((pages(start, VirtAddr(end).min(USER_END)), end <= USER_END.0)))
}

/// Whether the entries of `range` are in one table, and take a moment.
#[inline(always)]
pub(super) fn is_of_few(range: PageRange) -> bool {
    let table = |address: VirtAddr| address.0 / BLOCK_SIZE;
    range.pages() <= FEW && table(range.start()) == table(range.end() - 1)
}
