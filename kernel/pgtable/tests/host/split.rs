//! The pieces that a split makes of each leaf, at each end; untouched leaves; who is first where two split one leaf.

use std::cell::Cell;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, bits};
use granule_arch::tlbi::Instruction;
use granule_pgtable::host::{HostFrames, HostMachine, HostMmu, Operation};
use granule_pgtable::{
    Change, Entries, Error, Execution, Flush, Geometry, Granule4K, Granule16K, Granule64K, Lazy, Leaves, Lockless, Mmu,
    PageRange, PageTables, RefuseSplits, Serialise, Shape, Split, Splits, Stores, Table, TableSource, Tiny,
    WholeLeaves,
};
use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use proptest::test_runner::Config;

use crate::barriers::count;
use crate::interrupt::Interrupted;
use crate::{BASE, DATA, GIB, KIB, LARGEST, MIB, RODATA, leaf_sizes, map, range};

/// The promise of a lock: no other CPU splits. There is only one CPU here.
struct Locked;

// SAFETY: there is one CPU.
#[allow(unsafe_code, reason = "keeps the contract of `Serialise`")]
unsafe impl Serialise for Locked {
    type Section<'a> = ();

    fn entries(&self) -> Entries {
        Entries::Alone
    }

    fn begin(&self) {}
}

/// There is no other CPU that would have to stop.
struct Stopped;

// SAFETY: there is no other CPU.
#[allow(unsafe_code, reason = "keeps the contract of `Serialise`")]
unsafe impl Serialise for Stopped {
    type Section<'a> = ();

    fn entries(&self) -> Entries {
        Entries::Stopped
    }

    fn begin(&self) {}
}

/// Splits with ever more tables, as a kernel does.
fn split_stopped(machine: &HostMachine, range: PageRange) -> Result<Splits, Error> {
    let (mut source, mut all) = (machine.frames(), Splits::NONE);
    for tables in 0.. {
        let (splits, is_all) = machine.page_tables().split_stopped(range, tables, &Stopped, &mut source)?;
        for level in 0..all.blocks.len() {
            all.blocks[level] += splits.blocks[level];
            all.groups[level] += splits.groups[level];
        }
        if is_all {
            break;
        }
    }
    Ok(all)
}

/// A machine with a leaf of each size: 1 GiB, 32 MiB, 2 MiB, 64 KiB, 4 KiB, from the largest down.
fn one_of_each(attributes: Attributes) -> (HostMachine, PageRange) {
    let machine = HostMachine::new(8);
    let whole = range(BASE, GIB + 34 * MIB + 68 * KIB);
    map(&machine, whole, 0, attributes, LARGEST).unwrap();
    (machine, whole)
}

/// Where those leaves begin.
const GROUP_OF_BLOCKS: u64 = GIB;
const BLOCK: u64 = GIB + 32 * MIB;
const GROUP: u64 = BLOCK + 2 * MIB;
const PAGE: u64 = GROUP + 64 * KIB;

fn split(machine: &HostMachine, range: PageRange) -> Result<Splits, Error> {
    machine.page_tables().split(range, &Lockless, &mut machine.frames())
}

/// Sizes of pieces, and how many of each follow one another.
type Pieces = &'static [(u64, u64)];

