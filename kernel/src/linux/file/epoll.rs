//! Sets of files that are watched (`epoll(7)`).
//!
//! A set has an [`Item`] for each file and descriptor. The item's node stays in the queue of its file, so a wake-up of that
//! makes the item *ready*: it joins a list of its set, and the set's pollers are woken. Readiness is a hint: an item is
//! polled when it is looked at, and leaves the list where nothing holds. One that waits for changes (`EPOLLET`) leaves it
//! with each event; another one goes to the end.
//!
//! All items are in two orders, by set and by file, under one spinning lock. **An item refers to its file and counts as no
//! user of it**: the end of a file takes its items along ([`Watched`]), under that lock, before anything of it ends; so does
//! the end of a set. Files are polled under the lock, one for each hold, but for sets in sets, of which [`LOOKS`] are.
//!
//! ```text
//!     epoll_wait                     waker
//!     takes the mark away
//!                                    changes the state
//!     polls: nothing, or something
//!                                    notes: sets the mark
//!     is there a mark: the item stays in the list
//! ```

#![allow(unsafe_code, reason = "intrusive records, and files that outlive them")]

use core::cell::Cell;
use core::mem::replace;
use core::ptr::{NonNull, from_ref};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use granule_abi::file::{EPOLLET, EPOLLEXCLUSIVE, EPOLLONESHOT, EPOLLWAKEUP, EpollEvent, POLLIN, POLLRDNORM};
use intrusive_collections::{Bound, KeyAdapter, LinkedList, LinkedListLink, RBTree, RBTreeLink, UnsafeRef};
use spin::Once;

use super::device::KernelDevice;
use super::open::{FileRef, Kind, OpenFile, PollState};
use crate::chip::console::Reader;
use crate::kernel;
use crate::linux::errno::Errno;
use crate::mm::OutOfMemory;
use crate::mm::counted::{Counted, Inner};
use crate::mm::pool::{Pool, PoolBox, PoolStats};
use crate::sched::{PollNode, PollQueue, RwSem, Watcher, relax};
use crate::sync::{IrqLock, rank};

/// The event of a set.
const INPUT: u16 = POLLIN | POLLRDNORM;
/// Files that are polled under one hold of the lock.
const LOOKS: usize = 16;
/// Sets between the outermost and the innermost one, and one of them (Linux's EP_MAX_NESTS).
const NESTED: u64 = 4;
/// The bits of an item's events that are no events.
pub const MODES: u32 = EPOLLET | EPOLLONESHOT | EPOLLWAKEUP | EPOLLEXCLUSIVE;

static SETS: Once<Pool<Inner<EpollSet>>> = Once::new();
static QUEUES: Once<Pool<Inner<PollQueue>>> = Once::new();
static ITEMS: Once<Pool<Item>> = Once::new();
static EPOLL: IrqLock<Items, { rank::EPOLL }> = IrqLock::new(Items::EMPTY);
/// How many searches of nested sets there were.
static NESTING: RwSem<u64> = RwSem::new(rank::NESTING, 0);

