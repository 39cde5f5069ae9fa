//! A device as its driver sees it: where it finds memory, and whether it got there.

#![allow(unsafe_code, reason = "a page that is its driver's alone")]

mod caches;

use core::fmt;
use core::ops::Range;

use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_pgtable::PageRange;
use granule_smmuv3::{ContextDescriptor, Stream, StreamError, StreamTableEntry};

use super::domain::{Domain, with_interrupts_masked};
use super::error::{AttachError, BindError, DmaError};
use super::fault::{IsOthers, Log};
use super::iova::{Addresses, SIZE};
use super::sva::Binding;
use super::window::OwnPage;
use super::{DeviceRef, Devices, Iommu, iommus};
use crate::kernel;
use crate::mm::frame::FrameAllocator;
use crate::mm::pool::PoolBox;
use crate::mm::space::{Access, FaultError, RESERVED_END, RESERVED_START, SpaceRef};
use crate::platform::MappedId;
use crate::sched::RwSem;
use crate::smp::{Cpu, this_cpu};
use crate::sync::{IrqLock, rank};

/// Pages that a device may have in common with its driver, and for messages.
const OWN: usize = 48;

/// An address as a device puts it on the bus.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DmaAddress(pub u64);

impl DmaAddress {
    /// The address of `pointer`, a program's, for a device that is bound to the program: without its tag. CPUs ignore
    /// the top byte of a program's pointers (TBI0); a context has TBI off, as Linux's, so a tagged address is mapped to
    /// nothing. `None`: the pages of devices are there, which EL0 may not access.
    pub const fn of_pointer(pointer: VirtAddr) -> Option<Self> {
        // Bit 55 takes the tag's place, so that what is no address of a program's stays none.
        let address = (pointer.0 << 8).cast_signed().wrapping_shr(8).cast_unsigned() & pointer.0;
        let is_own = address >= RESERVED_START.0 && address < RESERVED_END.0;
        if is_own { None } else { Some(Self(address)) }
    }
}

impl fmt::Display for DmaAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The addresses that a device can put on the bus: all up to a largest one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct DmaMask(u64);

impl DmaMask {
    /// All addresses of 64 bits.
    pub const ALL: Self = Self(u64::MAX);

    /// Those of so many bits; more than 64 are 64.
    pub const fn of_bits(bits: u32) -> Self {
        match 1_u64.checked_shl(bits) {
            Some(end) => Self(end - 1),
            None => Self::ALL,
        }
    }

    /// Those of them up to `last`.
    pub const fn up_to(self, last: u64) -> Self {
        if last < self.0 { Self(last) } else { self }
    }

    /// The largest.
    pub const fn last(self) -> u64 {
        self.0
    }

    /// Whether the addresses of programs and of the window above them are among them.
    const fn has_window(self) -> bool {
        self.0 >= RESERVED_END.0 - 1
    }
}

/// Which way data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The device reads memory.
    ToDevice,
    /// The device writes memory.
    FromDevice,
    /// Both.
    Both,
}

/// The treatment of accesses of a device that is not bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Its own tables translate.
    Translated,
    /// Nothing does: it is to be given physical addresses, and not those of [`DmaDevice::map`] and
    /// [`DmaDevice::alloc_coherent`], which its own tables translate. For one that is trusted with all memory.
    Bypass,
    /// Nothing gets through, and no event is recorded.
    Abort,
}

/// How often a driver hands a transfer over before it fails. Each time its faults were served, so more than one time
/// for each page is a sign of a permanent error.
pub const MAX_TRIES: u32 = 128;

/// The result of a transfer, once its device has reported it complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a transfer that met faults is not complete, whatever its device reports"]
pub enum Resolution {
    /// It met no fault: it is complete.
    NoFault,
    /// It met faults, which have been served: it is to be submitted again.
    Resolved,
    /// Records of faults were lost: whatever is in flight may have met one, and is to be submitted again.
    Overflow,
    /// It met a fault that cannot be served.
    Failed(FaultError),
}

/// A page that a driver and its device have in common; zero at first.
///
/// Its address stays the same while the device is bound and unbound.
#[derive(Debug)]
#[must_use = "it stays taken until it is handed to `free_coherent`"]
pub struct Coherent {
    physical: PhysAddr,
    virt: VirtAddr,
    address: DmaAddress,
}

