//! Pages that an object loses, at each step of a fault, of populate and of a fork, and the other way round: no entry shows
//! what the object has not, and nothing is freed twice or kept.

use core::sync::atomic::Ordering;
use std::boxed::Box;
use std::cell::Cell;

use super::*;
use crate::mm::counted::Counted;
use crate::mm::space::{
    MappedFile, Move, Object, ObjectError, Remap, Seals, SizeChoice, SpaceError, SpaceLimits, Terms, WriteAt,
};

const START: VirtAddr = VirtAddr(0x10_0000_0000);
const PAGES: u64 = 4;

/// A file of some pages, of which every other one has a frame, and a space that maps it.
struct Mapped {
    rig: &'static Rig,
    file: Counted<Object>,
    space: SpaceRef,
}

fn file(rig: &Rig, pages: u64) -> Counted<Object> {
    let file = rig.spaces.create_object(&rig.cpu, pages * PAGE, Some(&[]), Seals(0)).unwrap();
    for page in (0..pages).step_by(2) {
        file.write(&rig.cpu, WriteAt::Byte(page * PAGE), &[page as u8 + 1], 1, u64::MAX).unwrap();
    }
    file
}

fn map_at(rig: &Rig, space: &Space, file: &Counted<Object>, sharing: Sharing, at: VirtAddr) {
    let request = MapRequest { placement: Placement::Fixed(at), sharing, ..private(PAGES) };
    let terms = Terms { file: Some(MappedFile { object: file, first_page: 0, may_write: true }), ..Terms::NONE };
    space.mmap_within(&rig.cpu, &request, &terms, &|| false).unwrap();
}

impl Mapped {
    fn new(sharing: Sharing) -> Self {
        std::thread_local! {
            /// One for all that a thread does: each leaves it as it was, and memory is not given back.
            static RIG: &'static Rig = Box::leak(Box::new(Rig::new(2)));
        }
        let rig = RIG.with(|rig| *rig);
        let (file, space) = (file(rig, PAGES), rig.space());
        map_at(rig, &space, &file, sharing, START);
        Self { rig, file, space }
    }

    /// With the pages of the file in entries, the first one stored to.
    fn touched(sharing: Sharing) -> Self {
        let mapped = Self::new(sharing);
        mapped.rig.write(&mapped.space, START, 9);
        (1..PAGES).for_each(|page| _ = mapped.rig.read(&mapped.space, START + page * PAGE));
        mapped
    }

    /// Checks the entries of `space`: each is a page of the file before its end, or a copy that nothing else has.
    fn check(&self, space: &Space) {
        for page in 0..PAGES {
            let Some(found) = space.page_tables().translate(START + page * PAGE) else { continue };
            let record = self.rig.spaces.record(found.physical);
            let of_file = record.flags.load(Ordering::Relaxed) & crate::mm::space::shmem::OF_OBJECT != 0;
            assert!(page * PAGE < self.file.size(), "page {page} is behind the end");
            if of_file {
                let has = self.file.frame(&self.rig.cpu, page).ok().map(|found| found.frame());
                assert_eq!(has, Some(found.physical), "page {page}");
                assert!(record.references() >= 2, "page {page}: {}", record.references());
            }
        }
    }

    /// Drops all; nothing is left.
    fn end(self, more: Option<SpaceRef>) {
        let Self { rig, file, space } = self;
        drop((more, space, file));
        assert_eq!((rig.used(), rig.spaces.counts()), (0, [0; 3]));
        assert_eq!(rig.frames.stats().refused, 0, "a frame is freed twice");
    }
}

/// The work of a CPU.
type Work = fn(&Space, &Object, &Cpu);

const READ: Work = |space, _, cpu| _ = handle_fault(space, cpu, START, Access::Read);
const WRITE: Work = |space, _, cpu| _ = handle_fault(space, cpu, START, Access::Write);
const WRITE_HOLE: Work = |space, _, cpu| _ = handle_fault(space, cpu, START + PAGE, Access::Write);
const POPULATE: Work = |space, _, cpu| space.populate_again(cpu, START, PAGES * PAGE, &|| false);
const DISCARD: Work = |space, _, cpu| space.madvise_dontneed(cpu, START, PAGES * PAGE).unwrap();
const GUARD: Work = |space, _, cpu| space.madvise_guard(cpu, START, PAGES * PAGE, &|| false).unwrap();
const UNGUARD: Work = |space, _, _| space.madvise_unguard(START, PAGES * PAGE).unwrap();
const UNMAP: Work = |space, _, cpu| space.munmap(cpu, START, PAGES * PAGE).unwrap();
const PUNCH: Work = |_, file, cpu| file.punch_hole(cpu, 0, 2 * PAGE).unwrap();
const EMPTY: Work = |_, file, cpu| file.truncate(cpu, 0).unwrap();
const SHORTEN: Work = |_, file, cpu| {
    file.truncate(cpu, PAGE).unwrap();
    file.truncate(cpu, PAGES * PAGE).unwrap();
};

