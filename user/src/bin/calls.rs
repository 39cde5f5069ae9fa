//! System calls one by one: what they answer, and what they refuse, as Linux does.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, word, put_word);

fn run(_start: Start) {
    parts! { ()
        what_does_not_exist_is_enosys names_and_numbers the_console_takes_bytes clocks_go_forward the_heap_has_an_end
        mappings_come_and_go mappings_are_refused advice_and_presence pointers_are_checked
    }
    println!("calls: ok");
}

fn what_does_not_exist_is_enosys() {
    for number in [0, 1000, 1000, END, 0xffff_ffff] {
        assert_eq!(call(number, []), Err(ENOSYS), "call {number}");
    }
}

fn names_and_numbers() {
    let mut names = UtsName {
        sysname: [1; 65],
        nodename: [1; 65],
        release: [1; 65],
        version: [1; 65],
        machine: [1; 65],
        domainname: [1; 65],
    };
    assert_eq!(call(UNAME, [&raw mut names as u64]), Ok(0));
    assert!(names.sysname.starts_with(b"Linux\0") && names.machine.starts_with(b"aarch64\0"));
    let mut name = [1_u8; 16];
    assert_eq!(call(PRCTL, [PR_SET_NAME, c"a name that is far too long".as_ptr() as u64]), Ok(0));
    assert_eq!(call(PRCTL, [PR_GET_NAME, name.as_mut_ptr() as u64]), Ok(0));
    assert_eq!(&name, b"a name that is \0");
    assert_eq!(call(PRCTL, [0x7fff_0000]), Err(EINVAL));
    assert_eq!((call(GETUID, []), call(GETPPID, [])), (Ok(0), Ok(0)));
    let mut cpu = u32::MAX;
    assert_eq!(call(GETCPU, [&raw mut cpu as u64]), Ok(0));
    assert!(cpu < 16);
    let own = granule_user::process::thread_id();
    assert_eq!(call(SET_TID_ADDRESS, [0]), Ok(u64::from(own)));
    let mut random = [[0_u8; 20]; 2];
    for bytes in &mut random {
        assert_eq!(call(GETRANDOM, [bytes.as_mut_ptr() as u64, 20, 0]), Ok(20));
    }
    assert_ne!(random[0], random[1]);
    assert_eq!(call(GETRANDOM, [NOWHERE, 20, 64]), Err(EINVAL));
}

fn the_console_takes_bytes() {
    let pieces = [c"calls: ", c"in ", c"", c"pieces\n"]
        .map(|piece| IoVec { base: piece.as_ptr() as u64, length: piece.count_bytes() as u64 });
    assert_eq!(call(WRITEV, [1, pieces.as_ptr() as u64, 4]), Ok(17));
    assert_eq!(call(WRITEV, [1, pieces.as_ptr() as u64, 1025]), Err(EINVAL));
    assert_eq!(call(WRITE, [3, pieces.as_ptr() as u64, 1]), Err(EBADF));
    assert_eq!(call(WRITE, [1, NOWHERE, 0]), Ok(0), "nothing is looked at");
    assert_eq!((call(IOCTL, [1, 0x5401, 0]), call(IOCTL, [9])), (Err(ENOTTY), Err(EBADF)));
    assert_eq!((call(CLOSE, [2]), call(CLOSE, [77])), (Ok(0), Err(EBADF)));
    // At the end of the mapping: as many whole pieces as there are, or nothing.
    let page = map(2 * PAGE, RW).expect("pages");
    assert_eq!(call(MUNMAP, [page + PAGE, PAGE]), Ok(0));
    assert_eq!(call(WRITE, [1, page + PAGE - 4, 8]), Err(EFAULT));
    assert_eq!(call(MUNMAP, [page, PAGE]), Ok(0));
}

fn clocks_go_forward() {
    let before = time::now();
    assert_eq!(time::sleep(1_000_000), Ok(()));
    assert!(time::now() - before >= 1_000_000);
    let end = Timespec::from_nanoseconds(time::now() + 2_000_000);
    assert_eq!(call(CLOCK_NANOSLEEP, [1, TIMER_ABSTIME, &raw const end as u64, 0]), Ok(0));
    assert!(time::now() >= end.to_nanoseconds().expect("a time"));
    assert_eq!(call(CLOCK_GETTIME, [99, &raw const end as u64]), Err(EINVAL), "no such clock");
    for bad in [Timespec { seconds: -1, nanoseconds: 0 }, Timespec { seconds: 0, nanoseconds: 1_000_000_000 }] {
        assert_eq!(call(NANOSLEEP, [&raw const bad as u64, 0]), Err(EINVAL), "{bad:?}");
    }
}

