//! The calls for memory: what each flag means, how a fault is reported, what a fork copies, and each refusal.
//!
//! After Linux's own tests (tools/testing/selftests/mm) and its manual pages: every answer here is the one that Linux
//! gives on arm64 with pages of 4 KiB.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, put, unmap, unmap_all, protect);

/// As much below it may be the kernel's. (Linux leaves it to programs.)
const KERNEL_KEEPS: u64 = 2 << 20;

fn run(start: Start) -> u8 {
    probe::prepare();
    // The argument names a feature of the CPUs, which Linux reports to no program.
    let has = start.arguments().nth(1).unwrap_or_default();
    what_may_be_executed_alone(has == "execute-only");
    parts! { ()
        fresh_memory_is_zeros pages_come_when_they_are_asked_for addresses_are_as_asked_for mappings_that_are_refused
        holes_are_made_anywhere ranges_end_inside_other_areas
    }
    nothing_lies_below_or_above(start);
    parts! { ()
        a_program_may_be_one_page every_protection_is_kept protections_that_are_refused
        protections_change_up_to_the_first_hole contents_are_given_up questions_that_are_refused
        the_heap_moves forks_copy_what_is_private areas_may_be_larger_than_tables_reach
        below_an_area_that_grows_a_guard_is_left copies_differ_after_a_store_to_either bad_pointers_are_refused
    }
    println!("mappings: ok");
    wrong()
}

/// `pages` pages of the test's own.
fn map(pages: u64, protection: u64, flags: u64) -> u64 {
    // SAFETY: not at a fixed address.
    call(MMAP, [0, pages * PAGE, protection, flags, u64::MAX, 0]).expect("memory")
}

fn fill(start: u64, pages: u64, first: u8) {
    (0..pages).for_each(|page| assert_eq!(put(start + page * PAGE, first + page as u8), Ok(())));
}

fn dontneed(start: u64, pages: u64) -> Result<u64, Errno> {
    call(MADVISE, [start, pages * PAGE, MADV_DONTNEED])
}

fn fresh_memory_is_zeros() {
    for flags in [PRIVATE, SHARED, PRIVATE | MAP_POPULATE, PRIVATE | MAP_NORESERVE | MAP_STACK] {
        let start = map(4, RW, flags);
        assert_eq!(probe::read(start + 17), Ok(0), "a page that is read first");
        assert_eq!(put(start + 17, 1), Ok(()), "and written then");
        assert_eq!(put(start + PAGE + 9, 2), Ok(()), "a page that is written first");
        for (offset, value) in [(17, 1), (16, 0), (PAGE + 9, 2), (PAGE + 8, 0), (2 * PAGE, 0)] {
            assert_eq!(probe::read(start + offset), Ok(value), "flags {flags:#x}, offset {offset:#x}");
        }
        unmap(start, 4);
        assert_eq!(probe::read(start + 17), Err(not_mapped(start + 17)), "after its end");
    }
}

fn pages_come_when_they_are_asked_for() {
    let start = Pages::map(4, RW, PRIVATE).expect("memory");
    assert_eq!(present(*start, 4), 0);
    assert_eq!(probe::read(*start), Ok(0));
    assert_eq!(put(*start + 2 * PAGE, 1), Ok(()));
    assert_eq!(present(*start, 4), 0b0101, "one that was read, one that was written");
    for (flags, wanted) in [(MAP_POPULATE, 0b1111), (MAP_POPULATE | MAP_NONBLOCK, 0)] {
        for protection in [RW, PROT_READ] {
            let start = Pages::map(4, protection, PRIVATE | flags).expect("memory");
            assert_eq!(present(*start, 4), wanted, "flags {flags:#x}, protection {protection}");
        }
    }
    let start = Pages::map(4, PROT_NONE, PRIVATE | MAP_POPULATE).expect("memory");
    assert_eq!(present(*start, 4), 0, "no access is permitted");
}

