//! The tests on the host: each in a process of its own, so that its memory goes with it and a crash is its own.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use granule_runner::report::{Entry, Status};
use granule_tools::bounded::{Bounds, End};
use granule_tools::{BUILDING, Tools};
use serde::{Deserialize, Serialize};

use super::list::{self, List};

/// The harness runs the tests of one thread on its own, which has another stack.
const THREADS: &str = "--test-threads=2";
/// The words, past the harness, of a test that cannot run on this host; the reason follows.
const SKIPPED: &str = "@skipped ";
/// How the harness ends where one test has passed.
const RAN: &str = "test result: ok. 1 passed";
/// The suite of the tests in the documentation.
const DOCUMENTATION: &str = "documentation";
/// The memory of most tests at most: machines of the others are kept until the process ends, or are large. A test of which
/// a process had more has failed, as others run beside it that fit with no more; a long one at [`list::MEMORY_MIB`].
pub const MEMORY_MIB: u64 = 600;
const LARGER: [(&str, u64); 14] = [
    ("granule::mm::space::tests::random::", 2000),
    ("granule::mm::space::tests::migrate::anything_may_happen_to_a_block", 1600),
    ("granule::mm::kernel::tests::random::", 2000),
    ("granule_host_tests::outside::latency::latency_is_bounded_", 1500),
    ("granule::mm::kernel::tests::large::", 1000),
    ("granule::iommu::tests::bound::", 900),
    ("documentation", 1200),
    ("granule_host_tests::outside::boards::", 800),
    ("granule_host_tests::outside::loads::", 800),
    ("granule_host_tests::outside::newest_qemu::", 800),
    ("granule_host_tests::outside::against_linux::", 1200),
    ("granule_host_tests::outside::others::", 3000),
    ("granule::mm::space::tests::entries::", 800),
    ("granule::mm::space::tests::tag_storage::", 800),
];
/// CPU time of a test, in seconds, and of a long one: one that takes more hangs.
pub const SECONDS: u64 = 240;
const LONG_SECONDS: u64 = 12 * 3600;
/// The time of a long test whose turn it is: the run must end, and say which test took it.
const TURN_SECONDS: u64 = 1500;
/// `--long` only. They take half an hour, or a source from the network.
const NEVER_IN_TURN: [&str; 4] = ["ten_mutants", "linux_s_own_tests", super::AGAINST_LINUX, super::PROGRAMS];

/// A program of tests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    /// The package.
    pub package: String,
    /// The library, program or file of tests.
    pub target: String,
    /// Whether it is a file of tests.
    pub is_integration: bool,
    /// Its file.
    pub executable: PathBuf,
    /// The package's folder, where cargo runs its tests.
    pub directory: PathBuf,
}

impl Program {
    /// The program that a message of cargo's says it has made, if the message does.
    pub fn of(message: &serde_json::Value) -> Option<Self> {
        let executable = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)?;
        // path+file:///FOLDER#VERSION, or #NAME@VERSION where that is not the folder's.
        let (path, version) = message["package_id"].as_str()?.rsplit_once('#')?;
        let package = version.split_once('@').map_or_else(|| path.rsplit('/').next(), |(name, _)| Some(name))?;
        Some(Self {
            package: package.to_owned(),
            target: message["target"]["name"].as_str()?.to_owned(),
            is_integration: message["target"]["kind"][0] == "test",
            executable: executable.into(),
            directory: PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_owned(),
        })
    }

    /// How the names of its tests begin.
    pub fn suite(&self) -> String {
        let package = self.package.replace('-', "_");
        if self.is_integration { format!("{package}::{}", self.target) } else { package }
    }

    /// A command of it, in the environment that cargo gives its tests.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command.current_dir(&self.directory).env("CARGO_MANIFEST_DIR", &self.directory);
        command.env("CARGO_PKG_NAME", &self.package);
        command
    }

    /// A run of one test, with a seed for the numbers that it draws.
    pub fn test(&self, test: &str, seed: u64) -> Command {
        let mut command = self.command();
        command.args(["--exact", test, "--include-ignored", THREADS]).env("PROPTEST_RNG_SEED", seed.to_string());
        command
    }

    /// The names of its tests, of the long ones alone with `--ignored`.
    pub fn list(&self, more: &[&str]) -> Result<Vec<String>> {
        let output = self.command().args(["--list", "--format", "terse"]).args(more).output();
        let output = output.with_context(|| format!("cannot run {}", self.executable.display()))?;
        ensure!(output.status.success(), "{} cannot list its tests", self.executable.display());
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
    }
}

