//! In host tests: what this thread's [`Metal`](super::mmu::Metal) did, in order.
//!
//! The metal obeys and forgets; the emulated one hides most of what is left out. Here nothing happens but cell
//! accesses, so a test reads the stream of the kernel's own calls: which barrier, invalidation and cache maintenance
//! came before and after which store. [`at_each`] besides runs a test's code in the place of each operation, which may
//! look at memory as it is then; [`at_each_moment`] also between a load of an entry and what is made of it, where the
//! hardware or another CPU may change the entry, and before a wait for a lock.

use std::boxed::Box;
use std::cell::RefCell;
use std::vec::Vec;

use granule_pgtable::host::Operation;
use granule_pgtable::metal::Cell;

use crate::sched::as_another_thread;

std::thread_local! {
    static STREAM: RefCell<Option<Vec<Operation>>> = const { RefCell::new(None) };
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

type Hook = Box<dyn FnMut(Moment<'_>)>;

/// When a hook runs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Moment<'a> {
    /// The entry in a cell has been read, also by a compare-exchange that failed, and nothing was made of it yet.
    Read(&'a Cell),
    /// In the place of an operation, or just after a store.
    Operation(&'a Operation),
    /// Before this thread waits for a lock that another has.
    Wait,
    /// Between two steps of a call: see [`note_step`].
    Step,
}

/// The operations of `work` on this thread; `hook` ran at each.
pub(crate) fn at_each(mut hook: impl FnMut(&Operation) + 'static, work: impl FnOnce()) -> Vec<Operation> {
    let at_operations = move |moment: Moment<'_>| {
        if let Moment::Operation(operation) = moment {
            hook(operation);
        }
    };
    at_each_moment(at_operations, work)
}

/// As [`at_each`], with the hook run after each load of an entry too. Operations of the hook itself run no hook.
#[allow(clippy::disallowed_methods, reason = "the host has memory for a hook")]
pub(crate) fn at_each_moment(hook: impl FnMut(Moment<'_>) + 'static, work: impl FnOnce()) -> Vec<Operation> {
    /// Also where `work` panics.
    struct Unhook;
    impl Drop for Unhook {
        fn drop(&mut self) {
            HOOK.set(None);
        }
    }
    HOOK.set(Some(Box::new(hook)));
    let _unhook = Unhook;
    record(work)
}

/// Runs `work` without hooks: what it does is no CPU's, or one step.
pub(crate) fn unseen<T>(work: impl FnOnce() -> T) -> T {
    let hook = HOOK.take();
    let result = work();
    HOOK.set(hook);
    result
}

/// The operations of `work` on this thread.
pub(crate) fn record(work: impl FnOnce()) -> Vec<Operation> {
    STREAM.set(Some(Vec::new()));
    work();
    STREAM.take().unwrap_or_default()
}

/// How long this thread's record is, for a test that notes elsewhere what came in between.
pub(crate) fn position() -> usize {
    STREAM.with_borrow(|stream| stream.as_ref().map_or(0, Vec::len))
}

/// Adds to the record, if there is one.
#[allow(clippy::disallowed_methods, reason = "the host has memory for a record")]
pub(super) fn note(operation: Operation) {
    crate::sync::meeting::moment();
    STREAM.with_borrow_mut(|stream| stream.iter_mut().for_each(|stream| stream.push(operation)));
    run_hook(Moment::Operation(&operation));
}

/// An entry was read.
pub(super) fn note_read(cell: &Cell) {
    if HOOK.with_borrow(Option::is_some) {
        run_hook(Moment::Read(cell));
    }
}

/// This thread is about to wait for a lock.
pub(crate) fn note_wait() {
    run_hook(Moment::Wait);
}

/// A test makes a call in its steps, and is between two of them: no lock is held.
pub(crate) fn note_step() {
    run_hook(Moment::Step);
}

fn run_hook(moment: Moment<'_>) {
    // Taken out: what it does itself runs none.
    if let Ok(Some(mut hook)) = HOOK.try_with(RefCell::take) {
        as_another_thread(|| hook(moment));
        HOOK.set(Some(hook));
    }
}
