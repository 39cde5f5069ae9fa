//! A program that allocates all it can, in one of several ways, and a moderate one beside it.
//!
//! `hog pages` never returns: the kernel ends it. `hog later` does the same once it is sent SIGTERM. The others stop
//! where the kernel refuses more, and exit with 0; what they held then is the kernel's to take back. `hog beside` works
//! in a little memory until it is sent SIGTERM, and exits with 0 if all that it wrote was there whenever it looked.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::mem::ManuallyDrop;

use granule_user::prelude::*;

entry!(run);
own!(call);

fn run(start: Start) -> u8 {
    let part = start.part(&parts! { named
        pages later forks threads areas signals zombies tables moves vforks heap shared populated file sparse reserved
        pipes counters pagers polls sets paths droppable beside
    });
    let Some(part) = part else { return 2 };
    part();
    0
}

/// Writes to a byte of each page.
fn touch(start: u64, bytes: u64, value: u8) {
    for page in (start..start + bytes).step_by(PAGE as usize) {
        // SAFETY: memory of this program's own, without references to it.
        unsafe { (page as *mut u8).write_volatile(value) };
    }
}

/// Holds what this process has for as long as its parent is there.
fn stay(parent: u32) -> u8 {
    while process::parent_id() == parent {
        let _ = time::sleep(20 * MILLISECOND);
    }
    0
}

/// Checks that an error says that there is no room for one more.
#[track_caller]
fn no_room(error: Errno) {
    assert!(matches!(error, EAGAIN | ENOMEM), "{error:?}");
}

/// Makes tasks until there may not be more: how many there were, and the error then.
fn until_refused<T>(make: impl Fn() -> Result<T, Errno>) -> (u32, Errno) {
    (0..).find_map(|count| make().err().map(|error| (count, error))).expect("an end")
}

/// Takes more memory than there is, which the kernel may lose: no program ends for it. Then another one needs some.
fn droppable() {
    const BYTES: u64 = 512 << 20;
    let is_over = memory::shared::<AtomicBool>();
    // SAFETY: not at a fixed address.
    let at = unsafe { mmap(0, BYTES, RW, MAP_ANONYMOUS | MAP_DROPPABLE) }.expect("addresses");
    for round in 1..=2 {
        touch(at, BYTES, round);
        // SAFETY: as above.
        let each = (at..at + BYTES).step_by(PAGE as usize).map(|page| unsafe { (page as *const u8).read_volatile() });
        let lost = each.inspect(|byte| assert!(*byte == 0 || *byte == round)).filter(|byte| *byte == 0).count() as u64;
        // All of them where another program found no memory just now.
        assert_ne!(lost, 0, "pages were lost");
    }
    call(MADVISE, [at, BYTES, MADV_DONTNEED]).expect("mapped");
    touch(at, MIB, 3);
    assert!(holds(at, MIB, 3), "none is lost while there is memory");
    let last = at + BYTES - PAGE;
    let child = process::spawn(|| {
        while !is_over.load(Ordering::Relaxed) {
            touch(map(MIB, RW).expect("memory"), MIB, 1);
        }
    });
    while !holds(last, PAGE, 0) {
        let _ = time::sleep(MILLISECOND);
    }
    is_over.store(true, Ordering::Relaxed);
    assert_eq!(process::wait(child), exited(0), "the other program");
}

/// Whether each page begins with this value.
fn holds(start: u64, bytes: u64, value: u8) -> bool {
    // SAFETY: as above.
    (start..start + bytes).step_by(PAGE as usize).all(|page| unsafe { (page as *const u8).read_volatile() } == value)
}

/// Touches memory without an end.
fn pages() -> ! {
    const PIECE: u64 = 16 << 20;
    loop {
        // A mapping that is not reserved is never refused for its size.
        // SAFETY: not at a fixed address.
        let piece = unsafe { memory::mmap(0, PIECE, RW, PRIVATE | MAP_NORESERVE) }.expect("addresses");
        touch(piece, PIECE, 1);
    }
}

