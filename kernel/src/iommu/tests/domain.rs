//! A device that is not bound reaches what its driver shows it, and nothing else.

use granule_arch::addr::{PhysAddr, VirtAddr};

use super::super::device::direct;
use super::super::{AttachError, BindError, Direction, DmaAddress, DmaError, DmaMask, Mode, Needs, NotifyMode, Unfit};
use super::{Outcome, PAGE, READ_ONLY, Rig, STREAM, UNMAPPED};
use crate::platform::MappedId;

fn read(rig: &Rig, address: DmaAddress) -> Outcome {
    rig.read(VirtAddr(address.0))
}

fn write(rig: &Rig, address: DmaAddress) -> Outcome {
    rig.write(VirtAddr(address.0))
}

#[test]
fn a_stream_that_nobody_has_attached_reaches_nothing() {
    let rig = Rig::new(NotifyMode::Tlb);
    assert_eq!(rig.smmu.access(STREAM, 0x4000_0000, false), Outcome::Event(0x04));
    let device = rig.attach();
    assert_eq!(rig.smmu.access(STREAM + 1, 0x4000_0000, false), Outcome::Nothing, "of the same bus");
    assert_eq!(rig.smmu.access(STREAM, 0x4000_0000, false), UNMAPPED);
    assert!(matches!(rig.iommu.attach(&rig.cpu, STREAM), Err(AttachError::InUse(STREAM))));
    assert!(matches!(rig.iommu.attach(&rig.cpu, 1 << 16), Err(AttachError::Stream(_))));
    drop(device);
    assert_eq!(rig.smmu.access(STREAM, 0x4000_0000, false), Outcome::Nothing);
    drop(rig.attach());
}

#[test]
fn what_is_mapped_is_reached_in_its_direction_until_it_is_unmapped() {
    let rig = Rig::new(NotifyMode::Tlb);
    let used = rig.used();
    let device = rig.attach();
    let frame = rig.frames.alloc_zeroed(&rig.cpu).unwrap();
    for direction in [Direction::ToDevice, Direction::FromDevice, Direction::Both] {
        let address = device.map(&rig.cpu, PhysAddr(frame.0 + 0x123), 8, direction).unwrap();
        assert_eq!(address.0 % PAGE, 0x123);
        assert_eq!(read(&rig, address), Outcome::Reaches(PhysAddr(frame.0 + 0x123)));
        let expected = match direction {
            Direction::ToDevice => READ_ONLY,
            _ => Outcome::Reaches(PhysAddr(frame.0 + 0x123)),
        };
        assert_eq!(write(&rig, address), expected, "{direction:?}");
        device.unmap(&rig.cpu, address, 8);
        assert_eq!([read(&rig, address), write(&rig, address)], [UNMAPPED; 2], "{direction:?}");
    }
    rig.frames.free(&rig.cpu, frame);
    drop(device);
    assert_eq!(rig.used(), used, "the tables are free");
}

/// A range is whole pages, each of them, and one more where it straddles.
#[test]
fn a_range_is_mapped_whole_and_unmapped_by_few_commands() {
    let rig = Rig::new(NotifyMode::Tlb);
    let device = rig.attach();
    let block = rig.frames.alloc_blocks(&rig.cpu, 0).unwrap();
    let bytes = 63 * PAGE as usize;
    let address = device.map(&rig.cpu, PhysAddr(block.0 + 0x800), bytes, Direction::Both).unwrap();
    for page in 0..64 {
        let at = DmaAddress((address.0 & !(PAGE - 1)) + page * PAGE);
        assert_eq!(write(&rig, at), Outcome::Reaches(PhysAddr(block.0 + page * PAGE)));
    }
    rig.smmu.take_commands();
    device.unmap(&rig.cpu, address, bytes);
    assert_eq!(rig.smmu.take_commands().len(), 2, "one range and CMD_SYNC");
    for page in 0..64 {
        assert_eq!(read(&rig, DmaAddress((address.0 & !(PAGE - 1)) + page * PAGE)), UNMAPPED);
    }
    rig.frames.free_blocks(&rig.cpu, block, 0);
}

/// Nothing is issued where entries only become valid.
#[test]
fn mapping_needs_no_command() {
    let rig = Rig::new(NotifyMode::Tlb);
    let device = rig.attach();
    rig.smmu.take_commands();
    let address = device.map(&rig.cpu, PhysAddr(0x4000_0000), 8, Direction::Both).unwrap();
    assert_eq!(rig.smmu.take_commands(), [[0; 2]; 0]);
    device.unmap(&rig.cpu, address, 8);
}

#[test]
fn addresses_run_out_as_a_value() {
    let rig = Rig::new(NotifyMode::Tlb);
    let device = rig.attach();
    let too_much = 65 << 20;
    let refused = device.map(&rig.cpu, PhysAddr(0x4000_0000), too_much, Direction::Both);
    assert_eq!(refused, Err(DmaError::NoAddresses(too_much / PAGE as usize)));
    assert!(matches!(device.alloc_coherent(&rig.cpu, 4097), Err(DmaError::TooLarge(4097))));
}

#[test]
fn coherent_pages_and_messages_have_addresses_of_their_own() {
    let rig = Rig::new(NotifyMode::Tlb);
    let device = rig.attach();
    let page = device.alloc_coherent(&rig.cpu, 100).unwrap();
    let other = device.alloc_coherent(&rig.cpu, 4096).unwrap();
    assert_ne!(page.address(), other.address());
    let Outcome::Reaches(physical) = write(&rig, page.address()) else { panic!("it is reached") };
    assert_eq!(rig.frames.linear().address(physical), page.virt());
    let doorbell = PhysAddr(0x0809_0040);
    let message = device.message_address(&rig.cpu, doorbell).unwrap();
    assert_eq!(device.message_address(&rig.cpu, doorbell), Ok(message), "the same page again");
    assert_eq!(write(&rig, message), Outcome::Reaches(doorbell));
    let address = page.address();
    device.free_coherent(&rig.cpu, page);
    assert_eq!(read(&rig, address), UNMAPPED);
    device.free_coherent(&rig.cpu, other);
}

