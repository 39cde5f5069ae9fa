//! The kernel's own bindings of streams to spaces, and its records of what devices were refused, on the driver's own
//! SMMU, streams and event queue, and the kernel's own notifier chain.
//!
//! The SMMU does each command when it is issued, and its memory is not loom's: queues and tables have tests of their
//! own. Here the test orders the locks: of a space's areas, of its chain, of the streams, of the numbers, of the
//! events, of devices, of what binds them and of their faults.

#![allow(unsafe_code, reason = "keeps the contracts of the driver's unsafe traits on memory of the test")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_smmuv3::registers::offset;
use granule_smmuv3::{Asids, DmaMemory, Memory, Platform, Probed, Report, Smmu, Stream, Streams};

use crate::mm::space::{Access, SpaceRef};
use crate::sched::RwSem;
use crate::smp::this_cpu;
use crate::sync::atomic::{Omitted, omits};
use crate::sync::{IrqLock, rank};
use crate::{lab, notifier};

#[allow(dead_code, unreachable_pub, reason = "the kernel's other modules use the rest")]
#[path = "../../src/iommu/error.rs"]
mod error;
#[allow(dead_code, unreachable_pub, reason = "the kernel's other modules use the rest")]
#[path = "../../src/iommu/fault.rs"]
mod fault;
#[allow(dead_code, unreachable_pub, reason = "the kernel's other modules use the rest")]
#[path = "../../src/iommu/sva.rs"]
mod sva;
#[allow(dead_code, reason = "no page has an address of the window here")]
#[path = "../../src/iommu/window.rs"]
mod window;

/// A replacement for the kernel's `domain`.
mod domain {
    pub(super) fn with_interrupts_masked<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
}

/// A replacement for the kernel's `notify`: it does not look at changes.
mod notify {
    use super::{Iommu, notifier};

    /// There is one way here.
    #[derive(Clone, Copy)]
    pub(super) struct NotifyMode;

    pub(super) struct Notify {
        pub(super) iommu: &'static Iommu,
        pub(super) stream: u32,
        pub(super) asid: u16,
        #[allow(dead_code, reason = "there is one way")]
        pub(super) notify_mode: NotifyMode,
    }

    impl notifier::Subscriber for Notify {
        fn release(&self) {
            self.iommu.cut_off(self.stream, self.asid);
            assert_ne!(self.iommu.asids.lock().in_use(), 0, "the number of a call that runs is free");
        }
    }
}

/// A replacement for the kernel's `device`: the lock of a device's state, and its faults.
mod device {
    use super::fault::Log;
    use super::{Binding, STREAM};
    use crate::mm::space::{FaultError, SpaceRef};
    use crate::sched::RwSem;
    use crate::sync::{IrqLock, rank};

    /// As the kernel's.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub enum Resolution {
        /// It met no fault: it is complete.
        NoFault,
        /// It met faults, which have been served: it is to be submitted again.
        Resolved,
        /// Records of faults were lost.
        Overflow,
        /// It met a fault that cannot be served.
        Failed(FaultError),
    }

    pub(super) struct AttachedDevice {
        pub(super) state: RwSem<Option<Binding>>,
        faults: IrqLock<Log, { rank::DEVICE_FAULTS }>,
    }

    impl AttachedDevice {
        pub(super) fn new() -> Self {
            Self { state: RwSem::new(rank::BINDING, None), faults: IrqLock::new(Log::new()) }
        }

        pub(super) fn stream(&self) -> u32 {
            STREAM
        }

        pub(super) fn faults(&self) -> &IrqLock<Log, { rank::DEVICE_FAULTS }> {
            &self.faults
        }

        pub(super) fn bound_space(&self) -> Option<SpaceRef> {
            self.state.read().as_ref().and_then(Binding::space)
        }
    }
}

/// A device in the list.
struct DeviceRef(AttachedDevice);

impl DeviceRef {
    fn get(&self) -> &AttachedDevice {
        &self.0
    }
}

type Devices = [DeviceRef; 1];

use device::AttachedDevice;
pub use device::Resolution;
pub use error::BindError;
use notify::NotifyMode;
use sva::{Binding, Needs};

/// The one stream that is used.
const STREAM: u32 = 1;
/// The page that the device is refused.
const PAGE: VirtAddr = VirtAddr(0x40_0000);
/// The number and the root of the device's own tables.
const OWN: (PhysAddr, u16) = (PhysAddr(0x9000), 200);

