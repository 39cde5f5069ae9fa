//! The operations of pgtable with one step taken away, weakened or misdirected: each is caught, and the story names the
//! step.

use granule_arch::addr::VirtAddr;
use granule_arch::tlbi::{AddressOperand, Instruction};
use granule_model::{Features, Model, Rule, Sabotage, Step};
use granule_pgtable::metal::KernelTlb;
use granule_pgtable::{Change, Granule4K, Lazy, PageRange, Reclaimer, Shape, TableSource, WholeLeaves};
use std::sync::atomic::AtomicU64;

use crate::{DATA, FRAME, map, range};

const TLB: KernelTlb = KernelTlb;

/// An operation on two pages that both CPUs have seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Map,
    ReadOnly,
    Unmap,
    Reclaim,
    /// Maps the same frames again where they were.
    Remap,
    Code,
}

use Operation::{Code, Map, ReadOnly, Reclaim, Remap, Unmap};

/// Runs `operation` on CPU 0 of `model` and asks what it promises.
fn run(model: &Model<Granule4K>, operation: Operation, pages: PageRange) {
    let cpu = model.cpu(0);
    let lazy = Lazy::new(&cpu);
    match operation {
        Map => {
            // In a table that is still to be linked.
            let far = range(pages.start() + (1 << 30), 0x1000);
            cpu.page_tables().map(&lazy, far, FRAME, DATA, Shape::PAGES, &mut model.frames()).unwrap();
            lazy.flush_barriers();
            return model.audit(0, far);
        }
        ReadOnly => {
            let flush = cpu.page_tables().update(&lazy, pages, Change::READ_ONLY, WholeLeaves).unwrap();
            lazy.invalidate(&TLB, [flush]);
        }
        Unmap => cpu
            .page_tables()
            .unmap(&lazy, &TLB, pages, WholeLeaves, |leaf| model.frame_freed(0, leaf.physical))
            .unwrap(),
        Remap => {
            cpu.page_tables().unmap(&lazy, &TLB, pages, WholeLeaves, |_| ()).unwrap();
            cpu.page_tables().map(&lazy, pages, FRAME, DATA, Shape::PAGES, &mut model.frames()).unwrap();
            lazy.flush_barriers();
        }
        Code => {
            let read_only = |change, splitter: &mut WholeLeaves| {
                lazy.invalidate(&TLB, [cpu.page_tables().update(&lazy, pages, change, splitter)?]);
                Ok(())
            };
            cpu.page_tables().update_to_code(&lazy, &TLB, pages, 0, &mut WholeLeaves, read_only).unwrap();
        }
        Reclaim => {
            let mut reclaimer = Reclaimer::<Granule4K, 2>::new();
            let (words, mut frames) = ([AtomicU64::new(0), AtomicU64::new(0)], model.frames());
            reclaimer.start(pages);
            // SAFETY: one CPU works, between walks; tables are words of the model.
            #[allow(unsafe_code, reason = "keeps the contracts of a reclaimer and a source")]
            unsafe {
                let free = |table| frames.give_back(table);
                reclaimer.advance(&cpu.page_tables(), &TLB, |cpu| words.get(cpu), free);
            }
        }
    }
    model.audit(0, pages);
}

fn ready(operation: Operation) -> (Model<Granule4K>, PageRange) {
    let model = Model::<Granule4K>::new(2, 12, Features::BASE);
    let pages = range(model.base() + 0x20_3000, 0x2000);
    map(&model, pages, FRAME, DATA, Shape::PAGES);
    if operation == Reclaim {
        run(&model, Unmap, pages);
    }
    model.assert_clean();
    (model, pages)
}

