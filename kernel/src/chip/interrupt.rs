//! Interrupts: from a number to the function that handles it.
//!
//! The controller is behind [`InterruptController`]; the GIC's two generations and BCM2836's are its implementors. **To
//! add another**: implement the trait in a file beside `gicv3.rs`, describe the device in `platform::devices`, and
//! choose it in [`init`]. Numbers are the GIC's INTIDs (IHI 0069, 2.2): 0–15 are sent by CPUs, 16–31 are private to
//! each CPU, from 32 on they are shared; a controller with other numbers maps them to these.
//!
//! Handlers are registered once, at boot, for all CPUs, and run with interrupts masked on the CPU that took the
//! interrupt. A private interrupt is enabled on each CPU when that CPU starts; a shared one goes to the CPU that
//! registered it. Interrupts that devices send as messages have their own list ([`message`]).

#![allow(unsafe_code, reason = "calls a handler by the address that was registered")]

use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use spin::Once;
use thiserror::Error;

use super::message;
use crate::platform::{ControllerDescription, Interrupt, Trigger};
use crate::smp::cpu::Cpu;
use crate::trap::probe::ProbeFault;

/// Interrupt numbers that a handler can have: all but the GIC's special ones and the extended ranges.
pub(super) const COUNT: usize = 1020;
/// The first number that CPUs share.
pub(super) const SHARED: u32 = 32;

/// An interrupt controller. Everything but [`init_cpu`](Self::init_cpu) comes after it on the same CPU.
pub trait InterruptController: Sync {
    /// Makes this CPU take interrupts, all of its private ones disabled.
    ///
    /// # Errors
    /// The controller has no interface for this CPU, or does not answer.
    fn init_cpu(&self, cpu: &Cpu) -> Result<(), InterruptError>;
    /// Enables an interrupt: a private one on this CPU, `cpu`; a shared one, to be taken by it.
    fn enable(&self, interrupt: Interrupt, cpu: &Cpu);
    /// Disables the shared interrupt `intid`, until it is enabled again: what its line does then is nothing to any CPU.
    fn disable(&self, intid: u32);
    /// Enables the shared interrupt `intid`, an edge that a device's message raises, to be taken by `cpu`; or, for
    /// `None`, disables it, and forgets that it is pending. Returns whether it is enabled then: it is where devices can
    /// write it.
    fn set_message(&self, _intid: u32, _cpu: Option<&Cpu>) -> bool {
        false
    }
    /// Sends the interrupt `number`, 0–15, to `cpu`, which has started. The handler sees this CPU's earlier
    /// stores.
    fn send(&self, cpu: &Cpu, number: u32);
    /// Takes the most urgent pending interrupt; `None` where there is none any more.
    fn acknowledge(&self) -> Option<Acknowledged>;
    /// Ends an interrupt that this CPU acknowledged: the next one may be taken.
    fn end(&self, interrupt: Acknowledged);
}

/// An interrupt that is being handled.
#[derive(Clone, Copy, Debug)]
#[must_use = "an interrupt that is not ended blocks all others"]
pub struct Acknowledged {
    /// Its number.
    pub intid: u32,
    /// The word that the controller wants back at the end: GICv2 keeps the sender of an IPI in it.
    pub token: u32,
}

/// Why an interrupt is unavailable, or all of them are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum InterruptError {
    /// The registers could not be mapped.
    #[error("no room to map the interrupt controller at {0:?}")]
    NotMapped(PhysRange),
    /// Nothing answers where the registers are to be.
    #[error("the interrupt controller at {0} does not answer: {1}")]
    NoAnswer(PhysAddr, ProbeFault),
    /// The controller has no interface for a CPU with this affinity.
    #[error("the interrupt controller has no interface for CPU {0:#x}")]
    NoInterface(u64),
    /// The number is out of range.
    #[error("no interrupt {0}")]
    NoSuchInterrupt(u32),
    /// There is a handler already.
    #[error("interrupt {0} is in use")]
    InUse(u32),
    /// [`init`] has not run.
    #[error("no interrupt controller")]
    NoController,
}

/// A function that runs when an interrupt arrives: on the CPU that took it, interrupts masked.
pub type Handler = fn(&Cpu);

