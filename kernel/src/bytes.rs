//! Bytes, and lists, on the heap where it may run out: `Vec`'s own ways to grow end in a panic then, also where room was reserved
//! and they never grow.

#![allow(unsafe_code, reason = "sets the length of a vector whose bytes are initialised")]

use alloc::collections::TryReserveError;
use alloc::vec::Vec;

use crate::mm::OutOfMemory;

/// Appends `more`.
///
/// # Errors
/// Memory has run out; `bytes` are as they were.
#[inline(never)]
pub fn append(bytes: &mut Vec<u8>, more: &[u8]) -> Result<(), TryReserveError> {
    bytes.try_reserve(more.len())?;
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
pub fn zeros(length: usize) -> Result<Vec<u8>, TryReserveError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length)?;
    for place in bytes.spare_capacity_mut().iter_mut().take(length) {
        place.write(0);
    }
    // SAFETY: there is room for them, and each was written.
    unsafe { bytes.set_len(length) };
    Ok(bytes)
}

/// `count` values, each of which `make` makes of its index.
///
/// # Errors
/// Memory has run out, or what `make` returns.
pub fn collected<T, E: From<OutOfMemory>>(
    count: usize,
    mut make: impl FnMut(usize) -> Result<T, E>,
) -> Result<Vec<T>, E> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
    for index in 0..count {
        let value = make(index)?;
        if let Some(place) = values.spare_capacity_mut().first_mut() {
            place.write(value);
            // SAFETY: there is room for it, and it was just written.
            unsafe { values.set_len(index + 1) };
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::{append, collected, zeros};
    use crate::mm::OutOfMemory;

    #[test]
    fn lists_are_made_in_order_and_dropped_where_one_value_fails() {
        assert_eq!(collected(3, Ok::<_, OutOfMemory>).unwrap(), [0, 1, 2]);
        let witness = std::rc::Rc::new(());
        let failed = collected(3, |index| if index < 2 { Ok(witness.clone()) } else { Err(OutOfMemory) });
        assert!(failed.is_err() && std::rc::Rc::strong_count(&witness) == 1);
        assert!(collected(usize::MAX, |_| Ok::<_, OutOfMemory>(1_u64)).is_err());
    }

    #[test]
    fn bytes_are_appended_whole_or_not_at_all() {
        let mut bytes = zeros(2).unwrap();
        append(&mut bytes, b"abc").unwrap();
        append(&mut bytes, b"").unwrap();
        assert_eq!(bytes, b"\0\0abc");
        assert!(zeros(usize::MAX).is_err());
    }
}
