//! Calls for the identity of the system, its CPUs, and random numbers.

use core::sync::atomic::{Ordering, fence};

use granule_abi::process::{
    MEMBARRIER_CMD_FLAG_CPU, MEMBARRIER_CMD_GET_REGISTRATIONS, MEMBARRIER_CMD_GLOBAL, MEMBARRIER_CMD_GLOBAL_EXPEDITED,
    MEMBARRIER_CMD_PRIVATE_EXPEDITED, MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ,
    MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, MEMBARRIER_CMD_QUERY, UtsName,
};

use super::io::{UserBytes, store};
use super::process::with_thread;
use super::{Answer, MOST_AT_ONCE, Syscall, write_quads};
use crate::linux::errno::Errno;
use crate::linux::file::contents::Contents;
use crate::sched;
use crate::smp::{self, Cpu, CpuSet, this_cpu};
use crate::uaccess;

/// The result of `uname`. The release is that of the Linux whose interface this is: C libraries compare it.
const NAMES: [&str; 6] =
    ["Linux", "granule", "7.2.0-granule", concat!("Granule ", env!("CARGO_PKG_VERSION")), "aarch64", "(none)"];

pub(super) fn uname(call: &mut Syscall<'_>) -> Answer {
    const FIELD: usize = size_of::<UtsName>() / NAMES.len();
    let mut bytes = [0; size_of::<UtsName>()];
    for (field, name) in bytes.chunks_exact_mut(FIELD).zip(NAMES) {
        field[..name.len()].copy_from_slice(name.as_bytes());
    }
    uaccess::copy_to_user(call.address::<0>(), &bytes)?;
    Ok(0)
}

pub(super) fn getcpu(call: &mut Syscall<'_>) -> Answer {
    let (cpu, node) = (call.address::<0>(), call.address::<1>());
    if cpu.0 != 0 {
        uaccess::copy_to_user(cpu, &this_cpu().id.0.to_le_bytes())?;
    }
    if node.0 != 0 {
        uaccess::clear_user(node, 4)?;
    }
    Ok(0)
}

/// Orders the memory accesses of the caller's threads, or of all programs, on whichever CPU they run.
///
/// Each CPU is interrupted: its handler has a barrier, and the return from it synchronises the context
/// (`SYNC_CORE`). So what is registered for decides only what is refused. Restartable sequences begin anew on all CPUs,
/// also where one is named, and in other spaces.
pub(super) fn membarrier(call: &mut Syscall<'_>) -> Answer {
    const EVERYWHERE: u32 = MEMBARRIER_CMD_GLOBAL | MEMBARRIER_CMD_GLOBAL_EXPEDITED;
    const RSEQ: u32 = MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ;
    const PRIVATE: u32 = MEMBARRIER_CMD_PRIVATE_EXPEDITED | MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE | RSEQ;
    const REGISTER: u32 = (MEMBARRIER_CMD_GLOBAL_EXPEDITED | PRIVATE) << 1;
    let (command, flags, space) = (call.argument::<0>() as u32, call.argument::<1>() as u32, call.task.space());
    let is_one = command == 0 || command.is_power_of_two();
    match command {
        _ if flags & !(if command == RSEQ { MEMBARRIER_CMD_FLAG_CPU } else { 0 }) != 0 || !is_one => {
            return Err(Errno::EINVAL);
        }
        MEMBARRIER_CMD_QUERY => {
            return Ok(u64::from(EVERYWHERE | PRIVATE | REGISTER | MEMBARRIER_CMD_GET_REGISTRATIONS));
        }
        MEMBARRIER_CMD_GET_REGISTRATIONS => {
            // Linux reports the private command with the ones for code and sequences, and refuses it still.
            let more = space.barriers() & (MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE | RSEQ) << 1;
            let private = if more != 0 { MEMBARRIER_CMD_PRIVATE_EXPEDITED << 1 } else { 0 };
            return Ok((space.barriers() | private).into());
        }
        _ if command & REGISTER != 0 => space.add_barriers(command),
        _ if command & PRIVATE != 0 && space.barriers() & command << 1 == 0 => return Err(Errno::EPERM),
        _ if command & (EVERYWHERE | PRIVATE) == 0 => return Err(Errno::EINVAL),
        _ if command & EVERYWHERE != 0 || call.task.space_user().is_shared() => {
            fence(Ordering::SeqCst);
            smp::call(smp::online().without(this_cpu().id), order_here, usize::from(command == RSEQ));
            fence(Ordering::SeqCst);
        }
        // No other thread sees its accesses.
        _ => {}
    }
    Ok(0)
}

pub(super) fn sched_getaffinity(call: &mut Syscall<'_>) -> Answer {
    let bytes = call.argument::<1>() as u32;
    // As on Linux, the number of bits wraps.
    if bytes.wrapping_mul(8) < u32::BITS - smp::online().bits().leading_zeros() || !bytes.is_multiple_of(8) {
        return Err(Errno::EINVAL);
    }
    let cpus = with_thread(call, |task| task.thread().online_cpus())?;
    write_quads(call.address::<2>(), [cpus.bits().into()])?;
    Ok(size_of::<u64>() as u64)
}

/// Returns once the thread runs at EL0 on no other CPU.
pub(super) fn sched_setaffinity(call: &mut Syscall<'_>) -> Answer {
    let mut set = [0; size_of::<u64>()];
    let given = set.len().min(call.argument::<1>() as u32 as usize);
    uaccess::copy_from_user(set.get_mut(..given).unwrap_or_default(), call.address::<2>())?;
    let thread = with_thread(call, |task| task.thread().clone())?;
    let cpus = CpuSet::from_bits(u64::from_le_bytes(set) as u32 & smp::online().bits());
    if cpus.is_empty() {
        return Err(Errno::EINVAL);
    }
    thread.set_cpus(cpus);
    let home = thread.home();
    if home != this_cpu().id && !cpus.contains(home) && !thread.is_parked() {
        // Its interrupt has a thread that is at EL0 there look at its CPUs first.
        smp::call(CpuSet::of(home), order_here, 0);
    }
    Ok(0)
}

/// [`membarrier`] on another CPU: whether sequences begin anew, too.
fn order_here(cpu: &Cpu, restarts: usize) {
    fence(Ordering::SeqCst);
    if restarts != 0 {
        sched::report_move(cpu);
    }
}

pub(super) fn getrandom(call: &mut Syscall<'_>) -> Answer {
    /// `GRND_NONBLOCK`, `GRND_RANDOM`, `GRND_INSECURE`. The last two exclude each other.
    const FLAGS: u32 = 0b111;
    const RANDOM_AND_INSECURE: u32 = 0b110;
    let (to, bytes, flags) = (call.address::<0>(), call.argument::<1>(), call.argument::<2>() as u32);
    if flags & !FLAGS != 0 || flags & RANDOM_AND_INSECURE == RANDOM_AND_INSECURE {
        return Err(Errno::EINVAL);
    }
    let bytes = bytes.min(MOST_AT_ONCE);
    store(call, &mut Contents::random(bytes), UserBytes::new(to, bytes)?)
}
