//! Calls for what the system and a process have used, and for the one way in which threads are scheduled.

use granule_abi::process::{
    RUSAGE_CHILDREN, RUSAGE_SELF, RUSAGE_THREAD, SCHED_BATCH, SCHED_EXT, SCHED_FIFO, SCHED_OTHER, SCHED_RR,
};
use granule_abi::time::NANOSECONDS;
use granule_arch::addr::PAGE;

use super::process::with_thread;
use super::time::write_timespec;
use super::{Answer, Syscall, io, write_quads};
use crate::chip::timer::uptime_nanoseconds;
use crate::kernel;
use crate::linux::errno::Errno;
use crate::linux::file::open::Kind;
use crate::linux::process::clocks::Clock;
use crate::sched;
use crate::uaccess;

/// Nanoseconds of a tick, in which `times` counts (AT_CLKTCK).
const TICK: u64 = NANOSECONDS / 100;

/// Words of a `struct rusage`.
pub(super) const USAGE: usize = 18;

/// Seconds, and microseconds.
const fn timeval(nanoseconds: u64) -> [u64; 2] {
    [nanoseconds / NANOSECONDS, nanoseconds % NANOSECONDS / 1000]
}

pub(super) fn gettimeofday(call: &mut Syscall<'_>) -> Answer {
    let (time, zone) = (call.address::<0>(), call.address::<1>());
    if time.0 != 0 {
        write_quads(time, timeval(uptime_nanoseconds()))?;
    }
    if zone.0 != 0 {
        write_quads(zone, [0])?;
    }
    Ok(0)
}

/// All time is that of programs: `linux::process::clock`. Children's is not kept.
pub(super) fn times(call: &mut Syscall<'_>) -> Answer {
    let to = call.address::<0>();
    if to.0 != 0 {
        let own = Clock::Process(call.task.process().id()).now(call.task)?;
        write_quads(to, [own / TICK, 0, 0, 0])?;
    }
    Ok(uptime_nanoseconds() / TICK)
}

/// Time, as [`times`], and no other usage.
pub(super) fn getrusage(call: &mut Syscall<'_>) -> Answer {
    let used = match call.argument::<0>() as i32 {
        RUSAGE_SELF => Clock::Process(call.task.process().id()).now(call.task)?,
        RUSAGE_THREAD => Clock::ThreadToRead.now(call.task)?,
        RUSAGE_CHILDREN => 0,
        _ => return Err(Errno::EINVAL),
    };
    let mut words = [0; USAGE];
    [words[0], words[1]] = timeval(used);
    write_quads(call.address::<1>(), words).map(|()| 0)
}

/// Memory is what the allocator of frames has; load is not measured.
pub(super) fn sysinfo(call: &mut Syscall<'_>) -> Answer {
    let frames = kernel().frames.stats();
    let (total, free, threads) = (frames.total as u64 * PAGE, frames.free as u64 * PAGE, sched::thread_count() as u64);
    let uptime = uptime_nanoseconds().div_ceil(NANOSECONDS);
    // The number of processes has 16 bits, and a unit of memory is a byte.
    let words = [uptime, 0, 0, 0, total, free, 0, 0, 0, 0, threads & 0xffff, 0, 0, 1];
    write_quads(call.address::<0>(), words).map(|()| 0)
}

/// There are no more groups than the first.
pub(super) fn getgroups(call: &mut Syscall<'_>) -> Answer {
    if (call.argument::<0>() as i32) < 0 { Err(Errno::EINVAL) } else { Ok(0) }
}

/// Advice for files in memory has nothing to do.
pub(super) fn fadvise64(call: &mut Syscall<'_>) -> Answer {
    /// `POSIX_FADV_NOREUSE`.
    const LAST: u32 = 5;
    let file = io::file(call, call.argument::<0>())?;
    if matches!(file.kind(), Kind::Pipe(_)) {
        return Err(Errno::ESPIPE);
    }
    if (call.argument::<2>() as i64) < 0 || call.argument::<3>() as u32 > LAST { Err(Errno::EINVAL) } else { Ok(0) }
}

/// The thread that a call of the scheduler's names.
fn named(call: &Syscall<'_>) -> Result<(), Errno> {
    if (call.argument::<0>() as i32) < 0 { Err(Errno::EINVAL) } else { with_thread(call, |_| ()) }
}

/// All threads have one way to be scheduled.
pub(super) fn sched_getscheduler(call: &mut Syscall<'_>) -> Answer {
    named(call).map(|()| SCHED_OTHER.into())
}

pub(super) fn sched_getparam(call: &mut Syscall<'_>) -> Answer {
    if call.argument::<1>() == 0 {
        return Err(Errno::EINVAL);
    }
    named(call)?;
    uaccess::clear_user(call.address::<1>(), 4)?;
    Ok(0)
}

pub(super) fn sched_rr_get_interval(call: &mut Syscall<'_>) -> Answer {
    named(call)?;
    write_timespec(call.address::<1>(), sched::SLICE.as_nanos() as u64).map(|()| 0)
}

pub(super) fn sched_get_priority_max(call: &mut Syscall<'_>) -> Answer {
    highest_priority(call.argument::<0>() as u32)
}

pub(super) fn sched_get_priority_min(call: &mut Syscall<'_>) -> Answer {
    highest_priority(call.argument::<0>() as u32).map(|highest| highest.min(1))
}

/// By a policy's number, which need not be there.
const fn highest_priority(policy: u32) -> Answer {
    match policy {
        SCHED_FIFO | SCHED_RR => Ok(99),
        SCHED_OTHER | SCHED_BATCH | 5..=SCHED_EXT => Ok(0),
        _ => Err(Errno::EINVAL),
    }
}
