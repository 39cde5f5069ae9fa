//! What stands in the place of the kernel's `smp`: CPUs, as far as the files that are compiled here reach them.

#[path = "../../src/smp/set.rs"]
mod set;

pub use set::CpuSet;

/// The most CPUs of a test.
pub const MAX_CPUS: usize = 2;

/// The number of a CPU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CpuId(pub u32);

impl CpuId {
    /// What there is of this CPU among what there is of each.
    pub fn of<T>(self, each: &[T; MAX_CPUS]) -> &T {
        &each[self.0 as usize]
    }
}

/// A CPU.
pub struct Cpu {
    /// Which it is.
    pub id: CpuId,
    /// Its threads.
    pub(crate) sched: crate::sched::PerCpu,
}

impl Cpu {
    /// A CPU of that number.
    pub fn new(id: u32) -> Self {
        Self { id: CpuId(id), sched: Default::default() }
    }
}

loom::lazy_static! {
    static ref THIS: Cpu = Cpu::new(0);
}

/// The CPU of all threads that sleep: it has one timer.
pub(crate) fn this_cpu() -> &'static Cpu {
    &THIS
}
