//! Blocks of objects in shared areas: what maps them, and what becomes of them where the object or an area changes.

mod sequences;

use core::sync::atomic::{AtomicUsize, Ordering};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;

use granule_arch::descriptor::bits;

use super::pressure::TakenFrames;
use super::*;
use crate::mm::counted::Counted;
use crate::mm::space::fault::serve;
use crate::mm::space::outcome::FaultOutcome;
use crate::mm::space::shmem::OF_OBJECT;
use crate::mm::space::{FaultError, Locking, MappedFile, Object, Seals, Terms, Unneeded, WriteAt};

/// A file of memory.
fn file(rig: &Rig, pages: u64) -> Counted<Object> {
    rig.spaces.create_object(&rig.cpu, pages * PAGE, Some(&[]), Seals(0)).unwrap()
}

/// Maps `count` pages of `file` from `first` on at `at`, for which blocks are wanted.
fn map_at(rig: &Rig, space: &Space, file: &Counted<Object>, at: VirtAddr, first: u64, count: u64, sharing: Sharing) {
    let request = MapRequest { placement: Placement::Fixed(at), sharing, ..private(count) };
    let terms = Terms { file: Some(MappedFile { object: file, first_page: first, may_write: true }), ..Terms::NONE };
    space.mmap_within(&rig.cpu, &request, &terms, &|| false).unwrap();
    space.madvise_areas(&rig.cpu, at, count * PAGE, AreaAdvice::HugePage).unwrap();
}

/// A file of so many times 2 MiB, and a space that shares it at [`START`].
fn shared(rig: &Rig, blocks: u64) -> (Counted<Object>, SpaceRef) {
    let (file, space) = (file(rig, blocks * BLOCK_PAGES), rig.space());
    map_at(rig, &space, &file, START, 0, blocks * BLOCK_PAGES, Sharing::Shared);
    (file, space)
}

/// Another space with the first 2 MiB of `file`.
fn sharer(rig: &Rig, file: &Counted<Object>) -> SpaceRef {
    let space = rig.space();
    map_at(rig, &space, file, START, 0, BLOCK_PAGES, Sharing::Shared);
    space
}

fn byte(file: &Object, page: u64) -> u8 {
    let mut byte = [0];
    assert_eq!(file.read(page * PAGE, &mut byte), 1);
    byte[0]
}

fn put(rig: &Rig, file: &Object, page: u64, value: u8) {
    file.write(&rig.cpu, WriteAt::Byte(page * PAGE), &[value], 1, u64::MAX).unwrap();
}

/// Nothing is left, in `rig`.
#[track_caller]
fn all_gone(rig: &Rig) {
    assert_eq!((rig.used(), rig.frames.stats().refused, rig.spaces.counts()), (0, 0, [0; 3]));
}

/// Checks `spaces` against `file`: each page that is mapped is the file's, before its end, and its frame has as many
/// holders as there are entries, and the file.
#[track_caller]
fn check(rig: &Rig, file: &Object, spaces: &[&SpaceRef], pages: u64) {
    for index in 0..pages {
        let found = spaces.iter().filter_map(|space| {
            let tables = space.tables();
            tables.translate(page(index)).filter(|found| found.descriptor.is_present()).map(|found| found.physical)
        });
        let found: Vec<PhysAddr> = found.collect();
        let has = file.has(index).then(|| file.frame(&rig.cpu, index).ok().map(|found| found.frame())).flatten();
        assert!(found.iter().all(|&frame| Some(frame) == has), "page {index}: {found:?}, {has:?}");
        if let Some(frame) = has {
            let record = rig.spaces.record(frame);
            assert_eq!(record.references() as usize, 1 + found.len(), "page {index}");
            assert_eq!(record.flags.load(Ordering::Relaxed) & OF_OBJECT, OF_OBJECT, "page {index}");
        }
    }
}

