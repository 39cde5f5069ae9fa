//! The capabilities of a thread (`capabilities(7)`), as it has set them. There is one user, to whom nothing is refused for
//! want of one.

use core::sync::atomic::{AtomicU64, Ordering};

use granule_abi::Errno;

/// The capabilities that Linux 7.2 has.
const ALL: u64 = (1 << 41) - 1;
/// To change the bounds of the inheritable ones.
const SETPCAP: u64 = 1 << 8;

/// Those that are effective, permitted, and inheritable, a bit each. Changed by its own thread.
pub struct Capabilities([AtomicU64; 3]);

impl Capabilities {
    /// Those of Linux's first process.
    pub const fn of_first() -> Self {
        Self([AtomicU64::new(ALL), AtomicU64::new(ALL), AtomicU64::new(0)])
    }

    /// Effective, permitted, inheritable.
    pub fn get(&self) -> [u64; 3] {
        self.0.each_ref().map(|set| set.load(Ordering::Relaxed))
    }

    /// Those of the thread that has made this one.
    pub fn inherit(&self, from: &Self) {
        self.store(from.get());
    }

    /// After an exec: all of root's, but that the inheritable ones stay.
    pub fn exec(&self) {
        let [.., inheritable] = self.get();
        self.store([ALL, ALL, inheritable]);
    }

    /// Sets them, by the rules of Linux's `cap_capset`. Bits of none are left out.
    ///
    /// # Errors
    /// `EPERM`: more are permitted than before, effective than permitted, or inheritable than it may pass on.
    pub fn set(&self, new: [u64; 3]) -> Result<(), Errno> {
        let [effective_before, permitted_before, inheritable_before] = self.get();
        let new @ [effective, permitted, inheritable] = new.map(|set| set & ALL);
        let most = if effective_before & SETPCAP != 0 { ALL } else { inheritable_before | permitted_before };
        if inheritable & !most != 0 || permitted & !permitted_before != 0 || effective & !permitted != 0 {
            return Err(Errno::EPERM);
        }
        self.store(new);
        Ok(())
    }

    fn store(&self, sets: [u64; 3]) {
        self.0.iter().zip(sets).for_each(|(place, set)| place.store(set, Ordering::Relaxed));
    }
}
