//! Threads: clone, and a futex to wait for the end.

#![allow(unsafe_code, reason = "system calls, and memory that they map")]

use core::sync::atomic::{AtomicU32, Ordering};

use granule_abi::Errno;
use granule_abi::memory::{PROT_READ, PROT_WRITE};
use granule_abi::number::FUTEX;
use granule_abi::process::{
    CLONE_CHILD_CLEARTID, CLONE_FILES, CLONE_FS, CLONE_PARENT_SETTID, CLONE_SETTLS, CLONE_SIGHAND, CLONE_SYSVSEM,
    CLONE_THREAD, CLONE_VM, FUTEX_WAIT, FUTEX_WAKE,
};
use granule_abi::time::Timespec;

use crate::{memory, sys};

/// Bytes of a thread's stack.
const STACK: u64 = 64 << 10;

/// The most numbers that [`all_at_once`] takes.
pub const MOST_AT_ONCE: usize = 32;

const FLAGS: u64 = CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID;

/// The control block at the top of a thread's stack.
#[repr(C, align(16))]
struct Control {
    /// The thread's number while it runs; the kernel zeroes it at the end and wakes the waiters.
    id: AtomicU32,
    main: fn(usize),
    argument: usize,
}

/// A thread of this process that will be joined.
#[derive(Debug)]
#[must_use = "a thread that is not joined keeps its stack"]
pub struct Thread {
    stack: u64,
    control: *const Control,
}

impl Thread {
    /// Starts a thread that calls `main`.
    ///
    /// # Panics
    /// The kernel starts none.
    #[track_caller]
    pub fn spawn(main: impl FnOnce() + Send + 'static) -> Self {
        Self::try_spawn(main).expect("a thread")
    }

    /// As [`Self::spawn`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn try_spawn(main: impl FnOnce() + Send + 'static) -> Result<Self, Errno> {
        // SAFETY: it borrows nothing.
        unsafe { Self::start(main) }
    }

    /// # Errors
    /// The kernel's.
    ///
    /// # Safety
    /// The thread is joined before what `main` borrows ends.
    unsafe fn start<F: FnOnce() + Send>(main: F) -> Result<Self, Errno> {
        fn run<F: FnOnce()>(main: usize) {
            // SAFETY: it was put there for this thread, which takes it once.
            let main = unsafe { (main as *mut F).read() };
            main();
        }
        const { assert!(align_of::<F>() <= align_of::<Control>() && (size_of::<F>() as u64) < STACK / 2) };
        let stack = memory::map(STACK, PROT_READ | PROT_WRITE)?;
        let top = stack + STACK - (size_of::<F>() as u64).next_multiple_of(align_of::<Control>() as u64);
        let control = (top - size_of::<Control>() as u64) as *mut Control;
        // SAFETY: fresh memory with room for both, aligned, since the size of a `Control` is a multiple of 16.
        unsafe {
            (top as *mut F).write(main);
            control.write(Control { id: AtomicU32::new(0), main: run::<F>, argument: top as usize });
        }
        // SAFETY: the stack is the new thread's alone, below `control`, which lives until `join`.
        let result = unsafe { start(control) };
        match sys::result(result) {
            Ok(_) => Ok(Self { stack, control }),
            Err(error) => {
                // SAFETY: no thread runs on it.
                unsafe { memory::munmap(stack, STACK)? };
                Err(error)
            }
        }
    }

    /// The thread's number; 0 once it has ended.
    pub fn id(&self) -> u32 {
        self.word().load(Ordering::Acquire)
    }

    /// Waits for the thread's end.
    pub fn join(self) {
        loop {
            match self.id() {
                0 => break,
                // A thread that ends concurrently changes the word first, so that this does not wait.
                id => drop(futex_wait(self.word(), id, None)),
            }
        }
        // SAFETY: the thread has exited; the kernel writes nothing here after the word.
        unsafe { memory::munmap(self.stack, STACK) }.expect("the stack to unmap");
    }

    fn word(&self) -> &AtomicU32 {
        // SAFETY: it is there until `join`.
        unsafe { &(*self.control).id }
    }
}

