//! Tables on the host: mapped, printed, changed, and the barriers and invalidations that the change took.
//!
//! `cargo run -p granule-pgtable --example host`

#![forbid(unsafe_code)]

use granule_pgtable::granule_arch::addr::{PhysAddr, VirtAddr};
use granule_pgtable::granule_arch::descriptor::{Attributes, MemoryType};
use granule_pgtable::host::{HostMachine, Operation};
use granule_pgtable::{Change, Error, Execution, Granule4K, Lazy, Leaves, PageRange, Shape, WholeLeaves};

fn main() -> Result<(), Error> {
    let machine = HostMachine::<Granule4K>::new(16);
    let tables = machine.page_tables();
    let lazy = Lazy::new(machine.mmu());

    // 6 MiB, 64 KiB after a block's boundary: pages, groups of 16, blocks of 2 MiB.
    let range = PageRange::new(VirtAddr(0xffff_8000_0001_0000), 6 << 20)?;
    let shape = Shape { leaves: Leaves::Largest, execution: Execution::ByLeaf };
    let data = Attributes::kernel_data(MemoryType::Normal);
    tables.map(&lazy, range, PhysAddr(0x4001_0000), data, shape, &mut machine.frames())?;
    println!("{}\n", tables.dump(range, |extent| println!("{extent}")));

    // The first contiguous group becomes read-only: one leaf, one TLBI.
    let group = PageRange::from_pages(range.start(), 16)?;
    let done = machine.record(|| {
        let flush = tables.update(&lazy, group, Change::READ_ONLY, WholeLeaves).expect("a whole leaf, mapped");
        lazy.invalidate(machine.tlb(), [flush]);
    });
    let (writes, rest): (Vec<_>, Vec<_>) =
        done.into_iter().partition(|operation| matches!(operation, Operation::Write { .. }));
    println!("{} entries written, then {rest:?}\n", writes.len());
    println!("{}", tables.dump(range, |extent| println!("{extent}")));
    tables.walk(group.start()).for_each(|step| println!("{step}"));

    // A page of the group is not a leaf that may change alone, until it is split.
    let page = PageRange::from_pages(range.start(), 1)?;
    println!("{}", tables.update(&lazy, page, Change::READ_WRITE, WholeLeaves).expect_err("part of a leaf"));
    Ok(())
}
