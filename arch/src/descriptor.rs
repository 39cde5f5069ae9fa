//! The VMSAv8-64 stage 1 descriptor (Arm ARM D8.3), with the software bits that the kernel gives a meaning.
//!
//! A live cell of a table is an `AtomicU64` (or a model's cell); a [`Descriptor`] is a copy of its value. The
//! vocabulary of permissions follows Linux on arm64, so that its contracts can be compared bit by bit: `WRITE` (the DBM
//! bit) means "may be written", `RDONLY` is `AP[2]`, and an entry that is present but not valid keeps all other fields
//! and is recognised by `PRESENT_INVALID` (the nG bit where VALID = 0).

use core::fmt;

use crate::addr::PhysAddr;

mod text;
mod user;
pub use text::{Decoded, Listed};
pub use user::{Markers, Migration, MigrationAccess, NonPresent, Protection};

/// The fields of table, block and page descriptors as masks: 4 KiB granule, 48-bit output addresses.
pub mod bits {
    /// 0: the walk ends here in a translation fault.
    pub const VALID: u64 = 1 << 0;
    /// With [`VALID`]: 1 is a table (levels 0 to 2) or a page (level 3), 0 a block.
    pub const TABLE: u64 = 1 << 1;
    /// Which of the eight memory types of MAIR_EL1, see [`MemoryType`](super::MemoryType).
    pub const ATTR_INDEX: u64 = 0b111 << 2;
    /// AP\[1\]: EL0 may access.
    pub const USER: u64 = 1 << 6;
    /// AP\[2\]: no writes.
    pub const RDONLY: u64 = 1 << 7;
    /// Shareability; 0b00 is non-shareable.
    pub const SH: u64 = 0b11 << 8;
    /// [`SH`]: outer shareable.
    pub const SH_OUTER: u64 = 0b10 << 8;
    /// [`SH`]: inner shareable.
    pub const SH_INNER: u64 = 0b11 << 8;
    /// Access flag.
    pub const AF: u64 = 1 << 10;
    /// Not global: the entry belongs to an ASID.
    pub const NG: u64 = 1 << 11;
    /// Present although VALID = 0: all other fields still describe the mapping.
    pub const PRESENT_INVALID: u64 = NG;
    /// Guarded page (FEAT_BTI).
    pub const GP: u64 = 1 << 50;
    /// DBM: may be written; with [`RDONLY`] a writable-clean entry.
    pub const WRITE: u64 = 1 << 51;
    /// One of a naturally aligned group of 16 entries that translate alike.
    pub const CONTIGUOUS: u64 = 1 << 52;
    /// No execution at EL1.
    pub const PXN: u64 = 1 << 53;
    /// No execution at EL0.
    pub const UXN: u64 = 1 << 54;
    /// The bits of a leaf that the hardware leaves to software: 58 to 55 and 63.
    pub const SOFTWARE: u64 = 1 << 63 | 0b1111 << 55;
    /// Software: the page belongs to a vmalloc area, whose owner may change its permissions (Linux's flag of that
    /// name).
    pub const VM_ALLOC: u64 = 1 << 56;
    /// Software, kernel leaves: the page belongs to an area of frames that the area does not own (given frames, device
    /// registers). Its owner may change its permissions, it never becomes executable, and the alias of the frames stays
    /// as it is. Linux's flag of that name is the nearest.
    pub const VM_MAP: u64 = 1 << 58;
    /// Software, in a table descriptor (the hardware ignores bits 58 to 51 there): the table was empty, and is unlinked
    /// unless a walker that needs it clears this.
    pub const RECLAIM_MARK: u64 = 1 << 55;
    /// Software, in an entry that is neither valid nor present: a table was unlinked here that walk caches may still
    /// have. Not [`RECLAIM_MARK`], which a walker that needs the table clears without another look.
    pub const UNLINKED: u64 = 1 << 57;
    /// Software, in a valid entry above the last level: a larger leaf, or a table with contiguous groups, is about to
    /// stand for the table that is linked here, or does so and walk caches may still have that table. A walk that stores
    /// below clears this first, with an invalidation in front.
    pub const COLLAPSING: u64 = 1 << 57;
    // Of user entries; the table of all that software gives a meaning, VALID or not, is in `descriptor::user`.
    /// Software, user leaves: it was written.
    pub const DIRTY: u64 = 1 << 55;
    /// Software, user leaves: the frame is not counted.
    pub const SPECIAL: u64 = 1 << 56;
    /// Software, valid user leaves: write-protected by userfaultfd.
    pub const UFFD_WP: u64 = 1 << 58;
    /// Software, user leaves whose VALID is 0: no access is permitted, or with [`FAULT_ON_ACCESS`] the first one makes
    /// the leaf valid.
    pub const PROT_NONE: u64 = 1 << 58;
    /// Software, user leaves whose VALID is 0: [`UFFD_WP`], whose own place means [`PROT_NONE`] there.
    pub const UFFD_WP_INVALID: u64 = 1 << 59;
    /// Software, user leaves whose VALID is 0, with [`PROT_NONE`]: an access is waited for.
    pub const FAULT_ON_ACCESS: u64 = 1 << 60;
    /// Software, user entries that are not present: [`UFFD_WP`] of the page that was there.
    pub const SWAP_UFFD_WP: u64 = 1 << 3;
    /// Table descriptors: no execution at EL1 through anything below.
    pub const PXNTABLE: u64 = 1 << 59;
    /// Table descriptors: no execution at EL0 through anything below.
    pub const UXNTABLE: u64 = 1 << 60;
    /// Bits 47:12, the output address of a page or table with the 4 KiB granule; larger granules have its low bits
    /// zero.
    pub const ADDRESS: u64 = ((1 << 36) - 1) << 12;
}

