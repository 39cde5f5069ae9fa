//! One CPU with its MMU off: plain loads and stores.

use core::marker::PhantomData;
use core::sync::atomic::Ordering;

use granule_arch::addr::VirtAddr;
use granule_arch::barrier;
use granule_arch::descriptor::Descriptor;
use granule_arch::tlbi::Instruction;

use super::{Cell, cells};
use crate::geometry::{Geometry, Granule4K};
use crate::mmu::{Mmu, Stores, Table};

/// The one CPU that runs, before its MMU is on: a table is at its physical address, and no access is exclusive, nor an
/// atomic read and write. See [the module](super#before-the-mmu-is-on) for what comes around it.
///
/// It is neither `Send` nor `Sync`: with a second CPU its steps of two accesses would be none.
#[derive(Clone, Copy, Debug)]
pub struct MmuOff<G: Geometry = Granule4K>(PhantomData<(G, *const ())>);

impl<G: Geometry> MmuOff<G> {
    /// This CPU.
    ///
    /// # Safety
    /// 1. For as long as it is used, the MMU is off or maps tables at their physical addresses, and no other CPU or walk
    ///    uses them.
    /// 2. Code that it is given to keeps the contract of [`Mmu::write`], as that of every machine that [`Stores`].
    pub const unsafe fn new() -> Self {
        Self(PhantomData)
    }
}

// SAFETY: 1. A `Table` proves that there is one at the address, which is physical. 2. Aligned 64-bit loads and stores
// are single-copy atomic to Device memory too, and in program order there. 3. `granule_arch::barrier` is those barriers.
// 4. The bulk methods are the defaults. Compare-exchange and bit-clear are two accesses, between which nothing happens:
// no other CPU runs, by the contract of `new`.
unsafe impl<G: Geometry> Mmu for MmuOff<G> {
    type Geometry = G;
    type Cell = Cell;

    fn table(&self, table: Table<G>) -> &[Cell] {
        // SAFETY: a `Table` proves it.
        unsafe { cells(table, VirtAddr(table.address().0)) }
    }

    fn load(&self, cell: &Cell) -> Descriptor {
        Descriptor(cell.0.load(Ordering::Relaxed))
    }

    unsafe fn write(&self, cell: &Cell, descriptor: Descriptor) {
        cell.0.store(descriptor.0, Ordering::Relaxed);
    }

    unsafe fn exchange(&self, cell: &Cell, current: Descriptor, new: Descriptor) -> Result<(), Descriptor> {
        let found = self.load(cell);
        if found != current {
            return Err(found);
        }
        // SAFETY: the caller's contract.
        unsafe { self.write(cell, new) };
        Ok(())
    }

    unsafe fn clear(&self, cell: &Cell, mask: u64) -> Descriptor {
        let old = self.load(cell);
        // SAFETY: the caller's contract.
        unsafe { self.write(cell, Descriptor(old.0 & !mask)) };
        old
    }

    fn tlbi(&self, instruction: Instruction) {
        instruction.execute();
    }

    fn dmb_ishst(&self) {
        barrier::dmb_ishst();
    }

    fn dsb_ishst(&self) {
        barrier::dsb_ishst();
    }

    fn dsb_ish(&self) {
        barrier::dsb_ish();
    }

    fn isb(&self) {
        barrier::isb();
    }
}

// SAFETY: the contract of `new`.
unsafe impl<G: Geometry> Stores for MmuOff<G> {}