#[test]
fn each_leaf_is_split_at_each_end_to_the_largest_pieces() {
    // Where the leaf begins and where it is cut; its pieces from there on: their size and number.
    let cases: [(u64, u64, Pieces); 12] = [
        (GROUP, 4 * KIB, &[(4 * KIB, 16)]),
        (GROUP, 60 * KIB, &[(4 * KIB, 16)]),
        (BLOCK, 64 * KIB, &[(64 * KIB, 32)]),
        (BLOCK, 4 * KIB, &[(4 * KIB, 16), (64 * KIB, 31)]),
        (BLOCK, MIB + 8 * KIB, &[(64 * KIB, 16), (4 * KIB, 16), (64 * KIB, 15)]),
        (BLOCK, 2 * MIB - 4 * KIB, &[(64 * KIB, 31), (4 * KIB, 16)]),
        (GROUP_OF_BLOCKS, 2 * MIB, &[(2 * MIB, 16)]),
        (GROUP_OF_BLOCKS, 6 * MIB + 64 * KIB, &[(2 * MIB, 3), (64 * KIB, 32), (2 * MIB, 12)]),
        (0, 32 * MIB, &[(32 * MIB, 32)]),
        (0, 2 * MIB, &[(2 * MIB, 16), (32 * MIB, 31)]),
        (0, 64 * KIB, &[(64 * KIB, 32), (2 * MIB, 15), (32 * MIB, 31)]),
        (0, GIB - 4 * KIB, &[(32 * MIB, 31), (2 * MIB, 15), (64 * KIB, 31), (4 * KIB, 16)]),
    ];
    let tables_of = |pieces: &[(u64, u64)]| {
        let has = |size| pieces.iter().any(|&(piece, _)| piece == size);
        let table_of_pages = has(64 * KIB) || (has(4 * KIB) && pieces.len() > 1);
        usize::from(has(32 * MIB)) + usize::from(table_of_pages)
    };
    for (leaf, offset, pieces) in cases {
        let size = pieces.iter().map(|(size, count)| size * count).sum();
        let (place, cut) = (range(BASE + leaf, size), BASE + leaf + offset);
        // As the start of a range that continues beyond the leaf, and as the end of one that begins with it.
        let behind = VirtAddr(place.end().0) - cut;
        for asked in [range(cut, behind), range(place.start(), offset)] {
            for entries in [Entries::Shared, Entries::Alone, Entries::Stopped] {
                let (machine, whole) = one_of_each(DATA);
                let (before, free) = (machine.page_tables().dump(whole, |_| ()).bytes(), machine.free_frames());
                let tables = machine.page_tables();
                let stream = machine.record(|| {
                    let mut source = machine.frames();
                    let splits = match entries {
                        Entries::Shared => tables.split(asked, &Lockless, &mut source),
                        Entries::Alone => tables.split(asked, &Locked, &mut source),
                        _ => split_stopped(&machine, asked),
                    };
                    assert!(!splits.unwrap().is_none());
                });
                let check = if entries == Entries::Stopped { check_breaks } else { check_split };
                assert_eq!(check(&stream), Ok(()), "{asked:?}");
                assert_eq!(leaf_sizes(&machine, place), pieces, "{asked:?}");
                assert_eq!(free - machine.free_frames(), tables_of(pieces), "{asked:?}");
                let mut translated = 0;
                tables.dump(whole, |extent| {
                    assert!(extent.physically_contiguous && extent.physical.0 == extent.start - BASE);
                    assert_eq!(extent.attributes.0 & !(bits::CONTIGUOUS | bits::TABLE), DATA.bits());
                    translated += extent.size;
                });
                assert_eq!(translated, before);
                // The other leaves are as they were, and a second time there is nothing to do.
                assert!(split(&machine, whole).unwrap().is_none());
                assert_eq!(machine.record(|| assert!(split(&machine, asked).unwrap().is_none())), []);
            }
        }
    }
}

/// The stream of a change break-before-make: no entry is valid one way and then another, and between the two it is
/// invalidated for all CPUs, by a TLBI after a DSB and before another one; what was made is seen in the end.
pub(crate) fn check_breaks(stream: &[Operation]) -> Result<(), String> {
    // The entries that were broken, and how far the invalidation has come since.
    let (mut broken, mut progress, mut unseen) = (Vec::new(), 0, false);
    // Tables that are not linked yet: what they say is said to no walk.
    let mut fresh = Vec::new();
    let frame = |address: u64| address / Granule4K::PAGE_SIZE;
    for operation in stream {
        match *operation {
            Operation::Write { cell, old, new } if old.is_valid() => {
                if new.is_valid() {
                    if fresh.contains(&frame(cell.0)) {
                        continue;
                    }
                    return Err(format!("{cell} changes without a break"));
                }
                broken.push(cell);
                progress = 0;
            }
            Operation::Write { cell, new, .. } => {
                if new.is_table() {
                    fresh.retain(|&table| table != frame(new.address().0));
                }
                if !broken.contains(&cell) {
                    fresh.push(frame(cell.0));
                }
                if broken.contains(&cell) && new.is_valid() {
                    if progress != 3 {
                        return Err(format!("{cell} is made before its invalidation is complete"));
                    }
                    unseen = true;
                }
            }
            Operation::DsbIshst => {
                progress = progress.max(1);
                if progress == 3 {
                    unseen = false;
                }
            }
            Operation::Tlbi(Instruction::Vmalle1is) => progress = if progress == 1 { 2 } else { 0 },
            Operation::DsbIsh => progress = if progress == 2 { 3 } else { progress },
            Operation::DmbIshst | Operation::Isb => {}
            other => return Err(format!("{other:?} is not needed")),
        }
    }
    if unseen { Err("what was made may not be seen".to_owned()) } else { Ok(()) }
}

