//! Measures what memory costs a program: `bench ROW NONCE SEQUENCE INDEX WINDOW`, the row's name and, in hexadecimal,
//! what its frames are to carry (tests-qemu/protocol). The bench image starts it, having let EL0 read event counter 0,
//! which counts instructions; it exits with the number of points. docs/BENCHMARKS.md describes the rows.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_protocol::{Event, NULL_TURNS, Nonce, Port, REPETITIONS};
use granule_user::prelude::*;
use granule_user::print::Output;
use granule_user::room::Room;

entry!(run);

/// Sizes of the rows of faults.
const FAULTS: [u64; 4] = [1, 8, 64, 512];
/// Sizes of the rows of calls.
const CALLS: [u64; 5] = [1, 8, 64, 512, 4096];
/// Pages of what a program maps, writes and unmaps.
const BUFFER: u64 = 16;
/// Where the pages are: in the middle of a table, where the kernel chooses no address.
const START: u64 = 0x10_0010_0000;
/// 2 MiB that a block can translate, in that room.
const BLOCK: Room = Room { start: 0x10_0080_0000, pages: 512 };
/// Room for them and what lies around.
const ROOM: u64 = 32 << 20;

/// Where pages move: there is nothing.
const AWAY: Room = Room { start: START + 2 * ROOM, pages: ROOM / PAGE };

/// Room for pages whose frames lie between those of others.
const BETWEEN: Room = Room { start: START + 4 * ROOM, pages: 3 * ROOM / PAGE };
/// Pages whose tags a block of tag storage has, of 4096 bytes.
const OF_A_BLOCK: u64 = 32;
/// Pages that are protected, of which some are touched.
const TOUCHED: u64 = 1000;