/// As [`pages`], once SIGTERM is pending. A page at [`READY`] shows that it waits for it.
fn later() -> ! {
    /// `tests-qemu/guest/src/smmu/shortage.rs` looks there.
    const READY: u64 = 0x1000_0000;
    signal::mask(SIG_BLOCK, signal::set_of(SIGTERM)).expect("a mask");
    // SAFETY: no other mapping is there, or the call fails.
    unsafe { memory::mmap(READY, PAGE, RW, PRIVATE | MAP_FIXED_NOREPLACE | MAP_POPULATE) }.expect("a page");
    asleep_until(|| signal::is_pending(SIGTERM).expect("pending signals"));
    pages()
}

/// A child that writes to so much memory, if it gets it, and stays for as long as its parent is there.
fn hold(parent: u32, bytes: u64) -> Result<u32, Errno> {
    process::try_spawn(|| {
        if let Ok(held) = memory::map(bytes, RW) {
            touch(held, bytes, 1);
        }
        stay(parent)
    })
}

/// Forks children that hold a MiB each. The kernel ends some of them.
fn forks() {
    const MOST: usize = 200;
    const HELD: u64 = 1 << 20;
    let own = process::id();
    let mut children = [0; MOST];
    let mut count = 0;
    for place in &mut children {
        match hold(own, HELD) {
            Ok(child) => *place = child,
            Err(error) => {
                no_room(error);
                break;
            }
        }
        count += 1;
    }
    // So many do not fit: if none was refused, some child is ended once the others have touched their memory.
    let mut ended = u32::from(count == MOST && process::wait4(-1, 0).is_ok());
    for &child in &children[..count] {
        // It may be the kernel's deed already.
        ended += u32::from(process::wait4(child as i32, WNOHANG).is_ok_and(|(number, _)| number == child));
        let _ = process::kill(child as i32, SIGKILL);
    }
    while process::wait4(-1, 0).is_ok() {}
    println!("hog: {count} children, {ended} of them ended early");
}

/// Makes threads until there may not be more. They are there when it exits.
fn threads() {
    let (count, error) = until_refused(|| thread::Thread::try_spawn(|| time::sleep_for_ever()));
    println!("hog: {count} threads, then {error:?}");
    assert!(count > 50);
    no_room(error);
}

/// Makes areas until there may not be more: each page is protected otherwise than its neighbours.
fn areas() {
    const BYTES: u64 = 70_000 * PAGE;
    let start = memory::map(BYTES, PROT_NONE).expect("addresses");
    let mut pages = (start..start + BYTES).step_by(2 * PAGE as usize);
    let error = pages.find_map(|page| call(MPROTECT, [page, PAGE, PROT_READ]).err());
    assert_eq!(error, Some(ENOMEM), "so many areas");
    // Calls that look at each of them before they do anything.
    let advise = |advice| call(MADVISE, [start, BYTES, advice]).expect("advice");
    [MADV_NORMAL, MADV_DOFORK, MADV_DONTFORK, MADV_GUARD_REMOVE].into_iter().for_each(|advice| _ = advise(advice));
    process::in_copy(|| {});
    advise(MADV_DOFORK);
    call(MPROTECT, [start, BYTES, RW]).expect("one area again");
}

/// Sends signals that stay pending, to itself and to children that block them.
fn signals() {
    const ROUNDS: u32 = 20_000;
    let all = !signal::set_of(SIGKILL);
    signal::mask(SIG_BLOCK, all).expect("a mask");
    let child = process::spawn(|| -> u8 { time::sleep_for_ever() });
    for round in 0..ROUNDS {
        let number = SIGUSR1 + round % 40;
        let to = if round % 2 == 0 { process::id() } else { child };
        if number != SIGKILL {
            process::kill(to as i32, number).expect("a signal");
        }
    }
    process::kill(child as i32, SIGKILL).expect("a signal");
    process::wait(child);
}

