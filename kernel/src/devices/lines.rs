//! Interrupt lines of devices: pins of functions, which share them, and lines of devices that are none.
//!
//! An interrupt does not tell which device it is of, so each that listens is asked. A level is there until its device
//! has deasserted it: **a line that no device has a reason for is disabled**, as the CPU that takes it would do nothing
//! else; and so is one that a driver calls [`disable`] for. Drivers ask [`is_enabled`] whether interrupts arrive.

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
/// Interrupts that no device has a reason for, by the account of [`stray`], after which all lines are disabled.
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

/// An interrupt that is devices', for ever.
#[derive(Clone, Copy)]
struct Line {
    intid: u32,
    is_enabled: bool,
}

impl Line {
    fn disable(&mut self) {
        self.is_enabled = false;
        interrupt::disable(self.intid);
    }
}

static LISTENERS: IrqLock<Vec<Listener, MOST>, { rank::INTERRUPT }> = IrqLock::new(Vec::new());
/// Held while they are enabled and disabled.
static LINES: IrqLock<Vec<Line, MOST>, { rank::DEVICE }> = IrqLock::new(Vec::new());
/// See [`stray`].
static STRAY: AtomicU32 = AtomicU32::new(0);

/// Has `handler` run when the device of `source` interrupts by `line`, on this CPU, `cpu`.
pub(super) fn listen(
    source: &'static dyn InterruptSource,
    line: Interrupt,
    cpu: &Cpu,
    handler: &'static dyn InterruptHandler,
) -> Result<(), LineError> {
    let mut lines = LINES.lock();
    {
        let mut listeners = LISTENERS.lock();
        if listeners.iter().any(|other| ptr::addr_eq(other.source, source)) {
            return Err(LineError::InUse);
        }
        listeners.push(Listener { source, handler, intid: line.intid }).map_err(|_| LineError::Full)?;
    }
    enable(&mut lines, line, cpu).inspect_err(|_| LISTENERS.lock().retain(|other| !ptr::addr_eq(other.source, source)))
}

/// Enables a line, also one that was disabled with others listening.
fn enable(lines: &mut Vec<Line, MOST>, line: Interrupt, cpu: &Cpu) -> Result<(), LineError> {
    if let Some(other) = lines.iter_mut().find(|other| other.intid == line.intid) {
        if !other.is_enabled {
            interrupt::enable(line, cpu)?;
            other.is_enabled = true;
        }
        return Ok(());
    }
    if lines.is_full() {
        return Err(LineError::Full);
    }
    interrupt::register(line, cpu, handle)?;
    // There is room.
    let _ = lines.push(Line { intid: line.intid, is_enabled: true });
    Ok(())
}

/// Ends [`listen`]. A line that no device is listened to at is disabled.
pub(super) fn ignore(source: &'static dyn InterruptSource) {
    let mut lines = LINES.lock();
    let left = {
        let mut listeners = LISTENERS.lock();
        let index = listeners.iter().position(|other| ptr::addr_eq(other.source, source));
        let Some(Listener { intid, .. }) = index.map(|index| listeners.swap_remove(index)) else { return };
        (!listeners.iter().any(|other| other.intid == intid)).then_some(intid)
    };
    lines.iter_mut().filter(|line| left == Some(line.intid)).for_each(Line::disable);
}

/// Disables the line `intid` for all that listen there, until another begins to. From interrupts too.
pub(super) fn disable(intid: u32) {
    LINES.lock().iter_mut().filter(|line| line.intid == intid).for_each(Line::disable);
}

/// Whether interrupts of the line `intid` arrive.
pub(super) fn is_enabled(intid: u32) -> bool {
    LINES.lock().iter().any(|line| line.intid == intid && line.is_enabled)
}

/// The account of interrupts that no device has a reason for, after one more interrupt. One with a reason makes up for two:
/// the line of an edge may go up again while its device is asked, once for each. So a line that is held is found however
/// busy the others are.
const fn stray(account: u32, has_reason: bool) -> u32 {
    if has_reason { account.saturating_sub(2) } else { account.saturating_add(1) }
}

/// Asks each device. Which line it was does not matter: each device knows its reasons.
fn handle(cpu: &Cpu) {
    let mut has_reason = false;
    // The lock is not held while a handler runs. From the last on: the place of one that goes is the last's, which was
    // asked.
    let count = LISTENERS.lock().len();
    for index in (0..count).rev() {
        let Some(listener) = LISTENERS.lock().get(index).copied() else { continue };
        if listener.source.has_interrupted() {
            has_reason = true;
            listener.handler.interrupt(cpu, 0);
        }
    }
    // Not exact where two CPUs have such an interrupt: it is a limit and no account.
    let account = stray(STRAY.load(Ordering::Relaxed), has_reason);
    STRAY.store(if account < MOST_STRAY { account } else { 0 }, Ordering::Relaxed);
    if account >= MOST_STRAY {
        crate::log::error!("interrupts of devices arrive that no device has a reason for: their lines are disabled");
        LINES.lock().iter_mut().for_each(Line::disable);
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use core::sync::atomic::{AtomicU32, Ordering};

    use super::{
        InterruptSource, LINES, LISTENERS, Line, LineError, Listener, MOST_STRAY, disable, handle, ignore, is_enabled,
        listen, stray,
    };
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

    /// The first ends its claim while it is asked.
    struct Goes(AtomicU32);

    impl InterruptSource for Goes {
        fn has_interrupted(&self) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed);
            let first = LISTENERS.lock().first().map(|listener| listener.source);
            first.into_iter().for_each(ignore);
            true
        }
    }

    #[test]
    fn each_device_is_asked_though_others_go_and_a_line_without_one_is_disabled() {
        let [one, two, three]: [&'static Goes; 3] = [0; 3].map(|_| &*Box::leak(Box::new(Goes(AtomicU32::new(0)))));
        let handler: &'static Device = Box::leak(Box::new(Device));
        let _ = LINES.lock().push(Line { intid: 4001, is_enabled: true });
        for source in [one, two, three] {
            let _ = LISTENERS.lock().push(Listener { source, handler, intid: 4001 });
        }
        handle(this_cpu());
        assert!([two, three].iter().all(|source| source.0.load(Ordering::Relaxed) > 0));
        for source in [one, two, three] {
            ignore(source);
        }
        assert!(!is_enabled(4001));
        LINES.lock().iter_mut().for_each(|line| line.is_enabled = true);
        disable(4002);
        assert!(is_enabled(4001) && !is_enabled(4002));
        disable(4001);
        assert!(!is_enabled(4001));
    }

    #[test]
    fn a_line_that_is_held_is_found_however_busy_others_are() {
        let after = |rounds: u32, busy: u32| (0..rounds).fold(0, |account, round| stray(account, round % busy == 0));
        assert!(after(100_000, 2) < 2, "one more for each");
        assert!(after(100_000, 10) > MOST_STRAY, "a held line, and a reason in ten");
        assert_eq!(stray(u32::MAX, false), u32::MAX);
    }
}