/// An SMMU with four streams, of which a device has one.
pub struct Iommu {
    smmu: Smmu<Port>,
    streams: IrqLock<Streams<Port>, { rank::STREAMS }>,
    asids: IrqLock<Asids, { rank::DEVICE_ADDRESSES }>,
    events: IrqLock<fault::Queue, { rank::EVENTS }>,
    counters: fault::FaultCounters,
    devices: RwSem<Devices>,
    needs: Needs,
    notify_mode: NotifyMode,
}

impl Iommu {
    /// A device that its own tables translate.
    ///
    /// # Panics
    /// The SMMU cannot be used.
    pub fn new() -> &'static Self {
        let Probed { smmu, streams, events, asids } = granule_smmuv3::probe(Port::default()).expect("it can be used");
        let needs = Needs { address_bits: 48, output_bits: 40, size_changes: true, memory_types: 0 };
        let iommu: &'static Self = Box::leak(Box::new(Self {
            smmu,
            streams: IrqLock::new(streams),
            asids: IrqLock::new(asids),
            events: IrqLock::new(fault::Queue::new(events)),
            counters: fault::FaultCounters::default(),
            devices: RwSem::new(rank::ATTACHED, [DeviceRef(AttachedDevice::new())]),
            needs,
            notify_mode: NotifyMode,
        }));
        iommu.translate(STREAM, OWN.0, OWN.1).expect("there is memory");
        iommu
    }

    /// Binds the device to `space`.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind_device(&'static self, space: &SpaceRef) -> Result<(), BindError> {
        let devices = self.devices.read();
        let device = devices[0].get();
        let mut state = device.state.write();
        if omits(Omitted::StateLock) {
            drop(state);
            let binding = self.bind(this_cpu(), STREAM, &[], space)?;
            state = device.state.write();
            *state = Some(binding);
            drop(state);
        } else {
            *state = Some(self.bind(this_cpu(), STREAM, &[], space)?);
        }
        self.drain(&devices);
        device.faults().lock().clear();
        Ok(())
    }

    /// Ends that.
    ///
    /// # Panics
    /// It is not bound.
    pub fn unbind_device(&self) {
        let devices = self.devices.read();
        let device = devices[0].get();
        let mut state = device.state.write();
        let binding = state.take().expect("it is bound");
        let own_tables = || self.translate(STREAM, OWN.0, OWN.1).expect("there is memory");
        if omits(Omitted::StreamFirst) {
            self.unbind(this_cpu(), STREAM, &[], binding);
            own_tables();
        } else {
            own_tables();
            self.unbind(this_cpu(), STREAM, &[], binding);
        }
        self.drain(&devices);
        device.faults().lock().clear();
    }

    /// The device is refused a write to a page.
    pub fn refuse(&self) {
        // SAFETY: the test's own event; no register is written.
        unsafe { self.smmu.platform() }.record();
    }

    /// The work of the thread that serves faults, when it wakes.
    pub fn serve_events(&self) {
        self.serve_all(this_cpu());
    }

    /// The work of the driver when its device reports the write of that page complete.
    pub fn complete(&self) -> Resolution {
        let devices = self.devices.read();
        self.resolve(this_cpu(), devices[0].get(), (&(PAGE.0..PAGE.0 + 8), Access::Write), &|_| false)
    }

    /// How many events came out of the queue.
    pub fn events(&self) -> u64 {
        self.fault_stats().events
    }

    /// The device is translated by tables of its own again, and no number is in use.
    ///
    /// # Panics
    /// Where that is not so.
    pub fn assert_unbound(&self) {
        let (root, asid) = OWN;
        assert_eq!(self.streams.lock().context(STREAM), Some(self.context(root, asid)), "it lost its own tables");
        assert_eq!(self.asids.lock().in_use(), 0, "a number is lost");
    }

    /// Whether the device is translated by the tables at `root`.
    pub(crate) fn walks(&self, root: PhysAddr) -> bool {
        let context = self.streams.lock().context(STREAM);
        context.is_some_and(|context| context == self.context(root, context.asid()))
    }

    /// The end of a test: no thread uses it.
    ///
    /// # Safety
    /// [`Self::new`] made it, and nothing refers to it any more.
    pub unsafe fn drop_leaked(&'static self) {
        let _ = self.set_stream(STREAM, Stream::Abort);
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(std::ptr::from_ref(self).cast_mut()) });
    }
}

/// Registers, and memory.
#[derive(Default)]
struct Port {
    registers: Mutex<BTreeMap<usize, u32>>,
    /// Where the event queue is.
    events: AtomicU64,
    memory: Mutex<Vec<(usize, Layout)>>,
}