#[test]
fn spaces_map_the_same_block_and_see_each_others_stores() {
    let rig = Rig::new(16);
    let (file, space) = shared(&rig, 2);
    put(&rig, &file, BLOCK_PAGES, 4);
    rig.write(&space, page(3), 1);
    assert_eq!(
        (size(&space, page(0)), size(&space, page(BLOCK_PAGES)), file.pages()),
        (BLOCK_SIZE, 0, BLOCK_FRAMES + 1)
    );
    let other = sharer(&rig, &file);
    assert_eq!((rig.read(&other, page(3)), size(&other, page(0))), (1, BLOCK_SIZE));
    let [own, its] = [&space, &other].map(|space| leaf(space, page(0)).unwrap().1);
    assert_eq!(own.address(), its.address());
    // Also a load maps it writable: no store faults any more.
    assert!(its.may_be_written() && its.is_dirty());
    rig.write(&other, page(511), 2);
    put(&rig, &file, 7, 3);
    assert_eq!([3, 511, 7].map(|at| rig.read(&space, page(at))), [1, 2, 3]);
    assert_eq!([3, 511, 7].map(|at| byte(&file, at)), [1, 2, 3]);
    check(&rig, &file, &[&space, &other], 2 * BLOCK_PAGES);
    // The one that has a page serves by pages.
    assert_eq!((rig.read(&space, page(BLOCK_PAGES)), size(&space, page(BLOCK_PAGES))), (4, PAGE));
    // Mapped for reading, then for writing; and executable, once.
    let reader = rig.space();
    map_at(&rig, &reader, &file, START, 0, BLOCK_PAGES, Sharing::Shared);
    reader.mprotect(START, BLOCK_SIZE, Protection::READ).unwrap();
    assert_eq!(rig.read(&reader, page(3)), 1);
    assert!(leaf(&reader, page(0)).is_some_and(|(size, entry)| size == BLOCK_SIZE && !entry.may_be_written()));
    assert_eq!(reader.write_bytes(&rig.cpu, page(3), &[1]), Err(FaultError::NotAllowed));
    check(&rig, &file, &[&space, &other, &reader], BLOCK_PAGES);
    // The frames outlive the file's last mapping, and those of spaces the file.
    drop((space, other));
    check(&rig, &file, &[&reader], BLOCK_PAGES);
    drop(file);
    assert_eq!(rig.read(&reader, page(511)), 2);
    drop(reader);
    all_gone(&rig);
}

