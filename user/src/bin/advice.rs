//! Advice about memory: what a child has of it, pages before the first access, and guard pages.
//!
//! Each answer is Linux's. `advice race` has threads that store to pages while others make guards of them.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, file, put, advise, number, unmap, unmap_all, protect);

fn run(start: Start) -> u8 {
    probe::prepare();
    if start.arguments().nth(1) == Some("race") {
        races();
        return status("advice race");
    }
    parts! { ()
        ranges not_in_children zeros_in_children joined populated populated_files not_populated guards guards_stay
        guards_of_files guards_in_children guards_of_many guards_of_nothing given_up locked locked_by_calls
        files_locked_by_calls all_locked futexes
    }
    status("advice")
}

/// Memory of its own, each page of which begins with its number and 1.
fn own(pages: u64) -> Pages {
    let at = Pages::map(pages, RW, MAP_PRIVATE).expect("memory");
    number(*at, pages);
    at
}

fn map_file(file: u64, pages: u64, protection: u64, flags: u64) -> Pages {
    Pages::of(file, 0, pages, protection, flags).expect("a mapping")
}

const ALL: [[u64; 6]; 3] = [
    [MADV_NORMAL, MADV_WILLNEED, MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_COLD],
    [MADV_PAGEOUT, MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK, MADV_KEEPONFORK, MADV_POPULATE_READ],
    [MADV_POPULATE_WRITE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, MADV_DONTDUMP, MADV_DODUMP, MADV_RANDOM],
];

fn ranges() {
    for &advice in ALL.as_flattened() {
        let at = own(4);
        unmap(*at + 2 * PAGE, 1);
        for (what, start, length, wanted) in [
            ("no bytes", *at, 0, Ok(0)),
            ("no page's address", *at + 1, PAGE, Err(EINVAL)),
            ("a size that wraps", *at, u64::MAX - PAGE, Err(EINVAL)),
            ("a size that rounds up to nothing", *at, u64::MAX, Err(EINVAL)),
            ("nothing there", 0x1000, PAGE, Err(ENOMEM)),
            ("behind the last address", TOP, PAGE, Err(ENOMEM)),
            ("a hole", *at, 4 * PAGE, Err(ENOMEM)),
            ("a hole first", *at + 2 * PAGE, 2 * PAGE, Err(ENOMEM)),
            ("a part of a page", *at, PAGE + 1, Ok(0)),
            ("a tag", 0x5a << 56 | *at, PAGE, Ok(0)),
        ] {
            equal((advice, what), call(MADVISE, [start, length, advice]), wanted);
        }
    }
    let at = own(1);
    equal("an int", call(MADVISE, [*at, PAGE, 1 << 32 | MADV_DONTFORK]), Ok(0));
    equal("no advice", advise(*at, 1, 1000), Err(EINVAL));
    equal("no advice, no bytes", advise(*at, 0, 1000), Err(EINVAL));
    equal("a tag that wraps", call(MADVISE, [0xff << 56 | *at, 1 << 56, MADV_DONTNEED]), Err(EINVAL));
    equal("as it was", bytes(*at), [1]);
}

fn not_in_children() {
    let at = own(8);
    equal("not in children", advise(*at + 2 * PAGE, 3, MADV_DONTFORK), Ok(0));
    equal("in children again", advise(*at + 4 * PAGE, 1, MADV_DOFORK), Ok(0));
    apart(|| {
        equal("the child's", bytes(*at), [1, 2, 255, 255, 5, 6, 7, 8]);
        equal("nothing there", probe::read(*at + 2 * PAGE), Err(not_mapped(*at + 2 * PAGE)));
        equal("free", mincore(*at + 2 * PAGE, &mut [0]), Err(ENOMEM));
        equal("mapped there", call(MMAP, [*at + 2 * PAGE, 2 * PAGE, RW, PRIVATE, 0, 0]), Ok(*at + 2 * PAGE));
        equal("new", bytes(*at), [1, 2, 0, 0, 5, 6, 7, 8]);
        apart(|| equal("a copy has what is new", bytes(*at), [1, 2, 0, 0, 5, 6, 7, 8]));
    });
    equal("the parent's", bytes(*at), [1, 2, 3, 4, 5, 6, 7, 8]);
    equal("all", advise(*at, 8, MADV_DOFORK), Ok(0));
    apart(|| equal("the child's", bytes(*at), [1, 2, 3, 4, 5, 6, 7, 8]));
    // The last of a child's areas, and memory of other kinds.
    let shared = Pages::map(4, RW, SHARED).expect("memory");
    number(*shared, 4);
    equal("shared", advise(*shared, 2, MADV_DONTFORK), Ok(0));
    let file = file(4);
    let mapped = map_file(file, 4, RW, MAP_PRIVATE);
    number(*mapped, 4);
    equal("a file's", advise(*mapped + 3 * PAGE, 1, MADV_DONTFORK), Ok(0));
    apart(|| {
        equal("shared", bytes(*shared), [255, 255, 3, 4]);
        equal("a file's", bytes(*mapped), [1, 2, 3, 255]);
    });
    // A child's limits do not count memory that it does not inherit.
    let large = Pages::map((64 << 20) / PAGE, RW, MAP_PRIVATE).expect("memory");
    equal("large", advise(*large, (64 << 20) / PAGE, MADV_DONTFORK), Ok(0));
    apart(|| {
        equal("a limit", process::limit(RLIMIT_AS, 48 << 20, 48 << 20).map(drop), Ok(()));
        equal("room", map(24 << 20, RW).map(drop), Ok(()));
    });
}

