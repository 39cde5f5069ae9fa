//! The largest counts that a program can choose, one in each run: work during which a kernel may keep a CPU, or interrupts
//! masked. `many WHAT COUNT`.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::ops::RangeInclusive;

use granule_user::prelude::*;

entry!(run);
own!(call, file, put_word);

/// For what this CPU does on behalf of all threads.
const SETTLED: u64 = 300 * MILLISECOND;

fn run(start: Start) -> u8 {
    let part = start.part(&parts! { counted
        descriptors polls pollers pipes console readers pause threads pagers faulters areas mappings mappers migrate kills
        oom addresses vectors
    });
    let (Some(part), Some(what)) = (part, start.arguments().nth(1)) else { return 2 };
    process::limit(RLIMIT_NOFILE, 1 << 20, 1 << 20).expect("a limit");
    part(start.arguments().nth(2).and_then(|count| count.parse().ok()).unwrap_or(1));
    println!("many {what}: ok");
    0
}

fn pause(milliseconds: u64) {
    let _ = time::sleep(milliseconds * MILLISECOND);
}

/// Threads that are there.
static THERE: AtomicU32 = AtomicU32::new(0);

/// Has so many threads add themselves to [`THERE`] and call `main`; they end with the process.
fn crowd(count: u32, main: impl FnOnce() + Copy + Send + 'static) {
    for _ in 0..count {
        let _ = Thread::spawn(move || {
            THERE.fetch_add(1, Ordering::Release);
            main();
        });
    }
    asleep_until(|| THERE.load(Ordering::Acquire) == count);
    time::sleep(SETTLED).expect("to sleep");
}

/// Is there no more, and ends with the process.
fn rest() {
    THERE.fetch_sub(1, Ordering::Release);
    let _ = time::sleep(u64::MAX >> 2);
}

fn map(bytes: u64, protection: u64, flags: u64) -> u64 {
    call(MMAP, [0, bytes, protection, flags, u64::MAX, 0]).expect("addresses")
}

/// Descriptors up to the limit; a child has a table of its own of them.
fn descriptors(count: u64) {
    let counter = call(EVENTFD2, [0, 0]).expect("a counter");
    call(DUP3, [counter, count - 1, 0]).expect("the last descriptor");
    for _ in 0..count - 5 {
        call(DUP3, [counter, call(DUP, [counter]).expect("a descriptor"), O_CLOEXEC.into()]).expect("one to be closed");
    }
    process::in_copy(|| assert_eq!(call(CLOSE, [counter]), Ok(0)));
    println!("many descriptors: ok, but for an exec:");
    panic!("{:?}", process::execute(c"hello", &[c"hello"]));
}

/// A list for `ppoll` of one descriptor, so many times.
fn poll_list(descriptor: u64, count: u64) -> u64 {
    let list = map(count * 8, RW, PRIVATE);
    for index in 0..count {
        let polled = PollFd { fd: descriptor as i32, events: POLLIN, revents: 0 };
        // SAFETY: mapped above.
        unsafe { ((list + index * 8) as *mut PollFd).write(polled) };
    }
    list
}

/// One call with so many descriptors; it is left by its time limit, and by SIGKILL before it waits.
fn polls(count: u64) {
    let list = poll_list(call(EVENTFD2, [0, 0]).expect("a counter"), count);
    let limit = Timespec::from_nanoseconds(MILLISECOND);
    let begun = time::now();
    assert_eq!(call(PPOLL, [list, count, &raw const limit as u64, 0]), Ok(0));
    let whole = time::now() - begun;
    let child = process::spawn(|| u8::from(call(PPOLL, [list, count, 0, 0]).is_ok()));
    time::sleep(whole / 8).expect("to sleep");
    let begun = time::now();
    process::end(child);
    assert!(time::now() - begun < whole / 8, "a poll of {count} was not left at once");
}

fn poll_one(descriptor: u64) {
    let mut polled = PollFd { fd: descriptor as i32, events: POLLIN, revents: 0 };
    let _ = call(PPOLL, [&raw mut polled as u64, 1, 0, 0]);
}

fn poll_on(descriptor: u64) -> ! {
    loop {
        poll_one(descriptor);
        process::sched_yield();
    }
}

