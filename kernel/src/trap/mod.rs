//! Exceptions: from the vector to what is done about it.
//!
//! `vectors` saves the registers in a `TrapFrame` and calls `handle_exception`. From there:
//!
//! - an interrupt goes to the interrupt controller's driver;
//! - a translation fault that is no longer one is retried ([`is_spurious`]);
//! - a fault of a probing access continues at its fixup (`extable`, `probe`), with the fault as a value;
//! - everything else is the kernel's own error and ends in a report (`report`).
//!
//! All of it runs with every exception masked, on the stack of the code that was interrupted.

pub(crate) mod backtrace;
mod extable;
pub(crate) mod frame;
mod per_cpu;
pub mod probe;
#[cfg(target_os = "none")]
pub(crate) mod report;
#[cfg(target_os = "none")]
pub(crate) mod tags;
#[cfg(target_os = "none")]
mod user;
mod vector;
#[cfg(target_os = "none")]
mod vectors;

use granule_arch::addr::VirtAddr;
use granule_arch::esr::{FaultStatus, Syndrome};
use granule_arch::{barrier, translate};

pub use frame::{SPSR_BTYPE, TrapFrame};
pub use per_cpu::PerCpu;
pub use probe::ProbeFault;

/// Whether a fault with this syndrome at this address is gone now, so that the instruction need only be run again.
///
/// Without FEAT_ETS2 a CPU may take a translation fault on an address that another CPU has made valid, even after it
/// has seen the store that reports it: only an ISB after that, ordered by a branch or a DSB, would have prevented it,
/// and plain accesses have none. The translation is asked for anew (AT S1E1R): any answer but a translation fault means
/// that the walk that faulted is out of date. A read is asked for also where the access was a write or a fetch: if
/// *that* is what is not permitted, the retry faults again.
///
/// Exception entry is a context synchronisation, and where the message was branched on (a lock, a wait loop) that is
/// enough for this walk and the retry. Where it was acquired and nothing depended on it, both may still read the entry as
/// it was. So a DSB ISH orders what this CPU has read before the walk, and an ISB makes the walk a new one. With no
/// message at all the access raced with the change, and either answer is right.
///
/// The retry is not counted against a limit: after those two it faults spuriously again only if yet another CPU has
/// made the address invalid and valid once more in between, since an invalid entry is never cached.
///
/// Accesses with EL0's rights (LDTR, in `uaccess`) are translated otherwise than by AT S1E1R. They are to addresses of
/// EL0, whose faults `resolve_for_user` decides by the tables before this is asked; what it does not resolve, or where
/// interrupts are masked, counts as spurious if EL1 could read there, and is then tried again.
pub fn is_spurious(syndrome: Syndrome, address: VirtAddr) -> bool {
    let Some(abort) = syndrome.abort() else { return false };
    if abort.status != FaultStatus::Translation || !abort.address_valid {
        return false;
    }
    barrier::dsb_ish();
    barrier::isb();
    translate::read_at_el1(address) != Err(FaultStatus::Translation)
}

#[cfg(target_os = "none")]
use target::handle_exception;
#[cfg(target_os = "none")]
pub use target::init_cpu;

#[cfg(target_os = "none")]
mod target {
    use core::cell::UnsafeCell;

    use aarch64_cpu::registers::{Readable, SP};
    use granule_arch::interrupts;

    use super::backtrace::stack_around;
    use super::frame::TrapFrame;
    use super::report::{Cause, report};
    use super::vector::{ExceptionKind, Origin, Vector};
    use super::vectors::{OVERFLOWED, exception_vectors};
    use super::{extable, is_spurious, probe, tags};
    use crate::chip::interrupt;
    use crate::mm::layout::OVERFLOW_STACK_SIZE;
    use crate::smp::{Cpu, this_cpu};
    use crate::{sched, uaccess};

    /// PSTATE.I: IRQs were masked.
    const SPSR_I: u64 = 1 << 7;

    /// The overflow stack of the CPU that boots; the others get theirs with their ordinary stacks.
    #[repr(C, align(16))]
    struct OverflowStack(UnsafeCell<[u8; OVERFLOW_STACK_SIZE as usize]>);

    // SAFETY: only the vectors of one CPU use it, and only as a stack.
    #[allow(unsafe_code, reason = "shared between CPUs")]
    unsafe impl Sync for OverflowStack {}

    static BOOT_OVERFLOW_STACK: OverflowStack = OverflowStack(UnsafeCell::new([0; OVERFLOW_STACK_SIZE as usize]));

