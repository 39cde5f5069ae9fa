//! The chain of a space's subscribers: joining, leaving, and concurrent walks.
//!
//! Most spaces have none, so every call looks at one word first and does no more. Else a walker counts itself in, goes
//! along the list without a lock, and counts itself out. A subscriber that leaves unlinks its node, then waits until
//! the walkers that were inside have left:
//!
//! ```text
//! leaving                         walking
//! take the node out               count in
//! full barrier                    full barrier
//! wait until no walker is inside  read the list
//! ```
//!
//! Either the walker is counted or it no longer finds the node. There are two counters, so that newcomers cannot keep
//! the one that is waited for above zero: they use the other. A walker that chose its counter before they were
//! exchanged, and counts itself in only then, is waited for by the next leaver, which looks at both (the argument of
//! Linux's SRCU).
//!
//! `kernel/loom` compiles this file on loom's atomics, and its own `alloc`.

#![allow(unsafe_code, reason = "a list that is walked without a lock")]

use core::ops::Deref;
use core::ptr::{self, NonNull};

use granule_arch::addr::VirtAddr;
use granule_arch::tlbi::UserTlbToken;
use thiserror::Error;

use super::{Event, Range, Subscriber};
use crate::alloc::alloc::{Layout, alloc, dealloc};
use crate::lab;
use crate::mm::OutOfMemory;
use crate::sched::{order, sleep_briefly};
use crate::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};
use crate::sync::rank::{self, Sleeping};

/// The translations that are invalid, and so the callback to call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Invalid {
    /// [`Subscriber::invalidate_range`].
    Range,
    /// [`Subscriber::invalidate_secondary_tlbs`].
    SecondaryTlbs,
    /// Both.
    Both,
}

/// Why a subscriber cannot join.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SubscribeError {
    /// No memory for its place in the chain.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The space has ended.
    #[error("the space has ended")]
    Released,
}

/// A subscriber's place in the chain.
struct ChainLink {
    next: AtomicPtr<Self>,
    /// Larger ones are called first; among equals, the one that joined later.
    priority: i32,
    /// How many had joined, this one included: a section's end goes to the subscribers that got its start.
    joined: u64,
    /// In the same allocation.
    subscriber: NonNull<dyn Subscriber>,
}

/// A link with its subscriber.
#[repr(C)]
struct ChainNode<S> {
    link: ChainLink,
    subscriber: S,
}

impl ChainLink {
    fn subscriber(&self) -> &dyn Subscriber {
        // SAFETY: it lives in the same allocation as this node.
        unsafe { self.subscriber.as_ref() }
    }
}

/// The subscribers of one space.
#[derive(Default)]
pub struct NotifierChain {
    first: AtomicPtr<ChainLink>,
    /// How many have joined; written under `changing`, when the new one can be found.
    joined: AtomicU64,
    /// Walkers inside, by the counter that they chose.
    inside: [AtomicU64; 2],
    /// Which counter newcomers choose: its lowest bit.
    phase: AtomicU64,
    /// 1 while a subscriber joins or leaves, waiting included. Not a lock that masks interrupts: callbacks may sleep.
    changing: AtomicU64,
    /// 1 when the space has ended.
    released: AtomicU64,
}

// SAFETY: nodes are reached by counted walkers and by the holder of `changing`; what they lead to is `Send + Sync` as
// every `Subscriber` is.
unsafe impl Send for NotifierChain {}
// SAFETY: the same.
unsafe impl Sync for NotifierChain {}

impl AsRef<Self> for NotifierChain {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl NotifierChain {
    /// Whether there is no subscriber: all that a call costs then.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.first.load(Ordering::Relaxed).is_null()
    }

