//! The measure itself.
//!
//! What a CPU has measured is in its [`Cpu`] and changed by it alone, with interrupts masked or, for the stretch in the
//! kernel, by code that no interrupt handler runs.

#![allow(unsafe_code, reason = "reads the links of stack frames")]

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use granule_arch::addr::VirtAddr;
use granule_arch::timer;

use super::Kind;
use crate::smp::{Cpu, this_cpu};

/// Calls that are kept of the chain at the end of a stretch.
const CALLS: usize = 10;
/// PSTATE.I: IRQs were masked.
const SPSR_I: u64 = 1 << 7;

/// Whether stretches count: the boot has ended.
static COUNTING: AtomicBool = AtomicBool::new(false);

/// What a CPU has measured: part of its [`Cpu`].
pub(crate) struct PerCpu {
    masked: Meter,
    in_kernel: Meter,
}

/// One kind of stretch on one CPU.
struct Meter {
    /// When the stretch began, as the timer counts; 0: there is none.
    since: AtomicU64,
    longest: AtomicU64,
    calls: [AtomicU64; CALLS],
}

/// The longest stretch of a kind on a CPU.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    /// Nanoseconds by the timer's counter; instructions, where these are counted.
    pub length: u64,
    /// The chain of calls at its end, the innermost first; zero behind the outermost.
    pub calls: [VirtAddr; CALLS],
}

impl PerCpu {
    pub(crate) const fn new() -> Self {
        Self { masked: Meter::new(), in_kernel: Meter::new() }
    }
}

impl Meter {
    const fn new() -> Self {
        Self { since: AtomicU64::new(0), longest: AtomicU64::new(0), calls: [const { AtomicU64::new(0) }; CALLS] }
    }

    /// A stretch begins, unless one has begun already.
    fn begin(&self) {
        if self.since.load(Ordering::Relaxed) == 0 {
            self.since.store(timer::count(), Ordering::Relaxed);
        }
    }

    fn end(&self) {
        let since = self.since.swap(0, Ordering::Relaxed);
        if since == 0 || !COUNTING.load(Ordering::Relaxed) {
            return;
        }
        let length = timer::count() - since;
        if length > self.longest.load(Ordering::Relaxed) {
            self.longest.store(length, Ordering::Relaxed);
            self.note_calls();
        }
    }

    #[cold]
    #[inline(never)]
    fn note_calls(&self) {
        let mut record: u64;
        // SAFETY: reads the frame pointer.
        unsafe { core::arch::asm!("mov {0}, x29", out(reg) record, options(nomem, nostack, preserves_flags)) };
        for call in &self.calls {
            if record == 0 {
                call.store(0, Ordering::Relaxed);
                continue;
            }
            // SAFETY: every function keeps a frame record, and the first one of each stack ends the chain with zero.
            let [next, address] = unsafe { VirtAddr(record).as_ptr::<[u64; 2]>().read() };
            call.store(address, Ordering::Relaxed);
            record = if next > record { next } else { 0 };
        }
    }
}

/// Interrupts have just been masked; or were before.
#[unsafe(no_mangle)]
extern "Rust" fn granule_latency_masked() {
    this_cpu().latency.masked.begin();
}

/// Interrupts are about to be unmasked.
#[unsafe(no_mangle)]
extern "Rust" fn granule_latency_unmasked() {
    this_cpu().latency.masked.end();
}

/// An exception of EL1 was taken: interrupts are masked now.
pub(crate) fn exception(spsr: u64) {
    if spsr & SPSR_I == 0 {
        this_cpu().latency.masked.begin();
    }
}

/// It is about to return.
pub(crate) fn exception_end(spsr: u64) {
    if spsr & SPSR_I == 0 {
        this_cpu().latency.masked.end();
    }
}

/// Another thread of this CPU may run, or has just begun to.
pub(crate) fn point() {
    // SAFETY: a hint that no CPU does anything for; QEMU's plugin `tests-qemu/plugin/stretches.c` looks for it.
    unsafe { core::arch::asm!("hint #96", options(nostack, preserves_flags)) };
    let meter = &this_cpu().latency.in_kernel;
    meter.end();
    meter.begin();
}

/// The CPU is about to sleep in WFI, interrupts masked.
pub(crate) fn idles() {
    let PerCpu { masked, in_kernel } = &this_cpu().latency;
    masked.end();
    in_kernel.end();
}

/// It has woken, interrupts masked.
pub(crate) fn idle_ends() {
    let PerCpu { masked, in_kernel } = &this_cpu().latency;
    masked.begin();
    in_kernel.begin();
}

/// The kernel was entered from EL0.
extern "C" fn from_el0() {
    idle_ends();
}

/// EL0 is about to be entered.
extern "C" fn to_el0() {
    idles();
}

extern "C" fn masked() {
    granule_latency_masked();
}

extern "C" fn unmasked() {
    granule_latency_unmasked();
}

core::arch::global_asm!(
    ".macro hook name, function",
    ".global latency_\\name",
    "latency_\\name: b \\function",
    ".endm",
    ".pushsection .text.latency, \"ax\", %progbits",
    "hook from_el0, {from_el0}",
    "hook to_el0, {to_el0}",
    "hook masked, {masked}",
    "hook unmasked, {unmasked}",
    ".popsection",
    ".purgem hook",
    from_el0 = sym from_el0,
    to_el0 = sym to_el0,
    masked = sym masked,
    unmasked = sym unmasked,
);

/// Forgets what was measured, and measures from here on.
pub fn begin_anew() {
    crate::smp::for_each(|cpu| {
        for meter in [&cpu.latency.masked, &cpu.latency.in_kernel] {
            meter.longest.store(0, Ordering::Relaxed);
        }
    });
    COUNTING.store(true, Ordering::Relaxed);
    // SAFETY: as in `point`: the plugin ends its record, and begins another.
    unsafe { core::arch::asm!("hint #97", options(nostack, preserves_flags)) };
}

/// The longest stretch of a kind on `cpu` since [`begin_anew`].
pub fn longest(cpu: &Cpu, kind: Kind) -> Stretch {
    let meter = match kind {
        Kind::Masked => &cpu.latency.masked,
        Kind::InKernel => &cpu.latency.in_kernel,
    };
    let nanoseconds = 1_000_000_000 / timer::frequency();
    Stretch {
        length: meter.longest.load(Ordering::Relaxed).saturating_mul(nanoseconds),
        calls: meter.calls.each_ref().map(|call| VirtAddr(call.load(Ordering::Relaxed))),
    }
}
