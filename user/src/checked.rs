//! The interface is Linux's: compares each number of `granule_abi` with the kernel headers' own, at compile time.

use granule_abi::errno::Errno;
use granule_abi::{file, limits, memory, number, process, signal, time, userfaultfd};
use linux_raw_sys::{auxvec, errno, general, ioctl, prctl, system};

/// `same!(ours, theirs: A B)`: `ours::A == theirs::A`, and so on.
macro_rules! same {
    ($ours:ident, $theirs:ident: $($name:ident)*) => {
        const _: () = {
            $(assert!($ours::$name as i64 == $theirs::$name as i64, stringify!($name));)*
        };
    };
}

/// `calls!(OURS theirs, ...)`: `number::OURS == theirs`.
macro_rules! calls {
    ($($ours:ident $theirs:ident,)*) => {
        const _: () = {
            $(assert!(number::$ours as u32 == general::$theirs, stringify!($ours));)*
        };
    };
}

/// `errors!(A B)`: `Errno::A` has the number `errno::A`.
macro_rules! errors {
    ($($name:ident)*) => {
        const _: () = {
            $(assert!(Errno::$name as u32 == errno::$name, stringify!($name));)*
        };
    };
}

calls! {
    EPOLL_CREATE1 __NR_epoll_create1, EPOLL_CTL __NR_epoll_ctl, EPOLL_PWAIT __NR_epoll_pwait, EPOLL_PWAIT2 __NR_epoll_pwait2,
    EVENTFD2 __NR_eventfd2, PIPE2 __NR_pipe2, PPOLL __NR_ppoll, READLINKAT __NR_readlinkat,
    NEWFSTATAT __NR_newfstatat, SET_ROBUST_LIST __NR_set_robust_list, GET_ROBUST_LIST __NR_get_robust_list,
    SCHED_GETAFFINITY __NR_sched_getaffinity, SCHED_SETAFFINITY __NR_sched_setaffinity, PROCESS_VM_READV __NR_process_vm_readv,
    PROCESS_VM_WRITEV __NR_process_vm_writev,
    FLOCK __NR_flock, DUP __NR_dup, DUP3 __NR_dup3, FCNTL __NR_fcntl, OPENAT __NR_openat, LSEEK __NR_lseek, PREAD64 __NR_pread64,
    PWRITE64 __NR_pwrite64, FSTAT __NR_fstat,
    IOCTL __NR_ioctl, CLOSE __NR_close, READ __NR_read, WRITE __NR_write, READV __NR_readv,
    WRITEV __NR_writev, PERSONALITY __NR_personality, EXIT __NR_exit, EXIT_GROUP __NR_exit_group, SET_TID_ADDRESS __NR_set_tid_address,
    FUTEX __NR_futex, NANOSLEEP __NR_nanosleep,
    CLOCK_GETTIME __NR_clock_gettime, CLOCK_GETRES __NR_clock_getres, CLOCK_NANOSLEEP __NR_clock_nanosleep,
    SCHED_YIELD __NR_sched_yield, RESTART_SYSCALL __NR_restart_syscall, KILL __NR_kill, TKILL __NR_tkill, TGKILL __NR_tgkill,
    SIGALTSTACK __NR_sigaltstack, RT_SIGACTION __NR_rt_sigaction, RT_SIGPROCMASK __NR_rt_sigprocmask,
    RT_SIGPENDING __NR_rt_sigpending, RT_SIGRETURN __NR_rt_sigreturn,
    GETITIMER __NR_getitimer, SETITIMER __NR_setitimer, TIMER_CREATE __NR_timer_create, TIMERFD_CREATE __NR_timerfd_create,
    SIGNALFD4 __NR_signalfd4,
    TIMERFD_SETTIME __NR_timerfd_settime, TIMERFD_GETTIME __NR_timerfd_gettime,
    TIMER_GETTIME __NR_timer_gettime, TIMER_GETOVERRUN __NR_timer_getoverrun, TIMER_SETTIME __NR_timer_settime,
    TIMER_DELETE __NR_timer_delete,
    RT_SIGSUSPEND __NR_rt_sigsuspend, RT_SIGTIMEDWAIT __NR_rt_sigtimedwait, RT_SIGQUEUEINFO __NR_rt_sigqueueinfo,
    RT_TGSIGQUEUEINFO __NR_rt_tgsigqueueinfo, UNAME __NR_uname, PRCTL __NR_prctl,
    GETCPU __NR_getcpu, GETPID __NR_getpid, GETPPID __NR_getppid, GETUID __NR_getuid, GETEUID __NR_geteuid,
    GETGID __NR_getgid, GETEGID __NR_getegid, GETTID __NR_gettid, BRK __NR_brk, MUNMAP __NR_munmap, MREMAP __NR_mremap, MLOCK __NR_mlock, MUNLOCK __NR_munlock, MLOCKALL __NR_mlockall, MUNLOCKALL __NR_munlockall, MLOCK2 __NR_mlock2, CLONE __NR_clone, EXECVE __NR_execve, MMAP __NR_mmap, MPROTECT __NR_mprotect,
    MINCORE __NR_mincore, MADVISE __NR_madvise, WAIT4 __NR_wait4, GETRLIMIT __NR_getrlimit, SETRLIMIT __NR_setrlimit,
    PRLIMIT64 __NR_prlimit64, GETRANDOM __NR_getrandom, MEMFD_CREATE __NR_memfd_create, FTRUNCATE __NR_ftruncate,
    FALLOCATE __NR_fallocate, USERFAULTFD __NR_userfaultfd, FSYNC __NR_fsync, FDATASYNC __NR_fdatasync, MSYNC __NR_msync,
    MEMBARRIER __NR_membarrier, MSEAL __NR_mseal, WAITID __NR_waitid, PIDFD_OPEN __NR_pidfd_open, PIDFD_SEND_SIGNAL __NR_pidfd_send_signal,
    GETCWD __NR_getcwd, MKDIRAT __NR_mkdirat, UNLINKAT __NR_unlinkat, SYMLINKAT __NR_symlinkat, LINKAT __NR_linkat,
    RENAMEAT __NR_renameat, RENAMEAT2 __NR_renameat2, STATFS __NR_statfs, FSTATFS __NR_fstatfs,
    TRUNCATE __NR_truncate, FACCESSAT __NR_faccessat, FACCESSAT2 __NR_faccessat2, CHDIR __NR_chdir,
    FCHDIR __NR_fchdir, FCHMOD __NR_fchmod, FCHMODAT __NR_fchmodat, FCHOWNAT __NR_fchownat, FCHOWN __NR_fchown,
    GETDENTS64 __NR_getdents64, UTIMENSAT __NR_utimensat, UMASK __NR_umask, STATX __NR_statx,
    MBIND __NR_mbind, GET_MEMPOLICY __NR_get_mempolicy, SET_MEMPOLICY __NR_set_mempolicy, MOVE_PAGES __NR_move_pages,
    MIGRATE_PAGES __NR_migrate_pages, SET_MEMPOLICY_HOME_NODE __NR_set_mempolicy_home_node,
    REMAP_FILE_PAGES __NR_remap_file_pages, CLONE3 __NR_clone3, PROCESS_MADVISE __NR_process_madvise, PROCESS_MRELEASE __NR_process_mrelease,
    SCHED_GETSCHEDULER __NR_sched_getscheduler, SCHED_GETPARAM __NR_sched_getparam, SCHED_RR_GET_INTERVAL __NR_sched_rr_get_interval,
    SCHED_GET_PRIORITY_MAX __NR_sched_get_priority_max, SCHED_GET_PRIORITY_MIN __NR_sched_get_priority_min,
    GETTIMEOFDAY __NR_gettimeofday, TIMES __NR_times, GETRUSAGE __NR_getrusage, SYSINFO __NR_sysinfo,
    SETPGID __NR_setpgid, GETPGID __NR_getpgid, GETSID __NR_getsid, SETSID __NR_setsid,
    GETGROUPS __NR_getgroups, FADVISE64 __NR_fadvise64, RSEQ __NR_rseq,
    CAPGET __NR_capget, CAPSET __NR_capset, FUTEX_WAITV __NR_futex_waitv, FUTEX_WAKE_CALL __NR_futex_wake, FUTEX_WAIT_CALL __NR_futex_wait,
    FUTEX_REQUEUE_CALL __NR_futex_requeue,
    SENDFILE __NR_sendfile, COPY_FILE_RANGE __NR_copy_file_range, PREADV __NR_preadv, PWRITEV __NR_pwritev, PREADV2 __NR_preadv2, PWRITEV2 __NR_pwritev2,
}

