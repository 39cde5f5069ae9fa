//! Reports of the guarded heap, of accesses and of frees, and its boot arguments.

use granule_host_tests::built;
use granule_host_tests::guest::assert_panics;
use granule_host_tests::session::Session;
use granule_runner::machine;

/// The output of a guest's test of the module `guarded_heap`, which must have ended by one panic with all of `parts` in
/// its report, in this order.
///
/// The interval is longer than the test: it opens the gate by hand.
#[track_caller]
fn assert_reports(machine: &str, name: &str, parts: &[&str]) -> String {
    assert_reports_with("kfence.sample_interval=100000", machine, name, parts)
}

#[track_caller]
fn assert_reports_with(bootargs: &str, machine: &str, name: &str, parts: &[&str]) -> String {
    assert_panics(machine, bootargs, &format!("guarded_heap::{name}"), parts)
}

#[test]
fn a_use_after_free_in_a_handler_is_reported_with_all_three_backtraces() {
    let parts = [
        "guarded heap: use-after-free: ",
        "on a write to 0xffff",
        "backtrace:",
        "--- exception ---",
        "guarded heap: 3 bytes into object ",
        ", 100 bytes, freed\n  allocated by:",
        "guarded_heap::allocates_for_the_report+",
        "freed by:",
        "guarded_heap::frees_for_the_report+",
        "guarded_heap::writes_after_a_free_in_a_handler+",
    ];
    for machine in ["default", "a72"] {
        assert_reports(machine, "writes_after_a_free_in_a_handler", &parts);
    }
}

#[test]
fn a_write_after_free_to_the_object_in_the_gate_is_reported_with_its_last_user() {
    let parts = [
        "guarded heap: use-after-free: the next allocation of a free object finds a write to 0xffff",
        "guarded heap: 3 bytes into object 0 at 0xffff",
        ", 100 bytes, freed\n  allocated by:",
        "guarded_heap::allocates_for_the_report+",
        "freed by:",
        "guarded_heap::frees_for_the_report+",
        "guarded_heap::writes_to_a_freed_object_in_the_gate+",
        "backtrace:",
        "guarded_heap::allocates_for_the_report+",
    ];
    let bootargs = "kfence.sample_interval=100000 kfence.num_objects=1";
    assert_reports_with(bootargs, "default", "writes_to_a_freed_object_in_the_gate", &parts);
}

#[test]
fn an_access_out_of_bounds_names_the_object_in_use() {
    let parts = [
        "guarded heap: out-of-bounds: ",
        "on a read of 0xffff",
        "backtrace:",
        "guarded heap: 2 bytes before object ",
        ", 100 bytes, in use\n  allocated by:",
        "guarded_heap::allocates_for_the_report+",
    ];
    let report = assert_reports("default", "reads_in_front_of_an_object", &parts);
    assert!(!report.contains("freed by:"), "{report}");
}

#[test]
fn a_bad_free_is_reported() {
    let parts = [
        "guarded heap: free of 0xffff",
        ", 100 bytes, which does not match an object in use",
        "guarded heap: 0 bytes into object ",
        ", freed\n",
        "freed by:",
        "guarded_heap::frees_for_the_report+",
        "backtrace:",
        "guarded_heap::frees_an_object_twice+",
    ];
    assert_reports("default", "frees_an_object_twice", &parts);
    let parts = [
        "guarded heap: free of an object near which memory was overwritten, at 0xffff",
        "guarded heap: ",
        ", 99 bytes, freed\n",
        "freed by:",
        "backtrace:",
        "guarded_heap::frees_for_the_report+",
    ];
    assert_reports("default", "writes_beside_an_object_in_its_page", &parts);
}

#[test]
fn the_boot_arguments_are_checked_and_stats_has_a_line() {
    for (bootargs, warning, line) in [
        ("", "", "guarded heap: 0 of 0 objects in use, 0 allocations sampled"),
        ("kfence.sample_interval=0", "", "guarded heap: 0 of 0 objects in use"),
        ("kfence.sample_interval=often", "kfence.sample_interval: bad value \"often\"", "guarded heap: 0 of 0 objects"),
        ("kfence.sample_interval=50", "", " of 63 objects in use, "),
        (
            "kfence.sample_interval=50 kfence.num_objects=4095 split=refuse rodata=noalias",
            "",
            " of 4095 objects in use, ",
        ),
        (
            "kfence.sample_interval=50 kfence.num_objects=9999 debug_pagealloc=on",
            "kfence.num_objects: bad value \"9999\": 0 to 4095",
            " of 63 objects in use, ",
        ),
    ] {
        let machine = machine::named("default").unwrap();
        let mut session = Session::start(&machine, &built("granule.img"), bootargs, &[]).unwrap();
        let banner = session.prompt().unwrap();
        match warning {
            "" => assert!(!banner.contains("boot argument kfence."), "{bootargs}: {banner}"),
            _ => assert!(banner.contains(&format!("boot argument {warning}")), "{banner}"),
        }
        let stats = session.command("stats").unwrap();
        assert!(stats.contains(line), "{bootargs}: {stats}");
        assert_eq!(session.power_off().unwrap(), Some(0));
    }
}
