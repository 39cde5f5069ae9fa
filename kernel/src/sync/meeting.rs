//! In host tests: two threads that meet at a chosen moment of the first.
//!
//! A moment is where another CPU may come in between: in front of each spinning lock that the thread takes and after
//! each that it releases, at each store, barrier and invalidation of page tables, and at each barrier of the SMMU's
//! driver. There the second thread runs until it ends or waits, which is for the first; then both go on. No time is
//! measured.

use std::boxed::Box;
use std::cell::{Cell, RefCell};
use std::sync::mpsc::{Sender, channel};

use crate::smp::number_this_cpu;

type Hook = Box<dyn FnMut()>;

std::thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
    static FIRST: RefCell<Option<Sender<()>>> = const { RefCell::new(None) };
    static WAIT: Cell<Option<fn()>> = const { Cell::new(None) };
    static HAS_RELEASED: Cell<bool> = const { Cell::new(false) };
}

/// A moment of this thread.
pub(crate) fn moment() {
    // Taken out: what it does itself has no moments. Not there any more where the thread's own values are dropped.
    if let Ok(Some(mut hook)) = HOOK.try_with(RefCell::take) {
        hook();
        HOOK.set(Some(hook));
    }
}

/// This thread has released a spinning lock, which is a moment.
pub(crate) fn released() {
    // Not there any more where the thread's own values are dropped.
    let _ = HAS_RELEASED.try_with(|has_released| has_released.set(true));
    moment();
}

/// Whether this thread has released a spinning lock since it was asked last.
pub(crate) fn has_released() -> bool {
    HAS_RELEASED.take()
}

/// Has `wait` run wherever this thread would sleep, spin or let others run, for a test in which threads take turns.
pub(crate) fn set_wait(wait: Option<fn()>) {
    WAIT.set(wait);
}

/// This thread waits for another. Returns whether a test's wait has run in the place of that.
pub(crate) fn waits() -> bool {
    crate::mm::kernel::record::note_wait();
    if let Ok(Some(first)) = FIRST.try_with(RefCell::take) {
        // In vain where the first thread has gone on already.
        let _ = first.send(());
    }
    let wait = WAIT.try_with(Cell::get).ok().flatten();
    wait.into_iter().for_each(|wait| wait());
    wait.is_some()
}

/// The hook of this thread, until it is dropped: a second thread that has not begun begins then.
struct Hooked;

impl Drop for Hooked {
    fn drop(&mut self) {
        HOOK.set(None);
    }
}

/// Runs `first`, and from its `nth` moment on `second` on another thread, whose CPU has number 1; after it where there
/// is no such moment.
/// Returns what they return, and whether there was one.
#[allow(clippy::disallowed_methods, reason = "the host has memory for a hook")]
pub(crate) fn meet<A, B: Send>(
    nth: usize,
    first: impl FnOnce() -> A,
    second: impl FnOnce() -> B + Send,
) -> (A, B, bool) {
    std::thread::scope(|scope| {
        let ((begin, begun), (pause, paused)) = (channel(), channel());
        let other = scope.spawn(move || {
            let met = begun.recv().is_ok();
            FIRST.set(Some(pause));
            number_this_cpu(1);
            let result = second();
            // The sender is dropped here, unless it has been used.
            FIRST.set(None);
            (result, met)
        });
        let mut left = Some(nth);
        let hooked = Hooked;
        HOOK.set(Some(Box::new(move || {
            if let Some(now) = left {
                left = now.checked_sub(1);
                if left.is_none() {
                    let _ = begin.send(());
                    // An error where the second thread has ended.
                    let _ = paused.recv();
                }
            }
        })));
        let first = first();
        drop(hooked);
        let (second, met) = other.join().unwrap();
        (first, second, met)
    })
}