impl Coherent {
    /// Where the device finds it.
    pub const fn address(&self) -> DmaAddress {
        self.address
    }

    /// Where the driver does.
    pub const fn virt(&self) -> VirtAddr {
        self.virt
    }

    /// Bytes in it.
    pub const fn bytes(&self) -> usize {
        PAGE_SIZE
    }
}

/// A device that its driver has attached, and no other. Dropping it takes the device from memory: what it does from
/// then on is aborted. The driver has nothing in flight, and has given back its coherent pages.
pub struct DmaDevice {
    path: Path,
    /// It does not see the CPUs' caches: pages in common are Non-cacheable, and the caches have nothing of memory that
    /// is mapped for it.
    is_uncached: bool,
}

/// Pages that drivers have in common with devices without an SMMU, which no domain counts.
static DIRECT_PAGES: AtomicUsize = AtomicUsize::new(0);

pub(super) fn direct_pages() -> usize {
    DIRECT_PAGES.load(Ordering::Relaxed)
}

/// The way of a device's accesses to memory.
enum Path {
    /// Nothing.
    Direct(DmaMask),
    /// The SMMU.
    Smmu(PoolBox<AttachedDevice>),
}

/// A device with an SMMU in front of it.
pub(super) struct AttachedDevice {
    iommu: &'static Iommu,
    stream: u32,
    mask: DmaMask,
    domain: Domain,
    /// For single transfers.
    addresses: IrqLock<Addresses, { rank::DEVICE_ADDRESSES }>,
    state: RwSem<PortState>,
    /// Whether there is a binding: for readers without the lock of the state.
    bound: AtomicBool,
    faults: IrqLock<Log, { rank::DEVICE_FAULTS }>,
}

struct PortState {
    own: heapless::Vec<OwnPage, OWN>,
    mode: Mode,
    binding: Option<Binding>,
}

/// Takes the device that an SMMU knows as `stream`; `None` for one in front of which there is none. It puts out the
/// addresses of `mask`.
///
/// Sleeps: not from interrupts.
///
/// # Errors
/// [`AttachError`]; nothing has changed.
pub fn attach(cpu: &Cpu, stream: Option<MappedId>, mask: DmaMask) -> Result<DmaDevice, AttachError> {
    let Some(stream) = stream else {
        let ends = kernel().platform.memory.iter().map(|bank| bank.end().0);
        return direct(mask, ends.max().unwrap_or(0).saturating_sub(1));
    };
    match iommus().find(|iommu| iommu.phandle == Some(stream.phandle)) {
        Some(iommu) => iommu.attach_within(cpu, stream.id, mask),
        None => Err(AttachError::Unusable(stream.phandle)),
    }
}

/// A device in front of which there is nothing, on a machine whose last byte of memory is at `needed`: the device may
/// be given any of it.
pub(super) fn direct(mask: DmaMask, needed: u64) -> Result<DmaDevice, AttachError> {
    if mask.last() < needed {
        return Err(AttachError::Narrow { mask: mask.last(), needed });
    }
    Ok(DmaDevice::new(Path::Direct(mask)))
}

impl Iommu {
    /// [`Self::attach_within`] of a device that puts out any address.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed.
    pub fn attach(&'static self, cpu: &Cpu, stream: u32) -> Result<DmaDevice, AttachError> {
        self.attach_within(cpu, stream, DmaMask::ALL)
    }

    /// Takes the device that is known as `stream` and puts out the addresses of `mask`: it has tables of its own, with
    /// nothing in them.
    ///
    /// # Errors
    /// [`AttachError`]; nothing has changed.
    pub fn attach_within(&'static self, cpu: &Cpu, stream: u32, mask: DmaMask) -> Result<DmaDevice, AttachError> {
        let needed = self.transfers.0 + (SIZE - 1);
        if mask.last() < needed {
            return Err(AttachError::Narrow { mask: mask.last(), needed });
        }
        let mut devices = self.devices.write();
        if devices.iter().any(|device| device.get().stream == stream) {
            return Err(AttachError::InUse(stream));
        }
        if devices.is_full() {
            return Err(AttachError::TooMany(devices.len()));
        }
        let asid = self.asids.lock().allocate().ok_or(AttachError::NoNumber)?;
        let device = self.make_device(cpu, (stream, mask), asid).and_then(|device| {
            let attached = self.translate(stream, device.domain.root(), asid);
            attached.inspect_err(|_| device.domain.dismantle(cpu))?;
            Ok(device)
        });
        let device = device.inspect_err(|_| self.asids.lock().free(asid))?;
        let pushed = devices.push(DeviceRef(NonNull::from(&*device)));
        debug_assert!(pushed.is_ok(), "there was room");
        Ok(DmaDevice::new(Path::Smmu(device)))
    }

