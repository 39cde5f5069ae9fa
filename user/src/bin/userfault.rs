//! userfaultfd as a program sees it: each call and its refusals, messages and events, and what stays write-protected through
//! all that happens to pages. The answers are Linux's. `userfault` runs all parts, `userfault PART...` some.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::mem::ManuallyDrop;
use granule_user::prelude::*;
use granule_user::served::{KINDS, Kind, OwnPager, Room, nap, pager, quiet, reported, served, wait_for, watched};

entry!(run);
own!(call, file, word, put_word);

const MISSING: u64 = UFFDIO_REGISTER_MODE_MISSING;
const WP: u64 = UFFDIO_REGISTER_MODE_WP;
/// Bytes of a block.
const BLOCK: u64 = 2 << 20;

const PARTS: &[(&str, fn())] = &parts! { named
    api refusals missing protected kept dropped holes blocks unpopulated forks events moved poison kernel close
};

fn run(start: Start) {
    probe::prepare_for(&[SIGBUS]);
    let mut names = start.arguments().skip(1).peekable();
    if names.peek().is_none() {
        PARTS.iter().for_each(|(_, part)| part());
    }
    names.for_each(|name| PARTS.iter().find(|(part, _)| *part == name).expect("a part").1());
    println!("userfault: done");
}

// The memory that is registered.

/// As [`watched`], for write-protection alone: 1 was written to the first page, and then all are protected.
fn guarded(kind: Kind, pages: u64, features: u64) -> (Room, OwnPager) {
    let (room, pager) = watched(kind, pages, features, WP);
    room.write(0, 1);
    room.protect_all(*pager);
    (room, pager)
}

/// Moves all of a room to other memory of as many pages, in whose place it is then.
fn move_to(room: &Room, to: &Room) {
    let flags = MREMAP_MAYMOVE | MREMAP_FIXED;
    call(MREMAP, [room.start, room.bytes, room.bytes, flags, to.start, 0]).expect("mapped");
}

// The parts.

fn api() {
    assert_eq!(Pager::open(2), Err(EINVAL));
    let all = Pager::new(0, 0).expect("no features");
    assert_eq!(all.agree(0).map(|_| ()), Err(EINVAL), "agreed twice");
    all.close().expect("open");
    let refused = Pager::open(UFFD_USER_MODE_ONLY).expect("a userfaultfd");
    assert_eq!(refused.register(0x1000, PAGE, MISSING), Err(EINVAL), "before the features");
    assert_eq!(refused.read_one(), Err(EINVAL));
    let mut api = Api { api: 0xab, features: 0, ioctls: 9 };
    assert_eq!(refused.call(UFFDIO_API, &mut api), Err(EINVAL));
    assert_eq!(api, Api::default());
    let mut api = Api { api: UFFD_API, features: 1 << 40, ioctls: 9 };
    assert_eq!(refused.call(UFFDIO_API, &mut api), Err(EINVAL));
    assert_eq!(api, Api::default());
    // It was not agreed upon, so it can be.
    let api = refused.agree(WRITE_PROTECTION).expect("features");
    assert_eq!((api.api, api.ioctls), (UFFD_API, ioctl_bit(0) | ioctl_bit(1) | ioctl_bit(0x3f)));
    assert_eq!(api.features & WRITE_PROTECTION, WRITE_PROTECTION);
    assert_eq!(refused.call(0xaa7f, &mut [0_u64; 4]), Err(EINVAL));
    refused.close().expect("open");
    assert_eq!(call(USERFAULTFD, [1 << 20, 0]), Err(EINVAL));
}

