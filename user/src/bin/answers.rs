//! Clocks, futexes, writes and random bytes, with arguments at the limits: each result is Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

fn run(_start: Start) -> u8 {
    parts! { ()
        clocks cpu_time sleeps interrupted_sleeps futexes_are_refused private_and_shared_futexes_differ
        a_futex_of_an_object_at_two_offsets a_futex_of_an_object_that_is_gone lists_of_buffers writes random_bytes
    }
    status("answers")
}

fn clock(clock: u64) -> Result<u64, Errno> {
    let mut time = Timespec::default();
    call(CLOCK_GETTIME, [clock, &raw mut time as u64])?;
    Ok(time.to_nanoseconds().expect("a time that is one"))
}

/// The clock of CPU time (2: as the scheduler counts it) of a process, or (4) of a thread; 0 is the caller.
const fn cpu_clock(number: u64, kind: u64) -> u64 {
    (!number << 3 | kind) & 0xffff_ffff
}

fn clocks() {
    let own = [(process::id(), 2), (process::thread_id(), 6)].map(|(id, kind)| cpu_clock(id.into(), kind));
    let there = [
        [CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC_RAW],
        [CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI, CLOCK_REALTIME_ALARM],
        [0, 1, 2, 4, 5].map(|kind| cpu_clock(0, kind)),
        // The upper half of a register is ignored.
        [CLOCK_BOOTTIME_ALARM, cpu_clock(0, 6), own[0], own[1], 1 << 32 | CLOCK_TAI],
    ];
    for &id in there.as_flattened() {
        equal(("clock", id), clock(id).map(drop), Ok(()));
        equal(("resolution of clock", id), call(CLOCK_GETRES, [id, 0]), Ok(0));
        equal(("clock to nowhere", id), call(CLOCK_GETTIME, [id, NOWHERE]), Err(EFAULT));
    }
    let others = [10, 12, 16, 99, 0x7fff_ffff, cpu_clock(0, 3), cpu_clock(0, 7), cpu_clock(0x0fff_ff00, 2)];
    for id in others {
        equal(("clock", id), clock(id), Err(EINVAL));
        equal(("clock to nowhere", id), call(CLOCK_GETTIME, [id, NOWHERE]), Err(EINVAL));
        equal(("resolution of clock", id), call(CLOCK_GETRES, [id, 0]), Err(EINVAL));
    }
    let short = Timespec { seconds: 0, nanoseconds: 1 };
    let at = &raw const short as u64;
    // Those that could wake a machine, as on a Linux with a device for that: the clocks of real time and of the boot, and
    // the only ones that look at flags without a meaning.
    let bad = Timespec { seconds: 0, nanoseconds: 1_000_000_000 };
    for (id, alike) in [(CLOCK_REALTIME_ALARM, CLOCK_REALTIME), (CLOCK_BOOTTIME_ALARM, CLOCK_BOOTTIME)] {
        let [before, now, after] = [alike, id, alike].map(|id| clock(id).unwrap_or(0));
        holds(("the same time", id), before <= now && now <= after);
        for (flags, answer) in [(0, Ok(0)), (TIMER_ABSTIME, Ok(0)), (2, Err(EINVAL)), (1 << 32, Ok(0))] {
            let sleep = |from: u64| call(CLOCK_NANOSLEEP, [id, flags, from, 0]);
            equal(("sleep by clock", id, flags), sleep(at), answer);
            equal(("sleep from nowhere", id, flags), sleep(NOWHERE), Err(EFAULT));
            equal(("sleep for no time", id, flags), sleep(&raw const bad as u64), Err(EINVAL));
        }
        equal(("flags without a meaning", alike), call(CLOCK_NANOSLEEP, [alike, 2, at, 0]), Ok(0));
    }
    for id in [10, 12, 16, 99, 0x7fff_ffff] {
        equal(("sleep by clock", id), call(CLOCK_NANOSLEEP, [id, 0, NOWHERE, 0]), Err(EINVAL));
    }
    // The clock of a file, which is none.
    equal("sleep by a file", call(CLOCK_NANOSLEEP, [cpu_clock(0, 3), 0, NOWHERE, 0]), Err(ENOTSUP));
    for id in [cpu_clock(0, 7), cpu_clock(0x0fff_ff00, 2)] {
        equal(("sleep by clock", id), call(CLOCK_NANOSLEEP, [id, 0, NOWHERE, 0]), Err(EFAULT));
        equal(("sleep by clock", id), call(CLOCK_NANOSLEEP, [id, 0, at, 0]), Err(EINVAL));
    }
    let goes_on = shared::<AtomicU32>();
    let child = process::spawn(|| {
        until(|| goes_on.load(Ordering::Relaxed) != 0);
    });
    holds("the clock of another process", clock(cpu_clock(u64::from(child), 2)).is_ok());
    equal("that of its thread", clock(cpu_clock(u64::from(child), 6)), Err(EINVAL));
    goes_on.store(1, Ordering::Relaxed);
    equal("a child", process::wait(child), exited(0));
    equal("one that is gone", clock(cpu_clock(u64::from(child), 2)), Err(EINVAL));
}

