//! The arguments of `clone`, and which of them there are.

use granule_abi::process::{
    CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID, CLONE_DETACHED, CLONE_FILES, CLONE_FS, CLONE_IO, CLONE_PARENT,
    CLONE_PARENT_SETTID, CLONE_PTRACE, CLONE_SETTLS, CLONE_SIGHAND, CLONE_SYSVSEM, CLONE_THREAD, CLONE_UNTRACED,
    CLONE_VFORK, CLONE_VM, CSIGNAL,
};

use super::signal::Signal;
use crate::linux::errno::Errno;

/// The flags that `clone` accepts. Those for directories, semaphores, I/O contexts and tracing have no effect here.
const KNOWN: u64 = CSIGNAL
    | CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_PTRACE
    | CLONE_VFORK
    | CLONE_PARENT
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID
    | CLONE_DETACHED
    | CLONE_UNTRACED
    | CLONE_CHILD_SETTID
    | CLONE_IO;

/// The arguments of `clone`, in arm64's order.
#[derive(Clone, Copy, Debug)]
pub struct CloneRequest {
    /// `CLONE_` flags, and the signal of the child's end.
    pub flags: u64,
    /// The child's SP; 0: as the caller's.
    pub stack: u64,
    /// The address for the child's number in the parent.
    pub parent_id: u64,
    /// The child's thread pointer.
    pub tls: u64,
    /// The address in the child for its number, zeroed at its end.
    pub child_id: u64,
}

impl CloneRequest {
    /// Whether it has this flag.
    pub(in crate::linux::process) const fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// The signal of the child's end. Linux ignores the upper half.
    ///
    /// # Errors
    /// `EINVAL`: flags without meaning, or that are not supported.
    pub(in crate::linux::process) fn check(&self) -> Result<Option<Signal>, Errno> {
        if self.flags & u64::from(u32::MAX) & !KNOWN != 0
            || self.has(CLONE_THREAD) && !self.has(CLONE_SIGHAND)
            || self.has(CLONE_SIGHAND) && !self.has(CLONE_VM)
        {
            return Err(Errno::EINVAL);
        }
        match self.flags & CSIGNAL {
            0 => Ok(None),
            number => Signal::new(number).map(Some).ok_or(Errno::EINVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CloneRequest, Signal};
    use crate::linux::errno::Errno;

    /// The flags of `clone`, by their numbers on arm64, that go without another one.
    const ALONE: [u64; 15] = [
        0x100,       // VM
        0x200,       // FS
        0x400,       // FILES
        0x2000,      // PTRACE
        0x4000,      // VFORK
        0x8000,      // PARENT
        0x4_0000,    // SYSVSEM
        0x8_0000,    // SETTLS
        0x10_0000,   // PARENT_SETTID
        0x20_0000,   // CHILD_CLEARTID
        0x40_0000,   // DETACHED
        0x80_0000,   // UNTRACED
        0x100_0000,  // CHILD_SETTID
        0x8000_0000, // IO
        0,
    ];
    const VM: u64 = 0x100;
    const SIGHAND: u64 = 0x800;
    const THREAD: u64 = 0x1_0000;

    fn check(flags: u64) -> Result<Option<Signal>, Errno> {
        CloneRequest { flags, stack: 0, parent_id: 0, tls: 0, child_id: 0 }.check()
    }

    #[test]
    fn each_flag_is_known_or_refused() {
        for flag in ALONE {
            assert_eq!(check(flag), Ok(None), "{flag:#x}");
        }
        // PIDFD, NEWNS, the other namespaces: absent here.
        for bit in (8..32).filter(|bit| !ALONE.contains(&(1 << bit)) && !matches!(1 << bit, SIGHAND | THREAD)) {
            assert_eq!(check(1 << bit), Err(Errno::EINVAL), "bit {bit}");
        }
        for bit in 32..64 {
            assert_eq!(check(1 << bit), Ok(None), "Linux reads 32 bits: {bit}");
        }
    }

    #[test]
    fn a_thread_shares_its_handlers_and_these_their_space() {
        for (flags, is_allowed) in [
            (SIGHAND, false),
            (VM | SIGHAND, true),
            (THREAD, false),
            (THREAD | VM, false),
            (THREAD | SIGHAND, false),
            (THREAD | SIGHAND | VM, true),
        ] {
            assert_eq!(check(flags), if is_allowed { Ok(None) } else { Err(Errno::EINVAL) }, "{flags:#x}");
        }
    }

    #[test]
    fn the_lowest_byte_is_the_signal_of_the_end() {
        assert_eq!(check(0), Ok(None));
        for number in 1..=64 {
            assert_eq!(check(number).map(|signal| signal.map(|it| u64::from(it.number()))), Ok(Some(number)));
        }
        for number in 65..=255 {
            assert_eq!(check(number), Err(Errno::EINVAL), "{number}");
        }
    }
}
