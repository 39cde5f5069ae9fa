//! epoll: what a set is asked for and returns, by level and by change, in other sets, and when its files end.
//!
//! Each answer is Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

fn run(_: Start) -> u8 {
    parts! { ()
        sets_are_made_and_refused what_is_watched changes_are_refused what_a_set_is_not waits_are_refused by_level
        by_change pipes_change counters_change one_shot order_and_limits changed_items files_end forks nested loops
        sets_change bad_memory times waits masks many_threads all_at_a_time exclusive
    }
    status("epoll")
}

/// A set.
struct Set(File);

fn set() -> Set {
    Set(File(call(EPOLL_CREATE1, [EPOLL_CLOEXEC.into()]).expect("a set")))
}

impl Set {
    fn control(&self, operation: u32, file: u64, events: u32, data: u64) -> Result<u64, Errno> {
        let event = EpollEvent { events, data };
        call(EPOLL_CTL, [*self.0, operation.into(), file, &raw const event as u64])
    }

    fn add(&self, file: &File, events: u32) {
        equal("added", self.control(EPOLL_CTL_ADD, **file, events, **file), Ok(0));
    }

    fn modify(&self, file: &File, events: u32) {
        equal("changed", self.control(EPOLL_CTL_MOD, **file, events, **file), Ok(0));
    }

    fn remove(&self, file: &File) {
        equal("removed", call(EPOLL_CTL, [*self.0, EPOLL_CTL_DEL.into(), **file, 0]), Ok(0));
    }

    fn wait(&self, events: &mut [EpollEvent], milliseconds: i32) -> Result<u64, Errno> {
        let (at, count) = (events.as_mut_ptr() as u64, events.len() as u64);
        call(EPOLL_PWAIT, [*self.0, at, count, milliseconds as u64, 0, 0])
    }

    /// The events that are returned at once: of up to three files, each with its descriptor.
    fn now(&self) -> [(u64, u32); 3] {
        let mut events = [EpollEvent::default(); 3];
        let found = self.wait(&mut events, 0).expect("events");
        for event in &events[found as usize..] {
            equal("no more is stored", *event, EpollEvent::default());
        }
        events.map(|event| (event.data, event.events))
    }
}

const NONE: (u64, u32) = (0, 0);
const NOTHING: [(u64, u32); 3] = [NONE; 3];

fn of(file: &File, events: u32) -> [(u64, u32); 3] {
    [(**file, events), NONE, NONE]
}

fn pipe() -> [File; 2] {
    File::pipe(O_NONBLOCK).expect("a pipe")
}

fn counter(count: u32) -> File {
    File::counter(count, EFD_NONBLOCK).expect("a counter")
}

fn write(file: &File) {
    equal("written", file.write(&1_u64.to_le_bytes()), Ok(8));
}

fn read(file: &File) {
    equal("read", file.read(&mut [0; 8]), Ok(8));
}

fn copy(file: &File) -> File {
    File(call(DUP, [**file]).expect("a copy"))
}

const ALL: u32 = 0x7ff;
const IN: u32 = EPOLLIN | EPOLLRDNORM;
const OUT: u32 = EPOLLOUT | EPOLLWRNORM;

fn sets_are_made_and_refused() {
    let first = File(call(EPOLL_CREATE1, [0]).expect("a set"));
    equal("F_GETFD", first.fcntl(F_GETFD, 0), Ok(0));
    equal("F_GETFL", first.fcntl(F_GETFL, 0), Ok(O_RDWR.into()));
    let second = set().0;
    equal("the lowest descriptor", *second, *first + 1);
    equal("EPOLL_CLOEXEC", second.fcntl(F_GETFD, 0), Ok(FD_CLOEXEC.into()));
    for flags in [1, O_NONBLOCK, 0x8000_0000] {
        equal(("a flag that is none", flags), call(EPOLL_CREATE1, [flags.into()]), Err(EINVAL));
    }
    let free = *second;
    drop(second);
    apart(|| {
        equal("a limit", process::limit(RLIMIT_NOFILE, free, 4096).map(drop), Ok(()));
        equal("no descriptor is left", call(EPOLL_CREATE1, [0]), Err(EMFILE));
    });
}

