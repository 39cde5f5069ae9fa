//! Pages that move to other frames, and what keeps a page where it is.

use core::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use granule_arch::descriptor::Descriptor;

use super::*;
use crate::mm::page_block::BLOCK_FRAMES;
use crate::mm::space::{MappedFile, Move, Remap, Seals, SpaceLimits, Terms};

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
        let but_for_the_frame = |entry: Descriptor| entry.0 & !granule_arch::descriptor::bits::ADDRESS;
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
    assert!(!held.let_go());
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
    // An object's.
    let shared = space.mmap(&rig.cpu, &MapRequest { sharing: Sharing::Shared, ..private(1) }).unwrap();
    rig.write(&space, shared, 1);
    assert_eq!(migrate(&rig, &space, shared), Err(Unmovable::NotFound));
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

#[test]
fn pages_of_a_split_block_move() {
    let rig = Rig::new(16);
    let space = rig.space();
    let start = VirtAddr(0x10_0020_0000);
    let pages = BLOCK_FRAMES as u64;
    space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(start), ..private(pages) }).unwrap();
    space.madvise_areas(&rig.cpu, start, pages * PAGE, crate::mm::space::AreaAdvice::HugePage).unwrap();
    rig.write(&space, start, 1);
    assert_eq!(rig.migrate(&rig.cpu, &space, start), None, "a block has no entry of a page");
    space.mprotect(start, PAGE, Protection::READ).unwrap();
    for page in [0, 1, 255, 511] {
        migrate(&rig, &space, start + page * PAGE).unwrap();
    }
    assert_eq!(rig.read(&space, start), 1);
}

/// What is done to a page that is on its way, between any two steps.
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
    // What cannot be moved keeps its block, and nothing else.
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
    // Nothing is isolated any more: every frame can be had.
    let mut all = Vec::new();
    while let Ok(frame) = rig.frames.alloc(&rig.cpu) {
        all.push(frame);
    }
    assert_eq!(rig.frames.stats().free, 0);
    all.into_iter().for_each(|frame| rig.frames.free(&rig.cpu, frame));
    assert!(!held.let_go());
    drop(space);
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!(rig.used(), empty);
    assert!(rig.frames.stats().free_blocks >= blocks - 1, "what came back is whole again");
}

/// Threads that use their pages, fork and move them, while another migrates all of them.
#[test]
fn programs_go_on_while_their_pages_move() {
    const PAGES: u64 = 8;
    let rig = Rig::new(8);
    let empty = rig.used();
    let done = AtomicBool::new(false);
    let space = rig.space();
    let start = rig.map(&space, 4 * PAGES);
    let moved = thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let cpu = Cpu::new(CpuId(5));
            let mut moved = 0_u64;
            while !done.load(Ordering::Relaxed) || moved == 0 {
                for page in 0..4 * PAGES {
                    moved += u64::from(rig.migrate(&cpu, &space, start + page * PAGE) == Some(Ok(())));
                }
            }
            rig.frames.drain_cpu(&cpu);
            moved
        });
        let users: Vec<_> = (0..3_u64)
            .map(|number| {
                let (space, rig) = (&space, &rig);
                scope.spawn(move || {
                    let cpu = Cpu::new(CpuId(1 + number as u32));
                    let own = start + number * PAGES * PAGE;
                    for round in 0..600_u64 {
                        let at = own + round % PAGES * PAGE;
                        let value = (round | 1).to_le_bytes();
                        for offset in [0, PAGE - 8] {
                            space.write_bytes(&cpu, at + offset, &value).unwrap();
                        }
                        thread::yield_now();
                        for offset in [0, PAGE - 8] {
                            let mut bytes = [0; 8];
                            space.read_bytes(&cpu, at + offset, &mut bytes).unwrap();
                            assert_eq!(bytes, value, "round {round} of {number}");
                        }
                        if round % 7 == 0 {
                            space.madvise_dontneed(&cpu, at, PAGE).unwrap();
                        }
                        if number == 0 && round % 7 == 3 {
                            let child = space.fork(&cpu).unwrap();
                            let mut bytes = [0; 8];
                            child.read_bytes(&cpu, at, &mut bytes).unwrap();
                            assert_eq!(bytes, value, "the child in round {round}");
                            child.write_bytes(&cpu, at, &[7; 8]).unwrap();
                        }
                        if number == 0 && round % 5 == 1 {
                            let away = start - 64 * PAGE;
                            for (from, to) in [(at, away), (away, at)] {
                                let mut request = Remap::new(from, PAGE, PAGE, Move::To(to), false).unwrap();
                                space.mremap(&cpu, &mut request, &SpaceLimits::NONE).unwrap();
                            }
                            let mut bytes = [0; 8];
                            space.read_bytes(&cpu, at, &mut bytes).unwrap();
                            assert_eq!(bytes, if round % 7 == 0 { [0; 8] } else { value }, "moved in round {round}");
                        }
                        if number == 0 && round % 11 == 0 {
                            space.mprotect(at, PAGE, Protection::NONE).unwrap();
                            space.mprotect(at, PAGE, READ_WRITE).unwrap();
                        }
                    }
                    rig.frames.drain_cpu(&cpu);
                })
            })
            .collect();
        let ends: Vec<_> = users.into_iter().map(thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        ends.into_iter().for_each(Result::unwrap);
        mover.join().unwrap()
    });
    assert!(moved > 0);
    drop(space);
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!(rig.spaces.counts(), [0; 3]);
    assert_eq!(rig.used(), empty);
}

/// A child has its parent's page, on its way or not, and none that the parent writes to.
#[test]
fn forks_go_on_while_the_page_moves() {
    const FORKS: u32 = 3000;
    let rig = Rig::new(8);
    let empty = rig.used();
    let done = AtomicBool::new(false);
    let space = rig.space();
    let page = rig.map(&space, 1);
    thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let cpu = Cpu::new(CpuId(5));
            while !done.load(Ordering::Relaxed) {
                _ = rig.migrate(&cpu, &space, page);
            }
            rig.frames.drain_cpu(&cpu);
        });
        let forks = scope.spawn(|| {
            let cpu = Cpu::new(CpuId(1));
            let write = |space: &Space, value| space.write_bytes(&cpu, page, &[value]).unwrap();
            let read = |space: &Space| {
                let mut byte = [0];
                space.read_bytes(&cpu, page, &mut byte).unwrap();
                byte[0]
            };
            for fork in 0..FORKS {
                let value = (fork % 250) as u8;
                write(&space, value);
                let child = space.fork(&cpu).unwrap();
                write(&space, 255);
                assert_eq!((read(&child), read(&space)), (value, 255));
                write(&child, 254);
                assert_eq!((read(&child), read(&space)), (254, 255));
            }
            rig.frames.drain_cpu(&cpu);
        });
        let end = forks.join();
        done.store(true, Ordering::Relaxed);
        end.unwrap();
        mover.join().unwrap();
    });
    drop(space);
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!(rig.used(), empty);
}
