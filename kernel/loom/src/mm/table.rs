//! A page of a space, by its entry in a table that is linked: the kernel's own lock of tables and looks at entries.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Markers, Protection};
use granule_pgtable::{EnsureError, Mmu, Stores};

use super::denied::Denied;
use super::entry::{EntryState, attributes, inherited, replace, rest_of_stale, set_access_flags, state, unwritable};
use super::error::FaultError;
use super::guard::{replace_by_guards, set_guards};
use super::look::{Glimpse, replace_frame};
use super::table_lock::TableGuard;
use crate::mm::frame::Frame;
use crate::sched::RwSem;
use crate::sync::atomic::AtomicU64;
use crate::sync::rank;
use crate::{Cpu, Machine};

const PAGE: VirtAddr = VirtAddr(0);
const OLD: PhysAddr = PhysAddr(0x4000_0000);
const NEW: PhysAddr = PhysAddr(0x4000_1000);

/// A page that is there, or a guard, whatever becomes of it.
pub struct MappedPage {
    machine: Machine,
    /// The record of the table, with its lock.
    table: Frame,
    areas: RwSem<()>,
    /// The entry of the page in a child, and the record of the old frame.
    child: AtomicU64,
    record: Frame,
}

/// The page in a child of a fork, or at a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Copied {
    /// The page.
    Page,
    /// The guard.
    Guard,
    /// Nothing: its next access makes a page of zeros.
    Nothing,
}

impl Copied {
    fn of(entry: Descriptor) -> Self {
        match entry {
            Descriptor::EMPTY => Self::Nothing,
            entry if entry == Descriptor::from(Markers::GUARD) => Self::Guard,
            _ => Self::Page,
        }
    }
}

impl MappedPage {
    /// A page in a frame that others have too.
    pub fn new(machine: Machine) -> Self {
        let page = Self::missing(machine);
        let cpu = page.machine.cpu(0);
        cpu.store(cell(&cpu), page_in(OLD));
        page
    }

    /// One that no access has made yet.
    pub fn missing(machine: Machine) -> Self {
        let areas = RwSem::new(rank::AREAS, ());
        let (table, child, record) = (Frame::default(), AtomicU64::new(0), Frame::default());
        record.hand_out();
        let page = Self { machine, table, areas, child, record };
        cell(&page.machine.cpu(0));
        page
    }

    /// Copy on write, as the kernel changes the entry.
    pub fn copy(&self, number: usize) {
        let cpu = self.machine.cpu(number);
        let _areas = self.areas.read();
        let _locked = lock(&self.table);
        replace_frame(&cpu, cell(&cpu), page_in(NEW), || cpu.dsb_ish());
    }

    /// Whether a fault that finds no page is denied, as where a pager wants SIGBUS.
    pub fn is_denied(&self, number: usize) -> bool {
        let cpu = self.machine.cpu(number);
        let _areas = self.areas.read();
        if !Glimpse::at(&cpu, cell(&cpu)).is_empty() {
            return false;
        }
        let locked = lock(&self.table);
        let denied = Denied::where_empty(&cpu, &locked, cell(&cpu), FaultError::Unusable);
        denied.is_some_and(|denied| denied.error() == FaultError::Unusable)
    }

    /// Whether the page is absent, as `mincore` looks.
    pub fn is_absent(&self, number: usize) -> bool {
        let cpu = self.machine.cpu(number);
        let _areas = self.areas.read();
        let locked = lock(&self.table);
        locked.entry(&cpu, cell(&cpu)).descriptor() == Descriptor::EMPTY
    }

    /// Whether it is, by a look without the lock.
    pub fn seems_absent(&self, number: usize) -> bool {
        let cpu = self.machine.cpu(number);
        Glimpse::at(&cpu, cell(&cpu)).is_empty()
    }

    /// Makes the page a guard, as `Space::madvise_guard`; whether a page was zapped.
    pub fn guard(&self, number: usize) -> bool {
        let cpu = self.machine.cpu(number);
        let _areas = self.areas.read();
        let cells = std::slice::from_ref(cell(&cpu));
        let is_set = set_guards(&cpu, &lock(&self.table), cells, |_| {});
        if !is_set {
            replace_by_guards(&cpu, lock(&self.table), cells, |_| {
                cpu.store(&cells[0], Descriptor::EMPTY);
                cpu.dsb_ish();
            });
        }
        !is_set
    }

    /// Likewise, where a look without the lock of the table finds nothing.
    pub fn guard_after_a_glimpse(&self, number: usize) -> bool {
        let cpu = self.machine.cpu(number);
        let areas = self.areas.read();
        if !Glimpse::at(&cpu, cell(&cpu)).is_empty() {
            drop(areas);
            return self.guard(number);
        }
        let _locked = lock(&self.table);
        cpu.store(cell(&cpu), Descriptor::from(Markers::GUARD));
        drop(areas);
        false
    }

    /// A load that makes a page of zeros, if there is nothing; whether it has.
    pub fn load(&self, number: usize) -> bool {
        let cpu = self.machine.cpu(number);
        let _areas = self.areas.read();
        let locked = lock(&self.table);
        let fillable = locked.entry(&cpu, cell(&cpu)).fillable();
        if let Some(fillable) = fillable {
            cpu.store(cell(&cpu), fillable.with(page_in(NEW)));
        }
        fillable.is_some()
    }

