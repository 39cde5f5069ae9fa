//! The memory functions of `granule_arch::memory` against loops over bytes.

use core::hint::black_box;

use crate::harness::{Test, target_test};

unsafe extern "C" {
    fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8;
    fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8;
    fn memset(to: *mut u8, byte: i32, bytes: usize) -> *mut u8;
    fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32;
}

const SIZE: usize = 768;

/// Different bytes all over, so that one in a wrong place shows.
fn pattern() -> [u8; SIZE] {
    core::array::from_fn(|index| (index * 7 + index / 251) as u8)
}

/// The index of the first byte that differs. By `black_box`, lest the compiler turn the loop into what it is to check.
fn first_difference(left: &[u8], right: &[u8]) -> Option<usize> {
    left.iter().zip(right).position(|(left, right)| black_box(*left) != black_box(*right))
}

/// Lengths around every limit between two ways to do it.
fn lengths() -> impl Iterator<Item = usize> {
    (0..=34).chain([47, 48, 49, 63, 64, 65, 66, 79, 80, 81, 127, 128, 129, 130, 191, 192, 193, 200, 256, 257])
}

target_test!(moves_are_right_for_any_overlap, limit(30));
fn moves_are_right_for_any_overlap(t: &mut Test) {
    let from = 260;
    for length in lengths() {
        for distance in [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 250] {
            for to in [from - distance, from + distance] {
                let (mut moved, original) = (pattern(), pattern());
                let wanted: [u8; SIZE] = core::array::from_fn(|index| {
                    let source = if (to..to + length).contains(&index) { index - to + from } else { index };
                    original[source]
                });
                let base = moved.as_mut_ptr();
                let function = if distance >= length { memcpy } else { memmove };
                // SAFETY: both ranges are inside the array; where they overlap it is memmove.
                let result = unsafe { function(base.add(to), base.add(from), length) };
                let right = result == base.wrapping_add(to) && first_difference(&moved, &wanted).is_none();
                if !right {
                    t.equal("length, from, to", Some((length, from, to)), None);
                    return;
                }
            }
        }
    }
    t.check("all moves", true);
}

target_test!(fills_touch_what_they_are_told_to);
fn fills_touch_what_they_are_told_to(t: &mut Test) {
    for length in lengths() {
        for start in 64..81 {
            let mut filled = pattern();
            // SAFETY: the range is inside the array.
            let result = unsafe { memset(filled.as_mut_ptr().add(start), 0x1fe, length) };
            let original = pattern();
            let wanted: [u8; SIZE] =
                core::array::from_fn(
                    |index| {
                        if (start..start + length).contains(&index) { 0xfe } else { original[index] }
                    },
                );
            let right =
                result == filled.as_mut_ptr().wrapping_add(start) && first_difference(&filled, &wanted).is_none();
            if !right {
                t.equal("length, start", Some((length, start)), None);
                return;
            }
        }
    }
    t.check("all fills", true);
}

target_test!(comparisons_find_the_first_difference);
fn comparisons_find_the_first_difference(t: &mut Test) {
    for length in 0..70 {
        for offset in 0..9 {
            for differs in 0..=length {
                let (mut left, mut right) = ([7u8; 96], [7u8; 96]);
                if differs < length {
                    left[differs] = 200;
                    // A later one the other way round must not count.
                    right[offset + differs + 1..].fill(250);
                }
                // SAFETY: both ranges are inside the arrays.
                let (there, back) = unsafe {
                    let (left, right) = (left.as_ptr(), right.as_ptr().add(offset));
                    (memcmp(left, right, length), memcmp(right, left, length))
                };
                let sign = i32::from(differs < length);
                if (there.signum(), back.signum()) != (sign, -sign) {
                    t.equal("length, offset, difference", Some((length, offset, differs)), None);
                    return;
                }
            }
        }
    }
    t.check("all comparisons", true);
}
