//! Defects of the tables, and leaves that could be larger: for a listing, and for tests that expect neither.
//!
//! Nothing is stopped for it: a group that another CPU splits concurrently ([`crate::split`]) may be found with the
//! bit in some entries only. Present-invalid groups are held to the same rule as valid ones, because one change makes
//! them valid again.

use core::fmt;
use core::ops::Range;

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Kind, bits};

use crate::collapse::for_each_larger;
use crate::cursor::Marks;
use crate::dump::{Extent, GroupFault, Row, Size};
use crate::geometry::{Geometry, LAST_LEVEL};
use crate::mmu::Mmu;
use crate::range::PageRange;
use crate::tables::PageTables;

/// Leaves that follow one another in virtual memory, with the same finding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The kind of defect, or of larger leaf.
    pub kind: FindingKind,
    /// The first address.
    pub start: VirtAddr,
    /// Bytes.
    pub size: u64,
    /// Bytes of each leaf, a contiguous group being one; for [`FindingKind::Larger`], of each that there could be.
    pub leaf_size: u64,
}

/// A defect, or a larger leaf that is possible.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FindingKind {
    /// EL1 may write through the leaves and execute through them, tables on the way considered: breaks W^X. A leaf with
    /// DBM counts as writable, because a store makes it so where TCR_EL1.HD is set.
    WritableExecutable,
    /// EL1 may write through the leaves what it may execute through others of the same tables: breaks W^X.
    WritableElsewhereExecutable,
    /// Contiguous groups that the architecture does not allow.
    Group(GroupFault),
    /// All entries are alike and their memory is one aligned piece, so they could be contiguous groups, or blocks: no
    /// fault, but a hint. It is what a [`Collapser`](crate::Collapser) would make of one table; blocks that come to be
    /// alike by that may be larger still.
    Larger,
}

impl Finding {
    /// Whether something is wrong; else it is a hint.
    pub const fn is_fault(&self) -> bool {
        !matches!(self.kind, FindingKind::Larger)
    }

    fn continues_with(&self, next: &Self) -> bool {
        self.kind == next.kind
            && self.leaf_size == next.leaf_size
            && self.start.0.wrapping_add(self.size) == next.start.0
    }
}

/// A few words, the same for people and programs.
impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WritableExecutable => "writable and executable at EL1",
            Self::WritableElsewhereExecutable => "writable, and executable at EL1 at another address",
            Self::Group(GroupFault::Level) => "contiguous at a level without groups",
            Self::Group(GroupFault::Bit) => "contiguous in a part of the group only",
            Self::Group(GroupFault::Attributes) => "contiguous and attributes differ",
            Self::Group(GroupFault::Address) => "contiguous and memory is not one aligned piece",
            Self::Larger => "could be as large",
        })
    }
}

/// `wrong 0xffff…-0xffff…  64K  64K x 1  contiguous, and attributes differ`; a hint begins with `hint`.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, start, size, leaf_size } = *self;
        write!(f, "{} {}{kind}", if self.is_fault() { "wrong" } else { "hint " }, Row { start, size, leaf_size })
    }
}

/// Bytes with findings.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FindingTotals {
    /// With faults: a group is one, and so is a leaf in it that EL1 may write and execute.
    pub wrong: u64,
    /// In leaves that could be larger.
    pub larger: u64,
}

impl FindingTotals {
    /// Adds a finding's bytes.
    pub fn add(&mut self, finding: &Finding) {
        *if finding.is_fault() { &mut self.wrong } else { &mut self.larger } += finding.size;
    }
}

/// `findings: 68K wrong, 2M could be in larger leaves`, or `findings: none`.
impl fmt::Display for FindingTotals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return f.write_str("findings: none");
        }
        write!(f, "findings: {} wrong, {} could be in larger leaves", Size(self.wrong), Size(self.larger))
    }
}

