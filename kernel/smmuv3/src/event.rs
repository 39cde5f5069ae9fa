//! Events of transactions that the SMMU refused: the records of the event queue (IHI 0070, 7.3).
//!
//! A record has 32 bytes. Only what its kind defines is decoded; a number that no kind has is kept as it is, with the
//! whole record.

use core::fmt;

use granule_arch::addr::{PhysAddr, VirtAddr};
use tock_registers::LocalRegisterCopy;

mod fields {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]

    use tock_registers::register_bitfields;

    register_bitfields! {u64,
        /// Word 0 of an event record.
        pub EVENT0 [
            /// The kind.
            KIND OFFSET(0) NUMBITS(8) [],
            /// The transaction had a substream.
            SSV OFFSET(11) NUMBITS(1) [],
            /// Which.
            SUBSTREAM OFFSET(12) NUMBITS(20) [],
            /// The stream.
            STREAM OFFSET(32) NUMBITS(32) []
        ],
        /// Word 1 of an event record.
        pub EVENT1 [
            /// The tag of a stalled transaction, which a command names it by.
            STAG OFFSET(0) NUMBITS(16) [],
            /// The transaction is stalled.
            STALL OFFSET(31) NUMBITS(1) [],
            /// The transaction was privileged.
            PNU OFFSET(33) NUMBITS(1) [],
            /// The transaction fetched an instruction.
            IND OFFSET(34) NUMBITS(1) [],
            /// The transaction read.
            RNW OFFSET(35) NUMBITS(1) [],
            /// Stage 2 refused it.
            S2 OFFSET(39) NUMBITS(1) [],
            /// The kind of access that failed.
            CLASS OFFSET(40) NUMBITS(2) [Context = 0, Table = 1, Input = 2]
        ]
    }
}

pub use fields::{EVENT0, EVENT1};

/// Bytes of a record.
pub const RECORD_BYTES: usize = 32;

/// A record by its words.
pub type Record = [u64; RECORD_BYTES / 8];

/// The kind of an event: the specification's names, in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// F_UUT: a transaction of a kind that is not supported.
    UnsupportedTransaction,
    /// C_BAD_STREAMID: the stream table does not reach so far, or has no entries there.
    BadStream,
    /// F_STE_FETCH: reading the stream table failed.
    StreamEntryFetch,
    /// C_BAD_STE: the stream table entry is invalid or illegal.
    BadStreamEntry,
    /// F_BAD_ATS_TREQ: a translation request that the stream may not make.
    BadTranslationRequest,
    /// F_STREAM_DISABLED: a transaction without a substream where one is needed.
    StreamDisabled,
    /// F_TRANSL_FORBIDDEN: a translated transaction that the stream may not make.
    TranslatedForbidden,
    /// C_BAD_SUBSTREAMID: no such substream.
    BadSubstream,
    /// F_CD_FETCH: reading the context descriptor failed.
    ContextFetch,
    /// C_BAD_CD: the context descriptor is invalid or illegal.
    BadContext,
    /// F_WALK_EABT: reading a table failed.
    WalkAbort,
    /// F_TRANSLATION: no valid descriptor.
    Translation,
    /// F_ADDR_SIZE: an address is larger than can be put out.
    AddressSize,
    /// F_ACCESS: the descriptor's access flag is clear.
    AccessFlag,
    /// F_PERMISSION: the descriptor does not allow it.
    Permission,
    /// F_TLB_CONFLICT: several entries of the TLB match.
    TlbConflict,
    /// F_CFG_CONFLICT: several cached configurations match.
    ConfigConflict,
    /// E_PAGE_REQUEST: a hint that a page will be wanted.
    PageRequest,
    /// F_VMS_FETCH: reading the structure of a virtual machine failed.
    MachineFetch,
    /// A number that is not defined, or that an implementation defines.
    Other(u8),
}

