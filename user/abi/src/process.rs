//! Processes and threads: `linux/sched.h`, `linux/wait.h`, `linux/futex.h`, `linux/auxvec.h`, `linux/prctl.h`.

/// The signal to the parent at the end, in the low byte of clone's flags.
pub const CSIGNAL: u64 = 0xff;
/// The child shares the address space.
pub const CLONE_VM: u64 = 0x100;
/// The child shares root and working directory.
pub const CLONE_FS: u64 = 0x200;
/// The child shares open files.
pub const CLONE_FILES: u64 = 0x400;
/// The child shares the signals' handlers.
pub const CLONE_SIGHAND: u64 = 0x800;
/// A pidfd of the child is stored for the parent.
pub const CLONE_PIDFD: u64 = 0x1000;
/// The child is traced as the caller is.
pub const CLONE_PTRACE: u64 = 0x2000;
/// The parent sleeps until the child executes another program or exits.
pub const CLONE_VFORK: u64 = 0x4000;
/// The child has the caller's parent.
pub const CLONE_PARENT: u64 = 0x8000;
/// The child is a thread of the caller's process.
pub const CLONE_THREAD: u64 = 0x1_0000;
/// The child shares System V semaphores' adjustments.
pub const CLONE_SYSVSEM: u64 = 0x4_0000;
/// The child has a thread pointer of its own.
pub const CLONE_SETTLS: u64 = 0x8_0000;
/// The child's number is stored for the parent.
pub const CLONE_PARENT_SETTID: u64 = 0x10_0000;
/// When the child exits, its word is zeroed and its waiters are woken.
pub const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
/// Without effect since long ago.
pub const CLONE_DETACHED: u64 = 0x40_0000;
/// Not traced.
pub const CLONE_UNTRACED: u64 = 0x80_0000;
/// The child's number is stored in its own memory.
pub const CLONE_CHILD_SETTID: u64 = 0x100_0000;
/// The child shares the scheduling of block devices.
pub const CLONE_IO: u64 = 0x8000_0000;
/// clone3: the child's signals have their default actions, but for those that are ignored.
pub const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// wait4: do not wait.
pub const WNOHANG: u64 = 1;
/// wait4: children that were stopped as well.
pub const WUNTRACED: u64 = 2;
/// waitid: children that have ended as well; `wait4` always reports these.
pub const WEXITED: u64 = 4;
/// wait4: children that were continued as well.
pub const WCONTINUED: u64 = 8;
/// waitid: the status stays for another call.
pub const WNOWAIT: u64 = 0x100_0000;
/// wait4: not the children of other threads of the process.
pub const WNOTHREAD: u64 = 0x2000_0000;
/// wait4: all children, whatever they signal.
pub const WALL: u64 = 0x4000_0000;
/// wait4: only children that do not signal SIGCHLD.
pub const WCLONE: u64 = 0x8000_0000;

/// waitid: any child.
pub const P_ALL: u64 = 0;
/// waitid: the child with this number.
pub const P_PID: u64 = 1;
/// waitid: children of this process group; 0 for the caller's.
pub const P_PGID: u64 = 2;
/// waitid: the child that this pidfd refers to.
pub const P_PIDFD: u64 = 3;

/// pidfd_open: reads and waits of it do not wait.
pub const PIDFD_NONBLOCK: u64 = 0x800;
/// In place of a pidfd: the calling thread.
pub const PIDFD_SELF_THREAD: i32 = -10000;
/// In place of a pidfd: the calling process.
pub const PIDFD_SELF_THREAD_GROUP: i32 = -10001;
/// pidfd_send_signal: to the first thread.
pub const PIDFD_SIGNAL_THREAD: u64 = 1;
/// pidfd_send_signal: to the process.
pub const PIDFD_SIGNAL_THREAD_GROUP: u64 = 2;
/// pidfd_send_signal: to its process group.
pub const PIDFD_SIGNAL_PROCESS_GROUP: u64 = 4;

/// The status that wait4 stores for a process that exited with this code.
pub const fn exited(code: u8) -> u32 {
    (code as u32) << 8
}

/// The status that wait4 stores for a process that this signal ended.
pub const fn killed(signal: u32) -> u32 {
    signal & 0x7f
}

/// The status that wait4 stores for a process that this signal stopped.
pub const fn stopped(signal: u32) -> u32 {
    signal << 8 | 0x7f
}

/// The status that wait4 stores for a process that continues.
pub const CONTINUED: u32 = 0xffff;

