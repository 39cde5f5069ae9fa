//! QEMU's models of boards: started as boards.toml says, and at the end of a serial line as a board is.

use std::ffi::OsString;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::Duration;

use granule_runner::debian::{files, newest_trees};
use granule_runner::machine::{Board, Machine};
use granule_runner::noise::Noise;
use granule_runner::qemu::{Qemu, Reset, Serial, initrd_of};
use serial2::SerialPort;

use crate::{bare, own_file};

/// Between two looks at the line, the power switch and the process.
const POLL: Duration = Duration::from_millis(10);

/// The command line of a board's model that starts an image with its initrd. `scratch` keeps device trees, and what the
/// first port prints where that is another device's.
///
/// # Panics
/// When the board has no model, or Debian's package of trees cannot be taken or does not have its tree.
#[must_use]
pub fn model(board: &Board, kernel: &Path, bootargs: &str, scratch: &Path) -> Qemu {
    let model = board.model.as_ref().expect("a model of the board");
    let mut extra = ["-audio", "none", "-kernel"].map(Into::into).to_vec();
    extra.extend([kernel.into(), "-initrd".into(), initrd_of(kernel).into()]);
    if !bootargs.is_empty() {
        extra.extend(["-append".into(), bootargs.into()]);
    }
    if let Some(tree) = &model.tree {
        let (trees, _) = newest_trees(&scratch.join("device-trees")).expect("the package can be taken");
        let found = files(&trees, "dtb").into_iter().find(|path| path.ends_with(tree));
        extra.extend(["-dtb".into(), found.expect("the package has the tree").into()]);
    }
    extra.extend(bare::options(&board.machine, scratch).into_iter().flatten());
    let serial = if model.port == 1 { Serial::Pipes } else { Serial::SecondPipes(first_port(&board.machine, scratch)) };
    Qemu::without_kernel(&board.machine, serial, Reset::Ends, &extra)
}

/// The file with the output of the first port of a model whose console is the second.
#[must_use]
pub fn first_port(model: &Machine, scratch: &Path) -> PathBuf {
    own_file(scratch, &format!("{}.first-port", model.name))
}

/// A model as a board at the end of a line: whenever it ends it starts again, as it does when it is switched off and on.
/// Dropping it takes it off the line.
#[derive(Debug)]
pub struct OnALine {
    /// The runner's end of the line; open, so that the line stays when the runner closes it.
    _far_end: SerialPort,
    /// The name of that end.
    pub port: PathBuf,
    switch: PathBuf,
    is_over: Arc<AtomicBool>,
    relay: Option<JoinHandle<()>>,
}

/// The path of a terminal.
///
/// # Panics
/// When it has none.
#[must_use]
pub fn terminal_of(port: &SerialPort) -> PathBuf {
    let name = rustix::termios::ttyname(port, Vec::new()).expect("the terminal has a name");
    PathBuf::from(OsString::from_vec(name.into_bytes()))
}

impl OnALine {
    /// Puts a model on a line with so many damaged bytes in a million, in each direction. `scratch` has its power switch.
    ///
    /// # Panics
    /// When this host gives no pseudo terminal.
    #[must_use]
    pub fn new(qemu: Qemu, scratch: &Path, seed: u64, per_million: u32) -> Self {
        let (mut near_end, far_end) = SerialPort::pair().expect("a pseudo terminal");
        near_end.set_read_timeout(POLL).expect("a timeout");
        let port = terminal_of(&far_end);
        let name = port.to_string_lossy().replace('/', "-");
        let switch = own_file(scratch, &format!("switch{name}"));
        let is_over = Arc::new(AtomicBool::new(false));
        let (line, pressed, over) = (Arc::new(near_end), switch.clone(), Arc::clone(&is_over));
        let noise = [Noise::new(seed, per_million), Noise::new(!seed, per_million)];
        let relay = spawn(move || relay(&qemu, &line, noise, &pressed, &over));
        Self { _far_end: far_end, port, switch, is_over, relay: Some(relay) }
    }

    /// The command that switches the board off and on.
    #[must_use]
    pub fn reset(&self) -> String {
        let switch = self.switch.display();
        format!("touch '{switch}' && while [ -e '{switch}' ]; do sleep 0.1; done")
    }
}

impl Drop for OnALine {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(relay) = self.relay.take() {
            // A relay that has panicked has said why.
            let _ = relay.join();
        }
    }
}

/// Starts the model again and again, and carries what it prints and what is typed.
fn relay(qemu: &Qemu, line: &Arc<SerialPort>, [mut to, from]: [Noise; 2], switch: &Path, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let mut board = qemu.command();
        board.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut board = board.spawn().expect("QEMU starts");
        let printer = print(&mut board, Arc::clone(line), from.clone());
        let mut input = board.stdin.take();
        let mut buffer = [0; 256];
        while !is_over.load(Ordering::Relaxed) && !switch.exists() && matches!(board.try_wait(), Ok(None)) {
            let length = line.read(&mut buffer).unwrap_or(0);
            if let Some(input) = &mut input {
                let _ = input.write_all(&to.pass(&buffer[..length])).and_then(|()| input.flush());
            }
        }
        // Both fail only where it has ended already.
        let _ = board.kill();
        let _ = board.wait();
        let _ = printer.join();
        // There may be none.
        let _ = fs::remove_file(switch);
    }
}

/// Carries what the board prints.
fn print(board: &mut Child, line: Arc<SerialPort>, mut noise: Noise) -> JoinHandle<()> {
    let output = board.stdout.take();
    spawn(move || {
        let Some(mut output) = output else { return };
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = output.read(&mut buffer) {
            // A line that is not read loses it.
            let _ = line.write_all(&noise.pass(&buffer[..length]));
        }
    })
}
