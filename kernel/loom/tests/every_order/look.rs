//! A copy on write empties the entry of its page for a moment, and a guard replaces one: the kernel's own looks at
//! entries and lock of tables, in every order. An entry that is there all the time is never absent.

use std::sync::Arc;

use granule_loom::mm::table::{Copied, MappedPage};
use granule_loom::{Machine, Omitted, Without, omit};

use crate::{assert_caught, threads_with};

/// `change` of a page that is there meets `look`.
fn meet(
    change: impl Fn(&MappedPage) + Send + Sync + Copy + 'static,
    look: impl Fn(&MappedPage) + Send + Sync + 'static,
    omitted: Omitted,
) {
    threads_with(2, move || {
        let page = Arc::new(MappedPage::new(Machine::new(1, Without::Nothing)));
        let changed = Arc::clone(&page);
        let changing = loom::thread::spawn(move || {
            omit(omitted);
            change(&changed);
        });
        omit(omitted);
        look(&page);
        omit(Omitted::Nothing);
        changing.join().unwrap();
    });
}

fn copy(page: &MappedPage) {
    page.copy(1);
}

fn is_not_denied(page: &MappedPage) {
    assert!(!page.is_denied(0), "look: SIGBUS for a page that is there");
}

fn is_present(page: &MappedPage) {
    assert!(!page.is_absent(0), "look: a page that is there is absent");
}

#[test]
fn a_fault_beside_a_copy_is_not_denied() {
    meet(copy, is_not_denied, Omitted::Nothing);
}

#[test]
fn a_page_beside_a_copy_is_present() {
    meet(copy, is_present, Omitted::Nothing);
}

/// The empty entry is seen, so the second look is needed.
#[test]
fn an_answer_without_the_lock_is_caught() {
    let seems_present = |page: &MappedPage| assert!(!page.seems_absent(0), "look: absent at a glimpse");
    assert_caught("look: absent at a glimpse", || meet(copy, seems_present, Omitted::Nothing));
}

#[test]
fn a_lock_of_a_table_that_two_get_is_caught() {
    assert_caught("look: SIGBUS", || meet(copy, is_not_denied, Omitted::AtomicExchange));
}

#[test]
fn an_unlock_without_its_release_is_caught() {
    assert_caught("look: a page", || meet(copy, is_present, Omitted::Release));
}

/// A look finds the page or the guard.
fn is_page_or_guard(found: Copied) {
    assert_ne!(found, Copied::Nothing, "look: neither the page nor the guard");
}

fn guard(page: &MappedPage) {
    assert!(page.guard(1), "look: the page was not zapped");
}

#[test]
fn a_fork_beside_a_guard_has_one_of_both() {
    meet(guard, |page| is_page_or_guard(page.fork(0)), Omitted::Nothing);
}

#[test]
fn a_fault_beside_a_guard_meets_one_of_both() {
    meet(guard, |page| is_page_or_guard(page.fault(0)), Omitted::Nothing);
}

/// A guard comes in the place of nothing while a load makes a page there: the guard is left, and the page is zapped.
fn guard_beside_a_load(guard: fn(&MappedPage, usize) -> bool) {
    threads_with(2, move || {
        let page = Arc::new(MappedPage::missing(Machine::new(1, Without::Nothing)));
        let guarded = Arc::clone(&page);
        let guards = loom::thread::spawn(move || guard(&guarded, 1));
        let is_made = page.load(0);
        assert_eq!(guards.join().unwrap(), is_made, "look: a page was not zapped");
        assert_eq!(page.fault(0), Copied::Guard, "look: the guard was lost");
    });
}

#[test]
fn a_guard_beside_a_load_zaps_its_page() {
    guard_beside_a_load(MappedPage::guard);
}

#[test]
fn a_guard_after_a_glimpse_is_caught() {
    assert_caught("look: a page was not zapped", || guard_beside_a_load(MappedPage::guard_after_a_glimpse));
}

#[test]
fn a_guard_that_drops_both_locks_is_caught() {
    let halves = |page: &MappedPage| page.guard_in_two_halves(1, true);
    assert_caught("look: neither", || meet(halves, |page| is_page_or_guard(page.fork(0)), Omitted::Nothing));
}

/// A fork waits for the areas, a fault for the table alone.
#[test]
fn a_guard_that_drops_the_tables_lock_is_caught() {
    let halves = |page: &MappedPage| page.guard_in_two_halves(1, false);
    meet(halves, |page| is_page_or_guard(page.fork(0)), Omitted::Nothing);
    assert_caught("look: neither", || meet(halves, |page| is_page_or_guard(page.fault(0)), Omitted::Nothing));
}
