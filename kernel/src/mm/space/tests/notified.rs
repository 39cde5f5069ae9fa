//! Each path that changes a space, by what it does to the machine and its calls to a subscriber: event, range, order,
//! and whether a table's lock is held, complete.
//!
//! A row is written as it happens: `start`, `end`, `range`, `tlbs` and `release` are calls to the subscriber with pages
//! counted from the first of the mapping, `*` for everything; `(locked)` means that the table's lock was held. Changes
//! of entries are `write`, however many in a row.

use std::format;
use std::string::{String, ToString};
use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use granule_arch::alternative::host;
use granule_arch::descriptor::{Descriptor, Protection};
use granule_arch::tlbi::Instruction;
use granule_pgtable::host::{CacheOperation, Operation};
use granule_pgtable::{Granule4K, Mmu};

use super::super::{Access, PAGE, SpaceRef, handle_fault};
use super::{READ_EXECUTE, READ_WRITE, Rig, private};
use crate::lab::{self, Lab};
use crate::mm::kernel::record::record;
use crate::mm::notifier::recording::{Call, Notified, Recording};
use crate::mm::notifier::{EventSet, Subscription};
use crate::mm::space::{MapRequest, Placement, Sharing};
use crate::platform::features::branch;
use crate::sync::rank;

type Listener = Subscription<Recording, SpaceRef>;

/// A space with four pages mapped, of which some were touched, and a subscriber.
struct Stage {
    rig: Rig,
    space: SpaceRef,
    start: VirtAddr,
    listener: Listener,
}

impl Stage {
    /// The first `touched` pages were written to.
    fn new(touched: u64) -> Self {
        let rig = Rig::new(4);
        let space = rig.space();
        let start = rig.map(&space, 4);
        // So that the table is there, and stays.
        rig.map(&space, 1);
        (0..touched).for_each(|page| rig.write(&space, start + page * PAGE, page as u8 + 1));
        handle_fault(&space, &rig.cpu, start + 3 * PAGE, Access::Read).unwrap();
        let listener = Listener::new(space.clone(), Recording::default(), 0).unwrap();
        Self { rig, space, start, listener }
    }

    fn page(&self, page: u64) -> VirtAddr {
        self.start + page * PAGE
    }

    fn fault(&self, page: u64, access: Access) {
        handle_fault(&self.space, &self.rig.cpu, self.page(page), access).unwrap();
    }

    fn fork(&self) -> SpaceRef {
        self.space.fork(&self.rig.cpu).unwrap()
    }

    /// Makes the entry of `page` old, as reclaim would.
    fn make_old(&self, page: u64) {
        let (_, cell) = self.space.page_tables().cell(self.page(page)).unwrap();
        let mmu = self.space.mmu();
        mmu.store(cell, mmu.load(cell).old());
    }

    fn entry(&self, page: u64) -> Descriptor {
        self.space.tables().translate(self.page(page)).map_or(Descriptor::EMPTY, |found| found.descriptor)
    }

    /// What `work` does and which calls it makes, in words.
    fn story(&self, work: impl FnOnce()) -> String {
        self.listener.take();
        let machine = record(work);
        let mut calls = self.listener.take().into_iter().peekable();
        let mut steps = Vec::<String>::new();
        for position in 0..=machine.len() {
            while let Some(call) = calls.next_if(|call| call.position <= position) {
                steps.push(self.call(&call));
            }
            if let Some(operation) = machine.get(position) {
                let step = self.operation(operation);
                if step != "write" || steps.last() != Some(&step) {
                    steps.push(step);
                }
            }
        }
        steps.join(", ")
    }

    fn call(&self, call: &Call) -> String {
        let pages = match call.range {
            (0, u64::MAX) => "*".to_string(),
            (start, end) => {
                let page = |address: u64| (address.wrapping_sub(self.start.0)).cast_signed() / PAGE.cast_signed();
                format!("{}..{}", page(start), page(end))
            }
        };
        let what = match call.notified {
            Notified::Start(event) => format!("start {event} {pages}"),
            Notified::End(event) => format!("end {event} {pages}"),
            Notified::Range => format!("range {pages}"),
            Notified::SecondaryTlbs => format!("tlbs {pages}"),
            Notified::Release => "release".to_string(),
        };
        if call.ranks & 1 << rank::TABLE != 0 { format!("{what} (locked)") } else { what }
    }

