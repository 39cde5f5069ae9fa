//! Context descriptors: the tables that a stream's addresses are translated by (IHI 0070, 5.4).
//!
//! One descriptor serves kernel-made tables (a DMA domain) and the table of a process (shared virtual addressing)
//! alike: the lower half of the address space by TTB0, nothing by TTB1. Faults are recorded and the transaction
//! terminated, never stalled; flags in leaves are left to software, so a leaf that is not young faults.

use core::fmt;

use granule_arch::addr::PhysAddr;
use granule_arch::tlbi::Granule;
use tock_registers::LocalRegisterCopy;

use crate::hitless::{Entry, WORDS, Words, in_place};

mod fields {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]

    use tock_registers::register_bitfields;

    register_bitfields! {u64,
        /// Word 0 of a context descriptor.
        pub CD0 [
            /// 64 less the bits of an address below TTB0.
            T0SZ OFFSET(0) NUMBITS(6) [],
            /// Granule of the tables at TTB0.
            TG0 OFFSET(6) NUMBITS(2) [Size4K = 0b00, Size64K = 0b01, Size16K = 0b10],
            /// How tables at TTB0 are read: inner cacheability.
            IR0 OFFSET(8) NUMBITS(2) [NonCacheable = 0b00, WriteBack = 0b01],
            /// Outer cacheability.
            OR0 OFFSET(10) NUMBITS(2) [NonCacheable = 0b00, WriteBack = 0b01],
            /// Shareability.
            SH0 OFFSET(12) NUMBITS(2) [NonShareable = 0b00, OuterShareable = 0b10, InnerShareable = 0b11],
            /// Nothing is translated by TTB0: addresses there fault.
            EPD0 OFFSET(14) NUMBITS(1) [],
            /// Tables are big-endian.
            ENDI OFFSET(15) NUMBITS(1) [],
            /// 64 less the bits of an address above TTB1, and how tables there are read.
            TTB1_FORMAT OFFSET(16) NUMBITS(14) [],
            /// Nothing is translated by TTB1.
            EPD1 OFFSET(30) NUMBITS(1) [],
            /// 0: the descriptor is invalid, transactions end in C_BAD_CD.
            VALID OFFSET(31) NUMBITS(1) [],
            /// Bits of an output address.
            IPS OFFSET(32) NUMBITS(3) [],
            /// The access flag is not looked at.
            AFFD OFFSET(35) NUMBITS(1) [],
            /// Writable is not executable.
            WXN OFFSET(36) NUMBITS(1) [],
            /// Writable by EL0 is not executable by EL1.
            UWXN OFFSET(37) NUMBITS(1) [],
            /// The top byte of an address is ignored: bit 0 for TTB0, bit 1 for TTB1.
            TBI OFFSET(38) NUMBITS(2) [],
            /// Privileged transactions may not touch pages of EL0.
            PAN OFFSET(40) NUMBITS(1) [],
            /// Tables are those of AArch64.
            AA64 OFFSET(41) NUMBITS(1) [],
            /// The SMMU marks leaves dirty.
            HD OFFSET(42) NUMBITS(1) [],
            /// The SMMU marks leaves young.
            HA OFFSET(43) NUMBITS(1) [],
            /// Faulting transactions stall.
            S OFFSET(44) NUMBITS(1) [],
            /// Faults are recorded as events.
            R OFFSET(45) NUMBITS(1) [],
            /// A terminated transaction is aborted; it reads zero else.
            A OFFSET(46) NUMBITS(1) [],
            /// The ASID is the SMMU's own: broadcast invalidations of CPUs need not reach it.
            ASET OFFSET(47) NUMBITS(1) [],
            /// The tag of the translations.
            ASID OFFSET(48) NUMBITS(16) []
        ],
        /// Word 1 of a context descriptor.
        pub CD1 [
            /// Hierarchical attributes of tables are ignored.
            HAD0 OFFSET(1) NUMBITS(1) [],
            /// Where the first table is, in units of 16 bytes.
            TTB0 OFFSET(4) NUMBITS(48) []
        ]
    }
}

