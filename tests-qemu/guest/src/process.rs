//! Processes: the programs of the initrd that test the kernel from EL0, and what is left of them.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use granule::chip::timer::Deadline;
use granule::devices::edu::{Edu, edu};
use granule::devices::slot::Driver;
use granule::iommu::DmaAddress;
use granule::kernel;
use granule::linux::errno::Errno;
use granule::linux::file::initrd;
use granule::linux::process;
use granule::linux::process::signal::Signal;
use granule::linux::process::stack::Words;
use granule::linux::process::status::{ExecError, Life, PathError, ProcessEnd, Summary};
use granule::linux::process::tree::PROCESSES;
use granule::mm::layout;
use granule::mm::notifier::{Event, Range, Subscriber, Subscription};
use granule::mm::space::SpaceRef;
use granule::sched::{self, sleep_until};
use granule::smp::{self, this_cpu};
use granule_arch::addr::VirtAddr;
use granule_arch::features::Pan;

use crate::harness::{TakenFrames, Test, frames_in_use, patience, target_test, wait_until};

fn words(line: &str) -> Result<Words, Errno> {
    let mut words = Words::new();
    line.split_ascii_whitespace().try_for_each(|word| words.argument(word.as_bytes()))?;
    Ok(words)
}

pub(crate) fn start(line: &str) -> Result<u32, ExecError> {
    process::start(line.split_ascii_whitespace().next().unwrap_or_default(), words(line)?)
}

/// Sends SIGTERM.
pub(crate) fn terminate(id: u32) -> Result<(), Errno> {
    process::kill(id, Signal::new(15).ok_or(Errno::EINVAL)?)
}

/// Waits until the threads of processes that have ended are gone as well: a process has ended before its last thread
/// has left its kernel stack.
pub(crate) fn settle(t: &mut Test, threads: usize) {
    wait_until(|| sched::thread_count() == threads);
    t.equal("threads", sched::thread_count(), threads);
}

/// Runs a program to its end; how it ended.
fn run(t: &mut Test, line: &str) -> Option<ProcessEnd> {
    let threads = sched::thread_count();
    let id = t.ok(line, start(line))?;
    let end = process::wait(id);
    settle(t, threads);
    end
}

/// Runs a program, which must exit with 0.
#[track_caller]
pub(crate) fn succeeds(t: &mut Test, line: &str) {
    let end = run(t, line);
    t.equal("how it ended", end, Some(ProcessEnd::Exited(0)));
}

target_test!(processes_live_and_die_as_on_linux, limit(60));
fn processes_live_and_die_as_on_linux(t: &mut Test) {
    succeeds(t, "lifecycle");
}

target_test!(threads_wait_for_each_other_and_keep_their_registers, limit(60));
fn threads_wait_for_each_other_and_keep_their_registers(t: &mut Test) {
    let served = || {
        let mut all = 0;
        smp::for_each(|cpu| all += cpu.calls_served());
        all
    };
    let before = served();
    succeeds(t, "threads");
    // Its barriers everywhere: on each CPU but the one that it runs on.
    let least = 100 * (smp::online().iter().count() as u64 - 1);
    t.check("barriers on the other CPUs", served() - before >= least);
}

target_test!(signals_come_as_on_linux, limit(60));
fn signals_come_as_on_linux(t: &mut Test) {
    succeeds(t, "signals");
}

target_test!(tasks_share_and_have_of_their_own_what_they_do_on_linux, limit(60));
fn tasks_share_and_have_of_their_own_what_they_do_on_linux(t: &mut Test) {
    succeeds(t, "tasks");
}

target_test!(processes_stop_and_continue_as_on_linux, limit(60));
fn processes_stop_and_continue_as_on_linux(t: &mut Test) {
    leaves_nothing(t, "stops");
}

target_test!(threads_that_never_ran_leave_nothing, needs("smp"), limit(60));
fn threads_that_never_ran_leave_nothing(t: &mut Test) {
    leaves_nothing(t, "tasks losers 8");
}

target_test!(threads_that_never_ran_leave_nothing_for_long, needs("smp"), limit(600), long());
fn threads_that_never_ran_leave_nothing_for_long(t: &mut Test) {
    leaves_nothing(t, "tasks losers 320");
}

