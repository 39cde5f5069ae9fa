//! The machine itself, ready made: what a kernel needs beside its frames.
//!
//! - [`Metal`] is an [`Mmu`] whose methods are an instruction or two. A [`Platform`] gives the address of a table; the
//!   ready one is [`DirectMap`], all memory at one offset.
//! - [`KernelTlb`] invalidates kernel addresses, [`AsidTlb`] those of an address space; both by the fewest TLBIs.
//! - [`MmuOff`] builds tables before the MMU is on, [`FrameRange`] is a first source of tables.
//!
//! ```no_run
//! use granule_pgtable::granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
//! use granule_pgtable::granule_arch::descriptor::{Attributes, MemoryType};
//! use granule_pgtable::metal::{DirectMap, FrameRange, KernelTlb, Metal};
//! use granule_pgtable::{Change, Granule4K, Lazy, PageRange, PageTables, Shape, Table, WholeLeaves};
//!
//! # fn main() -> Result<(), granule_pgtable::Error> {
//! # let (root, free) = (PhysAddr(0), PhysRange::from_size(PhysAddr(0), 0).unwrap());
//! // SAFETY: all memory is mapped there, physical + offset; this function keeps the contract of `Mmu::write`.
//! let mmu = Metal(unsafe { DirectMap::<Granule4K>::new(0xffff_0000_0000_0000).for_owner() });
//! // SAFETY: `root` is a zeroed table of this kernel, and `free` is memory that nothing else uses.
//! let (root, mut frames) = unsafe { (Table::<Granule4K>::root(root), FrameRange::new(&mmu, free)) };
//! let tables = PageTables::new(&mmu, root);
//!
//! let range = PageRange::from_pages(VirtAddr(0xffff_8000_0000_0000), 16)?;
//! let lazy = Lazy::new(&mmu);
//! let data = Attributes::kernel_data(MemoryType::Normal);
//! tables.map(&lazy, range, PhysAddr(0x4800_0000), data, Shape::PAGES, &mut frames)?;
//! let flush = tables.update(&lazy, range, Change::READ_ONLY, WholeLeaves)?;
//! lazy.invalidate(&KernelTlb, [flush]);
//! # Ok(())
//! # }
//! ```
//!
//! # Before the MMU is on
//! With the MMU off every data access is one to Device-nGnRnE memory. An exclusive or atomic access to it (LDXR, STXR,
//! CAS, SWP) is constrained unpredictable, a fault on some CPUs and a loop that never ends on others (Arm ARM B2.9.2,
//! B2.9.5). [`MmuOff`] has plain loads and stores alone, so with it all of this crate may run then, on one CPU:
//!
//! 1. [`granule_arch::cache::invalidate_to_memory`] over the memory that will be tables, the stack, and what else is
//!    written before the MMU is on: a dirty line of the previous stage must not be evicted over what is written past
//!    the caches;
//! 2. [`PageTables`](crate::PageTables) over an [`MmuOff`], and `map`, as anywhere else;
//! 3. the same invalidation again, so that no line that speculation has fetched hides the tables from walks, which are
//!    cached, nor the stack from the code that continues;
//! 4. `granule_arch::mmu::enable`.
//!
//! From then on the same tree is used by way of [`Metal`].

#![allow(unsafe_code, reason = "the one place where page tables meet raw memory")]

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::barrier;
use granule_arch::cache::{self, CodeCaches};
use granule_arch::descriptor::Descriptor;
use granule_arch::features::CpuFeatures;
use granule_arch::tlbi::{AddressOperand, Instruction};

use crate::geometry::{Geometry, Granule4K};
#[cfg(target_os = "none")]
use crate::mmu::Survey;
use crate::mmu::{Feature, Mmu, Stores, Table};
use crate::operation::{CacheOperation, Operation};

#[cfg(target_os = "none")]
mod bulk;
mod frames;
mod mmu_off;
mod tlb;

pub use frames::FrameRange;
pub use mmu_off::MmuOff;
pub use tlb::{AsidTlb, KernelTlb, level_hint};

/// The differences of kernels on the metal: where a table is seen, and what all CPUs have. Only the first is required:
/// without the others every CPU of the architecture is served, but for the erratum of [`Self::repeats_tlbi`].
///
/// # Safety
/// [`Self::address`] maps each frame of the physical memory that tables lie in, writable and as Normal memory, always to
/// the same memory. [`Self::second_mapping`] calls its work once, with a writable mapping of the same entries, no part of
/// which is translated by any of them. Every CPU has what `has` affirms; `repeats_tlbi` is true where any CPU needs it.
pub unsafe trait Platform {
    /// The shape of the tables.
    type Geometry: Geometry;

