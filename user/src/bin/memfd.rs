//! Memory files: what they hold, what is taken away from them while they are mapped, and seals.
//!
//! Each answer is Linux's. `memfd race` has threads that store to a file's pages while others take them away. `memfd full`
//! takes more memory than there is, and ends by that.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::mem::ManuallyDrop;

use granule_user::prelude::*;

#[path = "memfd/races.rs"]
mod races;

entry!(run);
own!(call, put, unmap, unmap_all);

fn run(start: Start) -> u8 {
    probe::prepare();
    match start.arguments().nth(1) {
        Some("race") => {
            races::races();
            return status("memfd race");
        }
        Some("full") => return full(),
        _ => {}
    }
    parts! { ()
        creation contents positions appended lists sizes holes allocation allocated_and_not_used mapped private
        pages_behind_the_end taken_away copies_and_truncation removed forks parts seals writers limits words
        refused_mappings code
    }
    of_the_program(start.auxiliary(AT_EXECFN).expect("a path"));
    status("memfd")
}

/// A file of `pages` pages, each of which begins with its number and 1.
fn file(pages: u64) -> File {
    let file = File::memory(c"pages", MFD_ALLOW_SEALING).expect("a file");
    for page in 0..pages {
        equal("a page", file.write_at(&[page as u8 + 1], page * PAGE), Ok(1));
    }
    equal("all of it", file.resize(pages * PAGE), Ok(0));
    file
}

fn size(file: &File) -> i64 {
    file.stat().st_size
}

fn blocks(file: &File) -> i64 {
    file.stat().st_blocks / 8
}

fn shared(file: &File, pages: u64) -> Pages {
    file.map(0, pages, RW, MAP_SHARED).expect("a mapping")
}

fn creation() {
    let first = File::memory(c"", 0).expect("a file without a name");
    equal("flags of an open file", first.fcntl(F_GETFL, 0), Ok(u64::from(O_RDWR | O_LARGEFILE)));
    equal("closed by an exec", first.fcntl(F_GETFD, 0), Ok(0));
    equal("sealed against seals", first.fcntl(F_GET_SEALS, 0), Ok(F_SEAL_SEAL.into()));
    let has = first.stat();
    equal("a file of 0 bytes", (has.st_mode, has.st_nlink, has.st_size, has.st_blocks), (S_IFREG | 0o777, 0, 0, 0));
    equal("in pages", (has.st_blksize, has.st_rdev, has.st_uid, has.st_gid), (4096, 0, 0, 0));
    let other = File::memory(c"x", MFD_CLOEXEC | MFD_ALLOW_SEALING).expect("a file");
    equal("closed by an exec", other.fcntl(F_GETFD, 0), Ok(FD_CLOEXEC.into()));
    equal("no seals", other.fcntl(F_GET_SEALS, 0), Ok(0));
    holds("two files", other.stat().st_ino != has.st_ino && other.stat().st_dev == has.st_dev);
    let inert = File::memory(c"x", MFD_NOEXEC_SEAL).expect("a file");
    let seals = |file: &File| file.fcntl(F_GET_SEALS, 0);
    equal("not executable", (inert.stat().st_mode, seals(&inert)), (S_IFREG | 0o666, Ok(F_SEAL_EXEC.into())));
    let both = File::memory(c"x", MFD_EXEC | MFD_ALLOW_SEALING).expect("a file");
    equal("executable", (both.stat().st_mode, both.fcntl(F_GET_SEALS, 0)), (S_IFREG | 0o777, Ok(0)));
    for flags in [32, 1 << 31, 1 << 26, MFD_EXEC | MFD_NOEXEC_SEAL] {
        equal(("flags", flags), File::memory(c"x", flags), Err(EINVAL));
    }
    equal("no name", call(MEMFD_CREATE, [NOWHERE, 0]), Err(EFAULT));
    equal("wrong flags first", call(MEMFD_CREATE, [NOWHERE, 32]), Err(EINVAL));
    let long = [b'x'; 251];
    let mut name = [0; 252];
    name[..250].copy_from_slice(&long[..250]);
    equal("250 bytes", call(MEMFD_CREATE, [name.as_ptr() as u64, 0]), Err(EINVAL));
    name[249] = 0;
    let _named = File(call(MEMFD_CREATE, [name.as_ptr() as u64, 0]).expect("249 bytes"));
    apart(|| {
        equal("three files", process::limit(RLIMIT_NOFILE, 3, 3).map(drop), Ok(()));
        equal("no room", File::memory(c"x", 0), Err(EMFILE));
        equal("a bad name first", call(MEMFD_CREATE, [NOWHERE, 0]), Err(EFAULT));
    });
}

/// Bytes that differ from place to place.
fn pattern(at: usize) -> u8 {
    (at * 7 + at / 251) as u8
}

