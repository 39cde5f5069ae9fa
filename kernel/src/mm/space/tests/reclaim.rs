//! Pages of files that are given back, and other CPUs at each step of that.

#![allow(unsafe_code, reason = "the contents of frames by their linear addresses")]

use std::boxed::Box;
use std::cell::Cell;
use std::rc::Rc;

use granule_arch::descriptor::{Descriptor, Markers};
use granule_pgtable::host::Operation;
use granule_pgtable::{Mmu as _, Stores};

use super::*;
use crate::mm::counted::Counted;
use crate::mm::frame_limit::FrameLimit;
use crate::mm::kernel::record::{at_each, record};
use crate::mm::space::{
    Aged, AreaAdvice, Commitment, Locking, Made, MappedFile, Move, Object, ObjectError, Remap, Seals, Settings,
    SpaceLimits, Terms, Unneeded, Used, WriteAt,
};

const START: VirtAddr = VirtAddr(0x10_0000_0000);
const PAGES: u64 = 4;

fn at(page: u64) -> VirtAddr {
    START + page * PAGE
}

/// A file each page of which begins with its number and 1, and a space that maps it for reading.
struct Mapped {
    rig: &'static Rig,
    file: Counted<Object>,
    space: SpaceRef,
}

impl Mapped {
    /// Of so many pages, of which each entry was used by a read.
    fn new(sharing: Sharing, pages: u64) -> Self {
        Self::on(Box::leak(Box::new(Rig::new(2))), sharing, pages)
    }

    fn on(rig: &'static Rig, sharing: Sharing, pages: u64) -> Self {
        let mapped = Self::untouched(rig, sharing, pages);
        mapped.read(&mapped.space, pages);
        mapped
    }

    fn untouched(rig: &'static Rig, sharing: Sharing, pages: u64) -> Self {
        let mut contents = std::vec![0; (pages * PAGE) as usize];
        (0..pages).for_each(|page| contents[(page * PAGE) as usize] = page as u8 + 1);
        let contents: &'static [u8] = Box::leak(contents.into_boxed_slice());
        let size = contents.len() as u64;
        let file = rig.spaces.create_object(&rig.cpu, size, Some(contents), Seals(0)).unwrap();
        let space = rig.space();
        let mapped = Self { rig, file, space };
        mapped.map(&mapped.space, sharing, pages);
        mapped
    }

    fn map(&self, space: &Space, sharing: Sharing, pages: u64) {
        let protection = if sharing == Sharing::Shared { Protection::READ } else { READ_WRITE };
        let request = MapRequest { placement: Placement::Fixed(START), sharing, protection, ..private(pages) };
        let may_write = sharing == Sharing::Private;
        let terms = Terms { file: Some(MappedFile { object: &self.file, first_page: 0, may_write }), ..Terms::NONE };
        space.mmap_within(&self.rig.cpu, &request, &terms, &|| false).unwrap();
    }

    fn read(&self, space: &Space, pages: u64) {
        (0..pages).for_each(|page| assert_eq!(self.rig.read(space, at(page)), page as u8 + 1, "page {page}"));
    }

    /// One pass; how many frames it has freed.
    fn reclaim(&self) -> usize {
        self.rig.spaces.reclaim(&self.rig.cpu, usize::MAX, Used::Age, &|| false)
    }

    fn entry(&self, page: u64) -> Descriptor {
        let cell = self.space.page_tables().cell(at(page));
        cell.map_or(Descriptor::EMPTY, |(_, cell)| self.space.mmu().load(cell))
    }

    fn is_stale(&self, page: u64) -> bool {
        self.entry(page) == Descriptor::from(Markers::STALE)
    }

    /// Drops all; nothing is left.
    fn end(self) {
        let Self { rig, file, space } = self;
        drop((space, file));
        assert_eq!((rig.used(), rig.spaces.counts()), (0, [0; 3]));
        assert_eq!(rig.frames.stats().refused, 0, "a frame is freed twice");
    }
}

