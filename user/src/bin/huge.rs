//! Blocks of 2 MiB (`MADV_HUGEPAGE`), and compares each answer with that of Linux.
//!
//! `huge`: what advice answers, which pages are there, and what each call leaves of the contents of a block or of a
//! part. `huge race`: threads that change pages of one block, and fork, while others store to it. `huge shared`: blocks
//! of a file that several mappings and processes share (Linux: `shmem_enabled=advise`), while pages are taken away.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, file, put, advise, byte_of, unmap, unmap_all, protect);

/// Pages of a block.
const BLOCK: u64 = 512;
const BYTES: u64 = BLOCK * PAGE;
/// Pages of a contiguous group.
const GROUP: u64 = 16;

fn run(start: Start) -> u8 {
    probe::prepare();
    match start.arguments().nth(1) {
        Some("race") => {
            races();
            return status("huge race");
        }
        Some("shared") => {
            shared();
            shared_in_parts();
            shared_by_processes();
            return status("huge shared");
        }
        _ => {}
    }
    parts! { ()
        advised brought not_brought grouped protected given_up unmapped moved guarded locked forked forked_and_split
        executed
    }
    status("huge")
}

fn store(at: u64, value: u8) {
    equal("stored", put(at, value), Ok(()));
}

/// So many blocks of memory, with nothing around, for which blocks are wanted.
fn blocks(count: u64) -> Pages {
    let whole = map((count + 2) * BYTES, PROT_NONE).expect("addresses");
    let at = whole.next_multiple_of(BYTES) + if whole.is_multiple_of(BYTES) { BYTES } else { 0 };
    unmap(whole, at.abs_diff(whole) / PAGE);
    unmap(at + count * BYTES, (whole + (count + 2) * BYTES - (at + count * BYTES)) / PAGE);
    equal("mapped", call(MMAP, [at, count * BYTES, RW, PRIVATE | MAP_FIXED, u64::MAX, 0]), Ok(at));
    equal("advised", advise(at, count * BLOCK, MADV_HUGEPAGE), Ok(0));
    // SAFETY: mapped above.
    unsafe { Pages::new(at, count * BLOCK) }
}

/// One, in which some pages begin with another byte.
fn written() -> Pages {
    let at = blocks(1);
    for (page, value) in WRITTEN {
        store(*at + page * PAGE, value);
    }
    at
}

const WRITTEN: [(u64, u8); 5] = [(0, 1), (1, 2), (200, 3), (510, 4), (511, 5)];

/// The first bytes of those pages; 255 where an access faults.
fn bytes(at: u64) -> [u8; 5] {
    WRITTEN.map(|(page, _)| probe::read(at + page * PAGE).unwrap_or(255))
}

/// How many of so many pages are there.
fn present(at: u64, pages: u64) -> usize {
    let mut all = [0; 2 * BLOCK as usize];
    equal("mincore", mincore(at, &mut all[..pages as usize]), Ok(()));
    all.iter().map(|&byte| usize::from(byte & 1)).sum()
}

fn advised() {
    for advice in [MADV_HUGEPAGE, MADV_NOHUGEPAGE] {
        let at = map(4 * PAGE, RW).expect("memory");
        equal((advice, "private; a part"), (advise(at, 4, advice), advise(at + PAGE, 1, advice)), (Ok(0), Ok(0)));
        equal((advice, "nothing"), advise(at, 0, advice), Ok(0));
        equal((advice, "no page's address"), advise(at + 1, 1, advice), Err(EINVAL));
        equal((advice, "wraps"), call(MADVISE, [at, u64::MAX, advice]), Err(EINVAL));
        unmap(at + PAGE, 1);
        equal((advice, "a hole"), advise(at, 4, advice), Err(ENOMEM));
        unmap(at, 4);
        equal((advice, "not mapped"), advise(at, 4, advice), Err(ENOMEM));
        let file = file(4);
        for flags in [MAP_SHARED, MAP_PRIVATE] {
            let at = call(MMAP, [0, 4 * PAGE, RW, flags, file, 0]).expect("a mapping");
            equal((advice, flags), advise(at, 4, advice), Ok(0));
            unmap(at, 4);
        }
    }
}

