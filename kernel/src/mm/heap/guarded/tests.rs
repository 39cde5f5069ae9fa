//! The guarded heap on the host, on memory whose pages are valid or not by a list.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::vec;
use std::vec::Vec;

use super::super::report::Place;
use super::*;

std::thread_local! {
    /// The invalid pages.
    static INVALID: RefCell<BTreeSet<u64>> = const { RefCell::new(BTreeSet::new()) };
    /// Whether no page can be changed.
    static FAILS: Cell<bool> = const { Cell::new(false) };
}

fn set_valid(start: VirtAddr, pages: u64, validity: Validity) -> bool {
    assert!(start.is_aligned(PAGE));
    if FAILS.get() {
        return false;
    }
    for page in (0..pages).map(|page| start.0 + page * PAGE) {
        let changed = INVALID.with_borrow_mut(|invalid| match validity {
            Validity::Valid => invalid.remove(&page),
            Validity::Invalid => invalid.insert(page),
        });
        assert!(changed, "{page:#x} is {validity:?} already");
    }
    true
}

fn is_valid(address: VirtAddr) -> bool {
    INVALID.with_borrow(|invalid| !invalid.contains(&address.align_down(PAGE).0))
}

/// A pool of so many objects, in memory of its own.
fn pool(objects: u16) -> (GuardedHeap, Vec<u128>) {
    let memory = vec![0_u128; (GuardedHeap::required_pages(objects) + 1) * PAGE_SIZE / 16];
    let start = VirtAddr::from_ptr(memory.as_ptr()).align_up(PAGE).unwrap();
    INVALID.with_borrow_mut(BTreeSet::clear);
    let heap = GuardedHeap::new();
    // SAFETY: the pages lie in `memory`, which the test keeps.
    unsafe { heap.init(start, objects, set_valid) };
    assert!(heap.protect());
    (heap, memory)
}

fn layout(bytes: usize, align: usize) -> Layout {
    Layout::from_size_align(bytes, align).unwrap()
}

fn sample(heap: &GuardedHeap, layout: Layout) -> VirtAddr {
    assert!(heap.open_gate());
    VirtAddr::from_ptr(heap.alloc(layout).unwrap().unwrap().as_ptr())
}

fn free(heap: &GuardedHeap, object: VirtAddr, layout: Layout) -> Result<(), BadGuardedFree> {
    // SAFETY: the tests' objects are not used after this.
    unsafe { heap.dealloc(object.as_ptr(), layout) }
}

#[test]
fn nothing_is_sampled_until_the_gate_opens_and_then_one_object() {
    let none = GuardedHeap::new();
    assert!(!none.open_gate() && none.alloc(layout(8, 8)) == Ok(None));
    assert!(!none.is_on() && !none.protect());
    let (heap, _memory) = pool(3);
    assert!(heap.is_on() && heap.alloc(layout(8, 8)) == Ok(None));
    assert!(heap.open_gate() && heap.open_gate());
    for too_much in [layout(PAGE_SIZE + 1, 1), layout(1, 2 * PAGE_SIZE)] {
        assert_eq!(heap.alloc(too_much), Ok(None), "it has no page for that");
    }
    assert!(heap.alloc(layout(8, 8)).unwrap().is_some() && heap.alloc(layout(8, 8)) == Ok(None));
    assert_eq!(heap.stats(), GuardedHeapStats { objects: 3, in_use: 1, sampled: 1, none_free: 0 });
}

#[test]
fn objects_are_at_both_ends_of_pages_between_guards_as_aligned_as_they_must_be() {
    let (heap, _memory) = pool(40);
    for (bytes, align) in [(1, 1), (8, 8), (100, 16), (PAGE_SIZE - 1, 64), (PAGE_SIZE, PAGE_SIZE), (0, 1)] {
        let ends = [(); 2].map(|()| {
            let object = sample(&heap, layout(bytes, align));
            assert!(object.is_aligned(align as u64) && heap.contains(object.as_ptr()));
            let page = object.align_down(PAGE);
            assert!(is_valid(page) && !is_valid(page + PAGE) && !is_valid(VirtAddr(page.0 - 1)));
            (object - page, object - page + bytes.max(1) as u64 + align as u64 > PAGE)
        });
        assert!(ends[0].1 && ends[1].0 == 0, "{bytes} bytes: {ends:?}");
    }
}

