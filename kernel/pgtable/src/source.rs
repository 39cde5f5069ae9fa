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

    /// Takes back a frame that was not needed, or is no table any more.
    ///
    /// # Safety
    /// 1. [`take`](Self::take) of this supply gave it, and it comes back once.
    /// 2. Nothing uses it, and no table walk reaches it.
    /// 3. It is zeroed, as it came, but for a supply that zeroes what it gives.
    unsafe fn give_back(&mut self, table: PhysAddr);
}
