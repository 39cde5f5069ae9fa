//! Tables for an owner that writes the entries itself: which are found, linked, unlinked and taken apart.

use core::cell::Cell;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, bits};
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::host::{HostMachine, Operation};
use granule_pgtable::{CellsOrBlock, Dismantled, EnsureError, Geometry, Granule4K, Mmu, PageRange, Stores, Visited};

use crate::{DATA, GIB, KIB, LARGEST, MIB, map, range};

const LEAF: Descriptor = Descriptor(0x4000_0c03);

/// Tables on the way to a page, the root not counted.
const fn depth<G: Geometry>() -> usize {
    (LAST_LEVEL - G::FIRST_LEVEL) as usize
}

/// Links what is missing for `address`, and writes a leaf there.
fn write<G: Geometry>(machine: &HostMachine<G>, address: VirtAddr) {
    let none = || Ok::<_, EnsureError>(());
    let ((_, cell), ()) = machine.page_tables().ensure_cell(address, &mut machine.frames(), none).unwrap();
    machine.mmu().store(cell, LEAF);
}

/// Table by table: what the first entry translates, and how many there are.
fn visited<G: Geometry>(machine: &HostMachine<G>, range: PageRange<G>) -> Vec<(VirtAddr, usize)> {
    let mut visited = Vec::new();
    machine.page_tables().walk_cells(range).for_each(|found| visited.push((found.start, found.cells.len())));
    visited
}

fn tables_are_linked_where_they_are_missing_and_visited_where_they_are<G: Geometry>() {
    let machine = HostMachine::<G>::new(3 * depth::<G>());
    let (page, span) = (G::PAGE_SIZE, G::entry_size(LAST_LEVEL - 1));
    let entries = G::entries(LAST_LEVEL);
    let free = machine.free_frames();
    assert_eq!(machine.page_tables().cell(VirtAddr(0)).map(|found| found.0), None);
    write(&machine, VirtAddr(page));
    assert_eq!(machine.free_frames(), free - depth::<G>());
    write(&machine, VirtAddr(0));
    assert_eq!(machine.free_frames(), free - depth::<G>(), "the table was there");
    write(&machine, VirtAddr(2 * span));
    let whole = range(VirtAddr(0), 4 * span);
    assert_eq!(visited(&machine, whole), [(VirtAddr(0), entries), (VirtAddr(2 * span), entries)]);
    let part = range(VirtAddr(page), 2 * span);
    assert_eq!(visited(&machine, part), [(VirtAddr(page), entries - 1), (VirtAddr(2 * span), 1)]);
    assert_eq!(visited(&machine, range(VirtAddr(span), span)), []);
    let (table, cell) = machine.page_tables().cell(VirtAddr(page)).unwrap();
    assert_eq!(machine.mmu().load(cell), LEAF);
    machine.page_tables().walk_cells(range(VirtAddr(page), page)).for_each(|found| {
        assert!(found.table == table && core::ptr::eq(&raw const found.cells[0], cell));
        assert_eq!(found.address(0), VirtAddr(page));
    });
}

fn what_cannot_be_had_links_nothing<G: Geometry>() {
    for left in 0..depth::<G>() {
        let machine = HostMachine::<G>::new(left);
        let free = machine.free_frames();
        let prepared = Cell::new(false);
        let prepare = || {
            prepared.set(true);
            Ok::<_, EnsureError>(())
        };
        let refused = machine.page_tables().ensure_cell(VirtAddr(0), &mut machine.frames(), prepare).map(drop);
        assert_eq!((refused, prepared.get(), machine.free_frames()), (Err(EnsureError::OutOfTables), false, free));
        assert!(machine.page_tables().walk(VirtAddr(0)).all(|step| step.descriptor == Descriptor::EMPTY));
    }
    // `prepare` may fail when all tables are there.
    let machine = HostMachine::<G>::new(depth::<G>());
    let free = machine.free_frames();
    let refused = machine
        .page_tables()
        .ensure_cell(VirtAddr(0), &mut machine.frames(), || Err::<(), _>(EnsureError::OutOfTables));
    assert_eq!((refused.map(drop), machine.free_frames()), (Err(EnsureError::OutOfTables), free));
    assert!(machine.page_tables().walk(VirtAddr(0)).all(|step| step.descriptor == Descriptor::EMPTY));
}

