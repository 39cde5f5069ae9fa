//! The guarded heap of the kernel: its boot arguments, its memory, its timer.
//!
//! There is no tick, and the timer has no period: an allocation that was sampled sets the deadline at which the next may
//! be, on its own CPU. So a kernel in which nothing is allocated is not woken for it. While all objects are in use, each
//! interval looks again.

use core::alloc::Layout;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysRange, VirtAddr};
use linkme::distributed_slice;

use super::{GuardedHeap, MAX_OBJECTS, planted, report};
use crate::bootargs::{self, PARAMETERS, Parameter};
use crate::chip::timer::{self, Deadline, Purpose};
use crate::lab;
use crate::mm::early::MemoryMap;
use crate::mm::kernel::set_memory::Validity;
use crate::mm::layout;
use crate::smp::Cpu;

/// Objects without `kfence.num_objects`: with their guards, 128 pages.
const USUAL_OBJECTS: u16 = 63;
/// The longest interval, in milliseconds: 49 days.
const LONGEST: usize = u32::MAX as usize;

static GUARDED: GuardedHeap = GuardedHeap::new();
/// Milliseconds from one sample to the next.
static INTERVAL: AtomicU32 = AtomicU32::new(0);

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static SAMPLE_INTERVAL: Parameter = Parameter {
    name: "kfence.sample_interval",
    help: "kfence.sample_interval=MS: sample an object of the heap each MS milliseconds, between guard pages; 0: none",
    check: |value| bootargs::number(value, LONGEST).map(drop),
};

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static NUM_OBJECTS: Parameter = Parameter {
    name: "kfence.num_objects",
    help: "kfence.num_objects=N: objects of which a sample is one, 63 without this",
    check: |value| bootargs::number(value, MAX_OBJECTS.into()).map(drop),
};

fn wanted_objects() -> u16 {
    bootargs::get_number(NUM_OBJECTS.name, MAX_OBJECTS.into()).map_or(USUAL_OBJECTS, |objects| objects as u16)
}

/// Takes the memory of what the boot arguments ask for; `None` where they ask for nothing. The linear map is to show it
/// by pages.
pub fn take_memory(memory: &mut MemoryMap) -> Option<PhysRange> {
    let (interval, objects) = (bootargs::get_number(SAMPLE_INTERVAL.name, LONGEST).unwrap_or(0), wanted_objects());
    if interval == 0 || objects == 0 {
        return None;
    }
    INTERVAL.store(interval as u32, Ordering::Relaxed);
    let pages = GuardedHeap::required_pages(objects);
    let taken = memory.take(pages, PAGE);
    let start = taken.inspect_err(|error| crate::log::warn!("kfence: {error}: nothing is sampled")).ok()?;
    PhysRange::from_size(start, (pages * PAGE_SIZE) as u64)
}

/// The kernel's guarded heap.
pub fn guarded_heap() -> &'static GuardedHeap {
    &GUARDED
}

/// Gives the guarded heap its memory, before branch sites are patched by whether it has any.
///
/// # Safety
/// `memory` is from [`take_memory`], and the linear map shows it by pages.
#[allow(unsafe_code, reason = "makes a pool of memory")]
pub unsafe fn init(memory: PhysRange) {
    // SAFETY: as the caller guarantees. Nothing gives the pages back.
    unsafe { GUARDED.init(layout::linear(memory.start()), wanted_objects(), set_valid) };
}

/// It does not fail where the pages are leaves of the linear map, as [`take_memory`] has it made.
fn set_valid(page: VirtAddr, pages: u64, validity: Validity) -> bool {
    let changed = crate::kernel().space.set_memory_valid(page, pages, validity);
    changed.inspect_err(|error| crate::log::error!("kfence: {error}")).is_ok()
}

/// Makes the pool's pages invalid, and samples from then on.
pub fn start(cpu: &Cpu) {
    if GUARDED.protect() {
        sample_later(cpu);
    }
}

/// Has the gate opened when the interval has passed.
#[inline(never)]
fn sample_later(cpu: &Cpu) {
    let after = Duration::from_millis(INTERVAL.load(Ordering::Relaxed).into());
    timer::set(cpu, Purpose::GuardedHeap, Some(Deadline::after(after)), open_gate);
}

/// The deadline's handler.
fn open_gate(cpu: &Cpu) {
    if !GUARDED.open_gate() {
        sample_later(cpu);
    } else if lab::is_on!(ANY) {
        planted::plant(cpu);
    }
}

/// A guarded object for `layout`, if one may be sampled now. A write to it after its last free ends the kernel with a
/// report.
#[inline(always)]
pub(in super::super) fn alloc(cpu: &Cpu, layout: Layout) -> Option<NonNull<u8>> {
    let object = GUARDED.alloc(layout).unwrap_or_else(|written| report::written_after_free(written))?;
    sample_later(cpu);
    Some(object)
}

/// Takes back `object` if it is one of the guarded heap, and returns whether it is. A bad free ends the kernel with a
/// report.
///
/// # Safety
/// The contract of [`GuardedHeap::dealloc`].
#[allow(unsafe_code, reason = "frees")]
#[inline(never)]
pub(in super::super) unsafe fn dealloc(object: *mut u8, layout: Layout) -> bool {
    if !GUARDED.contains(object) {
        return false;
    }
    // SAFETY: as the caller guarantees.
    if let Err(bad) = unsafe { GUARDED.dealloc(object, layout) } {
        report::bad_free(bad);
    }
    true
}