    /// Makes this CPU take exceptions: sets the boot CPU's stacks, sets VBAR_EL1, and lets SErrors in.
    ///
    /// The first thing that each CPU does in Rust. A secondary's stacks are in its [`Cpu`] before it starts.
    #[allow(unsafe_code, reason = "sets the exception vectors and their stack")]
    pub fn init_cpu(cpu: &Cpu) {
        if cpu.trap().overflow_stack_top() == 0 {
            let top = BOOT_OVERFLOW_STACK.0.get().addr() as u64 + OVERFLOW_STACK_SIZE;
            cpu.trap().set_stacks(stack_around(SP.get()).end, top);
        }
        // SAFETY: these are vectors, and the state that they need is complete: TPIDR_EL1 points to `cpu`, and SP is on
        // a stack of the kind that they expect. The ISB has them in place before an SError that is pending already can
        // be taken.
        unsafe {
            core::arch::asm!(
                "msr vbar_el1, {}", "isb", "msr daifclr, #4",
                in(reg) exception_vectors(), options(nostack, preserves_flags)
            );
        }
    }

    /// Where the vectors go once the registers are saved. Returning resumes at `frame`.
    pub(super) extern "C" fn handle_exception(frame: &mut TrapFrame, number: u64) {
        let vector = Vector::from_number(number);
        if number & OVERFLOWED != 0 {
            report(frame, Cause::StackOverflow);
        }
        match (vector.origin, vector.kind) {
            (Origin::El1h, ExceptionKind::Synchronous) => synchronous(frame),
            (Origin::El1h, ExceptionKind::Irq) => irq(),
            (Origin::El1h, ExceptionKind::SError) => report(frame, Cause::SError),
            (_, _) => report(frame, Cause::Unexpected(vector)),
        }
    }

    pub(super) fn irq() {
        let cpu = this_cpu();
        tags::check_asynchronous();
        cpu.trap().handler(|| interrupt::handle_irq(cpu));
    }

    fn synchronous(frame: &mut TrapFrame) {
        if resolve_for_user(frame) {
            return;
        }
        // Before the exception table is asked: a probe's answer is that of the tables, never a spurious fault.
        if is_spurious(frame.syndrome(), frame.fault_address()) {
            return this_cpu().trap().count_spurious_fault();
        }
        match expected(frame).or_else(|| probe::refused_call(frame)) {
            Some(fixup) => {
                this_cpu().trap().count_probe_fault();
                resume_with_fault(frame, fixup);
            }
            None => report(frame, Cause::Synchronous),
        }
    }

    /// Where to go on after a fault that is expected of this instruction, at this address: an access of EL0's memory is
    /// not excused where it faults in the kernel's.
    fn expected(frame: &TrapFrame) -> Option<u64> {
        let fixup = extable::fixup(frame.elr)?;
        let is_known = frame.syndrome().abort().is_some_and(|abort| abort.address_valid);
        let is_of_kernel = is_known && frame.fault_address().untagged() >= uaccess::END;
        (!(is_of_kernel && uaccess::is_fixup(fixup))).then_some(fixup)
    }

    /// Whether a fault of the kernel at an address of EL0 is resolved, so that the access is to be tried again.
    ///
    /// Only at instructions that may fault, and only where interrupts were on: resolving may sleep. And only what the
    /// tables refused: no change of them ends an external abort, an alignment fault, or any other.
    fn resolve_for_user(frame: &TrapFrame) -> bool {
        let address = frame.fault_address().untagged();
        let Some(abort) = frame.syndrome().abort() else { return false };
        if !abort.is_page_fault() || address >= uaccess::END || frame.spsr & SPSR_I != 0 {
            return false;
        }
        if extable::fixup(frame.elr).is_none() {
            return false;
        }
        let thread = sched::current();
        let Some(entry) = thread.entry else { return false };
        interrupts::enable();
        let resolved = (entry.resolve)(&thread, address, abort.access);
        let _ = interrupts::mask();
        resolved
    }

    /// Continues at `fixup`, which finds the fault in x16 and x17.
    fn resume_with_fault(frame: &mut TrapFrame, fixup: u64) {
        frame.x[16] = frame.esr;
        frame.x[17] = frame.exception_address().0;
        frame.elr = fixup;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use granule_arch::addr::VirtAddr;
    use granule_arch::esr::Syndrome;
    use granule_arch::recorded::record;

    use super::is_spurious;

    /// A data abort at EL1 on a read, with this status.
    fn abort(status: u64) -> Syndrome {
        Syndrome(0x25 << 26 | 1 << 25 | status)
    }

    /// Without the DSB the walk may read the entry as it was before the message that this CPU has acquired; without the
    /// ISB it may have been made earlier. No emulated CPU does either.
    #[test]
    fn a_fault_is_asked_for_anew_behind_a_dsb_and_an_isb() {
        let level_3 = abort(0x07);
        let stream = record(|| assert!(!is_spurious(level_3, VirtAddr(0xffff_8000_0000_0000))));
        assert_eq!(stream, ["dsb_ish", "isb", "at_s1e1r"]);
        // A permission fault is no matter of an entry that was invalid; nor is a translation fault without an address.
        for decided in [abort(0x0f), abort(0x07 | 1 << 10)] {
            assert_eq!(record(|| assert!(!is_spurious(decided, VirtAddr(0)))), [""; 0]);
        }
    }
}
