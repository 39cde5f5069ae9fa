//! Pages by what they are, and which of them were written: `PAGEMAP_SCAN`, and the feature of userfaultfd by which a store
//! ends the protection of its page without a message.
//!
//! Each answer is Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, file, word, put_word, advise);

/// Bytes of a block, and pages.
const BLOCK: u64 = 2 << 20;
const OF_BLOCK: u64 = BLOCK / PAGE;

/// Linux's end of addresses for a program, where it is built for 52 bits.
const LARGEST_END: u64 = 1 << 52;

const WPA: u64 = PAGE_IS_WPALLOWED;
const WRITTEN: u64 = PAGE_IS_WRITTEN;
const FILE: u64 = PAGE_IS_FILE;
const THERE: u64 = PAGE_IS_PRESENT;
const MARKER: u64 = PAGE_IS_SWAPPED;
const ZEROS: u64 = PAGE_IS_PFNZERO;
const HUGE: u64 = PAGE_IS_HUGE;
const GUARD: u64 = PAGE_IS_GUARD;
const ALL: u64 = 2 * GUARD - 1;
const PROTECT: u64 = PM_SCAN_WP_MATCHING;
const CHECK: u64 = PM_SCAN_CHECK_WPASYNC;

/// First page, the page after the last, and categories.
type Found = (u64, u64, u64);

fn run(_: Start) -> u8 {
    probe::prepare();
    parts! { ()
        refusals filters limits registered anonymous shared private_file what_discards_leave guards forked moved blocks
        parts_of_blocks sparse many kernel_and_other_mappings race
    }
    status("scan")
}

/// Pages of a kind, of which the first is the first of a block.
struct Room {
    start: u64,
    pages: u64,
    pages_of: File,
}

impl Room {
    fn new(pages: u64, flags: u64, file: u64) -> Self {
        let around = call(MMAP, [0, pages * PAGE + 3 * BLOCK, PROT_NONE, PRIVATE, u64::MAX, 0]).expect("addresses");
        let start = (around + BLOCK).next_multiple_of(BLOCK);
        call(MMAP, [start, pages * PAGE, RW, flags | MAP_FIXED, file, 0]).expect("memory");
        advise(start, pages, MADV_NOHUGEPAGE).expect("advice");
        Self { start, pages, pages_of: File::open(c"/proc/self/pagemap", O_RDONLY).expect("pagemap") }
    }

    fn of_its_own(pages: u64) -> Self {
        Self::new(pages, PRIVATE, u64::MAX)
    }

    const fn at(&self, page: u64) -> u64 {
        self.start + page * PAGE
    }

    fn store(&self, pages: impl IntoIterator<Item = u64>) {
        pages.into_iter().for_each(|page| put_word(self.at(page), page + 1));
    }

    /// A userfaultfd that has all pages for that, with `features` besides.
    fn tracked(&self, features: u64) -> Pager {
        let pager = Pager::new(O_CLOEXEC | O_NONBLOCK, UFFD_FEATURE_WP_ASYNC | features).expect("a userfaultfd");
        pager.register(self.start, self.pages * PAGE, UFFDIO_REGISTER_MODE_WP).expect("registered");
        pager
    }

    /// A scan of pages, which finds and shows all.
    fn all(&self, first: u64, end: u64) -> PmScanArg {
        PmScanArg {
            size: size_of::<PmScanArg>() as u64,
            start: self.at(first),
            end: self.at(end),
            walk_end: 9,
            return_mask: ALL,
            ..PmScanArg::default()
        }
    }

    /// Finds what was written, and protects it.
    fn written(&self, first: u64, end: u64) -> PmScanArg {
        PmScanArg { flags: PROTECT | CHECK, category_mask: WRITTEN, ..self.all(first, end) }
    }

    /// Compares what a scan finds, where it ends, and its regions; of these there is room for so many.
    fn finds_in(&self, room: u64, what: &str, arg: PmScanArg, end: u64, linux: &[Found]) {
        let mut regions = [PageRegion::default(); 16];
        let mut arg = PmScanArg { vec: regions.as_mut_ptr() as u64, vec_len: room, ..arg };
        equal((what, "regions"), self.ask(&mut arg), Ok(linux.len() as u64));
        equal((what, "ends at"), arg.walk_end.wrapping_sub(self.start) / PAGE, end);
        for (region, linux) in regions.iter().zip(linux) {
            let page = |at: u64| at.wrapping_sub(self.start) / PAGE;
            equal(what, (page(region.start), page(region.end), region.categories), *linux);
        }
    }

