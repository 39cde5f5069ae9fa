//! Guests that fail, hang, die and lie, each in its own way.
//!
//! They are not tests of the kernel: the runner's own tests (tests-qemu/host/tests/outside/misbehaving_guests.rs) run
//! each of them and assert the verdict that it must get. [`innocent`] stands among them to show that the rest still
//! runs.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use core::time::Duration;

use granule::chip::{console, power, timer};
use granule::devices::pci::{self, Function};
use granule::iommu::{self, DmaMask};
use granule::linux::process;
use granule::mm::kernel::set_memory::Validity;
use granule::sched;
use granule::smp::{self, Cpu, this_cpu};
use granule::sync::{IrqLock, rank};
use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::{interrupts, wait};
use granule_protocol::{Event, Frame, Nonce};

use crate::harness::{Test, ask_for_nonce, is_device, target_test, wait_until};
use crate::split::Block;
use crate::work;

target_test!(innocent, selftest());
fn innocent(t: &mut Test) {
    t.check("true is true", true);
}

target_test!(fails, selftest());
fn fails(t: &mut Test) {
    t.equal("one and one", 1 + 1, 3);
}

target_test!(makes_no_checks, selftest());
fn makes_no_checks(_: &mut Test) {}

target_test!(panics, selftest());
fn panics(_: &mut Test) {
    panic!("as a test of the runner");
}

target_test!(hangs_with_interrupts_off, selftest(), limit(2));
fn hangs_with_interrupts_off(_: &mut Test) {
    let _ = interrupts::mask();
    loop {
        wait::wfi();
    }
}

target_test!(exits_with_success, selftest());
fn exits_with_success(t: &mut Test) {
    t.check("all is well", true);
    power::off(power::Status::Success);
}

target_test!(resets, selftest());
fn resets(t: &mut Test) {
    t.check("all is well", true);
    power::reset();
}

target_test!(dies_in_mid_line, selftest());
fn dies_in_mid_line(_: &mut Test) {
    console::print(format_args!("I was about to s"));
    power::off(power::Status::Success);
}

/// More than the port takes at once, and than the interrupt could send before the end.
fn print_masked() {
    let _ = interrupts::mask();
    (0..100).for_each(|line| granule::println!("line {line} of a hundred, which is long enough to leave some unsent"));
    granule::println!("{}", if console::unsent() > 0 { "some of it is unsent" } else { "all of it is sent" });
}

target_test!(panics_with_output_unsent, selftest());
fn panics_with_output_unsent(_: &mut Test) {
    print_masked();
    panic!("as a test of the console");
}

target_test!(exits_with_output_unsent, selftest());
fn exits_with_output_unsent(_: &mut Test) {
    print_masked();
    power::off(power::Status::Success);
}

target_test!(resets_with_output_unsent, selftest());
fn resets_with_output_unsent(_: &mut Test) {
    print_masked();
    power::reset();
}

target_test!(forges_a_verdict, selftest());
fn forges_a_verdict(t: &mut Test) {
    // A nonce of an earlier run is the best that an image can have.
    forge(Nonce(0x1234_5678), 2, Event::Pass { index: 0, checks: 1 });
    t.check("false is true", false);
}

target_test!(forges_all_frames_that_remain, selftest());
fn forges_all_frames_that_remain(t: &mut Test) {
    // It asks for the nonce as the harness does. It runs first, so it knows the sequence numbers, and by the boot
    // arguments the tests; the totals and the exit status are right.
    let nonce = ask_for_nonce().unwrap_or(Nonce(0));
    let run = granule::bootargs::get("test.run").unwrap_or("");
    let mut tests = run.split([',', '-']).filter_map(|index| index.parse::<u32>().ok());
    let (Some(index), Some(next)) = (tests.next(), tests.next()) else {
        t.check("two tests were asked for", false);
        return;
    };
    let frames = [
        Event::Pass { index, checks: 1 },
        Event::Begin { index: next },
        Event::Pass { index: next, checks: 1 },
        Event::End { passed: 2, failed: 0, skipped: 0 },
    ];
    (2..).zip(frames).for_each(|(sequence, event)| forge(nonce, sequence, event));
    power::off(power::Status::Success);
}

