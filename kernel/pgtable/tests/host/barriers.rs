//! Which writes, barriers and invalidations each call makes, in which order.
//!
//! [`check`] reads a recorded stream and reports what is missing in it, or too much. It is believed because it is seen to
//! fail: every barrier and invalidation is taken out of a good stream in turn, and moved, and it objects each time.

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{Descriptor, bits};
use granule_pgtable::host::{HostMachine, Operation};
use granule_pgtable::{Change, Geometry, Granule4K, Lazy, PageRange, Shape, WholeLeaves};

use crate::{BASE, DATA, GIB, KIB, LARGEST, MIB, map, range};

/// How many of each were issued.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) dmb: usize,
    pub(crate) dsb: usize,
    pub(crate) isb: usize,
    pub(crate) tlbi: usize,
}

pub(crate) fn count<G: Geometry>(stream: &[Operation<G>]) -> Counts {
    let mut counts = Counts::default();
    for operation in stream {
        match operation {
            Operation::Write { .. } | Operation::Cache(_) => {}
            Operation::DmbIshst => counts.dmb += 1,
            Operation::DsbIshst | Operation::DsbIsh | Operation::DsbNsh => counts.dsb += 1,
            Operation::Isb => counts.isb += 1,
            Operation::Invalidate(_) | Operation::Tlbi(_) => counts.tlbi += 1,
        }
    }
    counts
}

/// Duties that a call still has before it may return.
#[derive(Default)]
struct Debts {
    /// Valid entries were changed, and no DSB has made that visible.
    unseen_removal: bool,
    /// Valid entries were changed, and no invalidation has followed.
    stale: bool,
    /// Entries became valid that were not.
    only_valid: bool,
    /// An invalidation was issued and no DSB ISH has completed it.
    incomplete: bool,
    /// Entries became or stayed valid, and no DSB has made that visible.
    unseen_valid: bool,
    /// Something was made visible or completed, and no ISB has followed.
    unsynchronised: bool,
    /// Tables written to since the last barrier that orders stores.
    unordered: Vec<u64>,
}

/// Checks the stream of one call, its lazy section included, against what the memory model asks for.
pub(crate) fn check<G: Geometry>(stream: &[Operation<G>]) -> Result<(), String> {
    let mut debts = Debts::default();
    for operation in stream {
        match *operation {
            Operation::Write { cell, old, new } => write::<G>(&mut debts, cell, old, new)?,
            Operation::DmbIshst => debts.unordered.clear(),
            Operation::DsbIshst | Operation::DsbIsh => {
                debts.unsynchronised |= debts.unseen_valid || debts.incomplete;
                debts.unordered.clear();
                debts.unseen_removal = false;
                debts.unseen_valid = false;
                debts.incomplete &= matches!(operation, Operation::DsbIshst);
            }
            Operation::Isb if debts.incomplete => return Err("ISB before the DSB that completes the TLBI".into()),
            Operation::Isb => debts.unsynchronised = false,
            Operation::DsbNsh => return Err("a DSB that waits for this CPU alone".into()),
            // Which `code.rs` looks at.
            Operation::Cache(_) => {}
            Operation::Invalidate(_) | Operation::Tlbi(_) => {
                if debts.unseen_removal {
                    return Err("TLBI before the DSB that makes the stores visible".into());
                }
                // Where nothing changed that was valid, it may be for what became invalid without an invalidation.
                if !debts.stale && debts.only_valid {
                    return Err("TLBI without need".into());
                }
                debts.stale = false;
                debts.incomplete = true;
            }
        }
    }
    let left = [
        (debts.stale, "no TLBI after a valid entry changed"),
        (debts.incomplete, "no DSB ISH after the TLBI"),
        (debts.unseen_valid, "no DSB after an entry became valid"),
        (debts.unsynchronised, "no ISB at the end"),
    ];
    match left.into_iter().find(|(owed, _)| *owed) {
        Some((_, message)) => Err(message.into()),
        None => Ok(()),
    }
}

fn write<G: Geometry>(debts: &mut Debts, cell: PhysAddr, old: Descriptor, new: Descriptor) -> Result<(), String> {
    // Only table descriptors carry UXNTable.
    if new.is_valid() && new.0 & bits::UXNTABLE != 0 && debts.unordered.contains(&new.address().0) {
        return Err("a table linked before its contents were ordered".into());
    }
    debts.unordered.push(cell.align_down(G::PAGE_SIZE).0);
    if old.is_valid() && old != new {
        debts.unseen_removal = true;
        debts.stale = true;
    }
    debts.unseen_valid |= new.is_valid();
    debts.only_valid |= new.is_valid() && !old.is_valid();
    Ok(())
}