#[test]
fn the_check_of_breaks_objects_to_every_step_that_is_missing() {
    let (machine, _) = one_of_each(DATA);
    let page = range(BASE + 4 * KIB, 4 * KIB);
    let stream = machine.record(|| assert!(!split_stopped(&machine, page).unwrap().is_none()));
    assert_eq!(check_breaks(&stream), Ok(()));
    let is_step =
        |operation: &Operation| matches!(operation, Operation::Tlbi(_) | Operation::DsbIsh | Operation::DsbIshst);
    let steps: Vec<usize> = (0..stream.len()).filter(|&index| is_step(&stream[index])).collect();
    // Two blocks, and the group of the page was none from the start.
    assert_eq!(steps.len(), 8);
    for missing in steps {
        let without = [&stream[..missing], &stream[missing + 1..]].concat();
        // The last of one break, if it is missing, is made up for by the first of the next.
        let is_last = stream[missing] == Operation::DsbIshst && stream[missing + 1] == Operation::Isb;
        assert!(
            check_breaks(&without).is_err() || is_last && missing + 2 < stream.len(),
            "without operation {missing}"
        );
    }
}

#[test]
fn with_others_stopped_a_split_goes_as_far_as_its_tables() {
    let (machine, whole) = one_of_each(DATA);
    let (tables, free) = (machine.page_tables(), machine.free_frames());
    let split = |page, count| tables.split_stopped(page, count, &Stopped, &mut machine.frames());
    let none = Splits::NONE;
    let page = range(BASE + GROUP_OF_BLOCKS, 4 * KIB);
    let before = leaf_sizes(&machine, range(BASE, GIB));
    // The group of blocks takes none.
    assert_eq!(split(page, 0), Ok((Splits { groups: [0, 0, 1, 0], ..none }, false)));
    assert_eq!(machine.free_frames(), free);
    assert_eq!(split(page, 1), Ok((Splits { blocks: [0, 0, 1, 0], groups: [0, 0, 0, 1], ..none }, true)));
    assert_eq!((split(page, 1), machine.free_frames()), (Ok((none, true)), free - 1));
    // A gigabyte, at the level that there is a table for.
    assert_eq!(
        split(range(BASE, 4 * KIB), 1),
        Ok((Splits { blocks: [0, 1, 0, 0], groups: [0, 0, 1, 0], ..none }, false))
    );
    assert_eq!(
        split(range(BASE, 4 * KIB), 1),
        Ok((Splits { blocks: [0, 0, 1, 0], groups: [0, 0, 0, 1], ..none }, true))
    );
    let refused = tables.split_stopped(range(BASE + BLOCK, 4 * KIB), 1, &Stopped, &mut machine.frames_limited(0));
    assert_eq!(refused, Err(Error::OutOfTables { needed: 1, available: 0 }));
    assert_ne!(leaf_sizes(&machine, range(BASE, GIB)), before);
    assert_eq!(tables.dump(whole, |_| ()).bytes(), whole.size());
}

fn is_dmb(operation: &Operation) -> bool {
    *operation == Operation::DmbIshst
}

/// The stream of a split: only sizes change; the last entry of a group comes after a barrier that all others come
/// before; so does the link of a table after its contents; and nothing else is issued.
fn check_split(stream: &[Operation]) -> Result<(), String> {
    // Addresses written to since the last barrier.
    let mut unordered: Vec<u64> = Vec::new();
    for operation in stream {
        match *operation {
            Operation::DmbIshst => unordered.clear(),
            Operation::Write { cell, old, new } => {
                let frame = |address: u64| address / Granule4K::PAGE_SIZE;
                let links = new.0 & (bits::VALID | bits::TABLE | bits::AF) == bits::VALID | bits::TABLE;
                if links && unordered.iter().any(|&at| frame(at) == frame(new.address().0)) {
                    return Err(format!("{cell} links a table whose contents may be seen later"));
                }
                let clears = old.0 ^ new.0 == bits::CONTIGUOUS && old.is_contiguous();
                let last = (cell.0 / 8) % 16 == 15;
                if clears && last && unordered.iter().any(|&at| frame(at) == frame(cell.0)) {
                    return Err(format!("{cell} says that its group is split before the others do"));
                }
                unordered.push(cell.0);
            }
            other => return Err(format!("{other:?} is not needed")),
        }
    }
    Ok(())
}

