//! The commands of the command queue (IHI 0070, chapter 4): 16 bytes each, here as two words.
//!
//! Only commands of the Non-secure world that act on stage 1, on streams, or on everything are made. Any can be
//! printed, because what an error report shows is whatever was found in the queue.

use core::fmt;

use granule_arch::addr::{PhysAddr, VirtAddr};
use granule_arch::tlbi::{Granule, LevelHint};
use tock_registers::LocalRegisterCopy;
use tock_registers::fields::FieldValue;

mod fields {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]

    use tock_registers::register_bitfields;

    register_bitfields! {u64,
        /// The lower word. Which fields a command has is its opcode's matter, and some share their place.
        pub COMMAND0 [
            OPCODE OFFSET(0) NUMBITS(8) [
                PrefetchConfig = 0x01,
                PrefetchAddress = 0x02,
                CfgiSte = 0x03,
                CfgiSteRange = 0x04,
                CfgiCd = 0x05,
                CfgiCdAll = 0x06,
                TlbiNhAll = 0x10,
                TlbiNhAsid = 0x11,
                TlbiNhVa = 0x12,
                TlbiNhVaa = 0x13,
                TlbiS12Vmall = 0x28,
                TlbiS2Ipa = 0x2a,
                TlbiNsnhAll = 0x30,
                AtcInv = 0x40,
                PriResponse = 0x41,
                Resume = 0x44,
                StallTerminate = 0x45,
                Sync = 0x46
            ],
            /// There is a substream number.
            SSV OFFSET(11) NUMBITS(1) [],
            /// CMD_RESUME: what becomes of the transaction.
            ACTION OFFSET(12) NUMBITS(2) [
                Terminate = 0,
                Retry = 1,
                Abort = 2
            ],
            /// CMD_SYNC: how its completion is signalled, besides by CMDQ_CONS.
            CS OFFSET(12) NUMBITS(2) [
                None = 0,
                Irq = 1,
                Sev = 2
            ],
            /// Substream.
            SUBSTREAM OFFSET(12) NUMBITS(20) [],
            /// CMD_TLBI_*VA*: with TG, `(NUM + 1) << SCALE` pages.
            NUM OFFSET(12) NUMBITS(5) [],
            SCALE OFFSET(20) NUMBITS(5) [],
            /// CMD_SYNC: shareability of the MSI write.
            MSH OFFSET(22) NUMBITS(2) [
                NonShareable = 0b00,
                OuterShareable = 0b10,
                InnerShareable = 0b11
            ],
            /// CMD_SYNC: memory type of the MSI write; 0xf is Normal Write-Back, 1 is Device-nGnRE.
            MSIATTR OFFSET(24) NUMBITS(4) [],
            STREAM OFFSET(32) NUMBITS(32) [],
            /// CMD_SYNC: what the MSI write stores.
            MSIDATA OFFSET(32) NUMBITS(32) [],
            VMID OFFSET(32) NUMBITS(16) [],
            ASID OFFSET(48) NUMBITS(16) []
        ],
        /// The upper word.
        pub COMMAND1 [
            /// The last level only: not the tables that lead there, or not the descriptor of the level above.
            LEAF OFFSET(0) NUMBITS(1) [],
            /// CMD_CFGI_STE_RANGE: `2^(RANGE + 1)` streams; 31 means all.
            RANGE OFFSET(0) NUMBITS(5) [],
            /// CMD_ATC_INV: `2^SIZE` pages of 4 KiB.
            SIZE OFFSET(0) NUMBITS(6) [],
            /// CMD_RESUME: the tag of the event.
            STAG OFFSET(0) NUMBITS(16) [],
            /// The leaf's level; 0 where it is not known.
            TTL OFFSET(8) NUMBITS(2) [],
            /// The pages' size; 0 means one address, and no NUM, SCALE or TTL.
            TG OFFSET(10) NUMBITS(2) [],
            /// Bits 63:12 of an address.
            ADDRESS OFFSET(12) NUMBITS(52) [],
            /// CMD_SYNC: bits 51:2 of where the MSI write goes.
            MSIADDRESS OFFSET(2) NUMBITS(50) []
        ]
    }
}
pub use fields::{COMMAND0, COMMAND1};

