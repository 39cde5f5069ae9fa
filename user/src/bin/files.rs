//! Files and descriptors: what is opened, read and refused, who shares a descriptor, and what an exec closes.
//!
//! Each answer is Linux's. The program opens its own file, so it runs from any file system. `files zombie` has a child
//! that has ended.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

#[path = "files/devices.rs"]
mod devices;

use devices::{devices, zeros};
use granule_user::prelude::*;

entry!(run);
own!(call, word, put_word, unmap);

/// The first bytes of an ELF file.
const BEGINNING: [u8; 8] = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0];

fn run(start: Start) -> u8 {
    probe::prepare();
    match start.arguments().nth(1) {
        Some("after") => return after_exec(),
        Some("zombie") => return zombie(),
        _ => {}
    }
    let path = start.path();
    the_console_is_there();
    parts! { (path)
        contents positions ranges descriptors flags devices zeros paths places limits copies threads signals execs
        execs_beside_changes
    }
    status("files")
}

fn open_at(directory: u64, path: &CStr, flags: u32) -> Result<u64, Errno> {
    call(OPENAT, [directory, path.as_ptr() as u64, flags.into()])
}

fn open(path: &CStr, flags: u32) -> Result<u64, Errno> {
    open_at(HERE, path, flags)
}

fn close(descriptor: u64) -> Result<u64, Errno> {
    call(CLOSE, [descriptor])
}

fn fcntl(descriptor: u64, command: u32, argument: u64) -> Result<u64, Errno> {
    call(FCNTL, [descriptor, command.into(), argument])
}

fn seek(descriptor: u64, offset: i64, whence: u32) -> Result<u64, Errno> {
    call(LSEEK, [descriptor, offset as u64, whence.into()])
}

fn fstat(descriptor: u64) -> Result<Stat, Errno> {
    let mut stat = Stat { st_size: -1, st_rdev: 77, ..Stat::default() };
    call(FSTAT, [descriptor, &raw mut stat as u64]).map(|_| stat)
}

/// The next bytes, as many as there are of eight.
fn read(descriptor: u64) -> Result<([u8; 8], u64), Errno> {
    let mut bytes = [0; 8];
    let done = call(READ, [descriptor, bytes.as_mut_ptr() as u64, 8])?;
    Ok((bytes, done))
}

/// Whether a descriptor is open.
fn is_open(descriptor: u64) -> bool {
    fcntl(descriptor, F_GETFD, 0).is_ok()
}

fn the_console_is_there() {
    for descriptor in 0..3 {
        let stat = fstat(descriptor).expect("the console");
        equal("a device", (stat.st_mode & S_IFMT, stat.st_rdev, stat.st_size), (S_IFCHR, 5 << 8 | 1, 0));
        equal("its flags", fcntl(descriptor, F_GETFL, 0), Ok(O_RDWR.into()));
        equal("closed by an exec", fcntl(descriptor, F_GETFD, 0), Ok(0));
    }
    equal("no fourth", fcntl(3, F_GETFD, 0), Err(EBADF));
    equal("a position", seek(1, 0, SEEK_CUR), Err(ESPIPE));
    equal("an unknown one", seek(1, 0, 5), Err(EINVAL));
    let mut byte = 0_u8;
    let at = &raw mut byte as u64;
    equal("pread64", call(PREAD64, [0, at, 1, 0]), Err(ESPIPE));
    equal("pwrite64", call(PWRITE64, [1, at, 1, 0]), Err(ESPIPE));
    equal("pread64 before the beginning", call(PREAD64, [77, at, 1, u64::MAX]), Err(EINVAL));
    equal("pwrite64 before the beginning", call(PWRITE64, [77, at, 1, u64::MAX]), Err(EINVAL));
    // Once more, under another number.
    let console = open(c"/dev/console", O_WRONLY).expect("the console");
    equal("the lowest number", console, 3);
    equal("read", call(READ, [console, at, 1]), Err(EBADF));
    equal("read nothing", call(READ, [console, at, 0]), Err(EBADF));
    equal("written", call(WRITE, [console, at, 0]), Ok(0));
    equal("closed", close(console), Ok(0));
    let console = open(c"/dev/console", O_RDONLY | O_NONBLOCK).expect("the console");
    equal("written", call(WRITE, [console, at, 0]), Err(EBADF));
    equal("no input", call(READ, [console, at, 1]), Err(EAGAIN));
    equal("closed", close(console), Ok(0));
    // Standard input, closed and opened again.
    equal("closed", close(0), Ok(0));
    equal("read", call(READ, [0, at, 1]), Err(EBADF));
    equal("opened", open(c"/dev/console", O_RDWR), Ok(0));
}

