//! A command within bounds of time and memory.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How a command ended.
#[derive(Debug)]
pub(super) enum End {
    /// By itself.
    Exit(ExitStatus),
    /// Its output had what was waited for; it was killed.
    Stopped(String),
    /// The time limit passed; it was killed.
    TimeLimit,
}

/// How a command ended, and what it printed, both streams line by line.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) end: End,
    pub(super) output: Vec<String>,
}

impl Run {
    /// Whether it ran out of memory, by what Rust's runtime prints then.
    pub(super) fn lacked_memory(&self) -> bool {
        self.output.iter().any(|line| line.contains("memory allocation of ") || line.contains("Cannot allocate memory"))
    }
}

/// A command that may have `kib` KiB of address space, it and each that it starts.
pub(super) fn with_memory(command: &Command, kib: u64) -> Command {
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("ulimit -v {kib}; exec \"$0\" \"$@\""));
    limited.arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        limited.current_dir(directory);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

/// Runs a command until it ends, `time` has passed, or `stop` finds in a line of its standard output why it may end. It
/// stays in this process's group, so that Ctrl-C ends it too.
///
/// # Errors
/// When it cannot be run.
pub(super) fn run(mut command: Command, time: Duration, stop: impl Fn(&str) -> Option<String>) -> Result<Run> {
    let program = command.get_program().to_string_lossy().into_owned();
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.with_context(|| format!("cannot run {program}"))?;
    let until = Instant::now() + time;
    let (sender, lines) = channel();
    let output = child.stdout.take().context("no standard output")?;
    let errors = child.stderr.take().context("no standard error")?;
    read(output, true, sender.clone());
    read(errors, false, sender);
    let mut output = Vec::new();
    let end = loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((line, is_output)) => {
                let stopped = if is_output { stop(&line) } else { None };
                output.push(line);
                if let Some(why) = stopped {
                    kill(&mut child);
                    break End::Stopped(why);
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                kill(&mut child);
                break End::TimeLimit;
            }
            Err(RecvTimeoutError::Disconnected) => break End::Exit(child.wait()?),
        }
    };
    Ok(Run { end, output })
}

/// Sends the lines of a stream.
fn read(stream: impl Read + Send + 'static, is_output: bool, lines: Sender<(String, bool)>) {
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut bytes = Vec::new();
        while stream.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
            bytes.clear();
            if lines.send((line, is_output)).is_err() {
                return;
            }
        }
    });
}

/// Kills a process and all that it started.
fn kill(child: &mut Child) {
    let mut doomed = vec![child.id()];
    let listed = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output();
    let listed = listed.map(|listed| String::from_utf8_lossy(&listed.stdout).into_owned()).unwrap_or_default();
    let pairs: Vec<(u32, u32)> = listed.lines().filter_map(pair).collect();
    let mut at = 0;
    while let Some(&parent) = doomed.get(at) {
        doomed.extend(pairs.iter().filter(|(_, of)| *of == parent).map(|(process, _)| *process));
        at += 1;
    }
    // Those that ended meanwhile are no error.
    let processes = doomed.iter().map(u32::to_string);
    let _ = Command::new("kill").arg("-KILL").args(processes).stderr(Stdio::null()).status();
    let _ = child.wait();
}

fn pair(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
