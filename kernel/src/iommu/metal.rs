//! The way to the SMMU of the machine: its registers, and memory for what it reads and writes.

#![allow(unsafe_code, reason = "registers of the SMMU, and memory that devices access")]

use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::memory::zero_page;
use granule_arch::{barrier, wait};
use granule_smmuv3::registers::offset::{CMDQ_CONS, CMDQ_PROD};
use granule_smmuv3::{DmaMemory, Memory, Platform, Report, Step};

use crate::chip::timer;
use crate::mm::frame::FrameAllocator;
use crate::mm::page_block::BLOCK_SIZE;
use crate::mmio;
use crate::smp::this_cpu;
use crate::sync::{IrqLock, rank};

/// An SMMU of the machine.
pub struct Port {
    registers: VirtAddr,
    /// CMDQ_PROD and CMDQ_CONS, which every invalidation accesses, by one instruction each: no offset is added.
    producer: VirtAddr,
    consumer: VirtAddr,
    frames: &'static FrameAllocator,
    /// The rest of the page block that memory is taken from: it must be contiguous.
    left: IrqLock<Left, { rank::IOMMU_MEMORY }>,
}

struct Left {
    from: PhysAddr,
    end: PhysAddr,
}

impl Port {
    /// The one whose registers, both pages, are at `registers`.
    ///
    /// # Safety
    /// They are mapped there as device memory, for ever, and it is programmed here alone.
    pub(super) unsafe fn new(registers: VirtAddr, frames: &'static FrameAllocator) -> Self {
        let (producer, consumer) = (registers + CMDQ_PROD as u64, registers + CMDQ_CONS as u64);
        Self { registers, producer, consumer, frames, left: IrqLock::new(Left { from: PhysAddr(0), end: PhysAddr(0) }) }
    }

    #[inline(always)]
    fn register(&self, offset: usize) -> VirtAddr {
        match offset {
            CMDQ_PROD => self.producer,
            CMDQ_CONS => self.consumer,
            _ => self.registers + offset as u64,
        }
    }
}

// SAFETY: 1. `new` vouches for the registers; accesses are single, and in order among each other. 2. The
// barriers are those of the architecture. 3. Memory is in the linear map, Normal write-back and inner shareable, where
// aligned 64-bit atomics are single-copy atomic, and this machine is little-endian.
unsafe impl Platform for Port {
    type Word = AtomicU64;

    #[inline(always)]
    fn word(value: u64) -> AtomicU64 {
        AtomicU64::new(value)
    }

    #[inline(always)]
    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: a register of this size, by the promise of `new`.
        unsafe { mmio::read(self.register(offset)) }
    }

    #[inline(always)]
    fn write32(&self, offset: usize, value: u32) {
        // SAFETY: as above; what it does is the driver's affair.
        unsafe { mmio::write(self.register(offset), value) };
    }

    #[inline(always)]
    fn read64(&self, offset: usize) -> u64 {
        // SAFETY: as above.
        unsafe { mmio::read(self.register(offset)) }
    }

    #[inline(always)]
    fn write64(&self, offset: usize, value: u64) {
        // SAFETY: as above.
        unsafe { mmio::write(self.register(offset), value) };
    }

    #[inline(always)]
    fn dmb_oshst(&self) {
        barrier::dmb_oshst();
    }

    #[inline(always)]
    fn dmb_oshld(&self) {
        barrier::dmb_oshld();
    }

    #[inline(always)]
    fn relax(&self) {
        wait::relax();
    }

    fn microseconds(&self) -> u64 {
        timer::uptime().as_micros() as u64
    }

    fn report(&self, report: &Report) {
        crate::log::error!("smmu: {report}");
    }

    #[inline(always)]
    fn leaves_out(&self, step: Step) -> bool {
        super::leaves_out(step)
    }
}

// SAFETY: frames of a page block of this port's own, in the linear map; each byte is handed out once, zeroed.
unsafe impl Memory for Port {
    /// From a page block of 2 MiB, of which nothing comes back: memory whose address the SMMU once had stays its own.
    fn allocate(&self, bytes: usize, align: usize) -> Option<DmaMemory> {
        // Whole pages, which are what can be zeroed; alignment beyond a page's is kept by the address in the block.
        let size = (bytes as u64).checked_next_multiple_of(PAGE)?;
        let align = (align as u64).max(PAGE);
        if size > BLOCK_SIZE || align > BLOCK_SIZE {
            return None;
        }
        let mut left = self.left.lock();
        let mut phys = PhysAddr(left.from.0.next_multiple_of(align));
        if phys.0 + size > left.end.0 {
            phys = self.frames.alloc_blocks(this_cpu(), 0).ok()?;
            left.end = PhysAddr(phys.0 + BLOCK_SIZE);
        }
        left.from = PhysAddr(phys.0 + size);
        let start = self.frames.linear().address(phys);
        for page in (0..size).step_by(PAGE as usize) {
            // SAFETY: the linear map shows the block, writable, and these pages have no other user.
            unsafe { zero_page(start + page) };
        }
        // SAFETY: frames of this block that had no user, zeroed above; the linear map shows them.
        Some(unsafe { DmaMemory::new(phys, NonNull::new(start.as_ptr())?, bytes) })
    }

    /// Only an SMMU that cannot be used gives something back, at boot: its block is lost.
    unsafe fn free(&self, _memory: DmaMemory) {}
}