/// Threads that poll one counter, all woken at once.
fn pollers(count: u32) {
    let counter = call(EVENTFD2, [0, 0]).expect("a counter");
    crowd(count, move || poll_on(counter));
    let mut value = 1_u64;
    call(WRITE, [counter, &raw const value as u64, 8]).expect("to count");
    call(READ, [counter, &raw mut value as u64, 8]).expect("the count");
    time::sleep(SETTLED).expect("to sleep");
    call(WRITE, [counter, &raw const value as u64, 8]).expect("to count");
}

/// Threads that read one pipe, whose other end is closed.
fn pipes(count: u32) {
    let mut ends = [0_u32; 2];
    call(PIPE2, [ends.as_mut_ptr() as u64, 0]).expect("a pipe");
    crowd(count, move || {
        let mut byte = 0_u8;
        let _ = call(READ, [ends[0].into(), &raw mut byte as u64, 1]);
        rest();
    });
    call(WRITE, [ends[1].into(), c"abc".as_ptr() as u64, 3]).expect("to write");
    time::sleep(SETTLED).expect("to sleep");
    assert_eq!(THERE.load(Ordering::Acquire), count - 3);
    call(CLOSE, [ends[1].into()]).expect("to close");
    asleep_until(|| THERE.load(Ordering::Acquire) == 0);
}

/// Threads that poll the console, for a second after all are there.
fn console(count: u32) {
    crowd(count, || poll_on(0));
    time::sleep(100_000 * MILLISECOND).expect("to sleep");
}

/// Prints the monitor's prompt, at which the script types its next line. All threads or processes are there.
fn ask_for_input() {
    println!("granule> ");
}

/// Threads that read the console; all are woken by each of the two bytes that are typed then.
fn readers(count: u32) {
    crowd(count, move || {
        let mut byte = 0_u8;
        while call(READ, [0, &raw mut byte as u64, 1]) != Ok(1) {}
        rest();
    });
    ask_for_input();
    asleep_until(|| THERE.load(Ordering::Acquire) == count - 2);
    time::sleep(SETTLED).expect("to sleep");
}

/// Threads that sleep, and calls that are for all of them: CPU time, signals that none takes, a fork; then an exec.
fn threads(count: u32) {
    static GATE: AtomicU32 = AtomicU32::new(0);
    let both = signal::set_of(SIGUSR1) | signal::set_of(SIGUSR2);
    [SIGUSR1, SIGUSR2].into_iter().for_each(|signal| signal::interrupt_by(signal, 0));
    signal::mask(SIG_BLOCK, both).expect("a mask");
    // They block the signals too.
    crowd(count, move || {
        loop {
            let _ = futex_wait(&GATE, 0, None);
        }
    });
    let mut time = Timespec::from_nanoseconds(0);
    call(CLOCK_GETTIME, [CLOCK_PROCESS_CPUTIME_ID, &raw mut time as u64]).expect("CPU time");
    let own = process::id();
    process::kill(own as i32, SIGUSR1).expect("a signal");
    process::kill(own as i32, SIGUSR2).expect("a signal");
    signal::set_without_handler(SIGUSR1, SIG_IGN);
    assert_eq!([SIGUSR1, SIGUSR2].map(signal::is_pending), [Ok(false), Ok(true)]);
    signal::mask(SIG_UNBLOCK, both).expect("a mask");
    process::in_copy(|| {});
    println!("many threads: ok, but for an exec:");
    panic!("{:?}", process::execute(c"hello", &[c"hello"]));
}

/// Userfaultfds that serve a page each, and ask for events of changes of all their pages: the process ends before those are
/// read.
fn pagers(count: u64) {
    for feature in [UFFD_FEATURE_EVENT_UNMAP, UFFD_FEATURE_EVENT_REMOVE, UFFD_FEATURE_EVENT_FORK] {
        process::in_copy(|| changed_by_a_thread(count, feature));
    }
}

fn changed_by_a_thread(count: u64, feature: u64) {
    let pager = || Pager::new(0, feature).expect("a pager");
    let start = map(2 * count * PAGE, RW, PRIVATE | MAP_NORESERVE);
    let first = pager();
    let register = |pager: Pager, page| pager.register(page, PAGE, UFFDIO_REGISTER_MODE_MISSING).expect("to register");
    register(first, start);
    let second = pager();
    register(second, start + 2 * PAGE);
    for index in 2..count {
        register(pager(), start + 2 * index * PAGE);
    }
    // The lowest number is free, then the one behind all others.
    let page = map(2 * PAGE, RW, PRIVATE);
    call(CLOSE, [second.0.into()]).expect("to close");
    register(pager(), page);
    register(pager(), page + PAGE);
    let change = move || {
        let bytes = 2 * count * PAGE;
        let _ = match feature {
            UFFD_FEATURE_EVENT_UNMAP => call(MUNMAP, [start, bytes]),
            UFFD_FEATURE_EVENT_REMOVE => call(MADVISE, [start, bytes, MADV_DONTNEED]),
            _ => process::try_spawn(|| 0).map(u64::from),
        };
    };
    let _ = Thread::spawn(change);
    poll_one(first.0.into());
}

