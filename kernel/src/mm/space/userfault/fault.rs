//! Faults that a pager serves, and faults at markers.

#![allow(unsafe_code, reason = "a node on the stack of the thread that waits")]

use core::time::Duration;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::{Descriptor, Markers};
use granule_pgtable::Mmu;

use super::super::access::{Access, allows};
use super::super::address_space::Space;
use super::super::area::{Area, AreaFlags};
use super::super::entry::{EntryState, replace, state};
use super::super::error::FaultError;
use super::super::fault::handle_fault;
use super::super::look::{Glimpse, LockedEntry};
use super::super::outcome::{AllowedFault, FaultOutcome};
use super::super::range::pages;
use super::super::shmem::pages::Found;
use super::super::shmem::{NoPage, Object, Presence};
use super::queue::{Queue, QueuedFault};
use super::{Features, PageFault, Reason};
use crate::chip::timer;
use crate::lab;
use crate::mm::kernel::Machine;
use crate::sched;
use crate::smp::Cpu;

/// The origin of an access that a pager has to serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultMode {
    /// The program itself: any signal ends the wait.
    El0,
    /// The kernel for it: a signal that ends the program does.
    Kernel,
    /// The kernel for a program that waits for no pager of another: it fails.
    WithoutPager,
    /// A device, whose transfer this thread completes: the wait ends after [`DEVICE_PATIENCE`].
    Device,
}

/// How long a device's fault waits for a pager.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);

impl FaultMode {
    /// Waits until `fault` is served, or the wait ends; returns `false` for a device's that is late.
    fn wait(self, queue: &Queue, fault: &QueuedFault) -> bool {
        match self {
            Self::El0 => _ = queue.wait(fault, &sched::is_interrupted, sched::park),
            Self::Kernel | Self::WithoutPager => _ = queue.wait(fault, &sched::is_killed, sched::park),
            Self::Device => {
                let end = timer::uptime().saturating_add(DEVICE_PATIENCE);
                return queue.wait(fault, &|| timer::uptime() >= end, sched::sleep_briefly);
            }
        }
        true
    }
}

/// The way in which the first access of a page of an object is served.
pub(in super::super) enum FirstPage<'a> {
    /// The object's page is mapped.
    Found(Found<'a, Machine>),
    /// Another way does.
    Outcome(FaultOutcome),
}

/// The way in which the first access of `page` in `area` is served, of `object`, which is no registers. Where a pager
/// may, the object is looked at once for that, and another look brings no page that the pager should have been asked
/// about.
///
/// # Errors
/// [`NoPage`].
#[inline(always)]
pub(in super::super) fn page_of_object<'a>(
    cpu: &Cpu,
    area: &Area,
    object: &'a Object,
    page: VirtAddr,
) -> Result<FirstPage<'a>, NoPage> {
    if area.flags().has_any(AreaFlags::UFFD_FIRST) {
        return page_by_pager(cpu, area, object, page);
    }
    Ok(FirstPage::Found(object.frame(cpu, area.page_at(page))?))
}

/// As [`page_of_object`], in an area where a pager may serve it.
#[cold]
#[inline(never)]
fn page_by_pager<'a>(cpu: &Cpu, area: &Area, object: &'a Object, page: VirtAddr) -> Result<FirstPage<'a>, NoPage> {
    if let Some(outcome) = first_access_of(area, object, page).outcome() {
        return Ok(FirstPage::Outcome(outcome));
    }
    // Where pages that the object has are a pager's, there was none.
    let may_have = !area.flags().has_any(AreaFlags::UFFD_MINOR);
    let index = area.page_at(page);
    match if may_have { object.present(cpu, index)? } else { None } {
        Some(found) => Ok(FirstPage::Found(found)),
        // It has changed since: the retry decides.
        None if object.has_inside(index) => Ok(FirstPage::Outcome(FaultOutcome::Served)),
        None => Err(NoPage::BehindTheEnd),
    }
}

/// Whether the object of `area` gets `page` by its first access, and has it mapped before others find it.
pub(super) fn is_new(area: &Area, page: VirtAddr) -> bool {
    matches!(first_access(area, page), FirstAccess::New)
}

/// How the first access of a page is served.
enum FirstAccess {
    /// A page is mapped.
    Mapped,
    /// The object gets a page, which is minor from then on where it is not mapped.
    New,
    ByPager(Reason),
    /// As is decided when the page, which is on its way, has come to its object.
    Later,
}

