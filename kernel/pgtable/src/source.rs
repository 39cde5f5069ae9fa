//! Where tables come from.

use granule_arch::addr::PhysAddr;

/// A supply of frames for tables.
///
/// # Safety
/// A frame from [`take`](TableSource::take) is zeroed, aligned to its size (a page of the geometry), reachable through
/// [`crate::Mmu::table`], and its only user is the taker until it comes back through
/// [`give_back`](TableSource::give_back).
#[allow(unsafe_code, reason = "a contract for implementors; nothing unsafe is done here")]
pub unsafe trait TableSource {
    /// A zeroed frame; `None` where there is no more. Called before anything is changed, never after.
    fn take(&mut self) -> Option<PhysAddr>;

    /// Takes back a frame that was not needed, zeroed as it came. No table walk has ever reached it.
    fn give_back(&mut self, table: PhysAddr);
}
