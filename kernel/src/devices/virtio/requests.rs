//! Requests: chains of a queue that are handed over, and handed over again, until their data has arrived.
//!
//! **A device's word that a request is complete means nothing here.** Where the SMMU refuses one of its accesses the
//! data is lost, and the device reports success all the same. So each request is held against the faults that came in
//! before its completion: where none is in its memory it is complete; where they were served it is handed over again,
//! at most [`MAX_TRIES`] times; where they cannot be served that is its error. Where records of faults were lost, every
//! request that was in flight then may have met one, and is handed over again when it comes back, whatever its status.
//!
//! Requests are done twice therefore, and must be such that this is as good as once: reads and writes of a disk are.
//!
//! Nothing here waits or knows of interrupts: [`super::device`] does. It runs on the host against a model.

#![allow(unsafe_code, reason = "rings and buffers that the device reads and writes")]

use core::ptr::{NonNull, null_mut};

use granule_arch::addr::PAGE_SIZE;
use heapless::Vec;
use thiserror::Error;

use super::queue::{Completion, DeviceError, Flow, MAX_SIZE, RING_BYTES, Segment, SubmitError, VirtQueue};
use crate::iommu::{IsOthers, MAX_TRIES, Refusal, Resolution};
use crate::lab;
use crate::mm::space::FaultError;

/// Requests that a queue has at a time. They live where stacks are small.
pub const MAX_REQUESTS: usize = 16;

/// Segments that a request may have, besides its frame.
pub const MAX_SEGMENTS: usize = 8;

/// Bytes of the page after the rings that each request has for its frame.
const FRAME_BYTES: usize = 32;
/// Of these, the header that the device reads; after it is the byte that it answers with.
const HEADER_BYTES: usize = 16;
/// In place of a request's number.
const NO_REQUEST: u8 = u8::MAX;
/// The value of that byte before the device stores its own: none of its values.
const NO_STATUS: u8 = 0xff;

const _: () = assert!(HEADER_BYTES < FRAME_BYTES && RING_BYTES + MAX_REQUESTS * FRAME_BYTES <= PAGE_SIZE);

/// The header that a device reads in front of the data, and the byte that it answers after the data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RequestFrame {
    /// Nothing.
    None,
    /// This header, and a byte.
    Header([u8; HEADER_BYTES]),
}

/// A request whose data has arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Bytes that the device reports written, the status byte among them.
    pub written: u32,
    /// Its answer; [`u8::MAX`] where the request has no frame, or it did not answer.
    pub status: u8,
    /// How often the request was handed over.
    pub tries: u32,
}

/// Why a request has failed. The contents of its memory are not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum RequestError {
    /// It was not handed over.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// More segments than [`MAX_SEGMENTS`].
    #[error("{0} segments are more than {MAX_SEGMENTS}")]
    TooManySegments(usize),
    /// The device accessed what it cannot have.
    #[error("the device's access failed: {0}")]
    Fault(FaultError),
    /// Each time its faults were served, and it met new ones.
    #[error("the device met faults each of {0} times, though each was served")]
    TooManyFaults(u32),
    /// The device broke the rules of its queue.
    #[error(transparent)]
    Device(DeviceError),
    /// The process whose memory it was to access has ended.
    #[error("the device is bound to a process that has ended")]
    Ended,
    /// It did not answer in time.
    #[error("the device does not answer")]
    TimedOut,
    /// It was to be reset, and has not come back. Perhaps it does the next time.
    #[error("the device failed, and has not come back: {0}")]
    Gone(super::transport::TransportError),
}

/// The name of a request, from when it is handed over until its result is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a request stays in its table until its result is taken"]
pub struct Ticket(u8);

/// The state of a request. By number, so that the first is 0: see [`Requests::NONE`].
#[derive(Clone, Copy)]
#[repr(u8)]
enum RequestState {
    /// There is none.
    Free,
    /// The device has it.
    InFlight,
    /// It is over.
    Over(Result<Transfer, RequestError>),
}

/// A place for a request.
struct RequestEntry {
    state: RequestState,
    frame: RequestFrame,
    segments: Vec<Segment, MAX_SEGMENTS>,
    tries: u32,
    /// How often records of faults had been lost when it was handed over.
    losses: u32,
}

