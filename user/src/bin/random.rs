//! Prints the random numbers that a program is given: at its start, and by getrandom.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::fmt;

use granule_user::prelude::*;

entry!(run);

/// Bytes in hexadecimal.
struct Hexadecimal([u8; 16]);

impl fmt::Display for Hexadecimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn run(start: Start) {
    let given = start.auxiliary(AT_RANDOM).expect("AT_RANDOM is there");
    // SAFETY: the kernel puts sixteen bytes there.
    let given = unsafe { (given as *const [u8; 16]).read_unaligned() };
    println!("random {}", Hexadecimal(given));
    let mut asked = [0; 16];
    // SAFETY: the call fills that many bytes there.
    let filled = unsafe { sys::call(GETRANDOM, [asked.as_mut_ptr() as u64, 16, 0, 0, 0, 0]) };
    assert_eq!(filled, Ok(16));
    println!("random {}", Hexadecimal(asked));
}