#[test]
fn pages_that_were_not_used_of_late_are_given_back_and_come_again() {
    for sharing in [Sharing::Shared, Sharing::Private] {
        let mapped = Mapped::new(sharing, 70);
        let other = mapped.rig.space();
        mapped.map(&other, Sharing::Shared, 70);
        mapped.read(&other, 70);
        let used = mapped.rig.used();
        // The first pass makes them old, the second one takes them.
        assert_eq!((mapped.reclaim(), mapped.rig.used()), (0, used));
        assert_eq!((mapped.reclaim(), mapped.rig.used()), (70, used - 70));
        assert!((0..70).all(|page| mapped.is_stale(page)));
        assert_eq!((mapped.file.pages(), mapped.reclaim()), (0, 0));
        mapped.read(&mapped.space, 70);
        mapped.read(&other, 70);
        assert_eq!(mapped.rig.used(), used);
        drop(other);
        mapped.end();
    }
}

#[test]
fn pages_in_use_stay_and_those_that_are_locked() {
    let mapped = Mapped::new(Sharing::Shared, 70);
    let cpu = &mapped.rig.cpu;
    // The first look finds them used; then one is used again, with those that are looked at together.
    for first in [0, 32, 64] {
        assert_eq!(mapped.file.reclaim(cpu, first..first + 32, Used::Age), 0);
    }
    handle_fault(&mapped.space, cpu, at(40), Access::Read).unwrap();
    assert_eq!([0, 32, 64].map(|first| mapped.file.reclaim(cpu, first..first + 32, Used::Age)), [32, 0, 6]);
    mapped.read(&mapped.space, 70);
    mapped.space.mlock(cpu, at(0), PAGE, Locking::Now, &|| false).unwrap();
    // The kernel's reads are uses too.
    assert_eq!([mapped.reclaim(), mapped.reclaim()], [0, 38]);
    assert!((0..32).all(|page| !mapped.is_stale(page)) && (32..70).all(|page| mapped.is_stale(page)));
    mapped.space.mlock(cpu, at(0), PAGE, Locking::None, &|| false).unwrap();
    // Not by a pass that leaves what is in use.
    let keep = || mapped.rig.spaces.reclaim(cpu, usize::MAX, Used::Keep, &|| false);
    assert_eq!([keep(), keep(), mapped.reclaim(), keep()], [0, 0, 0, 32]);
    mapped.end();
}

#[test]
fn copies_and_memory_files_stay() {
    let mapped = Mapped::new(Sharing::Private, PAGES);
    let memory = mapped.rig.spaces.create_object(&mapped.rig.cpu, PAGE, Some(&[]), Seals(0)).unwrap();
    memory.write(&mapped.rig.cpu, crate::mm::space::WriteAt::Byte(0), &[7], 1, u64::MAX).unwrap();
    mapped.rig.write(&mapped.space, at(1), 99);
    assert_eq!((mapped.reclaim(), mapped.reclaim(), memory.pages()), (0, PAGES as usize, 1));
    assert_eq!(mapped.rig.read(&mapped.space, at(1)), 99);
    mapped.rig.write(&mapped.space, at(1), 2);
    mapped.read(&mapped.space, PAGES);
    drop(memory);
    mapped.end();
}

/// A pass goes once around, wherever the one before has ended, and no further than there is room.
#[test]
fn a_pass_looks_at_each_page_once() {
    let mapped = Mapped::new(Sharing::Shared, 128);
    let (cpu, spaces) = (&mapped.rig.cpu, &mapped.rig.spaces);
    let groups = |most: usize| {
        let left = Cell::new(most);
        let is_killed = || left.replace(left.get().saturating_sub(1)) == 0;
        spaces.reclaim(cpu, usize::MAX, Used::Age, &is_killed)
    };
    assert_eq!(mapped.reclaim(), 0);
    // All are old: two groups, and then the rest.
    assert_eq!(groups(2), 64);
    assert_eq!(mapped.reclaim(), 64);
    mapped.read(&mapped.space, 128);
    // The first group becomes old; a pass from there on comes to it last.
    assert_eq!((groups(2), mapped.reclaim(), mapped.reclaim()), (0, 32, 96));
    mapped.read(&mapped.space, 128);
    assert_eq!((mapped.reclaim(), spaces.reclaim(cpu, 1, Used::Age, &|| false)), (0, 0));
    assert_eq!(mapped.reclaim(), 128);
    mapped.end();
}

