//! Leaves of the linear map that are in use, and changed in part: what was split, what was not, and that no other pages
//! are touched, under concurrent changes.
//!
//! Every test takes a block of memory of its own that no other has split. The test then finds one of four, by the
//! machine: leaves that are split while they are in use (`split` in machines.toml), or with all other CPUs parked
//! (`stop`), leaves that are not (`refuse`: every change of a part is an error), or pages, of which there is nothing to
//! split.

mod collapse;
pub(crate) mod counts;
mod flips;
pub(crate) mod hand_over;
mod interrupt;
mod leaves;
mod readers;

use core::sync::atomic::{AtomicU64, Ordering};

use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::policy::SplitMode;
use granule::mm::kernel::set_memory::{SetMemoryError, Validity};
use granule::mm::layout;
use granule::smp::this_cpu;
use granule::trap::probe;
use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::esr::FaultStatus;
use granule_pgtable::Translation;

use crate::harness::Test;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// Pages of a block of 2 MiB.
const BLOCK_PAGES: u64 = 512;
/// Pages of a contiguous group.
const GROUP_PAGES: u64 = 16;
/// Blocks that are looked at for one that is whole.
const TRIES: usize = 320;

pub(crate) fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

/// Memory of the test's own, as the linear map shows it.
pub(crate) struct Block {
    physical: PhysAddr,
    order: u32,
}

impl Block {
    /// 2 MiB that a block translates, or a group of them; pages where the linear map is made of pages.
    pub(crate) fn fresh(t: &mut Test) -> Option<Self> {
        let large = ["split", "stop", "refuse"].into_iter().any(|one| crate::harness::has(one) == Some(true));
        let found = Self::find(0, if large { |leaf| matches!(leaf >> 20, 2 | 32) } else { |leaf| leaf == PAGE });
        t.check("a block that is not split", found.is_some());
        found
    }

    /// A run of 2^`order` blocks in leaves of a size that `is_wanted`. The boot CPU's to call.
    pub(crate) fn find(order: u32, is_wanted: fn(u64) -> bool) -> Option<Self> {
        /// The blocks that are not wanted: not on the stack, which has no room for them.
        static OTHERS: [AtomicU64; TRIES] = [const { AtomicU64::new(0) }; TRIES];
        let frames = &granule::kernel().frames;
        let mut found = None;
        let mut others = 0;
        while others < TRIES
            && let Ok(physical) = frames.alloc_blocks(this_cpu(), order)
        {
            let block = Self { physical, order };
            if block.translation(0).is_some_and(|translation| is_wanted(translation.leaf_size)) {
                found = Some(block);
                break;
            }
            OTHERS[others].store(physical.0, Ordering::Relaxed);
            others += 1;
        }
        for other in &OTHERS[..others] {
            frames.free_blocks(this_cpu(), PhysAddr(other.load(Ordering::Relaxed)), order);
        }
        found
    }

    /// The address of a page.
    pub(crate) fn page(&self, page: u64) -> VirtAddr {
        layout::linear(self.physical) + page * PAGE
    }

    /// The leaf that translates a page, if one does.
    pub(crate) fn translation(&self, page: u64) -> Option<Translation> {
        space().tables().translate(self.page(page))
    }

    /// Gives the memory back, with every page valid.
    pub(crate) fn free(self, t: &mut Test) {
        let pages = BLOCK_PAGES << self.order;
        t.ok("all valid", space().set_memory_valid(self.page(0), pages, Validity::Valid));
        granule::kernel().frames.free_blocks(this_cpu(), self.physical, self.order);
    }
}

/// Whether a change of a part of a large leaf is an error here.
pub(crate) fn is_refused(block: &Block) -> bool {
    block.translation(0).is_some_and(|found| found.leaf_size != PAGE) && space().policy().split == SplitMode::Refuse
}

/// Takes pages away from the hardware, on a CPU whose own they are.
fn make_invalid(page: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
    space().set_memory_valid(page, pages, Validity::Invalid)
}

/// Gives them back.
fn make_valid(page: VirtAddr, pages: u64) -> Result<(), SetMemoryError> {
    space().set_memory_valid(page, pages, Validity::Valid)
}

/// Whether this CPU reads a page.
fn is_readable(page: VirtAddr) -> bool {
    probe::read::<u64>(page).is_ok()
}

/// Whether this CPU is refused a page, by a translation that is not there.
fn faults(page: VirtAddr) -> bool {
    let fault = probe::read::<u64>(page).err();
    fault.and_then(|fault| fault.syndrome.abort()).is_some_and(|abort| abort.status == FaultStatus::Translation)
}
