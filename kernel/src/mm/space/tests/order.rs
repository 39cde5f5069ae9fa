//! The calls of other CPUs while an invalidation is under way.
//!
//! A subscriber is called between the TLBI and the DSB that completes it, so it can hold an invalidation up: what
//! another thread finishes concurrently, it finishes while TLBs may still show the old frame.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use granule_arch::addr::{PAGE, VirtAddr};

use super::super::{Access, Sharing, SpaceRef, handle_fault};
use super::{Rig, private};
use crate::mm::notifier::{Subscriber, Subscription};
use crate::mm::space::{Enrolment, Features, Holes, MapRequest, Mark, Space, Transfer, Userfaultfd};
use crate::smp::{Cpu, CpuId};

/// How long an invalidation is held up: enough for another thread to finish a call, if it can.
const HELD_UP: Duration = Duration::from_millis(100);

/// Holds up the next invalidation until the other thread has finished, or for [`HELD_UP`].
struct Hold(Mutex<Option<(Sender<()>, Receiver<()>)>>);

/// The time at which the other thread finished.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Finished {
    BeforeTheInvalidation,
    AfterIt,
}

impl Hold {
    fn next(&self) {
        let Some((begin, finished)) = self.0.lock().unwrap().take() else { return };
        begin.send(()).unwrap();
        // A message means that the other thread was faster; it is found in the channel by its sender.
        let _ = finished.recv_timeout(HELD_UP);
    }
}

impl Subscriber for Hold {
    fn invalidate_secondary_tlbs(&self, _: VirtAddr, _: VirtAddr) {
        self.next();
    }
}

/// Runs `change`, and `other` on another CPU as soon as the first invalidation of `change` is under way.
fn race(space: &SpaceRef, change: impl FnOnce(&Space), other: impl FnOnce(&Space, &Cpu) + Send) -> Finished {
    let (begin, begun) = channel();
    let (finish, finished) = channel();
    let hold = Hold(Mutex::new(Some((begin, finished))));
    let _hold = Subscription::new(space.clone(), hold, 0).unwrap();
    thread::scope(|scope| {
        let other = scope.spawn(move || {
            begun.recv().expect("an invalidation");
            other(space, &Cpu::new(CpuId(1)));
            // The receiver is gone where the invalidation was not held up any longer.
            if finish.send(()).is_ok() { Finished::BeforeTheInvalidation } else { Finished::AfterIt }
        });
        change(space);
        other.join().unwrap()
    })
}

/// Two tables' pages, so that the first one's lock is dropped long before the end of the call.
const PAGES: u64 = 24;
const START: VirtAddr = VirtAddr(0x10_0000_0000 - 12 * PAGE);

fn touched(rig: &Rig, sharing: Sharing) -> SpaceRef {
    let space = rig.space();
    let placement = super::Placement::Fixed(START);
    space.mmap(&rig.cpu, &MapRequest { placement, sharing, ..private(PAGES) }).unwrap();
    (0..PAGES).for_each(|page| rig.write(&space, START + page * PAGE, 1));
    space
}

/// Break-before-make (Arm ARM D8.17.1): a new frame in the entry only when no TLB shows the old one.
#[test]
fn an_emptied_entry_is_filled_again_only_when_its_invalidation_is_complete() {
    for sharing in [Sharing::Private, Sharing::Shared] {
        for (page, access) in [(0, Access::Write), (11, Access::Read), (5, Access::Write)] {
            let rig = Rig::new(8);
            let space = touched(&rig, sharing);
            let finished = race(
                &space,
                |space| space.madvise_dontneed(&rig.cpu, START, PAGES * PAGE).unwrap(),
                |space, cpu| handle_fault(space, cpu, START + page * PAGE, access).unwrap(),
            );
            assert_eq!(finished, Finished::AfterIt, "{sharing:?}, page {page}, {access:?}");
        }
    }
}

/// As above, where the page goes out of its object: the walk by the reverse map holds no lock that a fault waits for.
#[test]
fn a_page_that_its_object_lost_is_found_again_only_when_its_invalidation_is_complete() {
    for (page, access) in [(0, Access::Write), (11, Access::Read)] {
        let rig = Rig::new(8);
        let space = touched(&rig, Sharing::Shared);
        let finished = race(
            &space,
            |space| space.madvise_remove(&rig.cpu, START, PAGES * PAGE).unwrap(),
            |space, cpu| handle_fault(space, cpu, START + page * PAGE, access).unwrap(),
        );
        assert_eq!(finished, Finished::AfterIt, "page {page}, {access:?}");
        assert_eq!(rig.read(&space, START + page * PAGE), 0);
    }
}

