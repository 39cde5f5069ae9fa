//! Calls for futexes: words on which threads wait for each other.

use granule_abi::process::{
    FUTEX_BITSET_MATCH_ANY, FUTEX_CLOCK_REALTIME, FUTEX_CMP_REQUEUE, FUTEX_OP_ADD, FUTEX_OP_ANDN, FUTEX_OP_CMP_EQ,
    FUTEX_OP_CMP_GE, FUTEX_OP_CMP_GT, FUTEX_OP_CMP_LE, FUTEX_OP_CMP_LT, FUTEX_OP_CMP_NE, FUTEX_OP_OPARG_SHIFT,
    FUTEX_OP_OR, FUTEX_OP_SET, FUTEX_OP_XOR, FUTEX_PRIVATE_FLAG, FUTEX_REQUEUE, FUTEX_WAIT, FUTEX_WAIT_BITSET,
    FUTEX_WAITV_MAX, FUTEX_WAKE, FUTEX_WAKE_BITSET, FUTEX_WAKE_OP, FUTEX2_PRIVATE, FUTEX2_SIZE_U32, FutexWaitv,
};
use granule_abi::time::{CLOCK_MONOTONIC, CLOCK_REALTIME};
use granule_arch::addr::{PAGE_SIZE, VirtAddr};

use super::time::{after, read_timespec};
use super::{Answer, Syscall, read_quads};
use crate::chip::timer::{Deadline, uptime_nanoseconds};
use crate::kernel;
use crate::linux::errno::Errno;
use crate::linux::process::futex::{self as sleepers, Scope, Wait, Word};
use crate::linux::process::task::{Continuation, Task};
use crate::mm::paged::PagedList;
use crate::sched::enlarge_shortage;
use crate::smp::this_cpu;

/// The words of `futex_waitv` are in one frame.
const _: () = assert!(FUTEX_WAITV_MAX as usize * size_of::<(Word, u32)>() <= PAGE_SIZE - 64);

pub(super) fn futex(call: &mut Syscall<'_>) -> Answer {
    let (operation, value) = (u64::from(call.argument::<1>() as u32), call.argument::<2>() as u32);
    let scope = if operation & FUTEX_PRIVATE_FLAG != 0 { Scope::Private } else { Scope::Any };
    let word = Word { at: call.address::<0>(), scope };
    let realtime = operation & FUTEX_CLOCK_REALTIME != 0;
    let kind = operation & !(FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME);
    let waits = kind == FUTEX_WAIT || kind == FUTEX_WAIT_BITSET;
    // As on Linux, the time limit is read first, if there is one, before the operation is checked.
    let until = if waits { deadline(call.address::<3>(), kind == FUTEX_WAIT_BITSET)? } else { None };
    if realtime && kind != FUTEX_WAIT_BITSET {
        return Err(Errno::ENOSYS);
    }
    let bits = match kind {
        FUTEX_WAIT_BITSET | FUTEX_WAKE_BITSET => call.argument::<5>() as u32,
        _ => FUTEX_BITSET_MATCH_ANY,
    };
    match kind {
        FUTEX_WAIT | FUTEX_WAIT_BITSET => wait(call.task, &Wait { word, value, bits, until }),
        FUTEX_WAKE | FUTEX_WAKE_BITSET => wake(call, word, at_least_one(value), bits),
        FUTEX_REQUEUE | FUTEX_CMP_REQUEUE => {
            let expected = (kind == FUTEX_CMP_REQUEUE).then_some(call.argument::<5>() as u32);
            requeue(
                call,
                [word, Word { at: call.address::<4>(), scope }],
                expected,
                [value, call.argument::<3>() as u32],
            )
        }
        FUTEX_WAKE_OP => wake_op(call, [word, Word { at: call.address::<4>(), scope }], value),
        _ => Err(Errno::ENOSYS),
    }
}

