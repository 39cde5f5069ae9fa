//! The file of a userfaultfd: its end is the end of all that is registered with it.

use core::ops::Deref;

use crate::mm::counted::Counted;
use crate::mm::space::Userfaultfd;

/// A userfaultfd that is open. Dropping it may sleep.
pub struct UserfaultFile(Counted<Userfaultfd>);

impl UserfaultFile {
    /// The one file of `userfaultfd`.
    pub const fn new(userfaultfd: Counted<Userfaultfd>) -> Self {
        Self(userfaultfd)
    }
}

impl Deref for UserfaultFile {
    type Target = Counted<Userfaultfd>;
    fn deref(&self) -> &Counted<Userfaultfd> {
        &self.0
    }
}

impl Drop for UserfaultFile {
    fn drop(&mut self) {
        self.0.close();
    }
}
