//! Frames for page tables: of the kernel, of programs and of devices.

#![allow(unsafe_code, reason = "keeps the contract of `TableSource`")]

use core::sync::atomic::{AtomicUsize, Ordering};

use granule_arch::addr::PhysAddr;
use granule_pgtable::TableSource;

use super::FrameAllocator;
use crate::smp::Cpu;

/// Frames for the tables of one tree.
pub struct FrameSource<'a> {
    frames: &'a FrameAllocator,
    /// Whether only what this CPU has in its magazine is taken.
    reserved: bool,
    taken: &'a AtomicUsize,
    cpu: &'a Cpu,
}

impl FrameAllocator {
    /// Frames for the tables of a tree, which counts in `taken` how many it has. `cpu` is the CPU that this runs on.
    pub fn table_source<'a>(&'a self, cpu: &'a Cpu, taken: &'a AtomicUsize) -> FrameSource<'a> {
        FrameSource { frames: self, reserved: false, taken, cpu }
    }
}

impl FrameSource<'_> {
    /// The same, only of what this CPU has in its magazine, so that no lock is waited for: in interrupt handlers.
    #[must_use]
    pub fn reserved(self) -> Self {
        Self { reserved: true, ..self }
    }
}

// SAFETY: the allocator gives each frame to one owner, zeroed here, and every frame is in the linear map.
unsafe impl TableSource for FrameSource<'_> {
    fn take(&mut self) -> Option<PhysAddr> {
        let table = match self.reserved {
            false => self.frames.alloc_zeroed(self.cpu),
            true => self.frames.alloc_zeroed_reserved(self.cpu),
        };
        let table = table.ok()?;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some(table)
    }

    fn give_back(&mut self, table: PhysAddr) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        self.frames.free(self.cpu, table);
    }
}
