//! The limits of a process: `linux/resource.h`.

/// Seconds of a CPU.
pub const RLIMIT_CPU: usize = 0;
/// Bytes of a file that it writes.
pub const RLIMIT_FSIZE: usize = 1;
/// Bytes of private memory that may be written, the stack not counted.
pub const RLIMIT_DATA: usize = 2;
/// Bytes of its stack.
pub const RLIMIT_STACK: usize = 3;
/// Bytes of a core file.
pub const RLIMIT_CORE: usize = 4;
/// Bytes in memory.
pub const RLIMIT_RSS: usize = 5;
/// Tasks of its user.
pub const RLIMIT_NPROC: usize = 6;
/// Open files.
pub const RLIMIT_NOFILE: usize = 7;
/// Bytes that stay in memory.
pub const RLIMIT_MEMLOCK: usize = 8;
/// Bytes of its address space.
pub const RLIMIT_AS: usize = 9;
/// Locked files.
pub const RLIMIT_LOCKS: usize = 10;
/// Signals that wait.
pub const RLIMIT_SIGPENDING: usize = 11;
/// Bytes in message queues.
pub const RLIMIT_MSGQUEUE: usize = 12;
/// How far it may raise its priority.
pub const RLIMIT_NICE: usize = 13;
/// How far it may raise its priority among real-time tasks.
pub const RLIMIT_RTPRIO: usize = 14;
/// Microseconds of a real-time task without a pause.
pub const RLIMIT_RTTIME: usize = 15;
/// How many resources there are.
pub const RLIM_NLIMITS: usize = 16;

/// No limit.
pub const RLIM_INFINITY: u64 = u64::MAX;

/// `struct rlimit64`, and on arm64 `struct rlimit`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RLimit {
    /// The limit in force.
    pub soft: u64,
    /// How far a process may raise it.
    pub hard: u64,
}
