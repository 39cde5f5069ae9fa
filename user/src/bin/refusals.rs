//! mmap with every combination of arguments that are right or wrong each in its own way, against the order in which
//! Linux looks at them; and where mappings end: the heap's end below a mapping, the most mappings, a hole before
//! mincore.
//!
//! The order is that of `ksys_mmap_pgoff`, `do_mmap` and `__get_unmapped_area` of Linux 7.2, written down once more in
//! [`answer`]: the program passes on Linux, too.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, file, put, unmap, unmap_all);

/// Where the program maps an obstacle.
const TAKEN: u64 = 0x6000_0000_0000;
const TAKEN_PAGES: u64 = 16;

fn run(_: Start) -> u8 {
    parts! { ()
        mmap_refuses_in_linuxs_order large_pages_are_refused the_heap_ends_a_page_below_the_next_mapping
        mincore_answers_up_to_a_hole mappings_are_counted mseal_refuses_in_linuxs_order sealed_memory_stays
        a_sealed_heap_ends_where_it_is
    }
    println!("refusals: ok");
    wrong()
}

fn map_at(address: u64, pages: u64, protection: u64) -> Result<u64, Errno> {
    call(MMAP, [address, pages * PAGE, protection, PRIVATE | MAP_FIXED, u64::MAX, 0])
}

/// The arguments of a call to mmap.
#[derive(Clone, Copy, Debug)]
struct Arguments {
    address: u64,
    bytes: u64,
    flags: u64,
    descriptor: u64,
    offset: u64,
}

/// Linux's answer: an error, or `Ok` where something is mapped. Descriptors 0 to 2 are a terminal.
fn answer(of: Arguments) -> Result<(), Errno> {
    let Arguments { address, bytes, flags, descriptor, offset } = of;
    if offset % PAGE != 0 {
        return Err(EINVAL);
    }
    let is_file = flags & MAP_ANONYMOUS == 0;
    if is_file && descriptor as u32 > 2 {
        return Err(EBADF);
    }
    if bytes == 0 {
        return Err(EINVAL);
    }
    let bytes = bytes.checked_next_multiple_of(PAGE).ok_or(ENOMEM)?;
    // As much as lies below the least address that may be mapped, which is a setting, is never free.
    if bytes > TOP - PAGE {
        return Err(ENOMEM);
    }
    if flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
        if address > TOP - bytes {
            return Err(ENOMEM);
        }
        if address % PAGE != 0 {
            return Err(EINVAL);
        }
    }
    let overlaps = address < TAKEN + TAKEN_PAGES * PAGE && TAKEN < address.saturating_add(bytes);
    if flags & MAP_FIXED_NOREPLACE != 0 && overlaps {
        return Err(EEXIST);
    }
    if is_file { Err(answer_for_the_terminal(flags, bytes, offset)) } else { answer_for_memory(flags) }
}

fn answer_for_the_terminal(flags: u64, bytes: u64, offset: u64) -> Errno {
    if offset / PAGE > (u64::MAX - bytes) / PAGE {
        return EOVERFLOW;
    }
    match flags & MAP_TYPE {
        // Flags that are newer than validation are refused with it.
        MAP_SHARED_VALIDATE if flags & MAP_FIXED_NOREPLACE != 0 => ENOTSUP,
        MAP_SHARED | MAP_SHARED_VALIDATE | MAP_PRIVATE => ENODEV,
        _ => EINVAL,
    }
}

fn answer_for_memory(flags: u64) -> Result<(), Errno> {
    match flags & MAP_TYPE {
        MAP_SHARED if flags & MAP_GROWSDOWN != 0 => Err(EINVAL),
        MAP_DROPPABLE if flags & (MAP_GROWSDOWN | MAP_LOCKED) != 0 => Err(EINVAL),
        MAP_SHARED | MAP_PRIVATE | MAP_DROPPABLE => Ok(()),
        _ => Err(EINVAL),
    }
}

