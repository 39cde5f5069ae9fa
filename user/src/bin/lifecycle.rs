//! Processes: fork, exec, exit and wait, and what becomes of children.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

fn run(start: Start) -> u8 {
    let mut words = start.arguments();
    let arguments: [Option<&str>; 4] = core::array::from_fn(|_| words.next());
    match arguments[1] {
        None => {}
        // The program that `exec_replaces_the_program` starts.
        Some("child") => return if arguments[2] == Some("two words") && arguments[3].is_none() { 42 } else { 1 },
        Some("ask") => ask(),
        Some("rounds") => return rounds(arguments[2].and_then(|count| count.parse().ok()).unwrap_or(100)),
        Some(_) => return 2,
    }
    parts! { ()
        statuses memory_is_copied waiting exec_replaces_the_program exec_ends_other_threads exits_with_threads
        vfork_shares_until_exec orphans_are_collected the_signal_of_an_end_is_the_one_asked_for bad_clones_are_refused
    }
    println!("lifecycle: ok");
    0
}

/// Forks, executes and exits this often: the kernel's accounts are compared before and after.
fn rounds(count: u32) -> u8 {
    for _ in 0..count {
        let end = process::run(|| {
            assert_eq!(process::run(|| process::execute(c"hello-not-there", &[c"x"]) as u8), exited(2));
            again()
        });
        assert_eq!(end, exited(42));
    }
    0
}

/// Makes the kernel write to one page, for ever. The test has the page's address too.
fn ask() -> ! {
    const PLACE: u64 = 0x7000_0000_0000;
    call(MMAP, [PLACE, PAGE, RW, PRIVATE | MAP_FIXED_NOREPLACE, u64::MAX, 0]).expect("a page");
    loop {
        call(GETRANDOM, [PLACE, 8, 0]).expect("random bytes");
    }
}

/// Executes this program in place of itself, which exits with 42.
fn again() -> u8 {
    process::execute(c"lifecycle", &[c"lifecycle", c"child", c"two words"]) as u8
}

fn statuses() {
    for code in [0, 1, 255] {
        assert_eq!(process::run(|| code), exited(code));
    }
    for signal in [SIGTERM, SIGKILL, 40] {
        let end = process::run(|| process::kill(process::id() as i32, signal).expect("a signal to oneself"));
        assert_eq!(end, killed(signal), "signal {signal}");
    }
    let parent = process::id();
    process::in_copy(|| assert!(process::parent_id() == parent && process::id() != parent, "the child's numbers"));
}

fn memory_is_copied() {
    static WORD: AtomicU32 = AtomicU32::new(1);
    let child = process::spawn(|| {
        assert_eq!(WORD.load(Ordering::Relaxed), 1);
        WORD.store(2, Ordering::Relaxed);
        assert_eq!(process::run(|| WORD.swap(3, Ordering::Relaxed) as u8), exited(2));
        WORD.load(Ordering::Relaxed) as u8
    });
    assert_eq!(process::wait(child), exited(2));
    assert_eq!(WORD.load(Ordering::Relaxed), 1, "the parent's memory is its own");
}

fn waiting() {
    assert_eq!(process::wait4(-1, 0), Err(ECHILD), "there are no children");
    let goes_on = shared::<AtomicU32>();
    let child = process::spawn(|| {
        until(|| goes_on.load(Ordering::Relaxed) != 0);
        7
    });
    assert_eq!(process::wait4(-1, WNOHANG), Ok((0, 0)), "it runs");
    assert_eq!(process::wait4(child as i32 + 1, 0), Err(ECHILD), "another's child");
    assert_eq!(process::wait4(child as i32, 1 << 20), Err(EINVAL), "an option that is none");
    goes_on.store(1, Ordering::Relaxed);
    assert_eq!(process::wait4(-1, 0), Ok((child, exited(7))));
    assert_eq!(process::wait4(child as i32, 0), Err(ECHILD), "collected");

    let child = process::spawn(|| 0);
    assert_eq!(call(WAIT4, [child.into(), 8, 0, 0]), Err(EFAULT), "no place for the status");
}

fn exec_replaces_the_program() {
    assert_eq!(process::run(again), exited(42));
    let by_its_path = || process::execute(c"/lifecycle", &[c"lifecycle", c"child", c"two words"]) as u8;
    assert_eq!(process::run(by_its_path), exited(42));
}

fn exec_ends_other_threads() {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    let child = process::spawn(|| {
        // Threads that run and threads that sleep; and it is not the first thread that executes.
        let threads = [0_usize; 3].map(|_| {
            thread::Thread::spawn(|| {
                STARTED.fetch_add(1, Ordering::Relaxed);
                let _ = thread::futex_wait(&AtomicU32::new(0), 0, None);
            })
        });
        until(|| STARTED.load(Ordering::Relaxed) == 3);
        let last = thread::Thread::spawn(|| process::exit_group(again()));
        threads.into_iter().for_each(thread::Thread::join);
        last.join();
        99
    });
    assert_eq!(process::wait(child), exited(42));
}

fn exits_with_threads() {
    let child = process::spawn(|| {
        let _thread = thread::Thread::spawn(|| until(|| false));
        5
    });
    assert_eq!(process::wait(child), exited(5), "exit_group ends a thread that runs");
}

