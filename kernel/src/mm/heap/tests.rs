//! The heap on the host, without tags and with simulated ones.

use core::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::vec;
use std::vec::Vec;

use granule_arch::mte::{self, Tag};
use proptest::prelude::*;

use super::*;

const WINDOW: usize = 64 * PAGE_SIZE;

std::thread_local! {
    /// Pages that the fake machine can still map, and where the next must go.
    static PAGES: Cell<usize> = const { Cell::new(0) };
    static BASE: Cell<u64> = const { Cell::new(0) };
    static TOP: Cell<u64> = const { Cell::new(0) };
    /// The tag of what was given back.
    static ABSENT: Cell<u8> = const { Cell::new(15) };
    /// Pages below that were given back.
    static OUT: RefCell<BTreeSet<u64>> = const { RefCell::new(BTreeSet::new()) };
}

fn grow(start: VirtAddr, pages: usize) -> Result<(), OutOfMemory> {
    PAGES.set(PAGES.get().checked_sub(pages).ok_or(OutOfMemory)?);
    if start.0 == TOP.get() {
        TOP.set(start.0 + (pages * PAGE_SIZE) as u64);
    } else {
        let of_range = (start.0..).step_by(PAGE_SIZE).take(pages);
        OUT.with_borrow_mut(|out| of_range.for_each(|page| assert!(out.remove(&page), "mapped twice")));
    }
    Ok(())
}

/// Fills the pages with a pattern, which a use of them after this would meet.
fn shrink(start: VirtAddr, pages: usize) {
    for page in (start.0..).step_by(PAGE_SIZE).take(pages) {
        assert!(page < TOP.get() && OUT.with_borrow_mut(|out| out.insert(page)), "not mapped");
        // SAFETY: in the test's memory, which the heap has given back.
        unsafe {
            VirtAddr(page).as_ptr::<u8>().write_bytes(0xdd, PAGE_SIZE);
            mte::set_tags(VirtAddr(page).with_tag(Tag::new(ABSENT.get())), PAGE_SIZE as u64);
        }
    }
    PAGES.set(PAGES.get() + pages);
}

/// No page that is unmapped was written.
fn assert_untouched() {
    OUT.with_borrow(|out| {
        for page in out {
            // SAFETY: in the test's memory.
            let bytes = unsafe { core::slice::from_raw_parts(VirtAddr(*page).as_ptr::<u8>(), PAGE_SIZE) };
            assert!(bytes.iter().all(|byte| *byte == 0xdd), "{page:#x} was written");
        }
    });
}

/// A heap in memory of its own, on a machine with so many pages.
fn heap(pages: usize) -> (Heap, Vec<u128>) {
    let memory = vec![0_u128; (WINDOW + PAGE_SIZE) / 16];
    let base = VirtAddr::from_ptr(memory.as_ptr()).align_up(PAGE_SIZE as u64).unwrap();
    let heap = Heap::new(base, WINDOW as u64);
    PAGES.set(pages);
    BASE.set(base.0);
    TOP.set(base.0);
    OUT.take();
    // SAFETY: the window lies in `memory`, which the test keeps.
    unsafe { heap.start(grow, shrink) };
    (heap, memory)
}

fn layout(size: usize, align: usize) -> Layout {
    Layout::from_size_align(size, align).unwrap()
}

#[test]
fn heap_that_was_not_started_has_nothing() {
    let heap = Heap::new(VirtAddr(0x1000), 0x1000);
    assert!(heap.alloc(layout(1, 1)).is_null());
    assert_eq!(heap.stats(), HeapStats { total: 0, used: 0, free: 0, allocations: 0, tagged: 0 });
}

#[test]
fn sizes_and_alignments_are_rounded_to_sixteen() {
    let (heap, _memory) = heap(64);
    let (first, second) = (heap.alloc(layout(1, 1)), heap.alloc(layout(17, 2)));
    assert!(first.addr().is_multiple_of(16) && second.addr().is_multiple_of(16));
    assert_eq!(heap.stats().used, 16 + 32);
    assert_eq!(heap.stats().allocations, 2);
}

