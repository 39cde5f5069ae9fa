//! The queue and the events of a userfaultfd, the kernel's own source: no thread that has faulted sleeps on after the
//! wake of its page, an event is read once and ends once, and a node is used by nothing that its thread does not wait for.
//! A wake-up that is lost is a deadlock, which loom reports.

use std::sync::Arc;

use granule_loom::mm::userfault::{Delivery, Look, Userfaultfd};
use granule_loom::sched::IfNotReady;
use granule_loom::{Omitted, Sleeper, omit};

use crate::{assert_caught, threads_with};

/// Loom's report of two accesses without an order.
const RACE: &str = "Causality violation";

type Work = fn(&Userfaultfd, &Sleeper);

/// Runs `own` in a thread, and `others` beside it, each of which knows the thread and leaves `omitted` out; then `after`. Not
/// in loom's first thread: after a deadlock that one would drop a queue whose nodes are gone.
fn beside<const N: usize>(
    preemptions: usize,
    own: fn(&Userfaultfd),
    omitted: Omitted,
    others: [Work; N],
    after: fn(&Userfaultfd),
) {
    let model = move || {
        let (shared, sleeper) = (Arc::new(Userfaultfd::default()), Sleeper::current());
        let others = others.map(|work| {
            let (shared, sleeper) = (Arc::clone(&shared), Arc::clone(&sleeper));
            loom::thread::spawn(move || {
                omit(omitted);
                work(&shared, &sleeper);
            })
        });
        own(&shared);
        others.into_iter().for_each(|other| other.join().unwrap());
        after(&shared);
        assert!(!shared.has_message(), "a message is left");
    };
    threads_with(preemptions, move || loom::thread::spawn(model).join().unwrap());
}

fn nothing(_: &Userfaultfd) {}

fn fault(pager: &Userfaultfd) {
    pager.fault(Look::Locked, Omitted::Nothing);
}

#[test]
fn a_fault_is_woken_by_what_serves_its_page() {
    beside(3, fault, Omitted::Nothing, [|pager, _| pager.serve()], nothing);
    beside(3, fault, Omitted::Nothing, [|pager, _| assert!(pager.read(IfNotReady::Wait, Delivery::Done))], nothing);
}

#[test]
fn a_look_without_the_lock_of_the_table_is_caught() {
    let own: fn(&Userfaultfd) = |pager| pager.fault(Look::Unlocked, Omitted::Nothing);
    assert_caught("deadlock", || beside(3, own, Omitted::Nothing, [|pager, _| pager.serve()], nothing));
}

#[test]
fn of_a_wake_up_and_a_signal_one_ends_the_wait_of_a_fault() {
    let both: Work = |pager, sleeper| {
        sleeper.signal();
        pager.serve();
    };
    beside(3, fault, Omitted::Nothing, [both], nothing);
    beside(2, fault, Omitted::Nothing, [|pager, _| pager.serve(), |_, sleeper| sleeper.signal()], nothing);
}

#[test]
fn a_fault_that_does_not_wait_for_its_waker_is_caught() {
    let own: fn(&Userfaultfd) = |pager| pager.fault(Look::Locked, Userfaultfd::QUEUE_LOCK);
    assert_caught(RACE, || beside(3, own, Omitted::Nothing, [|pager, _| pager.serve()], nothing));
}

#[test]
fn a_fault_beside_the_close_goes_on() {
    beside(3, fault, Omitted::Nothing, [|pager, _| pager.close()], nothing);
}

fn change(pager: &Userfaultfd) {
    assert!(pager.change(), "an event that was read is taken for one that was not");
}

/// The event is there again where it could not be delivered.
fn read_at_last(pager: &Userfaultfd, _: &Sleeper) {
    assert!(pager.read(IfNotReady::Wait, Delivery::Failed));
    assert!(pager.read(IfNotReady::Wait, Delivery::Done));
}

#[test]
fn an_event_is_read_once_and_its_sender_goes_on() {
    beside(3, change, Omitted::Nothing, [|pager, _| assert!(pager.read(IfNotReady::Wait, Delivery::Done))], nothing);
    beside(3, change, Omitted::Nothing, [read_at_last], nothing);
}

#[test]
fn an_event_beside_the_close_ends() {
    let own: fn(&Userfaultfd) = |pager| _ = pager.change();
    beside(3, own, Omitted::Nothing, [|pager, _| pager.close()], nothing);
    let reads: Work = |pager, _| _ = pager.read(IfNotReady::Fail, Delivery::Failed);
    beside(2, own, Omitted::Nothing, [|pager, _| pager.close(), reads], nothing);
}

/// The sender's program ends, while a reader may have the event.
fn killed(pager: &Userfaultfd, sleeper: &Sleeper) {
    sleeper.signal();
    _ = pager.read(IfNotReady::Fail, Delivery::Failed) && pager.read(IfNotReady::Fail, Delivery::Done);
}

#[test]
fn a_sender_that_is_killed_leaves_no_event() {
    beside(3, |pager| _ = pager.change(), Omitted::Nothing, [killed], nothing);
}

#[test]
fn a_reader_without_the_lock_of_the_queue_is_caught() {
    let reads: Work = |pager, _| {
        while !pager.read(IfNotReady::Fail, Delivery::Done) {
            loom::thread::yield_now();
        }
    };
    assert_caught(RACE, || beside(3, change, Userfaultfd::QUEUE_LOCK, [reads], nothing));
}

/// A pager that has read an event waits until no change is left, and sees all of them.
fn called_behind(omitted: Omitted) {
    threads_with(3, move || {
        let shared = Arc::new(Userfaultfd::default());
        let other = Arc::clone(&shared);
        let pager = loom::thread::spawn(move || {
            omit(omitted);
            assert!(other.read(IfNotReady::Wait, Delivery::Done));
            other.call();
        });
        omit(omitted);
        shared.change_and_undo();
        pager.join().unwrap();
    });
}

#[test]
fn a_call_that_finds_no_change_is_behind_all_of_them() {
    called_behind(Omitted::Nothing);
}

#[test]
fn changes_that_end_without_an_order_are_caught() {
    assert_caught(RACE, || called_behind(Omitted::Order));
}
