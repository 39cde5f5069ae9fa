//! State that processes and threads share, state that each has of its own, and the thread that a signal reaches.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;
use granule_user::process::{clone_with, share};

entry!(run);
own!(call);

/// The first number behind the last one that a process may have.
const END_OF_NUMBERS: u32 = 32768;

/// The checks, each of which can be run alone: `tasks step NUMBER`.
const STEPS: [(&str, fn()); 22] = parts! { named
    flags_of_clone_are_linuxs numbers_are_stored_where_the_parent_sees_them a_word_is_cleared_only_for_others
    a_sibling_has_the_same_parent a_thread_may_be_waited_for_like_a_vfork sharing_a_space_is_sharing_its_heap
    handlers_may_be_shared each_thread_has_a_name the_last_thread_to_exit_sets_the_code
    the_oldest_child_is_collected_first a_vfork_parent_can_be_killed a_fatal_signal_waits_for_no_thread
    a_signal_goes_to_another_when_its_thread_blocks_it a_signal_goes_to_another_when_its_thread_exits
    numbers_are_looked_up_before_signals actions_are_set_as_on_linux numbers_are_stored_where_the_child_sees_them
    a_signal_has_its_sender_and_the_status_of_an_end usage_is_answered policies_are_answered
    capabilities_are_shown capabilities_are_kept
};

fn run(start: Start) -> u8 {
    let mut words = start.arguments().skip(1);
    match (words.next(), words.next().and_then(|number| number.parse::<u32>().ok())) {
        (None, _) => STEPS.iter().for_each(|(_, step)| step()),
        (Some("step"), Some(number)) => STEPS.iter().skip(number as usize).take(1).for_each(|(_, step)| step()),
        (Some("losers"), Some(count)) => return losers(count),
        (Some("numbers"), Some(count)) => return numbers(count),
        (Some("handlers"), _) => handlers(),
        (Some("turns"), Some(count)) => return turns(count),
        _ => return 2,
    }
    println!("tasks: ok");
    0
}

fn load(word: &AtomicU32) -> u32 {
    word.load(Ordering::Relaxed)
}

const CHILD: u64 = SIGCHLD as u64;

fn flags_of_clone_are_linuxs() {
    for flags in [CLONE_IO, CLONE_PTRACE, 1 << 33, 1 << 63] {
        let child =
            clone_with(CHILD | flags, [0; 2], || 0).unwrap_or_else(|error| panic!("flags {flags:#x}: {error:?}"));
        assert_eq!(process::wait(child), exited(0));
    }
}

/// The versions of the capabilities' header.
const VERSIONS: [u32; 3] = [0x1998_0330, 0x2007_1026, 0x2008_0522];
/// All capabilities: the lower word, and the upper one.
const ALL: [u32; 2] = [!0, 0x1ff];

fn capabilities_are_shown() {
    for (version, process, answer, words) in [
        (VERSIONS[0], 0, Ok(0), [!0, !0, 0, 7, 7, 7]),
        (VERSIONS[1], process::id(), Ok(0), [!0, !0, 0, 0x1ff, 0x1ff, 0]),
        (VERSIONS[2], process::thread_id(), Ok(0), [!0, !0, 0, 0x1ff, 0x1ff, 0]),
        (VERSIONS[2], 1 << 31, Err(EINVAL), [7; 6]),
        (VERSIONS[2], 30_000, Err(ESRCH), [7; 6]),
        (0x2008_0521, 0, Err(EINVAL), [7; 6]),
    ] {
        let (mut header, mut data) = ([version, process], [7_u32; 6]);
        let [header_at, data_at] = [header.as_mut_ptr() as u64, data.as_mut_ptr() as u64];
        assert_eq!((call(CAPGET, [header_at, data_at]), data), (answer, words), "{version:#x} {process}");
        assert_eq!(header[0], version.max(VERSIONS[2] * u32::from(version == 0x2008_0521)), "the preferred one");
        assert_eq!([call(CAPGET, [header_at, 0]), call(CAPGET, [NOWHERE, data_at])], [Ok(0), Err(EFAULT)]);
        assert_eq!(
            call(CAPGET, [header_at, NOWHERE]),
            if answer.is_ok() || version == 0x2008_0521 { Err(EFAULT) } else { answer }
        );
    }
}

/// Effective, permitted and inheritable capabilities, of a thread; 0 for the caller's.
fn capabilities(thread: u32) -> [[u32; 2]; 3] {
    let (header, mut data) = ([VERSIONS[2], thread], [0_u32; 6]);
    call(CAPGET, [header.as_ptr() as u64, data.as_mut_ptr() as u64]).expect("capabilities");
    let [a, b, c, d, e, f] = data;
    [[a, d], [b, e], [c, f]]
}

