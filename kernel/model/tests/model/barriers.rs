//! Which barrier, and why no weaker one: the verdicts of Arm's own memory model, row by row.
//!
//! Each test sweeps every slot of a sequence over {nothing, ISB, DMB ISHST, DSB ISHST, DSB ISH}, and the model must
//! accept exactly what the architecture accepts. Loads and plain flags between CPUs are a hand-over; DMB ISHLD and DSB
//! ISHLD are no part of `Mmu`.

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::descriptor::{Descriptor, bits};
use granule_arch::tlbi::{AddressOperand, Instruction};
use granule_model::{Access, Fault, Features, Model, ModelCpu, Rule};
use granule_pgtable::{Granule4K, Mmu, Shape, Stores, TableSource};

use crate::{DATA, ETS2, FRAME, RODATA, is_certain, map, one_page, range, rules, write};

/// The operation in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    Nothing,
    Isb,
    DmbIshst,
    DsbIshst,
    DsbIsh,
}

use Slot::{DmbIshst, DsbIsh, DsbIshst, Isb, Nothing};

const SLOTS: [Slot; 5] = [Nothing, Isb, DmbIshst, DsbIshst, DsbIsh];

impl Slot {
    fn run(self, cpu: ModelCpu<'_, Granule4K>) {
        match self {
            Nothing => {}
            Isb => cpu.isb(),
            DmbIshst => cpu.dmb_ishst(),
            DsbIshst => cpu.dsb_ishst(),
            DsbIsh => cpu.dsb_ish(),
        }
    }

    /// A DSB that orders stores.
    fn drains(self) -> bool {
        matches!(self, DsbIshst | DsbIsh)
    }
}

/// Every filling of two slots.
fn pairs() -> impl Iterator<Item = (Slot, Slot)> {
    SLOTS.into_iter().flat_map(|first| SLOTS.into_iter().map(move |second| (first, second)))
}

fn page_of(attributes: granule_arch::descriptor::Attributes) -> Descriptor {
    Descriptor::page(FRAME, attributes)
}

const READ_ONLY: Descriptor = Descriptor::page(FRAME, RODATA);

#[test]
fn another_cpu_loses_a_permission_by_dsb_ishst_tlbi_dsb_ish() {
    for features in [Features::BASE, ETS2] {
        for (before, after) in pairs() {
            let (model, page) = one_page(features);
            write(model.cpu(0), page, READ_ONLY);
            before.run(model.cpu(0));
            model.cpu(0).tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
            after.run(model.cpu(0));
            let gone = is_certain(model.cpu(1), page, Access::Write, Err(Fault::Permission));
            assert_eq!(gone, before.drains() && after == DsbIsh, "{before:?}; TLBI; {after:?}");
        }
    }
}

/// A mapped page whose break CPU 0 has made: an entry emptied, invalidated between the barriers `before` and `after`.
fn broken(features: Features, before: Slot, after: Slot) -> (Model<Granule4K>, VirtAddr) {
    let (model, page) = one_page(features);
    write(model.cpu(0), page, Descriptor::EMPTY);
    before.run(model.cpu(0));
    model.cpu(0).tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
    after.run(model.cpu(0));
    (model, page)
}

#[test]
fn another_cpu_loses_a_mapping_by_dsb_ishst_tlbi_dsb_ish() {
    for (before, after) in pairs() {
        let (model, page) = broken(Features::BASE, before, after);
        let gone = is_certain(model.cpu(1), page, Access::Read, Err(Fault::Translation));
        assert_eq!(gone, before.drains() && after == DsbIsh, "{before:?}; TLBI; {after:?}");
    }
}

#[test]
fn the_own_cpu_needs_an_isb_as_well_unless_ets2() {
    for features in [Features::BASE, ETS2] {
        for (before, after) in pairs() {
            for last in SLOTS {
                let (model, page) = one_page(features);
                write(model.cpu(0), page, READ_ONLY);
                before.run(model.cpu(0));
                // The local form is enough.
                model.cpu(0).tlbi(Instruction::Vaale1(AddressOperand::new(page, None)));
                after.run(model.cpu(0));
                last.run(model.cpu(0));
                let gone = is_certain(model.cpu(0), page, Access::Write, Err(Fault::Permission));
                let completed = after == DsbIsh || features.ets2 && last == DsbIsh;
                let expected = before.drains() && completed && (features.ets2 || last == Isb);
                assert_eq!(gone, expected, "{before:?}; TLBI; {after:?}; {last:?} with {features:?}");
            }
        }
    }
}

/// Both CPUs have seen that the page next to the mapped one is not mapped.
fn one_hole(features: Features) -> (Model<Granule4K>, VirtAddr) {
    let (model, page) = one_page(features);
    (model, page + 0x1000)
}

