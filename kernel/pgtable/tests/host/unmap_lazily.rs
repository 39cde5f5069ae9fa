//! Unmapping in two halves, with one invalidation for several ranges between them: what the first leaves to be read,
//! what it refuses, and what the second hands out, whatever collapses and reclaims do concurrently.

use core::sync::atomic::AtomicU64;

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Attributes, Descriptor, bits};
use granule_pgtable::host::{HostMachine, Operation};
use granule_pgtable::{
    Announced, Change, Collapser, Error, Geometry, Granule4K, Handshake, Lazy, Leaf, PageRange, Progress, Reclaimer,
    Shape, Stores, WholeLeaves,
};

use crate::collapse::{all_of, collapse};
use crate::reclaim::reclaim;
use crate::{DATA, KIB, LARGEST, MIB, RODATA, TEXT, leaf_sizes, map, range, vouched};

/// The mark that the first half takes away from each leaf.
const MARK: u64 = bits::VM_ALLOC;
const OWNED: Attributes = DATA.vm_alloc();

/// Frames for tables.
const FRAMES: usize = 8;

/// Bytes of a block, and of groups of pages and of blocks.
fn sizes<G: Geometry>() -> (u64, u64, u64) {
    (G::entry_size(2), G::group_size(3), G::group_size(2))
}

fn at<G: Geometry>(start: u64, size: u64) -> PageRange<G> {
    range(VirtAddr(start), size)
}

/// A machine with all of `range` mapped to the same physical addresses.
fn machine<G: Geometry>(range: PageRange<G>, attributes: Attributes, shape: Shape) -> HostMachine<G> {
    let machine = HostMachine::new(FRAMES);
    map(&machine, range, range.start().0, attributes, shape).unwrap();
    machine
}

/// The entries of `range` that are not empty, in ascending order.
fn entries<G: Geometry>(machine: &HostMachine<G>, range: PageRange<G>) -> Vec<(Leaf, Descriptor)> {
    let (mut found, mut address) = (Vec::new(), range.start());
    loop {
        let step = machine.page_tables().walk(address).last().unwrap();
        let size = G::entry_size(step.level);
        if step.descriptor != Descriptor::EMPTY {
            let start = address.align_down(size);
            let leaf = Leaf { address: start, physical: step.descriptor.address(), size };
            found.push((leaf, step.descriptor));
        }
        let next = address.align_down(size) + (size - 1);
        if next >= range.last() {
            break found;
        }
        address = next + 1;
    }
}

/// Stores `new` to the entry where the walk for `address` ends.
fn rewrite<G: Geometry>(machine: &HostMachine<G>, address: VirtAddr, new: impl Fn(Descriptor) -> Descriptor) {
    let step = machine.page_tables().walk(address).last().unwrap();
    machine.mmu().store(machine.entry(&step), new(step.descriptor));
}

/// The first half is done, and every leaf is what it was, but neither valid nor marked.
#[track_caller]
fn first_half<G: Geometry>(machine: &HostMachine<G>, range: PageRange<G>) {
    let before = entries(machine, range);
    let record = machine.record(|| assert_eq!(machine.page_tables().unmap_lazily(range, 0, MARK), Ok(true)));
    assert_only_writes(&record);
    let waiting = before.into_iter().map(|(leaf, old)| (leaf, Descriptor(Change::INVALID.apply(old).0 & !MARK)));
    assert_eq!(entries(machine, range), waiting.collect::<Vec<_>>());
}

/// The second half; returns what it hands out.
#[track_caller]
fn second_half<G: Geometry>(machine: &HostMachine<G>, range: PageRange<G>) -> Vec<Leaf> {
    let mut released = Vec::new();
    let record =
        machine.record(|| vouched::release_unmapped(&machine.page_tables(), range, |leaf| released.push(leaf)));
    assert_only_writes(&record);
    assert_eq!(entries(machine, range), []);
    released
}

/// No barrier, no invalidation, and nothing becomes valid.
#[track_caller]
fn assert_only_writes<G: Geometry>(record: &[Operation<G>]) {
    let is_legal = |operation: &Operation<G>| match operation {
        Operation::Write { new, .. } => !new.is_valid(),
        _ => false,
    };
    assert!(record.iter().all(is_legal), "{record:?}");
}

