//! Pages that become blocks (`MADV_COLLAPSE`), and compares each answer with that of Linux.
//!
//! `collapse`: which memory permits it, with which errors, and what it leaves of contents, protections and marks.
//! `collapse race`: threads that store to pages, change them and fork, while others collapse them.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, file, put, advise, unmap, protect);

/// Pages of a block.
const BLOCK: u64 = 512;
const BYTES: u64 = BLOCK * PAGE;

fn run(start: Start) -> u8 {
    probe::prepare();
    if start.arguments().nth(1) == Some("race") {
        races();
        return status("collapse race");
    }
    parts! { ()
        collapsed ranges areas refused several unfit protected divided guarded locked forked_by_parent
        forked_by_child moved watched write_protected by_pidfd
    }
    status("collapse")
}

fn store(at: u64, value: u8) {
    equal("stored", put(at, value), Ok(()));
}

/// So many blocks of memory, with nothing around, in which no access brings more than its page.
fn memory(count: u64) -> Pages {
    let whole = map((count + 2) * BYTES, PROT_NONE).expect("addresses");
    let at = whole.next_multiple_of(BYTES) + if whole.is_multiple_of(BYTES) { BYTES } else { 0 };
    unmap(whole, at.abs_diff(whole) / PAGE);
    unmap(at + count * BYTES, (whole + (count + 2) * BYTES - (at + count * BYTES)) / PAGE);
    equal("mapped", call(MMAP, [at, count * BYTES, RW, PRIVATE | MAP_FIXED, u64::MAX, 0]), Ok(at));
    equal("no blocks", advise(at, count * BLOCK, MADV_NOHUGEPAGE), Ok(0));
    // SAFETY: mapped above.
    unsafe { Pages::new(at, count * BLOCK) }
}

/// As many, in which these pages, and no others, hold these bytes, and for which blocks are wanted by now.
fn holding(count: u64, written: &[(u64, u8)]) -> Pages {
    let at = memory(count);
    written.iter().for_each(|&(page, value)| store(*at + page * PAGE, value));
    wanted(*at, count);
    at
}

fn wanted(at: u64, count: u64) {
    equal("wanted", advise(at, count * BLOCK, MADV_HUGEPAGE), Ok(0));
}

fn collapse(at: u64, pages: u64) -> Result<u64, Errno> {
    advise(at, pages, MADV_COLLAPSE)
}

const SOME: [(u64, u8); 5] = [(0, 1), (1, 2), (200, 3), (510, 4), (511, 5)];

/// The first bytes of those pages; 255 where an access faults.
fn bytes(at: u64) -> [u8; 5] {
    SOME.map(|(page, _)| probe::read(at + page * PAGE).unwrap_or(255))
}

/// How many pages of so many blocks are there: all of what is a block.
fn present(at: u64, count: u64) -> usize {
    let mut all = [0; 3 * BLOCK as usize];
    let pages = (count * BLOCK) as usize;
    equal("mincore", mincore(at, &mut all[..pages]), Ok(()));
    all[..pages].iter().map(|&byte| usize::from(byte & 1)).sum()
}

/// The pages of a block.
const ALL: usize = BLOCK as usize;

