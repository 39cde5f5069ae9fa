//! Changes in one look: what is dealt with at once, what is split for it, and what is left to the long way untouched.

use granule_arch::descriptor::{Attributes, bits};
use granule_pgtable::host::{HostMachine, HostMmu};
use granule_pgtable::{Change, Cut, Error, Flush, Granule4K, Lazy, Lockless, PageRange, Shape, Splitter, WholeLeaves};

use crate::{BASE, DATA, GIB, KIB, LARGEST, MIB, leaf_sizes, map, range};

/// A machine with a group of blocks, a block, a group of pages and a page.
fn machine(attributes: Attributes) -> HostMachine {
    let machine = HostMachine::new(8);
    map(&machine, range(BASE, 34 * MIB + 68 * KIB), 0, attributes, LARGEST).unwrap();
    machine
}

const BLOCK: u64 = 32 * MIB;
const GROUP: u64 = 34 * MIB;

/// Splits with so many tables, or never, and counts how often it was asked.
struct Asked<'a> {
    machine: &'a HostMachine,
    tables: Option<usize>,
    times: usize,
}

impl Splitter<HostMmu> for Asked<'_> {
    const LIVE_SPLITS: bool = true;

    fn split(&mut self, cut: &Cut<'_, HostMmu>) -> Result<(), Error> {
        assert!(cut.is_first_look());
        self.times += 1;
        let Some(tables) = self.tables else { return Err(cut.error()) };
        cut.split(&Lockless, &mut self.machine.frames_limited(tables)).map(drop)
    }
}

/// The change, and how often it was asked to split something, which it did with so many tables or refused.
fn at_once(machine: &HostMachine, part: PageRange, change: Change, tables: Option<usize>) -> (Option<Flush>, usize) {
    let mut asked = Asked { machine, tables, times: 0 };
    let lazy = Lazy::new(machine.mmu());
    let ready = machine.page_tables().look(part, &change, &mut asked);
    (ready.map(|ready| ready.commit(&lazy)), asked.times)
}

#[test]
fn pages_and_blocks_of_one_table_are_changed_at_once() {
    for (at, size) in [(0, 32 * MIB), (0, 34 * MIB), (BLOCK, 2 * MIB), (GROUP, 64 * KIB), (GROUP, 68 * KIB)] {
        let (machine, part) = (machine(DATA), range(BASE + at, size));
        let (flush, asked) = at_once(&machine, part, Change::READ_ONLY, None);
        let owed = flush.unwrap().invalidation().unwrap();
        assert_eq!((owed.range, owed.level, asked), (part, None, 0), "{part:?}");
        assert_eq!(at_once(&machine, part, Change::READ_ONLY, None), (Some(Flush::NONE), 0));
    }
}

#[test]
fn groups_that_are_cut_are_dissolved_on_the_way() {
    let of_blocks = |first: u64, count: u64| range(BASE + first * 2 * MIB, count * 2 * MIB);
    let pages = |first: u64, count: u64| range(BASE + GROUP + first * 4 * KIB, count * 4 * KIB);
    for part in [of_blocks(0, 1), of_blocks(3, 5), of_blocks(15, 2), pages(0, 1), pages(3, 9), pages(15, 2)] {
        let machine = machine(DATA);
        let (flush, asked) = at_once(&machine, part, Change::READ_ONLY, Some(0));
        assert_eq!((flush.unwrap().invalidation().unwrap().range, asked), (part, 1));
        assert_eq!(at_once(&machine, part, Change::READ_WRITE, Some(0)).1, 0, "it is dissolved: {part:?}");
    }
    // The group in the middle of a longer range stays one.
    let machine = HostMachine::new(8);
    map(&machine, range(BASE, 192 * KIB), 0, DATA, LARGEST).unwrap();
    let middle = range(BASE + 60 * KIB, 72 * KIB);
    assert_eq!(at_once(&machine, middle, Change::READ_ONLY, Some(0)).1, 1);
    assert_eq!(leaf_sizes(&machine, range(BASE + 64 * KIB, 64 * KIB)), [(64 * KIB, 1)]);
    let without_ends = range(BASE + 64 * KIB, 68 * KIB);
    assert_eq!(at_once(&machine, without_ends, Change::READ_WRITE, Some(0)).1, 0);
}

#[test]
fn a_block_that_is_cut_is_split_and_left_to_another_look() {
    for part in [range(BASE + BLOCK, 4 * KIB), range(BASE + BLOCK + 60 * KIB, MIB), range(BASE + 4 * KIB, 4 * KIB)] {
        let machine = machine(DATA);
        assert_eq!(at_once(&machine, part, Change::READ_ONLY, Some(0)), (None, 1), "there is no table");
        assert_eq!(at_once(&machine, part, Change::READ_ONLY, Some(1)), (None, 1));
        let (flush, asked) = at_once(&machine, part, Change::READ_ONLY, None);
        assert_eq!((flush.unwrap().invalidation().unwrap().range, asked), (part, 0));
    }
}

#[test]
fn what_is_out_of_the_ordinary_is_left_alone_and_nothing_is_split_for_it() {
    let page = range(BASE + GROUP + 4 * KIB, 4 * KIB);
    for (part, change, why) in [
        (range(BASE + GROUP + 64 * KIB, 8 * KIB), Change::READ_ONLY, "a hole"),
        (range(BASE + BLOCK, 2 * MIB + 4 * KIB), Change::READ_ONLY, "two levels"),
        (range(BASE + 2 * MIB, 32 * MIB + MIB), Change::READ_ONLY, "more than one leaf, and a part of one"),
        (range(BASE + GIB, 4 * KIB), Change::READ_ONLY, "nothing is mapped"),
        (page, Change::EXECUTABLE, "writable and executable"),
        (page, Change::READ_ONLY.require_bits(bits::VM_ALLOC), "not marked"),
        (range(BASE + BLOCK + 4 * KIB, 4 * KIB), Change::EXECUTABLE, "writable and executable in a block"),
    ] {
        let machine = machine(DATA);
        let record = machine.record(|| {
            assert_eq!(at_once(&machine, part, change, Some(8)), (None, 0), "{why}");
        });
        assert_eq!(record, [], "{why}");
    }
    // Nothing to change in what is cut: not even asked.
    assert_eq!(at_once(&machine(DATA), page, Change::READ_WRITE, None), (Some(Flush::NONE), 0));
    // The splitter, once asked, may refuse.
    let machine = machine(DATA);
    let record = machine.record(|| assert_eq!(at_once(&machine, page, Change::READ_ONLY, None), (None, 1)));
    assert_eq!(record, []);
}

#[test]
fn where_nothing_is_split_the_level_is_told_and_groups_are_left_to_the_long_way() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE, 16 * KIB);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    let lazy = Lazy::new(machine.mmu());
    let ready = machine.page_tables().look(whole, &Change::READ_ONLY, &mut WholeLeaves).unwrap();
    let owed = ready.commit(&lazy);
    assert_eq!(owed.invalidation().unwrap().level.map(|level| level.level()), Some(3));
    let grouped = self::machine(DATA);
    let group = range(BASE + GROUP, 64 * KIB);
    assert!(grouped.page_tables().look(group, &Change::READ_ONLY, &mut WholeLeaves).is_none());
}
