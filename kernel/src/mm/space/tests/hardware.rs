//! The hardware between a load of an entry and what software makes of it: it sets AF, or clears RDONLY where DBM is set
//! (FEAT_HAFDBS), and neither may be lost.

#![allow(unsafe_code, reason = "the contents of frames by their linear addresses")]

use core::sync::atomic::{AtomicU64, Ordering};
use std::cell::Cell;
use std::rc::Rc;

use granule_arch::alternative::host;
use granule_arch::descriptor::{Descriptor, bits};

use super::entries::Stage;
use super::*;
use crate::mm::kernel::record::{Moment, at_each_moment};
use crate::mm::space::entry::attributes;
use crate::mm::space::{Aged, Move, Remap, SpaceLimits};
use crate::platform::features::branch;

/// An access of EL0, by hardware that has both; whether it changed the entry.
fn access(cell: &AtomicU64, access: Access) -> bool {
    const PAGE: u64 = bits::VALID | bits::TABLE;
    let before = cell.load(Ordering::Relaxed);
    if before & PAGE != PAGE {
        return false;
    }
    let writes = access == Access::Write && before & bits::WRITE != 0;
    let after = (before | bits::AF) & !if writes { bits::RDONLY } else { 0 };
    cell.store(after, Ordering::Relaxed);
    before != after
}

/// Runs `work` with the hardware's access after the `nth` load of the entry; whether there was such a load, and whether
/// the access changed the entry.
fn with_access(stage: &Stage, kind: Access, nth: usize, work: impl FnOnce()) -> (bool, bool) {
    let place = stage.cell_address();
    let (left, changed) = (Rc::new(Cell::new(Some(nth))), Rc::new(Cell::new(false)));
    let hook = {
        let (left, changed) = (left.clone(), changed.clone());
        move |moment: Moment<'_>| {
            if let Moment::Read(cell) = moment
                && core::ptr::from_ref(cell).addr() == place
                && let Some(now) = left.get()
            {
                left.set(now.checked_sub(1));
                if now == 0 {
                    changed.set(access(as_hardware(cell), kind));
                }
            }
        }
    };
    at_each_moment(hook, work);
    (left.get().is_none(), changed.get())
}

/// Pages that software may find: young or old, written or not, writable or not yet; in an area with `protection`.
fn pages_of(frame: PhysAddr, protection: Protection) -> Vec<Descriptor> {
    let mut pages = Vec::new();
    for state in 0..16_u32 {
        let mut entry = Descriptor::page(frame, attributes(protection.read_only()));
        if state & 1 != 0 {
            entry = entry.old();
        }
        if state & 2 != 0 && protection.contains(Protection::WRITE) {
            entry = entry.writable();
        }
        if state & 4 != 0 {
            entry = entry.dirty();
        }
        if state & 8 != 0 {
            entry = entry.uffd_wp();
        }
        pages.push(entry);
    }
    pages
}

/// A call for a page of an area with a protection.
type Call = fn(&Stage, Protection);

/// Has `call` find each page, and the hardware access it after each load of its entry. `check` gets the stage, with
/// the entry as the call left it, and whether the page was written.
#[track_caller]
fn at_each_load(call: Call, check: impl Fn(&Stage, Descriptor, bool)) {
    let all = READ_WRITE.and(Protection::EXECUTE);
    let mut changes = [0; 2];
    for protection in [Protection::READ, READ_WRITE, all] {
        let stage = Stage::new(protection, false);
        for entry in pages_of(stage.frame, protection) {
            for kind in [Access::Read, Access::Write] {
                for nth in 0.. {
                    stage.set(entry);
                    let (was_read, changed) = with_access(&stage, kind, nth, || call(&stage, protection));
                    assert!(nth < 16, "it ends");
                    if changed {
                        let writes = kind == Access::Write && entry.may_be_written();
                        changes[usize::from(writes)] += 1;
                        let after = stage.entry();
                        assert!(after.is_young(), "{entry:?} behind load {nth}: {after:?} has lost AF");
                        assert!(
                            !writes || after.is_dirty(),
                            "{entry:?} behind load {nth}: {after:?} has lost the dirt"
                        );
                        check(&stage, entry, entry.is_dirty() || writes);
                    }
                    // The areas as they were.
                    stage.space.mprotect(stage.start, PAGE, protection).unwrap();
                    if !was_read {
                        break;
                    }
                }
            }
        }
        let Stage { rig, space, .. } = stage;
        drop(space);
        assert_eq!(rig.used(), 0);
    }
    assert!(changes[0] > 0 && changes[1] > 0, "the hardware came in between: {changes:?}");
}

#[test]
fn mprotect_loses_nothing_that_the_hardware_sets() {
    const TO: [Call; 5] = [
        |stage, _| stage.space.mprotect(stage.start, PAGE, Protection::NONE).unwrap(),
        |stage, _| stage.space.mprotect(stage.start, PAGE, Protection::READ).unwrap(),
        |stage, _| stage.space.mprotect(stage.start, PAGE, READ_WRITE).unwrap(),
        |stage, _| stage.space.mprotect(stage.start, PAGE, READ_EXECUTE).unwrap(),
        |stage, _| stage.space.mprotect(stage.start, PAGE, READ_WRITE.and(Protection::EXECUTE)).unwrap(),
    ];
    for call in TO {
        at_each_load(call, |_, before, is_dirty| {
            assert!(is_dirty || !before.is_dirty());
        });
    }
}