#[test]
fn the_check_of_the_stream_objects_to_every_barrier_that_is_missing() {
    let (machine, _) = one_of_each(DATA);
    let stream = machine.record(|| assert!(!split(&machine, range(BASE + 4 * KIB, 4 * KIB)).unwrap().is_none()));
    assert_eq!(check_split(&stream), Ok(()));
    let barriers: Vec<usize> = (0..stream.len()).filter(|&index| is_dmb(&stream[index])).collect();
    // Two tables and two groups; the second end finds everything done.
    assert_eq!(barriers.len(), 4);
    for missing in barriers {
        let without = [&stream[..missing], &stream[missing + 1..]].concat();
        assert!(check_split(&without).is_err(), "without operation {missing}");
    }
    let too_much = [&stream[..], &[Operation::DsbIshst]].concat();
    assert!(check_split(&too_much).is_err());
}

#[test]
fn nothing_is_split_for_whole_leaves_nor_where_nothing_is_mapped() {
    let (machine, whole) = one_of_each(DATA);
    let edges = [0, GROUP_OF_BLOCKS, BLOCK, GROUP, PAGE, whole.size()];
    let leaves = machine.page_tables().dump(whole, |_| ());
    for (index, &from) in edges.iter().enumerate() {
        for &to in &edges[index + 1..] {
            let record = machine.record(|| {
                assert!(split(&machine, range(BASE + from, to - from)).unwrap().is_none());
            });
            assert_eq!(record, []);
        }
    }
    let hole = range(BASE + 4 * GIB + 4 * KIB, 4 * KIB);
    assert!(machine.page_tables().split(hole, &Lockless, &mut machine.frames_limited(0)).unwrap().is_none());
    assert_eq!(machine.page_tables().dump(whole, |_| ()), leaves);
}

#[test]
fn the_first_and_the_last_page_of_the_address_space_are_pages_like_any_other() {
    let machine = HostMachine::<Granule4K>::new(8);
    for (block, page) in
        [(0xffff_0000_0000_0000, 0xffff_0000_0000_0000), (0xffff_ffff_c000_0000, 0xffff_ffff_ffff_f000)]
    {
        map(&machine, range(VirtAddr(block), GIB), 0, DATA, LARGEST).unwrap();
        let splits = split(&machine, range(VirtAddr(page), 4 * KIB)).unwrap();
        assert_eq!(splits, Splits { blocks: [0, 1, 1, 0], groups: [0, 0, 1, 1], retries: 0 });
        assert_eq!(machine.page_tables().translate(VirtAddr(page)).unwrap().leaf_size, 4 * KIB);
    }
}

#[test]
fn what_is_split_is_counted_by_level() {
    let (machine, _) = one_of_each(DATA);
    let both = range(BASE + 2 * MIB + 4 * KIB, GIB - 4 * MIB - 8 * KIB);
    assert_eq!(split(&machine, both), Ok(Splits { blocks: [0, 1, 2, 0], groups: [0, 0, 2, 2], retries: 0 }));
    let one_group = range(BASE + GROUP + 4 * KIB, 8 * KIB);
    assert_eq!(split(&machine, one_group), Ok(Splits { blocks: [0; 4], groups: [0, 0, 0, 1], retries: 0 }));
}

#[test]
fn present_invalid_leaves_and_software_bits_stay_what_they_are() {
    for (first, size) in [(0, GIB), (GROUP_OF_BLOCKS, 32 * MIB), (BLOCK, 2 * MIB), (GROUP, 64 * KIB)] {
        let (machine, _) = one_of_each(DATA.vm_alloc());
        let leaf = range(BASE + first, size);
        let tables = machine.page_tables();
        tables.update(&Lazy::new(machine.mmu()), leaf, Change::INVALID, WholeLeaves).unwrap().defer();
        let page = range(leaf.start() + (size - 4 * KIB), 4 * KIB);
        assert!(!split(&machine, page).unwrap().is_none());
        tables.dump(leaf, |extent| {
            assert!(!extent.attributes.is_valid() && extent.attributes.0 & bits::VM_ALLOC != 0);
            assert_eq!(extent.physical.0, extent.start - BASE);
        });
        assert_eq!(tables.dump(leaf, |_| ()).bytes(), size);
        // A page of it becomes what a page that was never split would be.
        assert!(tables.update(&Lazy::new(machine.mmu()), page, Change::VALID, RefuseSplits).unwrap().is_none());
        let expected = Descriptor::page(PhysAddr(page.start() - BASE), DATA.vm_alloc());
        assert_eq!(tables.translate(page.start()).unwrap().descriptor, expected);
    }
}

