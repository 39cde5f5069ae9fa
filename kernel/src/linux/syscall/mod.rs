//! System calls: Linux's for arm64, as far as they exist here.
//!
//! The number is in x8, arguments are in x0 to x5. The result is in x0: a value, or an error's number negated. An
//! unknown call fails with `ENOSYS`, and is logged once for each number. The calls are in one file per subject;
//! [`TABLE`] has all of them.

#![deny(clippy::disallowed_methods)]

mod capability;
mod epoll;
mod futex;
mod io;
mod limits;
mod locks;
mod memory;
mod memory_file;
mod names;
mod nodes;
mod pidfd;
mod poll;
mod process;
mod remote;
mod scan;
mod signal;
mod streams;
mod system;
mod time;
mod timer;
mod transfer;
mod usage;
mod userfault;

use core::sync::atomic::{AtomicU64, Ordering};

use granule_abi::number;
use granule_arch::addr::VirtAddr;
use granule_arch::speculation::{entry_nospec, get_nospec};

use crate::linux::errno::Errno;
use crate::linux::process::oom::{self, Relief};
use crate::linux::process::task::{Restart, RestartKind, Task};
use crate::sched::{Thread, relax};
use crate::trap::TrapFrame;
use crate::uaccess::{self, read_quads};

/// One call in progress.
pub struct Syscall<'a> {
    /// The calling task.
    task: &'a Task,
    thread: &'a Thread,
    /// The caller's registers.
    frame: &'a mut TrapFrame,
}

impl Syscall<'_> {
    /// Waits until memory that this call lacks is there: whether it, or a part of it, is to be tried again.
    fn is_relieved(&self) -> bool {
        oom::relieve(self.task, self.thread, [self.frame.elr, self.frame.x[0]]) == Relief::Retry
    }

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

    /// Whether a signal is pending that ends the process: a long call ends early then.
    #[inline(always)]
    fn is_killed(&self) -> bool {
        self.task.is_killed(self.thread)
    }

    /// At step `index` of a loop over what a program has chosen: lets other threads run now and then.
    ///
    /// # Errors
    /// `EINTR`: a signal is pending that ends the process.
    fn pause_at(&self, index: usize) -> Result<(), Errno> {
        /// Steps between two scheduling points.
        const BATCH: usize = 64;
        if index.is_multiple_of(BATCH) {
            relax();
            if self.is_killed() {
                return Err(Errno::EINTR);
            }
        }
        Ok(())
    }
}

/// The most bytes that one call moves (Linux's MAX_RW_COUNT).
const MOST_AT_ONCE: u64 = 0x7fff_f000;

/// A call's result.
type Answer = Result<u64, Errno>;

/// The entry of a call: reads the arguments from the registers and stores the result there.
type SyscallEntry = extern "C" fn(&mut TrapFrame, &Thread);

/// The entry of a call: a function for each, into which the call is inlined, so that no call goes through another.
macro_rules! entry {
    ($call:path) => {{
        extern "C" fn enter(frame: &mut TrapFrame, thread: &Thread) {
            perform(frame, thread, $call);
        }
        enter
    }};
}

