//! This CPU on the host: each thread is one, and has no registers.

use core::cell::Cell;
use std::boxed::Box;

use granule_arch::addr::PhysAddr;
use granule_arch::barrier;

use super::{Cpu, CpuId};

/// Every thread is a CPU, with the same number.
pub(crate) const ARE_FOUND_BY_NUMBER: bool = false;

std::thread_local! {
    static NUMBER: Cell<u32> = const { Cell::new(0) };
}

/// This CPU, with number 0, unless a test gives it another.
pub fn this_cpu() -> &'static Cpu {
    std::thread_local! {
        static CPU: &'static Cpu = Box::leak(Box::new(Cpu::new(CpuId(NUMBER.get()))));
    }
    CPU.with(|cpu| *cpu)
}

/// Numbers the CPU that this thread is, before it asks for it: threads that allocate at the same time have different ones.
#[cfg(test)]
pub(crate) fn number_this_cpu(number: u32) {
    NUMBER.set(number);
}

/// No register has it.
pub(in crate::smp) const fn own_affinity() -> u64 {
    0
}

/// There is no table to leave.
pub(in crate::smp) fn set_user_root(_: PhysAddr) {
    barrier::isb();
}