pub use fields::{CD0, CD1};

/// Bits of the largest address that a translation may give, as IPS counts them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum OutputSize {
    /// 4 GiB.
    Bits32 = 0,
    /// 64 GiB.
    Bits36 = 1,
    /// 1 TiB.
    Bits40 = 2,
    /// 4 TiB.
    Bits42 = 3,
    /// 16 TiB.
    Bits44 = 4,
    /// 256 TiB.
    Bits48 = 5,
    /// 4 PiB.
    Bits52 = 6,
}

impl OutputSize {
    const ALL: [Self; 7] =
        [Self::Bits32, Self::Bits36, Self::Bits40, Self::Bits42, Self::Bits44, Self::Bits48, Self::Bits52];

    /// The size that a field has, IDR5.OAS or IPS; `None` for a reserved value.
    pub fn from_field(field: u32) -> Option<Self> {
        Self::ALL.get(field as usize).copied()
    }

    /// The largest of at most `bits` bits that leaves in tables of 4 KiB pages can have, the smallest if there is none.
    pub fn of_4k_pages(bits: u8) -> Self {
        let fits = |size: &Self| size.bits() <= bits && *size != Self::Bits52;
        Self::ALL.into_iter().rev().find(fits).unwrap_or(Self::Bits32)
    }

    /// How many bits.
    pub const fn bits(self) -> u8 {
        [32, 36, 40, 42, 44, 48, 52][self as usize]
    }
}

/// The tables that translate addresses of a stream, and their format.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The first table.
    pub root: PhysAddr,
    /// Bits of an address: those above must be zero.
    pub address_bits: u8,
    /// Granule of the tables.
    pub granule: Granule,
    /// The largest output address, at most what the SMMU can put out (IDR5.OAS).
    pub output: OutputSize,
    /// The memory types that leaves name, as MAIR_EL1 has them: one with tags is plain Normal for an SMMU.
    pub memory_types: u64,
    /// The tag of the translations in the SMMU's TLB, from its own allocator and from nothing else.
    pub asid: u16,
    /// The SMMU reads tables coherently with the CPUs' caches ([`Features::coherent`](crate::Features)).
    pub coherent: bool,
}

/// MAIR without the attribute Normal-Tagged (0xf0), which is reserved in a context: an SMMU knows no tags (SMMU 5.4).
const fn without_tags(memory_types: u64) -> u64 {
    const TAGGED: u8 = 0xf0;
    const NORMAL: u8 = 0xff;
    let mut attributes = memory_types.to_le_bytes();
    let mut index = 0;
    while index < attributes.len() {
        if attributes[index] == TAGGED {
            attributes[index] = NORMAL;
        }
        index += 1;
    }
    u64::from_le_bytes(attributes)
}

/// A context descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct ContextDescriptor(pub Words);

impl ContextDescriptor {
    /// Bytes of a descriptor, and its alignment.
    pub const BYTES: usize = WORDS * 8;

    /// Transactions are translated by `translation`.
    pub fn new(translation: &Translation) -> Self {
        debug_assert!((16..=52).contains(&translation.address_bits), "an address has 16 to 52 bits");
        let mut first = LocalRegisterCopy::<u64, CD0::Register>::new(0);
        first.write(match translation.granule {
            Granule::Size4K => CD0::TG0::Size4K,
            Granule::Size16K => CD0::TG0::Size16K,
            Granule::Size64K => CD0::TG0::Size64K,
        });
        first.modify(match translation.coherent {
            true => CD0::IR0::WriteBack + CD0::OR0::WriteBack + CD0::SH0::InnerShareable,
            false => CD0::IR0::NonCacheable + CD0::OR0::NonCacheable + CD0::SH0::OuterShareable,
        });
        first.modify(
            CD0::T0SZ.val(64 - u64::from(translation.address_bits))
                + CD0::EPD1::SET
                + CD0::IPS.val(translation.output as u64)
                + CD0::AA64::SET
                + CD0::R::SET
                // Some SMMUs can only abort (IDR0.TERM_MODEL), and take a descriptor without it for illegal.
                + CD0::A::SET
                + CD0::ASET::SET
                + CD0::ASID.val(translation.asid.into())
                + CD0::VALID::SET,
        );
        let second = CD1::TTB0.val(translation.root.0 >> 4).value;
        Self([first.get(), second, 0, without_tags(translation.memory_types), 0, 0, 0, 0])
    }

