//! Stream table entries: what becomes of the transactions of a stream (IHI 0070, 5.2).
//!
//! Three kinds are made: abort (transactions are refused, silently), bypass (they pass untranslated) and translate (by
//! a context descriptor). Stage 2 is not made; the bits that count in it are known all the same, since an entry may
//! have been written by an earlier user of the SMMU.

use core::fmt;

use granule_arch::addr::PhysAddr;
use tock_registers::LocalRegisterCopy;

use crate::hitless::{Entry, WORDS, Words, in_place};

mod fields {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]

    use tock_registers::register_bitfields;

    register_bitfields! {u64,
        /// Word 0 of a stream table entry.
        pub STE0 [
            /// 0: the entry is invalid, its transactions end in C_BAD_STE.
            VALID OFFSET(0) NUMBITS(1) [],
            /// The treatment of the stream.
            CONFIG OFFSET(1) NUMBITS(3) [
                Abort = 0b000,
                Bypass = 0b100,
                Stage1 = 0b101,
                Stage2 = 0b110,
                Nested = 0b111
            ],
            /// Format of the table of context descriptors: 0 is linear.
            S1_FORMAT OFFSET(4) NUMBITS(2) [],
            /// Where the context descriptors are, in units of 64 bytes.
            S1_CONTEXT OFFSET(6) NUMBITS(46) [],
            /// log2 of their number; 0: one, and no substreams.
            S1_CD_MAX OFFSET(59) NUMBITS(5) []
        ],
        /// Word 1 of a stream table entry.
        pub STE1 [
            /// The treatment of a transaction without a substream where there are substreams.
            S1_DSS OFFSET(0) NUMBITS(2) [Terminate = 0b00, Bypass = 0b01, Substream0 = 0b10],
            /// How context descriptors are read: inner cacheability.
            S1_INNER OFFSET(2) NUMBITS(2) [NonCacheable = 0b00, WriteBack = 0b01],
            /// Outer cacheability.
            S1_OUTER OFFSET(4) NUMBITS(2) [NonCacheable = 0b00, WriteBack = 0b01],
            /// Shareability.
            S1_SHARE OFFSET(6) NUMBITS(2) [NonShareable = 0b00, OuterShareable = 0b10, InnerShareable = 0b11],
            /// Hardware use of bits of stage 2 leaves.
            S2_HWU OFFSET(8) NUMBITS(4) [],
            /// Destructive reads are allowed.
            DRE OFFSET(12) NUMBITS(1) [],
            /// The entry is one of a group that is alike: a hint for the SMMU's cache.
            CONT OFFSET(13) NUMBITS(4) [],
            /// Directed cache prefetches are allowed.
            DCP OFFSET(17) NUMBITS(1) [],
            /// Page responses carry a PASID.
            PPAR OFFSET(18) NUMBITS(1) [],
            /// Events of the stream that are alike may become one.
            MEV OFFSET(19) NUMBITS(1) [],
            /// Stage 2 cacheability overrides stage 1's.
            S2_FWB OFFSET(25) NUMBITS(1) [],
            /// Partitioning by the context descriptor.
            S1_MPAM OFFSET(26) NUMBITS(1) [],
            /// A context descriptor may not ask for transactions to stall.
            S1_STALLD OFFSET(27) NUMBITS(1) [],
            /// Address translation services.
            EATS OFFSET(28) NUMBITS(2) [],
            /// The exception level whose translations these are in the SMMU's TLB.
            STRW OFFSET(30) NUMBITS(2) [NsEl1 = 0b00, El2 = 0b10],
            /// Memory type in place of the transaction's, with MTCFG.
            MEM_ATTR OFFSET(32) NUMBITS(4) [],
            /// Whether MEM_ATTR counts.
            MTCFG OFFSET(36) NUMBITS(1) [],
            /// Allocation hints.
            ALLOCCFG OFFSET(37) NUMBITS(4) [],
            /// Shareability.
            SHCFG OFFSET(44) NUMBITS(2) [
                NonShareable = 0b00,
                Incoming = 0b01,
                OuterShareable = 0b10,
                InnerShareable = 0b11
            ],
            /// Security; not used by non-secure streams.
            NSCFG OFFSET(46) NUMBITS(2) [],
            /// Privilege of the transactions.
            PRIVCFG OFFSET(48) NUMBITS(2) [Incoming = 0b00, Unprivileged = 0b10, Privileged = 0b11],
            /// Whether they fetch instructions.
            INSTCFG OFFSET(50) NUMBITS(2) [Incoming = 0b00, Data = 0b10, Instruction = 0b11]
        ],
        /// Word 2 of a stream table entry.
        pub STE2 [
            /// The virtual machine: in the tag of stage 1 translations too, where stage 2 is implemented.
            S2_VMID OFFSET(0) NUMBITS(16) []
        ]
    }
}

