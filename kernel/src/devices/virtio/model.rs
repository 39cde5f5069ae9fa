//! A virtio device on the host, for tests: registers, rings and memory as the specification has them, decoded without a
//! line of the driver's; and the ways in which a device can lie.
//!
//! Memory is a window of device addresses in front of host memory. Pages of it can be taken away: what a device then
//! writes is lost, what it reads is zero, and it reports success all the same, as QEMU's devices do behind an SMMU.

#![allow(unsafe_code, reason = "rings and buffers that the device reads and writes")]

extern crate std;

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::ptr::NonNull;
use std::rc::Rc;
use std::vec::Vec;

use super::transport::{RegisterGroup, RegisterLayout, RegisterWidth, Registers};
use super::{mmio, structures};

pub(super) const PAGE: usize = 4096;

/// An access that a device was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ModelFault {
    pub(super) address: u64,
    pub(super) write: bool,
}

/// Memory as a device sees it.
pub(super) struct Memory {
    host: NonNull<u8>,
    bytes: usize,
    /// The address by which the device knows the first byte.
    first: u64,
    unmapped: RefCell<BTreeSet<u64>>,
    /// The accesses that the device was refused: the event queue.
    pub(super) faults: RefCell<VecDeque<ModelFault>>,
}

impl Memory {
    pub(super) fn new(pages: usize, first: u64) -> Rc<Self> {
        let layout = Layout::from_size_align(pages * PAGE, PAGE).unwrap();
        // SAFETY: the size is not zero.
        let host = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        let (unmapped, faults) = (RefCell::default(), RefCell::default());
        Rc::new(Self { host, bytes: pages * PAGE, first, unmapped, faults })
    }

    /// The page of this number: where the host has it, and where the device.
    pub(super) fn page(&self, number: usize) -> (NonNull<u8>, u64) {
        assert!(number * PAGE < self.bytes);
        // SAFETY: inside the allocation.
        (unsafe { self.host.add(number * PAGE) }, self.first + (number * PAGE) as u64)
    }

    pub(super) fn set_mapped(&self, number: usize, mapped: bool) {
        let page = self.page(number).1;
        let mut unmapped = self.unmapped.borrow_mut();
        if mapped {
            unmapped.remove(&page)
        } else {
            unmapped.insert(page)
        };
    }

    fn reach(&self, address: u64, write: bool) -> Option<*mut u8> {
        let offset = address.wrapping_sub(self.first);
        let is_there = offset < self.bytes as u64 && !self.unmapped.borrow().contains(&(address & !0xfff));
        if !is_there {
            self.faults.borrow_mut().push_back(ModelFault { address, write });
            return None;
        }
        // SAFETY: inside the allocation.
        Some(unsafe { self.host.as_ptr().add(offset as usize) })
    }

    pub(super) fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let byte = |at: usize| {
            // SAFETY: a byte of the allocation, which the driver accesses by volatile accesses of this thread alone.
            self.reach(address + at as u64, false).map_or(0, |byte| unsafe { byte.read_volatile() })
        };
        std::array::from_fn(byte)
    }

    pub(super) fn write(&self, address: u64, bytes: &[u8]) {
        for (at, value) in bytes.iter().enumerate() {
            if let Some(byte) = self.reach(address + at as u64, true) {
                // SAFETY: as for `read`.
                unsafe { byte.write_volatile(*value) };
            }
        }
    }

    fn read16(&self, address: u64) -> u16 {
        u16::from_le_bytes(self.read(address))
    }

    pub(super) fn read32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.read(address))
    }

    pub(super) fn read64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.read(address))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.host.as_ptr(), Layout::from_size_align(self.bytes, PAGE).unwrap()) };
    }
}

/// A piece of a chain: address, size, and whether the device may write it.
pub(super) type Piece = (u64, u32, bool);

/// A chain that the driver has handed over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    pub(super) head: u16,
    pub(super) pieces: Vec<Piece>,
}

impl Chain {
    /// Bytes that the device may write.
    pub(super) fn room(&self) -> u32 {
        self.pieces.iter().filter(|piece| piece.2).map(|piece| piece.1).sum()
    }
}

/// The device's side of a split queue (2.7).
#[derive(Clone, Default)]
pub(super) struct DeviceQueue {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    pub(super) taken: u16,
    pub(super) returned: u16,
}

