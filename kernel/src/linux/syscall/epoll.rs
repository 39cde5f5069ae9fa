//! epoll_create1, epoll_ctl, epoll_pwait and epoll_pwait2.

use granule_abi::file::{
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR, EPOLLET, EPOLLEXCLUSIVE, EPOLLHUP, EPOLLIN,
    EPOLLOUT, EPOLLWAKEUP, EpollEvent, O_RDWR,
};
use granule_arch::addr::{PAGE_SIZE, VirtAddr};

use super::io::{file, reader};
use super::poll::{deadline, with_mask};
use super::time::read_timespec;
use super::{Answer, Syscall, read_quads, streams};
use crate::chip::timer::uptime_nanoseconds;
use crate::linux::errno::Errno;
use crate::linux::file::epoll::{EpollFile, MODES};
use crate::linux::file::open::{Kind, OpenFile};
use crate::linux::file::table::OnExec;
use crate::sched::{PollNode, Woken, poll_until};
use crate::uaccess;

const EVENT: u64 = size_of::<EpollEvent>() as u64;
const DATA: u64 = core::mem::offset_of!(EpollEvent, data) as u64;
/// The most events of a call (Linux's EP_MAX_EVENTS).
const MOST: u64 = i32::MAX as u64 / EVENT;

pub(super) fn epoll_create1(call: &mut Syscall<'_>) -> Answer {
    let flags = call.argument::<0>() as u32;
    if flags & !EPOLL_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let file = OpenFile::new(Kind::Epoll(EpollFile::new()?), O_RDWR)?;
    streams::add(call, file, OnExec::requested(flags))
}

/// In Linux's order.
pub(super) fn epoll_ctl(call: &mut Syscall<'_>) -> Answer {
    /// Beside `EPOLLEXCLUSIVE`.
    const EXCLUSIVE: u32 = EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;
    let (operation, descriptor) = (call.argument::<1>() as u32, call.argument::<2>() as u32);
    let mut event = EpollEvent::default();
    if operation != EPOLL_CTL_DEL {
        let [events, data] = read_quads(call.address::<3>())?;
        event = EpollEvent { events: events as u32, data };
    }
    let own = file(call, call.argument::<0>())?;
    let other = file(call, descriptor.into())?;
    let watchable = other.watchable();
    if watchable == 0 {
        return Err(Errno::EPERM);
    }
    let set = own.epoll().filter(|_| !own.is(&other)).ok_or(Errno::EINVAL)?;
    let is_exclusive = operation != EPOLL_CTL_DEL && event.events & EPOLLEXCLUSIVE != 0;
    let may_be = operation == EPOLL_CTL_ADD && other.epoll().is_none() && event.events & !EXCLUSIVE == 0;
    if is_exclusive && !may_be {
        return Err(Errno::EINVAL);
    }
    event.events = (event.events | EPOLLERR | EPOLLHUP) & (MODES | u32::from(watchable));
    match operation {
        EPOLL_CTL_ADD => set.add(&other, descriptor, event, reader(call))?,
        EPOLL_CTL_MOD => set.modify(&other, descriptor, event, reader(call))?,
        EPOLL_CTL_DEL => set.remove(&other, descriptor)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

pub(super) fn epoll_pwait(call: &mut Syscall<'_>) -> Answer {
    /// Nanoseconds.
    const MILLISECOND: u64 = 1_000_000;
    let limit = u64::try_from(call.argument::<3>() as i32).ok();
    wait_with_mask(call, limit.map(|limit| limit * MILLISECOND))
}

pub(super) fn epoll_pwait2(call: &mut Syscall<'_>) -> Answer {
    let limit = call.address::<3>();
    let limit = if limit.0 == 0 { None } else { Some(read_timespec(limit)?) };
    wait_with_mask(call, limit)
}

/// As on Linux, a limit of 0 takes what there is, and no signal is looked at.
#[inline(never)]
fn wait_with_mask(call: &Syscall<'_>, limit: Option<u64>) -> Answer {
    let end = limit.map(|limit| if limit == 0 { 0 } else { uptime_nanoseconds().saturating_add(limit) });
    with_mask(call, call.address::<4>(), call.argument::<5>(), |call| wait(call, end))?
}

/// Waits until then; returns how many events are stored.
fn wait(call: &Syscall<'_>, end: Option<u64>) -> Answer {
    let file = file(call, call.argument::<0>())?;
    let (to, most) = (call.address::<1>(), i64::from(call.argument::<2>() as i32));
    let most = u64::try_from(most).ok().filter(|most| (1..=MOST).contains(most)).ok_or(Errno::EINVAL)?;
    if !uaccess::is_user_range(to, (most * EVENT) as usize) {
        return Err(Errno::EFAULT);
    }
    let set = file.epoll().ok_or(Errno::EINVAL)?;
    // Its descriptors may be closed, which leaves its items to this call.
    let mut charge = call.task.process().charges.begin();
    charge.add(set.footprint().div_ceil(PAGE_SIZE));
    loop {
        let found = store(call, set, to, most)?;
        if found != 0 || end == Some(0) {
            return Ok(found);
        }
        let state = set.poll(reader(call));
        let mut nodes = [PollNode::new(state.queue.ok_or(Errno::EINVAL)?)];
        match poll_until(&mut nodes, end.map(deadline), &mut || set.poll(reader(call)).events != 0) {
            Woken::TimedOut => return Ok(0),
            Woken::Interrupted if call.task.is_interrupted() => return Err(Errno::EINTR),
            Woken::Interrupted | Woken::ByAnother => {}
        }
        // Another thread may take the event first, each time.
        call.pause_at(0)?;
    }
}

/// Stores up to `most` events; one that cannot be stored stays.
fn store(call: &Syscall<'_>, set: &EpollFile, to: VirtAddr, most: u64) -> Answer {
    let number = set.begin_call();
    let mut done = 0;
    while done < most {
        let Some(found) = set.next(reader(call), number) else { break };
        let place = VirtAddr(to.0.wrapping_add(done * EVENT));
        let stored = uaccess::copy_to_user(place, &found.event.events.to_le_bytes())
            .and_then(|()| uaccess::copy_to_user(VirtAddr(place.0 + DATA), &found.event.data.to_le_bytes()));
        if let Err(error) = stored {
            set.give_back(&found);
            return if done == 0 { Err(error.into()) } else { Ok(done) };
        }
        done += 1;
        call.pause_at(done as usize)?;
    }
    Ok(done)
}