fn refusals() {
    let room = Room::new(Kind::Anonymous, 4);
    let (pager, other) = (pager(WRITE_PROTECTION), pager(0));
    let Room { start, bytes, .. } = room;
    let ranges = [(start + 1, bytes), (start, bytes - 1), (start, 0), (u64::MAX - 0xfff, PAGE), (0, PAGE)];
    let cases = [0, 8].map(|mode| (start, bytes, mode)).into_iter().chain(ranges.map(|(at, len)| (at, len, MISSING)));
    for (at, len, mode) in cases {
        assert_eq!(pager.register(at, len, mode), Err(EINVAL), "{at:#x} {len:#x} {mode}");
    }
    assert_eq!(pager.unregister(start + 1, PAGE), Err(EINVAL));
    // Registered with nothing: as well.
    assert_eq!(pager.unregister(start, bytes), Ok(()));
    assert_eq!(pager.protect(start, bytes), Err(ENOENT));
    assert_eq!(pager.copy(start, start, PAGE, 0), Err((ENOENT, -2)));
    let basic = ioctl_bit(2) | ioctl_bit(3) | ioctl_bit(4) | ioctl_bit(8);
    assert_eq!(pager.register(start, bytes, MISSING).map(|calls| calls & (basic | ioctl_bit(6))), Ok(basic));
    assert_eq!(other.register(start, bytes, MISSING), Err(EBUSY));
    assert_eq!(other.unregister(start, bytes), Err(EINVAL));
    assert_eq!(pager.protect(start, bytes), Err(ENOENT), "not for that");
    let source = Room::new(Kind::Anonymous, 4);
    assert_eq!(pager.copy(start, source.start, PAGE, UFFDIO_COPY_MODE_WP), Err((EINVAL, -22)));
    assert_eq!(pager.register(start, bytes, MISSING | WP).map(|calls| calls & ioctl_bit(6)), Ok(ioctl_bit(6)));
    assert_eq!(pager.copy(start, source.start, PAGE, 4), Err((EINVAL, 0)));
    assert_eq!(pager.copy(start, 0x1000, PAGE, 0), Err((EFAULT, -14)));
    assert_eq!(pager.copy(start, source.start, 0, 0), Err((EINVAL, 0)));
    assert_eq!(pager.copy(start, source.start, bytes + PAGE, 0), Err((ENOENT, -2)), "beyond its area");
    assert_eq!(pager.zero(start, PAGE, 2), Err((EINVAL, 0)));
    assert_eq!(pager.zero(start, PAGE, 0), Ok(PAGE as i64));
    assert_eq!(pager.zero(start, PAGE, 0), Err((EEXIST, -17)));
    assert_eq!(pager.copy(start, source.start, PAGE, 0), Err((EEXIST, -17)));
    assert_eq!(pager.poison(start, PAGE, 0), Err((EEXIST, -17)));
    // As far as pages are missing.
    assert_eq!(pager.copy(start + 2 * PAGE, source.start, PAGE, 0), Ok(PAGE as i64));
    assert_eq!(pager.copy(start + PAGE, source.start, 3 * PAGE, 0), Err((EAGAIN, PAGE as i64)));
    assert_eq!(pager.write_protect(start, bytes, 4), Err(EINVAL));
    let both = UFFDIO_WRITEPROTECT_MODE_WP | UFFDIO_WRITEPROTECT_MODE_DONTWAKE;
    assert_eq!(pager.write_protect(start, bytes, both), Err(EINVAL));
    assert_eq!(pager.wake(start, 0), Err(EINVAL));
    assert_eq!(pager.wake(start, bytes), Ok(()));
    // A file that may never be written.
    let sealed = file(1);
    let read_only = call(MMAP, [0, PAGE, PROT_READ, MAP_SHARED, sealed, 0]).expect("memory");
    assert_eq!(pager.register(read_only, PAGE, MISSING).map(drop), Ok(()));
    refusals_up_to_the_end(*pager, &room, source.start);
    refusals_behind_the_end(*pager, source.start);
}

/// Behind the end of a file: a shared page would be the file's, and there is none.
fn refusals_behind_the_end(pager: Pager, source: u64) {
    let empty = file(0);
    for (sharing, error) in [(MAP_SHARED, (ENOMEM, -12)), (MAP_PRIVATE, (EFAULT, -14))] {
        let start = call(MMAP, [0, PAGE, RW, sharing, empty, 0]).expect("memory");
        assert_eq!(pager.register(start, PAGE, MISSING).map(drop), Ok(()));
        assert_eq!(pager.copy(start, source, PAGE, 0), Err(error));
        assert_eq!(pager.copy(start, 0x1000, PAGE, 0), Err(error), "no byte is read");
        assert_eq!(pager.zero(start, PAGE, 0), Err(error));
        assert_eq!(pager.poison(start, PAGE, 0), Err((EFAULT, -14)));
    }
}

