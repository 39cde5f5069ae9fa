//! Answers beside a change that is under way on another CPU, at each pair of moments: what is there all the time is
//! never SIGBUS, an error or "absent", and what is replaced is the old or the new.

use std::vec;

use super::*;
use crate::mm::counted::Counted;
use crate::mm::page_block::{BLOCK_FRAMES, BLOCK_SIZE};
use crate::mm::space::pagemap::{GUARD, PRESENT};
use crate::mm::space::{
    AreaAdvice, Enrolment, FaultError, FaultMode, Features, MappedFile, Object, Patience, Seals, Sought, Terms,
    Userfaultfd,
};

const START: VirtAddr = VirtAddr(0x10_0000_0000);
const BLOCK_PAGES: u64 = BLOCK_FRAMES as u64;

/// A store to the first page.
const STORE: fn(&Space, &Cpu) = |space, cpu| _ = handle_fault(space, cpu, START, Access::Write);

/// A space with `pages` pages at `start`, each with its number and 1 in its first byte.
fn written(rig: &Rig, start: VirtAddr, pages: u64, sharing: Sharing) -> SpaceRef {
    let space = rig.space();
    let request = MapRequest { placement: Placement::Fixed(start), sharing, ..private(pages) };
    space.mmap(&rig.cpu, &request).unwrap();
    (0..pages).for_each(|page| rig.write(&space, start + page * PAGE, page as u8 + 1));
    space
}

/// One page, which a child shares, so that a store copies it.
fn shared_with_child(rig: &Rig) -> (SpaceRef, SpaceRef) {
    let space = written(rig, START, 1, Sharing::Private);
    let child = space.fork(&rig.cpu).unwrap();
    (space, child)
}

/// Makes `access` to the first page as the kernel or a program does.
fn fault(space: &Space, cpu: &Cpu, access: Access, mode: FaultMode) -> Result<(), FaultError> {
    match handle_fault(space, cpu, START, access) {
        Err(FaultError::Userfault) => space.userfault(cpu, START, access, mode),
        served => served,
    }
}

/// As [`shared_with_child`], where a pager serves what is missing.
fn shared_and_registered(
    rig: &Rig,
    user_mode_only: bool,
    features: u64,
) -> (SpaceRef, (SpaceRef, Counted<Userfaultfd>)) {
    let (space, child) = shared_with_child(rig);
    let pager = Userfaultfd::new(&space, user_mode_only, 0).unwrap();
    pager.agree(Features(features)).unwrap();
    let missing = Enrolment { missing: true, minor: false, write_protected: false };
    Userfaultfd::register(&pager, &rig.cpu, START, PAGE, missing).unwrap();
    (space, (child, pager))
}

/// The end that a truncation moves is a hole before or after it, and what it cuts off is none.
#[test]
fn a_hole_is_never_found_behind_the_end() {
    const CUT: fn(&Space, &Cpu) =
        |space, cpu| space.with_area(START, |area| area.object().unwrap().truncate(cpu, PAGE).unwrap()).unwrap();
    let rig = Rig::new(4);
    let prepare = || {
        let object = rig.spaces.create_object(&rig.cpu, 4 * PAGE, Some(&[]), Seals(0)).unwrap();
        let space = rig.space();
        let request = MapRequest { placement: Placement::Fixed(START), sharing: Sharing::Shared, ..private(4) };
        let mapped = MappedFile { object: &object, first_page: 0, may_write: true };
        let terms = Terms { file: Some(mapped), ..Terms::NONE };
        space.mmap_within(&rig.cpu, &request, &terms, &|| false).unwrap();
        (0..4).for_each(|page| rig.write(&space, START + page * PAGE, 1));
        (space, object)
    };
    let second = |_: &SpaceRef, object: &Counted<Object>| object.seek(2 * PAGE, Sought::Hole);
    at_each_pair(prepare, CUT, second, |found, _, _| assert!([None, Some(4 * PAGE)].contains(&found), "{found:?}"));
}

