//! Futexes beyond one word: sleepers that move to another word, waits for several, changes of a word before a wake-up,
//! and the calls that name a futex's size.
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
        sleepers_move bits_and_limits_move moves_are_refused moves_by_value moves_to_itself moves_between_processes
        words_change changes_are_refused newer_calls newer_moves waits_for_any waits_for_any_are_refused any_is_interrupted
        many_words those_that_wait_for_any_move all_at_a_time
    }
    status("futexes")
}

type Answer = Result<u64, Errno>;

fn futex(word: &AtomicU32, operation: u64, value: u32, second: u64, other: &AtomicU32, third: u32) -> Answer {
    call(FUTEX, [at(word), operation, value.into(), second, at(other), third.into()])
}

fn at(word: &AtomicU32) -> u64 {
    word.as_ptr() as u64
}

/// Wakes so many, and has others sleep for another word.
fn requeue(from: &AtomicU32, to: &AtomicU32, wakes: u32, moves: u32) -> Answer {
    futex(from, FUTEX_REQUEUE, wakes, moves.into(), to, 0)
}

fn wake(word: &AtomicU32, count: u32) -> Answer {
    futex(word, FUTEX_WAKE, count, 0, word, 0)
}

fn wake_bits(word: &AtomicU32, count: u32, bits: u32) -> Answer {
    futex(word, FUTEX_WAKE_BITSET, count, 0, word, bits)
}

/// Sleeps for a word that is 0.
///
/// By a list of one. By the calls for one word a sleeper that moves as it falls asleep goes back to its first word on
/// Linux, which takes it for woken while it is in no queue (`futex_do_wait`).
fn sleep(word: &AtomicU32) -> Answer {
    wait_for_any(&[of(word, 0, WORD)], None)
}

/// As [`sleep`], by the call for one word.
fn sleep_for_one(word: &AtomicU32, limit: Option<&Timespec>) -> Answer {
    futex(word, FUTEX_WAIT, 0, limit.map_or(0, |limit| &raw const *limit as u64), word, 0)
}

/// Repeats a call until there is a sleeper for it.
fn in_time(mut call: impl FnMut() -> Answer) -> Answer {
    let mut answer = Ok(0);
    until(|| {
        answer = call();
        answer != Ok(0)
    });
    answer
}

/// Moves so many sleepers to another word, as they come.
fn gather(from: &AtomicU32, to: &AtomicU32, count: u64) {
    let mut moved = 0;
    until(|| {
        moved += requeue(from, to, 0, count as u32).unwrap_or(count);
        moved >= count
    });
    equal("as many as there are", moved, count);
}

/// Repeats a wake-up until there is one to wake. Sleepers that have gone back (see [`sleep`]) move again before each.
fn woken_there(from: &AtomicU32, to: &AtomicU32, mut wake: impl FnMut() -> Answer) -> Answer {
    in_time(|| {
        requeue(from, to, 0, 1)?;
        wake()
    })
}

fn sleepers_move() {
    let [first, second, third] = [const { AtomicU32::new(0) }; 3];
    let woken = AtomicU32::new(0);
    let main = |number: usize| {
        if number != 0 {
            equal("woken", sleep(&first), Ok(0));
            woken.fetch_add(1, Ordering::Relaxed);
            return;
        }
        gather(&first, &second, 6);
        equal("none is left", wake(&first, 9), Ok(0));
        equal("one is woken and two move", requeue(&second, &third, 1, 2), Ok(3));
        until(|| woken.load(Ordering::Relaxed) == 1);
        equal("none", requeue(&second, &third, 0, 0), Ok(0));
        equal("the two", wake(&third, 9), Ok(2));
        until(|| woken.load(Ordering::Relaxed) == 3);
        equal("two are woken", requeue(&second, &third, 2, 0), Ok(2));
        equal("one moves", requeue(&second, &third, 0, u32::MAX >> 1), Ok(1));
        equal("one is woken", requeue(&third, &second, u32::MAX >> 1, u32::MAX >> 1), Ok(1));
        equal("none is left", requeue(&third, &second, 9, 9), Ok(0));
    };
    all_at_once(7, main);
    equal("all are awake", woken.into_inner(), 6);
}

