//! Frames by the hundred: taken together and not used yet, or not used any more and given back together.

#![allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]

use core::ops::Range;

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr};
use granule_arch::patched_branch;

use super::magazine::BATCH;
use super::{Frame, FrameAllocator, FreeError, LinearMap};
use crate::mm::OutOfMemory;
use crate::mm::page_block::{BLOCK_FRAMES, BlockNumber, GROUP, Mobility};
use crate::platform::features::branch;
use crate::smp::Cpu;

/// Frames with one owner, in runs of neighbours: the first frame of each run has its end and the start of the next one,
/// so a list of any length needs no memory of its own, and frames that are neighbours cost nothing to list.
///
/// Give what is left of it to [`FrameAllocator::free_list`]: a list that is dropped loses its frames.
#[derive(Debug)]
#[must_use = "frames of a dropped list are lost"]
pub struct FrameList {
    linear: LinearMap,
    /// The rest of the run that is being used up: its first address, and the one after its last.
    run: Range<u64>,
    /// The first frame of the next run, or [`END`].
    next: u64,
    /// The first frame of the last run, where `next` is not [`END`].
    last: u64,
}

/// The start of a run, in its first frame.
#[repr(C)]
struct Head {
    next: u64,
    end: u64,
}

/// No frame's address, because it is not page aligned.
const END: u64 = u64::MAX;

impl FrameList {
    const fn new(linear: LinearMap) -> Self {
        Self { linear, run: 0..0, next: END, last: END }
    }

    fn head(&self, run: u64) -> *mut Head {
        self.linear.address(PhysAddr(run)).as_ptr()
    }

    /// Adds a run of frame numbers at the end. Before the first [`Self::pop`] only.
    fn push(&mut self, frames: Range<usize>) {
        let [start, end] = [frames.start, frames.end].map(|frame| PhysAddr::from_frame_number(frame).0);
        // SAFETY: the frames are this list's alone, and the linear map shows them, writable.
        unsafe { self.head(start).write(Head { next: END, end }) };
        if self.next == END {
            self.next = start;
        } else {
            // SAFETY: as above: no frame has left the list yet.
            unsafe { (*self.head(self.last)).next = start };
        }
        self.last = start;
    }

    /// Calls `each` with every frame, before the first is taken out, up to the first error, which is returned.
    pub(in crate::mm) fn try_for_each<E>(&self, mut each: impl FnMut(PhysAddr) -> Result<(), E>) -> Result<(), E> {
        let mut run = self.next;
        while run != END {
            // SAFETY: as in `push`, which wrote it: no frame has left the list.
            let head = unsafe { self.head(run).read() };
            (run..head.end).step_by(PAGE_SIZE).map(PhysAddr).try_for_each(&mut each)?;
            run = head.next;
        }
        Ok(())
    }

    /// Takes a frame out. Its first sixteen bytes may no longer be what they were.
    #[inline]
    pub fn pop(&mut self) -> Option<PhysAddr> {
        self.begin_run()?;
        let frame = self.run.start;
        self.run.start += PAGE;
        Some(PhysAddr(frame))
    }

    /// Takes out frames that follow one another, at most `most`; the first of them, and how many. As [`Self::pop`].
    #[inline]
    pub fn pop_run(&mut self, most: usize) -> Option<(PhysAddr, usize)> {
        self.begin_run()?;
        let first = self.run.start;
        let count = most.min((self.run.end - first) as usize / PAGE_SIZE);
        self.run.start += (count * PAGE_SIZE) as u64;
        Some((PhysAddr(first), count))
    }

    /// Advances to the next run, where the last one is used up.
    #[inline(always)]
    fn begin_run(&mut self) -> Option<()> {
        if self.run.is_empty() {
            if self.next == END {
                return None;
            }
            // SAFETY: as in `push`, which wrote it; the run's first frame is still here.
            let head = unsafe { self.head(self.next).read() };
            self.run = self.next..head.end;
            self.next = head.next;
        }
        Some(())
    }
}

impl FrameAllocator {
    /// `count` frames, or none at all. `cpu` is the CPU that this runs on.
    ///
    /// Those of this CPU's magazine go first; where many more are needed, they come straight from the page blocks.
    ///
    /// # Errors
    /// [`OutOfMemory`]: there are not as many.
    pub fn alloc_list(&self, cpu: &Cpu, count: usize) -> Result<FrameList, OutOfMemory> {
        self.alloc_list_of(cpu, Mobility::Unmovable, count)
    }

