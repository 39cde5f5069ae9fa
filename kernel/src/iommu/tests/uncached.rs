//! An SMMU that does not see the CPUs' caches: a device's own tables are cleaned, and spaces are not shared. The model
//! reads what was cleaned, and finds in memory that never was an entry that leads nowhere. And a device that does not.

use std::collections::BTreeSet;
use std::vec::Vec;

use granule_arch::addr::PhysAddr;
use granule_arch::recorded;
use granule_model::smmu::{Access, Hardware as Kind, Operation, Outcome, SmmuModel};
use granule_smmuv3::registers::offset::CMDQ_PROD;

use super::super::{BindError, Direction, DmaAddress, DmaError, Unfit};
use super::allowed::Modelled;
use super::{NotifyMode, PAGE, Rig, STREAM};

const UNCACHED: Kind = Kind { coherent: false, ..Kind::QEMU };
const PAGES: [u64; 2] = [0, PAGE];
const BYTES: usize = PAGES.len() * PAGE as usize;
/// From the first of them to another entry of each of the tables.
const OTHERS: [u64; 4] = [2 * PAGE, 1 << 21, 1 << 30, 1 << 39];
const MEMORY: PhysAddr = PhysAddr(0x4040_0000);
const UNMAPPED: Outcome = Outcome::Refused { event: Some(0x10) };

/// Whether an access comes to `outcome` alone; the model notes stores that the SMMU does not see.
fn is_only(model: &SmmuModel, address: u64, outcome: Outcome) -> bool {
    model.audit(STREAM, address);
    model.outcomes(STREAM, address, Access::READ) == BTreeSet::from([outcome])
}

/// A device is attached, and memory is shown to it and taken back; whether it reached that and no more, and then
/// nothing.
/// `nth` is the clean that is lost, and the second value whether there were so many.
fn is_right(kind: Kind, nth: Option<usize>) -> (bool, bool) {
    let Modelled { cpu, model, iommu, .. } = Modelled::new(NotifyMode::Tlb, kind);
    if let Some(nth) = nth {
        model.lose_clean(nth);
    }
    let device = iommu.attach(&cpu, STREAM).unwrap();
    model.add_device(STREAM);
    let DmaAddress(at) = device.map(&cpu, MEMORY, BYTES, Direction::ToDevice).unwrap();
    let mut right = PAGES.iter().all(|page| is_only(&model, at + page, Outcome::Reaches(MEMORY.0 + page)));
    right &= OTHERS.iter().all(|other| is_only(&model, at + other, UNMAPPED));
    device.unmap(&cpu, DmaAddress(at), BYTES);
    right &= PAGES.iter().all(|page| is_only(&model, at + page, UNMAPPED));
    (right & model.violations().is_empty(), model.has_lost_clean())
}

#[test]
fn a_device_reaches_what_is_mapped_for_it_and_each_clean_is_needed() {
    for kind in [UNCACHED, Kind { dma_coherent: false, ..Kind::QEMU }] {
        assert_eq!(is_right(kind, None), (true, true));
    }
    let lost: Vec<bool> =
        (0..).map(|nth| is_right(UNCACHED, Some(nth))).take_while(|run| run.1).map(|run| run.0).collect();
    // The root and three tables; three links and the entries; the entries again.
    assert_eq!(lost, [false; 9]);
}

/// The entry is in memory before the command can be read that invalidates it: the clean waits.
#[test]
fn entries_are_cleaned_before_their_invalidation_is_published() {
    let Modelled { cpu, model, iommu, .. } = Modelled::new(NotifyMode::Tlb, UNCACHED);
    let device = iommu.attach(&cpu, STREAM).unwrap();
    let at = device.map(&cpu, MEMORY, BYTES, Direction::Both).unwrap();
    let operations = model.record(|| device.unmap(&cpu, at, BYTES));
    let cleaned = operations.iter().position(|operation| matches!(operation, Operation::Clean { bytes: 16, .. }));
    let published =
        operations.iter().position(|operation| matches!(operation, Operation::Write { offset: CMDQ_PROD, .. }));
    assert!(cleaned.is_some() && cleaned < published, "{operations:x?}");
}

/// No call of a space's would clean its tables for the SMMU.
#[test]
fn a_device_is_not_bound_to_a_process() {
    let Modelled { cpu, spaces, iommu, .. } = Modelled::new(NotifyMode::Tlb, UNCACHED);
    let device = iommu.attach(&cpu, STREAM).unwrap();
    let refused = device.bind(&cpu, &spaces.create(&cpu).unwrap());
    assert_eq!(refused, Err(BindError::Unfit(Unfit::NotCoherent)));
    assert!(!device.is_bound());
}

/// Linux's `arch_sync_dma_for_device` and `arch_sync_dma_for_cpu`: what the CPUs have stored is in memory when the
/// transfer begins, and what they have fetched since is dropped when it has ended.
#[test]
fn memory_of_a_device_that_does_not_see_the_caches_is_in_none_at_both_ends_of_a_transfer() {
    const LINE: usize = 128;
    /// Bytes of a line on the host.
    const HOST_LINE: usize = 4;
    let rig = Rig::new(NotifyMode::Tlb);
    let (seeing, device) = (rig.attach(), rig.iommu.attach(&rig.cpu, STREAM + 1).unwrap().without_caches());
    let dropped = |work: &mut dyn FnMut()| {
        let issued = recorded::record(work);
        let complete = issued.iter().rposition(|&instruction| instruction == "dsb_sy").unwrap_or(0);
        // No entry of the device's tables is written before.
        assert!(!issued[..complete].iter().any(|instruction| instruction.ends_with("ishst")), "{issued:?}");
        issued[..complete].iter().filter(|&&instruction| instruction == "dc civac").count() * HOST_LINE
    };
    for direction in [Direction::ToDevice, Direction::FromDevice, Direction::Both] {
        for (device, bytes) in [(&seeing, 0), (&device, LINE)] {
            let mut at = Err(DmaError::NoSmmu);
            assert_eq!(dropped(&mut || at = device.map(&rig.cpu, MEMORY, LINE, direction)), bytes, "{direction:?}");
            assert_eq!(dropped(&mut || device.unmap(&rig.cpu, at.unwrap(), LINE)), bytes, "{direction:?}");
        }
    }
    // A line that CPUs store to beside the device would be written over what it has written.
    for (start, bytes) in [(MEMORY + 8, LINE), (MEMORY, 8)] {
        for direction in [Direction::FromDevice, Direction::Both] {
            assert_eq!(device.map(&rig.cpu, start, bytes, direction), Err(DmaError::PartOfLine(start)));
        }
        let at = device.map(&rig.cpu, start, bytes, Direction::ToDevice).unwrap();
        device.unmap(&rig.cpu, at, bytes);
    }
    assert_eq!(device.bind(&rig.cpu, &rig.space(1)), Err(BindError::NotCoherent));
}
