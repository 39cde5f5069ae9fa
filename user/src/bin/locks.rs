//! Locks of files: ranges, owners, waits, and what ends a lock.
//!
//! Each answer is Linux's. Another process looks at each lock: a process is not in its own way.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls that the program makes on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

const PATH: &CStr = c"/tmp/locks";
const SECOND: &CStr = c"/tmp/locks2";
const THIRD: &CStr = c"/tmp/locks3";
const LAST: i64 = i64::MAX;

fn run(start: Start) -> u8 {
    if start.arguments().nth(1) == Some("after") {
        return after_exec();
    }
    let _ = call(MKDIRAT, [HERE, c"/tmp".as_ptr() as u64, 0o777]);
    for path in [PATH, SECOND, THIRD] {
        let file = call(OPENAT, [HERE, path.as_ptr() as u64, (O_RDWR | O_CREAT).into(), 0o644]).map(File);
        equal("a size", file.expect("a file").resize(1000), Ok(0));
    }
    parts! { ()
        refusals ranges places answers_of_getlk modes_of_files closes forks open_files whole_files conversions mappings
        many_ranges waits circles circles_of_open_files signals exclusion threads
    }
    execs(start.path());
    for path in [PATH, SECOND, THIRD] {
        equal("removed", call(UNLINKAT, [HERE, path.as_ptr() as u64, 0]), Ok(0));
    }
    status("locks")
}

fn open(flags: u32) -> File {
    File::open(PATH, flags).expect("the file")
}

fn flock_of(kind: u16, start: i64, length: i64) -> Flock {
    Flock { l_type: kind, l_start: start, l_len: length, ..Flock::default() }
}

fn fcntl(file: u64, command: u32, lock: &mut Flock) -> Result<u64, Errno> {
    call(FCNTL, [file, command.into(), &raw mut *lock as u64])
}

fn set(file: u64, kind: u16, start: i64, length: i64) -> Result<u64, Errno> {
    fcntl(file, F_SETLK, &mut flock_of(kind, start, length))
}

fn wait(file: u64, kind: u16, start: i64, length: i64) -> Result<u64, Errno> {
    fcntl(file, F_SETLKW, &mut flock_of(kind, start, length))
}

fn set_own(file: u64, kind: u16, start: i64, length: i64) -> Result<u64, Errno> {
    fcntl(file, F_OFD_SETLK, &mut flock_of(kind, start, length))
}

fn whole(file: u64, operation: u32) -> Result<u64, Errno> {
    call(FLOCK, [file, operation.into()])
}

/// The lock in the way of one of this kind from `start` on: its kind, start, length and process.
fn found(file: u64, command: u32, kind: u16, start: i64, length: i64) -> (u16, i64, i64, i32) {
    let mut lock = flock_of(kind, start, length);
    equal("asked", fcntl(file, command, &mut lock), Ok(0));
    (lock.l_type, lock.l_start, lock.l_len, lock.l_pid)
}

/// Compares all locks of this process on an open file with these, from another process.
#[track_caller]
fn locked(file: &File, linux: &[(u16, i64, i64)]) {
    let owner = process::id() as i32;
    apart(|| {
        let mut at = 0;
        for &(kind, start, length) in linux {
            equal(("locked", start), found(**file, F_GETLK, F_WRLCK, at, 0), (kind, start, length, owner));
            at = start + length;
            if length == 0 {
                return;
            }
        }
        equal("no more", found(**file, F_GETLK, F_WRLCK, at, 0).0, F_UNLCK);
    });
}

