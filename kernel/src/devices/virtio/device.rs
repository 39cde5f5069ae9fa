//! A virtio device with one queue, at work: requests, the interrupts that end them, and what is done when it fails.
//!
//! Threads hand requests over and wait for them; each that is woken looks after all that came back. A device that asks
//! for a reset (NEEDS_RESET) gets one, and its requests once more: behind an SMMU that is what QEMU's devices do when
//! a buffer of several pages meets faults. A device that breaks the rules of its queue is reset and left alone.
//!
//! The page of the queue and its requests' frames is the driver's for ever, at an address that the device knows it by
//! whether it is bound to a process or not.

#![allow(unsafe_code, reason = "rings and buffers that the device reads and writes")]

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use super::claim::VirtioClaim;
use super::queue::Segment;
use super::requests::{RequestDeadline, RequestError, RequestFrame, Requests, Ticket, Transfer};
use super::structures::Windows;
use super::transport::{Doorbell, Registers, Translation, Transport, TransportError};
use crate::chip::interrupt::InterruptHandler;
use crate::chip::timer::Deadline;
use crate::devices::lines;
use crate::devices::pci::InterruptVector;
use crate::devices::slot::{Arrivals, BindRefused, StartError};
use crate::iommu::{Coherent, DmaDevice, IsOthers, Resolution};
use crate::sched::relax;
use crate::sched::{RwSem, WriteGuard};
use crate::smp::{Cpu, this_cpu};
use granule_arch::addr::PAGE_SIZE;

/// After so long a device is looked at though no interrupt has come.
const LOOK: Duration = Duration::from_secs(1);
/// And sooner where none can come.
const POLL: Duration = Duration::from_millis(1);
/// After so long a request is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// The queue of the devices that are driven here.
const QUEUE: u16 = 0;

/// A device with one queue.
pub struct VirtioDevice {
    transport: Transport<Windows>,
    doorbell: Doorbell,
    dma: DmaDevice,
    page: Coherent,
    vector: Option<InterruptVector>,
    requests: &'static RwSem<Requests>,
    arrivals: &'static Arrivals,
    resets: AtomicU64,
    /// Keeps the device, and with it its interrupt and, of a function, bus mastering.
    claim: VirtioClaim,
}

impl VirtioDevice {
    /// Starts the device of `claim` with those of the features `wanted` that it offers. Its interrupts go to `handler`,
    /// which counts in `arrivals`.
    ///
    /// # Errors
    /// [`StartError`].
    pub(in crate::devices) fn start(
        cpu: &Cpu,
        claim: VirtioClaim,
        wanted: u64,
        handler: &'static dyn InterruptHandler,
        requests: &'static RwSem<Requests>,
        arrivals: &'static Arrivals,
    ) -> Result<Self, StartError> {
        let windows = claim.windows(cpu)?;
        let dma = claim.attach(cpu)?;
        let translation = if dma.stream().is_some() { Translation::Required } else { Translation::None };
        let transport = Transport::start(windows, translation, wanted)?;
        let vector = claim.set_interrupt(cpu, &dma, handler)?;
        // After the calls that may fail and would not give it back.
        let page = dma.alloc_coherent(cpu, PAGE_SIZE)?;
        claim.set_reaches_memory(cpu, &dma, true);
        let set_up = Self::set_up(&transport, &page, vector, &mut requests.write());
        match set_up {
            Ok(doorbell) => {
                transport.driver_ok();
                let resets = AtomicU64::new(0);
                Ok(Self { transport, doorbell, dma, page, vector, requests, arrivals, resets, claim })
            }
            Err(error) => Err(end(cpu, (&transport, &dma, page), &claim, error).into()),
        }
    }

    /// Ends the device, whose start failed with `error` after [`Self::start`]; returns that, or that it does not obey.
    pub(in crate::devices) fn end(self, cpu: &Cpu, error: TransportError) -> TransportError {
        end(cpu, (&self.transport, &self.dma, self.page), &self.claim, error)
    }

    fn set_up(
        transport: &Transport<Windows>,
        page: &Coherent,
        vector: Option<InterruptVector>,
        requests: &mut Requests,
    ) -> Result<Doorbell, TransportError> {
        let message = matches!(vector, Some(InterruptVector::MsiX { .. })).then_some(0);
        let (size, address) = (transport.queue_size(QUEUE)?, page.address().0);
        let memory = NonNull::new(page.virt().as_ptr()).unwrap_or(NonNull::dangling());
        // SAFETY: a page of its own, which the device reaches at this address, and uses again once it is started.
        unsafe { requests.begin(memory, address, size) };
        requests.set_interrupts(vector.is_some());
        transport.set_up_queue(QUEUE, size, address, message)
    }

