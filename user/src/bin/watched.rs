//! Write-protection while everything happens to the pages: `watched SEED STEPS`.
//!
//! Two threads each store to pages of their own, protect them, and give them up. A pager serves the stores that are
//! reported, and a fourth thread discards ranges of all that comes again from its object. Each of the two knows which of its
//! pages are protected: **a store to one of these is reported once, and a store to another one is not reported.** Others
//! migrate the pages concurrently, and reclaim those of the program file. Each makes at least so many steps, and then more
//! until SIGTERM comes.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::ops::Range;

use granule_user::prelude::*;

entry!(run);
own!(call, file);

/// Threads that store.
const WRITERS: usize = 2;
/// Where the pages of the first one are, and how far those of the next are from them.
const BASE: u64 = 0x7000_0000_0000;
const STRIDE: u64 = 0x1_0000_0000;

/// Memory of a writer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// A memory file, shared.
    Shared,
    /// As [`Self::Shared`], by a block of 2 MiB where it is whole.
    Block,
    /// The program file, private.
    File,
    /// Of no object.
    Anonymous,
}

const KINDS: [Kind; 4] = [Kind::Shared, Kind::Block, Kind::File, Kind::Anonymous];
/// Pages of each, and of all.
const PAGES: [usize; 4] = [16, 512, 4, 16];
const ALL: usize = 548;

impl Kind {
    /// Its first page, of all those of a writer.
    fn first(self) -> usize {
        PAGES.iter().take(self as usize).sum()
    }

    fn pages(self) -> usize {
        PAGES[self as usize]
    }

    /// How far it is from a writer's first page.
    fn offset(self) -> u64 {
        self as u64 * 0x1000_0000
    }

    fn is_of_memory_file(self) -> bool {
        matches!(self, Self::Shared | Self::Block)
    }
}

fn address(writer: usize, kind: Kind, page: usize) -> u64 {
    BASE + writer as u64 * STRIDE + kind.offset() + page as u64 * PAGE
}

/// The numbers of the writer and of its page at `address`.
fn place(address: u64) -> (usize, usize) {
    let (writer, offset) = ((address - BASE) / STRIDE, (address - BASE) % STRIDE);
    let kind = KINDS.into_iter().rfind(|kind| kind.offset() <= offset).expect("an address of a page");
    (writer as usize, kind.first() + ((offset - kind.offset()) / PAGE) as usize)
}

/// Reports of each page.
static REPORTS: [[AtomicU32; ALL]; WRITERS] = [const { [const { AtomicU32::new(0) }; ALL] }; WRITERS];
/// Memory files of each writer.
static FILES: [[AtomicU64; 2]; WRITERS] = [const { [const { AtomicU64::new(0) }; 2] }; WRITERS];
static PAGER: AtomicU32 = AtomicU32::new(0);
static SEED: AtomicU64 = AtomicU64::new(0);
static STEPS: AtomicU64 = AtomicU64::new(0);
static IS_OVER: AtomicBool = AtomicBool::new(false);
/// Steps that were made.
static MADE: AtomicU64 = AtomicU64::new(0);
/// Steps for each discard: the emulator flushes all of its translations for each.
const STEPS_PER_DISCARD: u64 = 8;

fn pager() -> Pager {
    Pager(PAGER.load(Ordering::Relaxed))
}

fn run(start: Start) -> u8 {
    let Some([seed, steps]) = start.numbers() else { return 2 };
    SEED.store(seed, Ordering::Relaxed);
    STEPS.store(steps, Ordering::Relaxed);
    signal::mask(SIG_BLOCK, signal::set_of(SIGTERM)).expect("to block SIGTERM");
    PAGER.store(Pager::new(0, WRITE_PROTECTION).expect("a userfaultfd").0, Ordering::Relaxed);
    let path = start.path().as_ptr() as u64;
    (0..WRITERS).for_each(|writer| map(writer, path));
    let _pager = Thread::spawn(serve);
    let discarder = Thread::spawn(discard);
    let threads: [Thread; WRITERS] = core::array::from_fn(|writer| Thread::spawn(move || write(writer)));
    threads.into_iter().for_each(Thread::join);
    IS_OVER.store(true, Ordering::Relaxed);
    discarder.join();
    let reports: u32 = REPORTS.iter().flatten().map(|count| count.load(Ordering::Relaxed)).sum();
    assert!(reports as u64 > steps / 16, "{reports} stores were reported");
    println!("watched: {} steps, {reports} stores were reported", MADE.load(Ordering::Relaxed));
    0
}

/// Maps and registers the pages of a writer; the program is at `path`.
fn map(writer: usize, path: u64) {
    for kind in KINDS {
        let bytes = kind.pages() as u64 * PAGE;
        let (flags, file) = match kind {
            Kind::Shared | Kind::Block => {
                let file = file(kind.pages() as u64);
                FILES[writer][kind as usize].store(file, Ordering::Relaxed);
                (MAP_SHARED, file)
            }
            Kind::File => (MAP_PRIVATE, call(OPENAT, [HERE, path, O_RDONLY.into()]).expect("the program")),
            Kind::Anonymous => (PRIVATE, u64::MAX),
        };
        let at = address(writer, kind, 0);
        assert_eq!(call(MMAP, [at, bytes, RW, flags | MAP_FIXED, file, 0]), Ok(at));
        if kind == Kind::Block {
            call(MADVISE, [at, bytes, MADV_HUGEPAGE]).expect("mapped");
        }
        pager().register(at, bytes, UFFDIO_REGISTER_MODE_WP).expect("mapped");
    }
}