impl Port {
    /// Writes the record of a write that found no page, and the new PROD.
    fn record(&self) {
        let mut registers = self.registers.lock().unwrap();
        let produced = registers.entry(offset::EVENTQ_PROD).or_default();
        let record = [0x10 | u64::from(STREAM) << 32, 2 << 40, PAGE.0, 0];
        let queue = self.events.load(Ordering::Relaxed) & ((1 << 52) - 1) & !0x1f;
        for (word, value) in (4 * *produced as usize..).zip(record) {
            let at: *const AtomicU64 = std::ptr::with_exposed_provenance(queue as usize + 8 * word);
            // SAFETY: a word of the event queue, which is not full: a test records few.
            unsafe { &*at }.store(value, Ordering::Relaxed);
        }
        *produced += 1;
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        for &(at, layout) in &*self.memory.lock().unwrap() {
            // SAFETY: `allocate` had it from there, and the driver of this SMMU has gone.
            unsafe { dealloc(std::ptr::with_exposed_provenance_mut(at), layout) };
        }
    }
}

// SAFETY: there is no hardware; memory is shared by atomics alone.
unsafe impl Platform for Port {
    type Word = AtomicU64;

    fn word(value: u64) -> AtomicU64 {
        AtomicU64::new(value)
    }

    fn read32(&self, offset: usize) -> u32 {
        match offset {
            // As QEMU's; but with four streams.
            offset::IDR0 => 0x0d44_101b,
            offset::IDR1 => 0x0273_0002,
            offset::IDR3 => 0x1414,
            offset::IDR5 => 0x74,
            offset::CR0ACK => self.read32(offset::CR0),
            offset::IRQ_CTRLACK => self.read32(offset::IRQ_CTRL),
            // Each command is done at once.
            offset::CMDQ_CONS => self.read32(offset::CMDQ_PROD),
            _ => self.registers.lock().unwrap().get(&offset).copied().unwrap_or(0),
        }
    }

    fn write32(&self, offset: usize, value: u32) {
        // So is an update of GBPA.
        let value = if offset == offset::GBPA { value & !(1 << 31) } else { value };
        self.registers.lock().unwrap().insert(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        panic!("the driver reads no register of 64 bits at {offset:#x}")
    }

    fn write64(&self, offset: usize, value: u64) {
        if offset == offset::EVENTQ_BASE {
            self.events.store(value, Ordering::Relaxed);
        }
    }

    fn dmb_oshst(&self) {}

    fn dmb_oshld(&self) {}

    fn clean(&self, _: PhysAddr, _: u64) {
        unreachable!("it sees the caches, as QEMU's")
    }

    fn relax(&self) {
        loom::thread::yield_now();
    }

    fn microseconds(&self) -> u64 {
        0
    }

    fn report(&self, report: &Report) {
        panic!("{report}");
    }
}

// SAFETY: zeroed memory of its own, as aligned as is asked for, until the SMMU goes.
unsafe impl Memory for Port {
    fn allocate(&self, bytes: usize, align: usize) -> Option<DmaMemory> {
        let layout = Layout::from_size_align(bytes, align).ok()?;
        // SAFETY: no part of the driver asks for nothing.
        let virt = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let at = virt.as_ptr().expose_provenance();
        self.memory.lock().unwrap().push((at, layout));
        // SAFETY: it has just been allocated.
        Some(unsafe { DmaMemory::new(PhysAddr(at as u64), virt.cast(), bytes) })
    }

    unsafe fn free(&self, _memory: DmaMemory) {}
}

/// A replacement for the kernel's spaces, as far as a binding goes: the lock of the areas, the notifiers, and
/// a root.
pub(crate) mod space {
    use std::ops::Deref;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use granule::mm::space::{Access, FaultError, FaultMode};
    use granule_arch::addr::{PhysAddr, VirtAddr};
    use granule_arch::descriptor::{Descriptor, MemoryType};

    use super::Iommu;
    use crate::Watched;
    use crate::mm::OutOfMemory;
    use crate::notifier::NotifierChain;
    use crate::sched::{RwSem, WriteGuard};
    use crate::smp::Cpu;
    use crate::sync::atomic::{Omitted, omits};

    pub(crate) const RESERVED_START: VirtAddr = VirtAddr(RESERVED_END.0 - (2 << 20));
    pub(crate) const RESERVED_END: VirtAddr = VirtAddr(1 << 48);

    const ROOT: PhysAddr = PhysAddr(0x5000);

