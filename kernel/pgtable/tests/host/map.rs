//! The entries that `map` makes, and the calls that it refuses.

use std::collections::VecDeque;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, Kind, MemoryAttribute, MemoryType, Protection, bits, mair};
use granule_pgtable::host::HostMachine;
use granule_pgtable::{
    Change, Error, Execution, Geometry, Granule4K, Granule16K, Granule64K, Lazy, Leaves, PageRange, Shape, Stores,
    Tiny, WholeLeaves,
};

use crate::{BASE, DATA, GIB, KIB, LARGEST, MIB, RODATA, TEXT, leaf_sizes, map, range, update_splitting};

#[test]
fn the_largest_leaf_is_taken_at_each_address() {
    let machine = HostMachine::<Granule4K>::new(16);
    // From 4 KiB below a 64 KiB boundary to 12 KiB past a 1 GiB block: every size on the way up and down.
    let start = BASE + GIB - 34 * MIB - 68 * KIB;
    let whole = range(start, 68 * KIB + 34 * MIB + GIB + 2 * MIB + 64 * KIB + 12 * KIB);
    map(&machine, whole, start.0 - BASE.0 + 4 * GIB, DATA, LARGEST).unwrap();
    assert_eq!(
        leaf_sizes(&machine, whole),
        [(4 * KIB, 1), (64 * KIB, 1), (2 * MIB, 1), (32 * MIB, 1), (GIB, 1), (2 * MIB, 1), (64 * KIB, 1), (4 * KIB, 3)]
    );
}

#[test]
fn every_geometry_uses_its_own_leaves() {
    fn sizes<G: Geometry>() -> Vec<(u64, u64)> {
        let machine = HostMachine::<G>::new(8);
        let size = G::group_size(2) + G::entry_size(2) + G::group_size(3) + G::PAGE_SIZE;
        let whole = range(VirtAddr(0), size.min(1 << G::VA_BITS));
        map(&machine, whole, 0, DATA, LARGEST).unwrap();
        leaf_sizes(&machine, whole)
    }
    assert_eq!(sizes::<Granule4K>(), [(32 * MIB, 1), (2 * MIB, 1), (64 * KIB, 1), (4 * KIB, 1)]);
    assert_eq!(sizes::<Granule16K>(), [(GIB, 1), (32 * MIB, 1), (2 * MIB, 1), (16 * KIB, 1)]);
    assert_eq!(sizes::<Granule64K>(), [(16 * GIB, 1), (512 * MIB, 1), (2 * MIB, 1), (64 * KIB, 1)]);
    assert_eq!(sizes::<Tiny>(), [(32 * KIB, 1), (16 * KIB, 1), (8 * KIB, 1), (4 * KIB, 1)]);
}

/// hermit-os/uhyve #956, Theseus #699: groups need both addresses aligned, not one of them.
#[test]
fn a_group_needs_both_addresses_aligned() {
    for (start, physical) in [(BASE, 4 * KIB), (BASE + 4 * KIB, 0), (BASE + 64 * KIB, 32 * KIB)] {
        let machine = HostMachine::<Granule4K>::new(4);
        let whole = range(start, 64 * KIB);
        map(&machine, whole, physical, DATA, LARGEST).unwrap();
        assert_eq!(leaf_sizes(&machine, whole), [(4 * KIB, 16)]);
    }
}

#[test]
fn pages_are_pages_whatever_the_alignment() {
    let machine = HostMachine::<Granule4K>::new(4);
    let whole = range(BASE, 2 * MIB);
    map(&machine, whole, 0, DATA, Shape::PAGES).unwrap();
    assert_eq!(leaf_sizes(&machine, whole), [(4 * KIB, 512)]);
}

