//! Calls for timers.
//!
//! There are none of CPU time: they are refused as the clocks without timers are.

use granule_abi::file::{O_RDWR, TFD_CLOEXEC, TFD_NONBLOCK, TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET};
use granule_abi::signal::{SI_TIMER, SIGALRM, SIGEV_NONE, SIGEV_SIGNAL, SIGEV_THREAD, SIGEV_THREAD_ID};
use granule_abi::time::{
    CLOCK_BOOTTIME, CLOCK_BOOTTIME_ALARM, CLOCK_MONOTONIC, CLOCK_REALTIME, CLOCK_REALTIME_ALARM, ITIMER_REAL,
    TIMER_ABSTIME, Timespec,
};
use granule_arch::addr::VirtAddr;

use super::{Answer, Syscall, io, read_quads, streams, write_quads};
use crate::linux::errno::Errno;
use crate::linux::file::open::{Kind, OpenFile};
use crate::linux::file::table::OnExec;
use crate::linux::file::timerfd::{Pollers, TimerFile};
use crate::linux::process::clocks::Clock;
use crate::linux::process::signal::{Signal, SignalCause};
use crate::linux::process::timer::{self, FILES, Notice, REAL, SignalNotice, Times};
use crate::uaccess;

/// The nanoseconds in a unit of the second word of each time: of `struct timespec`, and of `struct timeval`.
const NANOSECOND: u64 = 1;
const MICROSECOND: u64 = 1000;

fn read_times(from: VirtAddr, unit: u64) -> Result<Times, Errno> {
    let [interval, interval_part, value, value_part] = read_quads(from)?;
    let time = |seconds: u64, part: u64| {
        let nanoseconds = (part as i64).saturating_mul(unit as i64);
        Timespec { seconds: seconds as i64, nanoseconds }.to_nanoseconds().ok_or(Errno::EINVAL)
    };
    Ok(Times { value: time(value, value_part)?, interval: time(interval, interval_part)? })
}

fn write_times(to: VirtAddr, Times { interval, value }: Times, unit: u64) -> Result<(), Errno> {
    // A moment that has come is not 0: the timer is not stopped.
    let [interval, value] =
        [interval, value].map(|time| Timespec::from_nanoseconds(time.div_ceil(unit).saturating_mul(unit)));
    let part = |time: Timespec| time.nanoseconds as u64 / unit;
    write_quads(to, [interval.seconds as u64, part(interval), value.seconds as u64, part(value)])
}

pub(super) fn getitimer(call: &mut Syscall<'_>) -> Answer {
    let left = real(call, None)?;
    write_times(call.address::<1>(), left, MICROSECOND).map(|()| 0)
}

pub(super) fn setitimer(call: &mut Syscall<'_>) -> Answer {
    let (new, old) = (call.address::<1>(), call.address::<2>());
    let new = if new.0 == 0 { Times::default() } else { read_times(new, MICROSECOND)? };
    let left = real(call, Some(new))?;
    if old.0 != 0 {
        write_times(old, left, MICROSECOND)?;
    }
    Ok(0)
}

/// The time that is left of the timer that the call names, which gets `new` times.
fn real(call: &Syscall<'_>, new: Option<Times>) -> Result<Times, Errno> {
    if call.argument::<0>() as u32 != ITIMER_REAL {
        return Err(Errno::EINVAL);
    }
    let process = call.task.process();
    if new.is_some_and(|new| new.value != 0) {
        timer::add_real(process)?;
    }
    // Without one, nothing is left.
    Ok(timer::exchange(process.id(), REAL, new, false).unwrap_or_default())
}