fn mmap_refuses_in_linuxs_order() {
    // Above the last one Linux treats an address as an error.
    const ADDRESSES: [[u64; 5]; 2] = [
        [0, FAR, FAR + 1, TAKEN + 4 * PAGE, TAKEN + 4 * PAGE + 16],
        [TOP, TOP + 1, 1 << 63, u64::MAX << 48, u64::MAX - PAGE],
    ];
    const SIZES: [u64; 10] =
        [0, 1, PAGE, 3 * PAGE, TOP - PAGE + 1, TOP, TOP + PAGE, 1 << 63, u64::MAX - PAGE + 1, u64::MAX - PAGE + 2];
    const SHARINGS: [u64; 7] = [0, MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, 4, MAP_DROPPABLE, MAP_TYPE];
    const PLACEMENTS: [u64; 4] = [0, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_FIXED | MAP_FIXED_NOREPLACE];
    const OTHERS: [u64; 3] = [0, MAP_GROWSDOWN, MAP_LOCKED | MAP_NORESERVE];
    // Only 32 bits of a descriptor count.
    const BACKINGS: [(u64, u64); 5] =
        [(MAP_ANONYMOUS, u64::MAX), (MAP_ANONYMOUS, 0), (0, 1), (0, 77), (0, 1 << 32 | 1)];
    const OFFSETS: [u64; 4] = [0, 1, PAGE, PAGE.wrapping_neg()];
    assert_eq!(map_at(TAKEN, TAKEN_PAGES, RW), Ok(TAKEN));
    for (address, bytes) in ADDRESSES.as_flattened().iter().flat_map(|address| SIZES.map(|bytes| (*address, bytes))) {
        for flags in SHARINGS.iter().flat_map(|sharing| PLACEMENTS.map(|placement| sharing | placement)) {
            // Page 0 may be mapped or not, by a setting.
            if address == 0 && flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 {
                continue;
            }
            for other in OTHERS {
                for (backing, descriptor) in BACKINGS {
                    for offset in OFFSETS {
                        let flags = flags | other | backing;
                        try_one(Arguments { address, bytes, flags, descriptor, offset });
                    }
                }
            }
        }
    }
    unmap(TAKEN, TAKEN_PAGES);
}

fn try_one(arguments: Arguments) {
    let Arguments { address, bytes, flags, descriptor, offset } = arguments;
    let got = call(MMAP, [address, bytes, RW, flags, descriptor, offset]);
    assert_eq!(got.map(drop), answer(arguments), "{arguments:#x?}");
    let Ok(at) = got else { return };
    let pages = bytes.div_ceil(PAGE);
    unmap(at, pages);
    if (TAKEN..TAKEN + TAKEN_PAGES * PAGE).contains(&at) {
        assert_eq!(map_at(at, pages, RW), Ok(at));
    }
}

/// No large pages are set aside, as on Linux by default.
fn large_pages_are_refused() {
    const LARGE: u64 = 2 << 20;
    let flags = PRIVATE | MAP_HUGETLB;
    for (what, address, bytes, flags, descriptor, wanted) in [
        ("no bytes", 0, 0, flags, u64::MAX, EINVAL),
        ("a page", 0, PAGE, flags, u64::MAX, ENOMEM),
        ("a large page", 0, LARGE, flags, u64::MAX, ENOMEM),
        ("more than there are", 0, TOP + LARGE, flags, u64::MAX, ENOMEM),
        ("a size that wraps", 0, u64::MAX, flags, u64::MAX, EINVAL),
        ("pages of 1 GiB", 0, PAGE, flags | 30 << 26, u64::MAX, ENOMEM),
        ("pages of 8 KiB", 0, PAGE, flags | 13 << 26, u64::MAX, EINVAL),
        ("a terminal", 0, PAGE, flags & !MAP_ANONYMOUS, 1, EINVAL),
        ("no such file", 0, PAGE, flags & !MAP_ANONYMOUS, 77, EBADF),
        ("beyond the end", TOP, PAGE, flags | MAP_FIXED, u64::MAX, ENOMEM),
    ] {
        assert_eq!(call(MMAP, [address, bytes, RW, flags, descriptor, 0]), Err(wanted), "{what}");
    }
}

fn the_heap_ends_a_page_below_the_next_mapping() {
    let brk = |end: u64| call(BRK, [end]).expect("brk has no errors");
    let start = brk(0);
    let page = start.next_multiple_of(PAGE);
    let next = page + 8 * PAGE;
    assert_eq!(map_at(next, 1, RW), Ok(next));
    assert_eq!(brk(next), start, "up to the mapping");
    assert_eq!(brk(next - PAGE + 1), start, "into the page before it");
    assert_eq!(brk(next + PAGE), start, "across it");
    assert_eq!(brk(next - PAGE), next - PAGE, "a page is left free");
    assert_eq!(brk(next - PAGE - 1), next - PAGE - 1);
    assert_eq!(brk(next - PAGE), next - PAGE, "the same page");
    assert_eq!(brk(start), start);
    unmap(next, 1);
    // The heap's end does not move back over a hole, but moves back over any mapping.
    assert_eq!(brk(page + PAGE), page + PAGE);
    unmap(page, 1);
    assert_eq!(brk(start), page + PAGE);
    assert_eq!(map_at(page, 1, PROT_NONE), Ok(page));
    assert_eq!(brk(start), start);
    assert_eq!(call(MUNMAP, [page, PAGE]), Ok(0));
}

