//! A table is collapsed while its entries are changed by plain stores, split, and read.
//!
//! The collapse may win or lose: either way every page is mapped to its own memory, with what its owner has made of it,
//! and no owner waits.

use granule_arch::addr::VirtAddr;
use granule_loom::{Cpu, Machine, NoTlb, pages};
use granule_pgtable::{Change, Geometry, Lazy, Lockless, Split, Tiny};

use crate::{assert_caught, orders, short_and_long, without};

/// A table of four pages, which could be a block.
pub(crate) fn four_pages(cpu: Cpu<'_>) {
    (0..4).for_each(|page| cpu.map(page));
}

pub(crate) fn collapse(cpu: Cpu<'_>) {
    cpu.collapse();
}

/// The owner of `count` pages from `first` on makes them read-only.
pub(crate) fn change(cpu: Cpu<'_>, first: u64, count: usize) {
    let _walk = cpu.announce();
    change_quietly(cpu, first, count);
}

fn change_quietly(cpu: Cpu<'_>, first: u64, count: usize) {
    let (lazy, mut source) = (Lazy::new(&cpu), cpu);
    let splitter = Split::new(&Lockless, &mut source);
    let flush = cpu.tables().update(&lazy, pages(first, count), Change::READ_ONLY, splitter);
    lazy.invalidate(&NoTlb, [flush.expect("the pages are mapped, and there are tables")]);
}

/// Asserts that of four pages those of `read_only` are that, and no other.
pub(crate) fn assert_pages(machine: &Machine, read_only: &[u64]) {
    let cpu = machine.cpu(0);
    for page in 0..4 {
        assert!(cpu.look(page), "page {page} was lost");
        let found = cpu.tables().translate(VirtAddr(page << Tiny::PAGE_SHIFT)).expect("just seen");
        assert_eq!(found.descriptor.is_writable(), !read_only.contains(&page), "the change of page {page} was lost");
    }
}

/// An owner of one page changes it.
fn store(machine: fn() -> Machine, owner: fn(Cpu<'_>)) {
    orders(2, machine, four_pages, [collapse, owner], |machine| assert_pages(machine, &[1]));
}

#[test]
fn a_neighbours_store_is_not_lost() {
    store(without!(Nothing, 4), |cpu| change(cpu, 1, 1));
}

#[test]
fn without_the_mark_it_is() {
    assert_caught("the change of page 1 was lost", || store(without!(Marks, 4), |cpu| change(cpu, 1, 1)));
}

#[test]
fn without_waiting_for_walks_it_is() {
    assert_caught("the change of page 1 was lost", || store(without!(Grace, 4), |cpu| change(cpu, 1, 1)));
}

#[test]
fn in_a_walk_that_is_not_announced_it_is() {
    assert_caught("the change of page 1 was lost", || store(without!(Nothing, 4), |cpu| change_quietly(cpu, 1, 1)));
}

#[test]
fn without_the_barrier_behind_the_announcement_it_is() {
    assert_caught("the change of page 1 was lost", || store(without!(WalkBarrier, 4), |cpu| change(cpu, 1, 1)));
}

#[test]
fn without_the_barrier_behind_the_mark_it_is() {
    assert_caught("the change of page 1 was lost", || store(without!(DsbIsh, 4), |cpu| change(cpu, 1, 1)));
}

#[test]
fn with_an_exchange_in_two_steps_it_is() {
    assert_caught("the change of page 1 was lost", || store(without!(AtomicExchange, 4), |cpu| change(cpu, 1, 1)));
}

/// All of a block, which an owner changes as a whole.
#[test]
fn a_change_of_all_is_not_lost() {
    orders(2, without!(Nothing, 4), four_pages, [collapse, |cpu| change(cpu, 0, 4)], |machine| {
        assert_pages(machine, &[0, 1, 2, 3]);
    });
}

/// Two owners: one may have split the block that the other finds.
#[test]
fn the_stores_of_two_owners_are_not_lost() {
    orders(
        1,
        without!(Nothing, 6),
        four_pages,
        [collapse, |cpu| change(cpu, 1, 1), |cpu| change(cpu, 2, 1)],
        |machine| {
            assert_pages(machine, &[1, 2]);
        },
    );
}

/// Of two CPUs that collapse one table, one continues with what the other has begun.
#[test]
fn two_collapsers_and_an_owner() {
    orders(1, without!(Nothing, 4), four_pages, [collapse, |cpu| change(cpu, 1, 1), collapse], |machine| {
        assert_pages(machine, &[1]);
    });
}

/// A walk finds each page, wherever it is linked.
fn walk(machine: fn() -> Machine) {
    orders(3, machine, four_pages, [collapse, |cpu| assert!(cpu.look(1), "page 1 was lost")], |machine| {
        assert_pages(machine, &[]);
    });
}

#[test]
fn a_walker_finds_what_it_looks_for() {
    walk(without!(Nothing, 4));
}

#[test]
fn without_waiting_for_it_a_walker_reads_a_table_that_is_none() {
    assert_caught("in a table that is none", || walk(without!(Grace, 4)));
}

/// The last page of four waits for its invalidation, while the first two become a group in another table, and
/// is handed out.
fn purge(machine: fn() -> Machine, before: fn(Cpu<'_>), owner: fn(Cpu<'_>)) {
    orders(2, machine, before, [collapse, owner], |machine| {
        let cpu = machine.cpu(0);
        assert!((0..3).all(|page| cpu.look(page)), "a neighbour was lost");
        assert!(!cpu.look(3), "an entry was left");
    });
}

pub(crate) fn last_page_waits(cpu: Cpu<'_>) {
    four_pages(cpu);
    cpu.unmap_lazily(3, 1);
}

#[test]
fn what_waits_is_handed_out_once_and_gone() {
    purge(without!(Nothing, 4), last_page_waits, |cpu| cpu.release(3, 1));
}

#[test]
fn handed_out_under_a_collapse_without_the_mark_it_is_left() {
    assert_caught("an entry was left", || purge(without!(Marks, 4), last_page_waits, |cpu| cpu.release(3, 1)));
}

#[test]
fn handed_out_in_a_walk_that_is_not_announced_it_is_left() {
    assert_caught("an entry was left", || {
        purge(without!(Nothing, 4), last_page_waits, |cpu| cpu.release_quietly(3, 1));
    });
}

/// All of what becomes a block concurrently, or has become one.
fn hand_out_all(preemptions: usize) {
    let owner = |cpu: Cpu<'_>| {
        cpu.unmap_lazily(0, 4);
        cpu.release(0, 4);
    };
    orders(preemptions, without!(Nothing, 4), four_pages, [collapse, owner], |machine| {
        assert!(!(0..4).any(|page| machine.cpu(0).look(page)), "an entry was left");
    });
}

short_and_long!(1, hand_out_all, all_of_a_table_waits_and_is_handed_out, all_of_a_table_with_two_preemptions);