/// The memory types of [`MAIR`], by index. A kernel whose MAIR_EL1 is another names an index by
/// [`Attributes::with_memory_index`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum MemoryType {
    /// Normal, inner and outer write-back, read- and write-allocate.
    Normal = 0,
    /// Device-nGnRE.
    DeviceNGnRE = 1,
    /// Normal, non-cacheable.
    NormalNonCacheable = 2,
    /// Normal write-back with allocation tags; the same as [`MemoryType::Normal`] on a CPU without MTE.
    NormalTagged = 3,
}

/// A memory type as one of the eight bytes of MAIR_EL1 holds it (Arm ARM D24.2.122).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryAttribute(pub u8);

impl MemoryAttribute {
    /// Device-nGnRnE.
    pub const DEVICE_NGNRNE: Self = Self(0x00);
    /// Device-nGnRE.
    pub const DEVICE_NGNRE: Self = Self(0x04);
    /// Device-nGRE.
    pub const DEVICE_NGRE: Self = Self(0x08);
    /// Device-GRE.
    pub const DEVICE_GRE: Self = Self(0x0c);
    /// Normal, inner and outer non-cacheable.
    pub const NORMAL_NON_CACHEABLE: Self = Self(0x44);
    /// Normal, inner and outer write-through, read-allocate.
    pub const NORMAL_WRITE_THROUGH: Self = Self(0xaa);
    /// Normal, inner and outer write-back, read- and write-allocate.
    pub const NORMAL: Self = Self(0xff);
    /// As [`Self::NORMAL`], with allocation tags.
    pub const NORMAL_TAGGED: Self = Self(0xf0);
}

/// MAIR_EL1 with these attributes from index 0 on; Device-nGnRnE at the others.
pub const fn mair(attributes: &[MemoryAttribute]) -> u64 {
    assert!(attributes.len() <= 8, "MAIR_EL1 has eight attributes");
    let mut bytes = [0; 8];
    let mut index = 0;
    while index < attributes.len() {
        bytes[index] = attributes[index].0;
        index += 1;
    }
    u64::from_le_bytes(bytes)
}

/// MAIR_EL1 without MTE, by [`MemoryType`]: index 3 is plain Normal.
pub const MAIR: u64 = mair(&[
    MemoryAttribute::NORMAL,
    MemoryAttribute::DEVICE_NGNRE,
    MemoryAttribute::NORMAL_NON_CACHEABLE,
    MemoryAttribute::NORMAL,
]);
/// MAIR_EL1 where `ID_AA64PFR1_EL1.MTE >= 2`: index 3 is Normal-Tagged.
pub const MAIR_MTE: u64 = mair(&[
    MemoryAttribute::NORMAL,
    MemoryAttribute::DEVICE_NGNRE,
    MemoryAttribute::NORMAL_NON_CACHEABLE,
    MemoryAttribute::NORMAL_TAGGED,
]);

/// The kind of a descriptor, read at its level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing is here: all bits zero, or not valid without the present mark.
    None,
    /// A translation, valid or present-invalid: block, or page at the last level.
    Leaf,
    /// The address of a table of the next level.
    Table,
}

/// The kinds of entries that a table of one level may hold (Arm ARM D8.3.1). The granule decides which level that is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LevelEntries {
    /// Tables alone: a level above the first at which blocks are legal.
    Tables,
    /// Tables and blocks.
    TablesAndBlocks,
    /// Pages: the last level.
    Pages,
}

/// A copy of one table entry.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Descriptor(pub u64);

impl Descriptor {
    /// The entry that maps nothing.
    pub const EMPTY: Self = Self(0);

