//! Reads and writes of lists at positions and with flags, and bytes that go from one file to another.
//!
//! Each answer is Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls that the program makes on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

/// Where a call with flags reads and writes where the file is on.
const OWN_POSITION: u64 = u64::MAX;

fn run(_start: Start) -> u8 {
    let _ = call(MKDIRAT, [HERE, c"/tmp".as_ptr() as u64, 0o777]);
    parts! { ()
        lists_at_positions flags_of_reads_and_writes appends_by_flags pipes_with_flags sends_to_files
        sources_and_destinations sends_to_pipes copies_of_ranges limits_of_sizes
    }
    status("transfers")
}

/// A file at a path, emptied.
fn made(path: &CStr) -> File {
    let file = call(OPENAT, [HERE, path.as_ptr() as u64, (O_RDWR | O_CREAT | O_TRUNC).into(), 0o666]);
    File(file.expect("a file"))
}

fn removed(path: &CStr) {
    equal("removed", call(UNLINKAT, [HERE, path.as_ptr() as u64, 0]), Ok(0));
}

fn position(file: &File) -> Result<u64, Errno> {
    call(LSEEK, [file.0, 0, SEEK_CUR.into()])
}

fn to_position(file: &File, to: u64) {
    equal("moved", call(LSEEK, [file.0, to, SEEK_SET.into()]), Ok(to));
}

fn size(file: &File) -> u64 {
    let mut stat = Stat::default();
    equal("fstat", call(FSTAT, [file.0, &raw mut stat as u64]), Ok(0));
    stat.st_size as u64
}

/// A call with a list of one piece of eight bytes.
fn piece(number: usize, file: u64, at: u64, flags: u32) -> Result<u64, Errno> {
    let mut bytes = 1_u64.to_le_bytes();
    let list = [IoVec { base: bytes.as_mut_ptr() as u64, length: 8 }];
    call(number, [file, list.as_ptr() as u64, 1, at, 0, flags.into()])
}

fn lists_at_positions() {
    let file = File::memory(c"lists", 0).expect("a file");
    let mut text = *b"one, two";
    let at = text.as_mut_ptr() as u64;
    let list = [IoVec { base: at, length: 3 }, IoVec { base: NOWHERE, length: 0 }, IoVec { base: at + 3, length: 5 }];
    let list_call = |number, count: u64, at: u64| call(number, [file.0, list.as_ptr() as u64, count, at, 77]);
    equal("written", list_call(PWRITEV, 3, 2), Ok(8));
    equal("the position stays", (position(&file), size(&file)), (Ok(0), 10));
    equal("read", (list_call(PREADV, 3, 3), &text), (Ok(7), b"ne, twoo"));
    equal("at the end", list_call(PREADV, 3, 10), Ok(0));
    equal("no list", (list_call(PREADV, 0, 0), list_call(PWRITEV, 0, 0)), (Ok(0), Ok(0)));
    equal("too many", list_call(PREADV, 1025, 0), Err(EINVAL));
    for number in [PREADV, PWRITEV, PREADV2, PWRITEV2] {
        equal(("before the first byte", number), piece(number, file.0, u64::MAX - 1, 0), Err(EINVAL));
        equal(("that, and no file", number), piece(number, 77, u64::MAX - 1, 0), Err(EINVAL));
        equal(("no file", number), piece(number, 77, 0, 0), Err(EBADF));
        equal(("behind the last byte", number), piece(number, file.0, u64::MAX >> 1, 0), Err(EINVAL));
    }
    equal("no position", piece(PREADV, file.0, OWN_POSITION, 0), Err(EINVAL));
    equal("the file's", (piece(PREADV2, file.0, OWN_POSITION, 0), position(&file)), (Ok(8), Ok(8)));
    equal("written there", (piece(PWRITEV2, file.0, OWN_POSITION, 0), position(&file)), (Ok(8), Ok(16)));
    let [reader, writer] = File::pipe(0).expect("a pipe");
    equal("a pipe", piece(PREADV, reader.0, 0, 0), Err(ESPIPE));
    equal("a pipe, to be written", piece(PWRITEV2, writer.0, 0, 0), Err(ESPIPE));
    let read_only = File::open(c"/proc/self/maps", O_RDONLY).expect("a file");
    equal("not to be written", piece(PWRITEV2, read_only.0, OWN_POSITION, 0), Err(EBADF));
}