/// The child's page is old, and as dirty as the parent's was when it was protected.
#[test]
fn a_fork_loses_nothing_that_the_hardware_sets() {
    std::thread_local! {
        static CHILD: Cell<Option<Descriptor>> = const { Cell::new(None) };
    }
    let fork: Call = |stage, _| {
        let child = stage.space.fork(&stage.rig.cpu).unwrap();
        CHILD.set(Some(stage.entry_in(&child)));
    };
    at_each_load(fork, |stage, before, is_dirty| {
        let [parent, child] = [stage.entry(), CHILD.take().unwrap()];
        assert!(!parent.may_be_written() && !child.may_be_written());
        assert_eq!([parent.is_dirty(), child.is_dirty()], [is_dirty; 2], "{before:?}: {parent:?} {child:?}");
        assert!(!child.is_young());
    });
}

/// The frame and its state are the same at the new place, and back at the old one.
#[test]
fn a_move_loses_nothing_that_the_hardware_sets() {
    let there_and_back: Call = |stage, _| {
        let other = VirtAddr(stage.start.0 - 1000 * PAGE);
        for (from, to) in [(stage.start, other), (other, stage.start)] {
            let mut there = Remap::new(from, PAGE, PAGE, Move::To(to), false).unwrap();
            assert_eq!(stage.space.mremap(&stage.rig.cpu, &mut there, &SpaceLimits::NONE), Ok(to));
        }
    };
    at_each_load(there_and_back, |stage, before, is_dirty| {
        let after = stage.entry();
        assert_eq!((after.address(), after.is_dirty()), (stage.frame, is_dirty), "{before:?}: {after:?}");
        assert_eq!(after.may_be_written(), before.may_be_written());
    });
}

/// A page that becomes old stays as dirty as it is.
#[test]
fn age_loses_nothing_that_the_hardware_sets() {
    // The next use makes it young again.
    let age: Call = |stage, _| {
        stage.space.age(Aged::All, || false);
        handle_fault(&stage.space, &stage.rig.cpu, stage.start, Access::Read).unwrap();
    };
    at_each_load(age, |stage, before, is_dirty| {
        let after = stage.entry();
        assert_eq!((after.is_dirty(), after.address()), (is_dirty, stage.frame), "{before:?}: {after:?}");
    });
}

/// Software sets the flags too, in the same entry at the same time.
#[test]
fn a_fault_loses_nothing_that_the_hardware_sets() {
    // Refused where the area permits no store.
    let write: Call = |stage, _| _ = handle_fault(&stage.space, &stage.rig.cpu, stage.start, Access::Write);
    let read: Call = |stage, _| handle_fault(&stage.space, &stage.rig.cpu, stage.start, Access::Read).unwrap();
    at_each_load(read, |stage, before, is_dirty| {
        let after = stage.entry();
        assert_eq!((after.is_dirty(), after.may_be_written()), (is_dirty, before.may_be_written()));
    });
    at_each_load(write, |stage, before, is_dirty| {
        let after = stage.entry();
        assert!(after.is_dirty() || !before.may_be_written(), "{before:?}: {after:?}");
        assert!(after.is_dirty() >= is_dirty);
    });
}

/// The frame that is copied has two holders; AF, all that the hardware may set in a protected entry, delays nothing.
#[test]
fn a_copy_on_write_stands_the_hardwares_access() {
    for hardware in [&[][..], &[branch::ACCESS_FLAG]] {
        let mut changes = 0;
        for nth in 0.. {
            let stage = Stage::new(READ_WRITE, false);
            let record = stage.rig.spaces.record(stage.frame);
            record.share();
            let linear = stage.rig.frames.linear().address(stage.frame);
            // SAFETY: a frame of this test.
            unsafe { linear.as_ptr::<u8>().write_volatile(7) };
            stage.set(Descriptor::page(stage.frame, attributes(Protection::READ)).old());
            let write = || handle_fault(&stage.space, &stage.rig.cpu, stage.start, Access::Write).unwrap();
            let (was_read, changed) = host::with(hardware, || with_access(&stage, Access::Write, nth, write));
            changes += usize::from(changed);
            write();
            let after = stage.entry();
            assert!(after.is_young() && after.is_dirty() && after.may_be_written(), "{after:?}");
            assert!(after.address() != stage.frame && record.references() == 1);
            assert_eq!(stage.rig.read(&stage.space, stage.start), 7);
            stage.rig.frames.free(&stage.rig.cpu, stage.frame);
            let Stage { rig, space, .. } = stage;
            drop(space);
            assert_eq!(rig.used(), 0);
            if !was_read {
                break;
            }
        }
        assert!(changes > 0);
    }
}
