//! Each path that changes a space, by what it does to the machine and its calls to a subscriber: event, range, order,
//! and whether a table's lock is held, complete.
//!
//! A row is written as it happens: `start`, `end`, `range`, `tlbs` and `release` are calls to the subscriber with pages
//! counted from the first of the mapping, `*` for everything; `(locked)` means that the table's lock was held. Changes
//! of entries are `write`, however many in a row, or `link` where a table is linked. A TLBI has the page, or the pages,
//! of its operand, and the level if that names one; that the ASID is the space's is checked for each.

#![allow(unsafe_code, reason = "looks at pages by their linear addresses")]

mod blocks;
mod code;
mod ends;
mod lost;

use std::cell::RefCell;
use std::format;
use std::rc::Rc;
use std::string::{String, ToString};
use std::sync::Mutex;
use std::vec::Vec;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::alternative::host;
use granule_arch::descriptor::{Descriptor, Protection, bits};
use granule_arch::tlbi::Instruction;
use granule_pgtable::host::{CacheOperation, Operation};
use granule_pgtable::{Mmu, Stores};

use super::super::outcome::{AllowedFault, FaultOutcome};
use super::super::{Access, SpaceRef, handle_fault};
use super::{READ_EXECUTE, READ_WRITE, Rig, private};
use crate::lab::{self, Lab};
use crate::mm::asid::{AsidSlot, Asids};
use crate::mm::counted::Counted;
use crate::mm::frame::FrameAllocator;
use crate::mm::kernel::record::{at_each, record};
use crate::mm::notifier::recording::{Call, Notified, Recording};
use crate::mm::notifier::{EventSet, Subscriber, Subscription};
use crate::mm::space::{
    Discard, MapRequest, MappedFile, Move, Object, ObjectError, Placement, Populate, Remap, Seals, Sharing,
    SpaceLimits, Terms, Unneeded, Used,
};
use crate::platform::features::branch;
use crate::sync::rank;

/// The low bits of an entry that links a table: no leaf has these without attributes.
const TABLE: u64 = bits::VALID | bits::TABLE;

/// Pages that [`Stage::map_scattered`] maps: more than a gather lists.
const SCATTERED: u64 = 70;

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
        // A number that is not that of a space that never ran.
        let asids = Asids::new();
        (0..3).for_each(|_| _ = asids.activate(&rig.cpu, space.mmu(), &AsidSlot::new()));
        asids.activate(&rig.cpu, space.mmu(), space.asid());
        let start = rig.map(&space, 4);
        // So that the table is there, and stays.
        rig.map(&space, 1);
        (0..touched).for_each(|page| rig.write(&space, start + page * PAGE, page as u8 + 1));
        handle_fault(&space, &rig.cpu, start + 3 * PAGE, Access::Read).unwrap();
        let listener = Listener::new(space.clone(), Recording::default(), 0).unwrap();
        Self { rig, space, start, listener }
    }

    /// Maps [`SCATTERED`] pages in the space and writes to them; the space that is returned with the first page's
    /// address holds the frames between theirs.
    fn map_scattered(&self) -> (VirtAddr, SpaceRef) {
        let (start, other) = (self.rig.map(&self.space, SCATTERED), self.rig.space());
        let between = self.rig.map(&other, SCATTERED);
        for page in 0..SCATTERED {
            self.rig.write(&self.space, start + page * PAGE, 1);
            self.rig.write(&other, between + page * PAGE, 1);
        }
        (start, other)
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

    /// The operations of `work` and the calls that it makes, in words.
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
        match operation {
            // A table has no attributes.
            Operation::Write { new, .. } if new.0 & 0xfff == TABLE => "link".to_string(),
            Operation::Write { .. } => "write".to_string(),
            Operation::DmbIshst => "dmb".to_string(),
            Operation::DsbIshst => "dsb ishst".to_string(),
            Operation::DsbIsh => "dsb ish".to_string(),
            Operation::DsbNsh => "dsb nsh".to_string(),
            Operation::Isb => "isb".to_string(),
            Operation::Tlbi(instruction) => self.tlbi(*instruction),
            Operation::Cache(CacheOperation::Clean { bytes: PAGE, .. }) => "clean page".to_string(),
            Operation::Cache(CacheOperation::InvalidateAll) => "ic ialluis".to_string(),
            other => panic!("no path of a space does {other:?}"),
        }
    }

    /// The instruction, the page or pages that its operand names, and the level where that names one. Each is for this
    /// space's ASID.
    fn tlbi(&self, instruction: Instruction) -> String {
        let (name, operand, is_range) = match instruction {
            Instruction::Vale1is(operand) => ("vale1is", operand.bits(), false),
            Instruction::Vae1is(operand) => ("vae1is", operand.bits(), false),
            Instruction::Vale1(operand) => ("vale1", operand.bits(), false),
            Instruction::Rvale1is(operand) => ("rvale1is", operand.bits(), true),
            Instruction::Rvae1is(operand) => ("rvae1is", operand.bits(), true),
            Instruction::Aside1is(asid) => ("aside1is", u64::from(asid.number()) << 48, false),
            other => panic!("no path of a space issues {other:?}"),
        };
        let field = |first: u32, bits: u32| operand >> first & ((1 << bits) - 1);
        assert_eq!(field(48, 16) as u16, self.space.asid().number(), "{name}");
        if matches!(instruction, Instruction::Aside1is(_)) {
            return name.to_string();
        }
        let page = |base: u64| ((base << 12).wrapping_sub(self.start.0)).cast_signed() / PAGE.cast_signed();
        // Arm ARM C5.5: TG, SCALE, NUM, TTL and BaseADDR; or TTL with the granule, and VA.
        let (what, level) = if is_range {
            assert_eq!(field(46, 2), 1, "4 KiB");
            let first = page(field(0, 37));
            let pages = (field(39, 5) + 1) << (5 * field(44, 2) + 1);
            (format!("{name} {first}..{}", first + pages.cast_signed()), field(37, 2))
        } else {
            let hint = field(44, 4);
            assert!(hint == 0 || hint >> 2 == 1, "4 KiB");
            (format!("{name} {}", page(field(0, 44))), hint & 3)
        };
        if level == 0 { what } else { format!("{what} level {level}") }
    }
}

