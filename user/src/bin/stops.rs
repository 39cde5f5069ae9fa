//! Groups of processes, sessions, and processes that are stopped and continue: the program passes on Linux, too.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

const OK: Result<u64, Errno> = Ok(0);
/// No number of a process.
const NONE: u64 = 30_000;
const BELOW: u64 = u64::MAX;
/// All that `waitid` may wait for.
const CHANGES: u64 = WEXITED | WUNTRACED | WCONTINUED;

fn run(start: Start) -> u8 {
    if start.arguments().nth(1) == Some("wait") {
        time::sleep_for_ever();
    }
    let path = start.path();
    // The program's own parent may be the first process, which keeps no group from being orphaned.
    process::in_copy(|| {
        sessions_begin_once();
        groups_are_moved_to(path);
        parts! { ()
            signals_go_to_groups groups_are_waited_for changes_are_waited_for the_parent_gets_a_signal
            only_a_kill_ends_what_is_stopped signals_take_each_other_away handlers_run_in_place_of_a_stop
            all_threads_stop calls_go_on_after_a_stop a_vfork_parent_stops_later orphaned_groups_do_not_stop
            a_group_that_is_orphaned_continues stops_and_ends_meet
        }
    });
    println!("stops: ok");
    0
}

fn group_of(process: u64) -> Result<u64, Errno> {
    call(GETPGID, [process])
}

fn own() -> u64 {
    process::id().into()
}

/// A child that sleeps until a signal ends it.
fn sleeper() -> u32 {
    process::spawn(|| -> u8 { time::sleep_for_ever() })
}

fn kill(process: u32, signal: u32) {
    process::kill(process as i32, signal).expect("a signal");
}

/// The report of `waitid`: signal, code, number and status.
fn waitid(kind: u64, id: u64, options: u64) -> Result<[i32; 4], Errno> {
    let mut info = [0_i32; 32];
    call(WAITID, [kind, id, info.as_mut_ptr() as u64, options, 0])?;
    Ok([info[0], info[2], info[4], info[6]])
}

/// Waits for the next change of a child: code and status.
fn change(child: u32) -> [i32; 2] {
    change_of(child, CHANGES)
}

fn change_of(child: u32, options: u64) -> [i32; 2] {
    let [signal, code, id, status] = waitid(P_PID, child.into(), options).expect("a change");
    assert_eq!([signal, id], [SIGCHLD as i32, child as i32]);
    [code, status]
}

const STOPPED: [i32; 2] = [CLD_STOPPED, SIGSTOP as i32];
const CONTINUES: [i32; 2] = [CLD_CONTINUED, SIGCONT as i32];

fn stop(child: u32) {
    kill(child, SIGSTOP);
    assert_eq!(change_of(child, WEXITED | WUNTRACED), STOPPED);
}

fn sessions_begin_once() {
    let (id, parent) = (own(), u64::from(process::parent_id()));
    assert_eq!((group_of(0), call(GETSID, [0])), (group_of(parent), call(GETSID, [parent])), "inherited");
    assert_ne!(group_of(0), Ok(id));
    assert_eq!(call(SETSID, []), Ok(id));
    assert_eq!((group_of(0), call(GETSID, [0]), group_of(id)), (Ok(id), Ok(id), Ok(id)));
    assert_eq!(call(SETSID, []), Err(EPERM), "it leads one");
    assert_eq!(call(SETPGID, [0, 0]), Err(EPERM), "it leads a session");
    for number in [NONE, BELOW] {
        assert_eq!([group_of(number), call(GETSID, [number])], [Err(ESRCH); 2]);
    }
    let thread = Thread::spawn(|| assert_eq!(group_of(process::thread_id().into()), Ok(own()), "of a thread"));
    thread.join();
    process::in_copy(|| {
        assert_eq!(call(SETPGID, [0, 0]), OK);
        assert_eq!(call(SETSID, []), Err(EPERM), "it leads a group");
        let member = sleeper();
        assert_eq!(call(SETPGID, [0, id]), OK);
        assert_eq!(call(SETSID, []), Err(EPERM), "the group is still there");
        process::end(member);
        assert_eq!(call(SETSID, []), Ok(own()));
    });
}

