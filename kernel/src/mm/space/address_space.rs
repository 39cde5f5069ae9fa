//! The address space of a program, and the references to it.

use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_pgtable::{EnsureError, Granule4K, PageRange, PageTables, Table};
use intrusive_collections::LinkedListAtomicLink;

use super::area::Area;
use super::area::tree::Areas;
use super::error::{Refusal, SpaceError};
use super::family::{FamilyId, Origin};
use super::parts::Parts;
use super::range::{USER_END, USER_START, pages};
use super::shmem::OF_OBJECT;
use super::spaces::{SpaceSource, Spaces};
use super::table_lock::TableGuard;
use super::userfault::Userfaultfds;
use crate::mm::OutOfMemory;
use crate::mm::asid::AsidSlot;
use crate::mm::counted::Counted;
use crate::mm::frame::Frame;
use crate::mm::kernel::Machine;
use crate::mm::notifier::NotifierChain;
use crate::mm::tlb::user::UserTlb;
use crate::sched::{BriefGuard, ReadGuard, RwSem, WriteGuard};
use crate::smp::{Cpu, this_cpu};
use crate::sync::rank::{self, Rank};

/// The heap, whose end `brk` moves. It belongs to the space: all threads and processes of the space share it (Linux:
/// `mm->start_brk`, `mm->brk`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct ProgramHeap {
    /// Address of its first byte.
    pub start: u64,
    /// Its end as the program requested it, in bytes: not rounded to pages.
    pub end: u64,
}

/// The address space of a program.
pub struct Space {
    pub(super) common: &'static Spaces,
    /// How many [`SpaceRef`]s there are.
    pub(super) references: AtomicU32,
    /// How many [`SpaceUser`](super::user::SpaceUser)s there are.
    pub(super) users: AtomicU32,
    pub(super) heap: RwSem<ProgramHeap>,
    pub(super) trampoline: AtomicU64,
    pub(super) root: Table,
    /// Frames that are its tables, without the root.
    pub(super) table_frames: AtomicUsize,
    pub(super) asid: AsidSlot,
    pub(super) notifiers: NotifierChain,
    /// Mapped pages of the kernel above [`USER_END`].
    pub(super) reserved: AtomicUsize,
    /// A device uses the reserved pages.
    pub(super) has_device: AtomicBool,
    /// Bits for locks, guards and kinds of areas that there may be: [`LOCKED_AREAS`] and those beside it. A bit is
    /// never cleared.
    pub(super) hints: AtomicU8,
    /// How areas that come are locked: a [`Locking`](super::mlock::Locking).
    pub(super) future_locking: AtomicU8,
    /// The commands of `membarrier` that its threads have registered for, and above them its [`Settings`].
    settings: AtomicU32,
    pub(super) family: FamilyId,
    pub(super) in_family: LinkedListAtomicLink,
    pub(super) userfaultfds: Userfaultfds,
    pub(super) areas: Parts<Areas>,
}

/// Of [`Space::hints`]: some areas may not be for children.
pub(super) const NOT_ALL_AREAS: u8 = 1;
/// Shared areas may have guards, whose entries a fork does not visit otherwise.
pub(super) const SHARED_GUARDS: u8 = 2;
/// There may be locked areas.
pub(super) const LOCKED_AREAS: u8 = 4;
/// There may be areas of registers, which a child does not have.
pub(super) const REGISTERS: u8 = 8;
/// There may be contiguous groups, which areas may cut.
pub(super) const GROUPS: u8 = 16;
/// Areas may be registered with a userfaultfd.
pub(super) const USERFAULTFDS: u8 = 32;
/// There may be sealed areas.
pub(super) const SEALED_AREAS: u8 = 64;

/// Of [`Space::settings`]: all commands of `membarrier`.
const BARRIERS: u32 = 0xffff;

/// How a program makes another space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Made {
    /// For its child.
    ByFork,
    /// For another program.
    ByExec,
}

/// Settings that a program has made for its space, and for those that it makes (Linux: `mm->flags`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings(u32);

