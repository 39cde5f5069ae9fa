//! Entries that wait until storage for the tags of their pages is reserved, and what lies in that storage until then.
//!
//! A machine of 8 MiB has 2 MiB of tag storage, more than it needs, in blocks of one frame or of several.

#![allow(unsafe_code, reason = "tags by address, and frames that a test holds")]

mod blocks;
mod meetings;

use granule_arch::addr::PAGE_SIZE;
use granule_arch::alternative::host;
use granule_arch::descriptor::{Descriptor, bits};
use granule_arch::mte::{self, Tag};
use proptest::prelude::*;

use super::*;
use crate::lab;
use crate::mm::frame::tests::leaked_with_tag_storage;
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::mm::space::fault_on_access::REPLAYS;
use crate::mm::space::group::GROUP_PAGES;
use crate::mm::space::{AreaAdvice, FaultError, MappedFile, Seals, Terms};
use crate::mm::tag_storage::{FRAMES_PER_FRAME, TagStorage, TagStorageStats, Unreserved};
use crate::platform::features::branch;

const TAGGED: Protection = READ_WRITE.and(Protection::TAGGED);
const MIB: u64 = 8;
/// The bits of an entry that waits.
const WAITS: u64 = bits::PROT_NONE | bits::FAULT_ON_ACCESS;

fn with_storage<T>(block_frames: u64, work: impl FnOnce(&Rig) -> T) -> T {
    with_switch(block_frames, &[], work)
}

/// As [`with_storage`], with switches of the lab on.
fn with_switch<T>(block_frames: u64, switches: &[u16], work: impl FnOnce(&Rig) -> T) -> T {
    let sites: Vec<u16> = [branch::TAG_STORAGE, branch::MTE].iter().chain(switches).copied().collect();
    host::with(&sites, || {
        let rig = Rig::with(leaked_with_tag_storage(MIB, block_frames * PAGE));
        rig.spaces.start_tags().unwrap();
        work(&rig)
    })
}

impl Rig {
    fn storage(&self) -> &TagStorage {
        self.frames.tag_storage().unwrap()
    }

    fn stats(&self) -> TagStorageStats {
        self.storage().stats()
    }

    fn entry(&self, space: &Space, page: VirtAddr) -> Descriptor {
        let page_entry =
            || space.page_tables().cell(page).map_or(Descriptor::EMPTY, |(_, cell)| space.mmu().load(cell));
        space.block_entry(page).unwrap_or_else(page_entry)
    }

    fn fault(&self, space: &Space, page: VirtAddr, access: Access) -> Result<(), FaultError> {
        handle_fault(space, &self.cpu, page, access)
    }

    /// Written pages, without tags.
    fn written(&self, space: &Space, pages: u64) -> VirtAddr {
        let start = self.map(space, pages);
        (0..pages).for_each(|page| self.write(space, start + page * PAGE, (page % 255) as u8 + 1));
        start
    }

    /// Takes every ordinary frame, so that the next movable one is lent.
    fn exhaust(&self) -> Vec<PhysAddr> {
        core::iter::from_fn(|| self.frames.alloc(&self.cpu).ok()).collect()
    }

    /// Takes every ordinary frame, and every frame that is lent.
    fn exhaust_all(&self) -> Vec<PhysAddr> {
        let mut taken = self.exhaust();
        taken.extend(core::iter::from_fn(|| self.frames.alloc_movable(&self.cpu).ok()));
        taken
    }

    fn give_back(&self, frames: Vec<PhysAddr>) {
        frames.into_iter().for_each(|frame| self.frames.free(&self.cpu, frame));
    }

    /// The frames of the block that has the tags of `frame`.
    fn block_of(&self, frame: PhysAddr) -> core::ops::Range<usize> {
        let region = &self.storage().regions()[0];
        let (block, _) = region.blocks_of(frame.frame_number()..frame.frame_number() + 1).next().unwrap();
        region.frames_of(block)
    }

    /// Puts the page at `page` of `space` into the tag storage of `frame`.
    fn put_into_storage_of(&self, space: &Space, page: VirtAddr, frame: PhysAddr) {
        let wanted = self.block_of(frame);
        let taken = self.exhaust();
        let mut lent: Vec<PhysAddr> = Vec::new();
        let to = loop {
            let next = self.frames.alloc_movable(&self.cpu).unwrap();
            if wanted.contains(&next.frame_number()) {
                break next;
            }
            lent.push(next);
        };
        self.spaces.migrate_page(&self.cpu, self.entry(space, page).address(), to).unwrap();
        self.give_back(lent);
        self.give_back(taken);
        assert!(wanted.contains(&self.entry(space, page).address().frame_number()));
    }