fn the_heap_has_an_end() {
    let start = call(BRK, [0]).expect("an end");
    assert_eq!(call(BRK, [start + 3 * PAGE + 5]), Ok(start + 3 * PAGE + 5));
    for at in [start, start + 3 * PAGE + 4] {
        // SAFETY: the heap is mapped now, and has no other user.
        unsafe { (at as *mut u8).write_volatile(7) };
    }
    assert_eq!(call(BRK, [start - 1]), Ok(start + 3 * PAGE + 5), "not below its start");
    assert_eq!(call(BRK, [KERNEL]), Ok(start + 3 * PAGE + 5), "not into the kernel");
    assert_eq!(call(BRK, [start]), Ok(start));
    assert_eq!(call(BRK, [start + PAGE]), Ok(start + PAGE));
    // SAFETY: as above.
    assert_eq!(unsafe { (start as *const u8).read_volatile() }, 0, "what was given back comes back as zeros");
    assert_eq!(call(BRK, [start]), Ok(start));
}

fn mappings_come_and_go() {
    let at = map(4 * PAGE, RW).expect("pages");
    let mmap = |at: u64, bytes: u64, protection, flags| call(MMAP, [at, bytes, protection, flags, u64::MAX, 0]);
    put_word(at, 1);
    assert_eq!(mmap(at, PAGE, PROT_READ, PRIVATE | MAP_FIXED_NOREPLACE), Err(EEXIST));
    assert_eq!(mmap(at, PAGE, RW, PRIVATE | MAP_FIXED), Ok(at));
    assert_eq!(word(at), 0, "replaced");
    assert_eq!(call(MUNMAP, [at + PAGE, PAGE]), Ok(0), "a hole");
    assert_eq!(call(MPROTECT, [at, 4 * PAGE, PROT_READ]), Err(ENOMEM), "a hole in it");
    assert_eq!(mmap(at + PAGE, PAGE, PROT_NONE, PRIVATE | MAP_FIXED_NOREPLACE), Ok(at + PAGE));
    for what in ["pages", "nothing is no error"] {
        assert_eq!(call(MUNMAP, [at, 4 * PAGE]), Ok(0), "{what}");
    }
    let populated = mmap(0, 3 * PAGE, RW, PRIVATE | MAP_POPULATE).expect("pages");
    assert_eq!(present(populated, 3), 0b111, "MAP_POPULATE");
    assert_eq!(call(MUNMAP, [populated, 3 * PAGE]), Ok(0));
    let shared = mmap(0, PAGE, RW, SHARED).expect("a page");
    assert_eq!(call(MUNMAP, [shared, PAGE]), Ok(0));
}

fn mappings_are_refused() {
    let refused = |arguments: [u64; 6], why: Errno| {
        assert_eq!(call(MMAP, arguments), Err(why), "mmap {arguments:x?}");
    };
    let none = u64::MAX;
    refused([0, 0, 3, PRIVATE, none, 0], EINVAL);
    refused([0, none - 4096, 3, PRIVATE, none, 0], ENOMEM);
    refused([0, 1 << 48, 3, PRIVATE, none, 0], ENOMEM);
    refused([0, PAGE, 3, MAP_ANONYMOUS, none, 0], EINVAL);
    refused([0, PAGE, 3, MAP_PRIVATE, none, 0], EBADF);
    refused([0, PAGE, 3, MAP_SHARED, 1, 0], ENODEV);
    refused([0, PAGE, 3, PRIVATE, none, 1], EINVAL);
    refused([0x10_0001, PAGE, 3, PRIVATE | MAP_FIXED, none, 0], EINVAL);
    refused([0, PAGE, 3, PRIVATE | MAP_FIXED, none, 0], EPERM);
    refused([KERNEL, PAGE, 3, PRIVATE | MAP_FIXED, none, 0], ENOMEM);
    refused([0, PAGE, 3, MAP_SHARED_VALIDATE | MAP_ANONYMOUS, none, 0], EINVAL);
    assert_eq!(call(MUNMAP, [1, PAGE]), Err(EINVAL));
    assert_eq!(call(MUNMAP, [PAGE, 0]), Err(EINVAL));
    assert_eq!(call(MUNMAP, [(1 << 48) - PAGE, PAGE]), Ok(0), "the last page of all, where nothing is");
    assert_eq!(call(MUNMAP, [KERNEL, PAGE]), Err(EINVAL));
    assert_eq!(call(MPROTECT, [1, PAGE, 1]), Err(EINVAL));
    assert_eq!(call(MPROTECT, [PAGE, 0, 1]), Ok(0));
    assert_eq!(call(MPROTECT, [PAGE, PAGE, 0x100]), Err(EINVAL));
    assert_eq!(call(MPROTECT, [NOWHERE, PAGE, 1]), Err(ENOMEM));
}

