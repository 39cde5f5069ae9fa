//! Contiguous groups: what brings them, each path that changes all of one or a part, and what the hardware sets
//! concurrently.

use std::vec;

use granule_arch::alternative::host;
use granule_arch::descriptor::{Descriptor, bits};
use granule_pgtable::CellsOrBlock;
use granule_pgtable::host::Operation;

use super::*;
use crate::mm::notifier::recording::{Notified, Recording};
use crate::mm::notifier::{Event, Subscription};
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::mm::space::group::{GROUP_PAGES, GROUP_SIZE};
use crate::mm::space::{Aged, AreaAdvice, FaultError, Move, Remap, SpaceLimits};
use crate::platform::features::branch;

/// In the middle of a table, and of what a block would translate.
const START: VirtAddr = VirtAddr(0x10_0010_0000);
const ALL: u64 = GROUP_PAGES as u64;

/// Checks the groups of `space` and counts them: the 16 are there, aligned and in order, and permit the same, to
/// walkers too that update no flags. Only that software noted a store may differ, where none may be made.
pub(super) fn check_groups(space: &Space) -> Result<usize, std::string::String> {
    let (mmu, mut groups) = (space.mmu(), 0);
    let mut walk = space.page_tables().walk_cells(pages(USER_START, USER_END));
    while let Some(met) = walk.next() {
        let CellsOrBlock::Cells(found) = met else { continue };
        let is_of_group = |entry: &Descriptor| entry.is_present() && entry.is_contiguous();
        for (index, cells) in found.cells.chunks(GROUP_PAGES).enumerate() {
            let group: Vec<Descriptor> = cells.iter().map(|cell| mmu.load(cell)).collect();
            if !group.iter().any(is_of_group) {
                continue;
            }
            groups += 1;
            let at = found.address(index * GROUP_PAGES);
            let first = group[0];
            let kept = !if first.may_be_written() { bits::ADDRESS } else { bits::ADDRESS | bits::DIRTY };
            let is_right = |(index, entry): (usize, &Descriptor)| {
                is_of_group(entry)
                    && entry.address() == first.address() + index as u64 * PAGE
                    && (entry.0 ^ first.0) & kept == 0
            };
            let is_aligned = at.is_aligned(GROUP_SIZE) && first.address().is_aligned(GROUP_SIZE);
            if group.len() != GROUP_PAGES || !is_aligned || !group.iter().enumerate().all(is_right) {
                return Err(std::format!("the group at {at}: {group:x?}"));
            }
        }
    }
    Ok(groups)
}

fn groups(space: &Space) -> usize {
    check_groups(space).unwrap()
}

fn page(index: u64) -> VirtAddr {
    START + index * PAGE
}

fn wanted(rig: &Rig, pages: u64) -> SpaceRef {
    let space = rig.space();
    let request = MapRequest { placement: Placement::Fixed(START), ..private(pages) };
    space.mmap(&rig.cpu, &request).unwrap();
    space.madvise_areas(&rig.cpu, START, pages * PAGE, AreaAdvice::HugePage).unwrap();
    space
}

/// A group whose pages begin with their numbers and 1, and pages beside it.
fn written(rig: &Rig) -> SpaceRef {
    let space = wanted(rig, ALL + 4);
    (0..ALL + 4).for_each(|index| rig.write(&space, page(index), index as u8 + 1));
    assert_eq!(groups(&space), 1);
    space
}

fn entry(space: &Space, index: u64) -> Descriptor {
    space.tables().translate(page(index)).map_or(Descriptor::EMPTY, |found| found.descriptor)
}

fn cell(space: &Space, index: u64) -> &EntryCell {
    space.page_tables().cell(page(index)).unwrap().1
}

fn size(space: &Space, index: u64) -> u64 {
    let found = space.tables().translate(page(index)).filter(|found| found.descriptor.is_present());
    found.map_or(0, |found| found.leaf_size)
}

/// The pages of the group hold what they should: their numbers and 1, but for some.
fn holds(rig: &Rig, space: &Space, others: &[(u64, u8)]) {
    for index in 0..ALL {
        let other = others.iter().find(|(page, _)| *page == index).map(|&(_, value)| value);
        assert_eq!(rig.read(space, page(index)), other.unwrap_or(index as u8 + 1), "page {index}");
    }
}

fn ended(rig: &Rig) {
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0));
}

