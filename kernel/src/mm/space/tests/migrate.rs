//! Pages that move to other frames, and what keeps a page where it is.

use core::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use granule_arch::descriptor::Descriptor;

use super::*;
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::mm::space::fault::serve;
use crate::mm::space::outcome::FaultOutcome;
use crate::mm::space::{AreaAdvice, MappedFile, Move, Remap, Seals, SpaceLimits, Terms, WriteAt};

/// Where the block of a space is.
const BLOCK: VirtAddr = VirtAddr(0x10_0020_0000);

fn entry(space: &Space, page: VirtAddr) -> Descriptor {
    space.page_tables().cell(page).map_or(Descriptor::EMPTY, |(_, cell)| space.mmu().load(cell))
}

fn frame(space: &Space, page: VirtAddr) -> PhysAddr {
    entry(space, page).address()
}

/// Migrates the page, which must succeed or fail so; `Ok` says that its frame is another one.
fn migrate(rig: &Rig, space: &Space, page: VirtAddr) -> Result<(), Unmovable> {
    let before = frame(space, page);
    let migrated = rig.migrate(&rig.cpu, space, page).unwrap();
    assert_eq!(migrated.is_ok(), frame(space, page) != before);
    migrated
}

#[test]
fn an_entry_is_the_same_with_another_frame() {
    let rig = Rig::new(4);
    let space = rig.space();
    let start = rig.map(&space, 6);
    (0..6).for_each(|page| rig.write(&space, start + page * PAGE, 10 + page as u8));
    space.mprotect(start + PAGE, PAGE, Protection::READ).unwrap();
    space.mprotect(start + 2 * PAGE, PAGE, Protection::NONE).unwrap();
    space.mprotect(start + 3 * PAGE, PAGE, READ_EXECUTE).unwrap();
    // Writable and clean, and old, as the hardware will see to.
    for (page, change) in [(4, Descriptor::clean as fn(Descriptor) -> Descriptor), (5, Descriptor::old)] {
        let cell = space.page_tables().cell(start + page * PAGE).unwrap().1;
        space.mmu().store(cell, change(space.mmu().load(cell)));
    }
    for page in (0..6).map(|page| start + page * PAGE) {
        let before = entry(&space, page);
        migrate(&rig, &space, page).unwrap();
        let after = entry(&space, page);
        assert_eq!(but_for_the_frame(after), but_for_the_frame(before), "{before:?} became {after:?}");
        assert_eq!(rig.spaces.record(after.address()).references(), 1);
    }
    space.mprotect(start, 6 * PAGE, READ_WRITE).unwrap();
    for page in 0..6 {
        assert_eq!(rig.read(&space, start + page * PAGE), 10 + page as u8);
        rig.write(&space, start + page * PAGE, 1);
    }
}

#[test]
fn a_page_moves_in_each_space_of_its_family() {
    let rig = Rig::new(4);
    let empty = rig.used();
    let space = rig.space();
    let page = rig.map(&space, 1);
    rig.write(&space, page, 1);
    let child = space.fork(&rig.cpu).unwrap();
    let grandchild = child.fork(&rig.cpu).unwrap();
    let other = rig.space();
    other.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(page), ..private(1) }).unwrap();
    rig.write(&other, page, 9);
    let others = frame(&other, page);
    migrate(&rig, &child, page).unwrap();
    assert_eq!(frame(&space, page), frame(&child, page));
    assert_eq!(frame(&space, page), frame(&grandchild, page));
    assert_eq!(rig.spaces.record(frame(&space, page)).references(), 3);
    assert_eq!((frame(&other, page), rig.read(&other, page)), (others, 9));
    // Shared still: a store takes a copy, whose origin is the same.
    rig.write(&child, page, 2);
    assert_eq!([&space, &child, &grandchild].map(|space| rig.read(space, page)), [1, 2, 1]);
    for each in [&space, &child, &grandchild] {
        migrate(&rig, each, page).unwrap();
    }
    drop(space);
    migrate(&rig, &grandchild, page).unwrap();
    assert_eq!(rig.read(&grandchild, page), 1);
    drop((child, grandchild, other));
    assert_eq!(rig.used(), empty);
}