#[test]
fn growth_takes_what_is_left_when_the_usual_step_is_too_much() {
    let (heap, _memory) = heap(3);
    assert!(!heap.alloc(layout(PAGE_SIZE, 16)).is_null());
    assert_eq!(heap.stats().total, 2 * PAGE_SIZE);
}

#[test]
fn running_out_is_null_and_changes_nothing() {
    let (heap, _memory) = heap(20);
    let object = heap.alloc(layout(100, 16));
    let before = heap.stats();
    assert!(heap.alloc(layout(64 * PAGE_SIZE, 16)).is_null(), "larger than the window");
    assert!(heap.alloc(layout(30 * PAGE_SIZE, 16)).is_null(), "more than the machine has");
    assert!(heap.alloc(layout(isize::MAX as usize - 4096, 4096)).is_null());
    assert!(heap.alloc(layout(isize::MAX as usize - 15, 1)).is_null());
    assert_eq!(heap.stats(), before);
    // SAFETY: allocated above with this layout.
    unsafe { heap.dealloc(object, layout(100, 16)) }.unwrap();
    assert_eq!(heap.stats().used, 0);
}

#[test]
fn the_window_can_be_used_up_and_all_of_it_comes_back() {
    let (heap, _memory) = heap(1000);
    let page = layout(PAGE_SIZE, PAGE_SIZE);
    let objects: Vec<_> = core::iter::from_fn(|| NonNull::new(heap.alloc(page))).collect();
    assert_eq!(objects.len(), WINDOW / PAGE_SIZE);
    for object in &objects {
        // SAFETY: allocated above with this layout.
        unsafe { heap.dealloc(object.as_ptr(), page) }.unwrap();
    }
    assert_eq!(heap.stats(), HeapStats { total: WINDOW, used: 0, free: WINDOW, allocations: 0, tagged: 0 });
    assert!(!heap.alloc(layout(WINDOW, 16)).is_null(), "the holes were not joined");
}

/// Bytes that are mapped.
fn mapped() -> usize {
    let below = (TOP.get() - BASE.get()) as usize;
    below - OUT.with_borrow(BTreeSet::len) * PAGE_SIZE
}

#[test]
fn free_pages_go_back_and_their_addresses_are_used_again() {
    let (heap, _memory) = heap(64);
    let big = layout(40 * PAGE_SIZE, 16);
    let (first, second) = (heap.alloc(big), heap.alloc(layout(64, 16)));
    // SAFETY: allocated above with this layout.
    unsafe { heap.dealloc(first, big) }.unwrap();
    heap.trim(GROWTH_PAGES);
    let free = heap.stats().free;
    assert!((GROWTH_PAGES..=GROWTH_PAGES + 1).contains(&(free / PAGE_SIZE)), "{free}");
    let top = TOP.get();
    heap.trim(0);
    assert_eq!((heap.stats().total, PAGES.get()), (PAGE_SIZE, 63), "the page of the object that is in use");
    assert!(!heap.alloc(layout(30 * PAGE_SIZE, 16)).is_null());
    assert_eq!(TOP.get(), top, "the window is not used up");
    // SAFETY: allocated above with this layout.
    unsafe { heap.dealloc(second, layout(64, 16)) }.unwrap();
    assert_untouched();
}

/// Objects beside pages that are out get the tags that they get whatever those pages would have: these are not read.
#[test]
fn what_lies_beside_pages_that_are_out_is_not_looked_at() {
    let tags_beside = |absent: u8| {
        ABSENT.set(absent);
        let (heap, _memory) = heap(16);
        start_tags(&heap, 7);
        // With its record each is a page.
        let page = layout(PAGE_SIZE - tags::RECORD, 16);
        let objects: Vec<_> = (0..12).map(|_| heap.alloc(page)).collect();
        for index in [1, 3, 5, 6, 7] {
            // SAFETY: allocated above with this layout.
            unsafe { heap.dealloc(objects[index], page) }.unwrap();
        }
        heap.trim(0);
        assert_eq!(OUT.with_borrow(BTreeSet::len), 9);
        let mut again = [0; 9].map(|_| null_mut());
        again[..7].fill_with(|| heap.alloc(page));
        for (place, index) in [(7, 2), (8, 4)] {
            // SAFETY: allocated above with this layout.
            unsafe { heap.dealloc(objects[index], page) }.unwrap();
            again[place] = heap.alloc(page);
        }
        let places = again.map(|object| (VirtAddr::from_ptr(object).canonical().0 - BASE.get()) / PAGE_SIZE as u64);
        assert_eq!(places, [12, 13, 14, 15, 5, 6, 7, 2, 4], "2 is between pages that are out, 4 is behind one");
        again.map(|object| tag_of(object).number())
    };
    let first = tags_beside(1);
    assert!((2..15).all(|absent| tags_beside(absent) == first));
}

