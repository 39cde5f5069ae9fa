//! What a CPU does that has nothing to do: it waits for interrupts, for threads to run, and for work that another CPU
//! hands it.
//!
//! Work runs outside of interrupts, with interrupts on, to its end; it may do what ordinary kernel code may, such as
//! [`call`](super::call()) other CPUs, but not sleep: it is what the CPU does when nothing else runs. A CPU has room for
//! one piece of work; the boot CPU takes none.

#![allow(unsafe_code, reason = "calls a function whose address another CPU stored")]

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use granule_arch::{interrupts, wait};
use thiserror::Error;

use super::{Cpu, CpuId, CpuSet, Function, notify};
#[cfg(target_os = "none")]
use crate::sched::{prepare_to_idle, run_ready};

/// The slot is empty, and the CPU idles.
const IDLE: u32 = 0;
/// A CPU is filling the slot.
const FILLING: u32 = 1;
/// The work may be taken.
const READY: u32 = 2;
/// It runs.
const RUNNING: u32 = 3;
/// The CPU does not idle: it is the boot CPU, or has not started.
const ELSEWHERE: u32 = 4;

/// A CPU's room for work: part of its [`Cpu`].
pub(super) struct Work {
    state: AtomicU32,
    /// A [`Function`], while the state is ready or running.
    function: AtomicUsize,
    argument: AtomicUsize,
}

impl Work {
    pub(super) const fn new() -> Self {
        let state = AtomicU32::new(ELSEWHERE);
        Self { state, function: AtomicUsize::new(0), argument: AtomicUsize::new(0) }
    }

    /// From here on the CPU takes work: it is about to idle.
    pub(super) fn open(&self) {
        self.state.store(IDLE, Ordering::Release);
    }
}

/// The CPU does something else, or is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("CPU {} is not idle", self.0.0)]
pub struct NotIdle(pub CpuId);

/// Has the CPU `target` run `function` with `argument` when it idles the next time, and does not wait for it. What this
/// CPU stored before is seen there.
///
/// # Errors
/// The CPU has work already, or is not one that idles.
pub fn run_on(target: CpuId, function: Function, argument: usize) -> Result<(), NotIdle> {
    let cpu = super::cpu(target).ok_or(NotIdle(target))?;
    let work = &cpu.work;
    work.state.compare_exchange(IDLE, FILLING, Ordering::Acquire, Ordering::Relaxed).map_err(|_| NotIdle(target))?;
    work.function.store(function as usize, Ordering::Relaxed);
    work.argument.store(argument, Ordering::Relaxed);
    work.state.store(READY, Ordering::Release);
    // There is no call to serve: the interrupt alone ends the WFI.
    notify(cpu);
    Ok(())
}

/// Waits until each of `cpus` has no work any more. What their work stored is seen from here on.
pub fn wait_for(cpus: CpuSet) {
    for cpu in cpus.iter().filter_map(super::cpu) {
        while !matches!(cpu.work.state.load(Ordering::Acquire), IDLE | ELSEWHERE) {
            wait::relax();
        }
    }
}

/// The idle loop.
pub(super) fn idle(cpu: &'static Cpu) -> ! {
    loop {
        // Masked from the look at the slot to the WFI: work that arrives between the two leaves its interrupt pending,
        // and a pending interrupt ends WFI even while it is masked. It is taken at `enable`.
        let _ = interrupts::mask();
        if cpu.work.state.load(Ordering::Relaxed) != READY && prepare_to_idle(cpu) {
            wait::wfi();
        }
        interrupts::enable();
        run(cpu);
        run_ready(cpu);
    }
}

/// What the boot CPU runs when no thread does.
#[cfg(target_os = "none")]
pub(crate) extern "C" fn boot_cpu_idles(_: usize) {
    idle(super::this_cpu())
}

/// The host's threads are run by the host.
#[cfg(not(target_os = "none"))]
fn prepare_to_idle(_: &Cpu) -> bool {
    true
}

/// The host's threads are run by the host.
#[cfg(not(target_os = "none"))]
fn run_ready(_: &Cpu) {}

fn run(cpu: &Cpu) {
    let work = &cpu.work;
    if work.state.compare_exchange(READY, RUNNING, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return;
    }
    // SAFETY: the slot was ready, so `run_on` put a `Function` there, and it does not change while it runs.
    let function = unsafe { core::mem::transmute::<usize, Function>(work.function.load(Ordering::Relaxed)) };
    function(cpu, work.argument.load(Ordering::Relaxed));
    work.state.store(IDLE, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{Cpu, CpuId, IDLE, NotIdle, READY, run, run_on};

    #[test]
    fn work_runs_once_with_its_argument() {
        static GOT: AtomicUsize = AtomicUsize::new(0);
        let cpu = Cpu::new(CpuId(1));
        run(&cpu);
        cpu.work.function.store(
            (|cpu: &Cpu, argument: usize| {
                GOT.fetch_add(argument + cpu.id.0 as usize, Ordering::Relaxed);
            }) as super::Function as usize,
            Ordering::Relaxed,
        );
        cpu.work.argument.store(41, Ordering::Relaxed);
        cpu.work.state.store(READY, Ordering::Relaxed);
        run(&cpu);
        run(&cpu);
        assert_eq!(GOT.load(Ordering::Relaxed), 42);
        assert_eq!(cpu.work.state.load(Ordering::Relaxed), IDLE);
    }

    #[test]
    fn a_cpu_that_is_not_there_takes_no_work() {
        assert_eq!(run_on(CpuId(9), |_, _| (), 0), Err(NotIdle(CpuId(9))));
        assert_eq!(run_on(CpuId(40), |_, _| (), 0), Err(NotIdle(CpuId(40))));
    }
}
