//! Areas of the vmalloc window whose invalidation is left for later: the kernel's own source, over the pages of a
//! [`Machine`] with TLBs.

#![allow(unsafe_code, reason = "the fixture outlives what refers to it")]

#[allow(dead_code, unreachable_pub, reason = "the kernel's other modules alone use it")]
#[path = "../../../src/mm/kernel/area.rs"]
mod area;
#[allow(dead_code, reason = "one CPU's caches and programs are not here")]
#[path = "../../../src/mm/kernel/purge.rs"]
mod purge;
#[allow(
    dead_code,
    clippy::absurd_extreme_comparisons,
    reason = "the report is the kernel's alone, and the window begins at 0"
)]
#[path = "../../../src/mm/kernel/window.rs"]
mod window;

use std::ops::Deref;
use std::sync::Mutex;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_pgtable::metal::KernelTlb;
use granule_pgtable::{Error, Invalidation, Leaf, Mmu, PageRange, Tables, Tiny, Tlb};

use area::{AreaKind, UnmappedAreas};
use window::Window;

use crate::mm::frame::FrameAllocator;
use crate::smp::{self, CpuId};
use crate::{Cpu, Machine, Watched, pages};

/// A replacement for the kernel's records of owners.
mod owners {
    use granule_pgtable::PageRange;

    pub(super) struct RangeOwnerCheck;

    impl RangeOwnerCheck {
        pub(super) fn new(_: PageRange) -> Self {
            Self
        }
    }
}

/// A replacement for `vmalloc`.
pub(crate) mod vmalloc {
    use granule_pgtable::Leaf;

    use super::Freeing;
    pub(crate) use granule::mm::kernel::vmalloc::VmallocError;

    pub(super) fn add_to<'a>(mut frames: Option<&'a mut Freeing<'_>>) -> impl FnMut(Leaf) + 'a {
        move |leaf| frames.iter_mut().for_each(|frames| frames.add(leaf))
    }
}

/// The kernel's `Validity` of a page of the linear map, under the path that the sources name.
pub(crate) mod set_memory {
    pub(crate) use granule::mm::kernel::set_memory::Validity;
}

/// A step that is left out.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// None.
    Nothing,
    /// The TLBI of a purge; its barriers are left.
    Invalidation,
    /// The DSB ISH before it.
    DsbIsh,
    /// A purge marks its part until it has given all back.
    Mark,
}

/// Pages of each part of the window that the machine's tables translate.
const PAGES: u64 = 8;

/// A kernel with a window, tables and TLBs.
pub struct KernelSpace {
    areas: Areas,
    frames: &'static Frames,
    without: Without,
}

/// The window, which may lose a step.
struct Areas(Window, Without);

impl Deref for Areas {
    type Target = Window;
    fn deref(&self) -> &Window {
        &self.0
    }
}

impl Areas {
    fn begin_purge(&self, address: VirtAddr) -> Option<UnmappedAreas> {
        let unmapped = self.0.begin_purge(address);
        if self.1 == Without::Mark {
            self.0.end_purge(address);
        }
        unmapped
    }
}

/// Tables, the frames of areas with what their next owners write to them, and the frames of the window's records.
struct Frames {
    machine: Machine,
    records: FrameAllocator,
    contents: [Watched<u32>; 2 * PAGES as usize],
    freed: Mutex<Vec<u64>>,
}

/// The frames of areas that a purge gives back.
struct Freeing<'f>(&'f Frames);

impl Freeing<'_> {
    fn add(&mut self, leaf: Leaf) {
        let page = leaf.address.0 / PAGE;
        assert_eq!(leaf.physical, PhysAddr(crate::TARGET + leaf.address.0), "the frame of another page");
        self.0.machine.cpu(0).assert_not_held(page);
        self.0.contents[page as usize].write(1);
        self.0.freed.lock().unwrap().push(page);
    }
}

impl Frames {
    fn has_room_for(&self, _: usize) -> bool {
        true
    }

    fn high_watermark(&self) -> usize {
        0
    }

    fn freeing(&self, _: &smp::Cpu) -> Freeing<'_> {
        Freeing(self)
    }
}

struct Policy {
    lazy_pages: u64,
}

/// The page of the machine that stands for `page`: those of the second part follow those of the first.
fn folded(page: u64) -> u64 {
    let part = page >> 30;
    part * PAGES + (page - (part << 30))
}

fn tiny(range: PageRange) -> PageRange<Tiny> {
    pages(folded(range.start().0 / PAGE), range.pages())
}

