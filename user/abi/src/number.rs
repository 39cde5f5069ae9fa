//! Numbers of system calls: what x8 holds at the SVC. arm64 has the generic table (`asm-generic/unistd.h`).

/// Makes the constants, and their end, from one list.
macro_rules! numbers {
    ($($name:ident = $number:literal $text:literal;)*) => {
        $(#[doc = concat!("`", $text, "`")] pub const $name: usize = $number;)*

        /// One more than the highest number that has a name here.
        pub const END: usize = {
            let mut end = 0;
            $(if $number >= end { end = $number + 1; })*
            end
        };
    };
}

numbers! {
    GETCWD = 17 "getcwd";
    EVENTFD2 = 19 "eventfd2";
    DUP = 23 "dup";
    DUP3 = 24 "dup3";
    FCNTL = 25 "fcntl";
    IOCTL = 29 "ioctl";
    FLOCK = 32 "flock";
    MKDIRAT = 34 "mkdirat";
    UNLINKAT = 35 "unlinkat";
    SYMLINKAT = 36 "symlinkat";
    LINKAT = 37 "linkat";
    RENAMEAT = 38 "renameat";
    STATFS = 43 "statfs";
    FSTATFS = 44 "fstatfs";
    TRUNCATE = 45 "truncate";
    FTRUNCATE = 46 "ftruncate";
    FALLOCATE = 47 "fallocate";
    FACCESSAT = 48 "faccessat";
    CHDIR = 49 "chdir";
    FCHDIR = 50 "fchdir";
    FCHMOD = 52 "fchmod";
    FCHMODAT = 53 "fchmodat";
    FCHOWNAT = 54 "fchownat";
    FCHOWN = 55 "fchown";
    OPENAT = 56 "openat";
    CLOSE = 57 "close";
    PIPE2 = 59 "pipe2";
    GETDENTS64 = 61 "getdents64";
    LSEEK = 62 "lseek";
    READ = 63 "read";
    WRITE = 64 "write";
    READV = 65 "readv";
    WRITEV = 66 "writev";
    PREAD64 = 67 "pread64";
    PWRITE64 = 68 "pwrite64";
    PPOLL = 73 "ppoll";
    READLINKAT = 78 "readlinkat";
    NEWFSTATAT = 79 "newfstatat";
    FSTAT = 80 "fstat";
    FSYNC = 82 "fsync";
    FDATASYNC = 83 "fdatasync";
    UTIMENSAT = 88 "utimensat";
    PERSONALITY = 92 "personality";
    EXIT = 93 "exit";
    EXIT_GROUP = 94 "exit_group";
    WAITID = 95 "waitid";
    SET_TID_ADDRESS = 96 "set_tid_address";
    FUTEX = 98 "futex";
    SET_ROBUST_LIST = 99 "set_robust_list";
    GET_ROBUST_LIST = 100 "get_robust_list";
    NANOSLEEP = 101 "nanosleep";
    GETITIMER = 102 "getitimer";
    SETITIMER = 103 "setitimer";
    TIMER_CREATE = 107 "timer_create";
    TIMER_GETTIME = 108 "timer_gettime";
    TIMER_GETOVERRUN = 109 "timer_getoverrun";
    TIMER_SETTIME = 110 "timer_settime";
    TIMER_DELETE = 111 "timer_delete";
    CLOCK_GETTIME = 113 "clock_gettime";
    CLOCK_GETRES = 114 "clock_getres";
    CLOCK_NANOSLEEP = 115 "clock_nanosleep";
    SCHED_GETSCHEDULER = 120 "sched_getscheduler";
    SCHED_GETPARAM = 121 "sched_getparam";
    SCHED_GETAFFINITY = 123 "sched_getaffinity";
    SCHED_YIELD = 124 "sched_yield";
    SCHED_GET_PRIORITY_MAX = 125 "sched_get_priority_max";
    SCHED_GET_PRIORITY_MIN = 126 "sched_get_priority_min";
    SCHED_RR_GET_INTERVAL = 127 "sched_rr_get_interval";
    RESTART_SYSCALL = 128 "restart_syscall";
    KILL = 129 "kill";
    TKILL = 130 "tkill";
    TGKILL = 131 "tgkill";
    SIGALTSTACK = 132 "sigaltstack";
    RT_SIGSUSPEND = 133 "rt_sigsuspend";
    RT_SIGACTION = 134 "rt_sigaction";
    RT_SIGPROCMASK = 135 "rt_sigprocmask";
    RT_SIGPENDING = 136 "rt_sigpending";
    RT_SIGTIMEDWAIT = 137 "rt_sigtimedwait";
    RT_SIGQUEUEINFO = 138 "rt_sigqueueinfo";
    RT_SIGRETURN = 139 "rt_sigreturn";
    TIMES = 153 "times";
    GETGROUPS = 158 "getgroups";
    UNAME = 160 "uname";
    GETRLIMIT = 163 "getrlimit";
    SETRLIMIT = 164 "setrlimit";
    GETRUSAGE = 165 "getrusage";
    UMASK = 166 "umask";
    PRCTL = 167 "prctl";
    GETCPU = 168 "getcpu";
    GETTIMEOFDAY = 169 "gettimeofday";
    GETPID = 172 "getpid";
    GETPPID = 173 "getppid";
    GETUID = 174 "getuid";
    GETEUID = 175 "geteuid";
    GETGID = 176 "getgid";
    GETEGID = 177 "getegid";
    GETTID = 178 "gettid";
    SYSINFO = 179 "sysinfo";
    BRK = 214 "brk";
    MUNMAP = 215 "munmap";
    MREMAP = 216 "mremap";
    CLONE = 220 "clone";
    EXECVE = 221 "execve";
    MMAP = 222 "mmap";
    FADVISE64 = 223 "fadvise64";
    MPROTECT = 226 "mprotect";
    MSYNC = 227 "msync";
    MLOCK = 228 "mlock";
    MUNLOCK = 229 "munlock";
    MLOCKALL = 230 "mlockall";
    MUNLOCKALL = 231 "munlockall";
    MINCORE = 232 "mincore";
    MADVISE = 233 "madvise";
    REMAP_FILE_PAGES = 234 "remap_file_pages";
    MBIND = 235 "mbind";
    GET_MEMPOLICY = 236 "get_mempolicy";
    SET_MEMPOLICY = 237 "set_mempolicy";
    MIGRATE_PAGES = 238 "migrate_pages";
    MOVE_PAGES = 239 "move_pages";
    RT_TGSIGQUEUEINFO = 240 "rt_tgsigqueueinfo";
    WAIT4 = 260 "wait4";
    PRLIMIT64 = 261 "prlimit64";
    PROCESS_VM_READV = 270 "process_vm_readv";
    PROCESS_VM_WRITEV = 271 "process_vm_writev";
    RENAMEAT2 = 276 "renameat2";
    GETRANDOM = 278 "getrandom";
    MEMFD_CREATE = 279 "memfd_create";
    USERFAULTFD = 282 "userfaultfd";
    MEMBARRIER = 283 "membarrier";
    MLOCK2 = 284 "mlock2";
    STATX = 291 "statx";
    RSEQ = 293 "rseq";
    PIDFD_SEND_SIGNAL = 424 "pidfd_send_signal";
    PIDFD_OPEN = 434 "pidfd_open";
    CLONE3 = 435 "clone3";
    FACCESSAT2 = 439 "faccessat2";
    PROCESS_MADVISE = 440 "process_madvise";
    PROCESS_MRELEASE = 448 "process_mrelease";
    SET_MEMPOLICY_HOME_NODE = 450 "set_mempolicy_home_node";
    FCHMODAT2 = 452 "fchmodat2";
    MSEAL = 462 "mseal";
}
