//! Kernel objects with several owners.
//!
//! `kernel/loom` compiles this file on loom's atomics, with the pools.

#![allow(unsafe_code, reason = "reference counts of shared objects")]

use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::Deref;
use core::ptr::NonNull;

use super::OutOfMemory;
use super::pool::{Pool, PoolBox};
use crate::sync::atomic::{AtomicU64, Ordering};

/// An object of a pool, and how many owners it has.
pub struct Inner<T> {
    owners: AtomicU64,
    object: T,
}

/// One owner's share of an object. The object is dropped with the last one.
pub struct Counted<T>(NonNull<Inner<T>>);

// SAFETY: the owners share the object, and the last one drops it, wherever each of them is.
unsafe impl<T: Send + Sync> Send for Counted<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Counted<T> {}

impl<T> Counted<T> {
    /// Moves `object` into the pool, with one owner.
    ///
    /// # Errors
    /// [`OutOfMemory`]; `object` is dropped.
    #[inline]
    pub fn try_new(pool: &'static Pool<Inner<T>>, object: T) -> Result<Self, OutOfMemory> {
        Self::try_new_with(pool, || object)
    }

    /// Has `make` make an object in the pool, with one owner. No lock of the pool's is held during `make`.
    ///
    /// # Errors
    /// [`OutOfMemory`]; `make` is not called.
    #[inline]
    pub fn try_new_with(pool: &'static Pool<Inner<T>>, make: impl FnOnce() -> T) -> Result<Self, OutOfMemory> {
        let made = pool.try_new_with(|| Inner { owners: AtomicU64::new(1), object: make() })?;
        Ok(Self(made.into_raw()))
    }

    /// Whether it has no other owner now.
    pub fn is_alone(this: &Self) -> bool {
        // Acquire: what others did with the object comes before.
        // SAFETY: the object is there while an owner is counted.
        unsafe { this.0.as_ref() }.owners.load(Ordering::Acquire) == 1
    }

    /// The object, for its one owner; `None` where there are others.
    pub fn get_mut(this: &mut Self) -> Option<&mut T> {
        // Only an owner makes another, and this one is borrowed.
        // SAFETY: the object is there while an owner is counted, and no other owner has a reference.
        if Self::is_alone(this) { Some(&mut unsafe { this.0.as_mut() }.object) } else { None }
    }

    /// This owner's share as a pointer, for [`Self::from_raw`].
    pub fn into_raw(self) -> NonNull<()> {
        ManuallyDrop::new(self).0.cast()
    }

    /// # Safety
    /// `share` came from [`Self::into_raw`] of this type, and is used once.
    pub unsafe fn from_raw(share: NonNull<()>) -> Self {
        Self(share.cast())
    }

    /// Frees the object, for its last owner.
    #[inline(never)]
    fn free(&mut self) {
        // SAFETY: `try_new` made it from a box, and no owner is left.
        drop(unsafe { PoolBox::from_raw(self.0) });
    }

    /// Whether both are the same object.
    pub fn is(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Clone for Counted<T> {
    fn clone(&self) -> Self {
        // SAFETY: the object is there while an owner is counted. Relaxed: this owner is, so the count is not on its way
        // to 0. It cannot overflow: each owner takes memory.
        unsafe { self.0.as_ref() }.owners.fetch_add(1, Ordering::Relaxed);
        Self(self.0)
    }
}

impl<T> Deref for Counted<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the object is there while an owner is counted.
        unsafe { &self.0.as_ref().object }
    }
}

impl<T: fmt::Debug> fmt::Debug for Counted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        // SAFETY: the object is there while an owner is counted. Release: what this owner did with the object comes
        // before its end; acquire, by the last: it comes after what all did.
        if unsafe { self.0.as_ref() }.owners.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.free();
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the host has memory")]
mod tests {
    use std::boxed::Box;
    use std::rc::Rc;

    use super::Counted;
    use crate::mm::frame::tests::leaked;
    use crate::mm::pool::Pool;

    #[test]
    fn the_object_goes_with_its_last_owner() {
        let pool = Box::leak(Box::new(Pool::new(leaked(2))));
        let witness = Rc::new(());
        let first = Counted::try_new(pool, witness.clone()).unwrap();
        let second = first.clone();
        drop(first);
        assert!(Rc::ptr_eq(&second, &witness));
        assert_eq!((Rc::strong_count(&witness), pool.stats().objects), (2, 1));
        drop(second);
        assert_eq!((Rc::strong_count(&witness), pool.stats().objects), (1, 0));
    }
}