/// With size changes that are not trusted, and with such that are.
fn both(rig: &Rig, work: impl Fn(&Rig)) {
    for live in [&[][..], &[branch::SIZE_CHANGE]] {
        host::with(live, || work(rig));
        ended(rig);
    }
}

#[test]
fn the_first_access_brings_a_group_where_it_fits() {
    let rig = Rig::new(16);
    let space = wanted(&rig, 2 * ALL + 4);
    rig.write(&space, page(3), 1);
    assert_eq!([0, 15, 16].map(|index| size(&space, index)), [GROUP_SIZE, GROUP_SIZE, 0]);
    assert_eq!(rig.used(), GROUP_PAGES + space.table_frames());
    // Read: a group of zeros too, which takes stores at once.
    assert_eq!(rig.read(&space, page(16)), 0);
    assert!(size(&space, 31) == GROUP_SIZE && entry(&space, 31).is_dirty());
    // Sixteen frames, each with a record of its own.
    let frame = entry(&space, 5).address();
    assert_eq!((rig.spaces.record(frame).references(), rig.read(&space, page(5))), (1, 0));
    assert_eq!(rig.migrate(&rig.cpu, &space, page(5)), Some(Ok(())));
    // The area ends before the third.
    rig.write(&space, page(33), 1);
    assert_eq!((size(&space, 33), size(&space, 32), groups(&space)), (PAGE, 0, 1));
    drop(space);
    ended(&rig);

    // Not wanted; a page is there already; of an object.
    let space = rig.space();
    let map = |sharing, pages: u64| {
        let request = MapRequest { placement: Placement::Fixed(START), sharing, ..private(pages) };
        space.mmap(&rig.cpu, &request).unwrap();
    };
    map(Sharing::Private, ALL);
    rig.write(&space, page(3), 1);
    assert_eq!(size(&space, 3), PAGE);
    space.madvise_areas(&rig.cpu, START, GROUP_SIZE, AreaAdvice::HugePage).unwrap();
    rig.write(&space, page(4), 1);
    assert_eq!((size(&space, 4), size(&space, 5)), (PAGE, 0));
    map(Sharing::Shared, ALL);
    space.madvise_areas(&rig.cpu, START, GROUP_SIZE, AreaAdvice::HugePage).unwrap();
    rig.write(&space, page(4), 1);
    assert_eq!((size(&space, 4), size(&space, 5)), (PAGE, 0));
    drop(space);
    ended(&rig);
}

#[test]
fn where_no_sixteen_frames_are_neighbours_a_page_serves() {
    let rig = Rig::new(8);
    let space = wanted(&rig, ALL);
    // Every other frame is in use.
    let all: Vec<_> = core::iter::from_fn(|| rig.frames.alloc_movable(&rig.cpu).ok()).collect();
    let (free, kept): (Vec<_>, Vec<_>) = all.iter().partition(|frame| frame.frame_number() % 2 == 0);
    free.into_iter().for_each(|frame| rig.frames.free(&rig.cpu, frame));
    rig.frames.drain_cpu(&rig.cpu);
    rig.write(&space, page(3), 1);
    assert_eq!((size(&space, 3), size(&space, 4)), (PAGE, 0));
    kept.into_iter().for_each(|frame| rig.frames.free(&rig.cpu, frame));
    drop(space);
    ended(&rig);
}

/// With fewer and fewer frames: what fails has changed nothing.
#[test]
fn memory_runs_out_before_a_group_is_there_and_nothing_is_lost() {
    let rig = Rig::new(8);
    let mut outcomes = [0; 3];
    for left in 0..24 {
        let space = wanted(&rig, ALL);
        rig.frames.drain_cpu(&rig.cpu);
        let mut taken: Vec<_> = core::iter::from_fn(|| rig.frames.alloc_movable(&rig.cpu).ok()).collect();
        // Neighbours, if they are enough.
        taken.sort_unstable();
        let end = taken.iter().position(|frame| frame.frame_number() % BLOCK_FRAMES == 64).unwrap();
        taken.drain(end..end + left).for_each(|frame| rig.frames.free(&rig.cpu, frame));
        rig.frames.drain_cpu(&rig.cpu);
        let used = rig.used() - space.table_frames();
        let served = handle_fault(&space, &rig.cpu, page(3), Access::Write);
        let brought = rig.used() - space.table_frames() - used;
        let is_expected = matches!((served.is_ok(), brought), (false, 0) | (true, 1 | GROUP_PAGES));
        assert!(is_expected, "{left} frames: {served:?}, {brought}");
        outcomes[if brought > 1 { 2 } else { brought }] += 1;
        taken.into_iter().for_each(|frame| rig.frames.free(&rig.cpu, frame));
        drop(space);
        ended(&rig);
    }
    assert!(outcomes.iter().all(|&count| count > 1), "{outcomes:?}");
}

