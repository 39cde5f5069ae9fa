//! Faults in a block, and the first access of a range that becomes one.

use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection};
use granule_pgtable::{Feature, Mmu, Stores};

use super::{block_of, broken, is_block, is_marker};
use crate::lab;
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range};
use crate::mm::page_block::BLOCK_SIZE;
use crate::mm::space::access::{Access, allows};
use crate::mm::space::address_space::{Settings, Space};
use crate::mm::space::area::{Area, AreaFlags};
use crate::mm::space::cells::BlockCell;
use crate::mm::space::denied::Denied;
use crate::mm::space::entry::{first_entry, read_only_attributes, set_access_flags, written};
use crate::mm::space::error::FaultError;
use crate::mm::space::group::GROUP_SIZE;
use crate::mm::space::outcome::{FaultOutcome, OfBlock};
use crate::mm::space::range::pages;
use crate::mm::tlb::user::Leaf;
use crate::sched::note_shortage;
use crate::smp::Cpu;

impl Space {
    /// Whether blocks and groups are wanted in an area.
    pub(in crate::mm::space) fn wants_blocks(&self, area: &Area) -> bool {
        area.flags().has_any(AreaFlags::BLOCKS) && !self.settings().has(Settings::NO_BLOCKS)
    }

    /// Whether the first access of `page` brings a block, as far as that follows from its area.
    #[inline(always)]
    pub(super) fn takes_block(&self, area: &Area, page: VirtAddr) -> bool {
        let start = page.align_down(BLOCK_SIZE);
        let is_wanted = self.wants_blocks(area);
        // Zeroing it and cleaning it by lines would take too long at once.
        let is_code = area.protection().contains(Protection::EXECUTE) && !self.mmu().has(Feature::Idc);
        // A block of an object may have no tags, and others may use it.
        let is_untagged = area.object().is_some() && area.protection().contains(Protection::TAGGED);
        // A pager serves each page.
        let is_asked = area.flags().has_any(AreaFlags::UFFD_FIRST);
        is_wanted
            && !is_asked
            && !is_code
            && !is_untagged
            && area.start() <= start
            && start.0 + BLOCK_SIZE <= area.end().0
    }

    /// Serves an access that `area` permits, where there is no table for `page`, by a block; `None` where a page serves
    /// it.
    #[cold]
    #[inline(never)]
    pub(in crate::mm::space) fn fault_in_block(
        &self,
        cpu: &Cpu,
        area: &Area,
        page: VirtAddr,
        access: Access,
    ) -> Option<FaultOutcome> {
        if let Some(found) = self.block_at(page) {
            let entry = self.mmu().load(found.cell);
            if is_block(entry) {
                return Some(self.fault_of_block(area, &found, access));
            }
            if is_marker(entry) {
                self.split_block(&found, found.range());
                return Some(FaultOutcome::Served);
            }
        }
        self.map_block(cpu, area, page)
    }

    /// Brings a block for `page`, where there is no table for it, if one can be; returns whether there is one. For a
    /// populate, which leaves what is there as it is. Where a block has left a marker, pages serve.
    #[cold]
    #[inline(never)]
    pub(in crate::mm::space) fn bring_block(&self, cpu: &Cpu, area: &Area, page: VirtAddr) -> bool {
        if self.is_block_or_marker(page) {
            return self.block_entry(page).is_some();
        }
        self.map_block(cpu, area, page) == Some(FaultOutcome::Served)
    }

    /// Maps a block of zeros for `page`; returns `None` where none is to be, there is no page block, or no memory for
    /// tables. If another CPU was faster, the retry decides.
    pub(super) fn map_block(&self, cpu: &Cpu, area: &Area, page: VirtAddr) -> Option<FaultOutcome> {
        let (frames, mmu) = (self.common.frames, self.mmu());
        if area.object().is_some() {
            return self.map_block_of_object(cpu, area, page);
        }
        if !self.takes_block(area, page) {
            return None;
        }
        let block = frames.alloc_splittable(cpu).ok()?;
        let Ok((table, found)) = self.place_block(cpu, page) else {
            frames.free_splittable(cpu, block);
            // There is one frame at least now, and a page may serve.
            note_shortage(cpu, 0);
            return None;
        };
        self.note_block_origin(block, found.start);
        _ = self.common.block(block).zero(area.protection());
        // `Some`: it has tags, or its entry waits for their storage.
        let new = self.prepared_block(block_of(first_entry(block, area.protection())));
        // The zeros before their entry.
        mmu.dmb_ishst();
        let locked = self.lock_table(found.table);
        if new.is_some_and(|new| mmu.compare_exchange(found.cell, Descriptor::EMPTY, new).is_ok()) {
            self.common.deposit(locked.frame(), table);
            return Some(FaultOutcome::Served);
        }
        drop(locked);
        self.common.block(block).put_block(cpu);
        self.free_deposit(cpu, table);
        new.map(|_| FaultOutcome::Served)
    }

    /// A table to deposit, and the entry for the block that has `page`.
    #[inline(always)]
    pub(super) fn place_block(&self, cpu: &Cpu, page: VirtAddr) -> Result<(PhysAddr, BlockCell<'_>), OutOfMemory> {
        let table = self.common.frames.alloc(cpu)?;
        self.table_frames.fetch_add(1, Ordering::Relaxed);
        match self.page_tables().ensure_block_cell(page, &mut self.table_source(cpu)) {
            Ok(found) => Ok((table, found)),
            Err(_) => {
                self.free_deposit(cpu, table);
                Err(OutOfMemory)
            }
        }
    }