    // Out of line: what is made has no room in the frame of what detaches it after an error.
    #[inline(never)]
    fn make_device(
        &'static self,
        cpu: &Cpu,
        (stream, mask): (u32, DmaMask),
        asid: u16,
    ) -> Result<PoolBox<AttachedDevice>, AttachError> {
        let domain = Domain::new(cpu, self.mmu, self.frames, &self.smmu, asid)?;
        let root = domain.root();
        // In its place: one on the stack, a KiB, might have to be dropped, with the space that it could be bound to.
        let device = self.pool.try_new_with(|| AttachedDevice {
            iommu: self,
            stream,
            mask,
            domain,
            addresses: IrqLock::new(Addresses::new(self.transfers)),
            state: RwSem::new(
                rank::BINDING,
                PortState { own: heapless::Vec::new(), mode: Mode::Translated, binding: None },
            ),
            bound: AtomicBool::new(false),
            faults: IrqLock::new(Log::new()),
        });
        Ok(device.inspect_err(|_| self.frames.free(cpu, root))?)
    }

    fn detach(&self, cpu: &Cpu, device: &AttachedDevice) {
        device.unbind(cpu);
        self.abort(device);
        // The places that are left in `own` are addresses of messages: registers, not frames.
        device.state.write().own.drain(..).for_each(|own| device.give_back_place(own.at));
        device.domain.dismantle(cpu);
        self.asids.lock().free(device.domain.asid());
    }

    /// Takes a device off the list: its stream comes to nothing, and may be attached again.
    fn abort(&self, device: &AttachedDevice) {
        let mut devices = self.devices.write();
        if let Err(error) = self.set_stream(device.stream, Stream::Abort) {
            crate::log::error!("smmu: stream {:#x} could not be aborted: {error}", device.stream);
            with_interrupts_masked(|| self.smmu.shut());
        }
        // An aborted stream leaves no records, and older ones must not count against its next owner.
        self.drain(&devices);
        devices.retain(|other| other.0 != NonNull::from(device));
    }
}

/// A device as the monitor shows it.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// How the SMMU knows it.
    pub stream: u32,
    /// The ASID of its own tables.
    pub asid: u16,
    /// How many frames those are.
    pub table_frames: usize,
    /// Pages that its driver has in common with it.
    pub coherent_pages: usize,
    /// The ASID of its binding.
    pub bound: Option<u16>,
}

impl Iommu {
    /// Calls `each` for every attached device.
    pub fn for_each_device(&self, mut each: impl FnMut(&Description)) {
        for device in self.devices.read().iter().map(DeviceRef::get) {
            let state = device.state.read();
            each(&Description {
                stream: device.stream,
                asid: device.domain.asid(),
                table_frames: device.domain.table_frames(),
                coherent_pages: state.own.iter().filter(|own| own.memory != MemoryType::DeviceNGnRE).count(),
                bound: state.binding.as_ref().map(Binding::asid),
            });
        }
    }

    /// Calls `each` for every stream that is not aborted, with its entry and its context. Not under the lock: it may
    /// print, and its arguments may be old.
    pub fn for_each_stream(&self, mut each: impl FnMut(u32, &StreamTableEntry, Option<&ContextDescriptor>)) {
        let mut from = 0;
        loop {
            let next = {
                let streams = self.streams.lock();
                let next = streams.in_use().find(|(stream, _)| *stream >= from);
                next.map(|(stream, entry)| (stream, entry, streams.context(stream)))
            };
            let Some((stream, entry, context)) = next else { return };
            each(stream, &entry, context.as_ref());
            from = stream + 1;
        }
    }
}

impl AttachedDevice {
    pub(super) fn stream(&self) -> u32 {
        self.stream
    }

    pub(super) fn faults(&self) -> &IrqLock<Log, { rank::DEVICE_FAULTS }> {
        &self.faults
    }

    /// The space that it is bound to, if that has not ended.
    pub(super) fn bound_space(&self) -> Option<SpaceRef> {
        self.state.read().binding.as_ref().and_then(Binding::space)
    }

