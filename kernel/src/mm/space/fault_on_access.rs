//! Fault on access: entries that wait until storage for the tags of their pages is reserved.
//!
//! `mprotect(PROT_MTE)` reserves nothing and copies nothing: the entry of a page whose tags have no
//! [storage](crate::mm::tag_storage) becomes present-invalid with PROT_NONE and TAG_STORAGE_NONE (bits 58 and 60), and the
//! first access reserves it. So does each entry that would check tags and is about to be stored for such a page
//! ([`Space::prepared`]): callers go by what was stored.
//!
//! ```text
//!     fault ─► lock, compare ─► block reserved, or unused? ── yes ─► make valid                      (one hold)
//!                                       │ no
//!     lock, compare, pin ─► unlock ─► reserve: what lies there migrates ─► lock, compare ─► make valid ─► unpin
//!                                       │ fails
//!     once more ─► replay ─► after REPLAYS of this thread on this page: migrate the page to a frame that has storage
//!                                       │ held                          │ none
//!                                     wait, killable                  out of memory
//! ```
//! **The page is pinned until the second comparison is done.** Frames come back last in, first out: without the pin
//! another thread discards the page, faults, and gets the same frame at the same address. Its entry waits like the
//! first one, bit for bit, though the frame has lost its storage; the first thread would make it valid.
//!
//! **An entry that waits is never writable.** Whether it becomes so is decided under the hold under which it is stored
//! (in Linux's RFC v2 before the storage is reserved): the area permits stores, and is shared or the frame is this
//! entry's alone, and userfaultfd does not protect it. A frame that a fork shares stays read-only here, and is copied by the next
//! fault. Nothing was valid, so no event is due.
//!
//! Blocks and contiguous groups wait at their own level, and are split where storage cannot be reserved for them whole.

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection};
use granule_pgtable::{Mmu, Stores};

use super::access::{Access, allows};
use super::address_space::Space;
use super::area::tree::Areas;
use super::cow::Reuse;
use super::denied::Denied;
use super::entry::{attributes, read_only_attributes};
use super::error::FaultError;
use super::look::{Glimpse, LockedEntry};
use super::migrate::Unmovable;
use super::outcome::{AllowedFault, FaultOutcome};
use super::spaces::Spaces;
use super::userfault::fault::{FirstPage, page_of_object};
use crate::lab;
use crate::mm::tag_storage::{Failure, Unreserved};
use crate::sched::{self, note_shortage, relax, runs_program};
use crate::smp::Cpu;

/// Attempts of one fault, each with all locks released before it.
const ATTEMPTS: usize = 2;
/// Replays of a fault, by one thread on one page, before the page itself migrates.
pub(super) const REPLAYS: u32 = 8;
/// Frames that are tried for one whose storage is at hand: more than one block of the usual size serves.
const TARGETS: usize = 48;
/// Of these, frames whose storage is emptied for it.
const EMPTIED: usize = 4;

/// The outcome of an attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// The entry is valid, or was changed by another CPU: the retry decides.
    Served,
    /// Storage cannot be reserved for now.
    Failed,
    /// The page lies in tag storage itself, in this frame.
    InTagStorage(PhysAddr),
    /// The entry does not wait: a copy of its page needs storage.
    Copy,
}

/// The page by which replays are counted in the running thread. A thread that serves devices meets faults of several
/// pages in turn: it counts them together.
fn counted_page(cpu: &Cpu, page: VirtAddr) -> VirtAddr {
    if runs_program(cpu) { page } else { VirtAddr(0) }
}

