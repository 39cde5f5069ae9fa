//! No site is patched.

/// The flags that stand for patched sites on the host.
pub mod host {
    extern crate std;

    use core::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, PoisonError};

    use crate::alternative::IDENTIFIERS;

    static FLAGS: [AtomicBool; IDENTIFIERS as usize] = [const { AtomicBool::new(false) }; IDENTIFIERS as usize];

    /// Whether the sites of `identifier` branch.
    pub fn is_on(identifier: u16) -> bool {
        FLAGS[usize::from(identifier)].load(Ordering::Relaxed)
    }

    /// Runs `work` with the sites of these identifiers taken and all others not.
    ///
    /// The flags are the process's: tests that would notice those of another take turns by this function.
    pub fn with<T>(identifiers: &[u16], work: impl FnOnce() -> T) -> T {
        static TURN: Mutex<()> = Mutex::new(());
        /// Puts everything back, also where `work` panics.
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                (0..IDENTIFIERS).for_each(|identifier| set(identifier, false));
            }
        }
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let _reset = Reset;
        (0..IDENTIFIERS).for_each(|identifier| set(identifier, identifiers.contains(&identifier)));
        work()
    }

    /// Makes the sites of `identifier` branch or not, from now on.
    pub fn set(identifier: u16, on: bool) {
        FLAGS[usize::from(identifier)].store(on, Ordering::Relaxed);
    }
}
