//! `set_direct_map_*`: pages of the linear map that go and come back, without an invalidation of their own.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use granule::branches;
use granule::iommu::{self, Direction, DmaError, DmaMask};
use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::image;
use granule::mm::kernel::set_memory::{SetMemoryError, Validity};
use granule::mm::kernel::vmalloc::VmallocError;
use granule::mm::layout;
use granule::mm::maintenance::{self, Counts, MaintenanceOp};
use granule::smp::this_cpu;
use granule::trap::probe;
use granule_arch::addr::{PAGE, PhysAddr, PhysRange, VirtAddr};
use granule_arch::esr::FaultStatus;
use granule_pgtable::PageRange;

use crate::harness::{Test, target_test};
use crate::split::Block;

/// The frame of each block that is tried: no end of a contiguous group.
const FRAME: u64 = 21;

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

fn is_writable(page: VirtAddr) -> bool {
    // SAFETY: a page of the test's own, or one that refuses.
    unsafe { probe::write(page, 0x5a5a_u64) }.is_ok()
}

fn faults(page: VirtAddr, status: FaultStatus) -> bool {
    // SAFETY: as above.
    let fault = unsafe { probe::write(page, 0xa5a5_u64) }.err();
    fault.and_then(|fault| fault.syndrome.abort()).is_some_and(|abort| abort.status == status)
}

/// Maintenance is counted until this is dropped.
///
/// A switch of the counting patches the kernel's text by a page that it maps for that, and invalidates. QEMU makes the
/// TLB of a CPU for pages of 1 KiB on all its machines but `virt`, and takes a larger page there for a block: an
/// invalidation of one takes all that the TLB holds. So counting is not switched between two looks at a page.
struct Counting {
    was_on: bool,
}

impl Counting {
    fn start() -> Self {
        let was_on = maintenance::is_counting();
        branches::set_counting(granule::kernel(), true);
        Self { was_on }
    }

    /// The maintenance that `call` issues on this CPU.
    fn issued(&self, call: impl FnOnce()) -> Counts {
        let before = maintenance::counts(this_cpu());
        call();
        maintenance::counts(this_cpu()) - before
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        branches::set_counting(granule::kernel(), self.was_on);
    }
}

/// A frame with its page, of a block of the test's own.
fn frame_of(block: &Block) -> Option<(PhysAddr, VirtAddr)> {
    let frame = block.translation(FRAME)?.physical;
    Some((frame, layout::linear(frame)))
}

/// Makes a page invalid, and returns whether its cached translation is still used.
fn stays_in_use(t: &mut Test, counting: &Counting, frame: PhysAddr, page: VirtAddr) -> bool {
    // These calls split the block, so a later split invalidates nothing.
    t.ok("made invalid", space().set_memory_valid(page, 1, Validity::Invalid));
    t.ok("made valid", space().set_memory_valid(page, 1, Validity::Valid));
    t.check("written, and cached", is_writable(page) && space().kernel_page_present(frame));

    let mut result = Ok(());
    let counts = counting.issued(|| result = space().set_direct_map_invalid_noflush(frame));
    t.equal("made invalid", result, Ok(()));
    t.equal("nothing is issued", counts, Counts::default());
    let stale = is_writable(page);
    t.check("not present by the tables", !space().kernel_page_present(frame));
    if !stale {
        t.ok("put back", space().set_direct_map_default_noflush(frame));
    }
    stale
}

// The stale translation is seen, then invalidated, then seen gone.
target_test!(an_invalid_page_is_used_until_it_is_flushed, needs("alias"));
fn an_invalid_page_is_used_until_it_is_flushed(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let Some((frame, page)) = frame_of(&block) else { return };
    // An invalidation by another CPU in between, in a block that this one has used, takes all that an emulated TLB
    // holds: then the next page shows it. On a slow host QEMU makes its TLBs small, and most entries give way at once.
    let mut pages = (0..256).map(|index| index * PAGE).map(|offset| (frame + offset, page + offset));
    let counting = Counting::start();
    let Some((frame, page)) = pages.find(|&(frame, page)| stays_in_use(t, &counting, frame, page)) else {
        t.check("stale: written all the same", false);
        block.free(t);
        return;
    };
    let Some(range) = t.ok("the range", PageRange::from_pages(page, 1)) else { return };
    space().flush_kernel_range(range);
    t.check("it faults", faults(page, FaultStatus::Translation));
    t.check("its neighbours do not", is_writable(page + PAGE) && is_writable(page - PAGE));

    let mut result = Ok(());
    let counts = counting.issued(|| result = space().set_direct_map_default_noflush(frame));
    t.equal("put back", result, Ok(()));
    t.equal("DSB, ISB, TLBI", [counts.of(MaintenanceOp::Dsb), counts.of(MaintenanceOp::Isb), counts.tlbi()], [1, 1, 0]);
    t.check("written again", is_writable(page) && space().kernel_page_present(frame));
    block.free(t);
}

