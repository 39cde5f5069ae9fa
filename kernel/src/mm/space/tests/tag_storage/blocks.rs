//! Blocks of 2 MiB with tags, and copies of tags.

use super::*;

#[test]
fn a_block_waits_at_its_level() {
    with_storage(1, |rig| {
        let space = rig.space();
        let at = block_of_zeros(rig, &space);
        rig.write(&space, at, 7);
        assert!(space.block_entry(at).is_some());
        let before = rig.stats();
        space.mprotect(at, BLOCK_SIZE, TAGGED).unwrap();
        let block = space.block_entry(at).expect("a block still");
        assert_waits(block);
        assert_eq!(rig.stats(), before);
        rig.fault(&space, at + 9 * PAGE, Access::Write).unwrap();
        let block = space.block_entry(at).expect("a block still");
        assert!(block.is_valid() && block.is_tagged() && block.may_be_written(), "{block:?}");
        assert_eq!(rig.stats().users - before.users, BLOCK_FRAMES as u64);
        assert_eq!(rig.read(&space, at), 7);
        // A fork shares the tags, and each copy has its own storage.
        let child = space.fork(&rig.cpu).unwrap();
        rig.write(&child, at, 8);
        assert_eq!(rig.stats().users - before.users, 2 * BLOCK_FRAMES as u64);
        drop(child);
        // A part of it: the frames keep what they have.
        space.munmap(&rig.cpu, at, 16 * PAGE).unwrap();
        assert_eq!(rig.stats().users - before.users, BLOCK_FRAMES as u64 - 16);
        rig.check();
        drop(space);
        assert_eq!(rig.stats().users, before.users);
    });
}

#[test]
fn a_block_whose_storage_is_pinned_becomes_pages_that_wait() {
    with_storage(1, |rig| {
        let space = rig.space();
        let [at, other] = occupied_block(rig, &space);
        let unpin = pin(rig, rig.entry(&space, other).address());
        let before = rig.stats();
        space.mprotect(at, BLOCK_SIZE, TAGGED).unwrap();
        rig.fault(&space, at, Access::Write).unwrap();
        assert!(space.block_entry(at).is_none());
        assert_eq!(rig.stats().users, before.users, "what was reserved for a part is given back");
        // Groups, of which the first has its storage.
        rig.fault(&space, at, Access::Write).unwrap();
        let valid = |page| rig.entry(&space, at + page * PAGE).is_valid();
        assert_eq!((valid(0), valid(15), valid(16)), (true, true, false));
        assert!(rig.entry(&space, at).is_contiguous());
        assert_eq!(rig.stats().users - before.users, GROUP_PAGES as u64);
        rig.fault(&space, at + 40 * PAGE, Access::Read).unwrap();
        assert!(!valid(40) && rig.entry(&space, at + 40 * PAGE).is_fault_on_access());
        unpin();
        rig.fault(&space, at + 40 * PAGE, Access::Read).unwrap();
        rig.fault(&space, at + 40 * PAGE, Access::Read).unwrap();
        assert!(valid(40));
        assert_eq!(rig.read(&space, at), 7);
        rig.check();
    });
}

/// A copy on write needs storage for its tags, and what lies there moves away first: also where blocks are too long to be
/// emptied under a lock.
#[test]
fn a_copy_of_tags_gets_storage_first() {
    for block_frames in [1, 32] {
        with_storage(block_frames, |rig| {
            let space = rig.space();
            let [start, other] = [rig.written(&space, 1), rig.written(&space, 1)];
            space.mprotect(start, PAGE, TAGGED).unwrap();
            for _ in 0..2 {
                rig.fault(&space, start, Access::Write).unwrap();
            }
            rig.set_tag(&space, start, 6);
            let child = space.fork(&rig.cpu).unwrap();
            // The frame that comes next has its storage lent.
            let next = rig.frames.alloc_movable(&rig.cpu).unwrap();
            let is_other_block = rig.block_of(next) != rig.block_of(rig.entry(&space, start).address());
            rig.frames.free(&rig.cpu, next);
            if is_other_block {
                rig.put_into_storage_of(&space, other, next);
            }
            for _ in 0..3 {
                rig.fault(&child, start, Access::Write).unwrap();
            }
            let copy = rig.entry(&child, start);
            assert!(copy.is_writable() && copy.address() != rig.entry(&space, start).address(), "{copy:?}");
            assert_eq!((rig.tag(&child, start), rig.read(&child, start)), (6, 1));
            rig.check();
        });
    }
}

