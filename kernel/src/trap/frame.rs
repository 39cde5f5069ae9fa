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
pub(super) struct TrapFrame {
    /// x0 to x30.
    pub(super) x: [u64; 31],
    /// SP as it was.
    pub(super) sp: u64,
    /// ELR_EL1: where to go on.
    pub(super) elr: u64,
    /// SPSR_EL1: PSTATE to go on with.
    pub(super) spsr: u64,
    /// ESR_EL1. Old contents where the exception was an interrupt.
    pub(super) esr: u64,
    /// FAR_EL1. Old contents where the syndrome does not say otherwise.
    pub(super) far: u64,
    /// x29 and ELR once more, as a frame record (AAPCS64 6.4.6), so that a backtrace goes through the exception.
    pub(super) record: [u64; 2],
}

// SP is a multiple of 16 whenever it is used, and the frame lies at SP.
const _: () = assert!(size_of::<TrapFrame>().is_multiple_of(16));

impl TrapFrame {
    /// The syndrome.
    pub(super) const fn syndrome(&self) -> Syndrome {
        Syndrome(self.esr)
    }

    /// The address that an abort was about.
    pub(super) const fn fault_address(&self) -> VirtAddr {
        VirtAddr(self.far)
    }
}

/// Which of the sixteen vectors was taken (Arm ARM D1.4.1): 4 × [`Origin`] + [`Kind`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Vector {
    pub(super) origin: Origin,
    pub(super) kind: Kind,
}

/// Where the CPU was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// EL1 on SP_EL0, which the kernel never uses.
    El1t,
    /// The kernel.
    El1h,
    /// EL0, AArch64.
    El0,
    /// EL0, AArch32, which the kernel never enters.
    El0A32,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Synchronous,
    Irq,
    Fiq,
    SError,
}

impl Vector {
    /// The vector with this number, of which only the low four bits count.
    pub(super) const fn from_number(number: u64) -> Self {
        let origin = match number >> 2 & 0b11 {
            0 => Origin::El1t,
            1 => Origin::El1h,
            2 => Origin::El0,
            _ => Origin::El0A32,
        };
        let kind = match number & 0b11 {
            0 => Kind::Synchronous,
            1 => Kind::Irq,
            2 => Kind::Fiq,
            _ => Kind::SError,
        };
        Self { origin, kind }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::El1t => "EL1 on SP_EL0",
            Self::El1h => "EL1",
            Self::El0 => "EL0",
            Self::El0A32 => "EL0 in AArch32",
        })
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
    fn vectors_are_numbered_as_the_architecture_lays_them_out() {
        assert_eq!(Vector::from_number(4), Vector { origin: Origin::El1h, kind: Kind::Synchronous });
        assert_eq!(Vector::from_number(5), Vector { origin: Origin::El1h, kind: Kind::Irq });
        assert_eq!(Vector::from_number(11), Vector { origin: Origin::El0, kind: Kind::SError });
        assert_eq!(Vector::from_number(16 + 4), Vector::from_number(4));
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
