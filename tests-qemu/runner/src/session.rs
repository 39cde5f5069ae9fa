//! Boots a machine until each of its tests has exactly one verdict.
//!
//! One boot runs all that is left; a boot that breaks off has failed one test, and the next runs the rest. A boot that
//! does not even reach its first test fails that one, so every boot brings at least one verdict and the loop ends.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use granule_protocol::{ASK, MARKER, Nonce};

use crate::device;
use crate::judge::{Boot, Ending, Judge, Outcome, Verdict};
use crate::list::{Test, ranges};
use crate::machine::Machine;
use crate::qemu::{Qemu, Reset, Serial};
use crate::serial::{Guest, Limit, Line, Lines, Received};
use crate::usage;

/// Until the harness's hello. A boot takes a fraction of a second, of the checked build a few.
pub(crate) const BOOT_LIMIT: Limit = Limit::work(20);
/// Between two tests, and from the totals to the end of the output.
pub(crate) const STEP_LIMIT: Limit = Limit::work(10);
/// From the end of the output to QEMU's.
const EXIT_LIMIT: Duration = Duration::from_secs(60);
/// How many times as much as it needs a test's limit is to be.
const MARGIN: u32 = 4;
/// Boots in a row that reach no test before the rest is given up.
const FAILED_BOOTS: u32 = 2;

/// A machine, and the image and arguments that it boots with.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The machine.
    pub machine: Machine,
    /// The test image.
    pub image: PathBuf,
    /// Seed for tests that draw numbers.
    pub seed: u64,
    /// More boot arguments.
    pub bootargs: String,
    /// More QEMU arguments.
    pub extra: Vec<OsString>,
    /// QEMU.
    pub qemu: PathBuf,
}

/// Runs the tests, reporting each verdict as it is final, as long as `boot` boots the machine for those that are left.
pub fn run(tests: &[Test], mut boot: impl FnMut(&[&Test]) -> Option<Boot>, mut report: impl FnMut(&Test, Outcome)) {
    let mut left: Vec<&Test> = tests.iter().collect();
    let mut failed_boots = 0;
    while let Some(&first) = left.first() {
        let Some(Boot { outcomes, failure }) = boot(&left) else { return };
        failed_boots = if outcomes.is_empty() { failed_boots + 1 } else { 0 };
        for (index, outcome) in outcomes {
            if let Some(at) = left.iter().position(|test| test.index == index) {
                report(left.remove(at), outcome);
            }
        }
        if failed_boots > 0 {
            let (why, output) = failure.unwrap_or_default();
            let verdict = Verdict::Failed(format!("the machine did not get as far as this test: {why}"));
            let blamed = if failed_boots < FAILED_BOOTS { vec![first] } else { std::mem::take(&mut left) };
            left.retain(|test| test.index != first.index);
            for test in blamed {
                report(test, Outcome { verdict: verdict.clone(), output: output.clone(), time: Duration::ZERO });
            }
        }
    }
}

/// One boot under QEMU.
pub fn boot(plan: &Plan, tests: &[&Test]) -> Boot {
    match try_boot(plan, tests) {
        Ok(boot) => boot,
        Err(error) => Boot { outcomes: Vec::new(), failure: Some((format!("{error:#}"), String::new())) },
    }
}

fn try_boot(plan: &Plan, tests: &[&Test]) -> Result<Boot> {
    let nonce = fresh_nonce();
    let indices: Vec<u32> = tests.iter().map(|test| test.index).collect();
    let mut bootargs = format!(
        "semihosting test.run={} test.features={} test.devices={} test.seed={}",
        ranges(&indices),
        plan.machine.features.join(","),
        device::on_pci(&plan.machine.devices),
        plan.seed,
    );
    if !plan.bootargs.is_empty() {
        bootargs.push(' ');
        bootargs.push_str(&plan.bootargs);
    }
    let qemu = Qemu::new(&plan.machine, &plan.image, Serial::Pipes, Reset::Ends, &bootargs, &plan.extra).by(&plan.qemu);
    let mut guest = Guest::start(&qemu)?;
    let mut judge = Judge::new(nonce, indices);
    let mut taken = Taken { begin: Instant::now(), work: Duration::ZERO, memory: 0 };
    let ending = watch(&mut guest, &mut judge, nonce, tests, &mut taken);
    drop(guest);
    usage::add(&plan.machine.name, taken.begin, taken.work, taken.memory);
    let ending = ending?;
    Ok(judge.end(&ending))
}

/// The time and memory that a machine took until now.
#[derive(Debug)]
struct Taken {
    begin: Instant,
    work: Duration,
    memory: u64,
}

impl Taken {
    /// Looks again; a machine that is gone took what it took.
    fn look(&mut self, guest: &Guest) {
        self.work = guest.work().unwrap_or(self.work);
        self.memory = guest.memory().unwrap_or(self.memory);
    }
}