    /// A table descriptor; `pxn` forbids execution at EL1 below it, execution at EL0 is always forbidden.
    /// Kernel tables only.
    pub const fn kernel_table(table: PhysAddr, pxn: bool) -> Self {
        Self::table(table, bits::UXNTABLE | if pxn { bits::PXNTABLE } else { 0 })
    }

    /// A table descriptor that forbids below it what `limits` has: [`bits::PXNTABLE`], [`bits::UXNTABLE`].
    pub const fn table(table: PhysAddr, limits: u64) -> Self {
        debug_assert!(limits & !(bits::PXNTABLE | bits::UXNTABLE) == 0);
        Self((table.0 & bits::ADDRESS) | bits::VALID | bits::TABLE | limits)
    }

    /// A page: a leaf of the last level.
    pub const fn page(address: PhysAddr, attributes: Attributes) -> Self {
        Self((address.0 & bits::ADDRESS) | attributes.bits() | bits::TABLE)
    }

    /// A block: a leaf of a level above the last.
    pub const fn block(address: PhysAddr, attributes: Attributes) -> Self {
        Self((address.0 & bits::ADDRESS) | attributes.bits())
    }

    /// This leaf as one of a contiguous group. All entries of the group must have the bit, and translate alike.
    #[must_use]
    pub const fn contiguous(self) -> Self {
        Self(self.0 | bits::CONTIGUOUS)
    }

    /// All but the output address.
    #[must_use]
    pub const fn without_address(self) -> Self {
        Self(self.0 & !bits::ADDRESS)
    }

    /// The kind of the entry, read in a table of a level that holds `entries`.
    ///
    /// 0b01 is reserved where no block is legal, at the last level and at the first ones, and faults as if it were
    /// invalid (Arm ARM D8.3.1): nothing is mapped there.
    #[inline(always)]
    pub const fn kind(self, entries: LevelEntries) -> Kind {
        let valid = self.0 & bits::VALID != 0;
        let table = self.0 & bits::TABLE != 0;
        if valid {
            match entries {
                LevelEntries::Tables | LevelEntries::TablesAndBlocks if table => Kind::Table,
                LevelEntries::TablesAndBlocks => Kind::Leaf,
                LevelEntries::Pages if table => Kind::Leaf,
                _ => Kind::None,
            }
        } else if self.0 & bits::PRESENT_INVALID != 0 && !matches!(entries, LevelEntries::Tables) {
            Kind::Leaf
        } else {
            Kind::None
        }
    }

    /// Whether it is the address of a table, read above the last level.
    #[inline(always)]
    pub const fn is_table(self) -> bool {
        self.0 & (bits::VALID | bits::TABLE) == bits::VALID | bits::TABLE
    }

    /// Whether it describes nothing that is mapped, valid or not. A reserved encoding is not empty in this sense: it is
    /// not for this kernel to write over.
    #[inline(always)]
    pub const fn is_vacant(self) -> bool {
        self.0 & (bits::VALID | bits::PRESENT_INVALID) == 0
    }

    /// Whether the hardware would use it.
    pub const fn is_valid(self) -> bool {
        self.0 & bits::VALID != 0
    }

    /// Whether it is one of a contiguous group.
    pub const fn is_contiguous(self) -> bool {
        self.0 & bits::CONTIGUOUS != 0
    }

    /// Whether EL1 may write through it, were it valid.
    pub const fn is_writable(self) -> bool {
        self.0 & bits::RDONLY == 0
    }

    /// Whether EL1 may execute through it, were it valid, as far as the leaf alone decides.
    pub const fn is_executable(self) -> bool {
        self.0 & bits::PXN == 0
    }

    /// The output address (bits 47:12).
    pub const fn address(self) -> PhysAddr {
        PhysAddr(self.0 & bits::ADDRESS)
    }

    /// The index of its memory type in MAIR_EL1.
    pub const fn memory_index(self) -> u8 {
        ((self.0 & bits::ATTR_INDEX) >> bits::ATTR_INDEX.trailing_zeros()) as u8
    }
}

impl fmt::Debug for Descriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// All of a leaf but its address, size and contiguity: the attributes of a mapping.
///
/// A value of this type never grants both write and execute at EL1: the constructors are the only way to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes(u64);

impl Attributes {
    const KERNEL: u64 = bits::VALID | bits::AF | bits::UXN | bits::SH_INNER;

    const fn index(memory: MemoryType) -> u64 {
        (memory as u64) << bits::ATTR_INDEX.trailing_zeros()
    }

    /// Kernel data: readable and writable, never executable. Created young and dirty.
    pub const fn kernel_data(memory: MemoryType) -> Self {
        Self(Self::KERNEL | bits::WRITE | bits::PXN | Self::index(memory))
    }

    /// Kernel constants: readable only.
    pub const fn kernel_rodata(memory: MemoryType) -> Self {
        Self(Self::KERNEL | bits::RDONLY | bits::PXN | Self::index(memory))
    }

