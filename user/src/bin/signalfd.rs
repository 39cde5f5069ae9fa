//! Signals that are read from files: what is made and refused, the records, waits, polls, and whose signals they are.
//!
//! Each answer is Linux's.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call);

fn run(_: Start) -> u8 {
    block(&[SIGUSR1, SIGUSR2, SIGTERM, SIGCHLD, RT]);
    parts! { ()
        made_and_refused what_a_file_is_not in_order by_their_causes too_little_room codes children timers
        reads_wait other_sets polled watched of_the_reader of_a_thread ignored many_readers
    }
    status("signalfd")
}

/// A signal with a value.
const RT: u32 = 34;
/// Bytes of a record.
const SIZE: u64 = size_of::<SignalfdSiginfo>() as u64;

type Answer = Result<u64, Errno>;

/// The set of these.
fn all_of(signals: &[u32]) -> u64 {
    signals.iter().fold(0, |set, &signal| set | set_of(signal))
}

fn block(signals: &[u32]) {
    mask(SIG_BLOCK, all_of(signals)).expect("a mask");
}

/// Opens a file of these signals, or gives one another set.
fn signalfd(file: u64, signals: &[u32], flags: u32) -> Answer {
    let set = all_of(signals);
    call(SIGNALFD4, [file, &raw const set as u64, 8, flags.into()])
}

fn file(signals: &[u32], flags: u32) -> File {
    File(signalfd(u64::MAX, signals, flags).expect("a file of signals"))
}

/// Reads up to `records`, whose places are zero where there are fewer.
fn read<const RECORDS: usize>(file: &File) -> Result<[SignalfdSiginfo; RECORDS], Errno> {
    let mut records = [SignalfdSiginfo::default(); RECORDS];
    let read = call(READ, [**file, records.as_mut_ptr() as u64, RECORDS as u64 * SIZE])?;
    let found = records.iter().filter(|record| record.signo != 0).count() as u64;
    equal("whole records", read, found * SIZE);
    Ok(records)
}

/// The signals of up to three records.
fn signals(file: &File) -> Result<[u32; 3], Errno> {
    Ok(read::<3>(file)?.map(|record| record.signo))
}

/// Reads one.
fn one(file: &File) -> Result<SignalfdSiginfo, Errno> {
    read::<1>(file).map(|[record]| record)
}

fn send(signal: u32) {
    process::kill(process::id() as i32, signal).expect("a signal");
}

/// A record without its sender, which is this process.
fn of_own(record: SignalfdSiginfo) -> SignalfdSiginfo {
    equal("its own", record.pid == process::id(), true);
    SignalfdSiginfo { pid: 0, ..record }
}

fn made_and_refused() {
    let set = set_of(SIGUSR1);
    let at = &raw const set as u64;
    for size in [0, 4, 7, 9, 16, u64::MAX] {
        equal(("size", size), call(SIGNALFD4, [u64::MAX, NOWHERE, size, 1]), Err(EINVAL));
    }
    equal("a set at", call(SIGNALFD4, [u64::MAX, NOWHERE, 8, 1]), Err(EFAULT));
    equal("no set", call(SIGNALFD4, [u64::MAX, 0, 8, 1]), Err(EFAULT));
    for flags in [1, u64::from(O_APPEND), u64::from(u32::MAX)] {
        equal(("flags", flags), call(SIGNALFD4, [999, at, 8, flags]), Err(EINVAL));
    }
    let counter = File::counter(0, 0).expect("a counter");
    for (other, error) in [(999, EBADF), (*counter, EINVAL), (u64::from(u32::MAX) - 1, EBADF)] {
        equal("a set of another", call(SIGNALFD4, [other, at, 8, 0]), Err(error));
    }
    // The upper half does not count.
    drop(File(call(SIGNALFD4, [u64::from(u32::MAX), at, 8, 0]).expect("a file")));
    drop(file(&[], 0));
    let all = file(&[SIGKILL, SIGSTOP, SIGUSR1], O_CLOEXEC | O_NONBLOCK);
    equal("it closes", all.fcntl(F_GETFD, 0), Ok(FD_CLOEXEC.into()));
    equal("its flags", all.fcntl(F_GETFL, 0), Ok((O_RDWR | O_NONBLOCK).into()));
    equal("another set", signalfd(*all, &[SIGUSR2], 0), Ok(*all));
    equal("flags stay", all.fcntl(F_GETFL, 0), Ok((O_RDWR | O_NONBLOCK).into()));
    equal("its own flags count all the same", signalfd(*all, &[SIGUSR2], 1), Err(EINVAL));
}

