//! The address spaces of user programs.
//!
//! A [`Space`] is a tree of tables for the lower half, the areas that define what may be mapped in it, and the two
//! kinds of TLB that each change invalidates: those of the CPUs, by ASID, and those of devices, by notifiers. A fault:
//! [`fault`] finds the area, [`cow`] copies a shared page. A call: [`calls`] cuts and merges areas, [`protect`] and
//! [`zap`] change the entries, [`block`] those of 2 MiB, [`group`] those of 64 KiB, [`gather`] frees frames and tables
//! after the invalidation. [`populate`] installs pages before the first access, [`shmem`] holds pages that several
//! spaces map, [`used`] records which parts of a table are in use, [`reserved`] holds pages that the kernel maps for
//! devices, [`userfault`] has a program serve faults. `docs/ref/user-spaces.md` draws the types.
//!
//! # Locks
//! ```text
//!     areas           read: faults, advice, looking      write: everything that adds, cuts or takes areas; sleeps
//!     table lock      one in each table, spins: what changes a page's or a block's entry in it holds it
//! ```
//! The areas are in [`parts`], each with a lock of its own; a call or a fault locks the one that it concerns. Under
//! that lock, for reading too, the tables of its addresses stay: they are linked at any time and unlinked only under
//! the lock for writing. The hardware changes entries without any lock: it sets the access flag, or makes a
//! writable-clean entry dirty. [`entry`] explains when a plain store could lose that.
//!
//! Between a valid entry and another one in its place, an invalidation completes; [`gather`] explains where.
//!
//! Nothing is allocated under a table lock, and everything that can fail happens before the first change.

mod advise;
mod area;
mod block;
mod calls;
mod cells;
mod code;
mod compact;
mod cow;
mod device;
mod entry;
mod error;
mod family;
mod fault;
mod fault_on_access;
mod footprint;
mod fork;
mod gather;
mod group;
mod limits;
mod look;
mod migrate;
mod migrations;
mod mlock;
pub mod pagemap;
mod part_pools;
mod parts;
mod populate;
mod protect;
mod range;
mod reclaim;
mod remap;
mod reserved;
mod shmem;
mod table_lock;
mod tags;
#[cfg(test)]
mod tests;
mod used;
mod user;
mod userfault;
mod zap;

use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_pgtable::{EnsureError, Granule4K, PageRange, PageTables, Table, TableSource};
use intrusive_collections::LinkedListAtomicLink;

pub use advise::{AreaAdvice, Discard};
pub use area::Area;
pub use calls::{MapRequest, Placement, Populate, Sharing};
pub use device::HasRegisters;
pub use error::SpaceError;
pub use fault::{Access, FaultError, handle_fault};
pub use footprint::{Footprint, LastTally, Met, Tally};
pub use limits::{MappedFile, SpaceLimits, Terms};
pub use migrate::{Moved, Unmovable};
pub use mlock::Locking;
pub use range::{RESERVED_END, RESERVED_START, USER_END, USER_START};
pub use reclaim::Used;
pub use remap::{Move, Remap};
pub use reserved::ReservedPages;
pub use shmem::{LARGEST_OBJECT, Object, ObjectError, Seals, WriteAt};
pub use user::{ProgramHeap, SpaceUser};
pub use userfault::{
    Content, Enrolment, FaultMode, Features, FillError, Mark, Message, PageFault, PendingEvents, ReadError, Reading,
    UserfaultError, Userfaultfd,
};

use area::{AreaPools, Areas};
use error::Refusal;
use family::{Families, FamilyId, ObjectList, Origin, SpaceList};
use migrations::Migrations;
use part_pools::PartPools;
use parts::Parts;
use range::pages;
use reclaim::{Files, Hand};
use shmem::OF_OBJECT;

use super::OutOfMemory;
use super::asid::AsidSlot;
use super::counted::{Counted, Inner};
use super::frame::{Frame, FrameAllocator, FrameRecords};
use super::kernel::Machine;
use super::notifier::NotifierChain;
use super::pool::Pool;
use super::tlb::user::UserTlb;
use crate::sched::{BriefGuard, ReadGuard, RwSem, WriteGuard};
use crate::smp::{Cpu, this_cpu};
use userfault::Userfaultfds;

/// Lists of spaces by their families, each with a lock: what programs on different CPUs create is in different ones.
const LISTS: usize = 64;
/// All spaces and objects, of the host's tests too. A static: where the kernel starts the stack has no room for it.
static ALL: Families = Families::new();

// For the static. Here, because loom's atomics are not made at compile time.
impl Families {
    const fn new() -> Self {
        Self {
            next: AtomicU32::new(0),
            lists: [const { RwSem::new(SpaceList::EMPTY) }; LISTS],
            objects: [const { RwSem::new(ObjectList::EMPTY) }; LISTS],
        }
    }
}

