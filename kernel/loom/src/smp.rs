//! A replacement for the kernel's `smp`: CPUs, as far as the files that are compiled here reach them.

use loom::sync::{Condvar, Mutex};

use crate::chip::timer::Timer;
use crate::mm::page_block::CurrentArena;
use crate::sched::{BriefSlot, PerCpu};
use crate::sync::NoRanks;

#[path = "../../src/smp/set.rs"]
mod set;

pub use set::CpuSet;

/// The most CPUs of a test.
pub const MAX_CPUS: usize = 2;

/// Whether [`cpu`] finds each of them.
pub(crate) const ARE_FOUND_BY_NUMBER: bool = true;

/// The number of a CPU.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CpuId(pub u32);

impl CpuId {
    /// The element of this CPU in `each`, an array with one for each CPU.
    pub fn of<T>(self, each: &[T; MAX_CPUS]) -> &T {
        &each[self.0 as usize]
    }
}

/// A CPU.
pub struct Cpu {
    /// Which it is.
    pub id: CpuId,
    sched: PerCpu,
    pub(crate) timer: Timer,
    brief: BriefSlot,
    node_arena: CurrentArena,
    interrupts: Mutex<Interrupts>,
    interrupted: Condvar,
}

/// Interrupts of a CPU from others.
#[derive(Default)]
struct Interrupts {
    is_pending: bool,
    count: usize,
    is_stopped: bool,
}

/// A replacement for a CPU's walks: none is open.
pub(crate) struct NoWalk;

impl NoWalk {
    pub(crate) fn is_open(&self) -> bool {
        false
    }
}

impl Cpu {
    /// A CPU of that number.
    pub fn new(id: u32) -> Self {
        Self {
            id: CpuId(id),
            sched: PerCpu::default(),
            timer: Timer::default(),
            brief: BriefSlot::new(CpuId(id)),
            node_arena: CurrentArena::new(),
            interrupts: Mutex::default(),
            interrupted: Condvar::new(),
        }
    }

    pub(crate) fn sched(&self) -> &PerCpu {
        &self.sched
    }

    pub(crate) fn held_ranks(&self) -> NoRanks {
        NoRanks
    }

    pub(crate) fn walk(&self) -> NoWalk {
        NoWalk
    }

    pub(crate) fn brief(&self) -> &BriefSlot {
        &self.brief
    }

    pub(crate) fn node_arena(&self) -> &CurrentArena {
        &self.node_arena
    }

    /// WFI, and the interrupt that ends it; whether the CPU is stopped.
    pub(crate) fn wait_for_interrupt(&self) -> bool {
        let mut interrupts = self.interrupts.lock().unwrap();
        while !interrupts.is_pending && !interrupts.is_stopped {
            interrupts = self.interrupted.wait(interrupts).unwrap();
        }
        interrupts.is_pending = false;
        interrupts.is_stopped
    }

    /// How often others have interrupted it.
    ///
    /// # Panics
    /// Another of loom's threads has panicked.
    pub fn interruptions(&self) -> usize {
        self.interrupts.lock().unwrap().count
    }
}

loom::lazy_static! {
    static ref TABLE: [Cpu; MAX_CPUS] = std::array::from_fn(|id| Cpu::new(id as u32));
}

/// The state of a CPU.
pub fn cpu(id: CpuId) -> Option<&'static Cpu> {
    TABLE.get(id.0 as usize)
}

/// All of them.
pub(crate) fn online() -> CpuSet {
    CpuSet::from_bits((1 << MAX_CPUS) - 1)
}

/// Interrupts `target`.
pub(crate) fn notify(target: &Cpu) {
    let mut interrupts = target.interrupts.lock().unwrap();
    interrupts.is_pending = true;
    interrupts.count += 1;
    target.interrupted.notify_one();
}

/// The end of a test: CPUs that idle stop.
///
/// # Panics
/// Another of loom's threads has panicked.
pub fn stop_all() {
    for cpu in TABLE.iter() {
        cpu.interrupts.lock().unwrap().is_stopped = true;
        cpu.interrupted.notify_one();
    }
}

/// The CPU of the running thread; the first one, with its timer, for all that have a CPU to themselves.
pub(crate) fn this_cpu() -> &'static Cpu {
    crate::sched::Sleeper::current().cpu().unwrap_or(&TABLE[0])
}