/// The model's report for `operation` with its `nth` step of this kind sabotaged; it reports nothing without.
#[track_caller]
fn story(operation: Operation, step: Step, nth: usize, sabotage: Sabotage) -> (Rule, String) {
    let (model, pages) = ready(operation);
    run(&model, operation, pages);
    model.assert_clean();

    let (model, pages) = ready(operation);
    model.inject(step, nth, sabotage);
    run(&model, operation, pages);
    assert!(model.all_struck(), "{operation:?} has no {step:?} {nth}");
    let violation = model.expect_violation();
    model.violations();
    (violation.rule, violation.to_string())
}

#[track_caller]
fn assert_told(operation: Operation, step: Step, nth: usize, sabotage: Sabotage, rule: Rule, texts: &[&str]) {
    let (found, story) = story(operation, step, nth, sabotage);
    assert_eq!(found, rule, "{story}");
    for text in texts {
        assert!(story.contains(text), "wanted: {text}\ntold: {story}");
    }
}

use Sabotage::{Becomes, Lost, OnCpu, Rewritten};

#[test]
fn a_change_without_the_first_dsb() {
    for sabotage in [Lost, Becomes(Step::DmbIshst), Becomes(Step::Isb), OnCpu(1)] {
        let texts = ["CPU 0 may still use an old translation of 0xffff000000203000", "came before a DSB ISHST made #"];
        assert_told(ReadOnly, Step::DsbIshst, 0, sabotage, Rule::StaleTranslation, &texts);
    }
}

#[test]
fn a_change_without_a_tlbi() {
    let texts =
        ["may still use an old translation of 0xffff000000204000", "is for other addresses", "missing: TLBI after #"];
    assert_told(ReadOnly, Step::Tlbi, 1, Lost, Rule::StaleTranslation, &texts);
    // Over the stream of everything: which CPU stored what.
    let texts = ["CPU 0: store to 0x", " may hold page 0xffff000000203000 +0x1000 -> 0x40000000 rw nx"];
    assert_told(ReadOnly, Step::Tlbi, 0, Lost, Rule::StaleTranslation, &texts);
}

#[test]
fn a_change_without_the_second_dsb() {
    for sabotage in [Lost, Becomes(Step::DsbIshst), Becomes(Step::DmbIshst), Becomes(Step::Isb), OnCpu(1)] {
        let texts = ["TLBI VAALE1IS 0x", "took it, but missing: DSB ISH on CPU 0, which issued it"];
        assert_told(ReadOnly, Step::DsbIsh, 0, sabotage, Rule::StaleTranslation, &texts);
    }
}

#[test]
fn a_change_without_the_isb() {
    for sabotage in [Lost, Becomes(Step::DsbIsh), OnCpu(1)] {
        let texts = ["CPU 0 may still use", "missing: ISB on CPU 0 after the DSB that completed the TLBI"];
        assert_told(ReadOnly, Step::Isb, 0, sabotage, Rule::StaleTranslation, &texts);
    }
}

fn local(instruction: Instruction) -> Instruction {
    match instruction {
        Instruction::Vaale1is(operand) => Instruction::Vaale1(operand),
        other => other,
    }
}

fn last_level(instruction: Instruction) -> Instruction {
    match instruction {
        Instruction::Vaae1is(operand) => Instruction::Vaale1is(operand),
        other => other,
    }
}

fn page_number(_: Instruction) -> Instruction {
    // The bug of shifting twice.
    Instruction::Vaale1is(AddressOperand::new(VirtAddr(0xffff_0000_0020_3000 >> 12), None))
}

#[test]
fn a_tlbi_with_another_operand() {
    let texts = ["CPU 1 may still use", "TLBI VAALE1 0x", "is for CPU 0 alone"];
    assert_told(ReadOnly, Step::Tlbi, 0, Rewritten(local), Rule::StaleTranslation, &texts);
    let texts = ["CPU 0 may still use", "TLBI VAALE1IS 0x000000ffff000000", "is for other addresses"];
    assert_told(ReadOnly, Step::Tlbi, 0, Rewritten(page_number), Rule::StaleTranslation, &texts);
}

