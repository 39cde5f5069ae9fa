//! How the entry of a user page changes while hardware and other CPUs use it.
//!
//! What entries say is in `granule_arch::descriptor::user`. Software changes one under the lock of its table; the
//! hardware asks nobody, and writes an entry in two ways only: it sets AF where that is clear, and clears RDONLY where
//! WRITE (DBM) is set. So an entry that is young, and dirty or not writable, is [settled](is_settled): software alone
//! writes it, and plain stores lose nothing. Any other is changed by compare-exchange.

use granule_arch::descriptor::{Attributes, Descriptor, MemoryType, Protection, bits};
use granule_pgtable::Mmu;

/// What an access may change.
const ACCESS: u64 = bits::RDONLY | bits::AF | bits::WRITE | bits::DIRTY;

/// The attributes of a page with `protection`.
#[inline(always)]
pub(super) const fn attributes(protection: Protection) -> Attributes {
    Attributes::user(MemoryType::Normal, protection)
}

/// Whether the hardware will not change it: not valid, or young and not writable-clean.
#[inline(always)]
pub(super) const fn is_settled(entry: Descriptor) -> bool {
    entry.0 & bits::AF != 0 && entry.0 & (bits::WRITE | bits::RDONLY) != bits::WRITE | bits::RDONLY
}

/// Lets an access through: takes the access flag, dirt and write permission of `wanted` over into `cell`, which was
/// found as `found`. Whether that changed it.
///
/// Only ever more is allowed, so what the hardware sets meanwhile is kept. The table's lock is held.
#[inline]
pub(super) fn set_access_flags<M: Mmu>(mmu: &M, cell: &M::Cell, found: Descriptor, wanted: Descriptor) -> bool {
    if found == wanted {
        return false;
    }
    let mut current = found;
    loop {
        // RDONLY counts the other way round: clear is more.
        let merged = (current.0 ^ bits::RDONLY) | ((wanted.0 ^ bits::RDONLY) & ACCESS);
        match mmu.compare_exchange(cell, current, Descriptor(merged ^ bits::RDONLY)) {
            Ok(()) => return true,
            Err(now) => current = now,
        }
    }
}

/// Replaces what `cell` holds, found as `found`, by what `change` makes of it, and returns what it was last. The
/// table's lock is held.
#[inline(always)]
pub(super) fn replace<M: Mmu>(
    mmu: &M,
    cell: &M::Cell,
    found: Descriptor,
    change: impl Fn(Descriptor) -> Descriptor,
) -> Descriptor {
    if is_settled(found) {
        mmu.store(cell, change(found));
        return found;
    }
    let mut current = found;
    loop {
        match mmu.compare_exchange(cell, current, change(current)) {
            Ok(()) => return current,
            Err(now) => current = now,
        }
    }
}
