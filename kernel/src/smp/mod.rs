//! CPUs: the state of each, and how they are started, called and stopped.
//!
//! - [`Cpu`]: what belongs to one of them
//! - [`bring_up`]: from PSCI or a spin table to the idle loop, held in between until the boot CPU knows what all can
//!   do
//! - [`mod@call`]: a function on other CPUs, to its end
//! - [`park_others`]: stopped for a moment
//! - [`stop_others`]: for the end of the machine

pub mod bring_up;
mod call;
pub(crate) mod cpu;
mod park;
mod parts;
mod set;
#[cfg(test)]
mod tests;

use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;

use granule_arch::{barrier, interrupts, wait};

use crate::chip::interrupt::{self, InterruptError};
use crate::chip::timer::Deadline;
use crate::platform::{Interrupt, Trigger};

pub use call::{CallFunction, call};
pub use cpu::*;
pub use park::{OthersParked, may_park_others, park_others};
pub use set::CpuSet;

/// How long [`stop_others`] waits for CPUs that may never answer, because they spin with interrupts masked. As long as
/// Linux's `smp_send_stop`: a CPU of a virtual machine may stand still for a while.
const STOP_PATIENCE: Duration = Duration::from_secs(1);

/// Interrupts that CPUs send each other: the GIC's SGIs of these numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ipi {
    /// There is a call to serve.
    Call = 0,
    /// Stop for good.
    Stop = 1,
    /// Stop for a moment.
    Park = 2,
}

/// The CPUs that exist, by their numbers.
pub(crate) struct CpuTable([AtomicPtr<Cpu>; MAX_CPUS]);

impl CpuTable {
    const fn new() -> Self {
        Self([const { AtomicPtr::new(null_mut()) }; MAX_CPUS])
    }

    fn insert(&self, cpu: &'static Cpu) {
        if let Some(slot) = self.0.get(cpu.id.0 as usize) {
            slot.store(core::ptr::from_ref(cpu).cast_mut(), Ordering::Release);
        }
    }

    #[allow(unsafe_code, reason = "references to CPUs, which live for ever")]
    fn get(&self, id: CpuId) -> Option<&'static Cpu> {
        let cpu = self.0.get(id.0 as usize)?.load(Ordering::Acquire);
        // SAFETY: null, or what `insert` put there: a reference for ever.
        unsafe { cpu.as_ref() }
    }
}

impl call::PerCpu {
    const fn new() -> Self {
        let (function, argument, pending) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU32::new(0));
        let outgoing = call::Outgoing { function, argument, pending };
        Self { outgoing, incoming: AtomicU32::new(0), served: AtomicU64::new(0) }
    }
}

static CPUS: CpuTable = CpuTable::new();
static PARKING: park::Parking = park::Parking {
    turn: AtomicU32::new(0),
    round: AtomicU32::new(0),
    answers: [const { AtomicU32::new(0) }; MAX_CPUS],
};
/// The CPUs that take calls.
static ONLINE: AtomicU32 = AtomicU32::new(1);
/// The CPUs that [`stop_others`] has seen the end of.
static STOPPED: AtomicU32 = AtomicU32::new(0);

/// The CPUs that run: they take interrupts and calls. The boot CPU always is one.
pub fn online() -> CpuSet {
    CpuSet::from_bits(ONLINE.load(Ordering::Acquire))
}

/// The state of a CPU that has been started.
pub fn cpu(id: CpuId) -> Option<&'static Cpu> {
    CPUS.get(id)
}

/// Calls `visit` with each CPU that runs, in the order of their numbers.
pub fn for_each(visit: impl FnMut(&'static Cpu)) {
    online().iter().filter_map(cpu).for_each(visit);
}

/// Stops all CPUs but this one, for good. For a panic and for turning the machine off; may come from anywhere.
///
/// Returns those that did not answer in a second: they hang with interrupts masked.
pub fn stop_others() -> CpuSet {
    // Or this CPU might be parked, by one that stops before it ends that.
    let _ = interrupts::mask();
    let others = online().without(this_cpu().id);
    for target in others.iter().filter_map(cpu) {
        // Without a controller there are no others.
        let _ = interrupt::send(target, Ipi::Stop as u32);
    }
    let deadline = Deadline::after(STOP_PATIENCE);
    loop {
        let left = others.minus(CpuSet::from_bits(STOPPED.load(Ordering::Acquire)));
        if left.is_empty() || deadline.has_passed() {
            return left;
        }
        wait::relax();
    }
}

/// Stops this CPU for good, where a [`stop_others`] that is looking for it sees it.
pub(crate) fn stop(cpu: &Cpu) -> ! {
    STOPPED.fetch_or(1 << cpu.id.0, Ordering::Release);
    halt()
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    let _ = interrupts::mask();
    loop {
        wait::wfi();
    }
}

/// Registers the interrupts that CPUs send each other.
fn connect(cpu: &Cpu) -> Result<(), InterruptError> {
    let sgi = |ipi: Ipi| Interrupt { intid: ipi as u32, trigger: Trigger::Edge };
    interrupt::register(sgi(Ipi::Call), cpu, |cpu| {
        cpu.ipis.fetch_add(1, Ordering::Relaxed);
        call::serve(cpu, &CPUS);
        // The callers wait in WFE for what `serve` has stored; the DSB has it seen before they wake.
        barrier::dsb_ishst();
        wait::sev();
    })?;
    interrupt::register(sgi(Ipi::Park), cpu, |cpu| {
        cpu.ipis.fetch_add(1, Ordering::Relaxed);
        park::answer(cpu);
    })?;
    interrupt::register(sgi(Ipi::Stop), cpu, |cpu| {
        cpu.ipis.fetch_add(1, Ordering::Relaxed);
        stop(cpu)
    })
}

/// Interrupts `target`: it looks at its calls, and at what it runs.
pub(crate) fn notify(target: &Cpu) {
    // Without a controller no other CPU has started.
    let _ = interrupt::send(target, Ipi::Call as u32);
}
