//! Faults on access against all that changes their pages at once: `tag_storage race` compares what its pages hold and
//! their tags, and here is what comes from outside.
//!
//! All tag storage is lent before, to a process that does nothing. So the first page of each block migrates one of its
//! pages away, for which the fault drops its locks. Where a page waits it is moved on to frames of a block whose storage
//! is lent still.

use granule::linux::process;
use granule::linux::process::status::ProcessEnd;
use granule::mm::space::{Access, SpaceRef, handle_fault};
use granule::mm::tag_storage::{FRAMES_PER_FRAME, TagStorage};
use granule::sched;
use granule::smp::this_cpu;
use granule::{kernel, println};
use granule_arch::addr::{PhysAddr, VirtAddr};

use super::occupied::{Exhausted, entry};
use super::{PAGE, START, pages, storage, users};
use crate::harness::{TakenFrames, Test, target_test};
use crate::process::{settle, start, terminate};

/// The pages that the program's threads race on.
const RACE: VirtAddr = VirtAddr(0x7000_2000_0000);
const RACED: u64 = 48;
/// Frames of different blocks to which pages are moved.
const TARGETS: usize = 256;
/// Pages that a table of pages maps.
const OF_A_TABLE: usize = 512;

/// Has all storage lent to the process that is returned.
fn lend_all(t: &mut Test, storage: &TagStorage) -> Option<SpaceRef> {
    let cpu = this_cpu();
    let count = storage.stats().frames;
    let space = t.ok("a space", kernel().spaces.create(cpu))?;
    t.ok("its pages", space.mmap(cpu, &pages(count)))?;
    let touch = |page: u64| handle_fault(&space, cpu, START + page * PAGE, Access::Write).is_ok();
    // Its tables.
    t.check("some are there", (0..count).step_by(OF_A_TABLE).all(touch));
    let exhausted = Exhausted::new();
    (0..count).take_while(|&page| touch(page)).for_each(drop);
    drop(exhausted);
    let lent = storage.stats().borrowed;
    t.check("most storage is lent", lent > count / 2);
    Some(space)
}

target_test!(threads_race_on_pages_that_wait, needs("tag-storage smp"), limit(60));
fn threads_race_on_pages_that_wait(t: &mut Test) {
    let (cpu, kernel) = (this_cpu(), kernel());
    let Some(storage) = storage(t) else { return };
    let (threads, first) = (sched::thread_count(), storage.stats());
    let (mut targets, mut between) = (heapless::Vec::<PhysAddr, TARGETS>::new(), TakenFrames::default());
    while !targets.is_full()
        && let Ok(frame) = kernel.frames.alloc_movable(cpu)
    {
        if frame.frame_number().is_multiple_of(FRAMES_PER_FRAME) {
            // There is room.
            let _ = targets.push(frame);
        } else {
            between.keep(frame);
        }
    }
    let Some(lent_to) = lend_all(t, storage) else { return };
    let Some(id) = t.ok("the program", start("tag_storage race")) else { return };
    let Some(space) = t.ok("its space", process::space_of(id).ok_or("none")) else { return };
    let (mut migrated, mut put) = (0, 0);
    let moved_out = || storage.stats().migrations - first.migrations;
    // Enough of each, however busy the machine is: then the program may end.
    let is_enough = |migrated, put| migrated > 20 && put > 0 && moved_out() > 0;
    while process::space_of(id).is_some() {
        if is_enough(migrated, put) {
            let _ = terminate(id);
        }
        let page = RACE + t.random() % RACED * PAGE;
        let found = entry(&space, page);
        if !found.is_fault_on_access() {
            migrated += u32::from(kernel.spaces.migrate_at(cpu, &space, page).is_ok());
        } else if let Some(to) = targets.pop() {
            match kernel.spaces.migrate_page(cpu, found.address(), to) {
                Ok(()) => put += 1,
                Err(_) => _ = targets.push(to),
            }
        }
        sched::relax();
    }
    drop(space);
    t.equal("how it ended", process::wait(id), Some(ProcessEnd::Exited(0)));
    targets.into_iter().for_each(|frame| kernel.frames.free(cpu, frame));
    drop((between, lent_to));
    settle(t, threads);
    let end = storage.stats();
    println!("{migrated} pages migrated, {put} while they waited; {} moved out of storage", moved_out());
    t.check("there was enough of each", is_enough(migrated, put));
    t.equal("frames that are lent", end.borrowed, first.borrowed);
    t.equal("blocks still reserved", end.reserved, first.reserved);
    t.equal("frames that still have storage", users(&end), users(&first));
}
