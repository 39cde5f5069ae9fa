//! Pages that a pager brings: copies of its own memory, zeros, poison, and those that an object has.
//!
//! A page is prepared without a lock, since its contents may fault, and installed under the table's lock where nothing
//! is, or a marker. Of a shared area it becomes the object's first; what the object has is looked up, and mapped if it
//! is that still.

#![allow(unsafe_code, reason = "a new frame by its linear address")]

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Markers};
use granule_pgtable::{Mmu, PageRange, Stores};

use super::super::address_space::Space;
use super::super::area::tree::Areas;
use super::super::area::{Area, AreaFlags};
use super::super::cells::EntryCell;
use super::super::entry::{EntryState, first_entry, read_only_attributes, rest_of_stale, state};
use super::super::error::FaultError;
use super::super::range::pages;
use super::super::shmem::pages::Arrival;
use super::super::shmem::{NoPage, Object};
use super::super::table_lock::TableGuard;
use super::fault::is_new;
use super::{FillError, UserfaultError, Userfaultfd, range_of_call};
use crate::mm::OutOfMemory;
use crate::mm::tlb::user::Leaf;
use crate::sched::{self, relax};
use crate::smp::Cpu;
use crate::uaccess;

/// The contents of the pages that a pager fills.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// The bytes from this address on of the running program, in pages that are write-protected or not.
    Copy(VirtAddr, bool),
    /// Zeros.
    Zeros,
    /// Those of the page of the object, in pages that are write-protected or not.
    Present(bool),
    /// Nothing: an access is SIGBUS (`BUS_MCEERR_AR`).
    Poison,
}

impl Content {
    /// Whether a page of a shared area becomes the object's first.
    fn is_new(self) -> bool {
        matches!(self, Self::Copy(..) | Self::Zeros)
    }

    /// Whether the page is write-protected from the beginning.
    fn is_protected(self) -> bool {
        matches!(self, Self::Copy(_, true) | Self::Present(true))
    }
}

/// A page that is to be installed.
enum Filling {
    /// In this frame, which is the filler's.
    Frame(PhysAddr),
    /// The page of zeros.
    Zeros,
    Poison,
}

impl Userfaultfd {
    /// Fills the pages of the `bytes` bytes from `start` on, in order; returns how many bytes are filled, and the reason why
    /// not all. Wakes nothing. `cpu` is the CPU that this runs on. `own` is the space of the caller, if it has one at hand. Sleeps.
    pub fn fill(
        &self,
        cpu: &Cpu,
        own: Option<&Space>,
        start: VirtAddr,
        bytes: u64,
        content: Content,
    ) -> (u64, Result<(), FillError>) {
        let mut done = 0;
        let result = self.fill_pages(cpu, own, start, bytes, content, &mut done);
        (done, result)
    }

    fn fill_pages(
        &self,
        cpu: &Cpu,
        own: Option<&Space>,
        start: VirtAddr,
        bytes: u64,
        content: Content,
        done: &mut u64,
    ) -> Result<(), FillError> {
        let range = range_of_call(start, bytes).ok_or(UserfaultError::Invalid)?;
        let space = self.living_or_own(own)?;
        while *done < bytes {
            if *done != 0 && sched::is_killed() {
                return Err(FillError::Interrupted);
            }
            let rest = pages(range.start() + *done, range.end());
            self.fill_page(&space, cpu, rest, content, *done)?;
            *done += PAGE;
            relax();
        }
        Ok(())
    }

