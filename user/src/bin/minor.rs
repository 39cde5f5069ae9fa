//! userfaultfd's minor faults as a program sees them: first accesses to pages that an object has and the space not, and
//! `UFFDIO_CONTINUE`, which maps them. The answers are Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::answers;
use granule_user::prelude::*;
use granule_user::served::{Kind, OwnPager, Room, pager, quiet, reported, served, wait_for, watched};

entry!(run);
own!(call, file, word);

const MISSING: u64 = UFFDIO_REGISTER_MODE_MISSING;
const WP: u64 = UFFDIO_REGISTER_MODE_WP;
const MINOR: u64 = UFFDIO_REGISTER_MODE_MINOR;
/// [`WRITE_PROTECTION`], and minor faults.
const FEATURES: u64 = WRITE_PROTECTION | UFFD_FEATURE_MINOR_SHMEM;
/// Bytes of one page, as a result.
const ONE: Result<i64, (Errno, i64)> = Ok(PAGE as i64);

fn run(_start: Start) -> u8 {
    probe::prepare_for(&[SIGBUS, SIGSEGV]);
    parts! { () registered refused ends modes entries served_by_kind discarded forked moved kernel huge }
    answers::status("minor")
}

fn fails(error: Errno) -> Result<i64, (Errno, i64)> {
    Err((error, -(error as i64)))
}

/// A shared room of 8 pages that is registered in a mode, and another mapping of its file, which has written to the first four.
fn rooms(features: u64, mode: u64) -> (Room, Room, OwnPager) {
    let (room, pager) = watched(Kind::Shared, 8, features, mode);
    let other = again(&room, MAP_SHARED);
    (0..4).for_each(|page| other.write(page, page + 1));
    (room, other, pager)
}

/// Another mapping of a room's file.
fn again(room: &Room, sharing: u64) -> Room {
    let start = call(MMAP, [0, room.bytes, RW, sharing, room.file, 0]).expect("memory");
    Room { start, ..*room }
}

fn registered() {
    let pager = pager(FEATURES);
    let Ok(api) = Pager::open(0).and_then(|pager| pager.agree(0)) else { return equal("the features", false, true) };
    holds("the feature", api.features & UFFD_FEATURE_MINOR_SHMEM != 0);
    let anonymous = Room::new(Kind::Anonymous, 2);
    for mode in [MINOR, MINOR | MISSING, MINOR | WP] {
        equal(("anonymous", mode), pager.register(anonymous.start, anonymous.bytes, mode), Err(EINVAL));
    }
    let calls = |mode| {
        let room = Room::new(Kind::Shared, 2);
        let bits = ioctl_bit(2) | ioctl_bit(3) | ioctl_bit(4) | ioctl_bit(6) | ioctl_bit(7) | ioctl_bit(8);
        pager.register(room.start, room.bytes, mode).map(|calls| calls & bits)
    };
    let basic = ioctl_bit(2) | ioctl_bit(3) | ioctl_bit(4) | ioctl_bit(8);
    equal("missing", calls(MISSING), Ok(basic));
    equal("minor", calls(MINOR), Ok(basic | ioctl_bit(7)));
    equal("all", calls(MINOR | MISSING | WP), Ok(basic | ioctl_bit(6) | ioctl_bit(7)));
    equal("another", calls(8 | MINOR), Err(EINVAL));
    let private = Room::new(Kind::PrivateFile, 2);
    equal("private", pager.register(private.start, private.bytes, MINOR).map(drop), Ok(()));
    let shared = call(MMAP, [0, 2 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, u64::MAX, 0]).expect("memory");
    equal("shared, without a file", pager.register(shared, 2 * PAGE, MINOR).map(drop), Ok(()));
    // Without the feature as well.
    let basic = granule_user::served::pager(0);
    let room = Room::new(Kind::Shared, 2);
    equal("without the feature", basic.register(room.start, room.bytes, MINOR).map(drop), Ok(()));
    // The areas before the one that is refused stay as they are.
    let pair = Room::new(Kind::Anonymous, 4);
    let file = file(2);
    let flags = MAP_SHARED | MAP_FIXED;
    equal("in a part", call(MMAP, [pair.start, 2 * PAGE, RW, flags, file, 0]), Ok(pair.start));
    equal("both", pager.register(pair.start, pair.bytes, MINOR), Err(EINVAL));
    equal("not registered", pager.map_present(pair.start, PAGE, 0), fails(ENOENT));
}