fn contents(path: &CStr) {
    let file = open(path, O_RDONLY).expect("the program's own file");
    equal("the lowest number", file, 3);
    equal("its beginning", read(file), Ok((BEGINNING, 8)));
    let stat = fstat(file).expect("its status");
    equal("a regular file", stat.st_mode & S_IFMT, S_IFREG);
    holds("it may be executed", stat.st_mode & 0o100 != 0);
    holds("some size", stat.st_size > 1000);
    equal("links, owner, device", (stat.st_nlink, stat.st_uid, stat.st_gid, stat.st_rdev), (1, 0, 0, 0));
    equal("what is unused", (stat.__pad1, stat.__pad2, stat.__unused), (0, 0, [0; 2]));
    equal("a block", stat.st_blksize, 4096);
    let again = open(path, O_RDONLY).expect("the same file");
    equal("the same number", fstat(again).map(|other| (other.st_dev, other.st_ino)), Ok((stat.st_dev, stat.st_ino)));
    equal("a position of its own", read(again), Ok((BEGINNING, 8)));
    // All of it, in pieces that end nowhere in particular.
    let (mut total, mut buffer) = (8, [0_u8; 1000]);
    loop {
        match call(READ, [file, buffer.as_mut_ptr() as u64, 1000]) {
            Ok(0) => break,
            Ok(bytes) => total += bytes,
            Err(error) => equal("read", error as i32, 0),
        }
    }
    equal("its size", total, stat.st_size as u64);
    equal("its end", seek(file, 0, SEEK_CUR), Ok(stat.st_size as u64));
    equal("nothing more", read(file), Ok(([0; 8], 0)));
    equal("nothing to write", call(WRITE, [file, buffer.as_ptr() as u64, 1]), Err(EBADF));
    equal("nothing at all", call(WRITE, [file, buffer.as_ptr() as u64, 0]), Err(EBADF));
    equal("pwrite64", call(PWRITE64, [file, buffer.as_ptr() as u64, 1, 0]), Err(EBADF));
    equal("writev", call(WRITEV, [file, buffer.as_ptr() as u64, 0]), Err(EBADF));
    equal("no settings", call(IOCTL, [file, 0x5401, 0]), Err(ENOTTY));
    equal("blocks", stat.st_blocks, (stat.st_size as u64).div_ceil(4096) as i64 * 8);
    equal("two closed", (close(file), close(again)), (Ok(0), Ok(0)));
    equal("closed twice", close(file), Err(EBADF));
    equal("no settings", call(IOCTL, [file, 0x5401, 0]), Err(EBADF));
    equal("the upper half does not count", close(1 << 32 | 77), Err(EBADF));
}

fn positions(path: &CStr) {
    let file = open(path, O_RDONLY).expect("the program's own file");
    let size = fstat(file).expect("its status").st_size;
    equal("from the beginning", seek(file, 4, SEEK_SET), Ok(4));
    equal("from here", seek(file, -3, SEEK_CUR), Ok(1));
    equal("what is there", read(file), Ok((*b"ELF\x02\x01\x01\0\0", 8)));
    equal("and moved", seek(file, 0, SEEK_CUR), Ok(9));
    equal("from the end", seek(file, -2, SEEK_END), Ok(size as u64 - 2));
    equal("two bytes", read(file).map(|(_, bytes)| bytes), Ok(2));
    equal("behind the end", seek(file, 5, SEEK_END), Ok(size as u64 + 5));
    equal("nothing there", read(file), Ok(([0; 8], 0)));
    for (offset, whence) in [(-1, SEEK_SET), (i64::MIN, SEEK_SET), (-size - 6, SEEK_CUR), (-size - 1, SEEK_END)] {
        equal((offset, whence), seek(file, offset, whence), Err(EINVAL));
    }
    equal("as it was", seek(file, 0, SEEK_CUR), Ok(size as u64 + 5));
    equal("as far as it goes", seek(file, i64::MAX, SEEK_SET), Ok(i64::MAX as u64));
    equal("further", seek(file, 1, SEEK_CUR), Err(EINVAL));
    equal("from the end", seek(file, i64::MAX, SEEK_END), Err(EINVAL));
    equal("nothing there", read(file), Err(EINVAL));
    equal("nothing at all", call(READ, [file, &raw const size as u64, 0]), Ok(0));
    equal("contents", seek(file, 3, SEEK_DATA), Ok(3));
    equal("a hole", seek(file, 3, SEEK_HOLE), Ok(size as u64));
    for whence in [SEEK_DATA, SEEK_HOLE] {
        equal("behind the end", seek(file, size, whence), Err(ENXIO));
        equal("before the beginning", seek(file, -1, whence), Err(ENXIO));
    }
    for whence in [5, u32::MAX] {
        equal("no such way", seek(file, 0, whence), Err(EINVAL));
    }
    equal("no such file", seek(77, 0, 5), Err(EBADF));
    // pread64 has its own position.
    let (mut bytes, at) = ([0_u8; 8], seek(file, 100, SEEK_SET));
    let to = bytes.as_mut_ptr() as u64;
    equal("elsewhere", call(PREAD64, [file, to, 3, 1]), Ok(3));
    equal("what is there", &bytes, b"ELF\0\0\0\0\0");
    equal("and the position stays", seek(file, 0, SEEK_CUR), at);
    equal("before the beginning", call(PREAD64, [file, to, 3, u64::MAX]), Err(EINVAL));
    equal("behind the end", call(PREAD64, [file, to, 3, size as u64]), Ok(0));
    equal("as far as it goes", call(PREAD64, [file, to, 0, i64::MAX as u64]), Ok(0));
    equal("further", call(PREAD64, [file, to, 1, i64::MAX as u64]), Err(EINVAL));
    equal("further by far", call(PREAD64, [file, NOWHERE, 1 << 40, (i64::MAX - (1 << 39)) as u64]), Err(EINVAL));
    equal("no such file", call(PREAD64, [77, to, 1, 0]), Err(EBADF));
    // FIONREAD: the bytes from the file's position to its end.
    let mut left = 0_u32;
    let at = &raw mut left as u64;
    equal("left", call(IOCTL, [file, FIONREAD.into(), at]), Ok(0));
    equal("left", i64::from(left), size - 100);
    equal("left, nowhere", call(IOCTL, [file, FIONREAD.into(), NOWHERE]), Err(EFAULT));
    equal("almost as far as it goes", seek(file, i64::MAX - 4, SEEK_SET), Ok(i64::MAX as u64 - 4));
    let pieces = [IoVec { base: to, length: 3 }, IoVec { base: to, length: 3 }];
    equal("further in all", call(READV, [file, pieces.as_ptr() as u64, 2]), Err(EINVAL));
    equal("not further", call(READV, [file, pieces.as_ptr() as u64, 1]), Ok(0));
    equal("closed", close(file), Ok(0));
}

