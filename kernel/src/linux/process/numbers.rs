//! The numbers of processes and threads: the set of used ones, and the choice of the next.

use crate::linux::errno::Errno;

/// One more than the largest number: `kernel.pid_max` of a Linux with few CPUs.
pub const END: u32 = 32768;
/// Where the search continues after the end: Linux's `RESERVED_PIDS`.
const AGAIN: u32 = 300;
/// Bits of a word.
const WORD: u32 = u64::BITS;

/// The set of used numbers. A freed number is used again only after all larger free ones: it stays free for as long as
/// possible, so that a late signal to it finds no process instead of another one.
pub struct Numbers {
    used: [u64; (END / WORD) as usize],
    /// How many uses each has: a process or thread, members of a group, and of a session.
    uses: [u16; END as usize],
    last: u32,
}

impl Numbers {
    /// No number is in use. 0 is never used.
    pub const fn new() -> Self {
        Self { used: [0; (END / WORD) as usize], uses: [0; END as usize], last: 0 }
    }

    /// Reserves the next number, 1 to [`END`] - 1; `None` if all are in use. Reads each word of the set at most twice.
    pub fn reserve(&mut self) -> Option<u32> {
        let number = self.next_free(self.last + 1, END).or_else(|| self.next_free(AGAIN, self.last + 1))?;
        *self.used.get_mut((number / WORD) as usize)? |= 1 << (number % WORD);
        self.hold(number);
        self.last = number;
        Some(number)
    }

    /// Reserves this number. The search for the next one goes on where it was.
    ///
    /// # Errors
    /// `EINVAL`: no process or thread has it. `EEXIST`: it is in use.
    pub fn reserve_exactly(&mut self, number: u32) -> Result<(), Errno> {
        let word = self.used.get_mut((number / WORD) as usize).filter(|_| number != 0).ok_or(Errno::EINVAL)?;
        let bit = 1 << (number % WORD);
        if *word & bit != 0 {
            return Err(Errno::EEXIST);
        }
        *word |= bit;
        self.hold(number);
        Ok(())
    }

    /// Adds a use of a number that is in use.
    pub fn hold(&mut self, number: u32) {
        const { assert!(2 * (END - 1) < u16::MAX as u32, "each process is in one group and one session") };
        if let Some(uses) = self.uses.get_mut(number as usize) {
            *uses += 1;
        }
    }

    /// Ends a use of a number, which is free after the last one.
    pub fn release(&mut self, number: u32) {
        let (word, uses) = (self.used.get_mut((number / WORD) as usize), self.uses.get_mut(number as usize));
        if let (Some(word), Some(uses)) = (word, uses) {
            *uses = uses.saturating_sub(1);
            if *uses == 0 {
                *word &= !(1 << (number % WORD));
            }
        }
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.used.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The first free number from `from` up to `end`.
    #[inline]
    fn next_free(&self, from: u32, end: u32) -> Option<u32> {
        let first = from / WORD;
        let words =
            self.used.iter().enumerate().skip(first as usize).take_while(|(index, _)| *index as u32 * WORD < end);
        for (index, &word) in words {
            let index = index as u32;
            let below = if index == first { (1 << (from % WORD)) - 1 } else { 0 };
            let number = index * WORD + (word | below).trailing_ones();
            if number < (index + 1) * WORD {
                return (number < end).then_some(number);
            }
        }
        None
    }
}

impl Default for Numbers {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::{AGAIN, END, Errno, Numbers};

    #[test]
    fn numbers_ascend_and_begin_again_above_the_reserved_ones() {
        let mut numbers = Numbers::new();
        for expected in 1..END {
            assert_eq!(numbers.reserve(), Some(expected));
            numbers.release(expected);
        }
        assert_eq!(numbers.reserve(), Some(AGAIN), "never more than i32 holds, never 0, and not those of the start");
        assert_eq!(numbers.reserve(), Some(AGAIN + 1));
    }

    #[test]
    fn a_number_in_use_is_never_given_and_none_is_given_when_all_are_used() {
        let mut numbers = Numbers::new();
        assert!((1..END).all(|number| numbers.reserve() == Some(number)));
        assert_eq!(numbers.reserve(), None);
        numbers.release(7);
        assert_eq!(numbers.reserve(), None, "those below 300 are given once only");
        numbers.release(END - 1);
        numbers.release(5000);
        assert_eq!(numbers.reserve(), Some(5000));
        assert_eq!(numbers.reserve(), Some(END - 1));
        numbers.release(END - 1);
        assert_eq!(numbers.reserve(), Some(END - 1), "the last one as well, when no other is free");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Against a set, and the rule that the next free number is used.
        #[test]
        fn the_next_free_number_is_given(steps in proptest::collection::vec((any::<bool>(), any::<u16>()), 1..400)) {
            let (mut numbers, mut used, mut last) = (Numbers::new(), BTreeSet::new(), 0);
            // Most of it is in use, so that words are skipped.
            for number in 1..END {
                prop_assert_eq!(numbers.reserve(), Some(number));
                used.insert(number);
                last = number;
            }
            for (reserve, choice) in steps {
                if reserve {
                    let expected = (last + 1..END).chain(AGAIN..=last).find(|number| !used.contains(number));
                    prop_assert_eq!(numbers.reserve(), expected);
                    if let Some(number) = expected {
                        prop_assert!(used.insert(number));
                        last = number;
                    }
                } else {
                    let chosen = used.range(u32::from(choice)..).next().copied();
                    if let Some(number) = chosen {
                        numbers.release(number);
                        used.remove(&number);
                    }
                }
            }
        }
    }

    #[test]
    fn a_number_is_had_once_and_the_search_goes_on_where_it_was() {
        let mut numbers = Numbers::new();
        assert_eq!(numbers.reserve(), Some(1));
        for (number, answer) in [
            (0, Err(Errno::EINVAL)),
            (1, Err(Errno::EEXIST)),
            (3, Ok(())),
            (3, Err(Errno::EEXIST)),
            (END - 1, Ok(())),
            (END, Err(Errno::EINVAL)),
            (u32::MAX, Err(Errno::EINVAL)),
        ] {
            assert_eq!(numbers.reserve_exactly(number), answer, "{number}");
        }
        assert_eq!([numbers.reserve(), numbers.reserve()], [Some(2), Some(4)]);
        numbers.hold(3);
        numbers.release(3);
        assert_eq!(numbers.reserve_exactly(3), Err(Errno::EEXIST), "a group has it");
        numbers.release(3);
        assert_eq!(numbers.reserve_exactly(3), Ok(()));
    }
}