/// State that all spaces share: the source of their memory. There is one.
pub struct Spaces {
    mmu: Machine,
    frames: &'static FrameAllocator,
    spaces: Pool<Inner<Space>>,
    areas: AreaPools,
    parts: PartPools<Areas>,
    objects: Pool<Inner<Object>>,
    userfaultfds: Pool<Inner<Userfaultfd>>,
    files: RwSem<Files>,
    hand: RwSem<Hand>,
    families: &'static Families,
    migrations: Migrations,
    /// Of the code that empties a block of tag storage.
    tag_claims: RwSem<()>,
    /// A frame of zeros, mapped at every page that was only read. It has no reference count: its entries are special.
    zeros: PhysAddr,
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
            files: RwSem::new(Files::NONE),
            hand: RwSem::new(Hand::START),
            families: &ALL,
            migrations: Migrations::new(),
            tag_claims: RwSem::new(()),
            zeros: frames.alloc_zeroed(cpu)?,
        })
    }

    /// An empty space.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing stays allocated.
    pub fn create(&'static self, cpu: &Cpu) -> Result<SpaceRef, OutOfMemory> {
        self.create_in(cpu, self.families.new_id())
    }

    /// An empty space of `family`.
    #[allow(unsafe_code, reason = "the table of a frame that is held")]
    fn create_in(&'static self, cpu: &Cpu, family: FamilyId) -> Result<SpaceRef, OutOfMemory> {
        let root = self.frames.alloc_zeroed(cpu)?;
        let make = || Space {
            common: self,
            references: AtomicU32::new(1),
            users: AtomicU32::new(0),
            heap: RwSem::new(ProgramHeap::default()),
            trampoline: AtomicU64::new(0),
            // SAFETY: a zeroed frame that is used for nothing else until the last reference to the space is gone.
            root: unsafe { Table::<Granule4K>::root(root) },
            table_frames: AtomicUsize::new(0),
            asid: AsidSlot::new(),
            notifiers: NotifierChain::default(),
            reserved: AtomicUsize::new(0),
            has_device: AtomicBool::new(false),
            hints: AtomicU8::new(0),
            future_locking: AtomicU8::new(0),
            family,
            in_family: LinkedListAtomicLink::new(),
            userfaultfds: Userfaultfds::new(self.frames),
            areas: Parts::new(Areas::new(USER_START, USER_END)),
        };
        let space = Counted::try_new_with(&self.spaces, make).inspect_err(|_| self.frames.free(cpu, root))?;
        self.families.join(&space);
        Ok(SpaceRef(space))
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
    fn record(&self, frame: PhysAddr) -> &Frame {
        // SAFETY: only for frames of tables and objects, and for frames in entries. Each of them is held by its user.
        unsafe { self.frames.held(frame) }
    }

    /// Records for a loop, in which the compiler would look up their place again after every atomic access.
    fn records(&self) -> HeldRecords {
        HeldRecords(self.frames.records())
    }
}

/// The records of frames that are held.
#[derive(Clone, Copy)]
struct HeldRecords(FrameRecords);

impl HeldRecords {
    /// [`Spaces::record`].
    #[inline(always)]
    #[allow(unsafe_code, reason = "the record of a frame that is held")]
    fn of(self, frame: PhysAddr) -> &'static Frame {
        // SAFETY: the frame is in an entry or a table of the space, which holds it, so its record is valid.
        let record = unsafe { self.0.get(frame.frame_number()) };
        debug_assert!(record.references() != 0, "{frame} is free");
        record
    }
}

/// The address space of a program.
pub struct Space {
    common: &'static Spaces,
    /// How many [`SpaceRef`]s there are.
    references: AtomicU32,
    /// How many [`SpaceUser`]s there are.
    users: AtomicU32,
    /// Acquired before `areas`.
    heap: RwSem<ProgramHeap>,
    trampoline: AtomicU64,
    root: Table,
    /// Frames that are its tables, without the root.
    table_frames: AtomicUsize,
    asid: AsidSlot,
    notifiers: NotifierChain,
    /// Mapped pages of the kernel above [`USER_END`].
    reserved: AtomicUsize,
    /// A device uses the reserved pages.
    has_device: AtomicBool,
    /// Bits for locks, guards and kinds of areas that there may be: see [`advise`]. A bit is never cleared.
    hints: AtomicU8,
    /// How areas that come are locked: a [`Locking`].
    future_locking: AtomicU8,
    family: FamilyId,
    in_family: LinkedListAtomicLink,
    userfaultfds: Userfaultfds,
    areas: Parts<Areas>,
}

impl Space {
    /// The root table, for TTBR0_EL1.
    pub fn root(&self) -> PhysAddr {
        self.root.address()
    }