/// Threads that fault at a page that a pager serves, and others that read its messages.
fn faulters(count: u32) {
    let page = map(PAGE, RW, PRIVATE);
    let pager = Pager::new(0, 0).expect("a pager");
    pager.register(page, PAGE, UFFDIO_REGISTER_MODE_MISSING).expect("to register");
    crowd(count, move || {
        put_word(page, 1);
        rest();
    });
    pager.wake(page, PAGE).expect("a wake-up");
    time::sleep(SETTLED).expect("to sleep");
    pager.zero(page, PAGE, 0).expect("a page");
    asleep_until(|| THERE.load(Ordering::Acquire) == 0);
    // All read, and one message comes for them all.
    for _ in 0..count / 2 {
        let _ = Thread::spawn(move || _ = pager.read_one());
    }
    time::sleep(SETTLED).expect("to sleep");
    call(MADVISE, [page, PAGE, MADV_DONTNEED]).expect("to discard");
    let _ = Thread::spawn(move || put_word(page, 1));
    time::sleep(SETTLED).expect("to sleep");
    call(CLOSE, [pager.0.into()]).expect("to close");
}

/// Areas, and each call that goes over all of them.
fn areas(count: u64) {
    let bytes = count * PAGE;
    let start = map(bytes, PROT_READ, PRIVATE);
    for page in (start..start + bytes).step_by(2 * PAGE as usize) {
        call(MPROTECT, [page, PAGE, RW]).expect("an area");
    }
    for advice in [MADV_DONTFORK, MADV_DOFORK, MADV_DONTNEED, MADV_POPULATE_WRITE, MADV_FREE, MADV_PAGEOUT] {
        let _ = call(MADVISE, [start, bytes, advice]);
    }
    call(MADVISE, [start, bytes, MADV_GUARD_INSTALL]).expect("guards");
    call(MADVISE, [start, bytes, MADV_GUARD_REMOVE]).expect("no guards");
    let present = map(count, RW, PRIVATE);
    call(MINCORE, [start, bytes, present]).expect("what is there");
    call(MSYNC, [start, bytes, MS_SYNC.into()]).expect("to write back");
    let vector = [[start, bytes], [map(bytes, RW, PRIVATE), bytes]];
    let (local, remote) = (&raw const vector[1] as u64, &raw const vector[0] as u64);
    call(PROCESS_VM_READV, [process::id().into(), local, 1, remote, 1, 0]).expect("to read");
    process::in_copy(|| {});
    for mode in [UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP] {
        let pager = Pager::new(0, 0).expect("a pager");
        // Those that may not be written are refused without a registration of what may be.
        call(MPROTECT, [start, bytes, RW]).expect("one area");
        divide_by_advice(start, bytes);
        pager.register(start, bytes, mode).expect("to register");
        assert_eq!(pager.protect(start, bytes).is_ok(), mode == UFFDIO_REGISTER_MODE_WP);
        call(CLOSE, [pager.0.into()]).expect("to close");
    }
    call(MLOCKALL, [MCL_CURRENT.into()]).expect("to lock");
    call(MUNLOCKALL, []).expect("to unlock");
    call(MUNMAP, [start, bytes]).expect("to unmap");
    let start = map(bytes, PROT_READ, PRIVATE);
    divide_by_advice(start, bytes);
}

/// Areas of one page each.
fn divide_by_advice(start: u64, bytes: u64) {
    for page in (start..start + bytes).step_by(2 * PAGE as usize) {
        call(MADVISE, [page, PAGE, MADV_DONTFORK]).expect("an area");
    }
}