/// To where two other tables translate, and back.
const MOVE: Work = |space, _, cpu| {
    let other = START + 510 * PAGE;
    for (from, to) in [(START, other), (other, START)] {
        let mut there = Remap::new(from, PAGES * PAGE, PAGES * PAGE, Move::To(to), false).unwrap();
        assert_eq!(space.mremap(cpu, &mut there, &SpaceLimits::NONE), Ok(to));
    }
};

/// Runs `work`, and `other` on another CPU at its `nth` moment at which the table is not locked; whether there was one.
fn meet(mapped: &Mapped, spaces: &[&SpaceRef], work: impl FnOnce(), other: Work, nth: usize) -> bool {
    let (file, space) = (mapped.file.clone(), spaces[0].clone());
    let other = move |cpu: &Cpu| other(&space, &file, cpu);
    super::meet(spaces, START, work, other, nth)
}

/// Has each of `works` meet each of `others` at each of its moments.
#[track_caller]
fn each_meets(prepare: fn(Sharing) -> Mapped, works: &[Work], others: &[Work]) {
    let mut moments = 0;
    for sharing in [Sharing::Shared, Sharing::Private] {
        for (&work, &other) in works.iter().flat_map(|work| others.iter().map(move |other| (work, other))) {
            for nth in 0.. {
                let mapped = prepare(sharing);
                let Mapped { rig, file, space } = &mapped;
                let met = meet(&mapped, &[space], || work(space, file, &rig.cpu), other, nth);
                mapped.check(space);
                mapped.end(None);
                moments += 1;
                if !met {
                    break;
                }
            }
        }
    }
    assert!(moments > 50, "{moments} moments");
}

#[test]
fn a_page_that_is_lost_at_any_step_of_a_fault_is_in_no_entry() {
    each_meets(Mapped::new, &[READ, WRITE, WRITE_HOLE, POPULATE], &[PUNCH, EMPTY, SHORTEN]);
    each_meets(Mapped::touched, &[WRITE, DISCARD], &[PUNCH, EMPTY, SHORTEN]);
}

#[test]
fn a_fault_at_any_step_of_a_truncation_leaves_no_entry_behind_the_end() {
    each_meets(Mapped::touched, &[PUNCH, EMPTY, SHORTEN], &[READ, WRITE, WRITE_HOLE, DISCARD]);
    each_meets(Mapped::new, &[PUNCH, EMPTY, SHORTEN], &[READ, WRITE, WRITE_HOLE, POPULATE]);
}

/// The walk meets each page at its old place or at its new one.
#[test]
fn a_page_that_is_lost_at_any_step_of_a_move_is_in_no_entry() {
    each_meets(Mapped::touched, &[MOVE], &[PUNCH, EMPTY, SHORTEN]);
}

#[test]
fn guards_are_made_at_any_step_of_others_and_the_other_way_round() {
    let others = [READ, WRITE, WRITE_HOLE, POPULATE, DISCARD, UNGUARD, PUNCH, EMPTY, SHORTEN];
    each_meets(Mapped::touched, &[GUARD], &others);
    each_meets(Mapped::new, &[GUARD, UNGUARD], &others);
    each_meets(Mapped::touched, &[READ, WRITE, POPULATE, DISCARD, UNGUARD, EMPTY], &[GUARD]);
}

/// A store after the call takes no fault, with any pages that others bring in between.
#[test]
fn pages_that_are_populated_for_writing_may_be_written() {
    const READ_EACH: Work =
        |space, _, cpu| (0..PAGES).for_each(|page| _ = handle_fault(space, cpu, START + page * PAGE, Access::Read));
    for (sharing, other) in [Sharing::Shared, Sharing::Private].into_iter().flat_map(|s| [(s, READ_EACH), (s, DISCARD)])
    {
        for nth in 0.. {
            let mapped = Mapped::new(sharing);
            let Mapped { rig, space, .. } = &mapped;
            // There is a table, so that entries are looked at before they are changed.
            rig.write(space, START + (PAGES - 1) * PAGE, 7);
            let mut result = Ok(());
            let populate = || {
                result = space.madvise_populate(&rig.cpu, START, PAGES * PAGE, Access::Write, &|| false);
            };
            let met = meet(&mapped, &[space], populate, other, nth);
            assert_eq!(result, Ok(()));
            let permits = |page| {
                let cell = space.page_tables().cell(START + page * PAGE);
                cell.is_some_and(|(_, cell)| space.permits(cell, Access::Write))
            };
            // A page that was discarded after the last look takes a fault.
            assert!(other as usize == DISCARD as usize || (0..PAGES).all(permits), "{sharing:?}, moment {nth}");
            mapped.end(None);
            if !met {
                break;
            }
        }
    }
}