    fn finds(&self, what: &str, arg: PmScanArg, linux: &[Found]) {
        self.finds_in(16, what, arg, (arg.end - self.start) / PAGE, linux);
    }

    /// Compares what all pages are.
    fn shows(&self, what: &str, linux: &[Found]) {
        self.finds(what, self.all(0, self.pages), linux);
    }

    /// Compares the pages that were written, which are protected then.
    fn were_written(&self, what: &str, linux: &[Found]) {
        self.finds(what, PmScanArg { return_mask: 0, ..self.written(0, self.pages) }, linux);
    }

    fn ask(&self, arg: &mut PmScanArg) -> Result<u64, Errno> {
        call(IOCTL, [self.pages_of.0, PAGEMAP_SCAN.into(), core::ptr::from_mut(arg) as u64])
    }
}

fn refusals() {
    let room = Room::of_its_own(8);
    room.store(0..4);
    let mut regions = [PageRegion::default(); 8];
    let good = PmScanArg { vec: regions.as_mut_ptr() as u64, vec_len: 8, ..room.all(0, 8) };
    let refused = |what: &str, arg: PmScanArg, linux| {
        let mut arg = arg;
        equal(what, (room.ask(&mut arg), arg.walk_end), (Err(linux), 9));
    };
    for size in [0, 88, 104] {
        refused("its size", PmScanArg { size, ..good }, EINVAL);
    }
    refused("flags", PmScanArg { flags: 4, ..good }, EINVAL);
    refused("inverted", PmScanArg { category_inverted: ALL + 1, ..good }, EINVAL);
    refused("all of", PmScanArg { category_mask: ALL + 1, ..good }, EINVAL);
    refused("any of", PmScanArg { category_anyof_mask: ALL + 1, ..good }, EINVAL);
    refused("shown", PmScanArg { return_mask: ALL + 1, ..good }, EINVAL);
    refused("no page", PmScanArg { start: good.start + 1, ..good }, EINVAL);
    refused("no page first", PmScanArg { start: good.start + 1, end: u64::MAX, ..good }, EINVAL);
    refused("the kernel's", PmScanArg { end: KERNEL, ..good }, EFAULT);
    refused("backwards", PmScanArg { end: good.start - PAGE, ..good }, EFAULT);
    refused("no regions", PmScanArg { vec: 0, ..good }, EINVAL);
    refused("addresses first", PmScanArg { vec: 0, end: KERNEL, ..good }, EFAULT);
    refused("regions of the kernel", PmScanArg { vec: KERNEL, ..good }, EFAULT);
    refused("also none", PmScanArg { vec: KERNEL, vec_len: 0, ..good }, EFAULT);
    refused("very many regions", PmScanArg { vec_len: 1 << 62, ..good }, EFAULT);
    let ends = |what: &str, arg: PmScanArg, linux, end| {
        let mut arg = arg;
        equal(what, (room.ask(&mut arg), arg.walk_end.wrapping_sub(room.start)), (linux, end * PAGE));
    };
    ends("no memory for regions", PmScanArg { vec: NOWHERE, ..good }, Err(EFAULT), 8);
    ends("none are stored", PmScanArg { vec: NOWHERE, category_mask: GUARD, ..good }, Ok(0), 8);
    ends("no room", PmScanArg { vec_len: 0, max_pages: 1, ..good }, Ok(0), 8);
    ends("nothing", PmScanArg { end: good.start, ..good }, Ok(0), 0);
    ends("a part of a page", PmScanArg { end: good.start + 1, ..good }, Ok(1), 1);
    ends("parts of pages", PmScanArg { end: room.at(2) + 1, ..good }, Ok(1), 3);
    ends("tagged", PmScanArg { start: good.start | 0x55 << 56, end: good.end | 0x55 << 56, ..good }, Ok(2), 8);
    ends("tagged regions", PmScanArg { vec: good.vec | 0x55 << 56, ..good }, Ok(2), 8);
    ends("not registered", PmScanArg { flags: PROTECT, ..good }, Ok(0), 8);
    ends("checked", PmScanArg { flags: CHECK, ..good }, Err(EPERM), 8);
    ends("protected and checked", PmScanArg { flags: PROTECT | CHECK, ..good }, Err(EPERM), 8);
    let mut hole = PmScanArg { flags: CHECK, start: NOWHERE, end: 2 * NOWHERE, ..good };
    equal("nothing is mapped", (room.ask(&mut hole), hole.walk_end), (Ok(0), 2 * NOWHERE));
    let mut large = PmScanArg { category_mask: GUARD, end: LARGEST_END, ..good };
    equal("up to the largest address", (room.ask(&mut large), large.walk_end), (Ok(0), LARGEST_END));
    refused("beyond", PmScanArg { end: LARGEST_END + PAGE, ..good }, EFAULT);
    commands(&room, good);
}

