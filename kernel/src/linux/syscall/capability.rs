//! Calls for capabilities, which are kept and never asked for.

use granule_arch::addr::VirtAddr;

use super::{Answer, Syscall, read_bytes};
use crate::linux::errno::Errno;
use crate::linux::process::capabilities::Capabilities;
use crate::linux::process::tree::PROCESSES;
use crate::uaccess;

/// The versions of the header, of which the last one is preferred.
const VERSIONS: [u32; 3] = [0x1998_0330, 0x2007_1026, 0x2008_0522];
/// Bytes of the lower words of the three sets, and as many of the upper ones.
const PART: usize = 12;

/// The bytes of sets that a version has; `EINVAL`, and the preferred one is stored in its place, where there is none.
fn size_of_version(header: VirtAddr) -> Result<usize, Errno> {
    let version = u32::from_le_bytes(read_bytes(header)?);
    match VERSIONS.iter().position(|&known| known == version) {
        Some(0) => Ok(PART),
        Some(_) => Ok(2 * PART),
        None => {
            uaccess::copy_to_user(header, &VERSIONS[2].to_le_bytes())?;
            Err(Errno::EINVAL)
        }
    }
}

/// The thread that a header names; 0 is the caller's.
fn named(header: VirtAddr) -> Result<i32, Errno> {
    read_bytes(VirtAddr(header.0.wrapping_add(4))).map(i32::from_le_bytes)
}

pub(super) fn capget(call: &mut Syscall<'_>) -> Answer {
    let (header, data) = (call.address::<0>(), call.address::<1>());
    let size = match size_of_version(header) {
        Err(Errno::EINVAL) if data.0 == 0 => return Ok(0),
        size => size?,
    };
    if data.0 == 0 {
        return Ok(0);
    }
    let sets = match u32::try_from(named(header)?).map_err(|_| Errno::EINVAL)? {
        0 => call.task.capabilities.get(),
        id => {
            let tree = PROCESSES.lock();
            match tree.find_task(id) {
                Some(task) => task.capabilities.get(),
                // One that has ended.
                None => tree.find(id).map(|_| Capabilities::of_first().get()).ok_or(Errno::ESRCH)?,
            }
        }
    };
    let parts = [sets.map(|set| (set as u32).to_le_bytes()), sets.map(|set| ((set >> 32) as u32).to_le_bytes())];
    uaccess::copy_to_user(data, parts.as_flattened().as_flattened().get(..size).unwrap_or_default())?;
    Ok(0)
}

/// Of the caller's own alone.
pub(super) fn capset(call: &mut Syscall<'_>) -> Answer {
    let (header, data) = (call.address::<0>(), call.address::<1>());
    let size = size_of_version(header)?;
    let id = named(header)?;
    if id != 0 && id as u32 != call.task.id() {
        return Err(Errno::EPERM);
    }
    // A version without upper words has none of their capabilities.
    let mut parts = [[[0; 4]; 3]; 2];
    let bytes = parts.as_flattened_mut().as_flattened_mut();
    uaccess::copy_from_user(bytes.get_mut(..size).unwrap_or_default(), data)?;
    let [low, high] = parts.map(|sets| sets.map(|word| u64::from(u32::from_le_bytes(word))));
    call.task.capabilities.set([0, 1, 2].map(|set| low[set] | high[set] << 32))?;
    Ok(0)
}