impl RequestEntry {
    const FREE: Self =
        Self { state: RequestState::Free, frame: RequestFrame::None, segments: Vec::new(), tries: 0, losses: 0 };

    fn is_in_flight(&self) -> bool {
        matches!(self.state, RequestState::InFlight)
    }
}

/// The requests of one queue.
pub struct Requests {
    queue: VirtQueue,
    /// The frames, in the queue's page after its rings.
    frames: *mut u8,
    /// And as the device knows them.
    frames_address: u64,
    entries: [RequestEntry; MAX_REQUESTS],
    /// Which request each chain in flight belongs to; [`NO_REQUEST`] of one whose request is over already.
    owners: [u8; MAX_SIZE as usize],
    losses: u32,
    /// Requests that were handed over again.
    resubmitted: u64,
}

// SAFETY: the page belongs to the requests, whichever CPU holds them.
unsafe impl Send for Requests {}
// SAFETY: shared, they only read: a change of the page needs `&mut`.
unsafe impl Sync for Requests {}

/// Until when one request is waited for: until some time has passed in which it was not handed over again.
///
/// A wait in which faults of this request were served is no delay by the device. Resubmissions of other requests count
/// for those: a request that never completes would else be waited for as long as they fault.
pub struct RequestDeadline<T> {
    tries: u32,
    until: T,
}

impl<T: Copy> RequestDeadline<T> {
    /// For a request that was just handed over.
    pub const fn new(until: T) -> Self {
        Self { tries: 0, until }
    }

    /// Begins anew, with the moment that `again` gives, where the request was handed over since the last look.
    pub fn look(&mut self, requests: &Requests, ticket: Ticket, again: impl FnOnce() -> T) {
        let tries = requests.tries(ticket);
        if core::mem::replace(&mut self.tries, tries) != tries {
            self.until = again();
        }
    }

    /// The moment.
    pub const fn until(&self) -> T {
        self.until
    }
}

/// Returns the outcome of one segment of a request that came back: [`crate::iommu::DmaDevice::resolve`].
pub type Resolve<'a> = dyn FnMut(Segment, &IsOthers<'_>) -> Resolution + 'a;

impl Requests {
    /// A place for the requests of a queue; they are too many to be moved about. All zeros, as [`VirtQueue::NONE`] is.
    pub const NONE: Self = Self {
        queue: VirtQueue::NONE,
        frames: null_mut(),
        frames_address: 0,
        entries: [const { RequestEntry::FREE }; MAX_REQUESTS],
        owners: [0; MAX_SIZE as usize],
        losses: 0,
        resubmitted: 0,
    };

    /// Begins with an empty queue for a device that takes `most` descriptors, and knows its page, `memory`, as `page`.
    ///
    /// # Safety
    /// As for [`VirtQueue::begin`], of the whole page.
    pub unsafe fn begin(&mut self, memory: NonNull<u8>, page: u64, most: u16) {
        // SAFETY: the caller's promise; the frames are the second half of the page.
        unsafe {
            self.queue.begin(memory, most);
            self.frames = memory.add(RING_BYTES).as_ptr();
        }
        self.frames_address = page + RING_BYTES as u64;
    }

    /// Requests that the device has.
    pub fn in_flight(&self) -> usize {
        self.entries.iter().filter(|entry| entry.is_in_flight()).count()
    }

    /// Whether the device has a request still.
    pub fn is_in_flight(&self, ticket: Ticket) -> bool {
        self.entries.get(usize::from(ticket.0)).is_some_and(RequestEntry::is_in_flight)
    }

    /// How often a request was handed over so far; 0 where there is none.
    pub fn tries(&self, ticket: Ticket) -> u32 {
        self.entries.get(usize::from(ticket.0)).map_or(0, |entry| entry.tries)
    }

    /// Requests that were handed over once more, since the start.
    pub fn resubmitted(&self) -> u64 {
        self.resubmitted
    }

