//! User entries: permissions, and **the one table of software bits and of encodings whose VALID is 0**.
//!
//! Arm ARM D8.3: a descriptor whose VALID is 0 is the software's in all its other bits; in a valid leaf bits 58 to 55
//! and 63 are. The positions are Linux's on arm64 where it has them. Two bits decide the kind of an entry:
//!
//! | VALID | NG | it is |
//! |---|---|---|
//! | 1 | 1 | a leaf that the hardware uses |
//! | 0 | 1 | *present-invalid*: a leaf in all its fields, but each access faults |
//! | 0 | 0 | *not present*: empty, or a kind of [`NonPresent`] |
//!
//! A present-invalid leaf has the reason in its bits: [`bits::PROT_NONE`] alone means that no access is permitted, with
//! [`bits::FAULT_ON_ACCESS`] that the first one makes it valid.
//!
//! [`USES`] has every bit with the places in which it means something; no two meet in one place, nor with a field of
//! the hardware: that is asserted when this is compiled.

use super::{Attributes, Descriptor, MemoryType, bits};
use crate::addr::PhysAddr;

/// Where a bit has its meaning, as a set.
type Places = u8;
/// Valid leaves of the kernel.
const KERNEL_LEAF: Places = 1;
/// Valid leaves of a user space.
const USER_LEAF: Places = 1 << 1;
/// Present-invalid leaves of a user space.
const PRESENT_INVALID: Places = 1 << 2;
/// Entries that are not present.
const NOT_PRESENT: Places = 1 << 3;
/// Table descriptors.
const TABLE: Places = 1 << 4;

/// A bit, or field, that software gives a meaning.
struct Use {
    mask: u64,
    places: Places,
}

const fn used(mask: u64, places: Places) -> Use {
    Use { mask, places }
}

/// Every one of them.
const USES: [Use; 19] = [
    used(bits::VM_ALLOC, KERNEL_LEAF),
    used(bits::VM_MAP, KERNEL_LEAF),
    used(bits::RECLAIM_MARK, TABLE),
    used(bits::UNLINKED, NOT_PRESENT),
    used(bits::COLLAPSING, KERNEL_LEAF | TABLE),
    used(bits::DIRTY, USER_LEAF | PRESENT_INVALID),
    used(bits::SPECIAL, USER_LEAF | PRESENT_INVALID),
    used(bits::UFFD_WP, USER_LEAF),
    used(bits::PROT_NONE, PRESENT_INVALID),
    used(bits::UFFD_WP_INVALID, PRESENT_INVALID),
    used(bits::FAULT_ON_ACCESS, PRESENT_INVALID),
    used(SWAP_EXCLUSIVE, NOT_PRESENT),
    used(bits::SWAP_UFFD_WP, NOT_PRESENT),
    used(SWAP_TYPE, NOT_PRESENT),
    used(SWAP_OFFSET, NOT_PRESENT),
    used(MIGRATION_YOUNG, NOT_PRESENT),
    used(MIGRATION_DIRTY, NOT_PRESENT),
    // The bits that distinguish the three kinds of entry.
    used(bits::VALID, KERNEL_LEAF | USER_LEAF | PRESENT_INVALID | NOT_PRESENT | TABLE),
    used(bits::NG, USER_LEAF | PRESENT_INVALID | NOT_PRESENT),
];

/// The fields that the hardware reads in `place`, or that describe the mapping there, beside VALID and NG.
const fn hardware(place: Places) -> u64 {
    const MAPPING: u64 = (1 << 55) - 1;
    let told_apart = bits::VALID | if place == KERNEL_LEAF || place == TABLE { 0 } else { bits::NG };
    match place {
        KERNEL_LEAF | USER_LEAF => !bits::SOFTWARE & !told_apart,
        // The fields stay as they are. Above them are bits 58 to 55, and those that a valid entry leaves to the
        // implementation.
        PRESENT_INVALID => MAPPING & !told_apart,
        // It must be 0, so that the entry is no leaf by any reading.
        NOT_PRESENT => bits::TABLE,
        // The hardware ignores bits 58 to 51 and 11 to 2.
        _ => bits::TABLE | bits::ADDRESS | 0b1_1111 << 59,
    }
}

