//! Moves mappings and changes their sizes, and compares each answer with that of Linux.
//!
//! `remap`: each answer of mremap, and what is where afterwards. `remap race`: threads that move pages of a file while
//! others truncate it and store to it.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, put, byte_of, number, unmap, unmap_all, protect);

const MAY: u64 = MREMAP_MAYMOVE;
const FIXED: u64 = MREMAP_MAYMOVE | MREMAP_FIXED;
const KEEP: u64 = MREMAP_MAYMOVE | MREMAP_DONTUNMAP;

fn run(start: Start) -> u8 {
    probe::prepare();
    if start.arguments().nth(1) == Some("race") {
        races();
        return status("remap race");
    }
    parts! { ()
        refused shorter longer_in_place longer_elsewhere moved moved_onto_others moved_over_tables several kept of_files
        of_shared_memory copied what_moves locked stacks children limits pages_of_files
    }
    status("remap")
}

fn remap(at: u64, pages: u64, new_pages: u64, flags: u64, to: u64) -> Result<u64, Errno> {
    call(MREMAP, [at, pages * PAGE, new_pages * PAGE, flags, to])
}

/// Addresses without memory, to be used one after the other.
fn room(pages: u64) -> u64 {
    let at = map(pages * PAGE, PROT_NONE).expect("addresses");
    unmap(at, pages);
    at
}

/// Memory of its own, each page of which begins with its number and 1.
fn own(pages: u64) -> u64 {
    own_at(room(pages + 2) + PAGE, pages)
}

fn own_at(at: u64, pages: u64) -> u64 {
    equal("mapped", call(MMAP, [at, pages * PAGE, RW, PRIVATE | MAP_FIXED, u64::MAX, 0]), Ok(at));
    number(at, pages);
    at
}

fn file(pages: u64) -> u64 {
    let file = call(MEMFD_CREATE, [c"remap".as_ptr() as u64, 0]).expect("a file");
    equal("a size", call(FTRUNCATE, [file, pages * PAGE]), Ok(0));
    for page in 0..pages {
        let byte = [page as u8 + 1];
        equal("written", call(PWRITE64, [file, byte.as_ptr() as u64, 1, page * PAGE]), Ok(1));
    }
    file
}

fn map_file(file: u64, pages: u64, protection: u64, flags: u64) -> u64 {
    let at = room(pages + 2) + PAGE;
    equal("mapped", call(MMAP, [at, pages * PAGE, protection, flags | MAP_FIXED, file, 0]), Ok(at));
    at
}

/// Whether each page is mapped.
fn is_mapped<const N: usize>(at: u64) -> [bool; N] {
    core::array::from_fn(|page| mincore(at + page as u64 * PAGE, &mut [0]).is_ok())
}

