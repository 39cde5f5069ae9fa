//! `lab=kfence-uaf` and `lab=kfence-oob`: a bug in the handler that opens the gate, which the guarded heap must report.

#![allow(unsafe_code, reason = "the accesses are those of a bug")]

use core::alloc::Layout;
use core::hint::black_box;

use granule_arch::addr::VirtAddr;

use super::global;
use crate::lab;
use crate::smp::Cpu;

const LAYOUT: Layout = Layout::new::<[u64; 8]>();

/// Plants what is switched on, in the object that the gate has. Nothing where another CPU was faster to take it: the next
/// gate has another.
pub(super) fn plant(cpu: &Cpu) {
    if lab::is_on!(KFENCE_UAF)
        && let Some(object) = allocates(cpu)
    {
        frees(object);
        reads(object);
    }
    if lab::is_on!(KFENCE_OOB)
        && let Some(object) = allocates(cpu)
    {
        // At the end of its page is every second that is sampled. Another goes back, and the next gate has the next.
        if object.is_aligned(super::PAGE) {
            frees(object);
        } else {
            reads(object + LAYOUT.size() as u64);
        }
    }
}

#[inline(never)]
fn allocates(cpu: &Cpu) -> Option<VirtAddr> {
    black_box(global::alloc(cpu, LAYOUT).map(|object| VirtAddr::from_ptr(object.as_ptr())))
}

#[inline(never)]
fn frees(object: VirtAddr) {
    // SAFETY: from `allocates`. The use after this is the planted bug.
    let freed = unsafe { global::dealloc(object.as_ptr(), LAYOUT) };
    let _ = black_box(freed);
}

#[inline(never)]
fn reads(address: VirtAddr) {
    // SAFETY: not sound at all: it faults, and the report ends the kernel.
    black_box(unsafe { address.as_ptr::<u8>().read() });
}
