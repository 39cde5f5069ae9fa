//! Events of the SMMU: what devices were refused becomes faults of the space that they are bound to, or errors.
//!
//! This SMMU does not stall a transaction: it aborts, its device often reports success, and what is left is a record.
//! So a record is kept until the driver asks ([`super::DmaDevice::resolve`]) what became of a transfer.
//!
//! ```text
//! interrupt → the thread wakes ─┐
//!                               ├→ drain: each record is noted for its device → serve: handle_fault, may sleep
//! a transfer is complete ───────┘
//! ```
//! Each drain is for all devices. A device that faults faster than it is served loses records, and its overflow flag is
//! set: what it has in flight must be submitted again.
//!
//! **A fault at an entry that the CPU could write is no spurious one.** The SMMU updates neither access flag nor dirt,
//! so software does, and invalidates every TLB that has the entry; see `mm::space::fault`.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use granule_arch::addr::{PAGE, VirtAddr};
use granule_smmuv3::{Event, Events};

use super::device::{AttachedDevice, Resolution};
use super::{Devices, Iommu, lab};
use crate::mm::space::{Access, FaultError, FaultMode, Space, SpaceRef, handle_fault};
use crate::smp::Cpu;

/// Faults of a device that are kept.
const KEPT: usize = 32;
/// Events that are kept to be looked at.
const RECENT: usize = 16;
/// Lines that the log gets in a second.
const LINES: u64 = 8;

/// The event queue, and what came out of it last.
pub(super) struct Queue {
    events: Events,
    recent: heapless::Deque<Event, RECENT>,
    /// In which second lines were written, and how many.
    lines: (u64, u64),
}

impl Queue {
    pub(super) const fn new(events: Events) -> Self {
        Self { events, recent: heapless::Deque::new(), lines: (0, 0) }
    }
}

/// How often what happened.
#[derive(Default)]
pub(super) struct FaultCounters {
    events: AtomicU64,
    served: AtomicU64,
    failed: AtomicU64,
    losses: AtomicU64,
    storms: AtomicU64,
    unknown_streams: AtomicU64,
}

/// The counts of faults, to be shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultStats {
    /// Events that were drained.
    pub events: u64,
    /// Faults that were served.
    pub served: u64,
    /// Faults that could not be.
    pub failed: u64,
    /// Times that events were lost.
    pub losses: u64,
    /// Times that events came too fast, and were left waiting for a while.
    pub storms: u64,
    /// Events of streams that no driver has attached.
    pub unknown_streams: u64,
}

/// The outcome of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Outcome {
    Waiting,
    /// A pager has to serve it. The thread that completes the transfer waits for that, and not the one that serves the
    /// faults of all devices.
    Userfault,
    Served,
    Failed(FaultError),
}

/// A page that a device was refused, and what it wanted there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// The page.
    pub page: VirtAddr,
    /// The access.
    pub access: Access,
}

impl Refusal {
    /// Whether a transfer that `access`es `range` may have met it. A fetch is a read of the transfer's.
    pub fn is_of(&self, range: &Range<u64>, access: Access) -> bool {
        let page = self.page.0;
        let is_alike = (self.access == Access::Write) == (access == Access::Write);
        is_alike && page < range.end && range.start < page.saturating_add(PAGE)
    }
}

/// A refusal, and what became of it.
#[derive(Clone, Copy, Debug)]
struct DeviceFault {
    refusal: Refusal,
    /// The record that it is noted by, counted: the same page may be refused again while it is served.
    record: u64,
    outcome: Outcome,
}

impl DeviceFault {
    fn is_decided(&self) -> bool {
        !matches!(self.outcome, Outcome::Waiting | Outcome::Userfault)
    }
}

/// The faults that a device has met, until its driver has asked.
pub(super) struct Log {
    faults: heapless::Vec<DeviceFault, KEPT>,
    /// How many records there were.
    records: u64,
    /// There were more faults than are kept.
    lost: bool,
    /// Its context or stream was refused altogether.
    refused: bool,
}

impl Log {
    pub(super) const fn new() -> Self {
        Self { faults: heapless::Vec::new(), records: 0, lost: false, refused: false }
    }