/// Whether what leads to the last level is forgotten too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Entries of the last level alone have changed.
    Leaves,
    /// A table was unlinked, or a descriptor of a higher level has changed, as well.
    Tables,
}

impl Scope {
    const fn leaf(self) -> u64 {
        match self {
            Self::Leaves => 1,
            Self::Tables => 0,
        }
    }
}

/// Pages that one command covers: `(num + 1) << scale`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    num: u8,
    scale: u8,
}

impl Span {
    /// One page.
    pub const ONE: Self = Self { num: 0, scale: 0 };

    /// The largest span that is not longer than `pages`, which is not 0 and below 2^36.
    #[inline(always)]
    pub const fn largest(pages: u64) -> Self {
        debug_assert!(pages != 0 && pages < 1 << 36);
        // Its five highest bits.
        let scale = (64 - pages.leading_zeros()).saturating_sub(5);
        Self { num: ((pages >> scale) - 1) as u8, scale: scale as u8 }
    }

    /// The span of exactly `pages`, if there is one.
    #[inline(always)]
    pub const fn exact(pages: u64) -> Option<Self> {
        let span = Self::largest(pages);
        if span.pages() == pages { Some(span) } else { None }
    }

    /// NUM, 0 to 31.
    pub const fn num(self) -> u8 {
        self.num
    }

    /// SCALE, 0 to 31.
    pub const fn scale(self) -> u8 {
        self.scale
    }

    /// Pages covered.
    #[inline(always)]
    pub const fn pages(self) -> u64 {
        (self.num as u64 + 1) << self.scale
    }
}

/// One command. A value proves that the SMMU may execute it: no safe one has the SMMU write to memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Command(pub(crate) [u64; 2]);

/// A field of the lower word.
type Low = FieldValue<u64, COMMAND0::Register>;
/// A field of the upper word.
type High = FieldValue<u64, COMMAND1::Register>;

impl Command {
    /// CMD_SYNC: complete when everything before it is; seen by CMDQ_CONS alone.
    pub const SYNC: Self = Self([COMMAND0::OPCODE::Sync.value, 0]);
    /// CMD_TLBI_NSNH_ALL: every translation of the Non-secure world, hypervisor's ones excluded.
    pub const TLBI_NSNH_ALL: Self = Self([COMMAND0::OPCODE::TlbiNsnhAll.value, 0]);
    /// CMD_CFGI_ALL: everything cached of STEs and CDs.
    pub const CFGI_ALL: Self = Self([COMMAND0::OPCODE::CfgiSteRange.value, 31]);

    /// The command of these words.
    ///
    /// # Safety
    /// 1. A CMD_SYNC with CS of 1 keeps the contract of [`Self::sync_with_store`].
    /// 2. Any other command is one of the Non-secure world that acts on caches of the SMMU and of devices alone, or none
    ///    that the SMMU knows.
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub const unsafe fn from_words(words: [u64; 2]) -> Self {
        Self(words)
    }

    /// Its words, as the queue has them.
    pub const fn words(self) -> [u64; 2] {
        self.0
    }

    #[inline(always)]
    fn new(low: Low, high: High) -> Self {
        Self([low.value, high.value])
    }

    #[inline(always)]
    fn of(low: Low) -> Self {
        Self([low.value, 0])
    }

    /// CMD_SYNC that also sends an event to the CPUs, as SEV does.
    pub fn sync_with_event() -> Self {
        Self::of(COMMAND0::OPCODE::Sync + COMMAND0::CS::Sev)
    }

    /// CMD_SYNC that also stores `data` at `at`, a multiple of 4, in Normal Write-Back memory.
    ///
    /// # Safety
    /// For as long as the value or a copy of it may be issued, and until the SMMU has completed it:
    /// 1. the four bytes at the physical address `at` are the caller's, as an atomic word that the SMMU may write;
    /// 2. `at` is Normal memory that is Inner Shareable Write-Back for the CPUs.
    #[allow(unsafe_code, reason = "a contract for the caller; nothing unsafe is done here")]
    pub unsafe fn sync_with_store(at: PhysAddr, data: u32) -> Self {
        let how = COMMAND0::CS::Irq + COMMAND0::MSH::InnerShareable + COMMAND0::MSIATTR.val(0xf);
        Self::new(
            COMMAND0::OPCODE::Sync + how + COMMAND0::MSIDATA.val(u64::from(data)),
            COMMAND1::MSIADDRESS.val(at.0 >> 2),
        )
    }

