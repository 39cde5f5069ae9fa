//! Kernel threads: where they run, how they sleep and wake, and the sleeping lock.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use granule::chip::timer::{self, Deadline};
use granule::kernel;
use granule::sched::RwSem;
use granule::sched::{self, WaitQueue, Woken, sleep_until};
use granule::services;
use granule::smp::{self, CpuSet, this_cpu};
use granule::sync::rank;
use granule_arch::wait;

use crate::harness::{Test, another_cpu, drain_magazines, frames_in_use, target_test, wait_until};

/// Sleeps until all threads that tests have made are gone, at most some seconds.
pub(crate) fn wait_until_alone(t: &mut Test) {
    wait_until(|| sched::thread_count() == 0);
    t.equal("threads that are left", sched::thread_count(), 0);
}

// A thread that ends leaves its stack to the next one, and frees one where enough are kept.
target_test!(stacks_of_ended_threads_are_few_and_given_back);
fn stacks_of_ended_threads_are_few_and_given_back(t: &mut Test) {
    /// Many more than are kept.
    const THREADS: usize = 40;
    /// Stacks that a CPU keeps.
    const KEPT: usize = 4;
    extern "C" fn end(_: usize) {}
    let all_end = |t: &mut Test| {
        // None of them runs before this thread sleeps, so each has a stack of its own.
        for number in 0..THREADS {
            t.ok("a thread", sched::spawn_kernel(this_cpu(), "end", end, number));
        }
        wait_until_alone(t);
    };
    let before = frames_in_use();
    all_end(t);
    t.equal("stacks that are kept", sched::trim(this_cpu()), KEPT);
    t.equal("frames in use", frames_in_use(), before);
    all_end(t);
    drain_magazines();
    services::give_back(this_cpu());
    t.equal("frames that only one CPU finds", kernel().frames.stats().in_magazines, 0);
    t.equal("stacks that are left", sched::trim(this_cpu()), 0);
    t.equal("frames in use", frames_in_use(), before);
}

target_test!(sleepers_wake_in_time_and_in_order);
fn sleepers_wake_in_time_and_in_order(t: &mut Test) {
    for milliseconds in [0, 1, 7] {
        let (start, time) = (timer::uptime(), Duration::from_millis(milliseconds));
        t.equal("woken", sleep_until(Deadline::after(time)), Woken::TimedOut);
        t.check("not early", timer::uptime() - start >= time);
    }
    static ORDER: AtomicU64 = AtomicU64::new(0);
    /// Notes `number` after so many times 5 ms.
    extern "C" fn sleep(number: usize) {
        sleep_until(Deadline::after(number as u32 * Duration::from_millis(5)));
        let noted = |order| Some(order * 10 + number as u64);
        let _ = ORDER.fetch_update(Ordering::Relaxed, Ordering::Relaxed, noted);
    }
    // QEMU may stand still between the start of one thread and the next, for longer than they sleep.
    const TRIES: usize = 500;
    let in_order = (0..TRIES).any(|_| {
        ORDER.store(0, Ordering::Relaxed);
        for number in [3, 1, 2] {
            t.ok("a thread", sched::spawn_kernel(this_cpu(), "sleep", sleep, number));
        }
        wait_until_alone(t);
        ORDER.load(Ordering::Relaxed) == 123
    });
    t.check("in order, in one of many tries", in_order);
}

// A ready thread on the waiter's CPU does not run during the wait. CPUs that take turns at a YIELD: others
// may stand still between two steps, for longer than a waiter stays awake.
target_test!(who_waits_for_a_writer_that_runs_stays_awake, machines("icount"));
fn who_waits_for_a_writer_that_runs_stays_awake(t: &mut Test) {
    static LOCK: RwSem<u32> = RwSem::new(rank::REQUESTS, 0);
    static STAGE: AtomicU32 = AtomicU32::new(0);
    static HAS_SLEPT: AtomicU32 = AtomicU32::new(0);
    extern "C" fn hold(_: usize) {
        let mut value = LOCK.write();
        STAGE.store(1, Ordering::Relaxed);
        while STAGE.load(Ordering::Relaxed) == 1 {
            wait::relax();
        }
        // The other CPU is about to wait.
        (0..300).for_each(|_| wait::relax());
        *value += 1;
    }
    extern "C" fn note(_: usize) {
        HAS_SLEPT.store(1, Ordering::Relaxed);
    }
    let here = this_cpu();
    let there = another_cpu(here);
    STAGE.store(0, Ordering::Relaxed);
    HAS_SLEPT.store(0, Ordering::Relaxed);
    t.ok("a thread", sched::spawn_kernel(there, "hold", hold, 0));
    while STAGE.load(Ordering::Relaxed) == 0 {
        wait::relax();
    }
    t.ok("a thread", sched::spawn_kernel(here, "note", note, 0));
    STAGE.store(2, Ordering::Relaxed);
    let value = *LOCK.read();
    t.equal("has slept", HAS_SLEPT.load(Ordering::Relaxed), 0);
    t.check("the holder was first", value > 0);
    wait_until_alone(t);
}