proptest! {
    #[test]
    fn objects_never_overlap_and_all_come_back(
        steps in prop::collection::vec((0..5_u8, 0..9000_usize, 0..13_u32, any::<usize>()), 1..120),
        tags in any::<Option<u64>>(),
    ) {
        let (heap, _memory) = heap(48);
        if let Some(seed) = tags {
            start_tags(&heap, seed);
        }
        let mut in_use: BTreeMap<u64, (*mut u8, Layout)> = BTreeMap::new();
        for (step, size, align, which) in steps {
            // As many small ones as others.
            let size = if which % 2 == 0 { size % 300 } else { size };
            if step == 4 {
                heap.trim(which % 3);
                assert_untouched();
                prop_assert_eq!(heap.stats().total, mapped());
                continue;
            }
            if step < 2 && !in_use.is_empty() {
                let start = *in_use.keys().nth(which % in_use.len()).unwrap();
                let (object, layout) = in_use.remove(&start).unwrap();
                // SAFETY: in use, with this layout.
                unsafe { heap.dealloc(object, layout) }.unwrap();
                continue;
            }
            let layout = layout(size, 1 << align);
            let object = heap.alloc(layout);
            if object.is_null() {
                continue;
            }
            let start = VirtAddr::from_ptr(object).0;
            prop_assert!(start.is_multiple_of(layout.align().max(16) as u64));
            prop_assert!(start + size as u64 <= TOP.get(), "beyond what is mapped");
            prop_assert!(heap.contains(object));
            prop_assert_eq!(tags::is_tagged(VirtAddr(object.addr() as u64)), tags.is_some());
            let end = start + size.max(1) as u64;
            let clash = in_use.iter().any(|(other, (_, l))| *other < end && start < *other + l.size().max(1) as u64);
            prop_assert!(!clash, "two owners");
            // SAFETY: the object is the test's.
            unsafe { VirtAddr(start).as_ptr::<u8>().write_bytes(0xff, size) };
            in_use.insert(start, (object, layout));
            prop_assert_eq!(heap.stats().allocations, in_use.len());
            if tags.is_some() {
                assert_tags(&in_use);
            }
        }
        for (object, layout) in in_use.into_values() {
            // SAFETY: in use, with this layout.
            unsafe { heap.dealloc(object, layout) }.unwrap();
        }
        let stats = heap.stats();
        prop_assert_eq!((stats.used, stats.free, stats.allocations), (0, stats.total, 0));
        heap.trim(0);
        assert_untouched();
        prop_assert_eq!((heap.stats().total, mapped(), PAGES.get()), (0, 0, 48));
        let again = layout(20 * PAGE_SIZE, 16);
        prop_assert!(!heap.alloc(again).is_null());
    }
}

fn start_tags(heap: &Heap, seed: u64) {
    // SAFETY: the host's memory has no tags but simulated ones.
    unsafe { heap.start_tags(seed) };
}

fn tag_of(object: *mut u8) -> Tag {
    Tag::of(VirtAddr(object.addr() as u64))
}

/// The tag of memory.
fn tag_at(address: u64) -> Tag {
    // SAFETY: the host reads no memory.
    unsafe { mte::load_tag(VirtAddr(address)) }
}