/// Other commands, other files, and a structure that cannot be read or written.
fn commands(room: &Room, good: PmScanArg) {
    let mut good = good;
    let at = core::ptr::from_mut(&mut good) as u64;
    let ask = |file: u64, command: u32, at| call(IOCTL, [file, command.into(), at]);
    equal("no structure", ask(room.pages_of.0, PAGEMAP_SCAN, 0), Err(EFAULT));
    equal("no structure there", ask(room.pages_of.0, PAGEMAP_SCAN, NOWHERE), Err(EFAULT));
    equal("another command", ask(room.pages_of.0, 0x5401, at), Err(EINVAL));
    equal("another size", ask(room.pages_of.0, 0xc001_6610, at), Err(EINVAL));
    let maps = File::open(c"/proc/self/maps", O_RDONLY).expect("maps");
    equal("another file", ask(maps.0, PAGEMAP_SCAN, at), Err(ENOTTY));
    equal("memory", ask(file(1), PAGEMAP_SCAN, at), Err(ENOTTY));
    let path = File::open(c"/proc/self/pagemap", O_PATH).expect("a path");
    equal("a path", ask(path.0, PAGEMAP_SCAN, at), Err(EBADF));
    let read_only = map(2 * PAGE, RW).expect("memory");
    // SAFETY: fresh memory.
    unsafe { (read_only as *mut PmScanArg).write(good) };
    // SAFETY: the program's own.
    unsafe { mprotect(read_only, PAGE, PROT_READ) }.expect("protected");
    equal("a structure that is not written", ask(room.pages_of.0, PAGEMAP_SCAN, read_only), Err(EFAULT));
    equal("one that ends too early", ask(room.pages_of.0, PAGEMAP_SCAN, read_only + 2 * PAGE - 40), Err(EFAULT));
}

/// Memory that no userfaultfd has: by which categories it is found.
fn filters() {
    let room = Room::of_its_own(1536);
    room.store((0..4).chain([1030]));
    let _ = word(room.at(5));
    let (hole, end) = ((512, 1024, 0), (1031, 1536, WRITTEN));
    let there = (0, 4, WRITTEN | THERE);
    let zeros = (5, 6, WRITTEN | THERE | ZEROS);
    let last = (1030, 1031, WRITTEN | THERE);
    let empty = [(4, 5, WRITTEN), (6, 512, WRITTEN), (1024, 1030, WRITTEN)];
    room.shows("all", &[there, empty[0], zeros, empty[1], hole, empty[2], last, end]);
    let all = room.all(0, 1536);
    room.finds("there", PmScanArg { category_mask: THERE, ..all }, &[there, zeros, last]);
    room.finds("of any", PmScanArg { category_anyof_mask: ZEROS | GUARD, ..all }, &[zeros]);
    let missing = PmScanArg { category_inverted: THERE, category_mask: THERE, ..all };
    room.finds("not there", missing, &[empty[0], empty[1], hole, empty[2], end]);
    let unwritten = PmScanArg { category_inverted: WRITTEN, category_mask: WRITTEN, ..all };
    room.finds("not written", unwritten, &[hole]);
    let other = PmScanArg { category_inverted: WRITTEN, category_anyof_mask: WRITTEN, ..all };
    room.finds("of any, not written", other, &[hole]);
    room.finds("may be protected", PmScanArg { category_mask: WPA, ..all }, &[]);
    let plain = PmScanArg { category_mask: WPA | THERE, category_inverted: WPA, ..all };
    room.finds("may not be protected", plain, &[there, zeros, last]);
    room.finds("nothing shown", PmScanArg { return_mask: 0, ..room.all(0, 8) }, &[(0, 8, 0)]);
    let written = PmScanArg { category_mask: WRITTEN, return_mask: WRITTEN, ..all };
    room.finds("written alone", written, &[(0, 512, WRITTEN), (1024, 1536, WRITTEN)]);
    // Other areas are other areas, and a hole between them is none.
    call(MPROTECT, [room.at(2), PAGE, PROT_NONE]).expect("protected");
    call(MUNMAP, [room.at(3), PAGE]).expect("unmapped");
    room.finds("areas", room.all(0, 5), &[(0, 3, WRITTEN | THERE), (4, 5, WRITTEN)]);
}