/// Computes until this clock has advanced by so much.
fn compute(id: u64, nanoseconds: u64) {
    let end = clock(id).expect("a clock") + nanoseconds;
    while clock(id).expect("a clock") < end {}
}

/// CPU time of the thread, and then of the process. On a machine that is slow at times no time has an upper bound but
/// the time that passed.
fn cpu_times() -> (u64, u64) {
    let [thread, process] = [CLOCK_THREAD_CPUTIME_ID, CLOCK_PROCESS_CPUTIME_ID].map(|id| clock(id).unwrap_or(0));
    holds("a process has the time of its thread", process >= thread);
    (thread, process)
}

fn cpu_time() {
    let before = cpu_times();
    compute(CLOCK_MONOTONIC, 30_000_000);
    let after = cpu_times();
    holds("a thread that computes takes time", after.0 - before.0 >= 3_000_000);
    holds("so does its process", after.1 - before.1 >= 3_000_000);
    // A machine that is slow at times may be so between the sleep's begin and the switch: once is enough.
    let free = (0..20).any(|_| {
        let begin = time::now();
        let before = cpu_times();
        time::sleep(100_000_000).expect("a sleep");
        let after = cpu_times();
        let awake = (time::now() - begin).saturating_sub(100_000_000);
        after.0 - before.0 <= awake && after.1 - before.1 <= awake
    });
    holds("a thread that sleeps takes none, nor does its process", free);
    Thread::spawn(|| compute(CLOCK_THREAD_CPUTIME_ID, 20_000_000)).join();
    let (thread, process) = cpu_times();
    holds("a thread that has ended counts", process >= thread + 20_000_000);
    let begin = time::now();
    apart(|| {
        holds("a copy begins at zero", clock(CLOCK_PROCESS_CPUTIME_ID).is_ok_and(|time| time <= time::now() - begin))
    });
}

fn sleeps() {
    let short = Timespec { seconds: 0, nanoseconds: 1_000_000 };
    let at = &raw const short as u64;
    for id in [CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI] {
        equal(("sleep by clock", id), call(CLOCK_NANOSLEEP, [id, 0, at, 0]), Ok(0));
        equal(("sleep from nowhere", id), call(CLOCK_NANOSLEEP, [id, 0, NOWHERE, 0]), Err(EFAULT));
    }
    for id in [CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_THREAD_CPUTIME_ID] {
        equal(("sleep by clock", id), call(CLOCK_NANOSLEEP, [id, 0, NOWHERE, 0]), Err(ENOTSUP));
    }
    for id in [cpu_clock(0, 6), cpu_clock(u64::from(process::thread_id()), 6)] {
        equal(("sleep by clock", id), call(CLOCK_NANOSLEEP, [id, 0, at, 0]), Err(EINVAL));
    }
    // A process whose only thread sleeps uses no time: another one has to.
    let thread = Thread::spawn(|| compute(CLOCK_THREAD_CPUTIME_ID, 60_000_000));
    let before = clock(CLOCK_PROCESS_CPUTIME_ID).unwrap_or(0);
    let some = Timespec { seconds: 0, nanoseconds: 20_000_000 };
    let answer = call(CLOCK_NANOSLEEP, [CLOCK_PROCESS_CPUTIME_ID, 0, &raw const some as u64, 0]);
    equal("sleep by the process's time", answer, Ok(0));
    holds("as long", clock(CLOCK_PROCESS_CPUTIME_ID).unwrap_or(0) - before >= 20_000_000);
    thread.join();
    let past = Timespec { seconds: 0, nanoseconds: 1 };
    let answer = call(CLOCK_NANOSLEEP, [CLOCK_PROCESS_CPUTIME_ID, TIMER_ABSTIME, &raw const past as u64, 0]);
    equal("until what is past", answer, Ok(0));
}

