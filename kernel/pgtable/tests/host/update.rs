//! The changes of `update`, and its refusals.

use granule_arch::descriptor::{Attributes, Descriptor, bits};
use granule_arch::tlbi::LevelHint;
use granule_pgtable::host::{HostMachine, Operation};
use granule_pgtable::{
    Change, Error, Flush, Granule4K, Invalidation, Lazy, PageRange, RefuseSplits, Shape, Tables, WholeLeaves,
};

use crate::{BASE, DATA, GIB, KIB, LARGEST, MIB, RODATA, TEXT, map, range};

/// A machine with `pages` pages at [`BASE`].
fn pages(pages: u64, attributes: Attributes) -> (HostMachine, PageRange) {
    let machine = HostMachine::new(8);
    let whole = range(BASE, pages * 4 * KIB);
    map(&machine, whole, 0x4000_0000, attributes, Shape::PAGES).unwrap();
    (machine, whole)
}

#[track_caller]
fn update(machine: &HostMachine, range: PageRange, change: Change) -> Result<Option<Invalidation>, Error> {
    machine.page_tables().update(&Lazy::new(machine.mmu()), range, change, WholeLeaves).map(Flush::invalidation)
}

fn descriptor(machine: &HostMachine, page: u64) -> Descriptor {
    machine.page_tables().translate(BASE + page * 4 * KIB).unwrap().descriptor
}

/// The invalidation of `pages` pages from page `start` on, of leaves of `level`; 0 where they are of several.
fn stale(start: u64, pages: u64, level: u8) -> Result<Option<Invalidation>, Error> {
    Ok(Some(Invalidation {
        range: range(BASE + start * 4 * KIB, pages * 4 * KIB),
        tables: Tables::Kept,
        level: LevelHint::new(level),
    }))
}

#[test]
fn each_change_sets_and_clears_its_bits_and_no_others() {
    for (attributes, change, set, clear) in [
        (DATA, Change::READ_ONLY, bits::RDONLY, bits::WRITE),
        (RODATA, Change::READ_WRITE, bits::WRITE, bits::RDONLY),
        (RODATA, Change::EXECUTABLE, 0, bits::PXN),
        (TEXT, Change::NO_EXECUTE, bits::PXN, 0),
        (DATA, Change::INVALID, bits::PRESENT_INVALID, bits::VALID),
    ] {
        let (machine, _) = pages(3, attributes);
        let before = [0, 1, 2].map(|page| descriptor(&machine, page).0);
        assert_eq!(update(&machine, range(BASE + 4 * KIB, 4 * KIB), change), stale(1, 1, 3));
        let after = [0, 1, 2].map(|page| descriptor(&machine, page).0);
        assert_eq!(after, [before[0], before[1] & !clear | set, before[2]], "{change:?}");
    }
}

/// The present-invalid mark and nG are one bit: setting before clearing breaks this for mappings with nG.
#[test]
fn invalid_and_valid_again_is_bit_identical_with_and_without_ng() {
    for (change, extra) in [(Change::VALID, 0), (Change::VALID_NON_GLOBAL, bits::NG)] {
        let original = Descriptor(Descriptor::page(granule_arch::addr::PhysAddr(0x5000), DATA).0 | extra);
        let invalid = Change::INVALID.apply(original);
        assert!(!invalid.is_valid() && invalid.0 & bits::PRESENT_INVALID != 0);
        assert_eq!(change.apply(invalid), original);
        assert_eq!(change.apply(original), original);
    }
}

#[test]
fn making_valid_owes_no_invalidation() {
    let (machine, whole) = pages(5, DATA);
    assert_eq!(update(&machine, whole, Change::INVALID), stale(0, 5, 3));
    assert!(!machine.page_tables().translate(BASE).unwrap().valid);
    assert_eq!(update(&machine, whole, Change::VALID), Ok(None));
    assert!(machine.page_tables().translate(BASE).unwrap().valid);
}

