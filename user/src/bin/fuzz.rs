//! System calls with hostile arguments: `fuzz SEED CALLS [together]` and `fuzz play [together] [short] STEP...`.
//!
//! A child makes them, since one may end it; then another child continues behind that call. The results do not matter
//! here, as long as calls return, and as long as this process, which watches, keeps its memory.
//!
//! Each call follows from its seed and its number in it alone. A STEP such as `7r0-63` is calls 0 to 63 of seed 7: `r`
//! with arguments of any kind, `s` with the structures that a call expects, `m` either. SEED CALLS is a step of kind `r`;
//! with `together`, where three threads of the child make the calls, of kind `m`. With `short` other children take all
//! memory that there is, again and again.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::sync::atomic::AtomicUsize;

use granule_user::prelude::*;
use granule_user::random;

#[path = "fuzz/structured.rs"]
mod structured;

entry!(run);

const FIXED: u64 = MREMAP_MAYMOVE | MREMAP_FIXED;
const KEEP: u64 = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
/// Where the count is: far from all that the calls are given, which powers of two are among.
const COUNT: u64 = 0x2345_6789_a000;
/// Where the pages are that are to be handled as the calls like: calls that begin there, and are long, reach nothing else.
const HANDED: u64 = 0x3456_789a_b000;
/// A child that makes none of the calls for so many looks, a millisecond apart, waits for something that never comes, or
/// has changed the count.
const PATIENCE: u32 = 100;
/// Calls that are left out where a child spoilt the count.
const GIVEN_UP: u64 = 16;
/// The page whose contents the calls must not change, and the contents.
const KEPT: u64 = 0x5a5a_1234_8765_a5a5;

/// Calls of a seed.
#[derive(Clone, Copy)]
struct Step {
    seed: u64,
    kind: Kind,
    first: u64,
    calls: u64,
}

#[derive(Clone, Copy)]
enum Kind {
    Raw,
    Structured,
    Mixed,
}

impl Step {
    /// `7r0-63`.
    fn parse(word: &str) -> Option<Self> {
        let at = word.find(['r', 's', 'm'])?;
        let (first, last) = word[at + 1..].split_once('-')?;
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        let kind = match word.as_bytes()[at] {
            b'r' => Kind::Raw,
            b's' => Kind::Structured,
            _ => Kind::Mixed,
        };
        Some(Self { seed: word[..at].parse().ok()?, kind, first, calls: last.checked_sub(first)?.checked_add(1)? })
    }
}

/// All that is done, in this order.
struct Plan {
    steps: [Step; STEPS],
    together: bool,
    short: bool,
}

const STEPS: usize = 16;

impl Plan {
    fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let none = Step { seed: 0, kind: Kind::Raw, first: 0, calls: 0 };
        let mut plan = Self { steps: [none; STEPS], together: false, short: false };
        let first = words.next()?;
        if first != "play" {
            let (seed, calls) = (first.parse().ok()?, words.next()?.parse().ok()?);
            plan.together = words.next() == Some("together");
            let kind = if plan.together { Kind::Mixed } else { Kind::Raw };
            plan.steps[0] = Step { seed, kind, first: 0, calls };
            return Some(plan);
        }
        let mut free = plan.steps.iter_mut();
        for word in words {
            match word {
                "together" => plan.together = true,
                "short" => plan.short = true,
                _ => *free.next()? = Step::parse(word)?,
            }
        }
        Some(plan)
    }

    fn calls(&self) -> u64 {
        self.steps.iter().map(|step| step.calls).sum()
    }

    /// The call with this number among all: its numbers to draw, and its kind.
    fn call(&self, mut number: u64) -> Option<(random::Random, Kind)> {
        let step = self.steps.iter().find(|step| match number.checked_sub(step.calls) {
            Some(rest) => {
                number = rest;
                false
            }
            None => true,
        })?;
        let mut mixed = random::Random(step.seed.wrapping_add((step.first + number) << 32));
        Some((random::Random(mixed.next()), step.kind))
    }
}

