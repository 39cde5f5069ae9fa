//! Threads: they run at once, share memory, keep their registers, and wait for each other by futexes.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

fn run(_start: Start) {
    parts! { ()
        numbers a_lock_of_futexes futex_answers shared_memory_has_one_futex registers_are_each_threads_own
        commands_of_membarrier a_thread_signals_itself
    }
    println!("threads: ok");
}

fn numbers() {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    assert_eq!(process::id(), process::thread_id(), "the first thread has the process's number");
    let process = process::id();
    let thread = Thread::spawn(move || {
        assert_eq!(process::id(), process);
        NUMBER.store(process::thread_id(), Ordering::Relaxed);
    });
    let id = thread.id();
    thread.join();
    let seen = NUMBER.load(Ordering::Relaxed);
    assert!(seen != process::id() && (id == 0 || id == seen), "clone stored {id}, gettid said {seen}");
}

/// A lock as C libraries have it: 0 free, 1 taken, 2 taken and waited for.
struct Lock(AtomicU32);

impl Lock {
    fn with<R>(&self, work: impl FnOnce() -> R) -> R {
        if self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            while self.0.swap(2, Ordering::Acquire) != 0 {
                let _ = futex_wait(&self.0, 2, None);
            }
        }
        let result = work();
        if self.0.swap(0, Ordering::Release) == 2 {
            futex_wake(&self.0, 1).expect("a wake-up");
        }
        result
    }
}

fn a_lock_of_futexes() {
    const THREADS: usize = 8;
    const ROUNDS: u64 = 2000;
    static LOCK: Lock = Lock(AtomicU32::new(0));
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = || COUNT.store(COUNT.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    all_at_once(THREADS, |_| (0..ROUNDS).for_each(|_| LOCK.with(count)));
    assert_eq!(COUNT.load(Ordering::Relaxed), THREADS as u64 * ROUNDS, "no increment was lost");
}

fn futex_answers() {
    let word = AtomicU32::new(7);
    let before = time::now();
    assert_eq!(futex_wait(&word, 7, Some(3_000_000)), Err(ETIMEDOUT));
    assert!(time::now() - before >= 3_000_000, "it waited");
    assert_eq!(futex_wake(&word, 1), Ok(0), "no thread sleeps");
    assert_eq!(call(FUTEX, [word.as_ptr() as u64, FUTEX_WAKE_BITSET, 1]), Err(EINVAL), "no bits");
    assert_eq!(call(FUTEX, [word.as_ptr() as u64, 77, 1]), Err(ENOSYS), "no such operation");

    static GATE: AtomicU32 = AtomicU32::new(0);
    let sleeps = || {
        while GATE.load(Ordering::Relaxed) == 0 {
            let _ = futex_wait(&GATE, 0, None);
        }
    };
    let threads = [(); 3].map(|()| Thread::spawn(sleeps));
    // Until all three have gone to sleep; they find the gate closed and sleep again.
    let mut woken = 0;
    while woken < 3 {
        woken += futex_wake(&GATE, 3 - woken).expect("a wake-up");
    }
    GATE.store(1, Ordering::Relaxed);
    futex_wake(&GATE, u32::MAX >> 1).expect("a wake-up");
    threads.into_iter().for_each(Thread::join);
}

fn shared_memory_has_one_futex() {
    let word = memory::shared::<AtomicU32>();
    let child = process::spawn(|| {
        while word.load(Ordering::Acquire) == 0 {
            let _ = futex_wait(word, 0, None);
        }
        word.store(2, Ordering::Release);
        futex_wake(word, 1).expect("a wake-up");
    });
    time::sleep(2_000_000).expect("a sleep");
    word.store(1, Ordering::Release);
    futex_wake(word, 1).expect("a wake-up");
    while word.load(Ordering::Acquire) != 2 {
        let _ = futex_wait(word, 1, Some(1_000_000_000));
    }
    assert_eq!(process::wait(child), exited(0));
}

/// More threads than CPUs keep a pattern in every register over many time slices.
fn registers_are_each_threads_own() {
    const THREADS: usize = 10;
    static WRONG: AtomicU32 = AtomicU32::new(0);
    all_at_once(THREADS, |seed| {
        let end = time::now() + 60_000_000;
        while time::now() < end {
            WRONG.fetch_add(u32::from(!keeps_registers(seed as u64 + 1)), Ordering::Relaxed);
        }
    });
    assert_eq!(WRONG.load(Ordering::Relaxed), 0, "registers that were another's");
}

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".arch_extension fp",
    ".arch_extension simd",
    ".text",
    ".global granule_user_keep",
    ".type granule_user_keep, %function",
    // x0: a seed; x1: how often it looks. Returns 0 if every register kept its value.
    "granule_user_keep:",
    "stp x19, x20, [sp, #-96]!",
    "stp x21, x22, [sp, #16]",
    "stp x23, x24, [sp, #32]",
    "stp x25, x26, [sp, #48]",
    "stp x27, x28, [sp, #64]",
    "stp x29, x30, [sp, #80]",
    ".irp n, 2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,19,20,21,22,23,24,25,26,27,28,29,30",
    "add x\\n, x0, #\\n",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31",
    "dup v\\n\\().2d, x0",
    ".endr",
    "fmov d31, x1",
    "mov v31.d[1], x0",
    "1:",
    "sub x1, x1, #1",
    ".irp n, 2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,19,20,21,22,23,24,25,26,27,28,29,30",
    "sub x\\n, x\\n, #\\n",
    "cmp x\\n, x0",
    "b.ne 2f",
    "add x\\n, x\\n, #\\n",
    ".endr",
    ".irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30",
    "umov x2, v\\n\\().d[1]",
    "cmp x2, x0",
    "b.ne 2f",
    "umov x2, v\\n\\().d[0]",
    "cmp x2, x0",
    "b.ne 2f",
    ".endr",
    "add x2, x0, #2",
    "cbnz x1, 1b",
    "mov x0, #0",
    "b 3f",
    "2:",
    "mov x0, #1",
    "3:",
    "ldp x21, x22, [sp, #16]",
    "ldp x23, x24, [sp, #32]",
    "ldp x25, x26, [sp, #48]",
    "ldp x27, x28, [sp, #64]",
    "ldp x29, x30, [sp, #80]",
    "ldp x19, x20, [sp], #96",
    "ret",
    ".size granule_user_keep, . - granule_user_keep",
);

