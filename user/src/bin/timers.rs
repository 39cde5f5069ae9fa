//! Timers: which are made, when and how often their signals come, and what ends them.
//!
//! Each answer is Linux's. None depends on how long anything takes.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;
use granule_user::seen::{SEEN, note};

entry!(run);
own!(call);

const OK: Result<u64, Errno> = Ok(0);
const MS: u64 = MILLISECOND;
const HOUR: u64 = 3_600_000 * MS;
const VALUE: u64 = 0x1122_3344_5566_7788;

fn run(start: Start) -> u8 {
    if start.arguments().nth(1) == Some("exec") {
        equal("a timer is gone after an exec", left(0), Err(EINVAL));
        holds("that of setitimer is not", get_real().1[1] != 0);
        return wrong();
    }
    let path = start.path();
    parts! { (path) kept_and_deleted_at_an_exec }
    parts! { ()
        made_and_refused times_are_refused fires_once goes_on misses to_a_thread without_a_signal stopped ignored in_the_past
        files_refuse files_are_read files_wait files_wake_pollers
        real real_refuses not_inherited limited ends_the_process
    }
    status("timers")
}

/// `struct sigevent`.
type Event = [u64; 8];

const fn event(notify: u32, signal: u32, thread: u32) -> Event {
    [VALUE, (notify as u64) << 32 | signal as u64, thread as u64, 0, 0, 0, 0, 0]
}

fn create(clock: u64, event: Option<&Event>) -> Result<u64, Errno> {
    let mut id = 77_u32;
    let event = event.map_or(0, |event| &raw const *event as u64);
    call(TIMER_CREATE, [clock, event, &raw mut id as u64]).map(|_| id.into())
}

fn timer(event: &Event) -> u64 {
    create(CLOCK_MONOTONIC, Some(event)).expect("a timer")
}

const fn pair(nanoseconds: u64) -> Timespec {
    Timespec::from_nanoseconds(nanoseconds)
}

/// `timer_settime` with an interval and a value.
fn set(id: u64, flags: u64, times: [u64; 2]) -> Result<u64, Errno> {
    let times = times.map(pair);
    call(TIMER_SETTIME, [id, flags, times.as_ptr() as u64, 0])
}

/// `timer_gettime`: interval and value.
fn left(id: u64) -> Result<[u64; 2], Errno> {
    let mut times = [pair(7); 2];
    call(TIMER_GETTIME, [id, times.as_mut_ptr() as u64])?;
    Ok(times.map(|time| time.to_nanoseconds().expect("a time")))
}

fn overruns(id: u64) -> Result<u64, Errno> {
    call(TIMER_GETOVERRUN, [id])
}

fn delete(id: u64) {
    equal("deleted", call(TIMER_DELETE, [id]), OK);
}

/// Waits for a blocked signal; with a limit of 0, takes it if it is pending.
fn wait_for(signal: u32, limit: Option<u64>) -> Result<SigInfo, Errno> {
    let (set, mut info, limit) = (set_of(signal), SigInfo::new(0, 0), limit.map(pair));
    let limit = limit.as_ref().map_or(0, |limit| &raw const *limit as u64);
    call(RT_SIGTIMEDWAIT, [&raw const set as u64, &raw mut info as u64, limit, 8]).map(|_| info)
}

/// The signal of a timer, but for its overruns.
fn of_timer(id: u64, signal: u32) -> Result<(i32, u32, u64), Errno> {
    wait_for(signal, None).map(|info| (info.code, info.process(), info.fields[1])).inspect(|got| {
        equal("signal of a timer", *got, (SI_TIMER, id as u32, VALUE));
    })
}

fn block(signal: u32) {
    mask(SIG_BLOCK, set_of(signal)).expect("a mask");
}

fn unblock() {
    mask(SIG_SETMASK, 0).expect("a mask");
}

