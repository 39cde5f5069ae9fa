//! A page becomes writable, and a device that reads and writes it by the process's tables must learn of that.
//!
//! The runner boots it with the fix away first, where the device does not learn of it; there this checks that the bug
//! shows. The page's contents are compared throughout, never the device's status.

use granule::devices::virtio::requests::RequestError;
use granule::devices::virtio_blk::BlkError;
use granule::iommu::{self, MAX_TRIES};
use granule::mm::space::Sharing;
use granule::{lab, println};

use crate::harness::Test;
use crate::smmu::{DELIVERED, Rig, START};

/// The value that the CPU stores.
const STORED: u64 = 8;
/// Reads of a disk whose status is trusted.
const READS: u32 = 128;

pub(super) fn show(t: &mut Test) {
    let Some(rig) = Rig::new(t, 1, Sharing::Private) else { return };
    rig.read_only_page(t, STORED - 1);
    let frame = rig.physical(START);
    rig.store(t, START, STORED);
    t.check("the CPU's store has upgraded the entry", rig.entry(START).is_writable() && rig.physical(START) == frame);
    println!("A disk reads a read-only page of a process: the SMMU has the entry. The CPU writes the page: its");
    println!("entry becomes writable, in place. Now a sector is read into it, which is the disk writing memory.");
    let is_away = lab::active().contains(&lab::NO_SECONDARY_TLB) || lab::active().contains(&lab::NO_UPGRADE_EVENT);
    match (is_away, lab::active().contains(&lab::TRUST_COMPLETION)) {
        (true, false) => faults_for_ever(t, &rig),
        (true, true) => is_lost(t, &rig),
        (false, _) => arrives(t, &rig),
    }
}

/// The SMMU was not notified: it refuses the write by its cached entry, however often the fault is served.
fn faults_for_ever(t: &mut Test, rig: &Rig) {
    let Some(before) = iommu::iommu().map(|iommu| iommu.fault_stats()) else { return };
    let failed = rig.device_store(START, DELIVERED);
    let tries = match failed {
        Err(BlkError::Request(RequestError::TooManyFaults(tries))) => tries,
        _ => 0,
    };
    t.equal("it is given up", tries, MAX_TRIES);
    println!("each try faults, at the same address, though the fault is served: given up after {tries}.");
    if let Some(iommu) = iommu::iommu() {
        t.check("an event for each", iommu.fault_stats().events - before.events >= u64::from(tries));
        iommu.for_each_recent(|event| {
            t.equal("where", event.address.map(|at| at.align_down(0x1000)), Some(START));
        });
    }
    t.equal("what the page holds", rig.load(START), STORED);
    println!("The CPU could write it all the while; it holds {}.", rig.load(START));
}

/// The view of a driver that trusts its device's status.
fn is_lost(t: &mut Test, rig: &Rig) {
    let (mut successes, mut arrived) = (0, 0);
    for number in 0..READS {
        let number = DELIVERED + u64::from(number);
        successes += u32::from(rig.device_store(START, number).is_ok());
        arrived += u32::from(rig.load(START) == number);
    }
    t.equal("successes", successes, READS);
    t.equal("sectors that arrived", arrived, 0);
    println!("of {READS} reads the disk reports {successes} as successful. Sectors that have arrived: {arrived}.");
}

/// The SMMU was invalidated when the entry changed.
fn arrives(t: &mut Test, rig: &Rig) {
    let tries = rig.device_store(START, DELIVERED);
    t.equal("tries", tries, Ok(1));
    t.equal("what has arrived", rig.load(START), DELIVERED);
    println!("sector {DELIVERED} arrives at once; the page holds {}.", rig.load(START));
    rig.read_only_page(t, STORED);
    let tries = rig.device_store(START, DELIVERED + 1).unwrap_or(0);
    t.equal("tries", tries, 2);
    t.equal("what has arrived", rig.load(START), DELIVERED + 1);
    println!("Where the disk itself is the first to write, it faults; the fault upgrades the entry, and the SMMU");
    println!("is notified. The first retry arrives: {tries} tries, and the page holds {}.", rig.load(START));
}
