//! The effects and the errors of each call.

use super::*;
use crate::mm::space::range::{STACK_GUARD, USER_END, USER_START};
use crate::mm::space::{FaultError, SpaceError, SpaceLimits, Terms};

#[test]
fn pages_come_with_the_first_access_and_go_with_their_area() {
    let rig = Rig::new(8);
    let empty = rig.used();
    let space = rig.space();
    let start = rig.map(&space, 3);
    assert_eq!(areas(&space), [(start.0, start.0 + 3 * PAGE, 3)]);
    assert_eq!(rig.read(&space, start), 0);
    assert!(space.tables().translate(start).unwrap().descriptor.is_special());
    rig.write(&space, start + PAGE, 7);
    rig.write(&space, start, 5);
    assert_eq!([0, 1, 2].map(|page| rig.read(&space, start + page * PAGE)), [5, 7, 0]);
    assert_eq!(rig.used(), empty + space.table_frames() + 2);
    space.munmap(&rig.cpu, start, 3 * PAGE).unwrap();
    assert_eq!(areas(&space), []);
    assert_eq!(space.table_frames(), 1, "the tables go too");
    assert_eq!(rig.used(), empty + 1);
    assert_eq!(handle_fault(&space, &rig.cpu, start, Access::Read), Err(FaultError::NotMapped));
    drop(space);
    assert_eq!(rig.used(), empty);
}

#[test]
fn a_fork_shares_until_one_writes() {
    let rig = Rig::new(8);
    let empty = rig.used();
    let parent = rig.space();
    let start = rig.map(&parent, 4);
    for page in 0..3 {
        rig.write(&parent, start + page * PAGE, page as u8 + 1);
    }
    let frames = rig.used();
    let child = parent.fork(&rig.cpu).unwrap();
    assert_eq!(rig.used(), frames + child.table_frames());
    rig.write(&child, start, 11);
    rig.write(&parent, start + PAGE, 12);
    let bytes = |space: &Space| [0, 1, 2, 3].map(|page| rig.read(space, start + page * PAGE));
    assert_eq!((bytes(&parent), bytes(&child)), ([1, 12, 3, 0], [11, 2, 3, 0]));
    let before = parent.tables().translate(start + 2 * PAGE).unwrap();
    drop(child);
    // The last holder writes where it is.
    rig.write(&parent, start + 2 * PAGE, 13);
    assert_eq!(parent.tables().translate(start + 2 * PAGE).unwrap().physical, before.physical);
    assert_eq!(bytes(&parent), [1, 12, 13, 0]);
    drop(parent);
    assert_eq!(rig.used(), empty);
}

/// Limits count what becomes writable, and nothing that is.
#[test]
fn a_change_of_what_is_writable_already_meets_no_limit() {
    let rig = Rig::new(4);
    let space = rig.space();
    let start = rig.map(&space, 4);
    let limits = SpaceLimits { data: 2 * PAGE, ..SpaceLimits::NONE };
    let protect = |protection| space.mprotect_within(start, 4 * PAGE, protection, || limits);
    assert_eq!(protect(READ_WRITE.and(Protection::EXECUTE)), Ok(()));
    assert_eq!(protect(Protection::READ), Ok(()));
    assert_eq!(protect(READ_WRITE), Err(SpaceError::NoMemory));
    assert_eq!(space.mprotect_within(start, 2 * PAGE, READ_WRITE, || limits), Ok(()));
    assert_eq!(space.mprotect_within(start, 3 * PAGE, READ_WRITE, || limits), Err(SpaceError::NoMemory));
}

