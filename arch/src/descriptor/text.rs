//! A descriptor in words: for the walk of an address, and for a listing of a whole table.
//!
//! Two forms. [`Decoded`] names every field as the Arm ARM does (D8.3.1, D8.3.2) and leaves no bit that is set
//! unmentioned, for a reader who asks why an access faulted. [`Listed`] is the columns that Linux's ptdump prints,
//! each flag in its own place, so that two listings can be compared line by line.

use core::fmt;

use super::{Descriptor, Kind, LevelEntries, MAIR_MTE, MemoryAttribute, NonPresent, bits};

/// The last level of the walk with the 4 KiB granule.
const LAST_LEVEL: u8 = 3;

impl Descriptor {
    /// The entry in the Arm ARM's words, read at `level` of a walk with the 4 KiB granule.
    pub const fn decoded(self, level: u8) -> Decoded {
        Decoded { descriptor: self, level, mair: MAIR_MTE }
    }

    /// The attributes of a leaf as columns.
    pub const fn listed(self) -> Listed {
        Listed { descriptor: self, mair: MAIR_MTE }
    }

    /// The attribute that MAIR_EL1, being `mair`, has at the index of this leaf.
    const fn memory_attribute(self, mair: u64) -> MemoryAttribute {
        MemoryAttribute(mair.to_le_bytes()[self.memory_index() as usize])
    }
}

impl MemoryAttribute {
    /// The Arm ARM's name of it, and the one in the columns of [`Listed`].
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::NORMAL => ("Normal write-back", "MEM/NORMAL"),
            Self::NORMAL_TAGGED => ("Normal-Tagged write-back", "MEM/NORMAL-TAGGED"),
            Self::NORMAL_NON_CACHEABLE => ("Normal non-cacheable", "MEM/NORMAL-NC"),
            Self::NORMAL_WRITE_THROUGH => ("Normal write-through", "MEM/NORMAL-WT"),
            Self::DEVICE_NGNRNE => ("Device-nGnRnE", "DEVICE/nGnRnE"),
            Self::DEVICE_NGNRE => ("Device-nGnRE", "DEVICE/nGnRE"),
            Self::DEVICE_NGRE => ("Device-nGRE", "DEVICE/nGRE"),
            Self::DEVICE_GRE => ("Device-GRE", "DEVICE/GRE"),
            _ => ("another memory type", "MEM/OTHER"),
        }
    }
}

/// A descriptor whose every field is named. Made by [`Descriptor::decoded`].
#[derive(Clone, Copy, Debug)]
pub struct Decoded {
    descriptor: Descriptor,
    level: u8,
    mair: u64,
}

impl Decoded {
    /// Reads memory types with `mair` as MAIR_EL1 in place of [`MAIR_MTE`].
    #[must_use]
    pub const fn with_mair(self, mair: u64) -> Self {
        Self { mair, ..self }
    }
}

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let descriptor = self.descriptor;
        let entries = match self.level {
            0 => LevelEntries::Tables,
            LAST_LEVEL => LevelEntries::Pages,
            _ => LevelEntries::TablesAndBlocks,
        };
        match descriptor.kind(entries) {
            Kind::Table => self.table(f),
            Kind::Leaf => self.leaf(f),
            Kind::None if descriptor.is_valid() => f.write_str("reserved: faults like an invalid entry"),
            Kind::None if descriptor.0 == 0 => f.write_str("invalid"),
            Kind::None => match descriptor.non_present() {
                NonPresent::Marker(markers) => write!(f, "invalid, {markers:?} (software's)"),
                NonPresent::Migration(migration) => write!(f, "invalid, {migration:?} (software's)"),
                NonPresent::Empty | NonPresent::Unknown => write!(f, "invalid, software's bits {:#x}", descriptor.0),
            },
        }
    }
}

impl Decoded {
    fn table(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {}", self.descriptor.address())?;
        let named = fmt_bits(f, self.descriptor, &TABLE_BITS)?;
        other_bits(f, self.descriptor, bits::VALID | bits::TABLE | bits::ADDRESS | named)
    }

