//! Calls for time.

use core::time::Duration;

use granule_abi::time::{CLOCK_BOOTTIME_ALARM, CLOCK_REALTIME_ALARM, TIMER_ABSTIME, Timespec};
use granule_arch::addr::VirtAddr;

use super::{Answer, Syscall, futex, read_quads, write_quads};
use crate::chip::timer::{Deadline, uptime_nanoseconds};
use crate::linux::errno::Errno;
use crate::linux::process::clocks::{Clock, Sleep};
use crate::linux::process::task::{Continuation, Task};

/// The moment after so many nanoseconds.
pub(super) fn after(nanoseconds: u64) -> Deadline {
    Deadline::after(Duration::from_nanos(nanoseconds))
}

/// Reads a time, in nanoseconds.
pub(super) fn read_timespec(from: VirtAddr) -> Result<u64, Errno> {
    let [seconds, nanoseconds] = read_quads(from)?;
    let time = Timespec { seconds: seconds as i64, nanoseconds: nanoseconds as i64 };
    time.to_nanoseconds().ok_or(Errno::EINVAL)
}

pub(super) fn write_timespec(to: VirtAddr, nanoseconds: u64) -> Result<(), Errno> {
    let time = Timespec::from_nanoseconds(nanoseconds);
    write_quads(to, [time.seconds as u64, time.nanoseconds as u64])
}

pub(super) fn clock_gettime(call: &mut Syscall<'_>) -> Answer {
    let now = Clock::new(call.argument::<0>(), call.task)?.now(call.task)?;
    write_timespec(call.address::<1>(), now)?;
    Ok(0)
}

pub(super) fn clock_getres(call: &mut Syscall<'_>) -> Answer {
    // A clock exists if it can be read.
    Clock::new(call.argument::<0>(), call.task)?.now(call.task)?;
    if call.argument::<1>() != 0 {
        write_timespec(call.address::<1>(), 1)?;
    }
    Ok(0)
}

pub(super) fn nanosleep(call: &mut Syscall<'_>) -> Answer {
    let nanoseconds = read_timespec(call.address::<0>())?;
    let until = uptime_nanoseconds().saturating_add(nanoseconds);
    sleep(call.task, Sleep { clock: Clock::Uptime, until, rest: call.address::<1>() })
}

pub(super) fn clock_nanosleep(call: &mut Syscall<'_>) -> Answer {
    let (number, flags) = (u64::from(call.argument::<0>() as u32), call.argument::<1>() as u32);
    let clock = Clock::new(number, call.task)?;
    if matches!(clock, Clock::UptimeToRead | Clock::ThreadToRead | Clock::File) {
        return Err(Errno::ENOTSUP);
    }
    let nanoseconds = read_timespec(call.address::<2>())?;
    // As on Linux (`alarm_timer_nsleep`) these alone look at the other flags.
    let is_alarm = number == CLOCK_REALTIME_ALARM || number == CLOCK_BOOTTIME_ALARM;
    if is_alarm && u64::from(flags) & !TIMER_ABSTIME != 0 {
        return Err(Errno::EINVAL);
    }
    // A thread would sleep for ever until it has run.
    if clock == Clock::Thread(call.task.id()) {
        return Err(Errno::EINVAL);
    }
    let before = clock.now(call.task)?;
    if u64::from(flags) & TIMER_ABSTIME != 0 {
        // An absolute time has no rest to return; without a handler the call is repeated.
        return match clock.sleep_until(call.task, nanoseconds) {
            Err(Errno::EINTR) => Err(Errno::ERESTARTNOHAND),
            answer => answer.map(|()| 0),
        };
    }
    sleep(call.task, Sleep { clock, until: before.saturating_add(nanoseconds), rest: call.address::<3>() })
}

/// Sleeps. If a signal interrupts it, the rest is stored, and the sleep continues unless a handler runs.
fn sleep(task: &Task, sleep: Sleep) -> Answer {
    match sleep.clock.sleep_until(task, sleep.until) {
        Err(Errno::EINTR) => {}
        answer => return answer.map(|()| 0),
    }
    if sleep.rest.0 != 0 {
        write_timespec(sleep.rest, sleep.until.saturating_sub(sleep.clock.now(task)?))?;
    }
    task.continuation.set(Some(Continuation::Sleep(sleep)));
    Err(Errno::ERESTARTBLOCK)
}

/// Continues the call that a signal without a handler interrupted.
pub(super) fn restart_syscall(call: &mut Syscall<'_>) -> Answer {
    match call.task.continuation.take() {
        Some(Continuation::Sleep(rest)) => sleep(call.task, rest),
        Some(Continuation::Futex(rest)) => futex::wait(call.task, &rest),
        None => Err(Errno::EINTR),
    }
}
