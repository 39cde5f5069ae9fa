//! Memory of a device that does not see the CPUs' caches: in none of them while it is mapped for the device.

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, VirtAddr};
use granule_arch::barrier;

use super::{Direction, DmaAddress, DmaDevice, DmaError};
use crate::smp::Cpu;
use crate::trap::probe;

/// Bytes that a cache writes at once, at most: Linux's ARCH_DMA_MINALIGN.
const LINE: u64 = 128;

impl DmaDevice {
    /// [`Self::map`] for such a device.
    #[cold]
    #[inline(never)]
    pub(super) fn map_uncached(
        &self,
        cpu: &Cpu,
        physical: PhysAddr,
        bytes: usize,
        direction: Direction,
    ) -> Result<DmaAddress, DmaError> {
        Self::check_lines(physical, bytes, direction)?;
        // From its first access on the device finds there what the CPUs have stored, and nothing is written over its own.
        let dropped = self.drop_lines(physical, bytes).collect::<Result<(), _>>();
        barrier::dsb_sy();
        dropped?;
        self.show(cpu, physical, bytes, direction)
    }

    /// Whether no line of memory that the device is to write has other bytes: a CPU that changed those would write the
    /// line over what the device wrote (Linux's rule for buffers).
    fn check_lines(physical: PhysAddr, bytes: usize, direction: Direction) -> Result<(), DmaError> {
        let has_whole_lines = physical.is_aligned(LINE) && (bytes as u64).is_multiple_of(LINE);
        if direction == Direction::ToDevice || has_whole_lines { Ok(()) } else { Err(DmaError::PartOfLine(physical)) }
    }

    /// Takes memory out of the CPUs' caches page by page, so that the device reads what they have stored, and no line is
    /// written back over what it writes. A page that the linear map does not show is an error: it may be invalid there.
    /// The caller has a DSB follow.
    fn drop_lines(&self, physical: PhysAddr, bytes: usize) -> impl Iterator<Item = Result<(), DmaError>> {
        let (linear, end) = (self.frames().linear(), physical.0.saturating_add(bytes as u64));
        (physical.align_down(PAGE).0..end).step_by(PAGE_SIZE).map(move |page| {
            let first = PhysAddr(page.max(physical.0));
            let bytes = end.min(page.saturating_add(PAGE)) - first.0;
            probe::drop_lines(linear.address(first), bytes).map_err(|_| DmaError::NotShown(first))
        })
    }

    /// [`Self::drop_lines`] once the device has written: speculation may have fetched lines since.
    #[cold]
    pub(super) fn drop_fetched(&self, address: DmaAddress, bytes: usize) {
        let physical = match self.device() {
            None => Some(PhysAddr(address.0)),
            Some(device) => device.domain.translate(VirtAddr(address.0)),
        };
        if let Some(physical) = physical {
            self.drop_lines(physical, bytes).for_each(drop);
            barrier::dsb_sy();
        }
    }
}