fn addresses_are_as_asked_for() {
    let start = map(8, RW, PRIVATE);
    assert!(start.is_multiple_of(PAGE) && start < TOP);
    fill(start, 8, 1);
    let at = |address, pages: u64, flags| call(MMAP, [address, pages * PAGE, RW, PRIVATE | flags, u64::MAX, 0]);
    assert_eq!(at(start + 2 * PAGE, 2, MAP_FIXED), Ok(start + 2 * PAGE), "in place of what was there");
    assert_eq!(bytes(start + PAGE), [2, 0, 0, 5]);
    assert_eq!(at(start + 7 * PAGE, 2, MAP_FIXED_NOREPLACE), Err(EEXIST), "a part is in use");
    assert_eq!(probe::read(start + 7 * PAGE), Ok(8), "and stays");
    unmap(start + 4 * PAGE, 2);
    assert_eq!(at(start + 4 * PAGE, 2, MAP_FIXED_NOREPLACE), Ok(start + 4 * PAGE), "a hole just large enough");
    assert_eq!(at(start + 4 * PAGE, 1, MAP_FIXED | MAP_FIXED_NOREPLACE), Err(EEXIST), "the stricter flag counts");
    unmap(start, 8);
    assert_eq!(at(start, 8, 0), Ok(start), "a wish that can be met");
    assert_eq!(at(start + 5, 0, 0), Err(EINVAL));
    let other = at(start + PAGE, 2, 0).expect("memory");
    assert!(other + 2 * PAGE <= start || start + 8 * PAGE <= other, "a wish that cannot");
    unmap_all([(other, 2), (start, 8)]);
    assert_eq!(at(start + 5, 8, 0), Ok(start), "a wish is rounded down");
    unmap(start, 8);
    let top = TOP - KERNEL_KEEPS;
    let end = at(top - PAGE, 1, MAP_FIXED);
    assert_eq!(end, Ok(top - PAGE), "the last page that is certain to be there");
    assert_eq!(put(top - 1, 1), Ok(()));
    unmap(top - PAGE, 1);
}

fn mappings_that_are_refused() {
    // Of all else that mmap refuses `refusals` knows the order.
    let across = [TOP - PAGE, 2 * PAGE, RW, PRIVATE | MAP_FIXED, u64::MAX, 0];
    assert_eq!(call(MMAP, across), Err(ENOMEM), "across the end");
    // As on Linux, mmap ignores unknown bits of a protection.
    let start = call(MMAP, [0, PAGE, RW | 0x100, PRIVATE, u64::MAX, 0]).expect("memory");
    assert_eq!(put(start, 1), Ok(()));
    unmap(start, 1);

    let start = map(1, RW, PRIVATE);
    let refused = [
        ("no bytes", start, 0),
        ("no page's address", start + 1, PAGE),
        ("beyond the end", TOP, PAGE),
        ("across the end", TOP - PAGE, 2 * PAGE),
        ("a size that wraps", start, u64::MAX),
        ("the kernel's half", u64::MAX << 48, PAGE),
    ];
    for (what, address, bytes) in refused {
        assert_eq!(call(MUNMAP, [address, bytes]), Err(EINVAL), "{what}");
    }
    assert_eq!(probe::read(start), Ok(0), "nothing was unmapped");
    unmap_all([(start, 1), (start, 1)]);
}

fn holes_are_made_anywhere() {
    let start = Pages::map(9, RW, PRIVATE).expect("memory");
    fill(*start, 9, 1);
    let holes = [(0, 1), (8, 1), (3, 2), (2, 1)];
    for (first, pages) in holes {
        unmap(*start + first * PAGE, pages);
    }
    for page in 0..9 {
        let address = *start + page * PAGE;
        let gone = holes.iter().any(|&(first, pages)| (first..first + pages).contains(&page));
        let wanted = if gone { Err(not_mapped(address)) } else { Ok(page as u8 + 1) };
        assert_eq!(probe::read(address), wanted, "page {page}");
    }
    // A byte counts as its page.
    let start = Pages::map(2, RW, PRIVATE).expect("memory");
    assert_eq!(call(MUNMAP, [*start, 1]), Ok(0));
    assert_eq!(
        (probe::read(*start + PAGE - 1), probe::read(*start + PAGE)),
        (Err(not_mapped(*start + PAGE - 1)), Ok(0))
    );
}

