//! A command within bounds of CPU time and memory, which the operating system keeps for it and for each process that it
//! starts: a busy host takes nothing from them.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use granule_runner::serial::STANDING_STILL;
use granule_runner::usage;
use wait4::Wait4;

/// The signal for a process that has used its bound of CPU time: number 24 on Linux for arm64 and x86, and on the BSDs.
const SIGXCPU: i32 = 24;
/// How often it is asked whether a command that prints nothing is still wanted.
const POLL: Duration = Duration::from_millis(100);

/// Bounds of a process's use; `None` bounds nothing.
#[derive(Clone, Copy, Default, Debug)]
pub struct Bounds {
    /// CPU time in seconds. A command that does not use it has [`STANDING_STILL`] times as long by the clock.
    pub seconds: Option<u64>,
    /// Address space in KiB.
    pub memory_kib: Option<u64>,
    /// The most memory that one of its processes may have had at the end, in MiB: a success beyond it is none.
    pub resident_mib: Option<u64>,
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// By itself, or by another's signal.
    Exit(ExitStatus),
    /// By its bound of CPU time, in seconds.
    Work(u64),
    /// It was killed: so many times its bound of CPU time had passed by the clock.
    Still(u64),
    /// It was killed, as it is no longer wanted.
    Unwanted,
    /// By itself, but it had so much memory, in MiB, where its bound was the second.
    Memory(u64, u64),
}

impl End {
    /// Why this is no success.
    pub fn failure(self) -> Option<String> {
        match self {
            Self::Exit(status) if status.success() => None,
            Self::Exit(status) => Some(format!("its process ended with {status}")),
            Self::Work(seconds) => Some(format!("it hangs: it took more than its bound of {seconds} s of CPU time")),
            Self::Still(seconds) => Some(format!(
                "it hangs: it ran for {} s without taking its bound of {seconds} s of CPU time",
                u64::from(STANDING_STILL) * seconds
            )),
            Self::Unwanted => Some("it is no longer wanted".into()),
            Self::Memory(had, bound) => {
                Some(format!("it took {had} MiB of memory, more than its bound of {bound} MiB"))
            }
        }
    }
}

