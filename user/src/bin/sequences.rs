//! Random calls on memory, and their answers: two kernels that answer alike print the same.
//!
//! `sequences SEED COUNT [STEPS]` prints a number for each of COUNT sequences, which follows from all its answers, and
//! from the protection, the flags and the contents of its pages at the end; `sequences SEED COUNT STEPS 1` the answers, a
//! line each. Bits of STEPS are the calls that are made: a step is drawn from the seed and its place, so it is the same
//! without the others.
//!
//! Each sequence is a process of its own. Its calls concern 24 pages, the heap and two memory files; a userfaultfd
//! serves no fault, each is SIGBUS. A copy of the process makes some of the calls, and its parent waits. Addresses that
//! a kernel chooses are not printed.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::fmt::{self, Arguments};

use granule_user::prelude::*;
use granule_user::print::Output;
use granule_user::tags;

entry!(run);
own!(call, put);

/// Where the calls map memory, and how many pages are there.
const WINDOW: u64 = 0x6000_0000_0000;
const PAGES: u64 = 24;
const END: u64 = WINDOW + PAGES * PAGE;
/// Calls of a sequence.
const STEPS: usize = 40;
/// Steps that a copy makes at most.
const OF_COPY: usize = 8;
/// Calls that map memory before all others.
const MAPPED_FIRST: usize = 4;
/// Pages of the files at most.
const OF_FILE: u64 = 12;

fn run(start: Start) -> u8 {
    let two = start.numbers::<2>().map(|[seed, count]| [seed, count, u64::MAX, 0]);
    let three = start.numbers::<3>().map(|[seed, count, steps]| [seed, count, steps, 0]);
    let Some([seed, count, steps, is_told]) = start.numbers::<4>().or(three).or(two) else { return 2 };
    let kept = shared::<Kept>();
    for seed in (seed..).take(count as usize) {
        kept.digest.store(0, Ordering::Relaxed);
        kept.has_read.store(false, Ordering::Relaxed);
        if is_told != 0 {
            println!("sequence {seed}");
        }
        let status = process::run(|| World::new(seed, steps, is_told != 0, kept).play());
        if is_told == 0 {
            println!("{seed} {:016x} {status}", kept.digest.load(Ordering::Relaxed));
        }
    }
    0
}

/// The memory of a sequence that its copies share with it.
struct Kept {
    /// The number that follows from its lines.
    digest: AtomicU64,
    /// Another's memory was read. Linux gives pages that it reads in this way, and that are shared since a fork, to one
    /// of their processes: from then on another one may have them for itself.
    has_read: AtomicBool,
}

/// A sequence, and the objects that its calls concern.
struct World {
    seed: u64,
    /// The steps that are made.
    steps: u64,
    /// Whether lines are printed.
    is_told: bool,
    kept: &'static Kept,
    files: [File; 2],
    pager: Pager,
    heap: u64,
}

/// The numbers that a step draws.
struct Draw(Random);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0.below(limit as usize) as u64
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.0.below(of.len())]
    }

    /// Whether one of so many.
    fn once_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// Some bits of these.
    fn some(&mut self, bits: u64) -> u64 {
        self.0.next() & bits
    }

    fn page(&mut self) -> u64 {
        WINDOW + self.below(PAGES) * PAGE
    }

    /// Pages of the window; now and then none, or a range that is not of pages.
    fn range(&mut self) -> (u64, u64) {
        let start = self.page();
        let bytes = (1 + self.below(8)).min((END - start) / PAGE) * PAGE;
        match self.below(48) {
            0 => (start, 0),
            1 => (start + 16, bytes),
            2 => (start, bytes - 1),
            _ => (start, bytes),
        }
    }

    /// The number of a small file, and a part of it; now and then not of pages.
    fn part(&mut self) -> (usize, u64, u64) {
        let odd = if self.once_in(8) { 100 } else { 0 };
        (self.below(2) as usize, self.below(OF_FILE) * PAGE, (1 + self.below(5)) * PAGE - odd)
    }
}

/// An answer that is an address: where in the window it is.
struct Place(Result<u64, Errno>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(at) if (WINDOW..END).contains(&at) => write!(f, "page {}", (at - WINDOW) / PAGE),
            Ok(_) => f.write_str("elsewhere"),
            Err(error) => f.write_str(error.name()),
        }
    }
}

/// The words of a line.
struct Digest<'d>(&'d AtomicU64);

