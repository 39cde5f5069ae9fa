//! Changes of a user page's entry, while the hardware and other CPUs use it.
//!
//! The format of entries is in `granule_arch::descriptor::user`. Software changes an entry under the lock of its table.
//! The hardware takes no lock, and changes an entry in two ways only: it sets AF where it is clear, and clears RDONLY
//! where WRITE (DBM) is set. So an entry that is young, and dirty or not writable, is [settled](is_settled): only
//! software writes it, and a plain store loses nothing. Any other entry is changed by compare-exchange.
//!
//! Software alone sets DIRTY, and invalidates the page in every secondary TLB as it does. So where DIRTY is clear in an
//! entry without RDONLY, an SMMU may still have the read-only entry, and its fault sets DIRTY.

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::{
    Attributes, Descriptor, Markers, MemoryType, Migration, MigrationAccess, NonPresent, Protection, bits,
};
use granule_arch::patched_branch;
use granule_pgtable::Stores;

use crate::platform::features::branch;

/// The bits that an access may change.
const ACCESS: u64 = bits::RDONLY | bits::AF | bits::WRITE | bits::DIRTY;

/// The state of a last-level entry. Every function that reads entries of a user space decides by it.
///
/// | | a fault that its area permits | its frame | mincore |
/// |---|---|---|---|
/// | [`Empty`](EntryState::Empty) | a page is installed | none | the object's answer |
/// | [`Page`](EntryState::Page) | access flag, dirt, copy on write | held, unless special | 1 |
/// | [`Inaccessible`](EntryState::Inaccessible) | becomes valid | held, unless special | 1 |
/// | [`Stale`](EntryState::Stale) | invalidated on this CPU, then [what is left](rest_of_stale) | none | the object's answer |
/// | [`Marker`](EntryState::Marker) | a page is installed, write-protected; SIGSEGV for a guard, SIGBUS where the memory is gone | none | the object's answer |
/// | [`Migration`](EntryState::Migration) | waits until it has arrived | none | 1 |
/// | [`Damaged`](EntryState::Damaged) | SIGBUS | none | 0 |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum EntryState {
    /// All zero.
    Empty,
    /// A leaf that the hardware uses.
    Page,
    /// A leaf whose VALID is clear: its area permits no access, or the next access makes it valid.
    Inaccessible,
    /// Emptied by another CPU, whose invalidation may not be complete: what changes it invalidates it too. Beside
    /// [`Markers::STALE`] it may have others.
    Stale,
    /// A marker of a page that is not present.
    Marker(Markers),
    /// A frame that is being migrated.
    Migration,
    /// No encoding with a meaning.
    Damaged,
}

/// Whether `entry`, of the last level, is [`EntryState::Page`].
#[inline(always)]
pub(super) const fn is_page(entry: Descriptor) -> bool {
    /// VALID without TABLE is reserved at the last level, and faults.
    const PAGE: u64 = bits::VALID | bits::TABLE;
    entry.0 & PAGE == PAGE
}

/// The state of `entry`, of the last level.
#[inline(always)]
pub(super) fn state(entry: Descriptor) -> EntryState {
    if is_page(entry) {
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
        NonPresent::Marker(markers) if markers.contains(Markers::STALE) => EntryState::Stale,
        NonPresent::Marker(markers) => EntryState::Marker(markers),
        NonPresent::Migration(_) => EntryState::Migration,
        NonPresent::Unknown => EntryState::Damaged,
    }
}

/// The bits that tell a page, of the last level, which userfaultfd does not protect, and what they are.
pub(super) const PLAIN_PAGE: (u64, u64) = (bits::VALID | bits::TABLE | bits::UFFD_WP, bits::VALID | bits::TABLE);

/// The rest of an entry that was [stale](EntryState::Stale), once it is invalidated: its other markers, or empty.
#[cold]
pub(super) fn rest_of_stale(entry: Descriptor) -> Descriptor {
    match entry.non_present() {
        NonPresent::Marker(markers) => marker(markers.without(Markers::STALE)),
        _ => Descriptor::EMPTY,
    }
}

/// The entry that has these markers: empty for none.
pub(super) fn marker(markers: Markers) -> Descriptor {
    if markers.is_empty() { Descriptor::EMPTY } else { Descriptor::from(markers) }
}

/// `entry` without userfaultfd's write-protection, in whatever form it has that.
#[cold]
pub(super) fn unprotected(entry: Descriptor) -> Descriptor {
    match state(entry) {
        EntryState::Page | EntryState::Inaccessible | EntryState::Migration => entry.without_uffd_wp(),
        EntryState::Marker(markers) => marker(markers.without(Markers::UFFD_WP)),
        EntryState::Stale => match entry.non_present() {
            NonPresent::Marker(markers) => marker(markers.without(Markers::UFFD_WP)),
            _ => entry,
        },
        EntryState::Empty | EntryState::Damaged => entry,
    }
}

/// Whether no access reaches the page of `entry`: it is a guard, or poisoned. A scan marks these too, and as on Linux
/// neither WRITEPROTECT nor the end of the registration takes the mark back, and no child gets it.
#[cold]
pub(super) fn is_out_of_reach(entry: Descriptor) -> bool {
    let is_such = |markers: Markers| markers.contains(Markers::GUARD) || markers.contains(Markers::POISONED);
    matches!((entry.is_present(), entry.non_present()), (false, NonPresent::Marker(markers)) if is_such(markers))
}

