//! Names of files: paths, directories, links, renames, and files that lose their names while they are open.
//!
//! Each answer is Linux's on a tmpfs. Tables of many calls are compared by a sum of all answers of a row, and of what the
//! tree is after those that succeed; `names print` prints each answer instead.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls that the program makes on purpose")]

use granule_user::prelude::*;

#[path = "names/tables.rs"]
mod tables;

entry!(run);
own!(call, put, unmap);

fn run(start: Start) -> u8 {
    let prints = start.arguments().nth(1) == Some("print");
    let _ = call(MKDIRAT, [HERE, c"/tmp".as_ptr() as u64, 0o777]);
    let _ = call(MKDIRAT, [HERE, c"/tmp/names".as_ptr() as u64, 0o755]);
    equal("entered", go(c"/tmp/names"), Ok(0));
    equal("umask", call(UMASK, [0o022]), Ok(0o022));
    parts! { ()
        working_directories umasks what_is_removed_while_open directories_that_are_removed files_without_names
        links_and_times listings pages_of_files as_much_as_there_is written_programs sparse_programs
        attributes_of_others deep_paths
    }
    shared_surroundings();
    tables::all(prints);
    equal("left", go(c"/"), Ok(0));
    equal("removed", unlink(c"/tmp/names", AT_REMOVEDIR), Ok(0));
    status("names")
}

fn go(path: &CStr) -> Result<u64, Errno> {
    call(CHDIR, [path.as_ptr() as u64])
}

fn open(path: &CStr, flags: u32) -> Result<u64, Errno> {
    call(OPENAT, [HERE, path.as_ptr() as u64, flags.into(), 0o666])
}

fn close(file: u64) {
    equal("closed", call(CLOSE, [file]), Ok(0));
}

fn make(path: &CStr) -> u64 {
    open(path, O_RDWR | O_CREAT).expect("a file")
}

fn mkdir(path: &CStr) -> Result<u64, Errno> {
    call(MKDIRAT, [HERE, path.as_ptr() as u64, 0o777])
}

fn unlink(path: &CStr, flags: u32) -> Result<u64, Errno> {
    call(UNLINKAT, [HERE, path.as_ptr() as u64, flags.into()])
}

fn link(old: &CStr, new: &CStr) -> Result<u64, Errno> {
    call(LINKAT, [HERE, old.as_ptr() as u64, HERE, new.as_ptr() as u64, 0])
}

fn symlink(target: &CStr, path: &CStr) -> Result<u64, Errno> {
    call(SYMLINKAT, [target.as_ptr() as u64, HERE, path.as_ptr() as u64])
}

fn rename(old: &CStr, new: &CStr, flags: u32) -> Result<u64, Errno> {
    call(RENAMEAT2, [HERE, old.as_ptr() as u64, HERE, new.as_ptr() as u64, flags.into()])
}

fn stat(path: &CStr) -> Result<Stat, Errno> {
    let mut stat = Stat::default();
    call(NEWFSTATAT, [HERE, path.as_ptr() as u64, &raw mut stat as u64, AT_SYMLINK_NOFOLLOW.into()]).map(|_| stat)
}

fn fstat(file: u64) -> Stat {
    let mut stat = Stat::default();
    equal("fstat", call(FSTAT, [file, &raw mut stat as u64]), Ok(0));
    stat
}

fn write(file: u64, text: &str) -> Result<u64, Errno> {
    call(WRITE, [file, text.as_ptr() as u64, text.len() as u64])
}

/// The first bytes of a file.
fn text(file: u64) -> ([u8; 8], Result<u64, Errno>) {
    let mut bytes = [0; 8];
    let read = call(PREAD64, [file, bytes.as_mut_ptr() as u64, 8, 0]);
    (bytes, read)
}

/// The working directory, and what the call answers.
fn here(room: u64) -> (Result<u64, Errno>, [u8; 24]) {
    let mut bytes = [0; 24];
    (call(GETCWD, [bytes.as_mut_ptr() as u64, room]), bytes)
}

fn padded(text: &str) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

