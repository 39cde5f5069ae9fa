//! Verdicts as JUnit XML, for collectors.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

/// How a line of the report ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// It passed.
    Passed,
    /// It did not, and why.
    Failed(String),
    /// It did not run, and why.
    Skipped(String),
}

/// One line of the report.
#[derive(Clone, Debug)]
pub struct Entry {
    /// A program of tests, `documentation`, or the machine.
    pub suite: String,
    /// The test's name without it.
    pub name: String,
    /// How it went.
    pub status: Status,
    /// Its output.
    pub output: String,
    /// The CPU time that it took.
    pub time: Duration,
}

/// Writes the report.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, entries: &[Entry]) -> Result<()> {
    let mut report = Report::new("granule");
    let mut suites: Vec<TestSuite> = Vec::new();
    for entry in entries {
        let status = match &entry.status {
            Status::Passed => TestCaseStatus::success(),
            Status::Failed(why) => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(why.as_str());
                status
            }
            Status::Skipped(why) => {
                let mut status = TestCaseStatus::skipped();
                status.set_message(why.as_str());
                status
            }
        };
        let mut case = TestCase::new(entry.name.as_str(), status);
        case.set_classname(entry.suite.as_str()).set_time(entry.time);
        if !entry.output.is_empty() {
            case.set_system_out(entry.output.as_str());
        }
        match suites.iter_mut().find(|suite| suite.name.as_str() == entry.suite) {
            Some(suite) => {
                suite.add_test_case(case);
            }
            None => {
                let mut suite = TestSuite::new(entry.suite.as_str());
                suite.add_test_case(case);
                suites.push(suite);
            }
        }
    }
    report.add_test_suites(suites);
    let file = std::fs::File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
    report.serialize(file).with_context(|| format!("cannot write {}", path.display()))
}
