//! On the host: the barriers, TLB maintenance and address translations that a thread would have issued, in order.
//!
//! For the few instructions that are issued directly, and not by the memory management that has a record of its own.
//! No emulated CPU shows whether one of them is missing.
//!
//! [`record`] returns their names. [`at_each`] runs a test's own code in the place of each: there it may look at memory
//! as the other side of a barrier may see it, or store to it what the other side had not to show before.

extern crate std;

use std::boxed::Box;
use std::cell::RefCell;
use std::rc::Rc;
use std::vec::Vec;

type Hook = Box<dyn FnMut(&'static str)>;

std::thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// The instructions that `work` issued on this thread, by the names of their functions in this crate.
#[allow(clippy::disallowed_methods, reason = "the host has memory for a record")]
pub fn record(work: impl FnOnce()) -> Vec<&'static str> {
    let stream = Rc::new(RefCell::new(Vec::new()));
    let notes = stream.clone();
    at_each(move |instruction| notes.borrow_mut().push(instruction), work);
    stream.take()
}

/// Runs `work`, and `hook` in the place of each instruction that this thread would have issued, with the instruction's
/// name. Instructions that the hook itself issues are in no record.
#[allow(clippy::disallowed_methods, reason = "the host has memory for a record")]
pub fn at_each<T>(hook: impl FnMut(&'static str) + 'static, work: impl FnOnce() -> T) -> T {
    HOOK.set(Some(Box::new(hook)));
    let result = work();
    HOOK.set(None);
    result
}

/// Runs the hook, if there is one, for an instruction in whose place the host does nothing.
pub fn note(instruction: &'static str) {
    if let Some(mut hook) = HOOK.take() {
        hook(instruction);
        HOOK.set(Some(hook));
    }
}