fn made_and_refused() {
    let first = create(CLOCK_MONOTONIC, None).expect("a timer");
    equal("new", left(first), Ok([0; 2]));
    equal("no overruns", overruns(first), OK);
    for clock in [CLOCK_REALTIME, CLOCK_BOOTTIME, CLOCK_TAI] {
        let other = create(clock, None).expect("a timer");
        holds("another", other != first);
        delete(other);
        equal("it is gone", left(other), Err(EINVAL));
        equal("and is not deleted twice", call(TIMER_DELETE, [other]), Err(EINVAL));
    }
    for clock in [CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE] {
        equal(("a clock to read", clock), create(clock, None), Err(ENOTSUP));
    }
    for clock in [10, 12, u64::MAX] {
        equal(("no clock", clock), create(clock, None), Err(EINVAL));
    }
    let own = process::thread_id();
    for (notify, signal, thread) in [
        (SIGEV_SIGNAL, 0, 0),
        (SIGEV_SIGNAL, 65, 0),
        (SIGEV_THREAD, 65, 0),
        (3, SIGUSR1, 0),
        (5, SIGUSR1, own),
        (SIGEV_THREAD_ID, SIGUSR1, 0),
        (SIGEV_THREAD_ID, SIGUSR1, own + 1000),
        (SIGEV_THREAD_ID, 0, own),
    ] {
        let refused = create(CLOCK_MONOTONIC, Some(&event(notify, signal, thread)));
        equal(("notify, signal, thread", notify, signal, thread), refused, Err(EINVAL));
    }
    for (notify, signal) in [(SIGEV_NONE, 65), (SIGEV_SIGNAL, 64), (SIGEV_SIGNAL, SIGKILL), (SIGEV_THREAD, SIGUSR1)] {
        delete(timer(&event(notify, signal, 0)));
    }
    equal("no event", call(TIMER_CREATE, [CLOCK_MONOTONIC, NOWHERE, 0]), Err(EFAULT));
    equal("no room for the number", call(TIMER_CREATE, [CLOCK_MONOTONIC, 0, NOWHERE]), Err(EFAULT));
    delete(first);
}

fn times_are_refused() {
    let id = timer(&event(SIGEV_SIGNAL, SIGUSR1, 0));
    let bad = |seconds, nanoseconds| Timespec { seconds, nanoseconds };
    for times in [[pair(0), bad(0, 1_000_000_000)], [bad(0, -1), pair(1)], [pair(0), bad(-1, 0)]] {
        equal(times, call(TIMER_SETTIME, [id, 0, times.as_ptr() as u64, 0]), Err(EINVAL));
    }
    equal("no times", call(TIMER_SETTIME, [id, 0, 0, 0]), Err(EINVAL));
    equal("times at", call(TIMER_SETTIME, [id, 0, NOWHERE, 0]), Err(EFAULT));
    for none in [9999, u64::MAX] {
        equal(
            "no timer",
            [set(none, 0, [0, 1]), overruns(none), call(TIMER_GETTIME, [none, NOWHERE])],
            [Err(EINVAL); 3],
        );
    }
    let times = [pair(0), pair(HOUR)];
    equal("no room", call(TIMER_SETTIME, [id, 0, times.as_ptr() as u64, NOWHERE]), Err(EFAULT));
    holds("it runs all the same", left(id).is_ok_and(|[_, value]| value != 0));
    equal("no room", call(TIMER_GETTIME, [id, NOWHERE]), Err(EFAULT));
    equal("other flags", set(id, 0xfe, [5, 0]), OK);
    equal("without a value it has no interval", left(id), Ok([0; 2]));
    delete(id);
}

fn fires_once() {
    block(SIGUSR1);
    let id = timer(&event(SIGEV_SIGNAL, SIGUSR1, 0));
    equal("set", set(id, 0, [0, MS]), OK);
    equal("it comes", of_timer(id, SIGUSR1).is_ok(), true);
    equal("it is over", left(id), Ok([0; 2]));
    equal("no overruns", overruns(id), OK);
    time::sleep(3 * MS).expect("a sleep");
    equal("once", wait_for(SIGUSR1, Some(0)), Err(EAGAIN));
    // A handler has the same.
    signal_is_noted(SIGUSR1);
    unblock();
    equal("again", set(id, 0, [0, MS]), OK);
    until(|| SEEN.count.load(Ordering::Relaxed) != 0);
    equal("handled", SEEN.take(), (1, SIGUSR1, SI_TIMER));
    delete(id);
    // Without an event: SIGALRM, with the timer's number.
    block(SIGALRM);
    let id = create(CLOCK_BOOTTIME, None).expect("a timer");
    equal("set", set(id, 0, [0, MS]), OK);
    equal("its number", wait_for(SIGALRM, None).map(|info| (info.code, info.fields)), {
        let mut fields = [0; 14];
        fields[..2].copy_from_slice(&[id, id]);
        Ok((SI_TIMER, fields))
    });
    unblock();
    delete(id);
}

