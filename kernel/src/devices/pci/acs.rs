//! Access Control Services: whether what a function sends reaches the host, or a peer past it (PCI Express Base
//! Specification 5.0, 6.12 and 7.7.8).
//!
//! An SMMU translates what arrives at the host. A port or a device of several functions may send a request on to a peer
//! whose window the address lies in: an address of a process then reaches the registers of another device. ACS forbids
//! that, where it is there and on. As in Linux (`pci_acs_enabled`), a function that is its device's only one has no peer
//! inside, and a bit that the capability does not offer counts as wired to on.

use pci_types::PciAddress;

use super::config::{ConfigSpace, extended, extended_capabilities};

/// Source Validation, P2P Request Redirect, P2P Completion Redirect, Upstream Forwarding.
const NEEDED: u16 = 1 << 0 | 1 << 2 | 1 << 3 | 1 << 4;
/// Registers after the capability's header.
const CAPABILITY: u16 = 4;
const CONTROL: u16 = 6;

/// Turns on what isolation needs; whether it is on.
pub(super) fn enable(config: &dyn ConfigSpace, function: PciAddress) -> bool {
    let Some((_, offset)) = extended_capabilities(config, function).find(|(id, _)| *id == extended::ACS) else {
        return false;
    };
    let read = || {
        let word = config.read32(function, offset + CAPABILITY);
        (word as u16, (word >> 16) as u16)
    };
    let (offered, control) = read();
    let needed = NEEDED & offered;
    // Whole: what firmware had it allow besides is not allowed.
    if control != needed {
        config.write16(function, offset + CONTROL, needed);
    }
    read().1 & needed == needed
}
