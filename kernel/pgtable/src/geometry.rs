//! The shape of a table tree: levels, entries, block and group sizes, as constants.
//!
//! Arm ARM D8.2 gives the levels of each translation granule, D8.7.1 the sizes of contiguous groups. The algorithms are
//! generic over [`Geometry`], so one source serves the CPU's three granules and [`Tiny`], whose whole state space a
//! test can visit. Levels count downwards as the architecture counts them: 3 is always the last.

use core::fmt::Debug;

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::LevelEntries;
use granule_arch::mmu::Half;
use granule_arch::tlbi::Granule;

/// The last level of every geometry: entries there are pages.
pub const LAST_LEVEL: u8 = 3;

/// The constants of one kind of table tree, with what follows from them.
///
/// Everything is known at compile time: a shift by `G::shift(level)` costs what a written-out constant costs.
pub trait Geometry: Copy + Debug + PartialEq + Eq + 'static {
    /// log2 of the bytes in a page.
    const PAGE_SHIFT: u32;
    /// log2 of the entries in a table below the root.
    const INDEX_BITS: u32;
    /// The level of the root table.
    const FIRST_LEVEL: u8;
    /// log2 of the entries in the root table; a root may be smaller than the other tables.
    const ROOT_BITS: u32;
    /// The first level at which a leaf (a block) is legal.
    const FIRST_BLOCK_LEVEL: u8;
    /// log2 of the entries in a contiguous group, by level; 0 where no groups are used.
    ///
    /// Groups of the 1 GiB blocks of the 4 KiB granule (16 GiB) are legal and left out: no split path would ever
    /// start from one, and no machine here has the memory for it.
    const GROUP_BITS: [u32; 4];

    /// Bytes in a page.
    const PAGE_SIZE: u64 = 1 << Self::PAGE_SHIFT;
    /// Bits of an address that the tree translates.
    const VA_BITS: u32 =
        Self::PAGE_SHIFT + Self::INDEX_BITS * (LAST_LEVEL - Self::FIRST_LEVEL) as u32 + Self::ROOT_BITS;
    /// The granule of its pages, as TLBI operands and TCR_EL1 name it.
    const GRANULE: Granule = match Self::PAGE_SHIFT {
        12 => Granule::Size4K,
        14 => Granule::Size16K,
        16 => Granule::Size64K,
        _ => panic!("no granule has such pages"),
    };
    /// A half of the address space that it translates: for [`granule_arch::mmu::tcr`].
    const HALF: Half = Half::On { granule: Self::GRANULE, va_bits: Self::VA_BITS };

    /// log2 of the bytes that one entry of `level` translates.
    #[inline(always)]
    fn shift(level: u8) -> u32 {
        Self::PAGE_SHIFT + Self::INDEX_BITS * (LAST_LEVEL - level) as u32
    }

    /// Bytes that one entry of `level` translates.
    #[inline(always)]
    fn entry_size(level: u8) -> u64 {
        1 << Self::shift(level)
    }

    /// Entries in a table of `level`.
    #[inline(always)]
    fn entries(level: u8) -> usize {
        1 << if level == Self::FIRST_LEVEL { Self::ROOT_BITS } else { Self::INDEX_BITS }
    }

    /// The index of the entry that translates `address` in its table of `level`. Bits above [`Self::VA_BITS`] do not
    /// count.
    #[inline(always)]
    fn index(address: VirtAddr, level: u8) -> usize {
        (address.0 >> Self::shift(level)) as usize & (Self::entries(level) - 1)
    }

    /// log2 of the entries in a contiguous group of `level`.
    #[inline(always)]
    fn group_bits(level: u8) -> u32 {
        Self::GROUP_BITS[level as usize]
    }

    /// Entries in a contiguous group of `level`; 1 where there are none.
    #[inline(always)]
    fn group_entries(level: u8) -> usize {
        1 << Self::group_bits(level)
    }

    /// Bytes that a contiguous group of `level` translates.
    #[inline(always)]
    fn group_size(level: u8) -> u64 {
        Self::entry_size(level) << Self::group_bits(level)
    }

    /// Whether a leaf is legal at `level`.
    #[inline(always)]
    fn has_leaves(level: u8) -> bool {
        level >= Self::FIRST_BLOCK_LEVEL
    }

    /// The kinds of entries that a table of `level` may hold: how to decode a descriptor that was read there.
    #[inline(always)]
    fn level_entries(level: u8) -> LevelEntries {
        match level {
            LAST_LEVEL => LevelEntries::Pages,
            _ if Self::has_leaves(level) => LevelEntries::TablesAndBlocks,
            _ => LevelEntries::Tables,
        }
    }
}