/// Of every run of private areas: few are remembered from the first pass, many are looked for again.
#[test]
fn a_child_has_the_pages_of_every_run() {
    for runs in [1, 2, 8, 9, 10, 40] {
        let rig = Rig::new(4);
        let parent = rig.space();
        // Two pages apart, so that each is a run; and far enough for a table of its own in between.
        let at = |run: u64| VirtAddr(0x10_0000_0000 + run * if run.is_multiple_of(3) { 0x20_0000 } else { 3 * PAGE });
        for run in 0..runs {
            let request = MapRequest { placement: Placement::Fixed(at(run)), ..private(2) };
            parent.mmap(&rig.cpu, &request).unwrap();
            (0..2).for_each(|page| rig.write(&parent, at(run) + page * PAGE, run as u8 + 1));
        }
        let child = parent.fork(&rig.cpu).unwrap();
        for run in 0..runs {
            rig.write(&parent, at(run), 99);
            assert_eq!(
                [0, 1].map(|page| rig.read(&child, at(run) + page * PAGE)),
                [run as u8 + 1; 2],
                "{run} of {runs}"
            );
        }
    }
}

#[test]
fn shared_memory_stays_shared_across_a_fork() {
    let rig = Rig::new(8);
    let empty = rig.used();
    let parent = rig.space();
    let start = parent.mmap(&rig.cpu, &MapRequest { sharing: Sharing::Shared, ..private(4) }).unwrap();
    rig.write(&parent, start, 1);
    let child = parent.fork(&rig.cpu).unwrap();
    rig.write(&child, start, 2);
    rig.write(&child, start + PAGE, 3);
    assert_eq!([rig.read(&parent, start), rig.read(&parent, start + PAGE)], [2, 3]);
    parent.munmap(&rig.cpu, start, 2 * PAGE).unwrap();
    assert_eq!([rig.read(&child, start), rig.read(&child, start + PAGE)], [2, 3]);
    drop((parent, child));
    assert_eq!(rig.used(), empty);
    assert_eq!(rig.spaces.counts(), [0; 3]);
}

/// The architecture has no entry that permits stores and no loads. A read of such an area once got an entry that
/// let nothing through, and faulted for ever.
#[test]
fn what_may_only_be_written_is_read_by_programs_and_not_by_others() {
    let rig = Rig::new(8);
    let space = rig.space();
    for sharing in [Sharing::Private, Sharing::Shared] {
        let request = MapRequest { sharing, protection: Protection::WRITE, ..private(3) };
        let start = space.mmap(&rig.cpu, &request).unwrap();
        let entry = |page: u64| space.tables().translate(start + page * PAGE).unwrap().descriptor;
        for page in 0..2 {
            assert_eq!(handle_fault(&space, &rig.cpu, start + page * PAGE, Access::Read), Ok(()));
            assert!(entry(page).is_valid(), "{sharing:?}");
        }
        rig.write(&space, start, 1);
        rig.write(&space, start + 2 * PAGE, 3);
        for protection in [Protection::READ, Protection::WRITE, Protection::NONE, Protection::WRITE] {
            space.mprotect(start, 3 * PAGE, protection).unwrap();
            assert!((0..3).all(|page| entry(page).is_valid() == (protection != Protection::NONE)), "{protection:?}");
        }
        // As Linux's `get_user_pages`, which looks at the area.
        for page in 0..3 {
            let read = space.read_bytes(&rig.cpu, start + page * PAGE, &mut [0]);
            assert_eq!(read, Err(FaultError::NotAllowed), "{sharing:?}");
        }
        space.mprotect(start, 3 * PAGE, Protection::READ).unwrap();
        assert_eq!([0, 1, 2].map(|page| rig.read(&space, start + page * PAGE)), [1, 0, 3], "{sharing:?}");
    }
}