#[test]
fn a_table_left_behind_keeps_blocks_from_being_grouped() {
    let machine = HostMachine::<Granule4K>::new(4);
    let lazy = Lazy::new(machine.mmu());
    let page = range(BASE + 4 * MIB, 4 * KIB);
    map(&machine, page, 0, DATA, LARGEST).unwrap();
    machine.page_tables().unmap(&lazy, machine.tlb(), page, WholeLeaves, |_| ()).unwrap();
    let whole = range(BASE, 32 * MIB);
    map(&machine, whole, 0, DATA, LARGEST).unwrap();
    assert_eq!(leaf_sizes(&machine, whole), [(2 * MIB, 2), (64 * KIB, 32), (2 * MIB, 13)]);
}

#[test]
fn the_last_page_of_the_address_space_is_a_page() {
    let machine = HostMachine::<Granule4K>::new(4);
    let last = range(VirtAddr(0xffff_ffff_ffff_f000), 4 * KIB);
    map(&machine, last, 0, DATA, LARGEST).unwrap();
    let half = range(VirtAddr(0xffff_0000_0000_0000), 1 << 48);
    assert_eq!(leaf_sizes(&machine, half), [(4 * KIB, 1)]);
    assert_eq!(map(&machine, half, 0, DATA, LARGEST), Err(Error::AlreadyMapped(last.start())));
}

#[test]
fn what_is_mapped_is_named_and_nothing_changes() {
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE + 12 * KIB, 4 * KIB), 0, RODATA, LARGEST).unwrap();
    map(&machine, range(BASE + 4 * MIB, 2 * MIB), 0, RODATA, LARGEST).unwrap();
    let free = machine.free_frames();
    for (start, size, found) in [
        (BASE, 16 * KIB, BASE + 12 * KIB),
        (BASE + 16 * KIB, 8 * MIB, BASE + 4 * MIB),
        // Inside a block: the first page that was asked for is the one that is mapped.
        (BASE + 4 * MIB + 8 * KIB, 4 * KIB, BASE + 4 * MIB + 8 * KIB),
    ] {
        let writes = machine.record(|| {
            assert_eq!(map(&machine, range(start, size), 0, DATA, LARGEST), Err(Error::AlreadyMapped(found)));
        });
        assert_eq!(writes, []);
    }
    assert_eq!(machine.free_frames(), free);
}

#[test]
fn what_descriptors_cannot_hold_is_refused() {
    let machine = HostMachine::<Granule4K>::new(4);
    let two = range(BASE, 8 * KIB);
    assert_eq!(map(&machine, two, 0x800, DATA, LARGEST), Err(Error::Unaligned(0x800)));
    let top = (1 << 48) - 4 * KIB;
    assert_eq!(map(&machine, two, top, DATA, LARGEST), Err(Error::PhysicalTooHigh(PhysAddr(top))));
    assert_eq!(map(&machine, range(BASE, 4 * KIB), top, DATA, LARGEST), Ok(()));
    let machine = HostMachine::<Granule64K>::new(4);
    assert_eq!(map(&machine, range(BASE, 64 * KIB), 4 * KIB, DATA, LARGEST), Err(Error::Unaligned(4 * KIB)));
}

#[test]
fn a_shortage_of_tables_changes_nothing_wherever_it_comes() {
    // Crosses a 512 GiB and so every smaller boundary: two tables at each of three levels.
    let whole = range(BASE + 512 * GIB - 8 * KIB, 16 * KIB);
    for available in 0..6 {
        let machine = HostMachine::<Granule4K>::new(8);
        let tables = machine.page_tables();
        let lazy = Lazy::new(machine.mmu());
        let result = tables.map(&lazy, whole, PhysAddr(0), DATA, LARGEST, &mut machine.frames_limited(available));
        assert_eq!(result, Err(Error::OutOfTables { needed: 6, available }));
        assert_eq!(machine.free_frames(), 8);
        assert_eq!(tables.walk(whole.start()).next().unwrap().kind, Kind::None);
    }
    let machine = HostMachine::<Granule4K>::new(6);
    map(&machine, whole, 0, DATA, LARGEST).unwrap();
    assert_eq!(machine.free_frames(), 0);
}

