//! CPUs: the state of each, and how they are started, called and stopped.

mod cpu;

#[cfg(target_os = "none")]
pub use cpu::BOOT_CPU;
pub use cpu::{Cpu, CpuId, MAX_CPUS, SecondaryBoot, this_cpu};