fn what_a_file_is_not() {
    let file = file(&[SIGUSR1], O_NONBLOCK);
    send(SIGUSR1);
    let room = [0_u8; 256];
    let at = room.as_ptr() as u64;
    for size in [0, 1, SIZE - 1] {
        equal(("room", size), call(READ, [*file, at, size]), Err(EINVAL));
    }
    for size in [0, 8, SIZE] {
        equal(("no writes", size), call(WRITE, [*file, at, size]), Err(EINVAL));
    }
    let pieces = [[at, 8], [at, 0]];
    for (list, count) in [(0, 0), (NOWHERE, 1), (&raw const pieces[1] as u64, 1), (pieces.as_ptr() as u64, 2)] {
        equal(("nor by a list", count), call(WRITEV, [*file, list, count]), Err(EINVAL));
    }
    equal("nor from the kernel", call(WRITE, [*file, KERNEL, 8]), Err(EINVAL));
    equal(
        "by flags that are none",
        call(PWRITEV2, [*file, pieces.as_ptr() as u64, 1, u64::MAX, 0, 1 << 20]),
        Err(EINVAL),
    );
    equal("at no position", call(PREAD64, [*file, at, SIZE, 0]), Err(ESPIPE));
    equal("nor a write", call(PWRITE64, [*file, at, SIZE, 0]), Err(ESPIPE));
    equal("which stays", [file.seek(5, SEEK_SET), file.seek(0, SEEK_END)], [Ok(0), Ok(0)]);
    equal("no size", call(FTRUNCATE, [*file, 0]), Err(EINVAL));
    equal("no memory", call(MMAP, [0, PAGE, PROT_READ, MAP_SHARED, *file, 0]), Err(ENODEV));
    equal("what it is", file.stat().st_mode, 0o600);
    equal("the signal is still there", signals(&file), Ok([SIGUSR1, 0, 0]));
    equal("once", signals(&file), Err(EAGAIN));
}

fn in_order() {
    let file = file(&[SIGUSR1, SIGUSR2, SIGTERM], O_NONBLOCK);
    equal("none", signals(&file), Err(EAGAIN));
    for signal in [SIGTERM, SIGUSR1, SIGUSR2] {
        send(signal);
    }
    equal("by their numbers", signals(&file), Ok([SIGUSR1, SIGUSR2, SIGTERM]));
    send(SIGUSR1);
    process::tgkill(process::id(), process::thread_id(), SIGTERM).expect("a signal");
    equal("the thread's own first", signals(&file), Ok([SIGTERM, SIGUSR1, 0]));
    send(SIGUSR1);
    send(SIGUSR1);
    send(SIGCHLD);
    equal("once, and no other", signals(&file), Ok([SIGUSR1, 0, 0]));
    holds("which is still pending", is_pending(SIGCHLD).expect("the signals that are pending"));
    equal("it is wanted now", signalfd(*file, &[SIGCHLD], 0), Ok(*file));
    equal("and read", signals(&file), Ok([SIGCHLD, 0, 0]));
}

fn by_their_causes() {
    let file = file(&[SIGUSR1, RT], O_NONBLOCK);
    send(SIGUSR1);
    let sent = SignalfdSiginfo { signo: SIGUSR1, ..SignalfdSiginfo::default() };
    equal("by kill", one(&file).map(of_own), Ok(sent));
    process::tgkill(process::id(), process::thread_id(), SIGUSR1).expect("a signal");
    equal("by tgkill", one(&file).map(of_own), Ok(SignalfdSiginfo { code: SI_TKILL, ..sent }));
    queue(RT, SI_QUEUE, [u64::from(process::id()) | 7 << 32, 0x1234_5678_9abc_def0]);
    let value = SignalfdSiginfo { signo: RT, code: SI_QUEUE, uid: 7, int: 0x9abc_def0_u32 as i32, ..sent };
    equal("with a value", one(&file).map(of_own), Ok(SignalfdSiginfo { ptr: 0x1234_5678_9abc_def0, ..value }));
}

