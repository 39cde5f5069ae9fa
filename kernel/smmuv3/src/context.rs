//! The context descriptor (IHI 0070, 5.4): which tables a stream is translated by, and how.

/// A context descriptor: eight words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ContextDescriptor(pub [u64; 8]);