fn set_capabilities(
    version: u32,
    thread: u32,
    [effective, permitted, inheritable]: [[u32; 2]; 3],
) -> Result<u64, Errno> {
    let header = [version, thread];
    let words = [effective[0], permitted[0], inheritable[0], effective[1], permitted[1], inheritable[1]];
    call(CAPSET, [header.as_ptr() as u64, words.as_ptr() as u64])
}

fn capabilities_are_kept() {
    const NONE: [u32; 2] = [0; 2];
    const SETPCAP: u32 = 1 << 8;
    assert_eq!(set_capabilities(0x2008_0521, 0, [ALL, ALL, NONE]), Err(EINVAL));
    let header = [VERSIONS[2], 0];
    assert_eq!([call(CAPSET, [NOWHERE, 0]), call(CAPSET, [header.as_ptr() as u64, NOWHERE])], [Err(EFAULT); 2]);
    for other in [1 << 31, 30_000] {
        assert_eq!(set_capabilities(VERSIONS[2], other, [ALL, ALL, NONE]), Err(EPERM));
    }
    let child = process::run(|| {
        let set = |sets| set_capabilities(VERSIONS[2], 0, sets);
        assert_eq!(set([[!0; 2], [!0; 2], [!0; 2]]), Ok(0), "bits of none");
        assert_eq!(capabilities(0), [ALL, ALL, ALL]);
        assert_eq!(set_capabilities(VERSIONS[2], process::parent_id(), [ALL; 3]), Err(EPERM), "of another");
        let own = process::thread_id();
        assert_eq!(set_capabilities(VERSIONS[1], own, [[SETPCAP | 1, 0], ALL, NONE]), Ok(0));
        assert_eq!(capabilities(own), [[SETPCAP | 1, 0], ALL, NONE]);
        process::in_copy(|| assert_eq!(capabilities(0), [[SETPCAP | 1, 0], ALL, NONE], "inherited"));
        let (other, _) = thread::beside(|| capabilities(process::thread_id()), || ());
        assert_eq!(other, [[SETPCAP | 1, 0], ALL, NONE], "by a thread too");
        assert_eq!(set([[SETPCAP, 0], [SETPCAP | 2, 0], ALL]), Ok(0), "inheritable ones, while it may set them");
        assert_eq!(set([[2, 0], [SETPCAP | 2, 0], ALL]), Ok(0));
        assert_eq!(set([[4, 0], [SETPCAP | 2, 0], ALL]), Err(EPERM), "effective, not permitted");
        assert_eq!(set([[2, 0], [SETPCAP | 6, 0], ALL]), Err(EPERM), "no longer permitted");
        assert_eq!(set([NONE, [2, 0], [1, 0]]), Ok(0));
        assert_eq!(set([NONE, [2, 0], [4, 0]]), Err(EPERM), "no longer inheritable");
        assert_eq!(set([NONE, [2, 0], [3, 0]]), Ok(0), "what is permitted may be inheritable");
        assert_eq!(capabilities(0), [NONE, [2, 0], [3, 0]]);
        // The oldest version has the lower word alone.
        assert_eq!(set_capabilities(VERSIONS[0], 0, [NONE, [0, 9], [0, 9]]), Ok(0));
        assert_eq!(capabilities(0), [NONE; 3]);
        assert_eq!(capabilities(process::parent_id()), [ALL, ALL, NONE], "the parent's are its own");
        0
    });
    assert_eq!(child, exited(0));
}

