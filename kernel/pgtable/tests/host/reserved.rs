//! Encodings that the architecture reserves: nothing is mapped there, and no call writes over them.
//!
//! Arm ARM D8.3.1: 0b01 is a block where blocks are legal, and reserved at every other level: above the first level of
//! blocks, which the granule decides, and at the last.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, Kind, bits};
use granule_pgtable::geometry::LAST_LEVEL;
use granule_pgtable::host::HostMachine;
use granule_pgtable::{
    Change, Error, Geometry, Granule4K, Granule16K, Granule64K, Lazy, RefuseSplits, Shape, Stores, WholeLeaves,
};

use crate::{BASE, DATA, map, range};

/// The level of the entry for [`BASE`] is `level`, and it holds `entry`.
fn machine<G: Geometry>(level: u8, entry: Descriptor) -> HostMachine<G> {
    let machine = HostMachine::<G>::new(8);
    // Tables down to that level, by a page of the same table that is not the one asked for.
    let neighbour = VirtAddr(BASE.0 ^ G::entry_size(level));
    map(&machine, range(neighbour, G::PAGE_SIZE), 0, DATA, Shape::PAGES).unwrap();
    let step = machine.page_tables().walk(BASE).last().unwrap();
    assert_eq!(step.level, level);
    machine.mmu().store(machine.entry(&step), entry);
    machine
}

fn nothing_is_mapped_there<G: Geometry>() {
    let leaf = Descriptor::block(PhysAddr(0x4000_0000), DATA).0;
    let upper = (G::FIRST_LEVEL..LAST_LEVEL).filter(|&level| !G::has_leaves(level));
    let valid = upper.clone().chain([LAST_LEVEL]).map(|level| (level, Descriptor(leaf)));
    // An entry that software calls present although it is not valid is a leaf only where a valid one could be.
    let invalid = upper.map(|level| (level, Descriptor(leaf & !bits::VALID | bits::PRESENT_INVALID)));
    for (level, entry) in valid.chain(invalid) {
        let machine = machine::<G>(level, entry);
        let tables = machine.page_tables();
        let lazy = Lazy::new(machine.mmu());
        assert_eq!(tables.walk(BASE).last().map(|step| (step.level, step.kind)), Some((level, Kind::None)));
        assert_eq!(tables.translate(BASE), None);
        let whole = range::<G>(BASE, G::entry_size(level));
        let mut leaves = 0;
        tables.dump(whole, |_| leaves += 1);
        assert_eq!(leaves, 0);
        let stream = machine.record(|| {
            for part in [whole, range(BASE, G::PAGE_SIZE)] {
                for change in [Change::READ_ONLY, Change::READ_WRITE, Change::INVALID, Change::VALID] {
                    let refused = Err(Error::NotMapped(BASE));
                    assert_eq!(tables.update(&lazy, part, change, WholeLeaves).map(drop), refused, "level {level}");
                    assert_eq!(tables.update(&lazy, part, change, RefuseSplits).map(drop), refused);
                    let split = crate::update_splitting(&tables, &lazy, part, change, &mut machine.frames());
                    assert_eq!(split.map(drop), refused);
                }
                tables.unmap(&lazy, machine.tlb(), part, WholeLeaves, |leaf| panic!("{leaf:?} is handed out")).unwrap();
                let refused = map(&machine, part, 0, DATA, Shape::PAGES);
                assert_eq!(refused, Err(Error::AlreadyMapped(BASE)), "it is not for this crate to write over");
            }
        });
        assert_eq!(stream, [], "level {level}");
        assert_eq!(tables.walk(BASE).last().map(|step| step.descriptor), Some(entry));
    }
}

#[test]
fn reserved_with_4_kib_pages() {
    nothing_is_mapped_there::<Granule4K>();
}

#[test]
fn reserved_with_16_kib_pages() {
    nothing_is_mapped_there::<Granule16K>();
}

#[test]
fn reserved_with_64_kib_pages() {
    nothing_is_mapped_there::<Granule64K>();
}
