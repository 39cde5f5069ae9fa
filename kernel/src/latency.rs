//! The longest stretches with interrupts masked, and without a point where another thread of the CPU may run.
//!
//! Compiled in by the feature `latency`, into an image of its own (`granule-latency`): in every other image the functions
//! here are empty. Each change of the masks and each scheduling point reads the counter; of the longest stretch of
//! either kind a CPU keeps the chain of calls at its end. With `-icount shift=0` and a counter of 1 GHz a count is an
//! instruction.
//!
//! - *Masked*: from the exception entry or `interrupts::mask` to the exception return or `interrupts::restore`. What a
//!   CPU sleeps in WFI is left out.
//! - *In the kernel*: from the entry from EL0, the switch to the thread, or the last point, to the next of
//!   [`sched::relax`](crate::sched::relax), a switch to another thread, or the return to EL0. Interrupts that are taken
//!   in between belong to it.

#[cfg(all(target_os = "none", feature = "latency"))]
mod measure;

#[cfg(all(target_os = "none", feature = "latency"))]
pub(crate) use measure::{PerCpu, exception, exception_end, idle_ends, idles, point};
#[cfg(all(target_os = "none", feature = "latency"))]
pub use measure::{Stretch, begin_anew, longest};

/// The two kinds of stretch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// With interrupts masked.
    Masked,
    /// Without a point where another thread may run.
    InKernel,
}

/// Without the feature nothing is measured.
#[cfg(not(all(target_os = "none", feature = "latency")))]
mod nothing {
    #![cfg_attr(
        not(target_os = "none"),
        allow(dead_code, reason = "the host has no exceptions and no threads of its own")
    )]

    #[inline(always)]
    pub(crate) const fn point() {}
    #[inline(always)]
    pub(crate) const fn idles() {}
    #[inline(always)]
    pub(crate) const fn idle_ends() {}
    #[inline(always)]
    pub(crate) const fn exception(_spsr: u64) {}
    #[inline(always)]
    pub(crate) const fn exception_end(_spsr: u64) {}
}
#[cfg(all(target_os = "none", not(feature = "latency")))]
pub(crate) use nothing::{exception, exception_end, point};
#[cfg(not(all(target_os = "none", feature = "latency")))]
pub(crate) use nothing::{idle_ends, idles};

/// Assembly for `trap/user.S` and the thread starts: calls of the measure, or nothing. They change x0 to x18 and x30.
#[cfg(all(target_os = "none", not(feature = "latency")))]
macro_rules! hooks {
    () => {
        ".macro latency hook\n.endm\n"
    };
}
#[cfg(all(target_os = "none", feature = "latency"))]
macro_rules! hooks {
    () => {
        ".macro latency hook\nbl latency_\\hook\n.endm\n"
    };
}
#[cfg(target_os = "none")]
pub(crate) use hooks;