fn usage_is_answered() {
    let mut words = [u64::MAX; 18];
    let to = words.as_mut_ptr() as u64;
    assert_eq!(call(GETRUSAGE, [2, to]), Err(EINVAL));
    assert_eq!(call(GETRUSAGE, [0, NOWHERE]), Err(EFAULT));
    for of in [RUSAGE_SELF, RUSAGE_THREAD, RUSAGE_CHILDREN] {
        assert_eq!(call(GETRUSAGE, [of as u64, to]), Ok(0));
        // SAFETY: it is this function's, and the call has stored it.
        let [_, microseconds, ..] = unsafe { core::ptr::read_volatile(&raw const words) };
        assert!(microseconds < 1_000_000, "{microseconds}");
    }
    words = [0; 18];
    assert_eq!(call(SYSINFO, [NOWHERE]), Err(EFAULT));
    assert_eq!(call(SYSINFO, [to]), Ok(0));
    // SAFETY: as above.
    let info = unsafe { core::ptr::read_volatile(&raw const words) };
    let (total, free, unit) = (info[4], info[5], info[13] as u32);
    assert!(free > 0 && total > free && unit == 1 && info[10] & 0xffff != 0, "{info:?}");
    assert_eq!(info[14..], [0; 4], "the words behind are those of before");
    assert!(call(TIMES, [to]).expect("a time") <= call(TIMES, [0]).expect("a later one"));
    assert_eq!(call(TIMES, [NOWHERE]), Err(EFAULT));
    assert_eq!([call(GETTIMEOFDAY, [0, 0]), call(GETTIMEOFDAY, [to, to + 16])], [Ok(0); 2]);
    assert_eq!(call(GETTIMEOFDAY, [NOWHERE, 0]), Err(EFAULT));
    assert_eq!([call(GETGROUPS, [0, 0]), call(GETGROUPS, [u64::MAX, 0])], [Ok(0), Err(EINVAL)]);
    let file = own_file();
    for (length, advice, wanted) in [(0, 0, Ok(0)), (PAGE, 5, Ok(0)), (0, 6, Err(EINVAL)), (u64::MAX, 0, Err(EINVAL))] {
        assert_eq!(call(FADVISE64, [file, 0, length, advice]), wanted, "{length} {advice}");
    }
    assert_eq!(call(CLOSE, [file]), Ok(0));
    assert_eq!(call(FADVISE64, [file, 0, 0, 0]), Err(EBADF));
}

/// A memory file.
fn own_file() -> u64 {
    call(MEMFD_CREATE, [c"file".as_ptr() as u64, 0]).expect("a file")
}

fn policies_are_answered() {
    const NONE: u64 = END_OF_NUMBERS as u64;
    let mut words = [u64::MAX; 2];
    let to = words.as_mut_ptr() as u64;
    for (thread, wanted) in
        [(0, Ok(0)), (process::thread_id().into(), Ok(0)), (NONE, Err(ESRCH)), (u64::MAX, Err(EINVAL))]
    {
        assert_eq!(call(SCHED_GETSCHEDULER, [thread]), wanted);
        assert_eq!(call(SCHED_GETPARAM, [thread, to]), wanted);
        assert_eq!(call(SCHED_RR_GET_INTERVAL, [thread, to]), wanted);
    }
    assert_eq!(call(SCHED_GETPARAM, [0, 0]), Err(EINVAL));
    assert_eq!(call(SCHED_GETPARAM, [0, NOWHERE]), Err(EFAULT));
    let of = |number| [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|policy| call(number, [policy]).ok());
    let all = |fifo| [Some(0), Some(fifo), Some(fifo), Some(0), None, Some(0), Some(0), Some(0), None];
    assert_eq!([of(SCHED_GET_PRIORITY_MAX), of(SCHED_GET_PRIORITY_MIN)], [all(99), all(1)]);
}

fn numbers_are_stored_where_the_parent_sees_them() {
    let word = AtomicU32::new(0);
    let at = word.as_ptr() as u64;
    let child = clone_with(CHILD | CLONE_PARENT_SETTID, [at, 0], || u8::from(load(&word) != 0)).expect("a clone");
    assert_eq!(load(&word), child);
    assert_eq!(process::wait(child), exited(0), "the child's copy is as before");
    let bytes = [0_u8; 8];
    for bad in [8, bytes.as_ptr() as u64 + 1] {
        let child = clone_with(CHILD | CLONE_PARENT_SETTID, [bad, 0], || 0).expect("no error, as on Linux");
        assert_eq!(process::wait(child), exited(0));
    }
}

/// Also through an address with a tag, where the program has asked for that.
fn numbers_are_stored_where_the_child_sees_them() {
    const TAG: u64 = 5 << 56;
    let word = shared::<AtomicU32>();
    let accept = |control| call(PRCTL, [PR_SET_TAGGED_ADDR_CTRL, control]).expect("a mode");
    for (control, tag, stores) in [(0, 0, true), (0, TAG, false), (PR_TAGGED_ADDR_ENABLE, TAG, true)] {
        accept(control);
        word.store(0, Ordering::Relaxed);
        let at = word.as_ptr() as u64 | tag;
        let is_stored = || u8::from(load(word) == process::id());
        let child = clone_with(CHILD | CLONE_CHILD_SETTID, [0, at], is_stored).expect("no error, as on Linux");
        assert_eq!(process::wait(child), exited(u8::from(stores)), "with control {control}, tag {tag:#x}");
    }
    accept(0);
}

