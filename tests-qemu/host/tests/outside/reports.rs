//! How the kernel ends: guests that take a fault without an answer, or panic, and the report that each must leave.

use std::fs;

use granule_host_tests::guest::{assert_in_order, assert_panics, outcome_of, plan};
use granule_host_tests::own_file;
use granule_runner::session::Plan;

/// Runs the guest `trap::{name}` and returns what it printed. It must have ended by a panic, and have reported it
/// once.
#[track_caller]
fn report(name: &str) -> String {
    assert_panics("default", "", &format!("trap::{name}"), &[])
}

#[test]
fn a_stack_overflow_is_reported_as_such() {
    let report = report("overflows_its_stack");
    assert_in_order(
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
    // It may have been idle, or at the start of a thread.
    let frame_before = "--- exception ---\n  0xffff";
    assert_in_order(&report, &["stack overflow: SP 0x", "trap::recurse+", "handle_irq+", frame_before]);
}

#[test]
fn a_write_to_a_constant_shows_the_leaf_that_refused_it() {
    let report = report("writes_to_a_constant");
    assert_in_order(
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
    assert_in_order(&report, &["on an instruction fetch from 0x", "backtrace:", "trap::calls_where_no_code_is+"]);
}

#[test]
fn panics_on_all_cpus_leave_one_report() {
    assert_in_order(&report("panics_on_all_cpus_at_once"), &["kernel panic on CPU", "backtrace:", "panic_fmt"]);
}

#[test]
fn a_panic_with_the_console_locked_is_reported() {
    let report = report("panics_while_it_prints");
    assert_in_order(&report, &["while the console's lock is held", "backtrace:", "trap::panics_while_it_prints+"]);
}

#[test]
fn a_panic_inside_a_panic_ends_too() {
    assert_in_order(
        &report("panics_while_it_panics"),
        &["kernel panic, and then while it was reported: while the console's"],
    );
}

/// The header's word at offset 40 is the slide: an image that has one stays there.
#[test]
fn a_slid_kernel_names_its_functions() {
    let slide: u64 = 300 << 21;
    let plan = plan("default", "");
    let mut image = fs::read(&plan.image).unwrap();
    image[40..48].copy_from_slice(&slide.to_le_bytes());
    let slid = own_file(env!("CARGO_TARGET_TMPDIR"), "slid.img");
    fs::write(&slid, image).unwrap();
    let plan = Plan { image: slid.clone(), ..plan };
    let report = outcome_of(&plan, "trap::writes_to_a_constant").output;
    fs::remove_file(slid).unwrap();
    assert_in_order(&report, &["PC", "0xffff8000a5", "trap::writes_to_a_constant+", "kernel_main+"]);
    assert!(!report.contains("0xffff80008"), "{report}");
}
