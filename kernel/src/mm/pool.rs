//! Object pools: kernel objects of one type, cut from frames, with running out of memory as an error value.
//!
//! A *slab* is one frame: a header, then slots for objects. An object's slab is found by rounding its address down, its
//! pool from the slab's header; so a [`PoolBox`] is a single pointer, and can be handed to an intrusive tree as one.
//!
//! ```text
//!            ┌────────┬──────┬──────┬──────┬─ … ─┬────┐
//! one frame: │ header │ slot │ slot │ slot │     │    │
//!            └────────┴──────┴──────┴──────┴─ … ─┴────┘
//! ```
//!
//! A slab with no object left is kept if it is the only such one, so that a pool at the edge of a slab does not take
//! and return a frame each time; others go back to the frame allocator at once. Frames are taken and returned while the
//! pool's lock is not held.

#![allow(unsafe_code, reason = "objects in slabs that the pool owns")]

use core::cell::Cell;
use core::marker::PhantomData;
use core::mem::{MaybeUninit, align_of, forget, size_of};
use core::num::NonZero;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, VirtAddr};
use intrusive_collections::{LinkedList, LinkedListLink, UnsafeRef, intrusive_adapter};

use super::OutOfMemory;
use super::frame::FrameAllocator;
use crate::smp::{Cpu, MAX_CPUS, this_cpu};
use crate::sync::{IrqLock, rank};

/// The first two bytes of a slot that is the last on its slab's list of free slots.
const NONE: u16 = u16::MAX;

/// A pool of objects of type `T`, which fit in a frame beside the header: at most about 4000 bytes.
pub struct Pool<T> {
    frames: &'static FrameAllocator,
    slabs: IrqLock<Slabs, { rank::POOL }>,
    objects: PhantomData<fn(T) -> T>,
}

/// A pool for each CPU: what a CPU takes and gives back itself lies in lines of its own.
pub struct CpuPools<T: 'static> {
    /// In a frame.
    each: &'static [Line<Pool<T>>; MAX_CPUS],
}

/// A value in cache lines of its own.
#[repr(align(64))]
struct Line<T>(T);

impl<T> CpuPools<T> {
    /// Empty pools that take their slabs from `frames`. The boot stack has no room for them.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(cpu: &Cpu, frames: &'static FrameAllocator) -> Result<Self, OutOfMemory> {
        const { assert!(size_of::<[Line<Pool<T>>; MAX_CPUS]>() <= PAGE_SIZE) };
        let each: *mut Line<Pool<T>> = frames.linear().address(frames.alloc(cpu)?).as_ptr();
        for number in 0..MAX_CPUS {
            // SAFETY: inside the frame, which stays these pools', and is aligned for them.
            unsafe { each.add(number).write(Line(Pool::new(frames))) };
        }
        // SAFETY: each was just written.
        Ok(Self { each: unsafe { &*each.cast() } })
    }

    /// The pool from which `cpu` takes objects. Any CPU may give them back.
    #[inline(always)]
    pub fn of(&self, cpu: &Cpu) -> &'static Pool<T> {
        &cpu.id.of(self.each).0
    }

    /// Objects in use.
    pub fn objects(&self) -> usize {
        self.each.iter().map(|pool| pool.0.stats().objects).sum()
    }

    /// Frames that the pools have, with the one that they are in.
    pub fn frames(&self) -> usize {
        1 + self.each.iter().map(|pool| pool.0.stats().frames).sum::<usize>()
    }
}

/// How large a pool is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PoolStats {
    /// Objects in use.
    pub objects: usize,
    /// Frames that the pool has.
    pub frames: usize,
}

/// The head of each slab.
#[repr(C)]
struct Slab {
    link: LinkedListLink,
    /// The [`Pool`] that it belongs to; the slab does not know of which type.
    pool: *const (),
    frame: PhysAddr,
    /// Objects in it.
    used: Cell<u16>,
    /// First slot of the list of those that were used and are free again.
    free: Cell<u16>,
    /// First slot that was never used; all later ones were not either.
    fresh: Cell<u16>,
}

intrusive_adapter!(SlabLink = UnsafeRef<Slab>: Slab { link => LinkedListLink });

/// The data that the lock protects: the lists, and every field of every slab that changes.
struct Slabs {
    /// Slabs with objects and with room.
    partial: LinkedList<SlabLink>,
    /// A slab without objects.
    spare: Option<UnsafeRef<Slab>>,
    stats: PoolStats,
}

// SAFETY: slabs are reached through the lock only, on whichever CPU holds it.
unsafe impl Send for Slabs {}

