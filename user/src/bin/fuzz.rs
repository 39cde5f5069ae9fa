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

use core::ffi::CStr;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use granule_user::memory::mmap;
use granule_user::prelude::*;
use granule_user::thread::Thread;
use granule_user::{memory, offend, println, probe, process, random, signal, sys, time};

entry!(run);

const FIXED: u64 = MREMAP_MAYMOVE | MREMAP_FIXED;
const KEEP: u64 = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;
/// Where the count is: far from all that the calls are given, which powers of two are among.
const COUNT: u64 = 0x2345_6789_a000;
/// A child that makes no call for so many looks, a millisecond apart, waits for something that never comes.
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
    let at = unsafe { mmap(COUNT, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE) };
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
        let was_killed = watch(child, if plan.short { &mut hogs } else { &mut [] }, share);
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
        // Children's children that were made this process's own.
        while let Ok((1.., _)) = process::wait4(-1, WNOHANG) {}
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
    let _ = unsafe { mmap(0, PAGES * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE) };
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

/// Waits for the child's end, whether by SIGKILL: it is killed if it waits for ever. `hogs` are started again as they end.
fn watch(child: u32, hogs: &mut [u32], share: u64) -> bool {
    let (mut last, mut quiet) = (0, 0);
    loop {
        match process::wait4(child as i32, WNOHANG) {
            Ok((0, _)) => {}
            Ok((_, status)) => return status & 0x7f == SIGKILL,
            Err(_) => return false,
        }
        let now = count().load(Ordering::Relaxed);
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
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
    [MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, 16, 17, 1 << 32],
];
/// Calls that get anything.
const OTHERS: [usize; 11] = [
    CLOCK_GETTIME,
    CLOCK_GETRES,
    UNAME,
    GETCPU,
    SIGALTSTACK,
    RT_SIGPENDING,
    SET_TID_ADDRESS,
    SCHED_YIELD,
    PRCTL,
    IOCTL,
    CLOSE,
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
            58..62 => (set(&[self.number() | 4, self.pointer(), self.bytes()]), self.of(&[WRITE, WRITEV, READ, READV])),
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
                (set(&[first]), self.of(&OTHERS))
            }
        }
    }
}

/// State that the threads of a child have in common, with signal handlers.
static PATH: AtomicU64 = AtomicU64::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
static SHARED_PAGES: AtomicU64 = AtomicU64::new(0);
/// Paths: of files, of a directory, of nothing, and invalid ones.
const PATHS: [&CStr; 8] = [c"/", c"", c"nosuch", c"./plain", c"/../fuzz", c"fuzz/", c"fuzz/.", c"plain/x"];
/// Where signal frames are moved to: two pages.
static FRAMES: AtomicU64 = AtomicU64::new(0);
/// The [`Plan`], of the parent's copy.
static PLAN: AtomicUsize = AtomicUsize::new(0);

/// Threads of a child under `together`, its first one included.
const THREADS: usize = 3;

