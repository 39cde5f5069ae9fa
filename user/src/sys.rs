//! The system call itself.

#![allow(unsafe_code, reason = "system calls, and memory that they map")]

use granule_abi::Errno;

/// Makes a system call and returns what x0 holds then.
///
/// # Safety
/// The call does nothing that the program's Rust code does not expect: it maps, unmaps and writes no memory that
/// belongs to other code.
#[inline(always)]
pub unsafe fn raw(number: usize, arguments: [u64; 6]) -> u64 {
    #[cfg(target_arch = "aarch64")]
    {
        let [x0, x1, x2, x3, x4, x5] = arguments;
        let result;
        // SAFETY: a system call changes x0 alone; what it does to memory is the caller's promise.
        unsafe {
            core::arch::asm!(
                "svc #0",
                in("x8") number, inlateout("x0") x0 => result,
                in("x1") x1, in("x2") x2, in("x3") x3, in("x4") x4, in("x5") x5,
                options(nostack)
            );
        }
        result
    }
    #[cfg(not(target_arch = "aarch64"))]
    unreachable!("call {number} with {arguments:x?}: these programs run on arm64 alone")
}

/// The result in a call's x0.
///
/// # Errors
/// The call failed.
///
/// # Panics
/// With an error that Granule does not have.
pub fn result(x0: u64) -> Result<u64, Errno> {
    match (x0 as i64).checked_neg() {
        Some(number @ 1..4096) => Err(Errno::from_number(number as i32).unwrap_or_else(|| panic!("error {number}"))),
        _ => Ok(x0),
    }
}

/// Makes a system call.
///
/// # Errors
/// The call's.
///
/// # Safety
/// As for [`raw`].
#[inline(always)]
pub unsafe fn call(number: usize, arguments: [u64; 6]) -> Result<u64, Errno> {
    // SAFETY: the caller's promise.
    result(unsafe { raw(number, arguments) })
}

#[cfg(test)]
mod tests {
    use super::result;
    use granule_abi::Errno;

    #[test]
    fn only_the_last_4095_values_are_errors() {
        assert_eq!(result(0), Ok(0));
        assert_eq!(result(-38_i64 as u64), Err(Errno::ENOSYS));
        assert_eq!(result(-4096_i64 as u64), Ok(-4096_i64 as u64));
        assert_eq!(result(1 << 63), Ok(1 << 63));
    }
}
