//! A split virtqueue (Virtual I/O Device, version 1.2, 2.7): the driver's side of the rings.
//!
//! Three arrays in one page that the device reads and writes: the descriptors, which have the addresses of buffers; the
//! available ring, by which the driver hands chains of descriptors over; the used ring, by which the device hands them
//! back. **Nothing that the device can write is believed**: which descriptors are free and which chain a head starts is
//! kept beside the rings and never read back from them, and each entry of the used ring is read once and checked. A
//! device that breaks the rules makes the queue [broken](DeviceError), and nothing is taken from it until it is reset.
//!
//! The holder has the queue to itself (`&mut`); the device is the only other side.

#![allow(unsafe_code, reason = "rings and buffers that the device reads and writes")]

use core::mem::offset_of;
use core::ops::Range;
use core::ptr::{NonNull, null_mut};

use granule_arch::addr::PAGE;
use granule_arch::barrier;
use thiserror::Error;

use crate::mm::space::Access;

/// The most descriptors that a queue has: the rings of so many are less than [`RING_BYTES`].
pub const MAX_SIZE: u16 = 64;

/// Bytes that the rings take, from a page's start on; the rest of the page is the driver's.
pub const RING_BYTES: usize = 2048;

/// VIRTQ_DESC_F_NEXT: the chain continues at `next`.
const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes the buffer; without it, it reads.
const WRITE: u16 = 2;
/// VIRTQ_AVAIL_F_NO_INTERRUPT.
const NO_INTERRUPT: u16 = 1;
/// The last descriptor of a chain, and of the list of free ones.
const NONE: u16 = u16::MAX;

/// struct virtq_desc.
#[repr(C)]
struct Descriptor {
    address: u64,
    bytes: u32,
    flags: u16,
    next: u16,
}

/// struct virtq_avail, without the field at its end that is another feature's.
#[repr(C)]
struct Available {
    flags: u16,
    index: u16,
    ring: [u16; MAX_SIZE as usize],
}

/// struct virtq_used_elem.
#[repr(C)]
struct UsedElement {
    id: u32,
    bytes: u32,
}

/// struct virtq_used.
#[repr(C)]
struct Used {
    flags: u16,
    index: u16,
    ring: [UsedElement; MAX_SIZE as usize],
}

#[repr(C)]
struct Rings {
    descriptors: [Descriptor; MAX_SIZE as usize],
    available: Available,
    /// The event index, which is not negotiated.
    unused: u16,
    used: Used,
}

const _: () = {
    // The rings are little-endian (1.4), and so is the kernel.
    assert!(cfg!(target_endian = "little"));
    assert!(size_of::<Rings>() <= RING_BYTES && MAX_SIZE.is_power_of_two());
    // 2.7: the descriptors are aligned to 16 bytes, the available ring to 2, the used ring to 4.
    assert!(offset_of!(Rings, available).is_multiple_of(2) && offset_of!(Rings, used).is_multiple_of(4));
};

/// Whether the device reads a segment or writes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// From memory to the device.
    ToDevice,
    /// From the device to memory.
    FromDevice,
}

/// A piece of memory, at the address by which the device reaches it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// Its first byte, as the device addresses it.
    pub address: u64,
    /// Its size.
    pub bytes: u32,
    /// Which side writes it.
    pub flow: Flow,
}

impl Segment {
    /// Its addresses.
    pub const fn range(&self) -> Range<u64> {
        self.address..self.address.saturating_add(self.bytes as u64)
    }

    /// The device's access to them.
    pub const fn access(&self) -> Access {
        match self.flow {
            Flow::ToDevice => Access::Read,
            Flow::FromDevice => Access::Write,
        }
    }

    /// Whether the device may meet one and the same fault in both: an access of one kind to one page.
    pub fn shares_page(&self, other: &Self) -> bool {
        let pages = |segment: &Self| {
            let last = segment.address.saturating_add(u64::from(segment.bytes).saturating_sub(1));
            (segment.address / PAGE, last / PAGE)
        };
        let ((first, last), (others_first, others_last)) = (pages(self), pages(other));
        self.flow == other.flow && first <= others_last && others_first <= last
    }
}

