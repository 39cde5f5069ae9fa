//! Each kind of finding by itself, and none where nothing is wrong.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, Kind, bits};
use granule_pgtable::host::HostMachine;
use granule_pgtable::{
    Change, Collapse, Execution, Finding, FindingKind, FindingTotals, Geometry, Granule4K, Granule16K, Granule64K,
    GroupFault, Handshake, Lazy, Leaves, Mmu, PageRange, Shape, Stores, Tiny, WholeLeaves,
};

use crate::collapse::collapse;
use crate::{BASE, DATA, GIB, KIB, LARGEST, MIB, RODATA, TEXT, map, range};

const PAGE: u64 = 4 * KIB;
const GROUP: u64 = 64 * KIB;
const BLOCK: u64 = 2 * MIB;
const WX: FindingKind = FindingKind::WritableExecutable;

fn findings<G: Geometry>(machine: &HostMachine<G>, range: PageRange<G>) -> Vec<Finding> {
    let mut found = Vec::new();
    machine.page_tables().findings(range, |finding| found.push(*finding));
    found
}

const fn found(kind: FindingKind, start: VirtAddr, size: u64, leaf_size: u64) -> Finding {
    Finding { kind, start, size, leaf_size }
}

/// Changes the last entry of the walk for `at`.
fn change<G: Geometry>(machine: &HostMachine<G>, at: VirtAddr, change: impl FnOnce(u64) -> u64) {
    let step = machine.page_tables().walk(at).last().unwrap();
    let cell = machine.entry(&step);
    machine.mmu().store(cell, Descriptor(change(machine.mmu().load(cell).0)));
}

/// Two groups of pages, then a page.
fn groups() -> (HostMachine, PageRange) {
    let machine = HostMachine::new(8);
    map(&machine, range(BASE, 2 * GROUP + PAGE), 0x4000_0000, DATA, LARGEST).unwrap();
    (machine, range(BASE, GIB))
}

/// The findings once the page at `offset` in the first group is changed.
fn after(offset: u64, to: impl FnOnce(u64) -> u64) -> Vec<Finding> {
    let (machine, whole) = groups();
    change(&machine, BASE + offset, to);
    findings(&machine, whole)
}

fn group(fault: GroupFault) -> Vec<Finding> {
    vec![found(FindingKind::Group(fault), BASE, GROUP, GROUP)]
}

fn nothing_is_found_in<G: Geometry>(start: VirtAddr, size: u64, frames: usize) {
    let machine = HostMachine::<G>::new(frames);
    for (index, attributes) in [DATA, RODATA, TEXT].into_iter().enumerate() {
        let offset = index as u64 * size;
        map(&machine, range(start + offset, size), offset, attributes, LARGEST).unwrap();
    }
    assert_eq!(findings(&machine, range(start, 3 * size)), []);
}

#[test]
fn nothing_is_found_in_largest_leaves_of_every_geometry() {
    nothing_is_found_in::<Granule4K>(BASE, GIB + 34 * MIB + 68 * KIB, 12);
    nothing_is_found_in::<Granule16K>(BASE, 96 * MIB + 2 * MIB + 48 * KIB, 12);
    nothing_is_found_in::<Granule64K>(BASE, 2 * MIB + 192 * KIB, 8);
    nothing_is_found_in::<Tiny>(VirtAddr(!0 << 16), 20 * KIB, 8);
    let machine = HostMachine::<Granule4K>::new(1);
    assert_eq!(findings(&machine, range(BASE, GIB)), [], "nothing is mapped");
}

