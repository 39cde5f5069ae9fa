//! The policy of an area for nodes, as its flags keep it.

/// A policy, in Linux's numbers: the mode, its flags, the home, and the nodes that it shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodePolicy(u32);

impl NodePolicy {
    /// None of its own.
    pub const DEFAULT: Self = Self(0);
    /// The bits of the mode and of its flags; a home; the nodes, of which arm64 has room for 16.
    const MODE: u32 = 0xe00f;
    const HOME: u32 = 1 << 4;
    const NODES: u32 = 16;

    /// Of a mode, with its flags, and nodes.
    pub const fn new(mode: u16, nodes: u16) -> Self {
        Self(mode as u32 & Self::MODE | (nodes as u32) << Self::NODES)
    }

    /// The mode, with its flags.
    pub const fn mode(self) -> u32 {
        self.0 & Self::MODE
    }

    /// The mode alone.
    pub(super) const fn kind(self) -> u32 {
        self.0 & 0xf
    }

    /// This policy, whose home is the one node.
    pub(super) const fn with_home(self) -> Self {
        Self(self.0 | Self::HOME)
    }

    /// The nodes that it shows.
    pub const fn nodes(self) -> u64 {
        (self.0 >> Self::NODES) as u64
    }

    pub(super) const fn word(self) -> u32 {
        self.0
    }

    pub(super) const fn of_word(word: u32) -> Self {
        Self(word)
    }
}
