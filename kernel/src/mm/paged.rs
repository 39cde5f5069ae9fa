//! Lists whose length a program chooses: in frames of their own, each taken when the one before it is full; and bytes of
//! which it chooses how many, in one frame.
//!
//! ```text
//!   first ──► header │ values … ──► header │ values … ◄── last
//! ```
//! So such a list takes nothing from the heap, is counted by frames, and all of it goes back when it is dropped. A value
//! stays where it is until it is taken out, at the end of the list.

#![allow(unsafe_code, reason = "values in frames, by their linear addresses")]

use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use granule_arch::addr::{PAGE_SIZE, PhysAddr};

use super::OutOfMemory;
use super::frame::FrameAllocator;
use crate::sched::{PollNode, PollNodes, enlarge_shortage, relax};
use crate::smp::this_cpu;

/// The head of each frame.
struct Header {
    before: Option<NonNull<Header>>,
    next: Option<NonNull<Header>>,
    frame: PhysAddr,
}

/// A list of any length. Adding to it and dropping it is for threads, without a lock of the rank `HEAP_GROWTH` or a later
/// one; the drop lets others run in between.
pub struct PagedList<T> {
    frames: &'static FrameAllocator,
    first: Option<NonNull<Header>>,
    last: Option<NonNull<Header>>,
    length: usize,
    values: PhantomData<T>,
}

// SAFETY: the list owns its values and its frames.
unsafe impl<T: Send> Send for PagedList<T> {}
// SAFETY: a shared list only gives out references to its values.
unsafe impl<T: Sync> Sync for PagedList<T> {}

impl<T> PagedList<T> {
    /// Where the first value of a frame is.
    const START: usize = size_of::<Header>().next_multiple_of(align_of::<T>());
    /// Values of a frame.
    const CAPACITY: usize = {
        assert!(size_of::<T>() != 0 && align_of::<T>() <= PAGE_SIZE);
        let capacity = (PAGE_SIZE - Self::START) / size_of::<T>();
        assert!(capacity != 0, "a value fits into a frame");
        capacity
    };

    /// Without a value, and without a frame.
    pub const fn new(frames: &'static FrameAllocator) -> Self {
        Self { frames, first: None, last: None, length: 0, values: PhantomData }
    }