fn bits_and_limits_move() {
    let [first, second] = [const { AtomicU32::new(0) }; 2];
    let has_moved = AtomicBool::new(false);
    let sleeps = || {
        equal("with bits", futex(&first, FUTEX_WAIT_BITSET, 0, 0, &first, 5), Ok(0));
        let limit = Timespec::from_nanoseconds(5 * MILLISECOND);
        let mut answer = Ok(0);
        until(|| {
            answer = sleep_for_one(&first, Some(&limit));
            answer != Err(ETIMEDOUT) || has_moved.load(Ordering::Relaxed)
        });
        equal("its limit passes", answer, Err(ETIMEDOUT));
        equal("none is left", (wake(&first, 9), wake(&second, 9)), (Ok(0), Ok(0)));
    };
    beside(sleeps, || {
        gather(&first, &second, 1);
        equal("others' bits", wake_bits(&second, 9, !5), Ok(0));
        equal("its bits", woken_there(&first, &second, || wake_bits(&second, 9, 4)), Ok(1));
        gather(&first, &second, 1);
        has_moved.store(true, Ordering::Relaxed);
    });
    // A signal finds it there too.
    let thread = AtomicU32::new(0);
    // SAFETY: the handler does nothing.
    equal("a handler", unsafe { handle(SIGUSR1, nothing, 0, 0) }.is_ok(), true);
    let sleeps = || {
        thread.store(process::thread_id(), Ordering::Relaxed);
        equal("interrupted", sleep_for_one(&first, None), Err(EINTR));
        equal("none is left", (wake(&first, 9), wake(&second, 9)), (Ok(0), Ok(0)));
    };
    beside(sleeps, || {
        gather(&first, &second, 1);
        equal("a signal", process::tgkill(process::id(), thread.load(Ordering::Relaxed), SIGUSR1), Ok(()));
    });
}

extern "C" fn nothing(_: u32, _: &SigInfo, _: &mut UContext) {}

fn moves_are_refused() {
    let [first, second] = [const { AtomicU32::new(0) }; 2];
    for (wakes, moves) in [(u32::MAX, 0), (0, u32::MAX), (1 << 31, 1)] {
        equal("a count below 0", requeue(&first, &second, wakes, moves), Err(EINVAL));
        let [from, to] = [NOWHERE, NOWHERE];
        equal("before the words", call(FUTEX, [from, FUTEX_REQUEUE, wakes.into(), moves.into(), to, 0]), Err(EINVAL));
    }
    let by_address = |from: u64, to: u64, scope: u64| call(FUTEX, [from, FUTEX_REQUEUE | scope, 1, 1, to, 0]);
    let [good, other] = [at(&first), at(&second)];
    for scope in [0, FUTEX_PRIVATE_FLAG] {
        equal("odd", by_address(good + 1, other, scope), Err(EINVAL));
        equal("the other is odd", by_address(good, other + 2, scope), Err(EINVAL));
        equal("the kernel's", by_address(KERNEL, other, scope), Err(EFAULT));
        equal("the other is the kernel's", by_address(good, KERNEL, scope), Err(EFAULT));
        equal("both", by_address(KERNEL, other + 1, scope), Err(EFAULT));
    }
    equal("nowhere", (by_address(NOWHERE, other, 0), by_address(good, NOWHERE, 0)), (Err(EFAULT), Err(EFAULT)));
    let nowhere = by_address(NOWHERE, NOWHERE + 4, FUTEX_PRIVATE_FLAG);
    equal("nowhere, private", nowhere, Ok(0));
    equal("real time", by_address(good, other, FUTEX_CLOCK_REALTIME), Err(ENOSYS));
    let limit = Timespec { seconds: -1, nanoseconds: 0 };
    equal("it has no limit", futex(&first, FUTEX_REQUEUE, 1, 0, &second, 0), Ok(0));
    let given = &raw const limit as u64;
    equal("nor is one read", futex(&first, FUTEX_REQUEUE, 1, given & 0x7fff_ffff, &second, 0), Ok(0));
}

