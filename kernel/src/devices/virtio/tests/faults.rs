//! Requests on a device whose accesses do not all arrive: each is complete when its data is there, or fails.

#![allow(unsafe_code, reason = "rings and buffers that the device reads and writes")]

extern crate std;

use std::rc::Rc;
use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use proptest::prelude::{ProptestConfig, any, prop, prop_assert, prop_assert_eq, proptest};

use super::super::model::{Chain, DeviceQueue, Memory, PAGE};
use super::super::queue::{DeviceError, Flow, MAX_SIZE, Parts, Segment};
use super::super::requests::{MAX_SEGMENTS, RequestDeadline, RequestError, RequestFrame, Requests, Ticket, Transfer};
use crate::iommu::{IsOthers, MAX_TRIES, Refusal, Resolution};
use crate::mm::space::{Access, FaultError};

const FIRST: u64 = 0x8000_0000;
/// Pages of data, after the queue's.
const PAGES: usize = 6;

/// A driver with requests, and a device that fills what it is given with bytes that tell where and which.
struct Bench {
    memory: Rc<Memory>,
    requests: Requests,
    device: DeviceQueue,
    with_device: Vec<Chain>,
    /// Pages whose faults cannot be served.
    forbidden: Vec<usize>,
    /// A record was lost.
    overflow: bool,
}

impl Bench {
    fn new() -> Self {
        let memory = Memory::new(1 + PAGES, FIRST);
        let (page, address) = memory.page(0);
        let mut requests = Requests::NONE;
        // SAFETY: the page is the queue's, and outlives it.
        unsafe { requests.begin(page, address, MAX_SIZE) };
        let device = Self::device();
        Self { memory, requests, device, with_device: Vec::new(), forbidden: Vec::new(), overflow: false }
    }

    fn device() -> DeviceQueue {
        let Parts { descriptors, driver: available, device: used } = Parts::at(FIRST);
        DeviceQueue { size: MAX_SIZE, descriptors, available, used, ..DeviceQueue::default() }
    }

    fn page(&self, number: usize) -> Segment {
        Segment { address: self.memory.page(1 + number).1, bytes: PAGE as u32, flow: Flow::FromDevice }
    }

    /// The device takes what was handed over.
    fn fetch(&mut self) {
        self.with_device.extend(self.device.fetch(&self.memory));
    }

    /// It does one request: the status last, and always that it went well.
    fn perform(&mut self, which: usize) {
        if self.with_device.is_empty() {
            return;
        }
        let chain = self.with_device.swap_remove(which % self.with_device.len());
        for (address, bytes, write) in &chain.pieces {
            match (write, bytes) {
                (true, 1) => self.memory.write(*address, &[0]),
                (true, _) => {
                    // One access for each page, as a real one would make several.
                    let filler: Vec<u8> = (0..*bytes).map(|at| Self::expected(*address + u64::from(at))).collect();
                    self.memory.write(*address, &filler);
                }
                (false, _) => _ = self.memory.read::<16>(*address),
            }
        }
        self.device.give_back(&self.memory, chain.head.into(), chain.room());
    }

    fn expected(address: u64) -> u8 {
        (address >> 12) as u8 ^ address as u8 | 1
    }

    fn has_arrived(&self, number: usize) -> bool {
        let (_, address) = self.memory.page(1 + number);
        let bytes: [u8; PAGE] = self.memory.read(address);
        bytes.iter().zip(address..).all(|(&byte, at)| byte == Self::expected(at))
    }

    /// Serves the faults in a segment, as the real one does: by making the page there.
    fn collect(&mut self) -> Result<bool, DeviceError> {
        let Self { memory, requests, forbidden, overflow, .. } = self;
        requests.collect(&mut |segment, _| {
            let range = segment.address..segment.address + u64::from(segment.bytes);
            if core::mem::take(overflow) {
                memory.faults.borrow_mut().clear();
                return Resolution::Overflow;
            }
            let mut faults = memory.faults.borrow_mut();
            let before = faults.len();
            let mut failed = false;
            faults.retain(|fault| {
                if range.contains(&fault.address) {
                    let page = ((fault.address - FIRST) as usize) / PAGE;
                    failed |= forbidden.contains(&(page - 1));
                    memory.set_mapped(page, true);
                }
                !range.contains(&fault.address)
            });
            match (failed, before - faults.len()) {
                (true, _) => Resolution::Failed(FaultError::NotMapped),
                (false, 0) => Resolution::NoFault,
                (false, _) => Resolution::Resolved,
            }
        })
    }

    fn unmap(&self, number: usize) {
        self.memory.set_mapped(1 + number, false);
    }