    /// Fills the first page of `rest`.
    fn fill_page(
        &self,
        space: &Space,
        cpu: &Cpu,
        rest: PageRange,
        content: Content,
        done: u64,
    ) -> Result<(), FillError> {
        let frames = space.common.frames;
        // First, as on Linux: the pager's memory is not read in vain.
        let (is_shared, watched) = {
            let areas = space.areas.read(rest.start());
            let area = self.check_area(&areas, rest, content)?;
            if area.is_shared() && content.is_new() && is_behind_the_end(area, rest.start()) {
                return Err(behind_the_end(area, content));
            }
            (area.is_shared(), is_watched(area))
        };
        let filling = match content {
            Content::Copy(from, _) => {
                let frame = frames.alloc_movable(cpu)?;
                // SAFETY: the linear map has the frame, writable, and it has no other user.
                let to = unsafe {
                    let to = frames.linear().address(frame).as_ptr::<u8>();
                    core::slice::from_raw_parts_mut(to, PAGE_SIZE)
                };
                // No lock is held: the pager's memory may fault.
                if uaccess::copy_from_user(to, VirtAddr(from.0.wrapping_add(done))).is_err() {
                    frames.free(cpu, frame);
                    return Err(FillError::Fault);
                }
                Filling::Frame(frame)
            }
            Content::Zeros if is_shared => Filling::Frame(frames.alloc_movable_zeroed(cpu)?),
            Content::Zeros => Filling::Zeros,
            Content::Present(_) => return self.fill_present(space, cpu, rest, content),
            Content::Poison => Filling::Poison,
        };
        let filled = {
            // A fault that finds the page of an object before it is mapped waits for this.
            let _arrival = watched.then(|| space.common.migrations.arrive());
            let areas = space.areas.read(rest.start());
            match self.check_area(&areas, rest, content) {
                Ok(area) if (area.is_shared(), is_watched(area)) != (is_shared, watched) => {
                    Err(UserfaultError::Changing.into())
                }
                Ok(area) => install_filling(space, cpu, area, rest, &filling, content),
                Err(error) => Err(error.into()),
            }
        };
        if let (Filling::Frame(frame), Err(_)) = (filling, &filled) {
            frames.free(cpu, frame);
        }
        filled
    }

    /// Maps the first page of `rest`, which the object has, once it is not on its way to another frame.
    #[cold]
    #[inline(never)]
    fn fill_present(&self, space: &Space, cpu: &Cpu, rest: PageRange, content: Content) -> Result<(), FillError> {
        loop {
            {
                let areas = space.areas.read(rest.start());
                let area = self.check_area(&areas, rest, content)?;
                let object = area.object().ok_or(UserfaultError::Invalid)?;
                let place = Place::new(space, cpu, area, rest.start(), content.is_protected())?;
                if is_behind_the_end(area, rest.start()) {
                    return Err(FillError::Fault);
                }
                match place.map_present(cpu, object)? {
                    Filled::Done => return Ok(()),
                    Filled::OnItsWay => {}
                }
            }
            space.common.wait_for_migration();
        }
    }

    /// The area of `rest`, one of `areas`, if it takes such pages.
    fn check_area<'a>(&self, areas: &'a Areas, rest: PageRange, content: Content) -> Result<&'a Area, UserfaultError> {
        let area = areas.find(rest.start()).filter(|area| rest.end() <= area.end());
        let area = area.filter(|area| area.flags().has_any(AreaFlags::REGISTERED));
        let area = area.ok_or(UserfaultError::NotRegistered)?;
        // An event that was sent since is not read yet.
        self.check_unchanging()?;
        if content.is_protected() && !area.flags().has_any(AreaFlags::UFFD_WP) {
            return Err(UserfaultError::Invalid);
        }
        Ok(area)
    }
}

impl Space {
    /// The entry of `page`, in `cell`, once no TLB has what was there before. The table's lock is held.
    #[inline(always)]
    pub(super) fn entry_at_rest(&self, cell: &EntryCell, page: VirtAddr) -> Descriptor {
        let mmu = self.mmu();
        let entry = mmu.load(cell);
        if state(entry) != EntryState::Stale {
            return entry;
        }
        let rest = rest_of_stale(entry);
        mmu.store(cell, rest);
        // Another CPU's TLBI may not have completed; issue our own.
        self.tlb().flush_replaced(mmu, Leaf::page(page));
        rest
    }