/// The flags that a read, and a write, of a file answers with ENOTSUP: a bit for each of the first ten.
fn refused(reader: &File, writer: &File) -> [u32; 2] {
    let of = |number, file: &File| {
        (0..10)
            .fold(0, |all, bit| all | u32::from(piece(number, file.0, OWN_POSITION, 1 << bit) == Err(ENOTSUP)) << bit)
    };
    [of(PREADV2, reader), of(PWRITEV2, writer)]
}

fn flags_of_reads_and_writes() {
    const UNKNOWN: u32 = 0x2c0;
    const ALL_BUT_PRIORITY: u32 = 0x3fe;
    let open = |path: &CStr, flags| File::open(path, flags).expect("a file");
    let both = |file: &File| refused(file, file);
    let file = made(c"/tmp/transfers");
    equal("a file", both(&file), [UNKNOWN | RWF_NOWAIT; 2]);
    equal("a memory file", both(&File::memory(c"flags", 0).expect("a file")), [UNKNOWN | RWF_NOWAIT; 2]);
    for path in [c"/dev/zero", c"/dev/null"] {
        equal(path, both(&open(path, O_RDWR)), [UNKNOWN; 2]);
    }
    let [reader, writer] = File::pipe(O_NONBLOCK).expect("a pipe");
    equal("a pipe", refused(&reader, &writer), [UNKNOWN; 2]);
    let counter = File::counter(0, EFD_NONBLOCK).expect("a counter");
    equal("a counter", both(&counter), [UNKNOWN, ALL_BUT_PRIORITY]);
    let lines = open(c"/proc/self/maps", O_RDONLY);
    equal("lines of /proc", refused(&lines, &file), [ALL_BUT_PRIORITY, UNKNOWN | RWF_NOWAIT]);
    let directory = open(c"/tmp", O_RDONLY);
    equal("a directory", refused(&directory, &file), [ALL_BUT_PRIORITY, UNKNOWN | RWF_NOWAIT]);
    equal("a directory is not read", piece(PREADV2, directory.0, 0, RWF_HIPRI), Err(EISDIR));
    let excluded = RWF_APPEND | RWF_NOAPPEND;
    equal("at the end and not", piece(PWRITEV2, file.0, 0, excluded), Err(EINVAL));
    equal("that, to be read", piece(PREADV2, file.0, 0, excluded), Err(EINVAL));
    equal("of nothing", call(PREADV2, [file.0, NOWHERE, 0, 0, 0, 1 << 30]), Ok(0));
    removed(c"/tmp/transfers");
}

fn appends_by_flags() {
    let file = made(c"/tmp/transfers");
    equal("a size", call(FTRUNCATE, [file.0, 100]), Ok(0));
    to_position(&file, 5);
    equal("at the end", piece(PWRITEV2, file.0, 0, RWF_APPEND), Ok(8));
    equal("the position stays", (position(&file), size(&file)), (Ok(5), 108));
    equal("at the end, and there from then on", piece(PWRITEV2, file.0, OWN_POSITION, RWF_APPEND), Ok(8));
    equal("the position", (position(&file), size(&file)), (Ok(116), 116));
    let appended = File::open(c"/tmp/transfers", O_RDWR | O_APPEND).expect("a file");
    equal("not at the end", piece(PWRITEV2, appended.0, 3, RWF_NOAPPEND), Ok(8));
    equal("the size stays", (position(&appended), size(&appended)), (Ok(0), 116));
    to_position(&appended, 5);
    equal("not at the end, at its own", piece(PWRITEV2, appended.0, OWN_POSITION, RWF_NOAPPEND), Ok(8));
    equal("the size stays", (position(&appended), size(&appended)), (Ok(13), 116));
    equal("at the end", (piece(PWRITEV, appended.0, 0, 0), size(&appended)), (Ok(8), 124));
    removed(c"/tmp/transfers");
}

fn pipes_with_flags() {
    let [reader, writer] = File::pipe(0).expect("a pipe");
    equal("nothing is there", piece(PREADV2, reader.0, OWN_POSITION, RWF_NOWAIT), Err(EAGAIN));
    let full = (0..17).map(|_| writer.write(&[0; PAGE as usize])).take_while(Result::is_ok);
    equal("filled", full.take(16).count(), 16);
    equal("no room", piece(PWRITEV2, writer.0, OWN_POSITION, RWF_NOWAIT), Err(EAGAIN));
    drop(reader);
    equal("no reader, and no signal", piece(PWRITEV2, writer.0, OWN_POSITION, RWF_NOSIGNAL), Err(EPIPE));
    apart(|| {
        set_without_handler(SIGPIPE, SIG_IGN);
        equal("no reader", piece(PWRITEV2, writer.0, OWN_POSITION, 0), Err(EPIPE));
    });
}

