//! A function on other CPUs, run to its end before the caller continues.
//!
//! Each CPU has one outgoing call, since a caller waits, and a word of incoming ones: a bit for each CPU whose call it
//! has to serve. The caller fills in its call, sets its bit at each target, sends the interrupt, and waits until every
//! target has cleared its own bit in the call's `pending` word. No lock and no queue: nothing can be full.
//!
//! **Two CPUs that call each other** do not wait for each other for ever, because the caller has interrupts on: it
//! serves the other's call in the middle of its own wait. Therefore a call with interrupts masked, from a handler or
//! under an `IrqLock`, is refused by a panic and not tried: it would work until two of them met.

#![allow(unsafe_code, reason = "calls a function whose address another CPU stored")]

use super::{CPUS, Cpu, CpuId, CpuSet, CpuTable, notify, this_cpu};
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{interrupts, wait};

/// The function that a call runs on each CPU: interrupts masked, as in a handler. It must not wait for another CPU.
pub type CallFunction = fn(&Cpu, usize);

/// A CPU's calls: part of its [`Cpu`].
pub(super) struct PerCpu {
    /// The call that this CPU makes of others.
    pub(super) outgoing: Outgoing,
    /// The CPUs whose call this CPU has to serve, a bit each. Others set bits, this CPU takes them.
    pub(super) incoming: AtomicU32,
    /// Functions that it has run for other CPUs.
    pub(super) served: AtomicU64,
}

/// The call that a CPU makes. Written by it alone while `pending` is zero; the targets clear their bits.
pub(super) struct Outgoing {
    /// A [`CallFunction`].
    pub(super) function: AtomicUsize,
    pub(super) argument: AtomicUsize,
    /// The CPUs that have not run it yet.
    pub(super) pending: AtomicU32,
}

impl Cpu {
    /// Functions that it has run for other CPUs.
    pub fn calls_served(&self) -> u64 {
        self.call().served.load(Ordering::Relaxed)
    }
}

/// Runs `function` with `argument` on each of `targets` that is online, this CPU included if it is one, and waits for
/// all. This CPU's earlier stores are seen there, and the stores of the functions are seen here.
///
/// # Panics
/// Interrupts are masked, or this is an interrupt handler.
pub fn call(targets: CpuSet, function: CallFunction, argument: usize) {
    let cpu = this_cpu();
    assert!(
        interrupts::state().irqs_enabled() && !cpu.trap().is_in_handler(),
        "a call to other CPUs with interrupts masked: two such calls would wait for each other",
    );
    let targets = CpuSet::from_bits(targets.bits() & super::online().bits());
    post(cpu, &CPUS, targets.without(cpu.id), function, argument, notify);
    if targets.contains(cpu.id) {
        let masked = interrupts::mask();
        function(cpu, argument);
        interrupts::restore(masked);
    }
    while !is_done(cpu) {
        // Ended by the SEV of a target that is done, or by an interrupt, such as another CPU's call.
        wait::wfe();
    }
}

/// Hands the call to its targets and has `notify` interrupt each.
pub(super) fn post(
    cpu: &Cpu,
    cpus: &CpuTable,
    targets: CpuSet,
    function: CallFunction,
    argument: usize,
    notify: impl Fn(&'static Cpu),
) {
    debug_assert!(is_done(cpu), "one call at a time");
    cpu.call().outgoing.function.store(function as usize, Ordering::Relaxed);
    cpu.call().outgoing.argument.store(argument, Ordering::Relaxed);
    cpu.call().outgoing.pending.store(targets.bits(), Ordering::Relaxed);
    for target in targets.iter().filter_map(|id| cpus.get(id)) {
        // Release: a CPU that sees the bit sees the call, and all that this CPU did before.
        target.call().incoming.fetch_or(1 << cpu.id.0, Ordering::Release);
        notify(target);
    }
}

/// Whether every target has run this CPU's call. Acquire: what they stored is seen from here on.
pub(super) fn is_done(cpu: &Cpu) -> bool {
    cpu.call().outgoing.pending.load(Ordering::Acquire) == 0
}

/// Runs what other CPUs want of this one. Interrupts masked.
pub(super) fn serve(cpu: &Cpu, cpus: &CpuTable) {
    // A caller may come while another is being served, and its interrupt may have been taken already: look again.
    loop {
        let callers = CpuSet::from_bits(cpu.call().incoming.swap(0, Ordering::Acquire));
        if callers.is_empty() {
            return;
        }
        for caller in callers.iter().filter_map(|id: CpuId| cpus.get(id)) {
            let function = caller.call().outgoing.function.load(Ordering::Relaxed);
            // SAFETY: the caller's bit was set after `post` stored a `CallFunction` there, and it stays until this CPU's
            // bit in `pending` is cleared below.
            let function = unsafe { core::mem::transmute::<usize, CallFunction>(function) };
            function(cpu, caller.call().outgoing.argument.load(Ordering::Relaxed));
            cpu.call().served.fetch_add(1, Ordering::Relaxed);
            caller.call().outgoing.pending.fetch_and(!(1 << cpu.id.0), Ordering::Release);
        }
    }
}