#[test]
fn mprotect_of_a_part_unfolds_and_back_folds() {
    both(&Rig::new(16), |rig| {
        let space = written(rig);
        for protection in [Protection::READ, Protection::NONE, READ_EXECUTE, READ_WRITE] {
            space.mprotect(START, GROUP_SIZE, protection).unwrap();
            assert_eq!((groups(&space), size(&space, 0)), (1, GROUP_SIZE), "{protection:?}");
            assert_eq!(entry(&space, 7).is_valid(), protection != Protection::NONE);
        }
        holds(rig, &space, &[]);
        for (first, count) in [(3, 1), (0, 1), (15, 1), (0, 8), (9, 10)] {
            let part = |protection| space.mprotect(page(first), count * PAGE, protection).unwrap();
            for protection in [Protection::READ, Protection::NONE, READ_EXECUTE] {
                part(protection);
                assert_eq!(groups(&space), 0);
                let writable = |index| entry(&space, index).may_be_written();
                assert!((0..ALL).all(|index| writable(index) != (first..first + count).contains(&index)));
                part(READ_WRITE);
                assert_eq!(groups(&space), 1, "{first} {count} {protection:?}");
            }
        }
        // All of it, some of which is otherwise.
        space.mprotect(page(3), PAGE, Protection::READ).unwrap();
        space.mprotect(START, GROUP_SIZE, READ_WRITE).unwrap();
        assert_eq!(groups(&space), 1);
        holds(rig, &space, &[]);
        // A part of one that is not accessible.
        space.mprotect(START, GROUP_SIZE, Protection::NONE).unwrap();
        space.mprotect(page(5), PAGE, READ_WRITE).unwrap();
        assert_eq!((groups(&space), rig.read(&space, page(5))), (0, 6));
        space.mprotect(START, GROUP_SIZE, READ_WRITE).unwrap();
        holds(rig, &space, &[]);
    });
}

#[test]
fn what_is_given_up_in_part_is_unfolded_and_in_all_is_not() {
    both(&Rig::new(16), |rig| {
        let gone: [fn(&Rig, &Space, u64, u64); 3] = [
            |rig, space, first, count| space.munmap(&rig.cpu, page(first), count * PAGE).unwrap(),
            |rig, space, first, count| space.madvise_dontneed(&rig.cpu, page(first), count * PAGE).unwrap(),
            |rig, space, first, count| space.madvise_guard(&rig.cpu, page(first), count * PAGE, &|| false).unwrap(),
        ];
        for (kind, give_up) in gone.iter().enumerate() {
            for (first, count) in [(0, ALL), (0, 1), (15, 1), (7, 3), (0, 15), (1, 17), (0, 18)] {
                let space = written(rig);
                give_up(rig, &space, first, count);
                assert_eq!(groups(&space), 0);
                for index in 0..ALL {
                    let is_gone = (first..first + count).contains(&index);
                    assert_eq!(size(&space, index), if is_gone { 0 } else { PAGE }, "{kind}: {first} {count}: {index}");
                    assert!(is_gone || rig.read(&space, page(index)) == index as u8 + 1);
                }
                assert_eq!(rig.used(), (ALL + 4 - count) as usize + space.table_frames());
            }
        }
        // Empty again, a group comes again.
        let space = written(rig);
        space.madvise_dontneed(&rig.cpu, page(2), PAGE).unwrap();
        space.madvise_dontneed(&rig.cpu, START, GROUP_SIZE).unwrap();
        rig.write(&space, page(9), 9);
        assert_eq!((groups(&space), rig.read(&space, page(9)), rig.read(&space, page(8))), (1, 9, 0));
    });
}