fn contents() {
    let file = File::memory(c"x", 0).expect("a file");
    let mut bytes = [0; 10_000];
    bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = pattern(at));
    equal("written", call(WRITE, [*file, bytes.as_ptr() as u64, 10_000]), Ok(10_000));
    equal("its size", (size(&file), blocks(&file)), (10_000, 3));
    equal("the position", file.seek(0, SEEK_CUR), Ok(10_000));
    let mut read = [0; 10_000];
    equal("at the end", call(READ, [*file, read.as_mut_ptr() as u64, 10_000]), Ok(0));
    for (offset, count) in [(0, 10_000), (1, 4095), (4095, 2), (4096, 4096), (9_999, 1), (5000, 5000)] {
        read.fill(0xee);
        let wanted = 10_000.min(count) as u64;
        equal("read", call(PREAD64, [*file, read.as_mut_ptr() as u64, wanted, offset]), Ok(wanted));
        let is_same = read[..count].iter().zip(offset as usize..).all(|(byte, at)| *byte == pattern(at));
        holds(("the same bytes", offset), is_same);
        holds("and no more", read[count..].iter().all(|byte| *byte == 0xee));
    }
    equal("over the end", call(PREAD64, [*file, read.as_mut_ptr() as u64, 100, 9_950]), Ok(50));
    equal("far behind", call(PREAD64, [*file, read.as_mut_ptr() as u64, 100, 1 << 40]), Ok(0));
    equal("nothing", file.write_at(&[], 1 << 40), Ok(0));
    equal("no size by that", size(&file), 10_000);
    equal("from nowhere", call(PWRITE64, [*file, NOWHERE, 10, 0]), Err(EFAULT));
    equal("to nowhere", call(PREAD64, [*file, NOWHERE, 10, 0]), Err(EFAULT));
    equal("before it", call(PWRITE64, [*file, bytes.as_ptr() as u64, 1, u64::MAX]), Err(EINVAL));
    // A page that can be read, and one that cannot.
    let at = Pages::map(2, RW, MAP_PRIVATE).expect("memory");
    unmap(*at + PAGE, 1);
    equal("up to the page", call(PWRITE64, [*file, *at + PAGE - 100, 200, 0]), Ok(100));
    equal("up to the page", call(PREAD64, [*file, *at + PAGE - 100, 200, 0]), Ok(100));
    equal("what was written", (file.byte(99), file.byte(100)), (Some(0), Some(pattern(100))));
    for number in [FSYNC, FDATASYNC] {
        equal("nothing to wait for", call(number, [*file]), Ok(0));
        equal("no file", call(number, [99]), Err(EBADF));
        equal("the console", call(number, [0]), Err(EINVAL));
    }
    // The file from its own mapping.
    let here = shared(&file, 3);
    equal("from itself", call(PWRITE64, [*file, *here + 5000, 1000, 0]), Ok(1000));
    equal("the same bytes", file.byte(0), Some(pattern(5000)));
    equal("to itself", call(PREAD64, [*file, *here + 100, 1000, 5000]), Ok(1000));
    equal("the same bytes", here.read(100), Ok(pattern(5000)));
}

fn positions() {
    let file = file(8);
    equal("set", file.seek(100, SEEK_SET), Ok(100));
    equal("written there", call(WRITE, [*file, b"ab".as_ptr() as u64, 2]), Ok(2));
    equal("and on", file.seek(0, SEEK_CUR), Ok(102));
    let twin = File(call(DUP, [*file]).expect("a descriptor"));
    equal("the same position", twin.seek(1, SEEK_CUR), Ok(103));
    drop(twin);
    equal("the end", file.seek(10, SEEK_END), Ok(8 * PAGE + 10));
    equal("behind it", call(WRITE, [*file, b"c".as_ptr() as u64, 1]), Ok(1));
    equal("a hole between", (file.byte(8 * PAGE), file.byte(8 * PAGE + 10)), (Some(0), Some(b'c')));
    equal("its size", size(&file), 8 * 4096 + 11);
    let mut left = -1_i32;
    equal("set", file.seek(8 * PAGE as i64, SEEK_SET), Ok(8 * PAGE));
    equal("how many", call(IOCTL, [*file, FIONREAD.into(), &raw mut left as u64]), Ok(0));
    equal("so many", left, 11);
    equal("behind the end", file.seek(9 * PAGE as i64, SEEK_SET), Ok(9 * PAGE));
    equal("how many", call(IOCTL, [*file, FIONREAD.into(), &raw mut left as u64]), Ok(0));
    equal("fewer than none", left, 11 - 4096);
    equal("set", file.seek(8 * PAGE as i64, SEEK_SET), Ok(8 * PAGE));
    equal("a failed write", call(WRITE, [*file, NOWHERE, 4]), Err(EFAULT));
    equal("moves nothing", file.seek(0, SEEK_CUR), Ok(8 * PAGE));
    equal("largest", file.seek(i64::MAX, SEEK_SET), Ok(i64::MAX as u64));
    equal("past the cache", file.fcntl(F_SETFL, O_DIRECT), Err(EINVAL));
    equal("no such position", call(WRITE, [*file, b"c".as_ptr() as u64, 1]), Err(EINVAL));
    equal("before it", file.seek(-1, SEEK_SET), Err(EINVAL));
    // Data and holes: pages 0 to 8 have frames.
    equal("punched", file.punch(2 * PAGE, 3 * PAGE), Ok(0));
    let none = Err(ENXIO);
    let (start, end) = (
        [(0, Ok(0), Ok(2)), (1, Ok(1), Ok(2)), (2, Ok(5), Ok(2))],
        [(4, Ok(5), Ok(4)), (5, Ok(5), Ok(9)), (9, none, none)],
    );
    for (from, data, hole) in start.into_iter().chain(end) {
        let pages = |at: Result<u64, Errno>| at.map(|at| at.div_ceil(PAGE));
        equal(("data from", from), pages(file.seek(from * 4096, SEEK_DATA)), data);
        equal(("a hole from", from), pages(file.seek(from * 4096, SEEK_HOLE)), hole);
    }
    equal("inside a page", file.seek(5 * 4096 + 7, SEEK_DATA), Ok(5 * PAGE + 7));
    equal("the hole at the end", file.seek(5 * 4096 + 7, SEEK_HOLE), Ok(8 * PAGE + 11));
    equal("far", file.resize(1 << 40), Ok(0));
    equal("data far away", file.seek(10 * 4096, SEEK_DATA), Err(ENXIO));
    equal("a page there", file.write_at(&[1], 1 << 38), Ok(1));
    equal("data far away", file.seek(10 * 4096, SEEK_DATA), Ok(1 << 38));
    equal("a hole before it", file.seek(10 * 4096, SEEK_HOLE), Ok(10 * PAGE));
}

fn appended() {
    let file = file(1);
    equal("from now on", file.fcntl(F_SETFL, O_APPEND), Ok(0));
    equal("at the end", call(WRITE, [*file, b"ab".as_ptr() as u64, 2]), Ok(2));
    equal("the position", file.seek(0, SEEK_CUR), Ok(PAGE + 2));
    equal("wherever it says", file.write_at(b"cd", 0), Ok(2));
    equal("at the end", (file.byte(0), file.byte(PAGE + 2), size(&file)), (Some(1), Some(b'c'), 4100));
}

