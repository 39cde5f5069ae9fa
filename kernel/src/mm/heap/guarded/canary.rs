//! The canary: what is in a page around its object, so that a write there is found.

use core::ops::Range;

use granule_arch::addr::PAGE_SIZE;

/// Bytes of a word.
const BYTES: usize = 8;
/// Each word of it. A byte is 0xaa with the low bits of its address flipped, as in Linux: so neither what is copied from
/// one place of it to another nor a fill with 0xaa leaves it as it is.
pub(super) const WORD: u64 =
    u64::from_le_bytes([0xaa, 0xaa ^ 1, 0xaa ^ 2, 0xaa ^ 3, 0xaa ^ 4, 0xaa ^ 5, 0xaa ^ 6, 0xaa ^ 7]);
/// A page by its words.
pub(super) type Page = [u64; PAGE_SIZE / BYTES];

/// Where the first byte of `page` is, outside of the `object` in it, that is not the canary's.
#[inline(never)]
pub(super) fn first_damaged(page: &Page, object: Range<usize>) -> Option<usize> {
    let words = (0..PAGE_SIZE).step_by(BYTES).zip(page);
    words.filter(|(at, _)| *at < object.start || at + BYTES > object.end).find_map(|(start, word)| {
        let mut flipped = word ^ WORD;
        // The object's own bytes, where it begins or ends in this word, are anything.
        while flipped != 0 {
            let byte = flipped.trailing_zeros() as usize / 8;
            if !object.contains(&(start + byte)) {
                return Some(start + byte);
            }
            flipped &= !(0xff << (byte * 8));
        }
        None
    })
}
