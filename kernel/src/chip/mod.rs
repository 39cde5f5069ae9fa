//! The devices of every machine: console, interrupt controller, timer, power.
//!
//! Each kind has one interface, so that another driver can join: [`console::Console`],
//! [`interrupt::InterruptController`]. The caller that starts a driver maps its registers; drivers know nothing of page
//! tables.

mod bcm2835_pm;
mod bcm2836;
pub mod console;
#[cfg(target_os = "none")]
mod gicv2;
mod gicv2m;
#[cfg(target_os = "none")]
mod gicv3;
pub mod interrupt;
mod its;
pub mod log;
#[cfg_attr(not(target_os = "none"), path = "host.rs")]
mod machine;
pub mod message;
mod order;
mod output;
pub mod pl011;
pub mod power;
mod syscon;
pub mod timer;
pub mod uart;