    /// As [`Self::alloc_list`], of pages whose contents can be migrated, if they are [movable](Mobility::Movable).
    ///
    /// # Errors
    /// As [`Self::alloc_list`].
    pub(in crate::mm) fn alloc_list_of(
        &self,
        cpu: &Cpu,
        mobility: Mobility,
        count: usize,
    ) -> Result<FrameList, OutOfMemory> {
        self.check_free(cpu, count)?;
        self.extended(cpu, mobility, FrameList::new(self.linear()), count)
    }

    /// As [`Self::alloc_list`], as far as that goes in aligned [`GROUP`]s, which come first.
    ///
    /// # Errors
    /// As [`Self::alloc_list`].
    pub fn alloc_list_in_groups(&self, cpu: &Cpu, count: usize) -> Result<FrameList, OutOfMemory> {
        self.check_free(cpu, count)?;
        let mut list = FrameList::new(self.linear());
        let (mut left, mut run) = (count, 0..0);
        while left >= GROUP
            && let Some(group) = self.blocks.take_group(cpu, Mobility::Unmovable, self.kept_from(cpu))
        {
            if group == run.end {
                run.end += GROUP;
            } else {
                self.claim_into(&mut list, core::mem::replace(&mut run, group..group + GROUP));
            }
            left -= GROUP;
        }
        self.claim_into(&mut list, run);
        self.extended(cpu, Mobility::Unmovable, list, left)
    }

    /// Whether so many frames are free. A request that cannot succeed touches no memory: a list would write to free
    /// frames before it failed.
    ///
    /// # Errors
    /// [`OutOfMemory`]: there are not as many.
    #[inline]
    pub fn check_free(&self, cpu: &Cpu, count: usize) -> Result<(), OutOfMemory> {
        let kept = || self.kept_from(cpu);
        if count > BATCH
            && !self.blocks.has_blocks_for(count.saturating_add(kept()))
            && count > self.stats().free.saturating_sub(kept())
        {
            return Err(self.missing(cpu, count));
        }
        Ok(())
    }

    /// `list`, of which nothing was taken out, with `count` more frames.
    ///
    /// # Errors
    /// [`OutOfMemory`]: there are not as many; those of the list are free again.
    #[inline(always)]
    fn extended(
        &self,
        cpu: &Cpu,
        mobility: Mobility,
        mut list: FrameList,
        count: usize,
    ) -> Result<FrameList, OutOfMemory> {
        let kept = || self.kept_from(cpu);
        let mut left = count;
        let mut run = 0..0;
        self.on_magazine(cpu, mobility, |magazine| {
            while left > 0
                && let Some(frame) =
                    magazine.pop().or_else(|| if left <= BATCH { self.refill(cpu, mobility, magazine) } else { None })
            {
                if frame == run.end {
                    run.end += 1;
                } else if frame + 1 == run.start {
                    // Frames that were freed one by one in ascending order come out in descending order.
                    run.start = frame;
                } else {
                    self.claim_into(&mut list, core::mem::replace(&mut run, frame..frame + 1));
                }
                left -= 1;
            }
        });
        self.claim_into(&mut list, run);
        if left > 0 {
            left -= self.blocks.take_runs(cpu, mobility, left, kept(), |run| self.claim_into(&mut list, run));
        }
        while left > 0
            && let Some(frame) = self.pop_other(cpu, mobility).or_else(|| self.lend(mobility))
        {
            self.claim_into(&mut list, frame..frame + 1);
            left -= 1;
        }
        if left > 0 {
            self.free_list(cpu, list);
            return Err(self.missing(cpu, count));
        }
        Ok(list)
    }

    /// Marks a run that was just taken as held, and lists it.
    fn claim_into(&self, list: &mut FrameList, run: Range<usize>) {
        if !run.is_empty() {
            // SAFETY: frames that were free in a magazine or a cut block have valid records.
            unsafe { self.records.run(run.clone()) }.iter().for_each(Frame::claim);
            self.show(run.clone());
            list.push(run);
        }
    }

    /// Takes back what is left of a list.
    pub fn free_list(&self, cpu: &Cpu, mut list: FrameList) {
        let mut freeing = self.freeing(cpu);
        while let Some(frame) = list.pop() {
            freeing.add(frame);
        }
    }

    /// Frames are about to be freed one after the other: see [`Freeing`]. `cpu` is the CPU that this runs on.
    pub fn freeing<'a>(&'a self, cpu: &'a Cpu) -> Freeing<'a> {
        Freeing { frames: self, cpu, end: END, runs: heapless::Vec::new() }
    }

