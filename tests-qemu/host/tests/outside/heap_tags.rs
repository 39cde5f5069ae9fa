//! Reports of failed tag checks of the kernel, in each mode of `heap.tags=`, and boots where it is not available.

use granule_host_tests::built;
use granule_host_tests::guest::{assert_panics, outcome};
use granule_host_tests::session::Session;
use granule_runner::judge::Verdict;
use granule_runner::machine;

/// The output of a guest's test of the module `heap_tags`, which must have ended by one panic with all of `parts` in
/// its report, in this order.
#[track_caller]
fn assert_reports(machine: &str, bootargs: &str, name: &str, parts: &[&str]) -> String {
    assert_panics(machine, bootargs, &format!("heap_tags::{name}"), parts)
}

const USE_AFTER_FREE: [&str; 12] = [
    "tag check fault, on a write to 0xf",
    "backtrace:",
    "heap_tags::writes_after_a_free",
    "tags: pointer 0x",
    ", memory 0xf",
    "use after free: 3 bytes into 0xffffd0",
    ", 112 bytes, tag 0x",
    ", freed\n",
    "allocated by:",
    "heap_tags::allocates_for_the_report+",
    "freed by:",
    "heap_tags::frees_for_the_report+",
];

#[test]
fn a_use_after_free_is_reported_with_both_backtraces() {
    for (machine, bootargs) in [("default", ""), ("n2", "heap.tags=sync"), ("n2", "heap.tags=asymm")] {
        assert_reports(machine, bootargs, "writes_after_a_free", &USE_AFTER_FREE);
    }
}

#[test]
fn an_overflow_names_the_object_before() {
    let parts = ["on a write to 0xf", "overflow: 3 bytes behind 0xffffd0", ", 112 bytes", "in use\n", "allocated by:"];
    let report = assert_reports("default", "", "writes_behind_an_object", &parts);
    assert!(!report.contains("freed by:") && report.contains("level 3 table"), "{report}");
}

#[test]
fn an_underflow_names_the_object_behind() {
    let parts = ["on a read of 0xf", "underflow: 2 bytes before 0xffffd0", ", 112 bytes", "in use\n"];
    for bootargs in ["", "heap.tags=asymm"] {
        assert_reports("default", bootargs, "reads_in_front_of_an_object", &parts);
    }
}

#[test]
fn a_bad_free_is_reported() {
    const HEADLINE: &str = "112 bytes, which does not match an object in use";
    let parts = ["free of 0xf", HEADLINE, "use after free: 0 bytes into", "freed by:"];
    assert_reports("default", "", "frees_an_object_twice", &parts);
    assert_reports("default", "heap.tags=async", "frees_an_object_twice", &parts);
    for (name, headline, place) in [
        ("frees_with_another_size", "64 bytes, which does not match", "\n  0 bytes into 0xffffd0"),
        ("frees_from_the_middle", HEADLINE, "\n  16 bytes into 0xffffd0"),
        ("frees_without_the_tag", HEADLINE, "memory 0x"),
    ] {
        let parts = [headline, place, "112 bytes, tag 0x", ", in use\n", "backtrace:", "frees_for_the_report"];
        let report = assert_reports("n2", "", name, &parts);
        assert!(!report.contains("use after free"), "the object is in use: {report}");
    }
    for machine in ["default", "a53"] {
        let parts = ["free of 0xf", HEADLINE, "\n  nothing is mapped at 0xffff", "backtrace:", "frees_for_the_report"];
        assert_reports(machine, "", "frees_what_went_back", &parts);
    }
}

#[test]
fn an_interrupt_handler_is_checked() {
    let parts = ["tag check fault, on a write", "backtrace:", "--- exception ---", "use after free: 0 bytes into"];
    assert_reports("default", "", "writes_after_a_free_in_a_handler", &parts);
}

#[test]
fn an_asynchronous_failure_is_reported_where_the_thread_is_switched_at_the_latest() {
    for (machine, mode) in [("default", "async"), ("n2", "async"), ("default", "asymm")] {
        let parts = ["asynchronous tag check fault: an access before this point", "where it was noticed:"];
        assert_reports(machine, &format!("heap.tags={mode}"), "writes_after_a_free", &parts);
    }
}

#[test]
fn nothing_is_checked_where_it_is_off() {
    let outcome = outcome("default", "heap.tags=off", "heap_tags::writes_after_a_free");
    assert_eq!(outcome.verdict, Verdict::Passed(1), "{outcome:?}");
}

#[test]
fn what_a_machine_lacks_is_a_warning_and_the_kernel_runs() {
    for (machine, bootargs, warning, shown) in [
        ("a53", "heap.tags=sync", "a CPU has no tags in memory (FEAT_MTE2), so nothing is checked", "not checked"),
        ("n2", "heap.tags=asymm", "a CPU has no asymmetric checks (FEAT_MTE3), so all are synchronous", "synchronous"),
        ("n2", "heap.tags=on", "bad value \"on\": off, sync, async or asymm", "synchronous"),
    ] {
        let machine = machine::named(machine).unwrap();
        let mut session = Session::start(&machine, &built("granule.img"), bootargs, &[]).unwrap();
        let banner = session.prompt().unwrap();
        assert!(banner.contains(warning), "{banner}");
        let features = session.command("features").unwrap();
        assert!(features.contains(&format!("kernel's tags    {shown}")), "{features}");
        assert!(session.command("mem").unwrap().contains(&format!("with tags ({shown})")));
        assert_eq!(session.power_off().unwrap(), Some(0));
    }
}