type Stream = Vec<Operation<Granule4K>>;

/// `work` in a section of its own, recorded.
fn section(machine: &HostMachine, work: impl FnOnce(&Lazy<'_, granule_pgtable::host::HostMmu>)) -> Stream {
    machine.record(|| work(&Lazy::new(machine.mmu())))
}

fn update(machine: &HostMachine, range: PageRange, change: Change) -> Stream {
    section(machine, |lazy| {
        let flush = machine.page_tables().update(lazy, range, change, WholeLeaves).unwrap();
        lazy.invalidate(machine.tlb(), [flush]);
    })
}

/// A machine with pages over three tables, and their range.
fn three_tables() -> (HostMachine, PageRange) {
    let machine = HostMachine::new(8);
    let whole = range(BASE + 2 * MIB - 16 * KIB, 2 * MIB + 32 * KIB);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    (machine, whole)
}

const CHANGED: Counts = Counts { dmb: 0, dsb: 2, isb: 1, tlbi: 1 };
const NOTHING: Counts = Counts { dmb: 0, dsb: 0, isb: 0, tlbi: 0 };

#[test]
fn a_change_costs_two_dsb_and_one_isb_however_long() {
    let (machine, whole) = three_tables();
    for (change, counts) in [
        (Change::READ_ONLY, CHANGED),
        (Change::READ_ONLY, NOTHING),
        // The order of the instructions and the entries.
        (Change::EXECUTABLE, Counts { dmb: 1, ..CHANGED }),
        (Change::NO_EXECUTE, CHANGED),
        (Change::READ_WRITE, CHANGED),
        (Change::INVALID, CHANGED),
        // It may have been put off, by a call whose caller owes it.
        (Change::INVALID, CHANGED),
        (Change::VALID, Counts { dmb: 0, dsb: 1, isb: 1, tlbi: 0 }),
    ] {
        let stream = update(&machine, whole, change);
        assert_eq!(count(&stream), counts, "{change:?}");
        assert_eq!(check(&stream), Ok(()), "{change:?}");
    }
}

#[test]
fn with_ets2_making_valid_costs_no_barrier() {
    let machine = HostMachine::<Granule4K>::new(8).with_ets2();
    let whole = range(BASE, 16 * KIB);
    let stream = section(&machine, |lazy| {
        let tables = machine.page_tables();
        tables.map(lazy, whole, PhysAddr(0), DATA, Shape::PAGES, &mut machine.frames()).unwrap();
    });
    // The order of a table's contents and its link is owed all the same.
    assert_eq!(count(&stream), Counts { dmb: 3, ..NOTHING });
    assert_eq!(count(&update(&machine, whole, Change::INVALID)), CHANGED);
    assert_eq!(count(&update(&machine, whole, Change::VALID)), NOTHING);
}

#[test]
fn a_mapping_costs_one_pair_and_an_order_for_each_table() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE + GIB - 2 * MIB, 4 * MIB);
    let stream = section(&machine, |lazy| {
        let tables = machine.page_tables();
        tables.map(lazy, whole, PhysAddr(0), DATA, Shape::PAGES, &mut machine.frames()).unwrap();
    });
    assert_eq!(count(&stream), Counts { dmb: 5, dsb: 1, isb: 1, tlbi: 0 });
    assert_eq!(check(&stream), Ok(()));
}

#[test]
fn an_unmapping_costs_two_dsb_and_one_isb() {
    let (machine, whole) = three_tables();
    let stream = section(&machine, |lazy| {
        machine.page_tables().unmap(lazy, machine.tlb(), whole, WholeLeaves, |_| ()).unwrap();
    });
    assert_eq!(count(&stream), CHANGED);
    assert_eq!(check(&stream), Ok(()));
}

#[test]
fn one_section_pays_once_for_many_calls() {
    let machine = HostMachine::<Granule4K>::new(8);
    let stream = section(&machine, |lazy| {
        for page in 0..8 {
            let tables = machine.page_tables();
            let range = range(BASE + page * 8 * KIB, 4 * KIB);
            tables.map(lazy, range, PhysAddr(0), DATA, LARGEST, &mut machine.frames()).unwrap();
        }
    });
    assert_eq!(count(&stream), Counts { dmb: 3, dsb: 1, isb: 1, tlbi: 0 });
    assert_eq!(check(&stream), Ok(()));
}