    fn set_tag(&self, space: &Space, page: VirtAddr, tag: u8) {
        let entry = self.entry(space, page);
        assert!(entry.is_valid() && entry.is_tagged(), "{entry:?}");
        assert!(self.spaces.record(entry.address()).has_tag_storage(), "tags without storage");
        // SAFETY: the host keeps tags beside the memory.
        unsafe { mte::set_tags(self.frames.linear().address(entry.address()).with_tag(Tag::new(tag)), mte::GRANULE) };
    }

    fn tag(&self, space: &Space, page: VirtAddr) -> u8 {
        // SAFETY: as above.
        unsafe { mte::load_tag(self.frames.linear().address(self.entry(space, page).address())) }.number()
    }

    /// Each frame in storage is lent, unused or reserved, and what is reserved is what frames use.
    fn check(&self) {
        let (stats, region) = (self.stats(), &self.storage().regions()[0]);
        let flagged = (0..MIB << 20).step_by(PAGE_SIZE).map(|offset| PhysAddr(0x4000_0000 + offset)).filter(|&frame| {
            let record = self.frames.cut_frame(frame).filter(|record| record.references() != 0);
            record.is_some_and(|record| record.has_tag_storage())
        });
        let mut users = std::vec![0; region.blocks().len()];
        flagged.for_each(|frame| {
            let number = frame.frame_number();
            assert!(!self.storage().is_tag_storage(number), "tag storage has tags");
            region.blocks_of(number..number + 1).for_each(|(block, count)| users[block] += count);
        });
        let counted: Vec<u32> = region.blocks().iter().map(|block| block.users().unwrap_or(0)).collect();
        assert_eq!(counted, users);
        assert_eq!(stats.users, users.iter().map(|&users| u64::from(users)).sum::<u64>());
    }
}

fn assert_waits(entry: Descriptor) {
    assert!(entry.is_fault_on_access() && entry.0 & WAITS == WAITS && entry.0 & bits::VALID == 0, "{entry:?}");
    assert!(!entry.may_be_written(), "{entry:?}");
}

/// The case of the proposal: a thousand pages, of which one is used.
#[test]
fn a_thousand_pages_are_marked_and_one_that_is_touched_reserves_one_block() {
    with_storage(1, |rig| {
        let (space, before) = (rig.space(), rig.stats());
        let start = rig.written(&space, 1000);
        space.mprotect(start, 1000 * PAGE, TAGGED).unwrap();
        (0..1000).for_each(|page| assert_waits(rig.entry(&space, start + page * PAGE)));
        assert_eq!(rig.stats(), before, "nothing is reserved");
        rig.fault(&space, start + 7 * PAGE, Access::Write).unwrap();
        let entry = rig.entry(&space, start + 7 * PAGE);
        assert!(entry.is_valid() && entry.is_tagged() && entry.is_writable() && entry.0 & bits::PROT_NONE == 0);
        let after = rig.stats();
        assert_eq!((after.users - before.users, after.claims - before.claims), (1, 1));
        assert_eq!((rig.tag(&space, start + 7 * PAGE), rig.read(&space, start + 7 * PAGE)), (0, 8));
        assert_waits(rig.entry(&space, start + 8 * PAGE));
        rig.check();
        drop(space);
        let end = rig.stats();
        assert_eq!((end.users, end.reserved, end.returns), (before.users, before.reserved, 1));
    });
}

