//! What a process may have at most: `prlimit64` and what its limits do.

#![cfg_attr(target_os = "none", no_std, no_main)]

use core::ffi::CStr;

use granule_user::abi::limits::{
    RLIM_INFINITY, RLIM_NLIMITS, RLIMIT_AS, RLIMIT_CORE, RLIMIT_CPU, RLIMIT_MEMLOCK, RLIMIT_MSGQUEUE, RLIMIT_NICE,
    RLIMIT_NOFILE, RLIMIT_NPROC, RLIMIT_RTPRIO, RLIMIT_SIGPENDING, RLIMIT_STACK, RLimit,
};
use granule_user::abi::number::{GETRLIMIT, PRLIMIT64, SETRLIMIT};
use granule_user::abi::process::{AT_EXECFN, exited};
use granule_user::{Errno, Start, entry, println, process, sys, thread, time};

entry!(run);

fn run(start: Start) -> u8 {
    match start.arguments().nth(1) {
        None => {}
        // What `limits_are_inherited` starts.
        Some("child") => return u8::from(get(RLIMIT_CPU) == Ok(RLimit { soft: 1000, hard: 2000 })),
        Some(_) => return 2,
    }
    defaults();
    refusals();
    others();
    limits_are_inherited(start);
    println!("limits: ok");
    0
}

/// `prlimit64`, with the structures wherever they are.
fn prlimit(process: i32, resource: u64, new: u64, old: u64) -> Result<u64, Errno> {
    // SAFETY: it reads and writes what the caller has, or fails.
    unsafe { sys::call(PRLIMIT64, [process as i64 as u64, resource, new, old, 0, 0]) }
}

fn of(process: i32, resource: usize, new: Option<RLimit>) -> Result<RLimit, Errno> {
    let mut old = RLimit { soft: 1, hard: 1 };
    let new = new.as_ref().map_or(0, |new| &raw const *new as u64);
    prlimit(process, resource as u64, new, &raw mut old as u64).map(|_| old)
}

fn get(resource: usize) -> Result<RLimit, Errno> {
    of(0, resource, None)
}

fn set(resource: usize, soft: u64, hard: u64) -> Result<RLimit, Errno> {
    of(0, resource, Some(RLimit { soft, hard }))
}

/// Runs `work` in a child, whose limits are its own; it panics there if something is wrong.
fn apart(work: impl FnOnce()) {
    let child = process::spawn(|| {
        work();
        0
    });
    assert_eq!(process::wait(child.expect("a fork")), exited(0));
}

fn defaults() {
    let unlimited = Ok(RLimit { soft: RLIM_INFINITY, hard: RLIM_INFINITY });
    for resource in 0..RLIM_NLIMITS {
        let limit = get(resource);
        match resource {
            RLIMIT_STACK => assert_eq!(limit, Ok(RLimit { soft: 8 << 20, hard: RLIM_INFINITY })),
            RLIMIT_CORE => assert_eq!(limit, Ok(RLimit { soft: 0, hard: RLIM_INFINITY })),
            RLIMIT_NOFILE => assert_eq!(limit, Ok(RLimit { soft: 1024, hard: 4096 })),
            RLIMIT_MEMLOCK => assert_eq!(limit, Ok(RLimit { soft: 8 << 20, hard: 8 << 20 })),
            RLIMIT_MSGQUEUE => assert_eq!(limit, Ok(RLimit { soft: 819_200, hard: 819_200 })),
            RLIMIT_NICE | RLIMIT_RTPRIO => assert_eq!(limit, Ok(RLimit { soft: 0, hard: 0 })),
            // By how much memory there is.
            RLIMIT_NPROC | RLIMIT_SIGPENDING => {
                let limit = limit.expect("a limit");
                assert!(limit.soft == limit.hard && (10..1 << 20).contains(&limit.soft), "{limit:?}");
            }
            _ => assert_eq!(limit, unlimited, "{resource}"),
        }
    }
    assert_eq!(get(RLIMIT_NPROC), get(RLIMIT_SIGPENDING));
}

