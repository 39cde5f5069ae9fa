//! `set_memory_*` against the hardware: what each permission refuses, on every CPU, as soon as the call has returned.
//!
//! Each refusal has its control: the access works before. One test shows that the TLBs matter at all, by a change whose
//! invalidation is left out. All pages are mapped by pages, far from any block, because QEMU flushes too much where
//! blocks are near.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use granule::branches;
use granule::chip::timer;
use granule::mm::kernel::KernelSpace;
use granule::mm::kernel::mmu::{LinearView, Metal};
use granule::mm::kernel::set_memory::{SetMemoryError, Validity};
use granule::mm::kernel::vmalloc::KernelArea;
use granule::mm::layout;
use granule::mm::maintenance::{self, Counts, MaintenanceOp};
use granule::mm::tlb::KernelTlb;
use granule::smp::{self, Cpu, CpuSet, this_cpu};
use granule::trap::{ProbeFault, probe};
use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::esr::{Access, FaultStatus};
use granule_arch::wait;
use granule_pgtable::{Change, Flush, Lazy, PageRange, Pending, WholeLeaves};

use crate::harness::{Test, patience, target_test};

/// `ret`.
const RET: u32 = 0xd65f_03c0;

fn space() -> &'static KernelSpace {
    &granule::kernel().space
}

/// An area of `pages` pages, each of which has been written through every CPU's TLB.
fn area(t: &mut Test, pages: u64) -> Option<KernelArea> {
    let area = t.ok("vmalloc", space().vmalloc(this_cpu(), pages))?;
    for page in 0..pages {
        smp::call(
            smp::online(),
            |_, address| {
                // SAFETY: the test's own page.
                let _ = unsafe { probe::write(VirtAddr(address as u64), 0u64) };
            },
            (area.start() + page * PAGE).0 as usize,
        );
    }
    Some(area)
}

fn write(address: VirtAddr) -> Result<(), ProbeFault> {
    // SAFETY: a page of this test, or one that refuses.
    unsafe { probe::write(address, 0x5a5a_u64) }
}

fn execute(address: VirtAddr) -> Result<(), ProbeFault> {
    // SAFETY: a page that holds `ret`, or one that refuses.
    unsafe { probe::execute(address) }
}

/// Status, access and address of a fault.
fn parts(fault: ProbeFault) -> Option<(FaultStatus, Access, VirtAddr)> {
    fault.syndrome.abort().map(|abort| (abort.status, abort.access, fault.address))
}

#[track_caller]
fn refused<T>(t: &mut Test, result: Result<T, ProbeFault>, status: FaultStatus, access: Access, address: VirtAddr) {
    t.equal("the fault", result.err().and_then(parts), Some((status, access, address)));
}

target_test!(read_only_pages_refuse_writes_and_only_they);
fn read_only_pages_refuse_writes_and_only_they(t: &mut Test) {
    let Some(area) = area(t, 5) else { return };
    let page = |index: u64| area.start() + index * PAGE;
    t.equal("written before", write(page(2)), Ok(()));
    t.ok("set_memory_ro", space().set_memory_ro(page(1), 3));
    for index in 0..5 {
        let last_word = page(index) + PAGE - 8;
        if (1..4).contains(&index) {
            refused(t, write(page(index)), FaultStatus::Permission, Access::Write, page(index));
            refused(t, write(last_word), FaultStatus::Permission, Access::Write, last_word);
        } else {
            t.equal("a neighbour is written", write(last_word), Ok(()));
        }
    }
    t.equal("reads go on", probe::read::<u64>(page(2)), Ok(0x5a5a));
    t.ok("set_memory_rw", space().set_memory_rw(page(1), 3));
    t.equal("written again", write(page(2)), Ok(()));
    space().vfree(this_cpu(), area);
}

/// Where the linear map shows the frame behind a page.
fn alias(page: VirtAddr) -> VirtAddr {
    layout::linear(space().tables().translate(page).map_or(PhysAddr(0), |found| found.physical))
}

