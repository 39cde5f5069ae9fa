//! Memory that a process accesses of others, and state that it shows of itself: process_vm_readv and process_vm_writev,
//! `/proc/PID/pagemap`, the robust futexes that a thread leaves, and small calls of C libraries.
//!
//! Each answer is Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

fn run(start: Start) -> u8 {
    parts! { ()
        own_memory refusals lists protections another_process large pagemap_of_pages pagemap_of_objects
        pagemap_as_a_file pagemap_of_others
    }
    names(start.path());
    robust_lists();
    affinity();
    status("remote")
}

fn vm(read: bool, id: u64, own: &[IoVec], other: &[IoVec], flags: u64) -> Result<u64, Errno> {
    let number = if read { PROCESS_VM_READV } else { PROCESS_VM_WRITEV };
    let (own, other) = ((own.as_ptr() as u64, own.len() as u64), (other.as_ptr() as u64, other.len() as u64));
    call(number, [id, own.0, own.1, other.0, other.1, flags])
}

fn me() -> u64 {
    process::id().into()
}

fn piece(base: u64, length: u64) -> IoVec {
    IoVec { base, length }
}

fn put(at: u64, bytes: &[u8]) {
    for (index, byte) in bytes.iter().enumerate() {
        // SAFETY: the program's own, without references to it.
        unsafe { ((at + index as u64) as *mut u8).write_volatile(*byte) };
    }
}

fn get<const N: usize>(at: u64) -> [u8; N] {
    // SAFETY: as above.
    core::array::from_fn(|index| unsafe { ((at + index as u64) as *const u8).read_volatile() })
}

fn closed(at: u64, pages: u64, protection: u64) {
    equal("protected", call(MPROTECT, [at, pages * PAGE, protection]), Ok(0));
}

fn advise(at: u64, advice: u64) {
    equal(("advice", advice), call(MADVISE, [at, PAGE, advice]), Ok(0));
}

fn own_memory() {
    let memory = map(4 * PAGE, RW).expect("memory");
    put(memory, b"from here");
    let to = memory + 2 * PAGE;
    equal("a process reads itself", vm(true, me(), &[piece(to, 9)], &[piece(memory, 9)], 0), Ok(9));
    equal("what is there", get(to), *b"from here");
    put(memory, b"and there");
    equal("and writes", vm(false, me(), &[piece(memory, 9)], &[piece(to, 9)], 0), Ok(9));
    equal("what was there", get(to), *b"and there");
    let thread = u64::from(process::thread_id());
    equal("by a thread's number", vm(true, thread, &[piece(to, 1)], &[piece(memory, 1)], 0), Ok(1));
    // A page that was never there.
    equal("zeros", vm(true, me(), &[piece(to, 9)], &[piece(memory + PAGE, 9)], 0), Ok(9));
    equal("are there", get(to), [0; 9]);
    let at = memory + 3 * PAGE;
    equal("a page comes by a write", vm(false, me(), &[piece(memory, 3)], &[piece(at, 3)], 0), Ok(3));
    equal("with it", get(at), *b"and");
}

