//! The pages of a pipe: up to 16, each with bytes of one write or of several (Linux's `pipe_buffer`).
//!
//! A pipe is full by its pages, not by its bytes: a page stays in it until its last byte is read, and a small write joins
//! the last page only where all that is over whole pages fits there. Readers and pollers see that, so it is Linux's.

use granule_arch::addr::{PAGE_SIZE, PhysAddr};

/// Pages of a pipe, unless it was made smaller (`PIPE_DEF_BUFFERS`).
pub const PAGES: usize = 16;

/// A page with bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PipePage {
    /// Its frame.
    pub frame: PhysAddr,
    /// The first byte that was not read.
    pub offset: u16,
    /// How many bytes there are.
    pub bytes: u16,
    /// Whether it is a packet (`O_DIRECT`): one read takes all of it, and no write joins it.
    pub is_packet: bool,
}

impl PipePage {
    /// Where its bytes end.
    const fn end(&self) -> usize {
        self.offset as usize + self.bytes as usize
    }
}

/// The pages of one pipe, the oldest first.
#[derive(Debug)]
pub struct Ring {
    pages: [Option<PipePage>; PAGES],
    first: usize,
    count: usize,
    limit: usize,
}

impl Default for Ring {
    fn default() -> Self {
        Self { pages: [None; PAGES], first: 0, count: 0, limit: PAGES }
    }
}

impl Ring {
    /// Whether there is no byte.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether no page can be added.
    pub const fn is_full(&self) -> bool {
        self.count >= self.limit
    }

    /// How many pages there are.
    pub const fn pages(&self) -> usize {
        self.count
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> usize {
        self.pages.iter().flatten().map(|page| usize::from(page.bytes)).sum()
    }

    /// The most pages.
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Sets the most pages; returns whether the pipe has no more than that.
    pub const fn set_limit(&mut self, limit: usize) -> bool {
        let fits = limit >= self.count && limit <= PAGES;
        if fits {
            self.limit = limit;
        }
        fits
    }

    fn place(&self, number: usize) -> usize {
        (self.first + number) % PAGES
    }

    /// The oldest page.
    pub fn front(&self) -> Option<PipePage> {
        self.pages.get(self.first).copied().flatten()
    }

    /// The frame of the last page, and where in it `bytes` more bytes fit.
    pub fn room_at_end(&self, bytes: usize) -> Option<(PhysAddr, usize)> {
        let last = self.count.checked_sub(1)?;
        let page = (*self.pages.get(self.place(last))?)?;
        (!page.is_packet && page.end() + bytes <= PAGE_SIZE).then_some((page.frame, page.end()))
    }

    /// Adds so many bytes, for which there is [room](Self::room_at_end), to the last page.
    pub fn extend(&mut self, bytes: usize) {
        let Some(last) = self.count.checked_sub(1) else { return };
        let place = self.place(last);
        if let Some(Some(page)) = self.pages.get_mut(place) {
            page.bytes += bytes as u16;
        }
    }

    /// Adds a page at the end; returns whether there was room.
    pub fn push(&mut self, page: PipePage) -> bool {
        let place = self.place(self.count);
        let has_room = !self.is_full();
        if has_room && let Some(free) = self.pages.get_mut(place) {
            *free = Some(page);
            self.count += 1;
        }
        has_room
    }

    /// Takes the first `bytes` bytes of the oldest page, all of a packet; returns its frame once it has none left.
    pub fn consume(&mut self, bytes: usize) -> Option<PhysAddr> {
        let front = self.pages.get_mut(self.first)?;
        let page = front.as_mut()?;
        if !page.is_packet && bytes < usize::from(page.bytes) {
            (page.offset, page.bytes) = (page.offset + bytes as u16, page.bytes - bytes as u16);
            return None;
        }
        let frame = page.frame;
        *front = None;
        (self.first, self.count) = (self.place(1), self.count - 1);
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::{PAGE_SIZE, PAGES, PhysAddr, PipePage, Ring};

    fn page(frame: u64, bytes: u16) -> PipePage {
        PipePage { frame: PhysAddr(frame << 12), offset: 0, bytes, is_packet: false }
    }

    #[test]
    fn small_writes_join_the_last_page_and_whole_pages_do_not() {
        let mut ring = Ring::default();
        assert_eq!(ring.room_at_end(1), None);
        assert!(ring.push(page(1, 4000)));
        assert_eq!(ring.room_at_end(96), Some((PhysAddr(0x1000), 4000)));
        assert_eq!(ring.room_at_end(97), None);
        ring.extend(96);
        assert_eq!((ring.bytes(), ring.room_at_end(1)), (4096, None));
        // Room in front is not used again.
        assert_eq!(ring.consume(4095), None);
        assert_eq!((ring.bytes(), ring.room_at_end(1), ring.is_empty()), (1, None, false));
        assert_eq!(ring.consume(1), Some(PhysAddr(0x1000)));
        assert!(ring.is_empty() && ring.front().is_none() && ring.consume(1).is_none());
    }

    #[test]
    fn a_packet_is_read_by_one_read_and_joined_by_none() {
        let mut ring = Ring::default();
        assert!(ring.push(PipePage { is_packet: true, ..page(3, 10) }));
        assert_eq!(ring.room_at_end(1), None);
        assert_eq!(ring.consume(4), Some(PhysAddr(0x3000)));
        assert!(ring.is_empty());
    }

    #[test]
    fn a_pipe_is_full_by_its_pages() {
        let mut ring = Ring::default();
        for number in 0..PAGES as u64 {
            assert!(!ring.is_full() && ring.push(page(number, 1)));
        }
        assert!(ring.is_full() && !ring.push(page(99, 1)));
        assert!(!ring.set_limit(PAGES - 1) && !ring.set_limit(PAGES + 1));
        ring.consume(1);
        assert!(ring.set_limit(PAGES - 1) && ring.is_full());
        assert_eq!(ring.limit(), PAGES - 1);
    }

    proptest! {
        #[test]
        fn bytes_come_in_the_order_in_which_they_went(steps in prop::collection::vec((any::<bool>(), 1..5000_usize), 1..200)) {
            let (mut ring, mut model, mut next) = (Ring::default(), VecDeque::new(), 0);
            for (writes, bytes) in steps {
                let bytes = bytes.min(PAGE_SIZE);
                if writes {
                    let is_joined = bytes < PAGE_SIZE && ring.room_at_end(bytes).is_some();
                    let (frame, at) = ring.room_at_end(bytes).filter(|_| is_joined).unwrap_or((PhysAddr(next << 12), 0));
                    if is_joined {
                        ring.extend(bytes);
                    } else if ring.push(page(next, bytes as u16)) {
                        next += 1;
                    } else {
                        continue;
                    }
                    model.extend((at..at + bytes).map(|at| (frame, at)));
                } else if let Some(front) = ring.front() {
                    let bytes = bytes.min(front.bytes.into());
                    for at in 0..bytes {
                        prop_assert_eq!(model.pop_front(), Some((front.frame, usize::from(front.offset) + at)));
                    }
                    let is_last = bytes == usize::from(front.bytes);
                    prop_assert_eq!(ring.consume(bytes), is_last.then_some(front.frame));
                }
                prop_assert_eq!(ring.bytes(), model.len());
                prop_assert_eq!(ring.is_empty(), model.is_empty());
            }
        }
    }
}