impl Kind {
    const fn of(number: u8) -> Self {
        match number {
            0x01 => Self::UnsupportedTransaction,
            0x02 => Self::BadStream,
            0x03 => Self::StreamEntryFetch,
            0x04 => Self::BadStreamEntry,
            0x05 => Self::BadTranslationRequest,
            0x06 => Self::StreamDisabled,
            0x07 => Self::TranslatedForbidden,
            0x08 => Self::BadSubstream,
            0x09 => Self::ContextFetch,
            0x0a => Self::BadContext,
            0x0b => Self::WalkAbort,
            0x10 => Self::Translation,
            0x11 => Self::AddressSize,
            0x12 => Self::AccessFlag,
            0x13 => Self::Permission,
            0x20 => Self::TlbConflict,
            0x21 => Self::ConfigConflict,
            0x24 => Self::PageRequest,
            0x25 => Self::MachineFetch,
            other => Self::Other(other),
        }
    }

    /// The specification's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::UnsupportedTransaction => "F_UUT",
            Self::BadStream => "C_BAD_STREAMID",
            Self::StreamEntryFetch => "F_STE_FETCH",
            Self::BadStreamEntry => "C_BAD_STE",
            Self::BadTranslationRequest => "F_BAD_ATS_TREQ",
            Self::StreamDisabled => "F_STREAM_DISABLED",
            Self::TranslatedForbidden => "F_TRANSL_FORBIDDEN",
            Self::BadSubstream => "C_BAD_SUBSTREAMID",
            Self::ContextFetch => "F_CD_FETCH",
            Self::BadContext => "C_BAD_CD",
            Self::WalkAbort => "F_WALK_EABT",
            Self::Translation => "F_TRANSLATION",
            Self::AddressSize => "F_ADDR_SIZE",
            Self::AccessFlag => "F_ACCESS",
            Self::Permission => "F_PERMISSION",
            Self::TlbConflict => "F_TLB_CONFLICT",
            Self::ConfigConflict => "F_CFG_CONFLICT",
            Self::PageRequest => "E_PAGE_REQUEST",
            Self::MachineFetch => "F_VMS_FETCH",
            Self::Other(_) => "unknown event",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::UnsupportedTransaction => "a transaction of a kind that is not supported",
            Self::BadStream => "the stream table has no entry",
            Self::StreamEntryFetch => "the stream table entry could not be read",
            Self::BadStreamEntry => "the stream table entry is invalid or illegal",
            Self::BadTranslationRequest => "a translation request that is not allowed",
            Self::StreamDisabled => "a transaction without a substream, where one is needed",
            Self::TranslatedForbidden => "a translated transaction that is not allowed",
            Self::BadSubstream => "no such substream",
            Self::ContextFetch => "the context descriptor could not be read",
            Self::BadContext => "the context descriptor is invalid or illegal",
            Self::WalkAbort => "a table could not be read",
            Self::Translation => "nothing is mapped",
            Self::AddressSize => "an address is too large",
            Self::AccessFlag => "the page is not marked young",
            Self::Permission => "the page does not allow it",
            Self::TlbConflict => "the TLB has several translations",
            Self::ConfigConflict => "several cached configurations match",
            Self::PageRequest => "a page will be wanted",
            Self::MachineFetch => "the structure of the virtual machine could not be read",
            Self::Other(_) => "not in the specification",
        }
    }

    /// Words 1 and 2 describe a transaction: its address and what it did.
    const fn has_access(self) -> bool {
        matches!(
            self,
            Self::UnsupportedTransaction
                | Self::BadTranslationRequest
                | Self::TranslatedForbidden
                | Self::WalkAbort
                | Self::Translation
                | Self::AddressSize
                | Self::AccessFlag
                | Self::Permission
                | Self::TlbConflict
                | Self::ConfigConflict
                | Self::PageRequest
        )
    }

    /// Word 1 has the stage and the class of the access.
    const fn has_class(self) -> bool {
        matches!(self, Self::WalkAbort | Self::Translation | Self::AddressSize | Self::AccessFlag | Self::Permission)
    }

    /// Word 3 is the physical address that could not be read.
    const fn has_fetch(self) -> bool {
        matches!(self, Self::StreamEntryFetch | Self::ContextFetch | Self::WalkAbort | Self::MachineFetch)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(number) => write!(f, "event {number:#04x}: {}", self.words()),
            _ => write!(f, "{}: {}", self.name(), self.words()),
        }
    }
}