errors! {
    EPERM ENOENT ESRCH EINTR EIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT EBUSY EEXIST ENODEV ENOTDIR EINVAL
    EXDEV ENOSPC ENOTEMPTY
    EDEADLK ENOLCK EISDIR EMFILE ENXIO EROFS ELOOP ENOTTY ESPIPE EPIPE ERANGE ENOPKG EOVERFLOW ENAMETOOLONG ENOSYS ELIBBAD ETIMEDOUT EFBIG EHWPOISON
}

same! { memory, general:
    PROT_READ PROT_WRITE PROT_EXEC PROT_NONE MAP_SHARED MAP_PRIVATE MAP_SHARED_VALIDATE MAP_TYPE MAP_FIXED
    MAP_ANONYMOUS MAP_GROWSDOWN MAP_DENYWRITE MAP_EXECUTABLE MAP_LOCKED MAP_NORESERVE MAP_POPULATE MAP_NONBLOCK
    MAP_STACK MAP_DROPPABLE MAP_HUGETLB MAP_FIXED_NOREPLACE MADV_NORMAL MADV_RANDOM MADV_SEQUENTIAL MADV_WILLNEED MADV_DONTNEED
    MADV_REMOVE MADV_FREE MADV_COLD MADV_PAGEOUT MADV_DONTNEED_LOCKED MADV_COLLAPSE MADV_DONTFORK MADV_DOFORK MADV_DONTDUMP MADV_DODUMP MADV_WIPEONFORK MADV_KEEPONFORK MADV_POPULATE_READ
    MADV_POPULATE_WRITE MADV_GUARD_INSTALL MADV_GUARD_REMOVE MLOCK_ONFAULT MCL_CURRENT MCL_FUTURE MCL_ONFAULT MREMAP_MAYMOVE MREMAP_FIXED MREMAP_DONTUNMAP MS_ASYNC MS_INVALIDATE MS_SYNC
}

