//! The target's tests and benches over a serial line, without semihosting or boot arguments: what `--serial` does, with
//! QEMU's models for boards, and a pseudo terminal for the line.

use std::path::Path;

use granule_host_tests::board::{OnALine, model};
use granule_host_tests::{built, skip_without_debians_tools};
use granule_protocol::BenchCounter;
use granule_runner::bench;
use granule_runner::identity;
use granule_runner::judge::{Outcome, Verdict};
use granule_runner::list::{self, Test};
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial, initrd_of};
use granule_runner::session;
use granule_runner::wire::{self, Wired};

/// The outcomes of the tests that `wants` chooses of those for a board, on its model behind a line with so many damaged
/// bytes in a million.
fn outcomes(name: &str, seed: u64, per_million: u32, wants: impl Fn(&Test) -> bool) -> Vec<(String, Outcome)> {
    let identity = identity::read(&built("granule-tests.elf")).unwrap();
    outcomes_of(identity, name, seed, per_million, wants)
}

/// As [`outcomes`], where the board is to run another build than it does, unless `identity` is that of its image.
fn outcomes_of(
    identity: u32,
    name: &str,
    seed: u64,
    per_million: u32,
    wants: impl Fn(&Test) -> bool,
) -> Vec<(String, Outcome)> {
    let board = machine::board(name).unwrap();
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let qemu = model(&board, &built("granule-tests.img"), "", scratch);
    let line = OnALine::new(qemu, scratch, seed, per_million);
    let tests = list::read(&built("granule-tests.elf")).unwrap();
    let wired = Wired { board, port: line.port.clone(), reset: Some(line.reset()), identity, seed };
    let is_for = |test: &Test| test.skipped_on(&wired.board.machine, false).is_none() && wants(test);
    let mine: Vec<Test> = tests.into_iter().filter(is_for).collect();
    let mut outcomes = Vec::new();
    session::run(&mine, |left| Some(wired.boot(left)), |test, outcome| outcomes.push((test.name.clone(), outcome)));
    assert_eq!(outcomes.len(), mine.len(), "each test has exactly one verdict");
    outcomes
}

/// All of these pass; how many they are.
fn pass(name: &str, seed: u64, per_million: u32, wants: impl Fn(&Test) -> bool) -> usize {
    let outcomes = outcomes(name, seed, per_million, wants);
    let failed: Vec<_> =
        outcomes.iter().filter(|(_, outcome)| !matches!(outcome.verdict, Verdict::Passed(_))).collect();
    for (test, outcome) in &failed {
        println!("{test}: {:?}\n{}", outcome.verdict, outcome.output);
    }
    assert!(failed.is_empty(), "{} of {} failed", failed.len(), outcomes.len());
    outcomes.len()
}

fn is_quick(test: &Test) -> bool {
    ["machine::", "set_memory::", "console::", "pci::"].iter().any(|part| test.name.starts_with(part)) && !test.selftest
}

#[test]
fn tests_run_over_a_line() {
    assert!(pass("virt", 1, 0, is_quick) > 10);
}

/// A hundred damaged bytes in a hundred thousand: nearly each test loses a line.
#[test]
fn a_bad_line_costs_time_and_fails_no_test() {
    assert!(pass("virt", 2, 1000, is_quick) > 10);
}

/// Nothing passes that must not, over a line with so many damaged bytes in a million. The board is switched off and on for
/// the tests after one that ends it.
fn refuses(per_million: u32) {
    let names = ["fails", "makes_no_checks", "panics", "hangs_with_interrupts_off", "resets", "forges_a_verdict"];
    let names = names.map(|name| format!("misbehaving::{name}"));
    let wants = |test: &Test| names.contains(&test.name) || test.name == "misbehaving::innocent";
    let outcomes = outcomes("virt", 3, per_million, wants);
    assert_eq!(outcomes.len(), 7);
    for (name, outcome) in &outcomes {
        // Where the line loses that the next test began, which resets the board, the one before it is to blame.
        let is_blamed = |why: &str| per_million != 0 && why.starts_with("passed, and then the board has started anew");
        let passed = match &outcome.verdict {
            Verdict::Passed(_) => true,
            Verdict::Failed(why) => name == "misbehaving::innocent" && is_blamed(why),
        };
        assert_eq!(passed, name == "misbehaving::innocent", "{name}: {outcome:?}");
    }
}

