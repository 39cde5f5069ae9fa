//! A transfer, by the accesses to the device's registers and the barriers between them.

#![allow(unsafe_code, reason = "registers in memory of the test")]

extern crate std;

use std::boxed::Box;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;
use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use granule_arch::recorded;

use super::super::pci::tests::claimed;
use super::*;
use crate::mmio::watched::{MmioAccess, at_each_access};

/// Registers, as the device and the driver have them.
struct Registers(VirtAddr);

impl Registers {
    fn new() -> Self {
        Self(VirtAddr::from_ptr(Box::leak(Box::new([0_u64; (register::BYTES / 8) as usize])).as_ptr()))
    }

    fn read(&self, register: u64) -> u64 {
        // SAFETY: memory of the test, for ever; the driver has it as registers.
        unsafe { (self.0 + register).as_ptr::<u64>().read_volatile() }
    }

    /// The device is done.
    fn finish(&self) {
        // SAFETY: as above.
        unsafe { (self.0 + register::DMA_COMMAND).as_ptr::<u64>().write_volatile(0) };
    }
}

fn edu(registers: &Registers) -> Edu {
    Edu {
        // SAFETY: memory of the test, for ever.
        registers: unsafe { MmioRegion::new(registers.0, register::BYTES) },
        page: PhysAddr(0),
        shown: RwSem::new(rank::REGISTERS, None),
        dma: DmaDevice::without_smmu(DmaMask::ALL),
        vector: None,
        arrivals: &SLOTS[0].arrivals,
        busy: RwSem::new(rank::REQUESTS, ()),
        claim: claimed(),
    }
}

/// An operation of the driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Did {
    Write(u64, u64),
    LookAtCommand,
    Barrier(&'static str),
}

/// DMB OSHST in front of the command, after which the device reads memory; DMB OSHLD after the look at the command
/// that finds it done, in front of what the device wrote.
#[test]
fn a_transfer_is_between_two_barriers() {
    let (registers, steps) = (Rc::new(Registers::new()), Rc::new(RefCell::new(Vec::new())));
    let device = edu(&registers);
    let on_access = {
        let (registers, steps) = (registers.clone(), steps.clone());
        let mut looks = 0;
        move |access| match access {
            MmioAccess::Write(at, value) => steps.borrow_mut().push(Did::Write(at - registers.0, value)),
            MmioAccess::Read(at) => {
                assert_eq!(at - registers.0, register::DMA_COMMAND);
                steps.borrow_mut().push(Did::LookAtCommand);
                // It takes its time: the second look after the command finds it done.
                looks += usize::from(registers.read(register::DMA_COMMAND) & DMA_START != 0);
                if looks == 2 {
                    registers.finish();
                }
            }
        }
    };
    let on_barrier = {
        let steps = steps.clone();
        move |barrier| steps.borrow_mut().push(Did::Barrier(barrier))
    };
    let copied =
        recorded::at_each(on_barrier, || at_each_access(on_access, || device.copy_out(8, DmaAddress(0x4000_1000), 16)));
    assert_eq!(copied, Ok(1));
    use register::{DMA_COMMAND, DMA_COUNT, DMA_DESTINATION, DMA_SOURCE};
    let expected = [
        Did::LookAtCommand,
        Did::Write(DMA_SOURCE, MEMORY + 8),
        Did::Write(DMA_DESTINATION, 0x4000_1000),
        Did::Write(DMA_COUNT, 16),
        Did::Barrier("dmb_oshst"),
        Did::Write(DMA_COMMAND, DMA_START | DMA_FROM_DEVICE | DMA_INTERRUPT),
        Did::LookAtCommand,
        Did::LookAtCommand,
        Did::Barrier("dmb_oshld"),
    ];
    assert_eq!(*steps.borrow(), expected);
}

#[test]
fn an_address_that_the_device_would_cut_is_refused_before_it_is_given_one() {
    let registers = Registers::new();
    let mut device = edu(&registers);
    device.dma = DmaDevice::without_smmu(dma_mask());
    let hook = |access| panic!("{access:?}");
    for (address, last) in [(0x4000_1000, 0x4000_100f), (0xfff_fff8, 0x1000_0007), (u64::MAX - 8, u64::MAX - 1)] {
        let copied = at_each_access(hook, || device.copy_in(DmaAddress(address), 0, 16));
        assert_eq!(copied, Err(EduError::Dma(DmaError::Unreachable(last))));
    }
}

/// Two threads of a device that does one thing at a time: the second waits until the first one's transfer is resolved.
#[test]
fn a_transfer_waits_for_the_one_before() {
    let registers = Registers::new();
    let device = edu(&registers);
    let (start, started) = channel();
    let (end, ended) = channel();
    let copy = |on_look: Box<dyn FnMut()>| {
        let at = registers.0;
        let mut on_look = on_look;
        let hook = move |access| {
            if access == MmioAccess::Read(at + register::DMA_COMMAND) {
                let registers = Registers(at);
                if registers.read(register::DMA_COMMAND) & DMA_START != 0 {
                    on_look();
                    registers.finish();
                }
            }
        };
        at_each_access(hook, || device.copy_in(DmaAddress(0x4000_1000), 0, 16))
    };
    thread::scope(|scope| {
        let copy = &copy;
        let second = scope.spawn(move || {
            started.recv().unwrap();
            let copied = copy(Box::new(|| ()));
            // In vain where the first one waits no longer.
            let _ = end.send(copied);
            copied
        });
        // The device is at work until the other thread has ended, or for long enough that it would have.
        let (early, mut start) = (Rc::new(RefCell::new(None)), Some(start));
        let on_look = {
            let early = early.clone();
            move || {
                if let Some(start) = start.take() {
                    start.send(()).unwrap();
                    early.replace(ended.recv_timeout(Duration::from_millis(100)).ok());
                }
            }
        };
        assert_eq!(copy(Box::new(on_look)), Ok(1));
        assert_eq!(early.take(), None, "the second did not wait");
        assert_eq!(second.join().unwrap(), Ok(1));
    });
}