same! { file, general:
    O_RDONLY O_WRONLY O_RDWR O_ACCMODE O_CREAT O_EXCL O_NOCTTY O_TRUNC O_APPEND O_NONBLOCK O_DSYNC FASYNC O_DIRECTORY
    O_NOFOLLOW O_DIRECT O_LARGEFILE O_NOATIME O_CLOEXEC O_PATH O_TMPFILE AT_FDCWD F_DUPFD F_GETFD F_SETFD F_GETFL F_SETFL
    F_DUPFD_CLOEXEC FD_CLOEXEC O_SYNC SEEK_SET SEEK_CUR SEEK_END SEEK_DATA SEEK_HOLE S_IFMT S_IFREG S_IFDIR S_IFLNK S_IFCHR
    F_ADD_SEALS F_GET_SEALS F_SEAL_SEAL F_SEAL_SHRINK F_SEAL_GROW F_SEAL_WRITE F_SEAL_FUTURE_WRITE F_SEAL_EXEC MFD_CLOEXEC
    MFD_ALLOW_SEALING MFD_HUGETLB MFD_NOEXEC_SEAL MFD_EXEC FALLOC_FL_KEEP_SIZE FALLOC_FL_PUNCH_HOLE F_SETPIPE_SZ F_GETPIPE_SZ F_GETLK F_SETLK F_SETLKW F_OFD_GETLK
    F_OFD_SETLK F_OFD_SETLKW F_RDLCK F_WRLCK F_UNLCK LOCK_SH LOCK_EX LOCK_NB LOCK_UN LOCK_MAND EFD_SEMAPHORE EFD_CLOEXEC EFD_NONBLOCK
    EPOLL_CLOEXEC EPOLL_CTL_ADD EPOLL_CTL_DEL EPOLL_CTL_MOD EPOLLIN EPOLLOUT EPOLLERR EPOLLHUP EPOLLRDNORM EPOLLWRNORM EPOLLRDHUP
    EPOLLEXCLUSIVE EPOLLWAKEUP EPOLLONESHOT EPOLLET POLLIN POLLPRI POLLOUT POLLERR POLLHUP POLLNVAL POLLRDNORM POLLWRNORM S_IFIFO PIPE_BUF
    AT_SYMLINK_NOFOLLOW AT_EMPTY_PATH AT_REMOVEDIR AT_EACCESS AT_SYMLINK_FOLLOW AT_NO_AUTOMOUNT AT_STATX_SYNC_TYPE
    RENAME_NOREPLACE RENAME_EXCHANGE STATX_BASIC_STATS UTIME_NOW UTIME_OMIT PROC_SUPER_MAGIC TMPFS_MAGIC
}

