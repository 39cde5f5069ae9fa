//! Events that come late, and pages that are EL1's, on the model SMMU: they must not reach another owner.

use std::sync::{Arc, Mutex};
use std::thread;

use core::time::Duration;

use granule_arch::alternative::host;
use granule_arch::descriptor::{Descriptor, Protection};
use granule_model::smmu::{Access as Wants, Hardware, Outcome};

use super::super::{BindError, NotifyMode, Resolution, Unfit};
use super::allowed::Story;
use super::{Rig, STREAM, UNMAPPED, at, entry};
use crate::mm::space::{Access, FaultError};
use crate::smp::{Cpu, CpuId};

/// The page that a device is refused, which is mapped nowhere.
const PAGE: u64 = 100;

/// A device that was refused a write, by the tables that it has, and whose event has not come.
fn refused(bound: bool) -> Story {
    let story = Story::new(NotifyMode::Tlb, Hardware::QEMU, 1);
    if !bound {
        story.device.unbind(&story.cpu);
    }
    story.model.delay_events();
    let outcome = story.model.transact(STREAM, at(PAGE).0, Wants::WRITE);
    assert_eq!(outcome, Outcome::Refused { event: Some(0x10) });
    assert_eq!(resolution(&story), Resolution::NoFault, "it has not come");
    story
}

fn resolution(story: &Story) -> Resolution {
    story.device.resolve(&story.cpu, at(PAGE).0..at(PAGE + 1).0, Access::Write, &|_| true)
}

/// Events that a CMD_SYNC brings are of the tables before it.
#[test]
fn an_event_that_comes_late_is_not_the_next_owners() {
    host::with(&[], || {
        let story = refused(false);
        story.device.bind(&story.cpu, &story.space).unwrap();
        assert_eq!(resolution(&story), Resolution::NoFault, "bound since");
        let story = refused(true);
        story.device.unbind(&story.cpu);
        assert_eq!(resolution(&story), Resolution::NoFault, "unbound since");
        // The positive control: another CMD_SYNC, and the same owner.
        let story = refused(true);
        story.space.mprotect(at(0), super::PAGE, Protection::READ).unwrap();
        assert_eq!(resolution(&story), Resolution::Failed(FaultError::NotMapped), "the same owner");
    });
}

/// Another thread has taken a fault from the record to serve it, and finds the device being bound.
#[test]
fn a_fault_that_is_being_served_is_not_the_next_owners() {
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        let (device, other) = (Arc::new(rig.attach()), rig.iommu.attach(&rig.cpu, STREAM + 8).unwrap());
        let (space, range) = (rig.space(PAGE + 1), at(PAGE).0..at(PAGE + 1).0);
        space.madvise_dontneed(&rig.cpu, at(PAGE), super::PAGE).unwrap();
        // A write by its own tables, which any device's driver takes from the queue.
        assert_eq!(rig.write(at(PAGE)), UNMAPPED);
        assert_eq!(other.resolve(&rig.cpu, 0..1, Access::Read, &|_| true), Resolution::NoFault);
        let serving = Arc::new(Mutex::new(None));
        let serve = {
            let (serving, device) = (serving.clone(), device.clone());
            move || {
                let mut serving = serving.lock().unwrap();
                if serving.is_none() {
                    let (device, range) = (device.clone(), range.clone());
                    let resolve = move || device.resolve(&Cpu::new(CpuId(1)), range, Access::Write, &|_| true);
                    *serving = Some(thread::spawn(resolve));
                    // Until it waits for the binding, which nothing shows.
                    thread::sleep(Duration::from_millis(100));
                }
            }
        };
        rig.smmu.at_each_barrier(serve, || device.bind(&rig.cpu, &space).unwrap());
        let resolution = serving.lock().unwrap().take().unwrap().join().unwrap();
        assert_eq!(resolution, Resolution::NoFault);
        assert_eq!((rig.iommu.fault_stats().served, entry(&space, at(PAGE))), (0, Descriptor::EMPTY));
    });
}

/// Pages that a device shares with its driver are EL1's in the tables of a process. So a device is bound only where it
/// reaches them: PRIVCFG counts, or privilege does not.
#[test]
fn a_device_is_bound_where_it_reaches_its_own_pages() {
    host::with(&[], || {
        for (overrides_privilege, ignores_privilege) in [(false, true), (true, false), (true, true), (false, false)] {
            let kind = Hardware { overrides_privilege, ignores_privilege, ..Hardware::QEMU };
            let story = Story::attached(NotifyMode::Tlb, kind, 1);
            let own = story.device.alloc_coherent(&story.cpu, 8).unwrap();
            let bound = story.device.bind(&story.cpu, &story.space);
            if overrides_privilege || ignores_privilege {
                assert_eq!(bound, Ok(()), "{kind:?}");
            } else {
                assert_eq!(bound, Err(BindError::Unfit(Unfit::Privilege)), "{kind:?}");
            }
            let outcome = story.model.transact(STREAM, own.address().0, Wants::WRITE);
            assert!(matches!(outcome, Outcome::Reaches(_)), "{kind:?}: {outcome:?}");
            story.device.free_coherent(&story.cpu, own);
        }
    });
}