fn moves_by_value() {
    let [first, second] = [AtomicU32::new(0), AtomicU32::new(0)];
    let compare =
        |value: u32, wakes: u32, moves: u32| futex(&first, FUTEX_CMP_REQUEUE, wakes, moves.into(), &second, value);
    equal("another value", compare(1, 1, 1), Err(EAGAIN));
    equal("no sleeper", compare(0, 1, 1), Ok(0));
    equal("a count below 0", compare(1, u32::MAX, 1), Err(EINVAL));
    let read_only = map(PAGE, PROT_READ).expect("a page");
    let none = map(PAGE, PROT_NONE).expect("a page");
    for (place, page, answer) in [("is only read", read_only, Ok(0)), ("may not be read", none, Err(EFAULT))] {
        let asked = call(FUTEX, [page, FUTEX_CMP_REQUEUE | FUTEX_PRIVATE_FLAG, 1, 1, at(&second), 0]);
        equal((place, "private"), asked, answer);
    }
    // A page that is not there yet is brought.
    let fresh = map(PAGE, RW).expect("a page");
    equal("it is zeroed", call(FUTEX, [fresh, FUTEX_CMP_REQUEUE, 1, 1, at(&second), 0]), Ok(0));
    equal("another value", call(FUTEX, [fresh, FUTEX_CMP_REQUEUE, 1, 1, at(&second), 3]), Err(EAGAIN));
    let sleeps = || equal("woken", sleep(&first), Ok(0));
    beside(sleeps, || {
        equal("one moves", in_time(|| compare(0, 0, 1)), Ok(1));
        first.store(1, Ordering::Relaxed);
        equal("another value", compare(0, 9, 9), Err(EAGAIN));
        equal("it is woken", wake(&second, 1), Ok(1));
    });
}

fn moves_to_itself() {
    let word = AtomicU32::new(0);
    let sleeps = |number: usize| {
        if number != 0 {
            equal("woken", sleep_for_one(&word, None), Ok(0));
            return;
        }
        let mut count = 0;
        until(|| {
            count = requeue(&word, &word, 0, 9).expect("sleepers");
            count == 3
        });
        equal("one is woken", requeue(&word, &word, 1, 9), Ok(3));
        equal("the others", wake(&word, 9), Ok(2));
    };
    all_at_once(4, sleeps);
}

fn moves_between_processes() {
    let words = memory::shared::<[AtomicU32; 2]>();
    let child = process::spawn(|| {
        equal("woken", sleep(&words[0]), Ok(0));
        wrong()
    });
    let private = AtomicU32::new(0);
    gather(&words[0], &words[1], 1);
    equal("a private word is another", futex(&words[1], FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 9, 0, &private, 0), Ok(0));
    let woken = process::spawn(|| {
        equal("by another process", wake(&words[1], 9), Ok(1));
        wrong()
    });
    equal("both", [process::wait(child), process::wait(woken)], [0, 0]);
    // Here a sleeper wakes that would move to memory of another process.
    let child = process::spawn(|| {
        equal("woken", sleep(&words[0]), Ok(0));
        wrong()
    });
    gather(&words[0], &private, 1);
    holds("at most the one", wake(&private, 9).is_ok_and(|woken| woken <= 1));
    equal("the child", process::wait(child), 0);
}

/// The code of a change and a comparison.
const fn code(operation: u32, operand: u32, comparison: u32, comparand: u32) -> u32 {
    operation << 28 | comparison << 24 | (operand & 0xfff) << 12 | comparand & 0xfff
}

fn wake_op(word: &AtomicU32, other: &AtomicU32, counts: [u32; 2], code: u32) -> Answer {
    futex(word, FUTEX_WAKE_OP, counts[0], counts[1].into(), other, code)
}

