//! `/proc/PID/mem`: the memory of a process, which is read and written as a file.
//!
//! Each answer is Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, protect, advise, put);

fn run(start: Start) -> u8 {
    if start.count() > 1 {
        return after_exec();
    }
    parts! { ()
        of_pages by_protection to_bad_places at_positions in_lists as_a_file of_others of_a_pager
    }
    over_an_exec(start.path());
    status("peek")
}

fn piece(base: u64, length: u64) -> IoVec {
    IoVec { base, length }
}

fn store(at: u64, bytes: &[u8]) {
    bytes.iter().zip(at..).for_each(|(byte, at)| equal("stored", put(at, *byte), Ok(())));
}

fn get<const N: usize>(at: u64) -> [u8; N] {
    core::array::from_fn(|index| probe::read(at + index as u64).expect("the program's own"))
}

/// Waits until a word has a value.
fn wait_for(word: &AtomicU32, value: u32) {
    asleep_until(|| word.load(Ordering::Acquire) == value);
}

fn mem(flags: u32) -> File {
    File::open(c"/proc/self/mem", flags).expect("/proc/self/mem")
}

fn read(file: &File, to: u64, bytes: u64, at: u64) -> Result<u64, Errno> {
    call(PREAD64, [**file, to, bytes, at])
}

fn written(file: &File, from: u64, bytes: u64, at: u64) -> Result<u64, Errno> {
    call(PWRITE64, [**file, from, bytes, at])
}

fn of_pages() {
    let (file, memory, own) = (mem(O_RDWR), map(6 * PAGE, RW).expect("memory"), map(4 * PAGE, RW).expect("memory"));
    (0..6).for_each(|page| store(memory + page * PAGE, b"page here"));
    equal("a hole", call(MUNMAP, [memory + 2 * PAGE, PAGE]), Ok(0));
    equal("read", read(&file, own, 9, memory), Ok(9));
    equal("what is there", get(own), *b"page here");
    store(own, b"written there");
    equal("written", written(&file, own, 13, memory + PAGE), Ok(13));
    equal("what is there", get(memory + PAGE), *b"written there");
    equal("where nothing is", read(&file, own, 9, memory + 2 * PAGE), Err(EIO));
    equal("nor written", written(&file, own, 9, memory + 2 * PAGE), Err(EIO));
    equal("no bytes", read(&file, own, 0, memory + 2 * PAGE), Ok(0));
    equal("up to the hole", read(&file, own, 2 * PAGE, memory + 2 * PAGE - 20), Ok(20));
    equal("also of pages", read(&file, own, 3 * PAGE, memory + 10), Ok(2 * PAGE - 10));
    equal("also written", written(&file, own, 3 * PAGE, memory + 10), Ok(2 * PAGE - 10));
    let new = map(3 * PAGE, RW).expect("memory");
    equal("what was never there", read(&file, own, 9, new), Ok(9));
    equal("zeros", get(own), [0; 9]);
    store(own + PAGE - 2, b"cut!");
    equal("comes by a write", written(&file, own + PAGE - 2, 4, new + 2 * PAGE - 2), Ok(4));
    equal("over two pages", get(new + 2 * PAGE - 2), *b"cut!");
    equal("a tag is ignored", read(&file, own, 4, (new + 2 * PAGE - 2) | 5 << 56), Ok(4));
    equal("read by it", get(own), *b"cut!");
    for at in [0, TOP - 4, TOP, 1 << 52, memory | 1 << 55] {
        equal(("nothing is at", at), read(&file, own, 10, at), Err(EIO));
    }
    let below = map(64 * PAGE, PROT_NONE).expect("addresses") + 60 * PAGE;
    equal("free", call(MUNMAP, [below - 60 * PAGE, 64 * PAGE]), Ok(0));
    let fixed = PRIVATE | MAP_GROWSDOWN | MAP_FIXED;
    equal("a stack", call(MMAP, [below, 2 * PAGE, RW, fixed, u64::MAX, 0]), Ok(below));
    equal("below it", read(&file, own, 4, below - 8), Ok(4));
    store(own, b"over the start");
    equal("written", written(&file, own, 14, below - PAGE - 8), Ok(14));
    equal("it grows", get(below - PAGE - 8), *b"over the start");
    equal("another stack below", call(MMAP, [below - 4 * PAGE, PAGE, RW, fixed, u64::MAX, 0]), Ok(below - 4 * PAGE));
    equal("from one to the other", written(&file, own, PAGE + 8, below - 3 * PAGE - 4), Ok(PAGE + 8));
    equal("that grows too", get(below - 3 * PAGE - 4), *b"over the start");
    equal("unmapped", call(MUNMAP, [below - 4 * PAGE, 6 * PAGE]), Ok(0));
}