/// Why a chain was not handed over. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SubmitError {
    /// Not so many descriptors are free: chains that are in flight have to come back first.
    #[error("the queue is full")]
    Full,
    /// A chain has a segment, none of its segments is empty, and those that the device reads come before those that it
    /// writes (2.7.4).
    #[error("{0} segments that are no chain: there must be some, none empty, those to be written behind the others")]
    BadChain(usize),
    /// The device has broken the rules of the queue and was not reset since.
    #[error("the queue is broken")]
    Broken,
}

/// A violation of the queue's rules by the device. The queue takes nothing more from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum DeviceError {
    /// Its used index claims more chains than are in flight.
    #[error("the device has used {used} chains, of {in_flight} that it had")]
    IndexJump {
        /// By how much its index moved.
        used: u16,
        /// Chains that it had.
        in_flight: u16,
    },
    /// It returned a descriptor that starts no chain that it has.
    #[error("the device returned chain {0}, which it did not have")]
    NotInFlight(u32),
    /// It reports more bytes written than the chain has room for.
    #[error("the device reports {written} bytes written, of {room}")]
    TooLong {
        /// The bytes that it reports.
        written: u32,
        /// The bytes that it was given to write.
        room: u32,
    },
    /// It did one of these before.
    #[error("the device broke the rules of its queue before, and was not reset")]
    Broken,
}

/// A chain that the device has, by its first descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChainHead(u16);

impl ChainHead {
    /// A number below [`MAX_SIZE`], which no other chain in flight has.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A chain that the device has handed back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Which.
    pub head: ChainHead,
    /// Bytes that the device reports written, no more than there was room for.
    pub written: u32,
}

/// The driver's record of a descriptor.
#[derive(Clone, Copy)]
struct DescriptorState {
    /// The next of its chain, or of the free ones.
    next: u16,
    /// Of the first of a chain in flight: how many there are; else 0.
    chain: u16,
    /// Of the first of a chain: how many bytes the device may write.
    room: u32,
}

impl DescriptorState {
    const FREE: Self = Self { next: NONE, chain: 0, room: 0 };
}

/// A queue whose rings are in memory that the device reaches.
pub struct VirtQueue {
    /// Null before [`Self::begin`].
    rings: *mut Rings,
    /// Descriptors: a power of two. The arrays of a smaller queue are parts of those of the largest.
    size: u16,
    descriptors: [DescriptorState; MAX_SIZE as usize],
    /// The first free descriptor.
    free: u16,
    free_count: u16,
    /// Chains that the device has.
    in_flight: u16,
    /// The indices as this side last stored or read them.
    available_index: u16,
    used_index: u16,
    broken: bool,
}

// SAFETY: the rings belong to the queue, whichever CPU holds it.
unsafe impl Send for VirtQueue {}
// SAFETY: shared, it only reads them: a change needs `&mut`.
unsafe impl Sync for VirtQueue {}

/// Where a device finds the three parts of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parts {
    /// The descriptors.
    pub descriptors: u64,
    /// The available ring: the driver's.
    pub driver: u64,
    /// The used ring: the device's.
    pub device: u64,
}

impl Parts {
    /// The parts of the queue whose page the device reaches at this address.
    pub fn at(page: u64) -> Self {
        Self {
            descriptors: page + offset_of!(Rings, descriptors) as u64,
            driver: page + offset_of!(Rings, available) as u64,
            device: page + offset_of!(Rings, used) as u64,
        }
    }
}

impl VirtQueue {
    /// How large a queue is for a device that takes `most` descriptors at most; `None` for none at all.
    pub fn size_for(most: u16) -> Option<u16> {
        (most > 0).then(|| 1 << most.min(MAX_SIZE).ilog2())
    }