impl AllowedFault<'_> {
    /// Serves a fault on an entry that waits, if that takes no migration.
    #[cold]
    #[inline(never)]
    pub(super) fn replay_later(self, seen: LockedEntry<'_>) -> FaultOutcome {
        let (space, entry) = (self.space, seen.descriptor());
        let Some(storage) = space.common.frames.tag_storage() else {
            // Nothing makes such entries.
            return FaultOutcome::Failed(Denied::by_entry(seen, FaultError::Unusable));
        };
        let record = space.common.record(entry.address());
        if self.area.protection().contains(Protection::TAGGED) {
            if storage.try_reserve(entry.address(), record).is_err() {
                return FaultOutcome::TagStorage;
            }
            space.common.tag_reserved(entry.address(), record);
        } else {
            crate::log::warn!("the entry of {} waits for tag storage in an area without tags", self.page);
        }
        let new = self.accessible(entry, 0);
        // It has its tags.
        let new = if new.is_user_executable() { space.prepared(new) } else { new };
        space.mmu().store(self.cell, new);
        storage.note_served(sched::take_replays(self.cpu, || counted_page(self.cpu, self.page)));
        FaultOutcome::Served
    }

    /// The valid form of `entry`, which waits: young, and writable where only this entry and `pins` others hold the
    /// frame, or all see the stores. The table's lock is held until that is stored, and the caller has the frame
    /// [prepared](Space::prepared) for it.
    #[inline(always)]
    fn accessible(&self, entry: Descriptor, pins: u32) -> Descriptor {
        debug_assert!(!entry.is_contiguous(), "a part of a group at {} becomes valid", self.page);
        let (area, protection) = (self.area, self.area.protection());
        let is_own = || !entry.is_special() && self.space.common.record(entry.address()).references() == 1 + pins;
        let is_written = protection.contains(Protection::WRITE) && (area.is_shared() || is_own());
        let new = entry.accessed(if is_written { attributes(protection) } else { read_only_attributes(protection) });
        if self.access == Access::Write && new.may_be_written() { new.dirty() } else { new }
    }
}

impl Space {
    /// The rest of a fault that found no tag storage at hand for `page`. Sleeps; no lock is held.
    ///
    /// # Errors
    /// [`FaultError::OutOfMemory`]: there is no frame with storage that the page could move to.
    #[cold]
    #[inline(never)]
    pub(super) fn fault_on_access(&self, cpu: &Cpu, page: VirtAddr, access: Access) -> Result<(), FaultError> {
        for _ in 0..ATTEMPTS {
            let common = self.common;
            match self.reserve_and_map(cpu, page, access) {
                Attempt::Served => return Ok(()),
                Attempt::InTagStorage(frame) => match common.move_to_tag_storage(cpu, frame) {
                    Ok(()) => {
                        self.note_served(cpu, page);
                        return Ok(());
                    }
                    Err(_) => relax(),
                },
                Attempt::Copy => match common.frame_with_tag_storage(cpu) {
                    Some(frame) => return self.copy_with_tag_storage(cpu, page, access, frame),
                    None => relax(),
                },
                Attempt::Failed => relax(),
            }
        }
        self.replay(cpu, page)
    }

