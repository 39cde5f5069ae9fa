//! The pages of an object, the kernel's own source, with one page and an address space that may map it, by the entry of
//! a page or by one above, as a block.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_pgtable::{EnsureError, Mmu, Stores};

use super::look::Fillable;
use super::table_lock::TableGuard;
use crate::mm::frame::Frame;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::{Cpu, Machine, Watched};

#[allow(clippy::duplicate_mod, reason = "the objects of areas have pages too, without migration")]
#[path = "../../../src/mm/space/shmem/pages.rs"]
mod pages;

use pages::{Arrival, Found, FoundBlock};

/// The page of the object in the machine's tables, and the page of the space, which another table translates.
const OF_OBJECT: VirtAddr = VirtAddr(0);
const OF_SPACE: VirtAddr = VirtAddr(4 << 12);
/// The frame that the object has.
const FRAME: PhysAddr = PhysAddr(0x4000_0000);
/// The frame that the page moves to.
const MOVED: PhysAddr = PhysAddr(0x4000_1000);

/// In the entry of a page that a pager has filled and protected.
const PROTECTED: u64 = 1 << 57;

/// The entry of a page, whose table is linked if it is missing.
fn ensure<'c>(cpu: &'c Cpu<'_>, at: VirtAddr) -> &'c AtomicU64 {
    let linked = cpu.tables().ensure_cell(at, &mut { *cpu }, || Ok::<_, EnsureError>(()));
    linked.expect("frames for tables").0.1
}

/// The lock of a table.
fn lock(table: &Frame) -> TableGuard<'_> {
    TableGuard::lock(table)
}

/// The entry of a page in `frame`, over what is there.
fn entry_of(frame: PhysAddr) -> impl FnOnce(Fillable) -> Descriptor {
    move |fillable| fillable.with(Descriptor(frame.0 | 1))
}

/// An object with one page, a space, and the frame of the page.
pub struct SharedPage {
    machine: Machine,
    /// In pages.
    size: AtomicU64,
    /// The entry above the last level: empty, or the block's, whose valid bit comes last.
    block: AtomicU64,
    /// The record of the table of the space, with its lock.
    table: Frame,
    record: Frame,
    /// The record of the frame that the page moves to.
    moved_record: Frame,
    /// The contents of the frame.
    contents: Watched<u32>,
    /// And in the one that the page moves to.
    moved: Watched<u32>,
    /// Whether a program has stored to it.
    is_written: AtomicU64,
}

impl SharedPage {
    /// The object has its page, no entry maps it, and the table that would is linked or not.
    ///
    /// # Panics
    /// The machine has too few frames for its tables.
    pub fn new(machine: Machine, is_linked: bool) -> Self {
        let page = Self {
            machine,
            size: AtomicU64::new(1),
            block: AtomicU64::new(0),
            table: Frame::default(),
            record: Frame::default(),
            moved_record: Frame::default(),
            contents: Watched::default(),
            moved: Watched::default(),
            is_written: AtomicU64::new(0),
        };
        let cpu = page.machine.cpu(0);
        page.record.hand_out();
        page.moved_record.hand_out();
        pages::add(&cpu, ensure(&cpu, OF_OBJECT), FRAME, |_| panic!("the page is a hole"));
        if is_linked {
            ensure(&cpu, OF_SPACE);
        }
        page
    }

    /// A fault at the page of the space, as the kernel serves it; whether it has to wait for a migration.
    pub fn fault(&self, number: usize) -> bool {
        let cpu = self.machine.cpu(number);
        let is_inside = || self.size.load(Ordering::Relaxed) > 0;
        let found = Found::look(&cpu, ensure(&cpu, OF_OBJECT)).filter(|_| is_inside());
        let Some(found) = found else { return false };
        let is_missing = cpu.tables().cell(OF_SPACE).is_none();
        let cell = ensure(&cpu, OF_SPACE);
        if is_missing {
            pages::order();
        }
        let locked = lock(&self.table);
        let record = if found.frame() == FRAME { &self.record } else { &self.moved_record };
        found.map(&cpu, locked.entry(&cpu, cell), cell, || record, is_inside, entry_of(found.frame()));
        match cpu.load(cell) {
            Descriptor::EMPTY => {
                drop(locked);
                return found.is_migrating(&cpu);
            }
            entry if entry.address() == MOVED => _ = self.moved.read(),
            _ => _ = self.contents.read(),
        }
        false
    }