/// All of them, at the one DSB that completes the batch.
#[test]
fn frames_are_free_behind_the_flush() {
    let mapped = Mapped::new(Sharing::Shared, 32);
    assert_eq!(mapped.file.reclaim(&mapped.rig.cpu, 0..32, Used::Age), 0);
    let (used, seen) = (mapped.rig.frames.stats().used, Rc::new(Cell::new(Vec::new())));
    let look = {
        let (seen, frames) = (seen.clone(), mapped.rig.frames);
        move |operation: &Operation| {
            if *operation == Operation::DsbIsh {
                let mut all = seen.take();
                all.push(frames.stats().used);
                seen.set(all);
            }
        }
    };
    at_each(look, || assert_eq!(mapped.file.reclaim(&mapped.rig.cpu, 0..32, Used::Age), 32));
    assert_eq!((seen.take(), mapped.rig.frames.stats().used), (std::vec![used], used - 32));
    mapped.end();
}

/// The work of a CPU on the space.
type Work = fn(&Mapped, &Cpu);

const READ: Work = |mapped, cpu| _ = handle_fault(&mapped.space, cpu, START, Access::Read);
const WRITE: Work = |mapped, cpu| _ = handle_fault(&mapped.space, cpu, START, Access::Write);
const POPULATE: Work = |mapped, cpu| mapped.space.populate_again(cpu, START, PAGES * PAGE, &|| false);
const DISCARD: Work = |mapped, cpu| mapped.space.madvise_dontneed(cpu, START, PAGES * PAGE).unwrap();
const GUARD: Work = |mapped, cpu| {
    mapped.space.madvise_guard(cpu, START, PAGES * PAGE, &|| false).unwrap();
    mapped.space.madvise_unguard(START, PAGES * PAGE).unwrap();
};
const PROTECT: Work = |mapped, _| {
    let protection = mapped.space.with_area(START, Area::protection).unwrap();
    mapped.space.mprotect(START, PAGES * PAGE, Protection::NONE).unwrap();
    mapped.space.mprotect(START, PAGES * PAGE, protection).unwrap();
};
const FORK: Work = |mapped, cpu| drop(mapped.space.fork(cpu).unwrap());
const MOVE: Work = |mapped, cpu| {
    let other = START + 510 * PAGE;
    for (from, to) in [(START, other), (other, START)] {
        let mut there = Remap::new(from, PAGES * PAGE, PAGES * PAGE, Move::To(to), false).unwrap();
        mapped.space.mremap(cpu, &mut there, &SpaceLimits::NONE).unwrap();
    }
};
const RECLAIM: Work = |mapped, cpu| _ = mapped.rig.spaces.reclaim(cpu, usize::MAX, Used::Age, &|| false);

/// Runs `work`, and `other` on another CPU at its `nth` moment at which no table of the pages is locked; whether there was
/// one.
fn meet(mapped: &Rc<Mapped>, work: Work, other: Work, nth: usize) -> bool {
    let there = mapped.clone();
    let other = move |cpu: &Cpu| other(&there, cpu);
    super::meet(&[&mapped.space], START, || work(mapped, &mapped.rig.cpu), other, nth)
}

/// Has `work` meet `other` at each of its moments; what the file has is what is read then.
#[track_caller]
fn each_moment(work: Work, other: Work) -> usize {
    let mut moments = 0;
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(2)));
    for sharing in [Sharing::Shared, Sharing::Private] {
        for nth in 0.. {
            let mapped = Rc::new(Mapped::on(rig, sharing, PAGES));
            // So that the next look takes the pages.
            mapped.space.page_tables().walk_cells(pages(START, at(PAGES))).for_each(|found| {
                found.cells.iter().for_each(|cell| {
                    let mmu = mapped.space.mmu();
                    mmu.store(cell, mmu.load(cell).old());
                });
            });
            let met = meet(&mapped, work, other, nth);
            mapped.read(&mapped.space, PAGES);
            let Ok(mapped) = Rc::try_unwrap(mapped) else { panic!("the hook is gone") };
            mapped.end();
            moments += 1;
            if !met {
                break;
            }
        }
    }
    moments
}