const _: () = {
    let mut place = 1;
    while place <= TABLE {
        let mut seen = hardware(place);
        let mut index = 0;
        while index < USES.len() {
            if USES[index].places & place != 0 {
                assert!(seen & USES[index].mask == 0, "two uses of a bit meet in one place");
                seen |= USES[index].mask;
            }
            index += 1;
        }
        place <<= 1;
    }
};

/// Of a page in transit: it has no other mapping.
const SWAP_EXCLUSIVE: u64 = 1 << 2;
/// The kind of an entry that is not present: Linux's swap type.
const SWAP_TYPE: u64 = 0b1_1111 << 6;
/// The operand of such an entry, Linux's swap offset: a frame or a set of [`Markers`].
const SWAP_OFFSET: u64 = bits::ADDRESS;
/// The frame had been used when it began to move.
const MIGRATION_YOUNG: u64 = 1 << 48;
/// The frame had been written when it began to move.
const MIGRATION_DIRTY: u64 = 1 << 49;

/// The numbers of [`SWAP_TYPE`], from the top as in Linux. 0 is an entry that is empty.
const TYPE_MIGRATION_READ: u64 = 25;
const TYPE_MIGRATION_WRITE: u64 = 27;
const TYPE_MARKER: u64 = 31;

/// Caches of all CPUs, and of devices, show the same.
const SHARED: u64 = bits::SH_INNER;

/// The accesses that a mapping permits to EL0: `PROT_READ`, `PROT_WRITE` and `PROT_EXEC` by their numbers, whether tags
/// are checked, and whether branches are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Protection(u8);

impl Protection {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Loads.
    pub const READ: Self = Self(1);
    /// Stores; the architecture lets loads through as well.
    pub const WRITE: Self = Self(2);
    /// Execution; without FEAT_PAN3 loads as well.
    pub const EXECUTE: Self = Self(4);
    /// Loads and stores are checked against the tags of the memory (`PROT_MTE`, which has another number).
    pub const TAGGED: Self = Self(8);
    /// Indirect branches end at BTI instructions that accept them (`PROT_BTI`, FEAT_BTI).
    pub const GUARDED: Self = Self(16);
    /// How many there are.
    pub const COUNT: usize = 32;