fn zeros_in_children() {
    let at = own(4);
    equal("zeros", advise(*at + PAGE, 2, MADV_WIPEONFORK), Ok(0));
    apart(|| {
        equal("nothing in memory", present(*at, 4), 0b1001);
        equal("the child's", bytes(*at), [1, 0, 0, 4]);
        number(*at, 4);
        apart(|| equal("also in its child", bytes(*at), [1, 0, 0, 4]));
        equal("kept", advise(*at, 4, MADV_KEEPONFORK), Ok(0));
        apart(|| equal("kept", bytes(*at), [1, 2, 3, 4]));
    });
    equal("the parent's", bytes(*at), [1, 2, 3, 4]);
    protect(*at, 4, PROT_READ);
    apart(|| equal("read-only", bytes(*at), [1, 0, 0, 4]));
    let file = file(2);
    let private = map_file(file, 2, RW, MAP_PRIVATE);
    let shared = map_file(file, 2, RW, MAP_SHARED);
    let anonymous = Pages::map(2, RW, SHARED).expect("memory");
    for mapped in [private, shared, anonymous] {
        equal("not of a file", advise(*mapped, 2, MADV_WIPEONFORK), Err(EINVAL));
        equal("kept anyhow", advise(*mapped, 2, MADV_KEEPONFORK), Ok(0));
    }
    // Pages before the refused one are advised.
    let at = own(4);
    equal("a file's", call(MMAP, [*at + 2 * PAGE, PAGE, RW, MAP_PRIVATE | MAP_FIXED, file, 0]), Ok(*at + 2 * PAGE));
    equal("stored", put(*at + 2 * PAGE, 3), Ok(()));
    equal("refused", advise(*at, 4, MADV_WIPEONFORK), Err(EINVAL));
    apart(|| equal("the child's", bytes(*at), [0, 0, 3, 4]));
}

/// Areas that differ in what a child has of them, and then do not.
fn joined() {
    let at = own(6);
    equal("zeros", advise(*at + 2 * PAGE, 2, MADV_WIPEONFORK), Ok(0));
    protect(*at + PAGE, 4, PROT_READ);
    equal("not in children", advise(*at + PAGE, 2, MADV_DONTFORK), Ok(0));
    apart(|| equal("the child's", bytes(*at), [1, 255, 255, 0, 5, 6]));
    equal("in children", advise(*at, 6, MADV_DOFORK), Ok(0));
    equal("kept", advise(*at, 6, MADV_KEEPONFORK), Ok(0));
    protect(*at, 6, RW);
    apart(|| {
        equal("the child's", bytes(*at), [1, 2, 3, 4, 5, 6]);
        number(*at, 6);
    });
}