    /// A queue without rings, in which nothing can be. It is a place for one: [`Self::begin`]. All zeros, so that the
    /// places for devices that a machine may have take nothing of the image.
    pub const NONE: Self = Self {
        rings: null_mut(),
        size: 0,
        descriptors: [DescriptorState { next: 0, chain: 0, room: 0 }; MAX_SIZE as usize],
        free: 0,
        free_count: 0,
        in_flight: 0,
        available_index: 0,
        used_index: 0,
        broken: false,
    };

    /// Becomes an empty queue in the page at `page`, of which it takes the first [`RING_BYTES`], for a device that takes
    /// `most` descriptors at most. Chains that were in flight are forgotten.
    ///
    /// # Safety
    /// They are mapped as ordinary memory, aligned to a page, for as long as the queue is used; nothing else accesses
    /// them but the device, and that not before it has their addresses, or after it was reset.
    pub unsafe fn begin(&mut self, page: NonNull<u8>, most: u16) {
        self.rings = page.cast().as_ptr();
        // SAFETY: the caller's memory, large enough (asserted above); zeros are empty rings.
        unsafe { self.rings.write_bytes(0, 1) };
        self.size = Self::size_for(most).unwrap_or(0);
        (self.free, self.free_count, self.in_flight) = (0, self.size, 0);
        (self.available_index, self.used_index, self.broken) = (0, 0, false);
        self.descriptors = [DescriptorState::FREE; MAX_SIZE as usize];
        for (index, descriptor) in (1..self.size).zip(self.descriptors.iter_mut()) {
            descriptor.next = index;
        }
    }

    /// Chains that the device has.
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Descriptors, free or not.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors that are free.
    pub fn free_count(&self) -> u16 {
        self.free_count
    }

    /// Hands a chain over. The device may begin at once, and must where a notification follows.
    ///
    /// # Errors
    /// See [`SubmitError`].
    pub fn submit(&mut self, segments: &[Segment]) -> Result<ChainHead, SubmitError> {
        let bad = SubmitError::BadChain(segments.len());
        let count = u16::try_from(segments.len()).map_err(|_| bad)?;
        let ordered = segments.is_sorted_by_key(|segment| segment.flow == Flow::FromDevice);
        let written = segments.iter().filter(|segment| segment.flow == Flow::FromDevice).map(|segment| segment.bytes);
        let room = written.into_iter().try_fold(0_u32, u32::checked_add).ok_or(bad)?;
        if count == 0 || count > self.size || !ordered || segments.iter().any(|segment| segment.bytes == 0) {
            return Err(bad);
        }
        if self.broken {
            return Err(SubmitError::Broken);
        }
        if count > self.free_count {
            return Err(SubmitError::Full);
        }

        let head = self.free;
        let (mut index, mut last) = (head, head);
        for (at, segment) in segments.iter().enumerate() {
            let next = self.descriptor(index).next;
            let more = at + 1 < segments.len();
            let write = if segment.flow == Flow::FromDevice { WRITE } else { 0 };
            let (flags, link) = if more { (write | NEXT, next) } else { (write, 0) };
            let Segment { address, bytes, .. } = *segment;
            self.store_descriptor(index, Descriptor { address, bytes, flags, next: link });
            (last, index) = (index, next);
        }
        self.free = index;
        self.free_count -= count;
        self.descriptor(last).next = NONE;
        let first = self.descriptor(head);
        (first.chain, first.room) = (count, room);
        self.in_flight += 1;

        self.store_available(self.place(self.available_index), head);
        self.available_index = self.available_index.wrapping_add(1);
        // The device reads the index first: what it then reads must be there (2.7.13.3).
        barrier::dmb_oshst();
        self.store_available_index(self.available_index);
        // And the store to the device's notification register comes after the index.
        barrier::dmb_oshst();
        Ok(ChainHead(head))
    }

