//! A fault: which area, which page, and what the entry needs.
//!
//! ```text
//! no entry       read   the page of zeros          write   a new page of zeros        object   the object's page
//! read-only      write  copied, or reused where it is not shared (`cow`)
//! old, clean     access flag and dirt by software, where the hardware has not set them
//! migration      waits until the page has arrived, and the access is tried again (`migrate`)
//! waits          storage for the tags of the page is reserved, and the entry becomes valid (`fault_on_access`)
//! registered     a pager is asked for what is missing, minor, or write-protected (`userfault`)
//! marker         a page is mapped, and stays write-protected (`userfault`)
//! fine           the TLB was stale: this CPU's entry goes, and the access is tried again
//! ```
//! [`handle_fault`] does not depend on the current program: faults of devices and accesses of the kernel use it too. It
//! holds the areas' lock for reading, so other faults, discards, migration and walks by a reverse map can change what
//! it has found. It allocates first, then reads the entry again under the lock of its table; so it does before it fails
//! ([`Denied`]).

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Markers, Protection};
use granule_pgtable::{EnsureError, Mmu, Stores};

use super::access::{Access, allows};
use super::address_space::Space;
use super::area::tree::Areas;
use super::area::{Area, AreaFlags};
use super::cells::EntryCell;
use super::cow::Reuse;
use super::denied::Denied;
use super::entry::{
    EntryState, attributes, is_page, read_only_attributes, rest_of_stale, set_access_flags, state, written,
};
use super::error::FaultError;
use super::look::{Fillable, Glimpse, LockedEntry};
use super::outcome::{AllowedFault, FaultOutcome};
use super::parts::Divisible;
use super::shmem::pages::{Found, order};
use super::shmem::{NoPage, Object};
use super::spaces::Spaces;
use super::userfault::fault::{FirstPage, page_of_object};
use crate::lab;
use crate::mm::OutOfMemory;
use crate::mm::kernel::Machine;
use crate::mm::tlb::user::Leaf;
use crate::sched::BriefGuard;
use crate::smp::Cpu;

impl From<NoPage> for FaultError {
    fn from(error: NoPage) -> Self {
        match error {
            NoPage::BehindTheEnd | NoPage::NoRoom => Self::Unusable,
            NoPage::OutOfMemory => Self::OutOfMemory,
        }
    }
}

/// Why the first fault in what a table translates gets no page.
enum FirstFault {
    /// It cannot be served.
    Failed(FaultError),
    /// Another CPU has mapped a block concurrently: the retry decides.
    Block,
}

impl From<OutOfMemory> for FirstFault {
    fn from(error: OutOfMemory) -> Self {
        Self::Failed(error.into())
    }
}

impl From<NoPage> for FirstFault {
    fn from(error: NoPage) -> Self {
        Self::Failed(error.into())
    }
}

impl From<EnsureError> for FirstFault {
    fn from(error: EnsureError) -> Self {
        match error {
            EnsureError::OutOfTables => Self::Failed(FaultError::OutOfMemory),
            EnsureError::Block => Self::Block,
        }
    }
}

/// Serves a fault of `access` at `address`, or returns why it cannot be served. On success the access is retried. It
/// may fault again, where another CPU was faster or the hardware needs two steps.
///
/// Sleeps: not from interrupts. `cpu` is the CPU that this runs on.
///
/// # Errors
/// [`FaultError`]; nothing was changed.
#[inline]
pub fn handle_fault(space: &Space, cpu: &Cpu, address: VirtAddr, access: Access) -> Result<(), FaultError> {
    let page = address.align_down(PAGE);
    match serve(space, cpu, page, access) {
        FaultOutcome::Served => Ok(()),
        FaultOutcome::Upgraded => {
            // No lock is held: a subscriber may sleep, or walk the tables. By now the page may have changed, or be
            // unmapped.
            if !lab::is_on!(NOTIFY_BEFORE_UNLOCK) {
                space.notifiers.upgraded(page, PAGE);
            }
            Ok(())
        }
        FaultOutcome::Migrating => {
            space.common.wait_for_migration();
            Ok(())
        }
        FaultOutcome::OfBlock(what) => {
            space.after_fault_of_block(cpu, page, what);
            Ok(())
        }
        FaultOutcome::TagStorage => space.fault_on_access(cpu, page, access),
        FaultOutcome::Marker => space.fault_at_marker(cpu, page, access),
        FaultOutcome::Userfault => Err(FaultError::Userfault),
        FaultOutcome::New => space.bring_new(cpu, page),
        FaultOutcome::Failed(denied) => Err(denied.error()),
    }
}