impl DeviceQueue {
    /// The chains that the driver has handed over since the last look.
    pub(super) fn fetch(&mut self, memory: &Memory) -> Vec<Chain> {
        let mut chains = Vec::new();
        let index = memory.read16(self.available + 2);
        while self.taken != index {
            let place = u64::from(self.taken % self.size);
            let head = memory.read16(self.available + 4 + 2 * place);
            chains.push(Chain { head, pieces: self.pieces(memory, head) });
            self.taken = self.taken.wrapping_add(1);
        }
        chains
    }

    /// The driver's index, and the chain at the place of the next one, whether that is handed over or not.
    pub(super) fn peek(&self, memory: &Memory) -> (u16, Chain) {
        let head = memory.read16(self.available + 4 + 2 * u64::from(self.taken % self.size));
        (memory.read16(self.available + 2), Chain { head, pieces: self.pieces(memory, head) })
    }

    fn pieces(&self, memory: &Memory, head: u16) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut index = head;
        loop {
            assert!(index < self.size && pieces.len() < usize::from(self.size), "a chain without an end");
            let descriptor = self.descriptors + 16 * u64::from(index);
            let flags = memory.read16(descriptor + 12);
            assert_eq!(flags & !3, 0, "flags that were not negotiated");
            pieces.push((memory.read64(descriptor), memory.read32(descriptor + 8), flags & 2 != 0));
            if flags & 1 == 0 {
                return pieces;
            }
            index = memory.read16(descriptor + 14);
        }
    }

    /// Hands something back, whether it is a chain or not.
    pub(super) fn give_back(&mut self, memory: &Memory, id: u32, written: u32) {
        self.set_element(memory, self.returned, id, written);
        self.set_index(memory, self.returned.wrapping_add(1));
    }

    /// Writes the element that belongs to `index`.
    pub(super) fn set_element(&self, memory: &Memory, index: u16, id: u32, written: u32) {
        let element = self.used + 4 + 8 * u64::from(index % self.size);
        memory.write(element, &id.to_le_bytes());
        memory.write(element + 4, &written.to_le_bytes());
    }

    /// Moves the index of the used ring to any value.
    pub(super) fn set_index(&mut self, memory: &Memory, index: u16) {
        self.returned = index;
        memory.write(self.used + 2, &index.to_le_bytes());
    }

    /// Whether the driver has interrupts off.
    pub(super) fn is_quiet(&self, memory: &Memory) -> bool {
        memory.read16(self.available) & 1 != 0
    }
}

/// A device whose registers are these (4.1.4.3), with one queue and eight bytes of configuration.
pub(super) struct ModelDevice {
    pub(super) offered: Cell<u64>,
    pub(super) accepted: Cell<u64>,
    pub(super) status: Cell<u8>,
    /// The status with which it answers the next reads, instead of its own: a reset that takes its time, or has no end.
    pub(super) stubborn: Cell<u32>,
    /// Features that it does not agree to, though it offers them.
    pub(super) refuses: Cell<u64>,
    pub(super) queues: Cell<u16>,
    pub(super) most: Cell<u16>,
    pub(super) notify_offset: Cell<u16>,
    pub(super) multiplier: Cell<u32>,
    pub(super) vectors: Cell<u16>,
    pub(super) vector: Cell<u16>,
    pub(super) enabled: Cell<bool>,
    pub(super) configuration: Cell<u64>,
    /// How many times its configuration changes while it is read.
    pub(super) restless: Cell<u32>,
    generation: Cell<u8>,
    selects: Cell<(u32, u32)>,
    pub(super) queue: RefCell<DeviceQueue>,
    pub(super) notified: Cell<u32>,
    pub(super) sizes: Cell<[u64; 4]>,
    /// The queue stays in use after a reset.
    pub(super) keeps_queue: Cell<bool>,
}

