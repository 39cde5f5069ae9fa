//! Changes by two CPUs that own parts of the same leaves, which are split for them.
//!
//! The window is mapped by the largest leaves there are, up to 1 GiB, so that the border between the two CPUs lies in
//! some of them. After each change what *every* CPU may see of *every* page is what a plain map of pages has: the
//! caller's pages changed as soon as it returned, a neighbour's did not, in no leaf that a TLB may still hold. Tables
//! run out at each allocation. A TLB obeys the level hints that it is given.

use granule::mm::tlb::KernelTlb;
use granule_arch::alternative::host;
use granule_model::{Features, Model, Step};
use granule_pgtable::{Geometry, Granule4K, Granule16K, Granule64K, Tiny, Tlb, metal};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::Config;

use crate::calls::{CHANGES, Call, Place, place};
use crate::rig::{self, Kernel, Patience, Rig, Splits};
use crate::stop::Stop;
use crate::turns::{Gated, Turns, is_seen, machine};
use crate::{Interleaving, both_in_turns, kernel, switches, turns};

/// A change by one CPU, and the other's before the first invalidates.
#[derive(Clone, Copy, Debug)]
struct Action {
    by_first: bool,
    change: Call,
    meanwhile: Option<Call>,
    /// Whether the first collapses what is alike then, in the middle of which the other does that again.
    collapse: bool,
}

fn change() -> impl Strategy<Value = Call> {
    (place(), 0..CHANGES.len()).prop_map(|(place, change)| Call::Update(place, change))
}

fn changes() -> impl Strategy<Value = Vec<Call>> {
    proptest::collection::vec(change(), 1..6)
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = (any::<bool>(), change(), proptest::option::of(change()), any::<bool>())
        .prop_map(|(by_first, change, meanwhile, collapse)| Action { by_first, change, meanwhile, collapse });
    proptest::collection::vec(action, 1..8)
}

fn splits() -> impl Strategy<Value = Splits> {
    prop_oneof![Just(Splits::Locked), Just(Splits::Lockless)]
}

/// CPUs that may change the size of a live leaf, and obey hints.
pub(crate) fn features() -> impl Strategy<Value = Features> {
    (any::<bool>(), any::<bool>()).prop_map(|(ets2, tlb_range)| Features { ets2, tlb_range, ..Features::ALL })
}

/// CPUs that may not, and are stopped.
const STOPPED: Splits = Splits::Stopped(Stop::Outside);

fn stopped() -> impl Strategy<Value = Features> {
    features().prop_map(|features| Features { bbml2: false, ..features })
}

fn run<G: Geometry>(
    tlb: impl for<'m> Tlb<Gated<'m, G>>,
    features: Features,
    kernel: Kernel,
    splits: Splits,
    border: u64,
    actions: &[Action],
) {
    let model = Model::<G>::new(3, rig::FRAMES, features);
    let rig = Rig::new(&model, tlb, kernel, border).sharing(splits);
    for action in actions {
        let (first, second) = if action.by_first { (0, 1) } else { (1, 0) };
        rig.perform(first, action.change, &|| {
            action.meanwhile.into_iter().for_each(|change| rig.perform(second, change, &|| ()));
        });
        if action.collapse && splits != Splits::Refused {
            rig.collapse(first, &|| {
                action.meanwhile.into_iter().for_each(|change| rig.perform(second, change, &|| ()));
            });
        }
        rig.check_agreement(first);
        rig.check_agreement(second);
    }
}

/// Both CPUs make their changes at the same time, operation by operation in `turns`.
fn run_in_turns<G: Geometry>(
    features: Features,
    splits: Splits,
    border: u64,
    (turns, late): Interleaving,
    changes: [&[Call]; 2],
) {
    let model = machine::<G>(rig::FRAMES, features, late);
    let rig = Rig::new(&model, metal::KernelTlb, Kernel::Global, border).sharing(splits);
    let rig = rig.in_turns(Turns::new(turns), Patience::Waits);
    both_in_turns(&rig, changes, |cpu, change| {
        rig.perform_unchecked(cpu, change, &|| ());
        rig.check_in_turn(cpu);
    });
}

