//! Page tables of the Arm architecture, changed exactly.
//!
//! Walk, map, unmap, change permissions, split and print, for VMSAv8-64 stage 1 tables (Arm ARM D8), each with the
//! barriers and TLB invalidations that the architecture asks for and no more.
//!
//! - 4, 16 and 64 KiB granules, and a tiny geometry whose whole state space a test can visit
//! - blocks and contiguous groups wherever alignment allows, and split while they are in use where a change needs it
//! - one source for the metal, the host and the models: everything is generic over [`Mmu`] and [`Tlb`]
//! - a permission change over N pages costs two DSB, one ISB and the fewest TLBIs; one that only makes entries valid,
//!   none
//! - each call checks and takes its tables first, then changes; the changing half cannot fail
//! - no value of [`Attributes`] or [`Change`] makes a leaf writable and executable at EL1
//! - code that has a tree to look at changes none of it: that takes a machine that [`Stores`]
//! - no allocation, no statics; raw memory is accessed by [`metal`] alone, and each contract is `unsafe` to make
//!
//! # Example, on the host machine
//! ```
//! use granule_arch::{addr::{PhysAddr, VirtAddr}, descriptor::{Attributes, MemoryType}};
//! use granule_pgtable::{Change, Granule4K, Lazy, PageRange, Shape, WholeLeaves, host::HostMachine};
//!
//! let machine = HostMachine::<Granule4K>::new(16);
//! let (mmu, tables) = (machine.mmu(), machine.page_tables());
//! let range = PageRange::from_pages(VirtAddr(0xffff_8000_0000_0000), 3)?;
//! let lazy = Lazy::new(mmu); // flushes the barriers of newly valid entries on drop
//! let data = Attributes::kernel_data(MemoryType::Normal);
//! tables.map(&lazy, range, PhysAddr(0x4000_0000), data, Shape::PAGES, &mut machine.frames())?;
//! let flush = tables.update(&lazy, range, Change::READ_ONLY, WholeLeaves)?;
//! lazy.invalidate(machine.tlb(), [flush]); // DSB ISHST; TLBI; DSB ISH; ISB
//! assert!(!tables.translate(VirtAddr(0xffff_8000_0000_1000)).unwrap().descriptor.is_writable());
//! # Ok::<(), granule_pgtable::Error>(())
//! ```
//!
//! # Concurrency
//! A range has one owner, and only the owner calls `map`, `unmap` and `update` for it; owners of disjoint ranges need
//! no lock among them: their entries are different cells, and a table that two need is linked by compare-exchange.
//! Owners share a block or contiguous group of which each owns a part: [`PageTables::split`] makes the parts separate.
//! Reading (`walk`, `translate`, `dump`, `findings`) is free at any time.
//!
//! Tables stay linked once they are, unless the tree has a [`Reclaimer`]. Then every walk is announced
//! ([`announce`]), whatever it is for.
//!
//! [`Attributes`]: granule_arch::descriptor::Attributes

#![no_std]
#![deny(unsafe_code)]

#[cfg(not(target_os = "none"))]
extern crate std;

pub mod announce;
mod cells;
mod code;
pub mod collapse;
mod cursor;
mod dump;
mod error;
mod findings;
mod flush;
pub mod geometry;
#[cfg(not(target_os = "none"))]
pub mod host;
mod lazy;
mod look;
mod map;
pub mod metal;
mod mmu;
mod operation;
mod permission;
mod range;
pub mod reclaim;
mod runs;
mod source;
mod split;
mod stale;
mod table_list;
mod tables;
mod unmap;
mod update;
mod walk;

pub use granule_arch;

pub use announce::{Announced, Grace, WalkWord};
pub use cells::{BlockCell, Cells, CellsOrBlock, CellsWalk, Dismantled, EnsureError, Visited};
pub use collapse::{Collapse, Collapser, Collapses, Handshake};
pub use dump::{Extent, GroupFault, LeafTotals, Size};
pub use error::Error;
pub use findings::{Finding, FindingKind, FindingTotals};
pub use flush::{Flush, Invalidation, Tables};
pub use geometry::{Geometry, Granule4K, Granule4KVa39, Granule16K, Granule64K, Tiny};
pub use lazy::{Lazy, Pending, pending_after};
pub use look::{LastTable, PageUpdate, Ready};
pub use map::{Execution, Leaves, Shape};
pub use mmu::{Feature, Mmu, Stores, Survey, Table, Tlb};
pub use operation::{CacheOperation, Operation};
pub use permission::Change;
pub use range::PageRange;
pub use reclaim::{Progress, Reclaimer};
pub use source::TableSource;
pub use split::{Cut, Entries, Lockless, RefuseSplits, Serialise, Split, Splits, Splitter, WholeLeaves};
pub use tables::PageTables;
pub use unmap::{Leaf, Unmapping};
pub use update::Checked;
pub use walk::{Entry, Step, Translation, Walk};

/// The examples of the README, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[doc = include_str!("../COMING_FROM_AARCH64_PAGING.md")]
pub mod coming_from_aarch64_paging {}
