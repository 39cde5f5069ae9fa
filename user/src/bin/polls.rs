//! Pipes, event counters and ppoll: what they hold, whom they wake, and what each refuses.
//!
//! Each answer is Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

const SECOND: u64 = 1000 * MILLISECOND;

fn run(_: Start) -> u8 {
    parts! { ()
        pipes_are_made_and_refused bytes_go_through pages_fill packets ends_close pieces bad_memory what_a_pipe_is_not
        sizes_of_pipes blocked_readers_and_writers large_writes whole_writes interrupted counters counters_wait
        pieces_of_counters polls_of_all_kinds polls_refuse polls_wait masks times many closed_meanwhile
    }
    status("polls")
}

fn pipe(flags: u32) -> [File; 2] {
    File::pipe(flags).expect("a pipe")
}

fn waiting(file: u64) -> Result<u32, Errno> {
    let mut bytes = 77_u32;
    call(IOCTL, [file, FIONREAD.into(), &raw mut bytes as u64]).map(|_| bytes)
}

fn counter(count: u32, flags: u32) -> File {
    File::counter(count, flags).expect("a counter")
}

fn add(counter: &File, more: u64) -> Result<u64, Errno> {
    counter.write(&more.to_le_bytes())
}

fn take(counter: &File) -> Result<u64, Errno> {
    let mut count = [0; 8];
    counter.read(&mut count).map(|bytes| if bytes == 8 { u64::from_le_bytes(count) } else { 7777 })
}

fn ppoll(files: &mut [PollFd], limit: Option<&mut Timespec>, mask: Option<&u64>) -> Result<u64, Errno> {
    let limit = limit.map_or(0, |limit| &raw mut *limit as u64);
    let mask = mask.map_or(0, |mask| &raw const *mask as u64);
    call(PPOLL, [files.as_mut_ptr() as u64, files.len() as u64, limit, mask, 8])
}

/// An entry of `ppoll` for an open file.
fn polled(file: &File, events: u16) -> PollFd {
    PollFd { fd: file.0 as i32, events, revents: 0 }
}

/// The events that are found at once at one file.
fn state(file: u64, events: u16) -> u16 {
    let mut files = [PollFd { fd: file as i32, events, revents: 0xffff }];
    let found = ppoll(&mut files, Some(&mut Timespec::from_nanoseconds(0)), None);
    equal("how many are ready", found, Ok(u64::from(files[0].revents != 0)));
    files[0].revents
}

const ALL: u16 = POLLIN | POLLPRI | POLLOUT | POLLRDNORM | POLLWRNORM;

fn pipes_are_made_and_refused() {
    let [reader, writer] = pipe(0);
    equal("the lowest free descriptors", *writer, *reader + 1);
    equal("F_GETFL of the end that reads", reader.fcntl(F_GETFL, 0), Ok(u64::from(O_RDONLY)));
    equal("F_GETFL of the end that writes", writer.fcntl(F_GETFL, 0), Ok(u64::from(O_WRONLY)));
    equal("F_GETFD", reader.fcntl(F_GETFD, 0), Ok(0));
    drop([reader, writer]);
    let [reader, writer] = pipe(O_CLOEXEC | O_NONBLOCK | O_DIRECT);
    equal("O_NONBLOCK is both ends'", reader.fcntl(F_GETFL, 0), Ok((O_RDONLY | O_NONBLOCK).into()));
    equal("O_DIRECT is the writer's", writer.fcntl(F_GETFL, 0), Ok((O_WRONLY | O_NONBLOCK | O_DIRECT).into()));
    equal("O_CLOEXEC", reader.fcntl(F_GETFD, 0), Ok(FD_CLOEXEC.into()));
    equal("O_CLOEXEC of both", writer.fcntl(F_GETFD, 0), Ok(FD_CLOEXEC.into()));
    let before = [*reader, *writer];
    drop([reader, writer]);
    for flags in [1, 2, 0x400, 0x8000_0000] {
        equal(("a flag that is none", flags), File::pipe(flags), Err(EINVAL));
    }
    for at in [NOWHERE, KERNEL, 0] {
        equal(("ends at", at), call(PIPE2, [at, 0]), Err(EFAULT));
        equal("flags first", call(PIPE2, [at, 1]), Err(EINVAL));
    }
    let [again, other] = pipe(0);
    equal("nothing stays open", [*again, *other], before);
    let first = *again;
    drop([again, other]);
    apart(|| {
        equal("a limit", process::limit(RLIMIT_NOFILE, first + 1, 4096).map(drop), Ok(()));
        equal("one descriptor is left", File::pipe(0), Err(EMFILE));
        equal("for a counter it is enough", call(EVENTFD2, [0, 0]), Ok(first));
        equal("and then not", call(EVENTFD2, [0, 0]), Err(EMFILE));
    });
}

