//! A listing of the mappings, as ranges of like leaves.

use core::fmt;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Kind, bits};

use crate::cursor::Marks;
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::mmu::{Mmu, Survey};
use crate::range::PageRange;
use crate::runs::{Run, leaf_size};
use crate::tables::PageTables;

/// Leaves that follow one another in virtual memory, of one size, with the same attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first address.
    pub start: VirtAddr,
    /// Bytes.
    pub size: u64,
    /// The physical address that the first address translates to.
    pub physical: PhysAddr,
    /// Whether the physical memory is one piece too.
    pub physically_contiguous: bool,
    /// The leaves without their address: attributes, VALID, type, contiguity.
    pub attributes: Descriptor,
    /// Bytes of each leaf; a contiguous group counts as one.
    pub leaf_size: u64,
    /// The leaves' level.
    pub level: u8,
    /// Whether a table on the way forbids execution at EL1 (PXNTable).
    pub execution_forbidden_above: bool,
    /// How the contiguous groups that the leaves are in, or lie among, are misprogrammed.
    pub group_fault: Option<GroupFault>,
}

/// How a contiguous group is misprogrammed (Arm ARM D8.7.1). A TLB may hold any entry of a group for all of it, so it
/// may use what no entry has. The first that applies is reported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupFault {
    /// An entry has the Contiguous bit, and the geometry has no groups at this level.
    Level,
    /// Only some entries of the aligned group are leaves with the Contiguous bit. FEAT_BBM allows that for as long as
    /// another CPU splits the group ([`crate::split`]).
    Bit,
    /// Entries differ in attributes or permissions, or some are valid and others not. They may differ in what the
    /// hardware sets in one entry alone, the access flag and, with DBM, AP\[2\] of a dirty page, and in what it ignores:
    /// the software bits, and of entries that are not valid bits 62 to 59.
    Attributes,
    /// The output addresses do not follow one another, or do not begin at a multiple of the group's size.
    Address,
}

impl Extent {
    /// The last address.
    pub const fn last(&self) -> VirtAddr {
        VirtAddr(self.start.0 + (self.size - 1))
    }

    /// Whether EL1 may write through it.
    pub const fn is_writable(&self) -> bool {
        self.attributes.is_valid() && self.attributes.is_writable()
    }

    /// Whether EL1 may execute through it, tables on the way considered.
    pub const fn is_executable(&self) -> bool {
        self.attributes.is_valid() && self.attributes.is_executable() && !self.execution_forbidden_above
    }

    /// Whether `next` continues where this one ends, in the same way.
    fn continues_with(&self, next: &Self) -> bool {
        self.start.0.wrapping_add(self.size) == next.start.0
            && self.attributes == next.attributes
            && self.level == next.level
            && self.execution_forbidden_above == next.execution_forbidden_above
            && self.group_fault == next.group_fault
    }
}

/// As Linux's ptdump prints it, with the leaves that map it: `0xffff…-0xffff…  2M  2M x 1  RW NX …`. Memory types are
/// those of [`MAIR`](granule_arch::descriptor::MAIR).
impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, size, leaf_size, attributes, execution_forbidden_above, .. } = *self;
        write!(f, "{}", Row { start, size, leaf_size })?;
        write!(f, "{}{}", attributes.listed(), if execution_forbidden_above { " PXNTABLE" } else { "" })
    }
}

/// The columns with which lines about leaves begin: `0xffff…-0xffff…  2M  2M x 1  `.
pub(crate) struct Row {
    pub(crate) start: VirtAddr,
    pub(crate) size: u64,
    pub(crate) leaf_size: u64,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, size, leaf_size } = *self;
        let end = start.0.wrapping_add(size);
        let count = size.checked_div(leaf_size).unwrap_or_default();
        write!(f, "{:#018x}-{end:#018x} {:>8} {:>5} x {count:<6}", start.0, Size(size), Size(leaf_size))
    }
}

/// Bytes, printed in the largest unit in which they are a whole number, at the right end of the width: `64K`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let power = if self.0 == 0 { 0 } else { (self.0.trailing_zeros() / 10).min(3) };
        let unit = ["", "K", "M", "G"][power as usize];
        let width = f.width().unwrap_or(0).saturating_sub(unit.len());
        write!(f, "{:width$}{unit}", self.0 >> (10 * power))
    }
}

/// How many leaves of each size were found, present-invalid ones included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LeafTotals {
    /// By level: bytes in contiguous groups, bytes in leaves of their own.
    bytes: [u64; 2 * (LAST_LEVEL as usize + 1)],
    /// The sizes of these leaves.
    sizes: [u64; 2 * (LAST_LEVEL as usize + 1)],
}

impl LeafTotals {
    fn add(&mut self, level: u8, contiguous: bool, size: u64, bytes: u64) {
        let kind = 2 * level as usize + usize::from(!contiguous);
        if let (Some(of_kind), Some(total)) = (self.sizes.get_mut(kind), self.bytes.get_mut(kind)) {
            *of_kind = size;
            *total += bytes;
        }
    }

    /// `(bytes of a leaf, how many)`, from the largest; only sizes that occur. A contiguous group counts as one leaf.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let kinds = self.sizes.into_iter().zip(self.bytes).filter(|&(_, bytes)| bytes != 0);
        kinds.filter_map(|(size, bytes)| Some((size, bytes.checked_div(size)?)))
    }

    /// Bytes mapped, in leaves of all sizes.
    pub fn bytes(&self) -> u64 {
        self.bytes.iter().sum()
    }
}