    /// Its registers, for what devices of its kind have.
    pub(in crate::devices) fn transport(&self) -> &Transport<Windows> {
        &self.transport
    }

    /// The features on which it and its driver have agreed.
    pub fn features(&self) -> u64 {
        self.transport.features()
    }

    /// How its interrupts arrive; `None` where it is polled.
    pub fn vector(&self) -> Option<InterruptVector> {
        self.vector
    }

    /// See [`crate::devices::slot::Driver::isolation`].
    pub(in crate::devices) fn isolation(&self) -> Result<(), BindRefused> {
        self.claim.isolation()
    }

    /// Its way to memory.
    pub fn dma(&self) -> &DmaDevice {
        &self.dma
    }

    /// Its interrupts.
    pub fn arrivals(&self) -> &'static Arrivals {
        self.arrivals
    }

    /// Requests that were handed over once more, since the start.
    pub fn resubmitted(&self) -> u64 {
        self.requests.read().resubmitted()
    }

    /// How often it was reset since the start.
    pub fn resets(&self) -> u64 {
        self.resets.load(Ordering::Relaxed)
    }

    /// See [`crate::devices::slot::Driver::acknowledge`].
    pub(in crate::devices) fn acknowledge(&self) -> bool {
        // A message is this device's alone, and of a line the reasons were read. A pin may be shared, and stays up
        // until the reason was read.
        !matches!(self.vector, Some(InterruptVector::Pin { .. })) || self.transport.interrupt_reason() != 0
    }

    /// See [`crate::devices::slot::Driver::while_idle`].
    pub(in crate::devices) fn while_idle(
        &self,
        change: &mut dyn FnMut(&DmaDevice) -> Result<(), BindRefused>,
    ) -> Result<(), BindRefused> {
        let mut requests = self.requests.write();
        self.attend(&mut requests);
        if self.claim.is_cut_off() {
            return Err(BindRefused::CutOff);
        }
        match requests.in_flight() {
            0 => change(&self.dma),
            some => Err(BindRefused::InFlight(some)),
        }
    }

    /// Hands a request over, to be waited for by [`Self::wait`].
    ///
    /// # Errors
    /// [`RequestError`]; nothing is handed over.
    pub fn submit(&self, frame: RequestFrame, segments: &[Segment]) -> Result<Ticket, RequestError> {
        let mut requests = self.requests.write();
        if self.is_cut_off() {
            return Err(RequestError::Ended);
        }
        let admit = |segment: &Segment| self.dma.admit(&segment.range(), segment.access());
        segments.iter().try_for_each(admit).map_err(RequestError::Fault)?;
        let ticket = requests.submit(frame, segments)?;
        self.ring(&requests);
        Ok(ticket)
    }

    /// Waits until the data of a request has arrived, or it has failed. Sleeps.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn wait(&self, ticket: Ticket) -> Result<Transfer, RequestError> {
        let mut patience = RequestDeadline::new(Deadline::after(PATIENCE));
        loop {
            let seen = self.arrivals.count();
            let mut requests = self.requests.write();
            self.attend(&mut requests);
            if let Some(result) = requests.take(ticket) {
                return result.inspect(|_| self.claim.attended());
            }
            patience.look(&requests, ticket, || Deadline::after(PATIENCE));
            if self.is_cut_off() {
                // It does not reach its rings any more, and what it has left off it must not go on with when it does.
                self.restart_with(&mut requests, |requests| requests.abandon(RequestError::Ended));
                continue;
            }
            if patience.until().has_passed() {
                if !self.last_look(&mut requests, ticket) {
                    requests.give_up(ticket, RequestError::TimedOut);
                    self.restart(&mut requests);
                }
                continue;
            }
            drop(requests);
            let interrupts = self.vector.is_some_and(arrives);
            let at_most = if interrupts { LOOK } else { POLL };
            if !self.arrivals.wait(seen, at_most) && interrupts && self.requests.read().has_some() {
                self.arrivals.note_missing();
            }
        }
    }

    /// Looks after the device once more, many times; whether the request came back. An emulator whose time jumps to the
    /// next deadline while all CPUs are idle gives a device no time of its host's: accesses to its registers do.
    fn last_look(&self, requests: &mut WriteGuard<'_, Requests>, ticket: Ticket) -> bool {
        const LOOKS: usize = 200_000;
        (0..LOOKS).any(|_| {
            let _ = self.transport.needs_reset();
            relax();
            self.attend(requests);
            !requests.is_in_flight(ticket)
        })
    }

    /// Hands a request over and waits for it.
    ///
    /// # Errors
    /// [`RequestError`].
    pub fn perform(&self, frame: RequestFrame, segments: &[Segment]) -> Result<Transfer, RequestError> {
        self.wait(self.submit(frame, segments)?)
    }

    /// Looks after what the device has handed back, and after the device.
    fn attend(&self, requests: &mut WriteGuard<'_, Requests>) {
        if !requests.has_some() {
            if self.transport.needs_reset() {
                crate::log::debug!("{}: it asks for a reset", self.claim);
                self.restart(requests);
            }
            return;
        }
        match requests.collect(&mut |segment, is_others| self.resolve(segment, is_others)) {
            Ok(false) => {}
            Ok(true) => self.ring(requests),
            Err(error) => {
                crate::log::error!("{}: {error}", self.claim);
                // It has no chains after this; and the waiters get the error.
                self.restart_with(requests, |requests| requests.abandon(RequestError::Device(error)));
            }
        }
    }

    /// Rings its doorbell. Not without its requests: another thread may reset it, and a device that is not ready must not
    /// be notified (Virtual I/O Device 1.2, 3.1.1).
    fn ring(&self, _: &WriteGuard<'_, Requests>) {
        self.transport.notify(self.doorbell);
    }

    /// Whether it is bound to a process that has ended.
    fn is_cut_off(&self) -> bool {
        self.dma.is_bound() && self.dma.space().is_none()
    }

    fn restart(&self, requests: &mut WriteGuard<'_, Requests>) {
        self.restart_with(requests, |_| ());
    }

    /// Resets the device and begins anew; `first` runs while it is in reset.
    fn restart_with(&self, requests: &mut WriteGuard<'_, Requests>, first: impl FnOnce(&mut Requests)) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        let restarted = self.transport.restart().and_then(|()| {
            first(requests);
            Self::set_up(&self.transport, &self.page, self.vector, requests)
        });
        match restarted {
            Ok(_) => {
                // Each is handed over again. The refusals that are left are those of requests that were given up.
                requests.restart(&mut |segment, _| self.resolve(segment, &|_| true));
                self.dma.forget_refusals();
                // Off where it did not come back before.
                self.claim.set_reaches_memory(this_cpu(), &self.dma, true);
                self.transport.driver_ok();
                self.ring(requests);
            }
            Err(error) => {
                crate::log::error!("{}: {error}", self.claim);
                // The reset may not have reached it: its access to memory is cut off.
                self.claim.set_reaches_memory(this_cpu(), &self.dma, false);
                requests.abandon(RequestError::Gone(error));
            }
        }
    }

    fn resolve(&self, segment: Segment, is_others: &IsOthers<'_>) -> Resolution {
        self.dma.resolve(this_cpu(), segment.range(), segment.access(), is_others)
    }
}

