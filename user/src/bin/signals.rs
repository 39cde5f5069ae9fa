//! Signals: how a fault is reported, the state that a handler may read and change, blocked signals, interrupted and
//! restarted calls.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use core::sync::atomic::AtomicPtr;

use granule_user::prelude::*;
use granule_user::seen::{SEEN, come_back, note, skip};
use granule_user::signal::{raise, set_action, set_stack};

entry!(run);
own!(call);

fn run(start: Start) -> u8 {
    if start.arguments().nth(1) == Some("long") {
        long_calls_make_way();
        return 0;
    }
    parts! { ()
        faults_tell_why_and_where faults_without_a_handler_kill blocked_signals_wait a_handler_runs_with_its_mask
        threads_have_their_own handlers_have_a_stack
    }
    parts! { () a_call_sleeps_with_its_mask signals_are_waited_for causes_are_given }
    #[cfg(target_arch = "aarch64")]
    a_handlers_frame_record_leads_to_what_it_interrupted();
    parts! { ()
        calls_are_interrupted_or_restarted sleeps_go_on_where_they_were children_tell_of_their_end
        floating_point_survives_a_handler a_handler_without_a_restorer_returns bad_frames_kill bad_arguments_are_refused
    }
    println!("signals: ok");
    0
}

/// Makes the page of the fault writable and continues.
extern "C" fn allow(signal: u32, info: &SigInfo, context: &mut UContext) {
    note(signal, info, context);
    let page = info.address() & !(PAGE - 1);
    // SAFETY: the page is the test's, which waits for it to become writable.
    unsafe { memory::mprotect(page, PAGE, RW) }.expect("a page to allow");
}

fn set(signal: u32, handler: Handler, flags: u64, mask: u64) {
    // SAFETY: the handlers here touch atomics and their own frame.
    unsafe { handle(signal, handler, flags, mask) }.expect("an action to set");
}

fn faults_tell_why_and_where() {
    const DATA_ABORT: u64 = 0x24;
    const FETCH_ABORT: u64 = 0x20;
    let class = || SEEN.syndrome.load(Ordering::Relaxed) >> 26;
    set(SIGSEGV, skip, 0, 0);
    for address in [8, 0xffff_8000_0000_0000, 0x7000_0000_0000] {
        offend!("ldr x9, [x10]", address);
        assert_eq!(SEEN.take(), (1, SIGSEGV, SEGV_MAPERR), "nothing is mapped at {address:#x}");
        assert_eq!((SEEN.address.load(Ordering::Relaxed), class()), (address, DATA_ABORT));
    }
    let page = memory::map(PAGE, PROT_NONE).expect("a page");
    offend!("ldr x9, [x10]", page + 24);
    assert_eq!(SEEN.take(), (1, SIGSEGV, SEGV_ACCERR), "it may not be read");
    assert_eq!(SEEN.address.load(Ordering::Relaxed), page + 24);

    // SAFETY: the page is this function's.
    unsafe { memory::mprotect(page, PAGE, PROT_READ) }.expect("a page to protect");
    set(SIGSEGV, allow, 0, 0);
    // SAFETY: the handler makes the page writable, and the store is tried again.
    unsafe { ((page + 48) as *mut u64).write_volatile(77) };
    assert_eq!(SEEN.take(), (1, SIGSEGV, SEGV_ACCERR), "it may not be written");
    assert_eq!(SEEN.address.load(Ordering::Relaxed), page + 48);
    assert_ne!(SEEN.syndrome.load(Ordering::Relaxed) & 1 << 6, 0, "the syndrome is that of a store");
    // SAFETY: mapped and writable now.
    assert_eq!(unsafe { ((page + 48) as *const u64).read_volatile() }, 77, "the store was made after all");

    set(SIGSEGV, come_back, 0, 0);
    // SAFETY: the call faults at its target, and the handler continues where it would have returned to.
    unsafe { probe::call(page) }.expect("no handler of `probe`");
    assert_eq!(SEEN.take(), (1, SIGSEGV, SEGV_ACCERR), "it may not be executed");
    assert_eq!((SEEN.address.load(Ordering::Relaxed), class()), (page, FETCH_ABORT));
    // SAFETY: it is not used any more.
    unsafe { memory::munmap(page, PAGE) }.expect("a page to unmap");
}

