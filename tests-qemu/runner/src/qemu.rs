//! The one place where a QEMU command line is written.
//!
//! `./x run`, `./x test`, `./x qemu` and the tests from outside all come here, so what `./x qemu` prints is what ran.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::device;
use crate::machine::{ICOUNT, Machine};
use crate::tree;

/// Where the serial port leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Serial {
    /// To this terminal, shared with QEMU's own keys: Ctrl-C reaches the guest, Ctrl-A X leaves.
    Terminal,
    /// To standard input and output as they are: pipes.
    Pipes,
    /// The machine's second port leads there, and what the first prints goes to this file.
    SecondPipes(PathBuf),
}

/// The effect of a guest's reset request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reset {
    /// The machine starts again, as hardware would.
    Restarts,
    /// QEMU ends: under a runner an unexpected reset must not look like a boot.
    Ends,
}

/// A QEMU command line.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    cpus: u32,
    arguments: Vec<OsString>,
}

impl Qemu {
    /// The command line that runs `kernel` on `machine`, with the initrd that lies beside it, if one does, and with the
    /// machine's devices. The contents of their disks are put beside it as well, and so is the device tree if it is not
    /// QEMU's own.
    ///
    /// `extra` comes last, so that it may override what stands before it.
    pub fn new(
        machine: &Machine,
        kernel: &Path,
        serial: Serial,
        reset: Reset,
        bootargs: &str,
        extra: &[OsString],
    ) -> Self {
        let mut qemu = Self::without_kernel(machine, serial, reset, &[]);
        if let Some(storage) = machine.tag_storage {
            match tree::write(qemu.command(), extra, &machine.name, storage, kernel) {
                Ok(tree) => qemu.arguments.extend(["-dtb".into(), tree.into()]),
                // No such machine: QEMU does not start without the file.
                Err(error) => {
                    eprintln!("x: no device tree for {}: {error:#}", machine.name);
                    qemu.pair("-dtb", "missing.dtb");
                }
            }
        }
        qemu.arguments.extend(["-kernel".into(), kernel.into()]);
        let initrd = initrd_of(kernel);
        if initrd.is_file() {
            qemu.arguments.extend(["-initrd".into(), initrd.into()]);
        }
        let disk = device::disk_of(kernel);
        if let Err(error) = device::make_disk(&machine.devices, &disk) {
            // QEMU reports a file that is not there, and ends.
            eprintln!("x: cannot write {}: {error}", disk.display());
        }
        qemu.arguments.extend(device::arguments(&machine.devices, &disk));
        // Of two words for one thing the last one counts: the caller's.
        let bootargs = format!("{} {} {bootargs}", device::bootargs(&machine.devices), machine.bootargs);
        if !bootargs.trim().is_empty() {
            qemu.pair("-append", bootargs.trim());
        }
        qemu.arguments.extend_from_slice(extra);
        qemu
    }

    /// The command line of `machine` with nothing to run but what `extra` loads, and without its devices.
    pub fn without_kernel(machine: &Machine, serial: Serial, reset: Reset, extra: &[OsString]) -> Self {
        let mut qemu = Self { program: program(), cpus: machine.smp, arguments: Vec::new() };
        qemu.pair("-machine", &machine.machine);
        qemu.pair("-cpu", &machine.cpu);
        qemu.pair("-smp", &machine.smp.to_string());
        qemu.pair("-m", &machine.memory);
        // No network card: its default one wants a ROM that distributions package apart.
        qemu.pair("-nic", "none");
        qemu.pair("-display", "none");
        qemu.pair("-monitor", "none");
        if let Serial::SecondPipes(first) = &serial {
            qemu.pair("-serial", &format!("file:{}", first.display()));
        }
        qemu.pair("-serial", if serial == Serial::Terminal { "mon:stdio" } else { "stdio" });
        qemu.pair("-semihosting-config", "enable=on,target=native");
        if reset == Reset::Ends {
            qemu.arguments.push("-no-reboot".into());
        }
        if machine.icount {
            qemu.arguments.extend(ICOUNT.map(Into::into));
        }
        qemu.arguments.extend_from_slice(extra);
        qemu
    }

    /// The command line with `extra` at its end.
    #[must_use]
    pub fn with(mut self, extra: &[OsString]) -> Self {
        self.arguments.extend_from_slice(extra);
        self
    }

    /// The command line of another QEMU.
    #[must_use]
    pub fn by(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    /// Any program in QEMU's place.
    #[cfg(test)]
    pub(crate) fn stand_in(program: &str, arguments: &[&str]) -> Self {
        Self { program: program.into(), cpus: 1, arguments: arguments.iter().map(Into::into).collect() }
    }

    /// CPUs of the machine.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// The command, ready to start.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        command
    }

    fn pair(&mut self, option: &str, value: &str) {
        self.arguments.extend([option.into(), value.into()]);
    }
}

/// The line as a shell takes it.
impl fmt::Display for Qemu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", quoted(&self.program.to_string_lossy()))?;
        self.arguments.iter().try_for_each(|argument| write!(f, " {}", quoted(&argument.to_string_lossy())))
    }
}

/// Where the initrd of a kernel image is.
pub fn initrd_of(kernel: &Path) -> PathBuf {
    kernel.with_file_name("initrd.cpio")
}

/// The QEMU that `./x` found, or the one in PATH.
pub fn program() -> PathBuf {
    std::env::var_os("GRANULE_QEMU").map_or_else(|| "qemu-system-aarch64".into(), PathBuf::from)
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("-smp"), "-smp");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