#[test]
fn a_leaf_that_is_writable_and_executable_is_found_and_neighbours_are_one_finding() {
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, 8 * PAGE), 0, DATA, Shape::PAGES).unwrap();
    map(&machine, range(BASE + BLOCK, BLOCK), BLOCK, DATA, LARGEST).unwrap();
    let whole = range(BASE, GIB);
    assert_eq!(findings(&machine, whole), []);
    for at in [BASE + PAGE, BASE + 2 * PAGE, BASE + 4 * PAGE, BASE + BLOCK] {
        change(&machine, at, |entry| entry & !bits::PXN);
    }
    assert_eq!(
        findings(&machine, whole),
        [
            found(WX, BASE + PAGE, 2 * PAGE, PAGE),
            found(WX, BASE + 4 * PAGE, PAGE, PAGE),
            found(WX, BASE + BLOCK, BLOCK, BLOCK),
        ]
    );
    assert_eq!(findings(&machine, range(BASE + 2 * PAGE, 2 * PAGE)), [found(WX, BASE + 2 * PAGE, PAGE, PAGE)]);
    // Of EL0's bit nothing follows for EL1.
    change(&machine, BASE + PAGE, |entry| entry | bits::PXN);
    change(&machine, BASE + PAGE, |entry| entry & !bits::UXN);
    assert_eq!(findings(&machine, range(BASE, 2 * PAGE)), []);
}

#[test]
fn neither_half_alone_is_found_nor_what_the_hardware_does_not_use() {
    let machine = HostMachine::<Granule4K>::new(8);
    let page = range(BASE, PAGE);
    map(&machine, page, 0, TEXT, Shape::PAGES).unwrap();
    assert_eq!(findings(&machine, page), []);
    // The first store makes it writable.
    change(&machine, BASE, |entry| entry | bits::WRITE);
    assert_eq!(findings(&machine, page), [found(WX, BASE, PAGE, PAGE)]);
    machine.page_tables().update(&Lazy::new(machine.mmu()), page, Change::INVALID, WholeLeaves).unwrap().defer();
    assert_eq!(findings(&machine, page), []);
    // A table on the way forbids it.
    let forbidden = Shape { leaves: Leaves::Pages, execution: Execution::Forbidden };
    let page = range(BASE + BLOCK, PAGE);
    map(&machine, page, 0, DATA, forbidden).unwrap();
    change(&machine, BASE + BLOCK, |entry| entry & !bits::PXN);
    assert_eq!(findings(&machine, page), []);
}

#[test]
fn a_group_with_the_bit_in_a_part_of_it_is_found() {
    for offset in [0, 7 * PAGE, 15 * PAGE] {
        assert_eq!(after(offset, |entry| entry & !bits::CONTIGUOUS), group(GroupFault::Bit), "{offset:#x}");
        assert_eq!(after(offset, |_| 0), group(GroupFault::Bit), "{offset:#x}");
    }
    // One entry has the bit, and its neighbours never had.
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, 3 * PAGE), 0, DATA, Shape::PAGES).unwrap();
    change(&machine, BASE + 2 * PAGE, |entry| entry | bits::CONTIGUOUS);
    assert_eq!(findings(&machine, range(BASE, GIB)), group(GroupFault::Bit));
}

#[test]
fn a_group_whose_entries_differ_is_found() {
    let flips = [
        bits::PXN,
        bits::UXN,
        bits::USER,
        bits::NG,
        bits::GP,
        bits::WRITE,
        bits::SH_OUTER,
        1 << bits::ATTR_INDEX.trailing_zeros(),
        1 << 59,
    ];
    for flip in flips {
        // Writable and executable is found as well.
        let found = after(7 * PAGE, |entry| entry ^ flip);
        assert_eq!(found.first(), group(GroupFault::Attributes).first(), "{flip:#x}");
        assert_eq!(found.len(), if flip == bits::PXN { 2 } else { 1 });
    }
    assert_eq!(after(7 * PAGE, |entry| entry & !bits::VALID | bits::PRESENT_INVALID), group(GroupFault::Attributes));
    // Without DBM nothing but software changes AP[2].
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, GROUP), 0, RODATA, LARGEST).unwrap();
    change(&machine, BASE + PAGE, |entry| entry & !bits::RDONLY);
    assert_eq!(findings(&machine, range(BASE, GIB)), group(GroupFault::Attributes));
}