    fn operation(&self, operation: &Operation) -> String {
        let page = |operand: u64| {
            let address = (operand & ((1 << 44) - 1)) << 12;
            address.wrapping_sub(self.start.0) / PAGE
        };
        match operation {
            Operation::Write { .. } => "write".to_string(),
            Operation::DmbIshst => "dmb".to_string(),
            Operation::DsbIshst => "dsb ishst".to_string(),
            Operation::DsbIsh => "dsb ish".to_string(),
            Operation::DsbNsh => "dsb nsh".to_string(),
            Operation::Isb => "isb".to_string(),
            Operation::Tlbi(Instruction::Vale1is(operand)) => format!("vale1is {}", page(operand.bits())),
            Operation::Tlbi(Instruction::Vae1is(operand)) => format!("vae1is {}", page(operand.bits())),
            Operation::Tlbi(Instruction::Vale1(operand)) => format!("vale1 {}", page(operand.bits())),
            Operation::Tlbi(Instruction::Aside1is(_)) => "aside1is".to_string(),
            other => format!("{other:?}"),
        }
    }
}

/// What a path does on CPUs with nothing optional, and no switch of the lab on.
#[track_caller]
fn assert_events(stage: &Stage, work: impl FnOnce(), expected: &str) {
    let story = host::with(&[], || stage.story(work));
    assert_eq!(story, expected);
}

const COPY: &str = "start clear 0..1, write, dsb ishst, vale1is 0, tlbs 0..1 (locked), range 0..1 (locked), dsb ish, \
                    write, end clear 0..1";
const UPGRADE: &str = "write, dsb ishst, vale1 0, tlbs 0..1 (locked), dsb nsh, start upgrade 0..1, end upgrade 0..1";

#[test]
fn a_page_that_was_not_present_is_not_notified() {
    for access in [Access::Read, Access::Write] {
        let stage = Stage::new(0);
        assert_events(&stage, || stage.fault(0, access), "dmb, write");
    }
}

#[test]
fn a_write_to_the_page_of_zeros_is_a_new_page() {
    let stage = Stage::new(0);
    stage.fault(0, Access::Read);
    assert!(stage.entry(0).is_special());
    assert_events(&stage, || stage.fault(0, Access::Write), COPY);
}

#[test]
fn a_copy_is_notified_between_the_old_page_and_the_new() {
    let stage = Stage::new(1);
    let _child = stage.fork();
    assert_events(&stage, || stage.fault(0, Access::Write), COPY);
}

/// Copying is an access: where no hardware does, the entry that is copied from becomes young, and then another page's.
#[test]
fn the_source_of_a_copy_becomes_young() {
    let old_source = || {
        let stage = Stage::new(1);
        let child = stage.fork();
        stage.make_old(0);
        (stage, child)
    };
    let (stage, _child) = old_source();
    assert_events(&stage, || stage.fault(0, Access::Write), &format!("{COPY}, start upgrade 0..1, end upgrade 0..1"));
    let (stage, _child) = old_source();
    let story = host::with(&[branch::ACCESS_FLAG], || stage.story(|| stage.fault(0, Access::Write)));
    assert_eq!(story, COPY);
}

#[test]
fn a_page_that_is_reused_is_an_upgrade() {
    let stage = Stage::new(1);
    drop(stage.fork());
    assert!(!stage.entry(0).may_be_written());
    assert_events(&stage, || stage.fault(0, Access::Write), UPGRADE);
    assert!(stage.entry(0).may_be_written());
}

#[test]
fn a_page_that_becomes_young_is_an_upgrade() {
    for access in [Access::Read, Access::Write] {
        let stage = Stage::new(1);
        stage.make_old(0);
        assert_events(&stage, || stage.fault(0, access), UPGRADE);
        assert!(stage.entry(0).is_young());
    }
}

/// A shared page that was only read so far: the first store makes it dirty by software.
#[test]
fn a_shared_page_that_is_written_after_it_was_read_is_an_upgrade() {
    let stage = Stage::new(0);
    let shared = MapRequest { placement: Placement::Fixed(stage.start), sharing: Sharing::Shared, ..private(1) };
    stage.space.mmap(&stage.rig.cpu, &shared).unwrap();
    stage.fault(0, Access::Read);
    assert_events(&stage, || stage.fault(0, Access::Write), UPGRADE);
}

#[test]
fn a_spurious_fault_is_this_cpus_own_business() {
    let stage = Stage::new(1);
    for access in [Access::Read, Access::Write] {
        assert_events(&stage, || stage.fault(0, access), "vale1 0, dsb nsh");
    }
}