fn signal_is_noted(signal: u32) {
    // SAFETY: the handler stores to atomics.
    unsafe { handle(signal, note, 0, 0) }.expect("a handler");
    SEEN.take();
}

fn goes_on() {
    block(SIGUSR1);
    let id = timer(&event(SIGEV_SIGNAL, SIGUSR1, 0));
    equal("set", set(id, 0, [MS, MS]), OK);
    for _ in 0..5 {
        equal("it comes", of_timer(id, SIGUSR1).is_ok(), true);
        let [interval, value] = left(id).expect("the timer");
        equal("its times", (interval, (1..=MS).contains(&value)), (MS, true));
    }
    unblock_ignored(SIGUSR1);
    delete(id);
}

/// Unblocks all; this signal, which may be pending, is ignored.
fn unblock_ignored(signal: u32) {
    set_without_handler(signal, SIG_IGN);
    unblock();
}

fn misses() {
    block(SIGUSR1);
    let id = timer(&event(SIGEV_SIGNAL, SIGUSR1, 0));
    equal("set", set(id, 0, [MS, MS]), OK);
    time::sleep(20 * MS).expect("a sleep");
    equal("not delivered yet", overruns(id), OK);
    let info = wait_for(SIGUSR1, None).expect("a signal");
    holds(("overruns", info.fields[0] >> 32), info.fields[0] >> 32 >= 10);
    equal("timer_getoverrun", overruns(id), Ok(info.fields[0] >> 32));
    equal("set anew", set(id, 0, [0, 0]), OK);
    equal("none", overruns(id), OK);
    unblock_ignored(SIGUSR1);
    delete(id);
}

fn to_a_thread() {
    block(SIGUSR1);
    let wait = || {
        let id = timer(&event(SIGEV_THREAD_ID, SIGUSR1, process::thread_id()));
        equal("set", set(id, 0, [0, MS]), OK);
        equal("its thread's", of_timer(id, SIGUSR1).is_ok(), true);
        equal("and again", set(id, 0, [0, MS]), OK);
        until(|| is_pending(SIGUSR1).expect("the signals that are pending"));
        id
    };
    let (id, ()) = beside(wait, || ());
    equal("it was the thread's", is_pending(SIGUSR1), Ok(false));
    unblock();
    delete(id);
}

fn without_a_signal() {
    let id = timer(&event(SIGEV_NONE, 0, 0));
    equal("set", set(id, 0, [0, HOUR]), OK);
    holds("it runs", left(id).is_ok_and(|[interval, value]| interval == 0 && (1..=HOUR).contains(&value)));
    equal("set", set(id, 0, [0, MS]), OK);
    until(|| left(id) == Ok([0; 2]));
    equal("set", set(id, 0, [MS, MS]), OK);
    time::sleep(5 * MS).expect("a sleep");
    holds("it goes on", left(id).is_ok_and(|[interval, value]| interval == MS && (1..=MS).contains(&value)));
    equal("and counts nothing", overruns(id), OK);
    delete(id);
}

fn stopped() {
    block(SIGUSR1);
    let id = timer(&event(SIGEV_SIGNAL, SIGUSR1, 0));
    let fire = |times| {
        equal("set", set(id, 0, times), OK);
        until(|| is_pending(SIGUSR1).expect("the signals that are pending"));
    };
    fire([0, MS]);
    equal("stopped", set(id, 0, [0, 0]), OK);
    equal("with its signal", wait_for(SIGUSR1, Some(0)), Err(EAGAIN));
    fire([MS, MS]);
    equal("set anew", set(id, 0, [0, HOUR]), OK);
    equal("with its signal", wait_for(SIGUSR1, Some(0)), Err(EAGAIN));
    fire([0, MS]);
    delete(id);
    equal("deleted with its signal", wait_for(SIGUSR1, Some(0)), Err(EAGAIN));
    unblock();
}

fn ignored() {
    let id = timer(&event(SIGEV_SIGNAL, SIGUSR1, 0));
    set_without_handler(SIGUSR1, SIG_IGN);
    equal("set", set(id, 0, [0, MS]), OK);
    until(|| left(id) == Ok([0; 2]));
    signal_is_noted(SIGUSR1);
    equal("one that was ignored does not come later", SEEN.take().0, 0);
    set_without_handler(SIGUSR1, SIG_IGN);
    equal("set", set(id, 0, [MS, MS]), OK);
    time::sleep(3 * MS).expect("a sleep");
    signal_is_noted(SIGUSR1);
    until(|| SEEN.count.load(Ordering::Relaxed) >= 2);
    delete(id);
    SEEN.take();
}

