//! Blocks: what brings them, what changes them as a whole, and what splits them; long sequences of calls against what
//! each page holds.

#![allow(unsafe_code, reason = "the contents of frames by their linear addresses")]

mod collapse;
mod pressure;
mod shared;

use std::boxed::Box;
use std::vec;

use granule_arch::alternative::host;
use granule_arch::descriptor::Descriptor;
use granule_pgtable::host::{CacheOperation, Operation};

use super::groups::check_groups;
use super::*;
use crate::mm::kernel::record::record;
use crate::mm::notifier::{Event, Range, Subscriber, Subscription};
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::mm::space::group::GROUP_SIZE;
use crate::mm::space::{AreaAdvice, Move, Remap, SpaceError, SpaceHandle, SpaceLimits};
use crate::platform::features::branch;
use crate::sync::meeting;

const START: VirtAddr = VirtAddr(0x10_0000_0000);
const BLOCK_PAGES: u64 = BLOCK_FRAMES as u64;

fn page(index: u64) -> VirtAddr {
    START + index * PAGE
}

/// A space with `blocks` times 2 MiB at [`START`], for which blocks are wanted.
fn advised(rig: &Rig, blocks: u64) -> SpaceRef {
    let space = rig.space();
    let request = MapRequest { placement: Placement::Fixed(START), ..private(blocks * BLOCK_PAGES) };
    space.mmap(&rig.cpu, &request).unwrap();
    space.madvise_areas(&rig.cpu, START, blocks * BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
    space
}

/// The size of the leaf that translates `page`, and its entry.
fn leaf(space: &Space, page: VirtAddr) -> Option<(u64, Descriptor)> {
    let tables = space.tables();
    tables
        .translate(page)
        .filter(|found| found.descriptor.is_present())
        .map(|found| (found.leaf_size, found.descriptor))
}

fn size(space: &Space, page: VirtAddr) -> u64 {
    leaf(space, page).map_or(0, |(size, _)| size)
}

fn present(space: &Space, page: VirtAddr, pages: usize) -> usize {
    let mut present = vec![0; pages];
    space.mincore(page, &mut present).unwrap();
    present.iter().map(|&byte| usize::from(byte)).sum()
}

#[test]
fn the_first_access_brings_a_block_where_one_is_wanted_and_fits() {
    let rig = Rig::new(16);
    let space = advised(&rig, 2);
    rig.write(&space, page(3), 1);
    assert_eq!((size(&space, page(0)), size(&space, page(BLOCK_PAGES))), (BLOCK_SIZE, 0));
    assert_eq!((present(&space, page(0), 2 * BLOCK_FRAMES), footprint(&space).pages), (BLOCK_FRAMES, BLOCK_FRAMES));
    // Read: a block of its own too, so that a store faults no more.
    assert_eq!(rig.read(&space, page(BLOCK_PAGES + 7)), 0);
    assert!(leaf(&space, page(BLOCK_PAGES)).is_some_and(|(size, entry)| size == BLOCK_SIZE && entry.is_dirty()));
    assert_eq!(rig.used(), 2 * BLOCK_FRAMES + space.table_frames());
    drop(space);
    assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0));

    // Not wanted, not whole, or of an object: pages.
    let space = rig.space();
    let map = |pages: u64, sharing, at| {
        let request = MapRequest { placement: Placement::Fixed(at), sharing, ..private(pages) };
        space.mmap(&rig.cpu, &request).unwrap();
    };
    map(BLOCK_PAGES, Sharing::Private, page(0));
    map(BLOCK_PAGES, Sharing::Shared, page(2 * BLOCK_PAGES));
    map(BLOCK_PAGES - 1, Sharing::Private, page(4 * BLOCK_PAGES + 1));
    for at in [2 * BLOCK_PAGES, 4 * BLOCK_PAGES + 1] {
        space.madvise_areas(&rig.cpu, page(at), (BLOCK_PAGES - 1) * PAGE, AreaAdvice::HugePage).unwrap();
    }
    for at in [0, 2 * BLOCK_PAGES, 4 * BLOCK_PAGES + 1] {
        rig.write(&space, page(at), 1);
        assert_eq!(size(&space, page(at)), PAGE);
    }
    space.madvise_areas(&rig.cpu, page(0), BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
    space.madvise_areas(&rig.cpu, page(0), BLOCK_SIZE, AreaAdvice::NoHugePage).unwrap();
    space.madvise_dontneed(&rig.cpu, page(0), BLOCK_SIZE).unwrap();
    rig.write(&space, page(0), 1);
    assert_eq!(size(&space, page(0)), PAGE);
}

