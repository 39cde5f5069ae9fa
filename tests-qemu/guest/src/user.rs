//! Threads at EL0, with programs of a few instructions: how they enter the kernel, make way, and keep what is theirs.
//!
//! This file handles a thread's exceptions itself ([`ENTRY`]): there are no processes here. A program gets its argument
//! in x0 and calls with the number in x8; see [`syscall`].

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::kernel;
use granule::linux::errno::Errno;
use granule::mm::space::{self, MapRequest, Placement, Populate, Sharing, SpaceRef};
use granule::sched::{
    self, NewThread, NewUserThread, Thread, ThreadRef, UserEntry, WaitQueue, Woken, Work, sleep_until,
};
use granule::smp::{self, CpuSet, this_cpu};
use granule::trap::TrapFrame;
use granule::uaccess;
use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_arch::esr::{Access, Class};

use crate::harness::{Test, patience, target_test, wait_until};
use crate::sched::wait_until_alone;

/// Where the programs are, at EL0.
const CODE: VirtAddr = VirtAddr(0x40_0000);
/// A page that may be written, at EL0; SP begins at its end.
const DATA: VirtAddr = VirtAddr(0x50_0000);
/// Nothing is mapped here.
const NOTHING: VirtAddr = VirtAddr(0x60_0000);

/// x0: what the program found out; the thread ends.
const FINISH: u64 = 0;
/// Returns x0 + x1.
const ADD: u64 = 1;
/// Lets others go first; returns 1 when all threads of the test have been started, 0 before.
const YIELD: u64 = 2;
/// Waits for nothing; returns 1 if a signal ended that.
const WAIT: u64 = 4;
/// Copies 8 bytes from x0 to x1, by the kernel; returns 0, or a negative error.
const COPY: u64 = 3;

