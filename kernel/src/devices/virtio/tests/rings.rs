//! The driver's side of a queue against a device that decodes the rings by itself.

#![allow(unsafe_code, reason = "rings and buffers that the device reads and writes")]

extern crate std;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::vec::Vec;

use granule_arch::recorded::{at_each, record};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::super::model::{Chain, DeviceQueue, Memory};
use super::super::queue::{
    ChainHead, Completion, DeviceError, Flow, MAX_SIZE as SIZE, Parts, Segment, SubmitError, VirtQueue,
};

/// Where the device knows the memory.
const FIRST: u64 = 0x8000_0000;

struct Pair {
    memory: Rc<Memory>,
    driver: VirtQueue,
    device: DeviceQueue,
}

fn pair() -> Pair {
    pair_of(SIZE)
}

fn pair_of(size: u16) -> Pair {
    let memory = Memory::new(1, FIRST);
    let (page, address) = memory.page(0);
    let mut driver = VirtQueue::NONE;
    // SAFETY: the page is the queue's, and outlives it.
    unsafe { driver.begin(page, size) };
    let Parts { descriptors, driver: available, device: used } = Parts::at(address);
    Pair { memory, driver, device: DeviceQueue { size, descriptors, available, used, ..DeviceQueue::default() } }
}

fn segment(address: u64, bytes: u32, flow: Flow) -> Segment {
    Segment { address, bytes, flow }
}

/// A chain of one segment that the device may write 16 bytes of.
fn one() -> [Segment; 1] {
    [segment(0x1000, 16, Flow::FromDevice)]
}

#[test]
fn the_parts_are_where_the_specification_has_them() {
    let parts = Parts::at(0x1_0000);
    assert_eq!(parts.descriptors, 0x1_0000);
    assert_eq!(parts.driver, 0x1_0000 + 16 * u64::from(SIZE));
    // Six bytes and two for each entry (the event index counts), and then aligned to four.
    assert_eq!(parts.device, (parts.driver + 6 + 2 * u64::from(SIZE)).next_multiple_of(4));
}

#[test]
fn what_is_no_chain_is_refused() {
    let mut pair = pair();
    let (out, back) = (segment(1, 1, Flow::ToDevice), segment(2, 1, Flow::FromDevice));
    assert_eq!(pair.driver.submit(&[]), Err(SubmitError::BadChain(0)));
    assert_eq!(pair.driver.submit(&[back, out]), Err(SubmitError::BadChain(2)));
    assert_eq!(pair.driver.submit(&[segment(1, 0, Flow::ToDevice)]), Err(SubmitError::BadChain(1)));
    assert_eq!(pair.driver.submit(&[out; SIZE as usize + 1]), Err(SubmitError::BadChain(65)));
    let half = segment(0, 1 << 31, Flow::FromDevice);
    assert_eq!(pair.driver.submit(&[half; 2]), Err(SubmitError::BadChain(2)), "more than a device can say it wrote");
    assert!(pair.device.fetch(&pair.memory).is_empty());
    assert_eq!((pair.driver.free_count(), pair.driver.in_flight()), (SIZE, 0));
    assert!(pair.driver.submit(&[out; SIZE as usize]).is_ok());
    assert_eq!(pair.driver.submit(&[out]), Err(SubmitError::Full));
}

#[test]
fn a_queue_is_as_large_as_the_device_bears() {
    for (most, size) in [(0, None), (1, Some(1)), (3, Some(2)), (8, Some(8)), (64, Some(64)), (1024, Some(64))] {
        assert_eq!(VirtQueue::size_for(most), size);
    }
    let mut none = pair_of(0);
    assert_eq!(none.driver.submit(&one()), Err(SubmitError::BadChain(1)));
    assert_eq!(none.driver.take(), Ok(None));
    let mut nowhere = VirtQueue::NONE;
    assert_eq!((nowhere.submit(&one()), nowhere.take()), (Err(SubmitError::BadChain(1)), Ok(None)));
    assert!(!nowhere.has_used());
}