fn faults_without_a_handler_kill() {
    let all = set_of(SIGSEGV);
    for (how, disposition, blocked) in [("", SIG_DFL, 0), ("blocked", SIG_DFL, all), ("ignored", SIG_IGN, all)] {
        let end = process::run(|| {
            set_without_handler(SIGSEGV, disposition);
            mask(SIG_BLOCK, blocked).expect("a mask");
            offend!("str x9, [x10]", 16);
        });
        assert_eq!(end, killed(SIGSEGV), "{how}");
    }
}

fn blocked_signals_wait() {
    set(SIGUSR1, note, 0, 0);
    assert_eq!(mask(SIG_BLOCK, set_of(SIGUSR1) | set_of(SIGKILL)), Ok(0));
    assert_eq!(mask(SIG_BLOCK, 0), Ok(set_of(SIGUSR1)), "SIGKILL is never blocked");
    raise(SIGUSR1);
    raise(SIGUSR1);
    assert_eq!(SEEN.take().0, 0, "it waits");
    assert_eq!(mask(SIG_UNBLOCK, set_of(SIGUSR1)), Ok(set_of(SIGUSR1)));
    assert_eq!(SEEN.take(), (1, SIGUSR1, SI_TKILL), "two of the same are one");
    process::kill(process::id() as i32, SIGUSR1).expect("a signal to oneself");
    assert_eq!(SEEN.take(), (1, SIGUSR1, SI_USER));
    assert_eq!(SEEN.address.load(Ordering::Relaxed) as u32, process::id(), "si_pid");
}

/// `rt_sigsuspend` with this mask.
fn suspend(mask: &u64, size: u64) -> Result<u64, Errno> {
    call(RT_SIGSUSPEND, [&raw const *mask as u64, size])
}

fn a_call_sleeps_with_its_mask() {
    assert_eq!(suspend(&0, 4), Err(EINVAL));
    assert_eq!(call(RT_SIGSUSPEND, [NOWHERE, 8]), Err(EFAULT));
    set(SIGUSR1, note, SA_RESTART, 0);
    mask(SIG_BLOCK, set_of(SIGUSR1)).expect("a mask");
    raise(SIGUSR1);
    // The call never goes on after a handler.
    assert_eq!(suspend(&set_of(SIGUSR2), 8), Err(EINTR));
    assert_eq!(SEEN.take(), (1, SIGUSR1, SI_TKILL), "it was open in the call");
    assert_eq!(mask(SIG_SETMASK, 0), Ok(set_of(SIGUSR1)), "the mask is back");
    assert_eq!(while_signalled(SIGUSR1, MILLISECOND, || suspend(&set_of(SIGUSR2), 8)), Err(EINTR), "it sleeps");
    assert_ne!(SEEN.take().0, 0);
}

/// `rt_sigtimedwait` for these, with a limit of nanoseconds: the signal, or the failure, and the information.
fn wait_for(set: u64, limit: Option<u64>) -> (Result<u64, Errno>, SigInfo) {
    let mut info = SigInfo::new(0, 0);
    let limit = limit.map(Timespec::from_nanoseconds);
    let limit = limit.as_ref().map_or(0, |limit| &raw const *limit as u64);
    (call(RT_SIGTIMEDWAIT, [&raw const set as u64, &raw mut info as u64, limit, 8]), info)
}