#[test]
fn what_else_holds_a_page_keeps_it() {
    let rig = Rig::new(4);
    let space = rig.space();
    let page = rig.map(&space, 1);
    rig.write(&space, page, 1);
    let before = entry(&space, page);
    let held = rig.spaces.record(before.address());
    held.share();
    assert_eq!(migrate(&rig, &space, page), Err(Unmovable::Held));
    assert_eq!((entry(&space, page), held.references()), (before, 2));
    assert!(!held.put());
    migrate(&rig, &space, page).unwrap();

    let free = rig.frames.alloc(&rig.cpu).unwrap();
    let to = rig.frames.alloc(&rig.cpu).unwrap();
    // The kernel's own.
    assert_eq!(rig.spaces.migrate_page(&rig.cpu, free, to), Err(Unmovable::NotFound));
    assert_eq!(rig.spaces.migrate_page(&rig.cpu, space.root(), to), Err(Unmovable::NotFound));
    assert_eq!(rig.spaces.migrate_page(&rig.cpu, rig.spaces.zeros, to), Err(Unmovable::NotFound));
    let table = space.page_tables().cell(page).unwrap().0;
    assert_eq!(rig.spaces.migrate_page(&rig.cpu, table, to), Err(Unmovable::NotFound));
    rig.frames.free(&rig.cpu, free);
    assert_eq!(rig.spaces.migrate_page(&rig.cpu, free, to), Err(Unmovable::Free));
    assert_eq!(rig.spaces.migrate_page(&rig.cpu, PhysAddr(0), to), Err(Unmovable::Free));
}

#[test]
fn a_page_that_mremap_has_moved_moves_again() {
    let rig = Rig::new(4);
    let space = rig.space();
    let page = rig.map(&space, 1);
    rig.write(&space, page, 1);
    let to = page - 1000 * PAGE;
    let there = |space: &Space| {
        let mut request = Remap::new(page, PAGE, PAGE, Move::To(to), false).unwrap();
        space.mremap(&rig.cpu, &mut request, &SpaceLimits::NONE).unwrap();
    };
    there(&space);
    migrate(&rig, &space, to).unwrap();
    assert_eq!(rig.read(&space, to), 1);
    // Where one of two spaces has moved it, it is not found in the other.
    let space = rig.space();
    space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(page), ..private(1) }).unwrap();
    rig.write(&space, page, 2);
    let child = space.fork(&rig.cpu).unwrap();
    there(&child);
    assert_eq!(migrate(&rig, &space, page), Err(Unmovable::Held));
    assert_eq!((rig.read(&space, page), rig.read(&child, to)), (2, 2));
    rig.write(&child, to, 3);
    assert_eq!((rig.read(&space, page), rig.read(&child, to)), (2, 3));
}