global_asm!(
    r#"
    .pushsection .rodata.user_programs, "a", %progbits
    // Other units of code name these.
    .globl  user_programs_start, user_programs_end
    .globl  program_registers, program_load, program_store, program_loop, program_count, program_wait
    .globl  program_calls, program_state, program_own_page, program_copy, program_allowed
    .balign 8
user_programs_start:

    // Every register that a call must preserve, seen before and after a call, by sums of what is in them.
program_registers:
    mov     x9, sp
    mov     x10, #7
    .irp    r, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
    add     x10, x10, x10, lsl #3
    mov     x\r, x10
    .endr
    mov     x10, #7
    mov     x0, #40
    mov     x1, #2
    mov     x8, #{ADD}
    cmp     x1, #2                      // Z and C
    svc     #0
    b.ne    1f
    b.lo    1f
    cmp     x0, #42
    b.ne    1f
    cmp     x1, #2
    b.ne    1f
    cmp     x8, #{ADD}
    b.ne    1f
    mov     x0, sp
    cmp     x9, x0
    b.ne    1f
    .irp    r, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30
    add     x10, x10, x10, lsl #3
    cmp     x\r, x10
    b.ne    1f
    .endr
    mov     x0, #0
    mov     x8, #{FINISH}
    svc     #0
1:  mov     x0, #1
    mov     x8, #{FINISH}
    svc     #0

    // Loads from x0, and finishes with what it got.
program_load:
    ldr     x0, [x0]
    mov     x8, #{FINISH}
    svc     #0

    // Stores to x0, and finishes with 0.
program_store:
    str     x0, [x0]
    mov     x0, #0
    mov     x8, #{FINISH}
    svc     #0

    // For ever.
program_loop:
    b       program_loop

    // Adds to the word at x0 for ever.
program_count:
    ldr     x1, [x0]
    add     x1, x1, #1
    str     x1, [x0]
    b       program_count

    // Waits for nothing.
program_wait:
    mov     x8, #{WAIT}
    svc     #0
    b       program_wait

    // Calls x0 times and finishes.
program_calls:
    mov     x20, x0
    mov     x8, #{ADD}
1:  svc     #0
    subs    x20, x20, #1
    b.ne    1b
    mov     x0, #0
    mov     x8, #{FINISH}
    svc     #0

    // Floating point and TPIDR_EL0 of its own: x0 in all of them; finishes with how often one was another's.
program_state:
    mov     x20, x0
    mov     x21, #0
    mov     x22, #300
    msr     tpidr_el0, x20
    .arch_extension simd
    .irp    r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    dup     v\r\().2d, x20
    .endr
    .irp    r, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    dup     v\r\().2d, x20
    .endr
    and     x23, x20, #1
    lsl     x23, x23, #22               // FPCR.RMode
    msr     fpcr, x23
1:  mov     x24, #500                   // some time, to be interrupted in
2:  subs    x24, x24, #1
    b.ne    2b
    and     x0, x22, #7
    cbnz    x0, 3f
    mov     x8, #{YIELD}
    svc     #0
3:  mrs     x0, tpidr_el0
    cmp     x0, x20
    cinc    x21, x21, ne
    mrs     x0, fpcr
    cmp     x0, x23
    cinc    x21, x21, ne
    .irp    r, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    mov     x0, v\r\().d[1]
    cmp     x0, x20
    cinc    x21, x21, ne
    .endr
    .irp    r, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    mov     x0, v\r\().d[0]
    cmp     x0, x20
    cinc    x21, x21, ne
    .endr
    .arch_extension nosimd
    subs    x22, x22, #1
    b.ne    1b
    mov     x0, x21
    mov     x8, #{FINISH}
    svc     #0

    // Its argument in the data page, looked at again and again once all have started: finishes with how often another
    // was there.
program_own_page:
    mov     x20, x0
    mov     x21, #0
    mov     x22, #100
    mov     x23, #{DATA}
    str     x20, [x23]
1:  mov     x8, #{YIELD}
    svc     #0
    ldr     x1, [x23]
    cmp     x1, x20
    cinc    x21, x21, ne
    subs    x22, x22, x0
    b.ne    1b
    mov     x0, x21
    mov     x8, #{FINISH}
    svc     #0

    // Has the kernel copy from x0 to the data page, and finishes with what that returned.
program_copy:
    mov     x1, #{DATA}
    mov     x8, #{COPY}
    svc     #0
    mov     x8, #{FINISH}
    svc     #0

    // Instructions that EL0 may execute, then five that it may not: x0 counts those after which the program went on.
program_allowed:
    mov     x0, #{DATA}
    dc      zva, x0
    dc      cvau, x0
    ic      ivau, x0
    mrs     x1, ctr_el0
    mrs     x1, dczid_el0
    isb
    mrs     x1, cntvct_el0
    wfi
    mov     x0, #0
    mrs     x1, pmevcntr0_el0
    add     x0, x0, #1
    mrs     x1, cntpct_el0
    add     x0, x0, #1
    mrs     x1, sctlr_el1
    add     x0, x0, #1
    msr     daifset, #2
    add     x0, x0, #1
    udf     #0
    add     x0, x0, #1
    mov     x8, #{FINISH}
    svc     #0
user_programs_end:
    .popsection
    "#,
    FINISH = const FINISH,
    ADD = const ADD,
    YIELD = const YIELD,
    COPY = const COPY,
    WAIT = const WAIT,
    DATA = const DATA.0,
);

macro_rules! programs {
    ($($name:ident),*) => {
        unsafe extern "C" {
            $(static $name: u8;)*
        }
    };
}
programs!(
    user_programs_start,
    user_programs_end,
    program_registers,
    program_load,
    program_store,
    program_loop,
    program_count,
    program_wait,
    program_calls,
    program_state,
    program_own_page,
    program_copy,
    program_allowed
);

/// Where a program is, at EL0.
macro_rules! program {
    ($name:ident) => {
        CODE + ((&raw const $name).addr() - (&raw const user_programs_start).addr()) as u64
    };
}

/// Threads that have finished, what they found summed, and the last exception of one.
static STARTED: AtomicBool = AtomicBool::new(false);
static FINISHED: AtomicU32 = AtomicU32::new(0);
static FOUND: AtomicU64 = AtomicU64::new(0);
static SYNDROME: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);
static EXCEPTIONS: AtomicU32 = AtomicU32::new(0);