#[test]
fn shared_anonymous_memory_has_blocks() {
    let rig = Rig::new(16);
    let space = rig.space();
    let request = MapRequest { placement: Placement::Fixed(START), sharing: Sharing::Shared, ..private(BLOCK_PAGES) };
    space.mmap(&rig.cpu, &request).unwrap();
    space.madvise_areas(&rig.cpu, START, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
    rig.write(&space, page(3), 1);
    // A child has no entries; its fault finds the block.
    let child = space.fork(&rig.cpu).unwrap();
    assert_eq!((size(&space, page(3)), size(&child, page(3))), (BLOCK_SIZE, 0));
    assert!(leaf(&space, page(3)).unwrap().1.may_be_written());
    rig.write(&child, page(4), 2);
    assert_eq!((size(&child, page(3)), rig.read(&space, page(4)), rig.read(&child, page(3))), (BLOCK_SIZE, 2, 1));
    assert_eq!(leaf(&space, page(3)).unwrap().1.address(), leaf(&child, page(3)).unwrap().1.address());
    assert_eq!((footprint(&space).pages, present(&child, page(0), BLOCK_FRAMES)), (BLOCK_FRAMES, BLOCK_FRAMES));
    drop((space, child));
    all_gone(&rig);
}

#[test]
fn a_block_of_an_object_migrates_in_all_that_maps_it() {
    let rig = Rig::new(16);
    let (file, space) = shared(&rig, 1);
    let others = [sharer(&rig, &file), sharer(&rig, &file)];
    assert_eq!(rig.read(&space, page(7)), 0);
    (0..BLOCK_PAGES).for_each(|index| put(&rig, &file, index, index as u8));
    // One has the block, one pages, and one nothing.
    assert_eq!(rig.read(&others[0], page(7)), 7);
    others[0].mprotect(page(5), PAGE, Protection::READ).unwrap();
    let all = [&space, &others[0], &others[1]];
    let old = leaf(&space, page(0)).unwrap().1.address();
    // A holder of one of its frames keeps all.
    let held = rig.spaces.record(old + 300 * PAGE);
    held.share();
    assert_eq!(rig.migrate(&rig.cpu, &space, page(0)), Some(Err(Unmovable::Held)));
    assert!(!held.put());
    check(&rig, &file, &all, BLOCK_PAGES);
    assert_eq!((rig.read(&space, page(0)), leaf(&space, page(0)).unwrap().1.address()), (0, old));

    assert_eq!(rig.migrate(&rig.cpu, &space, page(0)), Some(Ok(())));
    assert_eq!([0, 1, 2].map(|index| leaf(all[index], page(9))), [None; 3]);
    all.iter().for_each(|space| assert_eq!(rig.read(space, page(9)), 9));
    assert_eq!([size(&space, page(9)), size(&others[1], page(9))], [BLOCK_SIZE; 2]);
    assert_ne!(leaf(&space, page(0)).unwrap().1.address(), old);
    check(&rig, &file, &all, BLOCK_PAGES);
    rig.write(&space, page(9), 90);
    assert_eq!((byte(&file, 9), rig.read(&others[0], page(9)), byte(&file, 511)), (90, 90, 255));
    // A part of it moves by itself, and then it is no block any more.
    assert_eq!(rig.migrate(&rig.cpu, &others[0], page(9)), Some(Ok(())));
    let first = leaf(&space, page(0)).unwrap();
    assert_eq!((first.0, rig.migrate(&rig.cpu, &space, page(0))), (PAGE, Some(Ok(()))));
    // A part of a block, and pages that are not in order, do not move as one.
    let to = rig.frames.alloc_splittable(&rig.cpu).unwrap();
    assert_eq!(rig.spaces.migrate_block(&rig.cpu, first.1.address(), to), Err(Unmovable::NotFound));
    rig.frames.free_splittable(&rig.cpu, to);
    check(&rig, &file, &all, BLOCK_PAGES);
    drop((space, others, file));
    rig.frames.drain_cpu(&rig.cpu);
    all_gone(&rig);
}

/// A fault during the migration waits, and maps the block where it is then.
#[test]
fn a_block_that_is_used_while_it_migrates_stays_one() {
    let rig = Rig::new(16);
    let mut waits = 0;
    for nth in (0..40).chain((40..).step_by(37)) {
        let (file, space) = shared(&rig, 1);
        let other = sharer(&rig, &file);
        rig.write(&space, page(9), 9);
        let outcome = Rc::new(Cell::new(None));
        let asks = {
            let (other, outcome) = (other.clone(), outcome.clone());
            move |cpu: &Cpu| outcome.set(Some(serve(&other, cpu, page(5), Access::Write)))
        };
        let migrates = || assert_eq!(rig.migrate(&rig.cpu, &space, page(0)), Some(Ok(())));
        let met = meet(&[&space, &other], START, migrates, asks, nth);
        assert!(matches!(outcome.get(), None | Some(FaultOutcome::Served | FaultOutcome::Migrating)), "step {nth}");
        waits += u32::from(outcome.get() == Some(FaultOutcome::Migrating));
        assert_eq!([rig.read(&other, page(9)), rig.read(&space, page(9))], [9, 9], "step {nth}");
        assert_eq!([size(&other, page(5)), size(&space, page(5))], [BLOCK_SIZE; 2], "step {nth}");
        drop((space, other, file));
        rig.frames.drain_cpu(&Cpu::new(CpuId(1)));
        rig.frames.drain_cpu(&rig.cpu);
        all_gone(&rig);
        if !met {
            break;
        }
    }
    assert!(waits > 5, "{waits}");
}

/// A walk by the reverse map, which takes no areas, at each step of `mremap`.
#[test]
fn a_hole_is_punched_while_a_block_of_an_object_moves() {
    let rig = Rig::new(16);
    for holes in [0..1, 7..8, 0..BLOCK_PAGES] {
        // Each step at first, and then some of those of the 512 entries.
        for nth in (0..40).chain((40..).step_by(37)) {
            let (file, space) = shared(&rig, 1);
            rig.write(&space, page(9), 9);
            rig.write(&space, page(holes.start), 1);
            let to = page(4 * BLOCK_PAGES);
            let moves = || {
                let mut request = Remap::new(START, BLOCK_SIZE, BLOCK_SIZE, Move::To(to), false).unwrap();
                space.mremap(&rig.cpu, &mut request, &SpaceLimits::NONE).unwrap();
            };
            let punches = {
                let (file, holes) = (file.clone(), holes.clone());
                move |cpu: &Cpu| file.punch_hole(cpu, holes.start * PAGE, holes.end * PAGE).unwrap()
            };
            let other = space.clone();
            let met = meet_at(&[(&other, START), (&other, to)], moves, punches, nth);
            let values = (rig.read(&space, to + holes.start * PAGE), rig.read(&space, to + 9 * PAGE));
            let expected = if met { (0, if holes.contains(&9) { 0 } else { 9 }) } else { (1, 9) };
            assert_eq!(values, expected, "{holes:?} at step {nth}");
            drop((space, other, file));
            rig.frames.drain_cpu(&Cpu::new(CpuId(1)));
            rig.frames.drain_cpu(&rig.cpu);
            all_gone(&rig);
            if !met {
                assert!(nth > 5, "few steps: {nth}");
                break;
            }
        }
    }
}

#[test]
fn pages_serve_where_an_object_has_no_block() {
    let rig = Rig::new(16);
    // The file's pages, where its first page is mapped, from which page of it on, how many pages, and how.
    let rows = [
        ("the end is in the block", 511, 0, 0, 512, Sharing::Shared),
        ("not congruent", 1024, 1, 0, 512, Sharing::Shared),
        ("not congruent, by the offset", 1024, 0, 1, 512, Sharing::Shared),
        ("a part", 512, 0, 0, 511, Sharing::Shared),
        ("private", 512, 0, 0, 512, Sharing::Private),
    ];
    for (what, pages, at, first, count, sharing) in rows {
        let (file, space) = (file(&rig, pages), rig.space());
        map_at(&rig, &space, &file, page(at), first, count, sharing);
        rig.read(&space, page(at + 3));
        assert_eq!((size(&space, page(at + 3)), file.pages()), (PAGE, 1), "{what}");
    }
    let (file, space) = shared(&rig, 1);
    space.madvise_areas(&rig.cpu, START, BLOCK_SIZE, AreaAdvice::NoHugePage).unwrap();
    rig.write(&space, page(3), 1);
    assert_eq!((size(&space, page(3)), file.pages()), (PAGE, 1), "not wanted");
    let other = sharer(&rig, &file);
    rig.write(&other, page(4), 1);
    assert_eq!((size(&other, page(4)), file.pages()), (PAGE, 2), "a page is there");
    // All of them, which are no neighbours.
    let scattered = self::file(&rig, BLOCK_PAGES);
    (0..BLOCK_PAGES).rev().for_each(|at| put(&rig, &scattered, at, at as u8));
    let third = sharer(&rig, &scattered);
    assert_eq!((rig.read(&third, page(9)), size(&third, page(9))), (9, PAGE));
    // Neighbours, and not of one page block from its start on: moved by one.
    let shifted = self::file(&rig, BLOCK_PAGES + 1);
    let fourth = rig.space();
    map_at(&rig, &fourth, &shifted, page(0), 0, BLOCK_PAGES, Sharing::Shared);
    rig.write(&fourth, page(1), 1);
    let fifth = rig.space();
    map_at(&rig, &fifth, &shifted, page(BLOCK_PAGES + 511), 1, 1, Sharing::Shared);
    assert_eq!((size(&fourth, page(0)), rig.read(&fifth, page(BLOCK_PAGES + 511))), (BLOCK_SIZE, 1));
    // The end is in its last page.
    let uneven = rig.spaces.create_object(&rig.cpu, BLOCK_SIZE - PAGE + 1, Some(&[]), Seals(0)).unwrap();
    let sixth = sharer(&rig, &uneven);
    rig.write(&sixth, page(511), 1);
    assert_eq!(size(&sixth, page(0)), BLOCK_SIZE);
    drop((space, other, third, fourth, fifth, sixth, file, scattered, shifted, uneven));
    all_gone(&rig);

    // A file of the initrd: its pages are given back one by one.
    let contents: &'static [u8] = Box::leak(vec![5; BLOCK_SIZE as usize].into_boxed_slice());
    let file = rig.spaces.create_object(&rig.cpu, BLOCK_SIZE, Some(contents), Seals(0)).unwrap();
    let space = sharer(&rig, &file);
    assert_eq!((rig.read(&space, page(3)), size(&space, page(3))), (5, PAGE));
    drop((file, space));

    // No page block is free.
    let (file, space) = shared(&rig, 1);
    let one = rig.frames.alloc(&rig.cpu).unwrap();
    rig.frames.drain_cpu(&rig.cpu);
    let taken: Vec<_> = core::iter::from_fn(|| rig.frames.alloc_blocks(&rig.cpu, 0).ok()).collect();
    rig.write(&space, page(3), 7);
    assert_eq!((size(&space, page(3)), rig.read(&space, page(3)), file.pages()), (PAGE, 7, 1));
    taken.into_iter().for_each(|block| rig.frames.free_blocks(&rig.cpu, block, 0));
    rig.frames.free(&rig.cpu, one);
    drop((file, space));
    all_gone(&rig);
}

#[test]
fn a_hole_or_a_truncation_splits_or_takes_the_block_of_each_space() {
    let rig = Rig::new(32);
    for live in [&[][..], &[branch::SIZE_CHANGE]] {
        host::with(live, || {
            let fresh = || {
                let (file, space) = shared(&rig, 1);
                let other = sharer(&rig, &file);
                [1, 5, 300, 511].into_iter().for_each(|at| rig.write(&space, page(at), at as u8));
                assert_eq!([1, 5].map(|at| rig.read(&other, page(at))), [1, 5]);
                assert_eq!([&space, &other].map(|space| size(space, page(0))), [BLOCK_SIZE; 2]);
                (file, space, other)
            };
            let bytes = |space: &Space| [1, 5, 300, 511].map(|at| rig.read(space, page(at)));
            // A page: the rest stays.
            let (file, space, other) = fresh();
            file.punch_hole(&rig.cpu, 5 * PAGE, 6 * PAGE).unwrap();
            assert_eq!([&space, &other].map(|space| size(space, page(1))), [PAGE; 2]);
            assert_eq!([&space, &other].map(|space| leaf(space, page(5))), [None; 2]);
            assert_eq!(file.pages(), BLOCK_FRAMES - 1);
            check(&rig, &file, &[&space, &other], BLOCK_PAGES);
            assert_eq!([&space, &other].map(|space| bytes(space)), [[1, 0, 44, 255]; 2]);
            // Half a page: nothing but its bytes.
            let (file, space, other) = fresh();
            file.punch_hole(&rig.cpu, 5 * PAGE, 5 * PAGE + 8).unwrap();
            assert_eq!((size(&space, page(1)), bytes(&other)), (BLOCK_SIZE, [1, 0, 44, 255]));
            // All.
            let tables = [space.table_frames(), other.table_frames()];
            let used = rig.used();
            file.punch_hole(&rig.cpu, 0, BLOCK_SIZE).unwrap();
            assert_eq!([&space, &other].map(|space| size(space, page(1))), [0; 2]);
            assert_eq!([space.table_frames(), other.table_frames()], tables.map(|tables| tables - 1));
            assert_eq!(rig.used(), used - BLOCK_FRAMES - 2);
            assert_eq!((bytes(&space), size(&space, page(0))), ([0; 4], BLOCK_SIZE));
            // By advice, from a space.
            let (file, space, other) = fresh();
            other.madvise_remove(&rig.cpu, page(300), PAGE).unwrap();
            assert_eq!([&space, &other].map(|space| bytes(space)), [[1, 5, 0, 255]; 2]);
            check(&rig, &file, &[&space, &other], BLOCK_PAGES);
            // Cut short within it.
            let (file, space, other) = fresh();
            file.truncate(&rig.cpu, 300 * PAGE + 1).unwrap();
            check(&rig, &file, &[&space, &other], BLOCK_PAGES);
            assert_eq!((file.pages(), rig.read(&space, page(300))), (301, 44));
            assert_eq!(space.write_bytes(&rig.cpu, page(301), &[1]), Err(FaultError::Unusable));
            file.truncate(&rig.cpu, BLOCK_SIZE).unwrap();
            assert_eq!([&space, &other].map(|space| bytes(space)), [[1, 5, 44, 0]; 2]);
        });
        all_gone(&rig);
    }
}

/// Private pages of the same file are copies, and stay beside a hole in a block.
#[test]
fn a_hole_leaves_private_copies() {
    let rig = Rig::new(16);
    let (file, space) = shared(&rig, 1);
    rig.write(&space, page(3), 1);
    let private = rig.space();
    map_at(&rig, &private, &file, START, 0, BLOCK_PAGES, Sharing::Private);
    rig.write(&private, page(3), 2);
    assert_eq!(rig.read(&private, page(4)), 0);
    file.punch_hole(&rig.cpu, 0, BLOCK_SIZE).unwrap();
    assert_eq!([&space, &private].map(|space| size(space, page(3))), [0, PAGE]);
    assert_eq!((size(&private, page(4)), rig.read(&private, page(3)), rig.read(&space, page(3))), (0, 2, 0));
    drop((file, space, private));
    all_gone(&rig);
}

#[test]
fn calls_on_a_shared_area_leave_the_block_to_the_others() {
    let rig = Rig::new(32);
    let writable = |space: &Space, at| leaf(space, page(at)).is_some_and(|(_, entry)| entry.may_be_written());
    for live in [&[][..], &[branch::SIZE_CHANGE]] {
        host::with(live, || {
            let (file, space) = shared(&rig, 1);
            let other = sharer(&rig, &file);
            rig.write(&space, page(5), 5);
            rig.write(&other, page(6), 6);
            // Others hold the frames, and yet no store is copied.
            for protection in [Protection::READ, READ_WRITE, Protection::NONE, READ_WRITE] {
                space.mprotect(START, BLOCK_SIZE, protection).unwrap();
                assert_eq!((size(&space, page(0)), size(&other, page(0))), (BLOCK_SIZE, BLOCK_SIZE));
                assert_eq!(writable(&space, 0), protection == READ_WRITE);
            }
            rig.write(&space, page(7), 7);
            assert_eq!((rig.read(&other, page(7)), size(&space, page(0))), (7, BLOCK_SIZE));
            // A part.
            space.mprotect(page(9), PAGE, Protection::READ).unwrap();
            assert_eq!((size(&space, page(5)), size(&other, page(5))), (PAGE, BLOCK_SIZE));
            assert_eq!([8, 9, 10].map(|at| writable(&space, at)), [true, false, true]);
            rig.write(&space, page(8), 8);
            rig.write(&other, page(9), 9);
            assert_eq!((rig.read(&other, page(8)), rig.read(&space, page(9))), (8, 9));
            check(&rig, &file, &[&space, &other], BLOCK_PAGES);
            // Given up: the object keeps it, and the next fault finds it, as its table is there page by page.
            space.madvise_dontneed(&rig.cpu, START, BLOCK_SIZE).unwrap();
            assert_eq!(rig.read(&space, page(8)), 8);
            other.madvise_dontneed(&rig.cpu, START, BLOCK_SIZE).unwrap();
            assert_eq!((size(&other, page(8)), rig.read(&other, page(8)), size(&other, page(8))), (0, 8, BLOCK_SIZE));
            other.madvise_dontneed(&rig.cpu, page(8), PAGE).unwrap();
            assert_eq!((leaf(&other, page(8)), size(&other, page(9))), (None, PAGE));
            check(&rig, &file, &[&space, &other], BLOCK_PAGES);
            // Unmapped in part, and whole.
            let third = sharer(&rig, &file);
            assert_eq!((rig.read(&third, page(5)), size(&third, page(5))), (5, BLOCK_SIZE));
            third.munmap(&rig.cpu, page(100), PAGE).unwrap();
            assert_eq!(
                (rig.read(&third, page(5)), size(&third, page(5)), leaf(&third, page(100))),
                (5, 16 * PAGE, None)
            );
            check(&rig, &file, &[&space, &other, &third], BLOCK_PAGES);
            third.munmap(&rig.cpu, START, BLOCK_SIZE).unwrap();
            // But for the table of the first level below the root, which translates what no area can have, too.
            assert_eq!((third.table_frames(), file.pages()), (2, BLOCK_FRAMES));
            // Moved.
            let fourth = sharer(&rig, &file);
            rig.read(&fourth, page(5));
            let to = page(4 * BLOCK_PAGES + 1);
            let mut request = Remap::new(START, BLOCK_SIZE, BLOCK_SIZE, Move::To(to), false).unwrap();
            fourth.mremap(&rig.cpu, &mut request, &SpaceLimits::NONE).unwrap();
            rig.write(&fourth, to + 5 * PAGE, 55);
            assert_eq!((rig.read(&space, page(5)), leaf(&fourth, page(5))), (55, None));
            drop((file, space, other, third, fourth));
        });
        all_gone(&rig);
    }
}

#[test]
fn advice_meets_blocks_in_shared_areas() {
    let rig = Rig::new(32);
    let (file, space) = shared(&rig, 2);
    for access in [Access::Read, Access::Write, Access::Write] {
        space.madvise_populate(&rig.cpu, START, 2 * BLOCK_SIZE, access, &|| false).unwrap();
        assert_eq!([0, BLOCK_PAGES].map(|at| size(&space, page(at))), [BLOCK_SIZE; 2]);
    }
    // Read-only for the moment: populated for writing it is upgraded, not copied.
    space.mprotect(START, BLOCK_SIZE, Protection::READ).unwrap();
    let reader = sharer(&rig, &file);
    reader.mprotect(START, BLOCK_SIZE, Protection::READ).unwrap();
    reader.madvise_populate(&rig.cpu, START, BLOCK_SIZE, Access::Read, &|| false).unwrap();
    reader.mprotect(START, BLOCK_SIZE, READ_WRITE).unwrap();
    reader.madvise_populate(&rig.cpu, START, BLOCK_SIZE, Access::Write, &|| false).unwrap();
    assert!(leaf(&reader, page(0)).is_some_and(|(size, entry)| size == BLOCK_SIZE && entry.may_be_written()));
    rig.write(&reader, page(1), 1);
    assert_eq!(rig.read(&space, page(1)), 1);
    // Guards split, and a child has them; the block beside them it finds.
    space.madvise_guard(&rig.cpu, page(2), PAGE, &|| false).unwrap();
    assert_eq!([0, BLOCK_PAGES].map(|at| size(&space, page(at))), [PAGE, BLOCK_SIZE]);
    let child = space.fork(&rig.cpu).unwrap();
    assert_eq!(child.read_bytes(&rig.cpu, page(2), &mut [0]), Err(FaultError::Guard));
    assert_eq!((rig.read(&child, page(BLOCK_PAGES)), size(&child, page(BLOCK_PAGES))), (0, BLOCK_SIZE));
    space.madvise_unguard(START, 2 * BLOCK_SIZE).unwrap();
    assert_eq!(present(&space, page(0), 2 * BLOCK_FRAMES), 2 * BLOCK_FRAMES);
    check(&rig, &file, &[&space, &reader, &child], 2 * BLOCK_PAGES);
    // Locked, unlocked and not wanted in part: the block stays, and a hole finds both areas.
    let other = sharer(&rig, &file);
    rig.read(&other, page(0));
    other.mlock(&rig.cpu, START, 7 * PAGE, Locking::Now, &|| false).unwrap();
    other.madvise_areas(&rig.cpu, page(100), PAGE, AreaAdvice::NoHugePage).unwrap();
    assert_eq!((size(&other, page(0)), areas(&other).len()), (BLOCK_SIZE, 4));
    let parts = [3, 50].map(|at| other.madvise_unneeded(&rig.cpu, page(at), PAGE, Unneeded::Cold));
    assert_eq!(parts, [Err(SpaceError::Invalid), Ok(())]);
    file.punch_hole(&rig.cpu, 5 * PAGE, 9 * PAGE).unwrap();
    check(&rig, &file, &[&space, &reader, &child, &other], 2 * BLOCK_PAGES);
    drop((file, space, reader, child, other));
    all_gone(&rig);
}

/// The work of a CPU, in a space or on the file.
type Work = fn(&Space, &Object, &Cpu);

const READ: Work = |space, _, cpu| _ = handle_fault(space, cpu, page(3), Access::Read);
const WRITE: Work = |space, _, cpu| _ = handle_fault(space, cpu, page(3), Access::Write);
const POPULATE: Work = |space, _, cpu| space.populate_again(cpu, START, BLOCK_SIZE, &|| false);
const DISCARD: Work = |space, _, cpu| space.madvise_dontneed(cpu, START, BLOCK_SIZE).unwrap();
const DISCARD_PAGE: Work = |space, _, cpu| space.madvise_dontneed(cpu, page(3), PAGE).unwrap();
const GUARD: Work = |space, _, cpu| space.madvise_guard(cpu, page(2), 2 * PAGE, &|| false).unwrap();
const PROTECT: Work = |space, _, _| space.mprotect(START, BLOCK_SIZE, Protection::NONE).unwrap();
const PUNCH: Work = |_, file, cpu| file.punch_hole(cpu, 0, BLOCK_SIZE).unwrap();
const PUNCH_PAGE: Work = |_, file, cpu| file.punch_hole(cpu, 300 * PAGE, 301 * PAGE).unwrap();
const EMPTY: Work = |_, file, cpu| file.truncate(cpu, 0).unwrap();
const SHORTEN: Work = |_, file, cpu| {
    file.truncate(cpu, 3 * PAGE + 1).unwrap();
    file.truncate(cpu, BLOCK_SIZE).unwrap();
};
const PUT: Work = |_, file, cpu| _ = file.write(cpu, WriteAt::Byte(300 * PAGE), &[7], 1, u64::MAX).unwrap();

/// The state before two meet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Before {
    /// No frames.
    Nothing,
    /// The object has a block, and another space maps it.
    InObject,
    /// So does the space.
    Mapped,
}