// The other way round, so that the test below shows something.
target_test!(what_is_read_only_is_written_by_its_alias_with_rodata_noalias, machines("refuse"));
fn what_is_read_only_is_written_by_its_alias_with_rodata_noalias(t: &mut Test) {
    let Some(area) = area(t, 1) else { return };
    t.ok("set_memory_ro", space().set_memory_ro(area.start(), 1));
    refused(t, write(area.start()), FaultStatus::Permission, Access::Write, area.start());
    t.equal("written", write(alias(area.start())), Ok(()));
    space().vfree(this_cpu(), area);
}

target_test!(what_is_read_only_refuses_writes_by_its_alias_as_well, needs("alias"));
fn what_is_read_only_refuses_writes_by_its_alias_as_well(t: &mut Test) {
    let Some(area) = area(t, 5) else { return };
    let page = |index: u64| area.start() + index * PAGE;
    t.equal("written before", write(alias(page(2))), Ok(()));
    t.ok("set_memory_ro", space().set_memory_ro(page(1), 3));
    for index in 0..5 {
        let last_word = alias(page(index)) + PAGE - 8;
        if (1..4).contains(&index) {
            refused(t, write(last_word), FaultStatus::Permission, Access::Write, last_word);
        } else {
            t.equal("the alias of a neighbour is written", write(last_word), Ok(()));
        }
    }
    t.equal("reads go on", probe::read::<u64>(alias(page(2))), Ok(0x5a5a));
    t.ok("set_memory_rw", space().set_memory_rw(page(1), 2));
    t.equal("written again", write(alias(page(2))), Ok(()));
    let left = alias(page(3));
    refused(t, write(left), FaultStatus::Permission, Access::Write, left);
    space().vfree(this_cpu(), area);
    let freed = space().tables().translate(left);
    t.check("what is freed is writable", freed.is_some_and(|found| found.descriptor.is_writable()));
}

target_test!(code_runs_where_it_may_and_nowhere_else);
fn code_runs_where_it_may_and_nowhere_else(t: &mut Test) {
    let Some(area) = area(t, 2) else { return };
    let code = area.start();
    for page in [code, code + PAGE] {
        // The calls that make the page executable make the instruction visible to fetches as well.
        // SAFETY: the test's own pages, writable now.
        t.equal("the instruction is written", unsafe { probe::write(page, RET) }, Ok(()));
    }
    refused(t, execute(code), FaultStatus::Permission, Access::Fetch, code);
    t.ok("set_memory_ro", space().set_memory_ro(code, 1));
    t.ok("set_memory_x", space().set_memory_x(code, 1));
    t.equal("it runs", execute(code), Ok(()));
    refused(t, execute(code + PAGE), FaultStatus::Permission, Access::Fetch, code + PAGE);
    t.ok("set_memory_rox", space().set_memory_rox(code + PAGE, 1));
    t.equal("so does the other", execute(code + PAGE), Ok(()));
    refused(t, write(code + PAGE), FaultStatus::Permission, Access::Write, code + PAGE);
    t.ok("made invalid", space().set_memory_valid(code, 1, Validity::Invalid));
    refused(t, execute(code), FaultStatus::Translation, Access::Fetch, code);
    t.ok("made valid", space().set_memory_valid(code, 1, Validity::Valid));
    t.equal("and runs again", execute(code), Ok(()));
    t.ok("set_memory_nx", space().set_memory_nx(code, 2));
    refused(t, execute(code), FaultStatus::Permission, Access::Fetch, code);
    t.ok("set_memory_rw", space().set_memory_rw(code, 2));
    t.equal("and is data again", write(code), Ok(()));
    space().vfree(this_cpu(), area);
}

/// Pages that become invalid one after the other: an emulator's TLB may have lost one of them for another reason.
const INVALID: u64 = 8;