/// The locks of the file are held at each step: what needs them for a change waits, and is tried the other way round.
#[test]
fn others_come_at_any_step_of_reclaim() {
    let moments: usize = [READ, WRITE, POPULATE, DISCARD, GUARD].map(|other| each_moment(RECLAIM, other)).iter().sum();
    assert!(moments > 50, "{moments} moments");
}

#[test]
fn reclaim_comes_at_any_step_of_others() {
    let others = [READ, WRITE, POPULATE, DISCARD, GUARD, PROTECT, FORK, MOVE];
    let moments: usize = others.map(|work| each_moment(work, RECLAIM)).iter().sum();
    assert!(moments > 100, "{moments} moments");
}

/// Has a fault of the first page meet `change` at each pair of moments; what the file has then is `expected`, and is what
/// is read.
#[track_caller]
fn each_fault_meets(change: fn(&Mapped), expected: impl Fn(u64) -> Option<u8>) {
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(2)));
    for sharing in [Sharing::Shared, Sharing::Private] {
        at_each_pair(
            || {
                let mapped = Mapped::untouched(rig, sharing, PAGES);
                (mapped.space.clone(), mapped)
            },
            |space, cpu| _ = handle_fault(space, cpu, START, Access::Read),
            |_, mapped| change(mapped),
            |(), space, mapped| {
                assert!(!mapped.file.can_be_had_again());
                for page in 0..PAGES {
                    let mut byte = [0];
                    let read = mapped.file.read(page * PAGE, &mut byte);
                    assert_eq!((read == 1).then_some(byte[0]), expected(page), "{sharing:?}, page {page}");
                    match expected(page) {
                        Some(expected) => assert_eq!(rig.read(space, at(page)), expected, "{sharing:?}, page {page}"),
                        None => assert!(handle_fault(space, &rig.cpu, at(page), Access::Read).is_err()),
                    }
                }
            },
        );
        assert_eq!(rig.spaces.counts(), [0; 3]);
    }
}

/// A frame that a fault has filled with what the file had is not in a hole that came after.
#[test]
fn old_contents_do_not_come_back_in_a_hole() {
    let change = |mapped: &Mapped| {
        let (file, cpu) = (&mapped.file, &mapped.rig.cpu);
        file.keep_all(cpu).unwrap();
        file.punch_hole(cpu, 0, PAGE).unwrap();
    };
    each_fault_meets(change, |page| Some(if page == 0 { 0 } else { page as u8 + 1 }));
}

/// A file that becomes empty needs no copy, and is zeros where it grows again.
#[test]
fn old_contents_do_not_come_back_where_a_file_was_empty() {
    let empty = |mapped: &Mapped| mapped.file.truncate(&mapped.rig.cpu, 0).unwrap();
    each_fault_meets(empty, |_| None);
    let longer = |mapped: &Mapped| {
        let (file, cpu) = (&mapped.file, &mapped.rig.cpu);
        file.truncate(cpu, 0).unwrap();
        file.truncate(cpu, PAGES * PAGE).unwrap();
    };
    each_fault_meets(longer, |_| Some(0));
}

/// A thread that has waited for another that did the same does nothing, however long the file is then.
#[test]
fn the_pages_of_a_file_are_made_once() {
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(2)));
    for mth in 0..20 {
        let mapped = Mapped::untouched(rig, Sharing::Shared, PAGES);
        let Mapped { file, space, .. } = &mapped;
        let grow = |_: &Space, cpu: &Cpu| {
            file.keep_all(cpu).unwrap();
            file.truncate(cpu, 1 << 47).unwrap();
        };
        let (kept, ..) = interleave(space, (grow, mth), (|| file.keep_all(&rig.cpu), 0));
        assert_eq!((kept, file.pages(), file.size()), (Ok(()), PAGES as usize, 1 << 47));
        mapped.end();
    }
}

