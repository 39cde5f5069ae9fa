//! The registers of floating point and SIMD, which are EL0's alone: the kernel is compiled without them.
//!
//! A thread has none until its first use, which traps (CPACR_EL1.FPEN, as `boot` sets it on each CPU). From then on they
//! are saved when it leaves the CPU and loaded when it comes, unless they are still in the registers of this CPU. SVE and
//! SME stay trapped; what uses them gets what any undefined instruction gets.

#![allow(unsafe_code, reason = "registers of floating point and SIMD")]

use core::arch::global_asm;
use core::cell::{Cell, UnsafeCell};
use core::mem::offset_of;
use core::sync::atomic::Ordering;

use aarch64_cpu::registers::{CPACR_EL1, Writeable as _};
use granule_arch::interrupts;

use super::thread::{Thread, current};
use crate::sched::fp_state::FpState;
use crate::smp::{Cpu, this_cpu};

/// The number of no CPU.
const NOWHERE: u32 = u32::MAX;

/// A thread's registers of floating point.
pub(super) struct FpArea {
    state: UnsafeCell<FpState>,
    used: Cell<bool>,
    /// The CPU whose registers hold the same, if it has not loaded others since.
    loaded: Cell<u32>,
}

global_asm!(
    r#"
    .pushsection .text.fp, "ax", %progbits
    .arch_extension fp
    .arch_extension simd
    .macro  fp_registers op
    \op     q0, q1, [x0]
    \op     q2, q3, [x0, #32]
    \op     q4, q5, [x0, #64]
    \op     q6, q7, [x0, #96]
    \op     q8, q9, [x0, #128]
    \op     q10, q11, [x0, #160]
    \op     q12, q13, [x0, #192]
    \op     q14, q15, [x0, #224]
    \op     q16, q17, [x0, #256]
    \op     q18, q19, [x0, #288]
    \op     q20, q21, [x0, #320]
    \op     q22, q23, [x0, #352]
    \op     q24, q25, [x0, #384]
    \op     q26, q27, [x0, #416]
    \op     q28, q29, [x0, #448]
    \op     q30, q31, [x0, #480]
    .endm
    // x0: the FpState.
    .type   fp_save, %function
    .global fp_save
fp_save:
    fp_registers stp
    mrs     x8, fpsr
    mrs     x9, fpcr
    str     w8, [x0, #{FPSR}]
    str     w9, [x0, #{FPCR}]
    ret

    .type   fp_load, %function
    .global fp_load
fp_load:
    fp_registers ldp
    ldr     w8, [x0, #{FPSR}]
    ldr     w9, [x0, #{FPCR}]
    msr     fpsr, x8
    msr     fpcr, x9
    ret
    .arch_extension nosimd
    .arch_extension nofp
    .popsection
    "#,
    FPSR = const offset_of!(FpState, fpsr),
    FPCR = const offset_of!(FpState, fpcr),
);

unsafe extern "C" {
    fn fp_save(state: *mut FpState);
    fn fp_load(state: *const FpState);
}

/// Whether EL0 may use the registers. The kernel may: it moves them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FpAccess {
    Trapped,
    Open,
}

fn set_access(access: FpAccess) {
    CPACR_EL1.write(match access {
        FpAccess::Trapped => CPACR_EL1::FPEN::TrapEl0,
        FpAccess::Open => CPACR_EL1::FPEN::TrapNothing,
    });
    // EL0 sees it at the exception return.
}

impl FpArea {
    pub(super) const fn new() -> Self {
        Self { state: UnsafeCell::new(FpState::ZERO), used: Cell::new(false), loaded: Cell::new(NOWHERE) }
    }

    /// Sets the registers of a thread that has not run.
    pub(super) fn set(&mut self, state: &FpState) {
        *self.state.get_mut() = *state;
        self.used.set(true);
    }

    /// The thread leaves `cpu`, this one.
    pub(super) fn leave(&self, cpu: &Cpu, thread: &Thread) {
        if self.used.get() {
            debug_assert!(cpu.sched().fp_owner.load(Ordering::Relaxed).cast_const() == &raw const *thread);
            // SAFETY: the thread runs here, and has used them: they hold its values, and the area has no other user.
            unsafe { fp_save(self.state.get()) };
        }
    }

    /// The thread comes to `cpu`, this one.
    pub(super) fn enter(&self, cpu: &Cpu, thread: &Thread) {
        if !self.used.get() {
            return set_access(FpAccess::Trapped);
        }
        set_access(FpAccess::Open);
        let here = cpu.sched().fp_owner.load(Ordering::Relaxed).cast_const() == &raw const *thread
            && self.loaded.get() == cpu.id.0;
        if !here {
            self.load(cpu, thread);
        }
    }

    fn load(&self, cpu: &Cpu, thread: &Thread) {
        // SAFETY: the registers are EL0's, and their last user saved them when it left.
        unsafe { fp_load(self.state.get()) };
        cpu.sched().fp_owner.store((&raw const *thread).cast_mut(), Ordering::Relaxed);
        self.loaded.set(cpu.id.0);
    }
}

/// The running thread has used floating point for the first time: from now on it has some.
pub(crate) fn first_use(thread: &Thread) {
    let masked = interrupts::mask();
    thread.fp.used.set(true);
    set_access(FpAccess::Open);
    thread.fp.load(this_cpu(), thread);
    interrupts::restore(masked);
}

impl Thread {
    /// The floating point of the running thread, for callers that keep it elsewhere: a new thread, a signal's frame.
    /// `None` where it has used none.
    pub fn fp_state(&self) -> Option<FpState> {
        debug_assert!(core::ptr::eq(self, &*current()));
        let masked = interrupts::mask();
        let state = self.fp.used.get().then(|| {
            // SAFETY: as in `leave`.
            unsafe {
                fp_save(self.fp.state.get());
                *self.fp.state.get()
            }
        });
        interrupts::restore(masked);
        state
    }

    /// Gives the running thread other floating point: back from a signal, or anew in another program.
    pub fn set_fp_state(&self, state: Option<&FpState>) {
        debug_assert!(core::ptr::eq(self, &*current()));
        let masked = interrupts::mask();
        // SAFETY: the area of the running thread is this CPU's.
        unsafe { *self.fp.state.get() = state.copied().unwrap_or(FpState::ZERO) };
        match state {
            Some(_) => first_use(self),
            None => {
                self.fp.used.set(false);
                self.fp.loaded.set(NOWHERE);
                set_access(FpAccess::Trapped);
            }
        }
        interrupts::restore(masked);
    }
}