fn a_word_is_cleared_only_for_others() {
    let word = shared::<AtomicU32>();
    word.store(7, Ordering::Relaxed);
    let child = clone_with(CHILD | CLONE_CHILD_CLEARTID, [0, word.as_ptr() as u64], || 0).expect("a clone");
    assert_eq!(process::wait(child), exited(0));
    assert_eq!(load(word), 7, "the child had its memory for itself");
    process::in_copy(|| {
        static WORDS: [AtomicU32; 2] = [const { AtomicU32::new(u32::MAX) }; 2];
        let _ended = Thread::spawn(|| _ = call(SET_TID_ADDRESS, [WORDS.as_ptr().addr() as u64 + 1]));
        until(|| load(&WORDS[1]) != u32::MAX);
        assert_eq!(WORDS.each_ref().map(load), [0xff, 0xffff_ff00]);
    });
}

/// `CLONE_PARENT`: of the program itself, which another one or the kernel started; of a child; and of an orphan.
fn a_sibling_has_the_same_parent() {
    fn sibling() {
        let parent = shared::<AtomicU32>();
        parent.store(u32::MAX, Ordering::Relaxed);
        let child = clone_with(CHILD | CLONE_PARENT, [0; 2], || {
            parent.store(process::parent_id(), Ordering::Relaxed);
            0
        });
        child.expect("a clone");
        until(|| load(parent) != u32::MAX);
        assert_eq!(load(parent), process::parent_id());
        assert_eq!(process::wait4(-1, WNOHANG), Err(ECHILD), "it is no child");
    }
    sibling();
    process::in_copy(sibling);
    assert_eq!(process::wait4(-1, 0).map(|(_, status)| status), Ok(exited(0)), "the child's sibling");
    let done = shared::<AtomicU32>();
    let child = process::spawn(|| {
        let parent = process::id();
        let orphan = process::try_spawn(|| {
            until(|| process::parent_id() != parent);
            sibling();
            done.store(1, Ordering::Relaxed);
        });
        u8::from(orphan.is_err())
    });
    assert_eq!(process::wait(child), exited(0));
    until(|| load(done) == 1);
}

fn a_thread_may_be_waited_for_like_a_vfork() {
    static DONE: AtomicU32 = AtomicU32::new(0);
    extern "C" fn child() -> ! {
        time::sleep(10_000_000).expect("a sleep");
        DONE.store(1, Ordering::Relaxed);
        process::exit(0)
    }
    share(CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_VFORK, child).expect("a thread");
    assert_eq!(load(&DONE), 1, "the caller slept until the thread's exit");
}

fn heap_end() -> u64 {
    call(BRK, [0]).expect("an end")
}

fn sharing_a_space_is_sharing_its_heap() {
    extern "C" fn child() -> ! {
        call(BRK, [heap_end() + 2 * PAGE]).expect("an end");
        process::exit(0)
    }
    let before = heap_end();
    let sharing = share(CLONE_VM | CLONE_VFORK | CHILD, child).expect("a clone");
    assert_eq!(process::wait(sharing), exited(0));
    assert_eq!(heap_end(), before + 2 * PAGE, "one heap for both");
    process::in_copy(|| {
        call(BRK, [before]).expect("an end");
        assert_eq!(heap_end(), before);
    });
    assert_eq!(heap_end(), before + 2 * PAGE, "a copy has a heap of its own");
}

extern "C" fn count(signal: u32, _: &SigInfo, _: &mut UContext) {
    COUNTS[signal as usize].fetch_add(1, Ordering::Relaxed);
}

static COUNTS: [AtomicU32; 65] = [const { AtomicU32::new(0) }; 65];

fn counted(signal: u32) -> u32 {
    load(&COUNTS[signal as usize])
}

fn set(signal: u32, flags: u64, mask: u64) {
    // SAFETY: the handler stores to atomics.
    unsafe { handle(signal, count, flags, mask) }.expect("an action to set");
}

/// `si_code`, `si_pid` and `si_status` of the signal that was handled last.
static SEEN: [AtomicU32; 3] = [const { AtomicU32::new(0) }; 3];

extern "C" fn note(_: u32, info: &SigInfo, _: &mut UContext) {
    let words = [info.code as u32, info.process(), info.fields[1] as u32];
    SEEN.iter().zip(words).for_each(|(place, word)| place.store(word, Ordering::Relaxed));
}