/// Pages that can be had again count for nothing; all count from when they are kept, as far as there may be so many.
#[test]
fn pages_count_from_when_they_are_kept() {
    static LIMIT: FrameLimit = FrameLimit::new(PAGES as usize + 1);
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(2)));
    let contents: &'static [u8] = Box::leak(std::vec![1; (PAGES * PAGE) as usize].into_boxed_slice());
    let file = || rig.spaces.create_limited(&rig.cpu, contents, Seals(0), &LIMIT).unwrap();
    let (first, second) = (file(), file());
    let counted = |expected: u64| assert_eq!(LIMIT.frames().0 as u64, expected);
    (0..PAGES).for_each(|page| [&first, &second].iter().for_each(|file| _ = file.frame(&rig.cpu, page).unwrap()));
    counted(0);
    assert_eq!(first.reclaim(&rig.cpu, 0..1, Used::Age), 1);
    first.keep_all(&rig.cpu).unwrap();
    counted(PAGES);
    assert_eq!(second.keep_all(&rig.cpu), Err(ObjectError::NoRoom));
    counted(PAGES);
    second.truncate(&rig.cpu, 0).unwrap();
    counted(PAGES);
    assert_eq!(second.write(&rig.cpu, WriteAt::Byte(0), &[1], 1, u64::MAX), Ok((0, 1)));
    counted(PAGES + 1);
    assert_eq!(second.write(&rig.cpu, WriteAt::Byte(PAGE), &[1], 1, u64::MAX), Err(ObjectError::NoRoom));
    first.punch_hole(&rig.cpu, 0, PAGE).unwrap();
    counted(PAGES);
    drop((first, second));
    counted(0);
    assert_eq!(rig.used(), 0);
}

/// A new file counts with its root, its tables and its pages, all of which go back however many there was room for, and
/// whichever frame was the last that there was.
#[test]
fn tables_count_and_go_back() {
    /// A root, three tables, and a page; and a second page beside it, or in tables of its own.
    const ONE: usize = 5;
    const FAR: u64 = 1 << 39;
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(2)));
    let write = |file: &Object, at: u64| file.write(&rig.cpu, WriteAt::Byte(at), &[1], 1, u64::MAX);
    for most in 0..=2 * ONE {
        let limit: &'static FrameLimit = Box::leak(Box::new(FrameLimit::new(most)));
        let file = rig.spaces.create_limited(&rig.cpu, &[], Seals(0), limit);
        let Ok(file) = file else {
            assert_eq!((most, file.map(drop)), (0, Err(ObjectError::NoRoom)));
            continue;
        };
        let written = if most < ONE { Err(ObjectError::NoRoom) } else { Ok((0, 1)) };
        assert_eq!((write(&file, 0), limit.frames().0), (written, if most < ONE { 1 } else { ONE }), "{most}");
        // A limit that refuses is no want of memory, and a want of memory is no limit that refuses.
        let far = most >= 2 * ONE - 1;
        let counted = if far { 2 * ONE - 1 } else { ONE.min(limit.frames().0) };
        assert_eq!(write(&file, FAR).is_ok(), far, "{most}");
        assert_eq!(limit.frames().0, counted, "{most}");
        drop(file);
        assert_eq!(limit.frames().0, 0, "{most}");
    }
    static LIMIT: FrameLimit = FrameLimit::new(2 * ONE);
    for frames in 0..ONE {
        let file = rig.spaces.create_limited(&rig.cpu, &[], Seals(0), &LIMIT).unwrap();
        let mut taken: Vec<_> = core::iter::from_fn(|| rig.spaces.frames.alloc(&rig.cpu).ok()).collect();
        taken.drain(..frames).for_each(|frame| rig.spaces.frames.free(&rig.cpu, frame));
        let expected = if frames < ONE - 1 { Err(ObjectError::OutOfMemory) } else { Ok((0, 1)) };
        assert_eq!(write(&file, 0), expected, "{frames}");
        assert_eq!(LIMIT.frames().0, if expected.is_ok() { ONE } else { 1 }, "{frames}");
        taken.into_iter().for_each(|frame| rig.spaces.frames.free(&rig.cpu, frame));
        drop(file);
        assert_eq!(LIMIT.frames().0, 0, "{frames}");
    }
    assert_eq!(rig.used(), 0);
}