#[test]
fn what_the_hardware_sets_in_one_entry_or_ignores_may_differ() {
    for legal in [bits::AF, bits::RDONLY, bits::VM_ALLOC, bits::DIRTY, 1 << 57, 1 << 58, 1 << 63] {
        assert_eq!(after(7 * PAGE, |entry| entry ^ legal), [], "{legal:#x}");
    }
    // Entries that are not valid have more bits that are software's, and are alike in the others.
    let (machine, whole) = groups();
    let first = range(BASE, GROUP);
    machine.page_tables().update(&Lazy::new(machine.mmu()), first, Change::INVALID, WholeLeaves).unwrap().defer();
    assert_eq!(findings(&machine, whole), []);
    change(&machine, BASE + 7 * PAGE, |entry| entry | 0b1111 << 59);
    assert_eq!(findings(&machine, whole), []);
    change(&machine, BASE + 7 * PAGE, |entry| entry ^ bits::PXN);
    assert_eq!(findings(&machine, whole), group(GroupFault::Attributes));
}

#[test]
fn a_group_whose_memory_is_not_one_aligned_piece_is_found() {
    assert_eq!(after(7 * PAGE, |entry| entry + PAGE), group(GroupFault::Address));
    assert_eq!(after(0, |entry| entry + 16 * PAGE), group(GroupFault::Address));
    assert_eq!(after(15 * PAGE, |entry| entry - PAGE), group(GroupFault::Address));
    let (machine, whole) = groups();
    (0..16).for_each(|page| change(&machine, BASE + page * PAGE, |entry| entry + PAGE));
    assert_eq!(findings(&machine, whole), group(GroupFault::Address), "in one piece, and not aligned");
    (0..16).for_each(|page| change(&machine, BASE + page * PAGE, |entry| entry + 15 * PAGE));
    assert_eq!(findings(&machine, whole), []);
}

#[test]
fn groups_with_the_same_fault_are_one_finding_and_a_range_has_those_that_it_touches() {
    let (machine, whole) = groups();
    for at in [BASE + 3 * PAGE, BASE + GROUP] {
        change(&machine, at, |entry| entry & !bits::CONTIGUOUS);
    }
    let both = found(FindingKind::Group(GroupFault::Bit), BASE, 2 * GROUP, GROUP);
    assert_eq!(findings(&machine, whole), [both]);
    assert_eq!(findings(&machine, range(BASE + 15 * PAGE, 2 * PAGE)), [both]);
    assert_eq!(findings(&machine, range(BASE + 15 * PAGE, PAGE)), group(GroupFault::Bit));
    assert_eq!(findings(&machine, range(BASE + 2 * GROUP, PAGE)), []);
    change(&machine, BASE + GROUP, |entry| entry | bits::CONTIGUOUS);
    change(&machine, BASE + GROUP, |entry| entry + PAGE);
    let kinds: Vec<_> = findings(&machine, whole).iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [GroupFault::Bit, GroupFault::Address].map(FindingKind::Group));
}

#[test]
fn a_group_of_blocks_with_a_table_in_it_is_found_once() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE, GIB);
    map(&machine, range(BASE, 64 * MIB), 0, DATA, LARGEST).unwrap();
    map(&machine, range(BASE + 64 * MIB, GROUP), 64 * MIB, DATA, LARGEST).unwrap();
    let table = machine.page_tables().walk(BASE + 64 * MIB).filter(|step| step.kind == Kind::Table).last().unwrap();
    assert_eq!(findings(&machine, whole), []);
    // Its own group is found in between.
    change(&machine, BASE + 64 * MIB, |entry| entry & !bits::CONTIGUOUS);
    change(&machine, BASE + 42 * MIB, |_| table.descriptor.0);
    let in_group = FindingKind::Group(GroupFault::Bit);
    assert_eq!(
        findings(&machine, range(BASE, 64 * MIB)),
        [found(in_group, BASE + 32 * MIB, 32 * MIB, 32 * MIB), found(in_group, BASE + 42 * MIB, GROUP, GROUP)]
    );
}

