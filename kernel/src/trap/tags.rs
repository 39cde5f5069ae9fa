//! Accesses of the kernel whose failed tag check is known only later, by TFSR_EL1: with `heap.tags=async` or `asymm`.
//!
//! TFSR_EL1 is looked at on each interrupt, before a thread is switched, and on the way to EL0: so what is reported is
//! an access of the interrupted code, of the thread, of the call. An entry from EL0 need not look: the way out did.

#![allow(unsafe_code, reason = "vouches for the registers of tag checks")]

use granule_arch::patched_branch;
use granule_arch::tag_check::Registers;

use super::backtrace::backtrace_here;
use crate::panic::die;
use crate::platform::features::branch;

/// Ends the kernel with a report if an access of this CPU has failed its check since the last call. Interrupts masked.
#[inline(always)]
pub(crate) fn check_asynchronous() {
    if patched_branch!(branch::ASYNCHRONOUS_TAG_CHECKS) {
        on_the_way_out();
    }
}

/// As [`check_asynchronous`], where checks are asynchronous: `user.S` and each switch call it.
#[inline(never)]
pub(crate) extern "C" fn on_the_way_out() {
    // SAFETY: checks are asynchronous only where all CPUs have tags.
    if unsafe { Registers::new() }.take_recorded_of_el1() {
        let calls = backtrace_here();
        die(
            format_args!("asynchronous tag check fault: an access before this point had another tag than its memory"),
            &|out| write!(out, "backtrace of where it was noticed:\n{calls}"),
        )
    }
}