    /// Its ASID.
    #[inline(always)]
    pub fn asid(&self) -> &AsidSlot {
        &self.asid
    }

    /// The secondary TLBs that translate through its tables.
    #[inline(always)]
    pub fn notifiers(&self) -> &NotifierChain {
        &self.notifiers
    }

    /// The TLBs that a change of its tables invalidates.
    #[inline(always)]
    pub fn tlb(&self) -> UserTlb<'_> {
        UserTlb::new(&self.asid, &self.notifiers)
    }

    /// The part of the areas that owned `page` a moment ago ([`Parts::look_briefly`]), for a reader that sleeps at
    /// most in a subscriber of the notifiers. `cpu` is the CPU that this runs on.
    #[inline(always)]
    #[allow(unsafe_code, reason = "the areas are read by a slot of this CPU")]
    fn areas_briefly<'a>(&'a self, cpu: &'a Cpu, page: VirtAddr) -> BriefGuard<'a, Areas> {
        #[cfg(target_os = "none")]
        debug_assert!(core::ptr::eq(cpu, this_cpu()), "the slot of another CPU");
        if self.notifiers.is_empty() {
            // SAFETY: a fault, and a discard and a marking of few pages, which have no other such guard, sleep for
            // nothing but a subscriber.
            unsafe { self.areas.look_briefly(cpu, page) }
        } else {
            self.areas.read_counted(page)
        }
    }

    /// Has `change` change `areas`, which have all that it concerns, and returns them with what it returns. Where a
    /// part refuses for want of room, all areas together decide.
    #[inline(always)]
    fn change_areas<'a, T>(
        &'a self,
        mut areas: WriteGuard<'a, Areas>,
        change: impl Fn(&mut Areas) -> Result<T, Refusal>,
    ) -> Result<(WriteGuard<'a, Areas>, T), SpaceError> {
        loop {
            match change(&mut areas) {
                Err(Refusal::ByPart) if !areas.is_whole() => {
                    drop(areas);
                    areas = self.write_all_areas();
                }
                changed => return Ok((areas, changed?)),
            }
        }
    }

    /// The part of the areas that has `range`, for a change.
    #[inline(always)]
    fn write_areas(&self, range: PageRange) -> WriteGuard<'_, Areas> {
        self.areas.write(range, move |areas, border| self.free_border(areas, border))
    }

    /// All areas, for a change.
    fn write_all_areas(&self) -> WriteGuard<'_, Areas> {
        self.areas.write_all(move |areas, border| self.free_border(areas, border))
    }

    /// All areas, for reading.
    fn read_all_areas(&self) -> ReadGuard<'_, Areas> {
        self.areas.read_all(move |areas, border| self.free_border(areas, border))
    }

    /// Calls `each` for every area, by address, with the lock of its part held for reading.
    pub fn for_each_area(&self, mut each: impl FnMut(&Area)) {
        self.areas.for_each(pages(USER_START, USER_END), &mut |areas, piece| {
            // Joined with parts that were visited already, it may have areas of theirs.
            areas.touching(piece).filter(|area| area.start() >= piece.start()).for_each(&mut each);
            true
        });
    }

    /// Calls `look` for the area that has `address`, with the areas' lock held for reading; `None` where nothing is
    /// mapped.
    pub fn with_area<T>(&self, address: VirtAddr, look: impl FnOnce(&Area) -> T) -> Option<T> {
        self.areas.read(address).find(address).map(look)
    }

    /// The tables, for reading. None is unlinked while the value exists.
    pub fn tables(&self) -> SpaceTables<'_> {
        SpaceTables { tables: self.page_tables(), _areas: self.read_all_areas() }
    }

    /// Frames that are its tables, with the root.
    pub fn table_frames(&self) -> usize {
        self.table_frames.load(Ordering::Relaxed) + 1
    }

    /// The tables. Areas of registers and of files of the initrd, and private areas of objects, have no blocks.
    #[inline(always)]
    fn page_tables(&self) -> PageTables<'_, Machine> {
        PageTables::new(&self.common.mmu, self.root)
    }

    #[inline(always)]
    fn mmu(&self) -> &Machine {
        &self.common.mmu
    }

    /// Notes that `frame`, which is the caller's alone, is for `page`.
    #[inline(always)]
    fn note_origin(&self, frame: PhysAddr, page: VirtAddr) {
        self.note_origin_in(self.common.record(frame), page);
    }

    /// As [`Self::note_origin`], in the frame's record.
    #[inline(always)]
    fn note_origin_in(&self, frame: &Frame, page: VirtAddr) {
        // Relaxed: readers hold the frame and treat this as a hint.
        frame.owner.store(Origin::new(self.family, page).0, Ordering::Relaxed);
    }

    /// Notes that the frame of an entry that has moved is for `page`, unless it is an object's.
    #[inline(always)]
    fn note_move(&self, frame: &Frame, page: VirtAddr) {
        // Relaxed: set before the frame was the object's.
        if frame.flags.load(Ordering::Relaxed) & OF_OBJECT == 0 {
            self.note_origin_in(frame, page);
        }
    }

    /// Notes that the frames of a block are for the pages from `start` on, for the time when it is split.
    fn note_block_origin(&self, block: PhysAddr, start: VirtAddr) {
        self.common.frames.set_origin(block, Origin::new(self.family, start).0);
    }

    /// Links the last-level table for `address`, if it is missing.
    #[inline(always)]
    fn ensure_table(&self, cpu: &Cpu, address: VirtAddr) -> Result<(), OutOfMemory> {
        Ok(self.try_ensure_table(cpu, address)?)
    }

    /// As [`Self::ensure_table`], with the reason of a failure.
    #[inline(always)]
    fn try_ensure_table(&self, cpu: &Cpu, address: VirtAddr) -> Result<(), EnsureError> {
        self.page_tables().ensure_cell(address, &mut self.table_source(cpu), || Ok(())).map(drop)
    }

    fn table_source<'a>(&'a self, cpu: &'a Cpu) -> SpaceSource<'a> {
        SpaceSource { frames: self.common.frames, taken: &self.table_frames, cpu }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.areas.end(&self.common.parts);
    }
}

