//! The machine as the algorithms see it: one CPU's way to touch tables, and what to invalidate after a change.
//!
//! The traits are the seam between the one source of the algorithms and the machines that they run on: the metal (a
//! zero-sized `Mmu` whose methods are single instructions), the plain host (`crate::host`), the models.

use core::marker::PhantomData;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_arch::tlbi::Instruction;

use crate::flush::Invalidation;
use crate::geometry::{Geometry, Granule4K};

/// The address of a table of geometry `G`, with its level.
///
/// Having one proves that it is a table: the walker made it from a live table descriptor, [`crate::TableSource`] handed
/// the frame over, or a caller vouched for a root with [`Table::root`]. So [`Mmu::table`] can be safe to call.
/// The geometry is part of the type: with another one what is a page's address here is a table's there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Table<G: Geometry = Granule4K> {
    address: PhysAddr,
    level: u8,
    geometry: PhantomData<fn() -> G>,
}

impl<G: Geometry> Table<G> {
    /// Vouches that the root table of a tree is at `address`.
    ///
    /// # Safety
    /// `address` holds a table of `G::FIRST_LEVEL` (all zero at first), used for nothing else, reachable through
    /// [`Mmu::table`], for as long as a [`crate::PageTables`] with it exists. Entries are written by this crate only,
    /// or by code that keeps its rules (the boot code before, under the same geometry).
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub const unsafe fn root(address: PhysAddr) -> Self {
        Self::new(address, G::FIRST_LEVEL)
    }

    /// Vouches for a last-level table that is linked later, or never.
    ///
    /// # Safety
    /// `address` is a frame for tables, reachable through [`Mmu::table`], that nothing else uses while the value exists. It
    /// is linked when its entries are whole, by a table descriptor in a tree of the same geometry.
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub const unsafe fn spare(address: PhysAddr) -> Self {
        Self::new(address, crate::geometry::LAST_LEVEL)
    }

    pub(crate) const fn new(address: PhysAddr, level: u8) -> Self {
        Self { address, level, geometry: PhantomData }
    }

    /// Where it is.
    #[inline(always)]
    pub const fn address(self) -> PhysAddr {
        self.address
    }

    /// Its level: 3 is the last.
    #[inline(always)]
    pub const fn level(self) -> u8 {
        self.level
    }
}

/// One CPU's way to touch tables. `&self` *is this CPU*: zero-sized and inlined away on the metal.
///
/// # Safety
/// The implementor promises, and the algorithms rely on it:
/// 1. `table(t)` gives the `G::entries(t.level())` cells of the table at `t.address()`, and the same memory for the
///    same address each time. Cells are shared with other CPUs and with table walks: the type allows that (an atomic).
/// 2. `load` and `write` are single-copy atomic for the whole descriptor; a later access through the address that
///    `load` returned is ordered after it (an address dependency on the metal; acquire where the machine has C11
///    order).
/// 3. The barriers are what their names say, and neither compiler nor machine moves cell accesses across them
///    otherwise.
/// 4. `survey`, `flip_run`, `write_run`, `filled` and `remake_run`, where overridden, have the effect of the
///    defaults, cell by cell in any order.
#[allow(unsafe_code, reason = "a contract for implementors; nothing unsafe is done here")]
pub unsafe trait Mmu {
    /// The shape of its tables.
    type Geometry: Geometry;
    /// One live entry of a table.
    type Cell;

    /// The cells of `table`.
    fn table(&self, table: Table<Self::Geometry>) -> &[Self::Cell];

    /// Reads an entry, once.
    fn load(&self, cell: &Self::Cell) -> Descriptor;

    /// [`Stores::store`].
    ///
    /// # Safety
    /// Of all methods that store:
    /// 1. The caller may change the entries: it owns the range that they translate, or has its lock.
    /// 2. The stored entry maps only memory that may be accessed so by the tree, and links each table of the tree once.
    /// 3. Translations that the old entries gave are invalidated before what they gave is used otherwise.
    /// 4. A leaf that EL1 may execute from then on is in a tree that translates this CPU's own accesses: the caches are
    ///    maintained by its address ([`Self::clean_code`]).
    unsafe fn write(&self, cell: &Self::Cell, descriptor: Descriptor);