/// `remap_file_pages`: other pages of a mapping's file come in its place.
fn pages_of_files() {
    let shared = Pages::map(8, RW, SHARED).expect("memory");
    let at = *shared;
    number(at, 8);
    let remap = |at, pages, page| call(REMAP_FILE_PAGES, [at, pages * PAGE, 0, page, 0]);
    for (what, arguments, wanted, then) in [
        ("others", [at, 2 * PAGE, 0, 6, 0], Ok(0), [7, 8, 3]),
        ("no page's address", [at + 5, 2 * PAGE + 7, 0, 4, 0], Ok(0), [5, 6, 3]),
        ("a protection", [at, PAGE, 1, 0, 0], Err(EINVAL), [5, 6, 3]),
        ("no pages", [at, PAGE - 1, 0, 0, 0], Err(EINVAL), [5, 6, 3]),
        ("a range that wraps", [at, at.wrapping_neg(), 0, 0, 0], Err(EINVAL), [5, 6, 3]),
        ("pages that wrap", [at, 2 * PAGE, 0, u64::MAX, 0], Err(EINVAL), [5, 6, 3]),
        ("no file is so long", [at, PAGE, 0, 1 << 51, 0], Err(EOVERFLOW), [5, 6, 3]),
        ("the last pages that a file may have", [at, PAGE, 0, (1 << 51) - 2, 0], Ok(0), [255, 6, 3]),
        ("a tag", [0x5a << 56 | at, PAGE, 0, 1, 0], Err(EINVAL), [255, 6, 3]),
        ("behind the end", [at, 2 * PAGE, 0, 7, 0], Ok(0), [8, 255, 3]),
        ("all flags", [at, PAGE, 0, 3, u64::MAX], Ok(0), [4, 255, 3]),
        ("over two areas", [at, 8 * PAGE, 0, 0, 0], Ok(0), [1, 2, 3]),
        ("more than is mapped", [at + 6 * PAGE, 4 * PAGE, 0, 0, 0], Err(EINVAL), [1, 2, 3]),
        ("nothing is mapped", [NOWHERE, PAGE, 0, 0, 0], Err(EINVAL), [1, 2, 3]),
    ] {
        equal(what, call(REMAP_FILE_PAGES, arguments), wanted);
        equal(what, bytes(at), then);
    }
    protect(at + 4 * PAGE, 1, PROT_READ);
    equal("of two protections", remap(at + 3 * PAGE, 2, 0), Err(EINVAL));
    equal("read-only", remap(at + 4 * PAGE, 1, 7), Ok(0));
    equal("it stays so", put(at + 4 * PAGE, 1), Err(not_allowed(at + 4 * PAGE)));
    equal("page 7", bytes(at + 4 * PAGE), [8]);
    unmap(at + 5 * PAGE, 1);
    equal("over a hole", remap(at + 4 * PAGE, 3, 0), Err(EINVAL));
    equal("locked", call(MLOCK, [at, PAGE]), Ok(0));
    equal("another page", remap(at, 1, 2), Ok(0));
    equal("locked too", (locks(at), bytes(at)), ([true], [3]));
    let own = own(1);
    equal("private", remap(own, 1, 0), Err(EINVAL));
    let file = file(3);
    let of_file = map_file(file, 2, RW, MAP_SHARED);
    equal("a file's", remap(of_file, 2, 1), Ok(0));
    equal("stored", put(of_file, 9), Ok(()));
    equal("in the file", byte_of(file, 1), 9);
    equal("a private one's", remap(map_file(file, 2, RW, MAP_PRIVATE), 1, 1), Err(EINVAL));
    equal("sealed", call(MSEAL, [of_file, PAGE, 0]), Ok(0));
    equal("it stays", remap(of_file, 1, 0), Err(EPERM));
    sealed_file();
}

/// A mapping that was made before the seal.
fn sealed_file() {
    let file = File::memory(c"sealed", MFD_ALLOW_SEALING).expect("a file");
    file.resize(2 * PAGE).expect("its size");
    let remap = |at, page| call(REMAP_FILE_PAGES, [at, PAGE, 0, page, 0]);
    let [written, read] = [RW, PROT_READ].map(|protection| map_file(*file, 1, protection, MAP_SHARED));
    equal("a seal", file.fcntl(F_ADD_SEALS, F_SEAL_FUTURE_WRITE), Ok(0));
    equal("may be written", remap(written, 1), Err(EPERM));
    equal("may be read", remap(read, 1), Ok(0));
    equal("never written", call(MPROTECT, [read, PAGE, RW]).map(drop), Err(EACCES));
}

