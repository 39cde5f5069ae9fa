//! Memory whose faults a pager serves, and accesses to it, for the tests of userfaultfd.

#![allow(unsafe_code, reason = "memory that the programs test on purpose")]

use core::ops::Deref;

use crate::prelude::*;

own!(call, file, word, put_word);

/// A kind of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Private anonymous memory.
    Anonymous,
    /// A shared mapping of a memory file.
    Shared,
    /// A private mapping of a memory file.
    PrivateFile,
}

/// All kinds.
pub const KINDS: [Kind; 3] = [Kind::Anonymous, Kind::Shared, Kind::PrivateFile];

/// Pages, and the file that they are of. They are unmapped when this is dropped.
pub struct Room {
    /// Their address.
    pub start: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The file's descriptor, or -1.
    pub file: u64,
}

impl Room {
    /// So many pages of a kind, of a new file if it has one.
    ///
    /// # Panics
    /// When there is no memory.
    pub fn new(kind: Kind, pages: u64) -> Self {
        let bytes = pages * PAGE;
        let (flags, file) = match kind {
            Kind::Anonymous => (PRIVATE, u64::MAX),
            Kind::Shared => (MAP_SHARED, file(pages)),
            Kind::PrivateFile => (MAP_PRIVATE, file(pages)),
        };
        let start = call(MMAP, [0, bytes, RW, flags, file, 0]).expect("memory");
        Self { start, bytes, file }
    }

    /// The address of a page.
    pub fn page(&self, page: u64) -> u64 {
        self.start + page * PAGE
    }

    /// Stores to each page its number and 1.
    pub fn write_all(&self) {
        (0..self.bytes / PAGE).for_each(|page| self.write(page, page + 1));
    }

    /// Loads from each page, which are zeros.
    ///
    /// # Panics
    /// When one is not.
    pub fn read_all(&self) {
        (0..self.bytes / PAGE).for_each(|page| assert_eq!(self.read(page), 0));
    }

    /// Touches nothing.
    pub const fn leave(&self) {}

    /// Write-protects all pages.
    ///
    /// # Panics
    /// When they are not registered.
    pub fn protect_all(&self, pager: Pager) {
        pager.protect(self.start, self.bytes).expect("registered");
    }

    /// Stores a word to a page.
    pub fn write(&self, page: u64, value: u64) {
        put_word(self.page(page), value);
    }

    /// Loads a word from a page.
    pub fn read(&self, page: u64) -> u64 {
        word(self.page(page))
    }

    /// Advises about so many pages from this one on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn advise(&self, page: u64, pages: u64, advice: u64) -> Result<(), Errno> {
        // SAFETY: there are no references to it.
        unsafe { memory::madvise(self.page(page), pages * PAGE, advice) }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // SAFETY: there are no references to it.
        unsafe { memory::munmap(self.start, self.bytes) }.expect("mapped");
    }
}

/// An access, on this thread, that is served without the pager.
///
/// # Panics
/// When there is a message.
pub fn quiet<R>(pager: Pager, access: impl FnOnce() -> R) -> R {
    let result = access();
    assert_eq!(pager.read_one(), Err(EAGAIN), "a message");
    result
}

/// An access at `at`, on another thread, that the pager has to serve by `serve`, with these flags in its message.
///
/// # Panics
/// When the message is another.
pub fn served<R: Send>(
    pager: Pager,
    at: u64,
    flags: u64,
    access: impl FnOnce() -> R + Send,
    serve: impl FnOnce(),
) -> R {
    let serves = || {
        let message = wait_for(pager);
        assert_eq!((message.event, message.words[0]), (UFFD_EVENT_PAGEFAULT, flags), "{message:x?}");
        assert_eq!(message.words[1] & !(PAGE - 1), at & !(PAGE - 1), "{message:x?}");
        serve();
    };
    beside(access, serves).0
}

/// A store to a page that is write-protected, which the pager unprotects.
///
/// # Panics
/// When it is not reported.
pub fn reported(pager: Pager, at: u64, value: u64) {
    let unprotect = || pager.unprotect(at & !(PAGE - 1), PAGE).expect("registered");
    served(pager, at, UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP, || put_word(at, value), unprotect);
    assert_eq!(word(at), value);
}

/// Sleeps for a moment.
pub fn nap() {
    let _ = time::sleep(100_000);
}

/// The next message of a pager that does not wait for one.
///
/// # Panics
/// When it cannot be read.
pub fn wait_for(pager: Pager) -> Message {
    loop {
        match pager.read_one() {
            Ok(message) => return message,
            Err(EAGAIN) => nap(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A pager that is closed when this is dropped. It is declared after the memory that it watches, or dropped by name, so that
/// it is closed over that memory, with the blocks, protections and poison that are there.
pub struct OwnPager(Pager);

impl Deref for OwnPager {
    type Target = Pager;

    fn deref(&self) -> &Pager {
        &self.0
    }
}

impl Drop for OwnPager {
    fn drop(&mut self) {
        self.0.close().expect("open");
    }
}

/// A pager that waits for no message.
///
/// # Panics
/// When there can be none.
pub fn pager(features: u64) -> OwnPager {
    OwnPager(Pager::new(O_NONBLOCK | O_CLOEXEC, features).expect("a userfaultfd"))
}

/// A room that is registered with a pager in a mode.
///
/// # Panics
/// When it cannot be.
pub fn watched(kind: Kind, pages: u64, features: u64, mode: u64) -> (Room, OwnPager) {
    let (room, pager) = (Room::new(kind, pages), pager(features));
    pager.register(room.start, room.bytes, mode).expect("memory");
    (room, pager)
}
