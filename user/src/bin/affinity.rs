//! The CPUs that threads may run on: `sched_setaffinity`, and what shows it.
//!
//! Each answer is Linux's. A machine of one CPU has the refusals alone to show.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

fn run(_: Start) -> u8 {
    parts! { ()
        sets_are_refused sets_have_any_length each_cpu_alone others_inherit others_are_bound sleepers_are_bound
        bound_threads_have_their_turns a_cpu_that_idles_is_used changes_of_all_at_a_time
    }
    status("affinity")
}

type Answer = Result<u64, Errno>;

/// A CPU's bit.
fn of(cpu: u32) -> u64 {
    1 << cpu
}

fn cpus_of(thread: u32) -> u64 {
    let mut set = [0_u64; 1];
    equal("the CPUs", call(SCHED_GETAFFINITY, [thread.into(), 8, set.as_mut_ptr() as u64]), Ok(8));
    set[0]
}

fn set_cpus(thread: u32, cpus: u64) -> Answer {
    call(SCHED_SETAFFINITY, [thread.into(), 8, &raw const cpus as u64])
}

/// Binds the running thread.
fn bind(cpus: u64) {
    equal(("bound to", cpus), set_cpus(0, cpus), Ok(0));
}

/// The numbers of the CPUs in a set.
fn numbers(cpus: u64) -> impl Iterator<Item = u32> + Clone {
    (0..u64::BITS).filter(move |&cpu| cpus & of(cpu) != 0)
}

/// The `n`-th of some CPUs and those that follow, in turns.
fn turn(cpus: u64, n: usize) -> u32 {
    numbers(cpus).cycle().nth(n % cpus.count_ones() as usize).expect("a CPU")
}

/// The value of a line of `/proc/PID/status`.
fn with_status<R>(thread: u32, name: &str, look: impl FnOnce(&str) -> R) -> R {
    let mut room = [0; 4096];
    let file = proc::open(thread, "status").expect("the file");
    let text = proc::text(&file, &mut room, 4096);
    look(proc::value(text, name).expect("a line").trim_start())
}

fn sets_are_refused() {
    let all = cpus_of(0);
    let set = [all; 1];
    let at = set.as_ptr() as u64;
    for thread in [0, 999_999, u64::MAX] {
        equal("a set nowhere", call(SCHED_SETAFFINITY, [thread, 8, NOWHERE]), Err(EFAULT));
        equal("the kernel's", call(SCHED_SETAFFINITY, [thread, 8, KERNEL]), Err(EFAULT));
        let empty = if thread == 0 { Err(EINVAL) } else { Err(ESRCH) };
        equal("no bytes", call(SCHED_SETAFFINITY, [thread, 0, NOWHERE]), empty);
        equal("an empty set", call(SCHED_SETAFFINITY, [thread, 8, [0_u64; 1].as_ptr() as u64]), empty);
    }
    for thread in [999_999, u64::MAX, 1 << 31] {
        equal("no thread", call(SCHED_SETAFFINITY, [thread, 8, at]), Err(ESRCH));
    }
    equal("the number's upper half", call(SCHED_SETAFFINITY, [1 << 32, 8, at]), Ok(0));
    equal("CPUs that are not there", set_cpus(0, 1 << 63), Err(EINVAL));
    equal("nothing has changed", cpus_of(0), all);
}

fn sets_have_any_length() {
    let all = cpus_of(0);
    // The page ends behind the set, as far as it is read.
    let page = map(2 * PAGE, RW).expect("pages");
    // SAFETY: nothing is in it.
    unsafe { munmap(page + PAGE, PAGE) }.expect("the second one");
    for bytes in 1..8_u64 {
        let at = page + PAGE - bytes;
        // SAFETY: in the page.
        unsafe { (at as *mut u8).write(1) };
        equal(("bytes", bytes), call(SCHED_SETAFFINITY, [0, bytes, at]), Ok(0));
        equal("the first CPU", cpus_of(0), 1);
        // SAFETY: likewise.
        unsafe { (at as *mut u8).write(0) };
        bind(all);
    }
    let at = page + PAGE - 8;
    // SAFETY: in the page.
    unsafe { (at as *mut u64).write_unaligned(all | 1 << 63) };
    for bytes in [8, 9, 16, 1024, u64::from(u32::MAX), 1 << 32 | 8] {
        equal(("bytes", bytes), call(SCHED_SETAFFINITY, [0, bytes, at]), Ok(0));
        equal("those that are there", cpus_of(0), all);
    }
    equal("a length of 0", call(SCHED_SETAFFINITY, [0, 1 << 32, at]), Err(EINVAL));
}