fn bytes_go_through() {
    let [reader, writer] = pipe(O_NONBLOCK);
    let mut bytes = [0; 64];
    equal("nothing yet", reader.read(&mut bytes), Err(EAGAIN));
    equal("no bytes", reader.read(&mut []), Ok(0));
    equal("no bytes written", writer.write(&[]), Ok(0));
    equal("FIONREAD", waiting(*reader), Ok(0));
    equal("written", writer.write(b"one"), Ok(3));
    equal("and more", writer.write(b"two"), Ok(3));
    equal("FIONREAD", waiting(*reader), Ok(6));
    equal("FIONREAD of the other end", waiting(*writer), Ok(6));
    equal("a part", reader.read(&mut bytes[..2]), Ok(2));
    equal("of the first", &bytes[..2], b"on");
    equal("the rest", reader.read(&mut bytes), Ok(4));
    equal("of both", &bytes[..4], b"etwo");
    equal("it is empty", reader.read(&mut bytes), Err(EAGAIN));
    equal("the end that reads", reader.write(b"x"), Err(EBADF));
    equal("the end that writes", writer.read(&mut bytes), Err(EBADF));
}

static BYTES: [u8; 80 << 10] = [7; 80 << 10];

fn pages_fill() {
    let [reader, writer] = pipe(O_NONBLOCK);
    equal("as much as there is room for", writer.write(&BYTES), Ok(64 << 10));
    equal("full", writer.write(b"x"), Err(EAGAIN));
    equal("FIONREAD", waiting(*reader), Ok(64 << 10));
    equal("no room", state(*writer, ALL), 0);
    let mut page = [0; PAGE as usize];
    equal("but for one byte", reader.read(&mut page[1..]), Ok(PAGE - 1));
    equal("the page is not free", writer.write(b"x"), Err(EAGAIN));
    equal("no room", state(*writer, ALL), 0);
    equal("the last byte of it", reader.read(&mut page[..1]), Ok(1));
    equal("there is room", state(*writer, ALL), POLLOUT | POLLWRNORM);
    equal("for a page", writer.write(b"x"), Ok(1));
    equal("whose rest is used", writer.write(b"yz"), Ok(2));
    equal("full, but for that", state(*writer, ALL), 0);
    equal("what fits there", writer.write(&BYTES[..4093]), Ok(4093));
    equal("full", writer.write(b"x"), Err(EAGAIN));
    // The reader first, while there are bytes.
    drop([reader, writer]);

    let [reader, writer] = pipe(O_NONBLOCK);
    for page in 0..16 {
        equal(("4095 bytes each take a page", page), writer.write(&BYTES[..4095]), Ok(4095));
    }
    equal("full", writer.write(b"xy"), Err(EAGAIN));
    equal("one byte fits", writer.write(b"x"), Ok(1));
    equal("FIONREAD", waiting(*reader), Ok(16 * 4095 + 1));
    drop([reader, writer]);

    let [reader, writer] = pipe(O_NONBLOCK);
    equal("100 bytes", writer.write(&BYTES[..100]), Ok(100));
    equal("what is over whole pages joins them", writer.write(&BYTES[..4096 + 200]), Ok(4096 + 200));
    equal("so that 14 pages are left", writer.write(&BYTES), Ok(14 << 12));
    let mut all = [0; 64 << 10];
    equal("all of it", reader.read(&mut all), Ok(300 + (15 << 12)));
}

fn packets() {
    let [reader, writer] = pipe(O_DIRECT | O_NONBLOCK);
    let mut bytes = [0; 8];
    for packet in [b"one".as_slice(), b"four", b"x"] {
        equal("a packet", writer.write(packet), Ok(packet.len() as u64));
    }
    equal("one of them", reader.read(&mut bytes), Ok(3));
    equal("a part", reader.read(&mut bytes[..2]), Ok(2));
    equal("the rest of it is gone", reader.read(&mut bytes), Ok(1));
    equal("none is left", reader.read(&mut bytes), Err(EAGAIN));
    equal("no packets any more", writer.fcntl(F_SETFL, O_NONBLOCK), Ok(0));
    equal("a write", writer.write(b"one"), Ok(3));
    equal("and another", writer.write(b"two"), Ok(3));
    equal("in one read", reader.read(&mut bytes), Ok(6));
    equal("packets again", writer.fcntl(F_SETFL, O_NONBLOCK | O_DIRECT), Ok(0));
    equal("F_GETFL", writer.fcntl(F_GETFL, 0), Ok((O_WRONLY | O_NONBLOCK | O_DIRECT).into()));
}

static GOT: AtomicU64 = AtomicU64::new(0);

extern "C" fn note(signal: u32, _: &SigInfo, _: &mut UContext) {
    GOT.fetch_add(1 << (8 * (signal % 8)), Ordering::Relaxed);
}

/// How often each of the signals came since the last call, by their numbers modulo 8, a byte each.
fn got() -> u64 {
    GOT.swap(0, Ordering::Relaxed)
}

const fn once(signal: u32) -> u64 {
    1 << (8 * (signal % 8))
}

fn handles(signal: u32, flags: u64) {
    // SAFETY: the handler adds to a word.
    holds("a handler", unsafe { handle(signal, note, flags, 0) }.is_ok());
}

