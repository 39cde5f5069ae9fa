//! The kernel's mappings in words: the walk of an address, for fault reports and the monitor.

use core::fmt::{self, Write};

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Kind;
use granule_pgtable::{Geometry, Granule4K};

use super::KernelSpace;
use crate::mm::layout;

impl KernelSpace {
    /// Writes the walk for `address`, one line a level: the table that is read, the entry, its meaning.
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
            if step.kind == Kind::Leaf && !step.descriptor.is_valid() && layout::is_linear(address) {
                self.describe_hidden(
                    step.descriptor.address() + (address.0 & (Granule4K::entry_size(step.level) - 1)),
                    out,
                )?;
            }
        }
        Ok(())
    }

    /// Writes why the linear map does not show `frame`.
    fn describe_hidden(&self, frame: PhysAddr, out: &mut dyn Write) -> fmt::Result {
        let in_use = self.frames.frame(frame).is_some_and(|(_, record)| record.references() != 0);
        match in_use {
            true => writeln!(out, "  {frame} is in use, and its owner has taken it out of the linear map"),
            false => writeln!(out, "  {frame} is free: this is a use after free, or of what was never allocated"),
        }
    }
}