fn refusals() {
    let memory = map(2 * PAGE, RW).expect("memory");
    let (here, there) = (piece(memory, 4), piece(memory + PAGE, 4));
    for read in [true, false] {
        let vm = |id, own: &[IoVec], other: &[IoVec], flags| vm(read, id, own, other, flags);
        equal("flags first", call(PROCESS_VM_READV, [me(), NOWHERE, 9999, NOWHERE, 9999, 1]), Err(EINVAL));
        equal("flags", vm(me(), &[here], &[there], 1 << 40), Err(EINVAL));
        equal("nothing here", vm(0, &[], &[there], 0), Ok(0));
        equal("no bytes here", vm(0, &[piece(memory, 0)], &[there], 0), Ok(0));
        equal("nothing there", vm(0, &[here], &[], 0), Ok(0));
        equal("no bytes there", vm(0, &[here], &[piece(NOWHERE, 0)], 0), Ok(0));
        for id in [0, u64::MAX, 999_999, 1 << 31] {
            equal(("no process", id), vm(id, &[here], &[there], 0), Err(ESRCH));
        }
        equal("numbers have 32 bits", vm(me() | 1 << 32, &[here], &[there], 0), Ok(4));
        equal("a bad place here", vm(me(), &[piece(NOWHERE, 4)], &[there], 0), Err(EFAULT));
        equal("a place of the kernel here", vm(0, &[piece(KERNEL, 4)], &[there], 0), Err(EFAULT));
        equal("a bad place there", vm(me(), &[here], &[piece(NOWHERE, 4)], 0), Err(EFAULT));
        equal("a place of the kernel there", vm(me(), &[here], &[piece(KERNEL, 4)], 0), Err(EFAULT));
        equal("the last address there", vm(me(), &[here], &[piece(TOP - 2, 4)], 0), Err(EFAULT));
        equal("a negative length here", vm(0, &[piece(memory, 1 << 63)], &[there], 0), Err(EINVAL));
        equal("a negative length there", vm(0, &[here], &[piece(memory, 1 << 63)], 0), Err(EINVAL));
    }
    let at = &raw const here as u64;
    let vm = |own: [u64; 2], other: [u64; 2]| call(PROCESS_VM_READV, [0, own[0], own[1], other[0], other[1], 0]);
    equal("too many here", vm([at, 1025], [NOWHERE, 1]), Err(EINVAL));
    equal("too many there", vm([at, 1], [NOWHERE, 1025]), Err(EINVAL));
    equal("a list from nowhere here", vm([NOWHERE, 1], [NOWHERE, 1]), Err(EFAULT));
    equal("a list from nowhere there", vm([at, 1], [NOWHERE, 1]), Err(EFAULT));
    equal("a count of 32 bits here", vm([at, 1 << 32], [NOWHERE, 9999]), Ok(0));
    equal("of 64 bits there", vm([at, 1], [at, 1 << 32]), Err(EINVAL));
}

fn lists() {
    let memory = map(4 * PAGE, RW).expect("memory");
    let there = memory + PAGE;
    put(there, b"abcdefghij");
    let own = [piece(memory, 3), piece(NOWHERE, 0), piece(memory + 100, 4)];
    let other = [piece(there, 1), piece(there + 2, 5), piece(there + 9, 1)];
    equal("lists", vm(true, me(), &own, &other, 0), Ok(7));
    equal("in order", (get(memory), get(memory + 100)), (*b"acd", *b"efgj"));
    let own = [piece(memory, 3)];
    equal("as much as there is here", vm(true, me(), &own, &other, 0), Ok(3));
    equal("as much as there is there", vm(true, me(), &[piece(memory, 100)], &other, 0), Ok(7));
    equal("a bad piece is not reached", vm(true, me(), &own, &[other[0], other[1], piece(NOWHERE, 9)], 0), Ok(3));
    let own = [piece(memory, 100)];
    equal("a bad piece ends it", vm(true, me(), &own, &[other[0], piece(NOWHERE, 9), other[1]], 0), Ok(1));
    equal("also of the kernel", vm(true, me(), &own, &[other[0], piece(KERNEL, 9), other[1]], 0), Ok(1));
    closed(memory + 2 * PAGE, 1, PROT_NONE);
    let over = [piece(memory + 2 * PAGE - 10, 20)];
    equal("a bad page there", vm(true, me(), &own, &over, 0), Ok(10));
    equal("a bad page here", vm(true, me(), &over, &[piece(memory, 50)], 0), Ok(10));
    equal("a bad page there", vm(false, me(), &own, &over, 0), Ok(10));
    equal("a bad page here", vm(false, me(), &over, &[piece(memory, 50)], 0), Ok(10));
    let (own, other) = ([piece(memory, 4000)], [piece(there + 10, 5000)]);
    equal("two pages, of which the second is bad", vm(true, me(), &own, &other, 0), Ok(4000));
}