/// Mappings of one page of a file, which is taken away.
fn mappings(count: u64) {
    let file = file(1);
    let start = map(count * PAGE, PROT_NONE, PRIVATE | MAP_NORESERVE);
    let pages = || (start..start + count * PAGE).step_by(PAGE as usize);
    for page in pages() {
        call(MMAP, [page, PAGE, RW, MAP_SHARED | MAP_FIXED | MAP_POPULATE, file, 0]).expect("a mapping");
    }
    put_word(start, 1);
    call(FALLOCATE, [file, PUNCH_HOLE.into(), 0, PAGE]).expect("a hole");
    pages().for_each(|page| put_word(page, 1));
    process::in_copy(|| {});
    call(MADVISE, [start, PAGE, MADV_REMOVE]).expect("a hole");
    pages().for_each(|page| put_word(page, 1));
    call(FTRUNCATE, [file, 0]).expect("no page");
    call(MUNMAP, [start, count * PAGE]).expect("to unmap");
}

/// Has so many children, which call `first` and then sleep; their numbers.
fn family(count: u32, first: impl Fn()) -> RangeInclusive<u32> {
    let own = process::id();
    let mut children = 0..=0;
    for _ in 0..count {
        let child = process::spawn(|| {
            first();
            while process::parent_id() == own {
                let _ = time::sleep(100_000 * MILLISECOND);
            }
        });
        children = if *children.start() == 0 { child..=child } else { *children.start()..=child };
    }
    time::sleep(SETTLED).expect("to sleep");
    children
}

/// Waits for `count` children, which signal `by` has ended.
fn all_are_killed(count: u32, by: u32) {
    (0..count).for_each(|_| assert!(process::wait4(-1, 0).is_ok_and(|(_, status)| status == killed(by))));
}

/// Ctrl-C, which is for each process, and a signal to all but the caller.
fn kills(count: u32) {
    family(count, || {});
    signal::interrupt_by(SIGINT, SA_RESTART);
    ask_for_input();
    // The script types Ctrl-C, and the line's end.
    let mut end = 0_u8;
    assert_eq!(call(READ, [0, &raw mut end as u64, 1]), Ok(1));
    all_are_killed(count, SIGINT);
    family(count, || {});
    call(KILL, [u64::MAX, SIGKILL.into()]).expect("others");
    all_are_killed(count, SIGKILL);
}

/// Want of memory beside so many processes, of which one is chosen: that with most memory.
fn oom(count: u32) {
    family(count, || {});
    let largest =
        process::run(|| (0..u64::MAX).for_each(|_| _ = map(16 * MIB, RW, PRIVATE | MAP_NORESERVE | MAP_POPULATE)));
    assert_eq!(largest, killed(SIGKILL));
    call(KILL, [u64::MAX, SIGKILL.into()]).expect("others");
    all_are_killed(count, SIGKILL);
}

/// Where [`migrate`] has a page of a file, mapped so many times, and behind those one of its own, in a space of a family of
/// many. The monitor is asked to migrate both.
const MIGRATED: u64 = 0x1000_0000_0000;

/// Stays until it is killed.
fn migrate(count: u64) {
    const FAMILY: u32 = 2000;
    family(FAMILY, || {});
    let file = file(1);
    for page in (MIGRATED..).step_by(PAGE as usize).take(count as usize) {
        call(MMAP, [page, PAGE, RW, MAP_SHARED | MAP_FIXED | MAP_POPULATE, file, 0]).expect("a mapping");
    }
    let own = MIGRATED + count * PAGE;
    call(MMAP, [own, PAGE, RW, PRIVATE | MAP_FIXED | MAP_POPULATE, u64::MAX, 0]).expect("a page");
    println!("many migrate: {own:#x}");
    time::sleep(100_000_000 * MILLISECOND).expect("to sleep");
}

/// Processes that have a page of a file, and one of their parent's, both in common.
fn mappers(count: u32) {
    let file = file(1);
    let shared = call(MMAP, [0, PAGE, RW, MAP_SHARED | MAP_POPULATE, file, 0]).expect("a mapping");
    let private = map(PAGE, RW, PRIVATE);
    put_word(private, 1);
    let children = family(count, || put_word(shared, 1));
    put_word(private, 1);
    call(FTRUNCATE, [file, 0]).expect("no page");
    // To all, of which each is asked.
    call(KILL, [u64::MAX, 0]).expect("others");
    children.for_each(|child| _ = process::kill(child as i32, SIGKILL));
    while process::wait4(-1, 0).is_ok() {}
}