#[inline(always)]
pub(super) fn serve(space: &Space, cpu: &Cpu, page: VirtAddr, access: Access) -> FaultOutcome {
    let areas = space.areas_briefly(cpu, page);
    let Some(area) = areas.find(page) else { return find_nothing(areas, page) };
    if !allows(area.protection(), access) {
        return refuse(areas);
    }
    let Some((table, cell)) = space.page_tables().cell(page) else {
        let served = space.first_page_of_table(cpu, area, page, access);
        return served.unwrap_or_else(|error| space.without_table(area, page, error));
    };
    let entry = Glimpse::at(space.mmu(), cell);
    // A value for each use: the fields that inlined code uses stay in registers.
    let fault = || AllowedFault { space, cpu, area, page, table, cell, access };
    if entry.is_empty() {
        if let Some(object) = area.object() {
            return fault().object_page(object);
        }
        if area.flags().has_any(AreaFlags::BLOCKS.with(AreaFlags::UFFD_MISSING))
            && let Some(outcome) = space.first_access(cpu, area, page)
        {
            return outcome;
        }
        let new = match space.new_page(cpu, page, area.protection(), access) {
            Ok(new) => new,
            Err(error) => return fault().denied(error.into()),
        };
        space.install_or_drop(cpu, table, page, cell, new);
        return FaultOutcome::Served;
    }
    if access == Access::Write && entry.refuses_stores() {
        return match fault().reuse() {
            Reuse::Done(outcome) => outcome,
            Reuse::Copy(entry) => fault().copy_on_write(entry, areas.may_sleep()),
        };
    }
    fault().present()
}

/// The outcome where `areas` have nothing at `page`: they may be another part's by now, and the access is tried again.
#[cold]
#[inline(never)]
fn find_nothing(areas: BriefGuard<'_, Areas>, page: VirtAddr) -> FaultOutcome {
    if areas.owns(page) {
        FaultOutcome::Failed(Denied::by_areas(&areas, FaultError::NotMapped))
    } else {
        FaultOutcome::Served
    }
}

/// The outcome where an area of `areas` does not permit the access. Out of line, to keep the path of a served fault
/// short.
#[cold]
#[inline(never)]
fn refuse(areas: BriefGuard<'_, Areas>) -> FaultOutcome {
    FaultOutcome::Failed(Denied::by_areas(&areas, FaultError::NotAllowed))
}