/// All calls, by number.
static TABLE: [SyscallEntry; number::END] = {
    let mut table: [SyscallEntry; number::END] = [entry!(unknown); number::END];
    table[number::EVENTFD2] = entry!(streams::eventfd2);
    table[number::EPOLL_CREATE1] = entry!(epoll::epoll_create1);
    table[number::EPOLL_CTL] = entry!(epoll::epoll_ctl);
    table[number::EPOLL_PWAIT] = entry!(epoll::epoll_pwait);
    table[number::EPOLL_PWAIT2] = entry!(epoll::epoll_pwait2);
    table[number::DUP] = entry!(io::dup);
    table[number::DUP3] = entry!(io::dup3);
    table[number::FCNTL] = entry!(io::fcntl);
    table[number::FLOCK] = entry!(locks::flock);
    table[number::IOCTL] = entry!(io::ioctl);
    table[number::FTRUNCATE] = entry!(memory_file::ftruncate);
    table[number::FALLOCATE] = entry!(memory_file::fallocate);
    table[number::FSYNC] = entry!(memory_file::fsync);
    table[number::FDATASYNC] = entry!(memory_file::fsync);
    table[number::MSYNC] = entry!(memory::msync);
    table[number::OPENAT] = entry!(io::openat);
    table[number::CLOSE] = entry!(io::close);
    table[number::PIPE2] = entry!(streams::pipe2);
    table[number::LSEEK] = entry!(io::lseek);
    table[number::READ] = entry!(io::read);
    table[number::WRITE] = entry!(io::write);
    table[number::READV] = entry!(io::readv);
    table[number::WRITEV] = entry!(io::writev);
    table[number::PREAD64] = entry!(io::pread64);
    table[number::PWRITE64] = entry!(io::pwrite64);
    table[number::PREADV] = entry!(io::preadv);
    table[number::PWRITEV] = entry!(io::pwritev);
    table[number::PREADV2] = entry!(io::preadv2);
    table[number::PWRITEV2] = entry!(io::pwritev2);
    table[number::SENDFILE] = entry!(transfer::sendfile);
    table[number::COPY_FILE_RANGE] = entry!(transfer::copy_file_range);
    table[number::PPOLL] = entry!(poll::ppoll);
    table[number::READLINKAT] = entry!(io::readlinkat);
    table[number::NEWFSTATAT] = entry!(io::newfstatat);
    table[number::FSTAT] = entry!(io::fstat);
    table[number::GETCWD] = entry!(names::getcwd);
    table[number::MKDIRAT] = entry!(names::mkdirat);
    table[number::UNLINKAT] = entry!(names::unlinkat);
    table[number::SYMLINKAT] = entry!(names::symlinkat);
    table[number::LINKAT] = entry!(names::linkat);
    table[number::RENAMEAT] = entry!(names::renameat);
    table[number::RENAMEAT2] = entry!(names::renameat2);
    table[number::STATFS] = entry!(names::statfs);
    table[number::FSTATFS] = entry!(names::fstatfs);
    table[number::TRUNCATE] = entry!(names::truncate);
    table[number::FACCESSAT] = entry!(names::faccessat);
    table[number::FACCESSAT2] = entry!(names::faccessat2);
    table[number::CHDIR] = entry!(names::chdir);
    table[number::FCHDIR] = entry!(names::fchdir);
    table[number::FCHMOD] = entry!(names::fchmod);
    table[number::FCHMODAT] = entry!(names::fchmodat);
    table[number::FCHMODAT2] = entry!(names::fchmodat2);
    table[number::FCHOWNAT] = entry!(names::fchownat);
    table[number::FCHOWN] = entry!(names::fchown);
    table[number::GETDENTS64] = entry!(names::getdents64);
    table[number::UTIMENSAT] = entry!(names::utimensat);
    table[number::UMASK] = entry!(names::set_umask);
    table[number::STATX] = entry!(names::statx);
    table[number::PERSONALITY] = entry!(process::personality);
    table[number::EXIT] = entry!(process::exit);
    table[number::EXIT_GROUP] = entry!(process::exit_group);
    table[number::SET_TID_ADDRESS] = entry!(process::set_tid_address);
    table[number::FUTEX] = entry!(futex::futex);
    table[number::CAPGET] = entry!(capability::capget);
    table[number::CAPSET] = entry!(capability::capset);
    table[number::FUTEX_WAITV] = entry!(futex::futex_waitv);
    table[number::FUTEX_WAKE_CALL] = entry!(futex::futex_wake);
    table[number::FUTEX_WAIT_CALL] = entry!(futex::futex_wait);
    table[number::FUTEX_REQUEUE_CALL] = entry!(futex::futex_requeue);
    table[number::SET_ROBUST_LIST] = entry!(process::set_robust_list);
    table[number::GET_ROBUST_LIST] = entry!(process::get_robust_list);
    table[number::RSEQ] = entry!(process::rseq);
    table[number::CLONE] = entry!(process::clone);
    table[number::EXECVE] = entry!(process::execve);
    table[number::WAIT4] = entry!(process::wait4);
    table[number::WAITID] = entry!(process::waitid);
    table[number::CLONE3] = entry!(process::clone3);
    table[number::PIDFD_OPEN] = entry!(pidfd::pidfd_open);
    table[number::PIDFD_SEND_SIGNAL] = entry!(pidfd::pidfd_send_signal);
    table[number::PROCESS_MRELEASE] = entry!(pidfd::process_mrelease);
    table[number::PROCESS_MADVISE] = entry!(memory::process_madvise);
    table[number::GETRLIMIT] = entry!(limits::getrlimit);
    table[number::SETRLIMIT] = entry!(limits::setrlimit);
    table[number::PRLIMIT64] = entry!(limits::prlimit64);
    table[number::SCHED_SETAFFINITY] = entry!(system::sched_setaffinity);
    table[number::SCHED_GETAFFINITY] = entry!(system::sched_getaffinity);
    table[number::SCHED_YIELD] = entry!(process::sched_yield);
    table[number::GETPID] = entry!(process::getpid);
    table[number::GETPPID] = entry!(process::getppid);
    table[number::GETTID] = entry!(process::gettid);
    table[number::GETUID] = entry!(process::root);
    table[number::GETEUID] = entry!(process::root);
    table[number::GETGID] = entry!(process::root);
    table[number::GETEGID] = entry!(process::root);
    table[number::SETPGID] = entry!(process::setpgid);
    table[number::GETPGID] = entry!(process::getpgid);
    table[number::GETSID] = entry!(process::getsid);
    table[number::SETSID] = entry!(process::setsid);
    table[number::PRCTL] = entry!(process::prctl);
    table[number::SCHED_GETSCHEDULER] = entry!(usage::sched_getscheduler);
    table[number::SCHED_GETPARAM] = entry!(usage::sched_getparam);
    table[number::SCHED_RR_GET_INTERVAL] = entry!(usage::sched_rr_get_interval);
    table[number::SCHED_GET_PRIORITY_MAX] = entry!(usage::sched_get_priority_max);
    table[number::SCHED_GET_PRIORITY_MIN] = entry!(usage::sched_get_priority_min);
    table[number::GETTIMEOFDAY] = entry!(usage::gettimeofday);
    table[number::TIMES] = entry!(usage::times);
    table[number::GETRUSAGE] = entry!(usage::getrusage);
    table[number::SYSINFO] = entry!(usage::sysinfo);
    table[number::GETGROUPS] = entry!(usage::getgroups);
    table[number::FADVISE64] = entry!(usage::fadvise64);
    table[number::NANOSLEEP] = entry!(time::nanosleep);
    table[number::GETITIMER] = entry!(timer::getitimer);
    table[number::SETITIMER] = entry!(timer::setitimer);
    table[number::SIGNALFD4] = entry!(signal::signalfd4);
    table[number::TIMERFD_CREATE] = entry!(timer::timerfd_create);
    table[number::TIMERFD_SETTIME] = entry!(timer::timerfd_settime);
    table[number::TIMERFD_GETTIME] = entry!(timer::timerfd_gettime);
    table[number::TIMER_CREATE] = entry!(timer::timer_create);
    table[number::TIMER_GETTIME] = entry!(timer::timer_gettime);
    table[number::TIMER_GETOVERRUN] = entry!(timer::timer_getoverrun);
    table[number::TIMER_SETTIME] = entry!(timer::timer_settime);
    table[number::TIMER_DELETE] = entry!(timer::timer_delete);
    table[number::CLOCK_GETTIME] = entry!(time::clock_gettime);
    table[number::CLOCK_GETRES] = entry!(time::clock_getres);
    table[number::CLOCK_NANOSLEEP] = entry!(time::clock_nanosleep);
    table[number::RESTART_SYSCALL] = entry!(time::restart_syscall);
    table[number::KILL] = entry!(signal::kill);
    table[number::TKILL] = entry!(signal::tkill);
    table[number::TGKILL] = entry!(signal::tgkill);
    table[number::SIGALTSTACK] = entry!(signal::sigaltstack);
    table[number::RT_SIGSUSPEND] = entry!(signal::rt_sigsuspend);
    table[number::RT_SIGTIMEDWAIT] = entry!(signal::rt_sigtimedwait);
    table[number::RT_SIGQUEUEINFO] = entry!(signal::rt_sigqueueinfo);
    table[number::RT_TGSIGQUEUEINFO] = entry!(signal::rt_tgsigqueueinfo);
    table[number::RT_SIGACTION] = entry!(signal::rt_sigaction);
    table[number::RT_SIGPROCMASK] = entry!(signal::rt_sigprocmask);
    table[number::RT_SIGPENDING] = entry!(signal::rt_sigpending);
    table[number::RT_SIGRETURN] = entry!(signal::rt_sigreturn);
    table[number::UNAME] = entry!(system::uname);
    table[number::GETCPU] = entry!(system::getcpu);
    table[number::GETRANDOM] = entry!(system::getrandom);
    table[number::MEMFD_CREATE] = entry!(memory_file::memfd_create);
    table[number::PROCESS_VM_READV] = entry!(remote::process_vm_readv);
    table[number::PROCESS_VM_WRITEV] = entry!(remote::process_vm_writev);
    table[number::BRK] = entry!(memory::brk);
    table[number::MUNMAP] = entry!(memory::munmap);
    table[number::MMAP] = entry!(memory::mmap);
    table[number::REMAP_FILE_PAGES] = entry!(memory::remap_file_pages);
    table[number::MREMAP] = entry!(memory::mremap);
    table[number::MPROTECT] = entry!(memory::mprotect);
    table[number::USERFAULTFD] = entry!(userfault::userfaultfd);
    table[number::MEMBARRIER] = entry!(system::membarrier);
    table[number::MLOCK] = entry!(memory::mlock);
    table[number::MLOCK2] = entry!(memory::mlock2);
    table[number::MUNLOCK] = entry!(memory::munlock);
    table[number::MLOCKALL] = entry!(memory::mlockall);
    table[number::MUNLOCKALL] = entry!(memory::munlockall);
    table[number::MINCORE] = entry!(memory::mincore);
    table[number::MADVISE] = entry!(memory::madvise);
    table[number::MBIND] = entry!(nodes::mbind);
    table[number::GET_MEMPOLICY] = entry!(nodes::get_mempolicy);
    table[number::SET_MEMPOLICY] = entry!(nodes::set_mempolicy);
    table[number::SET_MEMPOLICY_HOME_NODE] = entry!(nodes::set_mempolicy_home_node);
    table[number::MIGRATE_PAGES] = entry!(nodes::migrate_pages);
    table[number::MOVE_PAGES] = entry!(nodes::move_pages);
    table[number::MSEAL] = entry!(memory::mseal);
    table
};