fn mincore_answers_up_to_a_hole() {
    assert_eq!(map_at(TAKEN, 6, RW), Ok(TAKEN));
    assert_eq!(map_at(TAKEN + 2 * PAGE, 1, PROT_READ), Ok(TAKEN + 2 * PAGE));
    unmap(TAKEN + 4 * PAGE, 1);
    for page in [0, 2] {
        // SAFETY: the page is the test's own.
        unsafe { core::ptr::with_exposed_provenance::<u8>((TAKEN + page * PAGE) as usize).read_volatile() };
    }
    let mut bytes = [7_u8; 8];
    let vector = bytes.as_mut_ptr().expose_provenance() as u64;
    assert_eq!(call(MINCORE, [TAKEN, 6 * PAGE, vector]), Err(ENOMEM));
    assert_eq!(bytes, [1, 0, 1, 0, 7, 7, 7, 7], "pages before the hole");
    assert_eq!(call(MINCORE, [TAKEN + 4 * PAGE, 2 * PAGE, vector]), Err(ENOMEM));
    assert_eq!(bytes, [1, 0, 1, 0, 7, 7, 7, 7], "none before the hole");
    assert_eq!(call(MINCORE, [TAKEN, TOP, vector]), Err(ENOMEM), "more than there are");
    unmap(TAKEN, 6);
}

/// As many as `vm.max_map_count`, and one more by mmap only.
fn mappings_are_counted() {
    const MOST: u64 = 65_530;
    // Neighbours differ, so that each is one.
    let protection = |index: u64| if index.is_multiple_of(2) { RW } else { PROT_READ };
    let refused = |count: u64| map_at(TAKEN + count * PAGE, 1, protection(count)).err().map(|error| (count, error));
    let (count, error) = (0..).find_map(refused).expect("an end");
    assert_eq!(error, ENOMEM);
    assert!((MOST - 30..=MOST).contains(&count), "{count} mappings beside the program's own");
    let last = TAKEN + (count - 1) * PAGE;
    let apart = FAR;
    assert_eq!(map_at(last + PAGE, 1, protection(count - 1)), Err(ENOMEM), "even what would be merged");
    assert_eq!(map_at(last, 1, protection(count - 1)), Err(ENOMEM), "even in place of another");
    unmap(last, 1);
    assert_eq!(map_at(apart, 4, RW), Ok(apart), "one, of four pages");
    assert_eq!(call(MUNMAP, [apart + PAGE, PAGE]), Err(ENOMEM), "two pieces would be one more");
    assert_eq!(call(MUNMAP, [apart + 3 * PAGE, PAGE]), Ok(0), "the end of one");
    assert_eq!(call(MPROTECT, [apart + PAGE, PAGE, PROT_READ]), Err(ENOMEM), "three pieces");
    assert_eq!(call(MSEAL, [apart + PAGE, PAGE, 0]), Err(ENOMEM), "three pieces, sealed");
    assert_eq!(call(MPROTECT, [apart, PAGE, PROT_READ]), Err(ENOMEM), "two pieces");
    assert_eq!(call(MPROTECT, [apart, 3 * PAGE, PROT_READ]), Ok(0), "all of it");
    unmap(TAKEN, 2);
    assert_eq!(call(MPROTECT, [apart, PAGE, RW]), Ok(0), "two pieces when there is room");
    assert_eq!(call(MUNMAP, [apart + PAGE, PAGE]), Ok(0));
    unmap_all([(apart, 3), (TAKEN, count)]);
}