    /// [`Stores::compare_exchange`].
    ///
    /// # Safety
    /// As [`Self::write`].
    ///
    /// # Errors
    /// The entry found, where it was not `current`; it is left alone.
    unsafe fn exchange(&self, cell: &Self::Cell, current: Descriptor, new: Descriptor) -> Result<(), Descriptor>;

    /// [`Stores::clear_bits`].
    ///
    /// # Safety
    /// As [`Self::write`].
    unsafe fn clear(&self, cell: &Self::Cell, mask: u64) -> Descriptor;

    /// [`Stores::update_run`]. The metal writes pairs.
    ///
    /// # Safety
    /// As [`Self::write`].
    #[inline]
    unsafe fn flip_run(&self, run: &[Self::Cell], flip: u64) {
        for cell in run {
            // SAFETY: the caller's contract.
            unsafe { self.write(cell, Descriptor(self.load(cell).0 ^ flip)) };
        }
    }

    /// [`Stores::fill`]. The metal writes pairs.
    ///
    /// # Safety
    /// As [`Self::write`].
    #[inline]
    unsafe fn write_run(&self, run: &[Self::Cell], first: Descriptor, step: u64) {
        for (index, cell) in run.iter().enumerate() {
            // SAFETY: the caller's contract.
            unsafe { self.write(cell, Descriptor(first.0 + index as u64 * step)) };
        }
    }

    /// [`Stores::break_before_make`].
    ///
    /// # Safety
    /// As [`Self::write`].
    #[inline]
    unsafe fn remake_run(&self, run: &[Self::Cell], first: Descriptor, step: u64) {
        // SAFETY: the caller's contract.
        unsafe { self.write_run(run, Descriptor::EMPTY, 0) };
        self.dsb_ishst();
        // Everything: of what size the leaves are that TLBs hold is not known, nor is a walk cache named by one address.
        self.tlbi(Instruction::Vmalle1is);
        self.complete_tlbi();
        // SAFETY: the caller's contract.
        unsafe { self.write_run(run, first, step) };
        self.dsb_ishst();
        self.isb();
    }

    /// The bits that all entries of `run` have, and those that any has. The check before a change in bulk; the metal
    /// reads pairs.
    #[inline]
    fn survey(&self, run: &[Self::Cell]) -> Survey {
        run.iter().fold(Survey::NOTHING, |survey, cell| survey.with(self.load(cell)))
    }

    /// How many entries at the start of `run` are as [`Stores::fill`] with `first` and `step` stores them. With a page as
    /// `step`: pages whose frames follow one another and that are alike in all else. The metal reads pairs.
    #[inline]
    fn filled(&self, run: &[Self::Cell], first: Descriptor, step: u64) -> usize {
        let is_filled = |&(index, cell): &(usize, _)| self.load(cell).0 == first.0.wrapping_add(index as u64 * step);
        run.iter().enumerate().take_while(is_filled).count()
    }

    /// Issues a TLB invalidation, without a barrier before or after. The operand is the hardware's, so that a model
    /// decodes what the hardware would.
    fn tlbi(&self, instruction: Instruction);

    /// DMB ISHST: earlier stores are seen before later ones.
    fn dmb_ishst(&self);
    /// DSB ISHST: earlier stores are complete, and seen by table walks, before anything later.
    fn dsb_ishst(&self);
    /// DSB ISH: earlier accesses and the TLB maintenance of this CPU are complete.
    fn dsb_ish(&self);
    /// DSB NSH: earlier accesses and the TLB maintenance of this CPU *for itself* are complete.
    #[inline(always)]
    fn dsb_nsh(&self) {
        self.dsb_ish();
    }
    /// ISB: what follows is fetched and translated anew.
    fn isb(&self);

