//! Memory calls and faults by a thread, then a process, on each CPU: `scale CPUS`, or `scale CPUS loose`. QEMU's plugin
//! `tests-qemu/plugin/lines.c` counts which cache lines they move; docs/BENCHMARKS.md describes the rows.
//!
//! In turn: a token goes from CPU to CPU, and the CPU that holds it does one operation, so each comes after one of every
//! other CPU. Loose: all at once. Nothing is printed: what is measured stands between markers.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_protocol::ScaleWindow as Window;
use granule_user::prelude::*;
use granule_user::room::Room;

entry!(run);

/// More than the machine may have.
const MOST_CPUS: usize = 32;
const WARM: u32 = Window::WARM;
const ROUNDS: u32 = Window::ROUNDS;
/// Rounds for big areas: those of the warm-up, and those that are measured.
const BIG_WARM: u32 = 2;
const BIG_ROUNDS: u32 = 2;
const PAGES: u64 = Window::PAGES;
const BIG: u64 = Window::BIG;
/// Linux's; where it is missing threads spread by themselves.
const SCHED_SETAFFINITY: usize = 122;

/// In a line of its own, and in none that is fetched with another one.
#[repr(align(128))]
struct Own<T>(T);

/// State that threads and processes share; zeroes at first.
#[repr(C)]
struct Common {
    cpus: Own<u32>,
    loose: bool,
    /// Operations so far: modulo `cpus`, the worker whose turn it is.
    turn: Own<AtomicU32>,
    /// How many have arrived at a meeting, of all meetings.
    arrived: Own<AtomicU32>,
    /// The CPU on which each last was, plus one.
    places: [Own<AtomicU32>; MOST_CPUS],
    /// Words for checks.
    words: [Own<[AtomicU32; MOST_CPUS]>; 5],
    own_words: [Own<AtomicU32>; MOST_CPUS],
}

/// Where `Common` is.
static COMMON: AtomicU64 = AtomicU64::new(0);

fn common() -> &'static Common {
    // SAFETY: `run` has mapped it, shared with the processes to come, and never unmaps it; only atomics change.
    unsafe { &*(COMMON.load(Ordering::Relaxed) as *const Common) }
}

fn run(start: Start) -> u8 {
    let mut words = start.arguments().skip(1);
    let cpus = words.next().and_then(|word| word.parse().ok()).filter(|cpus| (1..=MOST_CPUS as u32).contains(cpus));
    let cpus = cpus.expect("scale CPUS [loose]");
    let bytes = size_of::<Common>() as u64;
    // SAFETY: not at a fixed address.
    let place = unsafe { memory::mmap(0, bytes, RW, SHARED) }.expect("memory");
    let loose = words.next() == Some("loose");
    // SAFETY: fresh memory of that size; zeroes are a `Common`, and these two are changed before there are others.
    unsafe {
        let common = place as *mut Common;
        (*common).cpus.0 = cpus;
        (*common).loose = loose;
    }
    COMMON.store(place, Ordering::Relaxed);
    let threads: [Option<Thread>; MOST_CPUS] = core::array::from_fn(|index| {
        (1..cpus as usize).contains(&index).then(|| Thread::spawn(move || Worker::start(index as u32).threads()))
    });
    Worker::start(0).threads();
    threads.into_iter().flatten().for_each(Thread::join);
    if loose {
        return 0;
    }
    let children: [Option<u32>; MOST_CPUS] = core::array::from_fn(|index| {
        let child = || {
            Worker::start(index as u32).processes();
            0
        };
        (1..cpus as usize).contains(&index).then(|| process::spawn(child))
    });
    Worker::start(0).processes();
    children.into_iter().flatten().map(process::wait).fold(0, |worst, status| worst.max((status != 0).into()))
}

/// The worker on one CPU: a thread or a process.
struct Worker {
    me: u32,
    common: &'static Common,
}

impl Worker {
    /// Returns when each worker has a CPU of its own.
    fn start(me: u32) -> Self {
        let worker = Self { me, common: common() };
        let mask = 1_u64 << me;
        // SAFETY: it reads the mask; its failure changes nothing.
        unsafe { sys::raw(SCHED_SETAFFINITY, [0, 8, &raw const mask as u64, 0, 0, 0]) };
        let places = &worker.common.places[..worker.common.cpus.0 as usize];
        loop {
            places[me as usize].0.store(process::cpu() + 1, Ordering::Release);
            let seen = places.iter().map(|place| 1_u64 << place.0.load(Ordering::Acquire));
            // Bit 0 is of those that have not been anywhere.
            if (seen.fold(0, |all, one| all | one) & !1).count_ones() == worker.common.cpus.0 {
                break;
            }
            pause();
        }
        worker.meet();
        worker
    }

