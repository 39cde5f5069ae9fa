//! Calls for time. There is one clock: it counts from the boot, whatever it is called.

use core::time::Duration;

use granule_abi::time::{
    CLOCK_BOOTTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME,
    CLOCK_REALTIME_COARSE, TIMER_ABSTIME, Timespec,
};
use granule_arch::addr::VirtAddr;

use super::{Answer, Call, read_quads, write_quads};
use crate::drivers::timer::{self, Deadline};
use crate::errno::Errno;
use crate::sched::{self, Woken};

/// Nanoseconds since the boot.
pub(super) fn now() -> u64 {
    timer::uptime().as_nanos() as u64
}

/// The nanoseconds of a time at an address.
pub(super) fn read_timespec(from: VirtAddr) -> Result<u64, Errno> {
    let [seconds, nanoseconds] = read_quads(from)?;
    let time = Timespec { seconds: seconds as i64, nanoseconds: nanoseconds as i64 };
    time.to_nanoseconds().ok_or(Errno::EINVAL)
}

fn write_timespec(to: VirtAddr, nanoseconds: u64) -> Result<(), Errno> {
    let time = Timespec::from_nanoseconds(nanoseconds);
    write_quads(to, [time.seconds as u64, time.nanoseconds as u64])
}

fn check_clock(clock: u64) -> Result<(), Errno> {
    match u64::from(clock as u32) {
        CLOCK_REALTIME
        | CLOCK_MONOTONIC
        | CLOCK_MONOTONIC_RAW
        | CLOCK_REALTIME_COARSE
        | CLOCK_MONOTONIC_COARSE
        | CLOCK_BOOTTIME => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

pub(super) fn clock_gettime(call: &mut Call<'_>) -> Answer {
    check_clock(call.argument::<0>())?;
    write_timespec(call.address::<1>(), now())?;
    Ok(0)
}

pub(super) fn clock_getres(call: &mut Call<'_>) -> Answer {
    check_clock(call.argument::<0>())?;
    if call.argument::<1>() != 0 {
        write_timespec(call.address::<1>(), 1)?;
    }
    Ok(0)
}

pub(super) fn nanosleep(call: &mut Call<'_>) -> Answer {
    let nanoseconds = read_timespec(call.address::<0>())?;
    sleep(nanoseconds, Some(call.address::<1>()))
}

pub(super) fn clock_nanosleep(call: &mut Call<'_>) -> Answer {
    check_clock(call.argument::<0>())?;
    let nanoseconds = read_timespec(call.address::<2>())?;
    if call.argument::<1>() & TIMER_ABSTIME != 0 {
        // A moment stays what it is: there is no rest to tell, and the call may be made again.
        return match sleep(nanoseconds.saturating_sub(now()), None) {
            Err(Errno::EINTR) => Err(Errno::ERESTARTSYS),
            answer => answer,
        };
    }
    sleep(nanoseconds, Some(call.address::<3>()))
}

/// Sleeps; where a signal comes first, the rest goes to `rest`, if it is not address 0.
fn sleep(nanoseconds: u64, rest: Option<VirtAddr>) -> Answer {
    let end = now().saturating_add(nanoseconds);
    if sched::sleep_until(Deadline::after(Duration::from_nanos(nanoseconds))) != Woken::Interrupted {
        return Ok(0);
    }
    if let Some(rest) = rest.filter(|rest| rest.0 != 0) {
        write_timespec(rest, end.saturating_sub(now()))?;
    }
    Err(Errno::EINTR)
}
