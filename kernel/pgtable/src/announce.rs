//! Walks that announce themselves, so that tables can be freed without a lock that walkers would take.
//!
//! Each CPU has one sequence word: odd inside its outermost walk, even outside. The CPU that has unlinked a table
//! reads every word once ([`Grace::begin`]), and frees the table when each that was odd has changed
//! ([`Grace::is_over`]). The two sides are the two halves of a store-buffering test (Arm ARM B2.3), which takes a full
//! barrier on both:
//!
//! ```text
//!     the walker                         the CPU that frees
//!     word ← odd                         descriptor ← empty (or marked)
//!     DMB ISH                            DMB ISH, or a DSB ISH that is there anyway
//!     reads the descriptor …             reads the word, with acquire
//!     … and the table behind it          even: frees
//!     word ← even, with release
//! ```
//! Either the walker reads the new descriptor, or the other side reads the odd word, or both: never neither. The
//! release of the even word and the acquire of it put the walker's last access before the free.
//!
//! # The word never goes back
//! An interrupt walks on the CPU that it stops, with the same word. So the word becomes odd in one atomic step. Of a load
//! and a store, the store takes back what an interrupt between the two has added, and a collapse misses a walk:
//!
//! ```text
//!     the walker               its interrupt          the collapser
//!     reads 0
//!                              word ← 1, word ← 2
//!                                                     sum of all words: 2; the entries are alike
//!     word ← 1
//!     stores to an entry
//!     word ← 2
//!                                                     marks the table; sum of all words: 2, none is odd
//! ```
//! Then no walk seems to have come by, and the store is lost ([`Grace::saw_none_since`]). The end of a walk needs no such
//! step: while the word is odd, an interrupt leaves it alone.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::barrier;

/// A CPU's sequence word. Only its own CPU writes it, interrupts on that CPU included.
///
/// The machines under test have their own: loom's atomics are another type, and a test may take a barrier away.
pub trait WalkWord {
    /// Makes it odd in one atomic step, with no order of its own. Returns what it was.
    fn make_odd(&self) -> u64;
    /// Reads it; what is read after this is ordered after the read.
    fn load_acquire(&self) -> u64;
    /// Writes it after all earlier accesses.
    fn store_release(&self, value: u64);
    /// DMB ISH.
    fn full_barrier(&self);
}

impl WalkWord for AtomicU64 {
    #[inline(always)]
    fn make_odd(&self) -> u64 {
        self.fetch_or(1, Ordering::Relaxed)
    }

    #[inline(always)]
    fn load_acquire(&self) -> u64 {
        self.load(Ordering::Acquire)
    }

    #[inline(always)]
    fn store_release(&self, value: u64) {
        self.store(value, Ordering::Release);
    }

    #[inline(always)]
    fn full_barrier(&self) {
        barrier::dmb_ish();
        // On the host that is recorded alone; this orders the threads that stand for CPUs.
        #[cfg(not(target_os = "none"))]
        core::sync::atomic::fence(Ordering::SeqCst);
    }
}

/// A walk by this CPU, announced until it is dropped.
///
/// Having one proves: no table that the walk can reach from the root is freed while it lives. It stays on its CPU, and
/// nothing waits for another CPU while it lives, but for the section of a split ([`crate::Serialise`]), whose holder
/// waits for nothing.
#[must_use = "the walk is announced only while this lives"]
pub struct Announced<'w, W: WalkWord> {
    word: &'w W,
    /// The value to write at the end; `None` where another walk is around this one.
    after: Option<u64>,
    /// It writes its CPU's word, so it is dropped there.
    not_send: PhantomData<*const ()>,
}

impl<'w, W: WalkWord> Announced<'w, W> {
    /// Announces a walk on the CPU whose word this is.
    #[inline(always)]
    pub fn begin(word: &'w W) -> Self {
        let before = word.make_odd();
        // Odd: in an interrupt, or inside a walk, whose end is the end of both.
        let after = before.is_multiple_of(2).then(|| before.wrapping_add(2));
        // Also inside another walk: the interrupt may have come between the step above and this barrier, and then the
        // interrupted walk has announced nothing that others must see yet.
        word.full_barrier();
        Self { word, after, not_send: PhantomData }
    }
}

impl<W: WalkWord> Drop for Announced<'_, W> {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(after) = self.after {
            self.word.store_release(after);
        }
    }
}

