//! The lab: with a fix taken away, the test that stands for it must fail, and for the right reason: in one of many boots,
//! since QEMU's TLB and the host's scheduler decide in each whether the bug is hit.
//!
//! The ordinary run on the target shows that the same tests pass with the fix in place. `lab=wx-leaf` is in
//! `page_tables.rs`.

use granule_host_tests::built;
use granule_host_tests::guest::{outcome, some_boot};
use granule_host_tests::session::Session;
use granule_runner::judge::{Outcome, Verdict};
use granule_runner::machine;

/// Runs one target test on a machine with a fix taken away.
fn with_lab_on(machine: &str, switch: &str, name: &str) -> Outcome {
    outcome(machine, &format!("lab={switch}"), name)
}

/// As [`with_lab_on`], on the four CPUs of `default`.
fn with_lab(switch: &str, name: &str) -> Outcome {
    with_lab_on("default", switch, name)
}

/// The test fails in one of many boots on that machine, and prints all of `outputs`.
#[track_caller]
fn assert_caught_on(machine: &str, switch: &str, name: &str, outputs: &[&str]) {
    let mut last = None;
    let is_caught = some_boot(|| {
        let outcome = last.insert(with_lab_on(machine, switch, name));
        matches!(outcome.verdict, Verdict::Failed(_)) && outputs.iter().all(|output| outcome.output.contains(output))
    });
    assert!(is_caught, "lab={switch} was not caught by {name} in any boot. Wanted: {outputs:?}. The last: {last:?}");
}

/// As [`assert_caught_on`], on the four CPUs of `default`, with one output.
#[track_caller]
fn assert_caught(switch: &str, name: &str, output: &str) {
    assert_caught_on("default", switch, name, &[output]);
}

/// The test fails in this boot.
#[track_caller]
fn assert_is_caught(outcome: &Outcome, switch: &str, name: &str, output: &str) {
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
    assert_caught("local-tlbi", name, "all refuse after: found");
}

#[test]
fn with_local_invalidation_this_cpu_sees_nothing_wrong() {
    let outcome = with_lab("local-tlbi", "set_memory::read_only_pages_refuse_writes_and_only_they");
    assert!(matches!(outcome.verdict, Verdict::Passed(_)), "the switch does more than its claim: {outcome:?}");
}

#[test]
fn with_tables_freed_early_a_walker_reads_their_next_owners_memory() {
    let name = "reclaim::a_table_stays_while_another_cpu_walks_through_it";
    let outputs = ["tables that are still there: found", "walks into memory of another owner: found 1, wanted 0"];
    assert_caught_on("default", "early-table-free", name, &outputs);
}

#[test]
fn with_no_invalidation_before_frames_are_freed_a_tlb_leads_to_them() {
    let name = "vmalloc::lazy::frames_of_a_freed_area_are_no_ones_while_a_tlb_leads_to_them";
    assert_caught("purge-no-flush", name, "CPUs that read it when it is freed, or another's: found (");
}

// On the machine whose CPUs take turns: the window of the split has a YIELD, so it is caught in each boot, not in one
// of many.
#[test]
fn with_a_split_by_plain_stores_a_neighbours_change_is_lost_each_time() {
    for name in ["a_group_is_split_by_two_owners_at_once", "a_block_is_split_by_two_owners_at_once"] {
        for _ in 0..2 {
            let name = format!("split::hand_over::{name}");
            let outcome = with_lab_on("icount", "plain-split", &name);
            assert_is_caught(&outcome, "plain-split", &name, "pages that were not as they must be: found");
        }
    }
}

#[test]
fn a_collapse_without_marks_takes_the_table_that_an_owner_is_in() {
    let name = "split::collapse::a_walk_that_is_under_way_is_waited_for";
    assert_caught("collapse-no-mark", name, "what a walk found in the place of its table: found 2, wanted 1");
}

#[test]
fn with_no_cpu_parked_readers_fault_inside_a_break() {
    let name = "split::readers::readers_of_other_pages_are_parked_for_a_break";
    // The kernel itself may make the read that goes wrong: then it panics.
    let is_caught = some_boot(|| {
        let outcome = with_lab_on("stop", "bbm-no-park", name);
        match outcome.verdict {
            Verdict::Failed(why) => {
                why.contains("the kernel panicked") || outcome.output.contains("reads that went wrong: found")
            }
            _ => false,
        }
    });
    assert!(is_caught, "no read went wrong");
}

