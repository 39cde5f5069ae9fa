//! Changes that are not allowed under a live translation, and contiguous groups.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Descriptor, MemoryType, bits};
use granule_arch::tlbi::{AddressOperand, Granule, Instruction, LevelHint};
use granule_model::{Access, Fault, Features, Model, ModelCpu, Rule};
use granule_pgtable::{Granule4K, Mmu, Shape, Stores, TableSource};

use crate::{BBML2, DATA, FRAME, LARGEST, RODATA, is_certain, map, one_page, range, rules, write};

const MIB2: u64 = 2 << 20;

/// The story of what happens when the one page's entry becomes `new`.
fn story_of(features: Features, new: Descriptor) -> Option<String> {
    let (model, page) = one_page(features);
    write(model.cpu(0), page, new);
    let violations = model.violations();
    assert!(violations.iter().all(|violation| violation.rule == Rule::BreakBeforeMake));
    violations.first().map(ToString::to_string)
}

#[test]
fn permissions_change_in_place() {
    assert_eq!(story_of(Features::BASE, Descriptor::page(FRAME, RODATA)), None);
    assert_eq!(story_of(Features::BASE, Descriptor::EMPTY), None);
}

#[test]
fn an_output_address_does_not() {
    for features in [Features::BASE, Features::ALL] {
        let story = story_of(features, Descriptor::page(FRAME + 0x1000, DATA)).unwrap();
        assert!(story.starts_with("BreakBeforeMake: output address of a live translation changes"), "{story}");
        assert!(story.contains("may hold page 0xffff000000203000 +0x1000 -> 0x40000000 rw nx"), "{story}");
        assert!(story.contains("makes it page 0xffff000000203000 +0x1000 -> 0x40001000"), "{story}");
        assert!(story.contains("missing: TLBI after #"), "{story}");
    }
}

#[test]
fn a_memory_type_does_not() {
    let device = Descriptor::page(FRAME, granule_arch::descriptor::Attributes::device());
    let story = story_of(Features::ALL, device).unwrap();
    assert!(story.starts_with("BreakBeforeMake: memory type of a live translation"), "{story}");
}

#[test]
fn neither_does_whether_it_is_global() {
    let story = story_of(Features::ALL, Descriptor(Descriptor::page(FRAME, DATA).0 | bits::NG)).unwrap();
    assert!(story.starts_with("BreakBeforeMake: global or not of a live translation"), "{story}");
}

/// A page of code, read-only by its alias: both CPUs have seen both.
fn code_and_alias() -> (Model<Granule4K>, VirtAddr, VirtAddr) {
    let model = Model::new(2, 8, Features::BASE);
    let (code, alias) = (model.base() + 0x20_3000, model.base() + 0x20_5000);
    map(
        &model,
        range(code, 0x1000),
        FRAME,
        granule_arch::descriptor::Attributes::kernel_text(MemoryType::Normal),
        Shape::PAGES,
    );
    map(&model, range(alias, 0x1000), FRAME, RODATA, Shape::PAGES);
    (model, code, alias)
}

/// DSB ISHST; TLBI of both; DSB ISH; ISB.
fn invalidate(cpu: ModelCpu<'_, Granule4K>, pages: [VirtAddr; 2]) {
    cpu.dsb_ishst();
    pages.iter().for_each(|&page| cpu.tlbi(Instruction::Vaale1is(AddressOperand::new(page, None))));
    cpu.dsb_ish();
    cpu.isb();
}