    fn leaf(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let descriptor = self.descriptor;
        let present = descriptor.is_valid();
        let size = if self.level == LAST_LEVEL { "page" } else { "block" };
        write!(f, "{}{size} {}", if present { "" } else { "present but invalid: " }, descriptor.address())?;
        f.write_str(match (descriptor.0 & bits::USER != 0, descriptor.is_writable()) {
            (false, true) => ", AP read/write at EL1",
            (false, false) => ", AP read-only at EL1",
            (true, true) => ", AP read/write at EL1 and EL0",
            (true, false) => ", AP read-only at EL1 and EL0",
        })?;
        f.write_str(match descriptor.0 & bits::SH {
            bits::SH_INNER => ", SH inner shareable",
            bits::SH_OUTER => ", SH outer shareable",
            0 => ", SH non-shareable",
            _ => ", SH reserved",
        })?;
        // Where the entry is not valid, the bit of nG means "present".
        let shown = if present { descriptor } else { Descriptor(descriptor.0 & !bits::NG) };
        let named = fmt_bits(f, shown, &LEAF_BITS)? | fmt_bits(f, descriptor, software(descriptor))?;
        let memory = descriptor.memory_attribute(self.mair).names().0;
        write!(f, ", AttrIndx {} ({memory})", descriptor.memory_index())?;
        let fields =
            bits::VALID | bits::TABLE | bits::ATTR_INDEX | bits::USER | bits::RDONLY | bits::SH | bits::ADDRESS;
        other_bits(f, descriptor, fields | named)
    }
}

/// Bits of a table descriptor, and what is printed for each.
const TABLE_BITS: [(u64, &str); 4] = [
    (bits::PXNTABLE, "PXNTable"),
    (bits::UXNTABLE, "UXNTable"),
    (bits::RECLAIM_MARK, "marked for reclaim (software's)"),
    (bits::COLLAPSING, "collapsing (software's)"),
];

/// Bits of a leaf, likewise.
const LEAF_BITS: [(u64, &str); 7] = [
    (bits::AF, "AF"),
    (bits::NG, "nG"),
    (bits::GP, "GP"),
    (bits::WRITE, "DBM"),
    (bits::CONTIGUOUS, "Contiguous"),
    (bits::PXN, "PXN"),
    (bits::UXN, "UXN"),
];

/// Prints those of `names` that are set; returns the bits of all.
fn fmt_bits(f: &mut fmt::Formatter<'_>, entry: Descriptor, names: &[(u64, &str)]) -> Result<u64, fmt::Error> {
    for (bit, name) in names {
        if entry.0 & bit != 0 {
            write!(f, ", {name}")?;
        }
    }
    Ok(names.iter().fold(0, |all, (bit, _)| all | bit))
}

/// The names of software's bits in a leaf. A leaf of a user space uses these bits for other things than the kernel's.
const fn software(leaf: Descriptor) -> &'static [(u64, &'static str)] {
    match (leaf.is_valid(), leaf.is_inaccessible()) {
        (true, _) if leaf.0 & bits::NG != 0 => &[
            (bits::DIRTY, "dirty (software's)"),
            (bits::SPECIAL, "special (software's)"),
            (bits::UFFD_WP, "uffd-wp (software's)"),
        ],
        (false, true) => &[
            (bits::DIRTY, "dirty (software's)"),
            (bits::SPECIAL, "special (software's)"),
            (bits::UFFD_WP_INVALID, "uffd-wp (software's)"),
            (bits::PROT_NONE, "inaccessible (software's)"),
            (bits::FAULT_ON_ACCESS, "fault on access (software's)"),
        ],
        _ => &[
            (bits::VM_ALLOC, "VM_ALLOC (software's)"),
            (bits::VM_MAP, "VM_MAP (software's)"),
            (bits::COLLAPSING, "collapsing (software's)"),
        ],
    }
}

fn other_bits(f: &mut fmt::Formatter<'_>, descriptor: Descriptor, named: u64) -> fmt::Result {
    let other = descriptor.0 & !named;
    if other == 0 { Ok(()) } else { write!(f, ", other bits {other:#x}") }
}

/// The attributes of a leaf in the columns of Linux's ptdump. Made by [`Descriptor::listed`].
#[derive(Clone, Copy, Debug)]
pub struct Listed {
    descriptor: Descriptor,
    mair: u64,
}

impl Listed {
    /// Reads memory types with `mair` as MAIR_EL1 in place of [`MAIR_MTE`].
    #[must_use]
    pub const fn with_mair(self, mair: u64) -> Self {
        Self { mair, ..self }
    }
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let has = |bit| self.descriptor.0 & bit != 0;
        for (set, yes, no) in [
            (has(bits::VALID), "  ", "F "),
            (has(bits::USER), "USR ", "    "),
            (has(bits::RDONLY), "ro ", "RW "),
            (has(bits::PXN), "NX ", "x  "),
            (has(bits::SH), "SHD ", "    "),
            (has(bits::AF), "AF ", "   "),
            (has(bits::VALID) && has(bits::NG), "NG ", "   "),
            (has(bits::CONTIGUOUS), "CON ", "    "),
            (has(bits::UXN), "UXN ", "    "),
            (has(bits::GP), "GP ", "   "),
        ] {
            f.write_str(if set { yes } else { no })?;
        }
        f.write_str(self.descriptor.memory_attribute(self.mair).names().1)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::format;

