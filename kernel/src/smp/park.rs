//! All other CPUs parked for a moment, for what none of them may meet half-way: a change break-before-make of what they
//! run on.
//!
//! The CPU that parks others takes its turn, with interrupts on, so that it can be parked itself while it waits; then it
//! asks the others by interrupt. Each answers in its own word: it is parked, in code of the image that touches nothing
//! but two words of the image, with every exception masked; or it is inside a walk of the kernel's tables
//! ([`Cpu::walk`]), which no CPU may be then. Such a CPU is asked again until its walk has ended: a walk waits for
//! nothing.
//!
//! A CPU with interrupts masked answers when it has them on again. So nobody may park others with interrupts masked
//! (two that did would wait for each other), with a lock held that another CPU may wait for in that state, or inside a
//! walk: [`may_park_others`].

use core::sync::atomic::{AtomicU32, Ordering};

use granule_arch::interrupts::{self, Daif};
use granule_arch::{barrier, wait};
use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::{Cpu, CpuSet, Ipi, MAX_CPUS, cpu, online, this_cpu};
use crate::chip::interrupt;
use crate::lab;

/// Held by the CPU that parks others.
static TURN: SpinMutex<()> = SpinMutex::new(());
/// Odd while the others are to be parked.
static ROUND: AtomicU32 = AtomicU32::new(0);
/// What each CPU has answered.
static ANSWERS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

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
    _turn: SpinMutexGuard<'static, ()>,
}

/// Whether this CPU may call [`park_others`] here: it has interrupts on, runs no interrupt handler, is inside no walk of
/// the kernel's tables, and holds none of the locks that debug builds keep on record.
pub fn may_park_others(this: &Cpu) -> bool {
    let waits_for_nobody = this.held_ranks.bits() == 0 && !this.walk.is_open();
    waits_for_nobody && interrupts::state().irqs_enabled() && !this.trap.is_in_handler()
}

/// Parks all other CPUs. None of them is inside a walk of the kernel's tables, and what they have stored is seen.
///
/// # Panics
/// Not where [`may_park_others`].
pub fn park_others() -> OthersParked {
    let this = this_cpu();
    assert!(may_park_others(this), "the other CPUs cannot be parked from here");
    let turn = loop {
        if let Some(turn) = TURN.try_lock() {
            break turn;
        }
        wait::relax();
    };
    let mut left = if lab::is_on!(BBM_NO_PARK) { CpuSet::EMPTY } else { online().without(this.id) };
    let round = ROUND.load(Ordering::Relaxed).wrapping_add(1);
    ROUND.store(round, Ordering::Release);
    left.iter().for_each(ask);
    while !left.is_empty() {
        for id in left.iter() {
            match id.of(&ANSWERS).load(Ordering::Acquire) {
                answer if answer == parked_in(round) => left = left.without(id),
                answer if answer == walking_in(round) => {
                    id.of(&ANSWERS).store(0, Ordering::Relaxed);
                    // It answers once for each time that it is asked.
                    ask(id);
                }
                _ => {}
            }
        }
        wait::relax();
    }
    OthersParked { masked: interrupts::mask(), _turn: turn }
}

/// Interrupts a CPU, so that it answers.
fn ask(id: super::CpuId) {
    if let Some(target) = cpu(id) {
        // Without a controller there are no others.
        let _ = interrupt::send(target, Ipi::Park as u32);
    }
}

/// Answers, and stays for as long as the CPU that has asked wishes. Interrupts masked, as in a handler.
pub(super) fn answer(this: &Cpu) {
    let round = ROUND.load(Ordering::Acquire);
    if round.is_multiple_of(2) {
        return;
    }
    let answer = this.id.of(&ANSWERS);
    if this.walk.is_open() {
        answer.store(walking_in(round), Ordering::Release);
    } else {
        wait::park(answer, parked_in(round), &ROUND, round);
    }
}

impl Drop for OthersParked {
    fn drop(&mut self) {
        ROUND.store(ROUND.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        // Seen before they wake.
        barrier::dsb_ishst();
        wait::sev();
        interrupts::restore(self.masked);
    }
}