/// Has `work` meet `other`, in the same space or in another, at the `nth` moment; whether there is one, and how many
/// blocks there are then.
fn meets(rig: &'static Rig, before: Before, work: Work, (other, is_apart): (Work, bool), nth: usize) -> (bool, usize) {
    let (file, space) = shared(rig, 1);
    let second = sharer(rig, &file);
    if before != Before::Nothing {
        rig.write(&second, page(3), 1);
    }
    if before == Before::Mapped {
        rig.write(&space, page(3), 1);
    }
    let others_place = if is_apart { second.clone() } else { space.clone() };
    let (others_file, spaces) = (file.clone(), [&space, &second]);
    let other = move |cpu: &Cpu| other(&others_place, &others_file, cpu);
    let met = meet(&spaces, page(3), || work(&space, &file, &rig.cpu), other, nth);
    check(rig, &file, &spaces, BLOCK_PAGES);
    let blocks = spaces.iter().filter(|space| size(space, page(3)) == BLOCK_SIZE).count();
    drop((file, space, second));
    // So that page blocks are whole again.
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!((rig.used(), rig.spaces.counts()), (0, [0; 3]), "moment {nth}");
    assert_eq!(rig.frames.stats().refused, 0, "moment {nth}: a frame is freed twice");
    (met, blocks)
}