    /// The descriptor that translates nothing any more, and records no event: a process that exits leaves it behind
    /// for devices that are still at work.
    ///
    /// It stays valid. An invalid one would answer each transaction with C_BAD_CD, which a device that does not stop
    /// makes a storm of; and the way here is hitless.
    #[must_use]
    pub fn disabled(&self) -> Self {
        let mut first = LocalRegisterCopy::<u64, CD0::Register>::new(self.0[0]);
        // Shape and place of the tables count no more; what is left of them might as well be nothing.
        first.modify(CD0::T0SZ::CLEAR + CD0::TG0::CLEAR + CD0::IR0::CLEAR + CD0::OR0::CLEAR + CD0::SH0::CLEAR);
        first.modify(CD0::EPD0::SET + CD0::R::CLEAR + CD0::S::CLEAR);
        let mut words = self.0;
        words[0] = first.get();
        words[1] &= !in_place(CD1::TTB0);
        Self(words)
    }

    /// The tag of its translations.
    pub fn asid(&self) -> u16 {
        CD0::ASID.read(self.0[0]) as u16
    }
}

impl Entry for ContextDescriptor {
    const VALID: u64 = in_place(CD0::VALID);

    fn used(words: &Words) -> Words {
        if words[0] & Self::VALID == 0 {
            return [Self::VALID, 0, 0, 0, 0, 0, 0, 0];
        }
        let mut used = [u64::MAX; WORDS];
        if CD0::EPD0.is_set(words[0]) {
            used[0] &= !TTB0_FORMAT;
            used[1] &= !in_place(CD1::TTB0);
        }
        if CD0::EPD1.is_set(words[0]) {
            used[0] &= !in_place(CD0::TTB1_FORMAT);
            used[2] = 0;
        }
        used
    }

    fn words(&self) -> &Words {
        &self.0
    }
}

impl fmt::Display for ContextDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.0[0];
        if !CD0::VALID.is_set(first) {
            return f.write_str("invalid");
        }
        write!(f, "asid {}", self.asid())?;
        if CD0::EPD0.is_set(first) {
            return f.write_str(", nothing is translated");
        }
        let granule = match CD0::TG0.read(first) {
            0b00 => "4 KiB",
            0b01 => "64 KiB",
            0b10 => "16 KiB",
            _ => "reserved granule",
        };
        let root = CD1::TTB0.read(self.0[1]) << 4;
        write!(f, ", {} bits by {granule}, tables at {root:#x}", 64 - CD0::T0SZ.read(first))
    }
}

impl fmt::Debug for ContextDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {:x?}", self.0)
    }
}

/// The fields that count only where TTB0 translates, beside TTB0 itself.
const TTB0_FORMAT: u64 =
    in_place(CD0::T0SZ) | in_place(CD0::TG0) | in_place(CD0::IR0) | in_place(CD0::OR0) | in_place(CD0::SH0);

#[cfg(test)]
mod tests {
    use super::OutputSize;

    #[test]
    fn leaves_in_tables_of_4_kib_pages_have_48_bits_at_most() {
        let bits = |bits| OutputSize::of_4k_pages(bits).bits();
        assert_eq!([32, 36, 40, 42, 44, 48, 52].map(bits), [32, 36, 40, 42, 44, 48, 48]);
        assert_eq!([0, 31, 33, 41, 47, 51, 64].map(bits), [32, 32, 32, 40, 44, 48, 48]);
    }
}