    fn note(&mut self, refusal: Refusal) {
        self.records += 1;
        let noted = DeviceFault { refusal, record: self.records, outcome: Outcome::Waiting };
        let alike = |fault: &&mut DeviceFault| fault.refusal == refusal;
        if let Some(fault) = self.faults.iter_mut().find(alike) {
            // Again: what was done did not help, or came too late for it.
            *fault = noted;
        } else if let Err(noted) = self.faults.push(noted) {
            self.lost = true;
            // In place of one that no driver has asked about so far: else those that are never asked about would keep
            // every later one from being served.
            if let Some(decided) = self.faults.iter_mut().find(|fault| fault.is_decided()) {
                *decided = noted;
            }
        }
    }

    /// Whether `fault` is not reported yet, and the page was not refused again since.
    fn has(&self, fault: &DeviceFault) -> bool {
        self.faults.iter().any(|known| known.record == fault.record)
    }

    /// Sets the outcome of `served`, unless that is reported already, or the page was refused again since.
    fn set_outcome(&mut self, served: &DeviceFault, outcome: Outcome) {
        if let Some(fault) = self.faults.iter_mut().find(|fault| fault.record == served.record) {
            fault.outcome = outcome;
        }
    }

    /// The result of a transfer that `access`ed `range`. Its faults are forgotten, and so are those that no transfer
    /// in flight may have met, of which one is returned: what they kept from memory may be this transfer's data.
    fn take(&mut self, range: &Range<u64>, access: Access, is_others: &IsOthers<'_>) -> (Resolution, Option<Refusal>) {
        let (mut found, mut stray) = (Resolution::NoFault, None);
        self.faults.retain(|DeviceFault { refusal, outcome, .. }| {
            if refusal.is_of(range, access) {
                found = match (found, *outcome) {
                    (Resolution::Failed(error), _) | (_, Outcome::Failed(error)) => Resolution::Failed(error),
                    _ => Resolution::Resolved,
                };
                return false;
            }
            let is_others = is_others(refusal);
            if !is_others {
                stray = Some(*refusal);
            }
            is_others
        });
        if core::mem::take(&mut self.refused) || stray.is_some() {
            found = Resolution::Failed(FaultError::NotMapped);
            // Others that are in flight were refused as well.
            self.lost = true;
        }
        // Any transfer may have met a lost event. A failed caller resubmits nothing, so the overflow flag stays set
        // for the other waiters.
        if !matches!(found, Resolution::Failed(_)) && core::mem::take(&mut self.lost) {
            found = Resolution::Overflow;
        }
        (found, stray)
    }

    /// Forgets everything: the device has other tables.
    pub(super) fn clear(&mut self) {
        // Another CPU may still be serving one of these.
        *self = Self { records: self.records, ..Self::new() };
    }
}

/// Whether another transfer that the device has may have met a refusal.
pub type IsOthers<'a> = dyn Fn(&Refusal) -> bool + 'a;

impl Iommu {
    /// How often what happened.
    pub fn fault_stats(&self) -> FaultStats {
        let FaultCounters { events, served, failed, losses, storms, unknown_streams } = &self.counters;
        let [events, served, failed, losses, storms, unknown_streams] =
            [events, served, failed, losses, storms, unknown_streams].map(|counter| counter.load(Ordering::Relaxed));
        FaultStats { events, served, failed, losses, storms, unknown_streams }
    }

    /// Calls `each` with the events that came last, the oldest first.
    pub fn for_each_recent(&self, mut each: impl FnMut(&Event)) {
        let recent = self.events.lock().recent.clone();
        recent.iter().for_each(&mut each);
    }

    /// Notes every event for its device. Returns how many there were.
    pub(super) fn drain(&self, devices: &Devices) -> usize {
        let mut queue = self.events.lock();
        // The interrupt for lost events may be on its way. An acknowledged overflow is reported once.
        self.smmu.acknowledge_errors();
        let Queue { events, recent, lines } = &mut *queue;
        let drained = events.drain(&self.smmu, |event| {
            if recent.is_full() {
                recent.pop_front();
            }
            let _ = recent.push_back(*event);
            self.note(devices, event, lines);
        });
        self.counters.events.fetch_add(drained.events as u64, Ordering::Relaxed);
        if drained.lost {
            self.counters.losses.fetch_add(1, Ordering::Relaxed);
            devices.iter().for_each(|device| device.get().faults().lock().lost = true);
        }
        drained.events
    }

