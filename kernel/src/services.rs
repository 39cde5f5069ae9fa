//! The kernel's own threads, which have memory to spare: they free pages, make page blocks whole, and collapse leaves; and
//! what the kernel itself holds and does not need, given back where frames are few.

use core::sync::atomic::{AtomicU64, Ordering, fence};
use core::time::Duration;

use granule_arch::addr::PhysAddr;
use granule_pgtable::PageRange;
use spin::Once;

use crate::chip::timer::Deadline;
use crate::mm::heap::kernel_heap;
use crate::mm::kernel::KernelSpace;
use crate::mm::kernel::collapse::quiet;
use crate::mm::space::Used;
use crate::mm::{OutOfMemory, layout};
use crate::sched::ThreadRef;
use crate::smp::{Cpu, this_cpu};
use crate::{kernel, sched};

/// Starts them.
///
/// # Errors
/// [`OutOfMemory`].
pub fn start(cpu: &'static Cpu) -> Result<(), OutOfMemory> {
    reclaimer::start(cpu)?;
    compactor::start(cpu)?;
    collapser::start(cpu)
}

static BEGUN: AtomicU64 = AtomicU64::new(0);
static ENDED: AtomicU64 = AtomicU64::new(0);

/// Passes that began of the threads that the frame allocator wakes, where none is in one now. Such a pass has frames in its
/// hands, and those that it frees are on their way: accounts are sound where this is the same before and after them.
pub fn ended_passes() -> Option<u64> {
    // Pairs with the one in `pass`: who sees what a pass has done sees that it began.
    fence(Ordering::Acquire);
    // In this order: a pass that begins and ends in between makes them differ.
    let ended = ENDED.load(Ordering::Acquire);
    (BEGUN.load(Ordering::Relaxed) == ended).then_some(ended)
}

/// Counts `work` in [`ended_passes`].
fn pass<R>(work: impl FnOnce() -> R) -> R {
    BEGUN.fetch_add(1, Ordering::Relaxed);
    fence(Ordering::Release);
    let result = work();
    ENDED.fetch_add(1, Ordering::Release);
    result
}

/// A thread that the frame allocator wakes.
fn wake(thread: &Once<ThreadRef>) {
    if let Some(thread) = thread.get() {
        thread.unpark();
    }
}

/// Gives back all that the kernel itself keeps for later: stacks of threads that have ended, free pages of the heap, areas
/// that wait for their invalidation. `cpu` is the CPU that this runs on.
///
/// Other threads may run concurrently: no lock is held, and interrupts are on.
#[cold]
#[inline(never)]
pub fn give_back(cpu: &Cpu) {
    let freed = sched::trim(cpu) + kernel().space.purge(cpu);
    publish(cpu, freed);
    trim_heap(cpu, 0);
}

/// Gives free pages of the heap back, but for about `keep`. As [`give_back`].
#[inline(never)]
pub fn trim_heap(cpu: &Cpu, keep: usize) {
    publish(cpu, kernel_heap().trim(keep));
}

/// `freed` pages or stacks were freed on this CPU. A freed page may stay in its magazine, where programs on other CPUs do
/// not find it and [`has_room_for`](crate::mm::frame::FrameAllocator::has_room_for) does not count it.
fn publish(cpu: &Cpu, freed: usize) {
    if freed != 0 {
        kernel().frames.drain_cpu(cpu);
    }
}

/// Frees pages of files where frames are few.
mod reclaimer {
    use super::{
        Cpu, Deadline, Duration, Once, OutOfMemory, ThreadRef, Used, give_back, kernel, pass, sched, this_cpu, wake,
    };

    /// Between two passes: what is used at all is used in such a time.
    const PAUSE: Duration = Duration::from_millis(100);
    /// Passes that free nothing, after which it rests.
    const FRUITLESS: u32 = 3;

    static THREAD: Once<ThreadRef> = Once::new();

    pub(super) fn start(cpu: &'static Cpu) -> Result<(), OutOfMemory> {
        let thread = sched::spawn_service(cpu, "reclaim", run)?;
        THREAD.call_once(|| thread);
        kernel().frames.set_reclaimer(|| wake(&THREAD));
        Ok(())
    }

