//! Long calls, and large numbers of threads, signals and areas: work during which a kernel may keep a CPU, or
//! interrupts masked. `long WHAT COUNT`; each kind checks its answers.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, word, put_word);

fn run(start: Start) -> u8 {
    let mut words = start.arguments().skip(1);
    let what = words.next().unwrap_or_default();
    let count = words.next().and_then(|count| count.parse().ok()).unwrap_or(1);
    match what {
        "sleepers" => sleepers(count),
        "waiters" => waiters(count),
        "readers" => faulting_readers(count),
        "processes" => processes(count),
        "memory" => memory_calls(u64::from(count) * MIB),
        "fork" => fork_of(u64::from(count) * MIB),
        "random" => random(u64::from(count) * MIB),
        "write" => write(),
        "killed" => killed_in_a_call(u64::from(count) * MIB),
        _ => return 2,
    }
    println!("long {what}: ok");
    0
}

/// The moment until which sleepers sleep, and how many have woken, or are there.
static UNTIL: AtomicU64 = AtomicU64::new(0);
static THERE: AtomicU32 = AtomicU32::new(0);
static GATE: AtomicU32 = AtomicU32::new(0);

fn threads(count: u32, main: fn(usize)) {
    for index in 0..count {
        // They end with the process.
        let _ = Thread::spawn(move || main(index as usize));
    }
}

/// Waits until all `count` threads have added one.
fn all_there(count: u32) {
    asleep_until(|| THERE.load(Ordering::Acquire) == count);
}

/// Threads that all sleep until one moment. A busy machine may need longer for so many: each further try has twice the
/// time.
fn sleepers(count: u32) {
    let all_slept = with_longer_times(u64::from(count) * MILLISECOND / 4, |time| sleep_at_once(count, time));
    assert!(all_slept, "the threads were not all asleep at once");
}

/// Has `count` threads sleep until so many `nanoseconds` from now; whether all of them were there before.
fn sleep_at_once(count: u32, nanoseconds: u64) -> bool {
    THERE.store(0, Ordering::Relaxed);
    UNTIL.store(time::now() + nanoseconds, Ordering::Relaxed);
    threads(count, |_| {
        let until = Timespec::from_nanoseconds(UNTIL.load(Ordering::Relaxed));
        call(CLOCK_NANOSLEEP, [CLOCK_MONOTONIC, TIMER_ABSTIME, &raw const until as u64, 0]).expect("to sleep");
        assert!(time::now() >= UNTIL.load(Ordering::Relaxed), "a sleep was too short");
        THERE.fetch_add(1, Ordering::Release);
    });
    let were_asleep = time::now() < UNTIL.load(Ordering::Relaxed);
    all_there(count);
    were_asleep
}

/// Threads that wait for one word and are woken together, and others of the same queue that are not woken.
fn waiters(count: u32) {
    threads(count, |index| {
        THERE.fetch_add(1, Ordering::Release);
        while GATE.load(Ordering::Acquire) == 0 {
            // Some give up by themselves, in the midst of the others.
            let limit = (index % 16 == 0).then_some(50 * MILLISECOND);
            match futex_wait(&GATE, 0, limit) {
                Ok(()) | Err(EAGAIN | ETIMEDOUT) => {}
                Err(error) => panic!("futex: {error:?}"),
            }
        }
        THERE.fetch_sub(1, Ordering::Release);
    });
    all_there(count);
    // All of them at once, as soon as most have come to wait. They wait again while the gate is closed.
    loop {
        time::sleep(100 * MILLISECOND).expect("to sleep");
        let woken = futex_wake(&GATE, u32::MAX >> 1).expect("a wake-up");
        assert!(woken <= count, "{woken} of {count} were woken");
        if woken >= count / 2 {
            break;
        }
    }
    GATE.store(1, Ordering::Release);
    futex_wake(&GATE, u32::MAX >> 1).expect("a wake-up");
    all_there(0);
}

