//! The model's rules, each by a sequence that keeps it and by those that do not.
//!
//! - `asid`: operations of one address space, and what completes those of one CPU
//! - `barriers`: which barrier, and that no weaker one will do: the rows of Arm's memory model, by sweeping every slot
//! - `tlbi`: operands as the hardware reads them
//! - `flags`: hardware that sets the access flag and the dirty state between any two steps
//! - `live`: what must not change under a live translation; contiguous groups
//! - `loads`: which store a load by software may find
//! - `tables`: linking, unlinking, freeing
//! - `split`: leaves split in use, with a step taken away, a hint too many, a table too few
//! - `injected`: the operations of pgtable with one step taken away, weakened or misdirected, and what is
//!   reported

mod asid;
mod barriers;
mod flags;
mod injected;
mod live;
mod loads;
mod split;
mod tables;
mod tlbi;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType};
use granule_model::{Access, Features, Model, ModelCpu};
use granule_pgtable::{Geometry, Granule4K, Lazy, Leaves, Mmu, PageRange, Shape, Stores};

const DATA: Attributes = Attributes::kernel_data(MemoryType::Normal);
const RODATA: Attributes = Attributes::kernel_rodata(MemoryType::Normal);
const LARGEST: Shape = Shape { leaves: Leaves::Largest, execution: granule_pgtable::Execution::ByLeaf };

/// Memory that no table is in.
const FRAME: PhysAddr = PhysAddr(0x4000_0000);

const ETS2: Features = Features { ets2: true, ..Features::BASE };
const BBML2: Features = Features { bbml2: true, ..Features::BASE };

#[track_caller]
fn range<G: Geometry>(start: VirtAddr, size: u64) -> PageRange<G> {
    PageRange::new(start, size).unwrap()
}

/// Maps on CPU 0, in a section of its own, and lets the other CPUs know of it as their next exception would.
fn map<G: Geometry>(model: &Model<G>, range: PageRange<G>, physical: PhysAddr, attributes: Attributes, shape: Shape) {
    let cpu = model.cpu(0);
    let lazy = Lazy::new(&cpu);
    cpu.page_tables().map(&lazy, range, physical, attributes, shape, &mut model.frames()).unwrap();
    lazy.flush_barriers();
    model.cpus().for_each(|cpu| cpu.isb());
}

/// Two CPUs, and one page that both have seen.
fn one_page(features: Features) -> (Model<Granule4K>, VirtAddr) {
    let model = Model::new(2, 8, features);
    let page = model.base() + 0x20_3000;
    map(&model, range(page, 0x1000), FRAME, DATA, Shape::PAGES);
    model.assert_clean();
    (model, page)
}

/// Writes the entry of `address` on `cpu`.
fn write<G: Geometry>(cpu: ModelCpu<'_, G>, address: VirtAddr, entry: Descriptor) {
    cpu.store(cpu.entry(address), entry);
}

/// Whether an access can have no outcome but `expected`.
fn is_certain<G: Geometry>(
    cpu: ModelCpu<'_, G>,
    address: VirtAddr,
    access: Access,
    expected: granule_model::Outcome,
) -> bool {
    cpu.may(address, access) == [expected]
}

/// The rules that were broken, in order.
fn rules<G: Geometry>(model: &Model<G>) -> Vec<granule_model::Rule> {
    model.violations().iter().map(|violation| violation.rule).collect()
}
