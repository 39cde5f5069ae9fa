//! The arguments of `clone` and `clone3`, and which of them there are.

use granule_abi::process::{
    CLONE_CHILD_CLEARTID, CLONE_CHILD_SETTID, CLONE_CLEAR_SIGHAND, CLONE_DETACHED, CLONE_FILES, CLONE_FS, CLONE_IO,
    CLONE_PARENT, CLONE_PARENT_SETTID, CLONE_PIDFD, CLONE_PTRACE, CLONE_SETTLS, CLONE_SIGHAND, CLONE_SYSVSEM,
    CLONE_THREAD, CLONE_UNTRACED, CLONE_VFORK, CLONE_VM, CSIGNAL,
};
use granule_arch::addr::VirtAddr;

use super::signal::Signal;
use crate::linux::errno::Errno;
use crate::uaccess;

/// The flags that both calls accept. Those for directories, semaphores, I/O contexts and tracing have no effect here.
const KNOWN: u64 = CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SIGHAND
    | CLONE_PIDFD
    | CLONE_PTRACE
    | CLONE_VFORK
    | CLONE_PARENT
    | CLONE_THREAD
    | CLONE_SYSVSEM
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID
    | CLONE_UNTRACED
    | CLONE_CHILD_SETTID
    | CLONE_IO;

/// The arguments of a clone.
#[derive(Clone, Copy, Default, Debug)]
pub struct CloneRequest {
    /// `CLONE_` flags.
    pub flags: u64,
    /// The signal of the child's end.
    pub exit_signal: Option<Signal>,
    /// The child's SP; 0: as the caller's.
    pub stack: u64,
    /// The address for the child's number in the parent.
    pub parent_id: u64,
    /// The child's thread pointer.
    pub tls: u64,
    /// The address in the child for its number, zeroed at its end.
    pub child_id: u64,
    /// The address for the descriptor that refers to the child.
    pub pidfd: u64,
    /// The child's number, where that is not the next one.
    pub number: Option<u32>,
}

impl CloneRequest {
    /// Words of [`Self::of_clone3`].
    pub const WORDS: usize = 11;

    /// Of the arguments of `clone`, in arm64's order. Linux ignores the upper half of the flags.
    ///
    /// # Errors
    /// `EINVAL`: flags without meaning, or that exclude each other.
    pub fn of_clone([flags, stack, parent_id, tls, child_id]: [u64; 5]) -> Result<Self, Errno> {
        let flags = flags & u64::from(u32::MAX);
        let exit_signal = signal(flags & CSIGNAL)?;
        let one_place = CLONE_PIDFD | CLONE_PARENT_SETTID;
        if flags & CLONE_PIDFD != 0 && flags & CLONE_DETACHED != 0 || flags & one_place == one_place {
            return Err(Errno::EINVAL);
        }
        let flags = flags & !(CSIGNAL | CLONE_DETACHED);
        let request = Self { flags, exit_signal, stack, parent_id, tls, child_id, pidfd: parent_id, ..Self::default() };
        request.checked(KNOWN)
    }

    /// Of the structure of `clone3`, and the first of the numbers that it points to (`clone3_args_valid`).
    ///
    /// # Errors
    /// `EINVAL`: as for [`Self::of_clone`], or a stack that is none.
    pub fn of_clone3(words: [u64; Self::WORDS], number: Option<u32>) -> Result<Self, Errno> {
        let [flags, pidfd, child_id, parent_id, exit_signal, stack, size, tls, ..] = words;
        let exit_signal = signal(exit_signal)?;
        let has = |flag| flags & flag != 0;
        let is_stack = if stack == 0 { size == 0 } else { size != 0 && is_user_range(stack, size) };
        if has(CLONE_SIGHAND) && has(CLONE_CLEAR_SIGHAND)
            || has(CLONE_THREAD | CLONE_PARENT) && exit_signal.is_some()
            || has(CLONE_PIDFD) && has(CLONE_PARENT_SETTID) && pidfd == parent_id
            || !is_stack
        {
            return Err(Errno::EINVAL);
        }
        let stack = stack.wrapping_add(size);
        let request = Self { flags, exit_signal, stack, parent_id, tls, child_id, pidfd, number };
        request.checked(KNOWN | CLONE_CLEAR_SIGHAND)
    }