/// As [`run_in_turns`], and after each of its changes CPU 0 collapses leaves that are alike, also those of CPU 1.
fn run_collapsing_in_turns<G: Geometry>(
    features: Features,
    (splits, patience): (Splits, Patience),
    border: u64,
    (turns, late): Interleaving,
    changes: [&[Call]; 2],
) {
    let model = machine::<G>(rig::FRAMES, features, late);
    let rig = Rig::new(&model, metal::KernelTlb, Kernel::Global, border).sharing(splits);
    let rig = rig.in_turns(Turns::new(turns), patience);
    both_in_turns(&rig, changes, |cpu, change| {
        rig.perform_unchecked(cpu, change, &|| ());
        rig.check_in_turn(cpu);
        if cpu == 0 {
            rig.collapse(cpu, &|| ());
            rig.check_in_turn(cpu);
        }
    });
}

proptest! {
    #![proptest_config(Config::with_cases(128))]

    #[test]
    fn tiny_shared(
        features in features(), kernel in kernel(), splits in splits(), border in 0_u64..8, actions in actions(),
    ) {
        run::<Tiny>(metal::KernelTlb, features, kernel, splits, border, &actions);
    }

    #[test]
    fn tiny_shared_in_turns(
        features in features(),
        splits in splits(),
        border in 0_u64..8,
        turns in turns(),
        first in changes(),
        second in changes(),
    ) {
        run_in_turns::<Tiny>(features, splits, border, turns, [&first, &second]);
    }

    #[test]
    fn tiny_collapsed_in_turns(
        features in features(),
        splits in splits(),
        border in 0_u64..8,
        turns in turns(),
        first in changes(),
        second in changes(),
    ) {
        run_collapsing_in_turns::<Tiny>(features, (splits, Patience::Waits), border, turns, [&first, &second]);
    }

    #[test]
    fn tiny_stopped(features in stopped(), kernel in kernel(), border in 0_u64..8, actions in actions()) {
        run::<Tiny>(metal::KernelTlb, features, kernel, STOPPED, border, &actions);
    }

    #[test]
    fn tiny_stopped_in_turns(
        features in stopped(), border in 0_u64..8, turns in turns(), first in changes(), second in changes(),
    ) {
        run_in_turns::<Tiny>(features, STOPPED, border, turns, [&first, &second]);
    }

    #[test]
    fn tiny_stopped_and_collapsed_in_turns(
        features in stopped(), border in 0_u64..8, turns in turns(), first in changes(), second in changes(),
    ) {
        run_collapsing_in_turns::<Tiny>(features, (STOPPED, Patience::Waits), border, turns, [&first, &second]);
    }

    /// CPUs that may not change the size of a live leaf: what cuts one is refused, and nothing is changed.
    #[test]
    fn tiny_shared_and_refused(kernel in kernel(), border in 0_u64..8, actions in actions()) {
        let features = Features { bbml2: false, ..Features::ALL };
        run::<Tiny>(metal::KernelTlb, features, kernel, Splits::Refused, border, &actions);
    }
}

proptest! {
    #![proptest_config(Config::with_cases(8))]

    #[test]
    fn with_4_kib_pages_shared(
        features in features(), kernel in kernel(), splits in splits(), border in 0_u64..40, actions in actions(),
    ) {
        run::<Granule4K>(metal::KernelTlb, features, kernel, splits, border, &actions);
    }

    #[test]
    fn with_4_kib_pages_shared_and_the_kernels_tlb(
        features in features(), kernel in kernel(), splits in splits(), border in 0_u64..40, actions in actions(),
    ) {
        let run = || run::<Granule4K>(KernelTlb, features, kernel, splits, border, &actions);
        host::with(&switches(features), run);
    }

    #[test]
    fn with_4_kib_pages_collapsed_in_turns(
        features in features(),
        splits in splits(),
        border in 0_u64..40,
        turns in turns(),
        first in changes(),
        second in changes(),
    ) {
        run_collapsing_in_turns::<Granule4K>(features, (splits, Patience::Waits), border, turns, [&first, &second]);
    }

    #[test]
    fn with_4_kib_pages_shared_in_turns(
        features in features(),
        splits in splits(),
        border in 0_u64..40,
        turns in turns(),
        first in changes(),
        second in changes(),
    ) {
        run_in_turns::<Granule4K>(features, splits, border, turns, [&first, &second]);
    }
}