#[test]
fn table_descriptors_forbid_what_the_caller_says() {
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, range(BASE, 4 * KIB), 0, DATA, Shape::LARGEST_DATA).unwrap();
    map(&machine, range(BASE + 512 * GIB, 4 * KIB), 0, TEXT, Shape::PAGES).unwrap();
    let above = |address| {
        let tables = machine.page_tables();
        tables.walk(address).filter(|step| step.kind == Kind::Table).map(|step| step.descriptor.0).collect::<Vec<_>>()
    };
    assert!(above(BASE).iter().all(|table| table & bits::PXNTABLE != 0 && table & bits::UXNTABLE != 0));
    assert!(above(BASE + 512 * GIB).iter().all(|table| table & bits::PXNTABLE == 0 && table & bits::UXNTABLE != 0));
    assert!(machine.page_tables().translate(BASE).unwrap().execution_forbidden_above);
}

#[test]
fn code_below_a_table_that_forbids_it_is_refused() {
    let machine = HostMachine::<Granule4K>::new(8);
    let first = range(BASE, 4 * KIB);
    assert_eq!(map(&machine, first, 0, TEXT, Shape::LARGEST_DATA), Err(Error::ExecutionForbidden(BASE)));
    map(&machine, first, 0, RODATA, Shape::LARGEST_DATA).unwrap();
    let next = range(BASE + 4 * KIB, 4 * KIB);
    assert_eq!(map(&machine, next, 0, TEXT, Shape::PAGES), Err(Error::ExecutionForbidden(next.start())));
    let lazy = Lazy::new(machine.mmu());
    let refused = machine.page_tables().update(&lazy, first, Change::EXECUTABLE, WholeLeaves);
    assert_eq!(refused, Err(Error::ExecutionForbidden(BASE)));
}

#[test]
fn frames_are_asked_for_in_order_and_once() {
    let machine = HostMachine::<Granule4K>::new(8);
    let whole = range(BASE + 2 * MIB - 8 * KIB, 16 * KIB);
    let lazy = Lazy::new(machine.mmu());
    let mut asked = Vec::new();
    let frame = |address: VirtAddr, _| {
        asked.push(address);
        (PhysAddr(0x9000_0000 - asked.len() as u64 * 0x1_0000), 1)
    };
    machine.page_tables().map_frames(&lazy, whole, frame, DATA, Leaves::Largest, &mut machine.frames()).unwrap();
    assert_eq!(asked, [0, 1, 2, 3].map(|page| whole.start() + page * 4 * KIB));
    for (page, address) in asked.into_iter().enumerate() {
        let physical = machine.page_tables().translate(address).unwrap().physical;
        assert_eq!(physical, PhysAddr(0x9000_0000 - (page as u64 + 1) * 0x1_0000));
    }
}

/// Owners of neighbouring ranges need the same tables at the same time, and take no lock: one links, the other uses it.
#[test]
fn neighbours_may_map_at_the_same_time() {
    const OWNERS: u64 = 4;
    for round in 0..50 {
        let machine = HostMachine::<Granule4K>::new(16);
        let start = std::sync::Barrier::new(OWNERS as usize);
        let page = |owner: u64| range(BASE + owner * 4 * KIB, 4 * KIB);
        std::thread::scope(|scope| {
            for owner in 0..OWNERS {
                let (machine, start) = (&machine, &start);
                scope.spawn(move || {
                    start.wait();
                    map(machine, page(owner), owner * 4 * KIB, DATA, LARGEST).unwrap();
                });
            }
        });
        for owner in 0..OWNERS {
            let found = machine.page_tables().translate(page(owner).start()).unwrap();
            assert_eq!(found.physical, PhysAddr(owner * 4 * KIB), "round {round}");
        }
        assert_eq!(machine.free_frames(), 16 - 3, "a table that lost was not given back");
    }
}

