//! The errors of system calls: Linux's, from the definition that programs share, and the conversions of the core's
//! errors to them.

pub use granule_abi::errno::Errno;

use crate::mm::OutOfMemory;
use crate::mm::space::SpaceError;
use crate::uaccess::AccessError;

impl From<OutOfMemory> for Errno {
    fn from(_: OutOfMemory) -> Self {
        Self::ENOMEM
    }
}

impl From<AccessError> for Errno {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Fault => Self::EFAULT,
            AccessError::Unaligned => Self::EINVAL,
        }
    }
}

impl From<SpaceError> for Errno {
    // Once for all calls, off their path of success.
    #[cold]
    #[inline(never)]
    fn from(error: SpaceError) -> Self {
        match error {
            SpaceError::Invalid => Self::EINVAL,
            SpaceError::NoMemory => Self::ENOMEM,
            SpaceError::NotPermitted => Self::EPERM,
            SpaceError::NotAllowed => Self::EACCES,
            SpaceError::NoMemoryFile => Self::ENODEV,
            SpaceError::Locked | SpaceError::Missing => Self::EBUSY,
            SpaceError::InUse => Self::EEXIST,
            SpaceError::NoRecords => Self::EAGAIN,
            SpaceError::Interrupted => Self::EINTR,
            SpaceError::Unusable | SpaceError::NoArea => Self::EFAULT,
            SpaceError::Poisoned => Self::EHWPOISON,
        }
    }
}