fn what_is_watched() {
    let set = set();
    for (name, flags, answer) in [
        (c"/", O_RDONLY, Err(EPERM)),
        (c"/dev/null", O_RDWR, Err(EPERM)),
        (c"/dev/zero", O_RDWR, Err(EPERM)),
        (c"/dev/full", O_RDWR, Err(EPERM)),
        (c"/dev/random", O_RDWR, Ok(0)),
        (c"/dev/urandom", O_RDWR, Err(EPERM)),
        (c"/", O_PATH, Err(EBADF)),
        (c"/proc/self/maps", O_RDONLY, Err(EPERM)),
        (c"/proc/self/status", O_RDONLY, Err(EPERM)),
        (c"/proc/self/pagemap", O_RDONLY, Err(EPERM)),
    ] {
        let Ok(file) = File::open(name, flags) else {
            // Of some there is none on Linux where the program is alone.
            continue;
        };
        equal(name, set.control(EPOLL_CTL_ADD, *file, EPOLLIN, 0), answer);
    }
    let memory = File::memory(c"memory", 0).expect("a memory file");
    equal("a memory file", set.control(EPOLL_CTL_ADD, *memory, EPOLLIN, 0), Err(EPERM));
    let process = File(call(PIDFD_OPEN, [process::id().into(), 0]).expect("a pidfd"));
    set.add(&process, EPOLLIN);
    equal("the console", set.control(EPOLL_CTL_ADD, 1, EPOLLOUT, 1), Ok(0));
    equal("which has room", set.now(), [(1, EPOLLOUT), NONE, NONE]);
}

fn changes_are_refused() {
    let (set, event, memory) = (set(), counter(0), File::memory(c"memory", 0).expect("a memory file"));
    let control = |set: u64, operation: u64, file: u64, at: u64| call(EPOLL_CTL, [set, operation, file, at]);
    let given = EpollEvent { events: EPOLLIN, data: 7 };
    let at = &raw const given as u64;
    let [add, delete, modify] = [EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD].map(u64::from);
    for operation in [add, modify, 0, 4] {
        equal(("an event from nowhere", operation), control(999, operation, 999, NOWHERE), Err(EFAULT));
        equal(("an event of the kernel", operation), control(999, operation, 999, KERNEL), Err(EFAULT));
    }
    equal("a set that is none", control(999, add, *event, at), Err(EBADF));
    equal("a file that is none", control(*set.0, add, 999, at), Err(EBADF));
    equal("a file before the set", control(*event, add, 999, at), Err(EBADF));
    equal("a file that is never ready, before the set", control(*event, add, *memory, at), Err(EPERM));
    equal("no set", control(*event, add, *set.0, at), Err(EINVAL));
    equal("itself", control(*set.0, add, *set.0, at), Err(EINVAL));
    equal("no file to be changed", control(*set.0, modify, *event, at), Err(ENOENT));
    equal("no file to be removed", control(*set.0, delete, *event, 0), Err(ENOENT));
    for operation in [0, 4, 1 << 31] {
        equal(("no operation", operation), control(*set.0, operation, *event, at), Err(EINVAL));
    }
    equal("added", control(*set.0, add | 1 << 32, *event, at), Ok(0));
    equal("again", control(*set.0, add, *event, at), Err(EEXIST));
    let other = copy(&event);
    equal("by another descriptor", control(*set.0, add, *other, at), Ok(0));
    equal("removed, with no event", control(*set.0, delete, *event, NOWHERE), Ok(0));
    equal("the other is there", control(*set.0, add, *other, at), Err(EEXIST));
    equal("and the first not", control(*set.0, modify, *event, at), Err(ENOENT));
}

fn what_a_set_is_not() {
    let set = set().0;
    let mut byte = [0; 16];
    let at = byte.as_mut_ptr() as u64;
    equal("read", set.read(&mut byte), Err(EINVAL));
    equal("write", set.write(&byte), Err(EINVAL));
    equal("pread", call(PREAD64, [*set, at, 1, 0]), Err(ESPIPE));
    equal("pwrite", call(PWRITE64, [*set, at, 1, 0]), Err(ESPIPE));
    equal("lseek", call(LSEEK, [*set, 8, SEEK_SET.into()]), Ok(0));
    equal("mmap", call(MMAP, [0, PAGE, PROT_READ, MAP_SHARED, *set, 0]), Err(ENODEV));
    equal("ftruncate", call(FTRUNCATE, [*set, 0]), Err(EINVAL));
    equal("fsync", call(FSYNC, [*set]), Err(EINVAL));
    equal("fallocate", call(FALLOCATE, [*set, 0, 0, 1]), Err(ENODEV));
    equal("an unknown ioctl", call(IOCTL, [*set, 0x5401, at]), Err(EINVAL));
    equal("FIONREAD", call(IOCTL, [*set, FIONREAD.into(), at]), Err(EINVAL));
    equal("F_SETFL", set.fcntl(F_SETFL, O_NONBLOCK), Ok(0));
    equal("F_GETFL", set.fcntl(F_GETFL, 0), Ok((O_RDWR | O_NONBLOCK).into()));
    equal("its mode", (set.stat().st_mode, set.stat().st_size), (0o600, 0));
}