/// Checks that each object has its pointer's tag in all of its granules, that what is next to it is tagged as free
/// memory, and that the next object on either side has another.
fn assert_tags(in_use: &BTreeMap<u64, (*mut u8, Layout)>) {
    let mut last: Option<(u64, Tag)> = None;
    for (&start, (object, layout)) in in_use {
        let (tag, end) = (tag_of(*object), start + (layout.size().max(1) as u64).next_multiple_of(mte::GRANULE));
        assert!((1..15).contains(&tag.number()), "{tag:?}");
        assert!((start..end).step_by(16).all(|granule| tag_at(granule) == tag));
        assert_eq!(tag_at(end), mte::MATCH_ALL);
        if let Some((end_of_last, tag_of_last)) = last {
            assert_eq!(tag_at(start - 16), mte::MATCH_ALL);
            assert!(start - end_of_last > tags::RECORD as u64 || tag != tag_of_last, "neighbours with one tag");
        }
        last = Some((end, tag));
    }
}

#[test]
fn an_object_from_before_there_were_tags_is_freed_without_one() {
    let (heap, _memory) = heap(64);
    let old = heap.alloc(layout(40, 8));
    start_tags(&heap, 1);
    let new = heap.alloc(layout(40, 8));
    assert!(!tags::is_tagged(VirtAddr(old.addr() as u64)) && tags::is_tagged(VirtAddr(new.addr() as u64)));
    assert_eq!((heap.stats().allocations, heap.stats().tagged), (2, 1));
    for object in [old, new] {
        // SAFETY: allocated above with this layout.
        unsafe { heap.dealloc(object, layout(40, 8)) }.unwrap();
    }
    assert_eq!((heap.stats().allocations, heap.stats().used), (0, 0));
}

#[test]
fn what_is_no_object_in_use_is_not_freed() {
    let (heap, _memory) = heap(64);
    start_tags(&heap, 7);
    let (small, large) = (layout(64, 16), layout(1000, 16));
    let (first, second) = (heap.alloc(small), heap.alloc(large));
    let before = heap.stats();
    let other_tag = VirtAddr::from_ptr(first).with_tag(Tag::new(tag_of(first).number() % 14 + 1)).as_ptr();
    let last = VirtAddr(heap.base.0 + before.total as u64 - 16).with_tag(mte::MATCH_ALL).as_ptr();
    for (object, layout) in [
        (other_tag, small),
        (first.wrapping_add(16), small),
        (first.wrapping_add(8), small),
        (first, layout(80, 16)),
        (first, layout(48, 16)),
        (second, small),
        (last, small),
        (last.wrapping_add(64), small),
    ] {
        let pointer = VirtAddr(object.addr() as u64);
        let bytes = layout.size() as u64;
        // SAFETY: refused, as what is freed is no object; the list's memory is the test's.
        assert_eq!(unsafe { heap.dealloc(object, layout) }, Err(BadFree { pointer, bytes }));
    }
    assert_eq!(heap.stats(), before);
    for (object, layout) in [(first, small), (second, large)] {
        // SAFETY: allocated above with this layout; refused the second time.
        unsafe {
            heap.dealloc(object, layout).unwrap();
            assert!(heap.dealloc(object, layout).is_err(), "freed twice");
        }
    }
    assert_eq!(heap.stats().used, 0);
}

#[test]
fn what_is_not_mapped_is_not_freed() {
    for tags in [None, Some(7)] {
        let (heap, _memory) = heap(64);
        if let Some(seed) = tags {
            start_tags(&heap, seed);
        }
        let (big, small) = (layout(20 * PAGE_SIZE, 16), layout(64, 16));
        let (object, in_use) = (heap.alloc(big), heap.alloc(small));
        // SAFETY: allocated above with this layout.
        unsafe { heap.dealloc(object, big) }.unwrap();
        heap.trim(0);
        assert_eq!(OUT.with_borrow(BTreeSet::len), mapped_and_out() - 1);
        let before = heap.stats();
        let untagged = VirtAddr::from_ptr(object).canonical();
        for object in [object, untagged.as_ptr()] {
            for (offset, layout) in [
                (0, big),
                (0, small),
                (5 * PAGE_SIZE, small),
                // The end alone is there; nothing is; the end alone is not.
                (20 * PAGE_SIZE - 64, small),
                (WINDOW, small),
                (mapped_and_out() * PAGE_SIZE - 32, small),
            ] {
                let object = object.wrapping_add(offset);
                let bad = BadFree { pointer: VirtAddr(object.addr() as u64), bytes: layout.size() as u64 };
                // SAFETY: refused, as the memory is not the list's now.
                assert_eq!(unsafe { heap.dealloc(object, layout) }, Err(bad), "{offset:#x}, {tags:?}");
            }
        }
        assert_eq!(heap.stats(), before);
        assert_untouched();
        // SAFETY: allocated above with this layout.
        unsafe { heap.dealloc(in_use, small) }.unwrap();
        assert_eq!(heap.stats().used, 0);
    }
}