fn working_directories() {
    equal("a path", here(24), (Ok(11), padded("/tmp/names")));
    equal("just room", here(11), (Ok(11), padded("/tmp/names")));
    for room in [0, 1, 10] {
        equal("no room", here(room), (Err(ERANGE), [0; 24]));
    }
    equal("nowhere", call(GETCWD, [NOWHERE, 100]), Err(EFAULT));
    equal("made", (mkdir(c"a"), mkdir(c"a/b"), symlink(c"a/b", c"l")), (Ok(0), Ok(0), Ok(0)));
    equal("through a link", go(c"l"), Ok(0));
    equal("its path", here(24), (Ok(15), padded("/tmp/names/a/b")));
    equal("renamed", rename(c"/tmp/names/a", c"/tmp/names/c", 0), Ok(0));
    equal("its path", here(24), (Ok(15), padded("/tmp/names/c/b")));
    let above = open(c"..", O_PATH).expect("the directory above");
    equal("back", call(FCHDIR, [above]), Ok(0));
    equal("its path", here(24), (Ok(13), padded("/tmp/names/c")));
    equal("a file", call(FCHDIR, [make(c"f")]), Err(ENOTDIR));
    equal("nothing", call(FCHDIR, [77]), Err(EBADF));
    equal("a copy's own", (), ());
    apart(|| {
        equal("where its parent is", here(24), (Ok(13), padded("/tmp/names/c")));
        equal("elsewhere", go(c"/"), Ok(0));
        equal("there", here(24), (Ok(2), padded("/")));
    });
    equal("not so the parent", here(24), (Ok(13), padded("/tmp/names/c")));
    close(above);
    close(above + 1);
    equal("removed", (unlink(c"f", 0), unlink(c"b", AT_REMOVEDIR), go(c"..")), (Ok(0), Ok(0), Ok(0)));
    equal("removed", (unlink(c"c", AT_REMOVEDIR), unlink(c"l", 0)), (Ok(0), Ok(0)));
    equal("a device", go(c"/dev/console"), Err(ENOTDIR));
    equal("in /proc", (go(c"/proc"), here(24)), (Ok(0), (Ok(6), padded("/proc"))));
    equal("back", go(c"/tmp/names"), Ok(0));
}

fn umasks() {
    equal("other bits", call(UMASK, [0o7077]), Ok(0o022));
    let file = open(c"f", O_RDWR | O_CREAT).expect("a file");
    equal("of a file", fstat(file).st_mode, S_IFREG | 0o600);
    equal("of a directory", (mkdir(c"d"), stat(c"d").map(|stat| stat.st_mode)), (Ok(0), Ok(S_IFDIR | 0o700)));
    apart(|| equal("a copy's", call(UMASK, [0]), Ok(0o077)));
    equal("back", call(UMASK, [0o022]), Ok(0o077));
    equal("the file's own", call(FCHMOD, [file, 0o17_7777]), Ok(0));
    equal("of a file", fstat(file).st_mode, S_IFREG | 0o7777);
    equal("an owner", call(FCHOWN, [file, 7, 8]), Ok(0));
    let stat_of = fstat(file);
    equal("it has one", (stat_of.st_uid, stat_of.st_gid, stat_of.st_mode), (7, 8, S_IFREG | 0o1777));
    equal("the same", call(FCHOWN, [file, u64::MAX, 9]), Ok(0));
    equal("it has one", (fstat(file).st_uid, fstat(file).st_gid), (7, 9));
    close(file);
    equal("removed", (unlink(c"f", 0), unlink(c"d", AT_REMOVEDIR)), (Ok(0), Ok(0)));
}

/// Which of two processes, or threads, see each other's directory.
fn shared_surroundings() {
    for (flags, shares) in [(0, false), (CLONE_FS, true)] {
        let child = process::clone_with(flags | u64::from(SIGCHLD), [0; 2], || {
            u8::from((go(c"/"), call(UMASK, [0o077])) != (Ok(0), Ok(0o022)))
        });
        equal("a clone", child.map(process::wait), Ok(exited(0)));
        equal("moved", here(24).0, if shares { Ok(2) } else { Ok(11) });
        equal("its mask", call(UMASK, [0o022]), Ok(if shares { 0o077 } else { 0o022 }));
        equal("back", go(c"/tmp/names"), Ok(0));
    }
    Thread::spawn(|| equal("a thread", go(c"/"), Ok(0))).join();
    equal("moved", here(24).0, Ok(2));
    equal("back", go(c"/tmp/names"), Ok(0));
}