    /// Announces that `range` is about to change. Dropping what it returns calls the end.
    #[inline(always)]
    pub fn start(&self, range: Range) -> Section<'_> {
        let Range { event, start, end } = range;
        // Arguments go by value, here and below, so that an empty chain stores nothing to memory.
        let joined = if self.is_empty() { 0 } else { self.start_notified(event, start, end) };
        Section { chain: self, event, start, end, joined }
    }

    /// As [`Self::start`]; `None` where there is a subscriber, which may sleep, and the caller must not.
    #[inline(always)]
    pub fn try_start(&self, may_sleep: bool, range: Range) -> Option<Section<'_>> {
        let Range { event, start, end } = range;
        if may_sleep {
            return Some(self.start(range));
        }
        self.is_empty().then_some(Section { chain: self, event, start, end, joined: 0 })
    }

    /// How many had joined; of these, the subscribers to this event were called.
    #[cold]
    #[inline(never)]
    fn start_notified(&self, event: Event, start: VirtAddr, end: VirtAddr) -> u64 {
        let inside = Inside::enter(self);
        // Every node that joined up to here can be found: the count was released after the node was in its place.
        let joined = self.joined.load(Ordering::Acquire);
        let range = Range { event, start, end };
        inside.subscribers(event, joined).for_each(|subscriber| subscriber.invalidate_range_start(&range));
        joined
    }

    #[cold]
    #[inline(never)]
    fn end(&self, event: Event, start: VirtAddr, end: VirtAddr, joined: u64) {
        let range = Range { event, start, end };
        let inside = Inside::enter(self);
        inside.subscribers(event, joined).for_each(|subscriber| subscriber.invalidate_range_end(&range));
    }

    /// Entries in `start..end` are empty, and will name other frames or their frames will be free when this returns.
    #[inline(always)]
    pub fn invalidate_range(&self, start: VirtAddr, end: VirtAddr) {
        if !self.is_empty() {
            self.notify_invalid(Invalid::Range, start, end);
        }
    }

    /// The CPUs' TLBs are invalidated for `start..end`. For the TLB functions alone ([`crate::mm::tlb`]), which hold
    /// the token.
    #[inline(always)]
    pub fn invalidate_secondary_tlbs(&self, _: UserTlbToken, start: VirtAddr, end: VirtAddr) {
        if !self.is_empty() {
            self.notify_invalid(Invalid::SecondaryTlbs, start, end);
        }
    }

    /// Both at once.
    #[inline(always)]
    pub fn invalidate_replaced(&self, _: UserTlbToken, start: VirtAddr, end: VirtAddr) {
        if !self.is_empty() {
            self.notify_invalid(Invalid::Both, start, end);
        }
    }

    #[cold]
    #[inline(never)]
    fn notify_invalid(&self, what: Invalid, start: VirtAddr, end: VirtAddr) {
        for node in Inside::enter(self).nodes() {
            if what != Invalid::Range {
                node.subscriber().invalidate_secondary_tlbs(start, end);
            }
            if what != Invalid::SecondaryTlbs {
                node.subscriber().invalidate_range(start, end);
            }
        }
    }

    /// The `bytes` bytes from `start` on were read-only or old and have become writable or young. Called when the page-table lock is
    /// dropped, and only if the entry changed; by then the page may be anything.
    #[inline(always)]
    pub fn upgraded(&self, start: VirtAddr, bytes: u64) {
        if !self.is_empty() {
            self.notify_upgraded(start, bytes);
        }
    }

    #[cold]
    #[inline(never)]
    fn notify_upgraded(&self, start: VirtAddr, bytes: u64) {
        if !lab::is_on!(NO_UPGRADE_EVENT) {
            drop(self.start(Range::new(Event::ProtectionUpgrade, start, VirtAddr(start.0 + bytes))));
        }
    }

    /// The space ends: calls every subscriber, and returns when no call is running and none can come. The chain is
    /// empty then, and joining fails.
    pub fn release(&self) {
        let _changing = Changing::begin(self);
        self.released.store(1, Ordering::Relaxed);
        let everything = Range::new(Event::Release, VirtAddr(0), VirtAddr(u64::MAX));
        for node in Inside::enter(self).nodes() {
            let notified = node.subscriber().events().contains(Event::Release);
            if notified {
                node.subscriber().invalidate_range_start(&everything);
            }
            node.subscriber().release();
            if notified {
                node.subscriber().invalidate_range_end(&everything);
            }
        }
        self.first.store(ptr::null_mut(), Ordering::Relaxed);
        self.wait_for_walkers();
    }

    /// Whether the space has ended, or is about to.
    pub fn is_released(&self) -> bool {
        self.released.load(Ordering::Relaxed) != 0
    }

    /// Returns when every walker that may have seen the list as it was before has left.
    fn wait_for_walkers(&self) {
        fence(Ordering::SeqCst);
        let phase = self.phase.load(Ordering::Relaxed);
        let wait = |counter: u64| {
            while self.inside[(counter & 1) as usize].load(Ordering::Acquire) != 0 {
                sleep_briefly();
            }
        };
        // Stragglers, which chose before the last exchange.
        wait(phase + 1);
        self.phase.store(phase + 1, Ordering::Relaxed);
        wait(phase);
    }
}

