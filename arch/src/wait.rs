//! Ways to wait (Arm ARM C6: YIELD, WFE, SEV, WFI). Every loop that waits for another CPU or a device has one.

pub use crate::machine::wait::{park, relax, sev, wfe, wfi};