fn protections() {
    let memory = map(3 * PAGE, RW).expect("memory");
    let there = memory + PAGE;
    put(there, b"kept");
    closed(there, 1, PROT_READ);
    let (own, other) = ([piece(memory, 4)], [piece(there, 4)]);
    let into = map(2 * PAGE, RW).expect("memory");
    equal("read-only memory is read", vm(true, me(), &own, &other, 0), Ok(4));
    equal("and not written", vm(false, me(), &own, &other, 0), Err(EFAULT));
    closed(there, 1, PROT_NONE);
    equal("closed memory is not read", vm(true, me(), &own, &other, 0), Err(EFAULT));
    equal("nor written", vm(false, me(), &own, &other, 0), Err(EFAULT));
    // By the protection that was asked for: CPUs load what may only be written, and some what may only be executed.
    let both = [piece(memory, 2 * PAGE)];
    for (protection, reads, writes) in [
        (PROT_WRITE, false, true),
        (PROT_EXEC, false, false),
        (PROT_WRITE | PROT_EXEC, false, true),
        (PROT_READ | PROT_EXEC, true, false),
    ] {
        closed(there, 1, protection);
        let expected = |is_allowed: bool| if is_allowed { Ok(4) } else { Err(EFAULT) };
        equal(("read", protection), vm(true, me(), &own, &other, 0), expected(reads));
        equal(("written", protection), vm(false, me(), &[piece(memory, 4)], &other, 0), expected(writes));
        let so_far = if reads { 2 * PAGE } else { PAGE };
        equal(("as far as it is allowed", protection), vm(true, me(), &[piece(into, 2 * PAGE)], &both, 0), Ok(so_far));
        closed(there, 1, RW);
        put(there, b"kept");
    }
    equal("it is as it was", get(there), *b"kept");
    advise(there, MADV_GUARD_INSTALL);
    equal("is not read", vm(true, me(), &own, &other, 0), Err(EFAULT));
    let file = File::memory(c"short", 0).expect("a file");
    let short = call(MMAP, [0, PAGE, RW, MAP_SHARED, *file, 0]).expect("a mapping");
    equal("behind the end of a file", vm(true, me(), &own, &[piece(short, 4)], 0), Err(EFAULT));
}

static WORD: AtomicU32 = AtomicU32::new(0);

fn shared(pages: u64) -> u64 {
    call(MMAP, [0, pages * PAGE, RW, SHARED, u64::MAX, 0]).expect("shared memory")
}

/// Waits until a word has a value.
fn wait_for(word: &AtomicU32, value: u32) {
    asleep_until(|| word.load(Ordering::Acquire) == value);
}

fn another_process() {
    let signal = granule_user::memory::shared::<AtomicU32>();
    let memory = map(2 * PAGE, RW).expect("memory");
    put(memory, b"parent's");
    let child = process::spawn(|| {
        put(memory, b"child's ");
        signal.store(1, Ordering::Release);
        wait_for(signal, 2);
        equal("what the parent wrote", get(memory), *b"written!");
        equal("also where nothing was", get(memory + PAGE), *b"written!");
        wrong()
    });
    wait_for(signal, 1);
    let to = map(PAGE, RW).expect("memory");
    equal("a child is read", vm(true, child.into(), &[piece(to, 8)], &[piece(memory, 8)], 0), Ok(8));
    equal("what it has", (get(to), get(memory)), (*b"child's ", *b"parent's"));
    put(to, b"written!");
    for at in [memory, memory + PAGE] {
        equal("it is written", vm(false, child.into(), &[piece(to, 8)], &[piece(at, 8)], 0), Ok(8));
    }
    equal("the own page is as before", get(memory), *b"parent's");
    signal.store(2, Ordering::Release);
    // It ends, and is not collected yet.
    asleep_until(|| vm(true, child.into(), &[piece(to, 8)], &[piece(memory, 8)], 0) == Err(ESRCH));
    equal("how it ended", process::wait(child), exited(0));
    equal("it is gone", vm(true, child.into(), &[piece(to, 8)], &[piece(memory, 8)], 0), Err(ESRCH));
}

fn large() {
    const BYTES: u64 = 3 << 20;
    let memory = map(2 * BYTES, RW).expect("memory");
    for page in 0..BYTES / PAGE {
        put(memory + page * PAGE + page % PAGE, &[page as u8 | 1]);
    }
    let to = memory + BYTES;
    equal("much", vm(true, me(), &[piece(to + 5, BYTES - 5)], &[piece(memory + 5, BYTES - 5)], 0), Ok(BYTES - 5));
    let differ = (1..BYTES / PAGE).filter(|page| get::<1>(to + page * PAGE + page % PAGE) != [*page as u8 | 1]).count();
    equal("all of it", differ, 0);
}

fn read_at(file: &File, words: &mut [u64], position: u64) -> Result<u64, Errno> {
    call(PREAD64, [**file, words.as_mut_ptr() as u64, 8 * words.len() as u64, position])
}

fn pagemap() -> File {
    File::open(c"/proc/self/pagemap", O_RDONLY).expect("/proc/self/pagemap")
}

/// The words of pages.
fn shown<const N: usize>(file: &File, at: u64) -> [u64; N] {
    let mut words = [0; N];
    equal("pread", read_at(file, &mut words, at / PAGE * 8), Ok(8 * N as u64));
    words
}

/// Without the frame's number.
fn flags(words: impl IntoIterator<Item = u64>) -> [u64; 4] {
    let mut words = words.into_iter().map(|word| word & !PM_PFRAME);
    core::array::from_fn(|_| words.next().unwrap_or(0))
}