/// Of a child's end, with any signal that it may have, and of what the child itself has sent.
fn a_signal_has_its_sender_and_the_status_of_an_end() {
    const REAL_TIME: u32 = 40;
    for signal in [SIGCHLD, SIGUSR1, REAL_TIME] {
        // SAFETY: the handler stores to atomics.
        unsafe { handle(signal, note, 0, 0) }.expect("an action to set");
        let before = mask(SIG_BLOCK, set_of(signal)).expect("a mask");
        let seen = |child: u32| {
            while process::wait4(child as i32, WALL) == Err(EINTR) {}
            mask(SIG_SETMASK, before).expect("a mask");
            mask(SIG_BLOCK, set_of(signal)).expect("a mask");
            SEEN.each_ref().map(load)
        };
        let child = clone_with(signal.into(), [0; 2], || 3).expect("a clone");
        assert_eq!(seen(child), [CLD_EXITED as u32, child, 3], "the end, with {signal}");
        let dies = || process::kill(process::id() as i32, SIGKILL).map_or(1, |()| 0);
        let child = clone_with(signal.into(), [0; 2], dies).expect("a clone");
        assert_eq!(seen(child), [CLD_KILLED as u32, child, SIGKILL], "of a signal, with {signal}");
        let sends = || process::kill(process::parent_id() as i32, signal).map_or(1, |()| 3);
        let child = clone_with(0, [0; 2], sends).expect("a clone");
        assert_eq!(seen(child), [SI_USER as u32, child, 0], "what a child sends: {signal}");
        mask(SIG_SETMASK, before).expect("a mask");
        set_without_handler(signal, SIG_DFL);
    }
}

fn handlers_may_be_shared() {
    extern "C" fn ignore() -> ! {
        set_without_handler(SIGUSR1, SIG_IGN);
        process::exit(0)
    }
    for (flags, after, what) in [(CLONE_SIGHAND, SIG_IGN, "shared"), (0, SIG_DFL, "copied")] {
        set_without_handler(SIGUSR1, SIG_DFL);
        let child = share(CLONE_VM | CLONE_VFORK | flags | CHILD, ignore).expect("a clone");
        assert_eq!(process::wait(child), exited(0));
        assert_eq!(set_without_handler(SIGUSR1, SIG_DFL).handler, after, "{what}");
    }
}

fn name() -> [u8; 16] {
    let mut name = [0; 16];
    call(PRCTL, [PR_GET_NAME, name.as_mut_ptr() as u64]).expect("a name");
    name
}

fn each_thread_has_a_name() {
    let before = name();
    let changes = || {
        let own = name();
        call(PRCTL, [PR_SET_NAME, c"another".as_ptr() as u64]).expect("a name to set");
        assert!(name().starts_with(b"another\0") && own != name(), "it begins with its maker's");
    };
    Thread::spawn(changes).join();
    assert_eq!(name(), before, "a thread's name is its own");
}

fn the_last_thread_to_exit_sets_the_code() {
    let end = process::run(|| -> u8 {
        static FIRST: AtomicU32 = AtomicU32::new(1);
        let _thread = Thread::spawn(|| {
            until(|| load(&FIRST) == 0);
            process::exit(7)
        });
        // The kernel zeroes the word behind the beginning of the first thread's exit.
        call(SET_TID_ADDRESS, [FIRST.as_ptr() as u64]).expect("a word");
        process::exit(3)
    });
    assert_eq!(end, exited(7));
}

fn the_oldest_child_is_collected_first() {
    let go = shared::<AtomicU32>();
    let [first, second, third] = [3, 1, 2].map(|turn| {
        process::spawn(|| {
            until(|| load(go) == turn);
            turn as u8
        })
    });
    assert_eq!(process::wait4(-1, WNOHANG), Ok((0, 0)), "none has ended");
    (1..=3).for_each(|turn| until_zombie(SIGCHLD, || go.store(turn, Ordering::Relaxed)));
    assert_eq!(process::wait4(third as i32, 0), Ok((third, exited(2))), "by its number");
    assert_eq!(process::wait4(-1, 0), Ok((first, exited(3))), "the oldest, not the one that ended first");
    assert_eq!(process::wait4(-1, 0), Ok((second, exited(1))));
    assert_eq!(process::wait4(-1, 0), Err(ECHILD));
    // Also of both kinds together, each of which the kernel has in a list of its own. The youngest ends first.
    for signals in [[SIGCHLD, SIGURG, SIGCHLD], [SIGURG, SIGCHLD, SIGURG]] {
        let go = shared::<[AtomicU32; 3]>();
        let mut words = go.iter();
        let children = signals.map(|signal| {
            let word = words.next().expect("a word for each");
            clone_with(signal.into(), [0; 2], || {
                until(|| load(word) == 1);
                7
            })
            .expect("a clone")
        });
        assert_eq!(process::wait4(-1, WALL | WNOHANG), Ok((0, 0)), "none has ended");
        for (signal, word) in signals.into_iter().zip(go).rev() {
            until_zombie(signal, || word.store(1, Ordering::Relaxed));
        }
        for child in children {
            assert_eq!(process::wait4(-1, WALL), Ok((child, exited(7))));
        }
        assert_eq!(process::wait4(-1, WALL), Err(ECHILD));
    }
}

