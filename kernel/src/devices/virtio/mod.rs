//! Virtio devices over PCI and in memory, as version 1 of the specification has them (Virtual I/O Device, version 1.2):
//! no legacy.
//!
//! | file | what |
//! |---|---|
//! | `structures` | where a device behind PCI has its registers, by its capabilities |
//! | `mmio` | devices that are no functions: the device tree has their registers |
//! | `claim` | a device that its driver has claimed, of either kind |
//! | `transport` | the registers: status, features, queues, interrupts, configuration |
//! | `queue` | the rings of a split queue, and what is believed of what a device writes into them: nothing |
//! | `requests` | chains that are handed over until their data has arrived |
//! | `device` | all of it at work: waiters, interrupts, resets |

pub mod claim;
pub mod device;
pub mod mmio;
#[cfg(test)]
mod model;
pub mod queue;
pub mod requests;
pub mod structures;
#[cfg(test)]
mod tests;
pub mod transport;