impl Settings {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Nothing is executed that may be written, or was not executed from the first (`PR_MDWE_REFUSE_EXEC_GAIN`).
    pub const DENIES_GAIN: Self = Self(1 << 16);
    /// No space that is made from this one has it (`PR_MDWE_NO_INHERIT`).
    pub const DENIES_ONCE: Self = Self(1 << 17);
    /// Both.
    pub const DENIES_ALL: Self = Self::DENIES_GAIN.with(Self::DENIES_ONCE);
    /// There are no blocks (`PR_SET_THP_DISABLE`).
    pub const NO_BLOCKS: Self = Self(1 << 18);
    /// There are no blocks but those that are asked for, as it is in any case.
    pub const NO_OTHER_BLOCKS: Self = Self(1 << 19);

    /// These and `others`.
    #[must_use]
    pub const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// These but `others`.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether it has all of `others`.
    pub const fn has(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }

    /// Whether a space that is made from one with these denies memory that is written and executed.
    pub const fn denies_in_next(self) -> bool {
        self.has(Self::DENIES_GAIN) && !self.has(Self::DENIES_ONCE)
    }

    /// Whether memory with protection `old` may not get `new` (Linux: `map_deny_write_exec`).
    #[inline(always)]
    pub(super) const fn deny(self, old: Protection, new: Protection) -> bool {
        new.contains(Protection::EXECUTE)
            && self.has(Self::DENIES_GAIN)
            && (new.contains(Protection::WRITE) || !old.contains(Protection::EXECUTE))
    }
}

impl Spaces {
    /// An empty space.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing stays allocated.
    pub fn create(&'static self, cpu: &Cpu) -> Result<SpaceRef, OutOfMemory> {
        self.create_in(cpu, self.families.new_id())
    }

    /// An empty space of `family`.
    #[allow(unsafe_code, reason = "the table of a frame that is held")]
    pub(super) fn create_in(&'static self, cpu: &Cpu, family: FamilyId) -> Result<SpaceRef, OutOfMemory> {
        let root = self.frames.alloc_zeroed(cpu)?;
        let make = || Space {
            common: self,
            references: AtomicU32::new(1),
            users: AtomicU32::new(0),
            heap: RwSem::new(rank::PROGRAM_HEAP, ProgramHeap::default()),
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
            settings: AtomicU32::new(0),
            family,
            in_family: LinkedListAtomicLink::new(),
            userfaultfds: Userfaultfds::new(self.frames),
            areas: Parts::new(Areas::new(USER_START, USER_END)),
        };
        let space = Counted::try_new_with(&self.spaces, make).inspect_err(|_| self.frames.free(cpu, root))?;
        self.families.join(&space);
        Ok(SpaceRef(space))
    }
}

impl Space {
    /// The root table, for TTBR0_EL1.
    pub fn root(&self) -> PhysAddr {
        self.root.address()
    }

    /// The commands of `membarrier` that its threads have registered for (Linux: `mm->membarrier_state`).
    pub fn barriers(&self) -> u32 {
        self.settings.load(Ordering::Relaxed) & BARRIERS
    }

    /// Registers its threads for these commands too.
    pub fn add_barriers(&self, commands: u32) {
        self.settings.fetch_or(commands & BARRIERS, Ordering::Relaxed);
    }

    /// The settings that its program has made.
    pub fn settings(&self) -> Settings {
        Settings(self.settings.load(Ordering::Relaxed) & !BARRIERS)
    }

    /// Has `change` return what is set from now on, unless it fails.
    ///
    /// # Errors
    /// Those of `change`.
    pub fn set<E>(&self, change: impl Fn(Settings) -> Result<Settings, E>) -> Result<(), E> {
        let mut word = self.settings.load(Ordering::Relaxed);
        loop {
            let new = word & BARRIERS | change(Settings(word & !BARRIERS))?.0;
            match self.settings.compare_exchange_weak(word, new, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => word = now,
            }
        }
    }

    /// Takes the settings over from the space of a program that makes this one, and with [`Made::ByFork`] the commands.
    #[inline(always)]
    pub fn inherit(&self, from: &Self, made: Made) {
        let word = from.settings.load(Ordering::Relaxed);
        let kept = if made == Made::ByFork { u32::MAX } else { !BARRIERS };
        let lost = if word & Settings::DENIES_ONCE.0 != 0 { Settings::DENIES_ALL.0 } else { 0 };
        self.settings.store(word & kept & !lost, Ordering::Relaxed);
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
    pub(super) fn areas_briefly<'a>(&'a self, cpu: &'a Cpu, page: VirtAddr) -> BriefGuard<'a, Areas> {
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
    pub(super) fn change_areas<'a, T>(
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
    pub(super) fn write_areas(&self, range: PageRange) -> WriteGuard<'_, Areas> {
        self.areas.write(range, move |areas, border| self.free_border(areas, border))
    }

    /// All areas, for a change.
    pub(super) fn write_all_areas(&self) -> WriteGuard<'_, Areas> {
        self.areas.write_all(move |areas, border| self.free_border(areas, border))
    }

