//! The guarded heap's knowledge of an address in its pool, for the report of an access that faulted there.
//!
//! It is read when something is broken. The other CPUs are stopped by then, so that the lock of the records is free,
//! unless this CPU holds it: it is tried, and without it nothing is known.

use granule_arch::addr::VirtAddr;

use super::super::report::Place;
use super::{GuardedHeap, ObjectState, PAGE};

/// The object that an access was probably meant for.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub(super) what: &'static str,
    pub(super) number: u16,
    pub(super) start: VirtAddr,
    pub(super) bytes: u64,
    pub(super) place: Place,
    freed: bool,
}

impl Found {
    /// The least is the object that is meant: one in use before one that was, then the nearer.
    fn rank(&self) -> (bool, u64) {
        match self.place {
            Place::Inside(_) => (self.freed, 0),
            Place::Before(bytes) | Place::After(bytes) => (self.freed, bytes),
        }
    }
}

impl GuardedHeap {
    /// The object that an access to `address` concerns: the one in its page; in a guard page, one of those beside it.
    /// `None` where nothing was ever allocated there.
    pub(super) fn find(&self, address: VirtAddr) -> Option<Found> {
        let pool = self.pool.get().filter(|pool| pool.contains(address))?;
        let objects = self.objects.try_lock()?;
        let own = pool.number_of(address);
        let above = ((address - pool.pages) / PAGE / 2) as u16;
        let mut nearest: Option<Found> = None;
        for number in own.map_or([above.wrapping_sub(1), above], |own| [own; 2]) {
            let object = objects.all.get(usize::from(number)).filter(|object| object.state != ObjectState::Unused);
            let Some(object) = object else { continue };
            let freed = object.state == ObjectState::Freed;
            let what = match own {
                None => "out-of-bounds",
                Some(_) if freed => "use-after-free",
                // When the access faulted its page was not this object's yet.
                Some(_) => "invalid access",
            };
            let (start, bytes) = (pool.page(number) + u64::from(object.offset), object.bytes.into());
            let found = Found { what, number, start, bytes, place: Place::of(address, start, bytes), freed };
            if nearest.is_none_or(|nearest| found.rank() < nearest.rank()) {
                nearest = Some(found);
            }
        }
        nearest
    }
}

#[cfg(target_os = "none")]
pub(super) use target::{bad_free, written_after_free};
#[cfg(target_os = "none")]
pub(crate) use target::{describe, what_happened};

#[cfg(target_os = "none")]
mod target {
    use core::fmt::{self, Write};

    use granule_arch::addr::VirtAddr;

    use super::super::super::report::end;
    use super::super::{BadGuardedFree, WrittenAfterFree, guarded_heap};
    use super::{Found, Place};

    /// The kind of bug of a translation fault at `address`; `None` where that is not in the guarded heap.
    pub(crate) fn what_happened(address: VirtAddr) -> Option<&'static str> {
        let heap = guarded_heap();
        heap.contains(address.as_ptr()).then(|| heap.find(address).map_or("invalid access", |found| found.what))
    }

    /// The object that an access to `address`, in the guarded heap, was meant for, and the calls that allocated and freed
    /// it.
    pub(crate) fn describe(out: &mut dyn Write, address: VirtAddr) -> fmt::Result {
        let heap = guarded_heap();
        let Some(found) = heap.find(address) else {
            return writeln!(out, "guarded heap: no object is known at {address}");
        };
        let Found { number, start, bytes, place, freed, .. } = found;
        let (distance, side) = match place {
            Place::Inside(distance) => (distance, "into"),
            Place::After(distance) => (distance, "behind"),
            Place::Before(distance) => (distance, "before"),
        };
        let state = if freed { "freed" } else { "in use" };
        writeln!(out, "guarded heap: {distance} bytes {side} object {number} at {start}, {bytes} bytes, {state}")?;
        let objects = heap.objects.try_lock();
        let Some(object) = objects.as_ref().and_then(|objects| objects.all.get(usize::from(number))) else {
            return Ok(());
        };
        write!(out, "  allocated by:\n{}", object.allocated)?;
        if freed {
            write!(out, "  freed by:\n{}", object.freed)?;
        }
        Ok(())
    }

    /// Reports a bad free, and ends the kernel.
    #[cold]
    #[inline(never)]
    pub(in super::super) fn bad_free(bad: BadGuardedFree) -> ! {
        let (BadGuardedFree::NotInUse(address, _) | BadGuardedFree::Overwritten(address)) = bad;
        end(format_args!("guarded heap: {bad}"), address, describe)
    }

    /// Reports a write after a free, with the calls of the last use, and ends the kernel. The backtrace is that of the
    /// allocation that finds it.
    #[cold]
    #[inline(never)]
    pub(in super::super) fn written_after_free(written: WrittenAfterFree) -> ! {
        end(format_args!("guarded heap: {written}"), written.0, describe)
    }
}