    /// Where this CPU sees the frame at `table`.
    fn address(&self, table: PhysAddr) -> VirtAddr;

    /// Runs `work` with where this CPU sees `run`, entries of one table, by a mapping that no entry of the tables that are
    /// replaced break-before-make ([`Stores::break_before_make`]) is part of. By default that is where they are always
    /// seen: for a mapping of the tables that never changes its size.
    fn second_mapping(&self, run: &[Cell], work: impl FnOnce(*mut u64)) {
        work(run.as_ptr().cast_mut().cast());
    }

    /// Whether every CPU has a feature.
    #[inline(always)]
    fn has(&self, feature: Feature) -> bool {
        let _ = feature;
        false
    }

    /// Whether an erratum of the CPUs asks for one more TLBI and DSB after those that complete an invalidation.
    #[inline(always)]
    fn repeats_tlbi(&self) -> bool {
        false
    }

    /// The shortest cache lines of all CPUs; by default this CPU's, which serves where all are alike.
    fn code_caches(&self) -> CodeCaches {
        CodeCaches::of_this_cpu()
    }

    /// Called before a barrier, a TLBI or cache maintenance is issued, for counters; `false` leaves it out, which only a
    /// laboratory does. Inlined, with a constant variant.
    #[inline(always)]
    fn issues(&self, operation: Operation<Self::Geometry>) -> bool {
        let _ = operation;
        true
    }

    /// Called when an entry has been read, and nothing was done with it yet: the hardware and other CPUs may change it
    /// here, in a test on the host.
    #[inline(always)]
    fn has_read(&self, cell: &Cell) {
        let _ = cell;
    }

    /// Called when an entry has been written, for a record: always on the host, on the metal not for plain stores.
    #[inline(always)]
    fn wrote(&self, cell: &Cell, old: Descriptor, new: Descriptor) {
        let _ = (cell, old, new);
    }
}

/// By a [`DirectMap`] tables are only looked at.
#[derive(Clone, Copy, Debug)]
pub struct Viewer;

/// By a [`DirectMap`] tables are changed ([`DirectMap::for_owner`]).
#[derive(Clone, Copy, Debug)]
pub struct Owner;

/// All memory at one offset: physical address `p` is seen at `p` plus the offset, wrapping.
///
/// It is made to look at tables, and may be given to any code. Code that changes them takes one that is
/// [for their owner](Self::for_owner).
#[derive(Clone, Copy, Debug)]
pub struct DirectMap<G: Geometry = Granule4K, A = Viewer> {
    offset: u64,
    repeats_tlbi: bool,
    /// The features of all CPUs, as far as they are known.
    features: Option<CpuFeatures>,
    kind: PhantomData<(G, A)>,
}

impl<G: Geometry> DirectMap<G> {
    /// With this offset, on CPUs of which nothing is known. Leaves of the mapping itself are not split or collapsed
    /// break-before-make ([`Stores::break_before_make`]): there is no second mapping of its tables.
    ///
    /// # Safety
    /// For as long as it is used, it is used with trees of geometry `G` alone, whose tables are seen there, writable
    /// and as Normal memory. CPUs that need [`Self::repeating_tlbi`] have it.
    pub const unsafe fn new(offset: u64) -> Self {
        Self { offset, repeats_tlbi: false, features: None, kind: PhantomData }
    }

    /// For changes: a [`Metal`] of it [`Stores`].
    ///
    /// # Safety
    /// Code that it is given to, or a [`Metal`] of it, keeps the contract of [`Mmu::write`].
    #[must_use]
    pub const unsafe fn for_owner(self) -> DirectMap<G, Owner> {
        let Self { offset, repeats_tlbi, features, .. } = self;
        DirectMap { offset, repeats_tlbi, features, kind: PhantomData }
    }
}

impl<G: Geometry, A> DirectMap<G, A> {
    /// On CPUs with an erratum that [`Platform::repeats_tlbi`] works around, such as Cortex-A76 and Neoverse-N1:
    /// Linux's `ARM64_WORKAROUND_REPEAT_TLBI`.
    #[must_use]
    pub const fn repeating_tlbi(self) -> Self {
        Self { repeats_tlbi: true, ..self }
    }

    /// On CPUs that have `all`: fewer TLBIs and barriers.
    ///
    /// # Safety
    /// Every CPU that runs has at least these: see [`CpuFeatures::least`].
    #[must_use]
    pub unsafe fn with_features(self, all: &CpuFeatures) -> Self {
        Self { features: Some(*all), ..self }
    }
}

