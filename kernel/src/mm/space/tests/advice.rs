//! Advice: what a child has of areas, pages before the first access, and guards.

use granule_arch::descriptor::{Descriptor, Markers};
use granule_pgtable::{Mmu as _, Stores};

use super::*;
use crate::mm::space::{AreaAdvice, Discard, Locking, SpaceError, Unneeded};

const START: VirtAddr = VirtAddr(0x10_0000_0000);

fn at(page: u64) -> VirtAddr {
    START + page * PAGE
}

/// A space with so many pages of its own at `START`.
fn mapped(pages: u64) -> (Rig, SpaceRef) {
    let (rig, start) = (Rig::new(2), Placement::Fixed(START));
    let space = rig.space();
    space.mmap(&rig.cpu, &MapRequest { placement: start, ..private(pages) }).unwrap();
    (rig, space)
}

fn entry(space: &Space, page: u64) -> Descriptor {
    space.page_tables().cell(at(page)).map_or(Descriptor::EMPTY, |(_, cell)| space.mmu().load(cell))
}

fn guards(space: &Space, pages: u64) -> Vec<bool> {
    (0..pages).map(|page| entry(space, page) == Descriptor::from(Markers::GUARD)).collect()
}

/// First pages and ends of areas, from `START` on.
fn pieces(space: &Space) -> Vec<(u64, u64)> {
    let page = |address: u64| (address - START.0) / PAGE;
    areas(space).into_iter().map(|(start, end, _)| (page(start), page(end))).collect()
}

#[test]
fn areas_differ_by_what_a_child_has_of_them() {
    let (rig, space) = mapped(10);
    let advise = |space: &Space, first: u64, end: u64, advice| {
        space.madvise_areas(&rig.cpu, at(first), (end - first) * PAGE, advice)
    };
    advise(&space, 2, 4, AreaAdvice::DontFork).unwrap();
    advise(&space, 3, 6, AreaAdvice::WipeOnFork).unwrap();
    assert_eq!(pieces(&space), [(0, 2), (2, 3), (3, 4), (4, 6), (6, 10)]);
    advise(&space, 3, 6, AreaAdvice::WipeOnFork).unwrap();
    assert_eq!(pieces(&space).len(), 5, "nothing changes");
    let child = space.fork(&rig.cpu).unwrap();
    assert_eq!(pieces(&child), [(0, 2), (4, 6), (6, 10)], "with the gaps that `areas` checks");
    let grandchild = child.fork(&rig.cpu).unwrap();
    assert_eq!(pieces(&grandchild), pieces(&child), "zeros are for its children too");
    advise(&space, 0, 10, AreaAdvice::DoFork).unwrap();
    advise(&space, 0, 10, AreaAdvice::KeepOnFork).unwrap();
    assert_eq!(pieces(&space), [(0, 10)]);
    // The last area, and all of them.
    advise(&space, 8, 10, AreaAdvice::DontFork).unwrap();
    assert_eq!(pieces(&space.fork(&rig.cpu).unwrap()), [(0, 8)]);
    advise(&space, 0, 8, AreaAdvice::DontFork).unwrap();
    assert_eq!(pieces(&space), [(0, 10)]);
    assert_eq!(pieces(&space.fork(&rig.cpu).unwrap()), []);
    assert_eq!(advise(&space, 5, 11, AreaAdvice::DoFork), Err(SpaceError::NoMemory));
    assert_eq!(pieces(&space), [(0, 5), (5, 10)], "what is mapped has changed");
    drop((space, child, grandchild));
    assert_eq!(rig.used(), 0);
}

/// In parts, between CPUs that change them in turn, over whose border the range reaches.
#[test]
fn advice_over_parts_joins_them_or_visits_each() {
    const APART: u64 = 1 << 30;
    let (rig, space) = mapped(4);
    let far = START + APART;
    space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(far), ..private(4) }).unwrap();
    for page in [START, far] {
        rig.write(&space, page, 7);
    }
    let whole = APART + 4 * PAGE;
    assert!(divide(&space, START + APART / 2));
    let guarded = space.madvise_guard(&rig.cpu, START, whole, &|| false);
    assert_eq!((guarded, space.areas.count()), (Err(SpaceError::NoMemory), 2), "a hole is between them");
    let fault = |page, access| handle_fault(&space, &rig.cpu, page, access);
    assert_eq!([START, far].map(|page| fault(page, Access::Read).is_err()), [true; 2]);
    assert_eq!(space.madvise_unguard(START, whole), Err(SpaceError::NoMemory));
    assert_eq!([START, far].map(|page| fault(page, Access::Read)), [Ok(()); 2]);
    assert_eq!(space.madvise_areas(&rig.cpu, START, whole, AreaAdvice::DontFork), Err(SpaceError::NoMemory));
    assert_eq!(areas(&space.fork(&rig.cpu).unwrap()), []);
    drop(space);
    assert_eq!(rig.used(), 0);
}