/// The first access of a block brings all of it.
fn brought() {
    let at = blocks(2);
    equal("before", present(*at, 2 * BLOCK), 0);
    store(*at + 7 * PAGE, 1);
    equal("by a store", present(*at, 2 * BLOCK), BLOCK as usize);
    equal("zeros", probe::read(*at + BYTES + 9 * PAGE), Ok(0));
    equal("by a load", present(*at, 2 * BLOCK), 2 * BLOCK as usize);
    store(*at + BYTES + 9 * PAGE, 2);
    equal("stored then", [7, BLOCK + 9].map(|page| probe::read(*at + page * PAGE)), [Ok(1), Ok(2)]);
    for advice in [MADV_POPULATE_READ, MADV_POPULATE_WRITE] {
        let at = blocks(2);
        equal("populated", advise(*at + 100 * PAGE, 10, advice), Ok(0));
        equal("a block", present(*at, 2 * BLOCK), BLOCK as usize);
        equal("all", advise(*at, 2 * BLOCK, advice), Ok(0));
        equal("two", present(*at, 2 * BLOCK), 2 * BLOCK as usize);
    }
}

/// Where a block does not fit, a page or the 16 of a group come; where it is not wanted, a page.
fn not_brought() {
    let at = blocks(2);
    unmap(*at, 1);
    store(*at + 3 * PAGE, 1);
    equal("a part is not mapped, and a group is cut", present(*at + PAGE, BLOCK), 1);
    store(*at + 19 * PAGE, 1);
    holds("a part is not mapped", [2, 1 + GROUP as usize].contains(&present(*at + PAGE, BLOCK)));
    protect(*at + BYTES, 1, PROT_READ);
    store(*at + BYTES + 3 * PAGE, 1);
    equal("two areas", present(*at + BYTES, BLOCK), 1);
    unmap(*at + PAGE, 2 * BLOCK - 1);

    let at = blocks(2);
    equal("not wanted", advise(*at, BLOCK, MADV_NOHUGEPAGE), Ok(0));
    store(*at + 3 * PAGE, 1);
    store(*at + BYTES + 3 * PAGE, 1);
    equal("a page, and a block", present(*at, 2 * BLOCK), 1 + BLOCK as usize);
    equal("wanted no more", advise(*at, 2 * BLOCK, MADV_NOHUGEPAGE), Ok(0));
    equal("what is there stays", present(*at, 2 * BLOCK), 1 + BLOCK as usize);
}

/// Less than a block is wanted: groups of 16 pages, whole and in part.
fn grouped() {
    for pages in [GROUP, 2 * GROUP + 5, BLOCK - 1] {
        let whole = blocks(1);
        let at = *whole + (BLOCK - pages) / GROUP * GROUP * PAGE;
        for (first, end) in [(*whole, at), (at + pages * PAGE, *whole + BYTES)] {
            if first < end {
                unmap(first, (end - first) / PAGE);
            }
        }
        let group = at;
        // Each page holds its number, but for what was done to one.
        let others = |one: u64| {
            let holds = |page: u64| page == one || probe::read(group + page * PAGE) == Ok(page as u8 + 1);
            (0..GROUP).all(holds)
        };
        for one in [0, 7, GROUP - 1] {
            let page = group + one * PAGE;
            equal((one, "from the start"), advise(at, pages, MADV_DONTNEED), Ok(0));
            (0..GROUP).for_each(|page| store(group + page * PAGE, page as u8 + 1));
            protect(page, 1, PROT_READ);
            equal((one, "no store"), put(page, 9), Err(not_allowed(page)));
            protect(page, 1, PROT_NONE);
            equal((one, "no access"), (probe::read(page), others(one)), (Err(not_allowed(page)), true));
            protect(page, 1, RW);
            equal((one, "again"), (probe::read(page), others(one)), (Ok(one as u8 + 1), true));
            apart(|| {
                store(page, 99);
                equal((one, "a copy"), (probe::read(page), others(one)), (Ok(99), true));
                unmap(page, 1);
                holds((one, "unmapped in the copy"), others(one));
            });
            store(page, one as u8 + 1);
            equal((one, "given up"), advise(page, 1, MADV_DONTNEED), Ok(0));
            equal((one, "zeros"), (probe::read(page), others(one)), (Ok(0), true));
            equal((one, "a guard"), advise(page, 1, MADV_GUARD_INSTALL), Ok(0));
            equal((one, "guarded"), (probe::read(page), others(one)), (Err(not_mapped(page)), true));
            equal((one, "none"), advise(page, 1, MADV_GUARD_REMOVE), Ok(0));
            store(page, one as u8 + 1);
        }
        // Nothing is mapped there any more.
        let room = *blocks(1);
        for to in [room, room + PAGE] {
            let bytes = GROUP * PAGE;
            let there = call(MREMAP, [group, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to]);
            equal("moved", (there, probe::read(to + 5 * PAGE)), (Ok(to), Ok(6)));
            let back = call(MREMAP, [to, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, group]);
            equal("and back", (back, others(GROUP)), (Ok(group), true));
        }
    }
}