    /// Until the request is over, some rounds at most.
    fn finish(&mut self, ticket: Ticket) -> Option<Result<Transfer, RequestError>> {
        for _ in 0..2 * MAX_TRIES {
            self.fetch();
            self.perform(0);
            self.collect().unwrap();
            if let Some(result) = self.requests.take(ticket) {
                return Some(result);
            }
        }
        None
    }
}

/// The record of a fault is of a page, and is there once however many requests have met it: who takes it takes it for
/// all of them.
#[test]
fn a_fault_is_every_requests_that_has_the_page() {
    let mut bench = Bench::new();
    bench.unmap(0);
    let submit = |bench: &mut Bench| {
        let page = bench.page(0);
        bench.requests.submit(RequestFrame::Header([7; 16]), &[page]).unwrap()
    };
    let tickets = [submit(&mut bench), submit(&mut bench)];
    bench.fetch();
    bench.perform(0);
    bench.perform(0);
    assert!(!bench.has_arrived(0));
    bench.collect().unwrap();
    for ticket in tickets {
        assert_eq!(bench.requests.take(ticket), None, "neither is over: nothing has arrived");
    }
    for ticket in tickets {
        let transfer = bench.finish(ticket).unwrap().unwrap();
        assert!(bench.has_arrived(0) && transfer.tries == 2);
    }
}

/// A record is of a page: a request with another part of it may have met the same fault, and has no record of its own.
#[test]
fn a_fault_is_every_requests_that_has_a_part_of_the_page() {
    let mut bench = Bench::new();
    let page = bench.page(0);
    let part = |at: u64, bytes: u32| Segment { address: page.address + at, bytes, ..page };
    // The second reaches into the next page, where the third is; the fourth is read by the device.
    let parts =
        [part(0x100, 16), part(0xff0, 32), part(0x1010, 16), Segment { flow: Flow::ToDevice, ..part(0x200, 16) }];
    let tickets = parts.map(|part| bench.requests.submit(RequestFrame::None, &[part]).unwrap());
    bench.fetch();
    (0..parts.len()).for_each(|_| bench.perform(0));
    let mut recorded = true;
    let mut resolve = |segment: Segment, _: &IsOthers<'_>| match segment.address == parts[0].address
        && core::mem::take(&mut recorded)
    {
        true => Resolution::Resolved,
        false => Resolution::NoFault,
    };
    assert_eq!(bench.requests.collect(&mut resolve), Ok(true));
    assert_eq!(tickets.map(|ticket| bench.requests.tries(ticket)), [2, 2, 1, 1]);
    assert_eq!(tickets.map(|ticket| bench.requests.is_in_flight(ticket)), [true, true, false, false]);
}

/// The request that comes back asks for each refusal whether any that the device has may have met it.
#[test]
fn a_refusal_is_of_a_request_or_of_none() {
    let mut bench = Bench::new();
    let [first, second] = [0, 1].map(|page| bench.page(page));
    let requests = [&[first][..], &[second]].map(|part| bench.requests.submit(RequestFrame::None, part).unwrap());
    bench.fetch();
    bench.perform(0);
    let of = |address, access| Refusal { page: VirtAddr(address), access };
    let mut asked = 0;
    let mut resolve = |_: Segment, is_others: &IsOthers<'_>| {
        asked += 1;
        assert!(is_others(&of(second.address, Access::Write)) && is_others(&of(first.address, Access::Write)));
        assert!(!is_others(&of(second.address, Access::Read)));
        assert!(!is_others(&of(second.address + PAGE as u64, Access::Write)));
        Resolution::NoFault
    };
    assert_eq!(bench.requests.collect(&mut resolve), Ok(false));
    assert_eq!((asked, bench.requests.is_in_flight(requests[1])), (1, true));
}

#[test]
fn a_frame_goes_around_the_data() {
    let mut bench = Bench::new();
    let header = [7; 16];
    let ticket = bench.requests.submit(RequestFrame::Header(header), &[bench.page(0)]).unwrap();
    bench.fetch();
    let pieces = bench.with_device[0].pieces.clone();
    assert_eq!(pieces.len(), 3);
    assert_eq!(bench.memory.read::<16>(pieces[0].0), header);
    assert_eq!((pieces[0].1, pieces[0].2, pieces[2].1, pieces[2].2), (16, false, 1, true));
    let written = PAGE as u32 + 1;
    assert_eq!(bench.finish(ticket), Some(Ok(Transfer { written, status: 0, tries: 1 })));
    assert_eq!(bench.requests.take(ticket), None, "a result is taken once");
}