#[test]
fn a_contiguous_block_of_1_gib_is_found_because_the_geometry_has_no_such_groups() {
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, 2 * GIB), 0, DATA, LARGEST).unwrap();
    change(&machine, BASE + GIB, |entry| Descriptor(entry).contiguous().0);
    let level = FindingKind::Group(GroupFault::Level);
    assert_eq!(findings(&machine, range(BASE, 3 * GIB)), [found(level, BASE + GIB, GIB, GIB)]);
}

#[test]
fn the_last_addresses_of_all_are_looked_at() {
    let machine = HostMachine::<Granule4K>::new(8);
    let last = VirtAddr(0_u64.wrapping_sub(BLOCK));
    map(&machine, range(last, BLOCK), 0, DATA, Shape::PAGES).unwrap();
    let half = range(VirtAddr(!0 << 48), 1 << 48);
    assert_eq!(findings(&machine, half), [found(FindingKind::Larger, last, BLOCK, BLOCK)]);
    change(&machine, VirtAddr(u64::MAX), |entry| (entry | bits::CONTIGUOUS) & !bits::PXN);
    let (page, group) = (VirtAddr(0_u64.wrapping_sub(PAGE)), VirtAddr(0_u64.wrapping_sub(GROUP)));
    assert_eq!(
        findings(&machine, half),
        [
            found(FindingKind::Group(GroupFault::Bit), group, GROUP, GROUP),
            found(WX, page, PAGE, GROUP),
            found(FindingKind::Larger, last, BLOCK - GROUP, GROUP),
        ]
    );
}

#[test]
fn what_is_executable_at_one_address_and_writable_at_another_is_found() {
    const ALIAS: u64 = 256 * MIB;
    let writable = FindingKind::WritableElsewhereExecutable;
    let machine = HostMachine::<Granule4K>::new(16);
    let whole = range(BASE, GIB);
    // Code at three places of the memory that the alias shows: what the middle one shows is read-only.
    for (offset, at) in [(0, 3 * BLOCK + PAGE), (BLOCK, 5 * BLOCK), (2 * BLOCK, 7 * BLOCK + 4 * PAGE)] {
        map(&machine, range(BASE + offset, 2 * PAGE), at, TEXT, Shape::PAGES).unwrap();
    }
    for block in [3, 4, 5, 7] {
        let (attributes, shape) = if block == 5 { (RODATA, LARGEST) } else { (DATA, LARGEST) };
        let shape = if block == 7 { Shape::PAGES } else { shape };
        map(&machine, range(BASE + ALIAS + block * BLOCK, BLOCK), block * BLOCK, attributes, shape).unwrap();
    }
    let of_block = found(writable, BASE + ALIAS + 3 * BLOCK, BLOCK, BLOCK);
    let (page, size) = (BASE + ALIAS + 7 * BLOCK + 4 * PAGE, 2 * PAGE);
    let of_pages = Finding { leaf_size: PAGE, ..found(writable, page, size, PAGE) };
    let faults = |range| findings(&machine, range).into_iter().filter(Finding::is_fault).collect::<Vec<_>>();
    assert_eq!(faults(whole), [of_block, of_pages]);
    assert!(of_block.is_fault());
    assert_eq!(faults(range(page + PAGE, PAGE)), [found(writable, page + PAGE, PAGE, PAGE)]);
    assert_eq!(faults(range(BASE, 3 * BLOCK)), []);
    // A leaf that the hardware may not use is no way to write, nor to execute.
    change(&machine, page, |entry| entry & !bits::VALID | bits::PRESENT_INVALID);
    assert_eq!(faults(whole), [of_block, found(writable, page + PAGE, PAGE, PAGE)]);
    change(&machine, BASE + 2 * BLOCK + PAGE, |entry| entry & !bits::VALID | bits::PRESENT_INVALID);
    assert_eq!(faults(whole), [of_block]);
    let code = range(BASE, 2 * PAGE);
    machine.page_tables().update(&Lazy::new(machine.mmu()), code, Change::NO_EXECUTE, WholeLeaves).unwrap().defer();
    assert_eq!(faults(whole), []);
}