#[test]
fn what_an_entry_remembers_outlives_the_wait() {
    for (young, dirty, uffd_wp) in (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0)) {
        with_storage(1, |rig| {
            let space = rig.space();
            let start = rig.written(&space, 1);
            let (_, cell) = space.page_tables().cell(start).unwrap();
            let mut entry = rig.entry(&space, start).clean();
            for (is_so, step) in [
                // Dirt that the hardware has noted.
                (dirty, (|entry| Descriptor(entry.0 & !bits::RDONLY)) as fn(Descriptor) -> Descriptor),
                (!young, Descriptor::old),
                (uffd_wp, Descriptor::uffd_wp),
            ] {
                entry = if is_so { step(entry) } else { entry };
            }
            space.mmu().store(cell, entry);
            space.mprotect(start, PAGE, TAGGED).unwrap();
            let waits = rig.entry(&space, start);
            assert_waits(waits);
            let remembered = (waits.is_young(), waits.0 & bits::DIRTY != 0, waits.is_uffd_wp());
            assert_eq!(remembered, (young, dirty, uffd_wp), "{entry:?}: {waits:?}");
            rig.fault(&space, start, Access::Read).unwrap();
            let valid = rig.entry(&space, start);
            assert_eq!((valid.is_young(), valid.is_dirty(), valid.is_uffd_wp()), (true, dirty, uffd_wp), "{valid:?}");
            assert_eq!((valid.is_valid(), valid.may_be_written()), (true, !uffd_wp), "{valid:?}");
            // A page that was written takes no second fault.
            assert_eq!(valid.0 & bits::RDONLY == 0, dirty && !uffd_wp, "{valid:?}");
        });
    }
}

#[test]
fn no_access_clears_the_mark_and_access_sets_it_again() {
    with_storage(1, |rig| {
        let space = rig.space();
        let start = rig.written(&space, 3);
        space.mprotect(start, 3 * PAGE, TAGGED).unwrap();
        let before = rig.stats();
        space.mprotect(start, 3 * PAGE, Protection::NONE).unwrap();
        for page in 0..3 {
            let entry = rig.entry(&space, start + page * PAGE);
            assert_eq!(entry.0 & (WAITS | bits::VALID), bits::PROT_NONE);
            assert_eq!(rig.fault(&space, start + page * PAGE, Access::Read), Err(FaultError::NotAllowed));
        }
        space.mprotect(start, 3 * PAGE, READ_WRITE).unwrap();
        (0..3).for_each(|page| assert_waits(rig.entry(&space, start + page * PAGE)));
        space.mprotect(start, PAGE, Protection::READ).unwrap();
        assert_waits(rig.entry(&space, start));
        assert_eq!(rig.stats(), before);
        rig.fault(&space, start, Access::Read).unwrap();
        assert!(!rig.entry(&space, start).may_be_written());
        assert_eq!(rig.fault(&space, start, Access::Write), Err(FaultError::NotAllowed));
    });
}

/// Writing is decided when the entry becomes valid: what a fork shares is copied, and the copy's tags have storage first.
#[test]
fn a_frame_that_a_fork_shares_does_not_become_writable() {
    with_storage(1, |rig| {
        let space = rig.space();
        let start = rig.written(&space, 2);
        space.mprotect(start, 2 * PAGE, TAGGED).unwrap();
        let child = space.fork(&rig.cpu).unwrap();
        [&space, &child].into_iter().for_each(|space| assert_waits(rig.entry(space, start)));
        rig.fault(&child, start, Access::Write).unwrap();
        let entry = rig.entry(&child, start);
        assert!(entry.is_valid() && !entry.may_be_written(), "{entry:?}");
        assert_eq!(entry.address(), rig.entry(&space, start).address());
        rig.set_tag(&child, start, 5);
        rig.fault(&child, start, Access::Write).unwrap();
        let copy = rig.entry(&child, start);
        assert!(copy.is_writable() && copy.address() != entry.address());
        assert_eq!(rig.tag(&child, start), 5);
        assert!(rig.spaces.record(copy.address()).has_tag_storage());
        rig.write(&child, start, 99);
        assert_eq!((rig.read(&space, start), rig.read(&child, start)), (1, 99));
        // The last holder is alone.
        drop(child);
        rig.fault(&space, start + PAGE, Access::Write).unwrap();
        assert!(rig.entry(&space, start + PAGE).is_writable());
        rig.check();
    });
}