/// A status byte that the last request left is no answer.
#[test]
fn a_device_that_does_not_answer_has_not_said_that_all_is_well() {
    let mut bench = Bench::new();
    let first = bench.requests.submit(RequestFrame::Header([0; 16]), &[bench.page(0)]).unwrap();
    assert!(matches!(bench.finish(first), Some(Ok(Transfer { status: 0, .. }))));
    let second = bench.requests.submit(RequestFrame::Header([0; 16]), &[bench.page(0)]).unwrap();
    bench.fetch();
    let chain = bench.with_device.remove(0);
    bench.device.give_back(&bench.memory, chain.head.into(), 0);
    assert_eq!(bench.collect(), Ok(false));
    assert_eq!(bench.requests.take(second), Some(Ok(Transfer { written: 0, status: u8::MAX, tries: 1 })));
}

#[test]
fn data_that_did_not_arrive_is_asked_for_again() {
    let mut bench = Bench::new();
    bench.unmap(0);
    bench.unmap(1);
    let ticket = bench.requests.submit(RequestFrame::None, &[bench.page(0), bench.page(1)]).unwrap();
    let Some(Ok(transfer)) = bench.finish(ticket) else { panic!("it failed") };
    assert_eq!(transfer.tries, 2);
    assert!(bench.has_arrived(0) && bench.has_arrived(1));
    assert_eq!(bench.requests.resubmitted(), 1);
}

/// The device's word is what a driver must not go by: it is the same with and without the data.
#[test]
fn who_believes_the_device_loses_data() {
    let mut bench = Bench::new();
    bench.unmap(0);
    let ticket = bench.requests.submit(RequestFrame::Header([0; 16]), &[bench.page(0)]).unwrap();
    bench.fetch();
    bench.perform(0);
    assert_eq!(bench.requests.collect(&mut |_, _| Resolution::NoFault), Ok(false));
    let believed = bench.requests.take(ticket);
    assert!(matches!(believed, Some(Ok(Transfer { status: 0, tries: 1, .. }))));
    bench.memory.set_mapped(1, true);
    assert!(!bench.has_arrived(0));
}

#[test]
fn what_cannot_be_served_is_an_error_of_its_request_alone() {
    let mut bench = Bench::new();
    bench.unmap(0);
    bench.forbidden.push(0);
    let bad = bench.requests.submit(RequestFrame::None, &[bench.page(0)]).unwrap();
    let good = bench.requests.submit(RequestFrame::None, &[bench.page(1)]).unwrap();
    assert_eq!(bench.finish(bad), Some(Err(RequestError::Fault(FaultError::NotMapped))));
    assert!(matches!(bench.finish(good), Some(Ok(_))));
}

#[test]
fn a_fault_that_comes_again_and_again_is_an_error() {
    let mut bench = Bench::new();
    let ticket = bench.requests.submit(RequestFrame::None, &[bench.page(0)]).unwrap();
    for round in 1..=MAX_TRIES {
        bench.unmap(0);
        bench.fetch();
        bench.perform(0);
        assert_eq!(bench.collect(), Ok(round < MAX_TRIES), "try {round}");
    }
    assert_eq!(bench.requests.take(ticket), Some(Err(RequestError::TooManyFaults(MAX_TRIES))));
    assert_eq!(bench.requests.in_flight(), 0);
}

/// A request that the device never completes, beside others whose faults are served all the time.
#[test]
fn a_request_is_waited_for_by_its_own_tries() {
    let mut bench = Bench::new();
    let stuck = bench.requests.submit(RequestFrame::None, &[bench.page(1)]).unwrap();
    bench.fetch();
    let kept = bench.with_device.remove(0);
    let mut patience = RequestDeadline::new(0);
    patience.look(&bench.requests, stuck, || 1);
    assert_eq!(patience.until(), 1, "it was handed over");
    for round in 2..100 {
        bench.unmap(0);
        let other = bench.requests.submit(RequestFrame::None, &[bench.page(0)]).unwrap();
        assert!(matches!(bench.finish(other), Some(Ok(Transfer { tries: 2, .. }))));
        patience.look(&bench.requests, stuck, || round);
        assert_eq!(patience.until(), 1, "others were handed over again {} times", bench.requests.resubmitted());
    }
    // Once its own fault is served, the device has time again.
    bench.unmap(1);
    bench.with_device.push(kept);
    bench.perform(0);
    assert_eq!(bench.collect(), Ok(true));
    patience.look(&bench.requests, stuck, || 100);
    assert_eq!(patience.until(), 100);
}

/// All that was in flight when records were lost is done again, also what comes back later; and nothing else.
#[test]
fn lost_records_make_everything_in_flight_doubtful() {
    let mut bench = Bench::new();
    let tickets: Vec<_> =
        (0..3).map(|page| bench.requests.submit(RequestFrame::None, &[bench.page(page)]).unwrap()).collect();
    bench.fetch();
    bench.overflow = true;
    bench.perform(0);
    assert_eq!(bench.collect(), Ok(true));
    let later = bench.requests.submit(RequestFrame::None, &[bench.page(3)]).unwrap();
    bench.fetch();
    while !bench.with_device.is_empty() {
        bench.perform(0);
        bench.collect().unwrap();
        bench.fetch();
    }
    for ticket in tickets {
        assert!(matches!(bench.requests.take(ticket), Some(Ok(Transfer { tries: 2, .. }))));
    }
    assert!(matches!(bench.requests.take(later), Some(Ok(Transfer { tries: 1, .. }))));
}