/// Both halves: each leaf comes out once, in ascending order.
#[track_caller]
fn both_halves<G: Geometry>(machine: &HostMachine<G>, range: PageRange<G>) {
    let leaves: Vec<_> = entries(machine, range).into_iter().map(|(leaf, _)| leaf).collect();
    assert!(leaves.is_sorted_by(|one, next| one.address < next.address) && !leaves.is_empty());
    first_half(machine, range);
    assert_eq!(second_half(machine, range), leaves);
    assert_eq!(second_half(machine, range), [], "a second time there is nothing");
}

fn each_leaf_waits_and_comes_out_once<G: Geometry>() {
    let (block, group, blocks) = sizes::<G>();
    let page = G::PAGE_SIZE;
    for (start, size, shape) in [
        (page, page, Shape::PAGES),
        (page, 2 * page, Shape::PAGES),
        (block - page, 2 * page, Shape::PAGES),
        (block - page, block + 2 * page, Shape::PAGES),
        (0, group, LARGEST),
        (block - group, 2 * group, LARGEST),
        (block, block, LARGEST),
        (0, blocks, LARGEST),
        (block - page, block + 2 * page, LARGEST),
        (0, blocks + block + group + page, LARGEST),
    ] {
        let part = at::<G>(start, size);
        let machine = machine(part, OWNED, shape);
        both_halves(&machine, part);
        assert_eq!(map(&machine, part, 0, OWNED, shape), Ok(()));
    }
}

/// Leaves beside the range, in the same tables, stay as they are.
fn neighbours_stay<G: Geometry>() {
    let (block, page) = (G::entry_size(2), G::PAGE_SIZE);
    let all = at::<G>(block - 2 * page, 4 * page);
    for part in [at::<G>(block - page, page), at(block - page, 2 * page), at(block, page)] {
        let machine = machine(all, OWNED, Shape::PAGES);
        let beside = |found: &(Leaf, Descriptor)| !part.contains(found.0.address);
        let before: Vec<_> = entries(&machine, all).into_iter().filter(beside).collect();
        both_halves(&machine, part);
        assert_eq!(entries(&machine, all), before);
    }
}

/// Leaves that one flip does not make invalid: some are already, some have no mark or are not global.
fn leaves_of_all_kinds_wait<G: Geometry>() {
    let (block, page) = (G::entry_size(2), G::PAGE_SIZE);
    let changes: [fn(Descriptor) -> Descriptor; 5] = [
        |old| old,
        |old| Change::INVALID.apply(old),
        |old| Descriptor(old.0 & !MARK),
        |old| Descriptor(Change::INVALID.apply(old).0 & !MARK),
        |old| Descriptor(old.0 | bits::NG),
    ];
    // In one table and in two.
    for start in [0, block - 2 * page] {
        let all = at::<G>(start, 4 * page);
        for (first, second) in (0..changes.len()).flat_map(|first| (0..changes.len()).map(move |next| (first, next))) {
            let machine = machine(all, OWNED, Shape::PAGES);
            for number in 0..4 {
                let change = changes[if number % 2 == 0 { first } else { second }];
                rewrite(&machine, all.start() + number * page, change);
            }
            both_halves(&machine, all);
        }
    }
    // A block beside pages, which are not valid.
    let all = at::<G>(block, block + 2 * page);
    let machine = machine(all, OWNED, LARGEST);
    rewrite(&machine, VirtAddr(2 * block), changes[1]);
    rewrite(&machine, VirtAddr(2 * block + page), changes[3]);
    both_halves(&machine, all);
}

/// The first half does not do it, and stores nothing.
#[track_caller]
fn assert_left<G: Geometry>(machine: &HostMachine<G>, range: PageRange<G>, unwanted: u64, answer: Result<bool, Error>) {
    let before = entries(machine, range);
    let record = machine.record(|| assert_eq!(machine.page_tables().unmap_lazily(range, unwanted, MARK), answer));
    assert_eq!(record, []);
    assert_eq!(entries(machine, range), before);
}

