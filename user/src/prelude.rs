//! Linux's names, as its headers give them to a C program, and those of this crate that every program uses.
//!
//! It is the one module that programs import as a whole. A name in capitals, or of a structure of the kernel's, is
//! Linux's.

pub use granule_abi::Errno::{self, *};
pub use granule_abi::file::*;
pub use granule_abi::limits::*;
pub use granule_abi::memory::*;
pub use granule_abi::number::*;
pub use granule_abi::process::*;
pub use granule_abi::signal::*;
pub use granule_abi::time::*;
// Without `Copy` and `Range`, which are names of Rust's too.
pub use granule_abi::userfaultfd::{
    Api, Message, UFFD_API, UFFD_EVENT_FORK, UFFD_EVENT_PAGEFAULT, UFFD_EVENT_REMAP, UFFD_EVENT_REMOVE,
    UFFD_EVENT_UNMAP, UFFD_FEATURE_EVENT_FORK, UFFD_FEATURE_EVENT_REMAP, UFFD_FEATURE_EVENT_REMOVE,
    UFFD_FEATURE_EVENT_UNMAP, UFFD_FEATURE_EXACT_ADDRESS, UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_SIGBUS,
    UFFD_FEATURE_THREAD_ID, UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_UNPOPULATED, UFFD_PAGEFAULT_FLAG_WP,
    UFFD_PAGEFAULT_FLAG_WRITE, UFFD_USER_MODE_ONLY, UFFDIO_API, UFFDIO_COPY_MODE_DONTWAKE, UFFDIO_COPY_MODE_WP,
    UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP, UFFDIO_WRITEPROTECT_MODE_DONTWAKE,
    UFFDIO_WRITEPROTECT_MODE_WP, ioctl_bit,
};

pub use crate::memory::{KERNEL, PAGE, PRIVATE, RW, SHARED};
pub use crate::{Start, entry, own, parts};
