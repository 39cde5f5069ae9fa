//! Memory that runs out at every allocation of every call: a clean error, and everything as it was.
//!
//! A call is made with no frame free and no room in any pool, then with one frame, two, and so on. So each of its
//! allocations is, in turn, the first that fails.

use std::cell::Cell;

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::Descriptor;
use granule_pgtable::PageRange;

use super::*;
use crate::mm::counted::Counted;
use crate::mm::pool::PoolBox;
use crate::mm::space::area::Area;
use crate::mm::space::range::{USER_END, USER_START};
use crate::mm::space::{
    AreaAdvice, Content, Enrolment, FaultError, Features, FillError, Holes, Mark, Move, Remap, SpaceError, SpaceLimits,
    Terms, Transfer, UserfaultError, Userfaultfd,
};
use crate::sched::IfNotReady;

/// Everything that a call could have changed.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Everything {
    areas: Vec<(u64, u64, u8)>,
    leaves: Vec<(VirtAddr, Descriptor)>,
    counts: [usize; 3],
    tables: usize,
    used: usize,
}

fn everything(rig: &Rig, space: &Space) -> Everything {
    let tables = space.tables();
    let mut leaves = Vec::new();
    tables.dump(PageRange::new(USER_START, USER_END - USER_START).unwrap(), |extent| {
        for page in (0..extent.size).step_by(PAGE as usize) {
            let address = extent.start + page;
            leaves.push((address, tables.translate(address).unwrap().descriptor));
        }
    });
    Everything {
        areas: areas(space),
        leaves,
        counts: rig.spaces.counts(),
        tables: space.table_frames(),
        used: rig.used(),
    }
}

/// All memory but a few frames, in hands where it is of no use.
struct TakenFrames<'r> {
    rig: &'r Rig,
    frames: Vec<PhysAddr>,
    areas: Vec<PoolBox<Area>>,
}

impl<'r> TakenFrames<'r> {
    /// Leaves `left` frames and no slot for an area. The pool of spaces has slots, since there is a space; that of
    /// objects is empty.
    fn leaving(rig: &'r Rig, left: usize) -> Self {
        let mut frames: Vec<_> = core::iter::from_fn(|| rig.frames.alloc(&rig.cpu).ok()).collect();
        let range = PageRange::from_pages(USER_START, 1).unwrap();
        let area = || rig.spaces.areas.of(&rig.cpu).try_new(Area::new(range, READ_WRITE, None)).ok();
        let areas = core::iter::from_fn(area).collect();
        for frame in frames.drain(..left) {
            rig.frames.free(&rig.cpu, frame);
        }
        Self { rig, frames, areas }
    }
}

impl Drop for TakenFrames<'_> {
    fn drop(&mut self) {
        self.areas.clear();
        self.frames.drain(..).for_each(|frame| self.rig.frames.free(&self.rig.cpu, frame));
    }
}

/// More frames than any of the calls needs.
const ENOUGH: usize = 24;

/// Makes `call` with ever more memory, each time on what `prepare` makes of an empty space. It is refused with
/// `refusal` until there is enough for it, `needed` frames.
#[track_caller]
fn refused_until<E: PartialEq + core::fmt::Debug, T>(
    needed: usize,
    refusal: E,
    prepare: impl Fn(&Rig, &Space),
    call: impl Fn(&Rig, &Space) -> Result<T, E>,
) {
    for left in 0..ENOUGH {
        let rig = Rig::new(2);
        let space = rig.space();
        prepare(&rig, &space);
        let taken = TakenFrames::leaving(&rig, left);
        let before = everything(&rig, &space);
        match call(&rig, &space) {
            Ok(_) => assert!(left >= needed, "{left} frames were enough"),
            Err(error) => {
                assert_eq!(error, refusal);
                assert!(left < needed, "{left} frames were not enough");
                assert_eq!(everything(&rig, &space), before, "with {left} frames");
            }
        }
        drop((taken, space));
        assert_eq!(rig.spaces.counts(), [0; 3], "with {left} frames");
        assert_eq!(rig.used(), 0, "with {left} frames");
    }
}

/// Far from all else, where there are no tables.
const START: VirtAddr = VirtAddr(0x10_0000_0000);

fn at(start: VirtAddr, pages: u64) -> MapRequest {
    MapRequest { placement: Placement::Fixed(start), ..private(pages) }
}

fn map(rig: &Rig, space: &Space, request: &MapRequest) {
    space.mmap(&rig.cpu, request).unwrap();
}