fn populated() {
    let at = Pages::map(8, RW, MAP_PRIVATE).expect("memory");
    equal("nothing", present(*at, 8), 0);
    equal("read", advise(*at, 3, MADV_POPULATE_READ), Ok(0));
    equal("written", advise(*at + 2 * PAGE, 3, MADV_POPULATE_WRITE), Ok(0));
    equal("in memory", present(*at, 8), 0b1_1111);
    equal("zeros", bytes(*at), [0; 8]);
    number(*at, 8);
    equal("once more", advise(*at, 8, MADV_POPULATE_WRITE), Ok(0));
    equal("as they are", bytes(*at), [1, 2, 3, 4, 5, 6, 7, 8]);
    apart(|| {
        equal("copies", advise(*at, 8, MADV_POPULATE_WRITE), Ok(0));
        equal("as they are", bytes(*at), [1, 2, 3, 4, 5, 6, 7, 8]);
        equal("stored", put(*at, 9), Ok(()));
    });
    equal("the parent's", bytes(*at), [1, 2, 3, 4, 5, 6, 7, 8]);
    protect(*at, 8, PROT_READ);
    equal("read-only", advise(*at, 8, MADV_POPULATE_WRITE), Err(EINVAL));
    equal("read-only", advise(*at, 8, MADV_POPULATE_READ), Ok(0));
    protect(*at, 8, PROT_NONE);
    equal("no access", advise(*at, 8, MADV_POPULATE_READ), Err(EINVAL));
    protect(*at, 8, PROT_EXEC);
    equal("code alone", advise(*at, 8, MADV_POPULATE_READ), Err(EINVAL));
    let large = Pages::map((6 << 20) / PAGE, RW, MAP_PRIVATE).expect("memory");
    equal("over tables", advise(*large + PAGE, (5 << 20) / PAGE, MADV_POPULATE_WRITE), Ok(0));
    equal("the ends", (present(*large, 2), present(*large + (5 << 20), 2)), (0b10, 0b01));
}

fn populated_files() {
    let file = file(4);
    let shared = map_file(file, 4, RW, MAP_SHARED);
    equal("read", advise(*shared, 1, MADV_POPULATE_READ), Ok(0));
    equal("written", advise(*shared + PAGE, 1, MADV_POPULATE_WRITE), Ok(0));
    equal("pages of the file", present(*shared, 4), 0b11);
    let private = map_file(file, 6, RW, MAP_PRIVATE);
    equal("copies", advise(*private, 2, MADV_POPULATE_WRITE), Ok(0));
    equal("stored", put(*private, 7), Ok(()));
    equal("not in the file", bytes(*shared), [0, 0]);
    equal("behind the end", advise(*private, 6, MADV_POPULATE_READ), Err(EFAULT));
    equal("behind the end", advise(*private, 6, MADV_POPULATE_WRITE), Err(EFAULT));
    equal("before it", present(*private, 6), 0b1111);
    let behind = *private + 4 * PAGE;
    equal("an access", probe::read(behind), Err(behind_the_end(behind)));
}

/// How far a call gets that ends in an error.
fn not_populated() {
    let at = Pages::map(8, RW, MAP_PRIVATE).expect("memory");
    protect(*at + 3 * PAGE, 1, PROT_READ);
    equal("up to what may not be written", advise(*at, 8, MADV_POPULATE_WRITE), Err(EINVAL));
    equal("in memory", present(*at, 8), 0b111);
    unmap(*at + 5 * PAGE, 1);
    equal("up to a hole", advise(*at, 8, MADV_POPULATE_READ), Err(ENOMEM));
    equal("in memory", present(*at, 5), 0b1_1111);
    equal("behind it nothing", present(*at + 6 * PAGE, 2), 0);
    equal("a guard", advise(*at + 6 * PAGE, 1, MADV_GUARD_INSTALL), Ok(0));
    equal("at a guard", advise(*at + 6 * PAGE, 2, MADV_POPULATE_READ), Err(EFAULT));
    equal("at a guard", advise(*at + 6 * PAGE, 2, MADV_POPULATE_WRITE), Err(EFAULT));
    equal("behind it nothing", present(*at + 7 * PAGE, 1), 0);
}

