//! The way to the SMMU of the machine: its registers, and memory for what it reads and writes.

#![allow(unsafe_code, reason = "registers of the SMMU, and memory that devices access")]

use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;

use granule_arch::addr::{PAGE, PhysAddr, VirtAddr};
use granule_arch::cache::clean_to_memory;
use granule_arch::memory::zero_page;
use granule_arch::{barrier, wait};
use granule_smmuv3::registers::offset::{CMDQ_CONS, CMDQ_PROD};
use granule_smmuv3::{DmaMemory, Memory, Platform, Report, Step};

use crate::chip::timer;
use crate::mm::frame::FrameAllocator;
use crate::mm::kernel::KernelSpace;
use crate::mm::kernel::vmalloc::VmallocError;
use crate::mm::page_block::BLOCK_SIZE;
use crate::mmio;
use crate::smp::{Cpu, this_cpu};
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
    /// The SMMU does not see the CPUs' caches: there is one block, Non-cacheable.
    is_uncached: bool,
}

struct Left {
    from: PhysAddr,
    end: PhysAddr,
    /// Where the CPU finds `from`.
    virt: VirtAddr,
}

impl Port {
    /// The one whose registers, both pages, are at `registers`.
    ///
    /// # Safety
    /// They are mapped there as device memory, for ever, and it is programmed here alone.
    pub unsafe fn new(registers: VirtAddr, frames: &'static FrameAllocator) -> Self {
        let (producer, consumer) = (registers + CMDQ_PROD as u64, registers + CMDQ_CONS as u64);
        let left = IrqLock::new(Left { from: PhysAddr(0), end: PhysAddr(0), virt: VirtAddr(0) });
        Self { registers, producer, consumer, frames, left, is_uncached: false }
    }

    /// Makes this the port of an SMMU that does not see the CPUs' caches. All its memory is mapped now, since no area can
    /// be mapped under the lock of its streams: 2 MiB, for queues, the table and the streams of some 40 buses.
    ///
    /// # Errors
    /// [`VmallocError`]: it has no memory, so that the SMMU can be shut, and not be used.
    pub(super) fn make_uncached(&mut self, cpu: &Cpu, space: &KernelSpace) -> Result<(), VmallocError> {
        self.is_uncached = true;
        let from = self.frames.alloc_blocks(cpu, 0)?;
        // SAFETY: the block is this port's for ever, which uses nothing but `virt`; with an error it goes back.
        let mapped = unsafe { space.map_uncached(cpu, from, BLOCK_SIZE / PAGE) };
        let virt = mapped.inspect_err(|_| self.frames.free_blocks(cpu, from, 0))?;
        self.left = IrqLock::new(Left { from, end: PhysAddr(from.0 + BLOCK_SIZE), virt });
        Ok(())
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
// barriers are those of the architecture, and so is the clean, of memory that the linear map shows. 3. Memory is
// Normal, write-back and inner shareable or Non-cacheable, where aligned 64-bit loads and stores are single-copy
// atomic, and this machine is little-endian.
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

    fn is_coherent(&self) -> bool {
        !self.is_uncached
    }

    fn clean(&self, start: PhysAddr, bytes: u64) {
        // SAFETY: page tables are in memory, which the linear map shows.
        unsafe { clean_to_memory(self.frames.linear().address(start), bytes) };
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

// SAFETY: 1. frames of a page block of this port's own, mapped for ever; each byte is handed out once, zeroed. 2. The
// linear map shows them write-back; `make_uncached` has mapped those of an SMMU that does not see the caches.
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
            if self.is_uncached {
                return None;
            }
            phys = self.frames.alloc_blocks(this_cpu(), 0).ok()?;
            *left = Left { from: phys, end: PhysAddr(phys.0 + BLOCK_SIZE), virt: self.frames.linear().address(phys) };
        }
        let start = left.virt + (phys - left.from);
        (left.from, left.virt) = (PhysAddr(phys.0 + size), start + size);
        for page in (0..size).step_by(PAGE as usize) {
            // SAFETY: the block is mapped there, writable, and these pages have no other user.
            unsafe { zero_page(start + page) };
        }
        // SAFETY: frames of this block that had no user, zeroed above, and mapped there.
        Some(unsafe { DmaMemory::new(phys, NonNull::new(start.as_ptr())?, bytes) })
    }

    /// Only an SMMU that cannot be used gives something back, at boot: its block is lost.
    unsafe fn free(&self, _memory: DmaMemory) {}
}
