//! TLBI operands as the hardware reads them, and the bugs that were made of them.

use granule_arch::addr::VirtAddr;
use granule_arch::tlbi::{
    AddressOperand, Granule, Instruction, LevelHint, Operation, Plan, RangeOperand, RangeSupport,
};
use granule_model::{Access, Fault, Features, Model, Rule};
use granule_pgtable::{Geometry, Granule4K, Granule16K, Granule64K, Mmu, Shape};

use crate::asid::asid;
use crate::{DATA, FRAME, LARGEST, is_certain, map, range, rules, write};

const ALL: Features = Features::ALL;

/// Two CPUs, and the pages from the returned address on mapped by pages; all of them made invalid, without a TLBI so
/// far.
fn unmapped<G: Geometry>(features: Features, pages: u64, shape: Shape) -> (Model<G>, VirtAddr) {
    let model = Model::<G>::new(2, 12, features);
    let start = model.base() + G::entry_size(2);
    map(&model, range(start, pages * G::PAGE_SIZE), FRAME, DATA, shape);
    let mut page = start;
    while page.0 < start.0 + pages * G::PAGE_SIZE {
        let step = model.cpu(0).page_tables().walk(page).last().unwrap();
        write(model.cpu(0), page, granule_arch::descriptor::Descriptor::EMPTY);
        page = page + G::entry_size(step.level);
    }
    model.cpu(0).dsb_ishst();
    (model, start)
}

/// Issues `instructions` on CPU 0 and completes them; which of the `pages` CPU 1 can no longer reach.
fn gone<G: Geometry>(model: &Model<G>, start: VirtAddr, pages: u64, instructions: &[Instruction]) -> Vec<bool> {
    instructions.iter().for_each(|&instruction| model.cpu(0).tlbi(instruction));
    model.cpu(0).dsb_ish();
    let page = |page| start + page * G::PAGE_SIZE;
    (0..pages).map(|index| is_certain(model.cpu(1), page(index), Access::Read, Err(Fault::Translation))).collect()
}

#[test]
fn an_address_is_shifted_by_12_for_every_granule() {
    fn check<G: Geometry>() {
        let (model, start) = unmapped::<G>(ALL, 2, Shape::PAGES);
        assert_eq!(gone(&model, start, 2, &[Instruction::Vaale1is(AddressOperand::new(start, None))]), [true, false]);
    }
    check::<Granule4K>();
    check::<Granule16K>();
    check::<Granule64K>();
}

/// Zephyr #115708.
#[test]
fn an_address_shifted_by_the_granule_is_another_address() {
    let (model, start) = unmapped::<Granule64K>(ALL, 2, Shape::PAGES);
    let shifted = AddressOperand::new(VirtAddr(start.0 >> 4), None);
    assert_eq!(gone(&model, start, 2, &[Instruction::Vaale1is(shifted)]), [false, false]);
}

/// aarch64-paging 0.12.3, lk #386: what sign extension leaves in the TTL field names the 64 KiB granule, level 3.
#[test]
fn sign_extension_in_the_ttl_field_invalidates_nothing() {
    let spilled = Some((Granule::Size64K, LevelHint::new(3).unwrap()));
    for (features, expected) in [(ALL, false), (Features::BASE, true)] {
        let (model, start) = unmapped::<Granule4K>(features, 1, Shape::PAGES);
        let instruction = Instruction::Vaale1is(AddressOperand::new(start, spilled));
        assert_eq!(gone(&model, start, 1, &[instruction]), [expected]);
        model.audit(0, range(start, 0x1000));
        match expected {
            true => assert_eq!(rules(&model), [Rule::StaleTranslation], "the own CPU has had no ISB"),
            false => {
                let story = model.expect_violation().to_string();
                assert!(story.contains("need not do anything: its TTL names another granule"), "{story}");
            }
        }
    }
}

#[test]
fn a_hint_for_another_level_invalidates_nothing() {
    for level in 1..=3 {
        let hint = Some((Granule::Size4K, LevelHint::new(level).unwrap()));
        let (model, start) = unmapped::<Granule4K>(ALL, 1, Shape::PAGES);
        assert_eq!(gone(&model, start, 1, &[Instruction::Vaale1is(AddressOperand::new(start, hint))]), [level == 3]);
        let (model, start) = unmapped::<Granule4K>(ALL, 512, LARGEST);
        assert_eq!(gone(&model, start, 1, &[Instruction::Vaale1is(AddressOperand::new(start, hint))]), [level == 2]);
    }
}

#[test]
fn any_address_of_a_block_takes_it() {
    let (model, start) = unmapped::<Granule4K>(ALL, 512, LARGEST);
    let inside = AddressOperand::new(start + 0x12_3000, None);
    assert_eq!(gone(&model, start, 2, &[Instruction::Vaale1is(inside)]), [true, true]);
}