/// Forks children that exit, and waits for none.
fn zombies() {
    let (count, error) = until_refused(|| process::try_spawn(|| 0));
    println!("hog: {count} zombies, then {error:?}");
    assert_eq!(error, EAGAIN, "zombies count");
    // Two: the program beside has one child at most.
    for _ in 0..2 {
        assert!(process::wait4(-1, 0).is_ok_and(|(_, status)| status == exited(0)));
    }
    assert!(process::try_spawn(|| 0).is_ok(), "one more after two were waited for");
}

/// Addresses that a table translates.
const TABLE: u64 = 2 << 20;
/// More tables than there is memory for, all of one mapping.
const TABLES: u64 = 40_000 * TABLE;

fn addresses_of_tables() -> u64 {
    // SAFETY: not at a fixed address.
    unsafe { memory::mmap(0, TABLES, RW, PRIVATE | MAP_NORESERVE) }.expect("addresses")
}

/// Has a child that spreads its pages, so that each has a table, and does something with all of them from time to time,
/// which returns where they are then. In the end that does not fit in what is free, though nothing else takes it: the
/// kernel ends the child.
fn spread_by_a_child(mut sometimes: impl FnMut(u64) -> u64) {
    const STEP: u64 = 1000;
    let child = process::spawn(|| {
        let mut start = addresses_of_tables();
        for index in 0..TABLES / TABLE {
            touch(start + index * TABLE, PAGE, 1);
            if index % STEP == 0 {
                start = sometimes(start);
            }
        }
    });
    assert_eq!(process::wait(child), killed(SIGKILL));
}

/// The tables are copied.
fn tables() {
    spread_by_a_child(|start| {
        if let Ok(copy) = process::try_spawn(|| 0) {
            process::wait(copy);
        }
        start
    });
}

/// The pages are moved, to where there are no tables.
fn moves() {
    let mut other = None;
    spread_by_a_child(|start| {
        let to = other.replace(start).unwrap_or_else(addresses_of_tables);
        assert_eq!(call(MREMAP, [start, TABLES, TABLES, MREMAP_MAYMOVE | MREMAP_FIXED, to]), Ok(to));
        to
    });
}

/// Has a vfork child, which has one itself, and so on, until there may not be more.
fn vforks() {
    extern "C" fn next() -> ! {
        vforks();
        process::exit_group(0)
    }
    const STACK: u64 = 4 * PAGE;
    let Ok(stack) = memory::map(STACK, RW) else { return };
    // SAFETY: the stack was just mapped, for the child alone.
    match unsafe { process::clone_onto(CLONE_VM | CLONE_VFORK | u64::from(SIGCHLD), stack + STACK, next) } {
        Ok(child) => assert_eq!(process::wait(child), exited(0)),
        Err(error) => no_room(error),
    }
}

/// Moves the heap's end up until it stays. Each page is protected otherwise than the last one, so that it is an area.
fn heap() {
    let end_at = |end: u64| call(BRK, [end]).expect("brk has no errors");
    let start = end_at(0).next_multiple_of(PAGE);
    for page in 0.. {
        let (last, end) = (start + page * PAGE, start + (page + 1) * PAGE);
        let protection = if page % 2 == 0 { PROT_READ } else { PROT_NONE };
        if end_at(end) != end || call(MPROTECT, [last, PAGE, protection]).is_err() {
            return;
        }
    }
}

/// Makes shared memory, an object for each page, until there may not be more.
fn shared() {
    // SAFETY: not at a fixed address.
    let (_, error) = until_refused(|| unsafe { memory::mmap(0, PAGE, RW, SHARED) });
    assert_eq!(error, ENOMEM);
}

/// Makes memory that is there at once until there may not be more: pages far apart, and a range now and then.
fn populated() {
    const APART: u64 = 2 << 20;
    const FIRST: u64 = 0x1000_0000_0000;
    for index in 0..20_000 {
        let (flags, bytes) = if index % 8 == 7 { (MAP_SHARED, 9 * PAGE) } else { (MAP_PRIVATE, PAGE) };
        let flags = flags | MAP_ANONYMOUS | MAP_POPULATE | MAP_FIXED_NOREPLACE;
        // SAFETY: nothing is there.
        let piece = unsafe { memory::mmap(FIRST + index * APART, bytes, RW, flags) };
        if let Err(error) = piece {
            return assert_eq!(error, ENOMEM);
        }
    }
}