fn tables_go_that_translate_nothing_outside_the_hole<G: Geometry>() {
    let machine = HostMachine::<G>::new(4 * depth::<G>());
    let span = G::entry_size(LAST_LEVEL - 1);
    let free = machine.free_frames();
    for table in 0..4 {
        write(&machine, VirtAddr(table * span));
        machine.page_tables().walk_cells(range(VirtAddr(table * span), G::PAGE_SIZE)).for_each(|found| {
            machine.mmu().store(&found.cells[0], Descriptor::EMPTY);
        });
    }
    let unlink = |start: u64, size: u64, hole: PageRange<G>| {
        let mut unlinked = Vec::new();
        // SAFETY: one thread has the machine, and no cell.
        #[allow(unsafe_code, reason = "the machine is the test's own")]
        unsafe {
            machine.page_tables().unlink_tables(range(VirtAddr(start), size), hole, |table| unlinked.push(table));
        }
        unlinked.len()
    };
    // A neighbour has the first half of the first table, another the fourth.
    let hole = range(VirtAddr(span / 2), 3 * span - span / 2);
    assert_eq!(unlink(span, G::PAGE_SIZE, hole), 1, "of the tables in the hole the one that is asked for");
    assert_eq!(unlink(span / 2, 3 * span - span / 2, hole), 1, "the other one");
    assert_eq!(unlink(span / 2, 3 * span - span / 2, hole), 0);
    let left = visited(&machine, range(VirtAddr(0), 4 * span));
    assert_eq!(left.iter().map(|found| found.0).collect::<Vec<_>>(), [VirtAddr(0), VirtAddr(3 * span)]);
    // The whole lower half: the upper tables go too, after those below them. Nothing is looked for where nothing is.
    let whole = range(VirtAddr(0), 1 << G::VA_BITS);
    assert_eq!(unlink(0, 1 << G::VA_BITS, whole), 2 + depth::<G>() - 1);
    assert_eq!(visited(&machine, whole), []);
    assert!(machine.free_frames() < free, "they are the caller's now");
}

fn tables_go_at_the_top_of_the_address_space<G: Geometry>() {
    let machine = HostMachine::<G>::new(2 * depth::<G>());
    let span = G::entry_size(LAST_LEVEL - 1);
    let last = VirtAddr(0u64.wrapping_sub(G::PAGE_SIZE));
    write(&machine, last);
    machine.page_tables().walk_cells(range(last, G::PAGE_SIZE)).for_each(|found| {
        machine.mmu().store(&found.cells[0], Descriptor::EMPTY);
    });
    for size in [G::PAGE_SIZE, span] {
        let mut unlinked = 0;
        let hole = range(VirtAddr(0u64.wrapping_sub(size)), size);
        // SAFETY: one thread has the machine, and no cell.
        #[allow(unsafe_code, reason = "the machine is the test's own")]
        unsafe {
            machine.page_tables().unlink_tables(range(last, G::PAGE_SIZE), hole, |_| unlinked += 1);
        }
        assert_eq!(unlinked, usize::from(size == span));
    }
}

fn everything_comes_out_once_and_after_the_invalidation<G: Geometry>() {
    let machine = HostMachine::<G>::new(3 * depth::<G>());
    let span = G::entry_size(LAST_LEVEL - 1);
    let addresses = [0, G::PAGE_SIZE, 2 * span].map(VirtAddr);
    addresses.into_iter().for_each(|address| write(&machine, address));
    let linked = machine.mmu().table(machine.page_tables().root()).iter().map(|cell| machine.mmu().load(cell));
    assert!(linked.clone().any(Descriptor::is_valid));
    let (mut entries, mut tables): (usize, Vec<PhysAddr>) = (0, Vec::new());
    let invalidated = Cell::new(false);
    let invalidate = || {
        assert!(linked.clone().all(|entry| !entry.is_valid()), "the hardware still walks there");
        invalidated.set(true);
    };
    let out = |out| {
        assert!(invalidated.get());
        match out {
            Dismantled::Entry(entry) => {
                assert_eq!(entry, LEAF);
                entries += 1;
            }
            Dismantled::Block(entry, table) => panic!("{entry:?} in {table}"),
            Dismantled::Table(table) => tables.push(table),
        }
    };
    // SAFETY: one thread has the machine, and cells of the root alone.
    #[allow(unsafe_code, reason = "the machine is the test's own")]
    unsafe {
        machine.page_tables().dismantle(invalidate, out);
    }
    assert_eq!((entries, tables.len()), (3, depth::<G>() + 1));
    tables.sort_unstable();
    tables.dedup();
    assert_eq!(tables.len(), depth::<G>() + 1);
    assert!(linked.clone().all(|entry| entry == Descriptor::EMPTY));
}

in_every_geometry!(
    tables_are_linked_where_they_are_missing_and_visited_where_they_are,
    what_cannot_be_had_links_nothing,
    tables_go_that_translate_nothing_outside_the_hole,
    tables_go_at_the_top_of_the_address_space,
    everything_comes_out_once_and_after_the_invalidation
);

