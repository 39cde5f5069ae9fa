//! Processes: making them, ending them, waiting for them.

#![allow(unsafe_code, reason = "system calls, and memory that they map")]

use core::ffi::CStr;

use granule_abi::Errno;
use granule_abi::limits::RLimit;
use granule_abi::number::{
    CLONE, EXECVE, EXIT, EXIT_GROUP, GETCPU, GETPID, GETPPID, GETTID, KILL, PRLIMIT64, SCHED_YIELD, TGKILL, WAIT4,
};
use granule_abi::process::{exited, killed};
use granule_abi::signal::{SIGCHLD, SIGKILL};

use crate::memory::{PAGE, RW, map};
use crate::sys;

/// The end of a program, or of a copy of one, which exits with a status.
pub trait Status {
    /// The exit status.
    fn status(self) -> u8;
}

/// It has come to its end.
impl Status for () {
    fn status(self) -> u8 {
        0
    }
}

impl Status for u8 {
    fn status(self) -> u8 {
        self
    }
}

/// Ends the process, with all its threads.
pub fn exit_group(status: u8) -> ! {
    loop {
        // SAFETY: nothing of the program runs after it.
        unsafe { sys::raw(EXIT_GROUP, [u64::from(status), 0, 0, 0, 0, 0]) };
    }
}

/// Ends this thread.
pub fn exit(status: u8) -> ! {
    loop {
        // SAFETY: nothing of the thread runs after it.
        unsafe { sys::raw(EXIT, [u64::from(status), 0, 0, 0, 0, 0]) };
    }
}

/// The process's number.
pub fn id() -> u32 {
    // SAFETY: it changes nothing.
    unsafe { sys::raw(GETPID, [0; 6]) as u32 }
}

/// The parent's number.
pub fn parent_id() -> u32 {
    // SAFETY: it changes nothing.
    unsafe { sys::raw(GETPPID, [0; 6]) as u32 }
}

/// The thread's number.
pub fn thread_id() -> u32 {
    // SAFETY: it changes nothing.
    unsafe { sys::raw(GETTID, [0; 6]) as u32 }
}

/// The CPU that the thread is on, or was on just now.
///
/// # Panics
/// The kernel refuses to tell.
pub fn cpu() -> u32 {
    let mut cpu = u32::MAX;
    // SAFETY: it writes `cpu`.
    unsafe { sys::call(GETCPU, [&raw mut cpu as u64, 0, 0, 0, 0, 0]) }.expect("the CPU");
    cpu
}

/// Lets others run.
pub fn sched_yield() {
    // SAFETY: it changes nothing.
    unsafe { sys::raw(SCHED_YIELD, [0; 6]) };
}

/// Makes a copy of the process: 0 in the child, the child's number in the parent.
///
/// # Errors
/// The kernel's.
pub fn fork() -> Result<u32, Errno> {
    // SAFETY: the child has memory of its own; it has this thread alone, on a copy of this stack.
    unsafe { sys::call(CLONE, [SIGCHLD.into(), 0, 0, 0, 0, 0]) }.map(|child| child as u32)
}

/// A clone with `flags` that runs `child` on the stack that ends at `stack`; its number.
///
/// # Errors
/// Those of `clone`.
///
/// # Safety
/// The stack is memory of this program's own, and no other thread's.
#[cfg(target_arch = "aarch64")]
pub unsafe fn clone_onto(flags: u64, stack: u64, child: extern "C" fn() -> !) -> Result<u32, Errno> {
    let number: u64;
    // SAFETY: the child calls `child` at once, on its own stack, and never returns.
    unsafe {
        core::arch::asm!(
            "svc #0", "cbnz x0, 2f", "mov x29, #0", "mov x30, #0", "br {child}", "2:",
            child = in(reg) child, in("x8") CLONE,
            inlateout("x0") flags => number, in("x1") stack, in("x2") 0, in("x3") 0, in("x4") 0,
        );
    }
    sys::result(number).map(|number| number as u32)
}

/// On the host a program is only compiled.
///
/// # Errors
/// None.
///
/// # Safety
/// As on arm64.
#[cfg(not(target_arch = "aarch64"))]
pub unsafe fn clone_onto(flags: u64, stack: u64, child: extern "C" fn() -> !) -> Result<u32, Errno> {
    unreachable!("{flags:#x} {stack:#x} {child:?}: these programs run on arm64 alone")
}

/// As [`try_spawn`], by a clone with these flags, their signal included, and with these words for the numbers of the
/// child: the parent's word and the child's.
///
/// # Errors
/// The kernel's.
pub fn clone_with<S: Status>(flags: u64, words: [u64; 2], child: impl FnOnce() -> S) -> Result<u32, Errno> {
    // SAFETY: the child has memory of its own; it has this thread alone, on a copy of this stack.
    match unsafe { sys::call(CLONE, [flags, 0, words[0], 0, words[1], 0]) }? {
        0 => exit_group(child().status()),
        number => Ok(number as u32),
    }
}

