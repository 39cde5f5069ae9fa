//! The exception syndrome (ESR_EL1, Arm ARM D24.2.41) in words: what happened, at which level of the walk, by which
//! kind of access.
//!
//! The class field is `aarch64-cpu`'s; the fields of an abort's syndrome, which it does not have, are defined here.
//! Nothing is guessed: a code without a name here is printed as its number.

use core::fmt;

use aarch64_cpu::registers::ESR_EL1;
use tock_registers::LocalRegisterCopy;

/// The exception class, by the Arm ARM's names.
pub type Class = ESR_EL1::EC::Value;

// Of the syndrome of a data or instruction abort (ISS encodings in D24.2.41).
/// DFSC or IFSC: the fault's status code.
const STATUS: u64 = 0b11_1111;
/// WnR, of data aborts: the access was a write.
const WNR: u64 = 1 << 6;
/// CM, of data aborts: the access was cache maintenance or an address translation; WnR has no meaning then.
const CM: u64 = 1 << 8;
/// FnV: FAR_EL1 is not valid (external aborts only).
const FNV: u64 = 1 << 10;

/// A copy of ESR_EL1.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Syndrome(pub u64);

/// Why an access was refused: the fault status code without its level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultStatus {
    /// An address in the walk, or its result, is larger than the CPU can put out.
    AddressSize,
    /// No valid descriptor.
    Translation,
    /// The descriptor's access flag is clear, and the hardware does not set it.
    AccessFlag,
    /// The descriptor does not permit this access.
    Permission,
    /// The memory system refused it, synchronously.
    SynchronousExternal,
    /// The memory system refused a descriptor that the walk asked for.
    SynchronousExternalOnWalk,
    /// The pointer's tag is not the memory's (FEAT_MTE).
    TagCheck,
    /// The memory system found an uncorrectable error.
    ParityOrEcc,
    /// As [`Self::ParityOrEcc`], in a descriptor that the walk asked for.
    ParityOrEccOnWalk,
    /// An unaligned access to memory that demands alignment.
    Alignment,
    /// Two entries of the TLB matched.
    TlbConflict,
    /// The hardware could not update a descriptor atomically.
    UnsupportedAtomicUpdate,
    /// An exclusive or atomic access to memory that does not support it.
    UnsupportedExclusive,
    /// A code without a name here.
    Other(u8),
}

/// The kind of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or an atomic that writes.
    Write,
    /// An instruction fetch.
    Fetch,
    /// Cache maintenance, or an address translation instruction.
    Maintenance,
}

/// The syndrome of a data or instruction abort.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Abort {
    /// Why.
    pub status: FaultStatus,
    /// The level of the walk, −1 to 3, where the status has one.
    pub level: Option<i8>,
    /// The access that was attempted.
    pub access: Access,
    /// Whether FAR_EL1 holds the address.
    pub address_valid: bool,
}

impl Abort {
    /// Whether the tables have refused the access, so that a change of them may let it through.
    pub const fn is_page_fault(&self) -> bool {
        self.address_valid
            && matches!(self.status, FaultStatus::Translation | FaultStatus::AccessFlag | FaultStatus::Permission)
    }
}

impl Syndrome {
    /// The exception class, where it is one that the Arm ARM names.
    pub fn class(self) -> Option<Class> {
        self.fields().read_as_enum(ESR_EL1::EC)
    }

    /// The exception class as its number.
    pub fn class_number(self) -> u8 {
        self.fields().read(ESR_EL1::EC) as u8
    }

    /// The instruction-specific syndrome, 25 bits.
    pub fn iss(self) -> u64 {
        self.fields().read(ESR_EL1::ISS)
    }

    /// The fields by name.
    pub const fn fields(self) -> LocalRegisterCopy<u64, ESR_EL1::Register> {
        LocalRegisterCopy::new(self.0)
    }