// SAFETY: an offset is one to one; what is seen behind it, and that all CPUs have the features, is by the contracts of
// `new` and `with_features`.
unsafe impl<G: Geometry, A> Platform for DirectMap<G, A> {
    type Geometry = G;

    #[inline(always)]
    fn address(&self, table: PhysAddr) -> VirtAddr {
        VirtAddr(table.0.wrapping_add(self.offset))
    }

    fn has(&self, feature: Feature) -> bool {
        self.features.as_ref().is_some_and(|all| match feature {
            Feature::TlbRange => all.tlb_range(),
            Feature::Ttl => all.ttl(),
            Feature::Ets2 => all.ets2(),
            Feature::Idc => all.code_caches().idc,
            Feature::Dic => all.code_caches().dic,
        })
    }

    fn repeats_tlbi(&self) -> bool {
        self.repeats_tlbi
    }

    fn code_caches(&self) -> CodeCaches {
        self.features.as_ref().map_or_else(CodeCaches::of_this_cpu, CpuFeatures::code_caches)
    }
}

// SAFETY: the contract of `for_owner`.
unsafe impl<G: Geometry> Trusted for DirectMap<G, Owner> {}

/// This is the metal, and not the host.
const IS_METAL: bool = cfg!(target_os = "none");
/// The architecture orders an access through a loaded address after the load; C11, by which the host goes, only where
/// the load acquires.
const LOAD: Ordering = if IS_METAL { Ordering::Relaxed } else { Ordering::Acquire };
/// Of an atomic read and write, likewise.
const EXCHANGE: Ordering = if IS_METAL { Ordering::Relaxed } else { Ordering::AcqRel };

/// A live entry: an atomic word, to which only the methods of an [`Mmu`] store.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Cell(pub(crate) AtomicU64);

impl Cell {
    /// An entry in memory of the caller's.
    pub const fn new(descriptor: Descriptor) -> Self {
        Self(AtomicU64::new(descriptor.0))
    }

    /// Where it is, for what stands for the hardware in a test.
    pub const fn as_ptr(&self) -> *mut u64 {
        self.0.as_ptr()
    }
}

/// A platform of code that keeps the contract of [`Mmu::write`] wherever it has a [`Metal`] of it and a cell:
/// its machine is one that [`Stores`].
///
/// # Safety
/// The contract of [`Stores`] for the [`Metal`] of it.
pub unsafe trait Trusted: Platform {}

// SAFETY: the platform's contract.
unsafe impl<P: Trusted> Stores for Metal<P> {}

/// This CPU. Cells are 64-bit atomics, which the architecture makes single-copy atomic (Arm ARM B2.2.1) and orders
/// after the load of their address (B2.3.3, address dependency).
#[derive(Clone, Copy, Debug)]
pub struct Metal<P>(pub P);

/// The entries of `table`, which is seen at `address`.
///
/// # Safety
/// It is one, and stays one for as long as the reference is used.
#[inline(always)]
unsafe fn cells<'a, G: Geometry>(table: Table<G>, address: VirtAddr) -> &'a [Cell] {
    // SAFETY: a table of this level, by the caller's word; its entries are only accessed as atomics.
    unsafe { core::slice::from_raw_parts(address.as_ptr(), G::entries(table.level())) }
}

// SAFETY: 1. `table` gives the frame at the address, as many entries as the geometry has; a `Table` proves that it is
// one, and a platform shows the same memory for as long as it is a table. 2. Aligned 64-bit atomics are single-copy
// atomic, and accesses through a loaded address are ordered after the load. 3. `granule_arch::barrier` is those
// barriers, and its assembly is a compiler barrier. 4. `bulk` deals with the entries of a run by the operation of the
// default; break-before-make has its steps, by another mapping of the entries.
unsafe impl<P: Platform> Mmu for Metal<P> {
    type Geometry = P::Geometry;
    type Cell = Cell;

    #[inline(always)]
    fn table(&self, table: Table<P::Geometry>) -> &[Cell] {
        // SAFETY: a `Table` proves it.
        unsafe { cells(table, self.0.address(table.address())) }
    }

    #[inline(always)]
    fn load(&self, cell: &Cell) -> Descriptor {
        let found = Descriptor(cell.0.load(LOAD));
        self.0.has_read(cell);
        found
    }

    #[inline(always)]
    unsafe fn write(&self, cell: &Cell, descriptor: Descriptor) {
        if IS_METAL {
            cell.0.store(descriptor.0, Ordering::Relaxed);
        } else {
            self.0.wrote(cell, Descriptor(cell.0.swap(descriptor.0, Ordering::Relaxed)), descriptor);
        }
    }

