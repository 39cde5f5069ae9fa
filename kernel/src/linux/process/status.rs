//! The status of a process: its name, whether it runs, and how it ended.

use core::ffi::CStr;
use core::fmt;

use granule_abi::process::NAME_LENGTH;
use granule_abi::signal::{CLD_CONTINUED, CLD_EXITED, CLD_KILLED, CLD_STOPPED};
use thiserror::Error;

use super::elf::ProgramError;
use super::signal::{Signal, SignalCause};
use crate::linux::errno::Errno;

/// How a process ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcessEnd {
    /// It exited with this code.
    Exited(u8),
    /// This signal ended it.
    Killed(Signal),
}

impl ProcessEnd {
    /// As wait4 stores it.
    pub const fn word(self) -> u32 {
        match self {
            Self::Exited(code) => granule_abi::process::exited(code),
            Self::Killed(signal) => granule_abi::process::killed(signal.number()),
        }
    }
}

/// A change of a child that its parent may wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It ended.
    Ended(ProcessEnd),
    /// This signal stopped it.
    Stopped(Signal),
    /// It continues after a stop.
    Continued,
}

impl Change {
    /// As wait4 stores it.
    pub const fn word(self) -> u32 {
        match self {
            Self::Ended(end) => end.word(),
            Self::Stopped(signal) => granule_abi::process::stopped(signal.number()),
            Self::Continued => granule_abi::process::CONTINUED,
        }
    }

    /// As the signal to its parent and `waitid` report it, of the process with this number.
    pub const fn cause(self, id: u32) -> SignalCause {
        match self {
            Self::Ended(ProcessEnd::Exited(code)) => SignalCause::child(CLD_EXITED, id, code as i32),
            Self::Ended(ProcessEnd::Killed(signal)) => SignalCause::child(CLD_KILLED, id, signal.number() as i32),
            Self::Stopped(signal) => SignalCause::child(CLD_STOPPED, id, signal.number() as i32),
            Self::Continued => SignalCause::child(CLD_CONTINUED, id, Signal::CONT.number() as i32),
        }
    }
}

impl fmt::Display for ProcessEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exited with {code}"),
            Self::Killed(signal) => write!(f, "killed by {signal}"),
        }
    }
}

/// The stage of a process's life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// It runs.
    Running,
    /// Its threads are to exit.
    Ending(ProcessEnd),
    /// It has no threads any more.
    Ended(ProcessEnd),
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("running"),
            Self::Ending(_) => f.write_str("ending"),
            Self::Ended(status) => write!(f, "{status}"),
        }
    }
}

/// The name of a process: the last part of its program's path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name([u8; NAME_LENGTH]);

impl Name {
    /// The name for a path, cut off if it is too long.
    pub fn of(path: &[u8]) -> Self {
        Self::whole(path.rsplit(|&byte| byte == b'/').next().unwrap_or_default())
    }

    /// A given name, cut off if it is too long.
    pub fn whole(given: &[u8]) -> Self {
        let mut name = [0; NAME_LENGTH];
        // One byte stays zero.
        name.iter_mut().take(NAME_LENGTH - 1).zip(given).for_each(|(place, &byte)| *place = byte);
        Self(name)
    }

    /// All its bytes; at least the last one is zero.
    pub const fn bytes(&self) -> &[u8; NAME_LENGTH] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = CStr::from_bytes_until_nul(&self.0).map_or(&[][..], CStr::to_bytes);
        bytes.iter().try_for_each(|byte| write!(f, "{}", byte.escape_ascii()))
    }
}

/// A summary of a process, for other processes and the monitor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Summary {
    /// Its number.
    pub id: u32,
    /// Its parent's number; 0 where that is the kernel, or has ended.
    pub parent: u32,
    /// Whether it runs.
    pub life: Life,
    /// How many threads it has.
    pub threads: usize,
    /// Its name.
    pub name: Name,
}

/// Why a path leads to no program.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PathError {
    /// A name that is not in its directory; an empty path.
    #[error("there is no such file")]
    NotFound,
    /// A directory, a file whose mode allows no execution, or something else.
    #[error("not a file that may be executed")]
    NotExecutable,
}

impl PathError {
    /// The error of execve.
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotFound => Errno::ENOENT,
            Self::NotExecutable => Errno::EACCES,
        }
    }
}

/// Why a program cannot be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum ExecError {
    /// The path leads to no file that may be executed.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The file is no program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The path of the program's dynamic linker leads to no file that may be executed.
    #[error("its dynamic linker: {0}")]
    LinkerPath(PathError),
    /// The dynamic linker is no program.
    #[error("its dynamic linker: {0}")]
    Linker(ProgramError),
    /// The words are too many, memory ran out, or the program's segments cannot be mapped.
    #[error(transparent)]
    Errno(#[from] Errno),
}

impl ExecError {
    /// The error that execve returns.
    pub const fn errno(self) -> Errno {
        match self {
            Self::Path(error) | Self::LinkerPath(error) => error.errno(),
            Self::Program(ProgramError::CutOffPropertyNote | ProgramError::CutOffLinker)
            | Self::Linker(ProgramError::CutOffPropertyNote) => Errno::EIO,
            Self::Program(ProgramError::OutOfMemory) | Self::Linker(ProgramError::OutOfMemory) => Errno::ENOMEM,
            Self::Program(_) => Errno::ENOEXEC,
            Self::Linker(_) => Errno::ELIBBAD,
            Self::Errno(errno) => errno,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Change, ExecError, Life, Name, ProcessEnd, Signal};
    use crate::linux::errno::Errno;

    #[test]
    fn a_status_is_what_wait4_stores() {
        assert_eq!(ProcessEnd::Exited(3).word(), 0x300);
        assert_eq!(ProcessEnd::Killed(Signal::SEGV).word(), 11);
        assert_eq!([Change::Stopped(Signal::STOP), Change::Continued].map(Change::word), [0x137f, 0xffff]);
        assert_eq!(ProcessEnd::Exited(3).to_string(), "exited with 3");
        assert_eq!(ProcessEnd::Killed(Signal::SEGV).to_string(), "killed by SIGSEGV");
        assert_eq!(Life::Ended(ProcessEnd::Exited(0)).to_string(), "exited with 0");
    }

    #[test]
    fn a_name_is_the_last_part_of_a_path_and_fits() {
        assert_eq!(Name::of(b"/bin/hello").to_string(), "hello");
        assert_eq!(Name::of(b"a-name-that-is-too-long").to_string(), "a-name-that-is-");
        assert_eq!(Name::of(b"").to_string(), "");
        assert_eq!(Name::whole(b"a/b\n").to_string(), "a/b\\n", "what is no text cannot break a line");
    }

    #[test]
    fn what_is_no_program_is_enoexec() {
        assert_eq!(ExecError::Program(super::ProgramError::NotElf).errno(), Errno::ENOEXEC);
        assert_eq!(ExecError::Path(super::PathError::NotFound).errno(), Errno::ENOENT);
        let linker = ExecError::LinkerPath(super::PathError::NotFound);
        assert_eq!(
            (linker.errno(), linker.to_string()),
            (Errno::ENOENT, "its dynamic linker: there is no such file".into())
        );
        assert_eq!(ExecError::Linker(super::ProgramError::NotElf).errno(), Errno::ELIBBAD);
    }
}