fn guards() {
    let at = own(6);
    equal("guards", advise(*at + PAGE, 3, MADV_GUARD_INSTALL), Ok(0));
    equal("their contents are gone", present(*at, 6), 0b11_0001);
    equal("a load", probe::read(*at + PAGE), Err(not_mapped(*at + PAGE)));
    equal("a store", put(*at + 2 * PAGE, 1), Err(not_mapped(*at + 2 * PAGE)));
    equal("beside them", bytes(*at), [1, 255, 255, 255, 5, 6]);
    equal("the same again", advise(*at, 5, MADV_GUARD_INSTALL), Ok(0));
    equal("more", bytes(*at), [255, 255, 255, 255, 255, 6]);
    let file = file(1);
    equal("a call that reads", call(WRITE, [file, *at + PAGE, 1]), Err(EFAULT));
    equal("a call that writes", call(READ, [file, *at + PAGE, 1]), Err(EFAULT));
    equal("no guards any more", advise(*at + 2 * PAGE, 4, MADV_GUARD_REMOVE), Ok(0));
    equal("zeros", bytes(*at), [255, 255, 0, 0, 0, 6]);
    number(*at + 2 * PAGE, 2);
    equal("can be stored to", bytes(*at), [255, 255, 1, 2, 0, 6]);
    equal("none there", advise(*at + 2 * PAGE, 4, MADV_GUARD_REMOVE), Ok(0));
    equal("as it was", bytes(*at), [255, 255, 1, 2, 0, 6]);
    // Guards are installed and removed on both sides of a hole, although the call fails.
    unmap(*at + 3 * PAGE, 1);
    equal("a hole", advise(*at, 6, MADV_GUARD_INSTALL), Err(ENOMEM));
    equal("guards", bytes(*at), [255; 6]);
    equal("a hole", advise(*at, 6, MADV_GUARD_REMOVE), Err(ENOMEM));
    equal("none", bytes(*at), [0, 0, 0, 255, 0, 0]);
}

/// Guards outlast mprotect and MADV_DONTNEED; mmap and munmap end them.
fn guards_stay() {
    let at = own(4);
    equal("guards", advise(*at + PAGE, 2, MADV_GUARD_INSTALL), Ok(0));
    protect(*at, 4, PROT_NONE);
    protect(*at, 4, RW);
    equal("protected", bytes(*at), [1, 255, 255, 4]);
    equal("given up", advise(*at, 4, MADV_DONTNEED), Ok(0));
    equal("guards are kept", bytes(*at), [0, 255, 255, 0]);
    equal("mapped anew", call(MMAP, [*at + PAGE, PAGE, RW, PRIVATE | MAP_FIXED, 0, 0]), Ok(*at + PAGE));
    equal("no guard", bytes(*at), [0, 0, 255, 0]);
    protect(*at, 4, PROT_READ);
    equal("of what may only be read", advise(*at, 1, MADV_GUARD_INSTALL), Ok(0));
    equal("removed", advise(*at, 1, MADV_GUARD_REMOVE), Ok(0));
    protect(*at, 4, PROT_NONE);
    equal("the area comes first", probe::read(*at + 2 * PAGE), Err(not_allowed(*at + 2 * PAGE)));
    drop(at);
    let again = Pages::map(4, RW, MAP_PRIVATE).expect("memory");
    equal("nothing is left", bytes(*again), [0; 4]);
}

fn guards_of_files() {
    let file = file(4);
    let (shared, other) = (map_file(file, 4, RW, MAP_SHARED), map_file(file, 4, RW, MAP_SHARED));
    number(*shared, 4);
    equal("guards", advise(*shared + PAGE, 2, MADV_GUARD_INSTALL), Ok(0));
    equal("one mapping's", (bytes(*shared), bytes(*other)), ([1, 255, 255, 4], [1, 2, 3, 4]));
    equal("removed", advise(*shared, 4, MADV_GUARD_REMOVE), Ok(0));
    equal("the file's pages", bytes(*shared), [1, 2, 3, 4]);
    equal("guards", advise(*shared + 3 * PAGE, 1, MADV_GUARD_INSTALL), Ok(0));
    equal("a file that ends before", call(FTRUNCATE, [file, PAGE]), Ok(0));
    equal("longer again", call(FTRUNCATE, [file, 4 * PAGE]), Ok(0));
    equal("guards are of the addresses", bytes(*shared), [1, 0, 0, 255]);
    equal("removed", advise(*shared, 4, MADV_GUARD_REMOVE), Ok(0));
    let private = map_file(file, 4, RW, MAP_PRIVATE);
    number(*private, 4);
    equal("guards", advise(*private, 2, MADV_GUARD_INSTALL), Ok(0));
    equal("of private pages", bytes(*private), [255, 255, 3, 4]);
    equal("removed", advise(*private, 4, MADV_GUARD_REMOVE), Ok(0));
    equal("the file's again", bytes(*private), [1, 0, 3, 4]);
}

