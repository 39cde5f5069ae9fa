//! The race of a split without a lock, as it was found in review for Linux, and the four remedies proposed there.
//!
//! Two CPUs own one entry each of a contiguous group. Each splits the group, and then makes its own entry read-only by
//! a plain load and store, as an owner does. By plain loads and stores the split itself is not safe:
//!
//! ```text
//!     CPU A, splitting                    CPU B, through with its split
//!     reads B's entry
//!                                         reads its entry, stores it read-only
//!     stores B's entry without the bit    … and writable again: the update is lost
//! ```
//! Each remedy is here as a few lines, apart from the kernel's own split, and next to it what is left of it when the
//! half of it is forgotten. Three things are asked: is each owner's entry read-only in the end, is the group split, and
//! does no TLB hold what a walker made of the group in between? The group lies in the root table, so that a walk is one
//! read.

use std::sync::Arc;

use granule_arch::descriptor::{Descriptor, bits};
use granule_loom::sync::atomic::AtomicU64;
use granule_loom::{Cpu, Machine, Without, pages};
use granule_pgtable::metal::KernelTlb;
use granule_pgtable::{Invalidation, Mmu, PageRange, Serialise, Stores, Tables, Tiny, Tlb};

use crate::assert_caught;

/// The entries of the group.
fn group<'m>(cpu: &'m Cpu<'m>) -> [&'m AtomicU64; 2] {
    let root = cpu.table(cpu.tables().root());
    [&root[0], &root[1]]
}

fn is_contiguous(cpu: Cpu<'_>, cell: &AtomicU64) -> bool {
    cpu.load(cell).is_contiguous()
}

/// Takes the bit away by a plain load and store.
fn clear_plainly(cpu: Cpu<'_>, cell: &AtomicU64) {
    cpu.store(cell, Descriptor(cpu.load(cell).0 & !bits::CONTIGUOUS));
}

/// … in one step.
fn clear_atomically(cpu: Cpu<'_>, cell: &AtomicU64) {
    cpu.clear_bits(cell, bits::CONTIGUOUS);
}

/// Makes entry `own` read-only by a plain load and store, and invalidates what it translates.
fn change(cpu: Cpu<'_>, own: usize) {
    let cell = group(&cpu)[own];
    cpu.store(cell, Descriptor(cpu.load(cell).0 | bits::RDONLY));
    invalidate(cpu, own);
}

/// The pages of entry `own`.
fn owned(own: usize) -> PageRange<Tiny> {
    pages(4 * own as u64, 4)
}

fn invalidate(cpu: Cpu<'_>, own: usize) {
    let what = Invalidation { range: owned(own), tables: Tables::Kept, level: None };
    KernelTlb.invalidate(&cpu, std::iter::once(what));
}

/// Runs `owner` on two CPUs at once, each with its own entry. As soon as it returns, a walker may go through the whole
/// group, and finds nothing old for what is its own.
fn race(owner: fn(Cpu<'_>, usize)) {
    let run = move |cpu: Cpu<'_>, own: usize| {
        owner(cpu, own);
        cpu.access(&[0, 4]);
        cpu.assert_nothing_stale(owned(own));
    };
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(move || {
        let machine = Arc::new(Machine::new(0, Without::Nothing));
        let cpu = machine.cpu(0);
        cpu.map_largest(0, 8);
        cpu.access(&[0]);
        let second = Arc::clone(&machine);
        let second = loom::thread::spawn(move || run(second.cpu(1), 1));
        run(cpu, 0);
        second.join().unwrap();
        for cell in group(&cpu) {
            let entry = cpu.load(cell);
            assert!(!entry.is_writable(), "an update was lost");
            assert!(!entry.is_contiguous(), "the group came back");
        }
        cpu.assert_nothing_stale(pages(0, 8));
    });
}

/// The race: the first entry is asked for the whole group, and each of the rest is read and written in two steps.
#[test]
fn a_split_by_plain_loads_and_stores_loses_an_update() {
    assert_caught("an update was lost", || {
        race(|cpu, own| {
            if is_contiguous(cpu, group(&cpu)[0]) {
                group(&cpu).into_iter().for_each(|cell| clear_plainly(cpu, cell));
            }
            change(cpu, own);
        });
    });
}

/// Also where neither relies on the other: both go through the whole group, and one is done first.
#[test]
fn so_does_a_split_of_all_entries_by_both() {
    assert_caught("an update was lost", || {
        race(|cpu, own| {
            group(&cpu).into_iter().for_each(|cell| clear_plainly(cpu, cell));
            change(cpu, own);
        });
    });
}