#[test]
fn protection_follows_areas_and_entries() {
    let rig = Rig::new(8);
    let space = rig.space();
    let start = rig.map(&space, 4);
    (0..4).for_each(|page| rig.write(&space, start + page * PAGE, 1));
    space.mprotect(start + PAGE, 2 * PAGE, Protection::READ).unwrap();
    let at = |page: u64| start.0 + page * PAGE;
    assert_eq!(areas(&space), [(at(0), at(1), 3), (at(1), at(3), 1), (at(3), at(4), 3)]);
    assert_eq!(handle_fault(&space, &rig.cpu, start + PAGE, Access::Write), Err(FaultError::NotAllowed));
    assert!(!space.tables().translate(start + PAGE).unwrap().descriptor.is_writable());
    space.mprotect(start + PAGE, 2 * PAGE, READ_WRITE).unwrap();
    assert_eq!(areas(&space), [(at(0), at(4), 3)]);
    assert!(space.tables().translate(start + PAGE).unwrap().descriptor.is_writable(), "no fault at the next store");
    space.mprotect(start, 4 * PAGE, Protection::NONE).unwrap();
    assert!(!space.tables().translate(start).unwrap().valid);
    space.mprotect(start, 4 * PAGE, READ_EXECUTE).unwrap();
    let leaf = space.tables().translate(start).unwrap().descriptor;
    assert!(leaf.is_valid() && leaf.is_user_executable() && !leaf.is_writable() && !leaf.is_executable());
}

/// Linux changes area after area, and stops at the first hole.
#[test]
fn a_change_of_protection_ends_at_the_first_hole() {
    let rig = Rig::new(8);
    let space = rig.space();
    let start = rig.map(&space, 8);
    let at = |page: u64| start.0 + page * PAGE;
    (0..8).for_each(|page| rig.write(&space, start + page * PAGE, 1));
    space.munmap(&rig.cpu, start + 4 * PAGE, PAGE).unwrap();
    space.mprotect(start + 3 * PAGE, PAGE, Protection::NONE).unwrap();
    assert_eq!(space.mprotect(start + PAGE, 6 * PAGE, Protection::READ), Err(SpaceError::NoMemory));
    assert_eq!(areas(&space), [(at(0), at(1), 3), (at(1), at(4), 1), (at(5), at(8), 3)]);
    let writable = |page: u64| space.tables().translate(start + page * PAGE).unwrap().descriptor.is_writable();
    assert_eq!([0, 1, 2, 3, 5, 6].map(writable), [true, false, false, false, true, true]);
    // A hole in front: nothing is changed.
    assert_eq!(space.mprotect(start + 4 * PAGE, 2 * PAGE, Protection::READ), Err(SpaceError::NoMemory));
    assert_eq!(areas(&space).last(), Some(&(at(5), at(8), 3)));
    // After the last address there is one too.
    space.munmap(&rig.cpu, start, 8 * PAGE).unwrap();
    let last = MapRequest { placement: Placement::Fixed(USER_END - 2 * PAGE), ..private(2) };
    space.mmap(&rig.cpu, &last).unwrap();
    for bytes in [2 * PAGE, 1 << 63] {
        assert_eq!(space.mprotect(USER_END - PAGE, bytes, Protection::READ), Err(SpaceError::NoMemory));
        let end = USER_END.0;
        assert_eq!(areas(&space), [(end - 2 * PAGE, end - PAGE, 3), (end - PAGE, end, 1)], "{bytes:#x}");
        space.mprotect(USER_END - PAGE, PAGE, READ_WRITE).unwrap();
    }
    assert_eq!(space.mprotect(USER_END - PAGE, u64::MAX, Protection::READ), Err(SpaceError::NoMemory));
    assert_eq!(areas(&space), [(USER_END.0 - 2 * PAGE, USER_END.0, 3)], "what wraps changes nothing");
}

#[test]
fn advice_discards_contents_and_mincore_reports_what_is_present() {
    let rig = Rig::new(8);
    let space = rig.space();
    let start = rig.map(&space, 4);
    (0..3).for_each(|page| rig.write(&space, start + page * PAGE, 1));
    let mut present = [9; 4];
    space.mincore(start, &mut present).unwrap();
    assert_eq!(present, [1, 1, 1, 0]);
    space.madvise_dontneed(&rig.cpu, start + PAGE, PAGE).unwrap();
    space.mincore(start, &mut present).unwrap();
    assert_eq!(present, [1, 0, 1, 0]);
    assert_eq!([rig.read(&space, start), rig.read(&space, start + PAGE)], [1, 0]);
    assert_eq!(space.madvise_dontneed(&rig.cpu, start, 5 * PAGE), Err(SpaceError::NoMemory));
    assert_eq!(rig.read(&space, start), 0);
}