fn ends_close() {
    handles(SIGPIPE, 0);
    let [reader, writer] = pipe(0);
    let copy = File(call(DUP, [*writer]).expect("a copy"));
    equal("bytes", writer.write(b"last"), Ok(4));
    drop(writer);
    equal("another has the end", state(*reader, ALL), POLLIN | POLLRDNORM);
    drop(copy);
    equal("hung up, with bytes", state(*reader, ALL), POLLIN | POLLRDNORM | POLLHUP);
    equal("also where it is not asked for", state(*reader, 0), POLLHUP);
    let mut bytes = [0; 8];
    equal("what is left", reader.read(&mut bytes), Ok(4));
    equal("the end", reader.read(&mut bytes), Ok(0));
    equal("hung up", state(*reader, ALL), POLLHUP);
    drop(reader);

    let [reader, writer] = pipe(0);
    equal("room", state(*writer, ALL), POLLOUT | POLLWRNORM);
    drop(reader);
    equal("an error", state(*writer, ALL), POLLOUT | POLLWRNORM | POLLERR);
    equal("also where it is not asked for", state(*writer, 0), POLLERR);
    equal("no reader", writer.write(b"x"), Err(EPIPE));
    equal("SIGPIPE", got(), once(SIGPIPE));
    equal("nothing to write", writer.write(&[]), Ok(0));
    equal("no signal", got(), 0);
    equal("a bad address", call(WRITE, [*writer, NOWHERE, 1]), Err(EPIPE));
    equal("SIGPIPE", got(), once(SIGPIPE));
    drop(writer);
    equal("it ends a process", process::wait(killed_by_pipe()), SIGPIPE);
}

fn killed_by_pipe() -> u32 {
    process::spawn(|| {
        set_without_handler(SIGPIPE, SIG_DFL);
        let [reader, writer] = pipe(0);
        drop(reader);
        u8::from(writer.write(b"x").is_ok()) + 1
    })
}

fn piece(bytes: &mut [u8]) -> IoVec {
    IoVec { base: bytes.as_mut_ptr() as u64, length: bytes.len() as u64 }
}

fn pieces() {
    let [reader, writer] = pipe(O_NONBLOCK);
    let (mut first, mut second) = (*b"abc", *b"defgh");
    let list = [piece(&mut first), IoVec { base: NOWHERE, length: 0 }, piece(&mut second)];
    equal("writev", call(WRITEV, [*writer, list.as_ptr() as u64, 3]), Ok(8));
    let (mut first, mut second) = ([0; 6], [0; 6]);
    let list = [piece(&mut first), piece(&mut second)];
    equal("readv", call(READV, [*reader, list.as_ptr() as u64, 2]), Ok(8));
    equal("in order", (&first, &second[..2]), (b"abcdef", b"gh".as_slice()));
    equal("nothing left", call(READV, [*reader, list.as_ptr() as u64, 2]), Err(EAGAIN));
    equal("no pieces", call(READV, [*reader, list.as_ptr() as u64, 0]), Ok(0));
    equal("too many", call(READV, [*reader, list.as_ptr() as u64, 1025]), Err(EINVAL));
}

fn bad_memory() {
    let [_reader, writer] = pipe(O_NONBLOCK);
    let mut byte = [0];
    for at in [NOWHERE, KERNEL] {
        equal(("bytes at", at), call(WRITE, [*writer, at, 1]), Err(EFAULT));
    }
    let [reader, writer] = pipe(O_NONBLOCK);
    equal("bytes", writer.write(b"kept"), Ok(4));
    for at in [NOWHERE, KERNEL] {
        equal(("a buffer at", at), call(READ, [*reader, at, 4]), Err(EFAULT));
    }
    let two = map(2 * PAGE, RW).expect("two pages");
    equal("one of them is closed", call(MPROTECT, [two + PAGE, PAGE, PROT_NONE]), Ok(0));
    equal("not all of a page's bytes", call(READ, [*reader, two + PAGE - 2, 4]), Err(EFAULT));
    equal("nothing was lost", waiting(*reader), Ok(4));
    equal("a byte", reader.read(&mut byte), Ok(1));
    equal("the first one", byte, *b"k");
    equal("what can be stored", call(READ, [*reader, two + PAGE - 3, 3]), Ok(3));
    equal("a page that can be read in part", call(WRITE, [*writer, two + PAGE - 100, 200]), Err(EFAULT));
    drop([reader, writer]);
    let [reader, writer] = pipe(O_NONBLOCK);
    let three = map(4 * PAGE, RW).expect("four pages");
    equal("the last of them is closed", call(MPROTECT, [three + 3 * PAGE, PAGE, PROT_NONE]), Ok(0));
    equal("whole pages before a bad one", call(WRITE, [*writer, three + 100, 3 * PAGE]), Ok(2 * PAGE));
    equal("are there", waiting(*reader), Ok(2 * PAGE as u32));
    equal("a bad page behind a good one", call(READ, [*reader, three + 2 * PAGE, 2 * PAGE]), Ok(PAGE));
    equal("is still there", waiting(*reader), Ok(PAGE as u32));
    drop([reader, writer]);
}