/// Pages become a block with what they hold, and zeros where none was.
fn collapsed() {
    let at = holding(1, &SOME);
    equal("before", present(*at, 1), SOME.len());
    equal("collapsed", collapse(*at, BLOCK), Ok(0));
    equal("a block", (present(*at, 1), bytes(*at)), (ALL, [1, 2, 3, 4, 5]));
    holds("zeros", (2..200).all(|page| probe::read(*at + page * PAGE) == Ok(0)));
    store(*at + 200 * PAGE, 9);
    equal("a block already", (collapse(*at, BLOCK), bytes(*at)), (Ok(0), [1, 2, 9, 4, 5]));
    equal("given up", advise(*at, BLOCK, MADV_DONTNEED), Ok(0));
    equal("nothing is there", (collapse(*at, BLOCK), present(*at, 1)), (Err(EINVAL), 0));

    let all = memory(1);
    (0..BLOCK).for_each(|page| store(*all + page * PAGE + page, page as u8));
    wanted(*all, 1);
    equal("all there", collapse(*all, BLOCK), Ok(0));
    holds("each page", (0..BLOCK).all(|page| probe::read(*all + page * PAGE + page) == Ok(page as u8)));

    // Pages of zeros that were read.
    let at = memory(1);
    equal("read", probe::read(*at + 5 * PAGE), Ok(0));
    wanted(*at, 1);
    equal("never written", collapse(*at, BLOCK), Err(EINVAL));
    equal("not wanted", advise(*at, BLOCK, MADV_NOHUGEPAGE), Ok(0));
    store(*at + 511 * PAGE, 5);
    wanted(*at, 1);
    equal("one written", (collapse(*at, BLOCK), present(*at, 1)), (Ok(0), ALL));
    store(*at + 5 * PAGE, 1);
    equal("stored", [5, 6, 511].map(|page| probe::read(*at + page * PAGE)), [Ok(1), Ok(0), Ok(5)]);
}

/// Ranges that are taken, and those that are not.
fn ranges() {
    let at = holding(2, &[(0, 1), (BLOCK, 2)]);
    equal("nothing", collapse(*at, 0), Ok(0));
    equal("no page's address", [0, 1].map(|pages| collapse(*at + 1, pages)), [Err(EINVAL); 2]);
    equal("wraps", call(MADVISE, [*at, u64::MAX, MADV_COLLAPSE]), Err(EINVAL));
    equal(
        "less than a block",
        [(1, 1), (0, 1), (0, BLOCK - 1)].map(|(page, pages)| collapse(*at + page * PAGE, pages)),
        [Ok(0); 3],
    );
    equal("as before", present(*at, 2), 2);
    equal("from the second page on", (collapse(*at + PAGE, 2 * BLOCK - 1), present(*at, 2)), (Ok(0), ALL + 1));
    equal("to the last but one", (collapse(*at, 2 * BLOCK - 1), present(*at, 2)), (Ok(0), 2 * ALL));
    let none = memory(1);
    equal("no page yet", (collapse(*none, BLOCK), collapse(*none + PAGE, 1)), (Err(EINVAL), Err(EINVAL)));
    unmap(*none, BLOCK);
    equal("not mapped", (collapse(*none, BLOCK), collapse(*none, 1)), (Err(ENOMEM), Err(ENOMEM)));
    equal("mapped", call(MMAP, [*none, BYTES, RW, PRIVATE | MAP_FIXED, u64::MAX, 0]), Ok(*none));
}

/// Areas that have room for a block, and that have not; holes.
fn areas() {
    // Pages that are unmapped, of how many blocks, of which the first and the last are in the range.
    for (hole, count, answer, blocks) in [
        ((0, 1), 2, Err(ENOMEM), 1),
        ((BLOCK, 1), 2, Err(EINVAL), 1),
        ((BLOCK, BLOCK), 2, Err(ENOMEM), 1),
        ((2 * BLOCK - 1, 1), 2, Err(ENOMEM), 1),
        ((BLOCK, BLOCK), 3, Err(ENOMEM), 2),
        ((1, 1), 2, Err(EINVAL), 0),
    ] {
        let at = holding(count, &[(0, 1), (7, 1), (BLOCK + 7, 2), (count * BLOCK - 8, 3)]);
        unmap(*at + hole.0 * PAGE, hole.1);
        equal(hole, collapse(*at, count * BLOCK), answer);
        let there = |block: &u64| probe::read(*at + (block * BLOCK + 100) * PAGE) == Ok(0);
        let full = |block: &u64| {
            let mut all = [0; ALL];
            mincore(*at + block * BYTES, &mut all).is_ok() && all.iter().all(|&byte| byte & 1 != 0)
        };
        equal((hole, "blocks"), (0..count).filter(full).count(), blocks);
        holds((hole, "zeros"), (0..count).filter(full).all(|block| there(&block)));
        equal("mapped again", call(MMAP, [*at, count * BYTES, RW, PRIVATE | MAP_FIXED, u64::MAX, 0]), Ok(*at));
    }
    // Two areas share 2 MiB.
    let at = holding(2, &SOME);
    store(*at + BYTES, 6);
    protect(*at, 3, PROT_READ);
    equal("no room in the first", (collapse(*at, 2 * BLOCK), collapse(*at + 3 * PAGE, 1)), (Err(EINVAL), Ok(0)));
    equal("the second", (collapse(*at + 3 * PAGE, 2 * BLOCK - 3), bytes(*at)), (Ok(0), [1, 2, 3, 4, 5]));
    protect(*at, 3, RW);
    equal("one", (collapse(*at, BLOCK), present(*at, 2), bytes(*at)), (Ok(0), 2 * ALL, [1, 2, 3, 4, 5]));
    let small = map(BYTES / 2, RW).expect("memory");
    store(small, 1);
    equal("a small area", (collapse(small, BLOCK / 2), collapse(small, 1)), (Err(EINVAL), Err(EINVAL)));
    unmap(small, BLOCK / 2);
}