impl AsRef<NotifierChain> for Space {
    fn as_ref(&self) -> &NotifierChain {
        &self.notifiers
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Space({})", self.root())
    }
}

/// The tables of a space, while none may be unlinked.
pub struct SpaceTables<'s> {
    tables: PageTables<'s, Machine>,
    _areas: ReadGuard<'s, Areas>,
}

impl<'s> Deref for SpaceTables<'s> {
    type Target = PageTables<'s, Machine>;
    fn deref(&self) -> &Self::Target {
        &self.tables
    }
}

/// A reference to a space. The last one to be dropped unmaps everything and frees the tables; [`SpaceHandle`]s keep the
/// record.
pub struct SpaceRef(Counted<Space>);

impl SpaceRef {
    /// Whether both are the same space.
    pub fn is(&self, other: &Self) -> bool {
        self.0.is(&other.0)
    }
}

impl Deref for SpaceRef {
    type Target = Space;
    #[inline(always)]
    fn deref(&self) -> &Space {
        &self.0
    }
}

impl Clone for SpaceRef {
    fn clone(&self) -> Self {
        // Relaxed: the caller has a reference, so the count cannot be on its way to 0.
        self.references.fetch_add(1, Ordering::Relaxed);
        Self(self.0.clone())
    }
}

impl fmt::Debug for SpaceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Drop for SpaceRef {
    fn drop(&mut self) {
        // Release: what this reference did with the space comes before its end; acquire, by the last: it comes after
        // what all did.
        if self.references.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Drop has no argument for the CPU.
            let cpu = this_cpu();
            self.release(cpu);
            self.common.frames.free(cpu, self.root());
        }
    }
}

/// Keeps the record of a space, and not the space: its memory is freed with the last [`SpaceRef`]. Only its notifiers
/// are left then, which make no more calls.
///
/// For a device that translates through its tables and must not keep a program's memory because of that (Linux's
/// `mm_count` beside `mm_users`).
#[derive(Clone, Debug)]
pub struct SpaceHandle(Counted<Space>);

impl SpaceHandle {
    /// One of `space`.
    pub fn new(space: &SpaceRef) -> Self {
        Self(space.0.clone())
    }

    /// The part that all spaces have in common.
    pub(super) fn common(&self) -> &'static Spaces {
        self.0.common
    }

    /// Whether it is one of `space`.
    #[inline(always)]
    pub fn is_of(&self, space: &Space) -> bool {
        core::ptr::eq(&raw const *self.0, space)
    }

    /// The space, if it has not ended: `mmget_not_zero`. A space that was released has ended, whatever references are
    /// left.
    pub fn upgrade(&self) -> Option<SpaceRef> {
        if self.is_released() {
            return None;
        }
        // Acquire: pairs with the release of the reference that was taken before.
        let taken = self.0.references.fetch_update(Ordering::Acquire, Ordering::Relaxed, |count| {
            if count == 0 { None } else { Some(count + 1) }
        });
        // Lazily: a reference that is not counted must not be dropped either.
        taken.is_ok().then(|| SpaceRef(self.0.clone()))
    }
}

impl Deref for SpaceHandle {
    type Target = NotifierChain;
    fn deref(&self) -> &NotifierChain {
        &self.0.notifiers
    }
}

/// Frames for tables, from the frame allocator.
struct SpaceSource<'a> {
    frames: &'a FrameAllocator,
    /// How many are in use.
    taken: &'a AtomicUsize,
    cpu: &'a Cpu,
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
