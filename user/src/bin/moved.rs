//! Pages that a pager moves (`UFFDIO_MOVE`), as a program sees them. The answers are Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::answers;
use granule_user::prelude::*;
use granule_user::served::{Kind, OwnPager, Room, nap, pager, quiet, reported, served, watched};
use granule_user::tags;

entry!(run);
own!(call, word, put_word);

const MISSING: u64 = UFFDIO_REGISTER_MODE_MISSING;
const WP: u64 = UFFDIO_REGISTER_MODE_WP;
const HOLES: u64 = UFFDIO_MOVE_MODE_ALLOW_SRC_HOLES;
const QUIET: u64 = UFFDIO_MOVE_MODE_DONTWAKE;
const FEATURES: u64 = WRITE_PROTECTION | UFFD_FEATURE_MOVE;
/// Bytes of a block.
const BLOCK: u64 = 2 << 20;
/// An entry that is the process's own.
const OWN: u64 = PM_PRESENT | PM_MMAP_EXCLUSIVE;

type Answer = Result<i64, (Errno, i64)>;

fn run(start: Start) -> u8 {
    probe::prepare_for(&[SIGBUS, SIGSEGV]);
    parts! {
        () registered refused areas unlike_areas values present_pages marked forked zeros holes overlapping other_entries
        woken features_of_the_pager events kernel_accesses huge huge_parts discarded threads long
    }
    if start.auxiliary(AT_HWCAP2).is_some_and(|bits| bits & HWCAP2_MTE != 0) {
        tagged();
    }
    answers::status("moved")
}

fn fails(error: Errno) -> Answer {
    Err((error, -(error as i64)))
}

fn moved(pages: u64) -> Answer {
    Ok((pages * PAGE) as i64)
}

/// As far as so many pages.
fn until(pages: u64) -> Answer {
    Err((EAGAIN, (pages * PAGE) as i64))
}

/// Memory of the program's own with its page's number and 1 in each page.
fn source(pages: u64) -> Room {
    let room = Room::new(Kind::Anonymous, pages);
    room.write_all();
    room
}

/// The source, and a room of as many pages, registered in `mode`, to which they may move.
fn rooms(pages: u64, features: u64, mode: u64) -> (Room, Room, OwnPager) {
    let (target, pager) = watched(Kind::Anonymous, pages, features, mode);
    (source(pages), target, pager)
}

/// The bits that `pagemap` shows of pages, without the frames.
fn shown<const N: usize>(at: u64) -> [u64; N] {
    let mut words = [0; N];
    let file = File::open(c"/proc/self/pagemap", O_RDONLY).expect("pagemap");
    let arguments = [*file, words.as_mut_ptr() as u64, 8 * N as u64, at / PAGE * 8];
    equal("pagemap", call(PREAD64, arguments), Ok(8 * N as u64));
    words.map(|word| word & !PM_PFRAME)
}

/// The frame of a page.
fn frame(at: u64) -> u64 {
    let mut frame = 0_u64;
    let file = File::open(c"/proc/self/pagemap", O_RDONLY).expect("pagemap");
    equal("pagemap", call(PREAD64, [*file, (&raw mut frame) as u64, 8, at / PAGE * 8]), Ok(8));
    frame & PM_PFRAME
}

fn registered() {
    let Ok(api) = Pager::open(0).and_then(|pager| pager.agree(0)) else { return equal("the features", false, true) };
    holds("the feature", api.features & UFFD_FEATURE_MOVE != 0);
    let pager = pager(FEATURES | UFFD_FEATURE_MINOR_SHMEM);
    for (kind, mode) in
        [(Kind::Anonymous, MISSING), (Kind::Anonymous, WP), (Kind::Shared, MISSING), (Kind::PrivateFile, 3)]
    {
        let room = Room::new(kind, 2);
        let calls = pager.register(room.start, room.bytes, mode).map(|calls| calls >> 5 & 1);
        equal((kind, mode), calls, Ok(1));
    }
    let room = Room::new(Kind::Shared, 2);
    let calls = pager.register(room.start, room.bytes, UFFDIO_REGISTER_MODE_MINOR).map(|calls| calls >> 5 & 1);
    equal("minor", calls, Ok(1));
}

