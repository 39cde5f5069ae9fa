//! The runtime of the programs for EL0: a start, system calls, threads, signals, printing.
//!
//! Nothing here depends on Granule: these are static programs for Linux on arm64, with calls that Granule has too, so
//! that both kernels can be compared. A program names its main function, which may return a status:
//!
//! ```no_run
//! granule_user::entry!(run);
//!
//! fn run(_start: granule_user::Start) {
//!     granule_user::println!("hello");
//! }
//! ```
//!
//! A program that panics prints why and exits with [`PANICKED`].

#![cfg_attr(target_os = "none", no_std)]

pub mod answers;
#[cfg(target_os = "none")]
mod checked;
pub mod known;
pub mod memory;
mod own;
pub mod owned;
pub mod prelude;
pub mod print;
pub mod probe;
pub mod proc;
pub mod process;
pub mod random;
pub mod room;
pub mod seen;
pub mod served;
pub mod signal;
mod start;
pub mod sys;
pub mod tags;
pub mod thread;
pub mod time;
pub mod userfault;
pub mod waiting;

pub use granule_abi as abi;
pub use granule_abi::Errno;
pub use start::Start;

/// The status of a program that panicked.
pub const PANICKED: u8 = 101;

/// Makes `$main`, a function of [`Start`], the program's main function. It returns a [`Status`](process::Status).
#[macro_export]
macro_rules! entry {
    ($main:expr) => {
        /// The program's main function, which the runtime calls after its start.
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        fn user_main(start: $crate::Start) -> u8 {
            $crate::process::Status::status($main(start))
        }

        /// On the host a program is compiled, for its errors, and does nothing.
        #[cfg(not(target_os = "none"))]
        #[unsafe(export_name = "main")]
        extern "C" fn host_main() -> core::ffi::c_int {
            let _ = $main;
            0
        }
    };
}

/// Calls the parts of a program one after the other, each with these arguments: `parts! { (path) contents positions }`.
///
/// `parts! { named contents positions }` is a table of them, each with its name. Those of `parts! { counted ... }` get a
/// number.
#[macro_export]
macro_rules! parts {
    (named $($part:ident)*) => {
        [$((stringify!($part), (|| { $part(); }) as fn())),*]
    };
    (counted $($part:ident)*) => {
        [$((stringify!($part), (|count| { $part(count as _); }) as fn(u64))),*]
    };
    ($arguments:tt $($part:ident)*) => {
        $($part $arguments;)*
    };
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("{info}");
    process::exit_group(PANICKED)
}

/// The examples of the README, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
