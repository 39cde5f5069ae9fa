//! The memory that tables live in: host memory that code under test may also reach by plain pointers, the model's own or
//! that of a machine that it watches.

use std::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::{PhysAddr, PhysRange};

/// Where the arena begins in the machine's physical memory: aligned for every granule, and not 0.
const BASE: u64 = 0x1_0000_0000;
/// The arena is aligned to this in host memory, so that offsets keep the alignment of any granule's pages.
const ALIGN: usize = 64 << 10;

/// Cells of the machine's memory, and their physical addresses.
pub(crate) struct Arena {
    range: PhysRange,
    cells: Cells,
}

enum Cells {
    /// After `skip` cells that are not aligned.
    Own { memory: Vec<AtomicU64>, skip: usize },
    /// The difference from a physical address to that of the host, to be added with wrapping.
    Foreign { offset: u64 },
}

impl Arena {
    /// `bytes` bytes, all zero.
    pub(crate) fn new(bytes: u64) -> Self {
        let cells = usize::try_from(bytes).expect("a model's memory fits the host's") / size_of::<u64>();
        let memory: Vec<AtomicU64> =
            std::iter::repeat_with(AtomicU64::default).take(cells + ALIGN / size_of::<u64>()).collect();
        let skip = (memory.as_ptr().addr().next_multiple_of(ALIGN) - memory.as_ptr().addr()) / size_of::<u64>();
        let range = PhysRange::from_size(PhysAddr(BASE), cells as u64 * 8).expect("the arena is small");
        Self { range, cells: Cells::Own { memory, skip } }
    }

    /// The memory of another machine, whose addresses are `offset` higher on the host.
    ///
    /// # Safety
    /// All of `range` stays mapped as long as this exists, and tables in it are accessed as atomics.
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub(crate) unsafe fn foreign(range: PhysRange, offset: u64) -> Self {
        Self { range, cells: Cells::Foreign { offset } }
    }

    /// The physical memory that it stands for.
    pub(crate) fn range(&self) -> PhysRange {
        self.range
    }

    /// The difference from a physical address to a pointer of the host, to be added with wrapping.
    pub(crate) fn offset(&self) -> u64 {
        match &self.cells {
            Cells::Own { memory, skip } => {
                (memory[*skip..].as_ptr().expose_provenance() as u64).wrapping_sub(self.range.start().0)
            }
            Cells::Foreign { offset } => *offset,
        }
    }

    /// `count` cells from `address` on.
    #[allow(unsafe_code, reason = "the cells of another machine")]
    pub(crate) fn cells(&self, address: PhysAddr, count: usize) -> &[AtomicU64] {
        let bytes = count as u64 * 8;
        let is_inside = self.range.contains(address) && bytes <= self.range.end().0 - address.0;
        assert!(is_inside, "{address} is outside the model's memory {:?}", self.range);
        match &self.cells {
            Cells::Own { memory, skip } => {
                let first = skip + ((address.0 - self.range.start().0) / 8) as usize;
                &memory[first..first + count]
            }
            Cells::Foreign { offset } => {
                let first = std::ptr::with_exposed_provenance(address.0.wrapping_add(*offset) as usize);
                // SAFETY: inside the range that the maker of this vouched for.
                unsafe { std::slice::from_raw_parts(first, count) }
            }
        }
    }

    /// Where `cell` is.
    pub(crate) fn address(&self, cell: &AtomicU64) -> PhysAddr {
        PhysAddr((std::ptr::from_ref(cell).addr() as u64).wrapping_sub(self.offset()))
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