/// Builds the programs.
pub(super) fn build(tools: &Tools) -> Result<Vec<Program>> {
    let mut cargo = tools.host_cargo("test", "host");
    cargo.args(["--workspace", "--no-run", "--message-format=json-render-diagnostics"]);
    let mut programs = Vec::new();
    let made = |line: &str| programs.extend(serde_json::from_str(line).ok().as_ref().and_then(Program::of));
    let (end, _) = Bounds::default().run(BUILDING, &cargo, false, || true, made)?;
    let failure = end.failure();
    ensure!(failure.is_none(), "building the tests on the host failed: {}", failure.unwrap_or_default());
    Ok(programs)
}

/// Packages whose documentation has no examples: rustdoc would read all of them to find none.
pub const WITHOUT_EXAMPLES: [&str; 15] = [
    "granule",
    "granule-audit",
    "granule-disk",
    "granule-fuzz",
    "granule-host-tests",
    "granule-image",
    "granule-lint",
    "granule-loom",
    "granule-monitor",
    "granule-mutants",
    "granule-peers",
    "granule-protocol",
    "granule-runner",
    "granule-suite",
    "granule-tools",
];

/// The output and the verdicts of the tests in the documentation.
type Documented = Result<(String, Vec<Entry>)>;

/// Lists the tests in the documentation, or has the list run them beside its own; [`documented`] gets their end. rustdoc
/// builds them; they are few, and its own harness names and runs them, on one CPU.
pub(super) fn document(list: &List<'_>, tools: &Tools) -> Result<Option<Receiver<Documented>>> {
    let mut cargo = tools.host_cargo("test", "host");
    cargo.args(["--workspace", "--doc", "--no-fail-fast"]);
    cargo.args(WITHOUT_EXAMPLES.iter().flat_map(|package| ["--exclude", package]));
    cargo.args(["--", "--test-threads=1"]).args(&list.options.filter);
    cargo.args(list.options.skip.iter().flat_map(|filter| ["--skip", filter]));
    if list.options.list {
        cargo.arg("--list");
        print!("{}", run_documentation(&cargo)?.0);
        return Ok(None);
    }
    let (sender, receiver) = channel();
    list.job(DOCUMENTATION, memory_mib(DOCUMENTATION), move || {
        // The receiver is gone only if the whole run is.
        let _ = sender.send(run_documentation(&cargo));
    });
    Ok(Some(receiver))
}

/// Waits for the end of the tests in the documentation, and prints it; there is none where the list was stopped before.
pub(super) fn documented(receiver: Option<Receiver<Documented>>) -> Result<Vec<Entry>> {
    let Some(Ok(outcome)) = receiver.map(|receiver| receiver.recv()) else { return Ok(Vec::new()) };
    let (output, entries) = outcome?;
    print!("{output}");
    Ok(entries)
}

fn run_documentation(cargo: &Command) -> Documented {
    let (mut output, mut entries) = (String::new(), Vec::new());
    let line = |line: &str| {
        output.extend([line, "\n"]);
        entries.extend(parse(line));
    };
    let bounds = Bounds { resident_mib: Some(memory_mib(DOCUMENTATION)), ..Bounds::default() };
    let (end, time) = bounds.run(DOCUMENTATION, cargo, false, || true, line)?;
    let is_reported = entries.iter().any(|entry| matches!(entry.status, Status::Failed(_)));
    let failure = end.failure().filter(|_| !is_reported);
    ensure!(failure.is_none(), "the tests in the documentation did not run: {}", failure.unwrap_or_default());
    // They are built together, so each has its share of the time.
    let share = time.checked_div(entries.len() as u32).unwrap_or_default();
    entries.iter_mut().for_each(|entry| entry.time = share);
    Ok((output, entries))
}

