//! Forks, stores, zaps and changes of protection at once on all CPUs, with every byte's value known: `stress SEED
//! ROUNDS [THREADS]`, of each process.
//!
//! Each worker is a process with threads. Each of its pages belongs to one thread, which records what it wrote there;
//! forks copy them while the others write, and each copy is compared, changed and given up without the original
//! noticing.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule_user::memory::{madvise, mmap, mprotect, munmap};
use granule_user::prelude::*;
use granule_user::random::Random;
use granule_user::thread::all_at_once;
use granule_user::{memory, println, process};

entry!(run);

/// Processes at once.
const WORKERS: usize = 3;
/// The most threads in each.
const THREADS: usize = 16;
/// Pages of one thread.
const PAGES: usize = 24;
/// Their bytes.
const SIZE: u64 = PAGES as u64 * PAGE;

/// The arguments of a worker's threads.
struct Task {
    seed: u64,
    rounds: u64,
    /// A page that all processes share: stores to it are never lost.
    total: u64,
}

static SEED: AtomicU64 = AtomicU64::new(0);
static ROUNDS: AtomicU64 = AtomicU64::new(0);
static TOTAL: AtomicU64 = AtomicU64::new(0);
/// The pages of the process's threads, one behind the other: none is mapped while the threads run, so that a gap in
/// them belongs to no other thread.
static BASE: AtomicU64 = AtomicU64::new(0);

fn run(start: Start) -> u8 {
    let mut numbers = start.arguments().skip(1).map(|word| word.parse::<u64>());
    let (Some(Ok(seed)), Some(Ok(rounds))) = (numbers.next(), numbers.next()) else { return 2 };
    let threads = numbers.next().and_then(Result::ok).map_or(2, |threads| threads as usize).clamp(1, THREADS);
    // SAFETY: not at a fixed address.
    let total = unsafe { mmap(0, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS) }.expect("a page for all");
    ROUNDS.store(rounds, Ordering::Relaxed);
    TOTAL.store(total, Ordering::Relaxed);
    let workers: [u32; WORKERS] = core::array::from_fn(|index| {
        process::spawn(|| {
            SEED.store(seed.wrapping_add(index as u64 * 0x1_0001), Ordering::Relaxed);
            work(threads)
        })
    });
    for worker in workers {
        assert_eq!(process::wait(worker), exited(0));
    }
    let counted = counter(total).load(Ordering::Relaxed);
    assert_eq!(u64::from(counted), (WORKERS * threads) as u64 * 2 * rounds, "rounds, of originals and of copies");
    println!("stress: {counted} rounds, ok");
    0
}

fn counter(total: u64) -> &'static AtomicU32 {
    // SAFETY: mapped in every process until its end, and used as this alone.
    unsafe { &*(total as *const AtomicU32) }
}

/// One process: its threads, to their end.
fn work(threads: usize) -> u8 {
    BASE.store(memory::map(threads as u64 * SIZE, RW).expect("pages"), Ordering::Relaxed);
    all_at_once(threads, thread);
    0
}

/// A thread's pages, and what it wrote to each: 0 for a page that is zeros.
#[derive(Clone, Copy)]
struct Pages {
    start: u64,
    written: [u64; PAGES],
}

impl Pages {
    fn address(&self, page: usize) -> u64 {
        self.start + page as u64 * PAGE
    }

    /// Words of a page, the two ends among them: what is stored there follows from the page's number.
    fn words(&self, page: usize) -> impl Iterator<Item = (*mut u64, u64)> {
        let (address, number) = (self.address(page), self.written[page]);
        [0, 8, 1024, 2040, 4088].into_iter().map(move |offset| {
            (
                (address + offset) as *mut u64,
                if number == 0 { 0 } else { number.rotate_left(offset as u32) ^ (address + offset) },
            )
        })
    }

    fn write(&mut self, page: usize, number: u64) {
        self.written[page] = number;
        // SAFETY: the thread's own pages, writable.
        self.words(page).for_each(|(word, value)| unsafe { word.write_volatile(value) });
    }

    fn check(&self, who: &str) {
        for page in 0..PAGES {
            for (word, value) in self.words(page) {
                // SAFETY: as above.
                let found = unsafe { word.read_volatile() };
                assert_eq!(found, value, "{who}: page {page} at {word:?}");
            }
        }
    }

    /// Makes pages zeros again, one way or another.
    fn zap(&mut self, random: &mut Random) {
        let first = random.below(PAGES);
        let count = 1 + random.below(PAGES - first);
        let (start, bytes) = (self.address(first), count as u64 * PAGE);
        // SAFETY: the thread's own pages, to which there are no references.
        unsafe {
            match random.below(3) {
                0 => madvise(start, bytes, MADV_DONTNEED).expect("pages to give up"),
                1 => {
                    munmap(start, bytes).expect("pages to unmap");
                    self.map_again(start, bytes);
                }
                _ => self.map_again(start, bytes),
            }
        }
        self.written[first..first + count].fill(0);
    }

    /// # Safety
    /// The thread's own pages.
    unsafe fn map_again(&self, start: u64, bytes: u64) {
        // SAFETY: the caller's promise.
        let at = unsafe { mmap(start, bytes, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED) };
        assert_eq!(at, Ok(start));
    }

    /// Takes the right to write away and gives it back.
    fn protect(&self, random: &mut Random) {
        let first = random.below(PAGES);
        let bytes = (1 + random.below(PAGES - first)) as u64 * PAGE;
        // SAFETY: the thread's own pages, which it reads alone while they are protected.
        unsafe { mprotect(self.address(first), bytes, PROT_READ) }.expect("pages to protect");
        self.check("read-only");
        // SAFETY: as above.
        unsafe { mprotect(self.address(first), bytes, RW) }.expect("pages to free");
    }
}

fn thread(index: usize) {
    let mut random = Random(SEED.load(Ordering::Relaxed) ^ (index as u64) << 32);
    let task =
        Task { seed: random.next(), rounds: ROUNDS.load(Ordering::Relaxed), total: TOTAL.load(Ordering::Relaxed) };
    let mut pages = Pages { start: BASE.load(Ordering::Relaxed) + index as u64 * SIZE, written: [0; PAGES] };
    for round in 0..task.rounds {
        (0..8).for_each(|_| pages.write(random.below(PAGES), random.next() | 1));
        let child = process::spawn(|| copy(pages, Random(task.seed ^ round), task.total));
        // While the child compares its copy:
        (0..8).for_each(|_| pages.write(random.below(PAGES), random.next() | 1));
        match random.below(3) {
            0 => pages.zap(&mut random),
            1 => pages.protect(&mut random),
            _ => {}
        }
        pages.check("the original");
        assert_eq!(process::wait(child), exited(0), "seed {}, round {round}", task.seed);
        counter(task.total).fetch_add(1, Ordering::Relaxed);
    }
    pages.check("the end");
}

/// Stores to a child's copy of the pages, and checks them.
fn copy(mut pages: Pages, mut random: Random, total: u64) -> u8 {
    pages.check("the copy");
    (0..6).for_each(|_| pages.write(random.below(PAGES), random.next() | 1));
    pages.zap(&mut random);
    (0..6).for_each(|_| pages.write(random.below(PAGES), random.next() | 1));
    pages.check("the copy, changed");
    counter(total).fetch_add(1, Ordering::Relaxed);
    0
}
