//! Pipes: bytes that one end writes and the other reads (`pipe2(2)`).
//!
//! The bytes are in [pages](super::ring), each taken when a write needs it. A byte of EL0's is copied without any lock: a
//! fault there may wait for other processes, of which one may wait for this pipe.
//!
//! - *A writer* fills a page that only it has, and adds that to the pipe in one step. So up to a page is written as a
//!   whole, whatever other writers do (`PIPE_BUF`).
//! - *A reader* takes the turn to read ([`PipeState::is_read`]), copies from the first page, which stays where it is
//!   during the copy, and then takes the bytes away. A byte that EL0 has not got stays in the pipe.
//!
//! One queue is woken for all that changes. An end is closed when its open file is dropped.

#![allow(unsafe_code, reason = "the bytes of frames that a pipe holds, by their linear addresses")]

use core::sync::atomic::{AtomicUsize, Ordering};

use granule_abi::file::{POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM};
use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr};
use spin::Once;

use super::open::PollState;
use super::ring::{PAGES, PipePage, Ring};
use crate::chip::timer::uptime_nanoseconds;
use crate::kernel;
use crate::linux::errno::Errno;
use crate::mm::OutOfMemory;
use crate::mm::counted::{Counted, Inner};
use crate::mm::pool::{Pool, PoolStats};
use crate::sched::{IfNotReady, PollNode, PollQueue, Woken, poll_until, relax};
use crate::smp::this_cpu;
use crate::sync::{IrqLock, rank};

static PIPES: Once<Pool<Inner<Pipe>>> = Once::new();

/// There are bytes.
const INPUT: u16 = POLLIN | POLLRDNORM;
/// There is room.
const OUTPUT: u16 = POLLOUT | POLLWRNORM;

/// Pipes.
pub fn pool_stats() -> PoolStats {
    PIPES.get().map_or_else(PoolStats::default, Pool::stats)
}

/// A pipe, which its ends have.
struct Pipe {
    state: IrqLock<PipeState, { rank::WAIT }>,
    queue: PollQueue,
    /// A number that no other pipe has.
    number: usize,
    /// When it was made, in nanoseconds.
    made: u64,
}

struct PipeState {
    ring: Ring,
    has_reader: bool,
    has_writer: bool,
    /// A thread reads: it copies from the first page, which stays until it is done.
    is_read: bool,
}

/// Which end of a pipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Read,
    Write,
}

/// An end of a pipe. The pipe is closed there when it is dropped.
pub struct PipeEnd {
    pipe: Counted<Pipe>,
    end: End,
}

/// How a read or write is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PipeAccess {
    /// How many bytes.
    pub bytes: u64,
    /// Its effect where it has to wait.
    pub if_not_ready: IfNotReady,
    /// A write makes packets.
    pub is_packets: bool,
}

/// Makes a pipe: the end that reads, and the end that writes.
///
/// # Errors
/// [`OutOfMemory`].
pub fn create() -> Result<[PipeEnd; 2], OutOfMemory> {
    static NUMBERS: AtomicUsize = AtomicUsize::new(1);
    let pool = PIPES.call_once(|| Pool::new(kernel().frames));
    let pipe = Counted::try_new_with(pool, || Pipe {
        state: IrqLock::new(PipeState { ring: Ring::default(), has_reader: true, has_writer: true, is_read: false }),
        queue: PollQueue::new(),
        number: NUMBERS.fetch_add(1, Ordering::Relaxed),
        made: uptime_nanoseconds(),
    })?;
    Ok([PipeEnd { pipe: pipe.clone(), end: End::Read }, PipeEnd { pipe, end: End::Write }])
}

/// The state of a pipe for a writer.
enum Room {
    /// Room for so many of the next bytes.
    Bytes(usize),
    Full,
    NoReader,
}

/// The page for the next bytes of a write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PageChoice {
    /// The last page, if they fit there; else a new one.
    Last,
    New,
}

impl PipeState {
    /// Room for the next bytes of a write with `left` bytes left: what is over whole pages where the last page has room.
    fn room(&self, left: u64, choice: PageChoice) -> Room {
        let over = (left % PAGE) as usize;
        if !self.has_reader {
            Room::NoReader
        } else if choice == PageChoice::Last && over != 0 && self.ring.room_at_end(over).is_some() {
            Room::Bytes(over)
        } else if self.ring.is_full() {
            Room::Full
        } else {
            Room::Bytes(left.min(PAGE) as usize)
        }
    }
}

/// A frame that a writer fills; freed if it does not go into the pipe.
struct OwnFrame(Option<PhysAddr>);

impl OwnFrame {
    /// The frame, which is taken where there is none.
    fn get(&mut self) -> Result<PhysAddr, OutOfMemory> {
        match self.0 {
            Some(frame) => Ok(frame),
            None => Ok(*self.0.insert(kernel().frames.alloc(this_cpu())?)),
        }
    }
}

