//! Which tables are reclaimed, in which order of operations, and what keeps one.
//!
//! One CPU, step by step; what other CPUs may do in between is tried in every order by the crate `granule-loom`.

use core::sync::atomic::AtomicU64;

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, bits};
use granule_arch::tlbi::{AddressOperand, Instruction};
use granule_pgtable::host::{HostMachine, Operation};
use granule_pgtable::{
    Announced, Change, Geometry, Granule4K, Granule16K, Granule64K, Invalidation, Lazy, PageRange, Progress, Reclaimer,
    Shape, Stores, Tables, WholeLeaves,
};

use crate::{BASE, DATA, GIB, KIB, MIB, map, range, vouched};

/// The walk words of two CPUs.
type Words = [AtomicU64; 2];

/// Takes the reclaim of `range` as far as it goes; returns that, and how many tables came free.
fn advance<G: Geometry>(machine: &HostMachine<G>, reclaimer: &mut Reclaimer<G, 2>, words: &Words) -> (Progress, usize) {
    vouched::reclaim(machine, reclaimer, |cpu| words.get(cpu))
}

pub(crate) fn reclaim<G: Geometry>(machine: &HostMachine<G>, range: PageRange<G>) -> usize {
    let mut reclaimer = Reclaimer::new();
    reclaimer.start(range);
    let (progress, freed) = advance(machine, &mut reclaimer, &Words::default());
    assert_eq!(progress, Progress::Done);
    assert!(reclaimer.is_idle());
    freed
}

#[track_caller]
fn unmap<G: Geometry>(machine: &HostMachine<G>, range: PageRange<G>) {
    machine.page_tables().unmap(&Lazy::new(machine.mmu()), machine.tlb(), range, WholeLeaves, |_| {}).unwrap();
}

fn every_level_comes_back<G: Geometry>() {
    let machine = HostMachine::<G>::new(8);
    // Pages on both sides of a boundary that tables of every level but the root have.
    let middle = BASE + G::entry_size(G::FIRST_LEVEL);
    let pages = range::<G>(VirtAddr(middle.0 - G::PAGE_SIZE), 2 * G::PAGE_SIZE);
    map(&machine, pages, 0, DATA, Shape::PAGES).unwrap();
    let tables = 8 - machine.free_frames();
    assert_eq!(tables, 2 * usize::from(3 - G::FIRST_LEVEL));
    assert_eq!(reclaim(&machine, pages), 0, "nothing is empty");
    unmap(&machine, pages);
    assert_eq!(reclaim(&machine, pages), tables);
    assert_eq!(machine.free_frames(), 8);
    assert_eq!(map(&machine, pages, 0, DATA, Shape::PAGES), Ok(()));
}

#[test]
fn tables_of_every_level_come_back_and_the_root_stays() {
    every_level_comes_back::<Granule4K>();
    every_level_comes_back::<Granule64K>();
    // The root of the 16 KiB granule has two entries, so the boundary is the end of the upper half: one side will do.
    let machine = HostMachine::<Granule16K>::new(8);
    let page = range(BASE, 16 * KIB);
    map(&machine, page, 0, DATA, Shape::PAGES).unwrap();
    unmap(&machine, page);
    assert_eq!((reclaim(&machine, page), machine.free_frames()), (3, 8));
}

#[test]
fn a_large_area_gives_all_its_tables_back_and_its_neighbours_keep_theirs() {
    let machine = HostMachine::<Granule4K>::new(20);
    let area = range(BASE + MIB, 8 * MIB);
    let (below, above) = (range(BASE, 4 * KIB), range(BASE + 9 * MIB, 4 * KIB));
    for part in [below, area, above] {
        map(&machine, part, 0, DATA, Shape::PAGES).unwrap();
    }
    let tables = 20 - machine.free_frames();
    unmap(&machine, area);
    // Five tables hold the area; a neighbour is in the first and one in the last.
    assert_eq!(reclaim(&machine, area), 3);
    assert_eq!(machine.free_frames(), 20 - tables + 3);
    for neighbour in [below, above] {
        assert!(machine.page_tables().translate(neighbour.start()).is_some());
    }
    unmap(&machine, below);
    unmap(&machine, above);
    // A range that only touches a table is enough.
    assert_eq!(reclaim(&machine, above), 1);
    assert_eq!(reclaim(&machine, below), 3);
    assert_eq!(machine.free_frames(), 20);
}

