//! Linux's names, as its headers give them to a C program, and those of this crate that several programs use.
//!
//! It is the one module that programs import as a whole. A name in capitals, or of a structure of the kernel's, is
//! Linux's. A program that defines one of the names by itself means its own.

pub use core::ffi::CStr;
pub use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};

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
    UFFD_FEATURE_EVENT_UNMAP, UFFD_FEATURE_EXACT_ADDRESS, UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MOVE,
    UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_SIGBUS, UFFD_FEATURE_THREAD_ID, UFFD_FEATURE_WP_ASYNC,
    UFFD_FEATURE_WP_HUGETLBFS_SHMEM, UFFD_FEATURE_WP_UNPOPULATED, UFFD_PAGEFAULT_FLAG_MINOR, UFFD_PAGEFAULT_FLAG_WP,
    UFFD_PAGEFAULT_FLAG_WRITE, UFFD_USER_MODE_ONLY, UFFDIO_API, UFFDIO_CONTINUE, UFFDIO_CONTINUE_MODE_DONTWAKE,
    UFFDIO_CONTINUE_MODE_WP, UFFDIO_COPY_MODE_DONTWAKE, UFFDIO_COPY_MODE_WP, UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES,
    UFFDIO_MOVE_MODE_DONTWAKE, UFFDIO_REGISTER_MODE_MINOR, UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP,
    UFFDIO_WRITEPROTECT_MODE_DONTWAKE, UFFDIO_WRITEPROTECT_MODE_WP, ioctl_bit,
};

pub use crate::answers::{apart, bytes, equal, holds, present, status, wrong};
pub use crate::memory::{
    FAR, KERNEL, MIB, NOWHERE, PAGE, PRIVATE, RET, RW, SHARED, TAGGED, TOP, locks, madvise, map, mincore, mmap,
    mprotect, munmap, shared,
};
pub use crate::owned::{File, HERE, PUNCH_HOLE, Pages};
pub use crate::probe::{Fault, behind_the_end, not_allowed, not_mapped};
pub use crate::random::Random;
pub use crate::signal::{Handler, handle, interrupt_by, is_pending, mask, set_of, set_without_handler};
pub use crate::thread::{Thread, all_at_once, beside, futex_wait, futex_wake};
pub use crate::time::MILLISECOND;
pub use crate::userfault::{Pager, WRITE_PROTECTION};
pub use crate::waiting::{asleep_until, until, until_zombie, while_signalled, with_longer_times};
pub use crate::{
    Start, entry, instruction, memory, offend, own, parts, println, probe, proc, process, signal, sys, thread, time,
};
