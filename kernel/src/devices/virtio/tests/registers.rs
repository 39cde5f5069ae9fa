//! Bringing a device up, step by step, and each way in which it can be no device for this driver.

extern crate std;

use std::rc::Rc;

use super::super::device::end_start;
use super::super::model::ModelDevice;
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

/// Its page is given back whether it takes the reset or not, and it accesses no memory then.
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
        let mut given_back = 0;
        let ended = end_start(&transport, &claim, no_queue, || {
            given_back += 1;
            assert_eq!(claim.read_config16(COMMAND).unwrap() & BUS_MASTER, 0);
            assert_eq!(device.status.get(), 0, "it was reset before");
        });
        assert_eq!((ended, given_back), (expected, 1));
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
