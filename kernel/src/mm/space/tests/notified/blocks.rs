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

/// Calls on all of a block.
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

/// The table is out of walk caches before its pages are copied, and the contents come before the block.
#[test]
fn pages_are_invalidated_before_they_become_a_block() {
    for (features, tlbi) in [(&[][..], "aside1is"), (&[branch::TLB_RANGE, branch::TLB_LEVEL], "rvae1is 0..512")] {
        let expected = format!(
            "start clear 0..512, write, dsb ishst, {tlbi}, tlbs 0..512, range 0..512, dsb ish, dmb, write, \
             end clear 0..512"
        );
        let stage = stage();
        stage.space.madvise_dontneed(&stage.rig.cpu, stage.page(3), PAGE).unwrap();
        let collapse = || stage.space.madvise_collapse(&stage.rig.cpu, stage.start, BLOCK_SIZE, &|| false).unwrap();
        assert_eq!(host::with(features, || stage.story(collapse)), expected);
    }
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

/// It becomes read-only before it is copied, and is broken before the new one is there.
#[test]
fn a_block_that_migrates_is_invalidated_twice() {
    let stage = stage();
    let migrate = || assert_eq!(stage.rig.migrate(&stage.rig.cpu, &stage.space, stage.page(0)), Some(Ok(())));
    let expected = "start migrate 0..512, write, dsb ishst, vale1is 0, tlbs 0..512 (locked), range 0..512 (locked), dsb ish, \
                    end migrate 0..512, dmb, start migrate 0..512, write, dsb ishst, vale1is 0, tlbs 0..512 (locked), \
                    range 0..512 (locked), dsb ish, write, end migrate 0..512";
    assert_events(&stage, migrate, expected);
}

#[test]
fn a_block_that_mremap_moves_is_invalidated_as_one() {
    let stage = stage();
    let moves = || {
        let mut request = Remap::new(stage.page(0), BLOCK_SIZE, BLOCK_SIZE, Move::To(stage.page(1024)), false).unwrap();
        stage.space.mremap(&stage.rig.cpu, &mut request, &SpaceLimits::NONE).unwrap();
    };
    let expected = "start unmap 0..512, write, dsb ishst, vale1is 0, tlbs 0..512 (locked), range 0..512 (locked), dsb ish, \
                    write, end unmap 0..512";
    assert_events(&stage, moves, expected);
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

/// A file of a block, which the space of the stage and another share.
fn shared() -> (Stage, Counted<Object>, SpaceRef) {
    let stage = stage();
    let file = stage.rig.spaces.create_object(&stage.rig.cpu, BLOCK_SIZE, Some(&[]), Seals(0)).unwrap();
    let other = stage.rig.space();
    for space in [&stage.space, &other] {
        let request = MapRequest { placement: Placement::Fixed(stage.start), sharing: Sharing::Shared, ..private(ALL) };
        let terms = Terms { file: Some(MappedFile { object: &file, first_page: 0, may_write: true }), ..Terms::NONE };
        space.mmap_within(&stage.rig.cpu, &request, &terms, &|| false).unwrap();
        space.madvise_areas(&stage.rig.cpu, stage.start, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
    }
    stage.rig.write(&other, stage.start, 1);
    stage.listener.take();
    (stage, file, other)
}

/// First the object loses the pages, then the entry goes, once for all of them.
#[test]
fn a_hole_in_a_shared_block_is_notified_once_to_each_space() {
    const GONE: &str = "write, dsb ishst, vale1is 0, tlbs 0..512 (locked), range 0..512 (locked), dsb ish, write";
    let (stage, file, other) = shared();
    let punch = |first: u64, pages: u64| file.punch_hole(&stage.rig.cpu, first * PAGE, (first + pages) * PAGE).unwrap();
    // A page that was never mapped is in no TLB.
    assert_events(&stage, || stage.fault(7, Access::Write), "write");
    let listener = Listener::new(other.clone(), Recording::default(), 0).unwrap();
    punch(0, ALL);
    let clear = crate::mm::notifier::Event::Clear;
    let once = [Notified::Start(clear), Notified::SecondaryTlbs, Notified::Range, Notified::End(clear)];
    for calls in [listener.take(), stage.listener.take()] {
        assert_eq!(calls.iter().map(|call| call.notified).collect::<Vec<_>>(), once);
    }
    other.munmap(&stage.rig.cpu, stage.start, BLOCK_SIZE).unwrap();
    stage.fault(7, Access::Write);
    assert_events(&stage, || punch(0, ALL), &format!("write, start clear 0..512, {GONE}, end clear 0..512"));
    // An entry that is not valid may be in a TLB still, while `mprotect` continues.
    stage.fault(7, Access::Write);
    stage.space.mprotect(stage.start, BLOCK_SIZE, Protection::NONE).unwrap();
    assert_events(&stage, || punch(0, ALL), &format!("write, start clear 0..512, {GONE}, end clear 0..512"));
    // As a block also where it is split.
    stage.space.mprotect(stage.start, BLOCK_SIZE, READ_WRITE).unwrap();
    stage.fault(7, Access::Write);
    stage.space.mprotect(stage.start, BLOCK_SIZE, Protection::NONE).unwrap();
    assert_events(
        &stage,
        || punch(3, 1),
        "write, start clear 3..4, write, dmb, link, write, dsb ishst, aside1is, tlbs 0..512 (locked), \
         range 0..512 (locked), dsb ish, end clear 3..4",
    );
}

/// Others hold its frames, and yet it is not copied.
#[test]
fn a_store_to_a_shared_block_upgrades_it() {
    let (stage, _file, _other) = shared();
    stage.fault(7, Access::Read);
    assert_events(
        &stage,
        || stage.space.mprotect(stage.start, BLOCK_SIZE, Protection::READ).unwrap(),
        "start protection of areas 0..512, write, dsb ishst, aside1is, tlbs 0..512, dsb ish, \
         end protection of areas 0..512",
    );
    assert_events(
        &stage,
        || stage.space.mprotect(stage.start, BLOCK_SIZE, READ_WRITE).unwrap(),
        "start protection of areas 0..512, write, dsb ishst, aside1is, tlbs 0..512, dsb ish, \
         end protection of areas 0..512",
    );
    assert!(stage.entry(7).may_be_written());
    let found = stage.space.page_tables().block_cell(stage.start).unwrap();
    let mmu = stage.space.mmu();
    mmu.store(found.cell, mmu.load(found.cell).write_protected());
    let frame = stage.entry(7).address();
    assert_events(
        &stage,
        || stage.fault(7, Access::Write),
        "write, dsb ishst, vale1 0, tlbs 0..512 (locked), dsb nsh, start upgrade 0..512, end upgrade 0..512",
    );
    assert_eq!((stage.entry(7).address(), stage.entry(7).may_be_written()), (frame, true));
}