/// Arguments, and which is looked at first.
fn refused() {
    let (from, to, pager) = rooms(4, FEATURES, MISSING);
    let (a, b) = (to.start, from.start);
    let asks = |what, dst, src, len, mode, wanted: Answer| equal(what, pager.move_pages(dst, src, len, mode), wanted);
    let nothing = Err((EINVAL, 0));
    asks("no page's", a + 1, b, PAGE, 0, nothing);
    asks("from no page's", a, b + 1, PAGE, 0, nothing);
    asks("a part of a page", a, b, PAGE - 1, 0, nothing);
    asks("no bytes", a, b, 0, 0, nothing);
    asks("to the top", TOP, b, PAGE, 0, nothing);
    asks("from the top", a, TOP, PAGE, 0, nothing);
    asks("wrapping", u64::MAX - 0xfff, b, PAGE, 0, nothing);
    asks("from a range that wraps", a, u64::MAX - 0xfff, PAGE, 0, nothing);
    asks("more than there is", a, b, u64::MAX - 0xfff, 0, nothing);
    asks("a mode", a, b, PAGE, 4, nothing);
    asks("all modes", a, b, PAGE, u64::MAX, nothing);
    asks("a mode, before the areas", FAR, FAR, PAGE, 4, nothing);
    asks("nowhere", FAR, b, PAGE, 0, fails(ENOENT));
    asks("from nowhere", a, FAR, PAGE, 0, fails(ENOENT));
    asks("from and to nowhere", FAR, FAR, PAGE, HOLES, fails(ENOENT));
    asks("to the end", TOP - PAGE, b, PAGE, 0, fails(ENOENT));
    asks("a first page", NOWHERE, b, PAGE, 0, fails(ENOENT));
    asks("across its area", a, b, 5 * PAGE, 0, fails(EINVAL));
    asks("with tags", a | 1 << 56, b, PAGE, 0, nothing);
    asks("from tags", a, b | 1 << 56, PAGE, 0, nothing);
    asks("to its source", b, b, PAGE, 0, fails(EINVAL));
    asks("the other way", b, a, PAGE, 0, fails(EINVAL));
    equal("no structure", call(IOCTL, [pager.0.into(), 0xc028_aa05, NOWHERE]), Err(EFAULT));
    equal("before the features", Pager::open(0).map(|early| early.move_pages(a, b, PAGE, 0)), Ok(nothing));
    asks("one", a, b, PAGE, 0, moved(1));
    asks("all, from a hole", a + PAGE, b, PAGE, 0, fails(ENOENT));
    asks("to what is there", a, b + PAGE, PAGE, 0, fails(EEXIST));
    asks("both", a, b, PAGE, 0, fails(EEXIST));
    asks("up to the end", a + PAGE, b + PAGE, 3 * PAGE, 0, moved(3));
    // The pages of a copy of the process are not the pager's.
    let (from, to) = (source(2), (a, to));
    apart(|| equal("of another process", pager.move_pages(to.0, from.start, PAGE, 0), Err((EINVAL, 0))));
    pager.unregister(to.1.start, to.1.bytes).expect("registered");
    to.1.advise(0, 4, MADV_DONTNEED).expect("mapped");
    equal("not registered", pager.move_pages(a, from.start, PAGE, 0), fails(EINVAL));
}

/// Which areas pages move between.
fn areas() {
    let (from, to, own) = rooms(4, FEATURES, MISSING);
    let ask = |what, dst, src, wanted| equal(what, own.move_pages(dst, src, PAGE, 0), wanted);
    let another = Room::new(Kind::Anonymous, 2);
    let others = pager(FEATURES);
    others.register(another.start, another.bytes, MISSING).expect("memory");
    ask("another's", another.start, from.start, fails(EINVAL));
    let file = Room::new(Kind::Shared, 2);
    file.write_all();
    ask("from a shared area", to.start, file.start, fails(EINVAL));
    own.register(file.start, file.bytes, MISSING).expect("memory");
    ask("to a shared area", file.start, from.start, fails(EINVAL));
    let private = Room::new(Kind::PrivateFile, 2);
    private.write_all();
    ask("from a file", to.start, private.start, fails(EINVAL));
    own.register(private.start, private.bytes, MISSING).expect("memory");
    ask("to a file", private.start + PAGE, from.start, fails(EINVAL));
    let shared = call(MMAP, [0, 2 * PAGE, RW, SHARED, u64::MAX, 0]).expect("memory");
    put_word(shared, 1);
    ask("from shared memory", to.start, shared, fails(EINVAL));
    // An area that is registered itself, with this one and with another.
    let both = Room::new(Kind::Anonymous, 2);
    both.write_all();
    own.register(both.start, both.bytes, MISSING | WP).expect("memory");
    ask("from a registered area", to.start, both.start, moved(1));
    let theirs = Room::new(Kind::Anonymous, 2);
    theirs.write_all();
    others.register(theirs.start, theirs.bytes, MISSING).expect("memory");
    ask("from another's", to.page(1), theirs.start, moved(1));
    // For stores alone.
    let protected = Room::new(Kind::Anonymous, 2);
    own.register(protected.start, protected.bytes, WP).expect("memory");
    ask("to an area for stores", protected.start, from.start, moved(1));
    equal("their words", (to.read(0), to.read(1), protected.read(0)), (1, 1, 1));
    // Two areas side by side: a range is of one.
    let pair = source(4);
    equal("protected", call(MPROTECT, [pair.start, 2 * PAGE, PROT_READ]), Ok(0));
    equal("from two areas", own.move_pages(to.page(2), pair.page(1), 2 * PAGE, 0), fails(EINVAL));
    equal("to two areas", own.move_pages(to.page(3), pair.page(2), 2 * PAGE, 0), fails(EINVAL));
    // To itself.
    let room = Room::new(Kind::Anonymous, 4);
    room.write(0, 7);
    own.register(room.start, room.bytes, MISSING).expect("memory");
    ask("within an area", room.page(2), room.start, moved(1));
    equal("its word", room.read(2), 7);
}