#[test]
fn the_invalidation_covers_what_changed_and_no_more() {
    let (machine, _) = pages(600, DATA);
    // Crosses a table: pages 500 to 519 first, so that they are read-only already.
    let part = range(BASE + 500 * 4 * KIB, 20 * 4 * KIB);
    assert_eq!(update(&machine, part, Change::READ_ONLY), stale(500, 20, 3));
    assert_eq!(update(&machine, part, Change::READ_ONLY), Ok(None));
    let around = range(BASE + 510 * 4 * KIB, 20 * 4 * KIB);
    assert_eq!(update(&machine, around, Change::READ_ONLY), stale(520, 10, 3));
    assert_eq!(update(&machine, range(BASE, 510 * 4 * KIB), Change::READ_ONLY), stale(0, 500, 3));
    // Present-invalid pages are changed too, and may be in TLBs if their invalidation was put off.
    update(&machine, range(BASE, 8 * KIB), Change::INVALID).unwrap();
    assert_eq!(update(&machine, range(BASE, 8 * KIB), Change::READ_WRITE), stale(0, 2, 3));
    assert_eq!(update(&machine, range(BASE, 12 * KIB), Change::READ_ONLY), stale(0, 2, 3));
    let read_only = range(BASE, 530 * 4 * KIB);
    assert_eq!(update(&machine, read_only, Change::EXECUTABLE), stale(0, 530, 3));
}

/// An invalidation that a `noflush` call has left to its caller is not lost where another call relies on it: nothing
/// changes in the tables, and every TLB may still have the page.
#[test]
fn what_is_invalid_already_is_invalidated_where_it_is_to_be_gone() {
    for many in [1, 600] {
        let (machine, whole) = pages(many, DATA);
        let noflush = |range, change| {
            let lazy = Lazy::new(machine.mmu());
            machine.page_tables().update(&lazy, range, change, RefuseSplits).unwrap().defer();
        };
        let owed = |flush: Flush| flush.invalidation().map(|owed| owed.range);
        noflush(whole, Change::INVALID);
        assert_eq!(update(&machine, whole, Change::INVALID).unwrap().map(|owed| owed.range), Some(whole));
        let lazy = Lazy::new(machine.mmu());
        let tables = machine.page_tables();
        assert_eq!(owed(tables.update(&lazy, whole, Change::INVALID, RefuseSplits).unwrap()), Some(whole));
        let page = range(BASE, 4 * KIB);
        assert!(tables.look(page, &Change::INVALID, &mut RefuseSplits).is_none(), "left to the long way");
        // Beside one that is still valid.
        noflush(page, Change::VALID);
        assert_eq!(update(&machine, whole, Change::INVALID).unwrap().map(|owed| owed.range), Some(whole));
        // Nothing is taken away.
        noflush(whole, Change::VALID);
        assert_eq!(update(&machine, whole, Change::VALID), Ok(None));
        // Nor are its frames handed out before every TLB has forgotten it.
        noflush(whole, Change::INVALID);
        let (mut invalidated, mut released) = (0, 0);
        let stream =
            machine.record(|| tables.unmap(&lazy, machine.tlb(), whole, WholeLeaves, |_| released += 1).unwrap());
        for operation in stream {
            if let Operation::Invalidate(what) = operation {
                assert_eq!(what.range, whole);
                invalidated += 1;
            }
        }
        assert_eq!((invalidated, released), (1, many));
    }
}

#[test]
fn the_level_is_told_only_where_it_is_one() {
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, 4 * MIB + 64 * KIB), 0, DATA, LARGEST).unwrap();
    let part = range(BASE + 2 * MIB, 2 * MIB);
    assert_eq!(update(&machine, part, Change::READ_ONLY), stale(512, 512, 2));
    let whole = range(BASE, 4 * MIB + 64 * KIB);
    assert_eq!(update(&machine, whole, Change::READ_ONLY), stale(0, 1040, 0));
}

#[test]
fn whole_leaves_of_every_size_change_in_place() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE + GIB - 34 * MIB - 68 * KIB, 68 * KIB + 34 * MIB + GIB);
    map(&machine, whole, whole.start().0 - BASE.0, DATA, LARGEST).unwrap();
    let before = machine.page_tables().dump(whole, |_| ());
    update(&machine, whole, Change::READ_ONLY).unwrap();
    let after = machine.page_tables().dump(whole, |extent| assert!(!extent.is_writable(), "{extent:?}"));
    assert_eq!(before, after);
    assert_eq!(before.bytes(), whole.size());
}

