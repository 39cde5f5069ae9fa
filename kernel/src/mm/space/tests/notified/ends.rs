//! Fork, the end of a space, and what a gather frees: each with what it comes after.

use std::collections::BTreeMap;

use granule_arch::addr::PhysAddr;

use super::*;

/// The first page of each of `tables` last-level tables, written; the space has nothing else near them. Returns how many
/// bytes they translate.
fn one_page_in_each(stage: &mut Stage, tables: u64) -> u64 {
    const TABLE_BYTES: u64 = 512 * PAGE;
    stage.start = VirtAddr(0x4000_0000);
    for page in (0..tables).map(|table| stage.start + table * TABLE_BYTES) {
        let placement = Placement::Fixed(page);
        stage.space.mmap(&stage.rig.cpu, &MapRequest { placement, ..private(1) }).unwrap();
        stage.rig.write(&stage.space, page, 1);
    }
    tables * TABLE_BYTES
}

/// Frames in use at each barrier of a kind that `work` issues.
fn used_at(stage: &Stage, barrier: Operation, work: impl FnOnce()) -> Vec<usize> {
    let (frames, seen) = (stage.rig.frames, Rc::new(RefCell::new(Vec::new())));
    let look = {
        let seen = seen.clone();
        move |operation: &Operation| {
            if *operation == barrier {
                seen.borrow_mut().push(frames.stats().used);
            }
        }
    };
    host::with(&[], || at_each(look, work));
    seen.take()
}

/// The first step of the end makes the tree unreachable from its root, which is complete before the invalidation of
/// everything; and nothing is freed before that is.
#[test]
fn the_end_of_a_space_frees_nothing_before_its_invalidation_is_complete() {
    let stage = Stage::new(2);
    let story = host::with(&[], || stage.story(|| stage.space.release(&stage.rig.cpu)));
    // Of the tree the root alone is written, before and after.
    assert_eq!(story, "start release *, release, end release *, write, dsb ishst, aside1is, dsb ish, write");

    let stage = Stage::new(2);
    let (frames, mmu, root) = (stage.rig.frames, *stage.space.mmu(), stage.space.root);
    let used = frames.stats().used;
    let linked = move || mmu.table(root).iter().filter(|cell| mmu.load(cell).is_valid()).count();
    assert!(linked() > 0);
    let steps = Rc::new(RefCell::new(Vec::new()));
    let look = {
        let steps = steps.clone();
        move |operation: &Operation| {
            if !matches!(operation, Operation::Write { .. }) {
                steps.borrow_mut().push((linked(), frames.stats().used));
            }
        }
    };
    host::with(&[], || at_each(look, || stage.space.release(&stage.rig.cpu)));
    assert_eq!(steps.take(), [(0, used); 3], "at DSB, TLBI and DSB");
    // Two pages, and their tables; the root goes with the last reference.
    assert_eq!(frames.stats().used, used - 2 - 3);
    assert_eq!(stage.space.table_frames(), 1);
}

/// The last reference to a space is its end too.
#[test]
fn the_root_is_freed_when_its_space_has_ended() {
    let stage = Stage::new(1);
    let (frames, space) = (stage.rig.frames, stage.rig.space());
    stage.rig.map(&space, 1);
    let start = stage.rig.map(&space, 1);
    stage.rig.write(&space, start, 1);
    let used = frames.stats().used;
    // Its ASID is another.
    let seen = used_at(&stage, Operation::DsbIsh, || drop(space));
    assert_eq!(seen, [used]);
    assert_eq!(frames.stats().used, used - 1 - 3 - 1);
}

/// A frame has both holders, and the parent's entry is protected, before the child's copy is stored. The parent's
/// invalidation follows the last entry, once, and completes before the call returns.
#[test]
fn a_page_is_protected_and_held_by_both_before_the_childs_copy_is_stored() {
    let stage = Stage::new(2);
    // A third page that was written and is read-only already; the fourth is the page of zeros.
    stage.rig.write(&stage.space, stage.page(2), 3);
    stage.space.mprotect(stage.page(2), PAGE, Protection::READ).unwrap();
    let cells: BTreeMap<PhysAddr, u64> = (0..4).map(|page| (stage.entry(page).address(), page)).collect();
    let (space, copies) = (stage.space.clone(), Rc::new(RefCell::new(Vec::new())));
    let start = stage.start;
    let look = {
        let copies = copies.clone();
        move |operation: &Operation| {
            let Operation::Write { old: Descriptor::EMPTY, new, .. } = operation else { return };
            // A leaf: the child's, since the parent's were there before.
            let Some(page) = cells.get(&new.address()).filter(|_| new.0 & bits::NG != 0) else { return };
            // The areas are locked.
            let own = space.mmu().load(space.page_tables().cell(start + page * PAGE).unwrap().1);
            let holders = if own.is_special() { 2 } else { space.common.record(new.address()).references() };
            copies.borrow_mut().push((*page, own.may_be_written(), new.may_be_written(), holders));
        }
    };
    let mut child = None;
    let operations = host::with(&[], || at_each(look, || child = Some(stage.fork())));
    assert_eq!(copies.take(), [0, 1, 2, 3].map(|page| (page, false, false, 2)));
    let words: Vec<_> = operations.iter().map(|operation| stage.operation(operation)).collect();
    let last_write = words.iter().rposition(|word| word == "write").unwrap();
    assert_eq!(words[last_write + 1..].join(", "), "dsb ishst, aside1is, dsb ish");
    assert_eq!(words.iter().filter(|word| *word == "aside1is").count(), 1);
    // With every feature of the CPUs too: the range is most of the space.
    drop(child.take());
    stage.rig.write(&stage.space, stage.page(0), 1);
    let all = [branch::TLB_LEVEL, branch::TLB_RANGE];
    let story = host::with(&all, || stage.story(|| child = Some(stage.fork())));
    assert!(story.ends_with("write, dsb ishst, aside1is, tlbs *, dsb ish, end protection of pages -1..4"), "{story}");
    // Where nothing of the parent's becomes read-only nothing is invalidated.
    let mut second = None;
    let story = host::with(&[], || stage.story(|| second = Some(stage.fork())));
    let (_, notified) = story.split_once("start protection").unwrap();
    assert!(notified.starts_with(" of pages -1..4, write, end protection of pages -1..4"), "{story}");
}