/// A row's name, and what measures it.
type Row = (&'static str, fn(&mut Bench));

/// The rows.
const ROWS: [Row; 45] = [
    ("null_syscall", null_syscall),
    ("anon_write_fault", |bench| bench.faults(Bench::fresh, Room::write)),
    ("zero_page_read_fault", |bench| bench.faults(Bench::fresh, Room::read)),
    ("cow_copy_fault", cow_copy_fault),
    ("cow_reuse_fault", |bench| bench.faults(forked_before, Room::write)),
    ("mprotect_ro", |bench| bench.calls(Bench::touched, |room| room.protect(PROT_READ))),
    ("mprotect_rw", mprotect_rw),
    ("munmap", |bench| bench.calls(Bench::touched, Room::unmap)),
    ("mremap", |bench| bench.calls(nothing_away, move_away)),
    ("madvise_dontneed", |bench| bench.calls(Bench::touched, Room::give_up)),
    ("fork", fork),
    ("mmap_populate", |bench| bench.calls(unmapped, populate)),
    ("memfd_first_write_fault", |bench| bench.faults(of_holes, Room::write)),
    ("memfd_map_fault", |bench| bench.faults(of_a_file, Room::write)),
    ("memfd_punch_hole", |bench| bench.calls(of_a_file_touched, punch)),
    ("memfd_truncate", |bench| bench.calls(of_a_file_touched, cut_off)),
    ("huge_write_fault", |bench| bench.block(Bench::fresh_block, write_first)),
    ("huge_mprotect", |bench| bench.block(Bench::touched_block, |block| block.protect(PROT_READ))),
    ("huge_mprotect_split", |bench| bench.block(Bench::touched_block, |block| block.page(0).protect(PROT_READ))),
    ("null_syscall/sync", |bench| checked(bench, PR_MTE_TCF_SYNC, null_syscall)),
    ("null_syscall/async", |bench| checked(bench, PR_MTE_TCF_ASYNC, null_syscall)),
    ("tag_fault_signal", |bench| checked(bench, PR_MTE_TCF_SYNC, tag_fault_signal)),
    ("late_tag_fault_signal", |bench| checked(bench, PR_MTE_TCF_ASYNC, late_tag_fault_signal)),
    ("mprotect_mte", |bench| bench.calls(Bench::touched, |room| room.protect(TAGGED))),
    ("mte_write_fault", |bench| bench.faults(fresh_tagged, Room::write)),
    ("fault_on_access/reserved", |bench| bench.faults(with_reserved_blocks, Room::write)),
    ("fault_on_access/free_block", |bench| bench.faults(with_free_blocks, Room::write)),
    ("mprotect_touch/lazy/0", |bench| protect_and_touch(bench, 0)),
    ("mprotect_touch/lazy/1", |bench| protect_and_touch(bench, 1)),
    ("mprotect_touch/lazy/10", |bench| protect_and_touch(bench, 10)),
    ("mprotect_touch/lazy/100", |bench| protect_and_touch(bench, 100)),
    ("mprotect_touch/eager/0", |bench| protect_and_touch(bench, 0)),
    ("mprotect_touch/eager/1", |bench| protect_and_touch(bench, 1)),
    ("mprotect_touch/eager/10", |bench| protect_and_touch(bench, 10)),
    ("mprotect_touch/eager/100", |bench| protect_and_touch(bench, 100)),
    ("mmap_munmap/touched", |bench| bench.point(BUFFER, |_| BUFFER, use_briefly, drop)),
    ("wp_set", |bench| bench.calls(|bench, pages| registered(bench.touched(pages)), write_protect)),
    ("wp_clear", wp_clear),
    ("wp_set/unpopulated", |bench| bench.calls(unpopulated, write_protect)),
    ("wp_fault_roundtrip", |bench| roundtrip(bench, |bench| write_protected(bench.touched(1)))),
    ("missing_fault_roundtrip", |bench| roundtrip(bench, |bench| registered(bench.fresh(1)))),
    ("marker_write_roundtrip", |bench| roundtrip(bench, |bench| write_protected(unpopulated(bench, 1)))),
    ("shared_dontneed", |bench| bench.calls(of_a_file_touched, Room::give_up)),
    ("shared_dontneed/registered", |bench| bench.calls(of_a_file_registered, Room::give_up)),
    ("shared_dontneed/protected", |bench| bench.calls(of_a_file_protected, Room::give_up)),
];

fn run(start: Start) -> u8 {
    let mut words = start.arguments().skip(1);
    let name = words.next().unwrap_or_default();
    let measure = ROWS.iter().find(|(row, _)| *row == name).expect("the name of a row").1;
    let mut number = || words.next().and_then(|word| u32::from_str_radix(word, 16).ok()).expect("four numbers");
    let (nonce, sequence, index, window) = (number(), number(), number(), number());
    let port = Port::after(Nonce(nonce), sequence, Output::print);
    let mut bench = Bench { port, index, window, overhead: 0, points: 0 };
    bench.overhead = bench.least(|_| (), |()| (), drop).0;
    let (null, _) = bench.least(|_| (), |()| turn(NULL_TURNS), drop);
    // The loop's count is loaded into a register.
    let expected = 2 * NULL_TURNS;
    assert!((expected..expected + 3).contains(&(null - bench.overhead)), "an empty loop took {null}");
    measure(&mut bench);
    bench.points
}

/// The row that is measured.
struct Bench {
    port: Port,
    index: u32,
    /// Which window is next.
    window: u32,
    /// Instructions that a measured window takes by itself.
    overhead: u32,
    points: u8,
}

impl Bench {
    /// Measures `operation` on `size` units: each time on what `prepare` makes anew, and `finish` takes its result
    /// away.
    fn point<S, R>(
        &mut self,
        size: u64,
        prepare: impl FnMut(&Self) -> S,
        operation: impl FnMut(S) -> R,
        finish: impl FnMut(R),
    ) {
        let (taken, window) = self.least(prepare, operation, finish);
        let instructions = taken.saturating_sub(self.overhead);
        self.points += 1;
        self.port.send(Event::Point { index: self.index, size: size as u32, instructions, window });
    }

    /// The least of some repetitions, and which window that was.
    fn least<S, R>(
        &mut self,
        mut prepare: impl FnMut(&Self) -> S,
        mut operation: impl FnMut(S) -> R,
        mut finish: impl FnMut(R),
    ) -> (u32, u32) {
        let mut best = (u32::MAX, 0);
        for repetition in 0..REPETITIONS {
            let prepared = prepare(self);
            take_frames(11 * u64::from(repetition));
            let (taken, result) = count(prepared, &mut operation);
            finish(result);
            best = best.min((taken, self.window));
            self.window += 1;
        }
        best
    }

    /// Measures what accesses of all pages take, by faults.
    fn faults(&mut self, prepare: impl Fn(&Self, u64) -> Room, access: impl Fn(Room)) {
        for pages in FAULTS {
            self.point(pages, |bench| prepare(bench, pages), &access, drop);
        }
    }

    /// Measures a call on all pages.
    fn calls(&mut self, prepare: impl Fn(&Self, u64) -> Room, call: impl Fn(Room)) {
        self.calls_with(prepare, call, drop);
    }

    /// As [`Self::calls`], where `finish` takes what the call returns away.
    fn calls_with<R>(&mut self, prepare: impl Fn(&Self, u64) -> Room, call: impl Fn(Room) -> R, finish: impl Fn(R)) {
        for pages in CALLS {
            self.point(pages, |bench| prepare(bench, pages), &call, &finish);
        }
    }

    /// Measures an operation on a block, whose pages are all there then.
    fn block(&mut self, prepare: impl Fn(&Self) -> Room, operation: impl Fn(Room)) {
        self.point(1, prepare, &operation, |()| {
            let mut last = [0];
            memory::mincore(BLOCK.start + BLOCK.bytes() - PAGE, &mut last).expect("mapped");
            assert_eq!(last, [1], "a page, and no block");
        });
    }

    /// Untouched 2 MiB that a block can translate.
    fn fresh_block(&self) -> Room {
        Room { start: START - PAGE, pages: ROOM / PAGE }.unmap();
        map_between(BLOCK, RW);
        // SAFETY: there are no references to it.
        unsafe { memory::madvise(BLOCK.start, BLOCK.bytes(), MADV_HUGEPAGE) }.expect("mapped");
        BLOCK
    }

    fn touched_block(&self) -> Room {
        self.fresh_block().after(write_first)
    }

    /// Untouched pages. The pages before and behind are in memory, so that tables stay, and never alike, so that
    /// areas do not become one.
    fn fresh(&self, pages: u64) -> Room {
        self.fresh_with(pages, RW)
    }

    fn fresh_with(&self, pages: u64, protection: u64) -> Room {
        let room = Room { start: START, pages };
        let whole = Room { start: START - PAGE, pages: ROOM / PAGE };
        assert!(pages + 2 <= whole.pages, "room for {pages} pages");
        whole.unmap();
        map_between(room, protection);
        room
    }

    /// Pages that have been written.
    fn touched(&self, pages: u64) -> Room {
        self.fresh(pages).after(Room::write)
    }
}

/// Gives a file that nothing maps so many pages. A CPU has up to 64 frames at hand, and gets 32 at once: with some taken in
/// between, what that costs is not in the same step of each repetition.
fn take_frames(pages: u64) {
    static FILE: AtomicU64 = AtomicU64::new(0);
    let file = file_in(&FILE);
    call(FTRUNCATE, [file, 0, 0, 0]);
    if pages != 0 {
        call(FALLOCATE, [file, 0, 0, pages * PAGE]);
    }
}

/// Maps pages between two others that differ in protection, so that areas do not become one, and are in memory.
fn map_between(room: Room, protection: u64) {
    room.before().map(PROT_READ | PROT_EXEC, MAP_POPULATE);
    room.map(protection, 0);
    room.behind().map(PROT_READ | PROT_EXEC, MAP_POPULATE);
}

/// Writes all pages, which takes no faults.
fn write_without_faults(room: Room) {
    let before = instructions();
    room.write();
    let taken = instructions().wrapping_sub(before);
    assert!(u64::from(taken) < 8 * room.pages + 20, "{taken} instructions to write {} pages: faults", room.pages);
}

/// Write-protects all pages.
#[inline(always)]
fn write_protect(room: Room) {
    pager().protect(room.start, room.bytes()).expect("registered");
}

/// Writes so many pages of a hundred, a divisor of it, at equal distances.
#[inline(always)]
fn write_some(room: Room, percent: u64) {
    let Some(step) = 100_u64.checked_div(percent) else { return };
    for page in (0..room.pages).step_by(step as usize) {
        room.page(page).write();
    }
}

#[inline(always)]
fn write_first(room: Room) {
    room.page(0).write();
}

#[inline(always)]
fn move_away(room: Room) {
    let arguments = [room.start, room.bytes(), room.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, AWAY.start, 0];
    // SAFETY: there are no references to it.
    unsafe { sys::call(MREMAP, arguments) }.expect("mapped");
}

/// Takes as many pages as it has out of the file that it maps.
#[inline(always)]
fn punch(room: Room) {
    call(FALLOCATE, [file(), PUNCH_HOLE.into(), 0, room.bytes()]);
}

/// Takes all pages out of the file that it maps.
#[inline(always)]
fn cut_off(_: Room) {
    call(FTRUNCATE, [file(), 0, 0, 0]);
}

#[inline(always)]
fn populate(room: Room) {
    room.map(RW, MAP_POPULATE);
}

/// Touched pages that can be moved away.
fn nothing_away(bench: &Bench, pages: u64) -> Room {
    AWAY.unmap();
    bench.touched(pages)
}

fn null_syscall(bench: &mut Bench) {
    // SAFETY: it changes nothing.
    bench.point(1, |_| (), |()| unsafe { sys::raw(GETPPID, [0; 6]) }, drop);
}

/// Measures under a mode of tag checks, with a handler that goes on behind an access.
fn checked(bench: &mut Bench, mode: u64, measure: fn(&mut Bench)) {
    extern "C" fn go_on(_: u32, info: &SigInfo, context: &mut UContext) {
        if info.code == SEGV_MTESERR {
            context.context.pc += 4;
        }
    }
    // SAFETY: the handler touches its own frame alone.
    unsafe { signal::handle(SIGSEGV, go_on, 0, 0) }.expect("a handler");
    // SAFETY: the program has no tagged pointers but those that it checks.
    unsafe { sys::call(PRCTL, [PR_SET_TAGGED_ADDR_CTRL, mode, 0, 0, 0, 0]) }.expect("tags in memory");
    measure(bench);
}

/// A page whose tags are zero, by an address with another.
fn wrongly_tagged(_: &Bench) -> u64 {
    Room { start: START, pages: 1 }.unmap();
    Room { start: START, pages: 1 }.map(TAGGED, MAP_POPULATE);
    START | 5 << 56
}

fn store(address: u64) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the page is the bench's own; where it faults a handler goes on behind it.
    unsafe {
        core::arch::asm!("str xzr, [{0}]", in(reg) address, options(nostack))
    };
    #[cfg(not(target_arch = "aarch64"))]
    unreachable!("{address:#x}: these programs run on arm64 alone")
}