/// Reads to memory that ends, that is not there, and that is not the program's.
fn ranges(path: &CStr) {
    let file = open(path, O_RDONLY).expect("the program's own file");
    let size = fstat(file).expect("its status").st_size as u64;
    let pages = map(3 * PAGE, RW).expect("pages");
    // SAFETY: the pages are this function's.
    unsafe { munmap(pages + 2 * PAGE, PAGE) }.expect("a page to unmap");
    let end = pages + 2 * PAGE;
    let at = |to: u64, bytes: u64| (call(PREAD64, [file, to, bytes, 0]), seek(file, 0, SEEK_CUR));
    equal("up to the end", at(end - 4, 4), (Ok(4), Ok(0)));
    equal("over the end", at(end - 4, 5), (Ok(4), Ok(0)));
    equal("over the end by far", at(end - PAGE - 7, 4 * PAGE), (Ok(PAGE + 7), Ok(0)));
    equal("behind the end", at(end, 1), (Err(EFAULT), Ok(0)));
    equal("nowhere", at(NOWHERE, 1), (Err(EFAULT), Ok(0)));
    equal("nothing, nowhere", at(NOWHERE, 0), (Ok(0), Ok(0)));
    equal("the kernel's", at(KERNEL, 1), (Err(EFAULT), Ok(0)));
    equal("nothing of the kernel's", at(KERNEL, 0), (Err(EFAULT), Ok(0)));
    equal("up to the kernel's", at((1 << 48) - 1, 2), (Err(EFAULT), Ok(0)));
    equal("more than there can be", at(pages, u64::MAX), (Err(EFAULT), Ok(0)));
    equal("nothing to read, nowhere", call(PREAD64, [file, NOWHERE, 1, size]), Ok(0));
    equal("read moves by what was read", call(READ, [file, end - 4, 100]), Ok(4));
    equal("the position", seek(file, 0, SEEK_CUR), Ok(4));
    equal("read nowhere", call(READ, [file, NOWHERE, 100]), Err(EFAULT));
    equal("the position", seek(file, 0, SEEK_CUR), Ok(4));
    let pieces = [(pages, 3), (NOWHERE, 0), (pages + 3, 2), (end - 1, 2), (pages, 7)];
    let pieces = pieces.map(|(base, length)| IoVec { base, length });
    let readv = |count: u64| call(READV, [file, pieces.as_ptr() as u64, count]);
    equal("no piece", readv(0), Ok(0));
    equal("in pieces, up to the end", readv(5), Ok(6));
    equal("the position", seek(file, 0, SEEK_CUR), Ok(10));
    equal("too many", readv(1025), Err(EINVAL));
    equal("the upper half does not count", readv(1 << 32), Ok(0));
    equal("fstat nowhere", call(FSTAT, [file, NOWHERE]), Err(EFAULT));
    equal("fstat of nothing", call(FSTAT, [77, NOWHERE]), Err(EBADF));
    equal("closed", close(file), Ok(0));
    equal("readv of nothing", readv(1025), Err(EBADF));
    // SAFETY: as above.
    unsafe { munmap(pages, 2 * PAGE) }.expect("pages to unmap");
}

