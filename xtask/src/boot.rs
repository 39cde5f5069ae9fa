//! `./x boot --serial`: a kernel over the serial line into a board that runs the loader, and then its console.

use std::io::{IsTerminal, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use granule_image::compile::Built;
use granule_runner::load::{self, Entered, Files};
use granule_runner::serial::{Limit, Line, Port, Received};
use granule_runner::{machine, script, wire};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::start::read;

/// Bits per second of a board that boards.toml does not have.
const BAUD: u32 = 115_200;
/// Ctrl-A, after which X leaves, as in QEMU.
const ESCAPE: u8 = 0x01;
/// Between two looks at the board while nothing is typed.
const TURN: Limit = Limit::Clock(Duration::from_millis(20));

/// The board, and the kernel that it is to run.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// The serial port of the board, which runs the loader of ./x image --loader
    #[arg(long, value_name = "PORT")]
    serial: PathBuf,
    /// The board's name in tests-qemu/boards.toml, by which its baud rate is known; else it has 115200
    #[arg(long, value_name = "NAME", value_parser = granule_tools::board_names())]
    board: Option<String>,
    /// The command that resets the board; without it the board asks already, or is switched on now
    #[arg(long, value_name = "COMMAND")]
    reset: Option<String>,
    /// An arm64 Image to load instead of build/granule.img, without an initrd unless --initrd names one
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// An initrd to load instead of build/initrd.cpio
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Boot arguments, after those of the card
    #[arg(long, value_name = "ARGS", default_value = "", hide_default_value = true)]
    append: String,
    /// Type the lines of FILE (- is standard input) at the prompt, print the session, and exit non-zero if a command
    /// failed, the kernel panicked or the time limit passed
    #[arg(long, value_name = "FILE")]
    script: Option<PathBuf>,
    /// Seconds that the board may take to ask for a kernel, and those that a script may take
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    time_limit: u64,
}

/// Loads a kernel, of those that `build` builds or another, and becomes its console.
///
/// # Errors
/// The port or a file cannot be opened, the load fails, or the script did not go well.
pub(crate) fn run(options: &Options, build: impl FnOnce() -> Result<Built>) -> Result<()> {
    let baud = options.board.as_deref().map_or(Ok(BAUD), |name| machine::board(name).map(|board| board.baud))?;
    // A wrong name is to be noticed before anything is built.
    if options.reset.is_none() {
        Port::open(&options.serial, baud)?;
    }
    let (kernel, initrd) = match &options.image {
        Some(image) => (image.clone(), options.initrd.clone()),
        None => {
            let built = build()?;
            (built.kernel.image, Some(options.initrd.clone().unwrap_or(built.initrd)))
        }
    };
    let script = match &options.script {
        Some(file) => Some(read(file)?),
        None if std::io::stdin().is_terminal() => None,
        None => {
            eprintln!("x: standard input is no terminal, so it is taken as a script (--script -)");
            Some(read(Path::new("-"))?)
        }
    };
    let bytes = |file: &Path| std::fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    let script_argument = if script.is_some() { " script" } else { "" };
    let files = Files {
        kernel: bytes(&kernel)?,
        initrd: initrd.as_deref().map_or(Ok(Vec::new()), bytes)?,
        bootargs: format!("{}{script_argument}", options.append).trim().to_owned(),
    };
    let mut port = wire::open(&options.serial, baud, options.reset.as_deref())?;
    eprintln!("x: {} to the loader at {}, {baud} baud", kernel.display(), options.serial.display());
    let limit = Duration::from_secs(options.time_limit);
    let entered = send(&mut port, &files, limit).with_context(|| kernel.display().to_string())?;
    match entered.level {
        Some(level) => eprintln!("x: the kernel was entered at EL{level}"),
        None => eprintln!("x: the loader no longer asks: the kernel was entered"),
    }
    match script {
        Some(script) => scripted(&mut port, &entered, &script::lines(&script), Limit::Clock(limit)),
        None => console(&mut port, &entered),
    }
}

/// Loads with a progress bar.
fn send(port: &mut Port, files: &Files, limit: Duration) -> Result<Entered> {
    let bar = ProgressBar::new(1);
    bar.set_style(ProgressStyle::with_template("load {wide_bar} {bytes}/{total_bytes} {eta}")?);
    let entered = load::load(port, files, limit, &mut |arrived, all| {
        bar.set_length(all as u64);
        bar.set_position(arrived as u64);
    });
    bar.finish();
    entered
}

fn scripted(port: &mut Port, entered: &Entered, lines: &[String], limit: Limit) -> Result<()> {
    let wrong = script::run_over(port, &entered.output, lines, limit, &mut std::io::stdout().lock())?;
    println!();
    if !wrong.is_empty() {
        bail!("the session went wrong:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

/// The terminal without line editing, echo and signals, until this is dropped.
struct Raw(Termios);

impl Raw {
    fn new() -> Result<Self> {
        let before = tcgetattr(std::io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// Carries what the board prints and what is typed, until Ctrl-A X.
fn console(port: &mut Port, entered: &Entered) -> Result<()> {
    eprintln!("x: Ctrl-A X leaves the console; the board goes on");
    let _raw = Raw::new()?;
    let (sender, typed) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(length @ 1..) = std::io::stdin().read(&mut buffer) {
            if sender.send(buffer[..length].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut out = std::io::stdout().lock();
    out.write_all(entered.output.replace('\n', "\r\n").as_bytes())?;
    let mut keys = Keys::default();
    loop {
        out.flush()?;
        for bytes in typed.try_iter() {
            let (text, leaves) = keys.take(&bytes);
            port.send(&text);
            if leaves {
                return Ok(());
            }
        }
        match port.receive(port.deadline(TURN)) {
            Received::Bytes(bytes) => out.write_all(&bytes)?,
            Received::Silence => {}
            Received::Closed => bail!("the line was closed"),
        }
    }
}

/// The bytes that are typed, and whether Ctrl-A came last.
#[derive(Debug, Default)]
struct Keys {
    escaped: bool,
}

impl Keys {
    /// The text for the board, up to a Ctrl-A X, and whether that came. A Ctrl-A twice is one for the board.
    fn take(&mut self, bytes: &[u8]) -> (String, bool) {
        let mut kept = Vec::new();
        for &byte in bytes {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x' | b'X') => return (String::from_utf8_lossy(&kept).into_owned(), true),
                (_, byte) => kept.push(byte),
            }
        }
        (String::from_utf8_lossy(&kept).into_owned(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::Keys;

    #[test]
    fn ctrl_a_x_leaves_and_ctrl_a_twice_is_typed() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"mem\n\x01"), ("mem\n".to_owned(), false));
        assert_eq!(keys.take(b"\x01a\x01b"), ("\x01ab".to_owned(), false));
        assert_eq!(keys.take(b"c\x01"), ("c".to_owned(), false));
        assert_eq!(keys.take(b"Xmore"), (String::new(), true));
    }
}