#[test]
fn present_invalid_leaves_keep_their_table() {
    let machine = HostMachine::<Granule4K>::new(3);
    let page = range(BASE, 4 * KIB);
    map(&machine, page, 0, DATA, Shape::PAGES).unwrap();
    let lazy = Lazy::new(machine.mmu());
    machine.page_tables().update(&lazy, page, Change::INVALID, WholeLeaves).unwrap().defer();
    assert_eq!(reclaim(&machine, page), 0);
    assert!(machine.page_tables().translate(BASE).is_some_and(|found| !found.valid));
}

#[test]
fn nothing_is_done_where_nothing_is_linked() {
    let machine = HostMachine::<Granule4K>::new(1);
    let operations = machine.record(|| {
        assert_eq!(reclaim(&machine, range(VirtAddr(BASE.0 - GIB), 2 * GIB)), 0);
        assert_eq!(reclaim(&machine, range(VirtAddr(0u64.wrapping_sub(GIB)), GIB)), 0);
    });
    assert_eq!(operations, []);
}

/// Marked, a full barrier; unlinked, invalidated with all levels by one page of each table, and only then is the entry
/// free for another; then the next level up.
#[test]
fn the_order_is_mark_unlink_invalidate_free() {
    let machine = HostMachine::<Granule4K>::new(4);
    let pages = range(BASE + 2 * MIB - 4 * KIB, 8 * KIB);
    map(&machine, pages, 0, DATA, Shape::PAGES).unwrap();
    unmap(&machine, pages);
    let operations = machine.record(|| assert_eq!(reclaim(&machine, pages), 4));
    let told = |operation: &Operation| match *operation {
        Operation::Write { old, new, .. } if new.0 == old.0 | bits::RECLAIM_MARK => Some("mark".to_string()),
        Operation::Write { old, new: Descriptor(bits::UNLINKED), .. } if old.is_valid() => Some("unlink".to_string()),
        Operation::Write { old: Descriptor(bits::UNLINKED), new: Descriptor::EMPTY, .. } => Some("settle".to_string()),
        // The list of tables, in tables that are not linked.
        Operation::Write { old, new, .. } => {
            assert!(!old.is_valid() && !new.is_valid());
            None
        }
        Operation::Invalidate(Invalidation { range, tables, level }) => {
            assert_eq!((tables, level, range.pages()), (Tables::Unlinked, None, 1));
            Some(format!("all levels at +{:#x}", range.start() - BASE))
        }
        other => Some(format!("{other:?}")),
    };
    let upper = "mark DsbIsh unlink DsbIshst all levels at +0x0 DsbIsh Isb settle";
    assert_eq!(
        operations.iter().filter_map(told).collect::<Vec<_>>().join(" "),
        format!(
            "mark mark DsbIsh unlink unlink DsbIshst all levels at +0x200000 all levels at +0x0 DsbIsh Isb settle settle {upper} {upper}"
        ),
    );
}

/// A mapper that meets the mark of an unlinked table invalidates by itself, and repeats that where the CPUs need it; so
/// does the sequence that every invalidation ends with.
#[test]
fn an_erratum_repeats_every_completed_invalidation() {
    let repeated = Operation::Tlbi(Instruction::Vale1is(AddressOperand::new(VirtAddr(0), None)));
    let end = [Operation::DsbIsh, repeated, Operation::DsbIsh];
    let machine = HostMachine::<Granule4K>::new(4).with_repeated_tlbi();
    let page = range(BASE, 4 * KIB);
    map(&machine, page, 0, DATA, Shape::PAGES).unwrap();
    let stream = machine.record(|| unmap(&machine, page));
    assert_eq!(stream.windows(3).filter(|window| *window == end).count(), 1, "{stream:?}");
    // As it is between the unlinking of the last table and its invalidation.
    let step = machine.page_tables().walk(BASE).nth(2).unwrap();
    machine.mmu().store(machine.entry(&step), Descriptor(bits::UNLINKED));
    let stream = machine.record(|| map(&machine, page, 0, DATA, Shape::PAGES).unwrap());
    let own = Operation::Tlbi(Instruction::Vaae1is(AddressOperand::new(BASE, None)));
    let first = stream.iter().position(|operation| *operation == own).unwrap();
    assert_eq!(stream[first + 1..first + 4], end);
}