    /// Makes it one in two holds of the lock of the table; with `areas_too` also of that of the areas.
    pub fn guard_in_two_halves(&self, number: usize, areas_too: bool) {
        let cpu = self.machine.cpu(number);
        let mut areas = self.areas.read();
        {
            let _locked = lock(&self.table);
            cpu.store(cell(&cpu), Descriptor::EMPTY);
            cpu.dsb_ish();
        }
        if areas_too {
            drop(areas);
            areas = self.areas.read();
        }
        let _locked = lock(&self.table);
        cpu.store(cell(&cpu), Descriptor::from(Markers::GUARD));
        drop(areas);
    }

    /// A fork copies the entry; returns that of the child.
    pub fn fork(&self, number: usize) -> Copied {
        let cpu = self.machine.cpu(number);
        let _areas = self.areas.write();
        let (_locked, mut protected) = (lock(&self.table), false);
        copy_entry(&cpu, cell(&cpu), &self.child, |_| &self.record, &mut protected);
        Copied::of(cpu.load(&self.child))
    }

    /// Looks as a fault does, under the lock of the table.
    pub fn fault(&self, number: usize) -> Copied {
        let cpu = self.machine.cpu(number);
        let _areas = self.areas.read();
        self.look(&cpu)
    }

    fn look(&self, cpu: &Cpu<'_>) -> Copied {
        let locked = lock(&self.table);
        Copied::of(locked.entry(cpu, cell(cpu)).descriptor())
    }
}

/// An entry that a fault widens, and calls replace.
pub struct ChangedEntry {
    machine: Machine,
    table: Frame,
}

impl ChangedEntry {
    /// `entry`.
    pub fn new(machine: Machine, entry: Descriptor) -> Self {
        let page = Self { machine, table: Frame::default() };
        let cpu = page.machine.cpu(0);
        cpu.store(cell(&cpu), entry);
        page
    }

    /// The entry, as a walk finds it.
    pub fn load(&self, number: usize) -> Descriptor {
        let cpu = self.machine.cpu(number);
        cpu.load(cell(&cpu))
    }

    /// The fault of a store to a page that is its space's own, as the kernel serves it; whether that has changed the
    /// entry. `under_lock` runs before the unlock, where it has.
    pub fn upgrade(&self, number: usize, under_lock: impl FnOnce()) -> bool {
        let cpu = self.machine.cpu(number);
        let locked = lock(&self.table);
        let entry = locked.entry(&cpu, cell(&cpu)).descriptor();
        let is_upgraded =
            entry.is_present() && set_access_flags(&cpu, cell(&cpu), entry, entry.young().writable().dirty());
        if is_upgraded {
            cpu.dsb_ish();
            under_lock();
        }
        is_upgraded
    }

    /// The change of a call, with the DSB that completes it.
    pub fn replace(&self, number: usize, new: Descriptor) {
        let cpu = self.machine.cpu(number);
        let locked = lock(&self.table);
        let entry = locked.entry(&cpu, cell(&cpu)).descriptor();
        replace(&cpu, cell(&cpu), entry, |_| new);
        cpu.dsb_ish();
    }

    /// Waits for the lock of the table.
    pub fn wait_for_lock(&self) {
        drop(lock(&self.table));
    }
}

fn lock(table: &Frame) -> TableGuard<'_> {
    TableGuard::lock(table)
}

/// As `Space::copy_entry`, of what the kernel's file has for entries: its own is inlined where each instruction counts.
pub(super) fn copy_entry<'r, M: Stores>(
    mmu: &M,
    cell: &M::Cell,
    copy: &M::Cell,
    record: impl FnOnce(PhysAddr) -> &'r Frame,
    protected: &mut bool,
) {
    let mut entry = mmu.load(cell);
    match state(entry) {
        EntryState::Page | EntryState::Inaccessible => {}
        EntryState::Empty => return,
        // No TLB has what the child never had.
        EntryState::Stale => {
            mmu.store(copy, inherited(rest_of_stale(entry)));
            return;
        }
        // An entry that is not present holds no frame.
        EntryState::Marker(_) | EntryState::Migration | EntryState::Damaged => {
            let unwritable = unwritable(entry, false);
            if unwritable != entry {
                mmu.store(cell, unwritable);
            }
            mmu.store(copy, inherited(unwritable));
            return;
        }
    }
    if entry.may_be_written() {
        *protected = true;
        entry = replace(mmu, cell, entry, Descriptor::write_protected).write_protected();
    }
    if !entry.is_special() {
        record(entry.address()).share();
    }
    mmu.store(copy, entry.old());
}

fn page_in(frame: PhysAddr) -> Descriptor {
    Descriptor::page(frame, attributes(Protection::READ))
}

fn cell<'c>(cpu: &'c Cpu<'_>) -> &'c AtomicU64 {
    let linked = cpu.tables().ensure_cell(PAGE, &mut { *cpu }, || Ok::<_, EnsureError>(()));
    linked.expect("frames for tables").0.1
}
