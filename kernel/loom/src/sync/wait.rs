//! Stand-ins for the ways to wait: another CPU's turn, and this CPU's interrupts.

use super::atomic::{AtomicU32, Ordering};
use crate::remote::take_interrupts;

/// YIELD.
pub(crate) fn relax() {
    take_interrupts();
    super::spin();
}

/// WFE.
pub(crate) fn wfe() {
    relax();
}

/// SEV: nothing waits in [`wfe`].
pub(crate) fn sev() {}

/// Stores `here` to `at`, and waits until `word` is no longer `value`. No interrupt is taken during the wait.
pub(crate) fn park(at: &AtomicU32, here: u32, word: &AtomicU32, value: u32) {
    at.store(here, Ordering::Release);
    while word.load(Ordering::Acquire) == value {
        super::spin();
    }
}