impl FirstAccess {
    fn outcome(self) -> Option<FaultOutcome> {
        match self {
            Self::Mapped => None,
            Self::New => Some(FaultOutcome::New),
            Self::ByPager(_) => Some(FaultOutcome::Userfault),
            Self::Later => Some(FaultOutcome::Migrating),
        }
    }
}

/// How the first access of `page` in `area` is served.
#[inline(always)]
fn first_access(area: &Area, page: VirtAddr) -> FirstAccess {
    match area.object() {
        Some(object) => first_access_of(area, object, page),
        None if area.flags().has_any(AreaFlags::UFFD_MISSING) => FirstAccess::ByPager(Reason::Missing),
        None => FirstAccess::Mapped,
    }
}

/// As [`first_access`], of `object`. It decides once, by one look: what it is given after that is as if it had come before,
/// or after the access.
#[cold]
#[inline(never)]
fn first_access_of(area: &Area, object: &Object, page: VirtAddr) -> FirstAccess {
    let is_for = |flag| area.flags().has_any(flag);
    match object.presence(area.page_at(page)) {
        Presence::Absent if is_for(AreaFlags::UFFD_MISSING) => FirstAccess::ByPager(Reason::Missing),
        Presence::Absent if is_for(AreaFlags::UFFD_MINOR) => FirstAccess::New,
        Presence::Here if is_for(AreaFlags::UFFD_MINOR) => FirstAccess::ByPager(Reason::Minor),
        Presence::OnItsWay if is_for(AreaFlags::UFFD_MINOR) => FirstAccess::Later,
        _ => FirstAccess::Mapped,
    }
}

/// The reason for a pager to serve an access of `page` in `area`, which permits it, and whose entry, or that of its
/// block, is `seen`.
fn reason(area: &Area, page: VirtAddr, seen: LockedEntry<'_>, access: Access) -> Option<Reason> {
    let entry = seen.descriptor();
    if entry.is_valid() {
        let is_protected = access == Access::Write && entry.is_uffd_wp() && area.flags().asks_about_stores();
        return is_protected.then_some(Reason::WriteProtected);
    }
    let is_empty = matches!(state(entry), EntryState::Empty | EntryState::Marker(Markers::UFFD_WP));
    match is_empty.then(|| first_access(area, page)) {
        Some(FirstAccess::ByPager(reason)) => Some(reason),
        _ => None,
    }
}

impl Space {
    /// [`handle_fault`] for an access of the kernel's own, of which `mode` decides where a pager has to serve it.
    ///
    /// # Errors
    /// As for both.
    pub fn fault_in_kernel(
        &self,
        cpu: &Cpu,
        address: VirtAddr,
        access: Access,
        mode: FaultMode,
    ) -> Result<(), FaultError> {
        match handle_fault(self, cpu, address, access) {
            Err(FaultError::Userfault) => self.userfault(cpu, address, access, mode),
            served => served,
        }
    }

    /// Waits for the pager that has to serve `access` at `address`, after a fault that failed with
    /// [`FaultError::Userfault`]. On success the access is made again: it is served, or a signal has ended the wait. Sleeps;
    /// no lock is held. `cpu` is the CPU that this runs on.
    ///
    /// # Errors
    /// [`FaultError::Unusable`] (the pager wants SIGBUS, serves no accesses of the kernel, may not be asked, or does not
    /// serve a device's in time; or the program ends), [`FaultError::OutOfMemory`].
    #[cold]
    #[inline(never)]
    pub fn userfault(&self, cpu: &Cpu, address: VirtAddr, access: Access, mode: FaultMode) -> Result<(), FaultError> {
        if sched::is_killed() {
            return if mode == FaultMode::El0 { Ok(()) } else { Err(FaultError::Unusable) };
        }
        let page = address.align_down(PAGE);
        let fault = QueuedFault::new(page);
        let userfaultfd = {
            let areas = self.areas.read(page);
            let Some(area) = areas.find(page).filter(|area| allows(area.protection(), access)) else { return Ok(()) };
            let flags = area.flags();
            let registered = flags.has_any(AreaFlags::REGISTERED).then(|| self.userfaultfds.get(flags.userfaultfd()));
            let Some(userfaultfd) = registered.flatten() else { return Ok(()) };
            let features = userfaultfd.features();
            let is_refused = features.has(Features::SIGBUS)
                || mode == FaultMode::WithoutPager
                || userfaultfd.user_mode_only && mode != FaultMode::El0;
            if is_refused && lab::is_on!(ANSWER_AT_GLIMPSE) {
                return Err(FaultError::Unusable);
            }
            let mut place = self.page_tables().cell(page);
            if place.is_none() && self.block_entry(page).is_none() {
                // It will need one. The lock of the table orders the message, or the refusal, and what serves it.
                self.ensure_cells(cpu, pages(page, page + PAGE))?;
                place = self.page_tables().cell(page);
            }
            let block = if place.is_none() { self.block_at(page) } else { None };
            let found = place.or_else(|| block.as_ref().map(|found| (found.table, found.cell)));
            let Some((table, cell)) = found else { return Ok(()) };
            let locked = self.lock_table(table);
            let seen = locked.entry(self.mmu(), cell);
            if block.is_some() && seen.descriptor() == Descriptor::EMPTY {
                // The block is gone. A fault that is served now links a table, and does not take this lock.
                return Ok(());
            }
            let Some(reason) = reason(area, page, seen, access) else { return Ok(()) };
            if is_refused {
                return Err(FaultError::Unusable);
            }
            let message = PageFault {
                address: if features.has(Features::EXACT_ADDRESS) { address } else { page },
                is_write: access == Access::Write,
                reason,
                thread: features.has(Features::THREAD_ID).then(sched::program_number),
            };
            // SAFETY: the node stays where it is until the wait, below, is over.
            let is_queued = unsafe { userfaultfd.queue.add(&fault, message) };
            drop((locked, areas));
            if !is_queued {
                // It is being closed, and its areas will be registered no more.
                sched::sleep_briefly();
                return Ok(());
            }
            userfaultfd
        };
        userfaultfd.queue.wake_pollers();
        if mode.wait(&userfaultfd.queue, &fault) {
            return Ok(());
        }
        crate::log::warn!("no pager has served a device's access to {page} in time");
        Err(FaultError::Unusable)
    }