#[test]
fn what_may_be_executed_by_one_address_is_not_writable_by_another_under_one_invalidation() {
    let writable = Descriptor::page(FRAME, DATA);
    // Whichever is stored first.
    for order in [[0, 1], [1, 0]] {
        let (model, code, alias) = code_and_alias();
        let cpu = model.cpu(0);
        for step in order {
            if step == 0 { write(cpu, code, Descriptor::EMPTY) } else { write(cpu, alias, writable) }
        }
        invalidate(cpu, [code, alias]);
        let violation = model.expect_violation();
        assert_eq!(violation.rule, Rule::WriteXorExecute);
        assert!(violation.to_string().contains("0x40000000 may be written and executed at one moment"), "{violation}");
        model.violations();
    }
    // Two completed steps, or both invalid and then the writable one.
    let (model, code, alias) = code_and_alias();
    let cpu = model.cpu(0);
    write(cpu, code, Descriptor::EMPTY);
    invalidate(cpu, [code, alias]);
    write(cpu, alias, writable);
    assert_eq!(rules(&model), []);
    let (model, code, alias) = code_and_alias();
    let cpu = model.cpu(0);
    write(cpu, code, Descriptor::EMPTY);
    write(cpu, alias, Descriptor::EMPTY);
    invalidate(cpu, [code, alias]);
    write(cpu, alias, writable);
    cpu.dsb_ishst();
    cpu.isb();
    assert_eq!(rules(&model), []);
}

#[test]
fn what_was_writable_is_executable_only_when_no_tlb_has_it_so() {
    let text = Descriptor::page(FRAME, granule_arch::descriptor::Attributes::kernel_text(MemoryType::Normal));
    let (model, page) = one_page(Features::BASE);
    write(model.cpu(0), page, text);
    invalidate(model.cpu(0), [page, page]);
    assert_eq!(rules(&model), [Rule::WriteXorExecute], "in one step");
    let (model, page) = one_page(Features::BASE);
    write(model.cpu(0), page, Descriptor::page(FRAME, RODATA));
    invalidate(model.cpu(0), [page, page]);
    write(model.cpu(0), page, text);
    invalidate(model.cpu(0), [page, page]);
    assert_eq!(rules(&model), []);
}

/// A block of 2 MiB that both CPUs have seen, and a table of pages that translate alike, linked to nothing.
fn block_and_twin(features: Features) -> (Model<Granule4K>, VirtAddr, Descriptor) {
    let model = Model::<Granule4K>::new(2, 8, features);
    let start = model.base() + MIB2;
    map(&model, range(start, MIB2), FRAME, DATA, LARGEST);
    let cpu = model.cpu(0);
    let table = model.frames().take().unwrap();
    for index in 0..512 {
        cpu.store(model.cell(table + index * 8), Descriptor::page(FRAME + index * 0x1000, DATA));
    }
    cpu.dmb_ishst();
    (model, start, Descriptor::kernel_table(table, false))
}

#[test]
fn a_size_changes_with_bbml2_only() {
    let (model, start, table) = block_and_twin(BBML2);
    write(model.cpu(0), start, table);
    assert_eq!(rules(&model), []);
    let all_the_same =
        |cpu: ModelCpu<'_, Granule4K>| is_certain(cpu, start + 0x5000, Access::Write, Ok(FRAME + 0x5000));
    assert!(model.cpus().all(all_the_same), "block or page, all translate alike");

    let (model, start, table) = block_and_twin(Features::BASE);
    write(model.cpu(0), start, table);
    let story = model.expect_violation().to_string();
    assert!(story.starts_with("BreakBeforeMake: size of a live translation"), "{story}");
    assert!(story.contains("may hold block 0xffff000000200000 +0x200000 -> 0x40000000"), "{story}");
    model.violations();
}

#[test]
fn a_block_is_split_by_break_before_make_without_bbml2() {
    let (model, start, table) = block_and_twin(Features::BASE);
    let cpu = model.cpu(0);
    write(cpu, start, Descriptor::EMPTY);
    cpu.dsb_ishst();
    cpu.tlbi(Instruction::Vaale1is(AddressOperand::new(start, None)));
    cpu.dsb_ish();
    write(cpu, start, table);
    cpu.dsb_ishst();
    model.cpus().for_each(|cpu| cpu.isb());
    assert!(model.cpus().all(|cpu| is_certain(cpu, start, Access::Write, Ok(FRAME))));
}