target_test!(invalid_pages_fault_and_remember);
fn invalid_pages_fault_and_remember(t: &mut Test) {
    let Some(area) = area(t, INVALID + 2) else { return };
    let page = |index| area.start() + (1 + index) * PAGE;
    let before = space().tables().translate(page(0));
    t.equal("written", write(page(0)), Ok(()));
    for page in (0..INVALID).map(page) {
        t.ok("made invalid", space().set_memory_valid(page, 1, Validity::Invalid));
        refused(t, probe::read::<u64>(page), FaultStatus::Translation, Access::Read, page);
        refused(t, write(page), FaultStatus::Translation, Access::Write, page);
        t.equal("a neighbour works", write(page + PAGE), Ok(()));
    }
    t.ok("read-only meanwhile", space().set_memory_ro(page(0), INVALID));
    t.ok("writable meanwhile", space().set_memory_rw(page(0), INVALID));
    t.ok("made valid", space().set_memory_valid(page(0), INVALID, Validity::Valid));
    t.equal("the entry is what it was", space().tables().translate(page(0)), before);
    for page in (0..INVALID).map(page) {
        t.equal("and so is the page", probe::read::<u64>(page), Ok(0x5a5a));
    }
    space().vfree(this_cpu(), area);
}

target_test!(wrong_ranges_are_refused_and_change_nothing);
fn wrong_ranges_are_refused_and_change_nothing(t: &mut Test) {
    let (Some(first), Some(second)) = (area(t, 3), area(t, 2)) else { return };
    let (start, guard) = (first.start(), first.start() + 3 * PAGE);
    let stack = VirtAddr(this_cpu().trap().stack_top());
    let image = VirtAddr::from_ptr((wrong_ranges_are_refused_and_change_nothing as fn(&mut Test)) as *const ());
    let refusals = [
        ("into the guard page", start, 4, SetMemoryError::GuardPage { guard, area: start }),
        ("over the guard page", start, 6, SetMemoryError::GuardPage { guard, area: start }),
        ("the guard page", guard, 1, SetMemoryError::GuardPage { guard, area: start }),
        ("the guard page, no pages", guard, 0, SetMemoryError::GuardPage { guard, area: start }),
        ("the window's first page", layout::VMALLOC_START, 1, SetMemoryError::Hole(layout::VMALLOC_START)),
        ("the image", image.align_down(PAGE), 1, SetMemoryError::OutsideWindow(image.align_down(PAGE))),
        ("the linear map", layout::LINEAR_BASE, 0, SetMemoryError::OutsideWindow(layout::LINEAR_BASE)),
        ("EL0's half", VirtAddr(0x1000), 1, SetMemoryError::OutsideWindow(VirtAddr(0x1000))),
        ("out of the window", layout::VMALLOC_END - PAGE, 2, SetMemoryError::OutsideWindow(layout::VMALLOC_END)),
    ];
    for (what, address, pages, why) in refusals {
        t.equal(what, space().set_memory_ro(address, pages), Err(why));
    }
    for (what, address, pages) in [
        ("not aligned", start + 8, 1),
        ("not aligned, no pages", start + 8, 0),
        ("round the end of the address space", start, u64::MAX / PAGE),
        ("more bytes than there are", start, u64::MAX),
    ] {
        let result = space().set_memory_ro(address, pages);
        t.check(what, matches!(result, Err(SetMemoryError::Range(_))));
    }
    t.equal("W+X", space().set_memory_x(start, 3), Err(SetMemoryError::WritableAndExecutable(start)));
    t.ok("read-only, all but one", space().set_memory_ro(start, 2));
    let last = start + 2 * PAGE;
    t.equal("W+X in the last page", space().set_memory_x(start, 3), Err(SetMemoryError::WritableAndExecutable(last)));
    t.ok("executable, the first", space().set_memory_x(start, 1));
    t.equal("X+W", space().set_memory_rw(start, 3), Err(SetMemoryError::WritableAndExecutable(start)));
    if this_cpu().id.0 == 0 && stack >= layout::VMALLOC_START {
        let page = stack - PAGE;
        t.equal("a stack", space().set_memory_ro(page, 1), Err(SetMemoryError::NotVmalloc(page)));
    }
    t.equal("the second area is as it was", write(second.start()), Ok(()));
    t.equal("so is the last page", write(last), Ok(()));
    refused(t, write(start + PAGE), FaultStatus::Permission, Access::Write, start + PAGE);
    t.equal("no pages in an area", space().set_memory_ro(last, 0), Ok(()));
    t.equal("and nothing came of it", write(last), Ok(()));
    space().vfree(this_cpu(), first);
    space().vfree(this_cpu(), second);
}