static ENTRY: UserEntry = UserEntry {
    syscall,
    fault,
    exception,
    late_tag_fault,
    signal,
    moved: |_, _| {},
    resolve,
    is_killed: |_| false,
    number: |_| 0,
};

extern "C" fn syscall(frame: &mut TrapFrame, _: &Thread) {
    let [x0, x1] = [frame.x[0], frame.x[1]];
    frame.x[0] = match frame.x[8] {
        FINISH => finish(x0),
        ADD => x0.wrapping_add(x1),
        YIELD => {
            sched::yield_now();
            STARTED.load(Ordering::Relaxed).into()
        }
        WAIT => {
            static NOTHING: WaitQueue<()> = WaitQueue::new();
            u64::from(NOTHING.lock().wait_until((), None) == Woken::Interrupted)
        }
        COPY => {
            let mut bytes = [0; 8];
            let copied = uaccess::copy_from_user(&mut bytes, VirtAddr(x0))
                .and_then(|()| uaccess::copy_to_user(VirtAddr(x1), &bytes));
            copied.map_or_else(|error| -(Errno::from(error) as i64) as u64, |()| 0)
        }
        _ => u64::MAX,
    };
}

/// Serves a fault, or puts 77 into x0 for the next instruction.
extern "C" fn fault(frame: &mut TrapFrame, thread: &Thread) -> bool {
    let served = resolve(thread, frame.fault_address(), Access::Write);
    if !served {
        frame.x[0] = 77;
    }
    served
}

/// Notes an exception and continues after its instruction.
fn exception(frame: &mut TrapFrame, _: &Thread) {
    SYNDROME.store(frame.syndrome().0, Ordering::Relaxed);
    ADDRESS.store(frame.fault_address().0, Ordering::Relaxed);
    EXCEPTIONS.fetch_add(1, Ordering::Relaxed);
    frame.elr += 4;
}

/// None of these threads has its tags checked.
fn late_tag_fault(_: &Thread) {
    EXCEPTIONS.fetch_add(1, Ordering::Relaxed);
}

/// Ends the thread, with what its call has just returned, if it was in one.
fn signal(frame: &mut TrapFrame, _: &Thread) {
    finish(if frame.x[8] == WAIT { frame.x[0] } else { 0 });
}

fn resolve(thread: &Thread, address: VirtAddr, _: Access) -> bool {
    // SAFETY: the space that the test gave the thread at its creation, which lives for longer.
    let space = unsafe { &*thread.task().cast::<SpaceRef>() };
    space::handle_fault(space, this_cpu(), address, space::Access::Write).is_ok()
}

fn finish(found: u64) -> ! {
    FOUND.fetch_add(found, Ordering::Relaxed);
    FINISHED.fetch_add(1, Ordering::Release);
    sched::exit()
}

/// A space with the programs and a page of data.
pub(crate) fn make_space(t: &mut Test) -> Option<SpaceRef> {
    let cpu = this_cpu();
    let space = t.ok("a space", kernel().spaces.create(cpu))?;
    let map = |at, protection| MapRequest {
        placement: Placement::Fixed(at),
        bytes: PAGE,
        protection,
        sharing: Sharing::Private,
        populate: Populate::Now,
    };
    let data = Protection::READ.and(Protection::WRITE);
    t.ok("the code's page", space.mmap(cpu, &map(CODE, data)))?;
    t.ok("the data's page", space.mmap(cpu, &map(DATA, data)))?;
    let (start, end) = (&raw const user_programs_start, &raw const user_programs_end);
    // SAFETY: the programs are constants, and between the two symbols.
    let programs = unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) };
    t.ok("the programs", space.write_bytes(cpu, CODE, programs))?;
    t.ok("executable", space.mprotect(CODE, PAGE, Protection::READ.and(Protection::EXECUTE)))?;
    Some(space)
}