fn run(start: Start) -> u8 {
    let Some(plan) = Plan::parse(start.arguments().skip(1)) else { return 2 };
    let calls = plan.calls();
    PATH.store(start.auxiliary(AT_EXECFN).unwrap_or_default(), Ordering::Relaxed);
    for number in [SIGUSR1, SIGCHLD] {
        // SAFETY: the handler touches atomics alone.
        if unsafe { signal::handle(number, note, 0, 0) }.is_err() {
            return 3;
        }
    }
    // SAFETY: nothing else is there.
    let at = unsafe { mmap(COUNT, PAGE, RW, SHARED | MAP_FIXED_NOREPLACE) };
    if at != Ok(COUNT) {
        return 3;
    }
    let Ok(own) = memory::map(PAGE, RW) else { return 3 };
    let own = own as *mut u64;
    // SAFETY: fresh memory of this process's own.
    unsafe { (0..PAGE as usize / 8).for_each(|index| own.add(index).write(KEPT.wrapping_mul(index as u64))) };
    let mut hogs = [0; HOGS];
    let share = if plan.short { free_pages().saturating_sub(LEFT) / HOGS as u64 } else { 0 };
    let (mut children, mut killed, mut done) = (0_u64, 0, 0);
    while done < calls {
        children += 1;
        let (greetings, ends) = (GREETINGS.load(Ordering::Relaxed), ENDS.load(Ordering::Relaxed));
        let parent = process::id();
        let task = || {
            if process::tgkill(parent, parent, SIGUSR1).is_err() {
                return 3;
            }
            fuzz(&plan)
        };
        let Some(child) = spawn(task) else { return 3 };
        let was_killed = watch(child, calls, if plan.short { &mut hogs } else { &mut [] }, share);
        killed += u32::from(was_killed);
        assert!(was_killed || GREETINGS.load(Ordering::Relaxed) != greetings, "the child's signal was lost");
        assert!(ENDS.load(Ordering::Relaxed) != ends, "SIGCHLD was lost");
        // A child that went on at a random place, with random registers, may have counted anything: then the next one
        // begins a few calls on, since the same calls would do the same again. Each thread that comes to the end counts
        // one too many.
        match count().load(Ordering::Relaxed) {
            now if (done + 1..=calls + children * THREADS as u64).contains(&now) => done = now,
            _ => {
                done += GIVEN_UP;
                count().store(done, Ordering::Relaxed);
            }
        }
        // Children's children that their own child's end stopped, by any signal; and those made this process's own.
        let _ = process::kill(-1, SIGCONT);
        while let Ok((1.., _)) = process::wait4(-1, WNOHANG) {}
        // SAFETY: a name alone is concerned.
        let _ = unsafe { sys::call(UNLINKAT, [HERE, WRITTEN.as_ptr() as u64, 0, 0, 0, 0]) };
    }
    hogs.into_iter().filter(|hog| *hog != 0).for_each(end);
    // SAFETY: as above.
    let intact = |index| unsafe { own.add(index).read_volatile() } == KEPT.wrapping_mul(index as u64);
    assert!((0..PAGE as usize / 8).all(intact), "a child's calls changed its parent's memory");
    println!("fuzz: {calls} calls by {children} children, of which {killed} were killed");
    0
}

/// Kills a child, and waits for it.
fn end(child: u32) {
    let _ = process::kill(child as i32, SIGKILL);
    let _ = process::wait4(child as i32, 0);
}

/// A child, once there is memory for one: in a minute at least, since others may take it for a while.
fn spawn(task: impl Fn() -> u8) -> Option<u32> {
    for _ in 0..60_000 {
        if let Ok(child) = process::try_spawn(&task) {
            return Some(child);
        }
        let _ = time::sleep(1_000_000);
    }
    None
}

/// How many children take memory under `short`: the largest ends for each shortage. They are alike, so it had little.
const HOGS: usize = 24;
/// Pages that they do not take at once.
const LEFT: u64 = 1024;