/// An object in a pool, owned. Dropping it drops the object and returns its slot.
pub struct PoolBox<T> {
    object: NonNull<T>,
    owns: PhantomData<T>,
}

// SAFETY: the box owns its object, and a pool may be used from every CPU.
unsafe impl<T: Send> Send for PoolBox<T> {}
// SAFETY: a shared box gives shared access to the object only.
unsafe impl<T: Sync> Sync for PoolBox<T> {}

impl<T> Pool<T> {
    /// A free slot holds a `u16`, so it is at least as large and as aligned as one.
    const SLOT_ALIGN: usize = if align_of::<T>() > 2 { align_of::<T>() } else { 2 };
    const SLOT: usize = if size_of::<T>() > 2 { size_of::<T>().next_multiple_of(Self::SLOT_ALIGN) } else { 2 };
    const SLOT_SIZE: NonZero<usize> = NonZero::new(Self::SLOT).expect("a slot has two bytes at least");
    const FIRST: usize = size_of::<Slab>().next_multiple_of(Self::SLOT_ALIGN);
    /// Objects in a slab.
    const CAPACITY: u16 = {
        assert!(Self::FIRST + Self::SLOT <= PAGE_SIZE, "the object does not fit in a slab");
        ((PAGE_SIZE - Self::FIRST) / Self::SLOT) as u16
    };

    /// An empty pool that takes its slabs from `frames`.
    pub const fn new(frames: &'static FrameAllocator) -> Self {
        let empty =
            Slabs { partial: LinkedList::new(SlabLink::NEW), spare: None, stats: PoolStats { objects: 0, frames: 0 } };
        Self { frames, slabs: IrqLock::new(empty), objects: PhantomData }
    }

    /// Moves `value` into the pool.
    ///
    /// The pool lives for ever because its objects may: they find it again when they are dropped.
    ///
    /// # Errors
    /// [`OutOfMemory`]: every slab is full and no frame is free. `value` is dropped.
    #[inline]
    pub fn try_new(&'static self, value: T) -> Result<PoolBox<T>, OutOfMemory> {
        self.try_new_with(|| value)
    }

    /// Has `make` make a value in the pool, so that it need not be made elsewhere and moved. No lock is held then.
    ///
    /// # Errors
    /// [`OutOfMemory`]: every slab is full and no frame is free. `make` is not called.
    #[inline]
    pub fn try_new_with(&'static self, make: impl FnOnce() -> T) -> Result<PoolBox<T>, OutOfMemory> {
        let slot = self.take_slot()?;
        // SAFETY: the slot was free and is now ours, sized and aligned for a `T`.
        unsafe { slot.write(make()) };
        Ok(PoolBox { object: slot, owns: PhantomData })
    }

    /// Room for a value, which [`PoolBox::write`] moves into it: for what may not fail later.
    ///
    /// # Errors
    /// [`OutOfMemory`]: every slab is full and no frame is free.
    #[inline]
    pub fn try_new_uninit(&'static self) -> Result<PoolBox<MaybeUninit<T>>, OutOfMemory> {
        Ok(PoolBox { object: self.take_slot()?.cast(), owns: PhantomData })
    }

    /// Takes a slot, of a new slab where no other has one.
    fn take_slot(&'static self) -> Result<NonNull<T>, OutOfMemory> {
        let slot = self.slabs.lock().take::<T>();
        if let Some(slot) = slot {
            return Ok(slot);
        }
        let slab = self.new_slab()?;
        let mut slabs = self.slabs.lock();
        slabs.stats.frames += 1;
        // Another CPU may have done the same concurrently; then there is room for both.
        slabs.partial.push_front(slab);
        slabs.take::<T>().ok_or(OutOfMemory)
    }

    /// How large the pool is now.
    pub fn stats(&self) -> PoolStats {
        self.slabs.lock().stats
    }

    /// Makes a slab of a fresh frame.
    #[cold]
    fn new_slab(&'static self) -> Result<UnsafeRef<Slab>, OutOfMemory> {
        let frame = self.frames.alloc(this_cpu())?;
        let slab: *mut Slab = self.frames.linear().address(frame).as_ptr();
        // SAFETY: the linear map shows the frame, it is ours, and a page is large and aligned enough for the header.
        unsafe {
            slab.write(Slab {
                link: LinkedListLink::new(),
                pool: (&raw const *self).cast(),
                frame,
                used: Cell::new(0),
                free: Cell::new(NONE),
                fresh: Cell::new(0),
            });
            Ok(UnsafeRef::from_raw(slab))
        }
    }

