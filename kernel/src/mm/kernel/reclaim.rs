//! Walks of the kernel's tables, each announced, and the reclaim of tables that areas leave empty.
//!
//! [`granule_pgtable::reclaim`] describes how a table is freed, and why that is safe. This file decides when:
//! after an area that held a whole table, and where memory runs out. Small areas leave tables that the next ones
//! use, for addresses are handed out from the lowest on; looking for empty tables after each would cost more than it
//! brings.
//!
//! Nothing here waits. Where a CPU is in the middle of a walk, the tables stay on their list, and the next
//! call continues.

use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::VirtAddr;
use granule_arch::interrupts;
use granule_pgtable::{
    Announced, Extent, Geometry, Granule4K, Invalidation, LeafTotals, PageRange, PageTables, Progress, Reclaimer,
    Table, TableSource, Tlb, Translation, Walk,
};
use spin::mutex::SpinMutex;

use super::collapse::KernelCollapser;
use super::{KernelSpace, Machine};
use crate::lab;
use crate::smp::{self, Cpu, CpuId, MAX_CPUS, this_cpu};

/// Bytes of addresses that one last-level table translates.
const TABLE_SPAN: u64 = 1 << (Granule4K::PAGE_SHIFT + Granule4K::INDEX_BITS);

/// The two that take tables out of the tree, under one lock, so that none removes a table that the other has found.
/// Reclaim only ever tries the lock: where that fails, the holder does the work, or a later call.
pub(super) struct TableWork {
    pub(super) reclaimer: Reclaimer<Granule4K, MAX_CPUS>,
    pub(super) collapser: KernelCollapser,
}

impl TableWork {
    pub(super) const fn new() -> SpinMutex<Self> {
        SpinMutex::new(Self { reclaimer: Reclaimer::new(), collapser: KernelCollapser::new() })
    }
}

/// The walk word of a CPU.
pub(super) fn word(number: usize) -> Option<&'static AtomicU64> {
    smp::cpu(CpuId(number as u32)).map(|cpu| &cpu.walk().0)
}

/// The kernel's tables, in a walk that is announced for as long as this lives.
///
/// Having one proves: no table that is found through it is freed while this lives. So it is not kept for long, and the
/// holder waits for nothing but a split by another CPU.
pub struct KernelTables<'s> {
    mmu: &'s Machine,
    root: Table,
    _walk: Announced<'static, AtomicU64>,
}

impl KernelTables<'_> {
    /// The tables, no longer than the walk is announced: nothing that is found through them, a cell above all, outlives
    /// this. Only the owner of a range changes it, and the root is not kept.
    #[inline(always)]
    pub fn get(&self) -> PageTables<'_, Machine> {
        PageTables::new(self.mmu, self.root)
    }

    /// [`PageTables::walk`], no longer than the walk is announced.
    pub fn walk(&self, address: VirtAddr) -> Walk<'_, Machine> {
        self.get().walk(address)
    }

    /// [`PageTables::translate`].
    pub fn translate(&self, address: VirtAddr) -> Option<Translation> {
        self.get().translate(address)
    }

    /// [`PageTables::dump`].
    pub fn dump(&self, range: PageRange, extent: impl FnMut(&Extent)) -> LeafTotals {
        self.get().dump(range, extent)
    }
}

/// A CPU's sequence word of lockless walks, odd inside the outermost one: part of its [`Cpu`].
#[derive(Debug)]
pub struct WalkSequence(AtomicU64);

impl WalkSequence {
    /// No walk yet.
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether the CPU is inside a walk.
    pub fn is_open(&self) -> bool {
        !self.0.load(Ordering::Relaxed).is_multiple_of(2)
    }
}

impl KernelSpace {
    /// The tables, to look at. Changes go through the other functions of this type.
    #[inline(always)]
    pub fn tables(&self) -> KernelTables<'_> {
        KernelTables { mmu: &self.mmu, root: self.root, _walk: Announced::begin(&this_cpu().walk().0) }
    }

    /// Frees the frames of areas that wait for their invalidation ([`Self::purge`]), and the tables that areas have left
    /// empty, as far as that goes without waiting: a table that was found empty, or unlinked, while another CPU was in a
    /// walk stays for the next call. Returns how many frames were freed.
    ///
    /// Not from interrupt handlers: it takes locks of areas.
    pub fn reclaim(&self, cpu: &Cpu) -> usize {
        // Each CPU's part of the window may have some.
        self.purge(cpu) + (0..MAX_CPUS).map_while(|_| self.reclaim_once(cpu)).sum::<usize>()
    }

    /// As [`Self::reclaim`], in one range where areas were; `None` where there is none, or another CPU reclaims.
    #[allow(unsafe_code, reason = "the one reclaimer of the tree")]
    fn reclaim_once(&self, cpu: &Cpu) -> Option<usize> {
        let mut work = self.table_work.try_lock()?;
        let reclaimer = &mut work.reclaimer;
        if reclaimer.is_idle() {
            reclaimer.start(self.areas.take_left(cpu)?);
        }
        let (mut source, mut freed) = (self.table_source(cpu), 0);
        // Not a part of a walk, but reads the tables all the same: only a reclaimer takes tables away, and that is this
        // one.
        let tables = PageTables::new(&self.mmu, self.root);
        let free = |table| {
            // SAFETY: the tree's tables are of the one source, and the reclaimer hands out what nothing walks, zeroed.
            unsafe { source.give_back(table) };
            freed += 1;
        };
        let progress = if lab::is_on!(EARLY_TABLE_FREE) {
            // SAFETY: none: the lab shows what is lost.
            unsafe { reclaimer.advance(&tables, &NoInvalidation, |_| None::<&AtomicU64>, free) }
        } else {
            // SAFETY: (1) it is under its lock, and there is one tree; (2) `KernelTables` is announced in the CPU's own word,
            // the collapser has the same lock; (3) kernel addresses are invalidated for all CPUs, and no device uses them.
            unsafe { reclaimer.advance(&tables, &self.tlb, word, free) }
        };
        debug_assert!(progress == Progress::Waiting || reclaimer.is_idle());
        Some(freed)
    }

    /// Reclaims after an area is gone, where it is worth it.
    pub(super) fn reclaim_after(&self, cpu: &Cpu, area: PageRange) {
        if area.size() < TABLE_SPAN {
            return;
        }
        let first = area.start().align_up(TABLE_SPAN);
        let whole = first.and_then(|first| first.checked_add(TABLE_SPAN)).is_some_and(|end| end <= area.end());
        // Some thousand instructions for each table: not where interrupts are to wait for it.
        if whole && interrupts::state().irqs_enabled() {
            self.reclaim_once(cpu);
        }
    }
}

/// `lab=early-table-free`: no invalidation, and the walk words are not read.
struct NoInvalidation;

impl Tlb<Machine> for NoInvalidation {
    fn issue(&self, _: &Machine, _: &Invalidation) {}

    fn invalidate(&self, _: &Machine, _: impl Iterator<Item = Invalidation>) {}
}
