//! On the host: an SMMU that a test brings along.

#![allow(unsafe_code, reason = "keeps the contracts of unsafe traits on memory of the test")]

use std::boxed::Box;

use core::sync::atomic::AtomicU64;

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::MAIR;
use granule_smmuv3::{DmaMemory, Memory, Platform, ProbeError, Report, Step};

use super::{Iommu, Needs, NotifyMode, Setup, iova};
use crate::mm::frame::FrameAllocator;
use crate::mm::kernel::Machine;

/// Registers, barriers and memory of an SMMU that is a program.
pub trait Hardware: Send + Sync {
    /// [`Platform::read32`].
    fn read32(&self, offset: usize) -> u32;
    /// [`Platform::write32`].
    fn write32(&self, offset: usize, value: u32);
    /// [`Platform::read64`].
    fn read64(&self, offset: usize) -> u64;
    /// [`Platform::write64`].
    fn write64(&self, offset: usize, value: u64);
    /// [`Platform::dmb_oshst`].
    fn dmb_oshst(&self);
    /// [`Platform::dmb_oshld`].
    fn dmb_oshld(&self);
    /// [`Platform::is_coherent`].
    fn is_coherent(&self) -> bool {
        true
    }
    /// [`Platform::clean`].
    fn clean(&self, start: PhysAddr, bytes: u64);
    /// [`Platform::relax`].
    fn relax(&self);
    /// [`Platform::microseconds`].
    fn microseconds(&self) -> u64;
    /// [`Platform::report`].
    fn report(&self, report: &Report);
    /// [`Memory::allocate`], with its promises.
    fn allocate(&self, bytes: usize, align: usize) -> Option<DmaMemory>;
}

/// The way to it.
pub struct Port(pub Box<dyn Hardware>);

// SAFETY: there is no hardware; memory is shared by atomics alone, as `Hardware` requires.
unsafe impl Platform for Port {
    type Word = AtomicU64;

    fn word(value: u64) -> AtomicU64 {
        AtomicU64::new(value)
    }
    fn read32(&self, offset: usize) -> u32 {
        self.0.read32(offset)
    }
    fn write32(&self, offset: usize, value: u32) {
        self.0.write32(offset, value);
    }
    fn read64(&self, offset: usize) -> u64 {
        self.0.read64(offset)
    }
    fn write64(&self, offset: usize, value: u64) {
        self.0.write64(offset, value);
    }
    fn dmb_oshst(&self) {
        self.0.dmb_oshst();
    }
    fn dmb_oshld(&self) {
        self.0.dmb_oshld();
    }
    fn is_coherent(&self) -> bool {
        self.0.is_coherent()
    }
    fn clean(&self, start: PhysAddr, bytes: u64) {
        self.0.clean(start, bytes);
    }
    fn relax(&self) {
        self.0.relax();
    }
    fn microseconds(&self) -> u64 {
        self.0.microseconds()
    }
    fn report(&self, report: &Report) {
        self.0.report(report);
    }
    fn leaves_out(&self, step: Step) -> bool {
        super::leaves_out(step)
    }
}

// SAFETY: `Hardware::allocate` has the promises.
unsafe impl Memory for Port {
    fn allocate(&self, bytes: usize, align: usize) -> Option<DmaMemory> {
        self.0.allocate(bytes, align)
    }

    /// A test's memory goes with the test.
    unsafe fn free(&self, _memory: DmaMemory) {}
}

impl Iommu {
    /// The SMMU of `hardware`, for spaces whose tables are on `mmu` and whose frames come from `frames`. It stays.
    ///
    /// # Errors
    /// [`ProbeError`].
    #[allow(clippy::disallowed_methods, reason = "the host has memory")]
    pub fn on_host(
        hardware: Box<dyn Hardware>,
        mmu: Machine,
        frames: &'static FrameAllocator,
        notify_mode: NotifyMode,
    ) -> Result<&'static Self, ProbeError> {
        let needs = Needs { address_bits: 48, output_bits: 40, size_changes: true, memory_types: MAIR };
        let setup = Setup {
            phandle: None,
            needs,
            notify_mode,
            transfers: iova::place(None, &[]).expect("no window is in the way"),
        };
        let probed = granule_smmuv3::probe(Port(hardware))?;
        Ok(Box::leak(Box::new(Self::new(probed, mmu, frames, setup))))
    }
}