fn what_is_unwanted_or_executable_is_left<G: Geometry>() {
    let (block, page) = (G::entry_size(2), G::PAGE_SIZE);
    // In one table; in two; with a block in the middle.
    for (start, size, places) in [
        (page, 3 * page, [page, 2 * page, 3 * page]),
        (block - page, 2 * page, [block - page, block, block]),
        (block - page, block + 2 * page, [block - page, block, 2 * block]),
    ] {
        let part = at::<G>(start, size);
        let executable = |old: Descriptor| Descriptor(old.0 & !bits::PXN);
        let read_only = |old: Descriptor| Descriptor(old.0 | bits::RDONLY);
        for place in places.map(VirtAddr) {
            let machine = machine(part, OWNED, LARGEST);
            rewrite(&machine, place, read_only);
            assert_left(&machine, part, bits::RDONLY, Ok(false));
            assert_left(&machine, part, bits::RDONLY | bits::NG, Ok(false));
            // Where that does not matter, it is done.
            first_half(&machine, part);
            assert_eq!(second_half(&machine, part).iter().map(|leaf| leaf.size).sum::<u64>(), size);

            let machine = self::machine(part, OWNED, LARGEST);
            rewrite(&machine, place, executable);
            assert_left(&machine, part, bits::RDONLY, Ok(false));
            assert_left(&machine, part, 0, Ok(false));
            // Present-invalid it is executable too, to any TLB that may still hold it.
            rewrite(&machine, place, |old| Change::INVALID.apply(old));
            assert_left(&machine, part, 0, Ok(false));
        }
        for attributes in [RODATA, TEXT] {
            let machine = machine(part, attributes, LARGEST);
            assert_left(&machine, part, bits::RDONLY, Ok(false));
        }
    }
}

/// A hole may be anything, so a range with one is left; one that is given up as well has nothing to hand out there.
fn holes_are_left<G: Geometry>() {
    let (block, page) = (G::entry_size(2), G::PAGE_SIZE);
    let machine = machine::<G>(at(block - page, page), OWNED, Shape::PAGES);
    map(&machine, at(block + page, page), block + page, OWNED, Shape::PAGES).unwrap();
    for (start, size) in
        [(block - page, 2 * page), (block - page, 3 * page), (block, page), (block, 2 * page), (2 * block, block)]
    {
        assert_left(&machine, at(start, size), 0, Ok(false));
    }
    [block - page, block + page].into_iter().for_each(|start| first_half(&machine, at(start, page)));
    let released = second_half(&machine, at::<G>(0, 2 * block)).into_iter().map(|leaf| leaf.address);
    assert_eq!(released.collect::<Vec<_>>(), [VirtAddr(block - page), VirtAddr(block + page)]);
}

fn a_leaf_that_is_cut_is_named_and_nothing_changes<G: Geometry>() {
    let (block, group, blocks) = sizes::<G>();
    let page = G::PAGE_SIZE;
    let single = blocks + block;
    let all = at::<G>(0, single + group + page);
    let machine = machine(all, OWNED, LARGEST);
    let cut_blocks = Error::Straddles { leaf: VirtAddr(0), size: blocks };
    let cut_block = Error::Straddles { leaf: VirtAddr(blocks), size: block };
    let cut_group = Error::Straddles { leaf: VirtAddr(single), size: group };
    for (start, size, error) in [
        (0, block, cut_blocks),
        (block, blocks - block, cut_blocks),
        (page, page, cut_blocks),
        (blocks - page, 2 * page, cut_blocks),
        (blocks, page, cut_block),
        (blocks, block - page, cut_block),
        (blocks + page, block - page, cut_block),
        (single - page, group, cut_block),
        (single, page, cut_group),
        (single, group - page, cut_group),
        (single + page, group - page, cut_group),
        (single + group - page, 2 * page, cut_group),
        (blocks, block + page, cut_group),
    ] {
        for unwanted in [0, bits::RDONLY] {
            assert_left(&machine, at(start, size), unwanted, Err(error));
        }
    }
    both_halves(&machine, all);
}