    /// The one with these bits; `None` where there is none.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if (bits as usize) < Self::COUNT { Some(Self(bits)) } else { None }
    }

    /// Its bits, less than [`Self::COUNT`].
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// The accesses alone.
    #[must_use]
    pub const fn accesses(self) -> Self {
        Self(self.0 & !(Self::TAGGED.0 | Self::GUARDED.0))
    }

    /// Whether EL0 has no access, whatever is checked where it has one.
    pub const fn is_none(self) -> bool {
        self.accesses().0 == Self::NONE.0
    }

    /// The intersection of the two.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// For entries that let no store through yet, where stores are allowed: what may be written may be read.
    #[must_use]
    pub const fn read_only(self) -> Self {
        if self.contains(Self::WRITE) { Self(self.0 & !Self::WRITE.0 | Self::READ.0) } else { self }
    }

    /// Whether it lets through all that `other` does.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl Attributes {
    /// A page of a user space: it belongs to an ASID, EL1 never executes it, and it is young. `memory` decides whether
    /// tags are checked. Writable pages start clean, so the first store faults or sets them dirty; a kernel that tracks
    /// no dirty pages adds [`Self::dirty`].
    pub const fn user(memory: MemoryType, protection: Protection) -> Self {
        let base = bits::NG | bits::AF | bits::PXN | bits::UXN | bits::RDONLY | SHARED | Self::index(memory);
        let base = base | Self::guard(protection);
        if protection.is_none() {
            return Self(base | bits::PROT_NONE);
        }
        let write = if protection.contains(Protection::WRITE) { bits::WRITE } else { 0 };
        let data = if protection.contains(Protection::EXECUTE) { 0 } else { bits::UXN };
        Self(base & !bits::UXN | data | write | bits::VALID | bits::USER)
    }

    /// These attributes as if written, if writable: stores succeed at once, in a kernel that tracks no dirty pages.
    #[must_use]
    pub const fn dirty(self) -> Self {
        if self.0 & bits::WRITE == 0 { self } else { Self(self.0 & !bits::RDONLY | bits::DIRTY) }
    }

    /// These attributes with another memory type.
    #[inline(always)]
    #[must_use]
    pub const fn of_memory(self, memory: MemoryType) -> Self {
        Self(self.0 & !bits::ATTR_INDEX | Self::index(memory))
    }

    /// Attributes by which EL0 may execute and nothing else, in pages that are [guarded](Protection::GUARDED) as
    /// `protection` has it: for CPUs with FEAT_PAN3, on others privileged accesses would pass by PAN.
    pub const fn execute_only(memory: MemoryType, protection: Protection) -> Self {
        let base = bits::VALID | bits::NG | bits::AF | bits::PXN | bits::RDONLY;
        Self(base | SHARED | Self::index(memory) | Self::guard(protection))
    }

    /// The field GP (Arm ARM D8.5.4).
    const fn guard(protection: Protection) -> u64 {
        if protection.contains(Protection::GUARDED) { bits::GP } else { 0 }
    }

    /// A page of the kernel in a user space, for devices: EL0 has no access. Created young and dirty, since a device
    /// that sets neither would fault for ever.
    pub const fn reserved(memory: MemoryType) -> Self {
        let execution = bits::PXN | bits::UXN;
        Self(bits::VALID | bits::NG | bits::AF | bits::WRITE | execution | SHARED | Self::index(memory))
    }

    /// A page of a device's own tables: nothing is executed through it. Created young and dirty.
    pub const fn device_domain(memory: MemoryType, writable: bool) -> Self {
        let access = if writable { bits::WRITE } else { bits::RDONLY };
        let execution = bits::PXN | bits::UXN;
        Self(bits::VALID | bits::NG | bits::AF | bits::USER | access | execution | SHARED | Self::index(memory))
    }

    /// Whether EL0 may execute through it.
    pub const fn is_user_executable(self) -> bool {
        self.0 & bits::UXN == 0
    }
}

/// Facts that an entry remembers of a page that is not there: Linux's PTE markers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Markers(u8);

impl Markers {
    /// Write-protected by userfaultfd.
    pub const UFFD_WP: Self = Self(1);
    /// Its memory is gone: SIGBUS.
    pub const POISONED: Self = Self(2);
    /// A guard page: SIGSEGV.
    pub const GUARD: Self = Self(4);
    /// TLBs may still have the page that was here: what fills the entry invalidates it first. Linux has no such marker.
    pub const STALE: Self = Self(8);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// These without `others`.
    #[must_use]
    pub const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether it has all of `other`.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Which access the moving frame has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MigrationAccess {
    /// Readers; perhaps of several spaces.
    Read,
    /// Readers of this space alone: a store needs no copy.
    ReadExclusive,
    /// Writers.
    Write,
}

/// A frame on its way to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Migration {
    /// Where it was.
    pub from: PhysAddr,
    /// Which access it has.
    pub access: MigrationAccess,
    /// It had been used.
    pub young: bool,
    /// It had been written.
    pub dirty: bool,
    /// It is write-protected by userfaultfd.
    pub uffd_wp: bool,
}

/// An entry that is not present, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NonPresent {
    /// Nothing, and nothing to remember.
    Empty,
    /// Something to remember. An empty set is none.
    Marker(Markers),
    /// A frame on its way.
    Migration(Migration),
    /// No encoding: such an entry is damaged.
    Unknown,
}

impl From<Markers> for Descriptor {
    fn from(markers: Markers) -> Self {
        Self(TYPE_MARKER << 6 | (markers.0 as u64) << 12)
    }
}