    /// The space itself: the crate's API hands out only its reference.
    pub struct Space {
        areas: RwSem<()>,
        notifiers: NotifierChain,
        /// Under the areas' lock.
        has_device: Watched<bool>,
        /// Not loom's: it orders no thread.
        is_freed: AtomicBool,
        /// Faults that were served; the same.
        served: AtomicUsize,
    }

    /// Serves a fault.
    pub(crate) fn handle_fault(space: &Space, _: &Cpu, _: VirtAddr, _: Access) -> Result<(), FaultError> {
        space.served.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Tables that are not looked at.
    pub(crate) struct Tables;

    pub(crate) struct Found {
        pub(crate) descriptor: Descriptor,
    }

    impl Tables {
        pub(crate) fn translate(&self, _: VirtAddr) -> Option<Found> {
            None
        }
    }

    impl Space {
        pub(crate) fn tables(&self) -> Tables {
            Tables
        }

        pub(crate) fn userfault(&self, _: &Cpu, _: VirtAddr, _: Access, _: FaultMode) -> Result<(), FaultError> {
            Err(FaultError::NotMapped)
        }
    }

    /// A reference to a space.
    #[derive(Clone)]
    pub struct SpaceRef(Arc<Space>);

    /// A reference to the record of one.
    #[derive(Clone)]
    pub(crate) struct SpaceHandle(Arc<Space>);

    pub(crate) struct ReservedPages<'s> {
        space: &'s Space,
        _areas: Option<WriteGuard<'s, ()>>,
    }

    impl SpaceRef {
        /// A new space.
        #[allow(clippy::new_without_default, reason = "a test makes it, and says so")]
        pub fn new() -> Self {
            Self(Arc::new(Space {
                areas: RwSem::new(crate::sync::rank::AREAS, ()),
                notifiers: NotifierChain::default(),
                has_device: Watched::default(),
                is_freed: AtomicBool::new(false),
                served: AtomicUsize::new(0),
            }))
        }

        /// `Space::between_changes`.
        pub(crate) fn between_changes<T>(&self, work: impl FnOnce(&mut ReservedPages<'_>) -> T) -> Option<T> {
            let areas = self.0.areas.write();
            let is_released = self.0.notifiers.is_released();
            let areas = (!omits(Omitted::AreasLock)).then_some(areas);
            (!is_released).then(|| work(&mut ReservedPages { space: &self.0, _areas: areas }))
        }

        /// `Space::release`.
        ///
        /// # Panics
        /// The device of `iommu` walks the tables that are freed.
        pub fn release(&self, iommu: &Iommu) {
            let _areas = self.0.areas.write();
            self.0.notifiers.release();
            self.0.is_freed.store(true, Ordering::Relaxed);
            self.assert_not_walked(iommu);
        }

        /// Where the tables are freed, the device of `iommu` does not walk them.
        ///
        /// # Panics
        /// It does.
        pub fn assert_not_walked(&self, iommu: &Iommu) {
            let is_freed = self.0.is_freed.load(Ordering::Relaxed);
            assert!(!(is_freed && iommu.walks(ROOT)), "a device walks tables that are freed");
        }

        /// How many faults were served in it.
        pub fn served(&self) -> usize {
            self.0.served.load(Ordering::Relaxed)
        }

        /// Whether a device has claimed it, if no thread uses it any more.
        pub fn is_claimed(&self) -> bool {
            self.0.has_device.read()
        }
    }

    impl Deref for SpaceRef {
        type Target = Space;
        fn deref(&self) -> &Space {
            &self.0
        }
    }

    impl SpaceHandle {
        pub(crate) fn new(space: &SpaceRef) -> Self {
            Self(Arc::clone(&space.0))
        }

        pub(crate) fn upgrade(&self) -> Option<SpaceRef> {
            (!self.is_released()).then(|| SpaceRef(Arc::clone(&self.0)))
        }
    }

    impl Deref for SpaceHandle {
        type Target = NotifierChain;
        fn deref(&self) -> &NotifierChain {
            &self.0.notifiers
        }
    }

    impl ReservedPages<'_> {
        pub(crate) fn root(&self) -> PhysAddr {
            ROOT
        }

        pub(crate) fn claim(&mut self) -> bool {
            let is_claimed = self.space.has_device.read();
            self.space.has_device.write(true);
            !is_claimed
        }

        pub(crate) fn disclaim(&mut self) {
            self.space.has_device.write(false);
        }

        pub(crate) fn show(&mut self, _: &Cpu, _: VirtAddr, _: PhysAddr, _: MemoryType) -> Result<(), OutOfMemory> {
            Ok(())
        }

        pub(crate) fn hide(&mut self, _: &Cpu, _: VirtAddr) {}
    }
}