/// Memory for which there are no blocks.
fn refused() {
    let at = holding(1, &SOME);
    equal("not wanted", advise(*at, BLOCK, MADV_NOHUGEPAGE), Ok(0));
    equal("refused", [BLOCK, 1].map(|pages| collapse(*at, pages)), [Err(EINVAL); 2]);
    wanted(*at, 1);
    let disable = |value, flags| call(PRCTL, [PR_SET_THP_DISABLE, value, flags, 0, 0]);
    equal("no blocks at all", (disable(1, 0), collapse(*at, BLOCK), disable(0, 0)), (Ok(0), Err(EINVAL), Ok(0)));
    equal("but those", disable(1, PR_THP_DISABLE_EXCEPT_ADVISED), Ok(0));
    equal("advised", (collapse(*at, BLOCK), disable(0, 0), bytes(*at)), (Ok(0), Ok(0), [1, 2, 3, 4, 5]));
    // Of a file, a private copy too.
    let file = file(BLOCK);
    let at = memory(1);
    equal("a file", call(MMAP, [*at, BYTES, RW, MAP_PRIVATE | MAP_FIXED, file, 0]), Ok(*at));
    equal("a part", advise(*at, BLOCK, MADV_NOHUGEPAGE), Ok(0));
    store(*at + PAGE, 1);
    equal("of a file, not wanted", (collapse(*at, BLOCK), probe::read(*at + PAGE)), (Err(EINVAL), Ok(1)));
    equal("closed", call(CLOSE, [file]), Ok(0));
}

/// Other memory that permits blocks.
fn several() {
    for flags in [MAP_PRIVATE | MAP_NORESERVE, MAP_DROPPABLE, MAP_PRIVATE | MAP_GROWSDOWN] {
        let at = memory(1);
        equal("mapped", call(MMAP, [*at, BYTES, RW, flags | MAP_ANONYMOUS | MAP_FIXED, u64::MAX, 0]), Ok(*at));
        equal("no blocks", advise(*at, BLOCK, MADV_NOHUGEPAGE), Ok(0));
        store(*at + 3 * PAGE, 3);
        wanted(*at, 1);
        equal((flags, "collapsed"), (collapse(*at, BLOCK), probe::read(*at + 3 * PAGE)), (Ok(0), Ok(3)));
        equal((flags, "a block"), present(*at, 1), ALL);
    }
}

/// Of several blocks, one that has no page does not end the call; another one does.
fn unfit() {
    let at = holding(3, &[(0, 1), (2 * BLOCK, 3)]);
    equal("one has no page", (collapse(*at, 3 * BLOCK), present(*at, 3)), (Err(EINVAL), 2 * ALL));
    let at = holding(3, &[(0, 1), (BLOCK, 2), (2 * BLOCK, 3)]);
    equal("a guard", advise(*at + BYTES + PAGE, 1, MADV_GUARD_INSTALL), Ok(0));
    equal("one has a guard", (collapse(*at, 3 * BLOCK), present(*at, 3)), (Err(EINVAL), ALL + 2));
    let at = holding(2, &[(0, 1), (BLOCK, 2)]);
    equal("not wanted", advise(*at + BYTES, BLOCK, MADV_NOHUGEPAGE), Ok(0));
    equal("another area", (collapse(*at, 2 * BLOCK), present(*at, 2)), (Err(EINVAL), ALL + 1));
}