#[test]
fn a_map_without_the_dmb() {
    for sabotage in [Lost, Becomes(Step::Isb)] {
        let texts = [
            "is linked while a walk may find in it what was there before",
            "missing: DMB ISHST (or stronger) on CPU 0",
        ];
        assert_told(Map, Step::DmbIshst, 0, sabotage, Rule::UnorderedTable, &texts);
    }
}

#[test]
fn a_map_without_its_dsb() {
    let texts = [
        "an access of CPU 0 to 0xffff000040203000 may take a fault",
        "missing: DSB ISHST on CPU 0 after #",
        "then ISB",
    ];
    assert_told(Map, Step::DsbIshst, 0, Lost, Rule::SpuriousFault, &texts);
}

#[test]
fn a_map_without_its_isb() {
    let texts = [
        "may take a fault (Translation) that was removed",
        "missing: ISB on CPU 0 after #",
        "it may have walked ahead",
    ];
    assert_told(Map, Step::Isb, 0, Lost, Rule::SpuriousFault, &texts);
}

#[test]
fn an_unmap_whose_frames_are_still_in_use() {
    for (step, sabotage, text) in [
        (Step::DsbIshst, Lost, "came before a DSB ISHST made"),
        (Step::Tlbi, Lost, "is for other addresses"),
        (Step::DsbIsh, Lost, "missing: DSB ISH on CPU 0"),
        (Step::DsbIsh, OnCpu(1), "missing: DSB ISH on CPU 0"),
    ] {
        let texts = ["frame 0x40000000 is freed while CPU 0 may reach it at 0xffff000000203000", text];
        assert_told(Unmap, step, 0, sabotage, Rule::FrameInUse, &texts);
    }
}

/// A break of which one step is missing or weaker, and why it is not complete.
const BROKEN_BREAKS: [(Step, Sabotage, &str); 5] = [
    (Step::DsbIshst, Lost, "came before a DSB ISHST made"),
    (Step::Tlbi, Lost, "is for other addresses"),
    (Step::Tlbi, Rewritten(local), "is for CPU 0 alone"),
    (Step::DsbIsh, Lost, "missing: DSB ISH on CPU 0"),
    (Step::DsbIsh, OnCpu(1), "missing: DSB ISH on CPU 0"),
];

#[test]
fn entries_that_are_filled_while_tlbs_have_what_they_were() {
    for (step, sabotage, text) in BROKEN_BREAKS {
        let texts = ["an emptied entry is filled before its invalidation is complete, at 0xffff000000203000", text];
        assert_told(Remap, step, 0, sabotage, Rule::EarlyFill, &texts);
    }
}

/// Between the two steps, while nothing else is asked.
#[test]
fn code_while_tlbs_have_it_writable() {
    for (step, sabotage, text) in BROKEN_BREAKS {
        let texts = ["0x40000000 may be written and executed at one moment", text];
        assert_told(Code, step, 0, sabotage, Rule::WriteXorExecute, &texts);
    }
}

#[test]
fn a_reclaim_whose_tables_are_still_in_use() {
    let first_invalidation = 1; // The first DSB ISH is between the marks and the walk words.
    for (step, nth, sabotage, text) in [
        (Step::DsbIshst, 0, Lost, "came before a DSB ISHST made"),
        (Step::Tlbi, 0, Lost, "missing: TLBI after #"),
        (Step::Tlbi, 0, Rewritten(last_level), "takes leaves only, no tables"),
        (Step::DsbIsh, first_invalidation, Lost, "missing: DSB ISH on CPU 0"),
        (Step::DsbIsh, first_invalidation, OnCpu(1), "missing: DSB ISH on CPU 0"),
    ] {
        let texts = ["is freed while a walk of CPU 0 may come to it", "the walk cache of CPU 0 may hold table", text];
        assert_told(Reclaim, step, nth, sabotage, Rule::TableInUse, &texts);
    }
}