fn refused() {
    let at = own(4);
    let free = room(16);
    let (invalid, fault) = (Err(EINVAL), Err(EFAULT));
    for (what, arguments, wanted) in [
        ("no such flag", [at, PAGE, PAGE, 8, 0], invalid),
        ("no such flag", [at, PAGE, PAGE, 1 << 32, 0], invalid),
        ("no page's address", [at + 1, PAGE, PAGE, 0, 0], invalid),
        ("no new size", [at, PAGE, 0, 0, 0], invalid),
        ("a new size that rounds up to nothing", [at, PAGE, u64::MAX, 0, 0], invalid),
        ("too large", [at, PAGE, TOP + PAGE, MAY, 0], invalid),
        ("as large as all", [at, PAGE, TOP, MAY, 0], Err(ENOMEM)),
        ("nothing there", [free, PAGE, PAGE, 0, 0], fault),
        ("nothing there", [free, PAGE, 2 * PAGE, MAY, 0], fault),
        ("nothing at 0", [0, PAGE, PAGE, 0, 0], fault),
        ("nothing behind the end", [TOP, PAGE, PAGE, 0, 0], fault),
        ("nothing there, to be moved", [free, PAGE, PAGE, FIXED, free + 8 * PAGE], fault),
        ("MREMAP_FIXED without MREMAP_MAYMOVE", [at, PAGE, PAGE, MREMAP_FIXED, free], invalid),
        ("MREMAP_DONTUNMAP without MREMAP_MAYMOVE", [at, PAGE, PAGE, MREMAP_DONTUNMAP, free], invalid),
        ("kept and longer", [at, PAGE, 2 * PAGE, KEEP, free], invalid),
        ("kept and shorter", [at, 2 * PAGE, PAGE, KEEP, free], invalid),
        ("to no page's address", [at, PAGE, PAGE, FIXED, free + 8], invalid),
        ("kept near no page's address", [at, PAGE, PAGE, KEEP, free + 8], invalid),
        ("to behind the end", [at, PAGE, PAGE, FIXED, TOP], invalid),
        ("to before the end", [at, PAGE, 2 * PAGE, FIXED, TOP - PAGE], invalid),
        ("onto itself", [at, 2 * PAGE, 2 * PAGE, FIXED, at], invalid),
        ("onto its end", [at, 2 * PAGE, 2 * PAGE, FIXED, at + PAGE], invalid),
        ("onto its start", [at, PAGE, 2 * PAGE, FIXED, at - PAGE], invalid),
        ("kept near itself", [at, PAGE, PAGE, KEEP, at], invalid),
        ("to a tag", [at, PAGE, PAGE, FIXED, 0x5a << 56 | free], invalid),
        ("beyond the area", [at, 5 * PAGE, 6 * PAGE, MAY, 0], fault),
        ("beyond the area", [at, 5 * PAGE, 6 * PAGE, FIXED, free], fault),
        ("no old size of private memory", [at, 0, PAGE, MAY, 0], invalid),
        ("no old size of private memory", [at, 0, PAGE, FIXED, free], invalid),
        ("an old size that rounds up to nothing", [at, u64::MAX, PAGE, MAY, 0], invalid),
        ("beyond the area, the same size", [at, 8 * PAGE, 8 * PAGE, 0, 0], Ok(at)),
        ("a target that does not count", [at, PAGE, PAGE, MAY, at + 1], Ok(at)),
        ("a part of a page", [at, 1, 2, 0, 0], Ok(at)),
        ("a tag", [0x5a << 56 | at, PAGE, PAGE, 0, 0], Ok(at)),
    ] {
        equal((what, arguments[3]), call(MREMAP, arguments), wanted);
    }
    equal("as it was", bytes(at), [1, 2, 3, 4]);
    equal("nothing new", is_mapped(free), [false; 16]);
    unmap(at, 4);
}

fn shorter() {
    let at = own(6);
    equal("shorter", remap(at, 6, 4, 0, 0), Ok(at));
    equal("four pages", bytes(at), [1, 2, 3, 4, 255, 255]);
    equal("a part of it", remap(at + PAGE, 2, 1, 0, 0), Ok(at + PAGE));
    equal("a hole", bytes(at), [1, 2, 255, 4]);
    equal("over a hole", remap(at, 4, 1, MAY, 0), Ok(at));
    equal("one page", bytes(at), [1, 255, 255, 255]);
    equal("beyond the end of all", call(MREMAP, [at, 1 << 48, PAGE, 0, 0]), Err(EINVAL));
    equal("as it was", bytes(at), [1]);
    // Over other areas.
    own_at(at, 2);
    own_at(at + 3 * PAGE, 2);
    protect(at + 3 * PAGE, 1, PROT_READ);
    equal("over others", remap(at, 4, 1, 0, 0), Ok(at));
    equal("what is left", bytes(at), [1, 255, 255, 255, 2]);
    unmap(at, 5);
}

fn longer_in_place() {
    let at = own(2);
    let pages = room(16);
    own_at(pages, 2);
    equal("longer", remap(pages, 2, 4, 0, 0), Ok(pages));
    equal("zeros", bytes(pages), [1, 2, 0, 0, 255]);
    number(pages, 4);
    equal("its last page", remap(pages + 3 * PAGE, 1, 3, 0, 0), Ok(pages + 3 * PAGE));
    equal("six pages", bytes(pages), [1, 2, 3, 4, 0, 0, 255]);
    equal("not its end", remap(pages, 2, 3, 0, 0), Err(ENOMEM));
    own_at(pages + 8 * PAGE, 1);
    equal("no room", remap(pages, 6, 9, 0, 0), Err(ENOMEM));
    equal("up to the next", remap(pages, 6, 8, 0, 0), Ok(pages));
    equal("beside it", bytes(pages), [1, 2, 3, 4, 0, 0, 0, 0, 1]);
    // They may be one area now, so this is Linux's answer for one.
    equal("no room beside it", remap(pages, 8, 9, 0, 0), Err(ENOMEM));
    protect(pages, 4, PROT_READ);
    equal("the end of what may be written", remap(pages + 8 * PAGE, 1, 2, 0, 0), Ok(pages + 8 * PAGE));
    equal("stored", put(pages + 9 * PAGE, 7), Ok(()));
    equal("over two areas", remap(pages, 10, 11, MAY, 0), Err(EFAULT));
    unmap_all([(pages, 10), (at, 2)]);
}