pub(super) fn timer_create(call: &mut Syscall<'_>) -> Answer {
    let (number, event, to) = (u64::from(call.argument::<0>() as u32), call.address::<1>(), call.address::<2>());
    let process = call.task.process();
    let event = if event.0 == 0 { None } else { Some(read_quads::<8>(event)?) };
    if Clock::new(number, call.task)? != Clock::Uptime {
        return Err(if number as u32 == u32::MAX { Errno::EINVAL } else { Errno::ENOTSUP });
    }
    let (mut signal, mut thread) = (Signal::new(SIGALRM.into()), None);
    if let Some([_, kind, number, ..]) = event {
        signal = Signal::new(u64::from(kind as u32));
        match (kind >> 32) as u32 {
            SIGEV_NONE => signal = None,
            SIGEV_SIGNAL | SIGEV_THREAD if signal.is_some() => {}
            SIGEV_THREAD_ID if signal.is_some() => thread = Some(number as u32),
            _ => return Err(Errno::EINVAL),
        }
    }
    if thread.is_some_and(|thread| process.lock().find(thread).is_none()) {
        return Err(Errno::EINVAL);
    }
    let id = timer::create(process, |id| {
        let fields = [id.into(), event.map_or(id.into(), |[value, ..]| value)];
        let cause = SignalCause { code: SI_TIMER, fields };
        let notice = |signal| Notice::Signal(SignalNotice { signal, process, thread, cause });
        signal.map_or(Notice::Nothing, notice)
    })?;
    let stored = uaccess::copy_to_user(to, &id.to_le_bytes());
    if stored.is_err() {
        timer::delete(process.id(), id)?;
    }
    Ok(stored.map(|()| 0)?)
}

/// The number of a timer: the first argument.
fn number(call: &Syscall<'_>) -> Result<u32, Errno> {
    u32::try_from(call.argument::<0>() as i32).map_err(|_| Errno::EINVAL)
}

pub(super) fn timer_settime(call: &mut Syscall<'_>) -> Answer {
    let (new, old, flags) = (call.address::<2>(), call.address::<3>(), u64::from(call.argument::<1>() as u32));
    if new.0 == 0 {
        return Err(Errno::EINVAL);
    }
    let new = read_times(new, NANOSECOND)?;
    let left = timer::exchange(call.task.process().id(), number(call)?, Some(new), flags & TIMER_ABSTIME != 0)?;
    if old.0 != 0 {
        write_times(old, left, NANOSECOND)?;
    }
    Ok(0)
}

pub(super) fn timer_gettime(call: &mut Syscall<'_>) -> Answer {
    let left = timer::exchange(call.task.process().id(), number(call)?, None, false)?;
    write_times(call.address::<1>(), left, NANOSECOND).map(|()| 0)
}

pub(super) fn timer_getoverrun(call: &mut Syscall<'_>) -> Answer {
    timer::overruns(call.task.process().id(), number(call)?)
}

pub(super) fn timer_delete(call: &mut Syscall<'_>) -> Answer {
    timer::delete(call.task.process().id(), number(call)?).map(|()| 0)
}

pub(super) fn timerfd_create(call: &mut Syscall<'_>) -> Answer {
    let (clock, flags) = (u64::from(call.argument::<0>() as u32), call.argument::<1>() as u32);
    let has_files = [CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_REALTIME_ALARM, CLOCK_BOOTTIME_ALARM];
    if flags & !(TFD_CLOEXEC | TFD_NONBLOCK) != 0 || !has_files.contains(&clock) {
        return Err(Errno::EINVAL);
    }
    let pollers = Pollers::new()?;
    let timer = TimerFile::new(timer::create_for_file(pollers.clone())?, pollers, timer::delete_of_file);
    let file = OpenFile::new(Kind::Timer(timer), O_RDWR | flags & TFD_NONBLOCK)?;
    streams::add(call, file, OnExec::requested(flags & TFD_CLOEXEC))
}

fn timer_of(file: &OpenFile) -> Result<&TimerFile, Errno> {
    if let Kind::Timer(timer) = file.kind() { Ok(timer) } else { Err(Errno::EINVAL) }
}

pub(super) fn timerfd_settime(call: &mut Syscall<'_>) -> Answer {
    let flags = call.argument::<1>() as u32;
    let new = read_times(call.address::<2>(), NANOSECOND)?;
    if flags & !(TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET) != 0 {
        return Err(Errno::EINVAL);
    }
    let file = io::file(call, call.argument::<0>())?;
    let left = timer::exchange(FILES, timer_of(&file)?.id, Some(new), flags & TFD_TIMER_ABSTIME != 0)?;
    let old = call.address::<3>();
    if old.0 == 0 { Ok(0) } else { write_times(old, left, NANOSECOND).map(|()| 0) }
}

pub(super) fn timerfd_gettime(call: &mut Syscall<'_>) -> Answer {
    let file = io::file(call, call.argument::<0>())?;
    let left = timer::exchange(FILES, timer_of(&file)?.id, None, false)?;
    write_times(call.address::<1>(), left, NANOSECOND).map(|()| 0)
}
