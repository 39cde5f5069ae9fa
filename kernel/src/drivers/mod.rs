//! Drivers of what every machine has: console, interrupt controller, timer, power.
//!
//! Each kind of device has one interface, so that another driver can join: [`console::Console`]. Register blocks are mapped by whoever starts the driver; the drivers themselves
//! know nothing of page tables.

pub mod console;
pub mod log;
#[cfg(target_os = "none")]
pub mod pl011;
pub mod power;
pub mod timer;