/// Linux's `mm_tlb_flush_nested`: after the call returns its caller reads zeros, whichever CPU emptied the entries.
#[test]
fn a_second_call_returns_only_when_the_first_ones_invalidation_is_complete() {
    let rig = Rig::new(8);
    let space = touched(&rig, Sharing::Private);
    let finished = race(
        &space,
        |space| space.madvise_dontneed(&rig.cpu, START, PAGES * PAGE).unwrap(),
        |space, cpu| space.madvise_dontneed(cpu, START, 12 * PAGE).unwrap(),
    );
    assert_eq!(finished, Finished::AfterIt);
}

/// The kernel's own writes by the linear map go to a new frame too.
#[test]
fn the_kernel_writes_to_a_new_page_only_when_the_old_one_is_invalidated() {
    let rig = Rig::new(8);
    let space = touched(&rig, Sharing::Private);
    let finished = race(
        &space,
        |space| space.madvise_dontneed(&rig.cpu, START, PAGES * PAGE).unwrap(),
        |space, cpu| space.write_bytes(cpu, START, &[2]).unwrap(),
    );
    assert_eq!(finished, Finished::AfterIt);
    assert_eq!(rig.read(&space, START), 2);
}

/// Every other path that changes entries: faults wait for its end.
#[test]
fn no_fault_is_served_between_a_change_and_its_invalidation() {
    type Change = fn(&Rig, &Space);
    let changes: [(&str, Change); 3] = [
        ("mprotect", |_, space| space.mprotect(START, PAGES * PAGE, super::Protection::READ).unwrap()),
        ("fork", |rig, space| drop(space.fork(&rig.cpu).unwrap())),
        ("munmap", |rig, space| space.munmap(&rig.cpu, START, PAGES * PAGE).unwrap()),
    ];
    for (name, change) in changes {
        let rig = Rig::new(8);
        let space = touched(&rig, Sharing::Private);
        let finished =
            race(&space, |space| change(&rig, space), |space, cpu| _ = handle_fault(space, cpu, START, Access::Write));
        assert_eq!(finished, Finished::AfterIt, "{name}");
    }
    // A copy on write, which another CPU finds done.
    let rig = Rig::new(8);
    let space = touched(&rig, Sharing::Private);
    let _child = space.fork(&rig.cpu).unwrap();
    let write = |space: &Space, cpu: &Cpu| handle_fault(space, cpu, START, Access::Write).unwrap();
    assert_eq!(race(&space, |space| write(space, &rig.cpu), write), Finished::AfterIt, "copy on write");
}

/// A page is in no place until no TLB has it where it was: a fault at either waits, and a page that comes next finds it gone.
#[test]
fn a_page_moves_only_when_its_invalidation_is_complete() {
    for (page, access) in [(2, Access::Write), (2, Access::Read), (20, Access::Read), (20, Access::Write)] {
        let rig = Rig::new(8);
        let space = touched(&rig, Sharing::Private);
        space.madvise_dontneed(&rig.cpu, START + 16 * PAGE, 8 * PAGE).unwrap();
        let pager = Userfaultfd::new(&space, false, 0).unwrap();
        pager.agree(Features(0)).unwrap();
        let enrolment = Enrolment { missing: false, minor: false, write_protected: true };
        Userfaultfd::register(&pager, &rig.cpu, START, PAGES * PAGE, enrolment).unwrap();
        let (to, from) = (START + 18 * PAGE, START);
        let transfer = Transfer { to, from, bytes: 4 * PAGE, holes: Holes::Refused };
        let finished = race(
            &space,
            |space| assert_eq!(pager.transfer(&rig.cpu, space, &transfer), (4 * PAGE, Ok(()))),
            |space, cpu| _ = handle_fault(space, cpu, START + page * PAGE, access),
        );
        assert_eq!(finished, Finished::AfterIt, "page {page}, {access:?}");
        assert_eq!([2, 20].map(|page| rig.read(&space, START + page * PAGE)), [0, 1]);
        pager.close();
    }
}

/// Its tables are locked one after the other, and the areas for reading: a fault that is served before the invalidation
/// would leave a store unreported.
#[test]
fn write_protection_invalidates_before_it_drops_the_lock_of_a_table() {
    for sharing in [Sharing::Private, Sharing::Shared] {
        // All alike, and not.
        for page in [0, 11] {
            let rig = Rig::new(8);
            let space = touched(&rig, sharing);
            if page == 11 {
                space.madvise_dontneed(&rig.cpu, START + PAGE, PAGE).unwrap();
            }
            let pager = Userfaultfd::new(&space, false, 0).unwrap();
            pager.agree(Features(0)).unwrap();
            let enrolment = Enrolment { missing: false, minor: false, write_protected: true };
            Userfaultfd::register(&pager, &rig.cpu, START, PAGES * PAGE, enrolment).unwrap();
            let finished = race(
                &space,
                |_| pager.write_protect(&rig.cpu, None, START, PAGES * PAGE, Mark::Set).unwrap(),
                |space, cpu| assert!(handle_fault(space, cpu, START + page * PAGE, Access::Write).is_err()),
            );
            assert_eq!(finished, Finished::AfterIt, "{sharing:?}");
            pager.close();
        }
    }
}
