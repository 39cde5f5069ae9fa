//! Tables: linked once, unlinked, out of every walk cache, freed.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::Descriptor;
use granule_arch::tlbi::{AddressOperand, Instruction};
use granule_model::{Access, Features, Model, Rule};
use granule_pgtable::{Granule4K, Mmu, Shape, Stores};

use crate::{BBML2, DATA, FRAME, is_certain, map, range, rules, write};

/// The level 2 entry above an address, which points to the table of its pages.
struct Above {
    cell: PhysAddr,
    table: PhysAddr,
}

fn mapped() -> (Model<Granule4K>, VirtAddr, Above) {
    mapped_with(Features { ets2: false, ..Features::ALL })
}

fn mapped_with(features: Features) -> (Model<Granule4K>, VirtAddr, Above) {
    let model = Model::<Granule4K>::new(2, 8, features);
    let page = model.base() + 0x20_3000;
    map(&model, range(page, 0x2000), FRAME, DATA, Shape::PAGES);
    let steps: Vec<_> = model.cpu(0).page_tables().walk(page).collect();
    let above = Above { cell: steps[2].table + steps[2].index as u64 * 8, table: steps[3].table };
    (model, page, above)
}

/// Unlinks the table, its pages still valid in it, and invalidates by `instructions`.
fn unlink(model: &Model<Granule4K>, above: &Above, instructions: &[Instruction]) {
    let cpu = model.cpu(0);
    cpu.store(model.cell(above.cell), Descriptor::EMPTY);
    cpu.dsb_ishst();
    instructions.iter().for_each(|&instruction| cpu.tlbi(instruction));
    cpu.dsb_ish();
    cpu.isb();
}

fn every_level(page: VirtAddr) -> Vec<Instruction> {
    [page, page + 0x1000].map(|page| Instruction::Vaae1is(AddressOperand::new(page, None))).to_vec()
}

fn last_level(page: VirtAddr) -> Vec<Instruction> {
    [page, page + 0x1000].map(|page| Instruction::Vaale1is(AddressOperand::new(page, None))).to_vec()
}

#[test]
fn a_table_is_free_once_every_level_is_invalidated() {
    let (model, page, above) = mapped();
    unlink(&model, &above, &every_level(page));
    model.frame_freed(0, above.table);
    model.frame_freed(0, FRAME);
    assert_eq!(rules(&model), []);
    assert!(model.cpus().all(|cpu| is_certain(cpu, page, Access::Read, Err(granule_model::Fault::Translation))));
}

#[test]
fn a_last_level_invalidation_leaves_the_table_in_walk_caches() {
    let (model, page, above) = mapped();
    unlink(&model, &above, &last_level(page));
    // The walk continues in the old table, whose pages are still there.
    assert!(model.cpu(1).may(page, Access::Read).contains(&Ok(FRAME)));
    model.frame_freed(0, above.table);
    let violation = model.expect_violation();
    assert_eq!(violation.rule, Rule::TableInUse);
    let story = violation.to_string();
    assert!(story.contains("the walk cache of CPU 0 may hold table 0xffff000000200000 +0x200000"), "{story}");
    assert!(story.contains("takes leaves only, no tables"), "{story}");
}

#[test]
fn a_table_that_is_freed_before_the_dsb_is_in_use() {
    let (model, page, above) = mapped();
    let cpu = model.cpu(0);
    cpu.store(model.cell(above.cell), Descriptor::EMPTY);
    cpu.dsb_ishst();
    every_level(page).into_iter().for_each(|instruction| cpu.tlbi(instruction));
    model.frame_freed(0, above.table);
    let story = model.expect_violation().to_string();
    assert!(story.contains("missing: DSB ISH on CPU 0, which issued it"), "{story}");
}

#[test]
fn a_table_that_is_still_linked_is_in_use() {
    let (model, _, above) = mapped();
    model.frame_freed(0, above.table);
    let story = model.expect_violation().to_string();
    assert!(story.contains("is freed while a walk of CPU 0 may come to it"), "{story}");
}

#[test]
fn a_table_is_not_linked_at_a_second_place() {
    let (model, page, above) = mapped();
    let other = PhysAddr(above.cell.0 + 8);
    model.cpu(0).store(model.cell(other), Descriptor::kernel_table(above.table, false));
    assert_eq!(rules(&model), [Rule::TableInUse]);
    // Nor once it is unlinked, while walk caches have it.
    let model = mapped().0;
    unlink(&model, &above, &last_level(page));
    model.cpu(0).store(model.cell(above.cell + 8), Descriptor::kernel_table(above.table, false));
    assert_eq!(rules(&model)[0], Rule::TableInUse);
}