/// Has each of `works` meet each of `others` at its first and last moments, and some in between; returns how many
/// blocks are left.
#[track_caller]
fn each_meets(before: Before, works: &[Work], others: &[Work]) -> usize {
    const ENDS: usize = 16;
    std::thread_local! {
        /// One for all that a thread does: each leaves it as it was, and memory is not given back.
        static RIG: &'static Rig = Box::leak(Box::new(Rig::new(16)));
    }
    let rig = RIG.with(|rig| *rig);
    let (mut moments, mut blocks) = (0, 0);
    let pairs = works.iter().flat_map(|&work| others.iter().map(move |&other| (work, other)));
    for (work, other) in pairs.flat_map(|(work, other)| [(work, (other, false)), (work, (other, true))]) {
        let mut met_at = |nth| {
            let (met, left) = meets(rig, before, work, other, nth);
            (moments, blocks) = (moments + usize::from(met), blocks + left);
            met
        };
        let (mut last, mut end) = (0, 4096);
        while last + 1 < end {
            let middle = usize::midpoint(last, end);
            *(if met_at(middle) { &mut last } else { &mut end }) = middle;
        }
        let some = (0..last).filter(|nth| *nth < ENDS || nth % 149 == 0 || nth + ENDS > last);
        some.for_each(|nth| assert!(met_at(nth), "moment {nth} of {last}"));
    }
    assert!(moments > 50, "{moments} moments");
    blocks
}

