//! Pages for measurements: each operation is inlined where it is measured.

#![allow(unsafe_code, reason = "pages of the program's own")]

use granule_abi::memory::{MADV_DONTNEED, MAP_FIXED};

use crate::memory::{PAGE, PRIVATE, madvise, mmap, mprotect, munmap};

/// Some pages at addresses that the program has for this alone. There are no references to them, and each operation comes
/// where they are mapped for it.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Their address.
    pub start: u64,
    /// How many they are.
    pub pages: u64,
}

impl Room {
    /// Their bytes.
    pub const fn bytes(self) -> u64 {
        self.pages * PAGE
    }

    /// The address behind them.
    pub const fn end(self) -> u64 {
        self.start + self.bytes()
    }

    /// The page with this number.
    #[inline(always)]
    pub const fn page(self, page: u64) -> Self {
        Self { start: self.start + page * PAGE, pages: 1 }
    }

    /// The page before them.
    pub const fn before(self) -> Self {
        Self { start: self.start - PAGE, pages: 1 }
    }

    /// The page behind them.
    pub const fn behind(self) -> Self {
        Self { start: self.end(), pages: 1 }
    }

    /// Each page by itself.
    pub fn each_page(self) -> impl Iterator<Item = Self> {
        (0..self.pages).map(move |page| self.page(page))
    }

    /// These pages, after this was done with them.
    pub fn after(self, done: impl FnOnce(Self)) -> Self {
        done(self);
        self
    }

    /// Maps private memory there, in place of other mappings.
    ///
    /// # Panics
    /// There is none.
    #[inline(always)]
    pub fn map(self, protection: u64, flags: u64) {
        // SAFETY: the program has these addresses for this.
        unsafe { mmap(self.start, self.bytes(), protection, PRIVATE | MAP_FIXED | flags) }.expect("memory");
    }

    /// Stores to each page.
    #[inline(always)]
    pub fn write(self) {
        for page in 0..self.pages {
            // SAFETY: it is mapped writable wherever this is called.
            unsafe { ((self.start + page * PAGE) as *mut u64).write_volatile(1) };
        }
    }

    /// Loads from each page.
    #[inline(always)]
    pub fn read(self) {
        for page in 0..self.pages {
            // SAFETY: it is mapped.
            unsafe { ((self.start + page * PAGE) as *const u64).read_volatile() };
        }
    }

    /// Changes their protection.
    ///
    /// # Panics
    /// They are not mapped.
    #[inline(always)]
    pub fn protect(self, protection: u64) {
        // SAFETY: there are no references to them.
        unsafe { mprotect(self.start, self.bytes(), protection) }.expect("mapped");
    }

    /// Gives their contents up.
    ///
    /// # Panics
    /// They are not mapped.
    #[inline(always)]
    pub fn give_up(self) {
        // SAFETY: there are no references to them.
        unsafe { madvise(self.start, self.bytes(), MADV_DONTNEED) }.expect("mapped");
    }

    /// Unmaps them.
    ///
    /// # Panics
    /// The kernel refuses it.
    #[inline(always)]
    pub fn unmap(self) {
        // SAFETY: there are no references to them.
        unsafe { munmap(self.start, self.bytes()) }.expect("mapped");
    }
}