fn descriptors(path: &CStr) {
    let file = open(path, O_RDONLY).expect("the program's own file");
    equal("a second number", call(DUP, [file]), Ok(4));
    equal("moves both", (read(4), seek(file, 0, SEEK_CUR)), (Ok((BEGINNING, 8)), Ok(8)));
    equal("of nothing", call(DUP, [77]), Err(EBADF));
    let dup3 = |old: u64, new: u64, flags: u32| call(DUP3, [old, new, flags.into()]);
    equal("a chosen one", dup3(3, 40, 0), Ok(40));
    equal("in place of another", dup3(1, 4, O_CLOEXEC), Ok(4));
    equal("closed by an exec", fcntl(4, F_GETFD, 0), Ok(FD_CLOEXEC.into()));
    equal("not so the first", fcntl(1, F_GETFD, 0), Ok(0));
    equal("the console", seek(4, 0, SEEK_CUR), Err(ESPIPE));
    equal("and no more", dup3(3, 4, 0), Ok(4));
    equal("closed by an exec", fcntl(4, F_GETFD, 0), Ok(0));
    equal("the same", dup3(3, 3, 0), Err(EINVAL));
    equal("the same, of nothing", dup3(77, 77, 0), Err(EINVAL));
    equal("of nothing", dup3(77, 78, 0), Err(EBADF));
    equal("unknown flags", dup3(3, 5, O_CLOEXEC | 1), Err(EINVAL));
    equal("too high", dup3(3, 1 << 30, 0), Err(EBADF));
    equal("too high, of nothing", dup3(77, u64::MAX, 0), Err(EBADF));
    equal("the lowest from 10", fcntl(3, F_DUPFD, 10), Ok(10));
    equal("and the next", fcntl(3, F_DUPFD, 10), Ok(11));
    equal("closed by an exec", fcntl(11, F_GETFD, 0), Ok(0));
    equal("the lowest from 9", fcntl(3, F_DUPFD_CLOEXEC, 9), Ok(9));
    equal("closed by an exec", fcntl(9, F_GETFD, 0), Ok(FD_CLOEXEC.into()));
    equal("from there", fcntl(3, F_DUPFD, 9), Ok(12));
    equal("higher", fcntl(3, F_DUPFD, 200), Ok(200));
    equal("across", fcntl(3, F_DUPFD, 63), Ok(63));
    equal("across", fcntl(3, F_DUPFD, 63), Ok(64));
    equal("from too high", fcntl(3, F_DUPFD, 1 << 30), Err(EINVAL));
    equal("from below 0", fcntl(3, F_DUPFD, u64::MAX), Err(EINVAL));
    equal("of nothing", fcntl(77, F_DUPFD, u64::MAX), Err(EBADF));
    equal("unknown", fcntl(3, 9999, 0), Err(EINVAL));
    equal("unknown, of nothing", fcntl(77, 9999, 0), Err(EBADF));
    equal("one of them goes", close(3), Ok(0));
    equal("the others stay", (seek(40, 0, SEEK_CUR), seek(200, 0, SEEK_CUR)), (Ok(8), Ok(8)));
    equal("the lowest again", call(DUP, [200]), Ok(3));
    for descriptor in [3, 4, 9, 10, 11, 12, 40, 63, 64, 200] {
        equal(descriptor, close(descriptor), Ok(0));
    }
    equal("the lowest again", open(path, O_RDONLY), Ok(3));
    equal("closed", close(3), Ok(0));
}

fn flags(path: &CStr) {
    let large = u64::from(O_LARGEFILE);
    let file = open(path, O_RDONLY | O_CLOEXEC).expect("the program's own file");
    equal("of the descriptor", fcntl(file, F_GETFD, 0), Ok(FD_CLOEXEC.into()));
    equal("of the file", fcntl(file, F_GETFL, 0), Ok(large));
    equal("set", fcntl(file, F_SETFD, 0), Ok(0));
    equal("of the descriptor", fcntl(file, F_GETFD, 0), Ok(0));
    equal("all of them", fcntl(file, F_SETFD, u64::MAX), Ok(0));
    equal("of the descriptor", fcntl(file, F_GETFD, 0), Ok(FD_CLOEXEC.into()));
    let both = u64::from(O_APPEND | O_NONBLOCK);
    equal("set", fcntl(file, F_SETFL, both | u64::from(O_WRONLY | O_TRUNC | O_CLOEXEC)), Ok(0));
    equal("of the file", fcntl(file, F_GETFL, 0), Ok(large | both));
    let second = call(DUP, [file]).expect("a number");
    equal("of another number's", fcntl(second, F_GETFL, 0), Ok(large | both));
    equal("not of the descriptor", fcntl(second, F_GETFD, 0), Ok(0));
    equal("set there", fcntl(second, F_SETFL, 0), Ok(0));
    equal("of the file", fcntl(file, F_GETFL, 0), Ok(large));
    equal("closed", (close(file), close(second)), (Ok(0), Ok(0)));
    let file = open(path, O_RDONLY | O_NONBLOCK | O_APPEND).expect("the program's own file");
    equal("from the beginning", fcntl(file, F_GETFL, 0), Ok(large | both));
    equal("closed", close(file), Ok(0));
    equal("set, of nothing", fcntl(77, F_SETFD, 0), Err(EBADF));
    // By ioctl.
    let file = open(path, O_RDONLY | O_SYNC & !O_DSYNC).expect("the program's own file");
    equal("waits for all, so for contents", fcntl(file, F_GETFL, 0), Ok(large | u64::from(O_SYNC)));
    let on = 1_u32;
    for (command, at, flag, flags) in [
        (FIOCLEX, 0, FD_CLOEXEC, 0),
        (FIONCLEX, 0, 0, 0),
        (FIONBIO, &raw const on as u64, 0, O_NONBLOCK),
        (FIOCLEX, NOWHERE, FD_CLOEXEC, O_NONBLOCK),
    ] {
        equal(command, call(IOCTL, [file, command.into(), at]), Ok(0));
        equal(("of the descriptor", command), fcntl(file, F_GETFD, 0), Ok(flag.into()));
        equal(("of the file", command), fcntl(file, F_GETFL, 0), Ok(large | u64::from(O_SYNC | flags)));
    }
    equal("by nothing", call(IOCTL, [file, FIONBIO.into(), NOWHERE]), Err(EFAULT));
    equal("of nothing", call(IOCTL, [77, FIOCLEX.into(), 0]), Err(EBADF));
    equal("past a cache", fcntl(file, F_SETFL, O_DIRECT.into()), Ok(0));
    equal("closed", close(file), Ok(0));
    equal("past a cache", open(path, O_DIRECT), Ok(3));
    equal("closed", close(3), Ok(0));
    equal("a directory, past a cache", open(c"/", O_DIRECT), Err(EINVAL));
    equal("the console, past a cache", open(c"/dev/console", O_DIRECT), Err(EINVAL));
    equal("the console, past a cache", fcntl(1, F_SETFL, O_DIRECT.into()), Err(EINVAL));
    // Neither for reading nor for writing.
    if let Ok(file) = open(c"/dev/console", 3) {
        equal("read", read(file), Err(EBADF));
        equal("written", call(WRITE, [file, NOWHERE, 1]), Err(EBADF));
        equal("closed", close(file), Ok(0));
    }
}

