//! Pages that become a block: their contents and frames, and what there is where that fails.

use super::pressure::TakenFrames;
use super::*;

const ALIVE: &dyn Fn() -> bool = &|| false;

/// A space with one block's room at [`START`], in which each third page holds its number.
fn with_pages(rig: &Rig) -> SpaceRef {
    let space = rig.space();
    space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(START), ..private(BLOCK_PAGES) }).unwrap();
    (0..BLOCK_PAGES).step_by(3).for_each(|index| rig.write(&space, page(index), index as u8));
    space
}

fn collapse(rig: &Rig, space: &Space) -> Result<(), SpaceError> {
    space.madvise_collapse(&rig.cpu, START, BLOCK_SIZE, ALIVE)
}

#[track_caller]
fn assert_numbers(rig: &Rig, space: &Space) {
    let expected = |index: u64| if index.is_multiple_of(3) { index as u8 } else { 0 };
    (0..BLOCK_PAGES).for_each(|index| assert_eq!(rig.read(space, page(index)), expected(index), "page {index}"));
}

#[test]
fn pages_become_a_block_that_a_part_may_leave() {
    let rig = Rig::new(16);
    for live in [&[][..], &[branch::SIZE_CHANGE]] {
        host::with(live, || {
            let space = with_pages(&rig);
            // Read, not written.
            assert_eq!(rig.read(&space, page(1)), 0);
            let tables = space.table_frames();
            for round in 1..4 {
                assert_eq!(collapse(&rig, &space), Ok(()));
                let (size, entry) = leaf(&space, page(5)).unwrap();
                assert!(size == BLOCK_SIZE && entry.may_be_written() && entry.is_dirty() && entry.is_young());
                // The table is the block's deposit, and the pages are free.
                assert_eq!((rig.used(), space.table_frames()), (BLOCK_FRAMES + tables, tables));
                assert_numbers(&rig, &space);
                assert_eq!(collapse(&rig, &space), Ok(()));
                // Divided by that, into groups and pages.
                space.madvise_dontneed(&rig.cpu, page(round), PAGE).unwrap();
                rig.write(&space, page(round), if round == 3 { 3 } else { 0 });
                space.mprotect(page(7), PAGE, Protection::READ).unwrap();
                space.mprotect(page(7), PAGE, READ_WRITE).unwrap();
                assert!(size_of_leaf(&space) < BLOCK_SIZE);
                assert_numbers(&rig, &space);
            }
            drop(space);
            assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0));
        });
    }
}

fn size_of_leaf(space: &Space) -> u64 {
    size(space, page(7))
}

/// Each has its own afterwards, and frees it.
#[test]
fn pages_that_a_child_has_too_stay_its_own() {
    let rig = Rig::new(16);
    let space = with_pages(&rig);
    let frames = rig.used() - space.table_frames();
    let child = space.fork(&rig.cpu).unwrap();
    assert_eq!(collapse(&rig, &space), Ok(()));
    assert_eq!(rig.used(), BLOCK_FRAMES + frames + space.table_frames() + child.table_frames());
    rig.write(&space, page(3), 99);
    assert_numbers(&rig, &child);
    // The child has its pages alone by now: a store copies none.
    let used = rig.used();
    rig.write(&child, page(6), 6);
    assert_eq!(rig.used(), used);
    let grandchild = child.fork(&rig.cpu).unwrap();
    assert_eq!(collapse(&rig, &grandchild), Ok(()));
    drop(child);
    assert_numbers(&rig, &grandchild);
    assert_eq!(rig.read(&space, page(3)), 99);
    drop((space, grandchild));
    assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0));
}

#[test]
fn without_a_block_nothing_has_changed() {
    let rig = Rig::new(16);
    let space = with_pages(&rig);
    let entries = || (0..BLOCK_PAGES).map(|index| leaf(&space, page(index))).collect::<Vec<_>>();
    let before = (entries(), rig.used());
    let taken = TakenFrames::leaving(&rig, 0, 20);
    let used = rig.used();
    assert_eq!(collapse(&rig, &space), Err(SpaceError::NoMemory));
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!((entries(), rig.used()), (before.0, used));
    drop(taken);
    assert_eq!(rig.used(), before.1);
    // Of an answer that it is none, the block goes back too.
    space.madvise_guard(&rig.cpu, page(1), PAGE, ALIVE).unwrap();
    let used = rig.used();
    assert_eq!((collapse(&rig, &space), rig.used()), (Err(SpaceError::Invalid), used));
    space.madvise_unguard(page(1), PAGE).unwrap();
    assert_eq!(collapse(&rig, &space), Ok(()));
    assert_numbers(&rig, &space);
    drop(space);
    assert_eq!(rig.used(), 0);
}

/// Where no block was free, and one is by now.
#[test]
fn groups_become_a_block() {
    let rig = Rig::new(16);
    let space = advised(&rig, 1);
    let taken = TakenFrames::leaving(&rig, 0, 200);
    rig.write(&space, page(20), 7);
    let size_then = size(&space, page(20));
    drop(taken);
    assert!(size_then < BLOCK_SIZE);
    assert_eq!(collapse(&rig, &space), Ok(()));
    assert_eq!((size(&space, page(20)), rig.read(&space, page(20))), (BLOCK_SIZE, 7));
    // Made read-only, its parts are too.
    space.mprotect(page(0), BLOCK_SIZE, Protection::READ).unwrap();
    space.mprotect(page(16), 16 * PAGE, Protection::NONE).unwrap();
    assert_eq!(collapse(&rig, &space), Err(SpaceError::Invalid));
    space.mprotect(page(0), BLOCK_SIZE, Protection::READ).unwrap();
    assert_eq!(collapse(&rig, &space), Ok(()));
    assert!(leaf(&space, page(20)).is_some_and(|(size, entry)| size == BLOCK_SIZE && !entry.may_be_written()));
    assert_eq!(rig.read(&space, page(20)), 7);
    drop(space);
    assert_eq!(rig.used(), 0);
}

/// Threads of one space store to pages of their own, of each eight one, while they and others collapse and divide all.
#[test]
fn threads_meet_a_collapse() {
    const THREADS: u64 = 3;
    let rig = Rig::new(32);
    let space = with_pages(&rig);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (space, rig) = (space.clone(), &rig);
            scope.spawn(move || {
                let cpu = Cpu::new(CpuId(thread as u32 + 1));
                for step in 0..60_u64 {
                    let at = page(step * 37 % (BLOCK_PAGES / 8) * 8 + thread);
                    space.write_bytes(&cpu, at, &[step as u8]).unwrap();
                    match step % 5 {
                        0 | 3 => _ = space.madvise_collapse(&cpu, START, BLOCK_SIZE, ALIVE),
                        1 => space.madvise_dontneed(&cpu, page(step * 8 + 7), PAGE).unwrap(),
                        _ => _ = rig.migrate(&cpu, &space, at),
                    }
                    let mut byte = [0];
                    space.read_bytes(&cpu, at, &mut byte).unwrap();
                    assert_eq!(byte[0], step as u8);
                }
                rig.frames.drain_cpu(&cpu);
            });
        }
    });
    drop(space);
    rig.frames.drain_cpu(&rig.cpu);
    assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0));
}