/// Up to the end of all addresses, where nothing can be registered.
fn refusals_up_to_the_end(pager: Pager, room: &Room, source: u64) {
    let Room { start, bytes, .. } = *room;
    for (at, len) in [(TOP - PAGE, PAGE), (TOP - 2 * PAGE, 2 * PAGE)] {
        assert_eq!(pager.register(at, len, MISSING), Err(EINVAL), "{at:#x}");
        assert_eq!(pager.unregister(at, len), Err(EINVAL), "{at:#x}");
        assert_eq!(pager.copy(at, source, len, 0), Err((ENOENT, -2)), "{at:#x}");
    }
    for (at, len) in [(TOP - PAGE, PAGE), (start + bytes, TOP - start - bytes), (0, TOP)] {
        assert_eq!(pager.wake(at, len), Ok(()), "{at:#x} {len:#x}");
        assert_eq!(pager.zero(at, len, 0), Err((ENOENT, -2)), "{at:#x} {len:#x}");
        assert_eq!(pager.poison(at, len, 0), Err((ENOENT, -2)), "{at:#x} {len:#x}");
    }
    for mode in [UFFDIO_WRITEPROTECT_MODE_WP, 0] {
        let behind = start + bytes;
        assert_eq!(pager.write_protect(behind, TOP - behind, mode), Err(ENOENT));
        assert_eq!(pager.write_protect(TOP - PAGE, PAGE, mode), Err(ENOENT));
    }
    assert_eq!(pager.read(&mut []), Err(EINVAL));
    assert_eq!(pager.read_one(), Err(EAGAIN));
}

fn missing() {
    for kind in KINDS {
        let source = Room::new(Kind::Anonymous, 1);
        let (room, pager) = watched(kind, 8, WRITE_PROTECTION | UFFD_FEATURE_THREAD_ID, MISSING | WP);
        source.write(0, 77);
        let copy = |page: u64, mode| {
            assert_eq!(pager.copy(room.page(page), source.start, PAGE, mode), Ok(PAGE as i64));
        };
        assert_eq!(served(*pager, room.page(0), 0, || room.read(0), || copy(0, 0)), 77, "{kind:?}");
        served(*pager, room.page(1), UFFD_PAGEFAULT_FLAG_WRITE, || room.write(1, 5), || copy(1, 0));
        assert_eq!((room.read(1), word(room.page(1) + 8)), (5, 0));
        // Of zeros; and one that is write-protected at once.
        let zero = || assert_eq!(pager.zero(room.page(2), PAGE, 0), Ok(PAGE as i64));
        assert_eq!(served(*pager, room.page(2), 0, || room.read(2), zero), 0);
        quiet(*pager, || room.write(2, 3));
        assert_eq!(served(*pager, room.page(3), 0, || room.read(3), || copy(3, UFFDIO_COPY_MODE_WP)), 77);
        reported(*pager, room.page(3), 4);
        // Not woken by the copy, but by a wake.
        let serves = || {
            let message = wait_for(*pager);
            copy(4, UFFDIO_COPY_MODE_DONTWAKE);
            pager.wake(room.page(4), PAGE).expect("a range");
            message.words[2] as u32
        };
        let ((value, reader), thread) = beside(|| (room.read(4), process::thread_id()), serves);
        assert_eq!((value, reader), (77, thread));
        // Protected where nothing is: the page comes first, and its copy is not protected.
        pager.protect(room.page(5), PAGE).expect("registered");
        served(*pager, room.page(5), UFFD_PAGEFAULT_FLAG_WRITE, || room.write(5, 9), || copy(5, 0));
        assert_eq!(room.read(5), 9, "{kind:?}");
    }
}

fn protected() {
    for kind in KINDS {
        let (room, pager) = watched(kind, 64, WRITE_PROTECTION | UFFD_FEATURE_EXACT_ADDRESS, WP);
        (0..64).for_each(|page| room.write(page, page));
        room.protect_all(*pager);
        assert_eq!(quiet(*pager, || room.read(1)), 1, "{kind:?}");
        reported(*pager, room.page(1) + 64, 11);
        // It is not any more, and what is beside it is.
        quiet(*pager, || room.write(1, 12));
        let at = room.page(2) + 24;
        let serves = || {
            assert_eq!(wait_for(*pager).words[1], at, "the address itself");
            // Protected once more: nothing changes.
            pager.protect(room.page(2), PAGE).expect("registered");
            assert_eq!(word(at), 0);
            pager.unprotect(room.page(2), PAGE).expect("registered");
        };
        beside(|| put_word(at, 13), serves);
        // Through other protections.
        for access in [PROT_NONE, RW] {
            call(MPROTECT, [room.start, room.bytes, access]).expect("mapped");
        }
        reported(*pager, room.page(3), 33);
        pager.protect(room.page(3), PAGE).expect("registered");
        call(MPROTECT, [room.page(3), PAGE, PROT_NONE]).expect("mapped");
        pager.unprotect(room.page(3), PAGE).expect("registered");
        pager.protect(room.page(3), PAGE).expect("registered");
        call(MPROTECT, [room.page(3), PAGE, RW]).expect("mapped");
        reported(*pager, room.page(3), 34);
        // The end of the registration ends it.
        pager.unregister(room.start, room.bytes).expect("registered");
        quiet(*pager, || room.write(4, 44));
    }
}

