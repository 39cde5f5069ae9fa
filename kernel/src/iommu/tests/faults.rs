//! Accesses that the SMMU refuses, and how they are resolved.

use std::iter::once;

use granule_arch::alternative::host;
use granule_arch::descriptor::{Descriptor, Protection, bits};
use granule_pgtable::{Invalidation, Mmu, Stores, Tables, Tlb};

use super::super::{DmaDevice, MAX_TRIES, Mode, NotifyMode, Refusal, Resolution};
use super::{OLD, Outcome, PAGE, READ_ONLY, READ_WRITE, Rig, STREAM, UNMAPPED, at, entry};
use crate::lab;
use crate::mm::kernel::mmu::{LinearView, Metal};
use crate::mm::space::{Access, FaultError, MapRequest, Placement, Populate, Sharing, SpaceRef};

struct Stage {
    rig: Rig,
    device: DmaDevice,
    space: SpaceRef,
}

impl Stage {
    fn new() -> Self {
        Self::notified_by(NotifyMode::Tlb)
    }

    fn notified_by(notify_mode: NotifyMode) -> Self {
        let rig = Rig::new(notify_mode);
        let (device, space) = (rig.attach(), rig.space(4));
        device.bind(&rig.cpu, &space).unwrap();
        Self { rig, device, space }
    }

    fn resolve(&self, page: u64, access: Access) -> Resolution {
        self.device.resolve(&self.rig.cpu, at(page).0..at(page + 1).0, access, &|_| true)
    }

    fn map(&self, page: u64, sharing: Sharing, protection: Protection) {
        let request = MapRequest {
            placement: Placement::Fixed(at(page)),
            bytes: PAGE,
            protection,
            sharing,
            populate: Populate::OnDemand,
        };
        self.space.mmap(&self.rig.cpu, &request).unwrap();
    }
}

#[test]
fn a_page_that_nobody_has_touched_is_served_and_then_reached() {
    host::with(&[], || {
        let stage = Stage::new();
        stage.map(8, Sharing::Private, READ_WRITE);
        assert_eq!(stage.resolve(8, Access::Write), Resolution::NoFault, "nothing was tried");
        assert_eq!(stage.rig.write(at(8)), UNMAPPED);
        assert_eq!(stage.resolve(8, Access::Read), Resolution::NoFault, "another transfer's fault");
        assert_eq!(stage.resolve(9, Access::Write), Resolution::NoFault, "beside it");
        assert_eq!(stage.resolve(8, Access::Write), Resolution::Resolved);
        assert_eq!(stage.rig.dma_write(at(8), 0x5a), Outcome::Reaches(entry(&stage.space, at(8)).address()));
        assert_eq!(stage.resolve(8, Access::Write), Resolution::NoFault);
        let mut byte = [0];
        stage.space.read_bytes(&stage.rig.cpu, at(8), &mut byte).unwrap();
        assert_eq!(byte, [0x5a]);
        assert_eq!(stage.rig.iommu.fault_stats().served, 1);
    });
}

#[test]
fn a_fault_where_nothing_may_be_is_an_error_of_the_transfer() {
    host::with(&[], || {
        let stage = Stage::new();
        assert_eq!(stage.rig.write(at(20)), UNMAPPED);
        assert_eq!(stage.resolve(20, Access::Write), Resolution::Failed(FaultError::NotMapped));
        stage.map(8, Sharing::Private, Protection::READ);
        assert_eq!(stage.rig.write(at(8)), UNMAPPED);
        assert_eq!(stage.resolve(8, Access::Write), Resolution::Failed(FaultError::NotAllowed));
        stage.device.unbind(&stage.rig.cpu);
        assert_eq!(stage.rig.read(at(0)), UNMAPPED);
        let resolution = stage.resolve(0, Access::Read);
        assert_eq!(resolution, Resolution::Failed(FaultError::NotMapped), "its own tables are not filled on a fault");
    });
}