fn longer_elsewhere() {
    let at = own(4);
    own_at(at + 4 * PAGE, 1);
    let new = remap(at, 4, 8, MAY, 0).expect("other addresses");
    holds("elsewhere", new != at);
    equal("its contents", bytes(new), [1, 2, 3, 4, 0, 0, 0, 0]);
    equal("what was beside it", bytes(at), [255, 255, 255, 255, 1]);
    equal("nothing there", probe::read(at), Err(not_mapped(at)));
    number(new, 8);
    // From its middle.
    let part = remap(new + 2 * PAGE, 2, 4, MAY, 0).expect("other addresses");
    equal("the part", bytes(part), [3, 4, 0, 0]);
    equal("the rest", bytes(new), [1, 2, 255, 255, 5, 6, 7, 8]);
    unmap_all([(part, 4), (new, 8), (at + 4 * PAGE, 1)]);
}

fn moved() {
    let (at, to) = (own(4), room(16));
    equal("moved", remap(at, 4, 4, FIXED, to), Ok(to));
    equal("there", bytes(to), [1, 2, 3, 4, 255]);
    equal("not here", bytes(at), [255; 4]);
    number(to, 4);
    equal("to behind itself", remap(to, 4, 4, FIXED, to + 4 * PAGE), Ok(to + 4 * PAGE));
    equal("there", bytes(to), [255, 255, 255, 255, 1, 2, 3, 4]);
    equal("back", remap(to + 4 * PAGE, 4, 4, FIXED, to), Ok(to));
    equal("shorter", remap(to, 4, 2, FIXED, to + 8 * PAGE), Ok(to + 8 * PAGE));
    equal("two pages", bytes(to), [255, 255, 255, 255, 255, 255, 255, 255, 1, 2, 255]);
    equal("longer", remap(to + 8 * PAGE, 2, 4, FIXED, to), Ok(to));
    equal("zeros behind", bytes(to), [1, 2, 0, 0, 255]);
    equal("a part", remap(to + PAGE, 1, 1, FIXED, to + 8 * PAGE), Ok(to + 8 * PAGE));
    equal("a hole", bytes(to), [1, 255, 0, 0, 255, 255, 255, 255, 2]);
    // Pages that were never touched.
    equal("nothing to move", remap(to + 2 * PAGE, 2, 2, FIXED, to + 10 * PAGE), Ok(to + 10 * PAGE));
    equal("zeros", bytes(to + 10 * PAGE), [0, 0, 255]);
    unmap(to, 12);
}

fn moved_onto_others() {
    let (at, to) = (own(4), own(8));
    equal("onto others", remap(at, 4, 4, FIXED, to + 2 * PAGE), Ok(to + 2 * PAGE));
    equal("replaced", bytes(to), [1, 2, 1, 2, 3, 4, 7, 8]);
    let at = own(2);
    equal("longer, onto others", remap(at, 2, 3, FIXED, to), Ok(to));
    equal("replaced", bytes(to), [1, 2, 0, 2, 3, 4, 7, 8]);
    let at = own(4);
    equal("shorter, onto others", remap(at, 4, 1, FIXED, to + 7 * PAGE), Ok(to + 7 * PAGE));
    equal("replaced", bytes(to), [1, 2, 0, 2, 3, 4, 7, 1]);
    equal("not here", bytes(at), [255; 4]);
    // A call that is refused late has unmapped its target.
    let at = own(2);
    equal("beyond its area", remap(at, 3, 4, FIXED, to), Err(EFAULT));
    equal("as it was", bytes(to), [1, 2, 0, 2, 3, 4, 7, 1]);
    unmap_all([(at, 2), (to, 8)]);
}

