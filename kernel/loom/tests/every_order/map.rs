//! Owners of neighbouring pages, which share tables, and readers.

use granule_loom::{Cpu, Machine, pages};
use granule_pgtable::{Change, Lazy, WholeLeaves};

use crate::{assert_caught, every_order, nothing, without};

/// Two CPUs map neighbouring pages whose table is missing.
fn neighbours_map(machine: fn() -> Machine) {
    every_order(machine, nothing, [|cpu| cpu.map(0), |cpu| cpu.map(1)], |machine| {
        assert!(machine.cpu(0).look(0) && machine.cpu(0).look(1), "neighbours: a mapping was lost");
        assert_eq!(machine.tables(), 1, "neighbours: one table serves both");
    });
}

#[test]
fn neighbours_that_miss_the_same_table_link_one() {
    neighbours_map(without!(Nothing, 2));
}

#[test]
fn linking_in_two_steps_loses_a_table_and_is_caught() {
    assert_caught("neighbours: ", || neighbours_map(without!(AtomicExchange, 2)));
}

/// A CPU looks at pages while their owner maps one of them, in a table that was something else before.
fn look_while_mapped(machine: fn() -> Machine) {
    every_order(machine, nothing, [|cpu| cpu.map(0), |cpu| _ = (cpu.look(0), cpu.look(1))], |_| {});
}

#[test]
fn a_walker_sees_a_new_table_empty_or_filled() {
    look_while_mapped(without!(Nothing, 1));
}

#[test]
fn a_table_linked_before_its_zeroes_is_caught() {
    assert_caught("in a table that is none", || look_while_mapped(without!(DmbIshst, 1)));
}

/// A CPU looks at a page while its owner unmaps it and maps it again.
#[test]
fn a_walker_sees_a_page_or_none_while_its_owner_unmaps_and_maps_it() {
    let owner = |cpu: Cpu<'_>| {
        cpu.unmap(0);
        cpu.map(0);
    };
    every_order(
        without!(Nothing, 1),
        |cpu| cpu.map(0),
        [owner, |cpu| _ = (cpu.look(0), cpu.look(0))],
        |machine| {
            assert!(machine.cpu(0).look(0));
        },
    );
}

/// A hole may become a neighbour's table concurrently: its owner measured a run of holes and leaves just
/// before.
#[test]
fn a_table_that_appears_in_a_hole_is_no_leaf() {
    let unmap = |cpu: Cpu<'_>| cpu.unmap(0);
    let change = |cpu: Cpu<'_>| {
        let changed = cpu.tables().update(&Lazy::new(&cpu), pages(0, 1), Change::READ_ONLY, WholeLeaves);
        assert!(changed.is_err(), "nothing is mapped there");
    };
    for owner in [unmap, change] {
        every_order(without!(Nothing, 2), nothing, [owner, |cpu| cpu.map(1)], |machine| {
            assert!(machine.cpu(0).look(1), "a mapping was lost");
        });
    }
}

/// One owner changes its two pages while its neighbour maps another, in the same pair of entries as one of these.
fn change_beside_a_neighbour<const PAGE: u64>(machine: fn() -> Machine) {
    let before = |cpu: Cpu<'_>| {
        cpu.map(1);
        cpu.map(2);
    };
    let changes = |cpu: Cpu<'_>| {
        let _walk = cpu.announce();
        let flush = cpu.tables().update(&Lazy::new(&cpu), pages(1, 2), Change::READ_ONLY, WholeLeaves);
        flush.expect("the owner finds its pages whatever the neighbour does").defer();
    };
    every_order(machine, before, [|cpu| cpu.map(PAGE), changes], |machine| {
        let cpu = machine.cpu(0);
        assert!(cpu.look(PAGE), "the neighbour's page was lost");
        for own in [1, 2] {
            let found = cpu.tables().translate(pages(own, 1).start()).expect("the owner's own page");
            assert!(!found.descriptor.is_writable());
        }
    });
}

#[test]
fn a_change_in_bulk_leaves_the_neighbours_entries_alone() {
    change_beside_a_neighbour::<0>(without!(Nothing, 1));
    change_beside_a_neighbour::<3>(without!(Nothing, 1));
}

#[test]
fn a_change_that_writes_the_other_half_of_a_pair_is_caught() {
    assert_caught("the neighbour's page was lost", || change_beside_a_neighbour::<0>(without!(OwnEntries, 1)));
    assert_caught("the neighbour's page was lost", || change_beside_a_neighbour::<3>(without!(OwnEntries, 1)));
}