const OWN: u64 = PM_PRESENT | PM_MMAP_EXCLUSIVE;

fn pagemap_of_pages() {
    let file = pagemap();
    let memory = map(4 * PAGE, RW).expect("memory");
    equal("nothing yet", shown(&file, memory), [0; 4]);
    put(memory, b"x");
    put(memory + 2 * PAGE, b"x");
    let words = shown::<4>(&file, memory);
    equal("pages of its own", flags(words), [OWN, 0, OWN, 0]);
    let frames = words.map(|word| word & PM_PFRAME);
    holds("frames have numbers", frames[0] != 0 && frames[2] != 0 && frames[0] != frames[2]);
    equal("what is empty is 0", (words[1], words[3]), (0, 0));
    let _: [u8; 1] = get(memory + PAGE);
    equal("zeros have no owner", flags(shown::<4>(&file, memory)), [OWN, PM_PRESENT, OWN, 0]);
    closed(memory, 1, PROT_NONE);
    equal("closed pages are there", flags(shown::<1>(&file, memory)), [OWN, 0, 0, 0]);
    closed(memory, 1, RW);
    apart(|| {
        let own = pagemap();
        equal("a fork shares", flags(shown::<1>(&own, memory)), [PM_PRESENT, 0, 0, 0]);
        equal("the same frame", shown::<1>(&own, memory)[0] & PM_PFRAME, frames[0]);
        put(memory, b"y");
        equal("until a store", flags(shown::<1>(&own, memory)), [OWN, 0, 0, 0]);
        holds("another frame", shown::<1>(&own, memory)[0] & PM_PFRAME != frames[0]);
        equal("a file that was opened before is the parent's", shown::<1>(&file, memory)[0] & PM_PFRAME, frames[0]);
    });
    equal("its own again", flags(shown::<1>(&file, memory)), [OWN, 0, 0, 0]);
    advise(memory, MADV_DONTNEED);
    equal("it is gone", shown(&file, memory), [0]);
    advise(memory, MADV_GUARD_INSTALL);
    // The type of a marker, and which one.
    equal("is shown as one", shown(&file, memory), [PM_SWAP | PM_GUARD_REGION | 4 << 5 | 31]);
}

fn pagemap_of_objects() {
    let file = pagemap();
    let memory = shared(3);
    put(memory, b"x");
    equal("shared memory", flags(shown::<3>(&file, memory)), [OWN | PM_FILE, 0, 0, 0]);
    apart(|| {
        let own = pagemap();
        equal("a child has no entry yet", shown(&own, memory), [0; 3]);
        let _: [u8; 1] = get(memory);
        equal("then both have", flags(shown::<1>(&own, memory)), [PM_PRESENT | PM_FILE, 0, 0, 0]);
    });
    equal("its own again", flags(shown::<1>(&file, memory)), [OWN | PM_FILE, 0, 0, 0]);
    let memfd = File::memory(c"pages", 0).expect("a file");
    equal("two pages", call(PWRITE64, [*memfd, c"x".as_ptr() as u64, 1, PAGE]), Ok(1));
    let at = call(MMAP, [0, 2 * PAGE, RW, 2, *memfd, 0]).expect("a private mapping");
    let _: [u8; 1] = get(at + PAGE);
    equal("a file's page", flags(shown::<2>(&file, at))[1] & (PM_PRESENT | PM_FILE), PM_PRESENT | PM_FILE);
    put(at + PAGE, b"y");
    equal("a copy is its own", flags(shown::<2>(&file, at))[1], OWN);
}