fn refusals() {
    let file = open(O_RDWR);
    let path = File::open(PATH, O_PATH).expect("a path");
    for command in [F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW] {
        equal("no descriptor", call(FCNTL, [99, command.into(), 1]), Err(EBADF));
        equal("a path", call(FCNTL, [*path, command.into(), 1]), Err(EBADF));
        equal("no memory", call(FCNTL, [*file, command.into(), 1]), Err(EFAULT));
        for kind in [3, 4, 77, 0xffff] {
            equal(("a kind", kind), fcntl(*file, command, &mut flock_of(kind, 0, 0)), Err(EINVAL));
        }
        let mut lock = Flock { l_whence: 3, ..Flock::default() };
        equal("a place", fcntl(*file, command, &mut lock), Err(EINVAL));
        let mut lock = Flock { l_pid: 7, ..Flock::default() };
        let of_process = command < F_OFD_GETLK;
        equal("a process", fcntl(*file, command, &mut lock), if of_process { Ok(0) } else { Err(EINVAL) });
        let mut lock = Flock { l_pid: 7, l_whence: SEEK_END as u16, l_start: LAST, ..Flock::default() };
        equal("too late first", fcntl(*file, command, &mut lock), Err(EOVERFLOW));
    }
    equal("a lock to look for", fcntl(*file, F_GETLK, &mut flock_of(F_UNLCK, 0, 0)), Err(EINVAL));
    for operation in [0, LOCK_NB, LOCK_SH | LOCK_EX, LOCK_UN | LOCK_SH, 64 | LOCK_SH, 77] {
        equal(("an operation", operation), whole(*file, operation), Err(EINVAL));
        equal("before the descriptor", whole(99, operation), Err(EINVAL));
    }
    equal("no descriptor", whole(99, LOCK_SH), Err(EBADF));
    equal("a path", whole(*path, LOCK_UN), Err(EBADF));
    for more in [0, LOCK_SH, 128 | LOCK_NB] {
        equal("done no more", whole(*file, LOCK_MAND | more), Ok(0));
        equal("of no file", whole(99, LOCK_MAND | more), Ok(0));
    }
}

fn ranges() {
    let file = open(O_RDWR);
    for (start, length, linux) in [
        (-1, 0, Err(EINVAL)),
        (5, -6, Err(EINVAL)),
        (5, i64::MIN, Err(EINVAL)),
        (0, -1, Err(EINVAL)),
        (LAST, 2, Err(EOVERFLOW)),
        (2, LAST, Err(EOVERFLOW)),
        (1, LAST, Ok(0)),
        (LAST, 1, Ok(0)),
        (LAST, 0, Ok(0)),
        (5, -5, Ok(0)),
    ] {
        equal((start, length), set(*file, F_RDLCK, start, length), linux);
    }
    locked(&file, &[(F_RDLCK, 0, 0)]);
    equal("none", set(*file, F_UNLCK, 0, 0), Ok(0));
    locked(&file, &[]);
    equal("a range", set(*file, F_WRLCK, 100, 100), Ok(0));
    equal("in it", set(*file, F_RDLCK, 120, 10), Ok(0));
    equal("before a place", set(*file, F_UNLCK, 150, -10), Ok(0));
    locked(&file, &[(F_WRLCK, 100, 20), (F_RDLCK, 120, 10), (F_WRLCK, 130, 10), (F_WRLCK, 150, 50)]);
    equal("the hole", set(*file, F_WRLCK, 140, 10), Ok(0));
    locked(&file, &[(F_WRLCK, 100, 20), (F_RDLCK, 120, 10), (F_WRLCK, 130, 70)]);
    equal("next to it", set(*file, F_WRLCK, 200, 1), Ok(0));
    equal("over both", set(*file, F_RDLCK, 110, 30), Ok(0));
    locked(&file, &[(F_WRLCK, 100, 10), (F_RDLCK, 110, 30), (F_WRLCK, 140, 61)]);
    equal("all", set(*file, F_WRLCK, 0, 0), Ok(0));
    locked(&file, &[(F_WRLCK, 0, 0)]);
    equal("the last byte", set(*file, F_UNLCK, LAST, 1), Ok(0));
    locked(&file, &[(F_WRLCK, 0, LAST)]);
    equal("the first", set(*file, F_UNLCK, 0, 1), Ok(0));
    locked(&file, &[(F_WRLCK, 1, LAST - 1)]);
}

