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
        lists_at_positions flags_of_reads_and_writes appends_by_flags pipes_with_flags
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
