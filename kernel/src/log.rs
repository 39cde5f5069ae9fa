//! The kernel's messages, by the `log` crate. All records are handed over in one place: they carry no file and
//! line, which the log does not show and which took 130 bytes of the image each.

use core::fmt;

use ::log::Level;

/// Logs `text`, from any context in which the console may be written.
#[cold]
#[inline(never)]
pub(crate) fn write(level: Level, text: fmt::Arguments<'_>) {
    ::log::log!(level, "{text}");
}

macro_rules! error {
    ($($text:tt)+) => { $crate::log::write(::log::Level::Error, ::core::format_args!($($text)+)) };
}
macro_rules! warning {
    ($($text:tt)+) => { $crate::log::write(::log::Level::Warn, ::core::format_args!($($text)+)) };
}
macro_rules! info {
    ($($text:tt)+) => { $crate::log::write(::log::Level::Info, ::core::format_args!($($text)+)) };
}
macro_rules! debug {
    ($($text:tt)+) => { $crate::log::write(::log::Level::Debug, ::core::format_args!($($text)+)) };
}

pub(crate) use {debug, error, info, warning as warn};