fn what_a_pipe_is_not() {
    let [reader, writer] = pipe(0);
    let event = counter(0, 0);
    let mut byte = [0];
    let at = byte.as_mut_ptr() as u64;
    for (file, seeks, sought) in
        [(*reader, ESPIPE, Err(ESPIPE)), (*writer, ESPIPE, Err(ESPIPE)), (*event, ESPIPE, Ok(0))]
    {
        for whence in [SEEK_SET, SEEK_CUR] {
            equal(("lseek", file), call(LSEEK, [file, 8, whence.into()]), sought);
        }
        equal("lseek, of no kind", call(LSEEK, [file, 0, 99]), Err(EINVAL));
        equal(("pread", file), call(PREAD64, [file, at, 1, 0]), Err(seeks));
        equal(("pwrite", file), call(PWRITE64, [file, at, 1, 0]), Err(seeks));
        let error = if file == *writer { EACCES } else { ENODEV };
        equal(("mmap", file), call(MMAP, [0, PAGE, PROT_READ, MAP_SHARED, file, 0]), Err(error));
        equal(("ftruncate", file), call(FTRUNCATE, [file, 0]), Err(EINVAL));
        equal(("fsync", file), call(FSYNC, [file]), Err(EINVAL));
        equal(("an unknown ioctl", file), call(IOCTL, [file, 0x5401, at]), Err(ENOTTY));
    }
    equal("fallocate of the end that reads", call(FALLOCATE, [*reader, 0, 0, 1]), Err(EBADF));
    equal("fallocate", call(FALLOCATE, [*writer, 0, 0, 1]), Err(ESPIPE));
    equal("fallocate of a counter", call(FALLOCATE, [*event, 0, 0, 1]), Err(ENODEV));
    equal("FIONREAD of a counter", waiting(*event), Err(ENOTTY));
    let stat = |file| {
        let mut stat = Stat::default();
        equal("fstat", call(FSTAT, [file, &raw mut stat as u64]), Ok(0));
        stat
    };
    let [read, write, counted] = [*reader, *writer, *event].map(stat);
    equal("a pipe", read.st_mode, S_IFIFO | 0o600);
    equal("both ends are one", (read.st_ino, read.st_dev), (write.st_ino, write.st_dev));
    equal("its size", (read.st_size, read.st_nlink, read.st_blksize, read.st_blocks), (0, 1, 4096, 0));
    equal("a counter is of no kind", (counted.st_mode & S_IFMT, counted.st_mode), (0, 0o600));
    equal("its size", (counted.st_size, counted.st_nlink, counted.st_blksize), (0, 1, 4096));
    let [other, end] = pipe(0);
    holds("each has its number", stat(*other).st_ino != read.st_ino && stat(*end).st_ino == stat(*other).st_ino);
}

fn sizes_of_pipes() {
    let [reader, writer] = pipe(O_NONBLOCK);
    equal("the size", reader.fcntl(F_GETPIPE_SZ, 0), Ok(64 << 10));
    equal("less", writer.fcntl(F_SETPIPE_SZ, 5000), Ok(8192));
    equal("the size", reader.fcntl(F_GETPIPE_SZ, 0), Ok(8192));
    equal("two pages", writer.write(&BYTES), Ok(8192));
    equal("it has more", writer.fcntl(F_SETPIPE_SZ, 1), Err(EBUSY));
    equal("as before", writer.fcntl(F_SETPIPE_SZ, 64 << 10), Ok(64 << 10));
    equal("14 pages more", writer.write(&BYTES), Ok(14 << 12));
    equal("no size", writer.fcntl(F_SETPIPE_SZ, (1 << 31) + 1), Err(EINVAL));
    let event = counter(0, 0);
    equal("no pipe", event.fcntl(F_GETPIPE_SZ, 0), Err(EBADF));
    equal("no pipe", event.fcntl(F_SETPIPE_SZ, 4096), Err(EBADF));
    drop([reader, writer]);
}

/// Lets a thread come to where it waits.
fn pause() {
    equal("slept", time::sleep(30 * MILLISECOND), Ok(()));
}

/// Returns what `waits` returns, while another thread does `then` after a while.
fn waiting_for<R>(then: impl FnOnce() + Send, waits: impl FnOnce() -> R) -> R {
    let soon = || {
        pause();
        then();
    };
    beside(soon, waits).1
}

fn blocked_readers_and_writers() {
    let [reader, writer] = pipe(0);
    let reads = || {
        let mut bytes = [0; 8];
        equal("a reader waits for bytes", reader.read(&mut bytes), Ok(5));
        equal("and has them", &bytes[..5], b"bytes");
        equal("a reader waits for the end", reader.read(&mut bytes), Ok(0));
    };
    beside(reads, || {
        pause();
        equal("bytes", writer.write(b"bytes"), Ok(5));
        pause();
        drop(writer);
    });

    let [reader, writer] = pipe(0);
    equal("it is full", writer.write(&BYTES[..64 << 10]), Ok(64 << 10));
    let writes = || {
        equal("a writer waits for room", writer.write(b"more"), Ok(4));
        equal("and again", writer.write(&BYTES[..8192]), Err(EPIPE));
    };
    beside(writes, || {
        pause();
        equal("a page is read", reader.read(&mut [0; 4096]), Ok(4096));
        until(|| waiting(*reader) == Ok((60 << 10) + 4));
        drop(reader);
    });
    equal("SIGPIPE", got(), once(SIGPIPE));
}