    fn note(&self, devices: &Devices, event: &Event, lines: &mut (u64, u64)) {
        let device = devices.iter().map(super::DeviceRef::get).find(|device| device.stream() == event.stream);
        match (device, event.address, event.access) {
            (Some(device), Some(address), Some(access)) if event.is_page_fault() => {
                let access = match access {
                    granule_smmuv3::Access::Read => Access::Read,
                    granule_smmuv3::Access::Write => Access::Write,
                    granule_smmuv3::Access::Execute => Access::Execute,
                };
                let page = address.align_down(PAGE);
                return device.faults().lock().note(Refusal { page, access });
            }
            (Some(device), ..) => device.faults().lock().refused = true,
            (None, ..) => {
                self.counters.unknown_streams.fetch_add(1, Ordering::Relaxed);
                // Perhaps an attached device that the SMMU knows by another number than the device tree has.
                devices.iter().for_each(|device| device.get().faults().lock().lost = true);
            }
        }
        let second = crate::chip::timer::uptime().as_secs();
        *lines = if lines.0 == second { (second, lines.1 + 1) } else { (second, 1) };
        if lines.1 <= LINES {
            crate::log::warn!("smmu: {event}");
        }
    }

    /// Serves the faults of `device` that wait, or those of them that touch what a transfer `access`ed.
    fn serve(&self, cpu: &Cpu, device: &AttachedDevice, transfer: Option<(&Range<u64>, Access)>) {
        loop {
            let is_waiting =
                |outcome| outcome == Outcome::Waiting || outcome == Outcome::Userfault && transfer.is_some();
            let waiting = |fault: &&DeviceFault| {
                is_waiting(fault.outcome) && transfer.is_none_or(|(range, access)| fault.refusal.is_of(range, access))
            };
            let next = device.faults().lock().faults.iter().find(waiting).copied();
            let Some(fault) = next else { return };
            let space = device.bound_space();
            // The read may have waited for a bind or an unbind, which forgets earlier faults: the space is another.
            if !device.faults().lock().has(&fault) {
                continue;
            }
            let Refusal { page, access } = fault.refusal;
            let served = match space {
                Some(space) => match serve_fault(&space, cpu, page, access) {
                    Err(FaultError::Userfault) if transfer.is_some() => {
                        space.userfault(cpu, page, access, FaultMode::Device)
                    }
                    served => served,
                },
                None => Err(FaultError::NotMapped),
            };
            let (counter, outcome) = match served {
                Ok(()) => (&self.counters.served, Outcome::Served),
                Err(FaultError::Userfault) => {
                    device.faults().lock().set_outcome(&fault, Outcome::Userfault);
                    continue;
                }
                Err(error) => (&self.counters.failed, Outcome::Failed(error)),
            };
            counter.fetch_add(1, Ordering::Relaxed);
            device.faults().lock().set_outcome(&fault, outcome);
        }
    }

    /// Drains the events, and serves what waits of all devices; returns how many events there were. Sleeps.
    pub(super) fn serve_all(&self, cpu: &Cpu) -> usize {
        let devices = self.devices.read();
        let drained = self.drain(&devices);
        devices.iter().for_each(|device| self.serve(cpu, device.get(), None));
        drained
    }

    /// The result of a transfer of `device` that `access`ed `range` and is complete.
    pub(super) fn resolve(
        &self,
        cpu: &Cpu,
        device: &AttachedDevice,
        (range, access): (&Range<u64>, Access),
        is_others: &IsOthers<'_>,
    ) -> Resolution {
        self.drain(&self.devices.read());
        self.serve(cpu, device, Some((range, access)));
        let (resolution, stray) = device.faults().lock().take(range, access, is_others);
        if let Some(Refusal { page, access }) = stray {
            let stream = device.stream();
            crate::log::warn!(
                "smmu: stream {stream:#x} was refused {access:?} at {page}, which is in none of its transfers"
            );
        }
        resolution
    }
}