    /// All areas, for reading.
    pub(super) fn read_all_areas(&self) -> ReadGuard<'_, Areas> {
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

    /// Calls `look` for the first area that ends after `from`, with the lock of its part held for reading.
    pub fn with_next_area<T>(&self, from: VirtAddr, mut look: impl FnMut(&Area) -> T) -> Option<T> {
        let mut found = None;
        self.areas.for_each(PageRange::lower(from.max(USER_START), USER_END)?, &mut |areas, piece| {
            found = areas.touching(piece).next().map(&mut look);
            found.is_none()
        });
        found
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
    pub(super) fn page_tables(&self) -> PageTables<'_, Machine> {
        PageTables::new(&self.common.mmu, self.root)
    }

    #[inline(always)]
    pub(super) fn mmu(&self) -> &Machine {
        &self.common.mmu
    }

    /// Acquires the lock of `table`, which is one of this space.
    #[inline(always)]
    pub(super) fn lock_table(&self, table: PhysAddr) -> TableGuard<'_> {
        self.lock(table)
    }

    /// As [`Self::lock_table`], for another table beside one whose lock is held. The areas are locked for writing, so
    /// nothing else acquires two; or for reading, and the one that is held is the lower one, by its address; or the other
    /// one is new, and what acquires two of a level above has none of a level below.
    pub(super) fn lock_table_beside(&self, table: PhysAddr) -> TableGuard<'_, { rank::TABLE_BESIDE }> {
        self.lock(table)
    }

    #[inline(always)]
    fn lock<const RANK: Rank>(&self, table: PhysAddr) -> TableGuard<'_, RANK> {
        TableGuard::lock(self.common.record(table))
    }

    /// Notes that `frame`, which is the caller's alone, is for `page`.
    #[inline(always)]
    pub(super) fn note_origin(&self, frame: PhysAddr, page: VirtAddr) {
        self.note_origin_in(self.common.record(frame), page);
    }

    /// As [`Self::note_origin`], in the frame's record.
    #[inline(always)]
    pub(super) fn note_origin_in(&self, frame: &Frame, page: VirtAddr) {
        // Relaxed: readers hold the frame and treat this as a hint.
        frame.owner.store(Origin::new(self.family, page).0, Ordering::Relaxed);
    }

    /// Notes that the frame of an entry that has moved is for `page`, unless it is an object's.
    #[inline(always)]
    pub(super) fn note_move(&self, frame: &Frame, page: VirtAddr) {
        // Relaxed: set before the frame was the object's.
        if frame.flags.load(Ordering::Relaxed) & OF_OBJECT == 0 {
            self.note_origin_in(frame, page);
        }
    }

    /// Notes that the frames of a block are for the pages from `start` on, for the time when it is split.
    pub(super) fn note_block_origin(&self, block: PhysAddr, start: VirtAddr) {
        self.common.frames.set_origin(block, Origin::new(self.family, start).0);
    }

    /// Links the last-level table for `address`, if it is missing.
    #[inline(always)]
    pub(super) fn ensure_table(&self, cpu: &Cpu, address: VirtAddr) -> Result<(), OutOfMemory> {
        Ok(self.try_ensure_table(cpu, address)?)
    }

    /// As [`Self::ensure_table`], with the reason of a failure.
    #[inline(always)]
    pub(super) fn try_ensure_table(&self, cpu: &Cpu, address: VirtAddr) -> Result<(), EnsureError> {
        self.page_tables().ensure_cell(address, &mut self.table_source(cpu), || Ok(())).map(drop)
    }

    pub(super) fn table_source<'a>(&'a self, cpu: &'a Cpu) -> SpaceSource<'a> {
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
pub struct SpaceRef(pub(super) Counted<Space>);

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
    pub(in crate::mm) fn common(&self) -> &'static Spaces {
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