/// A file's descriptor, and where a call that has a position begins in it.
type Place<'f> = (&'f File, Option<u64>);

fn address(position: &mut Option<u64>) -> u64 {
    position.as_mut().map_or(0, |position| &raw mut *position as u64)
}

/// Sends bytes to `to`; the answer, and the position that the call had, after it.
fn send(to: &File, (from, mut at): Place<'_>, count: u64) -> (Result<u64, Errno>, Option<u64>) {
    let answer = call(SENDFILE, [to.0, from.0, address(&mut at), count]);
    (answer, at)
}

/// A memory file of numbered bytes.
fn numbered(count: usize) -> File {
    let file = File::memory(c"numbered", MFD_ALLOW_SEALING).expect("a file");
    let bytes: [u8; 16] = core::array::from_fn(|index| index as u8);
    for done in (0..count).step_by(16) {
        equal("written", file.write_at(&bytes[..(count - done).min(16)], done as u64).is_ok(), true);
    }
    file
}

fn sends_to_files() {
    let (from, to) = (numbered(1000), File::memory(c"to", 0).expect("a file"));
    equal("from where it is on", send(&to, (&from, None), 100), (Ok(100), None));
    equal("both have moved", (position(&from), position(&to)), (Ok(100), Ok(100)));
    equal("from a position", send(&to, (&from, Some(10)), 3000), (Ok(990), Some(1000)));
    equal("one has moved", (position(&from), position(&to)), (Ok(100), Ok(1090)));
    let bytes = [0, 99, 100, 105, 1089].map(|offset| to.byte(offset));
    equal("the bytes", bytes, [Some(0), Some(3), Some(10), Some(15), Some(7)]);
    equal("at the end", send(&to, (&from, Some(1000)), 10), (Ok(0), Some(1000)));
    equal("nothing", send(&to, (&from, Some(0)), 0), (Ok(0), Some(0)));
    equal("before the first byte", send(&to, (&from, Some(u64::MAX - 4)), 10), (Err(EINVAL), Some(u64::MAX - 4)));
    equal("behind the last one", send(&to, (&from, Some(u64::MAX >> 1)), 1).0, Err(EINVAL));
    equal("more than there can be", send(&to, (&from, Some(0)), u64::MAX).0, Err(EINVAL));
    equal("no position there", call(SENDFILE, [to.0, from.0, 16, 10]), Err(EFAULT));
    equal("that, and no files", call(SENDFILE, [77, 77, 16, 10]), Err(EFAULT));
    equal("no source", call(SENDFILE, [to.0, 77, 0, 10]), Err(EBADF));
    equal("no destination", call(SENDFILE, [77, from.0, 0, 10]), Err(EBADF));
    to_position(&from, 10);
    equal("to itself", send(&from, (&from, Some(500)), 20), (Ok(20), Some(520)));
    equal("as one write does", position(&from), Ok(30));
    equal("sealed", from.fcntl(F_ADD_SEALS, F_SEAL_WRITE), Ok(0));
    equal("to what is sealed", send(&from, (&to, Some(0)), 20), (Err(EPERM), Some(0)));
    let far = File::memory(c"far", 0).expect("a file");
    equal("long", far.resize((1 << 33) + 100), Ok(0));
    equal("behind 2 GiB", send(&to, (&far, Some(1 << 33)), 200), (Ok(100), Some((1 << 33) + 100)));
}

