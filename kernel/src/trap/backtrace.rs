//! The chain of calls, read from the frame records on the stack (AAPCS64 6.4.6).
//!
//! The chain may be corrupt: it is read when something has already gone wrong. So a record is accepted only where it
//! lies on a stack of this CPU, above the one before it, and every read is one that may fault. The chain goes from one
//! stack to another at most once, never back: so the walk ends whatever it reads.

use core::fmt;
use core::ops::Range;

use granule_arch::addr::VirtAddr;

use super::probe;
use crate::mm::layout::OVERFLOW_STACK_SIZE;
use crate::mm::layout::STACK_SIZE;
use crate::smp::{Cpu, this_cpu};
use crate::symbols::Named;

/// Lines that a report prints at most. A sensible chain is shorter; one that overflowed its stack is not.
const LONGEST: usize = 40;

/// The addresses of the stack that `sp` is on, or whose guard area below it `sp` has run into.
///
/// Stacks lie at multiples of twice their size, so the address is enough.
pub(super) fn stack_around(sp: u64) -> Range<u64> {
    let block = sp & !(2 * STACK_SIZE - 1);
    let start = if sp - block > STACK_SIZE { block.saturating_add(2 * STACK_SIZE) } else { block };
    start..start.saturating_add(STACK_SIZE)
}

/// The ordinary stack of `cpu`.
pub(super) fn stack_of(cpu: &Cpu) -> Range<u64> {
    let top = cpu.trap().stack_top();
    top.saturating_sub(STACK_SIZE)..top
}

/// One step of the chain, from the innermost outwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CallStep {
    /// A function that made a call; the address is that of the call.
    Call(VirtAddr),
    /// Code that an exception interrupted; the address is that of the instruction that it stopped at.
    Interrupted(VirtAddr),
}

/// Why the chain ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ChainEnd {
    /// At the first function of this CPU or thread.
    Complete,
    /// The next record would be here, and that is no place for one.
    Corrupt(VirtAddr),
}

/// Walks the chain that starts with the record at `fp`, and calls `visit` with each step.
///
/// `stacks` are the stacks that the chain may go over, in that order; `exception_return` is the return address that a
/// trap frame's record follows; `read` reads a word of memory, or fails.
pub(super) fn walk(
    fp: u64,
    stacks: &[Range<u64>],
    exception_return: u64,
    read: impl Fn(VirtAddr) -> Option<u64>,
    mut visit: impl FnMut(CallStep),
) -> ChainEnd {
    let mut stacks = stacks.iter();
    let mut allowed = 0..0;
    let mut interrupted = false;
    let mut fp = fp;
    while fp != 0 {
        // The whole record, two words, has to be inside.
        let fits = |range: &Range<u64>| fp.is_multiple_of(8) && range.start <= fp && fp.saturating_add(16) <= range.end;
        if !fits(&allowed) {
            match stacks.find(|stack| fits(stack)) {
                Some(stack) => allowed = stack.clone(),
                None => return ChainEnd::Corrupt(VirtAddr(fp)),
            }
        }
        let (Some(next), Some(pc)) = (read(VirtAddr(fp)), read(VirtAddr(fp + 8))) else {
            return ChainEnd::Corrupt(VirtAddr(fp));
        };
        if interrupted {
            visit(CallStep::Interrupted(VirtAddr(pc)));
        } else if pc != 0 && pc != exception_return {
            visit(CallStep::Call(VirtAddr(pc.wrapping_sub(4))));
        }
        interrupted = pc == exception_return;
        allowed.start = fp + 16;
        fp = next;
    }
    ChainEnd::Complete
}

/// The chain of calls of this CPU, printable.
pub(crate) struct Backtrace {
    fp: u64,
    stacks: [Range<u64>; 3],
}

#[allow(unsafe_code, reason = "a label of assembly, which is not read")]
unsafe extern "C" {
    /// The address that `handle_exception` returns to, in `vectors.rs`. The frame record after one with this return
    /// address is a [`TrapFrame::record`](super::TrapFrame::record).
    #[link_name = "exception_return"]
    static EXCEPTION_RETURN: u8;
}

