//! The tests on the target, in the form of an ordinary test program.
//!
//! Each machine runs all of its tests in as few boots as it can, on a thread of its own; libtest-mimic gets one trial
//! for each (machine, test), which waits for its verdict. So names, filter, list and the closing line are those that
//! cargo's users know.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use granule_runner::judge::{Outcome, Verdict};
use granule_runner::list::{self, Skip, Test};
use granule_runner::machine::{self, Machine};
use granule_runner::report::{Entry, Status};
use granule_runner::session::{self, Plan};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::Options;
use crate::compile::Program;

/// Machines that run at the same time: as many as share a small host without one starving another's time limits.
const MACHINES_AT_ONCE: usize = 2;

/// A machine with the tests that it must run, and where each verdict goes.
struct Job {
    plan: Plan,
    tests: Vec<Test>,
    verdicts: BTreeMap<u32, Sender<Outcome>>,
}

type Entries = Arc<Mutex<Vec<Entry>>>;

/// Runs or lists the tests; whether all passed.
pub(crate) fn run(options: &Options, seed: u64, image: &Program, entries: &mut Vec<Entry>) -> Result<bool> {
    let tests: Vec<Test> = list::read(&image.elf)?.into_iter().filter(|test| !test.selftest).collect();
    let collected = Entries::default();
    let (mut trials, mut jobs) = (Vec::new(), Vec::new());
    let mut machines = machine::all()?;
    machines.retain(|machine| options.machine.as_ref().is_none_or(|name| *name == machine.name));
    let turn = options.turn.then(|| long_in_turn(options, seed, &machines, &tests)).flatten();
    if let Some(name) = &turn {
        println!("the long test of the target whose turn it is: {name}");
    }
    for machine in machines {
        let long = |name: &str| options.long || turn.as_deref() == Some(name);
        let (job, more) = prepare(options, seed, image, machine, &tests, &long, &collected);
        trials.extend(more);
        jobs.push(job);
    }
    // What is not wanted is counted as filtered out.
    let skip = trials.iter().map(Trial::name).filter(|name| !options.wants(name)).map(str::to_owned).collect();
    let arguments = Arguments { list: options.list, skip, exact: true, test_threads: Some(1), ..Arguments::default() };
    if !options.list {
        start(jobs);
    }
    let passed = !libtest_mimic::run(&arguments, trials).has_failed();
    entries.append(&mut collected.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(passed)
}

/// A trial's name.
fn name(machine: &Machine, test: &Test) -> String {
    format!("{}::{}", machine.name, test.name)
}

/// The long trial that the seed draws, of those that the filter lets through.
fn long_in_turn(options: &Options, seed: u64, machines: &[Machine], tests: &[Test]) -> Option<String> {
    let names = machines.iter().flat_map(|machine| {
        let here = tests.iter().filter(|test| machine.is_for(&test.name));
        here.filter(|test| test.skipped_on(machine, false) == Some(Skip::Long)).map(|test| name(machine, test))
    });
    let names: Vec<_> = names.filter(|name| options.wants(name)).collect();
    super::drawn(&names, seed).cloned()
}

/// One machine's share: its job, and a trial for every test that the filter lets through.
fn prepare(
    options: &Options,
    seed: u64,
    image: &Program,
    machine: Machine,
    tests: &[Test],
    long: &dyn Fn(&str) -> bool,
    entries: &Entries,
) -> (Job, Vec<Trial>) {
    let mut job = Job {
        plan: Plan { machine, image: image.image.clone(), seed, bootargs: String::new(), extra: Vec::new() },
        tests: Vec::new(),
        verdicts: BTreeMap::new(),
    };
    let mut trials = Vec::new();
    for test in tests.iter().filter(|test| job.plan.machine.is_for(&test.name)) {
        let name = name(&job.plan.machine, test);
        let entries = Arc::clone(entries);
        let suite = job.plan.machine.name.clone();
        let test_name = test.name.clone();
        if let Some(skip) = test.skipped_on(&job.plan.machine, long(&name)) {
            trials.push(Trial::ignorable_test(name, move || Ok(skipped(&entries, suite, test_name, &skip))));
            continue;
        }
        if !options.wants(&name) {
            // Counted as filtered out; never run.
            trials.push(Trial::test(name, || Err(Failed::without_message())));
            continue;
        }
        let (sender, receiver) = channel();
        job.verdicts.insert(test.index, sender);
        job.tests.push(test.clone());
        trials.push(Trial::test(name, move || wait(&receiver, &entries, suite, test_name)));
    }
    (job, trials)
}

/// Runs the jobs in order, a few at a time, in the background. A job that breaks drops its senders, which fails its
/// trials.
fn start(jobs: Vec<Job>) {
    let queue = Arc::new(Mutex::new(jobs.into_iter()));
    for _ in 0..MACHINES_AT_ONCE {
        let queue = Arc::clone(&queue);
        std::thread::spawn(move || {
            while let Some(job) = { queue.lock().unwrap_or_else(PoisonError::into_inner).next() } {
                let report = |test: &Test, outcome| {
                    if let Some(verdict) = job.verdicts.get(&test.index) {
                        // The trial waits until it has heard; it is gone only if the whole run is.
                        let _ = verdict.send(outcome);
                    }
                };
                session::run(&job.tests, |left| session::boot(&job.plan, left), report);
            }
        });
    }
}

/// A trial: waits for the verdict.
fn wait(verdict: &Receiver<Outcome>, entries: &Entries, suite: String, name: String) -> Result<(), Failed> {
    let outcome = verdict.recv().map_err(|_| "the runner ended without a verdict")?;
    let (status, result) = match outcome.verdict {
        Verdict::Passed(_) => (Status::Passed, Ok(())),
        Verdict::Failed(why) => {
            let message = format!("{why}\n{}", outcome.output);
            (Status::Failed(why), Err(Failed::from(message)))
        }
    };
    let entry = Entry { suite, name, status, output: outcome.output, time: outcome.time };
    entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    result
}

/// A trial that machines.toml or the lack of `--long` rules out.
fn skipped(entries: &Entries, suite: String, name: String, skip: &Skip) -> Completion {
    let why = match skip {
        Skip::Lacks(feature) => format!("{suite} has no {feature}"),
        Skip::OtherMachine(machine) => format!("for {machine} only"),
        Skip::Long => "long".into(),
    };
    let entry = Entry {
        suite,
        name,
        status: Status::Skipped(why.clone()),
        output: String::new(),
        time: std::time::Duration::ZERO,
    };
    entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    Completion::ignored_with(why)
}