impl Drop for OwnFrame {
    fn drop(&mut self) {
        if let Some(frame) = self.0 {
            kernel().frames.free(this_cpu(), frame);
        }
    }
}

/// Where a frame that a pipe or a writer holds is in the kernel's memory.
fn bytes_of(frame: PhysAddr) -> *mut u8 {
    kernel().frames.linear().address(frame).as_ptr()
}

impl Pipe {
    /// Waits until `is_ready`.
    fn wait(&self, is_ready: impl Fn(&PipeState) -> bool) -> Result<(), Errno> {
        let mut nodes = [PollNode::new(&self.queue)];
        match poll_until(&mut nodes, None, &mut || is_ready(&self.state.lock())) {
            Woken::ByAnother => Ok(()),
            Woken::TimedOut | Woken::Interrupted => Err(Errno::ERESTARTSYS),
        }
    }

    /// Takes the turn to read; `false` at the end of what will ever be written.
    fn begin_read(&self, if_not_ready: IfNotReady) -> Result<bool, Errno> {
        loop {
            {
                let mut state = self.state.lock();
                match (state.is_read, state.ring.is_empty()) {
                    (true, _) => {}
                    (false, false) => {
                        state.is_read = true;
                        return Ok(true);
                    }
                    (false, true) if !state.has_writer => return Ok(false),
                    (false, true) if if_not_ready == IfNotReady::Fail => return Err(Errno::EAGAIN),
                    (false, true) => {}
                }
            }
            self.wait(|state| !state.is_read && (!state.ring.is_empty() || !state.has_writer))?;
        }
    }

    /// Reads what there is; the caller has the turn to read. `change` is [`OUTPUT`] where there was no room before.
    fn read_pages(&self, bytes: u64, store: &mut dyn FnMut(&[u8]) -> usize, change: &mut u16) -> Result<u64, Errno> {
        let mut done = 0;
        while done < bytes {
            let Some(page) = self.state.lock().ring.front() else { break };
            let count = (bytes - done).min(page.bytes.into()) as usize;
            // SAFETY: the page is this reader's until the turn ends, and writers add bytes after these alone.
            let piece = unsafe { core::slice::from_raw_parts(bytes_of(page.frame).add(page.offset.into()), count) };
            if store(piece) < count {
                return if done == 0 { Err(Errno::EFAULT) } else { Ok(done) };
            }
            done += count as u64;
            let (was_full, empty) = {
                let ring = &mut self.state.lock().ring;
                (ring.is_full(), ring.consume(count))
            };
            if let Some(frame) = empty {
                *change |= if was_full { OUTPUT } else { 0 };
                kernel().frames.free(this_cpu(), frame);
            }
            if page.is_packet {
                break;
            }
            relax();
        }
        Ok(done)
    }

    /// Adds the first `count` bytes of the writer's frame; returns whether there was room.
    fn add(&self, access: PipeAccess, own: &mut OwnFrame, count: usize, choice: PageChoice) -> bool {
        let Some(frame) = own.0 else { return false };
        let mut state = self.state.lock();
        if choice == PageChoice::Last
            && let Some((last, end)) = state.ring.room_at_end(count)
        {
            // SAFETY: the bytes after the last page's are no reader's yet, and the lock keeps other writers away; the
            // other frame is this writer's.
            unsafe { bytes_of(last).add(end).copy_from_nonoverlapping(bytes_of(frame), count) };
            state.ring.extend(count);
            return true;
        }
        let is_added =
            state.ring.push(PipePage { frame, offset: 0, bytes: count as u16, is_packet: access.is_packets });
        if is_added {
            own.0 = None;
        }
        is_added
    }

    /// Writes the bytes that `fetch` copies; returns how many went into the pipe, and why no more did.
    fn write(&self, access: PipeAccess, fetch: &mut dyn FnMut(&mut [u8]) -> usize) -> (u64, Result<(), Errno>) {
        let (mut done, mut filled, mut own) = (0, 0, OwnFrame(None));
        // As on Linux, bytes join the last page at the beginning of a write only.
        let mut choice = PageChoice::Last;
        let outcome = loop {
            if done == access.bytes {
                break Ok(());
            }
            let room = self.state.lock().room(access.bytes - done, choice);
            let count = match room {
                Room::Bytes(count) => count,
                Room::NoReader => break Err(Errno::EPIPE),
                Room::Full if access.if_not_ready == IfNotReady::Fail => break Err(Errno::EAGAIN),
                Room::Full => {
                    choice = PageChoice::New;
                    self.queue.wake(INPUT);
                    match self.wait(|state| !state.ring.is_full() || !state.has_reader) {
                        Ok(()) => continue,
                        Err(error) => break Err(error),
                    }
                }
            };
            if filled == 0 {
                let frame = match own.get() {
                    Ok(frame) => frame,
                    Err(OutOfMemory) => break Err(Errno::ENOMEM),
                };
                // SAFETY: the frame is this writer's alone, and has as many bytes; what it held before is overwritten or
                // not looked at.
                let piece = unsafe { core::slice::from_raw_parts_mut(bytes_of(frame), count) };
                if fetch(piece) < count {
                    break Err(Errno::EFAULT);
                }
                filled = count;
            }
            // Where another writer was quicker, it waits with what it has.
            if self.add(access, &mut own, filled, choice) {
                (done, filled, choice) = (done + filled as u64, 0, PageChoice::New);
                relax();
            }
        };
        if done != 0 {
            self.queue.wake(INPUT);
        }
        (done, outcome)
    }
}

