//! How the kernel ends: guests that take a fault without an answer, or panic, and the report that each must leave.

use granule_host_tests::built;
use granule_runner::judge::Verdict;
use granule_runner::list;
use granule_runner::machine;
use granule_runner::session::{self, Plan};

/// Runs the guest `trap::{name}` and returns what it printed. It must have ended by a panic, and have reported it
/// once.
#[track_caller]
fn report(name: &str) -> String {
    let tests = list::read(&built("granule-tests.elf")).unwrap();
    let full_name = format!("trap::{name}");
    let test = tests.into_iter().find(|test| test.name == full_name).unwrap_or_else(|| panic!("no record {full_name}"));
    let plan = Plan {
        machine: machine::named("default").unwrap(),
        image: built("granule-tests.img"),
        seed: 0,
        bootargs: String::new(),
        extra: Vec::new(),
    };
    let mut outcomes = Vec::new();
    session::run(&[test], |left| session::boot(&plan, left), |_, outcome| outcomes.push(outcome));
    let outcome = outcomes.pop().expect("each test has a verdict");
    let Verdict::Failed(why) = &outcome.verdict else { panic!("{name} came back: {outcome:?}") };
    assert!(why.contains("the kernel panicked"), "{name}: {why}");
    assert_eq!(outcome.output.matches("kernel panic on CPU").count(), 1, "{}", outcome.output);
    outcome.output
}

/// Checks that `report` has all of `parts`, in this order.
#[track_caller]
fn assert_has(report: &str, parts: &[&str]) {
    let mut rest = report;
    for part in parts {
        let Some(at) = rest.find(part) else { panic!("`{part}` is missing, or out of order, in\n{report}") };
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn a_stack_overflow_is_reported_as_such() {
    let report = report("overflows_its_stack");
    assert_has(
        &report,
        &[
            "kernel panic on CPU 0: stack overflow: SP 0x",
            "ESR",
            "translation fault, level 3",
            "FAR",
            "registers:",
            "backtrace:",
            "trap::recurse+",
            "times more)",
            "trap::overflows_its_stack+",
            "kernel_main+",
            "walk of 0x",
            "level 0 table",
            "level 3 table",
            "invalid",
        ],
    );
}

#[test]
fn another_cpus_overflow_is_reported_through_the_interrupt_that_it_was_in() {
    let report = report("overflows_another_cpus_stack");
    assert!(!report.contains("kernel panic on CPU 0"), "{report}");
    assert_has(&report, &["stack overflow: SP 0x", "trap::recurse+", "--- exception ---", "secondary_main+"]);
}

#[test]
fn a_write_to_a_constant_shows_the_leaf_that_refused_it() {
    let report = report("writes_to_a_constant");
    assert_has(
        &report,
        &[
            "permission fault, level 3, on a write to 0x",
            "PC",
            "trap::writes_to_a_constant+",
            "walk of 0x",
            "level 3 table",
            "read-only",
        ],
    );
}

#[test]
fn a_call_to_where_no_code_is_names_the_caller() {
    let report = report("calls_where_no_code_is");
    assert_has(&report, &["on an instruction fetch from 0x", "backtrace:", "trap::calls_where_no_code_is+"]);
}

#[test]
fn panics_on_all_cpus_leave_one_report() {
    assert_has(&report("panics_on_all_cpus_at_once"), &["kernel panic on CPU", "backtrace:", "panic_fmt"]);
}

#[test]
fn a_panic_with_the_console_locked_is_reported() {
    let report = report("panics_while_it_prints");
    assert_has(&report, &["while the console's lock is held", "backtrace:", "trap::panics_while_it_prints+"]);
}

#[test]
fn a_panic_inside_a_panic_ends_too() {
    assert_has(
        &report("panics_while_it_panics"),
        &["kernel panic, and then while it was reported: while the console's"],
    );
}