#[test]
fn the_own_cpu_sees_a_new_mapping_by_dsb_ishst_isb_or_with_ets2_by_nothing() {
    for features in [Features::BASE, ETS2] {
        for (first, second) in pairs() {
            let (model, hole) = one_hole(features);
            write(model.cpu(0), hole, page_of(DATA));
            first.run(model.cpu(0));
            second.run(model.cpu(0));
            let seen = is_certain(model.cpu(0), hole, Access::Write, Ok(FRAME));
            let expected = features.ets2 || first.drains() && second == Isb;
            assert_eq!(seen, expected, "{first:?}; {second:?} with {features:?}");
        }
    }
}

#[test]
fn another_cpu_sees_a_new_mapping_by_an_isb_of_its_own_or_with_ets2_by_nothing() {
    for features in [Features::BASE, ETS2] {
        for slot in SLOTS {
            let (model, hole) = one_hole(features);
            write(model.cpu(0), hole, page_of(DATA));
            model.cpu(0).dmb_ishst();
            model.hand_over(0, 1);
            slot.run(model.cpu(1));
            let seen = is_certain(model.cpu(1), hole, Access::Write, Ok(FRAME));
            assert_eq!(seen, features.ets2 || slot == Isb, "{slot:?} with {features:?}");
        }
    }
}

#[test]
fn one_pair_of_barriers_serves_a_batch_of_maps_but_no_store_after_it() {
    let (model, hole) = one_hole(Features::BASE);
    let cpu = model.cpu(0);
    write(cpu, hole, page_of(DATA));
    write(cpu, hole + 0x1000, page_of(DATA));
    cpu.dsb_ishst();
    write(cpu, hole + 0x2000, page_of(DATA));
    cpu.isb();
    let seen = [0, 0x1000, 0x2000].map(|offset| is_certain(cpu, hole + offset, Access::Read, Ok(FRAME)));
    assert_eq!(seen, [true, true, false]);
}

#[test]
fn a_batch_of_removals_misses_no_address() {
    let model = Model::<Granule4K>::new(2, 8, Features::BASE);
    let pages = [0, 0x1000, 0x2000].map(|offset| model.base() + offset);
    map(&model, range(model.base(), 0x3000), FRAME, DATA, Shape::PAGES);
    let cpu = model.cpu(0);
    pages.iter().for_each(|&page| write(cpu, page, Descriptor::EMPTY));
    cpu.dsb_ishst();
    pages[..2].iter().for_each(|&page| cpu.tlbi(Instruction::Vaale1is(AddressOperand::new(page, None))));
    cpu.dsb_ish();
    let gone = pages.map(|page| is_certain(model.cpu(1), page, Access::Read, Err(Fault::Translation)));
    assert_eq!(gone, [true, true, false]);
    model.audit(0, range(model.base(), 0x3000));
    let story = model.expect_violation().to_string();
    assert!(story.contains("is for other addresses"), "{story}");
}

#[test]
fn an_output_address_changes_by_break_before_make() {
    let moved = Descriptor::page(FRAME + 0x1000, DATA);
    for (before, after) in pairs() {
        let (model, page) = broken(Features::ALL, before, after);
        write(model.cpu(0), page, moved);
        let expected = if before.drains() && after == DsbIsh { vec![] } else { vec![Rule::BreakBeforeMake] };
        assert_eq!(rules(&model), expected, "{before:?}; TLBI; {after:?}; make");
    }
}

/// By the same entry as by another: what is empty has no owner, and the next one relies on that.
#[test]
fn an_emptied_entry_is_filled_again_by_dsb_ishst_tlbi_dsb_ish() {
    for new in [page_of(DATA), READ_ONLY] {
        for (before, after) in pairs() {
            let (model, page) = broken(Features::ALL, before, after);
            // On whichever CPU.
            write(model.cpu(1), page, new);
            let expected = if before.drains() && after == DsbIsh { vec![] } else { vec![Rule::EarlyFill] };
            assert_eq!(rules(&model), expected, "{before:?}; TLBI; {after:?}; fill");
        }
    }
}

#[test]
fn a_read_only_break_is_none_and_one_without_the_access_flag_is_one() {
    let young = READ_ONLY.0;
    for (broken, expected) in [(young, false), (young & !bits::AF, true)] {
        let (model, page) = one_page(Features { access_flag: false, ..Features::ALL });
        let cpu = model.cpu(0);
        write(cpu, page, Descriptor(broken));
        cpu.dsb_ishst();
        cpu.tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
        cpu.dsb_ish();
        write(cpu, page, Descriptor::page(FRAME + 0x1000, RODATA));
        assert_eq!(model.violations().is_empty(), expected);
    }
}