/// The handler of SVC.
pub(crate) extern "C" fn on_syscall(frame: &mut TrapFrame, thread: &Thread) {
    // As on Linux, only w8 counts. The entry at 0 (`io_setup`), [`unknown`], answers for numbers after the table.
    let entry = entry_nospec(&TABLE, frame.x[8] as u32 as usize);
    entry(frame, thread);
}

#[inline(always)]
#[allow(unsafe_code, reason = "the task that a program's thread belongs to")]
fn perform(frame: &mut TrapFrame, thread: &Thread, call: impl Fn(&mut Syscall<'_>) -> Answer) {
    // SAFETY: the exception is from EL0, so the thread runs a program and has not left its process.
    let task = unsafe { Task::of(thread) };
    let x0 = frame.x[0];
    let answer = call(&mut Syscall { task, thread, frame });
    frame.x[0] = match answer {
        Ok(value) => value,
        Err(errno) => failed(task, thread, frame, x0, errno),
    };
}

#[cold]
fn failed(task: &Task, thread: &Thread, frame: &mut TrapFrame, x0: u64, errno: Errno) -> u64 {
    /// Bytes of an SVC.
    const INSTRUCTION: u64 = 4;
    // A failed call has changed nothing: after a shortage that was relieved, the call is repeated.
    if errno == Errno::ENOMEM && oom::relieve(task, thread, [frame.elr, x0]) == Relief::Retry {
        frame.elr = frame.elr.wrapping_sub(INSTRUCTION);
        return x0;
    }
    // A shortage on the way is not the reason of the failure.
    thread.take_shortage();
    let kind = match errno {
        Errno::ERESTARTSYS => RestartKind::UnlessHandled,
        Errno::ERESTARTNOHAND => RestartKind::WithoutHandler,
        Errno::ERESTARTBLOCK => RestartKind::Continued,
        _ => return errno.returned(),
    };
    // The delivery of the signal that interrupted the call decides.
    task.restart.set(Some(Restart { kind, x0 }));
    errno.returned()
}

fn unknown(call: &mut Syscall<'_>) -> Answer {
    /// A bit for each number that was logged; the last one for all larger numbers.
    static WARNED: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
    let number = call.frame.x[8] as u32;
    let place = (number as usize).min(WARNED.len() * 64 - 1);
    let bit = 1 << (place % 64);
    let is_new = |word: &AtomicU64| word.fetch_or(bit, Ordering::Relaxed) & bit == 0;
    if get_nospec(&WARNED, place / 64).is_some_and(is_new) {
        crate::log::warn!("{:?} made system call {number}, which does not exist here", call.task);
    }
    Err(Errno::ENOSYS)
}

/// A structure at an address of EL0, as its bytes.
fn read_bytes<const N: usize>(from: VirtAddr) -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    uaccess::copy_from_user(&mut bytes, from)?;
    Ok(bytes)
}

/// Stores words at an address of EL0.
fn write_quads<const N: usize>(to: VirtAddr, quads: [u64; N]) -> Result<(), Errno> {
    Ok(uaccess::copy_to_user(to, quads.map(u64::to_le_bytes).as_flattened())?)
}
