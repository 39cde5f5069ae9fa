//! `debug_pagealloc=on`: the linear map without the frames that are free ([`DebugPagealloc`]).
//!
//! The linear map is made of pages then, so nothing is split and no memory is taken: a frame can come and go in any
//! context, in the middle of another change as well. Each call is a section of its own, whose barriers are issued
//! when it returns, so a frame that is taken inside a lazy section may be accessed at once. A freed frame is
//! invalidated before it can have another owner; frames that are freed together share one invalidation.

use core::ops::Range;

use granule_arch::addr::PhysAddr;
use granule_pgtable::{Change, Flush, Invalidation, Lazy, PageRange, Tables, Tlb};

use super::KernelSpace;
use crate::mm::frame::DebugPagealloc;
use crate::mm::layout;

impl DebugPagealloc for KernelSpace {
    fn show(&self, frames: Range<usize>) {
        if let Some(range) = linear(&frames) {
            self.change_frames(range, Change::VALID).defer();
        }
    }

    fn hide(&self, frames: &[Range<usize>]) {
        let ranges = || frames.iter().filter_map(linear);
        let mut stale = false;
        for range in ranges() {
            stale |= !self.change_frames(range, Change::INVALID).is_none();
        }
        if stale {
            let whats = ranges().map(|range| Invalidation { range, tables: Tables::Kept, level: None });
            self.tlb.invalidate(&self.mmu, whats);
        }
    }
}

impl KernelSpace {
    /// The frames are the allocator's, and so are their linear addresses.
    fn change_frames(&self, range: PageRange, change: Change) -> Flush {
        let lazy = Lazy::new(&self.mmu);
        self.update_linear(&lazy, range, change).unwrap_or_else(|error| {
            // Every frame of the allocator is a page of the linear map. Were one not, it could be used all the same.
            crate::log::error!("debug_pagealloc: {range:?}: {error}");
            Flush::NONE
        })
    }
}

/// Where the linear map shows frames; `None` for no frames.
fn linear(frames: &Range<usize>) -> Option<PageRange> {
    PageRange::from_pages(layout::linear(PhysAddr::from_frame_number(frames.start)), frames.len()).ok()
}