/// A write of more than there is room for, while others read.
fn large_writes() {
    const BYTES_IN_ALL: usize = 1 << 20;
    let [reader, writer] = pipe(0);
    let memory = map(BYTES_IN_ALL as u64, RW).expect("memory");
    for at in 0..BYTES_IN_ALL / 8 {
        // SAFETY: the program's own.
        unsafe { ((memory as usize + 8 * at) as *mut u64).write(at as u64) };
    }
    let reads = || {
        let (mut next, mut bytes, mut have, mut in_order) = (0_u64, [0; 5000], 0, true);
        while let Ok(count @ 1..) = reader.read(&mut bytes[have..]) {
            have += count as usize;
            let whole = have / 8 * 8;
            for word in bytes[..whole].as_chunks::<8>().0 {
                in_order &= u64::from_le_bytes(*word) == next;
                next += 1;
            }
            bytes.copy_within(whole..have, 0);
            have -= whole;
        }
        equal("all came", next, BYTES_IN_ALL as u64 / 8);
        holds("in order", in_order);
    };
    beside(reads, || {
        equal("all went", call(WRITE, [*writer, memory, BYTES_IN_ALL as u64]), Ok(BYTES_IN_ALL as u64));
        drop(writer);
    });
}

/// Up to `PIPE_BUF` bytes of one write stay together.
fn whole_writes() {
    const WRITES: u64 = 200;
    const LENGTH: usize = 1000;
    let [reader, writer] = pipe(0);
    let write_often = |number: usize| {
        let bytes = [number as u8 + 1; LENGTH];
        (0..WRITES).for_each(|_| equal("a write", writer.write(&bytes), Ok(LENGTH as u64)));
    };
    let (mut counts, mut torn) = ([0; 4], 0);
    let mut bytes = [0; LENGTH];
    let reads = || {
        for _ in 0..3 * WRITES {
            let mut have = 0;
            while have < LENGTH {
                have += reader.read(&mut bytes[have..]).expect("bytes") as usize;
            }
            counts[usize::from(bytes[0]) % 4] += 1;
            torn += u32::from(bytes.iter().any(|&byte| byte != bytes[0]));
        }
    };
    beside(|| all_at_once(3, write_often), reads);
    equal("each writer's", counts, [0, WRITES, WRITES, WRITES]);
    equal("none was torn", torn, 0);
    holds("they are short enough", LENGTH <= PIPE_BUF);
}

/// Sends this process's first thread a signal; the thread blocks it, so that it may come before it waits.
fn send(signal: u32) {
    equal("sent", process::tgkill(process::id(), process::id(), signal), Ok(()));
}

/// A call that signals of this kind interrupt.
fn interrupts(what: &str, signal: u32, call: impl FnOnce() -> Result<u64, Errno>, linux: Result<u64, Errno>) {
    equal(what, while_signalled(signal, 5 * MILLISECOND, call), linux);
    holds("a signal came", got() != 0);
}

fn interrupted() {
    let [reader, writer] = pipe(0);
    let event = counter(0, 0);
    let mut bytes = [0; 8];
    handles(SIGUSR1, 0);
    handles(SIGUSR2, SA_RESTART);
    interrupts("a read ends", SIGUSR1, || reader.read(&mut bytes), Err(EINTR));
    interrupts("a read of a counter ends", SIGUSR1, || event.read(&mut bytes), Err(EINTR));
    equal("full", writer.write(&BYTES[..64 << 10]), Ok(64 << 10));
    interrupts("a write ends", SIGUSR1, || writer.write(b"x"), Err(EINTR));
    let mut page = [0; 4096];
    equal("a page", reader.read(&mut page), Ok(4096));
    interrupts("a write ends behind a page", SIGUSR1, || writer.write(&BYTES[..8192]), Ok(4096));
    interrupts("ppoll ends", SIGUSR1, || ppoll(&mut [], None, None), Err(EINTR));
    interrupts("ppoll ends also with SA_RESTART", SIGUSR2, || ppoll(&mut [], None, None), Err(EINTR));
    // A read goes on behind a handler with SA_RESTART.
    let [reader2, writer2] = pipe(0);
    let signals = || {
        send(SIGUSR2);
        pause();
        equal("written", writer2.write(b"late"), Ok(4));
    };
    equal("a read goes on", waiting_for(signals, || reader2.read(&mut bytes)), Ok(4));
    equal("it came", got(), once(SIGUSR2));
}

