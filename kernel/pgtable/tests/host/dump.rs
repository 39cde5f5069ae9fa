//! The output of `dump` and `walk`.

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::Kind;
use granule_pgtable::host::HostMachine;
use granule_pgtable::{Change, Granule4K, Lazy, Shape, WholeLeaves};

use crate::{BASE, DATA, GIB, KIB, LARGEST, MIB, RODATA, TEXT, map, range};

#[test]
fn like_leaves_are_one_extent() {
    let machine = HostMachine::<Granule4K>::new(8);
    // One run across a table boundary, in two physical pieces; then another kind of page; then a hole; then one more.
    map(&machine, range(BASE + 2 * MIB - 8 * KIB, 8 * KIB), 0x4000_0000, DATA, Shape::PAGES).unwrap();
    map(&machine, range(BASE + 2 * MIB, 8 * KIB), 0x5000_0000, DATA, Shape::PAGES).unwrap();
    map(&machine, range(BASE + 2 * MIB + 8 * KIB, 4 * KIB), 0x5000_2000, TEXT, Shape::PAGES).unwrap();
    map(&machine, range(BASE + 2 * MIB + 16 * KIB, 4 * KIB), 0x5000_4000, RODATA, Shape::PAGES).unwrap();
    let mut extents = Vec::new();
    let totals = machine.page_tables().dump(range(BASE, GIB), |extent| {
        extents.push((extent.start, extent.size, extent.physical, extent.physically_contiguous));
    });
    assert_eq!(
        extents,
        [
            (BASE + 2 * MIB - 8 * KIB, 16 * KIB, PhysAddr(0x4000_0000), false),
            (BASE + 2 * MIB + 8 * KIB, 4 * KIB, PhysAddr(0x5000_2000), true),
            (BASE + 2 * MIB + 16 * KIB, 4 * KIB, PhysAddr(0x5000_4000), true)
        ]
    );
    assert_eq!(totals.iter().collect::<Vec<_>>(), [(4 * KIB, 6)]);
}

#[test]
fn totals_count_groups_as_leaves() {
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, 34 * MIB + 132 * KIB), 0, DATA, LARGEST).unwrap();
    let totals = machine.page_tables().dump(range(BASE, GIB), |_| ());
    assert_eq!(totals.iter().collect::<Vec<_>>(), [(32 * MIB, 1), (2 * MIB, 1), (64 * KIB, 2), (4 * KIB, 1)]);
    assert_eq!(totals.bytes(), 34 * MIB + 132 * KIB);
}

#[test]
fn a_present_invalid_leaf_is_shown_as_neither_writable_nor_executable() {
    let machine = HostMachine::<Granule4K>::new(8);
    let page = range(BASE, 4 * KIB);
    map(&machine, page, 0, DATA, Shape::PAGES).unwrap();
    machine.page_tables().update(&Lazy::new(machine.mmu()), page, Change::INVALID, WholeLeaves).unwrap().defer();
    let mut seen = 0;
    machine.page_tables().dump(page, |extent| {
        assert!(!extent.is_writable() && !extent.is_executable() && !extent.attributes.is_valid());
        seen += 1;
    });
    assert_eq!(seen, 1);
}

#[test]
fn a_walk_shows_each_level_and_ends_where_the_hardware_does() {
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, 2 * MIB + 4 * KIB), 0x4000_0000, DATA, LARGEST).unwrap();
    let steps = |address| {
        let tables = machine.page_tables();
        tables.walk(address).map(|step| (step.level, step.index, step.kind)).collect::<Vec<_>>()
    };
    let to_level_2 = [(0, 256, Kind::Table), (1, 0, Kind::Table)];
    assert_eq!(steps(BASE + 8), [&to_level_2[..], &[(2, 0, Kind::Leaf)]].concat());
    assert_eq!(steps(BASE + 2 * MIB), [&to_level_2[..], &[(2, 1, Kind::Table), (3, 0, Kind::Leaf)]].concat());
    assert_eq!(steps(BASE + 2 * MIB + 4 * KIB), [&to_level_2[..], &[(2, 1, Kind::Table), (3, 1, Kind::None)]].concat());
    assert_eq!(steps(BASE + 512 * GIB), [(0, 257, Kind::None)]);
    let block = machine.page_tables().translate(BASE + 0x1234).unwrap();
    assert_eq!((block.physical, block.leaf_size), (PhysAddr(0x4000_1234), 2 * MIB));
}

#[test]
fn extents_and_totals_print_as_ptdump_does() {
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, 2 * MIB + 8 * KIB), 0x4000_0000, DATA, LARGEST).unwrap();
    let mut lines = Vec::new();
    let totals = machine.page_tables().dump(range(BASE, GIB), |extent| lines.push(extent.to_string()));
    assert_eq!(
        lines,
        [
            "0xffff800000000000-0xffff800000200000       2M    2M x 1           RW NX SHD AF        UXN    MEM/NORMAL",
            "0xffff800000200000-0xffff800000202000       8K    4K x 2           RW NX SHD AF        UXN    MEM/NORMAL",
        ]
    );
    assert_eq!(totals.to_string(), "total 2056K: 1 x 2M, 2 x 4K");
}