/// Whether hardware keeps a group as one entry or as many is its own business: each address must be named.
#[test]
fn one_address_of_a_group_does_not_take_the_others() {
    let (model, start) = unmapped::<Granule4K>(ALL, 16, LARGEST);
    let named = gone(&model, start, 16, &[Instruction::Vaale1is(AddressOperand::new(start, None))]);
    assert_eq!(named.iter().filter(|&&gone| gone).count(), 1);
}

fn planned(start: VirtAddr, pages: u64, granule: Granule, tg: Granule) -> Vec<Instruction> {
    let plan = Plan::new(start, pages, granule, RangeSupport::Yes);
    plan.map(|operation| match operation {
        Operation::Everything => Instruction::Vmalle1is,
        Operation::Page(page) => Instruction::Vaale1is(AddressOperand::new(page, None)),
        Operation::Pages(first, span) => Instruction::Rvaale1is(RangeOperand::new(first, tg, span, None)),
    })
    .collect()
}

#[test]
fn a_range_covers_its_pages_and_no_more() {
    fn check<G: Geometry>(granule: Granule) {
        for pages in [2, 3, 5, 63, 64, 67] {
            let (model, start) = unmapped::<G>(ALL, pages + 2, Shape::PAGES);
            let instructions = planned(start + G::PAGE_SIZE, pages, granule, granule);
            let gone = gone(&model, start, pages + 2, &instructions);
            let covered = (0..pages + 2).map(|page| page != 0 && page != pages + 1);
            assert_eq!(gone, covered.collect::<Vec<_>>(), "{pages} pages of {granule:?}");
        }
    }
    check::<Granule4K>(Granule::Size4K);
    check::<Granule16K>(Granule::Size16K);
    check::<Granule64K>(Granule::Size64K);
}

/// NVIDIA/NV-Kernels #113.
#[test]
fn a_range_of_another_granule_invalidates_nothing() {
    let (model, start) = unmapped::<Granule16K>(ALL, 2, Shape::PAGES);
    let instructions = planned(start, 2, Granule::Size16K, Granule::Size4K);
    assert_eq!(gone(&model, start, 2, &instructions), [false, false]);
}

#[test]
fn a_range_operation_is_undefined_without_the_feature() {
    let (model, start) = unmapped::<Granule4K>(Features::BASE, 2, Shape::PAGES);
    gone(&model, start, 2, &planned(start, 2, Granule::Size4K, Granule::Size4K));
    let violation = model.expect_violation();
    assert_eq!(violation.rule, Rule::Undefined);
    assert!(violation.to_string().contains("undefined without FEAT_TLBIRANGE"), "{violation}");
}

#[test]
fn an_asid_in_an_operation_for_all_of_them_is_reported() {
    let (model, start) = unmapped::<Granule4K>(ALL, 1, Shape::PAGES);
    gone(&model, start, 1, &[Instruction::Vaale1is(AddressOperand::with_asid(start, asid(0xffff), None))]);
    assert_eq!(rules(&model), [Rule::Undefined]);
}

#[test]
fn a_local_operation_leaves_the_other_cpus_alone() {
    for instruction in [Instruction::Vmalle1, Instruction::Vaale1(AddressOperand::new(VirtAddr(0), None))] {
        let (model, start) = unmapped::<Granule4K>(ALL, 1, Shape::PAGES);
        let instruction = match instruction {
            Instruction::Vmalle1 => instruction,
            _ => Instruction::Vaale1(AddressOperand::new(start, None)),
        };
        assert_eq!(gone(&model, start, 1, &[instruction]), [false]);
        assert!(is_certain(model.cpu(0), start, Access::Read, Err(Fault::Translation)));
        model.audit(0, range(start, 0x1000));
        let story = model.expect_violation().to_string();
        assert!(story.contains("CPU 1 may still use an old translation"), "{story}");
        assert!(story.contains("is for CPU 0 alone"), "{story}");
    }
}

/// The operation that errata repeat: it is for one ASID, and takes global entries all the same.
#[test]
fn an_operation_for_an_asid_takes_global_entries() {
    let (model, start) = unmapped::<Granule4K>(ALL, 1, Shape::PAGES);
    let operand = AddressOperand::with_asid(start, asid(7), None);
    assert_eq!(gone(&model, start, 1, &[Instruction::Vale1is(operand)]), [true]);
}

#[test]
fn everything_is_everything() {
    let (model, start) = unmapped::<Granule4K>(ALL, 20, LARGEST);
    assert_eq!(gone(&model, start, 20, &[Instruction::Vmalle1is]), [true; 20]);
}