/// A driver's handler for the one or more interrupts of a device.
pub trait InterruptHandler: Sync {
    /// The device's interrupt number `vector` has arrived, on this CPU, `cpu`, with interrupts masked. An interrupt by
    /// a pin arrives again until the device has deasserted it.
    fn interrupt(&self, cpu: &Cpu, vector: u16);
}

static CONTROLLER: Once<&'static dyn InterruptController> = Once::new();
/// For each number a [`Handler`], zero for none, or [`MESSAGE`].
static HANDLERS: [AtomicUsize; COUNT] = [const { AtomicUsize::new(0) }; COUNT];
/// Of an interrupt that messages raise, for ever: no line has it.
const MESSAGE: usize = 1;
/// Private interrupts that have a handler, and those of them that are edges: for CPUs that start later.
static PRIVATE: AtomicU32 = AtomicU32::new(0);
static PRIVATE_EDGES: AtomicU32 = AtomicU32::new(0);
/// Acknowledged and gone: the line went low between the exception and the acknowledgement.
static SPURIOUS: AtomicU64 = AtomicU64::new(0);
/// Arrived without a handler.
static UNHANDLED: AtomicU64 = AtomicU64::new(0);

/// Starts the controller and this CPU's part of it. `map` maps registers as device memory, for ever; `cpus` is how many
/// CPUs the machine has, so that no more is mapped than can be used.
///
/// # Errors
/// `map` refuses, or the controller has no interface for this CPU.
pub fn init(
    description: &ControllerDescription,
    cpus: usize,
    cpu: &Cpu,
    map: &mut dyn FnMut(PhysRange) -> Option<VirtAddr>,
) -> Result<(), InterruptError> {
    let controller = probe(description, cpus, map)?;
    CONTROLLER.call_once(|| controller);
    init_cpu(cpu)
}

fn probe(
    description: &ControllerDescription,
    cpus: usize,
    map: &mut dyn FnMut(PhysRange) -> Option<VirtAddr>,
) -> Result<&'static dyn InterruptController, InterruptError> {
    #[cfg(target_os = "none")]
    return match description {
        ControllerDescription::V2 { distributor, cpu_interface } => {
            super::gicv2::init(*distributor, *cpu_interface, map)
        }
        ControllerDescription::V3 { distributor, redistributors } => {
            super::gicv3::init(*distributor, redistributors, cpus, map)
        }
        ControllerDescription::Bcm2836 { cores, shared } => super::bcm2836::init(*cores, *shared, map),
    };
    // The host has no registers to map.
    #[cfg(not(target_os = "none"))]
    {
        let _ = (description, cpus, map);
        Err(InterruptError::NoController)
    }
}

/// Makes this CPU take interrupts, with the private ones that have handlers. Its DAIF stays as it is.
///
/// # Errors
/// The controller has no interface for this CPU.
pub fn init_cpu(cpu: &Cpu) -> Result<(), InterruptError> {
    let controller = controller()?;
    controller.init_cpu(cpu)?;
    let (private, edges) = (PRIVATE.load(Ordering::Acquire), PRIVATE_EDGES.load(Ordering::Relaxed));
    for intid in (0..SHARED).filter(|intid| private & (1 << intid) != 0) {
        let trigger = if edges & (1 << intid) != 0 { Trigger::Edge } else { Trigger::Level };
        controller.enable(Interrupt { intid, trigger }, cpu);
    }
    Ok(())
}

/// Has `handler` run for `interrupt`, and enables it. Private interrupts are registered before other CPUs start.
///
/// # Errors
/// The number is out of range or in use, or there is no controller.
pub fn register(interrupt: Interrupt, cpu: &Cpu, handler: Handler) -> Result<(), InterruptError> {
    let controller = controller()?;
    let Interrupt { intid, trigger } = interrupt;
    let slot = HANDLERS.get(intid as usize).ok_or(InterruptError::NoSuchInterrupt(intid))?;
    slot.compare_exchange(0, handler as usize, Ordering::Release, Ordering::Relaxed)
        .map_err(|_| InterruptError::InUse(intid))?;
    if intid < SHARED {
        if trigger == Trigger::Edge {
            PRIVATE_EDGES.fetch_or(1 << intid, Ordering::Relaxed);
        }
        PRIVATE.fetch_or(1 << intid, Ordering::Release);
    }
    controller.enable(interrupt, cpu);
    Ok(())
}

