//! Tables that are indexed by a number of EL0's: a CPU that predicts the check of the bound wrongly must not form an
//! address beyond the table (Spectre v1).
//!
//! The index or 0 is selected by one comparison, and CSDB keeps a CPU from using a predicted result of it (Arm ARM C6.2,
//! "CSDB"; Linux's `array_index_nospec`). `./x audit speculation` finds the sequence in the image.

#![allow(unsafe_code, reason = "an instruction sequence, and an index that it bounds")]

use crate::machine::speculation::masked;

/// `index` if it is below `size`, 0 otherwise: in what is speculated too.
#[inline(always)]
pub fn index_nospec(index: usize, size: usize) -> usize {
    masked!(index, size, in(reg) size)
}

/// The entry of a table at a number of EL0's; `None` where the table has none.
#[inline(always)]
pub fn get_nospec<T>(table: &[T], index: usize) -> Option<&T> {
    if index >= table.len() {
        return None;
    }
    // SAFETY: the index is below the length, which is not zero.
    Some(unsafe { table.get_unchecked(index_nospec(index, table.len())) })
}

/// As [`get_nospec`], to change it.
#[inline(always)]
pub fn get_mut_nospec<T>(table: &mut [T], index: usize) -> Option<&mut T> {
    let length = table.len();
    if index >= length {
        return None;
    }
    // SAFETY: the index is below the length, which is not zero.
    Some(unsafe { table.get_unchecked_mut(index_nospec(index, length)) })
}

/// The entry of a table at a number of EL0's; its first where it has none there.
#[inline(always)]
pub fn entry_nospec<T, const N: usize>(table: &[T; N], index: usize) -> &T {
    const { assert!(N > 0 && N < 1 << 12, "the immediate of a CMP") };
    let masked = masked!(index, N, const N);
    // SAFETY: the index is below `N`, or 0.
    unsafe { table.get_unchecked(masked) }
}

#[cfg(test)]
mod tests {
    use super::{entry_nospec, get_mut_nospec, get_nospec, index_nospec};

    #[test]
    fn an_index_behind_the_table_is_its_first() {
        for (index, expected) in [(0, 0), (1, 1), (2, 2), (3, 0), (usize::MAX, 0), (1 << 63, 0)] {
            assert_eq!(index_nospec(index, 3), expected);
            assert_eq!(*entry_nospec(&[0, 1, 2], index), expected);
            assert_eq!(get_nospec(&[0, 1, 2], index), (index < 3).then_some(&expected));
            assert_eq!(get_mut_nospec(&mut [0, 1, 2], index).copied(), (index < 3).then_some(expected));
        }
        assert_eq!(index_nospec(0, 0), 0);
        assert_eq!(get_nospec::<u8>(&[], 0), None);
    }
}