/// Starts a thread.
fn start(t: &mut Test, space: &SpaceRef, program: VirtAddr, argument: u64) -> Option<ThreadRef> {
    let mut frame = TrapFrame::at_el0(program, DATA + PAGE);
    frame.x[0] = argument;
    let task = (&raw const *space).cast_mut().cast();
    let thread = NewUserThread {
        name: "test",
        entry: &ENTRY,
        frame: &frame,
        tls: 0,
        space: space.clone().into(),
        fp: None,
        task,
    };
    t.ok("a thread", thread.create(this_cpu())).map(NewThread::start)
}

fn reset() {
    STARTED.store(false, Ordering::Relaxed);
    FINISHED.store(0, Ordering::Relaxed);
    FOUND.store(0, Ordering::Relaxed);
    EXCEPTIONS.store(0, Ordering::Relaxed);
}

/// Sleeps until so many threads have finished, at most some seconds; and until they are gone.
fn wait_for(t: &mut Test, threads: u32) {
    wait_until(|| FINISHED.load(Ordering::Acquire) >= threads);
    t.equal("threads that finished", FINISHED.load(Ordering::Acquire), threads);
    wait_until_alone(t);
}

/// Runs one thread to its end; returns what it found.
fn run(t: &mut Test, program: VirtAddr, argument: u64) -> Option<u64> {
    reset();
    let space = make_space(t)?;
    start(t, &space, program, argument)?;
    wait_for(t, 1);
    Some(FOUND.load(Ordering::Relaxed))
}

/// A store of EL0 to `address` of a space that has the programs: the address itself.
pub(crate) fn store(t: &mut Test, space: &SpaceRef, address: VirtAddr) {
    reset();
    drop(start(t, space, program!(program_store), address.0));
    wait_for(t, 1);
    t.equal("the store", FOUND.load(Ordering::Relaxed), 0);
}

target_test!(a_call_preserves_every_register_but_its_result);
fn a_call_preserves_every_register_but_its_result(t: &mut Test) {
    let found = run(t, program!(program_registers), 0);
    t.equal("wrong registers", found, Some(0));
}

target_test!(a_fault_reports_what_and_where);
fn a_fault_reports_what_and_where(t: &mut Test) {
    let found = run(t, program!(program_load), NOTHING.0 + 8);
    t.equal("it went on behind the load", found, Some(77));
    t.equal("the address", ADDRESS.load(Ordering::Relaxed), NOTHING.0 + 8);
    let class = granule_arch::esr::Syndrome(SYNDROME.load(Ordering::Relaxed)).class();
    t.check("a data abort of EL0", class == Some(Class::DataAbortLowerEL));
    // The kernel's half: refused, whatever is there.
    let found = run(t, program!(program_load), (&raw const FOUND).addr() as u64);
    t.equal("it went on behind the load", found, Some(77));
    // The positive control.
    let found = run(t, program!(program_load), DATA.0);
    t.equal("its own data", found, Some(0));
}

target_test!(el0_may_do_what_it_may_under_linux);
fn el0_may_do_what_it_may_under_linux(t: &mut Test) {
    let found = run(t, program!(program_allowed), 0);
    t.equal("it went on behind each", found, Some(5));
    t.equal("refused", EXCEPTIONS.load(Ordering::Relaxed), 5);
}

target_test!(a_loop_makes_way_for_others, limit(30));
fn a_loop_makes_way_for_others(t: &mut Test) {
    reset();
    let Some(space) = make_space(t) else { return };
    // On each CPU one more than fits, so that one that comes later must wait for the end of a slice.
    let loops: heapless::Vec<ThreadRef, 32> =
        (0..=smp::online().len()).filter_map(|_| start(t, &space, program!(program_loop), 0)).collect();
    sleep_until(Deadline::after(Duration::from_millis(5)));
    start(t, &space, program!(program_calls), 100);
    wait_until(|| FINISHED.load(Ordering::Acquire) != 0);
    t.equal("the one that ends has ended", FINISHED.load(Ordering::Acquire), 1);
    loops.iter().for_each(|thread| thread.raise(Work::SIGNAL));
    let expected = loops.len() as u32 + 1;
    drop(loops);
    wait_for(t, expected);
}

