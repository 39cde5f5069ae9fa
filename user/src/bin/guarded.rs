//! A program whose property says that its code is made for guarded pages, and which calls an instruction that is no
//! landing pad: SIGILL where its pages are guarded, and an exit status of 1 where they are not.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "a call that faults on purpose")]

use granule_user::prelude::*;

entry!(run);

fn run(_: Start) -> u8 {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: it goes on behind the branch, with other values in the registers that a call may change.
    unsafe {
        core::arch::asm!("adr x9, 1f", "blr x9", "1:", "nop", clobber_abi("C"));
    }
    1
}