impl AllowedFault<'_> {
    /// Maps the page of an object, or for a store to a private area a copy of it, where nothing is mapped.
    #[inline(never)]
    pub(super) fn object_page(self, object: &Object) -> FaultOutcome {
        if let Some(frame) = object.registers() {
            return self.map_registers(object, frame);
        }
        // Apart, so that what was found stays in registers.
        if self.area.flags().has_any(AreaFlags::UFFD_FIRST) {
            return self.object_page_by_pager(object);
        }
        match object.frame(self.cpu, self.area.page_at(self.page)) {
            Ok(found) => self.map_found(object, &found),
            Err(error) => self.denied(error.into()),
        }
    }

    /// As [`Self::object_page`], where a pager may serve it.
    #[cold]
    #[inline(never)]
    fn object_page_by_pager(self, object: &Object) -> FaultOutcome {
        match page_of_object(self.cpu, self.area, object, self.page) {
            Ok(FirstPage::Found(found)) => self.map_found(object, &found),
            Ok(FirstPage::Outcome(outcome)) => outcome,
            Err(error) => self.denied(error.into()),
        }
    }

    /// The outcome where a page cannot be had, because of `error`: served, where another CPU has mapped one.
    #[cold]
    #[inline(never)]
    pub(super) fn denied(self, error: FaultError) -> FaultOutcome {
        let locked = self.space.lock_table(self.table);
        let denied = Denied::where_empty(self.space.mmu(), &locked, self.cell, error);
        denied.map_or(FaultOutcome::Served, FaultOutcome::Failed)
    }

    /// Maps the frame that was found in the object, unless the object has lost it, or another CPU was faster: then the
    /// retry decides.
    fn map_found(self, object: &Object, found: &Found<'_, Machine>) -> FaultOutcome {
        let (space, mmu, protection) = (self.space, self.space.mmu(), self.area.protection());
        let frame = found.frame();
        let new = match self.access {
            Access::Write if self.area.is_shared() => written(frame, protection),
            Access::Write => return self.map_copy(object, found),
            _ if self.area.is_shared() => Descriptor::page(frame, attributes(protection)),
            _ => Descriptor::page(frame, read_only_attributes(protection)),
        };
        let locked = space.lock_table(self.table);
        // No reference is held: a frame that the object has still is not freed before the lock is dropped
        // (`shmem::pages`). The contents of the page come before the entry by which it was found, and the store here
        // depends on that.
        let finished = |fillable: Fillable| {
            let new = fillable.with(space.prepared_for_fault(new, self.area.protection()));
            locked.note_used(self.page);
            new
        };
        let is_inside = || object.has_inside(self.area.page_at(self.page));
        let seen = locked.entry(mmu, self.cell);
        if found.map(mmu, seen, self.cell, || space.common.record(frame), is_inside, finished) {
            return FaultOutcome::Served;
        }
        drop(locked);
        self.not_current(found)
    }

    /// The outcome where the page is mapped by now, or the object has not what was found any more, or not yet again.
    #[cold]
    #[inline(never)]
    fn not_current(&self, found: &Found<'_, Machine>) -> FaultOutcome {
        if found.is_migrating(self.space.mmu()) { FaultOutcome::Migrating } else { FaultOutcome::Served }
    }

    /// Maps a copy of what was found (Linux: `do_cow_fault`).
    #[inline(never)]
    fn map_copy(self, object: &Object, found: &Found<'_, Machine>) -> FaultOutcome {
        match self.space.common.frames.alloc_movable(self.cpu) {
            Ok(copy) => self.map_copy_in(object, found, copy),
            Err(error) => self.denied(error.into()),
        }
    }

    /// As [`Self::map_copy`], in a frame of the caller's.
    #[inline(always)]
    pub(super) fn map_copy_in(self, object: &Object, found: &Found<'_, Machine>, copy: PhysAddr) -> FaultOutcome {
        let (space, mmu) = (self.space, self.space.mmu());
        space.note_origin(copy, self.page);
        let new = written(copy, self.area.protection());
        let locked = space.lock_table(self.table);
        let is_inside = || object.has_inside(self.area.page_at(self.page));
        let fillable = found.fillable(mmu, locked.entry(mmu, self.cell), is_inside);
        if let Some(fillable) = fillable {
            // The object has the frame, so that it stays; programs may store to it concurrently.
            if space.common.page(found.frame()).copy_to(copy).is_err() {
                drop(locked);
                space.common.drop_frame(self.cpu, copy);
                return FaultOutcome::TagStorage;
            }
            let new = fillable.with(space.prepared_for_fault(new, self.area.protection()));
            // The contents before the entry.
            mmu.dmb_ishst();
            locked.note_used(self.page);
            mmu.store(self.cell, new);
        }
        drop(locked);
        if fillable.is_none() {
            space.common.drop_frame(self.cpu, copy);
            return self.not_current(found);
        }
        FaultOutcome::Served
    }

    /// Serves a fault whose entry permits the access already: access flag, dirt, or a stale TLB entry.
    #[cold]
    fn present(self) -> FaultOutcome {
        let locked = self.space.lock_table(self.table);
        let seen = locked.entry(self.space.mmu(), self.cell);
        let entry = seen.descriptor();
        let is_write = self.access == Access::Write;
        if !is_page(entry) {
            return self.fault_on_nonpresent(seen);
        }
        if self.access == Access::Execute && !entry.is_user_executable() {
            // Entries follow their areas. This one does not, and a retry would fault for ever.
            return FaultOutcome::Failed(Denied::by_entry(seen, FaultError::Unusable));
        }
        if is_write && !entry.may_be_written() {
            // Another CPU has changed it: the retry decides.
            return FaultOutcome::Served;
        }
        if entry.is_contiguous() {
            return self.of_group(entry);
        }
        // Hardware that makes an entry writable invalidates nothing, and leaves DIRTY clear. So a device that still has
        // the read-only entry changes this one by its fault, and the invalidation follows.
        let is_trusted = lab::is_on!(TRUST_HW_DIRTY) && entry.is_dirty();
        self.allow_more(entry, if is_write && !is_trusted { entry.young().dirty() } else { entry.young() })
    }

    /// Serves a fault on an entry that is no page: each state changes so that the retry makes progress, or is an error.
    #[cold]
    pub(super) fn fault_on_nonpresent(self, seen: LockedEntry<'_>) -> FaultOutcome {
        let entry = seen.descriptor();
        if entry.is_fault_on_access() && !entry.is_contiguous() {
            return self.replay_later(seen);
        }
        let denied = |error| FaultOutcome::Failed(Denied::by_entry(seen, error));
        let mmu = self.space.mmu();
        match state(entry) {
            // Another CPU has changed it: the retry decides.
            EntryState::Empty | EntryState::Page => {}
            EntryState::Inaccessible if entry.is_contiguous() => return self.of_group(entry),
            EntryState::Inaccessible => {
                // It is in no TLB. A store may fault once more.
                let accessible = entry.modified(self.area.attributes(self.area.protection().read_only()));
                let accessible = self.space.prepared(accessible);
                mmu.store(self.cell, accessible.young());
            }
            EntryState::Marker(markers) if markers.contains(Markers::GUARD) => {
                return denied(FaultError::Guard);
            }
            EntryState::Marker(markers) if markers.contains(Markers::POISONED) => {
                return denied(FaultError::Poisoned);
            }
            EntryState::Marker(_) if self.area.flags().has_any(AreaFlags::UFFD_WP) => return FaultOutcome::Marker,
            // The marker is for a userfaultfd that no longer exists.
            EntryState::Marker(_) => mmu.store(self.cell, Descriptor::EMPTY),
            EntryState::Stale => {
                mmu.store(self.cell, rest_of_stale(entry));
                // Another CPU's TLBI may not have completed; issue our own.
                self.space.tlb().flush_replaced(mmu, Leaf::page(self.page));
            }
            // The mark is set before an entry becomes this, and cleared when none is it any more.
            EntryState::Migration if self.space.is_migrating() => return FaultOutcome::Migrating,
            EntryState::Migration | EntryState::Damaged => return denied(FaultError::Unusable),
        }
        FaultOutcome::Served
    }

    /// Widens `entry`, which is in the cell, to `wanted`. If it permits that much already, the TLB entry was stale. The
    /// table's lock is held.
    #[inline(always)]
    pub(super) fn allow_more(&self, entry: Descriptor, wanted: Descriptor) -> FaultOutcome {
        let is_changed = set_access_flags(self.space.mmu(), self.cell, entry, wanted);
        self.space.widened(is_changed, Leaf::page(self.page), FaultOutcome::Upgraded)
    }
}