/// A space with 2 MiB at [`BLOCK`], for which blocks are wanted, and the first page written.
fn with_block(rig: &Rig) -> SpaceRef {
    let space = rig.space();
    let request = MapRequest { placement: Placement::Fixed(BLOCK), ..private(BLOCK_FRAMES as u64) };
    space.mmap(&rig.cpu, &request).unwrap();
    space.madvise_areas(&rig.cpu, BLOCK, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
    rig.write(&space, BLOCK, 1);
    space
}

fn block(space: &Space) -> Descriptor {
    space.block_entry(BLOCK).expect("a block")
}

/// Migrates the block, which must succeed.
fn migrate_block(rig: &Rig, space: &Space) {
    let before = block(space);
    assert_eq!(rig.migrate(&rig.cpu, space, BLOCK), Some(Ok(())));
    assert_ne!(block(space).address(), before.address());
}

fn but_for_the_frame(entry: Descriptor) -> u64 {
    entry.0 & !granule_arch::descriptor::bits::ADDRESS
}

#[test]
fn pages_of_a_split_block_move() {
    let rig = Rig::new(16);
    let space = with_block(&rig);
    migrate_block(&rig, &space);
    space.mprotect(BLOCK, PAGE, Protection::READ).unwrap();
    for page in [0, 1, 255, 511] {
        migrate(&rig, &space, BLOCK + page * PAGE).unwrap();
    }
    assert_eq!(rig.read(&space, BLOCK), 1);
}

#[test]
fn a_block_is_the_same_with_other_frames() {
    let rig = Rig::new(16);
    let empty = rig.used();
    let space = with_block(&rig);
    let at = BLOCK + 300 * PAGE;
    rig.write(&space, at, 3);
    let used = rig.used();
    for protection in [READ_WRITE, Protection::READ, Protection::NONE, READ_EXECUTE, READ_WRITE] {
        space.mprotect(BLOCK, BLOCK_SIZE, protection).unwrap();
        let before = block(&space);
        migrate_block(&rig, &space);
        assert_eq!(but_for_the_frame(block(&space)), but_for_the_frame(before), "with {protection:?}");
        assert_eq!((rig.spaces.record(block(&space).address()).references(), rig.used()), (1, used));
    }
    let cell = space.page_tables().block_cell(BLOCK).unwrap().cell;
    space.mmu().store(cell, block(&space).old());
    migrate_block(&rig, &space);
    assert!(!block(&space).is_young());
    assert_eq!((rig.read(&space, BLOCK), rig.read(&space, at)), (1, 3));
    drop(space);
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!(rig.used(), empty);
}

#[test]
fn a_block_moves_in_each_space_of_its_family() {
    let rig = Rig::new(16);
    let empty = rig.used();
    let space = with_block(&rig);
    let child = space.fork(&rig.cpu).unwrap();
    migrate_block(&rig, &child);
    assert_eq!(block(&space).address(), block(&child).address());
    assert_eq!(rig.spaces.record(block(&space).address()).references(), 2);
    assert!(!block(&space).may_be_written());
    // Shared still.
    rig.write(&child, BLOCK, 2);
    assert_eq!((rig.read(&space, BLOCK), rig.read(&child, BLOCK)), (1, 2));
    migrate_block(&rig, &child);
    migrate_block(&rig, &space);
    assert_eq!((rig.read(&space, BLOCK), rig.read(&child, BLOCK)), (1, 2));
    drop(child);
    // Split in one of them: its frames are held one by one.
    let child = space.fork(&rig.cpu).unwrap();
    child.mprotect(BLOCK, PAGE, Protection::READ).unwrap();
    assert_eq!(rig.migrate(&rig.cpu, &space, BLOCK), Some(Err(Unmovable::NotFound)));
    rig.write(&space, BLOCK, 4);
    assert_eq!((rig.read(&space, BLOCK), rig.read(&child, BLOCK)), (4, 1));
    drop((space, child));
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!(rig.used(), empty);
}

#[test]
fn what_else_holds_a_block_keeps_it() {
    let rig = Rig::new(16);
    let space = with_block(&rig);
    let before = block(&space);
    let held = rig.spaces.record(before.address());
    held.share();
    assert_eq!(rig.migrate(&rig.cpu, &space, BLOCK), Some(Err(Unmovable::Held)));
    assert_eq!((block(&space).address(), held.references()), (before.address(), 2));
    assert!(!held.put());
    rig.write(&space, BLOCK, 2);
    // Of another owner by now: what is noted of it is of one before.
    let (from, to) = (before.address(), rig.frames.alloc_splittable(&rig.cpu).unwrap());
    space.munmap(&rig.cpu, BLOCK, BLOCK_SIZE).unwrap();
    assert_eq!(rig.spaces.migrate_block(&rig.cpu, from, to), Err(Unmovable::NotFound));
    assert_eq!(rig.spaces.migrate_block(&rig.cpu, to, from), Err(Unmovable::NotFound));
    assert_eq!(rig.spaces.migrate_block(&rig.cpu, PhysAddr(0), to), Err(Unmovable::NotFound));
}

/// A discard of the whole and of a part, and a store, between any two steps of a block's migration.
#[test]
fn anything_may_happen_to_a_block_that_is_on_its_way() {
    type Other = fn(&SpaceRef, &Cpu);
    let others: [(Other, u8); 3] = [
        (|space, cpu| space.madvise_dontneed(cpu, BLOCK, BLOCK_SIZE).unwrap(), 0),
        (|space, cpu| space.madvise_dontneed(cpu, BLOCK, PAGE).unwrap(), 0),
        (|space, cpu| _ = serve(space, cpu, BLOCK, Access::Write), 1),
    ];
    for (number, (other, expected)) in others.into_iter().enumerate() {
        for is_forked in [false, true] {
            for nth in 0.. {
                let rig = Rig::new(16);
                let empty = rig.used();
                let space = with_block(&rig);
                let last = BLOCK + 511 * PAGE;
                rig.write(&space, last, 7);
                let child = is_forked.then(|| space.fork(&rig.cpu).unwrap());
                let spaces: Vec<_> = core::iter::once(&space).chain(&child).collect();
                let met = meet(
                    &spaces,
                    BLOCK,
                    || _ = rig.migrate(&rig.cpu, &space, BLOCK),
                    {
                        let space = space.clone();
                        move |cpu: &Cpu| other(&space, cpu)
                    },
                    nth,
                );
                let values = (rig.read(&space, BLOCK), rig.read(&space, last));
                let gone = number == 0 && met;
                let case = (number, is_forked, nth);
                assert_eq!(values, if met { (expected, if gone { 0 } else { 7 }) } else { (1, 7) }, "{case:?}");
                if let Some(child) = &child {
                    rig.write(&space, last, 8);
                    assert_eq!((rig.read(child, BLOCK), rig.read(child, last)), (1, 7), "{case:?}");
                }
                drop((space, child));
                rig.frames.drain_cpu(&Cpu::new(CpuId(1)));
                rig.frames.drain_cpu(&rig.cpu);
                assert_eq!(rig.used(), empty, "{case:?}");
                if !met {
                    assert!(nth > 5, "few steps: {nth}");
                    break;
                }
            }
        }
    }
}

/// A discard of a page that is on its way, between any two steps.
#[test]
fn a_page_may_go_while_it_is_on_its_way() {
    for nth in 0.. {
        let rig = Rig::new(4);
        let empty = rig.used();
        let space = rig.space();
        let page = rig.map(&space, 2);
        (0..2).for_each(|index| rig.write(&space, page + index * PAGE, 1));
        let child = space.fork(&rig.cpu).unwrap();
        let discards = {
            let child = child.clone();
            move |cpu: &Cpu| child.madvise_dontneed(cpu, page, PAGE).unwrap()
        };
        let met = meet(&[&space, &child], page, || _ = rig.migrate(&rig.cpu, &space, page), discards, nth);
        assert_eq!([&space, &child].map(|space| rig.read(space, page)), if met { [1, 0] } else { [1, 1] });
        rig.write(&space, page, 3);
        drop((space, child));
        rig.frames.drain_cpu(&Cpu::new(CpuId(1)));
        assert_eq!(rig.used(), empty);
        if !met {
            assert!(nth > 10, "few steps: {nth}");
            break;
        }
    }
}

#[test]
fn a_page_of_an_object_moves_in_all_that_maps_it() {
    let rig = Rig::new(4);
    let empty = rig.used();
    let file = rig.spaces.create_object(&rig.cpu, 3 * PAGE, None, Seals(0)).unwrap();
    let (space, other) = (rig.space(), rig.space());
    let terms = Terms { file: Some(MappedFile { object: &file, first_page: 0, may_write: true }), ..Terms::NONE };
    let map = |space: &Space, sharing| {
        let request = MapRequest { sharing, ..private(3) };
        space.mmap_within(&rig.cpu, &request, &terms, &|| false).unwrap()
    };
    let page = map(&space, Sharing::Shared) + PAGE;
    let (there, copied, read) = (
        map(&other, Sharing::Shared) + PAGE,
        map(&other, Sharing::Private) + PAGE,
        map(&other, Sharing::Private) + PAGE,
    );
    rig.write(&space, page, 1);
    rig.write(&other, copied, 2);
    assert_eq!((rig.read(&other, there), rig.read(&other, read)), (1, 1));
    let (old, copy) = (frame(&space, page), frame(&other, copied));
    let held = rig.spaces.record(old);
    assert_eq!((frame(&other, read), held.references()), (old, 4));
    // Something besides has it.
    held.share();
    assert_eq!(rig.migrate(&rig.cpu, &space, page), Some(Err(Unmovable::Held)));
    assert_eq!((rig.read(&space, page), frame(&space, page), held.references()), (1, old, 3));
    assert!(!held.put());
    assert_eq!((rig.read(&other, there), rig.read(&other, read)), (1, 1));

    assert_eq!(rig.migrate(&rig.cpu, &space, page), Some(Ok(())));
    assert_eq!(held.references(), 0);
    for (space, page) in [(&space, page), (&other, there), (&other, read)] {
        assert_eq!(entry(space, page), Descriptor::EMPTY);
        assert_eq!(rig.read(space, page), 1);
        assert_ne!(frame(space, page), old);
    }
    assert_eq!(frame(&space, page), frame(&other, read));
    assert_eq!((frame(&other, copied), rig.read(&other, copied)), (copy, 2));
    let mut byte = [0];
    assert_eq!((file.read(PAGE, &mut byte), byte), (1, [1]));
    // Again, from where it is now; and the private copy.
    assert_eq!(rig.migrate(&rig.cpu, &other, read), Some(Ok(())));
    migrate(&rig, &other, copied).unwrap();
    assert_eq!((rig.read(&space, page), rig.read(&other, copied)), (1, 2));
    // A frame that the object has lost and something else still holds is no page of it.
    let old = frame(&space, page);
    let held = rig.spaces.record(old);
    held.share();
    file.truncate(&rig.cpu, PAGE).unwrap();
    let to = rig.frames.alloc(&rig.cpu).unwrap();
    assert_eq!(rig.spaces.migrate_page(&rig.cpu, old, to), Err(Unmovable::NotFound));
    rig.frames.free(&rig.cpu, to);
    rig.spaces.drop_frame(&rig.cpu, old);
    drop((space, other, file));
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!(rig.used(), empty);
}

/// Between any two steps: the page goes, or a program that has not mapped it yet asks for it.
#[test]
fn a_page_of_an_object_may_go_while_it_is_on_its_way() {
    for nth in 0.. {
        let rig = Rig::new(4);
        let empty = rig.used();
        let file = rig.spaces.create_object(&rig.cpu, PAGE, None, Seals(0)).unwrap();
        let (space, other) = (rig.space(), rig.space());
        let terms = Terms { file: Some(MappedFile { object: &file, first_page: 0, may_write: true }), ..Terms::NONE };
        let map = |space: &Space| {
            let request = MapRequest { sharing: Sharing::Shared, ..private(1) };
            space.mmap_within(&rig.cpu, &request, &terms, &|| false).unwrap()
        };
        let (page, there) = (map(&space), map(&other));
        rig.write(&space, page, 5);
        // One step of a fault: what waits is tried again later.
        let asks = {
            let other = other.clone();
            move |cpu: &Cpu| {
                let outcome = serve(&other, cpu, there, Access::Write);
                assert!(matches!(outcome, FaultOutcome::Served | FaultOutcome::Migrating), "{outcome:?}");
            }
        };
        let met = meet(&[&space, &other], page, || _ = rig.migrate(&rig.cpu, &space, page), asks, nth);
        rig.write(&other, there + 1, 6);
        assert_eq!((rig.read(&space, page), rig.read(&space, page + 1)), (5, 6), "asked at step {nth}");
        drop((space, other, file));
        rig.frames.drain_cpu(&Cpu::new(CpuId(1)));
        rig.frames.drain_cpu(&rig.cpu);
        assert_eq!(rig.used(), empty);
        if !met {
            assert!(nth > 5, "few steps: {nth}");
            break;
        }
    }
}

#[test]
fn a_hole_leaves_a_private_copy_that_is_on_its_way() {
    for nth in 0.. {
        let rig = Rig::new(4);
        let file = rig.spaces.create_object(&rig.cpu, PAGE, None, Seals(0)).unwrap();
        let space = rig.space();
        let terms = Terms { file: Some(MappedFile { object: &file, first_page: 0, may_write: true }), ..Terms::NONE };
        let page = space.mmap_within(&rig.cpu, &private(1), &terms, &|| false).unwrap();
        rig.write(&space, page, 5);
        let punch = {
            let file = file.clone();
            move |cpu: &Cpu| file.punch_hole(cpu, 0, PAGE).unwrap()
        };
        let met = meet(&[&space], page, || assert_eq!(migrate(&rig, &space, page), Ok(())), punch, nth);
        assert_eq!(rig.read(&space, page), 5, "punched at step {nth}");
        if !met {
            break;
        }
    }
}

#[test]
fn cut_blocks_become_whole() {
    const PAGES: u64 = 4 * BLOCK_FRAMES as u64;
    let rig = Rig::new(24);
    let (empty, blocks) = (rig.used(), rig.frames.stats().free_blocks);
    let space = rig.space();
    let start = rig.map(&space, PAGES);
    let value = |page: u64| (page % 251) as u8 + 1;
    (0..PAGES).for_each(|page| rig.write(&space, start + page * PAGE, value(page)));
    (0..PAGES).filter(|page| page % 4 != 0).for_each(|page| {
        space.madvise_dontneed(&rig.cpu, start + page * PAGE, PAGE).unwrap();
    });
    rig.frames.drain_cpu(&rig.cpu);
    // A page that cannot be moved keeps its block, and nothing else.
    let held = rig.spaces.record(frame(&space, start + PAGES / 2 * PAGE));
    held.share();
    let before = rig.frames.stats();
    let whole = rig.spaces.compact(&rig.cpu, usize::MAX, &|| false);
    let after = rig.frames.stats();
    assert!(whole >= 2, "{before} became {after}");
    assert_eq!((after.free, after.free_blocks), (before.free, before.free_blocks + whole));
    for page in 0..PAGES {
        let expected = if page % 4 == 0 { value(page) } else { 0 };
        assert_eq!(rig.read(&space, start + page * PAGE), expected, "page {page}");
    }
    // Nothing is isolated any more: every frame can be taken.
    let mut all = Vec::new();
    while let Ok(frame) = rig.frames.alloc(&rig.cpu) {
        all.push(frame);
    }
    assert_eq!(rig.frames.stats().free, 0);
    all.into_iter().for_each(|frame| rig.frames.free(&rig.cpu, frame));
    assert!(!held.put());
    drop(space);
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!(rig.used(), empty);
    assert!(rig.frames.stats().free_blocks >= blocks - 1, "what came back is whole again");
}

/// Runs `users`, each as a CPU of its own, while another CPU migrates `pages` of `space` in turn.
fn while_pages_move(rig: &Rig, space: &Space, pages: &[VirtAddr], users: &[&(dyn Fn(&Cpu) + Sync)]) {
    let done = AtomicBool::new(false);
    let moved = thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let cpu = Cpu::new(CpuId(7));
            let mut moved = 0_u64;
            while !done.load(Ordering::Relaxed) || moved == 0 {
                moved +=
                    pages.iter().map(|&page| u64::from(rig.migrate(&cpu, space, page) == Some(Ok(())))).sum::<u64>();
            }
            rig.frames.drain_cpu(&cpu);
            moved
        });
        let users = users.iter().zip(1..).map(|(user, number)| {
            scope.spawn(move || {
                let cpu = Cpu::new(CpuId(number));
                user(&cpu);
                rig.frames.drain_cpu(&cpu);
            })
        });
        let users: Vec<_> = users.collect();
        // All of them, before one that has failed ends the test.
        let ends: Vec<_> = users.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(Result::unwrap);
        mover.join().unwrap()
    });
    assert!(moved > 0);
}