/// Areas that differ from the target's.
fn unlike_areas() {
    let (from, to, own) = rooms(4, FEATURES, MISSING);
    let ask = |what, wanted: Answer| equal(what, own.move_pages(to.start, from.start, PAGE, 0), wanted);
    let protect = |room: &Room, protection: u64| {
        equal("protected", call(MPROTECT, [room.start, room.bytes, protection]), Ok(0));
    };
    for protection in [PROT_NONE, PROT_READ, RW | PROT_EXEC, PROT_READ | PROT_EXEC, PROT_WRITE] {
        protect(&from, protection);
        equal(protection, own.move_pages(to.start, from.start, PAGE, 0), fails(EINVAL));
        protect(&from, RW);
    }
    for protection in [PROT_NONE, PROT_READ] {
        protect(&from, protection);
        protect(&to, protection);
        equal(("both", protection), own.move_pages(to.start, from.start, PAGE, 0), fails(EINVAL));
    }
    [&from, &to].into_iter().for_each(|room| protect(room, RW | PROT_EXEC));
    ask("both executable", moved(1));
    equal("its word", to.read(0), 1);
    [&from, &to].into_iter().for_each(|room| protect(room, PROT_WRITE));
    equal("both for stores", own.move_pages(to.page(1), from.page(1), PAGE, 0), moved(1));
    [&from, &to].into_iter().for_each(|room| protect(room, RW));
    equal("its word", to.read(1), 2);
    // Locked.
    let (from, to, own) = rooms(4, FEATURES, MISSING);
    let ask = |what, page: u64, wanted: Answer| {
        equal(what, own.move_pages(to.page(page), from.page(page), PAGE, 0), wanted);
    };
    let lock = |room: &Room, how: u64| equal("locked", call(MLOCK2, [room.start, room.bytes, how]), Ok(0));
    lock(&from, 0);
    ask("from a locked area", 0, fails(EINVAL));
    lock(&to, 1);
    ask("both locked", 0, moved(1));
    equal("unlocked", call(MUNLOCK, [from.start, from.bytes]), Ok(0));
    ask("to a locked area", 1, fails(EINVAL));
    equal("unlocked", call(MUNLOCK, [to.start, to.bytes]), Ok(0));
    // Bits that do not count.
    from.advise(0, 4, MADV_DONTFORK).expect("mapped");
    ask("not in children", 1, moved(1));
    from.advise(0, 4, MADV_HUGEPAGE).expect("mapped");
    ask("with blocks", 2, moved(1));
    from.advise(0, 4, MADV_WIPEONFORK).expect("mapped");
    ask("zeros in children", 3, moved(1));
    let droppable = call(MMAP, [0, PAGE, RW, MAP_ANONYMOUS | MAP_DROPPABLE, u64::MAX, 0]).expect("memory");
    put_word(droppable, 5);
    to.advise(0, 1, MADV_DONTNEED).expect("mapped");
    equal("droppable", own.move_pages(to.start, droppable, PAGE, 0), moved(1));
    equal("its word", to.read(0), 5);
}

/// The contents move, and the page: no byte is copied.
fn values() {
    let (from, to, own) = rooms(8, FEATURES, MISSING);
    let frames = [0, 3, 7].map(|page| frame(from.page(page)));
    equal("all", own.move_pages(to.start, from.start, 8 * PAGE, 0), moved(8));
    equal("the frames", [0, 3, 7].map(|page| frame(to.page(page))), frames);
    equal("present", (present(to.start, 8), present(from.start, 8)), (0xff, 0));
    (0..8).for_each(|page| equal("a word", quiet(*own, || to.read(page)), page + 1));
    (0..8).for_each(|page| equal("zeros", from.read(page), 0));
    (0..8).for_each(|page| quiet(*own, || to.write(page, page + 10)));
    (0..8).for_each(|page| equal("stored", to.read(page), page + 10));
    // And back, over what the loads have brought: nothing.
    from.advise(0, 8, MADV_DONTNEED).expect("mapped");
    own.register(from.start, from.bytes, MISSING).expect("memory");
    equal("back", own.move_pages(from.start, to.start, 8 * PAGE, 0), moved(8));
    equal("a word", from.read(7), 17);
    // In the other order.
    equal("one by one", own.move_pages(to.page(0), from.page(7), PAGE, 0), moved(1));
    equal("one by one", own.move_pages(to.page(7), from.page(0), PAGE, 0), moved(1));
    equal("words", (to.read(0), to.read(7)), (17, 10));
    // The source is asked for again.
    let copies = || equal("zeros", own.zero(from.start, PAGE, 0), moved(1));
    equal("missing again", served(*own, from.start, 0, || from.read(0), copies), 0);
}

/// The bits that `pagemap` shows of pages that have moved.
fn present_pages() {
    let (from, to, own) = rooms(4, FEATURES, MISSING);
    equal("before", (shown(from.start), shown(to.start)), ([OWN; 4], [0; 4]));
    equal("two", own.move_pages(to.page(1), from.page(1), 2 * PAGE, 0), moved(2));
    equal("after", (shown(from.start), shown(to.start)), ([OWN, 0, 0, OWN], [0, OWN, OWN, 0]));
    // Pages that no store has come to since.
    let (from, to, own) = rooms(4, FEATURES, MISSING);
    from.advise(0, 2, MADV_COLD).expect("mapped");
    equal("cold", own.move_pages(to.start, from.start, 4 * PAGE, 0), moved(4));
    equal("shown", shown(to.start), [OWN; 4]);
    equal("words", (to.read(0), to.read(1)), (1, 2));
    // After a change of protection and back.
    let (from, to, own) = rooms(2, FEATURES, MISSING);
    for protection in [PROT_READ, PROT_NONE, RW] {
        equal("protected", call(MPROTECT, [from.start, from.bytes, protection]), Ok(0));
    }
    equal("writable again", own.move_pages(to.start, from.start, 2 * PAGE, 0), moved(2));
    equal("words", (to.read(0), to.read(1)), (1, 2));
    quiet(*own, || to.write(0, 8));
    equal("stored", to.read(0), 8);
    // Pages that have come by a call.
    let (to, own) = watched(Kind::Anonymous, 4, FEATURES, MISSING);
    let contents = source(1);
    equal("copied", own.copy(to.start, contents.start, PAGE, 0), moved(1));
    equal("a copy", own.move_pages(to.page(1), to.start, PAGE, 0), moved(1));
    equal("again", own.move_pages(to.page(2), to.page(1), PAGE, 0), moved(1));
    equal("shown", shown(to.start), [0, 0, OWN, 0]);
    equal("its word", to.read(2), 1);
    // By `mremap`.
    let other = source(2);
    let place = Room::new(Kind::Anonymous, 2);
    let fixed = MREMAP_MAYMOVE | MREMAP_FIXED;
    equal("remapped", call(MREMAP, [other.start, 2 * PAGE, 2 * PAGE, fixed, place.start]), Ok(place.start));
    equal("moved by both", own.move_pages(to.page(3), place.page(1), PAGE, 0), moved(1));
    equal("its word", to.read(3), 2);
    equal("mapped", call(MMAP, [other.start, 2 * PAGE, RW, PRIVATE | MAP_FIXED, u64::MAX, 0]), Ok(other.start));
}