/// A walker that is counted: no node that it can find is freed.
struct Inside<'a> {
    chain: &'a NotifierChain,
    counter: &'a AtomicU64,
}

impl<'a> Inside<'a> {
    fn enter(chain: &'a NotifierChain) -> Self {
        let counter = &chain.inside[(chain.phase.load(Ordering::Relaxed) & 1) as usize];
        counter.fetch_add(1, Ordering::Relaxed);
        // Counted before the list is read: see the head of this file.
        fence(Ordering::SeqCst);
        Self { chain, counter }
    }

    fn nodes(&self) -> impl Iterator<Item = &ChainLink> {
        let mut next = &self.chain.first;
        core::iter::from_fn(move || {
            // Acquire: the node was written before it was linked.
            let node = next.load(Ordering::Acquire);
            // SAFETY: null, or a node that was in the list after this walker was counted, and is not freed before it
            // has left.
            let node = unsafe { node.as_ref() }?;
            next = &node.next;
            Some(node)
        })
    }

    /// Of the first `joined` that joined, those that subscribe to `event`.
    fn subscribers(&self, event: Event, joined: u64) -> impl Iterator<Item = &dyn Subscriber> {
        let nodes = self.nodes().filter(move |node| node.joined <= joined);
        nodes.map(ChainLink::subscriber).filter(move |subscriber| subscriber.events().contains(event))
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        // Release: what the callbacks did comes before what the leaver does with their subscriber.
        self.counter.fetch_add(u64::MAX, Ordering::Release);
    }
}

/// The right to change the list.
struct Changing<'a>(&'a NotifierChain, Sleeping);

impl<'a> Changing<'a> {
    fn begin(chain: &'a NotifierChain) -> Self {
        let rank = order::acquire(rank::CHAIN);
        while chain.changing.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            sleep_briefly();
        }
        Self(chain, rank)
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.changing.store(0, Ordering::Release);
        order::release(self.1);
    }
}

/// A change that was announced. Dropping it calls the end.
#[must_use = "dropping it calls the end of the change"]
pub struct Section<'a> {
    chain: &'a NotifierChain,
    event: Event,
    start: VirtAddr,
    end: VirtAddr,
    /// How many had joined; 0 where none was called.
    joined: u64,
}

impl Drop for Section<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.joined != 0 {
            self.chain.end(self.event, self.start, self.end, self.joined);
        }
    }
}

/// A subscriber in a chain. Dropping it leaves the chain, and waits for calls that are running: not from one of them,
/// and with no lock held that one may want.
///
/// `C` keeps the chain: a counted reference to its space.
pub struct Subscription<S: Subscriber, C: Deref<Target: AsRef<NotifierChain>>> {
    place: NonNull<ChainNode<S>>,
    chain: C,
}

// SAFETY: it owns its node, of which other threads see `Sync` parts alone until it is dropped.
unsafe impl<S: Subscriber, C: Deref<Target: AsRef<NotifierChain>> + Send> Send for Subscription<S, C> {}
// SAFETY: it only gives out `&S`, and subscribers are `Sync`.
unsafe impl<S: Subscriber, C: Deref<Target: AsRef<NotifierChain>> + Sync> Sync for Subscription<S, C> {}

