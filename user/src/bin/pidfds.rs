//! Files that refer to a process, the calls that take one, and clone3: the program passes on Linux, too.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, unmap);

const OK: Result<u64, Errno> = Ok(0);
/// No descriptor of the program's, and no number of a process.
const NONE: u64 = 30_000;
/// The calling process in place of a descriptor.
const MYSELF: u64 = PIDFD_SELF_THREAD_GROUP as u64;

fn run(_: Start) -> u8 {
    parts! { ()
        opened what_a_file_of_a_process_is_not polled_until_the_end signals_by_a_file causes_that_one_may_give
        a_number_that_comes_again waited_for_by_a_file waitid_refuses_in_linuxs_order advice_for_others memory_of_a_process_that_ends
        clone3_reads_what_it_knows clone3_with_a_pidfd clone3_with_a_number handlers_are_forgotten
    }
    println!("pidfds: ok");
    wrong()
}

fn open(id: u32, flags: u64) -> u64 {
    call(PIDFD_OPEN, [id.into(), flags]).expect("a pidfd")
}

fn close(descriptor: u64) {
    assert_eq!(call(CLOSE, [descriptor]), OK);
}

fn control(file: u64, command: u32) -> Result<u32, Errno> {
    call(FCNTL, [file, command.into()]).map(|answer| answer as u32)
}

/// A child that sleeps until a signal ends it.
fn sleeper() -> u32 {
    process::spawn(|| -> u8 { time::sleep_for_ever() })
}

fn opened() {
    for (what, id, flags, wanted) in [
        ("0", 0, 0, EINVAL),
        ("below 0", u64::MAX, 0, EINVAL),
        ("no process", NONE, 0, ESRCH),
        ("flags, of no process", NONE, 1, EINVAL),
    ] {
        assert_eq!(call(PIDFD_OPEN, [id, flags]), Err(wanted), "{what}");
    }
    let (own, waits_not) = (open(process::id(), 0), open(process::id(), PIDFD_NONBLOCK));
    assert_eq!(control(own, F_GETFD), Ok(FD_CLOEXEC));
    assert_eq!([own, waits_not].map(|file| control(file, F_GETFL)), [Ok(2), Ok(2 | PIDFD_NONBLOCK as u32)]);
    [own, waits_not].into_iter().for_each(close);
}

fn what_a_file_of_a_process_is_not() {
    let (own, mut bytes) = (open(process::id(), 0), [0_u8; 8]);
    let buffer = bytes.as_mut_ptr().expose_provenance() as u64;
    for (what, number, arguments, wanted) in [
        ("read", READ, [own, buffer, 8, 0, 0], EINVAL),
        ("read of nothing", READ, [own, buffer, 0, 0, 0], EINVAL),
        ("write", WRITE, [own, buffer, 8, 0, 0], EINVAL),
        ("pread", PREAD64, [own, buffer, 8, 0, 0], EINVAL),
        ("lseek", LSEEK, [own, 0, 0, 0, 0], ESPIPE),
        ("fsync", FSYNC, [own, 0, 0, 0, 0], EINVAL),
        ("mmap", MMAP, [0, PAGE, PROT_READ, MAP_SHARED, own], ENODEV),
        ("ftruncate", FTRUNCATE, [own, 0, 0, 0, 0], ENOTSUP),
    ] {
        assert_eq!(call(number, arguments), Err(wanted), "{what}");
    }
    close(own);
}

/// The events that poll finds of a file within `limit` milliseconds.
fn found(file: u64, events: u16, limit: i64) -> u16 {
    let mut polled = [PollFd { fd: file as i32, events, revents: 0 }];
    let limit = [limit / 1000, limit % 1000 * 1_000_000];
    let place = polled.as_mut_ptr().expose_provenance() as u64;
    let count = call(PPOLL, [place, 1, limit.as_ptr().expose_provenance() as u64, 0, 8]).expect("an answer");
    assert_eq!(count, u64::from(polled[0].revents != 0));
    polled[0].revents
}