/// Serves a fault at `page`, which lies in `space` if anywhere.
fn serve_fault(space: &SpaceRef, cpu: &Cpu, page: VirtAddr, access: Access) -> Result<(), FaultError> {
    if lab::is_on!(DEVICE_DBM_SPURIOUS) && cpu_could(space, page, access) {
        return Ok(());
    }
    handle_fault(space, cpu, page, access)
}

/// Whether a CPU that updates access flag and dirt by itself could make this access.
#[cold]
fn cpu_could(space: &Space, page: VirtAddr, access: Access) -> bool {
    let entry = space.tables().translate(page).map(|found| found.descriptor);
    entry.is_some_and(|entry| entry.is_valid() && (access != Access::Write || entry.may_be_written()))
}

/// Events within [`PAUSE`] that make a storm, and how long the queues are then left to themselves.
const STORM: usize = 64;
const PAUSE: Duration = Duration::from_millis(10);

/// How many events came lately. It does not matter how many looks found them: one event in each look, without end, keeps
/// the CPU as many in one do.
struct Rate {
    events: usize,
    /// They count until then.
    until: Duration,
}

impl Rate {
    const fn new() -> Self {
        Self { events: 0, until: Duration::ZERO }
    }

    /// Notes the events of a look at time `now`; whether those of late make a storm. Then they are counted anew.
    fn is_storm(&mut self, events: usize, now: Duration) -> bool {
        if now >= self.until {
            *self = Self { events: 0, until: now.saturating_add(PAUSE) };
        }
        self.events += events;
        let storm = self.events >= STORM;
        if storm {
            *self = Self::new();
        }
        storm
    }
}

#[cfg(target_os = "none")]
mod thread {
    use core::sync::atomic::AtomicBool;

    use spin::Once;

    use super::{Ordering, PAUSE, Rate};
    use crate::chip::interrupt;
    use crate::chip::timer::{Deadline, uptime};
    use crate::iommu::{IOMMUS, iommus};
    use crate::mm::OutOfMemory;
    use crate::platform::{Interrupt, Smmu};
    use crate::sched::{self, ThreadRef};
    use crate::smp::{Cpu, this_cpu};

    static THREAD: Once<ThreadRef> = Once::new();
    /// An SMMU has no interrupt for something, so the thread looks every [`PAUSE`].
    static POLLS: AtomicBool = AtomicBool::new(false);

    /// Starts the thread, which serves all SMMUs, and lets the interrupts of `smmus` wake it.
    pub(in super::super) fn start(cpu: &'static Cpu, smmus: &[Smmu]) -> Result<(), OutOfMemory> {
        let thread = sched::spawn_service(cpu, "smmu-faults", serve)?;
        THREAD.call_once(|| thread);
        // Of those that are driven: the others lead to nothing that is served.
        for (smmu, _) in smmus.iter().zip(&IOMMUS).filter(|(_, place)| place.is_completed()) {
            register(cpu, "event queue", smmu.event_queue, |_| wake());
            register(cpu, "global errors", smmu.global_error, |_| on_global_error());
        }
        // An interrupt by an edge that came before its handler does not come again.
        wake();
        Ok(())
    }

    /// Has `line` call `handler`, or the thread poll.
    fn register(cpu: &'static Cpu, what: &str, line: Option<Interrupt>, handler: interrupt::Handler) {
        let registered = match line {
            Some(line) => {
                interrupt::register(line, cpu, handler).inspect_err(|error| crate::log::warn!("smmu: {what}: {error}"))
            }
            None => return poll(what),
        };
        if registered.is_err() {
            poll(what);
        }
    }

    fn poll(what: &str) {
        crate::log::warn!("smmu: no interrupt for {what}: polled every {PAUSE:?}");
        POLLS.store(true, Ordering::Relaxed);
        // It may be asleep without a time.
        wake();
    }

    fn wake() {
        if let Some(thread) = THREAD.get() {
            thread.unpark();
        }
    }

    /// Interrupts are masked.
    fn on_global_error() {
        for iommu in iommus() {
            iommu.smmu.acknowledge_errors();
        }
        // The event queue may be full: what comes first then is this interrupt.
        wake();
    }

