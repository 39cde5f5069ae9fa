//! The registers that translation stands on: TCR_EL1, MAIR_EL1 and SCTLR_EL1 (Arm ARM D24.2), and the MMU switched on
//! (D8.2.12).
//!
//! Values that hold on every CPU are constants; what depends on the CPU is added from its ID registers by
//! `tcr_of_this_cpu`. The functions use no stack and no memory, and clobber x0 to x3 alone, so assembly that runs
//! with the MMU off may call them. They do nothing that moves with the image: all addresses are relative to the PC.
//!
//! ```
//! use granule_arch::mmu::{Half, tcr};
//! use granule_arch::tlbi::Granule;
//!
//! // 39-bit addresses in the lower half, of 4 KiB pages; an access to the upper half faults.
//! const TCR: u64 = tcr(Half::On { granule: Granule::Size4K, va_bits: 39 }, Half::Off);
//! assert_eq!(TCR & 0x3f, 64 - 39);
//! ```

#![allow(unsafe_code, reason = "writes the registers of translation")]

use aarch64_cpu::registers::{SCTLR_EL1, TCR_EL1};
use arm_sysregs::el1::registers::SctlrEl1;

use crate::tlbi::Granule;

/// A half of the address space, as TCR_EL1 describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Half {
    /// Nothing is mapped and no table is read: each access faults (EPD).
    Off,
    /// Translated by the tables that its TTBR names.
    On {
        /// The granule of the tables.
        granule: Granule,
        /// Bits of an address, 25 to 48.
        va_bits: u32,
    },
}

impl Half {
    /// The field TnSZ: leading bits that are the same in every address of the half.
    const fn size(self) -> u64 {
        match self {
            // Of no effect, but a reserved value is none to write.
            Self::Off => 16,
            Self::On { va_bits, .. } => {
                assert!(va_bits >= 25 && va_bits <= 48, "stage 1 translates 25 to 48 bits of an address");
                64 - va_bits as u64
            }
        }
    }

    const fn granule(self) -> Granule {
        match self {
            Self::Off => Granule::Size4K,
            Self::On { granule, .. } => granule,
        }
    }
}

/// TCR_EL1 but for what `tcr_of_this_cpu` adds: walks are write-back and inner shareable, the ASID is that of
/// TTBR0_EL1, no address has a tag.
pub const fn tcr(lower: Half, upper: Half) -> u64 {
    let lower_granule = match lower.granule() {
        Granule::Size4K => TCR_EL1::TG0::KiB_4.value,
        Granule::Size16K => TCR_EL1::TG0::KiB_16.value,
        Granule::Size64K => TCR_EL1::TG0::KiB_64.value,
    };
    let upper_granule = match upper.granule() {
        Granule::Size4K => TCR_EL1::TG1::KiB_4.value,
        Granule::Size16K => TCR_EL1::TG1::KiB_16.value,
        Granule::Size64K => TCR_EL1::TG1::KiB_64.value,
    };
    let lower_off = if matches!(lower, Half::Off) { TCR_EL1::EPD0::DisableTTBR0Walks.value } else { 0 };
    let upper_off = if matches!(upper, Half::Off) { TCR_EL1::EPD1::DisableTTBR1Walks.value } else { 0 };
    (lower.size() << TCR_EL1::T0SZ.shift)
        | (upper.size() << TCR_EL1::T1SZ.shift)
        | lower_granule
        | upper_granule
        | lower_off
        | upper_off
        | TCR_EL1::SH0::Inner.value
        | TCR_EL1::SH1::Inner.value
        | TCR_EL1::IRGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
        | TCR_EL1::IRGN1::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
        | TCR_EL1::ORGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
        | TCR_EL1::ORGN1::WriteBack_ReadAlloc_WriteAlloc_Cacheable.value
}

/// SCTLR_EL1 with the MMU and caches off: what is RES1 on the oldest CPU (Armv8.0), and nothing else.
pub const SCTLR_MMU_OFF: u64 = SctlrEl1::LSMAOE
    .union(SctlrEl1::NTLSMD)
    .union(SctlrEl1::SPAN)
    .union(SctlrEl1::EIS)
    .union(SctlrEl1::TSCXT)
    .union(SctlrEl1::EOS)
    .bits();

/// As [`SCTLR_MMU_OFF`], with the MMU, both caches, and the check of the stack's alignment on. EL0 may do nothing that
/// EL1 can withhold, and PSTATE.PAN stays as it is when an exception is taken (SPAN).
pub const SCTLR_MMU_ON: u64 = SCTLR_MMU_OFF
    | SCTLR_EL1::M::Enable.value
    | SCTLR_EL1::C::Cacheable.value
    | SCTLR_EL1::I::Cacheable.value
    | SCTLR_EL1::SA::Enable.value
    | SCTLR_EL1::SA0::Enable.value;