fn what_is_removed_while_open() {
    let file = make(c"f");
    equal("written", write(file, "one"), Ok(3));
    equal("a second name", link(c"f", c"g"), Ok(0));
    equal("two", fstat(file).st_nlink, 2);
    equal("the first goes", unlink(c"f", 0), Ok(0));
    equal("gone", open(c"f", O_RDONLY), Err(ENOENT));
    let again = open(c"g", O_RDWR | O_APPEND).expect("the second");
    equal("the same", (fstat(again).st_ino, fstat(again).st_nlink), (fstat(file).st_ino, 1));
    equal("the second goes", unlink(c"g", 0), Ok(0));
    equal("written still", write(again, "two"), Ok(3));
    equal("both", text(file), (*b"onetwo\0\0", Ok(6)));
    equal("no name", fstat(file).st_nlink, 0);
    equal(
        "no other",
        call(LINKAT, [file, c"".as_ptr() as u64, HERE, c"h".as_ptr() as u64, AT_EMPTY_PATH.into()]),
        Err(ENOENT),
    );
    equal("another", make(c"f"), again + 1);
    equal("is another", fstat(again + 1).st_ino == fstat(file).st_ino, false);
    equal("and empty", text(again + 1), ([0; 8], Ok(0)));
    (file..file + 3).for_each(close);
    equal("replaced", (symlink(c"f", c"l"), rename(c"l", c"f", 0)), (Ok(0), Ok(0)));
    equal("by a link to itself", open(c"f", O_RDONLY), Err(ELOOP));
    equal("removed", unlink(c"f", 0), Ok(0));
}

fn directories_that_are_removed() {
    equal("made", (mkdir(c"a"), mkdir(c"a/b"), go(c"a/b")), (Ok(0), Ok(0), Ok(0)));
    equal("not empty", unlink(c"../../a", AT_REMOVEDIR), Err(ENOTEMPTY));
    equal("links", stat(c"/tmp/names/a").map(|stat| stat.st_nlink), Ok(3));
    let own = open(c".", O_RDONLY).expect("itself");
    equal("removed", unlink(c"/tmp/names/a/b", AT_REMOVEDIR), Ok(0));
    equal("links", (fstat(own).st_nlink, stat(c"..").map(|stat| stat.st_nlink)), (0, Ok(2)));
    equal("no path", here(24).0, Err(ENOENT));
    equal("no new file", open(c"f", O_RDWR | O_CREAT), Err(ENOENT));
    equal(
        "no directory",
        (mkdir(c"d"), symlink(c"x", c"l"), link(c"/tmp/names", c"m")),
        (Err(ENOENT), Err(ENOENT), Err(ENOENT)),
    );
    equal("itself", stat(c".").map(|stat| stat.st_nlink), Ok(0));
    equal("above", rename(c"../x", c"y", 0), Err(ENOENT));
    let mut room = [0_u64; 32];
    equal("nothing to list", call(GETDENTS64, [own, room.as_mut_ptr() as u64, 256]), Err(ENOENT));
    equal("the one above too", unlink(c"/tmp/names/a", AT_REMOVEDIR), Ok(0));
    equal("still above", (go(c".."), here(24).0), (Ok(0), Err(ENOENT)));
    equal("and one more", (go(c".."), here(24)), (Ok(0), (Ok(11), padded("/tmp/names"))));
    close(own);
}