    /// Takes the next chain that the device has handed back; `None` while there is none.
    ///
    /// # Errors
    /// The device has broken the rules: see [`DeviceError`].
    pub fn take(&mut self) -> Result<Option<Completion>, DeviceError> {
        if self.broken {
            return Err(DeviceError::Broken);
        }
        if self.size == 0 {
            return Ok(None);
        }
        let taken = self.check_next();
        self.broken = taken.is_err();
        taken
    }

    fn check_next(&mut self) -> Result<Option<Completion>, DeviceError> {
        let used = self.load_used_index().wrapping_sub(self.used_index);
        if used == 0 {
            return Ok(None);
        }
        if used > self.in_flight {
            return Err(DeviceError::IndexJump { used, in_flight: self.in_flight });
        }
        // The device's stores before its index, those to the buffers among them, are read after the index (2.7.14).
        barrier::dmb_oshld();
        let element = self.load_used(self.place(self.used_index));
        let unknown = DeviceError::NotInFlight(element.id);
        let head = u16::try_from(element.id).ok().filter(|&head| head < self.size).ok_or(unknown)?;
        let DescriptorState { chain, room, .. } = *self.descriptor(head);
        if chain == 0 {
            return Err(unknown);
        }
        if element.bytes > room {
            return Err(DeviceError::TooLong { written: element.bytes, room });
        }
        self.free_chain(head);
        self.used_index = self.used_index.wrapping_add(1);
        self.in_flight -= 1;
        Ok(Some(Completion { head: ChainHead(head), written: element.bytes }))
    }

    /// Whether the device has handed something back, or has broken the rules.
    pub fn has_used(&self) -> bool {
        self.size > 0 && (self.broken || self.load_used_index() != self.used_index)
    }

    /// Asks the device to interrupt when it hands a chain back, or not to. It may do so all the same.
    pub fn set_interrupts(&mut self, wanted: bool) {
        let flags = if wanted { 0 } else { NO_INTERRUPT };
        // SAFETY: in the rings.
        unsafe { (&raw mut (*self.rings).available.flags).write_volatile(flags) };
        // In front of the look at the used ring that follows: either that finds the chain, or the device the flag.
        barrier::dmb_osh();
    }

    /// The driver's record of a descriptor. Links and heads are this side's own; the device's are below `size`.
    fn descriptor(&mut self, index: u16) -> &mut DescriptorState {
        &mut self.descriptors[usize::from(index)]
    }

    /// Where in a ring an index is.
    fn place(&self, index: u16) -> u16 {
        // The size is a power of two, and not zero where something was handed over.
        index & self.size.wrapping_sub(1)
    }

    fn free_chain(&mut self, head: u16) {
        let mut last = head;
        while self.descriptor(last).next != NONE {
            last = self.descriptor(last).next;
        }
        self.free_count += core::mem::replace(&mut self.descriptor(head).chain, 0);
        self.descriptor(last).next = self.free;
        self.free = head;
    }

    // Each access is volatile: the device is at these bytes at the same time.

    fn store_descriptor(&mut self, index: u16, descriptor: Descriptor) {
        // SAFETY: in the rings: an index below MAX_SIZE.
        unsafe { (&raw mut (*self.rings).descriptors[usize::from(index % MAX_SIZE)]).write_volatile(descriptor) };
    }

    fn store_available(&mut self, place: u16, head: u16) {
        // SAFETY: in the rings: a place below MAX_SIZE.
        unsafe { (&raw mut (*self.rings).available.ring[usize::from(place % MAX_SIZE)]).write_volatile(head) };
    }

    fn store_available_index(&mut self, index: u16) {
        // SAFETY: in the rings.
        unsafe { (&raw mut (*self.rings).available.index).write_volatile(index) };
    }

    fn load_used_index(&self) -> u16 {
        // SAFETY: in the rings.
        unsafe { (&raw const (*self.rings).used.index).read_volatile() }
    }

    fn load_used(&self, place: u16) -> UsedElement {
        // SAFETY: in the rings: a place below MAX_SIZE.
        unsafe { (&raw const (*self.rings).used.ring[usize::from(place % MAX_SIZE)]).read_volatile() }
    }
}