fn signals_are_waited_for() {
    let (both, limit) = (set_of(SIGUSR1) | set_of(SIGUSR2), Timespec { seconds: 0, nanoseconds: 1_000_000_000 });
    let (set_at, limit_at) = (&raw const both as u64, &raw const limit as u64);
    assert_eq!(call(RT_SIGTIMEDWAIT, [set_at, 0, 0, 4]), Err(EINVAL));
    assert_eq!(call(RT_SIGTIMEDWAIT, [NOWHERE, 0, 0, 8]), Err(EFAULT));
    assert_eq!(call(RT_SIGTIMEDWAIT, [set_at, 0, NOWHERE, 8]), Err(EFAULT));
    assert_eq!(call(RT_SIGTIMEDWAIT, [set_at, 0, limit_at, 8]), Err(EINVAL));
    for (waited_for, limit) in [(both, 0), (0, 1000), (set_of(SIGKILL), 1000), (both, MILLISECOND)] {
        assert_eq!(wait_for(waited_for, Some(limit)).0, Err(EAGAIN), "{waited_for:#x}, {limit}");
    }
    // Blocked signals, whatever their action: by number, each with its cause, and a handler does not run.
    set_without_handler(SIGUSR1, SIG_DFL);
    set_without_handler(SIGUSR2, SIG_IGN);
    mask(SIG_BLOCK, both).expect("a mask");
    process::kill(process::id() as i32, SIGUSR2).expect("a signal to oneself");
    raise(SIGUSR1);
    let taken = [(); 2].map(|()| wait_for(both, Some(0)));
    assert_eq!(
        taken.map(|(answer, info)| (answer, info.code, info.process())),
        [(Ok(SIGUSR1.into()), SI_TKILL, process::id()), (Ok(SIGUSR2.into()), SI_USER, process::id()),]
    );
    raise(SIGUSR1);
    let bad = call(RT_SIGTIMEDWAIT, [set_at, NOWHERE, 0, 8]);
    assert_eq!((bad, wait_for(both, Some(0)).0), (Err(EFAULT), Err(EAGAIN)), "it is taken all the same");
    // A sleeping thread is woken by what it blocks: to itself, and to the process, whose other thread blocks it too.
    for (to_thread, signal) in [(true, SIGUSR1), (true, SIGUSR2), (false, SIGUSR1), (false, SIGUSR2)] {
        let waiter = process::thread_id();
        let (_, woken) = beside(
            || {
                // Whether the other one sleeps by then changes no answer.
                time::sleep(2 * MILLISECOND).expect("a sleep");
                let (own, number) = (process::id(), process::id() as i32);
                let sent = if to_thread { process::tgkill(own, waiter, signal) } else { process::kill(number, signal) };
                sent.expect("a signal");
            },
            || wait_for(both, None).0,
        );
        assert_eq!(woken, Ok(signal.into()), "{to_thread}");
    }
    mask(SIG_SETMASK, set_of(SIGUSR2)).expect("a mask");
    // Another one interrupts, and never has it go on.
    set(SIGUSR1, note, SA_RESTART, 0);
    assert_eq!(while_signalled(SIGUSR1, MILLISECOND, || wait_for(set_of(SIGUSR2), None).0), Err(EINTR));
    assert_ne!(SEEN.take().0, 0);
    mask(SIG_SETMASK, 0).expect("a mask");
    // An open one that ends the process does so.
    let end = process::run(|| {
        set_without_handler(SIGUSR1, SIG_DFL);
        let waiter = process::id();
        process::spawn(|| {
            time::sleep(2 * MILLISECOND).expect("a sleep");
            process::kill(waiter as i32, SIGUSR1).expect("a signal");
            0
        });
        let _ = wait_for(set_of(SIGUSR1), None);
    });
    assert_eq!(end, killed(SIGUSR1));
}