    /// The access that EL0 attempted, if its tables refused it: a translation, access flag or permission fault, at any
    /// level of the walk that is in memory. `None` for everything else that can be wrong. A subset of [`Self::abort`],
    /// for the page-fault path: some shifts and masks.
    #[inline(always)]
    pub const fn page_fault_of_el0(self) -> Option<Access> {
        const DATA: u64 = Class::DataAbortLowerEL as u64;
        const FETCH: u64 = Class::InstrAbortLowerEL as u64;
        const FIRST: u64 = 0b00_0100;
        const LAST: u64 = 0b00_1111;
        let status = self.0 & STATUS;
        if status < FIRST || status > LAST {
            return None;
        }
        match self.0 >> 26 & 0x3f {
            DATA => Some(self.data_access()),
            FETCH => Some(Access::Fetch),
            _ => None,
        }
    }

    /// The details of a data or instruction abort; `None` for every other class.
    pub fn abort(self) -> Option<Abort> {
        let access = match self.class()? {
            Class::InstrAbortLowerEL | Class::InstrAbortCurrentEL => Access::Fetch,
            Class::DataAbortLowerEL | Class::DataAbortCurrentEL => self.data_access(),
            _ => return None,
        };
        let (status, level) = fault_status((self.0 & STATUS) as u8);
        Some(Abort { status, level, access, address_valid: self.0 & FNV == 0 })
    }

    /// The access that a data abort's instruction attempted.
    #[inline(always)]
    const fn data_access(self) -> Access {
        match self.0 & (CM | WNR) {
            0 => Access::Read,
            WNR => Access::Write,
            _ => Access::Maintenance,
        }
    }
}

/// Takes a fault status code apart (DFSC and IFSC share their codes): the status, and the level for those that have
/// one.
pub(crate) const fn fault_status(code: u8) -> (FaultStatus, Option<i8>) {
    let level = Some((code & 0b11) as i8);
    match code {
        0b00_0000..=0b00_0011 => (FaultStatus::AddressSize, level),
        0b00_0100..=0b00_0111 => (FaultStatus::Translation, level),
        0b00_1000..=0b00_1011 => (FaultStatus::AccessFlag, level),
        0b00_1100..=0b00_1111 => (FaultStatus::Permission, level),
        0b01_0000 => (FaultStatus::SynchronousExternal, None),
        0b01_0001 => (FaultStatus::TagCheck, None),
        0b01_0011 => (FaultStatus::SynchronousExternalOnWalk, Some(-1)),
        0b01_0100..=0b01_0111 => (FaultStatus::SynchronousExternalOnWalk, level),
        0b01_1000 => (FaultStatus::ParityOrEcc, None),
        0b01_1011 => (FaultStatus::ParityOrEccOnWalk, Some(-1)),
        0b01_1100..=0b01_1111 => (FaultStatus::ParityOrEccOnWalk, level),
        0b10_0001 => (FaultStatus::Alignment, None),
        0b10_1001 => (FaultStatus::AddressSize, Some(-1)),
        0b10_1011 => (FaultStatus::Translation, Some(-1)),
        0b11_0000 => (FaultStatus::TlbConflict, None),
        0b11_0001 => (FaultStatus::UnsupportedAtomicUpdate, None),
        0b11_0101 => (FaultStatus::UnsupportedExclusive, None),
        other => (FaultStatus::Other(other), None),
    }
}

impl fmt::Display for FaultStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AddressSize => "address size fault",
            Self::Translation => "translation fault",
            Self::AccessFlag => "access flag fault",
            Self::Permission => "permission fault",
            Self::SynchronousExternal => "synchronous external abort",
            Self::SynchronousExternalOnWalk => "synchronous external abort on the table walk",
            Self::TagCheck => "tag check fault",
            Self::ParityOrEcc => "parity or ECC error",
            Self::ParityOrEccOnWalk => "parity or ECC error on the table walk",
            Self::Alignment => "alignment fault",
            Self::TlbConflict => "TLB conflict abort",
            Self::UnsupportedAtomicUpdate => "unsupported atomic hardware update",
            Self::UnsupportedExclusive => "unsupported exclusive or atomic access",
            Self::Other(code) => return write!(f, "abort with fault status {code:#04x}"),
        })
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Fetch => "instruction fetch",
            Self::Maintenance => "cache maintenance or translation instruction",
        })
    }
}

