//! Long sequences of calls by several CPUs on the model machine, against a plain map of page → attributes.
//!
//! After each call, what *every* CPU may see of what the caller owns is exactly what the map has: no old permission,
//! no old address, no fault of its own making. Another CPU may take one fault on what has just become valid, until its
//! next exception. A call of another CPU runs in the middle of each, and in the tests `…_in_turns` two CPUs take turns
//! operation by operation; a map is tried with every number of tables that is too small; frames that are unmapped and
//! tables that are reclaimed are given up at once, and no CPU may reach them.
//!
//! Areas that are unmapped many at a time, with one invalidation for all, are in `purge`.
//! Leaves that both CPUs have a part of are in `split`, CPUs that are stopped for such a leaf in `stop`, pages with an
//! alias in such leaves in `alias`.
//!
//! In every geometry, with and without range operations, level hints and FEAT_ETS2, and with mappings that are not
//! global; with the model's own TLB, and for 4 KiB pages with the kernel's.

mod alias;
#[path = "../../../pgtable/tests/host/calls.rs"]
mod calls;
#[path = "../../../pgtable/tests/host/plain.rs"]
mod plain;
mod purge;
mod rig;
mod split;
mod stop;
mod turns;

use core::cell::Cell;

use granule::mm::tlb::KernelTlb;
use granule::platform::features::branch;
use granule_arch::alternative::host;
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_model::{Features, Model, Sabotage, Step};
use granule_pgtable::{Execution, Geometry, Granule4K, Granule16K, Granule64K, Leaves, Shape, Tiny, Tlb, metal};
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::{Config, TestRunner};

use calls::{Call, call};
use rig::{Kernel, Patience, Reach, Rig};
use turns::{Gated, Turns, is_seen, machine};

const DATA: Attributes = Attributes::kernel_data(MemoryType::Normal);
const RODATA: Attributes = Attributes::kernel_rodata(MemoryType::Normal);
const TEXT: Attributes = Attributes::kernel_text(MemoryType::Normal);
const LARGEST: Shape = Shape { leaves: Leaves::Largest, execution: Execution::ByLeaf };

/// A call of a CPU, and what another does in the middle of it.
#[derive(Clone, Copy, Debug)]
struct Action {
    by_first: bool,
    call: Call,
    meanwhile: Option<Call>,
    reclaim: bool,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = (any::<bool>(), call(), proptest::option::of(call()), any::<bool>())
        .prop_map(|(by_first, call, meanwhile, reclaim)| Action { by_first, call, meanwhile, reclaim });
    proptest::collection::vec(action, 1..12)
}

fn features() -> impl Strategy<Value = Features> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(ets2, tlb_range, ttl)| Features {
        ets2,
        tlb_range,
        ttl,
        ..Features::BASE
    })
}

fn kernel() -> impl Strategy<Value = Kernel> {
    prop_oneof![Just(Kernel::Global), Just(Kernel::NotGlobal)]
}

fn run<G: Geometry>(
    tlb: impl for<'m> Tlb<Gated<'m, G>>,
    features: Features,
    kernel: Kernel,
    border: u64,
    actions: &[Action],
) {
    let model = Model::<G>::new(3, rig::FRAMES, features);
    let rig = Rig::new(&model, tlb, kernel, border);
    for action in actions {
        let (first, second) = if action.by_first { (0, 1) } else { (1, 0) };
        rig.perform(first, action.call, &|| {
            action.meanwhile.into_iter().for_each(|call| rig.perform(second, call, &|| ()));
        });
        if action.reclaim {
            rig.reclaim(first);
        }
        rig.check_agreement(first);
    }
    rig.check_agreement(0);
    rig.check_agreement(1);
}

/// Each of both CPUs is a thread that does `make` with its calls, in the rig's turns; in the end they agree.
fn both_in_turns<G: Geometry, C: Copy + Sync>(
    rig: &Rig<'_, G, metal::KernelTlb>,
    calls: [&[C]; 2],
    make: impl Fn(usize, C) + Sync,
) {
    let turns = rig.turns().expect("a rig in turns");
    std::thread::scope(|scope| {
        for (cpu, calls) in calls.into_iter().enumerate() {
            let make = &make;
            scope.spawn(move || {
                let _thread = turns.thread(cpu);
                calls.iter().for_each(|&call| make(cpu, call));
            });
        }
    });
    rig.check_agreement(0);
    rig.check_agreement(1);
}

/// Both CPUs make their calls at the same time, operation by operation in `turns`; CPU 0 reclaims tables as well.
fn run_in_turns<G: Geometry>(
    features: Features,
    patience: Patience,
    border: u64,
    (turns, late): Interleaving,
    calls: [&[Call]; 2],
) {
    let model = machine::<G>(rig::FRAMES, features, late);
    let rig = Rig::new(&model, metal::KernelTlb, Kernel::Global, border).in_turns(Turns::new(turns), patience);
    both_in_turns(&rig, calls, |cpu, call| {
        rig.perform_unchecked(cpu, call, &|| ());
        rig.check_in_turn(cpu);
        if cpu == 0 {
            rig.reclaim(cpu);
        }
    });
}

