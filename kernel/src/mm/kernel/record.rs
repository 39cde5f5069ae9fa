//! On the host: what this thread's [`Metal`](super::mmu::Metal) did, in order.
//!
//! The metal obeys and forgets; the emulated one hides most of what is left out. Here nothing happens but cell
//! accesses, so a test reads the stream of the kernel's own calls: which barrier, invalidation and cache maintenance
//! came before and after which store. [`at_each`] besides runs a test's code in the place of each operation, which may
//! look at memory as it is then.

use std::boxed::Box;
use std::cell::RefCell;
use std::vec::Vec;

use granule_pgtable::host::Operation;

std::thread_local! {
    static STREAM: RefCell<Option<Vec<Operation>>> = const { RefCell::new(None) };
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

type Hook = Box<dyn FnMut(&Operation)>;

/// What `work` did on this thread; in the place of each operation `hook` ran.
#[allow(clippy::disallowed_methods, reason = "the host has memory for a hook")]
pub fn at_each(hook: impl FnMut(&Operation) + 'static, work: impl FnOnce()) -> Vec<Operation> {
    HOOK.set(Some(Box::new(hook)));
    let stream = record(work);
    HOOK.set(None);
    stream
}

/// What `work` did on this thread.
pub fn record(work: impl FnOnce()) -> Vec<Operation> {
    STREAM.set(Some(Vec::new()));
    work();
    STREAM.take().unwrap_or_default()
}

/// How long this thread's record is, for a test that notes elsewhere what came in between.
pub fn position() -> usize {
    STREAM.with_borrow(|stream| stream.as_ref().map_or(0, Vec::len))
}

/// Adds to the record, if there is one.
#[allow(clippy::disallowed_methods, reason = "the host has memory for a record")]
pub(super) fn note(operation: Operation) {
    STREAM.with_borrow_mut(|stream| stream.iter_mut().for_each(|stream| stream.push(operation)));
    if let Some(mut hook) = HOOK.take() {
        hook(&operation);
        HOOK.set(Some(hook));
    }
}