/// A page changed after a live split, and the page invalidated with `hint`.
fn changed_behind_a_split(hint: Option<(Granule, LevelHint)>) -> (Model<Granule4K>, VirtAddr) {
    let (model, start, table) = block_and_twin(Features::ALL);
    let cpu = model.cpu(0);
    write(cpu, start, table);
    let page = start + 0x7000;
    write(cpu, page, Descriptor::page(FRAME + 0x7000, RODATA));
    cpu.dsb_ishst();
    cpu.tlbi(Instruction::Vaale1is(AddressOperand::new(page, hint)));
    cpu.dsb_ish();
    cpu.isb();
    model.audit(0, range(page, 0x1000));
    (model, page)
}

#[test]
fn an_address_without_a_hint_takes_the_block_that_was_split() {
    let (model, page) = changed_behind_a_split(None);
    model.assert_clean();
    assert!(model.cpus().all(|cpu| is_certain(cpu, page, Access::Write, Err(Fault::Permission))));
}

#[test]
fn a_level_hint_after_a_live_split_leaves_the_block() {
    let (model, _) = changed_behind_a_split(Some((Granule::Size4K, LevelHint::new(3).unwrap())));
    let story = model.expect_violation().to_string();
    assert!(story.contains("may hold block"), "{story}");
    assert!(story.contains("says that the leaf is at level 3"), "{story}");
}

/// A group of 16 pages that both CPUs have seen.
fn group(features: Features) -> (Model<Granule4K>, VirtAddr) {
    let model = Model::<Granule4K>::new(2, 8, features);
    let start = model.base() + MIB2;
    map(&model, range(start, 0x1_0000), FRAME, DATA, LARGEST);
    (model, start)
}

fn page(start: VirtAddr, index: u64) -> VirtAddr {
    start + index * 0x1000
}

#[test]
fn a_group_must_not_be_used_while_mixed() {
    let (model, start) = group(Features::ALL);
    let cpu = model.cpu(0);
    write(cpu, page(start, 3), Descriptor::page(FRAME + 0x3000, RODATA).contiguous());
    // Any page of it may be translated by any entry.
    assert_eq!(model.cpu(1).may(page(start, 9), Access::Write), [Ok(FRAME + 0x9000), Err(Fault::Permission)]);
    let _ = model.cpu(1).access(page(start, 9), Access::Read);
    let violation = model.expect_violation();
    assert_eq!(violation.rule, Rule::MixedGroup);
    assert!(violation.to_string().contains("contiguous group at 0xffff000000200000: entry 0 is "), "{violation}");
    // Once all are changed and the old are gone, it is a group again.
    for index in 0..16 {
        write(cpu, page(start, index), Descriptor::page(FRAME + index * 0x1000, RODATA).contiguous());
    }
    cpu.dsb_ishst();
    (0..16).for_each(|index| cpu.tlbi(Instruction::Vaale1is(AddressOperand::new(page(start, index), None))));
    cpu.dsb_ish();
    cpu.isb();
    model.audit(0, range(start, 0x1_0000));
    model.assert_clean();
    assert_eq!(model.cpu(1).access(page(start, 9), Access::Write), Err(Fault::Permission));
}

#[test]
fn entries_of_a_group_differ_in_their_contiguous_bit_with_bbml2_only() {
    for features in [Features::BASE, BBML2] {
        let (model, start) = group(features);
        let cpu = model.cpu(0);
        for index in 0..8 {
            cpu.clear_bits(cpu.entry(page(start, index)), bits::CONTIGUOUS);
        }
        let _ = model.cpu(1).access(page(start, 9), Access::Write);
        let broken = rules(&model);
        match features.bbml2 {
            true => assert_eq!(broken, []),
            false => {
                assert!(broken.contains(&Rule::BreakBeforeMake) && broken.contains(&Rule::MixedGroup), "{broken:?}");
            }
        }
    }
}

