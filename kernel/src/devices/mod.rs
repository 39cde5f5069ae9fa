//! Devices behind PCI Express or in the device tree, and how a driver claims one ([`pci`], [`virtio::mmio`], [`slot`]).

mod arrivals;
pub mod disk;
pub mod edu;
mod lines;
pub mod nvme;
pub mod pci;
pub mod slot;
pub mod virtio;
pub mod virtio_blk;
pub mod virtio_rng;