/// In a child of its own: the first thread waits for a vfork child that runs until it is stopped, and `others` runs
/// in another thread. The two threads share this state.
struct Held {
    started: AtomicU32,
    release: AtomicU32,
    taken: AtomicU32,
}

static HELD: AtomicU64 = AtomicU64::new(0);

fn held() -> &'static Held {
    // SAFETY: set by `hold`, to memory that stays.
    unsafe { &*(HELD.load(Ordering::Relaxed) as *const Held) }
}

/// Ends when it is released; a process that waits for it by mistake never ends, which the test's limit finds.
extern "C" fn until_released() -> ! {
    held().started.fetch_add(1, Ordering::Relaxed);
    until(|| load(&held().release) != 0);
    process::exit(0)
}

/// The process of [`hold`] has ended; the vfork child, which still runs, is released.
fn release() {
    assert_eq!(held().release.swap(1, Ordering::Relaxed), 0, "it did not wait for the vfork child");
}

/// Makes such a process; `before` runs in its first thread first, `other` in another one. Its number.
fn hold(before: impl FnOnce(), other: fn()) -> u32 {
    HELD.store(shared::<Held>() as *const Held as u64, Ordering::Relaxed);
    let child = process::spawn(|| {
        before();
        let _other = Thread::spawn(other);
        share(CLONE_VM | CLONE_VFORK | CHILD, until_released).expect("a vfork");
        until(|| load(&held().taken) != 0);
        load(&held().taken) as u8
    });
    until(|| load(&held().started) == 2);
    until(|| is_held(child));
    child
}

/// Whether a thread waits for the vfork that it has made, which no signal ends but one that kills, or has ended.
fn is_held(thread: u32) -> bool {
    let mut room = [0; 128];
    let read = proc::open(thread, "status").expect("a thread's").read(&mut room).expect("a text") as usize;
    let has = |state: &[u8]| room[..read].windows(state.len()).any(|text| text == state);
    has(b"\tD (disk sleep)\n") || has(b"\tZ (zombie)\n")
}

fn sleep_on() {
    held().started.fetch_add(1, Ordering::Relaxed);
    time::sleep_for_ever();
}

fn a_vfork_parent_can_be_killed() {
    let child = hold(|| (), sleep_on);
    process::end(child);
    release();

    fn exit() {
        held().started.fetch_add(1, Ordering::Relaxed);
        until(|| load(&held().started) == 2);
        process::exit_group(9)
    }
    let child = hold(|| (), exit);
    assert_eq!(process::wait(child), exited(9), "by another thread's exit_group");
    release();
}

/// The first thread could take it but does not come to; the process ends all the same.
fn a_fatal_signal_waits_for_no_thread() {
    let child = hold(|| (), sleep_on);
    process::kill(child as i32, SIGTERM).expect("a signal");
    assert_eq!(process::wait(child), killed(SIGTERM));
    release();

    // Nor for handlers: one that is due in the first thread, and blocks the signal, runs no more.
    extern "C" fn exit(_: u32, _: &SigInfo, _: &mut UContext) {
        process::exit_group(8)
    }
    let child = hold(
        || {
            // SAFETY: the handler ends the process.
            unsafe { handle(SIGUSR1, exit, 0, set_of(SIGTERM)) }.expect("an action to set");
        },
        || {
            mask(SIG_BLOCK, set_of(SIGUSR1)).expect("a mask");
            sleep_on();
        },
    );
    process::kill(child as i32, SIGUSR1).expect("a signal");
    process::kill(child as i32, SIGTERM).expect("a signal");
    assert_eq!(process::wait(child), killed(SIGTERM), "the end does not wait for a handler");
    release();
}

/// Two signals come for the first thread, which does not come to look; the handler of the first blocks the second.
fn a_signal_goes_to_another_when_its_thread_blocks_it() {
    extern "C" fn wait_for_the_other(_: u32, _: &SigInfo, _: &mut UContext) {
        until(|| counted(SIGUSR2) != 0);
        held().taken.store(1 + counted(SIGUSR2), Ordering::Relaxed);
    }
    let child = hold(
        || {
            // SAFETY: the handler stores to atomics.
            unsafe { handle(SIGUSR1, wait_for_the_other, 0, set_of(SIGUSR2)) }.expect("an action to set");
            set(SIGUSR2, 0, 0);
        },
        || {
            mask(SIG_BLOCK, set_of(SIGUSR1)).expect("a mask");
            sleep_on();
        },
    );
    process::kill(child as i32, SIGUSR1).expect("a signal");
    process::kill(child as i32, SIGUSR2).expect("a signal");
    held().release.store(1, Ordering::Relaxed);
    assert_eq!(process::wait(child), exited(2), "the other thread took it, once");
}

