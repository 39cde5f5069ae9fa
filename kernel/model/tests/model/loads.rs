//! Values that a load by software may find of another CPU's stores: the oldest that the architecture allows.

use granule_arch::descriptor::Descriptor;
use granule_model::{Features, Model, ModelCpu};
use granule_pgtable::{Granule4K, Mmu, Shape, Stores};

use crate::{DATA, FRAME, RODATA, map, one_page, range, write};

const OLD: Descriptor = Descriptor::page(FRAME, DATA);
const NEW: Descriptor = Descriptor::page(FRAME, RODATA);

/// The operation between two accesses of one CPU.
type Between = fn(&ModelCpu<'_, Granule4K>);

const BARRIERS: [(&str, Between); 6] = [
    ("nothing", |_| ()),
    ("DMB ISHST", |cpu| cpu.dmb_ishst()),
    ("DSB ISHST", |cpu| cpu.dsb_ishst()),
    ("DSB ISH", |cpu| cpu.dsb_ish()),
    ("ISB", |cpu| cpu.isb()),
    ("release", |cpu| cpu.model().hand_over(0, 1)),
];

#[test]
fn a_store_is_found_behind_its_dsb_or_an_acquire_of_what_was_released() {
    for (name, barrier) in BARRIERS {
        let (model, page) = one_page(Features::BASE);
        model.late_loads(|_| 0);
        let (writer, reader) = (model.cpu(0), model.cpu(1));
        write(writer, page, NEW);
        barrier(&writer);
        let is_found = reader.load(reader.entry(page)) == NEW;
        assert_eq!(is_found, ["DSB ISHST", "DSB ISH", "release"].contains(&name), "{name}");
        // Its writer finds it, whatever others do.
        assert_eq!(writer.load(writer.entry(page)), NEW, "{name}");
    }
}

#[test]
fn what_was_found_is_not_old_again() {
    let (model, page) = one_page(Features::BASE);
    let mut finds_newest = true;
    model.late_loads(move |count| if core::mem::take(&mut finds_newest) { count - 1 } else { 0 });
    let reader = model.cpu(1);
    write(model.cpu(0), page, NEW);
    assert_eq!(reader.load(reader.entry(page)), NEW);
    assert_eq!(reader.load(reader.entry(page)), NEW);
}

#[test]
fn an_exchange_compares_with_the_newest() {
    let (model, page) = one_page(Features::BASE);
    model.late_loads(|_| 0);
    let reader = model.cpu(1);
    write(model.cpu(0), page, NEW);
    assert_eq!(reader.load(reader.entry(page)), OLD);
    assert_eq!(reader.compare_exchange(reader.entry(page), OLD, Descriptor::EMPTY), Err(NEW));
    assert_eq!(reader.load(reader.entry(page)), NEW, "it has found it now");
}

/// Two entries are stored one after the other, with a barrier in between; the reader finds the second.
#[test]
fn loads_are_in_order_behind_a_dsb_ish_or_an_isb() {
    for (before, first) in BARRIERS {
        for (between, second) in BARRIERS.into_iter().filter(|&(name, _)| name != "release") {
            let model = Model::<Granule4K>::new(2, 8, Features::BASE);
            let (page, next) = (model.base(), model.base() + 0x1000);
            map(&model, range(page, 0x2000), FRAME, DATA, Shape::PAGES);
            model.late_loads({
                let mut is_second = true;
                move |count| if core::mem::take(&mut is_second) { count - 1 } else { 0 }
            });
            let (writer, reader) = (model.cpu(0), model.cpu(1));
            write(writer, page, NEW);
            first(&writer);
            write(writer, next, Descriptor::page(FRAME + 0x1000, RODATA));
            // Where nothing else is in doubt, the first draw is of this load.
            reader.load(reader.entry(next));
            second(&reader);
            let is_found = reader.load(reader.entry(page)) == NEW;
            let is_complete = ["DSB ISHST", "DSB ISH", "release"].contains(&before);
            let is_ordered = before == "DMB ISHST" && ["DSB ISH", "ISB"].contains(&between);
            assert_eq!(is_found, is_complete || is_ordered, "{before}; {between}");
        }
    }
}