fn ranges_end_inside_other_areas() {
    const PAGES: u64 = 6;
    for flags in [PRIVATE, SHARED] {
        // Two areas of three pages; a range begins in the first and ends in the second.
        for (first, last) in (0..3).flat_map(|first| (3..PAGES).map(move |last| (first, last))) {
            let two_areas = || {
                let start = map(PAGES, RW, flags);
                fill(start, PAGES, 1);
                protect(start, 3, PROT_READ);
                start
            };
            let start = two_areas();
            unmap(start + first * PAGE, last + 1 - first);
            for page in 0..PAGES {
                let address = start + page * PAGE;
                let is_gone = (first..=last).contains(&page);
                let wanted = if is_gone { Err(not_mapped(address)) } else { Ok(page as u8 + 1) };
                assert_eq!(probe::read(address), wanted, "flags {flags:#x}, {first} to {last}, page {page}");
            }
            unmap(start, PAGES);
            let start = two_areas();
            protect(start + first * PAGE, last + 1 - first, PROT_NONE);
            for page in 0..PAGES {
                let address = start + page * PAGE;
                let is_changed = (first..=last).contains(&page);
                let wanted = if is_changed { Err(not_allowed(address)) } else { Ok(page as u8 + 1) };
                assert_eq!(probe::read(address), wanted, "flags {flags:#x}, {first} to {last}, page {page}");
                let may_be_written = page >= 3 && !is_changed;
                let wanted = if may_be_written { Ok(()) } else { Err(not_allowed(address)) };
                assert_eq!(put(address, 1), wanted, "flags {flags:#x}, {first} to {last}, page {page}");
            }
            unmap(start, PAGES);
        }
    }
}

/// Where the last area of a program ends that has unmapped all others above; the kernel may choose what is there.
const LOW: u64 = 8 << 30;
const LOW_PAGES: u64 = 16;

/// Runs with its stack as the last area.
extern "C" fn with_nothing_above() -> ! {
    assert_eq!(call(MUNMAP, [LOW, TOP - KERNEL_KEEPS - LOW]), Ok(0));
    for (number, last) in [(MPROTECT, PROT_READ), (MADVISE, MADV_DONTNEED), (MINCORE, 0)] {
        assert_eq!(call(number, [LOW, PAGE, last]), Err(ENOMEM), "call {number}");
    }
    assert_eq!(probe::read(LOW), Err(not_mapped(LOW)));
    let heap = call(BRK, [0]).expect("the heap's end");
    assert_eq!(call(BRK, [heap + PAGE]), Ok(heap + PAGE));
    // It fits nowhere below.
    let start = map(2 * LOW / PAGE, PROT_NONE, PRIVATE | MAP_NORESERVE);
    assert!(start >= LOW, "{start:#x}");
    unmap(start, 2 * LOW / PAGE);
    assert_eq!(call(MPROTECT, [LOW - PAGE, 2 * PAGE, PROT_READ]), Err(ENOMEM), "up to the end of the last area");
    assert_eq!(put(LOW - PAGE, 1), Err(not_allowed(LOW - PAGE)));
    // The last area may end earlier.
    unmap(LOW - PAGE, 1);
    assert_eq!(probe::read(LOW - PAGE), Err(not_mapped(LOW - PAGE)));
    process::exit_group(wrong())
}

fn nothing_lies_below_or_above(start: Start) {
    let headers = start.auxiliary(AT_PHDR).expect("where the program's headers are") & !(PAGE - 1);
    assert_eq!(call(MPROTECT, [headers - PAGE, 2 * PAGE, PROT_NONE]), Err(ENOMEM), "it begins in nothing");

    let stack = LOW - LOW_PAGES * PAGE;
    // SAFETY: nothing is there.
    assert_eq!(call(MMAP, [stack, LOW_PAGES * PAGE, RW, PRIVATE | MAP_FIXED_NOREPLACE, u64::MAX, 0]), Ok(stack));
    // SAFETY: the stack is the copy's own, which has no other; its last page is not used.
    let child = unsafe { process::clone_onto(u64::from(SIGCHLD), LOW - PAGE, with_nothing_above) };
    assert_eq!(process::wait(child.expect("a fork")), exited(0));
    unmap(stack, LOW_PAGES);
}

