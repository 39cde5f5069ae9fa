//! Power State Coordination Interface (Arm DEN 0022): starting CPUs, and turning the machine off.
//!
//! The calls are those of the crate `smccc`; what it leaves to compile time, the instruction that makes the call, is
//! known here only from the device tree, and is the first argument of each function.

#![allow(unsafe_code, reason = "a contract for callers; nothing unsafe is done here")]

use core::fmt;

/// The instruction that calls the firmware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Conduit {
    /// HVC, to EL2.
    Hvc,
    /// SMC, to EL3.
    Smc,
}

impl fmt::Display for Conduit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hvc => "HVC",
            Self::Smc => "SMC",
        })
    }
}

pub use smccc::psci::error::Error;

use crate::machine::psci::{call, call_by_number};

/// CPU_ON: starts the CPU with this affinity at the physical address `entry`, MMU off, with `context` in x0.
///
/// # Errors
/// As the firmware answers, [`Error::AlreadyOn`] for instance. Success means that the CPU will start, not that it has.
///
/// # Safety
/// The CPU executes what is at `entry`, with all of memory in its reach.
/// 1. `entry` is the physical address of code that expects the state of DEN 0022, 6.4: EL1 or EL2 as the caller's, MMU
///    and caches off, interrupts masked, `context` in x0.
/// 2. The code at `entry`, and all that it accesses with its caches off, is in memory (clean to the point of
///    coherency), and is used for nothing else for as long as the CPU may run it.
/// 3. The code keeps Rust's rules before it is in Rust, too: it has a stack of its own, and writes only what the
///    caller has handed to it.
pub unsafe fn cpu_on(conduit: Conduit, mpidr: u64, entry: u64, context: u64) -> Result<(), Error> {
    call!(conduit, cpu_on(mpidr, entry, context))
}

/// CPU_ON of version 0.1, which has no numbers of its own: `function` is the device tree's, and no context is handed over.
///
/// # Errors
/// As for [`cpu_on`].
///
/// # Safety
/// Those of [`cpu_on`], but that x0 may have anything; and `function` is the firmware's CPU_ON.
pub unsafe fn cpu_on_by_number(conduit: Conduit, function: u32, mpidr: u64, entry: u64) -> Result<(), Error> {
    call_by_number(conduit, function, [mpidr, entry])
}

/// SYSTEM_OFF. It returns only where the firmware refuses.
///
/// # Errors
/// As the firmware answers.
pub fn system_off(conduit: Conduit) -> Result<(), Error> {
    call!(conduit, system_off())
}

/// SYSTEM_RESET. It returns only where the firmware refuses.
///
/// # Errors
/// As the firmware answers.
pub fn system_reset(conduit: Conduit) -> Result<(), Error> {
    call!(conduit, system_reset())
}