/// The copy for a child, the upgrade of a page that is no longer shared, the shared page that was only read, the page
/// that was made old: each takes one fault, and then the device's access succeeds.
#[test]
fn writable_in_the_end_means_writable_for_the_device() {
    type Prepare = fn(&Stage);
    let cases: [(&str, Prepare, Outcome); 5] = [
        ("shared with a child", |stage| core::mem::forget(stage.space.fork(&stage.rig.cpu).unwrap()), READ_ONLY),
        ("child gone", |stage| drop(stage.space.fork(&stage.rig.cpu).unwrap()), READ_ONLY),
        (
            "writable and clean",
            |stage| {
                stage.map(0, Sharing::Shared, READ_WRITE);
                crate::mm::space::handle_fault(&stage.space, &stage.rig.cpu, at(0), Access::Read).unwrap();
                let found = entry(&stage.space, at(0));
                assert!(found.may_be_written() && !found.is_writable(), "{found:?}");
            },
            READ_ONLY,
        ),
        ("old", |stage| make_old(stage, 0), OLD),
        (
            "the page of zeros",
            |stage| {
                stage.map(0, Sharing::Private, READ_WRITE);
                crate::mm::space::handle_fault(&stage.space, &stage.rig.cpu, at(0), Access::Read).unwrap();
            },
            READ_ONLY,
        ),
    ];
    host::with(&[], || {
        for (name, prepare, refused) in cases {
            let stage = Stage::new();
            prepare(&stage);
            // The TLB has the entry that the device may read: it refuses the write by that.
            let _ = stage.rig.read(at(0));
            let _ = stage.resolve(0, Access::Read);
            if refused == OLD {
                make_old(&stage, 0);
                flush(&stage, 0);
            }
            assert_eq!(stage.rig.write(at(0)), refused, "{name}");
            assert_eq!(stage.resolve(0, Access::Write), Resolution::Resolved, "{name}");
            let now = Outcome::Reaches(entry(&stage.space, at(0)).address());
            assert_eq!([stage.rig.write(at(0)), stage.rig.read(at(0))], [now; 2], "{name}");
        }
    });
}

fn mmu(stage: &Stage) -> Metal<LinearView> {
    Metal(LinearView { offset: stage.rig.frames.linear().address(granule_arch::addr::PhysAddr(0)).0 })
}

/// As reclaim would.
fn make_old(stage: &Stage, page: u64) {
    let mmu = mmu(stage);
    let tables = stage.space.tables();
    let (_, cell) = tables.cell(at(page)).unwrap();
    mmu.store(cell, mmu.load(cell).old());
    drop(tables);
    flush(stage, page);
}

/// As a store of a CPU with FEAT_HAFDBS: AP[2] is cleared, and nothing is invalidated.
fn store_by_hardware(stage: &Stage, page: u64) {
    let mmu = mmu(stage);
    let tables = stage.space.tables();
    let (_, cell) = tables.cell(at(page)).unwrap();
    let clean = mmu.load(cell);
    assert!(clean.may_be_written() && !clean.is_writable() && clean.is_young(), "{clean:?}");
    mmu.store(cell, Descriptor(clean.0 & !bits::RDONLY));
}

fn flush(stage: &Stage, page: u64) {
    let range = granule_pgtable::PageRange::from_pages(at(page), 1).unwrap();
    stage.space.tlb().invalidate(&mmu(stage), once(Invalidation { range, tables: Tables::Kept, level: None }));
}

/// If it were called spurious because a CPU could write, it would repeat for ever.
#[test]
fn a_writable_clean_entry_that_is_called_spurious_faults_for_ever() {
    host::with(&lab::DEVICE_DBM_SPURIOUS.sites(), || {
        let stage = Stage::new();
        stage.map(0, Sharing::Shared, READ_WRITE);
        crate::mm::space::handle_fault(&stage.space, &stage.rig.cpu, at(0), Access::Read).unwrap();
        for _ in 0..100 {
            assert_eq!(stage.rig.write(at(0)), READ_ONLY);
            assert_eq!(stage.resolve(0, Access::Write), Resolution::Resolved);
        }
        assert_eq!(stage.rig.write(at(0)), READ_ONLY);
    });
}

