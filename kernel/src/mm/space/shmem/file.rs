//! The calls that use an object as a file: size, contents, holes and seals.
//!
//! All of it is Linux's for memory files (`mm/shmem.c`, `mm/memfd.c`). Bytes go through a buffer of the kernel's: no
//! lock of an object is held while the memory of a program is accessed, as a fault there may wait for the end of a
//! process that waits for the lock.

use core::ops::Range;
use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_pgtable::{Mmu, Visited};

use super::super::code::CODE_VISIBLE;
use super::super::error::ObjectError;
use super::super::gather::Gather;
use super::super::migrate::Unmovable;
use super::super::reclaim::Used;
use super::super::used::{bits_of, for_each_used};
use super::super::user::with_running_tlb;
use super::super::zap::ZapFlags;
use super::{LARGEST_OBJECT, NoPage, Object, Seals, pages as entries};
use crate::mm::OutOfMemory;
use crate::mm::notifier::{Event, Range as Change};
use crate::mm::page_block::BLOCK_FRAMES;
use crate::mm::tlb::user::TlbBatch;
use crate::sched::{enlarge_shortage, relax};
use crate::smp::Cpu;

/// Where bytes are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WriteAt {
    /// From this byte on.
    Byte(u64),
    /// After the last byte.
    End,
}

/// The effect of an [allocation](Object::allocate) past the end on the size of the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeChoice {
    /// It stays as it is.
    Keep,
    /// It grows to the end of the allocation.
    Grow,
}

/// The target of a [seek](Object::seek).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sought {
    /// A page that is used.
    Data,
    /// One that is not.
    Hole,
}

/// Pages that are copied without a scheduling point.
const COPIED: usize = 64;

/// Frames that nothing else has, linked by the owners in their records.
struct Chain<'o> {
    object: &'o Object,
    ends: Option<(PhysAddr, PhysAddr)>,
}

impl<'o> Chain<'o> {
    const fn new(object: &'o Object) -> Self {
        Self { object, ends: None }
    }

    /// Adds a frame at the end.
    fn push(&mut self, frame: PhysAddr) {
        let first = match self.ends {
            None => frame,
            Some((first, last)) => {
                // Relaxed: the chain has the frame, and its owner is this thread's.
                self.object.common.record(last).owner.store(frame.0, Ordering::Relaxed);
                first
            }
        };
        self.ends = Some((first, frame));
    }

    /// Takes the first frame.
    fn pop(&mut self) -> Option<PhysAddr> {
        let (first, last) = self.ends?;
        // Relaxed: as above.
        let next = PhysAddr(self.object.common.record(first).owner.swap(0, Ordering::Relaxed));
        self.ends = (first != last).then_some((next, last));
        Some(first)
    }

    /// Drops a reference to each frame, which is freed if it was the last; returns how many there were.
    fn free(mut self, cpu: &Cpu) -> usize {
        /// Frames between two scheduling points.
        const AT_ONCE: usize = 256;
        let common = self.object.common;
        let mut freeing = common.frames.freeing(cpu);
        let mut count = 0_usize;
        while let Some(frame) = self.pop() {
            if common.record(frame).put() {
                freeing.add(frame);
            }
            count += 1;
            if count.is_multiple_of(AT_ONCE) {
                freeing.flush();
                relax();
            }
        }
        count
    }
}

impl Object {
    /// The seals of the file.
    pub fn seals(&self) -> Seals {
        self.with_seals(|seals| seals)
    }

    /// Has `change` change what the seals, which stay as they are until it has ended, may forbid.
    pub fn with_seals<T>(&self, change: impl FnOnce(Seals) -> T) -> T {
        change(*self.state.read())
    }