/// Three pages, written, in one area.
fn written(rig: &Rig, space: &Space) {
    map(rig, space, &at(START, 3));
    (0..3).for_each(|page| rig.write(space, START + page * PAGE, 1));
}

fn cut(rig: &Rig, space: &Space) {
    map(rig, space, &at(START, 5));
}

#[test]
fn a_fault_needs_its_page_and_up_to_three_tables() {
    let fault = |access| move |rig: &Rig, space: &Space| handle_fault(space, &rig.cpu, START, access);
    let prepare = |rig: &Rig, space: &Space| map(rig, space, &at(START, 1));
    refused_until(4, FaultError::OutOfMemory, prepare, fault(Access::Write));
    refused_until(3, FaultError::OutOfMemory, prepare, fault(Access::Read));
    let table = |rig: &Rig, space: &Space| {
        map(rig, space, &at(START, 2));
        rig.write(space, START + PAGE, 1);
    };
    refused_until(1, FaultError::OutOfMemory, table, fault(Access::Write));
    refused_until(0, FaultError::OutOfMemory, table, fault(Access::Read));
}

#[test]
fn a_fault_on_shared_memory_needs_the_tables_of_its_object_too() {
    let prepare = |rig: &Rig, space: &Space| map(rig, space, &MapRequest { sharing: Sharing::Shared, ..at(START, 1) });
    let fault = |rig: &Rig, space: &Space| handle_fault(space, &rig.cpu, START, Access::Write);
    refused_until(7, FaultError::OutOfMemory, prepare, fault);
}

#[test]
fn copy_on_write_needs_a_page() {
    // The page of zeros, read before.
    let prepare = |rig: &Rig, space: &Space| {
        map(rig, space, &at(START, 1));
        rig.read(space, START);
    };
    let write = |rig: &Rig, space: &Space| handle_fault(space, &rig.cpu, START, Access::Write);
    refused_until(1, FaultError::OutOfMemory, prepare, write);
    // A page that a child has too, and that lives as long as the space does.
    for left in 0..2 {
        let rig = Rig::new(2);
        let space = rig.space();
        written(&rig, &space);
        let child = space.fork(&rig.cpu).unwrap();
        let taken = TakenFrames::leaving(&rig, left);
        let before = everything(&rig, &space);
        let result = handle_fault(&space, &rig.cpu, START, Access::Write);
        assert_eq!(result, if left == 0 { Err(FaultError::OutOfMemory) } else { Ok(()) });
        assert!(left != 0 || everything(&rig, &space) == before);
        drop((taken, child, space));
        assert_eq!(rig.used(), 0);
    }
}

#[test]
fn a_mapping_needs_a_record_and_an_object_if_it_is_shared() {
    let nothing = |_: &Rig, _: &Space| ();
    refused_until(1, SpaceError::NoMemory, nothing, |rig, space| space.mmap(&rig.cpu, &at(START, 1)));
    // The object's record, the root of its tables, the area's record, and what it has of the object.
    let shared = MapRequest { sharing: Sharing::Shared, ..at(START, 1) };
    refused_until(4, SpaceError::NoMemory, nothing, move |rig, space| space.mmap(&rig.cpu, &shared));
    // In the middle of another one: two records, of one slab.
    refused_until(1, SpaceError::NoMemory, cut, |rig, space| {
        let read_only = MapRequest { protection: Protection::READ, ..at(START + 2 * PAGE, 1) };
        space.mmap(&rig.cpu, &read_only)
    });
}

/// Nodes for the parts of an area with an object: its pool has slots, since there is one.
#[test]
fn what_cuts_an_area_of_an_object_needs_records_of_both_kinds() {
    let prepare = |rig: &Rig, space: &Space| {
        map(rig, space, &MapRequest { sharing: Sharing::Shared, ..at(START, 5) });
        (0..5).for_each(|page| rig.write(space, START + page * PAGE, 1));
    };
    let middle = START + 2 * PAGE;
    refused_until(1, SpaceError::NoMemory, prepare, move |_, space| space.mprotect(middle, PAGE, Protection::READ));
    refused_until(1, SpaceError::NoMemory, prepare, move |rig, space| space.munmap(&rig.cpu, middle, PAGE));
}

