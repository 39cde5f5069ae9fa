//! Looks the kernel over after each test: what a test leaves behind fails it.
//!
//! A test that passes and leaves an interrupt masked or a frame taken has broken every test behind it, which would
//! then fail far from the cause. What can be put right is, so that the next test starts sound.

use granule::chip::its;
use granule::linux::process;
use granule::mm::heap;
use granule::mm::kernel::area::AreaKind;
use granule::smp::{self, CpuSet, this_cpu};
use granule::{iommu, sched};
use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_arch::interrupts;
use granule_pgtable::PageRange;

/// The kernel's half of the addresses.
const UPPER_HALF: VirtAddr = VirtAddr(0xffff_0000_0000_0000);

/// What must be the same before a test and after it.
pub(crate) struct Snapshot {
    /// Frames in use, without those that the kernel keeps when their users go: tables, pools, the heap's pages.
    frames: usize,
    /// Objects on the heap.
    allocations: usize,
    areas: usize,
    /// Spaces of programs, areas in them, and shared objects.
    spaces: [usize; 3],
    cpus: CpuSet,
}

impl Snapshot {
    /// The kernel as it is now.
    pub(crate) fn take() -> Self {
        let kernel = granule::kernel();
        let heap = heap::kernel_heap().stats();
        sched::trim(this_cpu());
        let programs = sched::kept_frames() + kernel.spaces.kept_frames() + process::kept_frames();
        let devices = its::kept_frames() + iommu::kept_frames();
        let kept = kernel.space.kept_frames() + devices + programs + heap.total / PAGE_SIZE;
        let mut areas = 0;
        // Registers of devices are mapped for ever, by their first user.
        kernel.space.for_each_area(|area| areas += usize::from(area.kind() != AreaKind::Device));
        Self {
            frames: kernel.frames.stats().used - kept,
            allocations: heap.allocations,
            areas,
            spaces: kernel.spaces.counts(),
            cpus: smp::online(),
        }
    }

    /// Prints what is wrong, or differs from before; returns how many findings there are.
    pub(crate) fn compare(before: &Self) -> u32 {
        let mut findings = state_of_this_cpu();
        let after = Self::take();
        let mut compare = |what: &str, before: usize, after: usize| {
            if before != after {
                findings += 1;
                granule::println!("audit: {before} {what} before the test, {after} after it");
            }
        };
        compare("frames in use", before.frames, after.frames);
        compare("objects on the heap", before.allocations, after.allocations);
        compare("vmalloc areas", before.areas, after.areas);
        for (what, index) in [("spaces", 0), ("areas of spaces", 1), ("shared objects", 2)] {
            compare(what, before.spaces[index], after.spaces[index]);
        }
        compare("CPUs", before.cpus.iter().count(), after.cpus.iter().count());
        findings + writable_and_executable()
    }
}

/// What must hold between tests whatever was before them.
fn state_of_this_cpu() -> u32 {
    let cpu = this_cpu();
    let mut findings = 0;
    let mut find = |what: &str, wrong: bool| {
        if wrong {
            findings += 1;
            granule::println!("audit: the test left {what}");
        }
    };
    let masked = !interrupts::state().irqs_enabled();
    find("interrupts masked", masked);
    // Debug builds keep the ranks of the locks that are held.
    find("a lock held", cpu.held_ranks.bits() != 0);
    find("an interrupt unfinished", cpu.trap.is_in_handler());
    find("a lockless walk open", cpu.walk.is_open());
    if masked {
        interrupts::enable();
    }
    findings
}

/// Leaves that are writable and executable: never one, whatever a test does.
fn writable_and_executable() -> u32 {
    let Ok(range) = PageRange::new(UPPER_HALF, UPPER_HALF.0.wrapping_neg()) else {
        granule::println!("audit: the upper half is no range");
        return 1;
    };
    let mut findings = 0;
    granule::kernel().space.tables().dump(range, |extent| {
        if extent.is_writable() && extent.is_executable() {
            findings += 1;
            granule::println!("audit: {} bytes from {} on are writable and executable", extent.size, extent.start);
        }
    });
    findings
}