#[test]
fn a_new_page_reserves_in_its_first_fault_and_waits_only_where_that_fails() {
    with_storage(1, |rig| {
        let space = rig.space();
        let start = space.mmap(&rig.cpu, &MapRequest { protection: TAGGED, ..private(4) }).unwrap();
        rig.fault(&space, start, Access::Write).unwrap();
        assert!(rig.entry(&space, start).is_writable());
        // The page of zeros has its storage from the boot on.
        rig.fault(&space, start + PAGE, Access::Read).unwrap();
        assert!(rig.entry(&space, start + PAGE).is_valid());
        // No ordinary frame: what is lent never has tags.
        let taken = rig.exhaust();
        rig.fault(&space, start + 2 * PAGE, Access::Write).unwrap();
        assert_waits(rig.entry(&space, start + 2 * PAGE));
        assert!(rig.storage().is_tag_storage(rig.entry(&space, start + 2 * PAGE).address().frame_number()));
        rig.give_back(taken);
        // It moves out first.
        rig.fault(&space, start + 2 * PAGE, Access::Write).unwrap();
        rig.fault(&space, start + 2 * PAGE, Access::Write).unwrap();
        let entry = rig.entry(&space, start + 2 * PAGE);
        assert!(entry.is_writable() && !rig.storage().is_tag_storage(entry.address().frame_number()), "{entry:?}");
        assert_eq!(rig.stats().borrowed, 0);
        rig.check();
    });
}

#[test]
fn what_lies_in_the_storage_moves_away() {
    for block_frames in [1, 2, 8] {
        with_storage(block_frames, |rig| {
            let space = rig.space();
            let [start, other] = occupied(rig, &space);
            assert_eq!(rig.stats().borrowed, 1);
            rig.fault(&space, start, Access::Write).unwrap();
            assert!(rig.entry(&space, start).is_writable());
            assert_eq!((rig.read(&space, start), rig.read(&space, other)), (1, 1));
            let stats = rig.stats();
            assert_eq!((stats.borrowed, stats.migrations, stats.reserved / block_frames), (0, 1, 2));
            assert!(!rig.storage().is_tag_storage(rig.entry(&space, other).address().frame_number()));
            rig.check();
        });
    }
}

/// Holds a frame, as something that works on it does.
fn pin(rig: &Rig, frame: PhysAddr) -> impl FnOnce() + '_ {
    rig.spaces.record(frame).share();
    move || rig.spaces.drop_frame(&rig.cpu, frame)
}

#[test]
fn a_page_whose_storage_is_pinned_is_replayed_and_then_moves() {
    with_storage(1, |rig| {
        let space = rig.space();
        let [start, other] = [rig.written(&space, 1), rig.written(&space, 1)];
        let frame = rig.entry(&space, start).address();
        rig.put_into_storage_of(&space, other, frame);
        let unpin = pin(rig, rig.entry(&space, other).address());
        space.mprotect(start, PAGE, TAGGED).unwrap();
        for _ in 0..REPLAYS {
            rig.fault(&space, start, Access::Write).unwrap();
            assert_waits(rig.entry(&space, start));
            assert_eq!(rig.entry(&space, start).address(), frame);
        }
        // Frames near it have the same storage: the page finds one that has another.
        rig.fault(&space, start, Access::Write).unwrap();
        assert_ne!(rig.entry(&space, start).address(), frame);
        rig.fault(&space, start, Access::Write).unwrap();
        assert!(rig.entry(&space, start).is_writable());
        assert_eq!((rig.read(&space, start), rig.read(&space, other)), (1, 1));
        let stats = rig.stats();
        assert_eq!((stats.moved_pages, stats.borrowed), (1, 1));
        assert_eq!((stats.replays.iter().sum::<u64>(), stats.replays[4]), (1, 1), "9 replays: {stats}");
        unpin();
        rig.check();
    });
}

/// `lab=no-replay-limit`: a long pin replays for ever.
#[test]
fn without_the_limit_a_pin_replays_for_ever() {
    with_switch(1, &[lab::NO_REPLAY_LIMIT.identifier], |rig| {
        let space = rig.space();
        let [start, other] = occupied(rig, &space);
        let unpin = pin(rig, rig.entry(&space, other).address());
        for _ in 0..10 * REPLAYS {
            rig.fault(&space, start, Access::Write).unwrap();
            assert_waits(rig.entry(&space, start));
        }
        unpin();
        rig.fault(&space, start, Access::Write).unwrap();
        assert!(rig.entry(&space, start).is_writable());
        let stats = rig.stats();
        assert_eq!((stats.replays.iter().sum::<u64>(), stats.replays[7]), (1, 1), "80 replays: {stats}");
    });
}

