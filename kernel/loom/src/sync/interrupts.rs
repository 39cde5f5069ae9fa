//! A replacement for a CPU's interrupt masks: one interrupt of the running thread, before the access that a test
//! chooses, or where they are unmasked after it.

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::atomic::{Omitted, omits};

type Handler = Box<dyn FnOnce()>;

loom::thread_local! {
    /// The accesses before the interrupt, and its handler.
    static PENDING: RefCell<Option<(usize, Handler)>> = RefCell::new(None);
    static ARE_MASKED: Cell<bool> = Cell::new(false);
}

/// How many threads expect an interrupt: what other tests do costs a load.
static EXPECTED: AtomicUsize = AtomicUsize::new(0);

/// The masks as they were.
#[derive(Clone, Copy)]
#[must_use]
pub(crate) struct Daif(bool);

impl Daif {
    /// Whether interrupts were taken under this state.
    pub(crate) fn irqs_enabled(self) -> bool {
        !self.0
    }
}

pub(crate) fn state() -> Daif {
    Daif(ARE_MASKED.with(Cell::get))
}

pub(crate) fn mask() -> Daif {
    Daif(ARE_MASKED.with(|masked| masked.replace(!omits(Omitted::Masks))))
}

pub(crate) fn restore(state: Daif) {
    ARE_MASKED.with(|masked| masked.set(state.0));
    point();
}

/// The running thread is interrupted after so many accesses.
pub fn interrupt_after(accesses: usize, handler: impl FnOnce() + 'static) {
    EXPECTED.fetch_add(1, Ordering::Relaxed);
    PENDING.with(|pending| *pending.borrow_mut() = Some((accesses, Box::new(handler))));
}

/// No interrupt comes any more; whether it had not come.
pub fn cancel() -> bool {
    EXPECTED.fetch_sub(1, Ordering::Relaxed);
    PENDING.with(RefCell::take).is_some()
}

/// A point where the interrupt may come.
pub(crate) fn point() {
    if EXPECTED.load(Ordering::Relaxed) == 0 {
        return;
    }
    let due = PENDING.with(|pending| {
        let mut pending = pending.borrow_mut();
        let (left, _) = pending.as_mut()?;
        *left = left.saturating_sub(1);
        let comes = *left == 0 && !ARE_MASKED.with(Cell::get);
        if comes { pending.take() } else { None }
    });
    if let Some((_, handler)) = due {
        handler();
    }
}