/// Waits. A wait that a signal interrupts is repeated, or continues up to the same limit.
pub(super) fn wait(task: &Task, wait: &Wait) -> Answer {
    match sleepers::wait(task.space(), wait) {
        Err(Errno::EINTR) if wait.until.is_none() => Err(Errno::ERESTARTSYS),
        Err(Errno::EINTR) => {
            task.continuation.set(Some(Continuation::Futex(*wait)));
            Err(Errno::ERESTARTBLOCK)
        }
        result => result.map(|()| 0),
    }
}

fn wake(call: &Syscall<'_>, word: Word, count: usize, bits: u32) -> Answer {
    sleepers::wake(call.task.space(), word, count, bits).map(|woken| woken as u64)
}

/// A count of sleepers to wake: Linux wakes one for 0 or less.
fn at_least_one(count: u32) -> usize {
    (count as i32).max(1) as usize
}

fn requeue(call: &Syscall<'_>, words: [Word; 2], value: Option<u32>, counts: [u32; 2]) -> Answer {
    if counts.iter().any(|&count| (count as i32) < 0) {
        return Err(Errno::EINVAL);
    }
    sleepers::requeue(call.task.space(), words, value, counts.map(|count| count as usize)).map(|done| done as u64)
}

/// The operation is 4 bits, what the word before is compared by as many, and the operand and the comparand 12 bits each.
fn wake_op(call: &Syscall<'_>, words: [Word; 2], count: u32) -> Answer {
    let code = call.argument::<5>() as u32;
    let signed = |bits: u32| (bits << 20) as i32 >> 20;
    let (mut operand, comparand) = (signed(code >> 12) as u32, signed(code));
    if code >> 28 & FUTEX_OP_OPARG_SHIFT != 0 {
        // As on Linux, also for a number that no bit has.
        operand = 1 << (operand & 31);
    }
    // The bits that stay, then those that are flipped, then what is added.
    let (kept, flipped, added) = match code >> 28 & !FUTEX_OP_OPARG_SHIFT {
        FUTEX_OP_SET => (0, operand, 0),
        FUTEX_OP_ADD => (!0, 0, operand),
        FUTEX_OP_OR => (!operand, operand, 0),
        FUTEX_OP_ANDN => (!operand, 0, 0),
        FUTEX_OP_XOR => (!0, operand, 0),
        _ => return Err(Errno::ENOSYS),
    };
    let change = |word: u32| (word & kept ^ flipped).wrapping_add(added);
    let is_met = |before: u32| {
        let order = (before as i32).cmp(&comparand);
        Ok(match code >> 24 & 0xf {
            FUTEX_OP_CMP_EQ => order.is_eq(),
            FUTEX_OP_CMP_NE => order.is_ne(),
            FUTEX_OP_CMP_LT => order.is_lt(),
            FUTEX_OP_CMP_LE => order.is_le(),
            FUTEX_OP_CMP_GT => order.is_gt(),
            FUTEX_OP_CMP_GE => order.is_ge(),
            // As on Linux, the word has changed.
            _ => return Err(Errno::ENOSYS),
        })
    };
    let counts = [count, call.argument::<3>() as u32].map(at_least_one);
    sleepers::wake_after(call.task.space(), words, counts, change, is_met).map(|woken| woken as u64)
}

/// Reads the time limit of a wait, which begins now, or at the boot; none at address 0.
fn deadline(limit: VirtAddr, is_absolute: bool) -> Result<Option<Deadline>, Errno> {
    if limit.0 == 0 {
        return Ok(None);
    }
    let nanoseconds = read_timespec(limit)?;
    let begin = if is_absolute { uptime_nanoseconds() } else { 0 };
    Ok(Some(after(nanoseconds.saturating_sub(begin))))
}

/// The limit of the calls that name a clock.
fn deadline_by(limit: VirtAddr, clock: u64) -> Result<Option<Deadline>, Errno> {
    let is_clock = [CLOCK_MONOTONIC, CLOCK_REALTIME].map(u64::from).contains(&u64::from(clock as u32));
    if limit.0 != 0 && !is_clock { Err(Errno::EINVAL) } else { deadline(limit, true) }
}

