//! Bringing a device up, step by step, and each way in which it can be no device for this driver.

extern crate std;

use std::rc::Rc;

use super::super::device::end_start;
use super::super::model::{ModelDevice, ModelNode};
use super::super::queue::Parts;
use super::super::transport::{
    ACCESS_PLATFORM, Doorbell, RegisterGroup, Translation, Transport, TransportError, VERSION_1,
};
use crate::devices::pci::tests::claimed;

type Up = Result<Transport<Rc<ModelDevice>>, TransportError>;

fn start(device: &Rc<ModelDevice>) -> Up {
    Transport::start(device.clone(), Translation::Required, 0x81)
}

fn set_up(device: &Rc<ModelDevice>, vector: Option<u16>) -> Result<(u16, Doorbell), TransportError> {
    let transport = start(device)?;
    let size = transport.queue_size(0)?;
    Ok((size, transport.set_up_queue(0, size, 0x4000_0000, vector)?))
}

#[test]
fn both_sides_agree_on_what_both_have() {
    let device = ModelDevice::new();
    device.offered.set(device.offered.get() & !0x80);
    let transport = start(&device).unwrap();
    assert_eq!(transport.features(), VERSION_1 | ACCESS_PLATFORM | 1);
    assert_eq!(device.accepted.get(), transport.features());
    assert_eq!(device.status.get(), 0xb, "acknowledged, driven, agreed; not yet running");
    transport.driver_ok();
    assert_eq!(device.status.get(), 0xf);
    assert!(!transport.needs_reset());
    device.status.set(0x4f);
    assert!(transport.needs_reset());
}

#[test]
fn a_queue_is_told_where_it_is() {
    for (most, size) in [(256, 64), (64, 64), (8, 8), (6, 4)] {
        let device = ModelDevice::new();
        device.most.set(most);
        device.notify_offset.set(3);
        let (queue, _) = set_up(&device, Some(1)).unwrap();
        let told = device.queue.borrow();
        let Parts { descriptors, driver, device: used } = Parts::at(0x4000_0000);
        assert_eq!((told.descriptors, told.available, told.used), (descriptors, driver, used));
        assert_eq!((told.size, queue), (size, size));
        assert!(device.enabled.get());
        assert_eq!(device.vector.get(), 1);
    }
}

#[test]
fn what_passes_by_the_smmu_is_refused_where_there_is_one() {
    let device = ModelDevice::new();
    device.offered.set(VERSION_1);
    assert!(matches!(start(&device), Err(TransportError::PassesBy)));
    assert_eq!(device.status.get() & 0x80, 0x80, "the device sees FAILED");
    let transport = Transport::start(device, Translation::None, 0).unwrap();
    assert_eq!(transport.features(), VERSION_1);
}

#[test]
fn each_reason_has_a_name() {
    let refused = |prepare: &dyn Fn(&ModelDevice)| {
        let device = ModelDevice::new();
        prepare(&device);
        set_up(&device, Some(0)).err()
    };
    assert_eq!(refused(&|_| ()), None);
    assert_eq!(refused(&|device| device.offered.set(ACCESS_PLATFORM | 1)), Some(TransportError::Legacy));
    let agreed = VERSION_1 | ACCESS_PLATFORM | 0x81;
    assert_eq!(refused(&|device| device.refuses.set(1)), Some(TransportError::FeaturesRefused(agreed)));
    assert_eq!(refused(&|device| device.stubborn.set(3)), None, "a reset may take its time");
    assert_eq!(refused(&|device| device.stubborn.set(u32::MAX)), Some(TransportError::NoReset(0xf)));
    assert_eq!(refused(&|device| device.queues.set(0)), Some(TransportError::NoQueue(0)));
    assert_eq!(refused(&|device| device.most.set(0)), Some(TransportError::NoQueue(0)));
    assert_eq!(refused(&|device| device.vectors.set(0)), Some(TransportError::NoVector(0)));
    assert_eq!(refused(&|device| device.keeps_queue.set(true)), Some(TransportError::QueueInUse(0)));
    for (offset, multiplier) in [(1, 0x1000), (u16::MAX, u32::MAX), (1, 3), (0x7ff, 2)] {
        let prepare = |device: &ModelDevice| {
            device.notify_offset.set(offset);
            device.multiplier.set(multiplier);
        };
        let outside = (offset, multiplier) != (0x7ff, 2);
        assert_eq!(refused(&prepare), outside.then_some(TransportError::NotifyOutside(0)));
    }
    for (sizes, window) in [
        ([0x37, 2, 1, 8], RegisterGroup::Common),
        ([0x38, 1, 1, 8], RegisterGroup::Notify),
        ([0x38, 2, 0, 8], RegisterGroup::Interrupt),
    ] {
        assert_eq!(refused(&|device| device.sizes.set(sizes)), Some(TransportError::NoRegisters(window)));
    }
}

/// A device that is no function: its queue has up to `most` descriptors.
fn node(most: u32) -> ModelNode {
    ModelNode { device: ModelDevice::new(), bytes: 0x100, most }
}

fn start_node(node: &ModelNode) -> Result<Transport<ModelNode>, TransportError> {
    Transport::start(node.clone(), Translation::Required, 0x81)
}

