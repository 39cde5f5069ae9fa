//! Devices' way to memory: what a driver needs to have its device read and write, with an SMMU in front of it or not.
//!
//! A driver [`attach`]es its device and speaks to memory through the [`DmaDevice`] that it gets:
//!
//! - [`DmaDevice::alloc_coherent`]: pages that driver and device have in common, for rings
//! - [`DmaDevice::map`], [`DmaDevice::unmap`]: memory for one transfer
//! - [`DmaDevice::bind`], [`DmaDevice::unbind`]: the device uses the addresses of a process (SVA)
//! - [`DmaDevice::resolve`]: whether a transfer that is complete has met faults
//!
//! Without an SMMU a DMA address is the physical one, and a device cannot be bound.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

mod device;

pub use device::{AttachError, BindError, Coherent, Direction, DmaAddress, DmaDevice, DmaError, Resolution, attach};