fn causes_are_given() {
    const VALUE: u64 = 0x1122_3344_5566_7788;
    static VALUES: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
    extern "C" fn keep(_: u32, info: &SigInfo, _: &mut UContext) {
        VALUES.iter().zip(info.fields).for_each(|(place, field)| place.store(field, Ordering::Relaxed));
    }
    let own = u64::from(process::id());
    let cause = |code| {
        let mut info = SigInfo::new(99, code);
        info.fields[..2].copy_from_slice(&[5 << 32 | 123, VALUE]);
        info
    };
    let queue = |id: u64, signal: u32, code| {
        let info = cause(code);
        call(RT_SIGQUEUEINFO, [id, signal.into(), &raw const info as u64])
    };
    let to_thread = |process: u64, thread: u64, signal: u32, code| {
        let info = cause(code);
        call(RT_TGSIGQUEUEINFO, [process, thread, signal.into(), &raw const info as u64])
    };
    const REAL_TIME: u32 = 35;
    for signal in [SIGUSR1, REAL_TIME] {
        // To oneself, any code.
        for code in [SI_QUEUE, SI_USER, SI_TKILL, 5] {
            set(signal, keep, 0, 0);
            assert_eq!(queue(own, signal, code), Ok(0), "{signal}, {code}");
            assert_eq!(VALUES.each_ref().map(|value| value.swap(0, Ordering::Relaxed)), [5 << 32 | 123, VALUE]);
            mask(SIG_BLOCK, set_of(signal)).expect("a mask");
            assert_eq!(to_thread(own, own, signal, code), Ok(0));
            let (taken, info) = wait_for(set_of(signal), Some(0));
            assert_eq!((taken, info), (Ok(signal.into()), SigInfo { signal: signal as i32, ..cause(code) }));
            mask(SIG_SETMASK, 0).expect("a mask");
        }
    }
    let child = process::spawn(|| -> u8 { time::sleep_for_ever() });
    let id = u64::from(child);
    for (code, answer) in [(SI_USER, Err(EPERM)), (5, Err(EPERM)), (SI_TKILL, Err(EPERM)), (SI_QUEUE, Ok(0))] {
        assert_eq!([queue(id, 0, code), to_thread(id, id, 0, code)], [answer; 2], "{code}");
    }
    assert_eq!(queue(id, 65, SI_QUEUE), Err(EINVAL));
    assert_eq!([0, u64::MAX, 99_999_999].map(|id| queue(id, 65, SI_QUEUE)), [Err(ESRCH); 3]);
    assert_eq!(queue(99_999_999, 0, SI_USER), Err(EPERM), "before it is looked for");
    assert_eq!(call(RT_SIGQUEUEINFO, [99_999_999, 0, NOWHERE]), Err(EFAULT));
    assert_eq!([to_thread(0, own, 0, SI_USER), to_thread(own, 0, 0, SI_USER)], [Err(EINVAL); 2]);
    assert_eq!(to_thread(id, own, 0, SI_QUEUE), Err(ESRCH), "another process's");
    assert_eq!(call(RT_TGSIGQUEUEINFO, [0, own, 0, NOWHERE]), Err(EFAULT));
    assert_eq!(queue(id, SIGTERM, SI_QUEUE), Ok(0));
    assert_eq!(process::wait(child), killed(SIGTERM));
}

fn a_handler_runs_with_its_mask() {
    extern "C" fn look(_: u32, _: &SigInfo, _: &mut UContext) {
        MASK.store(mask(SIG_BLOCK, 0).expect("a mask"), Ordering::Relaxed);
    }
    static MASK: AtomicU64 = AtomicU64::new(0);
    set(SIGUSR1, look, 0, set_of(SIGUSR2));
    raise(SIGUSR1);
    assert_eq!(MASK.load(Ordering::Relaxed), set_of(SIGUSR1) | set_of(SIGUSR2), "its own and those that it asked for");
    set(SIGUSR1, look, SA_NODEFER | SA_RESETHAND, 0);
    raise(SIGUSR1);
    assert_eq!(MASK.load(Ordering::Relaxed), 0, "SA_NODEFER");
    assert_eq!(mask(SIG_SETMASK, 0), Ok(0), "the mask is back");
    assert_eq!(set_without_handler(SIGUSR1, SIG_DFL).handler, SIG_DFL, "SA_RESETHAND");
}

fn threads_have_their_own() {
    static TAKEN_BY: AtomicU32 = AtomicU32::new(0);
    static READY: AtomicU32 = AtomicU32::new(0);
    extern "C" fn who(_: u32, _: &SigInfo, _: &mut UContext) {
        TAKEN_BY.store(process::thread_id(), Ordering::Relaxed);
    }
    set(SIGUSR2, who, 0, 0);
    let thread = Thread::spawn(|| {
        READY.store(1, Ordering::Relaxed);
        while READY.load(Ordering::Relaxed) != 2 {
            core::hint::spin_loop();
        }
    });
    until(|| READY.load(Ordering::Relaxed) == 1);
    let id = thread.id();
    process::tgkill(process::id(), id, SIGUSR2).expect("a signal to a thread");
    until(|| TAKEN_BY.load(Ordering::Relaxed) != 0);
    assert_eq!(TAKEN_BY.swap(0, Ordering::Relaxed), id, "the thread that it was sent to, also while it only computes");
    // A signal of the process is delivered to a thread that does not block it.
    mask(SIG_BLOCK, set_of(SIGUSR2)).expect("a mask");
    process::kill(process::id() as i32, SIGUSR2).expect("a signal to oneself");
    until(|| TAKEN_BY.load(Ordering::Relaxed) != 0);
    assert_eq!(TAKEN_BY.load(Ordering::Relaxed), id);
    mask(SIG_SETMASK, 0).expect("a mask");
    READY.store(2, Ordering::Relaxed);
    thread.join();
    // Its word is cleared, and its joiner woken, a little before its number is freed, on Linux as well.
    until(|| process::tgkill(process::id(), id, SIGUSR2) == Err(ESRCH));
}

