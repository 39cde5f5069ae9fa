//! Signals and their handlers.

#![allow(unsafe_code, reason = "system calls, and memory that they map")]

use granule_abi::Errno;
use granule_abi::number::{RT_SIGACTION, RT_SIGPENDING, RT_SIGPROCMASK, SIGALTSTACK};
use granule_abi::signal::{SA_RESTORER, SA_SIGINFO, SigAction, SigInfo, SigStack, UContext};

use crate::{process, sys};

/// A handler.
pub type Handler = extern "C" fn(signal: u32, info: &SigInfo, context: &mut UContext);

/// Bytes of a signal set.
const SET_SIZE: u64 = size_of::<u64>() as u64;

/// Sets what happens on a signal; returns what happened before.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// A handler may run between any two instructions of the program, and does nothing that these do not bear.
pub unsafe fn handle(signal: u32, handler: Handler, flags: u64, mask: u64) -> Result<SigAction, Errno> {
    let action = SigAction {
        handler: handler as usize as u64,
        flags: flags | SA_SIGINFO | SA_RESTORER,
        restorer: restorer(),
        mask,
    };
    // SAFETY: the caller's promise.
    unsafe { set_action(signal, &action) }
}

/// Sets what happens on a signal, in the kernel's own terms.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// As for [`handle`].
pub unsafe fn set_action(signal: u32, action: &SigAction) -> Result<SigAction, Errno> {
    let mut old = SigAction::default();
    let arguments = [u64::from(signal), action as *const _ as u64, &raw mut old as u64, SET_SIZE, 0, 0];
    // SAFETY: it reads `action` and writes `old`; the rest is the caller's promise.
    unsafe { sys::call(RT_SIGACTION, arguments) }.map(|_| old)
}

/// Has a signal interrupt calls and do no more: its handler does nothing. `flags` are of `SA_`.
///
/// # Panics
/// The kernel refuses it.
#[track_caller]
pub fn interrupt_by(signal: u32, flags: u64) {
    extern "C" fn nothing(_: u32, _: &SigInfo, _: &mut UContext) {}
    // SAFETY: the handler does nothing.
    unsafe { handle(signal, nothing, flags, 0) }.expect("a handler");
}

/// Sets what happens on a signal to `SIG_DFL` or `SIG_IGN`, without a handler; returns what happened before.
///
/// # Panics
/// The kernel refuses it.
#[track_caller]
pub fn set_without_handler(signal: u32, disposition: u64) -> SigAction {
    assert!(disposition <= granule_abi::signal::SIG_IGN, "no address");
    // SAFETY: no handler runs.
    unsafe { set_action(signal, &SigAction { handler: disposition, ..SigAction::default() }) }.expect("an action")
}

/// Sends this thread a signal.
///
/// # Panics
/// There is no such signal.
#[track_caller]
pub fn raise(signal: u32) {
    process::tgkill(process::id(), process::thread_id(), signal).expect("a signal to oneself");
}

/// Changes which signals are blocked; returns which were. `how` is one of the `SIG_` numbers.
///
/// # Errors
/// The kernel's.
pub fn mask(how: u64, set: u64) -> Result<u64, Errno> {
    let mut old = 0_u64;
    let arguments = [how, &raw const set as u64, &raw mut old as u64, SET_SIZE, 0, 0];
    // SAFETY: it reads `set` and writes `old`.
    unsafe { sys::call(RT_SIGPROCMASK, arguments) }.map(|_| old)
}

/// Whether `signal` has come and is blocked.
///
/// # Errors
/// The kernel's.
pub fn is_pending(signal: u32) -> Result<bool, Errno> {
    let mut pending = 0_u64;
    // SAFETY: it writes `pending`.
    unsafe { sys::call(RT_SIGPENDING, [&raw mut pending as u64, SET_SIZE, 0, 0, 0, 0]) }?;
    Ok(pending & set_of(signal) != 0)
}

/// Sets the stack for handlers with `SA_ONSTACK`; returns the one before.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// The stack is there for as long as it is set, and has no other use.
pub unsafe fn set_stack(stack: &SigStack) -> Result<SigStack, Errno> {
    let mut old = SigStack::NONE;
    // SAFETY: it reads `stack` and writes `old`; the rest is the caller's promise.
    unsafe { sys::call(SIGALTSTACK, [stack as *const _ as u64, &raw mut old as u64, 0, 0, 0, 0]) }.map(|_| old)
}

/// The set that holds one signal.
pub const fn set_of(signal: u32) -> u64 {
    1 << (signal - 1)
}

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".text",
    ".global granule_user_restorer",
    ".type granule_user_restorer, %function",
    "granule_user_restorer:",
    "mov x8, {number}",
    "svc #0",
    ".size granule_user_restorer, . - granule_user_restorer",
    number = const granule_abi::number::RT_SIGRETURN,
);

/// Where handlers return to.
#[cfg(target_arch = "aarch64")]
fn restorer() -> u64 {
    unsafe extern "C" {
        fn granule_user_restorer();
    }
    granule_user_restorer as unsafe extern "C" fn() as usize as u64
}

#[cfg(not(target_arch = "aarch64"))]
fn restorer() -> u64 {
    unreachable!("these programs run on arm64 alone")
}