/// Sends itself a signal with any cause.
fn queue(signal: u32, code: i32, fields: [u64; 2]) {
    let mut info = SigInfo::new(signal, code);
    info.fields[..2].copy_from_slice(&fields);
    call(RT_SIGQUEUEINFO, [process::id().into(), signal.into(), &raw const info as u64]).expect("a signal");
}

fn too_little_room() {
    let file = file(&[SIGUSR1, SIGUSR2], O_NONBLOCK);
    let pages = map(2 * PAGE, RW).expect("pages");
    // SAFETY: nothing of Rust's is in it.
    unsafe { munmap(pages + PAGE, PAGE) }.expect("the second goes");
    send(SIGUSR1);
    equal("nowhere", call(READ, [*file, NOWHERE, SIZE]), Err(EFAULT));
    equal("it is lost", signals(&file), Err(EAGAIN));
    send(SIGUSR1);
    send(SIGUSR2);
    equal("room for one", call(READ, [*file, pages + PAGE - SIZE, 2 * SIZE]), Ok(SIZE));
    equal("both are gone", signals(&file), Err(EAGAIN));
    send(SIGUSR1);
    send(SIGUSR2);
    equal("room for one and a half", call(READ, [*file, pages, SIZE + SIZE / 2]), Ok(SIZE));
    equal("the other stays", signals(&file), Ok([SIGUSR2, 0, 0]));
    // Across two places.
    send(SIGUSR1);
    let places = [[pages, SIZE / 2], [pages + SIZE / 2, SIZE / 2]];
    equal("in two halves", call(READV, [*file, places.as_ptr() as u64, 2]), Ok(SIZE));
    // SAFETY: the page is mapped, and was written by the call.
    let record = unsafe { (pages as *const SignalfdSiginfo).read() };
    equal("the whole", record.signo, SIGUSR1);
    // SAFETY: as above.
    unsafe { munmap(pages, PAGE) }.expect("the first goes");
}

/// Each signal with codes of its own, and one without, by each code that a program may give itself.
fn codes() {
    let all = [SIGUSR1, SIGILL, SIGFPE, SIGSEGV, SIGBUS, SIGTRAP, SIGCHLD, SIGIO, SIGSYS, RT];
    block(&all);
    let file = file(&all, O_NONBLOCK);
    for signal in all {
        for code in (0..18).chain([0x7f, SI_KERNEL, SI_KERNEL + 1, i32::MAX, SI_TIMER, -3, SI_SIGIO, SI_TKILL, -60]) {
            queue(signal, code, [0xaaaa_bbbb_cccc_dddd, 0xeeee_ffff_abab_cdcd]);
            let record = one(&file).expect("the signal");
            // Digits are left out where two kernels are compared.
            println!("{signal} {code}: {record:x?}");
        }
    }
    mask(SIG_UNBLOCK, set_of(SIGSEGV)).expect("a mask");
}

fn children() {
    let file = file(&[SIGCHLD], O_NONBLOCK);
    for (ends_by, code, status) in [(0, CLD_EXITED, 3), (SIGKILL, CLD_KILLED, SIGKILL as i32)] {
        let child = process::spawn(|| {
            if ends_by != 0 {
                send(ends_by);
            }
            3
        });
        process::wait(child);
        let record = one(&file).expect("its end");
        equal("the child", record.pid == child, true);
        equal("its end", (record.signo, record.code, record.status), (SIGCHLD, code, status));
    }
}