/// Returns what a call answers while signals come, with a handler that has these flags.
fn interrupted(flags: u64, call: impl FnOnce() -> Result<u64, Errno>) -> Result<u64, Errno> {
    interrupt_by(SIGUSR1, flags);
    while_signalled(SIGUSR1, 2_000_000, call)
}

fn interrupted_sleeps() {
    for (flags, id) in [(0, CLOCK_MONOTONIC), (SA_RESTART, CLOCK_MONOTONIC), (SA_RESTART, CLOCK_BOOTTIME_ALARM)] {
        let end = Timespec::from_nanoseconds(clock(id).unwrap_or(0) + 10_000_000_000);
        let answer = interrupted(flags, || call(CLOCK_NANOSLEEP, [id, TIMER_ABSTIME, &raw const end as u64, NOWHERE]));
        equal(("a sleep until", flags), answer, Err(EINTR));
        let length = Timespec::from_nanoseconds(10_000_000_000);
        let mut rest = Timespec::default();
        let answer =
            interrupted(flags, || call(CLOCK_NANOSLEEP, [id, 0, &raw const length as u64, &raw mut rest as u64]));
        equal(("a sleep for", flags), answer, Err(EINTR));
        holds("a rest", rest > Timespec::default() && rest < length);
        let answer =
            interrupted(flags, || call(CLOCK_NANOSLEEP, [CLOCK_MONOTONIC, 0, &raw const length as u64, NOWHERE]));
        equal(("a sleep whose rest has no place", flags), answer, Err(EFAULT));
        let word = AtomicU32::new(0);
        let answer = interrupted(flags, || futex(word.as_ptr() as u64, FUTEX_WAIT, 0, &raw const length as u64, 0));
        equal(("a futex with a limit", flags), answer, Err(EINTR));
    }
}

fn futex(word: u64, operation: u64, value: u32, limit: u64, bits: u32) -> Result<u64, Errno> {
    call(FUTEX, [word, operation, u64::from(value), limit, 0, u64::from(bits)])
}

