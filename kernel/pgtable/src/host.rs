//! A plain machine on the host: tables in an arena, barriers and invalidations counted and recorded.
//!
//! It does what the metal does and forgets nothing: [`HostMachine::record`] returns the stream of operations that a
//! call made, in order, so that tests can ask which barrier came where. It has one CPU and no TLB.

use core::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};
use std::vec::Vec;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Descriptor;

use crate::flush::Invalidation;
use crate::geometry::{Geometry, Granule4K};
use crate::metal::{Cell, Metal, Platform, Trusted};
use crate::mmu::{Feature, Table, Tlb};
pub use crate::operation::{CacheOperation, Operation};
use crate::source::TableSource;
use crate::tables::PageTables;
use crate::walk::Step;

/// Where the arena begins in the machine's physical memory: aligned for every granule, and not 0.
const ARENA: u64 = 0x1_0000_0000;

/// The caches as CTR_EL0 reports them: which maintenance new code needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caches {
    /// IDC: no clean.
    pub idc: bool,
    /// DIC: no invalidation.
    pub dic: bool,
}

/// The host's way to touch tables: the metal's, with tables in the arena and a record in the place of instructions.
pub type HostMmu<G = Granule4K> = Metal<HostPlatform<G>>;

/// The arena, and the record.
pub struct HostPlatform<G: Geometry = Granule4K> {
    cells: Vec<Cell>,
    operations: Mutex<Option<Vec<Operation<G>>>>,
    ets2: bool,
    repeats_tlbi: bool,
    caches: Caches,
}

impl<G: Geometry> HostPlatform<G> {
    const CELLS_PER_FRAME: usize = G::PAGE_SIZE as usize / size_of::<u64>();

    fn note(&self, operation: Operation<G>) {
        if let Some(operations) = &mut *lock(&self.operations) {
            operations.push(operation);
        }
    }

    fn frame(&self, address: PhysAddr) -> &[Cell] {
        let first = (address.0 - ARENA) as usize / size_of::<u64>();
        &self.cells[first..first + Self::CELLS_PER_FRAME]
    }
}

// SAFETY: each frame is a fixed part of the arena.
#[allow(unsafe_code, reason = "implementing the contract of `Platform`")]
unsafe impl<G: Geometry> Platform for HostPlatform<G> {
    type Geometry = G;

    fn address(&self, table: PhysAddr) -> VirtAddr {
        VirtAddr::from_ptr(self.frame(table))
    }

    fn has(&self, feature: Feature) -> bool {
        match feature {
            Feature::Idc => self.caches.idc,
            Feature::Dic => self.caches.dic,
            Feature::Ets2 => self.ets2,
            Feature::TlbRange | Feature::Ttl => false,
        }
    }

    fn repeats_tlbi(&self) -> bool {
        self.repeats_tlbi
    }

    fn issues(&self, operation: Operation<G>) -> bool {
        self.note(operation);
        false
    }

    fn wrote(&self, cell: &Cell, old: Descriptor, new: Descriptor) {
        let offset = core::ptr::from_ref(cell).addr() - self.cells.as_ptr().addr();
        self.note(Operation::Write { cell: PhysAddr(ARENA + offset as u64), old, new });
    }
}

// SAFETY: tables are words of the arena, and what they map is no memory.
#[allow(unsafe_code, reason = "implementing the contract of `Trusted`")]
unsafe impl<G: Geometry> Trusted for HostPlatform<G> {}

/// The host has no TLB: its invalidations go into the record.
pub struct HostTlb;

impl<G: Geometry> Tlb<HostMmu<G>> for HostTlb {
    fn issue(&self, mmu: &HostMmu<G>, what: &Invalidation<G>) {
        mmu.0.note(Operation::Invalidate(*what));
    }
}

/// Memory for tables, one tree in it, and the record.
pub struct HostMachine<G: Geometry = Granule4K> {
    mmu: HostMmu<G>,
    free: Mutex<Vec<PhysAddr>>,
    root: Table<G>,
}

