//! The runner's own tests: guests with false reports, and the verdict on each.
//!
//! The judge has tests of its own without a machine (tests-qemu/runner). These show that the whole chain — records,
//! boot, serial port, frames, exit status — finds the same out about a real one, and that the tests after the liar
//! still run.

use granule_host_tests::guest;
use granule_runner::judge::{Outcome, Verdict};
use granule_runner::session;

/// Runs one misbehaving guest with the innocent one on `el2`; the verdict on the first. The other must pass.
#[track_caller]
fn judge(name: &str) -> Outcome {
    judge_on("el2", name)
}

#[track_caller]
fn judge_on(machine: &str, name: &str) -> Outcome {
    judge_with(machine, "", name)
}

#[track_caller]
fn judge_with(machine: &str, bootargs: &str, name: &str) -> Outcome {
    let (liar, innocent) = outcomes(machine, bootargs, name);
    assert_eq!(innocent.verdict, Verdict::Passed(1), "{innocent:?}");
    liar
}

/// The outcomes of the misbehaving guest and of the innocent one.
#[track_caller]
fn outcomes(machine: &str, bootargs: &str, name: &str) -> (Outcome, Outcome) {
    let (liar, innocent) = (guest::record(name), guest::record("misbehaving::innocent"));
    let (chosen, plan) = ([liar, innocent.clone()], guest::plan(machine, bootargs));
    let mut outcomes = Vec::new();
    session::run(
        &chosen,
        |left| Some(session::boot(&plan, left)),
        |test, outcome| outcomes.push((test.index, outcome)),
    );
    assert_eq!(outcomes.len(), 2, "each test has exactly one verdict: {outcomes:?}");
    outcomes.sort_by_key(|(index, _)| *index == innocent.index);
    let innocent = outcomes.remove(1).1;
    (outcomes.remove(0).1, innocent)
}

#[track_caller]
fn assert_fails(name: &str, reason: &str, output: &str) {
    assert_fails_on("el2", name, reason, output);
}

#[track_caller]
fn assert_fails_on(machine: &str, name: &str, reason: &str, output: &str) {
    assert_fails_with(machine, name, reason, &[output]);
}

/// Fails, and prints all that `outputs` says.
#[track_caller]
fn assert_fails_with(machine: &str, name: &str, reason: &str, outputs: &[&str]) {
    assert_outcome(&judge_on(machine, name), name, reason, outputs);
}

#[track_caller]
fn assert_outcome(outcome: &Outcome, name: &str, reason: &str, outputs: &[&str]) {
    let Verdict::Failed(why) = &outcome.verdict else { panic!("{name} passed: {outcome:?}") };
    assert!(why.contains(reason), "{name}: {why}; wanted: {reason}");
    for output in outputs {
        assert!(outcome.output.contains(output), "{name} printed: {}; wanted: {output}", outcome.output);
    }
}

#[test]
fn a_failed_check_fails() {
    assert_fails("misbehaving::fails", "1 failed, of 1 checks", "one and one: found 2, wanted 3");
}

#[test]
fn a_test_without_checks_fails() {
    assert_fails("misbehaving::makes_no_checks", "failed, of 0 checks", "the test made no checks");
}

#[test]
fn a_panic_fails_with_its_report() {
    assert_fails("misbehaving::panics", "the kernel panicked", "as a test of the runner");
}

/// With FEAT_MOPS one instruction of a copy accesses both sides.
#[test]
fn a_fault_on_the_kernels_side_of_a_copy_is_not_taken_for_one_of_el0s() {
    for machine in ["default", "a72"] {
        let name = "uaccess::copies_from_memory_of_the_kernel_that_is_gone";
        assert_fails_on(machine, name, "the kernel panicked", "on a read of 0xffff");
    }
}

#[test]
fn a_hang_with_interrupts_off_fails_after_its_limit() {
    assert_fails("misbehaving::hangs_with_interrupts_off", "hung: the time limit of 2 s passed", "");
}

#[test]
fn an_early_exit_with_success_fails() {
    assert_fails("misbehaving::exits_with_success", "exited early, with status 0", "");
}

#[test]
fn a_reset_is_not_taken_for_a_boot() {
    assert_fails("misbehaving::resets", "exited early, with status 0", "");
}

#[test]
fn death_in_mid_line_fails_with_the_half_line() {
    assert_fails("misbehaving::dies_in_mid_line", "exited early, with status 0", "I was about to s");
}

#[test]
fn output_that_is_unsent_when_the_machine_ends_arrives_whole() {
    for name in ["panics_with_output_unsent", "exits_with_output_unsent", "resets_with_output_unsent"] {
        let outcome = judge(&format!("misbehaving::{name}"));
        assert!(matches!(outcome.verdict, Verdict::Failed(_)), "{outcome:?}");
        let mut lines = outcome.output.lines().map(str::trim_end).skip_while(|line| !line.starts_with("line 0 "));
        for line in 0..100 {
            let wanted = format!("line {line} of a hundred, which is long enough to leave some unsent");
            assert_eq!(lines.next(), Some(wanted.as_str()), "{name}: {}", outcome.output);
        }
        assert_eq!(lines.next(), Some("some of it is unsent"), "{name}: {}", outcome.output);
        let report = lines.any(|line| line.contains("as a test of the console"));
        assert_eq!(report, name.starts_with("panics"), "{name}: {}", outcome.output);
    }
}

#[test]
fn a_forged_verdict_fails() {
    assert_fails("misbehaving::forges_a_verdict", "a nonce that is not this boot's", "");
}

