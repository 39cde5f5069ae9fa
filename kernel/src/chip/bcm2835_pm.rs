//! The watchdog in the power management block of a BCM2835 and its successors, by which a Raspberry Pi is reset.
//!
//! The block has no public datasheet; its registers are those of Linux's `bcm2835_wdt`. A write without the password is
//! ignored. A reset starts the firmware, which boots from the partition that PM_RSTS names in every other of its low
//! bits; 63 is no partition, and has it halt with the power as far down as the board allows.

#![allow(unsafe_code, reason = "registers of the watchdog")]

use granule_arch::addr::{PhysRange, VirtAddr};

use crate::mmio;
use crate::platform::Bcm2835Pm;
use crate::trap::probe;

/// PM_RSTC: what the watchdog does when it has run down.
const RSTC: u64 = 0x1c;
/// PM_RSTS: what was reset, and what the firmware is to do.
const RSTS: u64 = 0x20;
/// PM_WDOG: what is left of the watchdog's time, in 1/65,536 s.
const WDOG: u64 = 0x24;
/// In the uppermost byte of what is written.
const PASSWORD: u32 = 0x5a00_0000;
const PASSWORD_MASK: u32 = 0xff00_0000;
const RSTC_WRCFG: u32 = 0b11 << 4;
const RSTC_FULL_RESET: u32 = 0b10 << 4;
/// PM_RSTS: the six bits of the partition, 0 to 63.
const RSTS_PARTITION: u32 = 0x555;
/// 150 µs.
const SOON: u32 = 10;

/// The watchdog.
pub(super) struct Watchdog {
    registers: VirtAddr,
    /// It turns the machine off as well.
    pub(super) turns_off: bool,
}

/// The firmware's work after a reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AfterReset {
    /// Boots from the partition that it boots from at power-on.
    Boot,
    /// Halts.
    Halt,
}

impl Watchdog {
    /// Maps the registers; `None`, with a warning, where nothing answers.
    pub(super) fn new(pm: Bcm2835Pm, map: &mut dyn FnMut(PhysRange) -> Option<VirtAddr>) -> Option<Self> {
        let registers = map(pm.registers)?;
        if let Err(fault) = probe::read::<u32>(registers + RSTC) {
            crate::log::warn!("power: no watchdog at {}: {fault}", pm.registers.start());
            return None;
        }
        Some(Self { registers, turns_off: pm.turns_off })
    }

    /// Resets the machine, in a moment.
    pub(super) fn reset(&self, then: AfterReset) {
        let partition = if then == AfterReset::Halt { RSTS_PARTITION } else { 0 };
        self.write(RSTS, self.read(RSTS) & !RSTS_PARTITION | partition);
        self.write(WDOG, SOON);
        self.write(RSTC, self.read(RSTC) & !RSTC_WRCFG | RSTC_FULL_RESET);
    }

    fn read(&self, offset: u64) -> u32 {
        // SAFETY: a register that `new` has mapped for ever; reads of these change nothing.
        unsafe { mmio::read::<u32>(self.registers + offset) & !PASSWORD_MASK }
    }

    fn write(&self, offset: u64, value: u32) {
        // SAFETY: a register that `new` has mapped for ever. The machine is to be reset.
        unsafe { mmio::write(self.registers + offset, PASSWORD | value) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use granule_arch::addr::VirtAddr;

    use super::{AfterReset, RSTC, RSTS, WDOG, Watchdog};
    use crate::mmio::watched::{MmioAccess, at_each_access};

    /// The writes of a reset, with what the block held before.
    fn writes(then: AfterReset, rsts: u32) -> Vec<(u64, u64)> {
        let mut registers = [0_u32; 10];
        registers[RSTC as usize / 4] = 0xa500_0132;
        registers[RSTS as usize / 4] = rsts;
        let base = VirtAddr::from_ptr(&raw mut registers);
        let written = Rc::new(RefCell::new(Vec::new()));
        let record = written.clone();
        let hook = move |access| {
            if let MmioAccess::Write(at, value) = access {
                record.borrow_mut().push((at - base, value));
            }
        };
        at_each_access(hook, || Watchdog { registers: base, turns_off: true }.reset(then));
        written.take()
    }

    /// The watchdog has its time before it is started, and the firmware its order before that.
    #[test]
    fn the_password_goes_with_each_write_and_the_start_is_the_last() {
        let end = [(WDOG, 0x5a00_000a), (RSTC, 0x5a00_0122)];
        assert_eq!(writes(AfterReset::Boot, 0x5a00_1fff), [&[(RSTS, 0x5a00_1aaa)][..], &end].concat());
        assert_eq!(writes(AfterReset::Halt, 0x0000_1002), [&[(RSTS, 0x5a00_1557)][..], &end].concat());
    }
}
