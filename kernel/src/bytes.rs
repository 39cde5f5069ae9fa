//! Bytes on the heap where it may run out: `Vec`'s own ways to grow end in a panic then, also where room was reserved
//! and they never grow.

#![allow(unsafe_code, reason = "sets the length of a vector whose bytes are initialised")]

use alloc::vec::Vec;

use crate::mm::OutOfMemory;

/// Appends `more`.
///
/// # Errors
/// Memory has run out; `bytes` are as they were.
#[inline(never)]
pub fn append(bytes: &mut Vec<u8>, more: &[u8]) -> Result<(), OutOfMemory> {
    bytes.try_reserve(more.len()).map_err(|_| OutOfMemory)?;
    let length = bytes.len() + more.len();
    for (place, byte) in bytes.spare_capacity_mut().iter_mut().zip(more) {
        place.write(*byte);
    }
    // SAFETY: there is room for all of `more`, so that each byte up to here was written.
    unsafe { bytes.set_len(length) };
    Ok(())
}

/// `length` zeros.
///
/// # Errors
/// Memory has run out.
pub fn zeros(length: usize) -> Result<Vec<u8>, OutOfMemory> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length).map_err(|_| OutOfMemory)?;
    for place in bytes.spare_capacity_mut().iter_mut().take(length) {
        place.write(0);
    }
    // SAFETY: there is room for them, and each was written.
    unsafe { bytes.set_len(length) };
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{append, zeros};

    #[test]
    fn bytes_are_appended_whole_or_not_at_all() {
        let mut bytes = zeros(2).unwrap();
        append(&mut bytes, b"abc").unwrap();
        append(&mut bytes, b"").unwrap();
        assert_eq!(bytes, b"\0\0abc");
        assert!(zeros(usize::MAX).is_err());
    }
}
