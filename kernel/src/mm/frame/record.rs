//! The state of each frame of memory: one [`Frame`] record, in an array indexed by frame number.
//!
//! The array is virtually contiguous, so a record is found by arithmetic; only the parts for page blocks that hold
//! memory are mapped. A record of zeros means that the frame is free. Records are zeroed a block at a time when the
//! block is first used; before that they hold whatever the memory held, and are not read.
//!
//! `kernel/loom` compiles this file on loom's atomics.

#![allow(unsafe_code, reason = "frame records and free lists in frames that the allocator owns")]

use core::mem::size_of;
use core::ops::Range;
use core::{ptr, slice};

use granule_arch::addr::VirtAddr;

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::spin;

/// The state of one 4 KiB frame. All zero: free.
///
/// In one cache line: a fault that stores an entry writes the lock and the owner of its table.
#[derive(Debug, Default)]
#[repr(C, align(32))]
pub struct Frame {
    /// Holders of the frame; 0 means free. Only the methods write it.
    references: AtomicU32,
    /// Software flags of the frame's owner; 0 while it is free.
    pub flags: AtomicU32,
    /// The frame's owner, in the owner's own terms: of a program's memory, the family or the object and the page
    /// (`mm::space::family`); of a last-level table of a user space, which parts were used (`mm::space::used`); of one
    /// above, the tables deposited for its blocks, and of such a table the next (`mm::space::block`). 0 while it is
    /// free.
    pub owner: AtomicU64,
    /// The lock of the page table that the frame holds, or of the block of user memory that begins here; 0 means not
    /// held.
    pub table_lock: AtomicU32,
}

/// In the flags: the frame has allocation tags, which belong to its contents.
const TAGGED: u32 = 4;
/// In the flags: a CPU writes its first tags.
const TAGGING: u32 = 8;
/// In the flags: storage is reserved for its tags.
const TAG_STORAGE: u32 = 16;

/// Why a frame cannot be freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FreeError {
    /// The allocator never handed out such a frame or run.
    #[error("not a frame of this allocator")]
    Foreign,
    /// The frame is free already.
    #[error("already free")]
    DoubleFree,
    /// There are other holders.
    #[error("still in use by others")]
    Shared,
}

impl Frame {
    /// How many hold the frame; 0 means that it is free.
    pub fn references(&self) -> u32 {
        self.references.load(Ordering::Acquire)
    }

    /// Marks a free frame as held once. Relaxed: the lock of the page blocks, or this CPU's own program order, hands
    /// the frame from its last owner to the caller.
    pub(super) fn claim(&self) {
        debug_assert_eq!(self.references.load(Ordering::Relaxed), 0, "a frame handed out twice");
        self.references.store(1, Ordering::Relaxed);
    }

    /// Marks frames, which are all the caller's, as held so often.
    #[inline(never)]
    pub(super) fn set_all(frames: &[Self], references: u32) {
        /// Stores for each turn of the loop.
        const TURN: usize = 32;
        for turn in frames.as_chunks::<TURN>().0 {
            turn.iter().for_each(|frame| frame.references.store(references, Ordering::Relaxed));
        }
    }

    /// Adds a holder. The caller is one.
    #[inline(always)]
    pub fn share(&self) {
        // Relaxed: the caller holds the frame already, so it cannot become free concurrently.
        let before = self.references.fetch_add(1, Ordering::Relaxed);
        debug_assert_ne!(before, 0, "a free frame shared");
    }

    /// Takes the caller's hold away unless it is the last; whether it is. Then the caller frees the frame.
    #[inline(always)]
    pub fn put(&self) -> bool {
        // Acquire: what the holders that have left did to the frame comes before its end, on any CPU.
        let mut references = self.references.load(Ordering::Acquire);
        while references != 1 {
            debug_assert_ne!(references, 0, "a free frame is released");
            // Release: this holder does not look at the frame again; the last one acquires.
            let left = references - 1;
            match self.references.compare_exchange_weak(references, left, Ordering::Release, Ordering::Acquire) {
                Ok(_) => return false,
                Err(now) => references = now,
            }
        }
        true
    }

    /// Whether the frame has tags. The writes of the first tags come before the caller's next accesses.
    #[inline(always)]
    pub fn has_tags(&self) -> bool {
        self.flags.load(Ordering::Acquire) & TAGGED != 0
    }

    /// Has `write` give the frame its first tags, unless it has some. The caller holds the frame; several may, and each
    /// returns when the tags are there: the program of the first may set tags of its own at once, which a second
    /// `write` would undo. `write` does not sleep: the others spin.
    #[inline(always)]
    pub fn tag_once(&self, write: impl FnOnce()) {
        if !self.has_tags() {
            self.tag(write);
        }
    }

    #[cold]
    #[inline(never)]
    fn tag(&self, write: impl FnOnce()) {
        if self.begin_tags() {
            write();
            self.end_tags();
            return;
        }
        self.wait_for_tags();
    }

    /// Whether the caller is to write the first tags, and [end](Self::end_tags) that.
    pub fn begin_tags(&self) -> bool {
        // Relaxed: what is decided is which CPU writes.
        self.flags.fetch_or(TAGGING, Ordering::Relaxed) & TAGGING == 0
    }

    /// The first tags are written.
    pub fn end_tags(&self) {
        // Release: the tags before the flag.
        self.flags.fetch_or(TAGGED, Ordering::Release);
    }

