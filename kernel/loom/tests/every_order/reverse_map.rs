//! The reverse map of an object, the kernel's own source: areas join, leave, are cut and copied while a walk looks for
//! the entries of a page. The walk meets each area that may have one, and no space that has ended.

use std::sync::Arc;

use granule_loom::mm::space::{Shared, Steps};

use crate::{assert_caught, threads};

/// Loom's report of two accesses without an order.
const RACE: &str = "Causality violation";
/// An entry that a walk has not found.
const LEFT: &str = "an entry has the frame";

/// `change` of the spaces meets a `walk`.
fn meet(steps: Steps, before: fn(&Shared), [change, walk]: [fn(&Shared); 2], after: fn(&Shared)) {
    threads(move || {
        let shared = Arc::new(Shared::new(steps));
        before(&shared);
        let walked = Arc::clone(&shared);
        let walks = loom::thread::spawn(move || walk(&walked));
        change(&shared);
        walks.join().unwrap();
        after(&shared);
    });
}

/// A space maps the object and loads from its page while the object is truncated.
fn joined(steps: Steps) {
    meet(steps, |_| {}, [Shared::map_and_load, Shared::truncate], Shared::assert_truncated);
}

#[test]
fn an_area_that_joins_beside_a_walk_is_met_or_maps_nothing() {
    joined(Steps::Shipped);
}

#[test]
fn a_fault_before_its_area_has_joined_is_caught() {
    assert_caught(RACE, || joined(Steps::FaultFirst));
}

/// A space ends while a walk may be in it.
fn left(steps: Steps) {
    meet(steps, Shared::map_and_load, [Shared::end, |shared| _ = shared.count()], |_| {});
}

#[test]
fn an_area_that_has_left_is_in_no_walk() {
    left(Steps::Shipped);
}

#[test]
fn a_space_that_ends_in_a_reverse_map_is_caught() {
    assert_caught(RACE, || left(Steps::NoLeave));
}

/// A space forks while the object is truncated.
fn forked(steps: Steps) {
    let before = |shared: &Shared| {
        shared.map_and_load();
        shared.begin_fork();
    };
    meet(steps, before, [Shared::fork, Shared::truncate], Shared::assert_truncated);
}

#[test]
fn a_copy_beside_a_walk_is_met_or_is_one_of_nothing() {
    forked(Steps::Shipped);
}

#[test]
fn a_copy_before_its_area_has_joined_is_caught() {
    assert_caught(LEFT, || forked(Steps::CopyFirst));
}

#[test]
fn a_copy_whose_area_comes_before_its_parents_is_caught() {
    assert_caught(LEFT, || forked(Steps::ChildFirst));
}

/// An area is cut and joined while a walk counts its pages.
fn cut(steps: Steps) {
    let counts = |shared: &Shared| assert_eq!(shared.count(), 2, "reverse map: a page was missed, or met twice");
    meet(steps, Shared::map_and_load, [Shared::cut_and_join, counts], |_| {});
}

#[test]
fn an_area_that_is_cut_beside_a_walk_is_met_once() {
    cut(Steps::Shipped);
}

#[test]
fn an_area_that_is_cut_in_two_holds_is_caught() {
    assert_caught("reverse map: a page", || cut(Steps::CutInTwo));
}