fn advice_and_presence() {
    let at = map(3 * PAGE, RW).expect("pages");
    let mut present = [9_u8; 3];
    put_word(at + PAGE, 5);
    assert_eq!(call(MINCORE, [at, 3 * PAGE, present.as_mut_ptr() as u64]), Ok(0));
    assert_eq!(present, [0, 1, 0]);
    assert_eq!(call(MADVISE, [at, 3 * PAGE, MADV_DONTNEED]), Ok(0));
    assert_eq!(word(at + PAGE), 0, "zeros again");
    for advice in [MADV_NORMAL, MADV_WILLNEED] {
        assert_eq!(call(MADVISE, [at, 3 * PAGE, advice]), Ok(0));
        assert_eq!(call(MADVISE, [NOWHERE, PAGE, advice]), Err(ENOMEM));
    }
    assert_eq!(call(MADVISE, [at, PAGE, 77]), Err(EINVAL));
    assert_eq!(call(MADVISE, [at + 1, PAGE, MADV_DONTNEED]), Err(EINVAL));
    assert_eq!(call(MUNMAP, [at, 3 * PAGE]), Ok(0));
    assert_eq!(call(MINCORE, [at, 3 * PAGE, present.as_mut_ptr() as u64]), Err(ENOMEM));
    assert_eq!(call(MINCORE, [at + 1, PAGE, present.as_ptr() as u64]), Err(EINVAL));
    assert_eq!(call(MADVISE, [at, 0, MADV_DONTNEED]), Ok(0));
}

/// Each call that takes a pointer, with bad pointers.
fn pointers_are_checked() {
    let one = Timespec { seconds: 0, nanoseconds: 1 };
    let word = &raw const one as u64;
    let readable = map(PAGE, PROT_READ).expect("a page");
    for bad in [NOWHERE, KERNEL, u64::MAX - 8, 1 << 63, (1 << 48) - 8] {
        let calls = [
            ("write", call(WRITE, [1, bad, 16])),
            ("writev", call(WRITEV, [1, bad, 1])),
            ("uname", call(UNAME, [bad])),
            ("clock_gettime", call(CLOCK_GETTIME, [1, bad])),
            ("nanosleep", call(NANOSLEEP, [bad, 0])),
            ("getrandom", call(GETRANDOM, [bad, 16, 0])),
            ("getcpu", call(GETCPU, [bad, 0])),
            ("prctl", call(PRCTL, [PR_GET_NAME, bad])),
            ("rt_sigprocmask, new", call(RT_SIGPROCMASK, [0, bad, 0, 8])),
            ("rt_sigprocmask, old", call(RT_SIGPROCMASK, [0, 0, bad, 8])),
            ("rt_sigpending", call(RT_SIGPENDING, [bad, 8])),
            ("sigaltstack", call(SIGALTSTACK, [bad, 0])),
            ("mincore", call(MINCORE, [readable, PAGE, bad])),
        ];
        for (name, result) in calls {
            assert_eq!(result, Err(EFAULT), "{name} at {bad:#x}");
        }
    }
    assert_eq!(call(CLOCK_GETTIME, [1, readable]), Err(EFAULT), "it may not be written");
    assert_eq!(call(NANOSLEEP, [word, NOWHERE]), Ok(0), "the rest is stored only if there is one");
    assert_eq!(call(MUNMAP, [readable, PAGE]), Ok(0));
}
