//! Which tables are collapsed, to what, in which order of operations; and an owner that comes by at every one of them.
//!
//! One CPU, step by step; what other CPUs may do in between is tried in every order by the crate `granule-loom`.

use core::sync::atomic::AtomicU64;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType, bits};
use granule_pgtable::host::{HostMachine, Operation};
use granule_pgtable::{
    Announced, Change, Collapse, Collapser, Collapses, Execution, Geometry, Granule4K, Granule16K, Granule64K,
    Handshake, Invalidation, Lazy, Leaves, Lockless, PageRange, PageTables, Progress, RefuseSplits, Shape, Split,
    Stores, Tables,
};

use crate::interrupt::{Interrupted, RecordingTlb};
use crate::reclaim::reclaim;
use crate::split::check_breaks;
use crate::{BASE, DATA, GIB, KIB, LARGEST, MIB, RODATA, leaf_sizes, map, range, vouched};

/// The walk words of two CPUs.
type Words = [AtomicU64; 2];

pub(crate) fn all_of<G: Geometry>(range: PageRange<G>) -> Collapse<G> {
    Collapse { range, never_blocks: 0, handshake: Handshake::Marks }
}

/// Takes a collapse to its end on a machine that has no other CPU.
pub(crate) fn collapse<G: Geometry>(machine: &HostMachine<G>, what: Collapse<G>) -> Collapses {
    let (mut collapser, words) = (Collapser::<G, 2>::new(), Words::default());
    let at = |cpu: usize| words.get(cpu);
    collapser.start(what);
    while !collapser.is_idle() {
        vouched::mark(&mut collapser, &machine.page_tables(), at);
        if what.handshake == Handshake::Stopped {
            vouched::replace_stopped(&mut collapser, &machine.page_tables());
        }
        let progress = {
            let free = |table| machine.free_table(table);
            vouched::collapse(&mut collapser, &machine.page_tables(), machine.tlb(), at, &mut machine.frames(), free)
        };
        assert_eq!(progress, Progress::Done);
    }
    collapser.done()
}

fn change(machine: &HostMachine, range: PageRange, change: Change) {
    let (lazy, mut frames) = (Lazy::new(machine.mmu()), machine.frames());
    let split = Split::new(&Lockless, &mut frames);
    let flush = machine.page_tables().update(&lazy, range, change, split).unwrap();
    lazy.invalidate(machine.tlb(), [flush]);
}

/// Splits one page out of what is there, and makes it as it was.
fn use_one_page(machine: &HostMachine, at: VirtAddr) {
    change(machine, range(at, 4 * KIB), Change::READ_ONLY);
    change(machine, range(at, 4 * KIB), Change::READ_WRITE);
}

fn every_level_is_folded<G: Geometry>(whole: PageRange<G>, frames: usize, handshake: Handshake) {
    let all_of = |range| Collapse { handshake, ..all_of(range) };
    let machine = HostMachine::<G>::new(frames);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    let tables = machine.page_tables();
    let before = tables.dump(whole, |_| ());
    let done = collapse(&machine, all_of(whole));
    // As the largest leaves map it.
    let other = HostMachine::<G>::new(frames);
    map(&other, whole, 0, DATA, LARGEST).unwrap();
    assert_eq!(leaf_sizes(&machine, whole), leaf_sizes(&other, whole));
    assert_eq!(machine.free_frames(), other.free_frames(), "the tables came back");
    assert_eq!(tables.dump(whole, |_| ()).bytes(), before.bytes());
    tables.dump(whole, |extent| {
        assert!(extent.physically_contiguous && extent.physical.0 == extent.start - whole.start());
        assert_eq!(extent.attributes.0 & !(bits::CONTIGUOUS | bits::TABLE), DATA.bits());
    });
    assert_ne!(done.replaced(), 0);
    assert_eq!(done.cancelled, 0);
    let nothing = machine.record(|| assert_eq!(collapse(&machine, all_of(whole)), Collapses::NONE));
    assert_eq!(nothing, [], "a second time there is nothing to do");
}

