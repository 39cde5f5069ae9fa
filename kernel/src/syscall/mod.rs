//! System calls: Linux's for arm64, as far as they exist here.
//!
//! The number is in x8, arguments are in x0 to x5, the answer is x0: a value, or an error's number negated. A call that
//! does not exist is `ENOSYS`, and said once for each number. The calls stand in one file per subject; [`TABLE`] is all
//! of them.

#![deny(clippy::disallowed_methods)]

mod io;
mod memory;
mod process;
mod signal;
mod system;
mod time;

use core::sync::atomic::{AtomicU64, Ordering};

use granule_abi::number;
use granule_arch::addr::VirtAddr;

use crate::errno::Errno;
use crate::process::task::Task;
use crate::sched::Thread;
use crate::trap::TrapFrame;
use crate::uaccess;

pub use system::random_bytes;

/// One call in progress.
pub struct Call<'a> {
    /// Who makes it.
    task: &'a Task,
    thread: &'a Thread,
    /// The caller's registers.
    frame: &'a mut TrapFrame,
}

impl Call<'_> {
    /// Argument `N`.
    #[inline(always)]
    const fn argument<const N: usize>(&self) -> u64 {
        self.frame.x[N]
    }

    /// Argument `N`, an address.
    #[inline(always)]
    const fn address<const N: usize>(&self) -> VirtAddr {
        VirtAddr(self.frame.x[N])
    }
}

/// A call's answer.
type Answer = Result<u64, Errno>;

type Handler = fn(&mut Call<'_>) -> Answer;

/// All calls, by number.
static TABLE: [Handler; number::END] = {
    let mut table: [Handler; number::END] = [unknown; number::END];
    table[number::IOCTL] = io::ioctl;
    table[number::CLOSE] = io::close;
    table[number::READ] = io::read;
    table[number::WRITE] = io::write;
    table[number::READV] = io::readv;
    table[number::WRITEV] = io::writev;
    table[number::EXIT] = process::exit;
    table[number::EXIT_GROUP] = process::exit_group;
    table[number::SET_TID_ADDRESS] = process::set_tid_address;
    table[number::FUTEX] = process::futex;
    table[number::CLONE] = process::clone;
    table[number::EXECVE] = process::execve;
    table[number::WAIT4] = process::wait4;
    table[number::SCHED_YIELD] = process::sched_yield;
    table[number::GETPID] = process::getpid;
    table[number::GETPPID] = process::getppid;
    table[number::GETTID] = process::gettid;
    table[number::GETUID] = process::root;
    table[number::GETEUID] = process::root;
    table[number::GETGID] = process::root;
    table[number::GETEGID] = process::root;
    table[number::PRCTL] = process::prctl;
    table[number::NANOSLEEP] = time::nanosleep;
    table[number::CLOCK_GETTIME] = time::clock_gettime;
    table[number::CLOCK_GETRES] = time::clock_getres;
    table[number::CLOCK_NANOSLEEP] = time::clock_nanosleep;
    table[number::KILL] = signal::kill;
    table[number::TKILL] = signal::tkill;
    table[number::TGKILL] = signal::tgkill;
    table[number::SIGALTSTACK] = signal::sigaltstack;
    table[number::RT_SIGACTION] = signal::rt_sigaction;
    table[number::RT_SIGPROCMASK] = signal::rt_sigprocmask;
    table[number::RT_SIGPENDING] = signal::rt_sigpending;
    table[number::RT_SIGRETURN] = signal::rt_sigreturn;
    table[number::UNAME] = system::uname;
    table[number::GETCPU] = system::getcpu;
    table[number::GETRANDOM] = system::getrandom;
    table[number::BRK] = memory::brk;
    table[number::MUNMAP] = memory::munmap;
    table[number::MMAP] = memory::mmap;
    table[number::MPROTECT] = memory::mprotect;
    table[number::MINCORE] = memory::mincore;
    table[number::MADVISE] = memory::madvise;
    table
};

/// What SVC comes to.
pub(crate) extern "C" fn on_syscall(frame: &mut TrapFrame, thread: &Thread) {
    // SAFETY: it came from EL0, so the thread runs a program and has not left its process.
    let task = unsafe { Task::of(thread) };
    // Linux looks at w8 alone.
    let handler = TABLE.get(frame.x[8] as u32 as usize).copied().unwrap_or(unknown);
    let x0 = frame.x[0];
    let mut call = Call { task, thread, frame };
    let answer = handler(&mut call);
    call.frame.x[0] = match answer {
        Ok(value) => value,
        Err(errno) => failed(task, x0, errno),
    };
}

#[cold]
fn failed(task: &Task, x0: u64, errno: Errno) -> u64 {
    if errno == Errno::ERESTARTSYS {
        // The signal that interrupted it is still to be seen to, and that decides.
        task.restart.set(Some(x0));
    }
    errno.returned()
}

fn unknown(call: &mut Call<'_>) -> Answer {
    /// A bit for each number that has been told of; the last one for all that do not fit.
    static TOLD: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
    let number = call.frame.x[8] as u32;
    let place = (number as usize).min(TOLD.len() * 64 - 1);
    let bit = 1 << (place % 64);
    if TOLD[place / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0 {
        log::warn!("{:?} made system call {number}, which does not exist here", call.task);
    }
    Err(Errno::ENOSYS)
}

/// A structure at an address of EL0, as its bytes.
fn read_bytes<const N: usize>(from: VirtAddr) -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    uaccess::copy_from_user(&mut bytes, from)?;
    Ok(bytes)
}

/// Words at an address of EL0.
fn read_quads<const N: usize>(from: VirtAddr) -> Result<[u64; N], Errno> {
    let mut quads = [0; N];
    for (index, quad) in quads.iter_mut().enumerate() {
        *quad = u64::from_le_bytes(read_bytes(VirtAddr(from.0.wrapping_add(8 * index as u64)))?);
    }
    Ok(quads)
}

/// Stores words at an address of EL0.
fn write_quads<const N: usize>(to: VirtAddr, quads: [u64; N]) -> Result<(), Errno> {
    for (index, quad) in quads.iter().enumerate() {
        uaccess::copy_to_user(VirtAddr(to.0.wrapping_add(8 * index as u64)), &quad.to_le_bytes())?;
    }
    Ok(())
}