/// Each link on the way to a leaf with the mark of a reclaim or a collapse that has begun: both halves take it away before
/// they store.
fn marks_on_the_way_are_taken_away<G: Geometry>() {
    const MARKS: [u64; 3] = [bits::RECLAIM_MARK, bits::COLLAPSING, bits::RECLAIM_MARK | bits::COLLAPSING];
    let (block, page) = (G::entry_size(2), G::PAGE_SIZE);
    let links = |machine: &HostMachine<G>, address| {
        machine.page_tables().walk(address).filter(|step| step.descriptor.is_table()).collect::<Vec<_>>()
    };
    for (start, size) in [(page, page), (block - page, 2 * page), (block, block), (block - page, block + 2 * page)] {
        for mark in MARKS {
            let part = at::<G>(start, size);
            let machine = machine(part, OWNED, LARGEST);
            let leaves: Vec<_> = entries(&machine, part).into_iter().map(|(leaf, _)| leaf).collect();
            let set = || {
                for link in leaves.iter().flat_map(|leaf| links(&machine, leaf.address)) {
                    machine.mmu().store(machine.entry(&link), Descriptor(link.descriptor.0 | mark));
                }
            };
            let is_marked = |address| links(&machine, address).iter().any(|link| link.descriptor.0 & mark != 0);
            set();
            assert_eq!(machine.page_tables().unmap_lazily(part, 0, MARK), Ok(true));
            assert!(!leaves.iter().any(|leaf| is_marked(leaf.address)));
            set();
            let mut released = Vec::new();
            vouched::release_unmapped(&machine.page_tables(), part, |leaf| {
                assert!(!is_marked(leaf.address), "a store in a marked table");
                released.push(leaf);
            });
            assert_eq!((entries(&machine, part), &released), (vec![], &leaves));
            reclaim(&machine, part);
            assert_eq!(machine.free_frames(), FRAMES);
        }
    }
}

/// A block that has replaced a table, and whose mark still stands, loses it in the first half.
fn the_mark_of_a_block_is_taken_away<G: Geometry>() {
    let block = at::<G>(G::entry_size(2), G::entry_size(2));
    let machine = machine(block, OWNED, LARGEST);
    rewrite(&machine, block.start(), |old| Descriptor(old.0 | bits::COLLAPSING));
    assert_eq!(machine.page_tables().unmap_lazily(block, 0, MARK), Ok(true));
    let waiting = entries(&machine, block);
    assert!(matches!(waiting[..], [(_, found)] if found.0 & (bits::COLLAPSING | bits::VALID) == 0));
    assert_eq!(second_half(&machine, block).len(), 1);
}

/// The walk words of two CPUs.
type Words = [AtomicU64; 2];

/// While something of it waits, a table stays; then it goes.
fn a_table_stays_until_the_second_half<G: Geometry>() {
    let (block, page) = (G::entry_size(2), G::PAGE_SIZE);
    let part = at::<G>(block - page, 2 * page);
    let machine = machine(part, OWNED, Shape::PAGES);
    let tables = FRAMES - machine.free_frames();
    first_half(&machine, part);
    assert_eq!(reclaim(&machine, part), 0);
    assert_eq!(second_half(&machine, at::<G>(block, page)).len(), 1);
    assert_eq!(reclaim(&machine, part), 1);
    assert_eq!(second_half(&machine, part).len(), 1);
    assert_eq!((reclaim(&machine, part), machine.free_frames()), (tables - 1, FRAMES));
}