fn vfork_shares_until_exec() {
    static WORD: AtomicU32 = AtomicU32::new(0);
    extern "C" fn child() -> ! {
        time::sleep(5_000_000).expect("a sleep");
        WORD.store(1, Ordering::Relaxed);
        process::exit_group(again())
    }
    let child = process::share(CLONE_VM | CLONE_VFORK | u64::from(SIGCHLD), child).expect("a clone");
    assert_eq!(WORD.load(Ordering::Relaxed), 1, "the parent slept until the child's exec");
    assert_eq!(process::wait(child), exited(42));
}

fn orphans_are_collected() {
    process::in_copy(|| {
        process::spawn(|| time::sleep(5_000_000).expect("a sleep"));
        // One that has ended already, and one that has not.
        process::spawn(|| 0);
    });
    assert_eq!(process::wait4(-1, 0), Err(ECHILD), "grandchildren are not children");
}

/// How often each signal has come, and which process the last one was for.
static RECEIVED: [AtomicU32; 32] = [const { AtomicU32::new(0) }; 32];
static LAST: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(signal: u32, info: &SigInfo, _context: &mut UContext) {
    RECEIVED[signal as usize].fetch_add(1, Ordering::Relaxed);
    LAST.store(info.fields[0] as u32, Ordering::Relaxed);
}

/// The signals since the last call: of SIGCHLD, SIGUSR1 and SIGUSR2.
fn received() -> [u32; 3] {
    [SIGCHLD, SIGUSR1, SIGUSR2].map(|signal| RECEIVED[signal as usize].swap(0, Ordering::Relaxed))
}

/// A copy of the process by `flags`, their signal included; it exits with what `child` returns.
fn spawn_with(flags: u64, child: impl FnOnce() -> u8) -> u32 {
    process::clone_with(flags, [0; 2], child).expect("a clone")
}

/// Waits for a child that may have ended with any signal, or none; its status.
fn wait_for_any(child: u32) -> u32 {
    let (number, status) = process::wait4(child as i32, WALL).expect("a child to wait for");
    assert_eq!(number, child);
    status
}

fn the_signal_of_an_end_is_the_one_asked_for() {
    for signal in [SIGCHLD, SIGUSR1, SIGUSR2] {
        // SAFETY: the handler stores to atomics.
        unsafe { signal::handle(signal, note, SA_RESTART, 0) }.expect("a handler");
    }
    for (signal, wanted) in [(SIGCHLD, [1, 0, 0]), (SIGUSR1, [0, 1, 0]), (0, [0, 0, 0])] {
        let asked = u64::from(signal);
        let child = spawn_with(asked, || 3);
        if signal != SIGCHLD {
            assert_eq!(process::wait4(-1, 0), Err(ECHILD), "not without being asked for");
            assert_eq!(process::wait4(child as i32, WCLONE), Ok((child, exited(3))));
        } else {
            assert_eq!(process::wait4(child as i32, WCLONE), Err(ECHILD), "no clone");
            assert_eq!(process::wait(child), exited(3));
        }
        assert_eq!(received(), wanted, "asked for {signal}");
        assert!(signal == 0 || LAST.load(Ordering::Relaxed) == child, "by whose end");

        // With a new program it is a child like others.
        let child = spawn_with(asked, again);
        assert_eq!((wait_for_any(child), received()), (exited(42), [1, 0, 0]), "asked for {signal}, then an exec");
        a_child_for_the_parent(signal, wanted);
    }
}

/// CLONE_PARENT: the child's child is this process's, which gets the signal of its own child at its end,
/// whatever signal the child has set.
fn a_child_for_the_parent(signal: u32, wanted: [u32; 3]) {
    let [number, goes_on] = shared::<[AtomicU32; 2]>();
    let own = process::id();
    let child = spawn_with(u64::from(signal), || {
        let sibling = spawn_with(CLONE_PARENT | u64::from(SIGUSR2), || u8::from(process::parent_id() != own));
        assert_eq!(process::wait4(-1, WALL), Err(ECHILD), "it is not the child's");
        number.store(sibling, Ordering::Relaxed);
        until(|| goes_on.load(Ordering::Relaxed) != 0);
        assert_eq!(received(), [0, 0, 0], "the child gets no signal");
        0
    });
    until(|| number.load(Ordering::Relaxed) != 0);
    let sibling = number.load(Ordering::Relaxed);
    assert_eq!((wait_for_any(sibling), received()), (exited(0), wanted), "asked for {signal} and then for SIGUSR2");
    assert!(signal == 0 || LAST.load(Ordering::Relaxed) == sibling, "by whose end");
    goes_on.store(1, Ordering::Relaxed);
    assert_eq!((wait_for_any(child), received()), (exited(0), wanted), "the child's own end");
}

fn bad_clones_are_refused() {
    let bad = [CLONE_THREAD, CLONE_SIGHAND, CLONE_THREAD | CLONE_VM, 0x1000_0000, 65];
    for flags in bad {
        assert_eq!(call(CLONE, [flags, 0, 0, 0, 0]), Err(EINVAL), "flags {flags:#x}");
    }
}