fn protected() {
    let at = written();
    protect(*at, BLOCK, PROT_READ);
    equal("read-only", bytes(*at), [1, 2, 3, 4, 5]);
    equal("no store", put(*at + PAGE, 9), Err(not_allowed(*at + PAGE)));
    protect(*at, BLOCK, PROT_NONE);
    equal("no access", probe::read(*at + PAGE), Err(not_allowed(*at + PAGE)));
    equal("all there", present(*at, BLOCK), BLOCK as usize);
    protect(*at, BLOCK, RW);
    store(*at + PAGE, 9);
    equal("again", bytes(*at), [1, 9, 3, 4, 5]);
    protect(*at + 100 * PAGE, 200, PROT_NONE);
    equal("a part", bytes(*at), [1, 9, 255, 4, 5]);
    protect(*at + 300 * PAGE, 212, PROT_READ);
    equal("no store", put(*at + 511 * PAGE, 9), Err(not_allowed(*at + 511 * PAGE)));
    store(*at, 8);
    protect(*at, BLOCK, RW);
    equal("all of it", (bytes(*at), present(*at, BLOCK)), ([8, 9, 3, 4, 5], BLOCK as usize));
}

fn given_up() {
    let at = written();
    equal("a page", advise(*at + PAGE, 1, MADV_DONTNEED), Ok(0));
    equal("the rest stays", (present(*at, BLOCK), bytes(*at)), (BLOCK as usize - 1, [1, 0, 3, 4, 5]));
    equal("the end", advise(*at + 510 * PAGE, 2, MADV_DONTNEED), Ok(0));
    equal("the rest stays", bytes(*at), [1, 0, 3, 0, 0]);
    let at = written();
    equal("all", advise(*at, BLOCK, MADV_DONTNEED), Ok(0));
    equal("nothing", present(*at, BLOCK), 0);
    store(*at + PAGE, 6);
    equal("a block again", (present(*at, BLOCK), bytes(*at)), (BLOCK as usize, [0, 6, 0, 0, 0]));
}

fn unmapped() {
    for (first, pages, left) in
        [(0, 1, [255, 2, 3, 4, 5]), (511, 1, [1, 2, 3, 4, 255]), (1, 510, [1, 255, 255, 255, 5]), (0, BLOCK, [255; 5])]
    {
        let at = written();
        unmap(*at + first * PAGE, pages);
        equal((first, pages), bytes(*at), left);
        equal("nothing is there", probe::read(*at + first * PAGE), Err(not_mapped(*at + first * PAGE)));
    }
    // Mapped over.
    let at = written();
    equal("over it", call(MMAP, [*at + PAGE, PAGE, RW, PRIVATE | MAP_FIXED, u64::MAX, 0]), Ok(*at + PAGE));
    equal("the rest stays", bytes(*at), [1, 0, 3, 4, 5]);
}

fn moved() {
    // Nothing is mapped there any more.
    let room = *blocks(3);
    for (first, pages, to) in [(0, BLOCK, room), (0, BLOCK, room + PAGE), (1, 511, room + BYTES), (200, 1, room)] {
        let at = written();
        let moved = call(MREMAP, [*at + first * PAGE, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to]);
        equal("moved", moved, Ok(to));
        for (page, value) in WRITTEN {
            let is_moved = (first..first + pages).contains(&page);
            let (gone, there) = (*at + page * PAGE, to + page.saturating_sub(first) * PAGE);
            if is_moved {
                equal((first, page), (probe::read(gone), probe::read(there)), (Err(not_mapped(gone)), Ok(value)));
                store(there, value + 1);
            } else {
                equal((first, page), probe::read(gone), Ok(value));
            }
        }
        unmap(room, 3 * BLOCK);
    }
}

