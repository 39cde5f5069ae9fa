//! Another CPU at each step of a fault and of populate: whichever installs its page first, each frame is zeroed,
//! counted once, and freed once.

#![allow(unsafe_code, reason = "the contents of frames by their linear addresses")]

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Mutex;

use granule_pgtable::host::Operation;

use super::*;
use crate::mm::kernel::record::at_each;
use crate::mm::notifier::{Range, Subscriber, Subscription};

const START: VirtAddr = VirtAddr(0x10_0000_0000);
const PAGES: u64 = 4;

/// In frames that are free: what a page must not show.
const STALE: u64 = 0xaaaa_aaaa_aaaa_aaaa;
/// Where in a frame the tests look. Lists of free frames use its first words.
const LOOK: u64 = 2048;

/// The word that the tests look at in `frame`.
fn word(rig: &Rig, frame: PhysAddr) -> *mut u64 {
    rig.frames.linear().address(frame + LOOK).as_ptr()
}

/// Frames that are free, and hold what a page must not show.
fn spoil(rig: &Rig) -> Vec<PhysAddr> {
    let free: Vec<PhysAddr> = core::iter::from_fn(|| rig.frames.alloc(&rig.cpu).ok()).collect();
    // SAFETY: frames of this test, and in the linear map.
    free.iter().for_each(|&frame| unsafe { word(rig, frame).write_volatile(STALE) });
    free.iter().for_each(|&frame| rig.frames.free(&rig.cpu, frame));
    free
}

/// How many of `frames` hold that still.
fn stale(rig: &Rig, frames: &[PhysAddr]) -> usize {
    // SAFETY: in the linear map; nothing but this thread uses them.
    frames.iter().filter(|&&frame| unsafe { word(rig, frame).read_volatile() } == STALE).count()
}

/// The work of a CPU.
type Work = fn(&Space, &Cpu);

// An area without write permission refuses the store, and makes nothing.
const READ: Work = |space, cpu| _ = handle_fault(space, cpu, START, Access::Read);
const WRITE: Work = |space, cpu| _ = handle_fault(space, cpu, START, Access::Write);
const POPULATE: Work = |space, cpu| space.populate_again(cpu, START, PAGES * PAGE, &|| false);
const DISCARD: Work = |space, cpu| space.madvise_dontneed(cpu, START, PAGES * PAGE).unwrap();

/// Runs `work` on one CPU, and `other` on another one at the `nth` moment of it at which the page's table is not
/// locked; whether there was such a moment.
fn meet(space: &SpaceRef, cpu: &Cpu, work: Work, other: Work, nth: usize) -> bool {
    let there = space.clone();
    let other = move |cpu: &Cpu| other(&there, cpu);
    super::meet(&[space], START, || work(space, cpu), other, nth)
}

/// A space with `PAGES` pages mapped, of which none is touched.
fn mapped(rig: &Rig, request: &MapRequest) -> SpaceRef {
    let space = rig.space();
    space.mmap(&rig.cpu, &MapRequest { placement: Placement::Fixed(START), ..*request }).unwrap();
    space
}

/// The frames of `space` that are counted, with the words that they show.
fn shown(rig: &Rig, space: &Space) -> Vec<(PhysAddr, u64)> {
    let entries = (0..PAGES).filter_map(|page| space.tables().translate(START + page * PAGE));
    let entries = entries.map(|found| found.descriptor).filter(|entry| entry.is_present() && !entry.is_special());
    // SAFETY: in the linear map; nothing but this thread uses them.
    entries.map(|entry| (entry.address(), unsafe { word(rig, entry.address()).read_volatile() })).collect()
}

