//! AT S1E1R.

#![allow(unsafe_code, reason = "issues AT instructions")]

use crate::addr::{PhysAddr, VirtAddr};
use crate::esr::FaultStatus;

/// Translates `address` as a read at EL1 would, under this CPU's present tables and TLB.
///
/// PAR_EL1 is left as it was found, so this may be called from a handler that interrupted another translation.
///
/// # Errors
/// The fault that the read would take. PSTATE.PAN is not considered.
pub fn read_at_el1(address: VirtAddr) -> Result<PhysAddr, FaultStatus> {
    const FAULTED: u64 = 1 << 0;
    let par: u64;
    // SAFETY: AT touches no memory but the tables and no register but PAR_EL1, which is put back. The ISB orders the
    // read of PAR_EL1 after the translation.
    unsafe {
        core::arch::asm!(
            "mrs {saved}, par_el1",
            "at s1e1r, {address}",
            "isb",
            "mrs {par}, par_el1",
            "msr par_el1, {saved}",
            saved = out(reg) _,
            par = out(reg) par,
            address = in(reg) address.0,
            options(nostack, preserves_flags),
        );
    }
    if par & FAULTED == 0 {
        Ok(PhysAddr((par & crate::descriptor::bits::ADDRESS) | (address.0 & 0xfff)))
    } else {
        Err(crate::esr::fault_status((par >> 1) as u8 & 0x3f).0)
    }
}