    /// Takes one hold of each of these frames away, runs of frame numbers that are not empty, at most [`FEW`] frames in
    /// all; those that are no longer held are free. `cpu` is the CPU that this runs on.
    ///
    /// One pass, frame by frame into the magazine. Where there are few that is shorter than [`Self::freeing`], which
    /// makes a list first, and takes the lock where the magazine has no room for all of it.
    ///
    /// # Panics
    /// As [`Self::free`].
    pub(in crate::mm) fn put_runs(&self, cpu: &Cpu, runs: impl DoubleEndedIterator<Item = Range<usize>>) {
        if self.hides() || patched_branch!(branch::TAG_STORAGE) {
            return self.put_listed(cpu, runs);
        }
        let mut cut = NO_BLOCK;
        self.on_magazines(cpu, |magazines| {
            let mut magazine = &magazines[Mobility::Movable as usize];
            // In descending order, so that they come out in ascending order, as neighbours.
            for run in runs.rev() {
                let cut_for = |mobility| magazine = &magazines[mobility as usize];
                let Some(records) = self.records_of_few(run.clone(), &mut cut, cut_for) else { continue };
                for (frame, record) in run.zip(records).rev() {
                    match record.put_or_release() {
                        Ok(true) => self.keep(cpu, magazine, frame),
                        Ok(false) => {}
                        Err(error) => self.refuse(PhysAddr::from_frame_number(frame), error),
                    }
                }
            }
        });
    }

    /// As [`Self::put_runs`], where free frames are hidden, or frames have tag storage: neither is dealt with while
    /// interrupts are masked.
    #[cold]
    fn put_listed(&self, cpu: &Cpu, runs: impl Iterator<Item = Range<usize>>) {
        let mut cut = NO_BLOCK;
        let mut freeing = self.freeing(cpu);
        for run in runs {
            // So short a run has an end in what is lent, if any.
            if self.is_lendable(run.start) || self.is_lendable(run.end - 1) {
                self.put_lent(cpu, run);
                continue;
            }
            let Some(records) = self.records_of_few(run.clone(), &mut cut, drop) else { continue };
            for (frame, record) in run.zip(records) {
                // The last hold goes with the frame.
                if record.put() {
                    freeing.add(PhysAddr::from_frame_number(frame));
                }
            }
        }
    }

    /// As [`Self::put_runs`], for a run some of which was lent.
    #[cold]
    fn put_lent(&self, cpu: &Cpu, run: Range<usize>) {
        for frame in run.map(PhysAddr::from_frame_number) {
            if self.cut_frame(frame).is_some_and(Frame::put) {
                self.free(cpu, frame);
            }
        }
    }

    /// The records of a run of frames that were handed out by themselves; a run with others is refused. `cut` is the
    /// block that was found to be cut last: runs that are no neighbours are mostly of one block, whose state, which does
    /// not change while the caller holds a frame of it, is looked up for the first of them; `cut_for` gets its mobility.
    #[inline(always)]
    fn records_of_few(
        &self,
        run: Range<usize>,
        cut: &mut BlockNumber,
        mut cut_for: impl FnMut(Mobility),
    ) -> Option<&[Frame]> {
        debug_assert!(!run.is_empty() && run.len() <= FEW);
        for frame in [run.start, run.end - 1] {
            if frame / BLOCK_FRAMES != *cut {
                let Some(mobility) = self.blocks.mobility(frame) else {
                    self.refuse(PhysAddr::from_frame_number(run.start), FreeError::Foreign);
                    return None;
                };
                *cut = frame / BLOCK_FRAMES;
                cut_for(mobility);
            }
        }
        // SAFETY: so short a run is in the blocks of its first and its last frame, and the records of a cut block are
        // valid and stay mapped.
        Some(unsafe { self.records.run(run) })
    }

    /// Marks the frames of `run` as free. Those that the caller does not own are refused, each by itself, and whole runs of
    /// page blocks go back at once; so does the rest, but for its last part, which is returned. Sets `is_movable` where
    /// some are of a block for movable frames.
    #[inline(always)]
    fn release_run(&self, cpu: &Cpu, run: Range<usize>, is_movable: &mut bool) -> Range<usize> {
        let mut released = run.start..run.start;
        while released.end < run.end {
            let first = released.end;
            // A block at a time: each has a state of its own.
            let end = run.end.min((first / BLOCK_FRAMES + 1) * BLOCK_FRAMES);
            let wrong = if let Some(mobility) = self.blocks.mobility(first) {
                *is_movable |= mobility == Mobility::Movable;
                // SAFETY: the records of a cut block are valid and stay mapped.
                let records = unsafe { self.records.run(first..end) };
                if patched_branch!(branch::TAG_STORAGE) {
                    self.release_all_tag_storage(first, records);
                }
                let failed = |(index, record): (usize, &Frame)| Some((first + index, record.release().err()?));
                records.iter().enumerate().find_map(failed)
            } else {
                Some((first, FreeError::Foreign))
            };
            released.end = wrong.map_or(end, |(frame, _)| frame);
            if let Some((frame, error)) = wrong {
                self.hide(core::slice::from_ref(&released));
                self.blocks.put_runs(cpu, [released]);
                let next = self.release_other(cpu, frame..run.end, error);
                released = next..next;
            }
        }
        released
    }

