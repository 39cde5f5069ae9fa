//! Which page is on its way to another frame, and what waits for it.
//!
//! One page is at a time. Before an entry becomes a migration entry its family is marked, and the mark goes when no entry is
//! one any more. A call that copies or moves entries locks the areas and then looks at the mark:
//!
//! ```text
//!     migration                              fork, mremap
//!     mark the family                        lock all areas
//!     lock the areas of a space (read)       look at the mark
//!       make its entry a migration entry       marked: unlock, wait for the page, lock again
//! ```
//! If the migration has locked the areas before, the mark is seen. Else it finds the entries as they are then, of a child
//! too: that joins the family before the areas are locked, and comes after its parent there.
//!
//! `kernel/loom` compiles this file, with the lists of families, on loom's atomics and locks.

use super::address_space::Space;
use super::family::{Families, FamilyId, SpaceList};
use crate::sched::{ReadGuard, RwSem, WriteGuard, relax};
use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::rank;

/// The page that is on its way, if there is one.
pub(super) struct Migrations {
    one: RwSem<()>,
    /// Locked for reading while a pager's page of an object comes; not together with `one`.
    arrivals: RwSem<()>,
    /// The family of its spaces, or [`NO_FAMILY`].
    family: AtomicU32,
}

/// No family's number.
const NO_FAMILY: u32 = 0;
/// Spaces that are looked at without a scheduling point.
const SPACES: usize = 32;

impl Migrations {
    /// None.
    pub(super) fn new() -> Self {
        let [one, arrivals] = [(); 2].map(|()| RwSem::new(rank::MIGRATION, ()));
        Self { one, arrivals, family: AtomicU32::new(NO_FAMILY) }
    }

    /// Waits until nothing is on its way, and keeps others from beginning.
    pub(super) fn begin(&self) -> WriteGuard<'_, ()> {
        self.one.write()
    }

    /// Has faults that find a page that a pager brings to an object wait while the guard is there. Migrations do not.
    pub(super) fn arrive(&self) -> ReadGuard<'_, ()> {
        self.arrivals.read()
    }

    /// Waits until the page that is on its way has arrived. Sleeps; no lock is held.
    pub(super) fn wait(&self) {
        drop(self.one.read());
        drop(self.arrivals.write());
    }

    /// The spaces of `family`, whose faults and forks wait for [`Self::begin`]'s guard while the result is there.
    pub(super) fn mark<'a>(&'a self, family: FamilyId, families: &'a Families) -> MigratingFamily<'a> {
        self.family.store(family.number(), Ordering::Relaxed);
        MigratingFamily { mark: &self.family, family, spaces: families.list(family).read() }
    }

    /// Whether an entry of `family` may be a migration entry. The lock of its table is held, or all areas of its space are.
    #[inline(always)]
    pub(super) fn are_of(&self, family: FamilyId) -> bool {
        // Relaxed: set before an entry becomes one, and cleared when none is it any more, each under both locks.
        self.family.load(Ordering::Relaxed) == family.number()
    }

    /// Acquires the areas of a space of `family` by `lock`, for a change that moves or copies entries: none of them is a
    /// migration entry, or becomes one.
    #[inline(always)]
    pub(super) fn lock_at_rest<G>(&self, family: FamilyId, lock: impl Fn() -> G) -> G {
        let areas = lock();
        // A migration that has made an entry has dropped the lock of the areas since; one that has not, waits for it.
        if self.are_of(family) {
            drop(areas);
            return self.lock_behind(lock);
        }
        areas
    }

    #[cold]
    #[inline(never)]
    fn lock_behind<G>(&self, lock: impl Fn() -> G) -> G {
        // No page is on its way while this is held, and it comes before the areas in what migrates, too.
        let _one = self.one.read();
        lock()
    }
}

/// The spaces of a family, of which a page is on its way.
pub(super) struct MigratingFamily<'a> {
    mark: &'a AtomicU32,
    family: FamilyId,
    spaces: ReadGuard<'a, SpaceList>,
}

impl MigratingFamily<'_> {
    /// Has `work` look at each space; how many times it returned true.
    pub(super) fn count(&self, work: &dyn Fn(&Space) -> bool) -> u32 {
        let mut count = 0;
        for (index, space) in self.spaces.iter().enumerate() {
            count += u32::from(space.family == self.family && work(space));
            if index % SPACES == SPACES - 1 {
                relax();
            }
        }
        count
    }
}

impl Drop for MigratingFamily<'_> {
    fn drop(&mut self) {
        // Release: what finds none later finds the references that it had given back.
        self.mark.store(NO_FAMILY, Ordering::Release);
    }
}