#[test]
fn without_invalidation_a_copy_on_write_is_not_seen_elsewhere() {
    let name = "copy_on_write::a_copy_is_seen_by_every_cpu";
    assert_caught("stale-cow", name, "after the copy: found 1, wanted 2");
}

#[test]
fn tags_that_are_not_zeroed_are_those_of_another_page() {
    assert_caught("no-zero-tags", "mte::mappings_and_children_are_checked_as_on_linux", "zero");
}

/// The tests of tag storage, each of which passes on that machine with the fix in place.
#[test]
fn without_what_tag_storage_is_reserved_by_its_tests_fail() {
    const NAME: &str = "tag_storage::";
    for (switch, name, output) in [
        (
            "reserve-at-mprotect",
            "a_thousand_pages_wait_and_one_that_is_touched_reserves_one_block",
            "pages that wait: found 0, wanted 1000",
        ),
        (
            "no-replay-limit",
            "occupied::a_page_whose_storage_is_pinned_is_replayed_and_then_moves",
            "the page has moved before many more",
        ),
        (
            "skip-recheck",
            "occupied::a_page_that_is_discarded_while_its_storage_is_reserved_stays_so",
            "what the page holds: found 7, wanted 0",
        ),
    ] {
        let name = format!("{NAME}{name}");
        assert_caught_on("mte", switch, &name, &[output]);
    }
}

#[test]
fn without_a_marker_a_write_to_what_was_protected_is_missed() {
    let reported = "found None, wanted Some(PageFault";
    let name = "userfault::a_store_to_shared_memory_is_reported_though_its_page_was_discarded";
    let outputs =
        ["a store to it, mapped again", "a store to what is not mapped"].map(|it| format!("{it}: {reported}"));
    assert_caught_on("default", "drop-marker-always", name, &outputs.each_ref().map(String::as_str));
    let name = "userfault::a_store_to_a_file_is_reported_though_its_page_was_reclaimed";
    assert_caught("no-marker-on-reclaim", name, &format!("a store: {reported}"));
}

#[test]
fn with_a_marker_of_anonymous_memory_a_write_to_a_new_page_is_reported() {
    let name = "userfault::a_store_to_a_new_anonymous_page_is_not_reported";
    assert_caught("marker-on-anon", name, "a store to the new page: found Some(PageFault");
}

#[test]
fn without_the_event_of_an_upgrade_a_mirror_keeps_the_old_permission() {
    let name = "notifier::a_mirror_follows_an_upgrade_by_its_event";
    assert_caught("no-upgrade-event", name, "what the mirror has of it: found");
}

#[test]
fn an_upgrade_event_before_the_unlock_holds_up_other_cpus() {
    let name = "notifier::mprotect_and_munmap_come_between_an_upgrade_and_its_event";
    assert_caught("notify-before-unlock", name, "nothing is held during an upgrade event");
}

const AT_ONCE: &str = "smmu::a_device_writes_as_soon_as_the_cpu_could";
const COPY: &str = "smmu::changes::a_device_sees_the_copy_of_a_page_after_a_fork";