/// A copy that asks no pager fails for what is missing alone.
#[test]
fn a_copy_without_a_pager_waits_for_another_copy() {
    const COPY: fn(&Space, &Cpu) = |space, cpu| {
        space.write_bytes_within(cpu, START, &[1], Patience::WithoutPager(&|| false)).unwrap();
    };
    let rig = Rig::new(4);
    let prepare = || shared_and_registered(&rig, false, 0);
    let second = |space: &SpaceRef, _: &_| STORE(space, &rig.cpu);
    at_each_pair(prepare, COPY, second, |(), space, (_, pager)| {
        assert!(!pager.has_message());
        assert_eq!(rig.read(space, START), 1);
        pager.close();
    });
}

/// A pager that wants SIGBUS, serves no accesses of the kernel, or may not be asked, refuses what is missing alone.
#[test]
fn no_sigbus_for_a_page_that_is_copied() {
    let rig = Rig::new(4);
    for (features, user_mode_only, mode) in [
        (Features::SIGBUS, false, FaultMode::El0),
        (0, true, FaultMode::Kernel),
        (0, true, FaultMode::Device),
        (0, false, FaultMode::WithoutPager),
    ] {
        for access in [Access::Read, Access::Write] {
            let prepare = || shared_and_registered(&rig, user_mode_only, features);
            let second = |space: &SpaceRef, _: &_| fault(space, &rig.cpu, access, mode);
            at_each_pair(prepare, STORE, second, |answer, space, (_, pager)| {
                assert_eq!(answer, Ok(()), "{access:?} {mode:?}");
                assert!(!pager.has_message());
                assert_eq!(rig.read(space, START), 1);
                pager.close();
            });
        }
    }
}

/// A look at pages finds one that is copied, at each moment.
#[test]
fn a_page_that_is_copied_is_present() {
    let rig = Rig::new(4);
    at_each_pair(
        || shared_with_child(&rig),
        STORE,
        |space, _| {
            let (mut present, mut words) = ([0], [0]);
            space.mincore(START, &mut present).unwrap();
            space.pagemap(START, &mut words);
            (present, words[0] & PRESENT != 0, footprint(space).pages)
        },
        |found, _, _| assert_eq!(found, ([1], true, 1)),
    );
}

/// A migration moves it, or finds that the copy has another frame.
#[test]
fn a_page_that_is_copied_can_migrate() {
    let rig = Rig::new(4);
    at_each_pair(
        || shared_with_child(&rig),
        STORE,
        |space, _| rig.spaces.migrate_at(&rig.cpu, space, START).err(),
        |error, _, _| assert_ne!(error, Some(Unmovable::NotMapped)),
    );
}

/// So it is with a block that is copied, or split because one of its pages becomes a guard.
#[test]
fn a_block_that_is_replaced_is_present() {
    const GUARD_ONE: fn(&Space, &Cpu) =
        |space, cpu| space.madvise_guard(cpu, START + 3 * PAGE, PAGE, &|| false).unwrap();
    let rig = Rig::new(32);
    for (first, least) in [(STORE, BLOCK_FRAMES), (GUARD_ONE, BLOCK_FRAMES - 1)] {
        let prepare = || {
            // The frames of a split block become a block again.
            rig.frames.drain_cpu(&rig.cpu);
            let space = rig.space();
            let request = MapRequest { placement: Placement::Fixed(START), ..private(BLOCK_PAGES) };
            space.mmap(&rig.cpu, &request).unwrap();
            space.madvise_areas(&rig.cpu, START, BLOCK_SIZE, AreaAdvice::HugePage).unwrap();
            rig.write(&space, START, 1);
            assert!(space.block_entry(START).is_some());
            let child = space.fork(&rig.cpu).unwrap();
            (space, child)
        };
        let second = |space: &SpaceRef, _: &SpaceRef| {
            let (mut present, mut words) = (vec![0; BLOCK_FRAMES], vec![0; BLOCK_FRAMES]);
            space.mincore(START, &mut present).unwrap();
            space.pagemap(START, &mut words);
            let shown = words.iter().filter(|&word| word & PRESENT != 0).count();
            [present.iter().filter(|&&byte| byte == 1).count(), shown, footprint(space).pages]
        };
        at_each_pair(prepare, first, second, |found, _, _| {
            assert!(found.iter().all(|count| (least..=BLOCK_FRAMES).contains(count)), "{found:?}");
        });
    }
}