/// Threads that use their pages, fork and move them.
#[test]
fn programs_go_on_while_their_pages_move() {
    const PAGES: u64 = 8;
    let rig = Rig::new(8);
    let empty = rig.used();
    let space = rig.space();
    let start = rig.map(&space, 4 * PAGES);
    let uses = |number: u64, cpu: &Cpu| {
        let own = start + number * PAGES * PAGE;
        for round in 0..600_u64 {
            let at = own + round % PAGES * PAGE;
            let value = (round | 1).to_le_bytes();
            for offset in [0, PAGE - 8] {
                space.write_bytes(cpu, at + offset, &value).unwrap();
            }
            thread::yield_now();
            for offset in [0, PAGE - 8] {
                assert_eq!(eight(&space, cpu, at + offset), value, "round {round} of {number}");
            }
            if round % 7 == 0 {
                space.madvise_dontneed(cpu, at, PAGE).unwrap();
            }
            if number == 0 && round % 7 == 3 {
                let child = space.fork(cpu).unwrap();
                assert_eq!(eight(&child, cpu, at), value, "the child in round {round}");
                child.write_bytes(cpu, at, &[7; 8]).unwrap();
            }
            if number == 0 && round % 5 == 1 {
                let away = start - 64 * PAGE;
                for (from, to) in [(at, away), (away, at)] {
                    let mut request = Remap::new(from, PAGE, PAGE, Move::To(to), false).unwrap();
                    space.mremap(cpu, &mut request, &SpaceLimits::NONE).unwrap();
                }
                let expected = if round % 7 == 0 { [0; 8] } else { value };
                assert_eq!(eight(&space, cpu, at), expected, "moved in round {round}");
            }
            if number == 0 && round % 11 == 0 {
                space.mprotect(at, PAGE, Protection::NONE).unwrap();
                space.mprotect(at, PAGE, READ_WRITE).unwrap();
            }
        }
    };
    let pages: Vec<_> = (0..4 * PAGES).map(|page| start + page * PAGE).collect();
    while_pages_move(&rig, &space, &pages, &[&|cpu| uses(0, cpu), &|cpu| uses(1, cpu), &|cpu| uses(2, cpu)]);
    drop(space);
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!(rig.spaces.counts(), [0; 3]);
    assert_eq!(rig.used(), empty);
}