fn lists() {
    let file = file(1);
    let pieces = [b"one".as_slice(), b"", b"three"];
    let list = pieces.map(|piece| IoVec { base: piece.as_ptr() as u64, length: piece.len() as u64 });
    equal("three pieces", call(WRITEV, [*file, list.as_ptr() as u64, 3]), Ok(8));
    equal("in turn", [0, 3, 7].map(|at| file.byte(at)), [Some(b'o'), Some(b't'), Some(b'e')]);
    let list = [list[0], IoVec { base: NOWHERE, length: 4 }, list[2]];
    equal("up to one that cannot be read", call(WRITEV, [*file, list.as_ptr() as u64, 3]), Ok(3));
    equal("and no further", file.seek(0, SEEK_CUR), Ok(11));
}

fn sizes() {
    let file = file(4);
    equal("shorter", file.resize(PAGE + 10), Ok(0));
    equal("two pages", (size(&file), blocks(&file)), (4096 + 10, 2));
    equal("nothing behind", file.byte(PAGE + 10), None);
    equal("longer", file.resize(6 * PAGE), Ok(0));
    equal("zeros", [PAGE, PAGE + 10, 2 * PAGE, 5 * PAGE].map(|at| file.byte(at)), [Some(2), Some(0), Some(0), Some(0)]);
    equal("a hole has no pages", blocks(&file), 2);
    // Bytes behind the new end in its page are gone for good.
    equal("bytes", file.write_at(&[9; 100], PAGE), Ok(100));
    equal("cut", file.resize(PAGE + 50), Ok(0));
    equal("longer", file.resize(2 * PAGE), Ok(0));
    equal("cut off", (file.byte(PAGE + 49), file.byte(PAGE + 50)), (Some(9), Some(0)));
    equal("empty", file.resize(0), Ok(0));
    equal("no pages", (size(&file), blocks(&file)), (0, 0));
    equal("negative", call(FTRUNCATE, [*file, u64::MAX]), Err(EINVAL));
    equal("no file", call(FTRUNCATE, [99, 0]), Err(EBADF));
    equal("negative first", call(FTRUNCATE, [99, u64::MAX]), Err(EINVAL));
    equal("the console", call(FTRUNCATE, [0, 0]), Err(EINVAL));
}

fn holes() {
    let file = file(8);
    equal("bytes", file.write_at(&[9; 3 * 4096], PAGE), Ok(3 * PAGE));
    equal("punched", file.punch(PAGE + 100, 2 * PAGE), Ok(0));
    let at = [PAGE + 99, PAGE + 100, 2 * PAGE, 3 * PAGE + 99, 3 * PAGE + 100];
    equal("the bytes in it", at.map(|at| file.byte(at)), [9, 0, 0, 0, 9].map(Some));
    equal("one page less", (size(&file), blocks(&file)), (8 * 4096, 7));
    equal("inside a page", file.punch(5 * PAGE, 1), Ok(0));
    equal("no page less", (file.byte(5 * PAGE), blocks(&file)), (Some(0), 7));
    equal("over the end", file.punch(7 * PAGE, 1 << 40), Ok(0));
    equal("the size stays", (size(&file), blocks(&file)), (8 * 4096, 6));
    equal("behind the end", file.punch(1 << 40, PAGE), Ok(0));
    equal("all", file.punch(0, i64::MAX as u64), Ok(0));
    equal("nothing left", (size(&file), blocks(&file)), (8 * 4096, 0));
}

fn allocation() {
    let file = file(2);
    equal("more", file.allocate(0, PAGE, 3 * PAGE + 1), Ok(0));
    equal("five pages", (size(&file), blocks(&file)), (4 * 4096 + 1, 5));
    equal("what was there", (file.byte(PAGE), file.byte(2 * PAGE)), (Some(2), Some(0)));
    equal("behind the end", file.allocate(FALLOC_FL_KEEP_SIZE, 10 * PAGE, 2 * PAGE), Ok(0));
    equal("pages, and no size", (size(&file), blocks(&file)), (4 * 4096 + 1, 7));
    equal("the same size", file.resize(4 * PAGE + 1), Ok(0));
    equal("takes them away", blocks(&file), 5);
    for mode in [FALLOC_FL_PUNCH_HOLE, 4, 8, 9, 16, 17, 32, 64, 128, 256, 1 << 31, 3 | 16] {
        equal(("fallocate", mode), file.allocate(mode, 0, PAGE), Err(ENOTSUP));
    }
    for (mode, offset, length) in [(0, u64::MAX, 1), (0, 0, 0), (0, 0, u64::MAX), (4, 0, 0)] {
        equal(("fallocate", mode, offset, length), file.allocate(mode, offset, length), Err(EINVAL));
    }
    for mode in [0, 3] {
        equal(("fallocate, too far", mode), file.allocate(mode, i64::MAX as u64, 1), Err(EFBIG));
    }
    equal("no file", call(FALLOCATE, [99, 0, 0, 1]), Err(EBADF));
    equal("no file first", call(FALLOCATE, [99, 4, 0, 0]), Err(EBADF));
    equal("the console", call(FALLOCATE, [0, 0, 0, 1]), Err(ENODEV));
    equal("the console, and a mode", call(FALLOCATE, [0, 4, 0, 1]), Err(ENOTSUP));
}