    /// Whether all that it does is refused without a record.
    fn is_cut_off(&self) -> bool {
        let state = self.state.read();
        let is_aborted = match &state.binding {
            Some(binding) => binding.space().is_none(),
            None => state.mode == Mode::Abort,
        };
        is_aborted || self.iommu.smmu.is_shut()
    }

    #[inline(always)]
    fn map(&self, cpu: &Cpu, physical: PhysAddr, bytes: usize, direction: Direction) -> Result<DmaAddress, DmaError> {
        if self.bound.load(Ordering::Relaxed) {
            return Err(DmaError::Bound);
        }
        let (first, pages) = whole_pages(physical.0, bytes);
        let start = self.addresses.lock().take(pages).ok_or(DmaError::NoAddresses(pages))?;
        let attributes = Attributes::device_domain(MemoryType::Normal, direction != Direction::ToDevice);
        let mapped = PageRange::new(start, pages as u64 * PAGE)
            .map_err(DmaError::from)
            .and_then(|range| Ok(self.domain.map(cpu, range, PhysAddr(first), attributes)?));
        match mapped {
            Ok(()) => Ok(DmaAddress(start.0 + (physical.0 - first))),
            Err(error) => {
                self.addresses.lock().give_back(start, pages);
                Err(error)
            }
        }
    }

    #[inline(always)]
    fn unmap(&self, address: DmaAddress, bytes: usize) {
        let (first, pages) = whole_pages(address.0, bytes);
        let start = VirtAddr(first);
        if let Ok(range) = PageRange::new(start, pages as u64 * PAGE) {
            self.domain.unmap(range);
            // Only now may the addresses be used again.
            self.addresses.lock().give_back(start, pages);
        }
    }

    /// Shows the device what is at `physical`, at an address that is the same whatever its tables are.
    fn show_own(&self, cpu: &Cpu, physical: PhysAddr, memory: MemoryType) -> Result<DmaAddress, DmaError> {
        let mut state = self.state.write();
        if state.own.is_full() {
            return Err(DmaError::NoAddresses(1));
        }
        let at = self.take_place().ok_or(DmaError::NoAddresses(1))?;
        let own = OwnPage { at, physical, memory };
        if let Err(error) = self.show_everywhere(cpu, &state, own) {
            self.give_back_place(at);
            return Err(error);
        }
        let pushed = state.own.push(own);
        debug_assert!(pushed.is_ok(), "there was room");
        Ok(DmaAddress(at.0))
    }

    /// An address for a page of its own: in the window, which spaces have too, or, where the device does not reach that
    /// far, among those for single transfers. Such a device is never bound.
    fn take_place(&self) -> Option<VirtAddr> {
        if self.mask.has_window() { self.iommu.window.lock().take() } else { self.addresses.lock().take(1) }
    }

    fn give_back_place(&self, at: VirtAddr) {
        match at >= RESERVED_START {
            true => self.iommu.window.lock().give_back(at),
            false => self.addresses.lock().give_back(at, 1),
        }
    }

    fn show_everywhere(&self, cpu: &Cpu, state: &PortState, own: OwnPage) -> Result<(), DmaError> {
        let range = PageRange::new(own.at, PAGE)?;
        self.domain.map(cpu, range, own.physical, Attributes::device_domain(own.memory, true))?;
        // A space that has ended shows nothing: the device is cut off.
        let shown = state
            .binding
            .as_ref()
            .and_then(Binding::space)
            .and_then(|space| space.between_changes(|pages| pages.show(cpu, own.at, own.physical, own.memory)));
        if let Some(Err(error)) = shown {
            self.domain.unmap(range);
            return Err(error.into());
        }
        Ok(())
    }

    /// Ends [`Self::show_own`]; on return the device does not reach it.
    fn hide_own(&self, cpu: &Cpu, address: DmaAddress) {
        let mut state = self.state.write();
        let Some(index) = state.own.iter().position(|own| own.at.0 == address.0) else { return };
        let own = state.own.swap_remove(index);
        if let Some(binding) = &state.binding {
            match binding.space() {
                // Nothing shows it, and the device is cut off, where the space has ended concurrently.
                Some(space) => _ = space.between_changes(|pages| pages.hide(cpu, own.at)),
                // It is ending, and the device may not have been cut off yet: the space's tables still show the page.
                None => self.iommu.cut_off(self.stream, binding.asid()),
            }
        }
        if let Ok(range) = PageRange::new(own.at, PAGE) {
            self.domain.unmap(range);
        }
        self.give_back_place(own.at);
    }