fn limits() {
    let room = Room::of_its_own(8);
    room.store(0..4);
    let _ = word(room.at(5));
    let there = PmScanArg { category_mask: THERE, ..room.all(0, 8) };
    let (first, second) = ((0, 4, WRITTEN | THERE), (5, 6, WRITTEN | THERE | ZEROS));
    room.finds_in(8, "one page", PmScanArg { max_pages: 1, ..there }, 1, &[(0, 1, WRITTEN | THERE)]);
    // It ends at the first page that it would find.
    room.finds_in(8, "four pages", PmScanArg { max_pages: 4, ..there }, 5, &[first]);
    room.finds_in(8, "five pages", PmScanArg { max_pages: 5, ..there }, 8, &[first, second]);
    room.finds_in(1, "one region", there, 5, &[first]);
    room.finds_in(2, "two regions", there, 8, &[first, second]);
    room.finds_in(1, "one region of all", room.all(0, 8), 4, &[first]);
}

/// The modes and the features by which pages may be protected.
fn registered() {
    let room = Room::of_its_own(8);
    let bytes = 8 * PAGE;
    let checked = |linux| {
        let mut arg = PmScanArg { flags: CHECK, ..room.all(0, 8) };
        equal("checked", room.ask(&mut arg), linux);
    };
    let sync = Pager::new(O_CLOEXEC | O_NONBLOCK, UFFD_FEATURE_WP_UNPOPULATED).expect("a userfaultfd");
    sync.register(room.start, bytes, UFFDIO_REGISTER_MODE_WP).expect("registered");
    checked(Err(EPERM));
    sync.protect(room.start, 2 * PAGE).expect("protected");
    room.finds("with messages", PmScanArg { flags: PROTECT, ..room.all(0, 8) }, &[]);
    room.shows("with messages", &[(0, 2, MARKER), (2, 8, WRITTEN)]);
    sync.close().expect("open");
    let agreed = Pager::open(O_CLOEXEC | O_NONBLOCK).expect("a userfaultfd");
    let api = agreed.agree(UFFD_FEATURE_WP_ASYNC).expect("features");
    equal("there is the feature", api.features & UFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_ASYNC);
    agreed.register(room.start, bytes, UFFDIO_REGISTER_MODE_MISSING).expect("registered");
    checked(Err(EPERM));
    agreed.register(room.start, bytes, UFFDIO_REGISTER_MODE_WP).expect("registered");
    checked(Ok(0));
    // Pages that were never accessed too, without another feature.
    agreed.protect(room.start, 4 * PAGE).expect("protected");
    room.shows("protected", &[(0, 4, WPA | MARKER), (4, 8, WPA | WRITTEN)]);
    room.store(0..2);
    room.shows("stored", &[(0, 2, WPA | WRITTEN | THERE), (2, 4, WPA | MARKER), (4, 8, WPA | WRITTEN)]);
    agreed.unregister(room.at(4), 4 * PAGE).expect("registered");
    room.finds("a part", PmScanArg { category_mask: WPA, return_mask: WPA, ..room.all(0, 8) }, &[(0, 4, WPA)]);
    let mut strict = PmScanArg { vec_len: 0, ..room.written(0, 8) };
    equal("checked in the middle", room.ask(&mut strict), Err(EPERM));
    room.finds("what came before", room.all(0, 4), &[(0, 2, WPA | THERE), (2, 4, WPA | MARKER)]);
    agreed.close().expect("open");
    room.shows("closed", &[(0, 2, WRITTEN | THERE), (2, 8, WRITTEN)]);
    // With both modes what is missing is asked for, and a store to a copy is not.
    let both = Pager::new(O_CLOEXEC | O_NONBLOCK, UFFD_FEATURE_WP_ASYNC).expect("a userfaultfd");
    both.register(room.start, bytes, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MISSING).expect("registered");
    advise(room.start, 8, MADV_DONTNEED).expect("advice");
    let source = map(PAGE, RW).expect("memory");
    equal("a copy", both.copy(room.at(6), source, PAGE, UFFDIO_COPY_MODE_WP), Ok(PAGE as i64));
    equal("zeros", both.zero(room.start, 2 * PAGE, 0), Ok(2 * PAGE as i64));
    room.were_written("all but the copy", &[(0, 6, 0), (7, 8, 0)]);
    room.store([1]);
    let rest = [(2, 6, WPA | MARKER), (6, 7, WPA | THERE), (7, 8, WPA | MARKER)];
    let first = [(0, 1, WPA | THERE | ZEROS), (1, 2, WPA | WRITTEN | THERE)];
    room.shows("stored", &[first[0], first[1], rest[0], rest[1], rest[2]]);
    equal("no message", both.read_one(), Err(EAGAIN));
    both.close().expect("open");
}