/// The block has the protection of its area, and is dirty.
fn protected() {
    for protection in [PROT_READ, PROT_NONE] {
        let at = holding(1, &SOME);
        protect(*at, BLOCK, protection);
        equal((protection, "collapsed"), (collapse(*at, BLOCK), present(*at, 1)), (Ok(0), ALL));
        equal((protection, "no store"), put(*at + PAGE, 9), Err(not_allowed(*at + PAGE)));
        let seen = if protection == PROT_NONE { [255; 5] } else { [1, 2, 3, 4, 5] };
        equal((protection, "bytes"), bytes(*at), seen);
        protect(*at, BLOCK, RW);
        store(*at + PAGE, 9);
        equal((protection, "again"), bytes(*at), [1, 9, 3, 4, 5]);
    }
    // Code.
    let at = memory(1);
    for (byte, value) in (0..).zip(RET) {
        store(*at + 300 * PAGE + byte, value);
    }
    wanted(*at, 1);
    protect(*at, BLOCK, PROT_READ | PROT_EXEC);
    equal("collapsed", collapse(*at, BLOCK), Ok(0));
    // SAFETY: it returns at once.
    equal("code", unsafe { probe::call(*at + 300 * PAGE) }, Ok(()));
}

/// A block that calls have divided is one again.
fn divided() {
    let at = holding(1, &SOME);
    for round in 0..3 {
        equal((round, "collapsed"), (collapse(*at, BLOCK), present(*at, 1)), (Ok(0), ALL));
        equal((round, "a page is given up"), advise(*at + 3 * PAGE, 1, MADV_DONTNEED), Ok(0));
        equal((round, "the others stay"), (present(*at, 1), bytes(*at)), (ALL - 1, [1, 2, 3, 4, 5]));
        protect(*at + 200 * PAGE, 1, PROT_READ);
        protect(*at + 200 * PAGE, 1, RW);
    }
    equal("collapsed", (collapse(*at, BLOCK), present(*at, 1)), (Ok(0), ALL));
    unmap(*at + 511 * PAGE, 1);
    equal("a part goes", bytes(*at), [1, 2, 3, 4, 255]);
}

fn guarded() {
    let at = holding(1, &SOME);
    equal("a guard", advise(*at + PAGE, 1, MADV_GUARD_INSTALL), Ok(0));
    equal("refused", (collapse(*at, BLOCK), bytes(*at)), (Err(EINVAL), [1, 255, 3, 4, 5]));
    equal("removed", advise(*at + PAGE, 1, MADV_GUARD_REMOVE), Ok(0));
    equal("collapsed", (collapse(*at, BLOCK), present(*at, 1), bytes(*at)), (Ok(0), ALL, [1, 0, 3, 4, 5]));
}

fn locked() {
    let at = holding(1, &SOME);
    equal("locked on fault", call(MLOCK2, [*at, BYTES, MLOCK_ONFAULT.into()]), Ok(0));
    equal("collapsed", (collapse(*at, BLOCK), present(*at, 1), bytes(*at)), (Ok(0), ALL, [1, 2, 3, 4, 5]));
    equal("locked still", advise(*at, BLOCK, MADV_DONTNEED), Err(EINVAL));
    equal("unlocked", call(MUNLOCK, [*at, BYTES]), Ok(0));
    equal("sealed", call(MSEAL, [*at, BYTES, 0]), Ok(0));
    equal("a block already", collapse(*at, BLOCK), Ok(0));
    core::mem::forget(at);
}