impl<S: Subscriber, C: Deref<Target: AsRef<NotifierChain>>> Subscription<S, C> {
    /// Joins the chain. From its return on `subscriber` misses nothing; of a change that was announced before, it gets
    /// the invalidations only.
    ///
    /// # Errors
    /// There is no memory, or the space has ended; nothing has changed.
    pub fn new(chain: C, subscriber: S, priority: i32) -> Result<Self, SubscribeError> {
        let to: &NotifierChain = chain.as_ref();
        let changing = Changing::begin(to);
        if to.is_released() {
            return Err(SubscribeError::Released);
        }
        // SAFETY: a place is not empty.
        let memory = unsafe { alloc(Layout::new::<ChainNode<S>>()) }.cast::<ChainNode<S>>();
        let place = NonNull::new(memory).ok_or(OutOfMemory)?;
        let joined = to.joined.load(Ordering::Relaxed) + 1;
        // SAFETY: only the address of a field is taken.
        let subscriber_at = unsafe { NonNull::new_unchecked(&raw mut (*memory).subscriber) };
        let link = ChainLink { next: AtomicPtr::default(), priority, joined, subscriber: subscriber_at };
        // SAFETY: memory for one, just allocated.
        unsafe { place.write(ChainNode { link, subscriber }) };
        let node = place.cast::<ChainLink>();
        // SAFETY: this one lives until its `Subscription` ends; those in the list do while `changing` is held.
        unsafe {
            let link = link_before(to, |other| other.priority <= priority);
            node.as_ref().next.store(link.load(Ordering::Relaxed), Ordering::Relaxed);
            // Release: a walker that finds the node finds it complete.
            link.store(node.as_ptr(), Ordering::Release);
        }
        to.joined.store(joined, Ordering::Release);
        // If a change of a table found the chain empty after its DSB, every later translation of this subscriber sees
        // that change.
        fence(Ordering::SeqCst);
        drop(changing);
        Ok(Self { place, chain })
    }
}

/// The link to the first node for which `found` holds, or to the end.
///
/// # Safety
/// The caller holds `changing`.
unsafe fn link_before(chain: &NotifierChain, found: impl Fn(&ChainLink) -> bool) -> &AtomicPtr<ChainLink> {
    let mut link = &chain.first;
    loop {
        let node = link.load(Ordering::Relaxed);
        // SAFETY: null, or a node that stays while no other thread changes the list.
        match unsafe { node.as_ref() } {
            Some(node) if !found(node) => link = &node.next,
            _ => return link,
        }
    }
}

impl<S: Subscriber, C: Deref<Target: AsRef<NotifierChain>>> Deref for Subscription<S, C> {
    type Target = S;

    fn deref(&self) -> &S {
        // SAFETY: written by `new`, freed by `drop`.
        unsafe { &self.place.as_ref().subscriber }
    }
}

impl<S: Subscriber, C: Deref<Target: AsRef<NotifierChain>>> Drop for Subscription<S, C> {
    fn drop(&mut self) {
        let chain: &NotifierChain = self.chain.as_ref();
        let changing = Changing::begin(chain);
        let node = self.place.cast::<ChainLink>();
        // SAFETY: `changing` is held; the node is this subscription's own.
        unsafe {
            let link = link_before(chain, |other| ptr::eq(other, node.as_ptr()));
            // Not there after `release`, which has waited for the walkers as well.
            if link.load(Ordering::Relaxed) == node.as_ptr() {
                // Its own link stays: a walker may stand on it.
                link.store(node.as_ref().next.load(Ordering::Relaxed), Ordering::Release);
                chain.wait_for_walkers();
            }
        }
        drop(changing);
        // SAFETY: no walker can find it any more, and those that had found it have left.
        unsafe {
            ptr::drop_in_place(&raw mut (*self.place.as_ptr()).subscriber);
            dealloc(self.place.as_ptr().cast(), Layout::new::<ChainNode<S>>());
        }
    }
}