/// The tables.
struct KernelTables<'m>(Cpu<'m>);

impl KernelTables<'_> {
    fn get(&self) -> &Self {
        self
    }

    fn unmap_lazily(&self, range: PageRange, unwanted: u64, _: u64) -> Result<bool, Error> {
        self.0.tables().unmap_lazily(tiny(range), unwanted, 0)
    }

    unsafe fn release_unmapped(&self, range: PageRange, released: impl FnMut(Leaf)) {
        // SAFETY: the caller's contract.
        unsafe { self.0.tables().release_unmapped(tiny(range), released) };
    }
}

impl KernelSpace {
    /// No areas.
    ///
    /// # Panics
    /// A bug in this crate.
    pub fn new(without: Without) -> Self {
        let machine_without = if without == Without::DsbIsh { crate::Without::DsbIsh } else { crate::Without::Nothing };
        let frames: &'static Frames = Box::leak(Box::new(Frames {
            machine: Machine::new(4, machine_without),
            records: FrameAllocator::new(4),
            contents: Default::default(),
            freed: Mutex::default(),
        }));
        let window = Window::new(cpu(0), &frames.records).expect("there are frames");
        Self { areas: Areas(window, without), frames, without }
    }

    fn policy(&self) -> Policy {
        Policy { lazy_pages: 16 }
    }

    fn tables(&self) -> KernelTables<'_> {
        KernelTables(self.frames.machine.cpu(0))
    }

    fn flush_kernel_range(&self, range: PageRange) {
        let cpu = self.frames.machine.cpu(0);
        cpu.dsb_ish();
        if self.without != Without::Invalidation {
            KernelTlb.issue(&cpu, &Invalidation { range: tiny(range), tables: Tables::Kept, level: None });
        }
        cpu.dsb_ish();
    }

    fn reclaim_after(&self, _: &smp::Cpu, _: PageRange) {}

    /// `vmalloc` of a page, on CPU `number`; the page of the machine that it is.
    ///
    /// # Panics
    /// There is no room.
    pub fn vmalloc(&self, number: u32) -> u64 {
        let start = self.areas.take(cpu(number), AreaKind::Vmalloc, 1, PAGE).expect("there is room");
        let page = folded(start.0 / PAGE);
        self.frames.machine.cpu(0).map_quietly(page);
        page
    }

    /// `vfree` of `page`, on CPU `number`: it waits for a purge.
    ///
    /// # Panics
    /// No area is there.
    pub fn vfree(&self, number: u32, page: u64) {
        let (part, page) = (page / PAGES, page % PAGES);
        let start = VirtAddr(((part << 30) + page) * PAGE);
        let freeing = self.areas.begin_free(start, AreaKind::Vmalloc).expect("there is an area");
        let range = PageRange::from_pages(start, 1).expect("a page");
        assert!(self.free_lazily(cpu(number), range, freeing).is_none(), "areas wait");
    }

    /// [`Self::purge`] on CPU `number`. Then each of `pages`, which was freed before, has given its frame back.
    ///
    /// # Panics
    /// One has not.
    pub fn purge_on(&self, number: u32, pages: &[u64]) {
        self.purge(cpu(number));
        let freed = self.frames.freed.lock().unwrap();
        assert!(pages.iter().all(|page| freed.contains(page)), "purge returned while an area waits");
    }

    /// The hardware of another CPU looks `page` up, and its TLB keeps what it finds.
    pub fn access(&self, page: u64) {
        self.frames.machine.cpu(0).access(&[page]);
    }

    /// The end of a test: every area that was freed has given its frame back once, and no TLB has it.
    ///
    /// # Panics
    /// An area was lost, or freed twice, or a TLB has it.
    pub fn assert_freed(&self, pages: &[u64]) {
        assert_eq!(self.unmapped_pages(), 0, "an area waits");
        let mut freed = self.frames.freed.lock().unwrap().clone();
        freed.sort_unstable();
        assert_eq!(freed, pages, "not each frame was freed once");
        self.frames.machine.cpu(0).assert_nothing_stale(crate::pages(0, 2 * PAGES as usize));
    }
}

fn cpu(number: u32) -> &'static smp::Cpu {
    smp::cpu(CpuId(number)).expect("such a CPU")
}

impl Drop for KernelSpace {
    fn drop(&mut self) {
        // SAFETY: leaked in `new`; the window, which refers to it, is not used any more.
        drop(unsafe { Box::from_raw(std::ptr::from_ref(self.frames).cast_mut()) });
    }
}