fn pagemap_as_a_file() {
    let file = pagemap();
    let memory = map(PAGE, RW).expect("memory");
    put(memory, b"x");
    let place = memory / PAGE * 8;
    let mut words = [7_u64; 4];
    let at = words.as_mut_ptr() as u64;
    for bytes in [1, 7, 9, 15] {
        equal(("not whole words", bytes), call(PREAD64, [*file, at, bytes, place]), Err(EINVAL));
        equal(("not at a word", bytes), call(PREAD64, [*file, at, 8, place + bytes]), Err(EINVAL));
        equal(("not at a word, nothing", bytes), call(PREAD64, [*file, at, 0, place + bytes]), Err(EINVAL));
    }
    equal("nothing", call(PREAD64, [*file, at, 0, place]), Ok(0));
    equal("to nowhere", call(PREAD64, [*file, NOWHERE, 8, place]), Err(EFAULT));
    equal("to the kernel", call(PREAD64, [*file, KERNEL, 8, place]), Err(EFAULT));
    equal("behind the end, to nowhere", call(PREAD64, [*file, NOWHERE, 8, TOP / PAGE * 8]), Ok(0));
    equal("before the start", call(PREAD64, [*file, at, 8, -8_i64 as u64]), Err(EINVAL));
    let end = TOP / PAGE * 8;
    equal("up to the end", call(PREAD64, [*file, at, 32, end - 16]), Ok(16));
    equal("where nothing is", words[..2].as_ref(), [0, 0].as_slice());
    equal("the end", call(PREAD64, [*file, at, 32, end]), Ok(0));
    equal("behind it", call(PREAD64, [*file, at, 32, end + 8]), Ok(0));
    equal("far behind it", call(PREAD64, [*file, at, 32, i64::MAX as u64 & !7]), Err(EINVAL));
    equal("page 0", call(PREAD64, [*file, at, 8, 0]), Ok(8));
    equal("lseek", call(LSEEK, [*file, place, SEEK_SET.into()]), Ok(place));
    equal("read", call(READ, [*file, at, 8]), Ok(8));
    equal("the page", words[0] & !PM_PFRAME, OWN);
    equal("where it is", call(LSEEK, [*file, 0, SEEK_CUR.into()]), Ok(place + 8));
    equal("back", call(LSEEK, [*file, -8_i64 as u64, SEEK_CUR.into()]), Ok(place));
    equal("a part of a word", call(READ, [*file, at, 12]), Err(EINVAL));
    equal("to nowhere", call(READ, [*file, NOWHERE, 8]), Err(EFAULT));
    equal("where it is", call(LSEEK, [*file, 0, SEEK_CUR.into()]), Ok(place));
    let list = [piece(at, 8), piece(at + 8, 16), piece(at + 24, 4)];
    equal("readv", call(READV, [*file, list.as_ptr() as u64, 3]), Ok(24));
    equal("where it is", call(LSEEK, [*file, 0, SEEK_CUR.into()]), Ok(place + 24));
    equal("from the end", call(LSEEK, [*file, 0, SEEK_END.into()]), Err(EINVAL));
    equal("anywhere", call(LSEEK, [*file, 3, SEEK_SET.into()]), Ok(3));
    equal("but not to read", call(READ, [*file, at, 8]), Err(EINVAL));
    equal("write", call(WRITE, [*file, at, 8]), Err(EBADF));
    equal("mmap", call(MMAP, [0, PAGE, PROT_READ, MAP_SHARED, *file, 0]), Err(ENODEV));
    equal("fsync", call(FSYNC, [*file]), Err(EINVAL));
    pagemap_opened_otherwise(&file, place);
}

fn pagemap_opened_otherwise(file: &File, place: u64) {
    let (mut left, mut words) = (0_u32, [7_u64; 4]);
    let at = words.as_mut_ptr() as u64;
    equal("lseek", call(LSEEK, [**file, 16, SEEK_SET.into()]), Ok(16));
    equal("FIONREAD", call(IOCTL, [**file, FIONREAD.into(), &raw mut left as u64]), Ok(0));
    equal("has none", left, -16_i32 as u32);
    let stat = file.stat();
    equal("what it is", (stat.st_mode, stat.st_size, stat.st_nlink), (S_IFREG | 0o400, 0, 1));
    let file = File::open(c"/proc/self/pagemap", O_RDWR).expect("also for writing");
    equal("but not to write", call(WRITE, [*file, at, 8]), Err(EINVAL));
    equal("nor at a place", call(PWRITE64, [*file, at, 8, 0]), Err(EINVAL));
    let file = File::open(c"/proc/self/pagemap", O_WRONLY).expect("for writing alone");
    equal("it is not read", call(READ, [*file, at, 8]), Err(EBADF));
    equal("no directory", File::open(c"/proc/self/pagemap", O_DIRECTORY), Err(ENOTDIR));
    equal("nothing below it", File::open(c"/proc/self/pagemap/x", O_RDONLY), Err(ENOTDIR));
    equal("no such file", File::open(c"/proc/self/nothing", O_RDONLY), Err(ENOENT));
    equal("no such process", File::open(c"/proc/999999/pagemap", O_RDONLY), Err(ENOENT));
    equal("no number", File::open(c"/proc/01/pagemap", O_RDONLY), Err(ENOENT));
    let root = File::open(c"/proc", O_PATH).expect("/proc");
    let relative =
        call(OPENAT, [*root, c"self/pagemap".as_ptr() as u64, O_RDONLY.into()]).map(File).expect("from there");
    equal("a word", read_at(&relative, &mut words[..1], place), Ok(8));
    equal("the page", words[0] & !PM_PFRAME, OWN);
}