    /// Takes back the slot of an object that was dropped.
    ///
    /// # Safety
    /// The slot belongs to this pool and is in use.
    #[inline(always)]
    unsafe fn put(&self, slot: NonNull<T>) {
        let shape = Shape { first: Self::FIRST, slot: Self::SLOT_SIZE, capacity: Self::CAPACITY };
        // SAFETY: every object of a pool is inside a slab, at whose page boundary the header lies.
        unsafe { put(self.frames, &self.slabs, slot.cast(), shape) };
    }
}

/// Where the slots of a slab are: the offset of the first, the bytes of each, and how many there are.
struct Shape {
    first: usize,
    slot: NonZero<usize>,
    capacity: u16,
}

/// [`Pool::put`], for objects of every type.
///
/// # Safety
/// As there; the slots of the pool are as `shape` says.
#[inline(never)]
unsafe fn put(
    frames: &'static FrameAllocator,
    slabs: &IrqLock<Slabs, { rank::POOL }>,
    slot: NonNull<u16>,
    shape: Shape,
) {
    // SAFETY: as the caller guarantees.
    let surplus = unsafe { slabs.lock().put(slot, shape) };
    return_slab(frames, surplus);
}

fn return_slab(frames: &FrameAllocator, slab: Option<UnsafeRef<Slab>>) {
    if let Some(slab) = slab {
        // Drop has no argument for the CPU.
        frames.free(this_cpu(), slab.frame);
    }
}

impl Slabs {
    /// Takes a slot for a `T`, if some slab has one.
    fn take<T>(&mut self) -> Option<NonNull<T>> {
        if self.partial.is_empty() {
            self.partial.push_front(self.spare.take()?);
        }
        let mut front = self.partial.front_mut();
        let slab = front.get()?;
        let slot = match slab.free.get() {
            NONE => {
                let index = slab.fresh.get();
                slab.fresh.set(index + 1);
                slab.slot::<T>(index)
            }
            index => {
                let slot = slab.slot::<T>(index);
                // SAFETY: a slot on the free list holds the index of the next.
                slab.free.set(unsafe { slot.cast::<u16>().read() });
                slot
            }
        };
        slab.used.set(slab.used.get() + 1);
        if slab.used.get() == Pool::<T>::CAPACITY {
            front.remove();
        }
        self.stats.objects += 1;
        Some(slot)
    }

    /// Takes a slot back; returns its slab if that is now one too many without objects.
    ///
    /// # Safety
    /// The slot is in use, in a slab of this pool.
    unsafe fn put(&mut self, slot: NonNull<u16>, shape: Shape) -> Option<UnsafeRef<Slab>> {
        let address = in_slab(slot.as_ptr());
        let header = address.align_down(PAGE);
        // SAFETY: the slab was made by `new_slab` and is not returned before its last object.
        let slab: UnsafeRef<Slab> = unsafe { UnsafeRef::from_raw(header.as_ptr()) };
        // SAFETY: the slot is free now, and at least a `u16` large.
        unsafe { slot.write(slab.free.get()) };
        slab.free.set((((address - header) as usize - shape.first) / shape.slot) as u16);
        let used = slab.used.get() - 1;
        slab.used.set(used);
        self.stats.objects -= 1;
        let was_full = used + 1 == shape.capacity;
        if used > 0 {
            if was_full {
                self.partial.push_front(slab);
            }
            return None;
        }
        if !was_full {
            // SAFETY: a slab that is neither full nor without objects is in this list.
            unsafe { self.partial.cursor_mut_from_ptr(UnsafeRef::into_raw(slab.clone())) }.remove();
        }
        if self.spare.is_none() {
            self.spare = Some(slab);
            return None;
        }
        self.stats.frames -= 1;
        Some(slab)
    }
}

/// The address of what is in a slab: a frame's, by the linear map, so that there is no tag to remove.
#[inline(always)]
fn in_slab<T: ?Sized>(pointer: *const T) -> VirtAddr {
    VirtAddr(pointer.cast::<u8>().expose_provenance() as u64)
}

impl Slab {
    fn slot<T>(&self, index: u16) -> NonNull<T> {
        let offset = Pool::<T>::FIRST + usize::from(index) * Pool::<T>::SLOT;
        // The slot is outside the header that `self` may reach, so its pointer is made from the address.
        let slot = in_slab(core::ptr::from_ref(self)) + offset as u64;
        // SAFETY: the address lies above that of the header, so it is not zero.
        unsafe { NonNull::new_unchecked(slot.as_ptr()) }
    }
}

