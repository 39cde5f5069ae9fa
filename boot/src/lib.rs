//! How Granule comes to run: the arm64 Image header, the entry at EL2 or EL1, relocation, the early map.
//!
//! The sequence is in `entry.S`, which is assembled here with the numbers that it shares with the kernel: bits of
//! descriptors and registers, addresses of the layout, offsets of the two records that assembly writes or reads. A
//! binary names what runs once the kernel is up:
//!
//! ```
//! granule_boot::entry!(granule_monitor::run);
//! ```

#![cfg_attr(target_os = "none", no_std)]

#[cfg(target_os = "none")]
mod closed;
#[cfg(target_os = "none")]
mod entry;

/// Makes a binary a Granule image: after [`granule::start::start`] the boot CPU runs `$main`, a `fn() -> !`.
#[macro_export]
macro_rules! entry {
    ($main:expr) => {
        /// The first Rust function. `entry.S` jumps here with the MMU on, on the boot stack, interrupts masked.
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        extern "C" fn kernel_main(info: &'static $crate::BootInfo) -> ! {
            let main: fn() -> ! = $main;
            $crate::start(info);
            main()
        }

        /// Where the image is to run. `entry.S` calls it before it relocates the image.
        #[cfg(target_os = "none")]
        #[unsafe(no_mangle)]
        extern "C" fn kernel_slide(info: &mut $crate::BootInfo) -> u64 {
            $crate::slide(info)
        }

        /// On the host the image is nothing: it is built for the target alone.
        #[cfg(not(target_os = "none"))]
        fn main() {}
    };
}

#[cfg(target_os = "none")]
pub use closed::open_register;
#[doc(hidden)]
pub use granule::boot_info::BootInfo;
#[cfg(target_os = "none")]
#[doc(hidden)]
pub use granule::start::{slide, start};

/// The examples of the README, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
