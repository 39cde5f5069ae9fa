//! What is mapped, as ranges of like leaves.

use core::convert::Infallible;
use core::fmt;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Kind, bits};

use crate::geometry::{Geometry, LAST_LEVEL};
use crate::mmu::Mmu;
use crate::range::PageRange;
use crate::tables::PageTables;
use crate::visit::{Next, Run, Visitor, leading_leaves, leaf_size};

/// Leaves that follow one another in virtual memory, of one size, with the same attributes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// The first address.
    pub start: VirtAddr,
    /// Bytes.
    pub size: u64,
    /// What the first address translates to.
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

    /// Whether `next` goes on where this one ends, in the same way.
    fn continues_with(&self, next: &Self) -> bool {
        self.start.0.wrapping_add(self.size) == next.start.0
            && self.attributes == next.attributes
            && self.level == next.level
            && self.execution_forbidden_above == next.execution_forbidden_above
    }
}

/// As Linux's ptdump prints it, with the leaves that map it: `0xffff…-0xffff…  2M  2M x 1  RW NX …`. Memory types are
/// those of [`MAIR`](granule_arch::descriptor::MAIR).
impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, size, leaf_size, attributes, execution_forbidden_above, .. } = *self;
        let end = start.0.wrapping_add(size);
        write!(
            f,
            "{:#018x}-{end:#018x} {:>8} {:>5} x {:<6}",
            start.0,
            Size(size),
            Size(leaf_size),
            size.checked_div(leaf_size).unwrap_or_default()
        )?;
        write!(f, "{}{}", attributes.listed(), if execution_forbidden_above { " PXNTABLE" } else { "" })
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
    /// By level: bytes in leaves of their own, bytes in contiguous groups.
    bytes: [[u64; 2]; LAST_LEVEL as usize + 1],
    /// By level: the sizes of both kinds of leaf.
    sizes: [[u64; 2]; LAST_LEVEL as usize + 1],
}

impl LeafTotals {
    fn add(&mut self, level: u8, contiguous: bool, size: u64, bytes: u64) {
        let (level, kind) = (level as usize, usize::from(contiguous));
        self.sizes[level][kind] = size;
        self.bytes[level][kind] += bytes;
    }

    /// `(bytes of a leaf, how many)`, from the largest; only sizes that occur. A contiguous group counts as one leaf.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let kinds =
            |level: usize| [(self.sizes[level][1], self.bytes[level][1]), (self.sizes[level][0], self.bytes[level][0])];
        (0..self.sizes.len())
            .flat_map(kinds)
            .filter(|&(_, bytes)| bytes != 0)
            .filter_map(|(size, bytes)| Some((size, bytes.checked_div(size)?)))
    }

    /// Bytes mapped, in leaves of all sizes.
    pub fn bytes(&self) -> u64 {
        self.bytes.iter().flatten().sum()
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
    /// Leaves that the range only touches count wholly. Other CPUs may change the tables meanwhile; each entry is read
    /// once.
    pub fn dump(&self, range: PageRange<M::Geometry>, extent: impl FnMut(&Extent)) -> LeafTotals {
        let mut coalescing = Coalescing { extent, current: None, totals: LeafTotals::default() };
        let Ok(()) = self.visit(range, &mut coalescing);
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

impl<'t, M: Mmu, F: FnMut(&Extent)> Visitor<'t, M> for Coalescing<F> {
    type Error = Infallible;

    fn visit(&mut self, mmu: &'t M, run: &Run<'t, M>) -> Result<Next, Infallible> {
        let leaves = leading_leaves(mmu, run);
        for (index, cell) in run.leading(leaves).iter().enumerate() {
            let entry = mmu.load(cell);
            match entry.kind(M::Geometry::level_entries(run.level)) {
                Kind::Leaf => self.leaf(Extent {
                    start: run.address(index),
                    size: M::Geometry::entry_size(run.level),
                    physical: entry.address(),
                    physically_contiguous: true,
                    attributes: entry.without_address(),
                    leaf_size: leaf_size::<M::Geometry>(entry, run.level),
                    level: run.level,
                    execution_forbidden_above: run.inherited & bits::PXNTABLE != 0,
                }),
                // A table may have been linked since the run was measured: the next dump shows what is below it.
                Kind::None | Kind::Table => self.end(),
            }
        }
        Ok(Next::Entries(leaves))
    }
}

impl<F: FnMut(&Extent)> Coalescing<F> {
    fn leaf(&mut self, next: Extent) {
        self.totals.add(next.level, next.attributes.is_contiguous(), next.leaf_size, next.size);
        match &mut self.current {
            Some(current) if current.continues_with(&next) => {
                current.physically_contiguous &= current.physical + current.size == next.physical;
                current.size += next.size;
            }
            _ => {
                self.end();
                self.current = Some(next);
            }
        }
    }

    fn end(&mut self) {
        if let Some(extent) = self.current.take() {
            (self.extent)(&extent);
        }
    }
}
