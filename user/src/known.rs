//! Pages whose contents are known, so that whatever changes them otherwise is noticed.

#![allow(unsafe_code, reason = "pages of the program's own")]

use granule_abi::memory::{MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ};

use crate::memory::{PAGE, RW, madvise, mmap, mprotect, munmap};
use crate::random::Random;

/// `N` pages from an address on, and what was stored in each. The program that has this has mapped them, and one thread
/// alone accesses them.
#[derive(Clone, Copy, Debug)]
pub struct Known<const N: usize> {
    /// Their address.
    pub start: u64,
    /// The number that was stored in each: 0 for zeros.
    pub stored: [u64; N],
}

impl<const N: usize> Known<N> {
    /// Pages of zeros.
    pub const fn new(start: u64) -> Self {
        Self { start, stored: [0; N] }
    }

    fn at(&self, page: usize) -> u64 {
        self.start + page as u64 * PAGE
    }

    /// Words of a page, the two ends among them. They are the same at another address.
    fn words(&self, page: usize) -> impl Iterator<Item = (*mut u64, u64)> {
        let (at, number) = (self.at(page), self.stored[page]);
        [0, 8, 1024, 2040, 4088].into_iter().map(move |offset| {
            let value = if number == 0 { 0 } else { number.rotate_left(offset as u32) ^ offset ^ (page as u64) << 32 };
            ((at + offset) as *mut u64, value)
        })
    }

    /// Stores to a page what follows from a number.
    pub fn store(&mut self, page: usize, number: u64) {
        self.stored[page] = number | 1;
        // SAFETY: the program's own pages, writable.
        self.words(page).for_each(|(word, value)| unsafe { word.write_volatile(value) });
    }

    /// Stores to pages, so many times.
    pub fn store_some(&mut self, random: &mut Random, count: usize) {
        (0..count).for_each(|_| self.store(random.below(N), random.next()));
    }

    /// Compares a page with what was stored.
    ///
    /// # Panics
    /// It differs.
    #[track_caller]
    pub fn check(&self, page: usize) {
        for (word, value) in self.words(page) {
            // SAFETY: as above.
            assert_eq!(unsafe { word.read_volatile() }, value, "page {page}, at {word:?}");
        }
    }

    /// As [`Self::check`], all of them.
    ///
    /// # Panics
    /// One differs.
    #[track_caller]
    pub fn check_all(&self) {
        (0..N).for_each(|page| self.check(page));
    }

    /// Some of them that follow one another: the first and how many.
    pub const fn some(random: &mut Random) -> (usize, usize) {
        let first = random.below(N);
        (first, 1 + random.below(N - first))
    }

    /// Makes some of them zeros again: given up, mapped anew, or both, one after the other.
    ///
    /// # Panics
    /// The kernel refuses it.
    #[track_caller]
    pub fn zap(&mut self, random: &mut Random) {
        let (first, count) = Self::some(random);
        let (at, bytes) = (self.at(first), count as u64 * PAGE);
        // SAFETY: the program's own pages, without references to them.
        unsafe {
            let how = random.below(4);
            match how {
                0 | 1 => madvise(at, bytes, MADV_DONTNEED).expect("pages to give up"),
                2 => munmap(at, bytes).expect("pages to unmap"),
                _ => {}
            }
            if how != 0 {
                assert_eq!(mmap(at, bytes, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED), Ok(at));
            }
        }
        self.stored[first..first + count].fill(0);
    }

    /// Takes the right to write away, looks, and gives it back.
    ///
    /// # Panics
    /// A page differs, or the kernel refuses it.
    #[track_caller]
    pub fn protect(&self, random: &mut Random) {
        let (first, count) = Self::some(random);
        let bytes = count as u64 * PAGE;
        // SAFETY: the program's own pages, which are read alone while they are protected.
        unsafe { mprotect(self.at(first), bytes, PROT_READ) }.expect("pages to protect");
        (first..first + count).for_each(|page| self.check(page));
        // SAFETY: as above.
        unsafe { mprotect(self.at(first), bytes, RW) }.expect("pages to free");
    }
}