impl Bounds {
    /// The command, started by a shell that has the bounds.
    fn on(self, command: &Command) -> Command {
        let bound = |option: &str, value: Option<u64>| value.map(|value| format!("ulimit -S -{option} {value}; "));
        let bounds = [bound("t", self.seconds), bound("v", self.memory_kib)];
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(bounds.into_iter().flatten().collect::<String>() + "exec \"$0\" \"$@\"");
        shell.arg(command.get_program()).args(command.get_args());
        if let Some(directory) = command.get_current_dir() {
            shell.current_dir(directory);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        shell
    }

    /// Runs a command, and notes for `suite` what it took: how it ended, and its CPU time. `line` gets each line of its
    /// output, with its errors among them if they are `merged`; it is killed once it is not `wanted`. It stays in this
    /// process's group, so that Ctrl-C ends it too.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn run(
        self,
        suite: &str,
        command: &Command,
        merged: bool,
        wanted: impl Fn() -> bool,
        mut line: impl FnMut(&str),
    ) -> Result<(End, Duration)> {
        let program = command.get_program().to_string_lossy().into_owned();
        let begin = Instant::now();
        let (output, writer) = std::io::pipe()?;
        let mut command = self.on(command);
        if merged {
            command.stderr(writer.try_clone()?);
        }
        let child = command.stdin(Stdio::null()).stdout(writer).spawn();
        let mut child = child.with_context(|| format!("cannot run {program}"))?;
        // It has the only ends of the pipe that are written to.
        drop(command);
        let (sender, lines) = channel();
        std::thread::spawn(move || BufReader::new(output).split(b'\n').try_for_each(|bytes| sender.send(bytes)));
        let mut killed = None;
        while killed.is_none() {
            match lines.recv_timeout(POLL) {
                Ok(bytes) => line(&String::from_utf8_lossy(&bytes?)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            let still =
                self.seconds.filter(|seconds| begin.elapsed().as_secs() / u64::from(STANDING_STILL) >= *seconds);
            killed = still.map(End::Still).or_else(|| (!wanted()).then_some(End::Unwanted));
        }
        if killed.is_some() {
            // It has ended already where this fails.
            let _ = child.kill();
        }
        let ended = child.wait4().with_context(|| format!("cannot wait for {program}"))?;
        let work = ended.rusage.utime + ended.rusage.stime;
        usage::add(suite, begin, work, ended.rusage.maxrss);
        let bound = self.seconds.filter(|_| ended.status.signal() == Some(SIGXCPU));
        let end = killed.or(bound.map(End::Work)).unwrap_or(End::Exit(ended.status));
        Ok((self.with_memory(end, ended.rusage.maxrss), work))
    }

    /// The end of a command of which a process had `memory` bytes.
    fn with_memory(self, end: End, memory: u64) -> End {
        let had = memory.div_ceil(1 << 20);
        let over = self.resident_mib.filter(|bound| had > *bound && end.failure().is_none());
        over.map_or(end, |bound| End::Memory(had, bound))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::{Bounds, End};

    fn run(bounds: Bounds, script: &str, wanted: impl Fn() -> bool) -> (End, Duration, Vec<String>) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut lines = Vec::new();
        let (end, work) = bounds.run("bounded", &command, true, wanted, |line| lines.push(line.to_owned())).unwrap();
        (end, work, lines)
    }

    #[test]
    fn a_process_that_computes_for_ever_ends_by_its_cpu_time() {
        // On a busy host it may get so little of a CPU that it seems to stand still: with a larger bound less likely.
        let computes = |script: &str| {
            let ends =
                [1, 2, 4, 8, 16].map(|seconds| (seconds, Bounds { seconds: Some(seconds), ..Bounds::default() }));
            let mut ends = ends.into_iter().map(|(seconds, bounds)| (seconds, run(bounds, script, || true)));
            ends.find(|(seconds, (end, ..))| *end != End::Still(*seconds)).expect("one that does not stand still")
        };
        let (seconds, (end, _, lines)) = computes("echo begun; while :; do :; done");
        assert_eq!((end, lines.concat().as_str()), (End::Work(seconds), "begun"));
        let why = end.failure().unwrap();
        assert!(why.contains(&format!("more than its bound of {seconds} s of CPU time")), "{why}");
        // One that it starts has the bound as well, and is an end of its own.
        let (_, (end, _, lines)) = computes("sh -c 'while :; do :; done'; echo $?");
        assert!(end.failure().is_none(), "{end:?}");
        assert_eq!(lines.last().map(String::as_str), Some("152"));
    }

    #[test]
    fn a_process_that_stands_still_is_not_waited_for_for_ever() {
        let (end, work, _) = run(Bounds { seconds: Some(1), ..Bounds::default() }, "exec sleep 1000", || true);
        assert_eq!(end, End::Still(1));
        assert!(work < Duration::from_secs(1));
        assert!(end.failure().is_some_and(|why| why.contains("for 10 s without")));
    }

    /// `dd` fills a buffer of that size: a child counts as the command does. Another failure has a reason of its own.
    #[test]
    fn a_command_that_had_more_memory_than_its_bound_is_no_success() {
        let fills = "dd if=/dev/zero of=/dev/null bs=314572800 count=1 2>/dev/null; exit";
        let bounds = |resident_mib| Bounds { resident_mib: Some(resident_mib), ..Bounds::default() };
        let (end, ..) = run(bounds(250), fills, || true);
        let End::Memory(had, 250) = end else { panic!("{end:?}") };
        assert!((300..1000).contains(&had), "{had}");
        assert_eq!(end.failure().unwrap(), format!("it took {had} MiB of memory, more than its bound of 250 MiB"));
        assert_eq!(run(bounds(had + 200), fills, || true).0.failure(), None);
        let (end, ..) = run(bounds(250), &format!("{fills} 3"), || true);
        assert!(matches!(end, End::Exit(status) if status.code() == Some(3)), "{end:?}");
    }

    #[test]
    fn what_is_no_longer_wanted_ends() {
        let (end, ..) = run(Bounds::default(), "exec sleep 1000", || false);
        assert_eq!(end, End::Unwanted);
    }

    #[test]
    fn a_command_has_its_bound_of_memory_its_folder_and_its_environment() {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -v; pwd; echo $ONE $2; echo error >&2", "0", "1", "a b"]);
        command.env("ONE", "1").current_dir("/");
        let mut lines = Vec::new();
        let bounds = Bounds { memory_kib: Some(1 << 20), ..Bounds::default() };
        let (end, _) = bounds.run("bounded", &command, true, || true, |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(end.failure(), None);
        assert_eq!(lines, ["1048576", "/", "1 a b", "error"]);
    }
}
