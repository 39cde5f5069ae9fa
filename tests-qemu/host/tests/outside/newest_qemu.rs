//! The newest QEMU that Debian has, beside the oldest that is promised.

use std::path::Path;

use granule_host_tests::guest::plan;
use granule_host_tests::{built, newest_qemu_or_skip};
use granule_runner::judge::Verdict;
use granule_runner::list::{self, Test};
use granule_runner::session::{self, Plan};

/// All tests that `default` runs.
#[test]
#[ignore = "fetches Debian's newest QEMU and takes minutes: ./x test --long"]
fn the_default_machine_passes_its_tests_on_the_newest_qemu() {
    let Some(qemu) = newest_qemu_or_skip(Path::new(env!("CARGO_TARGET_TMPDIR"))) else { return };
    let plan = Plan { qemu, ..plan("default", "") };
    let runs = |test: &Test| !test.selftest && test.skipped_on(&plan.machine, false).is_none();
    let mut tests = list::read(&built("granule-tests.elf")).unwrap();
    tests.retain(runs);
    let mut failed = Vec::new();
    session::run(
        &tests,
        |left| Some(session::boot(&plan, left)),
        |test, outcome| {
            if !matches!(outcome.verdict, Verdict::Passed(_)) {
                println!("{}: {:?}\n{}", test.name, outcome.verdict, outcome.output);
                failed.push(test.name.clone());
            }
        },
    );
    assert!(failed.is_empty() && tests.len() > 200, "{} of {} failed: {failed:?}", failed.len(), tests.len());
}