#[test]
fn indices_wrap() {
    let mut pair = pair_of(8);
    for round in 0..70_000_u32 {
        let head = pair.driver.submit(&one()).unwrap();
        let chains = pair.device.fetch(&pair.memory);
        assert_eq!(chains.len(), 1);
        pair.device.give_back(&pair.memory, chains[0].head.into(), round % 17);
        assert_eq!(pair.driver.take(), Ok(Some(Completion { head, written: round % 17 })));
        assert_eq!(pair.driver.take(), Ok(None));
    }
}

#[test]
fn interrupts_can_be_turned_off() {
    let mut pair = pair();
    assert!(!pair.device.is_quiet(&pair.memory));
    pair.driver.set_interrupts(false);
    assert!(pair.device.is_quiet(&pair.memory));
    pair.driver.set_interrupts(true);
    assert!(!pair.device.is_quiet(&pair.memory));
}

/// The device's view of memory at each barrier of a submission: DMB OSHST twice (2.7.13.3, 2.7.13.4).
#[test]
fn a_chain_is_there_before_its_index_and_that_before_the_notification() {
    let Pair { memory, mut driver, mut device } = pair();
    // Ahead of it another, so that neither its head nor its place is zero.
    driver.submit(&one()).unwrap();
    device.fetch(&memory);
    let segments = [segment(0x3000, 7, Flow::ToDevice), segment(0x4000, 9, Flow::FromDevice)];
    let seen = Rc::new(RefCell::new(Vec::new()));
    let at_barrier = {
        let (seen, memory, device) = (seen.clone(), memory.clone(), device.clone());
        move |barrier| seen.borrow_mut().push((barrier, device.peek(&memory)))
    };
    let head = at_each(at_barrier, || driver.submit(&segments)).unwrap();
    let chain = Chain { head: head.index() as u16, pieces: [(0x3000, 7, false), (0x4000, 9, true)].to_vec() };
    assert_eq!(*seen.borrow(), [("dmb_oshst", (1, chain.clone())), ("dmb_oshst", (2, chain))]);
}

/// DMB OSHLD between the used index and what it announces (2.7.14): an element that the device shows no earlier than
/// there is the one that is taken.
#[test]
fn a_used_element_is_read_behind_the_index() {
    let Pair { memory, mut driver, mut device } = pair();
    let first = driver.submit(&one()).unwrap();
    let second = driver.submit(&one()).unwrap();
    assert_eq!(record(|| assert_eq!(driver.take(), Ok(None))), [""; 0], "nothing to order");
    // Until the barrier the element is the stale one of the first chain.
    device.set_element(&memory, 0, first.index() as u32, 3);
    device.set_index(&memory, 1);
    let barriers = Rc::new(RefCell::new(Vec::new()));
    let at_barrier = {
        let (barriers, memory, device) = (barriers.clone(), memory.clone(), device.clone());
        move |barrier| {
            barriers.borrow_mut().push(barrier);
            device.set_element(&memory, 0, second.index() as u32, 9);
        }
    };
    let taken = at_each(at_barrier, || driver.take());
    assert_eq!(taken, Ok(Some(Completion { head: second, written: 9 })));
    assert_eq!(*barriers.borrow(), ["dmb_oshld"]);
}

/// DMB OSH between the store of the flag and the look at the used index that follows: a chain that the device hands back
/// there, the flag in its sight or not yet, is found by that look.
#[test]
fn the_flag_of_interrupts_is_stored_before_the_look_that_follows() {
    for wanted in [false, true] {
        let Pair { memory, mut driver, device } = pair();
        driver.set_interrupts(!wanted);
        driver.submit(&one()).unwrap();
        let seen = Rc::new(RefCell::new(Vec::new()));
        let at_barrier = {
            let (seen, memory, mut device) = (seen.clone(), memory.clone(), device);
            move |barrier| {
                seen.borrow_mut().push((barrier, !device.is_quiet(&memory)));
                device.give_back(&memory, 0, 0);
            }
        };
        at_each(at_barrier, || driver.set_interrupts(wanted));
        assert_eq!(*seen.borrow(), [("dmb_osh", wanted)]);
        assert!(driver.has_used());
    }
}

