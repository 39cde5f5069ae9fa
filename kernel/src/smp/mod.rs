//! CPUs: the state of each, and how they are started, called and stopped.

mod cpu;

pub use cpu::{Cpu, CpuId, MAX_CPUS, this_cpu};