/// Other places in tables, and other tables.
fn moved_over_tables() {
    const BLOCK: u64 = 2 << 20;
    let room = room(4 * 512).next_multiple_of(BLOCK);
    let at = room + BLOCK - 3 * PAGE;
    own_at(at, 6);
    let mut from = at;
    for to in [room + 5 * PAGE, room + 2 * BLOCK - 2 * PAGE, room + BLOCK - 4 * PAGE + 16 * PAGE, room] {
        equal("moved", remap(from, 6, 6, FIXED, to), Ok(to));
        equal("there", bytes(to), [1, 2, 3, 4, 5, 6]);
        equal("not here", is_mapped(from), [false; 6]);
        from = to;
    }
    unmap(from, 6);
    // Many pages, few of which are there.
    let large = map(8 * BLOCK, RW).expect("memory");
    for (page, value) in [(0, 1), (511, 2), (512, 3), (1500, 4), (2047, 5)] {
        equal("stored", put(large + page * PAGE, value), Ok(()));
    }
    let to = map(16 * BLOCK, PROT_NONE).expect("addresses");
    equal("moved", call(MREMAP, [large, 8 * BLOCK, 9 * BLOCK, FIXED, to + 7 * PAGE]), Ok(to + 7 * PAGE));
    for (page, value) in [(0, 1), (1, 0), (511, 2), (512, 3), (1500, 4), (2047, 5), (4096, 0)] {
        equal("there", probe::read(to + (7 + page) * PAGE), Ok(value));
    }
    equal("not here", probe::read(large), Err(not_mapped(large)));
    unmap(to, 16 * 512);
}

/// Several areas that move together, at their distances.
fn several() {
    let (at, to) = (own(8), own(8));
    protect(at + PAGE, 1, PROT_READ);
    unmap(at + 3 * PAGE, 2);
    protect(at + 6 * PAGE, 1, PROT_NONE);
    equal("three areas and a hole", remap(at, 8, 8, FIXED, to), Ok(to));
    equal("what was in the hole stays", bytes(to), [1, 2, 3, 4, 5, 6, 255, 8]);
    equal("read-only", put(to + PAGE, 9), Err(not_allowed(to + PAGE)));
    equal("not here", is_mapped(at), [false; 8]);
    unmap(to + 2 * PAGE, 1);
    equal("from a hole on", remap(to + 2 * PAGE, 4, 4, FIXED, at), Err(EFAULT));
    equal("to a hole", remap(to, 3, 3, FIXED, at), Ok(at));
    equal("two pages", (is_mapped(at), bytes(at)), ([true, true, false], [1, 2, 255]));
    equal("longer", remap(to + 3 * PAGE, 5, 6, FIXED, at), Err(EFAULT));
    unmap_all([(to, 8), (at, 8)]);
    // Others at the target.
    let (at, to) = (own(3), own(3));
    unmap(at + PAGE, 1);
    equal("moved", remap(at, 3, 3, FIXED, to), Ok(to));
    equal("one stays", bytes(to), [1, 2, 3]);
    unmap(to, 3);
    // Kept, too.
    let (at, to) = (own(3), room(3));
    protect(at + PAGE, 1, PROT_READ);
    equal("moved and kept", remap(at, 3, 3, FIXED | MREMAP_DONTUNMAP, to), Ok(to));
    equal("contents there, zeros here", (bytes(to), bytes(at)), ([1, 2, 3], [0; 3]));
    unmap_all([(at, 3), (to, 3)]);
}

fn kept() {
    let at = own(4);
    let to = remap(at, 4, 4, KEEP, 0).expect("other addresses");
    holds("elsewhere", to != at);
    equal("there", bytes(to), [1, 2, 3, 4]);
    equal("nothing in memory", present(at, 4), 0);
    equal("zeros", bytes(at), [0; 4]);
    number(at, 4);
    let near = room(4);
    equal("near free addresses", remap(at + PAGE, 2, 2, KEEP, near), Ok(near));
    equal("a part", (bytes(at), bytes(near)), ([1, 0, 0, 4], [2, 3]));
    let other = remap(at, 1, 1, KEEP, near).expect("other addresses");
    holds("not where others are", other != near);
    equal("there", (bytes(other), bytes(near)), ([1], [2, 3]));
    equal("exactly there", remap(near, 2, 2, FIXED | MREMAP_DONTUNMAP, to), Ok(to));
    equal("there", (bytes(to), bytes(near)), ([2, 3, 3, 4], [0, 0]));
    unmap_all([(at, 4), (to, 4), (near, 2), (other, 1)]);
}

