//! The Granule kernel: everything that decides.

#![cfg_attr(target_os = "none", no_std)]
#![cfg_attr(
    not(target_os = "none"),
    allow(dead_code, reason = "on the host there is also what only the machine calls")
)]

extern crate alloc;

pub mod boot_info;
pub mod bootargs;
#[cfg(target_os = "none")]
pub mod branches;
pub mod bytes;
pub mod chip;
pub mod devices;
pub mod iommu;
pub mod lab;
pub mod linux;
mod log;
pub mod mm;
pub mod mmio;
pub mod panic;
pub mod platform;
pub mod random;
pub mod sched;
#[cfg(target_os = "none")]
pub mod services;
pub mod smp;
#[cfg(target_os = "none")]
pub mod start;
pub mod stretches;
pub mod suggest;
pub mod symbols;
pub mod sync;
pub mod trap;
pub mod uaccess;

use spin::Once;

use mm::frame::FrameAllocator;
use mm::kernel::KernelSpace;
use mm::space::Spaces;
use platform::Platform;
use platform::features::SystemFeatures;

/// Everything that there is one of, once the boot has it.
pub struct Kernel {
    /// How it was entered.
    pub boot: &'static boot_info::BootInfo,
    /// The machine, as the device tree describes it.
    pub platform: &'static Platform,
    /// The features that all CPUs have: see [`Kernel::features`].
    features: Once<SystemFeatures>,
    /// All frames.
    pub frames: &'static FrameAllocator,
    /// The kernel's address space.
    pub space: KernelSpace,
    /// The address spaces of programs.
    pub spaces: Spaces,
}

impl Kernel {
    /// The features that all CPUs have, and whether live size changes are trusted.
    ///
    /// # Panics
    /// Before the other CPUs have come up.
    pub fn features(&self) -> &SystemFeatures {
        self.features.get().expect("features are final once all CPUs have come up")
    }
}

static KERNEL: Once<Kernel> = Once::new();

/// The kernel.
///
/// # Panics
/// Before [`start::start`] has made it.
pub fn kernel() -> &'static Kernel {
    try_kernel().expect("the kernel exists once memory is set up")
}

/// The kernel, or `None` before there is one: for reports that may come at any time.
pub fn try_kernel() -> Option<&'static Kernel> {
    KERNEL.get()
}