/// Each lie is an error of its own, and nothing is taken from the liar afterwards, true or not.
#[test]
fn a_lie_is_an_error_and_the_last_word() {
    type Lie = fn(&mut Pair, head: u16);
    let lies: [(Lie, DeviceError); 7] = [
        (|pair, _| pair.device.give_back(&pair.memory, 64, 0), DeviceError::NotInFlight(64)),
        (|pair, _| pair.device.give_back(&pair.memory, u32::MAX, 0), DeviceError::NotInFlight(u32::MAX)),
        // Its low half is a chain that the device has.
        (
            |pair, head| pair.device.give_back(&pair.memory, 0x1_0000 | u32::from(head), 0),
            DeviceError::NotInFlight(0x1_0000),
        ),
        // A descriptor, but in the middle of the chain.
        (|pair, head| pair.device.give_back(&pair.memory, u32::from(head) + 1, 0), DeviceError::NotInFlight(1)),
        (
            |pair, head| pair.device.give_back(&pair.memory, head.into(), 17),
            DeviceError::TooLong { written: 17, room: 16 },
        ),
        (|pair, _| pair.device.set_index(&pair.memory, 2), DeviceError::IndexJump { used: 2, in_flight: 1 }),
        (
            |pair, _| pair.device.set_index(&pair.memory, u16::MAX),
            DeviceError::IndexJump { used: u16::MAX, in_flight: 1 },
        ),
    ];
    for (lie, error) in lies {
        let mut pair = pair();
        pair.driver.submit(&[segment(1, 1, Flow::ToDevice), one()[0]]).unwrap();
        let head = pair.device.fetch(&pair.memory)[0].head;
        lie(&mut pair, head);
        assert_eq!(pair.driver.take(), Err(error));
        pair.device.set_index(&pair.memory, 0);
        pair.device.give_back(&pair.memory, head.into(), 0);
        assert_eq!(pair.driver.take(), Err(DeviceError::Broken));
        assert_eq!(pair.driver.submit(&one()), Err(SubmitError::Broken));
    }
}

#[test]
fn a_chain_comes_back_once() {
    let mut pair = pair();
    let first = pair.driver.submit(&one()).unwrap();
    pair.driver.submit(&one()).unwrap();
    let head = pair.device.fetch(&pair.memory)[0].head;
    pair.device.give_back(&pair.memory, head.into(), 0);
    pair.device.give_back(&pair.memory, head.into(), 0);
    assert_eq!(pair.driver.take(), Ok(Some(Completion { head: first, written: 0 })));
    assert_eq!(pair.driver.take(), Err(DeviceError::NotInFlight(head.into())));
}

/// A step of a driver and its device, true or not.
#[derive(Clone, Debug)]
enum Step {
    Submit(Vec<(u32, bool)>),
    /// Which of those that it has, and how much of the room.
    Return(usize, u32),
    Take,
    /// Overwrites all that it can of the page.
    Scribble(u64),
    Lie(u32, u32),
    Jump(u16),
}

fn honest() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => prop::collection::vec((1..10_000_u32, any::<bool>()), 0..9).prop_map(Step::Submit),
        3 => (any::<usize>(), any::<u32>()).prop_map(|(which, written)| Step::Return(which, written)),
        2 => Just(Step::Take),
    ]
}

fn hostile() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => honest(),
        1 => any::<u64>().prop_map(Step::Scribble),
        1 => (prop_oneof![0..70_u32, any::<u32>()], any::<u32>()).prop_map(|(id, bytes)| Step::Lie(id, bytes)),
        1 => any::<u16>().prop_map(Step::Jump),
    ]
}