#[test]
fn a_table_is_linked_behind_any_barrier_that_orders_stores() {
    for slot in SLOTS {
        let model = Model::<Granule4K>::new(2, 8, Features::BASE);
        let cpu = model.cpu(0);
        let page = model.base() + 0x1000;
        // Three tables, the last one filled while no walk comes to it, one by one from below.
        let mut frames = model.frames();
        let tables: Vec<PhysAddr> = std::iter::repeat_with(|| frames.take().unwrap()).take(3).collect();
        let entry = |table: PhysAddr, index: u64| model.cell(table + index * 8);
        cpu.store(entry(tables[2], 1), page_of(DATA));
        cpu.dmb_ishst();
        cpu.store(entry(tables[1], 0), Descriptor::kernel_table(tables[2], false));
        cpu.dmb_ishst();
        cpu.store(entry(tables[0], 0), Descriptor::kernel_table(tables[1], false));
        slot.run(cpu);
        write(cpu, page, Descriptor::kernel_table(tables[0], false));
        let expected = if matches!(slot, Nothing | Isb) { vec![Rule::UnorderedTable] } else { vec![] };
        assert_eq!(rules(&model), expected, "{slot:?}");
    }
}

#[test]
fn a_table_that_was_zeroed_by_plain_stores_is_linked_behind_a_barrier() {
    for slot in SLOTS {
        let model = Model::<Granule4K>::new(1, 8, Features::BASE);
        let table = model.frames().take().unwrap();
        slot.run(model.cpu(0));
        write(model.cpu(0), model.base(), Descriptor::kernel_table(table, false));
        let expected = if matches!(slot, Nothing | Isb) { vec![Rule::UnorderedTable] } else { vec![] };
        assert_eq!(rules(&model), expected, "{slot:?}");
    }
}

#[test]
fn a_page_is_zeroed_then_mapped_behind_any_barrier_that_orders_stores() {
    for slot in SLOTS {
        let (model, hole) = one_hole(Features::BASE);
        model.frame_taken(0, FRAME + 0x5000);
        slot.run(model.cpu(0));
        write(model.cpu(0), hole, Descriptor::page(FRAME + 0x5000, DATA));
        let expected = if matches!(slot, Nothing | Isb) { vec![Rule::UnorderedFrame] } else { vec![] };
        assert_eq!(rules(&model), expected, "{slot:?}");
    }
}

#[test]
fn a_live_page_is_copied_once_its_break_is_complete() {
    for (before, after) in pairs() {
        let (model, _) = broken(Features::BASE, before, after);
        model.frame_copied(0, FRAME);
        let expected = if before.drains() && after == DsbIsh { vec![] } else { vec![Rule::FrameInUse] };
        assert_eq!(rules(&model), expected, "{before:?}; TLBI; {after:?}; copy");
    }
    // A CPU that only reads does not disturb a copy.
    let (model, page) = one_page(Features::BASE);
    write(model.cpu(0), page, READ_ONLY);
    model.cpu(0).dsb_ishst();
    model.cpu(0).tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
    model.cpu(0).dsb_ish();
    model.frame_copied(0, FRAME);
    assert_eq!(rules(&model), []);
}

#[test]
fn a_frame_is_free_after_dsb_ishst_tlbi_dsb_ish() {
    for (before, after) in pairs() {
        let (model, _) = broken(Features::BASE, before, after);
        model.frame_freed(0, FRAME);
        let expected = if before.drains() && after == DsbIsh { vec![] } else { vec![Rule::FrameInUse] };
        assert_eq!(rules(&model), expected, "{before:?}; TLBI; {after:?}; free");
    }
}

#[test]
fn only_a_dsb_on_the_cpu_of_the_tlbi_completes_it() {
    for completing in [0, 1] {
        let (model, page) = one_page(Features::BASE);
        write(model.cpu(0), page, Descriptor::EMPTY);
        model.cpu(0).dsb_ishst();
        model.cpu(0).tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
        model.hand_over(0, 1);
        model.cpu(completing).dsb_ish();
        model.frame_freed(completing, FRAME);
        let stories: Vec<String> = model.violations().iter().map(ToString::to_string).collect();
        match completing {
            0 => assert!(stories.is_empty(), "{stories:?}"),
            _ => assert!(stories[0].contains("missing: DSB ISH on CPU 0, which issued it"), "{stories:?}"),
        }
    }
}

