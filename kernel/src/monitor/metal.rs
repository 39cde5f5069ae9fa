//! The session on the machine that the kernel runs on: its console, and the kernel's own functions.

use core::fmt::{self, Write};

use super::Subject;
use crate::drivers::console;
use crate::drivers::power::{self, Status};

/// The console as a place to write to.
pub(super) struct Screen;

impl Write for Screen {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.write_fmt(format_args!("{text}"))
    }

    /// One call, however many pieces: other CPUs print before it or behind it, not in between.
    fn write_fmt(&mut self, arguments: fmt::Arguments<'_>) -> fmt::Result {
        console::print(arguments);
        Ok(())
    }
}

/// This machine.
pub(super) struct Metal;

impl Subject for Metal {
    fn power_off(&mut self, status: Status) {
        power::off(status)
    }

    fn reset(&mut self) {
        power::reset()
    }
}
