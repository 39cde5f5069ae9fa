//! Memory and tasks are bounded: a program that allocates all it can ends, and the one beside it continues.

use alloc::vec::Vec;
use core::time::Duration;

use granule::bytes;
use granule::chip::log as kernel_log;
use granule::chip::timer::Deadline;
use granule::linux::process::signal::Signal;
use granule::linux::process::status::{Life, ProcessEnd};
use granule::linux::process::{self, limits};
use granule::mm::heap::{GROWTH_PAGES, kernel_heap};
use granule::sched::{self, sleep_until};
use granule::smp::{self, Cpu, this_cpu};
use granule::{kernel, println};
use granule_arch::addr::PAGE_SIZE;
use granule_arch::interrupts;

use crate::harness::{Test, target_test, wait_until};
use crate::process::{end_all_but, settle, start, terminate};

/// How a process ends because memory is gone.
const KILLED: Option<ProcessEnd> = Some(ProcessEnd::Killed(Signal::KILL));
/// The words of the kernel's log that report it.
const REPORT: &[u8] = b"out of memory: ended process";

/// Where the log ends now.
fn log_end() -> u64 {
    let (mut position, mut line) = (0, [0; kernel_log::LINE]);
    while let Some((_, next)) = kernel_log::read(position, &mut line) {
        position = next;
    }
    position
}

/// How many such lines the log has from `position` on, and how many of them name `program`.
fn reports(mut position: u64, program: &[u8]) -> (usize, usize) {
    let (mut count, mut named) = (0, 0);
    let mut line = [0; kernel_log::LINE];
    while let Some((text, next)) = kernel_log::read(position, &mut line) {
        position = next;
        if text.windows(REPORT.len()).any(|part| part == REPORT) {
            count += 1;
            named += usize::from(text.windows(program.len()).any(|part| part == program));
        }
    }
    (count, named)
}

/// Looks again and again until a process has ended: whether programs never got at the reserve.
fn reserve_stays_until_end_of(id: u32) -> bool {
    let mut stays = kernel().frames.reserve() > 100;
    loop {
        let mut runs = false;
        process::for_each(&mut |process| runs |= process.id == id && !matches!(process.life, Life::Ended(_)));
        stays &= kernel().frames.has_room_for(0);
        if !runs {
            return stays;
        }
        sleep_until(Deadline::after(Duration::from_millis(1)));
    }
}

/// Runs `hog` in this way beside a program that behaves, which is to go on to its good end. How the hog ended.
fn beside_a_hog(t: &mut Test, way: &str) -> Option<ProcessEnd> {
    let (threads, tasks) = (sched::thread_count(), limits::tasks());
    let good = t.ok("the program beside", start("hog beside"))?;
    sleep_until(Deadline::after(Duration::from_millis(50)));
    let hog = t.ok(way, start(way))?;
    t.check("the reserve is not touched", reserve_stays_until_end_of(hog));
    let end = process::wait(hog);
    t.ok("SIGTERM", terminate(good));
    t.equal("the program beside", process::wait(good), Some(ProcessEnd::Exited(0)));
    settle(t, threads);
    t.equal("tasks", limits::tasks(), tasks);
    end
}

target_test!(a_program_that_takes_all_memory_ends_and_others_go_on, machines("small"), limit(60));
fn a_program_that_takes_all_memory_ends_and_others_go_on(t: &mut Test) {
    let before = log_end();
    let end = beside_a_hog(t, "hog pages");
    t.equal("how it ended", end, KILLED);
    t.equal("one line reports it", reports(before, b"(hog)"), (1, 1));
}

target_test!(pages_that_may_be_lost_are_before_a_program_ends, machines("small"), limit(60));
fn pages_that_may_be_lost_are_before_a_program_ends(t: &mut Test) {
    let before = log_end();
    let end = beside_a_hog(t, "hog droppable");
    t.equal("how it ended", end, Some(ProcessEnd::Exited(0)));
    t.equal("none ended for it", reports(before, b"").0, 0);
}