/// A long unmapping invalidates and frees in between, after each fourth table; then the tables, once.
#[test]
fn a_long_unmapping_frees_behind_each_invalidation() {
    const TABLES: u64 = 5;
    let mut stage = Stage::new(0);
    let bytes = one_page_in_each(&mut stage, TABLES);
    let (used, tables) = (stage.rig.frames.stats().used, stage.space.table_frames());
    let seen = used_at(&stage, Operation::DsbIsh, || {
        stage.space.munmap(&stage.rig.cpu, stage.start, bytes).unwrap();
    });
    // Four pages; the last one with the tables.
    assert_eq!(seen, [used, used - 4]);
    let freed = tables - stage.space.table_frames();
    assert!(freed as u64 >= TABLES);
    assert_eq!(stage.rig.frames.stats().used, used - TABLES as usize - freed);

    // From the first page to the last of each four, and the whole range for the tables: too much for single pages.
    let mut stage = Stage::new(0);
    let bytes = one_page_in_each(&mut stage, TABLES);
    let unmap = || stage.space.munmap(&stage.rig.cpu, stage.start, bytes).unwrap();
    let story = host::with(&[branch::TLB_LEVEL, branch::TLB_RANGE], || stage.story(unmap));
    assert_eq!(
        story,
        "start unmap 0..2560, write, dsb ishst, rvale1is 0..1536 level 3, vale1is 1536 level 3, tlbs 0..1537, \
         range 0..1537, dsb ish, write, dsb ishst, rvae1is 0..2048, rvae1is 2048..2560, tlbs 0..2560, \
         range 0..2560, dsb ish, end unmap 0..2560"
    );
}

/// Among faults each table's entries are invalidated under its own lock.
#[test]
fn each_table_is_invalidated_before_its_lock_is_dropped() {
    let mut stage = Stage::new(0);
    let bytes = one_page_in_each(&mut stage, 2);
    let used = stage.rig.frames.stats().used;
    // There are holes, which is an error at the end.
    let discard = || _ = stage.space.madvise_dontneed(&stage.rig.cpu, stage.start, bytes);
    assert_events(
        &stage,
        discard,
        "start clear 0..1024, write, dsb ishst, vale1is 0, tlbs 0..1 (locked), range 0..1 (locked), dsb ish, write, \
         dsb ishst, vale1is 512, tlbs 512..513 (locked), range 512..513 (locked), dsb ish, end clear 0..1024",
    );
    assert_eq!(stage.rig.frames.stats().used, used - 2);
}

/// More runs of frames than a gather lists: it frees what it has after an invalidation of all that it has noted.
#[test]
fn a_full_gather_frees_behind_its_invalidation() {
    let stage = Stage::new(0);
    let (start, _other) = stage.map_scattered();
    let used = stage.rig.frames.stats().used;
    let unmap = || stage.space.munmap(&stage.rig.cpu, start, SCATTERED * PAGE).unwrap();
    assert_eq!(used_at(&stage, Operation::DsbIsh, unmap), [used, used - 32, used - 64]);
    assert_eq!(stage.rig.frames.stats().used, used - SCATTERED as usize);
}

/// Pages that no TLB holds are freed without an invalidation: mprotect has invalidated them.
#[test]
fn inaccessible_pages_are_freed_at_once() {
    let stage = Stage::new(2);
    stage.space.mprotect(stage.start, 2 * PAGE, Protection::NONE).unwrap();
    let used = stage.rig.frames.stats().used;
    let unmap = || stage.space.munmap(&stage.rig.cpu, stage.start, 2 * PAGE).unwrap();
    assert_events(&stage, unmap, "start unmap 0..2, write, end unmap 0..2");
    assert_eq!(stage.rig.frames.stats().used, used - 2);
}