/// As the memory permits: more is forced for a tracer alone, on a kernel that is not told otherwise.
fn by_protection() {
    let (file, memory, own) = (mem(O_RDWR), map(PAGE, RW).expect("memory"), map(PAGE, RW).expect("memory"));
    let expected = |is_allowed: bool| if is_allowed { Ok(4) } else { Err(EIO) };
    for (protection, reads, writes) in [
        (PROT_NONE, false, false),
        (PROT_READ, true, false),
        (PROT_WRITE, false, true),
        (PROT_EXEC, false, false),
        (PROT_READ | PROT_EXEC, true, false),
        (RW, true, true),
    ] {
        store(memory, b"kept");
        protect(memory, 1, protection);
        store(own, b"????");
        equal(("written", protection), written(&file, own, 4, memory), expected(writes));
        equal(("read", protection), read(&file, own, 4, memory), expected(reads));
        protect(memory, 1, RW);
        equal(("what is there", protection), &get(memory), if writes { b"????" } else { b"kept" });
    }
    let memfd = File::memory(c"short", 0).expect("a file");
    equal("its size", memfd.resize(PAGE), Ok(0));
    for sharing in [MAP_SHARED, MAP_PRIVATE] {
        let at = call(MMAP, [0, 2 * PAGE, RW, sharing, *memfd, 0]).expect("a mapping");
        equal("a file's", written(&file, own, 4, at), Ok(4));
        equal("behind its end", written(&file, own, 4, at + PAGE), Err(EIO));
        equal("nor read", read(&file, own, 4, at + PAGE), Err(EIO));
        protect(at, 2, PROT_READ);
        equal("read-only", written(&file, own, 4, at), Err(EIO));
        equal("is read", read(&file, own, 4, at), Ok(4));
        equal("up to the end", read(&file, own, PAGE, at + PAGE - 9), Ok(9));
    }
    equal("a guard", advise(memory, 1, MADV_GUARD_INSTALL), Ok(0));
    equal("a guard", read(&file, own, 4, memory), Err(EIO));
}

/// Bytes of the caller's that are not there: the call fails, whatever it has copied, and the position stays.
fn to_bad_places() {
    let (file, memory, own) = (mem(O_RDWR), map(2 * PAGE, RW).expect("memory"), map(3 * PAGE, RW).expect("memory"));
    protect(own + 2 * PAGE, 1, PROT_NONE);
    for (to, bytes) in [(NOWHERE, 10), (KERNEL, 10), (own + 2 * PAGE - 100, 200), (own + PAGE - 1000, 2 * PAGE)] {
        equal("the position", file.seek(memory as i64, SEEK_SET), Ok(memory));
        equal(("read to", to), call(READ, [*file, to, bytes]), Err(EFAULT));
        equal(("written from", to), call(WRITE, [*file, to, bytes]), Err(EFAULT));
        equal("where it is", file.seek(0, SEEK_CUR), Ok(memory));
        equal(("read at a place to", to), read(&file, to, bytes, memory), Err(EFAULT));
        equal(("written at a place from", to), written(&file, to, bytes, memory), Err(EFAULT));
    }
    equal("no bytes to nowhere", read(&file, NOWHERE, 0, memory), Ok(0));
    equal("nor to the kernel", read(&file, KERNEL, 0, memory), Err(EFAULT));
    equal("from nowhere to nowhere", written(&file, NOWHERE, 4, NOWHERE), Err(EFAULT));
    equal("the other way round", read(&file, NOWHERE, 4, NOWHERE), Err(EIO));
}