    /// Serves a fault at the marker of `page`, where userfaultfd write-protects a page that is not there: maps a page that
    /// is write-protected, and has the pager serve a store to it.
    ///
    /// # Errors
    /// [`FaultError`]; a [`FaultError::Userfault`] where the pager has to serve it.
    #[cold]
    #[inline(never)]
    pub(in super::super) fn fault_at_marker(
        &self,
        cpu: &Cpu,
        page: VirtAddr,
        access: Access,
    ) -> Result<(), FaultError> {
        let (outcome, asks) = {
            let areas = self.areas.read(page);
            let Some(fault) = self.allowed_fault(cpu, &areas, page, access) else { return Ok(()) };
            let asks = fault.area.flags().asks_about_stores();
            let entry = Glimpse::at(self.mmu(), fault.cell);
            if entry.is_empty() || !entry.may_be_filled() {
                return Ok(());
            }
            let outcome = match fault.area.object() {
                Some(object) => fault.object_page(object),
                None if fault.area.flags().has_any(AreaFlags::UFFD_MISSING) => FaultOutcome::Userfault,
                None => match self.new_page(cpu, page, fault.area.protection(), access) {
                    Ok(new) => {
                        self.install_or_drop(cpu, fault.table, page, fault.cell, new);
                        FaultOutcome::Served
                    }
                    Err(error) => fault.denied(error.into()),
                },
            };
            (outcome, asks)
        };
        match outcome {
            FaultOutcome::Userfault => Err(FaultError::Userfault),
            FaultOutcome::Failed(denied) => Err(denied.error()),
            FaultOutcome::Served if access == Access::Write && asks => Err(FaultError::Userfault),
            FaultOutcome::New => self.bring_new(cpu, page),
            // The retry comes to the marker again: it would go on for ever if what it waits for needed this CPU.
            FaultOutcome::Migrating => {
                self.common.wait_for_migration();
                Ok(())
            }
            FaultOutcome::TagStorage => self.fault_on_access(cpu, page, access),
            // The retry finds every other outcome again.
            _ => Ok(()),
        }
    }
}

impl AllowedFault<'_> {
    /// Serves a store to the page of `entry`, which is in the cell and has userfaultfd's mark. The table's lock is held.
    #[cold]
    #[inline(never)]
    pub(in super::super) fn write_protected(&self, entry: Descriptor) -> FaultOutcome {
        if self.area.flags().asks_about_stores() {
            return FaultOutcome::Userfault;
        }
        // No pager is asked, or it is the mark of a userfaultfd that no longer exists. The retry copies the page, or
        // makes it writable.
        if entry.is_contiguous() {
            self.space.unfold(self.page);
        }
        let mmu = self.space.mmu();
        replace(mmu, self.cell, mmu.load(self.cell), Descriptor::without_uffd_wp);
        FaultOutcome::Served
    }
}
