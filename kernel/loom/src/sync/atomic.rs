//! The atomics that stand in the place of the CPU's: what the kernel names `crate::sync::atomic`.
//!
//! # Every access is preceded by another
//! loom tries orders only for accesses that depend on each other, and for that remembers of each atomic the last access
//! and no more. A CPU that reads an entry and then writes it, as every check before a change does, so hides another
//! CPU's earlier read behind its own: the order in which its write comes first is never tried, and a test passes that
//! must not. So each access here is preceded by a relaxed read-modify-write of a word beside the value. Those all
//! depend on each other, and the last one is enough to remember; being relaxed they order nothing, as the canaries
//! show.
//!
//! A store is a read-modify-write that drops what it read. For a plain store loom does not order it after the
//! bit-clear that took what the storing CPU had read before: the bit-clear could so undo the store, which is what being
//! atomic rules out. Every order of stores is tried all the same, as another order of the CPUs. The store also releases
//! what an earlier store of another CPU released, as on Arm, where stores to one cell order the CPUs, and unlike
//! C11.
//!
//! # Steps left out
//! A thread can leave out one step ([`omit`]), so that a test sees that the step is needed.

#![allow(unsafe_code, reason = "a word of a constant")]

use std::cell::OnceCell;

pub use loom::sync::atomic::Ordering;

use granule_smmuv3::Step;

use super::rank::Rank;

/// A step that a thread leaves out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Omitted {
    /// None.
    Nothing,
    /// The order of its accesses: all are relaxed.
    Order,
    /// The acquire of a load.
    Acquire,
    /// The release of a store or an addition.
    Release,
    /// Its full barriers.
    Fences,
    /// Its additions.
    Additions,
    /// Compare-exchange in one step: a load and a store.
    AtomicExchange,
    /// Swap in one step: the same.
    AtomicSwap,
    /// The setting of bits in one step: the same.
    AtomicSet,
    /// A compare-exchange that does not change the value.
    Renewal,
    /// The lock that a waiter acquires once more before it returns.
    LastLock,
    /// The locks of this rank.
    Lock(Rank),
    /// The lock of a space's areas while a device is bound.
    AreasLock,
    /// The change of a stream before its binding ends: it comes after.
    StreamFirst,
    /// The lock of a device's state while it is bound.
    StateLock,
    /// DMB OSHLD.
    DmbOshld,
    /// The masks of interrupts.
    Masks,
    /// The look at walk words before a CPU is parked.
    WalkWord,
    /// The patience of what waits for some time: it is over at once.
    Patience,
    /// The timer, which is not set.
    Timer,
    /// A step of the SMMU's driver.
    Smmu(Step),
}

loom::thread_local! {
    static OMITTED: std::cell::Cell<Omitted> = std::cell::Cell::new(Omitted::Nothing);
}

/// From now on this thread leaves `step` out.
pub fn omit(step: Omitted) {
    OMITTED.with(|omitted| omitted.set(step));
}

pub(crate) fn omits(step: Omitted) -> bool {
    OMITTED.with(|omitted| omitted.get() == step)
}

/// A fence, unless full barriers are left out.
pub fn fence(order: Ordering) {
    if !omits(Omitted::Fences) {
        loom::sync::atomic::fence(order);
    }
}

/// `order`, unless orders are left out, or that of a load or store (`part`) is.
fn ordered(order: Ordering, part: Omitted) -> Ordering {
    if omits(Omitted::Order) || omits(part) { Ordering::Relaxed } else { order }
}

loom::thread_local! {
    /// Whether the thread's last store was a store-release.
    static HAS_RELEASED: std::cell::Cell<bool> = std::cell::Cell::new(false);
}

/// The order of a store, which is noted: [`ordered`].
fn storing(order: Ordering, part: Omitted) -> Ordering {
    let order = ordered(order, part);
    stored(order);
    order
}

/// Notes a store of that order.
fn stored(order: Ordering) {
    let is_release = matches!(order, Ordering::Release | Ordering::AcqRel | Ordering::SeqCst);
    HAS_RELEASED.with(|has_released| has_released.set(is_release));
}

/// Arm's load-acquire comes after each earlier store-release (LDAR, STLR): here after one that is the thread's last
/// store, which is less. Loom's are not, so a fence stands between the two. Rust's `SeqCst` load is LDAR; its `Acquire`
/// may be LDAPR, which is not held back.
fn behind_release(order: Ordering) {
    let has_released = HAS_RELEASED.with(|has_released| has_released.get());
    if order == Ordering::SeqCst && has_released && !omits(Omitted::Order) && !omits(Omitted::Fences) {
        loom::sync::atomic::fence(Ordering::SeqCst);
    }
}