fn guarded() {
    let at = written();
    equal("a guard", advise(*at + PAGE, 1, MADV_GUARD_INSTALL), Ok(0));
    equal("one", (bytes(*at), present(*at, BLOCK)), ([1, 255, 3, 4, 5], BLOCK as usize - 1));
    equal("no guard", advise(*at, BLOCK, MADV_GUARD_REMOVE), Ok(0));
    equal("none", bytes(*at), [1, 0, 3, 4, 5]);
    let at = written();
    equal("all guards", advise(*at, BLOCK, MADV_GUARD_INSTALL), Ok(0));
    equal("all", bytes(*at), [255; 5]);
    equal("none", advise(*at, BLOCK, MADV_GUARD_REMOVE), Ok(0));
    equal("zeros", bytes(*at), [0; 5]);
}

fn locked() {
    let at = blocks(1);
    equal("locked", call(MLOCK, [*at + 100 * PAGE, 10 * PAGE]), Ok(0));
    equal("brought", present(*at + 100 * PAGE, 10), 10);
    equal("not given up", advise(*at, BLOCK, MADV_DONTNEED), Err(EINVAL));
    store(*at + 105 * PAGE, 7);
    equal("given up", advise(*at + 104 * PAGE, 3, MADV_DONTNEED_LOCKED), Ok(0));
    equal("zeros", probe::read(*at + 105 * PAGE), Ok(0));
    equal("unlocked", call(MUNLOCK, [*at, BYTES]), Ok(0));
}

fn forked() {
    let at = written();
    apart(|| {
        equal("the parent's", (bytes(*at), present(*at, BLOCK)), ([1, 2, 3, 4, 5], BLOCK as usize));
        store(*at + PAGE, 20);
        apart(|| {
            store(*at + 200 * PAGE, 30);
            equal("a copy's copy", (bytes(*at), present(*at, BLOCK)), ([1, 20, 30, 4, 5], BLOCK as usize));
        });
        equal("its own", (bytes(*at), present(*at, BLOCK)), ([1, 20, 3, 4, 5], BLOCK as usize));
    });
    equal("as it was", bytes(*at), [1, 2, 3, 4, 5]);
    store(*at, 9);
    equal("as it was, and stored", (bytes(*at), present(*at, BLOCK)), ([9, 2, 3, 4, 5], BLOCK as usize));
    equal("zeros", advise(*at, BLOCK, MADV_WIPEONFORK), Ok(0));
    apart(|| equal("no pages", (present(*at, BLOCK), bytes(*at)), (0, [0; 5])));
}

/// Parts of what is shared are changed on each side.
fn forked_and_split() {
    let at = written();
    apart(|| {
        unmap(*at + PAGE, 1);
        protect(*at + 200 * PAGE, 1, PROT_READ);
        apart(|| {
            store(*at, 7);
            equal("of parts", bytes(*at), [7, 255, 3, 4, 5]);
        });
        equal("parts", bytes(*at), [1, 255, 3, 4, 5]);
        equal("given up", advise(*at + 510 * PAGE, 1, MADV_DONTNEED), Ok(0));
        store(*at + 511 * PAGE, 50);
        equal("stored", bytes(*at), [1, 255, 3, 0, 50]);
    });
    equal("the parent's", (bytes(*at), present(*at, BLOCK)), ([1, 2, 3, 4, 5], BLOCK as usize));
    store(*at + 511 * PAGE, 6);
    apart(|| {
        protect(*at, BLOCK, PROT_READ);
        protect(*at, BLOCK, RW);
        store(*at + 510 * PAGE, 60);
        equal("protected", bytes(*at), [1, 2, 3, 60, 6]);
    });
    equal("the parent's", bytes(*at), [1, 2, 3, 4, 6]);
}

/// Code in a block.
fn executed() {
    let at = blocks(1);
    for page in [0, 300] {
        for (byte, value) in (0..).zip(RET) {
            store(*at + page * PAGE + byte, value);
        }
    }
    // SAFETY: it faults.
    equal("data", unsafe { probe::call(*at) }.err(), Some(not_allowed(*at)));
    protect(*at, BLOCK, PROT_READ | PROT_EXEC);
    // SAFETY: it returns at once.
    equal("code", [0, 300].map(|page| unsafe { probe::call(*at + page * PAGE) }), [Ok(()); 2]);
    protect(*at + 300 * PAGE, 1, RW);
    // SAFETY: as above.
    equal("a part", unsafe { probe::call(*at) }, Ok(()));
    // SAFETY: it faults.
    equal("data", unsafe { probe::call(*at + 300 * PAGE) }.err(), Some(not_allowed(*at + 300 * PAGE)));
}