/// The entry that a child gets for `entry` of its parent, which has no page.
#[cold]
pub(super) fn inherited(entry: Descriptor) -> Descriptor {
    if is_out_of_reach(entry) { unprotected(entry) } else { entry }
}

/// The marker of a page that is not there and that userfaultfd write-protects.
pub(super) fn uffd_wp_marker() -> Descriptor {
    Descriptor::from(Markers::UFFD_WP)
}

/// The entry that is not present, for a space without write permission: a migration that would end in a writable page
/// becomes one for reading, as in Linux's `copy_nonpresent_pte`.
#[cold]
pub(super) fn unwritable(entry: Descriptor, exclusive: bool) -> Descriptor {
    let (EntryState::Migration, NonPresent::Migration(migration)) = (state(entry), entry.non_present()) else {
        return entry;
    };
    let access = match migration.access {
        MigrationAccess::Read => MigrationAccess::Read,
        MigrationAccess::ReadExclusive | MigrationAccess::Write if exclusive => MigrationAccess::ReadExclusive,
        MigrationAccess::ReadExclusive | MigrationAccess::Write => MigrationAccess::Read,
    };
    Migration { access, ..migration }.into()
}

/// The number of protections.
const PROTECTIONS: usize = Protection::COUNT;

/// The attributes of a page with each protection (Linux's `protection_map`): where execution implies reading, and where
/// it does not. No access reads an execute-only page, and it has no tags.
type ProtectionMap = [[Attributes; PROTECTIONS]; 2];

static ATTRIBUTES: ProtectionMap = protection_map(false);

/// Those of a page to which no store is permitted yet.
static READ_ONLY: ProtectionMap = protection_map(true);

const fn protection_map(is_read_only: bool) -> ProtectionMap {
    let mut map = [[Attributes::user(MemoryType::Normal, Protection::NONE); PROTECTIONS]; 2];
    let mut bits = 0;
    while bits < PROTECTIONS {
        if let Some(protection) = Protection::from_bits(bits as u8) {
            let protection = if is_read_only { protection.read_only() } else { protection };
            let is_tagged = protection.contains(Protection::TAGGED);
            let memory = if is_tagged { MemoryType::NormalTagged } else { MemoryType::Normal };
            map[0][bits] = Attributes::user(memory, protection);
            let only_executes = protection.accesses().bits() == Protection::EXECUTE.bits();
            let execute_only = Attributes::execute_only(MemoryType::Normal, protection);
            map[1][bits] = if only_executes { execute_only } else { map[0][bits] };
        }
        bits += 1;
    }
    map
}

/// The entry of a written page of frame 0, for each protection that permits a store.
static WRITTEN: [Descriptor; PROTECTIONS] = {
    let mut map = [Descriptor::EMPTY; PROTECTIONS];
    let mut bits = 0;
    while bits < PROTECTIONS {
        map[bits] = Descriptor::page(PhysAddr(0), ATTRIBUTES[0][bits]).writable().dirty();
        bits += 1;
    }
    map
};

/// The attributes of a page with `protection`.
#[inline(always)]
pub(super) fn attributes(protection: Protection) -> Attributes {
    attributes_in(&ATTRIBUTES, protection)
}

/// The attributes of a page with `protection` to which no store is permitted yet.
#[inline(always)]
pub(super) fn read_only_attributes(protection: Protection) -> Attributes {
    attributes_in(&READ_ONLY, protection)
}

#[inline(always)]
fn attributes_in(map: &'static ProtectionMap, protection: Protection) -> Attributes {
    let map = if patched_branch!(branch::EXECUTE_ONLY) { &map[1] } else { &map[0] };
    map[protection.bits() as usize % PROTECTIONS]
}

/// The entry of a page in `frame` at its first store, in an area whose `protection` permits that.
#[inline(always)]
pub(super) fn written(frame: PhysAddr, protection: Protection) -> Descriptor {
    debug_assert!(protection.contains(Protection::WRITE));
    Descriptor(frame.0 & bits::ADDRESS | WRITTEN[protection.bits() as usize % PROTECTIONS].0)
}

/// The entry of a page in `frame` at the first access, in an area with `protection`. Also a load makes it writable: a
/// store then takes no fault.
#[inline(always)]
pub(super) fn first_entry(frame: PhysAddr, protection: Protection) -> Descriptor {
    let is_written = protection.contains(Protection::WRITE);
    if is_written { written(frame, protection) } else { Descriptor::page(frame, attributes(protection)) }
}

/// Whether the hardware will not change it: not valid, or young and not writable-clean.
#[inline(always)]
pub(super) const fn is_settled(entry: Descriptor) -> bool {
    entry.0 & bits::AF != 0 && entry.0 & (bits::WRITE | bits::RDONLY) != bits::WRITE | bits::RDONLY
}

/// Widens the entry in `cell`, read as `found`, by the access flag, dirt and write permission of `wanted`; returns
/// whether that changed it.
///
/// `wanted` permits all that `found` does. The entry is only widened, so what the hardware sets concurrently is kept.
/// The table's lock is held.
#[inline]
pub(super) fn set_access_flags<M: Stores>(mmu: &M, cell: &M::Cell, found: Descriptor, wanted: Descriptor) -> bool {
    if found == wanted {
        return false;
    }
    // RDONLY counts inverted: clear permits more.
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

/// Replaces the entry in `cell`, read as `found`, by `change` of it; returns the last value before. The table's lock is
/// held.
#[inline(always)]
pub(super) fn replace<M: Stores>(
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