/// Execution forbidden by a table above stays forbidden; execution that none forbade may be asked for after the split.
#[test]
fn a_new_table_forbids_execution_where_one_above_does() {
    for execution in [Execution::ByLeaf, Execution::Forbidden] {
        let machine = HostMachine::<Granule4K>::new(8);
        let shape = Shape { leaves: Leaves::Largest, execution };
        map(&machine, range(BASE, GIB), 0, DATA, shape).unwrap();
        let page = range(BASE + 4 * KIB, 4 * KIB);
        split(&machine, page).unwrap();
        let tables = machine.page_tables();
        let forbids = |step: &granule_pgtable::Step| step.descriptor.0 & bits::PXNTABLE != 0;
        let forbidding: Vec<bool> = tables.walk(page.start()).take(3).map(|step| forbids(&step)).collect();
        assert_eq!(forbidding, [execution == Execution::Forbidden; 3]);
        let lazy = Lazy::new(machine.mmu());
        tables.update(&lazy, page, Change::READ_ONLY, RefuseSplits).unwrap().defer();
        let asked = tables.update(&lazy, page, Change::EXECUTABLE, RefuseSplits);
        assert_eq!(asked.is_ok(), execution == Execution::ByLeaf);
    }
}

#[test]
fn running_out_of_tables_at_each_one_changes_nothing_and_gives_all_back() {
    for (asked, needed) in [
        (range(BASE + GROUP + 4 * KIB, 4 * KIB), 0),
        (range(BASE + BLOCK + 4 * KIB, 4 * KIB), 1),
        (range(BASE + 32 * MIB, 32 * MIB), 1),
        (range(BASE + 4 * KIB, 4 * KIB), 2),
        (range(BASE + 4 * KIB, 2 * MIB), 3),
        (range(BASE + GIB - 4 * KIB, 4 * KIB + 32 * MIB), 2),
        (range(BASE + GIB - 4 * KIB, 2 * MIB), 3),
        (range(BASE + 2 * MIB - 4 * KIB, GIB), 4),
    ] {
        for available in 0..=needed {
            let machine = HostMachine::<Granule4K>::new(12);
            let whole = range(BASE, 2 * GIB + 34 * MIB + 68 * KIB);
            // Two of 1 GiB for the last case, and one of each for the others.
            let second = if needed == 4 { 1 } else { 0 } * GIB;
            map(&machine, range(BASE, GIB + second), 0, DATA, LARGEST).unwrap();
            let rest = range(BASE + GIB + second, 34 * MIB + 68 * KIB);
            map(&machine, rest, GIB + second, DATA, LARGEST).unwrap();
            let (sizes, free) = (leaf_sizes(&machine, whole), machine.free_frames());
            let lazy = Lazy::new(machine.mmu());
            let mut source = machine.frames_limited(available);
            let result = crate::update_splitting(&machine.page_tables(), &lazy, asked, Change::READ_ONLY, &mut source);
            if available == needed {
                result.unwrap().0.defer();
                assert_eq!(machine.free_frames(), free - needed);
            } else {
                assert_eq!(result, Err(Error::OutOfTables { needed, available }));
                assert_eq!(machine.free_frames(), free);
                assert_eq!(leaf_sizes(&machine, whole), sizes);
                machine.page_tables().dump(whole, |extent| assert!(extent.is_writable()));
            }
        }
    }
}

fn update(machine: &HostMachine, range: PageRange, change: Change) -> Result<Flush, Error> {
    machine.page_tables().update(&Lazy::new(machine.mmu()), range, change, RefuseSplits)
}

#[test]
fn a_divisible_range_gets_no_level_hint() {
    for part in [range(BASE + PAGE, 4 * KIB), range(BASE + BLOCK, 2 * MIB), one_of_each(DATA).1] {
        let (machine, _) = one_of_each(DATA);
        let owed = update(&machine, part, Change::READ_ONLY).unwrap().invalidation().unwrap();
        assert_eq!((owed.range, owed.level), (part, None));
    }
}