target_test!(threads_share_the_cpus, limit(30));
fn threads_share_the_cpus(t: &mut Test) {
    reset();
    let Some(space) = make_space(t) else { return };
    let threads: heapless::Vec<ThreadRef, 48> = (0..3 * smp::online().len() as u64)
        .filter_map(|number| start(t, &space, program!(program_count), DATA.0 + 8 * number))
        .collect();
    let mut homes = CpuSet::EMPTY;
    let mut words = [0; 8 * 48];
    let mut starved = threads.len();
    let patience = patience();
    while (homes != smp::online() || starved > 0) && !patience.has_passed() {
        sleep_until(Deadline::after(Duration::from_millis(10)));
        threads.iter().for_each(|thread| homes = homes.with(thread.home()));
        t.ok("what they counted", space.read_bytes(this_cpu(), DATA, &mut words));
        starved = words.chunks(8).take(threads.len()).filter(|word| word.iter().all(|&byte| byte == 0)).count();
    }
    t.equal("CPUs that are used", homes, smp::online());
    t.equal("threads that never ran", starved, 0);
    threads.iter().for_each(|thread| thread.raise(Work::SIGNAL));
    let count = threads.len();
    drop(threads);
    wait_for(t, count as u32);
}

target_test!(a_signal_ends_a_wait);
fn a_signal_ends_a_wait(t: &mut Test) {
    reset();
    let Some(space) = make_space(t) else { return };
    let Some(thread) = start(t, &space, program!(program_wait), 0) else { return };
    wait_until(|| thread.is_parked());
    t.check("it sleeps", thread.is_parked());
    thread.raise(Work::SIGNAL);
    thread.unpark();
    drop(thread);
    wait_for(t, 1);
    t.equal("interrupted", FOUND.load(Ordering::Relaxed), 1);
}

target_test!(floating_point_and_tpidr_are_each_threads_own, limit(60));
fn floating_point_and_tpidr_are_each_threads_own(t: &mut Test) {
    reset();
    let (Some(one), Some(other)) = (make_space(t), make_space(t)) else { return };
    let threads = 3 * smp::online().len() as u64;
    for number in 0..threads {
        let space = if number % 2 == 0 { &one } else { &other };
        start(t, space, program!(program_state), 0x0101_0101_0101_0101 * (number + 1));
    }
    wait_for(t, threads as u32);
    t.equal("registers of another thread", FOUND.load(Ordering::Relaxed), 0);
}

// With `asids=` among the boot arguments there are fewer numbers than spaces, which a test of the host makes use of:
// two spaces under one number would see each other's page, since nothing is flushed between them.
target_test!(each_space_has_its_own_page_under_any_number, limit(60));
fn each_space_has_its_own_page_under_any_number(t: &mut Test) {
    reset();
    let before = sched::asid_generation();
    let spaces: heapless::Vec<SpaceRef, 60> = (0..60).map_while(|_| make_space(t)).collect();
    for (number, space) in spaces.iter().enumerate() {
        start(t, space, program!(program_own_page), number as u64 + 1);
    }
    STARTED.store(true, Ordering::Relaxed);
    wait_for(t, 60);
    t.equal("pages of another space", FOUND.load(Ordering::Relaxed), 0);
    granule::println!("generations: {}", sched::asid_generation() - before);
}

target_test!(the_kernels_access_faults_as_a_value);
fn the_kernels_access_faults_as_a_value(t: &mut Test) {
    const EFAULT: i64 = -14;
    let copy = |t: &mut Test, from: u64| run(t, program!(program_copy), from).map(|found| found as i64);
    let copied = copy(t, CODE.0);
    t.equal("its own memory", copied, Some(0));
    for address in [0, NOTHING.0, 1 << 48, u64::MAX - 3, (&raw const FOUND).addr() as u64] {
        let copied = copy(t, address);
        t.equal("EFAULT", copied, Some(EFAULT));
    }
    // Half of it: the last word of a page whose neighbour is not there.
    let copied = copy(t, DATA.0 + PAGE - 4);
    t.equal("EFAULT", copied, Some(EFAULT));
}
