//! A page that an object loses while a fault maps it: the kernel's own source of both sides, with a table of a space
//! that is linked at the same time, or was before.

use std::sync::Arc;

use granule_loom::mm::shmem::SharedPage;
use granule_loom::{Machine, Omitted, Without, omit};

use crate::{assert_caught, threads};

/// `fault` on what `prepare` makes meets a truncation; `check` looks at what is left.
fn meets_a_truncation(
    prepare: impl Fn() -> SharedPage + Send + Sync + 'static,
    fault: fn(&SharedPage),
    omitted: Omitted,
    check: fn(&SharedPage),
) {
    threads(move || {
        let page = Arc::new(prepare());
        let faulting = Arc::clone(&page);
        let faulting = loom::thread::spawn(move || {
            omit(omitted);
            fault(&faulting);
        });
        omit(omitted);
        page.truncate(0);
        faulting.join().unwrap();
        omit(Omitted::Nothing);
        assert!(!page.is_mapped(), "objects: an entry shows what the object has lost");
        check(&page);
    });
}

/// The tables of the object and of the space, the second linked or not.
fn page(is_linked: bool) -> SharedPage {
    SharedPage::new(Machine::new(2, Without::Nothing), is_linked)
}

/// A fault meets a truncation, in a table that is linked or not.
///
/// A second fault, in a table that the first one has linked, has no fence between what it finds there and its look at
/// the object. On arm64 it needs none: the lock's address depends on the table's, the lock is acquired, and what one
/// other CPU sees of a store all see. C11 has no such order, so this is not tried here.
fn a_fault_meets_a_truncation(is_linked: bool, omitted: Omitted) {
    let check = |page: &SharedPage| assert_eq!(page.holders(), 0, "objects: the frame is not free");
    meets_a_truncation(move || page(is_linked), |page| _ = page.fault(1), omitted, check);
}

#[test]
fn a_fault_and_a_truncation_leave_no_entry() {
    a_fault_meets_a_truncation(true, Omitted::Nothing);
}

/// The first fault brings it into use, or comes too late.
#[test]
fn a_fault_at_a_page_that_is_not_used_yet_and_a_truncation_leave_no_entry() {
    let spare = || {
        let page = page(true);
        page.spare();
        page
    };
    let check = |page: &SharedPage| assert_eq!(page.holders(), 0, "objects: the frame is not free");
    meets_a_truncation(spare, |page| page.fault_at_spare(1), Omitted::Nothing, check);
}

#[test]
fn a_truncation_that_does_not_see_the_table_is_seen_by_the_fault_that_links_it() {
    a_fault_meets_a_truncation(false, Omitted::Nothing);
}

#[test]
fn a_link_without_its_fence_is_caught() {
    assert_caught("a free frame shared", || a_fault_meets_a_truncation(false, Omitted::Fences));
}

/// A fault that maps a block meets a truncation.
fn a_fault_of_a_block_meets_a_truncation(omitted: Omitted) {
    let check = |page: &SharedPage| assert_eq!(page.holders(), 0, "objects: the frame is not free");
    meets_a_truncation(|| page(false), |page| page.fault_by_block(1), omitted, check);
}

#[test]
fn a_truncation_that_does_not_see_the_block_is_seen_by_the_fault_that_links_it() {
    a_fault_of_a_block_meets_a_truncation(Omitted::Nothing);
}

#[test]
fn a_block_without_its_fence_is_caught() {
    assert_caught("a free frame shared", || a_fault_of_a_block_meets_a_truncation(Omitted::Fences));
}

/// A fault meets a migration, in a table that is linked or not: it maps the new frame, or nothing and is tried again.
fn a_fault_meets_a_migration(is_linked: bool, omitted: Omitted) {
    threads(move || {
        let page = Arc::new(page(is_linked));
        let faulting = Arc::clone(&page);
        let faulting = loom::thread::spawn(move || {
            omit(omitted);
            while faulting.fault(1) {
                loom::thread::yield_now();
            }
        });
        omit(omitted);
        page.migrate(0);
        faulting.join().unwrap();
        omit(Omitted::Nothing);
        assert!(page.has_moved(), "objects: an entry has the old frame");
    });
}

#[test]
fn a_fault_maps_the_frame_that_a_page_has_moved_to() {
    a_fault_meets_a_migration(true, Omitted::Nothing);
    a_fault_meets_a_migration(false, Omitted::Nothing);
}

#[test]
fn a_migration_without_its_fence_is_caught() {
    assert_caught("a free frame shared", || a_fault_meets_a_migration(false, Omitted::Fences));
}

/// A store to a hole meets a truncation: a frame that stays beyond the end was never mapped.
fn a_store_to_a_hole_meets_a_truncation(omitted: Omitted) {
    let prepare = || {
        let page = page(true);
        page.punch();
        page
    };
    let check = |page: &SharedPage| assert!(!page.shows_old_bytes(), "objects: old bytes are behind the end");
    meets_a_truncation(prepare, |page| page.fault_at_hole(1), omitted, check);
}

#[test]
fn a_frame_behind_the_end_is_all_zeros() {
    a_store_to_a_hole_meets_a_truncation(Omitted::Nothing);
}

#[test]
fn a_size_that_is_looked_at_without_a_fence_is_caught() {
    assert_caught("objects: old bytes", || a_store_to_a_hole_meets_a_truncation(Omitted::Fences));
}

/// A page that a pager fills, protected, meets a fault at it.
fn a_fault_meets_a_page_that_comes(is_found_early: bool) {
    threads(move || {
        let page = Arc::new(page(true));
        page.punch();
        let faulting = Arc::clone(&page);
        let faulting = loom::thread::spawn(move || {
            while faulting.fault(1) {
                loom::thread::yield_now();
            }
        });
        page.fill_protected(0, is_found_early);
        faulting.join().unwrap();
        assert!(page.is_protected(), "objects: the page is mapped without its protection");
    });
}

#[test]
fn a_page_that_comes_protected_is_so_for_every_fault() {
    a_fault_meets_a_page_that_comes(false);
}

#[test]
fn a_page_that_is_found_before_it_is_mapped_is_caught() {
    assert_caught("objects: the page is mapped without its protection", || a_fault_meets_a_page_that_comes(true));
}
