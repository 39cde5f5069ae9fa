//! Walks of the owner's with an interrupt on its own CPU, after each of its accesses in turn, while other CPUs reclaim
//! and collapse tables.
//!
//! The handler walks too, with the same walk word. It runs to its end in the middle of what it interrupts; the other CPUs
//! run in any order with both. **Rule: what holds without the interrupt holds with it.**

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use granule_loom::sync::interrupts;
use granule_loom::{Cpu, CpuWord, Machine, Omitted, omit};
use granule_pgtable::{Announced, WalkWord};

use crate::collapse::{assert_pages, change, collapse, four_pages, last_page_waits};
use crate::reclaim::{empty_table, reclaim, reclaim_the_rest};
use crate::{assert_caught, threads_with, without};

/// The points of an announcement: before its atomic step, before its barrier, after it; with two steps, one between.
const ANNOUNCEMENT: usize = 3;

/// The stack of what is interrupted, in words: with room for the handler.
const STACK: usize = 0x4000;

/// A walk that is interrupted, and what is around it.
#[derive(Clone, Copy)]
struct Interrupted {
    machine: fn() -> Machine,
    /// Runs first, alone.
    before: fn(Cpu<'_>),
    /// Runs on the last CPU.
    walk: fn(Cpu<'_>),
    handler: fn(Cpu<'_>),
    /// A step that is left out where `walk` runs.
    omitted: Omitted,
    /// Runs when all have ended.
    after: fn(&Machine),
}

impl Interrupted {
    /// Runs it beside `others`, in every order with at most so many preemptions, once for each access of the walk.
    fn beside<const N: usize>(self, preemptions: usize, others: [fn(Cpu<'_>); N]) {
        let points = (1..).take_while(|&accesses| self.comes(accesses, preemptions, others)).count();
        assert!(points > ANNOUNCEMENT, "only {points} accesses were interrupted");
    }

    /// Likewise, once for each access by which the walk is announced.
    fn announced_beside<const N: usize>(self, preemptions: usize, others: [fn(Cpu<'_>); N]) {
        assert!((1..=ANNOUNCEMENT).all(|accesses| self.comes(accesses, preemptions, others)));
    }

    /// Whether the interrupt comes after so many accesses, in any order.
    fn comes<const N: usize>(self, accesses: usize, preemptions: usize, others: [fn(Cpu<'_>); N]) -> bool {
        let came = Arc::new(AtomicBool::new(false));
        let comes = Arc::clone(&came);
        threads_with(preemptions, move || self.run(accesses, &comes, others));
        came.load(Ordering::Relaxed)
    }

    fn run<const N: usize>(self, accesses: usize, comes: &Arc<AtomicBool>, others: [fn(Cpu<'_>); N]) {
        let machine = Arc::new((self.machine)());
        (self.before)(machine.cpu(0));
        let (interrupted, comes) = (Arc::clone(&machine), Arc::clone(comes));
        let walk = loom::thread::Builder::new().stack_size(STACK);
        let walk = walk.spawn(move || {
            omit(self.omitted);
            let stopped = Arc::clone(&interrupted);
            interrupts::interrupt_after(accesses, move || (self.handler)(stopped.cpu(N)));
            (self.walk)(interrupted.cpu(N));
            // In other orders there may be more accesses; here it comes at the end.
            let is_late = interrupts::cancel();
            comes.fetch_or(!is_late, Ordering::Relaxed);
            if is_late {
                (self.handler)(interrupted.cpu(N));
            }
        });
        let walk = walk.expect("a thread of loom's");
        let rest = (1..N).map(|number| {
            let machine = Arc::clone(&machine);
            loom::thread::spawn(move || others[number](machine.cpu(number)))
        });
        let threads: Vec<_> = rest.chain([walk]).collect();
        others[0](machine.cpu(0));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        (self.after)(&machine);
    }
}

/// A handler that walks once.
fn looks(cpu: Cpu<'_>) {
    cpu.look(1);
}

/// One that walks twice: the word advances by two walks.
fn looks_twice(cpu: Cpu<'_>) {
    cpu.look(1);
    cpu.look(3);
}

/// A handler that finds the word odd and takes all for done.
fn looks_without_a_barrier(cpu: Cpu<'_>) {
    omit(Omitted::Fences);
    cpu.look(1);
    omit(Omitted::Nothing);
}

/// The word for a handler that takes it for its own, odd or not.
struct Own<'m>(&'m CpuWord);

impl WalkWord for Own<'_> {
    fn make_odd(&self) -> u64 {
        self.0.make_odd() & !1
    }

    fn load_acquire(&self) -> u64 {
        self.0.load_acquire()
    }

    fn store_release(&self, value: u64) {
        self.0.store_release(value);
    }

    fn full_barrier(&self) {
        self.0.full_barrier();
    }
}

fn ends_the_outer_walk(cpu: Cpu<'_>) {
    let word = Own(cpu.word());
    let _walk = Announced::begin(&word);
    cpu.look_quietly(1);
}

/// A walk through an empty table that another CPU reclaims.
fn walks_while_reclaimed(handler: fn(Cpu<'_>)) -> Interrupted {
    let walk = |cpu: Cpu<'_>| assert!(!cpu.look(2));
    let after = |machine: &Machine| {
        reclaim_the_rest(machine);
        assert_eq!(machine.tables(), 0, "the table is freed");
    };
    let machine: fn() -> Machine = without!(Nothing, 1);
    Interrupted { machine, before: empty_table, walk, handler, omitted: Omitted::Nothing, after }
}

#[test]
fn a_walker_never_reads_a_freed_table() {
    walks_while_reclaimed(looks).beside(2, [reclaim]);
    walks_while_reclaimed(looks_twice).beside(1, [reclaim]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_walker_with_three_preemptions_never_does() {
    walks_while_reclaimed(looks).beside(3, [reclaim]);
}

#[test]
fn a_walker_beside_two_walks_and_two_preemptions_never_does() {
    walks_while_reclaimed(looks_twice).beside(2, [reclaim]);
}

#[test]
fn a_nested_walk_without_a_barrier_of_its_own_is_caught() {
    let caught = || walks_while_reclaimed(looks_without_a_barrier).announced_beside(2, [reclaim]);
    assert_caught("in a table that is none", caught);
}

#[test]
fn a_nested_walk_that_ends_the_one_around_it_is_caught() {
    let caught = || walks_while_reclaimed(ends_the_outer_walk).announced_beside(2, [reclaim]);
    assert_caught("in a table that is none", caught);
}

/// A page is mapped in an empty table that another CPU reclaims.
fn maps_while_reclaimed(handler: fn(Cpu<'_>)) -> Interrupted {
    let after = |machine: &Machine| {
        assert!(machine.cpu(0).look(2), "a mapping was lost");
        reclaim_the_rest(machine);
        assert_eq!(machine.tables(), 1, "a table too many, or none");
    };
    let machine: fn() -> Machine = without!(Nothing, 2);
    let walk = |cpu: Cpu<'_>| cpu.map(2);
    Interrupted { machine, before: empty_table, walk, handler, omitted: Omitted::Nothing, after }
}

#[test]
fn a_mapping_in_an_empty_table_is_never_lost() {
    maps_while_reclaimed(looks).beside(1, [reclaim]);
    maps_while_reclaimed(looks_twice).announced_beside(1, [reclaim]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_mapping_with_two_preemptions_is_never_lost() {
    maps_while_reclaimed(looks).beside(2, [reclaim]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_mapping_beside_two_walks_is_never_lost() {
    maps_while_reclaimed(looks_twice).beside(2, [reclaim]);
}

/// A third CPU looks in the table.
#[test]
fn a_mapping_beside_a_third_is_never_lost() {
    maps_while_reclaimed(looks).announced_beside(1, [reclaim, looks]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_mapping_beside_a_third_and_two_walks_is_never_lost() {
    maps_while_reclaimed(looks_twice).beside(1, [reclaim, looks]);
}

/// The last page goes, a neighbour maps, and a third CPU reclaims.
fn maps_beside_two(handler: fn(Cpu<'_>)) -> Interrupted {
    let after = |machine: &Machine| {
        reclaim_the_rest(machine);
        assert!(!machine.cpu(0).look(0) && machine.cpu(0).look(1));
        assert_eq!(machine.tables(), 1);
    };
    Interrupted {
        machine: without!(Nothing, 2),
        before: |cpu| cpu.map(0),
        walk: |cpu| cpu.map(1),
        handler,
        omitted: Omitted::Nothing,
        after,
    }
}

#[test]
fn an_owner_unmaps_a_neighbour_maps_and_a_third_reclaims() {
    maps_beside_two(looks).beside(1, [reclaim, |cpu| cpu.unmap(0)]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn an_owner_a_neighbour_and_a_third_with_two_preemptions() {
    maps_beside_two(looks).announced_beside(2, [reclaim, |cpu| cpu.unmap(0)]);
}

#[test]
fn an_owner_a_neighbour_a_third_and_two_walks() {
    maps_beside_two(looks_twice).beside(1, [reclaim, |cpu| cpu.unmap(0)]);
}

/// A page waits for its invalidation in a table that another CPU reclaims, and is handed out.
fn waits_while_reclaimed(handler: fn(Cpu<'_>)) -> Interrupted {
    let after = |machine: &Machine| {
        reclaim_the_rest(machine);
        assert_eq!(machine.tables(), 0);
    };
    let walk = |cpu: Cpu<'_>| {
        cpu.unmap_lazily(0, 1);
        cpu.release(0, 1);
    };
    let machine: fn() -> Machine = without!(Nothing, 2);
    Interrupted { machine, before: |cpu| cpu.map(0), walk, handler, omitted: Omitted::Nothing, after }
}

#[test]
fn a_table_in_which_a_page_waits_stays() {
    waits_while_reclaimed(looks).beside(1, [reclaim]);
    waits_while_reclaimed(looks_twice).announced_beside(1, [reclaim]);
}

#[test]
fn a_table_in_which_a_page_waits_stays_with_two_preemptions() {
    waits_while_reclaimed(looks_twice).beside(2, [reclaim]);
}

#[test]
fn a_table_in_which_a_page_waits_stays_beside_a_third() {
    waits_while_reclaimed(looks_twice).beside(1, [reclaim, looks]);
}

/// An owner of page 1 of four stores to it while they are collapsed, and so may the handler: `after` knows of which pages the
/// stores are there.
fn store(handler: fn(Cpu<'_>), after: fn(&Machine)) -> Interrupted {
    Interrupted {
        machine: without!(Nothing, 6),
        before: four_pages,
        walk: |cpu| change(cpu, 1, 1),
        handler,
        omitted: Omitted::Nothing,
        after,
    }
}

fn changes(cpu: Cpu<'_>) {
    change(cpu, 2, 1);
}

fn changes_twice(cpu: Cpu<'_>) {
    change(cpu, 2, 1);
    change(cpu, 3, 1);
}

const ONE: fn(&Machine) = |machine| assert_pages(machine, &[1]);
const TWO: fn(&Machine) = |machine| assert_pages(machine, &[1, 2]);
const THREE: fn(&Machine) = |machine| assert_pages(machine, &[1, 2, 3]);

#[test]
fn a_store_is_not_lost() {
    store(looks, ONE).beside(1, [collapse]);
    store(looks_twice, ONE).announced_beside(1, [collapse]);
}

/// A collapse that finds the word between the walks of a handler and of what it interrupts.
#[test]
fn a_store_behind_a_handlers_walk_is_not_lost() {
    store(looks, ONE).announced_beside(2, [collapse]);
}

/// The word is read and written in two steps: an interrupt between them is taken back, and the walk after it with it.
#[test]
fn a_word_that_goes_back_is_caught() {
    let in_two_steps = Interrupted { omitted: Omitted::AtomicSet, ..store(looks, ONE) };
    assert_caught("the change of page 1 was lost", || in_two_steps.announced_beside(2, [collapse]));
}

#[test]
fn the_stores_of_a_walk_and_of_its_handler_are_not_lost() {
    store(changes, TWO).beside(1, [collapse]);
    store(changes_twice, THREE).announced_beside(1, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_store_with_two_preemptions_is_not_lost() {
    store(looks, ONE).beside(2, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_store_beside_two_walks_is_not_lost() {
    store(looks_twice, ONE).beside(2, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn two_stores_with_two_preemptions_are_not_lost() {
    store(changes, TWO).announced_beside(2, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn three_stores_are_not_lost() {
    store(changes_twice, THREE).beside(1, [collapse]);
}

/// All of a block, which an owner changes as a whole.
fn change_of_all(handler: fn(Cpu<'_>)) -> Interrupted {
    let all: fn(&Machine) = |machine| assert_pages(machine, &[0, 1, 2, 3]);
    Interrupted { walk: |cpu| change(cpu, 0, 4), ..store(handler, all) }
}

#[test]
fn a_change_of_all_is_not_lost() {
    change_of_all(looks).announced_beside(1, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_change_of_all_at_each_access() {
    change_of_all(looks).beside(1, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_change_of_all_beside_two_walks() {
    change_of_all(looks_twice).beside(1, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_change_of_all_beside_a_third() {
    change_of_all(looks).announced_beside(1, [collapse, looks]);
}

/// Two owners on two CPUs, of which one is interrupted.
#[test]
fn the_stores_of_two_owners_are_not_lost() {
    store(looks, TWO).announced_beside(1, [collapse, changes]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn the_stores_of_two_owners_at_each_access() {
    store(looks, TWO).beside(1, [collapse, changes]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn the_stores_of_two_owners_beside_two_walks() {
    store(looks_twice, TWO).announced_beside(1, [collapse, changes]);
}

/// Of two CPUs that collapse one table, one continues with what the other has begun.
#[test]
#[ignore = "takes minutes: ./x test --long"]
fn two_collapsers_and_an_owner() {
    store(looks, ONE).announced_beside(1, [collapse, collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn two_collapsers_and_an_owner_beside_two_walks() {
    store(looks_twice, ONE).announced_beside(1, [collapse, collapse]);
}

/// The last page of four waits for its invalidation while the first two become a group in another table, and is handed
/// out.
fn what_waits(handler: fn(Cpu<'_>)) -> Interrupted {
    let after = |machine: &Machine| {
        let cpu = machine.cpu(0);
        assert!((0..3).all(|page| cpu.look(page)), "a neighbour was lost");
        assert!(!cpu.look(3), "an entry was left");
    };
    Interrupted {
        machine: without!(Nothing, 4),
        before: last_page_waits,
        walk: |cpu| cpu.release(3, 1),
        handler,
        omitted: Omitted::Nothing,
        after,
    }
}

#[test]
fn what_waits_is_handed_out_once_and_gone() {
    what_waits(looks).beside(1, [collapse]);
    what_waits(looks_twice).announced_beside(1, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn what_waits_beside_two_walks_with_two_preemptions() {
    what_waits(looks_twice).announced_beside(2, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn what_waits_beside_a_third() {
    what_waits(looks).beside(1, [collapse, looks]);
}

/// All of what becomes a block concurrently, or has become one, waits and is handed out.
fn all_waits(handler: fn(Cpu<'_>)) -> Interrupted {
    let after = |machine: &Machine| assert!(!(0..4).any(|page| machine.cpu(0).look(page)), "an entry was left");
    let walk = |cpu: Cpu<'_>| {
        cpu.unmap_lazily(0, 4);
        cpu.release(0, 4);
    };
    let machine: fn() -> Machine = without!(Nothing, 4);
    Interrupted { machine, before: four_pages, walk, handler, omitted: Omitted::Nothing, after }
}

#[test]
fn all_of_a_table_waits_and_is_handed_out() {
    all_waits(looks).announced_beside(1, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn all_of_a_table_waits_at_each_access() {
    all_waits(looks).beside(1, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn all_of_a_table_waits_beside_two_walks() {
    all_waits(looks_twice).beside(1, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn all_of_a_table_waits_beside_a_third() {
    all_waits(looks).announced_beside(1, [collapse, looks]);
}

/// A walker, and a handler that changes what it walks through.
fn walker(handler: fn(Cpu<'_>), after: fn(&Machine)) -> Interrupted {
    let walk = |cpu: Cpu<'_>| assert!(cpu.look(1), "page 1 was lost");
    Interrupted { walk, ..store(handler, after) }
}

const SECOND: fn(&Machine) = |machine| assert_pages(machine, &[2]);
const SECOND_AND_THIRD: fn(&Machine) = |machine| assert_pages(machine, &[2, 3]);

#[test]
fn a_walker_finds_what_it_looks_for() {
    walker(changes, SECOND).beside(1, [collapse]);
    walker(changes_twice, SECOND_AND_THIRD).announced_beside(1, [collapse]);
}

#[test]
fn a_walker_beside_two_changes_finds_what_it_looks_for() {
    walker(changes_twice, SECOND_AND_THIRD).beside(1, [collapse]);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn a_walker_beside_a_third_finds_what_it_looks_for() {
    walker(changes, SECOND_AND_THIRD).announced_beside(1, [collapse, |cpu| change(cpu, 3, 1)]);
}