target_test!(a_thread_wakes_on_the_cpu_that_it_slept_on, needs("smp"));
fn a_thread_wakes_on_the_cpu_that_it_slept_on(t: &mut Test) {
    static WHERE: AtomicU32 = AtomicU32::new(0);
    extern "C" fn note(_: usize) {
        let before = this_cpu().id;
        sleep_until(Deadline::after(Duration::from_millis(2)));
        if before == this_cpu().id {
            WHERE.fetch_or(1 << before.0, Ordering::Relaxed);
        }
    }
    WHERE.store(0, Ordering::Relaxed);
    smp::for_each(|cpu| {
        t.ok("a thread", sched::spawn_kernel(cpu, "note", note, 0));
    });
    wait_until_alone(t);
    t.equal("the CPUs", CpuSet::from_bits(WHERE.load(Ordering::Relaxed)), smp::online());
}

target_test!(waiters_are_woken_by_what_they_wait_for_and_by_time);
fn waiters_are_woken_by_what_they_wait_for_and_by_time(t: &mut Test) {
    static QUEUE: WaitQueue<usize> = WaitQueue::new();
    static WAITING: AtomicU32 = AtomicU32::new(0);
    static WOKEN: AtomicU32 = AtomicU32::new(0);
    extern "C" fn wait(number: usize) {
        let queue = QUEUE.lock();
        WAITING.fetch_add(1, Ordering::Relaxed);
        queue.wait(number);
        WOKEN.fetch_or(1 << number, Ordering::Relaxed);
    }
    let start = timer::uptime();
    let outcome = QUEUE.lock().wait_until(0, Some(Deadline::after(Duration::from_millis(3))));
    t.equal("no wake-up", outcome, Woken::TimedOut);
    t.check("not early", timer::uptime() - start >= Duration::from_millis(3));
    t.check("the queue is empty", QUEUE.lock().is_empty());

    WAITING.store(0, Ordering::Relaxed);
    WOKEN.store(0, Ordering::Relaxed);
    for number in 1..=6 {
        t.ok("a thread", sched::spawn_kernel(this_cpu(), "wait", wait, number));
    }
    let settle = |is_so: &dyn Fn() -> bool| wait_until(is_so);
    settle(&|| WAITING.load(Ordering::Relaxed) == 6);
    t.equal("the first", QUEUE.lock().front().copied(), Some(1));
    for woken in 1..=3 {
        t.check("one", QUEUE.lock().wake_front());
        settle(&|| WOKEN.load(Ordering::Relaxed).count_ones() == woken);
        t.equal("in their order", WOKEN.load(Ordering::Relaxed), (2 << woken) - 2);
    }
    QUEUE.lock().wake_all();
    wait_until_alone(t);
    t.equal("all", WOKEN.load(Ordering::Relaxed), 0b111_1110);
}

target_test!(readers_and_writers_that_sleep_with_the_lock_see_whole_values, limit(30));
fn readers_and_writers_that_sleep_with_the_lock_see_whole_values(t: &mut Test) {
    const ROUNDS: u64 = 16;
    static PAIR: RwSem<(u64, u64)> = RwSem::new(rank::REQUESTS, (0, 0));
    static TORN: AtomicU32 = AtomicU32::new(0);
    fn look(pair: &(u64, u64)) {
        TORN.fetch_add(u32::from(pair.0 != pair.1), Ordering::Relaxed);
    }
    /// Now and then the holder sleeps.
    fn moment(round: u64) {
        if round.is_multiple_of(4) {
            sleep_until(Deadline::after(Duration::from_micros(50)));
        }
    }
    extern "C" fn write(_: usize) {
        for round in 0..ROUNDS {
            let mut pair = PAIR.write();
            pair.0 += 1;
            moment(round);
            pair.1 += 1;
            if round % 3 == 0 {
                look(&pair.downgrade());
            }
        }
    }
    extern "C" fn read(_: usize) {
        for round in 0..ROUNDS {
            let pair = PAIR.read();
            look(&pair);
            moment(round + 1);
            look(&pair);
        }
    }
    TORN.store(0, Ordering::Relaxed);
    *PAIR.write() = (0, 0);
    smp::for_each(|cpu| {
        for function in [write, read, read] {
            t.ok("a thread", sched::spawn_kernel(cpu, "lock", function, 0));
        }
    });
    wait_until_alone(t);
    t.equal("torn values", TORN.load(Ordering::Relaxed), 0);
    let written = ROUNDS * smp::online().len() as u64;
    t.equal("writes", *PAIR.read(), (written, written));
}