#[test]
fn where_no_block_is_free_pages_serve() {
    let rig = Rig::new(16);
    let space = advised(&rig, 1);
    rig.frames.drain_cpu(&rig.cpu);
    let taken: Vec<_> = core::iter::from_fn(|| rig.frames.alloc_blocks(&rig.cpu, 0).ok()).collect();
    rig.write(&space, page(3), 7);
    assert_eq!((size(&space, page(3)), rig.read(&space, page(3))), (PAGE, 7));
    taken.into_iter().for_each(|block| rig.frames.free_blocks(&rig.cpu, block, 0));
    drop(space);
    assert_eq!(rig.used(), 0);
}

#[test]
fn what_concerns_the_whole_changes_the_block_and_what_concerns_a_part_splits_it() {
    let rig = Rig::new(32);
    for live in [&[][..], &[branch::SIZE_CHANGE]] {
        host::with(live, || {
            let fresh = || {
                let space = advised(&rig, 1);
                rig.write(&space, page(5), 5);
                space
            };
            let space = fresh();
            for protection in [Protection::READ, Protection::NONE, READ_WRITE] {
                space.mprotect(page(0), BLOCK_SIZE, protection).unwrap();
                let (size, entry) = leaf(&space, page(0)).unwrap();
                assert_eq!((size, entry.is_valid()), (BLOCK_SIZE, protection != Protection::NONE));
            }
            assert_eq!((rig.read(&space, page(5)), rig.used()), (5, BLOCK_FRAMES + space.table_frames()));
            let tables = space.table_frames();
            space.mprotect(page(9), PAGE, Protection::READ).unwrap();
            assert_eq!((size(&space, page(5)), rig.read(&space, page(5)), space.table_frames()), (PAGE, 5, tables));
            let writable = |at| leaf(&space, page(at)).is_some_and(|(_, entry)| entry.may_be_written());
            assert_eq!((writable(8), writable(9), writable(10)), (true, false, true));
            space.munmap(&rig.cpu, page(0), BLOCK_SIZE).unwrap();
            assert_eq!(rig.used(), space.table_frames());
            drop(space);

            let space = fresh();
            space.munmap(&rig.cpu, page(BLOCK_PAGES - 1), PAGE).unwrap();
            assert_eq!((size(&space, page(5)), rig.read(&space, page(5))), (GROUP_SIZE, 5));
            assert_eq!(rig.used(), BLOCK_FRAMES - 1 + space.table_frames());

            let space = fresh();
            space.madvise_dontneed(&rig.cpu, page(0), BLOCK_SIZE).unwrap();
            assert_eq!((leaf(&space, page(5)), present(&space, page(0), BLOCK_FRAMES)), (None, 0));
            rig.write(&space, page(0), 1);
            assert_eq!((size(&space, page(5)), rig.read(&space, page(5))), (BLOCK_SIZE, 0));
            space.madvise_dontneed(&rig.cpu, page(1), PAGE).unwrap();
            assert_eq!((present(&space, page(0), BLOCK_FRAMES), rig.read(&space, page(0))), (BLOCK_FRAMES - 1, 1));

            // To another table, to the same one, to where it is not aligned, and a part of it.
            for (first, count, to, moved) in [
                (0, BLOCK_PAGES, page(600 * BLOCK_PAGES), BLOCK_SIZE),
                (0, BLOCK_PAGES, page(4 * BLOCK_PAGES), BLOCK_SIZE),
                (0, BLOCK_PAGES, page(4 * BLOCK_PAGES + 1), PAGE),
                (1, BLOCK_PAGES - 1, page(4 * BLOCK_PAGES + 1), PAGE),
            ] {
                let used = rig.used();
                let space = fresh();
                let mut request = Remap::new(page(first), count * PAGE, count * PAGE, Move::To(to), false).unwrap();
                space.mremap(&rig.cpu, &mut request, &SpaceLimits::NONE).unwrap();
                let at = to + (5 - first) * PAGE;
                assert_eq!((rig.read(&space, at), size(&space, at), leaf(&space, page(5))), (5, moved, None));
                // It has its table and is found at its place: it migrates, and is split.
                assert_eq!(rig.migrate(&rig.cpu, &space, at), Some(Ok(())));
                space.mprotect(at + PAGE, PAGE, Protection::READ).unwrap();
                assert_eq!((rig.read(&space, at), size(&space, at)), (5, PAGE));
                assert_eq!(rig.migrate(&rig.cpu, &space, at), Some(Ok(())));
                assert_eq!(rig.used() - used, BLOCK_FRAMES + space.table_frames());
            }

            let space = fresh();
            space.madvise_guard(&rig.cpu, page(2), PAGE, &|| false).unwrap();
            assert_eq!((rig.read(&space, page(5)), present(&space, page(0), BLOCK_FRAMES)), (5, BLOCK_FRAMES - 1));
            space.madvise_unguard(page(0), BLOCK_SIZE).unwrap();
            assert_eq!(space.madvise_populate(&rig.cpu, page(0), BLOCK_SIZE, Access::Write, &|| false), Ok(()));
            assert_eq!((present(&space, page(0), BLOCK_FRAMES), rig.read(&space, page(5))), (BLOCK_FRAMES, 5));
        });
        assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0));
    }
}