/// Pages that were allocated are holes, and not in memory for `mincore`, until something uses them.
fn allocated_and_not_used() {
    let file = File::memory(c"allocated", 0).expect("a file");
    equal("a size", file.resize(12 * PAGE), Ok(0));
    let at = shared(&file, 12);
    let next = |from: u64| {
        let page = |at: Result<u64, Errno>| at.map(|at| at / PAGE);
        (page(file.seek((from * PAGE) as i64, SEEK_DATA)), page(file.seek((from * PAGE) as i64, SEEK_HOLE)))
    };
    equal("allocated", file.allocate(0, PAGE, 3 * PAGE), Ok(0));
    equal("allocated, the size kept", file.allocate(FALLOC_FL_KEEP_SIZE, 5 * PAGE, 2 * PAGE), Ok(0));
    equal("frames", blocks(&file), 5);
    equal("not used", (present(*at, 12), next(0)), (0, (Err(ENXIO), Ok(0))));
    equal("loaded", at.read(2 * PAGE), Ok(0));
    equal("used", (present(*at, 12), next(0), next(2)), (1 << 2, (Ok(2), Ok(0)), (Ok(2), Ok(3))));
    equal("stored", at.put(3 * PAGE, 1), Ok(()));
    equal("used", (present(*at, 12), next(2)), (3 << 2, (Ok(2), Ok(4))));
    equal("a byte written", file.write_at(&[1], 5 * PAGE + 9), Ok(1));
    equal("used", (present(*at, 12), next(4)), (3 << 2 | 1 << 5, (Ok(5), Ok(4))));
    equal("read", file.byte(6 * PAGE), Some(0));
    equal("not used", present(*at, 12), 3 << 2 | 1 << 5);
    equal("a hole in a part", file.punch(6 * PAGE + 100, 100), Ok(0));
    equal("not used", present(*at, 12), 3 << 2 | 1 << 5);
    equal("allocated again", file.allocate(0, PAGE, PAGE), Ok(0));
    equal("used", (present(*at, 12), blocks(&file)), (7 << 1 | 1 << 5, 5));
    equal("a hole", file.punch(0, 12 * PAGE), Ok(0));
    equal("nothing", (present(*at, 12), blocks(&file)), (0, 0));
    equal("allocated", file.allocate(0, 0, 12 * PAGE), Ok(0));
    apart(|| {
        equal("loaded by a child", at.read(0), Ok(0));
        equal("stored by a child", at.put(PAGE, 1), Ok(()));
    });
    let private = file.map(0, 12, RW, MAP_PRIVATE).expect("memory");
    equal("a copy", private.put(3 * PAGE, 1), Ok(()));
    equal("used", (present(*at, 12), blocks(&file)), (0b1011, 12));
    equal("as zeros", (file.byte(3 * PAGE), file.byte(PAGE), file.byte(7 * PAGE)), (Some(0), Some(1), Some(0)));
    equal("locked", call(MLOCK, [*at + 4 * PAGE, 2 * PAGE]), Ok(0));
    equal("used", present(*at, 12), 0b11_1011);
    equal("shorter", file.resize(5 * PAGE), Ok(0));
    equal("used", (blocks(&file), next(2)), (5, (Ok(3), Ok(2))));
}

fn mapped() {
    let file = file(4);
    let (here, there) = (shared(&file, 4), shared(&file, 4));
    equal("present", present(*here, 4), 15);
    equal("the file", here.read(PAGE), Ok(2));
    equal("stored", here.put(PAGE + 5, 50), Ok(()));
    equal("seen by the file", file.byte(PAGE + 5), Some(50));
    equal("seen by the other", there.read(PAGE + 5), Ok(50));
    equal("written", file.write_at(&[60], 2 * PAGE), Ok(1));
    equal("seen by both", (here.read(2 * PAGE), there.read(2 * PAGE)), (Ok(60), Ok(60)));
    // From page 2 on.
    let part = file.map(2, 2, PROT_READ, MAP_SHARED).expect("a part");
    equal("the third page", part.read(0), Ok(60));
    equal("read only", part.put(0, 1), Err(not_allowed(*part)));
    equal("may be written", call(MPROTECT, [*part, PAGE, RW]), Ok(0));
    equal("written", part.put(0, 61), Ok(()));
    equal("seen by the file", file.byte(2 * PAGE), Some(61));
    drop(file);
    equal("the file is there while it is mapped", here.read(PAGE + 5), Ok(50));
    equal("discarded", call(MADVISE, [*here, 4 * PAGE, MADV_DONTNEED]), Ok(0));
    equal("and there", (present(*here, 4), here.read(PAGE + 5)), (15, Ok(50)));
    let msync = |at: u64, bytes: u64, flags: u64| call(MSYNC, [at, bytes, flags]);
    for (at, bytes, flags, answer) in [
        (*here, 4 * PAGE, 4, Ok(0)),
        (*here, 1, 1 | 2, Ok(0)),
        (*here, 4 * PAGE, 0, Ok(0)),
        (*here, 0, 4, Ok(0)),
        (NOWHERE, 0, 4, Ok(0)),
        (NOWHERE, 1, 4, Err(ENOMEM)),
        (*here, 4 * PAGE, 5, Err(EINVAL)),
        (*here, 4 * PAGE, 8, Err(EINVAL)),
        (*here + 1, 1, 4, Err(EINVAL)),
        (*here, u64::MAX, 4, Ok(0)),
        (*here, u64::MAX - 8191, 4, Err(ENOMEM)),
    ] {
        equal(("msync", bytes, flags), msync(at, bytes, flags), answer);
    }
    let file = File::memory(c"x", 0).expect("a file");
    equal("all holes", file.resize(8 * PAGE), Ok(0));
    let here = file.map(0, 8, RW, MAP_SHARED | MAP_POPULATE).expect("a mapping");
    equal("populated", (present(*here, 8), blocks(&file)), (255, 8));
    equal("zeros", here.read(7 * PAGE), Ok(0));
    drop(here);
    equal("unmapped, and kept", blocks(&file), 8);
    let here = file.map(8, 4, RW, MAP_SHARED).expect("a mapping behind the end");
    equal("behind the end", (present(*here, 4), here.read(0)), (0, Err(behind_the_end(*here))));
}

fn private() {
    let file = file(4);
    let own = file.map(0, 4, RW, MAP_PRIVATE).expect("a mapping");
    equal("the file", own.read(PAGE), Ok(2));
    equal("written", file.write_at(&[70], PAGE), Ok(1));
    equal("seen before a store", own.read(PAGE), Ok(70));
    equal("stored", own.put(PAGE, 80), Ok(()));
    equal("not in the file", file.byte(PAGE), Some(70));
    equal("written", file.write_at(&[71], PAGE), Ok(1));
    equal("not seen any more", own.read(PAGE), Ok(80));
    equal("a store first", own.put(2 * PAGE + 1, 81), Ok(()));
    equal("the rest of the page", (own.read(2 * PAGE), file.byte(2 * PAGE + 1)), (Ok(3), Some(0)));
    equal("discarded", call(MADVISE, [*own, 4 * PAGE, MADV_DONTNEED]), Ok(0));
    equal("the file again", (own.read(PAGE), own.read(2 * PAGE + 1)), (Ok(71), Ok(0)));
    // Each is mapped alone.
    drop(own);
    let all = file.map(0, 4, RW, MAP_PRIVATE | MAP_POPULATE).expect("a mapping");
    equal("populated", present(*all, 4), 15);
    equal("written", file.write_at(&[99], 3 * PAGE), Ok(1));
    equal("by copies", all.read(3 * PAGE), Ok(4));
    drop(all);
    let read = file.map(0, 4, PROT_READ, MAP_PRIVATE).expect("a mapping");
    equal("read only", (read.read(0), read.put(0, 1)), (Ok(1), Err(not_allowed(*read))));
    equal("may be written", call(MPROTECT, [*read, 4 * PAGE, RW]), Ok(0));
    equal("a copy", (read.put(0, 33), file.byte(0)), (Ok(()), Some(1)));
}