same! { memory, general:
    PM_SCAN_WP_MATCHING PM_SCAN_CHECK_WPASYNC PAGE_IS_WPALLOWED PAGE_IS_WRITTEN PAGE_IS_FILE PAGE_IS_PRESENT
    PAGE_IS_SWAPPED PAGE_IS_PFNZERO PAGE_IS_HUGE PAGE_IS_SOFT_DIRTY PAGE_IS_GUARD
}
same! { userfaultfd, general:
    UFFD_USER_MODE_ONLY UFFD_API UFFD_FEATURE_PAGEFAULT_FLAG_WP UFFD_FEATURE_EVENT_FORK UFFD_FEATURE_EVENT_REMAP
    UFFD_FEATURE_EVENT_REMOVE UFFD_FEATURE_MISSING_SHMEM UFFD_FEATURE_EVENT_UNMAP UFFD_FEATURE_SIGBUS
    UFFD_FEATURE_THREAD_ID UFFD_FEATURE_EXACT_ADDRESS UFFD_FEATURE_WP_HUGETLBFS_SHMEM UFFD_FEATURE_WP_UNPOPULATED
    UFFD_FEATURE_POISON UFFD_FEATURE_WP_ASYNC UFFDIO_REGISTER_MODE_MISSING UFFDIO_REGISTER_MODE_WP UFFDIO_COPY_MODE_DONTWAKE
    UFFDIO_COPY_MODE_WP UFFDIO_ZEROPAGE_MODE_DONTWAKE UFFD_EVENT_PAGEFAULT UFFD_EVENT_FORK UFFD_EVENT_REMAP
    UFFD_EVENT_REMOVE UFFD_EVENT_UNMAP UFFD_PAGEFAULT_FLAG_WRITE UFFD_PAGEFAULT_FLAG_WP
}
same! { userfaultfd, ioctl:
    UFFDIO_API UFFDIO_REGISTER UFFDIO_UNREGISTER UFFDIO_WAKE UFFDIO_COPY UFFDIO_ZEROPAGE UFFDIO_WRITEPROTECT
}

same! { file, ioctl: FIOCLEX FIONCLEX FIONBIO FIONREAD }

