//! Events of the machine, in order: the recorded stream, and the places in it that stories point to.

use std::fmt;

use granule_arch::addr::PhysAddr;
use granule_arch::descriptor::Descriptor;
use granule_arch::tlbi::Instruction;

/// One thing that a CPU did, or that was reported to the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// The CPU that did it.
    pub cpu: usize,
    /// Its operation.
    pub operation: Operation,
}

/// An operation on the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// An entry was written, by store, compare-exchange or bit-clear.
    Write {
        /// Where the entry is.
        cell: PhysAddr,
        /// The descriptor before the write.
        old: Descriptor,
        /// The descriptor after the write.
        new: Descriptor,
    },
    /// The hardware set the access flag, or cleared RDONLY of a leaf with DBM, for an access by this CPU.
    SetFlags {
        /// Where the entry is.
        cell: PhysAddr,
        /// The descriptor before the change.
        old: Descriptor,
        /// The descriptor after the change.
        new: Descriptor,
    },
    /// DMB ISHST.
    DmbIshst,
    /// DSB ISHST.
    DsbIshst,
    /// DSB ISH.
    DsbIsh,
    /// DSB NSH.
    DsbNsh,
    /// ISB.
    Isb,
    /// A TLBI instruction.
    Tlbi(Instruction),
    /// This CPU released what it did, and the CPU named acquired it: a lock, a flag.
    HandOver(usize),
    /// TTBR0 or TTBR1 was written, and an ISB.
    Runs {
        /// The root of the tree.
        root: PhysAddr,
        /// The ASID of its entries that are not global, from now on.
        asid: u16,
    },
    /// A frame was taken, and zeroed by plain stores.
    FrameTaken(PhysAddr),
    /// A frame was copied, to go on elsewhere.
    FrameCopied(PhysAddr),
    /// A frame was given up for anyone to reuse.
    FrameFreed(PhysAddr),
}

/// Where an event stands in the stream; stories print it as `#12`. 0 is before everything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time(pub usize);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPU {}: {}", self.cpu, self.operation)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { cell, old, new } => write!(f, "store to {cell}: {old:?} -> {new:?}"),
            Self::SetFlags { cell, old, new } => write!(f, "flags set in {cell}: {old:?} -> {new:?}"),
            Self::DmbIshst => f.write_str("DMB ISHST"),
            Self::DsbIshst => f.write_str("DSB ISHST"),
            Self::DsbIsh => f.write_str("DSB ISH"),
            Self::DsbNsh => f.write_str("DSB NSH"),
            Self::Isb => f.write_str("ISB"),
            Self::Tlbi(instruction) => write!(f, "TLBI {}", Mnemonic(*instruction)),
            Self::Runs { root, asid } => write!(f, "runs the tree of {root} under ASID {asid}"),
            Self::HandOver(to) => write!(f, "released, and acquired by CPU {to}"),
            Self::FrameTaken(frame) => write!(f, "took frame {frame}"),
            Self::FrameCopied(frame) => write!(f, "copied frame {frame}"),
            Self::FrameFreed(frame) => write!(f, "freed frame {frame}"),
        }
    }
}

/// `VAALE1IS 0x00000ffff8000000`: the instruction as an assembler has it.
struct Mnemonic(Instruction);

impl fmt::Display for Mnemonic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Instruction::Vmalle1is => f.write_str("VMALLE1IS"),
            Instruction::Vmalle1 => f.write_str("VMALLE1"),
            Instruction::Vaae1is(operand) => write!(f, "VAAE1IS {:#018x}", operand.bits()),
            Instruction::Vaale1is(operand) => write!(f, "VAALE1IS {:#018x}", operand.bits()),
            Instruction::Vaae1(operand) => write!(f, "VAAE1 {:#018x}", operand.bits()),
            Instruction::Vaale1(operand) => write!(f, "VAALE1 {:#018x}", operand.bits()),
            Instruction::Aside1is(asid) => write!(f, "ASIDE1IS {:#06x}", asid.number()),
            Instruction::Vae1is(operand) => write!(f, "VAE1IS {:#018x}", operand.bits()),
            Instruction::Vale1(operand) => write!(f, "VALE1 {:#018x}", operand.bits()),
            Instruction::Rvae1is(operand) => write!(f, "RVAE1IS {:#018x}", operand.bits()),
            Instruction::Rvale1is(operand) => write!(f, "RVALE1IS {:#018x}", operand.bits()),
            Instruction::Vale1is(operand) => write!(f, "VALE1IS {:#018x}", operand.bits()),
            Instruction::Rvaae1is(operand) => write!(f, "RVAAE1IS {:#018x}", operand.bits()),
            Instruction::Rvaale1is(operand) => write!(f, "RVAALE1IS {:#018x}", operand.bits()),
        }
    }
}