/// Write-protected pages, at the source and in the target's area.
fn marked() {
    let (from, to, own) = rooms(4, FEATURES, MISSING | WP);
    own.register(from.start, from.bytes, WP).expect("memory");
    own.protect(from.start, 2 * PAGE).expect("registered");
    equal("before", shown(from.start), [OWN | PM_UFFD_WP, OWN | PM_UFFD_WP, OWN, OWN]);
    equal("protected", own.move_pages(to.start, from.start, 3 * PAGE, 0), moved(3));
    equal("after", (shown(from.start), shown(to.start)), ([0, 0, 0, OWN], [OWN, OWN, OWN, 0]));
    quiet(*own, || to.write(0, 9));
    equal("stored", to.read(0), 9);
    own.protect(to.start, PAGE).expect("registered");
    reported(*own, to.start, 10);
    // Markers, where no page is.
    own.protect(to.page(3), PAGE).expect("registered");
    equal("a marker", own.move_pages(to.page(3), from.page(3), PAGE, 0), fails(EEXIST));
    own.unprotect(to.page(3), PAGE).expect("registered");
    equal("none", own.move_pages(to.page(3), from.page(3), PAGE, 0), moved(1));
    own.protect(from.start, PAGE).expect("registered");
    to.advise(0, 4, MADV_DONTNEED).expect("mapped");
    equal("from a marker", own.move_pages(to.start, from.start, PAGE, 0), fails(EFAULT));
    equal("from a marker, with holes", own.move_pages(to.start, from.start, PAGE, HOLES), fails(EFAULT));
    own.unprotect(from.start, PAGE).expect("registered");
    equal("from nothing", own.move_pages(to.start, from.start, PAGE, HOLES), moved(1));
    // The protection that a store ends by itself.
    let own = pager(FEATURES | UFFD_FEATURE_WP_ASYNC);
    let (from, to) = (source(2), Room::new(Kind::Anonymous, 2));
    [&from, &to].into_iter().for_each(|room| _ = own.register(room.start, room.bytes, WP).expect("memory"));
    own.protect(from.start, from.bytes).expect("registered");
    equal("async", own.move_pages(to.start, from.start, 2 * PAGE, 0), moved(2));
    equal("shown", shown(to.start), [OWN, OWN]);
}

/// Does something beside a copy of this process, which then ends with `last`.
fn beside_a_copy(last: impl FnOnce(), here: impl FnOnce()) {
    let stop = shared::<AtomicU32>();
    let child = process::spawn(|| {
        while stop.load(Ordering::Acquire) == 0 {
            nap();
        }
        last();
        wrong()
    });
    here();
    stop.store(1, Ordering::Release);
    equal("a copy of this process", process::wait(child), 0);
}

/// Pages that a copy of the process has too, or has had.
fn forked() {
    let (from, to, own) = rooms(4, FEATURES, MISSING);
    // A page that has moved is at its old place in the child.
    let childs = || equal("a child's", (from.read(0), from.read(1), from.read(3)), (1, 2, 4));
    beside_a_copy(childs, || {
        equal("shared", own.move_pages(to.start, from.start, PAGE, 0), fails(EBUSY));
        equal("shared, with holes", own.move_pages(to.start, from.start, 4 * PAGE, HOLES), fails(EBUSY));
        equal("read", from.read(0), 1);
        equal("shared still", own.move_pages(to.start, from.start, PAGE, 0), fails(EBUSY));
        // A store makes the page the process's own.
        from.write(0, 20);
        from.write(1, 21);
        equal("up to what is shared", own.move_pages(to.start, from.start, 4 * PAGE, 0), until(2));
        equal("words", (to.read(0), to.read(1)), (20, 21));
        equal("over it", own.move_pages(to.start, from.page(2), PAGE, 0), fails(EEXIST));
    });
    // Linux refuses what a child had that has ended, up to the next store.
    from.write(2, 22);
    equal("written", own.move_pages(to.page(2), from.page(2), PAGE, 0), moved(1));
    equal("its word", to.read(2), 22);
    // A child may move pages of its own, by a pager of its own.
    let from = source(2);
    apart(|| {
        let (to, own) = watched(Kind::Anonymous, 2, FEATURES, MISSING);
        equal("a child's shared page", own.move_pages(to.start, from.start, PAGE, 0), fails(EBUSY));
        from.write(0, 5);
        equal("its own", own.move_pages(to.start, from.start, PAGE, 0), moved(1));
        equal("its word", to.read(0), 5);
    });
    equal("the parent's", from.read(0), 1);
}