/// X29 of the handler, and the frame record there.
#[cfg(target_arch = "aarch64")]
static FRAME_RECORD: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".text", ".type note_frame_record, %function", "note_frame_record:",
    "adrp x9, {record}", "add x9, x9, :lo12:{record}",
    "ldp x10, x11, [x29]", "str x29, [x9]", "stp x10, x11, [x9, #8]", "ret",
    ".size note_frame_record, . - note_frame_record",
    record = sym FRAME_RECORD,
);

/// The records that an unwinder follows: X29 of a handler points above its frame, to X29 and X30 of interrupted code.
#[cfg(target_arch = "aarch64")]
fn a_handlers_frame_record_leads_to_what_it_interrupted() {
    unsafe extern "C" {
        safe fn note_frame_record(signal: u32, info: &SigInfo, context: &mut UContext);
    }
    set(SIGUSR1, note_frame_record, 0, 0);
    let (sp, fp, lr, result): (u64, u64, u64, u64);
    // SAFETY: the signal comes before the call returns; its handler changes what a function may.
    unsafe {
        core::arch::asm!(
            "mov {sp}, sp", "mov {fp}, x29", "mov {lr}, x30", "svc #0",
            sp = out(reg) sp, fp = out(reg) fp, lr = out(reg) lr,
            in("x8") TKILL, inlateout("x0") u64::from(process::thread_id()) => result, in("x1") u64::from(SIGUSR1),
        );
    }
    assert_eq!(result, 0);
    let [record, caller, address] = FRAME_RECORD.each_ref().map(|word| word.load(Ordering::Relaxed));
    assert!(record < sp && record.is_multiple_of(16), "on the stack: {record:#x}, {sp:#x}");
    assert_eq!([caller, address], [fp, lr]);
    set(SIGUSR1, note, 0, 0);
}

fn handlers_have_a_stack() {
    const SIZE: u64 = 16 * PAGE;
    let base = memory::map(SIZE, RW).expect("a stack");
    let stack = SigStack { base, flags: 0, padding: 0, size: SIZE };
    // SAFETY: the stack is this function's, until it is taken back below.
    assert_eq!(unsafe { set_stack(&stack) }.map(|old| old.size), Ok(0));
    let on_it = || (base..base + SIZE).contains(&SEEN.sp.load(Ordering::Relaxed));
    set(SIGUSR1, note, SA_ONSTACK, 0);
    raise(SIGUSR1);
    assert!(SEEN.take().0 == 1 && on_it());
    set(SIGUSR1, note, 0, 0);
    raise(SIGUSR1);
    assert!(SEEN.take().0 == 1 && !on_it(), "only where it is asked for");
    // A child has the stack too, in memory of its own.
    process::in_copy(|| {
        // SAFETY: there is none afterwards.
        assert_eq!(unsafe { set_stack(&SigStack::NONE) }, Ok(stack));
    });
    let small = SigStack { size: 1024, ..stack };
    // SAFETY: it is refused.
    assert_eq!(unsafe { set_stack(&small) }, Err(ENOMEM));
    // SAFETY: there is none afterwards.
    assert_eq!(unsafe { set_stack(&SigStack::NONE) }, Ok(stack));
    // SAFETY: it is not used any more.
    unsafe { memory::munmap(base, SIZE) }.expect("a stack to unmap");

    // Without a stack of its own the overflow of the stack kills.
    let child = process::spawn(|| {
        set(SIGSEGV, note, 0, 0);
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the process ends by it.
        unsafe {
            core::arch::asm!("mov sp, {}", "str x9, [sp]", in(reg) 0x1000_u64)
        };
    });
    assert_eq!(process::wait(child), killed(SIGSEGV));
}