fn pages_behind_the_end() {
    let file = File::memory(c"x", 0).expect("a file");
    equal("a page and a bit", file.resize(PAGE + 1), Ok(0));
    let (all, own) = (shared(&file, 4), file.map(0, 4, RW, MAP_PRIVATE).expect("a mapping"));
    for at in [*all, *own] {
        equal("the last page", (put(at + PAGE + 4000, 7), probe::read(at + PAGE + 4000)), (Ok(()), Ok(7)));
        equal("behind it", probe::read(at + 2 * PAGE), Err(behind_the_end(at + 2 * PAGE)));
        equal("behind it", put(at + 2 * PAGE + 9, 1), Err(behind_the_end(at + 2 * PAGE + 9)));
    }
    equal("the kernel's access", call(PREAD64, [*file, *all + 2 * PAGE, 1, 0]), Err(EFAULT));
    equal("longer", file.resize(4 * PAGE), Ok(0));
    for at in [*all, *own] {
        equal("now there", put(at + 3 * PAGE, 8), Ok(()));
    }
    equal("shared", file.byte(3 * PAGE), Some(8));
}

/// Pages that are taken away while they are mapped.
fn taken_away() {
    let file = file(8);
    let (here, there) = (shared(&file, 8), shared(&file, 8));
    let part = file.map(3, 3, RW, MAP_SHARED).expect("a part");
    let touch = || {
        for page in 0..8 {
            equal("stored", here.put(page * PAGE, page as u8 + 1), Ok(()));
            equal("the same", there.read(page * PAGE), Ok(page as u8 + 1));
        }
        equal("the part", [0, 1, 2].map(|page| part.read(page * PAGE)), [4, 5, 6].map(Ok));
    };
    touch();
    equal("punched", file.punch(2 * PAGE, 3 * PAGE), Ok(0));
    equal("not there", (present(*here, 8), present(*there, 8), present(*part, 3)), (0xe3, 0xe3, 4));
    equal("zeros", [1, 2, 4, 5].map(|page| here.read(page * PAGE)), [2, 0, 0, 6].map(Ok));
    equal("one page for all", here.put(3 * PAGE, 99), Ok(()));
    equal("one page for all", (there.read(3 * PAGE), part.read(0), file.byte(3 * PAGE)), (Ok(99), Ok(99), Some(99)));
    touch();
    equal("shorter", file.resize(4 * PAGE), Ok(0));
    equal("there", part.read(0), Ok(4));
    for at in [*here + 4 * PAGE, *there + 7 * PAGE, *part + PAGE] {
        equal("gone", (probe::read(at), put(at, 1)), (Err(behind_the_end(at)), Err(behind_the_end(at))));
    }
    equal("longer", file.resize(8 * PAGE), Ok(0));
    equal("zeros", (here.read(4 * PAGE), part.read(PAGE)), (Ok(0), Ok(0)));
    touch();
    equal("inside a page", file.resize(4 * PAGE + 100), Ok(0));
    equal("longer", file.resize(8 * PAGE), Ok(0));
    equal("its beginning", (here.read(4 * PAGE), part.read(PAGE + 100)), (Ok(5), Ok(0)));
}

/// Copies stay where a hole is punched, and go where the file ends before them.
fn copies_and_truncation() {
    let file = file(4);
    let own = file.map(0, 4, RW, MAP_PRIVATE).expect("a mapping");
    equal("a copy", own.put(PAGE, 50), Ok(()));
    equal("a page of the file", own.read(2 * PAGE), Ok(3));
    equal("punched", file.punch(0, 4 * PAGE), Ok(0));
    equal("the copy stays", (own.read(PAGE), own.read(2 * PAGE)), (Ok(50), Ok(0)));
    equal("written", file.write_at(&[4; 4 * 4096], 0), Ok(4 * PAGE));
    equal("no access", call(MPROTECT, [*own, 4 * PAGE, 0]), Ok(0));
    equal("punched", file.punch(0, 4 * PAGE), Ok(0));
    equal("access", call(MPROTECT, [*own, 4 * PAGE, RW]), Ok(0));
    equal("the copy stays", (own.read(PAGE), own.read(2 * PAGE)), (Ok(50), Ok(0)));
    equal("shorter", file.resize(PAGE), Ok(0));
    equal("the copy is gone", own.read(PAGE), Err(behind_the_end(*own + PAGE)));
    equal("longer", file.resize(4 * PAGE), Ok(0));
    equal("zeros", own.read(PAGE), Ok(0));
}

fn removed() {
    let file = file(4);
    let here = shared(&file, 4);
    let remove = |at, pages| call(MADVISE, [at, pages * PAGE, MADV_REMOVE]);
    equal("stored", here.put(PAGE, 9), Ok(()));
    equal("removed", remove(*here + PAGE, 2), Ok(0));
    equal("from the file", (file.byte(PAGE), file.byte(3 * PAGE), blocks(&file)), (Some(0), Some(4), 2));
    let read = file.map(0, 4, PROT_READ, MAP_SHARED).expect("a mapping");
    equal("may be written", remove(*read, 1), Ok(0));
    let own = file.map(0, 4, RW, MAP_PRIVATE).expect("a mapping");
    equal("private", remove(*own, 1), Err(EACCES));
    let none = Pages::map(4, RW, MAP_PRIVATE).expect("memory");
    equal("no file", remove(*none, 1), Err(EINVAL));
    let anonymous = Pages::map(4, RW, MAP_SHARED).expect("memory");
    equal("stored", anonymous.put(PAGE, 9), Ok(()));
    equal("shared without a file", remove(*anonymous, 4), Ok(0));
    equal("zeros", anonymous.read(PAGE), Ok(0));
    equal("no page", call(MADVISE, [*here + 1, PAGE, MADV_REMOVE]), Err(EINVAL));
    unmap(*here + 2 * PAGE, 1);
    equal("stored", here.put(3 * PAGE, 7), Ok(()));
    equal("a part is not mapped", remove(*here, 4), Err(ENOMEM));
    equal("the rest is removed", file.byte(3 * PAGE), Some(0));
    equal("sealed", file.fcntl(F_ADD_SEALS, F_SEAL_FUTURE_WRITE), Ok(0));
    equal("stored", here.put(0, 7), Ok(()));
    equal("sealed", remove(*here, 1), Err(EPERM));
}