#[test]
fn populate_brings_blocks_and_leaves_them_whole() {
    let rig = Rig::new(16);
    let space = advised(&rig, 2);
    for _ in 0..2 {
        space.madvise_populate(&rig.cpu, page(0), 2 * BLOCK_SIZE, Access::Write, &|| false).unwrap();
        assert_eq!((size(&space, page(0)), size(&space, page(BLOCK_PAGES))), (BLOCK_SIZE, BLOCK_SIZE));
    }
    // Shared with a child, it is populated for writing by a copy.
    let child = space.fork(&rig.cpu).unwrap();
    space.madvise_populate(&rig.cpu, page(0), BLOCK_SIZE, Access::Write, &|| false).unwrap();
    let [own, its] = [&space, &child].map(|space| leaf(space, page(0)).unwrap());
    assert!(own.0 == BLOCK_SIZE && its.0 == BLOCK_SIZE && own.1.address() != its.1.address());
    space.madvise_guard(&rig.cpu, page(0), BLOCK_SIZE, &|| false).unwrap();
    assert_eq!(
        space.madvise_populate(&rig.cpu, page(0), BLOCK_SIZE, Access::Read, &|| false),
        Err(SpaceError::Unusable)
    );
}

#[test]
fn a_child_shares_the_block_and_a_store_copies_reuses_or_splits_it() {
    let rig = Rig::new(32);
    let space = advised(&rig, 1);
    rig.write(&space, page(1), 1);
    rig.write(&space, page(500), 5);
    let child = space.fork(&rig.cpu).unwrap();
    assert_eq!(rig.used(), BLOCK_FRAMES + space.table_frames() + child.table_frames());
    let [own, its] = [&space, &child].map(|space| leaf(space, page(0)).unwrap());
    assert_eq!((own.0, its.0, own.1.address()), (BLOCK_SIZE, BLOCK_SIZE, its.1.address()));
    assert!(!own.1.may_be_written() && !its.1.may_be_written());

    // Copied, then alone: reused in place.
    rig.write(&child, page(1), 2);
    let copy = leaf(&child, page(0)).unwrap();
    assert!(copy.0 == BLOCK_SIZE && copy.1.address() != own.1.address());
    rig.write(&space, page(2), 9);
    assert_eq!(leaf(&space, page(0)).unwrap().1.address(), own.1.address());
    let bytes = |space: &Space| [1, 2, 500].map(|at| rig.read(space, page(at)));
    assert_eq!((bytes(&space), bytes(&child)), ([1, 9, 5], [2, 0, 5]));
    drop(child);

    // Divided by one, while two others have it as a block.
    let [child, other] = [(); 2].map(|()| space.fork(&rig.cpu).unwrap());
    space.mprotect(page(3), PAGE, Protection::READ).unwrap();
    assert_eq!([&space, &child, &other].map(|space| size(space, page(0))), [PAGE, BLOCK_SIZE, BLOCK_SIZE]);
    let grandchild = child.fork(&rig.cpu).unwrap();
    rig.write(&child, page(2), 3);
    assert_eq!(size(&child, page(0)), BLOCK_SIZE);
    rig.write(&space, page(2), 4);
    drop(other);
    let all = [&space, &child, &grandchild];
    assert_eq!(all.map(|space| rig.read(space, page(2))), [4, 3, 9]);
    drop(space);
    // The last that has it has it to itself, but the page that was copied.
    let before = leaf(&grandchild, page(0)).unwrap().1.address();
    rig.write(&grandchild, page(4), 8);
    assert_eq!(leaf(&grandchild, page(0)).unwrap().1.address(), before);
    drop((child, grandchild));
    assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0));

    // No page block for the copy: split, and a page copied.
    let space = advised(&rig, 1);
    rig.write(&space, page(1), 1);
    let child = space.fork(&rig.cpu).unwrap();
    let _some = rig.frames.alloc(&rig.cpu).unwrap();
    let taken: Vec<_> = core::iter::from_fn(|| rig.frames.alloc_blocks(&rig.cpu, 0).ok()).collect();
    rig.write(&child, page(1), 2);
    assert_eq!((size(&child, page(1)), size(&space, page(1))), (PAGE, BLOCK_SIZE));
    assert_eq!((rig.read(&child, page(1)), rig.read(&space, page(1))), (2, 1));
    taken.into_iter().for_each(|block| rig.frames.free_blocks(&rig.cpu, block, 0));
}