/// Calls that discard pages and keep them write-protected.
fn kept() {
    for kind in KINDS {
        let (room, pager) = watched(kind, 16, WRITE_PROTECTION, WP);
        (0..8).for_each(|page| room.write(page, page + 1));
        pager.protect(room.start, 4 * PAGE).expect("registered");
        room.advise(0, 8, MADV_DONTNEED).expect("mapped");
        let contents = |page: u64| if kind == Kind::Shared { page + 1 } else { 0 };
        assert_eq!(room.read(0), contents(0), "{kind:?}");
        if kind == Kind::Anonymous {
            quiet(*pager, || room.write(0, 5));
            quiet(*pager, || room.write(1, 5));
        } else {
            // Of a page that was read since, and of one that was not.
            reported(*pager, room.page(0), 5);
            reported(*pager, room.page(1), 6);
            // And once more, where there is nothing but that.
            room.advise(2, 1, MADV_DONTNEED).expect("mapped");
            reported(*pager, room.page(2), 7);
        }
        quiet(*pager, || room.write(4, 8));
        // By a call of its own, where nothing was ever.
        pager.protect(room.page(8), 4 * PAGE).expect("registered");
        assert_eq!(room.read(8), 0);
        reported(*pager, room.page(8), 9);
        reported(*pager, room.page(9), 10);
        pager.unprotect(room.page(10), PAGE).expect("registered");
        quiet(*pager, || room.write(10, 11));
    }
}

/// Calls that take pages away for good, with their protection.
fn dropped() {
    let (room, pager) = watched(Kind::Shared, 16, WRITE_PROTECTION, WP);
    (0..16).for_each(|page| room.write(page, page + 1));
    // Unmapped, and mapped again.
    room.protect_all(*pager);
    let again = call(MMAP, [room.page(4), PAGE, RW, MAP_SHARED | MAP_FIXED, room.file, 4 * PAGE]);
    assert_eq!(again, Ok(room.page(4)));
    quiet(*pager, || room.write(4, 44));
    reported(*pager, room.page(5), 67);
    // A private copy stays, with its protection, where the file has a hole.
    let (room, pager) = guarded(Kind::PrivateFile, 4, WRITE_PROTECTION);
    call(FALLOCATE, [room.file, PUNCH_HOLE.into(), 0, 4 * PAGE]).expect("a file");
    assert_eq!(room.read(0), 1);
    reported(*pager, room.page(0), 2);
}

/// A file that was cut short, and made longer again, and holes: the zeros that come in place of what goes are
/// write-protected as that was.
fn holes() {
    for kind in [Kind::Shared, Kind::PrivateFile] {
        for touch in [Room::read_all, Room::write_all, Room::leave] {
            let room = Room::new(kind, 16);
            touch(&room);
            let pager = pager(WRITE_PROTECTION);
            pager.register(room.start, room.bytes, WP).expect("memory");
            room.protect_all(*pager);
            call(FTRUNCATE, [room.file, 12 * PAGE]).expect("a file");
            call(FTRUNCATE, [room.file, 16 * PAGE]).expect("a file");
            reported(*pager, room.page(13), 55);
            assert_eq!(room.read(14), 0);
            reported(*pager, room.page(14), 56);
            call(FALLOCATE, [room.file, PUNCH_HOLE.into(), 6 * PAGE, 2 * PAGE]).expect("a file");
            reported(*pager, room.page(6), 66);
            reported(*pager, room.page(5), 67);
            if kind == Kind::Shared {
                assert_eq!(room.advise(8, 2, MADV_REMOVE), Ok(()));
                assert_eq!(room.read(8), 0);
                reported(*pager, room.page(8), 68);
            }
        }
    }
}