fn groups_are_moved_to(path: &'static CStr) {
    let (id, child) = (own(), sleeper());
    let number = u64::from(child);
    let move_to = |process, group| call(SETPGID, [process, group]);
    assert_eq!(move_to(number, 0), OK);
    assert_eq!(group_of(number), Ok(number));
    assert_eq!([move_to(number, id), move_to(number, id)], [OK; 2]);
    assert_eq!(group_of(number), Ok(id));
    assert_eq!(move_to(number, NONE), Err(EPERM), "no such group");
    for (process, group, error) in [
        (number, BELOW, EINVAL),
        (BELOW, 0, EINVAL),
        (BELOW, id, ESRCH),
        (NONE, 0, ESRCH),
        (NONE, BELOW, EINVAL),
        (1, 0, ESRCH),
    ] {
        assert_eq!(move_to(process, group), Err(error), "{process} {group}");
    }
    let thread = Thread::spawn(|| {
        assert_eq!(call(SETPGID, [process::thread_id().into(), own()]), Err(EINVAL), "a thread");
    });
    thread.join();
    process::in_copy(|| {
        assert_eq!(move_to(id, id), Err(ESRCH), "the parent");
        assert_eq!(move_to(0, id), OK, "its group already");
    });
    process::end(child);
    let child = process::spawn(|| -> u8 {
        call(SETSID, []).expect("a session");
        time::sleep_for_ever()
    });
    asleep_until(|| call(GETSID, [child.into()]) == Ok(child.into()));
    assert_eq!(move_to(child.into(), id), Err(EPERM), "in another session");
    let other = sleeper();
    assert_eq!(move_to(other.into(), child.into()), Err(EPERM), "a group of another session");
    process::end(child);
    process::end(other);
    let child = process::spawn(|| -> u8 { panic!("{}", process::execute(path, &[path, c"wait"]) as u8) });
    let mut error = move_to(child.into(), id);
    asleep_until(|| {
        error = move_to(child.into(), id);
        error != OK
    });
    assert_eq!(error, Err(EACCES), "it has executed a program");
    process::end(child);
    let child = until_zombie(SIGCHLD, || process::spawn(|| 0_u8));
    assert_eq!(move_to(child.into(), child.into()), OK, "one that has ended");
    assert_eq!(process::wait(child), exited(0));
}

fn signals_go_to_groups() {
    let [first, second, third] = [(); 3].map(|()| sleeper());
    let group = u64::from(first);
    assert_eq!([call(SETPGID, [group, 0]), call(SETPGID, [second.into(), group])], [OK; 2]);
    assert_eq!(process::kill(-(first as i32), 0), Ok(()));
    assert_eq!(process::kill(-(first as i32), 65), Err(EINVAL));
    assert_eq!(process::kill(-(first as i32), SIGTERM), Ok(()));
    assert_eq!([first, second].map(process::wait), [killed(SIGTERM); 2]);
    assert_eq!(process::wait4(third as i32, WNOHANG), Ok((0, 0)), "of another group");
    for (process, error) in [(-(first as i32), ESRCH), (-(third as i32), ESRCH), (i32::MIN, ESRCH)] {
        assert_eq!(process::kill(process, SIGTERM), Err(error), "{process}");
    }
    let file = call(PIDFD_OPEN, [third.into(), 0]).expect("a pidfd");
    let send = || call(PIDFD_SEND_SIGNAL, [file, SIGTERM.into(), 0, PIDFD_SIGNAL_PROCESS_GROUP]);
    assert_eq!(send(), Err(ESRCH), "it leads none");
    assert_eq!(call(SETPGID, [third.into(), 0]), OK);
    assert_eq!(send(), OK);
    assert_eq!(process::wait(third), killed(SIGTERM));
    assert_eq!(call(CLOSE, [file]), OK);
    // The group of the sender has it too, and no other.
    let word = memory::shared::<AtomicU32>();
    let child = process::spawn(|| {
        call(SETPGID, [0, 0]).expect("a group");
        let other = sleeper();
        assert_eq!(call(SETPGID, [other.into(), 0]), OK);
        word.store(other, Ordering::Relaxed);
        process::kill(0, SIGTERM).expect("a signal");
    });
    assert_eq!(process::wait(child), killed(SIGTERM));
    let other = word.load(Ordering::Relaxed);
    asleep_until(|| state(other) == "S");
    kill(other, SIGKILL);
}