/// Some pages of a split block are one space's alone, and the rest is not.
#[test]
fn a_block_of_which_a_part_is_shared_is_copied() {
    let rig = Rig::new(32);
    let space = advised(&rig, 1);
    rig.write(&space, page(1), 1);
    let child = space.fork(&rig.cpu).unwrap();
    space.munmap(&rig.cpu, page(5), PAGE).unwrap();
    assert_eq!((size(&space, page(1)), size(&child, page(1))), (PAGE, BLOCK_SIZE));
    child.mprotect(page(0), BLOCK_SIZE, Protection::READ).unwrap();
    child.mprotect(page(0), BLOCK_SIZE, READ_WRITE).unwrap();
    assert!(leaf(&child, page(1)).is_some_and(|(_, entry)| !entry.may_be_written()));
    rig.write(&child, page(1), 2);
    assert_eq!([&space, &child].map(|space| rig.read(space, page(1))), [1, 2]);
    drop((space, child));
    assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0));
}

/// Discards all of a block when a change of it begins.
struct Discards(SpaceHandle, core::sync::atomic::AtomicBool);

impl Subscriber for Discards {
    fn invalidate_range_start(&self, range: &Range) {
        if range.event == Event::Clear && !self.1.swap(true, core::sync::atomic::Ordering::Relaxed) {
            let space = self.0.upgrade().unwrap();
            space.madvise_dontneed(&Cpu::new(CpuId(1)), START, BLOCK_SIZE).unwrap();
        }
    }
}