/// Zeros that were only read.
fn zeros() {
    let (to, own) = watched(Kind::Anonymous, 4, FEATURES, MISSING);
    let from = Room::new(Kind::Anonymous, 4);
    from.read_all();
    equal("before", shown(from.start), [PM_PRESENT; 4]);
    equal("zeros", own.move_pages(to.start, from.start, 2 * PAGE, 0), moved(2));
    equal(
        "after",
        (shown(from.start), shown(to.start)),
        ([0, 0, PM_PRESENT, PM_PRESENT], [PM_PRESENT, PM_PRESENT, 0, 0]),
    );
    equal("read", quiet(*own, || to.read(0)), 0);
    quiet(*own, || to.write(0, 6));
    equal("stored", (to.read(0), to.read(1)), (6, 0));
    // Those of a call.
    equal("zeros", own.zero(to.page(2), PAGE, 0), moved(1));
    equal("moved", own.move_pages(to.page(3), to.page(2), PAGE, 0), moved(1));
    equal("read", quiet(*own, || to.read(3)), 0);
    // Among pages, shared with a child.
    let (from, to, own) = rooms(6, FEATURES, MISSING);
    from.advise(2, 2, MADV_DONTNEED).expect("mapped");
    equal("zeros", (from.read(2), from.read(3)), (0, 0));
    equal("among pages", own.move_pages(to.start, from.start, 6 * PAGE, 0), moved(6));
    equal("words", (to.read(1), to.read(2), to.read(4)), (2, 0, 5));
    let from = Room::new(Kind::Anonymous, 1);
    from.read_all();
    to.advise(0, 1, MADV_DONTNEED).expect("mapped");
    apart(|| equal("a child's zeros", from.read(0), 0));
    equal("zeros after a fork", own.move_pages(to.start, from.start, PAGE, 0), moved(1));
    // Write-protected ones.
    let (to, own) = watched(Kind::Anonymous, 2, FEATURES, MISSING | WP);
    let from = Room::new(Kind::Anonymous, 1);
    own.register(from.start, from.bytes, WP).expect("memory");
    from.read_all();
    own.protect(from.start, PAGE).expect("registered");
    equal("protected zeros", own.move_pages(to.start, from.start, PAGE, 0), moved(1));
    equal("shown", shown(to.start), [PM_PRESENT, 0]);
}

/// Pages that are not there.
fn holes() {
    let (from, to, own) = rooms(8, FEATURES, MISSING);
    from.advise(2, 2, MADV_DONTNEED).expect("mapped");
    equal("up to a hole", own.move_pages(to.start, from.start, 8 * PAGE, 0), until(2));
    equal("from a hole", own.move_pages(to.page(2), from.page(2), PAGE, 0), fails(ENOENT));
    equal("from holes", own.move_pages(to.page(2), from.page(2), 6 * PAGE, HOLES), moved(6));
    equal("present", (present(to.start, 8), present(from.start, 8)), (0xf3, 0));
    equal("all holes", own.move_pages(to.page(2), from.start, 2 * PAGE, HOLES), moved(2));
    equal("holes, again", own.move_pages(to.page(2), from.start, 6 * PAGE, HOLES), until(2));
    equal("holes, over a page", own.move_pages(to.start, from.start, PAGE, HOLES), fails(EEXIST));
    equal("nothing is there", present(to.page(2), 2), 0);
    let zeros = || equal("zeros", own.zero(to.page(2), PAGE, 0), moved(1));
    equal("missing still", served(*own, to.page(2), 0, || to.read(2), zeros), 0);
    // Without a table: nothing near it was ever touched.
    let far = |number: u64| {
        let at = FAR + number * (1 << 30);
        call(MMAP, [at, 4 * BLOCK, RW, PRIVATE | MAP_FIXED, u64::MAX, 0]).expect("memory")
    };
    let [here, there] = [far(1), far(2)];
    own.register(there, 4 * BLOCK, MISSING).expect("memory");
    equal("no table", own.move_pages(there, here, PAGE, 0), fails(ENOENT));
    equal("no table, to a page", own.move_pages(to.start, here, PAGE, 0), fails(ENOENT));
    equal("no table, to a page, with holes", own.move_pages(to.start, here + BLOCK, PAGE, HOLES), fails(EEXIST));
    equal("a table by now", own.move_pages(to.start, here + BLOCK, PAGE, 0), fails(EEXIST));
    equal("no table, with holes", own.move_pages(there, here, 3 * BLOCK, HOLES), Ok(3 * BLOCK as i64));
    put_word(here + BLOCK + 5 * PAGE, 3);
    equal("one page", own.move_pages(there, here, 3 * BLOCK, HOLES), Ok(3 * BLOCK as i64));
    equal("is there", word(there + BLOCK + 5 * PAGE), 3);
    // From another offset in its table.
    put_word(here + BLOCK + 7 * PAGE, 4);
    let (at, from) = (there + 2 * BLOCK - 2 * PAGE, here + BLOCK + 5 * PAGE);
    equal("across tables", own.move_pages(at, from, BLOCK, HOLES), Ok(BLOCK as i64));
    equal("is there", word(there + 2 * BLOCK), 4);
    for at in [here, there] {
        equal("unmapped", call(MUNMAP, [at, 4 * BLOCK]), Ok(0));
    }
}

/// Ranges that overlap: one page after the other.
fn overlapping() {
    let room = |written: &[u64]| {
        let (room, own) = watched(Kind::Anonymous, 8, FEATURES, WP);
        written.iter().for_each(|&page| room.write(page, page + 1));
        (room, own)
    };
    let (area, own) = room(&[1, 2, 3, 4]);
    equal("down by one", own.move_pages(area.page(0), area.page(1), 4 * PAGE, 0), moved(4));
    equal("present", present(area.start, 8), 0b1111);
    equal("words", [0, 1, 2, 3].map(|page| area.read(page)), [2, 3, 4, 5]);
    let (area, own) = room(&[2, 3, 4, 5]);
    equal("down by two", own.move_pages(area.page(0), area.page(2), 4 * PAGE, 0), moved(4));
    equal("words", [0, 1, 2, 3].map(|page| area.read(page)), [3, 4, 5, 6]);
    let (area, own) = room(&[0, 1]);
    equal("up by one", own.move_pages(area.page(1), area.page(0), 2 * PAGE, 0), fails(EEXIST));
    equal("up by two", own.move_pages(area.page(2), area.page(0), 3 * PAGE, 0), moved(3));
    equal("present", present(area.start, 8), 0b1_1000);
    // A page that goes on to the next hole, again and again.
    let (area, own) = room(&[0]);
    equal("up by one, with holes", own.move_pages(area.page(1), area.page(0), 5 * PAGE, HOLES), moved(5));
    equal("present", present(area.start, 8), 0b10_0000);
    equal("its word", area.read(5), 1);
    let (area, own) = room(&[0, 1]);
    equal("up by two, with holes", own.move_pages(area.page(2), area.page(0), 4 * PAGE, HOLES), moved(4));
    equal("present", present(area.start, 8), 0b11_0000);
    let (area, own) = room(&[0, 2]);
    equal("up to a page", own.move_pages(area.page(1), area.page(0), 4 * PAGE, HOLES), until(1));
    equal("present", present(area.start, 8), 0b110);
    // To itself.
    equal("itself", own.move_pages(area.page(1), area.page(1), PAGE, 0), fails(EEXIST));
    equal("a hole to itself", own.move_pages(area.page(4), area.page(4), 2 * PAGE, HOLES), moved(2));
    equal("a hole to itself", own.move_pages(area.page(4), area.page(4), PAGE, 0), fails(ENOENT));
}

