//! This CPU by its registers.

#![allow(unsafe_code, reason = "reads TPIDR_EL1, and names a static for the entry code")]

use aarch64_cpu::registers::{MPIDR_EL1, Readable as _, TTBR0_EL1, Writeable as _};
use granule_arch::addr::PhysAddr;
use granule_arch::barrier;

use super::{AFFINITY, Cpu, CpuId};

/// Whether [`cpu()`](crate::smp::cpu()) finds each of them.
pub(crate) const ARE_FOUND_BY_NUMBER: bool = true;

/// The CPU that boots. The entry code puts its address into TPIDR_EL1.
#[unsafe(no_mangle)]
pub static BOOT_CPU: Cpu = Cpu::new(CpuId(0));

/// This CPU.
#[inline(always)]
pub fn this_cpu() -> &'static Cpu {
    let cpu: *const Cpu;
    // SAFETY: reads a register; every CPU's entry code sets TPIDR_EL1 to its `Cpu`, which lives for ever, before Rust
    // runs.
    unsafe {
        core::arch::asm!("mrs {0}, tpidr_el1", out(reg) cpu, options(nomem, nostack, preserves_flags, pure));
        &*cpu
    }
}

/// The affinity fields of this CPU's MPIDR_EL1.
pub(in crate::smp) fn own_affinity() -> u64 {
    MPIDR_EL1.get() & AFFINITY
}

/// Sets TTBR0_EL1, with ASID 0, which no user space gets. New walks use the new table.
pub(in crate::smp) fn set_user_root(root: PhysAddr) {
    TTBR0_EL1.set(root.0);
    barrier::isb();
}