#[test]
fn a_block_that_goes_while_it_is_copied_is_not_brought_back() {
    let rig = Rig::new(32);
    let space = advised(&rig, 1);
    rig.write(&space, page(1), 1);
    let child = space.fork(&rig.cpu).unwrap();
    let discards = Discards(SpaceHandle::new(&space), core::sync::atomic::AtomicBool::new(false));
    let listener = Subscription::new(space.clone(), discards, 0).unwrap();
    rig.write(&space, page(2), 2);
    assert_eq!([1, 2].map(|at| rig.read(&space, page(at))), [0, 2]);
    assert_eq!([1, 2].map(|at| rig.read(&child, page(at))), [1, 0]);
    drop((listener, space, child));
    rig.frames.drain_cpu(&Cpu::new(CpuId(1)));
    assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0));
}

/// The flag of the first page's record, for code that is visible to fetches, says nothing of the other pages where
/// another space has split the block.
#[test]
fn code_in_a_block_that_another_space_has_split_is_made_visible() {
    let rig = Rig::new(32);
    let space = advised(&rig, 1);
    rig.write(&space, page(3), 1);
    let child = space.fork(&rig.cpu).unwrap();
    let cleaned = |work: &dyn Fn()| host::with(&[], || record(work)).iter().map(bytes_cleaned).sum::<u64>();
    let execute = |space: &Space, bytes| space.mprotect(page(0), bytes, READ_EXECUTE).unwrap();
    assert_eq!(cleaned(&|| execute(&space, PAGE)), PAGE);
    assert_eq!(cleaned(&|| execute(&child, BLOCK_SIZE)), BLOCK_SIZE - PAGE);
    assert_eq!(size(&child, page(0)), BLOCK_SIZE);
    // Once for each block, also split.
    let space = advised(&rig, 1);
    rig.write(&space, page(3), 1);
    assert_eq!(cleaned(&|| execute(&space, BLOCK_SIZE)), BLOCK_SIZE);
    space.mprotect(page(0), BLOCK_SIZE, READ_WRITE).unwrap();
    assert_eq!(cleaned(&|| execute(&space, 9 * PAGE)), 0);
    assert_eq!((size(&space, page(0)), cleaned(&|| execute(&space, BLOCK_SIZE))), (PAGE, 0));
    assert_eq!(size(&space, page(0)), GROUP_SIZE);
    // No block comes where code is cleaned by lines; less does.
    space.mprotect(page(0), BLOCK_SIZE, READ_WRITE.and(Protection::EXECUTE)).unwrap();
    space.madvise_dontneed(&rig.cpu, page(0), BLOCK_SIZE).unwrap();
    rig.write(&space, page(3), 1);
    assert_eq!(size(&space, page(3)), GROUP_SIZE);
}

/// While one space makes the whole block executable another divides it and makes the first page so: the record of that
/// then says nothing of the block.
#[test]
fn code_in_a_block_that_is_divided_while_it_is_made_visible_is_visible() {
    for nth in 0.. {
        let rig = Rig::new(32);
        let space = advised(&rig, 1);
        rig.write(&space, page(3), 1);
        let child = space.fork(&rig.cpu).unwrap();
        let execute = |space: &Space, bytes| space.mprotect(page(0), bytes, READ_EXECUTE).unwrap();
        let first = || host::with(&[], || record(|| execute(&space, BLOCK_SIZE)));
        let (operations, (), is_there) = meeting::meet(nth, first, || execute(&child, PAGE));
        let cleaned: u64 = operations.iter().map(bytes_cleaned).sum();
        assert!(cleaned >= BLOCK_SIZE - PAGE, "moment {nth}: {cleaned:#x} bytes");
        if !is_there {
            assert!(nth > 4, "{nth} moments");
            break;
        }
    }
}