/// Descriptors of a chain whose segments are these, those to be read first.
fn chain(segments: &[(u32, bool)]) -> Vec<Segment> {
    let mut segments: Vec<_> = segments.to_vec();
    segments.sort_by_key(|segment| segment.1);
    let flow = |write| if write { Flow::FromDevice } else { Flow::ToDevice };
    let at = |(index, &(bytes, write)): (usize, &(u32, bool))| {
        segment(0x1000 * (index as u64 + 1) + u64::from(bytes), bytes, flow(write))
    };
    segments.iter().enumerate().map(at).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Each chain arrives once, as it was handed over, and comes back once, in whatever order the device likes.
    #[test]
    fn chains_arrive_and_come_back(size in 0..7_u32, steps in prop::collection::vec(honest(), 0..300)) {
        let Pair { memory, mut driver, mut device } = pair_of(1 << size);
        let mut submitted: BTreeMap<usize, (ChainHead, Vec<Segment>)> = BTreeMap::new();
        let mut with_device: Vec<Chain> = Vec::new();
        let mut returned: Vec<(usize, u32)> = Vec::new();
        for step in steps {
            match step {
                Step::Submit(segments) => {
                    let segments = chain(&segments);
                    let free = usize::from(driver.free_count());
                    match driver.submit(&segments) {
                        Ok(head) => prop_assert!(submitted.insert(head.index(), (head, segments)).is_none()),
                        Err(SubmitError::BadChain(_)) => {
                            prop_assert!(segments.is_empty() || segments.len() > usize::from(driver.size()));
                        }
                        Err(error) => prop_assert!(error == SubmitError::Full && segments.len() > free),
                    }
                    for chain in device.fetch(&memory) {
                        let (_, segments) = &submitted[&usize::from(chain.head)];
                        let pieces = segments.iter().map(|of| (of.address, of.bytes, of.flow == Flow::FromDevice));
                        prop_assert_eq!(pieces.collect::<Vec<_>>(), chain.pieces.clone());
                        with_device.push(chain);
                    }
                }
                Step::Return(which, written) if !with_device.is_empty() => {
                    let chain = with_device.swap_remove(which % with_device.len());
                    let written = written % (chain.room() + 1);
                    device.give_back(&memory, chain.head.into(), written);
                    returned.push((chain.head.into(), written));
                }
                Step::Take => {
                    let expected = (!returned.is_empty()).then(|| returned.remove(0)).map(|(head, written)| {
                        Completion { head: submitted.remove(&head).unwrap().0, written }
                    });
                    prop_assert_eq!(driver.take(), Ok(expected));
                }
                _ => {}
            }
            let out: usize = submitted.values().map(|(_, segments)| segments.len()).sum();
            prop_assert_eq!(usize::from(driver.free_count()) + out, usize::from(driver.size()));
            prop_assert_eq!(usize::from(driver.in_flight()), submitted.len());
        }
    }

    /// The driver takes back its own buffers and nothing else, whatever the device does, or reports what was wrong.
    #[test]
    fn a_hostile_device_gets_errors(size in 0..7_u32, steps in prop::collection::vec(hostile(), 0..200)) {
        let Pair { memory, mut driver, mut device } = pair_of(1 << size);
        let mut submitted: BTreeMap<usize, u32> = BTreeMap::new();
        let mut broken = false;
        for step in steps {
            match step {
                Step::Submit(segments) => {
                    let segments = chain(&segments);
                    let room = segments.iter().filter(|of| of.flow == Flow::FromDevice).map(|of| of.bytes).sum();
                    match driver.submit(&segments) {
                        Ok(head) => prop_assert!(!broken && submitted.insert(head.index(), room).is_none()),
                        Err(SubmitError::Broken) => prop_assert!(broken),
                        Err(_) => {}
                    }
                }
                Step::Return(which, written) => {
                    let head = submitted.keys().nth(which % submitted.len().max(1)).copied().unwrap_or(which % 64);
                    device.give_back(&memory, head as u32, written % 20_000);
                }
                Step::Take => match driver.take() {
                    Ok(Some(Completion { head, written })) => {
                        let room = submitted.remove(&head.index());
                        prop_assert!(!broken && room.is_some_and(|room| written <= room));
                    }
                    Ok(None) => prop_assert!(!broken),
                    Err(error) => {
                        prop_assert_eq!(broken, error == DeviceError::Broken);
                        broken = true;
                    }
                },
                Step::Scribble(with) => {
                    let (_, page) = memory.page(0);
                    let filler: Vec<u8> = (0..2048).map(|at| with.rotate_right(at * 7) as u8).collect();
                    memory.write(page, &filler);
                }
                Step::Lie(id, bytes) => device.give_back(&memory, id, bytes),
                Step::Jump(index) => device.set_index(&memory, device.returned.wrapping_add(index)),
            }
        }
    }
}