/// `/proc/NUMBER/pagemap`.
fn path_of(number: u32) -> [u8; 32] {
    let mut path = [0; 32];
    let mut digits = [0; 10];
    let (mut rest, mut count) = (number, 0);
    while rest != 0 || count == 0 {
        digits[count] = b'0' + (rest % 10) as u8;
        (rest, count) = (rest / 10, count + 1);
    }
    let name = digits[..count].iter().rev();
    let bytes = b"/proc/".iter().chain(name).chain(b"/pagemap");
    path.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
    path
}

fn pagemap_of_others() {
    let signal = granule_user::memory::shared::<AtomicU32>();
    let memory = map(2 * PAGE, RW).expect("memory");
    put(memory, b"x");
    let child = process::spawn(|| {
        put(memory + PAGE, b"y");
        signal.store(1, Ordering::Release);
        wait_for(signal, 2);
    });
    wait_for(signal, 1);
    let path = path_of(child);
    let path = CStr::from_bytes_until_nul(&path).expect("a path");
    let file = File::open(path, O_RDONLY).expect("a child's pages");
    equal("of both", flags(shown::<2>(&file, memory)), [PM_PRESENT, OWN, 0, 0]);
    signal.store(2, Ordering::Release);
    let mut words = [0; 2];
    asleep_until(|| read_at(&file, &mut words, memory / PAGE * 8) == Ok(0));
    equal("of a process that has ended nothing is read, wherever", read_at(&file, &mut words, 3), Ok(0));
    equal("nor opened", File::open(path, O_RDONLY), Err(ESRCH));
    equal("how it ended", process::wait(child), exited(0));
    equal("it is gone", File::open(path, O_RDONLY), Err(ENOENT));
    equal("the file stays", read_at(&file, &mut words, 0), Ok(0));
}

fn stat_at(directory: u64, path: &CStr, flags: u32) -> Result<Stat, Errno> {
    let mut stat = Stat::default();
    let arguments = [directory, path.as_ptr() as u64, &raw mut stat as u64, flags.into()];
    call(NEWFSTATAT, arguments).map(|_| stat)
}

fn names(path: &CStr) {
    let file = File::open(path, O_RDONLY).expect("the program");
    let mut stat = file.stat();
    for flags in [0, AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH, 0x800, 0x4000] {
        equal(("newfstatat", flags), stat_at(HERE, path, flags), Ok(stat));
    }
    equal("no path", stat_at(*file, c"", AT_EMPTY_PATH), Ok(stat));
    equal("no path, other flags", stat_at(*file, c"", AT_EMPTY_PATH | 1), Ok(stat));
    let at = &raw mut stat as u64;
    equal("no path at all", call(NEWFSTATAT, [*file, 0, at, AT_EMPTY_PATH.into()]), Ok(0));
    equal("no path at all, no flag", call(NEWFSTATAT, [*file, 0, at, 0]), Err(EFAULT));
    equal("an empty path", stat_at(*file, c"", 0), Err(ENOENT));
    equal("an empty path, no descriptor", stat_at(999, c"", AT_EMPTY_PATH), Err(EBADF));
    let root = stat_at(HERE, c"/", 0).expect("the root");
    equal("a directory", root.st_mode & S_IFMT, S_IFDIR);
    equal("an absolute path, no directory", stat_at(999, c"/", 0), Ok(root));
    equal("here", stat_at(HERE, c"", AT_EMPTY_PATH).map(|stat| stat.st_ino), Ok(root.st_ino));
    for flags in [1, 2, 0x10, 0x200, 0x400, 0x1_0000, 0x8000_0000] {
        equal(("a flag that is none", flags), stat_at(HERE, path, flags), Err(EINVAL));
    }
    equal("no such file", stat_at(HERE, c"/nosuch", 0), Err(ENOENT));
    equal("below a file", stat_at(*file, c"x", 0), Err(ENOTDIR));
    equal("no directory", stat_at(999, c"x", 0), Err(EBADF));
    equal("to nowhere", call(NEWFSTATAT, [HERE, path.as_ptr() as u64, NOWHERE, 0]), Err(EFAULT));
    equal("from nowhere", call(NEWFSTATAT, [HERE, NOWHERE, at, 0]), Err(EFAULT));
    equal("/proc", stat_at(HERE, c"/proc", 0).map(|stat| stat.st_mode), Ok(S_IFDIR | 0o555));
    equal("a file of /proc", stat_at(HERE, c"/proc/self/pagemap", 0).map(|stat| stat.st_mode), Ok(S_IFREG | 0o400));
    let mut buffer = [0; 64];
    let to = buffer.as_mut_ptr() as u64;
    let link = |directory, path: &CStr, room: u64| call(READLINKAT, [directory, path.as_ptr() as u64, to, room]);
    equal("no link", link(HERE, path, 64), Err(EINVAL));
    equal("no such link", link(HERE, c"/nosuch", 64), Err(ENOENT));
    equal("no room", link(HERE, c"/nosuch", 0), Err(EINVAL));
    equal("negative room", link(HERE, c"/nosuch", u64::MAX), Err(EINVAL));
    equal("no path", link(HERE, c"", 64), Err(ENOENT));
    equal("from nowhere", call(READLINKAT, [HERE, NOWHERE, to, 64]), Err(EFAULT));
}

