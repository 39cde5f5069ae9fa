//! The tests of a run in the form of one ordinary test program, and what runs them.
//!
//! Jobs run in order, a few at a time, as their memory allows: a machine with all its tests, or one test of the host.
//! libtest-mimic gets a trial for each test, which waits for its verdict. So names, filter, list and the closing line
//! are those that cargo's users know.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use granule_runner::report::{Entry, Status};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::Options;

/// As many as share a small host without one starving another's time limits.
const AT_ONCE: usize = 2;
/// Memory that jobs which run together may take, in MiB; one alone may take more.
const MEMORY_MIB: u64 = 3 << 10;

type Entries = Arc<Mutex<Vec<Entry>>>;

/// What runs some tests and sends their outcomes.
struct Job {
    memory_mib: u64,
    run: Box<dyn FnOnce() + Send>,
}

/// The jobs that wait, and the memory of those that run.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    memory_mib: u64,
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

/// How a test went: its verdict, output and CPU time.
pub(super) type Outcome = (Status, String, Duration);

/// What is to run.
pub(super) struct List<'a> {
    pub(super) options: &'a Options,
    pub(super) seed: u64,
    trials: Vec<Trial>,
    queue: Queue,
    entries: Entries,
}

impl<'a> List<'a> {
    pub(super) fn new(options: &'a Options, seed: u64) -> Self {
        Self { options, seed, trials: Vec::new(), queue: Queue::default(), entries: Entries::default() }
    }

    /// Adds a test, which a job runs that gets the other end; `None` where the filter leaves it out.
    pub(super) fn test(&mut self, suite: &str, test: &str) -> Option<Sender<Outcome>> {
        let (suite, test, entries) = (suite.to_owned(), test.to_owned(), Arc::clone(&self.entries));
        let (sender, verdict) = channel();
        let name = format!("{suite}::{test}");
        let is_wanted = self.options.wants(&name);
        self.trials.push(Trial::ignorable_test(name, move || wait(&verdict, &entries, suite, test)));
        is_wanted.then_some(sender)
    }

    /// Adds a test that does not run.
    pub(super) fn skip(&mut self, suite: &str, test: &str, why: &str) {
        if let Some(sender) = self.test(suite, test) {
            // The trial has the other end.
            let _ = sender.send((Status::Skipped(why.to_owned()), String::new(), Duration::ZERO));
        }
    }

    /// Adds what sends the outcomes of some tests, and takes so much memory. Those of which it sends none have failed.
    pub(super) fn job(&mut self, memory_mib: u64, job: impl FnOnce() + Send + 'static) {
        self.queue.jobs.push_back(Job { memory_mib, run: Box::new(job) });
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
    pub(super) fn run(self) -> Vec<Entry> {
        let Self { options, trials, queue, entries, .. } = self;
        // What is not wanted is counted as filtered out.
        let skip = trials.iter().map(Trial::name).filter(|name| !options.wants(name)).map(str::to_owned).collect();
        let arguments =
            Arguments { list: options.list, skip, exact: true, test_threads: Some(1), ..Arguments::default() };
        if !options.list {
            start(queue);
        }
        // The entries have the verdicts.
        let _ = libtest_mimic::run(&arguments, trials);
        std::mem::take(&mut entries.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Runs the jobs in the background.
fn start(queue: Queue) {
    let shared = Arc::new((Mutex::new(queue), Condvar::new()));
    for _ in 0..AT_ONCE {
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || {
            let (queue, ended) = &*shared;
            let mut locked = queue.lock().unwrap_or_else(PoisonError::into_inner);
            while !locked.jobs.is_empty() {
                let Some(job) = locked.take() else {
                    locked = ended.wait(locked).unwrap_or_else(PoisonError::into_inner);
                    continue;
                };
                drop(locked);
                (job.run)();
                locked = queue.lock().unwrap_or_else(PoisonError::into_inner);
                locked.memory_mib -= job.memory_mib;
                ended.notify_all();
            }
        });
    }
}

/// A trial: waits for the verdict.
fn wait(verdict: &Receiver<Outcome>, entries: &Entries, suite: String, name: String) -> Result<Completion, Failed> {
    let without = |_| (Status::Failed("the runner ended without a verdict".into()), String::new(), Duration::ZERO);
    let (status, output, time) = verdict.recv().unwrap_or_else(without);
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
    use super::{Job, Queue};

    #[test]
    fn a_job_starts_once_there_is_memory_for_it() {
        let job = |memory_mib| Job { memory_mib, run: Box::new(|| ()) };
        let mut queue = Queue { jobs: [job(2300), job(8192), job(900), job(600)].into(), memory_mib: 0 };
        let mut take = || queue.take().map(|job| job.memory_mib);
        assert_eq!([take(), take(), take()], [Some(2300), Some(600), None]);
        queue.memory_mib = 0;
        assert_eq!(queue.take().map(|job| job.memory_mib), Some(8192), "one alone may take more");
        assert!(queue.take().is_none());
    }

    #[test]
    fn each_long_test_has_its_turn() {
        let drawn = |seed| super::drawn(&['a', 'b', 'c'], seed).copied();
        assert_eq!([0, 1, 2, 3, u64::MAX].map(drawn), ['a', 'b', 'c', 'a', 'a'].map(Some));
        assert_eq!(super::drawn::<char>(&[], 7), None);
    }
}