fn waits_are_refused() {
    let (set, event) = (set(), counter(0));
    let mut events = [EpollEvent::default(); 2];
    let at = events.as_mut_ptr() as u64;
    let wait = |set: u64, at: u64, count: u64| call(EPOLL_PWAIT, [set, at, count, 0, 0, 0]);
    equal("a set that is none", wait(999, KERNEL, 0), Err(EBADF));
    for count in [0, u64::MAX, 1 << 31, i32::MAX as u64 / 16 + 1, 1 << 32] {
        equal(("a count of", count), wait(*event, KERNEL, count), Err(EINVAL));
    }
    equal("events of the kernel", wait(*event, KERNEL, 1), Err(EFAULT));
    equal("no set", wait(*event, at, 1), Err(EINVAL));
    equal("nothing to be stored", wait(*set.0, NOWHERE, 1), Ok(0));
    equal("the most", wait(*set.0, NOWHERE, i32::MAX as u64 / 16), Ok(0));
    let masked = |mask: u64, size: u64| call(EPOLL_PWAIT, [999, at, 0, 0, mask, size]);
    equal("a set of another size", masked(NOWHERE, 4), Err(EINVAL));
    equal("a set from nowhere", masked(NOWHERE, 8), Err(EFAULT));
    let none = 0_u64;
    equal("before the descriptor", masked(&raw const none as u64, 8), Err(EBADF));
    let limited = |limit: u64| call(EPOLL_PWAIT2, [999, at, 0, limit, NOWHERE, 4]);
    equal("a limit from nowhere", limited(NOWHERE), Err(EFAULT));
    for time in [Timespec { seconds: -1, nanoseconds: 0 }, Timespec { seconds: 0, nanoseconds: 1_000_000_000 }] {
        equal("a limit that is no time", limited(&raw const time as u64), Err(EINVAL));
    }
}

fn by_level() {
    let (set, [reader, writer]) = (set(), pipe());
    set.add(&reader, EPOLLIN);
    equal("nothing", set.now(), NOTHING);
    write(&writer);
    for _ in 0..2 {
        equal("bytes", set.now(), of(&reader, EPOLLIN));
    }
    read(&reader);
    equal("none any more", set.now(), NOTHING);
    set.modify(&reader, ALL);
    set.add(&writer, ALL | EPOLLRDHUP);
    equal("room", set.now(), of(&writer, OUT));
    write(&writer);
    equal("both", set.now(), [(*writer, OUT), (*reader, IN), NONE]);
    let number = *writer;
    drop(writer);
    equal("hung up, and the other is gone", set.now(), of(&reader, IN | EPOLLHUP));
    set.modify(&reader, 0);
    equal("also where it is not asked for", set.now(), of(&reader, EPOLLHUP));
    let [other, writer] = pipe();
    holds("the number again", *other == number || *writer == number);
    drop(other);
    set.add(&writer, EPOLLIN);
    equal("an error", set.now(), [(*reader, EPOLLHUP), (*writer, EPOLLERR), NONE]);
}

fn by_change() {
    let (set, [reader, writer]) = (set(), pipe());
    write(&writer);
    set.add(&reader, EPOLLIN | EPOLLET);
    equal("what there is", set.now(), of(&reader, EPOLLIN));
    equal("once", set.now(), NOTHING);
    write(&writer);
    write(&writer);
    equal("more bytes", set.now(), of(&reader, EPOLLIN));
    equal("once", set.now(), NOTHING);
    read(&reader);
    equal("fewer are no change", set.now(), NOTHING);
    set.modify(&reader, EPOLLIN | EPOLLET);
    equal("a change of the item is one", set.now(), of(&reader, EPOLLIN));
    equal("once", set.now(), NOTHING);
    write(&writer);
    read(&reader);
    read(&reader);
    read(&reader);
    equal("nothing holds any more", set.now(), NOTHING);
    write(&writer);
    drop(writer);
    equal("both", set.now(), of(&reader, EPOLLIN | EPOLLHUP));
    equal("once", set.now(), NOTHING);
}

static BYTES: [u8; 64 << 10] = [7; 64 << 10];

