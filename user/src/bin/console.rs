//! Programs that the monitor and its console meet: `named` sleeps under a name that is no text, `crowd` with all the
//! threads that it may have; `reads` prints the monitor's prompt, and reads what is typed there; `takes` and `waits` read
//! in the background; `stubborn` ignores Ctrl-C.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls")]

use granule_user::prelude::*;

entry!(run);
own!(call);

fn run(start: Start) -> u8 {
    match start.arguments().nth(1) {
        Some("named") => {
            let name = c"\t\n\r'\"\\\x01\x7f\xffa";
            let _ = call(PRCTL, [PR_SET_NAME, name.as_ptr() as u64]);
            sleep()
        }
        Some("crowd") => {
            // They end with the process.
            while Thread::try_spawn(|| _ = sleep()).is_ok() {}
            sleep()
        }
        Some("reads") => reads(),
        Some("takes") => takes(),
        Some("waits") => waits(),
        Some("stubborn") => stubborn(),
        _ => 2,
    }
}

/// Reads a line in pieces, after reads that fail: of bytes to where nothing is, and of a child that is killed in one.
fn reads() -> u8 {
    let read = |to: u64, bytes: u64| call(READ, [0, to, bytes]);
    let mut line = [0_u8; 64];
    let at = line.as_mut_ptr() as u64;
    let Ok(child) = process::try_spawn(|| u8::from(read(at, 1).is_ok())) else { return 3 };
    let _ = time::sleep(10_000_000);
    let _ = process::kill(child as i32, SIGKILL);
    if process::wait(child) != killed(SIGKILL) {
        return 1;
    }
    let read_pieces = |pieces: &[(u64, usize)]| {
        let mut list = [IoVec { base: 0, length: 0 }; 4];
        for (place, &(base, length)) in list.iter_mut().zip(pieces) {
            *place = IoVec { base, length: length as u64 };
        }
        call(READV, [0, list.as_ptr() as u64, pieces.len() as u64])
    };
    println!("granule> ");
    // The input comes at once or not, and a byte that is read to nowhere is lost.
    let bad = read(0x1000, 1) != Err(EFAULT) || read_pieces(&[(0x1000, 1), (at, 1)]) != Err(EFAULT);
    if bad || read_pieces(&[(at, 1), (0x1000, 1)]) != Ok(1) {
        return 1;
    }
    let mut length = 1;
    while !line[..length].ends_with(b"\n") && !line[..length].ends_with(b"\r") {
        let next = at + length as u64;
        match read_pieces(&[(0x1000, 0), (next, 1), (next + 1, line.len() - length - 1)]) {
            Ok(bytes @ 1..) => length += bytes as usize,
            _ => return 1,
        }
    }
    u8::from(!line.starts_with(b"pd by pieces"))
}

/// Takes what is typed, without waiting, for as long as there is nothing; from the background that is until a signal ends it.
fn takes() -> u8 {
    let mut byte = 0_u8;
    let mut polled = PollFd { fd: 0, events: POLLIN, revents: 0 };
    let none = [0_u64; 2];
    let _ = call(FCNTL, [0, F_SETFL.into(), O_NONBLOCK.into()]);
    println!("taking");
    loop {
        let found = call(PPOLL, [(&raw mut polled) as u64, 1, none.as_ptr() as u64, 0]);
        let read = call(READ, [0, (&raw mut byte) as u64, 1]);
        if found != Ok(0) || read != Err(EAGAIN) {
            println!("taken: {found:?} {read:?}");
            return 1;
        }
        let _ = time::sleep(1_000_000);
    }
}

/// Waits for a byte, which is `!`: the first that is typed when it is in the foreground.
fn waits() -> u8 {
    let mut byte = 0_u8;
    println!("waiting");
    let read = call(READ, [0, (&raw mut byte) as u64, 1]);
    u8::from(read != Ok(1) || byte != b'!')
}

/// Ignores Ctrl-C.
fn stubborn() -> u8 {
    signal::set_without_handler(SIGINT, SIG_IGN);
    println!("not interrupted");
    sleep()
}

/// Sleeps until a signal ends the process.
fn sleep() -> u8 {
    while time::sleep(200_000_000).is_ok() {}
    1
}
