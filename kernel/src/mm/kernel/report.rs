//! The kernel's mappings in words: the walk of an address, for fault reports and the monitor.

use core::fmt::{self, Write};

use granule_arch::addr::VirtAddr;

use super::KernelSpace;

impl KernelSpace {
    /// Writes the walk for `address`, one line a level: the table that is read, the entry, what it says.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn describe_walk(&self, address: VirtAddr, out: &mut dyn Write) -> fmt::Result {
        for step in self.tables().walk(address) {
            writeln!(
                out,
                "  level {} table {} [{:3}] {:?} {}",
                step.level,
                step.table,
                step.index,
                step.descriptor,
                step.descriptor.decoded(step.level)
            )?;
        }
        Ok(())
    }
}

/// [`KernelSpace::describe_walk`] for whoever has no kernel at hand, such as a fault report: before there is one, it
/// says so.
///
/// # Errors
/// Those of `out`.
pub fn describe_walk(address: VirtAddr, out: &mut dyn Write) -> fmt::Result {
    match crate::try_kernel() {
        Some(kernel) => kernel.space.describe_walk(address, out),
        None => writeln!(out, "  the kernel's tables are not set up yet"),
    }
}