    /// Whether it has this flag.
    pub(in crate::linux::process) const fn has(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// This request, if its flags are among the `known` ones and go together. There is no pidfd of a thread.
    fn checked(self, known: u64) -> Result<Self, Errno> {
        let is_wrong = self.flags & !known != 0
            || self.has(CLONE_THREAD) && (!self.has(CLONE_SIGHAND) || self.has(CLONE_PIDFD))
            || self.has(CLONE_SIGHAND) && !self.has(CLONE_VM);
        if is_wrong { Err(Errno::EINVAL) } else { Ok(self) }
    }
}

/// The signal with this number; 0 is none.
fn signal(number: u64) -> Result<Option<Signal>, Errno> {
    match number {
        0 => Ok(None),
        _ => Signal::new(number).map(Some).ok_or(Errno::EINVAL),
    }
}

fn is_user_range(start: u64, bytes: u64) -> bool {
    uaccess::is_user_range(VirtAddr(start), bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::{CloneRequest, Signal};
    use crate::linux::errno::Errno;

    /// The flags of `clone`, by their numbers on arm64, that go without another one.
    const ALONE: [u64; 16] = [
        0x100,       // VM
        0x200,       // FS
        0x400,       // FILES
        0x1000,      // PIDFD
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
        CloneRequest::of_clone([flags, 0, 0, 0, 0]).map(|request| request.exit_signal)
    }

    #[test]
    fn each_flag_is_known_or_refused() {
        for flag in ALONE {
            assert_eq!(check(flag), Ok(None), "{flag:#x}");
        }
        // NEWNS, the other namespaces: absent here.
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

    /// The words of `clone3`, some of them given: flags 0, pidfd 1, parent_tid 3, exit_signal 4, stack 5, its size 6.
    fn check3(given: &[(usize, u64)]) -> Result<CloneRequest, Errno> {
        let mut words = [0; CloneRequest::WORDS];
        given.iter().for_each(|&(index, word)| words[index] = word);
        CloneRequest::of_clone3(words, None)
    }

    #[test]
    fn flags_of_clone3_are_of_64_bits_without_a_signal() {
        for bit in 0..64 {
            let is_known = bit == 32 || bit >= 8 && ALONE.contains(&(1 << bit)) && bit != 22;
            let answer = check3(&[(0, 1 << bit), (1, 8)]).map(drop);
            assert_eq!(answer, if is_known { Ok(()) } else { Err(Errno::EINVAL) }, "bit {bit}");
        }
        assert_eq!(
            check3(&[(0, VM | SIGHAND | 1 << 32)]).map(drop),
            Err(Errno::EINVAL),
            "handlers shared and forgotten"
        );
    }

    #[test]
    fn clone3_has_a_signal_of_its_own_and_a_whole_stack() {
        const PARENT: u64 = 0x8000;
        for (what, given, is_allowed) in [
            ("a signal", &[(4, 64)][..], true),
            ("no signal's number", &[(4, 65)], false),
            ("a large number", &[(4, 0x111)], false),
            ("a thread with a signal", &[(0, VM | SIGHAND | THREAD), (4, 17)], false),
            ("a thread", &[(0, VM | SIGHAND | THREAD)], true),
            ("a sibling with a signal", &[(0, PARENT), (4, 17)], false),
            ("a stack", &[(5, 0x1000), (6, 0x1000)], true),
            ("a stack without a size", &[(5, 0x1000)], false),
            ("a size without a stack", &[(6, 0x1000)], false),
            ("a stack of the kernel", &[(5, 1 << 63), (6, 0x1000)], false),
            ("a stack that wraps", &[(5, 0x1000), (6, u64::MAX)], false),
            ("two places", &[(0, 0x10_1000), (1, 8), (3, 16)], true),
            ("two in one place", &[(0, 0x10_1000), (1, 8), (3, 8)], false),
            ("a pidfd of a thread", &[(0, VM | SIGHAND | THREAD | 0x1000)], false),
        ] {
            assert_eq!(check3(given).is_ok(), is_allowed, "{what}");
        }
        assert_eq!(check3(&[(5, 0x1000), (6, 0x2000)]).map(|request| request.stack), Ok(0x3000), "its end");
    }

    #[test]
    fn the_pidfd_of_clone_takes_the_place_of_the_number() {
        let clone = |flags| CloneRequest::of_clone([flags, 0, 0x40, 0, 0]);
        assert_eq!(clone(0x1000 | 17).map(|request| (request.pidfd, request.exit_signal)), Ok((0x40, Signal::new(17))));
        assert_eq!(clone(0x10_1000).map(drop), Err(Errno::EINVAL), "with PARENT_SETTID");
        assert_eq!(clone(0x40_1000).map(drop), Err(Errno::EINVAL), "with DETACHED");
    }
}
