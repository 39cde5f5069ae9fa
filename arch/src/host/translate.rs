//! The host has no translations to ask for.

use crate::addr::{PhysAddr, VirtAddr};
use crate::esr::FaultStatus;

/// The host translates nothing; that it was asked is recorded (module `recorded`).
///
/// # Errors
/// A translation fault, always.
pub fn read_at_el1(_address: VirtAddr) -> Result<PhysAddr, FaultStatus> {
    crate::recorded::note("at_s1e1r");
    Err(FaultStatus::Translation)
}
