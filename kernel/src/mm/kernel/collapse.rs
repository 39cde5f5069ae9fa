//! Collapsing: tables of the linear map and of areas whose leaves are alike again become larger leaves.
//!
//! [`granule_pgtable::collapse`] describes how, and why no owner loses a store. This file decides where and when:
//! on request ([`KernelSpace::collapse`]), and with `collapse.quiet=` by a thread, when nothing was split for a while.
//! Never on the calling path of `set_memory_*`, or of `vfree`.
//!
//! # Ranges that are not collapsed
//! - Where leaves are never split (`split=refuse`): no larger leaf could be taken apart again.
//! - The linear map where it is made of pages: because free frames are taken out of it (`debug_pagealloc=on`), which come
//!   and go from any context, where there may be no memory for tables; or because its pages change where leaves are split
//!   with all other CPUs parked, which is not done from any context.
//! - Areas, where they are made of pages (`vmalloc=pages`).
//! - Read-only pages of the linear map become contiguous groups and never a block. Frames of several areas may be
//!   neighbours there, and `vfree` of one would have to split the block, for which there may be no memory.

use core::fmt;
use core::sync::atomic::Ordering;
use core::time::Duration;

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::bits;
use granule_arch::wait;
use granule_pgtable::{
    Collapse, Collapser, Collapses, Granule4K, Handshake, Leaves, PageRange, PageTables, Progress, TableSource,
};
use linkme::distributed_slice;
use thiserror::Error;

use super::KernelSpace;
use super::policy::SplitMode;
use super::reclaim::word;
use crate::bootargs::{self, PARAMETERS, Parameter};
use crate::lab;
use crate::mm::layout::{self, VMALLOC_END, VMALLOC_START};
use crate::smp::{self, Cpu, MAX_CPUS};

/// The one collapser.
pub(super) type KernelCollapser = Collapser<Granule4K, MAX_CPUS>;

/// Why a range is not collapsed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum CollapseError {
    /// Neither of the two.
    #[error(
        "{start}-{end} is neither in the linear map nor in the vmalloc window ({VMALLOC_START} to {VMALLOC_END})",
        start = .0.start(), end = .0.end()
    )]
    Elsewhere(PageRange),
    /// A larger leaf could not be split again.
    #[error("live leaves are not split here (see `features`), so none is made larger either")]
    NeverSplit,
    /// Single pages change from any context.
    #[error("the linear map is made of pages, which change one by one (see `features`)")]
    LinearOfPages,
    /// Where all other CPUs have to be parked, and cannot be.
    #[error(
        "all other CPUs are parked for it: only from a thread, with interrupts on and no lock held that masks them"
    )]
    CannotStop,
    /// `vmalloc=pages`.
    #[error("areas are made of pages (vmalloc=pages)")]
    AreasOfPages,
}

impl KernelSpace {
    /// Collapses what tables of `range`, in the linear map or in the vmalloc window, have leaves that are alike: pages to
    /// groups of 64 KiB and blocks of 2 MiB, blocks to groups of 32 MiB and blocks of 1 GiB. Returns what was collapsed.
    ///
    /// Every owner may go on using and changing what is its own: where one does while its table is collapsed, the table
    /// stays. Goes over the range three times at most, and waits until the walks of other CPUs that are under way have
    /// ended, which wait for nothing but the interrupt handlers of their own CPU. So not from interrupt handlers, not with
    /// interrupts masked or a lock held that a handler takes, and not inside a walk ([`KernelSpace::tables`]).
    ///
    /// # Errors
    /// [`CollapseError`]; nothing was changed.
    pub fn collapse(&self, cpu: &Cpu, range: PageRange) -> Result<Collapses, CollapseError> {
        let what = self.collapse_of(range)?;
        if what.handshake == Handshake::Stopped && !smp::may_park_others(cpu) {
            return Err(CollapseError::CannotStop);
        }
        debug_assert!(!cpu.walk().is_open() && !cpu.trap().is_in_handler(), "a collapse waits for walks and handlers");
        let _request = self.collapse_request.lock();
        let mut before = None;
        let done = loop {
            // Let go after each round: where memory is short, reclaim comes in between.
            let collapser = &mut self.table_work.lock().collapser;
            let before = *before.get_or_insert_with(|| {
                collapser.start(what);
                collapser.done()
            });
            self.collapse_round(cpu, collapser, what.handshake);
            if collapser.is_idle() {
                break collapser.done().since(before);
            }
        };
        if layout::is_linear(range.start()) {
            self.collapsed_linear.fetch_add(done.blocks.iter().sum(), Ordering::Relaxed);
        }
        Ok(done)
    }