#[test]
fn a_device_that_is_no_function_is_brought_up_alike() {
    for (most, size) in [(1024, 64), (64, 64), (6, 4), (1, 1), (0x1_0000, 64), (!0, 64)] {
        let node = node(most);
        let (device, transport) = (&node.device, start_node(&node).unwrap());
        assert_eq!((transport.features(), device.status.get()), (VERSION_1 | ACCESS_PLATFORM | 0x81, 0xb));
        assert_eq!((device.accepted.get(), transport.queue_size(0)), (transport.features(), Ok(size)));
        let doorbell = transport.set_up_queue(0, size, 0x12_4000_0000, None).unwrap();
        let Parts { descriptors, driver, device: used } = Parts::at(0x12_4000_0000);
        {
            let told = device.queue.borrow();
            assert_eq!((told.descriptors, told.available, told.used, told.size), (descriptors, driver, used, size));
        }
        transport.driver_ok();
        transport.notify(doorbell);
        assert_eq!((device.enabled.get(), device.status.get(), device.notified.get()), (true, 0xf, 1));
        assert_eq!(transport.restart(), Ok(()));
        assert!(!device.enabled.get());
        assert_eq!(transport.set_up_queue(0, size, 0, Some(0)), Err(TransportError::NoVector(0)), "it has a line");
    }
}

#[test]
fn a_device_that_is_no_function_is_refused_for_the_same_reasons() {
    let refused = |most, prepare: &dyn Fn(&mut ModelNode)| {
        let mut node = node(most);
        prepare(&mut node);
        start_node(&node).and_then(|transport| transport.queue_size(0)).err()
    };
    assert_eq!(refused(64, &|_| ()), None);
    assert_eq!(refused(0, &|_| ()), Some(TransportError::NoQueue(0)));
    assert_eq!(refused(64, &|node| node.device.offered.set(VERSION_1)), Some(TransportError::PassesBy));
    assert_eq!(refused(64, &|node| node.device.offered.set(ACCESS_PLATFORM)), Some(TransportError::Legacy));
    let agreed = VERSION_1 | ACCESS_PLATFORM | 0x81;
    assert_eq!(refused(64, &|node| node.device.refuses.set(1)), Some(TransportError::FeaturesRefused(agreed)));
    assert_eq!(refused(64, &|node| node.device.stubborn.set(3)), None, "a reset may take its time");
    assert_eq!(refused(64, &|node| node.device.stubborn.set(u32::MAX)), Some(TransportError::NoReset(0xf)));
    assert_eq!(refused(64, &|node| node.device.keeps_queue.set(true)), Some(TransportError::QueueInUse(0)));
    let short = Some(TransportError::NoRegisters(RegisterGroup::Common));
    assert_eq!(refused(64, &|node| node.bytes = 0xff), short);
}

#[test]
fn the_configuration_of_a_device_that_is_no_function_is_read_in_one_piece() {
    let node = node(64);
    let transport = start_node(&node).unwrap();
    node.device.restless.set(5);
    assert_eq!(transport.configuration_64(0), Ok(node.device.configuration.get()));
    node.device.restless.set(u32::MAX);
    assert_eq!(transport.configuration_64(0), Err(TransportError::NoConfiguration(0)));
    assert_eq!(transport.configuration_64(8), Err(TransportError::NoConfiguration(8)));
}

#[test]
fn a_device_that_is_started_again_has_to_agree_to_the_same() {
    let device = ModelDevice::new();
    let transport = start(&device).unwrap();
    device.status.set(0x4f);
    assert_eq!(transport.restart(), Ok(()));
    assert_eq!((device.status.get(), device.accepted.get()), (0xb, transport.features()));
    device.offered.set(device.offered.get() & !1);
    assert_eq!(transport.restart(), Err(TransportError::FeaturesRefused(transport.features())));
}

/// Whether it takes the reset or not, it accesses no memory when its page is given back.
#[test]
fn a_device_that_failed_to_start_is_cut_off_before_its_page_is_given_back() {
    const COMMAND: u16 = 4;
    const BUS_MASTER: u16 = 1 << 2;
    let no_queue = TransportError::NoQueue(0);
    for (stubborn, expected) in [(0, no_queue), (u32::MAX, TransportError::NoReset(0xf))] {
        let (device, claim) = (ModelDevice::new(), claimed());
        let transport = start(&device).unwrap();
        claim.set_bus_master(true);
        device.stubborn.set(stubborn);
        let (ended, is_quiet) = end_start(&transport, no_queue, || {
            assert_ne!(device.status.get(), 0, "it is cut off before its reset");
            claim.set_bus_master(false);
        });
        assert_eq!(claim.read_config16(COMMAND).unwrap() & BUS_MASTER, 0);
        assert_eq!((ended, is_quiet, device.status.get()), (expected, stubborn == 0, 0));
    }
}

#[test]
fn a_configuration_is_read_in_one_piece() {
    let device = ModelDevice::new();
    let transport = start(&device).unwrap();
    assert_eq!(transport.configuration_64(0), Ok(0x0123_4567_89ab_cdef));
    device.restless.set(5);
    assert_eq!(transport.configuration_64(0), Ok(device.configuration.get()));
    device.restless.set(u32::MAX);
    assert_eq!(transport.configuration_64(0), Err(TransportError::NoConfiguration(0)));
    for offset in [1, 8, u64::MAX] {
        assert_eq!(transport.configuration_64(offset), Err(TransportError::NoConfiguration(offset)));
    }
}