    /// CMD_CFGI_STE: what is cached of `stream`'s STE, and of its CDs; with [`Scope::Tables`] the level-1 descriptor as
    /// well.
    pub fn cfgi_ste(stream: u32, scope: Scope) -> Self {
        Self::new(COMMAND0::OPCODE::CfgiSte + COMMAND0::STREAM.val(u64::from(stream)), COMMAND1::LEAF.val(scope.leaf()))
    }

    /// CMD_CFGI_CD: what is cached of one CD of `stream`.
    pub fn cfgi_cd(stream: u32, substream: u32, scope: Scope) -> Self {
        let which = COMMAND0::STREAM.val(u64::from(stream)) + COMMAND0::SUBSTREAM.val(u64::from(substream));
        Self::new(COMMAND0::OPCODE::CfgiCd + which, COMMAND1::LEAF.val(scope.leaf()))
    }

    /// CMD_CFGI_CD_ALL: what is cached of all CDs of `stream`.
    pub fn cfgi_cd_all(stream: u32) -> Self {
        Self::of(COMMAND0::OPCODE::CfgiCdAll + COMMAND0::STREAM.val(u64::from(stream)))
    }

    /// CMD_PREFETCH_CONFIG: `stream`'s STE may be fetched.
    pub fn prefetch_config(stream: u32) -> Self {
        Self::of(COMMAND0::OPCODE::PrefetchConfig + COMMAND0::STREAM.val(u64::from(stream)))
    }

    /// CMD_TLBI_NH_ALL: all ASIDs of `vmid`.
    pub fn tlbi_nh_all(vmid: u16) -> Self {
        Self::of(COMMAND0::OPCODE::TlbiNhAll + COMMAND0::VMID.val(u64::from(vmid)))
    }

    /// CMD_TLBI_NH_ASID: what is not global of `asid`, of VMID 0.
    #[inline(always)]
    pub fn tlbi_nh_asid(asid: u16) -> Self {
        Self::of(COMMAND0::OPCODE::TlbiNhAsid + COMMAND0::ASID.val(u64::from(asid)))
    }

    /// CMD_TLBI_NH_VA: what translates `address` in `asid`, of VMID 0.
    #[inline(always)]
    pub fn tlbi_nh_va(asid: u16, address: VirtAddr, scope: Scope) -> Self {
        Self::new(
            COMMAND0::OPCODE::TlbiNhVa + COMMAND0::ASID.val(u64::from(asid)),
            COMMAND1::ADDRESS.val(address.0 >> 12) + COMMAND1::LEAF.val(scope.leaf()),
        )
    }

    /// As [`Self::tlbi_nh_va`], for all pages of `span` from `address` on. Needs range invalidation (IDR3.RIL).
    #[inline(always)]
    pub fn tlbi_nh_va_range(
        asid: u16,
        address: VirtAddr,
        span: Span,
        granule: Granule,
        level: Option<LevelHint>,
        scope: Scope,
    ) -> Self {
        // One page without a hint is NUM, SCALE and TTL of 0. With a TG that is reserved, so it goes without.
        let granule = if span == Span::ONE && level.is_none() { 0 } else { granule as u64 };
        let pages = COMMAND0::NUM.val(u64::from(span.num)) + COMMAND0::SCALE.val(u64::from(span.scale));
        let ttl = level.map_or(0, |level| u64::from(level.level()));
        Self::new(
            COMMAND0::OPCODE::TlbiNhVa + COMMAND0::ASID.val(u64::from(asid)) + pages,
            COMMAND1::ADDRESS.val(address.0 >> 12)
                + COMMAND1::LEAF.val(scope.leaf())
                + COMMAND1::TG.val(granule)
                + COMMAND1::TTL.val(ttl),
        )
    }

    /// CMD_TLBI_NH_VAA: what translates `address` in any ASID of VMID 0.
    pub fn tlbi_nh_vaa(address: VirtAddr, scope: Scope) -> Self {
        Self::new(
            COMMAND0::OPCODE::TlbiNhVaa,
            COMMAND1::ADDRESS.val(address.0 >> 12) + COMMAND1::LEAF.val(scope.leaf()),
        )
    }