    /// Where its frames come from.
    pub const fn frames(&self) -> &'static FrameAllocator {
        self.frames
    }

    /// How many values there are.
    pub const fn count(&self) -> usize {
        self.length
    }

    /// Whether the next value takes a frame.
    pub const fn is_full(&self) -> bool {
        self.length.is_multiple_of(Self::CAPACITY)
    }

    /// Adds a value at the end.
    ///
    /// # Errors
    /// [`OutOfMemory`]; `value` is dropped. The caller gives up and drops the list: the shortage that is noted in the thread
    /// is for all of it.
    pub fn push(&mut self, value: T) -> Result<(), OutOfMemory> {
        let place = self.length % Self::CAPACITY;
        let last = match self.last {
            Some(last) if !self.is_full() => last,
            _ => self.add_frame()?,
        };
        // SAFETY: the place is in the last frame, and holds no value.
        unsafe { value_at::<T>(last, place).write(value) };
        self.length += 1;
        Ok(())
    }

    /// Takes the last value.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.last?;
        self.length -= 1;
        let place = self.length % Self::CAPACITY;
        // SAFETY: the place holds the last value, which the list does not count any more.
        let value = unsafe { value_at::<T>(last, place).read() };
        if place == 0 {
            // SAFETY: headers of frames in the list are initialised, and only the list accesses them.
            let Header { before, frame, .. } = unsafe { last.read() };
            self.last = before;
            match before {
                None => self.first = None,
                // SAFETY: as above.
                Some(mut before) => unsafe { before.as_mut() }.next = None,
            }
            self.frames.free(this_cpu(), frame);
        }
        Some(value)
    }

    /// The value with this index. Goes from frame to frame.
    #[inline]
    pub fn get(&self, index: usize) -> Option<&T> {
        // SAFETY: the place has a value, and the list is borrowed.
        self.place(index).map(|value| unsafe { value.as_ref() })
    }

    /// [`Self::get`], to change the value.
    #[inline]
    pub fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        // SAFETY: as above, exclusively.
        self.place(index).map(|mut value| unsafe { value.as_mut() })
    }

    #[inline]
    fn place(&self, index: usize) -> Option<NonNull<T>> {
        let mut frame = self.first.filter(|_| index < self.length)?;
        for _ in 0..index / Self::CAPACITY {
            // SAFETY: as in `pop`.
            frame = unsafe { frame.as_ref() }.next?;
        }
        // SAFETY: the frame is in the list, and has the place.
        Some(unsafe { value_at(frame, index % Self::CAPACITY) })
    }

    /// The values, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> + Clone {
        let mut frame = self.first;
        (0..self.length).map_while(move |index| {
            let place = index % Self::CAPACITY;
            if index != 0 && place == 0 {
                // SAFETY: as in `pop`.
                frame = unsafe { frame?.as_ref() }.next;
            }
            // SAFETY: the frame is in the list and holds the value of this index, as long as the list is borrowed.
            Some(unsafe { value_at::<T>(frame?, place).as_ref() })
        })
    }

    #[inline(never)]
    fn add_frame(&mut self) -> Result<NonNull<Header>, OutOfMemory> {
        let cpu = this_cpu();
        // The caller drops the list. With one more frame than there was it would fail again.
        let taken = self.length / Self::CAPACITY;
        let frame = self.frames.alloc(cpu).inspect_err(|_| enlarge_shortage(cpu, taken))?;
        let header: NonNull<Header> = NonNull::new(self.frames.linear().address(frame).as_ptr()).ok_or(OutOfMemory)?;
        // SAFETY: the linear map shows the frame, which is the list's, and a page is large and aligned enough.
        unsafe { header.write(Header { before: self.last, next: None, frame }) };
        match self.last {
            None => self.first = Some(header),
            // SAFETY: as in `pop`.
            Some(mut last) => unsafe { last.as_mut() }.next = Some(header),
        }
        self.last = Some(header);
        Ok(header)
    }
}

/// A place for a value in a frame.
///
/// # Safety
/// `place` is below [`PagedList::CAPACITY`], in a frame of such a list.
unsafe fn value_at<T>(header: NonNull<Header>, place: usize) -> NonNull<T> {
    // SAFETY: by the caller's contract within the frame.
    unsafe { header.byte_add(PagedList::<T>::START).cast::<T>().add(place) }
}

impl<T> Drop for PagedList<T> {
    fn drop(&mut self) {
        while let Some(value) = self.pop() {
            drop(value);
            if self.length.is_multiple_of(Self::CAPACITY) {
                relax();
            }
        }
    }
}

/// At most a page of bytes, in a frame of its own. Taking and dropping it is for threads, without a lock of the rank
/// `HEAP_GROWTH` or a later one.
pub struct PagedBytes {
    frames: &'static FrameAllocator,
    frame: PhysAddr,
    bytes: NonNull<u8>,
    length: usize,
}

impl PagedBytes {
    /// `length` zeros, at most [`PAGE_SIZE`].
    ///
    /// # Errors
    /// [`OutOfMemory`]; also for more than a page.
    pub fn zeros(frames: &'static FrameAllocator, length: usize) -> Result<Self, OutOfMemory> {
        if length > PAGE_SIZE {
            return Err(OutOfMemory);
        }
        let frame = frames.alloc(this_cpu())?;
        let bytes: NonNull<u8> = NonNull::new(frames.linear().address(frame).as_ptr()).ok_or(OutOfMemory)?;
        // SAFETY: the linear map shows the frame, which is large enough, and nothing else has it.
        unsafe { bytes.write_bytes(0, length) };
        Ok(Self { frames, frame, bytes, length })
    }
}

// SAFETY: the bytes own their frame.
unsafe impl Send for PagedBytes {}
// SAFETY: shared they are only read.
unsafe impl Sync for PagedBytes {}