#[test]
fn each_step_waits_for_the_walks_of_all_cpus() {
    let machine = HostMachine::<Granule4K>::new(3);
    let (page, words) = (range(BASE, 4 * KIB), Words::default());
    let mut reclaimer = Reclaimer::new();
    map(&machine, page, 0, DATA, Shape::PAGES).unwrap();
    unmap(&machine, page);
    reclaimer.start(page);
    let marked = |level: usize| {
        let step = machine.page_tables().walk(BASE).nth(level).unwrap();
        step.descriptor.0 & bits::RECLAIM_MARK != 0
    };
    let walk = Announced::begin(&words[1]);
    assert_eq!(advance(&machine, &mut reclaimer, &words), (Progress::Waiting, 0));
    assert!(marked(2));
    drop(walk);
    // Seen to have moved; another walk since then keeps the next step from ending.
    let walk = Announced::begin(&words[0]);
    assert_eq!(advance(&machine, &mut reclaimer, &words), (Progress::Waiting, 0));
    assert_eq!(machine.page_tables().walk(BASE).nth(2).unwrap().descriptor, Descriptor::EMPTY);
    assert_eq!(advance(&machine, &mut reclaimer, &words), (Progress::Waiting, 0));
    drop(walk);
    assert_eq!(advance(&machine, &mut reclaimer, &words), (Progress::Done, 3));
}

#[test]
fn a_map_into_a_marked_table_keeps_it() {
    let machine = HostMachine::<Granule4K>::new(3);
    let (page, neighbour, words) = (range(BASE, 4 * KIB), range(BASE + 8 * KIB, 4 * KIB), Words::default());
    map(&machine, page, 0, DATA, Shape::PAGES).unwrap();
    unmap(&machine, page);
    let mut reclaimer = Reclaimer::new();
    reclaimer.start(page);
    let walk = Announced::begin(&words[0]);
    assert_eq!(advance(&machine, &mut reclaimer, &words), (Progress::Waiting, 0));
    map(&machine, neighbour, 0, DATA, Shape::PAGES).unwrap();
    drop(walk);
    assert_eq!(advance(&machine, &mut reclaimer, &words), (Progress::Done, 0));
    assert!(machine.page_tables().translate(neighbour.start()).is_some());
    assert_eq!(machine.free_frames(), 0);
    unmap(&machine, neighbour);
    assert_eq!(reclaim(&machine, page), 3);
}

/// The mark is gone, and the table is empty all the same: a map was refused, or its leaves are gone by the second look.
#[test]
fn a_table_that_stays_empty_is_not_forgotten() {
    type Machine = HostMachine<Granule4K>;
    // No frame is left for the table of the upper half.
    let refused = |machine: &Machine| {
        map(machine, range(BASE + MIB, 2 * MIB), 0, DATA, Shape::PAGES).unwrap_err();
    };
    let gone_again = |machine: &Machine| {
        let neighbour = range(BASE + 8 * KIB, 4 * KIB);
        map(machine, neighbour, 0, DATA, Shape::PAGES).unwrap();
        unmap(machine, neighbour);
    };
    let ways: [&dyn Fn(&Machine); 2] = [&refused, &gone_again];
    for takes_the_mark_away in ways {
        let (machine, words) = (Machine::new(3), Words::default());
        let page = range(BASE, 4 * KIB);
        map(&machine, page, 0, DATA, Shape::PAGES).unwrap();
        unmap(&machine, page);
        let mut reclaimer = Reclaimer::new();
        reclaimer.start(page);
        let walk = Announced::begin(&words[0]);
        assert_eq!(advance(&machine, &mut reclaimer, &words), (Progress::Waiting, 0));
        takes_the_mark_away(&machine);
        drop(walk);
        assert_eq!(advance(&machine, &mut reclaimer, &words), (Progress::Done, 3));
        assert_eq!(machine.free_frames(), 3);
    }
}