#[test]
fn mprotect_notifies_its_range_and_invalidates_what_changed() {
    let stage = Stage::new(2);
    let protect = |protection| stage.space.mprotect(stage.start, 4 * PAGE, protection).unwrap();
    assert_events(
        &stage,
        || protect(Protection::READ),
        "start protection of areas 0..4, write, dsb ishst, vale1is 0, vale1is 1, tlbs 0..2, dsb ish, \
         end protection of areas 0..4",
    );
    assert_events(
        &stage,
        || protect(READ_WRITE),
        "start protection of areas 0..4, write, dsb ishst, vale1is 0, vale1is 1, tlbs 0..2, dsb ish, \
         end protection of areas 0..4",
    );
    assert_events(&stage, || protect(READ_WRITE), "");
}

#[test]
fn munmap_ends_when_the_frames_are_free() {
    let stage = Stage::new(2);
    let used = stage.rig.frames.stats().used;
    assert_events(
        &stage,
        || stage.space.munmap(&stage.rig.cpu, stage.start, 4 * PAGE).unwrap(),
        "start unmap 0..4, write, dsb ishst, vale1is 0, vale1is 1, vale1is 2, vale1is 3, tlbs 0..4, range 0..4, \
         dsb ish, end unmap 0..4",
    );
    assert_eq!(stage.rig.frames.stats().used, used - 2);
    // What replaces a mapping unmaps it.
    let stage = Stage::new(1);
    let over = MapRequest { placement: Placement::Fixed(stage.start), ..private(1) };
    assert_events(
        &stage,
        || _ = stage.space.mmap(&stage.rig.cpu, &over).unwrap(),
        "start unmap 0..1, write, dsb ishst, vale1is 0, tlbs 0..1, range 0..1, dsb ish, end unmap 0..1",
    );
}

/// The tables go as well: walk caches of devices must not keep them.
#[test]
fn freed_tables_are_notified_like_pages() {
    let stage = Stage::new(1);
    let far = MapRequest { placement: Placement::Fixed(VirtAddr(0x4000_0000)), ..private(1) };
    let far = stage.space.mmap(&stage.rig.cpu, &far).unwrap();
    stage.rig.write(&stage.space, far, 1);
    let tables = stage.space.table_frames();
    stage.listener.take();
    host::with(&[], || stage.space.munmap(&stage.rig.cpu, far, PAGE).unwrap());
    assert!(stage.space.table_frames() < tables);
    let notified = stage.listener.take();
    let covered =
        |call: &&Call| call.notified == Notified::SecondaryTlbs && call.range.0 <= far.0 && far.0 < call.range.1;
    assert_eq!(notified.iter().filter(covered).count(), 1, "{notified:?}");
}

#[test]
fn madvise_clears() {
    let stage = Stage::new(2);
    assert_events(
        &stage,
        || stage.space.madvise_dontneed(&stage.rig.cpu, stage.start, 2 * PAGE).unwrap(),
        "start clear 0..2, write, dsb ishst, vale1is 0, vale1is 1, tlbs 0..2 (locked), range 0..2 (locked), dsb ish, \
         end clear 0..2",
    );
    assert_events(
        &stage,
        || stage.space.madvise_dontneed(&stage.rig.cpu, stage.start, 2 * PAGE).unwrap(),
        "start clear 0..2, end clear 0..2",
    );
}

/// More frames that are no neighbours than a gather lists: it pays in between.
#[test]
fn each_page_is_notified_once_however_many_there_are() {
    const PAGES: u64 = 70;
    let stage = Stage::new(0);
    let start = stage.rig.map(&stage.space, PAGES);
    let other = stage.rig.space();
    let between = stage.rig.map(&other, PAGES);
    for page in 0..PAGES {
        stage.rig.write(&stage.space, start + page * PAGE, 1);
        stage.rig.write(&other, between + page * PAGE, 1);
    }
    stage.listener.take();
    stage.space.madvise_dontneed(&stage.rig.cpu, start, PAGES * PAGE).unwrap();
    let notified = stage.listener.take().into_iter().filter(|call| call.notified == Notified::SecondaryTlbs);
    let pages = |address: u64| (address - start.0) / PAGE;
    let notified: Vec<_> = notified.map(|call| (pages(call.range.0), pages(call.range.1))).collect();
    assert_eq!(notified, [(0, 33), (33, 65), (65, 70)]);
}

