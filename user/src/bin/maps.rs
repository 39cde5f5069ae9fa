//! `/proc/PID/maps`: what it has of a space, and how it is read.
//!
//! Each answer is Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

fn run(_: Start) -> u8 {
    parts! { ()
        lines parts_of_the_program pieces positions refusals to_bad_memory opened_otherwise beside_other_areas others
        beside_changes
    }
    status("maps")
}

/// Bytes of the largest text.
const ROOM: usize = 16 * PAGE as usize;

/// An area as a line has it: start, end, `rwxs`, offset, device, number and name.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Line<'t> {
    start: u64,
    end: u64,
    letters: &'t str,
    offset: u64,
    device: &'t str,
    number: u64,
    name: &'t str,
}

impl<'t> Line<'t> {
    fn read(line: &'t str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let (range, letters) = (words.next()?, words.next()?);
        let (start, end) = range.split_once('-')?;
        let hexadecimal = |digits: &str| u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() >= 8);
        Some(Self {
            start: hexadecimal(start)?,
            end: hexadecimal(end)?,
            letters: Some(letters).filter(|letters| letters.len() == 4)?,
            offset: hexadecimal(words.next()?)?,
            device: words.next()?,
            number: words.next()?.parse().ok()?,
            // Where there is none a space ends the line; others begin in one column.
            name: Some(words.next()?.trim_start()).filter(|name| name.is_empty() || line.len() == 73 + name.len())?,
        })
    }
}

fn own() -> File {
    File::open(c"/proc/self/maps", O_RDONLY).expect("/proc/self/maps")
}

/// The text from the position on, in pieces of so many bytes.
fn text(file: &File, piece: usize) -> &'static str {
    let room = map(ROOM as u64, RW).expect("room") as *mut u8;
    // SAFETY: mapped for this text alone.
    let room = unsafe { core::slice::from_raw_parts_mut(room, ROOM) };
    proc::text(file, room, piece)
}