#[test]
fn pages_become_the_largest_leaves_at_every_level_in_every_geometry() {
    for handshake in [Handshake::Marks, Handshake::Stopped] {
        every_level_is_folded::<Granule4K>(range(BASE, GIB + 34 * MIB + 68 * KIB), 540, handshake);
        every_level_is_folded::<Granule16K>(range(BASE, 96 * MIB + 2 * MIB + 48 * KIB), 16, handshake);
        every_level_is_folded::<Granule64K>(range(BASE, 2 * MIB + 192 * KIB), 8, handshake);
    }
}

#[test]
fn with_others_stopped_each_link_is_broken_before_it_is_made() {
    let machine = HostMachine::<Granule4K>::new(8);
    let (block, groups) = (range(BASE, 2 * MIB), range(BASE + 2 * MIB, 128 * KIB));
    map(&machine, range(BASE, 2 * MIB + 128 * KIB), 0, DATA, Shape::PAGES).unwrap();
    let whole = range(BASE, 4 * MIB);
    let what = Collapse { handshake: Handshake::Stopped, ..all_of(whole) };
    let stream = machine.record(|| {
        let done = collapse(&machine, what);
        assert_eq!((done.blocks, done.groups, done.cancelled), ([0, 0, 1, 0], [0, 0, 0, 1], 0));
    });
    assert_eq!(check_breaks(&stream), Ok(()));
    assert_eq!(leaf_sizes(&machine, block), [(2 * MIB, 1)]);
    assert_eq!(leaf_sizes(&machine, groups), [(64 * KIB, 2)]);

    // Nothing is replaced while others run.
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    let (mut collapser, words) = (Collapser::<Granule4K, 2>::new(), Words::default());
    let at = |cpu: usize| words.get(cpu);
    collapser.start(what);
    let stream = machine.record(|| {
        while !collapser.is_idle() {
            vouched::mark(&mut collapser, &machine.page_tables(), at);
            let free = |table| machine.free_table(table);
            vouched::collapse(&mut collapser, &machine.page_tables(), machine.tlb(), at, &mut machine.frames(), free);
        }
    });
    assert!(!stream.iter().any(|operation| matches!(operation, Operation::Write { .. })), "{stream:?}");
    assert_eq!((collapser.done().replaced(), collapser.done().cancelled), (0, 2));

    // Between the two looks an owner changes a page; the next table is another one's turn.
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    let (mut collapser, words) = (Collapser::<Granule4K, 2>::new(), Words::default());
    let at = |cpu: usize| words.get(cpu);
    collapser.start(what);
    vouched::mark(&mut collapser, &machine.page_tables(), at);
    change(&machine, range(BASE + 4 * KIB, 4 * KIB), Change::READ_ONLY);
    vouched::replace_stopped(&mut collapser, &machine.page_tables());
    // A few groups at a time.
    assert_eq!(collapser.done(), Collapses::NONE);
    assert_eq!(leaf_sizes(&machine, whole), [(4 * KIB, 1), (4 * KIB, 1), (4 * KIB, 14), (64 * KIB, 4), (4 * KIB, 944)]);
    while !collapser.is_idle() {
        vouched::mark(&mut collapser, &machine.page_tables(), at);
        vouched::replace_stopped(&mut collapser, &machine.page_tables());
        let free = |table| machine.free_table(table);
        vouched::collapse(&mut collapser, &machine.page_tables(), machine.tlb(), at, &mut machine.frames(), free);
    }
    assert_eq!(leaf_sizes(&machine, whole), [(4 * KIB, 1), (4 * KIB, 1), (4 * KIB, 14), (64 * KIB, 31), (2 * MIB, 1)]);
}

#[test]
fn what_was_split_for_one_page_is_folded_back() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE, 2 * GIB);
    map(&machine, whole, 0, DATA, LARGEST).unwrap();
    let frames = machine.free_frames();
    use_one_page(&machine, BASE + GIB + 5 * MIB);
    assert_eq!(frames - machine.free_frames(), 2);
    let done = collapse(&machine, all_of(range(BASE + GIB, 2 * MIB)));
    assert_eq!(done, Collapses::NONE, "that is a block as it is, in a table with a part of a group");
    let done = collapse(&machine, all_of(range(BASE + GIB + 4 * MIB, 2 * MIB)));
    assert_eq!((done.blocks, done.groups), ([0, 1, 1, 0], [0; 4]));
    assert_eq!((machine.free_frames(), leaf_sizes(&machine, whole)), (frames, vec![(GIB, 2)]));
}