fn blocks() {
    for kind in [Kind::Anonymous, Kind::Shared] {
        let whole = Room::new(kind, 3 * 512);
        let start = whole.start.next_multiple_of(BLOCK);
        let room = ManuallyDrop::new(Room { start, bytes: BLOCK, file: whole.file });
        room.advise(0, 512, MADV_HUGEPAGE).expect("mapped");
        let pager = pager(WRITE_PROTECTION);
        pager.register(room.start, room.bytes, WP).expect("memory");
        (0..512).for_each(|page| room.write(page, page + 1));
        // As a whole.
        room.protect_all(*pager);
        assert_eq!(quiet(*pager, || room.read(7)), 8);
        reported(*pager, room.page(7), 70);
        reported(*pager, room.page(8), 80);
        pager.unprotect(room.start, room.bytes).expect("registered");
        quiet(*pager, || room.write(9, 90));
        if kind == Kind::Shared {
            // Discarded as a whole, and brought page by page.
            room.advise(0, 512, MADV_DONTNEED).expect("mapped");
            assert_eq!(room.read(300), 301);
            room.protect_all(*pager);
            room.advise(0, 512, MADV_DONTNEED).expect("mapped");
            reported(*pager, room.page(100), 5);
            pager.unprotect(room.page(101), PAGE).expect("registered");
            quiet(*pager, || room.write(101, 6));
            assert_eq!(room.read(511), 512);
            reported(*pager, room.page(511), 7);
        }
    }
}

fn unpopulated() {
    // Without the feature an anonymous page that was never accessed is not.
    let (room, pager) = watched(Kind::Anonymous, 4, UFFD_FEATURE_PAGEFAULT_FLAG_WP, WP);
    room.protect_all(*pager);
    quiet(*pager, || room.write(0, 1));
    // The page of zeros is.
    assert_eq!(room.read(1), 0);
    room.protect_all(*pager);
    reported(*pager, room.page(1), 2);
    assert_eq!(word(room.page(2)), 0);
}

/// Runs `child` in a child, which ends with what that returns.
fn in_child(child: impl FnOnce() -> bool) {
    assert_eq!(process::run(|| u8::from(!child())), 0, "the child");
}

/// A child has nothing of it, without the event.
fn forks() {
    for kind in KINDS {
        let (room, pager) = guarded(kind, 4, WRITE_PROTECTION);
        let write = |page: u64| {
            room.write(page, 9);
            room.read(page) == 9
        };
        in_child(|| write(0) && write(1));
        reported(*pager, room.page(0), 2);
    }
    // With the event it has all of it.
    for kind in KINDS {
        let (room, pager) = guarded(kind, 4, WRITE_PROTECTION | UFFD_FEATURE_EVENT_FORK);
        let write = |page: u64| {
            room.write(page, 9 + page);
            room.read(page) == 9 + page
        };
        beside(|| serve_child(*pager, room.start), || in_child(|| write(0) && write(1)));
    }
}

/// Reads the event of a fork, and serves two faults of the child: of the pages from `start` on.
fn serve_child(parent: Pager, start: u64) {
    // An event for which there is no descriptor is there to be read again, and all that it is about.
    let limit = |soft, hard| process::limit(RLIMIT_NOFILE, soft, hard).expect("a limit");
    let before = limit(0, 4096);
    until(|| parent.read_one().expect_err("no descriptor") == EMFILE);
    limit(before.soft, before.hard);
    let message = wait_for(parent);
    assert_eq!(message.event, UFFD_EVENT_FORK, "{message:x?}");
    let child = Pager(message.words[0] as u32);
    for page in 0..2 {
        let message = wait_for(child);
        let flags = UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP;
        assert_eq!((message.event, message.words[0]), (UFFD_EVENT_PAGEFAULT, flags), "{message:x?}");
        let at = start + page * PAGE;
        assert_eq!(message.words[1], at);
        child.unprotect(at, PAGE).expect("the child's");
    }
    child.close().expect("open");
}

/// Runs `work` and returns the event that it sends.
fn event_of(pager: Pager, work: impl FnOnce()) -> [u64; 4] {
    let message = beside(|| wait_for(pager), work).0;
    [message.event.into(), message.words[0], message.words[1], message.words[2]]
}