#[test]
fn a_child_shares_the_group_and_a_store_makes_pages_or_reuses_it() {
    both(&Rig::new(16), |rig| {
        let space = written(rig);
        let child = space.fork(&rig.cpu).unwrap();
        assert_eq!([&space, &child].map(|space| groups(space)), [1, 1]);
        assert!([&space, &child].iter().all(|space| !entry(space, 4).may_be_written()));
        assert_eq!(entry(&space, 4).address(), entry(&child, 4).address());
        rig.write(&child, page(4), 99);
        assert_eq!([&space, &child].map(|space| groups(space)), [1, 0]);
        holds(rig, &space, &[]);
        holds(rig, &child, &[(4, 99)]);
        // One is its own again, the others are not.
        space.mprotect(START, GROUP_SIZE, Protection::READ).unwrap();
        space.mprotect(START, GROUP_SIZE, READ_WRITE).unwrap();
        assert!(groups(&space) == 1 && !entry(&space, 4).may_be_written());
        let grandchild = child.fork(&rig.cpu).unwrap();
        drop(child);
        drop(grandchild);
        // Alone: all of it at once.
        let frame = entry(&space, 4).address();
        rig.write(&space, page(4), 5);
        assert_eq!((groups(&space), entry(&space, 4).address()), (1, frame));
        assert!((0..ALL).all(|index| entry(&space, index).is_dirty() && entry(&space, index).may_be_written()));
        holds(rig, &space, &[]);
    });
}

/// One of the pages is the space's alone, the first or another, and the rest is shared.
#[test]
fn a_group_of_which_a_part_is_shared_is_not_reused() {
    both(&Rig::new(16), |rig| {
        for own in [0, 15] {
            let space = written(rig);
            let child = space.fork(&rig.cpu).unwrap();
            rig.write(&child, page(own), 98);
            rig.write(&space, page(own), 50);
            rig.write(&space, page(5), 51);
            assert_eq!([&space, &child].map(|space| groups(space)), [0, 0]);
            holds(rig, &space, &[(own, 50), (5, 51)]);
            holds(rig, &child, &[(own, 98)]);
        }
    });
}

/// Another CPU brings the group, or a page of it, at each moment of the first access.
#[test]
fn what_another_cpu_has_brought_stays() {
    let rig = Rig::new(16);
    let mut met = 0;
    for nth in 0..200 {
        let space = wanted(&rig, ALL);
        let store = {
            let space = space.clone();
            move |cpu: &Cpu| space.write_bytes(cpu, page(4), &[99]).unwrap()
        };
        let is_met = meet(&[&space], page(3), || rig.write(&space, page(3), 7), store, nth);
        met += usize::from(is_met);
        assert_eq!((groups(&space), rig.read(&space, page(3))), (1, 7));
        assert_eq!(rig.read(&space, page(4)), if is_met { 99 } else { 0 }, "at {nth}");
        assert_eq!(rig.used(), GROUP_PAGES + space.table_frames());
        drop(space);
    }
    assert!(met > 2, "{met}");
    ended(&rig);
}

/// An area that ends in a group, because it alone is in no child.
#[test]
fn a_child_has_no_part_of_a_group() {
    both(&Rig::new(16), |rig| {
        for (first, count) in [(0, 4), (5, 1), (9, 11)] {
            let space = written(rig);
            space.madvise_areas(&rig.cpu, page(first), count * PAGE, AreaAdvice::DontFork).unwrap();
            assert_eq!(groups(&space), 1);
            let child = space.fork(&rig.cpu).unwrap();
            assert_eq!([&space, &child].map(|space| groups(space)), [0, 0]);
            for index in 0..ALL {
                let is_there = !(first..first + count).contains(&index);
                assert_eq!(size(&child, index), if is_there { PAGE } else { 0 });
                assert_eq!(entry(&space, index).may_be_written(), !is_there);
                assert!(!is_there || rig.read(&child, page(index)) == index as u8 + 1);
            }
            holds(rig, &space, &[]);
        }
    });
}

#[test]
fn a_group_that_moves_stays_one_where_it_is_aligned() {
    both(&Rig::new(16), |rig| {
        // Pages moved, how far, and how many groups are at the new place.
        for (first, count, by, left) in [
            (0, ALL, 32, 1),
            (0, ALL, 512, 1),
            (0, ALL, 33, 0),
            (0, ALL, 17, 0),
            (2, 3, 32, 0),
            (0, 15, 512, 0),
            // Over the end of a table.
            (0, ALL, 248, 0),
        ] {
            let space = written(rig);
            let to = page(first + by);
            let mut request = Remap::new(page(first), count * PAGE, count * PAGE, Move::To(to), false).unwrap();
            assert_eq!(space.mremap(&rig.cpu, &mut request, &SpaceLimits::NONE), Ok(to));
            assert_eq!(groups(&space), left, "{first} {count} {by}");
            for index in 0..ALL {
                let is_moved = (first..first + count).contains(&index);
                let at = if is_moved { page(index + by) } else { page(index) };
                assert_eq!(rig.read(&space, at), index as u8 + 1, "{first} {count} {by}: {index}");
                assert_eq!(size(&space, index) == 0, is_moved);
            }
        }
    });
}

