//! The EFI stub: from the firmware's call to the entry of the kernel's Image.
//!
//! It runs at EL1 or EL2, with the firmware's MMU, caches and interrupts, at an address of the firmware's choice. An
//! error before boot services end is printed on the firmware's console and returned; nothing that can fail comes after.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod firmware;
#[cfg(target_os = "none")]
mod handover;
#[cfg(target_os = "none")]
mod services;

/// On the host the stub is nothing: it is built for the target alone.
#[cfg(not(target_os = "none"))]
fn main() {}
