//! Exceptions of EL0: what `user.S` calls.
//!
//! Their meaning is defined by the thread's own functions ([`UserEntry`]); here is what must be done for every thread:
//! floating point on its first use, and what waits for the way out.

use granule_arch::esr::Class;
use granule_arch::interrupts;

use super::TrapFrame;
use super::target::irq;
use crate::sched::{self, Thread, UserEntry, Work};

/// A synchronous exception that is no system call, and no abort that was served. Interrupts on.
pub(super) extern "C" fn user_exception(frame: &mut TrapFrame, thread: &Thread) {
    sched::collect_tag_faults(thread);
    match frame.syndrome().class() {
        Some(Class::TrappedFP) => sched::first_use_of_fp(thread),
        // To wait for an interrupt is the kernel's to decide, and returning at once is within the architecture's hint.
        Some(Class::TrappedWFIorWFE) => frame.skip(),
        _ => {
            (entry_of(thread).exception)(frame, thread);
        }
    }
}

/// The functions of a thread that was at EL0.
fn entry_of(thread: &Thread) -> &'static UserEntry {
    thread.entry.expect("a thread at EL0 has one")
}

/// An interrupt. Interrupts masked, before as after.
pub(super) extern "C" fn user_interrupt(thread: &Thread) {
    sched::collect_tag_faults(thread);
    irq();
}

/// Does the work before EL0 is entered, until there is none. Interrupts masked, before as after.
///
/// It must not remember which CPU this is.
pub(super) extern "C" fn user_work(frame: &mut TrapFrame, thread: &Thread) {
    while let Some(work) = thread.next_work() {
        match work {
            Work::SIGNAL => {
                interrupts::enable();
                sched::deliver_with_checks(thread, || (entry_of(thread).signal)(frame, thread));
                let _ = interrupts::mask();
            }
            Work::MOVED => {
                interrupts::enable();
                sched::deliver_with_checks(thread, || (entry_of(thread).moved)(frame, thread));
                let _ = interrupts::mask();
            }
            Work::TAG_FAULT => {
                interrupts::enable();
                (entry_of(thread).late_tag_fault)(thread);
                let _ = interrupts::mask();
            }
            _ => sched::give_way(thread),
        }
    }
}