fn paths(path: &CStr) {
    let at = |directory: u64, path: u64, flags: u32| call(OPENAT, [directory, path, flags.into()]);
    equal("no path", at(HERE, NOWHERE, 0), Err(EFAULT));
    equal("the kernel's", at(HERE, KERNEL, 0), Err(EFAULT));
    equal("an empty one", open(c"", O_RDONLY), Err(ENOENT));
    equal("no file", open(c"nosuch", O_RDONLY), Err(ENOENT));
    equal("no directory", open(c"/nosuch/file", O_RDONLY | O_CREAT), Err(ENOENT));
    equal("first the flags", at(HERE, NOWHERE, O_DIRECTORY | O_CREAT), Err(EINVAL));
    equal("no name, and only for reading", open(c"/", O_TMPFILE), Err(EINVAL));
    equal("no name, and truncated", open(c"/nosuch", O_TMPFILE | O_TRUNC), Err(EINVAL));
    equal("no name, and no directory", open(c"/", O_TMPFILE & !O_DIRECTORY | O_RDWR), Err(EINVAL));
    let mut long = [b'x'; 4097];
    long[4096] = 0;
    equal("too long", at(HERE, long.as_ptr() as u64, 0), Err(ENAMETOOLONG));
    long[256] = 0;
    equal("a name too long", at(HERE, long.as_ptr() as u64, 0), Err(ENAMETOOLONG));
    long[255] = 0;
    equal("not too long", at(HERE, long.as_ptr() as u64, 0), Err(ENOENT));
    paths_from(path);
    directories(path);
}