fn timers() {
    /// `struct sigevent`, as far as it is read.
    #[repr(C)]
    struct Event([u64; 8]);
    let file = file(&[SIGUSR2], 0);
    let event = Event([0xabcd_ef01_2345_6789, u64::from(SIGUSR2) | u64::from(SIGEV_SIGNAL) << 32, 0, 0, 0, 0, 0, 0]);
    let mut id = 0_u32;
    equal("made", call(TIMER_CREATE, [CLOCK_MONOTONIC, &raw const event as u64, &raw mut id as u64]), Ok(0));
    let times = [[0_u64, 0], [0, MILLISECOND]];
    equal("soon", call(TIMER_SETTIME, [id.into(), 0, times.as_ptr() as u64, 0]), Ok(0));
    let record = one(&file).expect("its signal");
    equal("the timer", record.tid == id, true);
    let wanted = SignalfdSiginfo { signo: SIGUSR2, code: SI_TIMER, int: 0x2345_6789, ..SignalfdSiginfo::default() };
    equal("its value", SignalfdSiginfo { tid: 0, ..record }, SignalfdSiginfo { ptr: 0xabcd_ef01_2345_6789, ..wanted });
    equal("deleted", call(TIMER_DELETE, [id.into()]), Ok(0));
}

fn reads_wait() {
    let file = file(&[SIGUSR1, SIGUSR2], 0);
    let (own, thread) = (process::id(), process::thread_id());
    for _ in 0..20 {
        let (_, read) = beside(|| send(SIGUSR1), || signals(&file));
        equal("of the process", read, Ok([SIGUSR1, 0, 0]));
        let (_, read) = beside(|| process::tgkill(own, thread, SIGUSR2).expect("a signal"), || signals(&file));
        equal("of the thread", read, Ok([SIGUSR2, 0, 0]));
    }
    interrupt_by(SIGALRM, 0);
    equal("interrupted", while_signalled(SIGALRM, MILLISECOND, || one(&file)), Err(EINTR));
    // Without a wait as soon as one was taken.
    send(SIGUSR1);
    equal("one", signals(&file), Ok([SIGUSR1, 0, 0]));
}

/// A reader waits for the signals that the file has by then.
fn other_sets() {
    let file = file(&[SIGUSR1], 0);
    for _ in 0..20 {
        send(SIGUSR2);
        let change = || equal("another set", signalfd(*file, &[SIGUSR2], 0), Ok(*file));
        let (_, read) = beside(change, || signals(&file));
        equal("of that", read, Ok([SIGUSR2, 0, 0]));
        equal("and back", signalfd(*file, &[SIGUSR1], 0), Ok(*file));
    }
}

/// The events of a file, at once or when there are some.
fn poll(file: &File, waits: bool) -> (Answer, u16) {
    let none = [0_u64; 2];
    let mut list = [PollFd { fd: **file as i32, events: POLLIN | POLLOUT | POLLRDNORM, revents: 0 }];
    let limit = if waits { 0 } else { &raw const none as u64 };
    (call(PPOLL, [list.as_mut_ptr() as u64, 1, limit, 0, 8]), list[0].revents)
}

fn polled() {
    let file = file(&[SIGUSR1], 0);
    equal("nothing", poll(&file, false), (Ok(0), 0));
    send(SIGUSR2);
    equal("nor for another", poll(&file, false), (Ok(0), 0));
    send(SIGUSR1);
    equal("one", [poll(&file, false), poll(&file, true)], [(Ok(1), POLLIN); 2]);
    equal("which is read", signals(&file), Ok([SIGUSR1, 0, 0]));
    equal("none is left", poll(&file, false), (Ok(0), 0));
    for _ in 0..20 {
        let (_, found) = beside(|| send(SIGUSR1), || poll(&file, true));
        equal("it comes", found, (Ok(1), POLLIN));
        equal("and is read", signals(&file), Ok([SIGUSR1, 0, 0]));
    }
    let change = || equal("another set", signalfd(*file, &[SIGUSR2], 0), Ok(*file));
    let (_, found) = beside(change, || poll(&file, true));
    equal("of the other set", found, (Ok(1), POLLIN));
    equal("is read", signals(&file), Ok([SIGUSR2, 0, 0]));
}