/// `total 6M: 3 x 2M, 16 x 4K`.
impl fmt::Display for LeafTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "total {}", Size(self.bytes()))?;
        for (index, (size, count)) in self.iter().enumerate() {
            write!(f, "{} {count} x {}", if index == 0 { ":" } else { "," }, Size(size))?;
        }
        Ok(())
    }
}

impl<M: Mmu> PageTables<'_, M> {
    /// Calls `extent` for each run of like leaves in `range`, in ascending order; returns how many leaves of each size
    /// there were.
    ///
    /// Leaves that the range only touches count wholly. Other CPUs may change the tables concurrently; each entry is
    /// read once.
    #[inline(never)]
    pub fn dump(&self, range: PageRange<M::Geometry>, extent: impl FnMut(&Extent)) -> LeafTotals {
        let mut coalescing = Coalescing { extent, current: None, totals: LeafTotals::default() };
        self.runs(range, Marks::Keep).for_each(|run| coalescing.run(self.mmu(), &run));
        coalescing.end();
        coalescing.totals
    }
}

/// Puts like leaves together.
struct Coalescing<F: FnMut(&Extent)> {
    extent: F,
    current: Option<Extent>,
    totals: LeafTotals,
}

/// The fault of `group`, all entries of a naturally aligned group at `level`; `None` also where none of them has
/// the Contiguous bit.
#[cold]
fn fault_of_group<M: Mmu>(mmu: &M, group: &[M::Cell], level: u8) -> Option<GroupFault> {
    // Not the machine's own survey, whose bulk is for speed.
    let found = group.iter().fold(Survey::NOTHING, |found, cell| found.with(mmu.load(cell)));
    if found.any & bits::CONTIGUOUS == 0 {
        return None;
    }
    if group.len() == 1 {
        return Some(GroupFault::Level);
    }
    // An entry that is no leaf lacks the bit, or differs in VALID or in its type.
    if found.all & bits::CONTIGUOUS == 0 {
        return Some(GroupFault::Bit);
    }
    if found.common(!may_differ(found)).is_none() {
        return Some(GroupFault::Attributes);
    }
    let address = |cell| mmu.load(cell).address().0;
    let first = address(group.first()?);
    let is_next = |(index, cell)| address(cell) == first + ((index as u64) << M::Geometry::shift(level));
    let is_aligned = first & (M::Geometry::group_size(level) - 1) == 0;
    if is_aligned && group.iter().enumerate().all(is_next) { None } else { Some(GroupFault::Address) }
}

/// The bits in which the entries of a group may differ.
const fn may_differ(found: Survey) -> u64 {
    /// Ignored by the hardware where VALID is 0; of a valid leaf they are PBHA, an attribute.
    const SOFTWARE_IF_INVALID: u64 = 0b1111 << 59;
    let dirty = if found.all & bits::WRITE != 0 { bits::RDONLY } else { 0 };
    let software = if found.any & bits::VALID == 0 { SOFTWARE_IF_INVALID } else { 0 };
    bits::ADDRESS | bits::AF | bits::SOFTWARE | dirty | software
}

impl<F: FnMut(&Extent)> Coalescing<F> {
    fn run<M: Mmu>(&mut self, mmu: &M, run: &Run<'_, M>) {
        let in_group = M::Geometry::group_entries(run.level) - 1;
        let size = M::Geometry::entry_size(run.level);
        let mut group_fault = None;
        let mut before = None;
        for (index, cell) in run.cells().iter().enumerate() {
            let place = run.first + index;
            if index == 0 || place & in_group == 0 {
                let group = run.table.get(place & !in_group..=place | in_group);
                group_fault = group.and_then(|group| fault_of_group(mmu, group, run.level));
            }
            let entry = mmu.load(cell);
            // Most leaves are as the one before, with the next memory, and in its group.
            let is_next = |before: Descriptor| {
                entry.without_address() == before.without_address() && entry.address() == before.address() + size
            };
            if place & in_group != 0 && before.is_some_and(is_next) {
                before = Some(entry);
                self.extend(size);
                continue;
            }
            let kind = entry.kind(M::Geometry::level_entries(run.level));
            before = (kind == Kind::Leaf).then_some(entry);
            match kind {
                Kind::Leaf => self.leaf(Extent {
                    start: run.address(index),
                    size,
                    physical: entry.address(),
                    physically_contiguous: true,
                    // Not a mark of a collapse that is under way.
                    attributes: Descriptor(entry.without_address().0 & !bits::COLLAPSING),
                    leaf_size: leaf_size::<M::Geometry>(entry, run.level),
                    level: run.level,
                    execution_forbidden_above: run.inherited & bits::PXNTABLE != 0,
                    group_fault,
                }),
                // A table may have been linked since the run was measured: the next dump shows what is below it.
                Kind::None | Kind::Table => self.end(),
            }
        }
    }

    /// One more leaf like the last.
    fn extend(&mut self, size: u64) {
        if let Some(current) = &mut self.current {
            self.totals.add(current.level, current.attributes.is_contiguous(), current.leaf_size, size);
            current.size += size;
        }
    }

    fn leaf(&mut self, next: Extent) {
        let size = next.size;
        match &mut self.current {
            Some(current) if current.continues_with(&next) => {
                current.physically_contiguous &= current.physical + current.size == next.physical;
            }
            _ => {
                self.end();
                self.current = Some(Extent { size: 0, ..next });
            }
        }
        self.extend(size);
    }

    fn end(&mut self) {
        if let Some(extent) = self.current.take() {
            (self.extent)(&extent);
        }
    }
}