impl<T> PoolBox<T> {
    /// Gives the object up as a pointer, for an intrusive collection; [`Self::from_raw`] makes it a box again.
    pub fn into_raw(self) -> NonNull<T> {
        let object = self.object;
        forget(self);
        object
    }

    /// The box that [`Self::into_raw`] gave up.
    ///
    /// # Safety
    /// The pointer came from there, is made a box only once, and nothing else refers to the object.
    pub unsafe fn from_raw(object: NonNull<T>) -> Self {
        Self { object, owns: PhantomData }
    }

    /// Gives the object up to an intrusive collection; [`Self::from_ref`] makes it a box again.
    pub fn into_ref(self) -> UnsafeRef<T> {
        // SAFETY: the object stays where it is, and the reference owns it from now on.
        unsafe { UnsafeRef::from_raw(self.into_raw().as_ptr()) }
    }

    /// The box that [`Self::into_ref`] gave up.
    ///
    /// # Safety
    /// As for [`Self::from_raw`]: no collection has the object, and no other reference to it is used any more.
    pub unsafe fn from_ref(object: UnsafeRef<T>) -> Self {
        let object = NonNull::new(UnsafeRef::into_raw(object)).expect("a reference is not null");
        // SAFETY: as the caller guarantees.
        unsafe { Self::from_raw(object) }
    }
}

impl<T> PoolBox<MaybeUninit<T>> {
    /// Moves `value` into the room.
    pub fn write(mut self, value: T) -> PoolBox<T> {
        MaybeUninit::write(&mut self, value);
        PoolBox { object: self.into_raw().cast(), owns: PhantomData }
    }
}

impl<T> Deref for PoolBox<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the box owns the object, which stays in its slot until the box is dropped.
        unsafe { self.object.as_ref() }
    }
}