    /// Serves an access that `area` permits to the block in `found`.
    pub(super) fn fault_of_block(&self, area: &Area, found: &BlockCell<'_>, access: Access) -> FaultOutcome {
        let mmu = self.mmu();
        let locked = self.lock_table(found.table);
        let entry = mmu.load(found.cell);
        if !is_block(entry) {
            return FaultOutcome::Served;
        }
        if !entry.is_valid() {
            if entry.is_fault_on_access() {
                return FaultOutcome::OfBlock(OfBlock::TagStorage);
            }
            let accessible = entry.modified(read_only_attributes(area.protection()));
            let Some(accessible) = self.prepared_block(accessible) else {
                drop(locked);
                self.split_block(found, found.range());
                return FaultOutcome::Served;
            };
            mmu.store(found.cell, accessible.young());
            return FaultOutcome::Served;
        }
        if access == Access::Execute && !entry.is_user_executable() {
            return FaultOutcome::Failed(Denied::by_entry(locked.entry(mmu, found.cell), FaultError::Unusable));
        }
        let is_write = access == Access::Write;
        if is_write && entry.is_uffd_wp() {
            if area.flags().asks_about_stores() {
                return FaultOutcome::Userfault;
            }
            if area.flags().has_any(AreaFlags::UFFD_WP) {
                // Only the page that is written loses its mark.
                drop(locked);
                self.split_block(found, found.range());
                return FaultOutcome::Served;
            }
            // The mark of a userfaultfd that no longer exists.
            self.replace_block_entry(found, entry, Descriptor::without_uffd_wp);
            return FaultOutcome::Served;
        }
        let is_own = || area.is_shared() || self.common.block(entry.address()).is_sole();
        if is_write && !entry.may_be_written() && !is_own() {
            return FaultOutcome::OfBlock(OfBlock::Shared);
        }
        let wanted = if is_write { entry.young().writable().dirty() } else { entry.young() };
        let is_changed = set_access_flags(mmu, found.cell, entry, wanted);
        self.widened(is_changed, Leaf::block(found.start), FaultOutcome::OfBlock(OfBlock::Upgraded))
    }

    /// The rest of a fault of the block that has `page`, without a lock.
    #[cold]
    #[inline(never)]
    pub(in crate::mm::space) fn after_fault_of_block(&self, cpu: &Cpu, page: VirtAddr, what: OfBlock) {
        match what {
            OfBlock::Upgraded | OfBlock::UpgradedGroup if lab::is_on!(NOTIFY_BEFORE_UNLOCK) => {}
            OfBlock::UpgradedGroup => self.notifiers.upgraded(page.align_down(GROUP_SIZE), GROUP_SIZE),
            OfBlock::Upgraded => self.notifiers.upgraded(page.align_down(BLOCK_SIZE), BLOCK_SIZE),
            OfBlock::Shared => self.copy_block(cpu, page),
            OfBlock::TagStorage => self.block_on_access(cpu, page),
        }
    }

    /// Gives `page` a block of its own, with the contents of the one that it shares; or splits that, where there is no
    /// page block. The retry decides whether more is needed. Sleeps.
    pub(super) fn copy_block(&self, cpu: &Cpu, page: VirtAddr) {
        if self.is_migrating() {
            // Perhaps it: what migrates it holds it.
            return self.common.wait_for_migration();
        }
        let mmu = self.mmu();
        let areas = self.areas.read(page);
        let Some(area) = areas.find(page).filter(|area| allows(area.protection(), Access::Write)) else { return };
        let Some(found) = self.block_at(page) else { return };
        let shared = {
            let _locked = self.lock_table(found.table);
            let entry = mmu.load(found.cell);
            if !is_block(entry) || !entry.is_valid() || entry.may_be_written() || entry.is_uffd_wp() {
                return;
            }
            if self.common.block(entry.address()).is_sole() {
                return;
            }
            // So that it stays, and no other space has it to itself and writes to it.
            self.common.block(entry.address()).share();
            entry
        };
        let (old, frames) = (shared.address(), self.common.frames);
        // Its pages are copied one by one.
        let split = || {
            self.common.block(old).put_block(cpu);
            self.split_block(&found, pages(page, page + PAGE));
        };
        let Ok(new) = frames.alloc_splittable(cpu) else { return split() };
        let start = found.start;
        let copied = self.common.block(old).copy_to(new);
        let copy = copied.ok().and_then(|()| self.prepared_block(block_of(written(new, area.protection()))));
        let Some(copy) = copy else {
            frames.free_splittable(cpu, new);
            return split();
        };
        self.note_block_origin(new, start);
        let unused = {
            let _change = self.notifiers.start(Range::new(Event::Clear, start, start + BLOCK_SIZE));
            let _locked = self.lock_table(found.table);
            let entry = mmu.load(found.cell);
            // The access flag may have been set concurrently. After any other change the retry decides.
            if entry.young() == shared.young() {
                mmu.store(found.cell, broken(entry));
                // The invalidation also orders the contents before the entry.
                if !lab::is_on!(STALE_COW) {
                    self.flush_block(start);
                }
                mmu.store(found.cell, copy);
                old
            } else {
                new
            }
        };
        self.common.block(unused).put_block(cpu);
        self.common.block(old).put_block(cpu);
    }
}
