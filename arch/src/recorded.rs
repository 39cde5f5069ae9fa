//! On the host: the barriers, TLB maintenance and address translations that a thread would have issued, in order.
//!
//! For the few instructions that are issued directly, and not by the memory management that has a record of its own.
//! No emulated CPU shows whether one of them is missing.

extern crate std;

use std::cell::RefCell;
use std::vec::Vec;

std::thread_local! {
    static STREAM: RefCell<Option<Vec<&'static str>>> = const { RefCell::new(None) };
}

/// The instructions that `work` issued on this thread, by the names of their functions in this crate.
pub fn record(work: impl FnOnce()) -> Vec<&'static str> {
    STREAM.set(Some(Vec::new()));
    work();
    STREAM.take().unwrap_or_default()
}

/// Adds to the record, if there is one.
#[allow(clippy::disallowed_methods, reason = "the host has memory for a record")]
pub(crate) fn note(instruction: &'static str) {
    STREAM.with_borrow_mut(|stream| stream.iter_mut().for_each(|stream| stream.push(instruction)));
}