fn each_cpu_alone() {
    let all = cpus_of(0);
    let digits = (u64::BITS - all.leading_zeros()).div_ceil(4) as usize;
    let shows = |cpus: u64, thread: u32| {
        let shown = with_status(thread, "Cpus_allowed", |text| (text.len(), u64::from_str_radix(text, 16)));
        equal("the set is shown", shown, (digits, Ok(cpus)));
    };
    for _ in 0..3 {
        for cpu in numbers(all) {
            bind(of(cpu));
            equal("it is there", (process::cpu(), cpus_of(0)), (cpu, of(cpu)));
            equal("by its number", cpus_of(process::thread_id()), of(cpu));
            shows(of(cpu), process::id());
            let listed = with_status(process::id(), "Cpus_allowed_list", |text| text.parse::<u32>());
            equal("the list is shown", listed, Ok(cpu));
            process::sched_yield();
            equal("it stays", process::cpu(), cpu);
        }
        // All but one.
        for cpu in numbers(all).filter(|&cpu| all != of(cpu)) {
            bind(all & !of(cpu));
            holds("elsewhere", process::cpu() != cpu);
            shows(all & !of(cpu), process::id());
        }
    }
    if all == 0b1111 {
        for (cpus, list) in [(0b1011, "0-1,3"), (0b0101, "0,2"), (0b1110, "1-3"), (0b1111, "0-3")] {
            bind(cpus);
            holds("the list", with_status(process::id(), "Cpus_allowed_list", |text| text == list));
        }
    }
    bind(all);
}

fn others_inherit() {
    let all = cpus_of(0);
    for cpu in numbers(all) {
        bind(of(cpu));
        beside(|| equal("a thread", (process::cpu(), cpus_of(0)), (cpu, of(cpu))), || ());
        let child = process::run(|| {
            equal("a process", (process::cpu(), cpus_of(0)), (cpu, of(cpu)));
            bind(all);
            wrong()
        });
        equal("the child", child, 0);
        equal("of itself alone", cpus_of(0), of(cpu));
    }
    bind(all);
}

/// A thread that is at EL0 has left the other CPUs when the call returns.
fn others_are_bound() {
    let all = cpus_of(0);
    let [thread, looks, seen, ends] = [const { AtomicU32::new(0) }; 4];
    let runs = || {
        thread.store(process::thread_id(), Ordering::Release);
        while ends.load(Ordering::Relaxed) == 0 {
            seen.store(process::cpu(), Ordering::Relaxed);
            looks.fetch_add(1, Ordering::Release);
        }
    };
    beside(runs, || {
        until(|| thread.load(Ordering::Acquire) != 0);
        let thread = thread.load(Ordering::Relaxed);
        for n in 0..40 {
            let cpu = turn(all, n);
            equal("another thread", set_cpus(thread, of(cpu)), Ok(0));
            equal("is bound", cpus_of(thread), of(cpu));
            // The first look may have begun before.
            let begun = looks.load(Ordering::Acquire);
            until(|| looks.load(Ordering::Acquire).wrapping_sub(begun) >= 2);
            equal("and there", seen.load(Ordering::Relaxed), cpu);
        }
        ends.store(1, Ordering::Relaxed);
    });
    let child = process::spawn(|| -> u8 { time::sleep_for_ever() });
    for cpu in numbers(all) {
        equal("a process", set_cpus(child, of(cpu)), Ok(0));
        equal("is bound", cpus_of(child), of(cpu));
    }
    process::end(child);
}

fn sleepers_are_bound() {
    let all = cpus_of(0);
    let [thread, word] = [const { AtomicU32::new(0) }; 2];
    const ROUNDS: u32 = 40;
    let sleeps = || {
        thread.store(process::thread_id(), Ordering::Release);
        for round in 0..ROUNDS {
            while word.load(Ordering::Acquire) == 2 * round {
                let _ = futex_wait(&word, 2 * round, None);
            }
            equal("it wakes there", process::cpu(), turn(all, round as usize));
            word.store(2 * round + 2, Ordering::Release);
            let _ = futex_wake(&word, 1);
        }
    };
    beside(sleeps, || {
        until(|| thread.load(Ordering::Acquire) != 0);
        for round in 0..ROUNDS {
            let cpu = turn(all, round as usize);
            equal("a sleeper", set_cpus(thread.load(Ordering::Relaxed), of(cpu)), Ok(0));
            word.store(2 * round + 1, Ordering::Release);
            futex_wake(&word, 1).expect("a number");
            until(|| word.load(Ordering::Acquire) == 2 * round + 2);
        }
    });
}