/// A child that sends this process signals until it is stopped, and exits with 11.
struct Sender {
    stop: &'static AtomicU32,
    child: u32,
}

impl Sender {
    fn start(flags: u64) -> Self {
        set(SIGUSR1, note, flags, 0);
        let stop = memory::shared::<AtomicU32>();
        STOP.store(stop.as_ptr(), Ordering::Relaxed);
        let parent = process::id() as i32;
        let child = process::spawn(|| {
            while stop.load(Ordering::Relaxed) == 0 {
                process::kill(parent, SIGUSR1).expect("a signal to the parent");
                time::sleep(3_000_000).expect("a sleep");
            }
            11
        });
        Self { stop, child }
    }

    fn stop(self) {
        self.stop.store(1, Ordering::Relaxed);
        // Also what comes late.
        set_without_handler(SIGUSR1, SIG_IGN);
        assert_eq!(process::wait(self.child), exited(11));
        assert_ne!(SEEN.take().0, 0, "signals came");
    }
}

/// The word that stops the last [`Sender`].
static STOP: AtomicPtr<u32> = AtomicPtr::new(core::ptr::null_mut());

/// Records its arguments, and stops the sender once ten signals have come, of which the last interrupt the call.
extern "C" fn stop_after_ten(signal: u32, info: &SigInfo, context: &mut UContext) {
    note(signal, info, context);
    if SEEN.count.load(Ordering::Relaxed) >= 10 {
        // SAFETY: the sender's, which stays until the program ends.
        unsafe { AtomicU32::from_ptr(STOP.load(Ordering::Relaxed)) }.store(1, Ordering::Relaxed);
    }
}

fn calls_are_interrupted_or_restarted() {
    let sender = Sender::start(0);
    assert_eq!(process::wait4(sender.child as i32, 0), Err(EINTR), "wait4");
    sender.stop();
    let sender = Sender::start(SA_RESTART);
    set(SIGUSR1, stop_after_ten, SA_RESTART, 0);
    assert_eq!(process::wait4(sender.child as i32, 0), Ok((sender.child, exited(11))), "SA_RESTART");
    assert!(SEEN.take().0 >= 10, "signals came");
    let sender = Sender::start(SA_RESTART);
    assert_eq!(time::sleep(20_000_000_000), Err(EINTR), "nanosleep is never restarted");
    sender.stop();
    // SIGCHLD is ignored by default: it interrupts nothing.
    let child = process::spawn(|| 0);
    assert_eq!(time::sleep(5_000_000), Ok(()));
    assert_eq!(process::wait(child), exited(0));
}

/// The answer of `restart_syscall`, called by the program itself.
fn restart() -> Result<u64, Errno> {
    call(RESTART_SYSCALL, [])
}

/// The handler's own call of `restart_syscall`: 1 for success, or what else it answered.
static RESTARTED: AtomicU64 = AtomicU64::new(0);
static CAUGHT: AtomicU32 = AtomicU32::new(0);

fn sleeps_go_on_where_they_were() {
    extern "C" fn go_on(_: u32, _: &SigInfo, _: &mut UContext) {
        RESTARTED.store(restart().map_or_else(|error| error as u64, |answer| answer + 1), Ordering::Relaxed);
    }
    extern "C" fn catch(_: u32, _: &SigInfo, _: &mut UContext) {
        CAUGHT.fetch_add(1, Ordering::Relaxed);
    }
    assert_eq!(restart(), Err(EINTR), "nothing was interrupted");
    // A handler may have the call go on that it has interrupted.
    set(SIGUSR1, go_on, SA_RESTART, 0);
    let own = process::id();
    let goes_on = |soon: u64| {
        let begin = time::now();
        let child = process::spawn(|| {
            time::sleep(soon).expect("a sleep");
            process::kill(own as i32, SIGUSR1).expect("a signal");
        });
        let answer = time::sleep(10 * soon);
        let passed = time::now() - begin;
        assert_eq!(process::wait(child), exited(0));
        if answer.is_ok() {
            // The signal came before or behind the sleep.
            return false;
        }
        assert_eq!(answer, Err(EINTR), "a sleep with a handler is not restarted");
        assert_eq!(RESTARTED.load(Ordering::Relaxed), 1, "the rest of the sleep");
        assert!(passed >= 10 * soon, "from where it was");
        assert_eq!(restart(), Err(EINTR), "the handler has returned");
        true
    };
    assert!(with_longer_times(20 * MILLISECOND, goes_on), "no signal interrupts a sleep");
    a_sleep_goes_on_without_a_handler(catch);
}

