//! Memory: frames, page blocks, the heap, what the kernel maps, and the spaces of programs.

// Running out of memory is an error value here: nothing may abort. (Tests may: the host has memory.)
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

pub mod asid;
pub mod context;
pub mod counted;
pub mod early;
pub mod frame;
pub mod frame_limit;
pub mod heap;
pub mod kernel;
pub mod layout;
pub mod maintenance;
pub mod notifier;
pub mod page_block;
pub mod paged;
pub mod pool;
pub mod space;
pub mod tag_storage;
pub mod tlb;

use thiserror::Error;

/// Memory ran out. Always a value that reaches the caller; nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("out of memory")]
pub struct OutOfMemory;

/// For trees that only the kernel adds tables to: there are no blocks in them.
impl From<granule_pgtable::EnsureError> for OutOfMemory {
    fn from(error: granule_pgtable::EnsureError) -> Self {
        match error {
            granule_pgtable::EnsureError::OutOfTables => Self,
            granule_pgtable::EnsureError::Block => panic!("a block in a tree whose leaves are pages"),
        }
    }
}