/// The access that a transaction wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// To read.
    Read,
    /// To write.
    Write,
    /// To fetch an instruction.
    Execute,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Execute => "fetch",
        })
    }
}

/// On the way to what a transaction was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// The context descriptor.
    Context,
    /// A table.
    Table,
    /// The address that it had asked for itself.
    Input,
    /// The reserved value.
    Reserved,
}

/// One event.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Its kind.
    pub kind: Kind,
    /// To a transaction of this stream.
    pub stream: u32,
    /// Of this substream, if it had one.
    pub substream: Option<u32>,
    /// At this address, where the kind has one.
    pub address: Option<VirtAddr>,
    /// Which wanted this, where the kind has it.
    pub access: Option<Access>,
    /// The transaction was privileged.
    pub privileged: bool,
    /// On the way to what, where the kind has it.
    pub class: Option<Class>,
    /// Stage 2 refused it.
    pub stage2: bool,
    /// It waits for an answer to this tag. Nothing that this driver sets up lets transactions stall.
    pub stalled: Option<u16>,
    /// The address that could not be read, where that is what happened.
    pub fetched: Option<PhysAddr>,
    /// The record.
    pub record: Record,
}

impl Event {
    /// The event in `record`.
    pub fn decode(record: Record) -> Self {
        let first = LocalRegisterCopy::<u64, EVENT0::Register>::new(record[0]);
        let second = LocalRegisterCopy::<u64, EVENT1::Register>::new(record[1]);
        let kind = Kind::of(first.read(EVENT0::KIND) as u8);
        let access = match (second.is_set(EVENT1::RNW), second.is_set(EVENT1::IND)) {
            (true, true) => Access::Execute,
            (true, false) => Access::Read,
            (false, _) => Access::Write,
        };
        let class = match second.read(EVENT1::CLASS) {
            0 => Class::Context,
            1 => Class::Table,
            2 => Class::Input,
            _ => Class::Reserved,
        };
        let stalls = kind.has_class() && second.is_set(EVENT1::STALL);
        Self {
            kind,
            stream: first.read(EVENT0::STREAM) as u32,
            substream: first.is_set(EVENT0::SSV).then(|| first.read(EVENT0::SUBSTREAM) as u32),
            address: kind.has_access().then_some(VirtAddr(record[2])),
            access: kind.has_access().then_some(access),
            privileged: kind.has_access() && second.is_set(EVENT1::PNU),
            class: kind.has_class().then_some(class),
            stage2: kind.has_class() && second.is_set(EVENT1::S2),
            stalled: stalls.then(|| second.read(EVENT1::STAG) as u16),
            fetched: kind.has_fetch().then_some(PhysAddr(record[3] & FETCH_ADDRESS)),
            record,
        }
    }

    /// Whether resolving a page fault could let the transaction succeed.
    pub const fn is_page_fault(&self) -> bool {
        matches!(self.kind, Kind::Translation | Kind::AccessFlag | Kind::Permission)
            && matches!(self.class, Some(Class::Input))
            && !self.stage2
    }
}

/// The bits of word 3 that are an address.
const FETCH_ADDRESS: u64 = ((1 << 52) - 1) & !0b111;

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stream {:#x}", self.stream)?;
        if let Some(substream) = self.substream {
            write!(f, " substream {substream:#x}")?;
        }
        write!(f, ": {}", self.kind)?;
        if let (Some(access), Some(address)) = (self.access, self.address) {
            let privileged = if self.privileged { "privileged " } else { "" };
            write!(f, ", {privileged}{access} at {address}")?;
        }
        match self.class {
            Some(Class::Context) => f.write_str(", on the way to the context descriptor")?,
            Some(Class::Table) => f.write_str(", on the way to a table")?,
            Some(Class::Reserved) => f.write_str(", reserved class")?,
            Some(Class::Input) | None => {}
        }
        if self.stage2 {
            f.write_str(", at stage 2")?;
        }
        if let Some(tag) = self.stalled {
            write!(f, ", stalled with tag {tag}")?;
        }
        if let Some(fetched) = self.fetched {
            write!(f, ", reading {fetched}")?;
        }
        match self.kind {
            Kind::Other(_) => write!(f, ", record {:x?}", self.record),
            _ => Ok(()),
        }
    }
}