fn futexes_are_refused() {
    let word = AtomicU32::new(5);
    let at = word.as_ptr() as u64;
    let zero = AtomicU32::new(0);
    let [none, read] = [PROT_NONE, PROT_READ].map(|protection| map(PAGE, protection).expect("a page"));
    let shared = call(MMAP, [0, PAGE, PROT_READ, SHARED, u64::MAX, 0]).expect("a page");
    for (what, operation, bits) in [("wake", FUTEX_WAKE, 0), ("wake bits", FUTEX_WAKE_BITSET, 1)] {
        let wake = |at: u64, private: u64| futex(at, operation | private, 1, 0, bits);
        for (place, at) in [("null", 0), ("a hole", NOWHERE), ("no access", none), ("private, read-only", read)] {
            equal((what, place), wake(at, 0), Err(EFAULT));
            equal((what, place, "private"), wake(at, FUTEX_PRIVATE_FLAG), Ok(0));
        }
        equal((what, "shared, read-only; the kernel's"), (wake(shared, 0), wake(KERNEL, 0)), (Ok(0), Err(EFAULT)));
        equal((what, "the kernel's, private"), wake(KERNEL, FUTEX_PRIVATE_FLAG), Err(EFAULT));
        equal((what, "odd; odd, and the kernel's"), (wake(at + 2, 0), wake(KERNEL + 1, 0)), (Err(EINVAL), Err(EINVAL)));
    }
    for (what, operation, bits) in [("wait", FUTEX_WAIT, 0), ("wait bits", FUTEX_WAIT_BITSET, 1)] {
        let wait = |at: u64, private: u64| futex(at, operation | private, 9, 0, bits);
        for (place, at) in [("null", 0), ("a hole", NOWHERE), ("no access", none), ("private, read-only", read)] {
            equal((what, place), wait(at, 0), Err(EFAULT));
        }
        equal((what, "private, read-only, private"), wait(read, FUTEX_PRIVATE_FLAG), Err(EAGAIN));
        equal((what, "shared, read-only; odd"), (wait(shared, 0), wait(at + 2, 0)), (Err(EAGAIN), Err(EINVAL)));
        equal((what, "another value"), wait(at, 0), Err(EAGAIN));
    }
    equal("wait for no bits", futex(at, FUTEX_WAIT_BITSET, 9, 0, 0), Err(EINVAL));
    equal("wait, real time", futex(at, FUTEX_WAIT | FUTEX_CLOCK_REALTIME, 9, 0, 0), Err(ENOSYS));
    equal("wake, real time", futex(at, FUTEX_WAKE | FUTEX_CLOCK_REALTIME, 1, 0, 0), Err(ENOSYS));
    equal("wait bits, real time", futex(at, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 9, 0, 1), Err(EAGAIN));
    // The limit is looked at first.
    let bad = Timespec { seconds: 0, nanoseconds: 1_000_000_000 };
    let bad = &raw const bad as u64;
    equal("a limit nowhere", futex(at + 2, FUTEX_WAIT, 9, NOWHERE, 0), Err(EFAULT));
    equal("a bad limit", futex(NOWHERE, FUTEX_WAIT, 9, bad, 0), Err(EINVAL));
    equal("a bad limit, real time", futex(at, FUTEX_WAIT | FUTEX_CLOCK_REALTIME, 9, bad, 0), Err(EINVAL));
    equal("a limit for waking", futex(at, FUTEX_WAKE, 1, bad, 0), Ok(0));
    let soon = Timespec { seconds: 0, nanoseconds: 1_000_000 };
    let soon = &raw const soon as u64;
    equal("a limit", futex(zero.as_ptr() as u64, FUTEX_WAIT, 0, soon, 0), Err(ETIMEDOUT));
    [none, read, shared].into_iter().for_each(unmap_page);
}

/// Wakes the thread that sleeps on the word, or is about to.
fn wake_one(at: u64, private: u64) {
    let mut woken = Ok(0);
    while woken == Ok(0) {
        woken = futex(at, FUTEX_WAKE | private, 9, 0, 0);
    }
    equal("of its kind", woken, Ok(1));
}

fn private_and_shared_futexes_differ() {
    // A word of the program's image.
    static WORD: AtomicU32 = AtomicU32::new(0);
    for (waits, wakes) in [(0, FUTEX_PRIVATE_FLAG), (FUTEX_PRIVATE_FLAG, 0)] {
        let (at, is_about_to) = (WORD.as_ptr() as u64, AtomicBool::new(false));
        let sleeps = || {
            is_about_to.store(true, Ordering::Relaxed);
            equal("a sleeper", futex(at, FUTEX_WAIT | waits, 0, 0, 0), Ok(0));
        };
        beside(sleeps, || {
            until(|| is_about_to.load(Ordering::Relaxed));
            time::sleep(20_000_000).expect("a sleep");
            equal("of the other kind", futex(at, FUTEX_WAKE | wakes, 1, 0, 0), Ok(0));
            wake_one(at, waits);
        });
    }
}

/// A word that one process reaches by an area that begins at it, the other by one that begins a page before.
fn a_futex_of_an_object_at_two_offsets() {
    let pages = call(MMAP, [0, 2 * PAGE, RW, SHARED, u64::MAX, 0]).expect("pages");
    // SAFETY: mapped above, and used as two words by both processes.
    let [first, second] = [0, PAGE].map(|offset| unsafe { &*((pages + offset) as *const AtomicU32) });
    let child = process::spawn(|| {
        call(MUNMAP, [pages, PAGE]).expect("a page to unmap");
        second.store(1, Ordering::Relaxed);
        equal("a sleeper", futex(second.as_ptr() as u64, FUTEX_WAIT, 1, 0, 0), Ok(0));
        wrong()
    });
    until(|| second.load(Ordering::Relaxed) != 0);
    time::sleep(20_000_000).expect("a sleep");
    equal("another word of the object", futex(first.as_ptr() as u64, FUTEX_WAKE, 9, 0, 0), Ok(0));
    wake_one(second.as_ptr() as u64, 0);
    second.store(2, Ordering::Relaxed);
    equal("a child", process::wait(child), exited(wrong()));
    call(MUNMAP, [pages, 2 * PAGE]).expect("pages to unmap");
}

