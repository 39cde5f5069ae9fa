//! Address space identifiers: how many there are, and how a CPU runs under one. [`generation`] gives them out.

mod generation;

use core::sync::atomic::{AtomicU64, Ordering};

use granule_arch::addr::PhysAddr;
use granule_arch::patched_branch;
use linkme::distributed_slice;

use crate::bootargs::{self, PARAMETERS, Parameter, Refused};
use crate::platform::features::branch;
use crate::smp::MAX_CPUS;
use crate::sync::IrqLock;
use generation::{Active, AsidState, GENERATION, MAX_BITS};
pub use generation::{AsidSlot, Asids};

/// The fewest numbers that do: one that no space has, one for each CPU to keep, and one to give out.
const FEWEST: usize = MAX_CPUS + 2;

// Constructors for statics. Here, because loom's atomics and locks are not made at compile time.

impl AsidSlot {
    /// Of a space that has not run yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
}

impl Asids {
    /// No numbers, until [`Self::set_numbers`]: all zeros, which take no room in the image.
    pub const fn none() -> Self {
        Self {
            generation: AtomicU64::new(0),
            active: [const { Active(AtomicU64::new(0)) }; MAX_CPUS],
            state: IrqLock::new(AsidState::NONE),
        }
    }

    /// Eight bits.
    #[cfg(not(target_os = "none"))]
    #[expect(clippy::new_without_default, reason = "one number of bits of many")]
    pub fn new() -> Self {
        let asids = Self::none();
        asids.begin_with(1 << 8);
        asids
    }

    /// Sets how many numbers there are, before the first space runs: `2^bits` as all CPUs have them, or fewer by the
    /// boot argument `asids`.
    pub fn set_numbers(&self, bits: u32) {
        let limit = bootargs::get("asids").and_then(|count| parse(count).ok()).unwrap_or(usize::MAX);
        self.begin_with((1_usize << bits.min(MAX_BITS)).min(limit));
    }

    fn begin_with(&self, numbers: usize) {
        // Relaxed: no other CPU runs a space yet.
        self.generation.store(GENERATION, Ordering::Relaxed);
        self.state.lock().begin_with(numbers);
    }
}

/// TTBR0_EL1 for the table at `root`, under `asid`.
#[inline(always)]
pub fn ttbr0(root: PhysAddr, asid: u16) -> u64 {
    /// CNP: other CPUs may share what is cached under it. All CPUs know a number by the same space.
    const COMMON: u64 = 1;
    let common = if patched_branch!(branch::CNP) { COMMON } else { 0 };
    u64::from(asid) << 48 | root.0 | common
}

fn parse(count: &str) -> Result<usize, Refused> {
    match count.parse() {
        Ok(count) if (FEWEST..=1 << MAX_BITS).contains(&count) => Ok(count),
        _ => Err(Refused::because(format_args!("a number from {FEWEST} to {} is expected", 1 << MAX_BITS))),
    }
}

#[allow(unsafe_code, reason = "collected by the linker")]
#[distributed_slice(PARAMETERS)]
static ASIDS: Parameter = Parameter {
    name: "asids",
    help: "asids=COUNT: limit the address space identifiers, so that they run out often",
    check: |count| parse(count).map(drop),
};

#[cfg(test)]
mod tests;