fn files_without_names() {
    let unnamed = |flags| open(c".", O_TMPFILE | flags);
    let file = unnamed(O_RDWR).expect("a file");
    equal("no name", (fstat(file).st_nlink, fstat(file).st_mode), (0, S_IFREG | 0o644));
    equal("written", write(file, "one"), Ok(3));
    let give = |file: u64, name: &CStr| {
        call(LINKAT, [file, c"".as_ptr() as u64, HERE, name.as_ptr() as u64, AT_EMPTY_PATH.into()])
    };
    equal("a name", give(file, c"f"), Ok(0));
    equal("twice", give(file, c"f"), Err(EEXIST));
    equal("two", (give(file, c"g"), fstat(file).st_nlink), (Ok(0), 2));
    let again = open(c"f", O_RDONLY).expect("a file");
    equal("the same", text(again), (*b"one\0\0\0\0\0", Ok(3)));
    let other = unnamed(O_WRONLY | O_EXCL).expect("a file");
    equal("never a name", give(other, c"h"), Err(ENOENT));
    equal("for reading", unnamed(O_RDONLY), Err(EINVAL));
    equal("in a file", open(c"f", O_TMPFILE | O_RDWR), Err(ENOTDIR));
    equal("in nothing", open(c"x", O_TMPFILE | O_RDWR), Err(ENOENT));
    let memory = File::memory(c"m", 0).expect("a memory file");
    equal("a memory file", give(memory.0, c"m"), Err(EXDEV));
    [file, again, other].into_iter().for_each(close);
    equal("removed", (unlink(c"f", 0), unlink(c"g", 0)), (Ok(0), Ok(0)));
}

fn links_and_times() {
    let file = make(c"f");
    let times = |stat: &Stat| [(stat.st_mtime, stat.st_mtime_nsec), (stat.st_ctime, stat.st_ctime_nsec)];
    let first = fstat(file);
    let _ = time::sleep(20 * MILLISECOND);
    equal("written", write(file, "x"), Ok(1));
    let second = fstat(file);
    holds("both move", times(&first)[0] < times(&second)[0] && times(&first)[1] < times(&second)[1]);
    let _ = time::sleep(20 * MILLISECOND);
    equal("a mode", call(FCHMOD, [file, 0o640]), Ok(0));
    let third = fstat(file);
    holds("one moves", times(&second)[0] == times(&third)[0] && times(&second)[1] < times(&third)[1]);
    let set = |times: [u64; 4]| call(UTIMENSAT, [file, 0, times.as_ptr() as u64, 0]);
    equal("set", set([5, 6, -7_i64 as u64, 999_999_999]), Ok(0));
    let stat_of = fstat(file);
    equal("access", (stat_of.st_atime, stat_of.st_atime_nsec), (5, 6));
    equal("change", (stat_of.st_mtime, stat_of.st_mtime_nsec), (-7, 999_999_999));
    equal("too many", set([0, 1_000_000_000, 0, 0]), Err(EINVAL));
    equal("one stays", set([0, UTIME_OMIT, 1, 2]), Ok(0));
    equal("it does", (fstat(file).st_atime, fstat(file).st_mtime), (5, 1));
    equal("nothing", set([0, UTIME_OMIT, 0, UTIME_OMIT]), Ok(0));
    equal("nothing of nothing", call(UTIMENSAT, [77, 0, [0, UTIME_OMIT, 0, UTIME_OMIT].as_ptr() as u64, 0]), Ok(0));
    equal("now", set([0, UTIME_NOW, 0, UTIME_NOW]), Ok(0));
    holds("it is", times(&fstat(file))[0] > times(&second)[0]);
    let size = stat(c".").map(|stat| stat.st_size);
    let before = stat(c".").expect("the directory");
    let _ = time::sleep(20 * MILLISECOND);
    equal("a name", link(c"f", c"g"), Ok(0));
    let after = stat(c".").expect("the directory");
    holds("the directory changes", times(&before)[0] < times(&after)[0]);
    equal("its size", (size, after.st_size), (Ok(60), 80));
    equal("a long link", symlink(c"0123456789", c"l"), Ok(0));
    equal("its size", stat(c"l").map(|stat| (stat.st_size, stat.st_mode)), Ok((10, S_IFLNK | 0o777)));
    let mut words = [0_u64; 15];
    equal("statfs", call(STATFS, [c".".as_ptr() as u64, words.as_mut_ptr() as u64]), Ok(0));
    equal("a tmpfs", (words[0], words[1], words[8], words[9]), (TMPFS_MAGIC, 4096, 255, 4096));
    close(file);
    equal("removed", (unlink(c"f", 0), unlink(c"g", 0), unlink(c"l", 0)), (Ok(0), Ok(0), Ok(0)));
}

