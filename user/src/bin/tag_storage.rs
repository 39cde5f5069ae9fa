//! Memory whose tags get their storage at the first access: `tag_storage PART...`. A program sees it as
//! other memory with tags; part `lazy` waits after each step for a test that looks at the kernel's account.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;
use granule_user::tags::{GRANULE, TAG_BITS, ldg, load, set_tags, stg, store, tag};

entry!(run);
own!(call, word, put_word, unmap, protect);

/// Where part `lazy` has its pages, and its words: the steps that it has done, and those that it may go on behind.
const LAZY: u64 = 0x7000_0000_0000;
const STEPS: u64 = 0x7100_0000_0000;
/// Its pages, and the one that it touches.
const PAGES: u64 = 1000;
const TOUCHED: u64 = 7;

/// Where part `race` has its pages. The first may be accessed at any time; of the next access is taken away; the others
/// are accessed seldom, so that they wait for long.
const RACE: u64 = 0x7000_2000_0000;
const RACED: usize = 48;
const OPEN: usize = 16;
const RESTING: usize = 32;
/// Threads that change pages, each its own, and those that only access what the others change.
const OWNERS: usize = 2;
const VISITORS: usize = 2;
/// Changes of each owner; it makes more until SIGTERM comes.
const CHANGES: u64 = 1000;

/// The parts, by name.
const PARTS: [(&str, fn()); 5] = [
    ("lazy", one_page_of_a_thousand_is_touched),
    ("calls", calls_reach_what_waits),
    ("children", children_inherit_what_waits),
    ("none", no_access_and_back),
    ("race", threads_race_on_pages_that_wait),
];

fn run(start: Start) -> u8 {
    let is_asked = |name: &str| start.arguments().skip(1).any(|argument| argument == name);
    probe::prepare();
    PARTS.iter().filter(|(name, _)| is_asked(name)).for_each(|(_, part)| part());
    status("tag_storage")
}

fn map_at(at: u64, pages: u64, protection: u64) -> u64 {
    call(MMAP, [at, pages * PAGE, protection, PRIVATE | MAP_FIXED, u64::MAX, 0]).expect("memory")
}

/// Whether all tags of a page are this one.
fn has_tags(page: u64, wanted: u64) -> bool {
    (0..PAGE / GRANULE).all(|granule| ldg((page + granule * GRANULE) | TAG_BITS) & TAG_BITS == wanted)
}

/// New pages with their numbers, from 1 on, that wait for tag storage.
fn waiting(pages: u64) -> Pages {
    let start = Pages::map(pages, RW, MAP_PRIVATE).expect("memory");
    (0..pages).for_each(|page| put_word(*start + page * PAGE, page + 1));
    protect(*start, pages, TAGGED);
    start
}

/// Notes a step, and waits until the test has looked.
fn done(step: u64) {
    // SAFETY: a page that stays, aligned.
    let [done, seen] = [STEPS, STEPS + 8].map(|word| unsafe { &*(word as *const AtomicU64) });
    done.store(step, Ordering::Release);
    until(|| seen.load(Ordering::Acquire) >= step);
}

fn one_page_of_a_thousand_is_touched() {
    map_at(STEPS, 1, RW);
    map_at(LAZY, PAGES, RW);
    (0..PAGES).for_each(|page| put_word(LAZY + page * PAGE, page));
    done(1);
    protect(LAZY, PAGES, TAGGED);
    done(2);
    let touched = LAZY + TOUCHED * PAGE;
    equal("its word", word(touched), TOUCHED);
    holds("its tags", has_tags(touched, 0));
    set_tags(touched | tag(3), PAGE);
    done(3);
    equal("and then", (word(touched), has_tags(touched, tag(3))), (TOUCHED, true));
}