/// Two first accesses at once to a file of the initrd, which counts for nothing: with no room at all both find its page.
#[test]
fn first_accesses_to_a_file_are_refused_by_no_limit() {
    static NONE: FrameLimit = FrameLimit::new(0);
    let rig: &'static Rig = Box::leak(Box::new(Rig::new(2)));
    for mth in 0..20 {
        let (space, file) = (rig.space(), rig.spaces.create_limited(&rig.cpu, &[1; 100], Seals(0), &NONE).unwrap());
        let look = |cpu: &Cpu| file.frame(cpu, 0).map(|found| found.frame());
        let (found, ..) = interleave(&space, (|_, cpu| _ = look(cpu).unwrap(), mth), (|| look(&rig.cpu), 0));
        assert_eq!((found, file.pages(), NONE.frames().0), (look(&rig.cpu), 1, 0));
    }
    assert_eq!(rig.used(), 0);
}

/// Pages of all kinds become old, and no others; for the pages of an area there is one wait.
#[test]
fn pages_of_areas_become_old_with_one_wait_for_tlbs() {
    let rig = Rig::new(16);
    let (space, cpu) = (rig.space(), &rig.cpu);
    // Anonymous, closed, and shared pages of one table; a block, and one in groups.
    for (page, sharing) in [(0, Sharing::Private), (16, Sharing::Private), (32, Sharing::Shared)] {
        let request = MapRequest { placement: Placement::Fixed(at(page)), sharing, ..private(4) };
        space.mmap(cpu, &request).unwrap();
        (0..4).for_each(|next| rig.write(&space, at(page + next), 1));
    }
    space.mprotect(at(16), 4 * PAGE, Protection::NONE).unwrap();
    let request = MapRequest { placement: Placement::Fixed(at(512)), ..private(1024) };
    space.mmap(cpu, &request).unwrap();
    space.madvise_areas(cpu, at(512), 1024 * PAGE, AreaAdvice::HugePage).unwrap();
    [512, 1024].into_iter().for_each(|page| rig.write(&space, at(page), 1));
    space.mprotect(at(1100), PAGE, Protection::READ).unwrap();
    let looked_at = [0, 3, 16, 32, 35, 512, 1024, 1039, 1100, 1535];
    let leaf = |page| space.tables().translate(at(page)).unwrap();
    let young = || looked_at.map(|page| leaf(page).descriptor.is_young());
    let all = || looked_at.map(|page| (leaf(page).leaf_size, leaf(page).descriptor.old()));
    let before = all();
    let use_all = || {
        space.mprotect(at(16), 4 * PAGE, READ_WRITE).unwrap();
        looked_at.iter().for_each(|&page| handle_fault(&space, cpu, at(page), Access::Read).unwrap());
        space.mprotect(at(16), 4 * PAGE, Protection::NONE).unwrap();
    };
    let is_shared = looked_at.map(|page| (32..36).contains(&page));
    for (aged, old) in [
        (Aged::OfObjects, is_shared),
        (Aged::Anonymous, is_shared.map(|is_shared| !is_shared)),
        (Aged::All, [true; 10]),
    ] {
        use_all();
        assert_eq!(young(), [true; 10]);
        let operations = record(|| space.age(aged, || false));
        assert_eq!(young(), old.map(|is_old| !is_old), "{aged:?}");
        let waits = operations.iter().filter(|&at| *at == Operation::DsbIsh).count();
        assert!(waits == 1 || aged != Aged::OfObjects && waits > 1, "{aged:?}: {operations:?}");
        assert_eq!(before, all(), "nothing else changes");
        // No TLB has those that are old already.
        assert!(!record(|| space.age(aged, || false)).iter().any(|at| matches!(at, Operation::Tlbi(_))));
    }
    use_all();
    space.age(Aged::All, || true);
    assert_eq!(young(), [true; 10], "the caller is killed");
    drop(space);
    assert_eq!(rig.used(), 0);
}

/// An area with more tables than are looked at at once becomes old in pieces, as far as the caller lives.
#[test]
fn a_large_area_becomes_old_in_pieces() {
    const TABLES: u64 = 300;
    let rig = Rig::new(8);
    let (space, cpu) = (rig.space(), &rig.cpu);
    let request = MapRequest { placement: Placement::Fixed(START), ..private(512 * TABLES) };
    space.mmap_within(cpu, &request, &Terms { commitment: Commitment::ANY, ..Terms::NONE }, &|| false).unwrap();
    let use_all = || (0..TABLES).for_each(|table| _ = handle_fault(&space, cpu, at(512 * table), Access::Read));
    let young = || (0..TABLES).filter(|table| space.tables().translate(at(512 * table)).unwrap().descriptor.is_young());
    for (pieces, left) in [(1, 172), (2, 44), (3, 0), (usize::MAX, 0)] {
        use_all();
        let calls = Cell::new(pieces);
        space.age(Aged::All, || calls.replace(calls.get().saturating_sub(1)) == 0);
        assert_eq!(young().count(), left, "{pieces} pieces");
    }
    drop(space);
    assert_eq!(rig.used(), 0);
}