/// Guards and poison, on both sides.
fn other_entries() {
    let (from, to, own) = rooms(4, FEATURES | 1 << 14, MISSING);
    own.register(from.start, from.bytes, MISSING).expect("memory");
    from.advise(0, 1, MADV_GUARD_INSTALL).expect("mapped");
    equal("from a guard", own.move_pages(to.start, from.start, PAGE, 0), fails(EFAULT));
    equal("from a guard, with holes", own.move_pages(to.start, from.start, PAGE, HOLES), fails(EFAULT));
    from.advise(1, 1, MADV_DONTNEED).expect("mapped");
    equal("poisoned", own.poison(from.page(1), PAGE, 0), moved(1));
    equal("from poison", own.move_pages(to.start, from.page(1), PAGE, HOLES), fails(EFAULT));
    equal("up to a guard", own.move_pages(to.start, from.page(2), 2 * PAGE, 0), moved(2));
    to.advise(2, 1, MADV_GUARD_INSTALL).expect("mapped");
    equal("poisoned", own.poison(to.page(3), PAGE, 0), moved(1));
    equal("over a guard", own.move_pages(to.page(2), to.start, PAGE, 0), fails(EEXIST));
    equal("over poison", own.move_pages(to.page(3), to.start, PAGE, 0), fails(EEXIST));
    equal("up to a guard", own.move_pages(to.page(1), to.start, PAGE, 0), fails(EEXIST));
    equal("a hole over a guard", own.move_pages(to.page(2), from.page(2), PAGE, HOLES), fails(EEXIST));
    equal("its words", (to.read(0), to.read(1)), (3, 4));
}

/// Threads that wait for the pages.
fn woken() {
    let (from, to, own) = rooms(6, FEATURES, MISSING);
    let moves = |page: u64| own.move_pages(to.page(page), from.page(page), PAGE, 0);
    let serves = || equal("moved", moves(0), moved(1));
    equal("read", served(*own, to.page(0), 0, || to.read(0), serves), 1);
    let serves = || equal("moved", moves(1), moved(1));
    served(*own, to.page(1), UFFD_PAGEFAULT_FLAG_WRITE, || to.write(1, 30), serves);
    equal("stored", to.read(1), 30);
    // Not woken by the call, but by a wake.
    let done = AtomicU32::new(0);
    let waits = || {
        let value = to.read(2);
        done.store(1, Ordering::Release);
        value
    };
    let serves = || {
        equal("quietly", own.move_pages(to.page(2), from.page(2), PAGE, QUIET), moved(1));
        (0..20).for_each(|_| nap());
        equal("waits still", done.load(Ordering::Acquire), 0);
        own.wake(to.page(2), PAGE).expect("a range");
    };
    equal("read", served(*own, to.page(2), 0, waits, serves), 3);
    // As far as it has come.
    from.advise(5, 1, MADV_DONTNEED).expect("mapped");
    let serves = || equal("up to a hole", own.move_pages(to.page(3), from.page(3), 3 * PAGE, 0), until(2));
    equal("read", served(*own, to.page(4), 0, || to.read(4), serves), 5);
    // A hole brings nothing, but wakes.
    let serves = || {
        equal("a hole", own.move_pages(to.page(5), from.page(5), PAGE, HOLES), moved(1));
        while own.read_one().is_err() {
            nap();
        }
        equal("zeros", own.zero(to.page(5), PAGE, 0), moved(1));
    };
    equal("read", served(*own, to.page(5), 0, || to.read(5), serves), 0);
}

/// Pagers with other features.
fn features_of_the_pager() {
    let (from, to, basic) = rooms(2, 0, MISSING);
    equal("without the feature", basic.move_pages(to.start, from.start, PAGE, 0), moved(1));
    drop(basic);
    let (from, to, sigbus) = rooms(2, UFFD_FEATURE_SIGBUS, MISSING);
    equal("SIGBUS", probe::read(to.start).is_err(), true);
    equal("moved", sigbus.move_pages(to.start, from.start, PAGE, 0), moved(1));
    equal("read", to.read(0), 1);
}

/// While an event is not read, no page moves.
fn events() {
    let features = FEATURES | UFFD_FEATURE_EVENT_REMOVE;
    let (from, to, own) = rooms(4, features, MISSING);
    equal("moved", own.move_pages(to.start, from.start, PAGE, 0), moved(1));
    let discards = || to.advise(0, 1, MADV_DONTNEED);
    let serves = || {
        let mut polled = 0;
        while own.move_pages(to.page(1), from.page(1), PAGE, 0) != fails(EAGAIN) && polled < 2000 {
            nap();
            to.advise(1, 1, MADV_POPULATE_READ).ok();
            polled += 1;
        }
        equal("no such area, while it is not read", own.move_pages(FAR, FAR, PAGE, 0), fails(EAGAIN));
        equal("no range", own.move_pages(FAR, FAR, 0, 9), fails(EAGAIN));
        loop {
            match own.read_one() {
                Ok(message) if message.event == UFFD_EVENT_REMOVE => break,
                _ => nap(),
            }
        }
    };
    equal("discarded", beside(discards, serves).0, Ok(()));
    equal("the source's pages are no event's", own.move_pages(to.start, from.page(2), PAGE, 0), moved(1));
}