target_test!(files_of_more_memory_than_there_is_end_their_program, machines("small"), limit(60));
fn files_of_more_memory_than_there_is_end_their_program(t: &mut Test) {
    let threads = sched::thread_count();
    let Some(id) = t.ok("started", start("memfd full")) else { return };
    t.equal("how it ended", process::wait(id), KILLED);
    settle(t, threads);
}

/// Leaves areas of so many pages in all for later, on each CPU.
fn leave_areas(cpu: &Cpu, pages: usize) {
    let (space, masked) = (&kernel().space, interrupts::mask());
    // With interrupts masked none is purged, however many there are.
    let each = space.policy().lazy_pages.max(1);
    let areas = (0..pages as u64 / each).map_while(|_| space.vmalloc(cpu, each).ok());
    let areas: heapless::Vec<_, 128> = areas.collect();
    areas.into_iter().for_each(|area| space.vfree(cpu, area));
    interrupts::restore(masked);
}

target_test!(areas_that_wait_are_freed_before_a_program_ends, machines("small"), limit(60));
fn areas_that_wait_are_freed_before_a_program_ends(t: &mut Test) {
    let (space, threads, pages) = (&kernel().space, sched::thread_count(), 4096);
    smp::call(smp::online(), leave_areas, pages);
    t.check("most of them wait", space.unmapped_pages() > (pages * smp::online().len() / 2) as u64);
    let Some(hog) = t.ok("hog", start("hog pages")) else { return };
    t.equal("how it ended", process::wait(hog), KILLED);
    settle(t, threads);
    // Those of a stack or two, and of a CPU that is still about to free some.
    let few = || space.unmapped_pages() < pages as u64 / 16;
    wait_until(few);
    t.check("hardly any still wait", few());
}

target_test!(a_program_that_forks_without_end_harms_no_other, machines("small"), limit(60));
fn a_program_that_forks_without_end_harms_no_other(t: &mut Test) {
    let before = log_end();
    let end = beside_a_hog(t, "hog forks");
    t.equal("how it ended", end, Some(ProcessEnd::Exited(0)));
    t.check("memory was gone", reports(before, b"(hog)").0 > 0);
}

target_test!(a_copy_that_does_not_fit_ends_its_program, machines("small"), limit(60));
fn a_copy_that_does_not_fit_ends_its_program(t: &mut Test) {
    ends_alone(t, "hog tables");
}

target_test!(a_move_whose_tables_do_not_fit_ends_its_program, machines("small"), limit(60));
fn a_move_whose_tables_do_not_fit_ends_its_program(t: &mut Test) {
    ends_alone(t, "hog moves");
}

/// Runs a hog alone: nothing else comes to a want of memory.
fn ends_alone(t: &mut Test, way: &str) {
    let (threads, before) = (sched::thread_count(), log_end());
    let Some(id) = t.ok(way, start(way)) else { return };
    t.equal("how it ended", process::wait(id), Some(ProcessEnd::Exited(0)));
    t.check("memory was gone", reports(before, b"(hog)").0 > 0);
    settle(t, threads);
}

target_test!(threads_areas_signals_and_zombies_are_bounded, machines("small"), limit(60));
fn threads_areas_signals_and_zombies_are_bounded(t: &mut Test) {
    for way in ["hog threads", "hog areas", "hog signals", "hog zombies"] {
        let end = beside_a_hog(t, way);
        t.equal(way, end, Some(ProcessEnd::Exited(0)));
    }
}

target_test!(memory_beside_an_address_space_is_charged, machines("small"), limit(120));
fn memory_beside_an_address_space_is_charged(t: &mut Test) {
    are_charged(t, &["hog file", "hog sparse", "hog pipes", "hog pagers", "hog polls", "hog counters", "hog paths"]);
}

// Their items are small, and use memory up for long.
target_test!(files_that_sets_watch_are_charged, machines("small"), limit(240), long());
fn files_that_sets_watch_are_charged(t: &mut Test) {
    are_charged(t, &["hog sets"]);
}