/// A verdict in cargo's output: `test path::name ... ok`.
fn parse(line: &str) -> Option<Entry> {
    let (name, verdict) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let status = match verdict.split([',', ' ']).next()? {
        "ok" => Status::Passed,
        "FAILED" => Status::Failed("see the output of cargo test".into()),
        "ignored" => Status::Skipped(verdict.into()),
        _ => return None,
    };
    let (suite, name) = (DOCUMENTATION.into(), name.into());
    Some(Entry { suite, name, status, output: String::new(), time: Duration::ZERO })
}

/// Adds the tests of the programs.
pub(super) fn add(list: &mut List<'_>, programs: &[Program]) -> Result<()> {
    let mut lists = Vec::new();
    for program in programs {
        let long: BTreeSet<String> = program.list(&["--ignored"])?.into_iter().collect();
        let test = |test| (program, long.contains(&test), test);
        lists.push(program.list(&[])?.into_iter().map(test).collect::<Vec<_>>());
    }
    // Where no run has measured them they begin in this order: a program of few tests has long ones, and at the end the
    // short ones of another keep all workers busy.
    lists.sort_by_key(Vec::len);
    let tests = lists.concat();
    let name = |program: &Program, test: &str| format!("{}::{test}", program.suite());
    let long = tests.iter().filter(|(_, long, _)| *long).map(|(program, _, test)| name(program, test));
    let turn = list.long_in_turn(long.filter(|name| !NEVER_IN_TURN.iter().any(|not| name.contains(not))), "host");
    for (program, long, test) in tests {
        let suite = program.suite();
        if long && !list.options.long && turn.as_ref() != Some(&name(program, &test)) {
            list.skip(&suite, &test, "long");
        } else if let Some(sender) = list.test(&suite, &test) {
            let mut command = program.test(&test, list.seed);
            command.envs(list.options.update.then_some(("GRANULE_UPDATE", "1")));
            let seconds = match (long, list.options.long) {
                (false, _) => SECONDS,
                (true, false) => TURN_SECONDS,
                (true, true) => LONG_SECONDS,
            };
            let memory = memory_mib(&name(program, &test));
            let most = if long { list::MEMORY_MIB } else { memory };
            let bounds = Bounds { seconds: Some(seconds), memory_kib: None, resident_mib: Some(most) };
            list.job(&name(program, &test), memory, move || {
                let (end, output, time) = run(&suite, &command, bounds, || true);
                // The trial waits for the outcome; it is gone only if the whole run is.
                let _ = sender.send((verdict(end, &output), output, time));
            });
        }
    }
    Ok(())
}

/// The bound of a test's memory, in MiB.
fn memory_mib(name: &str) -> u64 {
    LARGER.iter().find(|(begin, _)| name.starts_with(begin)).map_or(MEMORY_MIB, |&(_, memory)| memory)
}

/// Runs one test, as long as it is `wanted`: how its process ended, its output, and its CPU time.
pub fn run(
    suite: &str,
    command: &Command,
    bounds: Bounds,
    wanted: impl Fn() -> bool,
) -> (Result<End>, String, Duration) {
    let mut output = String::new();
    match bounds.run(suite, command, true, wanted, |line| output.extend([line, "\n"])) {
        Ok((end, time)) => (Ok(end), output, time),
        Err(error) => (Err(error), output, Duration::ZERO),
    }
}

