//! Which subscribers get which calls, and in which order.

#![allow(unsafe_code, reason = "a list that is walked without a lock")]

use core::sync::atomic::{AtomicUsize, Ordering};
use std::boxed::Box;
use std::sync::Arc;
use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use granule_arch::alternative::host;
use granule_arch::tlbi::UserTlbToken;

use super::recording::{Call, Notified, Recording};
use super::{Event, EventSet, NotifierChain, Range, SubscribeError, Subscriber, Subscription};
use crate::lab;

// SAFETY: no device and no TLB is behind these chains.
const TOKEN: UserTlbToken = unsafe { UserTlbToken::new() };
const PAGE: VirtAddr = VirtAddr(0x7000);
const BYTES: (u64, u64) = (0x7000, 0x8000);

const EVENTS: [Event; 7] = [
    Event::Unmap,
    Event::Clear,
    Event::ProtectionVma,
    Event::ProtectionPage,
    Event::ProtectionUpgrade,
    Event::Migrate,
    Event::Release,
];

type Listener<S = Recording> = Subscription<S, &'static NotifierChain>;

fn chain() -> &'static NotifierChain {
    Box::leak(Box::default())
}

fn listen(chain: &'static NotifierChain, priority: i32) -> Listener {
    Subscription::new(chain, Recording::default(), priority).unwrap()
}

fn calls(calls: Vec<Call>) -> Vec<(Notified, (u64, u64))> {
    calls.into_iter().map(|call| (call.notified, call.range)).collect()
}

fn page(event: Event) -> Range {
    Range::page(event, PAGE)
}

#[test]
fn each_event_is_told_around_the_change() {
    let chain = chain();
    let listener = listen(chain, 0);
    for event in EVENTS {
        let section = chain.start(page(event));
        assert_eq!(calls(listener.take()), [(Notified::Start(event), BYTES)]);
        drop(section);
        assert_eq!(calls(listener.take()), [(Notified::End(event), BYTES)]);
    }
}

#[test]
fn a_subscriber_hears_only_of_the_events_that_it_wants() {
    let chain = chain();
    let wanted = EventSet::ALL.without(Event::ProtectionUpgrade).without(Event::Clear);
    let listener: Listener = Subscription::new(chain, Recording::of(wanted), 0).unwrap();
    for event in EVENTS {
        drop(chain.start(page(event)));
        assert_eq!(listener.take().is_empty(), !wanted.contains(event), "{event}");
    }
    chain.upgraded(PAGE, 0x1000);
    assert_eq!(listener.take(), []);
    // Invalidations are not events: every subscriber gets them.
    chain.invalidate_secondary_tlbs(TOKEN, PAGE, PAGE + 0x1000);
    chain.invalidate_range(PAGE, PAGE + 0x1000);
    assert_eq!(calls(listener.take()), [(Notified::SecondaryTlbs, BYTES), (Notified::Range, BYTES)]);
    assert!(EVENTS.into_iter().all(|event| !EventSet::NONE.contains(event)));
}

#[test]
fn an_upgrade_is_a_pair_for_exactly_the_page() {
    let chain = chain();
    let listener = listen(chain, 0);
    let expected =
        [(Notified::Start(Event::ProtectionUpgrade), BYTES), (Notified::End(Event::ProtectionUpgrade), BYTES)];
    host::with(&[], || chain.upgraded(PAGE, 0x1000));
    assert_eq!(calls(listener.take()), expected);
    host::with(&lab::NO_UPGRADE_EVENT.sites(), || chain.upgraded(PAGE, 0x1000));
    assert_eq!(listener.take(), [], "the lab takes it away");
}

/// Writes its name into a list at each start.
struct Named(&'static str, Arc<std::sync::Mutex<Vec<&'static str>>>);

impl Subscriber for Named {
    fn invalidate_range_start(&self, _: &Range) {
        self.1.lock().unwrap().push(self.0);
    }
}

#[test]
fn larger_priorities_are_told_first_and_among_equals_the_newest() {
    let chain = chain();
    let list = Arc::default();
    let join = |name, priority| -> Listener<Named> {
        Subscription::new(chain, Named(name, Arc::clone(&list)), priority).unwrap()
    };
    let all = [join("low", -5), join("old", 0), join("high", 9), join("new", 0)];
    drop(chain.start(page(Event::Unmap)));
    assert_eq!(core::mem::take(&mut *list.lock().unwrap()), ["high", "new", "old", "low"]);
    let [low, old, high, new] = all;
    drop(high);
    drop(old);
    drop(chain.start(page(Event::Unmap)));
    assert_eq!(core::mem::take(&mut *list.lock().unwrap()), ["new", "low"]);
    drop((low, new));
    assert!(chain.is_empty());
}

#[test]
fn an_end_is_told_to_whom_its_start_was() {
    let chain = chain();
    let early = listen(chain, 0);
    let section = chain.start(page(Event::Unmap));
    let late = listen(chain, 5);
    drop(section);
    assert_eq!(early.take().len(), 2);
    assert_eq!(late.take(), [], "it joined in the middle");
    let section = chain.start(page(Event::Unmap));
    drop(early);
    drop(section);
    assert_eq!(late.take().len(), 2);
}

#[test]
fn after_the_release_nobody_is_told_and_nobody_joins() {
    let chain = chain();
    let listener = listen(chain, 0);
    let section = chain.start(page(Event::Unmap));
    chain.release();
    drop(section);
    assert!(chain.is_empty());
    chain.upgraded(PAGE, 0x1000);
    chain.invalidate_secondary_tlbs(TOKEN, PAGE, PAGE + 0x1000);
    let notified: Vec<_> = listener.take().into_iter().map(|call| call.notified).collect();
    let end = [Notified::Start(Event::Release), Notified::Release, Notified::End(Event::Release)];
    assert_eq!((notified[0], &notified[1..]), (Notified::Start(Event::Unmap), &end[..]));
    assert_eq!(Listener::new(chain, Recording::default(), 0).err(), Some(SubscribeError::Released));
    drop(listener);
}

/// Counts when it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Subscriber for Counted {}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[test]
fn subscribers_are_dropped_once() {
    let alive = Arc::new(AtomicUsize::new(3));
    let join = |chain| Listener::<Counted>::new(chain, Counted(Arc::clone(&alive)), 0);
    let (left, ended) = (chain(), chain());
    drop(join(left).unwrap());
    let kept = join(ended).unwrap();
    ended.release();
    assert_eq!(alive.load(Ordering::Relaxed), 2, "it belongs to the holder of the subscription");
    drop(kept);
    assert!(join(ended).is_err());
    assert_eq!(alive.load(Ordering::Relaxed), 0);
}

/// Threads that join and leave until a notification has met one, and threads that notify until those have ended: under Miri and ThreadSanitizer a proof, here
/// a smoke test. `granule-loom` has every order.
#[test]
fn joining_and_leaving_while_others_tell() {
    let chain = chain();
    let (notified, left) = (AtomicUsize::new(0), AtomicUsize::new(2));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for round in 0.. {
                    if round >= 500 && notified.load(Ordering::Relaxed) > 0 {
                        break;
                    }
                    let listener = listen(chain, round % 3);
                    std::thread::yield_now();
                    notified.fetch_add(listener.take().len(), Ordering::Relaxed);
                }
                left.fetch_sub(1, Ordering::Relaxed);
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                while left.load(Ordering::Relaxed) > 0 {
                    drop(chain.start(page(Event::Clear)));
                    chain.invalidate_secondary_tlbs(TOKEN, PAGE, PAGE + 0x1000);
                }
            });
        }
    });
    assert!(chain.is_empty());
}