fn refused() {
    let (room, other, pager) = rooms(FEATURES, MINOR);
    let Room { start, bytes, .. } = room;
    for (at, len) in [(start + 1, PAGE), (start, PAGE - 1), (start, 0), (u64::MAX - 0xfff, PAGE), (TOP, PAGE)] {
        equal((at - start, len), pager.map_present(at, len, 0), Err((EINVAL, 0)));
    }
    equal("a mode", pager.map_present(start, PAGE, 4), Err((EINVAL, 0)));
    equal("not for write-protection", pager.map_present(start, PAGE, UFFDIO_CONTINUE_MODE_WP), fails(EINVAL));
    equal("not registered", pager.map_present(other.start, PAGE, 0), fails(ENOENT));
    equal("across its area", pager.map_present(start, bytes + PAGE, 0), fails(ENOENT));
    equal("at the top", pager.map_present(TOP - PAGE, PAGE, 0), fails(ENOENT));
    equal("not in the file", pager.map_present(room.page(4), PAGE, 0), fails(EFAULT));
    equal("one", pager.map_present(start, PAGE, 0), ONE);
    equal("mapped", pager.map_present(start, PAGE, 0), fails(EEXIST));
    equal("the first is mapped", pager.map_present(start, 2 * PAGE, 0), fails(EEXIST));
    equal("up to a hole", pager.map_present(room.page(2), 4 * PAGE, 0), Err((EAGAIN, 2 * PAGE as i64)));
    equal("up to what is mapped", pager.map_present(room.page(1), 2 * PAGE, 0), Err((EAGAIN, PAGE as i64)));
    // In memory that is registered for something else.
    let (missing, _other, first) = rooms(FEATURES, MISSING);
    equal("for what is missing", first.map_present(missing.start, PAGE, 0), ONE);
    let (anonymous, second) = watched(Kind::Anonymous, 2, FEATURES, MISSING);
    equal("anonymous", second.map_present(anonymous.start, PAGE, 0), fails(EINVAL));
    let both = second.map_present(anonymous.start, PAGE, UFFDIO_CONTINUE_MODE_WP);
    equal("anonymous, protected", both, fails(EINVAL));
    // Another's.
    equal("another's", second.map_present(room.page(1), PAGE, 0), fails(EEXIST));
    equal("before the features", Pager::open(0).map(|early| early.map_present(start, PAGE, 0)), Ok(Err((EINVAL, 0))));
    // Of a process that has ended.
    let (ended, _other, pager) = rooms(FEATURES, MINOR);
    pager.unregister(ended.start, ended.bytes).expect("registered");
    equal("no more", pager.map_present(ended.start, PAGE, 0), fails(ENOENT));
}

/// Behind the end of a file, and pages that have no contents yet.
fn ends() {
    for (kind, mode) in [(Kind::Shared, MINOR), (Kind::PrivateFile, MINOR), (Kind::Shared, MINOR | MISSING)] {
        let (room, pager) = watched(kind, 4, FEATURES, mode);
        let other = again(&room, MAP_SHARED);
        other.write(0, 1);
        other.write(1, 2);
        call(FTRUNCATE, [room.file, PAGE + 1]).expect("a file");
        equal((kind, "behind"), pager.map_present(room.page(2), PAGE, 0), fails(EFAULT));
        equal((kind, "in its last page"), pager.map_present(room.page(1), PAGE, 0), ONE);
        equal((kind, "up to it"), pager.map_present(room.page(0), 4 * PAGE, 0), Err((EAGAIN, PAGE as i64)));
        equal((kind, "an access"), code_of(room.page(2)), Some(BUS_ADRERR));
        call(FTRUNCATE, [room.file, 4 * PAGE]).expect("a file");
        equal((kind, "a hole"), pager.map_present(room.page(2), PAGE, 0), fails(EFAULT));
        call(FALLOCATE, [room.file, 0, 2 * PAGE, PAGE]).expect("a file");
        equal((kind, "allocated"), pager.map_present(room.page(2), PAGE, 0), ONE);
        equal((kind, "zeros"), quiet(*pager, || room.read(2)), 0);
        call(FALLOCATE, [room.file, PUNCH_HOLE.into(), 0, 4 * PAGE]).expect("a file");
        equal((kind, "punched"), pager.map_present(room.page(0), PAGE, 0), fails(EFAULT));
        call(FALLOCATE, [room.file, 0, 3 * PAGE, PAGE]).expect("a file");
        let maps = || equal((kind, "maps"), pager.map_present(room.page(3), PAGE, 0), ONE);
        equal(
            (kind, "allocated: minor"),
            served(*pager, room.page(3), UFFD_PAGEFAULT_FLAG_MINOR, || room.read(3), maps),
            0,
        );
    }
}