fn pipes_change() {
    let (set, [reader, writer]) = (set(), pipe());
    // As Go's runtime does.
    let events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
    set.add(&reader, events);
    set.add(&writer, events);
    equal("room", set.now(), of(&writer, EPOLLOUT));
    write(&writer);
    equal("bytes", set.now(), of(&reader, EPOLLIN));
    read(&reader);
    equal("there was room", set.now(), NOTHING);
    equal("full", writer.write(&BYTES), Ok(64 << 10));
    equal("bytes", set.now(), of(&reader, EPOLLIN));
    let mut page = [0; 4096];
    equal("a part", reader.read(&mut page[1..]), Ok(4095));
    equal("no room", set.now(), NOTHING);
    equal("a page", reader.read(&mut page[1..]), Ok(4095));
    equal("room", set.now(), of(&writer, EPOLLOUT));
    equal("more of it", reader.read(&mut page), Ok(4096));
    equal("is no change", set.now(), NOTHING);
    equal("nothing fails", writer.write(&[]), Ok(0));
    equal("and is no change", set.now(), NOTHING);
    drop(reader);
    equal("no reader", set.now(), of(&writer, EPOLLOUT | EPOLLERR));
}

fn counters_change() {
    let (set, event) = (set(), counter(0));
    set.add(&event, EPOLLIN | EPOLLET);
    equal("nothing", set.now(), NOTHING);
    for _ in 0..2 {
        write(&event);
        equal("a count", set.now(), of(&event, EPOLLIN));
    }
    equal("0", event.write(&[0; 8]), Ok(8));
    equal("is added too", set.now(), of(&event, EPOLLIN));
    set.modify(&event, EPOLLIN | EPOLLOUT | EPOLLET);
    equal("both", set.now(), of(&event, EPOLLIN | EPOLLOUT));
    read(&event);
    equal("room", set.now(), of(&event, EPOLLOUT));
    equal("once", set.now(), NOTHING);
    set.modify(&event, EPOLLOUT | EPOLLET);
    equal("room", set.now(), of(&event, EPOLLOUT));
    write(&event);
    equal("is not what is asked for", set.now(), NOTHING);
}

fn one_shot() {
    let (set, [reader, writer]) = (set(), pipe());
    write(&writer);
    for more in [0, EPOLLET] {
        set.control(EPOLL_CTL_ADD, *reader, EPOLLIN | EPOLLONESHOT | more, *reader).expect("added");
        equal("bytes", set.now(), of(&reader, EPOLLIN));
        equal("once", set.now(), NOTHING);
        write(&writer);
        equal("whatever comes", set.now(), NOTHING);
        set.modify(&reader, EPOLLIN | EPOLLONESHOT | more);
        equal("again", set.now(), of(&reader, EPOLLIN));
        equal("once", set.now(), NOTHING);
        set.remove(&reader);
    }
    set.add(&reader, EPOLLIN | EPOLLONESHOT);
    equal("bytes", set.now(), of(&reader, EPOLLIN));
    drop(writer);
    equal("nor that it is hung up", set.now(), NOTHING);
    set.modify(&reader, 0);
    equal("hung up", set.now(), of(&reader, EPOLLHUP));
}

fn order_and_limits() {
    let (set, events) = (set(), [(); 4].map(|()| counter(0)));
    for event in &events {
        set.add(event, EPOLLIN);
    }
    for event in [2, 0, 3, 1] {
        write(&events[event]);
    }
    let next = |count: usize| {
        let mut found = [EpollEvent::default(); 9];
        let stored = set.wait(&mut found[..count], 0);
        let place = |data: u64| events.iter().position(|event| **event == data);
        (stored, found.map(|event| place(event.data).map_or(9, |place| place as u8)))
    };
    equal("three in their order", next(3), (Ok(3), [2, 0, 3, 9, 9, 9, 9, 9, 9]));
    equal("then the others", next(2), (Ok(2), [1, 2, 9, 9, 9, 9, 9, 9, 9]));
    equal("all once", next(9), (Ok(4), [0, 3, 1, 2, 9, 9, 9, 9, 9]));
    read(&events[3]);
    equal("but for one", next(9), (Ok(3), [0, 1, 2, 9, 9, 9, 9, 9, 9]));
}

fn changed_items() {
    let (set, [reader, writer]) = (set(), pipe());
    write(&writer);
    set.add(&reader, EPOLLIN);
    set.remove(&reader);
    equal("removed while it was ready", set.now(), NOTHING);
    set.add(&reader, EPOLLOUT);
    equal("nothing", set.now(), NOTHING);
    equal("another word", set.control(EPOLL_CTL_MOD, *reader, EPOLLIN, u64::MAX), Ok(0));
    equal("is returned", set.now(), [(u64::MAX, EPOLLIN), NONE, NONE]);
    set.modify(&reader, EPOLLOUT);
    equal("nothing", set.now(), NOTHING);
    // In several sets.
    let other = self::set();
    other.add(&reader, EPOLLIN | EPOLLET);
    set.modify(&reader, EPOLLIN | EPOLLET);
    for set in [&set, &other] {
        equal("each has it", set.now(), of(&reader, EPOLLIN));
    }
    write(&writer);
    for set in [&set, &other] {
        equal("each has it", set.now(), of(&reader, EPOLLIN));
    }
    drop(set);
    write(&writer);
    equal("the one that is left", other.now(), of(&reader, EPOLLIN));
}

