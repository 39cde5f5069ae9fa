//! System calls with hostile arguments: `fuzz SEED CALLS`.
//!
//! A child makes them, since one may end it; then another child continues the count. The results do not matter here, as
//! long as calls return, and as long as this process, which watches, keeps its memory.

#![cfg_attr(target_os = "none", no_std, no_main)]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::sync::atomic::{AtomicU64, Ordering};

use granule_user::abi::memory::{
    MADV_DONTNEED, MAP_ANONYMOUS, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE,
};
use granule_user::abi::number::{
    BRK, CLOCK_GETRES, CLOCK_GETTIME, CLOCK_NANOSLEEP, CLONE, CLOSE, EXECVE, FUTEX, GETCPU, GETRANDOM, IOCTL, KILL,
    MADVISE, MINCORE, MMAP, MPROTECT, MUNMAP, NANOSLEEP, PRCTL, READ, READV, RT_SIGACTION, RT_SIGPENDING,
    RT_SIGPROCMASK, RT_SIGRETURN, SCHED_YIELD, SET_TID_ADDRESS, SIGALTSTACK, TGKILL, TKILL, UNAME, WAIT4, WRITE,
    WRITEV,
};
use granule_user::abi::process::{CLONE_VM, FUTEX_WAKE, WNOHANG};
use granule_user::abi::signal::SIGKILL;
use granule_user::memory::{PAGE, mmap};
use granule_user::{Start, entry, memory, println, process, sys, time};

entry!(run);

const RW: u64 = PROT_READ | PROT_WRITE;
/// Where the count is: far from all that the calls are given, which powers of two are among.
const COUNT: u64 = 0x2345_6789_a000;
/// A child that makes no call for so many looks, a millisecond apart, waits for something that never comes.
const PATIENCE: u32 = 100;
/// The page whose contents the calls must not change, and the contents.
const KEPT: u64 = 0x5a5a_1234_8765_a5a5;

fn run(start: Start) -> u8 {
    let mut numbers = start.arguments().skip(1).map(|word| word.parse::<u64>());
    let (Some(Ok(seed)), Some(Ok(calls))) = (numbers.next(), numbers.next()) else { return 2 };
    // SAFETY: nothing else is there.
    let at = unsafe { mmap(COUNT, PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE) };
    if at != Ok(COUNT) {
        return 3;
    }
    let Ok(own) = memory::map(PAGE, RW) else { return 3 };
    let own = own as *mut u64;
    // SAFETY: fresh memory of this process's own.
    unsafe { (0..PAGE as usize / 8).for_each(|index| own.add(index).write(KEPT.wrapping_mul(index as u64))) };
    let (mut children, mut killed, mut done) = (0_u64, 0, 0);
    while done < calls {
        children += 1;
        let Ok(child) = process::spawn(|| fuzz(seed.wrapping_add(children << 32), calls)) else { return 3 };
        killed += u32::from(watch(child));
        // A child that went on at a random place, with random registers, may have counted anything: then none of its
        // calls count. Each child that comes to the end counts one too many.
        match count().load(Ordering::Relaxed) {
            now if (done..=calls + children).contains(&now) => done = now,
            _ => count().store(done, Ordering::Relaxed),
        }
        // Children's children that were made this process's own.
        while let Ok((1.., _)) = process::wait4(-1, WNOHANG) {}
    }
    // SAFETY: as above.
    let intact = |index| unsafe { own.add(index).read_volatile() } == KEPT.wrapping_mul(index as u64);
    assert!((0..PAGE as usize / 8).all(intact), "a child's calls changed its parent's memory");
    println!("fuzz: {calls} calls with seed {seed} by {children} children, of which {killed} never came back");
    0
}

fn count() -> &'static AtomicU64 {
    // SAFETY: mapped, and used as this alone.
    unsafe { &*(COUNT as *const AtomicU64) }
}

/// Waits for the child's end; kills a child that waits for ever, and returns that.
fn watch(child: u32) -> bool {
    let (mut last, mut quiet, mut killed) = (0, 0, false);
    loop {
        match process::wait4(child as i32, WNOHANG) {
            Ok((0, _)) => {}
            _ => return killed,
        }
        let now = count().load(Ordering::Relaxed);
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        if quiet == PATIENCE {
            killed = true;
            let _ = process::kill(child as i32, SIGKILL);
        }
        let _ = time::sleep(1_000_000);
    }
}

/// Numbers to draw (SplitMix64), and the arguments that are made of them.
struct Random {
    state: u64,
    /// Pages to be handled as the calls like.
    pages: u64,
}

/// How many pages those are.
const PAGES: u64 = 64;

impl Random {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
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