/// The answers of Linux, call by call. A refusal changes nothing.
#[test]
fn what_is_refused_is_refused_as_on_linux() {
    let rig = Rig::new(4);
    let space = rig.space();
    let start = rig.map(&space, 4);
    let before = areas(&space);
    let mmap = |placement, bytes| space.mmap(&rig.cpu, &MapRequest { placement, bytes, ..private(1) });
    let fixed = Placement::Fixed;
    for (placement, bytes, refusal) in [
        (fixed(start), 0, SpaceError::Invalid),
        (fixed(start + 1), PAGE, SpaceError::Invalid),
        (fixed(VirtAddr(0)), PAGE, SpaceError::NotPermitted),
        (fixed(USER_START - PAGE), PAGE, SpaceError::NotPermitted),
        (fixed(USER_END - PAGE), 2 * PAGE, SpaceError::NoMemory),
        (fixed(USER_END), PAGE, SpaceError::NoMemory),
        (fixed(VirtAddr(u64::MAX - PAGE + 1)), PAGE, SpaceError::NoMemory),
        (Placement::FixedNoReplace(start + 3 * PAGE), PAGE, SpaceError::InUse),
        (Placement::FixedNoReplace(start - PAGE), 2 * PAGE, SpaceError::InUse),
        (Placement::Hint(VirtAddr(0)), 1 << 48, SpaceError::NoMemory),
        (Placement::Hint(start), u64::MAX, SpaceError::NoMemory),
        (Placement::Hint(start), u64::MAX - PAGE, SpaceError::NoMemory),
    ] {
        assert_eq!(mmap(placement, bytes), Err(refusal), "mmap {placement:?} {bytes:#x}");
    }
    for (at, bytes, answer) in [
        (start, 0, Err(SpaceError::Invalid)),
        (start + 1, PAGE, Err(SpaceError::Invalid)),
        (VirtAddr(1 << 48), PAGE, Err(SpaceError::Invalid)),
        (VirtAddr(1 << 48), 0, Err(SpaceError::Invalid)),
        (USER_END - PAGE, 1 << 48, Err(SpaceError::Invalid)),
        (start, u64::MAX, Err(SpaceError::Invalid)),
        (start - 4 * PAGE, 4 * PAGE, Ok(())),
        (USER_END, (1 << 48) - USER_END.0, Ok(())),
    ] {
        assert_eq!(space.munmap(&rig.cpu, at, bytes), answer, "munmap {at} {bytes:#x}");
    }
    for (at, bytes, answer) in [
        (start, 0, Ok(())),
        (start - PAGE, 0, Ok(())),
        (start + 1, PAGE, Err(SpaceError::Invalid)),
        (start, u64::MAX, Err(SpaceError::NoMemory)),
        (start - PAGE, 2 * PAGE, Err(SpaceError::NoMemory)),
        (start - PAGE, PAGE, Err(SpaceError::NoMemory)),
        (USER_END, PAGE, Err(SpaceError::NoMemory)),
    ] {
        assert_eq!(space.mprotect(at, bytes, Protection::READ), answer, "mprotect {at} {bytes:#x}");
    }
    for (at, bytes, answer) in [
        (start, 0, Ok(())),
        (start + 1, PAGE, Err(SpaceError::Invalid)),
        (start, u64::MAX, Err(SpaceError::Invalid)),
        (start, u64::MAX - (start.0 - 1), Err(SpaceError::Invalid)),
        (start - PAGE, PAGE, Err(SpaceError::NoMemory)),
        (USER_END, PAGE, Err(SpaceError::NoMemory)),
    ] {
        assert_eq!(space.madvise_dontneed(&rig.cpu, at, bytes), answer, "madvise {at} {bytes:#x}");
    }
    for (at, pages, answer) in [
        (start, 0, Ok(0)),
        (start, 1 << 20, Ok(((before[0].1 - start.0) / PAGE) as usize)),
        (start + 1, 1, Err(SpaceError::Invalid)),
        (start - PAGE, 2, Err(SpaceError::NoMemory)),
        (USER_END - PAGE, 2, Ok(1)),
        (USER_END, 1, Err(SpaceError::NoMemory)),
    ] {
        assert_eq!(space.mincore(at, &mut std::vec![0; pages]), answer, "mincore {at} {pages}");
    }
    assert_eq!(areas(&space), before);
    // The mapped pages of a range that ends above the space go.
    assert_eq!(space.munmap(&rig.cpu, start + PAGE, (1 << 48) - start.0 - PAGE), Ok(()));
    assert_eq!(space.mincore(start, &mut [0; 4]), Ok(1));
}