/// One page after the other is written, in memory where pages that are there are `there`, and those that were read `read`.
fn tracks(room: &Room, there: u64, read: u64) {
    let pager = room.tracked(0);
    room.store(0..4);
    let _ = word(room.at(5));
    let end = room.pages;
    let (new, none) = (WPA | WRITTEN, WPA | MARKER);
    let fresh = [(0, 4, new | there), (4, 5, new), (5, 6, new | read), (6, end, new)];
    room.shows("fresh", &fresh);
    room.finds("protect", PmScanArg { flags: PROTECT, ..room.all(0, 8) }, &[fresh[0], fresh[1], fresh[2], (6, 8, new)]);
    room.shows("protected", &[(0, 4, WPA | there), (4, 5, none), (5, 6, WPA | read), (6, 8, none), (8, end, new)]);
    room.store([1, 5, 6]);
    let _ = (word(room.at(2)), word(room.at(7)));
    room.finds(
        "stored",
        PmScanArg { category_mask: WRITTEN, return_mask: 0, ..room.all(0, 8) },
        &[(1, 2, 0), (5, 7, 0)],
    );
    room.were_written("and again", &[(1, 2, 0), (5, 7, 0), (8, end, 0)]);
    room.were_written("not again", &[]);
    equal("stored", [1, 5, 6].map(|page| word(room.at(page))), [2, 6, 7]);
    // Only what is found is protected.
    room.store([0, 1, 3, 4]);
    room.finds_in(9, "two pages", PmScanArg { max_pages: 2, return_mask: 0, ..room.written(0, end) }, 3, &[(0, 2, 0)]);
    room.were_written("the rest", &[(3, 5, 0)]);
    room.store([0, 1, 3, 4]);
    room.finds_in(1, "one region", PmScanArg { return_mask: 0, ..room.written(0, end) }, 3, &[(0, 2, 0)]);
    room.were_written("the rest", &[(3, 5, 0)]);
    room.store([2]);
    let mut none_found = PmScanArg { category_mask: GUARD, ..room.written(0, end) };
    none_found.vec_len = 0;
    equal("without regions", room.ask(&mut none_found), Ok(0));
    room.were_written("all are protected", &[]);
    // A protection that mprotect takes and gives back stays.
    room.store([0, 1]);
    call(MPROTECT, [room.start, PAGE, PROT_READ]).expect("protected");
    room.were_written("the first is protected", &[(0, 2, 0)]);
    call(MPROTECT, [room.start, PAGE, RW]).expect("protected");
    room.were_written("and stays", &[]);
    room.store([0]);
    room.were_written("until a store", &[(0, 1, 0)]);
    equal("no message", pager.read_one(), Err(EAGAIN));
    pager.close().expect("open");
}

fn anonymous() {
    tracks(&Room::of_its_own(1024), THERE, THERE | ZEROS);
}

fn shared() {
    tracks(&Room::new(1024, MAP_SHARED, file(1024)), THERE | FILE, THERE | FILE);
}

fn private_file() {
    tracks(&Room::new(1024, MAP_PRIVATE, file(1024)), THERE, THERE | FILE);
}