fn guards_in_children() {
    let at = own(4);
    let file = file(4);
    let shared = map_file(file, 4, RW, MAP_SHARED);
    number(*shared, 4);
    for (mapped, first) in [(*at, 1), (*shared, 2)] {
        equal("guards", advise(mapped + first * PAGE, 1, MADV_GUARD_INSTALL), Ok(0));
    }
    apart(|| {
        equal("private", bytes(*at), [1, 255, 3, 4]);
        equal("shared", bytes(*shared), [1, 2, 255, 4]);
        apart(|| equal("also in its child", (bytes(*at), bytes(*shared)), ([1, 255, 3, 4], [1, 2, 255, 4])));
        for mapped in [*at, *shared] {
            equal("removed", advise(mapped, 4, MADV_GUARD_REMOVE), Ok(0));
        }
        equal("removed", (bytes(*at), bytes(*shared)), ([1, 0, 3, 4], [1, 2, 3, 4]));
    });
    equal("the parent's", (bytes(*at), bytes(*shared)), ([1, 255, 3, 4], [1, 2, 255, 4]));
    equal("zeros", advise(*at, 4, MADV_WIPEONFORK), Ok(0));
    apart(|| equal("no pages, no guards", bytes(*at), [0; 4]));
}

/// Over several tables, with and without pages.
fn guards_of_many() {
    const PAGES: u64 = (6 << 20) / PAGE;
    let at = Pages::map(PAGES, RW, MAP_PRIVATE).expect("memory");
    for page in (0..PAGES).step_by(100) {
        equal("stored", put(*at + page * PAGE, 1), Ok(()));
    }
    equal("guards", advise(*at + PAGE, PAGES - 2, MADV_GUARD_INSTALL), Ok(0));
    let hits = (0..PAGES).filter(|page| probe::read(*at + page * PAGE).is_err()).count();
    equal("all of them", hits as u64, PAGES - 2);
    equal("removed", advise(*at, PAGES, MADV_GUARD_REMOVE), Ok(0));
    equal("zeros", (0..PAGES).filter(|page| probe::read(*at + page * PAGE) == Ok(0)).count() as u64, PAGES - 1);
}

/// Contents that go at once, later, or not at all.
fn given_up() {
    let at = own(4);
    equal("not needed soon", advise(*at, 4, MADV_COLD), Ok(0));
    equal("not needed", advise(*at, 4, MADV_PAGEOUT), Ok(0));
    equal("as it was", bytes(*at), [1, 2, 3, 4]);
    equal("freed", advise(*at, 2, MADV_FREE), Ok(0));
    holds("there, or zeros", bytes::<2>(*at).iter().zip([1, 2]).all(|(byte, was)| *byte == 0 || *byte == was));
    number(*at, 2);
    equal("stored since", bytes(*at), [1, 2, 3, 4]);
    equal("given up", advise(*at, 1, MADV_DONTNEED_LOCKED), Ok(0));
    equal("zeros", bytes(*at), [0, 2, 3, 4]);
    unmap(*at + PAGE, 1);
    for advice in [MADV_COLD, MADV_PAGEOUT, MADV_FREE, MADV_DONTNEED_LOCKED] {
        equal((advice, "a hole"), advise(*at, 4, advice), Err(ENOMEM));
    }
    equal("given up behind it", bytes(*at + 2 * PAGE), [0; 2]);
    let file = file(2);
    let shared = map_file(file, 2, RW, MAP_SHARED);
    let private = map_file(file, 2, RW, MAP_PRIVATE);
    let anonymous = Pages::map(2, RW, SHARED).expect("memory");
    for mapped in [shared, private, anonymous] {
        number(*mapped, 2);
        equal("not of a file", advise(*mapped, 2, MADV_FREE), Err(EINVAL));
        equal("not needed soon", advise(*mapped, 2, MADV_COLD), Ok(0));
        equal("not needed", advise(*mapped, 2, MADV_PAGEOUT), Ok(0));
        equal("as it was", bytes(*mapped), [1, 2]);
    }
}

