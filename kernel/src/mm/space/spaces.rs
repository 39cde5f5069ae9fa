//! State that all spaces share: the source of their memory, and the lists that they are in.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use granule_arch::addr::PhysAddr;
use granule_pgtable::TableSource;

use super::address_space::Space;
use super::area::pools::AreaPools;
use super::area::tree::Areas;
use super::family::{Families, ObjectList, SpaceList};
use super::migrations::Migrations;
use super::part_pools::PartPools;
use super::shmem::{Files, Hand, Object};
use super::userfault::Userfaultfd;
use crate::mm::OutOfMemory;
use crate::mm::counted::Inner;
use crate::mm::frame::{Frame, FrameAllocator, FrameRecords};
use crate::mm::kernel::Machine;
use crate::mm::pool::Pool;
use crate::sched::RwSem;
use crate::smp::Cpu;
use crate::sync::rank;

/// Lists of spaces by their families, each with a lock: what programs on different CPUs create is in different ones.
pub(super) const LISTS: usize = 64;
/// All spaces and objects, of the host's tests too. A static: where the kernel starts the stack has no room for it.
static ALL: Families = Families::new();

// For the static. Here, because loom's atomics are not made at compile time.
impl Families {
    pub(super) const fn new() -> Self {
        Self {
            next: AtomicU32::new(0),
            lists: [const { RwSem::new(rank::SPACES, SpaceList::EMPTY) }; LISTS],
            objects: [const { RwSem::new(rank::OBJECTS, ObjectList::EMPTY) }; LISTS],
        }
    }
}

/// State that all spaces share: the source of their memory. There is one.
pub struct Spaces {
    pub(super) mmu: Machine,
    pub(super) frames: &'static FrameAllocator,
    pub(super) spaces: Pool<Inner<Space>>,
    pub(super) areas: AreaPools,
    pub(super) parts: PartPools<Areas>,
    pub(super) objects: Pool<Inner<Object>>,
    pub(super) userfaultfds: Pool<Inner<Userfaultfd>>,
    pub(super) files: RwSem<Files>,
    pub(super) hand: RwSem<Hand>,
    pub(super) families: &'static Families,
    pub(super) migrations: Migrations,
    /// Of the code that empties a block of tag storage.
    pub(super) tag_claims: RwSem<()>,
    /// A frame of zeros, mapped at every page that was only read. It has no reference count: its entries are special.
    pub(super) zeros: PhysAddr,
}

impl Spaces {
    /// Spaces whose frames come from `frames`, which `mmu` accesses as tables.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(cpu: &Cpu, mmu: Machine, frames: &'static FrameAllocator) -> Result<Self, OutOfMemory> {
        Ok(Self {
            mmu,
            frames,
            spaces: Pool::new(frames),
            areas: AreaPools::new(cpu, frames)?,
            parts: PartPools::new(frames),
            objects: Pool::new(frames),
            userfaultfds: Pool::new(frames),
            files: RwSem::new(rank::RECLAIM_FILES, Files::NONE),
            hand: RwSem::new(rank::RECLAIM, Hand::START),
            families: &ALL,
            migrations: Migrations::new(),
            tag_claims: RwSem::new(rank::TAG_BLOCK, ()),
            zeros: frames.alloc_zeroed(cpu)?,
        })
    }

    /// Frames that stay allocated when all spaces are gone: those of the pools, and the page of zeros. For audits that
    /// count frames by owner.
    pub fn kept_frames(&self) -> usize {
        let frames = self.spaces.stats().frames + self.objects.stats().frames + self.parts.frames();
        frames + self.areas.frames() + self.userfaultfds.stats().frames + 1
    }

    /// Spaces, areas and shared objects that exist.
    pub fn counts(&self) -> [usize; 3] {
        [self.spaces.stats().objects, self.areas.objects(), self.objects.stats().objects]
    }

    /// The record of a frame that is held.
    #[inline(always)]
    #[allow(unsafe_code, reason = "the record of a frame that is held")]
    pub(super) fn record(&self, frame: PhysAddr) -> &Frame {
        // SAFETY: only for frames of tables and objects, and for frames in entries. Each of them is held by its user.
        unsafe { self.frames.held(frame) }
    }

    /// Records for a loop, in which the compiler would look up their place again after every atomic access.
    pub(super) fn records(&self) -> HeldRecords {
        HeldRecords(self.frames.records())
    }
}

/// The records of frames that are held.
#[derive(Clone, Copy)]
pub(super) struct HeldRecords(FrameRecords);

impl HeldRecords {
    /// [`Spaces::record`].
    #[inline(always)]
    #[allow(unsafe_code, reason = "the record of a frame that is held")]
    pub(super) fn of(self, frame: PhysAddr) -> &'static Frame {
        // SAFETY: the frame is in an entry or a table of the space, which holds it, so its record is valid.
        let record = unsafe { self.0.get(frame.frame_number()) };
        debug_assert!(record.references() != 0, "{frame} is free");
        record
    }
}

/// Frames for tables, from the frame allocator.
pub(super) struct SpaceSource<'a> {
    pub(super) frames: &'a FrameAllocator,
    /// How many are in use.
    pub(super) taken: &'a AtomicUsize,
    pub(super) cpu: &'a Cpu,
}

// SAFETY: the allocator gives each frame to one owner, zeroed here, and every frame is in the linear map.
#[allow(unsafe_code, reason = "keeps the contract of `TableSource`")]
unsafe impl TableSource for SpaceSource<'_> {
    fn take(&mut self) -> Option<PhysAddr> {
        let table = self.frames.alloc_zeroed(self.cpu).ok()?;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Some(table)
    }

    unsafe fn give_back(&mut self, table: PhysAddr) {
        self.taken.fetch_sub(1, Ordering::Relaxed);
        self.frames.free(self.cpu, table);
    }
}