/// "permission fault, level 3, on a write": the beginning of a sentence that an address ends.
impl fmt::Display for Abort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.status)?;
        if let Some(level) = self.level {
            write!(f, ", level {level}")?;
        }
        let article = if self.access == Access::Fetch { "an" } else { "a" };
        write!(f, ", on {article} {}", self.access)
    }
}

/// The class in words, with what the syndrome adds for the classes that a kernel meets.
impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(abort) = self.abort() {
            return write!(f, "{abort}");
        }
        let immediate = self.iss() & 0xffff;
        match self.class() {
            Some(Class::Unknown) => f.write_str("undefined instruction"),
            Some(Class::TrappedWFIorWFE) => f.write_str("trapped WFI or WFE"),
            Some(Class::TrappedFP) => f.write_str("trapped floating-point or SIMD instruction"),
            Some(Class::TrappedSve) => f.write_str("trapped SVE instruction"),
            Some(Class::TrappedSME) => f.write_str("trapped SME instruction"),
            Some(Class::TrappedMsrMrs) => fmt_system_register(self.iss(), f),
            Some(Class::BranchTarget) => f.write_str("branch to an instruction that is no landing pad"),
            Some(Class::IllegalExecutionState) => f.write_str("illegal execution state"),
            Some(Class::SVC64) => write!(f, "SVC #{immediate:#x}"),
            Some(Class::HVC64) => write!(f, "HVC #{immediate:#x}"),
            Some(Class::SMC64) => write!(f, "SMC #{immediate:#x}"),
            Some(Class::PointerAuth) => f.write_str("pointer authentication failure"),
            Some(Class::PCAlignmentFault) => f.write_str("PC alignment fault"),
            Some(Class::SPAlignmentFault) => f.write_str("SP alignment fault"),
            Some(Class::MemoryOperationException) => f.write_str("memory copy or set instruction moved to another CPU"),
            Some(Class::GCSException) => f.write_str("guarded control stack exception"),
            Some(Class::SError) => write!(f, "SError, syndrome {:#x}", self.iss()),
            Some(Class::BreakpointLowerEL | Class::BreakpointCurrentEL) => f.write_str("breakpoint"),
            Some(Class::SoftwareStepLowerEL | Class::SoftwareStepCurrentEL) => f.write_str("software step"),
            Some(Class::WatchpointLowerEL | Class::WatchpointCurrentEL) => f.write_str("watchpoint"),
            Some(Class::Brk64) => write!(f, "BRK #{immediate:#x}"),
            _ => write!(f, "exception class {:#04x}, syndrome {:#x}", self.class_number(), self.iss()),
        }
    }
}

/// "trapped MRS of S3_0_C1_C0_2": the register by the name that an assembler takes.
fn fmt_system_register(iss: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let field = |shift: u32, bits: u32| (iss >> shift) & ((1 << bits) - 1);
    let (op0, op2, op1, crn, crm) = (field(20, 2), field(17, 3), field(14, 3), field(10, 4), field(1, 4));
    let instruction = match (op0, field(0, 1)) {
        (1, _) => "system instruction",
        (_, 0) => "MSR of",
        (_, _) => "MRS of",
    };
    write!(f, "trapped {instruction} S{op0}_{op1}_C{crn}_C{crm}_{op2}")
}