fn of_files() {
    let file = file(8);
    let shared = map_file(file, 4, RW, MAP_SHARED);
    let to = room(8);
    equal("moved", remap(shared + PAGE, 2, 2, FIXED, to), Ok(to));
    equal("pages of the file", (bytes(shared), bytes(to)), ([1, 255, 255, 4], [2, 3]));
    equal("stored", put(to, 20), Ok(()));
    equal("in the file", byte_of(file, 1), 20);
    equal("longer", remap(to, 2, 4, 0, 0), Ok(to));
    equal("more of the file", bytes(to), [20, 3, 4, 5, 255]);
    equal("up to behind its end", remap(to, 4, 8, 0, 0), Ok(to));
    equal("its end", bytes(to), [20, 3, 4, 5, 6, 7, 8, 255]);
    equal("behind it", probe::read(to + 7 * PAGE), Err(behind_the_end(to + 7 * PAGE)));
    equal("a shorter file", call(FTRUNCATE, [file, 3 * PAGE]), Ok(0));
    equal("where it moved to", bytes(to), [20, 3, 255, 255, 255, 255, 255, 255]);
    equal("longer again", call(FTRUNCATE, [file, 8 * PAGE]), Ok(0));
    equal("zeros", bytes(to), [20, 3, 0, 0, 0, 0, 0, 255]);
    unmap_all([(to, 8), (shared, 4)]);
    let private = map_file(file, 4, RW, MAP_PRIVATE);
    equal("stored", put(private + PAGE, 9), Ok(()));
    equal("moved", remap(private, 4, 4, FIXED, to), Ok(to));
    equal("a copy, and the file's", bytes(to), [1, 9, 3, 0]);
    equal("the file has its own", byte_of(file, 1), 20);
    equal("kept", remap(to, 4, 4, FIXED | MREMAP_DONTUNMAP, private), Ok(private));
    equal("the copy moved", (bytes(private), bytes(to)), ([1, 9, 3, 0], [1, 20, 3, 0]));
    unmap_all([(private, 4), (to, 4)]);
    let fixed = map_file(file, 4, PROT_READ, MAP_SHARED);
    equal("read-only", remap(fixed, 4, 4, FIXED, to), Ok(to));
    equal("the file's", bytes(to), [1, 20, 3, 0]);
    unmap(to, 4);
}

fn of_shared_memory() {
    let at = call(MMAP, [0, 4 * PAGE, RW, SHARED, u64::MAX, 0]).expect("memory");
    number(at, 4);
    let to = room(8);
    equal("longer", remap(at, 4, 6, FIXED, to), Ok(to));
    equal("no longer than it was", bytes(to), [1, 2, 3, 4, 255, 255]);
    equal("behind its end", put(to + 4 * PAGE, 1), Err(behind_the_end(to + 4 * PAGE)));
    apart(|| {
        let own = remap(to, 2, 2, KEEP, 0).expect("other addresses");
        equal("in a child, too", (bytes(own), bytes(to)), ([1, 2], [1, 2]));
        equal("stored", put(own, 8), Ok(()));
    });
    equal("what the child stored", bytes(to), [8, 2, 3, 4]);
    unmap(to, 6);
}

/// No old size: the same pages once more.
fn copied() {
    let at = call(MMAP, [0, 4 * PAGE, RW, SHARED, u64::MAX, 0]).expect("memory");
    number(at, 4);
    let twice = remap(at, 0, 4, MAY, 0).expect("other addresses");
    equal("both", (bytes(at), bytes(twice)), ([1, 2, 3, 4], [1, 2, 3, 4]));
    equal("stored", put(twice, 9), Ok(()));
    equal("both", (bytes(at), bytes(twice)), ([9, 2, 3, 4], [9, 2, 3, 4]));
    equal("not here", remap(at, 0, 1, 0, 0), Err(ENOMEM));
    let part = room(4);
    equal("a part", remap(at + PAGE, 0, 2, FIXED, part), Ok(part));
    equal("from there on", bytes(part), [2, 3]);
    equal("more than there is", remap(at + 3 * PAGE, 0, 2, FIXED, part), Ok(part));
    equal("behind the end", bytes(part), [4, 255]);
    let file = file(4);
    let private = map_file(file, 4, RW, MAP_PRIVATE);
    equal("not of private pages", remap(private, 0, 4, MAY, 0), Err(EINVAL));
    let shared = map_file(file, 1, PROT_READ, MAP_SHARED);
    let more = remap(shared, 0, 4, MAY, 0).expect("other addresses");
    equal("of a file", bytes(more), [1, 2, 3, 4]);
    unmap_all([(at, 4), (twice, 4), (part, 2), (private, 4), (shared, 1), (more, 4)]);
}