#[test]
fn an_smmu_that_is_not_notified_keeps_old_translations() {
    for (name, output) in [
        (AT_ONCE, "the device writes, at once: found Err(Request(TooManyFaults(128))), wanted Ok(1)"),
        (COPY, "the device reads the copy: found Ok(1), wanted Ok(2)"),
        ("smmu::changes::a_device_does_not_write_what_became_read_only", "it does not write: found Ok(1)"),
        ("smmu::changes::a_device_does_not_reach_what_was_unmapped", "gone: found Ok(1)"),
        ("smmu::changes::a_device_finds_zeros_where_pages_were_given_up", "zeros: found Ok(1), wanted Ok(0)"),
        ("smmu::changes::a_device_finds_zeros_where_a_hole_was_punched", "zeros: found Ok(1), wanted Ok(0)"),
        (
            "smmu::migrate::a_device_follows_a_page_that_migrates",
            "the device reads what was stored there: found Ok(4096), wanted Ok(2)",
        ),
        (
            "smmu::migrate::a_device_follows_an_objects_page_that_migrates",
            "the device reads what was stored there: found Ok(4096), wanted Ok(2)",
        ),
        (
            "smmu::migrate::a_device_follows_a_block_that_migrates",
            "the device reads what was stored there: found Ok(4096), wanted Ok(2)",
        ),
        (
            "smmu::migrate::a_device_follows_an_objects_block_that_migrates",
            "the device reads what was stored there: found Ok(4096), wanted Ok(2)",
        ),
        ("smmu::migrate::a_device_writes_while_its_pages_migrate", "what is there: found"),
        ("smmu::changes::a_device_does_not_reach_a_guard", "it does not read: found Ok(1), wanted Err("),
        ("smmu::changes::a_device_does_not_reach_what_its_file_has_lost", "behind the end: found Ok(2), wanted"),
        (
            "smmu::blocks::a_device_sees_the_copy_of_a_block_after_a_fork",
            "the device reads the copy of the block: found Ok(1), wanted Ok(2)",
        ),
        ("smmu::blocks::a_device_meets_a_block_that_is_split", "it does not write there: found Ok(1), wanted Err("),
        ("smmu::blocks::a_device_does_not_reach_a_block_that_was_taken_away", "it does not write: found Ok(1)"),
        ("smmu::blocks::a_device_that_stores_while_a_block_goes_writes_to_nothing_else", "nothing was written"),
        (
            "smmu::blocks::a_device_and_processes_share_a_block_of_a_file",
            "zeros, where a hole is: found Ok(7), wanted Ok(0)",
        ),
        ("smmu::blocks::a_device_stores_to_no_block_that_its_file_has_lost", "not to what the file had"),
        (
            "smmu::registers::a_device_writes_to_registers_as_soon_as_the_cpu_could",
            "it writes to registers, at once: found Err(Request(TooManyFaults(128))), wanted Ok(1)",
        ),
        (
            "smmu::registers::a_device_does_not_reach_registers_that_were_revoked",
            "registers that are gone: found Ok(1)",
        ),
        ("smmu::random::random_changes_and_accesses_agree", "accesses that were not what they must be: found"),
    ] {
        assert_caught("no-secondary-tlb", name, output);
    }
}

/// Either a frame that is free is written, or a program finds what was never its own.
#[test]
fn a_device_that_is_not_notified_is_seen_among_all_that_happens_at_once() {
    assert_caught_on("default", "no-secondary-tlb", "storm::all_that_changes_translations_at_once", &[]);
}

/// At the end of a batch the space is not known any more, and the thread that ends it has none.
#[test]
fn a_device_is_not_notified_at_the_end_of_a_batch() {
    let name = "smmu::changes::a_device_reads_a_file_whose_page_was_given_back";
    assert_caught("notify-at-batch-flush", name, "from a page of its own: found false, wanted true");
}

/// A program that finds no memory ends one: its space is there, and is another.
#[test]
fn a_device_is_not_notified_where_a_program_ends_a_batch() {
    let name = "smmu::shortage::a_device_reads_a_file_whose_page_a_program_took";
    let others = 0x5ec2_e7da_7a00_0002_u64;
    let read = format!("the device reads the file: found Ok({others}), wanted Ok(");
    let outputs = [read.as_str(), "a space without the page is notified: found 1, wanted 0"];
    assert_caught_on("default", "notify-at-batch-flush", name, &outputs);
}

#[test]
fn without_the_event_of_an_upgrade_an_smmu_that_goes_by_events_keeps_the_old_permission() {
    let output = "the device writes, at once: found Err(Request(TooManyFaults(128))), wanted Ok(1)";
    assert_caught("no-upgrade-event smmu.notify=events", AT_ONCE, output);
    let outcome = with_lab("no-upgrade-event", AT_ONCE);
    assert!(matches!(outcome.verdict, Verdict::Passed(_)), "notified with the TLBs it needs no event: {outcome:?}");
}

#[test]
fn an_event_at_the_end_only_makes_a_device_read_the_old_page() {
    let name = "smmu::changes::a_device_does_not_see_the_old_page_beside_the_new_one";
    let output = "what the device read of what was stored in between: found 1, wanted 3";
    assert_caught("start-end-only smmu.notify=events", name, output);
}