#[track_caller]
fn refused(machine: &HostMachine, range: PageRange, change: Change, error: Error) {
    let record = machine.record(|| assert_eq!(update(machine, range, change), Err(error)));
    assert_eq!(record, [], "something was done before the call was refused");
}

#[test]
fn the_first_hole_is_named_and_nothing_changes() {
    let (machine, _) = pages(4, DATA);
    map(&machine, range(BASE + 20 * KIB, 4 * KIB), 0, DATA, Shape::PAGES).unwrap();
    refused(&machine, range(BASE, 24 * KIB), Change::READ_ONLY, Error::NotMapped(BASE + 16 * KIB));
    // Linux skips holes at table level, and ORs masks into empty entries: making one valid would map frame 0.
    refused(&machine, range(BASE, 24 * KIB), Change::VALID, Error::NotMapped(BASE + 16 * KIB));
    let hole = BASE + 2 * MIB + 8 * KIB;
    refused(&machine, range(hole, 4 * KIB), Change::READ_ONLY, Error::NotMapped(hole));
    refused(&machine, range(BASE + GIB, 4 * KIB), Change::READ_ONLY, Error::NotMapped(BASE + GIB));
}

#[test]
fn a_leaf_that_is_cut_is_named_and_nothing_changes() {
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, GIB + 32 * MIB + 2 * MIB + 64 * KIB), 0, DATA, LARGEST).unwrap();
    let cut = |leaf, size| Error::Straddles { leaf, size };
    let group = BASE + GIB;
    let block = group + 32 * MIB;
    let pages = block + 2 * MIB;
    for (start, size, error) in [
        (BASE + 2 * MIB, 2 * MIB, cut(BASE, GIB)),
        (BASE, GIB + 2 * MIB, cut(group, 32 * MIB)),
        (group + 2 * MIB, 30 * MIB, cut(group, 32 * MIB)),
        (group, 32 * MIB + 4 * KIB, cut(block, 2 * MIB)),
        (block + 4 * KIB, 2 * MIB - 4 * KIB, cut(block, 2 * MIB)),
        (block, 2 * MIB + 32 * KIB, cut(pages, 64 * KIB)),
        (pages + 4 * KIB, 60 * KIB, cut(pages, 64 * KIB)),
    ] {
        refused(&machine, range(start, size), Change::READ_ONLY, error);
    }
}

#[test]
fn writable_and_executable_is_refused() {
    let (machine, whole) = pages(4, DATA);
    let third = range(BASE + 8 * KIB, 4 * KIB);
    refused(&machine, whole, Change::EXECUTABLE, Error::WritableAndExecutable(BASE));
    update(&machine, third, Change::READ_ONLY).unwrap();
    update(&machine, third, Change::EXECUTABLE).unwrap();
    refused(&machine, whole, Change::READ_WRITE, Error::WritableAndExecutable(BASE + 8 * KIB));
    // Also where the page is not valid now: it could be made valid later.
    update(&machine, third, Change::INVALID).unwrap();
    refused(&machine, third, Change::READ_WRITE, Error::WritableAndExecutable(BASE + 8 * KIB));
    update(&machine, whole, Change::NO_EXECUTE).unwrap();
    update(&machine, whole, Change::READ_WRITE).unwrap();
}

#[test]
fn a_leaf_without_the_mark_is_named_and_nothing_changes() {
    let (machine, whole) = pages(3, DATA.vm_alloc());
    map(&machine, range(BASE + 12 * KIB, 4 * KIB), 0, DATA, Shape::PAGES).unwrap();
    let marked = Change::READ_ONLY.require_bits(bits::VM_ALLOC);
    let foreign = BASE + 12 * KIB;
    refused(&machine, range(BASE, 16 * KIB), marked, Error::NotMarked(foreign));
    refused(&machine, range(foreign, 4 * KIB), marked, Error::NotMarked(foreign));
    // The mark stays: what was changed once may be changed again, present-invalid in between or not.
    assert_eq!(update(&machine, whole, marked), stale(0, 3, 3));
    assert_eq!(update(&machine, whole, Change::INVALID.require_bits(bits::VM_ALLOC)), stale(0, 3, 3));
    assert_eq!(update(&machine, whole, Change::VALID.require_bits(bits::VM_ALLOC)), Ok(None));
}