impl ModelDevice {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            offered: Cell::new(3 << 32 | 0xff),
            accepted: Cell::new(0),
            status: Cell::new(0x8f),
            stubborn: Cell::new(0),
            refuses: Cell::new(0),
            queues: Cell::new(1),
            most: Cell::new(256),
            notify_offset: Cell::new(0),
            multiplier: Cell::new(4),
            vectors: Cell::new(2),
            vector: Cell::new(0xffff),
            enabled: Cell::new(false),
            configuration: Cell::new(0x0123_4567_89ab_cdef),
            restless: Cell::new(0),
            generation: Cell::new(0),
            selects: Cell::new((0, 0)),
            queue: RefCell::default(),
            notified: Cell::new(0),
            sizes: Cell::new([0x38, 0x1000, 1, 8]),
            keeps_queue: Cell::new(false),
        })
    }

    fn reset(&self) {
        self.accepted.set(0);
        self.enabled.set(self.keeps_queue.get());
        self.vector.set(0xffff);
        *self.queue.borrow_mut() = DeviceQueue { size: self.most.get(), ..DeviceQueue::default() };
    }

    fn store_status(&self, value: u8) {
        if value == 0 {
            self.reset();
        }
        let agreed = self.accepted.get() & self.refuses.get() == 0 && self.accepted.get() & !self.offered.get() == 0;
        self.status.set(if agreed { value } else { value & !8 });
    }

    fn half(value: u64, high: u32) -> u32 {
        (value >> (32 * high.min(1))) as u32
    }

    /// The status, or what a stubborn device answers.
    fn answer_status(&self) -> u8 {
        if self.stubborn.get() > 0 {
            self.stubborn.set(self.stubborn.get() - 1);
            return 0x0f;
        }
        self.status.get()
    }

    fn configuration_word(&self, high: u32) -> u32 {
        if self.restless.get() > 0 {
            self.restless.set(self.restless.get() - 1);
            self.generation.set(self.generation.get().wrapping_add(1));
            self.configuration.set(self.configuration.get().rotate_left(8));
        }
        Self::half(self.configuration.get(), high)
    }

    fn accept(&self, half: u32) {
        let mut accepted = self.accepted.get();
        set_half(&mut accepted, self.selects.get().1 == 1, half);
        self.accepted.set(accepted);
    }

    fn notify(&self, queue: u32) {
        assert!(self.enabled.get() && self.status.get() & 4 != 0 && queue == 0);
        self.notified.set(self.notified.get() + 1);
    }
}

/// Replaces one half of a register.
fn set_half(value: &mut u64, high: bool, half: u32) {
    let shift = if high { 32 } else { 0 };
    *value = *value & !(0xffff_ffff << shift) | u64::from(half) << shift;
}

impl Registers for Rc<ModelDevice> {
    fn layout(&self) -> &'static RegisterLayout {
        &structures::LAYOUT
    }

    fn bytes(&self, window: RegisterGroup) -> u64 {
        let [common, notify, interrupt, device] = self.sizes.get();
        match window {
            RegisterGroup::Common => common,
            RegisterGroup::Notify => notify,
            RegisterGroup::Interrupt => interrupt,
            RegisterGroup::Device => device,
        }
    }

    fn notify_multiplier(&self) -> u32 {
        self.multiplier.get()
    }

    fn read(&self, window: RegisterGroup, offset: u64, width: RegisterWidth) -> u32 {
        assert!(offset < self.bytes(window), "{window:?} has no register at {offset:#x}");
        match (window, offset, width) {
            (RegisterGroup::Common, 0x04, RegisterWidth::Word) => {
                ModelDevice::half(self.offered.get(), self.selects.get().0)
            }
            (RegisterGroup::Common, 0x10 | 0x1a, RegisterWidth::Half) => self.vector.get().into(),
            (RegisterGroup::Common, 0x12, RegisterWidth::Half) => self.queues.get().into(),
            (RegisterGroup::Common, 0x14, RegisterWidth::Byte) => self.answer_status().into(),
            (RegisterGroup::Common, 0x15, RegisterWidth::Byte) => self.generation.get().into(),
            (RegisterGroup::Common, 0x18, RegisterWidth::Half) => self.queue.borrow().size.into(),
            (RegisterGroup::Common, 0x1c, RegisterWidth::Half) => self.enabled.get().into(),
            (RegisterGroup::Common, 0x1e, RegisterWidth::Half) => self.notify_offset.get().into(),
            (RegisterGroup::Interrupt, 0, RegisterWidth::Byte) => 1,
            (RegisterGroup::Device, 0 | 4, RegisterWidth::Word) => self.configuration_word((offset / 4) as u32),
            other => panic!("read of {other:?}"),
        }
    }

    fn write(&self, window: RegisterGroup, offset: u64, width: RegisterWidth, value: u32) {
        assert!(offset < self.bytes(window), "{window:?} has no register at {offset:#x}");
        let (device_half, driver_half) = self.selects.get();
        let mut queue = self.queue.borrow_mut();
        let vector = if value < self.vectors.get().into() { value as u16 } else { 0xffff };
        match (window, offset, width) {
            (RegisterGroup::Common, 0x00, RegisterWidth::Word) => self.selects.set((value, driver_half)),
            (RegisterGroup::Common, 0x08, RegisterWidth::Word) => self.selects.set((device_half, value)),
            (RegisterGroup::Common, 0x0c, RegisterWidth::Word) => self.accept(value),
            (RegisterGroup::Common, 0x10 | 0x1a, RegisterWidth::Half) => self.vector.set(vector),
            (RegisterGroup::Common, 0x14, RegisterWidth::Byte) => {
                drop(queue);
                self.store_status(value as u8);
            }
            (RegisterGroup::Common, 0x16, RegisterWidth::Half) => assert!(value < self.queues.get().into()),
            (RegisterGroup::Common, 0x18, RegisterWidth::Half) => queue.size = value as u16,
            (RegisterGroup::Common, 0x1c, RegisterWidth::Half) => self.enabled.set(value == 1),
            (RegisterGroup::Common, 0x20 | 0x24, RegisterWidth::Word) => {
                set_half(&mut queue.descriptors, offset == 0x24, value)
            }
            (RegisterGroup::Common, 0x28 | 0x2c, RegisterWidth::Word) => {
                set_half(&mut queue.available, offset == 0x2c, value)
            }
            (RegisterGroup::Common, 0x30 | 0x34, RegisterWidth::Word) => {
                set_half(&mut queue.used, offset == 0x34, value)
            }
            (RegisterGroup::Notify, _, RegisterWidth::Half) => self.notify(value),
            other => panic!("write of {other:?}"),
        }
    }
}