/// Pages that a child has too are copied; what one stores then the other does not see.
fn forked_by_parent() {
    let at = holding(1, &SOME);
    let ends = File::pipe(0).expect("a pipe");
    let child = process::spawn(|| {
        let mut byte = 0_u8;
        equal("told", call(READ, [ends[0].0, (&raw mut byte).expose_provenance() as u64, 1]), Ok(1));
        equal("the child's", (present(*at, 1), bytes(*at)), (SOME.len(), [1, 2, 3, 4, 5]));
        store(*at + 510 * PAGE, 40);
        equal("collapsed", (collapse(*at, BLOCK), present(*at, 1)), (Ok(0), ALL));
        equal("its own", bytes(*at), [1, 2, 3, 40, 5]);
        wrong()
    });
    equal("shared", (collapse(*at, BLOCK), present(*at, 1)), (Ok(0), ALL));
    store(*at + PAGE, 20);
    let byte = 0_u8;
    equal("tells", call(WRITE, [ends[1].0, (&raw const byte).expose_provenance() as u64, 1]), Ok(1));
    equal("the child", process::wait(child), exited(0));
    equal("the parent's", bytes(*at), [1, 20, 3, 4, 5]);
}

fn forked_by_child() {
    let at = holding(1, &SOME);
    apart(|| {
        equal("shared", (collapse(*at, BLOCK), present(*at, 1)), (Ok(0), ALL));
        store(*at + PAGE, 20);
        apart(|| {
            store(*at + 200 * PAGE, 30);
            equal("a block already", collapse(*at, BLOCK), Ok(0));
            equal("a child's child", bytes(*at), [1, 20, 30, 4, 5]);
        });
        unmap(*at + PAGE, 1);
        equal("no room", (collapse(*at, BLOCK), bytes(*at)), (Err(EINVAL), [1, 255, 3, 4, 5]));
    });
    equal("the parent's", (present(*at, 1), bytes(*at)), (SOME.len(), [1, 2, 3, 4, 5]));
    equal("collapsed", (collapse(*at, BLOCK), bytes(*at)), (Ok(0), [1, 2, 3, 4, 5]));
    equal("zeros", advise(*at, BLOCK, MADV_WIPEONFORK), Ok(0));
    apart(|| equal("no page", (collapse(*at, BLOCK), present(*at, 1)), (Err(EINVAL), 0)));
}

fn moved() {
    let place = memory(1);
    let room = *place;
    let at = holding(1, &SOME);
    equal("collapsed", collapse(*at, BLOCK), Ok(0));
    let there = call(MREMAP, [*at, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, room]);
    equal("moved", (there, bytes(room), present(room, 1)), (Ok(room), [1, 2, 3, 4, 5], ALL));
    let kept = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
    equal("moved, and kept", call(MREMAP, [room, BYTES, BYTES, kept, *at]), Ok(*at));
    equal("nothing is left", (collapse(room, BLOCK), bytes(*at)), (Err(EINVAL), [1, 2, 3, 4, 5]));
}

/// A page that a userfaultfd is asked for is not brought.
fn watched() {
    let at = holding(2, &SOME);
    (0..BLOCK).for_each(|page| store(*at + BYTES + page * PAGE, 7));
    let pager = Pager::new(UFFD_USER_MODE_ONLY, 0).expect("a userfaultfd");
    equal("registered", pager.register(*at, 2 * BYTES, UFFDIO_REGISTER_MODE_MISSING).map(drop), Ok(()));
    equal("missing", (collapse(*at, BLOCK), collapse(*at, 2 * BLOCK)), (Err(EBUSY), Err(EBUSY)));
    equal("all there", collapse(*at + BYTES, BLOCK), Ok(0));
    equal("as before", (present(*at, 2), bytes(*at)[0]), (ALL + SOME.len(), 1));
    equal("closed", call(CLOSE, [pager.0.into()]), Ok(0));
    equal("not registered", (collapse(*at, BLOCK), bytes(*at)), (Ok(0), [1, 2, 3, 4, 5]));
}