same! { process, general:
    CSIGNAL CLONE_VM CLONE_FS CLONE_FILES CLONE_SIGHAND CLONE_VFORK CLONE_PARENT CLONE_THREAD CLONE_SYSVSEM
    CLONE_PIDFD CLONE_SETTLS CLONE_PARENT_SETTID CLONE_CHILD_CLEARTID CLONE_DETACHED CLONE_UNTRACED CLONE_CHILD_SETTID CLONE_PTRACE CLONE_IO
    WNOHANG WUNTRACED WCONTINUED FUTEX_WAIT FUTEX_WAKE FUTEX_WAIT_BITSET FUTEX_WAKE_BITSET
    FUTEX_REQUEUE FUTEX_CMP_REQUEUE FUTEX_WAKE_OP FUTEX_OP_SET FUTEX_OP_ADD FUTEX_OP_OR FUTEX_OP_ANDN FUTEX_OP_XOR
    FUTEX_OP_OPARG_SHIFT FUTEX_OP_CMP_EQ FUTEX_OP_CMP_NE FUTEX_OP_CMP_LT FUTEX_OP_CMP_LE FUTEX_OP_CMP_GT FUTEX_OP_CMP_GE
    FUTEX2_SIZE_U32 FUTEX2_SIZE_MASK FUTEX2_PRIVATE FUTEX_WAITV_MAX FUTEX_PRIVATE_FLAG FUTEX_CLOCK_REALTIME FUTEX_TID_MASK FUTEX_OWNER_DIED FUTEX_WAITERS
}
const _: () = assert!(process::WALL == general::__WALL as u64 && process::WCLONE == general::__WCLONE as u64);
same! { file, general: RWF_HIPRI RWF_DSYNC RWF_SYNC RWF_NOWAIT RWF_APPEND }
const _: () = assert!(process::FUTEX_BITSET_MATCH_ANY == general::FUTEX_BITSET_MATCH_ANY);

same! { process, auxvec:
    AT_NULL AT_PHDR AT_PHENT AT_PHNUM AT_PAGESZ AT_BASE AT_FLAGS AT_ENTRY AT_UID AT_EUID AT_GID AT_EGID AT_PLATFORM
    AT_HWCAP AT_CLKTCK AT_SECURE AT_RANDOM AT_HWCAP2 AT_EXECFN AT_RSEQ_FEATURE_SIZE AT_RSEQ_ALIGN AT_MINSIGSTKSZ
}

same! { process, prctl:
    PR_SET_NAME PR_GET_NAME PR_SET_TAGGED_ADDR_CTRL PR_GET_TAGGED_ADDR_CTRL PR_TAGGED_ADDR_ENABLE
    PR_SET_THP_DISABLE PR_GET_THP_DISABLE PR_SET_MDWE PR_GET_MDWE PR_MDWE_REFUSE_EXEC_GAIN PR_MDWE_NO_INHERIT
    PR_MTE_TCF_SYNC PR_MTE_TCF_ASYNC PR_MTE_TCF_MASK PR_MTE_TAG_SHIFT PR_MTE_TAG_MASK
}

same! { limits, general:
    RLIMIT_CPU RLIMIT_FSIZE RLIMIT_DATA RLIMIT_STACK RLIMIT_CORE RLIMIT_RSS RLIMIT_NPROC RLIMIT_NOFILE RLIMIT_MEMLOCK
    RLIMIT_AS RLIMIT_LOCKS RLIMIT_SIGPENDING RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_RTPRIO RLIMIT_RTTIME RLIM_NLIMITS
    RLIM_INFINITY
}

same! { signal, general:
    SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE SIGALRM SIGTERM
    SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF SIGWINCH SIGIO
    SIGPWR SIGSYS SIG_BLOCK SIG_UNBLOCK SIG_SETMASK SA_NOCLDSTOP SA_NOCLDWAIT SA_SIGINFO SA_RESTORER SA_ONSTACK
    SA_RESTART SA_NODEFER SA_RESETHAND SI_USER SI_QUEUE SI_TIMER SI_SIGIO SIGEV_SIGNAL SIGEV_NONE SIGEV_THREAD SIGEV_THREAD_ID SI_KERNEL SI_TKILL SEGV_MAPERR SEGV_ACCERR SEGV_MTEAERR SEGV_MTESERR
    BUS_ADRALN BUS_ADRERR BUS_OBJERR BUS_MCEERR_AR SA_EXPOSE_TAGBITS
    ILL_ILLOPC TRAP_BRKPT CLD_EXITED CLD_KILLED CLD_STOPPED CLD_CONTINUED SS_ONSTACK SS_DISABLE MINSIGSTKSZ
}