    /// Completes the TLB maintenance of this CPU for all CPUs: DSB ISH, and what the errata of the machine's CPUs ask
    /// for after it (one more TLBI of anything, with a DSB ISH of its own).
    #[inline(always)]
    fn complete_tlbi(&self) {
        self.dsb_ish();
    }

    /// DC CVAU over code that is about to become executable: what was stored reaches the point where fetches look.
    ///
    /// # Safety
    /// Of both methods that name addresses, which fault where these are not mapped (Arm ARM C5.3, DC CVAU and IC IVAU):
    /// 1. Every page of the range has a valid leaf in the tables that translate this CPU's own accesses, and a completed
    ///    store made it valid.
    /// 2. It stays valid until the call returns: the caller owns the range, has its lock, or holds the frames.
    #[inline]
    unsafe fn clean_code(&self, _start: VirtAddr, _bytes: u64) {}
    /// IC IVAU over it, for all CPUs: what was fetched before is dropped.
    ///
    /// # Safety
    /// As [`Self::clean_code`].
    #[inline]
    unsafe fn invalidate_code(&self, _start: VirtAddr, _bytes: u64) {}
    /// IC IALLUIS: the same for every address, mapped or not.
    #[inline]
    fn invalidate_all_code(&self) {}

    /// Whether every CPU has a feature. On machines that fetch nothing from what they map caches are always coherent.
    #[inline(always)]
    fn has(&self, feature: Feature) -> bool {
        matches!(feature, Feature::Idc | Feature::Dic)
    }
}

/// A machine of code that may change tables: its storing methods are safe, and so are those of [`crate::PageTables`] that
/// change a tree. With another [`Mmu`] a tree is only looked at.
///
/// # Safety
/// 1. Code that can have a reference to such a machine, and to a cell or a tree, keeps the contract of [`Mmu::write`],
///    whether it stores itself or has one of the methods store that change a tree.
/// 2. Other code can make no value of it.
#[allow(unsafe_code, reason = "the storing half of `Mmu`, by the implementor's contract")]
pub unsafe trait Stores: Mmu {
    /// Writes an entry, once, with no order of its own.
    #[inline(always)]
    fn store(&self, cell: &Self::Cell, descriptor: Descriptor) {
        // SAFETY: the contract of the trait.
        unsafe { self.write(cell, descriptor) }
    }

    /// Replaces `current` by `new` in one atomic step.
    ///
    /// # Errors
    /// The entry found, where it was not `current`; it is left alone.
    #[inline(always)]
    fn compare_exchange(&self, cell: &Self::Cell, current: Descriptor, new: Descriptor) -> Result<(), Descriptor> {
        // SAFETY: the contract of the trait.
        unsafe { self.exchange(cell, current, new) }
    }

    /// Clears `mask` in one atomic step and returns the entry as it was. For entries that another CPU may be
    /// changing.
    #[inline(always)]
    fn clear_bits(&self, cell: &Self::Cell, mask: u64) -> Descriptor {
        // SAFETY: the contract of the trait.
        unsafe { self.clear(cell, mask) }
    }

    /// Flips the bits of `flip` in every entry of `run` by plain loads and stores: the caller owns them.
    #[inline(always)]
    fn update_run(&self, run: &[Self::Cell], flip: u64) {
        // SAFETY: the contract of the trait.
        unsafe { self.flip_run(run, flip) }
    }

    /// Stores `first` to the first entry of `run`, which the caller owns, and to each further one what is `step`
    /// more, each whole and in no order.
    #[inline(always)]
    fn fill(&self, run: &[Self::Cell], first: Descriptor, step: u64) {
        // SAFETY: the contract of the trait.
        unsafe { self.write_run(run, first, step) }
    }