impl Backtrace {
    /// The chain that starts with the record at `fp`, of code that had its stack pointer at `sp` on this CPU.
    ///
    /// SP may be wrong: the CPU's own stack is accepted as well.
    pub(super) fn new(fp: u64, sp: u64, cpu: &Cpu) -> Self {
        let overflow_top = cpu.trap().overflow_stack_top();
        let overflow = overflow_top.saturating_sub(OVERFLOW_STACK_SIZE)..overflow_top;
        Self { fp, stacks: [overflow, stack_around(sp), stack_of(cpu)] }
    }
}

impl fmt::Display for Backtrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read = |address| probe::read::<u64>(address).ok();
        let mut lines = Lines { f, last: None, repeated: 0, printed: 0, result: Ok(()) };
        let exception_return = (&raw const EXCEPTION_RETURN).addr() as u64;
        let end = walk(self.fp, &self.stacks, exception_return, read, |step| lines.add(step));
        lines.finish()?;
        match end {
            ChainEnd::Complete => Ok(()),
            ChainEnd::Corrupt(fp) => writeln!(f, "  (ends here: no frame record can be at {fp})"),
        }
    }
}

/// The chain of calls that led here. To be printed before the function that asks for it returns: its frame record is
/// the first of the chain.
#[inline(always)]
#[allow(unsafe_code, reason = "reads registers in assembly")]
pub(crate) fn backtrace_here() -> Backtrace {
    let (fp, sp): (u64, u64);
    // SAFETY: reads two registers.
    unsafe {
        core::arch::asm!(
            "mov {0}, x29", "mov {1}, sp",
            out(reg) fp, out(reg) sp, options(nomem, nostack, preserves_flags)
        );
    }
    Backtrace::new(fp, sp, this_cpu())
}

/// A step for each line. A recursive function's calls of itself take one line together.
struct Lines<'a, 'f> {
    f: &'a mut fmt::Formatter<'f>,
    last: Option<CallStep>,
    repeated: usize,
    printed: usize,
    result: fmt::Result,
}

impl Lines<'_, '_> {
    fn add(&mut self, step: CallStep) {
        if self.last == Some(step) {
            self.repeated += 1;
            return;
        }
        self.end_line();
        self.last = Some(step);
        self.printed += 1;
        if self.printed <= LONGEST {
            match step {
                CallStep::Call(pc) => self.print(format_args!("  {}", Named(pc))),
                CallStep::Interrupted(pc) => self.print(format_args!("  --- exception ---\n  {}", Named(pc))),
            }
        }
    }

    /// Ends the line of the last step, if there was one.
    fn end_line(&mut self) {
        let repeated = core::mem::take(&mut self.repeated);
        if self.last.is_none() || self.printed > LONGEST {
            return;
        }
        if repeated > 0 {
            self.print(format_args!("  ({repeated} times more)"));
        }
        self.print(format_args!("\n"));
    }

    fn finish(mut self) -> fmt::Result {
        self.end_line();
        if let Some(left_out) = self.printed.checked_sub(LONGEST + 1) {
            self.print(format_args!("  ({} further lines)\n", left_out + 1));
        }
        self.result
    }