/// The protection of a page is not lost, and no other page gets it.
fn write_protected() {
    let at = memory(2);
    (0..2 * BLOCK).for_each(|page| store(*at + page * PAGE, 7));
    wanted(*at, 2);
    let pager = Pager::new(UFFD_USER_MODE_ONLY, WRITE_PROTECTION).expect("a userfaultfd");
    equal("registered", pager.register(*at, 2 * BYTES, UFFDIO_REGISTER_MODE_WP).map(drop), Ok(()));
    equal("protected", pager.write_protect(*at + 9 * PAGE, PAGE, UFFDIO_WRITEPROTECT_MODE_WP).map(drop), Ok(()));
    equal("goes on above", (collapse(*at, BLOCK), collapse(*at, 2 * BLOCK)), (Err(EINVAL), Err(EINVAL)));
    equal("given up", advise(*at + 20 * PAGE, 1, MADV_DONTNEED), Ok(0));
    equal("missing above", (collapse(*at, BLOCK), collapse(*at, 2 * BLOCK)), (Err(EINVAL), Err(EINVAL)));
    equal("no more", pager.write_protect(*at + 9 * PAGE, PAGE, 0).map(drop), Ok(()));
    equal("missing", (collapse(*at, BLOCK), collapse(*at + BYTES, BLOCK)), (Err(EBUSY), Ok(0)));
    equal("closed", call(CLOSE, [pager.0.into()]), Ok(0));
    equal("not registered", (collapse(*at, 2 * BLOCK), present(*at, 2)), (Ok(0), 2 * ALL));
}

/// Also the pages of another process.
fn by_pidfd() {
    let at = holding(1, &SOME);
    let ends = File::pipe(0).expect("a pipe");
    let child = process::spawn(|| {
        let mut byte = 0_u8;
        equal("told", call(READ, [ends[0].0, (&raw mut byte).expose_provenance() as u64, 1]), Ok(1));
        equal("a block", (present(*at, 1), bytes(*at)), (ALL, [1, 2, 3, 4, 5]));
        wrong()
    });
    let file = call(PIDFD_OPEN, [child.into(), 0]).expect("a pidfd");
    let pieces = [[*at, BYTES]];
    let advised = call(PROCESS_MADVISE, [file, pieces.as_ptr().expose_provenance() as u64, 1, MADV_COLLAPSE, 0]);
    equal("of another process", (advised, present(*at, 1)), (Ok(BYTES), SOME.len()));
    equal("closed", call(CLOSE, [file]), Ok(0));
    let byte = 0_u8;
    equal("tells", call(WRITE, [ends[1].0, (&raw const byte).expose_provenance() as u64, 1]), Ok(1));
    equal("the child", process::wait(child), exited(0));
}

const THREADS: u64 = 4;

/// The pages of one block belong to the threads in turn.
fn races() {
    const ROUNDS: u64 = 8;
    let at = memory(1);
    wanted(*at, 1);
    for _ in 0..ROUNDS {
        equal("nothing", advise(*at, BLOCK, MADV_DONTNEED), Ok(0));
        all_at_once(THREADS as usize, |thread| work(*at, thread as u64));
        holds("a block or pages", (0..BLOCK).all(|page| probe::read(*at + page * PAGE).is_ok()));
    }
}

/// Stores to pages of its own, changes and collapses them; each holds what was stored last, also in a child.
fn work(at: u64, thread: u64) {
    const STEPS: u64 = 40;
    let own = |step: u64| at + (step * 37 % (BLOCK / THREADS) * THREADS + thread) * PAGE;
    for step in 0..STEPS {
        let (page, value) = (own(step), 1 + step as u8);
        equal("zero", probe::read(page), Ok(0));
        store(page, value);
        match (step + thread) % 6 {
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
                    _ = collapse(at, BLOCK);
                    u8::from((0..step).any(|step| probe::read(own(step)) != Ok(1 + step as u8)))
                });
                equal("a child", child.map(process::wait), Ok(0));
            }
            3 | 4 => {
                // Pages that others use just then, or an area of theirs, may keep it from being one.
                let answer = collapse(at, BLOCK);
                holds(("an answer", answer), matches!(answer, Ok(0) | Err(EINVAL | EAGAIN)));
                equal("what was stored", probe::read(page), Ok(value));
                store(page, value);
            }
            _ => {}
        }
        process::sched_yield();
    }
    for step in 0..STEPS {
        equal("at the end", probe::read(own(step)), Ok(1 + step as u8));
    }
}