fn events() {
    let features = UFFD_FEATURE_EVENT_REMAP | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP;
    let (room, pager) = watched(Kind::Shared, 8, WRITE_PROTECTION | features, WP);
    let removed = [UFFD_EVENT_REMOVE.into(), room.page(1), room.page(3), 0];
    assert_eq!(event_of(*pager, || room.advise(1, 2, MADV_DONTNEED).expect("mapped")), removed);
    assert_eq!(event_of(*pager, || room.advise(1, 2, MADV_REMOVE).expect("mapped")), removed);
    // SAFETY: there are no references to it.
    let unmap = || unsafe { memory::munmap(room.page(6), 2 * PAGE) }.expect("mapped");
    assert_eq!(event_of(*pager, unmap), [UFFD_EVENT_UNMAP.into(), room.page(6), room.page(8), 0]);
    // Nothing that is beside is an event.
    Room::new(Kind::Anonymous, 1).advise(0, 1, MADV_DONTNEED).expect("mapped");
    assert_eq!(pager.read_one(), Err(EAGAIN));
    drop(pager);
    // Memory that has moved stays registered, with its protection.
    let (room, pager) = guarded(Kind::Shared, 4, WRITE_PROTECTION | UFFD_FEATURE_EVENT_REMAP);
    let to = Room::new(Kind::Anonymous, 4);
    assert_eq!(event_of(*pager, || move_to(&room, &to)), [UFFD_EVENT_REMAP.into(), room.start, to.start, room.bytes]);
    reported(*pager, to.page(0), 2);
    reported(*pager, to.page(1), 3);
    drop((pager, to));
    // The calls fail while an event is not read.
    let (room, pager) = watched(Kind::Anonymous, 2, WRITE_PROTECTION | UFFD_FEATURE_EVENT_REMOVE, MISSING | WP);
    let remove = || room.advise(0, 1, MADV_DONTNEED).expect("mapped");
    beside(remove, || {
        let changing = Err((EAGAIN, -(EAGAIN as i64)));
        while pager.protect(room.start, PAGE) != Err(EAGAIN) {
            nap();
        }
        assert_eq!(pager.zero(room.start, PAGE, 0), changing);
        assert_eq!(pager.poison(room.start, PAGE, 0), changing);
        assert_eq!(pager.copy(room.start, room.start, PAGE, 0), changing);
        assert_eq!(wait_for(*pager).event, UFFD_EVENT_REMOVE);
    });
    assert_eq!(pager.zero(room.start, PAGE, 0), Ok(PAGE as i64));
}

/// Without the event what has moved is registered no more.
fn moved() {
    for kind in KINDS {
        let (room, pager) = guarded(kind, 4, WRITE_PROTECTION);
        let to = Room::new(Kind::Anonymous, 4);
        move_to(&room, &to);
        assert_eq!(to.read(0), 1);
        to.write(0, 2);
        to.write(1, 3);
        assert_eq!(pager.read_one(), Err(EAGAIN));
        assert_eq!(pager.protect(to.start, to.bytes), Err(ENOENT));
        drop(pager);
    }
}

/// The code of the SIGBUS that a load or a store gets; 0 without one.
fn code_of(at: u64, stores: bool) -> i32 {
    // SAFETY: where it may be written, the page is the program's own.
    let outcome = if stores { unsafe { probe::write(at, 0) } } else { probe::read(at).map(drop) };
    outcome.err().map_or(0, |fault| {
        assert_eq!((fault.signal, fault.address), (SIGBUS, at));
        fault.code
    })
}

fn poison() {
    for kind in KINDS {
        let source = Room::new(Kind::Anonymous, 1);
        let (room, pager) = watched(kind, 4, WRITE_PROTECTION, MISSING | WP);
        assert_eq!(pager.poison(room.start, 2 * PAGE, 0), Ok(2 * PAGE as i64));
        assert_eq!(code_of(room.page(0), false), BUS_MCEERR_AR, "{kind:?}");
        assert_eq!(code_of(room.page(1), true), BUS_MCEERR_AR);
        assert_eq!(pager.poison(room.start, PAGE, 0), Err((EEXIST, -17)));
        // Of a shared file Linux replaces it.
        let wanted = if kind == Kind::Shared { Ok(PAGE as i64) } else { Err(EEXIST) };
        assert_eq!(pager.zero(room.start, PAGE, 0).map_err(|(error, _)| error), wanted);
        if kind != Kind::Shared {
            assert_eq!(pager.copy(room.start, source.start, PAGE, 0), Ok(PAGE as i64));
        }
        assert_eq!(code_of(room.page(0), true), 0);
        assert_eq!(room.advise(1, 1, MADV_POPULATE_READ), Err(EHWPOISON));
        // Discarded, it is missing.
        room.advise(1, 1, MADV_DONTNEED).expect("mapped");
        assert_eq!(pager.zero(room.page(1), PAGE, 0), Ok(PAGE as i64));
        assert_eq!(code_of(room.page(1), false), 0);
    }
}