fn in_the_past() {
    block(SIGUSR1);
    let id = timer(&event(SIGEV_SIGNAL, SIGUSR1, 0));
    equal("a moment", set(id, TIMER_ABSTIME, [0, 1]), OK);
    equal("it comes", of_timer(id, SIGUSR1).is_ok(), true);
    equal("a moment to come", set(id, TIMER_ABSTIME, [0, time::now() + MS]), OK);
    equal("it comes", of_timer(id, SIGUSR1).is_ok(), true);
    equal("moments", set(id, TIMER_ABSTIME, [MS, 1]), OK);
    equal("overruns", wait_for(SIGUSR1, None).is_ok_and(|info| info.fields[0] >> 32 > 0), true);
    unblock_ignored(SIGUSR1);
    delete(id);
}

/// `setitimer` with an interval and a value in microseconds: those before.
fn set_real(times: [u64; 2]) -> Result<[u64; 2], Errno> {
    let (new, mut old) = ([0, times[0], times[1] / 1_000_000, times[1] % 1_000_000], [7_u64; 4]);
    call(SETITIMER, [0, new.as_ptr() as u64, old.as_mut_ptr() as u64])?;
    Ok([old[0] * 1_000_000 + old[1], old[2] * 1_000_000 + old[3]])
}

/// `getitimer`: its answer, and the times in microseconds.
fn get_real() -> (Result<u64, Errno>, [u64; 2]) {
    let mut now = [7_u64; 4];
    let answer = call(GETITIMER, [0, now.as_mut_ptr() as u64]);
    (answer, [now[0] * 1_000_000 + now[1], now[2] * 1_000_000 + now[3]])
}

fn real() {
    block(SIGALRM);
    equal("none", get_real(), (OK, [0; 2]));
    equal("set", set_real([0, 1000]), Ok([0; 2]));
    let information = |info: SigInfo| (info.code, info.fields);
    equal("it comes", wait_for(SIGALRM, None).map(information), Ok((SI_KERNEL, [0; 14])));
    equal("once", get_real(), (OK, [0; 2]));
    equal("set", set_real([1000, 1000]), Ok([0; 2]));
    for _ in 0..5 {
        equal("it comes", wait_for(SIGALRM, None).map(information), Ok((SI_KERNEL, [0; 14])));
        equal("its interval", get_real().1[0], 1000);
    }
    until(|| is_pending(SIGALRM).expect("the signals that are pending"));
    equal("it waits until its signal is delivered", get_real(), (OK, [1000, 0]));
    equal("stopped", set_real([0, 0]), Ok([1000, 0]));
    equal("without its signal", wait_for(SIGALRM, Some(0)).map(information), Ok((SI_KERNEL, [0; 14])));
    equal("set", set_real([5, 3_600_000_000]), Ok([0; 2]));
    equal("without a value", set_real([5, 0]).map(|[interval, value]| (interval, value != 0)), Ok((5, true)));
    equal("it has no interval", get_real(), (OK, [0; 2]));
    unblock();
}

fn real_refuses() {
    for times in [[0, 0, 0, 1_000_000], [0, 0, u64::MAX, 0], [0, u64::MAX, 0, 1]] {
        equal(times, call(SETITIMER, [0, times.as_ptr() as u64, 0]), Err(EINVAL));
    }
    equal("times at", call(SETITIMER, [0, NOWHERE, 0]), Err(EFAULT));
    equal("room at", call(GETITIMER, [0, NOWHERE]), Err(EFAULT));
    for which in [3, u64::MAX] {
        let times = [0_u64; 4];
        equal("no timer", call(GETITIMER, [which, NOWHERE]), Err(EINVAL));
        equal("no timer", call(SETITIMER, [which, times.as_ptr() as u64, 0]), Err(EINVAL));
    }
    let hour = [0, 0, 3600, 0_u64];
    equal("no room", call(SETITIMER, [0, hour.as_ptr() as u64, NOWHERE]), Err(EFAULT));
    holds("it runs all the same", get_real().1[1] != 0);
    equal("no times", call(SETITIMER, [0, 0, 0]), OK);
    equal("it is stopped", get_real(), (OK, [0; 2]));
}