/// membarrier: the commands that there are.
pub const MEMBARRIER_CMD_QUERY: u32 = 0;
/// membarrier: a barrier on each CPU.
pub const MEMBARRIER_CMD_GLOBAL: u32 = 1;
/// membarrier: the same, for programs that are registered for it.
pub const MEMBARRIER_CMD_GLOBAL_EXPEDITED: u32 = 1 << 1;
/// membarrier: a barrier on each CPU that runs a thread of the caller's space.
pub const MEMBARRIER_CMD_PRIVATE_EXPEDITED: u32 = 1 << 3;
/// membarrier: there too, with a synchronisation of the context, for changed code.
pub const MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE: u32 = 1 << 5;
/// membarrier: the registrations that there are. Each command is registered for by the next bit.
pub const MEMBARRIER_CMD_GET_REGISTRATIONS: u32 = 1 << 9;
/// membarrier: restart the sequences of the caller's threads.
pub const MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ: u32 = 1 << 7;
/// Of that command: those on one CPU.
pub const MEMBARRIER_CMD_FLAG_CPU: u32 = 1;

/// getrusage: the process.
pub const RUSAGE_SELF: i32 = 0;
/// getrusage: its children that have ended.
pub const RUSAGE_CHILDREN: i32 = -1;
/// getrusage: the thread.
pub const RUSAGE_THREAD: i32 = 1;

/// The policy of a thread: none in particular.
pub const SCHED_OTHER: u32 = 0;
/// First in, first out.
pub const SCHED_FIFO: u32 = 1;
/// In turns.
pub const SCHED_RR: u32 = 2;
/// For work that waits for no input.
pub const SCHED_BATCH: u32 = 3;
/// The last policy that has a number.
pub const SCHED_EXT: u32 = 7;

/// rseq: registers no more.
pub const RSEQ_FLAG_UNREGISTER: u32 = 1;
/// The [`Rseq::cpu_id`] of a thread that has none registered.
pub const RSEQ_CPU_ID_UNINITIALIZED: u32 = u32::MAX;

/// A thread's memory for restartable sequences (`struct rseq`).
#[repr(C, align(32))]
#[derive(Debug)]
pub struct Rseq {
    /// The CPU, for the begin of a sequence.
    pub cpu_id_start: u32,
    /// The CPU.
    pub cpu_id: u32,
    /// The address of the [`RseqCs`] that the thread is in; 0 for none.
    pub rseq_cs: u64,
    /// None.
    pub flags: u32,
    /// The CPU's node.
    pub node_id: u32,
    /// A number below that of CPUs, which no other running thread of the space has.
    pub mm_cid: u32,
    /// Nothing.
    pub rest: u32,
}

/// A restartable sequence (`struct rseq_cs`).
#[repr(C, align(32))]
#[derive(Debug)]
pub struct RseqCs {
    /// None.
    pub version_and_flags: u64,
    /// Its first instruction.
    pub start_ip: u64,
    /// Its bytes.
    pub post_commit_offset: u64,
    /// The instruction that follows where it is interrupted; the word before is the signature.
    pub abort_ip: u64,
}

/// futex: sleep while the word has this value.
pub const FUTEX_WAIT: u64 = 0;
/// futex: wake as many sleepers.
pub const FUTEX_WAKE: u64 = 1;
/// futex: wake sleepers, and have others sleep for another word.
pub const FUTEX_REQUEUE: u64 = 3;
/// futex: [`FUTEX_REQUEUE`] where the word has a value.
pub const FUTEX_CMP_REQUEUE: u64 = 4;
/// futex: change another word, and wake sleepers of both.
pub const FUTEX_WAKE_OP: u64 = 5;
/// futex: [`FUTEX_WAIT`] with an absolute time limit, for wakers that name a bit of the set.
pub const FUTEX_WAIT_BITSET: u64 = 9;
/// futex: [`FUTEX_WAKE`] of sleepers with a bit of the set.
pub const FUTEX_WAKE_BITSET: u64 = 10;
/// futex: the word is this process's alone.
pub const FUTEX_PRIVATE_FLAG: u64 = 128;
/// futex: absolute times are CLOCK_REALTIME's.
pub const FUTEX_CLOCK_REALTIME: u64 = 256;
/// futex: the set that every waker's meets.
pub const FUTEX_BITSET_MATCH_ANY: u32 = !0;