#[test]
fn leaves_that_must_not_become_blocks_become_groups() {
    for handshake in [Handshake::Marks, Handshake::Stopped] {
        let machine = HostMachine::<Granule4K>::new(8);
        let (read_only, writable) = (range(BASE, 2 * MIB), range(BASE + 2 * MIB, 2 * MIB));
        map(&machine, read_only, 0, RODATA, Shape::PAGES).unwrap();
        map(&machine, writable, 2 * MIB, DATA, Shape::PAGES).unwrap();
        let both = range(BASE, 4 * MIB);
        let done = collapse(&machine, Collapse { never_blocks: bits::RDONLY, handshake, ..all_of(both) });
        assert_eq!((done.blocks, done.groups), ([0, 0, 1, 0], [0, 0, 0, 1]));
        assert_eq!(leaf_sizes(&machine, both), [(64 * KIB, 32), (2 * MIB, 1)]);
    }
}

#[test]
fn entries_before_a_range_that_begins_inside_a_table_stay() {
    for handshake in [Handshake::Marks, Handshake::Stopped] {
        let machine = HostMachine::<Granule4K>::new(8);
        let whole = range(BASE, 2 * MIB);
        map(&machine, whole, 0, RODATA, Shape::PAGES).unwrap();
        let rest = range(BASE + 192 * KIB, 2 * MIB - 192 * KIB);
        let done = collapse(&machine, Collapse { never_blocks: bits::RDONLY, handshake, ..all_of(rest) });
        assert_eq!((done.blocks, done.groups), ([0; 4], [0, 0, 0, 1]), "{handshake:?}");
        assert_eq!(leaf_sizes(&machine, whole), [(4 * KIB, 48), (64 * KIB, 29)], "{handshake:?}");
    }
}

/// A change of the pages before they are to be collapsed.
type Preparation = fn(&HostMachine, PageRange);

#[test]
fn tables_that_are_not_alike_get_the_groups_that_they_can_have_and_stay_otherwise() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE, 2 * MIB);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    change(&machine, range(BASE + 68 * KIB, 4 * KIB), Change::READ_ONLY);
    assert_eq!(collapse(&machine, all_of(whole)).groups, [0, 0, 0, 1]);
    assert_eq!(leaf_sizes(&machine, whole), [(64 * KIB, 1), (4 * KIB, 1), (4 * KIB, 1), (4 * KIB, 14), (64 * KIB, 30)]);
    // No leaf is made of pages that the hardware does not use, of memory in pieces, or across its own alignment.
    let cases: [(u64, Preparation); 3] = [
        (0, |machine, all| change(machine, all, Change::INVALID)),
        (4 * KIB, |_, _| ()),
        (0, |machine, all| {
            let lazy = Lazy::new(machine.mmu());
            machine.page_tables().unmap(&lazy, machine.tlb(), all, RefuseSplits, |_| ()).unwrap();
            let frames = |at: VirtAddr, _| (PhysAddr((at.0 & 0x1f_f000) ^ 0x1000), 1);
            let source = &mut machine.frames();
            machine.page_tables().map_frames(&lazy, all, frames, DATA, Leaves::Pages, source).unwrap();
        }),
    ];
    for (physical, prepare) in cases {
        let machine = HostMachine::<Granule4K>::new(8);
        map(&machine, whole, physical, DATA, Shape::PAGES).unwrap();
        prepare(&machine, whole);
        assert_eq!(collapse(&machine, all_of(whole)), Collapses::NONE);
    }
}