fn polled_until_the_end() {
    const ALL: u16 = POLLIN | POLLOUT | POLLRDNORM | POLLHUP;
    /// Longer than any test waits.
    const LONG: i64 = 1_000_000;
    let child = sleeper();
    let file = open(child, 0);
    assert_eq!(found(file, ALL, 0), 0, "running");
    let waiting = process::spawn(|| u8::from(found(file, POLLIN, LONG) == POLLIN));
    // By then it sleeps, most often.
    time::sleep(20 * MILLISECOND).expect("a sleep");
    assert_eq!(call(PIDFD_SEND_SIGNAL, [file, SIGTERM.into(), 0, 0]), OK);
    assert_eq!(process::wait(waiting), exited(1), "another process is woken");
    assert_eq!(found(file, ALL, LONG), POLLIN | POLLRDNORM, "ended");
    let again = open(child, 0);
    assert_eq!(found(again, ALL, 0), POLLIN | POLLRDNORM, "opened when it had ended");
    assert_eq!(process::wait(child), killed(SIGTERM));
    for file in [file, again] {
        assert_eq!(found(file, POLLIN, 0), POLLIN | POLLHUP, "collected");
        assert_eq!(call(PIDFD_SEND_SIGNAL, [file, 0, 0, 0]), Err(ESRCH));
        close(file);
    }
}

fn signals_by_a_file() {
    let child = sleeper();
    let file = open(child, 0);
    for (what, file, signal, flags, wanted) in [
        ("no file", NONE, 0, 0, Err(EBADF)),
        ("no file, flags", NONE, 0, 8, Err(EINVAL)),
        ("another file", 1, 0, 0, Err(EBADF)),
        ("flags", file, 0, 8, Err(EINVAL)),
        ("two flags", file, 0, 3, Err(EINVAL)),
        ("no signal", file, 65, 0, Err(EINVAL)),
        ("nothing", file, 0, 0, OK),
        ("nothing, to the first thread", file, 0, PIDFD_SIGNAL_THREAD, OK),
        ("nothing, to all threads", file, 0, PIDFD_SIGNAL_THREAD_GROUP, OK),
        ("a group that it does not lead", file, 0, PIDFD_SIGNAL_PROCESS_GROUP, Err(ESRCH)),
        ("nothing, to itself", MYSELF, 0, 0, OK),
    ] {
        assert_eq!(call(PIDFD_SEND_SIGNAL, [file, signal, 0, flags]), wanted, "{what}");
    }
    assert_eq!(call(PIDFD_SEND_SIGNAL, [file, SIGUSR1.into(), 0, PIDFD_SIGNAL_THREAD]), OK);
    assert_eq!(process::wait(child), killed(SIGUSR1));
    close(file);
}

fn causes_that_one_may_give() {
    let child = sleeper();
    let file = open(child, 0);
    let send = |file, signal: u32, of: u32, code| {
        let cause = SigInfo::new(of, code);
        call(PIDFD_SEND_SIGNAL, [file, signal.into(), (&raw const cause).expose_provenance() as u64, 0])
    };
    assert_eq!(send(file, SIGUSR1, SIGUSR1, SI_USER), Err(EPERM), "as kill's");
    assert_eq!(send(file, SIGUSR1, SIGUSR1, SI_TKILL), Err(EPERM), "as tkill's");
    assert_eq!(send(file, SIGUSR2, SIGUSR1, -1), Err(EINVAL), "another signal's");
    assert_eq!(send(file, 65, 65, -1), Err(EINVAL), "no signal");
    assert_eq!(send(file, 0, 0, -1), OK, "nothing");
    assert_eq!(send(MYSELF, 0, 0, SI_USER), OK, "to itself");
    assert_eq!(call(PIDFD_SEND_SIGNAL, [file, SIGUSR1.into(), 8, 0]), Err(EFAULT));
    assert_eq!(send(file, SIGUSR1, SIGUSR1, -1), OK);
    assert_eq!(process::wait(child), killed(SIGUSR1));
    close(file);
}