    /// Gives the object of the area at `page` a page of zeros, and maps it, where that is minor once the object has it: a
    /// fault that finds it before it is mapped waits, and asks no pager. The access is made again.
    ///
    /// # Errors
    /// [`FaultError::OutOfMemory`].
    #[cold]
    #[inline(never)]
    pub(in super::super) fn bring_new(&self, cpu: &Cpu, page: VirtAddr) -> Result<(), FaultError> {
        let frame = self.common.frames.alloc_movable_zeroed(cpu)?;
        let filled = {
            let _arrival = self.common.migrations.arrive();
            let areas = self.areas.read(page);
            // If anything has changed, the retry decides.
            let area = areas.find(page).filter(|area| is_new(area, page));
            area.map_or(Err(FillError::Exists), |area| {
                let place = Place::new(self, cpu, area, page, false)?;
                let filled = place.install_in_object(cpu, frame, Over::Marks);
                filled.map_err(|error| if is_behind_the_end(area, page) { FillError::Exists } else { error })
            })
        };
        if filled.is_err() {
            self.common.frames.free(cpu, frame);
        }
        match filled {
            Err(FillError::Call(UserfaultError::OutOfMemory)) => Err(FaultError::OutOfMemory),
            _ => Ok(()),
        }
    }
}

/// Whether no fault may find a new page of the object of `area` before it is mapped: it may be protected, in the same call
/// or by another that sees it, or its first access would be minor.
fn is_watched(area: &Area) -> bool {
    area.is_shared() && area.flags().has_any(AreaFlags::UFFD_WP.with(AreaFlags::UFFD_MINOR))
}

/// The outcome for a page that the object has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Filled {
    Done,
    /// The page is on its way to another frame: it is tried again then.
    OnItsWay,
}

/// Whether the object of `area` ends before `page`.
fn is_behind_the_end(area: &Area, page: VirtAddr) -> bool {
    area.object().is_some_and(|object| !object.has_inside(area.page_at(page)))
}

/// The error of a page there: an object could have none for it (Linux: `shmem_mfill_folio_alloc`).
fn behind_the_end(area: &Area, content: Content) -> FillError {
    if area.is_shared() && content.is_new() { OutOfMemory.into() } else { FillError::Fault }
}

/// Installs `filling` at the first page of `rest`, in `area`. On an error its frame is the caller's still.
fn install_filling(
    space: &Space,
    cpu: &Cpu,
    area: &Area,
    rest: PageRange,
    filling: &Filling,
    content: Content,
) -> Result<(), FillError> {
    let page = rest.start();
    let place = Place::new(space, cpu, area, page, content.is_protected())?;
    if is_behind_the_end(area, page) {
        return Err(behind_the_end(area, content));
    }
    let (new, over) = match filling {
        Filling::Frame(frame) if area.is_shared() => {
            return place.install_in_object(cpu, *frame, Over::Markers);
        }
        Filling::Frame(frame) => (place.own(*frame), Over::Markers),
        Filling::Zeros => {
            let zeros = Descriptor::page(space.common.zeros, read_only_attributes(area.protection())).special();
            (zeros, Over::Nothing)
        }
        Filling::Poison => (Descriptor::from(Markers::POISONED), Over::Nothing),
    };
    place.install(new, over)
}

/// Over what a page is installed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    Nothing,
    /// A marker that is no guard, which goes.
    Markers,
    /// The marker of write-protection, which the page keeps.
    Marks,
}

/// Where a page is installed. The areas are locked for reading.
struct Place<'a> {
    space: &'a Space,
    area: &'a Area,
    page: VirtAddr,
    table: PhysAddr,
    cell: &'a EntryCell,
    is_protected: bool,
}

impl<'a> Place<'a> {
    /// The place of `page` in `area`, with its table.
    #[inline(always)]
    fn new(space: &'a Space, cpu: &Cpu, area: &'a Area, page: VirtAddr, is_protected: bool) -> Result<Self, FillError> {
        let found = space.ensure_cells(cpu, pages(page, page + PAGE))?.ok_or(FillError::Exists)?;
        let cell = found.cells.first().ok_or(FillError::Exists)?;
        Ok(Self { space, area, page, table: found.table, cell, is_protected })
    }