/// [`FUTEX_WAKE_OP`]: the other word becomes the operand.
pub const FUTEX_OP_SET: u32 = 0;
/// [`FUTEX_WAKE_OP`]: the operand is added.
pub const FUTEX_OP_ADD: u32 = 1;
/// [`FUTEX_WAKE_OP`]: its bits are set.
pub const FUTEX_OP_OR: u32 = 2;
/// [`FUTEX_WAKE_OP`]: its bits are cleared.
pub const FUTEX_OP_ANDN: u32 = 3;
/// [`FUTEX_WAKE_OP`]: its bits change.
pub const FUTEX_OP_XOR: u32 = 4;
/// [`FUTEX_WAKE_OP`], with an operation: the operand is the number of a bit.
pub const FUTEX_OP_OPARG_SHIFT: u32 = 8;
/// [`FUTEX_WAKE_OP`]: sleepers of the other word are woken where it was equal to the argument.
pub const FUTEX_OP_CMP_EQ: u32 = 0;
/// [`FUTEX_WAKE_OP`]: where it was not.
pub const FUTEX_OP_CMP_NE: u32 = 1;
/// [`FUTEX_WAKE_OP`]: where it was less, as a signed number.
pub const FUTEX_OP_CMP_LT: u32 = 2;
/// [`FUTEX_WAKE_OP`]: less or equal.
pub const FUTEX_OP_CMP_LE: u32 = 3;
/// [`FUTEX_WAKE_OP`]: greater.
pub const FUTEX_OP_CMP_GT: u32 = 4;
/// [`FUTEX_WAKE_OP`]: greater or equal.
pub const FUTEX_OP_CMP_GE: u32 = 5;
/// The calls `futex_*`: a word has four bytes.
pub const FUTEX2_SIZE_U32: u32 = 2;
/// The calls `futex_*`: the size of a word.
pub const FUTEX2_SIZE_MASK: u32 = 3;
/// The calls `futex_*`: the word is this process's alone.
pub const FUTEX2_PRIVATE: u32 = 128;
/// Most words of `futex_waitv`.
pub const FUTEX_WAITV_MAX: u32 = 128;

/// A word of `futex_waitv` and `futex_requeue`: `struct futex_waitv`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FutexWaitv {
    /// The value that it must have.
    pub val: u64,
    /// Its address.
    pub uaddr: u64,
    /// [`FUTEX2_SIZE_U32`], [`FUTEX2_PRIVATE`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// The bits of a futex that are its owner's number.
pub const FUTEX_TID_MASK: u32 = 0x3fff_ffff;
/// A bit of a futex: its owner has ended.
pub const FUTEX_OWNER_DIED: u32 = 0x4000_0000;
/// A bit of a futex: there are sleepers.
pub const FUTEX_WAITERS: u32 = 0x8000_0000;

/// The futexes that a thread has: `struct robust_list_head`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RobustListHead {
    /// The first entry, or this one where there is none. The lowest bit of an address of an entry marks a futex with
    /// priority inheritance.
    pub next: u64,
    /// From an entry to its futex.
    pub futex_offset: i64,
    /// The entry that is added or removed just now; 0 for none.
    pub list_op_pending: u64,
}

/// End of the auxiliary vector.
pub const AT_NULL: u64 = 0;
/// Where the program headers are.
pub const AT_PHDR: u64 = 3;
/// Bytes of one program header.
pub const AT_PHENT: u64 = 4;
/// How many program headers.
pub const AT_PHNUM: u64 = 5;
/// Bytes of a page.
pub const AT_PAGESZ: u64 = 6;
/// Where the dynamic linker is: 0.
pub const AT_BASE: u64 = 7;
/// Flags: 0.
pub const AT_FLAGS: u64 = 8;
/// Where the program starts.
pub const AT_ENTRY: u64 = 9;
/// User.
pub const AT_UID: u64 = 11;
/// Effective user.
pub const AT_EUID: u64 = 12;
/// Group.
pub const AT_GID: u64 = 13;
/// Effective group.
pub const AT_EGID: u64 = 14;
/// Address of the platform's name.
pub const AT_PLATFORM: u64 = 15;
/// The features of the CPUs.
pub const AT_HWCAP: u64 = 16;
/// Clock ticks in a second, for times().
pub const AT_CLKTCK: u64 = 17;
/// Whether the program runs with more rights than its caller.
pub const AT_SECURE: u64 = 23;
/// Address of sixteen random bytes.
pub const AT_RANDOM: u64 = 25;
/// More of what the CPUs can do.
pub const AT_HWCAP2: u64 = 26;
/// Bytes of [`Rseq`] that the kernel knows.
pub const AT_RSEQ_FEATURE_SIZE: u64 = 27;
/// The alignment that it wants of one.
pub const AT_RSEQ_ALIGN: u64 = 28;
/// Address of the program's name.
pub const AT_EXECFN: u64 = 31;
/// Least size of a signal's stack.
pub const AT_MINSIGSTKSZ: u64 = 51;

