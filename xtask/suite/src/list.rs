//! The tests of a run in the form of one ordinary test program, and what runs them.
//!
//! Jobs run a few at a time, as their memory allows: a machine with all its tests, or one test of the host. Those that
//! took longest in an earlier run begin first, so that none is left alone at the end.
//! libtest-mimic gets a trial for each test, which waits for its verdict. So names, filter, list and the closing line
//! are those that cargo's users know.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use granule_runner::report::{Entry, Status};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::Options;
use super::took::Took;

/// Memory that jobs which run together may take, in MiB; one alone may take more.
pub(super) const MEMORY_MIB: u64 = 3 << 10;

type Entries = Arc<Mutex<Vec<Entry>>>;

/// A job runs some tests and sends their outcomes.
struct Job {
    memory_mib: u64,
    run: Box<dyn FnOnce() + Send>,
}

/// The jobs that wait, and the memory of those that run.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    memory_mib: u64,
    is_stopped: bool,
}

impl Queue {
    /// The first job whose memory there is.
    fn take(&mut self) -> Option<Job> {
        let room = if self.memory_mib == 0 { u64::MAX } else { MEMORY_MIB.saturating_sub(self.memory_mib) };
        let at = self.jobs.iter().position(|job| job.memory_mib <= room)?;
        let job = self.jobs.remove(at)?;
        self.memory_mib += job.memory_mib;
        Some(job)
    }
}

/// Jobs that run in order, a few at a time, as their memory allows.
#[derive(Clone, Default)]
pub struct Jobs(Arc<(Mutex<Queue>, Condvar)>);

impl Jobs {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds one that takes so much memory.
    pub fn add(&self, memory_mib: u64, job: impl FnOnce() + Send + 'static) {
        self.queue().jobs.push_back(Job { memory_mib, run: Box::new(job) });
    }

    /// Runs them in the background.
    pub fn start(&self) {
        // One more than there are CPUs, since a machine that boots or waits leaves its CPU to others. Limits are of CPU time.
        for _ in 0..=std::thread::available_parallelism().map_or(1, usize::from) {
            let jobs = self.clone();
            std::thread::spawn(move || jobs.run());
        }
    }

    /// Runs one after another until none is left.
    fn run(&self) {
        let ended = &self.0.1;
        let mut queue = self.queue();
        while !queue.jobs.is_empty() {
            let Some(job) = queue.take() else {
                queue = ended.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(queue);
            (job.run)();
            queue = self.queue();
            queue.memory_mib -= job.memory_mib;
            ended.notify_all();
        }
    }

    /// Drops those that have not begun.
    pub fn stop(&self) {
        let mut queue = self.queue();
        queue.is_stopped = true;
        let dropped = std::mem::take(&mut queue.jobs);
        drop(queue);
        drop(dropped);
        self.0.1.notify_all();
    }

    /// Whether they were stopped.
    pub fn are_stopped(&self) -> bool {
        self.queue().is_stopped
    }
}

/// How a test went: its verdict, output and CPU time.
pub(super) type Outcome = (Status, String, Duration);

/// The tests to run.
pub(super) struct List<'a> {
    pub(super) options: &'a Options,
    pub(super) seed: u64,
    trials: Vec<Trial>,
    jobs: Jobs,
    /// Jobs to run, with their names.
    waiting: RefCell<Vec<(String, Job)>>,
    entries: Entries,
}

impl<'a> List<'a> {
    pub(super) fn new(options: &'a Options, seed: u64) -> Self {
        let (jobs, entries) = (Jobs::default(), Entries::default());
        Self { options, seed, trials: Vec::new(), jobs, waiting: RefCell::default(), entries }
    }

    /// Adds a test, which a job runs that gets the other end; `None` where the filter leaves it out.
    pub(super) fn test(&mut self, suite: &str, test: &str) -> Option<Sender<Outcome>> {
        let (suite, test, entries) = (suite.to_owned(), test.to_owned(), Arc::clone(&self.entries));
        let (sender, verdict) = channel();
        let name = format!("{suite}::{test}");
        let is_wanted = self.options.wants(&name);
        let (jobs, is_last) = (self.jobs.clone(), self.options.fail_fast);
        self.trials.push(Trial::ignorable_test(name, move || {
            let result = wait(&verdict, &jobs, &entries, suite, test);
            if result.is_err() && is_last {
                jobs.stop();
            }
            result
        }));
        is_wanted.then_some(sender)
    }

    /// Adds a test that does not run.
    pub(super) fn skip(&mut self, suite: &str, test: &str, why: &str) {
        if let Some(sender) = self.test(suite, test) {
            // The trial has the other end.
            let _ = sender.send((Status::Skipped(why.to_owned()), String::new(), Duration::ZERO));
        }
    }

