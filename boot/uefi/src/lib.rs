//! The EFI stub's decisions, apart from the firmware that it calls: which memory is the kernel's, where the kernel
//! goes, which device tree it gets, and which boot arguments. The binary `efi-stub` has the calls.
//!
//! UEFI specification 2.10: 7.2 (memory map), 9.1 (load options), 13.2 (`EFI_LOAD_FILE2_PROTOCOL`).

#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod file;
pub mod memory;
pub mod options;
/// The kernel's check of a flattened tree.
#[path = "../../../kernel/src/platform/structure.rs"]
mod structure;
pub mod tree;