/// Neighbours at the addresses of a group, whose frames are neighbours too, and not aligned.
#[test]
fn pages_whose_frames_are_not_aligned_are_not_folded() {
    both(&Rig::new(16), |rig| {
        let space = wanted(rig, 2 * ALL);
        (0..2 * ALL).for_each(|index| rig.write(&space, page(index), index as u8));
        let bytes = 2 * GROUP_SIZE;
        let mut request = Remap::new(START, bytes, bytes, Move::To(page(33)), false).unwrap();
        space.mremap(&rig.cpu, &mut request, &SpaceLimits::NONE).unwrap();
        let frame = |index| entry(&space, index).address();
        assert!((48..64).all(|index| frame(index) == frame(48) + (index - 48) * PAGE));
        for protection in [Protection::READ, READ_WRITE] {
            space.mprotect(page(50), PAGE, protection).unwrap();
            assert_eq!(groups(&space), 0);
        }
        (0..2 * ALL).for_each(|index| assert_eq!(rig.read(&space, page(index + 33)), index as u8));
    });
}

#[test]
fn a_page_of_a_group_that_migrates_leaves_it() {
    both(&Rig::new(16), |rig| {
        for index in [0, 6, 15] {
            let space = written(rig);
            let child = space.fork(&rig.cpu).unwrap();
            let frame = entry(&space, index).address();
            assert_eq!(rig.migrate(&rig.cpu, &space, page(index)), Some(Ok(())));
            assert_eq!([&space, &child].map(|space| groups(space)), [0, 0]);
            assert!(entry(&space, index).address() != frame);
            assert_eq!(entry(&space, index).address(), entry(&child, index).address());
            holds(rig, &space, &[]);
            holds(rig, &child, &[]);
        }
    });
}