/// Signal, code, number and status that `waitid` stores: zeros where it fails.
fn wait(kind: u64, id: u64, options: u64) -> Result<[i32; 4], Errno> {
    let mut words = [0x5555_5555_i32; 32];
    let answer = call(WAITID, [kind, id, words.as_mut_ptr().expose_provenance() as u64, options, 0]);
    if answer.is_err() {
        assert_eq!([words[0], words[2], words[4], words[6]], [0; 4]);
    }
    answer?;
    assert_eq!(
        [words[1], words[3], words[5], words[7]],
        [0, 0x5555_5555, 0, 0x5555_5555],
        "errno, nothing, user, nothing"
    );
    Ok([words[0], words[2], words[4], words[6]])
}

/// A file of a process that is gone means none, though another has its number.
fn a_number_that_comes_again() {
    const WANTED: u32 = 31_002;
    let next = || {
        let numbers = [WANTED];
        let at = numbers.as_ptr().expose_provenance() as u64;
        match call(CLONE3, [fields(&[(4, SIGCHLD.into()), (8, at), (9, 1)]).as_ptr().expose_provenance() as u64, 88]) {
            Ok(0) => time::sleep_for_ever(),
            child => assert_eq!(child, Ok(WANTED.into())),
        }
    };
    next();
    let (file, serial) = (open(WANTED, 0), |file| number_of(file));
    let before = serial(file);
    process::end(WANTED);
    next();
    let pieces = [[PAGE, PAGE]];
    let list = pieces.as_ptr().expose_provenance() as u64;
    assert_eq!(call(PIDFD_SEND_SIGNAL, [file, SIGKILL.into(), 0, 0]), Err(ESRCH));
    assert_eq!(wait(P_PIDFD, file, WEXITED | WNOHANG), Err(ECHILD));
    assert_eq!(call(PROCESS_MADVISE, [file, list, 1, MADV_COLD, 0]), Err(ESRCH));
    assert_eq!(call(PROCESS_MRELEASE, [file, 0]), Err(ESRCH));
    close(file);
    let file = open(WANTED, 0);
    assert_ne!(serial(file), before, "its inode");
    assert_eq!(call(PIDFD_SEND_SIGNAL, [file, 0, 0, 0]), OK, "the other one lives");
    close(file);
    process::end(WANTED);
}

/// The number of a file's inode.
fn number_of(file: u64) -> u64 {
    let mut words = [0_u64; 16];
    assert_eq!(call(FSTAT, [file, words.as_mut_ptr().expose_provenance() as u64]), OK);
    words[1]
}

fn waited_for_by_a_file() {
    let child = sleeper();
    let (file, waits_not) = (open(child, 0), open(child, PIDFD_NONBLOCK));
    assert_eq!(wait(P_PIDFD, file, WEXITED | WNOHANG), Ok([0; 4]), "running");
    assert_eq!(wait(P_PIDFD, waits_not, WEXITED), Err(EAGAIN), "running");
    assert_eq!(wait(P_PIDFD, waits_not, WEXITED | WNOHANG), Ok([0; 4]), "running");
    process::kill(child as i32, SIGKILL).expect("a signal");
    let ended = Ok([SIGCHLD as i32, CLD_KILLED, child as i32, SIGKILL as i32]);
    assert_eq!(wait(P_PIDFD, file, WEXITED | WNOWAIT), ended);
    assert_eq!(wait(P_PIDFD, file, WUNTRACED | WNOHANG), Err(ECHILD), "it stops no more");
    assert_eq!(call(WAITID, [P_PIDFD, file, 8, WEXITED | WNOWAIT, 0]), Err(EFAULT));
    assert_eq!(call(WAITID, [P_PIDFD, file, 0, WEXITED | WNOWAIT, 8]), Err(EFAULT));
    assert_eq!(call(WAITID, [P_PIDFD, file, 0, WEXITED | WNOWAIT, 0]), OK);
    assert_eq!(wait(P_PIDFD, waits_not, WEXITED), ended);
    assert_eq!(wait(P_PIDFD, file, WEXITED), Err(ECHILD), "collected");
    [file, waits_not].into_iter().for_each(close);
    let child = process::spawn(|| 7_u8);
    assert_eq!(wait(P_ALL, 0, WEXITED), Ok([SIGCHLD as i32, CLD_EXITED, child as i32, 7]));
    assert_eq!(wait(P_ALL, 0, WEXITED | WNOHANG), Err(ECHILD));
}