/// Sets, queues, and the items of sets.
pub fn pool_stats() -> [(&'static str, PoolStats); 3] {
    [
        ("epoll sets", SETS.get().map_or_else(PoolStats::default, Pool::stats)),
        ("queues of pollers", QUEUES.get().map_or_else(PoolStats::default, Pool::stats)),
        ("items of epoll sets", ITEMS.get().map_or_else(PoolStats::default, Pool::stats)),
    ]
}

/// A queue that lives as long as it is used.
///
/// # Errors
/// [`OutOfMemory`].
pub fn new_queue() -> Result<Counted<PollQueue>, OutOfMemory> {
    Counted::try_new_with(QUEUES.call_once(|| Pool::new(kernel().frames)), PollQueue::new)
}

/// A set, as its items have it too.
pub struct EpollSet {
    pollers: Counted<PollQueue>,
    ready: IrqLock<Ready, { rank::READY }>,
    items: AtomicUsize,
    /// Those that are sets.
    inner_sets: AtomicUsize,
    /// The number of the last search that found it, and how many sets are above or below it.
    height: AtomicU64,
}

/// The items that may be ready, in this order, and how many calls have looked for events.
struct Ready {
    list: LinkedList<ByReady>,
    calls: u64,
    /// Its pollers were woken, and none has looked since: whatever happens to its items, that is once between two looks.
    is_woken: bool,
}

/// An open set. Its items end with it.
pub struct EpollFile(Counted<EpollSet>);

/// Whether a file is watched: 0, or the first part of its items' keys. Its items end with it.
#[derive(Default)]
pub struct Watched(AtomicUsize);

/// A first part, by which items are found; the other one, and the descriptor.
type Key = (usize, usize, u32);

/// A file of a set.
struct Item {
    by_set: RBTreeLink,
    by_file: RBTreeLink,
    ready: LinkedListLink,
    set: Counted<EpollSet>,
    /// The set that the file is.
    inner: Option<Counted<EpollSet>>,
    /// The queue of its node, where that is not the file's.
    _queue: Option<Counted<PollQueue>>,
    file: NonNull<OpenFile>,
    descriptor: u32,
    node: Once<PollNode<'static>>,
    /// Under the lock of the set's list.
    state: Cell<State>,
}

#[derive(Clone, Copy)]
struct State {
    event: EpollEvent,
    /// It was noted since it was polled.
    is_noted: bool,
    /// The last call that returned it.
    call: u64,
}

// SAFETY: links are changed under the lock of their list or tree, the state under that of the set's list; the file is used
// under the lock of all items.
unsafe impl Send for Item {}
// SAFETY: as above.
unsafe impl Sync for Item {}
// SAFETY: items are reached through the lock.
unsafe impl Send for Ready {}
// SAFETY: as above.
unsafe impl Send for Items {}

mod adapters {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{Item, LinkedListLink, RBTreeLink, UnsafeRef};
    use intrusive_collections::intrusive_adapter;
    intrusive_adapter!(pub(super) BySet = UnsafeRef<Item>: Item { by_set => RBTreeLink });
    intrusive_adapter!(pub(super) ByFile = UnsafeRef<Item>: Item { by_file => RBTreeLink });
    intrusive_adapter!(pub(super) ByReady = UnsafeRef<Item>: Item { ready => LinkedListLink });
}
use adapters::{ByFile, ByReady, BySet};

impl KeyAdapter<'_> for BySet {
    type Key = Key;
    fn get_key(&self, item: &Item) -> Key {
        item.key(Order::BySet)
    }
}

impl KeyAdapter<'_> for ByFile {
    type Key = Key;
    fn get_key(&self, item: &Item) -> Key {
        item.key(Order::ByFile)
    }
}

/// One of the orders of items: down to the files of a set, or up to the sets of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    BySet,
    ByFile,
}

struct Items {
    by_set: RBTree<BySet>,
    by_file: RBTree<ByFile>,
}

/// An event that a call takes.
pub struct Found {
    /// The events that hold, with the item's data.
    pub event: EpollEvent,
    /// The item had it.
    before: EpollEvent,
    key: Key,
}

impl Item {
    fn key(&self, order: Order) -> Key {
        let file = self.inner.as_ref().map_or(self.file.addr().get(), |inner| inner.address());
        match order {
            Order::BySet => (self.set.address(), file, self.descriptor),
            Order::ByFile => (file, self.set.address(), self.descriptor),
        }
    }

    /// The events that hold; `None` where too many files would be polled.
    fn poll(&self, items: &Items, reader: Reader, looks: &mut usize) -> Option<u32> {
        *looks = looks.checked_sub(1)?;
        if let Some(inner) = &self.inner {
            let found = inner.first(items, reader, looks, None)?;
            return Some(found.map_or(0, |_| INPUT.into()));
        }
        // SAFETY: the caller has the lock, which the file waits for before it ends, to take this item away.
        Some(unsafe { self.file.as_ref() }.poll(reader).events.into())
    }

    /// Joins the end of the ready ones.
    fn join(&self, ready: &mut Ready) {
        if !self.ready.is_linked() {
            // SAFETY: it leaves the list before it ends.
            ready.list.push_back(unsafe { UnsafeRef::from_raw(from_ref(self)) });
        }
    }

    /// Leaves them.
    fn leave(&self, ready: &mut Ready) {
        if self.ready.is_linked() {
            // SAFETY: it is in this list alone.
            unsafe { ready.list.cursor_mut_from_ptr(from_ref(self)) }.remove();
        }
    }