#[test]
fn forging_all_frames_that_remain_fails() {
    assert_fails("misbehaving::forges_all_frames_that_remain", "a nonce that is not this boot's", "");
}

#[test]
fn interrupts_left_masked_fail_the_audit() {
    assert_fails(
        "misbehaving::leaves_interrupts_masked",
        "1 failed, of 1 checks",
        "audit: the test left interrupts masked",
    );
}

#[test]
fn code_that_is_writable_at_another_address_fails_the_audit() {
    // It stays mapped, so that the next test fails as well.
    let (liar, innocent) = outcomes("el2", "", "misbehaving::maps_code_writable");
    for outcome in [liar, innocent] {
        assert!(matches!(outcome.verdict, Verdict::Failed(_)), "{outcome:?}");
        assert!(outcome.output.contains("writable, and executable at EL1 at another address"), "{outcome:?}");
    }
}

#[test]
fn what_is_left_behind_fails_the_audit() {
    assert_fails("misbehaving::leaks_a_frame", "1 failed, of 1 checks", "frames in use before the test");
    assert_fails("misbehaving::leaks_an_object", "1 failed, of 1 checks", "objects on the heap before the test");
    let areas = ["vmalloc areas before the test", "frames of kernel tables before the test"];
    assert_fails_with("el2", "misbehaving::leaks_an_area", "failed, of 1 checks", &areas);
    assert_fails("misbehaving::leaks_a_thread", "failed, of 1 checks", "0 threads before the test, 1 after it");
    let processes = ["0 processes before the test, 1 after it", "0 tasks before the test, 1 after it"];
    assert_fails_with("el2", "misbehaving::leaks_a_process", "failed, of 1 checks", &processes);
    assert_fails("misbehaving::leaks_a_space", "failed, of 1 checks", "0 spaces before the test, 1 after it");
}

/// The kernel makes such a page itself where that fix is taken away. It stays, so every later test fails too.
#[test]
fn a_page_that_is_writable_and_executable_fails_the_audit() {
    let (liar, innocent) = outcomes("el2", "lab=wx-leaf", "misbehaving::leaks_an_area");
    for outcome in [liar, innocent] {
        assert!(matches!(outcome.verdict, Verdict::Failed(_)), "{outcome:?}");
        assert!(outcome.output.contains("writable and executable at EL1"), "{outcome:?}");
    }
}

#[test]
fn what_a_device_is_left_with_fails_the_audit() {
    let masters = ["0 claimed devices before the test, 1 after it", "0 bus masters before the test, 1 after it"];
    assert_fails_with("default", "misbehaving::leaks_a_bus_master", "2 failed, of 1 checks", &masters);
    let outcome = judge_on("default", "misbehaving::leaks_a_device");
    assert!(matches!(outcome.verdict, Verdict::Failed(_)), "{outcome:?}");
    for account in ["devices behind an SMMU", "streams that are not aborted", "ASIDs of SMMUs"] {
        let what = format!("0 {account} before the test, 1 after it");
        assert!(outcome.output.contains(&what), "{what}: {outcome:?}");
    }
}

#[test]
fn what_a_cpu_is_left_with_fails_the_audit() {
    for (test, what) in [
        ("leaves_a_walk_open", "a lockless walk open on CPU 0"),
        ("leaves_another_cpu_in_a_walk", "a lockless walk open on CPU 1"),
        ("leaves_a_deadline", "a deadline on CPU 0"),
    ] {
        // A wrong state stays wrong: the audit looks at it for two seconds, of which a CPU that is well takes a moment.
        let outcome = judge_with("el2", "test.patience=2", &format!("misbehaving::{test}"));
        assert_outcome(&outcome, test, "1 failed, of 1 checks", &[what]);
    }
}

/// In the checked build; a release build keeps no ranks.
#[test]
fn a_lock_that_stays_held_fails_the_audit_of_the_checked_build() {
    let outcome = judge("misbehaving::leaves_a_lock_held");
    let checked = outcome.output.contains("ranks are on record: true");
    assert_eq!(matches!(outcome.verdict, Verdict::Failed(_)), checked, "{outcome:?}");
    assert_eq!(outcome.output.contains("a lock held on CPU 0"), checked, "{outcome:?}");
}

/// A release build counts it, the checked build panics.
#[test]
fn a_frame_that_is_freed_twice_fails() {
    let outcome = judge("misbehaving::frees_a_frame_twice");
    let Verdict::Failed(why) = &outcome.verdict else { panic!("{outcome:?}") };
    let counted = outcome.output.contains("0 frees of frames refused before the test, 1 after it");
    assert!(counted || why == "the kernel panicked", "{outcome:?}");
}

#[test]
fn a_logged_error_fails() {
    let lines = ["error: as a test of the runner", "audit: the kernel logged an error"];
    assert_fails_with("el2", "misbehaving::logs_an_error", "1 failed, of 1 checks", &lines);
}

/// In the checked build (`./x test --debug`); a release build does not record the owners of ranges.
#[test]
fn two_owners_of_one_page_end_the_checked_build() {
    for test in ["changes_what_another_cpu_is_changing", "changes_the_alias_of_what_another_cpu_is_changing"] {
        let outcome = judge(&format!("misbehaving::{test}"));
        if outcome.output.contains("owners are on record: true") {
            assert_eq!(outcome.verdict, Verdict::Failed("the kernel panicked".into()), "{test}");
            assert!(outcome.output.contains("one of them is not its exclusive owner"), "{}", outcome.output);
        } else {
            assert!(matches!(outcome.verdict, Verdict::Passed(_)), "{outcome:?}");
        }
    }
}