/// Reads a directory in calls with this room; the sum of the names' numbers and how many there are, but for `.` and `..`,
/// and what each call answers at last.
fn list(directory: u64, room: u64, mut each: impl FnMut(&[u8])) -> Result<u64, Errno> {
    let mut bytes = [0_u8; 4096];
    loop {
        let read = call(GETDENTS64, [directory, bytes.as_mut_ptr() as u64, room])? as usize;
        if read == 0 {
            return Ok(0);
        }
        let mut at = 0;
        while at < read {
            let length = usize::from(bytes[at + 16]) | usize::from(bytes[at + 17]) << 8;
            let name = &bytes[at + 19..at + length];
            each(&name[..name.iter().position(|&byte| byte == 0).expect("an end")]);
            at += length;
        }
    }
}

/// The name of a file with a number.
fn numbered(number: usize) -> [u8; 4] {
    [b'n', b'0' + (number / 10) as u8, b'0' + (number % 10) as u8, 0]
}

fn with_number(number: usize, act: impl FnOnce(&CStr)) {
    act(CStr::from_bytes_with_nul(&numbered(number)).expect("a name"));
}

fn listings() {
    equal("made", (mkdir(c"d"), go(c"d")), (Ok(0), Ok(0)));
    (0..40).for_each(|number| with_number(number, |name| close(make(name))));
    let directory = open(c".", O_RDONLY | O_DIRECTORY).expect("the directory");
    equal("no room", list(directory, 20, |_| {}), Err(EINVAL));
    equal("a file", list(0, 512, |_| {}), Err(ENOTDIR));
    let (mut seen, mut dots) = ([0_u32; 60], 0);
    let mut step = 0;
    // In pieces, while names come and go that were read or not: each that stays is read once.
    let listed = list(directory, 96, |name| match name {
        b"." | b".." => dots += 1,
        _ => {
            let number = usize::from(name[1] - b'0') * 10 + usize::from(name[2] - b'0');
            seen[number] += 1;
            if step < 10 {
                with_number(number, |name| equal("removed", unlink(name, 0), Ok(0)));
                with_number(40 + step, |name| close(make(name)));
                step += 1;
            }
        }
    });
    equal("listed", (listed, dots), (Ok(0), 2));
    holds("each once", seen[..40].iter().all(|&times| times == 1) && seen[40..].iter().all(|&times| times <= 1));
    equal("again from the start", call(LSEEK, [directory, 0, SEEK_SET.into()]), Ok(0));
    let mut count = 0;
    equal("listed", list(directory, 512, |_| count += 1), Ok(0));
    equal("as many", count, 42);
    equal("no end", call(LSEEK, [directory, 0, SEEK_END.into()]), Err(EINVAL));
    equal("read", call(READ, [directory, &raw mut count as u64, 4]), Err(EISDIR));
    (0..60).for_each(|number| with_number(number, |name| _ = unlink(name, 0)));
    close(directory);
    equal("removed", (go(c".."), unlink(c"d", AT_REMOVEDIR)), (Ok(0), Ok(0)));
}

