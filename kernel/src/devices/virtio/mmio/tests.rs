//! Places of devices: what is found at one, and the interrupts of a device, with registers that keep what is written.

#![allow(unsafe_code, reason = "registers of a test")]

use std::boxed::Box;
use std::string::ToString;
use std::vec::Vec;

use core::sync::atomic::{AtomicU32, Ordering};

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};

use super::{MAGIC, MOST_UNATTENDED, Node, NodeClaimed, PlaceError, identify, register};
use crate::chip::interrupt::InterruptHandler;
use crate::devices::lines::InterruptSource;
use crate::devices::pci::Id;
use crate::mmio;
use crate::platform::{DmaRange, Interrupt, Platform, Trigger, VirtioMmio};
use crate::smp::cpu::{Cpu, this_cpu};

const REGISTERS: u64 = 0xa00_3e00;

/// Registers of 512 bytes, of which these have values.
fn registers(values: &[(u64, u32)]) -> &'static [AtomicU32; 128] {
    let registers = Box::leak(Box::new([const { AtomicU32::new(0) }; 128]));
    values.iter().for_each(|(offset, value)| registers[*offset as usize / 4].store(*value, Ordering::Relaxed));
    registers
}

fn place(trigger: Option<Trigger>) -> VirtioMmio {
    VirtioMmio {
        registers: PhysRange::from_size(PhysAddr(REGISTERS), 0x200).unwrap(),
        interrupt: trigger.map(|trigger| Interrupt { intid: 4000, trigger }),
        stream: None,
        coherent: true,
        dma: DmaRange { bus: 0, cpu: 0, size: u64::MAX },
    }
}