impl From<Migration> for Descriptor {
    fn from(migration: Migration) -> Self {
        let (number, exclusive) = match migration.access {
            MigrationAccess::Read => (TYPE_MIGRATION_READ, 0),
            MigrationAccess::ReadExclusive => (TYPE_MIGRATION_READ, SWAP_EXCLUSIVE),
            MigrationAccess::Write => (TYPE_MIGRATION_WRITE, 0),
        };
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        Self(
            number << 6
                | exclusive
                | migration.from.0 & SWAP_OFFSET
                | flag(migration.young, MIGRATION_YOUNG)
                | flag(migration.dirty, MIGRATION_DIRTY)
                | flag(migration.uffd_wp, bits::SWAP_UFFD_WP),
        )
    }
}

/// The fields that `mprotect` changes.
const PERMISSIONS: u64 = bits::USER | bits::RDONLY | bits::WRITE | bits::PXN | bits::UXN | bits::GP | bits::ATTR_INDEX;

/// User leaves, in Linux's vocabulary: `pte_mkyoung` is [`Descriptor::young`], `pte_modify` is
/// [`Descriptor::modified`].
impl Descriptor {
    /// A table of a user space: EL1 never executes anything below.
    pub const fn user_table(table: PhysAddr) -> Self {
        Self::table(table, bits::PXNTABLE)
    }

    /// Whether it maps something, even if each access faults.
    #[inline(always)]
    pub const fn is_present(self) -> bool {
        self.0 & (bits::VALID | bits::PRESENT_INVALID) != 0
    }

    /// Decodes an entry that is not present.
    pub const fn non_present(self) -> NonPresent {
        let number = (self.0 & SWAP_TYPE) >> 6;
        let known = match number {
            0 => self.0 & !bits::UNLINKED == 0,
            TYPE_MARKER => self.0 & !(SWAP_TYPE | 0b1111 << 12) == 0,
            _ => true,
        };
        let exclusive = self.0 & SWAP_EXCLUSIVE != 0;
        let access = match (number, exclusive) {
            (TYPE_MIGRATION_READ, false) => MigrationAccess::Read,
            (TYPE_MIGRATION_READ, true) => MigrationAccess::ReadExclusive,
            (TYPE_MIGRATION_WRITE, false) => MigrationAccess::Write,
            (0, _) if known => return NonPresent::Empty,
            (TYPE_MARKER, _) if known => return NonPresent::Marker(Markers((self.0 >> 12) as u8)),
            _ => return NonPresent::Unknown,
        };
        NonPresent::Migration(Migration {
            from: PhysAddr(self.0 & SWAP_OFFSET),
            access,
            young: self.0 & MIGRATION_YOUNG != 0,
            dirty: self.0 & MIGRATION_DIRTY != 0,
            uffd_wp: self.0 & bits::SWAP_UFFD_WP != 0,
        })
    }

    /// Whether it was used since it was made old.
    #[inline(always)]
    pub const fn is_young(self) -> bool {
        self.0 & bits::AF != 0
    }

    /// Whether EL0 may write, though perhaps the first store faults or sets it dirty.
    #[inline(always)]
    pub const fn may_be_written(self) -> bool {
        self.0 & bits::WRITE != 0
    }

    /// Whether the hardware lets stores through: writable and dirty.
    #[inline(always)]
    const fn is_hardware_dirty(self) -> bool {
        self.0 & (bits::WRITE | bits::RDONLY) == bits::WRITE
    }

    /// Whether it was written, by what the hardware or the software noted.
    #[inline(always)]
    pub const fn is_dirty(self) -> bool {
        self.0 & bits::DIRTY != 0 || self.is_hardware_dirty()
    }

    /// Whether its frame is not counted: the zero page, devices.
    #[inline(always)]
    pub const fn is_special(self) -> bool {
        self.0 & bits::SPECIAL != 0
    }

    /// Whether EL0 may execute through it, were it valid.
    #[inline(always)]
    pub const fn is_user_executable(self) -> bool {
        self.0 & bits::UXN == 0
    }

    /// Whether its memory has tags, and accesses are checked against them.
    #[inline(always)]
    pub const fn is_tagged(self) -> bool {
        self.0 & bits::ATTR_INDEX == Attributes::index(MemoryType::NormalTagged)
    }