#[test]
fn what_must_not_pass_does_not_pass_over_a_line() {
    refuses(0);
}

/// The conversation itself has a test over a worse line in `granule_runner`.
#[test]
#[ignore = "takes half a minute: ./x test --long"]
fn what_must_not_pass_does_not_pass_over_a_bad_line() {
    refuses(2000);
}

/// A card has the image of an earlier build, with tests of the same names.
#[test]
fn a_board_that_runs_another_build_passes_nothing() {
    let other = identity::read(&built("granule-tests.elf")).unwrap() ^ 1;
    let outcomes = outcomes_of(other, "virt", 5, 0, |test| test.name.starts_with("machine::"));
    assert_eq!(outcomes.len(), 1);
    let Verdict::Failed(why) = &outcomes[0].1.verdict else { panic!("{outcomes:?}") };
    assert!(why.contains("the board runs another image"), "{why}");
}

/// Rows of the benches on `virt` with that CPU, over a line with so many damaged bytes in a million: what was counted,
/// and the points of each row.
fn benches(cpu: &str, per_million: u32) -> (Vec<BenchCounter>, Vec<usize>) {
    let board = machine::board("virt").unwrap();
    let machine = Machine { cpu: cpu.into(), smp: 1, ..board.machine };
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let image = built("granule-bench.img");
    let extra = ["-kernel".into(), image.clone().into(), "-initrd".into(), initrd_of(&image).into()];
    let line =
        OnALine::new(Qemu::without_kernel(&machine, Serial::Pipes, Reset::Ends, &extra), scratch, 7, per_million);
    let rows = bench::list::read(&built("granule-bench.elf")).unwrap();
    let named = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
    let rows = ["null", "memory/zero_page", "dma_map", "set_memory_x"].map(named);
    let mut port = wire::open(&line.port, board.baud, None).unwrap();
    let identity = identity::read(&built("granule-bench.elf")).unwrap();
    let measured = bench::wire::measure(&mut port, identity, &rows, &mut |_| {}).unwrap();
    println!("{}", bench::wire::table("virt", &measured));
    let counters = measured[0].counts.iter().map(|(counter, _)| *counter).collect();
    let points = measured.iter().map(|row| row.counts.first().map_or(0, |(_, points)| points.len())).collect();
    for (counter, points) in &measured[0].counts {
        // A loop of 250,000 turns takes longer than none, by any clock.
        let [none, many] = [0, 1].map(|place| points[place].1);
        assert!(many > none && (*counter == BenchCounter::Ticks || many > 100_000), "{counter:?}: {points:?}");
    }
    (counters, points)
}

/// By cycles: QEMU counts instructions with `-icount` alone. Without an SMMU, and without `vmalloc=pages`, two rows are
/// left out.
#[test]
fn benches_run_over_a_bad_line() {
    assert_eq!(benches("cortex-a72", 500), (vec![BenchCounter::Cycles], vec![5, 3, 0, 0]));
}

/// The reads of the counter are patched.
#[test]
fn benches_run_on_a_cpu_without_a_pmu() {
    assert_eq!(benches("cortex-a72,pmu=off", 0), (vec![BenchCounter::Ticks], vec![5, 3, 0, 0]));
}

/// All tests that a board runs, on its model.
#[track_caller]
fn the_suite_passes(name: &str) {
    let has_own_tree = machine::board(name).unwrap().model.is_none_or(|model| model.tree.is_none());
    if !has_own_tree && skip_without_debians_tools("device trees") {
        return;
    }
    let count = pass(name, 4, 0, |test| !test.selftest);
    println!("{name}: {count} passed");
    assert!(count > 100, "{count}");
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn the_suite_passes_on_virt() {
    the_suite_passes("virt");
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn the_suite_passes_on_a_versal() {
    the_suite_passes("versal");
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn the_suite_passes_on_a_zcu102() {
    the_suite_passes("zcu102");
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn the_suite_passes_on_an_imx8mp() {
    the_suite_passes("imx8mp-evk");
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn the_suite_passes_on_a_raspberry_pi_4() {
    the_suite_passes("raspi4b");
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn the_suite_passes_on_a_raspberry_pi_3() {
    the_suite_passes("raspi3b");
}

#[test]
#[ignore = "takes minutes: ./x test --long"]
fn the_suite_passes_on_an_sbsa_reference_machine() {
    the_suite_passes("sbsa-ref");
}