/// Has `work` meet each of the others at each of its moments, on what `prepare` makes; then `check` looks at the space.
/// Afterwards nothing is left of it.
#[track_caller]
fn with_others<T>(rig: &Rig, prepare: impl Fn() -> (SpaceRef, T), work: Work, check: impl Fn(&Space, &T)) {
    let mut moments = 0;
    for other in [READ, WRITE, POPULATE, DISCARD] {
        spoil(rig);
        for nth in 0.. {
            let base = rig.used();
            let (space, more) = prepare();
            let met = meet(&space, &rig.cpu, work, other, nth);
            check(&space, &more);
            // For the next users of its frames.
            // SAFETY: frames of a space that only this test uses.
            shown(rig, &space).iter().for_each(|&(frame, _)| unsafe { word(rig, frame).write_volatile(STALE) });
            drop((space, more));
            assert_eq!(rig.used(), base, "moment {nth}: a frame is leaked");
            assert_eq!(rig.frames.stats().refused, 0, "moment {nth}: a frame is freed twice");
            moments += 1;
            if !met {
                break;
            }
        }
    }
    assert!(moments > 16, "{moments} moments");
}

#[test]
fn a_page_whose_install_loses_is_freed_and_one_that_wins_is_zero_and_counted_once() {
    let shared = MapRequest { sharing: Sharing::Shared, ..private(PAGES) };
    let read_only = MapRequest { protection: Protection::READ, ..private(PAGES) };
    let rig = Rig::new(2);
    // A shared page's other holder is its object.
    for (request, holders) in [(private(PAGES), 1), (shared, 2), (read_only, 1)] {
        let empty = || (mapped(&rig, &request), ());
        // With the table, and some of the pages.
        let begun = || {
            let space = mapped(&rig, &request);
            for page in [1, 3] {
                handle_fault(&space, &rig.cpu, START + page * PAGE, Access::Read).unwrap();
            }
            (space, ())
        };
        let check = |space: &Space, (): &()| {
            for (frame, word) in shown(&rig, space) {
                assert_eq!((word, rig.spaces.record(frame).references()), (0, holders), "{request:?}");
            }
        };
        // A store to what is read-only is refused at once.
        let works = if request.protection == READ_WRITE { &[READ, POPULATE, WRITE][..] } else { &[READ, POPULATE] };
        for &work in works {
            with_others(&rig, empty, work, check);
            with_others(&rig, begun, work, check);
        }
    }
}

#[test]
fn a_copy_that_comes_late_is_freed() {
    const WRITTEN: u64 = 0x1234_5678;
    let rig = Rig::new(2);
    let forked = || {
        let space = mapped(&rig, &private(PAGES));
        space.write_bytes(&rig.cpu, START + LOOK, &WRITTEN.to_le_bytes()).unwrap();
        let child = space.fork(&rig.cpu).unwrap();
        (space, child)
    };
    with_others(&rig, forked, WRITE, |space, child| {
        let [ours, theirs] = [space, child].map(|space| shown(&rig, space));
        assert!(ours.iter().all(|&(frame, word)| (word == WRITTEN || word == 0) && frame != theirs[0].0), "{ours:x?}");
        assert_eq!((theirs[0].1, theirs.len()), (WRITTEN, 1));
        let all = ours.iter().chain(&theirs);
        assert!(all.map(|&(frame, _)| rig.spaces.record(frame).references()).all(|references| references == 1));
    });
}