fn pages_of_files() {
    const AT: u64 = 0x6000_0000_0000;
    let file = make(c"f");
    let map_of = |file: u64, protection, flags| call(MMAP, [AT, 2 * PAGE, protection, flags | MAP_FIXED, file, 0]);
    equal("sparse", call(FTRUNCATE, [file, 5 * PAGE]), Ok(0));
    equal("no blocks", fstat(file).st_blocks, 0);
    equal("shared", map_of(file, RW, MAP_SHARED), Ok(AT));
    equal("stored", put(AT + PAGE, 7), Ok(()));
    equal("one page", fstat(file).st_blocks, 8);
    equal("data", call(LSEEK, [file, 0, SEEK_DATA.into()]), Ok(PAGE));
    equal("a hole", call(LSEEK, [file, PAGE, SEEK_HOLE.into()]), Ok(2 * PAGE));
    let mut byte = [0_u8; 1];
    equal("read", call(PREAD64, [file, byte.as_mut_ptr() as u64, 1, PAGE]), Ok(1));
    equal("what was stored", byte, [7]);
    let reader = open(c"f", O_RDONLY).expect("the file");
    equal("not by a reader", map_of(reader, RW, MAP_SHARED), Err(EACCES));
    unmap(AT, 2);
    equal("private", map_of(reader, RW, MAP_PRIVATE), Ok(AT));
    equal("the same", bytes(AT), [0, 7]);
    equal("stored", put(AT + PAGE, 8), Ok(()));
    equal("written", call(PWRITE64, [file, c"x".as_ptr() as u64, 1, 0]), Ok(1));
    equal("a copy, and what is shared", bytes(AT), [b'x', 8]);
    unmap(AT, 2);
    equal("shortened", call(TRUNCATE, [c"f".as_ptr() as u64, 3]), Ok(0));
    equal("by a reader", call(FTRUNCATE, [reader, 0]), Err(EINVAL));
    equal("its size", (fstat(file).st_size, fstat(file).st_blocks), (3, 8));
    equal("room", call(FALLOCATE, [file, 0, 0, 3 * PAGE]), Ok(0));
    equal("its size", (fstat(file).st_size, fstat(file).st_blocks), (3 * PAGE as i64, 24));
    equal("a hole", call(FALLOCATE, [file, PUNCH_HOLE.into(), PAGE, PAGE]), Ok(0));
    equal("its size", (fstat(file).st_size, fstat(file).st_blocks), (3 * PAGE as i64, 16));
    equal("emptied", (open(c"f", O_WRONLY | O_TRUNC), fstat(file).st_size), (Ok(reader + 1), 0));
    equal("seals", call(FCNTL, [file, F_GET_SEALS.into(), 0]), Ok(F_SEAL_SEAL.into()));
    (file..file + 3).for_each(close);
    equal("removed", unlink(c"f", 0), Ok(0));
}

/// Pages that a `statfs` has in all, and those that are free.
fn room() -> [u64; 2] {
    let mut words = [0_u64; 15];
    equal("statfs", call(STATFS, [c".".as_ptr() as u64, words.as_mut_ptr() as u64]), Ok(0));
    [words[2], words[3]]
}

/// Files have half of the memory and no more, and give it back: here with frames of their tables.
fn as_much_as_there_is() {
    /// The tables of a file, and what holds them.
    const TABLES: u64 = 4;
    let ([all, free], file) = (room(), make(c"f"));
    let takes = |pages: u64| (free - pages - TABLES..=free - pages).contains(&room()[1]);
    equal("more than all", call(FALLOCATE, [file, 0, 0, (all + 1) * PAGE]), Err(ENOSPC));
    equal("nothing taken", (fstat(file).st_blocks, takes(0)), (0, true));
    equal("some", call(FALLOCATE, [file, 0, 0, 64 * PAGE]), Ok(0));
    holds("taken", takes(64));
    equal("written", call(PWRITE64, [file, c"x".as_ptr() as u64, 1, 100 * PAGE]), Ok(1));
    holds("taken", takes(65));
    equal("a hole", call(FALLOCATE, [file, PUNCH_HOLE.into(), 0, 10 * PAGE]), Ok(0));
    holds("given back", takes(55));
    equal("without a name", (unlink(c"f", 0), takes(55)), (Ok(0), true));
    close(file);
    equal("given back", room(), [all, free]);
}

/// Writes a program that exits with 7.
fn write_program(program: u64) {
    // One segment, whose code is `mov x0, #7; mov x8, #93; svc #0`.
    let mut words = [0_u64; 18];
    words[..8].copy_from_slice(&[
        0x0001_0102_464c_457f,
        0,
        0x1_00b7_0002,
        0x40_0078,
        0x40,
        0,
        0x38_0040_0000_0000,
        0x1,
    ]);
    words[8..15].copy_from_slice(&[0x5_0000_0001, 0, 0x40_0000, 0x40_0000, 0x90, 0x90, 0x1000]);
    words[15..17].copy_from_slice(&[0xd280_0ba8_d280_00e0, 0xd400_0001]);
    equal("written", call(WRITE, [program, words.as_ptr() as u64, 144]), Ok(144));
}

fn execute(path: &CStr) -> u32 {
    let child = process::spawn(|| process::execute(path, &[path]) as u8);
    process::wait(child)
}