/// The verdict that the end of a test's process and its output give.
pub fn verdict(end: Result<End>, output: &str) -> Status {
    match end.map(End::failure) {
        Ok(Some(why)) => Status::Failed(why),
        Err(error) => Status::Failed(format!("{error:#}")),
        Ok(None) => {
            let skipped = output.lines().find_map(|line| line.strip_prefix(SKIPPED));
            // A program that was built anew meanwhile may have no test of that name, which is a success to it.
            let has_run = output.lines().any(|line| line.starts_with(RAN));
            let verdict = if has_run { Status::Passed } else { Status::Failed("its program ran no such test".into()) };
            skipped.map_or(verdict, |why| Status::Skipped(why.to_owned()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use granule_runner::report::Status;
    use granule_runner::usage;

    use super::{Program, parse, run, verdict};
    use granule_tools::bounded::Bounds;

    /// The verdict of a script that takes so many seconds at most, and its output.
    fn within(seconds: u64, script: &str) -> (Status, String) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let bounds = Bounds { seconds: Some(seconds), resident_mib: Some(250), ..Bounds::default() };
        let (end, output, _) = run("host::tests", &command, bounds, || true);
        (verdict(end, &output), output)
    }

    #[test]
    fn a_process_is_a_verdict_with_its_output() {
        let shell = |script| within(60, script);
        let script = "echo one; echo two >&2; echo 'test result: ok. 1 passed; 0 failed'";
        let output = "one\ntwo\ntest result: ok. 1 passed; 0 failed\n";
        assert_eq!(shell(script), (Status::Passed, output.into()));
        assert!(matches!(shell("echo 'test result: ok. 0 passed'").0, Status::Failed(_)));
        assert_eq!(shell("echo '@skipped no apt' >&2").0, Status::Skipped("no apt".into()));
        let (status, output) = shell("echo '@skipped no'; printf half; exit 101");
        assert!(matches!(status, Status::Failed(why) if why.contains("101")));
        assert!(output.ends_with("half\n"));
        assert!(matches!(shell("kill -SEGV $$").0, Status::Failed(why) if why.contains("signal")));
        let hangs = within(1, "while :; do :; done").0;
        assert!(matches!(&hangs, Status::Failed(why) if why.contains("hangs")), "{hangs:?}");
        let fills = "dd if=/dev/zero of=/dev/null bs=314572800 count=1 2>/dev/null; echo 'test result: ok. 1 passed'";
        let large = shell(fills).0;
        assert!(matches!(&large, Status::Failed(why) if why.contains("more than its bound of 250 MiB")), "{large:?}");
        let taken = usage::spans();
        assert!(taken.iter().any(|span| span.suite == "host::tests" && span.memory > 100 << 10), "{taken:?}");
    }

    #[test]
    fn programs_of_tests_are_found_in_cargos_messages() {
        let program = |id: &str, kind: &str, test: bool| {
            let message = format!(
                r#"{{"reason":"compiler-artifact","package_id":"{id}","manifest_path":"/g/kernel/Cargo.toml",
                "target":{{"kind":["{kind}"],"name":"t"}},"profile":{{"test":{test}}},"executable":"/g/t-1"}}"#
            );
            Program::of(&serde_json::from_str(&message).unwrap()).map(|program| program.suite())
        };
        let named = "path+file:///g/kernel#granule@0.1.0";
        assert_eq!(program(named, "lib", true).as_deref(), Some("granule"));
        assert_eq!(program(named, "test", true).as_deref(), Some("granule::t"));
        assert_eq!(program("path+file:///g/xtask#0.1.0", "bin", true).as_deref(), Some("xtask"));
        assert_eq!(program(named, "bin", false), None);
    }

    #[test]
    fn verdicts_of_cargo_are_read() {
        let status = |line| parse(line).map(|entry| (entry.name, entry.status));
        assert_eq!(status("test a::b ... ok"), Some(("a::b".into(), Status::Passed)));
        assert!(matches!(status("test a::b ... FAILED"), Some((_, Status::Failed(_)))));
        assert!(matches!(status("test a ... ignored, slow"), Some((_, Status::Skipped(_)))));
        assert_eq!(status("test result: ok. 5 passed; 0 failed"), None);
        assert_eq!(status("running 5 tests"), None);
    }
}
