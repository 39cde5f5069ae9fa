//! The registers of interrupted code, as the vectors save them.

use core::fmt;

use aarch64_cpu::registers::SPSR_EL1;
use granule_arch::addr::VirtAddr;
use granule_arch::esr::Syndrome;
use tock_registers::LocalRegisterCopy;

use crate::symbols::Named;

/// The state that an exception interrupted. It lies on the stack that the handler runs on, and returning from the
/// exception loads `x`, `elr` and `spsr` from it again.
///
/// `vectors` writes it, and the order of its fields is known there through `offset_of!`.
#[repr(C)]
#[derive(Clone, Debug, Default)]
pub struct TrapFrame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// SP as it was: from EL0, SP_EL0.
    pub sp: u64,
    /// ELR_EL1: where to go on.
    pub elr: u64,
    /// SPSR_EL1: PSTATE to go on with.
    pub spsr: u64,
    /// ESR_EL1. Old contents where the exception was an interrupt, or a system call of EL0.
    pub(super) esr: u64,
    /// FAR_EL1. Stale unless the syndrome defines it.
    pub(super) far: u64,
    /// x29 and ELR once more, as a frame record (AAPCS64 6.4.6), so that a backtrace goes through the exception. Zeroes
    /// in a frame of EL0: there it ends.
    pub(super) record: [u64; 2],
}

// SP is a multiple of 16 whenever it is used, and the frame lies at SP.
const _: () = assert!(size_of::<TrapFrame>().is_multiple_of(16));
// `user.S` moves SP by the STP and LDP of x0 and x1.
const _: () = assert!(core::mem::offset_of!(TrapFrame, x) == 0 && size_of::<TrapFrame>() <= 504);

/// PSTATE.BTYPE: how the code came to its next instruction, where that was an indirect branch (Arm ARM D8.5.4).
pub const SPSR_BTYPE: u64 = 0b11 << 10;

impl TrapFrame {
    /// Passes the instruction at `elr`, which has no effect.
    pub(super) const fn skip(&mut self) {
        const INSTRUCTION: u64 = 4;
        self.elr += INSTRUCTION;
        self.spsr &= !SPSR_BTYPE;
    }

    /// The registers of a thread that begins at EL0, at `pc`: all others zero, nothing masked.
    pub fn at_el0(pc: VirtAddr, sp: VirtAddr) -> Self {
        Self { elr: pc.0, sp: sp.0, ..Self::default() }
    }

    /// The syndrome.
    pub const fn syndrome(&self) -> Syndrome {
        Syndrome(self.esr)
    }

    /// The address that an abort was about.
    pub const fn fault_address(&self) -> VirtAddr {
        VirtAddr(self.far)
    }

    /// Whether FAR_EL1 belongs to the exception (Arm ARM D24.2.43).
    pub(super) fn has_address(&self) -> bool {
        use granule_arch::esr::Class;
        let other = matches!(
            self.syndrome().class(),
            Some(Class::PCAlignmentFault | Class::WatchpointCurrentEL | Class::WatchpointLowerEL)
        );
        self.syndrome().abort().map_or(other, |abort| abort.address_valid)
    }

    /// The address that the exception was about, or else its instruction's.
    pub(super) fn exception_address(&self) -> VirtAddr {
        if self.has_address() { self.fault_address() } else { VirtAddr(self.elr) }
    }
}

/// All registers, as a report prints them.
impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  PC   {}", Named(VirtAddr(self.elr)))?;
        writeln!(f, "  LR   {}", Named(VirtAddr(self.x[30])))?;
        writeln!(f, "  SP   {:#018x}  SPSR {:#010x} ({})", self.sp, self.spsr, PState(self.spsr))?;
        for (index, value) in self.x.iter().enumerate().take(30) {
            let end = if index % 4 == 3 || index == 29 { "\n" } else { "" };
            write!(f, "  x{index:<2} {value:016x}{end}")?;
        }
        Ok(())
    }
}

/// SPSR_EL1 in words: "EL1h, nZCv, masked DAIF".
struct PState(u64);

impl fmt::Display for PState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const PAN: u64 = 1 << 22;
        let spsr = LocalRegisterCopy::<u64, SPSR_EL1::Register>::new(self.0);
        match spsr.read_as_enum(SPSR_EL1::M) {
            Some(SPSR_EL1::M::Value::EL0t) => f.write_str("EL0t")?,
            Some(SPSR_EL1::M::Value::EL1t) => f.write_str("EL1t")?,
            Some(SPSR_EL1::M::Value::EL1h) => f.write_str("EL1h")?,
            None => write!(f, "mode {:#x}", spsr.read(SPSR_EL1::M))?,
        }
        let letters = |shift: u32, upper: &str, lower: &str, f: &mut fmt::Formatter<'_>| {
            upper.chars().zip(lower.chars()).enumerate().try_for_each(|(index, (set, clear))| {
                let bit = self.0 >> (shift - index as u32) & 1;
                fmt::Write::write_char(f, if bit == 1 { set } else { clear })
            })
        };
        f.write_str(", flags ")?;
        letters(31, "NZCV", "nzcv", f)?;
        f.write_str(", masks ")?;
        letters(9, "DAIF", "daif", f)?;
        if self.0 & PAN != 0 {
            f.write_str(", PAN")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_that_is_passed_ends_a_branch() {
        // QEMU has BTYPE clear by then, so no program shows it.
        let mut frame = TrapFrame { elr: 0x1000, spsr: 0x8000_0c00, ..TrapFrame::default() };
        frame.skip();
        assert_eq!((frame.elr, frame.spsr), (0x1004, 0x8000_0000));
    }

    #[test]
    fn every_register_is_printed() {
        let mut frame = TrapFrame {
            x: [0; 31],
            sp: 0x5111,
            elr: 0xe111,
            spsr: 0x3c5,
            esr: 0x9600_004f,
            far: 0xfa111,
            record: [0; 2],
        };
        frame.x.iter_mut().zip(0x1000..).for_each(|(register, value)| *register = value);
        let text = frame.to_string();
        for value in (0x1000..0x101f).chain([0x5111, 0xe111]) {
            assert!(text.contains(&format!("{value:016x}")), "{value:#x} is not in\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= 100) && text.ends_with('\n'));
        assert_eq!(frame.syndrome().to_string(), "permission fault, level 3, on a write");
        assert_eq!((frame.fault_address(), frame.record), (VirtAddr(0xfa111), [0, 0]));
    }

    #[test]
    fn pstate_reads_like_the_manual() {
        assert_eq!(PState(0x6000_03c5).to_string(), "EL1h, flags nZCv, masks DAIF");
        assert_eq!(PState(0x0040_0205).to_string(), "EL1h, flags nzcv, masks Daif, PAN");
        assert_eq!(PState(0x0000_0000).to_string(), "EL0t, flags nzcv, masks daif");
    }
}