    /// An address to read from or to write to.
    fn pointer(&mut self) -> u64 {
        match self.below(8) {
            0..4 => self.page() + self.below(2 * PAGE),
            4 => self.page() + PAGE - self.below(16),
            _ => self.nowhere(),
        }
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
        // What lies anywhere would pile up.
        MAP_ANONYMOUS | sharing | fixed | odd
    }

    /// A process that does not exist. 0 and -1 are all that do.
    fn process(&mut self) -> u64 {
        self.of(&[1 << 22 | 1, 1 << 31, i32::MAX as u64, u64::MAX << 20])
    }

    /// The next call.
    fn call(&mut self) -> (usize, [u64; 6]) {
        let mut arguments = [(); 6].map(|()| if self.below(2) == 0 { self.number() } else { self.pointer() });
        let mut set = |known: &[u64]| arguments[..known.len()].copy_from_slice(known);
        let number = match self.below(100) {
            0..18 => {
                // Without a fixed address mappings would pile up, so most of these have one.
                set(&[self.place(), self.length(), self.protection(), self.mmap_flags()]);
                MMAP
            }
            18..28 => {
                set(&[self.place(), self.length()]);
                MUNMAP
            }
            28..40 => {
                set(&[self.place(), self.length(), self.protection()]);
                MPROTECT
            }
            40..48 => {
                let advice = if self.below(4) == 0 { self.number() } else { MADV_DONTNEED };
                set(&[self.place(), self.length(), advice]);
                MADVISE
            }
            48..53 => {
                // No mapping is so large that looking at it takes long.
                set(&[self.place(), self.length() % (1 << 34), self.pointer()]);
                MINCORE
            }
            53..56 => {
                // Also what brings pages that later calls find.
                set(&[self.pointer(), self.bytes(), self.number()]);
                GETRANDOM
            }
            56..58 => {
                let end = self.number();
                set(&[if self.below(2) == 0 { 0 } else { end }]);
                BRK
            }
            58..62 => {
                set(&[self.number() | 4, self.pointer(), self.bytes()]);
                self.of(&[WRITE, WRITEV, READ, READV])
            }
            62 => {
                // To the console, but there is never anything there that could be written.
                set(&[1, self.next() | 0xffff << 48, self.number()]);
                self.of(&[WRITE, WRITEV])
            }
            63..66 => {
                // To wait would take time: FUTEX_WAKE is 1, and what is odd waits for nothing.
                set(&[self.pointer(), FUTEX_WAKE | self.number() & 0x180, self.number(), self.nowhere()]);
                FUTEX
            }
            66..68 => {
                // FUTEX_WAIT, on values that are hardly ever there.
                set(&[self.pointer(), self.number() & 0x180, self.number() | 1 << 30, self.pointer()]);
                FUTEX
            }
            68..71 => {
                set(&[self.number() % 70, self.pointer(), self.pointer(), self.of(&[8, 8, 8, 0, 9])]);
                self.of(&[RT_SIGACTION, RT_SIGPROCMASK])
            }
            71..73 => {
                set(&[self.process(), self.process(), self.number()]);
                self.of(&[KILL, TKILL, TGKILL])
            }
            73..75 => {
                // Memory of its own: with this one's it would run on this one's stack.
                set(&[self.number() & !CLONE_VM, 0, self.pointer(), self.pointer(), self.pointer()]);
                CLONE
            }
            75..77 => {
                set(&[self.number(), self.pointer(), WNOHANG | (self.number() % 8), self.pointer()]);
                WAIT4
            }
            77..79 => {
                set(&[self.pointer(), self.pointer(), self.pointer()]);
                EXECVE
            }
            79..81 => {
                set(&[self.nowhere(), self.pointer()]);
                NANOSLEEP
            }
            81 => {
                set(&[self.number(), self.number(), self.nowhere(), self.pointer()]);
                CLOCK_NANOSLEEP
            }
            82 if self.below(50) == 0 => RT_SIGRETURN,
            // A few that do not exist: each is logged once.
            82 => self.of(&[0, 1, 2, 1 << 20, usize::MAX, 1 << 32]),
            _ => {
                let first = if self.below(2) == 0 { self.number() } else { self.pointer() };
                set(&[first]);
                self.of(&[
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
                ])
            }
        };
        (number, arguments)
    }
}

/// Makes calls until there were enough, or one ends this process.
fn fuzz(seed: u64, calls: u64) -> u8 {
    let Ok(pages) = memory::map(PAGES * PAGE, RW) else { return 3 };
    let mut random = Random { state: seed, pages };
    while count().fetch_add(1, Ordering::Relaxed) < calls {
        let (number, arguments) = random.call();
        // SAFETY: what it does to memory it does to this process's, and the parent expects that to end at any call.
        let answer = unsafe { sys::raw(number, arguments) };
        if number == CLONE && answer == 0 {
            process::exit_group(0);
        }
    }
    0
}
