//! Patched branches on the host, for one test at a time.
//!
//! On the host each switch of `granule_arch::alternative` is a plain flag of the process. Tests whose code asks one run inside [`with`], all
//! of them, also those that want every switch off.

use std::sync::{Mutex, MutexGuard, PoisonError};

use granule_arch::alternative::host;

static FLAGS: Mutex<()> = Mutex::new(());

/// Runs `work` with the switches `on` on, and no other test of this process inside [`with`] meanwhile.
///
/// ```
/// use granule_arch::patched_branch;
/// assert!(granule_model::switch::with(&[5], || patched_branch!(5)));
/// assert!(!granule_model::switch::with(&[], || patched_branch!(5)));
/// ```
pub fn with<R>(on: &[u16], work: impl FnOnce() -> R) -> R {
    let guard = Switched { on: on.to_vec(), _flags: FLAGS.lock().unwrap_or_else(PoisonError::into_inner) };
    guard.on.iter().for_each(|&identifier| host::set(identifier, true));
    work()
}

/// Switches off again when dropped, also by a panic.
struct Switched {
    on: Vec<u16>,
    _flags: MutexGuard<'static, ()>,
}

impl Drop for Switched {
    fn drop(&mut self) {
        self.on.iter().for_each(|&identifier| host::set(identifier, false));
    }
}
