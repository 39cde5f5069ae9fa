//! The frame of a GICv2m: a device writes the number of a shared interrupt, which becomes pending (Arm DEN 0029,
//! appendix "GICv2m architecture"; the binding of `arm,gic-v2m-frame`).
//!
//! A number that a line has too is left to the line. Devices are not told apart, so each may write the numbers of
//! others: its interrupts, which their drivers find to be none.

use core::ops::Range;

use granule_arch::addr::{PAGE, PhysAddr, PhysRange};
use thiserror::Error;

use super::interrupt::{self, InterruptError};
use super::message::host::{MessageHost, free_registers};
use super::message::{MOST, Message};
use crate::platform::{MessageFrame, Platform};
use crate::smp::cpu::Cpu;
use crate::trap::probe::{self, ProbeFault};

/// MSI_TYPER: the first interrupt in its upper half, how many there are in its lower one, ten bits each.
const TYPER: u64 = 0x8;
/// MSI_SETSPI_NS: where devices write.
const SETSPI: u64 = 0x40;
/// MSI_IIDR: whose it is.
const IIDR: u64 = 0xfcc;
/// X-Gene's, to which devices write the number from its first one on, and NS2's, from the first shared one on.
const XGENE: u32 = 0x0600_0170;
const NS2: u32 = 0x013f;

/// Why the frame makes no interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum FrameError {
    /// It is no page of registers, or could not be mapped.
    #[error("the frame of the GICv2m at {0:?} was not mapped: it is no page, or memory or the controller is there")]
    NotMapped(PhysRange),
    /// Nothing answers there.
    #[error("the frame of the GICv2m does not answer: {0}")]
    NoAnswer(ProbeFault),
    /// Its interrupts are not shared ones.
    #[error("the GICv2m has {count} interrupts from {first} on, which are not among 32 to 1019")]
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
    Some(page(platform, platform.message_frame?).ok()?.start() + SETSPI)
}

fn page(platform: &Platform, frame: MessageFrame) -> Result<PhysRange, FrameError> {
    let page = free_registers(platform, frame.registers, PAGE).filter(|page| page.start().is_aligned(PAGE));
    page.ok_or(FrameError::NotMapped(frame.registers))
}

/// The machine's frame at work.
pub(super) struct MachineFrame {
    interrupts: Range<u32>,
    /// A device writes the interrupt's number less this.
    subtracted: u32,
    /// Those that are in use, by the number from the first on.
    taken: [bool; MOST],
}

impl MachineFrame {
    /// Starts `frame`, which is the platform's.
    pub(super) fn start(host: &dyn MessageHost, cpu: &Cpu, frame: MessageFrame) -> Result<Self, FrameError> {
        let page = page(host.platform(), frame)?;
        let mapped = host.map_registers(cpu, page).ok_or(FrameError::NotMapped(page))?;
        let read = |offset| probe::read::<u32>(mapped + offset).map_err(FrameError::NoAnswer);
        let interrupts = match frame.interrupts {
            Some(interrupts) => interrupts,
            None => read(TYPER).map(|typer| (typer >> 16 & 0x3ff, typer & 0x3ff))?,
        };
        Self::new(read(IIDR)?, interrupts)
    }

    /// A frame with this identification, of `count` interrupts from `first` on, none of which is in use. Those for
    /// which there is no room are left out.
    fn new(iidr: u32, (first, count): (u32, u32)) -> Result<Self, FrameError> {
        let end = first.saturating_add(count);
        if count == 0 || first < interrupt::SHARED || end > interrupt::COUNT as u32 {
            return Err(FrameError::NoInterrupts { first, count });
        }
        let subtracted = match iidr {
            XGENE => first,
            NS2 => interrupt::SHARED,
            _ => 0,
        };
        Ok(Self { interrupts: first..end.min(first + MOST as u32), subtracted, taken: [false; MOST] })
    }

    /// Its first interrupt.
    pub(super) fn first(&self) -> u32 {
        self.interrupts.start
    }

    /// Takes an interrupt for this CPU, `cpu`.
    pub(super) fn connect(&mut self, cpu: &Cpu) -> Result<Message, FrameError> {
        self.take(|intid| interrupt::enable_message(intid, cpu))
    }

    /// Takes the first free interrupt that `enable` does not find in use.
    fn take(&mut self, enable: impl Fn(u32) -> Result<(), InterruptError>) -> Result<Message, FrameError> {
        for (intid, taken) in self.interrupts.clone().zip(&mut self.taken).filter(|(_, taken)| !**taken) {
            match enable(intid) {
                Ok(()) => {
                    *taken = true;
                    return Ok(Message { data: intid - self.subtracted, intid });
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
            interrupt::disable_message(intid);
            *taken = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FrameError, InterruptError, MOST, MachineFrame, NS2, XGENE};

    #[test]
    fn each_interrupt_has_one_owner_at_a_time() {
        let mut frame = MachineFrame::new(0, (80, 3)).unwrap();
        // A line has the second.
        let enable = |intid| if intid == 81 { Err(InterruptError::InUse(81)) } else { Ok(()) };
        let taken = |frame: &mut MachineFrame| frame.take(enable).map(|message| message.intid);
        assert_eq!([taken(&mut frame), taken(&mut frame)], [Ok(80), Ok(82)]);
        assert_eq!(taken(&mut frame), Err(FrameError::Full));
        for intid in [80, 79, 83, 81] {
            frame.disconnect(intid);
        }
        assert_eq!([taken(&mut frame), taken(&mut frame)], [Ok(80), Err(FrameError::Full)]);
        frame.disconnect(82);
        let refused = frame.take(|_| Err(InterruptError::NoController));
        assert_eq!(refused, Err(InterruptError::NoController.into()));
        assert_eq!(taken(&mut frame), Ok(82), "what was refused is free");
    }

    #[test]
    fn its_interrupts_are_shared_ones_and_no_more_than_have_handlers() {
        let new = |first, count| MachineFrame::new(0, (first, count)).map(|frame| frame.interrupts);
        assert_eq!([new(32, 1), new(1019, 1), new(80, 64)], [Ok(32..33), Ok(1019..1020), Ok(80..144)]);
        assert_eq!(new(32, 988).map(|interrupts| interrupts.len()), Ok(MOST));
        for (first, count) in [(80, 0), (31, 4), (0, 64), (1019, 2), (1023, 1023), (u32::MAX, 2)] {
            assert_eq!(new(first, count), Err(FrameError::NoInterrupts { first, count }));
        }
    }

    /// As Linux's driver has it (irq-gic-v2m.c).
    #[test]
    fn some_frames_count_from_another_number_on() {
        for (iidr, expected) in [(0x43b, 101), (XGENE, 1), (NS2, 69)] {
            let mut frame = MachineFrame::new(iidr, (100, 8)).unwrap();
            let taken = [(); 2].map(|()| frame.take(|_| Ok(())).unwrap());
            assert_eq!((taken[1].data, taken[1].intid), (expected, 101), "{iidr:#x}");
        }
    }
}