#[test]
fn with_faults_called_spurious_a_clean_page_is_never_written_by_a_device() {
    let name = "smmu::a_clean_page_that_may_be_written_is_written_by_a_device";
    let output = "the first retry: found Err(Request(TooManyFaults(128))), wanted Ok(2)";
    assert_caught("device-dbm-spurious", name, output);
}

#[test]
fn with_the_hardwares_dirt_trusted_a_device_never_writes_what_the_hardware_made_writable() {
    let name = "smmu::dirty::what_the_hardware_made_writable_is_written_by_a_device";
    let output = "the first retry: found Err(Request(TooManyFaults(128))), wanted Ok(2)";
    for switch in ["trust-hw-dirty", "trust-hw-dirty smmu.notify=events", "device-dbm-spurious"] {
        assert_caught(switch, name, output);
    }
}

#[test]
fn an_invalidation_of_another_asid_keeps_old_translations() {
    assert_caught("wrong-asid", COPY, "the device reads the copy: found Ok(1), wanted Ok(2)");
}

#[test]
fn bound_without_telling_or_flushing_a_device_sees_another_space() {
    let name = "smmu::changes::a_reused_asid_has_no_translation_of_its_last_space";
    // The data goes to the page that the first space has there.
    assert_caught("bind-without-flush", name, "the other space: found Ok(0), wanted Ok(2)");
    let name = "smmu::changes::a_device_sees_the_space_that_it_was_bound_to_last";
    // By what the SMMU has of the disk's own tables, the disk faults for ever or reads a ring that is none.
    let outcome = with_lab("no-cfgi", name);
    let faults = "the device reads it: found Err(Request(TooManyFaults(128))), wanted Ok(1)";
    let hangs = "the other space: found Err(Request(TimedOut)), wanted Ok(2)";
    let shown = if outcome.output.contains(hangs) { hangs } else { faults };
    assert_is_caught(&outcome, "no-cfgi", name, shown);
}

#[test]
fn with_a_device_that_is_believed_data_is_lost_in_silence() {
    let name = "smmu::a_clean_page_that_may_be_written_is_written_by_a_device";
    assert_caught("trust-completion", name, "the first retry: found Ok(1), wanted Ok(2)");
    // After a fault that is served while the disk is slow the data arrives after all; after one that is not served it
    // does not.
    assert_caught("no-secondary-tlb,trust-completion", AT_ONCE, "it has arrived: found 8, wanted 4096");
}

/// A kernel in whose timer interrupt a bug is planted, and what its report must have, in this order.
#[track_caller]
fn assert_guarded_heap_reports(switch: &str, parts: &[&str]) {
    let bootargs = |switch: &str| format!("kfence.sample_interval=20 lab={switch}");
    let machine = machine::named("default").unwrap();
    let mut session = Session::start(&machine, &built("granule.img"), &bootargs(switch), &[]).unwrap();
    for part in parts {
        session.wait_for(part).unwrap();
    }
    // Without the switch the same boot comes to its prompt, and continues.
    let mut session = Session::start(&machine, &built("granule.img"), &bootargs(""), &[]).unwrap();
    session.prompt().unwrap();
    assert!(session.command("stats").unwrap().contains(" of 63 objects in use"));
    assert_eq!(session.power_off().unwrap(), Some(0));
}

#[test]
fn a_use_after_free_that_is_planted_in_a_handler_is_reported() {
    let parts = [
        "guarded heap: use-after-free: ",
        "on a read of 0xffff",
        "backtrace:",
        "guarded::planted::reads+",
        "guarded heap: 0 bytes into object ",
        ", 64 bytes, freed",
        "allocated by:",
        "guarded::planted::allocates+",
        "freed by:",
        "guarded::planted::frees+",
    ];
    assert_guarded_heap_reports("kfence-uaf", &parts);
}

#[test]
fn an_access_out_of_bounds_that_is_planted_in_a_handler_is_reported() {
    let parts = [
        "guarded heap: out-of-bounds: ",
        "on a read of 0xffff",
        "backtrace:",
        "guarded::planted::reads+",
        "guarded heap: 0 bytes behind object ",
        ", 64 bytes, in use",
        "allocated by:",
        "guarded::planted::allocates+",
    ];
    assert_guarded_heap_reports("kfence-oob", &parts);
}
