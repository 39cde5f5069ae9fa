//! Registers of devices in a process (Linux: a `VM_PFNMAP` area of a character device).
//!
//! A device that is bound to a space may show it a page of its registers. They are an object of that binding: areas map it
//! as they map a file, and the end of the binding [revokes](Object::revoke) it, by the same walk that cuts a file short.
//! The next binding has another object, so an area that is left maps nothing for ever.
//!
//! ```text
//!     first access     read-only, whatever it is (`insert_pfn`)
//!     first store      writable; subscribers get the upgrade event (`pfn_mkwrite`)
//!     revoke           the object has no page; every entry is emptied, invalidated and announced; then the stream changes
//! ```
//! The entries are special: no frame is counted. Nothing is executed through them, and a child has none of these areas.
//!
//! A device that is bound walks the tables as EL1 does, and would read execute-only pages. Ranges that its driver hands
//! over are checked ([`Space::check_el0_may`]); accesses that a program starts by registers are not. **Rule: a space
//! that has mapped registers has no execute-only pages.** On Linux the device is unprivileged, and its access faults.

use core::ops::Range as Addresses;
use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, Protection};
use granule_pgtable::{Mmu, Stores};

use super::access::{Access, allows};
use super::address_space::{REGISTERS, Space};
use super::area::tree::Areas;
use super::area::{Area, AreaFlags};
use super::denied::Denied;
use super::entry::attributes;
use super::error::{FaultError, Refusal, SpaceError};
use super::gather::Gather;
use super::outcome::{AllowedFault, FaultOutcome};
use super::range::{USER_END, USER_START, pages};
use super::shmem::{Object, Seals};
use super::spaces::Spaces;
use super::zap::ZapFlags;
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::mm::frame_limit::FrameShare;
use crate::mm::notifier::{Event, Range};
use crate::sched::relax;
use crate::smp::Cpu;

/// A device with registers that a process may map.
pub trait HasRegisters: Sync {
    /// The object of its registers, if it is bound to `space`.
    fn registers(&self, space: &Space) -> Option<Counted<Object>>;
}

impl Spaces {
    /// The object of a page of registers at `page`, for one binding. Areas map it shared, and all of it.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn create_registers(&'static self, cpu: &Cpu, page: PhysAddr) -> Result<Counted<Object>, OutOfMemory> {
        self.new_object(cpu, PAGE, None, Some(page), Seals(0), FrameShare::new(None))
    }
}

impl Object {
    /// Takes registers out of every space, for good. CPUs and devices translate to them no more. Sleeps.
    pub fn revoke(&self, cpu: &Cpu) {
        debug_assert!(self.registers().is_some());
        // There are no seals, and no size is smaller.
        let revoked = self.truncate(cpu, 0);
        debug_assert!(revoked.is_ok());
    }
}

impl Area {
    /// Whether it maps registers.
    #[inline(always)]
    pub(super) fn is_of_device(&self) -> bool {
        self.flags().has_any(AreaFlags::REGISTERS)
    }

    /// The attributes of its pages with `protection`.
    #[inline(always)]
    pub(super) fn attributes(&self, protection: Protection) -> Attributes {
        self.flags().attributes(attributes(protection))
    }
}

/// Whether EL0 executes pages with `protection` and does not read them.
fn is_execute_only(protection: Protection) -> bool {
    protection.accesses() == Protection::EXECUTE && !allows(protection, Access::Read)
}

impl AllowedFault<'_> {
    /// Maps the page of registers at `frame`, which `object` is, read-only; unless another CPU was faster. A store comes again.
    #[cold]
    #[inline(never)]
    pub(super) fn map_registers(self, object: &Object, frame: PhysAddr) -> FaultOutcome {
        let (space, mmu) = (self.space, self.space.mmu());
        let new = Descriptor::page(frame, self.area.attributes(self.area.protection().read_only())).special();
        let locked = space.lock_table(self.table);
        // As for a page of a file: a revocation that is not seen here comes to this table later (`shmem::pages`).
        if !object.has_inside(self.area.page_at(self.page)) {
            let denied = Denied::where_empty(mmu, &locked, self.cell, FaultError::Unusable);
            return denied.map_or(FaultOutcome::Served, FaultOutcome::Failed);
        }
        if mmu.load(self.cell) == Descriptor::EMPTY {
            locked.note_used(self.page);
            mmu.store(self.cell, new);
        }
        FaultOutcome::Served
    }
}