#[test]
fn a_block_that_is_lost_at_any_step_of_a_fault_is_in_no_entry() {
    assert!(each_meets(Before::InObject, &[READ, POPULATE], &[PUNCH, PUNCH_PAGE, EMPTY, SHORTEN]) > 5);
    assert!(each_meets(Before::Nothing, &[WRITE], &[PUNCH, EMPTY, SHORTEN]) > 5);
}

#[test]
fn other_faults_at_any_step_of_a_fault_have_the_same_frames() {
    assert!(each_meets(Before::InObject, &[READ, POPULATE], &[READ, WRITE, DISCARD, DISCARD_PAGE, GUARD]) > 50);
    assert!(each_meets(Before::Nothing, &[WRITE], &[WRITE, PUT, POPULATE, GUARD]) > 50);
    assert!(each_meets(Before::Nothing, &[GUARD, PUT], &[WRITE]) > 5);
}

#[test]
fn a_fault_at_any_step_of_a_truncation_maps_no_lost_block() {
    for before in [Before::InObject, Before::Mapped] {
        assert!(each_meets(before, &[PUNCH, PUNCH_PAGE, EMPTY, SHORTEN], &[READ, WRITE, POPULATE]) > 5);
    }
}

#[test]
fn calls_and_truncations_meet() {
    let (calls, truncations) = ([DISCARD, DISCARD_PAGE, GUARD], [PUNCH, PUNCH_PAGE, EMPTY, SHORTEN]);
    each_meets(Before::Mapped, &calls, &truncations);
    each_meets(Before::Mapped, &truncations, &calls);
    each_meets(Before::Mapped, &[PROTECT], &truncations);
}

