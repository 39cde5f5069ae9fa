//! A kernel that is loaded: its memory, and the way out of the loader into it.

#![allow(unsafe_code, reason = "memory of page blocks, and the kernel that is entered")]

use alloc::boxed::Box;
use alloc::vec::Vec;

use granule::Kernel;
use granule::mm::kernel::{fixmap, image};
use granule::mm::layout;
use granule::mm::page_block::BLOCK_SIZE;
use granule::platform::MAX_BOOTARGS;
use granule::smp::this_cpu;
use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_arch::{cache, mmu};
use granule_boot::BootInfo;
use granule_protocol::{Incoming, Load, Refusal};
use granule_uefi::tree::{Chosen, Source};

/// The machine as the loader found it.
pub(crate) struct Machine {
    pub(crate) boot: &'static BootInfo,
    pub(crate) kernel: &'static Kernel,
    pub(crate) device_tree: PhysRange,
}

/// Page blocks in one piece: 2 MiB, or that times a power of two.
pub(crate) struct Blocks {
    kernel: &'static Kernel,
    start: PhysAddr,
    order: u32,
}

impl Blocks {
    fn new(kernel: &'static Kernel, bytes: u64) -> Result<Self, Refusal> {
        let order = bytes.div_ceil(BLOCK_SIZE).next_power_of_two().trailing_zeros();
        let start = kernel.frames.alloc_blocks(this_cpu(), order).map_err(|_| Refusal::Memory)?;
        Ok(Self { kernel, start, order })
    }

    const fn bytes(&self) -> u64 {
        BLOCK_SIZE << self.order
    }

    /// The first `length` bytes, which are no more than there are.
    fn memory(&mut self, length: u32) -> &mut [u8] {
        debug_assert!(u64::from(length) <= self.bytes());
        // SAFETY: the blocks are this value's alone, and the linear map shows them; any byte is one of a `u8`.
        unsafe { core::slice::from_raw_parts_mut(layout::linear(self.start).as_ptr(), length as usize) }
    }

    /// Has memory hold what was stored here, and no cache any of it. The address is for those that read it without caches.
    fn leave_caches(&self) -> PhysAddr {
        // SAFETY: the linear map shows the blocks.
        unsafe { cache::clean_and_invalidate_to_memory(layout::linear(self.start), self.bytes()) };
        self.start
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        self.kernel.frames.free_blocks(this_cpu(), self.start, self.order);
    }
}

/// A load and its memory.
pub(crate) struct Loaded {
    incoming: Box<Incoming>,
    load: Load,
    kernel: Blocks,
    initrd: Blocks,
    bootargs: Vec<u8>,
}

impl Loaded {
    /// Makes room for a load.
    pub(crate) fn new(machine: &Machine, load: Load) -> Result<Self, Refusal> {
        if load.bootargs as usize > MAX_BOOTARGS {
            return Err(Refusal::Tree);
        }
        if load.memory < load.kernel {
            return Err(Refusal::Image);
        }
        let blocks = |bytes: u32| Blocks::new(machine.kernel, bytes.into());
        let (kernel, initrd) = (blocks(load.memory)?, blocks(load.initrd)?);
        let bootargs = alloc::vec![0; load.bootargs as usize];
        Ok(Self { incoming: Box::new(Incoming::new(load)), load, kernel, initrd, bootargs })
    }

    /// Takes the data of a request.
    pub(crate) fn take(&mut self, text: &str) -> Result<(), Refusal> {
        let Self { incoming, load, kernel, initrd, bootargs } = self;
        incoming.take(text, &mut [kernel.memory(load.kernel), initrd.memory(load.initrd), bootargs])
    }

    /// Checks that the kernel is whole, and makes its device tree.
    pub(crate) fn prepare(&mut self, machine: &Machine) -> Result<Whole<'_>, Refusal> {
        let Self { incoming, load, kernel, initrd, bootargs } = self;
        let parts = [&*kernel.memory(load.kernel), initrd.memory(load.initrd), bootargs];
        incoming.check(&parts)?;
        let bootargs = core::str::from_utf8(bootargs).map_err(|_| Refusal::Tree)?;
        let (start, size) = (initrd.leave_caches().0, u64::from(load.initrd));
        let given = machine.device_tree;
        // SAFETY: the boot has read it, from here, and uses it no more.
        let mapped = unsafe { fixmap::map_device_tree(given.start(), given.size() as usize) }.ok_or(Refusal::Tree)?;
        // SAFETY: mapped until the end of the function; a device tree that the boot has kept out of the memory in use.
        let blob = unsafe { core::slice::from_raw_parts(mapped.as_ptr::<u8>(), given.size() as usize) };
        let made = Source::read(blob).ok().and_then(|source| {
            let all = source.bootargs_and(bootargs);
            let initrd = (size != 0).then_some(start..start + size);
            source.choose(&Chosen { bootargs: Some(&all), initrd, ..Chosen::default() }).ok()
        });
        // SAFETY: `made` is a copy.
        unsafe { fixmap::unmap_device_tree() };
        let made = made.ok_or(Refusal::Tree)?;
        let mut tree = Blocks::new(machine.kernel, made.len() as u64)?;
        tree.memory(made.len() as u32).copy_from_slice(&made);
        Ok(Whole { kernel, tree })
    }
}

/// A kernel that was found whole, and the device tree that it gets.
pub(crate) struct Whole<'a> {
    kernel: &'a Blocks,
    tree: Blocks,
}

impl Whole<'_> {
    /// Enters the kernel.
    pub(crate) fn enter(&self, machine: &Machine) -> ! {
        let [kernel, tree] = [self.kernel, &self.tree].map(Blocks::leave_caches);
        let leave = image::physical(machine.boot, VirtAddr(mmu::leave as *const () as u64));
        // SAFETY: the address of `leave` under the identity map, which the loader has not ended.
        let leave: unsafe extern "C" fn(PhysAddr, PhysAddr, u64, u64) -> ! = unsafe { core::mem::transmute(leave.0) };
        // SAFETY: interrupts are masked since the entry, and no other CPU was started. The kernel, its initrd and its
        // tree are in memory, with all that its header asks for; the entry code has turned EL2's MMU off and left it
        // vectors.
        unsafe { leave(tree, kernel, mmu::SCTLR_MMU_OFF, machine.boot.entry_level) }
    }
}