proptest! {
    #![proptest_config(Config::with_cases(4))]

    #[test]
    fn with_4_kib_pages_stopped(
        features in stopped(), kernel in kernel(), border in 0_u64..40, actions in actions(),
    ) {
        run::<Granule4K>(metal::KernelTlb, features, kernel, STOPPED, border, &actions);
    }

    #[test]
    fn with_4_kib_pages_stopped_in_turns(
        features in stopped(), border in 0_u64..40, turns in turns(), first in changes(), second in changes(),
    ) {
        run_collapsing_in_turns::<Granule4K>(features, (STOPPED, Patience::Waits), border, turns, [&first, &second]);
    }
}

proptest! {
    // Tables of 2048 and 8192 entries take their time: one draw each.
    #![proptest_config(Config::with_cases(1))]

    #[test]
    #[ignore = "takes half a minute: ./x test --long"]
    fn with_16_kib_pages_shared(
        features in features(), kernel in kernel(), splits in splits(), border in 0_u64..40, actions in actions(),
    ) {
        run::<Granule16K>(metal::KernelTlb, features, kernel, splits, border, &actions);
    }

    #[test]
    #[ignore = "takes half a minute: ./x test --long"]
    fn with_64_kib_pages_shared(
        features in features(), kernel in kernel(), splits in splits(), border in 0_u64..40, actions in actions(),
    ) {
        run::<Granule64K>(metal::KernelTlb, features, kernel, splits, border, &actions);
    }
}

/// A page each on both sides of the border, in one leaf, made read-only at the same time.
fn contended(splits: Splits, border: u64, turns: Interleaving) {
    let page = |start| Call::Update(Place { unit: 0, start, count: 1, ragged: (0, 0) }, 0);
    run_in_turns::<Tiny>(Features::ALL, splits, border, turns, [&[page(border + 3)], &[page(border + 4)]]);
}

/// Whether one of some draws of turns shows what is wrong with `splits`.
fn are_seen(splits: Splits, border: u64) -> bool {
    is_seen(64, &turns(), |turns| contended(splits, border, turns))
}

/// Both cut the group of blocks, a block and a group of pages; or, on a boundary, less of it.
#[test]
fn turns_show_splits_that_nothing_keeps_apart() {
    for (border, shares) in [(0, false), (1, true), (2, true), (3, true)] {
        assert_eq!(are_seen(Splits::Unserialised, border), shares, "border {border}");
    }
    assert!(!are_seen(Splits::Locked, 1) && !are_seen(Splits::Lockless, 1));
}

#[test]
fn turns_show_a_level_hint_for_what_was_split() {
    assert!(are_seen(Splits::Hinted, 1));
}

/// CPU 0 makes a page read-only and writable again, and collapses what it was split from; CPU 1 changes its page.
fn collapsed(features: Features, how: (Splits, Patience), turns: Interleaving) {
    let page = |start, change| Call::Update(Place { unit: 0, start, count: 1, ragged: (0, 0) }, change);
    let own: Vec<Call> = (0..4).flat_map(|_| [page(4, 0), page(4, 1)]).collect();
    let others: Vec<Call> = (0..8).flat_map(|_| [page(6, 0), page(6, 1)]).collect();
    run_collapsing_in_turns::<Tiny>(features, how, 1, turns, [&own, &others]);
}

#[test]
fn turns_show_a_collapse_that_waits_for_nobody() {
    let are_seen =
        |patience| is_seen(64, &turns(), |turns| collapsed(Features::ALL, (Splits::Lockless, patience), turns));
    assert!(are_seen(Patience::None));
    assert!(!are_seen(Patience::Waits));
}