#[test]
fn a_table_is_linked_again_where_it_was_invalidated() {
    let (model, page, above) = mapped();
    unlink(&model, &above, &every_level(page));
    let cpu = model.cpu(0);
    (0..512).for_each(|index| cpu.store(model.cell(above.table + index * 8), Descriptor::EMPTY));
    cpu.dmb_ishst();
    cpu.store(model.cell(above.cell + 8), Descriptor::kernel_table(above.table, false));
    assert_eq!(rules(&model), []);
}

/// A table in the place of one that walk caches have, with the same entries but for `flip` in each leaf.
fn replaced_by_another((model, _, above): (Model<Granule4K>, VirtAddr, Above), flip: u64) -> Option<String> {
    let twin = granule_pgtable::TableSource::take(&mut model.frames()).unwrap();
    let cpu = model.cpu(0);
    for index in 0..512 {
        let entry = cpu.load(model.cell(above.table + index * 8));
        let flip = if entry.is_valid() { flip } else { 0 };
        cpu.store(model.cell(twin + index * 8), Descriptor(entry.0 ^ flip));
    }
    cpu.dmb_ishst();
    cpu.store(model.cell(above.cell), Descriptor::kernel_table(twin, false));
    model.violations().first().map(ToString::to_string)
}

#[test]
fn a_table_is_not_replaced_by_another() {
    let story = replaced_by_another(mapped_with(Features::BASE), 0).unwrap();
    assert!(story.starts_with("BreakBeforeMake: table of a live translation"), "{story}");
}

/// Where leaves may change size, one that translates alike is no other.
#[test]
fn a_table_is_replaced_by_one_that_translates_alike_with_bbml2() {
    assert_eq!(replaced_by_another(mapped_with(BBML2), 0), None);
    let story = replaced_by_another(mapped_with(BBML2), 1 << 13).unwrap();
    assert!(story.starts_with("BreakBeforeMake: "), "{story}");
}

#[test]
fn what_a_walk_cache_holds_is_walked_as_it_is_now() {
    let (model, page, above) = mapped();
    unlink(&model, &above, &last_level(page));
    // The next owner of the frame writes what looks like a page.
    let cpu = model.cpu(0);
    let cell = model.cell(above.table + ((page.0 >> 12) & 511) * 8);
    cpu.store(cell, Descriptor::EMPTY);
    cpu.dsb_ishst();
    cpu.tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
    cpu.dsb_ish();
    cpu.store(cell, Descriptor::page(FRAME + 0x10_0000, DATA));
    assert!(model.cpu(1).may(page, Access::Read).contains(&Ok(FRAME + 0x10_0000)));
}

#[test]
fn a_freed_frame_must_not_be_reached() {
    let (model, page, _) = mapped();
    let cpu = model.cpu(0);
    model.frame_freed(0, FRAME);
    assert_eq!(rules(&model), [Rule::FrameInUse]);
    assert_eq!(cpu.access(page, Access::Write), Ok(FRAME));
    let story = model.expect_violation().to_string();
    assert!(story.contains("and that frame is free"), "{story}");
}

#[test]
fn a_linear_map_shows_free_frames_too() {
    let (model, page, _) = mapped();
    model.shows_all(page..=page + 0xfff);
    model.frame_freed(0, FRAME);
    assert_eq!(rules(&model), []);
    // The other page of the mapping is no part of it.
    model.frame_freed(0, FRAME + 0x1000);
    assert_eq!(rules(&model), [Rule::FrameInUse]);
}

#[test]
#[should_panic(expected = "violations that were not taken")]
fn a_violation_cannot_be_overlooked() {
    let (model, _, above) = mapped();
    model.frame_freed(0, above.table);
}

#[test]
fn what_is_not_in_the_upper_half_is_not_mapped() {
    let (model, page, _) = mapped();
    let low = VirtAddr(page.0 & ((1 << 48) - 1));
    assert!(model.cpu(0).access(low, Access::Read).is_err());
    write(model.cpu(0), page, Descriptor::EMPTY);
    model.violations();
}