/// Takes so many pages at once, then one at a time until this process is killed. The others run between two of these, so
/// that most shortages are theirs.
fn take_all(share: u64) -> u8 {
    (0..share / PAGES).for_each(|_| populate());
    loop {
        let Ok(pages) = memory::map(PAGES * PAGE, RW) else {
            let _ = time::sleep(1_000_000);
            continue;
        };
        for index in 0..PAGES {
            // SAFETY: fresh memory of this process's own.
            unsafe { ((pages + index * PAGE) as *mut u8).write_volatile(1) };
            process::sched_yield();
        }
    }
}

/// Maps pages that are there at once.
fn populate() {
    // SAFETY: not at a fixed address.
    let _ = unsafe { mmap(0, PAGES * PAGE, RW, PRIVATE | MAP_POPULATE) };
}

/// How many pages a process can get: as many as one had that was killed for them.
fn free_pages() -> u64 {
    // SAFETY: mapped behind the count, which nothing else uses yet.
    let taken = unsafe { &*((COUNT + 8) as *const AtomicU64) };
    let task = || loop {
        populate();
        taken.fetch_add(PAGES, Ordering::Relaxed);
    };
    spawn(task).map_or(0, |child| {
        process::wait(child);
        taken.load(Ordering::Relaxed)
    })
}

/// Signals that children sent, and SIGCHLDs: several that wait are one.
static GREETINGS: AtomicU32 = AtomicU32::new(0);
static ENDS: AtomicU32 = AtomicU32::new(0);

extern "C" fn note(signal: u32, _info: &SigInfo, _context: &mut UContext) {
    let count = if signal == SIGCHLD { &ENDS } else { &GREETINGS };
    count.fetch_add(1, Ordering::Relaxed);
}

fn count() -> &'static AtomicU64 {
    // SAFETY: mapped, and used as this alone.
    unsafe { &*(COUNT as *const AtomicU64) }
}

/// Waits for the child's end, whether by SIGKILL: it is killed if it does not come nearer to the last of the `calls`.
/// `hogs` are started again as they end.
fn watch(child: u32, calls: u64, hogs: &mut [u32], share: u64) -> bool {
    let (mut last, mut quiet) = (0, 0);
    loop {
        match process::wait4(child as i32, WNOHANG) {
            Ok((0, _)) => {}
            Ok((_, status)) => return status & 0x7f == SIGKILL,
            Err(_) => return false,
        }
        let now = count().load(Ordering::Relaxed);
        quiet = if last < now.min(calls) { 0 } else { quiet + 1 };
        last = last.max(now);
        if quiet == PATIENCE {
            let _ = process::kill(child as i32, SIGKILL);
        }
        for hog in hogs.iter_mut().filter(|hog| **hog == 0 || process::wait4(**hog as i32, WNOHANG) != Ok((0, 0))) {
            *hog = process::try_spawn(|| take_all(share)).unwrap_or(0);
        }
        let _ = time::sleep(1_000_000);
    }
}

/// Numbers to draw, and the arguments that are made of them.
struct Random {
    numbers: random::Random,
    /// Pages to be handled as the calls like.
    pages: u64,
}

/// Advice: what takes contents away, what changes areas, what populates, guards, and numbers that are none.
const ADVICE: [[u64; 5]; 4] = [
    [0, 1, 2, 3, MADV_DONTNEED],
    [8, MADV_REMOVE, 14, MADV_DONTFORK, MADV_DOFORK],
    [MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_GUARD_INSTALL],
    [MADV_COLLAPSE, MADV_GUARD_REMOVE, 16, 17, 1 << 32],
];
/// Calls that get anything.
const OTHERS: [[usize; 4]; 10] = [
    [RSEQ, GETRUSAGE, SYSINFO, TIMES],
    [SCHED_GETPARAM, SCHED_RR_GET_INTERVAL, FADVISE64, SCHED_SETAFFINITY],
    [CLOCK_GETTIME, CLOCK_GETRES, UNAME, GETCPU],
    [SIGALTSTACK, RT_SIGPENDING, SET_TID_ADDRESS, SCHED_YIELD],
    [SETPGID, GETPGID, GETSID, SETSID],
    [PRCTL, IOCTL, CLOSE, CLOSE],
    [PIDFD_OPEN, PIDFD_SEND_SIGNAL, PROCESS_MADVISE, PROCESS_MRELEASE],
    [EPOLL_CREATE1, EPOLL_CTL, EPOLL_CTL, SIGNALFD4],
    [FUTEX_WAITV, FUTEX_REQUEUE_CALL, CAPGET, CAPSET],
    [TIMERFD_CREATE, TIMERFD_SETTIME, TIMERFD_GETTIME, TIMER_CREATE],
];
/// How many pages there are to be handled as the calls like.
const PAGES: u64 = 64;