/// Enables the shared `interrupt` again, which has a handler and was disabled by [`disable`], for this CPU, `cpu`.
///
/// # Errors
/// There is no controller.
pub fn enable(interrupt: Interrupt, cpu: &Cpu) -> Result<(), InterruptError> {
    controller()?.enable(interrupt, cpu);
    Ok(())
}

/// Disables the shared interrupt `intid`: its device has no driver, or holds its line whatever its driver does.
pub fn disable(intid: u32) {
    if let Ok(controller) = controller() {
        controller.disable(intid);
    }
}

/// Enables the shared interrupt `intid`, which is [`message`]'s from now on, for this CPU, `cpu`.
///
/// # Errors
/// A line has it, or the controller has it not.
pub(super) fn enable_message(intid: u32, cpu: &Cpu) -> Result<(), InterruptError> {
    let slot = HANDLERS.get(intid as usize).ok_or(InterruptError::NoSuchInterrupt(intid))?;
    match slot.compare_exchange(0, MESSAGE, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) | Err(MESSAGE) => {}
        Err(_) => return Err(InterruptError::InUse(intid)),
    }
    controller()?.set_message(intid, Some(cpu)).then_some(()).ok_or(InterruptError::NoSuchInterrupt(intid))
}

/// Disables an interrupt that [`enable_message`] enabled.
pub(super) fn disable_message(intid: u32) {
    if let Ok(controller) = controller() {
        controller.set_message(intid, None);
    }
}

/// Sends the interrupt `number`, 0–15, to `cpu`, which has started.
///
/// # Errors
/// There is no controller.
pub fn send(cpu: &Cpu, number: u32) -> Result<(), InterruptError> {
    controller()?.send(cpu, number);
    Ok(())
}

/// Handles one pending interrupt of this CPU. For the IRQ vector, interrupts masked.
pub fn handle_irq(cpu: &Cpu) {
    let Ok(controller) = controller() else { return };
    // One in each exception: what is pending beside it is taken when that returns. Interrupts are masked until then,
    // and the timer may be due again before its handler has returned.
    let Some(interrupt) = controller.acknowledge() else {
        SPURIOUS.fetch_add(1, Ordering::Relaxed);
        return;
    };
    match handler(interrupt.intid) {
        Some(handler) => handler(cpu),
        None if message::handle(cpu, interrupt.intid) => {}
        // Left over from the firmware, or from a device that sends what it must not. It can only be ended.
        None => drop(UNHANDLED.fetch_add(1, Ordering::Relaxed)),
    }
    controller.end(interrupt);
}

/// Interrupts that were gone when they were acknowledged, and interrupts without a handler: all CPUs, since the boot.
pub fn lost() -> (u64, u64) {
    (SPURIOUS.load(Ordering::Relaxed), UNHANDLED.load(Ordering::Relaxed))
}

fn controller() -> Result<&'static dyn InterruptController, InterruptError> {
    CONTROLLER.get().copied().ok_or(InterruptError::NoController)
}