fn sources_and_destinations() {
    let open = |path: &CStr, flags| File::open(path, flags).expect("a file");
    let to = File::memory(c"to", 0).expect("a file");
    let [reader, writer] = File::pipe(0).expect("a pipe");
    let counter = File::counter(5, EFD_NONBLOCK).expect("a counter");
    equal("some bytes", writer.write(b"bytes"), Ok(5));
    for (from, own, given) in [
        (&open(c"/dev/zero", O_RDWR), Ok(100), (Ok(100), Some(10))),
        (&open(c"/dev/null", O_RDWR), Err(EINVAL), (Err(EINVAL), Some(10))),
        (&open(c"/proc/self/maps", O_RDONLY), Err(EINVAL), (Err(EINVAL), Some(10))),
        (&open(c"/tmp", O_RDONLY), Err(EINVAL), (Err(EINVAL), Some(10))),
        (&reader, Err(EINVAL), (Err(ESPIPE), Some(10))),
        (&counter, Err(EINVAL), (Err(ESPIPE), Some(10))),
        (&writer, Err(EBADF), (Err(EBADF), Some(10))),
    ] {
        equal(("from", from), (send(&to, (from, None), 100).0, send(&to, (from, Some(10)), 100)), (own, given));
    }
    let ([empty, pipe], file) = (File::pipe(0).expect("a pipe"), made(c"/tmp/transfers"));
    let appended = open(c"/tmp/transfers", O_WRONLY | O_APPEND);
    let from = numbered(2);
    for (to, wanted) in [
        (&file, Ok(2)),
        (&appended, Err(EINVAL)),
        (&open(c"/dev/zero", O_RDWR), Ok(2)),
        (&open(c"/dev/null", O_WRONLY), Ok(2)),
        (&pipe, Ok(2)),
        (&empty, Err(EBADF)),
        (&counter, Err(EINVAL)),
        (&open(c"/proc/self/clear_refs", O_WRONLY), Err(EINVAL)),
        (&open(c"/tmp", O_RDONLY), Err(EBADF)),
    ] {
        let moved = wanted.unwrap_or(0);
        equal(("to", to), send(to, (&from, Some(0)), 100), (wanted, Some(moved)));
    }
    equal("the end of a file that is added to", send(&appended, (&from, Some(2)), 1).0, Err(EINVAL));
    removed(c"/tmp/transfers");
}

fn sends_to_pipes() {
    let from = numbered(1 << 17);
    let [reader, writer] = File::pipe(O_NONBLOCK).expect("a pipe");
    equal("what there is room for", send(&writer, (&from, Some(0)), 1 << 17), (Ok(1 << 16), Some(1 << 16)));
    equal("no room", send(&writer, (&from, Some(0)), 10), (Err(EAGAIN), Some(0)));
    let mut bytes = [0; 4096];
    equal("read", reader.read(&mut bytes), Ok(4096));
    holds("the bytes", bytes.iter().enumerate().all(|(index, byte)| usize::from(*byte) == index % 16));
    let [reader, writer] = File::pipe(0).expect("a pipe");
    equal("filled", send(&writer, (&from, Some(0)), 1 << 16).0, Ok(1 << 16));
    // A reader makes room, and a signal ends a wait.
    let (_, sent) = beside(|| reader.read(&mut [0; 4096]), || send(&writer, (&from, Some(0)), 1 << 17));
    equal("a page", sent, (Ok(4096), Some(4096)));
    interrupt_by(SIGUSR1, 0);
    let sent = while_signalled(SIGUSR1, MILLISECOND, || send(&writer, (&from, Some(0)), 1 << 17).0);
    equal("interrupted", sent, Err(EINTR));
    drop(reader);
    apart(|| {
        set_without_handler(SIGPIPE, SIG_IGN);
        equal("no reader", send(&writer, (&from, Some(0)), 10), (Err(EPIPE), Some(0)));
    });
}

/// Copies a range; the answer, and the positions that the call had, after it.
fn copy((from, mut at): Place<'_>, (to, mut to_at): Place<'_>, count: u64) -> (Result<u64, Errno>, [Option<u64>; 2]) {
    let addresses = [address(&mut at), address(&mut to_at)];
    let answer = call(COPY_FILE_RANGE, [from.0, addresses[0], to.0, addresses[1], count, 0]);
    (answer, [at, to_at])
}