    /// Waits for all others.
    fn meet(&self) {
        let (cpus, arrived) = (self.common.cpus.0, &self.common.arrived.0);
        let all = (arrived.fetch_add(1, Ordering::AcqRel) / cpus + 1) * cpus;
        while arrived.load(Ordering::Acquire) < all {
            pause();
        }
    }

    /// Checks that the thread has kept its CPU, and forgets it.
    fn end(&self) {
        let place = &self.common.places[self.me as usize].0;
        assert_eq!(place.load(Ordering::Relaxed), process::cpu() + 1, "a thread has changed its CPU");
        self.meet();
        place.store(0, Ordering::Release);
        self.meet();
    }

    /// Does something when the token is here, and passes it on.
    #[inline(always)]
    fn in_turn<R>(&self, operation: impl FnOnce() -> R) -> R {
        let turn = &self.common.turn.0;
        let mut now = turn.load(Ordering::Acquire);
        while now % self.common.cpus.0 != self.me {
            pause();
            now = turn.load(Ordering::Acquire);
        }
        let result = operation();
        turn.store(now + 1, Ordering::Release);
        result
    }

    /// Measures an operation.
    #[inline(always)]
    fn measure<R>(&self, window: Window, operation: impl FnOnce() -> R) -> R {
        if self.common.loose { marked(window, operation) } else { self.in_turn(|| marked(window, operation)) }
    }

    fn threads(self) {
        self.check();
        let own = Room { start: 0x10_0010_0000 + 0x4020_0000 * u64::from(self.me), pages: PAGES };
        let big = Room { pages: BIG, ..own };
        // The page before differs in protection, so that areas do not become one, and keeps the table there.
        self.in_turn(|| {
            own.before().map(PROT_READ | PROT_EXEC, MAP_POPULATE);
            map_without_huge_pages(big);
        });
        self.faults(own, (WARM, ROUNDS), Window::FaultOwn, Window::DontneedOwn);
        self.faults(big, (BIG_WARM, BIG_ROUNDS), Window::FaultBig, Window::WarmUp);
        self.in_turn(|| Room { start: own.end(), pages: BIG - PAGES }.unmap());
        self.in_turn(|| own.write());
        self.rounds((WARM, ROUNDS), |window| {
            self.measure(window(Window::MprotectOwn), || own.protect(PROT_READ));
            self.measure(window(Window::MprotectOwn), || own.protect(RW));
        });
        self.in_turn(|| own.unmap());
        self.rounds((WARM, ROUNDS), |window| {
            self.measure(window(Window::MmapOwn), || own.map(RW, 0));
            own.each_page().for_each(|page| self.measure(window(Window::TouchOwn), || page.write()));
            self.measure(window(Window::MunmapOwn), || own.unmap());
        });
        if !self.common.loose {
            self.shared_places();
        }
        self.end();
    }

    /// One area of all threads; places that the kernel chooses.
    fn shared_places(&self) {
        let one = Room { start: 0x20_0000_0000, pages: MOST_CPUS as u64 * PAGES };
        self.in_turn(|| {
            if self.me == 0 {
                map_without_huge_pages(one);
            }
        });
        let part = Room { start: one.start + u64::from(self.me) * PAGES * PAGE, pages: PAGES };
        self.faults(part, (WARM, ROUNDS), Window::FaultOneArea, Window::WarmUp);
        self.rounds((WARM, ROUNDS), |window| {
            let map = || memory::map(PAGES * PAGE, RW).expect("memory");
            let anywhere = Room { start: self.measure(window(Window::MmapAny), map), pages: PAGES };
            anywhere.each_page().for_each(|page| self.measure(window(Window::TouchAny), || page.write()));
            self.measure(window(Window::MunmapAny), || anywhere.unmap());
        });
    }