fn bytes_cleaned(operation: &Operation) -> u64 {
    match operation {
        Operation::Cache(CacheOperation::Clean { bytes, .. }) => *bytes,
        _ => 0,
    }
}

/// Numbers that look random, the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }
}

/// Blocks in the sequences.
const BLOCKS: u64 = 3;
const PAGES: usize = (BLOCKS * BLOCK_PAGES) as usize;

/// A page: what it may be used for, and its first byte; `None` where nothing is mapped.
#[derive(Clone)]
struct Expected(Vec<Option<(Protection, u8)>>);

struct Sequence<'r> {
    rig: &'r Rig,
    numbers: Numbers,
    spaces: Vec<(SpaceRef, Expected)>,
}

impl Sequence<'_> {
    /// Some pages, more often whole blocks, or up to where one ends.
    fn range(&mut self) -> (u64, u64) {
        let first = self.numbers.below(BLOCKS) * BLOCK_PAGES;
        match self.numbers.below(4) {
            0 => (first, BLOCK_PAGES),
            1 => (0, BLOCKS * BLOCK_PAGES),
            2 => {
                let start = first + self.numbers.below(BLOCK_PAGES);
                (start, 1 + self.numbers.below(3).min(BLOCKS * BLOCK_PAGES - 1 - start))
            }
            _ => {
                let start = self.numbers.below(BLOCKS * BLOCK_PAGES);
                (start, 1 + self.numbers.below(BLOCKS * BLOCK_PAGES - start))
            }
        }
    }

    fn step(&mut self) {
        let chosen = self.numbers.below(self.spaces.len() as u64) as usize;
        let (start, count) = self.range();
        let (kind, value) = (self.numbers.below(16), 1 + self.numbers.below(255) as u8);
        let (rig, numbers, most) = (self.rig, &mut self.numbers, self.spaces.len());
        let (space, expected) = &mut self.spaces[chosen];
        let (at, bytes) = (page(start), count * PAGE);
        let pages = &mut expected.0[start as usize..(start + count) as usize];
        let covered = pages.iter().take_while(|page| page.is_some()).count();
        match kind {
            0..=3 => {
                let written = space.write_bytes(&rig.cpu, at, &[value]).is_ok();
                let may = pages[0].filter(|(protection, _)| protection.contains(Protection::WRITE));
                assert_eq!(written, may.is_some());
                pages[0] = may.map(|(protection, _)| (protection, value)).or(pages[0]);
            }
            4 => {
                let (protection, request) = (READ_WRITE, private(count));
                let request = MapRequest { placement: Placement::Fixed(at), protection, ..request };
                space.mmap(&rig.cpu, &request).unwrap();
                pages.fill(Some((protection, 0)));
                space.madvise_areas(&rig.cpu, at, bytes, AreaAdvice::HugePage).unwrap();
            }
            5 => {
                let wanted = [AreaAdvice::HugePage, AreaAdvice::NoHugePage][numbers.below(2) as usize];
                assert_eq!(space.madvise_areas(&rig.cpu, at, bytes, wanted).is_ok(), covered == pages.len());
            }
            6 => {
                space.munmap(&rig.cpu, at, bytes).unwrap();
                pages.fill(None);
            }
            7 | 8 => {
                let protection = [Protection::NONE, Protection::READ, READ_WRITE][numbers.below(3) as usize];
                assert_eq!(space.mprotect(at, bytes, protection).is_ok(), covered == pages.len());
                pages[..covered].iter_mut().flatten().for_each(|page| page.0 = protection);
            }
            9 => {
                assert_eq!(space.madvise_dontneed(&rig.cpu, at, bytes).is_ok(), covered == pages.len());
                pages.iter_mut().flatten().for_each(|page| page.1 = 0);
            }
            10 => {
                let populated = space.madvise_populate(&rig.cpu, at, bytes, Access::Write, &|| false);
                let may = |page: &Option<(Protection, u8)>| page.is_some_and(|page| page.0.contains(Protection::WRITE));
                assert_eq!(populated.is_ok(), pages.iter().all(may));
            }
            11 => {
                // To where nothing is, and back: as it was.
                let away = page(8 * BLOCKS * BLOCK_PAGES + numbers.below(2));
                let moved = |from, to| {
                    let mut request = Remap::new(from, bytes, bytes, Move::To(to), false).unwrap();
                    space.mremap(&rig.cpu, &mut request, &SpaceLimits::NONE)
                };
                if moved(at, away).is_ok() {
                    moved(away, at).unwrap();
                }
            }
            12 if most < 4 => {
                let (child, copy) = (space.fork(&rig.cpu).unwrap(), expected.clone());
                self.spaces.push((child, copy));
            }
            13 if most > 1 => drop(self.spaces.swap_remove(chosen)),
            14 => _ = rig.migrate(&rig.cpu, space, at),
            15 => _ = space.madvise_collapse(&rig.cpu, at, bytes, &|| false),
            _ => {}
        }
    }

    /// Everything that is present holds what it should, and what it should hold is present.
    fn check(&self) {
        let linear = self.rig.frames.linear();
        for (space, expected) in &self.spaces {
            check_groups(space).unwrap();
            let tables = space.tables();
            for (index, expected) in expected.0.iter().enumerate() {
                let found = tables.translate(page(index as u64)).filter(|found| found.descriptor.is_present());
                // SAFETY: the rig's memory, which no thread writes to.
                let byte = found.map(|found| unsafe { linear.address(found.physical).as_ptr::<u8>().read() });
                match expected {
                    Some((protection, value)) => {
                        assert_eq!(byte.unwrap_or(0), *value, "page {index}");
                        let writable = found.is_some_and(|found| found.descriptor.may_be_written());
                        assert!(!writable || protection.contains(Protection::WRITE), "page {index}");
                    }
                    None => assert_eq!(byte, None, "page {index}"),
                }
            }
        }
    }
}