/// The properties of an area beside its contents.
fn what_moves() {
    let (at, to) = (own(6), room(6));
    protect(at + PAGE, 1, PROT_NONE);
    equal("a guard", call(MADVISE, [at + 2 * PAGE, PAGE, MADV_GUARD_INSTALL]), Ok(0));
    equal("not in children", call(MADVISE, [at + 3 * PAGE, PAGE, MADV_DONTFORK]), Ok(0));
    equal("moved", remap(at, 6, 6, FIXED, to), Ok(to));
    equal("as it was", bytes(to), [1, 255, 255, 4, 5, 6]);
    apart(|| equal("a child's", bytes(to), [1, 255, 255, 255, 5, 6]));
    protect(to + PAGE, 1, PROT_READ);
    equal("no access hid it", bytes(to), [1, 2, 255, 4, 5, 6]);
    equal("a guard", probe::read(to + 2 * PAGE), Err(not_mapped(to + 2 * PAGE)));
    own_at(at, 4);
    equal("no guard stays", bytes(at), [1, 2, 3, 4]);
    equal("a guard, kept", call(MADVISE, [at + PAGE, PAGE, MADV_GUARD_INSTALL]), Ok(0));
    let other = remap(at, 4, 4, KEEP, 0).expect("other addresses");
    equal("it moved", (bytes(other), bytes(at)), ([1, 255, 3, 4], [0; 4]));
    unmap_all([(other, 4), (at, 4), (to, 6)]);
}

fn locked() {
    let at = room(16);
    let to = at + 8 * PAGE;
    own_at(at, 2);
    equal("locked", call(MLOCK, [at, 2 * PAGE]), Ok(0));
    equal("longer", remap(at, 2, 4, 0, 0), Ok(at));
    equal("all of it is there", (present(at, 4), locks(at)), (0b1111, [true; 4]));
    equal("longer, elsewhere", remap(at, 4, 6, FIXED, to), Ok(to));
    equal("all of it is there", (present(to, 6), locks(to)), (0b11_1111, [true; 6]));
    equal("kept", remap(to + PAGE, 2, 2, FIXED | MREMAP_DONTUNMAP, at), Ok(at));
    equal("not the old one", (locks(at), locks(to)), ([true; 2], [true, false, false, true, true, true]));
    equal("nor its pages", present(to, 6), 0b11_1001);
    unmap_all([(at, 2), (to, 6)]);
    own_at(at, 2);
    equal("locked once there", call(MLOCK2, [at, 2 * PAGE, 1]), Ok(0));
    equal("longer", remap(at, 2, 4, 0, 0), Ok(at));
    equal("not there", (present(at, 4), locks(at)), (0b11, [true; 4]));
    unmap(at, 4);
}

fn stacks() {
    let at = room(64);
    let stack = at + 32 * PAGE;
    equal("a stack", call(MMAP, [stack, 2 * PAGE, RW, PRIVATE | MAP_FIXED | MAP_GROWSDOWN, u64::MAX, 0]), Ok(stack));
    equal("below it", put(stack - PAGE, 1), Ok(()));
    let to = at + 48 * PAGE;
    equal("moved", remap(stack - PAGE, 3, 3, FIXED, to), Ok(to));
    equal("there", bytes(to), [1, 0, 0, 255]);
    equal("below it", put(to - PAGE, 2), Ok(()));
    equal("grown", bytes(to - PAGE), [2, 1, 0, 0]);
    unmap(to - PAGE, 4);
}

fn children() {
    let (at, to) = (own(4), room(4));
    apart(|| {
        equal("moved", remap(at, 4, 4, FIXED, to), Ok(to));
        equal("there", bytes(to), [1, 2, 3, 4]);
        number(to + PAGE, 2);
        equal("its own", bytes(to), [1, 1, 2, 4]);
    });
    equal("the parent's", (bytes(at), bytes(to)), ([1, 2, 3, 4], [255; 4]));
    equal("moved", remap(at, 4, 4, FIXED, to), Ok(to));
    equal("stored", put(to, 7), Ok(()));
    apart(|| equal("the child's", bytes(to), [7, 2, 3, 4]));
    unmap(to, 4);
}