#[test]
fn a_wish_is_granted_where_it_can_be() {
    let rig = Rig::new(4);
    let space = rig.space();
    let wish = |at: u64| {
        let placement = Placement::Hint(VirtAddr(at));
        space.mmap(&rig.cpu, &MapRequest { placement, ..private(2) }).unwrap().0
    };
    assert_eq!(wish(0x40_0000), 0x40_0000);
    assert_eq!(wish(0x50_0fff), 0x50_0000, "rounded down");
    for refused in [0x40_1000, 0x3f_f000, 0, USER_START.0 - PAGE, USER_END.0 - PAGE, u64::MAX] {
        let got = wish(refused);
        assert!(got != refused && got >= 1 << 32, "{refused:#x}: {got:#x}");
    }
}

/// As on Linux, whose gaps end `stack_guard_gap` below a stack (`vm_start_gap`).
#[test]
fn a_wish_below_a_stack_is_granted_as_far_as_its_guard() {
    let rig = Rig::new(4);
    let space = rig.space();
    let stack = VirtAddr(0x40_0000_0000);
    let terms = Terms { grows: true, ..Terms::NONE };
    let at = |placement| MapRequest { placement, ..private(2) };
    assert_eq!(space.mmap_within(&rig.cpu, &at(Placement::Fixed(stack)), &terms, &|| false), Ok(stack));
    let guard = stack - STACK_GUARD;
    assert_eq!(space.mmap(&rig.cpu, &at(Placement::Hint(guard - 2 * PAGE))), Ok(guard - 2 * PAGE));
    for refused in [stack - 2 * PAGE, guard, guard - PAGE] {
        assert_ne!(space.mmap(&rig.cpu, &at(Placement::Hint(refused))), Ok(refused));
    }
    assert_eq!(space.grow_stack(guard + PAGE, &SpaceLimits::NONE), Err(SpaceError::NoMemory), "too near to it");
    let above = stack + 2 * PAGE;
    assert_eq!(space.mmap(&rig.cpu, &at(Placement::Hint(above))), Ok(above));
}

/// 10,000 rounds in the suite of the target; here as many as it takes to see a leak.
#[test]
fn nothing_leaks_over_rounds_of_fork_and_exit() {
    let rig = Rig::new(8);
    let parent = rig.space();
    let start = rig.map(&parent, 600);
    let shared = parent.mmap(&rig.cpu, &MapRequest { sharing: Sharing::Shared, ..private(3) }).unwrap();
    (0..600).step_by(7).for_each(|page| rig.write(&parent, start + page * PAGE, 1));
    rig.write(&parent, shared, 1);
    let (used, counts) = (rig.used(), rig.spaces.counts());
    for round in 0..200 {
        let child = parent.fork(&rig.cpu).unwrap();
        rig.write(&child, start + round * PAGE, 2);
        rig.write(&child, shared + PAGE, 2);
        let grandchild = child.fork(&rig.cpu).unwrap();
        drop(child);
        rig.write(&grandchild, start + round * PAGE, 3);
        grandchild.munmap(&rig.cpu, start + 100 * PAGE, 200 * PAGE).unwrap();
    }
    // The object's second page is the parent's as well.
    assert_eq!((rig.used(), rig.spaces.counts()), (used + 1, counts));
    drop(parent);
    assert_eq!((rig.used(), rig.spaces.counts()), (0, [0; 3]));
}