fn tag_fault_signal(bench: &mut Bench) {
    bench.point(1, wrongly_tagged, store, drop);
}

fn fresh_tagged(bench: &Bench, pages: u64) -> Room {
    bench.fresh_with(pages, TAGGED)
}

/// Pages that wait for tag storage, of which some in each block has tags.
fn with_reserved_blocks(bench: &Bench, pages: u64) -> Room {
    // One is written between any sixteen, so that each block has one, also the first and the last.
    let (before, behind) = (OF_A_BLOCK, OF_A_BLOCK);
    let whole = bench.fresh(before + pages + behind);
    let between = Room { pages: whole.pages.div_ceil(16), ..BETWEEN };
    BETWEEN.unmap();
    between.map(TAGGED, 0);
    for page in 0..whole.pages {
        if page.is_multiple_of(16) {
            between.page(page / 16).write();
        }
        whole.page(page).write();
    }
    whole.protect(TAGGED);
    Room { start: whole.start + before * PAGE, pages }
}

/// Pages that wait for tag storage, of which each is alone in its block.
fn with_free_blocks(bench: &Bench, pages: u64) -> Room {
    let room = bench.fresh(pages);
    let others = OF_A_BLOCK - 1;
    let between = Room { pages: pages * others, ..BETWEEN };
    BETWEEN.unmap();
    between.map(RW, 0);
    for page in 0..pages {
        room.page(page).write();
        Room { start: between.start + page * others * PAGE, pages: others }.write();
    }
    room.protect(TAGGED);
    room
}

