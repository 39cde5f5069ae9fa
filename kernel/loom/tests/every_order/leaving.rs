//! Subscribers that leave while calls run, and what may run when they have left.

use std::sync::Arc;

use granule_arch::addr::VirtAddr;
use granule_loom::notifier::{Event, NotifierChain, Range, Subscriber, Subscription};
use granule_loom::{Omitted, Watched, omit};
use loom::sync::atomic::{AtomicUsize, Ordering};

use crate::{assert_caught, threads};

pub(crate) type Chain = Arc<NotifierChain>;
pub(crate) type Joined<S> = Subscription<S, Chain>;

/// Loom's report of two accesses without an order.
const RACE: &str = "Causality violation";
const PAGE: VirtAddr = VirtAddr(0x1000);

/// Memory of one owner at a time, which loom watches.
#[derive(Clone, Default)]
struct Own(Arc<Watched<()>>);

impl Own {
    fn write(&self) {
        self.0.write(());
    }
}

/// Uses its own memory in each call, as only a call that is waited for may.
struct Busy(Own);

impl Subscriber for Busy {
    fn invalidate_range(&self, _: VirtAddr, _: VirtAddr) {
        self.0.write();
    }
}

fn join<S: Subscriber>(chain: &Chain, subscriber: S, priority: i32) -> Joined<S> {
    Subscription::new(Arc::clone(chain), subscriber, priority).expect("the host has memory")
}

/// A subscriber leaves, and reuses what its calls use, while another thread calls it.
fn leave_while_called(leaver: Omitted, walker: Omitted) {
    threads(move || {
        let chain = Chain::default();
        let own = Own::default();
        let joined = join(&chain, Busy(own.clone()), 0);
        let calls = loom::thread::spawn(move || {
            omit(walker);
            chain.invalidate_range(PAGE, PAGE + 0x1000);
        });
        omit(leaver);
        drop(joined);
        own.write();
        omit(Omitted::Nothing);
        calls.join().unwrap();
    });
}

#[test]
fn a_leaver_waits_for_calls_that_run_and_gets_no_more() {
    leave_while_called(Omitted::Nothing, Omitted::Nothing);
}

#[test]
fn a_walker_that_is_not_counted_is_caught() {
    assert_caught(RACE, || leave_while_called(Omitted::Nothing, Omitted::Additions));
}

#[test]
fn a_walker_that_looks_before_it_is_counted_is_caught() {
    assert_caught(RACE, || leave_while_called(Omitted::Nothing, Omitted::Fences));
}

#[test]
fn a_leaver_that_looks_before_it_has_left_is_caught() {
    assert_caught(RACE, || leave_while_called(Omitted::Fences, Omitted::Nothing));
}

#[test]
fn a_call_whose_end_is_not_seen_is_caught() {
    assert_caught(RACE, || leave_while_called(Omitted::Nothing, Omitted::Release));
}

/// One leaves after the other, so that the counters are exchanged twice while one walk continues.
#[test]
fn a_walker_may_have_chosen_its_counter_two_phases_ago() {
    threads(|| {
        let chain = Chain::default();
        let joined = [0, 1].map(|priority| join(&chain, Busy(Own::default()), priority));
        let calls = loom::thread::spawn(move || chain.invalidate_range(PAGE, PAGE + 0x1000));
        for joined in joined {
            let own = joined.0.clone();
            drop(joined);
            own.write();
        }
        calls.join().unwrap();
    });
}

/// Counts how many sections are open.
#[derive(Default)]
struct Pairs(AtomicUsize);

impl Subscriber for Pairs {
    fn invalidate_range_start(&self, _: &Range) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn invalidate_range_end(&self, _: &Range) {
        assert_ne!(self.0.fetch_sub(1, Ordering::Relaxed), 0, "an end without its start");
    }
}

/// A translation of an entry that changes from 0 to 1, as a device that joins keeps it until it is notified.
struct Translation {
    entry: Arc<AtomicUsize>,
    kept: loom::sync::Mutex<usize>,
}

impl Translation {
    /// In one step: an SMMU completes walks that began before an invalidation, and forgets what they found.
    fn walk(&self) {
        let mut kept = self.kept.lock().unwrap();
        *kept = self.entry.load(Ordering::Relaxed);
    }
}

impl Subscriber for Translation {
    fn invalidate_range_end(&self, _: &Range) {
        self.walk();
    }
}

/// A subscriber joins, and translates, while an entry changes and only the end of the change is notified; by `between`
/// it waits for what holds off changes.
fn join_while_changing(between: bool) {
    threads(move || {
        let (chain, areas) = (Chain::default(), Arc::new(loom::sync::Mutex::new(())));
        // So that the chain is not empty: then no subscriber is called.
        let first = join(&chain, Pairs::default(), 0);
        let entry = Arc::new(AtomicUsize::new(0));
        let (other, page, changes) = (Arc::clone(&chain), Arc::clone(&entry), Arc::clone(&areas));
        let changed = loom::thread::spawn(move || {
            let _areas = changes.lock().unwrap();
            let _section = other.start(Range::page(Event::Unmap, PAGE));
            page.store(1, Ordering::Relaxed);
        });
        let device = Translation { entry, kept: loom::sync::Mutex::new(0) };
        let device = {
            let _areas = between.then(|| areas.lock().unwrap());
            join(&chain, device, 1)
        };
        device.walk();
        changed.join().unwrap();
        assert_eq!(*device.kept.lock().unwrap(), 1, "the translation of before");
        drop(first);
    });
}

#[test]
fn a_subscriber_that_joins_between_changes_misses_none() {
    join_while_changing(true);
}

/// The chain alone does not prevent this: see below.
#[test]
fn a_subscriber_that_joins_in_the_middle_of_a_change_is_caught() {
    assert_caught("the translation of before", || join_while_changing(false));
}

#[test]
fn a_subscriber_that_joins_in_the_middle_gets_whole_changes_only() {
    threads(|| {
        let chain = Chain::default();
        // So that the chain is not empty: then no subscriber is called.
        let first = join(&chain, Pairs::default(), 0);
        let other = Arc::clone(&chain);
        let calls = loom::thread::spawn(move || drop(other.start(Range::page(Event::Unmap, PAGE))));
        let late = join(&chain, Pairs::default(), 1);
        calls.join().unwrap();
        assert_eq!((late.0.load(Ordering::Relaxed), first.0.load(Ordering::Relaxed)), (0, 0));
    });
}

/// Notes that the space has ended.
#[derive(Default)]
struct Ended(AtomicUsize);

impl Subscriber for Ended {
    fn release(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn one_that_joins_while_the_space_ends_is_refused_or_released() {
    threads(|| {
        let chain = Chain::default();
        let end = Arc::clone(&chain);
        let ends = loom::thread::spawn(move || end.release());
        let joined = Subscription::new(Arc::clone(&chain), Ended::default(), 0);
        ends.join().unwrap();
        assert!(joined.is_err() || joined.is_ok_and(|joined| joined.0.load(Ordering::Relaxed) == 1), "left alone");
        assert!(chain.is_empty());
    });
}

#[test]
fn two_may_leave_at_once() {
    threads(|| {
        let chain = Chain::default();
        let [one, two] = [0, 1].map(|priority| join(&chain, Pairs::default(), priority));
        let leaving = loom::thread::spawn(move || drop(one));
        drop(two);
        leaving.join().unwrap();
        assert!(chain.is_empty());
    });
}