    /// Hands a request over. The device is to be notified.
    ///
    /// # Errors
    /// [`RequestError::Submit`], [`RequestError::TooManySegments`]; nothing is handed over.
    pub fn submit(&mut self, frame: RequestFrame, segments: &[Segment]) -> Result<Ticket, RequestError> {
        let is_free = |entry: &RequestEntry| matches!(entry.state, RequestState::Free);
        let free = self.entries.iter().position(is_free).ok_or(SubmitError::Full)?;
        let segments = Vec::from_slice(segments).map_err(|_| RequestError::TooManySegments(segments.len()))?;
        self.entries[free] = RequestEntry { frame, segments, ..RequestEntry::FREE };
        self.hand_over(free)?;
        Ok(Ticket(free as u8))
    }

    /// The result of a request, once, if it is over.
    pub fn take(&mut self, ticket: Ticket) -> Option<Result<Transfer, RequestError>> {
        let entry = self.entries.get_mut(usize::from(ticket.0))?;
        let RequestState::Over(result) = entry.state else { return None };
        entry.state = RequestState::Free;
        Some(result)
    }

    /// Whether the device has handed something back.
    pub fn has_some(&self) -> bool {
        self.queue.has_used()
    }

    /// Sees to what the device has handed back; whether it is to be notified of what was handed over again.
    ///
    /// # Errors
    /// The device broke the rules: it is to be reset, and [`Self::restart`] called.
    pub fn collect(&mut self, resolve: &mut Resolve<'_>) -> Result<bool, DeviceError> {
        let mut again = false;
        while let Some(Completion { head, written }) = self.queue.take()? {
            let owner = self.owners.get(head.index()).copied().unwrap_or(NO_REQUEST);
            if owner == NO_REQUEST {
                continue;
            }
            let index = usize::from(owner);
            let status = self.status(index);
            let verdict = self.verdict(index, resolve);
            let entry = &mut self.entries[index];
            match verdict {
                Verdict::Complete => {
                    entry.state = RequestState::Over(Ok(Transfer { written, status, tries: entry.tries }))
                }
                Verdict::Failed(error) => entry.state = RequestState::Over(Err(RequestError::Fault(error))),
                Verdict::Again => again |= self.again(index),
            }
        }
        Ok(again)
    }

    /// Continues after the device was reset, and the queue begun anew: what it had is handed over again, once its
    /// faults are served. The device is to be notified.
    pub fn restart(&mut self, resolve: &mut Resolve<'_>) {
        for index in 0..MAX_REQUESTS {
            if !self.entries[index].is_in_flight() {
                continue;
            }
            match self.verdict(index, resolve) {
                Verdict::Failed(error) => {
                    self.entries[index].state = RequestState::Over(Err(RequestError::Fault(error)))
                }
                // The device's progress with it is not known.
                Verdict::Complete | Verdict::Again => _ = self.again(index),
            }
        }
    }

    /// Ends all that is in flight with `error`: the device is reset, or reaches nothing any more. Chains that it has
    /// handed back already, unread so far, are not a later request's.
    pub fn abandon(&mut self, error: RequestError) {
        self.owners.fill(NO_REQUEST);
        for entry in self.entries.iter_mut().filter(|entry| entry.is_in_flight()) {
            entry.state = RequestState::Over(Err(error));
        }
    }

    /// Ends one request with `error`; the device is reset, and reaches nothing any more.
    pub fn give_up(&mut self, ticket: Ticket, error: RequestError) {
        if let Some(entry) = self.entries.get_mut(usize::from(ticket.0)).filter(|entry| entry.is_in_flight()) {
            entry.state = RequestState::Over(Err(error));
        }
    }

    /// See [`VirtQueue::set_interrupts`].
    pub fn set_interrupts(&mut self, wanted: bool) {
        self.queue.set_interrupts(wanted);
    }

