//! CPUs that insert commands at once while the SMMU consumes them.
//!
//! What a call is for: when it returns, the page that the device was using is the CPU's alone.

use std::sync::Arc;

use granule_loom::{Consumer, Missing, Smmu, lack};
use granule_smmuv3::Step;

use crate::assert_caught;

/// What loom says of two accesses without an order.
const RACE: &str = "Causality violation";

/// Runs `model` in every order with at most so many preemptions.
fn orders(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(model);
}

/// One CPU takes so many pages, by a queue of two slots, of which each call needs both, while the SMMU consumes.
fn one_cpu(pages: usize, missing: Missing) {
    orders(3, move || {
        let smmu = Arc::new(Smmu::<1>::new(Consumer::Thread));
        let device = Arc::clone(&smmu);
        let commands = if missing == Missing::Step(Step::Sync) { pages } else { 2 * pages };
        let consumes = loom::thread::spawn(move || device.consume(commands as u64));
        lack(missing);
        (0..pages).for_each(|page| assert!(smmu.take(page)));
        lack(Missing::Nothing);
        consumes.join().unwrap();
    });
}

/// Two CPUs take pages, so many each, by a queue of `2^BITS` slots.
fn two_cpus<const BITS: u32>(pages: [usize; 2], missing: Missing) {
    orders(3, move || {
        let smmu = Arc::new(Smmu::<BITS>::new(Consumer::Looks));
        let other = Arc::clone(&smmu);
        let inserts = loom::thread::spawn(move || {
            lack(missing);
            (0..pages[1]).for_each(|page| assert!(other.take(pages[0] + page)));
        });
        lack(missing);
        (0..pages[0]).for_each(|page| assert!(smmu.take(page)));
        lack(Missing::Nothing);
        inserts.join().unwrap();
    });
}

#[test]
fn a_call_returns_when_its_commands_are_complete() {
    one_cpu(2, Missing::Nothing);
}

#[test]
fn two_calls_at_once_each_return_when_their_own_are() {
    two_cpus::<2>([1, 1], Missing::Nothing);
}

/// One call fills the queue.
#[test]
fn calls_wait_for_room_and_go_round() {
    two_cpus::<1>([1, 1], Missing::Nothing);
}

#[test]
fn a_call_without_its_sync_is_caught() {
    assert_caught(RACE, || one_cpu(1, Missing::Step(Step::Sync)));
}

#[test]
fn a_call_that_does_not_wait_is_caught() {
    assert_caught(RACE, || one_cpu(1, Missing::Step(Step::Wait)));
}

#[test]
fn prod_before_the_commands_is_caught() {
    assert_caught(RACE, || one_cpu(1, Missing::Step(Step::DmbBeforeProd)));
}

#[test]
fn a_read_ahead_of_the_completion_is_caught() {
    assert_caught(RACE, || one_cpu(1, Missing::DmbOshld));
}

#[test]
fn a_turn_that_is_not_waited_for_is_caught() {
    assert_caught(RACE, || two_cpus::<2>([1, 1], Missing::Step(Step::Turn)));
}

#[test]
fn a_turn_that_is_passed_on_too_early_is_caught() {
    assert_caught(RACE, || two_cpus::<2>([1, 1], Missing::Release));
}

#[test]
fn a_turn_that_is_taken_too_early_is_caught() {
    assert_caught(RACE, || two_cpus::<2>([1, 1], Missing::Acquire));
}

#[test]
fn slots_that_two_cpus_take_are_caught() {
    assert_caught(RACE, || two_cpus::<2>([1, 1], Missing::Exchange));
}

#[test]
fn slots_that_are_not_free_yet_are_caught() {
    assert_caught(RACE, || two_cpus::<1>([1, 1], Missing::Step(Step::Room)));
}

/// Two CPUs and an SMMU that runs by itself, which are more orders than can be tried: those without a preemption.
#[test]
fn two_cpus_insert_while_the_smmu_consumes() {
    orders(0, || {
        let smmu = Arc::new(Smmu::<1>::new(Consumer::Thread));
        let device = Arc::clone(&smmu);
        let other = Arc::clone(&smmu);
        let consumes = loom::thread::spawn(move || device.consume(4));
        let inserts = loom::thread::spawn(move || assert!(other.take(1)));
        assert!(smmu.take(0));
        inserts.join().unwrap();
        consumes.join().unwrap();
    });
}

/// One CPU inserts what is no command, the other takes a page. The SMMU stops; whoever waits puts it right, once, and
/// the caller hears of it.
fn blunder(missing: Missing) {
    orders(2, move || {
        let smmu = Arc::new(Smmu::<2>::new(Consumer::LooksAndStops));
        let other = Arc::clone(&smmu);
        let blunders = loom::thread::spawn(move || {
            lack(missing);
            assert!(!other.blunder(), "nobody was told");
        });
        lack(missing);
        smmu.take(0);
        lack(Missing::Nothing);
        blunders.join().unwrap();
        smmu.assert_reported(1);
    });
}

#[test]
fn an_illegal_command_stops_nobody() {
    blunder(Missing::Nothing);
}

#[test]
fn two_who_serve_an_error_at_once_are_caught() {
    assert_caught("left == right", || blunder(Missing::Step(Step::Serving)));
}

/// Two CPUs find at once that the SMMU does not answer. One shuts it; the other uses a page after that.
fn two_shut(missing: Missing) {
    orders(3, move || {
        let smmu = Arc::new(Smmu::<1>::new(Consumer::Looks));
        let other = Arc::clone(&smmu);
        let shuts = loom::thread::spawn(move || {
            lack(missing);
            other.shut(1);
        });
        lack(missing);
        smmu.shut(0);
        lack(Missing::Nothing);
        shuts.join().unwrap();
    });
}

#[test]
fn a_second_call_returns_when_the_smmu_is_shut() {
    two_shut(Missing::Nothing);
}

#[test]
fn a_shut_that_is_not_seen_is_caught() {
    assert_caught(RACE, || two_shut(Missing::Acquire));
    assert_caught(RACE, || two_shut(Missing::Release));
}