/// Pages of droppable areas go, in blocks too, and those of others stay; a child has none of them.
#[test]
fn pages_of_droppable_areas_are_dropped() {
    let rig = Rig::new(8);
    let (space, cpu) = (rig.space(), &rig.cpu);
    let droppable = Terms { commitment: Commitment::DROPPABLE, locking: Locking::Now, ..Terms::NONE };
    for (page, pages, terms) in [(0, 4, &droppable), (4, 4, &Terms::NONE), (512, 512, &droppable)] {
        let request = MapRequest { placement: Placement::Fixed(at(page)), ..private(pages) };
        space.mmap_within(cpu, &request, terms, &|| false).unwrap();
    }
    space.madvise_areas(cpu, at(512), 512 * PAGE, AreaAdvice::HugePage).unwrap();
    assert_eq!(space.drop_pages(cpu), 0);
    [0, 1, 4, 5, 512].into_iter().for_each(|page| rig.write(&space, at(page), 7));
    rig.read(&space, at(2));
    let child = space.fork(cpu).unwrap();
    rig.write(&child, at(1), 8);
    assert_eq!([0, 1, 4, 512].map(|page| rig.read(&child, at(page))), [0, 8, 7, 0]);
    assert_eq!((space.drop_pages(cpu), space.drop_pages(cpu)), (2 + 512, 0));
    assert_eq!([0, 1, 4, 5, 512].map(|page| rig.read(&space, at(page))), [0, 0, 7, 7, 0]);
    assert_eq!([1, 4].map(|page| rig.read(&child, at(page))), [8, 7], "another space's");
    assert_eq!(child.drop_pages(cpu), 1 + 512, "a load has brought a block");
    // On advice too, which is for pages of the range.
    [0, 1, 4, 512].into_iter().for_each(|page| rig.write(&space, at(page), 7));
    for (unneeded, first, expected) in [
        (Unneeded::Cold, 0, [7, 7, 7, 7]),
        (Unneeded::Out, 1, [7, 0, 7, 7]),
        (Unneeded::Out, 0, [0, 0, 7, 7]),
        (Unneeded::Out, 512, [0, 0, 7, 0]),
    ] {
        space.madvise_unneeded(cpu, at(first), 4 * PAGE, unneeded).unwrap();
        assert_eq!([0, 1, 4, 512].map(|page| rig.read(&space, at(page))), expected, "{unneeded:?} {first}");
    }
    drop((space, child));
    assert_eq!(rig.used(), 0);
}

/// Nothing becomes code, for the children too where that is inherited.
#[test]
fn what_is_denied_is_inherited() {
    let (once, gain) = (Settings::DENIES_ALL, Settings::DENIES_GAIN);
    for (set, made, inherited) in [
        (gain, Made::ByFork, gain),
        (once, Made::ByFork, Settings::NONE),
        (once.with(Settings::NO_BLOCKS), Made::ByExec, Settings::NO_BLOCKS),
        (gain.with(Settings::NO_OTHER_BLOCKS), Made::ByExec, gain.with(Settings::NO_OTHER_BLOCKS)),
    ] {
        let rig = Rig::new(2);
        let [space, other] = [(); 2].map(|()| rig.space());
        assert_eq!(space.set(|_| Err::<Settings, _>(1)), Err(1));
        assert_eq!(space.set(|_| Ok::<_, u8>(set)), Ok(()));
        space.add_barriers(0x10);
        other.inherit(&space, made);
        let barriers = if made == Made::ByFork { 0x10 } else { 0 };
        assert_eq!((other.settings(), other.barriers()), (inherited, barriers), "{set:?}");
        assert_eq!((space.settings(), space.barriers()), (set, 0x10));
    }
}
