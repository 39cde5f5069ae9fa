//! Everything at once that changes translations behind a process's back, with the contents of every page known: `storm
//! NUMBER SEED ROUNDS`. It makes at least so many rounds, and then more until SIGTERM comes.
//!
//! The process stores, forks, moves, protects and gives up pages and blocks of its own, and punches holes in a file of
//! memory, which it cuts off and maps twice. Others reclaim pages of its program file, migrate its pages, and copy from
//! [`SOURCE`] to [`TARGET`] by a device: what is in both carries the process's NUMBER, that of a copy of the process
//! another one. So it notices what a device has from elsewhere.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::known::Known;
use granule_user::prelude::*;

entry!(run);
own!(call, file);

const OWN: u64 = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
/// Pages of its own, at the first or the second address in turn.
const SMALL: [u64; 2] = [0x7000_0000_0000, 0x7000_1000_0000];
/// A file of memory, mapped twice.
const SHARED: [u64; 2] = [0x7000_2000_0000, 0x7000_2100_0000];
/// Two blocks of 2 MiB.
const HUGE: u64 = 0x7000_4000_0000;
/// The pages that a device reads, and those that it writes.
const SOURCE: u64 = 0x7000_6000_0000;
const TARGET: u64 = 0x7000_6001_0000;
/// Its program file, whose pages can be had again.
const FILE: u64 = 0x7000_8000_0000;

/// Pages of one, and of the blocks.
const FEW: usize = 48;
const MANY: usize = 1024;
/// Pages that a device reads, and as many that it writes.
const COPIED: u64 = 4;
/// Pages of the program file that are looked at.
const FILE_PAGES: u64 = 6;
/// In the number of a process: it is a copy.
const IS_COPY: u32 = 1 << 7;
/// Bits of a word of SOURCE below the number.
const COUNT_BITS: u32 = 24;

fn run(start: Start) -> u8 {
    let Some([number @ 1..128, seed, rounds]) = start.numbers() else { return 2 };
    let mut storm = Storm::new(number as u32, seed, start.path());
    signal::mask(SIG_BLOCK, signal::set_of(SIGTERM)).expect("to block SIGTERM");
    let mut done = 0;
    while done < rounds || !signal::is_pending(SIGTERM).expect("pending signals") {
        storm.round();
        done += 1;
    }
    storm.check(true);
    println!("storm {number}: {done} rounds, {} pages that a device wrote", storm.arrived);
    0
}

/// Maps memory where the process has its own.
fn map(at: u64, bytes: u64, flags: u64, file: u64) {
    assert_eq!(call(MMAP, [at, bytes, RW, flags, file, 0]), Ok(at));
}

/// The state of the process.
struct Storm {
    number: u32,
    random: Random,
    small: Known<FEW>,
    shared: Known<FEW>,
    huge: Known<MANY>,
    memory: u64,
    program: u64,
    /// The count that was last stored for the device to read.
    count: u32,
    /// Pages of the target that had something in them.
    arrived: u64,
}

impl Storm {
    fn new(number: u32, seed: u64, path: &CStr) -> Self {
        let memory = file(FEW as u64);
        let program = call(OPENAT, [HERE, path.as_ptr() as u64, O_RDONLY.into()]).expect("the program");
        let bytes = FEW as u64 * PAGE;
        map(SMALL[0], bytes, OWN, u64::MAX);
        SHARED.into_iter().for_each(|at| map(at, bytes, MAP_SHARED | MAP_FIXED, memory));
        [SOURCE, TARGET].into_iter().for_each(|at| map(at, COPIED * PAGE, OWN, u64::MAX));
        let flags = MAP_SHARED | MAP_FIXED;
        assert_eq!(call(MMAP, [FILE, FILE_PAGES * PAGE, PROT_READ, flags, program, 0]), Ok(FILE));
        let mut storm = Self {
            number,
            random: Random(seed ^ u64::from(number) << 48),
            small: Known::new(SMALL[0]),
            shared: Known::new(SHARED[0]),
            huge: Known::new(HUGE),
            memory,
            program,
            count: 0,
            arrived: 0,
        };
        storm.map_blocks();
        storm
    }