fn forks() {
    let file = file(4);
    let (all, own) = (shared(&file, 4), file.map(0, 4, RW, MAP_PRIVATE).expect("a mapping"));
    equal("stored", (all.put(0, 10), own.put(PAGE, 20)), (Ok(()), Ok(())));
    equal("read", own.read(2 * PAGE), Ok(3));
    apart(|| {
        equal("shared", all.read(0), Ok(10));
        equal("private", own.read(PAGE), Ok(20));
        equal("stored", (all.put(0, 11), own.put(PAGE, 21)), (Ok(()), Ok(())));
        equal("written", file.write_at(&[30], 2 * PAGE), Ok(1));
        equal("of the file", own.read(2 * PAGE), Ok(30));
        equal("punched", file.punch(3 * PAGE, PAGE), Ok(0));
    });
    equal("shared", (all.read(0), file.byte(0)), (Ok(11), Some(11)));
    equal("private", own.read(PAGE), Ok(20));
    equal("of the file", own.read(2 * PAGE), Ok(30));
    equal("punched", all.read(3 * PAGE), Ok(0));
    // Taken away from the child, which has mapped them, by the parent.
    let step = memory::shared::<AtomicU32>();
    let await_step = |number| asleep_until(|| step.load(Ordering::Acquire) == number);
    let child = process::spawn(|| {
        equal("stored", (all.put(PAGE, 5), own.put(PAGE, 6)), (Ok(()), Ok(())));
        step.store(1, Ordering::Release);
        await_step(2);
        equal("taken away", all.read(PAGE), Err(behind_the_end(*all + PAGE)));
        equal("the copy too", own.read(PAGE), Err(behind_the_end(*own + PAGE)));
        equal("what is left", all.read(0), Ok(11));
        wrong()
    });
    await_step(1);
    equal("shorter", file.resize(PAGE), Ok(0));
    step.store(2, Ordering::Release);
    equal("the child", process::wait(child), exited(0));
    equal("the parent's copy", own.read(PAGE), Err(behind_the_end(*own + PAGE)));
}

/// Mappings in pieces, and joined again: each page is found where it is taken away.
fn parts() {
    let file = file(16);
    let here = shared(&file, 16);
    let protect = |page: u64, pages: u64, bits| call(MPROTECT, [*here + page * PAGE, pages * PAGE, bits]);
    let is_zero = |page: u64| {
        equal(("stored", page), here.put(page * PAGE, 9), Ok(()));
        equal(("punched; zero", page), (file.punch(page * PAGE, PAGE), here.read(page * PAGE)), (Ok(0), Ok(0)));
    };
    let all = || (0..16).filter(|page| *page != 5).for_each(is_zero);
    all();
    equal("cut", protect(4, 4, PROT_READ), Ok(0));
    equal("joined", protect(4, 4, RW), Ok(0));
    all();
    equal("cut", protect(0, 3, PROT_READ), Ok(0));
    equal("cut", protect(10, 6, PROT_READ), Ok(0));
    for page in [0, 2, 10, 15] {
        equal("written", file.write_at(&[9], page * PAGE), Ok(1));
        equal("read", here.read(page * PAGE), Ok(9));
        equal("punched", file.punch(page * PAGE, PAGE), Ok(0));
        equal("zero", here.read(page * PAGE), Ok(0));
    }
    equal("joined", protect(0, 16, RW), Ok(0));
    unmap(*here + 5 * PAGE, 1);
    all();
    // The hole is mapped again, by another page of the file.
    let again = call(MMAP, [*here + 5 * PAGE, PAGE, RW, MAP_SHARED | MAP_FIXED, *file, 7 * PAGE]);
    equal("at the hole", again, Ok(*here + 5 * PAGE));
    equal("stored", here.put(5 * PAGE, 3), Ok(()));
    equal("the same page", here.read(7 * PAGE), Ok(3));
    equal("punched", file.punch(7 * PAGE, PAGE), Ok(0));
    equal("zero in both", (here.read(5 * PAGE), here.read(7 * PAGE)), (Ok(0), Ok(0)));
    unmap_all([(*here, 3), (*here + 14 * PAGE, 2)]);
    (3..14).filter(|page| *page != 5).for_each(is_zero);
    unmap(*here + 3 * PAGE, 11);
    equal("nothing is mapped", file.punch(0, 16 * PAGE), Ok(0));
}