/// The path of this program, with something behind it, and others.
fn paths_from(path: &CStr) {
    let at = |path: u64, flags: u32| call(OPENAT, [HERE, path, flags.into()]);
    let mut longer = [0_u8; 300];
    let bytes = path.to_bytes();
    longer[..bytes.len()].copy_from_slice(bytes);
    let behind: [(Errno, &[(&str, u32)]); 4] = [
        (ENOTDIR, &[("/", O_RDONLY), ("/x", O_RDONLY), ("/.", O_RDONLY), ("", O_DIRECTORY)]),
        (ENOTDIR, &[("/x", O_CREAT), ("/x/", O_CREAT), ("/.", O_CREAT)]),
        (EEXIST, &[("", O_CREAT | O_EXCL)]),
        (EISDIR, &[("/", O_CREAT), ("//", O_CREAT | O_EXCL)]),
    ];
    for (error, cases) in behind {
        for &(end, flags) in cases {
            longer[bytes.len()..].fill(0);
            longer[bytes.len()..bytes.len() + end.len()].copy_from_slice(end.as_bytes());
            equal((end, flags), at(longer.as_ptr() as u64, flags), Err(error));
        }
    }
    equal("a file that is there", open(path, O_CREAT), Ok(3));
    equal("its flags", fcntl(3, F_GETFL, 0), Ok(O_LARGEFILE.into()));
    equal("closed", close(3), Ok(0));
    let others: [(Errno, &[(&CStr, u32)]); 4] = [
        (
            ENOENT,
            &[(c"/nosuch/x/", O_CREAT), (c"/nosuch/", O_RDONLY), (c"/nosuch/.", O_CREAT), (c"/dev/nosuch", O_RDONLY)],
        ),
        (
            EISDIR,
            &[(c"/nosuch/", O_CREAT), (c"/dev/", O_CREAT | O_EXCL), (c"/dev", O_CREAT), (c"/dev/console/", O_CREAT)],
        ),
        (EEXIST, &[(c"/dev/.", O_CREAT | O_EXCL), (c"/dev/console", O_CREAT | O_EXCL)]),
        (ENOTDIR, &[(c"/dev/console/", O_RDONLY), (c"/dev/console/x", O_RDONLY), (c"/dev/console", O_DIRECTORY)]),
    ];
    for (error, cases) in others {
        cases.iter().for_each(|&(path, flags)| equal((path, flags), open(path, flags), Err(error)));
    }
    for path in [c"/dev/console", c"dev/console", c"//dev/.././dev//console", c"/../dev/console"] {
        equal(path, open(path, O_RDWR | O_CREAT | O_TRUNC), Ok(3));
        equal(path, (seek(3, 0, SEEK_CUR), close(3)), (Err(ESPIPE), Ok(0)));
    }
    equal("its directory", open(c"/dev/console/../../dev", O_DIRECTORY), Err(ENOTDIR));
    equal("its directory", open(c"/dev/../dev/.", O_DIRECTORY), Ok(3));
    equal("from there on", open_at(3, c"console", O_WRONLY), Ok(4));
    equal("from there up", open_at(3, c"../dev", O_PATH), Ok(5));
    equal("the same", fstat(3).map(|stat| stat.st_ino), fstat(5).map(|stat| stat.st_ino));
    equal("closed", [3, 4, 5].map(close), [Ok(0); 3]);
}

fn directories(path: &CStr) {
    let root = open(c"/", O_RDONLY).expect("the root");
    equal("kind", fstat(root).map(|stat| stat.st_mode & S_IFMT), Ok(S_IFDIR));
    equal("read", read(root), Err(EISDIR));
    equal("read elsewhere", call(PREAD64, [root, NOWHERE, 1, 0]), Err(EISDIR));
    equal("written", call(WRITE, [root, NOWHERE, 1]), Err(EBADF));
    equal("its flags", fcntl(root, F_GETFL, 0), Ok(O_LARGEFILE.into()));
    for flags in [O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_DIRECTORY | O_RDWR] {
        equal(flags, open(c"/", flags), Err(EISDIR));
    }
    equal("created and there", open(c"/", O_CREAT | O_EXCL), Err(EEXIST));
    let name = path.to_bytes().iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let name = &path[name..];
    let found = open_at(root, name, O_RDONLY).expect("the program's own file");
    equal("from a directory on", read(found), Ok((BEGINNING, 8)));
    equal("from a file on", open_at(found, name, O_RDONLY), Err(ENOTDIR));
    equal("from nothing on", open_at(77, name, O_RDONLY), Err(EBADF));
    equal("from nothing on, an empty one", open_at(77, c"", O_RDONLY), Err(ENOENT));
    equal("from anywhere on, from the root", open_at(77, c"/dev/console", O_RDONLY), Ok(5));
    equal("of a directory", open_at(root, c"..", O_RDONLY | O_DIRECTORY), Ok(6));
    equal("none of a directory", open_at(6, c"nosuch", O_RDONLY), Err(ENOENT));
    for descriptor in 3..7 {
        equal(descriptor, close(descriptor), Ok(0));
    }
}

/// Files that are neither read nor written (`O_PATH`).
fn places(path: &CStr) {
    let file = open(path, O_PATH | O_CLOEXEC | O_RDWR | O_CREAT | O_TRUNC | O_APPEND).expect("the program's own file");
    equal("of the descriptor", fcntl(file, F_GETFD, 0), Ok(FD_CLOEXEC.into()));
    equal("its flags", fcntl(file, F_GETFL, 0), Ok(O_PATH.into()));
    equal("read", read(file), Err(EBADF));
    equal("written", call(WRITE, [file, NOWHERE, 1]), Err(EBADF));
    equal("moved", seek(file, 0, SEEK_SET), Err(EBADF));
    equal("settings", call(IOCTL, [file, 0x5401, 0]), Err(EBADF));
    equal("set", fcntl(file, F_SETFL, 0), Err(EBADF));
    equal("unknown", fcntl(file, 9999, 0), Err(EBADF));
    equal("kind", fstat(file).map(|stat| stat.st_mode & S_IFMT), Ok(S_IFREG));
    equal("a second one", call(DUP, [file]), Ok(4));
    equal("a third one", fcntl(file, F_DUPFD, 0), Ok(5));
    equal("a fourth one", call(DUP3, [file, 6, 0]), Ok(6));
    equal("a directory", open(path, O_PATH | O_DIRECTORY), Err(ENOTDIR));
    equal("a directory", open(c"/", O_PATH | O_DIRECTORY), Ok(7));
    equal("its flags", fcntl(7, F_GETFL, 0), Ok((O_PATH | O_DIRECTORY).into()));
    equal("read", read(7), Err(EBADF));
    equal("begin there", open_at(7, c"dev/console", O_RDONLY), Ok(8));
    for descriptor in 3..9 {
        equal(descriptor, close(descriptor), Ok(0));
    }
}

