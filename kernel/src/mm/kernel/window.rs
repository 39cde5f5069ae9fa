//! The vmalloc window, in a part for each CPU.
//!
//! A CPU takes addresses from its own part, under that part's lock, and their records from the part's pool; from others'
//! parts only where its own has no gap. So CPUs share no line while each works with its own areas: no lock, no tree, and
//! no table of the last level. Which part an address is in is arithmetic, so each CPU may give each area back.

#![allow(unsafe_code, reason = "the parts in a frame of their own, and records of areas, which the pools own")]

use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_pgtable::PageRange;

use super::area::{AreaKind, AreaNode, AreaTree, FreeingArea, Gap, UnmappedAreas};
use super::vmalloc::VmallocError;
use crate::mm::OutOfMemory;
use crate::mm::frame::FrameAllocator;
use crate::mm::layout::{VMALLOC_END, VMALLOC_START};
use crate::mm::pool::{Pool, PoolBox};
use crate::smp::{Cpu, MAX_CPUS};
use crate::sync::{IrqGuard, IrqLock, rank};

/// Bytes from the start of a part to the next: eight entries of the root, which are a cache line.
const PART: u64 = 1 << 42;
/// Where the first part would begin; what lies below the window is not in it.
const FIRST: VirtAddr = VirtAddr(VMALLOC_END.0 - PART * MAX_CPUS as u64);
const _: () = assert!(VMALLOC_START.0 - FIRST.0 < PART && VMALLOC_START.0 >= FIRST.0);

/// The areas of the window.
pub(super) struct Window {
    /// By CPU number, in a frame.
    parts: &'static [Part; MAX_CPUS],
}

const _: () = assert!(size_of::<[Part; MAX_CPUS]>() <= PAGE_SIZE);

#[repr(align(64))]
struct Part {
    areas: IrqLock<AreaTree, { rank::VMALLOC }>,
    nodes: Pool<AreaNode>,
}