/// Listens until the machine ends, or must be ended.
fn watch(guest: &mut Guest, judge: &mut Judge, nonce: Nonce, tests: &[&Test], taken: &mut Taken) -> Result<Ending> {
    let mut lines = Lines::default();
    // Only the first to ask gets it: the harness, before it runs a test. All others get a line with nothing in it.
    let mut answer = Some(format!("{nonce}\n"));
    let test = |index: u32| tests.iter().find(|test| test.index == index);
    let mut limit = BOOT_LIMIT;
    let mut deadline = guest.deadline(limit);
    loop {
        match guest.receive(deadline) {
            Received::Bytes(bytes) => {
                for line in lines.feed(&bytes) {
                    if line == ASK {
                        guest.send(answer.take().as_deref().unwrap_or("\n"));
                    }
                    if line.starts_with(MARKER) {
                        taken.look(guest);
                    }
                    let before = (judge.running(), judge.has_started());
                    if let Err(lie) = judge.line(&line, taken.work) {
                        return Ok(Ending::Lied(lie));
                    }
                    if (judge.running(), judge.has_started()) == before {
                        continue;
                    }
                    if let Some((index, begin)) = before.0
                        && let Some(ended) = test(index)
                    {
                        report_margin(ended, guest.cpus(), taken.work - begin);
                    }
                    limit = match judge.running() {
                        Some((index, _)) => Limit::work(test(index).map_or(0, |test| test.limit.into())),
                        None => STEP_LIMIT,
                    };
                    deadline = guest.deadline(limit);
                }
            }
            Received::Silence => {
                judge.rest(&lines.partial());
                return Ok(Ending::TimedOut(Duration::from_secs(limit.seconds())));
            }
            Received::Closed => {
                judge.rest(&lines.partial());
                return Ok(match guest.status(EXIT_LIMIT)? {
                    Some(status) => Ending::Exited(status.code()),
                    None => Ending::TimedOut(EXIT_LIMIT),
                });
            }
        }
    }
}

/// Prints where a test took more than its share of its limit: a slower host takes more CPU time, too.
fn report_margin(test: &Test, cpus: u32, time: Duration) {
    let limit = Duration::from_secs(test.limit.into()) * cpus;
    if time * MARGIN > limit {
        eprintln!("x: {} took {time:?} of {limit:?} of CPU time: its limit is too near", test.name);
    }
}

/// A seed that no earlier run had, short enough to type.
pub fn fresh_seed() -> u64 {
    fresh_nonce().0.into()
}

/// A number that no earlier boot had and the image cannot know. `RandomState` is the standard library's source of one.
pub(crate) fn fresh_nonce() -> Nonce {
    use std::hash::{BuildHasher, Hasher};
    Nonce(std::hash::RandomState::new().build_hasher().finish() as u32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::run;
    use crate::judge::{Boot, Outcome, Verdict};
    use crate::list::Test;

    fn tests(count: u32) -> Vec<Test> {
        let test = |index| Test {
            index,
            name: format!("t{index}"),
            needs: Vec::new(),
            machines: Vec::new(),
            limit: 1,
            long: false,
            selftest: false,
        };
        (0..count).map(test).collect()
    }

    fn outcome(passed: bool) -> Outcome {
        let verdict = if passed { Verdict::Passed(1) } else { Verdict::Failed("x".into()) };
        Outcome { verdict, output: String::new(), time: Duration::ZERO }
    }

    /// How many verdicts each test got, and whether it passed.
    fn collect(tests: &[Test], boot: impl FnMut(&[&Test]) -> Option<Boot>) -> BTreeMap<u32, Vec<bool>> {
        let mut seen: BTreeMap<u32, Vec<bool>> = BTreeMap::new();
        run(tests, boot, |test, outcome| {
            seen.entry(test.index).or_default().push(matches!(outcome.verdict, Verdict::Passed(_)));
        });
        seen
    }

    #[test]
    fn the_rest_runs_after_a_death() {
        let tests = tests(4);
        let seen = collect(&tests, |left| {
            // Dies in test 1, each time that it is there.
            let mut outcomes = Vec::new();
            for test in left {
                outcomes.push((test.index, outcome(test.index != 1)));
                if test.index == 1 {
                    break;
                }
            }
            Some(Boot { outcomes, failure: None })
        });
        assert_eq!(seen, [(0, vec![true]), (1, vec![false]), (2, vec![true]), (3, vec![true])].into());
    }

    #[test]
    fn a_machine_that_never_boots_fails_every_test_once() {
        let mut boots = 0;
        let tests = tests(5);
        let seen = collect(&tests, |_| {
            boots += 1;
            Some(Boot { outcomes: Vec::new(), failure: Some(("dead".into(), String::new())) })
        });
        assert_eq!(boots, 2);
        assert_eq!(seen, (0..5).map(|index| (index, vec![false])).collect());
    }

    #[test]
    fn a_run_ends_once_the_machine_is_no_longer_booted() {
        let mut boots = [Some(false), Some(true)].into_iter();
        let seen = collect(&tests(3), |left| {
            let passed = boots.next()??;
            Some(Boot { outcomes: vec![(left[0].index, outcome(passed))], failure: None })
        });
        assert_eq!(seen, [(0, vec![false]), (1, vec![true])].into());
    }

    #[test]
    fn one_failed_boot_fails_one_test_and_is_not_forgotten() {
        let mut first = true;
        let tests = tests(2);
        let seen = collect(&tests, |left| {
            if std::mem::take(&mut first) {
                return Some(Boot::default());
            }
            Some(Boot { outcomes: left.iter().map(|test| (test.index, outcome(true))).collect(), failure: None })
        });
        assert_eq!(seen, [(0, vec![false]), (1, vec![true])].into());
    }
}