    /// The entry of `frame`, which is this page's alone.
    fn own(&self, frame: PhysAddr) -> Descriptor {
        self.space.note_origin(frame, self.page);
        first_entry(frame, self.area.protection()).dirty()
    }

    /// Stores `new`, if the entry may be replaced.
    fn install(&self, new: Descriptor, over: Over) -> Result<(), FillError> {
        let mmu = self.space.mmu();
        // The contents before the entry.
        mmu.dmb_ishst();
        let locked = self.space.lock_table(self.table);
        // A truncation moves the end, and comes to this table then.
        if is_behind_the_end(self.area, self.page) {
            return Err(FillError::Fault);
        }
        let is_protected = self.fillable(over).ok_or(FillError::Exists)?;
        let new = if new.is_present() { self.space.prepared(new) } else { new };
        self.store(&locked, new, is_protected);
        Ok(())
    }

    /// Whether the page is protected, if the entry may be replaced. The table's lock is held.
    fn fillable(&self, over: Over) -> Option<bool> {
        match state(self.space.entry_at_rest(self.cell, self.page)) {
            EntryState::Empty => Some(self.is_protected),
            EntryState::Marker(markers) => match over {
                Over::Markers if !markers.contains(Markers::GUARD) => Some(self.is_protected),
                Over::Marks if markers == Markers::UFFD_WP => Some(true),
                _ => None,
            },
            _ => None,
        }
    }

    /// Maps the page that `object` has.
    fn map_present(&self, cpu: &Cpu, object: &Object) -> Result<Filled, FillError> {
        let (mmu, index) = (self.space.mmu(), self.area.page_at(self.page));
        loop {
            let found = object.present(cpu, index).map_err(|error| match error {
                NoPage::BehindTheEnd => FillError::Fault,
                NoPage::NoRoom | NoPage::OutOfMemory => OutOfMemory.into(),
            })?;
            let found = found.ok_or(FillError::Fault)?;
            {
                let locked = self.space.lock_table(self.table);
                let is_protected = self.fillable(Over::Markers).ok_or(FillError::Exists)?;
                if found.is_current(mmu, || object.has_inside(index)) {
                    let frame = found.frame();
                    // As for a fault, no reference is held: the object has the frame while the table is locked.
                    self.space.common.record(frame).share();
                    self.store(&locked, self.of_object(frame), is_protected);
                    return Ok(Filled::Done);
                }
            }
            if found.is_migrating(mmu) {
                return Ok(Filled::OnItsWay);
            }
            relax();
        }
    }

    /// The entry of a `frame` of the object: one that permits stores where all see them.
    fn of_object(&self, frame: PhysAddr) -> Descriptor {
        let protection = self.area.protection();
        let new = match self.area.is_shared() {
            true => first_entry(frame, protection),
            false => Descriptor::page(frame, read_only_attributes(protection)),
        };
        self.space.prepared_for_fault(new, protection)
    }

    /// Stores `new`, protected or not. The table is `locked`.
    fn store(&self, locked: &TableGuard<'_>, new: Descriptor, is_protected: bool) {
        locked.note_used(self.page);
        self.space.mmu().store(self.cell, if is_protected { new.uffd_wp() } else { new });
    }

    /// Gives the page of the area's object the `frame`, and maps it.
    fn install_in_object(&self, cpu: &Cpu, frame: PhysAddr, over: Over) -> Result<(), FillError> {
        let object = self.area.object().ok_or(FillError::Exists)?;
        {
            let _locked = self.space.lock_table(self.table);
            self.fillable(over).ok_or(FillError::Exists)?;
        }
        let arrival = if is_watched(self.area) || over == Over::Marks { Arrival::Mapped } else { Arrival::Added };
        object.fill(cpu, self.area.page_at(self.page), frame, arrival, || {
            let locked = self.space.lock_table(self.table);
            // Where another CPU was faster, the page is the object's, and its first access is no message any more.
            if let Some(is_protected) = self.fillable(over) {
                self.space.common.record(frame).share();
                self.store(&locked, self.of_object(frame), is_protected);
            }
        })
    }
}