pub use fields::{STE0, STE1, STE2};

/// How privileged the transactions of a stream are in the eyes of the tables.
///
/// Anything but [`Privilege::Incoming`] needs an SMMU that can override it (IDR1.ATTR_PERMS_OVR) and is not looked at
/// elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Privilege {
    /// As in the transaction; PCIe functions without PASIDs are unprivileged.
    #[default]
    Incoming,
    /// Pages of EL1 can be reached, pages of EL0 too.
    Privileged,
}

/// The properties that entries of one SMMU share.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryFormat {
    /// The SMMU reads memory coherently with the CPUs' caches ([`Features::coherent`](crate::Features)).
    pub coherent: bool,
    /// The SMMU can stall transactions (IDR0.STALL_MODEL is 0b00): it must never, for this driver resumes none.
    pub can_stall: bool,
}

/// A stream table entry.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct StreamTableEntry(pub Words);

impl StreamTableEntry {
    /// Bytes of an entry, and its alignment.
    pub const BYTES: usize = WORDS * 8;

    /// Transactions are refused; no event is recorded.
    pub const ABORT: Self = Self([Self::VALID, 0, 0, 0, 0, 0, 0, 0]);

    /// Transactions pass untranslated, with the attributes that they have.
    pub const BYPASS: Self =
        Self([Self::VALID | STE0::CONFIG::Bypass.value, STE1::SHCFG::Incoming.value, 0, 0, 0, 0, 0, 0]);

    /// Transactions are translated by the context descriptor at `context`, a multiple of 64.
    pub fn translate(context: PhysAddr, privilege: Privilege, format: EntryFormat) -> Self {
        debug_assert!(context.is_aligned(64), "a context descriptor is aligned to its size");
        let mut first = LocalRegisterCopy::<u64, STE0::Register>::new(0);
        // One context descriptor, no table of them: the field is 0 also because this driver gives out no substreams.
        first.write(STE0::VALID::SET + STE0::CONFIG::Stage1 + STE0::S1_CONTEXT.val(context.0 >> 6));
        let mut second = LocalRegisterCopy::<u64, STE1::Register>::new(0);
        second.write(match format.coherent {
            true => STE1::S1_INNER::WriteBack + STE1::S1_OUTER::WriteBack + STE1::S1_SHARE::InnerShareable,
            // Memory that is not cacheable counts as outer shareable, whatever the field has.
            false => STE1::S1_INNER::NonCacheable + STE1::S1_OUTER::NonCacheable + STE1::S1_SHARE::OuterShareable,
        });
        second.modify(STE1::STRW::NsEl1);
        // Where nothing can stall the bit is reserved, and some SMMUs take the entry for illegal.
        second.modify(STE1::S1_STALLD.val(format.can_stall.into()));
        second.modify(match privilege {
            Privilege::Incoming => STE1::PRIVCFG::Incoming,
            Privilege::Privileged => STE1::PRIVCFG::Privileged,
        });
        Self([first.get(), second.get(), 0, 0, 0, 0, 0, 0])
    }

    /// Where the context descriptor is, if transactions are translated by one.
    pub fn context(&self) -> Option<PhysAddr> {
        let translated =
            matches!(Self::config(&self.0), Some(STE0::CONFIG::Value::Stage1 | STE0::CONFIG::Value::Nested));
        (translated && STE0::VALID.is_set(self.0[0])).then(|| PhysAddr(STE0::S1_CONTEXT.read(self.0[0]) << 6))
    }

    fn config(words: &Words) -> Option<STE0::CONFIG::Value> {
        LocalRegisterCopy::<u64, STE0::Register>::new(words[0]).read_as_enum(STE0::CONFIG)
    }
}

impl Entry for StreamTableEntry {
    const VALID: u64 = in_place(STE0::VALID);

    fn words(&self) -> &Words {
        &self.0
    }