fn line_at(text: &'static str, address: u64) -> Option<Line<'static>> {
    let lines = text.lines().map(|line| Line::read(line).unwrap_or_else(|| panic!("{line:?}")));
    lines.into_iter().find(|line| (line.start..line.end).contains(&address))
}

fn lines() {
    let at = FAR;
    let place = |page: u64| at + page * PAGE;
    let fixed = |page, pages, protection, flags, file, offset| {
        let answer = call(MMAP, [place(page), pages * PAGE, protection, flags | MAP_FIXED, file, offset]);
        equal(("mapped", page), answer, Ok(place(page)));
    };
    let memfd = File::memory(c"maps", 0).expect("a file");
    equal("its size", memfd.resize(16 * PAGE), Ok(0));
    fixed(0, 3, PROT_READ | PROT_EXEC, PRIVATE, 0, 0);
    fixed(4, 1, PROT_NONE, PRIVATE, 0, 0);
    fixed(6, 1, PROT_EXEC, PRIVATE, 0, 0);
    fixed(8, 2, PROT_READ, SHARED, 0, 0);
    fixed(12, 3, RW | PROT_EXEC, MAP_SHARED, *memfd, 2 * PAGE);
    fixed(16, 3, RW, MAP_PRIVATE, *memfd, 5 * PAGE);
    equal("protected", call(MPROTECT, [place(1), PAGE, PROT_READ]), Ok(0));
    equal("protected", call(MPROTECT, [place(14), PAGE, PROT_READ]), Ok(0));
    let text = text(&own(), ROOM);
    let shown = |page| line_at(text, place(page)).map(|line| (line.start, line.end, line.letters, line.offset));
    let expected = |page, pages, letters, offset: u64| Some((place(page), place(page + pages), letters, offset * PAGE));
    for (page, pages, letters, offset) in [
        (0, 1, "r-xp", 0),
        (1, 1, "r--p", 0),
        (2, 1, "r-xp", 0),
        (4, 1, "---p", 0),
        (6, 1, "--xp", 0),
        (8, 2, "r--s", 0),
        (12, 2, "rwxs", 2),
        (14, 1, "r--s", 4),
        (16, 3, "rw-p", 5),
    ] {
        equal(("the area at page", page), shown(page), expected(page, pages, letters, offset));
    }
    for page in [3, 5, 7, 10, 19] {
        equal(("nothing at page", page), shown(page), None);
    }
    let of = |page| line_at(text, place(page)).map(|line| (line.device, line.number));
    equal("anonymous memory", of(0), Some(("00:00", 0)));
    let number = memfd.stat().st_ino;
    equal("a file by its number", [12, 14, 16].map(of), [Some(("00:01", number)); 3]);
    holds("shared memory has another", of(8).is_some_and(|(_, of_shared)| of_shared != 0 && of_shared != number));
    let starts = text.lines().filter_map(Line::read).map(|line| (line.start, line.end));
    holds("by address", starts.clone().zip(starts.skip(1)).all(|(one, next)| one.0 < one.1 && one.1 <= next.0));
    equal("unmapped", call(MUNMAP, [at, 20 * PAGE]), Ok(0));
}

fn parts_of_the_program() {
    let name = |address| line_at(text(&own(), ROOM), address).map(|line| (line.letters, line.name));
    let end = call(BRK, [0]).expect("the heap's end");
    equal("a heap", call(BRK, [end + 2 * PAGE]), Ok(end + 2 * PAGE));
    equal("is named", name(end + PAGE), Some(("rw-p", "[heap]")));
    let here = 0_u8;
    equal("the stack", name(&raw const here as u64), Some(("rw-p", "[stack]")));
    equal("code", name(name as fn(u64) -> _ as usize as u64).map(|(letters, _)| letters), Some("r-xp"));
    let memory = map(PAGE, RW).expect("memory");
    equal("other memory", name(memory), Some(("rw-p", "")));
}

fn pieces() {
    let file = own();
    let _keeps_the_text_as_it_is = text(&file, ROOM);
    for piece in [1, 7, 64, 1023, 4096] {
        let whole = text(&own(), ROOM);
        let again = text(&own(), piece);
        // Each text has an area of its own, by which the latter is longer.
        let same = |line: &str| again.lines().any(|other| other == line);
        let alike = whole.lines().filter(|line| same(line)).count();
        holds(("in pieces of", piece), alike + 2 >= whole.lines().count());
        holds(("each line is whole", piece), again.lines().all(|line| Line::read(line).is_some()));
    }
}

fn positions() {
    let file = own();
    let read = |count: usize| {
        let mut piece = [0; 32];
        file.read(&mut piece[..count]).map(|read| (read, piece))
    };
    let first = read(16).expect("the first bytes");
    equal("where it is", file.seek(0, SEEK_CUR), Ok(16));
    let mut piece = [0; 32];
    let at = piece.as_mut_ptr() as u64;
    equal("pread", call(PREAD64, [*file, at, 4, 3]), Ok(4));
    equal("is of the same line", piece[..4].as_ref(), &first.1[3..7]);
    equal("and moves nothing", file.seek(0, SEEK_CUR), Ok(16));
    let next = read(8).expect("the next bytes");
    equal("back", file.seek(-8, SEEK_CUR), Ok(16));
    equal("once more", read(8), Ok(next));
    equal("the start", file.seek(0, SEEK_SET), Ok(0));
    equal("the first bytes", read(16), Ok(first));
    equal("far", file.seek(1 << 40, SEEK_SET), Ok(1 << 40));
    equal("nothing there", read(8).map(|(count, _)| count), Ok(0));
    equal("still", file.seek(0, SEEK_CUR), Ok(1 << 40));
    for (offset, whence) in
        [(0, SEEK_END), (0, SEEK_DATA), (0, SEEK_HOLE), (-1, SEEK_SET), (i64::MIN, SEEK_CUR), (0, 9)]
    {
        equal(("not", offset, whence), file.seek(offset, whence), Err(EINVAL));
    }
    let list = [IoVec { base: at, length: 5 }, IoVec { base: at + 8, length: 11 }];
    equal("the start", file.seek(0, SEEK_SET), Ok(0));
    equal("readv", call(READV, [*file, list.as_ptr() as u64, 2]), Ok(16));
    equal("of one line", (&piece[..5], &piece[8..19]), (&first.1[..5], &first.1[5..16]));
}

fn refusals() {
    let file = own();
    let byte = [0_u8];
    let at = byte.as_ptr() as u64;
    equal("write", call(WRITE, [*file, at, 1]), Err(EBADF));
    equal("at a place", call(PWRITE64, [*file, at, 1, 0]), Err(ESPIPE));
    equal("mmap", call(MMAP, [0, PAGE, PROT_READ, MAP_PRIVATE, *file, 0]), Err(ENODEV));
    equal("fsync", call(FSYNC, [*file]), Err(EINVAL));
    equal("a negative position", call(PREAD64, [*file, at, 1, u64::MAX]), Err(EINVAL));
    let (mut left, stat) = (0_u32, file.stat());
    equal("what it is", (stat.st_mode, stat.st_size, stat.st_nlink), (S_IFREG | 0o444, 0, 1));
    equal("5 bytes", file.read(&mut [0; 5]), Ok(5));
    equal("FIONREAD", call(IOCTL, [*file, FIONREAD.into(), &raw mut left as u64]), Ok(0));
    equal("has fewer than none", left, -5_i32 as u32);
}

fn to_bad_memory() {
    let file = own();
    equal("to nowhere", call(READ, [*file, NOWHERE, 100]), Err(EFAULT));
    equal("to the kernel", call(READ, [*file, KERNEL, 100]), Err(EFAULT));
    equal("nothing to nowhere", call(READ, [*file, NOWHERE, 0]), Ok(0));
    equal("where it is", file.seek(0, SEEK_CUR), Ok(0));
    let at = map(2 * PAGE, RW).expect("pages");
    equal("without the second", call(MUNMAP, [at + PAGE, PAGE]), Ok(0));
    equal("as many as fit", call(READ, [*file, at + PAGE - 20, 100]), Ok(20));
    equal("where it is", file.seek(0, SEEK_CUR), Ok(20));
    let mut rest = [0; 10];
    equal("goes on", file.read(&mut rest), Ok(10));
    let mut whole = [0; 30];
    equal("the start", file.seek(0, SEEK_SET), Ok(0));
    equal("at once", file.read(&mut whole), Ok(30));
    equal("alike", &whole[20..], &rest);
    // SAFETY: the end of the first page, without other references.
    let first = unsafe { core::slice::from_raw_parts((at + PAGE - 20) as *const u8, 20) };
    equal("alike", &whole[..20], first);
}

fn opened_otherwise() {
    let kind = |flags| File::open(c"/proc/self/maps", flags).map(|_| ());
    for flags in [O_RDWR, O_WRONLY, O_CREAT, O_RDWR | O_TRUNC] {
        equal(("opened", flags), kind(flags), Ok(()));
    }
    for (flags, error) in [(O_CREAT | O_EXCL, EEXIST), (O_DIRECTORY, ENOTDIR), (O_DIRECT, EINVAL)] {
        equal(("not opened", flags), kind(flags), Err(error));
    }
    for (path, flags, error) in [
        (c"/proc/self/maps/", O_RDONLY, ENOTDIR),
        (c"/proc/self/maps/", O_CREAT, EISDIR),
        (c"/proc/self/maps/x", O_CREAT, ENOTDIR),
        (c"/proc/self/map", O_RDONLY, ENOENT),
        (c"/proc/self/map", O_CREAT, ENOENT),
        (c"/proc/map", O_CREAT, ENOENT),
        (c"/proc/self", O_CREAT, EISDIR),
    ] {
        equal((path, flags), File::open(path, flags).map(|_| ()), Err(error));
    }
    equal("from its folder", File::open(c"/proc/self/../self/maps", O_CREAT).map(|_| ()), Ok(()));
    let file = File::open(c"/proc/self/maps", O_RDWR).expect("also for writing");
    equal("but not to write", file.write(b"x"), Err(EINVAL));
    equal("nor nothing", file.write(b""), Err(EINVAL));
    equal("nor at a place", file.write_at(b"x", 0), Err(ESPIPE));
    equal("nor room", file.allocate(0, 0, 1), Err(ENOTSUP));
}

/// A reader that was stopped goes on with the line in which it was, and with the area that has grown over the next.
fn beside_other_areas() {
    let file = own();
    let at = map(2 * PAGE, RW).expect("pages");
    equal("without the second", call(MUNMAP, [at + PAGE, PAGE]), Ok(0));
    let mut whole = [0; 128];
    equal("the first lines", file.read(&mut whole), Ok(128));
    equal("the start", file.seek(0, SEEK_SET), Ok(0));
    equal("as many as fit", call(READ, [*file, at + PAGE - 20, 100]), Ok(20));
    let low = call(MMAP, [0x2_0000, PAGE, RW, PRIVATE | MAP_FIXED, 0, 0]);
    equal("an area before all others", low, Ok(0x2_0000));
    equal("nothing", call(PREAD64, [*file, at, 0, 3]), Ok(0));
    let mut rest = [0; 20];
    equal("goes on", file.read(&mut rest), Ok(20));
    equal("in the same line", &whole[20..40], &rest);
    equal("gone", call(MUNMAP, [0x2_0000, PAGE]), Ok(0));

    let closed = PROT_READ | PROT_EXEC;
    let at = call(MMAP, [FAR, 3 * PAGE, closed, PRIVATE | MAP_FIXED, 0, 0]).expect("pages");
    equal("three areas", call(MPROTECT, [at + PAGE, PAGE, PROT_READ]), Ok(0));
    let file = own();
    let mut line = [0; 128];
    let end_of_line = |line: &[u8]| line.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    loop {
        let position = file.seek(0, SEEK_CUR).expect("a position");
        let ahead = call(PREAD64, [*file, line.as_mut_ptr() as u64, 128, position]).expect("bytes");
        assert!(ahead != 0, "the first of the three is not shown");
        let length = end_of_line(&line);
        equal("a line", file.read(&mut line[..length]), Ok(length as u64));
        let area = core::str::from_utf8(&line[..length - 1]).ok().and_then(Line::read).expect("a line");
        if area.start == at {
            break;
        }
    }
    equal("one area", call(MPROTECT, [at + PAGE, PAGE, closed]), Ok(0));
    holds("no page is left out", line_at(text(&file, ROOM), at + 2 * PAGE).is_some());
    equal("gone", call(MUNMAP, [at, 3 * PAGE]), Ok(0));
}

fn others() {
    let start = AtomicU32::new(0);
    let at = FAR;
    let child = process::spawn(|| {
        equal("mapped", call(MMAP, [at, PAGE, PROT_READ, PRIVATE | MAP_FIXED, 0, 0]), Ok(at));
        // The parent waits for this one.
        equal("mapped", call(MMAP, [at + 2 * PAGE, PAGE, PROT_READ, PRIVATE | MAP_FIXED, 0, 0]), Ok(at + 2 * PAGE));
        equal("never woken", futex_wait(&start, 0, None), Err(EINTR));
    });
    let file = proc::open(child, "maps").expect("a child's");
    asleep_until(|| {
        equal("the start", file.seek(0, SEEK_SET), Ok(0));
        line_at(text(&file, ROOM), at + 2 * PAGE).is_some()
    });
    equal("the start", file.seek(0, SEEK_SET), Ok(0));
    equal("a child's area", line_at(text(&file, ROOM), at).map(|line| line.letters), Some("r--p"));
    equal("is none of the parent's", line_at(text(&own(), ROOM), at), None);
    until_zombie(SIGCHLD, || process::kill(child as i32, SIGKILL).expect("a signal"));
    equal("the start", file.seek(0, SEEK_SET), Ok(0));
    equal("nothing is left", file.read(&mut [0; 8]), Ok(0));
    let after = proc::open(child, "maps").expect("a name is left");
    equal("and nothing else", after.read(&mut [0; 8]), Ok(0));
    equal("its end", process::wait(child), SIGKILL);
    equal("no name either", proc::open(child, "maps").map(|_| ()), Err(ENOENT));
}

/// No line is made of two, however areas change between the pieces.
fn beside_changes() {
    static DONE: AtomicBool = AtomicBool::new(false);
    let changes = || {
        let end = call(BRK, [0]).expect("the heap's end");
        let mut random = Random(1);
        let mut below = |limit| random.below(limit) as u64;
        while !DONE.load(Ordering::Relaxed) {
            let pages = below(64);
            equal("the heap", call(BRK, [end + pages * 16 * PAGE]), Ok(end + pages * 16 * PAGE));
            let place = FAR + below(8) * 2 * PAGE;
            equal("mapped", call(MMAP, [place, PAGE, RW, PRIVATE | MAP_FIXED, 0, 0]), Ok(place));
            equal("unmapped", call(MUNMAP, [FAR, below(16) * PAGE + PAGE]), Ok(0));
        }
        equal("the heap", call(BRK, [end]), Ok(end));
    };
    let looks = || {
        for round in 0..60 {
            let text = text(&own(), 5 + round);
            let mut before = 0;
            for line in text.lines() {
                // An area that has grown may follow what it was before.
                let area = Line::read(line).filter(|area| before < area.end && area.start < area.end);
                holds(("a line of one area", line), area.is_some());
                before = area.map_or(before, |area| area.end);
            }
            equal("gone", call(MUNMAP, [text.as_ptr() as u64, ROOM as u64]), Ok(0));
        }
        DONE.store(true, Ordering::Relaxed);
    };
    beside(changes, looks);
}