/// The child has a copy of what the parent had, or nothing: a truncation while entries are copied misses neither.
#[test]
fn a_truncation_at_any_step_of_a_fork_empties_both() {
    for (sharing, other) in [Sharing::Shared, Sharing::Private].into_iter().flat_map(|s| [(s, EMPTY), (s, SHORTEN)]) {
        for nth in 0.. {
            let mapped = Mapped::touched(sharing);
            let mut child = None;
            let met = meet(&mapped, &[&mapped.space], || child = mapped.space.fork(&mapped.rig.cpu).ok(), other, nth);
            let child = child.expect("a child");
            for space in [&mapped.space, &child] {
                mapped.check(space);
                // A copy goes with the page, unless the truncation came before there was one.
                for page in 1..PAGES {
                    let found = space.page_tables().translate(START + page * PAGE);
                    assert!(!met || found.is_none(), "{sharing:?}, moment {nth}: page {page}");
                }
            }
            mapped.end(Some(child));
            if !met {
                break;
            }
        }
    }
}

#[test]
fn an_unmapping_and_a_truncation_meet() {
    for (nth, other) in (0..200).flat_map(|nth| [(nth, PUNCH), (nth, EMPTY)]) {
        let mapped = Mapped::touched(Sharing::Shared);
        let Mapped { rig, file, space } = &mapped;
        // The reverse map is locked while areas leave it: there the truncation would wait.
        let met = meet(&mapped, &[space], || _ = handle_fault(space, &rig.cpu, START, Access::Write), other, nth);
        UNMAP(space, file, &rig.cpu);
        mapped.end(None);
        if !met {
            break;
        }
    }
}

/// Two spaces and three areas of one file: each is found by its pages, whatever was cut and joined.
#[test]
fn the_reverse_map_finds_each_area() {
    let mapped = Mapped::touched(Sharing::Shared);
    let Mapped { rig, file, space } = &mapped;
    let other = rig.space();
    map_at(rig, &other, file, Sharing::Shared, START);
    map_at(rig, &other, file, Sharing::Private, START + 16 * PAGE);
    let touch = |space: &Space, at: VirtAddr, page: u64| rig.read(space, at + page * PAGE);
    let has = |space: &Space, at: VirtAddr, page: u64| space.page_tables().translate(at + page * PAGE).is_some();
    let places = [(space, START), (&other, START), (&other, START + 16 * PAGE)];
    let changes: [(&str, &dyn Fn()); 5] = [
        ("as they are", &|| ()),
        ("cut", &|| space.mprotect(START + PAGE, 2 * PAGE, Protection::READ).unwrap()),
        ("joined", &|| space.mprotect(START, 4 * PAGE, READ_WRITE).unwrap()),
        ("cut at the start", &|| other.mprotect(START, PAGE, Protection::READ).unwrap()),
        ("a copy", &|| _ = other.fork(&rig.cpu).unwrap()),
    ];
    for (what, change) in changes {
        change();
        for page in 0..PAGES {
            places.iter().for_each(|(space, at)| _ = touch(space, *at, page));
            file.punch_hole(&rig.cpu, page * PAGE, (page + 1) * PAGE).unwrap();
            for (number, (space, at)) in places.iter().enumerate() {
                assert!(!has(space, *at, page), "{what}: page {page} in place {number}");
            }
        }
    }
    // Two that become one, longer than each.
    let fresh = rig.space();
    for first_page in [0, 2] {
        let placement = Placement::Fixed(START + first_page * PAGE);
        let request = MapRequest { placement, sharing: Sharing::Shared, ..private(2) };
        let terms = Terms { file: Some(MappedFile { object: file, first_page, may_write: true }), ..Terms::NONE };
        fresh.mmap_within(&rig.cpu, &request, &terms, &|| false).unwrap();
    }
    [space, &other].into_iter().for_each(|space| space.munmap(&rig.cpu, START, 32 * PAGE).unwrap());
    touch(&fresh, START, 3);
    file.punch_hole(&rig.cpu, 3 * PAGE, 4 * PAGE).unwrap();
    assert!(!has(&fresh, START, 3), "the end of an area that was two");
    drop(fresh);
    map_at(rig, &other, file, Sharing::Shared, START);
    other.munmap(&rig.cpu, START, 3 * PAGE).unwrap();
    touch(&other, START, 3);
    file.punch_hole(&rig.cpu, 3 * PAGE, 4 * PAGE).unwrap();
    assert!(!has(&other, START, 3), "what is left of an area whose start is gone");
    mapped.end(Some(other));
}