macro_rules! words {
    ($($(#[$doc:meta])* $name:ident: $value:ty;)*) => { $(
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $name {
            value: loom::sync::atomic::$name,
            touched: loom::sync::atomic::AtomicU64,
        }

        #[allow(missing_docs, reason = "as in `core::sync::atomic`")]
        impl $name {
            pub fn new(value: $value) -> Self {
                Self { value: loom::sync::atomic::$name::new(value), touched: Default::default() }
            }

            /// The value, after an access that makes loom try another order.
            fn touch(&self) -> &loom::sync::atomic::$name {
                super::interrupts::point();
                self.touched.fetch_add(1, Ordering::Relaxed);
                &self.value
            }

            pub fn load(&self, order: Ordering) -> $value {
                behind_release(order);
                self.touch().load(ordered(order, Omitted::Acquire))
            }

            pub fn store(&self, value: $value, order: Ordering) {
                self.touch().swap(value, storing(order, Omitted::Release));
            }

            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                if omits(Omitted::AtomicSwap) {
                    let before = self.touch().load(Ordering::Relaxed);
                    self.value.store(value, Ordering::Relaxed);
                    return before;
                }
                self.touch().swap(value, storing(order, Omitted::Order))
            }

            pub fn fetch_add(&self, value: $value, order: Ordering) -> $value {
                if omits(Omitted::Additions) {
                    return 0;
                }
                let part = if order == Ordering::Release { Omitted::Release } else { Omitted::Order };
                self.touch().fetch_add(value, storing(order, part))
            }

            pub fn fetch_sub(&self, value: $value, order: Ordering) -> $value {
                self.touch().fetch_sub(value, storing(order, Omitted::Order))
            }

            pub fn fetch_and(&self, mask: $value, order: Ordering) -> $value {
                self.touch().fetch_and(mask, storing(order, Omitted::Order))
            }

            pub fn fetch_or(&self, bits: $value, order: Ordering) -> $value {
                let order = ordered(order, Omitted::Order);
                if omits(Omitted::AtomicSet) {
                    let before = self.touch().load(order);
                    self.touch().store(before | bits, Ordering::Relaxed);
                    return before;
                }
                stored(order);
                self.touch().fetch_or(bits, order)
            }

            pub fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                if omits(Omitted::Renewal) && current == new {
                    return Ok(current);
                }
                if omits(Omitted::AtomicExchange) {
                    let found = self.load(Ordering::Relaxed);
                    if found != current {
                        return Err(found);
                    }
                    self.store(new, success);
                    return Ok(found);
                }
                let [success, failure] = [success, failure].map(|order| ordered(order, Omitted::Order));
                let found = self.touch().compare_exchange(current, new, success, failure);
                if found.is_ok() {
                    stored(success);
                }
                found
            }

            pub fn fetch_update(
                &self,
                success: Ordering,
                failure: Ordering,
                mut change: impl FnMut($value) -> Option<$value>,
            ) -> Result<$value, $value> {
                let mut found = self.load(failure);
                while let Some(new) = change(found) {
                    match self.compare_exchange(found, new, success, failure) {
                        Ok(before) => return Ok(before),
                        Err(now) => found = now,
                    }
                }
                Err(found)
            }

            /// Not weak: to fail for no reason adds orders, and nothing to see.
            pub fn compare_exchange_weak(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                self.compare_exchange(current, new, success, failure)
            }
        }
    )* };
}

words! {
    /// [`loom::sync::atomic::AtomicU8`], touched before each access.
    AtomicU8: u8;
    /// [`loom::sync::atomic::AtomicU32`], touched before each access.
    AtomicU32: u32;
    /// [`loom::sync::atomic::AtomicU64`], touched before each access.
    AtomicU64: u64;
    /// [`loom::sync::atomic::AtomicUsize`], touched before each access.
    AtomicUsize: usize;
}

/// A word of a constant. Its first access makes it one of loom's: that is before another thread has it.
pub struct AtomicU16(u16, OnceCell<AtomicU32>);

// SAFETY: loom runs one thread at a time, and none other runs while the cell is filled.
unsafe impl Sync for AtomicU16 {}

#[allow(missing_docs, reason = "as in `core::sync::atomic`")]
impl AtomicU16 {
    pub const fn new(value: u16) -> Self {
        Self(value, OnceCell::new())
    }

    fn word(&self) -> &AtomicU32 {
        self.1.get_or_init(|| AtomicU32::new(self.0.into()))
    }

    pub fn load(&self, order: Ordering) -> u16 {
        self.word().load(order) as u16
    }

    pub fn swap(&self, value: u16, order: Ordering) -> u16 {
        self.word().swap(value.into(), order) as u16
    }

    pub fn compare_exchange(&self, now: u16, new: u16, success: Ordering, failure: Ordering) -> Result<u16, u16> {
        let result = self.word().compare_exchange(now.into(), new.into(), success, failure);
        result.map(|found| found as u16).map_err(|found| found as u16)
    }
}

/// A flag.
pub struct AtomicBool(AtomicU32);

#[allow(missing_docs, reason = "as in `core::sync::atomic`")]
impl AtomicBool {
    pub fn new(value: bool) -> Self {
        Self(AtomicU32::new(value.into()))
    }

    pub fn load(&self, order: Ordering) -> bool {
        self.0.load(order) != 0
    }

    pub fn store(&self, value: bool, order: Ordering) {
        self.0.store(value.into(), order);
    }
}

/// [`loom::sync::atomic::AtomicPtr`], touched before each access.
pub struct AtomicPtr<T> {
    value: loom::sync::atomic::AtomicPtr<T>,
    touched: loom::sync::atomic::AtomicU64,
}

impl<T> Default for AtomicPtr<T> {
    fn default() -> Self {
        Self { value: Default::default(), touched: Default::default() }
    }
}

#[allow(missing_docs, reason = "as in `core::sync::atomic`")]
impl<T> AtomicPtr<T> {
    fn touch(&self) -> &loom::sync::atomic::AtomicPtr<T> {
        self.touched.fetch_add(1, Ordering::Relaxed);
        &self.value
    }

    pub fn load(&self, order: Ordering) -> *mut T {
        self.touch().load(order)
    }

    pub fn store(&self, value: *mut T, order: Ordering) {
        self.touch().store(value, order);
    }
}
