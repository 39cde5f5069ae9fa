//! ppoll: waits until one of several files is ready.

use core::cell::Cell;

use granule_abi::file::{POLLERR, POLLHUP, POLLNVAL, PollFd};
use granule_abi::limits::RLIMIT_NOFILE;
use granule_arch::addr::VirtAddr;

use super::io::reader;
use super::signal::SET;
use super::time::{after, read_timespec, write_timespec};
use super::{Answer, Syscall, read_bytes, read_quads};
use crate::chip::console::Reader;
use crate::chip::timer::{Deadline, uptime_nanoseconds};
use crate::kernel;
use crate::linux::errno::Errno;
use crate::linux::file::open::FileRef;
use crate::linux::process::charge::Charge;
use crate::linux::process::signal::Set;
use crate::mm::OutOfMemory;
use crate::mm::paged::PagedList;
use crate::sched::{PollNode, Woken, enlarge_shortage, poll_until};
use crate::smp::this_cpu;
use crate::uaccess;

/// Where the result is in a `struct pollfd`.
const FOUND: u64 = core::mem::offset_of!(PollFd, revents) as u64;

/// One of the descriptors.
struct Polled {
    /// The open file; none where the number is negative or names none.
    file: Option<FileRef>,
    /// The events to wait for.
    wanted: u16,
    /// The events that were found.
    found: Cell<u16>,
}

impl Polled {
    fn read(call: &Syscall<'_>, from: VirtAddr) -> Result<Self, Errno> {
        let [a, b, c, d, wanted_low, wanted_high, ..] = read_bytes::<{ size_of::<PollFd>() }>(from)?;
        let descriptor = i32::from_le_bytes([a, b, c, d]);
        let wanted = u16::from_le_bytes([wanted_low, wanted_high]) | POLLERR | POLLHUP;
        let (mut file, mut found) = (None, 0);
        if let Ok(descriptor) = u32::try_from(descriptor) {
            file = call.task.files().get(descriptor).filter(|file| !file.is_path());
            found = if file.is_none() { POLLNVAL } else { 0 };
            if let Some(file) = &file {
                file.prepare_to_poll()?;
            }
        }
        Ok(Self { file, wanted, found: Cell::new(found) })
    }

    /// Looks at the file; returns whether something is found.
    fn look(&self, reader: Reader) -> bool {
        if let Some(file) = &self.file {
            self.found.set(file.poll(reader).events & self.wanted);
        }
        self.found.get() != 0
    }
}

pub(super) fn ppoll(call: &mut Syscall<'_>) -> Answer {
    let (limit, mask, size) = (call.address::<2>(), call.address::<3>(), call.argument::<4>());
    let length = if limit.0 == 0 { None } else { Some(read_timespec(limit)?) };
    let end = length.map(|length| uptime_nanoseconds().saturating_add(length));
    let answer = with_mask(call, mask, size, |call| poll(call, end))?;
    let Some(end) = end.filter(|_| length != Some(0)) else { return answer };
    let stored = write_timespec(limit, end.saturating_sub(uptime_nanoseconds()));
    // Without the time that is left the call is not repeated.
    if stored.is_err() && answer == Err(Errno::ERESTARTNOHAND) { Err(Errno::EINTR) } else { answer }
}

/// The answer of a call that waits with a mask of signals from memory, where there is one.
///
/// # Errors
/// `EINVAL`, `EFAULT`: the mask cannot be read.
pub(super) fn with_mask(
    call: &Syscall<'_>,
    mask: VirtAddr,
    size: u64,
    wait: impl FnOnce(&Syscall<'_>) -> Answer,
) -> Result<Answer, Errno> {
    let before = if mask.0 == 0 { None } else { Some(exchange_mask(call, mask, size)?) };
    let answer = wait(call);
    match before {
        // The signal is delivered with the call's mask.
        Some(before) if matches!(answer, Err(Errno::ERESTARTNOHAND | Errno::EINTR)) => {
            call.task.saved_mask.set(Some(before));
        }
        Some(before) => call.task.set_blocked(before),
        None => {}
    }
    Ok(answer)
}

/// Blocks the signals of a set in memory; returns those that were blocked.
pub(super) fn exchange_mask(call: &Syscall<'_>, mask: VirtAddr, size: u64) -> Result<Set, Errno> {
    if size != SET {
        return Err(Errno::EINVAL);
    }
    let [mask] = read_quads(mask)?;
    let before = call.task.blocked();
    call.task.set_blocked(Set(mask));
    Ok(before)
}

/// Waits until then; returns at how many descriptors something was found. The process is charged for the frames that hold
/// them while it waits.
#[inline(never)]
fn poll(call: &Syscall<'_>, end: Option<u64>) -> Answer {
    let (array, count) = (call.address::<0>(), u64::from(call.argument::<1>() as u32));
    if count > call.task.process().limits.soft(RLIMIT_NOFILE) {
        return Err(Errno::EINVAL);
    }
    let place = |index: usize| VirtAddr(array.0.wrapping_add((index * size_of::<PollFd>()) as u64));
    let mut charge = call.task.process().charges.begin();
    let mut polled = PagedList::new(kernel().frames);
    for index in 0..count as usize {
        call.pause_at(index)?;
        push(&mut polled, Polled::read(call, place(index))?, &mut charge)?;
    }
    let before = charge.frames();
    // A call that fails for want of memory gives these back too.
    let found = wait(call, &polled, end, &mut charge).inspect_err(|_| enlarge_shortage(this_cpu(), before))?;
    for (index, polled) in polled.iter().enumerate() {
        call.pause_at(index)?;
        uaccess::copy_to_user(VirtAddr(place(index).0.wrapping_add(FOUND)), &polled.found.get().to_le_bytes())?;
    }
    Ok(found)
}

/// At how many something is found.
fn look(call: &Syscall<'_>, polled: &PagedList<Polled>) -> Answer {
    let reader = reader(call);
    let mut found = 0;
    for (index, polled) in polled.iter().enumerate() {
        call.pause_at(index)?;
        found += u64::from(polled.look(reader));
    }
    Ok(found)
}

/// Adds a value, and charges the frame that it may take.
fn push<T>(list: &mut PagedList<T>, value: T, charge: &mut Charge<'_>) -> Result<(), OutOfMemory> {
    let takes = usize::from(list.is_full());
    list.push(value)?;
    charge.add(takes);
    Ok(())
}

/// The moment with this uptime in nanoseconds.
pub(super) fn deadline(end: u64) -> Deadline {
    after(end.saturating_sub(uptime_nanoseconds()))
}

fn wait(call: &Syscall<'_>, polled: &PagedList<Polled>, end: Option<u64>, charge: &mut Charge<'_>) -> Answer {
    let mut found = look(call, polled);
    if found != Ok(0) {
        return found;
    }
    // The files stay for as long as the nodes are in their queues, also where another thread closes a descriptor.
    let mut nodes = PagedList::new(kernel().frames);
    for (index, polled) in polled.iter().enumerate() {
        call.pause_at(index)?;
        if let Some(queue) = polled.file.as_ref().and_then(|file| file.poll(reader(call)).queue) {
            push(&mut nodes, PollNode::new(queue), charge)?;
        }
    }
    let woken = poll_until(&mut nodes, end.map(deadline), &mut || {
        found = look(call, polled);
        found != Ok(0)
    });
    match woken {
        Woken::ByAnother => found,
        Woken::TimedOut => Ok(0),
        Woken::Interrupted => Err(Errno::ERESTARTNOHAND),
    }
}