    /// A fault that maps the page as a block.
    pub fn fault_by_block(&self, number: usize) {
        /// Not valid.
        const PLACE: u64 = 2;
        let cpu = self.machine.cpu(number);
        let is_inside = || self.size.load(Ordering::Relaxed) > 0;
        let cells = core::slice::from_ref(ensure(&cpu, OF_OBJECT));
        let Some(found) = FoundBlock::look(&cpu, cells).filter(|_| is_inside()) else { return };
        let _locked = lock(&self.table);
        if self.block.compare_exchange(0, PLACE, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        pages::order();
        let is_mapped = found.is_current(&cpu, is_inside);
        if is_mapped {
            self.record.share();
        }
        self.block.store(if is_mapped { found.block().0 | 1 } else { 0 }, Ordering::Relaxed);
        if is_mapped {
            self.contents.read();
        }
    }

    /// A store to a page that the object has not yet: the frame is added, and mapped if the object still reaches to it.
    /// The table of the space is linked.
    pub fn fault_at_hole(&self, number: usize) {
        let cpu = self.machine.cpu(number);
        let is_inside = || self.size.load(Ordering::Relaxed) > 0;
        if !is_inside() {
            return;
        }
        self.record.hand_out();
        let found = pages::add(&cpu, ensure(&cpu, OF_OBJECT), FRAME, |_| panic!("the page is a hole"));
        pages::order();
        let cell = ensure(&cpu, OF_SPACE);
        let locked = lock(&self.table);
        let seen = locked.entry(&cpu, cell);
        if found.map(&cpu, seen, cell, || &self.record, is_inside, entry_of(found.frame())) {
            self.is_written.store(1, Ordering::Relaxed);
        }
    }

    /// Makes the page a hole, before the threads begin.
    ///
    /// # Panics
    /// The page is mapped.
    pub fn punch(&self) {
        let cpu = self.machine.cpu(0);
        assert!(pages::take(&cpu, ensure(&cpu, OF_OBJECT)).is_some() && self.record.put());
        self.record.free().expect("one reference");
    }

    /// Makes the page one that has a frame and is not used yet, before the threads begin.
    ///
    /// # Panics
    /// The page is mapped.
    pub fn spare(&self) {
        self.punch();
        self.record.hand_out();
        let cpu = self.machine.cpu(0);
        assert!(pages::add_spare(&cpu, ensure(&cpu, OF_OBJECT), FRAME), "the page is a hole");
    }

    /// A fault at such a page.
    pub fn fault_at_spare(&self, number: usize) {
        let cpu = self.machine.cpu(number);
        pages::use_spare(&cpu, ensure(&cpu, OF_OBJECT));
        self.fault(number);
    }

    /// A pager fills the hole and maps the page, protected; the table of the space is linked. Where it `is_found_early`,
    /// other faults map the page as soon as the object has it.
    ///
    /// # Panics
    /// The page is no hole.
    pub fn fill_protected(&self, number: usize, is_found_early: bool) {
        let cpu = self.machine.cpu(number);
        self.record.hand_out();
        self.contents.write(1);
        let cell = ensure(&cpu, OF_OBJECT);
        let arrival = if is_found_early { Arrival::Added } else { Arrival::Mapped };
        assert!(pages::add_filled(&cpu, cell, FRAME, arrival), "the page is a hole");
        {
            let _locked = lock(&self.table);
            let mapped = ensure(&cpu, OF_SPACE);
            if cpu.load(mapped) == Descriptor::EMPTY {
                self.record.share();
                cpu.store(mapped, Descriptor(FRAME.0 | PROTECTED | 1));
            }
        }
        if !is_found_early {
            pages::end_migration(&cpu, cell, FRAME);
        }
    }

    /// Whether the page is mapped, and protected.
    pub fn is_protected(&self) -> bool {
        let cpu = self.machine.cpu(0);
        cpu.load(ensure(&cpu, OF_SPACE)).0 & PROTECTED != 0
    }

    /// Whether the object has a frame beyond its end that was stored to.
    pub fn shows_old_bytes(&self) -> bool {
        let cpu = self.machine.cpu(0);
        cpu.load(ensure(&cpu, OF_OBJECT)) != Descriptor::EMPTY && self.is_written.load(Ordering::Relaxed) != 0
    }

    /// A truncation of the object to nothing.
    ///
    /// # Panics
    /// The frame has other holders than the entry and the object.
    pub fn truncate(&self, number: usize) {
        let cpu = self.machine.cpu(number);
        self.size.store(0, Ordering::Relaxed);
        pages::order();
        let taken = pages::take(&cpu, ensure(&cpu, OF_OBJECT));
        pages::order();
        if let Some((_, cell)) = cpu.tables().cell(OF_SPACE) {
            let _locked = lock(&self.table);
            if cpu.load(cell) != Descriptor::EMPTY {
                cpu.store(cell, Descriptor::EMPTY);
                assert!(!self.record.put(), "the object's reference is left");
            }
        }
        if self.block.load(Ordering::Relaxed) != 0 {
            let _locked = lock(&self.table);
            if self.block.load(Ordering::Relaxed) != 0 {
                self.block.store(0, Ordering::Relaxed);
                assert!(!self.record.put(), "the object's reference is left");
            }
        }
        if taken.is_some() && self.record.put() {
            // Its next owner writes to it.
            self.contents.write(1);
            self.record.free().expect("one reference");
        }
    }

    /// A migration of the page.
    ///
    /// # Panics
    /// The frame has other holders than the entry and the object.
    pub fn migrate(&self, number: usize) {
        let cpu = self.machine.cpu(number);
        let cell = ensure(&cpu, OF_OBJECT);
        assert!(pages::start_migration(&cpu, cell, FRAME));
        pages::order();
        if let Some((_, cell)) = cpu.tables().cell(OF_SPACE) {
            let _locked = lock(&self.table);
            if cpu.load(cell) != Descriptor::EMPTY {
                cpu.store(cell, Descriptor::EMPTY);
                assert!(!self.record.put(), "the object's reference is left");
            }
        }
        assert_eq!(self.record.references(), 1, "objects: an entry shows what is on its way");
        self.moved.write(2);
        cpu.dmb_ishst();
        pages::end_migration(&cpu, cell, MOVED);
        assert!(self.record.put());
        // Its next owner writes to it.
        self.contents.write(1);
        self.record.free().expect("one reference");
    }

    /// Whether the page is on its way or has been moved, and no entry has the old frame.
    pub fn has_moved(&self) -> bool {
        let cpu = self.machine.cpu(0);
        let is_old = |entry: Descriptor| entry.address() == FRAME;
        let object = cpu.load(ensure(&cpu, OF_OBJECT));
        !is_old(object) && cpu.tables().cell(OF_SPACE).is_none_or(|(_, cell)| !is_old(cpu.load(cell)))
    }

    /// Whether an entry of the space has the page.
    pub fn is_mapped(&self) -> bool {
        let cpu = self.machine.cpu(0);
        let has_page = cpu.tables().cell(OF_SPACE).is_some_and(|(_, cell)| cpu.load(cell) != Descriptor::EMPTY);
        has_page || self.block.load(Ordering::Relaxed) != 0
    }

    /// How many hold the frame.
    pub fn holders(&self) -> u32 {
        self.record.references()
    }
}
