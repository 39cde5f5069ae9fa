//! TLB maintenance for user addresses: the CPUs, and what else translates through the space's tables.
//!
//! **Rule: each function here that takes a range of a space calls the notifiers of *that* space in the same place**,
//! between the TLBI and the DSB that completes it, so that both are under way at once. Both take a [`UserTlbToken`],
//! and the kernel's one is private to this file; so no change can reach the CPUs and miss the devices.
//!
//! | function | TLBI | notified | completed by |
//! |---|---|---|---|
//! | [`Tlb::invalidate`] | `(R)VALE1IS` or `(R)VAE1IS`; long ones `ASIDE1IS` | the range | DSB ISH |
//! | [`UserTlb::flush_freed`] | the same | the range, in both forms | DSB ISH |
//! | [`Tlb::issue`] | the same | the range | the caller's DSB ISH |
//! | [`TlbBatch::add`] | the same | the range, in both forms | DSB ISH of [`TlbBatch::flush`] |
//! | [`UserTlb::flush_replaced`] | `VALE1IS` | the leaf, in both forms | DSB ISH |
//! | [`UserTlb::flush_space`] | `ASIDE1IS` | everything | DSB ISH |
//! | [`UserTlb::access_widened`] | `VALE1`, on this CPU | the leaf | DSB NSH |
//! | [`UserTlb::fix_spurious`] | `VALE1`, on this CPU | none: nothing changed | DSB NSH |
//!
//! `(R)VAE1IS`, which takes every level, is for ranges that have lost tables.
//!
//! Entries belong to an ASID, which is read after the DSB that completes the change ([`super::super::asid`]). No ISB:
//! what EL1 has translated ahead of user memory is fetched anew on the way back to EL0, and its own accesses are those
//! that may fault.

mod batch;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::patched_branch;
use granule_arch::tlbi::{AddressOperand, Asid, Granule, Instruction, LevelHint, UserTlbToken};
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::metal::{AsidTlb, level_hint};
use granule_pgtable::{Granule4K, Invalidation, Mmu, Tlb};

pub use batch::TlbBatch;

use crate::mm::asid::AsidSlot;
use crate::mm::notifier::NotifierChain;
use crate::mm::page_block::BLOCK_SIZE;
use crate::platform::features::branch;

/// The one token of the kernel: only this file can invalidate by ASID, and call the notifiers' TLB functions.
// SAFETY: each function of this file that invalidates what a change of the tables made stale notifies the space's
// secondary TLBs between the TLBI and the DSB; `fix_spurious` and `repeat` follow no change.
#[allow(unsafe_code, reason = "makes the one token of the kernel")]
const TOKEN: UserTlbToken = unsafe { UserTlbToken::new() };

/// The addresses that one entry of a space translates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// The address in the CPU's invalidation.
    at: VirtAddr,
    start: VirtAddr,
    bytes: u64,
    level: Option<LevelHint>,
}

impl Leaf {
    /// The page at `start`.
    #[inline(always)]
    pub const fn page(start: VirtAddr) -> Self {
        Self { at: start, start, bytes: PAGE, level: LevelHint::new(LAST_LEVEL) }
    }

    /// The page at `page` of a contiguous group of `bytes` bytes from `start` on: a TLB may have the page, or the
    /// group.
    pub const fn page_of_group(page: VirtAddr, start: VirtAddr, bytes: u64) -> Self {
        Self { at: page, start, bytes, level: LevelHint::new(LAST_LEVEL) }
    }

    /// The block at `start`. An invalidation of any of its addresses takes all of it, whatever a TLB has made of it
    /// (Arm ARM D8.17.5.1).
    #[inline(always)]
    pub const fn block(start: VirtAddr) -> Self {
        Self { at: start, start, bytes: BLOCK_SIZE, level: LevelHint::new(LAST_LEVEL - 1) }
    }

    /// The first address.
    #[inline(always)]
    pub const fn start(self) -> VirtAddr {
        self.start
    }

    /// The address after it.
    #[inline(always)]
    pub const fn end(self) -> VirtAddr {
        VirtAddr(self.start.0 + self.bytes)
    }
}

/// The TLBs of all CPUs, and those of devices, for the addresses of one space.
#[derive(Clone, Copy)]
pub struct UserTlb<'a> {
    asid: &'a AsidSlot,
    notifiers: &'a NotifierChain,
}