/// All of the file, with nothing around, for which a block is wanted.
fn share(file: u64) -> Pages {
    let at = blocks(1);
    equal("shared", call(MMAP, [*at, BYTES, RW, MAP_SHARED | MAP_FIXED, file, 0]), Ok(*at));
    equal("advised", advise(*at, BLOCK, MADV_HUGEPAGE), Ok(0));
    at
}

fn punch(file: u64, page: u64, pages: u64) {
    equal("punched", call(FALLOCATE, [file, PUNCH_HOLE.into(), page * PAGE, pages * PAGE]), Ok(0));
}

/// A block that is mapped at two places and in two processes, and read and written as a file.
fn shared() {
    let file = file(BLOCK);
    let at = share(file);
    store(*at + PAGE, 2);
    equal("a block", present(*at, BLOCK), BLOCK as usize);
    let other = share(file);
    WRITTEN.iter().for_each(|&(page, value)| store(*other + page * PAGE, value));
    equal("both", (bytes(*at), bytes(*other)), ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]));
    equal("the file", WRITTEN.map(|(page, _)| byte_of(file, page)), [1, 2, 3, 4, 5]);
    let value = 9_u8;
    equal("written", call(PWRITE64, [file, (&raw const value).expose_provenance() as u64, 1, 200 * PAGE]), Ok(1));
    apart(|| {
        equal("a child's", bytes(*at), [1, 2, 9, 4, 5]);
        store(*at + 511 * PAGE, 50);
        protect(*at, BLOCK, PROT_READ);
        equal("no store", put(*at, 9), Err(not_allowed(*at)));
        protect(*at, BLOCK, RW);
        store(*at + 510 * PAGE, 40);
    });
    equal("of a child", (bytes(*at), bytes(*other)), ([1, 2, 9, 40, 50], [1, 2, 9, 40, 50]));
    // Given up, the file has it still.
    equal("given up", advise(*at, BLOCK, MADV_DONTNEED), Ok(0));
    equal("there", (bytes(*at), bytes(*other)), ([1, 2, 9, 40, 50], [1, 2, 9, 40, 50]));
    // All of it goes.
    punch(file, 0, BLOCK);
    equal("nothing", (present(*at, BLOCK), bytes(*at), bytes(*other)), (0, [0; 5], [0; 5]));
    store(*other + PAGE, 6);
    equal("again", (bytes(*at), byte_of(file, 1)), ([0, 6, 0, 0, 0], 6));
    equal("closed", call(CLOSE, [file]), Ok(0));
    drop(at);
    equal("the other stays", bytes(*other), [0, 6, 0, 0, 0]);
}

fn shared_in_parts() {
    let fresh = || {
        let file = file(BLOCK);
        let (at, other) = (share(file), share(file));
        WRITTEN.iter().for_each(|&(page, value)| store(*at + page * PAGE, value));
        equal("both", bytes(*other), [1, 2, 3, 4, 5]);
        (file, at, other)
    };
    let end = |file| equal("closed", call(CLOSE, [file]), Ok(0));
    let (file, at, other) = fresh();
    punch(file, 1, 1);
    equal("a hole", (bytes(*at), bytes(*other)), ([1, 0, 3, 4, 5], [1, 0, 3, 4, 5]));
    equal("by an address", advise(*other + 510 * PAGE, 1, MADV_REMOVE), Ok(0));
    equal("another", (bytes(*at), bytes(*other)), ([1, 0, 3, 0, 5], [1, 0, 3, 0, 5]));
    store(*other + PAGE, 7);
    equal("stored there", bytes(*at), [1, 7, 3, 0, 5]);
    end(file);

    let (file, at, other) = fresh();
    equal("shorter", call(FTRUNCATE, [file, 200 * PAGE + 1]), Ok(0));
    for at in [*at, *other] {
        let behind = at + 201 * PAGE;
        equal("behind the end", probe::read(behind), Err(behind_the_end(behind)));
        equal("the last", probe::read(at + 200 * PAGE), Ok(3));
    }
    equal("as before", call(FTRUNCATE, [file, BYTES]), Ok(0));
    equal("zeros", (bytes(*at), bytes(*other)), ([1, 2, 3, 0, 0], [1, 2, 3, 0, 0]));
    end(file);

    let (file, at, other) = fresh();
    protect(*at + PAGE, 1, PROT_READ);
    unmap(*at + 200 * PAGE, 1);
    equal("a guard", advise(*at + 510 * PAGE, 1, MADV_GUARD_INSTALL), Ok(0));
    store(*at, 11);
    store(*other + PAGE, 12);
    equal("of parts", (bytes(*at), bytes(*other)), ([11, 12, 255, 255, 5], [11, 12, 3, 4, 5]));
    apart(|| equal("a child's parts", (bytes(*at), bytes(*other)), ([11, 12, 255, 255, 5], [11, 12, 3, 4, 5])));
    end(file);

    let (file, at, other) = fresh();
    let to = blocks(1);
    let moved = call(MREMAP, [*at, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, *to]);
    equal("moved", (moved, bytes(*to)), (Ok(*to), [1, 2, 3, 4, 5]));
    store(*to, 8);
    equal("still shared", bytes(*other), [8, 2, 3, 4, 5]);
    end(file);
}

