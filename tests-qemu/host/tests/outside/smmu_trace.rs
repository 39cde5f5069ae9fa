//! The SMMU from outside: what a test on the target prints of its device, against QEMU's trace of it.

use granule_host_tests::guest::{outcome_of, plan};
use granule_host_tests::own_file;
use granule_runner::judge::{Outcome, Verdict};
use granule_runner::session::Plan;
use granule_runner::trace_check::{self, Agreed};

const CHANGES: &str = "smmu::account::each_change_is_notified_once_and_exactly";
const CONTROL: &str = "smmu::account::what_a_device_writes_while_it_is_shut_out_does_not_arrive";

/// Runs one target test under a trace: how it went, and the trace.
fn traced(name: &str, bootargs: &str) -> (Outcome, String) {
    let kind: String = format!("{name}{bootargs}").chars().filter(char::is_ascii_alphanumeric).collect();
    let log = own_file(env!("CARGO_TARGET_TMPDIR"), &format!("{kind}.trace"));
    let plan = Plan { extra: trace_check::arguments(&log), ..plan("default", bootargs) };
    let outcome = outcome_of(&plan, name);
    let trace = std::fs::read_to_string(&log).unwrap();
    std::fs::remove_file(&log).unwrap();
    (outcome, trace)
}

#[track_caller]
fn agreed(name: &str, bootargs: &str) -> Agreed {
    let (outcome, trace) = traced(name, bootargs);
    assert!(matches!(outcome.verdict, Verdict::Passed(_)), "{outcome:?}");
    let expectations = trace_check::expectations(&outcome.output).unwrap();
    trace_check::check(&expectations, &trace).unwrap_or_else(|error| panic!("{name} {bootargs}: {error:#}"))
}

// First that the witness sees a device at all, and one that is kept out.
#[test]
fn what_is_aborted_is_seen_not_to_pass() {
    let agreed = agreed(CONTROL, "");
    assert_eq!((agreed.reached, agreed.refused), (3, 1));
}

#[test]
fn each_change_is_notified_once_and_exactly() {
    let agreed = agreed(CHANGES, "");
    assert!(agreed.changes >= 150 && agreed.commands > agreed.changes, "{agreed:?}");
}

#[test]
fn changes_notified_by_events_are_exact_too() {
    let agreed = agreed(CHANGES, "smmu.notify=events");
    assert!(agreed.changes >= 150, "{agreed:?}");
}

/// Why the two do not agree with a fix taken away, whatever the test itself prints.
fn differs(bootargs: &str) -> String {
    let (outcome, trace) = traced(CHANGES, bootargs);
    let expectations = trace_check::expectations(&outcome.output).unwrap();
    format!("{:#}", trace_check::check(&expectations, &trace).unwrap_err())
}

#[test]
fn a_missing_or_wrong_notification_is_found() {
    for lab in ["no-secondary-tlb", "wrong-asid"] {
        let why = differs(&format!("lab={lab}"));
        assert!(why.contains("next: expectation: changed"), "lab={lab}: {why}");
    }
}