fn eight(space: &Space, cpu: &Cpu, at: VirtAddr) -> [u8; 8] {
    let mut bytes = [0; 8];
    space.read_bytes(cpu, at, &mut bytes).unwrap();
    bytes
}

/// A child has its parent's page, on its way or not, and none that the parent writes to.
#[test]
fn forks_go_on_while_the_page_moves() {
    const FORKS: u32 = 3000;
    let rig = Rig::new(8);
    let empty = rig.used();
    let space = rig.space();
    let page = rig.map(&space, 1);
    rig.write(&space, page, 1);
    let forks = |cpu: &Cpu| {
        let write = |space: &Space, value| space.write_bytes(cpu, page, &[value]).unwrap();
        let read = |space: &Space| eight(space, cpu, page)[0];
        for fork in 0..FORKS {
            let value = (fork % 250) as u8;
            write(&space, value);
            let child = space.fork(cpu).unwrap();
            write(&space, 255);
            assert_eq!((read(&child), read(&space)), (value, 255));
            write(&child, 254);
            assert_eq!((read(&child), read(&space)), (254, 255));
        }
    };
    while_pages_move(&rig, &space, &[page], &[&forks]);
    drop(space);
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!(rig.used(), empty);
}

/// Two spaces that share pages of an object, of which one has private copies too, and calls on the object.
#[test]
fn an_object_is_used_while_its_pages_move() {
    const PAGES: u64 = 4;
    let rig = Rig::new(8);
    let empty = rig.used();
    let file = rig.spaces.create_object(&rig.cpu, 2 * PAGES * PAGE, None, Seals(0)).unwrap();
    let spaces = [rig.space(), rig.space()];
    let terms = Terms { file: Some(MappedFile { object: &file, first_page: 0, may_write: true }), ..Terms::NONE };
    let map = |space: &Space, sharing| {
        let request = MapRequest { sharing, ..private(2 * PAGES) };
        space.mmap_within(&rig.cpu, &request, &terms, &|| false).unwrap()
    };
    let shared = [map(&spaces[0], Sharing::Shared), map(&spaces[1], Sharing::Shared)];
    let private = map(&spaces[1], Sharing::Private);
    (0..2 * PAGES).for_each(|page| rig.write(&spaces[0], shared[0] + page * PAGE, 1));
    // The first half: what one has stored the other reads, and the file.
    let stores = |cpu: &Cpu| {
        for round in 0..1500_u64 {
            let (page, value) = (round % PAGES * PAGE, (round | 1).to_le_bytes());
            spaces[0].write_bytes(cpu, shared[0] + page, &value).unwrap();
            assert_eq!(eight(&spaces[1], cpu, shared[1] + page), value, "round {round}");
            let mut bytes = [0; 8];
            assert_eq!((file.read(page, &mut bytes), bytes), (8, value), "the file in round {round}");
            assert_eq!(eight(&spaces[1], cpu, private + page), value, "what is not copied, in round {round}");
            let written = file.write(cpu, WriteAt::Byte(page + 8), &value, 8, u64::MAX);
            assert_eq!(written, Ok((page + 8, 8)));
            assert_eq!(eight(&spaces[0], cpu, shared[0] + page + 8), value, "written to the file in round {round}");
        }
    };
    // The second half: holes, and private copies.
    let punches = |cpu: &Cpu| {
        for round in 0..1500_u64 {
            let (page, value) = ((PAGES + round % PAGES) * PAGE, (round | 1).to_le_bytes());
            spaces[1].write_bytes(cpu, shared[1] + page, &value).unwrap();
            spaces[1].write_bytes(cpu, private + page, &value[..1]).unwrap();
            assert_eq!(eight(&spaces[0], cpu, shared[0] + page), value, "round {round}");
            file.punch_hole(cpu, page, page + PAGE).unwrap();
            assert_eq!(eight(&spaces[0], cpu, shared[0] + page), [0; 8], "a hole in round {round}");
            assert_eq!(eight(&spaces[1], cpu, private + page), value, "copied in round {round}");
            spaces[1].madvise_dontneed(cpu, private + page, PAGE).unwrap();
        }
    };
    let pages: Vec<_> = (0..2 * PAGES).map(|page| shared[0] + page * PAGE).collect();
    while_pages_move(&rig, &spaces[0], &pages, &[&stores, &punches]);
    drop((spaces, file));
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!(rig.used(), empty);
}