fn a_futex_of_an_object_that_is_gone() {
    holds("a thread sleeps on what is gone", with_longer_times(50_000_000, an_object_goes));
}

/// A word of an object, which a thread sleeps on, and later one of another object at the same address. Whether the thread
/// slept already when the object went, `time` after it was about to.
fn an_object_goes(time: u64) -> bool {
    let flags = SHARED;
    let page = call(MMAP, [0, PAGE, RW, flags, u64::MAX, 0]).expect("a page");
    // SAFETY: mapped above, and atomic for the sleeper too.
    unsafe { AtomicU32::from_ptr(page as *mut u32) }.store(1, Ordering::Relaxed);
    let is_about_to = AtomicBool::new(false);
    let sleeps = || {
        let limit = Timespec { seconds: 0, nanoseconds: 200_000_000 };
        is_about_to.store(true, Ordering::Relaxed);
        // The other object has a zero there.
        match futex(page, FUTEX_WAIT, 1, &raw const limit as u64, 0) {
            Err(EFAULT | EAGAIN) => return false,
            answer => equal("a sleeper on what is gone", answer, Err(ETIMEDOUT)),
        }
        true
    };
    let (slept, ()) = beside(sleeps, || {
        until(|| is_about_to.load(Ordering::Relaxed));
        time::sleep(time).expect("a sleep");
        unmap_page(page);
        let again = call(MMAP, [page, PAGE, RW, flags | MAP_FIXED_NOREPLACE, u64::MAX, 0]);
        equal("another object", again, Ok(page));
        equal("a word of it", futex(page, FUTEX_WAKE, 9, 0, 0), Ok(0));
    });
    unmap_page(page);
    slept
}

fn lists_of_buffers() {
    let text = c"\n".as_ptr() as u64;
    let list = |pieces: &[(u64, u64)]| {
        let mut list = [IoVec { base: 0, length: 0 }; 4];
        list.iter_mut().zip(pieces).for_each(|(to, &(base, length))| *to = IoVec { base, length });
        (call(WRITEV, [1, list.as_ptr() as u64, pieces.len() as u64]), list.as_ptr() as u64)
    };
    let writev = |pieces: &[(u64, u64)]| list(pieces).0;
    equal("two pieces", writev(&[(text, 1), (text, 1)]), Ok(2));
    equal("a negative one later", writev(&[(text, 1), (text, u64::MAX)]), Err(EINVAL));
    equal("one of the kernel's later", writev(&[(text, 1), (KERNEL, 1)]), Err(EFAULT));
    equal("an empty one of the kernel's", writev(&[(text, 1), (KERNEL, 0)]), Err(EFAULT));
    equal("the kernel's, then a negative one", writev(&[(KERNEL, 1), (text, 1 << 63)]), Err(EINVAL));
    equal("one that wraps", writev(&[(text, 1), (u64::MAX - 8, 100)]), Err(EFAULT));
    equal("no pieces", call(WRITEV, [1, NOWHERE, 0]), Ok(0));
    equal("too many pieces", call(WRITEV, [1, NOWHERE, 1025]), Err(EINVAL));
    equal("a list nowhere", call(WRITEV, [1, NOWHERE, 2]), Err(EFAULT));
    equal("no descriptor", call(WRITEV, [77, NOWHERE, 2]), Err(EBADF));
    equal("to be read", call(READV, [0, NOWHERE, 2]), Err(EFAULT));
    let pages = with_a_hole();
    // SAFETY: the last 16 bytes before the hole.
    unsafe { ((*pages + PAGE - 16) as *mut IoVec).write(IoVec { base: text, length: 1 }) };
    equal("a list that ends in a hole", call(WRITEV, [1, *pages + PAGE - 16, 2]), Err(EFAULT));
    // A terminal takes 2048 bytes at once, or none of them, whichever pieces they are of.
    let (end, hole) = (*pages + PAGE - 2048, *pages + PAGE);
    equal("one that is there, one in a hole", writev(&[(text, 1), (hole, 8)]), Err(EFAULT));
    equal("one up to a hole and behind it", writev(&[(end, 2 * PAGE)]), Ok(2048));
    equal("the same behind another", writev(&[(text, 1), (end, 2 * PAGE)]), Ok(2048));
    equal("2048 bytes, then a hole", writev(&[(end, 1000), (text, 0), (end, 1048), (hole, 1)]), Ok(2048));
    equal("2047 bytes, then a hole", writev(&[(end, 1000), (text, 0), (end, 1047), (hole, 1)]), Err(EFAULT));
}