#[test]
fn a_device_may_be_trusted_or_shut_out() {
    let rig = Rig::new(NotifyMode::Tlb);
    let device = rig.attach();
    let anything = VirtAddr(0x4000_0000);
    device.set_mode(Mode::Bypass).unwrap();
    assert_eq!(rig.write(anything), Outcome::Reaches(PhysAddr(anything.0)));
    device.set_mode(Mode::Abort).unwrap();
    assert_eq!(rig.write(anything), Outcome::Nothing);
    device.set_mode(Mode::Translated).unwrap();
    assert_eq!(rig.write(anything), UNMAPPED);
}

#[test]
fn an_smmu_that_does_not_fit_is_refused_with_the_reason() {
    let rig = Rig::new(NotifyMode::Tlb);
    let fits = *rig.iommu.smmu().features();
    let needs = Needs { address_bits: 48, output_bits: 40, size_changes: true, memory_types: 0 };
    assert_eq!(needs.check(&fits), Ok(()));
    let mut features = fits;
    features.coherent = false;
    assert_eq!(needs.check(&features), Err(Unfit::NotCoherent));
    features = fits;
    features.granule_4k = false;
    assert_eq!(needs.check(&features), Err(Unfit::Granule));
    features = fits;
    features.output_bits = 36;
    assert_eq!(needs.check(&features), Err(Unfit::Output { has: 36, needs: 40 }));
    features.output_bits = 40;
    assert_eq!(needs.check(&features), Ok(()));
    features = fits;
    features.bbm_level = 1;
    assert_eq!(needs.check(&features), Err(Unfit::SizeChanges(1)));
    features = fits;
    assert!(!features.privilege_override, "QEMU's, which does not look at privilege");
    features.raw[6] = 0x43b;
    assert_eq!(needs.check(&features), Err(Unfit::Privilege), "one that does");
    features.privilege_override = true;
    assert_eq!(needs.check(&features), Ok(()));
    let needs = Needs { size_changes: false, ..needs };
    features.bbm_level = 1;
    assert_eq!(needs.check(&features), Ok(()), "nothing is folded");
    let text = std::string::ToString::to_string(&BindError::from(Unfit::Output { has: 36, needs: 40 }));
    assert_eq!(text, "the SMMU puts out 36 bits of address, and memory needs 40");
}

/// A device that puts out 32 bits of address: its rings and the doorbell are below 4 GiB, as its transfers are.
#[test]
fn a_device_that_reaches_less_is_given_addresses_that_it_reaches_or_refused() {
    let rig = Rig::new(NotifyMode::Tlb);
    let used = rig.used();
    let mask = DmaMask::of_bits(32);
    let device = rig.iommu.attach_within(&rig.cpu, STREAM, mask).unwrap();
    let page = device.alloc_coherent(&rig.cpu, 8).unwrap();
    let doorbell = PhysAddr(0x0809_0040);
    let message = device.message_address(&rig.cpu, doorbell).unwrap();
    let mapped = device.map(&rig.cpu, PhysAddr(0x1_4000_0000), 8, Direction::Both).unwrap();
    for address in [page.address(), message, mapped] {
        assert!(address.0 <= mask.last(), "{address}");
    }
    assert_eq!(write(&rig, message), Outcome::Reaches(doorbell));
    assert!(matches!(write(&rig, page.address()), Outcome::Reaches(_)));
    let space = rig.space(1);
    assert!(matches!(device.bind(&rig.cpu, &space), Err(BindError::Narrow(last)) if last == mask.last()));
    device.unmap(&rig.cpu, mapped, 8);
    let address = page.address();
    device.free_coherent(&rig.cpu, page);
    assert_eq!(write(&rig, address), UNMAPPED);
    let all = device.map(&rig.cpu, PhysAddr(0x4000_0000), 31 << 20, Direction::Both).unwrap();
    device.unmap(&rig.cpu, all, 31 << 20);
    drop((device, space));
    assert_eq!(rig.used(), used);
    let refused = rig.iommu.attach_within(&rig.cpu, STREAM, DmaMask::of_bits(28));
    assert!(matches!(refused, Err(AttachError::Narrow { mask: 0xfff_ffff, .. })), "{refused:?}");
    drop(rig.attach());
    // Without an SMMU it gets physical addresses.
    assert!(direct(mask, 0x1_0000_0000).is_err());
    let device = direct(mask, 0xffff_ffff).unwrap();
    assert_eq!(device.message_address(&rig.cpu, PhysAddr(0x1_0000_0000)), Err(DmaError::Unreachable(0x1_0000_0000)));
    assert_eq!(device.message_address(&rig.cpu, doorbell), Ok(DmaAddress(doorbell.0)));
    assert_eq!([DmaMask::of_bits(64), DmaMask::of_bits(200)], [DmaMask::ALL; 2]);
}

/// The device tree has an SMMU in front of it, but no driven one is.
#[test]
fn a_device_behind_an_smmu_that_is_not_driven_is_refused() {
    let rig = Rig::new(NotifyMode::Tlb);
    let stream = MappedId { phandle: 0x8004, id: STREAM };
    let refused = super::super::attach(&rig.cpu, Some(stream), DmaMask::ALL);
    assert!(matches!(refused, Err(AttachError::Unusable(0x8004))), "{refused:?}");
}