/// Asserts the story of `work` on CPUs with nothing optional, and no switch of the lab on.
#[track_caller]
fn assert_events(stage: &Stage, work: impl FnOnce(), expected: &str) {
    let story = host::with(&[], || stage.story(work));
    assert_eq!(story, expected);
}

const COPY: &str = "start clear 0..1, write, dsb ishst, vale1is 0, tlbs 0..1 (locked), range 0..1 (locked), dsb ish, \
                    write, end clear 0..1";
const CODE: &str = "clean page, dsb ish, ic ialluis, dsb ish";
const UPGRADE: &str = "write, dsb ishst, vale1 0, tlbs 0..1 (locked), dsb nsh, start upgrade 0..1, end upgrade 0..1";

/// With a fix taken away, the story is another; without, it is the one above.
#[track_caller]
fn assert_caught(lab: &Lab, stage: &Stage, work: impl FnOnce(), expected: &str) {
    let story = host::with(&lab.sites(), || stage.story(work));
    assert_eq!(story, expected, "lab={}", lab.name);
}

/// A copy of a page for a fault that must not sleep, as on the metal under a CPU's slot.
#[test]
fn a_copy_that_must_not_sleep_is_put_off_where_a_subscriber_may() {
    let Stage { rig, space, start, listener } = Stage::new(1);
    let page = start + 3 * PAGE;
    let copy = || {
        let areas = space.read_all_areas();
        let (area, (table, cell)) = (areas.find(page).unwrap(), space.page_tables().cell(page).unwrap());
        let fault = AllowedFault { space: &space, cpu: &rig.cpu, area, page, table, cell, access: Access::Write };
        fault.copy_on_write(space.mmu().load(cell), false)
    };
    let (used, zeros) = (rig.used(), space.tables().translate(page).unwrap());
    assert_eq!(copy(), FaultOutcome::Served);
    assert_eq!(listener.take(), []);
    assert_eq!((rig.used(), space.tables().translate(page).unwrap().descriptor), (used, zeros.descriptor));
    drop(listener);
    assert_eq!(copy(), FaultOutcome::Served);
    assert_eq!(rig.used(), used + 1);
    assert!(space.tables().translate(page).unwrap().descriptor.may_be_written());
}

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
    // A mapping that replaces another unmaps it.
    let stage = Stage::new(1);
    let over = MapRequest { placement: Placement::Fixed(stage.start), ..private(1) };
    assert_events(
        &stage,
        || _ = stage.space.mmap(&stage.rig.cpu, &over).unwrap(),
        "start unmap 0..1, write, dsb ishst, vale1is 0, tlbs 0..1, range 0..1, dsb ish, end unmap 0..1",
    );
}