    fn processes(self) {
        let own = Room { start: 0x10_0010_0000, pages: BIG };
        self.in_turn(|| {
            own.before().map(PROT_READ | PROT_EXEC, MAP_POPULATE);
            map_without_huge_pages(own);
        });
        self.faults(own, (BIG_WARM, BIG_ROUNDS), Window::FaultProcess, Window::WarmUp);
        self.end();
    }

    /// Some rounds that do not count, and then those that do: `window` gives the window of each.
    fn rounds(&self, (warm, rounds): (u32, u32), mut round: impl FnMut(&dyn Fn(Window) -> Window)) {
        for _ in 0..warm {
            round(&|_| Window::WarmUp);
        }
        self.meet_in_turn();
        for _ in 0..rounds {
            round(&|window| window);
        }
        self.meet_in_turn();
    }

    /// A meeting after which the first worker is the next whose turn it is.
    fn meet_in_turn(&self) {
        self.in_turn(|| {});
        self.meet();
    }

    /// Touches each page, which faults; gives them up again.
    fn faults(&self, area: Room, rounds: (u32, u32), fault: Window, give_up: Window) {
        self.rounds(rounds, |window| {
            area.each_page().for_each(|page| self.measure(window(fault), || page.write()));
            self.measure(window(give_up), || area.give_up());
        });
    }

    /// Accesses of which is known what they move.
    fn check(&self) {
        let [atomic, exclusive, neighbour, changed, shared] = &self.common.words;
        let own = &self.common.own_words[self.me as usize].0;
        let me = self.me as usize;
        self.rounds((WARM, ROUNDS), |window| {
            let check = |which, access: &dyn Fn()| self.in_turn(|| marked(window(which), access));
            check(Window::CheckAtomic, &|| add(&atomic.0[0]));
            check(Window::CheckExclusive, &|| add_exclusively(&exclusive.0[0]));
            check(Window::CheckNeighbour, &|| neighbour.0[me % 16].store(1, Ordering::Relaxed));
            check(Window::CheckLoadAndStore, &|| change(&changed.0[0]));
            check(Window::CheckOwn, &|| change(own));
            check(Window::CheckShared, &|| _ = shared.0[0].load(Ordering::Relaxed));
        });
    }
}

fn map_without_huge_pages(room: Room) {
    room.map(RW, 0);
    // SAFETY: it changes no contents.
    let _ = unsafe { madvise(room.start, room.bytes(), MADV_NOHUGEPAGE) };
}

/// The operation, between the markers.
#[inline(always)]
fn marked<R>(window: Window, operation: impl FnOnce() -> R) -> R {
    // SAFETY: does nothing. No `nomem`, so the compiler moves no access across it.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!("hint #96", options(nostack))
    };
    let result = operation();
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!("hint #97", in("x0") window as u64, options(nostack))
    };
    #[cfg(not(target_arch = "aarch64"))]
    let _ = window;
    result
}

/// Lets another CPU of the emulator go on.
#[inline(always)]
fn pause() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint.
    unsafe {
        core::arch::asm!("yield", options(nomem, nostack, preserves_flags))
    };
}

/// Adds by one instruction.
#[inline(always)]
fn add(word: &AtomicU32) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: adds 1 to a word that is there; every CPU of the machines that this is for has FEAT_LSE.
    unsafe {
        core::arch::asm!(".arch_extension lse", "ldadd {0:w}, {0:w}, [{1}]", inout(reg) 1_u32 => _, in(reg) word.as_ptr(),
            options(nostack));
    }
    #[cfg(not(target_arch = "aarch64"))]
    word.fetch_add(1, Ordering::Relaxed);
}

/// Adds by an exclusive load and store. Nothing but an interrupt takes the monitor away: the checks go in turn.
#[inline(always)]
fn add_exclusively(word: &AtomicU32) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: adds 1 to a word that is there.
    unsafe {
        core::arch::asm!("2: ldxr {0:w}, [{2}]", "add {0:w}, {0:w}, #1", "stxr {1:w}, {0:w}, [{2}]", "cbnz {1:w}, 2b",
            out(reg) _, out(reg) _, in(reg) word.as_ptr(), options(nostack));
    }
    #[cfg(not(target_arch = "aarch64"))]
    word.fetch_add(1, Ordering::Relaxed);
}

/// Adds by a load and a store.
#[inline(always)]
fn change(word: &AtomicU32) {
    word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}