fn files_end() {
    let (set, [reader, writer]) = (set(), pipe());
    write(&writer);
    let (number, kept) = (*reader, copy(&reader));
    set.add(&reader, EPOLLIN);
    drop(reader);
    equal("the copy keeps it", set.now(), [(number, EPOLLIN), NONE, NONE]);
    equal("under no descriptor", set.control(EPOLL_CTL_DEL, number, 0, 0), Err(EBADF));
    equal("nor under its own", set.control(EPOLL_CTL_DEL, *kept, 0, 0), Err(ENOENT));
    let event = counter(1);
    equal("the number again", *event, number);
    equal("is another file", set.control(EPOLL_CTL_MOD, number, EPOLLIN, 1), Err(ENOENT));
    equal("and may be added", set.control(EPOLL_CTL_ADD, number, EPOLLIN, 1), Ok(0));
    equal("both", set.now(), [(number, EPOLLIN), (1, EPOLLIN), NONE]);
    drop(kept);
    equal("the last descriptor is gone", set.now(), [(1, EPOLLIN), NONE, NONE]);
    drop(event);
    equal("and that one", set.now(), NOTHING);
    // A set that is closed before its files, and one that has a file that is closed while a thread waits.
    let [reader, writer] = pipe();
    let end = copy(&writer);
    set.add(&writer, 0);
    set.add(&reader, EPOLLIN);
    drop(end);
    let closes = || {
        equal("slept", time::sleep(5 * MILLISECOND), Ok(()));
        drop(writer);
    };
    let mut events = [EpollEvent::default(); 3];
    equal("the end is closed", beside(closes, || set.wait(&mut events, -1)).1, Ok(1));
    equal("the other end hangs up", (events[0].data, events[0].events), (*reader, EPOLLHUP));
}

fn forks() {
    let (set, [reader, writer]) = (set(), pipe());
    let child = process::spawn(|| {
        write(&writer);
        set.add(&reader, EPOLLIN);
        wrong()
    });
    equal("a child adds", process::wait(child), 0);
    equal("to the parent's set", set.now(), of(&reader, EPOLLIN));
    let number = *reader;
    let child = process::spawn(|| {
        until(|| set.control(EPOLL_CTL_MOD, number, EPOLLIN, 5) == Ok(0));
        let mut events = [EpollEvent::default(); 1];
        while set.wait(&mut events, 0) == Ok(1) {
            process::sched_yield();
        }
        wrong()
    });
    equal("slept", time::sleep(5 * MILLISECOND), Ok(()));
    drop(reader);
    equal("a child keeps it", set.now()[0].1, EPOLLIN);
    process::end(child);
    equal("and ends", set.now(), NOTHING);
}

fn nested() {
    let (outer, inner, event) = (set(), set(), counter(0));
    outer.add(&inner.0, EPOLLIN);
    inner.add(&event, EPOLLIN);
    let state = || {
        let mut files = [PollFd { fd: *inner.0 as i32, events: 0xfff, revents: 0 }];
        let none = Timespec::from_nanoseconds(0);
        equal("ppoll", call(PPOLL, [files.as_mut_ptr() as u64, 1, &raw const none as u64, 0, 8]).is_ok(), true);
        files[0].revents
    };
    equal("nothing", (state(), outer.now()), (0, NOTHING));
    write(&event);
    for _ in 0..2 {
        equal("the inner one", outer.now(), of(&inner.0, EPOLLIN));
        equal("by ppoll", state(), POLLIN | POLLRDNORM);
    }
    equal("the event", inner.now(), of(&event, EPOLLIN));
    read(&event);
    equal("nothing", (state(), outer.now()), (0, NOTHING));
    outer.modify(&inner.0, EPOLLIN | EPOLLET);
    equal("nothing", outer.now(), NOTHING);
    for _ in 0..3 {
        write(&event);
        equal("a change", outer.now(), of(&inner.0, EPOLLIN));
        equal("once", outer.now(), NOTHING);
        equal("the event", inner.now(), of(&event, EPOLLIN));
        read(&event);
    }
    inner.modify(&event, EPOLLIN | EPOLLET);
    for _ in 0..3 {
        write(&event);
        equal("a change", outer.now(), of(&inner.0, EPOLLIN));
        equal("the event", inner.now(), of(&event, EPOLLIN));
        equal("once", inner.now(), NOTHING);
    }
    let writes = || {
        equal("slept", time::sleep(5 * MILLISECOND), Ok(()));
        write(&event);
    };
    let mut events = [EpollEvent::default(); 1];
    equal("a thread waits for it", beside(writes, || outer.wait(&mut events, -1)).1, Ok(1));
    drop(inner);
    equal("it is gone", outer.now(), NOTHING);
    write(&event);
    equal("it is gone", outer.now(), NOTHING);
}

