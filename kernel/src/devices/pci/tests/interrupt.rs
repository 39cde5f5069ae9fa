//! The order in which messages and pins are turned on and off: at each write to configuration space, what the function
//! could send.

#![allow(unsafe_code, reason = "a table of messages in memory of the test")]

use std::boxed::Box;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Mutex;
use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use pci_types::PciAddress;

use super::super::config::ConfigSpace;
use super::super::interrupt::{self, is_connected, start_sending, write_msi, write_msix};
use super::super::{Claim, MmioRegion, PciError};
use super::model::ModelBus;
use super::{LOW, endpoint, host, memory, walk};
use crate::chip::message::Message;
use crate::mmio::watched::{MmioAccess, at_each_access};

/// The capability of MSI-X in the model, and that of MSI.
const MSIX: u16 = 0x50;
const MSI: u16 = 0x60;
const CONTROL: u16 = 2;
const ON: u16 = 1 << 15;
const MASKED: u16 = 1 << 14;

const DOORBELL: u64 = 0x80_1234_5040;
const ENTRIES: usize = 4;

/// Configuration space that remembers its writes, in order: where, and what.
struct Recorded {
    bus: ModelBus,
    writes: &'static Mutex<Vec<(u16, u32)>>,
}

impl ConfigSpace for Recorded {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.bus.read32(function, offset)
    }
    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.writes.lock().unwrap().push((offset, value));
        self.bus.write32(function, offset, value);
    }
    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        self.writes.lock().unwrap().push((offset, value.into()));
        self.bus.write16(function, offset, value);
    }
}

/// A claimed function, and the writes to its configuration space from now on.
fn stage() -> (Claim, &'static Mutex<Vec<(u16, u32)>>) {
    let writes: &'static Mutex<Vec<(u16, u32)>> = Box::leak(Box::default());
    let bus = ModelBus::new(&[endpoint(&[memory(16)])]);
    let functions = walk(host(Recorded { bus, writes }, 255, LOW)).leak();
    let claim = functions[0].claim("test").unwrap();
    writes.lock().unwrap().clear();
    (claim, writes)
}

fn take(writes: &Mutex<Vec<(u16, u32)>>) -> Vec<(u16, u32)> {
    core::mem::take(&mut writes.lock().unwrap())
}

/// A write to the table: how many there were to configuration space before, the word in the table, and its value.
type TableWrite = (usize, u64, u64);