fn what_discards_leave() {
    let room = Room::of_its_own(8);
    let pager = room.tracked(0);
    room.store(0..4);
    room.were_written("all", &[(0, 8, 0)]);
    advise(room.start, 2, MADV_DONTNEED).expect("advice");
    room.shows("a discard", &[(0, 2, WPA | WRITTEN), (2, 4, WPA | THERE), (4, 8, WPA | MARKER)]);
    pager.close().expect("open");
    let memory = file(8);
    let room = Room::new(8, MAP_SHARED, memory);
    let pager = room.tracked(0);
    room.store([0, 2]);
    room.were_written("all", &[(0, 8, 0)]);
    advise(room.start, 1, MADV_DONTNEED).expect("advice");
    call(FALLOCATE, [memory, PUNCH_HOLE.into(), 2 * PAGE, PAGE]).expect("a hole");
    room.shows("markers stay", &[(0, 8, WPA | MARKER)]);
    room.store([0, 2]);
    let _ = word(room.at(4));
    let file = WPA | THERE | FILE;
    let rest = [(1, 2, WPA | MARKER), (3, 4, WPA | MARKER), (5, 8, WPA | MARKER)];
    let shown = [(0, 1, file | WRITTEN), rest[0], (2, 3, file | WRITTEN), rest[1], (4, 5, file), rest[2]];
    room.shows("stored", &shown);
    pager.close().expect("open");
}

fn guards() {
    let room = Room::of_its_own(8);
    let pager = room.tracked(0);
    room.store(0..8);
    room.were_written("all", &[(0, 8, 0)]);
    advise(room.at(2), 2, MADV_GUARD_INSTALL).expect("guards");
    let (first, last) = ((0, 2, WPA | THERE), (4, 8, WPA | THERE));
    room.shows("guards", &[first, (2, 4, WPA | WRITTEN | MARKER | GUARD), last]);
    room.were_written("guards are", &[(2, 4, 0)]);
    room.shows("marked", &[first, (2, 4, WPA | MARKER | GUARD), last]);
    equal("they are guards still", bytes(room.at(1)), [2, 255, 255, 5]);
    pager.unprotect(room.start, 8 * PAGE).expect("registered");
    let (first, last) = ((0, 2, WPA | WRITTEN | THERE), (4, 8, WPA | WRITTEN | THERE));
    room.shows("no call takes their marks", &[first, (2, 4, WPA | MARKER | GUARD), last]);
    advise(room.at(3), 2, MADV_GUARD_INSTALL).expect("guards");
    let new = (4, 5, WPA | WRITTEN | MARKER | GUARD);
    room.shows("nor does a guard", &[first, (2, 4, WPA | MARKER | GUARD), new, (5, 8, last.2)]);
    advise(room.at(4), 1, MADV_GUARD_REMOVE).expect("no guard");
    advise(room.start, 8, MADV_DONTNEED).expect("advice");
    let empty = [(0, 2, WPA | WRITTEN), (2, 4, WPA | MARKER | GUARD), (4, 8, WPA | WRITTEN)];
    room.shows("they stay", &empty);
    advise(room.at(2), 2, MADV_GUARD_REMOVE).expect("no guards");
    room.shows("no guards", &[(0, 8, WPA | WRITTEN)]);
    room.store([2]);
    equal("and written", word(room.at(2)), 3);
    advise(room.at(5), 1, MADV_GUARD_INSTALL).expect("a guard");
    room.were_written("a guard is", &[(0, 8, 0)]);
    pager.close().expect("open");
    let (there, guard) = ((2, 3, WRITTEN | THERE), (5, 6, MARKER | GUARD));
    room.shows("nor the end", &[(0, 2, WRITTEN), there, (3, 5, WRITTEN), guard, (6, 8, WRITTEN)]);
    apart(|| {
        let own = File::open(c"/proc/self/pagemap", O_RDONLY).expect("pagemap");
        let room = Room { start: room.start, pages: 8, pages_of: own };
        room.finds("a child has none", room.all(5, 6), &[(5, 6, WRITTEN | MARKER | GUARD)]);
    });
}

fn forked() {
    let room = Room::of_its_own(8);
    let pager = room.tracked(0);
    room.store(0..4);
    room.were_written("all", &[(0, 8, 0)]);
    apart(|| {
        let own = File::open(c"/proc/self/pagemap", O_RDONLY).expect("pagemap");
        let room = Room { start: room.start, pages: 8, pages_of: own };
        room.shows("a child is not tracked", &[(0, 4, WRITTEN | THERE), (4, 8, WRITTEN)]);
        let mut checked = PmScanArg { flags: CHECK, ..room.all(0, 8) };
        equal("checked", room.ask(&mut checked), Err(EPERM));
        room.store([0, 5]);
    });
    room.were_written("nor are its stores", &[]);
    room.store([1, 4]);
    room.were_written("those of the parent", &[(1, 2, 0), (4, 5, 0)]);
    equal("each has its own", [0, 1, 4, 5].map(|page| word(room.at(page))), [1, 2, 5, 0]);
    pager.close().expect("open");
}