fn calls_reach_what_waits() {
    let start = waiting(4);
    let [read, written, futex, discarded] = [0, 1, 2, 3].map(|page| *start + page * PAGE);
    let file = call(MEMFD_CREATE, [c"tags".as_ptr() as u64, 0]).expect("a file");
    equal("written from it", call(PWRITE64, [file, written, PAGE, 0]), Ok(PAGE));
    equal("read into it", call(PREAD64, [file, read, PAGE, 0]), Ok(PAGE));
    equal("what is there", [word(read), word(written)], [2, 2]);
    equal("a word of it", call(FUTEX, [futex, FUTEX_WAKE, 1]), Ok(0));
    equal("which is there", word(futex), 3);
    equal("given up", call(MADVISE, [discarded, PAGE, MADV_DONTNEED]), Ok(0));
    equal("zero", word(discarded), 0);
    for page in [read, written, futex, discarded] {
        holds("tags of zero", has_tags(page, 0));
        set_tags(page | tag(5), PAGE);
        holds("and then not", has_tags(page, tag(5)));
    }
}

fn children_inherit_what_waits() {
    let start = waiting(4);
    let [tagged, by_child, by_parent, copied] = [0, 1, 2, 3].map(|page| *start + page * PAGE);
    set_tags(tagged | tag(6), PAGE);
    set_tags(copied | tag(7), PAGE);
    apart(|| {
        equal("inherited", (word(tagged), has_tags(tagged, tag(6))), (1, true));
        // The first store copies the page with its tags.
        put_word(copied + 8, 9);
        equal("the copy", (word(copied), word(copied + 8), has_tags(copied, tag(7))), (4, 9, true));
        equal("what waited", (word(by_child), has_tags(by_child, 0)), (2, true));
        stg(by_child | tag(8));
        store(by_child + GRANULE);
        equal("what the parent touches", (word(by_parent), has_tags(by_parent, 0)), (3, true));
        set_tags(tagged, PAGE);
    });
    equal("its own", (word(tagged), has_tags(tagged, tag(6))), (1, true));
    equal("not the copy", (word(copied), word(copied + 8), has_tags(copied, tag(7))), (4, 0, true));
    equal("not the child's", (word(by_child), load(by_child + GRANULE), has_tags(by_child, 0)), (2, 0, true));
    stg(by_parent | tag(9));
    equal("and its own again", (word(by_parent), ldg(by_parent)), (3, by_parent | tag(9)));
}

fn no_access_and_back() {
    let start = waiting(2);
    let [tagged, untouched] = [*start, *start + PAGE];
    set_tags(tagged | tag(4), PAGE);
    for _ in 0..3 {
        protect(*start, 2, 0);
        holds("no access", probe::read(tagged).is_err() && probe::read(untouched).is_err());
        protect(*start, 2, PROT_READ);
        protect(*start, 2, RW);
        equal("what was there", (word(tagged), has_tags(tagged, tag(4))), (1, true));
    }
    equal("what waited all the while", (word(untouched), has_tags(untouched, 0)), (2, true));
}

/// The least generation that a page may have, unless it is zero: what was discarded before does not come back.
static LEAST: [AtomicU64; RACED] = [const { AtomicU64::new(0) }; RACED];
static LEFT: AtomicU64 = AtomicU64::new(OWNERS as u64);

fn raced(page: usize) -> u64 {
    RACE + page as u64 * PAGE
}

/// The tag of a page that has one, and what its first word holds.
fn tag_of(page: usize) -> u64 {
    tag(page as u64 % 15 + 1)
}

fn stamp(page: usize, generation: u64) -> u64 {
    (page as u64 + 1) << 48 | generation
}

fn is_stamp(page: usize, word: u64, least: u64) -> bool {
    word == 0 || (word >= stamp(page, least) && word < stamp(page + 1, 0))
}

fn threads_race_on_pages_that_wait() {
    mask(SIG_BLOCK, set_of(SIGTERM)).expect("to block SIGTERM");
    map_at(RACE, RACED as u64, TAGGED);
    thread::all_at_once(OWNERS + VISITORS, |thread| if thread < OWNERS { change(thread) } else { visit(thread) });
    unmap(RACE, RACED as u64);
}

