//! An interrupt in the middle of a lazy section, whose handler changes entries of its own.
//!
//! The handler opens its own section and pays for it; it neither pays for the section that it interrupts nor is paid
//! for by it. Tried at every operation of a call: the two streams are those of the calls alone, one inside the other.

use std::cell::{Cell, RefCell};

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::Descriptor;
use granule_arch::tlbi::Instruction;
use granule_pgtable::host::{HostMachine, HostMmu, HostTlb, Operation};
use granule_pgtable::metal::Cell as Entry;
use granule_pgtable::{
    Change, Granule4K, Invalidation, Lazy, Mmu, PageRange, PageTables, Shape, Stores, Table, Tlb, WholeLeaves,
};

use crate::barriers::check;
use crate::{BASE, DATA, KIB, LARGEST, MIB, map, range};

type Stream = Vec<Operation<Granule4K>>;

/// The CPU of a [`HostMachine`], which takes an interrupt before one of its operations.
pub(crate) struct Interrupted<'m> {
    mmu: &'m HostMmu,
    /// Operations until then.
    left: Cell<usize>,
    handler: RefCell<Option<Box<dyn FnOnce() + 'm>>>,
}

impl<'m> Interrupted<'m> {
    /// Runs `handler` before operation `at`.
    pub(crate) fn at(at: usize, mmu: &'m HostMmu, handler: impl FnOnce() + 'm) -> Self {
        Self { mmu, left: Cell::new(at), handler: RefCell::new(Some(Box::new(handler))) }
    }

    /// Whether there were so many operations.
    pub(crate) fn was_interrupted(&self) -> bool {
        self.handler.borrow().is_none()
    }

    fn step(&self) -> &HostMmu {
        match self.left.get() {
            0 => {
                let handler = self.handler.borrow_mut().take();
                handler.into_iter().for_each(|handler| handler());
            }
            left => self.left.set(left - 1),
        }
        self.mmu
    }
}

// SAFETY: everything is the host machine's; what comes in between is what an interrupt may do.
#[allow(unsafe_code, reason = "implementing the contract of `Mmu`")]
unsafe impl Mmu for Interrupted<'_> {
    type Geometry = Granule4K;
    type Cell = Entry;

    fn table(&self, table: Table) -> &[Entry] {
        self.mmu.table(table)
    }

    fn load(&self, cell: &Entry) -> Descriptor {
        self.step().load(cell)
    }

    unsafe fn write(&self, cell: &Entry, descriptor: Descriptor) {
        self.step().store(cell, descriptor);
    }

    unsafe fn exchange(&self, cell: &Entry, current: Descriptor, new: Descriptor) -> Result<(), Descriptor> {
        self.step().compare_exchange(cell, current, new)
    }

    unsafe fn clear(&self, cell: &Entry, mask: u64) -> Descriptor {
        self.step().clear_bits(cell, mask)
    }

    fn tlbi(&self, instruction: Instruction) {
        self.step().tlbi(instruction);
    }

    fn dmb_ishst(&self) {
        self.step().dmb_ishst();
    }

    fn dsb_ishst(&self) {
        self.step().dsb_ishst();
    }

    fn dsb_ish(&self) {
        self.step().dsb_ish();
    }

    fn isb(&self) {
        self.step().isb();
    }
}

// SAFETY: the tests change what they own; entries map no memory.
#[allow(unsafe_code, reason = "keeps the contract of `Stores`")]
unsafe impl Stores for Interrupted<'_> {}

/// Records its invalidations on the host machine behind it.
pub(crate) struct RecordingTlb;

impl<'m> Tlb<Interrupted<'m>> for RecordingTlb {
    fn issue(&self, mmu: &Interrupted<'m>, what: &Invalidation) {
        HostTlb.issue(mmu.step(), what);
    }
}

/// A machine with pages over two tables, of which the middle ones are present-invalid, and a page for the handler.
fn machine() -> (HostMachine, PageRange, PageRange) {
    let machine = HostMachine::new(8);
    let (whole, other) = (range(BASE + 2 * MIB - 8 * KIB, 16 * KIB), range(BASE, 4 * KIB));
    for range in [whole, other] {
        map(&machine, range, MIB, DATA, Shape::PAGES).unwrap();
    }
    change(&machine, range(BASE + 2 * MIB - 4 * KIB, 8 * KIB), Change::INVALID);
    (machine, whole, other)
}

fn change(machine: &HostMachine, range: PageRange, change: Change) {
    let lazy = Lazy::new(machine.mmu());
    let flush = machine.page_tables().update(&lazy, range, change, WholeLeaves).unwrap();
    lazy.invalidate(machine.tlb(), [flush]);
}

/// A section of everything, with one inside: pages made valid, new ones mapped, all made read-only.
fn work(machine: &HostMachine, cpu: &Interrupted<'_>, whole: PageRange) {
    let tables = PageTables::new(cpu, machine.page_tables().root());
    let new = range(BASE + 6 * MIB, 64 * KIB);
    let lazy = Lazy::new(cpu);
    assert!(tables.update(&lazy, whole, Change::VALID, WholeLeaves).unwrap().is_none());
    {
        let inner = lazy.nested();
        tables.map(&inner, new, PhysAddr(0), DATA, LARGEST, &mut machine.frames()).unwrap();
    }
    let flush = tables.update(&lazy, whole, Change::READ_ONLY, WholeLeaves).unwrap();
    lazy.invalidate(&RecordingTlb, [flush]);
    assert!(tables.update(&lazy, new, Change::EXECUTABLE, WholeLeaves).is_err());
}

/// The stream of the work when it takes an interrupt before operation `at`, and where in it the handler's is.
fn interrupted(at: usize, handler_change: Change) -> (Stream, Option<(usize, usize)>) {
    let (machine, whole, other) = machine();
    let place = Cell::new(None);
    let stream = machine.record(|| {
        let cpu = Interrupted::at(at, machine.mmu(), || {
            let before = machine.recorded();
            change(&machine, other, handler_change);
            place.set(Some((before, machine.recorded())));
        });
        work(&machine, &cpu, whole);
    });
    (stream, place.get())
}

#[test]
fn an_interrupt_pays_for_itself_and_for_nothing_else_wherever_it_comes() {
    let (undisturbed, none) = interrupted(usize::MAX, Change::INVALID);
    assert_eq!((none, check(&undisturbed)), (None, Ok(())));
    for handler_change in [Change::READ_ONLY, Change::INVALID] {
        let (machine, _, other) = machine();
        let alone = machine.record(|| change(&machine, other, handler_change));
        assert_eq!(check(&alone), Ok(()));
        let mut interrupts = 0;
        while let (stream, Some((from, to))) = interrupted(interrupts, handler_change) {
            assert_eq!(stream[from..to], alone, "at operation {interrupts}");
            let around = [&stream[..from], &stream[to..]].concat();
            assert_eq!(around, undisturbed, "at operation {interrupts}");
            interrupts += 1;
        }
        // Before every load, store, barrier and invalidation, not a handful.
        assert!(interrupts > 60, "{interrupts}");
    }
}

/// The substitutes for barriers that a machine does not have are no weaker.
#[test]
fn a_machine_without_local_or_repeated_barriers_has_dsb_ish_in_their_place() {
    let machine = HostMachine::new(1);
    let stream = machine.record(|| {
        let cpu = Interrupted::at(usize::MAX, machine.mmu(), || {});
        cpu.dsb_nsh();
        cpu.complete_tlbi();
    });
    assert_eq!(stream, [Operation::DsbIsh, Operation::DsbIsh]);
}