impl fmt::Debug for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x} ({self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    #[test]
    fn aborts_read_as_they_should() {
        // Measured on the target, and one each of the statuses that it does not produce.
        for (esr, text) in [
            (0x9600_004f, "permission fault, level 3, on a write"),
            (0x9600_000f, "permission fault, level 3, on a read"),
            (0x8600_000f, "permission fault, level 3, on an instruction fetch"),
            (0x9200_0004, "translation fault, level 0, on a read"),
            (0x9600_000b, "access flag fault, level 3, on a read"),
            (0x9600_0021, "alignment fault, on a read"),
            (0x9600_0051, "tag check fault, on a write"),
            (0x9600_0010, "synchronous external abort, on a read"),
            (0x9600_0017, "synchronous external abort on the table walk, level 3, on a read"),
            (0x9600_002b, "translation fault, level -1, on a read"),
            (0x9600_0030, "TLB conflict abort, on a read"),
            (0x9600_0147, "translation fault, level 3, on a cache maintenance or translation instruction"),
            (0x9600_003f, "abort with fault status 0x3f, on a read"),
        ] {
            assert_eq!(Syndrome(esr).to_string(), text, "{esr:#x}");
        }
    }

    /// All classes and statuses: the short way agrees with the long one.
    #[test]
    fn page_faults_of_el0_are_those_aborts_that_tables_decide() {
        for (class, bits) in (0..64u64).flat_map(|class| (0..1 << 11u64).map(move |bits| (class, bits))) {
            let syndrome = Syndrome(class << 26 | bits);
            let lower = matches!(syndrome.class(), Some(Class::InstrAbortLowerEL | Class::DataAbortLowerEL));
            let wanted = syndrome.abort().filter(|abort| {
                let status = [FaultStatus::Translation, FaultStatus::AccessFlag, FaultStatus::Permission];
                lower && status.contains(&abort.status) && abort.level >= Some(0)
            });
            assert_eq!(syndrome.page_fault_of_el0(), wanted.map(|abort| abort.access), "{syndrome:?}");
        }
    }

    /// By the status code alone, as the kernel's own accesses ask: of 64 codes, those of walks whose descriptors decide.
    #[test]
    fn no_change_of_tables_is_awaited_for_what_memory_refuses() {
        for code in 0..64 {
            let served = matches!(code, 0b00_0100..=0b00_1111 | 0b10_1011);
            let abort = |bits: u64| Syndrome(0x9600_0000 | bits | code).abort().unwrap();
            assert_eq!(abort(0).is_page_fault(), served, "{code:#x}");
            // FnV: there is no address.
            assert!(!abort(1 << 10).is_page_fault(), "{code:#x}");
        }
    }

    #[test]
    fn other_classes_have_names() {
        for (esr, text) in [
            (0x0200_0000, "undefined instruction"),
            (0x8a00_0000, "PC alignment fault"),
            (0x9a00_0000, "SP alignment fault"),
            (0xf200_0001, "BRK #0x1"),
            (0x5600_0007, "SVC #0x7"),
            (0x1fe0_0000, "trapped floating-point or SIMD instruction"),
            // mrs x0, S3_0_C1_C0_2 (CPACR_EL1): Op0 3, Op2 2, Op1 0, CRn 1, Rt 0, CRm 0, read.
            (0x6234_0401, "trapped MRS of S3_0_C1_C0_2"),
            (0xbe00_0002, "SError, syndrome 0x2"),
            (0xfe00_0000, "exception class 0x3f, syndrome 0x0"),
        ] {
            assert_eq!(Syndrome(esr).to_string(), text, "{esr:#x}");
        }
    }

    #[test]
    fn the_address_of_an_external_abort_may_be_invalid() {
        let abort = Syndrome(0x9600_0410).abort().unwrap();
        assert_eq!(abort.status, FaultStatus::SynchronousExternal);
        assert!(!abort.address_valid);
        assert!(Syndrome(0x9600_0010).abort().unwrap().address_valid);
    }

    proptest! {
        #[test]
        fn every_value_decodes_and_prints(esr: u64) {
            let syndrome = Syndrome(esr);
            prop_assert!(!syndrome.to_string().is_empty());
            if let Some(level) = syndrome.abort().and_then(|abort| abort.level) {
                prop_assert!((-1..=3).contains(&level));
            }
        }
    }
}