/// Threads exit while signals come that they could handle. The last one stays, and handles what others have left.
fn a_signal_goes_to_another_when_its_thread_exits() {
    const THREADS: usize = 64;
    static TURNS: [AtomicU32; THREADS + 1] = [const { AtomicU32::new(0) }; THREADS + 1];
    fn wait_for_turn(index: usize) {
        while TURNS.get(index).is_some_and(|turn| load(turn) == 0) {
            let _ = TURNS.get(index).map(|turn| futex_wait(turn, 0, None));
        }
    }
    fn give_turn(turn: &AtomicU32) {
        turn.store(1, Ordering::Relaxed);
        futex_wake(turn, 1).expect("a wake-up");
    }
    let [handled, stop] = shared::<[AtomicU32; 2]>();
    set(SIGUSR1, 0, 0);
    let child = process::spawn(|| {
        let mut index = 0;
        let threads = [(); THREADS + 1].map(|()| {
            index += 1;
            Thread::spawn(move || wait_for_turn(index - 1))
        });
        mask(SIG_BLOCK, set_of(SIGUSR1)).expect("a mask");
        let mut turns = TURNS.iter();
        until(|| {
            let answered = counted(SIGUSR1);
            if answered != load(handled) {
                // The next thread exits at about the moment of the next signal: a little before or behind it.
                if let Some(turn) = turns.next().filter(|_| turns.len() != 0) {
                    give_turn(turn);
                }
                for _ in 0..answered % 16 * 500 {
                    core::hint::spin_loop();
                }
                handled.store(answered, Ordering::Relaxed);
            }
            load(stop) != 0
        });
        TURNS.iter().for_each(give_turn);
        threads.into_iter().for_each(Thread::join);
    });
    for sent in 0..THREADS as u32 {
        process::kill(child as i32, SIGUSR1).expect("a signal");
        until(|| load(handled) > sent);
    }
    stop.store(1, Ordering::Relaxed);
    assert_eq!(process::wait(child), exited(0));
    set_without_handler(SIGUSR1, SIG_DFL);
}

fn numbers_are_looked_up_before_signals() {
    let absent = END_OF_NUMBERS as i32 + 5;
    assert_eq!(process::kill(absent, 65), Err(ESRCH));
    assert_eq!(process::tgkill(absent as u32, absent as u32, 65), Err(ESRCH));
    assert_eq!(process::kill(process::id() as i32, 65), Err(EINVAL));
    let child = until_zombie(SIGCHLD, || process::spawn(|| 0));
    assert_eq!(process::tgkill(child, child, SIGKILL), Ok(()), "a zombie is there");
    assert_eq!(process::tgkill(child, child, 65), Err(EINVAL));
    assert_eq!(process::kill(child as i32, SIGKILL), Ok(()));
    assert_eq!(process::wait(child), exited(0));
    assert_eq!(process::tgkill(child, child, 0), Err(ESRCH));
}

fn actions_are_set_as_on_linux() {
    assert_eq!(call(RT_SIGACTION, [0, 8, 0, 8]), Err(EFAULT), "the action is read first");
    assert_eq!(call(RT_SIGPENDING, [8, 0, 0, 0]), Ok(0), "nothing is written");
    /// A flag that will never exist, for programs that check which do.
    const SA_UNSUPPORTED: u64 = 0x400;
    set(SIGUSR1, SA_UNSUPPORTED | SA_RESETHAND | 1 << 40, set_of(SIGUSR2));
    signal::raise(SIGUSR1);
    let left = set_without_handler(SIGUSR1, SIG_DFL);
    assert_eq!(left.handler, SIG_DFL);
    assert_eq!((left.flags & SA_RESETHAND, left.flags & (SA_UNSUPPORTED | 1 << 40)), (SA_RESETHAND, 0));
    assert_eq!(left.mask, set_of(SIGUSR2), "the handler alone is reset");
    mask(SIG_SETMASK, 0).expect("a mask");
}