fn locked() {
    let at = Pages::map(4, RW, PRIVATE | MAP_LOCKED).expect("memory");
    equal("populated", present(*at, 4), 0b1111);
    number(*at, 4);
    for advice in [MADV_DONTNEED, MADV_FREE, MADV_COLD, MADV_PAGEOUT, MADV_GUARD_INSTALL] {
        equal((advice, "locked"), advise(*at + PAGE, 1, advice), Err(EINVAL));
    }
    for advice in [MADV_GUARD_REMOVE, MADV_DONTFORK, MADV_DOFORK, MADV_POPULATE_WRITE] {
        equal((advice, "locked"), advise(*at, 4, advice), Ok(0));
    }
    equal("as it was", bytes(*at), [1, 2, 3, 4]);
    apart(|| {
        equal("a child's is not", advise(*at, 1, MADV_GUARD_INSTALL), Ok(0));
        equal("nor here", advise(*at + PAGE, 1, MADV_DONTNEED), Ok(0));
        equal("the child's", bytes(*at), [255, 0, 3, 4]);
    });
    equal("locked pages too", advise(*at, 1, MADV_DONTNEED_LOCKED), Ok(0));
    equal("zeros", bytes(*at), [0, 2, 3, 4]);
    // Pages before the locked ones are given up.
    let fixed = PRIVATE | MAP_FIXED;
    equal("not locked", call(MMAP, [*at, 2 * PAGE, RW, fixed, 0, 0]), Ok(*at));
    number(*at, 2);
    equal("up to what is locked", advise(*at, 4, MADV_DONTNEED), Err(EINVAL));
    equal("given up", bytes(*at), [0, 0, 3, 4]);
    number(*at, 2);
    equal("up to what is locked", advise(*at, 4, MADV_GUARD_INSTALL), Err(EINVAL));
    equal("guards", bytes(*at), [255, 255, 3, 4]);
    let shared = Pages::map(1, RW, SHARED | MAP_LOCKED).expect("memory");
    number(*shared, 1);
    equal("not removed", advise(*shared, 1, MADV_REMOVE), Err(EINVAL));
    equal("as it was", bytes(*shared), [1]);
    let private = Pages::map(1, RW, MAP_PRIVATE).expect("memory");
    number(*private, 1);
    equal("others", advise(*private, 1, MADV_DONTNEED), Ok(0));
    equal("zeros", bytes(*private), [0]);
}

/// Memory that may be executed alone, or written alone, of its own and shared.
fn what_may_not_be_read_is_brought() {
    for sharing in [MAP_PRIVATE, MAP_SHARED] {
        for protection in [PROT_EXEC, PROT_WRITE, PROT_WRITE | PROT_EXEC] {
            let at = Pages::map(2, protection, sharing).expect("memory");
            equal((sharing, protection, "locked"), call(MLOCK, [*at, 2 * PAGE]), Ok(0));
            equal((sharing, protection, "there"), present(*at, 2), 0b11);
        }
    }
}

fn locked_by_calls() {
    let at = Pages::map(8, RW, MAP_PRIVATE).expect("memory");
    equal("nothing", (call(MLOCK, [*at, 0]), call(MUNLOCK, [*at, 0]), present(*at, 8)), (Ok(0), Ok(0), 0));
    equal("two pages", call(MLOCK, [*at + PAGE + 7, PAGE]), Ok(0));
    equal("are there", (present(*at, 8), locks(*at)), (0b110, [false, true, true, false]));
    equal("unlocked", call(MUNLOCK, [*at + PAGE, 1]), Ok(0));
    equal("one", (present(*at, 8), locks(*at)), (0b110, [false, false, true, false]));
    equal("later", call(MLOCK2, [*at, 4 * PAGE, 1]), Ok(0));
    equal("not brought", (present(*at, 8), locks(*at)), (0b110, [true, true, true, true, false]));
    equal("now", call(MLOCK2, [*at, 4 * PAGE, 0]), Ok(0));
    equal("brought", present(*at, 8), 0b1111);
    equal("no such flag", call(MLOCK2, [*at, PAGE, 2]), Err(EINVAL));
    equal("no such flag", call(MLOCK2, [*at, PAGE, 3]), Err(EINVAL));
    equal("a flag of 32 bits", call(MLOCK2, [*at, PAGE, 1 << 32]), Ok(0));
    for number in [MLOCK, MUNLOCK] {
        equal((number, "rounds up to nothing"), call(number, [*at, u64::MAX]), Ok(0));
        equal((number, "wraps"), call(number, [*at, u64::MAX - PAGE]), Err(EINVAL));
        equal((number, "nothing there"), call(number, [0x1000, PAGE]), Err(ENOMEM));
        equal((number, "behind the end"), call(number, [1 << 48, PAGE]), Err(ENOMEM));
        equal((number, "a tag"), call(number, [0x5a << 56 | *at, PAGE]), Ok(0));
    }
    equal("invalidated", call(MSYNC, [*at + PAGE, PAGE, MS_INVALIDATE.into()]), Err(EBUSY));
    equal("written", call(MSYNC, [*at + PAGE, PAGE, MS_SYNC.into()]), Ok(0));
    equal("not locked", call(MSYNC, [*at + 5 * PAGE, PAGE, MS_INVALIDATE.into()]), Ok(0));
    equal("all", call(MUNLOCK, [*at, 8 * PAGE]), Ok(0));
    unmap(*at + 2 * PAGE, 1);
    equal("over a hole", call(MLOCK, [*at, 8 * PAGE]), Err(ENOMEM));
    equal("up to it", (present(*at, 2), locks(*at), locks(*at + 3 * PAGE)), (0b11, [true; 2], [false; 2]));
    equal("from a hole", call(MLOCK, [*at + 2 * PAGE, 2 * PAGE]), Err(ENOMEM));
    equal("nothing", locks(*at + 3 * PAGE), [false]);
    equal("over a hole", call(MUNLOCK, [*at + PAGE, 8 * PAGE]), Err(ENOMEM));
    equal("up to it", locks(*at), [true, false]);
    // Pages that cannot be brought are locked all the same.
    protect(*at + 4 * PAGE, 2, PROT_NONE);
    equal("no access", call(MLOCK, [*at + 3 * PAGE, 5 * PAGE]), Err(ENOMEM));
    equal("up to these", (present(*at + 3 * PAGE, 5), locks(*at + 3 * PAGE)), (0b1, [true; 5]));
    protect(*at + 4 * PAGE, 2, PROT_READ);
    equal("to be read", call(MLOCK, [*at + 3 * PAGE, 5 * PAGE]), Ok(0));
    equal("all there", present(*at + 3 * PAGE, 5), 0b1_1111);
    what_may_not_be_read_is_brought();
}

