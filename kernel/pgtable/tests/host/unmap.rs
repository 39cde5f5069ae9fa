//! The leaves that `unmap` takes away, and the time at which it returns the frames.

use core::cell::Cell;

use granule_arch::addr::PhysAddr;
use granule_pgtable::host::{HostMachine, HostMmu};
use granule_pgtable::{Error, Granule4K, Invalidation, Lazy, Leaf, Mmu, PageRange, Shape, Tlb, WholeLeaves};

use crate::{BASE, DATA, KIB, LARGEST, MIB, leaf_sizes, map, range};

#[test]
fn every_leaf_is_handed_out_once_and_gone() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE, 4 * MIB + 64 * KIB);
    map(&machine, range(BASE, 2 * MIB), 0x4000_0000, DATA, LARGEST).unwrap();
    map(&machine, range(BASE + 4 * MIB, 64 * KIB), 0x8000_0000, DATA, LARGEST).unwrap();
    let mut leaves = Vec::new();
    let lazy = Lazy::new(machine.mmu());
    machine.page_tables().unmap(&lazy, machine.tlb(), whole, WholeLeaves, |leaf| leaves.push(leaf)).unwrap();
    let block = Leaf { address: BASE, physical: PhysAddr(0x4000_0000), size: 2 * MIB };
    let pages = (0..16).map(|page| Leaf {
        address: BASE + 4 * MIB + page * 4 * KIB,
        physical: PhysAddr(0x8000_0000 + page * 4 * KIB),
        size: 4 * KIB,
    });
    assert_eq!(leaves, [block].into_iter().chain(pages).collect::<Vec<_>>());
    assert_eq!(leaf_sizes(&machine, whole), []);
    assert_eq!(map(&machine, whole, 0, DATA, LARGEST), Ok(()));
}

/// Says when its invalidation is complete.
struct Watched(Cell<bool>);

impl Tlb<HostMmu<Granule4K>> for Watched {
    fn issue(&self, _: &HostMmu<Granule4K>, _: &Invalidation) {}

    fn invalidate(&self, mmu: &HostMmu<Granule4K>, whats: impl Iterator<Item = Invalidation>) {
        mmu.dsb_ishst();
        assert_eq!(whats.count(), 1);
        mmu.dsb_ish();
        mmu.isb();
        self.0.set(true);
    }
}

/// aarch64-paging 0.12.3, Zircon `FreePage`: memory was given back while a TLB could still reach it.
#[test]
fn frames_are_released_after_the_invalidation() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole: PageRange = range(BASE, 16 * KIB);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    let tlb = Watched(Cell::new(false));
    let mut released = 0;
    let lazy = Lazy::new(machine.mmu());
    let tables = machine.page_tables();
    tables
        .unmap(&lazy, &tlb, whole, WholeLeaves, |leaf| {
            assert!(tlb.0.get(), "released before the TLBs were clean");
            assert!(tables.translate(leaf.address).is_none());
            released += 1;
        })
        .unwrap();
    assert_eq!(released, 4);
}

#[test]
fn a_leaf_that_is_cut_is_named_and_nothing_changes() {
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, 2 * MIB + 64 * KIB), 0, DATA, LARGEST).unwrap();
    let block = Error::Straddles { leaf: BASE, size: 2 * MIB };
    let group = Error::Straddles { leaf: BASE + 2 * MIB, size: 64 * KIB };
    for (start, size, error) in [
        (BASE + 4 * KIB, 4 * KIB, block),
        (BASE, 2 * MIB - 4 * KIB, block),
        (BASE, 2 * MIB + 4 * KIB, group),
        (BASE + 2 * MIB + 60 * KIB, 8 * KIB, group),
    ] {
        let lazy = Lazy::new(machine.mmu());
        let record = machine.record(|| {
            let refused = machine
                .page_tables()
                .unmap(&lazy, machine.tlb(), range(start, size), WholeLeaves, |_| panic!("released"));
            assert_eq!(refused, Err(error));
        });
        assert_eq!(record, []);
    }
}

#[test]
fn a_range_of_holes_costs_nothing() {
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, 4 * KIB), 0, DATA, LARGEST).unwrap();
    let record = machine.record(|| {
        let lazy = Lazy::new(machine.mmu());
        let holes = range(BASE + 4 * KIB, 512 * MIB);
        machine.page_tables().unmap(&lazy, machine.tlb(), holes, WholeLeaves, |_| panic!("released")).unwrap();
    });
    assert_eq!(record, []);
}