/// The code of the SIGBUS that a load gets.
fn code_of(at: u64) -> Option<i32> {
    probe::read(at).err().map(|fault| fault.code)
}

fn modes() {
    let (room, _other, pager) =
        rooms(FEATURES | UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_EXACT_ADDRESS, MINOR | MISSING | WP);
    // Not woken by the call, but by a wake.
    let serves = || {
        let message = wait_for(*pager);
        equal("its flags", message.words[0], UFFD_PAGEFAULT_FLAG_MINOR);
        equal("its address", message.words[1], room.page(1) + 8);
        equal("quietly", pager.map_present(room.page(1), PAGE, UFFDIO_CONTINUE_MODE_DONTWAKE), ONE);
        pager.wake(room.page(1), PAGE).expect("a range");
        message.words[2] as u32
    };
    let ((value, reader), thread) = beside(|| (word(room.page(1) + 8), process::thread_id()), serves);
    equal("the page", (value, reader), (0, thread));
    equal("its word", room.read(1), 2);
    // Write-protected.
    let maps = || equal("protected", pager.map_present(room.page(2), PAGE, UFFDIO_CONTINUE_MODE_WP), ONE);
    equal("read", served(*pager, room.page(2), UFFD_PAGEFAULT_FLAG_MINOR, || room.read(2), maps), 3);
    reported(*pager, room.page(2), 30);
    // A store is minor first.
    let store = UFFD_PAGEFAULT_FLAG_MINOR | UFFD_PAGEFAULT_FLAG_WRITE;
    let maps = || equal("for a store", pager.map_present(room.page(3), PAGE, 0), ONE);
    served(*pager, room.page(3), store, || room.write(3, 40), maps);
    equal("stored", room.read(3), 40);
    // A page that the file has not is missing.
    let source = Room::new(Kind::Anonymous, 1);
    source.write(0, 77);
    let copies = || equal("copied", pager.copy(room.page(4), source.start, PAGE, 0), ONE);
    equal("missing", served(*pager, room.page(4), 0, || room.read(4), copies), 77);
    equal("and is mapped", quiet(*pager, || room.read(4)), 77);
    let both = UFFDIO_CONTINUE_MODE_WP | UFFDIO_CONTINUE_MODE_DONTWAKE;
    equal("both", pager.map_present(room.page(0), PAGE, both), ONE);
    reported(*pager, room.page(0), 10);
    // The calls that bring pages find one in the file.
    call(MADVISE, [room.start, 4 * PAGE, MADV_DONTNEED]).expect("mapped");
    equal("a copy", pager.copy(room.page(1), source.start, PAGE, 0), fails(EEXIST));
    equal("zeros", pager.zero(room.page(1), PAGE, 0), fails(EEXIST));
}