fn places() {
    let file = open(O_RDWR);
    equal("a position", file.seek(30, SEEK_SET), Ok(30));
    let mut lock = Flock { l_whence: SEEK_CUR as u16, ..flock_of(F_WRLCK, -10, 5) };
    equal("from there", fcntl(*file, F_SETLK, &mut lock), Ok(0));
    lock = Flock { l_whence: SEEK_END as u16, ..flock_of(F_RDLCK, -10, 0) };
    equal("from the end", fcntl(*file, F_SETLK, &mut lock), Ok(0));
    locked(&file, &[(F_WRLCK, 20, 5), (F_RDLCK, 990, 0)]);
    for (start, linux) in [(-1001, Err(EINVAL)), (i64::MIN, Err(EINVAL)), (LAST, Err(EOVERFLOW)), (LAST - 1000, Ok(0))]
    {
        lock = Flock { l_whence: SEEK_END as u16, ..flock_of(F_RDLCK, start, 0) };
        equal(start, fcntl(*file, F_SETLK, &mut lock), linux);
    }
}

fn answers_of_getlk() {
    let file = open(O_RDWR);
    equal("locked", set(*file, F_RDLCK, 100, 20), Ok(0));
    let owner = process::id() as i32;
    apart(|| {
        let mut lock = Flock { l_whence: SEEK_END as u16, l_pid: 1234, ..flock_of(F_RDLCK, 3, 7) };
        equal("asked", fcntl(*file, F_GETLK, &mut lock), Ok(0));
        let linux = Flock { l_whence: SEEK_END as u16, l_pid: 1234, ..flock_of(F_UNLCK, 3, 7) };
        equal("only the kind changes", lock, linux);
        lock = Flock { l_whence: SEEK_END as u16, l_pid: 1234, ..flock_of(F_WRLCK, -950, 0) };
        equal("asked", fcntl(*file, F_GETLK, &mut lock), Ok(0));
        equal("what is in the way", lock, Flock { l_pid: owner, ..flock_of(F_RDLCK, 100, 20) });
        equal("not of another reader", found(*file, F_GETLK, F_RDLCK, 0, 0).0, F_UNLCK);
        equal("it does not write", set(*file, F_WRLCK, 119, 1), Err(EAGAIN));
        equal("but behind", set(*file, F_WRLCK, 120, 1), Ok(0));
        equal("and reads", set(*file, F_RDLCK, 0, 0), Ok(0));
    });
    equal("not its own", found(*file, F_GETLK, F_WRLCK, 0, 0).0, F_UNLCK);
    locked(&file, &[(F_RDLCK, 100, 20)]);
}

fn modes_of_files() {
    let (reader, writer) = (open(O_RDONLY), open(O_WRONLY));
    for command in [F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW] {
        let mut lock = flock_of(F_WRLCK, 0, 0);
        equal("of a reader", fcntl(*reader, command, &mut lock), Err(EBADF));
        lock = flock_of(F_RDLCK, 0, 0);
        equal("of a writer", fcntl(*writer, command, &mut lock), Err(EBADF));
        lock.l_type = F_UNLCK;
        equal("none of a reader", fcntl(*reader, command, &mut lock), Ok(0));
        equal("none of a writer", fcntl(*writer, command, &mut lock), Ok(0));
    }
    equal("a writer asks", found(*writer, F_GETLK, F_RDLCK, 0, 0).0, F_UNLCK);
    equal("a reader locks the whole", whole(*reader, LOCK_EX), Ok(0));
    let neither = open(O_ACCMODE);
    equal("neither", whole(*neither, LOCK_SH | LOCK_NB), Err(EBADF));
    equal("neither", set(*neither, F_RDLCK, 0, 0), Err(EBADF));
    equal("nor unlocks", whole(*neither, LOCK_UN), Ok(0));
    let directory = File::open(c"/tmp", O_RDONLY | O_DIRECTORY).expect("a directory");
    equal("a directory", set(*directory, F_RDLCK, 0, 0), Ok(0));
    equal("of no writer", set(*directory, F_WRLCK, 0, 0), Err(EBADF));
    equal("as a whole", whole(*directory, LOCK_EX), Ok(0));
    let memory = File::memory(c"memory", 0).expect("a file");
    equal("memory", set(*memory, F_WRLCK, 0, 0), Ok(0));
    locked(&memory, &[(F_WRLCK, 0, 0)]);
    let null = File::open(c"/dev/null", O_RDWR).expect("a device");
    equal("a device", set(*null, F_WRLCK, 0, 0), Ok(0));
    locked(&null, &[(F_WRLCK, 0, 0)]);
}

