//! Interrupt lines of devices: pins of functions, which share them, and lines of devices that are none.
//!
//! An interrupt does not tell which device it is of, so each that listens is asked. A level is there until its device
//! has deasserted it: **a line that no device has a reason for, or that one holds whatever it is told, is disabled**,
//! as the CPU that takes it would do nothing else.

use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};

use heapless::Vec;
use thiserror::Error;

use crate::chip::interrupt::{self, InterruptError, InterruptHandler};
use crate::platform::Interrupt;
use crate::smp::Cpu;
use crate::sync::{IrqLock, rank};

/// Devices that listen at a time.
const MOST: usize = 40;
/// Interrupts in a row that no device has a reason for, after which all lines are disabled. A few come where the line
/// of an edge went up again while its device was asked.
const MOST_STRAY: u32 = 10_000;

/// A device with a line.
pub(super) trait InterruptSource: Sync {
    /// Whether the device has a reason for an interrupt, which is acknowledged where that is not left to its handler.
    /// From the interrupt.
    fn has_interrupted(&self) -> bool;
}

#[derive(Clone, Copy)]
struct Listener {
    source: &'static dyn InterruptSource,
    handler: &'static dyn InterruptHandler,
    intid: u32,
}

/// Why a device's line is not listened to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub(super) enum LineError {
    /// It is listened to already.
    #[error("it is in use")]
    InUse,
    /// There is no room.
    #[error("more than {MOST} lines of devices are in use")]
    Full,
    /// The interrupt is unavailable.
    #[error(transparent)]
    Interrupt(#[from] InterruptError),
}

static LISTENERS: IrqLock<Vec<Listener, MOST>, { rank::INTERRUPT }> = IrqLock::new(Vec::new());
/// Interrupts that are theirs, for ever. Held while they are enabled and disabled.
static LINES: IrqLock<Vec<u32, MOST>, { rank::DEVICE }> = IrqLock::new(Vec::new());
/// Interrupts in a row that no device had a reason for.
static STRAY: AtomicU32 = AtomicU32::new(0);

/// Has `handler` run when the device of `source` interrupts by `line`, on this CPU, `cpu`.
pub(super) fn listen(
    source: &'static dyn InterruptSource,
    line: Interrupt,
    cpu: &Cpu,
    handler: &'static dyn InterruptHandler,
) -> Result<(), LineError> {
    let mut lines = LINES.lock();
    let is_listened_to = {
        let mut listeners = LISTENERS.lock();
        if listeners.iter().any(|other| ptr::addr_eq(other.source, source)) {
            return Err(LineError::InUse);
        }
        let others = listeners.iter().any(|other| other.intid == line.intid);
        listeners.push(Listener { source, handler, intid: line.intid }).map_err(|_| LineError::Full)?;
        others
    };
    let enabled = if !lines.contains(&line.intid) {
        let room = if lines.is_full() { Err(LineError::Full) } else { Ok(()) };
        room.and_then(|()| Ok(interrupt::register(line, cpu, handle)?)).map(|()| _ = lines.push(line.intid))
    } else if is_listened_to {
        Ok(())
    } else {
        interrupt::enable(line, cpu).map_err(LineError::from)
    };
    enabled.inspect_err(|_| LISTENERS.lock().retain(|other| !ptr::addr_eq(other.source, source)))
}

/// Ends [`listen`]. A line that no device is listened to at is disabled.
pub(super) fn ignore(source: &'static dyn InterruptSource) {
    let _lines = LINES.lock();
    let left = {
        let mut listeners = LISTENERS.lock();
        let index = listeners.iter().position(|other| ptr::addr_eq(other.source, source));
        let Some(Listener { intid, .. }) = index.map(|index| listeners.swap_remove(index)) else { return };
        (!listeners.iter().any(|other| other.intid == intid)).then_some(intid)
    };
    left.inspect(|&intid| interrupt::disable(intid));
}

/// Asks each device. Which line it was does not matter: each device knows its reasons.
fn handle(cpu: &Cpu) {
    let (mut index, mut has_reason) = (0, false);
    // The lock is not held while a handler runs.
    while let Some(listener) = { LISTENERS.lock().get(index).copied() } {
        if listener.source.has_interrupted() {
            has_reason = true;
            listener.handler.interrupt(cpu, 0);
        }
        index += 1;
    }
    // Not exact where two CPUs have such an interrupt: it is a limit and no account.
    let stray = if has_reason { 0 } else { STRAY.load(Ordering::Relaxed).saturating_add(1) };
    STRAY.store(stray, Ordering::Relaxed);
    if stray == MOST_STRAY {
        let lines = LINES.lock().clone();
        crate::log::error!("interrupts {:?}: no device has a reason for them; they are disabled", &lines[..]);
        lines.iter().for_each(|&intid| interrupt::disable(intid));
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use super::{InterruptSource, LineError, ignore, listen};
    use crate::chip::interrupt::{InterruptError, InterruptHandler};
    use crate::platform::{Interrupt, Trigger};
    use crate::smp::cpu::{Cpu, this_cpu};

    struct Device;

    impl InterruptSource for Device {
        fn has_interrupted(&self) -> bool {
            true
        }
    }

    impl InterruptHandler for Device {
        fn interrupt(&self, _: &Cpu, _: u16) {}
    }

    /// The tests have no interrupt controller, but for one of its own: what is asked for there has a number that no
    /// controller has.
    #[test]
    fn a_line_that_cannot_be_had_is_not_listened_to() {
        let device: &'static (Device, u8) = Box::leak(Box::new((Device, 0)));
        let line = Interrupt { intid: 4000, trigger: Trigger::Level };
        for _ in 0..100 {
            let refused = listen(&device.0, line, this_cpu(), &device.0);
            assert!(
                matches!(
                    refused,
                    Err(LineError::Interrupt(InterruptError::NoController | InterruptError::NoSuchInterrupt(4000)))
                ),
                "{refused:?}"
            );
        }
        ignore(&device.0);
    }
}
