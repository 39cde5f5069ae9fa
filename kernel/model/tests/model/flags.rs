//! FEAT_HAFDBS: what the hardware may make of a leaf, TLBs may hold, and software must keep.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType, Protection};
use granule_arch::tlbi::{AddressOperand, Instruction};
use granule_model::{Access, Fault, Features, Model, Rule, Sabotage, Step};
use granule_pgtable::{EnsureError, Granule4K, Mmu, Stores};

use crate::{FRAME, is_certain, rules, write};

/// A page of a user space that may be written, was used and not written.
const CLEAN: Descriptor =
    Descriptor::page(FRAME, Attributes::user(MemoryType::Normal, Protection::READ.and(Protection::WRITE)));

/// Two CPUs, and `entry` in a table that both walk.
fn page_of(entry: Descriptor, features: Features) -> (Model<Granule4K>, VirtAddr) {
    let model = Model::new(2, 8, features);
    let page = model.base() + 0x20_3000;
    let cpu = model.cpu(0);
    let cell = cpu.page_tables().ensure_cell(page, &mut model.frames(), || Ok::<_, EnsureError>(()));
    let ((_, cell), ()) = cell.unwrap();
    cpu.store(cell, entry);
    cpu.dsb_ishst();
    model.synchronise();
    (model, page)
}

/// The changes of `entry` by a plain store that lose what the hardware sets in between.
fn loses(entry: Descriptor, change: fn(Descriptor) -> Descriptor) -> bool {
    let (model, page) = page_of(entry, Features::ALL);
    let cpu = model.cpu(0);
    write(cpu, page, change(cpu.load(cpu.entry(page))));
    let broken = rules(&model);
    assert!(broken.iter().all(|&rule| rule == Rule::LostUpdate), "{broken:?}");
    // A compare-exchange in place of the store finds what the hardware has set.
    let (model, page) = page_of(entry, Features::ALL);
    let cpu = model.cpu(1);
    let mut found = cpu.load(cpu.entry(page));
    while let Err(now) = cpu.compare_exchange(cpu.entry(page), found, change(found)) {
        assert!(now.is_young() && now != found, "the hardware's doing");
        found = now;
    }
    model.assert_clean();
    !broken.is_empty()
}

#[test]
fn a_plain_store_must_have_what_the_hardware_may_set() {
    let written = |entry: Descriptor| entry.young().dirty();
    let read_only = CLEAN.write_protected();
    // The entry; whether making it read-only, young, empty or young and dirty loses something.
    let rows = [
        (CLEAN, [true, true, false, false]),
        (CLEAN.old(), [true, true, false, false]),
        (CLEAN.dirty(), [false, false, false, false]),
        (CLEAN.dirty().old(), [true, false, false, false]),
        (read_only, [false, false, false, false]),
        (read_only.old(), [true, false, false, false]),
    ];
    for (entry, expected) in rows {
        let changes = [Descriptor::write_protected, Descriptor::young, |_| Descriptor::EMPTY, written];
        assert_eq!(changes.map(|change| loses(entry, change)), expected, "{entry:?}");
    }
}

#[test]
fn a_compare_exchange_in_two_steps_loses_what_comes_between() {
    let (model, page) = page_of(CLEAN, Features::ALL);
    model.inject(Step::CompareExchange, 0, Sabotage::Lost);
    let cpu = model.cpu(0);
    cpu.compare_exchange(cpu.entry(page), CLEAN, CLEAN.write_protected()).unwrap();
    assert!(model.all_struck());
    let violation = model.expect_violation();
    assert_eq!(violation.rule, Rule::LostUpdate);
    assert!(violation.to_string().contains("the dirty state that the hardware may just have set"), "{violation}");
    assert!(violation.to_string().contains("missing: compare-exchange"), "{violation}");
}

/// A clean page that becomes read-only may be written until its invalidation is complete: no CPU need have written it.
#[test]
fn what_has_dbm_may_be_written_with_dirty_state_alone() {
    for features in [Features::BASE, Features::ALL] {
        let (model, page) = page_of(CLEAN, features);
        let cpu = model.cpu(0);
        let expected = if features.dirty_state { Ok(FRAME) } else { Err(Fault::Permission) };
        assert!(is_certain(model.cpu(1), page, Access::Write, expected));
        while cpu.compare_exchange(cpu.entry(page), cpu.load(cpu.entry(page)), CLEAN.dirty().write_protected()).is_err()
        {
        }
        cpu.dsb_ishst();
        model.frame_copied(0, FRAME);
        assert_eq!(rules(&model), if features.dirty_state { vec![Rule::FrameInUse] } else { vec![] });
        cpu.tlbi(Instruction::Vaale1is(AddressOperand::new(page, None)));
        cpu.dsb_ish();
        model.frame_copied(0, FRAME);
        assert_eq!(rules(&model), []);
    }
}

/// An old page is in no TLB, unless the hardware makes it young.
#[test]
fn an_old_page_is_broken_before_another_is_made_with_access_flags_alone() {
    for features in [Features::BASE, Features::ALL] {
        let (model, page) = page_of(CLEAN.old().dirty(), features);
        write(model.cpu(0), page, Descriptor(CLEAN.dirty().0 + 0x1000));
        assert_eq!(rules(&model), if features.access_flag { vec![Rule::BreakBeforeMake] } else { vec![] });
    }
}