fn closes() {
    let file = open(O_RDWR);
    let lock = || equal("locked", set(*file, F_WRLCK, 5, 5), Ok(0));
    lock();
    drop(open(O_RDONLY));
    locked(&file, &[]);
    lock();
    equal("a copy", call(DUP, [*file]).map(File).map(drop), Ok(()));
    locked(&file, &[]);
    lock();
    let (other, console) = (open(O_RDONLY), File::memory(c"other", 0).expect("a file"));
    equal("in place of it", call(DUP3, [*console, *other, 0]), Ok(*other));
    locked(&file, &[]);
    let other = open(O_RDONLY);
    lock();
    equal("the same in place of it", call(DUP3, [*file, *other, 0]), Ok(*other));
    locked(&file, &[]);
    lock();
    drop(File::open(SECOND, O_RDWR).expect("another file"));
    locked(&file, &[(F_WRLCK, 5, 5)]);
    equal("a copy of another process", process::run(|| drop(open(O_RDWR))), exited(0));
    locked(&file, &[(F_WRLCK, 5, 5)]);
}

fn forks() {
    let file = open(O_RDWR);
    equal("locked", set(*file, F_WRLCK, 0, 0), Ok(0));
    let owner = process::id() as i32;
    apart(|| {
        equal("not the child's", found(*file, F_GETLK, F_RDLCK, 0, 0), (F_WRLCK, 0, 0, owner));
        equal("nor does it unlock", set(*file, F_UNLCK, 0, 0), Ok(0));
    });
    locked(&file, &[(F_WRLCK, 0, 0)]);
    equal("none", set(*file, F_UNLCK, 0, 0), Ok(0));
    equal("a child locks and exits", process::run(|| equal("locked", set(*file, F_WRLCK, 0, 0), Ok(0))), exited(0));
    equal("free", set(*file, F_WRLCK, 0, 0), Ok(0));
    // Of descriptors that are shared, locks are shared.
    let shared = process::clone_with(CLONE_FILES | u64::from(SIGCHLD), [0; 2], || {
        equal("its own", found(*file, F_GETLK, F_WRLCK, 0, 0).0, F_UNLCK);
        equal("a part", set(*file, F_UNLCK, 10, 0), Ok(0));
        wrong()
    });
    equal("a child", process::wait(shared.expect("a process")), exited(0));
    locked(&file, &[(F_WRLCK, 0, 10)]);
}

fn open_files() {
    let (one, other) = (open(O_RDWR), open(O_RDWR));
    equal("locked", set_own(*one, F_WRLCK, 10, 10), Ok(0));
    equal("not of another", set_own(*other, F_RDLCK, 0, 11), Err(EAGAIN));
    equal("nor of the process", set(*one, F_WRLCK, 0, 0), Err(EAGAIN));
    equal("in the way", found(*one, F_GETLK, F_WRLCK, 0, 0), (F_WRLCK, 10, 10, -1));
    equal("in the way", found(*other, F_OFD_GETLK, F_RDLCK, 0, 0), (F_WRLCK, 10, 10, -1));
    equal("not in its own", found(*one, F_OFD_GETLK, F_RDLCK, 0, 0).0, F_UNLCK);
    equal("its own", found(*one, F_OFD_GETLK, F_UNLCK, 0, 0), (F_WRLCK, 10, 10, -1));
    equal("not the other's", found(*other, F_OFD_GETLK, F_UNLCK, 0, 0).0, F_UNLCK);
    apart(|| equal("a child has it too", set_own(*one, F_RDLCK, 12, 2), Ok(0)));
    equal("and divides it", found(*other, F_OFD_GETLK, F_RDLCK, 0, 0), (F_WRLCK, 10, 2, -1));
    equal("for all", found(*other, F_OFD_GETLK, F_WRLCK, 12, 0), (F_RDLCK, 12, 2, -1));
    drop(open(O_RDWR));
    let copy = call(DUP, [*one]).map(File).expect("a copy");
    drop(one);
    equal("it stays with a copy", set_own(*other, F_WRLCK, 0, 0), Err(EAGAIN));
    drop(copy);
    equal("it ends with the last", set_own(*other, F_WRLCK, 0, 0), Ok(0));
    drop(other);
    let other = open(O_RDWR);
    equal("of the process", set(*other, F_RDLCK, 0, 0), Ok(0));
    equal("its open file does not write", set_own(*other, F_WRLCK, 0, 0), Err(EAGAIN));
    equal("it reads", set_own(*other, F_RDLCK, 0, 0), Ok(0));
}