impl Space {
    /// The outcome of a fault on `leaf`: `upgraded` where its entries were changed, and permit more now; otherwise the TLB
    /// entry was stale. The table's lock is held.
    #[inline(always)]
    pub(super) fn widened(&self, is_changed: bool, leaf: Leaf, upgraded: FaultOutcome) -> FaultOutcome {
        if !is_changed {
            self.tlb().fix_spurious(self.mmu(), leaf);
            return FaultOutcome::Served;
        }
        self.tlb().access_widened(self.mmu(), leaf);
        if lab::is_on!(NOTIFY_BEFORE_UNLOCK) {
            self.notifiers.upgraded(leaf.start(), leaf.end() - leaf.start());
        }
        upgraded
    }

    /// The entry for a page of anonymous memory, which has none yet, at its first `access`, with a reference to its
    /// frame.
    #[inline(always)]
    pub(super) fn new_page(
        &self,
        cpu: &Cpu,
        page: VirtAddr,
        protection: Protection,
        access: Access,
    ) -> Result<Descriptor, OutOfMemory> {
        Ok(if access == Access::Write {
            self.new_written(self.common.frames.alloc_movable(cpu)?, page, protection)
        } else {
            Descriptor::page(self.common.zeros, read_only_attributes(protection)).special()
        })
    }

    /// As [`Self::new_page`], for a store, in a new `frame`.
    #[inline(always)]
    pub(super) fn new_written(&self, frame: PhysAddr, page: VirtAddr, protection: Protection) -> Descriptor {
        let waits = self.zero_new(self.common.frames, frame, protection);
        self.note_origin(frame, page);
        let new = written(frame, protection);
        if waits { new.fault_on_access() } else { new }
    }