#[test]
fn where_page_and_storage_are_pinned_the_fault_waits() {
    with_storage(1, |rig| {
        let space = rig.space();
        let [start, other] = occupied(rig, &space);
        let pins = [start, other].map(|page| pin(rig, rig.entry(&space, page).address()));
        for _ in 0..3 * REPLAYS {
            assert_eq!(rig.fault(&space, start, Access::Write), Ok(()));
            assert_waits(rig.entry(&space, start));
        }
        pins.into_iter().for_each(|unpin| unpin());
        rig.fault(&space, start, Access::Write).unwrap();
        rig.fault(&space, start, Access::Write).unwrap();
        assert!(rig.entry(&space, start).is_valid());
        rig.check();
    });
}

/// Replay, then migrate, then out of memory.
#[test]
fn without_a_frame_to_move_to_memory_is_out() {
    with_storage(1, |rig| {
        let space = rig.space();
        let [start, other] = occupied(rig, &space);
        let unpin = pin(rig, rig.entry(&space, other).address());
        (0..REPLAYS).for_each(|_| rig.fault(&space, start, Access::Write).unwrap());
        let taken = rig.exhaust_all();
        assert_eq!(rig.fault(&space, start, Access::Write), Err(FaultError::OutOfMemory));
        assert_waits(rig.entry(&space, start));
        rig.give_back(taken);
        unpin();
        rig.fault(&space, start, Access::Write).unwrap();
        assert!(rig.entry(&space, start).is_valid());
        rig.check();
    });
}

/// Of two pages that have tags, one that a child shares stays read-only when stores are permitted again.
#[test]
fn a_tagged_page_that_is_shared_does_not_become_writable() {
    with_storage(1, |rig| {
        let space = rig.space();
        let start = rig.written(&space, 2);
        space.mprotect(start, 2 * PAGE, TAGGED).unwrap();
        (0..2).for_each(|page| rig.fault(&space, start + page * PAGE, Access::Write).unwrap());
        let child = space.fork(&rig.cpu).unwrap();
        // The second is the parent's alone again.
        child.madvise_dontneed(&rig.cpu, start + PAGE, PAGE).unwrap();
        space.mprotect(start, 2 * PAGE, Protection::NONE).unwrap();
        space.mprotect(start, 2 * PAGE, TAGGED).unwrap();
        let entries = [0, 1].map(|page| rig.entry(&space, start + page * PAGE));
        assert!(entries.iter().all(|entry| entry.is_valid() && entry.is_tagged()), "{entries:?}");
        assert_eq!(entries.map(Descriptor::may_be_written), [false, true]);
        rig.write(&space, start, 9);
        assert_eq!((rig.read(&child, start), rig.read(&space, start)), (1, 9));
    });
}

/// A long block is not claimed while a spinning lock may be held; and what is not had as a whole is not had in part.
#[test]
fn what_is_had_at_once_is_short_and_whole() {
    with_storage(32, |rig| {
        let frame = rig.frames.alloc_movable(&rig.cpu).unwrap();
        let (record, before) = (rig.spaces.record(frame), rig.stats().users);
        assert_eq!(rig.storage().try_reserve(frame, record), Err(Unreserved::Occupied));
        assert_eq!(rig.storage().try_reserve_long(frame, record), Ok(()));
        assert_eq!(rig.stats().users, before + 1);
        rig.frames.free(&rig.cpu, frame);
        assert_eq!(rig.stats().users, before);
    });
    with_storage(1, |rig| {
        let space = rig.space();
        let block = rig.frames.alloc_blocks(&rig.cpu, 0).unwrap();
        let (beside, before) = (rig.written(&space, 1), rig.stats().users);
        rig.put_into_storage_of(&space, beside, block + 40 * PAGE);
        let record = rig.spaces.record(block);
        assert_eq!(rig.storage().try_reserve_block(block, record), Err(Unreserved::Occupied));
        assert_eq!(rig.stats().users, before);
        drop(space);
        assert_eq!(rig.storage().try_reserve_block(block, record), Ok(()));
        assert_eq!(rig.stats().users, before + BLOCK_FRAMES as u64);
    });
}