fn waitid_refuses_in_linuxs_order() {
    let (child, own) = (sleeper(), open(process::id(), 0));
    for (what, kind, id, options, wanted) in [
        ("no options", P_ALL, 0, 0, EINVAL),
        ("nothing to wait for", P_ALL, 0, WNOHANG, EINVAL),
        ("an unknown option", P_ALL, 0, WEXITED | 0x100, EINVAL),
        ("an unknown kind", 9, 0, WEXITED, EINVAL),
        ("number 0", P_PID, 0, WEXITED, EINVAL),
        ("a number below 0", P_PID, u64::MAX, WEXITED, EINVAL),
        ("no process", P_PID, NONE, WEXITED, ECHILD),
        ("a group below 0", P_PGID, u64::MAX, WEXITED, EINVAL),
        ("another group", P_PGID, NONE, WEXITED, ECHILD),
        ("a descriptor below 0", P_PIDFD, u64::MAX, WEXITED, EINVAL),
        ("no descriptor", P_PIDFD, NONE, WEXITED, EBADF),
        ("another file", P_PIDFD, 1, WEXITED, EBADF),
        ("no child", P_PIDFD, own, WEXITED, ECHILD),
    ] {
        assert_eq!(wait(kind, id, options), Err(wanted), "{what}");
    }
    assert_eq!(call(WAITID, [P_PIDFD, NONE, 8, WEXITED, 0]), Err(EFAULT), "before all else");
    assert_eq!(wait(P_PGID, 0, WEXITED | WNOHANG), Ok([0; 4]), "its own group");
    assert_eq!(wait(P_ALL, 0, WUNTRACED | WNOHANG), Ok([0; 4]), "none has stopped");
    process::end(child);
    close(own);
}

fn advice_for_others() {
    let at = map(8 * PAGE, RW).expect("memory");
    let child = sleeper();
    let (own, other) = (open(process::id(), 0), open(child, 0));
    let advise = |file, pieces: &[[u64; 2]], advice, flags| {
        let array = pieces.as_ptr().expose_provenance() as u64;
        call(PROCESS_MADVISE, [file, array, pieces.len() as u64, advice, flags])
    };
    let page = |index: u64| [at + index * PAGE, PAGE];
    let hole = [PAGE, PAGE];
    for (what, file, pieces, advice, flags, wanted) in [
        ("flags", own, &[page(0)][..], MADV_COLD, 1, Err(EINVAL)),
        ("no file", NONE, &[page(0)], MADV_COLD, 0, Err(EBADF)),
        ("another file", 1, &[page(0)], MADV_COLD, 0, Err(EBADF)),
        ("nothing, of no file", NONE, &[], MADV_COLD, 0, Err(EBADF)),
        ("nothing", own, &[], MADV_COLD, 0, Ok(0)),
        ("no advice about nothing", own, &[], 99, 0, Err(EINVAL)),
        ("three", own, &[page(0), page(2), page(4)], MADV_DONTNEED, 0, Ok(3 * PAGE)),
        ("three, of itself", MYSELF, &[page(0), page(2), page(4)], MADV_COLD, 0, Ok(3 * PAGE)),
        ("no advice", own, &[page(0)], 99, 0, Err(EINVAL)),
        ("another's", other, &[page(0), page(1)], MADV_COLD, 0, Ok(2 * PAGE)),
        ("another's", other, &[page(0)], MADV_WILLNEED, 0, Ok(PAGE)),
        ("another's contents", other, &[page(0)], MADV_DONTNEED, 0, Err(EINVAL)),
        ("another's first accesses", other, &[page(0)], MADV_POPULATE_READ, 0, Err(EINVAL)),
        ("up to a hole", own, &[page(0), hole, page(2)], MADV_COLD, 0, Ok(PAGE)),
        ("a hole", own, &[hole, page(0)], MADV_COLD, 0, Err(ENOMEM)),
        ("no page", own, &[[at + 1, PAGE]], MADV_COLD, 0, Err(EINVAL)),
        ("up to no page", own, &[page(0), [at + 1, PAGE]], MADV_COLD, 0, Ok(PAGE)),
        ("a part of one", own, &[[at, 100]], MADV_COLD, 0, Ok(100)),
        ("a length below 0", own, &[[at, u64::MAX]], MADV_COLD, 0, Err(EINVAL)),
        ("the kernel's", own, &[[0_u64.wrapping_sub(PAGE), PAGE]], MADV_COLD, 0, Err(EFAULT)),
    ] {
        assert_eq!(advise(file, pieces, advice, flags), wanted, "{what}");
    }
    assert_eq!(call(PROCESS_MADVISE, [own, at, 1025, MADV_COLD, 0]), Err(EINVAL), "too many");
    assert_eq!(call(PROCESS_MADVISE, [own, 8, 1, MADV_COLD, 0]), Err(EFAULT), "no list");
    process::end(child);
    assert_eq!(advise(other, &[page(0)], MADV_COLD, 0), Err(ESRCH), "gone");
    [own, other].into_iter().for_each(close);
    unmap(at, 8);
}