/// Execution that a table's link forbids stays forbidden in the block that replaces the table, or no block replaces it.
#[test]
fn execution_stays_forbidden() {
    let text = Attributes::kernel_text(MemoryType::Normal);
    for (execution, attributes, sizes) in
        [(Execution::Forbidden, DATA, vec![(2 * MIB, 1)]), (Execution::ByLeaf, text, vec![(2 * MIB, 1)])]
    {
        let machine = HostMachine::<Granule4K>::new(8);
        let whole = range(BASE, 2 * MIB);
        map(&machine, whole, 0, attributes, Shape { leaves: Leaves::Pages, execution }).unwrap();
        collapse(&machine, all_of(whole));
        assert_eq!(leaf_sizes(&machine, whole), sizes);
        let (lazy, executable) = (Lazy::new(machine.mmu()), Change::EXECUTABLE);
        let made = machine.page_tables().update(&lazy, whole, executable, RefuseSplits);
        assert_eq!(made.is_ok(), execution == Execution::ByLeaf);
    }
    // Only the last link forbids: a block in its place would not.
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE, 2 * MIB);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    let link = machine.page_tables().walk(BASE).nth(2).unwrap();
    machine.mmu().store(machine.entry(&link), Descriptor(link.descriptor.0 | bits::PXNTABLE));
    assert_eq!(collapse(&machine, all_of(whole)).blocks, [0; 4]);
    assert_eq!(leaf_sizes(&machine, whole), [(64 * KIB, 32)]);
}

/// Groups are made where the range touches them, and in tables whose first page is a hole.
#[test]
fn groups_are_made_in_the_range_alone() {
    let machine = HostMachine::<Granule4K>::new(8);
    let mapped = range(BASE + 64 * KIB, 256 * KIB);
    map(&machine, mapped, 64 * KIB, DATA, Shape::PAGES).unwrap();
    let one = range(BASE + 128 * KIB, 4 * KIB);
    assert_eq!(collapse(&machine, all_of(one)).groups, [0, 0, 0, 1]);
    assert_eq!(leaf_sizes(&machine, mapped), [(4 * KIB, 16), (64 * KIB, 1), (4 * KIB, 32)]);
    // From an address of the hole on, to the middle of the second group.
    assert_eq!(collapse(&machine, all_of(range(BASE, 132 * KIB))).groups, [0, 0, 0, 1]);
    assert_eq!(leaf_sizes(&machine, mapped), [(64 * KIB, 2), (4 * KIB, 32)]);
    assert_eq!(collapse(&machine, all_of(range(BASE, 2 * MIB))).groups, [0, 0, 0, 1]);
    assert_eq!(leaf_sizes(&machine, mapped), [(64 * KIB, 4)]);
}

/// An owner that splits each block as soon as it is one does not keep the collapse going for ever.
#[test]
fn a_collapse_comes_to_its_end_however_fast_its_blocks_are_split() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE, 2 * MIB);
    map(&machine, whole, 0, DATA, LARGEST).unwrap();
    let (mut collapser, words) = (Collapser::<Granule4K, 2>::new(), Words::default());
    let at = |cpu: usize| words.get(cpu);
    use_one_page(&machine, BASE);
    collapser.start(all_of(whole));
    let mut rounds = 0;
    while !collapser.is_idle() {
        vouched::mark(&mut collapser, &machine.page_tables(), at);
        let free = |table| machine.free_table(table);
        let progress =
            vouched::collapse(&mut collapser, &machine.page_tables(), machine.tlb(), at, &mut machine.frames(), free);
        assert_eq!(progress, Progress::Done);
        use_one_page(&machine, BASE);
        rounds += 1;
        assert!(rounds < 10);
    }
    assert_eq!(collapser.done().blocks, [0, 0, 1, 0]);
}

#[test]
fn without_a_table_for_its_groups_a_table_stays() {
    let machine = HostMachine::<Granule4K>::new(3);
    let whole = range(BASE, 64 * KIB);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    let done = collapse(&machine, all_of(whole));
    assert_eq!((done.replaced(), done.cancelled), (0, 1));
    assert_eq!(machine.page_tables().walk(BASE).filter(|step| step.descriptor.0 & bits::COLLAPSING != 0).count(), 0);
}