fn moved() {
    let room = Room::of_its_own(8);
    let pager = room.tracked(0);
    room.store(0..4);
    room.were_written("all", &[(0, 8, 0)]);
    let to = Room::of_its_own(8);
    call(MREMAP, [room.start, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to.start]).expect("moved");
    to.finds("tracked no more", to.all(0, 4), &[(0, 4, WRITTEN | THERE)]);
    let mut checked = PmScanArg { flags: CHECK, ..to.all(0, 4) };
    equal("checked", to.ask(&mut checked), Err(EPERM));
    room.shows("the rest is", &[(4, 8, WPA | MARKER)]);
    pager.close().expect("open");
}

/// Memory in blocks.
fn in_blocks() -> (Room, Pager) {
    let room = Room::of_its_own(2 * OF_BLOCK);
    advise(room.start, room.pages, MADV_HUGEPAGE).expect("advice");
    let pager = room.tracked(0);
    room.store([0, OF_BLOCK]);
    (room, pager)
}

fn blocks() {
    let (room, pager) = in_blocks();
    let (block, end) = (WPA | THERE | HUGE, 2 * OF_BLOCK);
    room.shows("blocks", &[(0, end, block | WRITTEN)]);
    room.finds("a part", room.all(3, 5), &[(3, 5, block | WRITTEN)]);
    room.were_written("blocks", &[(0, end, 0)]);
    room.shows("protected", &[(0, end, block)]);
    room.store([7]);
    let pages = WPA | THERE;
    let stored = [(0, 7, pages), (7, 8, pages | WRITTEN), (8, OF_BLOCK, pages), (OF_BLOCK, end, block)];
    room.shows("a page of it is stored", &stored);
    room.were_written("a page", &[(7, 8, 0)]);
    room.were_written("no more", &[]);
    equal("contents", [0, 7, OF_BLOCK].map(|page| word(room.at(page))), [1, 8, OF_BLOCK + 1]);
    advise(room.at(OF_BLOCK), OF_BLOCK, MADV_DONTNEED).expect("advice");
    room.shows("a block is discarded", &[(0, OF_BLOCK, pages), (OF_BLOCK, end, WPA | WRITTEN)]);
    pager.close().expect("open");
}

fn parts_of_blocks() {
    let (room, pager) = in_blocks();
    let (pages, block, end) = (WPA | THERE, WPA | THERE | HUGE | WRITTEN, 2 * OF_BLOCK);
    room.finds("a part", room.written(3, 5), &[(3, 5, pages | WRITTEN)]);
    let left = [(0, 3, pages | WRITTEN), (3, 5, pages), (5, OF_BLOCK, pages | WRITTEN), (OF_BLOCK, end, block)];
    room.shows("is divided", &left);
    let few = PmScanArg { max_pages: 20, ..room.written(OF_BLOCK, end) };
    room.finds_in(9, "so many pages", few, OF_BLOCK + 20, &[(OF_BLOCK, OF_BLOCK + 20, pages | WRITTEN)]);
    let rest = [(OF_BLOCK, OF_BLOCK + 20, pages), (OF_BLOCK + 20, end, pages | WRITTEN)];
    room.finds("divided", room.all(OF_BLOCK, end), &rest);
    pager.close().expect("open");
}

/// Where no table is.
fn sparse() {
    let room = Room::of_its_own(4 * OF_BLOCK);
    let pager = room.tracked(0);
    room.store([0, 3 * OF_BLOCK]);
    let end = 4 * OF_BLOCK;
    let first = room.written(600, end);
    room.finds_in(9, "five pages", PmScanArg { max_pages: 5, ..first }, 605, &[(600, 605, WPA | WRITTEN)]);
    room.finds(
        "around",
        room.all(598, 607),
        &[(598, 600, WPA | WRITTEN), (600, 605, WPA | MARKER), (605, 607, WPA | WRITTEN)],
    );
    room.were_written("the rest", &[(0, 600, 0), (605, end, 0)]);
    let all = room.all(0, end);
    room.finds(
        "not there",
        PmScanArg { category_mask: MARKER, return_mask: 0, ..all },
        &[(1, 3 * OF_BLOCK, 0), (3 * OF_BLOCK + 1, end, 0)],
    );
    room.store([2 * OF_BLOCK + 3]);
    room.were_written("one", &[(2 * OF_BLOCK + 3, 2 * OF_BLOCK + 4, 0)]);
    pager.close().expect("open");
}