/// A program ends well, and so many frames are in use as before.
fn leaves_nothing(t: &mut Test, line: &str) {
    let before = frames_in_use();
    succeeds(t, line);
    t.equal("frames in use", frames_in_use(), before);
}

target_test!(numbers_begin_again, limit(600), long());
fn numbers_begin_again(t: &mut Test) {
    succeeds(t, "tasks numbers 70000");
}

target_test!(a_program_goes_on_while_all_processes_are_locked, needs("smp"), limit(60));
fn a_program_goes_on_while_all_processes_are_locked(t: &mut Test) {
    const ROUNDS: u64 = 100;
    let threads = sched::thread_count();
    let Some(id) = t.ok("the program", start("tasks handlers")) else { return };
    let Some(space) = t.ok("its space", process::space_of(id).ok_or("none")) else { return };
    let patience = patience();
    // Where it counts its rounds, once it does.
    let count = loop {
        sleep_until(Deadline::after(Duration::from_millis(1)));
        let page = space.tables().translate(ASKED).map(|found| layout::linear(found.physical).as_ptr::<u64>());
        // SAFETY: the page is the program's, which lives until it is killed below, and so does not go away.
        let rounds = move || page.map_or(0, |page| unsafe { page.read_volatile() });
        if rounds() > 0 || patience.has_passed() {
            break rounds;
        }
    };
    let first = count();
    let processes = PROCESSES.lock();
    // It may have to move to another CPU first.
    while count() < first + ROUNDS && !patience.has_passed() {
        core::hint::spin_loop();
    }
    let last = count();
    drop(processes);
    t.check("it counts", first > 0);
    t.check("faults, handlers, masks, signals to itself and calls for memory go on", last >= first + ROUNDS);
    t.ok("a signal", process::kill(id, Signal::KILL));
    t.equal("how it ended", process::wait(id), Some(ProcessEnd::Killed(Signal::KILL)));
    drop(space);
    settle(t, threads);
}

target_test!(a_signal_stops_calls_that_go_on_for_long, needs("smp"), limit(60));
fn a_signal_stops_calls_that_go_on_for_long(t: &mut Test) {
    succeeds(t, "signals long");
}

/// Where `lifecycle ask` has the kernel write, and `tasks handlers` counts.
const ASKED: VirtAddr = VirtAddr(0x7000_0000_0000);

/// Makes a page read-only again as soon as a fault has made it writable: no store to it ever succeeds.
struct TakesBack {
    space: SpaceRef,
    taken: AtomicU32,
    /// Stores to a copy, as a child lived: they succeed.
    copied: AtomicU32,
}