target_test!(the_default_is_valid_and_writable_and_never_executable, needs("alias"));
fn the_default_is_valid_and_writable_and_never_executable(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let Some((frame, page)) = frame_of(&block) else { return };
    t.ok("many are taken out", space().set_direct_map_valid_noflush(frame, 3, Validity::Invalid));
    let Some(range) = t.ok("the range", PageRange::from_pages(page, 3)) else { return };
    space().flush_kernel_range(range);
    for index in 0..3 {
        t.check("away", faults(page + index * PAGE, FaultStatus::Translation));
        t.ok("one by one back", space().set_direct_map_default_noflush(frame + index * PAGE));
        t.check("there", is_writable(page + index * PAGE));
    }
    // SAFETY: if it can be executed the test is about to fail.
    let fault = unsafe { probe::execute(page) }.err();
    let status = fault.and_then(|fault| fault.syndrome.abort()).map(|abort| abort.status);
    t.equal("not executable", status, Some(FaultStatus::Permission));
    block.free(t);
}

target_test!(the_alias_of_code_stays_read_only, needs("alias"));
fn the_alias_of_code_stays_read_only(t: &mut Test) {
    let cpu = this_cpu();
    let Some(area) = t.ok("an area", space().vmalloc(cpu, 1)) else { return };
    t.ok("made code", space().set_memory_rox(area.start(), 1));
    for (of, code) in [("the area", area.start()), ("the kernel", image::start())] {
        let Some(frame) = space().tables().translate(code).map(|found| found.physical) else { continue };
        let page = layout::linear(frame);
        let refused = Err(SetMemoryError::ReadOnly(page));
        t.equal(of, space().set_direct_map_default_noflush(frame), refused);
        t.ok("made invalid", space().set_memory_valid(page, 1, Validity::Invalid));
        t.equal("invalid", space().set_direct_map_default_noflush(frame), refused);
        t.check("not there", faults(page, FaultStatus::Translation));
        t.ok("made valid", space().set_direct_map_valid_noflush(frame, 1, Validity::Valid));
        t.check("read-only", faults(page, FaultStatus::Permission));
        let registers = PhysRange::from_size(frame, PAGE);
        let mapped = registers.map(|registers| space().map_device(cpu, registers));
        t.equal("no registers", mapped, Some(Err(VmallocError::NotRegisters(frame))));
    }
    space().vfree(cpu, area);
}

target_test!(where_the_linear_map_is_not_managed_it_stays_as_it_is, machines("refuse"));
fn where_the_linear_map_is_not_managed_it_stays_as_it_is(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let Some((frame, page)) = frame_of(&block) else { return };
    t.equal("success", space().set_direct_map_invalid_noflush(frame), Ok(()));
    t.equal("success", space().set_direct_map_valid_noflush(frame, 5, Validity::Invalid), Ok(()));
    let Some(range) = t.ok("the range", PageRange::from_pages(page, 5)) else { return };
    space().flush_kernel_range(range);
    t.check("and nothing done", is_writable(page) && space().kernel_page_present(frame));
    t.equal("success", space().set_direct_map_default_noflush(frame), Ok(()));
    block.free(t);
}

// Caches are maintained by the linear map: a page that it does not show is refused, and left alone at the end.
target_test!(memory_that_the_linear_map_does_not_show_is_none_of_an_uncached_device, needs("alias"));
fn memory_that_the_linear_map_does_not_show_is_none_of_an_uncached_device(t: &mut Test) {
    const PAGES: usize = 3;
    const BYTES: usize = PAGES * PAGE as usize;
    let Some(block) = Block::fresh(t) else { return };
    let Some((frame, page)) = frame_of(&block) else { return };
    let cpu = this_cpu();
    let Some(device) = t.ok("attached", iommu::attach(cpu, None, DmaMask::ALL)) else { return };
    let (device, first) = (device.without_caches(), PhysAddr(frame.0 - PAGE));
    let map = |start| device.map(cpu, start, BYTES, Direction::Both);

    let Some(address) = t.ok("mapped", map(first)) else { return };
    t.ok("made invalid", space().set_memory_valid(page, 1, Validity::Invalid));
    device.unmap(cpu, address, BYTES);
    t.equal("refused where it is invalid", map(first), Err(DmaError::NotShown(frame)));
    t.ok("made valid", space().set_memory_valid(page, 1, Validity::Valid));
    t.ok("mapped again", map(first));
    device.unmap(cpu, address, BYTES);

    let end = granule::kernel().platform.memory.iter().map(|bank| bank.end()).max();
    let beyond = end.map(|end| map(PhysAddr(end.0 - PAGE)));
    t.check("refused beyond memory", matches!(beyond, Some(Err(DmaError::NotShown(_)))));
    block.free(t);
}