/// Stops are seen too: of a CPU inside a walk, whose store then goes to a table that is no more; of none, which runs
/// while a break is open; of one that continues with a fault that it has looked up ahead.
#[test]
fn turns_show_what_a_stop_leaves_out() {
    let are_seen = |how| {
        let how = (Splits::Stopped(how), Patience::Waits);
        is_seen(64, &turns(), |turns| collapsed(Features::BASE, how, turns))
    };
    for how in [Stop::Anywhere, Stop::NotAtAll, Stop::Unsynchronised] {
        assert!(are_seen(how), "{how:?}");
    }
    assert!(!are_seen(Stop::Outside));
}

/// A group needs no table, and is part of a block when the others are stopped.
#[test]
fn leaves_may_have_become_larger_when_others_are_stopped() {
    let page = |start, change| Call::Update(Place { unit: 0, start, count: 1, ragged: (0, 0) }, change);
    let model = Model::<Tiny>::new(3, rig::FRAMES, Features::BASE);
    let rig = Rig::new(&model, metal::KernelTlb, Kernel::Global, 1).sharing(STOPPED);
    [page(4, 0), page(4, 1)].into_iter().for_each(|call| rig.perform(0, call, &|| ()));
    rig.perform(1, page(6, 0), &|| rig.collapse(0, &|| ()));
    rig.check_agreement(0);
    rig.check_agreement(1);
}

/// Each step of a break is missed: of a group of blocks, in the first stop for a block; of a block, in the second for a
/// group of pages; of a group of pages, in the third, for another page.
#[test]
fn no_step_of_a_break_can_be_taken_away() {
    let split = |places: &[(usize, u64)], how| {
        let model = Model::<Tiny>::new(3, rig::FRAMES, Features::BASE);
        let rig = Rig::new(&model, metal::KernelTlb, Kernel::Global, 0).sharing(Splits::Stopped(how));
        for &(unit, start) in places {
            rig.perform(0, Call::Update(Place { unit, start, count: 1, ragged: (0, 0) }, 0), &|| ());
        }
        rig.check_agreement(0);
        rig.check_agreement(1);
    };
    let steps = [(Step::DsbIshst, 0), (Step::Tlbi, 0), (Step::DsbIsh, 0), (Step::DsbIshst, 1), (Step::Isb, 0)];
    for (places, stop) in [(&[(2, 0)][..], 0), (&[(1, 0)], 1), (&[(0, 0), (0, 2)], 2)] {
        split(places, Stop::Outside);
        for (step, nth) in steps {
            let lost = Stop::Lost(stop, step, nth);
            let failed = std::panic::catch_unwind(|| split(places, lost)).expect_err("something is missed");
            let is_of_break = |why: &String| why.contains("break-before-make") || why.contains("after a stop");
            assert!(failed.downcast_ref().is_some_and(is_of_break), "{lost:?} for {places:?}");
        }
    }
}

/// Another owner changes its page when a table has become a block, and walk caches may have the table: what it still has
/// is found by no access.
#[test]
fn what_an_owner_changes_before_walk_caches_are_invalidated_is_not_found_as_it_was() {
    let page = |start, change| Call::Update(Place { unit: 0, start, count: 1, ragged: (0, 0) }, change);
    for (change, splits) in [(0, Splits::Lockless), (0, Splits::Locked), (5, Splits::Lockless)] {
        let model = Model::<Tiny>::new(3, rig::FRAMES, Features::ALL);
        let rig = Rig::new(&model, metal::KernelTlb, Kernel::Global, 1).sharing(splits);
        [page(4, 0), page(4, 1)].into_iter().for_each(|call| rig.perform(0, call, &|| ()));
        let came = core::cell::Cell::new(0);
        rig.collapse(0, &|| {
            came.set(came.get() + 1);
            rig.perform(1, page(6, change), &|| ());
        });
        assert_ne!(came.get(), 0, "nothing was collapsed");
        rig.check_agreement(0);
        rig.check_agreement(1);
    }
}
