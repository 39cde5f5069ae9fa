//! Objects: memory that several areas may map. Shared anonymous memory, files that are memory alone, files of the
//! initrd, and registers of devices (`device`), which are no memory.
//!
//! The frames of an object are in a tree of tables that no hardware walks: [`pages`]. A fault finds its frame there
//! without a lock. A truncation or a hole, which takes frames away, finds the areas that map them by the reverse map
//! ([`mappers`]), and empties their entries.
//!
//! Its locks are [`OBJECT`](rank::OBJECT) and [`MAPPERS`](rank::MAPPERS).

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

pub(super) mod block;
pub(super) mod file;
pub(super) mod mappers;
pub(super) mod pages;

use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_pgtable::{Granule4K, Mmu, PageRange, PageTables, Table, TableSource};

use intrusive_collections::rbtree::AtomicLink;
use intrusive_collections::{Bound, KeyAdapter, LinkedListAtomicLink, RBTree, UnsafeRef, intrusive_adapter};

use super::cells::EntryCell;
use super::error::ObjectError;
use super::family::{FamilyId, Origin};
use super::shmem::mappers::Mappers;
use super::shmem::pages::{Arrival, Found, order};
use super::spaces::Spaces;
use super::tally::{Footprint, LastTally, Met, Tally};
use super::used::note_used_by_others;
use super::userfault::FillError;
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::mm::frame_limit::{FrameLimit, FrameShare};
use crate::mm::kernel::Machine;
use crate::sched::{RwSem, enlarge_shortage, is_killed, relax, sleep_briefly};
use crate::smp::{Cpu, this_cpu};
use crate::sync::rank;

/// In the flags of a frame's record: the frame is an object's, and no private copy.
pub(super) const OF_OBJECT: u32 = 2;

/// Bytes that an object can have: as many as a tree of four levels translates. Linux's limit is 2⁶³ − 1.
pub const LARGEST_OBJECT: u64 = 1 << 48;

/// The changes that are refused for a file: bits, of which each is Linux's `F_SEAL_` of the same name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seals(pub u32);

impl Seals {
    /// More seals.
    pub const SEAL: u32 = 1;
    /// To become shorter.
    pub const SHRINK: u32 = 2;
    /// To become longer.
    pub const GROW: u32 = 4;
    /// To be written.
    pub const WRITE: u32 = 8;
    /// To be written but through the mappings that there are.
    pub const FUTURE_WRITE: u32 = 16;
    /// Another mode.
    pub const EXEC: u32 = 32;
    /// All of them.
    pub const ALL: u32 = 63;
    /// Those that keep its contents as they are.
    const WRITES: u32 = Self::WRITE | Self::FUTURE_WRITE;

    /// Whether it has one of `bits`.
    const fn has(self, bits: u32) -> bool {
        self.0 & bits != 0
    }

    /// Whether there must be no new shared mapping that may be written.
    pub const fn refuse_writes(self) -> bool {
        self.has(Self::WRITES)
    }
}

/// Frames for the tables of an object, on the way to one page.
struct ObjectSource<'a> {
    object: &'a Object,
    cpu: &'a Cpu,
    /// Whether they count in its share of a limit, and whether that has refused one.
    is_counted: bool,
    is_refused: bool,
}

// SAFETY: the allocator gives each frame to one owner, zeroed here, and every frame is in the linear map.
unsafe impl TableSource for ObjectSource<'_> {
    fn take(&mut self) -> Option<PhysAddr> {
        let object = self.object;
        self.is_refused = self.is_counted && !object.share.take(1);
        if self.is_refused {
            return None;
        }
        let table = object.common.frames.alloc_zeroed(self.cpu);
        if table.is_ok() {
            object.table_frames.fetch_add(1, Ordering::Relaxed);
        } else if self.is_counted {
            object.share.give_back(1);
        }
        table.ok()
    }

    unsafe fn give_back(&mut self, table: PhysAddr) {
        let object = self.object;
        object.common.frames.free(self.cpu, table);
        object.table_frames.fetch_sub(1, Ordering::Relaxed);
        if self.is_counted {
            object.share.give_back(1);
        }
    }
}