impl<T> DerefMut for PoolBox<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` excludes every other access.
        unsafe { self.object.as_mut() }
    }
}

impl<T> Drop for PoolBox<T> {
    fn drop(&mut self) {
        let header = in_slab(self.object.as_ptr()).align_down(PAGE);
        // SAFETY: the header names the pool that the slot is from, a `Pool<T>` that lives for ever, or where `T` is room
        // for a value, the pool of such values, which differs in nothing; the object is dropped here and nowhere else,
        // before its slot is given back.
        unsafe {
            let pool = &*(*header.as_ptr::<Slab>()).pool.cast::<Pool<T>>();
            self.object.drop_in_place();
            pool.put(self.object);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::rc::Rc;
    use std::vec::Vec;

    use intrusive_collections::{KeyAdapter, RBTree, RBTreeLink};
    use proptest::prelude::*;

    use super::*;
    use crate::mm::frame::tests::leaked;

    impl<T> Pool<T> {
        /// Returns the frame that is kept without objects.
        fn trim(&self) {
            let mut slabs = self.slabs.lock();
            let spare = slabs.spare.take();
            slabs.stats.frames -= usize::from(spare.is_some());
            drop(slabs);
            return_slab(self.frames, spare);
        }
    }

    fn pool<T>() -> (&'static Pool<T>, &'static FrameAllocator) {
        let frames = leaked(2);
        (Box::leak(Box::new(Pool::new(frames))), frames)
    }

    #[test]
    fn objects_are_aligned_apart_and_dropped() {
        #[repr(align(64))]
        struct Wide(Rc<()>);
        let (pool, _) = pool();
        let witness = Rc::new(());
        let boxes: Vec<_> = (0..200).map(|_| pool.try_new(Wide(witness.clone())).unwrap()).collect();
        let mut addresses: Vec<_> = boxes.iter().map(|object| VirtAddr::from_ptr(&raw const **object).0).collect();
        addresses.sort_unstable();
        assert!(addresses.iter().all(|address| address.is_multiple_of(64)));
        assert!(addresses.windows(2).all(|pair| pair[1] - pair[0] >= 64));
        assert!(boxes.iter().all(|object| Rc::ptr_eq(&object.0, &witness)));
        assert_eq!(Rc::strong_count(&witness), 201);
        drop(boxes);
        assert_eq!(Rc::strong_count(&witness), 1);
    }

    #[test]
    fn tiny_and_huge_objects_fit() {
        let (bytes, _) = pool::<u8>();
        let many: Vec<_> = (0..5000_u32).map(|n| bytes.try_new(n as u8).unwrap()).collect();
        assert!(many.iter().enumerate().all(|(n, byte)| **byte == n as u8));
        let (pages, _) = pool::<[u8; 4032]>();
        let one = pages.try_new([7; 4032]).unwrap();
        let two = pages.try_new([9; 4032]).unwrap();
        assert!(one.iter().all(|byte| *byte == 7) && two.iter().all(|byte| *byte == 9));
        assert_eq!(pages.stats(), PoolStats { objects: 2, frames: 2 });
    }

    #[test]
    fn running_out_is_a_value_and_memory_comes_back() {
        let (pool, frames) = pool::<[u64; 64]>();
        let free = frames.stats().free;
        let mut held: Vec<_> = core::iter::from_fn(|| pool.try_new([1; 64]).ok()).collect();
        assert_eq!(frames.stats().free, 0);
        assert!(matches!(pool.try_new([2; 64]), Err(OutOfMemory)));
        held.swap_remove(5);
        held.push(pool.try_new([3; 64]).unwrap());
        drop(held);
        assert_eq!(frames.stats().free, free - 1, "one slab is kept");
        pool.trim();
        assert_eq!(pool.stats(), PoolStats { objects: 0, frames: 0 });
        assert_eq!(frames.stats().free, free);
    }

    #[test]
    fn room_becomes_an_object_or_is_given_back() {
        let (pool, _) = pool();
        let witness = Rc::new(());
        let room = pool.try_new_uninit().unwrap();
        drop(pool.try_new_uninit().unwrap());
        assert_eq!(pool.stats().objects, 1);
        let object = room.write(witness.clone());
        assert!(Rc::ptr_eq(&object, &witness));
        drop(object);
        assert_eq!((Rc::strong_count(&witness), pool.stats().objects), (1, 0));
    }

    #[test]
    fn edge_of_a_slab_does_not_take_and_return_a_frame_each_time() {
        let (pool, frames) = pool::<[u64; 64]>();
        let _full: Vec<_> = (0..Pool::<[u64; 64]>::CAPACITY).map(|_| pool.try_new([0; 64]).unwrap()).collect();
        drop(pool.try_new([0; 64]));
        let used = frames.stats().used;
        for _ in 0..10 {
            let one = pool.try_new([0; 64]);
            assert_eq!(frames.stats().used, used);
            drop(one);
            assert_eq!(frames.stats().used, used);
        }
    }

    /// Areas live in a tree that neither allocates nor owns: the box goes in as a pointer and comes out as a box.
    #[test]
    fn objects_can_live_in_an_intrusive_tree() {
        struct Area {
            start: u64,
            link: RBTreeLink,
        }
        intrusive_adapter!(ByStart = UnsafeRef<Area>: Area { link => RBTreeLink });
        impl<'a> KeyAdapter<'a> for ByStart {
            type Key = u64;
            fn get_key(&self, area: &'a Area) -> u64 {
                area.start
            }
        }
        let (pool, _) = pool();
        let mut tree = RBTree::new(ByStart::new());
        for start in [30, 10, 20] {
            let area = pool.try_new(Area { start, link: RBTreeLink::new() }).unwrap();
            tree.insert(area.into_ref());
        }
        assert_eq!(tree.iter().map(|area| area.start).collect::<Vec<_>>(), [10, 20, 30]);
        let removed = tree.find_mut(&20).remove().unwrap();
        // SAFETY: the tree has dropped it.
        let area = unsafe { PoolBox::from_ref(removed) };
        assert_eq!((area.start, pool.stats().objects), (20, 3));
        drop(area);
        assert_eq!(pool.stats().objects, 2);
        tree.fast_clear();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn objects_keep_their_values_and_all_slots_come_back(
            steps in prop::collection::vec((any::<bool>(), 1..200_usize, any::<usize>()), 1..40),
        ) {
            let (pool, frames) = pool::<(u64, [u64; 9])>();
            let free = frames.stats().free;
            let mut held = Vec::new();
            let mut serial = 0_u64;
            for (give, count, which) in steps {
                for _ in 0..count {
                    if give {
                        serial += 1;
                        let Ok(object) = pool.try_new((serial, [serial; 9])) else { break };
                        held.push((serial, object));
                    } else if !held.is_empty() {
                        let (serial, object) = held.swap_remove(which % held.len());
                        prop_assert_eq!(*object, (serial, [serial; 9]));
                    }
                }
                prop_assert_eq!(pool.stats().objects, held.len());
                prop_assert_eq!(frames.stats().used, pool.stats().frames);
            }
            for (serial, object) in held {
                prop_assert_eq!(*object, (serial, [serial; 9]));
            }
            pool.trim();
            prop_assert_eq!(frames.stats().free, free);
        }
    }
}