fn memory_file() -> u64 {
    call(MEMFD_CREATE, [c"hog".as_ptr() as u64, 0]).expect("a file")
}

/// Writes to a file that is not mapped, without an end.
fn file() -> ! {
    static PIECE: [u8; 16 * PAGE as usize] = [1; 16 * PAGE as usize];
    let file = memory_file();
    loop {
        call(WRITE, [file, PIECE.as_ptr() as u64, PIECE.len() as u64]).expect("to be ended first");
    }
}

/// Makes tables of a file, without an end: its pages are taken away again.
fn sparse() -> ! {
    /// Of pages of one table.
    const APART: u64 = 2 << 20;
    let file = memory_file();
    for at in (0..).step_by(APART as usize) {
        call(PWRITE64, [file, c"x".as_ptr() as u64, 1, at]).expect("to be ended first");
        call(FALLOCATE, [file, PUNCH_HOLE.into(), at, PAGE]).expect("a hole");
    }
    unreachable!()
}

/// Asks for nearly all memory at once, which is refused, and no process ends for it.
fn reserved() {
    let file = memory_file();
    let error = call(FALLOCATE, [file, 0, 0, 121 << 20]).expect_err("less than that is free");
    assert_eq!(error, ENOMEM);
    call(FALLOCATE, [file, 0, 0, 1 << 20]).expect("a little");
}

/// As many descriptors as there may be.
fn raise_limit() {
    const MOST: u64 = 1 << 20;
    process::limit(RLIMIT_NOFILE, MOST, MOST).expect("a limit");
}

/// Makes pipes that are full, without an end.
fn pipes() -> ! {
    static PIECE: [u8; PAGE as usize] = [1; PAGE as usize];
    raise_limit();
    loop {
        let ends = ManuallyDrop::new(File::pipe(O_NONBLOCK).expect("to be ended first"));
        while ends[1].write(&PIECE).is_ok() {}
    }
}

/// Makes event counters, and children that have tables of their own, until the kernel ends one of them.
fn counters() {
    const MOST: u64 = 20_000;
    /// So that few children do not fit any more.
    const FILE: u64 = 96 << 20;
    raise_limit();
    call(FALLOCATE, [memory_file(), 0, 0, FILE]).expect("most of the memory");
    let (own, last) = (process::id(), (0..MOST).map_while(|_| call(EVENTFD2, [0, 0]).ok()).last().expect("a counter"));
    let is_ended = || process::wait4(-1, WNOHANG).is_ok_and(|(child, _)| child != 0);
    let mut count = 0;
    while !is_ended() {
        let child = process::try_spawn(|| {
            // It changes its table, which it has had together with its parent.
            let _ = call(CLOSE, [last]);
            stay(own)
        });
        match child {
            Ok(_) => count += 1,
            Err(error) => return println!("hog: {count} children, then {error:?}"),
        }
        let _ = time::sleep(MILLISECOND);
    }
}

/// Makes userfaultfds, without an end.
fn pagers() -> ! {
    raise_limit();
    loop {
        Pager::new(0, 0).expect("to be ended first");
    }
}

/// Makes epoll sets of a thousand counters each.
fn sets() -> ! {
    const COUNTERS: usize = 1000;
    raise_limit();
    let counters = [(); COUNTERS].map(|()| call(EVENTFD2, [0, 0]).expect("a counter"));
    let event = EpollEvent::default();
    loop {
        let set = call(EPOLL_CREATE1, [0]).expect("a set");
        for counter in counters {
            call(EPOLL_CTL, [set, EPOLL_CTL_ADD.into(), counter, &raw const event as u64]).expect("an item");
        }
    }
}