fn loops() {
    let sets = [(); 7].map(|()| set());
    let put = |outer: usize, inner: usize| sets[outer].control(EPOLL_CTL_ADD, *sets[inner].0, EPOLLIN, 0);
    equal("in another", put(0, 1), Ok(0));
    equal("in each other", put(1, 0), Err(ELOOP));
    equal("again", put(0, 1), Err(EEXIST));
    equal("a third", put(1, 2), Ok(0));
    equal("around", put(2, 0), Err(ELOOP));
    equal("beside", put(0, 2), Ok(0));
    equal("four", put(2, 3), Ok(0));
    equal("five", put(3, 4), Ok(0));
    equal("six", put(4, 5), Err(ELOOP));
    equal("from above", put(6, 0), Err(ELOOP));
    equal("above the second", put(6, 1), Ok(0));
    equal("out of it", call(EPOLL_CTL, [*sets[0].0, EPOLL_CTL_DEL.into(), *sets[1].0, 0]), Ok(0));
    equal("still five", put(4, 5), Err(ELOOP));
    equal("out of it", call(EPOLL_CTL, [*sets[6].0, EPOLL_CTL_DEL.into(), *sets[1].0, 0]), Ok(0));
    equal("now", put(4, 5), Ok(0));
    equal("around", put(5, 1), Err(ELOOP));
    let event = counter(1);
    for set in &sets {
        set.add(&event, EPOLLIN);
    }
    let mut found = [EpollEvent::default(); 3];
    equal("it is ready", sets[0].wait(&mut found, -1), Ok(2));
}

/// Sets of sets that wait for changes, down to one counter.
fn sets_change() {
    let (sets, event) = ([(); 5].map(|()| set()), counter(0));
    for (number, inner) in sets.iter().enumerate().skip(1) {
        sets[number - 1].add(&inner.0, EPOLLIN | EPOLLET);
    }
    sets[4].add(&event, EPOLLIN | EPOLLET);
    for _ in 0..3 {
        let writes = || {
            equal("slept", time::sleep(MILLISECOND), Ok(()));
            write(&event);
        };
        let mut found = [EpollEvent::default(); 1];
        equal("a change", beside(writes, || sets[0].wait(&mut found, -1)).1, Ok(1));
        for (number, inner) in sets.iter().enumerate().skip(2) {
            equal(("of the set", number), sets[number - 1].now(), of(&inner.0, EPOLLIN));
        }
        equal("of the counter", sets[4].now(), of(&event, EPOLLIN));
        equal("none is left", sets.each_ref().map(Set::now), [NOTHING; 5]);
    }
}

fn bad_memory() {
    let (set, events) = (set(), [(); 3].map(|()| counter(1)));
    set.add(&events[0], EPOLLIN | EPOLLET);
    set.add(&events[1], EPOLLIN | EPOLLONESHOT);
    set.add(&events[2], EPOLLIN);
    let two = map(2 * PAGE, RW).expect("two pages");
    equal("one is closed", call(MPROTECT, [two + PAGE, PAGE, PROT_NONE]), Ok(0));
    let wait = |at: u64| call(EPOLL_PWAIT, [*set.0, at, 3, 0, 0, 0]);
    equal("to nowhere", wait(NOWHERE), Err(EFAULT));
    equal("to a page that is closed", wait(two + PAGE), Err(EFAULT));
    equal("one fits", wait(two + PAGE - 16), Ok(1));
    equal("the next one not", wait(two + PAGE - 12), Err(EFAULT));
    let left = [(*events[1], EPOLLIN), (*events[2], EPOLLIN), NONE];
    equal("the others are left", set.now(), left);
    equal("and of these one", set.now(), of(&events[2], EPOLLIN));
}