fn groups_are_waited_for() {
    let id = own();
    assert_eq!(process::wait4(0, WNOHANG), Err(ECHILD));
    let [first, second] = [7_u8, 8].map(|status| process::spawn(move || status));
    assert_eq!(call(SETPGID, [second.into(), 0]), OK);
    assert_eq!(process::wait4(-(second as i32), 0), Ok((second, exited(8))));
    assert_eq!(process::wait4(-(second as i32), 0), Err(ECHILD));
    assert_eq!(process::wait4(i32::MIN, 0), Err(ESRCH));
    let ended = Ok([SIGCHLD as i32, CLD_EXITED, first as i32, 7]);
    assert_eq!(waitid(P_PGID, id, WEXITED | WNOWAIT), ended);
    assert_eq!(waitid(P_PGID, 0, WEXITED | WNOWAIT), ended);
    assert_eq!(waitid(P_PGID, first.into(), WEXITED), Err(ECHILD));
    assert_eq!(process::wait4(0, 0), Ok((first, exited(7))));
    // Several threads, each of which gets another child.
    let children = [(); 4].map(|()| process::spawn(|| time::sleep(MILLISECOND).expect("a sleep")));
    let sum = AtomicU32::new(0);
    all_at_once(children.len(), |_| {
        let (child, status) = process::wait4(0, WUNTRACED).expect("a child");
        assert_eq!(status, exited(0));
        sum.fetch_add(child, Ordering::Relaxed);
    });
    assert_eq!(sum.into_inner(), children.iter().sum());
}

fn changes_are_waited_for() {
    let child = sleeper();
    let any = |options| process::wait4(-1, options | WNOHANG);
    assert_eq!(any(WUNTRACED | WCONTINUED), Ok((0, 0)));
    kill(child, SIGSTOP);
    assert_eq!(waitid(P_ALL, 0, WUNTRACED | WNOWAIT), Ok([SIGCHLD as i32, CLD_STOPPED, child as i32, SIGSTOP as i32]));
    assert_eq!([any(0), any(WCONTINUED)], [Ok((0, 0)); 2], "not asked for");
    assert_eq!(state(child), "T");
    assert_eq!(any(WUNTRACED), Ok((child, stopped(SIGSTOP))));
    assert_eq!(any(WUNTRACED), Ok((0, 0)), "once");
    kill(child, SIGSTOP);
    kill(child, SIGTSTP);
    assert_eq!(any(WUNTRACED), Ok((0, 0)), "it is stopped");
    kill(child, SIGCONT);
    assert_eq!(process::wait4(child as i32, WCONTINUED), Ok((child, CONTINUED)));
    assert_eq!(any(WUNTRACED | WCONTINUED), Ok((0, 0)), "once, and the others were taken away");
    kill(child, SIGCONT);
    assert_eq!(any(WUNTRACED | WCONTINUED), Ok((0, 0)), "it was not stopped");
    stop(child);
    kill(child, SIGCONT);
    stop(child);
    assert_eq!(any(WCONTINUED), Ok((0, 0)), "the newest change counts");
    assert_eq!(waitid(P_PGID, 0, WCONTINUED | WNOHANG), Ok([0; 4]));
    kill(child, SIGCONT);
    asleep_until(|| state(child) == "S");
    for signal in [SIGTSTP, SIGTTIN, SIGTTOU] {
        assert_eq!(call(SETPGID, [child.into(), 0]), OK);
        kill(child, signal);
        assert_eq!(process::wait4(-(child as i32), WUNTRACED), Ok((child, stopped(signal))));
        kill(child, SIGCONT);
        assert_eq!(change(child), CONTINUES);
    }
    process::end(child);
}

