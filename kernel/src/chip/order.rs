//! Barriers that order interrupts with memory, for each controller.
//!
//! ```text
//!     sender                       CPU that takes it
//!     stores the message           reads IAR: the interrupt
//!     DSB ISHST                    DSB SY
//!     writes the SGI's register    loads the message
//! ```
//! The register is a device's or the system's, which a store does not wait for. And the exception orders the handler
//! after the interrupt that has caused it, not after another that IAR returns: one that has arrived since, or the next
//! of the same loop. Its message could have been loaded before IAR was read. A device's store before its interrupt is
//! such a message too.
//!
//! `kernel/loom` compiles this file on loom's atomics.

use crate::sync::barrier;

/// Sends an interrupt by `write`, after all that this CPU has stored.
#[inline(always)]
pub(super) fn send<R>(write: impl FnOnce() -> R) -> R {
    barrier::dsb_ishst();
    write()
}

/// Takes an interrupt by `read`, before all that its handler loads.
#[inline(always)]
pub(super) fn acknowledge<R>(read: impl FnOnce() -> Option<R>) -> Option<R> {
    let interrupt = read()?;
    // DSB, not DMB: the acknowledgement must have reached the controller before the handler makes the device lower its
    // line, or the same interrupt is pending again (IHI 0069, 4.1.1: effects of reading ICC_IAR1_EL1 need a DSB).
    barrier::dsb_sy();
    Some(interrupt)
}