// Unmaps all but the page at x0, which it is in, up to x1; forks; waits for the copy, which unmaps that page as well.
// Exits with 42.
#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".text",
    ".global mappings_one_page, mappings_one_page_end",
    "mappings_one_page:",
    "mov x19, x0", "mov x20, x1",
    // All below it, and all above.
    "mov x0, {first}", "sub x1, x19, x0", "mov x8, {munmap}", "svc #0", "cbnz x0, 2f",
    "add x0, x19, {page}", "sub x1, x20, x0", "svc #0", "cbnz x0, 2f",
    "mov x0, {sigchld}", "mov x1, #0", "mov x2, #0", "mov x3, #0", "mov x4, #0", "mov x8, {clone}", "svc #0",
    "tbnz x0, #63, 2f", "cbz x0, 4f",
    "mov x1, #0", "mov x8, {wait4}", "svc #0", "tbnz x0, #63, 2f", "mov x0, #42", "b 3f",
    "2:", "mov x0, #1",
    "3:", "mov x8, {exit_group}", "svc #0",
    // The copy.
    "4:", "mov x0, x19", "mov x1, {page}", "mov x8, {munmap}", "svc #0",
    "mappings_one_page_end:",
    first = const 0x1_0000, page = const PAGE, sigchld = const SIGCHLD,
    munmap = const MUNMAP, clone = const CLONE, wait4 = const WAIT4, exit_group = const EXIT_GROUP,
);