same! { time, general:
    CLOCK_REALTIME CLOCK_MONOTONIC CLOCK_MONOTONIC_RAW CLOCK_REALTIME_COARSE CLOCK_MONOTONIC_COARSE CLOCK_BOOTTIME
    CLOCK_REALTIME_ALARM CLOCK_BOOTTIME_ALARM
    CLOCK_PROCESS_CPUTIME_ID CLOCK_THREAD_CPUTIME_ID CLOCK_TAI TIMER_ABSTIME ITIMER_REAL ITIMER_VIRTUAL
}

/// The structures have the sizes of the headers' own, and the fields their places.
const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<signal::SigAction>() == size_of::<general::kernel_sigaction>());
    assert!(size_of::<signal::SigInfo>() == size_of::<general::siginfo>());
    assert!(size_of::<signal::SigStack>() == size_of::<general::sigaltstack>());
    assert!(offset_of!(signal::SigStack, size) == offset_of!(general::sigaltstack, ss_size));
    assert!(size_of::<process::FutexWaitv>() == size_of::<general::futex_waitv>());
    assert!(offset_of!(process::FutexWaitv, flags) == offset_of!(general::futex_waitv, flags));
    assert!(size_of::<time::Timespec>() == size_of::<general::__kernel_timespec>());
    assert!(size_of::<limits::RLimit>() == size_of::<general::rlimit64>());
    assert!(offset_of!(limits::RLimit, hard) == offset_of!(general::rlimit64, rlim_max));
    assert!(size_of::<file::Stat>() == size_of::<general::stat>());
    assert!(offset_of!(file::Stat, st_size) == offset_of!(general::stat, st_size));
    assert!(offset_of!(file::Stat, st_ctime_nsec) == offset_of!(general::stat, st_ctime_nsec));
    assert!(size_of::<file::Flock>() == size_of::<general::flock>());
    assert!(offset_of!(file::Flock, l_pid) == offset_of!(general::flock, l_pid));
    assert!(size_of::<file::PollFd>() == size_of::<general::pollfd>());
    assert!(offset_of!(file::PollFd, revents) == offset_of!(general::pollfd, revents));
    assert!(size_of::<file::EpollEvent>() == size_of::<general::epoll_event>());
    assert!(offset_of!(file::EpollEvent, data) == offset_of!(general::epoll_event, data));
    assert!(size_of::<process::RobustListHead>() == size_of::<general::robust_list_head>());
    assert!(size_of::<process::IoVec>() == size_of::<general::iovec>());
    assert!(size_of::<userfaultfd::Api>() == size_of::<general::uffdio_api>());
    assert!(size_of::<userfaultfd::Register>() == size_of::<general::uffdio_register>());
    assert!(offset_of!(userfaultfd::Register, ioctls) == offset_of!(general::uffdio_register, ioctls));
    assert!(size_of::<userfaultfd::Copy>() == size_of::<general::uffdio_copy>());
    assert!(size_of::<userfaultfd::Fill>() == size_of::<general::uffdio_zeropage>());
    assert!(size_of::<userfaultfd::Fill>() == size_of::<general::uffdio_poison>());
    assert!(size_of::<userfaultfd::WriteProtect>() == size_of::<general::uffdio_writeprotect>());
    assert!(size_of::<userfaultfd::Message>() == size_of::<general::uffd_msg>());
    assert!(offset_of!(userfaultfd::Message, words) == offset_of!(general::uffd_msg, arg));
    assert!(size_of::<memory::PmScanArg>() == size_of::<general::pm_scan_arg>());
    assert!(offset_of!(memory::PmScanArg, walk_end) == offset_of!(general::pm_scan_arg, walk_end));
    assert!(offset_of!(memory::PmScanArg, return_mask) == offset_of!(general::pm_scan_arg, return_mask));
    assert!(size_of::<memory::PageRegion>() == size_of::<general::page_region>());
    assert!(size_of::<process::UtsName>() == size_of::<system::new_utsname>());
};
