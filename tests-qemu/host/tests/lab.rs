//! The lab: with a fix taken away, the test that stands for it must fail, and for the right reason.
//!
//! That the same tests pass with the fix in place is the ordinary run on the target. `lab=wx-leaf` is in
//! `page_tables.rs`.

use granule_host_tests::built;
use granule_runner::judge::{Outcome, Verdict};
use granule_runner::session::{self, Plan};
use granule_runner::{list, machine};

/// Runs one target test on a machine with a fix taken away.
fn with_lab_on(machine: &str, switch: &str, name: &str) -> Outcome {
    let tests = list::read(&built("granule-tests.elf")).unwrap();
    let test = tests.into_iter().find(|test| test.name == name).unwrap_or_else(|| panic!("no test {name}"));
    let plan = Plan {
        machine: machine::named(machine).unwrap(),
        image: built("granule-tests.img"),
        seed: 0,
        bootargs: format!("lab={switch}"),
        extra: Vec::new(),
    };
    let mut outcomes = Vec::new();
    session::run(&[test], |left| session::boot(&plan, left), |_, outcome| outcomes.push(outcome));
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    outcomes.remove(0)
}

/// The same on the four CPUs of `default`.
fn with_lab(switch: &str, name: &str) -> Outcome {
    with_lab_on("default", switch, name)
}

#[track_caller]
fn assert_caught(switch: &str, name: &str, output: &str) {
    assert_is_caught(with_lab(switch, name), switch, name, output);
}

#[track_caller]
fn assert_is_caught(outcome: Outcome, switch: &str, name: &str, output: &str) {
    assert!(matches!(outcome.verdict, Verdict::Failed(_)), "lab={switch} was not caught by {name}: {outcome:?}");
    assert!(outcome.output.contains(output), "{name} printed: {}; wanted: {output}", outcome.output);
}

#[test]
fn without_invalidation_a_read_only_page_is_written() {
    assert_caught("skip-tlbi", "set_memory::read_only_pages_refuse_writes_and_only_they", "the fault: found None");
}

#[test]
fn without_invalidation_an_invalid_page_is_read() {
    assert_caught("skip-tlbi", "set_memory::invalid_pages_fault_and_remember", "the fault: found None");
}

#[test]
fn with_the_alias_left_alone_what_is_read_only_is_written_by_it() {
    assert_caught(
        "no-alias",
        "set_memory::what_is_read_only_refuses_writes_by_its_alias_as_well",
        "the fault: found None",
    );
}

// Of one page, which is the last. Where there are more, QEMU flushes too much to show it, and the model is the witness.
#[test]
fn with_an_invalidation_that_ends_early_the_last_page_is_read() {
    assert_caught("short-tlbi", "set_memory::invalid_pages_fault_and_remember", "the fault: found None");
}

#[test]
fn with_local_invalidation_other_cpus_write_on() {
    let name = "set_memory::other_cpus_refuse_as_soon_as_the_call_returns";
    assert_caught("local-tlbi", name, "all refuse after: found 0, wanted 3");
}

#[test]
fn with_local_invalidation_this_cpu_sees_nothing_wrong() {
    let outcome = with_lab("local-tlbi", "set_memory::read_only_pages_refuse_writes_and_only_they");
    assert!(matches!(outcome.verdict, Verdict::Passed(_)), "the switch does more than it says: {outcome:?}");
}

#[test]
fn with_tables_freed_early_a_walker_reads_their_next_owners_memory() {
    let name = "reclaim::a_table_stays_while_another_cpu_walks_through_it";
    assert_caught("early-table-free", name, "tables that are still there: found");
    assert_caught("early-table-free", name, "walks into somebody else's memory: found 1, wanted 0");
}

// On the machine whose CPUs take turns: the window of the split has a YIELD, so it is caught in each boot, not in one
// of many.
#[test]
fn with_a_split_by_plain_stores_a_neighbours_change_is_lost_each_time() {
    for name in ["a_group_is_split_by_two_owners_at_once", "a_block_is_split_by_two_owners_at_once"] {
        for _ in 0..2 {
            let name = format!("split::hand_over::{name}");
            let outcome = with_lab_on("icount", "plain-split", &name);
            assert_is_caught(outcome, "plain-split", &name, "pages that were not as they must be: found");
        }
    }
}

#[test]
fn without_invalidation_a_copy_on_write_is_not_seen_elsewhere() {
    let name = "copy_on_write::a_copy_is_seen_by_every_cpu";
    assert_caught("stale-cow", name, "after the copy: found 1, wanted 2");
}

#[test]
fn without_the_event_of_an_upgrade_a_mirror_keeps_the_old_permission() {
    let name = "notifier::a_mirror_hears_of_an_upgrade_by_its_event";
    assert_caught("no-upgrade-event", name, "what the mirror has of it: found");
}

#[test]
fn with_an_upgrade_told_before_the_unlock_other_cpus_are_held_up() {
    let name = "notifier::mprotect_and_munmap_come_between_an_upgrade_and_its_event";
    assert_caught("notify-before-unlock", name, "nothing is held while an upgrade is told");
}
