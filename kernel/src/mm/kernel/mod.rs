//! The kernel's own mappings: the fixmap, the linear map, vmalloc areas, and their permissions.
//!
//! [`KernelSpace`] is the tree in TTBR1_EL1 with everything that is needed to change it. Only
//! the owner of an address range changes that range; the area tree ([`area`]) holds the owners, and outside the vmalloc
//! window the layout ([`super::layout`]).
//!
//! The path of a permission change: [`set_memory`] checks the request, `granule_pgtable` checks the leaves and
//! changes them in place, [`super::tlb`] invalidates what changed.

pub mod alias;
pub mod area;
pub mod collapse;
mod debug_pagealloc;
mod direct_map;
pub mod fixmap;
#[cfg(target_os = "none")]
pub mod image;
#[cfg(target_os = "none")]
pub mod linear;
pub mod mmu;
pub mod owners;
pub mod policy;
mod purge;
pub mod reclaim;
#[cfg(test)]
pub(crate) mod record;
mod report;
pub mod set_memory;
pub mod split;
#[cfg(test)]
mod tests;
pub mod vmalloc;
mod window;

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use granule_arch::addr::PhysAddr;
use granule_pgtable::{Extent, Finding, LeafTotals, PageRange, PageTables, Table, TableSource};
use spin::Once;
use spin::mutex::SpinMutex;

use self::area::AreaNode;
use self::policy::Policy;
use self::window::Window;
use super::OutOfMemory;
use super::frame::FrameAllocator;
use super::tlb::KernelTlb;
use crate::smp::Cpu;

/// The machine that the page tables are for: this CPU, with tables seen through the linear map.
pub type Machine = mmu::Metal<mmu::LinearView>;

/// [`PageTables::dump`] of the kernel's tables or a space's: compiled once.
pub fn dump(tables: &PageTables<'_, Machine>, range: PageRange, extent: &mut dyn FnMut(&Extent)) -> LeafTotals {
    tables.dump(range, extent)
}

/// [`PageTables::findings`], likewise.
pub fn findings(tables: &PageTables<'_, Machine>, range: PageRange, finding: &mut dyn FnMut(&Finding)) {
    tables.findings(range, finding);
}

/// The kernel's address space. There is one.
pub struct KernelSpace {
    mmu: Machine,
    tlb: KernelTlb,
    root: Table,
    frames: &'static FrameAllocator,
    areas: Window,
    /// Frames that were taken for tables since the boot and are not free again.
    table_frames: AtomicUsize,
    table_work: SpinMutex<reclaim::TableWork>,
    /// One request for a collapse at a time.
    collapse_request: SpinMutex<()>,
    /// Blocks of the linear map that tables have become: so many tables fewer than were split.
    collapsed_linear: AtomicU64,
    /// Tables of the boot that others have replaced. They are no frames of the allocator's, and stay unused.
    boot_tables_replaced: AtomicU64,
    policy: Once<Policy>,
    splitting: split::Splitting,
}

impl KernelSpace {
    /// The space under `root`, which maps what the entry code and [`linear`] mapped and nothing in the vmalloc window.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        cpu: &Cpu,
        mmu: Machine,
        tlb: KernelTlb,
        root: Table,
        frames: &'static FrameAllocator,
    ) -> Result<Self, OutOfMemory> {
        Ok(Self {
            mmu,
            tlb,
            root,
            frames,
            areas: Window::new(cpu, frames)?,
            table_frames: AtomicUsize::new(0),
            table_work: reclaim::TableWork::new(),
            collapse_request: SpinMutex::new(()),
            collapsed_linear: AtomicU64::new(0),
            boot_tables_replaced: AtomicU64::new(0),
            policy: Once::new(),
            splitting: split::Splitting::new(),
        })
    }

    /// Sets the policy for changes of live mappings; only the first call counts. A decision that is a patched branch
    /// is in force once the sites are patched by it.
    pub fn set_policy(&self, policy: Policy) {
        self.policy.call_once(|| policy);
    }

    /// The policy for changes of live mappings.
    pub fn policy(&self) -> Policy {
        self.policy.get().copied().unwrap_or(Policy::UNDECIDED)
    }

    /// Calls `each` for every area, by address, with a lock of areas held: it prints nothing and allocates nothing.
    pub fn for_each_area(&self, each: impl FnMut(&AreaNode)) {
        self.areas.for_each(each);
    }

    /// Frames that the space keeps when areas go: tables, and those of the window and its areas' records. For the
    /// accounts of frames.
    pub fn kept_frames(&self) -> usize {
        self.table_frames.load(Ordering::Relaxed) + self.areas.frames()
    }

    /// Frames of tables, but for those of the linear map: what its blocks were split to, until that is collapsed, and what
    /// stands where the boot had a table.
    pub fn area_table_frames(&self) -> usize {
        self.table_frames.load(Ordering::Relaxed).saturating_sub(self.linear_tables() as usize)
    }

    /// Tables of the linear map that were made since the boot: what its blocks were split to, until that is collapsed, and
    /// what stands where the boot had a table.
    pub fn linear_tables(&self) -> u64 {
        let split::SplitCounts { blocks, of_areas, .. } = self.split_counts();
        let gone = of_areas + self.collapsed_linear.load(Ordering::Relaxed);
        let made = blocks.iter().sum::<u64>() + self.boot_tables_replaced.load(Ordering::Relaxed);
        made.saturating_sub(gone)
    }

    fn table_source<'a>(&'a self, cpu: &'a Cpu) -> FrameSource<'a> {
        FrameSource { frames: self.frames, supply: Supply::Any, taken: &self.table_frames, cpu }
    }
}

/// Which frames may be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Supply {
    /// Any that are free.
    Any,
    /// Only those in this CPU's magazine, so that no lock is waited for: in interrupt handlers.
    Reserve,
}

/// Frames for tables, from the frame allocator.
struct FrameSource<'a> {
    frames: &'a FrameAllocator,
    supply: Supply,
    /// How many are out.
    taken: &'a AtomicUsize,
    cpu: &'a Cpu,
}

// SAFETY: the allocator gives each frame to one owner, zeroed here, and every frame is in the linear map.
#[allow(unsafe_code, reason = "keeps the contract of `TableSource`")]
unsafe impl TableSource for FrameSource<'_> {
    fn take(&mut self) -> Option<PhysAddr> {
        let table = match self.supply {
            Supply::Any => self.frames.alloc_zeroed(self.cpu),
            Supply::Reserve => self.frames.alloc_zeroed_reserved(self.cpu),
        };
        let table = table.ok()?;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some(table)
    }

    unsafe fn give_back(&mut self, table: PhysAddr) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        self.frames.free(self.cpu, table);
    }
}