    /// Whether it is present-invalid for good, or until an access: see [`Self::is_fault_on_access`].
    #[inline(always)]
    pub const fn is_inaccessible(self) -> bool {
        self.0 & (bits::VALID | bits::PRESENT_INVALID | bits::PROT_NONE) == bits::PRESENT_INVALID | bits::PROT_NONE
    }

    /// Whether an access that its area permits makes it valid.
    #[inline(always)]
    pub const fn is_fault_on_access(self) -> bool {
        self.is_inaccessible() && self.0 & bits::FAULT_ON_ACCESS != 0
    }

    /// Where userfaultfd's mark is in this entry.
    #[inline(always)]
    const fn uffd_wp_bit(self) -> u64 {
        if self.is_valid() {
            bits::UFFD_WP
        } else if self.is_present() {
            bits::UFFD_WP_INVALID
        } else {
            bits::SWAP_UFFD_WP
        }
    }

    /// Whether it is a leaf or a migration entry that userfaultfd write-protects; a marker has a bit for it.
    #[inline(always)]
    pub const fn is_uffd_wp(self) -> bool {
        self.0 & self.uffd_wp_bit() != 0
    }

    /// Whether userfaultfd write-protects it, in whatever form: a leaf, a migration entry, or a marker.
    pub const fn is_uffd_wp_in_any_form(self) -> bool {
        if self.is_present() {
            return self.is_uffd_wp();
        }
        match self.non_present() {
            NonPresent::Marker(markers) => markers.contains(Markers::UFFD_WP),
            NonPresent::Migration(migration) => migration.uffd_wp,
            NonPresent::Empty | NonPresent::Unknown => false,
        }
    }

    /// Used.
    #[inline(always)]
    #[must_use]
    pub const fn young(self) -> Self {
        Self(self.0 | bits::AF)
    }

    /// Not used yet: without hardware updates the next access faults.
    #[inline(always)]
    #[must_use]
    pub const fn old(self) -> Self {
        Self(self.0 & !bits::AF)
    }

    /// Written: where it may be, the hardware lets stores through from now on.
    #[inline(always)]
    #[must_use]
    pub const fn dirty(self) -> Self {
        let read_only = if self.may_be_written() { bits::RDONLY } else { 0 };
        Self((self.0 | bits::DIRTY) & !read_only)
    }

    /// Not written yet.
    #[inline(always)]
    #[must_use]
    pub const fn clean(self) -> Self {
        Self(self.0 & !bits::DIRTY | bits::RDONLY)
    }

    /// EL0 may write.
    #[inline(always)]
    #[must_use]
    pub const fn writable(self) -> Self {
        let read_only = if self.0 & bits::DIRTY != 0 { bits::RDONLY } else { 0 };
        Self((self.0 | bits::WRITE) & !read_only)
    }

    /// EL0 may not write; that it was written is kept.
    #[inline(always)]
    #[must_use]
    pub const fn write_protected(self) -> Self {
        let dirty = if self.is_hardware_dirty() { bits::DIRTY } else { 0 };
        Self((self.0 | bits::RDONLY | dirty) & !bits::WRITE)
    }

    /// Its frame is not counted.
    #[inline(always)]
    #[must_use]
    pub const fn special(self) -> Self {
        Self(self.0 | bits::SPECIAL)
    }

    /// Write-protected by userfaultfd: a store is reported to the monitor.
    #[inline(always)]
    #[must_use]
    pub const fn uffd_wp(self) -> Self {
        let entry = if self.is_present() { self.write_protected() } else { self };
        Self(entry.0 | entry.uffd_wp_bit())
    }

    /// No longer write-protected by userfaultfd. Its area decides whether it may be written again.
    #[inline(always)]
    #[must_use]
    pub const fn without_uffd_wp(self) -> Self {
        Self(self.0 & !self.uffd_wp_bit())
    }

