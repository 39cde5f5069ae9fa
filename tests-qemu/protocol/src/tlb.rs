//! The passes of the suite `tlb`: reads of 2 MiB that the guest marks for QEMU's plugin `tests-qemu/plugin/tlb.c`.

const PAGE: u64 = 4 << 10;
/// Bytes of a cache line.
const LINE: u64 = 64;
/// In scattered orders the next read is so many lines on, modulo the block: 317 pages and a line. 317 is about 512 by
/// the golden ratio, so pages that are near one another are read far apart: no page comes back before 385 others.
const STEP: u64 = 317 * (PAGE / LINE) + 1;

/// A leaf that maps what a pass reads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum TlbLeaf {
    /// 4 KiB.
    Page,
    /// A contiguous group of 16 pages.
    Group,
    /// 2 MiB.
    Block,
}

impl TlbLeaf {
    /// All, the smallest first.
    pub const ALL: [Self; 3] = [Self::Page, Self::Group, Self::Block];

    /// Bytes that it maps.
    pub const fn size(self) -> u64 {
        match self {
            Self::Page => PAGE,
            Self::Group => 16 * PAGE,
            Self::Block => TlbPass::BYTES,
        }
    }
}

/// The addresses that a pass reads, and their order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum TlbOrder {
    /// Each cache line, in order.
    InOrder,
    /// Each page once, in a scattered order.
    ScatteredPages,
    /// Each cache line, in a scattered order.
    ScatteredLines,
    /// As many pages as the TLB has entries, in order, and then once more: a check of the model, as the two below.
    CheckFits,
    /// One page more, in order, and then once more.
    CheckExceeds,
    /// The first page before each other page of the block: the entry of the first is never the least recently used.
    CheckRecent,
}

impl TlbOrder {
    /// All, in the order in which they run.
    pub const ALL: [Self; 6] = [
        Self::InOrder,
        Self::ScatteredPages,
        Self::ScatteredLines,
        Self::CheckFits,
        Self::CheckExceeds,
        Self::CheckRecent,
    ];

    /// From the start on, the bytes that hold all reads.
    pub const fn span(self) -> u64 {
        match self {
            Self::InOrder | Self::ScatteredPages | Self::ScatteredLines | Self::CheckRecent => TlbPass::BYTES,
            Self::CheckFits => TlbPass::ENTRIES * PAGE,
            Self::CheckExceeds => (TlbPass::ENTRIES + 1) * PAGE,
        }
    }

    /// Reads of a pass.
    pub const fn reads(self) -> u64 {
        match self {
            Self::InOrder | Self::ScatteredLines => self.span() / LINE,
            Self::ScatteredPages => self.span() / PAGE,
            Self::CheckFits | Self::CheckExceeds => 2 * self.span() / PAGE,
            Self::CheckRecent => 2 * (self.span() / PAGE - 1),
        }
    }

    /// Where the read after `nth` others is, from the start on.
    pub const fn offset(self, nth: u64) -> u64 {
        match self {
            Self::InOrder => nth * LINE,
            Self::ScatteredPages => nth * (STEP - 1) * LINE % self.span(),
            Self::ScatteredLines => nth * STEP * LINE % self.span(),
            Self::CheckFits | Self::CheckExceeds => nth * PAGE % self.span(),
            // 0, 1, 0, 2, 0, 3 and so on.
            Self::CheckRecent => nth % 2 * nth.div_ceil(2) * PAGE,
        }
    }
}

/// A pass, between the markers `hint #96` and `hint #97`. At the first x0 has the address of its 2 MiB, x1 their bytes
/// and x2 the size of their leaves; at the second x0 has its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct TlbPass {
    /// The addresses that it reads, and their order.
    pub order: TlbOrder,
    /// By what it is mapped.
    pub leaf: TlbLeaf,
}

impl TlbPass {
    /// The size of the memory that each pass reads.
    pub const BYTES: u64 = 2 << 20;
    /// Entries of the TLB: as the first-level data TLB of a Cortex-A76 has them, which is fully associative, with
    /// entries of 4 KiB, 64 KiB and 2 MiB among others (its manual, A5.2.2). With any number from 32, a block's
    /// groups, to 385 the rows are the same.
    pub const ENTRIES: u64 = 48;

    /// All, by their numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        TlbOrder::ALL.into_iter().flat_map(|order| TlbLeaf::ALL.map(|leaf| Self { order, leaf }))
    }

    /// Its number, from 0.
    pub const fn number(self) -> u64 {
        self.order as u64 * TlbLeaf::ALL.len() as u64 + self.leaf as u64
    }
}