    fn round(&mut self) {
        if self.random.below(8) == 0 {
            self.map_blocks();
        }
        self.fill_source();
        // A device that has met a page that a copy has too needs 100 ms for its next try.
        let forks = self.random.below(24) == 0;
        let child = forks.then(|| process::spawn(|| self.copy()));
        self.store();
        for _ in 0..4 {
            self.change();
        }
        let whole = self.random.below(4) == 0;
        self.check(whole);
        if let Some(child) = child {
            assert_eq!(process::wait(child), exited(0), "storm {}", self.number);
        }
    }

    fn store(&mut self) {
        let random = &mut self.random;
        self.small.store_some(random, 12);
        self.huge.store_some(random, 40);
        self.shared.start = SHARED[random.below(2)];
        self.shared.store_some(random, 12);
    }

    /// One of the changes.
    fn change(&mut self) {
        let random = &mut self.random;
        match random.below(10) {
            0 => self.small.zap(random),
            1 => self.huge.zap(random),
            2 => self.small.protect(random),
            3 => self.huge.protect(random),
            4 => self.move_small(),
            5 => self.punch_hole(),
            6 => self.cut_off(),
            7 => self.change_what_is_copied(),
            8 => self.fill_source(),
            _ => self.check_file(),
        }
    }

    /// Maps the blocks anew: there are no tables, and the first store brings a block where there is one.
    fn map_blocks(&mut self) {
        let bytes = MANY as u64 * PAGE;
        map(HUGE, bytes, OWN, u64::MAX);
        // SAFETY: advice that leaves the contents.
        unsafe { madvise(HUGE, bytes, MADV_HUGEPAGE) }.expect("advice");
        self.huge.stored.fill(0);
    }

    fn move_small(&mut self) {
        let to = if self.small.start == SMALL[0] { SMALL[1] } else { SMALL[0] };
        let bytes = FEW as u64 * PAGE;
        let moved = call(MREMAP, [self.small.start, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to]);
        assert_eq!(moved, Ok(to));
        self.small.start = to;
    }

    /// Pages of the file become zeros, in both mappings.
    fn punch_hole(&mut self) {
        let (first, count) = Known::<FEW>::some(&mut self.random);
        let (offset, bytes) = (first as u64 * PAGE, count as u64 * PAGE);
        if self.random.below(2) == 0 {
            assert_eq!(call(FALLOCATE, [self.memory, PUNCH_HOLE.into(), offset, bytes]), Ok(0));
        } else {
            // SAFETY: the process's own file, without references to its pages.
            unsafe { madvise(SHARED[1] + offset, bytes, MADV_REMOVE) }.expect("pages to remove");
        }
        self.shared.stored[first..first + count].fill(0);
    }

    /// Truncates the file of memory after a page, and makes it longer again.
    fn cut_off(&mut self) {
        let first = self.random.below(FEW);
        assert_eq!(call(FTRUNCATE, [self.memory, first as u64 * PAGE]), Ok(0));
        assert_eq!(call(FTRUNCATE, [self.memory, FEW as u64 * PAGE]), Ok(0));
        self.shared.stored[first..].fill(0);
    }

    /// Takes pages from under the device.
    fn change_what_is_copied(&mut self) {
        let at = [SOURCE, TARGET][self.random.below(2)] + self.random.next() % COPIED * PAGE;
        // SAFETY: the process's own pages; both are filled or looked at as a whole.
        unsafe {
            match self.random.below(3) {
                0 => madvise(at, PAGE, MADV_DONTNEED).expect("a page to give up"),
                1 => {
                    munmap(at, PAGE).expect("a page to unmap");
                    map(at, PAGE, OWN, u64::MAX);
                }
                _ => {
                    mprotect(at, PAGE, PROT_READ).expect("a page to protect");
                    process::sched_yield();
                    mprotect(at, PAGE, RW).expect("a page to free");
                }
            }
        }
    }

