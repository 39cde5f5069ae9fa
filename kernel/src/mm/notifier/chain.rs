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
//! The chain is generic over its atomics: `granule-loom` runs this source in every order.

#![allow(unsafe_code, reason = "a list that is walked without a lock")]

use alloc::alloc::{Layout, alloc, dealloc};
use core::ops::Deref;
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};

use granule_arch::addr::VirtAddr;
use granule_arch::tlbi::UserTlbToken;
use thiserror::Error;

use super::{Again, Event, Patience, Range, Subscriber};
use crate::lab;
use crate::mm::OutOfMemory;

/// The atomics of a chain: the CPU's own, or those of a checker that tries every order.
pub trait Atomics: Sized + 'static {
    /// A word.
    type Word: Word;
    /// A pointer.
    type Pointer<T>: Pointer<T>;
    /// Whether a call to a subscriber that has left is looked for. Its memory must then outlive it.
    const CHECKED: bool = false;

    /// A full barrier, in the order of all of them.
    fn fence();
    /// Waits a little for another CPU, or thread, which may need this CPU.
    fn relax();

    /// Gives back the memory of a subscriber that has left.
    ///
    /// # Safety
    /// `memory` is from the global allocator with `layout`, and is no longer used.
    unsafe fn free(memory: NonNull<u8>, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { dealloc(memory.as_ptr(), layout) };
    }
}

/// A word of [`Atomics`]; 0 by default.
pub trait Word: Default + Send + Sync {
    /// Reads it.
    fn load(&self, order: Ordering) -> u64;
    /// Writes it.
    fn store(&self, value: u64, order: Ordering);
    /// Adds, wrapping, and returns what it was.
    fn fetch_add(&self, value: u64, order: Ordering) -> u64;
    /// Writes 1 where it is 0, in one step with acquire; whether it did.
    fn try_set(&self) -> bool;
}

/// A pointer of [`Atomics`]; null by default.
pub trait Pointer<T>: Default + Send + Sync {
    /// Reads it.
    fn load(&self, order: Ordering) -> *mut T;
    /// Writes it.
    fn store(&self, value: *mut T, order: Ordering);
}

/// What the CPU has.
#[derive(Clone, Copy, Debug)]
pub struct Native;

impl Atomics for Native {
    type Word = AtomicU64;
    type Pointer<T> = AtomicPtr<T>;

    #[inline(always)]
    fn fence() {
        fence(Ordering::SeqCst);
    }

    fn relax() {
        // Not by spinning: the callback that is waited for may sleep, or the thread that changes the list, and go on only
        // when this CPU lets it. Nor may a signal end it: a thread that exits has one, and must leave the chain.
        #[cfg(target_os = "none")]
        crate::sched::sleep_through(crate::chip::timer::Deadline::after(core::time::Duration::from_micros(100)));
        #[cfg(not(target_os = "none"))]
        std::thread::yield_now();
    }
}