/// Each allocation fails in turn: pages serve, or nothing has changed.
#[test]
fn a_fault_that_finds_no_memory_changes_nothing() {
    let rig = Rig::new(16);
    let mut served = [0; 3];
    for (has_block, blocks) in [(false, 0), (false, 1), (false, 2), (true, 0)] {
        for frames in 0..12 {
            let (file, space) = shared(&rig, 1);
            let second = has_block.then(|| {
                let second = sharer(&rig, &file);
                rig.write(&second, page(3), 1);
                second
            });
            let taken = TakenFrames::leaving(&rig, blocks, frames);
            let used = || rig.used() - taken.held();
            let before = (used(), file.pages(), space.table_frames());
            let result = handle_fault(&space, &rig.cpu, page(3), Access::Write);
            let after = (used(), file.pages(), space.table_frames());
            match result {
                Ok(()) => {
                    let tables = if has_block { 0 } else { 3 };
                    assert_eq!(
                        after.0 - before.0,
                        after.1 - before.1 + after.2 - before.2 + tables,
                        "{blocks}, {frames}"
                    );
                    served[if size(&space, page(3)) == BLOCK_SIZE { 2 } else { 1 }] += 1;
                }
                Err(error) => {
                    assert_eq!((error, after), (FaultError::OutOfMemory, before), "{blocks}, {frames}");
                    served[0] += 1;
                }
            }
            check(&rig, &file, &[Some(&space), second.as_ref()].into_iter().flatten().collect::<Vec<_>>(), BLOCK_PAGES);
            drop((taken, file, space, second));
            all_gone(&rig);
        }
    }
    assert!(served.iter().all(|&count| count > 5), "{served:?}");
}