/// Memory that several areas may map.
pub struct Object {
    common: &'static Spaces,
    identity: usize,
    root: Table,
    table_frames: AtomicUsize,
    /// No page from this one on ever had a frame.
    top: AtomicU64,
    /// In bytes, at most [`LARGEST_OBJECT`]. Changed with `state` locked for writing.
    size: AtomicU64,
    /// The contents of its pages before the first write; zeros after the end. `None`: it is anonymous memory.
    file: Option<&'static [u8]>,
    /// Whether a page without a frame is as in `file`, which nothing has changed: see [`Self::keep_all`].
    is_as_file: AtomicBool,
    /// How many new frames are being filled from `file`.
    fills: AtomicUsize,
    /// The registers of a device, which are its one page. No frame is in its tree.
    registers: Option<PhysAddr>,
    /// Its pages and tables that count: all but those that its file is read by.
    share: FrameShare,
    state: RwSem<Seals>,
    /// How many areas a program may write through, now or after a change of protection; -1 where there must be none.
    writers: AtomicI64,
    mappers: RwSem<Mappers>,
    counted: LastTally,
    /// In the tree of objects whose pages can be had again.
    pub(super) by_identity: AtomicLink,
    /// It is a family of its own.
    pub(super) family: FamilyId,
    pub(super) in_family: LinkedListAtomicLink,
}

/// The identity of the next object. 64 bits do not overflow.
static NEXT_IDENTITY: AtomicUsize = AtomicUsize::new(0);

/// The identity that the next object will have, or a later one.
pub(super) fn next_identity() -> usize {
    NEXT_IDENTITY.load(Ordering::Relaxed)
}

impl Spaces {
    /// An object of `size` bytes, at most [`LARGEST_OBJECT`], without frames: a file, whose pages begin as `file` and
    /// as zeros after that, or anonymous memory.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn create_object(
        &'static self,
        cpu: &Cpu,
        size: u64,
        file: Option<&'static [u8]>,
        seals: Seals,
    ) -> Result<Counted<Object>, OutOfMemory> {
        self.new_object(cpu, size, file, None, seals, FrameShare::new(None))
    }

    /// As [`Self::create_object`], of a file whose frames count in `limit`, but those that its contents are read by.
    ///
    /// # Errors
    /// [`ObjectError::NoRoom`], [`ObjectError::OutOfMemory`].
    pub fn create_limited(
        &'static self,
        cpu: &Cpu,
        file: &'static [u8],
        seals: Seals,
        limit: &'static FrameLimit,
    ) -> Result<Counted<Object>, ObjectError> {
        let share = FrameShare::new(Some(limit));
        // The root.
        if file.is_empty() && !share.take(1) {
            return Err(ObjectError::NoRoom);
        }
        Ok(self.new_object(cpu, file.len() as u64, Some(file), None, seals, share)?)
    }

    /// As [`Self::create_object`], perhaps of the registers of a device.
    pub(super) fn new_object(
        &'static self,
        cpu: &Cpu,
        size: u64,
        file: Option<&'static [u8]>,
        registers: Option<PhysAddr>,
        seals: Seals,
        share: FrameShare,
    ) -> Result<Counted<Object>, OutOfMemory> {
        let root = self.frames.alloc_zeroed(cpu)?;
        // Where there is no memory for the object, its drop frees the root.
        let object = Counted::try_new(
            &self.objects,
            Object {
                common: self,
                // Relaxed: the numbers differ, and order nothing.
                identity: NEXT_IDENTITY.fetch_add(1, Ordering::Relaxed),
                // SAFETY: a zeroed frame that is used for nothing else until the object is dropped.
                root: unsafe { Table::<Granule4K>::root(root) },
                table_frames: AtomicUsize::new(0),
                top: AtomicU64::new(0),
                size: AtomicU64::new(size.min(LARGEST_OBJECT)),
                file,
                is_as_file: AtomicBool::new(true),
                fills: AtomicUsize::new(0),
                registers,
                share,
                state: RwSem::new(rank::OBJECT, seals),
                writers: AtomicI64::new(0),
                mappers: RwSem::new(rank::MAPPERS, Mappers::NONE),
                counted: LastTally::default(),
                by_identity: AtomicLink::new(),
                family: self.families.new_id(),
                in_family: LinkedListAtomicLink::new(),
            },
        )?;
        self.families.add_object(&object);
        if object.can_be_had_again() {
            self.files.write().insert(&object);
        }
        Ok(object)
    }
}

/// Why a page of an object is unavailable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum NoPage {
    /// The object ends before it.
    BehindTheEnd,
    /// The objects that it is counted with have as many as they may.
    NoRoom,
    OutOfMemory,
}