/// More regions than are stored at once.
fn many() {
    const PAGES: u64 = 2000;
    let room = Room::of_its_own(PAGES);
    room.store((0..PAGES).step_by(2));
    let regions = map(PAGES * 24, RW).expect("memory");
    let there = PmScanArg { category_mask: THERE, return_mask: THERE, vec: regions, ..room.all(0, PAGES) };
    for (room_for, most, linux, end) in [(700, 0, 700, 1400), (2000, 600, 600, 1200), (513, 0, 513, 1026)] {
        let mut arg = PmScanArg { vec_len: room_for, max_pages: most, ..there };
        let found = room.ask(&mut arg);
        equal(("many", room_for, most), (found, (arg.walk_end - room.start) / PAGE), (Ok(linux), end));
        for index in 0..linux {
            let at = regions + index * 24;
            let region = (room.at(2 * index), room.at(2 * index + 1), THERE);
            equal(("region", index), (word(at), word(at + 8), word(at + 16)), region);
        }
    }
    let mut all = PmScanArg { vec_len: 2000, ..there };
    equal("all", room.ask(&mut all), Ok(1000));
    let mut cut = PmScanArg { vec: regions + 2000 * 24 / PAGE * PAGE + PAGE - 24 * 300, vec_len: 2000, ..there };
    call(MUNMAP, [cut.vec + 24 * 300, 64 * PAGE]).expect("unmapped");
    equal("no memory for all", room.ask(&mut cut), Err(EFAULT));
}

/// Stores of the kernel end the protection too; those by another mapping of the memory do not.
fn kernel_and_other_mappings() {
    let memory = file(8);
    let room = Room::new(8, MAP_SHARED, memory);
    let other = call(MMAP, [0, 8 * PAGE, RW, MAP_SHARED, memory, 0]).expect("memory");
    let pager = room.tracked(UFFD_FEATURE_SIGBUS);
    room.store([0, 1]);
    room.were_written("all", &[(0, 8, 0)]);
    put_word(other, 77);
    put_word(other + 3 * PAGE, 88);
    room.were_written("by another mapping", &[]);
    equal("they are seen", (word(room.at(0)), word(room.at(3))), (77, 88));
    let [reads, writes] = File::pipe(0).expect("a pipe");
    equal("bytes", call(WRITE, [writes.0, room.start, 8]), Ok(8));
    room.were_written("the kernel's loads are none", &[]);
    equal("the kernel stores", call(READ, [reads.0, room.at(1), 8]), Ok(8));
    room.were_written("the kernel's", &[(1, 2, 0)]);
    equal("no message", pager.read_one(), Err(EAGAIN));
    pager.close().expect("open");
}

/// A thread stores to pages while scans protect them: what it has stored last is found by the last scan.
fn race() {
    const PAGES: u64 = 64;
    const ROUNDS: u64 = 300;
    let room = Room::of_its_own(PAGES);
    let pager = room.tracked(0);
    let copy = map(PAGES * PAGE, RW).expect("memory");
    let rounds = AtomicU64::new(0);
    let take = || {
        let mut regions = [PageRegion::default(); PAGES as usize];
        let mut arg = PmScanArg { vec: regions.as_mut_ptr() as u64, vec_len: PAGES, ..room.written(0, PAGES) };
        let found = room.ask(&mut arg).expect("a scan") as usize;
        for region in &regions[..found] {
            for at in (region.start..region.end).step_by(PAGE as usize) {
                put_word(copy + (at - room.start), word(at));
            }
        }
    };
    let store = || {
        for round in 1..=ROUNDS {
            (0..PAGES).for_each(|page| put_word(room.at(page), round * PAGES + page));
            rounds.store(round, Ordering::Release);
        }
    };
    beside(store, || {
        while rounds.load(Ordering::Acquire) < ROUNDS {
            take();
        }
    });
    take();
    let same = (0..PAGES).filter(|&page| word(copy + page * PAGE) == ROUNDS * PAGES + page).count();
    equal("pages as they were stored last", same as u64, PAGES);
    pager.close().expect("open");
}
