//! The limits of a process: `prlimit64`, and the effects of what it sets.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::prelude::*;

entry!(run);
own!(call, put);

fn run(start: Start) -> u8 {
    match start.arguments().nth(1) {
        None => {}
        // The program that `limits_are_inherited` starts.
        Some("child") => return u8::from(get(RLIMIT_CPU) == Ok(RLimit { soft: 1000, hard: 2000 })),
        // The program that `a_program_has_no_more_stack` starts.
        Some("stack") => {
            // SAFETY: below what this thread uses; where there is no memory the program ends, as is expected.
            return unsafe { ((start.stack_pointer() - 0x1_0000) as *const u8).read_volatile() };
        }
        Some(_) => return 2,
    }
    defaults();
    refusals();
    others();
    limits_are_inherited(start);
    a_program_has_no_more_stack(start);
    a_program_has_no_more_memory(start);
    what_cannot_fit();
    process::in_copy(the_address_space);
    process::in_copy(data);
    process::in_copy(heap);
    process::in_copy(|| stack(start.stack_pointer()));
    process::in_copy(areas_that_grow);
    println!("limits: ok");
    0
}

/// `prlimit64`, with the structures wherever they are.
fn prlimit(process: i32, resource: u64, new: u64, old: u64) -> Result<u64, Errno> {
    call(PRLIMIT64, [process as i64 as u64, resource, new, old])
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

/// Sets a limit that can be set otherwise later.
#[track_caller]
fn soft(resource: usize, limit: u64) {
    set(resource, limit, RLIM_INFINITY).expect("a limit");
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
    assert_eq!(prlimit(-1, 99, bad, 0), Err(EFAULT));
    assert_eq!(prlimit(-1, 99, good, 0), Err(ESRCH));
    assert_eq!(prlimit(0x7fff_fff0, 0, 0, 0), Err(ESRCH));
    assert_eq!(prlimit(0, RLIM_NLIMITS as u64, good, bad), Err(EINVAL));
    assert_eq!(prlimit(0, u64::from(u32::MAX), 0, 0), Err(EINVAL));
    assert_eq!(prlimit(0, 1 << 32, 0, 0), Ok(0), "an int");
    assert_eq!(set(RLIMIT_AS, 2, 1), Err(EINVAL));
    assert_eq!(set(RLIMIT_NOFILE, 2, 1), Err(EINVAL));
    assert_eq!(set(RLIMIT_NOFILE, 1, (1 << 20) + 1), Err(EPERM));
    assert_eq!(prlimit(0, 99, 0, bad), Err(EINVAL));
    assert_eq!(prlimit(0, RLIMIT_AS as u64, 0, bad), Err(EFAULT));
    assert_eq!(prlimit(0, RLIMIT_AS as u64, 0, 0), Ok(0));
    assert_eq!(get(RLIMIT_AS), Ok(RLimit { soft: RLIM_INFINITY, hard: RLIM_INFINITY }), "nothing was changed");
    process::in_copy(|| {
        let new = RLimit { soft: 5, hard: 6 };
        let at = &raw const new as u64;
        assert_eq!(prlimit(0, RLIMIT_CORE as u64, at, bad), Err(EFAULT));
        assert_eq!(get(RLIMIT_CORE), Ok(new), "set before the old one cannot be stored");
        // There is one user, root.
        assert!(set(RLIMIT_CORE, 7, RLIM_INFINITY).is_ok());
        assert!(set(RLIMIT_NPROC, 1 << 16, 1 << 16).is_ok());
        let mut limit = RLimit { soft: 0, hard: 0 };
        assert_eq!(call(GETRLIMIT, [RLIMIT_CORE as u64, &raw mut limit as u64]), Ok(0));
        assert_eq!(limit, RLimit { soft: 7, hard: RLIM_INFINITY });
        assert_eq!(call(SETRLIMIT, [RLIMIT_CORE as u64, at]), Ok(0));
        assert_eq!(call(SETRLIMIT, [99, bad]), Err(EFAULT));
        assert_eq!(call(GETRLIMIT, [99, bad]), Err(EINVAL));
        assert_eq!(get(RLIMIT_CORE), Ok(new));
    });
}

/// The limits of other processes, and of threads.
fn others() {
    let new = RLimit { soft: 3, hard: 4 };
    let child = process::spawn(|| {
        asleep_until(|| get(RLIMIT_CPU) == Ok(new));
        7
    });
    assert_eq!(of(child as i32, RLIMIT_CPU, Some(new)), Ok(RLimit { soft: RLIM_INFINITY, hard: RLIM_INFINITY }));
    assert_eq!(process::wait(child), exited(7));
    assert_eq!(of(child as i32, RLIMIT_CPU, None), Err(ESRCH));
    static GOES_ON: AtomicU32 = AtomicU32::new(0);
    let other = thread::Thread::spawn(|| until(|| GOES_ON.load(Ordering::Relaxed) != 0));
    assert_eq!(of(other.id() as i32, RLIMIT_STACK, None), get(RLIMIT_STACK));
    GOES_ON.store(1, Ordering::Relaxed);
    other.join();
}

fn limits_are_inherited(start: Start) {
    process::in_copy(|| {
        set(RLIMIT_CPU, 1000, 2000).expect("a limit");
        process::in_copy(|| {
            assert_eq!(get(RLIMIT_CPU), Ok(RLimit { soft: 1000, hard: 2000 }));
            set(RLIMIT_CPU, 500, 600).expect("a limit");
        });
        assert_eq!(process::run(|| run_again(start, c"child")), exited(1), "exec keeps them");
    });
}

/// Runs this program as `way` in the place of this process; the exit status where that fails.
fn run_again(start: Start, way: &CStr) -> u8 {
    process::execute(start.path(), &[start.path(), way]) as u8
}

fn a_program_has_no_more_stack(start: Start) {
    for (limit, status) in [(256 << 10, exited(0)), (32 << 10, SIGSEGV)] {
        let end = process::run(|| {
            soft(RLIMIT_STACK, limit);
            run_again(start, c"stack")
        });
        assert_eq!(end, status, "{limit}");
    }
}

/// A program that is larger than it may be: the exec fails, or what has become of it is killed.
fn a_program_has_no_more_memory(start: Start) {
    const ENOUGH: u64 = 64 << 20;
    for (resource, limit, runs) in
        [(RLIMIT_AS, PAGE, false), (RLIMIT_DATA, 0, false), (RLIMIT_AS, ENOUGH, true), (RLIMIT_DATA, ENOUGH, true)]
    {
        let end = process::run(|| {
            set(resource, limit, limit).expect("a limit");
            run_again(start, c"child")
        });
        assert_eq!(end == exited(0), runs, "{resource} of {limit}: {end:#x}");
    }
}

/// Maps memory wherever there is room.
fn map(bytes: u64, protection: u64, flags: u64) -> Result<u64, Errno> {
    call(MMAP, [0, bytes, protection, flags | MAP_ANONYMOUS, u64::MAX, 0])
}

/// Maps memory there.
fn map_at(address: u64, bytes: u64, protection: u64, flags: u64) -> Result<u64, Errno> {
    call(MMAP, [address, bytes, protection, flags | PRIVATE, u64::MAX, 0])
}

fn unmap(address: u64, bytes: u64) {
    assert_eq!(call(MUNMAP, [address, bytes]), Ok(0));
}

fn protect(address: u64, bytes: u64, protection: u64) -> Result<u64, Errno> {
    call(MPROTECT, [address, bytes, protection])
}

/// A copy of this process is made, and ends.
fn forks() -> bool {
    process::try_spawn(|| {}).is_ok_and(|child| process::wait(child) == exited(0))
}

/// A mapping that is larger than all memory is refused where private stores could fill it.
fn what_cannot_fit() {
    const HUGE: u64 = 64 << 30;
    assert_eq!(map(HUGE, RW, MAP_PRIVATE), Err(ENOMEM));
    assert_eq!(map(HUGE, PROT_WRITE, MAP_PRIVATE), Err(ENOMEM));
    assert_eq!(map(HUGE, RW, MAP_SHARED), Err(ENOMEM));
    assert_eq!(map(HUGE, PROT_READ, MAP_SHARED), Err(ENOMEM));
    for (protection, flags) in [(RW, MAP_SHARED | MAP_NORESERVE), (RW, MAP_PRIVATE | MAP_NORESERVE)] {
        unmap(map(HUGE, protection, flags).expect("what need not fit"), HUGE);
    }
    let start = map(HUGE, PROT_READ, MAP_PRIVATE).expect("what is not written");
    assert_eq!(protect(start, HUGE, RW), Err(ENOMEM));
    assert_eq!(protect(start, HUGE, PROT_NONE), Ok(0));
    assert_eq!(protect(start + PAGE, PAGE, RW), Ok(0));
    unmap(start, HUGE);
    let start = map(HUGE, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE).expect("what need not fit");
    assert_eq!(protect(start, HUGE, RW), Ok(0));
    assert!(forks());
    unmap(start, HUGE);

    // Two that fit are more than that as one, which shows where a copy of it is made.
    let (mut good, mut bad) = (1 << 20, HUGE);
    while bad - good > 1 << 20 {
        let bytes = ((good + bad) / 2) & !(PAGE - 1);
        match map(bytes, RW, MAP_PRIVATE) {
            Ok(start) => {
                unmap(start, bytes);
                good = bytes;
            }
            Err(error) => {
                assert_eq!(error, ENOMEM);
                bad = bytes;
            }
        }
    }
    const START: u64 = 0x20_0000_0000;
    for start in [START, START + good] {
        assert_eq!(map_at(start, good, RW, MAP_FIXED_NOREPLACE), Ok(start));
    }
    assert_eq!(process::try_spawn(|| 0), Err(ENOMEM));
    unmap(START, 2 * good);
    assert!(forks());
}

/// Finds the limit for `resource` that just lets `one` map a page, and sets it.
fn just_enough(resource: usize, one: impl Fn() -> Option<u64>) {
    let (mut bad, mut good) = (0, 1 << 47);
    while good - bad > PAGE {
        let limit = ((good + bad) / 2) & !(PAGE - 1);
        soft(resource, limit);
        match one() {
            Some(start) => {
                unmap(start, PAGE);
                good = limit;
            }
            None => bad = limit,
        }
    }
    soft(resource, good);
}

fn the_address_space() {
    const START: u64 = 0x20_0000_0000;
    probe::prepare();
    let spare = map(2 * PAGE, PROT_NONE, MAP_PRIVATE).expect("memory");
    just_enough(RLIMIT_AS, || map(PAGE, PROT_NONE, MAP_PRIVATE).ok());
    assert_eq!(map(2 * PAGE, PROT_NONE, MAP_PRIVATE), Err(ENOMEM));
    assert_eq!(map_at(START, PAGE, RW, MAP_FIXED_NOREPLACE), Ok(START));
    for flags in [MAP_PRIVATE, MAP_SHARED, MAP_PRIVATE | MAP_NORESERVE] {
        assert_eq!(map(PAGE, PROT_NONE, flags), Err(ENOMEM));
    }
    // A mapping that replaces another does not add to the count.
    assert_eq!(map_at(START, PAGE, PROT_READ, MAP_FIXED), Ok(START));
    assert_eq!(map_at(START, 2 * PAGE, PROT_READ, MAP_FIXED), Err(ENOMEM));
    assert_eq!(probe::read(START), Ok(0), "it is still there");
    assert_eq!(protect(spare, 2 * PAGE, RW), Ok(0));
    assert!(forks());
    unmap(spare, PAGE);
    assert!(map(PAGE, RW, MAP_SHARED).is_ok(), "as much as was given back");
    soft(RLIMIT_AS, 0);
    assert_eq!(map(PAGE, PROT_NONE, MAP_PRIVATE), Err(ENOMEM));
    assert_eq!(map_at(START, PAGE, PROT_READ, MAP_FIXED), Err(ENOMEM));
    unmap(START, PAGE);
}

fn data() {
    const START: u64 = 0x20_0000_0000;
    probe::prepare();
    assert_eq!(map_at(START, PAGE, PROT_READ, MAP_FIXED_NOREPLACE), Ok(START));
    assert_eq!(map_at(START + PAGE, PAGE, PROT_NONE, MAP_FIXED_NOREPLACE), Ok(START + PAGE));
    just_enough(RLIMIT_DATA, || map(PAGE, RW, MAP_PRIVATE).ok());
    assert_eq!(map(2 * PAGE, RW, MAP_PRIVATE), Err(ENOMEM));
    for (protection, flags) in [(PROT_READ, MAP_PRIVATE), (RW, MAP_SHARED), (RW, MAP_PRIVATE | MAP_GROWSDOWN)] {
        unmap(map(8 * PAGE, protection, flags).expect("what is no data"), 8 * PAGE);
    }
    // The first becomes data, which is all that may.
    assert_eq!(protect(START, 2 * PAGE, RW), Err(ENOMEM));
    assert_eq!(put(START, 1), Ok(()));
    assert!(probe::read(START + PAGE).is_err());
    assert_eq!(protect(START + PAGE, PAGE, PROT_WRITE), Err(ENOMEM));
    assert_eq!(protect(START + PAGE, PAGE, PROT_READ), Ok(0));
    assert_eq!(map(PAGE, RW, MAP_PRIVATE), Err(ENOMEM));
    assert_eq!(protect(START, PAGE, PROT_READ), Ok(0));
    assert!(map(PAGE, RW, MAP_PRIVATE).is_ok());
    // 0 is for the hard limit, as on Linux.
    soft(RLIMIT_DATA, 0);
    assert!(map(PAGE, RW, MAP_PRIVATE).is_ok());
    set(RLIMIT_DATA, 0, 0).expect("a limit");
    assert_eq!(map(PAGE, RW, MAP_PRIVATE), Err(ENOMEM));
}

fn brk(address: u64) -> u64 {
    call(BRK, [address]).expect("brk has no errors")
}

fn heap() {
    let start = brk(0);
    let end = start + 64 * PAGE;
    assert_eq!(brk(end), end);
    soft(RLIMIT_DATA, 32 * PAGE);
    assert_eq!((brk(end + 1), brk(start + 33 * PAGE)), (end, end), "more than the limit, though less than there was");
    soft(RLIMIT_DATA, RLIM_INFINITY);
    soft(RLIMIT_AS, PAGE);
    assert_eq!(brk(end + PAGE), end);
    assert_eq!(brk(start + PAGE), start + PAGE, "less is no question of the limit");
}

/// Whether a read below the stack finds nothing mapped.
fn not_mapped(address: u64) -> bool {
    matches!(probe::read(address), Err(fault) if (fault.signal, fault.code) == (SIGSEGV, SEGV_MAPERR))
}

/// How large the stack may become, `top` being near its end.
fn stack(top: u64) {
    probe::prepare();
    soft(RLIMIT_STACK, 2 * MIB);
    assert!(not_mapped(top - 3 * MIB));
    assert_eq!(probe::read(top - MIB), Ok(0));
    assert!(not_mapped(top - 3 * MIB));
    soft(RLIMIT_STACK, 20 * MIB);
    assert_eq!(probe::read(top - 3 * MIB), Ok(0));
    assert_eq!(put(top - 19 * MIB, 1), Ok(()));
    assert!(not_mapped(top - 21 * MIB));
    soft(RLIMIT_STACK, MIB);
    assert_eq!(probe::read(top - 19 * MIB), Ok(1), "what there is stays");
    assert!(not_mapped(top - 19 * MIB - 64 * PAGE));
    soft(RLIMIT_STACK, 40 * MIB);
    soft(RLIMIT_AS, PAGE);
    assert!(not_mapped(top - 22 * MIB), "no more addresses");
    soft(RLIMIT_AS, RLIM_INFINITY);
    soft(RLIMIT_DATA, PAGE);
    assert_eq!(probe::read(top - 22 * MIB), Ok(0), "a stack is no data");
    // A thread's kernel accesses grow it as well.
    let mut old = RLimit { soft: 1, hard: 1 };
    assert_eq!(prlimit(0, RLIMIT_CPU as u64, 0, (top - 24 * MIB) & !7), Ok(0));
    assert_eq!(prlimit(0, RLIMIT_CPU as u64, 0, &raw mut old as u64), Ok(0));
    assert_eq!(prlimit(0, RLIMIT_CPU as u64, 0, (top - 41 * MIB) & !7), Err(EFAULT));
}

/// Areas that accesses below them extend, and what keeps them from it.
fn areas_that_grow() {
    const START: u64 = 0x20_0000_0000;
    const GAP: u64 = 256 * PAGE;
    probe::prepare();
    assert_eq!(map_at(START, PAGE, RW, MAP_FIXED_NOREPLACE | MAP_GROWSDOWN), Ok(START));
    assert_eq!(put(START - 1, 7), Ok(()));
    assert_eq!(probe::read(START - 600 * PAGE), Ok(0));
    assert_eq!(probe::read(START - 1), Ok(7));
    let below = START - 2000 * PAGE;
    assert_eq!(map_at(below, PAGE, PROT_READ, MAP_FIXED_NOREPLACE), Ok(below));
    assert!(not_mapped(below + PAGE + GAP - PAGE));
    assert_eq!(probe::read(below + PAGE + GAP), Ok(0));
    // An area that cannot be accessed needs no gap.
    assert_eq!(protect(below, PAGE, PROT_NONE), Ok(0));
    assert_eq!(probe::read(below + PAGE), Ok(0));
    assert!(probe::read(below).is_err());
    unmap(below, PAGE);
    // A part of it grows as the whole did.
    unmap(START - 100 * PAGE, 50 * PAGE);
    assert_eq!(probe::read(START - 60 * PAGE), Ok(0));
    // Beyond what a stack may have.
    assert!(not_mapped(START - (9 << 20)));
    assert_eq!(map_at(START + 64 * PAGE, PAGE, RW, MAP_FIXED_NOREPLACE), Ok(START + 64 * PAGE));
    assert!(not_mapped(START + 63 * PAGE), "not one that was not made to");
}
