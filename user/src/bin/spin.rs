//! Never ends by itself: without an argument it sleeps, with `family` a grandchild, whose parent ends, does too, with
//! `print` it prints a line from time to time, with another it computes.

#![no_std]
#![no_main]

use granule_user::prelude::*;

entry!(run);

fn run(start: Start) -> u8 {
    match start.arguments().nth(1) {
        None => sleep(|| {}),
        Some("family") => {
            if process::fork() != Ok(0) {
                sleep(|| {})
            } else if process::fork() == Ok(0) {
                println!("the family is there");
                sleep(|| {})
            } else {
                0
            }
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