#[test]
fn a_block_is_split_into_groups_but_for_those_that_are_cut() {
    const BLOCK: VirtAddr = VirtAddr(0x10_0020_0000);
    both(&Rig::new(16), |rig| {
        let of_block = |index: u64| BLOCK + index * PAGE;
        for (first, count, left) in [(3, 1, 31), (0, 1, 31), (511, 1, 31), (32, 16, 32), (15, 2, 30), (3, 400, 30)] {
            let space = rig.space();
            let request = MapRequest { placement: Placement::Fixed(BLOCK), ..private(BLOCK_FRAMES as u64) };
            space.mmap(&rig.cpu, &request).unwrap();
            space.madvise_areas(&rig.cpu, BLOCK, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
            (0..512).for_each(|index| rig.write(&space, of_block(index), index as u8));
            assert_eq!(groups(&space), 0);
            space.mprotect(of_block(first), count * PAGE, Protection::READ).unwrap();
            assert_eq!(groups(&space), left, "{first} {count}");
            let mut writable = (0..512)
                .filter(|&index| space.tables().translate(of_block(index)).unwrap().descriptor.may_be_written());
            assert!(writable.all(|index| !(first..first + count).contains(&index)));
            (0..512).for_each(|index| assert_eq!(rig.read(&space, of_block(index)), index as u8));
        }
    });
}

/// No frame is free, and nothing fails.
#[test]
fn unfolding_takes_no_memory() {
    both(&Rig::new(8), |rig| {
        let space = written(rig);
        let child = space.fork(&rig.cpu).unwrap();
        let taken: Vec<_> = core::iter::from_fn(|| rig.frames.alloc_movable(&rig.cpu).ok()).collect();
        space.madvise_dontneed(&rig.cpu, page(3), PAGE).unwrap();
        assert_eq!([&space, &child].map(|space| groups(space)), [0, 1]);
        assert_eq!(handle_fault(&child, &rig.cpu, page(4), Access::Write), Ok(()));
        assert_eq!(groups(&child), 0);
        assert_eq!(handle_fault(&child, &rig.cpu, page(4), Access::Write), Err(super::super::FaultError::OutOfMemory));
        taken.into_iter().for_each(|frame| rig.frames.free(&rig.cpu, frame));
        drop((space, child));
    });
}

/// Changes the entry of a page of the group as the hardware would, or a test.
fn change(space: &Space, index: u64, change: impl Fn(Descriptor) -> Descriptor) {
    let cell = as_hardware(cell(space, index));
    cell.store(change(Descriptor(cell.load(Ordering::Relaxed))).0, Ordering::Relaxed);
}

fn change_all(space: &Space, work: impl Fn(Descriptor) -> Descriptor + Copy) {
    (0..ALL).for_each(|index| change(space, index, work));
}

/// The change of an entry before a fault.
type Made = fn(Descriptor) -> Descriptor;

/// The access flag, and dirt, by a fault: of all 16, in the entries, in this CPU's TLB and to each device.
#[test]
fn a_fault_sets_the_flags_of_all_and_announces_all() {
    let faults: [(Made, Access); 4] = [
        (Descriptor::old, Access::Read),
        (|entry| entry.clean().old(), Access::Write),
        (Descriptor::clean, Access::Write),
        (Descriptor::write_protected, Access::Write),
    ];
    both(&Rig::new(16), |rig| {
        for (make, access) in faults {
            let space = written(rig);
            change_all(&space, make);
            let listener = Subscription::<_, SpaceRef>::new(space.clone(), Recording::default(), 0).unwrap();
            let fault = || handle_fault(&space, &rig.cpu, page(6), access).unwrap();
            fault();
            let calls: Vec<_> = listener.take().into_iter().map(|call| (call.notified, call.range)).collect();
            let all = (START.0, START.0 + GROUP_SIZE);
            let upgraded = [Notified::Start(Event::ProtectionUpgrade), Notified::End(Event::ProtectionUpgrade)];
            assert_eq!(calls, [(Notified::SecondaryTlbs, all), (upgraded[0], all), (upgraded[1], all)]);
            for index in 0..ALL {
                let entry = entry(&space, index);
                assert!(entry.is_young() && (access == Access::Read || entry.is_dirty()), "{index}: {entry:?}");
            }
            assert_eq!(groups(&space), 1);
            // Nothing is left to do.
            fault();
            assert_eq!(listener.take().len(), 0);
            // The hardware sets them in one, and a walker that sets none reads another.
            for index in [0, 6, 15] {
                change_all(&space, |entry| entry.clean().old());
                change(&space, index, |entry| Descriptor((entry.0 | bits::AF) & !bits::RDONLY));
                handle_fault(&space, &rig.cpu, page(6), Access::Write).unwrap();
                assert_eq!(groups(&space), 1);
                assert!((0..ALL).all(|index| entry(&space, index).0 & bits::DIRTY != 0));
            }
        }
    });
}

/// Dirt in one entry alone is dirt in all when stores are permitted again: a walker finds the same in each.
#[test]
fn the_dirt_of_one_entry_is_that_of_all_when_all_may_be_written() {
    both(&Rig::new(16), |rig| {
        for index in [0, 7, 15] {
            let space = written(rig);
            change_all(&space, Descriptor::clean);
            change(&space, index, |entry| Descriptor(entry.0 & !bits::RDONLY));
            drop(space.fork(&rig.cpu).unwrap());
            assert!(groups(&space) == 1 && !entry(&space, 3).may_be_written());
            space.mprotect(START, GROUP_SIZE, Protection::READ).unwrap();
            space.mprotect(START, GROUP_SIZE, READ_WRITE).unwrap();
            assert!(groups(&space) == 1 && (0..ALL).all(|index| entry(&space, index).is_dirty()));
        }
    });
}

/// The hardware notes a store to the group in any one of its entries, also while that is unfolded or folded, until the
/// invalidation is complete: afterwards each page that was stored to is dirty.
#[test]
fn what_the_hardware_sets_in_one_entry_is_every_pages() {
    let works: [fn(&Rig, &Space); 7] = [
        |_, space| space.age(Aged::All, || false),
        |rig, space| space.madvise_dontneed(&rig.cpu, page(12), PAGE).unwrap(),
        |_, space| space.mprotect(page(12), PAGE, Protection::READ).unwrap(),
        |_, space| space.mprotect(START, GROUP_SIZE, Protection::READ).unwrap(),
        |_, space| space.mprotect(START, GROUP_SIZE, READ_WRITE.and(Protection::EXECUTE)).unwrap(),
        |rig, space| drop(space.fork(&rig.cpu).unwrap()),
        |rig, space| _ = rig.migrate(&rig.cpu, space, page(12)),
    ];
    both(&Rig::new(16), |rig| {
        for (kind, work) in works.iter().enumerate() {
            let mut changes = 0;
            for (nth, noted_in) in (0..120).flat_map(|nth| [0, 7, 15].map(|noted_in| (nth, noted_in))) {
                let space = written(rig);
                change_all(&space, |entry| entry.clean().old());
                let place = core::ptr::from_ref(cell(&space, noted_in)).addr();
                let range = core::ptr::from_ref(cell(&space, 0)).addr()..=core::ptr::from_ref(cell(&space, 15)).addr();
                let (left, changed) = (Rc::new(Cell::new(Some::<usize>(nth))), Rc::new(Cell::new(false)));
                let hook = {
                    let (left, changed) = (left.clone(), changed.clone());
                    move |moment: Moment<'_>| match moment {
                        // By then no TLB has the group.
                        Moment::Operation(Operation::DsbIsh) => left.set(None),
                        Moment::Read(read) if range.contains(&core::ptr::from_ref(read).addr()) => {
                            let Some(now) = left.get() else { return };
                            left.set(now.checked_sub(1));
                            // SAFETY: an entry of a table of the space, which stays.
                            #[allow(unsafe_code, reason = "an entry by its address")]
                            let cell =
                                unsafe { &*core::ptr::with_exposed_provenance::<core::sync::atomic::AtomicU64>(place) };
                            let before = cell.load(Ordering::Relaxed);
                            let may = before & bits::VALID != 0
                                && before & bits::WRITE != 0
                                && before & bits::CONTIGUOUS != 0;
                            if now == 0 && may {
                                cell.store((before | bits::AF) & !bits::RDONLY, Ordering::Relaxed);
                                changed.set(true);
                            }
                        }
                        Moment::Read(_) | Moment::Operation(_) | Moment::Wait | Moment::Step => {}
                    }
                };
                core::ptr::from_ref(cell(&space, noted_in)).expose_provenance();
                at_each_moment(hook, || work(rig, &space));
                changes += usize::from(changed.get());
                // A page that the call was not about, or any: by the group that is left, or by itself.
                let of_group = (0..ALL).any(|index| entry(&space, index).is_dirty());
                let is_dirty = if entry(&space, 3).is_contiguous() { of_group } else { entry(&space, 3).is_dirty() };
                assert!(
                    is_dirty || !changed.get(),
                    "{kind}: at load {nth}, in entry {noted_in}: {:?}",
                    entry(&space, 3)
                );
            }
            assert!(changes > 3, "{kind}: {changes}");
        }
    });
}