/// Under the locks of both tables, before anything can empty an entry at its new place.
#[test]
fn a_move_is_an_unmapping_of_the_old_place() {
    let stage = Stage::new(2);
    let used = stage.rig.frames.stats().used;
    let moved = |from: u64, to: u64| {
        let to = Move::To(stage.page(to));
        let mut there = Remap::new(stage.page(from), 2 * PAGE, 2 * PAGE, to, false).unwrap();
        stage.space.mremap(&stage.rig.cpu, &mut there, &SpaceLimits::NONE).unwrap();
    };
    stage.space.munmap(&stage.rig.cpu, stage.page(2), 2 * PAGE).unwrap();
    assert_events(
        &stage,
        || moved(0, 2),
        "start unmap 0..2, write, dsb ishst, vale1is 0, vale1is 1, tlbs 0..2 (locked), range 0..2 (locked), dsb ish, \
         end unmap 0..2",
    );
    // Pages that were not there need nothing.
    stage.space.madvise_dontneed(&stage.rig.cpu, stage.page(2), 2 * PAGE).unwrap();
    assert_events(&stage, || moved(2, 0), "start unmap 2..4, end unmap 2..4");
    assert_eq!(stage.rig.frames.stats().used, used - 2);
}

/// The tables go as well, so walk caches must not keep them: an invalidation that is not of the last level alone, and
/// names no level; and frames, tables among them, are free only after it.
#[test]
fn freed_tables_are_invalidated_with_their_pages_and_then_free() {
    /// How many frames are in use while an invalidation is under way.
    struct InUse(&'static FrameAllocator, Mutex<Vec<usize>>);
    impl Subscriber for InUse {
        fn invalidate_secondary_tlbs(&self, _: VirtAddr, _: VirtAddr) {
            self.1.lock().unwrap().push(self.0.stats().used);
        }
    }
    for (features, tlbi) in [
        (&[][..], "vae1is 0, vae1is 1"),
        (&[branch::TLB_LEVEL], "vae1is 0, vae1is 1"),
        (&[branch::TLB_LEVEL, branch::TLB_RANGE], "rvae1is 0..2"),
    ] {
        let mut stage = Stage::new(1);
        stage.start = VirtAddr(0x4000_0000);
        let far = MapRequest { placement: Placement::Fixed(stage.start), ..private(2) };
        stage.space.mmap(&stage.rig.cpu, &far).unwrap();
        (0..2).for_each(|page| stage.rig.write(&stage.space, stage.page(page), 1));
        let frames = stage.rig.frames;
        let in_use = Subscription::new(stage.space.clone(), InUse(frames, Mutex::default()), 0).unwrap();
        let (tables, used) = (stage.space.table_frames(), frames.stats().used);
        let unmap = || stage.space.munmap(&stage.rig.cpu, stage.start, 2 * PAGE).unwrap();
        let story = host::with(features, || stage.story(unmap));
        let freed = tables - stage.space.table_frames();
        assert!(freed > 0);
        let expected =
            format!("start unmap 0..2, write, dsb ishst, {tlbi}, tlbs 0..2, range 0..2, dsb ish, end unmap 0..2");
        assert_eq!(story, expected, "{features:?}");
        assert_eq!(in_use.1.lock().unwrap()[..], [used], "before the invalidation is complete");
        assert_eq!(frames.stats().used, used - freed - 2);
    }
}

/// Where tables stay: leaves alone, at the level that they are of, where the CPUs take a level; and a range at once.
#[test]
fn pages_are_invalidated_as_leaves_of_the_last_level() {
    for (features, tlbi) in [
        (&[branch::TLB_LEVEL][..], "vale1is 0 level 3, vale1is 1 level 3"),
        (&[branch::TLB_RANGE], "rvale1is 0..2"),
        (&[branch::TLB_LEVEL, branch::TLB_RANGE], "rvale1is 0..2 level 3"),
    ] {
        let with = |stage: &Stage, work: &dyn Fn()| host::with(features, || stage.story(work));
        let stage = Stage::new(2);
        let protect = || stage.space.mprotect(stage.start, 2 * PAGE, Protection::READ).unwrap();
        let expected = format!(
            "start protection of areas 0..2, write, dsb ishst, {tlbi}, tlbs 0..2, dsb ish, end protection of areas 0..2"
        );
        assert_eq!(with(&stage, &protect), expected);
        let zap = || stage.space.madvise_dontneed(&stage.rig.cpu, stage.start, 2 * PAGE).unwrap();
        let expected = format!(
            "start clear 0..2, write, dsb ishst, {tlbi}, tlbs 0..2 (locked), range 0..2 (locked), dsb ish, end clear 0..2"
        );
        assert_eq!(with(&stage, &zap), expected);
        let stage = Stage::new(2);
        let unmap = || stage.space.munmap(&stage.rig.cpu, stage.start, 2 * PAGE).unwrap();
        let expected =
            format!("start unmap 0..2, write, dsb ishst, {tlbi}, tlbs 0..2, range 0..2, dsb ish, end unmap 0..2");
        assert_eq!(with(&stage, &unmap), expected);
    }
}

/// The zeros before each entry, and for shared memory before the entry of the object too.
#[test]
fn populated_pages_are_zero_before_their_entries() {
    let stage = Stage::new(0);
    let request = |sharing, protection| MapRequest {
        placement: Placement::Fixed(stage.start - 8 * PAGE),
        sharing,
        protection,
        populate: Populate::Now,
        ..private(2)
    };
    let populate = |request: &MapRequest| {
        stage.space.mmap(&stage.rig.cpu, request).unwrap();
    };
    let remove = || stage.space.munmap(&stage.rig.cpu, stage.start - 8 * PAGE, 2 * PAGE).unwrap();
    assert_events(&stage, || populate(&request(Sharing::Private, READ_WRITE)), "dmb, write, dmb, write");
    remove();
    assert_events(&stage, || populate(&request(Sharing::Private, Protection::READ)), "dmb, write, dmb, write");
    remove();
    let all = Protection::READ.and(Protection::WRITE).and(Protection::EXECUTE);
    let expected = format!("{CODE}, dmb, write, {CODE}, dmb, write");
    assert_events(&stage, || populate(&request(Sharing::Private, all)), &expected);
    remove();
    // The first access makes the object's tables too: each has its contents before its link.
    let shared = request(Sharing::Shared, READ_WRITE);
    let expected = format!("{}dmb, write, dmb, write", "write, dmb, link, ".repeat(3));
    assert_events(&stage, || populate(&shared), &expected);
    // Pages that the object has, in other entries.
    let zap = || stage.space.madvise_dontneed(&stage.rig.cpu, stage.start - 8 * PAGE, PAGE).unwrap();
    zap();
    // The store of the entry depends on the load of the object's, before which the contents are.
    let again = || handle_fault(&stage.space, &stage.rig.cpu, stage.start - 8 * PAGE, Access::Write).unwrap();
    assert_events(&stage, again, "write");
}

/// Writable pages are invalidated before their area leaves the object: after that a seal may promise that no page is
/// writable.
#[test]
fn shared_pages_are_invalidated_before_their_area_is_gone() {
    let stage = Stage::new(0);
    let request = MapRequest { sharing: Sharing::Shared, ..private(1) };
    let start = stage.space.mmap(&stage.rig.cpu, &request).unwrap();
    stage.rig.write(&stage.space, start, 1);
    let object = stage.space.areas.read(start).find(start).unwrap().counted_object().unwrap();
    struct Sealing(Counted<Object>);
    impl Subscriber for Sealing {
        fn invalidate_secondary_tlbs(&self, _: VirtAddr, _: VirtAddr) {
            assert_eq!(self.0.add_seals(Seals::WRITE, || false), Err(ObjectError::Busy), "nothing is invalidated yet");
        }
    }
    let sealing = Subscription::new(stage.space.clone(), Sealing(object), 0).unwrap();
    stage.space.munmap(&stage.rig.cpu, start, PAGE).unwrap();
    assert_eq!(sealing.0.add_seals(Seals::WRITE, || false), Ok(()));
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

/// Out of the entry first, then the contents, a barrier, and the object's entry.
#[test]
fn an_objects_page_is_copied_behind_its_invalidation() {
    let stage = Stage::new(1);
    let shared = MapRequest { placement: Placement::Fixed(stage.start), sharing: Sharing::Shared, ..private(1) };
    stage.space.mmap(&stage.rig.cpu, &shared).unwrap();
    stage.rig.write(&stage.space, stage.start, 1);
    assert_events(
        &stage,
        || assert_eq!(stage.rig.migrate(&stage.rig.cpu, &stage.space, stage.start), Some(Ok(()))),
        "write, start migrate 0..1, write, dsb ishst, vale1is 0, tlbs 0..1 (locked), range 0..1 (locked), dsb ish, \
         end migrate 0..1, dmb, write",
    );
}

/// A guard comes after the invalidation of the page that was there; where none was, and where one goes, nothing is
/// notified.
#[test]
fn a_guard_comes_behind_the_invalidation_of_its_page() {
    let stage = Stage::new(2);
    let guard = || stage.space.madvise_guard(&stage.rig.cpu, stage.start, 2 * PAGE, &|| false).unwrap();
    assert_events(
        &stage,
        guard,
        "start clear 0..2, write, dsb ishst, vale1is 0, vale1is 1, tlbs 0..2 (locked), range 0..2 (locked), dsb ish, \
         write, end clear 0..2",
    );
    assert_events(&stage, guard, "");
    assert_events(&stage, || stage.space.madvise_unguard(stage.start, 2 * PAGE).unwrap(), "write");
    assert_events(&stage, guard, "write");
}

#[test]
fn what_is_discarded_area_by_area_is_notified_like_the_rest() {
    let stage = Stage::new(2);
    let discard = |what| stage.space.madvise_discard(&stage.rig.cpu, stage.start, 2 * PAGE, what).unwrap();
    assert_events(
        &stage,
        || discard(Discard::Anonymous),
        "start clear 0..2, write, dsb ishst, vale1is 0, vale1is 1, tlbs 0..2 (locked), range 0..2 (locked), dsb ish, \
         end clear 0..2",
    );
    assert_events(
        &stage,
        || stage.space.madvise_unneeded(&stage.rig.cpu, stage.start, 2 * PAGE, Unneeded::Out).unwrap(),
        "",
    );
}

/// Populated for writing after a fork, when there is no other holder: each page is upgraded as by its first store.
#[test]
fn pages_that_are_populated_are_upgraded_like_by_a_store() {
    let stage = Stage::new(2);
    drop(stage.fork());
    stage.listener.take();
    let populate = || {
        stage.space.madvise_populate(&stage.rig.cpu, stage.start, 2 * PAGE, Access::Write, &|| false).unwrap();
    };
    let (mut one, mut other) = (Vec::new(), Vec::new());
    populate();
    one.extend(stage.listener.take());
    drop(stage.fork());
    stage.listener.take();
    (0..2).for_each(|page| stage.fault(page, Access::Write));
    other.extend(stage.listener.take());
    assert!(!one.is_empty() && one == other, "{one:?} {other:?}");
}

/// A hole in an object, and its end, where it is mapped; in each space by itself.
#[test]
fn pages_of_an_object_are_cleared_in_each_space_that_maps_them() {
    let stage = Stage::new(0);
    let file = stage.rig.spaces.create_object(&stage.rig.cpu, 4 * PAGE, Some(&[]), Seals(0)).unwrap();
    let other = stage.rig.space();
    let map = |space: &SpaceRef| {
        let request = MapRequest { placement: Placement::Fixed(stage.start), sharing: Sharing::Shared, ..private(4) };
        let terms = Terms { file: Some(MappedFile { object: &file, first_page: 0, may_write: true }), ..Terms::NONE };
        space.mmap_within(&stage.rig.cpu, &request, &terms, &|| false).unwrap();
        (0..4).for_each(|page| stage.rig.write(space, stage.start + page * PAGE, 1));
    };
    map(&stage.space);
    // First out of the object, then out of the entries; the frame is free after that.
    assert_events(
        &stage,
        || file.punch_hole(&stage.rig.cpu, PAGE, 3 * PAGE).unwrap(),
        "write, start clear 1..3, write, dsb ishst, vale1is 1, vale1is 2, tlbs 1..3 (locked), range 1..3 (locked), \
         dsb ish, end clear 1..3",
    );
    // An entry that is not valid may be in a TLB still, while `mprotect` continues.
    stage.space.mprotect(stage.start, PAGE, Protection::NONE).unwrap();
    assert_events(
        &stage,
        || file.punch_hole(&stage.rig.cpu, 0, PAGE).unwrap(),
        "write, start clear 0..1, write, dsb ishst, vale1is 0, tlbs 0..1 (locked), range 0..1 (locked), dsb ish, \
         end clear 0..1",
    );
    stage.space.mprotect(stage.start, PAGE, READ_WRITE).unwrap();
    // Holes have no pages, but their entries may have markers.
    assert_events(
        &stage,
        || file.punch_hole(&stage.rig.cpu, PAGE, 3 * PAGE).unwrap(),
        "start clear 1..3, end clear 1..3",
    );
    map(&other);
    let listener = Listener::new(other.clone(), Recording::default(), 0).unwrap();
    stage.space.madvise_dontneed(&stage.rig.cpu, stage.start, 4 * PAGE).unwrap();
    stage.listener.take();
    file.truncate(&stage.rig.cpu, PAGE).unwrap();
    let tlbs = |calls: Vec<Call>| calls.iter().filter(|call| call.notified == Notified::SecondaryTlbs).count();
    assert_eq!((tlbs(listener.take()), tlbs(stage.listener.take())), (1, 0), "of the space that had the pages");
}

/// Registers: a store to them is announced like any other, and so is their end.
#[test]
fn registers_are_upgraded_and_revoked_like_pages() {
    let stage = Stage::new(0);
    let registers = stage.rig.spaces.create_registers(&stage.rig.cpu, PhysAddr(0x10_0800_0000)).unwrap();
    let request = MapRequest { placement: Placement::Fixed(stage.start), sharing: Sharing::Shared, ..private(1) };
    let terms = Terms { file: Some(MappedFile { object: &registers, first_page: 0, may_write: true }), ..Terms::NONE };
    stage.space.mmap_within(&stage.rig.cpu, &request, &terms, &|| false).unwrap();
    // A page that was never mapped is in no TLB.
    assert_events(&stage, || stage.fault(0, Access::Write), "write");
    let upgraded = "write, dsb ishst, vale1 0, tlbs 0..1 (locked), dsb nsh, start upgrade 0..1, end upgrade 0..1";
    assert_events(&stage, || stage.fault(0, Access::Write), upgraded);
    let gone = "write, dsb ishst, vale1is 0, tlbs 0..1 (locked), range 0..1 (locked), dsb ish";
    let revoke = || registers.revoke(&stage.rig.cpu);
    assert_events(&stage, revoke, &format!("start clear 0..1, {gone}, end clear 0..1"));
    // Another CPU may have emptied the entry, and not have invalidated it yet.
    let again = "dsb ishst, vale1is 0, tlbs 0..1 (locked), range 0..1 (locked), dsb ish";
    assert_events(&stage, revoke, &format!("start clear 0..1, {again}, end clear 0..1"));
}

/// Pages of a file that are given back: each space is notified when its range is issued, and one DSB completes all.
#[test]
fn a_batch_notifies_each_space_before_it_waits() {
    let stage = Stage::new(0);
    let contents: &'static [u8] = &[1; 2 * PAGE as usize];
    let file = stage.rig.spaces.create_object(&stage.rig.cpu, 2 * PAGE, Some(contents), Seals(0)).unwrap();
    let other = stage.rig.space();
    let map = |space: &SpaceRef| {
        let protection = Protection::READ;
        let request =
            MapRequest { placement: Placement::Fixed(stage.start), sharing: Sharing::Shared, protection, ..private(2) };
        let terms = Terms { file: Some(MappedFile { object: &file, first_page: 0, may_write: false }), ..Terms::NONE };
        space.mmap_within(&stage.rig.cpu, &request, &terms, &|| false).unwrap();
        (0..2).for_each(|page| assert_eq!(stage.rig.read(space, stage.page(page)), 1));
    };
    map(&stage.space);
    // The first look makes the entries old, the second takes the pages out of the file and out of the entries.
    let aged = "write, dsb ishst, vale1is 0, vale1is 1, tlbs 0..2 (locked), range 0..2 (locked), dsb ish";
    assert_events(&stage, || assert_eq!(file.reclaim(&stage.rig.cpu, 0..32, Used::Age), 0), aged);
    let reclaim = || assert_eq!(file.reclaim(&stage.rig.cpu, 0..32, Used::Age), 2);
    let taken = "write, start clear 0..2, write, dsb ishst, vale1is 0, vale1is 1, tlbs 0..2 (locked), \
                 range 0..2 (locked), end clear 0..2, dsb ish";
    assert_events(&stage, reclaim, taken);
    // A DSB completes what its own CPU has issued: what meets the marker issues it again.
    let stale = "write, dsb ishst, vale1is 0, tlbs 0..1 (locked), range 0..1 (locked), dsb ish";
    assert_events(&stage, || stage.fault(0, Access::Read), stale);
    let protect = || stage.space.mprotect(stage.start, 2 * PAGE, Protection::NONE).unwrap();
    let change = "write, dsb ishst, vale1is 1, tlbs 1..2, dsb ish";
    assert_events(&stage, protect, &format!("start protection of areas 0..2, {change}, end protection of areas 0..2"));
    stage.space.mprotect(stage.start, 2 * PAGE, Protection::READ).unwrap();
    // Each that empties the marker, or has another in its place.
    let again = || {
        map(&stage.space);
        while file.reclaim(&stage.rig.cpu, 0..32, Used::Age) == 0 {}
    };
    let gone = "write, dsb ishst, vale1is 0, tlbs 0..1 (locked), range 0..1 (locked), dsb ish";
    again();
    let discard = || stage.space.madvise_dontneed(&stage.rig.cpu, stage.start, PAGE).unwrap();
    assert_events(&stage, discard, &format!("start clear 0..1, {gone}, end clear 0..1"));
    again();
    let guard = || stage.space.madvise_guard(&stage.rig.cpu, stage.start, PAGE, &|| false).unwrap();
    assert_events(&stage, guard, &format!("start clear 0..1, {gone}, write, end clear 0..1"));
    again();
    let mut there = Remap::new(stage.start, PAGE, PAGE, Move::To(VirtAddr(stage.start.0 - 8 * PAGE)), false).unwrap();
    let remap = || assert!(stage.space.mremap(&stage.rig.cpu, &mut there, &SpaceLimits::NONE).is_ok());
    assert_events(&stage, remap, &format!("start unmap 0..1, {gone}, end unmap 0..1"));
    stage.space.munmap(&stage.rig.cpu, VirtAddr(stage.start.0 - 8 * PAGE), PAGE).unwrap();
    // In two spaces: one DSB for both.
    map(&stage.space);
    map(&other);
    let look = || file.reclaim(&stage.rig.cpu, 0..32, Used::Age);
    assert_eq!(look(), 0);
    let story = host::with(&[], || record(|| assert_eq!(look(), 2)));
    let count = |is: fn(&Operation) -> bool| story.iter().filter(|operation| is(operation)).count();
    let counts = [count(|it| matches!(it, Operation::Tlbi(_))), count(|it| matches!(it, Operation::DsbIsh))];
    assert_eq!(counts, [4, 1]);
    assert_eq!(story.last(), Some(&Operation::DsbIsh));
    map(&stage.space);
    assert_eq!(look(), 0);
    let late = "write, start clear 0..2, write, dsb ishst, vale1is 0, vale1is 1, end clear 0..2, dsb ish";
    assert_caught(&lab::NOTIFY_AT_BATCH_FLUSH, &stage, || assert_eq!(look(), 2), late);
}

/// More frames that are no neighbours than a gather lists: it pays in between.
#[test]
fn each_page_is_notified_once_however_many_there_are() {
    let stage = Stage::new(0);
    let (start, _other) = stage.map_scattered();
    stage.listener.take();
    stage.space.madvise_dontneed(&stage.rig.cpu, start, SCATTERED * PAGE).unwrap();
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
    assert!(tables.split(", ").all(|step| ["write", "link", "dmb", ""].contains(&step)), "{story}");
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