#[test]
fn a_move_needs_a_record_and_the_tables_of_its_target() {
    let to = |pages: u64, new_pages, to| {
        move |rig: &Rig, space: &Space| {
            let mut there = Remap::new(START + PAGE, pages * PAGE, new_pages * PAGE, to, false)?;
            space.mremap(&rig.cpu, &mut there, &SpaceLimits::NONE)
        }
    };
    let far = VirtAddr(START.0 * 2 - PAGE);
    // All of it: a record, and two tables for each of the first two pages.
    let prepare = |rig: &Rig, space: &Space| {
        map(rig, space, &at(START + PAGE, 3));
        (1..4).for_each(|page| rig.write(space, START + page * PAGE, 1));
    };
    refused_until(5, SpaceError::NoMemory, prepare, to(3, 3, Move::To(far)));
    refused_until(5, SpaceError::NoMemory, prepare, to(3, 4, Move::To(far)));
    // The middle of it leaves two areas.
    refused_until(3, SpaceError::NoMemory, written, to(1, 1, Move::To(far)));
    // In tables that are there.
    refused_until(1, SpaceError::NoMemory, prepare, to(3, 3, Move::To(START + 8 * PAGE)));
    refused_until(0, SpaceError::NoMemory, prepare, to(3, 8, Move::Not));
    refused_until(0, SpaceError::NoMemory, prepare, to(3, 1, Move::Not));
}

#[test]
fn advice_needs_records_or_tables() {
    let middle = START + 2 * PAGE;
    for advice in [AreaAdvice::DontFork, AreaAdvice::WipeOnFork] {
        let advise = move |rig: &Rig, space: &Space| space.madvise_areas(&rig.cpu, middle, PAGE, advice);
        refused_until(1, SpaceError::NoMemory, cut, advise);
    }
    refused_until(3, SpaceError::NoMemory, cut, |rig, space| space.madvise_guard(&rig.cpu, middle, PAGE, &|| false));
    refused_until(0, SpaceError::NoMemory, written, |rig, space| {
        space.madvise_guard(&rig.cpu, START, 3 * PAGE, &|| false)
    });
    refused_until(0, SpaceError::NoMemory, written, |_, space| space.madvise_unguard(START, 3 * PAGE));
}

#[test]
fn populating_ends_at_a_fatal_signal() {
    let rig = Rig::new(8);
    let space = rig.space();
    let request = MapRequest { populate: Populate::Now, ..at(START, 512) };
    // The signal comes while the second chunk is populated.
    let chunks = Cell::new(0);
    let is_killed = || chunks.replace(chunks.get() + 1) == 1;
    assert_eq!(space.mmap_within(&rig.cpu, &request, &Terms::NONE, &is_killed), Ok(START));
    let mut present = [0; 512];
    space.mincore(START, &mut present).unwrap();
    assert!(present.iter().enumerate().all(|(page, here)| *here == u8::from(page < 2 * 64)));
}

#[test]
fn populating_takes_what_there_is() {
    for left in 0..ENOUGH {
        let rig = Rig::new(2);
        let space = rig.space();
        map(&rig, &space, &at(START, 1));
        let taken = TakenFrames::leaving(&rig, left);
        let mapped = space.mmap(&rig.cpu, &MapRequest { populate: Populate::Now, ..at(START + PAGE, 8) });
        assert_eq!(mapped, if left == 0 { Err(SpaceError::NoMemory) } else { Ok(START + PAGE) });
        let mut present = [0; 8];
        if mapped.is_ok() {
            space.mincore(START + PAGE, &mut present).unwrap();
        }
        // A record, three tables, and then all of the pages that have one table, or none.
        assert_eq!(present, [u8::from(left >= 4 + 8); 8], "with {left} frames");
        drop((taken, space));
        assert_eq!(rig.used(), 0);
    }
}

#[test]
fn what_cuts_an_area_needs_records() {
    let middle = START + 2 * PAGE;
    refused_until(1, SpaceError::NoMemory, cut, move |rig, space| space.munmap(&rig.cpu, middle, PAGE));
    refused_until(1, SpaceError::NoMemory, cut, move |_, space| space.mprotect(middle, PAGE, Protection::READ));
    refused_until(1, SpaceError::NoMemory, cut, |_, space| space.mprotect(START, PAGE, Protection::READ));
    // At an edge, or as a whole, an area is removed without one.
    refused_until(0, SpaceError::NoMemory, cut, |rig, space| space.munmap(&rig.cpu, START, PAGE));
    refused_until(0, SpaceError::NoMemory, cut, |rig, space| space.munmap(&rig.cpu, START + PAGE, 4 * PAGE));
    refused_until(0, SpaceError::NoMemory, cut, |rig, space| space.munmap(&rig.cpu, START, 5 * PAGE));
    refused_until(0, SpaceError::NoMemory, cut, |_, space| space.mprotect(START, 5 * PAGE, Protection::READ));
    refused_until(0, SpaceError::NoMemory, written, |rig, space| space.madvise_dontneed(&rig.cpu, START, 3 * PAGE));
}