/// Where the hole is, pages are no thread's; of each eight a thread has one to itself.
#[test]
fn threads_of_several_spaces_store_to_a_block_while_holes_are_punched() {
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(32)));
    for round in 1..=20_u64 {
        let live: &[u16] = if round % 2 == 0 { &[] } else { &[branch::SIZE_CHANGE] };
        host::with(live, || {
            let (file, space) = shared(rig, 2);
            let other = rig.space();
            map_at(rig, &other, &file, START, 0, 2 * BLOCK_PAGES, Sharing::Shared);
            let (spaces, working) = ([space, other], AtomicUsize::new(4));
            thread::scope(|scope| {
                for number in 0..4 {
                    let (space, working) = (&spaces[number as usize % 2], &working);
                    scope.spawn(move || {
                        let (cpu, mut numbers) = (Cpu::new(CpuId(1 + number as u32)), Numbers(round * 64 + number + 1));
                        let mut values = vec![0; (2 * BLOCK_PAGES / 8) as usize];
                        for step in 1..=60_u8 {
                            let index = numbers.below(2 * BLOCK_PAGES / 8);
                            let at = page(index * 8 + number);
                            let mut byte = [0];
                            space.read_bytes(&cpu, at, &mut byte).unwrap();
                            assert_eq!(byte[0], values[index as usize], "round {round}, step {step}");
                            space.write_bytes(&cpu, at, &[step]).unwrap();
                            values[index as usize] = step;
                            match numbers.below(16) {
                                0 => space.madvise_dontneed(&cpu, page(0), BLOCK_SIZE).unwrap(),
                                1 => space.madvise_dontneed(&cpu, at, PAGE).unwrap(),
                                2 => {
                                    _ = space.madvise_populate(&cpu, page(0), 2 * BLOCK_SIZE, Access::Write, &|| false)
                                }
                                _ => {}
                            }
                        }
                        rig.frames.drain_cpu(&cpu);
                        working.fetch_sub(1, Ordering::Release);
                    });
                }
                let mut numbers = Numbers(round * 77 + 5);
                while working.load(Ordering::Acquire) != 0 {
                    let free = numbers.below(2 * BLOCK_PAGES / 8) * 8 + 4 + numbers.below(4);
                    match numbers.below(3) {
                        0 => file.punch_hole(&rig.cpu, free * PAGE, (free + 1) * PAGE).unwrap(),
                        1 => put(rig, &file, free, 9),
                        _ => drop(spaces[numbers.below(2) as usize].fork(&rig.cpu)),
                    }
                    thread::yield_now();
                }
            });
            check(rig, &file, &[&spaces[0], &spaces[1]], 2 * BLOCK_PAGES);
        });
        all_gone(rig);
    }
}