    /// All that may be collapsed: the linear map and the vmalloc window.
    pub fn collapsible() -> [Option<PageRange>; 2] {
        let linear = PageRange::new(layout::linear(PhysAddr(0)), layout::LINEAR_SIZE);
        [linear.ok(), PageRange::new(VMALLOC_START, VMALLOC_END - VMALLOC_START).ok()]
    }

    /// Collapses since the boot. Not from interrupt handlers: it takes a lock that a collapse holds.
    pub fn collapse_counts(&self) -> CollapseCounts {
        debug_assert!(!smp::this_cpu().walk().is_open(), "the holder of the lock waits for walks");
        CollapseCounts(self.table_work.lock().collapser.done())
    }

    /// How `range` is collapsed, by the policy.
    fn collapse_of(&self, range: PageRange) -> Result<Collapse<Granule4K>, CollapseError> {
        let policy = self.policy();
        let is_linear = layout::is_linear(range.start()) && layout::is_linear(range.last());
        let is_window = VMALLOC_START <= range.start() && range.last() < VMALLOC_END;
        if !is_linear && !is_window {
            return Err(CollapseError::Elsewhere(range));
        }
        match policy.split {
            SplitMode::Refuse => return Err(CollapseError::NeverSplit),
            _ if is_linear && policy.debug_pagealloc => return Err(CollapseError::LinearOfPages),
            SplitMode::StopMachine if is_linear && policy.alias => return Err(CollapseError::LinearOfPages),
            _ if is_window && policy.area_leaves == Leaves::Pages => return Err(CollapseError::AreasOfPages),
            SplitMode::Lock | SplitMode::Lockless | SplitMode::StopMachine => {}
        }
        let never_blocks = if is_linear { bits::RDONLY } else { 0 };
        let handshake = match policy.split {
            _ if lab::is_on!(COLLAPSE_NO_MARK) => Handshake::None,
            SplitMode::StopMachine => Handshake::Stopped,
            _ => Handshake::Marks,
        };
        Ok(Collapse { range, never_blocks, handshake })
    }

    /// Collapses the next few tables.
    #[allow(unsafe_code, reason = "the one collapser of the tree")]
    fn collapse_round(&self, cpu: &Cpu, collapser: &mut KernelCollapser, handshake: Handshake) {
        let tables = PageTables::new(&self.mmu, self.root);
        // SAFETY: (1) it and the reclaimer are under one lock; (2) `KernelTables` is announced in the CPU's own word, and
        // what changes them has a `LeafSplitter`; (3) the policy stops the others where a CPU cannot, or a lab shows it.
        unsafe { collapser.mark(&tables, word) };
        if handshake == Handshake::Stopped && !collapser.is_idle() {
            self.note_stop();
            let _others = smp::park_others();
            // SAFETY: as above; the others are parked, outside of walks, and the fixed map has the entries of the linear map.
            unsafe { collapser.replace_stopped(&tables) };
        }
        let (mut source, mut replaced) = (self.table_source(cpu), self.table_source(cpu));
        let mut free = |table| {
            if self.frames.is_handed_out(table) {
                // SAFETY: a source gave it, nothing walks it, and the allocator zeroes what it gives.
                unsafe { replaced.give_back(table) };
            } else {
                self.boot_tables_replaced.fetch_add(1, Ordering::Relaxed);
            }
        };
        // SAFETY: as above; kernel addresses are invalidated for all CPUs, and no device uses them.
        while unsafe { collapser.advance(&tables, &self.tlb, word, &mut source, &mut free) } == Progress::Waiting {
            wait::relax();
        }
    }
}

/// Collapses since the boot, by the size of the new leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CollapseCounts(pub Collapses);

impl fmt::Display for CollapseCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Collapses { blocks: [_, gib, mib, _], groups: [_, _, of_blocks, of_pages], cancelled } = self.0;
        write!(
            f,
            "to {gib} of 1 GiB, {mib} of 2 MiB; {of_blocks} tables got groups of 2 MiB, {of_pages} groups of 4 KiB; \
             {cancelled} cancelled"
        )
    }
}

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static QUIET: Parameter = Parameter {
    name: "collapse.quiet",
    help: "collapse.quiet=MS: collapse leaves that are alike again when none was split for MS milliseconds; 0: none",
    check: |value| bootargs::number(value, LONGEST).map(drop),
};

/// The most milliseconds of `collapse.quiet=`: a day.
const LONGEST: usize = 86_400_000;

/// The least time without a split before leaves are collapsed again; none where they are not.
pub(crate) fn quiet() -> Option<Duration> {
    let wished = bootargs::get_number("collapse.quiet", LONGEST).filter(|&number| number != 0);
    wished.map(|number| Duration::from_millis(number as u64))
}