fn memory_of_a_process_that_ends() {
    let child = sleeper();
    let file = open(child, 0);
    assert_eq!(call(PROCESS_MRELEASE, [file, 1]), Err(EINVAL), "flags");
    assert_eq!(call(PROCESS_MRELEASE, [file, 0]), Err(EINVAL), "it does not end");
    assert_eq!([NONE, 1].map(|file| call(PROCESS_MRELEASE, [file, 0])), [Err(EBADF); 2]);
    process::kill(child as i32, SIGKILL).expect("a signal");
    let released = call(PROCESS_MRELEASE, [file, 0]);
    assert!(matches!(released, Ok(0) | Err(ESRCH)), "{released:?}");
    assert_eq!(call(WAITID, [P_PIDFD, file, 0, WEXITED | WNOWAIT, 0]), OK);
    assert_eq!(call(PROCESS_MRELEASE, [file, 0]), Err(ESRCH), "ended");
    assert_eq!(process::wait(child), killed(SIGKILL));
    close(file);
}

const FIELDS: usize = 12;

/// Makes a child that exits with 3, and waits for it.
fn clone3(fields: &[u64; FIELDS], bytes: usize) -> Result<u32, Errno> {
    match call(CLONE3, [fields.as_ptr().expose_provenance() as u64, bytes as u64])? {
        0 => process::exit_group(3),
        child => {
            let mut status = 0_u32;
            let at = (&raw mut status).expose_provenance() as u64;
            assert_eq!(call(WAIT4, [child, at, WALL, 0]), Ok(child));
            assert_eq!(status, exited(3));
            Ok(child as u32)
        }
    }
}

fn fields(given: &[(usize, u64)]) -> [u64; FIELDS] {
    let mut fields = [0; FIELDS];
    given.iter().for_each(|&(index, field)| fields[index] = field);
    fields
}