/// Bound and free threads share a CPU: none waits for ever, and each bound one is where it may be.
fn bound_threads_have_their_turns() {
    let all = cpus_of(0);
    let counts = [const { AtomicU32::new(0) }; 12];
    const ENOUGH: u32 = 10;
    let main = |number: usize| {
        let cpus = match number % 3 {
            0 => of(turn(all, 0)),
            1 => of(turn(all, 0)) | of(turn(all, 1)),
            _ => all,
        };
        bind(cpus);
        let mut was_elsewhere = false;
        while counts.iter().any(|count| count.load(Ordering::Relaxed) < ENOUGH) {
            was_elsewhere |= cpus & of(process::cpu()) == 0;
            counts[number].fetch_add(1, Ordering::Relaxed);
            if number.is_multiple_of(2) {
                process::sched_yield();
            }
        }
        holds("each where it may be", !was_elsewhere);
    };
    all_at_once(counts.len(), main);
    bind(all);
}

/// Threads that may run on two CPUs use both, although they came to one. No other program keeps those busy.
fn a_cpu_that_idles_is_used() {
    let all = cpus_of(0);
    if all.count_ones() < 3 {
        return;
    }
    let [first, second, third] = [0, 1, 2].map(|n| turn(all, n));
    bind(of(third));
    let seen = [const { AtomicU64::new(0) }; 2];
    let main = |number: usize| {
        if number == 0 {
            return until(|| {
                seen.iter().fold(0, |sum, cpus| sum | cpus.load(Ordering::Relaxed)) == of(first) | of(second)
            });
        }
        bind(of(first));
        bind(of(first) | of(second));
        while seen.iter().fold(0, |sum, cpus| sum | cpus.load(Ordering::Relaxed)) != of(first) | of(second) {
            seen[number - 1].fetch_or(of(process::cpu()), Ordering::Relaxed);
        }
    };
    all_at_once(3, main);
    // So does one that another keeps from its CPU, which sleeps for a while again and again.
    let has_moved = AtomicBool::new(false);
    let main = |number: usize| match number {
        0 => until(|| has_moved.load(Ordering::Relaxed)),
        1 => {
            bind(of(first));
            bind(of(first) | of(second));
            while process::cpu() != second {}
            has_moved.store(true, Ordering::Relaxed);
        }
        _ => {
            bind(of(first));
            while !has_moved.load(Ordering::Relaxed) {
                let end = time::now() + 2 * MILLISECOND;
                while time::now() < end {}
                time::sleep(MILLISECOND / 4).expect("a sleep");
            }
        }
    };
    all_at_once(3, main);
    bind(all);
}

/// Threads bind themselves and each other, sleep, wake each other and are signalled, all at a time.
fn changes_of_all_at_a_time() {
    const ROUNDS: u32 = 300;
    let all = cpus_of(0);
    let threads = [const { AtomicU32::new(0) }; 5];
    let words = [const { AtomicU32::new(0) }; 5];
    let ended = AtomicU32::new(0);
    // SAFETY: the handler does nothing.
    equal("a handler", unsafe { handle(SIGUSR1, nothing, 0, 0) }.is_ok(), true);
    let main = |number: usize| {
        threads[number].store(process::thread_id(), Ordering::Release);
        until(|| threads.iter().all(|thread| thread.load(Ordering::Acquire) != 0));
        let mut random = Random(number as u64 + 1);
        for _ in 0..ROUNDS {
            let other = random.below(threads.len());
            let cpus = random.below(all as usize) as u64 + 1;
            // Its number may be no thread's by now.
            let thread = threads[other].load(Ordering::Relaxed);
            match random.below(6) {
                0 | 1 => drop(set_cpus(thread, cpus)),
                2 => drop(set_cpus(0, cpus)),
                3 => drop(process::tgkill(process::id(), thread, SIGUSR1)),
                4 => drop(futex_wait(&words[number], 0, Some(MILLISECOND / 10))),
                _ => {
                    futex_wake(&words[other], 1).expect("a number");
                    process::sched_yield();
                }
            }
        }
        ended.fetch_add(1, Ordering::Relaxed);
    };
    all_at_once(threads.len(), main);
    equal("all have ended", ended.into_inner(), 5);
    bind(all);
    holds("it is somewhere", all & of(process::cpu()) != 0);
}

extern "C" fn nothing(_: u32, _: &SigInfo, _: &mut UContext) {}