/// A page of line ends, and a hole behind it.
fn with_a_hole() -> Pages {
    let pages = Pages::map(2, RW, MAP_PRIVATE).expect("pages");
    // SAFETY: this function's pages.
    unsafe { core::ptr::write_bytes(*pages as *mut u8, b'\n', PAGE as usize) };
    unmap_page(*pages + PAGE);
    pages
}

fn unmap_page(page: u64) {
    call(MUNMAP, [page, PAGE]).expect("a page to unmap");
}

fn writes() {
    let text = c"\n".as_ptr() as u64;
    equal("-1 bytes", call(WRITE, [1, text, u64::MAX]), Err(EFAULT));
    equal("2^63 bytes", call(WRITE, [1, text, 1 << 63]), Err(EFAULT));
    equal("0 bytes of the kernel's", call(WRITE, [1, KERNEL, 0]), Err(EFAULT));
    equal("0 bytes of nowhere", call(WRITE, [1, NOWHERE, 0]), Ok(0));
    equal("-1 bytes to be read", call(READ, [0, text, u64::MAX]), Err(EFAULT));
    equal("0 bytes to be read to the kernel", call(READ, [0, KERNEL, 0]), Err(EFAULT));
    equal("0 bytes to be read to nowhere", call(READ, [0, NOWHERE, 0]), Ok(0));
    let pages = with_a_hole();
    // A terminal takes 2048 bytes at once, or none of them.
    let fault = Err(EFAULT);
    for (before, linux) in
        [(4, fault), (300, fault), (2047, fault), (2048, Ok(2048)), (2100, Ok(2048)), (4096, Ok(4096))]
    {
        equal(("before a hole", before), call(WRITE, [1, *pages + PAGE - before, 2 * PAGE]), linux);
    }
}

fn random_bytes() {
    let pages = with_a_hole();
    for flags in 0..8 {
        let linux = if flags & 6 == 6 { Err(EINVAL) } else { Ok(16) };
        equal(("flags", flags), call(GETRANDOM, [*pages, 16, flags]), linux);
        equal(("flags", flags, "and bit 32"), call(GETRANDOM, [*pages, 16, 1 << 32 | flags]), linux);
    }
    equal("flags 8", call(GETRANDOM, [*pages, 16, 8]), Err(EINVAL));
    for before in [1, 7, 15, 16, 17, 31, 33, 100, 4095] {
        let at = *pages + PAGE - before;
        // SAFETY: the page is this function's.
        unsafe { core::ptr::write_bytes(at as *mut u8, 0, before as usize) };
        equal(("up to a hole", before), call(GETRANDOM, [at, 5000, 0]), Ok(before));
        if before >= 15 {
            // SAFETY: as above.
            let last = unsafe { core::slice::from_raw_parts((*pages + PAGE - 8) as *const u8, 8) };
            holds(("the last bytes were written", before), last != [0; 8]);
        }
    }
    equal("into a hole", call(GETRANDOM, [*pages + PAGE, 16, 0]), Err(EFAULT));
    equal("none into a hole", call(GETRANDOM, [*pages + PAGE, 0, 0]), Ok(0));
    equal("none into the kernel", call(GETRANDOM, [KERNEL, 0, 0]), Err(EFAULT));
    // Linux cuts a length above 2 GiB before it checks the end.
    let low = call(MMAP, [0x10_0000_0000, PAGE, RW, PRIVATE | MAP_FIXED_NOREPLACE, u64::MAX, 0]).expect("a page");
    equal("too many", call(GETRANDOM, [low, 1 << 49, 0]), Ok(PAGE));
    unmap_page(low);
    equal("wrapping", call(GETRANDOM, [u64::MAX - 100, 200, 0]), Err(EFAULT));
}