/// A program that was written, and a script that names it by a path that is not from the root.
fn written_programs() {
    let program = make(c"p");
    write_program(program);
    let script = make(c"s");
    equal("written", write(script, "#!p\n"), Ok(4));
    close(program);
    close(script);
    equal("not to be executed", execute(c"p"), exited(EACCES as u8));
    for path in [c"p", c"s"] {
        equal("a mode", call(FCHMODAT, [HERE, path.as_ptr() as u64, 0o755]), Ok(0));
    }
    equal("executed", execute(c"p"), exited(7));
    equal("a script", execute(c"s"), exited(7));
    equal("a script from elsewhere", (go(c"/"), execute(c"/tmp/names/s")), (Ok(0), exited(ENOENT as u8)));
    equal("a link", (go(c"/tmp/names"), symlink(c"p", c"l"), execute(c"l")), (Ok(0), Ok(0), exited(7)));
    equal("a directory", execute(c"."), exited(EACCES as u8));
    equal("removed", (unlink(c"p", 0), unlink(c"s", 0), unlink(c"l", 0)), (Ok(0), Ok(0), Ok(0)));
}

/// Files that are longer than memory: no program, a script, and a program.
fn sparse_programs() {
    const LENGTH: u64 = 4 << 30;
    const NO_PROGRAM: u8 = 8;
    let make = |path: &CStr| {
        let file = make(path);
        equal("a mode", call(FCHMOD, [file, 0o755]), Ok(0));
        equal("long", call(FTRUNCATE, [file, LENGTH]), Ok(0));
        file
    };
    close(make(c"n"));
    equal("no program", execute(c"n"), exited(NO_PROGRAM));
    let program = make(c"p");
    write_program(program);
    close(program);
    equal("a program", execute(c"p"), exited(7));
    let names = [c"1", c"2", c"3", c"4", c"5", c"6"];
    for (index, name) in names.into_iter().enumerate() {
        let script = make(name);
        let line = ["#!p\n", "#!1\n", "#!2\n", "#!3\n", "#!4\n", "#!5\n"][index];
        equal("written", write(script, line), Ok(4));
        close(script);
    }
    equal("five scripts", execute(c"5"), exited(7));
    equal("six", execute(c"6"), exited(ELOOP as u8));
    names.into_iter().chain([c"n", c"p"]).for_each(|name| equal("removed", unlink(name, 0), Ok(0)));
}