/// Entries that are not empty, and have no page.
fn entries() {
    let (room, other, pager) = rooms(FEATURES, MINOR | WP);
    // A marker of write-protection: minor first, and what is mapped is not protected, but by the mode.
    pager.protect(room.start, 3 * PAGE).expect("registered");
    let maps = |mode| move |page: u64| (page, mode);
    for (page, mode) in [maps(0)(0), maps(UFFDIO_CONTINUE_MODE_WP)(1)] {
        let call = || equal("over a marker", pager.map_present(room.page(page), PAGE, mode), ONE);
        equal("minor", served(*pager, room.page(page), UFFD_PAGEFAULT_FLAG_MINOR, || room.read(page), call), page + 1);
    }
    quiet(*pager, || room.write(0, 5));
    reported(*pager, room.page(1), 6);
    let store = UFFD_PAGEFAULT_FLAG_MINOR | UFFD_PAGEFAULT_FLAG_WRITE;
    let call = || equal("for a store", pager.map_present(room.page(2), PAGE, 0), ONE);
    served(*pager, room.page(2), store, || room.write(2, 7), call);
    // A hole of the file below a marker: a new page, which is protected.
    pager.protect(room.page(6), PAGE).expect("registered");
    equal("a hole", quiet(*pager, || room.read(6)), 0);
    reported(*pager, room.page(6), 8);
    // Poison.
    equal("poisoned", pager.poison(room.page(3), PAGE, 0), ONE);
    equal("an access", code_of(room.page(3)), Some(BUS_MCEERR_AR));
    equal("over poison", pager.map_present(room.page(3), PAGE, 0), ONE);
    equal("read", quiet(*pager, || room.read(3)), 4);
    // A guard.
    other.write(7, 9);
    equal("guarded", room.advise(7, 1, 102), Ok(()));
    equal("over a guard", pager.map_present(room.page(7), PAGE, 0), fails(EEXIST));
    equal("no guard", room.advise(7, 1, 103), Ok(()));
    equal("over nothing", pager.map_present(room.page(7), PAGE, 0), ONE);
    // A protection without access.
    call_protect(&room, PROT_NONE);
    equal("mapped still", pager.map_present(room.page(7), PAGE, 0), fails(EEXIST));
    room.advise(7, 1, MADV_DONTNEED).expect("mapped");
    equal("without access", pager.map_present(room.page(7), PAGE, 0), ONE);
    equal("no access", probe::read(room.page(7)).is_err(), true);
    call_protect(&room, RW);
    equal("read then", quiet(*pager, || room.read(7)), 9);
    call_protect(&room, PROT_READ);
    room.advise(7, 1, MADV_DONTNEED).expect("mapped");
    equal("read-only", pager.map_present(room.page(7), PAGE, 0), ONE);
    equal("no store", code_of_store(room.page(7)), true);
}

fn call_protect(room: &Room, protection: u64) {
    equal("protected", call(MPROTECT, [room.start, room.bytes, protection]), Ok(0));
}

fn code_of_store(at: u64) -> bool {
    // SAFETY: the page is the program's own.
    unsafe { probe::write(at, 1) }.is_err()
}

/// A private mapping of a file has minor faults too: what is mapped is the file's, until a store.
fn served_by_kind() {
    let (room, pager) = watched(Kind::PrivateFile, 4, FEATURES, MINOR);
    let other = again(&room, MAP_SHARED);
    other.write_all();
    let maps = |page: u64| equal("private", pager.map_present(room.page(page), PAGE, 0), ONE);
    equal("read", served(*pager, room.page(0), UFFD_PAGEFAULT_FLAG_MINOR, || room.read(0), || maps(0)), 1);
    other.write(0, 11);
    equal("the file's", room.read(0), 11);
    quiet(*pager, || room.write(0, 12));
    equal("a copy", (room.read(0), other.read(0)), (12, 11));
    let store = UFFD_PAGEFAULT_FLAG_MINOR | UFFD_PAGEFAULT_FLAG_WRITE;
    served(*pager, room.page(1), store, || room.write(1, 21), || maps(1));
    equal("stored", (room.read(1), other.read(1)), (21, 2));
    equal("a copy is there", pager.map_present(room.page(1), PAGE, 0), fails(EEXIST));
    room.advise(1, 1, MADV_DONTNEED).expect("mapped");
    equal("read", served(*pager, room.page(1), UFFD_PAGEFAULT_FLAG_MINOR, || room.read(1), || maps(1)), 2);
    // Without the file's page nothing is asked.
    call(FALLOCATE, [room.file, PUNCH_HOLE.into(), 2 * PAGE, PAGE]).expect("a file");
    equal("a hole", quiet(*pager, || room.read(2)), 0);
    // Without the pager: SIGBUS.
    let sigbus = granule_user::served::pager(FEATURES | UFFD_FEATURE_SIGBUS);
    let room = Room::new(Kind::Shared, 2);
    let other = again(&room, MAP_SHARED);
    other.write_all();
    sigbus.register(room.start, room.bytes, MINOR).expect("memory");
    equal("SIGBUS", code_of(room.page(0)), Some(BUS_ADRERR));
    equal("mapped", sigbus.map_present(room.start, PAGE, 0), ONE);
    equal("read", room.read(0), 1);
    drop(sigbus);
    equal("closed", room.read(1), 2);
}

