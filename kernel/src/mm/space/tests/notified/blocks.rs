//! Blocks. A TLBI of a block names its first page.

use super::*;
use crate::mm::page_block::BLOCK_SIZE;
use crate::mm::space::AreaAdvice;

/// Pages of a block.
const ALL: u64 = BLOCK_SIZE / PAGE;

/// A space with a block that was written to, and a subscriber.
fn stage() -> Stage {
    let rig = Rig::new(16);
    let space = rig.space();
    let asids = Asids::new();
    (0..3).for_each(|_| _ = asids.activate(&rig.cpu, space.mmu(), &AsidSlot::new()));
    asids.activate(&rig.cpu, space.mmu(), space.asid());
    let start = VirtAddr(0x10_0000_0000);
    let request = MapRequest { placement: Placement::Fixed(start), ..private(2 * ALL) };
    space.mmap(&rig.cpu, &request).unwrap();
    space.madvise_areas(&rig.cpu, start, 2 * BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
    rig.write(&space, start, 1);
    let listener = Listener::new(space.clone(), Recording::default(), 0).unwrap();
    Stage { rig, space, start, listener }
}

fn with(branches: &[u16], expected: &str, work: impl FnOnce(&Stage)) {
    let stage = stage();
    let story = host::with(branches, || stage.story(|| work(&stage)));
    assert_eq!(story, expected);
}

/// What happens to all of it.
#[test]
fn a_block_is_invalidated_as_one() {
    with(&[], "dmb, write", |stage| stage.fault(ALL + 5, Access::Write));
    with(
        &[],
        "start protection of areas 0..512, write, dsb ishst, aside1is, tlbs 0..512, dsb ish, \
         end protection of areas 0..512",
        |stage| stage.space.mprotect(stage.start, BLOCK_SIZE, Protection::READ).unwrap(),
    );
    with(
        &[],
        "start clear 0..512, write, dsb ishst, vale1is 0, tlbs 0..512 (locked), \
         range 0..512 (locked), dsb ish, write, end clear 0..512",
        |stage| stage.space.madvise_dontneed(&stage.rig.cpu, stage.start, BLOCK_SIZE).unwrap(),
    );
    with(
        &[],
        "start unmap 0..512, write, dsb ishst, aside1is, tlbs 0..512, range 0..512, dsb ish, \
         end unmap 0..512",
        |stage| stage.space.munmap(&stage.rig.cpu, stage.start, BLOCK_SIZE).unwrap(),
    );
    let children = Mutex::new(Vec::new());
    with(
        &[],
        "write, dmb, link, write, dmb, link, write, dmb, link, start protection of pages 0..1024, \
         write, dsb ishst, aside1is, tlbs *, dsb ish, end protection of pages 0..1024",
        |stage| children.lock().unwrap().push(stage.fork()),
    );
    let all = [branch::TLB_RANGE, branch::TLB_LEVEL];
    with(
        &all,
        "start protection of areas 0..512, write, dsb ishst, rvale1is 0..512, tlbs 0..512, dsb ish, \
         end protection of areas 0..512",
        |stage| stage.space.mprotect(stage.start, BLOCK_SIZE, Protection::READ).unwrap(),
    );
    with(
        &all,
        "start clear 0..512, write, dsb ishst, vale1is 0 level 2, tlbs 0..512 (locked), \
         range 0..512 (locked), dsb ish, write, end clear 0..512",
        |stage| stage.space.madvise_dontneed(&stage.rig.cpu, stage.start, BLOCK_SIZE).unwrap(),
    );
}

/// A store to what was shared: all of it is upgraded, or replaced.
#[test]
fn a_store_upgrades_or_replaces_all_of_a_block() {
    let after = |is_shared: bool, expected: &str| {
        let stage = stage();
        let child = stage.fork();
        let _child = is_shared.then_some(child);
        assert_events(&stage, || stage.fault(7, Access::Write), expected);
    };
    after(
        false,
        "write, dsb ishst, vale1 0, tlbs 0..512 (locked), dsb nsh, start upgrade 0..512, \
         end upgrade 0..512",
    );
    after(
        true,
        "start clear 0..512, write, dsb ishst, vale1is 0, tlbs 0..512 (locked), \
         range 0..512 (locked), dsb ish, write, end clear 0..512",
    );
}

/// A part is changed: the block is broken and split first, or split in use; the invalidation is the block's.
#[test]
fn a_block_is_split_before_a_part_changes() {
    let protect = |stage: &Stage| stage.space.mprotect(stage.page(3), PAGE, Protection::READ).unwrap();
    with(
        &[],
        "start protection of areas 3..4, write, dsb ishst, vale1is 0, tlbs 0..512 (locked), \
         range 0..512 (locked), dsb ish, write, dmb, link, write, dsb ishst, vale1is 3, tlbs 3..4, \
         dsb ish, end protection of areas 3..4",
        protect,
    );
    with(
        &[branch::SIZE_CHANGE, branch::TLB_LEVEL],
        "start protection of areas 3..4, write, dmb, link, dsb ishst, vale1is 0 level 2, \
         tlbs 0..512 (locked), range 0..512 (locked), dsb ish, write, dsb ishst, vale1is 3 level 3, \
         tlbs 3..4, dsb ish, end protection of areas 3..4",
        protect,
    );
    with(
        &[],
        "start clear 3..4, write, dsb ishst, vale1is 0, tlbs 0..512 (locked), range 0..512 (locked), \
         dsb ish, write, dmb, link, write, dsb ishst, vale1is 3, tlbs 3..4 (locked), \
         range 3..4 (locked), dsb ish, end clear 3..4",
        |stage| stage.space.madvise_dontneed(&stage.rig.cpu, stage.page(3), PAGE).unwrap(),
    );
}