    /// A present leaf that waits for tag storage: the next access faults, and EL0 may not write until that fault has
    /// decided it anew. The dirty state is kept, also where the hardware has set it.
    #[inline(always)]
    #[must_use]
    pub const fn fault_on_access(self) -> Self {
        self.write_protected().read_only_fault_on_access()
    }

    /// As [`Self::fault_on_access`], for a leaf that EL0 may not write already: checked once by a call that marks many.
    #[inline(always)]
    #[must_use]
    pub const fn read_only_fault_on_access(self) -> Self {
        debug_assert!(!self.may_be_written());
        Self(self.invalid().0 | bits::FAULT_ON_ACCESS)
    }

    /// The leaf that [`Self::fault_on_access`] made, after the access: valid and young, with the permissions and the
    /// memory type of `attributes`, which are those of an accessible page. All else stays: whose its frame is,
    /// the dirty state, and userfaultfd's mark, with which EL0 may not write.
    #[inline(always)]
    #[must_use]
    pub const fn accessed(self, attributes: Attributes) -> Self {
        const CHANGED: u64 = PERMISSIONS | bits::FAULT_ON_ACCESS | bits::PROT_NONE | bits::UFFD_WP_INVALID;
        debug_assert!(self.is_fault_on_access() && attributes.bits() & bits::VALID != 0);
        let mark = if self.0 & bits::UFFD_WP_INVALID != 0 { bits::UFFD_WP } else { 0 };
        let kept = self.0 & !CHANGED | bits::VALID | bits::NG | bits::AF | mark;
        let entry = Self(kept | attributes.bits() & PERMISSIONS);
        let entry = if self.0 & bits::DIRTY != 0 { entry.dirty() } else { entry };
        if mark != 0 { entry.write_protected() } else { entry }
    }

    /// A present leaf that faults, until [`Self::accessible`] undoes that.
    #[must_use]
    pub const fn inaccessible(self) -> Self {
        self.invalid()
    }

    /// A leaf that [`Self::inaccessible`] made, and that is valid again.
    #[must_use]
    pub const fn accessible(self) -> Self {
        self.valid()
    }

    /// Present-invalid, with userfaultfd's mark where it is then.
    const fn invalid(self) -> Self {
        const MARKED: u64 = bits::VALID | bits::UFFD_WP;
        let mark = if self.0 & MARKED == MARKED { bits::UFFD_WP_INVALID } else { 0 };
        Self(self.0 & !(bits::VALID | bits::UFFD_WP) | bits::PRESENT_INVALID | bits::PROT_NONE | mark)
    }

    /// Valid, with userfaultfd's mark where it is then.
    const fn valid(self) -> Self {
        let mark = if self.is_uffd_wp() { bits::UFFD_WP } else { 0 };
        Self(self.0 & !(bits::PROT_NONE | bits::UFFD_WP_INVALID) | bits::VALID | bits::NG | mark)
    }

    /// This page with other permissions and memory type, as `mprotect` wants it. All else stays: whether it was
    /// used and written, whose its frame is, and userfaultfd's mark. The wait for an access does not stay:
    /// the caller, which stores the entry, decides that anew.
    ///
    /// A page that userfaultfd protects does not become writable.
    #[inline]
    #[must_use]
    pub const fn modified(self, attributes: Attributes) -> Self {
        let fields = Self(self.0 & !(PERMISSIONS | bits::FAULT_ON_ACCESS) | attributes.bits() & PERMISSIONS);
        // Nearly all are valid before and after, without a mark.
        let is_plain = self.0 & (bits::VALID | bits::UFFD_WP) == bits::VALID && attributes.bits() & bits::VALID != 0;
        let entry = if is_plain { fields } else { fields.made_valid(attributes.bits() & bits::VALID != 0) };
        let entry = if self.is_dirty() { entry.dirty() } else { entry };
        if !is_plain && entry.is_uffd_wp() { entry.write_protected() } else { entry }
    }

    /// This leaf, valid or present-invalid.
    #[cold]
    const fn made_valid(self, is_valid: bool) -> Self {
        if is_valid { self.valid() } else { self.invalid() }
    }
}

#[cfg(test)]
mod tests;