/// Accesses of the kernel to pages that have moved.
fn kernel_accesses() {
    let (from, to, own) = rooms(2, FEATURES, MISSING);
    equal("moved", own.move_pages(to.start, from.start, 2 * PAGE, 0), moved(2));
    let [reads, writes] = File::pipe(0).expect("a pipe");
    equal("write", call(WRITE, [*writes, to.start, 8]), Ok(8));
    equal("read", call(READ, [*reads, to.page(1), 8]), Ok(8));
    equal("its word", to.read(1), 1);
    equal("zeros", call(WRITE, [*writes, from.start, 8]), Ok(8));
    equal("read", call(READ, [*reads, to.start, 8]), Ok(8));
    equal("its word", to.read(0), 0);
}

/// Blocks of a kernel that has them.
fn blocks() -> (Room, Room, u64, u64) {
    let rooms = [(); 2].map(|()| Room::new(Kind::Anonymous, 3 * 512));
    let [from, to] = [&rooms[0], &rooms[1]].map(|room| room.start.next_multiple_of(BLOCK));
    call(MADVISE, [from, 2 * BLOCK, MADV_HUGEPAGE]).expect("mapped");
    for page in 0..1024 {
        put_word(from + page * PAGE, page + 1);
    }
    let [first, second] = rooms;
    (first, second, from, to)
}

/// Whole blocks, and what there is of them.
fn huge() {
    let (_from, room, from, to) = blocks();
    let own = pager(FEATURES);
    own.register(room.start, room.bytes, MISSING).expect("memory");
    equal("two blocks", own.move_pages(to, from, 2 * BLOCK, 0), Ok(2 * BLOCK as i64));
    let is_right = |at: u64, first: u64| (0..1024).all(|page| word(at + page * PAGE) == first + page);
    holds("the words", is_right(to, 1));
    equal("present", (present(from, 16), present(from + BLOCK, 16)), (0, 0));
    (0..1024).for_each(|page| put_word(to + page * PAGE, page + 2));
    holds("stored", is_right(to, 2));
    // Over a block, and over a page of its range.
    equal("to a block", own.move_pages(to, to + BLOCK, BLOCK, 0), fails(EEXIST));
    equal("a page to it", own.move_pages(to + 5 * PAGE, to + BLOCK, PAGE, 0), fails(EEXIST));
    // To other offsets.
    call(MADVISE, [to, PAGE, MADV_DONTNEED]).expect("mapped");
    equal("by a page", own.move_pages(to, to + PAGE, 511 * PAGE, 0), Ok(511 * PAGE as i64));
    equal("words", [0, 1, 510].map(|page| word(to + page * PAGE)), [3, 4, 513]);
    equal("present", present(to + 500 * PAGE, 16), 0xf7ff);
    // With a child.
    let (_from, _room, shared, _) = blocks();
    beside_a_copy(
        || equal("a child's", (word(shared), word(shared + BLOCK)), (1, 513)),
        || {
            equal("a page of a shared block", own.move_pages(to + 511 * PAGE, shared, PAGE, 0), fails(EBUSY));
            equal("a shared block", own.move_pages(to + BLOCK, shared, BLOCK, HOLES), fails(EEXIST));
            call(MADVISE, [to + BLOCK, BLOCK, MADV_DONTNEED]).expect("mapped");
            equal("a shared block", own.move_pages(to + BLOCK, shared, BLOCK, HOLES), fails(EBUSY));
            put_word(shared, 1);
            equal("written", own.move_pages(to + 511 * PAGE, shared, PAGE, 0), moved(1));
            equal("up to what is shared", own.move_pages(to + BLOCK, shared, BLOCK, HOLES), until(1));
        },
    );
}

/// Parts of blocks.
fn huge_parts() {
    let (_from, room, from, to) = blocks();
    let own = pager(FEATURES);
    own.register(room.start, room.bytes, MISSING).expect("memory");
    equal("a page of a block", own.move_pages(to + 3 * PAGE, from + 7 * PAGE, PAGE, 0), moved(1));
    equal("its word", word(to + 3 * PAGE), 8);
    equal("its neighbours", (word(from + 6 * PAGE), word(from + 8 * PAGE)), (7, 9));
    equal("up to that page", own.move_pages(to + 20 * PAGE, from, 20 * PAGE, 0), until(7));
    equal("a few", own.move_pages(to + 40 * PAGE, from + 8 * PAGE, 30 * PAGE, 0), moved(30));
    equal("words", [40, 69].map(|page| word(to + page * PAGE)), [9, 38]);
    equal("the rest", own.move_pages(to + BLOCK, from + BLOCK, BLOCK, 0), Ok(BLOCK as i64));
    equal("words", [0, 511].map(|page| word(to + BLOCK + page * PAGE)), [513, 1024]);
    // A block whose target has one page.
    let (_from, _room, again, _) = blocks();
    call(MADVISE, [to, 2 * BLOCK, MADV_DONTNEED]).expect("mapped");
    equal("zeros", own.zero(to + 100 * PAGE, PAGE, 0), moved(1));
    equal("up to it", own.move_pages(to, again, BLOCK, 0), until(100));
    equal("words", [0, 99].map(|page| word(to + page * PAGE)), [1, 100]);
    equal("the next", word(again + 100 * PAGE), 101);
    // A fault at the emptied place of a block brings what is wanted there.
    put_word(from + BLOCK, 5);
    equal("zeros around", word(from + BLOCK + PAGE), 0);
}