fn not_inherited() {
    let id = timer(&event(SIGEV_NONE, 0, 0));
    equal("set", set_real([0, 3_600_000_000]), Ok([0; 2]));
    apart(|| {
        equal("a copy has none", left(id), Err(EINVAL));
        equal("nor that of setitimer", get_real(), (OK, [0; 2]));
    });
    equal("stopped", set_real([0, 0]).is_ok(), true);
    delete(id);
}

fn kept_and_deleted_at_an_exec(path: &CStr) {
    apart(|| {
        equal("the first number", create(CLOCK_MONOTONIC, None), OK);
        equal("set", set_real([0, 3_600_000_000]), Ok([0; 2]));
        equal("executed", process::execute(path, &[c"timers", c"exec"]), ENOENT);
    });
}

fn limited() {
    apart(|| {
        let id = timer(&event(SIGEV_NONE, 0, 0));
        equal("a limit", process::limit(RLIMIT_SIGPENDING, 1, 1).map(drop), Ok(()));
        equal("it is reached", create(CLOCK_MONOTONIC, None), Err(EAGAIN));
        equal("but not for setitimer", set_real([0, 3_600_000_000]), Ok([0; 2]));
        delete(id);
        let again = create(CLOCK_MONOTONIC, None).expect("one is left");
        for _ in 0..100 {
            equal("no more than one", create(CLOCK_MONOTONIC, None), Err(EAGAIN));
        }
        delete(again);
    });
}

fn file(flags: u32) -> File {
    File(call(TIMERFD_CREATE, [CLOCK_MONOTONIC, flags.into()]).expect("a timer that is read"))
}

/// `timerfd_settime` with an interval and a value.
fn set_file(file: u64, flags: u64, times: [u64; 2]) -> Result<u64, Errno> {
    let times = times.map(pair);
    call(TIMERFD_SETTIME, [file, flags, times.as_ptr() as u64, 0])
}

/// `timerfd_gettime`: interval and value.
fn left_of(file: u64) -> Result<[u64; 2], Errno> {
    let mut times = [pair(7); 2];
    call(TIMERFD_GETTIME, [file, times.as_mut_ptr() as u64])?;
    Ok(times.map(|time| time.to_nanoseconds().expect("a time")))
}

fn read_file(file: u64) -> Result<u64, Errno> {
    let mut moments = 0_u64;
    call(READ, [file, &raw mut moments as u64, 8]).map(|_| moments)
}

fn files_refuse() {
    for clock in [CLOCK_REALTIME, CLOCK_BOOTTIME] {
        drop(File(call(TIMERFD_CREATE, [clock, 0]).expect("a clock")));
    }
    for clock in [CLOCK_TAI, CLOCK_MONOTONIC_RAW, CLOCK_PROCESS_CPUTIME_ID, 12, u64::MAX] {
        equal(("no timer of clock", clock), call(TIMERFD_CREATE, [clock, 0]), Err(EINVAL));
    }
    for flags in [1, u64::from(O_APPEND), u64::from(u32::MAX)] {
        equal(("flags", flags), call(TIMERFD_CREATE, [CLOCK_MONOTONIC, flags]), Err(EINVAL));
    }
    let timer = file(O_NONBLOCK);
    let file = timer.0;
    equal("stopped", (left_of(file), read_file(file)), (Ok([0; 2]), Err(EAGAIN)));
    for flags in [4, 8, u64::from(u32::MAX)] {
        equal(("flags of times", flags), set_file(file, flags, [0, HOUR]), Err(EINVAL));
    }
    let wrong = [[0, 0, 0, 1_000_000_000], [0, 0, u64::MAX, 0], [0, u64::MAX, 0, 1]];
    for times in wrong {
        equal(times, call(TIMERFD_SETTIME, [file, 0, times.as_ptr() as u64, 0]), Err(EINVAL));
        equal(times, call(TIMERFD_SETTIME, [999, 8, times.as_ptr() as u64, 0]), Err(EINVAL));
    }
    let counter = File::counter(0, 0).expect("a counter");
    for (other, error) in [(999, EBADF), (counter.0, EINVAL)] {
        equal("times of another", (set_file(other, 0, [0; 2]), left_of(other)), (Err(error), Err(error)));
    }
    equal("times at", call(TIMERFD_SETTIME, [999, 8, NOWHERE, 0]), Err(EFAULT));
    equal("room at", call(TIMERFD_GETTIME, [file, NOWHERE]), Err(EFAULT));
    let word = [0_u64; 2];
    let at = word.as_ptr() as u64;
    equal("too little room", call(READ, [file, at, 7]), Err(EINVAL));
    equal("no writes", call(WRITE, [file, at, 8]), Err(EINVAL));
    equal("of nothing", call(WRITE, [file, at, 0]), Err(EINVAL));
    equal("at no position", call(PREAD64, [file, at, 8, 0]), Err(ESPIPE));
    equal("which stays", timer.seek(5, SEEK_SET), Ok(0));
    equal("no size", call(FTRUNCATE, [file, 0]), Err(EINVAL));
}

