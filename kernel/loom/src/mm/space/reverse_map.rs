//! Pages of an object in a parent and its child, and walks by the object's reverse map: the kernel's own areas, reverse
//! map, and entries of objects, with one frame.

use std::mem::ManuallyDrop;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection};
use granule_pgtable::{Mmu, PageRange, Stores};

use super::super::area::pools::{AreaPools, Spares};
use super::super::area::tree::Areas;
use super::super::area::{Area, Mapping, Sharing};
use super::mappers::Mappers;
use super::pages::{self as entries, Found};
use crate::mm::counted::{Counted, Inner};
use crate::mm::entry::attributes;
use crate::mm::frame::{Frame, FrameAllocator};
use crate::mm::pool::Pool;
use crate::mm::space::range::pages;
use crate::mm::table::copy_entry;
use crate::mm::table_lock::TableGuard;
use crate::sched::RwSem;
use crate::smp::{self, CpuId};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::rank;
use crate::{Machine, Watched, Without};

/// The addresses of the area, of two pages; the first has the frame.
const START: VirtAddr = VirtAddr(1 << 32);
const PAGES: u64 = 2;
/// The frame of the first page of the object.
const FRAME: PhysAddr = PhysAddr(0x4000_0000);

/// An order of steps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Steps {
    /// The kernel's.
    Shipped,
    /// A space ends with its areas in the reverse map.
    NoLeave,
    /// A fault maps the page before the area has joined.
    FaultFirst,
    /// A fork copies the entry before the child's area has joined.
    CopyFirst,
    /// The child's area has joined before its parent's.
    ChildFirst,
    /// A cut drops the reverse map between the two parts.
    CutInTwo,
}

/// The object.
pub(in crate::mm::space) struct Object {
    mappers: RwSem<Mappers>,
    /// In pages.
    size: AtomicU64,
    /// The entry of its first page.
    cell: AtomicU64,
}

impl Object {
    pub(in super::super) fn change_mappers(&self, change: impl FnOnce(&mut Mappers)) {
        Mappers::change(&self.mappers, change);
    }

    /// Nothing forbids writers.
    pub(in super::super) fn begin_writer(&self) -> bool {
        true
    }

    pub(in super::super) fn end_writer(&self) {}
}

/// A space: its areas, and the entry of the first page, in a table that is linked.
pub(in crate::mm::space) struct Space {
    areas: RwSem<Areas>,
    /// The record of the table, with its lock.
    table: Frame,
    cell: AtomicU64,
    /// Written by its end.
    is_there: Watched<bool>,
}

impl Space {
    fn new() -> Self {
        let areas = RwSem::new(rank::AREAS, Areas::new(VirtAddr(0), VirtAddr(1 << 40)));
        Self { areas, table: Frame::default(), cell: AtomicU64::new(0), is_there: Watched::default() }
    }
}

/// The object and the spaces.
pub struct Shared {
    machine: Machine,
    parent: ManuallyDrop<Box<Space>>,
    child: ManuallyDrop<Box<Space>>,
    object: ManuallyDrop<Counted<Object>>,
    pools: &'static AreaPools,
    objects: &'static Pool<Inner<Object>>,
    frames: &'static FrameAllocator,
    record: Frame,
    /// The contents of the frame.
    contents: Watched<u32>,
    steps: Steps,
}