#[test]
fn a_fork_needs_records_and_a_table_for_each() {
    // The root, a slab for the space's record, one for the area's, three tables.
    refused_until(5, SpaceError::NoMemory, written, |rig, space| space.fork(&rig.cpu));
    let two = |rig: &Rig, space: &Space| {
        written(rig, space);
        map(rig, space, &MapRequest { protection: Protection::READ, ..at(START + (1 << 30), 1) });
        rig.read(space, START + (1 << 30));
    };
    refused_until(7, SpaceError::NoMemory, two, |rig, space| space.fork(&rig.cpu));
}

const WP: Enrolment = Enrolment { missing: false, minor: false, write_protected: true };

/// As [`refused_until`], of a call of a pager, with which `prepare` has registered what it has made.
#[track_caller]
fn pager_refused_until<T, E: PartialEq + core::fmt::Debug>(
    needed: usize,
    refusal: E,
    request: &MapRequest,
    prepare: impl Fn(&Rig, &Space),
    call: impl Fn(&Rig, &Space, &Counted<Userfaultfd>) -> Result<T, E>,
) {
    for left in 0..ENOUGH {
        let rig = Rig::new(2);
        let space = rig.space();
        map(&rig, &space, request);
        prepare(&rig, &space);
        let pager = Userfaultfd::new(&space, false, 0).unwrap();
        pager.agree(Features::ALL).unwrap();
        Userfaultfd::register(&pager, &rig.cpu, START, request.bytes, WP).unwrap();
        let taken = TakenFrames::leaving(&rig, left);
        let before = everything(&rig, &space);
        match call(&rig, &space, &pager) {
            Ok(_) => assert!(left >= needed, "{left} frames were enough"),
            Err(error) => {
                assert_eq!(error, refusal);
                assert!(left < needed, "{left} frames were not enough");
                assert_eq!(everything(&rig, &space), before, "with {left} frames");
            }
        }
        drop(taken);
        pager.close();
        drop((space, pager));
        assert_eq!((rig.spaces.counts(), rig.used()), ([0; 3], 0), "with {left} frames");
    }
}

#[test]
fn the_calls_of_a_pager_need_records_tables_and_pages() {
    let shared = |pages| MapRequest { sharing: Sharing::Shared, ..at(START, pages) };
    let nothing = |_: &Rig, _: &Space| ();
    let middle = START + 2 * PAGE;
    // Markers, where there is no table.
    let protect = |rig: &Rig, _: &Space, pager: &Counted<Userfaultfd>| {
        pager.write_protect(&rig.cpu, None, START, 3 * PAGE, Mark::Set)
    };
    pager_refused_until(3, UserfaultError::OutOfMemory, &at(START, 3), nothing, protect);
    pager_refused_until(3, UserfaultError::OutOfMemory, &shared(3), nothing, protect);
    let touched = |rig: &Rig, space: &Space| rig.write(space, START, 1);
    pager_refused_until(0, UserfaultError::OutOfMemory, &at(START, 3), touched, protect);
    let clear = |rig: &Rig, _: &Space, pager: &Counted<Userfaultfd>| {
        pager.write_protect(&rig.cpu, None, START, 3 * PAGE, Mark::Clear)
    };
    pager_refused_until(0, UserfaultError::OutOfMemory, &at(START, 3), nothing, clear);
    // Records for what an area is cut into.
    let both = Enrolment { missing: true, minor: false, write_protected: true };
    let register =
        |rig: &Rig, _: &Space, pager: &Counted<Userfaultfd>| Userfaultfd::register(pager, &rig.cpu, middle, PAGE, both);
    pager_refused_until(1, UserfaultError::OutOfMemory, &at(START, 5), nothing, register);
    let unregister = |rig: &Rig, _: &Space, pager: &Counted<Userfaultfd>| pager.unregister(&rig.cpu, middle, PAGE);
    pager_refused_until(1, UserfaultError::OutOfMemory, &at(START, 5), nothing, unregister);
    // Tables; of an object its tables and the page too.
    let fill = |content| {
        move |rig: &Rig, _: &Space, pager: &Counted<Userfaultfd>| pager.fill(&rig.cpu, None, START, PAGE, content).1
    };
    let no_memory = FillError::Call(UserfaultError::OutOfMemory);
    pager_refused_until(3, no_memory, &at(START, 1), nothing, fill(Content::Zeros));
    pager_refused_until(3, no_memory, &at(START, 1), nothing, fill(Content::Poison));
    pager_refused_until(0, no_memory, &at(START, 2), touched, |rig, _, pager| {
        pager.fill(&rig.cpu, None, START + PAGE, PAGE, Content::Zeros).1
    });
}