#[test]
fn ranges_that_are_none_are_refused() {
    type Range = PageRange<Granule4K>;
    assert_eq!(Range::new(BASE + 1, 4096), Err(Error::Unaligned(BASE.0 + 1)));
    assert_eq!(Range::new(BASE, 4095), Err(Error::Unaligned(4095)));
    assert_eq!(Range::new(BASE, 0), Err(Error::Empty(BASE)));
    let top = VirtAddr(0xffff_ffff_ffff_f000);
    assert_eq!(Range::new(top, 8192), Err(Error::Wraps { start: top, size: 8192 }));
    assert_eq!(Range::from_pages(BASE, usize::MAX), Err(Error::Wraps { start: BASE, size: u64::MAX }));
    for (start, size) in [(0x0001_0000_0000_0000, 4096), (0xfffe_ffff_ffff_f000, 8192), (0x0f00_0000_0000_0000, 4096)] {
        let start = VirtAddr(start);
        assert_eq!(Range::new(start, size), Err(Error::NotCanonical { start, size }));
    }
    assert_eq!(PageRange::<Granule64K>::new(BASE + 4096, 65536), Err(Error::Unaligned(BASE.0 + 4096)));
    assert_eq!(Range::new(top, 4096).unwrap().end(), VirtAddr(0));
}

#[test]
fn a_part_of_a_range_is_whole_pages_inside_it() {
    let whole = range::<Granule4K>(BASE, 64 * KIB);
    let page = |number: u64| BASE + number * 4 * KIB;
    assert_eq!(whole.part(BASE, 16), Some(whole));
    assert_eq!(whole.part(page(15), 1), Some(range(page(15), 4 * KIB)));
    for (start, pages) in [(BASE, 0), (BASE, 17), (page(15), 2), (page(16), 1), (BASE + 8, 1), (page(3), u64::MAX)] {
        assert_eq!(whole.part(start, pages), None, "{start} {pages}");
    }
    assert_eq!(whole.part(granule_arch::addr::VirtAddr(BASE.0 - 4 * KIB), 2), None);
}

/// The walk for a page that was mapped with `attributes`: the limits of all tables, and the leaf.
fn walk_of(attributes: Attributes, shape: Shape) -> (u64, Descriptor) {
    let machine = HostMachine::<Granule4K>::new(8);
    let page = range(VirtAddr(0x40_0000), 4 * KIB);
    map(&machine, page, 0x4000_0000, attributes, shape).unwrap();
    let steps: Vec<_> = machine.page_tables().walk(page.start()).collect();
    let (leaf, tables) = steps.split_last().unwrap();
    let limits = tables.iter().map(|step| step.descriptor.0 & (bits::PXNTABLE | bits::UXNTABLE));
    (limits.reduce(|one, other| if one == other { one } else { u64::MAX }).unwrap(), leaf.descriptor)
}

#[test]
fn tables_leave_to_user_leaves_what_el0_may_execute() {
    let user = |protection| Attributes::user(MemoryType::Normal, protection);
    let code = user(Protection::READ.and(Protection::EXECUTE));
    let forbidden = Shape { execution: Execution::Forbidden, ..Shape::PAGES };
    assert_eq!(walk_of(TEXT, Shape::PAGES).0, bits::UXNTABLE);
    assert_eq!(walk_of(DATA, forbidden).0, bits::UXNTABLE | bits::PXNTABLE);
    let (limits, leaf) = walk_of(code, Shape::PAGES);
    assert_eq!((limits, leaf.0 & (bits::UXN | bits::PXN)), (bits::PXNTABLE, bits::PXN));
    assert_eq!(walk_of(user(Protection::READ), forbidden).0, bits::UXNTABLE | bits::PXNTABLE);
    // Stores succeed at once where the kernel asks for that.
    let data = user(Protection::READ.and(Protection::WRITE));
    assert!(!walk_of(data, Shape::PAGES).1.is_writable() && walk_of(data.dirty(), Shape::PAGES).1.is_writable());
    assert_eq!(code.dirty(), code);
}