    /// All of its segments are resolved, whatever the outcome of the first ones: a fault left over would fail the next
    /// request of the same memory.
    fn verdict(&mut self, index: usize, resolve: &mut Resolve<'_>) -> Verdict {
        if lab::is_on!(TRUST_COMPLETION) {
            return Verdict::Complete;
        }
        let entry = &self.entries[index];
        let mut verdict = if entry.losses == self.losses { Verdict::Complete } else { Verdict::Again };
        let mut number = 0;
        while let Some(&segment) = self.entries[index].segments.get(number) {
            number += 1;
            let outcome = resolve(segment, &|refusal| self.may_have_met(refusal));
            match outcome {
                Resolution::NoFault => continue,
                Resolution::Failed(error) => verdict = Verdict::Failed(error),
                Resolution::Resolved => verdict = verdict.or_again(),
                Resolution::Overflow => {
                    self.losses = self.losses.wrapping_add(1);
                    verdict = verdict.or_again();
                }
            }
            self.suspect_others(index, segment);
        }
        verdict
    }

    /// Whether a request that the device has may have met a refusal.
    fn may_have_met(&self, refusal: &Refusal) -> bool {
        let in_flight = self.entries.iter().filter(|entry| entry.is_in_flight());
        in_flight.flat_map(|entry| &entry.segments).any(|segment| refusal.is_of(&segment.range(), segment.access()))
    }

    /// A record of a fault is of a page, and was just taken: other requests that the device has may have met the same
    /// fault, and will find no record of it.
    fn suspect_others(&mut self, index: usize, segment: Segment) {
        let lost = self.losses.wrapping_sub(1);
        let others =
            self.entries.iter_mut().enumerate().filter(|(other, entry)| *other != index && entry.is_in_flight());
        for (_, other) in others {
            if other.segments.iter().any(|theirs| theirs.shares_page(&segment)) {
                other.losses = lost;
            }
        }
    }

    /// Hands a request over once more, if it may; whether it did.
    fn again(&mut self, index: usize) -> bool {
        let tries = self.entries[index].tries;
        self.resubmitted += 1;
        let outcome = if tries < MAX_TRIES { self.hand_over(index) } else { Err(RequestError::TooManyFaults(tries)) };
        if let Err(error) = outcome {
            self.entries[index].state = RequestState::Over(Err(error));
        }
        outcome.is_ok()
    }

    fn hand_over(&mut self, index: usize) -> Result<(), RequestError> {
        let (header, status) = self.frame_segments(index);
        self.write_frame(index);
        let entry = &mut self.entries[index];
        let framed = entry.frame != RequestFrame::None;
        let mut chain: Vec<Segment, { MAX_SEGMENTS + 2 }> = Vec::new();
        // There is room for all of them, by the sizes above.
        chain.extend(framed.then_some(header));
        chain.extend(entry.segments.iter().copied());
        chain.extend(framed.then_some(status));
        let head = self.queue.submit(&chain)?;
        self.owners[head.index()] = index as u8;
        (entry.state, entry.tries, entry.losses) = (RequestState::InFlight, entry.tries + 1, self.losses);
        Ok(())
    }

    fn frame_segments(&self, index: usize) -> (Segment, Segment) {
        let header = self.frames_address + (index * FRAME_BYTES) as u64;
        (
            Segment { address: header, bytes: HEADER_BYTES as u32, flow: Flow::ToDevice },
            Segment { address: header + HEADER_BYTES as u64, bytes: 1, flow: Flow::FromDevice },
        )
    }

    fn write_frame(&mut self, index: usize) {
        let RequestFrame::Header(header) = self.entries[index].frame else { return };
        // SAFETY: the frame of one of the requests, which the device does not have now.
        unsafe {
            let at = self.frames.add(index * FRAME_BYTES);
            at.cast::<[u8; HEADER_BYTES]>().write_volatile(header);
            at.add(HEADER_BYTES).write_volatile(NO_STATUS);
        }
    }

    fn status(&self, index: usize) -> u8 {
        if self.entries[index].frame == RequestFrame::None {
            return NO_STATUS;
        }
        // SAFETY: as for `write_frame`.
        unsafe { self.frames.add(index * FRAME_BYTES + HEADER_BYTES).read_volatile() }
    }
}

/// The verdict on a request that came back, by its faults.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Complete,
    Again,
    Failed(FaultError),
}

impl Verdict {
    /// Once more at least.
    fn or_again(self) -> Self {
        if self == Self::Complete { Self::Again } else { self }
    }
}