#[test]
fn pages_that_move_need_tables() {
    let elsewhere = START + (1 << 30);
    let touched = |rig: &Rig, space: &Space| {
        map(rig, space, &at(elsewhere, 3));
        (0..3).for_each(|page| rig.write(space, elsewhere + page * PAGE, 1));
    };
    let moves = |from, holes| {
        move |rig: &Rig, space: &Space, pager: &Counted<Userfaultfd>| {
            pager.transfer(&rig.cpu, space, &Transfer { to: START, from, bytes: 3 * PAGE, holes }).1
        }
    };
    let no_memory = FillError::Call(UserfaultError::OutOfMemory);
    // Two for the pages; the source has its own.
    pager_refused_until(2, no_memory, &at(START, 3), touched, moves(elsewhere, Holes::Refused));
    pager_refused_until(2, no_memory, &at(START, 3), touched, moves(elsewhere, Holes::Skipped));
}

/// The tables of the space stay, as where a program's own call for them fails between two.
#[test]
fn a_page_of_an_object_that_a_pager_cannot_bring_is_brought_the_next_time() {
    for left in 0..ENOUGH {
        let rig = Rig::new(2);
        let space = rig.space();
        map(&rig, &space, &MapRequest { sharing: Sharing::Shared, ..at(START, 2) });
        let pager = Userfaultfd::new(&space, false, 0).unwrap();
        pager.agree(Features::ALL).unwrap();
        let both = Enrolment { missing: true, minor: false, write_protected: true };
        Userfaultfd::register(&pager, &rig.cpu, START, 2 * PAGE, both).unwrap();
        let taken = TakenFrames::leaving(&rig, left);
        let filled = pager.fill(&rig.cpu, None, START, PAGE, Content::Zeros);
        // A page, three tables of the space, and three of the object.
        let no_memory = FillError::Call(UserfaultError::OutOfMemory);
        assert_eq!(filled, if left < 7 { (0, Err(no_memory)) } else { (PAGE, Ok(())) }, "{left} frames");
        drop(taken);
        if left < 7 {
            assert_eq!(handle_fault(&space, &rig.cpu, START, Access::Read), Err(FaultError::Userfault));
            assert_eq!(pager.fill(&rig.cpu, None, START, PAGE, Content::Zeros), (PAGE, Ok(())));
        }
        assert_eq!(handle_fault(&space, &rig.cpu, START, Access::Read), Ok(()));
        pager.close();
        drop((space, pager));
        assert_eq!((rig.spaces.counts(), rig.used()), ([0; 3], 0), "with {left} frames");
    }
}

/// Of a space whose areas are registered a fork that fails leaves no event.
#[test]
fn a_fork_of_registered_areas_that_fails_leaves_the_pager_as_it_was() {
    let forks = Cell::new(0);
    for left in 0..ENOUGH {
        let rig = Rig::new(2);
        let space = rig.space();
        written(&rig, &space);
        let pager = Userfaultfd::new(&space, false, 0).unwrap();
        pager.agree(Features(Features::EVENT_FORK)).unwrap();
        Userfaultfd::register(&pager, &rig.cpu, START, 3 * PAGE, WP).unwrap();
        pager.write_protect(&rig.cpu, None, START, PAGE, Mark::Set).unwrap();
        let taken = TakenFrames::leaving(&rig, left);
        let before = everything(&rig, &space);
        let done = std::sync::atomic::AtomicBool::new(false);
        let child = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    pager.read(IfNotReady::Fail).map_or_else(|_| std::thread::yield_now(), |reading| reading.done());
                }
            });
            let child = space.fork(&rig.cpu);
            done.store(true, Ordering::Release);
            child
        });
        if child.is_err() {
            assert_eq!(everything(&rig, &space), before, "with {left} frames");
            forks.set(forks.get() + 1);
        }
        assert!(!pager.is_changing() && !pager.has_message());
        drop((taken, child));
        pager.close();
        drop((space, pager));
        assert_eq!((rig.spaces.counts(), rig.used()), ([0; 3], 0), "with {left} frames");
    }
    assert!((4..ENOUGH - 4).contains(&forks.get()), "{}", forks.get());
}