/// Between the look at a page that waits and the attempt to reserve its storage the page may become a part of a group.
#[test]
fn a_group_that_came_meanwhile_becomes_valid_as_a_whole_or_not_at_all() {
    with_storage(1, |rig| {
        let space = rig.space();
        let [at, other] = occupied_block(rig, &space);
        let unpin = pin(rig, rig.entry(&space, other).address());
        space.mprotect(at, BLOCK_SIZE, TAGGED).unwrap();
        rig.fault(&space, at, Access::Write).unwrap();
        let entries = || (0..GROUP_PAGES as u64).map(|page| rig.entry(&space, at + page * PAGE));
        assert!(entries().all(|entry| entry.is_fault_on_access() && entry.is_contiguous()));
        for page in [0, 1] {
            space.fault_on_access(&rig.cpu, at + page * PAGE, Access::Write).unwrap();
            assert!(entries().all(|entry| entry.is_fault_on_access() && entry.is_contiguous()), "{page}");
        }
        unpin();
        rig.write(&space, at + PAGE, 8);
        assert!(entries().all(|entry| entry.is_valid()));
        assert_eq!([0, 1].map(|page| rig.read(&space, at + page * PAGE)), [7, 8]);
        rig.check();
    });
}

/// Of a run only pages that lack storage wait.
#[test]
fn a_page_that_has_storage_does_not_wait_again() {
    with_storage(1, |rig| {
        let space = rig.space();
        // Of three blocks of storage.
        let start = rig.written(&space, 100);
        space.mprotect(start, 100 * PAGE, TAGGED).unwrap();
        for page in [40, 41, 99] {
            rig.fault(&space, start + page * PAGE, Access::Write).unwrap();
        }
        let before = rig.stats();
        for protection in [Protection::NONE, Protection::READ.and(Protection::TAGGED), READ_WRITE, TAGGED] {
            space.mprotect(start, 100 * PAGE, protection).unwrap();
            for page in 0..100 {
                let entry = rig.entry(&space, start + page * PAGE);
                let waits = protection != Protection::NONE && ![40, 41, 99].contains(&page);
                assert_eq!(
                    (entry.is_fault_on_access(), entry.is_valid()),
                    (waits, protection != Protection::NONE && !waits),
                    "{page}: {entry:?}"
                );
            }
        }
        assert_eq!(rig.stats(), before);
        (0..100).for_each(|page| rig.write(&space, start + page * PAGE, 9));
        rig.check();
    });
}

/// Frames that are left to a call while memory runs out at one of its steps, and then some.
const LEFT: usize = 8;

/// A page of `space` that is wanted, with its storage in use by the page beside it.
fn occupied(rig: &Rig, space: &Space) -> [VirtAddr; 2] {
    let pages = [rig.written(space, 1), rig.written(space, 1)];
    rig.put_into_storage_of(space, pages[1], rig.entry(space, pages[0]).address());
    space.mprotect(pages[0], PAGE, TAGGED).unwrap();
    pages
}

/// A page with tags of 6, and one without.
fn tagged(rig: &Rig, space: &Space) -> [VirtAddr; 2] {
    let pages = [rig.written(space, 1), rig.written(space, 1)];
    space.mprotect(pages[0], PAGE, TAGGED).unwrap();
    rig.fault(space, pages[0], Access::Write).unwrap();
    rig.set_tag(space, pages[0], 6);
    pages
}

/// As [`tagged`], for a page that a child will share; the storage of the frame that a copy gets first is in use.
fn copied(rig: &Rig, space: &Space) -> [VirtAddr; 2] {
    let pages = tagged(rig, space);
    let next = rig.frames.alloc_movable(&rig.cpu).unwrap();
    rig.frames.free(&rig.cpu, next);
    if rig.block_of(next) != rig.block_of(rig.entry(space, pages[0]).address()) {
        rig.put_into_storage_of(space, pages[1], next);
    }
    pages
}

type Prepare = fn(&Rig, &Space) -> [VirtAddr; 2];