fn mseal_refuses_in_linuxs_order() {
    assert_eq!(map_at(TAKEN, 4, RW), Ok(TAKEN));
    unmap(TAKEN + 2 * PAGE, 1);
    for (what, address, bytes, flags, wanted) in [
        ("flags", TAKEN, PAGE, 1, Err(EINVAL)),
        ("flags, of nothing", TAKEN, 0, 1 << 32, Err(EINVAL)),
        ("no page", TAKEN + 1, PAGE, 0, Err(EINVAL)),
        ("no page, of nothing", TAKEN + 1, 0, 0, Err(EINVAL)),
        ("nothing", TAKEN, 0, 0, Ok(0)),
        ("nothing, where nothing is", TAKEN + 2 * PAGE, 0, 0, Ok(0)),
        ("a size that wraps", TAKEN, u64::MAX, 0, Err(EINVAL)),
        ("an end that wraps", TAKEN, TAKEN.wrapping_neg() + PAGE, 0, Err(EINVAL)),
        ("a hole", TAKEN, 4 * PAGE, 0, Err(ENOMEM)),
        ("a hole at the start", TAKEN + 2 * PAGE, 2 * PAGE, 0, Err(ENOMEM)),
        ("beyond the end", TOP - PAGE, 2 * PAGE, 0, Err(ENOMEM)),
    ] {
        assert_eq!(call(MSEAL, [address, bytes, flags]), wanted, "{what}");
    }
    // Nothing of it is sealed.
    unmap(TAKEN, 4);
}

const OPEN: Result<u64, Errno> = Ok(0);
const SHUT: Result<u64, Errno> = Err(EPERM);
/// Memory to seal. The contents of the first two alone stay: no store and no file can change them.
const KINDS: [(&str, u64, u64); 5] = [
    ("read-only", PROT_READ, PRIVATE),
    ("none", PROT_NONE, PRIVATE),
    ("writable", RW, PRIVATE),
    ("shared, read-only", PROT_READ, MAP_SHARED | MAP_ANONYMOUS),
    ("of a file, read-only", PROT_READ, MAP_PRIVATE),
];