/// Marked, a full barrier; the block; walk caches invalidated by one page; the mark taken away.
#[test]
fn the_order_is_mark_replace_invalidate() {
    let machine = HostMachine::<Granule4K>::new(4);
    let whole = range(BASE, 2 * MIB);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    let operations = machine.record(|| assert_eq!(collapse(&machine, all_of(whole)).blocks, [0, 0, 1, 0]));
    let mut told = Vec::new();
    for operation in operations {
        told.push(match operation {
            Operation::Write { old, new, .. } if new.0 == old.0 | bits::COLLAPSING => "mark".to_string(),
            Operation::Write { old, new, .. } if old.0 == new.0 | bits::COLLAPSING => "settle".to_string(),
            Operation::Write { old, new, .. } if old.is_table() && !new.is_table() => {
                assert_ne!(new.0 & bits::COLLAPSING, 0);
                "block".to_string()
            }
            Operation::Invalidate(Invalidation { range, tables, level }) => {
                assert_eq!((tables, level, range.pages()), (Tables::Unlinked, None, 1));
                "all levels".to_string()
            }
            other => format!("{other:?}"),
        });
    }
    assert_eq!(told.join(" "), "mark DsbIsh block DsbIshst all levels DsbIsh Isb settle");
}

/// A walk that was under way before the mark is waited for, one that read the table's link before the block too.
#[test]
fn walks_are_waited_for_twice() {
    let machine = HostMachine::<Granule4K>::new(4);
    let whole = range(BASE, 2 * MIB);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    let (mut collapser, words) = (Collapser::<Granule4K, 2>::new(), Words::default());
    let at = |cpu: usize| words.get(cpu);
    let tables = machine.page_tables();
    let frames = machine.free_frames();
    let advance = |collapser: &mut Collapser<_, 2>| {
        let free = |table| machine.free_table(table);
        vouched::collapse(collapser, &tables, machine.tlb(), at, &mut machine.frames(), free)
    };
    let mut walk = Announced::begin(&words[1]);
    collapser.start(all_of(whole));
    vouched::mark(&mut collapser, &tables, at);
    assert_eq!(advance(&mut collapser), Progress::Waiting);
    assert_eq!(leaf_sizes(&machine, whole), [(4 * KIB, 512)]);
    drop(walk);
    walk = Announced::begin(&words[1]);
    assert_eq!(advance(&mut collapser), Progress::Waiting);
    assert_eq!((leaf_sizes(&machine, whole), machine.free_frames()), (vec![(2 * MIB, 1)], frames));
    drop(walk);
    assert_eq!(advance(&mut collapser), Progress::Done);
    assert_eq!(machine.free_frames(), frames + 1);
}

/// A change by an owner in the middle of a collapse.
type Owner = fn(&HostMachine);

/// Before every operation of a collapse an owner comes by: what it does is as if there were no collapse, and the
/// machine is whole when both are done. A store while walk caches may have the old table comes after an
/// invalidation of them.
fn an_owner_at_every_operation(owner: Owner) {
    let split = |machine: &HostMachine| {
        map(machine, range(BASE, 4 * MIB), 0, DATA, LARGEST).unwrap();
        use_one_page(machine, BASE + 32 * KIB);
    };
    an_owner_at_every_operation_of(split, owner);
}

/// As [`an_owner_at_every_operation`], on the machine that `prepare` makes.
fn an_owner_at_every_operation_of(prepare: Owner, owner: Owner) {
    let whole = range(BASE, 4 * MIB);
    let mut at = 0;
    let mut cancelled = 0;
    loop {
        let machine = HostMachine::<Granule4K>::new(16);
        prepare(&machine);
        let stream = std::cell::RefCell::new(Vec::new());
        let words = Words::default();
        let cpu = Interrupted::at(at, machine.mmu(), || {
            let link = machine.page_tables().walk(BASE).nth(2).unwrap();
            let _walk = Announced::begin(&words[1]);
            let operations = machine.record(|| owner(&machine));
            *stream.borrow_mut() = vec![(link, operations)];
        });
        let mut collapser = Collapser::<Granule4K, 2>::new();
        let number = |cpu: usize| words.get(cpu);
        collapser.start(all_of(whole));
        while !collapser.is_idle() {
            let tables = PageTables::new(&cpu, machine.page_tables().root());
            vouched::mark(&mut collapser, &tables, number);
            let free = |table| machine.free_table(table);
            vouched::collapse(&mut collapser, &tables, &RecordingTlb, number, &mut machine.frames(), free);
        }
        cancelled += collapser.done().cancelled;
        if !cpu.was_interrupted() {
            break;
        }
        for (link, operations) in stream.take() {
            if link.descriptor.0 & bits::COLLAPSING != 0 {
                let stored = operations.iter().position(|operation| matches!(operation, Operation::Write { .. }));
                let told = operations.iter().position(|operation| matches!(operation, Operation::Tlbi(_)));
                assert!(told.is_some() && told < stored, "at operation {at}: {told:?}, {stored:?}");
            }
        }
        let other = HostMachine::<Granule4K>::new(16);
        prepare(&other);
        owner(&other);
        for page in (0..4 * MIB).step_by(4096) {
            let found = |machine: &HostMachine| {
                let page = machine.page_tables().translate(BASE + page);
                page.map(|page| {
                    (page.physical, page.descriptor.without_address().0 & !(bits::CONTIGUOUS | bits::TABLE))
                })
            };
            assert_eq!(found(&machine), found(&other), "page {page:#x}, at operation {at}");
        }
        // And now with no owner about.
        for machine in [&machine, &other] {
            collapse(machine, all_of(whole));
            reclaim(machine, whole);
        }
        assert_eq!(leaf_sizes(&machine, whole), leaf_sizes(&other, whole), "at operation {at}");
        assert_eq!(machine.free_frames(), other.free_frames(), "at operation {at}");
        at += 1;
    }
    assert!(at > 100, "{at}");
    assert_ne!(cancelled, 0, "the owner never won");
}