/// Another CPU stores to the group at each moment at which its table is not locked.
#[test]
fn a_store_beside_what_is_given_up_is_kept() {
    let rig = Rig::new(16);
    both(&rig, |rig| {
        let mut met = 0;
        for nth in 0..64 {
            let space = written(rig);
            let store = {
                let space = space.clone();
                move |cpu: &Cpu| space.write_bytes(cpu, page(4), &[99]).unwrap()
            };
            let discard = || space.madvise_dontneed(&rig.cpu, page(9), PAGE).unwrap();
            let is_met = meet(&[&space], page(4), discard, store, nth);
            met += usize::from(is_met);
            assert_eq!(groups(&space), 0);
            holds(rig, &space, if is_met { &[(4, 99), (9, 0)] } else { &[(9, 0)] });
        }
        assert!(met > 1);
    });
}

/// All that is done to a group while it changes: a break, the invalidation of each page in CPUs and devices, and the
/// entries.
#[test]
fn a_group_is_broken_and_invalidated_before_its_entries_are_pages() {
    for (live, expected) in [(&[branch::TLB_RANGE][..], [16, 16]), (&[branch::SIZE_CHANGE, branch::TLB_RANGE], [0, 0])]
    {
        let rig = Rig::new(16);
        let space = written(&rig);
        let seen = Rc::new(Cell::new([usize::MAX; 2]));
        let hook = {
            let (seen, space) = (seen.clone(), space.clone());
            let mut tlbis = 0;
            move |moment: Moment<'_>| {
                let invalid = || {
                    (0..ALL)
                        .filter(|&index| {
                            !Descriptor(as_hardware(cell(&space, index)).load(Ordering::Relaxed)).is_valid()
                        })
                        .count()
                };
                let Moment::Operation(operation) = moment else { return };
                match operation {
                    Operation::Tlbi(_) if tlbis == 0 => {
                        tlbis += 1;
                        seen.set([invalid(), seen.get()[1]]);
                    }
                    Operation::DsbIsh if seen.get()[1] == usize::MAX => seen.set([seen.get()[0], invalid()]),
                    _ => {}
                }
            }
        };
        let listener = Subscription::<_, SpaceRef>::new(space.clone(), Recording::default(), 0).unwrap();
        host::with(live, || at_each_moment(hook, || space.mprotect(page(9), PAGE, Protection::READ).unwrap()));
        assert_eq!(seen.get(), expected);
        let all = (START.0, START.0 + GROUP_SIZE);
        let calls: Vec<_> =
            listener.take().into_iter().filter(|call| call.range == all).map(|call| call.notified).collect();
        assert_eq!(calls, [Notified::SecondaryTlbs, Notified::Range]);
    }
}

