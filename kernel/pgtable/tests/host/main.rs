//! The algorithms on the plain host machine, through the public interface.
//!
//! - `map`, `unmap`, `update`, `dump`: what each call does and refuses
//! - `barriers`: the stream of writes, barriers and invalidations that each call makes, and a checker of it with teeth
//! - `alias`: a range whose frames are mapped a second time, where the same may be written
//! - `cells`: tables for an owner that writes the entries itself
//! - `at_once`: changes that take one look, with what is split on the way
//! - `split`: what a split makes of each leaf at each end, and what it leaves alone; who wins and who loses
//! - `interrupt`: an interrupt at every operation of a call, whose handler makes calls of its own
//! - `collapse`: what tables become where all entries are alike, and an owner that comes by at every operation
//! - `findings`: what is wrong or could be larger is found, and nothing else
//! - `reclaim`: which tables are empty, and when they are freed
//! - `reserved`: encodings that mean nothing at their level
//! - `code`: the stream of cache maintenance and writes where pages become executable
//! - `metal`: the ready machine, with the MMU off and on
//! - `unmap_lazily`: the two halves of an unmapping whose invalidation is left for later
//! - `vouched`: the calls that have a contract, for all of these
//! - `random`: long sequences of calls against a plain map of page → attributes, in every geometry

/// Each of these tests, in every geometry.
macro_rules! in_every_geometry {
    ($($name:ident),*) => {
        $(mod $name {
            use granule_pgtable::{Granule4K, Granule4KVa39, Granule16K, Granule64K, Tiny};
            #[test]
            fn granule_4k() { super::$name::<Granule4K>(); }
            #[test]
            fn granule_4k_va39() { super::$name::<Granule4KVa39>(); }
            #[test]
            fn granule_16k() { super::$name::<Granule16K>(); }
            #[test]
            fn granule_64k() { super::$name::<Granule64K>(); }
            #[test]
            fn tiny() { super::$name::<Tiny>(); }
        })*
    };
}

mod at_once;
mod barriers;
mod calls;
mod cells;
mod code;
mod collapse;
mod dump;
mod findings;
mod interrupt;
mod map;
mod metal;
mod plain;
mod random;
mod reclaim;
mod reserved;
mod split;
mod unmap;
mod unmap_lazily;
mod update;
mod vouched;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_pgtable::host::HostMachine;
use granule_pgtable::{
    Change, Error, Execution, Flush, Geometry, Lazy, Leaves, Lockless, PageRange, PageTables, Shape, Split, Splits,
    Stores, TableSource,
};

const DATA: Attributes = Attributes::kernel_data(MemoryType::Normal);
const RODATA: Attributes = Attributes::kernel_rodata(MemoryType::Normal);
const TEXT: Attributes = Attributes::kernel_text(MemoryType::Normal);
const LARGEST: Shape = Shape { leaves: Leaves::Largest, execution: Execution::ByLeaf };

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The upper half of 48-bit geometries.
const BASE: VirtAddr = VirtAddr(0xffff_8000_0000_0000);

#[track_caller]
fn range<G: Geometry>(start: VirtAddr, size: u64) -> PageRange<G> {
    PageRange::new(start, size).unwrap()
}

/// A change that splits, without a lock, what the range cuts; and what it has split.
fn update_splitting<M: Stores>(
    tables: &PageTables<'_, M>,
    lazy: &Lazy<'_, M>,
    range: PageRange<M::Geometry>,
    change: Change,
    source: &mut impl TableSource,
) -> Result<(Flush<M::Geometry>, Splits), Error> {
    let mut splitter = Split::new(&Lockless, source);
    let flush = tables.update(lazy, range, change, &mut splitter)?;
    Ok((flush, splitter.splits()))
}

/// Maps in a section of its own.
fn map<G: Geometry>(
    machine: &HostMachine<G>,
    range: PageRange<G>,
    physical: u64,
    attributes: Attributes,
    shape: Shape,
) -> Result<(), Error> {
    let lazy = Lazy::new(machine.mmu());
    machine.page_tables().map(&lazy, range, PhysAddr(physical), attributes, shape, &mut machine.frames())
}

/// The leaf sizes of `range`, one for each extent that `dump` shows.
fn leaf_sizes<G: Geometry>(machine: &HostMachine<G>, range: PageRange<G>) -> Vec<(u64, u64)> {
    let mut sizes = Vec::new();
    machine.page_tables().dump(range, |extent| sizes.push((extent.leaf_size, extent.size / extent.leaf_size)));
    sizes
}
