//! Waiting for what other threads and processes do, however late they are on a busy machine.
//!
//! Nothing here has a deadline: where the event never comes, the limit of the test ends the program.

use core::sync::atomic::{AtomicBool, Ordering};

use granule_abi::signal::{SIG_BLOCK, SIG_SETMASK};

use crate::signal::{is_pending, mask, set_of};
use crate::thread::beside;
use crate::{process, time};

/// Lets others run until this is reached.
pub fn until(mut reached: impl FnMut() -> bool) {
    while !reached() {
        process::sched_yield();
    }
}

/// As [`until`], asleep for 1 ms at a time: while another process takes its step, this one's space is active on no CPU.
///
/// # Panics
/// A sleep fails.
#[track_caller]
pub fn asleep_until(mut reached: impl FnMut() -> bool) {
    while !reached() {
        time::sleep(1_000_000).expect("a sleep");
    }
}

/// Has a child end by `end`, and waits until it is a zombie that `wait4` finds. `signal` is that of the child's end. It
/// has no handler, its default is no end of the process, and no other child ends with it before.
///
/// The signal tells, and not the child's memory or files: both kernels take these away before.
///
/// # Panics
/// The kernel refuses to block the signal.
pub fn until_zombie<R>(signal: u32, end: impl FnOnce() -> R) -> R {
    let before = mask(SIG_BLOCK, set_of(signal)).expect("a mask");
    let result = end();
    until(|| is_pending(signal).expect("the signals that are pending"));
    mask(SIG_SETMASK, before).expect("a mask");
    result
}

/// Returns what `call` returns while another thread sends this one a signal each `every` nanoseconds, until the call has
/// returned: the call is interrupted, however late it begins.
///
/// # Panics
/// There can be no thread.
pub fn while_signalled<R>(signal: u32, every: u64, call: impl FnOnce() -> R) -> R {
    let (thread, has_returned) = (process::thread_id(), AtomicBool::new(false));
    let sends = || {
        loop {
            // A signal of the process may have ended it early.
            let _ = time::sleep(every);
            if has_returned.load(Ordering::Acquire) {
                break;
            }
            process::tgkill(process::id(), thread, signal).expect("a signal");
        }
    };
    let (_, answer) = beside(sends, || {
        let answer = call();
        has_returned.store(true, Ordering::Release);
        answer
    });
    answer
}

/// Plays a scene with this time in nanoseconds, twice that and so on, at most ten times, until it shows something;
/// whether it has.
///
/// `scene` returns false where another thread was too late or too early for it to show anything.
pub fn with_longer_times(first: u64, mut scene: impl FnMut(u64) -> bool) -> bool {
    const TIMES: u32 = 10;
    (0..TIMES).any(|doubled| scene(first << doubled))
}