impl Random {
    fn next(&mut self) -> u64 {
        self.numbers.next()
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }

    /// Numbers on both sides of every limit.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(4),
            1 => 1_u64.wrapping_shl(self.next() as u32).wrapping_sub(self.below(3)),
            2 => self.below(1 << 20),
            3 => self.next() as u32 as u64,
            4 => u64::MAX - self.below(2 * PAGE),
            _ => self.next(),
        }
    }

    /// A part of the pages.
    fn page(&mut self) -> u64 {
        self.pages + self.below(PAGES) * PAGE
    }

    /// An address where nothing of the program's is.
    fn nowhere(&mut self) -> u64 {
        match self.below(5) {
            0 => self.below(1 << 16),
            1 => (1 << 48) - self.below(PAGE),
            2 => self.next() | 0xffff << 48,
            3 => self.next() | 0xff << 48,
            _ => 0x6000_0000_0000 + self.below(1 << 40),
        }
    }

    /// An address to read from or to write to, which may have a tag.
    fn pointer(&mut self) -> u64 {
        let pointer = match self.below(8) {
            0..4 => self.page() + self.below(2 * PAGE),
            4 => self.page() + PAGE - self.below(16),
            _ => self.nowhere(),
        };
        if self.below(8) == 0 { pointer | self.next() << 56 } else { pointer }
    }

    /// An address to change what is mapped at: the pages, and hardly ever anything else.
    fn place(&mut self) -> u64 {
        match self.below(64) {
            0..56 => self.page(),
            56..60 => self.page() + self.below(PAGE),
            60..63 => self.nowhere(),
            // The program itself.
            _ => 0x40_0000 + self.below(16) * PAGE,
        }
    }

    /// A length: a few pages, or more than can be.
    fn length(&mut self) -> u64 {
        match self.below(16) {
            0 => self.below(2),
            1 => u64::MAX - self.below(2 * PAGE),
            2 => 1 << (40 + self.below(24)),
            3 => self.below(8 * PAGE),
            _ => self.below(12) * PAGE,
        }
    }

    fn bytes(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(1 << 16),
            1 => self.number() % (1 << 16),
            _ => self.below(64),
        }
    }

    fn protection(&mut self) -> u64 {
        if self.below(16) == 0 { self.number() } else { self.below(8) }
    }

    fn mmap_flags(&mut self) -> u64 {
        let sharing = self.of(&[MAP_PRIVATE, MAP_PRIVATE, MAP_SHARED]);
        let fixed = self.of(&[MAP_FIXED, MAP_FIXED, MAP_FIXED_NOREPLACE, 0]);
        let odd = if self.below(8) == 0 { self.number() } else { 0 };
        // Mappings that lie anywhere would pile up.
        MAP_ANONYMOUS | sharing | fixed | odd
    }

    /// A process that does not exist. 0 and -1 are all that do.
    fn process(&mut self) -> u64 {
        self.of(&[1 << 22 | 1, 1 << 31, i32::MAX as u64, u64::MAX << 20])
    }

    /// The next call.
    fn call(&mut self) -> ([u64; 6], usize) {
        let mut arguments = [(); 6].map(|()| if self.below(2) == 0 { self.number() } else { self.pointer() });
        let mut set = |known: &[u64]| {
            arguments[..known.len()].copy_from_slice(known);
            arguments
        };
        match self.below(100) {
            // Without a fixed address mappings would pile up, so most of these have one.
            0..18 => (set(&[self.place(), self.length(), self.protection(), self.mmap_flags()]), MMAP),
            18..28 => (set(&[self.place(), self.length()]), MUNMAP),
            28..40 => (set(&[self.place(), self.length(), self.protection()]), MPROTECT),
            40..48 => {
                let advice = if self.below(4) == 0 { self.number() } else { MADV_DONTNEED };
                (set(&[self.place(), self.length(), advice]), MADVISE)
            }
            // No mapping is so large that looking at it takes long.
            48..53 => (set(&[self.place(), self.length() % (1 << 34), self.pointer()]), MINCORE),
            // Also what brings pages that later calls find.
            53..56 => (set(&[self.pointer(), self.bytes(), self.number()]), GETRANDOM),
            56..58 => {
                let end = self.number();
                (set(&[if self.below(2) == 0 { 0 } else { end }]), BRK)
            }
            58..62 => (
                set(&[self.number() | 4, self.pointer(), self.bytes()]),
                self.of(&[WRITE, WRITEV, READ, READV, PREADV, PWRITEV, SENDFILE]),
            ),
            // To the console, but there is never anything there that could be written.
            62 => (set(&[1, self.next() | 0xffff << 48, self.number()]), self.of(&[WRITE, WRITEV])),
            // To wait would take time: FUTEX_WAKE is 1, and what is odd waits for nothing.
            63..66 => {
                (set(&[self.pointer(), FUTEX_WAKE | self.number() & 0x180, self.number(), self.nowhere()]), FUTEX)
            }
            // FUTEX_WAIT, on values that are hardly ever there.
            66..68 => (set(&[self.pointer(), self.number() & 0x180, self.number() | 1 << 30, self.pointer()]), FUTEX),
            68..71 => (
                set(&[self.number() % 70, self.pointer(), self.pointer(), self.of(&[8, 8, 8, 0, 9])]),
                self.of(&[RT_SIGACTION, RT_SIGPROCMASK]),
            ),
            71..73 => (set(&[self.process(), self.process(), self.number()]), self.of(&[KILL, TKILL, TGKILL])),
            // Memory of its own: with this one's it would run on this one's stack.
            73..75 => (set(&[self.number() & !CLONE_VM, 0, self.pointer(), self.pointer(), self.pointer()]), CLONE),
            75..77 => (set(&[self.number(), self.pointer(), WNOHANG | (self.number() % 8), self.pointer()]), WAIT4),
            77..79 => (set(&[self.pointer(), self.pointer(), self.pointer()]), EXECVE),
            79..81 => (set(&[self.nowhere(), self.pointer()]), NANOSLEEP),
            81 => (set(&[self.number(), self.number(), self.nowhere(), self.pointer()]), CLOCK_NANOSLEEP),
            82 if self.below(50) == 0 => (arguments, RT_SIGRETURN),
            // A few that do not exist: each is logged once.
            82 => (arguments, self.of(&[0, 1, 2, 1 << 20, usize::MAX, 1 << 32])),
            _ => {
                let first = if self.below(2) == 0 { self.number() } else { self.pointer() };
                (set(&[first]), self.of(&OTHERS.as_flattened()[..23]))
            }
        }
    }
}