fn set_limit(soft: u64) -> Result<RLimit, Errno> {
    process::limit(RLIMIT_NOFILE, soft, 4096)
}

fn limits(path: &CStr) {
    apart(|| {
        let _ = set_limit(1024);
        equal("a file", open(path, O_RDONLY), Ok(3));
        equal("the highest", call(DUP3, [3, 1023, 0]), Ok(1023));
        equal("higher", call(DUP3, [3, 1024, 0]), Err(EBADF));
        equal("from the highest on", fcntl(3, F_DUPFD, 1023), Err(EMFILE));
        equal("from higher on", fcntl(3, F_DUPFD, 1024), Err(EINVAL));
        equal("fewer", set_limit(5).map(|old| old.soft), Ok(1024));
        equal("one more", call(DUP, [3]), Ok(4));
        equal("no more", call(DUP, [3]), Err(EMFILE));
        equal("no more, of nothing", call(DUP, [77]), Err(EBADF));
        equal("none opened", open(path, O_RDONLY), Err(EMFILE));
        equal("before the path", call(OPENAT, [HERE, NOWHERE, 0]), Err(EMFILE));
        equal("before the file", open(c"nosuch", O_RDONLY), Err(EMFILE));
        equal("behind the flags", open(c"nosuch", O_DIRECTORY | O_CREAT), Err(EINVAL));
        equal("what is higher stays", seek(1023, 7, SEEK_SET), Ok(7));
        equal("and goes", close(1023), Ok(0));
        equal("for good", call(DUP3, [3, 1023, 0]), Err(EBADF));
        equal("in place of another", call(DUP3, [3, 4, 0]), Ok(4));
        equal("none at all", set_limit(0).map(|old| old.soft), Ok(5));
        equal("none", call(DUP, [3]), Err(EMFILE));
        equal("none", fcntl(3, F_DUPFD, 0), Err(EINVAL));
    });
    apart(|| {
        equal("many", process::limit(RLIMIT_NOFILE, 4096, 4096).map(drop), Ok(()));
        let file = open(path, O_RDONLY).expect("a file");
        for descriptor in file + 1..4096 {
            if call(DUP, [file]) != Ok(descriptor) {
                equal("the next number", descriptor, 0);
                return;
            }
        }
        equal("all", call(DUP, [file]), Err(EMFILE));
        equal("one goes", close(2000), Ok(0));
        equal("and comes", open(path, O_RDONLY), Ok(2000));
        apart(|| equal("a copy has all", (is_open(4095), call(DUP, [3])), (true, Err(EMFILE))));
    });
}

/// A clone with these flags; `child` runs in it on a copy of this stack.
fn cloned(flags: u64, child: impl FnOnce()) {
    let child = process::clone_with(flags | u64::from(SIGCHLD), [0; 2], || {
        child();
        wrong()
    });
    equal("a clone", child.map(process::wait), Ok(exited(0)));
}

fn copies(path: &CStr) {
    let file = open(path, O_RDONLY).expect("the program's own file");
    apart(|| {
        equal("the parent's", read(file), Ok((BEGINNING, 8)));
        equal("one's own", call(DUP, [file]), Ok(4));
        equal("closed here", close(file), Ok(0));
        equal("and in no copy", is_open(file), false);
    });
    equal("not closed there", seek(file, 0, SEEK_CUR), Ok(8));
    equal("not opened there", is_open(4), false);
    cloned(CLONE_FILES, || {
        equal("both have it", call(DUP, [file]), Ok(4));
        equal("both close it", close(file), Ok(0));
        // A copy of what is shared is not shared.
        apart(|| equal("closed in a copy", close(4), Ok(0)));
        equal("closed in a copy alone", is_open(4), true);
    });
    equal("opened there", is_open(4), true);
    equal("closed there", is_open(file), false);
    equal("and opened here", open(path, O_RDONLY), Ok(3));
    cloned(CLONE_FILES, || {
        cloned(CLONE_FILES, || equal("by three", close(3), Ok(0)));
        equal("closed by another", is_open(3), false);
    });
    equal("closed by another", is_open(3), false);
    // The one that shared them has ended, with its descriptors.
    equal("what is left", close(4), Ok(0));
}