/// The letter of a process's state; also that the numbers of its group and session are in its line.
fn state(process: u32) -> &'static str {
    let (file, mut room) = (proc::open(process, "stat").expect("a file"), [0; 1024]);
    let line = proc::text(&file, &mut room, 1024);
    let mut words = line.rsplit(')').next().expect("words").split_whitespace();
    let state = ["R", "S", "D", "T", "Z"].into_iter().find(|state| words.clone().next() == Some(*state));
    words.nth(1);
    let numbers = [(); 2].map(|()| words.next().and_then(|word| word.parse().ok()));
    assert_eq!(numbers, [group_of(process.into()).ok(), call(GETSID, [process.into()]).ok()]);
    state.expect("a state")
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);
static CODES: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(_: u32, info: &SigInfo, _: &mut UContext) {
    CODES.store(info.code as u32, Ordering::Relaxed);
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

fn set(signal: u32, flags: u64) {
    // SAFETY: the handler touches atomics alone.
    unsafe { handle(signal, note, flags, 0) }.expect("a handler");
}

fn the_parent_gets_a_signal() {
    let child = sleeper();
    let next = |count| until(|| SIGNALS.load(Ordering::Relaxed) == count);
    set(SIGCHLD, SA_RESTART);
    kill(child, SIGSTOP);
    next(1);
    assert_eq!(CODES.load(Ordering::Relaxed), CLD_STOPPED as u32);
    kill(child, SIGCONT);
    next(2);
    assert_eq!(CODES.load(Ordering::Relaxed), CLD_CONTINUED as u32);
    set(SIGCHLD, SA_RESTART | SA_NOCLDSTOP);
    assert_eq!(change(child), CONTINUES);
    stop(child);
    kill(child, SIGCONT);
    assert_eq!(change(child), CONTINUES);
    process::end(child);
    next(3);
    assert_eq!(CODES.load(Ordering::Relaxed), CLD_KILLED as u32, "none for stops");
    set_without_handler(SIGCHLD, SIG_DFL);
}

fn only_a_kill_ends_what_is_stopped() {
    let child = sleeper();
    stop(child);
    kill(child, SIGTERM);
    time::sleep(5 * MILLISECOND).expect("a sleep");
    assert_eq!((state(child), process::wait4(child as i32, WNOHANG)), ("T", Ok((0, 0))));
    kill(child, SIGCONT);
    assert_eq!(process::wait(child), killed(SIGTERM));
    let child = sleeper();
    stop(child);
    process::end(child);
}

fn signals_take_each_other_away() {
    mask(SIG_BLOCK, set_of(SIGTSTP) | set_of(SIGTTIN) | set_of(SIGCONT)).expect("a mask");
    let pending = || [SIGTSTP, SIGTTIN, SIGCONT].map(|signal| is_pending(signal).expect("signals"));
    kill(process::id(), SIGTSTP);
    signal::raise(SIGTTIN);
    assert_eq!(pending(), [true, true, false]);
    signal::raise(SIGCONT);
    assert_eq!(pending(), [false, false, true]);
    kill(process::id(), SIGTTIN);
    assert_eq!(pending(), [false, true, false]);
    kill(process::id(), SIGCONT);
    assert_eq!(pending(), [false, false, true]);
    mask(SIG_SETMASK, 0).expect("a mask");
    // Blocked or ignored, SIGCONT continues.
    for is_blocked in [true, false] {
        let child = process::spawn(|| -> u8 {
            if is_blocked {
                mask(SIG_BLOCK, set_of(SIGCONT)).expect("a mask");
            } else {
                set_without_handler(SIGCONT, SIG_IGN);
            }
            signal::raise(SIGSTOP);
            u8::from(is_pending(SIGCONT).expect("signals") != is_blocked)
        });
        assert_eq!(change(child), STOPPED);
        kill(child, SIGCONT);
        assert_eq!(process::wait(child), exited(0));
    }
}

fn handlers_run_in_place_of_a_stop() {
    let before = SIGNALS.load(Ordering::Relaxed);
    set(SIGTSTP, 0);
    signal::raise(SIGTSTP);
    assert_eq!(SIGNALS.load(Ordering::Relaxed), before + 1);
    set_without_handler(SIGTSTP, SIG_IGN);
    signal::raise(SIGTSTP);
    set_without_handler(SIGTSTP, SIG_DFL);
    set(SIGCONT, 0);
    let child = process::spawn(|| {
        signal::raise(SIGSTOP);
        u8::from(SIGNALS.load(Ordering::Relaxed) != before + 2)
    });
    set_without_handler(SIGCONT, SIG_DFL);
    assert_eq!(change(child), STOPPED);
    kill(child, SIGCONT);
    assert_eq!(process::wait(child), exited(0), "its handler has run");
}

fn all_threads_stop() {
    let counts = memory::shared::<[AtomicU32; 4]>();
    let child = process::spawn(|| -> u8 {
        all_at_once(4, |number| {
            loop {
                counts[number].fetch_add(1, Ordering::Relaxed);
                if number == 3 {
                    time::sleep(MILLISECOND / 10).expect("a sleep that no signal interrupts");
                }
            }
        });
        0
    });
    let seen = || [0, 1, 2, 3].map(|number| counts[number].load(Ordering::Relaxed));
    for _ in 0..20 {
        let before = seen();
        asleep_until(|| seen().iter().zip(before).all(|(now, before)| *now != before));
        stop(child);
        let before = seen();
        time::sleep(2 * MILLISECOND).expect("a sleep");
        assert_eq!(seen(), before, "all are stopped");
        kill(child, SIGCONT);
        assert_eq!(change(child), CONTINUES);
    }
    process::end(child);
}

/// Stops a child that is in `call`, has it continue, and then wakes it: the answer of its call.
fn interrupted<T: Sync>(shared: &'static T, blocks: impl Fn(&T) -> u8, wake: impl Fn(&T)) -> u32 {
    let child = process::spawn(|| blocks(shared));
    asleep_until(|| state(child) == "S");
    for _ in 0..2 {
        stop(child);
        kill(child, SIGCONT);
        assert_eq!(change(child), CONTINUES);
        asleep_until(|| state(child) == "S");
    }
    wake(shared);
    process::wait(child)
}

fn calls_go_on_after_a_stop() {
    let [reader, writer] = File::pipe(0).expect("a pipe");
    let counter = File::counter(0, 0).expect("a counter");
    let word = memory::shared::<AtomicU32>();
    let answer = |answer: Result<u64, Errno>| answer.map_or_else(|error| error as u8, |value| value as u8);
    let wake = |_: &AtomicU32| {
        word.store(1, Ordering::Relaxed);
        call(FUTEX, [word.as_ptr() as u64, FUTEX_WAKE, 1]).expect("a wake-up");
    };
    let write = |_: &AtomicU32| assert_eq!(writer.write(b"x"), Ok(1));
    assert_eq!(interrupted(word, |_| answer(reader.read(&mut [0])), write), exited(1), "read");
    let count = |_: &AtomicU32| assert_eq!(counter.write(&1_u64.to_le_bytes()), Ok(8));
    assert_eq!(interrupted(word, |_| answer(counter.read(&mut [0; 8])), count), exited(8), "eventfd");
    for limit in [None, Some(Timespec { seconds: 1000, nanoseconds: 0 })] {
        let limit = limit.as_ref().map_or(0, |limit| limit as *const Timespec as u64);
        let wait = |_: &AtomicU32| answer(call(FUTEX, [word.as_ptr() as u64, FUTEX_WAIT, 0, limit]));
        word.store(0, Ordering::Relaxed);
        assert_eq!(interrupted(word, wait, wake), exited(0), "futex");
        let descriptor = reader.0 as u32;
        let poll = |_: &AtomicU32| {
            let list = [descriptor, 1];
            answer(call(PPOLL, [list.as_ptr() as u64, 1, limit, 0]))
        };
        assert_eq!(interrupted(word, poll, write), exited(1), "ppoll");
        assert_eq!(reader.read(&mut [0]), Ok(1));
    }
    let sleep = |_: &AtomicU32| answer(time::sleep(100 * MILLISECOND).map(|()| 0));
    let child = process::spawn(|| sleep(word));
    stop(child);
    time::sleep(120 * MILLISECOND).expect("a sleep");
    kill(child, SIGCONT);
    assert_eq!(process::wait(child), exited(0), "a sleep");
    let wait = |_: &AtomicU32| {
        let child = process::spawn(|| -> u8 {
            wait_for(word, 2);
            5
        });
        (process::wait(child) >> 8) as u8
    };
    let end = |_: &AtomicU32| word.store(2, Ordering::Relaxed);
    assert_eq!(interrupted(word, wait, end), exited(5), "wait4");
}

fn wait_for(word: &AtomicU32, value: u32) {
    asleep_until(|| word.load(Ordering::Relaxed) == value);
}

fn a_vfork_parent_stops_later() {
    let word = memory::shared::<AtomicU32>();
    let child = process::spawn(|| {
        let vforked = process::clone_with(CLONE_VFORK | u64::from(SIGCHLD), [0; 2], || {
            word.store(1, Ordering::Relaxed);
            wait_for(word, 2);
        });
        process::wait(vforked.expect("a child"));
    });
    asleep_until(|| word.load(Ordering::Relaxed) == 1);
    kill(child, SIGSTOP);
    time::sleep(5 * MILLISECOND).expect("a sleep");
    assert_eq!(waitid(P_PID, child.into(), WUNTRACED | WNOHANG), Ok([0; 4]), "it waits for its child");
    word.store(2, Ordering::Relaxed);
    assert_eq!(change(child), STOPPED);
    kill(child, SIGCONT);
    assert_eq!(change(child), CONTINUES);
    assert_eq!(change(child), [CLD_EXITED, 0]);
}

fn orphaned_groups_do_not_stop() {
    process::in_copy(|| {
        call(SETSID, []).expect("a session");
        [SIGTSTP, SIGTTIN, SIGTTOU].into_iter().for_each(signal::raise);
    });
    let child = process::spawn(|| {
        call(SETSID, []).expect("a session");
        signal::raise(SIGSTOP);
    });
    assert_eq!(change(child), STOPPED, "SIGSTOP does");
    kill(child, SIGCONT);
    assert_eq!(process::wait(child), exited(0));
}

fn a_group_that_is_orphaned_continues() {
    for both in [true, false] {
        let words = memory::shared::<[AtomicU32; 2]>();
        let [reader, writer] = File::pipe(0).expect("a pipe");
        // The middle one keeps the group of its child from being orphaned, until it ends.
        let middle = process::spawn(|| {
            let child = process::spawn(|| -> u8 {
                if both {
                    set(SIGHUP, 0);
                }
                set(SIGCONT, 0);
                let before = SIGNALS.load(Ordering::Relaxed);
                call(SETPGID, [0, 0]).expect("a group");
                words[0].store(process::id(), Ordering::Relaxed);
                until(|| SIGNALS.load(Ordering::Relaxed) == before + 2);
                writer.write(b"x").expect("a byte");
                0
            });
            asleep_until(|| words[0].load(Ordering::Relaxed) == child);
            kill(child, SIGTSTP);
            assert_eq!(change(child), [CLD_STOPPED, SIGTSTP as i32]);
        });
        assert_eq!(process::wait(middle), exited(0));
        drop(writer);
        let answer = reader.read(&mut [0]);
        assert_eq!(answer, Ok(u64::from(both)), "SIGHUP and SIGCONT; the first ends it without a handler");
    }
}

/// Stops, continuations and ends, of a process that makes threads and processes at the time.
fn stops_and_ends_meet() {
    let mut numbers = Random(7);
    for round in 0..40 {
        let child = process::spawn(|| -> u8 {
            all_at_once(2, |number| {
                loop {
                    if number == 0 {
                        let _ = Thread::try_spawn(|| ()).map(Thread::join);
                    } else {
                        process::run(|| 0_u8);
                    }
                }
            });
            0
        });
        for _ in 0..numbers.below(8) {
            let signal = [SIGSTOP, SIGCONT, SIGTSTP, SIGCONT][numbers.below(4)];
            kill(child, signal);
            if numbers.below(2) == 0 {
                process::sched_yield();
            }
        }
        if round % 2 == 0 {
            kill(child, SIGCONT);
            stop(child);
            assert_eq!(state(child), "T");
        }
        process::end(child);
    }
}