/// Changes pages of its own, which no other thread changes, and knows what is there.
fn change(thread: usize) {
    let mut random = Random(thread as u64 + 1);
    let mut generations = [0; RACED];
    let mut tags = [0; RACED];
    for number in 0_u64.. {
        if number >= CHANGES && is_pending(SIGTERM).expect("pending signals") {
            break;
        }
        let page = random.below(RACED / OWNERS) * OWNERS + thread;
        let at = raced(page);
        if page >= RESTING && random.below(4) != 0 {
            continue;
        }
        match random.below(8) {
            0 | 1 => {
                map_at(at, 1, RW);
                generations[page] += 1;
                LEAST[page].store(generations[page], Ordering::Release);
                put_word(at, stamp(page, generations[page]));
                protect(at, 1, TAGGED);
                tags[page] = 0;
                if page >= RESTING {
                    continue;
                }
            }
            2 => {
                equal("given up", call(MADVISE, [at, PAGE, MADV_DONTNEED]), Ok(0));
                generations[page] += 1;
                LEAST[page].store(generations[page], Ordering::Release);
                put_word(at, stamp(page, generations[page]));
                tags[page] = 0;
            }
            3 if (OPEN..RESTING).contains(&page) => {
                protect(at, 1, 0);
                protect(at, 1, RW);
            }
            4 => {
                stg(at | tag_of(page));
                tags[page] = tag_of(page);
            }
            5 if number.is_multiple_of(16) => apart(|| copies_are_its_own(&mut random)),
            _ => {}
        }
        let wanted = if generations[page] == 0 { 0 } else { stamp(page, generations[page]) };
        equal(("page", page, "of its owner"), (word(at), ldg(at) & TAG_BITS), (wanted, tags[page]));
    }
    LEFT.fetch_sub(1, Ordering::Release);
}

/// In a child: what it inherits is a page's, and what it stores stays.
fn copies_are_its_own(random: &mut Random) {
    for _ in 0..8 {
        let page = random.below(OPEN);
        let at = raced(page);
        // Its owner may have been at it.
        protect(at, 1, TAGGED);
        holds(("inherited page", page), is_stamp(page, word(at), 0));
        holds("its tag", [0, tag_of(page)].contains(&(ldg(at) & TAG_BITS)));
        put_word(at, stamp(page, 1));
        stg(at | tag_of(page));
        equal(("copy of page", page), (word(at), ldg(at)), (stamp(page, 1), at | tag_of(page)));
    }
}

/// Accesses pages that others change.
fn visit(thread: usize) {
    let mut random = Random(thread as u64 + 1);
    let file = call(MEMFD_CREATE, [c"race".as_ptr() as u64, 0]).expect("a file");
    while LEFT.load(Ordering::Acquire) != 0 {
        let page = random.below(RACED);
        if page >= RESTING && random.below(64) != 0 {
            continue;
        }
        let (at, least) = (raced(page), LEAST[page].load(Ordering::Acquire));
        let own = at + thread as u64 * GRANULE;
        if !(OPEN..RESTING).contains(&page) {
            stg(own | tag_of(page));
            holds(("tag of page", page), [0, tag_of(page)].contains(&(ldg(own) & TAG_BITS)));
            holds(("page", page, "of a visitor"), is_stamp(page, word(at), least));
            continue;
        }
        let mut found = 0_u64;
        let moved = call(PWRITE64, [file, at, 8, 0]);
        if moved == Ok(8) {
            equal("read back", call(PREAD64, [file, &raw mut found as u64, 8, 0]), Ok(8));
            holds(("page", page, "of a call"), is_stamp(page, found, least));
            let moved = call(PREAD64, [file, own + 8, 8, 0]);
            holds(("read into it", moved), matches!(moved, Ok(8) | Err(EFAULT)));
        } else {
            equal("a call", moved, Err(EFAULT));
        }
    }
}