#[test]
fn code_is_refused_where_a_table_forbids_it_at_its_exception_level() {
    let machine = HostMachine::<Granule4K>::new(8);
    let code = Attributes::user(MemoryType::Normal, Protection::READ.and(Protection::EXECUTE));
    let pages = |page: u64| range::<Granule4K>(VirtAddr(0x40_0000 + page * 4 * KIB), 4 * KIB);
    map(&machine, pages(0), 0, code, Shape::PAGES).unwrap();
    map(&machine, pages(1), 0, code, Shape::PAGES).unwrap();
    let refused = Err(Error::ExecutionForbidden(pages(2).start()));
    assert_eq!(map(&machine, pages(2), 0, TEXT, Shape::PAGES), refused, "kernel text in a user table");
    let forbidden = Shape { execution: Execution::Forbidden, ..Shape::PAGES };
    assert_eq!(map(&machine, pages(2), 0, code, forbidden), refused);
    let machine = HostMachine::<Granule4K>::new(8);
    map(&machine, pages(0), 0, DATA, Shape::PAGES).unwrap();
    assert_eq!(map(&machine, pages(2), 0, code, Shape::PAGES), refused, "user code in a kernel table");
}

#[test]
fn a_split_leaves_to_user_leaves_what_el0_may_execute() {
    let code = Attributes::user(MemoryType::Normal, Protection::READ.and(Protection::EXECUTE));
    for (attributes, limits) in [(code, bits::PXNTABLE), (DATA, bits::UXNTABLE)] {
        let machine = HostMachine::<Granule4K>::new(8);
        let block = range(VirtAddr(2 * MIB), 2 * MIB);
        map(&machine, block, 0, attributes, LARGEST).unwrap();
        let (tables, lazy) = (machine.page_tables(), Lazy::new(machine.mmu()));
        let page = range(VirtAddr(2 * MIB), 4 * KIB);
        update_splitting(&tables, &lazy, page, Change::INVALID, &mut machine.frames()).unwrap().0.defer();
        let step = tables.walk(page.start()).nth(2).unwrap();
        assert_eq!(step.descriptor.0 & (bits::PXNTABLE | bits::UXNTABLE), limits);
    }
}

/// Index 5 of a MAIR_EL1 that has write-through memory there.
#[test]
fn memory_types_of_another_mair() {
    let mut types = [MemoryAttribute::DEVICE_NGNRNE; 8];
    types[5] = MemoryAttribute::NORMAL_WRITE_THROUGH;
    let (_, leaf) = walk_of(DATA.with_memory_index(5), Shape::PAGES);
    assert_eq!(leaf.memory_index(), 5);
    assert!(leaf.decoded(3).with_mair(mair(&types)).to_string().ends_with("AttrIndx 5 (Normal write-through)"));
}

/// Runs of frames, of which the address of a page is as much into a group as its frame in some only.
#[test]
fn frames_that_follow_one_another_make_whole_groups() {
    let machine = HostMachine::<Granule4K>::new(8);
    let page = 4 * KIB;
    // From a page in front of a group on: 1 + 16 pages that go along, 20 that do not, 3 + 32 + 5 that do.
    let start = BASE + 15 * page;
    let runs = [(0x4000_f000, 17), (0x5000_1000, 20), (0x6000_0000 + 4 * page, 12 + 32 + 5)];
    let pages = runs.iter().map(|(_, count)| count).sum::<usize>();
    let whole = range(start, pages as u64 * page);
    for (leaves, sizes) in [
        (Leaves::Pages, vec![(page, 86)]),
        (Leaves::Largest, vec![(page, 1), (64 * KIB, 1), (page, 32), (64 * KIB, 2), (page, 5)]),
    ] {
        let lazy = Lazy::new(machine.mmu());
        let mut left = VecDeque::from(runs);
        let frames = |_, most: usize| {
            let (start, count) = left.pop_front().unwrap();
            let given = most.min(count);
            if given < count {
                left.push_front((start + given as u64 * page, count - given));
            }
            (PhysAddr(start), given)
        };
        machine.page_tables().map_frames(&lazy, whole, frames, DATA, leaves, &mut machine.frames()).unwrap();
        assert!(left.is_empty());
        assert_eq!(leaf_sizes(&machine, whole), sizes, "{leaves:?}");
        let mut at = start;
        for (first, count) in runs {
            for index in 0..count as u64 {
                assert_eq!(machine.page_tables().translate(at).unwrap().physical, PhysAddr(first + index * page));
                at = at + page;
            }
        }
        let released = |_| ();
        machine.page_tables().unmap(&lazy, machine.tlb(), whole, WholeLeaves, released).unwrap();
    }
}

