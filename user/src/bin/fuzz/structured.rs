//! Calls whose arguments are the structures that they expect, or are made in copies of the process.

use granule_user::prelude::*;
use granule_user::random;

use super::{ADVICE, COUNT, FIXED, HANDLED, KEEP, PATH, PATHS, PATIENCE, Random, THREADS, WRITTEN, end, mutate, raw};

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
    pub(super) fn call_once(&mut self) {
        let (arguments, number) = self.call();
        if raw(number, &arguments) == 0 && number == CLONE {
            process::exit_group(0);
        }
    }

    /// A call whose arguments are the structures that it expects.
    pub(super) fn structured(&mut self) {
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
        if self.below(8) == 0 {
            let what = self.of(&[PR_SET_MDWE, PR_GET_MDWE, PR_SET_THP_DISABLE, PR_GET_THP_DISABLE]);
            raw(PRCTL, &[what, self.of(&[0, 0, 1, 3]), self.of(&[0, 0, 2]), 0, 0]);
            return;
        }
        let what = self.of(&[PR_SET_NAME, PR_GET_NAME, PR_SET_TAGGED_ADDR_CTRL, PR_SET_TAGGED_ADDR_CTRL]);
        let first = if what == PR_SET_TAGGED_ADDR_CTRL { self.of(&[0, 1, 1, 2]) } else { self.pointer() };
        let odd = if self.below(8) == 0 { self.number() } else { 0 };
        let what = if self.below(8) == 0 { PR_GET_TAGGED_ADDR_CTRL } else { what };
        raw(PRCTL, &[what, first, 0, 0, odd]);
    }

    /// More memory at once than may be free; or none, where large pages are asked for.
    fn large(&mut self) {
        let length = self.of(&[1 << 20, 1 << 22, 1 << 24]);
        let sharing = self.of(&[MAP_PRIVATE, MAP_SHARED, MAP_DROPPABLE]);
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
        let sharing = self.of(&[MAP_PRIVATE, MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE, MAP_DROPPABLE]);
        let odd = self.of(&[0, 0, MAP_POPULATE, MAP_POPULATE, MAP_GROWSDOWN, MAP_STACK, MAP_NORESERVE, MAP_HUGETLB]);
        let nodes = [1_u64, 0];
        let (number, arguments) = match self.below(21) {
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
            18 => (REMAP_FILE_PAGES, [at, length, 0, self.below(20), self.of(&[0, MAP_NONBLOCK]), 0]),
            19 => {
                let mode = self.of(&[0, 1, 2, 3, 4, 5, 6, 1 << 15 | 2, 1 << 14 | 3, 1 << 13 | 5]);
                let (set, most) = (&raw const nodes as u64, self.of(&[0, 2, 64, 128, 1 << 15]));
                match self.below(4) {
                    0 => (SET_MEMPOLICY, [mode, set, most, 0, 0, 0]),
                    1 => (GET_MEMPOLICY, [self.page(), self.place_for_result(), most, at, self.below(8), 0]),
                    2 => (MOVE_PAGES, [0, self.below(80), self.page(), self.place_for_result(), self.page(), 2]),
                    _ => (MBIND, [at, length, mode, set, most, self.below(8)]),
                }
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
                let (directory, flags) = (self.of(&[HERE, file]), self.of(FLAGS.as_flattened()));
                let flags = if self.below(8) == 0 { self.number() } else { flags.into() };
                let path = match flags as u32 {
                    flags if flags & O_TMPFILE == O_TMPFILE => c"/".as_ptr() as u64,
                    // A program that is cut runs no more.
                    flags if flags & (O_ACCMODE | O_CREAT | O_TRUNC) != 0 => WRITTEN.as_ptr() as u64,
                    _ => self.path(6),
                };
                (OPENAT, [directory, path, flags, 0])
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
        let operation = self.of(&[
            FUTEX_WAIT,
            FUTEX_WAKE,
            FUTEX_REQUEUE,
            FUTEX_CMP_REQUEUE,
            FUTEX_WAKE_OP,
            FUTEX_WAIT_BITSET,
            FUTEX_WAKE_BITSET,
        ]);
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
        if self.below(4) == 0 {
            let end = Timespec::from_nanoseconds(time::now() + self.below(200_000));
            let flags = self.of(&[FUTEX2_SIZE_U32, FUTEX2_SIZE_U32 | FUTEX2_PRIVATE, 0]);
            let words = [word, self.pages, self.pages + 4];
            let list = words.map(|uaddr| FutexWaitv { val: value, uaddr, flags, reserved: 0 });
            let count = 1 + self.below(3);
            raw(FUTEX_WAITV, &[list.as_ptr() as u64, count, 0, &raw const end as u64, CLOCK_MONOTONIC]);
            return;
        }
        raw(FUTEX, &[word, operation | flags, value, limit, self.page(), bits]);
    }
}
