//! Memory runs out at each step of a call, in turn: the call fails, and nothing stays taken.

use std::vec::Vec;

use granule_arch::addr::VirtAddr;
use granule_arch::alternative::host;
use granule_arch::descriptor::Descriptor;

use super::super::{Direction, DmaDevice, NotifyMode};
use super::{Outcome, Rig, STREAM, UNMAPPED, at, entry};
use crate::mm::space::{RESERVED_START, SpaceRef};

/// Leaves `count` frames, and gives back what it took when it is dropped.
struct Scarce<'r> {
    rig: &'r Rig,
    taken: Vec<granule_arch::addr::PhysAddr>,
}

impl<'r> Scarce<'r> {
    fn leaving(rig: &'r Rig, count: usize) -> Self {
        let mut taken: Vec<_> = core::iter::from_fn(|| rig.frames.alloc(&rig.cpu).ok()).collect();
        for frame in taken.drain(..count.min(taken.len())) {
            rig.frames.free(&rig.cpu, frame);
        }
        Self { rig, taken }
    }
}

impl Drop for Scarce<'_> {
    fn drop(&mut self) {
        self.taken.drain(..).for_each(|frame| self.rig.frames.free(&self.rig.cpu, frame));
    }
}

#[test]
fn attaching_mapping_and_binding_fail_whole() {
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        // The SMMU's own memory for this bus is there already.
        drop(rig.attach());
        let space = rig.space(1);
        let used = rig.used();
        let mut succeeded = false;
        for count in 0..40 {
            let scarce = Scarce::leaving(&rig, count);
            if let Ok(device) = rig.iommu.attach(&rig.cpu, STREAM) {
                let mapped = device.map(&rig.cpu, granule_arch::addr::PhysAddr(0x4000_0000), 8, Direction::Both);
                let page = device.alloc_coherent(&rig.cpu, 8);
                match device.bind(&rig.cpu, &space) {
                    Ok(()) => {
                        assert_eq!(rig.read(at(0)), Outcome::Reaches(entry(&space, at(0)).address()));
                        device.unbind(&rig.cpu);
                    }
                    Err(_) => assert_eq!(rig.read(at(0)), UNMAPPED, "its own tables translate"),
                }
                succeeded = mapped.is_ok() && page.is_ok();
                if let Ok(page) = page {
                    device.free_coherent(&rig.cpu, page);
                }
                if let Ok(address) = mapped {
                    device.unmap(&rig.cpu, address, 8);
                }
            }
            drop(scarce);
            assert_eq!(rig.used(), used, "with {count} frames");
            assert!(space.notifiers().is_empty());
        }
        assert!(succeeded, "40 frames are enough");
    });
}

/// The frame of its tables and its number are another's, and the addresses of a transfer that was not mapped are those
/// of the next.
#[test]
fn what_fails_for_want_of_memory_keeps_no_number_and_no_address() {
    host::with(&[], || {
        let map = |rig: &Rig, device: &DmaDevice| {
            device.map(&rig.cpu, granule_arch::addr::PhysAddr(0x4000_0000), 8, Direction::Both)
        };
        let other = Rig::new(NotifyMode::Tlb);
        let own = other.attach();
        let first = map(&other, &own).unwrap();
        let page = own.alloc_coherent(&other.cpu, 8).unwrap();
        let first_page = page.address();
        own.free_coherent(&other.cpu, page);

        let rig = Rig::new(NotifyMode::Tlb);
        let accounts = || (rig.used(), rig.iommu.asids.lock().in_use());
        let before = accounts();
        // For the root of its tables, and then for its record, which nothing has needed so far.
        for count in 0..2 {
            let scarce = Scarce::leaving(&rig, count);
            assert!(rig.iommu.attach(&rig.cpu, STREAM).is_err(), "with {count} frames");
            drop(scarce);
            assert_eq!(accounts(), before, "with {count} frames");
        }
        // The SMMU's own memory for this bus is there from now on.
        drop(rig.attach());
        let settled = accounts();
        assert_eq!(settled.1, before.1);
        let device = rig.attach();
        let scarce = Scarce::leaving(&rig, 0);
        assert!(map(&rig, &device).is_err());
        drop(scarce);
        assert_eq!(map(&rig, &device), Ok(first));
        // A page of its own, which its tables have and then the space's: after each failure neither has it.
        let space = rig.space(1);
        device.bind(&rig.cpu, &space).unwrap();
        let needed = (0..20).find(|&count| {
            let scarce = Scarce::leaving(&rig, count);
            let Ok(page) = device.alloc_coherent(&rig.cpu, 8) else { return false };
            drop(scarce);
            assert_eq!(page.address(), first_page);
            device.free_coherent(&rig.cpu, page);
            true
        });
        assert!(needed.is_some_and(|needed| needed > 3), "{needed:?}");
        device.unbind(&rig.cpu);
        drop((device, space));
        assert_eq!(accounts(), settled);
    });
}

#[test]
fn without_memory_for_the_stream_table_a_device_is_not_attached() {
    let rig = Rig::new(NotifyMode::Tlb);
    let used = rig.used();
    for count in 0..2 {
        rig.smmu.limit_allocations(Some(count));
        assert!(rig.iommu.attach(&rig.cpu, STREAM + 0x100 * count as u32).is_err(), "{count}");
        assert_eq!(rig.used(), used);
    }
    rig.smmu.limit_allocations(None);
    drop(rig.attach());
}

/// A stream's state is unknown when a command for it was not completed: nothing passes any more, and so memory may be
/// given back.
#[test]
fn an_smmu_that_does_not_answer_is_shut() {
    host::with(&[], || {
        // One that is bound before, and cached; one that is not bound, as nothing reports the space's end.
        for bound in [true, false] {
            let rig = Rig::new(NotifyMode::Tlb);
            let (device, space) = (rig.attach(), rig.space(1));
            if bound {
                device.bind(&rig.cpu, &space).unwrap();
                assert_eq!(rig.write(at(0)), Outcome::Reaches(entry(&space, at(0)).address()));
                rig.smmu.grow_deaf();
                assert!(rig.iommu.attach(&rig.cpu, STREAM + 8).is_err());
            } else {
                let own = [(); 2].map(|()| device.alloc_coherent(&rig.cpu, 8).unwrap());
                rig.smmu.grow_deaf();
                assert!(device.bind(&rig.cpu, &space).is_err() && space.notifiers().is_empty());
                for page in own {
                    let at = VirtAddr(page.address().0);
                    assert!(at >= RESERVED_START && entry(&space, at) == Descriptor::EMPTY, "shown after all: {at}");
                    device.free_coherent(&rig.cpu, page);
                }
            }
            assert_eq!(rig.write(at(0)), Outcome::Nothing);
            still_ends(&rig, device, space);
        }
    });
}

fn still_ends(rig: &Rig, device: DmaDevice, space: SpaceRef) {
    drop(space);
    device.unbind(&rig.cpu);
    drop(device);
    assert_eq!(rig.spaces.counts()[0], 0);
}