    fn print(&mut self, text: fmt::Arguments<'_>) {
        self.result = self.result.and_then(|()| self.f.write_fmt(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const STACK: u64 = 0xffff_8001_0000_8000;
    const OVERFLOW: Range<u64> = 0xffff_8001_0010_0000..0xffff_8001_0010_4000;
    const EXCEPTION_RETURN: u64 = 0x9000;

    fn steps(fp: u64, memory: &HashMap<u64, u64>) -> (Vec<CallStep>, ChainEnd) {
        let mut steps = Vec::new();
        let stacks = [OVERFLOW, stack_around(STACK + 0x100)];
        let read = |address: VirtAddr| memory.get(&address.0).copied();
        let end = walk(fp, &stacks, EXCEPTION_RETURN, read, |step| steps.push(step));
        (steps, end)
    }

    fn records(records: &[(u64, u64, u64)]) -> HashMap<u64, u64> {
        records.iter().flat_map(|&(at, fp, pc)| [(at, fp), (at + 8, pc)]).collect()
    }

    #[test]
    fn a_stack_is_known_by_any_address_in_it_or_in_the_guard_below() {
        let stack = STACK..STACK + STACK_SIZE;
        for sp in [STACK, STACK + 16, STACK + STACK_SIZE - 16, STACK + STACK_SIZE, STACK - 16, STACK - STACK_SIZE + 16]
        {
            assert_eq!(stack_around(sp), stack, "{sp:#x}");
        }
        let _ = (stack_around(0), stack_around(u64::MAX), stack_around(STACK_SIZE));
    }

    #[test]
    fn a_whole_chain_is_read_to_its_end() {
        let memory = records(&[(STACK + 0x100, STACK + 0x200, 0x1004), (STACK + 0x200, 0, 0)]);
        assert_eq!(steps(STACK + 0x100, &memory), (vec![CallStep::Call(VirtAddr(0x1000))], ChainEnd::Complete));
    }

    #[test]
    fn it_goes_through_an_exception_and_off_the_overflow_stack() {
        let memory = records(&[
            (OVERFLOW.start + 0x100, OVERFLOW.start + 0x180, EXCEPTION_RETURN),
            (OVERFLOW.start + 0x180, STACK + 0x40, 0x2000),
            (STACK + 0x40, 0, 0x3004),
        ]);
        let expected = vec![CallStep::Interrupted(VirtAddr(0x2000)), CallStep::Call(VirtAddr(0x3000))];
        assert_eq!(steps(OVERFLOW.start + 0x100, &memory), (expected, ChainEnd::Complete));
    }

    #[test]
    fn a_corrupt_chain_ends_cleanly() {
        for bad in [
            STACK + 0x100,
            STACK + 0x90,
            STACK + 0x101,
            STACK - 16,
            STACK + STACK_SIZE - 8,
            8,
            u64::MAX,
            OVERFLOW.start,
        ] {
            let memory = records(&[(STACK + 0x100, bad, 0x1004), (OVERFLOW.start, STACK + 0x200, 0x1004)]);
            let (calls, end) = steps(STACK + 0x100, &memory);
            assert_eq!((calls.len(), end), (1, ChainEnd::Corrupt(VirtAddr(bad))), "{bad:#x}");
        }
        assert_eq!(steps(STACK + 0x100, &HashMap::new()), (vec![], ChainEnd::Corrupt(VirtAddr(STACK + 0x100))));
    }

    #[test]
    fn recursion_takes_one_line() {
        struct Printed(Vec<u64>);
        impl fmt::Display for Printed {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut lines = Lines { f, last: None, repeated: 0, printed: 0, result: Ok(()) };
                self.0.iter().for_each(|&pc| lines.add(CallStep::Call(VirtAddr(pc))));
                lines.finish()
            }
        }
        assert_eq!(Printed(vec![]).to_string(), "");
        assert_eq!(
            Printed(vec![1, 2, 2, 2, 3]).to_string(),
            "  0x0000000000000001\n  0x0000000000000002  (2 times more)\n  0x0000000000000003\n"
        );
        let long = Printed((0..LONGEST as u64 + 7).collect()).to_string();
        assert_eq!(long.lines().count(), LONGEST + 1);
        assert!(long.ends_with("  (7 further lines)\n"), "{long}");
    }

    proptest! {
        #[test]
        fn the_walk_ends_whatever_it_reads(words in proptest::collection::vec(any::<u64>(), 1..64), start: u64) {
            // Every word of memory is one of `words`, bent towards the stacks so that the chain goes somewhere.
            let read = |address: VirtAddr| {
                let word = words[(address.0 / 8) as usize % words.len()];
                Some(if word.is_multiple_of(4) { word } else { (STACK + word % (2 * STACK_SIZE)) & !7 })
            };
            let mut calls = 0;
            walk((STACK + start % STACK_SIZE) & !7, &[OVERFLOW, stack_around(STACK)], 0, read, |_| calls += 1);
            prop_assert!(calls <= 2 * (STACK_SIZE / 16));
        }
    }
}