/// A page that was discarded is minor again; one that the file has lost is not.
fn discarded() {
    let (room, _other, pager) = rooms(FEATURES, MINOR);
    equal("mapped", pager.map_present(room.start, 4 * PAGE, 0), Ok(4 * PAGE as i64));
    equal("read", quiet(*pager, || room.read(1)), 2);
    room.advise(0, 4, MADV_DONTNEED).expect("mapped");
    let maps = || equal("again", pager.map_present(room.page(1), PAGE, 0), ONE);
    equal("minor", served(*pager, room.page(1), UFFD_PAGEFAULT_FLAG_MINOR, || room.read(1), maps), 2);
    room.advise(2, 1, MADV_REMOVE).expect("mapped");
    equal("removed", quiet(*pager, || room.read(2)), 0);
    // Populating waits for no pager.
    pager.unregister(room.start, room.bytes).expect("registered");
    equal("no more", quiet(*pager, || room.read(3)), 4);
    room.advise(3, 1, MADV_DONTNEED).expect("mapped");
    pager.register(room.start, room.bytes, MINOR).expect("memory");
    let closes = || {
        equal("a fault", wait_for(*pager).words[0], UFFD_PAGEFAULT_FLAG_MINOR);
        pager.unregister(room.start, room.bytes).expect("registered");
        // Linux wakes only what waits for missing pages.
        pager.wake(room.start, room.bytes).expect("a range");
    };
    equal("served by the end", beside(|| room.read(3), closes).0, 4);
}

/// A child is registered where the event is asked for; what is there in its parent is minor in it.
fn forked() {
    let (room, _other, pager) = rooms(FEATURES, MINOR);
    let child = || u8::from(room.read(0) != 1);
    let id = process::spawn(child);
    equal("a child", process::wait(id), 0);
    drop(pager);
    let pager = granule_user::served::pager(FEATURES | UFFD_FEATURE_EVENT_FORK);
    pager.register(room.start, room.bytes, MINOR).expect("memory");
    equal("mapped", pager.map_present(room.start, 2 * PAGE, 0), Ok(2 * PAGE as i64));
    let serves = || {
        let message = wait_for(*pager);
        equal("the event", message.event, UFFD_EVENT_FORK);
        let child = Pager(message.words[0] as u32);
        let message = wait_for(child);
        equal("its fault", (message.words[0], message.words[1]), (UFFD_PAGEFAULT_FLAG_MINOR, room.start));
        equal("its page", child.map_present(room.start, PAGE, 0), ONE);
        child
    };
    let (child, status) = beside(serves, || process::run(|| u8::from(room.read(0) != 1)));
    equal("its end", status, 0);
    equal("of one that has ended", child.map_present(room.start, PAGE, 0), Err((ESRCH, 0)));
    child.close().expect("open");
}

/// Memory that has moved, with the event and without.
fn moved() {
    for features in [FEATURES, FEATURES | UFFD_FEATURE_EVENT_REMAP] {
        let (room, _other, pager) = rooms(features, MINOR);
        let to = Room::new(Kind::Anonymous, 8);
        equal("mapped", pager.map_present(room.page(1), PAGE, 0), ONE);
        let moves = || call(MREMAP, [room.start, room.bytes, room.bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to.start, 0]);
        if features == FEATURES {
            equal("moved", moves(), Ok(to.start));
            equal("read", quiet(*pager, || to.read(0)), 1);
            equal("no more", pager.map_present(to.start, PAGE, 0), fails(ENOENT));
        } else {
            let (message, moved) = beside(|| wait_for(*pager), moves);
            equal("moved", (message.event, moved), (UFFD_EVENT_REMAP, Ok(to.start)));
            equal("moved along", quiet(*pager, || to.read(1)), 2);
            let maps = || equal("there", pager.map_present(to.page(0), PAGE, 0), ONE);
            equal("minor", served(*pager, to.page(0), UFFD_PAGEFAULT_FLAG_MINOR, || to.read(0), maps), 1);
        }
        core::mem::forget(room);
    }
    // While an event is not read.
    let (room, _other, pager) = rooms(FEATURES | UFFD_FEATURE_EVENT_REMOVE, MINOR);
    beside(
        || room.advise(7, 1, MADV_DONTNEED).expect("mapped"),
        || {
            until(|| pager.map_present(room.start, PAGE, 0) == fails(EAGAIN));
            equal("changing", pager.map_present(room.start, PAGE, 0), fails(EAGAIN));
            equal("the event", wait_for(*pager).event, UFFD_EVENT_REMOVE);
        },
    );
}

