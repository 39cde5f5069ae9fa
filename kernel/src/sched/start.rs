//! How scheduling begins: what a CPU has before its first thread, the threads for when there is none, kernel stacks.

use core::ptr::null_mut;

use granule_arch::addr::VirtAddr;
use granule_arch::{interrupts, wait};
use spin::Once;

use super::queue::{self, NEVER, PerCpu, RunQueue};
use super::thread::Thread;
use super::timeout::Timeouts;
use super::{fp, switch};
use crate::kernel;
use crate::mm::OutOfMemory;
use crate::smp::{self, Cpu, MAX_CPUS, this_cpu};
use crate::sync::IrqLock;
use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

impl PerCpu {
    pub(crate) const fn new() -> Self {
        Self {
            current: AtomicPtr::new(null_mut()),
            idle: AtomicPtr::new(null_mut()),
            queue: IrqLock::new(RunQueue::EMPTY),
            ready: AtomicU32::new(0),
            timeouts: IrqLock::new(Timeouts::new()),
            ended: AtomicPtr::new(null_mut()),
            fp_owner: AtomicPtr::new(null_mut()),
            tag_checks: AtomicU32::new(0),
            no_tables: AtomicU64::new(0),
            slice_end: AtomicU64::new(NEVER),
            next_timeout: AtomicU64::new(NEVER),
        }
    }
}

/// The CPUs that idle, or are about to.
pub(super) static IDLE: AtomicU32 = AtomicU32::new(0);

/// A thread for each CPU that runs when no other does. Those of the secondaries have the stacks that these started on.
/// Made at boot: as constants they would be in the image.
static IDLE_THREADS: [Once<Thread>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];
/// What the boot CPU has run since it was entered.
static MAIN: Thread = Thread::new(0, "main");

/// Makes what the boot CPU, this one, runs a thread, and gives it another for when it idles.
///
/// # Errors
/// There is no memory for a stack.
pub fn init(cpu: &'static Cpu) -> Result<(), OutOfMemory> {
    extern "C" fn run(_: usize) {
        idle(this_cpu())
    }
    switch::ASIDS.set_numbers(kernel().features().cpus.asid_bits());
    MAIN.stack_top.set(cpu.trap.stack_top());
    let thread = idle_thread(cpu);
    thread.stack_top.set(take_stack(cpu)?.0);
    switch::prepare_kernel(thread, run, 0);
    cpu.sched.idle.store((&raw const *thread).cast_mut(), Ordering::Relaxed);
    cpu.sched.current.store((&raw const MAIN).cast_mut(), Ordering::Relaxed);
    Ok(())
}

/// The thread of `cpu` that runs when no other does.
fn idle_thread(cpu: &Cpu) -> &'static Thread {
    cpu.id.of(&IDLE_THREADS).call_once(|| Thread::new(0, "idle"))
}

/// Prepares this CPU for threads: TTBR0_EL1 has no user space now. On a CPU other than the boot CPU what runs becomes
/// its idle thread.
pub fn init_cpu(cpu: &'static Cpu) {
    cpu.sched.no_tables.store(switch::tables_register(), Ordering::Relaxed);
    fp::init_cpu();
    if cpu.sched.current.load(Ordering::Relaxed).is_null() {
        let thread = idle_thread(cpu);
        thread.stack_top.set(cpu.trap.stack_top());
        thread.home.store(cpu.id.0, Ordering::Relaxed);
        cpu.sched.idle.store((&raw const *thread).cast_mut(), Ordering::Relaxed);
        cpu.sched.current.store((&raw const *thread).cast_mut(), Ordering::Relaxed);
    }
}

/// What a CPU does that has nothing to do: it waits for interrupts, and runs threads that come.
pub fn idle(cpu: &'static Cpu) -> ! {
    loop {
        // Masked from the look to the WFI: an interrupt in between stays pending, which ends WFI even while it is masked.
        // It is taken at `enable`.
        let _ = interrupts::mask();
        if queue::prepare_to_idle(cpu) {
            wait::wfi();
        }
        interrupts::enable();
        queue::run_ready(cpu);
    }
}

/// A kernel stack: its top.
pub(super) fn take_stack(cpu: &Cpu) -> Result<VirtAddr, OutOfMemory> {
    let spare = cpu.sched.queue.lock().spare_stacks.pop();
    match spare {
        Some(stack) => Ok(stack),
        None => kernel().space.alloc_stack(cpu).map_err(|_| OutOfMemory),
    }
}

/// Takes back what [`take_stack`] gave.
pub(super) fn free_stack(cpu: &Cpu, stack: VirtAddr) {
    let kept = cpu.sched.queue.lock().spare_stacks.push(stack);
    if kept.is_err() {
        kernel().space.free_stack(cpu, stack);
    }
}

/// Frees the stacks that are kept for threads to come. For audits that count frames.
pub fn trim(cpu: &Cpu) {
    smp::for_each(|other| {
        loop {
            let spare = other.sched.queue.lock().spare_stacks.pop();
            let Some(stack) = spare else { break };
            kernel().space.free_stack(cpu, stack);
        }
    });
}