impl From<OutOfMemory> for NoPage {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<NoPage> for ObjectError {
    fn from(error: NoPage) -> Self {
        if error == NoPage::NoRoom { Self::NoRoom } else { Self::OutOfMemory }
    }
}

/// The state of a page in an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    /// No memory, also for a first access: it ends before, or is registers.
    Never,
    /// No frame and no contents: a first access makes it.
    Absent,
    /// A frame that is on its way.
    OnItsWay,
    /// A frame, or contents.
    Here,
}

/// The pages of contents.
const fn pages_of(contents: &[u8]) -> u64 {
    (contents.len() as u64).div_ceil(PAGE)
}

impl Object {
    /// Distinguishes it from every other object, also from earlier ones: a futex may still sleep on a word of one of
    /// those (Linux: `i_sequence`).
    pub const fn identity(&self) -> usize {
        self.identity
    }

    /// The registers that it is, of a device.
    #[inline(always)]
    pub(super) const fn registers(&self) -> Option<PhysAddr> {
        self.registers
    }

    /// Whether it is registers, and no memory.
    pub const fn is_registers(&self) -> bool {
        self.registers.is_some()
    }

    /// Whether its pages hold what its file holds: nothing writes to it.
    pub fn can_be_had_again(&self) -> bool {
        self.first_contents().is_some_and(|contents| !contents.is_empty())
    }