/// Accesses of the kernel.
fn kernel() {
    let (room, _other, pager) = rooms(FEATURES, MINOR);
    let contents = file(4);
    let minor = UFFD_PAGEFAULT_FLAG_MINOR;
    let maps = |page: u64| equal("mapped", pager.map_present(room.page(page), PAGE, 0), ONE);
    let read = || call(PREAD64, [contents, room.start, 8, 0]);
    equal("read", served(*pager, room.start, minor | UFFD_PAGEFAULT_FLAG_WRITE, read, || maps(0)), Ok(8));
    equal("its zeros", room.read(0), 0);
    let write = || call(PWRITE64, [contents, room.page(1), 8, 0]);
    equal("write", served(*pager, room.page(1), minor, write, || maps(1)), Ok(8));
    // Of another process.
    let mut here = 0_u64;
    let vectors = [(&raw mut here) as u64, 8, room.page(2), 8];
    let own = u64::from(process::id());
    let (local, remote) = (vectors.as_ptr() as u64, vectors[2..].as_ptr() as u64);
    let reads = || call(PROCESS_VM_READV, [own, local, 1, remote, 1, 0]);
    equal("of a process", served(*pager, room.page(2), minor, reads, || maps(2)), Ok(8));
    equal("its word", here, 3);
    let populate = || room.advise(3, 1, MADV_POPULATE_READ);
    equal("populate", served(*pager, room.page(3), minor, populate, || maps(3)), Ok(()));
    equal("populated", quiet(*pager, || room.read(3)), 4);
    // The pager serves the program's alone.
    let room = Room::new(Kind::Shared, 2);
    again(&room, MAP_SHARED).write_all();
    let quiet = Pager::new(O_NONBLOCK | UFFD_USER_MODE_ONLY, FEATURES).expect("a userfaultfd");
    quiet.register(room.start, room.bytes, MINOR).expect("memory");
    equal("refused", call(PREAD64, [contents, room.start, 8, 0]), Err(EFAULT));
    quiet.close().expect("open");
}

/// Neighbours of a page that is mapped stay minor, also where huge pages are wanted.
fn huge() {
    const BLOCK: u64 = 2 << 20;
    let whole = Room::new(Kind::Shared, 3 * 512);
    let start = whole.start.next_multiple_of(BLOCK);
    let offset = start - whole.start;
    let other = again(&whole, MAP_SHARED);
    call(MADVISE, [start, BLOCK, MADV_HUGEPAGE]).expect("mapped");
    (0..512).for_each(|page| other.write(offset / PAGE + page, page + 1));
    let pager = granule_user::served::pager(FEATURES);
    pager.register(start, BLOCK, MINOR).expect("memory");
    let maps = |page: u64| equal("mapped", pager.map_present(start + page * PAGE, PAGE, 0), ONE);
    for page in [7, 8, 300] {
        let at = start + page * PAGE;
        equal("its page", served(*pager, at, UFFD_PAGEFAULT_FLAG_MINOR, || word(at), || maps(page)), page + 1);
    }
    equal("the rest", pager.map_present(start, 7 * PAGE, 0), Ok(7 * PAGE as i64));
    call(MADVISE, [start, BLOCK, MADV_DONTNEED]).expect("mapped");
    equal("all", pager.map_present(start, BLOCK, 0), Ok(BLOCK as i64));
    equal("read", quiet(*pager, || word(start + 511 * PAGE)), 512);
    // Without the pages of the file: no more than the page of the access.
    call(FALLOCATE, [whole.file, PUNCH_HOLE.into(), offset, BLOCK]).expect("a file");
    equal("a hole", quiet(*pager, || word(start)), 0);
    equal("beside it", pager.map_present(start + 100 * PAGE, PAGE, 0), fails(EFAULT));
}
