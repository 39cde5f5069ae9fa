//! The kernel's space on the host: its own tables, frames and areas, on a metal that records and does nothing else.
//!
//! - `alias`: a range and the other addresses of its frames, which follow, on the plain host machine
//! - `direct_map`: single pages of the linear map, and what is left to an invalidation that follows
//! - `contracts`: what each call does and refuses, with memory running out at every allocation
//! - `large`: areas of blocks and groups: their leaves, changes of a part, and where their memory goes
//! - `pagealloc`: frames that are free are hidden, and no others
//! - `purge`: areas whose invalidation is left for later
//! - `random`: long sequences of calls against a plain map of page → permissions
//! - `split`: changes in the linear map whose ranges cut leaves: which lock, whose memory, who is refused
//! - `streams`: which writes, barriers, invalidations and cache maintenance each call makes, with and without the lab
//! - `vmap`: given frames and registers: their leaves, what may change, and that their alias never does

mod alias;
mod contracts;
mod direct_map;
mod large;
mod pagealloc;
mod purge;
mod random;
mod split;
mod streams;
mod vmap;

use std::boxed::Box;

use granule_arch::addr::{PAGE, PhysAddr};
use granule_pgtable::{Granule4K, Table};

use super::KernelSpace;
use super::mmu::{LinearView, Metal};
use crate::mm::frame::FrameAllocator;
use crate::mm::frame::tests::leaked;
use crate::mm::tlb::KernelTlb;
use crate::smp::{Cpu, CpuId};

/// A space of its own, for ever, in `mib` MiB of memory of its own.
#[allow(unsafe_code, reason = "keeps the contracts of unsafe traits on memory of the test")]
fn space(mib: u64) -> (&'static KernelSpace, &'static FrameAllocator, Cpu) {
    let (frames, cpu) = (leaked(mib), Cpu::new(CpuId(0)));
    let root = frames.alloc_zeroed(&cpu).unwrap();
    // SAFETY: a zeroed frame that is used for nothing else, shown by the view for ever.
    let root = unsafe { Table::<Granule4K>::root(root) };
    let view = LinearView { offset: frames.linear().address(PhysAddr(0)).0 };
    (Box::leak(Box::new(KernelSpace::new(&cpu, Metal(view), KernelTlb, root, frames).unwrap())), frames, cpu)
}