/// Calls `main` with each number below `count`, at most [`MOST_AT_ONCE`]: with 0 here, with the others on threads of their
/// own. Returns when all have.
///
/// # Panics
/// There are more, or the kernel starts no thread.
#[track_caller]
pub fn all_at_once(count: usize, main: impl Fn(usize) + Sync) {
    assert!(count <= MOST_AT_ONCE, "{count} threads");
    let main = &main;
    let mut others = [const { None }; MOST_AT_ONCE];
    for (number, other) in others.iter_mut().enumerate().take(count).skip(1) {
        // SAFETY: joined below.
        *other = Some(unsafe { Thread::start(move || main(number)) }.expect("a thread"));
    }
    main(0);
    others.into_iter().flatten().for_each(Thread::join);
}

/// Runs `other` on another thread and `here` on this one; returns what both return, when both have.
///
/// # Panics
/// The kernel starts no thread.
#[track_caller]
pub fn beside<T: Send, R>(other: impl FnOnce() -> T + Send, here: impl FnOnce() -> R) -> (T, R) {
    let mut result = None;
    // SAFETY: joined below.
    let thread = unsafe { Thread::start(|| result = Some(other())) }.expect("a thread");
    let answer = here();
    thread.join();
    (result.expect("the thread has ended"), answer)
}

/// Sleeps while the word has this value, until it is woken.
///
/// # Errors
/// The kernel's: EAGAIN for another value, EINTR, ETIMEDOUT.
pub fn futex_wait(word: &AtomicU32, value: u32, limit: Option<u64>) -> Result<(), Errno> {
    let limit = limit.map(Timespec::from_nanoseconds);
    let limit = limit.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
    let arguments = [word.as_ptr() as u64, FUTEX_WAIT, u64::from(value), limit as u64, 0, 0];
    // SAFETY: it reads the word and the limit.
    unsafe { sys::call(FUTEX, arguments) }.map(drop)
}

/// Wakes as many that sleep on the word; returns how many there were.
///
/// # Errors
/// The kernel's.
pub fn futex_wake(word: &AtomicU32, count: u32) -> Result<u32, Errno> {
    let arguments = [word.as_ptr() as u64, FUTEX_WAKE, u64::from(count), 0, 0, 0];
    // SAFETY: it changes nothing of this thread.
    unsafe { sys::call(FUTEX, arguments) }.map(|woken| woken as u32)
}

// The child comes back with x0 = 0 on its own stack: its control block is right at SP.
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".text",
    ".global granule_user_clone",
    ".type granule_user_clone, %function",
    "granule_user_clone:",
    "mov x8, {clone}",
    "svc #0",
    "cbz x0, 1f",
    "ret",
    "1:",
    "mov x29, #0",
    "mov x30, #0",
    "ldr x1, [sp, {main}]",
    "ldr x0, [sp, {argument}]",
    "blr x1",
    "mov x0, #0",
    "mov x8, {exit}",
    "svc #0",
    "udf #0",
    ".size granule_user_clone, . - granule_user_clone",
    clone = const granule_abi::number::CLONE,
    exit = const granule_abi::number::EXIT,
    main = const core::mem::offset_of!(Control, main),
    argument = const core::mem::offset_of!(Control, argument),
);

/// Makes the thread; returns what clone returns to its caller.
///
/// # Safety
/// `control` is on top of a stack that the new thread alone uses.
#[cfg(target_arch = "aarch64")]
unsafe fn start(control: *mut Control) -> u64 {
    unsafe extern "C" {
        fn granule_user_clone(flags: u64, stack: u64, parent_id: u64, tls: u64, child_id: u64) -> u64;
    }
    let word = control as u64;
    // SAFETY: the caller's promise. The thread pointer is the control block too: nothing else uses it.
    unsafe { granule_user_clone(FLAGS, control as u64, word, word, word) }
}

#[cfg(not(target_arch = "aarch64"))]
unsafe fn start(control: *mut Control) -> u64 {
    unreachable!("{control:?}, {FLAGS:#x}: these programs run on arm64 alone")
}