/// A clone with the same memory, which runs `child` on a stack of its own; its number.
///
/// # Errors
/// The kernel's.
///
/// # Panics
/// There is no memory for the stack.
pub fn share(flags: u64, child: extern "C" fn() -> !) -> Result<u32, Errno> {
    const STACK: u64 = 16 * PAGE;
    let stack = map(STACK, RW).expect("a stack") + STACK;
    // SAFETY: the stack was just mapped, for the child alone.
    unsafe { clone_onto(flags, stack, child) }
}

/// Runs `child` in a copy of the process, which exits with what it returns; returns the copy's number.
///
/// # Panics
/// There can be no process.
#[track_caller]
pub fn spawn<S: Status>(child: impl FnOnce() -> S) -> u32 {
    try_spawn(child).expect("a copy of the process")
}

/// As [`spawn`].
///
/// # Errors
/// The kernel's.
pub fn try_spawn<S: Status>(child: impl FnOnce() -> S) -> Result<u32, Errno> {
    match fork()? {
        0 => exit_group(child().status()),
        number => Ok(number),
    }
}

/// Runs `child` in a copy of the process, which exits with what it returns; returns the copy's status.
///
/// # Panics
/// There can be no process.
#[track_caller]
pub fn run<S: Status>(child: impl FnOnce() -> S) -> u32 {
    wait(spawn(child))
}

/// Runs `child` in a copy of the process, which returns from it.
///
/// # Panics
/// It does not, or there can be no process.
#[track_caller]
pub fn in_copy(child: impl FnOnce()) {
    assert_eq!(run(child), exited(0), "the status of a copy of the process");
}

/// Sets a limit of this process, one of the `RLIMIT_` numbers; returns the one before.
///
/// # Errors
/// The kernel's.
pub fn limit(resource: usize, soft: u64, hard: u64) -> Result<RLimit, Errno> {
    let (new, mut old) = (RLimit { soft, hard }, RLimit { soft: 0, hard: 0 });
    // SAFETY: it reads `new` and writes `old`.
    unsafe { sys::call(PRLIMIT64, [0, resource as u64, &raw const new as u64, &raw mut old as u64, 0, 0]) }.map(|_| old)
}

/// Replaces the program by another. `arguments` and `environment` end with a null pointer each.
///
/// # Errors
/// It failed, and this program continues.
pub fn execve(path: &CStr, arguments: &[*const u8], environment: &[*const u8]) -> Errno {
    let arguments = [path.as_ptr() as u64, arguments.as_ptr() as u64, environment.as_ptr() as u64, 0, 0, 0];
    // SAFETY: where it succeeds nothing of this program is left.
    unsafe { sys::call(EXECVE, arguments) }.expect_err("execve does not return")
}

/// Replaces the program by another with these arguments, at most seven, and no environment.
///
/// # Errors
/// It failed, and this program continues.
pub fn execute(path: &CStr, arguments: &[&CStr]) -> Errno {
    let mut pointers = [core::ptr::null(); 8];
    pointers[..7].iter_mut().zip(arguments).for_each(|(place, argument)| *place = argument.as_ptr().cast());
    execve(path, &pointers, &[core::ptr::null()])
}

/// Waits for a child (-1: any): its number, and its status as wait4 stores it. With `WNOHANG`, number 0 means that none
/// has ended yet.
///
/// # Errors
/// The kernel's.
pub fn wait4(child: i32, options: u64) -> Result<(u32, u32), Errno> {
    let mut status = 0_u32;
    let arguments = [child as i64 as u64, &raw mut status as u64, options, 0, 0, 0];
    // SAFETY: it writes `status`.
    unsafe { sys::call(WAIT4, arguments) }.map(|number| (number as u32, status))
}

/// Waits for one child and returns its status.
///
/// # Panics
/// When there is no such child.
pub fn wait(child: u32) -> u32 {
    let (number, status) = wait4(child as i32, 0).expect("a child to wait for");
    assert_eq!(number, child, "wait4 gave another child");
    status
}

/// Kills a child, and waits for it.
///
/// # Panics
/// There is no such child, or it has ended otherwise.
#[track_caller]
pub fn end(child: u32) {
    kill(child as i32, SIGKILL).expect("a signal");
    assert_eq!(wait(child), killed(SIGKILL), "a child that was killed");
}

/// Sends a signal to a process.
///
/// # Errors
/// The kernel's.
pub fn kill(process: i32, signal: u32) -> Result<(), Errno> {
    // SAFETY: the effect of a signal is that of the action that was set.
    unsafe { sys::call(KILL, [process as i64 as u64, u64::from(signal), 0, 0, 0, 0]) }.map(drop)
}

/// Sends a signal to a thread.
///
/// # Errors
/// The kernel's.
pub fn tgkill(process: u32, thread: u32, signal: u32) -> Result<(), Errno> {
    let arguments = [u64::from(process), u64::from(thread), u64::from(signal), 0, 0, 0];
    // SAFETY: the effect of a signal is that of the action that was set.
    unsafe { sys::call(TGKILL, arguments) }.map(drop)
}
