//! CPUs that insert commands at once while the SMMU consumes them.
//!
//! A call promises this: when it returns, the page that the device was using is the CPU's alone.

use std::sync::Arc;

use granule_loom::{Consumer, Omitted, Smmu, omit};
use granule_smmuv3::Step;

use crate::{assert_caught, threads_with};

/// Loom's report of two accesses without an order.
const RACE: &str = "Causality violation";

/// One CPU takes so many pages, by a queue of two slots, of which each call needs both, while the SMMU consumes.
fn one_cpu(pages: usize, omitted: Omitted) {
    threads_with(3, move || {
        let smmu = Arc::new(Smmu::<1>::new(Consumer::Thread));
        let device = Arc::clone(&smmu);
        let commands = if omitted == Omitted::Smmu(Step::Sync) { pages } else { 2 * pages };
        let consumes = loom::thread::spawn(move || device.consume(commands as u64));
        omit(omitted);
        (0..pages).for_each(|page| assert!(smmu.take(page)));
        omit(Omitted::Nothing);
        consumes.join().unwrap();
    });
}

/// Two CPUs take pages, so many each, by a queue of `2^BITS` slots.
fn two_cpus<const BITS: u32>(pages: [usize; 2], omitted: Omitted) {
    two_cpus_with::<BITS>(2, pages, omitted);
}

/// As [`two_cpus`], with at most so many preemptions.
fn two_cpus_with<const BITS: u32>(preemptions: usize, pages: [usize; 2], omitted: Omitted) {
    threads_with(preemptions, move || {
        let smmu = Arc::new(Smmu::<BITS>::new(Consumer::Looks));
        let other = Arc::clone(&smmu);
        let inserts = loom::thread::spawn(move || {
            omit(omitted);
            (0..pages[1]).for_each(|page| assert!(other.take(pages[0] + page)));
        });
        omit(omitted);
        (0..pages[0]).for_each(|page| assert!(smmu.take(page)));
        omit(Omitted::Nothing);
        inserts.join().unwrap();
    });
}

#[test]
fn a_call_returns_when_its_commands_are_complete() {
    one_cpu(2, Omitted::Nothing);
}

#[test]
fn two_calls_at_once_each_return_when_their_own_are() {
    two_cpus::<2>([1, 1], Omitted::Nothing);
}

/// One call fills the queue.
#[test]
fn calls_wait_for_room_and_go_round() {
    two_cpus::<1>([1, 1], Omitted::Nothing);
}

/// The slots of a third call are those of the first: the CPU that takes them may find from the other that they are free.
#[test]
fn slots_that_another_cpu_has_found_free_are_written_behind_the_smmus_reads() {
    two_cpus_with::<1>(1, [2, 1], Omitted::Nothing);
}