macro_rules! geometry {
    ($(#[$doc:meta])* $name:ident: pages $page:expr, index $index:expr, root $root:expr, levels $first:expr,
     blocks $block:expr, groups $groups:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name;

        impl Geometry for $name {
            const PAGE_SHIFT: u32 = $page;
            const INDEX_BITS: u32 = $index;
            const ROOT_BITS: u32 = $root;
            const FIRST_LEVEL: u8 = $first;
            const FIRST_BLOCK_LEVEL: u8 = $block;
            const GROUP_BITS: [u32; 4] = $groups;
        }
    };
}

geometry!(
    /// The 4 KiB granule, 48-bit addresses: 1 GiB and 2 MiB blocks, groups of 16 (32 MiB, 64 KiB). The kernel's own.
    Granule4K: pages 12, index 9, root 9, levels 0, blocks 1, groups [0, 0, 4, 4]
);
geometry!(
    /// The 4 KiB granule, 39-bit addresses: the same blocks and groups, and one level less.
    Granule4KVa39: pages 12, index 9, root 9, levels 1, blocks 1, groups [0, 0, 4, 4]
);
geometry!(
    /// The 16 KiB granule, 48-bit addresses: 32 MiB blocks, groups of 32 of them (1 GiB) and of 128 pages (2 MiB).
    Granule16K: pages 14, index 11, root 1, levels 0, blocks 2, groups [0, 0, 5, 7]
);
geometry!(
    /// The 64 KiB granule, 48-bit addresses: 512 MiB blocks, groups of 32 (16 GiB, 2 MiB).
    Granule64K: pages 16, index 13, root 6, levels 1, blocks 2, groups [0, 0, 5, 5]
);
geometry!(
    /// Two levels of four entries, groups of two, 4 KiB pages: sixteen pages in all. For tests that try everything.
    Tiny: pages 12, index 2, root 2, levels 2, blocks 2, groups [0, 0, 1, 1]
);

const _: () = {
    // Those of 48 bits translate the same; a wrong constant shows here first.
    assert!(Granule4K::VA_BITS == 48 && Granule16K::VA_BITS == 48 && Granule64K::VA_BITS == 48);
    assert!(Granule4KVa39::VA_BITS == 39 && Tiny::VA_BITS == 16);
};

#[cfg(test)]
mod tests {
    use super::{Geometry, Granule4K, Granule16K, Granule64K, Tiny};
    use granule_arch::addr::VirtAddr;

    #[test]
    fn sizes_are_those_of_the_architecture() {
        assert_eq!([1, 2, 3].map(Granule4K::entry_size), [1 << 30, 2 << 20, 4 << 10]);
        assert_eq!([2, 3].map(Granule4K::group_size), [32 << 20, 64 << 10]);
        assert_eq!([2, 3].map(Granule16K::entry_size), [32 << 20, 16 << 10]);
        assert_eq!([2, 3].map(Granule16K::group_size), [1 << 30, 2 << 20]);
        assert_eq!([2, 3].map(Granule64K::entry_size), [512 << 20, 64 << 10]);
        assert_eq!([2, 3].map(Granule64K::group_size), [16 << 30, 2 << 20]);
        assert_eq!([2, 3].map(Tiny::group_size), [32 << 10, 8 << 10]);
    }

    #[test]
    fn an_index_ignores_the_bits_above_the_tree() {
        let address = VirtAddr(0xffff_8000_8040_3000);
        assert_eq!([0, 1, 2, 3].map(|level| Granule4K::index(address, level)), [256, 2, 2, 3]);
        assert_eq!(Granule16K::index(address, 0), 1);
        assert_eq!(Granule64K::index(address, 1), 32);
    }
}
