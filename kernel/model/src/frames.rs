//! Frames for tables, known to the model: zeroed when taken; when given up, out of every walk and poisoned.

use granule_arch::addr::PhysAddr;
use granule_pgtable::{Geometry, Granule4K, TableSource};

use crate::machine::{Model, lock};

/// The free frames of a [`Model`], as a table source.
pub struct Frames<'m, G: Geometry = Granule4K> {
    model: &'m Model<G>,
    left: usize,
}

impl<'m, G: Geometry> Frames<'m, G> {
    pub(crate) const fn new(model: &'m Model<G>, left: usize) -> Self {
        Self { model, left }
    }

    /// Frees a table that was in use on `cpu`'s word: a violation where a walk may still come to it.
    pub fn free(&mut self, cpu: usize, table: PhysAddr) {
        self.model.frame_freed(cpu, table);
        lock(&self.model.free_tables).push(table);
    }
}

// SAFETY: a frame is in the free list or with its taker, never both; it is zeroed when it is taken.
#[allow(unsafe_code, reason = "implementing the contract of `TableSource`")]
unsafe impl<G: Geometry> TableSource for Frames<'_, G> {
    fn take(&mut self) -> Option<PhysAddr> {
        self.left = self.left.checked_sub(1)?;
        let table = lock(&self.model.free_tables).pop()?;
        self.model.arena().fill(table, G::PAGE_SIZE, 0);
        self.model.frame_taken(0, table);
        Some(table)
    }

    unsafe fn give_back(&mut self, table: PhysAddr) {
        let cells = self.model.arena().cells(table, (G::PAGE_SIZE / 8) as usize);
        let zero = cells.iter().all(|cell| cell.load(std::sync::atomic::Ordering::Relaxed) == 0);
        assert!(zero, "a table was given back that is not zeroed");
        self.left = self.left.saturating_add(1);
        self.free(0, table);
    }
}