    /// The fault at `page`, if the area there, one of `areas`, permits `access`, and the page has a table.
    #[inline]
    pub(super) fn allowed_fault<'a>(
        &'a self,
        cpu: &'a Cpu,
        areas: &'a Areas,
        page: VirtAddr,
        access: Access,
    ) -> Option<AllowedFault<'a>> {
        let area = areas.find(page).filter(|area| allows(area.protection(), access))?;
        let (table, cell) = self.page_tables().cell(page)?;
        Some(AllowedFault { space: self, cpu, area, page, table, cell, access })
    }

    /// Gives `page` a copy in `new`, which has tag storage, if a store to it needs one still.
    #[inline(never)]
    fn copy_with_tag_storage(
        &self,
        cpu: &Cpu,
        page: VirtAddr,
        access: Access,
        new: PhysAddr,
    ) -> Result<(), FaultError> {
        let outcome = {
            let areas = self.areas.read(page);
            self.allowed_fault(cpu, &areas, page, access).and_then(|fault| self.copy_in(fault, new))
        };
        match outcome {
            // No copy is needed: the access is made again.
            None => self.common.unpin(cpu, new),
            Some(FaultOutcome::Upgraded) => self.notifiers.upgraded(page, PAGE),
            Some(FaultOutcome::OfBlock(what)) => self.after_fault_of_block(cpu, page, what),
            Some(FaultOutcome::Userfault) => return Err(FaultError::Userfault),
            Some(FaultOutcome::Failed(denied)) => return Err(denied.error()),
            Some(_) => {}
        }
        self.note_served(cpu, page);
        Ok(())
    }

    /// As [`Self::copy_with_tag_storage`], for a fault; `None` where `new` stays the caller's.
    fn copy_in(&self, fault: AllowedFault<'_>, new: PhysAddr) -> Option<FaultOutcome> {
        let (area, entry) = (fault.area, Glimpse::at(self.mmu(), fault.cell));
        if area.is_shared() {
            return None;
        }
        if entry.may_be_filled() {
            let object = area.object().filter(|object| object.registers().is_none())?;
            let Ok(FirstPage::Found(found)) = page_of_object(fault.cpu, area, object, fault.page) else { return None };
            return Some(fault.map_copy_in(object, &found, new));
        }
        if !entry.may_be_copied() {
            return None;
        }
        match fault.reuse() {
            Reuse::Copy(entry) => Some(fault.copy_to(entry, new, true)),
            Reuse::Done(outcome) => {
                self.common.unpin(fault.cpu, new);
                Some(outcome)
            }
        }
    }

    /// One attempt to reserve storage for the page, and to make its entry valid.
    #[inline(never)]
    fn reserve_and_map(&self, cpu: &Cpu, page: VirtAddr, access: Access) -> Attempt {
        let (common, mmu) = (self.common, self.mmu());
        let Some(storage) = common.frames.tag_storage() else { return Attempt::Served };
        let entry = {
            let areas = self.areas.read(page);
            let Some(fault) = self.allowed_fault(cpu, &areas, page, access) else { return Attempt::Served };
            let locked = self.lock_table(fault.table);
            let seen = locked.entry(mmu, fault.cell);
            let entry = seen.descriptor();
            if !entry.is_fault_on_access() {
                let area = fault.area;
                // Of an object, before the first store too.
                let is_there = entry.is_valid() || seen.fillable().is_some() && area.object().is_some();
                let is_copied = access == Access::Write && is_there && !entry.may_be_written() && !area.is_shared();
                return if is_copied { Attempt::Copy } else { Attempt::Served };
            }
            if entry.is_contiguous() {
                // A group was made concurrently: it becomes valid as a whole.
                return Attempt::Served;
            }
            common.record(entry.address()).share();
            entry
        };
        let (frame, record) = (entry.address(), common.record(entry.address()));
        let mut is_pinned = true;
        let attempt = if common.frames.is_isolated(frame) {
            // It will have moved when the access is made again.
            storage.note_failure(Failure::Isolated);
            Attempt::Failed
        } else {
            match storage.reserve(common, cpu, frame, record) {
                Ok(()) => {
                    if lab::is_on!(EARLY_UNPIN) {
                        common.unpin(cpu, frame);
                        is_pinned = false;
                    }
                    is_pinned &= !self.map_reserved(cpu, page, access, entry, u32::from(is_pinned));
                    Attempt::Served
                }
                Err(Unreserved::IsTagStorage) => Attempt::InTagStorage(frame),
                Err(_) => Attempt::Failed,
            }
        };
        if is_pinned {
            common.unpin(cpu, frame);
        }
        attempt
    }

    /// Makes the entry of `page` valid, if it is `entry` still; returns whether it has the caller's hold.
    #[inline(never)]
    fn map_reserved(&self, cpu: &Cpu, page: VirtAddr, access: Access, entry: Descriptor, pins: u32) -> bool {
        let mmu = self.mmu();
        let areas = self.areas.read(page);
        let Some(fault) = self.allowed_fault(cpu, &areas, page, access) else { return false };
        let _locked = self.lock_table(fault.table);
        let now = mmu.load(fault.cell);
        if now != entry && !(lab::is_on!(SKIP_RECHECK) && now == Descriptor::EMPTY) {
            return false;
        }
        let new = fault.accessible(entry, pins);
        // `prepared` would find that the storage is gone.
        mmu.store(fault.cell, if lab::is_on!(EARLY_UNPIN) { new } else { self.prepared(new) });
        self.note_served(cpu, page);
        now != entry
    }

    /// Ends the count of the replays of `page`: its fault was served.
    #[inline(never)]
    fn note_served(&self, cpu: &Cpu, page: VirtAddr) {
        if let Some(storage) = self.common.frames.tag_storage() {
            storage.note_served(sched::take_replays(cpu, || counted_page(cpu, page)));
        }
    }

    /// The fault is replayed: the access is made again, with no lock held, and a thread that is killed ends. One that was
    /// replayed too often has its page moved.
    #[inline(never)]
    fn replay(&self, cpu: &Cpu, page: VirtAddr) -> Result<(), FaultError> {
        let common = self.common;
        let replays = sched::note_replay(cpu, counted_page(cpu, page));
        if replays <= REPLAYS || lab::is_on!(NO_REPLAY_LIMIT) {
            relax();
            return Ok(());
        }
        let frame = {
            let _areas = self.areas.read(page);
            let cell = self.page_tables().cell(page);
            cell.map(|(_, cell)| self.mmu().load(cell)).filter(|entry| entry.is_present() && !entry.is_special())
        };
        let Some(frame) = frame.map(Descriptor::address) else { return Ok(()) };
        match common.move_to_tag_storage(cpu, frame) {
            Ok(()) => {
                // Its entry is valid: no fault waits for it any more.
                self.note_served(cpu, page);
                Ok(())
            }
            Err(Unmovable::Free) => Ok(()),
            Err(Unmovable::OutOfMemory) => {
                note_shortage(cpu, 1);
                Err(FaultError::OutOfMemory)
            }
            Err(_) => {
                // A device's fault does not wait: its thread serves others too.
                if runs_program(cpu) {
                    sched::sleep_briefly();
                }
                Ok(())
            }
        }
    }
}