    /// Sets the treatment of the stream while it is not bound.
    fn set_unbound(&self, mode: Mode) -> Result<(), StreamError> {
        let iommu = self.iommu;
        match mode {
            Mode::Translated => iommu.translate(self.stream, self.domain.root(), self.domain.asid()),
            Mode::Bypass => iommu.set_stream(self.stream, Stream::Bypass),
            Mode::Abort => iommu.set_stream(self.stream, Stream::Abort),
        }
    }

    /// Forgets what the device has met so far. After a change of its tables, under which that would be another page's
    /// fault, the CMD_SYNC of the change is complete: no transaction uses the others, and no record of one comes later.
    fn forget_records(&self, devices: &Devices) {
        self.iommu.drain(devices);
        self.faults.lock().clear();
    }

    fn bind(&self, cpu: &Cpu, space: &SpaceRef) -> Result<(), BindError> {
        if !self.mask.has_window() {
            return Err(BindError::Narrow(self.mask.last()));
        }
        // Before the state, as in the thread that serves faults.
        let devices = self.iommu.devices.read();
        let mut state = self.state.write();
        if state.binding.is_some() {
            return Err(BindError::Bound);
        }
        state.binding = Some(self.iommu.bind(cpu, self.stream, &state.own, space)?);
        self.bound.store(true, Ordering::Relaxed);
        self.forget_records(&devices);
        Ok(())
    }

    fn unbind(&self, cpu: &Cpu) {
        let devices = self.iommu.devices.read();
        let mut state = self.state.write();
        let Some(binding) = state.binding.take() else { return };
        if let Err(error) = self.set_unbound(state.mode) {
            crate::log::error!("smmu: stream {:#x} could not be unbound: {error}", self.stream);
            with_interrupts_masked(|| self.iommu.smmu.shut());
        }
        self.iommu.unbind(cpu, self.stream, &state.own, binding);
        self.bound.store(false, Ordering::Relaxed);
        self.forget_records(&devices);
    }
}

/// The first byte and the number, at least one, of the pages that `bytes` bytes from `start` on lie in.
#[inline(always)]
const fn whole_pages(start: u64, bytes: usize) -> (u64, usize) {
    let first = start & !(PAGE - 1);
    let pages = (start - first + bytes as u64).div_ceil(PAGE);
    (first, if pages == 0 { 1 } else { pages as usize })
}

impl DmaDevice {
    const fn new(path: Path) -> Self {
        Self { path, is_uncached: false }
    }

    /// This device, which does not see the CPUs' caches: before its first use.
    #[must_use]
    pub fn without_caches(mut self) -> Self {
        self.is_uncached = true;
        self
    }

    /// One in front of which there is nothing.
    #[cfg(test)]
    pub(crate) fn without_smmu(mask: DmaMask) -> Self {
        Self::new(Path::Direct(mask))
    }

    /// How the SMMU knows it; `None` where there is none.
    pub fn stream(&self) -> Option<u32> {
        self.device().map(AttachedDevice::stream)
    }

    #[inline(always)]
    fn device(&self) -> Option<&AttachedDevice> {
        match &self.path {
            Path::Direct(_) => None,
            Path::Smmu(device) => Some(device),
        }
    }

    /// Shows the device `bytes` bytes of memory from `physical` on, until [`Self::unmap`]. It sees whole pages. Where
    /// it does not see the caches no CPU accesses the bytes until then.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is shown.
    #[inline]
    pub fn map(
        &self,
        cpu: &Cpu,
        physical: PhysAddr,
        bytes: usize,
        direction: Direction,
    ) -> Result<DmaAddress, DmaError> {
        if self.is_uncached {
            return self.map_uncached(cpu, physical, bytes, direction);
        }
        self.show(cpu, physical, bytes, direction)
    }

    /// [`Self::map`] of memory that no cache has anything of.
    #[inline(always)]
    fn show(&self, cpu: &Cpu, physical: PhysAddr, bytes: usize, direction: Direction) -> Result<DmaAddress, DmaError> {
        match self.device() {
            None => Ok(DmaAddress(physical.0)),
            Some(device) => device.map(cpu, physical, bytes, direction),
        }
    }