    use crate::addr::PhysAddr;
    use crate::descriptor::{Attributes, Descriptor, Markers, MemoryType, Protection, bits};

    fn page(attributes: Attributes) -> Descriptor {
        Descriptor(attributes.bits() | bits::TABLE | 0x4800_1000)
    }

    #[test]
    fn each_kind_of_entry_in_words() {
        let data = page(Attributes::kernel_data(MemoryType::NormalTagged));
        let user = Attributes::user(MemoryType::Normal, Protection::READ.and(Protection::WRITE));
        for (entry, level, words) in [
            (Descriptor::EMPTY, 2, "invalid"),
            (Descriptor(0x1000), 2, "invalid, software's bits 0x1000"),
            (Descriptor(bits::VALID), 3, "reserved: faults like an invalid entry"),
            (Descriptor::kernel_table(PhysAddr(0x4032_1000), false), 0, "table 0x40321000, UXNTable"),
            (Descriptor::kernel_table(PhysAddr(0x4032_1000), true), 1, "table 0x40321000, PXNTable, UXNTable"),
            (
                data,
                3,
                "page 0x48001000, AP read/write at EL1, SH inner shareable, AF, DBM, PXN, UXN, \
                 AttrIndx 3 (Normal-Tagged write-back)",
            ),
            (
                Descriptor(data.0 & !bits::VALID | bits::PRESENT_INVALID),
                3,
                "present but invalid: page 0x48001000, AP read/write at EL1, SH inner shareable, AF, DBM, PXN, UXN, \
                 AttrIndx 3 (Normal-Tagged write-back)",
            ),
            (
                Descriptor(Attributes::kernel_text(MemoryType::Normal).bits() | 0x4020_0000 | bits::CONTIGUOUS),
                2,
                "block 0x40200000, AP read-only at EL1, SH inner shareable, AF, Contiguous, UXN, \
                 AttrIndx 0 (Normal write-back)",
            ),
            (
                page(user).dirty().uffd_wp(),
                3,
                "page 0x48001000, AP read-only at EL1 and EL0, SH inner shareable, AF, nG, PXN, UXN, \
                 dirty (software's), uffd-wp (software's), AttrIndx 0 (Normal write-back)",
            ),
            (
                page(user).special().fault_on_access(),
                3,
                "present but invalid: page 0x48001000, AP read-only at EL1 and EL0, SH inner shareable, AF, PXN, \
                 UXN, special (software's), inaccessible (software's), fault on access (software's), \
                 AttrIndx 0 (Normal write-back)",
            ),
            (Descriptor::from(Markers::GUARD), 3, "invalid, Markers(4) (software's)"),
        ] {
            assert_eq!(format!("{}", entry.decoded(level)), words);
        }
    }

    #[test]
    fn no_bit_goes_unmentioned() {
        let user = page(Attributes::user(MemoryType::Normal, Protection::READ));
        let leaves = [page(Attributes::device()), user, user.fault_on_access()];
        for (empty, bit) in leaves.into_iter().flat_map(|leaf| (0..64).map(move |bit| (leaf, bit))) {
            // Table or page: at the last level that is no question where nothing is valid.
            if bit == 1 && !empty.is_valid() {
                continue;
            }
            let (with, without) = (Descriptor(empty.0 | 1 << bit), Descriptor(empty.0 & !(1 << bit)));
            assert_ne!(format!("{}", with.decoded(3)), format!("{}", without.decoded(3)), "bit {bit}");
        }
    }

    #[test]
    fn columns_stay_in_place() {
        let lines = [
            Attributes::kernel_data(MemoryType::NormalTagged),
            Attributes::kernel_rodata(MemoryType::NormalTagged),
            Attributes::kernel_text(MemoryType::NormalTagged),
        ]
        .map(|attributes| format!("{}", page(attributes).listed()));
        assert_eq!(
            lines,
            [
                "      RW NX SHD AF        UXN    MEM/NORMAL-TAGGED",
                "      ro NX SHD AF        UXN    MEM/NORMAL-TAGGED",
                "      ro x  SHD AF        UXN    MEM/NORMAL-TAGGED",
            ]
        );
        let invalid = Descriptor(page(Attributes::device()).0 & !bits::VALID | bits::PRESENT_INVALID);
        assert_eq!(format!("{}", invalid.listed()), "F     RW NX SHD AF        UXN    DEVICE/nGnRE");
    }
}