impl Word for AtomicU64 {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    #[inline(always)]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    #[inline(always)]
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.fetch_add(value, order)
    }

    fn try_set(&self) -> bool {
        self.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

impl<T> Pointer<T> for AtomicPtr<T> {
    #[inline(always)]
    fn load(&self, order: Ordering) -> *mut T {
        self.load(order)
    }

    #[inline(always)]
    fn store(&self, value: *mut T, order: Ordering) {
        self.store(value, order);
    }
}

/// What is invalid, and so which callback is called.
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
struct Node<A: Atomics> {
    next: A::Pointer<Self>,
    /// Larger ones are called first; among equals, the one that joined later.
    priority: i32,
    /// How many had joined, this one included: a section's end goes to the subscribers that got its start.
    joined: u64,
    /// 1 once its place is given up, for [`Atomics::CHECKED`].
    left: A::Word,
    /// In the same allocation.
    subscriber: NonNull<dyn Subscriber>,
}

/// A node with its subscriber.
#[repr(C)]
struct ChainNode<A: Atomics, S> {
    node: Node<A>,
    subscriber: S,
}

impl<A: Atomics> Node<A> {
    fn subscriber(&self) -> &dyn Subscriber {
        if A::CHECKED {
            assert_eq!(self.left.load(Ordering::Relaxed), 0, "a subscriber is called that has left");
        }
        // SAFETY: it lives in the same allocation as this node.
        unsafe { self.subscriber.as_ref() }
    }

    /// Whether it is called before a node of `priority` that was the `joined`th to join.
    fn comes_before(&self, priority: i32, joined: u64) -> bool {
        (self.priority, self.joined) > (priority, joined)
    }
}

/// The subscribers of one space.
pub struct NotifierChain<A: Atomics = Native> {
    first: A::Pointer<Node<A>>,
    /// How many have joined; written under `changing`, when the new one can be found.
    joined: A::Word,
    /// Walkers inside, by the counter that they chose.
    inside: [A::Word; 2],
    /// Which counter newcomers choose: its lowest bit.
    phase: A::Word,
    /// 1 while a subscriber joins or leaves, waiting included. Not a lock that masks interrupts: callbacks may sleep.
    changing: A::Word,
    /// 1 when the space has ended.
    released: A::Word,
}

// SAFETY: nodes are reached by counted walkers and by the holder of `changing`; what they lead to is `Send + Sync` as
// every `Subscriber` is.
unsafe impl<A: Atomics> Send for NotifierChain<A> {}
// SAFETY: the same.
unsafe impl<A: Atomics> Sync for NotifierChain<A> {}

impl<A: Atomics> Default for NotifierChain<A> {
    fn default() -> Self {
        Self {
            first: Default::default(),
            joined: Default::default(),
            inside: Default::default(),
            phase: Default::default(),
            changing: Default::default(),
            released: Default::default(),
        }
    }
}

impl<A: Atomics> AsRef<Self> for NotifierChain<A> {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl<A: Atomics> NotifierChain<A> {
    /// Whether there is no subscriber: all that a call costs then.
    #[inline(always)]
    pub fn is_empty(&self) -> bool {
        self.first.load(Ordering::Relaxed).is_null()
    }

    /// Announces that `range` is about to change. Dropping what it returns calls the end.
    ///
    /// # Panics
    /// Where a subscriber refuses although it may sleep.
    #[inline(always)]
    pub fn start(&self, range: Range) -> Section<'_, A> {
        let Range { event, start, end, .. } = range;
        // Arguments go by value, here and below, so that an empty chain stores nothing to memory.
        let joined = if self.is_empty() { 0 } else { self.start_notified(event, start, end) };
        Section { chain: self, event, start, end, joined }
    }

    #[cold]
    #[inline(never)]
    fn start_notified(&self, event: Event, start: VirtAddr, end: VirtAddr) -> u64 {
        let notified = self.try_start_notified(event, start, end, Patience::MaySleep);
        notified.expect("no subscriber refuses where it may sleep")
    }

    /// The same where no subscriber may sleep.
    ///
    /// # Errors
    /// [`Again`] from a subscriber: those called before it have got the end, and nothing stays announced.
    #[inline(always)]
    pub fn try_start(&self, range: Range) -> Result<Section<'_, A>, Again> {
        let Range { event, start, end, .. } = range;
        let patience = Patience::MustNotSleep;
        let joined = if self.is_empty() { 0 } else { self.try_start_notified(event, start, end, patience)? };
        Ok(Section { chain: self, event, start, end, joined })
    }

    /// How many had joined; of these, the subscribers to this event were called.
    #[cold]
    #[inline(never)]
    fn try_start_notified(
        &self,
        event: Event,
        start: VirtAddr,
        end: VirtAddr,
        patience: Patience,
    ) -> Result<u64, Again> {
        let range = Range { event, start, end, patience };
        let inside = Inside::enter(self);
        // Every node that joined up to here can be found: the count was released after the node was in its place.
        let joined = self.joined.load(Ordering::Acquire);
        let wants = |node: &Node<A>| node.joined <= joined && node.subscriber().events().contains(event);
        for node in inside.nodes().filter(|node| wants(node)) {
            if node.subscriber().invalidate_range_start(&range).is_err() {
                // By their order, because this node may have left the list by now, and others too.
                let notified = |other: &&Node<A>| wants(other) && other.comes_before(node.priority, node.joined);
                inside.nodes().filter(notified).for_each(|node| node.subscriber().invalidate_range_end(&range));
                return Err(Again);
            }
        }
        Ok(joined)
    }

    #[cold]
    #[inline(never)]
    fn end(&self, event: Event, start: VirtAddr, end: VirtAddr, joined: u64) {
        let range = Range::new(event, start, end);
        for node in Inside::enter(self).nodes().filter(|node| node.joined <= joined) {
            if node.subscriber().events().contains(event) {
                node.subscriber().invalidate_range_end(&range);
            }
        }
    }

    /// Entries in `start..end` are empty, and will name other frames or their frames will be free when this returns.
    #[inline(always)]
    pub fn invalidate_range(&self, start: VirtAddr, end: VirtAddr) {
        if !self.is_empty() {
            self.tell_invalid(Invalid::Range, start, end);
        }
    }

    /// The CPUs' TLBs are invalidated for `start..end`. For the TLB functions alone ([`crate::mm::tlb`]), which hold
    /// the token.
    #[inline(always)]
    pub fn invalidate_secondary_tlbs(&self, _: UserTlbToken, start: VirtAddr, end: VirtAddr) {
        if !self.is_empty() {
            self.tell_invalid(Invalid::SecondaryTlbs, start, end);
        }
    }

    /// Both at once.
    #[inline(always)]
    pub fn invalidate_replaced(&self, _: UserTlbToken, start: VirtAddr, end: VirtAddr) {
        if !self.is_empty() {
            self.tell_invalid(Invalid::Both, start, end);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_invalid(&self, what: Invalid, start: VirtAddr, end: VirtAddr) {
        for node in Inside::enter(self).nodes() {
            if what != Invalid::Range {
                node.subscriber().invalidate_secondary_tlbs(start, end);
            }
            if what != Invalid::SecondaryTlbs {
                node.subscriber().invalidate_range(start, end);
            }
        }
    }

    /// The page at `page` was read-only or old and has become writable or young. Called when the page-table lock is
    /// dropped, and only if the entry changed; by then the page may be anything.
    #[inline(always)]
    pub fn upgraded(&self, page: VirtAddr) {
        if !self.is_empty() {
            self.tell_upgraded(page);
        }
    }

    #[cold]
    #[inline(never)]
    fn tell_upgraded(&self, page: VirtAddr) {
        if !lab::is_on!(NO_UPGRADE_EVENT) {
            drop(self.start(Range::page(Event::ProtectionUpgrade, page)));
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
                node.subscriber().invalidate_range_start(&everything).expect("it may sleep");
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
        A::fence();
        let phase = self.phase.load(Ordering::Relaxed);
        let wait = |counter: u64| {
            while self.inside[(counter & 1) as usize].load(Ordering::Acquire) != 0 {
                A::relax();
            }
        };
        // Stragglers, which chose before the last exchange.
        wait(phase + 1);
        self.phase.store(phase + 1, Ordering::Relaxed);
        wait(phase);
    }
}

/// A walker that is counted: no node that it can find is freed.
struct Inside<'a, A: Atomics> {
    chain: &'a NotifierChain<A>,
    counter: &'a A::Word,
}

impl<'a, A: Atomics> Inside<'a, A> {
    fn enter(chain: &'a NotifierChain<A>) -> Self {
        let counter = &chain.inside[(chain.phase.load(Ordering::Relaxed) & 1) as usize];
        counter.fetch_add(1, Ordering::Relaxed);
        // Counted before the list is read: see the head of this file.
        A::fence();
        Self { chain, counter }
    }

    fn nodes(&self) -> impl Iterator<Item = &Node<A>> {
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
}

impl<A: Atomics> Drop for Inside<'_, A> {
    fn drop(&mut self) {
        // Release: what the callbacks did comes before what the leaver does with their subscriber.
        self.counter.fetch_add(u64::MAX, Ordering::Release);
    }
}

/// The right to change the list.
struct Changing<'a, A: Atomics>(&'a NotifierChain<A>);

impl<'a, A: Atomics> Changing<'a, A> {
    fn begin(chain: &'a NotifierChain<A>) -> Self {
        while !chain.changing.try_set() {
            A::relax();
        }
        Self(chain)
    }
}

impl<A: Atomics> Drop for Changing<'_, A> {
    fn drop(&mut self) {
        self.0.changing.store(0, Ordering::Release);
    }
}