#[cfg(target_arch = "aarch64")]
fn keeps_registers(seed: u64) -> bool {
    unsafe extern "C" {
        fn granule_user_keep(seed: u64, rounds: u64) -> u64;
    }
    // SAFETY: it changes what a call may change, and registers that this code does not use.
    unsafe { granule_user_keep(seed << 32, 20_000) == 0 }
}

#[cfg(not(target_arch = "aarch64"))]
fn keeps_registers(_seed: u64) -> bool {
    unreachable!("these programs run on arm64 alone")
}

fn membarrier(command: u32) -> Result<u64, Errno> {
    call(MEMBARRIER, [command.into(), 0])
}

/// A kernel with restartable sequences has two more commands for them.
fn commands_of_membarrier() {
    const GLOBAL: u32 = MEMBARRIER_CMD_GLOBAL_EXPEDITED;
    const PRIVATE: u32 = MEMBARRIER_CMD_PRIVATE_EXPEDITED;
    const CODE: u32 = MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE;
    assert_eq!(membarrier(MEMBARRIER_CMD_QUERY), Ok(0x3ff));
    let registered = || membarrier(MEMBARRIER_CMD_GET_REGISTRATIONS);
    for (what, command, wanted) in [
        ("two", 3, Err(EINVAL)),
        ("none", 1 << 10, Err(EINVAL)),
        ("all programs", MEMBARRIER_CMD_GLOBAL, Ok(0)),
        ("all that are registered", GLOBAL, Ok(0)),
        ("before it is registered", PRIVATE, Err(EPERM)),
        ("before it is registered", CODE, Err(EPERM)),
    ] {
        assert_eq!(membarrier(command), wanted, "{what}");
    }
    assert_eq!(call(MEMBARRIER, [0, 1]), Err(EINVAL), "flags");
    // The test of the kernel counts them on each CPU.
    (0..100).for_each(|_| assert_eq!(membarrier(MEMBARRIER_CMD_GLOBAL), Ok(0)));
    let mut all = 0;
    process::in_copy(|| {
        assert_eq!(membarrier(CODE << 1), Ok(0));
        assert_eq!(membarrier(MEMBARRIER_CMD_GET_REGISTRATIONS), Ok(0x50), "the private one is told of too");
        assert_eq!(membarrier(PRIVATE), Err(EPERM), "and refused");
    });
    for command in [PRIVATE, CODE, GLOBAL] {
        assert_eq!(registered(), Ok(all));
        assert_eq!(membarrier(command << 1), Ok(0));
        all |= u64::from(command << 1);
        assert_eq!(membarrier(command), Ok(0));
    }
    assert_eq!(registered(), Ok(all));
    process::in_copy(|| assert_eq!(membarrier(MEMBARRIER_CMD_GET_REGISTRATIONS), Ok(0x54), "a child has them too"));
}

/// The calling thread in place of a pidfd is meant, and not the process's first one.
fn a_thread_signals_itself() {
    extern "C" fn note(_: u32, _: &SigInfo, _: &mut UContext) {
        HANDLED_BY.store(process::thread_id(), Ordering::Relaxed);
    }
    static HANDLED_BY: AtomicU32 = AtomicU32::new(0);
    // SAFETY: the handler touches an atomic.
    unsafe { signal::handle(SIGUSR1, note, 0, 0) }.expect("a handler");
    let send = |flags: u64| {
        HANDLED_BY.store(0, Ordering::Relaxed);
        assert_eq!(call(PIDFD_SEND_SIGNAL, [PIDFD_SELF_THREAD as u64, SIGUSR1.into(), 0, flags]), Ok(0));
        assert_eq!(HANDLED_BY.load(Ordering::Relaxed), process::thread_id(), "flags {flags}");
    };
    beside(|| [0, PIDFD_SIGNAL_THREAD].map(send), || ());
}