#[test]
fn several_ranges_share_one_pair_of_barriers() {
    let (machine, whole) = three_tables();
    let alias = range(BASE + GIB, 4 * MIB);
    map(&machine, alias, 0, DATA, LARGEST).unwrap();
    let stream = section(&machine, |lazy| {
        let tables = machine.page_tables();
        let flushes = [alias, whole].map(|range| tables.update(lazy, range, Change::READ_ONLY, WholeLeaves).unwrap());
        lazy.invalidate(machine.tlb(), flushes);
    });
    assert_eq!(count(&stream), Counts { tlbi: 2, ..CHANGED });
}

#[test]
fn the_end_of_an_inner_section_pays_for_those_around_it() {
    let machine = HostMachine::<Granule4K>::new(8);
    let tables = machine.page_tables();
    let page = |page: u64| range(BASE + page * 4 * KIB, 4 * KIB);
    let mut inner_end = 0;
    let stream = machine.record(|| {
        let outer = Lazy::new(machine.mmu());
        tables.map(&outer, page(0), PhysAddr(0), DATA, LARGEST, &mut machine.frames()).unwrap();
        {
            let inner = outer.nested();
            tables.map(&inner, page(1), PhysAddr(0), DATA, LARGEST, &mut machine.frames()).unwrap();
        }
        inner_end += usize::from(outer.pending() == granule_pgtable::Pending::None);
        // An empty inner section has nothing to add, but its end is a promise about what came before.
        tables.map(&outer, page(2), PhysAddr(0), DATA, LARGEST, &mut machine.frames()).unwrap();
        drop(outer.nested());
        inner_end += usize::from(outer.pending() == granule_pgtable::Pending::None);
    });
    assert_eq!(inner_end, 2);
    assert_eq!(count(&stream), Counts { dmb: 3, dsb: 2, isb: 2, tlbi: 0 });
}

#[test]
fn a_flush_that_is_left_to_the_caller_leaves_the_barriers_owed() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE, 8 * KIB);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    update(&machine, range(BASE, 4 * KIB), Change::INVALID);
    let change = |change| {
        section(&machine, |lazy| machine.page_tables().update(lazy, whole, change, WholeLeaves).unwrap().defer())
    };
    // The first page stays invalid, the second was written and is valid.
    assert_eq!(count(&change(Change::READ_ONLY)), Counts { dsb: 1, isb: 1, ..NOTHING });
    // Nothing is valid afterwards: the barriers come with the invalidation, whenever that is.
    assert_eq!(count(&change(Change::INVALID)), NOTHING);
}

#[test]
fn the_checker_misses_nothing_that_is_taken_away() {
    let (machine, whole) = three_tables();
    let far = range(BASE + 8 * GIB, 8 * KIB);
    let streams = [
        update(&machine, whole, Change::READ_ONLY),
        update(&machine, whole, Change::INVALID),
        update(&machine, whole, Change::VALID),
        section(&machine, |lazy| {
            let tables = machine.page_tables();
            tables.map(lazy, far, PhysAddr(0), DATA, LARGEST, &mut machine.frames()).unwrap();
        }),
        section(&machine, |lazy| {
            machine.page_tables().unmap(lazy, machine.tlb(), whole, WholeLeaves, |_| ()).unwrap();
        }),
    ];
    for good in streams {
        assert_eq!(check(&good), Ok(()));
        for (index, operation) in good.iter().enumerate() {
            if matches!(operation, Operation::Write { .. }) {
                continue;
            }
            let mut without = good.clone();
            without.remove(index);
            assert!(check(&without).is_err(), "{operation:?} taken away was not noticed");
        }
    }
}

#[test]
fn the_checker_sees_a_wrong_order() {
    let (machine, whole) = three_tables();
    let good = update(&machine, whole, Change::READ_ONLY);
    let barriers = good.len() - 4;
    assert!(matches!(
        good[barriers..],
        [Operation::DsbIshst, Operation::Invalidate(_), Operation::DsbIsh, Operation::Isb]
    ));
    // Each neighbour pair swapped, the last store against the first barrier among them.
    for first in barriers - 1..good.len() - 1 {
        let mut swapped = good.clone();
        swapped.swap(first, first + 1);
        assert!(check(&swapped).is_err(), "{:?} after {:?} was not noticed", good[first], good[first + 1]);
    }
    // DSB ISHST does not complete a TLBI.
    let mut weaker = good.clone();
    weaker[barriers + 2] = Operation::DsbIshst;
    assert!(check(&weaker).is_err());
}