/// Accesses of the kernel.
fn kernel() {
    // They wait as the program's do.
    let (room, pager) = watched(Kind::Anonymous, 4, WRITE_PROTECTION, MISSING | WP);
    let contents = file(4);
    let ends = AtomicU32::new(0);
    let accesses = || {
        assert_eq!(call(PREAD64, [contents, room.start, 2 * PAGE, 0]), Ok(2 * PAGE));
        pager.protect(room.start, PAGE).expect("registered");
        assert_eq!(call(PREAD64, [contents, room.start, PAGE, 0]), Ok(PAGE));
        assert_eq!(room.advise(2, 2, MADV_POPULATE_WRITE), Ok(()));
        ends.store(1, Ordering::Relaxed);
    };
    let (served, ()) = beside(|| serve_all(*pager, &ends), accesses);
    assert_eq!(served, 5);
    drop((pager, room));
    // But where the pager serves the program's alone, or wants SIGBUS.
    let quiet = Pager::new(O_NONBLOCK | UFFD_USER_MODE_ONLY, WRITE_PROTECTION).expect("a userfaultfd");
    let room = Room::new(Kind::Anonymous, 4);
    quiet.register(room.start, room.bytes, MISSING).expect("memory");
    assert_eq!(call(PREAD64, [contents, room.start, PAGE, 0]), Err(EFAULT));
    assert_eq!(quiet.read_one(), Err(EAGAIN));
    quiet.close().expect("open");
    let pager = self::pager(WRITE_PROTECTION | UFFD_FEATURE_SIGBUS);
    pager.register(room.start, room.bytes, MISSING | WP).expect("memory");
    assert_eq!(code_of(room.page(0), false), BUS_ADRERR);
    assert_eq!(call(PREAD64, [contents, room.start, PAGE, 0]), Err(EFAULT));
    assert_eq!(pager.zero(room.start, PAGE, 0), Ok(PAGE as i64));
    pager.protect(room.start, PAGE).expect("registered");
    assert_eq!((code_of(room.page(0), false), code_of(room.page(0), true)), (0, BUS_ADRERR));
    assert_eq!(pager.read_one(), Err(EAGAIN));
    drop(pager);
    assert_eq!(code_of(room.page(0), true), 0);
}

/// Serves what comes, until the end; how many faults that were.
fn serve_all(pager: Pager, ends: &AtomicU32) -> u32 {
    let mut served = 0;
    loop {
        match pager.read_one() {
            Ok(message) => {
                let at = message.words[1];
                match message.words[0] & UFFD_PAGEFAULT_FLAG_WP {
                    0 => assert_eq!(pager.zero(at, PAGE, 0), Ok(PAGE as i64)),
                    _ => pager.unprotect(at, PAGE).expect("registered"),
                }
                served += 1;
            }
            Err(EAGAIN) if ends.load(Ordering::Relaxed) != 0 => return served,
            Err(EAGAIN) => nap(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// A pager that ends releases everything that waits.
fn close() {
    for kind in KINDS {
        let (room, pager) = watched(kind, 4, WRITE_PROTECTION, MISSING | WP);
        let closes = || {
            assert_eq!(wait_for(*pager).event, UFFD_EVENT_PAGEFAULT);
            drop(pager);
        };
        beside(|| room.write(0, 1), closes);
        assert_eq!(room.read(0), 1, "{kind:?}");
    }
    // One that waits for its end in a child that has it, too.
    let (room, pager) = guarded(Kind::Anonymous, 1, WRITE_PROTECTION);
    // It inherits the parent's: it reads a fault of the parent, and ends without serving it.
    let child = || u8::from(wait_for(*pager).event != UFFD_EVENT_PAGEFAULT);
    let id = process::spawn(child);
    drop(pager);
    room.write(0, 2);
    assert_eq!((process::wait(id), room.read(0)), (0, 2));
}