#[test]
fn a_freed_page_is_invalid_and_is_the_last_to_be_used_again() {
    let (heap, _memory) = pool(3);
    let objects = [(); 3].map(|()| sample(&heap, layout(24, 8)));
    assert!(!heap.open_gate() && heap.alloc(layout(24, 8)) == Ok(None), "all are in use");
    for object in objects {
        free(&heap, object, layout(24, 8)).unwrap();
        assert!(!is_valid(object));
    }
    let again = [(); 3].map(|()| sample(&heap, layout(24, 8)).align_down(PAGE));
    assert_eq!(again, objects.map(|object| object.align_down(PAGE)));
    assert_eq!(heap.stats(), GuardedHeapStats { objects: 3, in_use: 3, sampled: 6, none_free: 1 });
}

#[test]
fn a_free_that_matches_no_object_in_use_is_refused_and_changes_nothing() {
    let (heap, _memory) = pool(2);
    let (object, size) = (sample(&heap, layout(40, 8)), layout(40, 8));
    let page = object.align_down(PAGE);
    for (bad, bytes) in [(object, 39), (object + 8, 32), (page - 8, 40), (page + 2 * PAGE, 40), (page + PAGE, 40)] {
        let refused = Err(BadGuardedFree::NotInUse(bad, bytes));
        assert_eq!(free(&heap, bad, layout(bytes, 8)), refused, "{bad}, {bytes} bytes");
    }
    free(&heap, object, size).unwrap();
    assert_eq!(free(&heap, object, size), Err(BadGuardedFree::NotInUse(object, 40)), "twice");
    assert_eq!(heap.stats().in_use, 0);
}

#[test]
fn a_byte_that_was_written_beside_an_object_is_found() {
    let page: canary::Page = [canary::WORD; PAGE_SIZE / 8];
    for object in [0..16, 5..9, 4000..PAGE_SIZE, 0..PAGE_SIZE] {
        assert_eq!(canary::first_damaged(&page, object.clone()), None);
        for at in [0, 3, 4, 9, 15, 16, 17, 31, 2000, 3999, 4000, 4090, 4095] {
            let mut damaged = page;
            damaged[at / 8] ^= 0x80 << (at % 8 * 8);
            let found = (!object.contains(&at)).then_some(at);
            assert_eq!(canary::first_damaged(&damaged, object.clone()), found, "{object:?}, {at}");
        }
    }
    let (heap, _memory) = pool(4);
    for beside in [-1, 21, 60] {
        let object = sample(&heap, layout(21, 1));
        let target = VirtAddr(object.0.wrapping_add_signed(beside));
        if target.align_down(PAGE) != object.align_down(PAGE) {
            continue;
        }
        // SAFETY: in the test's memory.
        unsafe { target.as_ptr::<u8>().write(0) };
        assert_eq!(free(&heap, object, layout(21, 1)), Err(BadGuardedFree::Overwritten(target)), "{beside}");
    }
}

#[test]
fn copies_of_the_canary_in_its_page_and_fills_with_its_first_byte_are_found() {
    for from in 0..8 {
        let (heap, _memory) = pool(1);
        let object = sample(&heap, layout(64, 64));
        let page = object.align_down(PAGE);
        let bytes = (page + 1000).as_ptr::<u8>();
        // The first byte of a word is 0xaa.
        let damaged = page + if from == 0 { 1001 } else { 1000 };
        // SAFETY: beside the object, in its page.
        unsafe {
            match from {
                0 => bytes.write_bytes(0xaa, 100),
                _ => bytes.copy_from(bytes.add(from), 100),
            }
        }
        assert_eq!(free(&heap, object, layout(64, 64)), Err(BadGuardedFree::Overwritten(damaged)), "{from}");
    }
}

