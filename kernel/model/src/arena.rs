//! The memory that tables live in: host memory that code under test may also reach by plain pointers.

use std::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::{PhysAddr, PhysRange};

/// Where the arena begins in the machine's physical memory: aligned for every granule, and not 0.
const BASE: u64 = 0x1_0000_0000;
/// The arena is aligned to this in host memory, so that offsets keep the alignment of any granule's pages.
const ALIGN: usize = 64 << 10;

/// Cells of the machine's memory, and their physical addresses.
pub(crate) struct Arena {
    memory: Vec<AtomicU64>,
    /// Cells before the first aligned one.
    skip: usize,
    cells: usize,
}

impl Arena {
    /// `bytes` bytes, all zero.
    pub(crate) fn new(bytes: u64) -> Self {
        let cells = usize::try_from(bytes).expect("a model's memory fits the host's") / size_of::<u64>();
        let memory: Vec<AtomicU64> =
            std::iter::repeat_with(AtomicU64::default).take(cells + ALIGN / size_of::<u64>()).collect();
        let skip = (memory.as_ptr().addr().next_multiple_of(ALIGN) - memory.as_ptr().addr()) / size_of::<u64>();
        Self { memory, skip, cells }
    }

    /// The physical memory that it stands for.
    pub(crate) fn range(&self) -> PhysRange {
        PhysRange::from_size(PhysAddr(BASE), self.cells as u64 * 8).expect("the arena is small")
    }

    /// What to add to a physical address, wrapping, for a pointer of the host.
    pub(crate) fn offset(&self) -> u64 {
        let first = self.memory[self.skip..].as_ptr();
        (first.expose_provenance() as u64).wrapping_sub(BASE)
    }

    /// `count` cells from `address` on.
    pub(crate) fn cells(&self, address: PhysAddr, count: usize) -> &[AtomicU64] {
        assert!(self.range().contains(address), "{address} is outside the model's memory {:?}", self.range());
        let first = self.skip + ((address.0 - BASE) / 8) as usize;
        &self.memory[first..first + count]
    }

    /// Where `cell` is.
    pub(crate) fn address(&self, cell: &AtomicU64) -> PhysAddr {
        let offset = std::ptr::from_ref(cell).addr() - self.memory[self.skip..].as_ptr().addr();
        PhysAddr(BASE + offset as u64)
    }

    /// The value of the cell at `address` as plain memory has it.
    pub(crate) fn value(&self, address: PhysAddr) -> u64 {
        self.cells(address, 1)[0].load(Ordering::Acquire)
    }

    /// Writes every cell of a frame, behind the model's back.
    pub(crate) fn fill(&self, frame: PhysAddr, bytes: u64, value: u64) {
        for cell in self.cells(frame, (bytes / 8) as usize) {
            cell.store(value, Ordering::Release);
        }
    }
}