fn watched() {
    let file = file(&[SIGUSR1], O_NONBLOCK);
    for mode in [0, EPOLLET] {
        let set = File(call(EPOLL_CREATE1, [0]).expect("a set"));
        let event = EpollEvent { events: EPOLLIN | mode, data: 5 };
        equal("added", call(EPOLL_CTL, [*set, EPOLL_CTL_ADD.into(), *file, &raw const event as u64]), Ok(0));
        let wait = |limit: i32| {
            let mut event = EpollEvent::default();
            (call(EPOLL_PWAIT, [*set, &raw mut event as u64, 1, limit as u64, 0, 0]), event.events, event.data)
        };
        equal("nothing", wait(0), (Ok(0), 0, 0));
        for _ in 0..10 {
            let (_, found) = beside(|| send(SIGUSR1), || wait(-1));
            equal("it comes", found, (Ok(1), EPOLLIN, 5));
            equal("and is read", signals(&file), Ok([SIGUSR1, 0, 0]));
            equal("nothing is left", wait(0), (Ok(0), 0, 0));
        }
        send(SIGUSR1);
        equal("pending", wait(0), (Ok(1), EPOLLIN, 5));
        send(SIGUSR1);
        let again = if mode == 0 { (Ok(1), EPOLLIN, 5) } else { (Ok(0), 0, 0) };
        equal("by change not again", wait(0), again);
        apart(|| send(SIGUSR1));
        equal("nor for another process", wait(0), again);
        equal("it is read", signals(&file), Ok([SIGUSR1, 0, 0]));
    }
}

/// The reader's signals are read, and the poller's are polled.
fn of_the_reader() {
    let file = file(&[SIGUSR1, SIGUSR2], O_NONBLOCK);
    send(SIGUSR1);
    apart(|| {
        equal("the copy has none", (signals(&file), poll(&file, false)), (Err(EAGAIN), (Ok(0), 0)));
        send(SIGUSR2);
        equal("but its own", (poll(&file, false), signals(&file)), ((Ok(1), POLLIN), Ok([SIGUSR2, 0, 0])));
        equal("another set", signalfd(*file, &[SIGUSR1], 0), Ok(*file));
    });
    process::in_copy(|| {
        send(SIGUSR2);
        assert_eq!(signals(&file), Err(EAGAIN), "the set is the file's");
    });
    equal("its own", signals(&file), Ok([SIGUSR1, 0, 0]));
}

fn of_a_thread() {
    let file = file(&[SIGUSR1, SIGUSR2], O_NONBLOCK);
    let (own, thread) = (process::id(), process::thread_id());
    let (other, _) = beside(
        || {
            process::tgkill(own, thread, SIGUSR1).expect("a signal");
            let before = (signals(&file), poll(&file, false));
            process::tgkill(own, process::thread_id(), SIGUSR2).expect("a signal");
            (before, poll(&file, false), signals(&file))
        },
        || (),
    );
    equal("each thread its own", other, ((Err(EAGAIN), (Ok(0), 0)), (Ok(1), POLLIN), Ok([SIGUSR2, 0, 0])));
    equal("and this one", signals(&file), Ok([SIGUSR1, 0, 0]));
}

fn ignored() {
    let file = file(&[SIGTERM, SIGALRM], O_NONBLOCK);
    set_without_handler(SIGTERM, SIG_IGN);
    send(SIGTERM);
    equal("blocked, it is read", signals(&file), Ok([SIGTERM, 0, 0]));
    set_without_handler(SIGALRM, SIG_IGN);
    send(SIGALRM);
    equal("not blocked, it is lost", signals(&file), Err(EAGAIN));
    send(SIGTERM);
    set_without_handler(SIGTERM, SIG_IGN);
    equal("it is dropped by the action", signals(&file), Err(EAGAIN));
    set_without_handler(SIGTERM, SIG_DFL);
}

/// Each signal is read once, by one of several threads.
fn many_readers() {
    const READERS: usize = 4;
    const EACH: u32 = 25;
    let (file, taken) = (file(&[SIGUSR1], 0), AtomicU32::new(0));
    all_at_once(READERS + 1, |number| {
        for round in 0..EACH {
            if number != 0 {
                equal("one", signals(&file), Ok([SIGUSR1, 0, 0]));
                taken.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            for sent in 0..READERS as u32 {
                send(SIGUSR1);
                until(|| taken.load(Ordering::Relaxed) == round * READERS as u32 + sent + 1);
            }
        }
    });
    holds("none is left", !is_pending(SIGUSR1).expect("the signals that are pending"));
}