/// Each of these uses memory up and is ended for it, or has a child that is.
fn are_charged(t: &mut Test, ways: &[&str]) {
    // The first one makes the pools of what it uses.
    beside_a_hog(t, "hog paths");
    for &way in ways {
        let (before, free) = (log_end(), free_frames());
        let end = beside_a_hog(t, way);
        let is_of_child = matches!(way, "hog counters" | "hog paths");
        t.equal(way, end, if is_of_child { Some(ProcessEnd::Exited(0)) } else { KILLED });
        let (ended, hogs) = reports(before, b"(hog)");
        t.check("only it or its children ended", ended == hogs && hogs != 0);
        is_all_free(t, free);
    }
}

target_test!(the_heap_gives_its_free_pages_back, machines("small"), limit(60));
fn the_heap_gives_its_free_pages_back(t: &mut Test) {
    const OBJECTS: usize = 64;
    // All are below one last-level table, which the heap keeps.
    const BYTES: usize = 4 * PAGE_SIZE;
    let heap = kernel_heap();
    let threads = sched::thread_count();
    let end_a_program = |t: &mut Test| {
        let Some(id) = t.ok("a program", start("hello")) else { return };
        t.equal("how it ended", process::wait(id), Some(ProcessEnd::Exited(0)));
        settle(t, threads);
    };
    // The first one makes the pools of what it uses.
    end_a_program(t);
    heap.trim(0);
    let (total, free) = (heap.stats().total, free_frames());
    let objects = || {
        let mut all: heapless::Vec<Vec<u8>, OBJECTS> = heapless::Vec::new();
        while !all.is_full() {
            let mut object = Vec::new();
            if object.try_reserve_exact(BYTES).is_err() || bytes::append(&mut object, &[all.len() as u8; 64]).is_err() {
                break;
            }
            let _ = all.push(object);
        }
        all
    };
    let mut some = objects();
    t.check("it has grown", heap.stats().total >= total + OBJECTS * BYTES);
    // Half of them, each between two others.
    let mut number = 0;
    some.retain(|_| {
        number += 1;
        number % 2 == 0
    });
    end_a_program(t);
    let now = heap.stats();
    t.check("pages between objects went", now.total < total + OBJECTS * BYTES * 3 / 4);
    t.equal("objects that changed", some.iter().filter(|object| object.iter().any(|byte| *byte % 2 != 1)).count(), 0);
    drop(some);
    heap.trim(0);
    let top = heap.mapped().1;
    let again = objects();
    t.equal("all fit", (again.len(), heap.mapped().1), (OBJECTS, top));
    drop(again);
    end_a_program(t);
    t.check("hardly more is left than it grows by", heap.stats().free <= (GROWTH_PAGES + 2) * PAGE_SIZE);
    heap.trim(0);
    is_all_free(t, free);
}

/// Checks that as much is free as there was: `free`.
fn is_all_free(t: &mut Test, free: usize) {
    let now = free_frames();
    println!("{now} frames are free, {free} before");
    t.check("all that it had is free", now + SLACK >= free);
}

/// Frames of pools and of the heap that a program may leave in use.
const SLACK: usize = 16;

/// Frames that are free, also for one CPU alone, with no kernel stack kept.
fn free_frames() -> usize {
    sched::trim(this_cpu());
    smp::call(smp::online(), |cpu: &Cpu, _| kernel().frames.drain_cpu(cpu), 0);
    kernel().frames.stats().free
}

target_test!(a_siege_ends_no_program_that_is_calm, machines("tiny v1"), limit(120));
fn a_siege_ends_no_program_that_is_calm(t: &mut Test) {
    besiege_with_hogs(t, 8_000, 1);
}

target_test!(a_siege_of_a_million_calls_ends_no_program_that_is_calm, machines("small tiny v1"), limit(2000), long());
fn a_siege_of_a_million_calls_ends_no_program_that_is_calm(t: &mut Test) {
    besiege_with_hogs(t, 1_000_000, 4);
}