    #[inline(always)]
    unsafe fn exchange(&self, cell: &Cell, current: Descriptor, new: Descriptor) -> Result<(), Descriptor> {
        if let Err(found) = cell.0.compare_exchange(current.0, new.0, EXCHANGE, LOAD) {
            self.0.has_read(cell);
            return Err(Descriptor(found));
        }
        self.0.wrote(cell, current, new);
        Ok(())
    }

    #[inline(always)]
    unsafe fn clear(&self, cell: &Cell, mask: u64) -> Descriptor {
        let old = Descriptor(cell.0.fetch_and(!mask, EXCHANGE));
        self.0.wrote(cell, old, Descriptor(old.0 & !mask));
        old
    }

    #[cfg(target_os = "none")]
    #[inline]
    fn survey(&self, run: &[Cell]) -> Survey {
        bulk::survey(run)
    }

    #[cfg(target_os = "none")]
    #[inline]
    unsafe fn flip_run(&self, run: &[Cell], flip: u64) {
        bulk::flip(run, flip);
    }

    #[cfg(target_os = "none")]
    #[inline]
    unsafe fn write_run(&self, run: &[Cell], first: Descriptor, step: u64) {
        bulk::fill(run, first.0, step);
    }

    #[cfg(target_os = "none")]
    #[inline]
    fn filled(&self, run: &[Cell], first: Descriptor, step: u64) -> usize {
        bulk::filled(run, first.0, step)
    }

    #[cfg(target_os = "none")]
    unsafe fn remake_run(&self, run: &[Cell], first: Descriptor, step: u64) {
        use Operation::{DsbIsh, DsbIshst, Isb, Tlbi};
        // One piece of assembly, so they are counted here.
        for operation in [DsbIshst, Tlbi(Instruction::Vmalle1is), DsbIsh, DsbIshst, Isb] {
            let _ = self.0.issues(operation);
        }
        let repeats = self.0.repeats_tlbi();
        self.0.second_mapping(run, |entries| {
            // SAFETY: the entries of one table, by another mapping; the caller is alone with the tree.
            unsafe { granule_arch::tlbi::break_before_make(entries, run.len(), first.0, step, repeats) };
        });
    }

    #[inline(always)]
    fn tlbi(&self, instruction: Instruction) {
        if self.0.issues(Operation::Tlbi(instruction)) {
            instruction.execute();
        }
    }

    #[inline(always)]
    fn dmb_ishst(&self) {
        if self.0.issues(Operation::DmbIshst) {
            barrier::dmb_ishst();
        }
    }

    #[inline(always)]
    fn dsb_ishst(&self) {
        if self.0.issues(Operation::DsbIshst) {
            barrier::dsb_ishst();
        }
    }

    #[inline(always)]
    fn dsb_ish(&self) {
        if self.0.issues(Operation::DsbIsh) {
            barrier::dsb_ish();
        }
    }

    #[inline(always)]
    fn dsb_nsh(&self) {
        if self.0.issues(Operation::DsbNsh) {
            barrier::dsb_nsh();
        }
    }

    #[inline(always)]
    fn isb(&self) {
        if self.0.issues(Operation::Isb) {
            barrier::isb();
        }
    }

    #[inline(always)]
    fn complete_tlbi(&self) {
        self.dsb_ish();
        if self.0.repeats_tlbi() {
            // The address does not matter: completion of this TLBI implies that of the first ones.
            self.tlbi(Instruction::Vale1is(AddressOperand::new(VirtAddr(0), None)));
            self.dsb_ish();
        }
    }

    unsafe fn clean_code(&self, start: VirtAddr, bytes: u64) {
        if self.0.issues(Operation::Cache(CacheOperation::Clean { start, bytes })) {
            // SAFETY: the caller's contract.
            unsafe { cache::clean_to_unification(start, bytes, self.0.code_caches().data_line) };
        }
    }

    unsafe fn invalidate_code(&self, start: VirtAddr, bytes: u64) {
        if self.0.issues(Operation::Cache(CacheOperation::Invalidate { start, bytes })) {
            // SAFETY: the caller's contract.
            unsafe { cache::invalidate_instructions(start, bytes, self.0.code_caches().instruction_line) };
        }
    }

    fn invalidate_all_code(&self) {
        if self.0.issues(Operation::Cache(CacheOperation::InvalidateAll)) {
            cache::invalidate_all_instructions();
        }
    }

    #[inline(always)]
    fn has(&self, feature: Feature) -> bool {
        self.0.has(feature)
    }
}