fn files_are_read() {
    let timer = file(O_NONBLOCK);
    let file = timer.0;
    equal("an hour", set_file(file, 0, [0, HOUR]), OK);
    holds("less than an hour", matches!(left_of(file), Ok([0, 1..HOUR])));
    equal("not over", read_file(file), Err(EAGAIN));
    let hour = [pair(MS), pair(HOUR)];
    equal("no room", call(TIMERFD_SETTIME, [file, 0, hour.as_ptr() as u64, NOWHERE]), Err(EFAULT));
    holds("it runs all the same", matches!(left_of(file), Ok([MS, 1..HOUR])));
    // A moment that has come long ago.
    equal("a moment", set_file(file, TFD_TIMER_ABSTIME.into(), [0, 1]), OK);
    until(|| left_of(file) == Ok([0; 2]));
    equal("once", (read_file(file), read_file(file)), (Ok(1), Err(EAGAIN)));
    equal("with an interval", set_file(file, TFD_TIMER_ABSTIME.into(), [MS, 1]), OK);
    let mut moments = 0;
    until(|| {
        moments += read_file(file).unwrap_or(0);
        moments > 1000
    });
    holds("the next moment is near", matches!(left_of(file), Ok([MS, 1..=MS])));
    equal("an hour between two", set_file(file, TFD_TIMER_ABSTIME.into(), [HOUR, 1]), OK);
    until(|| matches!(left_of(file), Ok([HOUR, 1..=HOUR])));
    // Each hour since the clock began.
    holds("all moments", read_file(file).is_ok_and(|hours| hours >= 1));
    equal("all taken", read_file(file), Err(EAGAIN));
    equal("stopped", set_file(file, 0, [MS, 0]), OK);
    equal("and not to go on", (left_of(file).map(|[_, value]| value), read_file(file)), (Ok(0), Err(EAGAIN)));
}

fn files_wait() {
    let timer = file(0);
    let file = timer.0;
    equal("soon", set_file(file, 0, [0, MS]), OK);
    equal("read", read_file(file), Ok(1));
    // A reader waits for times that are set later, too.
    let (read, _) = beside(|| read_file(file), || equal("soon", set_file(file, 0, [0, MS]), OK));
    equal("read", read, Ok(1));
    interrupt_by(SIGUSR1, 0);
    equal("interrupted", while_signalled(SIGUSR1, MS, || read_file(file)), Err(EINTR));
    apart(|| {
        equal("set by a copy", set_file(file, 0, [0, MS]), OK);
    });
    equal("read by the other", read_file(file), Ok(1));
}

fn files_wake_pollers() {
    let timer = file(O_NONBLOCK);
    let file = timer.0;
    let (mut list, none) = ([PollFd { fd: file as i32, events: POLLIN | POLLOUT, revents: 0 }], pair(0));
    let mut poll = |limit| (call(PPOLL, [list.as_mut_ptr() as u64, 1, limit, 0, 8]), list[0].revents);
    equal("nothing", poll(&raw const none as u64), (OK, 0));
    equal("soon", set_file(file, 0, [MS, MS]), OK);
    for _ in 0..5 {
        equal("a moment", poll(0), (Ok(1), POLLIN));
        holds("which is read", read_file(file).is_ok());
    }
}

fn ends_the_process() {
    let end = process::run(|| {
        equal("set", set_real([0, 1000]), Ok([0; 2]));
        time::sleep(HOUR).expect("no handler");
    });
    equal("by SIGALRM", end, killed(SIGALRM));
    let end = process::run(|| {
        set(timer(&event(SIGEV_SIGNAL, SIGKILL, 0)), 0, [0, MS]).expect("a timer");
        until(|| false);
    });
    equal("by SIGKILL, also where it computes", end, killed(SIGKILL));
}
