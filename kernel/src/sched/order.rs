//! The order of the sleeping locks, checked: the table is [`crate::sync::rank`].

use super::machine::with_held_ranks;
use crate::smp::this_cpu;
use crate::sync::rank::Sleeping;

/// Adds a lock to those of the running thread, before it waits for it. Returns the rank to [`release`]: `rank`, or the
/// one beside it.
///
/// # Panics
/// The thread has a lock of the same rank or a later one, or the CPU a spinning lock.
pub(crate) fn acquire(rank: Sleeping) -> Sleeping {
    let spinning = this_cpu().held_ranks().bits();
    assert!(spinning == 0, "a sleeping lock acquired while the spinning ranks {spinning:#b} are held");
    let mut taken = rank;
    with_held_ranks(|held| {
        if held.bits() >> rank.place & 1 != 0 {
            taken = rank.beside();
        }
        held.check(taken.place);
        held.add(taken.place);
    });
    taken
}

/// Adds a lock that the running thread has acquired without waiting.
pub(crate) fn note(rank: Sleeping) {
    with_held_ranks(|held| held.add(rank.place));
}

/// Removes a lock.
pub(crate) fn release(rank: Sleeping) {
    with_held_ranks(|held| held.remove(rank.place));
}

/// Whether the running thread has a lock of this rank.
#[cfg(test)]
pub(crate) fn holds(rank: Sleeping) -> bool {
    let mut is_held = false;
    with_held_ranks(|held| is_held = held.bits() >> rank.place & 1 != 0);
    is_held
}