/// `map_at_once` makes the entries that steps make, or none at all.
#[test]
fn blocks_of_one_table_are_mapped_at_once_as_they_are_in_steps() {
    let block = 2 * MIB;
    for (first, physical, count) in [(0, 0, 1), (3, 7, 5), (16, 32, 16), (14, 46, 40), (500, 500, 12)] {
        let whole = range(BASE + first * block, count * block);
        let physical = PhysAddr(GIB + physical * block);
        let [at_once, in_steps] = [0; 2].map(|_| HostMachine::<Granule4K>::new(8));
        for machine in [&at_once, &in_steps] {
            // The table that they are in.
            let other = range(BASE + 511 * block - whole.start().0 % 2, 4 * KIB);
            let other = if whole.contains(other.start()) { range(BASE + 13 * block, 4 * KIB) } else { other };
            map(machine, other, 0, DATA, Shape::PAGES).unwrap();
        }
        let lazy = Lazy::new(at_once.mmu());
        assert!(at_once.page_tables().map_at_once(&lazy, whole, physical, DATA));
        map(&in_steps, whole, physical.0, DATA, LARGEST).unwrap();
        for index in 0..count {
            let [one, other] = [&at_once, &in_steps]
                .map(|machine| machine.page_tables().entry(whole.start() + index * block).descriptor);
            assert_eq!(one, other, "block {index} of {whole:?}");
        }
    }
}

#[test]
fn what_takes_more_than_one_look_is_not_mapped_at_once() {
    let block = 2 * MIB;
    let machine = HostMachine::<Granule4K>::new(16);
    let tables = machine.page_tables();
    let lazy = Lazy::new(machine.mmu());
    let at_once = |start, size, physical| tables.map_at_once(&lazy, range(start, size), PhysAddr(physical), DATA);
    assert!(!at_once(BASE, block, GIB), "no table");
    map(&machine, range(BASE + 5 * block, 4 * KIB), 0, DATA, Shape::PAGES).unwrap();
    map(&machine, range(BASE + 9 * block, block), 0, DATA, LARGEST).unwrap();
    let before = leaf_sizes(&machine, range(BASE, 2 * GIB));
    assert!(!at_once(BASE + 5 * block, block, GIB), "a table of pages");
    assert!(!at_once(BASE + 8 * block, 2 * block, GIB), "a block is there");
    assert!(!at_once(BASE + 511 * block, 2 * block, GIB), "across tables");
    assert!(!at_once(BASE + 4 * KIB, block, GIB), "an address in a block");
    assert!(!at_once(BASE, block + 4 * KIB, GIB), "a part of a block");
    assert!(!at_once(BASE, block, GIB + 4 * KIB), "memory in a block");
    assert!(!at_once(BASE, block, (1 << 48) - block + 1), "memory that is no block");
    assert!(!at_once(BASE, 2 * block, (1 << 48) - block), "memory beyond 48 bits");
    machine.mmu().store(machine.entry(&tables.walk(BASE + 5 * block).nth(2).unwrap()), Descriptor(bits::UNLINKED));
    assert!(!at_once(BASE + 5 * block, block, GIB), "a table that is being unlinked");
    machine.mmu().store(machine.entry(&tables.walk(BASE + 5 * block).nth(2).unwrap()), Descriptor::EMPTY);
    let after = leaf_sizes(&machine, range(BASE, 2 * GIB));
    assert_eq!(after, before[1..], "nothing but the table that this test took away");
    assert!(at_once(BASE + 5 * block, 4 * block, (1 << 48) - 4 * block));
}