/// Makes `vector` send event `event`; the writes to the table.
fn connect(
    stage: &(Claim, &'static Mutex<Vec<(u16, u32)>>),
    table: &'static mut [u32],
    vector: u16,
    event: u32,
) -> Vec<TableWrite> {
    let start = VirtAddr::from_ptr(table.as_ptr());
    // SAFETY: memory of the test, for ever.
    let region = unsafe { MmioRegion::new(start, 4 * table.len() as u64) };
    let (claim, writes) = stage;
    let seen = Rc::new(RefCell::new(Vec::new()));
    let hook = {
        let (seen, writes) = (seen.clone(), *writes);
        move |access| {
            if let MmioAccess::Write(at, value) = access {
                seen.borrow_mut().push((writes.lock().unwrap().len(), (at - start) / 4, value));
            }
        }
    };
    let message = (DOORBELL, event);
    at_each_access(hook, || write_msix(claim, MSIX, (&region, ENTRIES as u16), vector, message)).unwrap();
    seen.take()
}

/// The words of an entry that is written, in order: address, data, and only then it may send.
fn entry(configured: usize, vector: u64, event: u64) -> [TableWrite; 4] {
    let [low, high] = [DOORBELL & 0xffff_ffff, DOORBELL >> 32];
    let words = [low, high, event, 0];
    core::array::from_fn(|word| (configured, 4 * vector + word as u64, words[word]))
}

/// Messages that another system left in the table are never sent: all are masked at once when MSI-X is turned on, then
/// each entry; the last step unmasks the function, when its one message is whole.
#[test]
fn a_table_of_messages_is_silent_before_it_is_unmasked() {
    let stage = stage();
    // Left by another system: messages that would be sent.
    let table = Box::leak(Box::new([0xdead_0000_u32; 4 * ENTRIES]));
    let words = table.as_mut_ptr();
    let control = stage.0.read_config16(MSIX + CONTROL).unwrap();
    assert_eq!(control & (ON | MASKED), 0, "off since the walk");
    let seen = connect(&stage, table, 2, 7);
    let silence = (0..ENTRIES as u64).map(|entry| (1, 4 * entry + 3, 1));
    let expected: Vec<TableWrite> = silence.chain(entry(1, 2, 7)).collect();
    assert_eq!(seen, expected);
    let written = take(stage.1);
    assert_eq!(written.len(), 2);
    assert_eq!([written[0].0, written[1].0], [MSIX + CONTROL; 2]);
    assert_eq!([written[0].1 as u16 & (ON | MASKED), written[1].1 as u16 & (ON | MASKED)], [ON | MASKED, ON]);

    // A second message while the first may be sent: that stays on, and the new entry is on last.
    // SAFETY: the table of above, which nothing else uses now.
    let table = unsafe { core::slice::from_raw_parts_mut(words, 4 * ENTRIES) };
    assert_eq!(connect(&stage, table, 3, 9), entry(0, 3, 9));
    let written = take(stage.1);
    assert!(written.iter().all(|&(at, value)| at == MSIX + CONTROL && value as u16 & (ON | MASKED) == ON));
}

/// The address and the data: then it is on, for one message.
#[test]
fn a_message_of_msi_is_whole_before_it_is_on() {
    let stage = stage();
    assert_eq!(stage.0.read_config16(MSI + CONTROL).unwrap() & 1, 0, "off since the walk");
    // The model's has 32 bits.
    let beyond = write_msi(&stage.0, MSI, (DOORBELL, 7));
    assert!(matches!(beyond, Err(PciError::NoInterrupt(..))), "{beyond:?}");
    assert!(take(stage.1).iter().all(|&(at, _)| at != MSI + CONTROL), "never on");
    write_msi(&stage.0, MSI, (DOORBELL & 0xffff_ffff, 7)).unwrap();
    let low = DOORBELL as u32;
    let written = take(stage.1);
    assert_eq!(written[..2], [(MSI + 4, low), (MSI + 8, 7)]);
    assert_eq!((written[2].0, written[2].1 & 0x71, written.len()), (MSI + CONTROL, 1, 3));
}

/// The way to a message that is not whole leaves none, nor takes another vector's.
#[test]
fn a_message_that_cannot_be_written_is_given_back() {
    let (claim, _) = stage();
    let function = claim.function();
    let message = |event| Message { data: event, intid: 8192 + event };
    let connected = || [0, 1].map(|vector| is_connected(function, vector));
    start_sending(function, 0, message(7), || write_msi(&claim, MSI, (0x1000, 7))).unwrap();
    assert_eq!(connected(), [true, false]);
    // A table that is never reached: no capability lies at an odd offset.
    // SAFETY: no byte of it is accessed.
    let table = unsafe { MmioRegion::new(VirtAddr(0), 0) };
    let write = || write_msix(&claim, MSIX + 1, (&table, 0), 1, (DOORBELL, 9));
    let refused = start_sending(function, 1, message(9), write);
    assert!(matches!(refused, Err(PciError::BadOffset(..))), "{refused:?}");
    assert_eq!(connected(), [true, false]);
    interrupt::clear(function);
    assert_eq!(connected(), [false, false]);
}

/// A function without a driver asserts no pin and sends nothing: off before its handlers go.
#[test]
fn a_function_that_is_given_back_is_quiet() {
    let (claim, writes) = stage();
    for (offset, on) in [(MSIX, ON), (MSI, 1)] {
        claim.write_config16(offset + CONTROL, on).unwrap();
    }
    claim.set_bus_master(true);
    let function = claim.function();
    take(writes);
    interrupt::clear(function);
    let written = take(writes);
    let off =
        |offset: u16, bits: u16| written.iter().any(|&(at, value)| at == offset + CONTROL && value as u16 & bits == 0);
    assert_eq!(written[0].0, 4, "the pin first: {written:x?}");
    assert!(written[0].1 & 1 << 10 != 0 && off(MSIX, ON) && off(MSI, 1), "{written:x?}");
    drop(claim);
    // And it reaches no memory, which a message is a write to.
    assert_eq!(function.read_config16(4).unwrap() & (1 << 2 | 1 << 10), 1 << 10);
}