impl<G: Geometry> HostMachine<G> {
    /// A machine with an empty root table and `frames` frames for more.
    pub fn new(frames: usize) -> Self {
        let cells = (frames + 1) * HostPlatform::<G>::CELLS_PER_FRAME;
        let mmu = Metal(HostPlatform {
            cells: core::iter::repeat_with(Cell::default).take(cells).collect(),
            operations: Mutex::new(None),
            ets2: false,
            repeats_tlbi: false,
            caches: Caches { idc: true, dic: true },
        });
        let free = (1..=frames as u64).rev().map(|frame| PhysAddr(ARENA + frame * G::PAGE_SIZE)).collect();
        // SAFETY: the arena's first frame is zero, never in `free`, and lives as long as the machine, which lends its
        // trees.
        #[allow(unsafe_code, reason = "vouching for the root")]
        let root = unsafe { Table::root(PhysAddr(ARENA)) };
        Self { mmu, free: Mutex::new(free), root }
    }

    /// This machine with FEAT_ETS2.
    #[must_use]
    pub fn with_ets2(mut self) -> Self {
        self.mmu.0.ets2 = true;
        self
    }

    /// This machine with the erratum whose workaround is one more TLBI.
    #[must_use]
    pub fn with_repeated_tlbi(mut self) -> Self {
        self.mmu.0.repeats_tlbi = true;
        self
    }

    /// This machine with these caches; without, fetches see stores at once.
    #[must_use]
    pub fn with_caches(mut self, caches: Caches) -> Self {
        self.mmu.0.caches = caches;
        self
    }

    /// Its CPU.
    pub const fn mmu(&self) -> &HostMmu<G> {
        &self.mmu
    }

    /// Its TLB.
    pub const fn tlb(&self) -> &HostTlb {
        &HostTlb
    }

    /// Its tree.
    pub const fn page_tables(&self) -> PageTables<'_, HostMmu<G>> {
        PageTables::new(&self.mmu, self.root)
    }

    /// Its frames for tables.
    pub const fn frames(&self) -> HostFrames<'_, G> {
        HostFrames { machine: self, left: usize::MAX }
    }

    /// Its frames for tables, of which only `count` will be given.
    pub const fn frames_limited(&self, count: usize) -> HostFrames<'_, G> {
        HostFrames { machine: self, left: count }
    }

    /// How many frames for tables there are.
    pub fn free_frames(&self) -> usize {
        lock(&self.free).len()
    }

    /// The entry that a walk has read, for tests that write what no call does.
    pub fn entry(&self, step: &Step) -> &Cell {
        &self.mmu.0.frame(step.table)[step.index]
    }

    /// Takes back a table with the entries that it has, as [`crate::Collapser`] leaves it.
    pub fn free_table(&self, table: PhysAddr) {
        self.mmu.0.frame(table).iter().for_each(|cell| cell.0.store(0, Ordering::Relaxed));
        lock(&self.free).push(table);
    }

    /// How many operations the record has so far.
    pub fn recorded(&self) -> usize {
        lock(&self.mmu.0.operations).as_ref().map_or(0, Vec::len)
    }

    /// The operations of `work` on the machine, in order.
    pub fn record(&self, work: impl FnOnce()) -> Vec<Operation<G>> {
        *lock(&self.mmu.0.operations) = Some(Vec::new());
        work();
        lock(&self.mmu.0.operations).take().unwrap_or_default()
    }
}

/// Frames of a [`HostMachine`], as a table source.
pub struct HostFrames<'a, G: Geometry = Granule4K> {
    machine: &'a HostMachine<G>,
    left: usize,
}

// SAFETY: a frame is in the free list or with its taker, never both; it was zero at first, and `give_back` insists on
// that.
#[allow(unsafe_code, reason = "implementing the contract of `TableSource`")]
unsafe impl<G: Geometry> TableSource for HostFrames<'_, G> {
    fn take(&mut self) -> Option<PhysAddr> {
        self.left = self.left.checked_sub(1)?;
        lock(&self.machine.free).pop()
    }

    unsafe fn give_back(&mut self, table: PhysAddr) {
        assert!(self.machine.mmu.0.frame(table).iter().all(|cell| cell.0.load(Ordering::Relaxed) == 0), "not zeroed");
        self.left = self.left.saturating_add(1);
        lock(&self.machine.free).push(table);
    }
}

/// A panic in one test must not hide behind a poisoned lock in another.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