/// The owner of one page must have seen every entry of the group clear before it changes its own.
#[test]
fn a_page_changed_while_another_entry_is_still_contiguous_is_a_mix() {
    for cleared in [15, 16] {
        let (model, start) = group(BBML2);
        let cpu = model.cpu(0);
        for index in 0..cleared {
            cpu.clear_bits(cpu.entry(page(start, index)), bits::CONTIGUOUS);
        }
        write(cpu, page(start, 0), Descriptor::page(FRAME, RODATA));
        let _ = model.cpu(1).access(page(start, 9), Access::Write);
        let broken = rules(&model);
        assert_eq!(broken.contains(&Rule::MixedGroup), cleared == 15, "{broken:?}");
    }
}

/// One CPU splits a group, the last entry last, after `barrier`; another reads the entry at
/// `asked`, changes its own page and invalidates it.
fn change_behind_a_look_at(asked: u64, barrier: fn(&ModelCpu<'_, Granule4K>)) -> Vec<Rule> {
    let (model, start) = group(BBML2);
    let (splitter, owner) = (model.cpu(0), model.cpu(1));
    let clear = |index| _ = splitter.clear_bits(splitter.entry(page(start, index)), bits::CONTIGUOUS);
    (0..15).for_each(clear);
    barrier(&splitter);
    clear(15);
    // Reading is enough: whether it stores depends on that.
    assert!(!owner.load(owner.entry(page(start, asked))).is_contiguous());
    write(owner, page(start, 0), Descriptor::page(FRAME, RODATA));
    owner.dsb_ishst();
    owner.tlbi(Instruction::Vaale1is(AddressOperand::new(start, None)));
    owner.dsb_ish();
    owner.isb();
    model.audit(1, range(start, 0x1000));
    rules(&model)
}

#[test]
fn the_last_entry_of_a_group_speaks_for_all_behind_a_barrier() {
    assert_eq!(change_behind_a_look_at(15, |cpu| cpu.dmb_ishst()), []);
    // Without it the last may be seen clear first, and another be walked to as it was.
    assert_eq!(change_behind_a_look_at(15, |_| ()), [Rule::StaleTranslation]);
    assert_eq!(change_behind_a_look_at(15, |cpu| cpu.isb()), [Rule::StaleTranslation]);
    // No other entry stands for the last.
    for asked in [0, 7, 14] {
        assert_eq!(change_behind_a_look_at(asked, |cpu| cpu.dmb_ishst()), [Rule::StaleTranslation]);
    }
}

#[test]
fn one_address_is_not_enough_for_a_group_that_changed() {
    let (model, start) = group(Features::ALL);
    let cpu = model.cpu(0);
    for index in 0..16 {
        write(cpu, page(start, index), Descriptor::page(FRAME + index * 0x1000, RODATA).contiguous());
    }
    cpu.dsb_ishst();
    cpu.tlbi(Instruction::Vaale1is(AddressOperand::new(start, None)));
    cpu.dsb_ish();
    cpu.isb();
    model.audit(0, range(start, 0x1_0000));
    assert_eq!(model.expect_violation().rule, Rule::StaleTranslation);
}

#[test]
fn a_group_of_misplaced_pages_is_refused() {
    let model = Model::<Granule4K>::new(1, 8, Features::ALL);
    let start = model.base();
    map(&model, range(start + 0x20_0000, 0x1000), FRAME, DATA, Shape::PAGES);
    let first = start + 0x20_0000 + 0x1_0000;
    write(model.cpu(0), first, Descriptor::page(FRAME, DATA).contiguous());
    write(model.cpu(0), first + 0x1000, Descriptor::page(FRAME + 0x10_1000, DATA).contiguous());
    assert_eq!(rules(&model), [Rule::BreakBeforeMake], "the group translates in two ways");
}