fn counters() {
    for flags in [2, 4, 0x400, 0x8000_0000] {
        equal(("a flag that is none", flags), call(EVENTFD2, [0, flags]), Err(EINVAL));
    }
    let event = counter(3, EFD_NONBLOCK | EFD_CLOEXEC);
    equal("F_GETFL", event.fcntl(F_GETFL, 0), Ok((O_RDWR | O_NONBLOCK).into()));
    equal("F_GETFD", event.fcntl(F_GETFD, 0), Ok(FD_CLOEXEC.into()));
    equal("both", state(*event, ALL), POLLIN | POLLOUT);
    equal("its count", take(&event), Ok(3));
    equal("room", state(*event, ALL), POLLOUT);
    equal("none left", take(&event), Err(EAGAIN));
    equal("1", add(&event, 1), Ok(8));
    equal("and 2", add(&event, 2), Ok(8));
    equal("are 3", take(&event), Ok(3));
    equal("0 changes nothing", add(&event, 0), Ok(8));
    equal("none", take(&event), Err(EAGAIN));
    equal("too much at all", add(&event, u64::MAX), Err(EINVAL));
    equal("the most", add(&event, u64::MAX - 1), Ok(8));
    equal("no room", state(*event, ALL), POLLIN);
    equal("no more", add(&event, 1), Err(EAGAIN));
    equal("but nothing", add(&event, 0), Ok(8));
    equal("the most", take(&event), Ok(u64::MAX - 1));
    let mut bytes = [0; 16];
    equal("too short", event.read(&mut bytes[..7]), Err(EINVAL));
    equal("too short", event.read(&mut []), Err(EINVAL));
    equal("too short", event.write(&bytes[..7]), Err(EINVAL));
    equal("too short", event.write(&[]), Err(EINVAL));
    equal("more than a count", event.write(&[1, 0, 0, 0, 0, 0, 0, 0, 9, 9]), Err(EINVAL));
    equal("1", add(&event, 1), Ok(8));
    equal("room for more than a count", event.read(&mut bytes), Ok(8));
    equal("its count", bytes[..8].as_ref(), 1_u64.to_le_bytes().as_slice());
    equal("from nowhere", call(WRITE, [*event, NOWHERE, 8]), Err(EFAULT));
    equal("1", add(&event, 1), Ok(8));
    equal("to nowhere", call(READ, [*event, NOWHERE, 8]), Err(EFAULT));
    equal("it is lost", take(&event), Err(EAGAIN));
    let event = counter(2, EFD_SEMAPHORE | EFD_NONBLOCK);
    equal("1", take(&event), Ok(1));
    equal("and 1", take(&event), Ok(1));
    equal("none", take(&event), Err(EAGAIN));
    let on = 0_u32;
    equal("FIONBIO", call(IOCTL, [*event, FIONBIO.into(), &raw const on as u64]), Ok(0));
    equal("F_GETFL", event.fcntl(F_GETFL, 0), Ok(O_RDWR.into()));
    equal("O_DIRECT", event.fcntl(F_SETFL, O_DIRECT), Err(EINVAL));
}

fn counters_wait() {
    let event = counter(0, 0);
    let adds = || equal("added", add(&event, 5), Ok(8));
    equal("a reader waits", waiting_for(adds, || take(&event)), Ok(5));
    equal("full", add(&event, u64::MAX - 1), Ok(8));
    let takes = || equal("taken", take(&event), Ok(u64::MAX - 1));
    equal("a writer waits", waiting_for(takes, || add(&event, 9)), Ok(8));
    equal("what it added", take(&event), Ok(9));
}

fn pieces_of_counters() {
    let event = counter(0, EFD_NONBLOCK);
    let (mut one, mut two, mut long) = (1_u64.to_le_bytes(), 2_u64.to_le_bytes(), [4, 0, 0, 0, 0, 0, 0, 0, 0]);
    let list = [piece(&mut one), piece(&mut two), piece(&mut long), piece(&mut one)];
    equal("each piece is a write", call(WRITEV, [*event, list.as_ptr() as u64, 4]), Ok(16));
    equal("up to a long one", take(&event), Ok(3));
    let list = [piece(&mut one), piece(&mut long[..4]), piece(&mut one)];
    equal("up to a short one", call(WRITEV, [*event, list.as_ptr() as u64, 3]), Ok(8));
    equal("which counts", take(&event), Ok(1));
    equal("a short one", call(WRITEV, [*event, list[1..].as_ptr() as u64, 2]), Err(EINVAL));
    equal("a count", add(&event, 0x0102_0304_0506_0708), Ok(8));
    let (mut first, mut second) = ([0; 3], [0; 5]);
    let list = [piece(&mut first), piece(&mut second)];
    equal("a read of pieces", call(READV, [*event, list.as_ptr() as u64, 2]), Ok(8));
    equal("in order", (first, second), ([8, 7, 6], [5, 4, 3, 2, 1]));
    equal("a short list", call(READV, [*event, list.as_ptr() as u64, 1]), Err(EINVAL));
}

fn polls_of_all_kinds() {
    let ready = POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM;
    let memory = File::memory(c"memory", 0).expect("a memory file");
    equal("a memory file", state(*memory, ALL), ready);
    equal("what is asked for", state(*memory, POLLOUT), POLLOUT);
    equal("nothing is", state(*memory, 0), 0);
    let root = File::open(c"/", O_RDONLY).expect("the root");
    equal("a directory", state(*root, ALL), ready);
    let path = File::open(c"/", O_PATH).expect("a path");
    equal("a path alone", state(*path, ALL), POLLNVAL);
    equal("a descriptor that is none", state(999, ALL), POLLNVAL);
    equal("a negative one", state(-1_i64 as u64, ALL), 0);
    equal("a very negative one", state(i32::MIN as u64, ALL), 0);
    equal("output", state(1, POLLOUT | POLLWRNORM), POLLOUT | POLLWRNORM);
    let [reader, writer] = pipe(0);
    let mut files = [*reader, *writer, 999, *memory].map(|file| PollFd { fd: file as i32, events: POLLIN, revents: 1 });
    equal("two of four", ppoll(&mut files, None, None), Ok(2));
    equal("which ones", files.map(|file| file.revents), [0, 0, POLLNVAL, POLLIN]);
    equal("nothing else was stored", files.map(|file| file.events), [POLLIN; 4]);
}