    /// Whether a CPU has begun to write the first tags, and not ended.
    pub fn is_being_tagged(&self) -> bool {
        self.flags.load(Ordering::Acquire) & (TAGGING | TAGGED) == TAGGING
    }

    /// Waits until another CPU has written the first tags, which it has begun.
    pub fn wait_for_tags(&self) {
        while !self.has_tags() {
            spin();
        }
    }

    /// Notes that the caller, which alone has the frame, has written its tags.
    pub fn note_tags(&self) {
        // Relaxed: published with the frame.
        self.flags.store(self.flags.load(Ordering::Relaxed) | TAGGING | TAGGED, Ordering::Relaxed);
    }

    /// Whether storage is reserved for its tags ([`crate::mm::tag_storage`]).
    #[inline(always)]
    pub fn has_tag_storage(&self) -> bool {
        // Acquire: what reserved it has maintained the caches before.
        self.flags.load(Ordering::Acquire) & TAG_STORAGE != 0
    }

    /// As [`Self::has_tag_storage`], without an order, for a caller that writes no tags: it may be false still where
    /// storage was just reserved.
    #[inline(always)]
    pub fn may_have_tag_storage(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & TAG_STORAGE != 0
    }

    /// Notes that storage is reserved for its tags; whether that was not noted already. The caller holds the frame.
    pub fn note_tag_storage(&self) -> bool {
        self.flags.fetch_or(TAG_STORAGE, Ordering::AcqRel) & TAG_STORAGE == 0
    }

    /// Notes that it is reserved no more; whether it was. The caller alone holds the frame, which nothing reaches.
    #[inline(always)]
    pub(super) fn take_tag_storage(&self) -> bool {
        let is_reserved = self.has_tag_storage();
        if is_reserved {
            // Relaxed: published with the frame.
            self.flags.store(self.flags.load(Ordering::Relaxed) & !TAG_STORAGE, Ordering::Relaxed);
        }
        is_reserved
    }

    /// Marks a frame that is held exactly once as free, and clears the record.
    pub(super) fn release(&self) -> Result<(), FreeError> {
        // Acquire and release: what earlier holders did to the frame comes before what its next owner does.
        match self.references.compare_exchange(1, 0, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => {
                self.clear();
                Ok(())
            }
            Err(0) => Err(FreeError::DoubleFree),
            Err(_) => Err(FreeError::Shared),
        }
    }

    /// Takes the caller's hold away; where it is the last, marks the frame as free and clears the record. Whether it
    /// was the last.
    #[inline(always)]
    pub(super) fn put_or_release(&self) -> Result<bool, FreeError> {
        // Acquire and release: as in `release`, and in `put`.
        let taken = |references: u32| references.checked_sub(1);
        match self.references.fetch_update(Ordering::AcqRel, Ordering::Relaxed, taken) {
            Ok(1) => {
                self.clear();
                Ok(true)
            }
            Ok(_) => Ok(false),
            Err(_) => Err(FreeError::DoubleFree),
        }
    }

    /// The record of a frame that was just marked as free.
    #[inline(always)]
    fn clear(&self) {
        debug_assert_eq!(self.table_lock.load(Ordering::Relaxed), 0, "freed with its table locked");
        self.flags.store(0, Ordering::Relaxed);
        self.owner.store(0, Ordering::Relaxed);
    }
}

/// Where the array of records lies.
#[derive(Clone, Copy, Debug)]
pub struct FrameRecords {
    /// Where the record of frame 0 would be, mapped or not.
    base: VirtAddr,
}

impl FrameRecords {
    /// The array whose record of frame 0 would be at `base`; on the target
    /// [`layout::FRAMES_BASE`](crate::mm::layout::FRAMES_BASE).
    pub const fn new(base: VirtAddr) -> Self {
        Self { base }
    }

    /// The address of the record of `frame`.
    pub const fn address(self, frame: usize) -> VirtAddr {
        // On the host the base is made up and may lie "before" address 0.
        VirtAddr(self.base.0.wrapping_add((frame * size_of::<Frame>()) as u64))
    }

    /// Bytes that the records of `frames` frames take.
    pub const fn bytes(frames: usize) -> usize {
        frames * size_of::<Frame>()
    }

    /// The record of `frame`.
    ///
    /// # Safety
    /// It has been zeroed, and stays mapped.
    #[inline]
    pub(in crate::mm) unsafe fn get(self, frame: usize) -> &'static Frame {
        // SAFETY: the caller vouches for the record; all its fields are atomics, so it is shared by nature.
        unsafe { &*self.address(frame).as_ptr() }
    }

    /// The records of `frames`.
    ///
    /// # Safety
    /// They have been zeroed, and stay mapped.
    #[inline]
    pub(super) unsafe fn run(self, frames: Range<usize>) -> &'static [Frame] {
        // SAFETY: the caller vouches for the records; all their fields are atomics, so they are shared by nature.
        unsafe { slice::from_raw_parts(self.address(frames.start).as_ptr(), frames.len()) }
    }

    /// Zeroes the records of `count` frames from `first` on.
    ///
    /// # Safety
    /// They are mapped, writable, and no reference to any of them exists.
    pub(in crate::mm) unsafe fn zero(self, first: usize, count: usize) {
        // SAFETY: the caller vouches for the memory, and zero is a valid record.
        unsafe { ptr::write_bytes(self.address(first).as_ptr::<Frame>(), 0, count) };
    }
}