/// A shared page that the device has read, and that a CPU then made writable by itself.
fn written_by_hardware(notify_mode: NotifyMode) -> Stage {
    let stage = Stage::notified_by(notify_mode);
    stage.map(0, Sharing::Shared, READ_WRITE);
    crate::mm::space::handle_fault(&stage.space, &stage.rig.cpu, at(0), Access::Read).unwrap();
    assert_eq!(stage.rig.read(at(0)), Outcome::Reaches(entry(&stage.space, at(0)).address()));
    store_by_hardware(&stage, 0);
    stage
}

#[test]
fn what_the_hardware_made_writable_is_written_at_the_first_retry() {
    host::with(&[], || {
        for mode in [NotifyMode::Tlb, NotifyMode::Events] {
            let stage = written_by_hardware(mode);
            assert_eq!(stage.rig.write(at(0)), READ_ONLY, "by the entry that the SMMU has, {mode:?}");
            assert_eq!(stage.resolve(0, Access::Write), Resolution::Resolved, "{mode:?}");
            let now = Outcome::Reaches(entry(&stage.space, at(0)).address());
            assert_eq!([stage.rig.write(at(0)), stage.rig.read(at(0))], [now; 2], "{mode:?}");
            assert_eq!(stage.resolve(0, Access::Write), Resolution::NoFault, "{mode:?}");
        }
    });
}

#[test]
fn what_the_hardware_made_writable_faults_for_ever_where_that_is_trusted() {
    host::with(&lab::TRUST_HW_DIRTY.sites(), || {
        for mode in [NotifyMode::Tlb, NotifyMode::Events] {
            let stage = written_by_hardware(mode);
            for _ in 0..MAX_TRIES {
                assert_eq!(stage.rig.write(at(0)), READ_ONLY, "{mode:?}");
                assert_eq!(stage.resolve(0, Access::Write), Resolution::Resolved, "{mode:?}");
            }
            assert_eq!(stage.rig.write(at(0)), READ_ONLY, "{mode:?}");
        }
    });
}

/// The queue holds 128 events, a device's own record 32 pages. Any transfer may have met an event that did not fit.
#[test]
fn what_is_lost_is_said_to_every_transfer_in_flight() {
    host::with(&[], || {
        let stage = Stage::new();
        let other = stage.rig.iommu.attach(&stage.rig.cpu, STREAM + 8).unwrap();
        for page in 0..200 {
            assert_eq!(stage.rig.write(at(100 + page)), UNMAPPED);
        }
        assert_eq!(stage.resolve(0, Access::Read), Resolution::Overflow, "its own faults are elsewhere");
        let elsewhere = other.resolve(&stage.rig.cpu, 0..1, Access::Read, &|_| true);
        assert_eq!(elsewhere, Resolution::Overflow, "the owners of the lost ones are unknown");
        assert_eq!(
            other.resolve(&stage.rig.cpu, 0..1, Access::Read, &|_| true),
            Resolution::NoFault,
            "it is reported once"
        );
        assert_eq!(stage.resolve(100, Access::Write), Resolution::Failed(FaultError::NotMapped));
        let stats = stage.rig.iommu.fault_stats();
        assert_eq!((stats.events, stats.losses), (128, 1));
        // The queue works as before.
        stage.map(8, Sharing::Private, READ_WRITE);
        assert_eq!(stage.rig.write(at(8)), UNMAPPED);
        assert_ne!(stage.resolve(8, Access::Write), Resolution::NoFault);
    });
}

#[test]
fn a_fault_is_of_the_tables_under_which_it_was_met() {
    host::with(&[], || {
        let Stage { rig, device, space } = Stage::new();
        let write = at(20).0..at(21).0;
        assert_eq!(rig.write(at(20)), UNMAPPED);
        device.unbind(&rig.cpu);
        assert_eq!(rig.write(at(20)), UNMAPPED);
        device.bind(&rig.cpu, &space).unwrap();
        assert_eq!(
            device.resolve(&rig.cpu, write.clone(), Access::Write, &|_| true),
            Resolution::NoFault,
            "bound anew"
        );
        assert_eq!(rig.write(at(20)), UNMAPPED);
        device.unbind(&rig.cpu);
        assert_eq!(
            device.resolve(&rig.cpu, write.clone(), Access::Write, &|_| true),
            Resolution::NoFault,
            "its own tables"
        );
        assert_eq!(rig.write(at(20)), UNMAPPED);
        drop(device);
        assert_eq!(
            rig.attach().resolve(&rig.cpu, write, Access::Write, &|_| true),
            Resolution::NoFault,
            "attached anew"
        );
    });
}