fn node(trigger: Option<Trigger>, registers: &'static [AtomicU32; 128]) -> &'static Node {
    let place = Box::leak(Box::new(place(trigger)));
    Box::leak(Box::new(Node::new(place, VirtAddr::from_ptr(registers), Id { vendor: 0x1af4, device: 0x1042 })))
}

struct Handler;

impl InterruptHandler for Handler {
    fn interrupt(&self, _: &Cpu, _: u16) {}
}

/// Virtual I/O Device 1.2, 4.2.2: magic number, version, type of the device.
#[test]
fn a_place_is_empty_or_has_a_device_of_version_2() {
    let found = |magic, version, kind| {
        identify(|offset| Ok([(0, magic), (4, version), (8, kind)].iter().find(|(at, _)| *at == offset).unwrap().1))
    };
    assert_eq!(found(0x7472_6976, 2, 2), Ok(Some(Id { vendor: 0x1af4, device: 0x1042 })));
    assert_eq!(found(MAGIC, 2, 4), Ok(Some(Id { vendor: 0x1af4, device: 0x1044 })));
    for version in [0, 1, 2, !0] {
        assert_eq!(found(MAGIC, version, 0), Ok(None), "empty, of whichever version");
    }
    assert_eq!(found(MAGIC, 1, 2), Err(PlaceError::Legacy));
    for version in [0, 3, !0] {
        assert_eq!(found(MAGIC, version, 2), Err(PlaceError::Version(version)));
    }
    for magic in [0, !0, 0x7669_7274] {
        assert_eq!(found(magic, 2, 2), Err(PlaceError::Magic(magic)));
    }
    for kind in [0xefc0, 0x1_0002, !0] {
        assert_eq!(found(MAGIC, 2, kind), Err(PlaceError::Type(kind)), "it would be another one's number");
    }
    let legacy = PlaceError::Legacy.to_string();
    assert!(legacy.contains("version 1") && legacy.contains("version 2 is"), "{legacy}");
}

#[test]
fn each_place_is_looked_at_and_what_firmware_used_is_reset() {
    let of =
        |kind, version| [(register::MAGIC, MAGIC), (register::VERSION, version), (register::DEVICE, kind), (0x70, 0xf)];
    let memory: &'static [[AtomicU32; 128]; 8] = Box::leak(Box::new([const { [const { AtomicU32::new(0) }; 128] }; 8]));
    for (slot, values) in memory.iter().zip([of(0, 1), of(2, 2), of(0, 2), of(4, 1), of(4, 2), of(4, 7)]) {
        values.iter().for_each(|(offset, value)| slot[*offset as usize / 4].store(*value, Ordering::Relaxed));
    }
    let mut platform = Box::new(Platform::new());
    for number in 0..8 {
        let registers = PhysRange::from_size(PhysAddr(0xa00_0000 + number * 0x200), 0x200).unwrap();
        platform.virtio.push(VirtioMmio { registers, ..place(None) }).unwrap();
    }
    let mut mapped = Vec::new();
    let mut map = |range| {
        mapped.push(range);
        Some(VirtAddr::from_ptr(memory))
    };
    // SAFETY: the registers of this test.
    let read = |register| Ok(unsafe { mmio::read(register) });
    let nodes = super::find(Box::leak(platform), &mut map, &read).unwrap();
    assert_eq!(mapped, [PhysRange::from_size(PhysAddr(0xa00_0000), 0x1000).unwrap()]);
    let found = nodes.iter().map(|node| (node.place().registers.start().0, node.id().device));
    assert_eq!(found.collect::<Vec<_>>(), [(0xa00_0200, 0x1042), (0xa00_0800, 0x1044)]);
    let status = memory.each_ref().map(|slot| slot[0x70 / 4].load(Ordering::Relaxed));
    assert_eq!(status, [0xf, 0, 0xf, 0, 0, 0xf, 0, 0], "nothing is written where nothing is known");
}

#[test]
fn a_device_is_one_drivers() {
    let node = node(None, registers(&[]));
    let claim = node.claim("the first").unwrap();
    let refused = node.claim("the second").err();
    assert_eq!(refused, Some(NodeClaimed(PhysAddr(REGISTERS), "the first")));
    assert_eq!(claim.set_interrupt(this_cpu(), &Handler), None, "it is polled");
    drop(claim);
    assert!(node.owner().is_none() && node.claim("the second").is_ok());
}

/// Registers do not fall here: what is acknowledged stays, so the device is looked at as often as it may be.
#[test]
fn reasons_are_acknowledged_and_nothing_else_is() {
    for (status, acknowledged) in [(0, 0), (1, 1), (2, 2), (3, 3), (0xffff_fffd, 1), (0xffff_fffc, 0)] {
        for trigger in [Trigger::Edge, Trigger::Level] {
            let registers = registers(&[(register::INTERRUPT_STATUS, status)]);
            assert_eq!(node(Some(trigger), registers).has_interrupted(), acknowledged != 0);
            assert_eq!(registers[0x64 / 4].load(Ordering::Relaxed), acknowledged);
        }
    }
}

#[test]
fn a_device_that_interrupts_without_end_is_silenced_unless_requests_come_to_an_end() {
    let node = node(Some(Trigger::Level), registers(&[(register::INTERRUPT_STATUS, 1)]));
    let claim = node.claim("test").unwrap();
    let interrupts = || node.unattended.load(Ordering::Relaxed);
    for _ in 0..3 {
        (0..MOST_UNATTENDED).for_each(|_| assert!(node.has_interrupted()));
        assert_eq!(interrupts(), MOST_UNATTENDED);
        claim.attended();
        assert_eq!(interrupts(), 0);
    }
    // Silenced, and once more where another device's line is the same and is enabled again.
    for _ in 0..2 {
        (0..=MOST_UNATTENDED).for_each(|_| assert!(node.has_interrupted()));
        assert_eq!(interrupts(), 0);
    }
}

#[test]
fn a_device_has_the_registers_that_its_place_has() {
    use super::super::transport::{RegisterGroup, Registers};
    let claim = node(None, registers(&[])).claim("test").unwrap();
    let windows = claim.windows();
    let bytes = [RegisterGroup::Common, RegisterGroup::Notify, RegisterGroup::Interrupt, RegisterGroup::Device];
    assert_eq!(bytes.map(|group| windows.bytes(group)), [0x100, 0, 0, 0x100]);
}