/// A reclaim that has marked an empty table, and waits for a walk, is given up where the table fills, and what fills it
/// waits in turn.
fn a_reclaim_that_has_begun_loses_nothing<G: Geometry>() {
    let page = G::PAGE_SIZE;
    let (part, words) = (at::<G>(page, 2 * page), Words::default());
    let machine = machine(part, OWNED, Shape::PAGES);
    let tables = FRAMES - machine.free_frames();
    let advance = |reclaimer: &mut Reclaimer<G, 2>| vouched::reclaim(&machine, reclaimer, |cpu| words.get(cpu)).0;
    both_halves(&machine, part);
    let mut reclaimer = Reclaimer::new();
    reclaimer.start(part);
    let walk = Announced::begin(&words[1]);
    assert_eq!(advance(&mut reclaimer), Progress::Waiting);
    map(&machine, part, 0, OWNED, Shape::PAGES).unwrap();
    first_half(&machine, part);
    drop(walk);
    assert_eq!(advance(&mut reclaimer), Progress::Done);
    assert_eq!((machine.free_frames(), second_half(&machine, part).len()), (FRAMES - tables, 2));
    assert_eq!(reclaim(&machine, part), tables);
}

in_every_geometry!(
    each_leaf_waits_and_comes_out_once,
    neighbours_stay,
    leaves_of_all_kinds_wait,
    what_is_unwanted_or_executable_is_left,
    holes_are_left,
    a_leaf_that_is_cut_is_named_and_nothing_changes,
    marks_on_the_way_are_taken_away,
    the_mark_of_a_block_is_taken_away,
    a_table_stays_until_the_second_half,
    a_reclaim_that_has_begun_loses_nothing
);

/// Pages around what waits become groups, in another table, and what waits is there too.
#[test]
fn what_waits_moves_to_the_table_of_a_collapse() {
    for handshake in [Handshake::Marks, Handshake::Stopped] {
        let whole = at::<Granule4K>(0, 2 * MIB);
        let machine = machine(whole, OWNED, Shape::PAGES);
        let part = at(68 * KIB, 8 * KIB);
        let leaves: Vec<_> = entries(&machine, part).into_iter().map(|(leaf, _)| leaf).collect();
        first_half(&machine, part);
        let waiting = entries(&machine, part);
        let groups = collapse(&machine, granule_pgtable::Collapse { handshake, ..all_of(whole) }).groups;
        assert_eq!((groups, entries(&machine, part)), ([0, 0, 0, 1], waiting));
        assert_eq!(second_half(&machine, part), leaves);
        assert_eq!(leaf_sizes(&machine, whole), [(64 * KIB, 1), (4 * KIB, 1), (4 * KIB, 13), (64 * KIB, 30)]);
    }
}

/// The second half comes between the two looks of a collapse, which is given up for that table.
#[test]
fn a_collapse_that_has_begun_loses_no_release() {
    let whole = at::<Granule4K>(0, 2 * MIB);
    let machine = machine(whole, OWNED, Shape::PAGES);
    let part = at(68 * KIB, 8 * KIB);
    let leaves: Vec<_> = entries(&machine, part).into_iter().map(|(leaf, _)| leaf).collect();
    first_half(&machine, part);
    let (mut collapser, words) = (Collapser::<Granule4K, 2>::new(), Words::default());
    let number = |cpu: usize| words.get(cpu);
    collapser.start(all_of(whole));
    vouched::mark(&mut collapser, &machine.page_tables(), number);
    let mut released = Vec::new();
    vouched::release_unmapped(&machine.page_tables(), part, |leaf| released.push(leaf));
    while !collapser.is_idle() {
        let free = |table| machine.free_table(table);
        vouched::collapse(&mut collapser, &machine.page_tables(), machine.tlb(), number, &mut machine.frames(), free);
        vouched::mark(&mut collapser, &machine.page_tables(), number);
    }
    assert_eq!((released, collapser.done().cancelled), (leaves, 1));
    assert_eq!(entries(&machine, part), []);
}

/// The two halves hand out the leaves that an unmapping at once hands out.
#[test]
fn both_halves_hand_out_what_an_unmapping_does() {
    let all = at::<Granule4K>(0, 34 * MIB + 68 * KIB);
    let [at_once, lazily] = [machine(all, OWNED, LARGEST), machine(all, OWNED, LARGEST)];
    let mut leaves = Vec::new();
    let lazy = Lazy::new(at_once.mmu());
    at_once.page_tables().unmap(&lazy, at_once.tlb(), all, WholeLeaves, |leaf| leaves.push(leaf)).unwrap();
    first_half(&lazily, all);
    assert_eq!(second_half(&lazily, all), leaves);
}