#[test]
fn a_cut_leaf_that_is_as_asked_already_is_no_error() {
    let (machine, whole) = one_of_each(DATA);
    for (at, leaf, size) in [
        (4 * KIB, 0, GIB),
        (GROUP_OF_BLOCKS + 2 * MIB, GROUP_OF_BLOCKS, 32 * MIB),
        (BLOCK + 4 * KIB, BLOCK, 2 * MIB),
        (GROUP + 4 * KIB, GROUP, 64 * KIB),
    ] {
        let page = range(BASE + at, 4 * KIB);
        let record = machine.record(|| assert_eq!(update(&machine, page, Change::READ_WRITE), Ok(Flush::NONE)));
        assert_eq!(record, []);
        let straddles = Error::Straddles { leaf: BASE + leaf, size };
        assert_eq!(update(&machine, page, Change::READ_ONLY), Err(straddles));
        // Where it may not be asked for at all it stays an error.
        assert!(update(&machine, page, Change::READ_WRITE.require_bits(bits::VM_ALLOC)).is_err());
    }
    // A hole is one, whatever the rest is like.
    let beyond = range(whole.last().align_down(4 * KIB), 8 * KIB);
    assert_eq!(update(&machine, beyond, Change::READ_WRITE), Err(Error::NotMapped(beyond.start() + 4 * KIB)));
}

/// The last entry of a group speaks for it: as long as that has the bit, another CPU is not done with the others.
#[test]
fn a_group_counts_as_one_leaf_until_its_last_entry_is_clear() {
    for (first, entry) in [(GROUP, 4 * KIB), (GROUP_OF_BLOCKS, 2 * MIB)] {
        let (machine, _) = one_of_each(DATA);
        let group = BASE + first;
        let cells = machine.page_tables().walk(group).last().unwrap();
        let table = |machine: &HostMachine, index: usize| {
            // SAFETY: the table is linked, and has as many entries as any.
            #[allow(unsafe_code, reason = "another CPU's stores, one by one")]
            let table = unsafe { Table::<Granule4K>::root(cells.table) };
            machine.mmu().clear_bits(&machine.mmu().table(table)[cells.index + index], bits::CONTIGUOUS);
        };
        let straddles = Error::Straddles { leaf: group, size: 16 * entry };
        for cleared in 0..15 {
            table(&machine, cleared);
            for part in [(0, 1), (3, 9), (0, 15), (14, 2), (15, 1)] {
                let part = range(group + part.0 * entry, part.1 * entry);
                assert_eq!(update(&machine, part, Change::READ_ONLY), Err(straddles), "{cleared} {part:?}");
            }
        }
        table(&machine, 15);
        for part in [(0, 1), (3, 9), (15, 1), (0, 16)] {
            let part = range(group + part.0 * entry, part.1 * entry);
            update(&machine, part, Change::READ_ONLY).unwrap().defer();
        }
    }
}

/// A source whose first frame comes with another CPU's work on the same leaf.
struct Meanwhile<'m, F> {
    frames: HostFrames<'m>,
    work: Option<F>,
    given_back: &'m Cell<usize>,
}

// SAFETY: the frames are the host machine's.
#[allow(unsafe_code, reason = "implementing the contract of `TableSource`")]
unsafe impl<F: FnOnce()> TableSource for Meanwhile<'_, F> {
    fn take(&mut self) -> Option<PhysAddr> {
        if let Some(work) = self.work.take() {
            work();
        }
        self.frames.take()
    }

    unsafe fn give_back(&mut self, table: PhysAddr) {
        self.given_back.set(self.given_back.get() + 1);
        // SAFETY: the caller's contract.
        unsafe { self.frames.give_back(table) };
    }
}

#[test]
fn what_another_split_has_done_meanwhile_is_used_and_left_over_tables_go_back() {
    for (theirs, left_over) in [(BASE, 2), (BASE + 2 * MIB, 1), (BASE + 512 * MIB, 1)] {
        let (machine, _) = one_of_each(DATA);
        let given_back = Cell::new(0);
        let mine = range(BASE + 4 * KIB, 4 * KIB);
        let work = || assert!(!split(&machine, range(theirs, 4 * KIB)).unwrap().is_none());
        let mut source = Meanwhile { frames: machine.frames(), work: Some(work), given_back: &given_back };
        let splits = machine.page_tables().split(mine, &Lockless, &mut source).unwrap();
        assert_eq!(given_back.get(), left_over);
        assert_eq!(splits.blocks[1], 0);
        assert_eq!(machine.page_tables().translate(mine.start()).unwrap().leaf_size, 4 * KIB);
        assert_eq!(machine.page_tables().dump(range(BASE, GIB), |_| ()).bytes(), GIB);
    }
}