    /// Serves the first access of `page` in an area of anonymous memory that asks for more than a page: a pager serves
    /// it, or a group of pages; `None` where a page serves.
    #[cold]
    #[inline(never)]
    fn first_access(&self, cpu: &Cpu, area: &Area, page: VirtAddr) -> Option<FaultOutcome> {
        if area.flags().has_any(AreaFlags::UFFD_MISSING) {
            return Some(FaultOutcome::Userfault);
        }
        self.map_group(cpu, area, page).then_some(FaultOutcome::Served)
    }

    /// Serves a fault where the last-level table is missing too.
    #[cold]
    fn first_page_of_table(
        &self,
        cpu: &Cpu,
        area: &Area,
        page: VirtAddr,
        access: Access,
    ) -> Result<FaultOutcome, FirstFault> {
        if let Some(outcome) = self.fault_in_block(cpu, area, page, access) {
            return Ok(outcome);
        }
        let mut source = self.table_source(cpu);
        if let Some(object) = area.object() {
            if let Some(frame) = object.registers() {
                let ((table, cell), ()) =
                    self.page_tables().ensure_cell(page, &mut source, || Ok::<_, FirstFault>(()))?;
                order();
                let fault = AllowedFault { space: self, cpu, area, page, table, cell, access };
                return Ok(fault.map_registers(object, frame));
            }
            let find = || Ok::<_, FirstFault>(page_of_object(cpu, area, object, page)?);
            let ((table, cell), sought) = self.page_tables().ensure_cell(page, &mut source, find)?;
            let found = match sought {
                FirstPage::Found(found) => found,
                FirstPage::Outcome(outcome) => return Ok(outcome),
            };
            // The link before another look at the object: a walk by the reverse map that does not see the table has
            // changed the object before.
            order();
            return Ok(AllowedFault { space: self, cpu, area, page, table, cell, access }.map_found(object, &found));
        }
        if let Some(outcome) = self.first_access(cpu, area, page) {
            return Ok(outcome);
        }
        let mut made = None;
        let ensured = self.page_tables().ensure_cell(page, &mut source, || {
            made = Some(self.new_page(cpu, page, area.protection(), access)?);
            Ok::<_, FirstFault>(())
        });
        match (&ensured, made) {
            (Ok(((table, cell), ())), Some(new)) => self.install_or_drop(cpu, *table, page, cell, new),
            (_, Some(new)) => self.drop_new(cpu, new),
            (_, None) => {}
        }
        ensured.map(|_| FaultOutcome::Served)
    }

    /// The outcome of a first fault in an area that has failed: served, where another CPU has linked a table or a block.
    #[cold]
    fn without_table(&self, area: &Area, page: VirtAddr, error: FirstFault) -> FaultOutcome {
        let denied = match error {
            FirstFault::Failed(error) => Denied::where_no_table(&self.page_tables(), area, page, error),
            FirstFault::Block => None,
        };
        denied.map_or(FaultOutcome::Served, FaultOutcome::Failed)
    }

    /// Stores `new` to `cell` of `table`, unless another CPU was faster.
    #[inline(always)]
    pub(super) fn install_or_drop(
        &self,
        cpu: &Cpu,
        table: PhysAddr,
        page: VirtAddr,
        cell: &EntryCell,
        new: Descriptor,
    ) {
        if !self.install(table, page, cell, new) {
            self.drop_new(cpu, new);
        }
    }

    /// Drops the reference of `new`, which was not stored, to its frame.
    fn drop_new(&self, cpu: &Cpu, new: Descriptor) {
        if !new.is_special() {
            self.common.drop_frame(cpu, new.address());
        }
    }

    /// Stores `new`, whose frame is prepared, to `cell` of `table`, if that is empty or a [marker](Fillable); returns
    /// whether it was.
    #[inline(always)]
    pub(super) fn install(&self, table: PhysAddr, page: VirtAddr, cell: &EntryCell, new: Descriptor) -> bool {
        let mmu = self.mmu();
        // The contents of the page before its entry. A read through the entry walks to it first, which orders the two.
        mmu.dmb_ishst();
        let locked = self.lock_table(table);
        let fillable = locked.entry(mmu, cell).fillable();
        if let Some(fillable) = fillable {
            locked.note_used(page);
            // No barrier after it: at worst the access faults once more, and finds the entry.
            mmu.store(cell, fillable.with(new));
        }
        fillable.is_some()
    }
}

impl Spaces {
    /// Drops one reference to `frame`, which is in no entry.
    pub(super) fn drop_frame(&self, cpu: &Cpu, frame: PhysAddr) {
        if self.record(frame).put() {
            self.frames.free(cpu, frame);
        }
    }
}
