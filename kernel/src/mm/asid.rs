//! Address space identifiers: how many there are, and how a CPU runs under one. [`generation`] gives them out.

mod generation;

use core::sync::atomic::AtomicU64;

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
    /// Eight bits, until [`Self::set_numbers`].
    #[expect(clippy::new_without_default, reason = "a static's initialiser, which Default cannot be")]
    pub const fn new() -> Self {
        Self {
            generation: AtomicU64::new(GENERATION),
            active: [const { Active(AtomicU64::new(0)) }; MAX_CPUS],
            state: IrqLock::new(AsidState::new(1 << 8)),
        }
    }

    /// Sets how many numbers there are, before the first space runs: `2^bits` as all CPUs have them, or fewer by the
    /// boot argument `asids`.
    pub fn set_numbers(&self, bits: u32) {
        let limit = bootargs::get("asids").and_then(|count| parse(count).ok()).unwrap_or(usize::MAX);
        self.state.lock().numbers = (1_usize << bits.min(MAX_BITS)).min(limit);
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
