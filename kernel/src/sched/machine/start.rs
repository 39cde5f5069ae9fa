//! How scheduling begins: what a CPU has before its first thread, the threads for when there is none, kernel stacks.

use core::ptr::null_mut;

use granule_arch::addr::VirtAddr;
use granule_arch::interrupts;
use spin::Once;

use super::queue::{self, NEVER, PerCpu, RunQueue};
use super::switch;
use super::thread::{Thread, note_shortage};
use super::timeout::Timeouts;
use crate::chip::timer;
use crate::mm::OutOfMemory;
use crate::mm::frame::FrameAllocator;
use crate::smp::{self, Cpu, MAX_CPUS, this_cpu};
use crate::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use crate::sync::{IrqGuard, IrqLock, rank};

impl PerCpu {
    pub(crate) const fn new() -> Self {
        Self {
            current: AtomicPtr::new(null_mut()),
            idle: AtomicPtr::new(null_mut()),
            queue: IrqLock::new(RunQueue::EMPTY),
            ready: AtomicU32::new(0),
            bound: AtomicU32::new(0),
            timeouts: IrqLock::new(Timeouts::new()),
            leaving: AtomicPtr::new(null_mut()),
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
/// The thread of the boot CPU since it was entered.
static MAIN: Thread = Thread::new(0, "main");

/// The parts of the kernel that threads need and the scheduler does not import.
pub struct Surroundings {
    /// Threads are in these frames.
    pub frames: &'static FrameAllocator,
    /// Kernel stacks.
    pub stacks: &'static dyn Stacks,
    /// Bits of an ASID, of all CPUs.
    pub asid_bits: u32,
    /// Called before a switch, where tag checks of the kernel are asynchronous.
    pub check_tags: extern "C" fn(),
}

/// The kernel stacks of threads. Addresses are those of their tops.
pub trait Stacks: Sync {
    /// A new one. `cpu` is the CPU that this runs on.
    ///
    /// # Errors
    /// [`OutOfMemory`]; nothing was changed.
    fn alloc(&self, cpu: &Cpu) -> Result<VirtAddr, OutOfMemory>;

    /// Frees one that nothing runs on. Takes locks of areas; not from interrupt handlers.
    fn free(&self, cpu: &Cpu, top: VirtAddr);
}

static SURROUNDINGS: Once<Surroundings> = Once::new();

/// The argument of [`init`].
pub(super) fn surroundings() -> &'static Surroundings {
    SURROUNDINGS.get().expect("threads exist once `init` has returned")
}

/// Makes what the boot CPU, this one, runs a thread, and gives it another for when it idles.
///
/// # Errors
/// There is no memory for a stack.
pub fn init(cpu: &'static Cpu, surroundings: Surroundings) -> Result<(), OutOfMemory> {
    extern "C" fn run(_: usize) {
        idle(this_cpu())
    }
    let Surroundings { frames, asid_bits, .. } = *SURROUNDINGS.call_once(|| surroundings);
    frames.set_shortage_note(note_shortage);
    switch::ASIDS.set_numbers(asid_bits);
    MAIN.stack_top.set(cpu.trap().stack_top());
    let thread = idle_thread(cpu);
    thread.stack_top.set(NewStack::take(cpu)?.keep().0);
    switch::prepare_kernel(thread, run, 0);
    cpu.sched().idle.store((&raw const *thread).cast_mut(), Ordering::Relaxed);
    cpu.sched().current.store((&raw const MAIN).cast_mut(), Ordering::Relaxed);
    Ok(())
}

/// The thread of `cpu` that runs when no other does.
fn idle_thread(cpu: &Cpu) -> &'static Thread {
    cpu.id.of(&IDLE_THREADS).call_once(|| Thread::new(0, "idle"))
}

/// Prepares this CPU for threads: TTBR0_EL1 has no user space now. On a CPU other than the boot CPU what runs becomes
/// its idle thread.
pub fn init_cpu(cpu: &'static Cpu) {
    cpu.sched().no_tables.store(switch::tables_register(), Ordering::Relaxed);
    if cpu.sched().current.load(Ordering::Relaxed).is_null() {
        let thread = idle_thread(cpu);
        thread.stack_top.set(cpu.trap().stack_top());
        thread.home.store(cpu.id.0, Ordering::Relaxed);
        cpu.sched().idle.store((&raw const *thread).cast_mut(), Ordering::Relaxed);
        cpu.sched().current.store((&raw const *thread).cast_mut(), Ordering::Relaxed);
    }
}

/// The idle loop of a CPU: it waits for interrupts, and runs threads that come.
pub fn idle(cpu: &'static Cpu) -> ! {
    loop {
        // Masked from the look to the WFI: an interrupt in between stays pending, which ends WFI even while it is masked.
        // It is taken at `enable`.
        let _ = interrupts::mask();
        if queue::prepare_to_idle(cpu) {
            timer::wait_for_interrupt(cpu);
        }
        interrupts::enable();
        queue::run_ready(cpu);
    }
}

/// A kernel stack on which no thread has run yet. Where none will, this CPU keeps it.
pub(super) struct NewStack(VirtAddr);

impl NewStack {
    /// One of those that `cpu`, this CPU, keeps, or a new one.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub(super) fn take(cpu: &Cpu) -> Result<Self, OutOfMemory> {
        let spare = cpu.sched().queue.lock().spare_stacks.pop();
        let stack = spare.map_or_else(|| surroundings().stacks.alloc(cpu), Ok)?;
        Ok(Self(stack))
    }

    /// Its top.
    pub(super) const fn top(&self) -> VirtAddr {
        self.0
    }

    /// A thread has it from now on, until that ends.
    pub(super) fn keep(self) -> VirtAddr {
        let top = self.0;
        core::mem::forget(self);
        top
    }
}

impl Drop for NewStack {
    fn drop(&mut self) {
        // Drop has no argument for the CPU.
        lock_with_room(this_cpu()).keep_stack(self.0);
    }
}

/// The run queue of `cpu`, this CPU, locked, with room for one stack more. Frees one where as many are kept as may be: so
/// what ended threads leave is bounded, and freed by threads that end, which have their own stack to themselves, and by
/// calls that could not start one. Takes locks of areas; not from interrupt handlers.
pub(super) fn lock_with_room(cpu: &Cpu) -> IrqGuard<'_, RunQueue, { rank::RUN_QUEUE }> {
    loop {
        let mut queue = cpu.sched().queue.lock();
        if !queue.spare_stacks.is_full() {
            return queue;
        }
        let spare = queue.spare_stacks.pop();
        drop(queue);
        spare.into_iter().for_each(|stack| surroundings().stacks.free(cpu, stack));
    }
}

/// Frees the stacks that are kept for threads to come; returns how many. `cpu` is the CPU that this runs on. Takes locks
/// of areas; not from interrupt handlers.
pub fn trim(cpu: &Cpu) -> usize {
    let mut freed = 0;
    smp::for_each(|other| {
        loop {
            let spare = other.sched().queue.lock().spare_stacks.pop();
            let Some(stack) = spare else { break };
            surroundings().stacks.free(cpu, stack);
            freed += 1;
        }
    });
    freed
}