fn refusals() {
    let good = RLimit { soft: 1, hard: 2 };
    let (good, bad) = (&raw const good as u64, 8);
    // The structure, then the process, then the resource, then what it says.
    assert_eq!(prlimit(-1, 99, bad, 0), Err(Errno::EFAULT));
    assert_eq!(prlimit(-1, 99, good, 0), Err(Errno::ESRCH));
    assert_eq!(prlimit(0x7fff_fff0, 0, 0, 0), Err(Errno::ESRCH));
    assert_eq!(prlimit(0, RLIM_NLIMITS as u64, good, bad), Err(Errno::EINVAL));
    assert_eq!(prlimit(0, u64::from(u32::MAX), 0, 0), Err(Errno::EINVAL));
    assert_eq!(prlimit(0, 1 << 32, 0, 0), Ok(0), "an int");
    assert_eq!(set(RLIMIT_AS, 2, 1), Err(Errno::EINVAL));
    assert_eq!(set(RLIMIT_NOFILE, 2, 1), Err(Errno::EINVAL));
    assert_eq!(set(RLIMIT_NOFILE, 1, (1 << 20) + 1), Err(Errno::EPERM));
    assert_eq!(prlimit(0, 99, 0, bad), Err(Errno::EINVAL));
    assert_eq!(prlimit(0, RLIMIT_AS as u64, 0, bad), Err(Errno::EFAULT));
    assert_eq!(prlimit(0, RLIMIT_AS as u64, 0, 0), Ok(0));
    assert_eq!(get(RLIMIT_AS), Ok(RLimit { soft: RLIM_INFINITY, hard: RLIM_INFINITY }), "nothing was changed");
    apart(|| {
        let new = RLimit { soft: 5, hard: 6 };
        let at = &raw const new as u64;
        assert_eq!(prlimit(0, RLIMIT_CORE as u64, at, bad), Err(Errno::EFAULT));
        assert_eq!(get(RLIMIT_CORE), Ok(new), "set before the old one cannot be stored");
        // There is one user, root.
        assert!(set(RLIMIT_CORE, 7, RLIM_INFINITY).is_ok());
        assert!(set(RLIMIT_NPROC, 1 << 16, 1 << 16).is_ok());
        // SAFETY: it reads and writes what is there.
        unsafe {
            let mut limit = RLimit { soft: 0, hard: 0 };
            let own = &raw mut limit as u64;
            assert_eq!(sys::call(GETRLIMIT, [RLIMIT_CORE as u64, own, 0, 0, 0, 0]), Ok(0));
            assert_eq!(limit, RLimit { soft: 7, hard: RLIM_INFINITY });
            assert_eq!(sys::call(SETRLIMIT, [RLIMIT_CORE as u64, at, 0, 0, 0, 0]), Ok(0));
            assert_eq!(sys::call(SETRLIMIT, [99, bad, 0, 0, 0, 0]), Err(Errno::EFAULT));
            assert_eq!(sys::call(GETRLIMIT, [99, bad, 0, 0, 0, 0]), Err(Errno::EINVAL));
        }
        assert_eq!(get(RLIMIT_CORE), Ok(new));
    });
}

/// The limits of other processes, and of threads.
fn others() {
    let new = RLimit { soft: 3, hard: 4 };
    let child = process::spawn(|| {
        while get(RLIMIT_CPU) != Ok(new) {
            let _ = time::sleep(1_000_000);
        }
        7
    });
    let child = child.expect("a fork");
    assert_eq!(of(child as i32, RLIMIT_CPU, Some(new)), Ok(RLimit { soft: RLIM_INFINITY, hard: RLIM_INFINITY }));
    assert_eq!(process::wait(child), exited(7));
    assert_eq!(of(child as i32, RLIMIT_CPU, None), Err(Errno::ESRCH));
    let other = thread::Thread::spawn(|_| time::sleep(50_000_000).unwrap_or_default(), 0).expect("a thread");
    assert_eq!(of(other.id() as i32, RLIMIT_STACK, None), get(RLIMIT_STACK));
    other.join();
}

fn limits_are_inherited(start: Start) {
    apart(|| {
        set(RLIMIT_CPU, 1000, 2000).expect("a limit");
        apart(|| {
            assert_eq!(get(RLIMIT_CPU), Ok(RLimit { soft: 1000, hard: 2000 }));
            set(RLIMIT_CPU, 500, 600).expect("a limit");
        });
        let child = process::spawn(|| {
            let path = start.auxiliary(AT_EXECFN).expect("a path") as *const core::ffi::c_char;
            // SAFETY: a string that the kernel has put there.
            let path = unsafe { CStr::from_ptr(path) };
            let arguments = [path.as_ptr().cast(), c"child".as_ptr().cast(), core::ptr::null()];
            process::execve(path, &arguments, &[core::ptr::null()]) as u8
        });
        assert_eq!(process::wait(child.expect("a fork")), exited(1), "exec keeps them");
    });
}