fn times() {
    let (set, event) = (set(), counter(0));
    set.add(&event, EPOLLIN);
    let mut events = [EpollEvent::default(); 1];
    let before = time::now();
    equal("a limit", set.wait(&mut events, 30), Ok(0));
    holds("passes", time::now() - before >= 30 * MILLISECOND);
    let at = events.as_mut_ptr() as u64;
    let limited = |time: &Timespec| call(EPOLL_PWAIT2, [*set.0, at, 1, &raw const *time as u64, 0, 0]);
    let limit = Timespec::from_nanoseconds(30 * MILLISECOND);
    let before = time::now();
    equal("a limit", limited(&limit), Ok(0));
    holds("passes", time::now() - before >= 30 * MILLISECOND);
    equal("the limit is as it was", limit.to_nanoseconds(), Some(30 * MILLISECOND));
    equal("no time", limited(&Timespec::from_nanoseconds(0)), Ok(0));
    write(&event);
    equal("ready", limited(&Timespec { seconds: i64::MAX, nanoseconds: 0 }), Ok(1));
    equal("ready", call(EPOLL_PWAIT2, [*set.0, at, 1, 0, 0, 0]), Ok(1));
    for limit in [-1, i32::MIN, i32::MAX] {
        equal(("ready", limit), set.wait(&mut events, limit), Ok(1));
    }
}

fn waits() {
    let (set, event, [reader, writer]) = (set(), counter(0), pipe());
    let mut events = [EpollEvent::default(); 4];
    for mode in [0, EPOLLET] {
        set.add(&event, EPOLLIN | mode);
        set.add(&reader, EPOLLIN | mode);
        for (written, ready) in [(&event, &event), (&writer, &reader)] {
            let writes = || {
                equal("slept", time::sleep(5 * MILLISECOND), Ok(()));
                write(written);
            };
            equal("one", beside(writes, || set.wait(&mut events, -1)).1, Ok(1));
            equal("which one", (events[0].data, events[0].events), (**ready, EPOLLIN));
            read(ready);
        }
        set.remove(&event);
        // A file that is added, and one that is changed, while a thread waits.
        write(&event);
        for operation in [EPOLL_CTL_ADD, EPOLL_CTL_MOD] {
            let adds = || {
                equal("slept", time::sleep(5 * MILLISECOND), Ok(()));
                equal("done", set.control(operation, *event, EPOLLIN | EPOLLONESHOT, 9), Ok(0));
            };
            equal("it is ready", beside(adds, || set.wait(&mut events, -1)).1, Ok(1));
            equal("which one", events[0].data, 9);
        }
        set.remove(&event);
        set.remove(&reader);
        read(&event);
    }
}

static CAME: AtomicU64 = AtomicU64::new(0);

extern "C" fn note(_: u32, _: &SigInfo, _: &mut UContext) {
    CAME.fetch_add(1, Ordering::Relaxed);
}

fn masks() {
    let (set, event, usr1) = (set(), counter(1), set_of(SIGUSR1));
    let mut events = [EpollEvent::default(); 1];
    let at = events.as_mut_ptr() as u64;
    let wait = |limit: i32, mask: u64| call(EPOLL_PWAIT, [*set.0, at, 1, limit as u64, &raw const mask as u64, 8]);
    for flags in [0, SA_RESTART] {
        // SAFETY: the handler adds to a word.
        holds("a handler", unsafe { handle(SIGUSR1, note, flags, 0) }.is_ok());
        let interrupted = while_signalled(SIGUSR1, 5 * MILLISECOND, || set.wait(&mut events, -1));
        equal("a signal ends it", interrupted, Err(EINTR));
    }
    CAME.store(0, Ordering::Relaxed);
    equal("blocked", mask(SIG_BLOCK, usr1), Ok(0));
    signal::raise(SIGUSR1);
    equal("it is blocked", set.wait(&mut events, 1), Ok(0));
    equal("without time it does not come", wait(0, 0), Ok(0));
    equal("and stays", (is_pending(SIGUSR1), CAME.load(Ordering::Relaxed)), (Ok(true), 0));
    equal("with time it comes", wait(-1, 0), Err(EINTR));
    equal("once", (is_pending(SIGUSR1), CAME.load(Ordering::Relaxed)), (Ok(false), 1));
    equal("the mask is as before", mask(SIG_BLOCK, 0), Ok(usr1));
    set.add(&event, EPOLLIN);
    signal::raise(SIGUSR1);
    equal("an event comes first", wait(-1, 0), Ok(1));
    equal("and the signal stays", (is_pending(SIGUSR1), CAME.load(Ordering::Relaxed)), (Ok(true), 1));
    equal("it may come", mask(SIG_SETMASK, 0), Ok(usr1));
    equal("it came", CAME.load(Ordering::Relaxed), 2);
    set.remove(&event);
    let limit = Timespec::from_nanoseconds(MILLISECOND);
    let arguments = [*set.0, at, 1, &raw const limit as u64, &raw const usr1 as u64, 8];
    // Also those that came before the call and are blocked in it.
    for _ in 0..30 {
        let waited = while_signalled(SIGUSR1, MILLISECOND / 20, || call(EPOLL_PWAIT2, arguments));
        equal("blocked during the call", waited, Ok(0));
    }
}