impl<M: Mmu> PageTables<'_, M> {
    /// Calls `finding` for what is wrong in `range`, and then for leaves that could be larger, both in ascending order:
    /// once for each run of like findings. Last come leaves of the range whose memory is executable elsewhere in this
    /// half of the address space: once for each run of such memory.
    ///
    /// Groups with leaves in the range, and tables that could be larger leaves, are looked at as a whole. Other CPUs may
    /// change the tables concurrently, as for [`PageTables::dump`].
    pub fn findings(&self, range: PageRange<M::Geometry>, mut finding: impl FnMut(&Finding)) {
        let finding: &mut dyn FnMut(&Finding) = &mut finding;
        let mut run = Run(None);
        // The last group, above the last level and there: a group may be several extents, and have tables in between.
        let mut seen = [None; 2];
        let extent: &mut dyn FnMut(&Extent) = &mut |extent| {
            let Extent { start, size, leaf_size, level, group_fault, .. } = *extent;
            // With DBM a store makes it writable.
            let may_be_written = extent.is_writable() || extent.attributes.may_be_written();
            if extent.is_executable() && may_be_written {
                run.add(Finding { kind: FindingKind::WritableExecutable, start, size, leaf_size }, finding);
            }
            if let Some(fault) = group_fault {
                let leaf_size = M::Geometry::group_size(level);
                let (mut start, last) = (start.align_down(leaf_size), extent.last().align_down(leaf_size));
                let seen = seen[usize::from(level == LAST_LEVEL)].replace(last);
                if seen == Some(start) {
                    if start == last {
                        return;
                    }
                    start = start + leaf_size;
                }
                let size = (last - start) + leaf_size;
                run.add(Finding { kind: FindingKind::Group(fault), start, size, leaf_size }, finding);
            }
        };
        self.dump(range, extent);
        for_each_larger(self, range, |start, size| {
            // Of a table only what the range touches.
            if start <= range.last() && start + (size - 1) >= range.start() {
                run.add(Finding { kind: FindingKind::Larger, start, size, leaf_size: size }, finding);
            }
        });
        writers_of_code(self, range, &mut |start, size| {
            run.add(Finding { kind: FindingKind::WritableElsewhereExecutable, start, size, leaf_size: size }, finding);
        });
        run.end(finding);
    }
}

/// A leaf that the hardware uses; each entry of a contiguous group is one.
struct ValidLeaf {
    start: VirtAddr,
    frames: Range<u64>,
    is_writable: bool,
    is_executable: bool,
}

/// Calls `each` for all of them in `range`; made for each caller, which most leaves do not concern.
fn each_valid_leaf<M: Mmu>(
    tables: &PageTables<'_, M>,
    range: PageRange<M::Geometry>,
    mut each: impl FnMut(&ValidLeaf),
) {
    for run in tables.runs(range, Marks::Keep) {
        for (index, cell) in run.cells().iter().enumerate() {
            let entry = tables.mmu().load(cell);
            if !entry.is_valid() || entry.kind(M::Geometry::level_entries(run.level)) != Kind::Leaf {
                continue;
            }
            let first = entry.address().0;
            each(&ValidLeaf {
                start: run.address(index),
                frames: first..first + M::Geometry::entry_size(run.level),
                is_writable: entry.is_writable() || entry.may_be_written(),
                is_executable: entry.is_executable() && run.inherited & bits::PXNTABLE == 0,
            });
        }
    }
}

/// Calls `each` with the address and size of each leaf in `range` that EL1 may write, and may execute only at another
/// address of the half that the range is in: in runs of frames that are executable, a walk of the range for each.
fn writers_of_code<M: Mmu>(
    tables: &PageTables<'_, M>,
    range: PageRange<M::Geometry>,
    each: &mut dyn FnMut(VirtAddr, u64),
) {
    let half = range.start().align_down(1 << M::Geometry::VA_BITS);
    let Ok(half) = PageRange::new(half, 1 << M::Geometry::VA_BITS) else { return };
    let mut look = |code: &Range<u64>| {
        each_valid_leaf(tables, range, |leaf| {
            let is_shared = leaf.frames.start < code.end && code.start < leaf.frames.end;
            if is_shared && leaf.is_writable && !leaf.is_executable {
                each(leaf.start, leaf.frames.end - leaf.frames.start);
            }
        });
    };
    let mut code = 0..0;
    each_valid_leaf(tables, half, |leaf| {
        if !leaf.is_executable {
            return;
        }
        if code.end == leaf.frames.start {
            code.end = leaf.frames.end;
        } else {
            let code = core::mem::replace(&mut code, leaf.frames.clone());
            if !code.is_empty() {
                look(&code);
            }
        }
    });
    if !code.is_empty() {
        look(&code);
    }
}

/// Like findings, put together.
struct Run(Option<Finding>);

impl Run {
    fn add(&mut self, next: Finding, finding: &mut dyn FnMut(&Finding)) {
        match &mut self.0 {
            Some(run) if run.continues_with(&next) => run.size += next.size,
            _ => {
                self.end(finding);
                self.0 = Some(next);
            }
        }
    }

    fn end(&mut self, finding: &mut dyn FnMut(&Finding)) {
        if let Some(run) = self.0.take() {
            finding(&run);
        }
    }
}