#[test]
fn a_write_while_the_object_is_in_the_gate_is_found_and_is_the_last_users() {
    let (heap, _memory) = pool(1);
    let object = sample(&heap, layout(64, 8));
    free(&heap, object, layout(64, 8)).unwrap();
    assert!(!is_valid(object) && heap.open_gate() && is_valid(object));
    // SAFETY: in the test's memory.
    unsafe { (object + 3).as_ptr::<u8>().write(0x11) };
    assert_eq!(heap.alloc(layout(16, 8)), Err(WrittenAfterFree(object + 3)));
    assert_eq!(found(&heap, object + 3), Some(("use-after-free", 0, Place::Inside(3))), "of 64 bytes, as it was");
    let stats = heap.stats();
    assert_eq!((stats.in_use, stats.sampled), (0, 1));
    assert!(!heap.open_gate() && heap.alloc(layout(16, 8)) == Ok(None), "it is not used again");
    // One that never had a user.
    let (heap, _memory) = pool(1);
    assert!(heap.open_gate());
    let page = heap.pool.get().unwrap().page(0);
    // SAFETY: as above.
    unsafe { (page + 4095).as_ptr::<u8>().write(0x11) };
    assert_eq!(heap.alloc(layout(16, 8)), Err(WrittenAfterFree(page + 4095)));
    assert_eq!(found(&heap, page + 4095), None);
}

#[test]
fn a_page_that_cannot_be_made_valid_stays_out_of_the_gate() {
    let (heap, _memory) = pool(2);
    FAILS.set(true);
    assert!(!heap.open_gate() && !heap.open_gate() && !heap.open_gate() && heap.alloc(layout(8, 8)) == Ok(None));
    FAILS.set(false);
    let objects = [(); 2].map(|()| sample(&heap, layout(8, 8)));
    // The page stays valid, and the object is free all the same.
    FAILS.set(true);
    free(&heap, objects[0], layout(8, 8)).unwrap();
    FAILS.set(false);
    assert_eq!((is_valid(objects[0]), heap.stats().in_use), (true, 1));
}

/// The kind, number and place that the heap finds for an access.
fn found(heap: &GuardedHeap, address: VirtAddr) -> Option<(&'static str, u16, Place)> {
    heap.find(address).map(|found| {
        assert!(found.bytes == 64 && found.place == Place::of(address, found.start, 64));
        (found.what, found.number, found.place)
    })
}

#[test]
fn an_access_is_known_by_its_page_or_by_the_nearer_object_beside_its_guard() {
    let (heap, memory) = pool(3);
    let (first, second) = (sample(&heap, layout(64, 8)), sample(&heap, layout(64, 8)));
    // The first at the end of its page, the second at the start of its own, with a guard between.
    assert_eq!(second - first, PAGE + 64);
    let out_of_bounds = |number, place| Some(("out-of-bounds", number, place));
    assert_eq!(found(&heap, first + 64), out_of_bounds(0, Place::After(0)));
    assert_eq!(found(&heap, first + 164), out_of_bounds(0, Place::After(100)));
    assert_eq!(found(&heap, second - 1), out_of_bounds(1, Place::Before(1)));
    assert_eq!(found(&heap, second + PAGE), out_of_bounds(1, Place::After(PAGE - 64)));
    assert_eq!(found(&heap, first.align_down(PAGE) - 8), out_of_bounds(0, Place::Before(2 * PAGE - 64 - PAGE + 8)));
    assert_eq!(found(&heap, second + 2 * PAGE), None, "never allocated");
    assert_eq!(found(&heap, VirtAddr::from_ptr(memory.as_ptr())), None, "outside");
    free(&heap, first, layout(64, 8)).unwrap();
    assert_eq!(found(&heap, first + 3), Some(("use-after-free", 0, Place::Inside(3))));
    assert_eq!(found(&heap, first + 64), out_of_bounds(1, Place::Before(PAGE)), "the other is in use");
    free(&heap, second, layout(64, 8)).unwrap();
    assert_eq!(found(&heap, first + 64), out_of_bounds(0, Place::After(0)), "the nearer was");
}