fn copies_of_ranges() {
    let (from, to) = (made(c"/tmp/transfers"), made(c"/tmp/copied"));
    let bytes: [u8; 1000] = core::array::from_fn(|index| index as u8);
    equal("written", from.write(&bytes), Ok(1000));
    equal("from the end on", copy((&from, None), (&to, None), 100), (Ok(0), [None; 2]));
    equal("from a position", copy((&from, Some(0)), (&to, None), 100), (Ok(100), [Some(100), None]));
    equal("the other has moved", position(&to), Ok(100));
    let all = copy((&from, Some(100)), (&to, Some(0)), 5000);
    equal("up to the end", (all, to.byte(0), size(&to)), ((Ok(900), [Some(1000), Some(900)]), Some(100), 900));
    let with_flags = |file: u64, flags: u64| call(COPY_FILE_RANGE, [file, 0, to.0, 0, 1, flags]);
    equal("flags", (with_flags(from.0, 1), with_flags(from.0, 1 << 32)), (Err(EINVAL), Ok(0)));
    equal("no file, and flags", with_flags(776, 1), Err(EBADF));
    let at = |from_at, to_at, flags: u64| call(COPY_FILE_RANGE, [from.0, from_at, to.0, to_at, 1, flags]);
    equal("no positions there", (at(16, 0, 1), at(0, 16, 1)), (Err(EFAULT), Err(EFAULT)));
    for (from_at, to_at, wanted) in
        [(0, 50, Err(EINVAL)), (0, 100, Ok(100)), (995, 990, Ok(5)), (995, 999, Err(EINVAL)), (5000, 5000, Ok(0))]
    {
        equal(("in one file", from_at, to_at), copy((&from, Some(from_at)), (&from, Some(to_at)), 100).0, wanted);
    }
    for (from_at, to_at, count, wanted) in [
        (u64::MAX - 4, 0, 10, Err(EOVERFLOW)),
        (0, u64::MAX - 4, 10, Err(EOVERFLOW)),
        (0, u64::MAX - 4, 2, Err(EINVAL)),
        (u64::MAX - 4, 0, 2, Err(EINVAL)),
        (u64::MAX >> 1, 0, 100, Ok(0)),
        (0, 0, u64::MAX, Ok(1000)),
        (1, 1, u64::MAX, Err(EOVERFLOW)),
    ] {
        equal((from_at, to_at, count), copy((&from, Some(from_at)), (&to, Some(to_at)), count).0, wanted);
    }
    files_of_copies(&from, &to);
    removed(c"/tmp/transfers");
    removed(c"/tmp/copied");
}

/// Files that may be copied to each other, and how they are open.
fn files_of_copies(from: &File, to: &File) {
    let open = |path: &CStr, flags| File::open(path, flags).expect("a file");
    let (memory, other) = (numbered(100), numbered(0));
    let sealed = numbered(100);
    equal("sealed", sealed.fcntl(F_ADD_SEALS, F_SEAL_WRITE), Ok(0));
    let [reader, writer] = File::pipe(0).expect("a pipe");
    let (directory, lines) = (open(c"/tmp", O_RDONLY), open(c"/proc/self/status", O_RDONLY));
    let appended = open(c"/tmp/copied", O_WRONLY | O_APPEND);
    for (from, to, wanted) in [
        (from, &appended, Err(EBADF)),
        (from, &open(c"/tmp/copied", O_RDONLY), Err(EBADF)),
        (&open(c"/tmp/transfers", O_WRONLY), to, Err(EBADF)),
        (&open(c"/tmp/transfers", O_PATH), to, Err(EBADF)),
        (from, &memory, Err(EXDEV)),
        (&memory, to, Err(EXDEV)),
        (&memory, &appended, Err(EBADF)),
        (&memory, &other, Ok(10)),
        (&memory, &sealed, Err(EPERM)),
        (&directory, to, Err(EISDIR)),
        (from, &directory, Err(EISDIR)),
        (&directory, &writer, Err(EISDIR)),
        (&reader, to, Err(EINVAL)),
        (from, &writer, Err(EINVAL)),
        (&open(c"/dev/zero", O_RDONLY), to, Err(EINVAL)),
        (from, &open(c"/dev/null", O_WRONLY), Err(EINVAL)),
        (&lines, to, Err(EXDEV)),
        (&lines, &open(c"/proc/self/clear_refs", O_WRONLY), Ok(0)),
    ] {
        equal(("of", from, "to", to), copy((from, Some(0)), (to, Some(0)), 10).0, wanted);
    }
}

fn limits_of_sizes() {
    let (from, to) = (numbered(200), numbered(0));
    apart(|| {
        set_without_handler(SIGXFSZ, SIG_IGN);
        equal("a limit", process::limit(RLIMIT_FSIZE, 100, RLIM_INFINITY).is_ok(), true);
        equal("sent up to it", send(&to, (&from, Some(0)), 200), (Ok(100), Some(100)));
        equal("behind it", send(&to, (&from, Some(0)), 200), (Err(EFBIG), Some(0)));
        equal("copied up to it", copy((&from, Some(0)), (&to, Some(50)), 80), (Ok(50), [Some(50), Some(100)]));
        equal("behind it", copy((&from, Some(0)), (&to, Some(100)), 80).0, Err(EFBIG));
        equal("nothing, behind it", copy((&from, Some(200)), (&to, Some(100)), 80).0, Err(EFBIG));
    });
}