    /// Replaces the entries of `run` as [`Self::fill`] does, break-before-make (Arm ARM D8.17.1): all are empty,
    /// and no TLB has anything of them, before the first is filled. On return walks find the new ones.
    ///
    /// For a CPU that is alone with the tree: no other one runs code that is translated by it, and none is
    /// inside a walk. The memory that this CPU itself uses between the two steps (stack, code, tables) may be
    /// mapped by the very entries, so the metal has no access to memory there but to the entries, by another
    /// mapping of them ([`crate::metal::Platform::second_mapping`]).
    #[inline(always)]
    fn break_before_make(&self, run: &[Self::Cell], first: Descriptor, step: u64) {
        // SAFETY: the contract of the trait.
        unsafe { self.remake_run(run, first, step) }
    }
}

/// Features that save a machine instructions where all CPUs have them, by their ID registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Feature {
    /// CTR_EL0.IDC: fetches see what was stored without [`Mmu::clean_code`].
    Idc,
    /// CTR_EL0.DIC: fetches see it without [`Mmu::invalidate_code`].
    Dic,
    /// FEAT_TLBIRANGE: TLBI by range.
    TlbRange,
    /// FEAT_TTL: a TLBI may carry the leaf's level.
    Ttl,
    /// FEAT_ETS2: an entry that became valid is seen by later accesses without any barrier.
    Ets2,
}

/// Some entries, summed up in two words that say whether a bit is the same in all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Survey {
    /// The bits that every one has set.
    pub all: u64,
    /// The bits that at least one has set.
    pub any: u64,
}

impl Survey {
    /// Of no entries.
    pub const NOTHING: Self = Self { all: u64::MAX, any: 0 };

    /// With one entry more.
    #[inline(always)]
    #[must_use]
    pub const fn with(self, entry: Descriptor) -> Self {
        Self { all: self.all & entry.0, any: self.any | entry.0 }
    }

    /// Of the entries of both.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { all: self.all & other.all, any: self.any | other.any }
    }

    /// The bits of `mask` that all entries have alike, as they have them; `None` where two differ in one of these.
    #[inline(always)]
    pub const fn common(self, mask: u64) -> Option<u64> {
        if (self.all ^ self.any) & mask == 0 { Some(self.all & mask) } else { None }
    }
}

/// The receivers of a change: the TLBs of the CPUs for kernel addresses; those and the notifiers of a user
/// space; the command queue of an SMMU for a DMA domain.
pub trait Tlb<M: Mmu> {
    /// Issues the invalidations for `what`, without any barrier before or after: [`Tlb::invalidate`] has them.
    fn issue(&self, mmu: &M, what: &Invalidation<M::Geometry>);

    /// Invalidates each of `whats`; on return no CPU uses what these ranges translated to before, and this CPU's next
    /// access walks anew. Called with at least one.
    ///
    /// A machine whose invalidation completes in another way (a queue with a sync command) replaces the whole sequence.
    #[inline]
    fn invalidate(&self, mmu: &M, whats: impl Iterator<Item = Invalidation<M::Geometry>>) {
        // The stores must have reached the table walkers before an invalidation, or a walk right after it would cache
        // the old entry again. A DMB does not order a TLBI; the stores are this CPU's own, so the store form is enough.
        mmu.dsb_ishst();
        for what in whats {
            self.issue(mmu, &what);
        }
        // Completes the TLBIs on all CPUs, with the accesses that used the old entries. Only a full DSB, and only one
        // on the CPU that issued them, does that: EL1 is not preempted, so this is the same CPU.
        mmu.complete_tlbi();
        // The ISB discards this CPU's fetches and translations made ahead; other CPUs need none.
        mmu.isb();
    }

    /// [`Tlb::invalidate`] of `whats`, and of the last-level entries of single `pages`. At least one of the two has
    /// one.
    #[inline]
    fn invalidate_with_pages(
        &self,
        mmu: &M,
        whats: impl Iterator<Item = Invalidation<M::Geometry>>,
        pages: impl Iterator<Item = VirtAddr>,
    ) {
        self.invalidate(mmu, whats.chain(pages.map(Invalidation::page)));
    }
}