/// Makes so many hostile calls, from two programs at once, beside hogs and a program that behaves, which is to go on to its
/// good end. Each kind of hog has its turn in each of the `rounds`. Programs that the kernel ends for want of memory are
/// started again.
fn besiege_with_hogs(t: &mut Test, calls: usize, rounds: usize) {
    const FIRST: usize = 500;
    let threads = sched::thread_count();
    // The first ones make the pools of what they use.
    surround(t, HOGS.len() * 2 * FIRST, FIRST);
    settle(t, threads);
    let free = free_frames();
    surround(t, calls, calls.div_ceil(rounds * HOGS.len() * 2));
    settle(t, threads);
    is_all_free(t, free);
}

const HOGS: [&str; 9] = [
    "hog pages",
    "hog forks",
    "hog file",
    "hog sparse",
    "hog pipes",
    "hog pagers",
    "hog polls",
    "hog shared",
    "hog paths",
];

/// A hog that is started again whenever it has ended.
struct Hog {
    way: &'static str,
    id: Option<u32>,
    /// How often it has ended.
    lives: u32,
}

impl Hog {
    /// Sleeps for a moment; starts the hog again if it has ended. Where that fails for want of memory it is tried later.
    fn go_on(&mut self, t: &mut Test) {
        sleep_until(Deadline::after(Duration::from_millis(5)));
        if self.id.is_none_or(|id| process::space_of(id).is_none()) {
            self.collect(t);
            self.id = start(self.way).ok();
        }
    }

    /// Waits for its end.
    fn collect(&mut self, t: &mut Test) {
        let Some(id) = self.id.take() else { return };
        let end = process::wait(id);
        t.check(self.way, matches!(end, Some(ProcessEnd::Killed(Signal::KILL) | ProcessEnd::Exited(0))));
        self.lives += 1;
    }
}

/// The siege: so many `calls`, of which each program makes `each` before it is another hog's turn.
fn surround(t: &mut Test, calls: usize, each: usize) {
    let Some(calm) = t.ok("the calm program", start("hog beside")) else { return };
    let (mut made, mut ended, mut lives) = (0, 0, 0);
    for way in HOGS.into_iter().cycle() {
        if made >= calls {
            break;
        }
        let lines =
            ["together", ""].map(|how| crate::process::format(format_args!("fuzz {} {each} {how}", t.random())));
        // Before the hog, which leaves them no memory to start with.
        let programs = lines.map(|line| t.ok(&line, start(&line)));
        let mut hog = Hog { way, id: t.ok(way, start(way)), lives: 0 };
        for id in programs.into_iter().flatten() {
            match process::wait_with(id, || hog.go_on(t)) {
                Some(ProcessEnd::Killed(Signal::KILL)) => ended += 1,
                end => made += each * usize::from(t.equal("how it ended", end, Some(ProcessEnd::Exited(0)))),
            }
        }
        println!("{made} calls; {way} has ended {} times", hog.lives);
        lives += hog.lives;
        end_all_but(|left| left.id == calm || left.parent == calm);
        hog.collect(t);
    }
    println!("{made} calls; hogs ended {lives} times, {ended} of the programs that made the calls");
    t.ok("SIGTERM", terminate(calm));
    t.equal("the calm program", process::wait(calm), Some(ProcessEnd::Exited(0)));
}

target_test!(a_call_that_wants_more_than_there_is_ends_nobody, machines("small"), limit(60));
fn a_call_that_wants_more_than_there_is_ends_nobody(t: &mut Test) {
    let before = log_end();
    let end = beside_a_hog(t, "hog reserved");
    t.equal("how it ended", end, Some(ProcessEnd::Exited(0)));
    t.equal("nobody ended", reports(before, b"").0, 0);
}

target_test!(limits_answer_as_on_linux, limit(60));
fn limits_answer_as_on_linux(t: &mut Test) {
    let threads = sched::thread_count();
    let Some(id) = t.ok("limits", start("limits")) else { return };
    t.equal("how it ended", process::wait(id), Some(ProcessEnd::Exited(0)));
    settle(t, threads);
}
