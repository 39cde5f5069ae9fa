//! Contiguous groups under a device, on the model SMMU: it may have kept a group by any of its entries, and where it
//! does not permit that a leaf changes its size in use, the group is broken first.

use std::cell::Cell;
use std::rc::Rc;

use granule_arch::alternative::host;
use granule_arch::descriptor::Protection;
use granule_model::smmu::{Access as Wants, Hardware as Kind, Outcome, SmmuRule};
use granule_pgtable::host::Operation;

use super::super::Resolution;
use super::allowed::Story;
use super::{NotifyMode, PAGE, READ_WRITE, STREAM, at, entry};
use crate::mm::kernel::record::at_each;
use crate::mm::space::{Access, AreaAdvice, MapRequest, Placement, Populate, Sharing, handle_fault};
use crate::platform::features::branch;

/// The first page of the groups, and the one after them.
const GROUPS: (u64, u64) = (16, 48);

/// A device that has stored to two groups, on an SMMU that permits size changes or not.
fn story(mode: NotifyMode, size_changes: bool) -> Story {
    let story = Story::new(mode, Kind { size_changes, ..Kind::QEMU }, 1);
    let (start, bytes) = (at(GROUPS.0), (GROUPS.1 - GROUPS.0) * PAGE);
    let request = MapRequest {
        placement: Placement::Fixed(start),
        bytes,
        protection: READ_WRITE,
        sharing: Sharing::Private,
        populate: Populate::OnDemand,
    };
    story.space.mmap(&story.cpu, &request).unwrap();
    story.space.madvise_areas(&story.cpu, start, bytes, AreaAdvice::HugePage).unwrap();
    for page in [GROUPS.0 + 3, GROUPS.0 + 16] {
        assert!(matches!(store(&story, page), Outcome::Refused { .. }));
        resolved(&story, page);
        assert!(matches!(store(&story, page), Outcome::Reaches(_)));
    }
    assert!((GROUPS.0..GROUPS.1).all(|page| entry(&story.space, at(page)).is_contiguous()));
    story
}

fn store(story: &Story, page: u64) -> Outcome {
    story.model.transact(STREAM, at(page).0, Wants::WRITE)
}

/// Resolves a refused write to `page`, which the device then repeats.
fn resolved(story: &Story, page: u64) {
    let address = at(page).0;
    assert_eq!(story.device.resolve(&story.cpu, address..address + 8, Access::Write, &|_| true), Resolution::Resolved);
}

/// Each call on a part of the groups, and on all.
fn changes(story: &Story) {
    let (cpu, space) = (&story.cpu, &story.space);
    let right = |what: &str| {
        story.model.forget();
        assert!(story.is_right(GROUPS.0..GROUPS.1), "{what}");
    };
    let protect = |first, count, protection| space.mprotect(at(first), count * PAGE, protection).unwrap();
    right("stored");
    for (first, count) in [(20, 1), (31, 2), (16, 32)] {
        protect(first, count, Protection::READ);
        right("read-only");
        protect(first, count, READ_WRITE);
        right("writable again");
    }
    assert!(entry(space, at(20)).is_contiguous());
    let child = space.fork(cpu).unwrap();
    right("forked");
    handle_fault(space, cpu, at(21), Access::Write).unwrap();
    handle_fault(space, cpu, at(21), Access::Write).unwrap();
    right("copied");
    drop(child);
    handle_fault(space, cpu, at(33), Access::Write).unwrap();
    assert!(entry(space, at(40)).is_contiguous() && entry(space, at(40)).is_dirty());
    right("reused");
    space.madvise_dontneed(cpu, at(40), PAGE).unwrap();
    right("a part given up");
    space.munmap(cpu, at(16), 16 * PAGE).unwrap();
    right("unmapped");
}

#[test]
fn a_device_reaches_what_the_entries_of_a_group_say() {
    for mode in [NotifyMode::Tlb, NotifyMode::Events] {
        for (live, permitted) in [(&[][..], false), (&[branch::SIZE_CHANGE], true)] {
            host::with(live, || {
                let story = story(mode, permitted);
                changes(&story);
                story.model.assert_clean();
            });
        }
    }
}

/// Size changes that are trusted with an SMMU that does not permit them.
#[test]
fn a_break_that_is_missing_is_seen() {
    for change in [(|story| story.space.mprotect(at(20), PAGE, Protection::READ).unwrap()) as fn(&Story), |story| {
        story.space.madvise_dontneed(&story.cpu, at(20), PAGE).unwrap()
    }] {
        for (live, permitted) in [(&[][..], false), (&[branch::SIZE_CHANGE], false), (&[branch::SIZE_CHANGE], true)] {
            let rules = host::with(live, || {
                let story = story(NotifyMode::Tlb, permitted);
                change(&story);
                story.is_right(GROUPS.0..GROUPS.1);
                story.model.violations()
            });
            let is_seen = rules.iter().any(|violation| violation.rule == SmmuRule::BreakBeforeMake);
            assert_eq!(is_seen, !live.is_empty() && !permitted, "{permitted}: {rules:?}");
        }
    }
}

/// A transaction in the break is refused; what it was for is submitted again, and is served.
#[test]
fn a_device_that_meets_a_break_is_served_when_it_comes_again() {
    host::with(&[], || {
        let story = story(NotifyMode::Tlb, false);
        let met = Rc::new(Cell::new(None));
        let hook = {
            let (met, model) = (met.clone(), story.model.clone());
            move |operation: &Operation| {
                if matches!(operation, Operation::DsbIsh) && met.get().is_none() {
                    met.set(Some(model.transact(STREAM, at(22).0, Wants::WRITE)));
                }
            }
        };
        at_each(hook, || story.space.madvise_dontneed(&story.cpu, at(20), PAGE).unwrap());
        assert_eq!(met.get(), Some(Outcome::Refused { event: Some(0x10) }));
        resolved(&story, 22);
        assert_eq!(store(&story, 22), Outcome::Reaches(entry(&story.space, at(22)).address().0));
        assert!(story.is_right(GROUPS.0..GROUPS.1));
        story.model.assert_clean();
    });
}
