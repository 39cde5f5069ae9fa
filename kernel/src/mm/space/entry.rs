//! How the entry of a user page changes while hardware and other CPUs use it.
//!
//! The format of entries is in `granule_arch::descriptor::user`. Software changes one under the lock of its table; the
//! hardware takes no lock, and writes an entry in two ways only: it sets AF where that is clear, and clears RDONLY
//! where WRITE (DBM) is set. So an entry that is young, and dirty or not writable, is [settled](is_settled): software
//! alone writes it, and plain stores lose nothing. Any other is changed by compare-exchange.

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{
    Attributes, Descriptor, Markers, MemoryType, Migration, MigrationAccess, NonPresent, Protection, bits,
};
use granule_arch::patched_branch;
use granule_pgtable::Mmu;

use crate::platform::features::branch;

/// What an access may change.
const ACCESS: u64 = bits::RDONLY | bits::AF | bits::WRITE | bits::DIRTY;

/// What a last-level entry is. Every function that meets entries of a user space decides by this.
///
/// | | a fault that its area permits | its frame | mincore |
/// |---|---|---|---|
/// | [`Empty`](EntryState::Empty) | a page is installed | none | the object's answer |
/// | [`Page`](EntryState::Page) | access flag, dirt, copy on write | held, unless special | 1 |
/// | [`Inaccessible`](EntryState::Inaccessible) | becomes valid | held, unless special | 1 |
/// | [`Marker`](EntryState::Marker) | empty; SIGSEGV for a guard, SIGBUS where the memory is gone | none | 0 |
/// | [`Migration`](EntryState::Migration) | SIGBUS: nothing that would end it exists | none | 1 |
/// | [`Damaged`](EntryState::Damaged) | SIGBUS | none | 0 |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EntryState {
    /// Nothing.
    Empty,
    /// A leaf that the hardware uses.
    Page,
    /// A leaf whose VALID is clear: its area permits no access, or the next one makes it valid.
    Inaccessible,
    /// What is remembered of a page that is not there.
    Marker(Markers),
    /// A frame on its way to another.
    Migration(Migration),
    /// No encoding that means something.
    Damaged,
}

/// What `entry`, of the last level, is.
#[inline(always)]
pub(super) fn state(entry: Descriptor) -> EntryState {
    /// VALID without the other is reserved at the last level, and faults.
    const PAGE: u64 = bits::VALID | bits::TABLE;
    if entry.0 & PAGE == PAGE {
        EntryState::Page
    } else if entry == Descriptor::EMPTY {
        EntryState::Empty
    } else {
        state_of_invalid(entry)
    }
}

#[cold]
fn state_of_invalid(entry: Descriptor) -> EntryState {
    if entry.is_valid() {
        return EntryState::Damaged;
    }
    if entry.is_present() {
        return if entry.is_inaccessible() { EntryState::Inaccessible } else { EntryState::Damaged };
    }
    match entry.non_present() {
        NonPresent::Empty => EntryState::Empty,
        NonPresent::Marker(markers) => EntryState::Marker(markers),
        NonPresent::Migration(migration) => EntryState::Migration(migration),
        NonPresent::Unknown => EntryState::Damaged,
    }
}

/// What a space that may not write gets of an entry that is not present: a migration that ends in a page that may be
/// written becomes one for reading, as Linux's `copy_nonpresent_pte` has it.
#[cold]
pub(super) fn unwritable(entry: Descriptor, exclusive: bool) -> Descriptor {
    let EntryState::Migration(migration) = state(entry) else { return entry };
    let access = match migration.access {
        MigrationAccess::Read => MigrationAccess::Read,
        MigrationAccess::ReadExclusive | MigrationAccess::Write if exclusive => MigrationAccess::ReadExclusive,
        MigrationAccess::ReadExclusive | MigrationAccess::Write => MigrationAccess::Read,
    };
    Migration { access, ..migration }.into()
}

/// Protections, which are numbers below it.
const PROTECTIONS: usize = 8;

/// The attributes of a page with each protection (Linux's `protection_map`).
static ATTRIBUTES: [Attributes; PROTECTIONS] = {
    let mut map = [Attributes::user(MemoryType::Normal, Protection::NONE); PROTECTIONS];
    let mut bits = 0;
    while bits < PROTECTIONS {
        if let Some(protection) = Protection::from_bits(bits as u8) {
            map[bits] = Attributes::user(MemoryType::Normal, protection);
        }
        bits += 1;
    }
    map
};

/// The entry of a page of frame 0 that was written, with each protection that permits it.
static WRITTEN: [Descriptor; PROTECTIONS] = {
    let mut map = [Descriptor::EMPTY; PROTECTIONS];
    let mut bits = 0;
    while bits < PROTECTIONS {
        map[bits] = Descriptor::page(PhysAddr(0), ATTRIBUTES[bits]).writable().dirty();
        bits += 1;
    }
    map
};

/// The attributes of a page with `protection`.
#[inline(always)]
pub(super) fn attributes(protection: Protection) -> Attributes {
    if protection == Protection::EXECUTE && patched_branch!(branch::EXECUTE_ONLY) {
        return Attributes::execute_only(MemoryType::Normal);
    }
    ATTRIBUTES[protection.bits() as usize % PROTECTIONS]
}

/// The entry of a page in `frame` that is written for the first time, in an area whose `protection` permits that.
#[inline(always)]
pub(super) fn written(frame: PhysAddr, protection: Protection) -> Descriptor {
    debug_assert!(protection.contains(Protection::WRITE));
    Descriptor(frame.0 & bits::ADDRESS | WRITTEN[protection.bits() as usize % PROTECTIONS].0)
}

/// Whether the hardware will not change it: not valid, or young and not writable-clean.
#[inline(always)]
pub(super) const fn is_settled(entry: Descriptor) -> bool {
    entry.0 & bits::AF != 0 && entry.0 & (bits::WRITE | bits::RDONLY) != bits::WRITE | bits::RDONLY
}

/// Lets an access through: takes the access flag, dirt and write permission of `wanted` over into `cell`, which was
/// found as `found`. Whether that changed it.
///
/// `wanted` is `found` with more allowed. Only ever more is allowed, so what the hardware sets meanwhile is kept. The
/// table's lock is held.
#[inline]
pub(super) fn set_access_flags<M: Mmu>(mmu: &M, cell: &M::Cell, found: Descriptor, wanted: Descriptor) -> bool {
    if found == wanted {
        return false;
    }
    // RDONLY counts the other way round: clear is more.
    let more = (wanted.0 ^ bits::RDONLY) & ACCESS;
    let merged = |entry: Descriptor| Descriptor(((entry.0 ^ bits::RDONLY) | more) ^ bits::RDONLY);
    debug_assert!(merged(found) == wanted, "{found:?} does not become {wanted:?} by allowing more");
    let (mut current, mut new) = (found, wanted);
    loop {
        match mmu.compare_exchange(cell, current, new) {
            Ok(()) => return true,
            Err(now) => (current, new) = (now, merged(now)),
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