/// Processes store to pages of their own, of each eight one, while the others are taken away.
fn shared_by_processes() {
    const ROUNDS: u64 = 4;
    const PROCESSES: u64 = 3;
    let file = file(BLOCK);
    let at = share(file);
    for _ in 0..ROUNDS {
        let own = |process: u64, step: u64| *at + (step * 37 % (BLOCK / 8) * 8 + process) * PAGE;
        let children: [_; PROCESSES as usize] = core::array::from_fn(|process| {
            process::try_spawn(|| {
                for step in 0..60 {
                    let (page, value) = (own(process as u64, step), 1 + step as u8);
                    equal("zero", probe::read(page), Ok(0));
                    store(page, value);
                    equal("what was stored", probe::read(page), Ok(value));
                    if step % 16 == 7 {
                        equal("given up", advise(*at, BLOCK, MADV_DONTNEED), Ok(0));
                    }
                    process::sched_yield();
                }
                wrong()
            })
        });
        for step in 0..100 {
            punch(file, step * 29 % (BLOCK / 8) * 8 + PROCESSES, 8 - PROCESSES);
            process::sched_yield();
        }
        children.into_iter().for_each(|child| equal("a process", process::wait(child.expect("a process")), exited(0)));
        for process in 0..PROCESSES {
            equal("all", (0..60).all(|step| probe::read(own(process, step)) == Ok(1 + step as u8)), true);
        }
        punch(file, 0, BLOCK);
        equal("given up", advise(*at, BLOCK, MADV_DONTNEED), Ok(0));
    }
    equal("closed", call(CLOSE, [file]), Ok(0));
}

/// Each round begins with a block, whose pages belong to the threads in turn.
fn races() {
    const ROUNDS: u64 = 12;
    let at = blocks(1);
    for round in 0..ROUNDS {
        equal("nothing", advise(*at, BLOCK, MADV_DONTNEED), Ok(0));
        if round % 2 == 0 {
            store(*at, 0);
        }
        all_at_once(THREADS as usize, |thread| work(*at, thread as u64));
        holds("a block or pages", (0..BLOCK).all(|page| probe::read(*at + page * PAGE).is_ok()));
    }
}

const THREADS: u64 = 4;

/// Stores to pages of its own and changes them; each holds what was stored last, also in a child.
fn work(at: u64, thread: u64) {
    const STEPS: u64 = 40;
    let own = |step: u64| at + (step * 37 % (BLOCK / THREADS) * THREADS + thread) * PAGE;
    for step in 0..STEPS {
        let (page, value) = (own(step), 1 + step as u8);
        equal("zero", probe::read(page), Ok(0));
        store(page, value);
        match (step + thread) % 8 {
            0 => {
                protect(page, 1, PROT_READ);
                equal("read-only", probe::read(page), Ok(value));
                protect(page, 1, RW);
            }
            1 => {
                equal("given up", advise(page, 1, MADV_DONTNEED), Ok(0));
                equal("zero again", probe::read(page), Ok(0));
                store(page, value);
            }
            2 if step % 3 == 0 => {
                let child = process::try_spawn(|| {
                    store(page, 200);
                    u8::from((0..step).any(|step| probe::read(own(step)) != Ok(1 + step as u8)))
                });
                equal("a child", child.map(process::wait), Ok(0));
            }
            _ => {}
        }
        process::sched_yield();
    }
    for step in 0..STEPS {
        equal("at the end", probe::read(own(step)), Ok(1 + step as u8));
    }
}