fn at_positions() {
    let (file, own) = (mem(O_RDWR), map(PAGE, RW).expect("memory"));
    let seek = |offset: i64, whence| call(LSEEK, [*file, offset as u64, whence]);
    equal("from the start", seek(5, 0), Ok(5));
    equal("from there", seek(3, 1), Ok(8));
    for whence in [2, 3, 4, 5] {
        equal(("from elsewhere", whence), seek(0, whence), Err(EINVAL));
    }
    equal("also below 0", seek(i64::MIN, 0), Ok(i64::MIN as u64));
    equal("where nothing is", call(READ, [*file, own, 8]), Err(EIO));
    equal("where it is", seek(0, 1), Ok(i64::MIN as u64));
    seek(-5000, 0).expect("the last page of all");
    for number in [READ, WRITE] {
        equal(("up to the last byte", number), call(number, [*file, own, 4999]), Err(EIO));
        equal(("over it", number), call(number, [*file, own, 5000]), Err(EOVERFLOW));
        equal(("nothing", number), call(number, [*file, own, 0]), Ok(0));
    }
    seek(i64::MAX - 4, 0).expect("a position");
    equal("over the sign", call(READ, [*file, own, 8]), Err(EIO));
    for number in [PREAD64, PWRITE64] {
        equal(("a negative place", number), call(number, [*file, own, 8, -8_i64 as u64]), Err(EINVAL));
        equal(("the last place", number), call(number, [*file, own, 8, i64::MAX as u64]), Err(EIO));
    }
    let memory = map(2 * PAGE, RW).expect("memory");
    protect(memory + PAGE, 1, PROT_NONE);
    seek((memory + PAGE - 50) as i64, 0).expect("a position");
    equal("a part", call(WRITE, [*file, own, 100]), Ok(50));
    equal("after it", seek(0, 1), Ok(memory + PAGE));
    equal("no more", call(READ, [*file, own, 100]), Err(EIO));
    equal("where it is", seek(0, 1), Ok(memory + PAGE));
}

fn in_lists() {
    let (file, memory, own) = (mem(O_RDWR), map(2 * PAGE, RW).expect("memory"), map(PAGE, RW).expect("memory"));
    protect(memory + PAGE, 1, PROT_NONE);
    store(memory, b"abcdefghijkl");
    let list = |number: usize, at: u64, pieces: &[IoVec]| {
        equal("the position", file.seek(at as i64, SEEK_SET), Ok(at));
        let moved = call(number, [*file, pieces.as_ptr() as u64, pieces.len() as u64]);
        (moved, file.seek(0, SEEK_CUR).map(|end| end - at))
    };
    let pieces = [piece(own, 4), piece(own + 100, 0), piece(own + 200, 4)];
    equal("read", list(READV, memory, &pieces), (Ok(8), Ok(8)));
    equal("in order", (get(own), get(own + 200)), (*b"abcd", *b"efgh"));
    equal("written", list(WRITEV, memory + 12, &pieces), (Ok(8), Ok(8)));
    equal("in order", get(memory + 12), *b"abcdefgh");
    equal("up to the end", list(READV, memory + PAGE - 6, &pieces), (Ok(6), Ok(6)));
    equal("behind it", list(READV, memory + PAGE, &pieces), (Err(EIO), Ok(0)));
    let pieces = [piece(own, 4), piece(NOWHERE, 4)];
    equal("a bad piece", list(READV, memory, &pieces), (Ok(4), Ok(4)));
    equal("a bad piece, written", list(WRITEV, memory, &pieces), (Ok(4), Ok(4)));
    equal("a bad piece first", list(WRITEV, memory, &pieces[1..]), (Err(EFAULT), Ok(0)));
    equal("empty ones", list(READV, memory + PAGE, &[piece(own, 0), piece(own, 0)]), (Ok(0), Ok(0)));
}

fn as_a_file() {
    let (file, memory) = (mem(O_RDWR | O_APPEND), map(PAGE, RW).expect("memory"));
    store(memory, b"end");
    let stat = file.stat();
    equal("what it is", (stat.st_mode, stat.st_size, stat.st_nlink), (S_IFREG | 0o600, 0, 1));
    equal("not at the end", written(&file, memory, 3, memory + 7), Ok(3));
    equal("but there", get(memory + 7), *b"end");
    equal("mmap", call(MMAP, [0, PAGE, PROT_READ, MAP_SHARED, *file, 0]), Err(ENODEV));
    equal("fsync", call(FSYNC, [*file]), Err(EINVAL));
    equal("fallocate", file.allocate(0, 0, 10), Err(ENOTSUP));
    equal("ftruncate", file.resize(10), Ok(0));
    equal("the other way", read(&mem(O_WRONLY), memory, 3, memory), Err(EBADF));
    let file = mem(O_RDONLY);
    equal("the other way", written(&file, memory, 3, memory), Err(EBADF));
    equal("ftruncate", file.resize(10), Err(EINVAL));
    equal("cut short", File::open(c"/proc/self/mem", O_RDWR | O_TRUNC).map(drop), Ok(()));
    equal("past the cache", File::open(c"/proc/self/mem", O_RDWR | O_DIRECT), Err(EINVAL));
}