/// The check that the sequences of calls make sees each way in which a group can be wrong.
#[test]
fn the_check_sees_what_is_wrong_with_a_group() {
    let rig = Rig::new(16);
    let space = written(&rig);
    for bit in [bits::CONTIGUOUS, bits::VALID, bits::AF, bits::RDONLY, bits::WRITE, bits::UXN, 1 << 12, 1 << 16] {
        for index in [0, 8, 15] {
            change(&space, index, |entry| Descriptor(entry.0 ^ bit));
            assert!(check_groups(&space).is_err(), "bit {bit:#x} of {index}");
            change(&space, index, |entry| Descriptor(entry.0 ^ bit));
        }
    }
    assert_eq!(groups(&space), 1);
    change_all(&space, |entry| Descriptor(entry.0 + PAGE));
    assert!(check_groups(&space).is_err());
    change_all(&space, |entry| Descriptor(entry.0 - PAGE));
    let mut present = vec![0; GROUP_PAGES];
    assert_eq!(space.mincore(START, &mut present), Ok(GROUP_PAGES));
}

/// Entries that a fork has made read-only are alike beside an area that may not be written, and become a group with it.
#[test]
fn a_store_to_an_area_makes_nothing_writable_beside_it() {
    both(&Rig::new(8), |rig| {
        let space = written(rig);
        drop(space.fork(&rig.cpu).unwrap());
        space.mprotect(page(0), ALL / 2 * PAGE, Protection::READ).unwrap();
        assert_eq!(groups(&space), 1);
        rig.write(&space, page(ALL - 1), 9);
        assert_eq!(space.write_bytes(&rig.cpu, page(0), &[9]), Err(FaultError::NotAllowed));
        for index in 0..ALL {
            assert!(index >= ALL / 2 || !entry(&space, index).may_be_written(), "page {index}");
        }
        holds(rig, &space, &[(ALL - 1, 9)]);
        drop(space);
        ended(rig);
    });
}

/// The fork itself splits a block, as the child has only a part of it: what the child has of it are groups.
#[test]
fn a_child_knows_of_the_groups_that_its_fork_has_made() {
    let rig = Rig::new(16);
    for advice in [AreaAdvice::WipeOnFork, AreaAdvice::DontFork] {
        let space = rig.space();
        let start = VirtAddr(0x10_0020_0000);
        let request = MapRequest { placement: Placement::Fixed(start), ..private(BLOCK_FRAMES as u64) };
        space.mmap(&rig.cpu, &request).unwrap();
        space.madvise_areas(&rig.cpu, start, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
        rig.write(&space, start, 1);
        space.madvise_areas(&rig.cpu, start + BLOCK_SIZE / 2, BLOCK_SIZE / 2, advice).unwrap();
        let child = space.fork(&rig.cpu).unwrap();
        assert_ne!(groups(&child), 0);
        child.madvise_dontneed(&rig.cpu, start, PAGE).unwrap();
        child.mprotect(start + (ALL + 1) * PAGE, PAGE, Protection::READ).unwrap();
        check_groups(&child).unwrap();
        let is_refused = child.write_bytes(&rig.cpu, start + (ALL + 1) * PAGE, &[1]);
        assert_eq!(is_refused, Err(FaultError::NotAllowed));
        rig.write(&child, start + PAGE, 2);
        assert_eq!((rig.read(&space, start), rig.read(&child, start)), (1, 0));
        drop((space, child));
        ended(&rig);
    }
}