/// Serves each store that is reported: it is not protected any more. Ends with the process.
fn serve() {
    loop {
        let message = pager().read_one().expect("a message");
        assert_eq!(message.event, UFFD_EVENT_PAGEFAULT);
        assert_eq!(message.words[0], UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE, "{:#x}", message.words[1]);
        let (writer, page) = place(message.words[1]);
        REPORTS[writer][page].fetch_add(1, Ordering::Release);
        pager().unprotect(message.words[1], PAGE).expect("registered");
    }
}

/// Discards ranges of what keeps its contents, or never had any but the file's and what is stored.
fn discard() {
    let mut random = Random(SEED.load(Ordering::Relaxed) ^ 0xd15c);
    let mut discards = 0;
    while !IS_OVER.load(Ordering::Relaxed) {
        if MADE.load(Ordering::Relaxed) < discards * STEPS_PER_DISCARD {
            process::sched_yield();
            continue;
        }
        discards += 1;
        let kind = KINDS[random.below(3)];
        let (first, pages) = match random.below(4) {
            0 => (0, kind.pages()),
            _ => {
                let first = random.below(kind.pages());
                (first, 1 + random.below(kind.pages() - first))
            }
        };
        let at = address(random.below(WRITERS), kind, first);
        call(MADVISE, [at, pages as u64 * PAGE, MADV_DONTNEED]).expect("mapped");
    }
}

fn write(number: usize) {
    let mut writer = Writer::new(number);
    let steps = STEPS.load(Ordering::Relaxed);
    for step in 1.. {
        if step > steps && signal::is_pending(SIGTERM).expect("pending signals") {
            break;
        }
        writer.step(step);
        MADE.fetch_add(1, Ordering::Relaxed);
    }
}

/// A thread that stores, and what it knows of its pages.
struct Writer {
    number: usize,
    random: Random,
    files: [u64; 2],
    is_protected: [bool; ALL],
    reports: [u32; ALL],
    /// The value that was stored last; 0 for zeros.
    stored: [u64; ALL],
}

impl Writer {
    fn new(number: usize) -> Self {
        Self {
            number,
            random: Random(SEED.load(Ordering::Relaxed) + number as u64),
            files: [0, 1].map(|file: usize| FILES[number][file].load(Ordering::Relaxed)),
            is_protected: [false; ALL],
            reports: [0; ALL],
            stored: [0; ALL],
        }
    }

    fn step(&mut self, step: u64) {
        let kind = KINDS[self.random.below(4)];
        let page = self.random.below(kind.pages());
        // Mostly a page, now and then many.
        let most = if self.random.below(32) == 0 { kind.pages() - page } else { 1 };
        let pages = 1 + self.random.below(most);
        let range = kind.first() + page..kind.first() + page + pages;
        let (at, bytes) = (address(self.number, kind, page), pages as u64 * PAGE);
        match self.random.below(16) {
            0..5 => return self.store(kind, page, step),
            5..8 => {
                pager().protect(at, bytes).expect("registered");
                self.is_protected[range.clone()].fill(true);
            }
            8 => {
                pager().unprotect(at, bytes).expect("registered");
                self.is_protected[range.clone()].fill(false);
            }
            9 => self.load(kind, page),
            10 => {
                call(MADVISE, [at, bytes, MADV_DONTNEED]).expect("mapped");
                if kind == Kind::Anonymous {
                    self.lose(range.clone());
                    self.is_protected[range.clone()].fill(false);
                }
            }
            11 if kind.is_of_memory_file() => {
                let file = self.files[kind as usize];
                call(FALLOCATE, [file, PUNCH_HOLE.into(), page as u64 * PAGE, bytes]).expect("a hole");
                self.lose(range.clone());
            }
            12 if kind.is_of_memory_file() => {
                let file = self.files[kind as usize];
                call(FTRUNCATE, [file, page as u64 * PAGE]).expect("shorter");
                call(FTRUNCATE, [file, kind.pages() as u64 * PAGE]).expect("as long as before");
                self.lose(kind.first() + page..kind.first() + kind.pages());
            }
            13 => self.change_access(at, bytes, PROT_NONE),
            14 => self.change_access(at, bytes, PROT_READ),
            15 if self.random.below(64) == 0 => {
                let child = process::spawn(|| 0);
                process::wait(child);
            }
            _ => self.load(kind, page),
        }
        self.compare(range);
    }

    /// The contents are gone: zeros come, protected as before where the memory is a file's.
    fn lose(&mut self, range: Range<usize>) {
        self.stored[range].fill(0);
    }

    fn change_access(&self, at: u64, bytes: u64, access: u64) {
        call(MPROTECT, [at, bytes, access]).expect("mapped");
        process::sched_yield();
        call(MPROTECT, [at, bytes, RW]).expect("mapped");
    }

    fn store(&mut self, kind: Kind, page: usize, value: u64) {
        let at = address(self.number, kind, page) as *mut u64;
        let index = kind.first() + page;
        // SAFETY: mapped writable, and no other thread's.
        unsafe { at.write_volatile(value) };
        self.stored[index] = value;
        self.reports[index] += u32::from(core::mem::take(&mut self.is_protected[index]));
        self.compare(index..index + 1);
    }

    fn load(&self, kind: Kind, page: usize) {
        let at = address(self.number, kind, page) as *const u64;
        // SAFETY: mapped readable, and no other thread stores to it.
        let found = unsafe { at.read_volatile() };
        // A page of the program file that was discarded comes again from there.
        if kind != Kind::File {
            assert_eq!(found, self.stored[kind.first() + page], "{kind:?} {page} of {}", self.number);
        }
    }

    /// The pages of `range` were reported as often as they had to be.
    fn compare(&self, range: Range<usize>) {
        for page in range {
            let found = REPORTS[self.number][page].load(Ordering::Acquire);
            assert_eq!(found, self.reports[page], "reports of page {page} of {}", self.number);
        }
    }
}