/// Each event of a file that waits for changes is one thread's, and none is lost.
fn many_threads() {
    const EVENTS: u64 = 100;
    let (set, event, got) =
        (set(), File::counter(0, EFD_NONBLOCK | EFD_SEMAPHORE).expect("a counter"), AtomicU64::new(0));
    set.add(&event, EPOLLIN | EPOLLET);
    let takes = |_| {
        let mut events = [EpollEvent::default(); 2];
        while got.load(Ordering::Relaxed) < EVENTS {
            if set.wait(&mut events, 1000) == Ok(1) {
                while event.read(&mut [0; 8]).is_ok() {
                    got.fetch_add(1, Ordering::Relaxed);
                }
                if got.load(Ordering::Relaxed) >= EVENTS {
                    // The others look too.
                    write(&event);
                }
            }
        }
    };
    let writes = || (0..EVENTS).for_each(|_| write(&event));
    beside(writes, || all_at_once(3, takes));
    holds("all came", got.load(Ordering::Relaxed) >= EVENTS);
}

/// Files are added, changed, removed and closed, and sets too, while threads wait for them.
fn all_at_a_time() {
    let (outer, set, event) = (set(), set(), counter(0));
    outer.add(&set.0, EPOLLIN | EPOLLET);
    set.add(&event, EPOLLIN | EPOLLET);
    let ended = AtomicU64::new(0);
    let main = |number: usize| match number {
        0 => {
            for _ in 0..50 {
                let [reader, writer] = pipe();
                let _ = set.control(EPOLL_CTL_ADD, *reader, EPOLLIN, 1);
                let _ = set.control(EPOLL_CTL_ADD, *writer, EPOLLOUT | EPOLLET, 1);
                write(&writer);
                drop(writer);
                let _ = set.control(EPOLL_CTL_MOD, *reader, EPOLLIN | EPOLLONESHOT, 1);
            }
            ended.fetch_add(1, Ordering::Relaxed);
        }
        1 => {
            for _ in 0..50 {
                let other = self::set();
                let _ = outer.control(EPOLL_CTL_ADD, *other.0, EPOLLIN, 2);
                let _ = other.control(EPOLL_CTL_ADD, *event, EPOLLIN, 2);
                let _ = other.control(EPOLL_CTL_ADD, *set.0, EPOLLIN, 2);
                write(&event);
            }
            ended.fetch_add(1, Ordering::Relaxed);
        }
        number => {
            let waited = if number == 2 { &outer } else { &set };
            let mut events = [EpollEvent::default(); 8];
            while ended.load(Ordering::Relaxed) != 2 {
                holds("a wait", waited.wait(&mut events, 1).is_ok());
            }
        }
    };
    all_at_once(4, main);
    read(&event);
    let _ = set.now();
    equal("only the counter is left", set.now(), NOTHING);
    write(&event);
    equal("and is ready", set.now(), of(&event, EPOLLIN));
}

fn exclusive() {
    let (set, inner, event) = (set(), self::set(), counter(1));
    let add = |file: &File, events: u32| set.control(EPOLL_CTL_ADD, **file, events | EPOLLEXCLUSIVE, **file);
    for events in [EPOLLONESHOT, EPOLLRDHUP, EPOLLRDNORM, 2] {
        equal(("not with", events), add(&event, EPOLLIN | events), Err(EINVAL));
    }
    equal("no set", add(&inner.0, EPOLLIN), Err(EINVAL));
    equal("a change", set.control(EPOLL_CTL_MOD, *event, EPOLLIN | EPOLLEXCLUSIVE, 0), Err(EINVAL));
    equal("added", add(&event, EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLET | EPOLLWAKEUP), Ok(0));
    equal("ready", set.now(), of(&event, EPOLLIN | EPOLLOUT));
    equal("no change", set.control(EPOLL_CTL_MOD, *event, EPOLLIN, 0), Err(EINVAL));
    write(&event);
    equal("ready", set.now(), of(&event, EPOLLIN | EPOLLOUT));
    set.remove(&event);
}