    /// Stores the number and a count in each word that the device reads.
    fn fill_source(&mut self) {
        self.count += 1;
        for word in (SOURCE..SOURCE + COPIED * PAGE).step_by(4) {
            // SAFETY: the process's own page.
            unsafe { (word as *mut u32).write_volatile(self.number << COUNT_BITS | self.count) };
        }
    }

    /// Checks that each word of the target is zero, or a word that was in the source of this process.
    ///
    /// Words of four bytes: QEMU translates each of them anew where a transfer meets a page that is not there, so what
    /// arrives begins at any of them if the page comes concurrently.
    fn check_target(&mut self) {
        for page in (TARGET..TARGET + COPIED * PAGE).step_by(PAGE as usize) {
            let mut arrived = false;
            for word in (page..page + PAGE).step_by(4) {
                // SAFETY: the process's own page.
                let found = unsafe { (word as *const u32).read_volatile() };
                let count = found & ((1 << COUNT_BITS) - 1);
                let is_own = found >> COUNT_BITS == self.number && (1..=self.count).contains(&count);
                let (number, count) = (self.number, self.count);
                assert!(
                    found == 0 || is_own,
                    "storm {number}: {found:#x} at {word:#x}, {count:#x}, {:x?}",
                    around(word)
                );
                arrived |= found != 0;
            }
            self.arrived += u64::from(arrived);
        }
    }

    /// Checks that the mapped pages of the program file equal what a read of it stores.
    fn check_file(&self) {
        for page in 0..FILE_PAGES {
            let mut wanted = [0_u64; PAGE as usize / 8];
            // Zeros follow the end of the file.
            call(PREAD64, [self.program, &raw mut wanted as u64, PAGE, page * PAGE]).expect("a file of so many pages");
            let at = (FILE + page * PAGE) as *const u64;
            // SAFETY: the mapping of the file, which nothing writes.
            let is_same =
                wanted.iter().enumerate().all(|(index, word)| unsafe { at.add(index).read_volatile() } == *word);
            assert!(is_same, "page {page} of the file");
        }
    }

    /// Compares what there is; the blocks too where `whole`.
    fn check(&mut self, whole: bool) {
        self.small.check_all();
        for at in SHARED {
            self.shared.start = at;
            self.shared.check_all();
        }
        if whole {
            self.huge.check_all();
        }
        self.check_target();
    }

    /// Stores to a child's copy: none of them reaches the parent, and no device reaches the copy.
    fn copy(&mut self) -> u8 {
        self.small.check_all();
        self.check_target();
        let before = sum(TARGET);
        self.number |= IS_COPY;
        self.fill_source();
        let random = &mut self.random;
        self.small.store_some(random, 8);
        self.huge.store_some(random, 24);
        self.small.zap(random);
        self.huge.zap(random);
        self.small.store_some(random, 8);
        self.small.check_all();
        self.huge.check_all();
        self.check_file();
        assert_eq!(sum(TARGET), before, "a device has written to a copy");
        0
    }
}

/// The words of TARGET beside one of them and at it, as they are now: whether its neighbours are wrong too tells a wrong
/// page from a wrong word.
fn around(at: u64) -> [u32; 5] {
    [-2, -1, 0, 1, 2].map(|index: i64| {
        let word = at.wrapping_add_signed(index * 4).clamp(TARGET, TARGET + COPIED * PAGE - 4);
        // SAFETY: the process's own page.
        unsafe { (word as *const u32).read_volatile() }
    })
}

/// A sum of the words that a device writes.
fn sum(at: u64) -> u64 {
    (at..at + COPIED * PAGE).step_by(8).fold(0, |sum: u64, word| {
        // SAFETY: the process's own pages.
        sum.rotate_left(7) ^ unsafe { (word as *const u64).read_volatile() }
    })
}
