//! All other CPUs parked for a moment, for what none of them may meet half-way: a change break-before-make of what they
//! run on.
//!
//! The CPU that parks others takes its turn, with interrupts on, so that it can be parked itself while it waits; then it
//! asks the others by interrupt. Each answers in its own word: it is parked, in code of the image that touches nothing
//! but two words of the image, with every exception masked; or it is inside a walk of the kernel's tables
//! ([`Cpu::walk`]), which no CPU may be then. Such a CPU is asked again when its walk has ended; and if that takes long
//! (a walk that prints what it finds), all go on until then, and are asked anew.
//!
//! A CPU with interrupts masked answers when it has them on again. So a CPU may not park others with interrupts masked
//! (two that did would wait for each other), nor inside a walk: [`may_park_others`]. **Rule: what is waited for with
//! interrupts masked is never held with interrupts on**, by the CPU that parks others or by one that is parked. Each
//! `IrqLock` keeps it, since it masks them; a spinning lock that does not is waited for with interrupts on.

use core::time::Duration;

use granule_arch::barrier;

use super::{Cpu, CpuSet, Ipi, MAX_CPUS, PARKING, cpu, online, this_cpu};
use crate::chip::interrupt;
use crate::chip::timer::Deadline;
use crate::lab;
use crate::sync::atomic::{AtomicU32, Ordering, fence};
use crate::sync::interrupts::{self, Daif};
use crate::sync::wait;

/// The words by which CPUs are parked: part of the image, for what is parked reaches no other memory.
pub(super) struct Parking {
    /// 1 while a CPU parks others.
    pub(super) turn: AtomicU32,
    /// Odd while the others are to be parked.
    pub(super) round: AtomicU32,
    /// The answer of each CPU.
    pub(super) answers: [AtomicU32; MAX_CPUS],
}

/// How long others wait parked for a walk to end.
const PATIENCE: Duration = Duration::from_millis(1);

/// The CPU is inside a walk, and has gone on with it.
const fn walking_in(round: u32) -> u32 {
    round << 1
}

/// The CPU is parked.
const fn parked_in(round: u32) -> u32 {
    round << 1 | 1
}

/// While it lives, all other CPUs are parked, and this one has interrupts masked. It is short: neither memory is taken
/// nor a lock, which a CPU that is parked may hold.
#[must_use = "the others go on when it is dropped"]
pub struct OthersParked {
    masked: Daif,
}

/// Whether this CPU may call [`park_others`] here: it has interrupts on, so it holds no `IrqLock`; it runs no interrupt
/// handler, and is inside no walk of the kernel's tables. Debug builds ask as well that it holds none of the locks that
/// they keep on record.
pub fn may_park_others(this: &Cpu) -> bool {
    let holds_nothing = this.held_ranks().bits() == 0 && !this.walk().is_open();
    holds_nothing && interrupts::state().irqs_enabled() && !this.trap().is_in_handler()
}

/// Parks all other CPUs. None of them is inside a walk of the kernel's tables, and what they have stored is seen.
///
/// # Panics
/// Where [`may_park_others`] is false.
pub fn park_others() -> OthersParked {
    let this = this_cpu();
    assert!(may_park_others(this), "the other CPUs cannot be parked from here");
    while PARKING.turn.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
        wait::relax();
    }
    while let Err(walker) = park_all(this) {
        release();
        while walker.walk().is_open() {
            wait::relax();
        }
    }
    OthersParked { masked: interrupts::mask() }
}

/// Parks all other CPUs, or some, and returns the one that is inside a walk for too long.
fn park_all(this: &Cpu) -> Result<(), &'static Cpu> {
    let round = PARKING.round.load(Ordering::Relaxed).wrapping_add(1);
    PARKING.round.store(round, Ordering::Relaxed);
    // DMB ISH: a CPU that comes online after this finds that it has to be parked. See `join`.
    fence(Ordering::SeqCst);
    let mut left = if lab::is_on!(BBM_NO_PARK) { CpuSet::EMPTY } else { online().without(this.id) };
    left.iter().filter_map(cpu).for_each(ask);
    let patience = Deadline::after(PATIENCE);
    while !left.is_empty() {
        for other in left.iter().filter_map(cpu) {
            let answer = other.id.of(&PARKING.answers);
            let found = answer.load(Ordering::Acquire);
            if found == parked_in(round) {
                left = left.without(other.id);
            } else if found == walking_in(round) {
                // Not asked again before that, or interrupts alone might keep it from going on.
                let has_ended = !other.walk().is_open();
                if has_ended && answer.compare_exchange(found, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                    ask(other);
                }
                if !has_ended && patience.has_passed() {
                    return Err(other);
                }
            }
        }
        wait::relax();
    }
    Ok(())
}

/// Interrupts a CPU, so that it answers.
fn ask(target: &Cpu) {
    // Without a controller there are no others.
    let _ = interrupt::send(target, Ipi::Park as u32);
}

/// Has all CPUs that are parked go on.
fn release() {
    let round = &PARKING.round;
    round.store(round.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    // Seen before they wake.
    barrier::dsb_ishst();
    wait::sev();
}

/// A CPU is online from now on, interrupts masked. Were others just being parked without it, it is parked as well.
pub(super) fn join(this: &Cpu) {
    fence(Ordering::SeqCst);
    answer(this);
}

/// Answers, and stays for as long as the CPU that has asked wishes. Interrupts masked, as in a handler. The round is read
/// after the acknowledgement of the interrupt, whose value gives the address of the handler, and so is what was stored
/// before the interrupt was sent.
pub(super) fn answer(this: &Cpu) {
    let round = PARKING.round.load(Ordering::Acquire);
    if round.is_multiple_of(2) {
        return;
    }
    let answer = this.id.of(&PARKING.answers);
    if this.walk().is_open() {
        answer.store(walking_in(round), Ordering::Release);
    } else {
        wait::park(answer, parked_in(round), &PARKING.round, round);
    }
}

impl Drop for OthersParked {
    fn drop(&mut self) {
        release();
        interrupts::restore(self.masked);
        PARKING.turn.store(0, Ordering::Release);
    }
}
