//! Objects with several owners, and the pools that they are in, the kernel's own source: an object ends once, after all
//! that its owners did, and a slot gets its next object after the end of the last.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use granule_loom::mm::counted::{Counted, Inner};
use granule_loom::mm::frame::FrameAllocator;
use granule_loom::mm::pool::Pool;
use granule_loom::sync::rank;
use granule_loom::{Omitted, Watched, omit};

use crate::{assert_caught, threads_with};

/// Loom's report of two accesses without an order.
const RACE: &str = "Causality violation";

/// The places of objects, by their addresses: memory that stays while objects come and go. Not loom's, so it orders nothing.
#[derive(Default)]
struct Places {
    watched: Mutex<BTreeMap<usize, Arc<Watched<u32>>>>,
    ended: AtomicUsize,
}

impl Places {
    fn of(&self, object: &Object) -> Arc<Watched<u32>> {
        let address = std::ptr::from_ref(object).addr();
        Arc::clone(self.watched.lock().unwrap().entry(address).or_default())
    }
}

/// So large that a slab has two of them.
struct Object {
    places: Arc<Places>,
    _rest: [u64; 230],
}

impl Object {
    fn new(places: &Arc<Places>) -> Self {
        Self { places: Arc::clone(places), _rest: [0; 230] }
    }

    /// Its maker fills it.
    fn fill(&self, value: u32) {
        self.places.of(self).write(value);
    }

    fn read(&self) -> u32 {
        self.places.of(self).read()
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.fill(0);
            self.places.ended.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A pool of `T`, with frames for so many slabs; both end with this.
struct Pooled<T: 'static> {
    pool: &'static Pool<T>,
    frames: &'static FrameAllocator,
    all: usize,
    places: Arc<Places>,
}

impl<T> Pooled<T> {
    fn new(all: usize) -> Self {
        let frames = Box::leak(Box::new(FrameAllocator::new(all)));
        Self { pool: Box::leak(Box::new(Pool::new(frames))), frames, all, places: Arc::default() }
    }

    fn assert_empty(&self, ended: usize) {
        assert_eq!(self.places.ended.load(Ordering::Relaxed), ended, "not each object has ended once");
        let stats = self.pool.stats();
        assert_eq!(stats.objects, 0, "an object is left");
        assert!(stats.frames <= 1, "more than one empty slab is kept");
        assert_eq!(stats.frames + self.frames.free_frames(), self.all, "a frame is lost");
    }
}

#[allow(unsafe_code, reason = "ends what was leaked")]
impl<T> Drop for Pooled<T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // SAFETY: leaked in `new`; nothing is in the pool, and nothing refers to either any more.
        unsafe {
            drop(Box::from_raw(std::ptr::from_ref(self.pool).cast_mut()));
            drop(Box::from_raw(std::ptr::from_ref(self.frames).cast_mut()));
        }
    }
}

type Shared = Counted<Object>;

/// Three owners of an object at once, each without a step.
fn owned_by_three(omitted: Omitted, owners: [fn(Shared); 3]) {
    threads_with(3, move || {
        let pooled = Pooled::<Inner<Object>>::new(1);
        let object = Counted::try_new(pooled.pool, Object::new(&pooled.places)).expect("a frame");
        object.fill(1);
        let others = [owners[1], owners[2]].map(|owner| {
            let object = object.clone();
            loom::thread::spawn(move || {
                omit(omitted);
                owner(object);
                omit(Omitted::Nothing);
            })
        });
        omit(omitted);
        owners[0](object);
        omit(Omitted::Nothing);
        others.into_iter().for_each(|other| other.join().unwrap());
        pooled.assert_empty(1);
    });
}

fn read_and_drop(object: Shared) {
    object.read();
}

fn share_and_drop(object: Shared) {
    let other = object.clone();
    drop(object);
    other.read();
}

/// The owner changes it where it is the only one.
fn change_alone(mut object: Shared) {
    if let Some(object) = Counted::get_mut(&mut object) {
        object.fill(2);
    }
}

#[test]
fn an_object_ends_once_behind_all_its_owners() {
    owned_by_three(Omitted::Nothing, [read_and_drop; 3]);
    owned_by_three(Omitted::Nothing, [share_and_drop, read_and_drop, read_and_drop]);
}

#[test]
fn an_owner_that_finds_itself_alone_changes_it_behind_the_others() {
    owned_by_three(Omitted::Nothing, [change_alone, read_and_drop, read_and_drop]);
    owned_by_three(Omitted::Nothing, [change_alone, change_alone, read_and_drop]);
}

#[test]
fn owners_that_are_counted_without_an_order_are_caught() {
    assert_caught(RACE, || owned_by_three(Omitted::Order, [read_and_drop; 3]));
    assert_caught(RACE, || owned_by_three(Omitted::Acquire, [change_alone, read_and_drop, read_and_drop]));
}

/// Two CPUs make and end objects of one pool, whose slabs have room for two, without a step.
fn made_by_two(omitted: Omitted) {
    threads_with(3, move || {
        let pooled = Arc::new(Pooled::<Object>::new(3));
        let make = |pooled: &Pooled<Object>| {
            let [first, second] = [1, 2].map(|value| {
                let object = pooled.pool.try_new(Object::new(&pooled.places)).expect("there are frames for all");
                object.fill(value);
                object
            });
            drop(first);
            let third = pooled.pool.try_new(Object::new(&pooled.places)).expect("a slot is free");
            third.fill(3);
            assert_eq!((second.read(), third.read()), (2, 3), "two objects in one slot");
        };
        let other = Arc::clone(&pooled);
        let makes = loom::thread::spawn(move || {
            omit(omitted);
            make(&other);
            omit(Omitted::Nothing);
        });
        omit(omitted);
        make(&pooled);
        omit(Omitted::Nothing);
        makes.join().unwrap();
        pooled.assert_empty(6);
    });
}

#[test]
fn a_slot_has_one_object_at_a_time_and_no_slab_is_lost() {
    made_by_two(Omitted::Nothing);
}

#[test]
fn slabs_without_their_lock_are_caught() {
    assert_caught(RACE, || made_by_two(Omitted::Lock(rank::POOL)));
}
