//! Time: the generic timer's counter as nanoseconds, and a deadline for each CPU and [`Purpose`].
//!
//! There is no tick. A CPU sets its virtual timer when something is due and is left alone otherwise; an idle CPU with
//! nothing due sleeps in WFI until an interrupt.

#![allow(unsafe_code, reason = "a handler by the address that was registered")]

use core::num::NonZeroU64;
use core::ops::RangeInclusive;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;

use granule_arch::{interrupts, timer, wait};

use super::interrupt::{self, InterruptError};
use super::machine;
use crate::platform::Interrupt;
use crate::smp::cpu::Cpu;

/// The counter when the kernel was entered.
static ENTRY: AtomicU64 = AtomicU64::new(0);
/// The timer's interrupt arrives.
static ARRIVES: AtomicBool = AtomicBool::new(false);

/// The deadlines of a CPU: part of its [`Cpu`], touched by it alone.
pub struct Due([DeadlineSlot; PURPOSES]);

/// The users of a deadline. Each has one on each CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// The caller of [`set_deadline`].
    Caller,
    /// Slices and timeouts of threads.
    Threads,
    /// The next sample of the guarded heap.
    GuardedHeap,
}

const PURPOSES: usize = 3;

/// The timer does not come to count that.
const NEVER: u64 = u64::MAX;

struct DeadlineSlot {
    /// When, as the timer counts; [`NEVER`] where nothing is due, so that the first of all is their minimum.
    count: AtomicU64,
    /// A [`DeadlineHandler`], or zero before the first.
    handler: AtomicUsize,
}

/// A function that runs when a deadline is reached: in the interrupt, on the CPU that set it.
pub type DeadlineHandler = fn(&Cpu);

impl Due {
    /// Nothing.
    pub(crate) const fn new() -> Self {
        Self([const { DeadlineSlot { count: AtomicU64::new(NEVER), handler: AtomicUsize::new(0) } }; PURPOSES])
    }
}

impl DeadlineSlot {
    /// When it is due, or [`NEVER`].
    fn due(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// Sets the moment that [`uptime`] counts from.
pub fn init(entry_count: u64) {
    ENTRY.store(entry_count, Ordering::Relaxed);
}

/// Sets the counter's frequency, for all CPUs: by the boot CPU's register, else by the device tree's `clock-frequency`.
///
/// # Errors
/// Both are missing.
pub fn init_frequency(tree: Option<u64>) -> Result<(), UnknownFrequency> {
    let own = timer::own_frequency();
    let frequency = choose_frequency(own, tree).ok_or(UnknownFrequency)?;
    if own != frequency.get() {
        crate::log::info!("timer: CNTFRQ_EL0 is {own}: {frequency} Hz by the device tree");
    }
    timer::set_frequency(frequency);
    Ok(())
}

/// Frequencies of a timer, in Hz: with less a slice of a thread's time has no counts, and CNTFRQ_EL0 has 32 bits.
const FREQUENCIES: RangeInclusive<u64> = 1_000..=u32::MAX as u64;

fn choose_frequency(own: u64, tree: Option<u64>) -> Option<NonZeroU64> {
    let frequency = [Some(own), tree].into_iter().flatten().find(|frequency| FREQUENCIES.contains(frequency))?;
    NonZeroU64::new(frequency)
}

/// The length of a second is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the timer has no frequency from 1 kHz to 4 GHz: not in CNTFRQ_EL0, nor as `clock-frequency` in the device tree"
)]
pub struct UnknownFrequency;

/// Time since the kernel was entered.
pub fn uptime() -> Duration {
    uptime_at(timer::count())
}

/// As [`uptime`], when the counter was at `count`.
pub fn uptime_at(count: u64) -> Duration {
    to_duration(count.wrapping_sub(ENTRY.load(Ordering::Relaxed)), timer::frequency())
}

/// As [`uptime`], in nanoseconds: enough for 584 years.
pub fn uptime_nanoseconds() -> u64 {
    uptime().as_nanos() as u64
}

/// How long so many counts of the timer are.
pub fn duration_of(counts: u64) -> Duration {
    to_duration(counts, timer::frequency())
}

/// Instructions that this CPU has retired since it was entered, modulo 2³² before PMUv3p5.
///
/// `None` where the PMU does not count them. Under QEMU it does with a fixed `-icount shift` only.
pub fn instructions() -> Option<u64> {
    machine::instructions()
}

/// Has `handler` run on this CPU when `after` has passed. It replaces what was due before.
pub fn set_deadline(cpu: &Cpu, after: Duration, handler: DeadlineHandler) {
    set(cpu, Purpose::Caller, Some(Deadline::after(after)), handler);
}

/// Whether something is due of [`set_deadline`] on `cpu`.
pub fn has_deadline(cpu: &Cpu) -> bool {
    cpu.due().0[Purpose::Caller as usize].due() != NEVER
}