/// Floating point.
pub const HWCAP_FP: u64 = 1 << 0;
/// Advanced SIMD.
pub const HWCAP_ASIMD: u64 = 1 << 1;
/// The large system extensions' atomics.
pub const HWCAP_ATOMICS: u64 = 1 << 8;
/// Of AT_HWCAP2: branch target identification.
pub const HWCAP2_BTI: u64 = 1 << 17;
/// Of AT_HWCAP2: memory tagging.
pub const HWCAP2_MTE: u64 = 1 << 18;
/// Of AT_HWCAP2: and its asymmetric mode.
pub const HWCAP2_MTE3: u64 = 1 << 22;

/// prctl: set the thread's name.
pub const PR_SET_NAME: u64 = 15;
/// prctl: get the thread's name.
pub const PR_GET_NAME: u64 = 16;
/// prctl: whether calls accept tagged addresses, and how tags are checked.
pub const PR_SET_TAGGED_ADDR_CTRL: u64 = 55;
/// prctl: what [`PR_SET_TAGGED_ADDR_CTRL`] set.
pub const PR_GET_TAGGED_ADDR_CTRL: u64 = 56;
/// prctl: transparent blocks are not used.
pub const PR_SET_THP_DISABLE: u64 = 41;
/// prctl: what [`PR_SET_THP_DISABLE`] set.
pub const PR_GET_THP_DISABLE: u64 = 42;
/// But for those that are asked for.
pub const PR_THP_DISABLE_EXCEPT_ADVISED: u64 = 2;
/// prctl: memory is not written and executed.
pub const PR_SET_MDWE: u64 = 65;
/// prctl: what [`PR_SET_MDWE`] set.
pub const PR_GET_MDWE: u64 = 66;
/// Execution that is not permitted from the first is refused.
pub const PR_MDWE_REFUSE_EXEC_GAIN: u64 = 1;
/// Not for children, nor for other programs.
pub const PR_MDWE_NO_INHERIT: u64 = 2;
/// Calls accept addresses with a tag in the top byte.
pub const PR_TAGGED_ADDR_ENABLE: u64 = 1;
/// A mismatch of tags may fault at the access.
pub const PR_MTE_TCF_SYNC: u64 = 2;
/// A mismatch of tags may be reported later.
pub const PR_MTE_TCF_ASYNC: u64 = 4;
/// The two; neither: tags are not checked.
pub const PR_MTE_TCF_MASK: u64 = PR_MTE_TCF_SYNC | PR_MTE_TCF_ASYNC;
/// First of the bits for the tags that IRG may find.
pub const PR_MTE_TAG_SHIFT: u32 = 3;
/// Those bits.
pub const PR_MTE_TAG_MASK: u64 = 0xffff << PR_MTE_TAG_SHIFT;

/// personality: the addresses of programs are not randomised.
pub const ADDR_NO_RANDOMIZE: u32 = 0x4_0000;
/// personality: what may be read may be executed.
pub const READ_IMPLIES_EXEC: u32 = 0x40_0000;
/// personality: the bits that are the execution domain.
pub const PER_MASK: u32 = 0xff;
/// The execution domain of programs of 32 bits.
pub const PER_LINUX32: u32 = 8;

/// Bytes of a thread's name, its final zero included.
pub const NAME_LENGTH: usize = 16;

/// The result of uname: `struct new_utsname`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UtsName {
    /// `Linux`: what programs look at.
    pub sysname: [u8; 65],
    /// The machine's name in a network.
    pub nodename: [u8; 65],
    /// Version of the interface.
    pub release: [u8; 65],
    /// Version of the kernel.
    pub version: [u8; 65],
    /// `aarch64`.
    pub machine: [u8; 65],
    /// Domain of the machine's name.
    pub domainname: [u8; 65],
}

/// A piece of memory, for readv and writev.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct IoVec {
    /// Its first byte.
    pub base: u64,
    /// Its bytes.
    pub length: u64,
}