/// Whether interrupts by `vector` arrive: a line may have been disabled.
fn arrives(vector: InterruptVector) -> bool {
    match vector {
        InterruptVector::Pin { intid } | InterruptVector::Line { intid } => lines::is_enabled(intid),
        InterruptVector::MsiX { .. } | InterruptVector::Msi { .. } => true,
    }
}

/// Ends a start that failed with `error`, with the page of the device's queue: see [`end_start`].
fn end(
    cpu: &Cpu,
    (transport, dma, page): (&Transport<Windows>, &DmaDevice, Coherent),
    claim: &VirtioClaim,
    error: TransportError,
) -> TransportError {
    let (ended, is_quiet) = end_start(transport, error, || claim.set_reaches_memory(cpu, dma, false));
    if is_quiet || claim.can_be_cut_off(dma) {
        dma.free_coherent(cpu, page);
    } else {
        crate::log::error!("{claim}: nothing keeps it from memory: the page of its queue stays taken");
    }
    ended
}

/// Ends a start that failed with `error`: `cut_off` keeps the device from memory first. Returns `error`, or that the
/// device does not come out of its reset; and whether it has.
pub(super) fn end_start<R: Registers>(
    transport: &Transport<R>,
    error: TransportError,
    cut_off: impl FnOnce(),
) -> (TransportError, bool) {
    // A device that ignores the reset is cut off all the same. The reads of its status come back after its earlier
    // writes (PCI Express Base Specification, 2.4.1).
    cut_off();
    let reset = transport.reset();
    (reset.err().unwrap_or(error), reset.is_ok())
}