fn clone3_reads_what_it_knows() {
    let newer = fields(&[(11, 1 << 56)]);
    for (what, fields, bytes, wanted) in [
        ("no bytes", fields(&[]), 0, Err(EINVAL)),
        ("too few", fields(&[]), 63, Err(EINVAL)),
        ("the first version", fields(&[]), 64, Ok(())),
        ("an odd one", newer, 65, Ok(())),
        ("the newest that is known", newer, 88, Ok(())),
        ("a newer one, of zeros", newer, 95, Ok(())),
        ("a newer one", newer, 96, Err(E2BIG)),
        ("more than a page", fields(&[]), 4097, Err(E2BIG)),
        ("a signal", fields(&[(4, SIGCHLD.into())]), 88, Ok(())),
        ("a signal in the flags", fields(&[(0, SIGCHLD.into())]), 88, Err(EINVAL)),
        ("no signal", fields(&[(4, 65)]), 88, Err(EINVAL)),
    ] {
        assert_eq!(clone3(&fields, bytes).map(drop), wanted, "{what}");
    }
    assert_eq!(call(CLONE3, [8, 88]), Err(EFAULT));
}

fn clone3_with_a_pidfd() {
    let mut descriptor = 0_i32;
    let place = (&raw mut descriptor).expose_provenance() as u64;
    clone3(&fields(&[(0, CLONE_PIDFD), (1, place)]), 88).expect("a child");
    // SAFETY: nothing else has a reference to it.
    let file = unsafe { (&raw const descriptor).read_volatile() } as u64;
    assert_eq!(control(file, F_GETFD), Ok(FD_CLOEXEC));
    assert_eq!(found(file, POLLIN, 0), POLLIN | POLLHUP, "collected");
    close(file);
    assert_eq!(clone3(&fields(&[(0, CLONE_PIDFD), (1, 8)]), 88), Err(EFAULT));
    assert_eq!(control(file, F_GETFD), Err(EBADF), "nothing stays of it");
    let numbers = [31_003_u32];
    let at = numbers.as_ptr().expose_provenance() as u64;
    for place in [8, 8, place] {
        let answer = clone3(&fields(&[(0, CLONE_PIDFD), (1, place), (8, at), (9, 1)]), 88);
        assert_eq!(answer, if place == 8 { Err(EFAULT) } else { Ok(31_003) }, "nor of its number");
    }
    close(file);
    // The child has none of itself.
    let has_none = || u8::from(control(file, F_GETFD) == Err(EBADF));
    let child = process::clone_with(CLONE_PIDFD | u64::from(SIGCHLD), [place, 0], has_none).expect("a child");
    assert_eq!(process::wait(child), exited(1));
    close(file);
}

fn clone3_with_a_number() {
    const WANTED: u32 = 31_000;
    let with = |numbers: &[u32], count: u64| {
        let at = numbers.as_ptr().expose_provenance() as u64;
        clone3(&fields(&[(8, at), (9, count)]), 88)
    };
    assert_eq!(with(&[WANTED], 1), Ok(WANTED));
    assert_eq!(with(&[WANTED], 1), Ok(WANTED), "it is free again");
    for (what, number, count, wanted) in [
        ("no count", WANTED, 0, EINVAL),
        ("two namespaces", WANTED, 2, EINVAL),
        ("too many", WANTED, 33, EINVAL),
        ("0", 0, 1, EINVAL),
        ("below 0", u32::MAX, 1, EINVAL),
        ("the program's own", process::id(), 1, EEXIST),
    ] {
        assert_eq!(with(&[number; 2], count), Err(wanted), "{what}");
    }
    assert_eq!(clone3(&fields(&[(9, 1)]), 88), Err(EINVAL), "no list");
    assert_eq!(clone3(&fields(&[(8, 8), (9, 1)]), 88), Err(EFAULT));
}

fn handlers_are_forgotten() {
    interrupt_by(SIGUSR1, 0);
    let all = fields(&[(0, CLONE_CLEAR_SIGHAND), (4, SIGCHLD.into())]);
    for (what, fields, ended) in
        [("kept", fields(&[(4, SIGCHLD.into())]), exited(4)), ("forgotten", all, killed(SIGUSR1))]
    {
        let child = call(CLONE3, [fields.as_ptr().expose_provenance() as u64, 88]).expect("a child");
        if child == 0 {
            process::kill(process::id() as i32, SIGUSR1).expect("a signal");
            process::exit_group(4);
        }
        assert_eq!(process::wait(child as u32), ended, "{what}");
    }
}
