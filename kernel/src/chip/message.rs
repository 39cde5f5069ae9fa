//! Interrupts that devices send as messages: what they write, and who handles it.
//!
//! A GICv3's [ITS](super::its) makes interrupts of them, or the frame of a [GICv2m](super::gicv2m). It is started by
//! the first request.
//!
//! - [`host`]: what it is started of

pub mod host;

use core::sync::atomic::{AtomicU32, Ordering};

use granule_arch::addr::{PAGE_SIZE, PhysAddr};
use spin::Once;
use thiserror::Error;

use super::gicv2m::{self, FrameError, MachineFrame};
use super::interrupt::InterruptHandler;
use super::its::{self, ItsError, MachineIts};
use crate::platform::Platform;
use crate::smp::cpu::Cpu;
use crate::sync::{IrqLock, rank};
use host::MessageHost;

pub use super::its::TABLES_SIZE;

/// Messages that there can be at a time, at most.
pub const MOST: usize = its::EVENTS;

/// The value that a device writes to [`doorbell`], and the interrupt that it raises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// The value: an event of the device for an ITS, the interrupt's number for most GICv2ms.
    pub data: u32,
    /// The interrupt's number at the controller.
    pub intid: u32,
}

/// Why devices cannot send messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum MessageError {
    /// Nothing takes them.
    #[error("the machine has neither an ITS nor a GICv2m")]
    None,
    /// The ITS refuses.
    #[error(transparent)]
    Its(#[from] ItsError),
    /// The frame of the GICv2m refuses.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// The receiver of messages.
enum Receiver {
    Its(MachineIts),
    Frame(MachineFrame),
}

/// The handler of a message, and the vector that it gets.
type Handling = (&'static dyn InterruptHandler, u16);

/// The receiver, or why there is none: it is tried once.
static RECEIVER: Once<Result<IrqLock<Receiver, { rank::DEVICE }>, MessageError>> = Once::new();
/// By the number from the receiver's first interrupt on.
static HANDLERS: [IrqLock<Option<Handling>, { rank::INTERRUPT }>; MOST] = [const { IrqLock::new(None) }; MOST];
/// The receiver's first interrupt; before there is one the largest number, of none.
static FIRST: AtomicU32 = AtomicU32::new(u32::MAX);

/// Where devices write to interrupt a CPU; `None` where nothing takes messages. Where an SMMU translates a device's
/// accesses, its messages are translated as well: the page of this address must be mapped for it.
pub fn doorbell(platform: &Platform) -> Option<PhysAddr> {
    its::doorbell(platform).or_else(|| gicv2m::doorbell(platform))
}

/// Gives `device` a new message, which interrupts this CPU, `cpu`: then `handler` is called with `vector`.
/// `last_device` is the largest DeviceID that will ever ask.
///
/// # Errors
/// Nothing takes messages, or it cannot be used, or has no room.
pub fn connect(
    host: &dyn MessageHost,
    cpu: &Cpu,
    (device, last_device): (u32, u32),
    handler: &'static dyn InterruptHandler,
    vector: u16,
) -> Result<Message, MessageError> {
    let receiver = RECEIVER.call_once(|| start(host, cpu, last_device)).as_ref().map_err(|error| *error)?;
    let mut receiver = receiver.lock();
    let message = match &mut *receiver {
        Receiver::Its(its) => {
            let event = its.connect(cpu, device)? as u32;
            Message { data: event, intid: its::FIRST + event }
        }
        Receiver::Frame(frame) => frame.connect(cpu)?,
    };
    // The device knows nothing of it yet. Each receiver has no more than there are handlers.
    if let Some(slot) = handling(message.intid) {
        *slot.lock() = Some((handler, vector));
    }
    Ok(message)
}

fn start(
    host: &dyn MessageHost,
    cpu: &Cpu,
    last_device: u32,
) -> Result<IrqLock<Receiver, { rank::DEVICE }>, MessageError> {
    let (receiver, first) = match (host.platform().its, host.platform().message_frame) {
        (Some(_), _) => (Receiver::Its(MachineIts::start(host, cpu, last_device)?), its::FIRST),
        (None, Some(frame)) => {
            let frame = MachineFrame::start(host, cpu, frame)?;
            let first = frame.first();
            (Receiver::Frame(frame), first)
        }
        (None, None) => return Err(MessageError::None),
    };
    FIRST.store(first, Ordering::Relaxed);
    Ok(IrqLock::new(receiver))
}

/// Takes a message back, which its device sends no more: its interrupt arrives no more, but on another CPU its handler
/// may still run.
pub fn disconnect(message: Message) {
    let Some(Ok(receiver)) = RECEIVER.get() else { return };
    let Some(handler) = handling(message.intid) else { return };
    // Until the handler has gone: as soon as it can, the message has another owner and another handler.
    let mut receiver = receiver.lock();
    match &mut *receiver {
        Receiver::Its(its) => {
            if let Err(error) = its.disconnect(message.data as usize) {
                crate::log::error!("interrupt {}: {error}", message.intid);
            }
        }
        Receiver::Frame(frame) => frame.disconnect(message.intid),
    }
    *handler.lock() = None;
}

/// Frames that the receiver keeps: for accounts of frames by owner.
pub fn kept_frames() -> usize {
    match RECEIVER.get() {
        Some(Ok(receiver)) if matches!(&*receiver.lock(), Receiver::Its(_)) => TABLES_SIZE as usize / PAGE_SIZE,
        _ => 0,
    }
}

/// Messages that are connected: for accounts.
pub fn connections() -> usize {
    HANDLERS.iter().filter(|handler| handler.lock().is_some()).count()
}

/// Handles the interrupt of a message; false where it has no handler.
pub(super) fn handle(cpu: &Cpu, intid: u32) -> bool {
    let Some((handler, vector)) = handling(intid).and_then(|slot| *slot.lock()) else { return false };
    handler.interrupt(cpu, vector);
    true
}

/// The place of an interrupt's handler; `None` for one that the receiver cannot raise.
fn handling(intid: u32) -> Option<&'static IrqLock<Option<Handling>, { rank::INTERRUPT }>> {
    HANDLERS.get(intid.checked_sub(FIRST.load(Ordering::Relaxed))? as usize)
}
