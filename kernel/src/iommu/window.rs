//! Where devices' own pages lie: at the same addresses in a device's tables and in every space that it is bound to.
//!
//! So neither the rings' addresses nor the one that messages go to change when a device is bound or unbound. The
//! addresses are those that spaces keep above programs; each page of them belongs to one device.

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, VirtAddr};
use granule_arch::descriptor::MemoryType;

use crate::mm::space::{RESERVED_END, RESERVED_START};

const PAGES: usize = ((RESERVED_END.0 - RESERVED_START.0) / PAGE) as usize;
const BITS: usize = u64::BITS as usize;

/// Which of the addresses have an owner.
pub(super) struct IovaWindow([u64; PAGES / BITS]);

/// A page of a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnPage {
    /// Where the device finds it.
    pub(super) at: VirtAddr,
    /// The memory there.
    pub(super) physical: PhysAddr,
    /// Of this type.
    pub(super) memory: MemoryType,
}

impl IovaWindow {
    /// None has.
    pub(super) const fn new() -> Self {
        Self([0; PAGES / BITS])
    }

    /// The address of a free page.
    pub(super) fn take(&mut self) -> Option<VirtAddr> {
        let word = self.0.iter().position(|&word| word != u64::MAX)?;
        let bit = self.0[word].trailing_ones() as usize;
        self.0[word] |= 1 << bit;
        Some(RESERVED_START + ((word * BITS + bit) * PAGE_SIZE) as u64)
    }

    /// Gives back what [`Self::take`] gave.
    pub(super) fn give_back(&mut self, page: VirtAddr) {
        let index = (page - RESERVED_START) as usize / PAGE_SIZE;
        debug_assert!(self.0[index / BITS] >> (index % BITS) & 1 != 0, "{page} is given back, and is free");
        self.0[index / BITS] &= !(1 << (index % BITS));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_has_one_owner() {
        let mut window = IovaWindow::new();
        let all: std::collections::BTreeSet<_> = core::iter::from_fn(|| window.take()).collect();
        assert_eq!(all.len(), PAGES);
        assert!(all.iter().all(|page| (RESERVED_START..RESERVED_END).contains(page)));
        window.give_back(RESERVED_START + 0x5000);
        assert_eq!([window.take(), window.take()], [Some(RESERVED_START + 0x5000), None]);
    }
}