#[test]
fn where_memory_runs_out_at_a_step_the_page_is_as_it_was_and_later_served() {
    let mut refused = [0; 4];
    for (case, (prepare, forks)) in
        [(occupied as Prepare, false), (occupied, true), (copied, true), (copied, false)].into_iter().enumerate()
    {
        for left in 0..LEFT {
            with_storage(1, |rig| {
                let space = rig.space();
                let [start, beside] = prepare(rig, &space);
                let child = forks.then(|| space.fork(&rig.cpu).unwrap());
                let unpin = pin(rig, rig.entry(&space, beside).address());
                let mut taken = rig.exhaust_all();
                rig.give_back(taken.drain(..left).collect());
                let used = rig.used();
                for _ in 0..3 * REPLAYS {
                    match rig.fault(&space, start, Access::Write) {
                        Ok(()) => {}
                        Err(error) => {
                            assert_eq!(error, FaultError::OutOfMemory);
                            assert_eq!(rig.used(), used, "a frame is leaked: {left} left");
                            refused[case] += 1;
                        }
                    }
                }
                rig.give_back(taken);
                unpin();
                (0..3).for_each(|_| rig.fault(&space, start, Access::Write).unwrap());
                assert!(rig.entry(&space, start).is_writable(), "{left} left: {:?}", rig.entry(&space, start));
                assert_eq!((rig.read(&space, start), rig.read(&space, beside)), (1, 1));
                drop(child);
                rig.frames.drain_cpu(&rig.cpu);
                rig.check();
                drop(space);
                assert_eq!(rig.stats().users, 1, "{left} left");
            });
        }
    }
    assert!(refused[..3].iter().all(|&refused| refused > 0), "memory is out at some step of each: {refused:?}");
}

/// A copy that is needed no more when its frame has storage: that frame is given back.
#[test]
fn a_copy_that_is_not_needed_any_more_leaves_no_frame() {
    let mut nth = 0;
    while with_storage(1, |rig| {
        let space = rig.space();
        let [start, beside] = tagged(rig, &space);
        let child = space.fork(&rig.cpu).unwrap();
        // The frame that comes next is one whose storage is in use.
        let mut frames: Vec<_> = core::iter::from_fn(|| rig.frames.alloc_movable(&rig.cpu).ok()).take(64).collect();
        let next = frames.pop().unwrap();
        rig.put_into_storage_of(&space, beside, next);
        rig.give_back(frames);
        rig.frames.free(&rig.cpu, next);
        let there = space.clone();
        let discard = move |cpu: &Cpu| there.madvise_dontneed(cpu, start, PAGE).unwrap();
        let met = meet(&[&space], start, || _ = rig.fault(&space, start, Access::Write), discard, nth);
        drop((space, child));
        rig.frames.drain_cpu(&rig.cpu);
        assert_eq!((rig.used(), rig.stats().users), (0, 1), "{nth}");
        met
    }) {
        nth += 1;
    }
    assert!(nth > 4, "{nth} moments");
}

#[test]
fn a_pin_at_each_step_is_waited_for_or_the_page_moves() {
    for prepare in [occupied as Prepare, copied] {
        for pinned in [0, 1] {
            let mut nth = 0;
            while with_storage(1, |rig| {
                let space = rig.space();
                let pages = prepare(rig, &space);
                let child = space.fork(&rig.cpu).unwrap();
                let (there, held) = (space.clone(), Rc::new(Cell::new(None)));
                let hold = {
                    let held = held.clone();
                    move |_: &Cpu| {
                        let cell = there.page_tables().cell(pages[pinned]);
                        let entry = cell.map(|(_, cell)| there.mmu().load(cell)).filter(|entry| entry.is_present());
                        if let Some(frame) = entry.map(Descriptor::address) {
                            there.common.record(frame).share();
                            held.set(Some(frame));
                        }
                    }
                };
                let fault = || _ = rig.fault(&space, pages[0], Access::Write);
                let met = meet_at(&[(&space, pages[0]), (&space, pages[1])], fault, hold, nth);
                for _ in 0..3 * REPLAYS {
                    rig.fault(&space, pages[0], Access::Write).unwrap();
                }
                held.take().into_iter().for_each(|frame| rig.spaces.drop_frame(&rig.cpu, frame));
                (0..3).for_each(|_| rig.fault(&space, pages[0], Access::Write).unwrap());
                let entry = rig.entry(&space, pages[0]);
                assert!(entry.is_writable() && entry.is_tagged(), "{nth}: {entry:?}");
                assert_eq!(pages.map(|page| rig.read(&space, page)), [1, 1], "{nth}");
                assert_eq!(pages.map(|page| rig.read(&child, page)), [1, 1], "{nth}");
                drop(child);
                rig.frames.drain_cpu(&rig.cpu);
                rig.check();
                drop(space);
                assert_eq!(rig.stats().users, 1, "{nth}");
                met
            }) {
                nth += 1;
            }
            assert!(nth > 1, "the fault is met");
        }
    }
}