/// Wherever in a lockless split another one comes, of the same leaf and with a change after it: both get what they
/// asked for and no more, and no table is lost.
#[test]
fn two_lockless_splits_of_one_leaf_leave_each_other_their_changes() {
    let mine = range(BASE + 4 * KIB, 4 * KIB);
    // In the same group; in another group of the same block; in another block of the same; far away.
    for (theirs, tables) in [(BASE + 12 * KIB, 2), (BASE + 256 * KIB, 2), (BASE + 4 * MIB, 3), (BASE + 64 * MIB, 3)] {
        let theirs = range(theirs, 8 * KIB);
        let mut interrupts = 0;
        loop {
            let (machine, whole) = one_of_each(DATA);
            let free = machine.free_frames();
            let change = |cpu: &PageTables<'_, HostMmu>| {
                let (lazy, mut source) = (Lazy::new(machine.mmu()), machine.frames());
                let (flush, _) = crate::update_splitting(cpu, &lazy, theirs, Change::READ_ONLY, &mut source).unwrap();
                assert_eq!(flush.invalidation().unwrap().range, theirs);
            };
            let cpu = Interrupted::at(interrupts, machine.mmu(), || change(&machine.page_tables()));
            let tables_here = PageTables::new(&cpu, machine.page_tables().root());
            let (lazy, mut source) = (Lazy::new(&cpu), machine.frames());
            let (flush, _) = crate::update_splitting(&tables_here, &lazy, mine, Change::INVALID, &mut source).unwrap();
            assert_eq!(flush.invalidation().unwrap().range, mine);
            if !cpu.was_interrupted() {
                break;
            }
            machine.page_tables().dump(whole, |extent| {
                assert!(extent.physically_contiguous && extent.physical.0 == extent.start - BASE);
                assert_eq!(!extent.attributes.is_valid(), extent.start == mine.start(), "at operation {interrupts}");
                assert_eq!(!extent.attributes.is_writable(), extent.start == theirs.start(), "at {interrupts}");
            });
            assert_eq!(free - machine.free_frames(), tables, "at operation {interrupts}");
            interrupts += 1;
        }
        // Before each store to a new table as well.
        assert!(interrupts > 1024, "{interrupts}");
    }
}

/// Everything that happens in another split's window, by the same CPU.
struct Window<'m>(&'m dyn Fn());

// SAFETY: `Unguarded` promises nothing.
#[allow(unsafe_code, reason = "keeps the contract of `Serialise`")]
unsafe impl Serialise for Window<'_> {
    type Section<'a>
        = ()
    where
        Self: 'a;

    fn entries(&self) -> Entries {
        Entries::Unguarded
    }

    fn begin(&self) {}

    fn window(&self) {
        (self.0)();
    }
}

/// The section protects the neighbour's change: without one, the change in the window is lost.
#[test]
fn a_plain_split_that_nothing_serialises_loses_the_neighbours_change() {
    let (machine, _) = one_of_each(DATA);
    let theirs = range(BASE + GROUP + 12 * KIB, 4 * KIB);
    let windows = Cell::new(0);
    let neighbour = || {
        windows.set(windows.get() + 1);
        // While entry 3 is read and not written yet.
        if windows.get() == 4 {
            split(&machine, theirs).unwrap();
            update(&machine, theirs, Change::READ_ONLY).unwrap().defer();
        }
    };
    let mine = range(BASE + GROUP, 4 * KIB);
    machine.page_tables().split(mine, &Window(&neighbour), &mut machine.frames()).unwrap();
    assert!(machine.page_tables().translate(theirs.start()).unwrap().descriptor.is_writable(), "nothing was lost");
}