impl Subscriber for TakesBack {
    fn invalidate_range_end(&self, range: &Range) {
        match range.event {
            Event::ProtectionUpgrade if range.start == ASKED => {
                self.taken.fetch_add(1, Ordering::Relaxed);
                // A child that exits at once. No lock of the space is held during an upgrade event.
                drop(self.space.fork(this_cpu()));
            }
            Event::Clear if range.start == ASKED => {
                self.copied.fetch_add(1, Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

target_test!(an_access_of_the_kernel_that_never_ends_can_be_killed, needs("smp"), limit(60));
fn an_access_of_the_kernel_that_never_ends_can_be_killed(t: &mut Test) {
    let threads = sched::thread_count();
    // SIGKILL, and SIGTERM, for which the program has set no action.
    for signal in [9, 15].into_iter().filter_map(Signal::new) {
        let Some(id) = t.ok("the program", start("lifecycle ask")) else { return };
        let Some(space) = t.ok("its space", process::space_of(id).ok_or("none")) else { return };
        let takes_back = TakesBack { space: space.clone(), taken: AtomicU32::new(0), copied: AtomicU32::new(0) };
        let Some(joined) = t.ok("a subscriber", Subscription::new(space, takes_back, 0)) else { return };
        let taken = || joined.taken.load(Ordering::Relaxed);
        let patience = patience();
        let (mut begun, mut copied) = (0, 0);
        while taken() < begun + 100 && !patience.has_passed() {
            // A child of this thread may live while there is a store, which then is the last one that is refused.
            let now = joined.copied.load(Ordering::Relaxed);
            if taken() == 0 || copied != now {
                copied = now;
                drop(joined.space.fork(this_cpu()));
                begun = taken();
            }
            sleep_until(Deadline::after(Duration::from_millis(1)));
        }
        t.check("it is at it", taken() >= begun + 100);
        t.ok("a signal", process::kill(id, signal));
        t.equal("how it ended", process::wait(id), Some(ProcessEnd::Killed(signal)));
    }
    settle(t, threads);
}

target_test!(calls_answer_and_refuse_as_on_linux, limit(60));
fn calls_answer_and_refuse_as_on_linux(t: &mut Test) {
    succeeds(t, "calls");
}

target_test!(edges_of_calls_are_where_linux_has_them, limit(60));
fn edges_of_calls_are_where_linux_has_them(t: &mut Test) {
    succeeds(t, "answers");
}

target_test!(files_are_opened_read_and_refused_as_on_linux, limit(60));
fn files_are_opened_read_and_refused_as_on_linux(t: &mut Test) {
    succeeds(t, "files");
}

target_test!(names_of_files_are_made_moved_and_removed_as_on_linux, limit(120));
fn names_of_files_are_made_moved_and_removed_as_on_linux(t: &mut Test) {
    succeeds(t, "names");
}

target_test!(transfers_between_files_answer_as_on_linux, limit(60));
fn transfers_between_files_answer_as_on_linux(t: &mut Test) {
    succeeds(t, "transfers");
}

target_test!(pipes_counters_and_polls_answer_as_on_linux, needs("smp"), limit(60));
fn pipes_counters_and_polls_answer_as_on_linux(t: &mut Test) {
    succeeds(t, "polls");
}

target_test!(epoll_sets_answer_as_on_linux, needs("smp"), limit(60));
fn epoll_sets_answer_as_on_linux(t: &mut Test) {
    succeeds(t, "epoll");
}

target_test!(futexes_of_several_words_answer_as_on_linux, needs("smp"), limit(60));
fn futexes_of_several_words_answer_as_on_linux(t: &mut Test) {
    succeeds(t, "futexes");
}

target_test!(signals_that_are_read_answer_as_on_linux, needs("smp"), limit(60));
fn signals_that_are_read_answer_as_on_linux(t: &mut Test) {
    succeeds(t, "signalfd");
}

target_test!(threads_run_on_their_cpus_as_on_linux, needs("smp"), limit(60));
fn threads_run_on_their_cpus_as_on_linux(t: &mut Test) {
    succeeds(t, "affinity");
}

target_test!(processes_read_others_and_leave_marks_as_on_linux, needs("smp"), limit(60));
fn processes_read_others_and_leave_marks_as_on_linux(t: &mut Test) {
    succeeds(t, "remote");
}

target_test!(memory_of_processes_is_a_file_as_on_linux, needs("smp"), limit(60));
fn memory_of_processes_is_a_file_as_on_linux(t: &mut Test) {
    succeeds(t, "peek");
}

target_test!(a_process_shows_its_areas_as_on_linux, needs("smp"), limit(60));
fn a_process_shows_its_areas_as_on_linux(t: &mut Test) {
    succeeds(t, "maps");
}

target_test!(a_process_shows_its_pages_limits_and_state_as_on_linux, needs("smp"), limit(60));
fn a_process_shows_its_pages_limits_and_state_as_on_linux(t: &mut Test) {
    succeeds(t, "accounts");
}

target_test!(faults_are_served_by_a_pager_as_on_linux, needs("smp"), limit(60));
fn faults_are_served_by_a_pager_as_on_linux(t: &mut Test) {
    succeeds(t, "userfault");
}

target_test!(pages_that_an_object_has_are_mapped_by_a_pager_as_on_linux, needs("smp"), limit(60));
fn pages_that_an_object_has_are_mapped_by_a_pager_as_on_linux(t: &mut Test) {
    succeeds(t, "minor");
}

target_test!(pages_are_moved_by_a_pager_as_on_linux, needs("smp"), limit(60));
fn pages_are_moved_by_a_pager_as_on_linux(t: &mut Test) {
    succeeds(t, "moved");
}

target_test!(a_scan_finds_what_was_written_as_on_linux, needs("smp"), limit(60));
fn a_scan_finds_what_was_written_as_on_linux(t: &mut Test) {
    succeeds(t, "scan");
}

target_test!(a_pager_snapshots_a_program_that_goes_on_writing, needs("smp"), limit(60));
fn a_pager_snapshots_a_program_that_goes_on_writing(t: &mut Test) {
    succeeds(t, "snapshot-demo");
}

target_test!(memory_files_hold_and_lose_what_they_do_on_linux, limit(60));
fn memory_files_hold_and_lose_what_they_do_on_linux(t: &mut Test) {
    succeeds(t, "memfd");
}

target_test!(pages_of_a_file_are_taken_away_while_others_store_to_them, limit(60));
fn pages_of_a_file_are_taken_away_while_others_store_to_them(t: &mut Test) {
    succeeds(t, "memfd race");
}

target_test!(advice_about_memory_is_taken_as_on_linux, limit(60));
fn advice_about_memory_is_taken_as_on_linux(t: &mut Test) {
    succeeds(t, "advice");
}

target_test!(guards_are_made_while_others_populate_the_pages, limit(60));
fn guards_are_made_while_others_populate_the_pages(t: &mut Test) {
    succeeds(t, "advice race");
}

target_test!(mappings_move_as_on_linux, limit(60));
fn mappings_move_as_on_linux(t: &mut Test) {
    succeeds(t, "remap");
}

target_test!(mappings_of_a_file_move_while_others_truncate_it, limit(60));
fn mappings_of_a_file_move_while_others_truncate_it(t: &mut Test) {
    succeeds(t, "remap race");
}

target_test!(blocks_are_brought_changed_and_split_as_on_linux, limit(60));
fn blocks_are_brought_changed_and_split_as_on_linux(t: &mut Test) {
    succeeds(t, "huge");
}

target_test!(pages_become_blocks_as_on_linux, limit(60));
fn pages_become_blocks_as_on_linux(t: &mut Test) {
    succeeds(t, "collapse");
}

target_test!(threads_store_to_pages_that_become_blocks, limit(60));
fn threads_store_to_pages_that_become_blocks(t: &mut Test) {
    succeeds(t, "collapse race");
}

target_test!(blocks_of_files_are_shared_changed_and_split_as_on_linux, limit(60));
fn blocks_of_files_are_shared_changed_and_split_as_on_linux(t: &mut Test) {
    succeeds(t, "huge shared");
}

target_test!(threads_change_pages_of_a_block_while_others_store_to_it, limit(60));
fn threads_change_pages_of_a_block_while_others_store_to_it(t: &mut Test) {
    succeeds(t, "huge race");
}

target_test!(a_process_that_has_ended_has_no_files, limit(30));
fn a_process_that_has_ended_has_no_files(t: &mut Test) {
    let tables =
        || process::pools().iter().find(|(name, _)| *name == "tables of descriptors").map(|(_, pool)| pool.objects);
    t.equal("tables", tables(), Some(0));
    let threads = sched::thread_count();
    // Its child has a table of its own, and its status is not collected.
    let Some(id) = t.ok("started", start("files zombie")) else { return };
    let mut has_ended = false;
    wait_until(|| {
        process::for_each(&mut |summary| has_ended |= summary.parent == id && matches!(summary.life, Life::Ended(_)));
        has_ended
    });
    t.check("its child has ended", has_ended);
    t.equal("tables", tables(), Some(1));
    t.ok("a signal", process::kill(id, Signal::KILL));
    t.equal("how it ended", process::wait(id), Some(ProcessEnd::Killed(Signal::KILL)));
    settle(t, threads);
}

target_test!(argument_lists_may_be_as_long_as_on_linux, limit(60));
fn argument_lists_may_be_as_long_as_on_linux(t: &mut Test) {
    succeeds(t, "exec");
}

target_test!(signal_frames_tell_and_restore_what_linux_does, limit(60));
fn signal_frames_tell_and_restore_what_linux_does(t: &mut Test) {
    succeeds(t, "frames");
}

target_test!(calls_for_memory_answer_as_on_linux, limit(60));
fn calls_for_memory_answer_as_on_linux(t: &mut Test) {
    let has_execute_only = kernel().features().cpus.pan() == Pan::Epan;
    succeeds(t, if has_execute_only { "mappings execute-only" } else { "mappings" });
}

target_test!(mmap_refuses_in_linuxs_order, limit(60));
fn mmap_refuses_in_linuxs_order(t: &mut Test) {
    succeeds(t, "refusals");
}

target_test!(what_a_program_sets_for_its_memory_holds_as_on_linux, limit(60));
fn what_a_program_sets_for_its_memory_holds_as_on_linux(t: &mut Test) {
    succeeds(t, "settings");
}

target_test!(branches_to_guarded_pages_end_at_landing_pads, limit(60));
fn branches_to_guarded_pages_end_at_landing_pads(t: &mut Test) {
    succeeds(t, if kernel().features().cpus.bti() { "bti exec" } else { "bti without" });
}

target_test!(policies_for_nodes_are_kept_as_on_linux, limit(60));
fn policies_for_nodes_are_kept_as_on_linux(t: &mut Test) {
    succeeds(t, "nodes");
}

target_test!(files_that_refer_to_a_process_answer_as_on_linux, limit(60));
fn files_that_refer_to_a_process_answer_as_on_linux(t: &mut Test) {
    succeeds(t, "pidfds");
}

target_test!(locks_of_files_are_linuxs, limit(60));
fn locks_of_files_are_linuxs(t: &mut Test) {
    succeeds(t, "locks");
}

target_test!(timers_send_signals_as_on_linux, limit(60));
fn timers_send_signals_as_on_linux(t: &mut Test) {
    succeeds(t, "timers");
}

target_test!(sequences_of_a_thread_begin_anew_as_on_linux, limit(60));
fn sequences_of_a_thread_begin_anew_as_on_linux(t: &mut Test) {
    succeeds(t, "rseq");
}

target_test!(the_top_byte_of_addresses_is_ignored_as_on_linux);
fn the_top_byte_of_addresses_is_ignored_as_on_linux(t: &mut Test) {
    succeeds(t, "tags");
}

target_test!(a_program_reads_no_system_register_but_those_that_are_meant_for_it, limit(60));
fn a_program_reads_no_system_register_but_those_that_are_meant_for_it(t: &mut Test) {
    succeeds(t, "sysregs");
}

target_test!(a_program_may_lie_anywhere);
fn a_program_may_lie_anywhere(t: &mut Test) {
    succeeds(t, "pie");
}

target_test!(programs_lie_at_addresses_of_their_own, limit(60));
fn programs_lie_at_addresses_of_their_own(t: &mut Test) {
    succeeds(t, "layout 64-bit");
}

target_test!(fork_exec_and_exit_leave_nothing, limit(120));
fn fork_exec_and_exit_leave_nothing(t: &mut Test) {
    // The audit after each test finds memory that is left.
    succeeds(t, "lifecycle rounds 300");
}

target_test!(fork_exec_and_exit_leave_nothing_in_ten_thousand_rounds, limit(600), long());
fn fork_exec_and_exit_leave_nothing_in_ten_thousand_rounds(t: &mut Test) {
    succeeds(t, "lifecycle rounds 10000");
}

target_test!(copies_keep_their_contents_while_others_write, limit(120));
fn copies_keep_their_contents_while_others_write(t: &mut Test) {
    stress(t, 30);
}

target_test!(copies_keep_their_contents_for_long, limit(600), long());
fn copies_keep_their_contents_for_long(t: &mut Test) {
    stress(t, 2000);
}

/// So many rounds of each process, by its threads. There are three.
fn stress(t: &mut Test, rounds: usize) {
    let threads = smp::online().iter().count().div_ceil(2).max(2);
    let line = format(format_args!("stress {} {} {threads}", t.random(), rounds / threads));
    succeeds(t, &line);
}

target_test!(threads_keep_what_they_map_apart, limit(120));
fn threads_keep_what_they_map_apart(t: &mut Test) {
    apart(t, 6_000);
}

target_test!(threads_keep_what_they_map_apart_for_long, limit(600), long());
fn threads_keep_what_they_map_apart_for_long(t: &mut Test) {
    apart(t, 600_000);
}

/// So many steps, by the threads of one program: more than there are CPUs.
fn apart(t: &mut Test, steps: usize) {
    let threads = smp::online().iter().count() + 1;
    let line = format(format_args!("apart {} {} {threads}", t.random(), steps / threads));
    succeeds(t, &line);
}

target_test!(hostile_calls_harm_no_other_process, limit(120));
fn hostile_calls_harm_no_other_process(t: &mut Test) {
    fuzz(t, 10_000, "", None);
}

target_test!(a_million_hostile_calls_harm_no_other_process, limit(600), long());
fn a_million_hostile_calls_harm_no_other_process(t: &mut Test) {
    fuzz(t, 1_000_000, "", None);
}

target_test!(threads_that_race_with_well_formed_calls_harm_no_other_process, limit(120));
fn threads_that_race_with_well_formed_calls_harm_no_other_process(t: &mut Test) {
    race(t, 1_000);
}

target_test!(a_million_well_formed_calls_that_race_harm_no_other_process, limit(3000), long());
fn a_million_well_formed_calls_that_race_harm_no_other_process(t: &mut Test) {
    // Half of them are well formed.
    race(t, 2_020_000);
}

/// The calls of threads that share a space, beside a program that knows the contents of its memory.
fn race(t: &mut Test, calls: usize) {
    let neighbour = format(format_args!("stress {} 2", t.random()));
    fuzz(t, calls, "together", Some(&neighbour));
}

/// Makes so many calls, from as many programs at once as there are CPUs.
fn fuzz(t: &mut Test, calls: usize, how: &str, neighbour: Option<&str>) {
    let threads = sched::thread_count();
    let programs = smp::online().iter().count();
    let mut ids = heapless::Vec::<u32, 8>::new();
    ids.extend(neighbour.and_then(|line| t.ok(line, start(line))));
    for _ in 0..programs.min(ids.capacity() - 1) {
        let line = format(format_args!("fuzz {} {} {how}", t.random(), calls.div_ceil(programs)));
        ids.extend(t.ok(&line, start(&line)));
    }
    for id in ids {
        t.equal("how it ended", process::wait(id), Some(ProcessEnd::Exited(0)));
    }
    end_orphans();
    settle(t, threads);
}

/// Ends what hostile calls left behind: a copy that jumped anywhere, or that has much to do, runs on where its parent
/// was killed before it could kill it.
fn end_orphans() {
    end_all_but(|_| false);
}

/// Ends all processes but those that are to go on, by their numbers.
pub(crate) fn end_all_but(goes_on: impl Fn(&Summary) -> bool) {
    process::for_each(&mut |left| {
        if !goes_on(left) {
            granule::println!("ended: {left:?}");
            _ = process::kill(left.id, Signal::KILL);
        }
    });
}

target_test!(calls_that_race_go_on_whatever_happens_meanwhile, needs("smmuv3 edu"), limit(120));
fn calls_that_race_go_on_whatever_happens_meanwhile(t: &mut Test) {
    besiege(t, 300, 10);
}

target_test!(calls_go_on_for_long_whatever_happens_meanwhile, needs("smmuv3 edu"), limit(900), long());
fn calls_go_on_for_long_whatever_happens_meanwhile(t: &mut Test) {
    besiege(t, 10_000, 200);
}

target_test!(a_process_uses_the_registers_of_its_device, needs("smmuv3 edu"), limit(60));
fn a_process_uses_the_registers_of_its_device(t: &mut Test) {
    let threads = sched::thread_count();
    let Some(device) = t.ok("edu", edu(this_cpu(), 0)) else { return };
    let Some(id) = t.ok("the program", start("registers")) else { return };
    let Some(space) = t.ok("its space", process::space_of(id).ok_or("none")) else { return };
    let stage = || {
        let page = space.tables().translate(ASKED).map(|found| layout::linear(found.physical).as_ptr::<u8>());
        // SAFETY: the page is the program's, which does not unmap it.
        page.map_or(0, |page| unsafe { page.read_volatile() })
    };
    let reaches = |t: &mut Test, wanted: u8| {
        wait_until(|| stage() >= wanted);
        t.equal("how far it has come", stage(), wanted);
    };
    reaches(t, 1);
    t.ok("bound", device.bind(this_cpu(), &space));
    reaches(t, 2);
    t.ok("unbound", device.unbind(this_cpu()));
    reaches(t, 3);
    t.ok("bound again", device.bind(this_cpu(), &space));
    // It uses them once more, and executes itself, which ends the space that the device is bound to.
    drop(space);
    t.equal("how it ended", process::wait(id), Some(ProcessEnd::Exited(0)));
    t.ok("unbound from what has ended", device.unbind(this_cpu()));
    t.equal("a transfer", device.copy_in(DmaAddress(0), 0, 8).is_ok(), false);
    settle(t, threads);
}

/// The calls of [`race`], while memory runs out, a device is bound to one of the programs and copies from and to its
/// pages, and any of the processes is killed: so many times each, and on until some of each was of effect. A program
/// that ends by that is started again.
fn besiege(t: &mut Test, calls: usize, times: u32) {
    let threads = sched::thread_count();
    let Some(device) = t.ok("edu", edu(this_cpu(), 0)) else { return };
    // So that little is left to take.
    let mut rest = TakenFrames::default();
    rest.fill();
    rest.give_back(FREE);
    let programs = smp::online().iter().count().min(4);
    let start_one = |t: &mut Test| {
        let line = format(format_args!("fuzz {} {} together", t.random(), calls.div_ceil(programs)));
        t.ok(&line, start(&line))
    };
    let mut ids = heapless::Vec::<u32, 4>::new();
    (0..programs).for_each(|_| ids.extend(start_one(t)));
    let mut siege = Siege { rounds: 0, times, bound: 0, copied: 0, killed: 0 };
    let (mut ended, mut restarted) = (0, 0);
    while let Some(&id) = ids.first() {
        // Once it is over the programs come to their end.
        let end = process::wait_with(id, || siege.go_on(t, &ids, device));
        ids.swap_remove(0);
        match end {
            Some(ProcessEnd::Killed(Signal::KILL)) => restarted += 1,
            end => ended += u32::from(t.equal("how it ended", end, Some(ProcessEnd::Exited(0)))),
        }
        if !siege.is_over() {
            ids.extend(start_one(t));
        }
    }
    end_orphans();
    settle(t, threads);
    drop(rest);
    let Siege { bound, copied, killed, .. } = siege;
    granule::println!("{ended} programs came to their end, {restarted} did not; {killed} processes were killed");
    granule::println!("edu was bound {bound} times and made {copied} copies");
    t.check("some come to their end", ended > 0);
    t.check("processes were killed", killed > times / 4);
    t.check("a device worked on their pages", bound > times / 4 && copied > 0);
}

/// The bindings, copies and kills that run concurrently with the calls.
struct Siege {
    rounds: u32,
    /// How often each is to be done.
    times: u32,
    bound: u32,
    copied: u32,
    killed: u32,
}

impl Siege {
    /// Whether it has gone on long enough. A device finds pages that it may reach only now and then: a program may end,
    /// or have no memory, at any moment.
    fn is_over(&self) -> bool {
        let least = self.times / 4;
        let is_enough = self.killed > least && self.bound > least && self.copied > 0;
        self.rounds >= 3 * self.times && (is_enough || self.rounds >= 100 * self.times)
    }

    /// Does the next of it, at any moment.
    fn go_on(&mut self, t: &mut Test, ids: &[u32], device: &Edu) {
        sleep_until(Deadline::after(Duration::from_micros(t.random() % 3000)));
        if self.is_over() {
            return;
        }
        self.rounds += 1;
        match self.rounds % 3 {
            0 => {
                let mut taken = TakenFrames::default();
                taken.fill();
                taken.give_back(t.random() as usize % 64);
                sleep_until(Deadline::after(Duration::from_micros(t.random() % 3000)));
            }
            1 => self.bind(t, ids, device),
            _ => self.kill(t, ids),
        }
    }

    /// A device works on the pages of a program or of one of its children, whose mappings and pages change all the
    /// time.
    fn bind(&mut self, t: &mut Test, ids: &[u32], device: &Edu) {
        let child = other_than(t, ids).filter(|_| !t.random().is_multiple_of(4));
        let Some(id) = child.or(ids.first().copied()) else { return };
        let Some(space) = process::space_of(id) else { return };
        if device.bind(this_cpu(), &space).is_err() {
            return;
        }
        self.bound += 1;
        for at in [COUNT, 0x40_0000, (t.random() % (1 << 47)) & !7] {
            self.copied += u32::from(device.copy_in(DmaAddress(at), 0, 64).is_ok());
            // The programs know what their own memory holds; what a child does may be wrong in any way.
            if child.is_some() && at != COUNT {
                let _ = device.copy_out(0, DmaAddress(at), 64);
            }
        }
        drop(space);
        t.ok("unbound", device.unbind(this_cpu()));
    }

    /// Kills any process but the programs, which watch the others.
    fn kill(&mut self, t: &mut Test, ids: &[u32]) {
        let Some(id) = other_than(t, ids) else { return };
        self.killed += u32::from(process::kill(id, Signal::KILL).is_ok());
    }
}

/// One of the processes that are not among these.
fn other_than(t: &mut Test, ids: &[u32]) -> Option<u32> {
    let mut others = heapless::Vec::<u32, 64>::new();
    process::for_each(&mut |summary| {
        if !ids.contains(&summary.id) {
            let _ = others.push(summary.id);
        }
    });
    let index = (t.random() as usize).checked_rem(others.len())?;
    others.get(index).copied()
}

/// Frames that the programs have together, until memory runs out.
const FREE: usize = 8192;
/// A page that each `fuzz` has.
const COUNT: u64 = 0x2345_6789_a000;

pub(crate) fn format(arguments: fmt::Arguments<'_>) -> heapless::String<64> {
    let mut line = heapless::String::new();
    line.write_fmt(arguments).expect("a short line");
    line
}

target_test!(what_is_no_program_is_refused);
fn what_is_no_program_is_refused(t: &mut Test) {
    t.equal("no such file", start("nosuch").err(), Some(ExecError::Path(PathError::NotFound)));
    let plain = Some(ExecError::Path(PathError::NotExecutable));
    t.equal("a file that may not be executed", start("plain").err(), plain);
    t.equal("no process", process::wait(u32::MAX), None);
    t.equal("no process", process::kill(u32::MAX, Signal::KILL), Err(Errno::ESRCH));
    let files = initrd::files(initrd::archive()).filter(|file| file.is_ok()).count();
    t.check("the initrd has programs", files > 4);
}

// With k frames and no more a program either starts or does not, and is then killed or not; whatever it is, what it
// took comes back. From some k on it runs to its end.
target_test!(memory_may_run_out_at_any_step_of_a_programs_life, limit(120));
fn memory_may_run_out_at_any_step_of_a_programs_life(t: &mut Test) {
    // The frames for the program are those that were freed, and the reserve takes none of them.
    let reserve = kernel().frames.reserve();
    kernel().frames.set_reserve(0);
    for (line, good, step) in
        [("lifecycle nonsense", ProcessEnd::Exited(2), 1), ("lifecycle rounds 1", ProcessEnd::Exited(0), 1)]
    {
        let threads = sched::thread_count();
        let (mut refused, mut killed, mut ran) = (0, 0, false);
        let mut taken = TakenFrames::default();
        for frames in (0..200).step_by(step) {
            taken.fill();
            taken.give_back(frames);
            let before = frames_in_use();
            match start(line) {
                Ok(id) => match process::wait(id) {
                    Some(end) if end == good => ran = true,
                    end => killed += u32::from(t.check("an end", end.is_some())),
                },
                Err(error) => {
                    refused += 1;
                    t.equal("why it did not start", error, ExecError::Errno(Errno::ENOMEM));
                }
            }
            settle(t, threads);
            t.equal("frames in use afterwards", frames_in_use(), before);
            if ran {
                break;
            }
        }
        drop(taken);
        granule::println!("{line}: refused {refused} times, killed {killed} times");
        t.check("with enough memory it runs", ran);
        t.check("with less it does not", refused + killed > 5);
    }
    kernel().frames.set_reserve(reserve);
}
