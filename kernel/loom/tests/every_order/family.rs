//! A family of spaces and a page of it that migrates, the kernel's own source: no fork copies a migration entry, no entry
//! keeps the frame that is given back, and no walk meets a space that has ended.

use std::sync::Arc;

use granule_loom::mm::family::{Family, Without};
use granule_loom::{Omitted, omit};

use crate::{assert_caught, threads_with};

/// Loom's report of two accesses without an order.
const RACE: &str = "Causality violation";

/// A page migrates while its space forks.
fn forked(omitted: Omitted, without: Without) {
    threads_with(2, move || {
        let family = Arc::new(Family::new(without));
        let other = Arc::clone(&family);
        let migrates = loom::thread::spawn(move || {
            omit(omitted);
            other.migrate()
        });
        omit(omitted);
        family.fork();
        family.read_in_child();
        omit(Omitted::Nothing);
        let has_moved = migrates.join().unwrap();
        family.assert_at_rest(has_moved);
    });
}

#[test]
fn a_fork_beside_a_migration_copies_no_entry_of_it() {
    forked(Omitted::Nothing, Without::Nothing);
}

#[test]
fn a_fork_that_does_not_look_at_the_mark_is_caught() {
    assert_caught("a migration entry was copied", || forked(Omitted::Nothing, Without::LookAtMark));
}

#[test]
fn a_mark_and_locks_that_order_nothing_are_caught() {
    assert_caught("", || forked(Omitted::Order, Without::Nothing));
}

/// A page migrates while a space that has it ends.
fn ended(without: Without) {
    threads_with(2, move || {
        let family = Arc::new(Family::new(without));
        family.fork();
        let other = Arc::clone(&family);
        let migrates = loom::thread::spawn(move || other.migrate());
        family.end_child();
        let has_moved = migrates.join().unwrap();
        family.assert_at_rest(has_moved);
    });
}

#[test]
fn a_space_that_ends_beside_a_migration_is_in_no_walk() {
    ended(Without::Nothing);
}

#[test]
fn a_space_that_ends_in_its_family_is_caught() {
    assert_caught(RACE, || ended(Without::Leave));
}