/// A word with the flags of the newer calls: of four bytes, and on no chosen node.
fn word_of(at: u64, flags: u64) -> Result<Word, Errno> {
    let size_and_scope = flags & !u64::from(FUTEX2_PRIVATE);
    if size_and_scope != u64::from(FUTEX2_SIZE_U32) {
        return Err(Errno::EINVAL);
    }
    let scope = if flags & u64::from(FUTEX2_PRIVATE) != 0 { Scope::Private } else { Scope::Any };
    Ok(Word { at: VirtAddr(at), scope })
}

/// A value, or a set of bits, of a word of four bytes.
fn of_word(value: u64) -> Result<u32, Errno> {
    u32::try_from(value).map_err(|_| Errno::EINVAL)
}

/// Reads the word at this place of a list, and its value.
fn read_word(list: VirtAddr, index: usize) -> Result<(Word, u32), Errno> {
    let [value, at, flags] = read_quads(VirtAddr(list.0.wrapping_add((index * size_of::<FutexWaitv>()) as u64)))?;
    // The upper half is reserved.
    Ok((word_of(at, flags)?, of_word(value)?))
}

pub(super) fn futex_wake(call: &mut Syscall<'_>) -> Answer {
    let word = word_of(call.argument::<0>(), u64::from(call.argument::<3>() as u32))?;
    let (bits, count) = (of_word(call.argument::<1>())?, call.argument::<2>() as u32);
    // As by the older call, but for a count of 0.
    let count = if count == 0 { 0 } else { at_least_one(count) };
    wake(call, word, count, bits)
}

pub(super) fn futex_wait(call: &mut Syscall<'_>) -> Answer {
    let word = word_of(call.argument::<0>(), u64::from(call.argument::<3>() as u32))?;
    let (value, bits) = (of_word(call.argument::<1>())?, of_word(call.argument::<2>())?);
    let until = deadline_by(call.address::<4>(), call.argument::<5>())?;
    begin_anew(sleepers::wait(call.task.space(), &Wait { word, value, bits, until }).map(|()| 0))
}

/// The answer of a wait whose limit is a moment: a signal has it begin anew.
fn begin_anew(answer: Answer) -> Answer {
    answer.map_err(|error| if error == Errno::EINTR { Errno::ERESTARTSYS } else { error })
}

pub(super) fn futex_requeue(call: &mut Syscall<'_>) -> Answer {
    let list = call.address::<0>();
    if call.argument::<1>() as u32 != 0 || list.0 == 0 {
        return Err(Errno::EINVAL);
    }
    let [(from, value), (to, _)] = [read_word(list, 0)?, read_word(list, 1)?];
    if from.scope != to.scope {
        return Err(Errno::EINVAL);
    }
    requeue(call, [from, to], Some(value), [call.argument::<2>() as u32, call.argument::<3>() as u32])
}

pub(super) fn futex_waitv(call: &mut Syscall<'_>) -> Answer {
    let (list, count) = (call.address::<0>(), call.argument::<1>() as u32);
    if call.argument::<2>() as u32 != 0 || count == 0 || count > FUTEX_WAITV_MAX || list.0 == 0 {
        return Err(Errno::EINVAL);
    }
    let until = deadline_by(call.address::<3>(), call.argument::<4>())?;
    let mut charge = call.task.process().charges.begin();
    charge.add(sleepers::footprint(count as usize).div_ceil(PAGE_SIZE));
    let mut words = PagedList::new(kernel().frames);
    for index in 0..count as usize {
        words.push(read_word(list, index)?)?;
    }
    let answer = sleepers::wait_for_any(call.task.space(), &words, until);
    // A call that fails for want of memory gives the frame of the words back too.
    let answer = answer.inspect_err(|_| enlarge_shortage(this_cpu(), 1));
    begin_anew(answer.map(|index| index as u64))
}