fn words_change() {
    let [first, second] = [const { AtomicU32::new(0) }; 2];
    for (operation, operand, before, after) in [
        (FUTEX_OP_SET, 7, 1, 7),
        (FUTEX_OP_SET, 0x801, 1, 0xffff_f801),
        (FUTEX_OP_ADD, 7, u32::MAX, 6),
        (FUTEX_OP_ADD, 0xfff, 3, 2),
        (FUTEX_OP_OR, 6, 1, 7),
        (FUTEX_OP_ANDN, 6, 7, 1),
        (FUTEX_OP_XOR, 0xfff, 1, 0xffff_fffe),
        (FUTEX_OP_SET | FUTEX_OP_OPARG_SHIFT, 31, 1, 1 << 31),
        (FUTEX_OP_OR | FUTEX_OP_OPARG_SHIFT, 3, 1, 9),
        (FUTEX_OP_OR | FUTEX_OP_OPARG_SHIFT, 33, 1, 3),
        (FUTEX_OP_OR | FUTEX_OP_OPARG_SHIFT, 0xfff, 1, 0x8000_0001),
    ] {
        second.store(before, Ordering::Relaxed);
        let answer = wake_op(&first, &second, [1, 1], code(operation, operand, FUTEX_OP_CMP_EQ, 0));
        equal((operation, operand), (answer, second.load(Ordering::Relaxed)), (Ok(0), after));
    }
    // A sleeper of the second word tells whether the comparison holds.
    for (comparison, comparand, value, is_met) in [
        (FUTEX_OP_CMP_EQ, 5, 5, true),
        (FUTEX_OP_CMP_EQ, 5, 4, false),
        (FUTEX_OP_CMP_NE, 5, 4, true),
        (FUTEX_OP_CMP_NE, 5, 5, false),
        (FUTEX_OP_CMP_LT, 5, 4, true),
        (FUTEX_OP_CMP_LT, 5, 5, false),
        (FUTEX_OP_CMP_LT, 0xfff, 1 << 31, true),
        (FUTEX_OP_CMP_LE, 5, 5, true),
        (FUTEX_OP_CMP_LE, 5, 6, false),
        (FUTEX_OP_CMP_GT, 0xfff, 0, true),
        (FUTEX_OP_CMP_GT, 0, u32::MAX, false),
        (FUTEX_OP_CMP_GE, 5, 5, true),
        (FUTEX_OP_CMP_GE, 5, 4, false),
    ] {
        let [slept, held] = [AtomicU32::new(0), AtomicU32::new(value)];
        beside(
            || equal("woken", sleep(&slept), Ok(0)),
            || {
                gather(&slept, &held, 1);
                let answer = wake_op(&first, &held, [1, 1], code(FUTEX_OP_ADD, 0, comparison, comparand));
                equal((comparison, comparand, value), answer, Ok(u64::from(is_met)));
                equal("the other way", wake(&held, 1), Ok(u64::from(!is_met)));
            },
        );
    }
    // Of both words, so many each; one at least.
    let [slept, held] = [const { AtomicU32::new(0) }; 2];
    let main = |number: usize| {
        if number != 0 {
            equal("woken", sleep(&slept), Ok(0));
            return;
        }
        gather(&slept, &held, 5);
        equal("three move back", requeue(&held, &slept, 0, 3), Ok(3));
        equal("one of each", wake_op(&slept, &held, [0, 0], code(FUTEX_OP_SET, 1, FUTEX_OP_CMP_EQ, 0)), Ok(2));
        equal("of one", wake_op(&slept, &held, [9, 9], code(FUTEX_OP_SET, 1, FUTEX_OP_CMP_EQ, 0)), Ok(2));
        equal("of the other", wake_op(&slept, &held, [9, 9], code(FUTEX_OP_SET, 1, FUTEX_OP_CMP_EQ, 1)), Ok(1));
    };
    all_at_once(6, main);
}