fn whole_files() {
    let (one, other, third) = (open(O_RDWR), open(O_RDONLY), open(O_RDWR));
    equal("exclusive", whole(*one, LOCK_EX), Ok(0));
    equal("not shared", whole(*other, LOCK_SH | LOCK_NB), Err(EAGAIN));
    equal("again", whole(*one, LOCK_EX | LOCK_NB), Ok(0));
    equal("other calls do not see it", set(*other, F_RDLCK, 0, 0), Ok(0));
    equal("other calls do not see it", set_own(*third, F_RDLCK, 0, 0), Ok(0));
    equal("less", whole(*one, LOCK_SH), Ok(0));
    equal("both", whole(*other, LOCK_SH | LOCK_NB), Ok(0));
    apart(|| equal("a child unlocks", whole(*one, LOCK_UN), Ok(0)));
    equal("the other's", whole(*third, LOCK_EX | LOCK_NB), Err(EAGAIN));
    equal("unlocked twice", [whole(*other, LOCK_UN), whole(*other, LOCK_UN)], [Ok(0); 2]);
    equal("free", whole(*third, LOCK_EX | LOCK_NB), Ok(0));
    let copy = call(DUP, [*third]).map(File).expect("a copy");
    drop(third);
    equal("it stays with a copy", whole(*one, LOCK_SH | LOCK_NB), Err(EAGAIN));
    drop(copy);
    equal("it ends with the last", whole(*one, LOCK_SH | LOCK_NB), Ok(0));
}

fn conversions() {
    let (one, other) = (open(O_RDWR), open(O_RDWR));
    equal("shared", [whole(*one, LOCK_SH), whole(*other, LOCK_SH)], [Ok(0); 2]);
    equal("not exclusive", whole(*one, LOCK_EX | LOCK_NB), Err(EAGAIN));
    equal("that has lost the lock", whole(*other, LOCK_EX | LOCK_NB), Ok(0));
    equal("exclusive", whole(*one, LOCK_SH | LOCK_NB), Err(EAGAIN));
}

fn mappings() {
    let file = open(O_RDWR);
    equal("locked", set(*file, F_WRLCK, 0, 0), Ok(0));
    let pages = file.map(0, 1, PROT_READ, SHARED).expect("a page");
    drop(file);
    let file = open(O_RDWR);
    locked(&file, &[]);
    drop(pages);
}

/// As many ranges as make several pages of records, and what joins them.
fn many_ranges() {
    const COUNT: i64 = 300;
    let file = open(O_RDWR);
    for number in 0..COUNT {
        let at = number * 7 % COUNT;
        equal(("set", at), set(*file, F_WRLCK, at * 10, 5), Ok(0));
    }
    let owner = process::id() as i32;
    apart(|| {
        for at in 0..COUNT {
            equal(
                ("set", at),
                found(*file, F_GETLK, F_RDLCK, at * 10 - 5 * i64::from(at != 0), 0),
                (F_WRLCK, at * 10, 5, owner),
            );
        }
    });
    equal("joined", set(*file, F_WRLCK, 0, COUNT * 10), Ok(0));
    locked(&file, &[(F_WRLCK, 0, COUNT * 10)]);
}

/// Three calls that lock a file exclusively and wait for that, and unlock it.
type Way = fn(&File, bool) -> Result<u64, Errno>;
const WAYS: [Way; 3] = [
    |file, lock| wait(**file, if lock { F_WRLCK } else { F_UNLCK }, 0, 0),
    |file, lock| fcntl(**file, F_OFD_SETLKW, &mut flock_of(if lock { F_WRLCK } else { F_UNLCK }, 0, 0)),
    |file, lock| whole(**file, if lock { LOCK_EX } else { LOCK_UN }),
];