    /// Waits for these events from now on; returns whether it is ready.
    fn begin(&self, items: &Items, event: EpollEvent, reader: Reader) -> bool {
        {
            let _ready = self.set.ready.lock();
            self.state.set(State { event, is_noted: false, call: 0 });
        }
        // A set with too many items may be ready.
        let is_ready = self.poll(items, reader, &mut { LOOKS }).is_none_or(|events| events & event.events != 0);
        if is_ready {
            self.join(&mut self.set.ready.lock());
        }
        is_ready
    }
}

impl Watcher for Item {
    fn note(&self, events: u16) -> Option<(Counted<PollQueue>, u16)> {
        let mut ready = self.set.ready.lock();
        let state = self.state.get();
        if state.event.events & u32::from(events) == 0 {
            return None;
        }
        self.join(&mut ready);
        self.state.set(State { is_noted: true, ..state });
        (!replace(&mut ready.is_woken, true)).then(|| (self.set.pollers.clone(), INPUT))
    }
}

impl Items {
    const EMPTY: Self = Self { by_set: RBTree::new(BySet::NEW), by_file: RBTree::new(ByFile::NEW) };

    /// The item after this key in an order, of the same set or file.
    fn next(&self, order: Order, after: Key) -> Option<&Item> {
        let item = match order {
            Order::BySet => self.by_set.lower_bound(Bound::Excluded(&after)).get(),
            Order::ByFile => self.by_file.lower_bound(Bound::Excluded(&after)).get(),
        };
        item.filter(|item| item.key(order).0 == after.0)
    }

    /// Takes away the item with this key by set, to be freed without the lock.
    fn take(&mut self, key: &Key) -> Option<PoolBox<Item>> {
        let item = self.by_set.find_mut(key).remove()?;
        // SAFETY: what is in one tree is in the other.
        let _ = unsafe { self.by_file.cursor_mut_from_ptr(from_ref(&*item)) }.remove();
        // First the queue, so that nothing notes it any more.
        item.node.get().into_iter().for_each(PollNode::leave);
        item.leave(&mut item.set.ready.lock());
        item.set.items.fetch_sub(1, Ordering::Relaxed);
        item.set.inner_sets.fetch_sub(item.inner.is_some().into(), Ordering::Relaxed);
        // SAFETY: nothing has it any more.
        Some(unsafe { PoolBox::from_ref(item) })
    }
}

/// Takes away all items of a set or a file. Other threads run in between.
fn take_all(order: Order, of: usize) {
    loop {
        let taken = {
            let mut items = EPOLL.lock();
            let key = items.next(order, (of, 0, 0)).map(|item| item.key(Order::BySet));
            key.and_then(|key| items.take(&key))
        };
        if taken.is_none() {
            return;
        }
        drop(taken);
        relax();
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let file = *self.0.get_mut();
        if file != 0 {
            take_all(Order::ByFile, file);
        }
    }
}

impl EpollSet {
    fn address(&self) -> usize {
        from_ref(self).addr()
    }

    /// The first of the ready items for which events hold, with these; those before it leave the list. A call has none that
    /// it had already. `None` where too many files would be polled: those that were have left the list.
    fn first<'i>(
        &self,
        items: &'i Items,
        reader: Reader,
        looks: &mut usize,
        call: Option<u64>,
    ) -> Option<Option<(&'i Item, u32)>> {
        loop {
            let (item, wanted) = {
                let mut ready = self.ready.lock();
                ready.is_woken = false;
                let Some(item) = ready.list.front().get() else { return Some(None) };
                let state = item.state.get();
                if call == Some(state.call) {
                    return Some(None);
                }
                item.state.set(State { is_noted: false, ..state });
                // SAFETY: an item ends under the lock of all items, of which the caller has a reference.
                (unsafe { &*from_ref::<Item>(item) }, state.event.events)
            };
            let events = item.poll(items, reader, looks)? & wanted;
            if events != 0 {
                return Some(Some((item, events)));
            }
            let mut ready = self.ready.lock();
            if !item.state.get().is_noted {
                item.leave(&mut ready);
            }
        }
    }

    /// Takes the event of an item.
    fn take(&self, item: &Item, events: u32, call: u64) -> Found {
        let mut ready = self.ready.lock();
        let State { event: before, is_noted, .. } = item.state.get();
        item.leave(&mut ready);
        let is_last = before.events & EPOLLONESHOT != 0;
        if !is_last && (is_noted || before.events & EPOLLET == 0) {
            item.join(&mut ready);
        }
        let left = if is_last { before.events & MODES } else { before.events };
        item.state.set(State { event: EpollEvent { events: left, ..before }, is_noted, call });
        Found { event: EpollEvent { events, ..before }, before, key: item.key(Order::BySet) }
    }

    /// How many sets are below a set, or above it; more than [`NESTED`] where `sought` is one of them. `search` is the number
    /// of the search. Other threads run in between.
    fn height(&self, order: Order, sought: usize, search: u64) -> u64 {
        const BITS: u32 = 8;
        let known = self.height.load(Ordering::Relaxed);
        if known >> BITS == search {
            return known & ((1 << BITS) - 1);
        }
        if order == Order::BySet && self.inner_sets.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let (mut height, mut after) = (0, (self.address(), 0, 0));
        while height <= NESTED {
            let other = {
                let items = EPOLL.lock();
                let Some(item) = items.next(order, after) else { break };
                after = item.key(order);
                if order == Order::BySet { item.inner.clone() } else { Some(item.set.clone()) }
            };
            relax();
            let Some(other) = other else { continue };
            let found = if other.address() == sought { NESTED } else { other.height(order, sought, search) };
            height = height.max(found + 1);
        }
        self.height.store(search << BITS | height, Ordering::Relaxed);
        height
    }
}