/// A walk meets a block once, also where a part of it is in the range, or again as a table.
#[test]
fn a_walk_meets_blocks_and_tables_in_order() {
    let machine = HostMachine::<Granule4K>::new(8);
    let (tables, mmu) = (machine.page_tables(), machine.mmu());
    let block = Descriptor(LEAF.0 & !bits::TABLE);
    let place = |address| tables.ensure_block_cell(VirtAddr(address), &mut machine.frames()).unwrap();
    mmu.store(place(2 * MIB).cell, block);
    mmu.store(place(6 * MIB).cell, block);
    write(&machine, VirtAddr(4 * MIB));
    let found = tables.block_cell(VirtAddr(2 * MIB + 5 * KIB)).unwrap();
    assert_eq!((found.start, mmu.load(found.cell)), (VirtAddr(2 * MIB), block));
    let around = |start, bytes| found.is_in(range(VirtAddr(start), bytes));
    assert!(around(2 * MIB, 2 * MIB) && around(0, 8 * MIB));
    assert!(!around(2 * MIB + 4 * KIB, 2 * MIB) && !around(0, 4 * MIB - 4 * KIB));
    for again in [Visited::Done, Visited::Again] {
        let mut walk = tables.walk_cells(range(VirtAddr(2 * MIB + 8 * KIB), 6 * MIB - 16 * KIB));
        let mut met = Vec::new();
        while let Some(next) = walk.next() {
            match next {
                CellsOrBlock::Cells(cells) => met.push((cells.start.0, cells.cells.len())),
                CellsOrBlock::Block(at) => {
                    met.push((at.0, 0));
                    if at.0 < 4 * MIB && met.len() == 1 {
                        walk.go_on(at, again);
                    }
                }
            }
        }
        let first = (2 * MIB + 8 * KIB, 0);
        let mut expected = vec![first, (4 * MIB, 512), (6 * MIB, 0)];
        if again == Visited::Again {
            expected.insert(0, first);
        }
        assert_eq!(met, expected);
    }
    // Each with the table that it was in.
    let mut blocks = Vec::new();
    let out = |out| {
        if let Dismantled::Block(entry, table) = out {
            blocks.push((entry, table));
        }
    };
    // SAFETY: one thread has the machine, and no cell any more.
    #[allow(unsafe_code, reason = "the machine is the test's own")]
    unsafe {
        tables.dismantle(|| (), out);
    }
    assert_eq!(blocks, [(block, found.table); 2]);
}

/// A walker follows the descriptor as soon as it is there, so what is in the table comes before it.
#[test]
fn a_table_is_linked_behind_a_barrier() {
    let machine = HostMachine::<Granule4K>::new(8);
    let operations = machine.record(|| write(&machine, VirtAddr(0)));
    let mut ordered = false;
    let mut linked = 0;
    for operation in operations {
        match operation {
            Operation::DmbIshst => ordered = true,
            Operation::Write { new, .. } if new.is_valid() && new != LEAF => {
                assert!(ordered, "{new:?} is linked with no barrier before it");
                linked += 1;
                ordered = false;
            }
            Operation::Write { .. } => ordered = false,
            other => panic!("{other:?} is not needed"),
        }
    }
    assert_eq!(linked, depth::<Granule4K>());
}

#[test]
fn a_block_is_refused_and_never_taken_for_a_table_or_a_hole() {
    for (page, size) in [(GIB + 4 * KIB, GIB), (2 * MIB + 4 * KIB, 2 * MIB)] {
        let machine = HostMachine::<Granule4K>::new(4);
        map(&machine, range(VirtAddr(size), size), 0, DATA, LARGEST).unwrap();
        let free = machine.free_frames();
        let (tables, page) = (machine.page_tables(), VirtAddr(page));
        let none = || Ok::<_, EnsureError>(());
        let refused = tables.ensure_cell(page, &mut machine.frames(), none).map(drop);
        assert_eq!((refused, machine.free_frames()), (Err(EnsureError::Block), free), "{page}");
        assert!(tables.cell(page).is_none() && tables.cells(page, 2).is_none());
        let visits = || tables.walk_cells(range(page, 4 * KIB)).for_each(|_| ());
        // SAFETY: one thread has the machine, and no cell.
        #[allow(unsafe_code, reason = "the machine is the test's own")]
        let unlinks = || unsafe { tables.unlink_tables(range(page, 4 * KIB), range(VirtAddr(0), 4 * GIB), |_| ()) };
        for passes_over in [&visits as &dyn Fn(), &unlinks] {
            let passed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(passes_over));
            assert!(passed.is_err(), "{page}");
        }
    }
}

/// Between the two looks: what was prepared is dropped, and a block is not followed as a table.
#[test]
fn a_block_that_comes_meanwhile_is_refused_too() {
    let machine = HostMachine::<Granule4K>::new(8);
    let (tables, free) = (machine.page_tables(), machine.free_frames());
    let prepare = || {
        map(&machine, range(VirtAddr(GIB), GIB), 0, DATA, LARGEST).unwrap();
        Ok::<_, EnsureError>(())
    };
    let refused = tables.ensure_cell(VirtAddr(GIB), &mut machine.frames(), prepare).map(drop);
    // The block is in a table.
    assert_eq!((refused, machine.free_frames()), (Err(EnsureError::Block), free - 1));
}