/// Makes calls until there were enough, or one ends this process.
fn fuzz(plan: &Plan) -> u8 {
    let (Ok(pages), Ok(frames)) = (memory::map(PAGES * PAGE, RW), memory::map(2 * PAGE, RW)) else { return 3 };
    SHARED_PAGES.store(pages, Ordering::Relaxed);
    FRAMES.store(frames, Ordering::Relaxed);
    PLAN.store(core::ptr::from_ref(plan).expose_provenance(), Ordering::Relaxed);
    for number in HANDLED {
        // SAFETY: the parent expects this process to end at any signal.
        let _ = unsafe { signal::handle(number, mutate, 0, 0) };
    }
    // From here on a child reads no input and prints nothing, whatever it calls.
    for descriptor in 0..3 {
        let own = [AT_FDCWD as u64, PATH.load(Ordering::Relaxed), O_RDONLY.into(), 0, 0, 0];
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

/// An exception that no call makes.
fn offend_by(which: u64, at: u64) {
    match which {
        0 => offend!("brk #0", at),
        1 => offend!("udf #0", at),
        2 => offend!("msr vbar_el1, x10", at),
        3 => offend!("mov x9, sp; sub sp, sp, #8; str x10, [sp]; mov sp, x9", at),
        _ => offend!("ldar x9, [x10]", at),
    }
}

/// The end of a child that clone made on this one's memory.
extern "C" fn leave() -> ! {
    process::exit(0)
}

impl Random {
    fn call_once(&mut self) {
        let (arguments, number) = self.call();
        if raw(number, &arguments) == 0 && number == CLONE {
            process::exit_group(0);
        }
    }

    /// A call whose arguments are the structures that it expects.
    fn structured(&mut self) {
        match self.below(96) {
            0 => self.execute_apart(),
            1..3 => self.copy_and_kill(),
            3..6 => self.touch(),
            6 => self.large(),
            7 => self.control(),
            8..14 => self.clone_with(),
            14..20 => self.limit(),
            20..26 => self.act(),
            26..32 => self.alternative_stack(),
            32..38 => self.block(),
            38..50 => self.signal(),
            50..66 => self.futex(),
            66..71 => self.rest(),
            71 => self.interrupted(),
            72..76 => self.wait(),
            76..86 => self.memory(),
            86..92 => self.descriptors(),
            92..94 => self.pieces(),
            _ => self.fill(),
        }
    }

    /// Where a call stores something that it returns: nowhere, in a page, or anywhere.
    fn place_for_result(&mut self) -> u64 {
        match self.below(4) {
            0 => self.pointer(),
            1 => self.page() + self.below(PAGE / 8) * 8,
            _ => 0,
        }
    }

    /// In a copy of the process: loads, stores and jumps to its pages and beside them, which may fault; code that it
    /// writes and calls; exceptions that no call makes.
    fn touch(&mut self) {
        let (mut random, prepared) = (Random { numbers: self.numbers, pages: self.pages }, self.below(4) != 0);
        self.next();
        let child = process::try_spawn(|| {
            if prepared {
                probe::prepare();
            }
            let code = random.page();
            for _ in 0..16 {
                let at = if random.below(8) == 0 { random.nowhere() } else { random.page() + random.below(PAGE) };
                match random.below(16) {
                    0..6 => _ = probe::read(at),
                    // SAFETY: the copy's memory, which ends with it, whatever becomes of it.
                    6..12 => _ = unsafe { probe::write(at, 1) },
                    // SAFETY: as above.
                    12 => _ = unsafe { probe::call(random.nowhere() & !3) },
                    13 => random.call_code(code),
                    14 => offend_by(random.below(5), at),
                    // No call that may wait for ever: the copy would be left where this process is killed.
                    _ => random.memory(),
                }
            }
            0
        });
        let Ok(child) = child else { return };
        for _ in 0..PATIENCE / 4 {
            if process::wait4(child as i32, WNOHANG) != Ok((0, 0)) {
                return;
            }
            let _ = time::sleep(1_000_000);
        }
        // The code that it has jumped to does not end.
        end(child);
    }

    /// A function that only returns, in a page that is written, then executable, then writable again.
    fn call_code(&mut self, at: u64) {
        const RET: u32 = 0xd65f_03c0;
        let flags = MAP_FIXED | MAP_ANONYMOUS | if self.below(2) == 0 { MAP_PRIVATE } else { MAP_SHARED };
        // SAFETY: a page to be handled as the calls like.
        unsafe {
            if mmap(at, PAGE, RW | PROT_EXEC, flags).is_err() {
                return;
            }
            for (at, byte) in (at..).zip(RET.to_le_bytes()) {
                let _ = probe::write(at, byte);
            }
            for protection in [PROT_READ | PROT_EXEC, PROT_EXEC, RW | PROT_EXEC] {
                let _ = memory::mprotect(at, PAGE, protection);
                let _ = probe::call(at);
            }
        }
    }

    /// A thread's name, and whether its pointers may have tags.
    fn control(&mut self) {
        let what = self.of(&[PR_SET_NAME, PR_GET_NAME, PR_SET_TAGGED_ADDR_CTRL, PR_SET_TAGGED_ADDR_CTRL]);
        let first = if what == PR_SET_TAGGED_ADDR_CTRL { self.of(&[0, 1, 1, 2]) } else { self.pointer() };
        let odd = if self.below(8) == 0 { self.number() } else { 0 };
        let what = if self.below(8) == 0 { PR_GET_TAGGED_ADDR_CTRL } else { what };
        raw(PRCTL, &[what, first, 0, 0, odd]);
    }

    /// More memory at once than may be free; or none, where large pages are asked for.
    fn large(&mut self) {
        let length = self.of(&[1 << 20, 1 << 22, 1 << 24]);
        let sharing = self.of(&[MAP_PRIVATE, MAP_SHARED]);
        let size = self.of(&[0, 16, 21, 25, 30, 31]) << 26;
        let flags = match self.below(4) {
            0 => sharing | MAP_HUGETLB | size | self.of(&[0, MAP_ANONYMOUS]),
            _ => sharing | MAP_ANONYMOUS | MAP_POPULATE,
        };
        // SAFETY: not at a fixed address.
        if let Ok(start) = unsafe { mmap(0, length, RW, flags) } {
            // SAFETY: memory of this function's own.
            let _ = unsafe { memory::munmap(start, length) };
        }
    }

    /// The number of a clock: Linux's own, of a process or of a thread.
    fn clock(&mut self) -> u64 {
        match self.below(4) {
            0 => {
                let of = self.of(&[0, process::id(), process::thread_id(), process::parent_id(), 1 << 21]);
                u64::from(!of << 3 | self.below(8) as u32)
            }
            1 => self.number(),
            _ => self.below(13),
        }
    }

    /// A sleep on any clock, which a signal may interrupt.
    fn rest(&mut self) {
        let clock = self.clock();
        let time = Timespec::from_nanoseconds(self.below(300_000));
        let rest = self.place_for_result();
        let call = match self.below(4) {
            0 => (NANOSLEEP, [&raw const time as u64, rest, 0, 0, 0, 0]),
            1 => (RESTART_SYSCALL, [0; 6]),
            _ => (CLOCK_NANOSLEEP, [clock, self.below(2) * TIMER_ABSTIME, &raw const time as u64, rest, 0, 0]),
        };
        raw(call.0, &call.1);
    }

    /// Sleeps and waits that a child's signal interrupts, and what continues them.
    fn interrupted(&mut self) {
        let own = process::id();
        let (after, signal) = (self.below(200_000), self.of(&[SIGUSR1, SIGUSR1, SIGURG, SIGCHLD]));
        let child = process::try_spawn(|| {
            let _ = time::sleep(after);
            let _ = process::kill(own as i32, signal);
            0
        });
        let time = Timespec::from_nanoseconds(1_000_000);
        let (clock, rest) = (self.clock(), self.place_for_result());
        let (number, arguments) = match self.below(4) {
            0 => (NANOSLEEP, [&raw const time as u64, rest, 0, 0, 0, 0]),
            1 => (FUTEX, [self.pages, FUTEX_WAIT, 0, &raw const time as u64, 0, 0]),
            _ => (CLOCK_NANOSLEEP, [clock, self.below(2) * TIMER_ABSTIME, &raw const time as u64, rest, 0, 0]),
        };
        raw(number, &arguments);
        raw(RESTART_SYSCALL, &[]);
        let _ = child.map(|child| process::wait4(child as i32, 0));
    }

    /// For children of every kind, which there may be; never for one that has not ended.
    fn wait(&mut self) {
        let which = self.of(&[-1, 0, i64::from(i32::MIN), -i64::from(process::id()), 1 << 21]) as u64;
        let options = WNOHANG | self.of(&[0, 0, 2, 8, 1 << 29, 1 << 30, 1 << 31, 16]);
        let (status, usage) = (self.place_for_result(), self.place_for_result());
        raw(WAIT4, &[which, status, options, usage]);
    }

    /// Calls for memory that succeed more often than not.
    fn memory(&mut self) {
        let (at, pages) = (self.page(), self.below(16) + 1);
        let length = pages * PAGE - if self.below(4) == 0 { self.below(PAGE) } else { 0 };
        let protection = self.of(&[0, PROT_READ, RW, RW, RW, PROT_EXEC, PROT_READ | PROT_EXEC, RW | PROT_EXEC]);
        let sharing = self.of(&[MAP_PRIVATE, MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE]);
        let odd = self.of(&[0, 0, MAP_POPULATE, MAP_POPULATE, MAP_GROWSDOWN, MAP_STACK, MAP_NORESERVE, MAP_HUGETLB]);
        let (number, arguments) = match self.below(19) {
            0..6 => (MMAP, [at, length, protection, MAP_ANONYMOUS | MAP_FIXED | sharing | odd, u64::MAX, 0]),
            6 => (MMAP, [0, self.of(&[length, length, 1 << 22]), protection, MAP_ANONYMOUS | sharing | odd, 0, 0]),
            7 => (MUNMAP, [at, length, 0, 0, 0, 0]),
            8..11 => (MPROTECT, [at, length, protection, 0, 0, 0]),
            11 => (MADVISE, [at, length, self.of(ADVICE.as_flattened()), 0, 0, 0]),
            13..15 => {
                let (file, offset) = (self.descriptor(), self.below(16) * PAGE);
                (MMAP, [at, length, protection, MAP_FIXED | sharing | odd, file, offset])
            }
            12 => (MINCORE, [at, length, self.page(), 0, 0, 0]),
            15 => {
                let end = raw(BRK, &[]);
                let by = self.of(&[PAGE, 16 * PAGE, 1, 1 << 30]);
                (BRK, [if self.below(2) == 0 { end + by } else { end - by.min(end) }, 0, 0, 0, 0, 0])
            }
            16..18 => {
                let flags = self.of(&[0, MREMAP_MAYMOVE, FIXED, FIXED, FIXED | MREMAP_DONTUNMAP, KEEP]);
                let new_length = if self.below(2) == 0 { length } else { (self.below(16) + 1) * PAGE };
                (MREMAP, [at, if self.below(8) == 0 { 0 } else { length }, new_length, flags, self.page(), 0])
            }
            _ => match self.below(8) {
                0 => (MLOCKALL, [self.below(9), 0, 0, 0, 0, 0]),
                1..3 => (MUNLOCKALL, [0; 6]),
                3..6 => (self.of(&[MLOCK, MUNLOCK]), [at, length, 0, 0, 0, 0]),
                _ => (MLOCK2, [at, length, self.below(3), 0, 0, 0]),
            },
        };
        raw(number, &arguments);
    }

    /// A descriptor that is open often, seldom, or cannot be.
    fn descriptor(&mut self) -> u64 {
        match self.below(8) {
            0 => self.number(),
            1 => self.of(&[63, 64, 65, 1023, 1024, 4095]),
            _ => self.below(6),
        }
    }

    /// Nowhere, one of [`PATHS`] three times as often, or the program's own.
    fn path(&mut self, of: u64) -> u64 {
        match self.below(of) {
            0 => self.pointer(),
            1..4 => self.of(&PATHS).as_ptr() as u64,
            _ => PATH.load(Ordering::Relaxed),
        }
    }

    /// Files that are opened, numbered, read, measured and closed.
    fn descriptors(&mut self) {
        const FLAGS: [[u32; 4]; 3] = [
            [O_RDONLY, O_RDONLY, O_CLOEXEC, O_PATH],
            [O_DIRECTORY, O_PATH | O_DIRECTORY, O_RDWR, O_CREAT],
            [O_CREAT | O_EXCL, O_TMPFILE | O_WRONLY, O_TRUNC, O_NONBLOCK | O_APPEND],
        ];
        let (file, other) = (self.descriptor(), self.descriptor());
        let (to, bytes) = (self.place_for_result(), self.below(3 * PAGE));
        let length = if self.below(6) == 0 { self.number() } else { self.below(24 * PAGE) };
        let (number, arguments) = match self.below(24) {
            0..3 => {
                let path = self.path(6);
                let (directory, flags) = (self.of(&[AT_FDCWD as u64, file]), self.of(FLAGS.as_flattened()));
                (OPENAT, [directory, path, if self.below(8) == 0 { self.number() } else { flags.into() }, 0])
            }
            3 => (DUP, [file, 0, 0, 0]),
            4..6 => (DUP3, [file, other, self.of(&[0, 0, O_CLOEXEC.into(), 1]), 0]),
            6..8 => {
                let command =
                    self.of(&[F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, F_ADD_SEALS, F_GET_SEALS]);
                (FCNTL, [file, command.into(), if self.below(4) == 0 { self.number() } else { other }, 0])
            }
            8 => (LSEEK, [file, self.number(), self.below(6), 0]),
            9..11 => (READ, [file, self.page(), bytes, 0]),
            11 => (PREAD64, [file, to, bytes, self.number()]),
            12 => (PWRITE64, [file, to, bytes, self.number()]),
            13 => (FSTAT, [file, to, 0, 0]),
            14..16 => (MEMFD_CREATE, [self.of(&PATHS).as_ptr() as u64, self.of(&[0, 2, 2, 3, 10, 18, 32]), 0, 0]),
            16..18 => (FTRUNCATE, [file, length, 0, 0]),
            18..20 => (FALLOCATE, [file, self.of(&[0, 0, 1, 3, 3, 16]), self.below(16 * PAGE), length]),
            20 => (PWRITE64, [file, self.page(), bytes, length]),
            _ => (CLOSE, [file, 0, 0, 0]),
        };
        raw(number, &arguments);
    }

    /// Reads and writes of several pieces: none, empty ones, and some that lead nowhere. Nothing is printed.
    fn pieces(&mut self) {
        let pieces = [(); 4].map(|()| match self.of(&[0, 0, 0, u64::MAX, 8]) {
            8 => [self.next() | 0xffff << 48, 8],
            length => [self.pointer(), length],
        });
        let (file, count) = (self.descriptor(), self.of(&[0, 1, 2, 4, 1025]));
        let number = self.of(&[READV, WRITEV]);
        raw(number, &[file, pieces.as_ptr() as u64, count]);
    }

    /// A call that stores much: random numbers, or what is known of the system.
    fn fill(&mut self) {
        let to = self.place_for_result();
        let (number, arguments) = match self.below(8) {
            0..4 => (GETRANDOM, [self.page(), self.below(24) * PAGE / 2, self.of(&[0, 1, 2, 4]), 0]),
            4 => (UNAME, [to, 0, 0, 0]),
            5 => (GETCPU, [to, self.place_for_result(), 0, 0]),
            6 => (self.of(&[CLOCK_GETTIME, CLOCK_GETRES]), [self.clock(), to, 0, 0]),
            _ => (self.of(&[GETRLIMIT, SETRLIMIT]), [self.below(17), to, 0, 0]),
        };
        raw(number, &arguments);
    }

    /// execve with lists that are empty, long, of long strings, or that lead nowhere.
    fn execute(&mut self) {
        let count = self.of(&[0, 1, 1, 2, 511, 512, 4097, 60_000]) as usize;
        let length = if count < 3 { self.of(&[0, 1, 4095, 4096, 131_000, 131_071, 131_072]) as usize } else { 3 };
        let path = self.path(8);
        let broken = (self.below(4) == 0).then(|| (self.below(count as u64 + 1) as usize, self.pointer()));
        let (null, environment) = (self.below(8) == 0, self.below(2) == 0);
        let Ok(list) = memory::map(((count as u64 + 2) * 8 + length as u64 + 1).next_multiple_of(PAGE), RW) else {
            return;
        };
        let string = list + (count as u64 + 2) * 8;
        // SAFETY: fresh memory with room for the list, its null pointer and the string, which ends with a zero.
        unsafe {
            core::ptr::write_bytes(string as *mut u8, b'x', length);
            (0..count).for_each(|index| (list as *mut u64).add(index).write(string));
            if let Some((index, pointer)) = broken {
                (list as *mut u64).add(index).write(pointer);
            }
        }
        let list = if null { 0 } else { list };
        raw(EXECVE, &[path, list, if environment { list } else { 0 }]);
    }

    /// As [`Self::execute`], in a copy of the process, which is waited for.
    fn execute_apart(&mut self) {
        let (seed, pages) = (self.next(), self.pages);
        let child = process::try_spawn(|| {
            Random { numbers: random::Random(seed), pages }.execute();
            0
        });
        let _ = child.map(|child| process::wait4(child as i32, 0));
    }

    /// A copy of the process that makes calls until it is killed, at any of them.
    fn copy_and_kill(&mut self) {
        let (seed, pages) = (self.next(), self.pages);
        let child = process::try_spawn(|| {
            let mut random = Random { numbers: random::Random(seed), pages };
            match random.below(4) {
                0 => (0..8).for_each(|_| random.execute()),
                1 => (0..32).for_each(|_| random.memory()),
                _ => (0..32).for_each(|_| random.call_once()),
            }
            0
        });
        let Ok(child) = child else { return };
        if self.below(2) == 0 {
            let most = self.of(&[500_000, 5_000_000]);
            let _ = time::sleep(self.below(most));
        }
        end(child);
    }

    /// Any flags; those that make a thread, and a process on the same memory, more often.
    fn clone_with(&mut self) {
        const THREAD: u64 = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
        let base = self.of(&[0, THREAD, THREAD, CLONE_VM, CLONE_VM | CLONE_VFORK]);
        let odd = 1 << self.below(32) | 1 << self.below(32);
        let flags = base ^ if self.below(2) == 0 { odd } else { 0 };
        if flags & CLONE_VM == 0 {
            // With memory of its own, and it ends at once.
            if raw(CLONE, &[flags, 0, self.pointer(), self.pointer(), self.pointer()]) == 0 {
                process::exit_group(0);
            }
            return;
        }
        let Ok(stack) = memory::map(4 * PAGE, RW) else { return };
        // SAFETY: fresh memory, the child's alone.
        let _ = unsafe { process::clone_onto(flags, stack + 4 * PAGE, leave) };
    }

    /// A limit that lasts for a few calls, as the next one is soon set.
    fn limit(&mut self) {
        let soft = self.of(&[0, PAGE, 1 << 20, 1 << 26, RLIM_INFINITY, RLIM_INFINITY]);
        let hard = match self.below(64) {
            0 => soft,
            1..4 => soft.wrapping_sub(1),
            _ => RLIM_INFINITY,
        };
        let new = RLimit { soft, hard };
        let resource = match self.below(8) {
            0 => self.below(17),
            _ => self.of(&[RLIMIT_AS, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_NPROC]) as u64,
        };
        let process = self.of(&[0, 0, 0, u64::from(process::id()), 1 << 21]);
        let (new, old) = (if self.below(8) == 0 { 0 } else { &raw const new as u64 }, self.place_for_result());
        raw(PRLIMIT64, &[process, resource, new, old]);
    }

    fn some_signal(&mut self) -> u32 {
        if self.below(32) == 0 { self.below(66) as u32 } else { self.of(&HANDLED) }
    }

    fn act(&mut self) {
        let flags = self.of(&[0, SA_ONSTACK, SA_NODEFER, SA_RESETHAND, SA_RESTART, SA_ONSTACK | SA_NODEFER]);
        let (number, mask) = (self.some_signal(), self.number());
        // SAFETY: as for each call.
        let _ = unsafe {
            match self.below(32) {
                0 => {
                    let handler = self.of(&[SIG_DFL, SIG_IGN, self.pages]);
                    let action = SigAction { handler, flags: self.number(), restorer: self.pointer(), mask };
                    signal::set_action(number, &action)
                }
                _ => signal::handle(number, mutate, flags, mask),
            }
        };
    }

    fn alternative_stack(&mut self) {
        let size = self.of(&[0, MINSIGSTKSZ - 1, MINSIGSTKSZ, 4 * PAGE, 16 * PAGE, u64::MAX]);
        let flags = self.of(&[0, 0, SS_DISABLE, SS_ONSTACK, i32::MIN]);
        let stack = SigStack { base: self.page() + self.of(&[0, 0, 1, 8]), flags, padding: 0, size };
        // SAFETY: as for each call.
        let _ = unsafe { signal::set_stack(&stack) };
    }

    /// Also what it was, and which signals wait.
    fn block(&mut self) {
        let (set, old) = (self.number(), self.place_for_result());
        let new = if self.below(4) == 0 { 0 } else { &raw const set as u64 };
        let (number, arguments) = match self.below(8) {
            0 => (RT_SIGPENDING, [old, 8, 0, 0, 0, 0]),
            1 => (RT_SIGACTION, [self.below(66), 0, old, 8, 0, 0]),
            2 => (SIGALTSTACK, [0, old, 0, 0, 0, 0]),
            _ => (RT_SIGPROCMASK, [self.below(4), new, old, 8, 0, 0]),
        };
        raw(number, &arguments);
    }

    /// To this process alone: as one, or to a thread.
    fn signal(&mut self) {
        let (number, own) = (self.some_signal(), process::id());
        let thread = if self.below(2) == 0 { process::thread_id() } else { own + self.below(THREADS as u64) as u32 };
        // All processes ignore these two.
        let ignored = self.of(&[0, SIGURG]);
        let _ = match self.below(16) {
            0 => process::kill(self.of(&[0, -1, i32::MIN]), ignored),
            1 => process::kill(-(own as i32), ignored),
            2..8 => process::kill(own as i32, number),
            _ => process::tgkill(own, thread, number),
        };
    }

    /// At addresses of every kind, and with a time-out, but for a few.
    fn futex(&mut self) {
        let operation = self.of(&[FUTEX_WAIT, FUTEX_WAKE, 3, 4, 5, FUTEX_WAIT_BITSET, FUTEX_WAKE_BITSET]);
        let flags = self.of(&[0, FUTEX_PRIVATE_FLAG, FUTEX_CLOCK_REALTIME]);
        let word = match self.below(8) {
            0 => self.pointer(),
            1 => COUNT + PAGE / 2,
            _ => self.pages + self.of(&[0, 0, 4, 2, PAGE - 4, PAGE - 1, PAGE]),
        };
        let value = self.of(&[0, 0, 0, 1, u64::MAX]);
        let limit = Timespec::from_nanoseconds(self.below(200_000));
        let limit = match self.below(512) {
            0 => 0,
            1..8 => self.pointer(),
            _ => &raw const limit as u64,
        };
        let bits = self.of(&[0, 1, u64::MAX]);
        raw(FUTEX, &[word, operation | flags, value, limit, self.page(), bits]);
    }
}