/// An entry of a list of robust futexes, as a C library has it in a mutex.
#[repr(C)]
struct Futex {
    next: AtomicU64,
    word: AtomicU32,
}

const OFFSET: i64 = core::mem::offset_of!(Futex, word) as i64;

impl Futex {
    const fn new() -> Self {
        Self { next: AtomicU64::new(0), word: AtomicU32::new(0) }
    }

    fn at(&self) -> u64 {
        core::ptr::from_ref(self) as u64
    }
}

static FUTEXES: [Futex; 5] = [const { Futex::new() }; 5];

/// A head in static memory, since a thread's stack is unmapped.
struct Head([AtomicU64; 3]);
static HEAD: Head = Head([const { AtomicU64::new(0) }; 3]);

fn set_head(next: u64, pending: u64) -> u64 {
    let head = &raw const HEAD as u64;
    let words = [if next == 0 { head } else { next }, OFFSET as u64, pending];
    HEAD.0.iter().zip(words).for_each(|(place, word)| place.store(word, Ordering::Relaxed));
    head
}

const ROBUST_BYTES: u64 = size_of::<RobustListHead>() as u64;

fn robust_lists() {
    for bytes in [0, ROBUST_BYTES - 1, ROBUST_BYTES + 1, 12] {
        equal(("not its size", bytes), call(SET_ROBUST_LIST, [NOWHERE, bytes]), Err(EINVAL));
    }
    equal("anything", call(SET_ROBUST_LIST, [KERNEL, ROBUST_BYTES]), Ok(0));
    let (mut head, mut bytes) = (1_u64, 2_u64);
    let (head_at, bytes_at) = (&raw mut head as u64, &raw mut bytes as u64);
    equal("get_robust_list", call(GET_ROBUST_LIST, [0, head_at, bytes_at]), Ok(0));
    equal("has it", (head, bytes), (KERNEL, ROBUST_BYTES));
    equal("by its number", call(GET_ROBUST_LIST, [me(), head_at, bytes_at]), Ok(0));
    equal("no thread", call(GET_ROBUST_LIST, [999_999, head_at, bytes_at]), Err(ESRCH));
    equal("to nowhere", call(GET_ROBUST_LIST, [0, NOWHERE, bytes_at]), Err(EFAULT));
    equal("to nowhere", call(GET_ROBUST_LIST, [0, head_at, NOWHERE]), Err(EFAULT));
    equal("none", call(SET_ROBUST_LIST, [0, ROBUST_BYTES]), Ok(0));
    apart(|| {
        // A child has none.
        equal("get_robust_list", call(GET_ROBUST_LIST, [0, head_at, bytes_at]), Ok(0));
        equal("has none", head, 0);
    });

    holds("a sleeper is woken", with_longer_times(30_000_000, an_owner_ends));
    bad_robust_lists();
    // In a process that ends: the parent sees it in shared memory.
    let futex = granule_user::memory::shared::<Futex>();
    let child = process::spawn(|| {
        futex.word.store(process::id(), Ordering::Release);
        let head = set_head(futex.at(), 0);
        futex.next.store(head, Ordering::Relaxed);
        u8::from(call(SET_ROBUST_LIST, [head, ROBUST_BYTES]) != Ok(0))
    });
    equal("how it ended", process::wait(child), exited(0));
    equal("its futex is marked", futex.word.load(Ordering::Acquire), FUTEX_OWNER_DIED);
    equal("no word was used", WORD.load(Ordering::Relaxed), 0);
}