fn files_locked_by_calls() {
    let file = file(2);
    let mapped = map_file(file, 4, RW, MAP_SHARED);
    equal("behind the end", call(MLOCK, [*mapped, 4 * PAGE]), Err(ENOMEM));
    equal("before it", (present(*mapped, 4), locks(*mapped)), (0b11, [true; 4]));
    let private = map_file(file, 2, RW, MAP_PRIVATE);
    equal("copies", call(MLOCK, [*private, 2 * PAGE]), Ok(0));
    equal("stored", put(*private, 1), Ok(()));
    // Locked pages that become writable are brought as by a store.
    let at = Pages::map(2, PROT_NONE, MAP_PRIVATE).expect("addresses");
    equal("no access", call(MLOCK, [*at, 2 * PAGE]), Err(ENOMEM));
    protect(*at, 1, RW);
    equal("one page", present(*at, 2), 0b1);
    protect(*at, 2, RW);
    equal("both", present(*at, 2), 0b11);
    let (private, shared) = (map_file(file, 2, PROT_READ, MAP_PRIVATE), map_file(file, 2, RW, MAP_SHARED));
    equal("of the file", call(MLOCK, [*private, 2 * PAGE]), Ok(0));
    equal("stored", put(*shared, 8), Ok(()));
    protect(*private, 2, RW);
    equal("stored again", put(*shared, 9), Ok(()));
    equal("a copy", (bytes(*private), bytes(*shared)), ([8, 0], [9, 0]));
    let at = own(2);
    equal("a guard", advise(*at, 1, MADV_GUARD_INSTALL), Ok(0));
    equal("cannot be brought", call(MLOCK, [*at, 2 * PAGE]), Err(ENOMEM));
    equal("locked", locks(*at), [true; 2]);
}

fn all_locked() {
    for flags in [0, 4, 8, 1 << 31 | 1] {
        equal("flags", call(MLOCKALL, [flags]), Err(EINVAL));
    }
    apart(|| {
        let before = map(4 * PAGE, RW).expect("memory");
        equal("what comes", call(MLOCKALL, [2]), Ok(0));
        let after = map(4 * PAGE, RW).expect("memory");
        equal("now", (present(before, 4), present(after, 4)), (0, 0b1111));
        equal("locked", (locks(before), locks(after)), ([false; 2], [true; 2]));
        let none = map(4 * PAGE, PROT_NONE).expect("memory");
        equal("no access", (present(none, 4), locks(none)), (0, [true; 2]));
        apart(|| {
            equal("a child's are not", locks(after), [false; 2]);
            let own = map(PAGE, RW).expect("memory");
            equal("nor what comes", (present(own, 1), locks(own)), (0, [false]));
        });
        equal("later", call(MLOCKALL, [2 | 4]), Ok(0));
        let later = map(4 * PAGE, RW).expect("memory");
        equal("not brought", (present(later, 4), locks(later)), (0, [true; 2]));
        let populated = call(MMAP, [0, 4 * PAGE, RW, PRIVATE | MAP_POPULATE, 0, 0]).expect("memory");
        equal("not even so", (present(populated, 4), locks(populated)), (0, [true; 2]));
        let heap = call(BRK, [0]).expect("a heap");
        equal("more heap", call(BRK, [heap + 4 * PAGE]), Ok(heap + 4 * PAGE));
        equal("locked", locks(heap + 2 * PAGE), [true]);
        equal("what is there", call(MLOCKALL, [1]), Ok(0));
        equal("brought", (present(before, 4), present(later, 4), locks(before)), (0b1111, 0b1111, [true; 2]));
        let free = map(4 * PAGE, RW).expect("memory");
        equal("no more to come", (present(free, 4), locks(free)), (0, [false; 2]));
        equal("none", call(MUNLOCKALL, []), Ok(0));
        equal("unlocked", (locks(before), locks(later)), ([false; 2], [false; 2]));
        equal("there still", present(before, 4), 0b1111);
    });
}