#[test]
fn who_invalidates_what_another_cpu_wrote_needs_a_dsb_that_orders_its_loads() {
    for slot in SLOTS {
        let (model, page) = one_page(Features::BASE);
        write(model.cpu(0), page, Descriptor::EMPTY);
        // CPU 0 unlocks, CPU 1 locks.
        model.hand_over(0, 1);
        slot.run(model.cpu(1));
        model.cpu(1).tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
        model.cpu(1).dsb_ish();
        model.cpu(1).isb();
        let gone = model.cpus().all(|cpu| is_certain(cpu, page, Access::Read, Err(Fault::Translation)));
        assert_eq!(gone, slot == DsbIsh, "{slot:?}");
    }
}

/// An entry that a CPU looked up ahead, and invalidated itself, another's TLBI takes as well: its DSB waits for the
/// accesses that use it, in whichever order the two come.
#[test]
fn what_a_cpu_has_looked_up_ahead_is_taken_by_the_invalidation_of_another() {
    let sequences: [&[(usize, bool)]; 3] = [
        &[(1, true), (1, false)],
        &[(1, true), (1, false), (0, true), (0, false)],
        &[(1, true), (0, true), (1, false), (0, false)],
    ];
    for (number, sequence) in sequences.into_iter().enumerate() {
        let (model, page) = one_page(Features::BASE);
        write(model.cpu(0), page, READ_ONLY);
        model.cpu(0).dsb_ishst();
        for &(cpu, is_tlbi) in sequence {
            let cpu = model.cpu(cpu);
            if is_tlbi { cpu.tlbi(Instruction::Vaale1is(AddressOperand::new(page, None))) } else { cpu.dsb_ish() }
        }
        let certain = is_certain(model.cpu(1), page, Access::Write, Err(Fault::Permission));
        assert_eq!(certain, number != 0, "{sequence:?}");
    }
}

/// With a store of its own in between, which comes after what it had read, the DSB ISHST after that store is enough.
#[test]
fn who_invalidates_what_it_has_decided_upon_and_stored_behind_needs_a_dsb_that_orders_stores() {
    for slot in SLOTS {
        for stores in [false, true] {
            let model = Model::<Granule4K>::new(2, 8, Features::BASE);
            let pages = range(model.base() + 0x20_3000, 0x2000);
            map(&model, pages, FRAME, DATA, Shape::PAGES);
            write(model.cpu(0), pages.start(), Descriptor::EMPTY);
            let other = model.cpu(1);
            assert_eq!(other.load(other.entry(pages.start())), Descriptor::EMPTY);
            if stores {
                write(other, pages.start() + 0x1000, Descriptor::EMPTY);
            }
            slot.run(other);
            other.tlbi(Instruction::Vaale1is(AddressOperand::new(pages.start(), None)));
            other.dsb_ish();
            other.isb();
            let gone = model.cpus().all(|cpu| is_certain(cpu, pages.start(), Access::Read, Err(Fault::Translation)));
            assert_eq!(gone, slot == DsbIsh || (stores && slot == DsbIshst), "{slot:?}, stores: {stores}");
        }
    }
}

#[test]
fn a_load_of_the_entry_is_as_good_as_a_hand_over() {
    let (model, page) = one_page(Features::BASE);
    write(model.cpu(0), page, Descriptor::EMPTY);
    let other = model.cpu(1);
    assert_eq!(other.load(other.entry(page)), Descriptor::EMPTY);
    other.dsb_ish();
    other.tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
    other.dsb_ish();
    assert!(is_certain(model.cpu(0), page, Access::Read, Err(Fault::Translation)));
}

#[test]
fn an_upgrade_without_tlbi_may_fault_whatever_the_barriers() {
    for (first, second) in pairs() {
        let model = Model::<Granule4K>::new(1, 8, ETS2);
        let (cpu, page) = (model.cpu(0), model.base());
        map(&model, range(page, 0x1000), FRAME, RODATA, Shape::PAGES);
        write(cpu, page, page_of(DATA));
        first.run(cpu);
        second.run(cpu);
        assert_eq!(cpu.may(page, Access::Write), [Ok(FRAME), Err(Fault::Permission)]);
    }
}

#[test]
fn an_access_flag_is_set_by_dsb_ishst_isb_without_tlbi() {
    for (first, second) in pairs() {
        let (model, hole) = one_hole(Features::BASE);
        let cpu = model.cpu(0);
        write(cpu, hole, Descriptor(READ_ONLY.0 & !bits::AF));
        cpu.dsb_ishst();
        cpu.isb();
        assert!(is_certain(cpu, hole, Access::Read, Err(Fault::AccessFlag)));
        write(cpu, hole, READ_ONLY);
        first.run(cpu);
        second.run(cpu);
        let seen = is_certain(cpu, hole, Access::Read, Ok(FRAME));
        assert_eq!(seen, first.drains() && second == Isb, "{first:?}; {second:?}");
    }
}