impl OpenFile {
    /// The events that an epoll set may wait for; none where its state never changes.
    pub fn watchable(&self) -> u16 {
        match self.kind() {
            Kind::Node(_) if self.kernel_device() != Some(KernelDevice::Random) => 0,
            Kind::Device(_) | Kind::Proc(_) | Kind::ProcDirectory(_) => 0,
            Kind::Pipe(end) => end.watchable(),
            _ => PollQueue::ANY,
        }
    }

    /// The epoll set that it is, if it is one.
    pub const fn epoll(&self) -> Option<&EpollFile> {
        if let Kind::Epoll(set) = self.kind() { Some(set) } else { None }
    }
}

impl EpollFile {
    /// An empty set.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new() -> Result<Self, OutOfMemory> {
        let pollers = new_queue()?;
        let ready = IrqLock::new(Ready { list: LinkedList::new(ByReady::NEW), calls: 0, is_woken: false });
        let [items, inner_sets] = [const { AtomicUsize::new(0) }; 2];
        let sets = SETS.call_once(|| Pool::new(kernel().frames));
        Ok(Self(Counted::try_new(sets, EpollSet { pollers, ready, items, inner_sets, height: AtomicU64::new(0) })?))
    }

    /// Bytes of its items.
    pub fn footprint(&self) -> usize {
        self.0.items.load(Ordering::Relaxed) * size_of::<Item>()
    }

    /// Adds a file under a descriptor. For threads, without a lock.
    ///
    /// # Errors
    /// `EEXIST`; `ELOOP`: the file is a set that has this one, or too many would be in each other. `ENOMEM`.
    pub fn add(&self, file: &FileRef, descriptor: u32, event: EpollEvent, reader: Reader) -> Result<(), Errno> {
        let pool = ITEMS.call_once(|| Pool::new(kernel().frames));
        let inner = file.epoll().map(|inner| inner.0.clone());
        let mut nesting = inner.as_ref().map(|_| NESTING.write());
        if let (Some(inner), Some(searches)) = (&inner, &mut nesting) {
            **searches += 2;
            let below = inner.height(Order::BySet, self.0.address(), **searches);
            if below + 1 > NESTED || below + 1 + self.0.height(Order::ByFile, 0, **searches + 1) > NESTED {
                return Err(Errno::ELOOP);
            }
        }
        let item = pool.try_new(Item {
            by_set: RBTreeLink::new(),
            by_file: RBTreeLink::new(),
            ready: LinkedListLink::new(),
            set: self.0.clone(),
            inner,
            _queue: file.prepare_to_poll()?,
            file: NonNull::from_ref(&**file),
            descriptor,
            node: Once::new(),
            state: Cell::new(State { event, is_noted: false, call: 0 }),
        })?;
        let is_ready = {
            let mut items = EPOLL.lock();
            if !items.by_set.find(&item.key(Order::BySet)).is_null() {
                return Err(Errno::EEXIST);
            }
            let item = item.into_ref();
            items.by_set.insert(item.clone());
            items.by_file.insert(item.clone());
            self.0.items.fetch_add(1, Ordering::Relaxed);
            self.0.inner_sets.fetch_add(item.inner.is_some().into(), Ordering::Relaxed);
            file.watched().0.store(item.key(Order::ByFile).0, Ordering::Relaxed);
            let queue = item.inner.as_ref().map_or_else(|| file.poll(reader).queue, |inner| Some(&*inner.pollers));
            if let Some(queue) = queue {
                // SAFETY: both stay until the item is taken away, which leaves the queue.
                let (queue, item): (&'static PollQueue, &'static Item) =
                    unsafe { (&*from_ref(queue), &*from_ref(&*item)) };
                let node = item.node.call_once(|| PollNode::watching(queue, item));
                // SAFETY: as above; the node was made just now.
                unsafe { node.join() };
            }
            item.begin(&items, event, reader)
        };
        drop(nesting);
        if is_ready {
            self.0.pollers.wake(INPUT);
        }
        Ok(())
    }

    /// Changes the events of a file and descriptor. For threads, without a lock.
    ///
    /// # Errors
    /// `ENOENT`; `EINVAL`: it was added with `EPOLLEXCLUSIVE`.
    pub fn modify(&self, file: &FileRef, descriptor: u32, event: EpollEvent, reader: Reader) -> Result<(), Errno> {
        let is_ready = {
            let items = EPOLL.lock();
            let item = items.by_set.find(&self.key(file, descriptor)).get().ok_or(Errno::ENOENT)?;
            let before = {
                let _ready = self.0.ready.lock();
                item.state.get().event
            };
            if before.events & EPOLLEXCLUSIVE != 0 {
                return Err(Errno::EINVAL);
            }
            item.begin(&items, event, reader)
        };
        if is_ready {
            self.0.pollers.wake(INPUT);
        }
        Ok(())
    }

    /// Removes a file and descriptor.
    ///
    /// # Errors
    /// `ENOENT`.
    pub fn remove(&self, file: &FileRef, descriptor: u32) -> Result<(), Errno> {
        let taken = EPOLL.lock().take(&self.key(file, descriptor));
        taken.map(drop).ok_or(Errno::ENOENT)
    }

    fn key(&self, file: &OpenFile, descriptor: u32) -> Key {
        let of_file = file.epoll().map_or(from_ref(file).addr(), |set| set.0.address());
        (self.0.address(), of_file, descriptor)
    }

    /// Whether there is an event, and the queue that is woken for one. Other threads run in between.
    pub fn poll(&self, reader: Reader) -> PollState<'_> {
        let is_ready = self.look(reader, None, |_, _| ()).is_some();
        PollState { events: if is_ready { INPUT } else { 0 }, queue: Some(&self.0.pollers) }
    }

    /// The number of a call that takes events.
    pub fn begin_call(&self) -> u64 {
        let mut ready = self.0.ready.lock();
        ready.calls += 1;
        ready.calls
    }

    /// Takes the next event for a call; of one item it has one event. Other threads run in between.
    pub fn next(&self, reader: Reader, call: u64) -> Option<Found> {
        self.look(reader, Some(call), |item, events| self.0.take(item, events, call))
    }

    fn look<R>(&self, reader: Reader, call: Option<u64>, found: impl Fn(&Item, u32) -> R) -> Option<R> {
        loop {
            let looked = {
                let items = EPOLL.lock();
                let first = self.0.first(&items, reader, &mut { LOOKS }, call);
                first.map(|first| first.map(|(item, events)| found(item, events)))
            };
            if let Some(looked) = looked {
                return looked;
            }
            relax();
        }
    }

    /// Gives an event back that was not stored. For threads, without a lock.
    pub fn give_back(&self, found: &Found) {
        if let Some(item) = EPOLL.lock().by_set.find(&found.key).get() {
            let mut ready = self.0.ready.lock();
            let state = item.state.get();
            let event = if state.event.events & !MODES == 0 { found.before } else { state.event };
            item.state.set(State { event, call: 0, ..state });
            item.leave(&mut ready);
            // SAFETY: it leaves the list before it ends.
            ready.list.push_front(unsafe { UnsafeRef::from_raw(from_ref(item)) });
        }
        self.0.pollers.wake(INPUT);
    }
}

impl Drop for EpollFile {
    fn drop(&mut self) {
        take_all(Order::BySet, self.0.address());
    }
}
