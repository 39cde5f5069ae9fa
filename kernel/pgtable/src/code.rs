//! Code becomes visible to instruction fetch before an entry makes it executable.
//!
//! Arm ARM B2.7.4.2 (synchronization of instruction and data caches): what was stored is cleaned to the point of
//! unification unless CTR_EL0.IDC, then dropped from the instruction caches unless CTR_EL0.DIC, a DSB after each.
//! Before the entry and not after, or another CPU could run what the memory held before. The ISB that each CPU needs
//! before it runs new code is issued by the code that publishes it; on this CPU the one at the end of the change
//! serves.

#![allow(unsafe_code, reason = "cache maintenance by address")]

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, bits};
use granule_arch::tlbi::{AddressOperand, Instruction};

use crate::cursor::Marks;
use crate::geometry::Geometry;
use crate::mmu::{Feature, Mmu, Stores};
use crate::permission::Change;
use crate::range::PageRange;
use crate::tables::PageTables;

/// Beyond this many bytes the instruction caches are emptied as a whole: each line is a broadcast of its own, and 512
/// of 64 bytes are where Linux and KVM stop naming them too.
const NAMED_LINE_BY_LINE: u64 = 512 * 64;

/// Makes visible whatever becomes executable when `change` is applied to `range`, which has been checked.
#[inline(always)]
pub(crate) fn make_visible<M: Stores>(tables: &PageTables<'_, M>, range: PageRange<M::Geometry>, change: &Change) {
    if !is_visible_as_stored(tables.mmu()) {
        maintain(tables, range, change);
    }
}

/// Whether the caches need no maintenance for code to be seen by what comes after this.
#[inline(always)]
pub(crate) fn is_visible_as_stored<M: Mmu>(mmu: &M) -> bool {
    let coherent = mmu.has(Feature::Idc) && mmu.has(Feature::Dic);
    if coherent {
        // Fetches read what loads read: only the order of the instructions before the entry is left. A walk
        // that finds the entry comes before the fetch through it, so the order of the stores is enough.
        mmu.dmb_ishst();
    }
    coherent
}

#[cold]
fn maintain<M: Stores>(tables: &PageTables<'_, M>, range: PageRange<M::Geometry>, change: &Change) {
    let mmu = tables.mmu();
    // The first and the last address of what becomes executable; and whether the range has a leaf that is not valid.
    let (mut found, mut unmapped) = (None, false);
    for run in tables.runs(range, Marks::Keep) {
        let size = M::Geometry::entry_size(run.level);
        for (index, cell) in run.cells().iter().enumerate() {
            let old = mmu.load(cell);
            unmapped |= !old.is_valid();
            if run.inherited & bits::PXNTABLE != 0 || !becomes_executable(change, old) {
                continue;
            }
            let first = run.address(index);
            if !mmu.has(Feature::Idc) {
                if old.is_valid() {
                    // SAFETY: 1. The leaf is valid, in a tree that translates this CPU (`Mmu::write`, 4). 2. The caller
                    // of the change owns it (there, 1).
                    unsafe { mmu.clean_code(first, size) };
                } else {
                    clean_invalid(mmu, cell, old, first, size, change);
                }
            }
            found = Some((found.map_or(first, |(first, _)| first), VirtAddr(first.0 + (size - 1))));
        }
    }
    let Some((first, last)) = found else { return };
    // The cleans are complete, or with IDC the stores themselves, before the instruction caches are invalidated.
    mmu.dsb_ish();
    if mmu.has(Feature::Dic) {
        return;
    }
    let bytes = last.0 - first.0 + 1;
    // By address only where every address is mapped, since IC IVAU may fault on one that is not; and by the address
    // that the code runs at, because a cache that is indexed by it may miss lines that another alias names.
    if unmapped || bytes > NAMED_LINE_BY_LINE {
        mmu.invalidate_all_code();
    } else {
        // SAFETY: 1. Each leaf was found valid, in a tree that translates this CPU (`Mmu::write`, 4). 2. The caller of
        // the change owns the range (there, 1).
        unsafe { mmu.invalidate_code(first, bytes) };
    }
    // The invalidation is complete everywhere before the entry can be walked.
    mmu.dsb_ish();
}

/// Cleans a leaf that is present-invalid: DC CVAU faults on it, and no other mapping of the memory need be valid. So it
/// is valid here for as long as that takes, neither writable nor executable, and gone from every TLB before it comes
/// back as code.
fn clean_invalid<M: Stores>(mmu: &M, cell: &M::Cell, old: Descriptor, start: VirtAddr, size: u64, change: &Change) {
    // Not one of its contiguous group, whose other entries may be invalid.
    let readable = (change.apply(old).0 | bits::RDONLY | bits::PXN) & !(bits::CONTIGUOUS | bits::WRITE);
    mmu.store(cell, Descriptor(readable));
    mmu.dsb_ishst();
    mmu.isb();
    // SAFETY: 1. The leaf is valid now, by a store that the barriers completed. 2. The caller of the change owns it.
    unsafe { mmu.clean_code(start, size) };
    mmu.store(cell, old);
    mmu.dsb_ishst();
    mmu.tlbi(Instruction::Vaale1is(AddressOperand::new(start, None)));
    mmu.complete_tlbi();
}

/// Whether the hardware will run what it would not run before.
fn becomes_executable(change: &Change, old: Descriptor) -> bool {
    let runs = |leaf: Descriptor| leaf.is_valid() && leaf.0 & bits::PXN == 0;
    runs(change.apply(old)) && !runs(old)
}