impl Window {
    /// No areas; their records come from `frames`. The boot stack has no room for the parts.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(super) fn new(cpu: &Cpu, frames: &'static FrameAllocator) -> Result<Self, OutOfMemory> {
        let parts: *mut Part = frames.linear().address(frames.alloc(cpu)?).as_ptr();
        for number in 0..MAX_CPUS {
            let start = FIRST + PART * number as u64;
            let areas = IrqLock::new(AreaTree::new(start.max(VMALLOC_START), start + PART));
            // SAFETY: inside the frame, which stays this window's, and is aligned for them.
            unsafe { parts.add(number).write(Part { areas, nodes: Pool::new(frames) }) };
        }
        // SAFETY: each was just written.
        Ok(Self { parts: unsafe { &*parts.cast() } })
    }

    /// Takes `pages` pages with a guard page after them, the first a multiple of `align`.
    ///
    /// # Errors
    /// [`VmallocError`]; nothing stays taken.
    pub(super) fn take(&self, cpu: &Cpu, kind: AreaKind, pages: u64, align: u64) -> Result<VirtAddr, VmallocError> {
        if pages == 0 {
            return Err(VmallocError::NoPages);
        }
        let node = cpu.id.of(self.parts).nodes.try_new(AreaNode::new(kind))?;
        for part in self.own_first(cpu) {
            let mut resume = None;
            loop {
                // Locked anew for each piece of the search: interrupts come in between.
                let mut areas = part.areas.lock();
                match areas.search(pages, align, resume) {
                    Gap::At(start) => {
                        areas.insert(node.into_ref(), start, pages);
                        return Ok(start);
                    }
                    Gap::None => break,
                    Gap::GoOn(next) => resume = Some(next),
                }
            }
        }
        Err(VmallocError::NoAddresses { pages })
    }

    /// [`AreaTree::begin_free`].
    #[inline]
    pub(super) fn begin_free(&self, start: VirtAddr, kind: AreaKind) -> Result<FreeingArea, Option<AreaKind>> {
        self.part(start).ok_or(None)?.areas.lock().begin_free(start, kind)
    }

    /// Takes out an area whose freeing has begun, and gives its record back.
    #[inline(always)]
    pub(super) fn remove(&self, freeing: FreeingArea) {
        let Some(part) = self.part(freeing.start()) else { return };
        // SAFETY: a `FreeingArea` comes from `begin_free` of the one window, so the area is in this part's tree.
        let node = unsafe { part.areas.lock().remove(freeing) };
        // SAFETY: the node was a pool box, is out of the tree, and this is the last reference.
        drop(unsafe { PoolBox::from_ref(node) });
    }

    /// [`Self::remove`], out of line.
    #[inline(never)]
    pub(super) fn remove_seldom(&self, freeing: FreeingArea) {
        self.remove(freeing);
    }

    /// [`AreaTree::add_unmapped`], of the area's part.
    #[inline]
    pub(super) fn add_unmapped(&self, freeing: FreeingArea) -> u32 {
        let part = self.part(freeing.start());
        part.map_or(0, |part| part.areas.lock().add_unmapped(freeing))
    }

    /// [`AreaTree::begin_purge`], of the part that `address` is in: there is one.
    pub(super) fn begin_purge(&self, address: VirtAddr) -> Option<UnmappedAreas> {
        self.part(address).map_or(Some(UnmappedAreas::NONE), |part| part.areas.lock().begin_purge())
    }

    /// [`AreaTree::end_purge`], likewise.
    pub(super) fn end_purge(&self, address: VirtAddr) {
        self.part(address).into_iter().for_each(|part| part.areas.lock().end_purge());
    }

    /// An address of each part, that of this CPU's first.
    pub(super) fn parts(&self, cpu: &Cpu) -> impl Iterator<Item = VirtAddr> + use<> {
        let own = cpu.id.0 as usize;
        (0..MAX_CPUS).map(move |more| FIRST + PART * ((own + more) % MAX_CPUS) as u64)
    }

    /// [`AreaTree::purges`] of all parts.
    pub(super) fn purges(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.areas.lock().purges())).sum()
    }

    /// [`AreaTree::unmapped_pages`] of all parts.
    pub(super) fn unmapped_pages(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.areas.lock().unmapped_pages())).sum()
    }

    /// Locks the areas among which `address` would be, if no CPU has them.
    pub(super) fn try_lock(&self, address: VirtAddr) -> Option<IrqGuard<'_, AreaTree, { rank::VMALLOC }>> {
        self.part(address)?.areas.try_lock()
    }

    /// Calls `each` for every area, by address, with the lock of its part held.
    pub(super) fn for_each(&self, mut each: impl FnMut(&AreaNode)) {
        self.parts.iter().for_each(|part| part.areas.lock().iter().for_each(&mut each));
    }

    /// [`AreaTree::take_left`], of the first part from this CPU's on that has something.
    pub(super) fn take_left(&self, cpu: &Cpu) -> Option<PageRange> {
        self.own_first(cpu).find_map(|part| part.areas.lock().take_left())
    }

    /// Frames of the parts and of the areas' records.
    pub(super) fn frames(&self) -> usize {
        1 + self.parts.iter().map(|part| part.nodes.stats().frames).sum::<usize>()
    }

    /// This CPU's part, then the others.
    fn own_first(&self, cpu: &Cpu) -> impl Iterator<Item = &Part> {
        (0..MAX_CPUS).map(|more| &self.parts[(cpu.id.0 as usize + more) % MAX_CPUS])
    }

    fn part(&self, address: VirtAddr) -> Option<&Part> {
        self.parts.get((address.0.checked_sub(FIRST.0)? / PART) as usize)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;
    use granule_arch::addr::PAGE;

    use crate::mm::frame::tests::leaked;
    use crate::smp::CpuId;

    #[test]
    fn where_a_part_is_full_the_others_serve() {
        // A guard page at either end. The first part is smaller.
        const WHOLE: u64 = PART / PAGE - 2;
        let (frames, cpu) = (leaked(2), Cpu::new(CpuId(14)));
        let window = Window::new(&cpu, frames).unwrap();
        let kept = window.frames();
        let take = |pages| window.take(&cpu, AreaKind::Device, pages, PAGE);
        let areas: Vec<VirtAddr> = core::iter::from_fn(|| take(WHOLE).ok()).collect();
        let of = |part: u64| FIRST + part * PART + PAGE;
        assert_eq!(areas, [14, 15, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13].map(of));
        assert_eq!(take(WHOLE), Err(VmallocError::NoAddresses { pages: WHOLE }));
        assert_eq!(take(1), Ok(VMALLOC_START + PAGE));
        for start in areas.into_iter().chain([VMALLOC_START + PAGE]) {
            window.remove(window.begin_free(start, AreaKind::Device).unwrap());
        }
        for outside in [VirtAddr(0), FIRST - 1, VMALLOC_END, VirtAddr(u64::MAX)] {
            assert_eq!(window.begin_free(outside, AreaKind::Device).err(), Some(None));
        }
        assert_eq!(take(WHOLE), Ok(of(14)));
        window.remove(window.begin_free(of(14), AreaKind::Device).unwrap());
        let left: Vec<VirtAddr> = core::iter::from_fn(|| window.take_left(&cpu)).map(|range| range.start()).collect();
        assert_eq!(left.len(), MAX_CPUS);
        assert_eq!(left[..3], [of(14), of(15), VMALLOC_START + PAGE]);
        assert!(window.frames() <= kept + 1, "a pool keeps one frame");
    }
}