/// The kernel restarts it where there is no handler any more when the thread comes to look.
fn a_sleep_goes_on_without_a_handler(catch: Handler) {
    let own = process::id();
    let sleeper = Thread::spawn(|| {
        for _ in 0..ROUNDS {
            let (before, begin) = (CAUGHT.load(Ordering::Relaxed), time::now());
            let answer = time::sleep(4 * MILLISECOND);
            if answer.is_err() {
                assert!(CAUGHT.load(Ordering::Relaxed) > before, "{answer:?} without a handler");
            } else {
                assert!(time::now() - begin >= 4 * MILLISECOND, "a sleep that ended early");
            }
        }
        SLEEPS.store(0, Ordering::Relaxed);
    });
    const ROUNDS: u32 = 50;
    static SLEEPS: AtomicU32 = AtomicU32::new(1);
    while SLEEPS.load(Ordering::Relaxed) != 0 {
        set(SIGUSR2, catch, 0, 0);
        // It may just have ended.
        let _ = process::tgkill(own, sleeper.id(), SIGUSR2);
        set_without_handler(SIGUSR2, SIG_IGN);
        time::sleep(MILLISECOND).expect("a sleep");
    }
    sleeper.join();
}

fn children_tell_of_their_end() {
    set(SIGCHLD, note, SA_RESTART, 0);
    let child = process::spawn(|| 3);
    assert_eq!(process::wait(child), exited(3));
    assert_eq!(SEEN.take(), (1, SIGCHLD, CLD_EXITED));
    assert_eq!(SEEN.address.load(Ordering::Relaxed) as u32, child, "si_pid");
    set_without_handler(SIGCHLD, SIG_IGN);
    let child = process::spawn(|| 3);
    assert_eq!(process::wait4(child as i32, 0), Err(ECHILD), "it is collected when it ends");
    set_without_handler(SIGCHLD, SIG_DFL);
}

fn floating_point_survives_a_handler() {
    extern "C" fn clobber(_: u32, _: &SigInfo, context: &mut UContext) {
        #[cfg(target_arch = "aarch64")]
        // SAFETY: registers that this code does not use, and the frame has those of the program.
        unsafe {
            core::arch::asm!(".arch_extension fp", ".arch_extension simd", "movi v8.2d, #0", "msr fpsr, xzr")
        };
        // v9 of the interrupted code.
        let at = core::mem::offset_of!(FpsimdContext, registers) + 9 * 16;
        context.context.records.0[at] = 0x5a;
    }
    set(SIGUSR1, clobber, 0, 0);
    #[cfg(target_arch = "aarch64")]
    {
        let (v8, v9): (u64, u64);
        // SAFETY: registers that this code does not use; the call is tgkill.
        unsafe {
            core::arch::asm!(
                ".arch_extension fp", ".arch_extension simd",
                "fmov d8, {eight}", "fmov d9, xzr", "svc #0", "fmov {eight}, d8", "fmov {nine}, d9",
                eight = inout(reg) 0x1234_5678_9abc_def0_u64 => v8, nine = out(reg) v9,
                in("x8") TGKILL, inlateout("x0") u64::from(process::id()) => _,
                in("x1") u64::from(process::thread_id()), in("x2") u64::from(SIGUSR1),
            );
        }
        assert_eq!(v8, 0x1234_5678_9abc_def0, "what the handler did is undone");
        assert_eq!(v9, 0x5a, "what it wrote into the frame counts");
    }
}

fn a_handler_without_a_restorer_returns() {
    set(SIGUSR1, note, 0, 0);
    let there = set_without_handler(SIGUSR1, SIG_DFL);
    let action = SigAction { flags: there.flags & !SA_RESTORER, restorer: 0, ..there };
    // SAFETY: the handler is the one that was there.
    unsafe { set_action(SIGUSR1, &action) }.expect("an action to set");
    raise(SIGUSR1);
    assert_eq!(SEEN.take().0, 1);
}