/// Before the areas, between them or after them.
#[test]
fn a_hole_is_reported_wherever_it_is() {
    type Call = fn(&Space, &Cpu, VirtAddr, u64) -> Result<(), SpaceError>;
    let calls: [(&str, Call); 11] = [
        ("DONTFORK", |space, cpu, start, bytes| space.madvise_areas(cpu, start, bytes, AreaAdvice::DontFork)),
        ("HUGEPAGE", |space, cpu, start, bytes| space.madvise_areas(cpu, start, bytes, AreaAdvice::HugePage)),
        ("GUARD_INSTALL", |space, cpu, start, bytes| space.madvise_guard(cpu, start, bytes, &|| false)),
        ("GUARD_REMOVE", |space, _, start, bytes| space.madvise_unguard(start, bytes)),
        ("DONTNEED", |space, cpu, start, bytes| space.madvise_discard(cpu, start, bytes, Discard::Unlocked)),
        ("POPULATE_READ", |space, cpu, start, bytes| {
            space.madvise_populate(cpu, start, bytes, Access::Read, &|| false)
        }),
        ("PAGEOUT", |space, cpu, start, bytes| space.madvise_unneeded(cpu, start, bytes, Unneeded::Out)),
        ("WILLNEED", |space, _, start, bytes| space.madvise_nothing(start, bytes)),
        ("mlock", |space, cpu, start, bytes| space.mlock(cpu, start, bytes, Locking::Now, &|| false)),
        ("munlock", |space, cpu, start, bytes| space.mlock(cpu, start, bytes, Locking::None, &|| false)),
        ("msync", |space, _, start, bytes| space.msync(start, bytes, false, true)),
    ];
    for (name, call) in calls {
        for (start, pages, expected) in [
            (at(0), 2, Ok(())),
            (at(3), 2, Ok(())),
            (START - PAGE, 3, Err(SpaceError::NoMemory)),
            (at(0), 5, Err(SpaceError::NoMemory)),
            (at(3), 3, Err(SpaceError::NoMemory)),
        ] {
            let (rig, space) = mapped(5);
            space.munmap(&rig.cpu, at(2), PAGE).unwrap();
            assert_eq!(call(&space, &rig.cpu, start, pages * PAGE), expected, "{name}, {pages} pages from {start}");
        }
    }
}

#[test]
fn a_guard_has_no_frame_and_stays_where_contents_go() {
    let (rig, space) = mapped(6);
    (0..6).for_each(|page| rig.write(&space, at(page), 7));
    let before = rig.used();
    space.madvise_guard(&rig.cpu, at(1), 3 * PAGE, &|| false).unwrap();
    assert_eq!((rig.used(), guards(&space, 6)), (before - 3, [false, true, true, true, false, false].into()));
    space.madvise_dontneed(&rig.cpu, START, 6 * PAGE).unwrap();
    assert_eq!(guards(&space, 6), [false, true, true, true, false, false]);
    let child = space.fork(&rig.cpu).unwrap();
    assert_eq!(guards(&child, 6), guards(&space, 6));
    child.madvise_unguard(at(2), 9 * PAGE).unwrap_err();
    assert_eq!(guards(&child, 6), [false, true, false, false, false, false]);
    assert_eq!(
        child.madvise_guard(&rig.cpu, at(4) - PAGE * 8, 9 * PAGE, &|| false),
        Err(SpaceError::NoMemory),
        "a hole first"
    );
    assert_eq!(guards(&child, 6), [true, true, true, true, true, false]);
    child.munmap(&rig.cpu, at(1), PAGE).unwrap();
    child.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(at(1)), ..private(1) }).unwrap();
    assert_eq!(guards(&child, 6), [true, false, true, true, true, false]);
    drop((space, child));
    assert_eq!(rig.used(), 0);
}

#[test]
fn populating_ends_at_the_first_page_that_cannot_be_used() {
    let (rig, space) = mapped(8);
    space.madvise_guard(&rig.cpu, at(5), PAGE, &|| false).unwrap();
    let populate = |access| space.madvise_populate(&rig.cpu, START, 8 * PAGE, access, &|| false);
    assert_eq!(populate(Access::Read), Err(SpaceError::Unusable));
    let present = || (0..8).map(|page| entry(&space, page).is_valid()).collect::<Vec<_>>();
    assert_eq!(present(), [true, true, true, true, true, false, false, false]);
    assert!((0..5).all(|page| entry(&space, page).is_special()), "the page of zeros");
    assert_eq!(populate(Access::Write), Err(SpaceError::Unusable));
    assert!((0..5).all(|page| entry(&space, page).is_writable() && entry(&space, page).is_dirty()));
    space.madvise_unguard(START, 8 * PAGE).unwrap();
    let killed = space.madvise_populate(&rig.cpu, START, 8 * PAGE, Access::Write, &|| true);
    assert_eq!((killed, present()[5]), (Err(SpaceError::Interrupted), false));
    populate(Access::Write).unwrap();
    assert_eq!(present(), [true; 8]);
    drop(space);
    assert_eq!(rig.used(), 0);
}