/// Has pages check tags, and writes so many of a hundred.
fn protect_and_touch(bench: &mut Bench, percent: u64) {
    let call = |room: Room| {
        room.protect(TAGGED);
        write_some(room, percent);
    };
    bench.point(TOUCHED, |bench| bench.touched(TOUCHED), call, drop);
}

fn late_tag_fault_signal(bench: &mut Bench) {
    let store_and_call = |address| {
        store(address);
        // SAFETY: it changes nothing.
        unsafe { sys::raw(GETPPID, [0; 6]) }
    };
    bench.point(1, wrongly_tagged, store_and_call, drop);
}

/// The parent writes while the child has the pages too, and sleeps.
fn cow_copy_fault(bench: &mut Bench) {
    for pages in FAULTS {
        let shared = |bench: &Bench| {
            let room = bench.touched(pages);
            (room, sleeping_child())
        };
        let write = |(room, child): (Room, u32)| {
            room.write();
            child
        };
        bench.point(pages, shared, write, |child| {
            process::kill(child as i32, SIGKILL).expect("the child to be there");
            process::wait(child);
        });
    }
}

/// A child that has fallen asleep.
fn sleeping_child() -> u32 {
    let is_there = shared::<AtomicU32>();
    let child = process::try_spawn(|| {
        is_there.store(1, Ordering::Relaxed);
        time::sleep(u64::from(u32::MAX) * 1000).map_or(1, |()| 0)
    });
    while is_there.load(Ordering::Relaxed) == 0 {
        process::sched_yield();
    }
    // It had the one CPU, so it sleeps by now or does next.
    process::sched_yield();
    // SAFETY: the reference is not used any more; the child has a mapping of its own.
    unsafe { munmap(is_there.as_ptr() as u64, PAGE) }.expect("mapped");
    child.expect("a child")
}