/// Long calls stop where they are, as on Linux. By itself, because it takes more than one CPU.
fn long_calls_make_way() {
    /// Bytes that are written, in lines, so that other output does not come into the middle of one.
    const TEXT: usize = 512 << 10;
    static LINES: [u8; TEXT] = {
        let mut lines = [b' '; TEXT];
        let mut end = 255;
        while end < TEXT {
            lines[end] = b'\n';
            end += 256;
        }
        lines
    };
    const RANDOM: u64 = 32 << 20;
    // Where the signal comes is a matter of luck: at once, then later and later, and at once again.
    let cut = |most: u64, call: &dyn Fn(u64) -> Result<u64, Errno>| {
        let mut delays = (0..8).map(|doubled| (MILLISECOND / 8) << doubled).cycle();
        loop {
            let delay = delays.next().unwrap_or_default();
            if let Ok(moved) = moved_before_a_signal(delay, call)
                && moved < most
            {
                break moved;
            }
        }
    };
    let moved = cut(RANDOM, &|room| call(GETRANDOM, [room, RANDOM, 0]));
    assert!(moved > 0 && moved.is_multiple_of(PAGE), "{moved} random bytes");
    let moved = cut(TEXT as u64, &|_| call(WRITE, [1, LINES.as_ptr() as u64, TEXT as u64]));
    assert!(moved > 0, "{moved} bytes written");
}

/// Returns what a call answers in a process that gets a signal about `delay` nanoseconds after it has begun: EINTR where
/// that came before the first byte. The call gets the address of 32 MiB to write to.
fn moved_before_a_signal(delay: u64, long: &dyn Fn(u64) -> Result<u64, Errno>) -> Result<u64, Errno> {
    const NOTHING: u64 = u64::MAX;
    let [begins, moved] = memory::shared::<[AtomicU64; 2]>();
    let room = call(MMAP, [0, 32 << 20, RW, SHARED, u64::MAX, 0]).expect("memory");
    let child = process::spawn(|| {
        // SAFETY: the handler stores to atomics.
        unsafe { handle(SIGUSR1, note, 0, 0) }.expect("a handler");
        begins.store(1, Ordering::Relaxed);
        let answer = long(room);
        assert!(matches!(answer, Ok(1..) | Err(EINTR)), "{answer:?}");
        moved.store(answer.unwrap_or(NOTHING), Ordering::Relaxed);
        // The signal that came late.
        until(|| SEEN.count.load(Ordering::Relaxed) != 0);
    });
    until(|| begins.load(Ordering::Relaxed) != 0);
    time::sleep(delay).expect("a sleep");
    process::kill(child as i32, SIGUSR1).expect("the child to be there");
    assert_eq!(process::wait(child), exited(0));
    let result = Some(moved.load(Ordering::Relaxed)).filter(|&moved| moved != NOTHING).ok_or(EINTR);
    call(MUNMAP, [room, 32 << 20]).expect("mapped");
    result
}

fn bad_frames_kill() {
    extern "C" fn ask_for_el1(_: u32, _: &SigInfo, context: &mut UContext) {
        context.context.pstate = 0x3c5;
    }
    extern "C" fn spoil_records(_: u32, _: &SigInfo, context: &mut UContext) {
        context.context.records.0[4..8].copy_from_slice(&8_u32.to_le_bytes());
    }
    for handler in [ask_for_el1 as Handler, spoil_records] {
        let end = process::run(|| {
            set_without_handler(SIGSEGV, SIG_DFL);
            set(SIGUSR1, handler, 0, 0);
            raise(SIGUSR1);
        });
        assert_eq!(end, killed(SIGSEGV));
    }
}

fn bad_arguments_are_refused() {
    let action = SigAction::default();
    for signal in [0, 65, SIGKILL] {
        // SAFETY: it is refused.
        assert_eq!(unsafe { set_action(signal, &action) }, Err(EINVAL), "signal {signal}");
    }
    assert_eq!(mask(3, 0), Err(EINVAL));
    assert_eq!(process::kill(0x7fff_0000, SIGUSR1), Err(ESRCH));
    assert_eq!(process::kill(process::id() as i32, 0), Ok(()), "whether it is there");
    assert_eq!(process::tgkill(0, 1, SIGUSR1), Err(EINVAL));
}
