//! The time of each test in the last run that had it, kept in `build/`: the order in which the next run begins them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use granule_runner::report::Entry;

/// CPU time by name, of a test or of a machine with all its tests.
#[derive(Debug, Default)]
pub(super) struct Took {
    file: PathBuf,
    times: BTreeMap<String, Duration>,
}

impl Took {
    /// The times of the file in that folder; none where there is no file.
    pub(super) fn read(folder: &Path) -> Self {
        let file = folder.join("took.tsv");
        let line = |line: &str| {
            let (name, millis) = line.split_once('\t')?;
            Some((name.to_owned(), Duration::from_millis(millis.parse().ok()?)))
        };
        let times = fs::read_to_string(&file).unwrap_or_default().lines().filter_map(line).collect();
        Self { file, times }
    }

    /// The time of a test or a machine; longer than all others where that is not known.
    pub(super) fn of(&self, name: &str) -> Duration {
        self.times.get(name).copied().unwrap_or(Duration::MAX)
    }

    /// Adds the tests of a run.
    pub(super) fn add(&mut self, entries: &[Entry]) {
        let mut suites = BTreeMap::<&str, Duration>::new();
        for entry in entries.iter().filter(|entry| super::ran(entry)) {
            self.times.insert(format!("{}::{}", entry.suite, entry.name), entry.time);
            *suites.entry(&entry.suite).or_default() += entry.time;
        }
        self.times.extend(suites.into_iter().map(|(suite, time)| (suite.to_owned(), time)));
    }

    /// Writes the file.
    pub(super) fn write(&self) -> Result<()> {
        let line = |(name, time): (&String, &Duration)| format!("{name}\t{}\n", time.as_millis());
        let text: String = self.times.iter().map(line).collect();
        fs::write(&self.file, text).with_context(|| format!("cannot write {}", self.file.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use granule_runner::report::{Entry, Status};

    use super::Took;

    #[test]
    fn what_tests_took_is_kept() {
        let folder = std::env::temp_dir().join(format!("granule-took-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let entry = |name: &str, status, millis| Entry {
            suite: "a53".into(),
            name: name.into(),
            status,
            output: String::new(),
            time: Duration::from_millis(millis),
        };
        let mut took = Took::read(&folder);
        assert_eq!(took.of("a53"), Duration::MAX);
        took.add(&[
            entry("one", Status::Passed, 20),
            entry("two", Status::Failed("no".into()), 30),
            entry("three", Status::Skipped("long".into()), 0),
        ]);
        took.write().unwrap();
        let again = Took::read(&folder);
        std::fs::remove_dir_all(&folder).unwrap();
        let millis = ["a53", "a53::one", "a53::two", "a53::three"].map(|name| again.of(name));
        assert_eq!(
            millis,
            [50, 20, 30].map(Duration::from_millis).into_iter().chain([Duration::MAX]).collect::<Vec<_>>()[..]
        );
    }
}