/// Tags go with their pages.
fn tagged() {
    let [from, to] = [(); 2].map(|()| map(4 * PAGE, TAGGED).expect("memory"));
    let own = pager(FEATURES);
    own.register(to, 4 * PAGE, MISSING).expect("memory");
    for page in 0..4 {
        put_word(from + page * PAGE, page + 1);
        tags::set_tags((from + page * PAGE) | tags::tag(page + 3), PAGE);
    }
    equal("tagged", own.move_pages(to, from, 3 * PAGE, 0), moved(3));
    let tag = |at: u64| tags::ldg(at) & tags::TAG_BITS;
    for page in 0..3 {
        let [first, last] = [0, PAGE - 16].map(|offset| tag(to + page * PAGE + offset));
        equal("its tags", (first, last), (tags::tag(page + 3), tags::tag(page + 3)));
        equal("its word", word(to + page * PAGE), page + 1);
    }
    equal("none is left", tag(from), 0);
    // Areas of which one has tags.
    let plain = Room::new(Kind::Anonymous, 2);
    plain.write_all();
    equal("without tags", own.move_pages(to + 3 * PAGE, plain.start, PAGE, 0), fails(EINVAL));
    own.register(plain.start, plain.bytes, MISSING).expect("memory");
    equal("to an area without", own.move_pages(plain.start, from + 3 * PAGE, PAGE, 0), fails(EINVAL));
    // Zeros, and pages that had none before their area has had.
    equal("zeros", word(from), 0);
    equal("zeros", own.move_pages(to + 3 * PAGE, from, PAGE, 0), moved(1));
    equal("its tag", tag(to + 3 * PAGE), 0);
    let late = source(2);
    equal("protected", call(MPROTECT, [late.start, late.bytes, TAGGED]), Ok(0));
    call(MADVISE, [to, 4 * PAGE, MADV_DONTNEED]).expect("mapped");
    equal("with tags since", own.move_pages(to, late.start, 2 * PAGE, 0), moved(2));
    equal("its word", (word(to), tag(to)), (1, 0));
    tags::set_tags(to | tags::tag(9), 16);
    equal("its tag", tag(to), tags::tag(9));
}

/// Calls after a move: a discard, a fork, the end of the registration.
fn discarded() {
    let (from, to, own) = rooms(4, FEATURES, MISSING);
    equal("moved", own.move_pages(to.start, from.start, 4 * PAGE, 0), moved(4));
    to.advise(0, 1, MADV_DONTNEED).expect("mapped");
    let zeros = || equal("zeros", own.zero(to.start, PAGE, 0), moved(1));
    equal("missing", served(*own, to.start, 0, || to.read(0), zeros), 0);
    apart(|| {
        to.write(1, 50);
        equal("a child's", (to.read(1), to.read(2), from.read(2)), (50, 3, 0));
    });
    equal("the parent's", (to.read(1), to.read(2)), (2, 3));
    own.unregister(to.start, to.bytes).expect("registered");
    equal("unmapped", call(MUNMAP, [from.start, from.bytes]), Ok(0));
    equal("stays", (to.read(2), to.read(3)), (3, 4));
    equal("mapped", call(MMAP, [from.start, from.bytes, RW, PRIVATE | MAP_FIXED, u64::MAX, 0]), Ok(from.start));
}

/// Two threads move the same pages to and fro, and a third writes to them: no word is lost.
fn threads() {
    const PAGES: u64 = 16;
    let own = pager(FEATURES);
    let rooms = [source(PAGES), Room::new(Kind::Anonymous, PAGES)];
    rooms.iter().for_each(|room| _ = own.register(room.start, room.bytes, WP).expect("memory"));
    let counts = [(); 2].map(|()| AtomicU64::new(0));
    all_at_once(2, |thread| {
        for _ in 0..400 {
            let (from, to) = (&rooms[thread], &rooms[1 - thread]);
            for page in 0..PAGES {
                let done = own.move_pages(to.page(page), from.page(page), PAGE, 0);
                counts[thread].fetch_add(u64::from(done == moved(1)), Ordering::Relaxed);
            }
        }
    });
    holds("each has moved some", counts.iter().all(|count| count.load(Ordering::Relaxed) != 0));
    for page in 0..PAGES {
        let places = [0, 1].map(|room| present(rooms[room].page(page), 1));
        equal("in one place", places[0] + places[1], 1);
        equal("its word", rooms[(places[1] != 0) as usize].read(page), page + 1);
    }
}

/// Many pages at once, over several tables.
fn long() {
    const PAGES: u64 = 1300;
    let (from, to, own) = rooms(PAGES, FEATURES, MISSING);
    equal("all", own.move_pages(to.start, from.start, PAGES * PAGE, 0), moved(PAGES));
    holds("the words", (0..PAGES).all(|page| to.read(page) == page + 1));
    equal("shown", (shown(from.start), shown(to.page(PAGES - 2))), ([0; 2], [OWN; 2]));
    let own = pager(FEATURES);
    own.register(from.start, from.bytes, MISSING).expect("memory");
    from.advise(0, PAGES, MADV_DONTNEED).expect("mapped");
    to.advise(700, 1, MADV_DONTNEED).expect("mapped");
    equal("back, up to a hole", own.move_pages(from.start, to.start, PAGES * PAGE, 0), until(700));
    let (at, rest) = (from.page(700), (PAGES - 700) * PAGE);
    equal("the rest", own.move_pages(at, to.page(700), rest, HOLES), Ok(rest as i64));
    holds("the words", (0..PAGES).filter(|&page| page != 700).all(|page| from.read(page) == page + 1));
}
