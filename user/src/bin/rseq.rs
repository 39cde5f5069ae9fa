//! Restartable sequences: memory that is registered, the number of the CPU in it, and a sequence that does not end where
//! it began when it is interrupted. The program passes on Linux, too.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::cell::UnsafeCell;

use granule_user::prelude::*;

entry!(run);
own!(call);

const OK: Result<u64, Errno> = Ok(0);
const SIGNATURE: u32 = 0xd428_bc00;
const BYTES: u64 = size_of::<Rseq>() as u64;

fn run(start: Start) -> u8 {
    if start.arguments().nth(1).is_some() {
        // The program before it had its memory registered.
        return u8::from(Memory::new().register() != OK);
    }
    parts! { ()
        refused registered_once the_cpu_is_there a_signal_in_a_sequence a_signal_beside_a_sequence bad_sequences_kill
        others_have_the_cpu children_and_threads a_barrier_of_sequences
    }
    equal(
        "a new program has none",
        process::run(|| {
            assert_eq!(Memory::new().register(), OK);
            process::execute(c"/rseq", &[c"rseq", c"again"]);
            2
        }),
        exited(0),
    );
    println!("rseq: ok");
    wrong()
}

/// A thread's memory for the kernel.
#[repr(transparent)]
struct Memory(UnsafeCell<Rseq>);

impl Memory {
    const fn new() -> Self {
        let none = Rseq { cpu_id_start: 7, cpu_id: 7, rseq_cs: 7, flags: 7, node_id: 7, mm_cid: 7, rest: 0 };
        Self(UnsafeCell::new(none))
    }

    fn at(&self) -> u64 {
        self.0.get() as u64
    }

    fn register(&self) -> Result<u64, Errno> {
        call(RSEQ, [self.at(), BYTES, 0, SIGNATURE.into()])
    }

    fn unregister(&self) -> Result<u64, Errno> {
        call(RSEQ, [self.at(), BYTES, RSEQ_FLAG_UNREGISTER.into(), SIGNATURE.into()])
    }

    /// Its words, as the kernel has stored them.
    fn words(&self) -> [u32; 7] {
        // SAFETY: the memory is this thread's; the kernel stores only while the thread is not at EL0.
        unsafe { self.0.get().cast::<[u32; 7]>().read_volatile() }
    }

    fn sequence(&self) -> u64 {
        let [_, _, low, high, ..] = self.words();
        u64::from(low) | u64::from(high) << 32
    }

    /// Goes through a sequence in which it stores 1 to `begun` and makes a call with two arguments, or for number 0 waits
    /// until the word at the first of them is another than 0; returns 1 where it was interrupted.
    fn go(&self, sequence: &RseqCs, begun: &AtomicU32, number: usize, arguments: [u64; 2]) -> u64 {
        // SAFETY: the instructions below touch nothing else, and keep to the convention of calls.
        unsafe { granule_rseq_go(self.0.get(), sequence, begun.as_ptr(), number, arguments[0], arguments[1]) }
    }
}

unsafe extern "C" {
    fn granule_rseq_go(memory: *mut Rseq, sequence: &RseqCs, begun: *mut u32, number: usize, a: u64, b: u64) -> u64;
    static granule_rseq_start: u32;
    static granule_rseq_end: u32;
    static granule_rseq_abort: u32;
}

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".text",
    "granule_rseq_go:",
    "    str x1, [x0, #8]",
    "granule_rseq_start:",
    "    mov w9, #1",
    "    str w9, [x2]",
    "    mov x8, x3",
    "    mov x0, x4",
    "    mov x1, x5",
    "    cbnz x8, 2f",
    "1:  ldr w9, [x0]",
    "    cbz w9, 1b",
    "    b granule_rseq_end",
    "2:",
    "    svc #0",
    "granule_rseq_end:",
    "    mov x0, #0",
    "    ret",
    "    .word {signature}",
    "granule_rseq_abort:",
    "    mov x0, #1",
    "    ret",
    signature = const SIGNATURE,
);

/// The sequence of [`Memory::go`].
fn sequence() -> RseqCs {
    let (start, end) = (&raw const granule_rseq_start as u64, &raw const granule_rseq_end as u64);
    let abort_ip = &raw const granule_rseq_abort as u64;
    // The instruction after the call belongs to it: the signal comes there.
    RseqCs { version_and_flags: 0, start_ip: start, post_commit_offset: end + 4 - start, abort_ip }
}