/// Pages that were shared with a child, which has exited.
fn forked_before(bench: &Bench, pages: u64) -> Room {
    bench.touched(pages).after(|_| _ = process::run(|| 0))
}

/// Protects pages that are read-only, which were written. Writing them then takes no fault.
fn mprotect_rw(bench: &mut Bench) {
    let prepare = |bench: &Bench, pages| bench.touched(pages).after(|room| room.protect(PROT_READ));
    let call = |room: Room| {
        room.protect(RW);
        room
    };
    bench.calls_with(prepare, call, write_without_faults);
}

fn unmapped(bench: &Bench, pages: u64) -> Room {
    bench.fresh(pages).after(Room::unmap)
}

/// The memory file of the rows about such, which they make empty and fill.
fn file() -> u64 {
    static FILE: AtomicU64 = AtomicU64::new(0);
    file_in(&FILE)
}

/// The memory file whose descriptor is kept here, which is made if there is none.
fn file_in(descriptor: &AtomicU64) -> u64 {
    if descriptor.load(Ordering::Relaxed) == 0 {
        let file = call(MEMFD_CREATE, [c"bench".as_ptr() as u64, 0, 0, 0]);
        descriptor.store(file, Ordering::Relaxed);
    }
    descriptor.load(Ordering::Relaxed)
}

/// A call that touches no memory of Rust's.
#[inline(always)]
fn call(number: usize, [a, b, c, d]: [u64; 4]) -> u64 {
    // SAFETY: calls on a file, whose mappings are accessed by volatile accesses.
    unsafe { sys::call(number, [a, b, c, d, 0, 0]) }.expect("a call on a file")
}

/// A mapping of a file whose pages are all holes. It has had a page there, and so has its tables.
fn of_holes(bench: &Bench, pages: u64) -> Room {
    let (room, file) = (bench.fresh(pages), file());
    call(FTRUNCATE, [file, room.bytes(), 0, 0]);
    call(FALLOCATE, [file, 0, 0, room.bytes()]);
    call(FTRUNCATE, [file, 0, 0, 0]);
    call(FTRUNCATE, [file, room.bytes(), 0, 0]);
    let flags = MAP_SHARED | MAP_FIXED;
    // SAFETY: of the room at `START`, to which there are no references.
    let mapped = unsafe { sys::call(MMAP, [room.start, room.bytes(), RW, flags, file, 0]) };
    mapped.expect("a mapping of the file");
    room
}

/// As [`of_holes`], with all pages in the file and none in the mapping.
fn of_a_file(bench: &Bench, pages: u64) -> Room {
    of_holes(bench, pages).after(|room| _ = call(FALLOCATE, [file(), 0, 0, room.bytes()]))
}

/// As [`of_a_file`], with all pages in the mapping too.
fn of_a_file_touched(bench: &Bench, pages: u64) -> Room {
    of_a_file(bench, pages).after(Room::write)
}

/// Maps private pages where the kernel chooses, writes each, and unmaps them.
fn use_briefly(pages: u64) {
    let bytes = pages * PAGE;
    // SAFETY: not at a fixed address.
    let start = unsafe { memory::mmap(0, bytes, RW, MAP_PRIVATE | MAP_ANONYMOUS) }.expect("memory");
    let room = Room { start, pages };
    room.write();
    room.unmap();
}

