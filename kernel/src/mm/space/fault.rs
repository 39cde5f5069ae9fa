//! A fault: which area, which page, and what the entry needs.
//!
//! ```text
//! no entry       read   the page of zeros          write   a new page of zeros        shared   the object's page
//! read-only      write  copied, or reused where nobody else has it (`cow`)
//! old, clean     access flag and dirt by software, where the hardware has not set them
//! fine           the TLB was behind: this CPU's entry goes, and the access is tried again
//! ```
//! [`handle_fault`] is not tied to the program that runs: devices and the kernel's own accesses come here too. It holds
//! the areas' lock for reading, so that what it found stays true but for other faults; the entry is looked at again
//! under its table's lock, and memory is taken before that.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Markers, Protection};
use granule_pgtable::{EnsureError, Mmu};
use thiserror::Error;

use super::area::{Area, Backing};
use super::cow::Reuse;
use super::entry::{State, attributes, permits_loads, set_access_flags, state};
use super::{Cell, PAGE, Space};
use crate::lab;
use crate::mm::OutOfMemory;
use crate::smp::Cpu;

/// What was tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or an atomic.
    Write,
    /// A fetch.
    Execute,
}

/// Why a fault cannot be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FaultError {
    /// Nothing is mapped there: SIGSEGV with `SEGV_MAPERR`.
    #[error("nothing is mapped there")]
    NotMapped,
    /// The area does not allow it: SIGSEGV with `SEGV_ACCERR`.
    #[error("not allowed there")]
    NotAllowed,
    /// There is no memory for the page.
    #[error("out of memory")]
    OutOfMemory,
    /// The entry is none that an access can use: SIGBUS.
    #[error("the page cannot be used")]
    Unusable,
}

impl From<OutOfMemory> for FaultError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<EnsureError> for FaultError {
    fn from(error: EnsureError) -> Self {
        match error {
            EnsureError::OutOfTables => Self::OutOfMemory,
            EnsureError::Block => Self::Unusable,
        }
    }
}

/// Serves a fault of `access` at `address`, or says why it cannot be served. On success the access is tried again; it
/// may fault again, where another CPU was faster or the hardware needs two steps.
///
/// Sleeps: not from interrupts. `cpu` is the CPU that this runs on.
///
/// # Errors
/// [`FaultError`]; nothing was changed.
#[inline]
pub fn handle_fault(space: &Space, cpu: &Cpu, address: VirtAddr, access: Access) -> Result<(), FaultError> {
    let page = address.align_down(PAGE);
    if serve(space, cpu, page, access)? == Served::Upgraded {
        // No lock is held: who is told may sleep, or look anywhere. By now the page may be anything, or gone.
        if !lab::is_on!(NOTIFY_BEFORE_UNLOCK) {
            space.notifiers.upgraded(page);
        }
    }
    Ok(())
}

/// What became of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Served {
    /// Nobody need hear more of it than was told on the way.
    Quietly,
    /// The entry was read-only or old, and became writable or young.
    Upgraded,
}

#[inline(always)]
fn serve(space: &Space, cpu: &Cpu, page: VirtAddr, access: Access) -> Result<Served, FaultError> {
    let areas = space.areas.read();
    let area = areas.find(page).ok_or(FaultError::NotMapped)?;
    if !allows(area.protection(), access) {
        return Err(FaultError::NotAllowed);
    }
    let Some((table, cell)) = space.page_tables().cell(page) else {
        return space.first_page_of_table(cpu, area, page, access);
    };
    let entry = space.mmu().load(cell);
    if entry == Descriptor::EMPTY {
        let new = space.new_page(cpu, area, page, access)?;
        space.install_or_drop(cpu, table, page, cell, new);
        return Ok(Served::Quietly);
    }
    let fault = Fault { space, cpu, area, page, table, cell, access };
    if access == Access::Write && !entry.may_be_written() {
        return match fault.reuse() {
            Reuse::Done(served) => served,
            Reuse::Copy(entry) => fault.copy_on_write(entry),
        };
    }
    fault.present()
}

/// Whether an area with `protection` lets `access` through.
#[inline(always)]
pub(super) fn allows(protection: Protection, access: Access) -> bool {
    match access {
        Access::Read => permits_loads(protection),
        Access::Write => protection.contains(Protection::WRITE),
        Access::Execute => protection.contains(Protection::EXECUTE),
    }
}

/// A fault that an area allows, and where its entry is.
pub(super) struct Fault<'a> {
    pub(super) space: &'a Space,
    pub(super) cpu: &'a Cpu,
    pub(super) area: &'a Area,
    /// The first address of the page.
    pub(super) page: VirtAddr,
    /// The last-level table.
    pub(super) table: PhysAddr,
    /// The entry in it.
    pub(super) cell: &'a Cell,
    pub(super) access: Access,
}