#[test]
fn a_seal_of_writes_is_refused_while_an_area_may_be_written() {
    let mapped = Mapped::new(Sharing::Shared);
    let Mapped { rig, file, space } = &mapped;
    assert_eq!(file.add_seals(Seals::WRITE, || false), Err(ObjectError::Busy));
    let child = space.fork(&rig.cpu).unwrap();
    space.mprotect(START + PAGE, PAGE, Protection::READ).unwrap();
    space.munmap(&rig.cpu, START, PAGES * PAGE).unwrap();
    assert_eq!(file.add_seals(Seals::WRITE, || false), Err(ObjectError::Busy));
    child.munmap(&rig.cpu, START + PAGE, 2 * PAGE).unwrap();
    assert_eq!(file.add_seals(Seals::WRITE, || false), Err(ObjectError::Busy));
    drop(child);
    assert_eq!(file.add_seals(Seals::WRITE, || false), Ok(()));
    let request = MapRequest { sharing: Sharing::Shared, ..private(1) };
    let terms = Terms { file: Some(MappedFile { object: file, first_page: 0, may_write: true }), ..Terms::NONE };
    assert_eq!(space.mmap_within(&rig.cpu, &request, &terms, &|| false), Err(SpaceError::NotPermitted));
    assert_eq!(file.write(&rig.cpu, WriteAt::Byte(0), &[1], 1, u64::MAX), Err(ObjectError::Sealed));
    mapped.end(None);
}

/// Another that holds the frame of a page keeps it, and its contents, when the object loses it.
#[test]
fn a_frame_that_another_holds_stays_until_it_is_dropped() {
    let mapped = Mapped::touched(Sharing::Shared);
    let Mapped { rig, file, space } = &mapped;
    let frame = file.frame(&rig.cpu, 2).unwrap().frame();
    rig.spaces.record(frame).share();
    let used = rig.used();
    file.punch_hole(&rig.cpu, 2 * PAGE, 3 * PAGE).unwrap();
    assert_eq!((rig.used(), rig.spaces.record(frame).references()), (used, 1));
    space.common.drop_frame(&rig.cpu, frame);
    assert_eq!(rig.used(), used - 1);
    mapped.end(None);
}

/// The bytes of a page after the end of its object are gone for good, and no write goes over a limit.
#[test]
fn the_rest_of_the_last_page_is_cleared() {
    let mapped = Mapped::touched(Sharing::Shared);
    let Mapped { rig, file, space } = &mapped;
    assert_eq!(file.write(&rig.cpu, WriteAt::Byte(PAGE), &[7; 100], 100, PAGE + 50), Ok((PAGE, 50)));
    assert_eq!(file.write(&rig.cpu, WriteAt::Byte(PAGE), &[7], 1, PAGE), Err(ObjectError::TooLarge));
    file.truncate(&rig.cpu, PAGE + 20).unwrap();
    file.truncate(&rig.cpu, 2 * PAGE).unwrap();
    assert_eq!([19, 20, 49].map(|byte| rig.read(space, START + PAGE + byte)), [7, 0, 0]);
    mapped.end(None);
}

/// Memory that runs out in a call on a file: nothing is changed, and nothing kept but tables of the file's own.
#[test]
fn an_allocation_is_all_or_nothing() {
    let rig = Rig::new(2);
    let file = file(&rig, PAGES);
    let before = file.pages();
    let free = rig.frames.total() as u64;
    assert_eq!(file.allocate(&rig.cpu, 0, 4 * free * PAGE, SizeChoice::Grow, &|| false), Err(ObjectError::OutOfMemory));
    assert_eq!(
        file.allocate(&rig.cpu, 0, (free - 1) * PAGE, SizeChoice::Grow, &|| false),
        Err(ObjectError::OutOfMemory)
    );
    let calls = Cell::new(0);
    let is_killed = || calls.replace(calls.get() + 1) == 5;
    assert_eq!(file.allocate(&rig.cpu, 0, 64 * PAGE, SizeChoice::Grow, &is_killed), Err(ObjectError::Interrupted));
    assert_eq!((file.pages(), file.size()), (before, PAGES * PAGE));
    assert_eq!(file.allocate(&rig.cpu, PAGE, 64 * PAGE, SizeChoice::Grow, &|| false), Ok(()));
    assert_eq!((file.pages(), file.size()), (64, 64 * PAGE));
    drop(file);
    assert_eq!(rig.used(), 0);
}
