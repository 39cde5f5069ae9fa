//! A barrier is left out, and the model reports which CPU may still use what.
//!
//! `cargo run -p granule-model --example lost_barrier`

#![forbid(unsafe_code)]

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_model::{Access, Features, Model, Sabotage, Step};
use granule_pgtable::metal::KernelTlb;
use granule_pgtable::{Change, Error, Granule4K, Lazy, PageRange, Shape, WholeLeaves};

fn main() -> Result<(), Error> {
    for lost in [None, Some(Step::DsbIsh)] {
        let model = Model::<Granule4K>::new(2, 8, Features::BASE);
        let (cpu, other) = (model.cpu(0), model.cpu(1));
        let page = PageRange::from_pages(model.base(), 1)?;
        let lazy = Lazy::new(&cpu);
        let data = Attributes::kernel_data(MemoryType::Normal);
        cpu.page_tables().map(&lazy, page, PhysAddr(0x4000_0000), data, Shape::PAGES, &mut model.frames())?;
        lazy.flush_barriers();
        println!("CPU 0 writes: {:?}", cpu.access(page.start(), Access::Write));

        if let Some(step) = lost {
            model.inject(step, 0, Sabotage::Lost);
        }
        let flush = cpu.page_tables().update(&lazy, page, Change::READ_ONLY, WholeLeaves)?;
        lazy.invalidate(&KernelTlb, [flush]);
        println!("the page is read-only, lost: {lost:?}; a write of CPU 1 may end in:");
        other.may(page.start(), Access::Write).iter().for_each(|outcome| println!("  {outcome:?}"));
        model.audit(0, page);
        if lost.is_some() {
            println!("{}", model.expect_violation());
        }
    }
    Ok(())
}
