//! System calls one by one: what they answer, and what they refuse, as Linux does.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, word, put_word);

fn run(_start: Start) {
    parts! { ()
        what_does_not_exist_is_enosys names_and_numbers the_console_takes_bytes clocks_go_forward advice_and_presence
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
    assert_eq!(call(WRITE, [3, pieces.as_ptr() as u64, 1]), Err(EBADF));
    assert_eq!((call(IOCTL, [1, 0x5401, 0]), call(IOCTL, [9])), (Err(ENOTTY), Err(EBADF)));
    assert_eq!((call(CLOSE, [2]), call(CLOSE, [77])), (Ok(0), Err(EBADF)));
}

fn clocks_go_forward() {
    let before = time::now();
    assert_eq!(time::sleep(1_000_000), Ok(()));
    assert!(time::now() - before >= 1_000_000);
    let end = Timespec::from_nanoseconds(time::now() + 2_000_000);
    assert_eq!(call(CLOCK_NANOSLEEP, [1, TIMER_ABSTIME, &raw const end as u64, 0]), Ok(0));
    assert!(time::now() >= end.to_nanoseconds().expect("a time"));
    for bad in [Timespec { seconds: -1, nanoseconds: 0 }, Timespec { seconds: 0, nanoseconds: 1_000_000_000 }] {
        assert_eq!(call(NANOSLEEP, [&raw const bad as u64, 0]), Err(EINVAL), "{bad:?}");
    }
}

fn advice_and_presence() {
    // On Linux by a setting.
    assert_eq!(call(MMAP, [0, PAGE, RW, PRIVATE | MAP_FIXED, u64::MAX, 0]), Err(EPERM), "page 0");
    let at = map(3 * PAGE, RW).expect("pages");
    let mut present = [9_u8; 3];
    put_word(at + PAGE, 5);
    assert_eq!(call(MINCORE, [at, 3 * PAGE, present.as_mut_ptr() as u64]), Ok(0));
    assert_eq!(present, [0, 1, 0]);
    assert_eq!(call(MADVISE, [at, 3 * PAGE, MADV_DONTNEED]), Ok(0));
    assert_eq!(word(at + PAGE), 0, "zeros again");
    assert_eq!(call(MUNMAP, [at, 3 * PAGE]), Ok(0));
    assert_eq!(call(MINCORE, [at, 3 * PAGE, present.as_mut_ptr() as u64]), Err(ENOMEM));
}