    /// The contents of pages without a frame.
    fn first_contents(&self) -> Option<&'static [u8]> {
        // Relaxed: changed with `state` locked, when all of these pages have frames. A fill looks again.
        self.file.filter(|_| self.is_as_file.load(Ordering::Relaxed))
    }

    /// Gives all pages frames that they keep: from now on the object may be written, and is no more what its file is.
    ///
    /// # Errors
    /// [`ObjectError::OutOfMemory`], [`ObjectError::NoRoom`]; [`ObjectError::Interrupted`]: the program ends.
    pub fn keep_all(&self, cpu: &Cpu) -> Result<(), ObjectError> {
        if !self.can_be_had_again() {
            return Ok(());
        }
        // No page is given back on the way.
        let _state = self.state.write();
        // Another thread may have been faster, and the object may be longer since.
        if !self.can_be_had_again() {
            return Ok(());
        }
        let pages = self.size().div_ceil(PAGE);
        self.count(pages as usize)?;
        for page in 0..pages {
            let kept = self.find_or_add(cpu, page, |_| {}).map(drop);
            if kept == Err(NoPage::OutOfMemory) {
                // With one more frame it would fail again: those that it has can be taken away until it has all.
                enlarge_shortage(cpu, pages as usize);
            }
            let kept = if is_killed() { Err(ObjectError::Interrupted) } else { kept.map_err(ObjectError::from) };
            kept.inspect_err(|_| self.share.give_back(pages as usize))?;
            relax();
        }
        self.is_as_file.store(false, Ordering::SeqCst);
        self.wait_for_fills();
        Ok(())
    }

    /// A page is to get a frame: whether with the contents of the file, which stay until [`Self::end_fill`].
    fn begin_fill(&self) -> bool {
        if !self.can_be_had_again() {
            return false;
        }
        // Sequentially consistent, as the looks and stores of what waits: it sees the fill, or the fill sees what it
        // has stored.
        self.fills.fetch_add(1, Ordering::SeqCst);
        let is_as_file = self.is_as_file.load(Ordering::SeqCst);
        if !is_as_file {
            self.end_fill();
        }
        is_as_file
    }

    fn end_fill(&self) {
        // The frame is in the object before.
        self.fills.fetch_sub(1, Ordering::Release);
    }

    /// Waits until nothing is filled from the file that has not seen what the caller has stored. Faults, of which a fill
    /// is a part, do not sleep. The state is locked for writing.
    fn wait_for_fills(&self) {
        order();
        while self.fills.load(Ordering::SeqCst) != 0 {
            sleep_briefly();
        }
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        // Relaxed: what must not miss a change has a lock or a fence.
        self.size.load(Ordering::Relaxed)
    }

    /// Whether `page` has a byte before the end.
    #[inline(always)]
    pub fn has_inside(&self, page: u64) -> bool {
        page < self.size().div_ceil(PAGE)
    }

    #[inline(always)]
    fn tables(&self) -> PageTables<'_, Machine> {
        PageTables::new(&self.common.mmu, self.root)
    }

    /// The frame of `page`, a new one if it had none.
    ///
    /// # Errors
    /// [`NoPage`].
    #[inline(always)]
    pub(super) fn frame(&self, cpu: &Cpu, page: u64) -> Result<Found<'_, Machine>, NoPage> {
        if self.has_inside(page) { self.find_or_add(cpu, page, |_| {}) } else { Err(NoPage::BehindTheEnd) }
    }

    /// As [`Self::frame`], wherever the object ends. `fill` writes to the frame, of a new page before others find it.
    #[inline(always)]
    fn find_or_add(&self, cpu: &Cpu, page: u64, fill: impl Fn(PhysAddr)) -> Result<Found<'_, Machine>, NoPage> {
        let place = self.tables().cell(VirtAddr(page * PAGE));
        match place.and_then(|(_, cell)| Found::look_to_use(&self.common.mmu, cell)) {
            Some(found) => {
                fill(found.frame());
                Ok(found)
            }
            None => self.add(cpu, page, place, fill),
        }
    }

    /// A frame for a page that has none in use; its `place` is its table and its entry there, if it has one.
    #[inline(never)]
    fn add<'a>(
        &'a self,
        cpu: &Cpu,
        page: u64,
        place: Option<(PhysAddr, &'a EntryCell)>,
        fill: impl Fn(PhysAddr),
    ) -> Result<Found<'a, Machine>, NoPage> {
        // A page that can be had again counts for nothing.
        let is_fill = self.begin_fill();
        let undo = || if is_fill { self.end_fill() } else { self.share.give_back(1) };
        if is_fill {
            order();
            if !self.has_inside(page) {
                self.end_fill();
                return Err(NoPage::BehindTheEnd);
            }
        } else {
            self.count(1)?;
        }
        let make = || self.common.frames.alloc_movable_zeroed(cpu);
        let made = match place {
            Some(place) => make().map(|new| (place, new)).map_err(NoPage::from),
            None => self.ensure_cell(cpu, page, make),
        };
        let ((table, cell), new) = made.inspect_err(|_| undo())?;
        if is_fill {
            self.copy_first_contents(new, page);
        }
        self.note_frame(new, page);
        fill(new);
        let found = self.publish(cpu, table, cell, page, new);
        let is_lost = found.frame() != new;
        if is_fill || is_lost {
            undo();
        }
        if is_lost {
            fill(found.frame());
        }
        // The page before a look at the size: a truncation that does not see the page has changed the size before.
        order();
        Ok(found)
    }

    /// Counts more pages, before they are taken.
    #[inline(always)]
    fn count(&self, pages: usize) -> Result<(), NoPage> {
        if self.share.take(pages) { Ok(()) } else { Err(NoPage::NoRoom) }
    }

    /// The table and the entry of a page, which is linked if it is missing; and what `make` made.
    fn ensure_cell<T>(
        &self,
        cpu: &Cpu,
        page: u64,
        make: impl FnOnce() -> Result<T, OutOfMemory>,
    ) -> Result<((PhysAddr, &EntryCell), T), NoPage> {
        let is_counted = self.file.is_none_or(|contents| page >= pages_of(contents));
        let mut source = ObjectSource { object: self, cpu, is_counted, is_refused: false };
        let ensured = self.tables().ensure_cell(VirtAddr(page * PAGE), &mut source, make);
        ensured.map_err(|OutOfMemory| if source.is_refused { NoPage::NoRoom } else { NoPage::OutOfMemory })
    }

    /// Gives the frame `new`, of zeros, what `page` has in the file.
    #[cold]
    fn copy_first_contents(&self, new: PhysAddr, page: u64) {
        let first = usize::try_from(page * PAGE).unwrap_or(usize::MAX);
        let Some(contents) = self.file.and_then(|contents| contents.get(first..)) else { return };
        let count = contents.len().min(PAGE as usize);
        let to = self.common.frames.linear().address(new).as_ptr::<u8>();
        // SAFETY: the linear map has the frame, writable, and the frame has no other user.
        unsafe { to.copy_from_nonoverlapping(contents.as_ptr(), count) };
    }

    /// Notes whose frame `new` is, before it is published.
    #[inline(always)]
    fn note_frame(&self, new: PhysAddr, page: u64) {
        let record = self.common.record(new);
        // Relaxed: published with the frame.
        record.flags.store(record.flags.load(Ordering::Relaxed) | OF_OBJECT, Ordering::Relaxed);
        record.owner.store(Origin::new(self.family, VirtAddr(page * PAGE)).0, Ordering::Relaxed);
    }

    /// Gives `page` the frame `new`, unless another CPU was faster; what it has then.
    #[inline(always)]
    fn publish<'a>(
        &self,
        cpu: &Cpu,
        table: PhysAddr,
        cell: &'a EntryCell,
        page: u64,
        new: PhysAddr,
    ) -> Found<'a, Machine> {
        self.note_place(table, page);
        pages::add(&self.common.mmu, cell, new, |unused| self.common.frames.free(cpu, unused))
    }

    /// Notes that `page`, whose entry is in `table`, has a frame: before the entry, as the barrier that publishes that comes
    /// next.
    #[inline(always)]
    fn note_place(&self, table: PhysAddr, page: u64) {
        if self.top.load(Ordering::Relaxed) <= page {
            self.top.fetch_max(page + 1, Ordering::Relaxed);
        }
        note_used_by_others(self.common.record(table), VirtAddr(page * PAGE));
    }

    /// How many of the `pages` pages from `first` on have frames.
    pub(super) fn pages_in(&self, first: u64, pages: u64) -> usize {
        let (mmu, mut count) = (&self.common.mmu, 0);
        if let Some(range) = self.filled(first..first.saturating_add(pages)) {
            self.tables().walk_cells(range).for_each(|found| {
                count += found.cells.iter().filter(|cell| mmu.load(cell) != Descriptor::EMPTY).count();
                relax();
            });
        }
        count
    }

    /// Its frames that count in a limit.
    pub fn counted_frames(&self) -> usize {
        self.share.frames()
    }

    /// Its frames, once in each round: nothing where it was met in `tally`. Visits all of its tables.
    pub fn footprint(&self, tally: Tally) -> Footprint {
        if self.counted.meet(tally) == Met::Again {
            return Footprint::default();
        }
        let tables = 1 + self.table_frames.load(Ordering::Relaxed);
        Footprint { pages: self.pages(), tables, areas: 0 }
    }

    /// Of `pages` those that may have frames, as addresses of the tree; `None` where there are none.
    fn filled(&self, pages: Range<u64>) -> Option<PageRange> {
        let end = pages.end.min(self.top.load(Ordering::Relaxed));
        let bytes = end.checked_sub(pages.start)? * PAGE;
        PageRange::new(VirtAddr(pages.start * PAGE), bytes).ok()
    }

    /// Whether `page` has a frame that is used, or its contents are in memory anyway.
    pub(super) fn has(&self, page: u64) -> bool {
        self.has_contents(page) || pages::is_used(self.entry(page))
    }

    /// The state of `page` that a first access finds.
    #[cold]
    pub(super) fn presence(&self, page: u64) -> Presence {
        match self.entry(page) {
            _ if !self.has_inside(page) || self.is_registers() => Presence::Never,
            entry if pages::is_migrating(entry) => Presence::OnItsWay,
            Descriptor::EMPTY if !self.has_contents(page) => Presence::Absent,
            _ => Presence::Here,
        }
    }

    /// Whether the contents of `page` are in memory anyway.
    fn has_contents(&self, page: u64) -> bool {
        self.first_contents().is_some_and(|contents| page < pages_of(contents))
    }

    /// The entry of `page` in its tree.
    fn entry(&self, page: u64) -> Descriptor {
        let cell = self.filled(page..page + 1).and_then(|range| self.tables().cell(range.start()));
        cell.map_or(Descriptor::EMPTY, |(_, cell)| self.common.mmu.load(cell))
    }

    /// The frame of `page`, if the page is before the end and [here](Presence::Here), or [on its
    /// way](Presence::OnItsWay).
    pub(super) fn present(&self, cpu: &Cpu, page: u64) -> Result<Option<Found<'_, Machine>>, NoPage> {
        if !self.has_inside(page) {
            return Ok(None);
        }
        if self.has_contents(page) {
            return self.find_or_add(cpu, page, |_| {}).map(Some);
        }
        let place = self.tables().cell(VirtAddr(page * PAGE));
        Ok(place.and_then(|(_, cell)| Found::look_to_use(&self.common.mmu, cell)))
    }

    /// Gives `page`, which has no frame, the one that the caller has filled, and has `map` map it. On an error the frame
    /// is the caller's still. With [`Arrival::Mapped`] the caller has `Migrations::arrive`'s guard, for which a fault that finds
    /// the page waits.
    ///
    /// # Errors
    /// [`FillError::Exists`] (it has a frame), or there is no memory, or no page: it is after the end.
    pub(super) fn fill(
        &self,
        cpu: &Cpu,
        page: u64,
        frame: PhysAddr,
        arrival: Arrival,
        map: impl FnOnce(),
    ) -> Result<(), FillError> {
        let ((table, cell), ()) = self.ensure_cell(cpu, page, || Ok(())).map_err(|_| OutOfMemory)?;
        // No truncation: what is after the end has no contents. Nor does anything take the page away before it is mapped.
        let _state = self.state.read();
        if !self.has_inside(page) {
            return Err(OutOfMemory.into());
        }
        let mmu = &self.common.mmu;
        if mmu.load(cell) != Descriptor::EMPTY {
            return Err(FillError::Exists);
        }
        self.note_frame(frame, page);
        self.note_place(table, page);
        self.count(1).map_err(|_| OutOfMemory)?;
        if !pages::add_filled(mmu, cell, frame, arrival) {
            self.share.give_back(1);
            return Err(FillError::Exists);
        }
        map();
        if arrival == Arrival::Mapped {
            pages::end_migration(mmu, cell, frame);
        }
        Ok(())
    }

    /// Has `change` change which areas map it, and where.
    #[inline(always)]
    pub(super) fn change_mappers(&self, change: impl FnOnce(&mut Mappers)) {
        Mappers::change(&self.mappers, change);
    }

    /// Counts one more area that a program may write through, which [`Self::end_writer`] takes away.
    ///
    /// # Errors
    /// `false`: there must be none.
    pub(super) fn begin_writer(&self) -> bool {
        let more = |writers: i64| (writers >= 0).then_some(writers + 1);
        // Acquire and release: what was checked before the seal comes before it.
        self.writers.fetch_update(Ordering::AcqRel, Ordering::Relaxed, more).is_ok()
    }

    pub(super) fn end_writer(&self) {
        self.writers.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        self.common.families.remove_object(self);
        if self.by_identity.is_linked() {
            self.common.files.write().remove(self);
        }
        // Drop has no argument for the CPU.
        let (cpu, tables) = (this_cpu(), PageTables::new(&self.common.mmu, self.root));
        // A frame may still be in a gather, which then frees it.
        // SAFETY: no owner is left, so nothing else reaches the tree, and no TLB has its translations.
        unsafe { self.common.dismantle(cpu, tables, || ()) };
        self.common.frames.free(cpu, self.root.address());
    }
}

