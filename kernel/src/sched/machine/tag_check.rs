//! Tag checks of the thread that runs: its registers, and faults that come late.

#![allow(unsafe_code, reason = "vouches for the registers of tag checks")]

use core::sync::atomic::Ordering;

use granule_arch::tag_check::{Registers, TagCheck};
use granule_arch::{interrupts, patched_branch};

use super::thread::{Thread, UserEntry, Work, current};
use crate::platform::features::branch;
use crate::sched::tag_check::TagChecks;
use crate::smp::{Cpu, this_cpu};
use crate::trap::frame::TrapFrame;

/// Bytes of an SVC.
const INSTRUCTION: u64 = 4;

/// For code guarded by [`branch::MTE`], and that of threads with checks.
#[inline(always)]
const fn registers() -> Registers {
    // SAFETY: the branch is taken, and a program's wish for checks accepted, only where all CPUs have tags.
    unsafe { Registers::new() }
}

impl Thread {
    /// The checks that [`Self::set_tag_checks`] set last, or its maker had.
    pub fn tag_checks(&self) -> TagChecks {
        self.tag_checks.get()
    }

    /// Sets how the accesses of the running thread are checked at EL0, and those of threads that it makes. Where
    /// memory has tags.
    pub fn set_tag_checks(&self, checks: TagChecks) {
        debug_assert!(core::ptr::eq(self, &*current()));
        let Some(entry) = self.entry else { return };
        let masked = interrupts::mask();
        self.adopt(entry, checks);
        enter(this_cpu(), self);
        interrupts::restore(masked);
    }

    /// Sets the checks, and the functions for the exceptions of EL0 under them.
    #[cold]
    pub(super) fn adopt(&self, entry: &UserEntry, checks: TagChecks) {
        self.tag_checks.set(checks);
        self.syscall.set(match checks.check() {
            TagCheck::Off => entry.syscall,
            TagCheck::Synchronous => synchronous_syscall,
            TagCheck::Asynchronous | TagCheck::Asymmetric => recorded_syscall,
        });
        self.fault.set(if checks.check().is_recorded() { recorded_fault } else { entry.fault });
    }
}

/// The thread comes to `cpu`, this one. Interrupts masked.
#[inline(always)]
pub(super) fn enter(cpu: &Cpu, thread: &Thread) {
    if patched_branch!(branch::MTE) {
        let (own, loaded) = (thread.tag_checks.get(), cpu.sched().tag_checks.load(Ordering::Relaxed));
        if own.0 | loaded != 0 {
            load(cpu, own, loaded);
        }
    }
}

#[inline(never)]
fn load(cpu: &Cpu, own: TagChecks, loaded: u32) {
    if own.0 != loaded {
        cpu.sched().tag_checks.store(own.0, Ordering::Relaxed);
        registers().set_el0(own.check(), !own.included());
    }
    // Pending tag faults at this point belong to the kernel, perhaps for another thread.
    if own.check().is_recorded() {
        registers().clear_recorded();
    }
    // The thread before may have had no reason to.
    if own.check().faults() {
        registers().resume();
    }
}

extern "C" fn synchronous_syscall(frame: &mut TrapFrame, thread: &Thread) {
    let Some(entry) = thread.entry else { return };
    registers().resume();
    (entry.syscall)(frame, thread);
}

extern "C" fn recorded_syscall(frame: &mut TrapFrame, thread: &Thread) {
    let Some(entry) = thread.entry else { return };
    if collect(thread) {
        // As on Linux, the signal comes first, and the call is made after it.
        frame.elr = frame.elr.wrapping_sub(INSTRUCTION);
        return;
    }
    if thread.tag_checks().check().faults() {
        registers().resume();
    }
    (entry.syscall)(frame, thread);
    registers().clear_recorded();
}

extern "C" fn recorded_fault(frame: &mut TrapFrame, thread: &Thread) -> bool {
    collect(thread);
    thread.entry.is_some_and(|entry| (entry.fault)(frame, thread))
}

/// Collects what EL0's accesses have left. First in every entry from EL0 but those of [`Thread::adopt`].
#[inline(always)]
pub(crate) fn collect_tag_faults(thread: &Thread) {
    if patched_branch!(branch::MTE) && thread.tag_checks().check().is_recorded() {
        collect(thread);
    }
}

/// Turns a recorded mismatch into work of the thread; returns whether there was one.
fn collect(thread: &Thread) -> bool {
    let recorded = registers().has_recorded();
    if recorded {
        registers().clear_recorded();
        thread.work.fetch_or(Work::TAG_FAULT.0, Ordering::Relaxed);
    }
    recorded
}

/// Runs `deliver`, which accesses memory of EL0 on the way there from any exception.
#[inline(always)]
pub(crate) fn deliver_with_checks(thread: &Thread, deliver: impl FnOnce()) {
    if patched_branch!(branch::MTE) && thread.tag_checks().check().faults() {
        registers().resume();
    }
    deliver();
    if patched_branch!(branch::MTE) && thread.tag_checks().check().is_recorded() {
        registers().clear_recorded();
    }
}