fn limits() {
    let limit = |which, bytes| equal("a limit", process::limit(which, bytes, bytes).map(drop), Ok(()));
    apart(|| {
        let at = map(64 * MIB, RW).expect("memory");
        limit(RLIMIT_AS, 96 * MIB);
        equal("too long", call(MREMAP, [at, 64 * MIB, 128 * MIB, MAY, 0]), Err(ENOMEM));
        equal("too long", call(MREMAP, [at, 64 * MIB, 128 * MIB, 0, 0]), Err(ENOMEM));
        equal("kept", call(MREMAP, [at, 64 * MIB, 64 * MIB, KEEP, 0]), Err(ENOMEM));
        let moved = call(MREMAP, [at, 64 * MIB, 80 * MIB, MAY, 0]);
        holds("longer", moved.is_ok());
    });
    apart(|| {
        let at = map(64 * MIB, RW).expect("memory");
        let readable = map(64 * MIB, PROT_READ).expect("memory");
        limit(RLIMIT_DATA, 96 * MIB);
        equal("too much data", call(MREMAP, [at, 64 * MIB, 128 * MIB, MAY, 0]), Err(ENOMEM));
        holds("no data", call(MREMAP, [readable, 64 * MIB, 128 * MIB, MAY, 0]).is_ok());
    });
    let at = map(PAGE, RW).expect("memory");
    equal("more than all memory", call(MREMAP, [at, PAGE, 1 << 46, MAY, 0]), Err(ENOMEM));
    let huge = call(MMAP, [0, PAGE, RW, PRIVATE | MAP_NORESERVE, u64::MAX, 0]).expect("memory");
    let longer = call(MREMAP, [huge, PAGE, 1 << 45, MAY, 0]).expect("addresses");
    equal("stored", put(longer + (1 << 44), 3), Ok(()));
    unmap_all([(longer, (1 << 45) / PAGE), (at, 1)]);
}

/// Pages of a file that one thread moves to and fro while others make it shorter and longer and store to it.
const RACE_PAGES: u64 = 8;
const ROUNDS: u64 = 1000;

fn races() {
    let file = file(RACE_PAGES);
    let here = map_file(file, RACE_PAGES, RW, MAP_SHARED);
    // Not free, so that no stack of a thread comes there.
    let there = map(RACE_PAGES * PAGE, PROT_NONE).expect("addresses");
    // The file from which the stored bytes are read.
    let other = self::file(1);
    let (stored, ended) = (AtomicU32::new(0), AtomicBool::new(false));
    all_at_once(4, |number| match number {
        0 => {
            move_pages(here, there, &stored);
            ended.store(true, Ordering::Release);
        }
        1 => truncate(file, &ended),
        _ => store([here, there], other, &stored, &ended, number as u64),
    });
    equal("no page", call(FTRUNCATE, [file, 0]), Ok(0));
    equal("nothing is mapped", present(here, RACE_PAGES as usize), 0);
    equal("all pages", call(FTRUNCATE, [file, RACE_PAGES * PAGE]), Ok(0));
    equal("zeros", bytes(here), [0; RACE_PAGES as usize]);
    unmap(here, RACE_PAGES);
}

fn move_pages(here: u64, there: u64, stored: &AtomicU32) {
    // On a busy machine until the others have come to store a byte.
    for round in (0..).take_while(|&round| round < ROUNDS || stored.load(Ordering::Relaxed) == 0) {
        // Whole, or a part behind or before the rest.
        let (first, pages) = [(0, RACE_PAGES), (3, 2), (0, 3), (5, 3)][round as usize % 4];
        let (from, to) = (here + first * PAGE, there + first * PAGE);
        equal("moved", remap(from, pages, pages, FIXED, to), Ok(to));
        process::sched_yield();
        equal("back", remap(to, pages, pages, FIXED, from), Ok(from));
    }
}

fn truncate(file: u64, ended: &AtomicBool) {
    let mut pages = 0;
    while !ended.load(Ordering::Acquire) {
        pages = (pages * 5 + 3) % RACE_PAGES;
        equal("shorter", call(FTRUNCATE, [file, pages * PAGE]), Ok(0));
        equal("longer", call(FTRUNCATE, [file, RACE_PAGES * PAGE]), Ok(0));
        process::sched_yield();
    }
}

fn store(places: [u64; 2], from: u64, stored: &AtomicU32, ended: &AtomicBool, number: u64) {
    let mut page = number;
    while !ended.load(Ordering::Acquire) {
        page = (page * 5 + 3) % RACE_PAGES;
        for at in places {
            let answer = call(PREAD64, [from, at + page * PAGE, 1, 0]);
            holds("a byte, or no page", matches!(answer, Ok(1) | Err(EFAULT)));
            stored.fetch_add(answer.is_ok().into(), Ordering::Relaxed);
        }
        process::sched_yield();
    }
}