/// As [`programs_go_on_while_their_pages_move`], with blocks, which are split in part, discarded and moved.
#[test]
fn programs_go_on_while_their_blocks_move() {
    const PAGES: u64 = BLOCK_FRAMES as u64;
    let rig = Rig::new(32);
    let empty = rig.used();
    let space = rig.space();
    let request = MapRequest { placement: Placement::Fixed(BLOCK), ..private(2 * PAGES) };
    space.mmap(&rig.cpu, &request).unwrap();
    space.madvise_areas(&rig.cpu, BLOCK, 2 * BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
    let uses = |number: u64, cpu: &Cpu| {
        let own = BLOCK + number * BLOCK_SIZE;
        for round in 0..200_u64 {
            let value = (round | 1).to_le_bytes();
            let places = [0, 1 + round % 510, 511].map(|page| own + page * PAGE);
            places.iter().for_each(|&at| space.write_bytes(cpu, at, &value).unwrap());
            thread::yield_now();
            let holds = |space: &Space, value| places.iter().all(|&at| eight(space, cpu, at) == value);
            assert!(holds(&space, value), "round {round} of {number}");
            if number == 0 && round % 5 == 0 {
                let child = space.fork(cpu).unwrap();
                space.write_bytes(cpu, own, &[9; 8]).unwrap();
                assert!(holds(&child, value), "the child in round {round}");
                child.write_bytes(cpu, own + 511 * PAGE, &[7; 8]).unwrap();
                space.write_bytes(cpu, own, &value).unwrap();
                assert!(holds(&space, value), "after the child in round {round}");
            }
            if number == 0 && round % 7 == 0 {
                let away = BLOCK + 8 * BLOCK_SIZE;
                for (from, to) in [(own, away), (away, own)] {
                    let mut request = Remap::new(from, BLOCK_SIZE, BLOCK_SIZE, Move::To(to), false).unwrap();
                    space.mremap(cpu, &mut request, &SpaceLimits::NONE).unwrap();
                }
                assert!(holds(&space, value), "moved in round {round}");
            }
            match round % 16 {
                3 => {
                    space.mprotect(own, BLOCK_SIZE, Protection::READ).unwrap();
                    space.mprotect(own, BLOCK_SIZE, READ_WRITE).unwrap();
                }
                9 => {
                    space.mprotect(own + PAGE, PAGE, Protection::NONE).unwrap();
                    space.mprotect(own + PAGE, PAGE, READ_WRITE).unwrap();
                }
                13 => {
                    space.madvise_dontneed(cpu, own, BLOCK_SIZE).unwrap();
                    assert!(holds(&space, [0; 8]), "discarded in round {round}");
                }
                _ => {}
            }
        }
    };
    let pages = [BLOCK, BLOCK + BLOCK_SIZE];
    while_pages_move(&rig, &space, &pages, &[&|cpu| uses(0, cpu), &|cpu| uses(1, cpu)]);
    drop(space);
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!(rig.spaces.counts(), [0; 3]);
    assert_eq!(rig.used(), empty);
}