/// Both CPUs map and unmap in turns, each in its own part of a space: tables that are empty go at once, without a wait
/// for walks, since no other part's walk comes to them.
fn run_in_parts<G: Geometry>(
    features: Features,
    reach: Reach,
    border: u64,
    (turns, late): Interleaving,
    calls: [&[Call]; 2],
) {
    let model = machine::<G>(rig::FRAMES, features, late);
    let rig = Rig::new(&model, metal::KernelTlb, Kernel::Global, border).in_turns(Turns::new(turns), Patience::Waits);
    both_in_turns(&rig, calls, |cpu, call| {
        rig.perform_in_part(cpu, call, reach);
        rig.check_in_turn(cpu);
    });
}

/// The switches that the kernel's TLB asks for what the CPUs can do.
fn switches(features: Features) -> Vec<u16> {
    let have = [(features.tlb_range, branch::TLB_RANGE), (features.ttl, branch::TLB_LEVEL)];
    have.into_iter().filter(|&(has, _)| has).map(|(_, identifier)| identifier).collect()
}

proptest! {
    #![proptest_config(Config::with_cases(32))]

    #[test]
    fn with_4_kib_pages(features in features(), kernel in kernel(), border in 0_u64..40, actions in actions()) {
        run::<Granule4K>(metal::KernelTlb, features, kernel, border, &actions);
    }

    #[test]
    fn with_4_kib_pages_and_the_kernels_tlb(
        features in features(), kernel in kernel(), border in 0_u64..40, actions in actions(),
    ) {
        host::with(&switches(features), || run::<Granule4K>(KernelTlb, features, kernel, border, &actions));
    }
}

/// How long two CPUs' turns are, in operations, and the seed of their late loads, if they have any.
type Interleaving = (Vec<u8>, Option<u64>);

/// Any of them.
fn turns() -> impl Strategy<Value = Interleaving> {
    (proptest::collection::vec(1_u8..9, 3..24), any::<Option<u64>>())
}

fn calls() -> impl Strategy<Value = Vec<Call>> {
    proptest::collection::vec(call(), 1..6)
}

proptest! {
    // Tables of 2048 and of 8192 entries take their time, and the orders of calls are `tiny`'s.
    #![proptest_config(Config::with_cases(8))]

    #[test]
    fn with_16_kib_pages(features in features(), kernel in kernel(), border in 0_u64..40, actions in actions()) {
        run::<Granule16K>(metal::KernelTlb, features, kernel, border, &actions);
    }

    #[test]
    fn with_64_kib_pages(features in features(), kernel in kernel(), border in 0_u64..40, actions in actions()) {
        run::<Granule64K>(metal::KernelTlb, features, kernel, border, &actions);
    }

    #[test]
    fn with_4_kib_pages_in_turns(
        features in features(), border in 0_u64..40, turns in turns(), first in calls(), second in calls(),
    ) {
        run_in_turns::<Granule4K>(features, Patience::Waits, border, turns, [&first, &second]);
    }
}

proptest! {
    #![proptest_config(Config::with_cases(256))]

    #[test]
    fn tiny(features in features(), kernel in kernel(), border in 0_u64..8, actions in actions()) {
        run::<Tiny>(metal::KernelTlb, features, kernel, border, &actions);
    }

    #[test]
    fn tiny_in_turns(
        features in features(),
        border in 0_u64..8,
        turns in turns(),
        first in calls(),
        second in calls(),
    ) {
        run_in_turns::<Tiny>(features, Patience::Waits, border, turns, [&first, &second]);
    }

    #[test]
    fn tiny_in_parts(
        features in features(),
        border in 0_u64..8,
        turns in turns(),
        first in calls(),
        second in calls(),
    ) {
        run_in_parts::<Tiny>(features, Reach::Part, border, turns, [&first, &second]);
    }
}