#[allow(unsafe_code, reason = "areas on several CPUs, as the kernel has them")]
// SAFETY: areas are reached under their locks only, or before the threads begin and when they have ended.
unsafe impl Send for Shared {}
#[allow(unsafe_code, reason = "as above")]
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// The object has its page; no area maps it.
    ///
    /// # Panics
    /// There is no memory.
    pub fn new(steps: Steps) -> Self {
        let frames: &FrameAllocator = Box::leak(Box::new(FrameAllocator::new(8)));
        let pools = Box::leak(Box::new(AreaPools::new(cpu(), frames).expect("frames for pools")));
        let objects: &Pool<_> = Box::leak(Box::new(Pool::new(frames)));
        let mappers = RwSem::new(rank::MAPPERS, Mappers::NONE);
        let object = Object { mappers, size: AtomicU64::new(PAGES), cell: AtomicU64::new(0) };
        let shared = Self {
            machine: Machine::new(0, Without::Nothing),
            parent: ManuallyDrop::new(Box::new(Space::new())),
            child: ManuallyDrop::new(Box::new(Space::new())),
            object: ManuallyDrop::new(Counted::try_new(objects, object).expect("a frame for the object")),
            pools,
            objects,
            frames,
            record: Frame::default(),
            contents: Watched::default(),
            steps,
        };
        shared.record.hand_out();
        entries::add(&shared.machine.cpu(0), &shared.object.cell, FRAME, |_| panic!("the page is a hole"));
        shared
    }

    /// An area of the parent, of those pages of the object that belong there.
    fn insert_area(&self, areas: &mut Areas, at: PageRange) {
        let first = (at.start() - START) / PAGE;
        let mapping = Mapping::new(Counted::clone(&self.object), first, &self.parent, Sharing::Private, true);
        let mapping = self.pools.new_mapping(mapping.expect("nothing forbids writers")).expect("a frame for it");
        let area = Area::new(at, Protection::READ, Some(mapping));
        areas.insert(self.pools.of(cpu()).try_new(area).expect("a frame for the area"));
    }

    /// The parent maps the object.
    pub fn map(&self) {
        self.insert_area(&mut self.parent.areas.write(), range());
    }

    /// The parent maps the object and loads from its page.
    pub fn map_and_load(&self) {
        if self.steps == Steps::FaultFirst {
            self.fault();
            self.map();
        } else {
            self.map();
            self.fault();
        }
    }

    /// A load from the first page in the parent, as the kernel serves it.
    pub fn fault(&self) {
        let (mmu, space) = (self.machine.cpu(0), &self.parent);
        let areas = space.areas.read();
        if self.steps != Steps::FaultFirst && areas.find(START).is_none() {
            return;
        }
        let is_inside = || self.object.size.load(Ordering::Relaxed) > 0;
        let Some(found) = Found::look(&mmu, &self.object.cell).filter(|_| is_inside()) else { return };
        let locked = lock(&space.table);
        let page = Descriptor::page(found.frame(), attributes(Protection::READ));
        let seen = locked.entry(&mmu, &space.cell);
        if found.map(&mmu, seen, &space.cell, || &self.record, is_inside, |fillable| fillable.with(page)) {
            self.contents.read();
        }
    }

    /// Before the threads begin, in a fork whose child's area joins before its parent's.
    pub fn begin_fork(&self) {
        if self.steps == Steps::ChildFirst {
            let mut areas = self.parent.areas.write();
            self.copy_areas(&areas);
            let first = areas.first_touching(range()).expect("it was mapped");
            let mut spares = Spares::take(cpu(), self.pools, 0, false).expect("none");
            areas.remove(first, range(), &mut spares);
            self.insert_area(&mut areas, range());
        }
    }

    fn copy_areas(&self, areas: &Areas) {
        let copied = self.child.areas.write().copy_all(areas, cpu(), &self.child, self.pools, |_| Ok(()));
        copied.expect("frames for the copies");
    }

    /// The parent forks, as `Space::copy_to_child`.
    pub fn fork(&self) {
        let areas = self.parent.areas.write();
        let copy = || {
            let (mmu, mut protected) = (self.machine.cpu(0), false);
            let _locked = lock(&self.parent.table);
            copy_entry(&mmu, &self.parent.cell, &self.child.cell, |_| &self.record, &mut protected);
        };
        match self.steps {
            Steps::CopyFirst => {
                copy();
                self.copy_areas(&areas);
            }
            Steps::ChildFirst => copy(),
            _ => {
                self.copy_areas(&areas);
                copy();
            }
        }
    }

    /// The parent cuts its area and joins the parts again.
    ///
    /// # Panics
    /// There is no memory.
    pub fn cut_and_join(&self) {
        let mut areas = self.parent.areas.write();
        let mut spares = Spares::take(cpu(), self.pools, 1, true).expect("frames for the parts");
        let held = areas.first_touching(range()).expect("it was mapped");
        let upper = pages(START + PAGE, range().end());
        if self.steps == Steps::CutInTwo {
            areas.remove(held, upper, &mut spares);
            return self.insert_area(&mut areas, upper);
        }
        let upper = areas.cut_out(held, upper, &mut spares);
        areas.merge(upper);
    }

    /// The parent ends, as `Space::release`.
    pub fn end(&self) {
        if self.steps != Steps::NoLeave {
            self.parent.areas.read().leave_reverse_maps();
        }
        self.parent.is_there.write(false);
    }

    /// Has `work` look at each area that maps pages of the object; how many pages they map.
    fn walk(&self, work: impl Fn(&Space)) -> usize {
        let mappers = self.object.mappers.read();
        let each = mappers.of(0..PAGES).map(|mapped| {
            mapped.space().is_there.read();
            work(mapped.space());
            mapped.range().pages()
        });
        each.sum()
    }

    /// How many pages are mapped, as a walk counts them that looks at each entry.
    pub fn count(&self) -> usize {
        self.walk(|space| drop(lock(&space.table)))
    }

    /// A truncation of the object to nothing, as the kernel has it.
    ///
    /// # Panics
    /// The frame has other holders than entries and the object.
    pub fn truncate(&self) {
        let mmu = self.machine.cpu(1);
        self.object.size.store(0, Ordering::Relaxed);
        entries::order();
        let taken = entries::take(&mmu, &self.object.cell);
        entries::order();
        self.walk(|space| {
            let locked = lock(&space.table);
            if locked.entry(&mmu, &space.cell).descriptor() != Descriptor::EMPTY {
                mmu.store(&space.cell, Descriptor::EMPTY);
                assert!(!self.record.put(), "the object's reference is left");
            }
        });
        if taken.is_some() && self.record.put() {
            // Its next owner writes to it.
            self.contents.write(1);
            self.record.free().expect("one reference");
        }
    }

    /// The end of a test with a truncation: no entry has the frame, and no object.
    ///
    /// # Panics
    /// One has.
    pub fn assert_truncated(&self) {
        let mmu = self.machine.cpu(0);
        for cell in [&self.parent.cell, &self.child.cell] {
            assert_eq!(mmu.load(cell), Descriptor::EMPTY, "reverse map: an entry has the frame that was given back");
        }
    }
}

#[allow(unsafe_code, reason = "what the areas and the pools refer to ends after them")]
impl Drop for Shared {
    fn drop(&mut self) {
        // After a failure loom's state must not be used.
        if std::thread::panicking() {
            return;
        }
        for space in [&self.parent, &self.child] {
            space.areas.read().leave_reverse_maps();
        }
        // SAFETY: no thread uses them any more. Areas have a share in the object, all are in the pools, and those in frames.
        unsafe {
            ManuallyDrop::drop(&mut self.parent);
            ManuallyDrop::drop(&mut self.child);
            ManuallyDrop::drop(&mut self.object);
            drop(Box::from_raw(std::ptr::from_ref(self.objects).cast_mut()));
            drop(Box::from_raw(std::ptr::from_ref(self.pools).cast_mut()));
            drop(Box::from_raw(std::ptr::from_ref(self.frames).cast_mut()));
        }
    }
}

fn lock(table: &Frame) -> TableGuard<'_> {
    TableGuard::lock(table)
}

fn range() -> PageRange {
    pages(START, START + PAGES * PAGE)
}

fn cpu() -> &'static smp::Cpu {
    smp::cpu(CpuId(0)).expect("a first CPU")
}
