//! The report of an exception that the kernel has no answer to. It ends the kernel.

#![allow(unsafe_code, reason = "vectors, stack frames and accesses that may fault, in assembly")]

use core::fmt::{self, Write};

use aarch64_cpu::registers::{Readable, TCR_EL1, TTBR0_EL1, TTBR1_EL1};
use granule_arch::addr::VirtAddr;
use granule_arch::esr::{Access, FaultStatus};

use super::backtrace::{Backtrace, stack_around, stack_of};
use super::frame::TrapFrame;
use super::probe::{self, ProbeFault};
use super::vector::{ExceptionKind, Vector};
use crate::mm::heap::describe_tags;
use crate::mm::heap::guarded::{self, guarded_heap};
use crate::panic::die;
use crate::smp::this_cpu;
use crate::symbols::Named;
use crate::try_kernel;

/// Why there is a report.
pub(super) enum Cause {
    /// A synchronous exception of the kernel that no table expects.
    Synchronous,
    /// An SError.
    SError,
    /// SP was below its stack; the frame lies on the overflow stack.
    StackOverflow,
    /// A vector that nothing in this kernel should take.
    Unexpected(Vector),
}

/// Prints everything that is known about the exception, and ends the kernel.
pub(super) fn report(frame: &TrapFrame, cause: Cause) -> ! {
    die(format_args!("{}", Headline { frame, cause: &cause }), &|out| describe(out, frame))
}

/// The headline of the report.
struct Headline<'a> {
    frame: &'a TrapFrame,
    cause: &'a Cause,
}

impl fmt::Display for Headline<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frame = self.frame;
        match self.cause {
            Cause::Synchronous => {
                if let Some(what) = translation_fault(frame).and_then(guarded::what_happened) {
                    write!(f, "guarded heap: {what}: ")?;
                }
                write!(f, "{}", fault(frame))
            }
            Cause::SError => write!(f, "{}", frame.syndrome()),
            Cause::StackOverflow => {
                let (stack, own) = (stack_around(frame.sp), stack_of(this_cpu()));
                if stack == own {
                    write!(
                        f,
                        "stack overflow: SP {:#x} is below the stack {:#x}..{:#x}",
                        frame.sp, stack.start, stack.end
                    )
                } else {
                    write!(f, "SP {:#x} is on no stack; this CPU's is {:#x}..{:#x}", frame.sp, own.start, own.end)
                }
            }
            Cause::Unexpected(Vector { origin, kind }) => match kind {
                ExceptionKind::Synchronous => write!(f, "unexpected exception from {origin}: {}", fault(frame)),
                ExceptionKind::Irq => write!(f, "unexpected IRQ from {origin}"),
                ExceptionKind::Fiq => write!(f, "unexpected FIQ from {origin}"),
                ExceptionKind::SError => write!(f, "unexpected exception from {origin}: {}", frame.syndrome()),
            },
        }
    }
}

/// The address of a translation fault that `frame` is of.
fn translation_fault(frame: &TrapFrame) -> Option<VirtAddr> {
    let abort = frame.syndrome().abort()?;
    (abort.address_valid && abort.status == FaultStatus::Translation).then(|| frame.fault_address())
}

/// The exception of `frame` as a fault with its address.
fn fault(frame: &TrapFrame) -> ProbeFault {
    ProbeFault { syndrome: frame.syndrome(), address: frame.exception_address() }
}

fn describe(out: &mut dyn Write, frame: &TrapFrame) -> fmt::Result {
    writeln!(out, "  ESR  {:?}", frame.syndrome())?;
    if frame.has_address() {
        writeln!(out, "  FAR  {}", Named(frame.fault_address()))?;
    }
    writeln!(out, "registers:")?;
    write!(out, "{frame}")?;
    describe_code(out, frame.elr)?;
    describe_calls(out, frame)?;
    if frame.syndrome().abort().is_some_and(|abort| abort.status == FaultStatus::TagCheck) {
        describe_tags(out, frame.fault_address())?;
    }
    if let Some(address) = translation_fault(frame).filter(|address| guarded_heap().contains(address.as_ptr())) {
        return guarded::describe(out, address);
    }
    // Last, because it reads the most memory that may be what is broken.
    if frame.syndrome().abort().is_some_and(|abort| abort.address_valid) {
        let address = frame.fault_address();
        let translated = if TCR_EL1.is_set(TCR_EL1::TBI1) { address.canonical() } else { address };
        describe_translation(out, translated)?;
    }
    Ok(())
}

/// The chain of calls that led to the exception, its own instruction first.
fn describe_calls(out: &mut dyn Write, frame: &TrapFrame) -> fmt::Result {
    writeln!(out, "backtrace:")?;
    writeln!(out, "  {}", Named(VirtAddr(frame.elr)))?;
    if frame.syndrome().abort().is_some_and(|abort| abort.access == Access::Fetch) {
        // A call or jump to where no code is: nothing there has made a frame record of the caller yet.
        writeln!(out, "  {}", Named(VirtAddr(frame.x[30].wrapping_sub(4))))?;
    }
    write!(out, "{}", Backtrace::new(frame.x[29], frame.sp, this_cpu()))
}

/// The tables' entries for `address`, level by level.
fn describe_translation(out: &mut dyn Write, address: VirtAddr) -> fmt::Result {
    match address.0 >> 48 {
        0xffff => {
            writeln!(out, "walk of {address} from TTBR1_EL1 {:#x}:", TTBR1_EL1.get())?;
            match try_kernel() {
                Some(kernel) => kernel.space.describe_walk(address, out),
                None => writeln!(out, "  the kernel's tables are not set up yet"),
            }
        }
        0 => writeln!(out, "{address} is EL0's, from TTBR0_EL1 {:#x}", TTBR0_EL1.get()),
        _ => writeln!(out, "{address} is not translated: bits 63 to 48 are neither all 0 nor all 1"),
    }
}

/// The instructions around `pc`, the one at it in parentheses; what cannot be read is left out.
fn describe_code(out: &mut dyn Write, pc: u64) -> fmt::Result {
    write!(out, "  code")?;
    for offset in [-8, -4, 0, 4, 8] {
        match probe::read::<u32>(VirtAddr(pc.wrapping_add_signed(offset))) {
            Ok(word) if offset == 0 => write!(out, " ({word:08x})")?,
            Ok(word) => write!(out, " {word:08x}")?,
            Err(_) => write!(out, " --------")?,
        }
    }
    writeln!(out)
}
