//! The frame of a GICv2m: a device writes the number of a shared interrupt, which becomes pending (Arm DEN 0029,
//! appendix "GICv2m architecture"; the binding of `arm,gic-v2m-frame`).
//!
//! The numbers belong to the frame: firmware gives none of them to a line. Devices are not told apart, so each may write
//! the numbers of others.

use core::ops::Range;

use granule_arch::addr::{PAGE, PhysAddr, PhysRange};
use thiserror::Error;

use super::interrupt::{self, InterruptError};
use super::its::MessageHost;
use super::message::MESSAGES;
use crate::platform::{MessageFrame, Platform};
use crate::smp::cpu::Cpu;
use crate::trap::probe::{self, ProbeFault};

/// MSI_TYPER: the first interrupt in its upper half, how many there are in its lower one, ten bits each.
const TYPER: u64 = 0x8;
/// MSI_SETSPI_NS: where devices write.
const SETSPI: u64 = 0x40;
/// Numbers of shared interrupts.
const SHARED: Range<u32> = interrupt::SHARED..1020;

/// Why the frame makes no interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FrameError {
    /// It is no page of registers, or could not be mapped.
    #[error("the frame of the GICv2m at {0:?} was not mapped: it is no page, or memory is there")]
    NotMapped(PhysRange),
    /// Nothing answers there.
    #[error("the frame of the GICv2m does not answer: {0}")]
    NoAnswer(ProbeFault),
    /// Its interrupts are not shared ones.
    #[error("the GICv2m has {count} interrupts from {first} on, which are not among {SHARED:?}")]
    NoInterrupts {
        /// The first.
        first: u32,
        /// How many.
        count: u32,
    },
    /// All are in use.
    #[error("all interrupts of the GICv2m are in use")]
    Full,
    /// The controller refuses one.
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
}

/// MSI_SETSPI_NS; `None` where the machine has no frame that can be used.
pub(super) fn doorbell(platform: &Platform) -> Option<PhysAddr> {
    Some(registers(platform, platform.message_frame?).ok()?.start() + SETSPI)
}

/// The frame's page. A device that is given memory there would write its messages to it.
fn registers(platform: &Platform, frame: MessageFrame) -> Result<PhysRange, FrameError> {
    let page = PhysRange::from_size(frame.registers.start(), PAGE);
    let page = page.filter(|page| page.start().is_aligned(PAGE) && page.end() <= frame.registers.end());
    let is_free = |page: &PhysRange| !platform.memory.iter().any(|bank| bank.overlaps(*page));
    page.filter(is_free).ok_or(FrameError::NotMapped(frame.registers))
}

/// The machine's frame at work.
pub(super) struct MachineFrame {
    interrupts: Range<u32>,
    /// Those that are in use, by the number from the first on.
    taken: [bool; MESSAGES],
}

impl MachineFrame {
    /// Starts `frame`, which is the platform's.
    pub(super) fn start(host: &dyn MessageHost, cpu: &Cpu, frame: MessageFrame) -> Result<Self, FrameError> {
        let page = registers(host.platform(), frame)?;
        let mapped = host.map_registers(cpu, page).ok_or(FrameError::NotMapped(page))?;
        let typer = probe::read::<u32>(mapped + TYPER).map_err(FrameError::NoAnswer)?;
        Self::new(frame.interrupts.unwrap_or((typer >> 16 & 0x3ff, typer & 0x3ff)))
    }

    /// A frame of `count` interrupts from `first` on, none of which is in use. What there is no room for is left out.
    fn new((first, count): (u32, u32)) -> Result<Self, FrameError> {
        let end = first.saturating_add(count);
        if count == 0 || first < SHARED.start || end > SHARED.end {
            return Err(FrameError::NoInterrupts { first, count });
        }
        Ok(Self { interrupts: first..end.min(first + MESSAGES as u32), taken: [false; MESSAGES] })
    }

    /// Its first interrupt.
    pub(super) fn first(&self) -> u32 {
        self.interrupts.start
    }

    /// Takes an interrupt for this CPU, `cpu`.
    pub(super) fn connect(&mut self, cpu: &Cpu) -> Result<u32, FrameError> {
        self.take(|intid| interrupt::enable_message(intid, cpu))
    }

    /// Takes the first free interrupt that `enable` does not find in use.
    fn take(&mut self, enable: impl Fn(u32) -> Result<(), InterruptError>) -> Result<u32, FrameError> {
        for (intid, taken) in self.interrupts.clone().zip(&mut self.taken).filter(|(_, taken)| !**taken) {
            match enable(intid) {
                Ok(()) => {
                    *taken = true;
                    return Ok(intid);
                }
                Err(InterruptError::InUse(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(FrameError::Full)
    }

    /// Gives an interrupt back, which its device sends no more.
    pub(super) fn disconnect(&mut self, intid: u32) {
        let place = intid.checked_sub(self.interrupts.start).and_then(|place| self.taken.get_mut(place as usize));
        if let Some(taken) = place {
            *taken = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FrameError, InterruptError, MachineFrame};
    use crate::chip::message::MESSAGES;

    #[test]
    fn each_interrupt_has_one_owner_at_a_time() {
        let mut frame = MachineFrame::new((80, 3)).unwrap();
        // A line has the second.
        let enable = |intid| if intid == 81 { Err(InterruptError::InUse(81)) } else { Ok(()) };
        assert_eq!([frame.take(enable), frame.take(enable)], [Ok(80), Ok(82)]);
        assert_eq!(frame.take(enable), Err(FrameError::Full));
        for intid in [80, 79, 83, 81] {
            frame.disconnect(intid);
        }
        assert_eq!([frame.take(enable), frame.take(enable)], [Ok(80), Err(FrameError::Full)]);
        frame.disconnect(82);
        let refused = frame.take(|_| Err(InterruptError::NoController));
        assert_eq!(refused, Err(InterruptError::NoController.into()));
        assert_eq!(frame.take(enable), Ok(82), "what was refused is free");
    }

    #[test]
    fn its_interrupts_are_shared_ones_and_no_more_than_have_handlers() {
        let new = |first, count| MachineFrame::new((first, count)).map(|frame| frame.interrupts);
        assert_eq!([new(32, 1), new(1019, 1), new(80, 64)], [Ok(32..33), Ok(1019..1020), Ok(80..144)]);
        assert_eq!(new(32, 988).map(|interrupts| interrupts.len()), Ok(MESSAGES));
        for (first, count) in [(80, 0), (31, 4), (0, 64), (1019, 2), (1023, 1023), (u32::MAX, 2)] {
            assert_eq!(new(first, count), Err(FrameError::NoInterrupts { first, count }));
        }
    }
}