    /// Adds seals, which stay for ever. `is_executable` returns whether the file's mode allows execution, which
    /// [`Self::with_seals`] changes.
    ///
    /// # Errors
    /// [`ObjectError::Sealed`], [`ObjectError::Busy`]: an area has it that a program may write through. Nothing was
    /// changed.
    pub fn add_seals(&self, mut seals: u32, is_executable: impl FnOnce() -> bool) -> Result<(), ObjectError> {
        let mut state = self.state.write();
        if state.has(Seals::SEAL) {
            return Err(ObjectError::Sealed);
        }
        if seals & Seals::EXEC != 0 && is_executable() {
            seals |= Seals::SHRINK | Seals::GROW | Seals::WRITES;
        }
        if seals & Seals::WRITE != 0
            && !state.has(Seals::WRITE)
            // Acquire: what was written through an area that is gone comes before.
            && self.writers.compare_exchange(0, -1, Ordering::AcqRel, Ordering::Relaxed).is_err()
        {
            return Err(ObjectError::Busy);
        }
        state.0 |= seals;
        Ok(())
    }

    /// Reads up to `to.len()` bytes from `at` on; returns how many there are before the end.
    pub fn read(&self, at: u64, to: &mut [u8]) -> usize {
        let _state = self.state.read();
        let count = self.size().saturating_sub(at).min(to.len() as u64) as usize;
        let Some(to) = to.get_mut(..count) else { return 0 };
        let mut at = at;
        let mut rest = to;
        while !rest.is_empty() {
            let offset = (at % PAGE) as usize;
            let count = rest.len().min(PAGE as usize - offset);
            let (piece, behind) = rest.split_at_mut_checked(count).unwrap_or_default();
            match self.frame_of(at / PAGE) {
                Some(frame) => {
                    let from = (self.common.frames.linear().address(frame) + offset as u64).as_ptr::<u8>();
                    // SAFETY: the frame stays while the state is locked, and the bytes are in it. A program may change
                    // them concurrently, as it may change all its memory.
                    unsafe { piece.as_mut_ptr().copy_from_nonoverlapping(from, piece.len()) };
                }
                None => piece.fill(0),
            }
            (at, rest) = (at + count as u64, behind);
        }
        count
    }

    /// The frame of a page, if it has one. The state is locked, so that it stays.
    fn frame_of(&self, page: u64) -> Option<PhysAddr> {
        let (_, cell) = self.tables().cell(VirtAddr(page * PAGE))?;
        Some(entries::Found::look(&self.common.mmu, cell)?.frame())
    }

    /// Writes `bytes`, the first of `all` that are to be written, and no byte of them at `limit` or after it; returns
    /// where, and how many were written before there was no memory. A concurrent write comes before all of them or
    /// after.
    ///
    /// # Errors
    /// [`ObjectError`]; nothing was written.
    pub fn write(
        &self,
        cpu: &Cpu,
        at: WriteAt,
        bytes: &[u8],
        all: u64,
        limit: u64,
    ) -> Result<(u64, usize), ObjectError> {
        /// Bytes that a Linux with large folios checks at once.
        const CHUNK: u64 = 2 << 20;
        let state = self.state.write();
        let start = match at {
            WriteAt::Byte(at) => at,
            WriteAt::End => self.size(),
        };
        let room = limit.min(LARGEST_OBJECT).checked_sub(start).filter(|&room| room != 0);
        let room = room.ok_or(ObjectError::TooLarge)?;
        let checked = all.min(room).min(CHUNK - start % CHUNK);
        if state.refuse_writes() || state.has(Seals::GROW) && start + checked > self.size() {
            return Err(ObjectError::Sealed);
        }
        let room = room.min(bytes.len() as u64) as usize;
        let mut done = 0;
        while let Some(rest) = bytes.get(done..room).filter(|rest| !rest.is_empty()) {
            match self.write_in_page(cpu, start + done as u64, rest) {
                Ok(count) => done += count,
                Err(error) if done == 0 => return Err(error.into()),
                Err(_) => break,
            }
        }
        Ok((start, done))
    }