    fn used(words: &Words) -> Words {
        let mut used = [0; WORDS];
        used[0] = Self::VALID;
        if words[0] & Self::VALID == 0 {
            return used;
        }
        used[0] |= in_place(STE0::CONFIG);
        let (stage1, stage2) = match Self::config(words) {
            Some(STE0::CONFIG::Value::Bypass) => {
                used[1] |= ATTRIBUTES;
                return used;
            }
            Some(STE0::CONFIG::Value::Stage1) => (true, false),
            Some(STE0::CONFIG::Value::Stage2) => (false, true),
            Some(STE0::CONFIG::Value::Nested) => (true, true),
            // The reserved values abort too.
            Some(STE0::CONFIG::Value::Abort) | None => return used,
        };
        used[1] |= PERMISSIONS | in_place(STE1::EATS) | in_place(STE1::MEV);
        // Where stage 2 is implemented the number of the machine is in the tags of stage 1 translations too.
        used[2] |= in_place(STE2::S2_VMID);
        if stage1 {
            used[0] |= in_place(STE0::S1_FORMAT) | in_place(STE0::S1_CONTEXT) | in_place(STE0::S1_CD_MAX);
            used[1] |= CONTEXTS;
            // Transactions that bypass stage 1 have the attributes of bypass.
            if STE1::S1_DSS.read(words[1]) == STE1::S1_DSS::Bypass.value {
                used[1] |= ATTRIBUTES;
            }
        }
        if stage2 {
            used[1] |= ATTRIBUTES | in_place(STE1::S2_FWB) | in_place(STE1::S2_HWU);
            used[2] = u64::MAX;
            used[3] = u64::MAX;
        }
        used
    }
}

impl fmt::Display for StreamTableEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0[0] & Self::VALID == 0 {
            return f.write_str("invalid");
        }
        let context = STE0::S1_CONTEXT.read(self.0[0]) << 6;
        match Self::config(&self.0) {
            Some(STE0::CONFIG::Value::Abort) => f.write_str("abort"),
            Some(STE0::CONFIG::Value::Bypass) => f.write_str("bypass"),
            Some(STE0::CONFIG::Value::Stage1) => {
                write!(f, "translate, context {context:#x}")?;
                let privileged = STE1::PRIVCFG.read(self.0[1]) == STE1::PRIVCFG::Privileged.value;
                if privileged { f.write_str(", privileged") } else { Ok(()) }
            }
            Some(STE0::CONFIG::Value::Stage2) => f.write_str("stage 2"),
            Some(STE0::CONFIG::Value::Nested) => write!(f, "nested, context {context:#x}"),
            None => write!(f, "reserved configuration {}", STE0::CONFIG.read(self.0[0])),
        }
    }
}

impl fmt::Debug for StreamTableEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} {:x?}", self.0)
    }
}

/// The fields that count wherever transactions go through with a permission check.
const PERMISSIONS: u64 = in_place(STE1::PRIVCFG) | in_place(STE1::INSTCFG);

/// The fields that count where transactions keep attributes of their own.
const ATTRIBUTES: u64 = PERMISSIONS
    | in_place(STE1::MEM_ATTR)
    | in_place(STE1::MTCFG)
    | in_place(STE1::ALLOCCFG)
    | in_place(STE1::SHCFG)
    | in_place(STE1::NSCFG)
    | in_place(STE1::DRE)
    | in_place(STE1::DCP);

/// How context descriptors are found and read, and whose translations they give.
const CONTEXTS: u64 = in_place(STE1::S1_DSS)
    | in_place(STE1::S1_INNER)
    | in_place(STE1::S1_OUTER)
    | in_place(STE1::S1_SHARE)
    | in_place(STE1::S1_MPAM)
    | in_place(STE1::S1_STALLD)
    | in_place(STE1::PPAR)
    | in_place(STE1::STRW);

#[cfg(test)]
mod tests {
    use super::{PhysAddr, StreamTableEntry};

    /// By the numbers of the specification (5.2, STE.Config): stage 1 alone, or with stage 2, and V.
    #[test]
    fn only_a_valid_entry_with_stage_1_has_a_context() {
        const CONTEXT: u64 = 0x12_3456_7940;
        for config in 0..8_u64 {
            for valid in [0, 1] {
                let entry = StreamTableEntry([valid | config << 1 | CONTEXT, 0, 0, 0, 0, 0, 0, 0]);
                let has_one = valid == 1 && matches!(config, 0b101 | 0b111);
                assert_eq!(entry.context(), has_one.then_some(PhysAddr(CONTEXT)), "V {valid}, Config {config:#b}");
            }
        }
    }
}