/// A thread ends with four of five futexes, of which one is another's, one has a sleeper, and the last is the one that is
/// added just now. The thread waits `time` for the sleeper to sleep; whether that did, and was woken.
fn an_owner_ends(time: u64) -> bool {
    let [first, second, third, pending, other] = &FUTEXES;
    FUTEXES.iter().for_each(|futex| futex.word.store(0, Ordering::Relaxed));
    first.next.store(second.at(), Ordering::Relaxed);
    second.next.store(third.at(), Ordering::Relaxed);
    let is_about_to = AtomicBool::new(false);
    let sleeps = || {
        let word = &second.word;
        until(|| word.load(Ordering::Acquire) != 0);
        let value = word.load(Ordering::Acquire);
        // The owner does not end before.
        is_about_to.store(true, Ordering::Release);
        let woken = futex_wait(word, value, Some(time + 60_000_000_000));
        if woken.is_err() {
            equal("the owner has ended before the wait", woken, Err(EAGAIN));
        }
        equal("its owner has ended", word.load(Ordering::Acquire), FUTEX_OWNER_DIED | FUTEX_WAITERS);
        woken.is_ok()
    };
    let owns = || {
        let own = process::thread_id();
        let head = set_head(first.at(), pending.at());
        third.next.store(head, Ordering::Relaxed);
        first.word.store(own, Ordering::Release);
        third.word.store(own + 1, Ordering::Release);
        pending.word.store(own, Ordering::Release);
        other.word.store(own, Ordering::Release);
        second.word.store(own | FUTEX_WAITERS, Ordering::Release);
        equal("set", call(SET_ROBUST_LIST, [head, ROBUST_BYTES]), Ok(0));
        until(|| is_about_to.load(Ordering::Acquire));
        let _ = time::sleep(time);
        own
    };
    let (is_woken, (number, ())) = beside(sleeps, || beside(owns, || ()));
    equal("a futex is marked", first.word.load(Ordering::Acquire), FUTEX_OWNER_DIED);
    equal("another's is not", third.word.load(Ordering::Acquire), number + 1);
    equal("the pending one is", pending.word.load(Ordering::Acquire), FUTEX_OWNER_DIED);
    equal("one that is in no list is not", other.word.load(Ordering::Acquire), number);
    is_woken
}

/// Lists that are none: they end the walk, and nothing else.
fn bad_robust_lists() {
    let [first, second, ..] = &FUTEXES;
    let broken: [&dyn Fn() -> u64; 4] = [
        &|| {
            // In a circle.
            first.next.store(second.at(), Ordering::Relaxed);
            second.next.store(first.at(), Ordering::Relaxed);
            set_head(first.at(), 0)
        },
        &|| set_head(NOWHERE, 0),
        &|| {
            // A futex that is not aligned ends it before the next.
            first.next.store(second.at(), Ordering::Relaxed);
            set_head(first.at(), 0);
            HEAD.0[1].swap(OFFSET as u64 + 1, Ordering::Relaxed)
        },
        &|| set_head(KERNEL, KERNEL),
    ];
    for (number, prepare) in broken.into_iter().enumerate() {
        prepare();
        Thread::spawn(|| equal("set", call(SET_ROBUST_LIST, [&raw const HEAD as u64, ROBUST_BYTES]), Ok(0))).join();
        holds(("a bad list", number), true);
    }
}

fn affinity() {
    let mut set = [u64::MAX; 128];
    let at = set.as_mut_ptr() as u64;
    equal("as on Linux: 8 bytes", call(SCHED_GETAFFINITY, [0, 1024, at]), Ok(8));
    holds("at least one CPU", set[0] != 0 && set[0].count_ones() <= 64);
    equal("no more is stored", set[1], u64::MAX);
    equal("of itself", call(SCHED_GETAFFINITY, [me(), 8, at]), Ok(8));
    equal("no thread", call(SCHED_GETAFFINITY, [999_999, 8, at]), Err(ESRCH));
    equal("no thread", call(SCHED_GETAFFINITY, [u64::MAX, 8, at]), Err(ESRCH));
    for bytes in [0, 4, 7, 9, 12, 0x2000_0000] {
        equal(("not its size", bytes), call(SCHED_GETAFFINITY, [999_999, bytes, at]), Err(EINVAL));
    }
    equal("to nowhere", call(SCHED_GETAFFINITY, [0, 8, NOWHERE]), Err(EFAULT));
}