#[cfg(target_os = "none")]
pub use metal::{LEAVE_EL1, NotEl1, Registers, enable, leave, tcr_of_this_cpu, turn_on};

#[cfg(target_os = "none")]
mod metal {
    use core::fmt;

    use aarch64_cpu::registers::{
        CurrentEL, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64MMFR2_EL1, Readable as _, TCR_EL1,
    };
    use arm_sysregs::el1::registers::TcrEl1;

    use crate::addr::PhysAddr;

    /// `tcr` with what this CPU has: its physical addresses, 48 bits of them at most; ASIDs of 16 bits; the access flag
    /// set by the hardware (FEAT_HAFDBS); accesses of EL0 to the upper half fault without a walk (FEAT_E0PD).
    #[unsafe(naked)]
    pub extern "C" fn tcr_of_this_cpu(tcr: u64) -> u64 {
        core::arch::naked_asm!(
            "mrs x1, id_aa64mmfr0_el1",
            "ubfx x2, x1, #{parange}, #4",
            "mov x3, #{ips_48_bits}",
            "cmp x2, x3",
            "csel x2, x2, x3, lo",
            "bfi x0, x2, #{ips}, #3",
            "ubfx x2, x1, #{asid_bits}, #4",
            "cbz x2, 1f",
            "orr x0, x0, #{long_asids}",
            "1: mrs x1, id_aa64mmfr1_el1",
            "ubfx x2, x1, #{hafdbs}, #4",
            "cbz x2, 2f",
            "orr x0, x0, #{access_flag}",
            "2: mrs x1, id_aa64mmfr2_el1",
            "ubfx x2, x1, #{e0pd}, #4",
            "cbz x2, 3f",
            "orr x0, x0, #{e0pd1}",
            "3: ret",
            parange = const ID_AA64MMFR0_EL1::PARange.shift,
            ips = const TCR_EL1::IPS.shift,
            ips_48_bits = const TCR_EL1::IPS::Value::Bits_48 as u64,
            asid_bits = const ID_AA64MMFR0_EL1::ASIDBits.shift,
            long_asids = const TCR_EL1::AS::ASID16Bits.value,
            hafdbs = const ID_AA64MMFR1_EL1::HAFDBS.shift,
            access_flag = const TCR_EL1::HA::Enable.value,
            e0pd = const ID_AA64MMFR2_EL1::E0PD.shift,
            e0pd1 = const TcrEl1::E0PD1.bits(),
        )
    }

    /// Writes `sctlr`, by which the MMU is on, and returns to the address in x30 as the new tables translate it.
    ///
    /// It has a section of its own, `.text.idmap`, so that an image that runs at another address than it is loaded at
    /// can map this page, and no other, at both.
    ///
    /// # Safety
    /// 1. TCR_EL1, MAIR_EL1 and the TTBRs that TCR_EL1 leaves on are written, and an ISB was issued.
    /// 2. The tables are complete in memory: written with the MMU off, or cleaned to the point of coherency; a DSB SY
    ///    followed. No cache holds an older line of them, nor of anything else that was written with the MMU off and
    ///    is read with it on, such as the stack.
    /// 3. They map this function at the address that it runs at, executable at EL1, and what is at x30.
    /// 4. The CPU is at EL1. At EL2 this returns, and nothing is translated: [`enable`] looks.
    #[unsafe(naked)]
    #[unsafe(link_section = ".text.idmap")]
    pub unsafe extern "C" fn turn_on(sctlr: u64) {
        core::arch::naked_asm!(
            // No translation of a previous stage may be hit.
            "tlbi vmalle1",
            "dsb nsh",
            "isb",
            "msr sctlr_el1, x0",
            "isb",
            // Nor what it, or speculation past the caches, fetched.
            "ic iallu",
            "dsb nsh",
            "isb",
            "ret",
        )
    }

    /// The immediate of the HVC by which [`leave`] asks for EL2: the vectors that are installed there take it for a
    /// branch to x4.
    pub const LEAVE_EL1: u16 = 0x4c44;

