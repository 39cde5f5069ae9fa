//! Printing to standard output, a line in one call.

#![allow(unsafe_code, reason = "system calls, and memory that they map")]

use core::fmt::{self, Write};

use granule_abi::number::WRITE;

use crate::sys;

/// Bytes that are written at once.
const BUFFER: usize = 256;

/// Text on its way to standard output.
#[derive(Debug)]
pub struct Output {
    buffer: [u8; BUFFER],
    used: usize,
}

impl Output {
    /// Prints, in one call if it is no longer than [`BUFFER`].
    pub fn print(arguments: fmt::Arguments<'_>) {
        let mut output = Self { buffer: [0; BUFFER], used: 0 };
        // Only a `Display` that gives up is an error here.
        let _ = output.write_fmt(arguments);
        output.flush();
    }

    fn flush(&mut self) {
        write(1, &self.buffer[..self.used]);
        self.used = 0;
    }
}

impl Write for Output {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            if self.used == BUFFER {
                self.flush();
            }
            self.buffer[self.used] = byte;
            self.used += 1;
        }
        Ok(())
    }
}

/// Writes all of `bytes`, or as much as can be written.
pub fn write(descriptor: u32, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let arguments = [u64::from(descriptor), bytes.as_ptr() as u64, bytes.len() as u64, 0, 0, 0];
        // SAFETY: it reads `bytes`.
        match unsafe { sys::call(WRITE, arguments) } {
            Ok(written) if written > 0 => bytes = &bytes[written as usize..],
            _ => return,
        }
    }
}

/// Prints to standard output.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::print::Output::print(::core::format_args!($($argument)*)) };
}

/// Prints to standard output, and ends the line.
#[macro_export]
macro_rules! println {
    ($($argument:tt)*) => {
        $crate::print::Output::print(::core::format_args!("{}\n", ::core::format_args!($($argument)*)))
    };
}
