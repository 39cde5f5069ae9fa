//! The Interrupt Translation Service of a GICv3 (IHI 0069, 5): it makes interrupts of what devices write.

use granule_arch::addr::{PAGE_SIZE, PhysAddr};

use crate::platform::Platform;

/// The second frame of 64 KiB is what devices see, and in it the register that they write to.
const TRANSLATION_FRAME: u64 = 0x1_0000;
const TRANSLATER: u64 = TRANSLATION_FRAME + 0x40;

/// Where devices write to interrupt a CPU (GITS_TRANSLATER); `None` where the machine has no ITS. Where an SMMU
/// translates a device's accesses, its messages are translated as well: the page of this address must be mapped for it.
pub fn doorbell(platform: &Platform) -> Option<PhysAddr> {
    platform.its.and_then(|its| its.registers.start().checked_add(TRANSLATER))
}

const _: () = assert!(TRANSLATION_FRAME.is_multiple_of(PAGE_SIZE as u64));