fn seals() {
    let add = |file: &File, seals| file.fcntl(F_ADD_SEALS, seals);
    let new = || file(2);
    let one = new();
    equal("unknown", add(&one, 64), Err(EINVAL));
    equal("shrink", add(&one, F_SEAL_SHRINK), Ok(0));
    equal("shorter", one.resize(PAGE), Err(EPERM));
    equal("longer", one.resize(3 * PAGE), Ok(0));
    equal("the same", one.resize(3 * PAGE), Ok(0));
    equal("punched", one.punch(0, PAGE), Ok(0));
    equal("seals add", (add(&one, F_SEAL_GROW), one.fcntl(F_GET_SEALS, 0)), (Ok(0), Ok(6)));
    equal("longer", one.resize(4 * PAGE), Err(EPERM));
    equal("inside", one.write_at(&[1], 3 * PAGE - 1), Ok(1));
    equal("behind", one.write_at(&[1], 3 * PAGE), Err(EPERM));
    equal("over the end", one.write_at(&[1; 4096], 2 * PAGE + 100), Err(EPERM));
    equal("over the end, from a page before", one.write_at(&[1; 4096], 2 * PAGE - 100), Ok(4096));
    equal("allocated", one.allocate(0, 2 * PAGE, 2 * PAGE), Err(EPERM));
    equal("allocated, the size kept", one.allocate(FALLOC_FL_KEEP_SIZE, 2 * PAGE, 2 * PAGE), Err(EPERM));
    equal("allocated inside", one.allocate(0, 0, 3 * PAGE), Ok(0));
    equal("no more", add(&one, F_SEAL_SEAL), Ok(0));
    equal("no more", add(&one, F_SEAL_WRITE), Err(EPERM));
    equal("unknown first", add(&one, 64), Err(EINVAL));

    let two = new();
    equal("write", add(&two, F_SEAL_WRITE), Ok(0));
    equal("again", add(&two, F_SEAL_WRITE), Ok(0));
    equal("written", two.write_at(&[1], 0), Err(EPERM));
    equal("nothing written", two.write_at(&[], 0), Ok(0));
    equal("from nowhere", call(PWRITE64, [*two, NOWHERE, 4, 0]), Err(EPERM));
    equal("punched", two.punch(0, PAGE), Err(EPERM));
    equal("allocated", two.allocate(0, 0, 2 * PAGE), Ok(0));
    equal("longer", two.resize(3 * PAGE), Ok(0));
    equal("shorter", two.resize(PAGE), Ok(0));
    equal("a shared mapping", two.map(0, 1, RW, MAP_SHARED), Err(EPERM));
    let read = two.map(0, 1, PROT_READ, MAP_SHARED).expect("a mapping");
    equal("never written", call(MPROTECT, [*read, PAGE, RW]), Err(EACCES));
    equal("not removed", call(MADVISE, [*read, PAGE, MADV_REMOVE]), Err(EACCES));
    let own = two.map(0, 1, RW, MAP_PRIVATE).expect("a mapping");
    equal("a copy", (own.put(0, 5), two.byte(0)), (Ok(()), Some(1)));

    let three = new();
    let here = shared(&three, 2);
    equal("future writes", add(&three, F_SEAL_FUTURE_WRITE), Ok(0));
    equal("through what there is", (here.put(0, 40), three.byte(0)), (Ok(()), Some(40)));
    equal("written", three.write_at(&[1], 0), Err(EPERM));
    equal("another mapping", three.map(0, 1, RW, MAP_SHARED), Err(EPERM));

    let four = File::memory(c"x", MFD_NOEXEC_SEAL).expect("a file");
    equal("no bits to keep", (add(&four, F_SEAL_EXEC), four.fcntl(F_GET_SEALS, 0)), (Ok(0), Ok(32)));
    let five = new();
    equal("as it is executed", (add(&five, F_SEAL_EXEC), five.fcntl(F_GET_SEALS, 0)), (Ok(0), Ok(62)));
    let six = File::memory(c"x", 0).expect("a file");
    equal("no seals", add(&six, F_SEAL_GROW), Err(EPERM));
    for (file, command, seals, error) in
        [(0, F_ADD_SEALS, F_SEAL_GROW, EINVAL), (0, F_GET_SEALS, 0, EINVAL), (99, F_ADD_SEALS, F_SEAL_GROW, EBADF)]
    {
        equal(("no such file", file, command), call(FCNTL, [file, command.into(), seals.into()]), Err(error));
    }
}

/// The seal of writes waits for no mapping: it is refused while there is one that may be written.
fn writers() {
    let file = file(4);
    let seal = || file.fcntl(F_ADD_SEALS, F_SEAL_WRITE);
    let here = shared(&file, 4);
    let step = memory::shared::<AtomicU32>();
    equal("mapped", seal(), Err(EBUSY));
    equal("read only", call(MPROTECT, [*here, 4 * PAGE, PROT_READ]), Ok(0));
    equal("it may be written again", seal(), Err(EBUSY));
    unmap(*here + PAGE, 1);
    equal("in two parts", seal(), Err(EBUSY));
    unmap(*here, 1);
    equal("one part", seal(), Err(EBUSY));
    let child = process::spawn(|| {
        asleep_until(|| step.load(Ordering::Acquire) != 0);
    });
    unmap(*here + 2 * PAGE, 2);
    equal("the child's", seal(), Err(EBUSY));
    step.store(1, Ordering::Release);
    equal("the child", process::wait(child), exited(0));
    let _own = file.map(0, 4, RW, MAP_PRIVATE).expect("a private mapping");
    equal("sealed", seal(), Ok(0));
}

static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(_: u32, info: &SigInfo, _: &mut UContext) {
    SIGNALS.fetch_add(1 + info.code as u32, Ordering::Relaxed);
}

fn limits() {
    apart(|| {
        // SAFETY: the handler counts.
        unsafe { handle(SIGXFSZ, count, 0, 0) }.expect("a handler");
        equal("a limit", process::limit(RLIMIT_FSIZE, 2 * PAGE + 100, u64::MAX).map(drop), Ok(()));
        let file = File::memory(c"x", 0).expect("a file");
        let signals = || SIGNALS.swap(0, Ordering::Relaxed);
        equal("over it", (file.write_at(&[1; 200], 2 * PAGE), signals()), (Ok(100), 0));
        equal("behind it", (file.write_at(&[1], 2 * PAGE + 100), signals()), (Err(EFBIG), 1));
        equal("longer", (file.resize(2 * PAGE + 101), signals()), (Err(EFBIG), 1));
        equal("as long", (file.resize(2 * PAGE + 100), signals()), (Ok(0), 0));
        equal("allocated", (file.allocate(0, 0, 3 * PAGE), signals()), (Err(EFBIG), 1));
        equal("kept", (file.allocate(FALLOC_FL_KEEP_SIZE, 0, 3 * PAGE), signals()), (Err(EFBIG), 1));
        equal("the size", size(&file), 2 * 4096 + 100);
    });
}