    /// Takes back what [`Self::map`] has shown as `address`. On return the device does not reach it any more. Where it
    /// does not see the caches, its memory has stayed valid in the linear map since: CPUs may read stale lines of other
    /// pages.
    #[inline]
    pub fn unmap(&self, _cpu: &Cpu, address: DmaAddress, bytes: usize) {
        if self.is_uncached {
            self.drop_fetched(address, bytes);
        }
        if let Some(device) = self.device() {
            device.unmap(address, bytes);
        }
    }

    fn frames(&self) -> &'static FrameAllocator {
        self.device().map_or_else(|| kernel().frames, |device| device.iommu.frames)
    }

    /// A page for `bytes` bytes that driver and device have in common.
    ///
    /// # Errors
    /// [`DmaError::TooLarge`] beyond a page; [`DmaError::OutOfMemory`], [`DmaError::NoAddresses`]; [`DmaError::Area`]
    /// where the device does not see the caches.
    pub fn alloc_coherent(&self, cpu: &Cpu, bytes: usize) -> Result<Coherent, DmaError> {
        if bytes > PAGE_SIZE {
            return Err(DmaError::TooLarge(bytes));
        }
        let frames = self.frames();
        let physical = frames.alloc_zeroed(cpu)?;
        let page = self.show_page(cpu, physical).inspect_err(|_| frames.free(cpu, physical));
        page.map(|(virt, address)| Coherent { physical, virt, address })
    }

    /// Maps a page for the driver and the device.
    fn show_page(&self, cpu: &Cpu, physical: PhysAddr) -> Result<(VirtAddr, DmaAddress), DmaError> {
        let (virt, memory) = match self.is_uncached {
            false => (self.frames().linear().address(physical), MemoryType::Normal),
            // SAFETY: the page is its driver's until `free_coherent`, which unmaps it, and used at this address.
            true => (unsafe { kernel().space.map_uncached(cpu, physical, 1) }?, MemoryType::NormalNonCacheable),
        };
        let address = match self.device() {
            None => {
                DIRECT_PAGES.fetch_add(1, Ordering::Relaxed);
                Ok(DmaAddress(physical.0))
            }
            Some(device) => device.show_own(cpu, physical, memory),
        };
        Ok((virt, address.inspect_err(|_| self.unmap_uncached(cpu, virt))?))
    }

    /// Ends the mapping of a page of a device that does not see the caches.
    fn unmap_uncached(&self, cpu: &Cpu, virt: VirtAddr) {
        if self.is_uncached {
            let unmapped = kernel().space.vunmap(cpu, virt);
            debug_assert!(unmapped.is_ok(), "{unmapped:?}");
        }
    }

    /// Gives back what [`Self::alloc_coherent`] has given.
    pub fn free_coherent(&self, cpu: &Cpu, page: Coherent) {
        match self.device() {
            None => _ = DIRECT_PAGES.fetch_sub(1, Ordering::Relaxed),
            Some(device) => device.hide_own(cpu, page.address),
        }
        self.unmap_uncached(cpu, page.virt);
        self.frames().free(cpu, page.physical);
    }

    /// The address to which the device writes its messages, so that they reach `doorbell` (MSI): it stays the same
    /// while the device is bound and unbound.
    ///
    /// # Errors
    /// [`DmaError`]; nothing is shown.
    pub fn message_address(&self, cpu: &Cpu, doorbell: PhysAddr) -> Result<DmaAddress, DmaError> {
        let device = match &self.path {
            Path::Smmu(device) => device,
            Path::Direct(mask) if doorbell.0 <= mask.last() => return Ok(DmaAddress(doorbell.0)),
            Path::Direct(_) => return Err(DmaError::Unreachable(doorbell.0)),
        };
        let page = doorbell.align_down(PAGE);
        let known = device.state.read().own.iter().find(|own| own.physical == page).map(|own| own.at.0);
        let at = match known {
            Some(at) => DmaAddress(at),
            None => device.show_own(cpu, page, MemoryType::DeviceNGnRE)?,
        };
        Ok(DmaAddress(at.0 + (doorbell.0 - page.0)))
    }

    /// Sets the treatment of the device's accesses while it is not bound: at first its own tables translate.
    ///
    /// # Errors
    /// [`DmaError`]; it is as it was. Without an SMMU there is bypass alone.
    pub fn set_mode(&self, mode: Mode) -> Result<(), DmaError> {
        let Some(device) = self.device() else {
            return if mode == Mode::Bypass { Ok(()) } else { Err(DmaError::NoSmmu) };
        };
        let mut state = device.state.write();
        if state.binding.is_none() {
            device.set_unbound(mode)?;
        }
        state.mode = mode;
        Ok(())
    }

    /// Has the device use the addresses of `space` from now on, until [`Self::unbind`]. The driver has nothing in
    /// flight. When the space ends the device is cut off, quietly, and stays bound to nothing.
    ///
    /// # Errors
    /// [`BindError`]; nothing has changed.
    pub fn bind(&self, cpu: &Cpu, space: &SpaceRef) -> Result<(), BindError> {
        let device = self.device().ok_or(BindError::NoSmmu)?;
        if self.is_uncached { Err(BindError::NotCoherent) } else { device.bind(cpu, space) }
    }

    /// Ends [`Self::bind`]; the device has its own addresses again. The driver has nothing in flight.
    pub fn unbind(&self, cpu: &Cpu) {
        if let Some(device) = self.device() {
            device.unbind(cpu);
        }
    }

    /// Whether the device is bound, perhaps to a space that has ended.
    pub fn is_bound(&self) -> bool {
        self.device().is_some_and(|device| device.bound.load(Ordering::Relaxed))
    }

    /// The space that it is bound to, if that has not ended.
    pub fn space(&self) -> Option<SpaceRef> {
        self.device()?.bound_space()
    }

    /// Whether the driver may hand the device a transfer that `access`es `range`, for a caller that may do what EL0 may.
    /// A stream is privileged for the sake of the device's own pages, so protections that are EL0's alone are checked
    /// here: at first, and in [`Self::resolve`] each time that the transfer comes back. Sleeps: not from interrupts.
    ///
    /// # Errors
    /// [`FaultError::NotAllowed`]; the transfer is not handed over.
    pub fn admit(&self, range: &Range<u64>, access: Access) -> Result<(), FaultError> {
        self.space().map_or(Ok(()), |space| space.check_el0_may(access, range))
    }

    /// Looks what became of a transfer that `access`ed `range` and that its device calls complete; while the device is
    /// bound, serves the faults that it met.
    ///
    /// Faults are known by page and kind of access, and reported once: a driver with several transfers of one page in
    /// flight takes the answer for all of them. `is_others` tells whether another transfer that the device has may have
    /// met a refusal: one that none may have met fails this transfer, and the others are to be submitted again.
    ///
    /// Sleeps: not from interrupts.
    pub fn resolve(&self, cpu: &Cpu, range: Range<u64>, access: Access, is_others: &IsOthers<'_>) -> Resolution {
        let Some(device) = self.device() else { return Resolution::NoFault };
        let resolution = device.iommu.resolve(cpu, device, (&range, access), is_others);
        if let Err(error) = self.admit(&range, access) {
            return Resolution::Failed(error);
        }
        if resolution == Resolution::NoFault && device.is_cut_off() {
            return Resolution::Failed(FaultError::NotMapped);
        }
        resolution
    }

    /// Forgets what the device was refused so far, where that belongs to no transfer of its driver's: it has nothing in
    /// flight. Sleeps.
    pub fn forget_refusals(&self) {
        if let Some(device) = self.device() {
            device.forget_records(&device.iommu.devices.read());
        }
    }

    /// Whether the device can put all addresses of `range` on the bus.
    ///
    /// # Errors
    /// [`DmaError::Unreachable`] with the last one, if not.
    pub fn reaches(&self, range: &Range<u64>) -> Result<(), DmaError> {
        let mask = match &self.path {
            Path::Direct(mask) => mask,
            Path::Smmu(device) => &device.mask,
        };
        let last = range.end.saturating_sub(1);
        if last <= mask.last() { Ok(()) } else { Err(DmaError::Unreachable(last)) }
    }
}

impl fmt::Debug for DmaDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stream() {
            Some(stream) => write!(f, "stream {stream:#x}"),
            None => f.write_str("a device without an SMMU"),
        }
    }
}

impl Drop for DmaDevice {
    fn drop(&mut self) {
        if let Some(device) = self.device() {
            // Drop has no argument for the CPU.
            device.iommu.detach(this_cpu(), device);
        }
    }
}
