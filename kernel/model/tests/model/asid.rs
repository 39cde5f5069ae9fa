//! Address spaces: which entries are whose, of several trees; and what completes an operation of one CPU.

#![allow(unsafe_code, reason = "keeps the contracts of unsafe traits on memory of the test")]

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType, Protection, bits};
use granule_arch::tlbi::{
    AddressOperand, Asid, Granule, Instruction, LevelHint, Operation, Plan, RangeOperand, RangeSupport, UserTlbToken,
};
use granule_model::{Access, Fault, Features, Model, Rule};
use granule_pgtable::{Geometry, Granule4K, Mmu, Shape, Stores, TableSource};

use crate::{FRAME, is_certain, map, range, write};

const OURS: u16 = 7;

/// An ASID of which no device has entries.
pub(crate) const fn asid(number: u16) -> Asid {
    // SAFETY: no device translates by the model's tables here.
    Asid::new(number, unsafe { UserTlbToken::new() })
}

const USER: Attributes = Attributes::user(MemoryType::Normal, Protection::READ);

/// The kind of a page, by its entry before it became invalid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Page {
    OfTheSpace,
    Global,
}

/// Two CPUs under [`OURS`], and two pages that both have read and that are invalid now, without a TLBI so far.
fn invalid(page: Page) -> (Model<Granule4K>, VirtAddr) {
    let model = Model::new(2, 8, Features::ALL);
    model.run_under(OURS);
    let start = model.base() + 0x20_3000;
    let attributes = if page == Page::Global { Attributes::kernel_rodata(MemoryType::Normal) } else { USER };
    map(&model, range(start, 0x2000), FRAME, attributes, Shape::PAGES);
    for page in [start, start + 0x1000] {
        write(model.cpu(0), page, Descriptor::EMPTY);
    }
    model.cpu(0).dsb_ishst();
    (model, start)
}

fn is_gone(model: &Model<Granule4K>, cpu: usize, page: VirtAddr) -> bool {
    is_certain(model.cpu(cpu), page, Access::Read, Err(Fault::Translation))
}

/// The operations for the page at `page` and the one after it, in `asid`.
fn operations(page: VirtAddr, number: u16) -> [Instruction; 4] {
    let single = AddressOperand::with_asid(page, asid(number), Some((Granule::Size4K, LevelHint::new(3).unwrap())));
    let Some(Operation::Pages(_, span)) = Plan::new(page, 2, Granule::Size4K, RangeSupport::Yes).next() else {
        panic!("two pages are a span");
    };
    let several = RangeOperand::with_asid(page, Granule::Size4K, span, asid(number), LevelHint::new(3));
    [
        Instruction::Vale1is(single),
        Instruction::Vae1is(single),
        Instruction::Rvale1is(several),
        Instruction::Rvae1is(several),
    ]
}

#[test]
fn an_operation_takes_the_pages_of_its_space_and_global_ones() {
    for page in [Page::OfTheSpace, Page::Global] {
        for asid in [OURS, OURS + 1] {
            for index in 0..4 {
                let (model, start) = invalid(page);
                let instruction = operations(start, asid)[index];
                model.cpu(0).tlbi(instruction);
                model.cpu(0).dsb_ish();
                let expected = asid == OURS || page == Page::Global;
                assert_eq!(is_gone(&model, 1, start), expected, "{page:?}, {instruction:?}");
                assert_eq!(is_gone(&model, 1, start + 0x1000), expected && index >= 2, "{page:?}, {instruction:?}");
            }
        }
    }
}

#[test]
fn a_whole_space_is_its_pages_and_no_global_ones() {
    for page in [Page::OfTheSpace, Page::Global] {
        for number in [OURS, OURS + 1] {
            let (model, start) = invalid(page);
            model.cpu(0).tlbi(Instruction::Aside1is(asid(number)));
            model.cpu(0).dsb_ish();
            let expected = number == OURS && page == Page::OfTheSpace;
            assert_eq!(is_gone(&model, 1, start), expected, "{page:?} and ASID {number}");
        }
    }
}

