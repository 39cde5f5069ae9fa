//! Devices' way to memory: what a driver needs to have its device read and write, with an SMMU in front of it or not.
//!
//! A driver [`attach`]es its device and speaks to memory through the [`DmaDevice`] that it gets:
//!
//! - [`DmaDevice::alloc_coherent`]: pages that driver and device have in common, for rings
//! - [`DmaDevice::map`], [`DmaDevice::unmap`]: memory for one transfer
//! - [`DmaDevice::bind`], [`DmaDevice::unbind`]: the device uses the addresses of a process (SVA)
//! - [`DmaDevice::resolve`]: whether a transfer that is complete has met faults
//!
//! Without an SMMU a DMA address is the physical one, and a device cannot be bound. With one, a stream that no driver
//! has attached is aborted. The device tree has the SMMU in front of each device; where that one is not driven, the
//! device is refused, since nothing would keep it from any memory.
//!
//! # The way down
//! ```text
//! device      a driver's calls                    fault     events become faults of spaces, or errors of transfers
//! domain      a device's own tables, by iova      sva       a space's tables, and their notifier (notify)
//! window      pages at one address in all tables  metal     registers and memory of the SMMU      granule_smmuv3
//! ```
//!
//! Its sleeping locks are [`ATTACHED`](rank::ATTACHED) and [`BINDING`](rank::BINDING). The notifier's callbacks run
//! under locks of page tables, and only issue commands.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

#[cfg(target_os = "none")]
mod boot;
mod bus;
mod device;
mod domain;
mod error;
mod fault;
#[cfg(not(target_os = "none"))]
pub mod host;
mod iova;
#[cfg(target_os = "none")]
mod metal;
mod notify;
mod sva;
mod window;

#[cfg(target_os = "none")]
pub use boot::{init, probe};
#[cfg(not(target_os = "none"))]
pub use host::Port;
#[cfg(target_os = "none")]
pub use metal::Port;

use core::ptr::NonNull;

use granule_arch::addr::VirtAddr;
use granule_smmuv3::{Asids, Probed, Smmu, Step, Streams};
use spin::Once;

pub use bus::{BusPath, attach_behind};
pub use device::{
    Coherent, Description, Direction, DmaAddress, DmaDevice, DmaMask, MAX_TRIES, Mode, Resolution, attach,
};
pub use error::{AttachError, BindError, DmaError};
pub use fault::{FaultStats, IsOthers, Refusal};
pub use notify::NotifyMode;
pub use sva::{Needs, Unfit};

use crate::lab;
use crate::mm::frame::FrameAllocator;
use crate::mm::kernel::Machine;
use crate::mm::pool::Pool;
use crate::platform::MAX_SMMUS;
use crate::sched::RwSem;
use crate::sync::{IrqLock, rank};
use device::AttachedDevice;
use window::IovaWindow;

/// Devices that can be attached at a time.
const MOST: usize = 64;

/// An SMMU with everything that it is used for.
pub struct Iommu {
    /// The number by which the device tree refers to it.
    phandle: Option<u32>,
    smmu: Smmu<Port>,
    streams: IrqLock<Streams<Port>, { rank::STREAMS }>,
    events: IrqLock<fault::Queue, { rank::EVENTS }>,
    asids: IrqLock<Asids, { rank::DEVICE_ADDRESSES }>,
    window: IrqLock<IovaWindow, { rank::DEVICE_ADDRESSES }>,
    /// Attached devices.
    devices: RwSem<Devices>,
    pool: Pool<AttachedDevice>,
    needs: Needs,
    notify_mode: NotifyMode,
    /// The first address for single transfers.
    transfers: VirtAddr,
    mmu: Machine,
    frames: &'static FrameAllocator,
    counters: fault::FaultCounters,
}

type Devices = heapless::Vec<DeviceRef, MOST>;

/// A device in the list, which leaves it before it goes.
struct DeviceRef(NonNull<AttachedDevice>);

// SAFETY: devices are shared by every CPU, and in the list only while they are there.
#[allow(unsafe_code, reason = "shared between CPUs")]
unsafe impl Send for DeviceRef {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "shared between CPUs")]
unsafe impl Sync for DeviceRef {}

impl DeviceRef {
    #[allow(unsafe_code, reason = "references to devices, which leave the list before they end")]
    fn get(&self) -> &AttachedDevice {
        // SAFETY: a device leaves the list, which takes the list's lock, before it goes.
        unsafe { self.0.as_ref() }
    }
}

/// Those that are driven, each at the place that its description has.
static IOMMUS: [Once<Iommu>; MAX_SMMUS] = [const { Once::new() }; MAX_SMMUS];

/// The SMMUs of this machine that are driven, in the order of the device tree.
pub fn iommus() -> impl Iterator<Item = &'static Iommu> {
    IOMMUS.iter().filter_map(Once::get)
}

/// The first of [`iommus`].
pub fn iommu() -> Option<&'static Iommu> {
    iommus().next()
}

/// Frames that are kept for devices, with the tables of attached ones: for accounts of frames by owner.
pub fn kept_frames() -> usize {
    let mut frames = 0;
    for iommu in iommus() {
        frames += iommu.pool.stats().frames;
        iommu.for_each_device(|device| frames += device.table_frames);
    }
    frames
}

/// Pages that drivers have in common with devices: for the same accounts.
pub fn coherent_pages() -> usize {
    let mut pages = device::direct_pages();
    for iommu in iommus() {
        iommu.for_each_device(|device| pages += device.coherent_pages);
    }
    pages
}

/// ASIDs of all SMMUs that are in use: for accounts.
pub fn asids_in_use() -> usize {
    iommus().map(|iommu| iommu.asids.lock().in_use()).sum()
}

impl Iommu {
    /// Makes an SMMU that was just taken into use: nothing is attached.
    fn new(probed: Probed<Port>, mmu: Machine, frames: &'static FrameAllocator, setup: Setup) -> Self {
        let Probed { smmu, streams, events, asids } = probed;
        Self {
            phandle: setup.phandle,
            smmu,
            streams: IrqLock::new(streams),
            events: IrqLock::new(fault::Queue::new(events)),
            asids: IrqLock::new(asids),
            window: IrqLock::new(IovaWindow::new()),
            devices: RwSem::new(rank::ATTACHED, Devices::new()),
            pool: Pool::new(frames),
            needs: setup.needs,
            notify_mode: setup.notify_mode,
            transfers: setup.transfers,
            mmu,
            frames,
            counters: fault::FaultCounters::default(),
        }
    }

    /// The SMMU itself.
    pub fn smmu(&self) -> &Smmu<Port> {
        &self.smmu
    }

    /// The trigger that invalidates its TLB when a space changes.
    pub fn notify_mode(&self) -> NotifyMode {
        self.notify_mode
    }
}

/// The settings that are decided once for all devices of an SMMU.
struct Setup {
    phandle: Option<u32>,
    needs: Needs,
    notify_mode: NotifyMode,
    transfers: VirtAddr,
}

/// Whether the lab leaves out a step of the driver.
#[inline(always)]
fn leaves_out(step: Step) -> bool {
    match step {
        Step::Sync => lab::is_on!(SKIP_SYNC),
        Step::Wait => lab::is_on!(FREE_BEFORE_SYNC),
        Step::DmbBeforeProd => lab::is_on!(NO_DMB_BEFORE_PROD),
        Step::Configuration => lab::is_on!(NO_CFGI),
        Step::Turn | Step::Room | Step::Serving => false,
    }
}

#[cfg(test)]
pub(crate) mod tests;