    /// Writes the first of `bytes`, up to the end of a page; returns how many.
    fn write_in_page(&self, cpu: &Cpu, at: u64, bytes: &[u8]) -> Result<usize, NoPage> {
        let count = bytes.len().min((PAGE - at % PAGE) as usize);
        let end = at + count as u64;
        let page = at / PAGE;
        let fill = |frame: PhysAddr| {
            let to = (self.common.frames.linear().address(frame) + at % PAGE).as_ptr::<u8>();
            // SAFETY: frames are taken away only with the state locked for writing, as it is here, or are the object's
            // alone; the bytes are in the frame. A program may access them concurrently.
            unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), count) };
        };
        let frame = self.find_or_add(cpu, page, fill)?.frame();
        self.note_write(frame);
        if end > self.size() {
            self.size.store(end, Ordering::Relaxed);
        }
        Ok(count)
    }

    /// Makes it `size` bytes long. The bytes after that are gone, also from private mappings. Unless `size` is 0,
    /// [`Self::keep_all`] comes first.
    ///
    /// # Errors
    /// [`ObjectError::Sealed`], [`ObjectError::TooLarge`]; nothing was changed.
    pub fn truncate(&self, cpu: &Cpu, size: u64) -> Result<(), ObjectError> {
        if size > LARGEST_OBJECT {
            return Err(ObjectError::TooLarge);
        }
        let state = self.state.write();
        let before = self.size();
        if size < before && state.has(Seals::SHRINK) || size > before && state.has(Seals::GROW) {
            return Err(ObjectError::Sealed);
        }
        self.size.store(size, Ordering::Relaxed);
        if size <= before {
            // The size before a look at the pages: a call that adds one looks at the size after that.
            self.wait_for_fills();
            self.take_away(cpu, size.div_ceil(PAGE)..LARGEST_OBJECT / PAGE, ZapFlags::DISCARD);
            // Only after the last page of the file was taken do pages count.
            if size == 0 {
                self.is_as_file.store(false, Ordering::SeqCst);
            }
            self.clear(size..size.next_multiple_of(PAGE));
        }
        Ok(())
    }

    /// Takes the bytes from `start` to `end` away: they read as zeros. Private copies of pages stay.
    ///
    /// # Errors
    /// [`ObjectError::Sealed`].
    pub fn punch_hole(&self, cpu: &Cpu, start: u64, end: u64) -> Result<(), ObjectError> {
        let state = self.state.write();
        if state.refuse_writes() {
            return Err(ObjectError::Sealed);
        }
        let whole = start.div_ceil(PAGE)..end / PAGE;
        if whole.start > whole.end {
            self.clear(start..end);
            return Ok(());
        }
        self.clear(start..whole.start * PAGE);
        self.clear(whole.end * PAGE..end);
        self.take_away(cpu, whole, ZapFlags::TAKE);
        Ok(())
    }

    /// Clears bytes of one page, if it has a frame. The state is locked for writing.
    fn clear(&self, bytes: Range<u64>) {
        // A position after all pages has none.
        if bytes.is_empty() || bytes.start >= LARGEST_OBJECT {
            return;
        }
        let Some(frame) = self.frame_of(bytes.start / PAGE) else { return };
        let linear = self.common.frames.linear().address(frame);
        let count = (bytes.end - bytes.start) as usize;
        // SAFETY: as in `write_in_page`.
        unsafe { (linear + bytes.start % PAGE).as_ptr::<u8>().write_bytes(0, count) };
        self.note_write(frame);
    }

    /// The contents of a frame have changed: an entry that permits their execution makes them visible to fetches again.
    fn note_write(&self, frame: PhysAddr) {
        let flags = &self.common.record(frame).flags;
        if flags.load(Ordering::Relaxed) & CODE_VISIBLE != 0 {
            flags.fetch_and(!CODE_VISIBLE, Ordering::Relaxed);
        }
    }

    /// Takes the frames of `pages` away, first out of the object and then out of all entries, and frees them. Entries may
    /// have copies and poison where the object has no page. The state is locked for writing.
    fn take_away(&self, cpu: &Cpu, pages: Range<u64>, flags: ZapFlags) {
        let taken = self.take(pages.clone());
        self.unmap_mapping_range(cpu, pages, Event::Clear, flags);
        let freed = taken.free(cpu);
        if !self.can_be_had_again() {
            self.share.give_back(freed);
        }
    }

    /// Moves what `page` has in `from` to `to`, or with [`BLOCK_FRAMES`] for `count` what that many pages have in a
    /// page block to another. `to` was just allocated, and is the caller's again where this fails. Sleeps: no lock is
    /// held. The entries are emptied, in programs and devices: what uses a page next maps its new frame.
    ///
    /// # Errors
    /// [`Unmovable`]; what the programs see has not changed.
    pub(in super::super) fn migrate(
        &self,
        cpu: &Cpu,
        page: u64,
        count: usize,
        from: PhysAddr,
        to: PhysAddr,
    ) -> Result<(), Unmovable> {
        let (common, mmu) = (self.common, &self.common.mmu);
        let _state = self.state.write();
        let pages = page..page + count as u64;
        let range = self.filled(pages.clone()).filter(|range| range.size() == count as u64 * PAGE);
        let found = range.and_then(|range| self.tables().cells(range.start(), count)).ok_or(Unmovable::NotFound)?;
        let frame = |first: PhysAddr, index: usize| first + index as u64 * PAGE;
        // A page that moves counts as used.
        found.cells.iter().for_each(|cell| entries::use_spare(mmu, cell));
        // Where it stays, what was marked is as it was.
        let stays = |marked: usize| {
            let marked = found.cells.iter().enumerate().take(marked);
            marked.for_each(|(index, cell)| entries::end_migration(mmu, cell, frame(from, index)));
        };
        let is_other = |(index, cell)| !entries::start_migration(mmu, cell, frame(from, index));
        if let Some(marked) = found.cells.iter().enumerate().position(is_other) {
            stays(marked);
            return Err(Unmovable::NotFound);
        }
        entries::order();
        self.unmap_mapping_range(cpu, pages, Event::Migrate, ZapFlags::TAKE);
        // No entry has the frames any more, and none will: what holds one besides the object is something else.
        if (0..count).any(|index| common.record(frame(from, index)).references() != 1) {
            stays(count);
            return Err(Unmovable::Held);
        }
        // Nothing gives them tags any more.
        let has_tags = (0..count).any(|index| common.record(frame(from, index)).has_tags());
        let reserved = if has_tags { common.folio(to, count).reserve_now() } else { Ok(()) };
        if let Err(error) = reserved {
            stays(count);
            return Err(error.into());
        }
        if count == BLOCK_FRAMES {
            common.frames.split_block(cpu, to);
        }
        for (index, cell) in found.cells.iter().enumerate() {
            let (from, to) = (frame(from, index), frame(to, index));
            let copied = common.page(from).copy_to(to);
            debug_assert_eq!(copied, Ok(()), "storage is reserved");
            self.note_frame(to, page + index as u64);
            // The contents before the entry.
            mmu.dmb_ishst();
            entries::end_migration(mmu, cell, to);
            common.drop_frame(cpu, from);
            if index % COPIED == COPIED - 1 {
                relax();
            }
        }
        Ok(())
    }

    /// Takes the frames of `pages` out of the object, before a look at the tables that map them. The state is locked
    /// for writing.
    #[inline(never)]
    fn take(&self, pages: Range<u64>) -> Chain<'_> {
        let mut taken = Chain::new(self);
        let mmu = &self.common.mmu;
        if let Some(range) = self.filled(pages) {
            self.tables().walk_cells(range).for_each(|found| {
                // A bit that is set later is that of a page that is added later.
                let used = self.common.record(found.table).owner.load(Ordering::Relaxed) & bits_of(&found);
                for_each_used(&found, used, |places| {
                    let cells = found.cells.get(places).into_iter().flatten();
                    cells.filter_map(|cell| entries::take(mmu, cell)).for_each(|frame| taken.push(frame));
                });
                relax();
            });
        }
        entries::order();
        taken
    }

    /// Empties the entries of `pages` in every space. The frames that the object had there are not freed during this.
    ///
    /// Each invalidation, of the CPUs and of devices, is of the space that the entries are in, and is complete before
    /// the lock of their table is dropped.
    fn unmap_mapping_range(&self, cpu: &Cpu, pages: Range<u64>, event: Event, flags: ZapFlags) {
        let mappers = self.mappers.read();
        for mapped in mappers.of(pages) {
            let (space, range) = (mapped.space(), mapped.range());
            let _change = space.notifiers.start(Change::new(event, range.start(), range.end()));
            let mut gather = Gather::by_reverse_map(space, cpu, &mappers);
            if self.is_registers() {
                // Also where an unmapping under way has emptied the entry, and not yet invalidated: a frame would be
                // its own until then, and registers are not.
                gather.stale(range.start(), range.end());
            }
            space.zap(&mut gather, range, flags);
            relax();
        }
    }

    /// The first page with a frame at `page` or after it.
    pub(in super::super) fn next_filled(&self, page: u64) -> Option<u64> {
        let (mmu, mut next) = (&self.common.mmu, None);
        let mut walk = self.tables().walk_cells(self.filled(page..LARGEST_OBJECT / PAGE)?);
        while next.is_none()
            && let Some(found) = walk.next_cells(|_| Visited::Done)
        {
            let index = found.cells.iter().position(|cell| mmu.load(cell) != Descriptor::EMPTY);
            next = index.map(|index| found.address(index).0 / PAGE);
            relax();
        }
        next
    }

    /// Frees the frames of `pages`, which hold what the file holds; returns how many. None is freed where one of the
    /// pages was used since it became old, or is locked.
    pub(in super::super) fn reclaim(&self, cpu: &Cpu, pages: Range<u64>, used: Used) -> usize {
        let _state = self.state.write();
        if !self.can_be_had_again() {
            return 0;
        }
        let mappers = self.mappers.read();
        let mut batch = TlbBatch::new(&self.common.mmu, with_running_tlb);
        let mut is_used = false;
        for mapped in mappers.of(pages.clone()) {
            is_used |= mapped.is_locked || mapped.space().was_used(&mut batch, mapped.range(), used);
            if is_used && used == Used::Keep {
                break;
            }
        }
        if is_used {
            return 0;
        }
        let taken = self.take(pages.clone());
        for mapped in mappers.of(pages) {
            let (space, range) = (mapped.space(), mapped.range());
            let _change = space.notifiers.start(Change::new(Event::Clear, range.start(), range.end()));
            space.unmap_in_batch(&mut batch, range);
            relax();
        }
        batch.flush();
        taken.free(cpu)
    }

    /// Gives the pages that have one of the bytes from `start` to `end` frames; with [`SizeChoice::Grow`] it makes the
    /// object so long.
    ///
    /// # Errors
    /// [`ObjectError::Sealed`], [`ObjectError::OutOfMemory`], [`ObjectError::Interrupted`] once `is_killed` returns
    /// true. Nothing was changed.
    pub fn allocate(
        &self,
        cpu: &Cpu,
        start: u64,
        end: u64,
        size: SizeChoice,
        is_killed: &dyn Fn() -> bool,
    ) -> Result<(), ObjectError> {
        if end > LARGEST_OBJECT {
            return Err(ObjectError::TooLarge);
        }
        let state = self.state.write();
        if state.has(Seals::GROW) && end > self.size() {
            return Err(ObjectError::Sealed);
        }
        let wanted = start / PAGE..end.div_ceil(PAGE);
        let there = self.pages_in(wanted.start, wanted.end - wanted.start) as u64;
        let missing = (wanted.end - wanted.start).saturating_sub(there);
        // A request that exceeds all memory takes no frame.
        if !self.share.is_limited() && missing > self.common.frames.total() as u64 {
            return Err(ObjectError::OutOfMemory);
        }
        self.count(missing as usize)?;
        let mut spare = Chain::new(self);
        let result = self.fill_spare(cpu, &mut spare, wanted.clone(), missing, is_killed);
        if result == Err(ObjectError::OutOfMemory) {
            // With one more frame than there was it would fail again.
            enlarge_shortage(cpu, missing as usize);
        }
        if result.is_ok() {
            for page in wanted {
                let Some((table, cell)) = self.tables().cell(VirtAddr(page * PAGE)) else { break };
                if self.common.mmu.load(cell) == Descriptor::EMPTY {
                    let Some(new) = spare.pop() else { break };
                    self.note_frame(new, page);
                    self.note_place(table, page);
                    if !entries::add_spare(&self.common.mmu, cell, new) {
                        spare.push(new);
                    }
                } else {
                    // As on Linux, the second time it is in use.
                    entries::use_spare(&self.common.mmu, cell);
                }
                relax();
            }
            if size == SizeChoice::Grow && end > self.size() {
                self.size.store(end, Ordering::Relaxed);
            }
        }
        let unused = spare.free(cpu);
        self.share.give_back(if result.is_ok() { unused } else { missing as usize });
        result
    }

    /// Takes all frames that are needed for `missing` of the pages `wanted`, and links the tables.
    fn fill_spare(
        &self,
        cpu: &Cpu,
        spare: &mut Chain<'_>,
        wanted: Range<u64>,
        missing: u64,
        is_killed: &dyn Fn() -> bool,
    ) -> Result<(), ObjectError> {
        /// Pages of a table.
        const TABLE: u64 = 512;
        for first in (wanted.start / TABLE * TABLE..wanted.end).step_by(TABLE as usize) {
            self.ensure_cell(cpu, first, || Ok::<_, OutOfMemory>(()))?;
            relax();
        }
        for _ in 0..missing {
            if is_killed() {
                return Err(ObjectError::Interrupted);
            }
            spare.push(self.common.frames.alloc_movable_zeroed(cpu)?);
            relax();
        }
        Ok(())
    }

    /// The first byte from `at` on that is in data or in a hole, as `wanted`, as far as the object goes. The end is a
    /// hole. Sleeps.
    pub fn seek(&self, at: u64, wanted: Sought) -> Option<u64> {
        // As on Linux: a truncation takes the pages away that it cuts off, before this or after it.
        let _state = self.state.read();
        let (size, first) = (self.size(), at / PAGE);
        if at >= size {
            return None;
        }
        let (mut next, mut found) = (first, None);
        if let Some(range) = self.filled(first..size.div_ceil(PAGE)) {
            let mut walk = self.tables().walk_cells(range);
            while found.is_none()
                && let Some(cells) = walk.next_cells(|_| Visited::Done)
            {
                relax();
                for (index, cell) in cells.cells.iter().enumerate() {
                    if found.is_some() {
                        break;
                    }
                    let page = cells.address(index).0 / PAGE;
                    let is_used = entries::is_used(self.common.mmu.load(cell));
                    found = match wanted {
                        // Between two tables there are holes.
                        Sought::Hole if page != next => Some(next),
                        Sought::Hole => (!is_used).then_some(page),
                        Sought::Data => is_used.then_some(page),
                    };
                    next = page + 1;
                }
            }
        }
        let found = found.or_else(|| (wanted == Sought::Hole).then_some(next));
        found.map(|page| (page * PAGE).max(at).min(size))
    }

    /// Pages that have frames.
    pub fn pages(&self) -> usize {
        self.pages_in(0, LARGEST_OBJECT / PAGE)
    }
}