/// The copy has the last frame: a second store needs none.
#[test]
fn memory_that_a_copy_takes_is_not_missing() {
    let rig = Rig::new(2);
    let prepare = || {
        let (space, child) = shared_with_child(&rig);
        let mut taken: Vec<PhysAddr> = core::iter::from_fn(|| rig.frames.alloc(&rig.cpu).ok()).collect();
        let last = taken.pop().expect("a frame");
        rig.frames.free(&rig.cpu, last);
        rig.frames.drain_cpu(&rig.cpu);
        (space, (child, taken))
    };
    let seconds: [fn(&Space, &Cpu) -> bool; 2] = [
        |space, cpu| handle_fault(space, cpu, START, Access::Write).is_ok(),
        |space, cpu| space.madvise_populate(cpu, START, PAGE, Access::Write, &|| false).is_ok(),
    ];
    for second in seconds {
        let second = |space: &SpaceRef, _: &_| second(space, &rig.cpu);
        at_each_pair(prepare, STORE, second, |is_served, _, (_, taken)| {
            taken.iter().for_each(|&frame| rig.frames.free(&rig.cpu, frame));
            assert!(is_served);
        });
    }
}

/// Pages on both sides of the border between two tables.
const PAGES: u64 = 4;
const BORDER: VirtAddr = VirtAddr(START.0 - 2 * PAGE);

const GUARD_ALL: fn(&Space, &Cpu) = |space, cpu| space.madvise_guard(cpu, BORDER, PAGES * PAGE, &|| false).unwrap();

/// The contents of each page of `space`, or its refusal.
fn pages_of(rig: &Rig, space: &Space) -> Vec<Result<u8, FaultError>> {
    let page = |page| {
        let mut byte = [0];
        space.read_bytes(&rig.cpu, BORDER + page * PAGE, &mut byte).map(|()| byte[0])
    };
    (0..PAGES).map(page).collect()
}

#[track_caller]
fn assert_old_or_guards(pages: &[Result<u8, FaultError>]) {
    for (page, found) in (1..).zip(pages) {
        assert!(*found == Ok(page) || *found == Err(FaultError::Guard), "{pages:?}");
    }
}

/// A fork and a load meet pages of two tables that become guards: each is there with its contents, or a guard. A fork
/// finds all of them alike.
#[test]
fn a_page_that_becomes_a_guard_is_one_of_both() {
    let rig = Rig::new(4);
    for sharing in [Sharing::Private, Sharing::Shared] {
        let prepare = || (written(&rig, BORDER, PAGES, sharing), ());
        let check = |space: &Space| {
            let mut words = [0; PAGES as usize];
            space.pagemap(BORDER, &mut words);
            assert!(words.iter().all(|word| word & GUARD != 0), "{words:x?}");
        };
        let fork = |space: &SpaceRef, (): &()| space.fork(&rig.cpu).unwrap();
        at_each_pair(prepare, GUARD_ALL, fork, |child, space, ()| {
            let pages = pages_of(&rig, &child);
            assert_old_or_guards(&pages);
            // The area is locked: the fork comes before all of them or after.
            assert!(pages.iter().all(Result::is_ok) || pages.iter().all(Result::is_err), "{pages:?}");
            check(space);
        });
        at_each_pair(
            prepare,
            GUARD_ALL,
            |space, ()| pages_of(&rig, space),
            |pages, space, ()| {
                assert_old_or_guards(&pages);
                check(space);
            },
        );
    }
}