    /// Adds what sends the outcomes of the tests of this name or suite, and takes so much memory. Those of which it
    /// sends none have failed.
    pub(super) fn job(&self, name: &str, memory_mib: u64, job: impl FnOnce() + Send + 'static) {
        self.waiting.borrow_mut().push((name.to_owned(), Job { memory_mib, run: Box::new(job) }));
    }

    /// The long test that the seed draws of those of this name that the filter lets through, announced; `side` is the host
    /// or the target.
    pub(super) fn long_in_turn(&self, names: impl Iterator<Item = String>, side: &str) -> Option<String> {
        let names: Vec<String> = names.filter(|name| self.options.turn && self.options.wants(name)).collect();
        let name = drawn(&names, self.seed)?;
        println!("the long test of the {side} whose turn it is: {name}");
        Some(name.clone())
    }

    /// Runs or lists the tests.
    pub(super) fn run(self, took: &Took) -> Vec<Entry> {
        let Self { options, trials, jobs, waiting, entries, .. } = self;
        let mut waiting = waiting.into_inner();
        waiting.sort_by_key(|(name, _)| Reverse(took.of(name)));
        waiting.into_iter().for_each(|(_, job)| jobs.add(job.memory_mib, job.run));
        // Tests that are not wanted are counted as filtered out.
        let skip = trials.iter().map(Trial::name).filter(|name| !options.wants(name)).map(str::to_owned).collect();
        let arguments =
            Arguments { list: options.list, skip, exact: true, test_threads: Some(1), ..Arguments::default() };
        if !options.list {
            jobs.start();
        }
        // The entries have the verdicts.
        let _ = libtest_mimic::run(&arguments, trials);
        std::mem::take(&mut entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A trial: waits for the verdict.
fn wait(
    verdict: &Receiver<Outcome>,
    jobs: &Jobs,
    entries: &Entries,
    suite: String,
    name: String,
) -> Result<Completion, Failed> {
    let without = |_| match jobs.are_stopped() {
        true => Status::Skipped("another has failed".into()),
        false => Status::Failed("the runner ended without a verdict".into()),
    };
    let (status, output, time) = verdict.recv().unwrap_or_else(|error| (without(error), String::new(), Duration::ZERO));
    let result = match &status {
        Status::Passed => Ok(Completion::Completed),
        Status::Skipped(why) => Ok(Completion::ignored_with(why)),
        Status::Failed(why) => Err(Failed::from(format!("{why}\n{output}"))),
    };
    let entry = Entry { suite, name, status, output, time };
    entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    result
}

/// The entry that the seed draws; `None` where there is none.
fn drawn<T>(list: &[T], seed: u64) -> Option<&T> {
    list.get(seed.checked_rem(list.len() as u64)? as usize)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::{Job, Jobs, MEMORY_MIB, Queue};

    #[test]
    fn a_job_starts_once_there_is_memory_for_it() {
        let job = |memory_mib| Job { memory_mib, run: Box::new(|| ()) };
        let mut queue = Queue { jobs: [job(2300), job(8192), job(900), job(600)].into(), ..Queue::default() };
        let mut take = || queue.take().map(|job| job.memory_mib);
        assert_eq!([take(), take(), take()], [Some(2300), Some(600), None]);
        queue.memory_mib = 0;
        assert_eq!(queue.take().map(|job| job.memory_mib), Some(8192), "one alone may take more");
        assert!(queue.take().is_none());
    }

    #[test]
    fn what_has_not_begun_is_dropped_once_jobs_are_stopped() {
        let (jobs, (sender, ended)) = (Jobs::default(), channel());
        for name in ["first", "second", "third"] {
            let (sender, others) = (sender.clone(), jobs.clone());
            // Each takes all memory, so that they run one by one.
            jobs.add(MEMORY_MIB, move || {
                sender.send(name).unwrap();
                if name == "second" {
                    others.stop();
                }
            });
        }
        drop(sender);
        jobs.start();
        assert_eq!(ended.iter().collect::<Vec<_>>(), ["first", "second"]);
        assert!(jobs.are_stopped());
    }

    #[test]
    fn each_long_test_has_its_turn() {
        let drawn = |seed| super::drawn(&['a', 'b', 'c'], seed).copied();
        assert_eq!([0, 1, 2, 3, u64::MAX].map(drawn), ['a', 'b', 'c', 'a', 'a'].map(Some));
        assert_eq!(super::drawn::<char>(&[], 7), None);
    }
}
