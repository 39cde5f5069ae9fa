//! Shared anonymous memory: an object holds the frames, and every area of the object maps the same ones.
//!
//! An object is as large as the mapping that created it. Its frames are in a tree of tables that no hardware walks: a
//! lookup is a walk, an insertion a compare-exchange, and nothing else is needed. A frame stays with its object until
//! the object is dropped, so a lookup needs a reference and no lock.

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

use core::sync::atomic::{AtomicUsize, Ordering};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, bits};
use granule_pgtable::{Granule4K, Mmu, PageRange, PageTables, Table};

use super::{EntryCell, PAGE, SpaceSource, Spaces};
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::sched::relax;
use crate::smp::{Cpu, this_cpu};

/// Memory that several areas may map.
pub struct Object {
    common: &'static Spaces,
    identity: usize,
    root: Table,
    table_frames: AtomicUsize,
}

/// The identity of the next object. 64 bits do not overflow.
static NEXT_IDENTITY: AtomicUsize = AtomicUsize::new(0);

impl Spaces {
    /// An object without frames.
    pub(super) fn create_object(&'static self, cpu: &Cpu) -> Result<Counted<Object>, OutOfMemory> {
        let root = self.frames.alloc_zeroed(cpu)?;
        // Where there is no memory for the object, its drop frees the root.
        Counted::try_new(
            &self.objects,
            Object {
                common: self,
                // Relaxed: the numbers differ, and order nothing.
                identity: NEXT_IDENTITY.fetch_add(1, Ordering::Relaxed),
                // SAFETY: a zeroed frame that is used for nothing else until the object is dropped.
                root: unsafe { Table::root::<Granule4K>(root) },
                table_frames: AtomicUsize::new(0),
            },
        )
    }
}

impl Object {
    /// Distinguishes it from every other object, also from earlier ones: a futex may still sleep on a word of one of
    /// those (Linux: `i_sequence`).
    pub const fn identity(&self) -> usize {
        self.identity
    }

    /// The frame of `page`, with a reference for the caller; a new frame of zeros if the page had none.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(super) fn frame(&self, cpu: &Cpu, page: u64) -> Result<PhysAddr, OutOfMemory> {
        let (mmu, frames) = (&self.common.mmu, self.common.frames);
        let tables = PageTables::new(mmu, self.root);
        let address = VirtAddr(page * PAGE);
        let found = tables.cell(address).map(|(_, cell)| (cell, mmu.load(cell)));
        let frame = match found {
            Some((_, entry)) if entry != Descriptor::EMPTY => entry.address(),
            Some((cell, _)) => self.add(cpu, cell, frames.alloc_zeroed(cpu)?),
            None => {
                let mut source = SpaceSource { frames, taken: &self.table_frames, cpu };
                let ((_, cell), new) = tables.ensure_cell(address, &mut source, || frames.alloc_zeroed(cpu))?;
                self.add(cpu, cell, new)
            }
        };
        self.common.record(frame).share();
        Ok(frame)
    }

    /// Gives a page the frame `new`, unless another CPU was faster; returns the frame that it has.
    fn add(&self, cpu: &Cpu, cell: &EntryCell, new: PhysAddr) -> PhysAddr {
        let mmu = &self.common.mmu;
        // The zeros before the entry, for a reader that finds it here.
        mmu.dmb_ishst();
        match mmu.compare_exchange(cell, Descriptor::EMPTY, Descriptor(new.0 | bits::PRESENT_INVALID)) {
            Ok(()) => new,
            Err(other) => {
                self.common.frames.free(cpu, new);
                other.address()
            }
        }
    }

    /// How many of the `pages` pages from `first` on have frames.
    pub(super) fn pages_in(&self, first: u64, pages: u64) -> usize {
        let (mmu, mut count) = (&self.common.mmu, 0);
        let start = VirtAddr(first.saturating_mul(PAGE));
        if let Ok(range) = PageRange::new(start, pages.saturating_mul(PAGE)) {
            PageTables::new(mmu, self.root).for_each_cells(range, |found| {
                count += found.cells.iter().filter(|cell| mmu.load(cell) != Descriptor::EMPTY).count();
                relax();
            });
        }
        count
    }

    /// Whether `page` has a frame.
    pub(super) fn has(&self, page: u64) -> bool {
        let mmu = &self.common.mmu;
        let cell = PageTables::new(mmu, self.root).cell(VirtAddr(page * PAGE));
        cell.is_some_and(|(_, cell)| mmu.load(cell) != Descriptor::EMPTY)
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // Drop has no argument for the CPU.
        let (cpu, tables) = (this_cpu(), PageTables::new(&self.common.mmu, self.root));
        // A frame may still be in a gather, which then frees it.
        // SAFETY: no owner is left, so nothing else reaches the tree, and no TLB has its translations.
        unsafe { self.common.dismantle(cpu, tables, || ()) };
        self.common.frames.free(cpu, self.root.address());
    }
}
