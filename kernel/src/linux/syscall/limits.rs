//! Calls for what a process may have at most.

use granule_abi::limits::RLimit;
use granule_arch::addr::VirtAddr;

use super::{Answer, Syscall, read_quads, write_quads};
use crate::linux::errno::Errno;
use crate::linux::process::tree::PROCESSES;

/// The limits of the process, or of the thread's, with this number; 0 for the caller's. In Linux's order of refusals.
pub(super) fn prlimit64(call: &mut Syscall<'_>) -> Answer {
    let (process, resource) = (call.argument::<0>() as i32, call.argument::<1>() as u32);
    let (new, old) = (call.address::<2>(), call.address::<3>());
    let new = if new.0 == 0 { None } else { Some(read_limit(new)?) };
    let limit = match process {
        0 => call.task.process().limits.exchange(resource, new)?,
        number => exchange(u32::try_from(number).map_err(|_| Errno::ESRCH)?, resource, new)?,
    };
    if old.0 != 0 {
        write_limit(old, limit)?;
    }
    Ok(0)
}

pub(super) fn getrlimit(call: &mut Syscall<'_>) -> Answer {
    let limit = call.task.process().limits.exchange(call.argument::<0>() as u32, None)?;
    write_limit(call.address::<1>(), limit)
}

pub(super) fn setrlimit(call: &mut Syscall<'_>) -> Answer {
    let new = read_limit(call.address::<1>())?;
    call.task.process().limits.exchange(call.argument::<0>() as u32, Some(new)).map(|_| 0)
}

/// Exchanges a limit of the process that has this number, or a thread with it.
fn exchange(number: u32, resource: u32, new: Option<RLimit>) -> Result<RLimit, Errno> {
    let tree = PROCESSES.lock();
    tree.find_of_thread(number).ok_or(Errno::ESRCH)?.limits.exchange(resource, new)
}

fn read_limit(from: VirtAddr) -> Result<RLimit, Errno> {
    let [soft, hard] = read_quads(from)?;
    Ok(RLimit { soft, hard })
}

fn write_limit(to: VirtAddr, limit: RLimit) -> Answer {
    write_quads(to, [limit.soft, limit.hard]).map(|()| 0)
}