#[test]
fn pages_that_could_be_groups_or_blocks_are_hints() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE, GIB);
    // Two tables that could be blocks; then groups, of which one is not alike; then what no leaf could be.
    map(&machine, range(BASE, 2 * BLOCK + 5 * GROUP), 0, DATA, Shape::PAGES).unwrap();
    change(&machine, BASE + 2 * BLOCK + 2 * GROUP + PAGE, |entry| entry | bits::RDONLY);
    map(&machine, range(BASE + 6 * BLOCK, GROUP), 6 * BLOCK + PAGE, DATA, Shape::PAGES).unwrap();
    map(&machine, range(BASE + 7 * BLOCK, BLOCK - PAGE), 7 * BLOCK + GROUP / 2, DATA, Shape::PAGES).unwrap();
    let hints = [
        found(FindingKind::Larger, BASE, 2 * BLOCK, BLOCK),
        found(FindingKind::Larger, BASE + 2 * BLOCK, 2 * GROUP, GROUP),
        found(FindingKind::Larger, BASE + 2 * BLOCK + 3 * GROUP, 2 * GROUP, GROUP),
    ];
    assert_eq!(findings(&machine, whole), hints);
    assert!(hints.iter().all(|hint| !hint.is_fault()));
    // Of a table only what the range touches: all of it, where it could be one leaf.
    assert_eq!(findings(&machine, range(BASE + PAGE, PAGE)), [found(FindingKind::Larger, BASE, BLOCK, BLOCK)]);
    let second = found(FindingKind::Larger, BASE + 2 * BLOCK + GROUP, GROUP, GROUP);
    assert_eq!(findings(&machine, range(second.start + PAGE, PAGE)), [second]);
    assert_eq!(findings(&machine, range(BASE + 2 * BLOCK + 2 * GROUP, GROUP)), []);
}

/// A hint is what the collapser makes of a table, and where it makes nothing there is none.
#[test]
fn hints_are_what_a_collapse_makes() {
    let machine = HostMachine::<Granule4K>::new(560);
    let whole = range(BASE, 2 * GIB);
    // The first page is missing.
    map(&machine, range(BASE + PAGE, GIB - PAGE), PAGE, DATA, Shape::PAGES).unwrap();
    let mut totals = FindingTotals::default();
    findings(&machine, whole).iter().for_each(|finding| totals.add(finding));
    assert_eq!(totals.larger, GIB - GROUP);
    let done = collapse(&machine, Collapse { range: whole, never_blocks: 0, handshake: Handshake::Marks });
    assert_eq!((done.blocks, done.groups, done.cancelled), ([0, 0, 511, 0], [0, 0, 1, 1], 0));
    assert_eq!(findings(&machine, whole), []);
}

#[test]
fn findings_are_lines_and_totals_are_one() {
    let (machine, whole) = groups();
    change(&machine, BASE + 2 * PAGE, |entry| entry & !bits::CONTIGUOUS);
    change(&machine, BASE + 2 * GROUP, |entry| entry & !bits::PXN);
    map(&machine, range(BASE + BLOCK, BLOCK), 0, DATA, Shape::PAGES).unwrap();
    let (mut lines, mut totals) = (Vec::new(), FindingTotals::default());
    assert_eq!(totals.to_string(), "findings: none");
    machine.page_tables().findings(whole, |finding| {
        totals.add(finding);
        lines.push(finding.to_string());
    });
    assert_eq!(
        lines,
        [
            "wrong 0xffff800000000000-0xffff800000010000      64K   64K x 1     contiguous in a part of the group only",
            "wrong 0xffff800000020000-0xffff800000021000       4K    4K x 1     writable and executable at EL1",
            "hint  0xffff800000200000-0xffff800000400000       2M    2M x 1     could be as large",
        ]
    );
    assert_eq!(totals.to_string(), "findings: 68K wrong, 2M could be in larger leaves");
}