fn changes_are_refused() {
    let [first, second] = [const { AtomicU32::new(0) }; 2];
    for (operation, comparison, after) in
        [(5, 0, 0), (7, 0, 0), (FUTEX_OP_SET, 6, 1), (FUTEX_OP_SET, 15, 1), (13, 0, 0)]
    {
        second.store(0, Ordering::Relaxed);
        let answer = wake_op(&first, &second, [1, 1], code(operation, 1, comparison, 0));
        equal((operation, comparison), (answer, second.load(Ordering::Relaxed)), (Err(ENOSYS), after));
    }
    let read_only = map(PAGE, PROT_READ).expect("a page");
    let by_address =
        |from: u64, to: u64, code: u32| call(FUTEX, [from, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 1, 1, to, code.into()]);
    let [good, other] = [at(&first), at(&second)];
    equal("odd", (by_address(good + 2, other, 0), by_address(good, other + 1, 0)), (Err(EINVAL), Err(EINVAL)));
    equal("nowhere", by_address(good, NOWHERE, 0), Err(EFAULT));
    equal("read-only", by_address(good, read_only, 0), Err(EFAULT));
    equal("the kernel's", (by_address(KERNEL, other, 0), by_address(good, KERNEL, 0)), (Err(EFAULT), Err(EFAULT)));
    for operation in [2, 14, 99] {
        equal(("no operation", operation), futex(&first, operation, 0, 0, &second, 0), Err(ENOSYS));
    }
    let fresh = map(PAGE, RW).expect("a page");
    equal("a page that is not there yet", by_address(good, fresh, code(FUTEX_OP_ADD, 3, 0, 0)), Ok(0));
    equal("is brought", probe::read(fresh), Ok(3));
}

const WORD: u32 = FUTEX2_SIZE_U32;
const OWN: u32 = FUTEX2_SIZE_U32 | FUTEX2_PRIVATE;

fn newer_calls() {
    let [first, second] = [const { AtomicU32::new(0) }; 2];
    let all = u64::from(u32::MAX);
    let wake =
        |at: u64, bits: u64, count: u32, flags: u32| call(FUTEX_WAKE_CALL, [at, bits, count.into(), flags.into()]);
    let wait = |at: u64, value: u64, bits: u64, flags: u32, limit: u64, clock: u64| {
        call(FUTEX_WAIT_CALL, [at, value, bits, flags.into(), limit, clock])
    };
    let word = at(&first);
    for flags in [0, 1, 3, 0x10, 0x40, 0x82 | 1, 0x102, 1 << 31] {
        equal(("flags of a wake", flags), wake(word, all, 1, flags), Err(EINVAL));
        equal(("flags of a wait", flags), wait(word, 0, all, flags, 0, 1), Err(EINVAL));
    }
    for flags in [WORD, OWN] {
        equal("no sleeper", wake(word, all, 1, flags), Ok(0));
        equal("no bits", (wake(word, 0, 1, flags), wait(word, 0, 0, flags, 0, 1)), (Err(EINVAL), Err(EINVAL)));
        equal(
            "more bits",
            (wake(word, all + 1, 1, flags), wait(word, 0, all + 1, flags, 0, 1)),
            (Err(EINVAL), Err(EINVAL)),
        );
        equal("a larger value", wait(word, all + 1, all, flags, 0, 1), Err(EINVAL));
        equal("another value", wait(word, 1, all, flags, 0, 1), Err(EAGAIN));
        equal("odd", (wake(word + 1, all, 1, flags), wait(word + 2, 0, all, flags, 0, 1)), (Err(EINVAL), Err(EINVAL)));
        equal("none", (wake(word, all, 0, flags), wake(word + 1, all, 0, flags)), (Ok(0), Err(EINVAL)));
        let soon = Timespec::from_nanoseconds(time::now() + MILLISECOND);
        let soon = &raw const soon as u64;
        for clock in [0, 1] {
            let limit = if clock == 1 { soon } else { &raw const BEGIN as u64 };
            equal(("a limit", clock), wait(word, 0, all, flags, limit, clock), Err(ETIMEDOUT));
        }
        equal("another clock", wait(word, 0, all, flags, soon, 7), Err(EINVAL));
        equal("which counts with a limit alone", wait(word, 1, all, flags, 0, 7), Err(EAGAIN));
        equal("a limit nowhere", wait(word, 1, all, flags, NOWHERE, 1), Err(EFAULT));
        let bad = Timespec { seconds: 0, nanoseconds: -1 };
        equal("a limit that is none", wait(word, 1, all, flags, &raw const bad as u64, 1), Err(EINVAL));
    }
    let sleeps = || {
        equal("woken", wait(word, 0, 6, WORD, 0, 1), Ok(0));
        equal("woken again", wait(word, 0, all, OWN, 0, 1), Ok(0));
    };
    beside(sleeps, || {
        gather(&first, &second, 1);
        equal("none of it", wake(at(&second), all, 0, WORD), Ok(0));
        equal("other bits", wake(at(&second), 9, 1, WORD), Ok(0));
        equal("its bits", woken_there(&first, &second, || wake(at(&second), 2, u32::MAX, WORD)), Ok(1));
        equal("a private one", in_time(|| wake(word, all, 9, OWN)), Ok(1));
    });
}