    /// Turns the MMU and the caches off and enters another kernel, at `entry`, as Linux's arm64 boot protocol has it:
    /// x0 is the device tree, x1 to x3 are zero. With `level` 2 it is entered at EL2.
    ///
    /// In `.text.idmap`, as [`turn_on`].
    ///
    /// # Safety
    /// 1. It runs at its physical address, by the identity map, with interrupts masked and no other CPU running.
    /// 2. Memory holds all that the kernel reads before it turns the MMU on, and no cache has a line of what it writes
    ///    before.
    /// 3. For `level` 2, EL2's MMU is off, and its vectors take an HVC of [`LEAVE_EL1`] for a branch to x4.
    #[unsafe(naked)]
    #[unsafe(link_section = ".text.idmap")]
    pub unsafe extern "C" fn leave(device_tree: PhysAddr, entry: PhysAddr, sctlr: u64, level: u64) -> ! {
        core::arch::naked_asm!(
            "msr daifset, #0xf",
            "msr sctlr_el1, x2",
            "isb",
            // The kernel lies where other instructions may have been, and has tables of its own.
            "tlbi vmalle1",
            "ic iallu",
            "dsb nsh",
            "isb",
            "mov x4, x1",
            "cmp x3, #2",
            "mov x1, xzr",
            "mov x2, xzr",
            "mov x3, xzr",
            "b.ne 1f",
            "hvc #{leave_el1}",
            "1: br x4",
            leave_el1 = const LEAVE_EL1,
        )
    }

    /// Values for the registers of translation.
    #[derive(Clone, Copy, Debug)]
    pub struct Registers {
        /// MAIR_EL1: see [`mair`](crate::descriptor::mair).
        pub mair: u64,
        /// TCR_EL1: see [`tcr`](super::tcr) and [`tcr_of_this_cpu`].
        pub tcr: u64,
        /// TTBR0_EL1: the root of the lower half.
        pub lower: PhysAddr,
        /// TTBR1_EL1: the root of the upper half.
        pub upper: PhysAddr,
        /// SCTLR_EL1: see [`SCTLR_MMU_ON`](super::SCTLR_MMU_ON).
        pub sctlr: u64,
    }

    /// The CPU is at this exception level, where the registers of EL1 translate nothing.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct NotEl1(pub u8);

    impl fmt::Display for NotEl1 {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "the CPU is at EL{}, and what the MMU of EL1 translates is EL1's alone", self.0)
        }
    }

    impl core::error::Error for NotEl1 {}

    /// Writes all of them and turns the MMU on. The caller continues at the address that it runs at, and returns by
    /// what its stack holds: the second condition of [`turn_on`] applies to the stack's lines.
    ///
    /// # Errors
    /// [`NotEl1`]: nothing was written. A kernel that is entered at EL2 goes down to EL1 first: [`crate::el2`].
    ///
    /// # Safety
    /// The tables map what runs, and all that it uses, at the address that they have with the MMU off; and the second
    /// condition of [`turn_on`].
    pub unsafe fn enable(registers: &Registers) -> Result<(), NotEl1> {
        let level = CurrentEL.read(CurrentEL::EL) as u8;
        if level != 1 {
            return Err(NotEl1(level));
        }
        // SAFETY: with the MMU off none of these has an effect before `turn_on`.
        unsafe {
            core::arch::asm!(
                "msr mair_el1, {mair}",
                "msr tcr_el1, {tcr}",
                "msr ttbr0_el1, {lower}",
                "msr ttbr1_el1, {upper}",
                "isb",
                mair = in(reg) registers.mair,
                tcr = in(reg) registers.tcr,
                lower = in(reg) registers.lower.0,
                upper = in(reg) registers.upper.0,
                options(nostack, preserves_flags),
            );
        }
        // SAFETY: the registers are written; the rest is the caller's contract.
        unsafe { turn_on(registers.sctlr) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Half, SCTLR_MMU_OFF, SCTLR_MMU_ON, tcr};
    use crate::tlbi::Granule;

    const fn on(granule: Granule, va_bits: u32) -> Half {
        Half::On { granule, va_bits }
    }

    /// Written out by hand, from the tables of the Arm ARM (D24.2.190, D24.2.168).
    #[test]
    fn values_are_those_of_the_architecture() {
        let (k4, k16, k64) = (Granule::Size4K, Granule::Size16K, Granule::Size64K);
        assert_eq!(tcr(on(k4, 48), on(k4, 48)), 0xb510_3510);
        assert_eq!(tcr(on(k4, 39), Half::Off), 0xb590_3519);
        assert_eq!(tcr(Half::Off, on(k16, 47)), 0x7511_3590);
        assert_eq!(tcr(on(k16, 48), on(k64, 42)), 0xf516_b510);
        assert_eq!(SCTLR_MMU_OFF, 0x30d0_0800);
        assert_eq!(SCTLR_MMU_ON, 0x30d0_181d);
    }

    #[test]
    #[should_panic(expected = "25 to 48 bits")]
    fn more_bits_than_are_translated_are_refused() {
        tcr(on(Granule::Size4K, 52), Half::Off);
    }
}