/// Splits and changes at random, against a list of pages.
fn scattered_changes<G: Geometry>(calls: &[(u16, u16, bool)]) {
    let machine = HostMachine::<G>::new(40);
    // Of each size one leaf, and a piece of a second.
    let size = G::group_size(2) + G::entry_size(2) + G::group_size(3) + G::PAGE_SIZE;
    let (whole, offset) = (range::<G>(VirtAddr(0), size.min(1 << G::VA_BITS)), 0);
    map(&machine, whole, offset, DATA, LARGEST).unwrap();
    let pages = whole.pages() as u64;
    let mut read_only = vec![false; whole.pages()];
    for &(first, count, make_read_only) in calls {
        // Near the edges of the leaves as often as not.
        let first = (u64::from(first) * pages) >> 16;
        let count = (1 + ((u64::from(count) * 40) >> 16)).min(pages - first);
        let part = range::<G>(VirtAddr(first * G::PAGE_SIZE), count * G::PAGE_SIZE);
        let change = if make_read_only { Change::READ_ONLY } else { Change::READ_WRITE };
        let stream = machine.record(|| {
            let lazy = Lazy::new(machine.mmu());
            let tables = machine.page_tables();
            let (flush, _) = crate::update_splitting(&tables, &lazy, part, change, &mut machine.frames()).unwrap();
            lazy.invalidate(machine.tlb(), [flush]);
        });
        assert!(count_of_invalidations(&stream) <= 1);
        read_only[first as usize..][..count as usize].fill(make_read_only);
    }
    let mut at = 0;
    machine.page_tables().dump(whole, |extent| {
        assert!(extent.physically_contiguous || extent.size == 0);
        assert_eq!(extent.physical.0, extent.start.0);
        let pages = (extent.size >> G::PAGE_SHIFT) as usize;
        assert!(read_only[at..at + pages].iter().all(|&page| page != extent.attributes.is_writable()));
        at += pages;
    });
    assert_eq!(at, read_only.len());
}

fn count_of_invalidations<G: Geometry>(stream: &[Operation<G>]) -> usize {
    let counts = count(stream);
    assert!(counts.dsb <= 2 && counts.isb <= 1);
    counts.tlbi
}

proptest! {
    #![proptest_config(Config::with_cases(64))]

    #[test]
    fn pages_change_and_their_neighbours_do_not(calls in vec(any::<(u16, u16, bool)>(), 1..24)) {
        scattered_changes::<Granule4K>(&calls);
        scattered_changes::<Granule16K>(&calls);
        scattered_changes::<Tiny>(&calls);
    }
}

/// The 64 KiB granule has leaves of 16 GiB: once is enough.
#[test]
fn each_granule_splits_to_its_own_pieces() {
    fn check<G: Geometry>(pieces: &[(u64, u64)]) {
        let machine = HostMachine::<G>::new(8);
        let whole = range::<G>(VirtAddr(0), G::group_size(2));
        map(&machine, whole, 0, DATA, LARGEST).unwrap();
        let page = range::<G>(VirtAddr(0), G::PAGE_SIZE);
        machine.page_tables().split(page, &Lockless, &mut machine.frames()).unwrap();
        assert_eq!(leaf_sizes(&machine, whole), pieces);
    }
    check::<Granule4K>(&[(4 * KIB, 16), (64 * KIB, 31), (2 * MIB, 15)]);
    check::<Granule16K>(&[(16 * KIB, 128), (2 * MIB, 15), (32 * MIB, 31)]);
    check::<Granule64K>(&[(64 * KIB, 32), (2 * MIB, 255), (512 * MIB, 31)]);
    check::<Tiny>(&[(4 * KIB, 2), (8 * KIB, 1), (16 * KIB, 1)]);
}

/// A look at a part of a block has found nothing to change; then the owner of another part splits the block. A table
/// is in its place, whose address is no memory of the range.
#[test]
fn a_block_that_is_split_behind_a_look_is_not_taken_for_memory() {
    let machine = HostMachine::<Granule4K>::new(8);
    let tables = machine.page_tables();
    let whole = range(BASE, 2 * MIB);
    map(&machine, whole, GIB, RODATA, LARGEST).unwrap();
    let part = range(BASE + 64 * KIB, 8 * KIB);
    let look = || {
        let mut source = machine.frames();
        tables.look(part, &Change::READ_ONLY, &mut Split::new(&Lockless, &mut source)).unwrap()
    };
    assert_eq!(look().physical(), Some(PhysAddr(GIB + 64 * KIB)));
    let ready = look();
    tables.split(range(BASE + MIB, 4 * KIB), &Lockless, &mut machine.frames()).unwrap();
    assert_eq!(ready.physical(), None);
    assert_eq!(look().physical(), Some(PhysAddr(GIB + 64 * KIB)));
}