/// As above, for the first store to a private page of a tagged object, with the storage of each frame in use.
#[test]
fn a_copy_of_an_objects_tags_gets_storage_first() {
    with_storage(32, |rig| {
        let space = rig.space();
        let object = rig.spaces.create_object(&rig.cpu, PAGE, None, Seals(0)).unwrap();
        let map = |sharing, protection| {
            let file = Some(MappedFile { object: &object, first_page: 0, may_write: true });
            let request = MapRequest { sharing, protection, ..private(1) };
            space.mmap_within(&rig.cpu, &request, &Terms { file, ..Terms::NONE }, &|| false).unwrap()
        };
        let shared = map(Sharing::Shared, TAGGED);
        (0..3).for_each(|_| rig.fault(&space, shared, Access::Write).unwrap());
        rig.set_tag(&space, shared, 4);
        let own = map(Sharing::Private, READ_WRITE);
        // No block is reserved when the copy comes.
        (0..3).for_each(|_| rig.fault(&space, own, Access::Write).unwrap());
        let copy = rig.entry(&space, own);
        assert!(copy.is_writable(), "{copy:?}");
        assert!(rig.spaces.record(copy.address()).has_tag_storage());
        assert_eq!(rig.tag(&space, own), 4);
        rig.check();
    });
}

/// A run of neighbours from ordinary memory into what is lent, unmapped together.
#[test]
fn a_run_into_what_is_lent_is_freed() {
    with_storage(1, |rig| {
        let space = rig.space();
        let start = rig.written(&space, 2);
        let border = PhysAddr(0x4000_0000 + 2 * BLOCK_SIZE);
        let mut taken = rig.exhaust();
        let place = taken.iter().position(|&frame| frame == border - PAGE).expect("the last ordinary frame");
        let last = taken.swap_remove(place);
        rig.spaces.migrate_page(&rig.cpu, rig.entry(&space, start).address(), last).unwrap();
        let mut lent = Vec::new();
        let first = loop {
            match rig.frames.alloc_movable(&rig.cpu).unwrap() {
                frame if frame == border => break frame,
                frame => lent.push(frame),
            }
        };
        rig.spaces.migrate_page(&rig.cpu, rig.entry(&space, start + PAGE).address(), first).unwrap();
        rig.give_back(lent);
        rig.give_back(taken);
        space.munmap(&rig.cpu, start, 2 * PAGE).unwrap();
        assert_eq!((rig.stats().borrowed, rig.frames.stats().refused), (0, 0));
        drop(space);
        assert_eq!(rig.used(), 0);
    });
}

/// Where frames are there but no storage, and the page could move: memory is out.
#[test]
fn where_all_storage_is_pinned_memory_is_out() {
    with_storage(1, |rig| {
        let space = rig.space();
        let start = rig.written(&space, 1);
        let taken = rig.exhaust();
        let lent: Vec<_> = core::iter::from_fn(|| rig.frames.alloc_movable(&rig.cpu).ok()).collect();
        rig.give_back(taken);
        space.mprotect(start, PAGE, TAGGED).unwrap();
        (0..REPLAYS).for_each(|_| rig.fault(&space, start, Access::Write).unwrap());
        assert_eq!(rig.fault(&space, start, Access::Write), Err(FaultError::OutOfMemory));
        assert_waits(rig.entry(&space, start));
        rig.give_back(lent);
        rig.fault(&space, start, Access::Write).unwrap();
        assert!(rig.entry(&space, start).is_valid());
    });
}

/// Pages that become a block take their tags along, and the block has storage for all of its own.
#[test]
fn pages_that_become_a_block_get_its_storage_first() {
    with_storage(1, |rig| {
        let (space, at) = (rig.space(), VirtAddr(0x10_0020_0000));
        let placement = Placement::Fixed(at);
        let request = MapRequest { placement, protection: TAGGED, ..private(BLOCK_FRAMES as u64) };
        space.mmap(&rig.cpu, &request).unwrap();
        let before = rig.stats();
        for page in [3, 200] {
            rig.write(&space, at + page * PAGE, page as u8);
            rig.set_tag(&space, at + page * PAGE, 6);
        }
        assert_eq!(rig.stats().users - before.users, 2);
        space.madvise_collapse(&rig.cpu, at, BLOCK_SIZE, &|| false).unwrap();
        let block = space.block_entry(at).expect("a block");
        assert!(block.is_valid() && block.is_tagged(), "{block:?}");
        assert_eq!(rig.stats().users - before.users, BLOCK_FRAMES as u64);
        // Divided, each page has what it had.
        space.munmap(&rig.cpu, at, PAGE).unwrap();
        for page in [3, 200] {
            assert_eq!((rig.tag(&space, at + page * PAGE), rig.read(&space, at + page * PAGE)), (6, page as u8));
        }
        assert_eq!(rig.tag(&space, at + 4 * PAGE), 0);
        rig.check();
        drop(space);
        assert_eq!((rig.stats().users, rig.used()), (before.users, 0));
    });
}