impl Spaces {
    /// Drops the hold of a fault.
    #[inline(never)]
    fn unpin(&self, cpu: &Cpu, frame: PhysAddr) {
        self.drop_frame(cpu, frame);
    }

    /// Moves the page in `frame` to another frame that has tag storage. Sleeps: no lock is held.
    ///
    /// # Errors
    /// [`Unmovable`]; the page is where it was.
    fn move_to_tag_storage(&self, cpu: &Cpu, frame: PhysAddr) -> Result<(), Unmovable> {
        let Some(storage) = self.frames.tag_storage() else { return Err(Unmovable::NotFound) };
        let found = self.frame_with_tag_storage(cpu);
        // Without one, whether the page can move decides whether the fault waits or memory is out.
        let Some(to) = found.or_else(|| self.movable_frame(cpu)) else {
            storage.note_failure(Failure::OutOfMemory);
            return Err(Unmovable::OutOfMemory);
        };
        if let Err(error) = self.migrate_page(cpu, frame, to) {
            storage.note_failure(Failure::Pinned);
            self.unpin(cpu, to);
            return Err(error);
        }
        storage.note_moved_page();
        if found.is_none() {
            storage.note_failure(Failure::OutOfMemory);
            return Err(Unmovable::OutOfMemory);
        }
        Ok(())
    }

    /// A new frame that has tag storage. Sleeps: no lock is held.
    fn frame_with_tag_storage(&self, cpu: &Cpu) -> Option<PhysAddr> {
        let storage = self.frames.tag_storage()?;
        let mut unfit = heapless::Vec::<PhysAddr, TARGETS>::new();
        let mut found = None;
        while let Some(frame) = self.new_frame(cpu, unfit.len()) {
            if storage.try_reserve(frame, self.record(frame)).is_ok() {
                found = Some(frame);
                break;
            }
            if unfit.push(frame).is_err() {
                self.unpin(cpu, frame);
                break;
            }
        }
        let mut tried = 0;
        // Not by value: the stack would have them twice.
        for &frame in &unfit {
            tried += 1;
            let is_tried = found.is_none() && tried <= EMPTIED;
            if is_tried && storage.reserve(self, cpu, frame, self.record(frame)).is_ok() {
                found = Some(frame);
            } else {
                self.unpin(cpu, frame);
            }
        }
        found
    }

    /// The next of several frames. Neighbours share their storage, and frames for what cannot move are no neighbours of
    /// those that can.
    fn new_frame(&self, cpu: &Cpu, number: usize) -> Option<PhysAddr> {
        let other = if number.is_multiple_of(2) { None } else { self.unmovable_frame(cpu) };
        other.or_else(|| self.movable_frame(cpu))
    }

    #[inline(never)]
    fn unmovable_frame(&self, cpu: &Cpu) -> Option<PhysAddr> {
        self.frames.alloc(cpu).ok()
    }

    #[inline(never)]
    fn movable_frame(&self, cpu: &Cpu) -> Option<PhysAddr> {
        self.frames.alloc_movable(cpu).ok()
    }

    /// Moves what lies in `frame`, tag storage that is lent, to another frame. Sleeps: no lock is held.
    ///
    /// # Errors
    /// [`Unmovable`]; it is where it was, or gone: [`Unmovable::Free`].
    pub(in crate::mm) fn migrate_out(&self, cpu: &Cpu, frame: PhysAddr) -> Result<(), Unmovable> {
        let to = self.movable_frame(cpu).ok_or(Unmovable::OutOfMemory)?;
        // With any number of entries: a page that lies in tag storage is a guest there.
        self.migrate_shared_page(cpu, frame, to, u32::MAX).inspect_err(|_| self.unpin(cpu, to))
    }
}