fn threads(path: &CStr) {
    let file = open(path, O_RDONLY).expect("the program's own file");
    Thread::spawn(move || {
        equal("the same", read(file), Ok((BEGINNING, 8)));
        equal("for all", call(DUP, [file]), Ok(file + 1));
        equal("closed for all", close(file), Ok(0));
    })
    .join();
    // Each byte is read by one of them.
    let (all, total) = (open(path, O_RDONLY).expect("the program's own file"), AtomicU64::new(0));
    all_at_once(3, |_| {
        while let Ok((_, bytes @ 1..)) = read(all) {
            total.fetch_add(bytes, Ordering::Relaxed);
        }
    });
    let size = fstat(all).map(|stat| stat.st_size as u64);
    equal("each once", (Ok(total.into_inner()), seek(all, 0, SEEK_CUR)), (size, size));
    equal("closed", close(all), Ok(0));
    equal("closed by the thread", is_open(file), false);
    equal("opened by the thread", seek(file + 1, 0, SEEK_CUR), Ok(8));
    equal("closed", close(file + 1), Ok(0));
}

/// Signals with a handler do not cut reads of files short.
fn signals(path: &CStr) {
    const READS: u64 = 300;
    /// Signals to each: a read that is sent another one as often as it begins again never ends.
    const EACH: u64 = 4;
    interrupt_by(SIGUSR1, SA_RESTART);
    let file = open(path, O_RDONLY).expect("the program's own file");
    let size = fstat(file).expect("its status").st_size as u64;
    let room = map(size.next_multiple_of(PAGE), RW).expect("pages");
    let (reader, reads) = (process::thread_id(), AtomicU64::new(0));
    let send = || {
        for sent in 0..READS * EACH {
            until(|| sent / EACH <= reads.load(Ordering::Relaxed));
            equal("sent", process::tgkill(process::id(), reader, SIGUSR1), Ok(()));
        }
    };
    let is_short = |_: &u64| {
        let read = call(PREAD64, [file, room, size, 0]);
        reads.fetch_add(1, Ordering::Relaxed);
        read != Ok(size)
    };
    let (_, short) = beside(send, || (0..READS).filter(is_short).count());
    equal("reads that are short", short, 0);
    equal("closed", close(file), Ok(0));
}

/// The descriptors of [`execs`]: what an exec closes, and what it does not.
const CLOSED: [u64; 3] = [10, 62, 300];
const KEPT: [u64; 3] = [11, 63, 301];

fn after_exec() -> u8 {
    let all = CLOSED.map(is_open).iter().any(|open| *open) || KEPT.map(is_open).iter().any(|open| !open);
    let right =
        !all && seek(KEPT[0], 0, SEEK_CUR) == Ok(8) && call(DUP, [1]) == Ok(3) && fcntl(KEPT[1], F_GETFD, 0) == Ok(0);
    u8::from(!right)
}

/// Opens [`CLOSED`] and [`KEPT`].
fn prepare(path: &CStr) {
    let file = open(path, O_RDONLY).expect("the program's own file");
    let _ = read(file);
    for (closed, kept) in CLOSED.into_iter().zip(KEPT) {
        equal(closed, call(DUP3, [file, closed, O_CLOEXEC.into()]), Ok(closed));
        equal(kept, call(DUP3, [file, kept, 0]), Ok(kept));
    }
    equal("closed", close(file), Ok(0));
}

/// Executes this program, which looks what is open.
fn start_again(path: &CStr) {
    equal("execve", process::execute(path, &[path, c"after"]) as i32, 0);
}

fn execs(path: &CStr) {
    let (prepare, start_again) = (|| prepare(path), || start_again(path));
    apart(|| {
        prepare();
        start_again();
    });
    // An exec closes for itself alone, where the table of descriptors is shared and where it is copied.
    apart(|| {
        prepare();
        cloned(CLONE_FILES, start_again);
        apart(start_again);
        equal("still open here", CLOSED.map(is_open), [true; 3]);
        // One that fails closes nothing.
        equal("execve", process::execute(c"/nosuch", &[]), ENOENT);
        equal("still open here", CLOSED.map(is_open), [true; 3]);
    });
}

/// An exec ends, and closes what it must, though another process changes the descriptors all the time.
fn execs_beside_changes(path: &CStr) {
    const CHANGED: u64 = 500;
    apart(|| {
        prepare(path);
        equal("one more", call(DUP3, [1, CHANGED, 0]), Ok(CHANGED));
        // A table that takes a while to copy.
        equal("many", (600..1020).find(|&descriptor| call(DUP3, [1, descriptor, 0]) != Ok(descriptor)), None);
        for _ in 0..10 {
            let child = process::clone_with(CLONE_FILES | u64::from(SIGCHLD), [0; 2], || {
                start_again(path);
                1
            })
            .expect("a clone");
            let status = loop {
                let flags = [u64::from(FD_CLOEXEC), 0];
                equal("changed", flags.map(|flag| fcntl(CHANGED, F_SETFD, flag)), [Ok(0); 2]);
                match process::wait4(child as i32, WNOHANG) {
                    Ok((0, _)) => {}
                    ended => break ended,
                }
            };
            equal("ended", status, Ok((child, exited(0))));
        }
    });
}

/// Has a child that has ended, with descriptors of its own, until this process is killed.
fn zombie() -> u8 {
    match process::try_spawn(|| u8::from(call(DUP3, [1, 500, 0]) != Ok(500))) {
        Ok(_) => time::sleep_for_ever(),
        Err(_) => 1,
    }
}