#[test]
fn an_owner_who_changes_a_page_at_any_operation_of_a_collapse_loses_nothing() {
    an_owner_at_every_operation(|machine| change(machine, range(BASE + 32 * KIB, 4 * KIB), Change::READ_ONLY));
}

#[test]
fn one_who_makes_pages_invalid_loses_nothing() {
    an_owner_at_every_operation(|machine| change(machine, range(BASE + 60 * KIB, 8 * KIB), Change::INVALID));
}

#[test]
fn one_who_changes_the_whole_block_loses_nothing() {
    an_owner_at_every_operation(|machine| change(machine, range(BASE, 2 * MIB), Change::READ_ONLY));
}

#[test]
fn one_who_unmaps_loses_nothing() {
    an_owner_at_every_operation(|machine| {
        let (lazy, mut released) = (Lazy::new(machine.mmu()), 0);
        let all = range(BASE, 2 * MIB);
        let unmapped =
            machine.page_tables().unmap(&lazy, machine.tlb(), all, RefuseSplits, |leaf| released += leaf.size);
        assert_eq!((unmapped, released), (Ok(()), 2 * MIB));
    });
}

#[test]
fn one_who_unmaps_lazily_loses_nothing() {
    an_owner_at_every_operation(|machine| {
        let (all, mut released) = (range(BASE, 2 * MIB), 0);
        assert_eq!(machine.page_tables().unmap_lazily(all, bits::RDONLY, bits::VM_ALLOC), Ok(true));
        vouched::release_unmapped(&machine.page_tables(), all, |leaf| released += leaf.size);
        assert_eq!(released, 2 * MIB);
    });
}

/// Its neighbours become groups, in a table that takes the place of the one in which its pages wait.
#[test]
fn one_who_hands_out_what_waits_loses_nothing() {
    const WAITS: [(u64, u64); 2] = [(32 * KIB, 8 * KIB), (2 * MIB - 4 * KIB, 4 * KIB)];
    let prepare = |machine: &HostMachine| {
        map(machine, range(BASE, 2 * MIB), 0, DATA, Shape::PAGES).unwrap();
        for (at, size) in WAITS {
            assert_eq!(machine.page_tables().unmap_lazily(range(BASE + at, size), 0, 0), Ok(true));
        }
    };
    an_owner_at_every_operation_of(prepare, |machine| {
        let mut released = Vec::new();
        for (at, size) in WAITS {
            vouched::release_unmapped(&machine.page_tables(), range(BASE + at, size), |leaf| {
                released.push(leaf.physical.0)
            });
        }
        assert_eq!(released, [32 * KIB, 36 * KIB, 2 * MIB - 4 * KIB]);
    });
}

#[test]
fn one_who_splits_loses_nothing() {
    an_owner_at_every_operation(|machine| {
        let page = range(BASE + 32 * KIB, 4 * KIB);
        machine.page_tables().split(page, &Lockless, &mut machine.frames()).unwrap();
        change(machine, page, Change::READ_ONLY);
    });
}
