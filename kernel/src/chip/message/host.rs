//! The surroundings that a receiver of messages is started of.

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};

use crate::mm::OutOfMemory;
use crate::platform::Platform;
use crate::smp::cpu::Cpu;

/// The system around the receiver of messages, of which it is started.
pub trait MessageHost: Sync {
    /// The machine.
    fn platform(&self) -> &Platform;

    /// Maps registers for ever; `None` where that fails.
    fn map_registers(&self, cpu: &Cpu, registers: PhysRange) -> Option<VirtAddr>;

    /// [`TABLES_SIZE`](super::TABLES_SIZE) of memory, and where it is mapped.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn alloc_tables(&self, cpu: &Cpu) -> Result<(PhysAddr, VirtAddr), OutOfMemory>;

    /// Frees what [`Self::alloc_tables`] returned, which the receiver does not use.
    fn free_tables(&self, cpu: &Cpu, tables: PhysAddr);
}

/// The first `bytes` of `registers`, which devices write to; `None` where there are fewer, or memory or the interrupt
/// controller is at the same addresses: devices would write there.
pub(in crate::chip) fn free_registers(platform: &Platform, registers: PhysRange, bytes: u64) -> Option<PhysRange> {
    let taken = || platform.memory.iter().copied().chain(platform.interrupt_controller.registers());
    let part = PhysRange::from_size(registers.start(), bytes).filter(|part| part.end() <= registers.end())?;
    (!taken().any(|taken| taken.overlaps(part))).then_some(part)
}