impl Space {
    /// Whether EL0 may `access` what a program has in `range`, as far as a walker that is privileged would not be
    /// refused: such a walker reads execute-only pages, whose `AP[1]` binds EL0 alone. An access that neither may make
    /// is left to the walker. Sleeps.
    ///
    /// # Errors
    /// [`FaultError::NotAllowed`] for a load of what may only be executed, and for a range that continues after a
    /// program's addresses, where the pages of devices are.
    pub fn check_el0_may(&self, access: Access, range: &Addresses<u64>) -> Result<(), FaultError> {
        if range.start < USER_END.0 && range.end > USER_END.0 {
            return Err(FaultError::NotAllowed);
        }
        let start = VirtAddr(range.start).align_down(PAGE).max(USER_START);
        let end = VirtAddr(range.end.min(USER_END.0).next_multiple_of(PAGE));
        if access != Access::Read || start >= end {
            return Ok(());
        }
        let mut may = true;
        self.areas.for_each(pages(start, end), &mut |areas, piece| {
            may = areas.walk(piece).all(|area| !is_execute_only(area.protection()));
            may
        });
        if may { Ok(()) } else { Err(FaultError::NotAllowed) }
    }

    /// Whether an area may have `protection`: not execute-only beside registers. The areas are locked.
    #[inline(always)]
    pub(super) fn may_have(&self, protection: Protection) -> bool {
        protection.accesses() != Protection::EXECUTE || self.may_hide(protection)
    }

    /// Whether a new area may have `protection`. The areas are locked.
    #[inline(always)]
    pub(super) fn may_map(&self, protection: Protection) -> bool {
        !protection.contains(Protection::EXECUTE) || self.may_map_code(protection)
    }

    #[cold]
    #[inline(never)]
    fn may_map_code(&self, protection: Protection) -> bool {
        self.may_have(protection) && !self.settings().deny(protection, protection)
    }

    #[cold]
    fn may_hide(&self, protection: Protection) -> bool {
        !is_execute_only(protection) || self.hints.load(Ordering::Relaxed) & REGISTERS == 0
    }

    /// Whether registers may be mapped beside `areas`.
    pub(super) fn check_registers(&self, areas: &Areas) -> Result<(), Refusal> {
        if !areas.is_whole() {
            return Err(Refusal::ByPart);
        }
        let hides = areas.walk(pages(USER_START, USER_END)).any(|area| is_execute_only(area.protection()));
        if hides { Err(SpaceError::NotAllowed.into()) } else { Ok(()) }
    }

    /// Makes `area`, which is about to be inserted, one of registers.
    #[cold]
    pub(super) fn begin_registers(&self, area: &mut Area) {
        self.hints.fetch_or(REGISTERS, Ordering::Relaxed);
        area.add_flags(AreaFlags::REGISTERS.with(AreaFlags::NOT_IN_CHILDREN));
    }

    /// Unmaps all registers of a space that is about to end, while its subscribers still listen.
    pub(super) fn unmap_registers(&self, cpu: &Cpu, areas: &mut Areas) {
        if self.hints.load(Ordering::Relaxed) & REGISTERS == 0 {
            return;
        }
        let mut next = USER_START;
        while next < USER_END {
            let found = areas.walk(pages(next, USER_END)).find(|area| area.is_of_device()).map(Area::range);
            let Some(range) = found else { break };
            next = range.end();
            let _change = self.notifiers.start(Range::new(Event::Unmap, range.start(), range.end()));
            self.zap(&mut Gather::without_faults(self, cpu, areas), range, ZapFlags::UNMAP);
            relax();
        }
    }
}