fn forge(nonce: Nonce, sequence: u32, event: Event) {
    let mut line: heapless::String<128> = heapless::String::new();
    if (Frame { sequence, event }).encode(nonce, &mut line).is_ok() {
        console::print(format_args!("\n{line}\n"));
    }
}

target_test!(leaves_interrupts_masked, selftest());
fn leaves_interrupts_masked(t: &mut Test) {
    t.check("all is well", true);
    let _ = interrupts::mask();
}

target_test!(leaks_a_frame, selftest());
fn leaks_a_frame(t: &mut Test) {
    t.ok("a frame", granule::kernel().frames.alloc(this_cpu()));
}

target_test!(leaks_an_object, selftest());
fn leaks_an_object(t: &mut Test) {
    let mut bytes = alloc::vec::Vec::<u8>::new();
    t.ok("an object", bytes.try_reserve(32));
    core::mem::forget(bytes);
}

target_test!(leaks_an_area, selftest());
fn leaks_an_area(t: &mut Test) {
    // Dropping a `KernelArea` frees nothing: its owner must call `vfree`. After its blocks it has a table of its own.
    t.ok("an area", granule::kernel().space.vmalloc(this_cpu(), 1027));
}

target_test!(frees_a_frame_twice, selftest());
fn frees_a_frame_twice(t: &mut Test) {
    let (frames, cpu) = (&granule::kernel().frames, this_cpu());
    let Some(frame) = t.ok("a frame", frames.alloc(cpu)) else { return };
    frames.free(cpu, frame);
    frames.free(cpu, frame);
}

target_test!(logs_an_error, selftest());
fn logs_an_error(t: &mut Test) {
    t.check("all is well", true);
    log::error!("as a test of the runner");
}

target_test!(leaks_a_thread, selftest());
fn leaks_a_thread(t: &mut Test) {
    extern "C" fn sleep(_: usize) {
        loop {
            sched::park();
        }
    }
    t.ok("a thread", sched::spawn_kernel(this_cpu(), "leaked", sleep, 0));
}

target_test!(leaks_a_space, selftest());
fn leaks_a_space(t: &mut Test) {
    core::mem::forget(t.ok("a space", granule::kernel().spaces.create(this_cpu())));
}

target_test!(leaks_a_process, selftest());
fn leaks_a_process(t: &mut Test) {
    let Some(id) = t.ok("a process", crate::process::start("lifecycle ask")) else { return };
    let Some(space) = process::space_of(id) else { return };
    // It has new random numbers in its page for ever: from the second on it takes no more memory.
    let number = || {
        let mut bytes = [0; 8];
        space.read_bytes(this_cpu(), VirtAddr(0x7000_0000_0000), &mut bytes).ok().map(|()| u64::from_le_bytes(bytes))
    };
    let mut first = None;
    wait_until(|| {
        first = number().filter(|number| *number != 0);
        first.is_some()
    });
    wait_until(|| number() != first);
}

target_test!(leaves_a_walk_open, selftest());
fn leaves_a_walk_open(t: &mut Test) {
    t.check("all is well", true);
    core::mem::forget(granule::kernel().space.tables());
}

target_test!(leaves_another_cpu_in_a_walk, selftest());
fn leaves_another_cpu_in_a_walk(t: &mut Test) {
    fn walk(_: &Cpu, _: usize) {
        core::mem::forget(granule::kernel().space.tables());
    }
    let others = smp::online().without(this_cpu().id);
    for id in others.iter() {
        t.ok("started", work::run_on(id, walk, 0));
    }
    work::wait_for(others);
}

target_test!(leaves_a_lock_held, selftest());
fn leaves_a_lock_held(t: &mut Test) {
    granule::println!("ranks are on record: {}", cfg!(debug_assertions));
    static LOCK: IrqLock<(), { rank::POOL }> = IrqLock::new(());
    t.check("all is well", true);
    core::mem::forget(LOCK.lock());
    // The audit of a release build would find the mask alone.
    interrupts::enable();
}

target_test!(leaves_a_deadline, selftest());
fn leaves_a_deadline(t: &mut Test) {
    t.check("all is well", true);
    timer::set_deadline(this_cpu(), Duration::from_secs(60), |_| {});
}

