//! Runs of table entries in paired accesses: what the machine does in bulk against one entry at a time.

use granule::mm::kernel::mmu::{LinearView, Metal};
use granule_arch::descriptor::Descriptor;
use granule_pgtable::metal::Cell;
use granule_pgtable::{Mmu, Stores, Survey};

use crate::harness::{Test, target_test};

/// Entries of the array: three turns of sixteen, all that can be left over, and a few that must not be touched.
const ENTRIES: usize = 3 * 16 + 15 + 4;

/// Every run of the array that begins at an even or an odd entry.
fn runs() -> impl Iterator<Item = (usize, usize)> {
    (0..3).flat_map(|first| (0..ENTRIES - 3).map(move |length| (first, length)))
}

target_test!(a_survey_misses_no_entry_and_looks_at_no_other);
fn a_survey_misses_no_entry_and_looks_at_no_other(t: &mut Test) {
    const LIKE: u64 = 0x00f8_0000_4800_1f0f;
    let mmu = Metal(LinearView {});
    for (first, length) in runs() {
        for other in 0..ENTRIES {
            // One entry is the opposite of all others: it decides every bit, if it is seen.
            let entries: [Cell; ENTRIES] =
                core::array::from_fn(|index| Cell::new(Descriptor(if index == other { !LIKE } else { LIKE })));
            let run = &entries[first..first + length];
            let one_by_one = run.iter().fold(Survey::NOTHING, |survey, entry| survey.with(mmu.load(entry)));
            if mmu.survey(run) != one_by_one {
                t.equal("first, length, the other entry", Some((first, length, other)), None);
                return;
            }
        }
    }
    t.check("all surveys", true);
}

target_test!(an_update_changes_every_entry_once_and_no_other);
fn an_update_changes_every_entry_once_and_no_other(t: &mut Test) {
    let mmu = Metal(LinearView {});
    for (first, length) in runs() {
        let before: [u64; ENTRIES] = core::array::from_fn(|_| t.random());
        let flip = t.random();
        let entries = before.map(|entry| Cell::new(Descriptor(entry)));
        mmu.update_run(&entries[first..first + length], flip);
        let wrong = (0..ENTRIES).find(|index| {
            let inside = (first..first + length).contains(index);
            mmu.load(&entries[*index]).0 != before[*index] ^ if inside { flip } else { 0 }
        });
        if wrong.is_some() {
            t.equal("first, length, the wrong entry", Some((first, length, wrong)), None);
            return;
        }
    }
    t.check("all updates", true);
}

target_test!(a_fill_writes_every_entry_once_and_no_other);
fn a_fill_writes_every_entry_once_and_no_other(t: &mut Test) {
    let mmu = Metal(LinearView {});
    for (first, length) in runs() {
        let before: [u64; ENTRIES] = core::array::from_fn(|_| t.random());
        let (value, step) = (t.random(), t.random());
        let entries = before.map(|entry| Cell::new(Descriptor(entry)));
        mmu.fill(&entries[first..first + length], Descriptor(value), step);
        let wrong = (0..ENTRIES).find(|&index| {
            let expected = if (first..first + length).contains(&index) {
                value.wrapping_add(step.wrapping_mul((index - first) as u64))
            } else {
                before[index]
            };
            mmu.load(&entries[index]).0 != expected
        });
        if wrong.is_some() {
            t.equal("first, length, the wrong entry", Some((first, length, wrong)), None);
            return;
        }
    }
    t.check("all fills", true);
}

target_test!(what_is_filled_ends_at_the_first_other_entry);
fn what_is_filled_ends_at_the_first_other_entry(t: &mut Test) {
    let mmu = Metal(LinearView {});
    for (first, length) in runs() {
        let (value, step) = (t.random(), t.random());
        for other in 0..=ENTRIES {
            let entries: [Cell; ENTRIES] = core::array::from_fn(|index| {
                let filled = value.wrapping_add(step.wrapping_mul((index as u64).wrapping_sub(first as u64)));
                Cell::new(Descriptor(if index == other { !filled } else { filled }))
            });
            let found = mmu.filled(&entries[first..first + length], Descriptor(value), step);
            let expected = if other < first { length } else { length.min(other - first) };
            if found != expected {
                t.equal("first, length, the other entry, found", Some((first, length, other, found)), None);
                return;
            }
        }
    }
    t.check("all runs", true);
}
