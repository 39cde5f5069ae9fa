//! Areas whose invalidation is left for later, the kernel's own source: while a TLB may have a page of an area, its frame
//! and its address are not given to another owner, and a purge leaves none that was freed before it.

use std::sync::Arc;

use granule_loom::mm::kernel::{KernelSpace, Without};
use granule_loom::sync::rank;
use granule_loom::{Omitted, omit};

use crate::{assert_caught, threads_with};

/// Another CPU, which leaves a step out.
fn spawn(
    space: &Arc<KernelSpace>,
    omitted: Omitted,
    work: impl FnOnce(&KernelSpace) + 'static,
) -> loom::thread::JoinHandle<()> {
    let space = Arc::clone(space);
    loom::thread::spawn(move || {
        omit(omitted);
        work(&space);
    })
}

/// A CPU frees an area, another purges, and a third accesses the page.
fn freed_and_purged(without: Without, omitted: Omitted) {
    threads_with(3, move || {
        let space = Arc::new(KernelSpace::new(without));
        let page = space.vmalloc(0);
        let accesses = spawn(&space, Omitted::Nothing, move |space| space.access(page));
        let purges = spawn(&space, omitted, |space| space.purge_on(1, &[]));
        omit(omitted);
        space.vfree(0, page);
        omit(Omitted::Nothing);
        purges.join().unwrap();
        accesses.join().unwrap();
        space.purge_on(0, &[page]);
        space.assert_freed(&[page]);
    });
}

#[test]
fn a_frame_that_a_tlb_may_have_is_not_freed() {
    freed_and_purged(Without::Nothing, Omitted::Nothing);
}

#[test]
fn a_purge_without_its_invalidation_or_the_barrier_before_it_is_caught() {
    assert_caught("is free and may be translated", || freed_and_purged(Without::Invalidation, Omitted::Nothing));
    assert_caught("may be translated", || freed_and_purged(Without::DsbIsh, Omitted::Nothing));
}

#[test]
fn a_purge_that_reads_the_list_without_its_lock_is_caught() {
    let lock = Omitted::Lock(rank::VMALLOC);
    assert_caught("may be translated", || freed_and_purged(Without::Nothing, lock));
}

/// Two CPUs free an area each and purge.
fn purged_by_two(without: Without) {
    threads_with(3, move || {
        let space = Arc::new(KernelSpace::new(without));
        let pages = [space.vmalloc(0), space.vmalloc(0)];
        let purges = spawn(&space, Omitted::Nothing, move |space| {
            space.vfree(1, pages[1]);
            space.purge_on(1, &pages[1..]);
        });
        space.vfree(0, pages[0]);
        space.purge_on(0, &pages[..1]);
        purges.join().unwrap();
        space.assert_freed(&pages);
    });
}

#[test]
fn a_purge_returns_when_what_another_has_taken_is_free() {
    purged_by_two(Without::Nothing);
}

#[test]
fn a_purge_that_does_not_wait_for_another_is_caught() {
    assert_caught("purge returned while an area waits", || purged_by_two(Without::Mark));
}

/// An area is freed and purged by one CPU, another takes addresses, and a third accesses the page all the while.
fn addresses_come_back(without: Without) {
    threads_with(3, move || {
        let space = Arc::new(KernelSpace::new(without));
        let page = space.vmalloc(0);
        let accesses = spawn(&space, Omitted::Nothing, move |space| space.access(page));
        let takes = spawn(&space, Omitted::Nothing, move |space| {
            let taken = space.vmalloc(0);
            space.access(taken);
        });
        space.vfree(0, page);
        space.purge_on(0, &[page]);
        accesses.join().unwrap();
        takes.join().unwrap();
        space.assert_freed(&[page]);
    });
}

#[test]
fn addresses_that_come_back_are_in_no_tlb() {
    addresses_come_back(Without::Nothing);
}

#[test]
fn addresses_that_come_back_without_an_invalidation_are_caught() {
    assert_caught("may be translated", || addresses_come_back(Without::Invalidation));
}