// The control of everything else here: without the invalidation the old permission stays, with it it is gone.
target_test!(a_stale_permission_lasts_until_it_is_invalidated);
fn a_stale_permission_lasts_until_it_is_invalidated(t: &mut Test) {
    // Other pages that are used in between may need an entry's place in an emulated TLB.
    let shows = (0..256).any(|_| a_stale_permission_is_used(t));
    // With debug assertions more pages are touched in between than the emulated TLB may have entries.
    t.check("stale: written all the same", shows || cfg!(debug_assertions));
}

/// Whether a page is still written that was made read-only without an invalidation. With it, it is not.
fn a_stale_permission_is_used(t: &mut Test) -> bool {
    let Some(area) = area(t, 2) else { return false };
    let page = area.start();
    let mmu = Metal(LinearView {});
    let lazy = Lazy::new(&mmu);
    let Some(range) = t.ok("the range", PageRange::from_pages(page, 1)) else { return false };
    t.equal("cached as writable", write(page), Ok(()));
    let Some(flush) =
        t.ok("made read-only", space().tables().get().update(&lazy, range, Change::READ_ONLY, WholeLeaves))
    else {
        return false;
    };
    let is_stale = write(page).is_ok();
    let missing = flush.is_none();
    lazy.invalidate(&KernelTlb, [flush]);
    t.check("something was to be invalidated", !missing);
    refused(t, write(page), FaultStatus::Permission, Access::Write, page);

    let again = space().tables().get().update(&lazy, range, Change::READ_ONLY, WholeLeaves);
    t.equal("nothing is left to invalidate", again, Ok(Flush::NONE));
    let valid = space().tables().get().update(&lazy, range, Change::VALID, WholeLeaves);
    t.equal("nor where entries only become valid", valid, Ok(Flush::NONE));
    drop(lazy);
    space().vfree(this_cpu(), area);
    is_stale
}

static REFUSALS: AtomicU32 = AtomicU32::new(0);

/// How many of `cpus` were refused a write to `page` as they must be.
fn refusals_on(cpus: CpuSet, page: VirtAddr) -> u32 {
    REFUSALS.store(0, Ordering::Relaxed);
    smp::call(
        cpus,
        |_, address| {
            let address = VirtAddr(address as u64);
            let expected = Some((FaultStatus::Permission, Access::Write, address));
            if write(address).err().and_then(parts) == expected {
                REFUSALS.fetch_add(1, Ordering::Relaxed);
            }
        },
        page.0 as usize,
    );
    REFUSALS.load(Ordering::Relaxed)
}

target_test!(other_cpus_refuse_as_soon_as_the_call_returns, needs("smp"));
fn other_cpus_refuse_as_soon_as_the_call_returns(t: &mut Test) {
    let Some(area) = area(t, 64) else { return };
    let others = smp::online().minus(CpuSet::EMPTY.with(this_cpu().id));
    let count = others.iter().count() as u32;
    for index in 0..64 {
        let page = area.start() + index * PAGE;
        if index % 8 == 0 {
            t.equal("none refuses before", refusals_on(others, page), 0);
        }
        t.ok("set_memory_ro", space().set_memory_ro(page, 1));
        t.equal("all refuse after", refusals_on(others, page), count);
    }
    t.ok("writable, all", space().set_memory_rw(area.start(), 64));
    t.equal("none refuses again", refusals_on(others, area.start() + 63 * PAGE), 0);
    t.ok("read-only, all in one call", space().set_memory_ro(area.start(), 64));
    for index in [0, 1, 31, 62, 63] {
        t.equal("all refuse, any page", refusals_on(others, area.start() + index * PAGE), count);
    }
    space().vfree(this_cpu(), area);
}