fn of_others() {
    let signal = shared::<AtomicU32>();
    let memory = map(PAGE, RW).expect("memory");
    store(memory, b"parent's");
    let child = process::spawn::<()>(|| {
        store(memory, b"child's ");
        signal.store(1, Ordering::Release);
        wait_for(signal, 2);
        equal("what the parent wrote", get(memory), *b"parent's");
        signal.store(3, Ordering::Release);
        time::sleep_for_ever();
    });
    wait_for(signal, 1);
    let (file, to) = (proc::open_with(child, "mem", O_RDWR).expect("a child's"), map(PAGE, RW).expect("memory"));
    equal("read", read(&file, to, 8, memory), Ok(8));
    equal("what it has", get(to), *b"child's ");
    equal("written", written(&file, memory, 8, memory), Ok(8));
    signal.store(2, Ordering::Release);
    wait_for(signal, 3);
    until_zombie(SIGCHLD, || process::kill(child as i32, SIGKILL).expect("a signal"));
    let of_none = || {
        equal("nothing is read", read(&file, to, 8, memory), Ok(0));
        equal("nor written, wherever", written(&file, NOWHERE, 8, NOWHERE), Ok(0));
    };
    of_none();
    equal("nor opened", proc::open(child, "mem"), Err(ESRCH));
    let place = proc::open_with(child, "mem", O_PATH).map(|file| file.stat().st_mode);
    equal("but its place", place, Ok(S_IFREG | 0o600));
    equal("its end", process::wait(child), SIGKILL);
    of_none();
    equal("it is gone", proc::open(child, "mem"), Err(ENOENT));
}

/// A pager serves no access of such a file: it fails.
fn of_a_pager() {
    let (file, memory, own) = (mem(O_RDWR), map(3 * PAGE, RW).expect("memory"), map(PAGE, RW).expect("memory"));
    store(memory + PAGE, b"protected");
    let pager = Pager::new(O_NONBLOCK, 0).expect("a pager");
    let both = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
    pager.register(memory, 3 * PAGE, both).expect("registered");
    pager.protect(memory + PAGE, PAGE).expect("protected");
    equal("what is not there", read(&file, own, 9, memory), Err(EIO));
    equal("nor written", written(&file, own, 9, memory + 2 * PAGE), Err(EIO));
    equal("what is protected", written(&file, own, 9, memory + PAGE), Err(EIO));
    equal("is read", read(&file, own, 9, memory + PAGE), Ok(9));
    equal("up to what is not there", read(&file, own, PAGE, memory + 2 * PAGE - 9), Ok(9));
    equal("it is not asked", pager.read_one().map(drop), Err(EAGAIN));
    pager.close().expect("closed");
}

/// The descriptors that stay over an exec.
const KEPT: [u64; 2] = [100, 101];

/// A file of memory is of the memory that there was; `clear_refs` of what there is.
fn over_an_exec(path: &CStr) {
    let child = process::spawn(|| {
        let file = File::open(c"/proc/self/clear_refs", O_WRONLY).expect("a file");
        for (from, to) in [*mem(O_RDWR), *file].into_iter().zip(KEPT) {
            equal("kept", call(DUP3, [from, to, 0]), Ok(to));
        }
        process::execute(path, &[path, c"after"]);
        1_u8
    });
    equal("its end", process::wait(child), exited(0));
}

fn after_exec() -> u8 {
    let (mem, order, own) = (File(KEPT[0]), File(KEPT[1]), map(PAGE, RW).expect("memory"));
    equal("nothing is read", read(&mem, own, 8, own), Ok(0));
    equal("nor written", written(&mem, own, 8, own), Ok(0));
    equal("an order", order.write(b"1"), Ok(1));
    wrong()
}