    extern "C" fn serve(_: usize) -> ! {
        // The pages that it brings are programs': where memory is short the device gets an error.
        sched::current().set_works_for_program();
        let mut rate = Rate::new();
        loop {
            let (mut drained, mut storm) = (0, false);
            for iommu in iommus() {
                let events = iommu.serve_all(this_cpu());
                if rate.is_storm(events, uptime()) {
                    iommu.counters.storms.fetch_add(1, Ordering::Relaxed);
                    storm = true;
                }
                drained += events;
            }
            // Events that come too slowly for a storm may still come without end.
            sched::relax();
            if storm || drained == 0 && POLLS.load(Ordering::Relaxed) {
                sched::sleep_until(Deadline::after(PAUSE));
            } else if drained == 0 {
                sched::park();
            }
        }
    }
}
#[cfg(target_os = "none")]
pub(super) use thread::start as start_thread;

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Access = Access::Write;

    fn page(number: u64) -> VirtAddr {
        VirtAddr(number * PAGE)
    }

    fn range(number: u64) -> Range<u64> {
        page(number).0..page(number + 1).0
    }

    fn refusal(number: u64) -> Refusal {
        Refusal { page: page(number), access: WRITE }
    }

    /// The result of a transfer, while others are in flight that may have met anything.
    fn take(log: &mut Log, range: &Range<u64>) -> Resolution {
        log.take(range, WRITE, &|_| true).0
    }

    /// A log with faults at `pages`, none served.
    fn log(pages: Range<u64>) -> Log {
        let mut log = Log::new();
        pages.for_each(|number| log.note(refusal(number)));
        log
    }

    fn failed() -> Outcome {
        Outcome::Failed(FaultError::NotMapped)
    }

    #[test]
    fn what_was_lost_is_told_to_others_where_the_first_to_ask_has_failed() {
        let mut log = log(0..KEPT as u64 + 1);
        let first = log.faults[0];
        log.set_outcome(&first, failed());
        assert_eq!(take(&mut log, &range(0)), Resolution::Failed(FaultError::NotMapped));
        assert_eq!(take(&mut log, &range(KEPT as u64)), Resolution::Overflow, "its record was lost");
        assert_eq!(take(&mut log, &range(KEPT as u64)), Resolution::NoFault);
    }

    #[test]
    fn events_that_come_one_by_one_are_a_storm_as_many_at_once_are() {
        let at = |microseconds: u64| Duration::from_secs(1) + Duration::from_micros(microseconds);
        let mut rate = Rate::new();
        assert!(rate.is_storm(STORM, at(0)));
        let ends = |step: u64| {
            let mut rate = Rate::new();
            (0..1000).position(|look| rate.is_storm(1, at(look * step)))
        };
        assert_eq!(ends(1), Some(STORM - 1));
        assert_eq!(ends(100), Some(STORM - 1), "within the time of a pause");
        assert_eq!(ends(1000), None, "ten in that time are what devices do");
    }

    #[test]
    fn a_stream_that_is_refused_completes_no_transfer_in_flight() {
        let mut log = Log::new();
        log.refused = true;
        assert_eq!(take(&mut log, &range(0)), Resolution::Failed(FaultError::NotMapped));
        assert_eq!(take(&mut log, &range(1)), Resolution::Overflow, "it was refused as well");
        assert_eq!(take(&mut log, &range(1)), Resolution::NoFault);
    }

    #[test]
    fn an_outcome_is_of_the_fault_that_was_served_and_of_no_later_one() {
        let ways: [fn(&mut Log); 3] = [|log| _ = take(log, &range(5)), Log::clear, |_| ()];
        for forget in ways {
            let mut log = log(5..6);
            let served = log.faults[0];
            forget(&mut log);
            log.note(refusal(5));
            log.set_outcome(&served, failed());
            assert_eq!(log.faults[0].outcome, Outcome::Waiting);
        }
    }

    #[test]
    fn faults_that_nobody_asks_about_make_room() {
        let mut log = log(0..KEPT as u64);
        for fault in log.faults.clone() {
            log.set_outcome(&fault, failed());
        }
        log.note(refusal(100));
        let served = *log.faults.iter().find(|fault| fault.refusal == refusal(100)).expect("it is kept, to be served");
        log.set_outcome(&served, Outcome::Served);
        assert_eq!(take(&mut log, &range(100)), Resolution::Overflow, "another's record had to go");
    }
}