#[test]
fn fork_protects_the_parents_pages() {
    let stage = Stage::new(2);
    let mut child = None;
    let story = host::with(&[], || stage.story(|| child = Some(stage.fork())));
    // Before it, the child's tables are made.
    let (tables, notified) = story.split_at(story.find("start ").expect("the change is announced"));
    assert!(tables.split(", ").all(|step| ["write", "dmb", ""].contains(&step)), "{story}");
    // The areas beside each other are one.
    let expected = "start protection of pages -1..4, write, dsb ishst, aside1is, tlbs *, dsb ish, \
                    end protection of pages -1..4";
    assert_eq!(notified, expected);
    assert!(child.unwrap().notifiers().is_empty(), "a subscriber of the parent is none of the child");
}

#[test]
fn the_end_is_the_release_and_nothing_after_it() {
    let stage = Stage::new(2);
    let story = host::with(&[], || stage.story(|| stage.space.release(&stage.rig.cpu)));
    let (notified, rest) = story.split_once(", end release *").expect("the end of the release");
    assert_eq!(notified, "start release *, release");
    assert!(!rest.contains(['.', '*']), "a subscriber was notified: {story}");
    assert!(story.contains("aside1is"), "{story}");
}

/// A subscriber without the event of an upgrade still gets the invalidation.
#[test]
fn an_upgrade_may_be_filtered() {
    let stage = Stage::new(1);
    let picky = Recording::of(EventSet::ALL.without(crate::mm::notifier::Event::ProtectionUpgrade));
    let picky = Listener::new(stage.space.clone(), picky, 0).unwrap();
    drop(stage.fork());
    picky.take();
    stage.fault(0, Access::Write);
    let notified: Vec<_> = picky.take().into_iter().map(|call| call.notified).collect();
    assert_eq!(notified, [Notified::SecondaryTlbs]);
}

#[test]
fn code_is_visible_before_its_entry_lets_it_run() {
    let stage = Stage::new(1);
    let run = || stage.space.mprotect(stage.start, PAGE, READ_EXECUTE).unwrap();
    let changed = "write, dsb ishst, vale1is 0, tlbs 0..1, dsb ish, end protection of areas 0..1";
    let story = host::with(&lab::SKIP_ICACHE_USER.sites(), || stage.story(run));
    assert_eq!(story, format!("start protection of areas 0..1, {changed}"), "lab=skip-icache-user");

    let stage = Stage::new(1);
    let frame = stage.entry(0).address();
    let run = || stage.space.mprotect(stage.start, PAGE, READ_EXECUTE).unwrap();
    let start = stage.space.common.frames.linear().address(frame);
    let clean = Operation::<Granule4K>::Cache(CacheOperation::Clean { start, bytes: PAGE });
    let drop_all = Operation::<Granule4K>::Cache(CacheOperation::InvalidateAll);
    let maintained = format!("{clean:?}, dsb ish, {drop_all:?}, dsb ish");
    assert_events(&stage, run, &format!("start protection of areas 0..1, {maintained}, {changed}"));
    // Once for each frame.
    stage.space.mprotect(stage.start, PAGE, Protection::READ).unwrap();
    let run = || stage.space.mprotect(stage.start, PAGE, READ_EXECUTE).unwrap();
    assert_events(&stage, run, &format!("start protection of areas 0..1, {changed}"));
}

/// With a fix taken away, the story is another; without, it is the one above.
#[track_caller]
fn assert_caught(lab: &Lab, stage: &Stage, work: impl FnOnce(), expected: &str) {
    let story = host::with(&lab.sites(), || stage.story(work));
    assert_eq!(story, expected, "lab={}", lab.name);
}

#[test]
fn without_its_event_an_upgrade_is_not_notified_late() {
    let stage = Stage::new(1);
    drop(stage.fork());
    let expected = "write, dsb ishst, vale1 0, tlbs 0..1 (locked), dsb nsh";
    assert_caught(&lab::NO_UPGRADE_EVENT, &stage, || stage.fault(0, Access::Write), expected);
}

#[test]
fn an_upgrade_event_before_the_unlock_comes_under_the_lock() {
    for old in [false, true] {
        let stage = Stage::new(1);
        if old {
            stage.make_old(0);
        } else {
            drop(stage.fork());
        }
        let expected = "write, dsb ishst, vale1 0, tlbs 0..1 (locked), dsb nsh, start upgrade 0..1 (locked), \
                        end upgrade 0..1 (locked)";
        assert_caught(&lab::NOTIFY_BEFORE_UNLOCK, &stage, || stage.fault(0, Access::Write), expected);
    }
}

#[test]
fn a_copy_without_its_invalidation_leaves_the_old_page_in_use() {
    let stage = Stage::new(1);
    let _child = stage.fork();
    let expected = "start clear 0..1, write, end clear 0..1";
    assert_caught(&lab::STALE_COW, &stage, || stage.fault(0, Access::Write), expected);
}