#[test]
#[ignore = "takes half a minute: ./x test --long"]
fn two_calls_at_once_with_three_preemptions() {
    two_cpus_with::<2>(3, [1, 1], Omitted::Nothing);
    two_cpus_with::<1>(3, [1, 1], Omitted::Nothing);
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn slots_that_another_cpu_has_found_free_with_three_preemptions() {
    two_cpus_with::<1>(3, [2, 1], Omitted::Nothing);
}

#[test]
fn a_call_without_its_sync_is_caught() {
    assert_caught(RACE, || one_cpu(1, Omitted::Smmu(Step::Sync)));
}

#[test]
fn a_call_that_does_not_wait_is_caught() {
    assert_caught(RACE, || one_cpu(1, Omitted::Smmu(Step::Wait)));
}

#[test]
fn prod_before_the_commands_is_caught() {
    assert_caught(RACE, || one_cpu(1, Omitted::Smmu(Step::DmbBeforeProd)));
}

#[test]
fn a_read_ahead_of_the_completion_is_caught() {
    assert_caught(RACE, || one_cpu(1, Omitted::DmbOshld));
}

#[test]
fn a_turn_that_is_not_waited_for_is_caught() {
    assert_caught(RACE, || two_cpus::<2>([1, 1], Omitted::Smmu(Step::Turn)));
}

#[test]
fn a_turn_that_is_passed_on_too_early_is_caught() {
    assert_caught(RACE, || two_cpus::<2>([1, 1], Omitted::Release));
}

#[test]
fn a_turn_that_is_taken_too_early_is_caught() {
    assert_caught(RACE, || two_cpus::<2>([1, 1], Omitted::Acquire));
}

#[test]
fn slots_that_two_cpus_take_are_caught() {
    assert_caught(RACE, || two_cpus::<2>([1, 1], Omitted::AtomicExchange));
}

#[test]
fn slots_that_are_not_free_yet_are_caught() {
    assert_caught(RACE, || two_cpus::<1>([1, 1], Omitted::Smmu(Step::Room)));
}

/// Two CPUs and an SMMU that runs by itself, which are more orders than can be tried: those without a preemption.
#[test]
fn two_cpus_insert_while_the_smmu_consumes() {
    threads_with(0, || {
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

/// One CPU inserts an illegal command, the other takes a page. The SMMU stops; a waiter acknowledges the error, once,
/// and the caller gets it.
fn blunder(omitted: Omitted) {
    threads_with(2, move || {
        let smmu = Arc::new(Smmu::<2>::new(Consumer::LooksAndStops));
        let other = Arc::clone(&smmu);
        let blunders = loom::thread::spawn(move || {
            omit(omitted);
            assert!(!other.blunder(), "the caller got no error");
        });
        omit(omitted);
        smmu.take(0);
        omit(Omitted::Nothing);
        blunders.join().unwrap();
        smmu.assert_reported(1);
    });
}

#[test]
fn an_illegal_command_stops_no_caller() {
    blunder(Omitted::Nothing);
}

#[test]
fn two_waiters_that_serve_an_error_at_once_are_caught() {
    assert_caught("left == right", || blunder(Omitted::Smmu(Step::Serving)));
}

/// A use that a CPU makes of the SMMU, for a page.
type Call<const BITS: u32> = fn(&Smmu<BITS>, usize);

/// Two CPUs make their calls at once, for a page each, on an SMMU that does not consume by itself.
fn two_calls<const BITS: u32>(preemptions: usize, consumer: Consumer, calls: [Call<BITS>; 2], omitted: Omitted) {
    threads_with(preemptions, move || {
        let smmu = Arc::new(Smmu::<BITS>::new(consumer));
        let other = Arc::clone(&smmu);
        let second = loom::thread::spawn(move || {
            omit(omitted);
            calls[1](&other, 1);
        });
        omit(omitted);
        calls[0](&smmu, 0);
        omit(Omitted::Nothing);
        second.join().unwrap();
    });
}

/// Two CPUs find at once that the SMMU does not answer. One shuts it; the other uses a page after that.
fn two_shut(omitted: Omitted) {
    two_calls::<1>(3, Consumer::Looks, [Smmu::shut; 2], omitted);
}

#[test]
fn a_second_call_returns_when_the_smmu_is_shut() {
    two_shut(Omitted::Nothing);
}

#[test]
fn a_shut_that_is_not_seen_is_caught() {
    assert_caught(RACE, || two_shut(Omitted::Acquire));
    assert_caught(RACE, || two_shut(Omitted::Release));
}

/// Two CPUs take pages from an SMMU that does not answer, by a queue of `2^BITS` slots.
fn two_in_vain<const BITS: u32>(omitted: Omitted) {
    two_calls::<BITS>(2, Consumer::Dead, [Smmu::take_in_vain; 2], omitted);
}

#[test]
fn calls_to_an_smmu_that_does_not_answer_end_and_shut_it() {
    two_in_vain::<2>(Omitted::Nothing);
}

/// The second call waits for room.
#[test]
fn a_call_that_finds_no_room_in_a_dead_queue_ends() {
    two_in_vain::<1>(Omitted::Nothing);
}

#[test]
fn a_dead_smmu_whose_shut_is_not_seen_is_caught() {
    assert_caught(RACE, || two_in_vain::<2>(Omitted::Order));
}

/// One CPU waits while another shuts the SMMU. No clock runs.
fn shut_while_waiting<const BITS: u32>(omitted: Omitted) {
    two_calls::<BITS>(2, Consumer::Silent, [Smmu::take_when_shut, Smmu::shut], omitted);
}

#[test]
fn a_call_that_waits_returns_when_the_smmu_is_shut() {
    shut_while_waiting::<2>(Omitted::Nothing);
}

#[test]
fn a_waiter_that_uses_a_page_before_the_smmu_is_shut_is_caught() {
    assert_caught(RACE, || shut_while_waiting::<2>(Omitted::Acquire));
    assert_caught(RACE, || shut_while_waiting::<2>(Omitted::Release));
}
