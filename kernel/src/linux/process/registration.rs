//! The memory that a thread has registered for restartable sequences: `rseq` has what becomes of it.

use core::mem::offset_of;

use granule_abi::process::Rseq;

/// The memory that a thread has registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registration {
    /// Its address; 0 for none.
    pub at: u64,
    /// Its bytes.
    pub bytes: u32,
    /// The word before the abort of each sequence.
    pub signature: u32,
}

impl Registration {
    /// Bytes of the memory at least, and its alignment.
    pub const SIZE: u64 = size_of::<Rseq>() as u64;
    /// Bytes of it that have a meaning.
    pub const KNOWN: u64 = offset_of!(Rseq, rest) as u64;
    /// None.
    pub const NONE: Self = Self { at: 0, bytes: 0, signature: 0 };
}