/// The userfaultfd of the rows about that.
fn pager() -> Pager {
    static PAGER: AtomicU32 = AtomicU32::new(0);
    if PAGER.load(Ordering::Relaxed) == 0 {
        let features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED;
        PAGER.store(Pager::new(0, features).expect("a userfaultfd").0, Ordering::Relaxed);
    }
    Pager(PAGER.load(Ordering::Relaxed))
}

/// Registers the pages of `room` with the pager, for missing pages and write-protection.
fn registered(room: Room) -> Room {
    let modes = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP;
    pager().register(room.start, room.bytes(), modes).expect("memory");
    room
}

/// Registers the pages of `room`, and write-protects them.
fn write_protected(room: Room) -> Room {
    registered(room).after(write_protect)
}

fn of_a_file_registered(bench: &Bench, pages: u64) -> Room {
    registered(of_a_file_touched(bench, pages))
}

fn of_a_file_protected(bench: &Bench, pages: u64) -> Room {
    write_protected(of_a_file_touched(bench, pages))
}

/// Pages of a file that it has, and the mapping has not any more: its tables stay.
fn unpopulated(bench: &Bench, pages: u64) -> Room {
    registered(of_a_file_touched(bench, pages).after(Room::give_up))
}

/// Ends the write-protection of pages that were written. Writing them then takes no fault.
fn wp_clear(bench: &mut Bench) {
    let call = |room: Room| {
        pager().unprotect(room.start, room.bytes()).expect("registered");
        room
    };
    bench.calls_with(|bench, pages| write_protected(bench.touched(pages)), call, write_without_faults);
}

/// Serves faults: copies a page, of this program's code, to what is missing, and ends the protection of what is
/// write-protected.
fn serve() {
    let source = serve as fn() as usize as u64 & !(PAGE - 1);
    loop {
        let message = pager().read_one().expect("a message");
        let at = message.words[1];
        if message.words[0] & UFFD_PAGEFAULT_FLAG_WP == 0 {
            pager().copy(at, source, PAGE, 0).expect("a missing page");
        } else {
            pager().unprotect(at, PAGE).expect("registered");
        }
    }
}

/// Measures a store that another thread of this process serves.
fn roundtrip(bench: &mut Bench, prepare: impl Fn(&Bench) -> Room) {
    // It ends with the process.
    let _server = Thread::spawn(serve);
    let wait = |bench: &Bench| {
        let room = prepare(bench);
        // There is one CPU: the other thread waits for a message behind these.
        (0..4).for_each(|_| process::sched_yield());
        room
    };
    bench.point(1, wait, Room::write, drop);
}

/// The parent's side. The child exits at once, but not before it gets the CPU.
fn fork(bench: &mut Bench) {
    let fork = |_: Room| match process::fork() {
        Ok(0) => process::exit_group(0),
        Ok(child) => child,
        Err(error) => panic!("no child: {error:?}"),
    };
    bench.calls_with(Bench::touched, fork, |child| _ = process::wait(child));
}

/// A loop of two instructions a turn.
fn turn(turns: u32) {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: counts a register down.
    unsafe {
        core::arch::asm!("2: subs {0}, {0}, #1", "b.ne 2b", inout(reg) u64::from(turns) => _, options(nomem, nostack));
    }
    #[cfg(not(target_arch = "aarch64"))]
    unreachable!("{turns} turns: these programs run on arm64 alone")
}

/// Instructions from one marker (`hint #96`, `hint #97`) to the other, and what measuring takes. The host finds the
/// same windows in a trace, by the markers.
#[inline(never)]
fn count<S, R>(state: S, operation: &mut impl FnMut(S) -> R) -> (u32, R) {
    let before = instructions();
    // SAFETY: does nothing. No `nomem`, so the compiler moves no access across it.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!("hint #96", options(nostack))
    };
    let result = operation(state);
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!("hint #97", options(nostack))
    };
    // The counter has 32 bits before PMUv3p5.
    (instructions().wrapping_sub(before), result)
}

/// Instructions so far.
#[inline(always)]
fn instructions() -> u32 {
    #[cfg(target_arch = "aarch64")]
    {
        let count: u64;
        // SAFETY: reads a counter, and by the ISB not early.
        unsafe { core::arch::asm!("isb", "mrs {0}, pmevcntr0_el0", out(reg) count, options(nostack)) };
        count as u32
    }
    #[cfg(not(target_arch = "aarch64"))]
    unreachable!("these programs run on arm64 alone")
}
