//! The state of one CPU.
//!
//! EL1 is never preempted, so a reference to this CPU's [`Cpu`] stays true for as long as the code runs, and its fields
//! are touched by this CPU alone unless they are atomics whose doc has other rules.

#![allow(unsafe_code, reason = "per-CPU state by TPIDR_EL1, and entry of the other CPUs")]

#[cfg_attr(not(target_os = "none"), path = "cpu/host.rs")]
mod machine;

use core::cell::UnsafeCell;
use core::mem::MaybeUninit;
use core::sync::atomic::AtomicU64;

use granule_arch::features::CpuFeatures;
pub use machine::*;
use spin::Once;

/// The most CPUs that one kernel starts.
pub const MAX_CPUS: usize = 16;

/// The number of a CPU, 0 to [`MAX_CPUS`] − 1; 0 is the one that booted. Not the MPIDR.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CpuId(pub u32);

impl CpuId {
    /// This CPU's element of `each`. The remainder is the number itself.
    #[inline(always)]
    pub fn of<T>(self, each: &[T; MAX_CPUS]) -> &T {
        &each[self.0 as usize % MAX_CPUS]
    }
}

/// The state of one CPU. TPIDR_EL1 points to it.
///
/// Each module defines its own part, and reaches the fields of no other. The parts lie in [`Parts`]: so an access costs
/// TPIDR_EL1 and a constant offset, and this file names no module.
///
/// [`Parts`]: super::parts
#[repr(C, align(64))]
pub struct Cpu {
    /// Which CPU this is: in one line with the parts that each exception uses.
    pub id: CpuId,
    pub(super) parts: UnsafeCell<MaybeUninit<[u64; PARTS_SIZE / 8]>>,
    /// MPIDR_EL1 without the bits that are not affinity.
    pub mpidr: AtomicU64,
    /// Its ID registers, once it has come up.
    pub features: Once<CpuFeatures>,
    /// Interrupts from other CPUs that it has taken.
    pub ipis: AtomicU64,
}

/// Bytes for the parts of all modules. They end with a cache line: other CPUs read the fields after them.
pub(super) const PARTS_SIZE: usize = 640 - size_of::<u64>();

// SAFETY: the parts are shared by the rules of their own types, of which `parts` checks that they may be.
unsafe impl Sync for Cpu {}

/// The affinity fields of MPIDR_EL1.
pub const AFFINITY: u64 = 0xff_00ff_ffff;

/// The record that a secondary CPU starts with. `boot/src/entry.S` finds the one with the CPU's affinity once the MMU is on.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SecondaryBoot {
    /// The CPU's affinity.
    pub mpidr: AtomicU64,
    /// Top of the CPU's stack.
    pub stack_top: AtomicU64,
    /// Virtual address of its [`Cpu`], for TPIDR_EL1.
    pub cpu: AtomicU64,
    /// Virtual address of an `extern "C" fn(&'static Cpu) -> !`; zero until the others are there, and stored with
    /// release.
    pub entry: AtomicU64,
}

impl SecondaryBoot {
    /// A record that has not been filled in.
    pub const fn new() -> Self {
        Self {
            mpidr: AtomicU64::new(0),
            stack_top: AtomicU64::new(0),
            cpu: AtomicU64::new(0),
            entry: AtomicU64::new(0),
        }
    }
}