/// Both have found the page shared and made a copy: one of the two copies is freed, and a store between them stays.
#[test]
fn a_copy_that_another_cpu_was_faster_with_is_freed() {
    /// Another CPU's copy, and its store, in front of the first one's.
    struct Faster(Mutex<Option<(SpaceRef, Work)>>);
    impl Subscriber for Faster {
        fn invalidate_range_start(&self, _: &Range) {
            let other = self.0.lock().unwrap().take();
            if let Some((space, other)) = other {
                let cpu = Cpu::new(CpuId(1));
                other(&space, &cpu);
                space.common.frames.drain_cpu(&cpu);
            }
        }
    }
    const STORE: Work = |space, cpu| space.write_bytes(cpu, START + LOOK, &[9]).unwrap();
    for (other, expected, copies) in [(STORE, 9, 1), (DISCARD, 0, 1), (READ, 1, 1)] {
        let rig = Rig::new(2);
        let base = rig.used();
        let space = mapped(&rig, &private(PAGES));
        space.write_bytes(&rig.cpu, START + LOOK, &[1]).unwrap();
        let child = space.fork(&rig.cpu).unwrap();
        let faster = Faster(Mutex::new(Some((space.clone(), other))));
        let faster = Subscription::new(space.clone(), faster, 0).unwrap();
        let used = rig.used();
        WRITE(&space, &rig.cpu);
        assert!(faster.0.lock().unwrap().is_none(), "they met");
        let mut byte = [7];
        space.read_bytes(&rig.cpu, START + LOOK, &mut byte).unwrap();
        assert_eq!(byte, [expected]);
        let copied = shown(&rig, &space);
        assert!(copied.iter().all(|&(frame, _)| rig.spaces.record(frame).references() == 1));
        assert!(rig.used() <= used + copies);
        drop((faster, space, child));
        assert_eq!(rig.used(), base, "a copy is leaked");
    }
}

/// At the barrier in front of each new entry the frame that it is to show is zero: at the first barrier one of the
/// frames that were free, at the second another one.
#[test]
fn a_new_frame_is_zero_at_the_barrier_in_front_of_its_entry() {
    let shared = MapRequest { sharing: Sharing::Shared, ..private(PAGES) };
    for (request, work) in [(private(PAGES), WRITE), (private(PAGES), POPULATE), (shared, WRITE), (shared, POPULATE)] {
        let rig = Rc::new(Rig::new(2));
        let space = mapped(&rig, &request);
        let free = Rc::new(spoil(&rig));
        let left = Rc::new(RefCell::new(Vec::new()));
        let look = {
            let (rig, free, left) = (rig.clone(), free.clone(), left.clone());
            move |operation: &Operation| {
                if *operation == Operation::DmbIshst {
                    left.borrow_mut().push(stale(&rig, &free));
                }
            }
        };
        at_each(look, || work(&space, &rig.cpu));
        let left = left.take();
        assert!(left.len() >= 4, "{left:?}");
        let installed = shown(&rig, &space).len();
        let pages = &left[left.len() - installed..];
        // After the last of them nothing is zeroed.
        assert_eq!(pages.last(), Some(&stale(&rig, &free)), "{left:?}");
        assert!(left.is_sorted_by(|before, after| before >= after), "{left:?}");
        for (barriers, &left) in (1..).zip(&left) {
            assert!(free.len() - left >= barriers.min(installed + 3), "behind {barriers} barriers: {left}");
        }
    }
}

/// Before the old entry is broken, so that nothing reads the new frame before it holds the copy.
#[test]
fn a_copy_is_whole_before_the_entry_is_broken() {
    let rig = Rc::new(Rig::new(2));
    let space = mapped(&rig, &private(PAGES));
    let free = spoil(&rig);
    // Another value than that of free frames; the same function counts it.
    space.write_bytes(&rig.cpu, START + LOOK, &[0; 8]).unwrap();
    let _child = space.fork(&rig.cpu).unwrap();
    space.mprotect(START, PAGE, READ_WRITE).unwrap();
    let source = shown(&rig, &space)[0].0;
    // SAFETY: the page of a space that only this test uses.
    unsafe { word(&rig, source).write_volatile(!STALE) };
    let copies = Rc::new(RefCell::new(Vec::new()));
    let look = {
        let (rig, copies) = (rig.clone(), copies.clone());
        move |operation: &Operation| {
            if matches!(operation, Operation::Write { .. }) {
                // SAFETY: in the linear map; nothing but this thread uses them.
                let is_copy = |&&frame: &&PhysAddr| unsafe { word(&rig, frame).read_volatile() } == !STALE;
                copies.borrow_mut().push(free.iter().filter(is_copy).count());
            }
        }
    };
    at_each(look, || WRITE(&space, &rig.cpu));
    // The write that breaks the entry, and the one that makes the new one.
    assert_eq!(copies.take(), [2, 2]);
}