/// Threads are made while their process exits: some are dropped before they have ever run.
fn losers(count: u32) -> u8 {
    for round in 0..count {
        let end = process::run(|| -> u8 {
            static GO: AtomicU32 = AtomicU32::new(0);
            extern "C" fn leave() -> ! {
                process::exit(0)
            }
            let make = |_| {
                GO.fetch_add(1, Ordering::Relaxed);
                // More than are made before the process exits, and not so many that a slow machine is busy for long.
                (0..64).any(|_| share(CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, leave).is_err());
            };
            let _makers = [0_usize; 3].map(|argument| Thread::spawn(move || make(argument)));
            until(|| load(&GO) == 3);
            // All of the range, also in few rounds.
            for _ in 0..round * 7 % 64 * 50 {
                core::hint::spin_loop();
            }
            process::exit_group(4)
        });
        assert_eq!(end, exited(4));
    }
    0
}

/// So many processes come and go, while others stay: numbers are used again, never those of what stays.
fn numbers(count: u32) -> u8 {
    /// Where numbers begin again.
    const AGAIN: u32 = 300;
    let (mut last, mut turns) = (0, 0);
    let mut next = |taken: &[&Crowd]| {
        let number = clone_with(CHILD, [0; 2], || 0).expect("a clone");
        let is_taken = taken.iter().flat_map(|crowd| crowd.iter()).any(|id| load(id) == number);
        assert!(number < END_OF_NUMBERS && number != process::id() && !is_taken, "{number}");
        turns += u32::from(number < last);
        last = number;
        assert_eq!(process::wait(number), exited(0));
        number
    };
    // After a boot, the first has those at which numbers begin again, and the others come to the second.
    let crowds = [AGAIN - 1, 2 * AGAIN - 1].map(|before| {
        while next(&[]) < before {}
        crowd()
    });
    for _ in 0..count {
        next(&crowds);
    }
    crowds.into_iter().for_each(|[stays, ..]| process::end(load(stays)));
    assert_eq!(turns, count / END_OF_NUMBERS, "they ascend until they begin again");
    0
}

/// The numbers of a process and of its threads, more than the kernel looks at at once.
type Crowd = [AtomicU32; 150];

/// A process and its threads that sleep until it is killed.
fn crowd() -> &'static Crowd {
    let numbers = shared::<Crowd>();
    let [.., last] = numbers;
    let child = process::spawn(|| -> u8 {
        for number in &numbers[1..] {
            let thread = Thread::spawn(|| time::sleep_for_ever());
            number.store(thread.id(), Ordering::Relaxed);
        }
        time::sleep_for_ever()
    });
    numbers[0].store(child, Ordering::Relaxed);
    until(|| load(last) != 0);
    numbers
}

/// Goes on behind the instruction that faulted.
extern "C" fn skip(_: u32, _: &SigInfo, context: &mut UContext) {
    context.context.pc += 4;
}

/// One access that faults, where [`skip`] handles that.
fn fault() {
    offend!("ldr x9, [x10]", 8);
}

/// Four processes fault and return from a handler so many times each: how long all of it takes, for comparison.
fn turns(count: u32) -> u8 {
    // SAFETY: the handler changes its frame alone.
    unsafe { handle(SIGSEGV, skip, 0, 0) }.expect("an action to set");
    let before = time::now();
    let children = [0; 4].map(|_| process::spawn(|| (0..count).for_each(|_| fault())));
    assert!(children.into_iter().all(|child| process::wait(child) == exited(0)));
    println!("4 x {count} faults with handlers: {} us", (time::now() - before) / 1000);
    0
}

/// Faults, handlers, masks, signals to itself and calls for memory for ever; counts at a fixed address.
fn handlers() -> ! {
    const PLACE: u64 = 0x7000_0000_0000;
    // SAFETY: nothing is there, and nothing else uses it.
    let rounds = unsafe {
        memory::mmap(PLACE, PAGE, RW, PRIVATE | MAP_FIXED_NOREPLACE).expect("a page");
        &*(PLACE as *const AtomicU64)
    };
    // SAFETY: the handler changes its frame alone.
    unsafe { handle(SIGSEGV, skip, 0, 0) }.expect("an action to set");
    set(SIGUSR1, 0, 0);
    loop {
        fault();
        mask(SIG_BLOCK, set_of(SIGUSR1)).expect("a mask");
        process::kill(process::id() as i32, SIGUSR1).expect("a signal to oneself");
        mask(SIG_SETMASK, 0).expect("a mask");
        let page = memory::map(PAGE, RW).expect("a page");
        // SAFETY: the page is this loop's.
        unsafe { (page as *mut u64).write_volatile(1) };
        call(BRK, [heap_end() ^ PAGE]).expect("an end");
        call(MUNMAP, [page, PAGE]).expect("a page to unmap");
        assert_eq!(u64::from(counted(SIGUSR1)), rounds.fetch_add(1, Ordering::Relaxed) + 1, "each signal came");
    }
}