/// Remedy 1: a lock around the split. The first entry then speaks for all, and plain stores do.
#[test]
fn a_lock_around_the_split_holds() {
    race(|cpu, own| {
        let lock = cpu.split_lock();
        let section = lock.begin();
        if is_contiguous(cpu, group(&cpu)[0]) {
            group(&cpu).into_iter().for_each(|cell| clear_plainly(cpu, cell));
        }
        drop(section);
        change(cpu, own);
    });
}

#[test]
fn a_first_entry_that_is_asked_before_the_lock_is_taken_is_caught() {
    assert_caught("an update was lost", || {
        race(|cpu, own| {
            if is_contiguous(cpu, group(&cpu)[0]) {
                let lock = cpu.split_lock();
                let _section = lock.begin();
                group(&cpu).into_iter().for_each(|cell| clear_plainly(cpu, cell));
            }
            change(cpu, own);
        });
    });
}

/// Remedy 2: the bit is cleared in one step, in each entry. The change of permission needs none: the entries are clear
/// by then, so a CPU that still clears them changes nothing.
#[test]
fn an_atomic_clear_of_every_entry_holds() {
    race(|cpu, own| {
        group(&cpu).into_iter().for_each(|cell| clear_atomically(cpu, cell));
        change(cpu, own);
    });
}

/// The change of permission must then not come before all are clear: it would bring the bit back.
#[test]
fn an_atomic_clear_behind_the_word_of_the_first_entry_is_caught() {
    assert_caught("the group came back", || {
        race(|cpu, own| {
            if is_contiguous(cpu, group(&cpu)[0]) {
                group(&cpu).into_iter().for_each(|cell| clear_atomically(cpu, cell));
            }
            change(cpu, own);
        });
    });
}

/// As the remedy was proposed, both sides in one step: then no update is lost, but a walker that reads the other entry
/// takes its permission for the whole group, after the invalidation.
#[test]
fn atomic_steps_on_both_sides_alone_are_caught() {
    assert_caught("may be translated by", || {
        race(|cpu, own| {
            let cells = group(&cpu);
            if is_contiguous(cpu, cells[0]) {
                cells.into_iter().for_each(|cell| clear_atomically(cpu, cell));
            }
            let mut old = cpu.load(cells[own]);
            while let Err(found) = cpu.compare_exchange(cells[own], old, Descriptor(old.0 | bits::RDONLY)) {
                old = found;
            }
            invalidate(cpu, own);
        });
    });
}

/// Remedy 3: every entry is read, and cleared where it has the bit. It saves the atomic steps of remedy 2, not their
/// being atomic.
#[test]
fn a_check_of_every_entry_holds() {
    race(|cpu, own| {
        for cell in group(&cpu) {
            if is_contiguous(cpu, cell) {
                clear_atomically(cpu, cell);
            }
        }
        change(cpu, own);
    });
}

#[test]
fn a_check_of_every_entry_with_plain_stores_behind_it_is_caught() {
    assert_caught("an update was lost", || {
        race(|cpu, own| {
            for cell in group(&cpu) {
                if is_contiguous(cpu, cell) {
                    clear_plainly(cpu, cell);
                }
            }
            change(cpu, own);
        });
    });
}

/// Remedy 4: a change that still finds the bit tries again. The splitter is decided in one step, on the first entry;
/// all others wait until the last one is clear. It holds, but it waits for another CPU: a lock by another name, which
/// an interrupt of that CPU would never get.
#[test]
fn a_retry_until_the_group_is_split_holds() {
    race(|cpu, own| {
        let [first, last] = group(&cpu);
        if cpu.clear_bits(first, bits::CONTIGUOUS).is_contiguous() {
            clear_plainly(cpu, last);
        }
        while is_contiguous(cpu, last) {
            loom::thread::yield_now();
        }
        change(cpu, own);
    });
}

#[test]
fn a_retry_without_a_decision_who_splits_is_caught() {
    assert_caught("an update was lost", || {
        race(|cpu, own| {
            let cells = group(&cpu);
            if is_contiguous(cpu, cells[0]) {
                cells.into_iter().for_each(|cell| clear_plainly(cpu, cell));
            }
            while is_contiguous(cpu, cells[1]) {
                loom::thread::yield_now();
            }
            change(cpu, own);
        });
    });
}

/// From its own entry an owner learns nothing of the others, which walkers still read.
#[test]
fn a_retry_until_ones_own_entry_is_clear_is_caught() {
    assert_caught("may be translated by", || {
        race(|cpu, own| {
            let cells = group(&cpu);
            if cpu.clear_bits(cells[0], bits::CONTIGUOUS).is_contiguous() {
                clear_plainly(cpu, cells[1]);
            }
            while is_contiguous(cpu, cells[own]) {
                loom::thread::yield_now();
            }
            change(cpu, own);
        });
    });
}