/// A change that was announced. Dropping it calls the end.
#[must_use = "dropping it calls the end of the change"]
pub struct Section<'a, A: Atomics = Native> {
    chain: &'a NotifierChain<A>,
    event: Event,
    start: VirtAddr,
    end: VirtAddr,
    /// How many had joined; 0 where none was called.
    joined: u64,
}

impl<A: Atomics> Drop for Section<'_, A> {
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
pub struct Subscription<S: Subscriber, C: Deref<Target: AsRef<NotifierChain<A>>>, A: Atomics = Native> {
    place: NonNull<ChainNode<A, S>>,
    chain: C,
}

// SAFETY: it owns its node, of which other threads see `Sync` parts alone until it is dropped.
unsafe impl<S: Subscriber, C: Deref<Target: AsRef<NotifierChain<A>>> + Send, A: Atomics> Send
    for Subscription<S, C, A>
{
}
// SAFETY: it only gives out `&S`, and subscribers are `Sync`.
unsafe impl<S: Subscriber, C: Deref<Target: AsRef<NotifierChain<A>>> + Sync, A: Atomics> Sync
    for Subscription<S, C, A>
{
}

impl<S: Subscriber, C: Deref<Target: AsRef<NotifierChain<A>>>, A: Atomics> Subscription<S, C, A> {
    /// Joins the chain. From its return on `subscriber` misses nothing; of a change that was announced before, it gets
    /// the invalidations only.
    ///
    /// # Errors
    /// There is no memory, or the space has ended; nothing has changed.
    pub fn new(chain: C, subscriber: S, priority: i32) -> Result<Self, SubscribeError> {
        let layout = Layout::new::<ChainNode<A, S>>();
        // SAFETY: a place is not empty.
        let memory = unsafe { alloc(layout) }.cast::<ChainNode<A, S>>();
        let place = NonNull::new(memory).ok_or(OutOfMemory)?;
        let to: &NotifierChain<A> = chain.as_ref();
        let changing = Changing::begin(to);
        let joined = to.joined.load(Ordering::Relaxed) + 1;
        // SAFETY: only the address of a field is taken.
        let subscriber_at = unsafe { NonNull::new_unchecked(&raw mut (*memory).subscriber) };
        let node =
            Node { next: Default::default(), priority, joined, left: Default::default(), subscriber: subscriber_at };
        // SAFETY: memory for one, just allocated.
        unsafe { place.write(ChainNode { node, subscriber }) };
        if to.released.load(Ordering::Relaxed) != 0 {
            drop(changing);
            // SAFETY: written above, never linked, and used nowhere else.
            unsafe {
                place.drop_in_place();
                A::free(place.cast(), layout);
            }
            return Err(SubscribeError::Released);
        }
        let node = place.cast::<Node<A>>();
        // SAFETY: this one lives until its `Subscription` ends; those in the list do while `changing` is held.
        unsafe {
            let link = link_before(to, |other| !other.comes_before(priority, joined));
            node.as_ref().next.store(link.load(Ordering::Relaxed), Ordering::Relaxed);
            // Release: a walker that finds the node finds it complete.
            link.store(node.as_ptr(), Ordering::Release);
        }
        to.joined.store(joined, Ordering::Release);
        // If a change of a table found the chain empty behind its DSB, every later translation of this subscriber sees
        // that change.
        A::fence();
        drop(changing);
        Ok(Self { place, chain })
    }
}

/// The link to the first node for which `found` holds, or to the end.
///
/// # Safety
/// The caller holds `changing`.
unsafe fn link_before<A: Atomics>(chain: &NotifierChain<A>, found: impl Fn(&Node<A>) -> bool) -> &A::Pointer<Node<A>> {
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

impl<S: Subscriber, C: Deref<Target: AsRef<NotifierChain<A>>>, A: Atomics> Deref for Subscription<S, C, A> {
    type Target = S;

    fn deref(&self) -> &S {
        // SAFETY: written by `new`, freed by `drop`.
        unsafe { &self.place.as_ref().subscriber }
    }
}

impl<S: Subscriber, C: Deref<Target: AsRef<NotifierChain<A>>>, A: Atomics> Drop for Subscription<S, C, A> {
    fn drop(&mut self) {
        let chain: &NotifierChain<A> = self.chain.as_ref();
        let changing = Changing::begin(chain);
        let node = self.place.cast::<Node<A>>();
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
            if A::CHECKED {
                node.as_ref().left.store(1, Ordering::Relaxed);
            }
            ptr::drop_in_place(&raw mut (*self.place.as_ptr()).subscriber);
            A::free(self.place.cast(), Layout::new::<ChainNode<A, S>>());
        }
    }
}