/// Has `handler` run on this CPU at `deadline`, or not at all. It replaces what was due before for this purpose.
pub(crate) fn set(cpu: &Cpu, purpose: Purpose, deadline: Option<Deadline>, handler: DeadlineHandler) {
    let masked = interrupts::mask();
    let slot = &cpu.due().0[purpose as usize];
    slot.handler.store(handler as usize, Ordering::Relaxed);
    slot.count.store(deadline.map_or(NEVER, |deadline| deadline.0), Ordering::Relaxed);
    program(cpu);
    interrupts::restore(masked);
}

/// Sets the timer for what is due first. Interrupts masked.
fn program(cpu: &Cpu) {
    match cpu.due().0.iter().map(DeadlineSlot::due).fold(NEVER, u64::min) {
        NEVER => timer::stop(),
        first => timer::set_deadline(first),
    }
}

/// Connects the virtual timer's interrupt, for all CPUs. Before this, deadlines do not arrive.
///
/// # Errors
/// Those of [`interrupt::register`].
pub fn start(line: Interrupt, cpu: &Cpu) -> Result<(), InterruptError> {
    interrupt::register(line, cpu, handle_interrupt)?;
    ARRIVES.store(true, Ordering::Relaxed);
    Ok(())
}

/// Waits for an interrupt, on a CPU that has nothing to do and has interrupts masked. Where the timer's does not arrive,
/// as without an interrupt controller, what is due is looked for instead.
pub fn wait_for_interrupt(cpu: &Cpu) {
    if ARRIVES.load(Ordering::Relaxed) {
        wait::wfi();
    } else {
        wait::relax();
        handle_interrupt(cpu);
    }
}

fn handle_interrupt(cpu: &Cpu) {
    // One shot: off before the handlers, which may set the next ones.
    timer::stop();
    for slot in &cpu.due().0 {
        if slot.due() <= timer::count() {
            slot.count.store(NEVER, Ordering::Relaxed);
            let handler = slot.handler.load(Ordering::Relaxed);
            // SAFETY: something was due, so `set` put it there: a `DeadlineHandler`.
            let handler = unsafe { core::mem::transmute::<usize, DeadlineHandler>(handler) };
            handler(cpu);
        }
    }
    program(cpu);
}

/// A moment that a wait loop gives up at.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(u64);

impl Deadline {
    /// `time` from now.
    pub fn after(time: Duration) -> Self {
        Self(timer::count().saturating_add(to_counts(time, timer::frequency())))
    }

    /// When the timer's counter is `count`.
    pub(crate) fn at(count: u64) -> Self {
        Self(count)
    }

    /// As the timer counts.
    pub(crate) fn count(self) -> u64 {
        self.0
    }

    /// Whether it has come.
    pub fn has_passed(self) -> bool {
        timer::count() >= self.0
    }
}

const NANOSECONDS: u64 = 1_000_000_000;

fn to_duration(counts: u64, frequency: u64) -> Duration {
    let rest = u128::from(counts % frequency) * u128::from(NANOSECONDS) / u128::from(frequency);
    // Less than a second, so that nothing saturates.
    Duration::from_secs(counts / frequency).saturating_add(Duration::from_nanos(rest as u64))
}

/// Rounded up: a deadline is never early.
fn to_counts(time: Duration, frequency: u64) -> u64 {
    let counts = (time.as_nanos() * u128::from(frequency)).div_ceil(u128::from(NANOSECONDS));
    u64::try_from(counts).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::{choose_frequency, to_counts, to_duration};

    #[test]
    fn counts_become_time_at_any_frequency() {
        assert_eq!(to_duration(62_500_000, 62_500_000), Duration::from_secs(1));
        assert_eq!(to_duration(1, 62_500_000), Duration::from_nanos(16));
        assert_eq!(to_duration(u64::MAX, 1_000_000_000), Duration::from_nanos(u64::MAX));
        assert_eq!(to_duration(3, 1), Duration::from_secs(3));
    }

    #[test]
    fn the_register_counts_before_the_tree_and_zero_is_no_frequency() {
        let choose = |own, tree| choose_frequency(own, tree).map(|frequency| frequency.get());
        assert_eq!(choose(62_500_000, Some(24_000_000)), Some(62_500_000));
        assert_eq!(choose(62_500_000, None), Some(62_500_000));
        assert_eq!(choose(0, Some(24_000_000)), Some(24_000_000));
        assert_eq!([choose(0, Some(0)), choose(0, None)], [None; 2]);
        assert_eq!(choose(1, Some(24_000_000)), Some(24_000_000));
        assert_eq!([choose(999, Some(u64::MAX)), choose(1 << 32, Some(1))], [None; 2]);
    }

    #[test]
    fn a_deadline_is_never_early() {
        assert_eq!(to_counts(Duration::from_nanos(17), 62_500_000), 2);
        assert_eq!(to_counts(Duration::from_nanos(16), 62_500_000), 1);
        assert_eq!(to_counts(Duration::MAX, 1_000_000_000), u64::MAX);
        assert_eq!(to_counts(Duration::ZERO, 24_000_000), 0);
    }
}