/// A device that reaches less than its driver believes is refused elsewhere, and reports success.
#[test]
fn a_refusal_that_is_in_no_transfer_fails_the_one_that_runs() {
    host::with(&[], || {
        let stage = Stage::new();
        stage.map(8, Sharing::Private, READ_WRITE);
        let resolve = |page: u64, is_others: bool| {
            stage.device.resolve(&stage.rig.cpu, at(page).0..at(page + 1).0, Access::Write, &|_| is_others)
        };
        assert_eq!(stage.rig.write(at(8)), UNMAPPED);
        assert_eq!(resolve(9, true), Resolution::NoFault, "another transfer's");
        assert_eq!(resolve(9, false), Resolution::Failed(FaultError::NotMapped));
        assert_eq!(resolve(9, false), Resolution::Overflow, "others that were in flight are submitted again");
        assert_eq!(resolve(9, false), Resolution::NoFault, "it is reported once");
        // A read is no part of a transfer that writes.
        assert_eq!(stage.rig.read(at(20)), UNMAPPED);
        assert_eq!(resolve(20, false), Resolution::Failed(FaultError::NotMapped));
        let _ = resolve(20, false);
        // A refusal before a transfer is not the transfer's.
        assert_eq!(stage.rig.write(at(20)), UNMAPPED);
        stage.device.forget_refusals();
        assert_eq!(resolve(9, false), Resolution::NoFault);
    });
}

#[test]
fn a_fetch_is_a_read_of_the_transfers() {
    let met = |access| Refusal { page: at(8), access };
    let of = |refusal: Refusal, access| refusal.is_of(&(at(8).0..at(9).0), access);
    for (access, read, write) in
        [(Access::Read, true, false), (Access::Execute, true, false), (Access::Write, false, true)]
    {
        assert_eq!([of(met(access), Access::Read), of(met(access), Access::Write)], [read, write], "{access:?}");
    }
    assert!(!met(Access::Read).is_of(&(at(9).0..at(10).0), Access::Read));
}

/// The SMMU leaves no record of what it aborts.
#[test]
fn what_is_refused_without_a_record_has_failed_too() {
    host::with(&[], || {
        let rig = Rig::new(NotifyMode::Tlb);
        let device = rig.attach();
        let resolve = || device.resolve(&rig.cpu, 0..1, Access::Read, &|_| false);
        assert_eq!(resolve(), Resolution::NoFault);
        device.set_mode(Mode::Abort).unwrap();
        assert_eq!(resolve(), Resolution::Failed(FaultError::NotMapped));
        device.set_mode(Mode::Translated).unwrap();
        assert_eq!(resolve(), Resolution::NoFault);
        rig.iommu.smmu().shut();
        assert_eq!(rig.read(at(0)), Outcome::Nothing);
        assert_eq!(resolve(), Resolution::Failed(FaultError::NotMapped));
    });
}

/// The SMMU may know an attached device by another number than the device tree has.
#[test]
fn events_of_strangers_are_counted_and_may_be_of_any_transfer() {
    let rig = Rig::new(NotifyMode::Tlb);
    let device = rig.attach();
    assert_eq!(rig.smmu.access(0x300, 0, false), Outcome::Event(0x04));
    assert_eq!(device.resolve(&rig.cpu, 0..1, Access::Read, &|_| true), Resolution::Overflow);
    assert_eq!(device.resolve(&rig.cpu, 0..1, Access::Read, &|_| true), Resolution::NoFault);
    assert_eq!(rig.iommu.fault_stats().unknown_streams, 1);
    let mut recent = 0;
    rig.iommu.for_each_recent(|event| {
        recent += 1;
        assert_eq!(event.stream, 0x300);
    });
    assert_eq!(recent, 1);
}
