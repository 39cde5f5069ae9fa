//! The entry at one address: the walk for it, level by level, and what it translates to.

use core::fmt;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Kind, bits};

use crate::cursor::{Cursor, Marks};
use crate::geometry::Geometry;
use crate::mmu::Mmu;
use crate::runs::leaf_size;
use crate::tables::PageTables;

/// One level of the walk for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step {
    /// The level: 3 is the last.
    pub level: u8,
    /// The table that was read.
    pub table: PhysAddr,
    /// The index of the entry in it.
    pub index: usize,
    /// The entry.
    pub descriptor: Descriptor,
    /// Its kind at this level.
    pub kind: Kind,
}

/// `level 3  0x40324000[1]  0x00f8000048001f0f  page 0x48001000, …`: where the entry is, its value, and its meaning.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { level, table, index, descriptor, .. } = self;
        write!(f, "level {level}  {table}[{index}]  {descriptor:?}  {}", descriptor.decoded(*level))
    }
}

/// The walk for one address, level by level: an iterator over [`Step`]s that ends with the first that is no table.
///
/// Each entry is read once, when the iterator comes to it. Bits above the translated ones do not count: which half an
/// address belongs to is the caller's knowledge, as it is TTBR0's and TTBR1's on the machine.
pub struct Walk<'a, M: Mmu> {
    tables: PageTables<'a, M>,
    address: VirtAddr,
    /// Where the next entry is.
    next: Option<Cursor<'a, M>>,
}

impl<M: Mmu> Iterator for Walk<'_, M> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let mut place = self.next.take()?;
        let (level, table) = (place.level(), place.table());
        let index = M::Geometry::index(self.address, level);
        let descriptor = self.tables.mmu().load(&place.cells()[index]);
        if place.follow(descriptor).is_ok() {
            self.next = Some(place);
        }
        let kind = descriptor.kind(M::Geometry::level_entries(level));
        Some(Step { level, table: table.address(), index, descriptor, kind })
    }
}

/// The translation of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The physical address, offset included.
    pub physical: PhysAddr,
    /// The leaf.
    pub descriptor: Descriptor,
    /// The leaf's level.
    pub level: u8,
    /// Bytes that the leaf translates; of the whole group where it is contiguous.
    pub leaf_size: u64,
    /// Whether the hardware would use it; a present-invalid leaf describes a mapping all the same.
    pub valid: bool,
    /// Whether a table on the way forbids execution at EL1 (PXNTable).
    pub execution_forbidden_above: bool,
}

/// The entry where the walk for an address ends, valid or not.
pub struct Entry<'a, M: Mmu> {
    /// The whole table that it is in.
    pub table: &'a [M::Cell],
    /// Its index there.
    pub index: usize,
    /// Its value when it was read: no table descriptor.
    pub descriptor: Descriptor,
    /// Its level.
    pub level: u8,
    /// The bits that any table descriptor on the way has: PXNTable and UXNTable hold for all below.
    pub inherited: u64,
}

impl<'a, M: Mmu> PageTables<'a, M> {
    /// The walk for `address`, level by level.
    pub fn walk(&self, address: VirtAddr) -> Walk<'a, M> {
        Walk { tables: *self, address, next: Some(Cursor::at_root(self)) }
    }

    /// The entry where the walk for `address` ends, valid or not.
    pub fn entry(&self, address: VirtAddr) -> Entry<'a, M> {
        let (place, descriptor) = Cursor::at_root(self).end_of_walk(address, Marks::Keep);
        let (table, level, inherited) = (place.cells(), place.level(), place.inherited);
        Entry { table, index: M::Geometry::index(address, level), descriptor, level, inherited }
    }

    /// The translation of `address`, valid or present-invalid; `None` where nothing is mapped.
    pub fn translate(&self, address: VirtAddr) -> Option<Translation> {
        let Entry { descriptor, level, inherited, .. } = self.entry(address);
        let is_leaf = descriptor.kind(M::Geometry::level_entries(level)) == Kind::Leaf;
        is_leaf.then(|| Translation {
            physical: descriptor.address() + (address.0 & (M::Geometry::entry_size(level) - 1)),
            descriptor,
            level,
            leaf_size: leaf_size::<M::Geometry>(descriptor, level),
            valid: descriptor.is_valid(),
            execution_forbidden_above: inherited & bits::PXNTABLE != 0,
        })
    }
}