// Interrupt handlers may call it: on the other CPUs this runs inside one, at the same time, each on pages of its own.
target_test!(all_cpus_change_their_own_pages_at_once, limit(30));
fn all_cpus_change_their_own_pages_at_once(t: &mut Test) {
    const ROUNDS: u64 = 200;
    static WRONG: AtomicU64 = AtomicU64::new(0);
    WRONG.store(0, Ordering::Relaxed);
    let cpus = smp::online().iter().count() as u64;
    let Some(area) = area(t, 2 * cpus) else { return };
    // A split of leaves of the pages' alias takes a table, and a handler has only the frames that its CPU has at hand.
    t.ok("split before", space().set_memory_ro(area.start(), 2 * cpus));
    t.ok("writable", space().set_memory_rw(area.start(), 2 * cpus));
    smp::call(
        smp::online(),
        |cpu, start| {
            // Neighbours share cache lines of the table, not entries.
            let page = VirtAddr(start as u64) + 2 * PAGE * u64::from(cpu.id.0);
            for _ in 0..ROUNDS {
                let read_only = space().set_memory_ro(page, 2).is_ok() && write(page + PAGE).is_err();
                let writable = space().set_memory_rw(page, 2).is_ok() && write(page + PAGE).is_ok();
                if !(read_only && writable) {
                    WRONG.fetch_add(1, Ordering::Relaxed);
                }
            }
        },
        area.start().0 as usize,
    );
    t.equal("rounds that went wrong", WRONG.load(Ordering::Relaxed), 0);
    space().vfree(this_cpu(), area);
}

/// The page that the interrupt handler changes, what came of it, and how often.
static HANDLERS_PAGE: AtomicU64 = AtomicU64::new(0);
static HANDLED: AtomicU32 = AtomicU32::new(0);
static MISHANDLED: AtomicU32 = AtomicU32::new(0);

