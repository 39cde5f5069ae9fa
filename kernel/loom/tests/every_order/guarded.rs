//! The gate of the guarded heap, the kernel's own source: an object is in one place at a time, and its user finds its page
//! valid.

use std::sync::Arc;

use granule_loom::mm::heap::Guarded;
use granule_loom::sync::rank;
use granule_loom::{Omitted, omit};

use crate::{assert_caught, threads_with};

/// Loom's report of two accesses without an order.
const RACE: &str = "Causality violation";

/// A CPU's allocation, which frees what it got at once.
fn alloc_and_free(heap: &Guarded) {
    if let Some(object) = heap.alloc() {
        heap.free(object);
    }
}

/// Two CPUs open the gate and allocate, and a third allocates.
fn opened_by_two(objects: u16, omitted: Omitted) {
    threads_with(2, move || {
        let heap = Arc::new(Guarded::new(objects));
        let works: [fn(&Guarded); 2] = [
            |heap| {
                heap.open_gate();
                alloc_and_free(heap);
            },
            alloc_and_free,
        ];
        let others = works.map(|work| {
            let heap = Arc::clone(&heap);
            loom::thread::spawn(move || {
                omit(omitted);
                work(&heap);
                omit(Omitted::Nothing);
            })
        });
        omit(omitted);
        heap.open_gate();
        alloc_and_free(&heap);
        omit(Omitted::Nothing);
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(heap.in_use(), 0);
        // All objects are free, or in the gate.
        for _ in 0..objects {
            heap.open_gate();
            heap.alloc().expect("an object was lost");
        }
    });
}

#[test]
fn an_object_is_in_one_place_at_a_time_and_its_page_is_valid() {
    opened_by_two(2, Omitted::Nothing);
    opened_by_two(1, Omitted::Nothing);
}

#[test]
fn a_gate_that_orders_nothing_is_caught() {
    assert_caught(RACE, || opened_by_two(2, Omitted::Order));
}

#[test]
fn an_object_that_is_not_taken_in_one_step_is_caught() {
    assert_caught("", || opened_by_two(2, Omitted::AtomicSwap));
}

#[test]
fn a_gate_that_is_not_opened_in_one_step_is_caught() {
    assert_caught("an object was lost", || opened_by_two(2, Omitted::AtomicExchange));
}

#[test]
fn a_list_of_free_objects_without_its_lock_is_caught() {
    assert_caught(RACE, || opened_by_two(1, Omitted::Lock(rank::GUARDED_HEAP)));
}