    /// CMD_TLBI_S12_VMALL: everything of `vmid`, both stages.
    pub fn tlbi_s12_vmall(vmid: u16) -> Self {
        Self::of(COMMAND0::OPCODE::TlbiS12Vmall + COMMAND0::VMID.val(u64::from(vmid)))
    }

    fn field(self, field: tock_registers::fields::Field<u64, COMMAND0::Register>) -> u64 {
        LocalRegisterCopy::<u64, COMMAND0::Register>::new(self.0[0]).read(field)
    }

    fn high(self, field: tock_registers::fields::Field<u64, COMMAND1::Register>) -> u64 {
        LocalRegisterCopy::<u64, COMMAND1::Register>::new(self.0[1]).read(field)
    }
}

/// Names of the opcodes, as the specification has them.
const NAMES: [(u8, &str); 18] = [
    (0x01, "CMD_PREFETCH_CONFIG"),
    (0x02, "CMD_PREFETCH_ADDR"),
    (0x03, "CMD_CFGI_STE"),
    (0x04, "CMD_CFGI_STE_RANGE"),
    (0x05, "CMD_CFGI_CD"),
    (0x06, "CMD_CFGI_CD_ALL"),
    (0x10, "CMD_TLBI_NH_ALL"),
    (0x11, "CMD_TLBI_NH_ASID"),
    (0x12, "CMD_TLBI_NH_VA"),
    (0x13, "CMD_TLBI_NH_VAA"),
    (0x28, "CMD_TLBI_S12_VMALL"),
    (0x2a, "CMD_TLBI_S2_IPA"),
    (0x30, "CMD_TLBI_NSNH_ALL"),
    (0x40, "CMD_ATC_INV"),
    (0x41, "CMD_PRI_RESP"),
    (0x44, "CMD_RESUME"),
    (0x45, "CMD_STALL_TERM"),
    (0x46, "CMD_SYNC"),
];

/// As an error report shows it: the name, the fields that its opcode has, and both words.
impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let opcode = self.field(COMMAND0::OPCODE) as u8;
        match NAMES.iter().find(|(code, _)| *code == opcode) {
            Some((_, name)) => f.write_str(name)?,
            None => write!(f, "no command, opcode {opcode:#04x}")?,
        }
        match opcode {
            0x01 | 0x03 | 0x06 => write!(f, " stream {:#x}", self.field(COMMAND0::STREAM))?,
            0x04 if self.high(COMMAND1::RANGE) == 31 => f.write_str(" all")?,
            0x04 => {
                let count = 1u64 << (self.high(COMMAND1::RANGE) + 1);
                write!(f, " {count} streams from {:#x}", self.field(COMMAND0::STREAM))?;
            }
            0x05 => {
                let (stream, substream) = (self.field(COMMAND0::STREAM), self.field(COMMAND0::SUBSTREAM));
                write!(f, " stream {stream:#x} substream {substream:#x}")?;
            }
            0x10 | 0x28 => write!(f, " vmid {}", self.field(COMMAND0::VMID))?,
            0x11 => write!(f, " asid {}", self.field(COMMAND0::ASID))?,
            0x12 | 0x13 => {
                if opcode == 0x12 {
                    write!(f, " asid {}", self.field(COMMAND0::ASID))?;
                }
                write!(f, " address {:#x}", self.high(COMMAND1::ADDRESS) << 12)?;
                let granule = self.high(COMMAND1::TG);
                if granule != 0 {
                    let pages = (self.field(COMMAND0::NUM) + 1) << self.field(COMMAND0::SCALE);
                    write!(f, " {pages} pages of {} KiB", 1u64 << (2 * granule))?;
                    match self.high(COMMAND1::TTL) {
                        0 => {}
                        level => write!(f, " level {level}")?,
                    }
                }
            }
            0x46 => match self.field(COMMAND0::CS) {
                1 => write!(f, " with a store at {:#x}", self.high(COMMAND1::MSIADDRESS) << 2)?,
                2 => f.write_str(" with an event")?,
                _ => {}
            },
            _ => {}
        }
        if matches!(opcode, 0x03 | 0x05 | 0x12 | 0x13) && self.high(COMMAND1::LEAF) != 0 {
            f.write_str(" leaf")?;
        }
        write!(f, " ({:#018x} {:#018x})", self.0[0], self.0[1])
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