fn waits() {
    let step = shared::<AtomicU32>();
    for (number, way) in WAYS.into_iter().enumerate() {
        for ends in ["unlock", "close", "exit"] {
            step.store(0, Ordering::SeqCst);
            let child = process::spawn(|| {
                let file = open(O_RDWR);
                equal("the child locks", way(&file, true), Ok(0));
                step.store(1, Ordering::SeqCst);
                // Long enough that the parent waits, most times.
                (0..200).for_each(|_| process::sched_yield());
                step.store(2, Ordering::SeqCst);
                match ends {
                    "unlock" => equal("the child unlocks", way(&file, false), Ok(0)),
                    "close" => drop(file),
                    _ => process::exit_group(wrong()),
                }
                until(|| step.load(Ordering::SeqCst) == 3);
                wrong()
            });
            until(|| step.load(Ordering::SeqCst) != 0);
            let file = open(O_RDWR);
            equal(("the parent locks", number, ends), way(&file, true), Ok(0));
            equal("when the child has released it", step.load(Ordering::SeqCst), 2);
            step.store(3, Ordering::SeqCst);
            equal("a child", process::wait(child), exited(0));
        }
    }
}

/// Two processes wait for each other: one is refused, whichever comes last.
fn circles() {
    let (ready, refused) = (shared::<AtomicU32>(), shared::<AtomicU32>());
    let file = open(O_RDWR);
    let meet = |mine: i64| {
        equal("its own byte", set(*file, F_WRLCK, mine, 1), Ok(0));
        ready.fetch_add(1, Ordering::SeqCst);
        until(|| ready.load(Ordering::SeqCst) == 3);
        let next = wait(*file, F_WRLCK, (mine + 1) % 3, 1);
        if next == Err(EDEADLK) {
            refused.fetch_add(1, Ordering::SeqCst);
        } else {
            equal("the next byte", next, Ok(0));
        }
        equal("all", set(*file, F_UNLCK, 0, 0), Ok(0));
    };
    let others = [1, 2].map(|mine| {
        process::spawn(|| {
            meet(mine);
            wrong()
        })
    });
    meet(0);
    others.into_iter().for_each(|other| equal("another", process::wait(other), exited(0)));
    equal("refused", refused.load(Ordering::SeqCst), 1);
    // Two readers that would both write.
    ready.store(1, Ordering::SeqCst);
    refused.store(0, Ordering::SeqCst);
    let upgrade = || {
        equal("both read", set(*file, F_RDLCK, 0, 1), Ok(0));
        ready.fetch_add(1, Ordering::SeqCst);
        until(|| ready.load(Ordering::SeqCst) == 3);
        let answer = wait(*file, F_WRLCK, 0, 1);
        refused.fetch_add(u32::from(answer == Err(EDEADLK)), Ordering::SeqCst);
        equal("none", set(*file, F_UNLCK, 0, 0), Ok(0));
    };
    let other = process::spawn(|| {
        upgrade();
        wrong()
    });
    upgrade();
    equal("another", process::wait(other), exited(0));
    equal("one is refused", refused.load(Ordering::SeqCst), 1);
}

/// A process is refused where an open file waits for it; an open file waits for ever, until a signal.
fn circles_of_open_files() {
    let ready = shared::<AtomicU32>();
    interrupt_by(SIGUSR1, 0);
    let (one, other) = (open(O_RDWR), open(O_RDWR));
    equal("one", set_own(*one, F_WRLCK, 0, 1), Ok(0));
    let child = process::spawn(|| {
        equal("the other", set_own(*other, F_WRLCK, 1, 1), Ok(0));
        ready.store(1, Ordering::SeqCst);
        let mut lock = flock_of(F_WRLCK, 0, 1);
        let answer = while_signalled(SIGUSR1, MILLISECOND, || fcntl(*other, F_OFD_SETLKW, &mut lock));
        equal("no circle", answer, Err(EINTR));
        wrong()
    });
    until(|| ready.load(Ordering::SeqCst) != 0);
    let mut lock = flock_of(F_WRLCK, 1, 1);
    let answer = while_signalled(SIGUSR1, MILLISECOND, || fcntl(*one, F_OFD_SETLKW, &mut lock));
    equal("no circle", answer, Err(EINTR));
    equal("a child", process::wait(child), exited(0));
}