/// A call, its arguments and its answer.
type Attempt = (&'static str, usize, [u64; 5], Result<u64, Errno>);

/// Each call that might take a mapping, its protection or its contents away, and its answer: of 8 pages of this kind at
/// `at`, the third and fourth are sealed.
fn attempts(index: usize, at: u64) -> [Attempt; 27] {
    let (_, protection, flags) = KINDS[index];
    let (sealed, beside) = (at + 2 * PAGE, at + 4 * PAGE);
    let discards = if index < 2 { SHUT } else { OPEN };
    let anonymous = if flags & MAP_ANONYMOUS != 0 && flags & MAP_SHARED == 0 { discards } else { Err(EINVAL) };
    let remove = [SHUT, SHUT, Err(EINVAL), OPEN, Err(EACCES)][index];
    [
        ("munmap", MUNMAP, [sealed, PAGE, 0, 0, 0], SHUT),
        ("munmap of all", MUNMAP, [at, 8 * PAGE, 0, 0, 0], SHUT),
        ("mmap over it", MMAP, [beside - PAGE, 2 * PAGE, RW, PRIVATE | MAP_FIXED, u64::MAX], SHUT),
        ("mmap beside it", MMAP, [sealed, PAGE, RW, PRIVATE | MAP_FIXED_NOREPLACE, u64::MAX], Err(EEXIST)),
        ("mprotect", MPROTECT, [sealed, PAGE, PROT_READ | PROT_EXEC, 0, 0], SHUT),
        ("mprotect, as it is", MPROTECT, [sealed, 2 * PAGE, protection, 0, 0], SHUT),
        ("mremap, shorter", MREMAP, [sealed, 2 * PAGE, PAGE, 0, 0], SHUT),
        ("mremap, longer", MREMAP, [sealed, 2 * PAGE, 9 * PAGE, MREMAP_MAYMOVE, 0], SHUT),
        ("mremap, as it is", MREMAP, [sealed, 2 * PAGE, 2 * PAGE, 0, 0], SHUT),
        ("mremap away", MREMAP, [sealed, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, FAR], SHUT),
        ("mremap over it", MREMAP, [at, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, sealed], SHUT),
        ("mremap of what is beside it", MREMAP, [at, 3 * PAGE, PAGE, 0, 0], SHUT),
        ("DONTNEED", MADVISE, [sealed, PAGE, MADV_DONTNEED, 0, 0], discards),
        ("DONTNEED_LOCKED", MADVISE, [sealed, PAGE, MADV_DONTNEED_LOCKED, 0, 0], discards),
        ("FREE", MADVISE, [sealed, PAGE, MADV_FREE, 0, 0], anonymous),
        ("REMOVE", MADVISE, [sealed, PAGE, MADV_REMOVE, 0, 0], remove),
        ("GUARD_INSTALL", MADVISE, [sealed, PAGE, MADV_GUARD_INSTALL, 0, 0], discards),
        ("GUARD_REMOVE", MADVISE, [sealed, PAGE, MADV_GUARD_REMOVE, 0, 0], OPEN),
        ("DONTFORK", MADVISE, [sealed, PAGE, MADV_DONTFORK, 0, 0], discards),
        ("DOFORK", MADVISE, [sealed, PAGE, MADV_DOFORK, 0, 0], OPEN),
        ("WIPEONFORK", MADVISE, [sealed, PAGE, MADV_WIPEONFORK, 0, 0], anonymous),
        ("KEEPONFORK", MADVISE, [sealed, PAGE, MADV_KEEPONFORK, 0, 0], OPEN),
        ("COLD", MADVISE, [sealed, PAGE, MADV_COLD, 0, 0], OPEN),
        ("WILLNEED", MADVISE, [sealed, PAGE, MADV_WILLNEED, 0, 0], OPEN),
        ("mlock", MLOCK, [sealed, PAGE, 0, 0, 0], if index == 1 { Err(ENOMEM) } else { OPEN }),
        ("munlock", MUNLOCK, [sealed, PAGE, 0, 0, 0], OPEN),
        ("DONTNEED of all", MADVISE, [at, 8 * PAGE, MADV_DONTNEED, 0, 0], discards),
    ]
}

fn sealed_memory_stays() {
    probe::prepare();
    for (index, (kind, protection, flags)) in KINDS.into_iter().enumerate() {
        let at = TAKEN + index as u64 * 32 * PAGE;
        let descriptor = if flags & MAP_ANONYMOUS == 0 { file(8) } else { u64::MAX };
        assert_eq!(call(MMAP, [at, 8 * PAGE, RW, flags | MAP_FIXED, descriptor, 0]), Ok(at), "{kind}");
        let sealed = at + 2 * PAGE;
        assert_eq!(put(sealed, 7), Ok(()));
        assert_eq!(call(MPROTECT, [at, 8 * PAGE, protection]), OPEN, "{kind}");
        for _ in 0..2 {
            assert_eq!(call(MSEAL, [sealed | 0x5a << 56, 2 * PAGE, 0]), OPEN, "{kind}, twice");
        }
        for (what, number, arguments, wanted) in attempts(index, at) {
            assert_eq!(call(number, arguments), wanted, "{kind}: {what}");
        }
        let (seen, stored) = match index {
            0 => (Ok(7), Err(not_allowed(sealed))),
            1 => (Err(not_allowed(sealed)), Err(not_allowed(sealed))),
            2 => (Ok(0), Ok(())),
            // Of the file's page; the copy of it is gone.
            _ => (Ok(0), Err(not_allowed(sealed))),
        };
        assert_eq!((probe::read(sealed), put(sealed, 8)), (seen, stored), "{kind}");
        // Those below have changed.
        assert_eq!(call(MPROTECT, [at, 8 * PAGE, PROT_NONE]), SHUT, "{kind}");
        assert_eq!(probe::read(at), Err(not_allowed(at)), "{kind}");
        unmap_all([(at, 2), (at + 4 * PAGE, 4)]);
        if descriptor != u64::MAX {
            assert_eq!(call(CLOSE, [descriptor]), OPEN);
        }
        let mut present = [0xff_u8; 2];
        let present = present.as_mut_ptr().expose_provenance() as u64;
        assert_eq!(call(MINCORE, [sealed, 2 * PAGE, present]), OPEN, "{kind}");
        assert_eq!(call(MINCORE, [at, PAGE, present]), Err(ENOMEM), "{kind}");
    }
}

fn a_sealed_heap_ends_where_it_is() {
    let brk = |end: u64| call(BRK, [end]).expect("brk has no errors");
    let start = brk(0).next_multiple_of(PAGE);
    assert_eq!(brk(start + 4 * PAGE), start + 4 * PAGE);
    assert_eq!(call(MSEAL, [start + PAGE, PAGE, 0]), Ok(0));
    assert_eq!(brk(start + 2 * PAGE), start + 2 * PAGE, "above it");
    assert_eq!(brk(start), start + 2 * PAGE, "across it");
    assert_eq!(brk(start + 3 * PAGE), start + 3 * PAGE, "up again");
    process::in_copy(|| assert_eq!(brk(start), start + 3 * PAGE, "a child's too"));
}