impl<'a> UserTlb<'a> {
    /// Of the space that has this number and these notifiers.
    #[inline(always)]
    pub const fn new(asid: &'a AsidSlot, notifiers: &'a NotifierChain) -> Self {
        Self { asid, notifiers }
    }

    /// One leaf whose entry is not valid now, and will name another frame or be split; or was split in use. Also calls
    /// `invalidate_range`, as Linux once did.
    #[inline(always)]
    pub fn flush_replaced<M: Mmu<Geometry = Granule4K>>(&self, mmu: &M, leaf: Leaf) {
        mmu.dsb_ishst();
        mmu.tlbi(Instruction::Vale1is(self.operand(mmu, leaf)));
        self.notifiers.invalidate_replaced(TOKEN, leaf.start, leaf.end());
        complete(mmu);
    }

    /// [`Tlb::invalidate`] of pages whose frames, and perhaps tables, are free when this returns, or whose entries
    /// change again then. Also calls `invalidate_range`: the end of the change comes too late.
    #[inline(always)]
    pub fn flush_freed<M: Mmu<Geometry = Granule4K>>(&self, mmu: &M, what: &Invalidation) {
        mmu.dsb_ishst();
        AsidTlb(self.asid()).issue(mmu, what);
        self.notifiers.invalidate_replaced(TOKEN, what.range.start(), what.range.end());
        complete(mmu);
    }

    /// Everything, with all tables.
    #[inline]
    pub fn flush_space<M: Mmu<Geometry = Granule4K>>(&self, mmu: &M) {
        mmu.dsb_ishst();
        mmu.tlbi(Instruction::Aside1is(self.asid()));
        self.notifiers.invalidate_secondary_tlbs(TOKEN, VirtAddr(0), VirtAddr(u64::MAX));
        complete(mmu);
    }

    /// A leaf that lets more through than before: writable, or young. Other CPUs may fault on a stale entry and drop it
    /// ([`Self::fix_spurious`]); a device may have no such way, so it is notified.
    #[inline(always)]
    pub fn access_widened<M: Mmu<Geometry = Granule4K>>(&self, mmu: &M, leaf: Leaf) {
        mmu.dsb_ishst();
        mmu.tlbi(Instruction::Vale1(self.operand(mmu, leaf)));
        self.notifiers.invalidate_secondary_tlbs(TOKEN, leaf.start, leaf.end());
        mmu.dsb_nsh();
    }

    /// A fault that the entry does not explain: this CPU forgets what it had. Without that it may fault for ever.
    #[inline(always)]
    pub fn fix_spurious<M: Mmu<Geometry = Granule4K>>(&self, mmu: &M, leaf: Leaf) {
        // The change was another CPU's, and is as complete as the entry that was read under the lock.
        mmu.tlbi(Instruction::Vale1(self.operand(mmu, leaf)));
        mmu.dsb_nsh();
    }

    #[inline(always)]
    fn asid(&self) -> Asid {
        Asid::new(self.asid.number(), TOKEN)
    }

    #[inline(always)]
    fn operand<M: Mmu>(&self, mmu: &M, leaf: Leaf) -> AddressOperand {
        let hint = level_hint(mmu, leaf.level).map(|level| (Granule::Size4K, level));
        AddressOperand::with_asid(leaf.at, self.asid(), hint)
    }
}

impl<M: Mmu<Geometry = Granule4K>> Tlb<M> for UserTlb<'_> {
    #[inline(always)]
    fn invalidate(&self, mmu: &M, whats: impl Iterator<Item = Invalidation>) {
        mmu.dsb_ishst();
        for what in whats {
            self.issue(mmu, &what);
        }
        complete(mmu);
    }

    #[inline(always)]
    fn issue(&self, mmu: &M, what: &Invalidation) {
        AsidTlb(self.asid()).issue(mmu, what);
        self.notifiers.invalidate_secondary_tlbs(TOKEN, what.range.start(), what.range.end());
    }
}

/// Completes what was issued, on all CPUs.
#[inline(always)]
fn complete<M: Mmu>(mmu: &M) {
    mmu.dsb_ish();
    if patched_branch!(branch::REPEAT_TLBI) {
        repeat(mmu);
    }
}

/// The workaround of an erratum: one more TLBI, of anything.
#[cold]
fn repeat<M: Mmu>(mmu: &M) {
    mmu.tlbi(Instruction::Vale1is(AddressOperand::new(VirtAddr(0), None)));
    mmu.dsb_ish();
}

#[cfg(test)]
mod tests;
