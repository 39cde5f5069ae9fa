//! Devices of the kernel's own.

use granule_user::abi::userfaultfd::USERFAULTFD_IOC_NEW;
use granule_user::prelude::*;

use super::{call, close, fcntl, fstat, open, put_word, seek, unmap, word};

/// A device of the kernel's own: its path, `st_rdev` and permissions, and the answers to a read and a write, each of 8
/// bytes and of 8 at an address without memory, and to a command that nothing has.
struct Device(&'static CStr, (u64, u32), [Result<u64, Errno>; 2], [Result<u64, Errno>; 2], Errno);

const NONE: [Result<u64, Errno>; 2] = [Ok(0), Ok(0)];
const FROM: [Result<u64, Errno>; 2] = [Ok(8), Err(EFAULT)];
const ALL: [Result<u64, Errno>; 2] = [Ok(8), Ok(8)];
const INVALID: [Result<u64, Errno>; 2] = [Err(EINVAL), Err(EINVAL)];

const DEVICES: [Device; 6] = [
    Device(c"/dev/null", (1 << 8 | 3, 0o666), NONE, ALL, ENOTTY),
    Device(c"/dev/zero", (1 << 8 | 5, 0o666), FROM, ALL, ENOTTY),
    Device(c"/dev/full", (1 << 8 | 7, 0o666), FROM, [Err(ENOSPC), Err(ENOSPC)], ENOTTY),
    Device(c"/dev/random", (1 << 8 | 8, 0o666), FROM, FROM, EINVAL),
    Device(c"/dev/urandom", (1 << 8 | 9, 0o666), FROM, FROM, EINVAL),
    Device(c"/dev/userfaultfd", (10 << 8, 0o600), INVALID, INVALID, EINVAL),
];

pub(super) fn devices(_: &CStr) {
    for Device(path, (number, permissions), reads, writes, command) in DEVICES {
        let (file, mut buffer) = (open(path, O_RDWR).expect("a device"), [7_u8; 8]);
        let at = buffer.as_mut_ptr() as u64;
        let stat = fstat(file).expect("a file");
        // The last part of the number of /dev/userfaultfd is any.
        let of = |number: u64| if number >> 8 == 10 { number & !0xff } else { number };
        let seen = (stat.st_mode, of(stat.st_rdev & 0xffff), stat.st_size, stat.st_nlink);
        equal((path, "a device"), seen, (S_IFCHR | permissions, number, 0, 1));
        equal((path, "read"), [at, NOWHERE].map(|at| call(READ, [file, at, 8])), reads);
        equal((path, "read there"), [at, NOWHERE].map(|at| call(PREAD64, [file, at, 8, 1 << 40])), reads);
        equal((path, "written"), [at, NOWHERE].map(|at| call(WRITE, [file, at, 8])), writes);
        equal((path, "written there"), [at, NOWHERE].map(|at| call(PWRITE64, [file, at, 8, 1 << 40])), writes);
        let nothing = |moved: Result<u64, Errno>| {
            moved.and(Ok(0)).or_else(|error| if error == EFAULT { Ok(0) } else { Err(error) })
        };
        equal((path, "no bytes read"), call(READ, [file, at, 0]), nothing(reads[0]));
        equal((path, "none written"), call(WRITE, [file, at, 0]), nothing(writes[0]));
        let negative = [call(PREAD64, [file, at, 8, u64::MAX]), call(PWRITE64, [file, at, 8, u64::MAX])];
        equal((path, "before the beginning"), negative, INVALID);
        let past = [PREAD64, PWRITE64].map(|number| call(number, [file, at, 8, i64::MAX as u64 - 3]));
        equal((path, "past the last position"), past, INVALID);
        equal((path, "executable"), call(FACCESSAT, [HERE, path.as_ptr() as u64, X_OK.into()]), Err(EACCES));
        let sought = [(0, SEEK_CUR), (100, SEEK_SET), (0, SEEK_CUR), (-100, SEEK_SET), (5, SEEK_END), (5, SEEK_DATA)];
        equal((path, "positions"), sought.map(|(offset, whence)| seek(file, offset, whence)), [Ok(0); 6]);
        equal((path, "an unknown one"), seek(file, 0, 9), Err(EINVAL));
        equal((path, "cut"), [call(FTRUNCATE, [file, 10]), call(FSYNC, [file])], INVALID);
        equal((path, "allocated"), call(FALLOCATE, [file, 0, 0, 10]), Err(ENODEV));
        let mut count = 77_u32;
        let commands = [FIONREAD, 0x99, RNDGETENTCNT];
        let [left, unknown, random] =
            commands.map(|command| call(IOCTL, [file, command.into(), &raw mut count as u64]));
        equal((path, "commands"), [left, unknown], [Err(command); 2]);
        let is_random = path == c"/dev/random" || path == c"/dev/urandom";
        equal((path, "bits"), (random, count), if is_random { (Ok(0), 256) } else { (Err(command), 77) });
        equal((path, "past a cache"), [open(path, O_RDWR | O_DIRECT), fcntl(file, F_SETFL, O_DIRECT.into())], INVALID);
        equal((path, "a directory"), open(path, O_RDWR | O_DIRECTORY), Err(ENOTDIR));
        equal((path, "cut when it is opened"), open(path, O_RDWR | O_TRUNC).and_then(close), Ok(0));
        let (now, mut poll) = (Timespec::default(), PollFd { fd: file as i32, events: 0xffff, revents: 0 });
        equal((path, "polled"), call(PPOLL, [&raw mut poll as u64, 1, &raw const now as u64, 0, 8]), Ok(1));
        let ready = POLLIN | POLLRDNORM;
        let both = ready | POLLOUT | POLLWRNORM;
        equal((path, "ready"), poll.revents, if path == c"/dev/random" { ready } else { both });
        if path != c"/dev/zero" {
            let map = |flags| call(MMAP, [0, PAGE, PROT_READ, flags, file, 0]);
            equal((path, "mapped"), [MAP_PRIVATE, MAP_SHARED].map(map), [Err(ENODEV); 2]);
        }
        equal((path, "closed"), close(file), Ok(0));
    }
    long_reads();
    let file = open(c"/dev/userfaultfd", O_RDONLY).expect("a device");
    equal("with a wrong flag", call(IOCTL, [file, USERFAULTFD_IOC_NEW.into(), 2]), Err(EINVAL));
    let pager = call(IOCTL, [file, USERFAULTFD_IOC_NEW.into(), O_CLOEXEC.into()]).expect("a userfaultfd");
    equal("its flags", (fcntl(pager, F_GETFD, 0), fcntl(pager, F_GETFL, 0)), (Ok(FD_CLOEXEC.into()), Ok(0)));
    equal("closed", [close(pager), close(file)], [Ok(0); 2]);
}

/// Reads of more than a page.
fn long_reads() {
    let mut bytes = [7_u8; 5000];
    let read = |path: &CStr, bytes: &mut [u8]| {
        let file = open(path, O_RDONLY).expect("a device");
        equal(path, call(READ, [file, bytes.as_mut_ptr() as u64, bytes.len() as u64]), Ok(bytes.len() as u64));
        equal("closed", close(file), Ok(0));
    };
    read(c"/dev/urandom", &mut bytes);
    holds(
        "random numbers",
        [&bytes[..2500], &bytes[2500..]].map(|half| half.iter().any(|&byte| byte != 7)) == [true; 2],
    );
    let first = bytes;
    read(c"/dev/random", &mut bytes);
    holds("others", bytes.iter().zip(&first).filter(|(byte, first)| byte == first).count() < 500);
    read(c"/dev/zero", &mut bytes);
    holds("zeros", bytes.iter().all(|&byte| byte == 0));
}

/// Memory that `/dev/zero` is mapped as.
pub(super) fn zeros(_: &CStr) {
    let [file, to_read, to_write] =
        [O_RDWR, O_RDONLY, O_WRONLY].map(|flags| open(c"/dev/zero", flags).expect("a device"));
    let map = |file, bytes, protection, flags, offset| call(MMAP, [0, bytes, protection, flags, file, offset]);
    let stored = |at: u64| {
        // SAFETY: pages that were mapped just now.
        unsafe { probe::write(at, 1) }.is_ok()
    };
    for (what, flags, offset, wanted) in [
        ("shared", MAP_SHARED, 0, [true, true]),
        ("checked", MAP_SHARED_VALIDATE, 0, [true, true]),
        ("private", MAP_PRIVATE, 0, [true, true]),
        // As on Linux it is as long as the mapping, which begins behind its first page.
        ("shared", MAP_SHARED, PAGE, [true, false]),
        ("shared", MAP_SHARED, 2 * PAGE, [false, false]),
        ("private", MAP_PRIVATE, PAGE, [true, true]),
        ("private, far", MAP_PRIVATE, 1 << 63, [true, true]),
    ] {
        let at = map(file, 2 * PAGE, PROT_READ | PROT_WRITE, flags, offset).expect(what);
        equal((what, offset), [stored(at), stored(at + PAGE)], wanted);
        let child = process::spawn(|| {
            if wanted[0] {
                put_word(at, 9)
            }
        });
        equal("the child", process::wait(child), exited(0));
        let seen = if flags == MAP_PRIVATE { 1 } else { 9 };
        holds((what, offset, "what a child stores"), !wanted[0] || word(at) == seen);
        unmap(at, 2);
    }
    let at = map(to_read, PAGE, PROT_READ, MAP_SHARED, 0).expect("memory");
    equal("zeros", word(at), 0);
    unmap(at, 1);
    let at = map(to_read, PAGE, PROT_READ, MAP_SHARED, 4 * PAGE).expect("memory");
    equal("zeros without an end", word(at), 0);
    equal("never written", call(MPROTECT, [at, PAGE, PROT_READ | PROT_WRITE]), Err(EACCES));
    unmap(at, 1);
    for (flags, file) in [(MAP_SHARED, to_read), (MAP_SHARED | MAP_NORESERVE, file)] {
        let at = map(file, 1 << 40, PROT_READ, flags, 0).expect("addresses");
        unmap(at, (1 << 40) / PAGE);
    }
    for (what, arguments, wanted) in [
        ("shared, to be read", (to_read, PAGE, MAP_SHARED, 0), EACCES),
        ("not to be read", (to_write, PAGE, MAP_PRIVATE, 0), EACCES),
        ("too much, shared", (file, 1 << 40, MAP_SHARED, 0), ENOMEM),
        ("too much", (file, 1 << 40, MAP_PRIVATE, 0), ENOMEM),
        ("grows", (file, PAGE, MAP_PRIVATE | MAP_GROWSDOWN, 0), EINVAL),
        ("grows, shared", (file, PAGE, MAP_SHARED | MAP_GROWSDOWN, 0), EINVAL),
        ("behind the end", (file, 2 * PAGE, MAP_PRIVATE, 0_u64.wrapping_sub(PAGE)), EOVERFLOW),
    ] {
        let (file, bytes, flags, offset) = arguments;
        equal(what, map(file, bytes, PROT_READ | PROT_WRITE, flags, offset), Err(wanted));
    }
    equal("closed", [file, to_read, to_write].map(close), [Ok(0); 3]);
}
