//! Work for other CPUs: a kernel thread on each of them runs what a test hands it.
//!
//! Work runs with interrupts on, to its end, and may do what kernel code may. A CPU has room for one piece of work; the
//! boot CPU, which runs the tests, takes none.

#![allow(unsafe_code, reason = "calls a function whose address another CPU stored")]

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use granule::mm::OutOfMemory;
use granule::sched::{self, ThreadRef};
use granule::smp::{self, CallFunction, CpuId, CpuSet, MAX_CPUS, this_cpu};
use granule_arch::wait;
use spin::Once;

/// The slot is empty.
const IDLE: u32 = 0;
/// A CPU is filling it.
const FILLING: u32 = 1;
/// The work may be taken.
const READY: u32 = 2;
/// It runs.
const RUNNING: u32 = 3;

/// A CPU's room for work.
struct Slot {
    state: AtomicU32,
    /// A [`CallFunction`], while the state is ready or running.
    function: AtomicUsize,
    argument: AtomicUsize,
    thread: Once<ThreadRef>,
}

static SLOTS: [Slot; MAX_CPUS] = [const {
    Slot {
        state: AtomicU32::new(IDLE),
        function: AtomicUsize::new(0),
        argument: AtomicUsize::new(0),
        thread: Once::new(),
    }
}; MAX_CPUS];

/// The CPU does something else, or is not there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NotIdle(pub(crate) CpuId);

/// Starts the threads: before the first test, which would be taken to have leaked them.
pub(crate) fn init() -> Result<(), OutOfMemory> {
    extern "C" fn serve(_: usize) -> ! {
        let slot = this_cpu().id.of(&SLOTS);
        loop {
            if slot.state.compare_exchange(READY, RUNNING, Ordering::Acquire, Ordering::Relaxed).is_err() {
                sched::park();
                continue;
            }
            // SAFETY: the slot was ready, so `run_on` put a `CallFunction` there, and it does not change while it runs.
            let function =
                unsafe { core::mem::transmute::<usize, CallFunction>(slot.function.load(Ordering::Relaxed)) };
            function(this_cpu(), slot.argument.load(Ordering::Relaxed));
            slot.state.store(IDLE, Ordering::Release);
        }
    }
    for cpu in smp::online().without(this_cpu().id).iter().filter_map(smp::cpu) {
        let thread = sched::spawn_service(cpu, "work", serve)?;
        cpu.id.of(&SLOTS).thread.call_once(|| thread);
    }
    Ok(())
}

/// Has the CPU `target` run `function` with `argument`, and does not wait for it. Stores of this CPU before the call
/// are visible there.
pub(crate) fn run_on(target: CpuId, function: CallFunction, argument: usize) -> Result<(), NotIdle> {
    let slot = SLOTS.get(target.0 as usize).ok_or(NotIdle(target))?;
    let thread = slot.thread.get().ok_or(NotIdle(target))?;
    slot.state.compare_exchange(IDLE, FILLING, Ordering::Acquire, Ordering::Relaxed).map_err(|_| NotIdle(target))?;
    slot.function.store(function as usize, Ordering::Relaxed);
    slot.argument.store(argument, Ordering::Relaxed);
    slot.state.store(READY, Ordering::Release);
    thread.unpark();
    Ok(())
}

/// Waits until each of `cpus` has no work any more. The stores of their work are visible from here on.
pub(crate) fn wait_for(cpus: CpuSet) {
    for id in cpus.iter() {
        while id.of(&SLOTS).state.load(Ordering::Acquire) != IDLE {
            wait::relax();
        }
    }
}