#[test]
fn sequences_of_calls_leave_each_page_what_it_should_hold() {
    let rig = Box::leak(Box::new(Rig::new(64)));
    let mut blocks = 0;
    for seed in 1..=60 {
        let live: &[u16] = if seed % 2 == 0 { &[] } else { &[branch::SIZE_CHANGE] };
        // Every third has few page blocks.
        let left = if seed % 3 == 0 { 2 } else { usize::MAX };
        rig.frames.drain_cpu(&rig.cpu);
        let mut taken = Vec::new();
        while rig.frames.stats().free_blocks > left {
            taken.push(rig.frames.alloc_blocks(&rig.cpu, 0).unwrap());
        }
        if left == 2 {
            // Frames for pages and tables, in blocks that are cut.
            let block = taken.pop().unwrap();
            rig.frames.free_blocks(&rig.cpu, block, 0);
        }
        host::with(live, || {
            let expected = Expected(vec![None; PAGES]);
            let numbers = Numbers(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed));
            let mut sequence = Sequence { rig, numbers, spaces: vec![(rig.space(), expected)] };
            for _ in 0..if left == 2 { 12 } else { 60 } {
                sequence.step();
                sequence.check();
                blocks += sequence.spaces.iter().filter(|(space, _)| size(space, page(0)) == BLOCK_SIZE).count();
            }
        });
        taken.into_iter().for_each(|block| rig.frames.free_blocks(&rig.cpu, block, 0));
        assert_eq!((rig.used(), rig.frames.stats().refused), (0, 0), "seed {seed}");
    }
    assert!(blocks > 300, "{blocks}");
}