/// A device that is no function (4.2.2): the same one, with its registers in one group, each a word.
#[derive(Clone)]
pub(super) struct ModelNode {
    pub(super) device: Rc<ModelDevice>,
    /// Bytes of registers.
    pub(super) bytes: u64,
    /// Descriptors that its queue may have.
    pub(super) most: u32,
}

impl Registers for ModelNode {
    fn layout(&self) -> &'static RegisterLayout {
        &mmio::LAYOUT
    }

    fn bytes(&self, window: RegisterGroup) -> u64 {
        match window {
            RegisterGroup::Common => self.bytes,
            RegisterGroup::Device => self.device.sizes.get()[3],
            _ => 0,
        }
    }

    fn notify_multiplier(&self) -> u32 {
        panic!("there is one place for all queues")
    }

    fn read(&self, window: RegisterGroup, offset: u64, width: RegisterWidth) -> u32 {
        let device = &self.device;
        match (window, offset, width) {
            (RegisterGroup::Common, 0x10, RegisterWidth::Word) => {
                ModelDevice::half(device.offered.get(), device.selects.get().0)
            }
            (RegisterGroup::Common, 0x34, RegisterWidth::Word) => self.most,
            (RegisterGroup::Common, 0x44, RegisterWidth::Word) => device.enabled.get().into(),
            (RegisterGroup::Common, 0x70, RegisterWidth::Word) => device.answer_status().into(),
            (RegisterGroup::Common, 0xfc, RegisterWidth::Word) => device.generation.get().into(),
            (RegisterGroup::Device, 0 | 4, RegisterWidth::Word) => device.configuration_word((offset / 4) as u32),
            other => panic!("read of {other:?}"),
        }
    }

    fn write(&self, window: RegisterGroup, offset: u64, width: RegisterWidth, value: u32) {
        let (device, (device_half, driver_half)) = (&self.device, self.device.selects.get());
        assert_eq!((window, width), (RegisterGroup::Common, RegisterWidth::Word));
        let part = |part: fn(&mut DeviceQueue) -> &mut u64, high| {
            set_half(part(&mut device.queue.borrow_mut()), high, value);
        };
        match offset {
            0x14 => device.selects.set((value, driver_half)),
            0x24 => device.selects.set((device_half, value)),
            0x20 => device.accept(value),
            0x30 => assert_eq!(value, 0, "it has one queue"),
            0x38 => device.queue.borrow_mut().size = value as u16,
            0x44 => device.enabled.set(value == 1),
            0x50 => device.notify(value),
            0x70 => device.store_status(value as u8),
            0x80 | 0x84 => part(|queue| &mut queue.descriptors, offset == 0x84),
            0x90 | 0x94 => part(|queue| &mut queue.available, offset == 0x94),
            0xa0 | 0xa4 => part(|queue| &mut queue.used, offset == 0xa4),
            other => panic!("write of {other:#x}"),
        }
    }
}