/// TiB of addresses with a page in each of some GiB, and each call that goes over all of them.
fn addresses(tib: u64) {
    let bytes = tib << 40;
    let start = map(bytes, RW, PRIVATE | MAP_NORESERVE);
    let spread = |start: u64| (0..1024).for_each(|part| put_word(start + (part * (bytes >> 10)) / PAGE * PAGE, 1));
    spread(start);
    call(MPROTECT, [start, bytes, PROT_READ]).expect("to protect");
    call(MPROTECT, [start, bytes, RW]).expect("to protect");
    for advice in [MADV_FREE, MADV_PAGEOUT, MADV_DONTNEED] {
        let _ = call(MADVISE, [start, bytes, advice]);
        spread(start);
    }
    call(MSYNC, [start, bytes, MS_SYNC.into()]).expect("to write back");
    let present = map(256 * MIB, RW, PRIVATE | MAP_NORESERVE);
    call(MINCORE, [start, 256 * MIB * PAGE, present]).expect("what is there");
    process::in_copy(|| {});
    let moved = call(MREMAP, [start, bytes, bytes + PAGE, MREMAP_MAYMOVE]);
    let start = moved.unwrap_or(start);
    let pager = Pager::new(0, 0).expect("a pager");
    pager.register(start, bytes, UFFDIO_REGISTER_MODE_WP).expect("to register");
    pager.protect(start, bytes).expect("to protect");
    pager.unregister(start, bytes).expect("to end that");
    let file = file(0);
    call(FTRUNCATE, [file, bytes]).expect("a large file");
    for part in 0..1024 {
        call(PWRITE64, [file, c"x".as_ptr() as u64, 1, part * (bytes >> 10)]).expect("a page");
    }
    call(FALLOCATE, [file, PUNCH_HOLE.into(), 0, bytes / 2]).expect("a hole");
    call(LSEEK, [file, 0, SEEK_DATA.into()]).expect("data");
    call(FTRUNCATE, [file, 0]).expect("nothing");
    call(MUNMAP, [start, bytes]).expect("to unmap");
}

/// Calls with as many parts as they take, and many words for a program.
fn vectors(count: u64) {
    const WORDS: usize = 60_000;
    let at = map(count * 16, RW, PRIVATE);
    let bytes = map(64 * PAGE, RW, PRIVATE);
    let file = file(0);
    let fill = |length: u64| {
        for index in 0..count {
            // SAFETY: mapped above.
            unsafe { ((at + index * 16) as *mut [u64; 2]).write([bytes, length]) };
        }
    };
    for length in [0, 1, 64 * PAGE] {
        fill(length);
        call(WRITEV, [file, at, count]).expect("to write");
        let _ = call(PREAD64, [file, bytes, 64 * PAGE, 0]);
        call(READV, [file, at, count]).expect("to read");
        call(PROCESS_VM_READV, [process::id().into(), at, count, at, count, 0]).expect("to read");
    }
    let end = call(BRK, [0]).expect("the heap's end");
    let more = call(BRK, [end + 512 * MIB]).expect("the heap's end");
    call(MLOCK, [end / PAGE * PAGE, more - end]).expect("to lock");
    call(BRK, [end]).expect("the heap's end");
    let words = map(8 * (WORDS as u64 + 1), RW, PRIVATE);
    for index in 0..WORDS {
        // SAFETY: mapped above.
        unsafe { ((words as *mut *const u8).add(index)).write(c"a".as_ptr().cast()) };
    }
    // One is as long as one may be.
    let long = map(32 * PAGE, RW, PRIVATE);
    for at in long..long + 32 * PAGE - 1 {
        // SAFETY: mapped above.
        unsafe { (at as *mut u8).write(if at % 2 == 0 { b'.' } else { b'/' }) };
    }
    // SAFETY: as above.
    unsafe { (words as *mut *const u8).write(long as *const u8) };
    // Of the second the name is no longer than a path may be.
    assert!(call(OPENAT, [HERE, long, 0]).is_err());
    let _ = call(OPENAT, [HERE, long + 31 * PAGE, 0]);
    // SAFETY: as above; a null pointer ends them.
    let words = unsafe { core::slice::from_raw_parts(words as *const *const u8, WORDS + 1) };
    println!("many vectors: ok, but for an exec:");
    let error = process::execve(c"hello", words, &[core::ptr::null()]);
    panic!("{error:?}");
}