fn refused() {
    let memory = Memory::new();
    for (what, at, bytes, flags, wanted) in [
        ("flags", memory.at(), BYTES, 4, EINVAL),
        ("too small", memory.at(), BYTES - 1, 0, EINVAL),
        ("not aligned", memory.at() + 8, BYTES, 0, EINVAL),
        ("of the kernel", KERNEL, BYTES, 0, EFAULT),
        ("nowhere", NOWHERE, BYTES, 0, EFAULT),
        ("what is not registered", memory.at(), BYTES, u64::from(RSEQ_FLAG_UNREGISTER), EINVAL),
        ("nothing", 0, 0, u64::from(RSEQ_FLAG_UNREGISTER), EINVAL),
    ] {
        equal(what, call(RSEQ, [at, bytes, flags, SIGNATURE.into()]), Err(wanted));
    }
    equal("nothing is stored", memory.words(), [7, 7, 7, 0, 7, 7, 7]);
}

fn registered_once() {
    let memory = Memory::new();
    equal("registered", memory.register(), OK);
    equal("no sequence", memory.sequence(), 0);
    equal("again", memory.register(), Err(EBUSY));
    equal("another signature", call(RSEQ, [memory.at(), BYTES, 0, 1]), Err(EPERM));
    equal("another size", call(RSEQ, [memory.at(), 2 * BYTES, 0, SIGNATURE.into()]), Err(EINVAL));
    equal("other memory", Memory::new().register(), Err(EINVAL));
    equal("other memory is not", Memory::new().unregister(), Err(EINVAL));
    equal("not by another signature", call(RSEQ, [memory.at(), BYTES, RSEQ_FLAG_UNREGISTER.into(), 1]), Err(EPERM));
    equal("not any more", memory.unregister(), OK);
    let [start, cpu, _, _, _, node, cid] = memory.words();
    equal("the numbers", [start, cpu, node, cid], [0, RSEQ_CPU_ID_UNINITIALIZED, 0, 0]);
    equal("nor again", memory.unregister(), Err(EINVAL));
}

fn the_cpu_is_there() {
    let memory = Memory::new();
    assert_eq!(memory.register(), OK);
    // Where it has moved between the looks it looks again.
    let seen = || {
        let cpu = process::cpu();
        let [start, own, ..] = memory.words();
        (start == own && own == cpu).then_some(own)
    };
    (0..100).for_each(|_| while seen().is_none() {});
    assert_eq!(memory.unregister(), OK);
}

static HANDLED: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: u32, _: &SigInfo, _: &mut UContext) {
    HANDLED.fetch_add(1, Ordering::Relaxed);
}

fn count_signals() {
    // SAFETY: the handler touches an atomic alone.
    unsafe { handle(SIGUSR1, count, 0, 0) }.expect("an action");
}

const TO_ITSELF: usize = TKILL;

fn itself() -> [u64; 2] {
    [process::thread_id().into(), SIGUSR1.into()]
}

fn a_signal_in_a_sequence() {
    let (memory, begun) = (Memory::new(), AtomicU32::new(0));
    count_signals();
    assert_eq!(memory.register(), OK);
    for round in 1..=3 {
        equal("interrupted", memory.go(&sequence(), &begun, TO_ITSELF, itself()), 1);
        equal("handled", HANDLED.load(Ordering::Relaxed), round);
        equal("it is in none any more", memory.sequence(), 0);
    }
    assert_eq!(memory.unregister(), OK);
    equal("without the kernel's help", memory.go(&sequence(), &begun, TO_ITSELF, itself()), 0);
}

fn a_signal_beside_a_sequence() {
    let (memory, begun) = (Memory::new(), AtomicU32::new(0));
    count_signals();
    assert_eq!(memory.register(), OK);
    let short = RseqCs { post_commit_offset: 4, ..sequence() };
    equal("it is not there yet, or has been", memory.go(&short, &begun, TO_ITSELF, itself()), 0);
    equal("it is in none", memory.sequence(), 0);
    assert_eq!(memory.unregister(), OK);
}

fn bad_sequences_kill() {
    let of = |make: fn() -> (RseqCs, u64)| {
        process::run(move || {
            let (memory, begun) = (Memory::new(), AtomicU32::new(0));
            count_signals();
            assert_eq!(memory.register(), OK);
            let (sequence, at) = make();
            // SAFETY: the kernel reads it as an address, and the function the word behind it not at all.
            let sequence = if at == 0 { &sequence } else { unsafe { &*(at as *const RseqCs) } };
            memory.go(sequence, &begun, TO_ITSELF, itself());
            0
        })
    };
    let segv = killed(SIGSEGV);
    equal(
        "no signature before the abort",
        of(|| (RseqCs { abort_ip: sequence().abort_ip + 4, ..sequence() }, 0)),
        segv,
    );
    equal("an abort in the kernel", of(|| (RseqCs { abort_ip: KERNEL, ..sequence() }, 0)), segv);
    equal("an abort at 0", of(|| (RseqCs { abort_ip: 0, ..sequence() }, 0)), segv);
    equal("a sequence nowhere", of(|| (sequence(), NOWHERE)), segv);
    for flags in [SA_NODEFER, SA_NODEFER | SA_ONSTACK] {
        equal(("a handler of it is not entered", flags), refused_with_handler(flags), (segv, 0));
    }
    // Linux enters this one once.
    equal("killed all the same", refused_with_handler(0).0, segv);
    equal(
        "memory that is gone",
        process::run(|| -> u8 {
            let pages = memory::map(PAGE, RW).expect("a page");
            assert_eq!(call(RSEQ, [pages, BYTES, 0, SIGNATURE.into()]), OK);
            // SAFETY: no reference to it is left.
            unsafe { memory::munmap(pages, PAGE) }.expect("to unmap it");
            loop {
                time::sleep(MILLISECOND).expect("a sleep");
            }
        }),
        segv,
    );
}