/// A word of a file is one word for all who map it.
fn words() {
    let file = file(1);
    let (here, there) = (shared(&file, 1), shared(&file, 1));
    let wake = || until(|| call(FUTEX, [*there, FUTEX_WAKE, 1]) != Ok(0));
    let (_, woken) = beside(wake, || call(FUTEX, [*here, FUTEX_WAIT, 1, 0]));
    equal("woken by the other mapping", woken, Ok(0));
    equal("another value", call(FUTEX, [*here, FUTEX_WAIT, 2, 0]), Err(EAGAIN));
}

fn refused_mappings() {
    let file = file(1);
    let map = |length: u64, protection, flags, offset: u64| call(MMAP, [0, length, protection, flags, *file, offset]);
    equal("no bytes", map(0, RW, MAP_SHARED, 0), Err(EINVAL));
    for bytes in [u64::MAX, u64::MAX - 4095, u64::MAX - 4096, 1 << 63] {
        equal(("too many bytes", bytes), map(bytes, RW, MAP_SHARED, 0), Err(ENOMEM));
    }
    equal("no kind", map(PAGE, RW, 0, 0), Err(EINVAL));
    equal("an offset inside a page", map(PAGE, RW, MAP_SHARED, 1), Err(EINVAL));
    equal("an offset of 2⁶³", map(PAGE, RW, MAP_SHARED, 1 << 63), Err(EOVERFLOW));
    equal("the last page", map(PAGE, RW, MAP_SHARED, (1 << 63) - PAGE), Err(EOVERFLOW));
    equal("a stack", map(PAGE, RW, MAP_PRIVATE | MAP_GROWSDOWN, 0), Err(EINVAL));
    equal("an unknown flag", map(PAGE, RW, MAP_SHARED_VALIDATE | 1 << 22, 0), Err(ENOTSUP));
    equal("and unchecked", map(PAGE, RW, MAP_SHARED | 1 << 22, 0).map(|at| unmap(at, 1)), Ok(()));
    equal("checked", map(PAGE, RW, MAP_SHARED_VALIDATE, 0).map(|at| unmap(at, 1)), Ok(()));
    let flags = MAP_SHARED_VALIDATE | MAP_FIXED_NOREPLACE;
    equal("a new flag", call(MMAP, [1 << 40, PAGE, RW, flags, *file, 0]), Err(ENOTSUP));
}

/// Code in a file, written by calls and by stores, and executed.
fn code() {
    const ALL: u64 = RW | PROT_EXEC;
    let file = file(4);
    equal("written", file.write_at(&RET, 0), Ok(4));
    let (read, own) = (file.map(0, 4, PROT_READ | PROT_EXEC, MAP_SHARED), file.map(0, 4, ALL, MAP_PRIVATE));
    let (read, own) = (read.expect("a mapping"), own.expect("a mapping"));
    // SAFETY: a function that returns at once.
    let run = |at: u64| unsafe { probe::call(at) };
    equal("executed", (run(*read), run(*own)), (Ok(()), Ok(())));
    equal("written again", file.write_at(&RET, 0), Ok(4));
    // Never fetched before.
    equal("written", file.write_at(&RET, PAGE), Ok(4));
    equal("executed", run(*read + PAGE), Ok(()));
    equal("a part taken away", file.punch(PAGE + 8, 100), Ok(0));
    equal("executed", run(*read + PAGE), Ok(()));
    for (offset, byte) in RET.iter().enumerate() {
        equal("a copy", own.put(2 * PAGE + offset as u64, *byte), Ok(()));
    }
    // The file is mapped nowhere else.
    drop((read, own));
    let all = file.map(0, 4, ALL, MAP_PRIVATE | MAP_POPULATE).expect("a mapping");
    equal("executed", run(*all), Ok(()));
    drop(all);
    equal("behind all files", file.punch(i64::MAX as u64 - 4096, 100), Ok(0));
}

/// The program's own file, which is opened for reading.
fn of_the_program(path: u64) {
    let file = File(call(OPENAT, [HERE, path, O_RDONLY.into()]).expect("the program's file"));
    let pages = (size(&file) as u64).div_ceil(PAGE);
    let all = file.map(0, pages, PROT_READ, MAP_SHARED).expect("a mapping");
    let own = file.map(0, pages, RW, MAP_PRIVATE).expect("a mapping");
    equal("in memory already", present(*all, pages.min(16) as usize), (1 << pages.min(16)) - 1);
    for at in [&all, &own] {
        for (offset, letter) in [(1, b'E'), (2, b'L'), (3, b'F')] {
            equal("the beginning", at.read(offset), Ok(letter));
        }
        let mut random = Random(1);
        for _ in 0..50 {
            let offset = random.below(size(&file) as usize) as u64;
            equal(("a byte", offset), at.read(offset).ok(), file.byte(offset));
        }
        equal("zeros behind the end", at.read(pages * PAGE - 1).ok(), Some(file.byte(pages * PAGE - 1).unwrap_or(0)));
    }
    equal("a store", all.put(0, 1), Err(not_allowed(*all)));
    equal("not opened for writing", call(MPROTECT, [*all, PAGE, RW]), Err(EACCES));
    equal("nor removed", call(MADVISE, [*all, PAGE, MADV_REMOVE]), Err(EACCES));
    equal("a copy", (own.put(0, 1), own.read(0), file.byte(0)), (Ok(()), Ok(1), Some(0x7f)));
    equal("for writing", file.map(0, 1, RW, MAP_SHARED), Err(EACCES));
    equal("for writing", file.resize(0), Err(EINVAL));
    equal("for writing", file.allocate(0, 0, 1), Err(EBADF));
    equal("for writing", file.fcntl(F_ADD_SEALS, F_SEAL_GROW), Err(EPERM));
}

/// Gives files ever more pages: half of what all memory could be, again and again.
fn full() -> u8 {
    let mut bytes = 1 << 40;
    loop {
        // It stays open, with the pages that it has, also where a call failed.
        let file = ManuallyDrop::new(File::memory(c"x", 0).expect("a file"));
        match file.allocate(0, 0, bytes) {
            Ok(_) => {}
            // No memory is as large.
            Err(ENOMEM) if bytes > PAGE => bytes /= 2,
            Err(error) => {
                equal("fallocate", error, ENOMEM);
                return status("memfd full");
            }
        }
    }
}