    /// Frees the start of `frames`, no frame handed out by itself: a run of page blocks, a frame of tag storage, or
    /// one that is not the caller's. Returns the first after it.
    #[cold]
    fn release_other(&self, cpu: &Cpu, frames: Range<usize>, error: FreeError) -> usize {
        let address = PhysAddr::from_frame_number(frames.start);
        if let Some(order) = self.order_of_blocks(address)
            && let blocks = BLOCK_FRAMES << order
            && blocks <= frames.len()
        {
            self.free_blocks(cpu, address, order);
            return frames.start + blocks;
        }
        if !self.take_back(frames.start) {
            self.refuse(address, error);
        }
        frames.start + 1
    }
}

/// The most frames for [`FrameAllocator::put_runs`]: interrupts are masked for that time.
pub(in crate::mm) const FEW: usize = BATCH;
const _: () = assert!(FEW <= BLOCK_FRAMES);

/// No block's number.
const NO_BLOCK: BlockNumber = usize::MAX;

/// Runs that [`Freeing`] gives back at once.
const RUNS: usize = 16;

/// Frees frames many at a time: neighbours together, interrupts masked or the lock taken once. Each is free at the
/// latest when this is dropped.
pub struct Freeing<'a> {
    frames: &'a FrameAllocator,
    cpu: &'a Cpu,
    /// The address after the last frame that was added, or [`END`].
    end: u64,
    /// Frame numbers; the last run ends at `end`, whatever it holds.
    runs: heapless::Vec<Range<usize>, RUNS>,
}

impl Freeing<'_> {
    /// As [`FrameAllocator::free`], now or later.
    #[inline(always)]
    pub fn add(&mut self, frame: PhysAddr) {
        self.add_run(frame, PAGE);
    }

    /// As [`Self::add`], for frames that follow one another, `bytes` in all. Page blocks that were taken as one run are
    /// among them where all of that run is added in a row, in whatever pieces.
    #[inline(always)]
    pub fn add_run(&mut self, first: PhysAddr, bytes: u64) {
        if first.0 == self.end {
            self.end += bytes;
        } else {
            self.begin(first, bytes);
        }
    }

    #[inline(never)]
    fn begin(&mut self, frame: PhysAddr, bytes: u64) {
        if !frame.is_aligned(PAGE) {
            return self.frames.refuse(frame, FreeError::Foreign);
        }
        self.close();
        let number = frame.frame_number();
        if let Err(run) = self.runs.push(number..number + 1) {
            self.flush();
            // There is room now.
            let _ = self.runs.push(run);
        }
        self.end = frame.0 + bytes;
    }

    /// Writes down where the last run ends.
    fn close(&mut self) {
        if let Some(last) = self.runs.last_mut() {
            last.end = PhysAddr(self.end).frame_number();
        }
    }

    /// Frees what was added so far: into the magazine where all of it fits, else straight to the page blocks.
    pub fn flush(&mut self) {
        self.close();
        let Self { frames, cpu, .. } = *self;
        // All in one magazine: that for movable frames may have any.
        let (mut total, mut is_movable) = (0, false);
        for run in &mut self.runs {
            *run = frames.release_run(cpu, run.clone(), &mut is_movable);
            total += run.len();
        }
        frames.hide(&self.runs);
        let mobility = if is_movable { Mobility::Movable } else { Mobility::Unmovable };
        let kept = frames.on_magazine(cpu, mobility, |magazine| {
            // In descending order, so that they come out in ascending order, as neighbours.
            magazine.has_room(total) && self.runs.iter().rev().all(|run| magazine.push_run(run.clone()))
        });
        if !kept {
            frames.blocks.put_runs(cpu, self.runs.iter().cloned());
        }
        self.runs.clear();
        self.end = END;
    }
}

impl Drop for Freeing<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}
