//! Memory that the kernel holds and does not need, given back where frames are few.
//!
//! A freed page may stay in the CPU's magazine, where programs on other CPUs do not find it and
//! [`has_room_for`](crate::mm::frame::FrameAllocator::has_room_for) does not count it. So each of these functions gives
//! the magazine back as well, after it has freed something.

use crate::mm::heap::kernel_heap;
use crate::smp::Cpu;
use crate::{kernel, sched};

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

/// `freed` pages or stacks were freed on this CPU.
fn publish(cpu: &Cpu, freed: usize) {
    if freed != 0 {
        kernel().frames.drain_cpu(cpu);
    }
}