fn signals() {
    interrupt_by(SIGUSR1, 0);
    let holder = open(O_RDWR);
    let holds = [set_own(*holder, F_WRLCK, 0, 0), whole(*holder, LOCK_EX)];
    equal("held", holds, [Ok(0); 2]);
    let file = open(O_RDWR);
    for way in WAYS {
        equal("interrupted", while_signalled(SIGUSR1, MILLISECOND, || way(&file, true)), Err(EINTR));
    }
    drop(holder);
    for way in WAYS.into_iter().rev() {
        equal("free", way(&file, true), Ok(0));
        equal("and again", way(&file, false), Ok(0));
    }
}

/// Processes that add to one number, each under a lock of the file.
fn exclusion() {
    const PROCESSES: usize = 6;
    const TIMES: u32 = 200;
    let total = shared::<AtomicU32>();
    for way in WAYS {
        total.store(0, Ordering::SeqCst);
        let children: [u32; PROCESSES] = core::array::from_fn(|_| {
            process::spawn(|| {
                let file = open(O_RDWR);
                for turn in 0..TIMES {
                    equal("locked", way(&file, true), Ok(0));
                    let before = total.load(Ordering::Relaxed);
                    if turn % 8 == 0 {
                        process::sched_yield();
                    }
                    total.store(before + 1, Ordering::Relaxed);
                    equal("unlocked", way(&file, false), Ok(0));
                }
                wrong()
            })
        });
        children.into_iter().for_each(|child| equal("a child", process::wait(child), exited(0)));
        equal("each time one", total.load(Ordering::SeqCst), PROCESSES as u32 * TIMES);
    }
}

/// Threads have the locks of their process, but each open file its own.
fn threads() {
    let file = open(O_RDWR);
    equal("locked", set(*file, F_WRLCK, 0, 0), Ok(0));
    let other = || {
        equal("its own too", wait(*file, F_WRLCK, 0, 0), Ok(0));
        drop(open(O_RDONLY));
    };
    beside(other, || {});
    locked(&file, &[]);
    let total = AtomicU32::new(0);
    all_at_once(4, |_| {
        let file = open(O_RDWR);
        for (way, end) in [(WAYS[1], 400), (WAYS[2], 800)] {
            for _ in 0..100 {
                equal("locked", way(&file, true), Ok(0));
                let before = total.load(Ordering::Relaxed);
                process::sched_yield();
                total.store(before + 1, Ordering::Relaxed);
                equal("unlocked", way(&file, false), Ok(0));
            }
            // The others of this way first.
            until(|| total.load(Ordering::Relaxed) >= end);
        }
    });
    equal("each time one", total.load(Ordering::Relaxed), 800);
}

/// The descriptor of [`PATH`] that stays open over an exec.
const KEPT: u64 = 20;

fn after_exec() -> u8 {
    let file = File(KEPT);
    locked(&file, &[(F_WRLCK, 0, 7)]);
    equal("its open file's", whole(*open(O_RDWR), LOCK_SH | LOCK_NB), Err(EAGAIN));
    locked(&file, &[]);
    for path in [SECOND, THIRD] {
        let file = File::open(path, O_RDWR).expect("a file");
        locked(&file, &[]);
        equal("nor as a whole", whole(*file, LOCK_EX | LOCK_NB), Ok(0));
    }
    wrong()
}

fn execs(path: &CStr) {
    apart(|| {
        let kept = call(DUP3, [*open(O_RDWR), KEPT, 0]).expect("a descriptor");
        equal("locked", set(kept, F_WRLCK, 0, 7), Ok(0));
        equal("locked", whole(kept, LOCK_EX), Ok(0));
        let second = File::open(SECOND, O_RDWR | O_CLOEXEC).expect("a file");
        equal("locked", [set(*second, F_WRLCK, 0, 0), whole(*second, LOCK_EX)], [Ok(0); 2]);
        // Closing the one takes the lock of the other.
        let (third, closed) = (File::open(THIRD, O_RDWR), File::open(THIRD, O_RDONLY | O_CLOEXEC));
        let (third, _closed) = (third.expect("a file"), closed.expect("a file"));
        equal("locked", set(*third, F_WRLCK, 0, 0), Ok(0));
        equal("execve", process::execute(path, &[path, c"after"]) as i32, 0);
    });
}