#[test]
fn a_child_has_guards_where_nothing_else_is() {
    let (rig, space) = mapped(64);
    space.madvise_guard(&rig.cpu, at(40), PAGE, &|| false).unwrap();
    let child = space.fork(&rig.cpu).unwrap();
    let only = |place: u64| (0..64).map(|page| page == place).collect::<Vec<_>>();
    assert_eq!(guards(&child, 64), only(40));
    // Shared ones too, which have no other entries of a child's.
    let shared = MapRequest { placement: Placement::Fixed(START), sharing: Sharing::Shared, ..private(64) };
    space.mmap(&rig.cpu, &shared).unwrap();
    space.madvise_guard(&rig.cpu, at(50), PAGE, &|| false).unwrap();
    let other = space.fork(&rig.cpu).unwrap().fork(&rig.cpu).unwrap();
    assert_eq!((guards(&other, 64), other.madvise_unguard(START, 64 * PAGE)), (only(50), Ok(())));
    drop((space, child, other));
    assert_eq!(rig.used(), 0);
}

#[test]
fn other_markers_are_no_guards() {
    let (rig, space) = mapped(2);
    space.madvise_guard(&rig.cpu, START, 2 * PAGE, &|| false).unwrap();
    let cell = space.page_tables().cell(START).unwrap().1;
    space.mmu().store(cell, Markers::POISONED.into());
    space.madvise_unguard(START, 2 * PAGE).unwrap();
    assert_eq!([entry(&space, 0), entry(&space, 1)], [Markers::POISONED.into(), Descriptor::EMPTY]);
    let child = space.fork(&rig.cpu).unwrap();
    assert_eq!(entry(&child, 0), Markers::POISONED.into());
    space.madvise_areas(&rig.cpu, START, PAGE, AreaAdvice::WipeOnFork).unwrap();
    let child = space.fork(&rig.cpu).unwrap();
    assert_eq!(entry(&child, 0), Descriptor::EMPTY);
}

/// No more areas than Linux has by default: what would cut one is not taken.
#[test]
fn advice_makes_no_more_areas_than_a_space_may_have() {
    const MOST: u64 = 65_530;
    let rig = Rig::new(16);
    let space = rig.space();
    for area in 0..MOST {
        space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(at(4 * area)), ..private(2) }).unwrap();
    }
    let refused = space.madvise_areas(&rig.cpu, START, PAGE, AreaAdvice::DontFork);
    assert_eq!((refused, areas(&space).len() as u64), (Err(SpaceError::NoRecords), MOST));
    space.madvise_areas(&rig.cpu, START, 2 * PAGE, AreaAdvice::DontFork).unwrap();
}

#[test]
fn locks_cut_and_join_areas_and_stay_behind_with_the_parent() {
    let (rig, space) = mapped(8);
    let lock =
        |first: u64, end: u64, locking| space.mlock(&rig.cpu, at(first), (end - first) * PAGE, locking, &|| false);
    lock(2, 5, Locking::Now).unwrap();
    lock(4, 6, Locking::OnFault).unwrap();
    assert_eq!(pieces(&space), [(0, 2), (2, 4), (4, 6), (6, 8)]);
    assert_eq!(
        (0..8).map(|page| entry(&space, page).is_valid()).collect::<Vec<_>>()[..6],
        [false, false, true, true, true, false]
    );
    let child = space.fork(&rig.cpu).unwrap();
    child.madvise_dontneed(&rig.cpu, START, 8 * PAGE).unwrap();
    assert_eq!(space.madvise_dontneed(&rig.cpu, START, 8 * PAGE), Err(SpaceError::Invalid));
    assert_eq!(lock(6, 9, Locking::Now), Err(SpaceError::NoMemory));
    assert_eq!(pieces(&space), [(0, 2), (2, 4), (4, 6), (6, 8)], "what is mapped is locked");
    space.mlock_all(&rig.cpu, Locking::Now, &|| false);
    assert_eq!(pieces(&space), [(0, 8)]);
    assert!((0..8).all(|page| entry(&space, page).is_writable()));
    lock(3, 4, Locking::None).unwrap();
    space.madvise_dontneed(&rig.cpu, at(3), PAGE).unwrap();
    space.mlock_all(&rig.cpu, Locking::None, &|| false);
    assert_eq!(pieces(&space), [(0, 8)]);
    drop((space, child));
    assert_eq!(rig.used(), 0);
}
