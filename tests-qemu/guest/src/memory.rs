//! The memory functions of `granule_arch::memory` against loops over bytes: as they are called, and each way by itself
//! that the CPUs allow.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use core::hint::black_box;

use granule_arch::alternative;
use granule_arch::memory::branch;

use crate::harness::{Test, target_test};

type Move = unsafe extern "C" fn(*mut u8, *const u8, usize) -> *mut u8;
type Fill = unsafe extern "C" fn(*mut u8, i32, usize) -> *mut u8;

unsafe extern "C" {
    fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8;
    fn memmove(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8;
    fn memmove_by_pairs(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8;
    fn memmove_by_mops(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8;
    fn memset(to: *mut u8, byte: i32, bytes: usize) -> *mut u8;
    fn memset_by_pairs(to: *mut u8, byte: i32, bytes: usize) -> *mut u8;
    fn memset_by_blocks(to: *mut u8, byte: i32, bytes: usize) -> *mut u8;
    fn memset_by_mops(to: *mut u8, byte: i32, bytes: usize) -> *mut u8;
    fn memcmp(left: *const u8, right: *const u8, bytes: usize) -> i32;
}

fn has(identifier: u16) -> bool {
    granule::kernel().features().takes(identifier)
}

/// Whether the first instruction of some function that is a site of `identifier` jumps.
fn is_taken(function: *const (), identifier: u16) -> Option<bool> {
    let sites = alternative::records().iter().map(alternative::Record::site);
    let mut own =
        sites.filter(|site| site.identifier == identifier && site.address.0.wrapping_sub(function as u64) <= 4);
    let site = own.next()?;
    // SAFETY: an instruction of the kernel's text, which is readable.
    Some(unsafe { site.address.as_ptr::<u32>().read_volatile() } == site.instruction(true))
}

target_test!(the_way_is_what_the_cpus_allow);
fn the_way_is_what_the_cpus_allow(t: &mut Test) {
    let (copy, fill) = (memcpy as Move as *const (), memset as Fill as *const ());
    for (what, function, identifier) in [
        ("copies by MOPS", copy, branch::MOPS),
        ("fills by MOPS", fill, branch::MOPS),
        ("zeroes by DC ZVA", fill, branch::DC_ZVA),
    ] {
        t.equal(what, is_taken(function, identifier), Some(has(identifier)));
    }
    t.equal("as in machines.toml", Some(has(branch::MOPS)), crate::harness::has("mops"));
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
    (0..=34).chain([
        47, 48, 49, 63, 64, 65, 66, 79, 80, 81, 127, 128, 129, 130, 191, 192, 193, 200, 256, 257, 320, 383, 530,
    ])
}

target_test!(moves_are_right_for_any_overlap, limit(30));
fn moves_are_right_for_any_overlap(t: &mut Test) {
    for (name, function, there) in [
        ("memmove", memmove as Move, true),
        ("by pairs", memmove_by_pairs, true),
        ("by MOPS", memmove_by_mops, has(branch::MOPS)),
    ] {
        if there {
            moves(t, name, function);
        }
    }
}

/// Copies that do not overlap are memcpy's where `function` is memmove.
fn moves(t: &mut Test, name: &str, function: Move) {
    let from = 260;
    for length in lengths().filter(|&length| length <= 257) {
        for distance in [0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 250] {
            for to in [from - distance, from + distance] {
                let (mut moved, original) = (pattern(), pattern());
                let wanted: [u8; SIZE] = core::array::from_fn(|index| {
                    let source = if (to..to + length).contains(&index) { index - to + from } else { index };
                    original[source]
                });
                let base = moved.as_mut_ptr();
                let copy = name == "memmove" && distance >= length;
                let function = if copy { memcpy as Move } else { function };
                // SAFETY: both ranges are inside the array; where they overlap it is memmove.
                let result = unsafe { function(base.add(to), base.add(from), length) };
                let right = result == base.wrapping_add(to) && first_difference(&moved, &wanted).is_none();
                if !right {
                    t.equal("length, from, to", Some((name, length, from, to)), None);
                    return;
                }
            }
        }
    }
    t.check(name, true);
}

target_test!(fills_touch_only_their_range, limit(30));
fn fills_touch_only_their_range(t: &mut Test) {
    for (name, function, there) in [
        ("memset", memset as Fill, true),
        ("by pairs", memset_by_pairs, true),
        ("by blocks", memset_by_blocks, has(branch::DC_ZVA)),
        ("by MOPS", memset_by_mops, has(branch::MOPS)),
    ] {
        if there {
            fills(t, name, function, 0x1fe);
            fills(t, name, function, 0x100);
        }
    }
}

/// From every place in a block, for blocks of up to 64 bytes; `byte` has bits above the eight that count.
fn fills(t: &mut Test, name: &str, function: Fill, byte: i32) {
    let original = pattern();
    for length in lengths() {
        for start in 64..129 {
            let mut filled = original;
            // SAFETY: the range is inside the array.
            let result = unsafe { function(filled.as_mut_ptr().add(start), byte, length) };
            let inside = start..start + length;
            let wrong = |(index, (&now, &was)): (usize, (&u8, &u8))| {
                black_box(now) != if inside.contains(&index) { byte as u8 } else { was }
            };
            let right = result == filled.as_mut_ptr().wrapping_add(start)
                && !filled.iter().zip(&original).enumerate().any(wrong);
            if !right {
                t.equal("length, start", Some((name, length, start)), None);
                return;
            }
        }
    }
    t.check(name, true);
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