/// State that the threads of a child have in common, with signal handlers.
static PATH: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
static SHARED_PAGES: AtomicU64 = AtomicU64::new(0);
/// Paths: of files, of a directory, of nothing, and invalid ones.
const PATHS: [&CStr; 10] =
    [c"/", c"", c"nosuch", c"./plain", c"/../fuzz", c"fuzz/", c"fuzz/.", c"plain/x", c"/dev/zero", c"/dev/full"];
/// The one file that is opened to be written: files stay after the programs that write them.
const WRITTEN: &CStr = c"written";
/// Where signal frames are moved to: two pages.
static FRAMES: AtomicU64 = AtomicU64::new(0);
/// The [`Plan`], of the parent's copy.
static PLAN: AtomicUsize = AtomicUsize::new(0);

/// Threads of a child under `together`, its first one included.
const THREADS: usize = 3;

/// Makes calls until there were enough, or one ends this process.
fn fuzz(plan: &Plan) -> u8 {
    // SAFETY: nothing else is there.
    let pages = unsafe { mmap(HANDED, PAGES * PAGE, RW, PRIVATE | MAP_FIXED_NOREPLACE) };
    let (Ok(pages), Ok(frames)) = (pages, memory::map(2 * PAGE, RW)) else { return 3 };
    SHARED_PAGES.store(pages, Ordering::Relaxed);
    FRAMES.store(frames, Ordering::Relaxed);
    PLAN.store(core::ptr::from_ref(plan).expose_provenance(), Ordering::Relaxed);
    for number in HANDLED {
        // SAFETY: the parent expects this process to end at any signal.
        let _ = unsafe { signal::handle(number, mutate, 0, 0) };
    }
    // From here on a child reads no input and prints nothing, whatever it calls.
    for descriptor in 0..3 {
        let own = [HERE, PATH.load(Ordering::Relaxed), O_RDONLY.into(), 0, 0, 0];
        // SAFETY: descriptors alone are concerned; no other thread runs.
        unsafe {
            // Where memory is short, again.
            while sys::call(CLOSE, [descriptor, 0, 0, 0, 0, 0]) == Err(ENOMEM) {}
            let _ = sys::call(OPENAT, own);
        }
    }
    // They end with the process: none is joined.
    (1..if plan.together { THREADS } else { 1 }).for_each(|_| drop(Thread::try_spawn(make_calls)));
    make_calls();
    0
}