/// Threads that fault while one call after another changes the space: they wait for its lock, many at a time.
fn faulting_readers(count: u32) {
    const BYTES: u64 = 64 * MIB;
    static PAGES: AtomicU64 = AtomicU64::new(0);
    PAGES.store(memory::map(4096 * PAGE, RW).expect("memory"), Ordering::Relaxed);
    threads(count, |index| {
        THERE.fetch_add(1, Ordering::Release);
        while GATE.load(Ordering::Acquire) == 0 {
            let page = PAGES.load(Ordering::Relaxed) + (index as u64 % 4096) * PAGE;
            put_word(page, 1);
            call(MADVISE, [page, PAGE, MADV_DONTNEED]).expect("to give up");
            process::sched_yield();
        }
        THERE.fetch_sub(1, Ordering::Release);
    });
    for _ in 0..4 {
        call(MUNMAP, [populate(BYTES), BYTES]).expect("to unmap");
    }
    all_there(count);
    GATE.store(1, Ordering::Release);
    all_there(0);
}

/// Processes that are there at once, as sleepers, then as zombies, then waited for from the last to the first.
fn processes(count: u32) {
    let ready = time::now() + u64::from(count) * MILLISECOND;
    let mut first = None;
    let mut last = 0;
    for _ in 0..count {
        last = process::spawn(move || {
            let now = time::now();
            if now < ready {
                let _ = time::sleep(ready - now);
            }
            7
        });
        first.get_or_insert(last);
    }
    for child in (first.unwrap_or(last)..=last).rev() {
        match process::wait4(child as i32, 0) {
            Ok((number, status)) => assert_eq!((number, status), (child, exited(7))),
            Err(error) => assert_eq!(error, ECHILD, "another's number lies in between"),
        }
    }
    assert_eq!(process::wait4(-1, 0), Err(ECHILD), "all were waited for");
}

/// Memory that is there at once.
fn populate(bytes: u64) -> u64 {
    call(MMAP, [0, bytes, RW, PRIVATE | MAP_POPULATE, u64::MAX, 0]).expect("memory")
}

/// Populates, protects, gives up and unmaps.
fn memory_calls(bytes: u64) {
    let start = populate(bytes);
    call(MPROTECT, [start, bytes, PROT_READ]).expect("to protect");
    call(MPROTECT, [start, bytes, RW]).expect("to protect");
    put_word(start, 1);
    call(MUNMAP, [start, bytes]).expect("to unmap");
    let start = populate(bytes / 4);
    call(MADVISE, [start, bytes / 4, MADV_DONTNEED]).expect("to give up");
    assert_eq!(word(start), 0);
    call(MUNMAP, [start, bytes / 4]).expect("to unmap");
}

/// Forks with much memory; the child writes some of it, and ends with all.
fn fork_of(bytes: u64) {
    let start = populate(bytes);
    let end = process::run(|| {
        (0..bytes).step_by(16 * PAGE as usize).for_each(|page| put_word(start + page, page));
        3
    });
    assert_eq!((end, word(start + 16 * PAGE)), (exited(3), 0), "the child's stores are not seen here");
}

/// SIGKILL ends a process that populates memory long before all of it is there.
fn killed_in_a_call(bytes: u64) {
    let start = time::now();
    let all = populate(bytes);
    let whole = time::now() - start;
    call(MUNMAP, [all, bytes]).expect("to unmap");

    let start = time::now();
    let child = process::spawn(|| u8::from(populate(bytes) == 0));
    time::sleep(whole / 8).expect("to sleep");
    process::end(child);
    let took = time::now() - start;
    assert!(took < whole / 2, "{took} ns until it ended; populating takes {whole}");
}

fn random(bytes: u64) {
    let start = memory::map(bytes, RW).expect("memory");
    assert_eq!(call(GETRANDOM, [start, bytes, 0]), Ok(bytes));
}

/// Writes 2 GiB to the console, until a signal comes.
fn write() {
    const BYTES: u64 = 2 << 30;
    signal::interrupt_by(SIGUSR1, 0);
    let parent = process::id() as i32;
    let child = process::spawn(|| {
        let _ = time::sleep(40 * MILLISECOND);
        u8::from(process::kill(parent, SIGUSR1).is_err())
    });
    let zeros = memory::map(BYTES, PROT_READ).expect("addresses");
    let done = call(WRITE, [1, zeros, BYTES]).expect("bytes that were written");
    assert!((64 << 10..8 * MIB).contains(&done), "{done} bytes were written before the signal");
    // The handler may run in this call as well.
    while process::wait4(child as i32, 0) == Err(EINTR) {}
    println!("\nwrote {done} bytes");
}