/// The call that moves sleepers between words of a list.
fn newer_moves() {
    let [first, second] = [const { AtomicU32::new(0) }; 2];
    let all = u64::from(u32::MAX);
    let wake = |at: u64, flags: u32| call(FUTEX_WAKE_CALL, [at, all, 9, flags.into()]);
    let list = |from: &AtomicU32, to: &AtomicU32| [of(from, 0, OWN), of(to, 5, OWN)];
    let requeue = |list: &[FutexWaitv; 2], flags: u32, wakes: u32, moves: u32| {
        call(FUTEX_REQUEUE_CALL, [list.as_ptr() as u64, flags.into(), wakes.into(), moves.into()])
    };
    let both = list(&first, &second);
    equal("flags", requeue(&both, 2, 1, 1), Err(EINVAL));
    equal("no list", call(FUTEX_REQUEUE_CALL, [0, 0, 1, 1]), Err(EINVAL));
    equal("a list nowhere", call(FUTEX_REQUEUE_CALL, [NOWHERE, 0, 1, 1]), Err(EFAULT));
    equal("below 0", requeue(&both, 0, u32::MAX, 1), Err(EINVAL));
    equal("another value", requeue(&list(&AtomicU32::new(1), &second), 0, 1, 1), Err(EAGAIN));
    equal("no size", requeue(&[both[0], of(&second, 0, 0)], 0, 1, 1), Err(EINVAL));
    equal("another scope", requeue(&[both[0], of(&second, 0, WORD)], 0, 1, 1), Err(EINVAL));
    beside(
        || equal("woken", call(FUTEX_WAIT_CALL, [at(&first), 0, all, OWN.into(), 0, 1]), Ok(0)),
        || {
            equal("one moves to a private word", in_time(|| requeue(&both, 0, 0, 1)), Ok(1));
            equal("which a shared one is not", wake(at(&second), WORD), Ok(0));
            // It may have gone back.
            let woken = in_time(|| requeue(&both, 0, 0, 1).and_then(|_| wake(at(&second), OWN)));
            equal("it is woken", woken, Ok(1));
        },
    );
}

/// A moment that has passed, by any clock.
static BEGIN: Timespec = Timespec { seconds: 0, nanoseconds: 1 };

fn of(word: &AtomicU32, value: u64, flags: u32) -> FutexWaitv {
    FutexWaitv { val: value, uaddr: at(word), flags, reserved: 0 }
}

fn wait_for_any(list: &[FutexWaitv], limit: Option<&Timespec>) -> Answer {
    let limit = limit.map_or(0, |limit| &raw const *limit as u64);
    call(FUTEX_WAITV, [list.as_ptr() as u64, list.len() as u64, 0, limit, CLOCK_MONOTONIC])
}