    /// Kernel text: readable and executable.
    pub const fn kernel_text(memory: MemoryType) -> Self {
        Self(Self::KERNEL | bits::RDONLY | Self::index(memory))
    }

    /// Device registers: nGnRE, readable and writable, never executable.
    pub const fn device() -> Self {
        Self::kernel_data(MemoryType::DeviceNGnRE)
    }

    /// These attributes, marked as pages of a vmalloc area: their owner may change permissions.
    #[must_use]
    pub const fn vm_alloc(self) -> Self {
        Self(self.0 | bits::VM_ALLOC)
    }

    /// These attributes, marked as pages of an area that does not own its frames: their owner may change permissions,
    /// but nothing becomes executable.
    #[must_use]
    pub const fn vm_map(self) -> Self {
        Self(self.0 | bits::VM_MAP)
    }

    /// These attributes with the memory type at `index` of MAIR_EL1, 0 to 7: for a kernel with another than [`MAIR`].
    #[must_use]
    pub const fn with_memory_index(self, index: u8) -> Self {
        assert!(index < 8, "MAIR_EL1 has eight attributes");
        Self(self.0 & !bits::ATTR_INDEX | (index as u64) << bits::ATTR_INDEX.trailing_zeros())
    }

    /// The bits that the leaf carries, VALID among them, without address and type.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether EL1 may execute through it.
    pub const fn is_executable(self) -> bool {
        self.0 & bits::PXN == 0
    }

    /// Whether it is for a tree of EL0's: its entries belong to an ASID. Then EL1 executes nothing below its tables,
    /// else EL0 does not.
    pub const fn is_user(self) -> bool {
        self.0 & bits::NG != 0
    }
}

#[cfg(test)]
mod tests {
    use super::{Attributes, Descriptor, Kind, LevelEntries, MemoryType, bits};
    use crate::addr::PhysAddr;

    /// Written down a second time, from the tables of the Arm ARM (D8.3.1, D8.3.2) rather than from the declaration
    /// above.
    #[test]
    fn fields_are_where_the_architecture_has_them() {
        let expected = [
            (bits::VALID, 0),
            (bits::TABLE, 1),
            (bits::USER, 6),
            (bits::RDONLY, 7),
            (bits::AF, 10),
            (bits::NG, 11),
            (bits::GP, 50),
            (bits::WRITE, 51),
            (bits::CONTIGUOUS, 52),
            (bits::PXN, 53),
            (bits::UXN, 54),
            (bits::PXNTABLE, 59),
            (bits::UXNTABLE, 60),
        ];
        for (mask, position) in expected {
            assert_eq!(mask, 1 << position);
        }
        assert_eq!(bits::ADDRESS, 0x0000_ffff_ffff_f000);
        // A word as a boot loader's author would write it: Normal at index 3, inner shareable, young, DBM, PXN, UXN.
        let page = Descriptor::page(PhysAddr(0x4020_0000), Attributes::kernel_data(MemoryType::NormalTagged));
        assert_eq!(page.0, 0x0068_0000_4020_070f);
        assert_eq!(Descriptor::kernel_table(PhysAddr(0x4020_1000), true).0, 0x1800_0000_4020_1003);
    }

    #[test]
    fn attributes_are_never_writable_and_executable() {
        let memory = MemoryType::Normal;
        for attributes in [
            Attributes::kernel_data(memory),
            Attributes::kernel_rodata(memory),
            Attributes::kernel_text(memory),
            Attributes::device(),
        ] {
            let leaf = Descriptor::page(PhysAddr(0), attributes);
            assert!(leaf.is_valid() && !(leaf.is_writable() && leaf.is_executable()), "{attributes:?}");
            assert!(leaf.0 & bits::UXN != 0, "EL0 would execute the kernel's {attributes:?}");
        }
    }

    #[test]
    fn an_entry_is_what_its_level_makes_of_it() {
        let levels = [LevelEntries::Tables, LevelEntries::TablesAndBlocks, LevelEntries::Pages];
        let kinds = |value| levels.map(|entries| Descriptor(value).kind(entries));
        assert_eq!(kinds(0b00), [Kind::None; 3]);
        assert_eq!(kinds(0b10), [Kind::None; 3]);
        assert_eq!(kinds(0b01), [Kind::None, Kind::Leaf, Kind::None], "0b01 is reserved where no block is legal");
        assert_eq!(kinds(0b11), [Kind::Table, Kind::Table, Kind::Leaf]);
        assert_eq!(kinds(bits::PRESENT_INVALID), [Kind::None, Kind::Leaf, Kind::Leaf]);
        assert_eq!(kinds(bits::PRESENT_INVALID | bits::TABLE), [Kind::None, Kind::Leaf, Kind::Leaf]);
    }
}