mod adapters {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{AtomicLink, Object, UnsafeRef, intrusive_adapter};
    intrusive_adapter!(pub(super) ByIdentity = UnsafeRef<Object>: Object { by_identity => AtomicLink });
}
use adapters::ByIdentity;

impl<'a> KeyAdapter<'a> for ByIdentity {
    type Key = usize;
    fn get_key(&self, object: &'a Object) -> usize {
        object.identity()
    }
}

/// The objects whose pages can be had again, by their identities.
pub(super) struct Files(RBTree<ByIdentity>);

impl Files {
    pub(super) const NONE: Self = Self(RBTree::new(ByIdentity::NEW));

    /// Adds an object, which leaves before it is dropped.
    #[allow(unsafe_code, reason = "an intrusive node")]
    pub(super) fn insert(&mut self, object: &Object) {
        // SAFETY: it stays where it is, in its pool, and leaves the tree before it is dropped.
        self.0.insert(unsafe { UnsafeRef::from_raw(object) });
    }

    /// Removes an object, which is there.
    #[allow(unsafe_code, reason = "an intrusive node")]
    pub(super) fn remove(&mut self, object: &Object) {
        // SAFETY: there is one tree.
        unsafe { self.0.cursor_mut_from_ptr(object) }.remove();
    }

    /// The first object at `hand` or after it.
    pub(super) fn from(&self, hand: &Hand) -> Option<&Object> {
        self.0.lower_bound(Bound::Included(&hand.object)).get()
    }
}

/// How far the pages of files have been looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Hand {
    pub(super) object: usize,
    pub(super) page: u64,
}

impl Hand {
    pub(super) const START: Self = Self { object: 0, page: 0 };
}
