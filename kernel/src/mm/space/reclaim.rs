//! Pages of files that are given back where memory is short.
//!
//! A page of a file of the initrd holds what the initrd holds, as nothing may write to it: its frame can be freed at
//! any time, and the next access has another one. Such pages are unmapped by their object, not by a space: a kernel
//! thread does it, which has none, and so does a program that finds no memory.
//!
//! ```text
//!     choose    a few pages of the next file, of which none was used since the last pass and none is locked
//!     take      out of the object: a fault that has found them before sees that they are not current
//!     unmap     in each space that maps them: the entry becomes a marker; invalidate, without waiting
//!     flush     wait, once for all
//!     free
//! ```
//!
//! Its locks are [`RECLAIM`](crate::sync::rank::RECLAIM) and [`RECLAIM_FILES`](crate::sync::rank::RECLAIM_FILES).

use granule_arch::descriptor::{Descriptor, Markers};
use granule_pgtable::{Mmu, PageRange, Stores};

use super::address_space::Space;
use super::entry::{EntryState, state};
use super::gather::StaleRange;
use super::shmem::{Hand, next_identity};
use super::spaces::Spaces;
use crate::lab;
use crate::mm::kernel::Machine;
use crate::mm::tlb::user::TlbBatch;
use crate::sched::relax;
use crate::smp::Cpu;

/// Pages that are invalidated together.
const TOGETHER: u64 = 32;

/// The treatment of pages that were used since the last pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Used {
    /// They become old: the next pass takes those that are not used until then.
    Age,
    /// They stay as they are.
    Keep,
}

impl Spaces {
    /// One pass over the pages of all files, which ends early where programs have room for `room` more or `is_killed`
    /// returns true: frees those that are not locked and were not used since they became old; returns how many. Between
    /// two passes that [age](Used::Age) pages there is time to use them. Sleeps: no lock is held, no fault is served.
    /// `cpu` is the CPU that this runs on.
    #[cold]
    #[inline(never)]
    pub fn reclaim(&self, cpu: &Cpu, room: usize, used: Used, is_killed: &dyn Fn() -> bool) -> usize {
        let mut hand = self.hand.write();
        // Objects that are created during the pass are for the next one.
        let (start, end) = (*hand, Hand { object: next_identity(), page: 0 });
        let (mut freed, mut has_wrapped) = (0, false);
        while !self.frames.has_room_for(room) && !is_killed() {
            let files = self.files.read();
            let found = files.from(&hand).filter(|object| object.identity() < end.object);
            if found.is_none() && !has_wrapped {
                (*hand, has_wrapped) = (Hand::START, true);
                continue;
            }
            let Some(object) = found else { break };
            if object.identity() != hand.object {
                *hand = Hand { object: object.identity(), page: 0 };
            }
            if has_wrapped && *hand >= start {
                break;
            }
            match object.next_filled(hand.page) {
                None => *hand = Hand { object: hand.object + 1, page: 0 },
                Some(page) => {
                    let first = page / TOGETHER * TOGETHER;
                    hand.page = first + TOGETHER;
                    let some = object.reclaim(cpu, first..hand.page, used);
                    if some != 0 {
                        // The frames in this CPU's magazine are not there for programs on other CPUs.
                        self.frames.drain_cpu(cpu);
                    }
                    freed += some;
                }
            }
            drop(files);
            relax();
        }
        freed
    }
}

impl Space {
    /// Whether one of the pages of `range` that are an object's was used since it became old; with [`Used::Age`] they
    /// become old, and `batch` invalidates them, so that the next use is seen.
    pub(super) fn was_used(&self, batch: &mut TlbBatch<'_, Machine>, range: PageRange, used: Used) -> bool {
        let mut was_used = false;
        self.change_in_batch(batch, range, |entry| {
            let is_used = entry.is_valid() && entry.is_young();
            was_used |= is_used;
            (is_used && used == Used::Age).then(|| entry.old())
        });
        was_used
    }

    /// Takes the pages of `range` that are an object's out of their entries, which hold the marker then, and has
    /// `batch` invalidate them. The object, or what has taken them from it, has another reference to each.
    pub(super) fn unmap_in_batch(&self, batch: &mut TlbBatch<'_, Machine>, range: PageRange) {
        self.change_in_batch(batch, range, |entry| {
            // The write-protect marker is kept, after the invalidation too.
            let is_kept = entry.is_uffd_wp() && !lab::is_on!(NO_MARKER_ON_RECLAIM);
            Some(Descriptor::from(if is_kept { Markers::STALE.and(Markers::UFFD_WP) } else { Markers::STALE }))
        });
    }

    /// Stores what `change` returns for the entries of `range` whose pages are an object's, and has `batch` invalidate
    /// what changes. An entry that becomes a marker drops its reference.
    fn change_in_batch(
        &self,
        batch: &mut TlbBatch<'_, Machine>,
        range: PageRange,
        mut change: impl FnMut(Descriptor) -> Option<Descriptor>,
    ) {
        let mmu = self.mmu();
        // No file of the initrd has blocks.
        self.page_tables().walk_cells(range).for_each(|found| {
            let _locked = self.lock_table(found.table);
            self.unfold_ends(&found);
            let mut stale = StaleRange::NONE;
            for (index, cell) in found.cells.iter().enumerate() {
                let entry = mmu.load(cell);
                let is_page = matches!(state(entry), EntryState::Page | EntryState::Inaccessible);
                if !is_page || !self.is_of_object(entry) {
                    continue;
                }
                let Some(new) = change(entry) else { continue };
                // Clean, and not writable: the access flag that the hardware may set concurrently does not matter.
                mmu.store(cell, new);
                stale.note(found.address(index), found.address(index + 1));
                if !new.is_present() {
                    let was_last = self.common.record(entry.address()).put();
                    debug_assert!(!was_last, "the object's reference is left");
                }
            }
            if let Some(stale) = stale.invalidation(None) {
                batch.add(self.tlb(), &stale);
            }
        });
    }
}
