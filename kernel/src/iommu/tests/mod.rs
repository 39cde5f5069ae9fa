//! Devices behind an emulated SMMU, on the host: their own tables, and those of spaces.
//!
//! - `emulated`: the SMMU, as QEMU has it
//! - `allowed`: the same of an SMMU that may have kept all that the architecture lets it, at random
//! - `domain`: what a device reaches that is not bound
//! - `bound`: what one reaches that is, while its space changes and ends, and the switches of the lab
//! - `faults`: what becomes of accesses that are refused
//! - `groups`: contiguous groups, which the SMMU may have as one
//! - `owners`: events of a device's tables before, and pages that it reaches as one that is privileged
//! - `meeting`: every pair of calls that change what a stream is translated by, the second at each moment of the first
//! - `order`: what has happened at each step of a call, and what has not
//! - `shortage`: memory running out at every step
//! - `uncached`: an SMMU that does not see the CPUs' caches

mod allowed;
mod bound;
mod domain;
mod emulated;
mod faults;
mod groups;
pub(crate) mod meeting;
mod order;
mod owners;
mod shortage;
mod uncached;

use std::boxed::Box;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Protection};

use super::{DmaDevice, Iommu, NotifyMode};
use crate::mm::frame::FrameAllocator;
use crate::mm::frame::tests::leaked;
use crate::mm::kernel::mmu::{LinearView, Metal};
use crate::mm::space::{MapRequest, Placement, Populate, Sharing, Space, SpaceRef, Spaces};
use crate::smp::{Cpu, CpuId};
use emulated::{Emulated, Outcome};

/// Bus 0, device 1, function 0.
const STREAM: u32 = 8;
const READ_WRITE: Protection = Protection::READ.and(Protection::WRITE);
/// Where the tests' spaces have their pages.
const START: VirtAddr = VirtAddr(0x40_0000);

/// A machine with an SMMU, for ever.
struct Rig {
    cpu: Cpu,
    frames: &'static FrameAllocator,
    spaces: &'static Spaces,
    smmu: Emulated,
    iommu: &'static Iommu,
}

impl Rig {
    fn new(notify_mode: NotifyMode) -> Self {
        let (frames, cpu) = (leaked(16), Cpu::new(CpuId(0)));
        let mmu = Metal(LinearView { offset: frames.linear().address(PhysAddr(0)).0 });
        let spaces = Box::leak(Box::new(Spaces::new(&cpu, mmu, frames).unwrap()));
        let smmu = Emulated::new(frames);
        let iommu = Iommu::on_host(Box::new(smmu.clone()), mmu, frames, notify_mode).unwrap();
        Self { cpu, frames, spaces, smmu, iommu }
    }

    fn attach(&self) -> DmaDevice {
        self.iommu.attach(&self.cpu, STREAM).unwrap()
    }

    /// A space with so many writable pages from [`START`] on, all of them written.
    fn space(&self, pages: u64) -> SpaceRef {
        let space = self.spaces.create(&self.cpu).unwrap();
        let request = MapRequest {
            placement: Placement::Fixed(START),
            bytes: pages * PAGE,
            protection: READ_WRITE,
            sharing: Sharing::Private,
            populate: Populate::OnDemand,
        };
        space.mmap(&self.cpu, &request).unwrap();
        (0..pages).for_each(|page| space.write_bytes(&self.cpu, at(page), &[page as u8 + 1]).unwrap());
        space
    }

    /// Frames that neither pools nor the page of zeros have.
    fn used(&self) -> usize {
        self.frames.stats().used - self.spaces.kept_frames() - self.iommu.pool.stats().frames
    }

    fn read(&self, at: VirtAddr) -> Outcome {
        self.smmu.access(STREAM, at.0, false)
    }

    fn write(&self, at: VirtAddr) -> Outcome {
        self.smmu.access(STREAM, at.0, true)
    }

    /// Where the device's write would go, byte in hand.
    #[allow(unsafe_code, reason = "keeps the contracts of unsafe traits on memory of the test")]
    fn dma_write(&self, at: VirtAddr, byte: u8) -> Outcome {
        let outcome = self.write(at);
        if let Outcome::Reaches(physical) = outcome {
            // SAFETY: memory that the allocator has, whose owner this test is.
            unsafe { self.frames.linear().address(physical).as_ptr::<u8>().write_volatile(byte) };
        }
        outcome
    }
}

/// Page `page` of a test's space.
fn at(page: u64) -> VirtAddr {
    START + page * PAGE
}

fn entry(space: &Space, page: VirtAddr) -> Descriptor {
    space.tables().translate(page).map_or(Descriptor::EMPTY, |found| found.descriptor)
}

/// No valid translation.
const UNMAPPED: Outcome = Outcome::Event(0x10);
/// Not young.
const OLD: Outcome = Outcome::Event(0x12);
/// Read-only.
const READ_ONLY: Outcome = Outcome::Event(0x13);