impl PipeEnd {
    /// Bytes of memory of the pipe; each end has half.
    pub fn footprint(&self) -> usize {
        (size_of::<Pipe>() + self.pipe.state.lock().ring.pages() * PAGE_SIZE) / 2
    }

    /// Reads up to `access.bytes` bytes, which `store` takes piece by piece and returns how many of a piece it has
    /// stored.
    ///
    /// # Errors
    /// `EAGAIN`, `EFAULT`; `ERESTARTSYS` where a signal came first.
    pub fn read(&self, access: PipeAccess, store: &mut dyn FnMut(&[u8]) -> usize) -> Result<u64, Errno> {
        if access.bytes == 0 || !self.pipe.begin_read(access.if_not_ready)? {
            return Ok(0);
        }
        let mut change = 0;
        let read = self.pipe.read_pages(access.bytes, store, &mut change);
        self.pipe.state.lock().is_read = false;
        self.pipe.queue.wake(change);
        read
    }

    /// Writes the bytes that `fetch` fills pieces with, of which it returns how many it has filled; returns how many were
    /// written, and the error that ended that, also after some bytes.
    pub fn write(&self, access: PipeAccess, fetch: &mut dyn FnMut(&mut [u8]) -> usize) -> (u64, Result<(), Errno>) {
        if access.bytes == 0 { (0, Ok(())) } else { self.pipe.write(access, fetch) }
    }

    /// The events that a poller finds.
    pub fn poll(&self) -> PollState<'_> {
        let state = self.pipe.state.lock();
        let mut events = 0;
        match self.end {
            End::Read => {
                if !state.ring.is_empty() {
                    events |= INPUT;
                }
                if !state.has_writer {
                    events |= POLLHUP;
                }
            }
            End::Write => {
                if !state.ring.is_full() {
                    events |= OUTPUT;
                }
                if !state.has_reader {
                    events |= POLLERR;
                }
            }
        }
        PollState { events, queue: Some(&self.pipe.queue) }
    }

    /// The events that a poller may find at this end.
    pub const fn watchable(&self) -> u16 {
        match self.end {
            End::Read => INPUT | POLLHUP,
            End::Write => OUTPUT | POLLERR,
        }
    }

    /// Bytes that can be read.
    pub fn bytes(&self) -> usize {
        self.pipe.state.lock().ring.bytes()
    }

    /// Bytes of all pages that it may have (`F_GETPIPE_SZ`).
    pub fn size(&self) -> usize {
        self.pipe.state.lock().ring.limit() * PAGE_SIZE
    }

    /// Sets that (`F_SETPIPE_SZ`), rounded up to a power of two of pages; returns it. A pipe is not made larger than at
    /// first: kernel memory that no process accounts for stays bounded.
    ///
    /// # Errors
    /// `EINVAL`, `EPERM` (larger than that), `EBUSY` (it has more pages).
    pub fn set_size(&self, bytes: u32) -> Result<usize, Errno> {
        const LARGEST: u32 = 1 << 31;
        if bytes > LARGEST {
            return Err(Errno::EINVAL);
        }
        let pages = (bytes as usize).div_ceil(PAGE_SIZE).next_power_of_two();
        if pages > PAGES {
            return Err(Errno::EPERM);
        }
        if !self.pipe.state.lock().ring.set_limit(pages) {
            return Err(Errno::EBUSY);
        }
        self.pipe.queue.wake(OUTPUT);
        Ok(pages * PAGE_SIZE)
    }

    /// Its pipe's number, and when that was made.
    pub fn identity(&self) -> (usize, u64) {
        (self.pipe.number, self.pipe.made)
    }
}

impl Drop for PipeEnd {
    fn drop(&mut self) {
        {
            let mut state = self.pipe.state.lock();
            match self.end {
                End::Read => state.has_reader = false,
                End::Write => state.has_writer = false,
            }
        }
        self.pipe.queue.wake(PollQueue::ANY);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let frames = kernel().frames;
        loop {
            // Of no page are more bytes left than a page has.
            let Some(frame) = self.state.lock().ring.consume(PAGE_SIZE) else { return };
            frames.free(this_cpu(), frame);
        }
    }
}
