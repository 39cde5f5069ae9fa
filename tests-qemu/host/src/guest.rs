//! Tests of `granule-tests.img` that are run alone: those that end the kernel, or that a switch makes fail.

use granule_runner::judge::{Outcome, Verdict};
use granule_runner::list::{self, Test};
use granule_runner::machine;
use granule_runner::qemu;
use granule_runner::session::{self, Plan};

use crate::built;

/// The record of the test with that full name, such as `trap::overflows_its_stack`.
///
/// # Panics
/// When there is none.
#[track_caller]
pub fn record(name: &str) -> Test {
    let tests = list::read(&built("granule-tests.elf")).unwrap();
    tests.into_iter().find(|test| test.name == name).unwrap_or_else(|| panic!("no record {name}"))
}

/// A boot of the tests on that machine of `machines.toml`.
///
/// # Panics
/// When there is no such machine.
#[track_caller]
pub fn plan(machine: &str, bootargs: &str) -> Plan {
    Plan {
        machine: machine::named(machine).unwrap(),
        image: built("granule-tests.img"),
        seed: 0,
        bootargs: bootargs.into(),
        extra: Vec::new(),
        qemu: qemu::program(),
    }
}

/// Runs the test with that full name; the one verdict on it.
///
/// # Panics
/// When there is no such test or machine, or not exactly one verdict.
#[track_caller]
pub fn outcome(machine: &str, bootargs: &str, name: &str) -> Outcome {
    outcome_of(&plan(machine, bootargs), name)
}

/// [`outcome`] of a boot that the caller has changed.
///
/// # Panics
/// As [`outcome`].
#[track_caller]
pub fn outcome_of(plan: &Plan, name: &str) -> Outcome {
    let (test, mut outcomes) = (record(name), Vec::new());
    session::run(&[test], |left| Some(session::boot(plan, left)), |_, outcome| outcomes.push(outcome));
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    outcomes.remove(0)
}

/// Whether one of many boots shows it. The host's scheduler may decide it, and the entries that stay in
/// QEMU's TLB: the tests of such a thing need one boot as a rule, and fail where none of many is enough.
pub fn some_boot(shows: impl FnMut() -> bool) -> bool {
    const BOOTS: usize = 20;
    core::iter::repeat_with(shows).take(BOOTS).any(|shows| shows)
}

/// Runs the test, which must end by one panic with all of `parts` in what it prints, in this order; returns that.
///
/// # Panics
/// When it does not, and as [`outcome`].
#[track_caller]
pub fn assert_panics(machine: &str, bootargs: &str, name: &str, parts: &[&str]) -> String {
    let outcome = outcome(machine, bootargs, name);
    let Verdict::Failed(why) = &outcome.verdict else { panic!("{name} came back: {outcome:?}") };
    assert!(why.contains("the kernel panicked"), "{name}: {why}\n{}", outcome.output);
    assert_eq!(outcome.output.matches("kernel panic on CPU").count(), 1, "{}", outcome.output);
    assert_in_order(&outcome.output, parts);
    outcome.output
}

/// Checks that `output` has all of `parts`, in this order.
///
/// # Panics
/// When it has not.
#[track_caller]
pub fn assert_in_order(output: &str, parts: &[&str]) {
    let mut rest = output;
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("`{part}` is missing, or out of order, in\n{output}") };
        rest = &rest[at + part.len()..];
    }
}