impl Fault<'_> {
    /// The entry allows the access, as far as software knows.
    #[cold]
    fn present(&self) -> Result<Served, FaultError> {
        let mmu = self.space.mmu();
        let _locked = self.space.lock_table(self.table);
        let entry = mmu.load(self.cell);
        let is_write = self.access == Access::Write;
        if state(entry) != State::Page {
            return self.not_a_page(entry);
        }
        if self.access == Access::Execute && !entry.is_user_executable() {
            // Entries follow their areas: this one does not, and a retry would fault for ever.
            return Err(FaultError::Unusable);
        }
        if is_write && !entry.may_be_written() {
            // Another CPU has changed it: what it needs now, the next fault says.
            return Ok(Served::Quietly);
        }
        Ok(self.allow_more(entry, if is_write { entry.young().dirty() } else { entry.young() }))
    }

    /// Serves what is no page: each state changes so that the retry gets further, or is an error. The table's lock is
    /// held.
    #[cold]
    pub(super) fn not_a_page(&self, entry: Descriptor) -> Result<Served, FaultError> {
        let mmu = self.space.mmu();
        match state(entry) {
            // Another CPU has emptied it: the retry finds it so.
            State::Empty | State::Page => {}
            State::Inaccessible => {
                // No TLB has it. What a store needs beyond that, the next fault says.
                let accessible = if entry.is_fault_on_access() {
                    entry.accessible()
                } else {
                    entry.modified(attributes(self.area.protection().read_only()))
                };
                if accessible.is_user_executable() {
                    self.space.make_code_visible(accessible);
                }
                mmu.store(self.cell, accessible.young());
            }
            State::Marker(markers) if markers.contains(Markers::GUARD) => return Err(FaultError::NotMapped),
            State::Marker(markers) if markers.contains(Markers::POISONED) => return Err(FaultError::Unusable),
            // Nothing watches the page that it was made for.
            State::Marker(_) => mmu.store(self.cell, Descriptor::EMPTY),
            State::Migration(_) | State::Damaged => return Err(FaultError::Unusable),
        }
        Ok(Served::Quietly)
    }

    /// Makes `entry`, which is here, let more through; `wanted` does. Where it did already, the TLB was behind. The
    /// table's lock is held.
    #[inline(always)]
    pub(super) fn allow_more(&self, entry: Descriptor, wanted: Descriptor) -> Served {
        let mmu = self.space.mmu();
        if !set_access_flags(mmu, self.cell, entry, wanted) {
            self.space.tlb().fix_spurious(mmu, self.page);
            return Served::Quietly;
        }
        self.space.tlb().access_widened(mmu, self.page);
        if lab::is_on!(NOTIFY_BEFORE_UNLOCK) {
            self.space.notifiers.upgraded(self.page);
        }
        Served::Upgraded
    }
}

impl Space {
    /// The entry for `page` of `area`, which has none yet, at its first `access`. It has a hold of its frame.
    #[inline(always)]
    fn new_page(&self, cpu: &Cpu, area: &Area, page: VirtAddr, access: Access) -> Result<Descriptor, OutOfMemory> {
        let protection = area.protection();
        Ok(match area.backing() {
            Backing::Private if access == Access::Write => {
                Descriptor::page(self.common.frames.alloc_zeroed(cpu)?, attributes(protection)).dirty()
            }
            Backing::Private => Descriptor::page(self.common.zeros, attributes(protection.read_only())).special(),
            Backing::Shared { object, first_page } => {
                let frame = object.frame(cpu, first_page + (page - area.start()) / PAGE)?;
                let entry = Descriptor::page(frame, attributes(protection));
                if access == Access::Write { entry.dirty() } else { entry }
            }
        })
    }

    /// Serves a fault where there is no table either.
    #[cold]
    fn first_page_of_table(
        &self,
        cpu: &Cpu,
        area: &Area,
        page: VirtAddr,
        access: Access,
    ) -> Result<Served, FaultError> {
        let mut made = None;
        let prepare = || -> Result<(), FaultError> {
            made = Some(self.new_page(cpu, area, page, access)?);
            Ok(())
        };
        let ensured = self.page_tables().ensure_cell(page, &mut self.table_source(cpu), prepare);
        match (ensured, made) {
            (Ok(((table, cell), ())), Some(new)) => {
                self.install_or_drop(cpu, table, page, cell, new);
                Ok(Served::Quietly)
            }
            (Err(error), Some(new)) => {
                self.drop_new(cpu, new);
                Err(error)
            }
            (ensured, None) => ensured.map(|_| Served::Quietly),
        }
    }

    /// Puts `new` into `cell` of `table`, unless another CPU was faster.
    #[inline(always)]
    fn install_or_drop(&self, cpu: &Cpu, table: PhysAddr, page: VirtAddr, cell: &Cell, new: Descriptor) {
        if !self.install(table, page, cell, new) {
            self.drop_new(cpu, new);
        }
    }

    /// Gives up the hold of its frame that `new` has, which no entry has become.
    fn drop_new(&self, cpu: &Cpu, new: Descriptor) {
        if !new.is_special() {
            self.let_go(cpu, new.address());
        }
    }

    /// Puts `new` into `cell` of `table`, if nothing is there; whether so.
    #[inline(always)]
    pub(super) fn install(&self, table: PhysAddr, page: VirtAddr, cell: &Cell, new: Descriptor) -> bool {
        let mmu = self.mmu();
        if new.is_user_executable() {
            self.make_code_visible(new);
        }
        // What is in the page before the entry that shows it: whoever reads it through the entry walks there first,
        // which orders the two.
        mmu.dmb_ishst();
        let locked = self.lock_table(table);
        let empty = mmu.load(cell) == Descriptor::EMPTY;
        if empty {
            locked.note_used(page);
            // No barrier behind it: at worst the access faults once more, and finds the entry there.
            mmu.store(cell, new);
        }
        empty
    }

    /// Lets go of one hold of `frame`, which no entry has any more, or none ever had.
    pub(super) fn let_go(&self, cpu: &Cpu, frame: PhysAddr) {
        if self.common.record(frame).let_go() {
            self.common.frames.free(cpu, frame);
        }
    }
}