fn waits_for_any() {
    let words = [const { AtomicU32::new(0) }; 4];
    let shared = memory::shared::<AtomicU32>();
    let list = [of(&words[0], 0, WORD), of(&words[1], 0, OWN), of(shared, 0, WORD), of(&words[2], 0, WORD)];
    for (index, word, scope) in
        [(0, &words[0], 0), (1, &words[1], FUTEX_PRIVATE_FLAG), (2, shared, 0), (3, &words[2], 0)]
    {
        beside(
            || equal("which one", wait_for_any(&list, None), Ok(index)),
            || {
                equal("one is woken", in_time(|| futex(word, FUTEX_WAKE | scope, 9, 0, word, 0)), Ok(1));
            },
        );
        let none = words.each_ref().map(|word| wake(word, 9));
        equal("none is left", (none, wake(shared, 9)), ([Ok(0); 4], Ok(0)));
    }
    equal("another value", wait_for_any(&[list[0], of(&words[1], 1, WORD)], None), Err(EAGAIN));
    equal("the limit has passed", wait_for_any(&list, Some(&BEGIN)), Err(ETIMEDOUT));
    let soon = Timespec::from_nanoseconds(time::now() + 5 * MILLISECOND);
    equal("a limit passes", wait_for_any(&list, Some(&soon)), Err(ETIMEDOUT));
    // One word twice.
    beside(
        || holds("one of them", wait_for_any(&[list[3], list[3]], None).is_ok_and(|index| index < 2)),
        || {
            let mut woken = 0;
            until(|| {
                woken += wake(&words[2], 1).expect("sleepers");
                woken != 0
            });
        },
    );
}

fn waits_for_any_are_refused() {
    let word = AtomicU32::new(0);
    let good = of(&word, 0, WORD);
    let list = [good; 2];
    let first = list.as_ptr() as u64;
    let wait = |list: u64, count: u64, flags: u64, limit: u64, clock: u64| {
        call(FUTEX_WAITV, [list, count, flags, limit, clock])
    };
    equal("flags", wait(first, 2, 1, 0, 1), Err(EINVAL));
    equal("none, and too many", (wait(first, 0, 0, 0, 1), wait(first, 129, 0, 0, 1)), (Err(EINVAL), Err(EINVAL)));
    equal("no list", (wait(0, 1, 0, 0, 1), wait(NOWHERE, 1, 0, 0, 1)), (Err(EINVAL), Err(EFAULT)));
    let soon = &raw const BEGIN as u64;
    equal("another clock", (wait(first, 1, 0, soon, 4), wait(NOWHERE, 1, 0, soon, 7)), (Err(EINVAL), Err(EINVAL)));
    equal("a limit nowhere", wait(NOWHERE, 1, 0, NOWHERE, 1), Err(EFAULT));
    let refused = |second: FutexWaitv| wait_for_any(&[good, second], Some(&BEGIN));
    for flags in [0, 1, 3, 0x12, 0x80, 0x102] {
        equal(("flags of a word", flags), refused(FutexWaitv { flags, ..good }), Err(EINVAL));
    }
    equal("reserved", refused(FutexWaitv { reserved: 1, ..good }), Err(EINVAL));
    equal("a larger value", refused(FutexWaitv { val: 1 << 32, ..good }), Err(EINVAL));
    equal("odd", refused(FutexWaitv { uaddr: at(&word) + 2, ..good }), Err(EINVAL));
    equal("nowhere", refused(FutexWaitv { uaddr: NOWHERE, ..good }), Err(EFAULT));
    equal("nowhere, private", refused(FutexWaitv { uaddr: NOWHERE, flags: OWN, ..good }), Err(EFAULT));
    equal(
        "the first one counts",
        wait_for_any(&[of(&word, 1, WORD), FutexWaitv { uaddr: NOWHERE, flags: OWN, ..good }], None),
        Err(EAGAIN),
    );
    equal("none is left", wake(&word, 9), Ok(0));
}

