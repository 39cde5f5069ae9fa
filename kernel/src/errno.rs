//! The errors of system calls: Linux's, from the definition that programs share.
//!
//! A leaf of the crate: everything below the system calls that has an answer for user space may name one.

pub use granule_abi::errno::Errno;

impl From<crate::mm::OutOfMemory> for Errno {
    fn from(_: crate::mm::OutOfMemory) -> Self {
        Self::ENOMEM
    }
}