impl fmt::Write for Digest<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let before = self.0.load(Ordering::Relaxed);
            self.0.store((before ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// The fault of an access, in a letter.
fn letter(fault: Fault) -> char {
    match (fault.signal, fault.code) {
        (SIGSEGV, SEGV_MAPERR) => 'm',
        (SIGSEGV, SEGV_ACCERR) => 'a',
        (SIGSEGV, _) => 's',
        (SIGBUS, BUS_ADRERR) => 'b',
        _ => '?',
    }
}

const PROTECTIONS: [u64; 9] =
    [PROT_NONE, PROT_READ, RW, RW, RW, PROT_READ | PROT_EXEC, PROT_WRITE, TAGGED, RW | PROT_EXEC];

const ADVICE: [u64; 22] = [
    MADV_NORMAL,
    MADV_RANDOM,
    MADV_SEQUENTIAL,
    MADV_WILLNEED,
    MADV_DONTNEED,
    MADV_DONTNEED,
    MADV_REMOVE,
    MADV_DONTFORK,
    MADV_DOFORK,
    MADV_HUGEPAGE,
    MADV_NOHUGEPAGE,
    MADV_DONTDUMP,
    MADV_WIPEONFORK,
    MADV_KEEPONFORK,
    MADV_COLD,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_DONTNEED_LOCKED,
    MADV_COLLAPSE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    26,
];

impl World {
    fn new(seed: u64, steps: u64, is_told: bool, kept: &'static Kept) -> Self {
        probe::prepare();
        let files = [c"one", c"two"].map(|name| File::memory(name, MFD_ALLOW_SEALING).expect("a file"));
        let heap = call(BRK, [0]).expect("the heap's end").next_multiple_of(PAGE);
        assert_eq!(call(BRK, [heap]), Ok(heap), "a whole page");
        let mut draw = Draw(Random(seed));
        for file in &files {
            file.resize(draw.below(OF_FILE) * PAGE).expect("its size");
        }
        let asynchronous = if draw.once_in(3) { UFFD_FEATURE_WP_ASYNC } else { 0 };
        let pager = Pager::new(UFFD_USER_MODE_ONLY, UFFD_FEATURE_SIGBUS | asynchronous | draw.some(WRITE_PROTECTION));
        Self { seed, steps, is_told, kept, files, pager: pager.expect("a userfaultfd"), heap }
    }

    /// Prints a line, or makes it a part of the sequence's number.
    fn say(&self, line: Arguments<'_>) {
        if self.is_told {
            Output::print(format_args!("{line}\n"));
        } else {
            let _ = fmt::write(&mut Digest(&self.kept.digest), format_args!("{line}\n"));
        }
    }

    fn play(&self) {
        self.steps_of(0, STEPS);
        self.look("at last");
        self.contents();
        self.look("read and written");
    }

    fn steps_of(&self, from: usize, end: usize) {
        let mut step = from;
        while step < end {
            let (at, is_made) = (step, self.steps >> step & 1 != 0);
            step += 1;
            let mut draw = Draw(Random(self.seed.wrapping_mul(0x9e37_79b9).wrapping_add(at as u64) << 8));
            // Something has to be there first.
            let kind = if at < MAPPED_FIRST { 0 } else { draw.below(64) };
            if kind >= 61 {
                let of_copy = 1 + draw.below(OF_COPY as u64) as usize;
                let until = end.min(step + of_copy);
                if is_made {
                    self.copy(at, step, until);
                    step = until;
                }
            } else if is_made {
                self.step(at, kind, &mut draw);
            }
        }
    }

    /// A copy of the process makes the next steps, in memory of its own.
    fn copy(&self, at: usize, from: usize, until: usize) {
        let status = process::run(|| {
            self.steps_of(from, until);
            self.look("in the copy");
            self.contents();
        });
        self.say(format_args!("{at} fork until {until}: {status}"));
    }

    fn step(&self, at: usize, kind: u64, draw: &mut Draw) {
        match kind {
            0..10 => self.map(at, draw),
            10..13 => self.unmap(at, draw),
            13..18 => self.protect(at, draw),
            18..23 => self.remap(at, draw),
            23..30 => self.advise(at, draw),
            30..33 => self.lock(at, draw),
            33 => self.sync(at, draw),
            34..36 => self.heap(at, draw),
            36..46 => self.touch(at, draw),
            46..52 => self.file(at, draw),
            52..54 => self.remote(at, draw),
            54..59 => self.userfault(at, draw),
            59 => self.tag(at, draw),
            _ => self.seal_or_look(at, draw),
        }
    }

    /// Unmaps what a call has mapped at an address that the kernel chose: it is in another place on another kernel.
    fn keep(answer: Result<u64, Errno>, asked: u64, bytes: u64) -> Place {
        match answer {
            Ok(at) if at != asked => {
                assert_eq!(call(MUNMAP, [at, bytes.next_multiple_of(PAGE)]), Ok(0), "what was mapped");
                Place(Ok(0))
            }
            answer => Place(answer),
        }
    }

    fn map(&self, at: usize, draw: &mut Draw) {
        const HOW: [u64; 12] = [
            MAP_FIXED,
            MAP_FIXED,
            MAP_FIXED,
            MAP_FIXED,
            MAP_FIXED | MAP_POPULATE,
            MAP_FIXED | MAP_POPULATE,
            MAP_FIXED_NOREPLACE,
            MAP_FIXED | MAP_LOCKED,
            MAP_FIXED | MAP_NORESERVE,
            MAP_FIXED | MAP_GROWSDOWN,
            MAP_FIXED | MAP_POPULATE | MAP_NONBLOCK,
            0,
        ];
        let ((start, bytes), protection) = (draw.range(), draw.one(&PROTECTIONS));
        let (sharing, how) = (draw.one(&[PRIVATE, PRIVATE, SHARED, MAP_PRIVATE, MAP_SHARED]), draw.one(&HOW));
        let (which, offset, _) = draw.part();
        let is_file = sharing & MAP_ANONYMOUS == 0;
        let (file, offset) = if is_file { (*self.files[which], offset) } else { (u64::MAX, 0) };
        let answer = call(MMAP, [start, bytes, protection, sharing | how, file, offset]);
        let of = if is_file { format_args!("file {which} from {offset:#x}") } else { format_args!("no file") };
        let (answer, flags) = (Self::keep(answer, start, bytes), sharing | how);
        self.say(format_args!("{at} mmap({start:#x}, {bytes:#x}, {protection:#x}, {flags:#x}, {of}): {answer}"));
    }

    fn unmap(&self, at: usize, draw: &mut Draw) {
        let (start, bytes) = draw.range();
        let answer = call(MUNMAP, [start, bytes]);
        self.say(format_args!("{at} munmap({start:#x}, {bytes:#x}): {answer:?}"));
    }

    fn protect(&self, at: usize, draw: &mut Draw) {
        let ((start, bytes), protection) = (draw.range(), draw.one(&PROTECTIONS));
        let answer = call(MPROTECT, [start, bytes, protection]);
        self.say(format_args!("{at} mprotect({start:#x}, {bytes:#x}, {protection:#x}): {answer:?}"));
    }

    fn remap(&self, at: usize, draw: &mut Draw) {
        let (start, bytes) = draw.range();
        let (to, new) = draw.range();
        let flags = draw.one(&[0, 1, 1, 1, 3, 3, 3, 5, 7, 2, 4, 6, 8]);
        let asked = if flags & MREMAP_FIXED == 0 { start } else { to };
        let answer = Self::keep(call(MREMAP, [start, bytes, new, flags, to]), asked, new);
        self.say(format_args!("{at} mremap({start:#x}, {bytes:#x}, {new:#x}, {flags}, {to:#x}): {answer}"));
    }

    fn advise(&self, at: usize, draw: &mut Draw) {
        let ((start, bytes), advice) = (draw.range(), draw.one(&ADVICE));
        let answer = call(MADVISE, [start, bytes, advice]);
        self.say(format_args!("{at} madvise({start:#x}, {bytes:#x}, {advice}): {answer:?}"));
    }

    fn lock(&self, at: usize, draw: &mut Draw) {
        let (start, bytes) = draw.range();
        let (name, answer) = match draw.below(12) {
            0..4 => ("mlock", call(MLOCK, [start, bytes])),
            4..8 => ("munlock", call(MUNLOCK, [start, bytes])),
            8..10 => ("mlock2 on fault", call(MLOCK2, [start, bytes, MLOCK_ONFAULT.into()])),
            10 => ("mlockall on fault", call(MLOCKALL, [MCL_FUTURE as u64 | u64::from(MCL_ONFAULT)])),
            _ => ("munlockall", call(MUNLOCKALL, [])),
        };
        self.say(format_args!("{at} {name}({start:#x}, {bytes:#x}): {answer:?}"));
    }

    fn sync(&self, at: usize, draw: &mut Draw) {
        let ((start, bytes), flags) = (draw.range(), draw.below(9));
        let answer = call(MSYNC, [start, bytes, flags]);
        self.say(format_args!("{at} msync({start:#x}, {bytes:#x}, {flags}): {answer:?}"));
    }

    fn heap(&self, at: usize, draw: &mut Draw) {
        let wanted = draw.below(5) * PAGE + draw.one(&[0, 0, 0, 8]);
        let answer = call(BRK, [self.heap + wanted]).map(|end| end.wrapping_sub(self.heap));
        let access = put(self.heap + draw.below(4) * PAGE, 7).map_err(letter);
        self.say(format_args!("{at} brk(start + {wanted:#x}): {answer:x?}, store {access:?}"));
    }

    fn touch(&self, at: usize, draw: &mut Draw) {
        let (to, value) = (draw.page() + draw.below(PAGE), 1 + draw.below(255) as u8);
        if draw.once_in(3) {
            self.say(format_args!("{at} load {to:#x}: {:?}", probe::read(to).map_err(letter)));
        } else {
            self.say(format_args!("{at} store {value} to {to:#x}: {:?}", put(to, value).map_err(letter)));
        }
    }

    fn file(&self, at: usize, draw: &mut Draw) {
        let (which, offset, bytes) = draw.part();
        let file = &self.files[which];
        match draw.below(16) {
            0..3 => self.say(format_args!("{at} ftruncate({which}, {bytes:#x}): {:?}", file.resize(bytes))),
            3..6 => {
                let mode = draw.one(&[0, 0, 1, 3, 3, 3, 2, 8, 16]);
                let answer = file.allocate(mode, offset, bytes);
                self.say(format_args!("{at} fallocate({which}, {mode}, {offset:#x}, {bytes:#x}): {answer:?}"));
            }
            6..9 => {
                let answer = file.write_at(&[draw.below(256) as u8; 40], offset + bytes - 20);
                self.say(format_args!("{at} pwrite64({which}, {offset:#x} + {bytes:#x}): {answer:?}"));
            }
            9..11 => self.say(format_args!("{at} pread64({which}, {offset:#x}): {:?}", file.byte(offset))),
            11..13 => {
                let whence = draw.one(&[SEEK_DATA, SEEK_HOLE]);
                let answer = file.seek(offset as i64, whence);
                self.say(format_args!("{at} lseek({which}, {offset:#x}, {whence}): {answer:x?}"));
            }
            13 => {
                let mut stat = Stat::default();
                let answer = call(FSTAT, [**file, &raw mut stat as u64]);
                self.say(format_args!("{at} fstat({which}): {answer:?}, {:#x}, {}", stat.st_size, stat.st_blocks));
            }
            14 => self.say(format_args!("{at} F_GET_SEALS({which}): {:?}", file.fcntl(F_GET_SEALS, 0))),
            _ => {
                let seals = if draw.once_in(3) { draw.below(32) as u32 } else { 0 };
                self.say(format_args!("{at} F_ADD_SEALS({which}, {seals}): {:?}", file.fcntl(F_ADD_SEALS, seals)));
            }
        }
    }

    /// Copies to or from the window of this process or of the one that it is a copy of. The bytes at this end are always
    /// there: which end is looked at first is a kernel's own affair.
    fn remote(&self, at: usize, draw: &mut Draw) {
        let ((from, length), value) = (draw.range(), 1 + draw.below(255) as u8);
        let (whose, whose_id) = draw.one(&[("own", process::id()), ("parent's", process::parent_id())]);
        let (name, number) = draw.one(&[("readv", PROCESS_VM_READV), ("writev", PROCESS_VM_WRITEV)]);
        if number == PROCESS_VM_READV {
            self.kept.has_read.store(true, Ordering::Relaxed);
        }
        let mut bytes = [value; 8 * PAGE as usize];
        let pieces = [(bytes.as_mut_ptr() as u64, length), (from, length)].map(|(base, length)| IoVec { base, length });
        let [own, other] = pieces.each_ref().map(|piece| core::ptr::from_ref(piece) as u64);
        let answer = call(number, [whose_id.into(), own, 1, other, 1, 0]);
        let found = core::array::from_fn::<_, 8, _>(|page| bytes[page * PAGE as usize]);
        self.say(format_args!("{at} process_vm_{name}({whose}, {from:#x}, {length:#x}): {answer:?} {found:?}"));
    }

    fn userfault(&self, at: usize, draw: &mut Draw) {
        let ((start, bytes), (from, _)) = (draw.range(), draw.range());
        let (pager, kind) = (self.pager, draw.below(16));
        let (name, mode) = match kind {
            0..5 => ("register", draw.one(&[1, 2, 2, 3, 3, 0, 8])),
            5 => ("unregister", 0),
            6..9 => ("copy", draw.one(&[0, 0, 1, 2, 4])),
            9 => ("zero", draw.one(&[0, 0, 1, 2])),
            10 => ("poison", draw.one(&[0, 0, 1, 2])),
            11..15 => ("write-protect", draw.one(&[1, 1, 1, 0, 0, 2, 3])),
            _ => ("wake", 0),
        };
        let line = format_args!("{at} {name}({start:#x}, {bytes:#x}, {mode})");
        match kind {
            0..5 => self.say(format_args!("{line}: {:x?}", pager.register(start, bytes, mode))),
            5 => self.say(format_args!("{line}: {:?}", pager.unregister(start, bytes))),
            6..9 => self.say(format_args!("{line} from {from:#x}: {:?}", pager.copy(start, from, bytes, mode))),
            9 => self.say(format_args!("{line}: {:?}", pager.zero(start, bytes, mode))),
            10 => self.say(format_args!("{line}: {:?}", pager.poison(start, bytes, mode))),
            11..15 => self.say(format_args!("{line}: {:?}", pager.write_protect(start, bytes, mode))),
            _ => self.say(format_args!("{line}: {:?}", pager.wake(start, bytes))),
        }
    }

    fn tag(&self, at: usize, draw: &mut Draw) {
        let (to, number) = (draw.page(), draw.below(16));
        if draw.once_in(2) {
            tags::stg(to | tags::tag(number));
        }
        let found = tags::ldg(to) & tags::TAG_BITS;
        self.say(format_args!("{at} tag {number} to {to:#x}: {found:x}, {:?}", probe::outcome().map_err(letter)));
    }

    fn seal_or_look(&self, at: usize, draw: &mut Draw) {
        if draw.once_in(4) {
            let (start, bytes) = draw.range();
            self.say(format_args!("{at} mseal({start:#x}, {bytes:#x}): {:?}", call(MSEAL, [start, bytes, 0])));
        } else {
            self.look("on the way");
        }
    }

    /// Each page: the flags of its entry, whether it is this process's alone, whether it is mapped, and locked. Whether a
    /// page that is not is there depends on how a kernel serves faults and forks.
    fn look(&self, when: &str) {
        let pagemap = proc::open(process::id(), "pagemap").expect("pagemap");
        let mut words = [0_u64; PAGES as usize];
        let bytes = size_of_val(&words) as u64;
        let answer = call(PREAD64, [*pagemap, words.as_mut_ptr() as u64, bytes, WINDOW / PAGE * 8]);
        assert_eq!(answer, Ok(bytes), "the words of the window");
        let has_read = self.kept.has_read.load(Ordering::Relaxed);
        let shown = words.map(|word| {
            let is_own =
                !has_read && word & (PM_PRESENT | PM_FILE | PM_MMAP_EXCLUSIVE) == PM_PRESENT | PM_MMAP_EXCLUSIVE;
            let flags = word & (PM_SWAP | PM_GUARD_REGION | PM_UFFD_WP);
            (if is_own { flags | PM_PRESENT } else { flags }) >> 56
        });
        self.say(format_args!("{when}: entries {shown:x?}"));
        let mapped = core::array::from_fn::<_, { PAGES as usize }, _>(|page| {
            let (at, mut byte) = (WINDOW + page as u64 * PAGE, [0]);
            (mincore(at, &mut byte).is_ok(), locks::<1>(at)[0])
        });
        self.say(format_args!(
            "{when}: mapped and locked {:?}",
            mapped.map(|(is_mapped, is_locked)| { u8::from(is_mapped) + u8::from(is_locked) })
        ));
    }

    /// Each page is read, and then written: what may be done, and what is found.
    fn contents(&self) {
        let each = |done: fn(u64) -> Result<u8, Fault>| {
            core::array::from_fn::<_, { PAGES as usize }, _>(|page| done(WINDOW + page as u64 * PAGE).map_err(letter))
        };
        self.say(format_args!("loads {:?}", each(probe::read)));
        self.say(format_args!("stores {:?}", each(|at| put(at, 99).map(|()| 99))));
        self.say(format_args!("loads {:?}", each(|at| probe::read(at + 8))));
    }
}