/// Each barrier that a call issues is needed: taken away, it is missed in the very call. So the sequences are minimal,
/// and the property tests above have teeth. A change of what is invalid already is left out.
#[test]
fn no_barrier_can_be_taken_away() {
    let steps = prop_oneof![Just(Step::DmbIshst), Just(Step::DsbIshst), Just(Step::DsbIsh), Just(Step::Isb)];
    let config = Config { source_file: Some(file!()), ..Config::with_cases(1024) };
    let (cases, struck) = (config.cases, Cell::new(0));
    let mut runner = TestRunner::new(config);
    let run = runner.run(&(0_usize..6, steps, actions()), |(nth, step, actions)| {
        struck.set(struck.get() + u32::from(is_missed(nth, step, &actions)));
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
    // A draw whose calls have no such barrier shows nothing.
    assert!(struck.get() >= cases / LEAST_STRUCK, "of {cases} draws {} took a barrier away", struck.get());
}

/// One draw in so many takes a barrier away, at least.
const LEAST_STRUCK: u32 = 16;

/// Takes barrier `nth` of one kind away; whether there was one, which must then be missed.
fn is_missed(nth: usize, step: Step, actions: &[Action]) -> bool {
    let model = Model::<Tiny>::new(2, rig::FRAMES, Features::BASE);
    let rig = Rig::new(&model, metal::KernelTlb, Kernel::Global, 0);
    model.inject(step, nth, Sabotage::Lost);
    for action in actions {
        if step == Step::DmbIshst && !matches!(action.call, Call::Map { .. }) {
            // The one that is no map's puts instructions before the entry that makes them executable, and the model has
            // tables only.
            continue;
        }
        if rig.is_for_invalid_pages(0, action.call) {
            continue;
        }
        rig.perform_unchecked(0, action.call, &|| ());
        if model.all_struck() {
            rig.audit(0);
            let found = model.violations();
            assert!(!found.is_empty(), "{step:?} {nth} was taken out of {:?} and nothing missed it", action.call);
            return true;
        }
        rig.check(0);
    }
    false
}

/// CPU 1 unmaps a range with a hole, and finds nothing at the upper level; CPU 0, which owns the rest of what that
/// entry translates, maps there; CPU 1 looks again. The table that is there now is no leaf of CPU 1's.
#[test]
fn turns_link_a_table_in_the_hole_that_a_neighbour_unmaps() {
    let place = |unit, start, count| calls::Place { unit, start, count, ragged: (0, 0) };
    let map = |place| Call::Map { place, physical: 0, attributes: 0, pages: true, tables: usize::MAX };
    let first = [map(place(2, 3, 1))];
    let second = [Call::Unmap(place(2, 2, 2))];
    // Every way in which the first steps of the two can interleave.
    for before in 1..16 {
        for between in 1..20 {
            let turns = vec![before, between, 60];
            run_in_turns::<Tiny>(Features::BASE, Patience::Waits, 5, (turns, None), [&first, &second]);
        }
    }
}

/// CPU 1 maps and unmaps a page, again and again, in a table that CPU 0 would take away each time that it is empty.
fn contended(features: Features, patience: Patience, turns: Interleaving) {
    let place = calls::Place { unit: 0, start: 6, count: 1, ragged: (0, 0) };
    let map = Call::Map { place, physical: 0, attributes: 0, pages: true, tables: usize::MAX };
    // Nothing is mapped in what CPU 0 owns, so that its calls are reclaims.
    let (first, second) = ([Call::Unmap(place); 6], [map, Call::Unmap(place), map, Call::Unmap(place), map]);
    run_in_turns::<Tiny>(features, patience, 1, turns, [&first, &second]);
}

proptest! {
    #![proptest_config(Config::with_cases(1024))]

    #[test]
    fn a_table_in_turns(turns in turns()) {
        contended(Features::BASE, Patience::Waits, turns);
    }
}

/// Whether one of many draws of turns shows what is wrong with `patience`.
fn lack_is_seen(features: Features, patience: Patience) -> bool {
    is_seen(4096, &turns(), |turns| contended(features, patience, turns))
}

/// Turns are fine enough to bring a mapper between two steps of a reclaim: without grace periods it loses its table.
#[test]
fn turns_show_a_reclaim_that_waits_for_no_walk() {
    assert!(lack_is_seen(Features::BASE, Patience::None));
}

/// Each CPU maps and unmaps a page on its side of the border, again and again: both translate through one table, which
/// is on neither side.
fn beside_the_border(reach: Reach, turns: Interleaving) {
    let calls = |start| {
        let place = calls::Place { unit: 0, start, count: 1, ragged: (0, 0) };
        let map = Call::Map { place, physical: 0, attributes: 0, pages: true, tables: usize::MAX };
        [map, Call::Unmap(place), map, Call::Unmap(place), map]
    };
    run_in_parts::<Tiny>(Features::BASE, reach, 2, turns, [&calls(5), &calls(6)]);
}

proptest! {
    #![proptest_config(Config::with_cases(256))]

    #[test]
    fn beside_the_border_in_turns(turns in turns()) {
        beside_the_border(Reach::Part, turns);
    }
}

/// A part that took tables beyond its border would take those of the next.
#[test]
fn turns_show_a_hole_that_reaches_over_the_border() {
    assert!(is_seen(256, &turns(), |turns| beside_the_border(Reach::Everything, turns)));
}

/// A late load finds a table empty that the walk before has filled. With FEAT_ETS2 no DSB comes after the map.
#[test]
fn late_loads_show_a_reclaim_that_does_not_acquire_the_walk_words() {
    assert!(lack_is_seen(Features { ets2: true, ..Features::BASE }, Patience::Unordered));
}