fn polls_refuse() {
    let none = Timespec::from_nanoseconds(0);
    let limit = &raw const none as u64;
    let poll = |at: u64, count: u64, limit: u64, mask: u64, size: u64| call(PPOLL, [at, count, limit, mask, size]);
    let mut file = PollFd { fd: 1, events: POLLOUT, revents: 0 };
    let at = &raw mut file as u64;
    equal("no files", poll(0, 0, limit, 0, 0), Ok(0));
    equal("no files, anywhere", poll(NOWHERE, 0, limit, 0, 0), Ok(0));
    equal("files from nowhere", poll(NOWHERE, 1, limit, 0, 0), Err(EFAULT));
    equal("files of the kernel", poll(KERNEL, 1, limit, 0, 0), Err(EFAULT));
    equal("a count has 32 bits", poll(at, 1 << 32, limit, 0, 0), Ok(0));
    apart(|| {
        equal("a limit", process::limit(RLIMIT_NOFILE, 64, 4096).map(drop), Ok(()));
        let mut files = [PollFd { fd: -1, events: 0, revents: 0 }; 65];
        let no_time = || Timespec::from_nanoseconds(0);
        equal("more than there can be", ppoll(&mut files, Some(&mut no_time()), None), Err(EINVAL));
        equal("as many as there can be", ppoll(&mut files[..64], Some(&mut no_time()), None), Ok(0));
        equal("before they are read", call(PPOLL, [NOWHERE, 65, 0, 0, 0]), Err(EINVAL));
    });
    equal("a limit from nowhere", poll(NOWHERE, 1, NOWHERE, 0, 0), Err(EFAULT));
    for time in [Timespec { seconds: -1, nanoseconds: 0 }, Timespec { seconds: 0, nanoseconds: 1_000_000_000 }] {
        equal("a limit that is no time", poll(NOWHERE, 1, &raw const time as u64, 0, 0), Err(EINVAL));
    }
    let set = 0_u64;
    let mask = &raw const set as u64;
    equal("a set of another size", poll(NOWHERE, 1, limit, mask, 4), Err(EINVAL));
    equal("a set from nowhere", poll(NOWHERE, 1, limit, NOWHERE, 8), Err(EFAULT));
    equal("the size first", poll(NOWHERE, 1, limit, NOWHERE, 9), Err(EINVAL));
    equal("without a set any size", poll(at, 1, limit, 0, 99), Ok(1));
    let two = map(2 * PAGE, RW).expect("two pages");
    // SAFETY: the program's own, without references to it.
    unsafe { (two as *mut PollFd).write(PollFd { fd: 1, events: POLLOUT, revents: 0 }) };
    equal("they cannot be written", call(MPROTECT, [two, PAGE, PROT_READ]), Ok(0));
    equal("a result that cannot be stored", poll(two, 1, limit, 0, 0), Err(EFAULT));
}

fn polls_wait() {
    let [reader, writer] = pipe(0);
    let event = counter(0, 0);
    let entries = || [&reader, &event].map(|file| polled(file, POLLIN));
    for (written, ready, expected) in [(&writer, &reader, [POLLIN, 0]), (&event, &event, [0, POLLIN])] {
        let mut files = entries();
        let wakes = || equal("written", written.write(&1_u64.to_le_bytes()), Ok(8));
        equal("one of two", waiting_for(wakes, || ppoll(&mut files, None, None)), Ok(1));
        equal("which one", files.map(|file| file.revents), expected);
        equal("taken", ready.read(&mut [0; 8]), Ok(8));
    }
    // A change that is not waited for ends nothing.
    let mut files = entries();
    files[0].events = 0;
    let wakes = || {
        equal("written", writer.write(b"x"), Ok(1));
        pause();
        equal("added", add(&event, 1), Ok(8));
    };
    equal("the other", waiting_for(wakes, || ppoll(&mut files, None, None)), Ok(1));
    equal("which one", files.map(|file| file.revents), [0, POLLIN]);
    equal("taken", take(&event), Ok(1));
    // All entries have the same file.
    let adds = || equal("added", add(&event, 1), Ok(8));
    let mut files = [polled(&event, POLLIN); 3];
    equal("all of them", waiting_for(adds, || ppoll(&mut files, None, None)), Ok(3));
}

fn pending() -> u64 {
    let mut set = 0_u64;
    equal("rt_sigpending", call(RT_SIGPENDING, [&raw mut set as u64, 8]), Ok(0));
    set
}

static SEEN_MASK: AtomicU64 = AtomicU64::new(0);
static FRAME_MASK: AtomicU64 = AtomicU64::new(0);

extern "C" fn look_at_masks(_: u32, _: &SigInfo, context: &mut UContext) {
    SEEN_MASK.store(mask(SIG_BLOCK, 0).unwrap_or(u64::MAX), Ordering::Relaxed);
    FRAME_MASK.store(context.mask, Ordering::Relaxed);
}