/// Words of futexes that any process may share are looked for where they are.
fn futexes() {
    const PRIVATE: u64 = 128;
    let own = own(1);
    let shared = Pages::map(1, RW, SHARED).expect("memory");
    for at in [own, shared] {
        let wake = |flags: u64| call(FUTEX, [*at, FUTEX_WAKE | flags, 1, 0, 0, 0]);
        equal("no sleeper", (wake(0), wake(PRIVATE)), (Ok(0), Ok(0)));
        equal("guards", advise(*at, 1, MADV_GUARD_INSTALL), Ok(0));
        equal("at a guard", (wake(0), wake(PRIVATE)), (Err(EFAULT), Ok(0)));
        equal("waiting", call(FUTEX, [*at, FUTEX_WAIT, 0, 0, 0, 0]), Err(EFAULT));
    }
}

/// A range of which hardly anything has tables.
fn guards_of_nothing() {
    const HUGE: u64 = 64 << 40;
    let at = Pages::map(HUGE / PAGE, PROT_NONE, MAP_PRIVATE).expect("addresses");
    equal("guards", advise(*at + HUGE / 2, 3, MADV_GUARD_INSTALL), Ok(0));
    equal("removed", advise(*at, HUGE / PAGE, MADV_GUARD_REMOVE), Ok(0));
    protect(*at + HUGE / 2, 3, RW);
    equal("none", bytes(*at + HUGE / 2), [0; 3]);
}

/// Pages that two threads populate while two others make guards of them, and pages again.
const RACE_PAGES: u64 = 16;
const ROUNDS: u64 = 500;

fn races() {
    let at = Pages::map(RACE_PAGES, RW, MAP_PRIVATE).expect("memory");
    let (populated, ended) = (AtomicU32::new(0), AtomicU32::new(0));
    all_at_once(4, |number| {
        if number < 2 {
            populate_pages(*at, &populated, &ended, number as u64);
        } else {
            make_guards(*at, &populated, number as u64);
            ended.fetch_add(1, Ordering::Release);
        }
    });
    equal("guards", advise(*at, RACE_PAGES, MADV_GUARD_INSTALL), Ok(0));
    equal("each", bytes(*at), [255; RACE_PAGES as usize]);
}

fn populate_pages(at: u64, populated: &AtomicU32, ended: &AtomicU32, number: u64) {
    let mut page = number;
    while ended.load(Ordering::Acquire) < 2 {
        page = (page * 5 + 3) % RACE_PAGES;
        match advise(at + page * PAGE, 1, MADV_POPULATE_WRITE) {
            Ok(_) => _ = populated.fetch_add(1, Ordering::Relaxed),
            answer => equal("a page or a guard", answer, Err(EFAULT)),
        }
        // On one CPU the others come in between.
        process::sched_yield();
    }
}

fn make_guards(at: u64, populated: &AtomicU32, number: u64) {
    let mut first = number;
    // On a busy machine until the others have come to populate a page.
    for _ in (0..).take_while(|&round| round < ROUNDS || populated.load(Ordering::Relaxed) == 0) {
        first = (first * 7 + 5) % (RACE_PAGES - 4);
        equal("guards", advise(at + first * PAGE, 4, MADV_GUARD_INSTALL), Ok(0));
        process::sched_yield();
        equal("pages again", advise(at + first * PAGE, 4, MADV_GUARD_REMOVE), Ok(0));
    }
}