    extern "C" fn run(_: usize) -> ! {
        let (frames, spaces) = (kernel().frames, &kernel().spaces);
        let room = frames.high_watermark();
        loop {
            sched::park();
            let mut fruitless = 0;
            while !frames.has_room_for(room) && fruitless < FRUITLESS {
                let freed = pass(|| {
                    // First what is of no use any more.
                    give_back(this_cpu());
                    spaces.reclaim(this_cpu(), room, Used::Age, &|| false)
                });
                fruitless = if freed == 0 { fruitless + 1 } else { 0 };
                sched::sleep_through(Deadline::after(PAUSE));
            }
        }
    }
}

/// Makes page blocks whole where a program found none.
mod compactor {
    use super::{Cpu, Deadline, Duration, Once, OutOfMemory, ThreadRef, kernel, pass, sched, this_cpu, wake};

    /// Blocks that a pass makes.
    const WANTED: usize = 4;
    /// Between two passes: what could not be moved may be gone then.
    const PAUSE: Duration = Duration::from_millis(500);
    /// The longest, after passes that make nothing: each doubles it.
    const LONGEST_PAUSE: Duration = Duration::from_secs(32);

    static THREAD: Once<ThreadRef> = Once::new();

    pub(super) fn start(cpu: &'static Cpu) -> Result<(), OutOfMemory> {
        let thread = sched::spawn_service(cpu, "compact", run)?;
        THREAD.call_once(|| thread);
        kernel().frames.set_compactor(|| wake(&THREAD));
        Ok(())
    }

    extern "C" fn run(_: usize) -> ! {
        let mut pause = PAUSE;
        loop {
            sched::park();
            let made = pass(|| kernel().spaces.compact(this_cpu(), WANTED, &|| false));
            pause = if made == 0 { (pause * 2).min(LONGEST_PAUSE) } else { PAUSE };
            sched::sleep_through(Deadline::after(pause));
        }
    }
}

/// Collapses leaves that are alike again, where `collapse.quiet=` asks for it.
mod collapser {
    use super::{
        Cpu, Deadline, Duration, KernelSpace, OutOfMemory, PageRange, PhysAddr, kernel, layout, quiet, sched, this_cpu,
    };

    /// Bytes of the linear map that are collapsed before other threads of the CPU run.
    const PIECE: u64 = 1 << 30;
    /// So many times longer than at first, at most, is waited where a pass collapses nothing.
    const PATIENCE: u32 = 64;

    pub(super) fn start(cpu: &'static Cpu) -> Result<(), OutOfMemory> {
        if quiet().is_none() {
            return Ok(());
        }
        sched::spawn_service(cpu, "collapse", run).map(drop)
    }

    extern "C" fn run(_: usize) -> ! {
        let space = &kernel().space;
        let shortest = quiet().unwrap_or(Duration::MAX);
        let (mut wait, mut seen) = (shortest, 0);
        loop {
            let before = space.split_counts().all();
            sched::sleep_through(Deadline::after(wait));
            // A leaf split during the sleep is in use. Tables that differ yet may be alike, or gone, by a later pass.
            let splits = space.split_counts().all();
            if splits != before || (splits == seen && space.linear_tables() == 0) {
                continue;
            }
            seen = splits;
            wait =
                if pass(space) == 0 { wait.saturating_mul(2).min(shortest.saturating_mul(PATIENCE)) } else { shortest };
        }
    }

    /// Goes over all memory, and over the areas. Returns how many tables were replaced.
    fn pass(space: &KernelSpace) -> u64 {
        let mut replaced = 0;
        let mut collapse = |range| {
            replaced += space.collapse(this_cpu(), range).map_or(0, |done| done.replaced());
            sched::sleep_briefly();
        };
        for bank in &kernel().platform.memory {
            for start in (bank.start().0..bank.end().0).step_by(PIECE as usize) {
                let size = PIECE.min(bank.end().0 - start);
                PageRange::new(layout::linear(PhysAddr(start)), size).ok().map(&mut collapse);
            }
        }
        KernelSpace::collapsible()[1].map(&mut collapse);
        replaced
    }
}
