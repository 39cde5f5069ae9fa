//! Drivers: of what every machine has (console, interrupt controller, timer, power), and of PCI Express.
//!
//! Each kind of device has one interface, so that another driver can join: [`console::Console`],
//! [`interrupt::InterruptController`]. Register blocks are mapped by whoever starts the driver; the drivers themselves
//! know nothing of page tables.

pub mod console;
pub mod edu;
#[cfg(target_os = "none")]
mod gicv2;
#[cfg(target_os = "none")]
mod gicv3;
pub mod interrupt;
pub mod its;
pub mod log;
pub mod nvme;
pub mod pci;
#[cfg(target_os = "none")]
pub mod pl011;
pub mod power;
pub mod slot;
pub mod timer;
pub mod virtio;
pub mod virtio_blk;
pub mod virtio_rng;