/// The walks that were under way on `CPUS` CPUs at one moment, 64 at most, as far as they have not been seen to end.
#[derive(Clone, Copy, Debug)]
pub struct Grace<const CPUS: usize> {
    words: [u64; CPUS],
    /// The CPUs, by bit, whose word was odd.
    open: u64,
    /// The sum of all words. None ever goes back, so it stays only where all do.
    sum: u64,
}

impl<const CPUS: usize> Grace<CPUS> {
    /// No walk to wait for.
    pub(crate) const OVER: Self = Self { words: [0; CPUS], open: 0, sum: 0 };

    /// Looks at every word. `words` gives the one of a CPU by number, `None` where there is no such CPU.
    ///
    /// Before this comes the change that later walks are to see, and then a full barrier of the caller's.
    pub fn begin<'w, W: WalkWord + 'w>(words: impl Fn(usize) -> Option<&'w W>) -> Self {
        const { assert!(CPUS <= u64::BITS as usize) };
        let mut all = Self::OVER;
        for cpu in 0..CPUS {
            let Some(word) = words(cpu) else { continue };
            let seen = word.load_acquire();
            all.words[cpu] = seen;
            all.open |= (seen & 1) << cpu;
            all.sum = all.sum.wrapping_add(seen);
        }
        all
    }

    /// Stands for what all words were then: for [`Grace::saw_none_since`].
    pub(crate) const fn sum(&self) -> u64 {
        self.sum
    }

    /// Whether no walk was under way then, and none has begun since `earlier`, when the words had that sum.
    pub(crate) const fn saw_none_since(&self, earlier: u64) -> bool {
        self.open == 0 && self.sum == earlier
    }

    /// Whether each of those walks has ended. Never waits.
    pub fn is_over<'w, W: WalkWord + 'w>(&mut self, words: impl Fn(usize) -> Option<&'w W>) -> bool {
        while self.open != 0 {
            let cpu = self.open.trailing_zeros() as usize;
            if words(cpu).is_some_and(|word| Some(&word.load_acquire()) == self.words.get(cpu)) {
                return false;
            }
            self.open &= self.open - 1;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{Announced, AtomicU64, Grace, Ordering};

    #[test]
    fn the_word_is_odd_inside_the_outermost_walk_only() {
        let word = AtomicU64::new(6);
        let outer = Announced::begin(&word);
        let inner = Announced::begin(&word);
        assert_eq!(word.load(Ordering::Relaxed), 7);
        drop(inner);
        assert_eq!(word.load(Ordering::Relaxed), 7);
        drop(outer);
        assert_eq!(word.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn a_grace_period_waits_for_the_walks_that_were_there_and_no_others() {
        let words = [const { AtomicU64::new(0) }; 2];
        let at = |cpu: usize| words.get(cpu);
        let first = Announced::begin(&words[0]);
        let mut grace = Grace::<3>::begin(at);
        let later = Announced::begin(&words[1]);
        assert!(!grace.is_over(at));
        drop(first);
        // The CPU of the old walk walks again: the old walk has ended all the same.
        let again = Announced::begin(&words[0]);
        assert!(grace.is_over(at));
        drop((later, again));
        assert!(Grace::<3>::begin(at).is_over(at));
    }

    #[test]
    fn a_walk_between_two_looks_is_noticed_when_it_has_ended_too() {
        let words = [const { AtomicU64::new(6) }; 3];
        let at = |cpu: usize| words.get(cpu);
        let before = Grace::<4>::begin(at);
        assert!(Grace::<4>::begin(at).saw_none_since(before.sum()));
        let walk = Announced::begin(&words[2]);
        let during = Grace::<4>::begin(at);
        assert!(!during.saw_none_since(before.sum()));
        // It was under way all the time: what it stores may come at any moment.
        assert!(!Grace::<4>::begin(at).saw_none_since(during.sum()));
        drop(walk);
        assert!(!Grace::<4>::begin(at).saw_none_since(before.sum()));
        assert!(!Grace::<4>::begin(at).saw_none_since(during.sum()));
    }

    #[test]
    fn a_walk_begins_with_a_full_barrier_inside_another_one_too() {
        use granule_arch::recorded::record;
        let word = AtomicU64::new(0);
        assert_eq!(record(|| drop(Announced::begin(&word))), ["dmb_ish"]);
        let _outer = Announced::begin(&word);
        assert_eq!(record(|| drop(Announced::begin(&word))), ["dmb_ish"]);
    }

    #[test]
    fn the_word_may_wrap() {
        let word = AtomicU64::new(u64::MAX - 1);
        drop(Announced::begin(&word));
        assert_eq!(word.load(Ordering::Relaxed), 0);
    }
}