fn masks() {
    let (one, two) = (set_of(SIGUSR1), set_of(SIGUSR2));
    // SAFETY: the handler stores words.
    holds("a handler", unsafe { handle(SIGUSR1, look_at_masks, 0, 0) }.is_ok());
    equal("blocked", mask(SIG_SETMASK, one), Ok(0));
    send(SIGUSR1);
    equal("it waits", pending(), one);
    equal("no files, no signal", ppoll(&mut [], Some(&mut Timespec::from_nanoseconds(MILLISECOND)), None), Ok(0));
    equal("it waits", pending(), one);
    let mut files = [PollFd { fd: 1, events: POLLOUT, revents: 0 }];
    let answer = ppoll(&mut files, Some(&mut Timespec::from_nanoseconds(SECOND)), Some(&0));
    equal("a file that is ready comes first", answer, Ok(1));
    equal("and the signal stays", pending(), one);
    equal("the mask is as before", mask(SIG_BLOCK, 0), Ok(one));
    equal("a signal that the mask lets come", ppoll(&mut [], None, Some(&two)), Err(EINTR));
    equal("came", pending(), 0);
    equal("with the call's mask and its own", SEEN_MASK.load(Ordering::Relaxed), one | two);
    equal("to return to the program's", FRAME_MASK.load(Ordering::Relaxed), one);
    equal("which it has", mask(SIG_BLOCK, 0), Ok(one));
    let mut no_time = Timespec::from_nanoseconds(0);
    send(SIGUSR1);
    equal("also without time", ppoll(&mut [], Some(&mut no_time), Some(&0)), Err(EINTR));
    equal("came", pending(), 0);
    let sends_soon = || send(SIGUSR1);
    equal("while it waits", waiting_for(sends_soon, || ppoll(&mut [], None, Some(&0))), Err(EINTR));
    equal("the mask is as before", mask(SIG_SETMASK, 0), Ok(one));
    // A signal that is blocked during the call comes after it.
    handles(SIGUSR1, 0);
    equal("nothing came", got(), 0);
    let mut limit = Timespec::from_nanoseconds(80 * MILLISECOND);
    let waited = waiting_for(sends_soon, || ppoll(&mut [], Some(&mut limit), Some(&one)));
    equal("it waits to the end", waited, Ok(0));
    equal("and then it comes", got(), once(SIGUSR1));
    // A signal that is ignored ends nothing, and SIGKILL cannot be blocked.
    let child = process::spawn(|| u8::from(ppoll(&mut [], None, Some(&u64::MAX)).is_ok()) + 1);
    pause();
    equal("killed", process::kill(child as i32, 9), Ok(()));
    equal("how it ended", process::wait(child), 9);
}

fn times() {
    let event = counter(0, 0);
    let mut files = [PollFd { fd: *event as i32, events: POLLIN, revents: 7 }];
    let before = time::now();
    let mut limit = Timespec::from_nanoseconds(50 * MILLISECOND);
    equal("a limit", ppoll(&mut files, Some(&mut limit), None), Ok(0));
    holds("passes", time::now() - before >= 50 * MILLISECOND);
    equal("no time is left", limit.to_nanoseconds(), Some(0));
    equal("nothing was found", files[0].revents, 0);
    let mut limit = Timespec::from_nanoseconds(10 * SECOND);
    files[0].events = POLLOUT;
    let before = time::now();
    equal("ready", ppoll(&mut files, Some(&mut limit), None), Ok(1));
    let left = limit.to_nanoseconds().unwrap_or(0);
    holds("all but what has passed", left < 10 * SECOND && left >= 10 * SECOND - (time::now() - before));
    handles(SIGUSR1, 0);
    files[0].events = POLLIN;
    // Where this thread is late, so that the call waits for less than half of the time, nothing is shown.
    let subtracts = with_longer_times(20 * MILLISECOND, |time| {
        const LONG: u64 = 1000 * SECOND;
        let mut limit = Timespec::from_nanoseconds(LONG);
        let before = time::now();
        let answer = while_signalled(SIGUSR1, time, || ppoll(&mut files, Some(&mut limit), None));
        equal("a signal", answer, Err(EINTR));
        let left = limit.to_nanoseconds().unwrap_or(0);
        holds("no more than has passed is subtracted", left >= LONG - (time::now() - before));
        left <= LONG - time / 2
    });
    holds("what has passed is subtracted", subtracts);
    holds("a signal came", got() != 0);
    let mut limit = Timespec { seconds: i64::MAX, nanoseconds: 0 };
    files[0].events = POLLOUT;
    equal("for ever", ppoll(&mut files, Some(&mut limit), None), Ok(1));
    equal("no other came", got(), 0);
}

/// Many at once: a row of counters, each of which is ready in turn.
fn many() {
    const COUNT: usize = 300;
    let events = [(); COUNT].map(|()| counter(0, EFD_NONBLOCK));
    let mut files = events.each_ref().map(|event| polled(event, POLLIN));
    for number in [0, 1, 63, 64, 65, 299] {
        let adds = || {
            equal("slept", time::sleep(5 * MILLISECOND), Ok(()));
            equal("added", add(&events[number], 1), Ok(8));
        };
        equal("one", beside(adds, || ppoll(&mut files, None, None)).1, Ok(1));
        let found = files.iter().position(|file| file.revents != 0);
        equal("which one", found, Some(number));
        equal("taken", take(&events[number]), Ok(1));
    }
    drop(events);
    // Many that poll one.
    let event = counter(0, 0);
    let poll = |_| equal("woken", ppoll(&mut [polled(&event, POLLIN)], None, None), Ok(1));
    let adds = || equal("added", add(&event, 1), Ok(8));
    waiting_for(adds, || all_at_once(20, poll));
}

/// A descriptor that is closed while it is polled.
fn closed_meanwhile() {
    let [reader, writer] = pipe(0);
    let mut files = [polled(&reader, POLLIN)];
    equal("the other end", waiting_for(|| drop(writer), || ppoll(&mut files, None, None)), Ok(1));
    equal("hangs up", files[0].revents, POLLHUP);
    equal("this process is there", call(GETPID, []), Ok(process::id().into()));
}
