//! The generic timer (Arm ARM D12): the counter that all CPUs share, and this CPU's EL1 virtual timer.
//!
//! The virtual count is the physical one minus CNTVOFF_EL2, which the entry code sets to zero where it runs at EL2.

use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU64, Ordering};

pub use crate::machine::timer::{count, count_unordered, own_frequency, set_deadline, stop};

/// See [`set_frequency`]; zero before.
static FREQUENCY: AtomicU64 = AtomicU64::new(0);
/// Of every counter from Armv8.6 on (D12.1.2): assumed while nothing is known.
pub(crate) const USUAL_FREQUENCY: u64 = 1_000_000_000;

/// Counts in a second, the same on all CPUs: what [`set_frequency`] was given, before that this CPU's [`own_frequency`].
/// Never zero, whatever the firmware left: where nothing else is known, 1 GHz.
#[inline(always)]
pub fn frequency() -> u64 {
    let set = FREQUENCY.load(Ordering::Relaxed);
    if set == 0 { own_or_usual() } else { set }
}

#[cold]
fn own_or_usual() -> u64 {
    let own = own_frequency();
    if own == 0 { USUAL_FREQUENCY } else { own }
}

/// Sets what [`frequency`] returns on all CPUs.
pub fn set_frequency(frequency: NonZeroU64) {
    FREQUENCY.store(frequency.get(), Ordering::Relaxed);
}
