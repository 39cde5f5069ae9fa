//! Empty tables are taken away while others map into them and walk through them.
//!
//! Each freed table is filled with another owner's entries at once, so an access that comes too late is noticed.

use granule_loom::{Cpu, Machine};
use granule_pgtable::Progress;

use crate::{assert_caught, every_order, orders, short_and_long, without};

/// Leaves an empty table linked.
pub(crate) fn empty_table(cpu: Cpu<'_>) {
    cpu.map(0);
    cpu.unmap(0);
}

/// Continues while there is work, and gives up where a walk is in the way.
pub(crate) fn reclaim(cpu: Cpu<'_>) {
    cpu.reclaim();
}

/// No walk is open any more, so empty tables go now.
pub(crate) fn reclaim_the_rest(machine: &Machine) {
    assert_eq!(machine.cpu(0).reclaim(), Progress::Done);
}

/// A CPU walks through an empty table that another takes away.
fn walk_while_reclaimed(machine: fn() -> Machine) {
    every_order(machine, empty_table, [reclaim, |cpu| assert!(!cpu.look(1))], |machine| {
        reclaim_the_rest(machine);
        assert_eq!(machine.tables(), 0, "the table is freed");
    });
}

#[test]
fn a_walker_never_reads_a_freed_table() {
    walk_while_reclaimed(without!(Nothing, 1));
}

/// The effect of `lab=early-table-free` on the target.
#[test]
fn a_table_freed_early_is_caught() {
    assert_caught("in a table that is none", || walk_while_reclaimed(without!(Grace, 1)));
}

#[test]
fn words_read_before_the_unlinking_is_seen_are_caught() {
    assert_caught("in a table that is none", || walk_while_reclaimed(without!(DsbIsh, 1)));
}

#[test]
fn a_walk_that_reads_before_it_is_announced_is_caught() {
    assert_caught("in a table that is none", || walk_while_reclaimed(without!(WalkBarrier, 1)));
}

#[test]
fn a_walk_that_is_not_announced_is_caught() {
    assert_caught("in a table that is none", || {
        let walk = |cpu: Cpu<'_>| _ = cpu.look_quietly(1);
        every_order(without!(Nothing, 1), empty_table, [reclaim, walk], |_| {});
    });
}

/// A CPU maps a page in an empty table that another takes away.
fn map_while_reclaimed(machine: fn() -> Machine, map: fn(Cpu<'_>)) {
    every_order(machine, empty_table, [reclaim, map], |machine| {
        assert!(machine.cpu(0).look(2), "a mapping was lost");
        reclaim_the_rest(machine);
        assert!(machine.cpu(0).look(2), "a mapping was lost");
        assert_eq!(machine.tables(), 1, "a table too many, or none");
    });
}

#[test]
fn a_mapping_in_an_empty_table_is_never_lost() {
    map_while_reclaimed(without!(Nothing, 2), |cpu| cpu.map(2));
}

#[test]
fn a_mapper_that_overlooks_the_mark_is_caught() {
    assert_caught("a mapping was lost", || map_while_reclaimed(without!(Marks, 2), |cpu| cpu.map(2)));
}

#[test]
fn a_mark_taken_away_in_two_steps_is_caught() {
    // The table comes back after it was unlinked, and has another owner when the mapper has counted on it.
    assert_caught("in a table that is none", || map_while_reclaimed(without!(AtomicClear, 2), |cpu| cpu.map(2)));
}

#[test]
fn a_mapper_that_is_not_announced_is_caught() {
    assert_caught("a mapping was lost", || map_while_reclaimed(without!(Nothing, 2), |cpu| cpu.map_quietly(2)));
}

#[test]
fn leaves_that_are_not_seen_at_the_end_of_a_walk_are_caught() {
    assert_caught("a mapping was lost", || map_while_reclaimed(without!(WalkRelease, 2), |cpu| cpu.map(2)));
}

#[test]
fn marks_that_are_not_seen_before_the_words_are_read_are_caught() {
    assert_caught("a mapping was lost", || map_while_reclaimed(without!(DsbIsh, 2), |cpu| cpu.map(2)));
}

/// The last page goes while the table is looked at, a neighbour maps, and a table is taken away.
fn beside_two(preemptions: usize) {
    orders(
        preemptions,
        without!(Nothing, 2),
        |cpu| cpu.map(0),
        [reclaim, |cpu| cpu.unmap(0), |cpu| cpu.map(1)],
        |machine| {
            reclaim_the_rest(machine);
            assert!(!machine.cpu(0).look(0) && machine.cpu(0).look(1));
            assert_eq!(machine.tables(), 1);
        },
    );
}

short_and_long!(
    2,
    beside_two,
    an_owner_unmaps_a_neighbour_maps_and_a_third_reclaims,
    an_owner_a_neighbour_and_a_third_with_three_preemptions
);

/// A page waits for its invalidation in a table that another CPU would take away: it stays until the page is handed out.
#[test]
fn a_table_in_which_a_page_waits_stays() {
    every_order(
        without!(Nothing, 2),
        |cpu| cpu.map(0),
        [reclaim, |cpu| {
            cpu.unmap_lazily(0, 1);
            cpu.release(0, 1);
        }],
        |machine| {
            reclaim_the_rest(machine);
            assert_eq!(machine.tables(), 0);
        },
    );
}