/// Pages below the top.
fn mapped_and_out() -> usize {
    (TOP.get() - BASE.get()) as usize / PAGE_SIZE
}

#[test]
fn an_object_with_a_tag_is_not_freed_without_it() {
    let (heap, _memory) = heap(64);
    let old = heap.alloc(layout(40, 8));
    start_tags(&heap, 7);
    let object = heap.alloc(layout(100, 16));
    let before = heap.stats();
    let pointer = VirtAddr::from_ptr(object);
    // SAFETY: refused, as the pointer has lost its tag.
    assert_eq!(unsafe { heap.dealloc(pointer.as_ptr(), layout(100, 16)) }, Err(BadFree { pointer, bytes: 112 }));
    assert_eq!(heap.stats(), before);
    assert_eq!(tag_at(pointer.0), tag_of(object));
    for (object, layout) in [(object, layout(100, 16)), (old, layout(40, 8))] {
        // SAFETY: allocated above with this layout.
        unsafe { heap.dealloc(object, layout) }.unwrap();
    }
    assert_eq!((heap.stats().allocations, heap.stats().used), (0, 0));
}

#[test]
fn memory_that_is_used_again_at_once_has_another_tag() {
    for size in [16, 256, 1000] {
        let (heap, _memory) = heap(64);
        start_tags(&heap, 3);
        let layout = layout(size, 16);
        let mut object = heap.alloc(layout);
        let mut drawn = BTreeSet::new();
        for _ in 0..200 {
            // SAFETY: allocated below or above with this layout.
            unsafe { heap.dealloc(object, layout) }.unwrap();
            assert_eq!(tag_at(VirtAddr::from_ptr(object).0), mte::MATCH_ALL);
            let next = heap.alloc(layout);
            assert_eq!(VirtAddr::from_ptr(next), VirtAddr::from_ptr(object), "other memory");
            assert_ne!(tag_of(next), tag_of(object));
            drawn.insert(tag_of(next).number());
            object = next;
        }
        assert_eq!(drawn, (1..15).collect());
    }
}

#[test]
fn what_is_kept_for_its_size_is_given_up_before_the_heap_grows() {
    let (heap, _memory) = heap(16);
    start_tags(&heap, 5);
    let small: Vec<_> = (1..=16).map(|granules| layout(granules * 16, 16)).collect();
    let objects: Vec<_> = small.iter().map(|layout| heap.alloc(*layout)).collect();
    for (object, layout) in objects.iter().zip(&small) {
        // SAFETY: allocated above with this layout.
        unsafe { heap.dealloc(*object, *layout) }.unwrap();
    }
    assert_eq!(heap.stats().used, 0);
    assert!(!heap.alloc(layout(16 * PAGE_SIZE - tags::RECORD, 16)).is_null(), "no hole of all the memory");
    assert_eq!(heap.stats().total, 16 * PAGE_SIZE);
}

#[test]
fn frames_that_the_heap_grows_by_lose_the_tags_that_they_had() {
    let (heap, _memory) = heap(64);
    start_tags(&heap, 5);
    // SAFETY: the window's, simulated.
    unsafe { mte::set_tags(heap.base.with_tag(Tag::new(3)), WINDOW as u64) };
    let object = heap.alloc(layout(16, 16));
    let start = VirtAddr::from_ptr(object).0;
    let others = (heap.base.0..TOP.get()).step_by(16).filter(|granule| *granule != start);
    assert!(others.clone().count() > 1000 && others.map(tag_at).all(|tag| tag == mte::MATCH_ALL));
}