/// Takes the write permission of the page away and gives it back, and looks each time.
fn change_in_a_handler(_cpu: &Cpu) {
    let page = VirtAddr(HANDLERS_PAGE.load(Ordering::Relaxed));
    let read_only = space().set_memory_ro(page, 1).is_ok() && write(page).is_err();
    let invalid = space().set_memory_valid(page, 1, Validity::Invalid).is_ok() && probe::read::<u64>(page).is_err();
    let valid = space().set_memory_valid(page, 1, Validity::Valid).is_ok() && probe::read::<u64>(page).is_ok();
    let writable = space().set_memory_rw(page, 1).is_ok() && write(page).is_ok();
    MISHANDLED.fetch_add(u32::from(!(read_only && invalid && valid && writable)), Ordering::Relaxed);
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

/// Lets an interrupt come in, and waits for it.
fn interrupt_now(t: &mut Test) {
    let before = HANDLED.load(Ordering::Relaxed);
    timer::set_deadline(this_cpu(), Duration::ZERO, change_in_a_handler);
    let patience = patience();
    while HANDLED.load(Ordering::Relaxed) == before && !patience.has_passed() {
        wait::relax();
    }
    t.equal("interrupts", HANDLED.load(Ordering::Relaxed), before + 1);
}

target_test!(an_interrupt_inside_an_open_section_changes_pages_of_its_own);
fn an_interrupt_inside_an_open_section_changes_pages_of_its_own(t: &mut Test) {
    let Some(area) = area(t, 4) else { return };
    let page = area.start();
    HANDLERS_PAGE.store((page + 3 * PAGE).0, Ordering::Relaxed);
    MISHANDLED.store(0, Ordering::Relaxed);
    let mmu = Metal(LinearView {});
    let Some(range) = t.ok("the range", PageRange::from_pages(page, 2)) else { return };
    // A handler that splits a leaf of the alias takes the table from this CPU's magazine, which may be empty.
    let (frames, cpu) = (granule::kernel().frames, this_cpu());
    let Some(frame) = t.ok("a frame", frames.alloc(cpu)) else { return };
    frames.free(cpu, frame);

    t.ok("made invalid", space().set_memory_valid(page, 2, Validity::Invalid));
    {
        let lazy = Lazy::new(&mmu);
        t.equal("made valid", space().tables().get().update(&lazy, range, Change::VALID, WholeLeaves), Ok(Flush::NONE));
        interrupt_now(t);
        t.equal("the handler has not paid for it", lazy.pending(), Pending::Barriers);
    }
    t.equal("valid", write(page), Ok(()));

    let lazy = Lazy::new(&mmu);
    let Some(flush) =
        t.ok("made read-only", space().tables().get().update(&lazy, range, Change::READ_ONLY, WholeLeaves))
    else {
        return;
    };
    interrupt_now(t);
    lazy.invalidate(&KernelTlb, [flush]);
    refused(t, write(page), FaultStatus::Permission, Access::Write, page);
    drop(lazy);
    t.equal("what went wrong in handlers", MISHANDLED.load(Ordering::Relaxed), 0);
    space().vfree(this_cpu(), area);
}

// Interrupts at any instruction of a call, by chance.
target_test!(interrupts_and_what_they_interrupt_change_pages_side_by_side, limit(30));
fn interrupts_and_what_they_interrupt_change_pages_side_by_side(t: &mut Test) {
    const ROUNDS: u32 = 300;
    let Some(area) = area(t, 4) else { return };
    let page = area.start();
    HANDLERS_PAGE.store((page + 3 * PAGE).0, Ordering::Relaxed);
    MISHANDLED.store(0, Ordering::Relaxed);
    // As above. The interrupted call may split leaves before the handler does, with tables from the same magazine.
    let (frames, cpu) = (&granule::kernel().frames, this_cpu());
    let taken: heapless::Vec<_, 8> = (0..8).filter_map(|_| t.ok("a frame", frames.alloc(cpu))).collect();
    taken.into_iter().for_each(|frame| frames.free(cpu, frame));
    let before = HANDLED.load(Ordering::Relaxed);
    let mut wrong = 0;
    for _ in 0..ROUNDS {
        let handled = HANDLED.load(Ordering::Relaxed);
        timer::set_deadline(this_cpu(), Duration::from_micros(t.random() % 50), change_in_a_handler);
        let patience = patience();
        while HANDLED.load(Ordering::Relaxed) == handled && !patience.has_passed() {
            let read_only = space().set_memory_ro(page, 2).is_ok() && write(page + PAGE).is_err();
            let writable = space().set_memory_rw(page, 2).is_ok() && write(page + PAGE).is_ok();
            wrong += u32::from(!(read_only && writable));
        }
    }
    t.equal("interrupts", HANDLED.load(Ordering::Relaxed) - before, ROUNDS);
    t.equal("what went wrong in handlers", MISHANDLED.load(Ordering::Relaxed), 0);
    t.equal("what went wrong around them", wrong, 0);
    space().vfree(this_cpu(), area);
}

// The branch sites are patched while the kernel runs.
target_test!(what_a_call_issues_is_counted_while_counting_is_on);
fn what_a_call_issues_is_counted_while_counting_is_on(t: &mut Test) {
    let Some(area) = area(t, 3) else { return };
    let cpu = this_cpu();
    let issued = |call: &dyn Fn()| {
        let before = maintenance::counts(cpu);
        call();
        maintenance::counts(cpu) - before
    };
    // Not about writing, so that the alias takes no part.
    t.ok("set_memory_rox", space().set_memory_rox(area.start(), 3));
    let data = || assert_eq!(space().set_memory_nx(area.start(), 3), Ok(()));
    let code = || assert_eq!(space().set_memory_x(area.start(), 3), Ok(()));
    let was_on = maintenance::is_counting();
    branches::set_counting(granule::kernel(), false);
    t.equal("off", issued(&data), Counts::default());
    code();
    branches::set_counting(granule::kernel(), true);
    let counted = issued(&data);
    let features = granule::kernel().features();
    let repeated = u64::from(features.repeat_tlbi.is_needed());
    t.equal("DSB", counted.of(MaintenanceOp::Dsb), 2 + repeated);
    t.equal("ISB", counted.of(MaintenanceOp::Isb), 1);
    t.equal("TLBI", counted.tlbi(), repeated + if features.cpus.tlb_range() { 2 } else { 3 });
    t.equal("nothing changed, nothing issued", issued(&data), Counts::default());
    code();
    branches::set_counting(granule::kernel(), was_on);
    t.equal("off again", issued(&data), if was_on { counted } else { Counts::default() });
    space().vfree(cpu, area);
}
