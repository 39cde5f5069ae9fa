//! The file of a userfaultfd: its end is the end of all that is registered with it.

use core::ops::Deref;
use core::sync::atomic::{AtomicBool, Ordering};

use crate::mm::counted::Counted;
use crate::mm::space::Userfaultfd;

/// A userfaultfd that is open. Dropping it may sleep.
pub struct UserfaultFile {
    userfaultfd: Counted<Userfaultfd>,
    /// It has had a descriptor.
    is_open: AtomicBool,
}

impl UserfaultFile {
    /// The one file of `userfaultfd`, which its end does not [close](Userfaultfd::close) before it is [open](Self::open): a
    /// child's is there to be had again.
    pub const fn new(userfaultfd: Counted<Userfaultfd>) -> Self {
        Self { userfaultfd, is_open: AtomicBool::new(false) }
    }

    /// It has a descriptor.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }
}

impl Deref for UserfaultFile {
    type Target = Counted<Userfaultfd>;
    fn deref(&self) -> &Counted<Userfaultfd> {
        &self.userfaultfd
    }
}

impl Drop for UserfaultFile {
    fn drop(&mut self) {
        if *self.is_open.get_mut() {
            self.userfaultfd.close();
        }
    }
}