/// Has threads poll one counter by many descriptors, each without an end.
fn polls() -> ! {
    const FILES: usize = 200_000;
    raise_limit();
    let counter = call(EVENTFD2, [0, 0]).expect("a counter") as i32;
    let bytes = (FILES * size_of::<PollFd>()) as u64;
    let files = memory::map(bytes, RW).expect("memory");
    for place in (files..files + bytes).step_by(size_of::<PollFd>()) {
        // SAFETY: memory of this program's own, without references to it.
        unsafe { (place as *mut PollFd).write(PollFd { fd: counter, events: POLLIN, revents: 0 }) };
    }
    loop {
        let _ = thread::Thread::try_spawn(move || _ = call(PPOLL, [files, FILES as u64, 0, 0]));
        let _ = time::sleep(MILLISECOND);
    }
}

/// Has a child whose threads wait for a page of a path, each in a call that holds a copy of it, and others that are larger
/// than that child without those copies, and smaller with them, until the kernel ends one: that child.
fn paths() {
    const HELD: u64 = 4900 << 10;
    let own = process::id();
    let is_ready = memory::shared::<AtomicBool>();
    let first = process::spawn(|| {
        copy_paths();
        is_ready.store(true, Ordering::Release);
        stay(own)
    });
    asleep_until(|| is_ready.load(Ordering::Acquire));
    loop {
        let _ = hold(own, HELD).map_err(no_room);
        let _ = time::sleep(MILLISECOND);
        match process::wait4(-1, WNOHANG) {
            Ok((0, _)) => {}
            ended => return assert_eq!(ended, Ok((first, killed(SIGKILL))), "the largest is ended"),
        }
    }
}

/// Has threads wait for the first page of a path that they have seen the end of: the copy waits.
fn copy_paths() {
    const THREADS: usize = 200;
    const LENGTH: u64 = 8;
    let path = memory::map(2 * PAGE, RW).expect("memory");
    // SAFETY: just mapped.
    unsafe { ((path + PAGE - LENGTH) as *mut [u8; LENGTH as usize]).write([b'x'; LENGTH as usize]) };
    let pager = Pager::new(0, 0).expect("a pager");
    pager.register(path, 2 * PAGE, UFFDIO_REGISTER_MODE_MISSING).expect("to register");
    for _ in 0..THREADS {
        let open = move || _ = call(OPENAT, [HERE, path + PAGE - LENGTH, 0]);
        // Other hogs may have all memory for a while.
        while let Err(error) = thread::Thread::try_spawn(open) {
            no_room(error);
            let _ = time::sleep(MILLISECOND);
        }
    }
    let all_wait = || (0..THREADS).for_each(|_| _ = pager.read_one().expect("a fault"));
    all_wait();
    call(MADVISE, [path, PAGE, MADV_DONTNEED]).expect("to take the path's beginning away");
    pager.zero(path + PAGE, PAGE, 0).expect("its end");
    all_wait();
}

/// Works in a little memory until it must end.
fn beside() {
    const BYTES: u64 = 128 << 10;
    signal::mask(SIG_BLOCK, signal::set_of(SIGTERM)).expect("a mask");
    let kept = memory::map(BYTES, RW).expect("memory");
    let mut value = 0_u8;
    loop {
        let last = signal::is_pending(SIGTERM).expect("pending signals");
        touch(kept, BYTES, value);
        let fresh = memory::map(BYTES, RW).expect("memory");
        touch(fresh, BYTES, !value);
        // A copy sees both; where there may be no more tasks, that is not for lack of memory.
        match process::try_spawn(|| u8::from(holds(kept, BYTES, value) && holds(fresh, BYTES, !value))) {
            Ok(child) => assert_eq!(process::wait(child), exited(1), "a copy sees what was written"),
            Err(error) => assert!(error == EAGAIN && !last, "{error:?}"),
        }
        assert!(holds(kept, BYTES, value) && holds(fresh, BYTES, !value), "what was written is there");
        call(MUNMAP, [fresh, BYTES]).expect("to unmap");
        if last {
            return;
        }
        value = value.wrapping_add(1);
        let _ = time::sleep(2 * MILLISECOND);
    }
}