fn make_calls() {
    // SAFETY: the parent's plan, on whose stack this child's first thread runs until it ends.
    let plan = unsafe { &*core::ptr::with_exposed_provenance::<Plan>(PLAN.load(Ordering::Relaxed)) };
    let pages = SHARED_PAGES.load(Ordering::Relaxed);
    while let Some((numbers, kind)) = plan.call(count().fetch_add(1, Ordering::Relaxed)) {
        SEED.store(numbers.0, Ordering::Relaxed);
        let mut random = Random { numbers, pages };
        let structured = match kind {
            Kind::Raw => false,
            Kind::Structured => true,
            Kind::Mixed => random.below(2) == 0,
        };
        if structured { random.structured() } else { random.call_once() }
    }
}

/// Signals that have a handler at first.
const HANDLED: [u32; 4] = [SIGUSR1, SIGUSR2, 34, 64];

/// Returns through a frame that it changed, or that it moved.
extern "C" fn mutate(_signal: u32, info: &SigInfo, context: &mut UContext) {
    let mut random = random::Random(SEED.fetch_add(1, Ordering::Relaxed) ^ context.context.pc);
    match random.next() % 8 {
        0..3 => {}
        3 => context.mask = random.next(),
        4 => context.context.pstate ^= 1 << (random.next() % 64),
        5 => context.stack.size ^= 1 << (random.next() % 64),
        _ => {
            let at = random.next() as usize % 640;
            let bits = random.next() >> (random.next() % 64);
            context.context.records.0[at..at + 8].iter_mut().zip(bits.to_le_bytes()).for_each(|(byte, by)| *byte ^= by);
        }
    }
    if random.next().is_multiple_of(4) {
        let to = FRAMES.load(Ordering::Relaxed) + [0, 0, 16, 32, 1, 4, 8, PAGE - 64][random.next() as usize % 8];
        // SAFETY: the frame begins with `info`; two pages of this process's own have room for it at each of these places.
        unsafe { core::ptr::copy(core::ptr::from_ref(info).cast::<u8>(), to as *mut u8, size_of::<SigFrame>()) };
        return_through(to);
    }
}

/// rt_sigreturn with a frame at this address.
fn return_through(frame: u64) -> ! {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: it continues as the frame says, or ends the process.
    unsafe {
        core::arch::asm!(
            "mov sp, {}", "svc #0", "udf #0",
            in(reg) frame, in("x8") RT_SIGRETURN, options(noreturn)
        );
    }
    #[cfg(not(target_arch = "aarch64"))]
    unreachable!("{frame:#x}: these programs run on arm64 alone")
}

/// A call, whatever it does to this process's memory: the parent expects the process to end at any.
fn raw(number: usize, some: &[u64]) -> u64 {
    let mut arguments = [0; 6];
    arguments[..some.len()].copy_from_slice(some);
    // SAFETY: as above.
    unsafe { sys::raw(number, arguments) }
}
