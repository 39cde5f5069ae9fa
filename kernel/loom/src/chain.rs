//! The notifier chain's atomics, and what a thread may leave out.
//!
//! The chain is the kernel's own source, generic over [`Atomics`]. What a subscriber was is never given back here, so
//! that a call that comes too late can be seen instead of reading somebody else's memory.

#![allow(unsafe_code, reason = "keeps the contracts of the kernel's unsafe traits on loom's types")]

use std::alloc::Layout;
use std::ptr::NonNull;

use granule::mm::notifier::{Atomics, Pointer, Word};
use loom::sync::atomic::{AtomicPtr, AtomicU64, Ordering, fence};

use crate::cell::Cell;

/// A step of the chain that a thread leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeftOut {
    /// None.
    Nothing,
    /// Its full barriers.
    Fences,
    /// Counting itself in and out.
    Count,
    /// The release with which it counts itself out.
    Release,
}

loom::thread_local! {
    static LEAVES: std::cell::Cell<LeftOut> = std::cell::Cell::new(LeftOut::Nothing);
}

/// From now on this thread leaves `step` out.
pub fn leave_out(step: LeftOut) {
    LEAVES.with(|leaves| leaves.set(step));
}

fn leaves(step: LeftOut) -> bool {
    LEAVES.with(|leaves| leaves.get() == step)
}

/// loom's atomics.
pub struct Loom;

impl Atomics for Loom {
    type Word = Cell;
    type Pointer<T> = Link<T>;
    const CHECKED: bool = true;

    fn fence() {
        if !leaves(LeftOut::Fences) {
            fence(Ordering::SeqCst);
        }
    }

    fn relax() {
        loom::thread::yield_now();
    }

    unsafe fn free(_: NonNull<u8>, _: Layout) {}
}

impl Word for Cell {
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        if leaves(LeftOut::Count) {
            return 0;
        }
        let order = if leaves(LeftOut::Release) && order == Ordering::Release { Ordering::Relaxed } else { order };
        self.fetch_add(value, order)
    }

    fn try_set(&self) -> bool {
        self.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }
}

/// A pointer, with the word beside it that a [`Cell`] has too.
pub struct Link<T> {
    value: AtomicPtr<T>,
    touched: AtomicU64,
}

impl<T> Default for Link<T> {
    fn default() -> Self {
        Self { value: AtomicPtr::default(), touched: AtomicU64::new(0) }
    }
}

impl<T> Pointer<T> for Link<T> {
    fn load(&self, order: Ordering) -> *mut T {
        self.touched.fetch_add(1, Ordering::Relaxed);
        self.value.load(order)
    }

    fn store(&self, value: *mut T, order: Ordering) {
        self.touched.fetch_add(1, Ordering::Relaxed);
        self.value.store(value, order);
    }
}