impl Deref for PagedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the first bytes of a frame that is this value's, which the linear map shows; they were zeroed.
        unsafe { core::slice::from_raw_parts(self.bytes.as_ptr(), self.length) }
    }
}

impl DerefMut for PagedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, exclusively.
        unsafe { core::slice::from_raw_parts_mut(self.bytes.as_ptr(), self.length) }
    }
}

impl Drop for PagedBytes {
    fn drop(&mut self) {
        self.frames.free(this_cpu(), self.frame);
    }
}

// SAFETY: the list's own iterator; no value moves.
unsafe impl<'q> PollNodes<'q> for PagedList<PollNode<'q>> {
    fn nodes<'n>(&'n self) -> impl Iterator<Item = &'n PollNode<'q>>
    where
        'q: 'n,
    {
        self.iter()
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "the host has memory")]
mod tests {
    use std::rc::Rc;
    use std::vec::Vec;

    use super::{PAGE_SIZE, PagedBytes, PagedList};
    use crate::mm::frame::tests::leaked;
    use crate::smp::this_cpu;

    /// Three frames and a part of one.
    const MANY: usize = 3 * PagedList::<[u64; 5]>::CAPACITY + 7;

    #[test]
    fn values_stay_where_they_are_and_come_back_in_order() {
        let frames = leaked(2);
        let before = frames.stats();
        let mut list = PagedList::new(frames);
        let value = |index: usize| [index as u64; 5];
        let mut places = Vec::new();
        for index in 0..MANY {
            assert_eq!(list.is_full(), index % PagedList::<[u64; 5]>::CAPACITY == 0);
            list.push(value(index)).unwrap();
            places.push(core::ptr::from_ref(list.iter().last().unwrap()));
        }
        assert_eq!((list.count(), frames.stats().free), (MANY, before.free - 4));
        assert!(list.iter().copied().eq((0..MANY).map(value)));
        assert!(list.iter().map(core::ptr::from_ref).eq(places.iter().copied()));
        assert!((0..MANY).all(|index| list.get(index) == Some(&value(index))) && list.get(MANY).is_none());
        assert_eq!(list.get_mut(MANY - 1), Some(&mut value(MANY - 1)));
        for index in (0..MANY).rev() {
            assert_eq!(list.pop(), Some(value(index)));
        }
        assert_eq!((list.pop(), list.iter().count()), (None, 0));
        list.push(value(1)).unwrap();
        assert!(list.iter().eq([&value(1)]));
        drop(list);
        frames.drain_cpu(this_cpu());
        assert_eq!(frames.stats().free, before.free);
    }

    #[test]
    fn bytes_have_a_frame_of_their_own() {
        let frames = leaked(2);
        let before = frames.stats().free;
        let mut bytes = PagedBytes::zeros(frames, PAGE_SIZE).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0) && bytes.len() == PAGE_SIZE);
        bytes[PAGE_SIZE - 1] = 7;
        assert_eq!((bytes[PAGE_SIZE - 1], frames.stats().free), (7, before - 1));
        assert!(PagedBytes::zeros(frames, PAGE_SIZE + 1).is_err());
        drop(bytes);
        assert!(PagedBytes::zeros(frames, 0).unwrap().is_empty());
        frames.drain_cpu(this_cpu());
        assert_eq!(frames.stats().free, before);
    }

    #[test]
    fn what_does_not_fit_any_more_is_dropped_and_the_rest_stays() {
        let frames = leaked(2);
        let (witness, mut list) = (Rc::new(()), PagedList::new(frames));
        while list.push((Rc::clone(&witness), [0_u8; 1000])).is_ok() {}
        assert!(list.count() > 1000 && frames.stats().free == 0);
        assert_eq!(Rc::strong_count(&witness), 1 + list.count());
        drop(list);
        assert_eq!(Rc::strong_count(&witness), 1);
        frames.drain_cpu(this_cpu());
        assert!(frames.stats().free > 250);
    }
}