/// A table that is unlinked: its step of the walk belongs to the space, and goes with it or by address.
#[test]
fn steps_of_a_walk_belong_to_the_space() {
    type Unlinking = (fn(VirtAddr) -> Instruction, Option<&'static str>);
    let rows: [Unlinking; 5] = [
        (|_| Instruction::Aside1is(asid(OURS)), None),
        (|page| Instruction::Vae1is(AddressOperand::with_asid(page, asid(OURS), None)), None),
        (|_| Instruction::Aside1is(asid(OURS + 1)), Some("is for another ASID")),
        (
            |page| Instruction::Vae1is(AddressOperand::with_asid(page, asid(OURS + 1), None)),
            Some("is for another ASID"),
        ),
        (|page| Instruction::Vale1is(AddressOperand::with_asid(page, asid(OURS), None)), Some("takes leaves only")),
    ];
    for (instruction, wrong) in rows {
        let (model, start) = invalid(Page::OfTheSpace);
        let cpu = model.cpu(0);
        cpu.tlbi(Instruction::Vmalle1is);
        cpu.dsb_ish();
        // The walk's last step but one points to the table of the pages.
        let steps: Vec<_> = cpu.page_tables().walk(start).collect();
        let above = &steps[steps.len() - 2];
        let table = Descriptor(above.descriptor.0).address();
        cpu.store(model.cell(above.table + above.index as u64 * 8), Descriptor::EMPTY);
        cpu.dsb_ishst();
        cpu.tlbi(instruction(start));
        cpu.dsb_ish();
        model.synchronise();
        model.frame_freed(0, table);
        match wrong {
            None => model.assert_clean(),
            Some(reason) => {
                let violation = model.expect_violation();
                assert!(violation.to_string().contains(reason), "{violation}");
            }
        }
    }
}

#[test]
fn a_dsb_nsh_completes_what_is_for_this_cpu_alone() {
    let (model, start) = invalid(Page::OfTheSpace);
    let cpu = model.cpu(0);
    cpu.tlbi(Instruction::Vale1(AddressOperand::with_asid(start, asid(OURS), None)));
    cpu.dsb_nsh();
    cpu.isb();
    assert!(is_gone(&model, 0, start) && !is_gone(&model, 1, start));
}

/// Arm's own model cannot see this fault, since it has no shareability.
#[test]
fn a_dsb_nsh_behind_a_broadcast_is_caught() {
    let (model, start) = invalid(Page::OfTheSpace);
    let cpu = model.cpu(0);
    cpu.tlbi(Instruction::Vae1is(AddressOperand::with_asid(start, asid(OURS), None)));
    cpu.tlbi(Instruction::Vae1is(AddressOperand::with_asid(start + 0x1000, asid(OURS), None)));
    cpu.dsb_nsh();
    model.synchronise();
    model.audit(0, range(start, 0x1000));
    let violations = model.violations();
    assert!(violations.iter().all(|violation| violation.rule == Rule::StaleTranslation) && !violations.is_empty());
    assert!(violations[0].to_string().contains("missing: DSB ISH on CPU 0"), "{}", violations[0]);
}

/// Nor does it show a store to the walks of others.
#[test]
fn a_dsb_nsh_before_a_broadcast_is_caught() {
    let model = Model::<Granule4K>::new(2, 8, Features::ALL);
    let page = model.base() + 0x20_3000;
    map(&model, range(page, 0x1000), FRAME, USER, Shape::PAGES);
    let cpu = model.cpu(0);
    write(cpu, page, Descriptor(cpu.load(cpu.entry(page)).0 & !bits::VALID));
    cpu.dsb_nsh();
    cpu.tlbi(Instruction::Vale1is(AddressOperand::new(page, None)));
    cpu.dsb_ish();
    assert!(!is_gone(&model, 1, page));
}

/// A second tree of the model, by its root, with `entry` at `page`: as [`Model::run`] takes it.
fn second_tree(model: &Model<Granule4K>, page: VirtAddr, entry: Descriptor) -> PhysAddr {
    let mut frames = model.frames();
    let tables: Vec<PhysAddr> = std::iter::repeat_with(|| frames.take().unwrap()).take(4).collect();
    let cpu = model.cpu(0);
    for level in (0..4).rev() {
        let index = Granule4K::index(page, level as u8) as u64;
        let next = tables.get(level + 1).map_or(entry, |&table| Descriptor::user_table(table));
        cpu.dmb_ishst();
        cpu.store(model.cell(tables[level] + index * 8), next);
    }
    cpu.dsb_ishst();
    tables[0]
}

/// Both CPUs have read the page in the model's own tree, under [`OURS`]; a second one has another frame there.
fn two_trees() -> (Model<Granule4K>, VirtAddr, PhysAddr) {
    let model = Model::new(2, 16, Features::BASE);
    model.run_under(OURS);
    let page = model.base() + 0x20_3000;
    map(&model, range(page, 0x1000), FRAME, USER, Shape::PAGES);
    let second = second_tree(&model, page, Descriptor::page(FRAME + 0x1000, USER));
    (model, page, second)
}

#[test]
fn each_tree_has_its_own_under_its_asid() {
    let (model, page, second) = two_trees();
    model.run(1, model.base(), Some((second, OURS + 1)));
    assert!(is_certain(model.cpu(0), page, Access::Read, Ok(FRAME)));
    assert!(is_certain(model.cpu(1), page, Access::Read, Ok(FRAME + 0x1000)));
    // And back, with what it held of it.
    model.run(1, model.base(), Some((model.root().address(), OURS)));
    assert!(is_certain(model.cpu(1), page, Access::Read, Ok(FRAME)));
    model.assert_clean();
}

#[test]
fn an_asid_of_two_trees_is_caught_unless_the_cpu_has_forgotten_the_first() {
    for forgets in [false, true] {
        let (model, _, second) = two_trees();
        let cpu = model.cpu(1);
        model.run(1, model.base(), None);
        if forgets {
            cpu.tlbi(Instruction::Vmalle1);
            cpu.dsb_nsh();
        }
        model.run(1, model.base(), Some((second, OURS)));
        let broken = model.violations();
        assert_eq!(broken.first().map(|violation| violation.rule), (!forgets).then_some(Rule::AsidInUse));
    }
}

/// Without nG a page of one tree is every tree's.
#[test]
fn a_global_page_is_used_in_another_tree() {
    let model = Model::<Granule4K>::new(1, 16, Features::BASE);
    model.run_under(OURS);
    let page = model.base() + 0x20_3000;
    map(&model, range(page, 0x1000), FRAME, Attributes::kernel_rodata(MemoryType::Normal), Shape::PAGES);
    let second = second_tree(&model, page, Descriptor::page(FRAME + 0x1000, USER));
    model.run(0, model.base(), Some((second, OURS + 1)));
    assert_eq!(model.expect_violation().rule, Rule::BreakBeforeMake);
}

/// A CPU that runs a tree again has the entries that it held when it ran the tree last.
#[test]
fn a_cpu_that_comes_back_late_has_what_was_not_invalidated() {
    for scope in [Instruction::Vale1, Instruction::Vale1is] {
        let (model, page, second) = two_trees();
        model.run(1, model.base(), Some((second, OURS + 1)));
        let cpu = model.cpu(0);
        write(cpu, page, Descriptor::EMPTY);
        cpu.dsb_ishst();
        cpu.tlbi(scope(AddressOperand::with_asid(page, asid(OURS), None)));
        cpu.dsb_ish();
        cpu.isb();
        let is_local = matches!(scope(AddressOperand::new(page, None)), Instruction::Vale1(_));
        assert!(is_certain(model.cpu(1), page, Access::Read, Ok(FRAME + 0x1000)), "it runs the other");
        // Its frame is not free as long as that is so.
        model.frame_freed(0, FRAME);
        assert_eq!(model.violations().iter().any(|violation| violation.rule == Rule::FrameInUse), is_local);
        model.run(1, model.base(), Some((model.root().address(), OURS)));
        assert_eq!(is_gone(&model, 1, page), !is_local);
    }
}

/// A CPU that comes online late: neither what others have invalidated before counts for it, nor half of its own.
#[test]
fn a_cpu_out_of_reset_invalidates_its_own_tlb_before_its_mmu_is_on() {
    type Steps = fn(&Model<Granule4K>);
    let rows: [(Steps, bool); 5] = [
        (|_| (), false),
        (
            |model| {
                model.cpu(0).tlbi(Instruction::Vmalle1is);
                model.cpu(0).dsb_ish();
            },
            false,
        ),
        (|model| model.cpu(1).tlbi(Instruction::Vmalle1), false),
        (
            |model| {
                model.cpu(1).tlbi(Instruction::Vmalle1);
                model.cpu(0).dsb_ish();
            },
            false,
        ),
        (
            |model| {
                model.cpu(1).tlbi(Instruction::Vmalle1);
                model.cpu(1).dsb_nsh();
            },
            true,
        ),
    ];
    for (index, (steps, is_enough)) in rows.into_iter().enumerate() {
        let (model, page) = crate::one_page(Features::BASE);
        let root = model.root().address();
        model.turn_off(1, model.base());
        // The others go on as if it were not there.
        write(model.cpu(0), page, Descriptor::EMPTY);
        model.cpu(0).dsb_ishst();
        model.cpu(0).tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
        model.cpu(0).dsb_ish();
        model.cpu(0).isb();
        write(model.cpu(0), page, Descriptor::page(FRAME + 0x1000, Attributes::kernel_rodata(MemoryType::Normal)));
        model.cpu(0).dsb_ishst();
        model.cpu(0).isb();
        model.audit(0, range(page, 0x1000));
        model.assert_clean();
        steps(&model);
        model.run(1, model.base(), Some((root, 0)));
        assert_eq!(model.violations().is_empty(), is_enough, "row {index}");
        assert_eq!(is_certain(model.cpu(1), page, Access::Read, Ok(FRAME + 0x1000)), is_enough, "row {index}");
    }
}