fn handler(intid: u32) -> Option<Handler> {
    let handler = HANDLERS.get(intid as usize)?.load(Ordering::Acquire);
    // SAFETY: neither zero nor `MESSAGE`, so `register` put it there: a `Handler`.
    (handler > MESSAGE).then(|| unsafe { core::mem::transmute::<usize, Handler>(handler) })
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::{
        Acknowledged, CONTROLLER, InterruptController, InterruptError, disable, disable_message, enable,
        enable_message, handle_irq, init_cpu, lost, register,
    };
    use crate::platform::{Interrupt, Trigger};
    use crate::smp::cpu::{Cpu, this_cpu};

    /// A controller that records its calls.
    #[derive(Default)]
    struct Fake {
        enabled: Mutex<Vec<Interrupt>>,
        messages: Mutex<Vec<(u32, bool)>>,
        pending: Mutex<VecDeque<u32>>,
        ended: Mutex<Vec<u32>>,
    }

    impl InterruptController for Fake {
        fn init_cpu(&self, _: &Cpu) -> Result<(), InterruptError> {
            Ok(())
        }
        fn enable(&self, interrupt: Interrupt, _: &Cpu) {
            self.enabled.lock().unwrap().extend([interrupt]);
        }
        fn disable(&self, intid: u32) {
            self.enabled.lock().unwrap().retain(|interrupt| interrupt.intid != intid);
        }
        fn set_message(&self, intid: u32, cpu: Option<&Cpu>) -> bool {
            self.messages.lock().unwrap().push((intid, cpu.is_some()));
            intid < 60
        }
        fn send(&self, _: &Cpu, _: u32) {}
        fn acknowledge(&self) -> Option<Acknowledged> {
            let intid = self.pending.lock().unwrap().pop_front()?;
            Some(Acknowledged { intid, token: intid | 0x400 })
        }
        fn end(&self, interrupt: Acknowledged) {
            self.ended.lock().unwrap().extend([interrupt.token]);
        }
    }

    static HITS: AtomicU32 = AtomicU32::new(0);

    fn hit(_: &Cpu) {
        HITS.fetch_add(1, Ordering::Relaxed);
    }

    /// One test, since there is one table of handlers.
    #[test]
    fn handlers_are_registered_once_and_everything_acknowledged_is_ended() {
        let fake: &'static Fake = std::boxed::Box::leak(std::boxed::Box::default());
        let interrupt = |intid, trigger| Interrupt { intid, trigger };
        assert_eq!(register(interrupt(40, Trigger::Edge), this_cpu(), hit), Err(InterruptError::NoController));
        CONTROLLER.call_once(|| fake);

        let (timer, device) = (interrupt(27, Trigger::Level), interrupt(40, Trigger::Edge));
        register(timer, this_cpu(), hit).unwrap();
        register(device, this_cpu(), hit).unwrap();
        assert_eq!(register(device, this_cpu(), hit), Err(InterruptError::InUse(40)));
        let beyond = interrupt(1020, Trigger::Edge);
        assert_eq!(register(beyond, this_cpu(), hit), Err(InterruptError::NoSuchInterrupt(1020)));
        assert_eq!(*fake.enabled.lock().unwrap(), [timer, device]);
        disable(40);
        assert_eq!(*fake.enabled.lock().unwrap(), [timer]);
        assert_eq!(register(device, this_cpu(), hit), Err(InterruptError::InUse(40)), "its handler stays");
        enable(device, this_cpu()).unwrap();
        assert_eq!(*fake.enabled.lock().unwrap(), [timer, device]);

        // A number is a line's or a message's, and what it was once it stays.
        assert_eq!(enable_message(40, this_cpu()), Err(InterruptError::InUse(40)));
        assert_eq!(enable_message(50, this_cpu()), Ok(()));
        disable_message(50);
        assert_eq!(register(interrupt(50, Trigger::Edge), this_cpu(), hit), Err(InterruptError::InUse(50)));
        assert_eq!(enable_message(50, this_cpu()), Ok(()));
        assert_eq!(
            [60, 1020].map(|intid| enable_message(intid, this_cpu())),
            [60, 1020].map(|intid| Err(InterruptError::NoSuchInterrupt(intid)))
        );
        assert_eq!(*fake.messages.lock().unwrap(), [(50, true), (50, false), (50, true), (60, true)]);

        // A CPU that starts later gets the private one alone.
        fake.enabled.lock().unwrap().clear();
        init_cpu(this_cpu()).unwrap();
        assert_eq!(*fake.enabled.lock().unwrap(), [timer]);

        fake.pending.lock().unwrap().extend([40, 27, 50]);
        handle_irq(this_cpu());
        assert_eq!(HITS.load(Ordering::Relaxed), 1, "one interrupt in each exception");
        (0..2).for_each(|_| handle_irq(this_cpu()));
        assert_eq!(HITS.load(Ordering::Relaxed), 2);
        assert_eq!(*fake.ended.lock().unwrap(), [40 | 0x400, 27 | 0x400, 50 | 0x400]);
        assert_eq!(lost(), (0, 1), "one without a handler");
        handle_irq(this_cpu());
        assert_eq!(lost(), (1, 1), "and one that was gone");
    }
}
