//! Never ends by itself: without an argument it sleeps, with `family` a grandchild, whose parent ends, does too, with
//! `named` it has a name that is no text, with `crowd` all the threads that it may have, with `print` it prints a line from
//! time to time, with another it computes.

#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "a system call")]

use granule_user::abi::number::PRCTL;
use granule_user::abi::process::PR_SET_NAME;
use granule_user::thread::Thread;
use granule_user::{Start, entry, println, process, sys, time};

entry!(run);

fn run(start: Start) -> u8 {
    match start.arguments().nth(1) {
        None => sleep(|| {}),
        Some("family") => {
            if process::fork() == Ok(0) && !matches!(process::fork(), Ok(0)) {
                return 0;
            }
            sleep(|| {})
        }
        Some("named") => {
            let name = c"\t\n\r'\"\\\x01\x7f\xffa";
            // SAFETY: the call reads the name up to its zero.
            let _ = unsafe { sys::call(PRCTL, [PR_SET_NAME, name.as_ptr() as u64, 0, 0, 0, 0]) };
            sleep(|| {})
        }
        Some("crowd") => {
            // They end with the process.
            while Thread::spawn(|_| _ = sleep(|| {}), 0).is_ok() {}
            sleep(|| {})
        }
        Some("print") => sleep(|| println!("still here")),
        Some(_) => loop {
            core::hint::spin_loop();
        },
    }
}

/// Sleeps, and does something now and then.
fn sleep(sometimes: impl Fn()) -> u8 {
    while time::sleep(200_000_000).is_ok() {
        sometimes();
    }
    1
}