fn block_of_zeros(rig: &Rig, space: &Space) -> VirtAddr {
    let at = VirtAddr(0x10_0020_0000);
    space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(at), ..private(BLOCK_FRAMES as u64) }).unwrap();
    space.madvise_areas(&rig.cpu, at, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
    at
}

/// A block, and a page that lies in the storage of its 40th.
fn occupied_block(rig: &Rig, space: &Space) -> [VirtAddr; 2] {
    let pages = [block_of_zeros(rig, space), rig.written(space, 1)];
    rig.write(space, pages[0], 7);
    let frame = space.block_entry(pages[0]).unwrap().address();
    rig.put_into_storage_of(space, pages[1], frame + 40 * PAGE);
    pages
}

#[test]
fn a_device_frame_and_memory_that_no_region_covers_need_none() {
    host::with(&[branch::MTE, branch::TAG_STORAGE], || {
        // The region is another allocator's.
        let rig = Rig::new(4);
        rig.spaces.start_tags().unwrap();
        let space = rig.space();
        let start = rig.written(&space, 2);
        space.mprotect(start, 2 * PAGE, TAGGED).unwrap();
        let entry = rig.entry(&space, start);
        assert!(entry.is_valid() && entry.is_tagged() && rig.spaces.record(entry.address()).has_tags());
    });
}

#[test]
fn a_mark_in_an_area_without_tags_becomes_valid() {
    with_storage(1, |rig| {
        let space = rig.space();
        let start = rig.written(&space, 1);
        let (_, cell) = space.page_tables().cell(start).unwrap();
        space.mmu().store(cell, rig.entry(&space, start).fault_on_access());
        rig.fault(&space, start, Access::Write).unwrap();
        let entry = rig.entry(&space, start);
        assert!(entry.is_writable() && !entry.is_tagged());
        assert_eq!(rig.stats().users, 1, "the page of zeros alone");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Users of each block against an oracle: pages, groups and blocks of frames that get storage and are freed.
    #[test]
    fn blocks_have_as_many_users_as_frames_have_storage(
        block_frames in prop::sample::select(&[1_u64, 2, 4, 16][..]),
        steps in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8), 1..120),
    ) {
        with_storage(block_frames, |rig| {
            let (storage, cpu) = (rig.storage(), &rig.cpu);
            let mut held: Vec<(PhysAddr, usize)> = Vec::new();
            for (which, step) in steps {
                match step {
                    0 | 1 if !held.is_empty() => {
                        let (frame, count) = held.swap_remove(which.index(held.len()));
                        if count == 1 {
                            rig.frames.free(cpu, frame);
                        } else {
                            rig.frames.free_splittable(cpu, frame);
                        }
                    }
                    3 => {
                        if let Ok(block) = rig.frames.alloc_splittable(cpu) {
                            let record = rig.spaces.record(block);
                            let note = || record.note_tag_storage();
                            prop_assert!(storage.reserve_block(rig.spaces, cpu, block, &note).is_ok());
                            held.push((block, BLOCK_FRAMES));
                        }
                    }
                    _ => {
                        let frame = rig.frames.alloc_movable(cpu).unwrap();
                        let reserve = || storage.reserve(rig.spaces, cpu, frame, rig.spaces.record(frame));
                        // Twice is once.
                        prop_assert!(reserve().is_ok() && reserve().is_ok());
                        held.push((frame, 1));
                    }
                }
                let wanted: usize = held.iter().map(|&(_, count)| count).sum();
                prop_assert_eq!(rig.stats().users, wanted as u64 + 1);
                let served = block_frames as usize * FRAMES_PER_FRAME;
                let region = &storage.regions()[0];
                let mut users = std::vec![0_u32; region.blocks().len()];
                let zeros = (rig.spaces.zeros, 1);
                for (first, count) in held.iter().copied().chain([zeros]) {
                    let first = first.frame_number() - region.tagged().start;
                    (first..first + count).for_each(|frame| users[frame / served] += 1);
                }
                let counted: Vec<u32> = region.blocks().iter().map(|block| block.users().unwrap_or(0)).collect();
                prop_assert_eq!(counted, users);
            }
            for (frame, count) in held {
                if count == 1 { rig.frames.free(cpu, frame) } else { rig.frames.free_splittable(cpu, frame) }
            }
            prop_assert_eq!(rig.stats().users, 1);
            Ok(())
        })?;
    }
}