fn any_is_interrupted() {
    let words = [const { AtomicU32::new(0) }; 2];
    let list = words.each_ref().map(|word| of(word, 0, OWN));
    // SAFETY: the handler does nothing.
    equal("a handler", unsafe { handle(SIGUSR1, nothing, 0, 0) }.is_ok(), true);
    equal("interrupted", while_signalled(SIGUSR1, MILLISECOND, || wait_for_any(&list, None)), Err(EINTR));
    // SAFETY: likewise.
    equal("a handler", unsafe { handle(SIGUSR1, nothing, SA_RESTART, 0) }.is_ok(), true);
    let soon = Timespec::from_nanoseconds(time::now() + 20 * MILLISECOND);
    let answer = while_signalled(SIGUSR1, MILLISECOND, || wait_for_any(&list, Some(&soon)));
    equal("it begins anew, with its limit", answer, Err(ETIMEDOUT));
    let later = Timespec::from_nanoseconds(time::now() + 20 * MILLISECOND);
    let one = [at(&words[0]), 0, u32::MAX.into(), OWN.into(), &raw const later as u64, CLOCK_MONOTONIC];
    equal("so does that for one", while_signalled(SIGUSR1, MILLISECOND, || call(FUTEX_WAIT_CALL, one)), Err(ETIMEDOUT));
    holds("which has passed", time::now() >= soon.to_nanoseconds().unwrap_or(0));
}

fn many_words() {
    const MOST: usize = FUTEX_WAITV_MAX as usize;
    let words = [const { AtomicU32::new(0) }; MOST];
    let list = words.each_ref().map(|word| of(word, 0, OWN));
    for index in [0, 77, MOST - 1] {
        beside(
            || equal("which one", wait_for_any(&list, None), Ok(index as u64)),
            || {
                equal(
                    "one",
                    in_time(|| futex(&words[index], FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1, 0, &words[0], 0)),
                    Ok(1),
                );
            },
        );
    }
}

fn those_that_wait_for_any_move() {
    let words = [const { AtomicU32::new(0) }; 3];
    let list = [of(&words[0], 0, WORD), of(&words[1], 0, WORD)];
    beside(
        || equal("by the second", wait_for_any(&list, None), Ok(1)),
        || {
            gather(&words[1], &words[2], 1);
            equal("it has moved", wake(&words[1], 1), Ok(0));
            equal("it is woken", wake(&words[2], 1), Ok(1));
        },
    );
    equal("none is left", words.each_ref().map(|word| wake(word, 9)), [Ok(0); 3]);
}

/// Sleepers move, are woken, and give up by their limits, all at a time.
fn all_at_a_time() {
    const ROUNDS: u32 = 200;
    let words = [const { AtomicU32::new(0) }; 3];
    let ended = AtomicU32::new(0);
    let soon = || Timespec::from_nanoseconds(time::now() + MILLISECOND / 4);
    let main = |number: usize| {
        let mut numbers = Random(number as u64 + 1);
        if number < 3 {
            for _ in 0..ROUNDS {
                let limit = soon();
                let word = &words[numbers.below(3)];
                let answer = match number {
                    0 => futex(word, FUTEX_WAIT_BITSET, 0, &raw const limit as u64, word, 1),
                    1 => wait_for_any(&words.each_ref().map(|word| of(word, 0, WORD)), Some(&limit)),
                    _ => wait_for_any(&[of(word, 0, WORD)], Some(&limit)),
                };
                holds("woken, or its limit", matches!(answer, Ok(0..3) | Err(ETIMEDOUT)));
            }
            ended.fetch_add(1, Ordering::Relaxed);
            return;
        }
        while ended.load(Ordering::Relaxed) != 3 {
            let [from, to] = [0, 1].map(|_| &words[numbers.below(3)]);
            requeue(from, to, numbers.below(2) as u32, numbers.below(3) as u32).expect("a number");
            if numbers.below(4) == 0 {
                wake(to, 1).expect("a number");
            }
            if numbers.below(4) == 0 {
                process::sched_yield();
            }
        }
    };
    all_at_once(5, main);
    equal("none is left", words.each_ref().map(|word| wake(word, 9)), [Ok(0); 3]);
}