#[test]
fn a_reset_loses_nothing() {
    let mut bench = Bench::new();
    bench.unmap(1);
    let tickets: Vec<_> =
        (0..3).map(|page| bench.requests.submit(RequestFrame::None, &[bench.page(page)]).unwrap()).collect();
    bench.fetch();
    bench.perform(0);
    // The request that it performed is forgotten with the rest.
    let (page, address) = bench.memory.page(0);
    bench.with_device.clear();
    bench.device = Bench::device();
    // SAFETY: the page is the queue's still.
    unsafe { bench.requests.begin(page, address, MAX_SIZE) };
    bench.requests.restart(&mut |_, _| Resolution::NoFault);
    assert_eq!(bench.requests.in_flight(), 3);
    for (page, ticket) in tickets.into_iter().enumerate() {
        assert!(matches!(bench.finish(ticket), Some(Ok(_))));
        assert!(bench.has_arrived(page));
    }
}

#[test]
fn what_is_abandoned_has_its_reason() {
    let mut bench = Bench::new();
    let ticket = bench.requests.submit(RequestFrame::None, &[bench.page(0)]).unwrap();
    let other = bench.requests.submit(RequestFrame::None, &[bench.page(1)]).unwrap();
    bench.requests.give_up(ticket, RequestError::TimedOut);
    assert_eq!(bench.requests.take(other), None);
    bench.requests.abandon(RequestError::Device(DeviceError::Broken));
    assert_eq!(bench.requests.take(ticket), Some(Err(RequestError::TimedOut)));
    assert_eq!(bench.requests.take(other), Some(Err(RequestError::Device(DeviceError::Broken))));
    let many = [bench.page(0); MAX_SEGMENTS + 1];
    assert_eq!(bench.requests.submit(RequestFrame::None, &many), Err(RequestError::TooManySegments(MAX_SEGMENTS + 1)));
}

/// The reset that was to take it from the device failed, so the queue is what it was.
#[test]
fn what_comes_back_of_an_abandoned_request_is_not_the_next_ones() {
    let mut bench = Bench::new();
    let first = bench.requests.submit(RequestFrame::None, &[bench.page(0)]).unwrap();
    bench.fetch();
    bench.perform(0);
    bench.requests.abandon(RequestError::TimedOut);
    assert_eq!(bench.requests.take(first), Some(Err(RequestError::TimedOut)));
    let next = bench.requests.submit(RequestFrame::None, &[bench.page(1)]).unwrap();
    assert_eq!(bench.collect(), Ok(false));
    assert_eq!(bench.requests.take(next), None);
    assert!(matches!(bench.finish(next), Some(Ok(_))) && bench.has_arrived(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// A request that is complete has its data, whatever pages are taken away and whichever records are lost.
    #[test]
    fn what_is_complete_has_arrived(
        steps in prop::collection::vec((0..8_u8, 0..PAGES, any::<usize>()), 1..80),
    ) {
        let mut bench = Bench::new();
        // Each page is one request's at a time: what is in it is that one's.
        let mut waiting: Vec<(usize, Ticket)> = Vec::new();
        for (what, page, which) in steps {
            match what {
                0 | 1 if waiting.iter().all(|(other, _)| *other != page) => {
                    let (host, _) = bench.memory.page(1 + page);
                    // SAFETY: a page of the memory, which the device does not have now.
                    unsafe { host.write_bytes(0, PAGE) };
                    let frame = if which.is_multiple_of(2) { RequestFrame::None } else { RequestFrame::Header([1; 16]) };
                    waiting.push((page, bench.requests.submit(frame, &[bench.page(page)]).unwrap()));
                }
                // A page whose data has arrived and whose request is not over stays mapped.
                2 if bench.with_device.iter().any(|chain| chain.pieces.iter().any(|of| of.0 == bench.page(page).address)) => {
                    bench.unmap(page);
                }
                3 => bench.fetch(),
                4 | 5 => bench.perform(which),
                6 => bench.overflow = true,
                _ => _ = bench.collect(),
            }
        }
        for (page, ticket) in waiting {
            let result = bench.finish(ticket);
            prop_assert!(matches!(result, Some(Ok(_))), "page {page}: {result:?}");
            bench.memory.set_mapped(1 + page, true);
            prop_assert!(bench.has_arrived(page));
        }
        prop_assert_eq!(bench.requests.in_flight(), 0);
    }
}