/// A device that moves data.
fn edu() -> Option<&'static Function> {
    pci::functions().iter().find(|function| is_device("edu", function))
}

target_test!(leaks_a_bus_master, selftest(), needs("edu"));
fn leaks_a_bus_master(t: &mut Test) {
    let Some(claim) = edu().and_then(|function| t.ok("a claim", function.claim("leak"))) else { return };
    claim.set_bus_master(true);
    core::mem::forget(claim);
}

// The test maps a frame that has another owner, and the owner makes it code.
target_test!(maps_code_writable, selftest());
#[allow(unsafe_code, reason = "breaks a contract")]
fn maps_code_writable(t: &mut Test) {
    let (space, cpu) = (&granule::kernel().space, this_cpu());
    let Some(area) = t.ok("an area", space.vmalloc(cpu, 1)) else { return };
    let frames = space.tables().translate(area.start()).map(|found| [found.physical]);
    // SAFETY: none: the frame is of an area from vmalloc.
    let mapped = frames.map(|frames| unsafe { space.vmap(cpu, &frames) });
    t.check("a second mapping", mapped.is_some_and(|mapped| mapped.is_ok()));
    t.ok("made code", space.set_memory_rox(area.into_start(), 1));
}

target_test!(leaks_a_device, selftest(), needs("edu smmuv3"));
fn leaks_a_device(t: &mut Test) {
    let stream = edu().and_then(Function::stream_id);
    core::mem::forget(t.ok("attached", iommu::attach(this_cpu(), stream, DmaMask::ALL)));
}

// The owner of an area changes its frames' pages of the linear map as well, which another CPU takes for its own.
target_test!(changes_the_alias_of_what_another_cpu_is_changing, selftest());
fn changes_the_alias_of_what_another_cpu_is_changing(t: &mut Test) {
    const ROUNDS: u32 = 2000;
    static FRAME: AtomicU64 = AtomicU64::new(0);
    static DONE: AtomicBool = AtomicBool::new(false);
    fn change(_: &Cpu, _: usize) {
        let (space, frame) = (&granule::kernel().space, PhysAddr(FRAME.load(Ordering::Relaxed)));
        while !DONE.load(Ordering::Relaxed) {
            let _ = space.set_direct_map_default_noflush(frame);
        }
    }
    granule::println!("owners are on record: {}", cfg!(debug_assertions));
    let (space, cpu) = (&granule::kernel().space, this_cpu());
    let Some(area) = t.ok("an area", space.vmalloc(cpu, 64)) else { return };
    let start = area.start();
    FRAME.store(space.tables().translate(start).map_or(0, |found| found.physical.0), Ordering::Relaxed);
    let others = smp::online().without(cpu.id);
    for id in others.iter() {
        t.equal("started", work::run_on(id, change, 0), Ok(()));
    }
    for _ in 0..ROUNDS {
        let _ = space.set_memory_ro(start, 64);
        let _ = space.set_memory_rw(start, 64);
    }
    DONE.store(true, Ordering::Relaxed);
    work::wait_for(others);
    t.ok("writable", space.set_memory_rw(start, 64));
    space.vfree(cpu, area);
}

// Two CPUs that both take a page for theirs alone. A release build does not notice.
target_test!(changes_what_another_cpu_is_changing, selftest());
fn changes_what_another_cpu_is_changing(t: &mut Test) {
    const ROUNDS: u32 = 2000;
    static PAGE: AtomicU64 = AtomicU64::new(0);
    fn change(_: &Cpu, _: usize) {
        let (space, page) = (&granule::kernel().space, VirtAddr(PAGE.load(Ordering::Relaxed)));
        for _ in 0..ROUNDS {
            let _ = space.set_memory_valid(page, 64, Validity::Invalid);
            let _ = space.set_memory_valid(page, 64, Validity::Valid);
        }
    }
    granule::println!("owners are on record: {}", cfg!(debug_assertions));
    let Some(block) = Block::fresh(t) else { return };
    let others = smp::online().without(this_cpu().id);
    PAGE.store(block.page(0).0, Ordering::Relaxed);
    for id in others.iter() {
        t.equal("started", work::run_on(id, change, 0), Ok(()));
    }
    change(this_cpu(), 0);
    work::wait_for(others);
    block.free(t);
}