/// The code of a program of one page.
#[cfg(target_arch = "aarch64")]
fn one_page() -> &'static [u8] {
    unsafe extern "C" {
        static mappings_one_page: u8;
        static mappings_one_page_end: u8;
    }
    let (start, end) = (&raw const mappings_one_page, &raw const mappings_one_page_end);
    // SAFETY: the code between the two.
    unsafe { core::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

fn a_program_may_be_one_page() {
    #[cfg(target_arch = "aarch64")]
    for flags in [PRIVATE, SHARED] {
        let page = Pages::map(1, RW, flags).expect("memory");
        one_page().iter().zip(*page..).for_each(|(&byte, address)| assert_eq!(put(address, byte), Ok(())));
        protect(*page, 1, PROT_READ | PROT_EXEC);
        let end = process::run(|| -> u8 {
            // SAFETY: the code uses no other memory, and does not come back.
            unsafe {
                core::arch::asm!("br {0}", in(reg) *page, in("x0") *page, in("x1") TOP - KERNEL_KEEPS, options(noreturn))
            }
        });
        assert_eq!(end, exited(42), "flags {flags:#x}");
    }
}

fn every_protection_is_kept() {
    for flags in [PRIVATE, SHARED] {
        let start = Pages::map(1, RW, flags).expect("memory");
        RET.iter().zip(*start..).for_each(|(&byte, address)| assert_eq!(put(address, byte), Ok(())));
        for protection in
            [PROT_NONE, PROT_READ, RW, PROT_WRITE, PROT_READ | PROT_EXEC, RW, PROT_NONE, PROT_EXEC, PROT_READ]
        {
            protect(*start, 1, protection);
            // A page that may be written may be read.
            let read = if protection & (RW) != 0 { Ok(RET[0]) } else { Err(not_allowed(*start)) };
            // A page that may only be executed is unreadable where the CPU has such pages: both answers are Linux's.
            if protection != PROT_EXEC {
                assert_eq!(probe::read(*start), read, "reading, protection {protection}");
            }
            let written = put(*start, RET[0]);
            let writable = protection & PROT_WRITE != 0;
            assert_eq!(written, if writable { Ok(()) } else { Err(not_allowed(*start)) }, "writing, {protection}");
            // SAFETY: a function that returns at once, where it may be executed.
            let called = unsafe { probe::call(*start) };
            let executable = protection & PROT_EXEC != 0;
            assert_eq!(called, if executable { Ok(()) } else { Err(not_allowed(*start)) }, "calling, {protection}");
        }
    }
    let start = Pages::map(1, PROT_WRITE, PRIVATE).expect("memory");
    assert_eq!(probe::read(*start), Ok(0), "what may be written may be read, also before it is written");
    assert_eq!(put(*start, 1), Ok(()));
    // In the middle of a mapping, on pages that are there and on pages that are not.
    let start = Pages::map(8, RW, PRIVATE).expect("memory");
    fill(*start, 4, 1);
    protect(*start + 2 * PAGE, 4, PROT_READ);
    for page in 0..8 {
        let address = *start + page * PAGE;
        let refused = (2..6).contains(&page);
        assert_eq!(probe::read(address), Ok(if page < 4 { page as u8 + 1 } else { 0 }));
        assert_eq!(put(address, 9), if refused { Err(not_allowed(address)) } else { Ok(()) }, "page {page}");
    }
    protect(*start, 8, RW);
    fill(*start, 8, 20);
}

fn what_may_be_executed_alone(is_unreadable: bool) {
    let start = Pages::map(2, RW, PRIVATE).expect("memory");
    assert_eq!(put(*start, 1), Ok(()));
    protect(*start, 2, PROT_EXEC);
    for (page, value) in [(*start, 1), (*start + PAGE, 0)] {
        let read = if is_unreadable { Err(not_allowed(page)) } else { Ok(value) };
        assert_eq!(probe::read(page), read);
        assert_eq!(put(page, 9), Err(not_allowed(page)));
        // A word that the kernel reads.
        let waited = call(FUTEX, [page, FUTEX_PRIVATE_FLAG, 9, 0]);
        assert_eq!(waited, Err(if is_unreadable { EFAULT } else { EAGAIN }));
    }
    protect(*start, 2, PROT_READ);
    assert_eq!(probe::read(*start), Ok(1));
}

fn protections_that_are_refused() {
    let start = Pages::map(3, RW, PRIVATE).expect("memory");
    unmap(*start + 2 * PAGE, 1);
    let answers = [
        ("no page's address", *start + 1, PAGE, PROT_READ, Err(EINVAL)),
        ("no bytes", *start, 0, PROT_NONE, Ok(0)),
        ("no bytes, and no such protection", *start, 0, 0x100, Ok(0)),
        ("no such protection", *start, PAGE, RW | 0x100, Err(EINVAL)),
        ("a size that wraps, and no such protection", *start, u64::MAX, 0x100, Err(ENOMEM)),
        ("nothing there", FAR, PAGE, PROT_READ, Err(ENOMEM)),
        ("a hole at the beginning", *start + 2 * PAGE, 2 * PAGE, PROT_READ, Err(ENOMEM)),
        ("below all mappings", 0x1_0000, 0x40_0000, PROT_READ, Err(ENOMEM)),
        ("beyond the end", TOP, PAGE, PROT_READ, Err(ENOMEM)),
        ("the kernel's half", u64::MAX << 48, PAGE, PROT_READ, Err(ENOMEM)),
    ];
    for (what, address, bytes, protection, wanted) in answers {
        assert_eq!(call(MPROTECT, [address, bytes, protection]), wanted, "{what}");
    }
    assert_eq!(put(*start, 1), Ok(()), "nothing was changed");
}

fn protections_change_up_to_the_first_hole() {
    for flags in [PRIVATE, SHARED] {
        let start = Pages::map(8, RW, flags).expect("memory");
        fill(*start, 8, 1);
        protect(*start + 2 * PAGE, 1, PROT_READ | PROT_EXEC);
        unmap(*start + 4 * PAGE, 1);
        assert_eq!(call(MPROTECT, [*start + PAGE, 6 * PAGE, PROT_READ]), Err(ENOMEM), "a hole in the middle");
        for page in [0, 1, 2, 3, 5, 6, 7] {
            let address = *start + page * PAGE;
            assert_eq!(probe::read(address), Ok(page as u8 + 1), "page {page}");
            let wanted = if (1..4).contains(&page) { Err(not_allowed(address)) } else { Ok(()) };
            assert_eq!(put(address, page as u8 + 1), wanted, "page {page}");
        }
        assert_eq!(call(MPROTECT, [*start, 5 * PAGE, RW]), Err(ENOMEM), "a hole at the end");
        fill(*start, 4, 1);
    }
    let last = TOP - KERNEL_KEEPS - PAGE;
    // SAFETY: nothing is there.
    assert_eq!(call(MMAP, [last, PAGE, RW, PRIVATE | MAP_FIXED_NOREPLACE, u64::MAX, 0]), Ok(last));
    assert_eq!(call(MPROTECT, [last, 2 * PAGE, PROT_READ]), Err(ENOMEM), "across the end of all addresses");
    assert_eq!(put(last, 1), Err(not_allowed(last)), "the end is a hole as well");
    unmap(last, 1);
}

fn contents_are_given_up() {
    let start = Pages::map(4, RW, PRIVATE).expect("memory");
    fill(*start, 4, 1);
    assert_eq!(dontneed(*start + PAGE, 2), Ok(0));
    assert_eq!(present(*start, 4), 0b1001);
    for (page, value) in [(0, 1), (1, 0), (2, 0), (3, 4)] {
        assert_eq!(probe::read(*start + page * PAGE), Ok(value), "page {page}");
    }
    assert_eq!(put(*start + PAGE, 7), Ok(()), "it may be written again");
    protect(*start, 4, PROT_NONE);
    assert_eq!(dontneed(*start, 4), Ok(0), "also where it may not be accessed");
    protect(*start, 4, RW);
    assert_eq!(probe::read(*start + PAGE), Ok(0));
    fill(*start, 4, 1);
    unmap(*start + PAGE, 1);
    assert_eq!(dontneed(*start, 4), Err(ENOMEM), "a hole is an error");
    assert_eq!((probe::read(*start), probe::read(*start + 3 * PAGE)), (Ok(0), Ok(0)), "and the rest given up");

    let start = Pages::map(2, RW, SHARED).expect("memory");
    fill(*start, 2, 5);
    assert_eq!(dontneed(*start, 2), Ok(0));
    assert_eq!(probe::read(*start + PAGE), Ok(6), "what is shared stays: another may have it");
}

fn questions_that_are_refused() {
    let vector = Pages::map(1, RW, PRIVATE).expect("memory");
    let start = Pages::map(2, RW, PRIVATE).expect("memory");
    unmap(*start + PAGE, 1);
    let kernel = u64::MAX << 48;
    let answers = [
        ("a byte counts as its page", *start, 1, *vector, Ok(0)),
        ("no bytes", *start, 0, *vector, Ok(0)),
        ("no page's address", *start + 1, PAGE, *vector, Err(EINVAL)),
        ("a hole", *start, 2 * PAGE, *vector, Err(ENOMEM)),
        ("the kernel's half", kernel, PAGE, *vector, Err(ENOMEM)),
        ("a size that wraps", *start, u64::MAX, *vector, Err(ENOMEM)),
        ("no place for the answer", *start, PAGE, FAR, Err(EFAULT)),
        ("a place of the kernel's", *start, PAGE, kernel, Err(EFAULT)),
        ("a place of the kernel's, and a hole", *start + PAGE, PAGE, kernel, Err(EFAULT)),
    ];
    for (what, address, bytes, place, wanted) in answers {
        assert_eq!(call(MINCORE, [address, bytes, place]), wanted, "{what}");
    }
}

fn the_heap_moves() {
    let start = call(BRK, [0]).expect("the heap's end");
    let first = start.next_multiple_of(PAGE);
    assert_eq!(call(BRK, [first + 3 * PAGE + 5]), Ok(first + 3 * PAGE + 5));
    fill(first, 4, 1);
    assert_eq!(probe::read(first + 4 * PAGE), Err(not_mapped(first + 4 * PAGE)));
    assert_eq!(call(BRK, [first + PAGE]), Ok(first + PAGE));
    assert_eq!((probe::read(first), probe::read(first + PAGE)), (Ok(1), Err(not_mapped(first + PAGE))));
    assert_eq!(call(BRK, [first + 2 * PAGE]), Ok(first + 2 * PAGE));
    assert_eq!(probe::read(first + PAGE), Ok(0), "what comes again is zeros");
    for refused in [8, start - 1, TOP, KERNEL, u64::MAX] {
        assert_eq!(call(BRK, [refused]), Ok(first + 2 * PAGE), "{refused:#x}");
    }
    assert_eq!(call(BRK, [start]), Ok(start));
}

fn forks_copy_what_is_private() {
    let own = Pages::map(4, RW, PRIVATE).expect("memory");
    let both = Pages::map(2, RW, SHARED).expect("memory");
    fill(*own, 3, 1);
    fill(*both, 1, 10);
    protect(*own + 2 * PAGE, 1, PROT_READ);
    apart(|| {
        assert_eq!(bytes(*own), [1, 2, 3, 0]);
        assert_eq!(put(*own + 2 * PAGE, 1), Err(not_allowed(*own + 2 * PAGE)), "protections are copied too");
        fill(*own, 2, 101);
        // A page that was not there before is shared all the same.
        fill(*both, 2, 110);
        protect(*own + 2 * PAGE, 1, RW);
        fill(*own + 2 * PAGE, 2, 103);
        unmap(*own + PAGE, 1);
    });
    assert_eq!(bytes(*own), [1, 2, 3, 0], "the parent's");
    assert_eq!(bytes(*both), [110, 111], "the child's stores");
    // The pages are the parent's alone now, and as protected as they were.
    fill(*own, 2, 50);
    assert_eq!(put(*own + 2 * PAGE, 1), Err(not_allowed(*own + 2 * PAGE)));
}

fn areas_may_be_larger_than_tables_reach() {
    // Pages at both ends of an area, of which the tables between are missing.
    const BYTES: u64 = 3 << 39;
    // SAFETY: nothing is there.
    let start = call(MMAP, [FAR, BYTES, PROT_NONE, PRIVATE | MAP_NORESERVE | MAP_FIXED_NOREPLACE, u64::MAX, 0]);
    assert_eq!(start, Ok(FAR));
    let ends = [FAR, FAR + (1 << 30), FAR + BYTES - PAGE];
    for (address, value) in ends.into_iter().zip(1..) {
        let part = call(MMAP, [address, PAGE, RW, PRIVATE | MAP_FIXED | MAP_POPULATE, u64::MAX, 0]);
        assert_eq!(part, Ok(address));
        assert_eq!(present(address, 1), 1);
        assert_eq!(put(address, value), Ok(()));
        protect(address, 1, PROT_NONE);
    }
    apart(|| {
        for (address, value) in ends.into_iter().zip(1..) {
            protect(address, 1, PROT_READ);
            assert_eq!(probe::read(address), Ok(value), "{address:#x}");
        }
    });
    unmap(FAR, BYTES / PAGE);
}

/// 256 pages below an area that grows stay free, wherever it begins by now, unless the address is demanded.
fn below_an_area_that_grows_a_guard_is_left() {
    let room = Pages::map(2048, PROT_NONE, PRIVATE).expect("memory");
    let start = *room + 1500 * PAGE;
    let [flags, fixed] = [MAP_GROWSDOWN, 0].map(|grows| PRIVATE | MAP_FIXED | grows);
    assert_eq!(call(MMAP, [start, 16 * PAGE, RW, flags, u64::MAX, 0]), Ok(start));
    unmap(*room + PAGE, 1499);
    let is_left = |start: u64| {
        for (pages, is_as_asked) in [(1, false), (255, false), (256, false), (257, true)] {
            let asked = start - pages * PAGE;
            let given = call(MMAP, [asked, PAGE, RW, PRIVATE, u64::MAX, 0]).expect("memory");
            assert_eq!(given == asked, is_as_asked, "{pages} pages below");
            unmap(given, 1);
        }
    };
    is_left(start);
    for pages in [1, 100, 300] {
        put(start - pages * PAGE, 1).expect("room to grow");
        is_left(start - pages * PAGE);
    }
    unmap(start - 300 * PAGE, 301);
    is_left(start + PAGE);
    protect(start + 2 * PAGE, 2, PROT_READ);
    unmap(start + PAGE, 2);
    is_left(start + 3 * PAGE);
    assert_eq!(call(MMAP, [start + 2 * PAGE, PAGE, RW, fixed, u64::MAX, 0]), Ok(start + 2 * PAGE));
}

fn copies_differ_after_a_store_to_either() {
    const PAGES: u64 = 6;
    let own = Pages::map(PAGES, RW, PRIVATE).expect("memory");
    // Word 0: how far the two are. Both look, then the parent writes, then the child.
    let steps = Pages::map(1, RW, SHARED).expect("memory");
    let wait = |step| {
        until(|| probe::read(*steps) == Ok(step));
    };
    let reads = |first: u8| (0..PAGES).all(|page| probe::read(*own + page * PAGE) == Ok(first + page as u8));
    fill(*own, PAGES, 1);
    let child = process::spawn(|| {
        assert!(reads(1), "as it was at the fork");
        assert_eq!(put(*steps, 1), Ok(()));
        wait(2);
        assert!(reads(1), "the parent's stores are the parent's");
        fill(*own, PAGES, 30);
        dontneed(*own, 1).expect("a page to give up");
        assert_eq!(put(*steps, 3), Ok(()));
        wait(4);
        fill(*own, 1, 30);
        u8::from(!reads(30))
    });
    wait(1);
    fill(*own, PAGES, 60);
    assert_eq!(put(*steps, 2), Ok(()));
    wait(3);
    assert!(reads(60), "the child's stores are the child's");
    unmap(*own, 1);
    assert_eq!(put(*steps, 4), Ok(()));
    assert_eq!(process::wait(child), exited(0));
}

fn bad_pointers_are_refused() {
    let closed = Pages::map(1, PROT_NONE, PRIVATE).expect("memory");
    let constant = Pages::map(1, PROT_READ, PRIVATE).expect("memory");
    let unreadable = [8, FAR, *closed, TOP - 8, TOP, 1 << 63, u64::MAX << 48, KERNEL, u64::MAX - 7];
    for bad in unreadable {
        for (what, answer) in [
            ("write from", call(WRITE, [1, bad, 16])),
            ("writev of", call(WRITEV, [1, bad, 1])),
            ("nanosleep for", call(NANOSLEEP, [bad, 0])),
            ("rt_sigaction of", call(RT_SIGACTION, [10, bad, 0, 8])),
            ("rt_sigprocmask of", call(RT_SIGPROCMASK, [0, bad, 0, 8])),
            ("sigaltstack of", call(SIGALTSTACK, [bad, 0])),
        ] {
            assert_eq!(answer, Err(EFAULT), "{what} {bad:#x}");
        }
    }
    for bad in unreadable.into_iter().chain([*constant]) {
        for (what, answer) in [
            ("clock_gettime", call(CLOCK_GETTIME, [1, bad])),
            ("uname", call(UNAME, [bad])),
            ("getrandom", call(GETRANDOM, [bad, 16, 0])),
            ("getcpu", call(GETCPU, [bad, 0])),
            ("prctl", call(PRCTL, [PR_GET_NAME, bad])),
            ("rt_sigprocmask", call(RT_SIGPROCMASK, [0, 0, bad, 8])),
            ("rt_sigpending", call(RT_SIGPENDING, [bad, 8])),
            ("sigaltstack", call(SIGALTSTACK, [0, bad])),
            ("mincore", call(MINCORE, [*constant, PAGE, bad])),
        ] {
            assert_eq!(answer, Err(EFAULT), "{what} to {bad:#x}");
        }
    }
    let short = Timespec::from_nanoseconds(1);
    assert_eq!(call(NANOSLEEP, [&raw const short as u64, FAR]), Ok(0), "the rest is stored only if there is one");
    assert_eq!(call(FUTEX, [FAR, 0, 0, 0]), Err(EFAULT), "a futex nowhere");
    assert_eq!(call(FUTEX, [*closed + 2, 0, 0, 0]), Err(EINVAL), "a futex across words");
    // A structure that ends where nothing is.
    let (start, size) = (Pages::map(2, RW, PRIVATE).expect("memory"), 390);
    unmap(*start + PAGE, 1);
    assert_eq!(call(UNAME, [*start + PAGE - size + 1]), Err(EFAULT));
    assert_eq!(call(UNAME, [*start + PAGE - size]), Ok(0));
    // The kernel's own accesses are faults as the program's are: a page that is not there, one that is shared.
    let fresh = Pages::map(1, RW, PRIVATE).expect("memory");
    assert_eq!(call(CLOCK_GETTIME, [1, *fresh]), Ok(0));
    let child = process::spawn(|| {
        assert_eq!(call(GETRANDOM, [*start, PAGE, 0]), Ok(PAGE));
    });
    let before = probe::read(*start + PAGE - 300);
    assert_eq!(process::wait(child), exited(0));
    assert_eq!(probe::read(*start + PAGE - 300), before, "the kernel's store was the child's");
    assert_eq!(memory::map(0, RW), Err(EINVAL));
}