/// Files without attributes to change, some that inherit them, and processes that are not there.
fn attributes_of_others() {
    let chmod = |path: &CStr, mode| call(FCHMODAT, [HERE, path.as_ptr() as u64, mode]);
    let set = |file: u64| {
        let mode = call(FCHMOD, [file, 0o600]);
        let owner = call(FCHOWN, [file, 0, 0]);
        (mode, owner, call(UTIMENSAT, [file, 0, [1_u64, 2, 3, 4].as_ptr() as u64, 0]))
    };
    let refused = (Err(ENOTSUP), Err(ENOTSUP), Err(ENOTSUP));
    let counter = call(EVENTFD2, [0, 0]).expect("a counter");
    equal("a counter", set(counter), refused);
    let process = call(PIDFD_OPEN, [call(GETPID, []).expect("a number"), 0]).expect("a process");
    equal("a process", set(process), refused);
    let mut ends = [0_u32; 2];
    equal("a pipe", call(PIPE2, [ends.as_mut_ptr() as u64, 0]), Ok(0));
    equal("a pipe", set(ends[0].into()), (Ok(0), Ok(0), Ok(0)));
    [counter, process, ends[0].into(), ends[1].into()].into_iter().for_each(close);
    for (path, answer) in [(c"/proc", Ok(0)), (c"/proc/self/maps", Err(EPERM)), (c"/proc/self/.", Err(EPERM))] {
        equal("in /proc", chmod(path, 0o555), answer);
    }
    let times =
        |path: &CStr| call(UTIMENSAT, [HERE, path.as_ptr() as u64, [0_u64, 2_000_000_000, 0, 0].as_ptr() as u64, 0]);
    equal("too many nanoseconds", (times(c"none"), times(c".")), (Err(ENOENT), Err(EINVAL)));
    for (old, new, answer) in [
        (c"/proc/self/maps", c"/proc/self/none", ENOENT),
        (c"/proc/self/none", c"/proc/self/maps", ENOENT),
        (c"/proc/self/maps", c"/proc/self/stat", EPERM),
    ] {
        equal("a rename in /proc", rename(old, new, 0), Err(answer));
    }
    let here = open(c".", O_RDONLY).expect("a directory");
    equal("direct", call(FCNTL, [here, F_SETFL.into(), O_DIRECT.into()]), Err(EINVAL));
    close(here);
    for path in [c"/proc", c"/proc/self/."] {
        let file = open(path, O_RDONLY).expect("a directory");
        let seek = |offset: u64, whence: u32| call(LSEEK, [file, offset, whence.into()]);
        equal("its end", (seek(0, SEEK_END), seek(5, SEEK_END), seek(0, SEEK_DATA)), (Ok(0), Ok(5), Err(ENXIO)));
        equal("synchronous", call(FSYNC, [file]), Err(EINVAL));
        close(file);
    }
    let mut long = [b'n'; 258];
    long[256..].copy_from_slice(b"/\0");
    let long = CStr::from_bytes_with_nul(&long).expect("a path");
    equal("a long name", (open(long, O_CREAT), open(long, 0)), (Err(EISDIR), Err(ENAMETOOLONG)));
    for path in [c"/proc/4000000", c"/proc/4000000/", c"/proc/4000000/..", c"/proc/4000000/../self/maps"] {
        let answers = (stat(path).map(drop), open(path, O_RDONLY).map(drop), go(path).map(drop));
        equal("no process", answers, (Err(ENOENT), Err(ENOENT), Err(ENOENT)));
    }
    inherited_groups();
}

fn inherited_groups() {
    equal("a directory", mkdir(c"g"), Ok(0));
    equal("of a group", call(FCHOWNAT, [HERE, c"g".as_ptr() as u64, u64::MAX, 7, 0]), Ok(0));
    let made = || {
        equal("made", (mkdir(c"g/d"), symlink(c"x", c"g/l")), (Ok(0), Ok(0)));
        let (file, unnamed) = (make(c"g/f"), open(c"g", O_TMPFILE | O_RDWR).expect("a file"));
        let of_path = |path| stat(path).map(|stat| (stat.st_gid, stat.st_mode)).expect("a stat");
        let found =
            [of_path(c"g/d"), of_path(c"g/l"), of_path(c"g/f"), (fstat(unnamed).st_gid, fstat(unnamed).st_mode)];
        [file, unnamed].into_iter().for_each(close);
        equal("removed", (unlink(c"g/d", AT_REMOVEDIR), unlink(c"g/l", 0), unlink(c"g/f", 0)), (Ok(0), Ok(0), Ok(0)));
        found
    };
    let file = S_IFREG | 0o644;
    equal("not inherited", made(), [(0, S_IFDIR | 0o755), (0, S_IFLNK | 0o777), (0, file), (0, file)]);
    equal("a mode", call(FCHMODAT, [HERE, c"g".as_ptr() as u64, 0o2755]), Ok(0));
    equal("inherited", made(), [(7, S_IFDIR | 0o2755), (7, S_IFLNK | 0o777), (7, file), (7, file)]);
    equal("removed", unlink(c"g", AT_REMOVEDIR), Ok(0));
}

/// A directory whose path is longer than a page.
fn deep_paths() {
    let mut name = [b'd'; 256];
    name[255] = 0;
    let name = CStr::from_bytes_with_nul(&name).expect("a name");
    for depth in 1..=16 {
        equal("deeper", (mkdir(name), go(name)), (Ok(0), Ok(0)));
        let answer = if depth == 16 { ENAMETOOLONG } else { ERANGE };
        equal("its path", here(10).0, Err(answer));
    }
    equal("its path", here(65_536).0, Err(ENAMETOOLONG));
    for _ in 1..=16 {
        equal("back", (go(c".."), unlink(name, AT_REMOVEDIR)), (Ok(0), Ok(0)));
    }
}