/// How a child ends that cannot enter a handler, and how often it has entered that of SIGSEGV.
fn refused_with_handler(flags: u64) -> (u32, u32) {
    static ENTERED: AtomicU64 = AtomicU64::new(0);
    extern "C" fn enter(_: u32, _: &SigInfo, _: &mut UContext) {
        // SAFETY: the page that its parent has stored there.
        let entered = unsafe { &*(ENTERED.load(Ordering::Relaxed) as *const AtomicU32) };
        entered.fetch_add(1, Ordering::Relaxed);
    }
    let entered = memory::shared::<AtomicU32>();
    ENTERED.store(entered.as_ptr() as u64, Ordering::Relaxed);
    let end = process::run(|| {
        let memory = Memory::new();
        let stack = memory::map(64 << 10, RW).expect("a stack");
        let stack = SigStack { base: stack + (32 << 10), flags: 0, padding: 0, size: 16 << 10 };
        // SAFETY: fresh memory, and a handler that touches a page of its own.
        unsafe {
            signal::set_stack(&stack).expect("a stack");
            handle(SIGSEGV, enter, flags, 0).expect("an action");
        }
        count_signals();
        assert_eq!(memory.register(), OK);
        // SAFETY: as in `bad_sequences_kill`.
        memory.go(unsafe { &*(NOWHERE as *const RseqCs) }, &AtomicU32::new(0), TO_ITSELF, itself());
        0
    });
    (end, entered.load(Ordering::Relaxed))
}

/// More threads than there are CPUs wait in a sequence: of two that have one CPU each interrupts the other.
fn others_have_the_cpu() {
    const THREADS: usize = 20;
    static INTERRUPTED: AtomicU32 = AtomicU32::new(0);
    static END: AtomicU32 = AtomicU32::new(0);
    all_at_once(THREADS, |_| {
        let (memory, begun) = (Memory::new(), AtomicU32::new(0));
        assert_eq!(memory.register(), OK);
        let mut is_first = true;
        // One that was interrupted goes on, so that the other is.
        while memory.go(&sequence(), &begun, 0, [END.as_ptr() as u64, 0]) == 1 {
            if is_first && INTERRUPTED.fetch_add(1, Ordering::Relaxed) == 1 {
                END.store(1, Ordering::Relaxed);
            }
            is_first = false;
        }
        assert_eq!(memory.unregister(), OK);
    });
}

fn children_and_threads() {
    let memory = Memory::new();
    assert_eq!(memory.register(), OK);
    equal(
        "a child has its parent's",
        process::run(|| {
            let [start, cpu, ..] = memory.words();
            assert!(start == cpu && cpu != RSEQ_CPU_ID_UNINITIALIZED);
            u8::from(memory.unregister() != OK)
        }),
        exited(0),
    );
    Thread::spawn(|| {
        let own = Memory::new();
        equal("a thread has none", own.register(), OK);
        equal("and may leave it", own.unregister(), OK);
    })
    .join();
    assert_eq!(memory.unregister(), OK);
}

fn a_barrier_of_sequences() {
    static BEGUN: AtomicU32 = AtomicU32::new(0);
    let barrier = |command: u32| call(MEMBARRIER, [command.into(), 0]);
    equal("not registered", barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ), Err(EPERM));
    equal("registered", barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ << 1), OK);
    equal("what is", barrier(MEMBARRIER_CMD_GET_REGISTRATIONS), Ok(0x110));
    equal("flags", call(MEMBARRIER, [MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ.into(), 2]), Err(EINVAL));
    let thread = Thread::spawn(|| {
        let memory = Memory::new();
        assert_eq!(memory.register(), OK);
        equal("interrupted", memory.go(&sequence(), &BEGUN, 0, [AtomicU32::new(0).as_ptr() as u64, 0]), 1);
    });
    until(|| BEGUN.load(Ordering::Relaxed) == 1);
    equal("done", barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ), OK);
    equal("on one CPU", call(MEMBARRIER, [MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ.into(), 1, 0]), OK);
    thread.join();
}
