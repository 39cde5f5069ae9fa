//! Registers of EL1 that say what EL0 may read or change, or what is recorded of it, and that no other part writes: an
//! earlier stage may have left them open. [`registers`] is the table. `entry.S` writes its rows on each CPU that comes up,
//! at boot or later; a test on the target compares them there ([`open_register`]).
//!
//! SCTLR_EL1, TCR_EL1 and CPACR_EL1 are written whole as well. They withhold newer features too: ENTP2, ENALS
//! and the like are zero, so EL0's TPIDR2_EL0, ST64B and POR_EL0 trap, SMEN and ZEN are zero, and TSCXT is set. Registers of
//! features that entering from EL2 traps at EL1 (BRBE, GCS) are left to that. TRFCR_EL1 is left alone: firmware keeps it from
//! EL1 as a rule (MDCR_EL3.TTRF; TF-A's `ENABLE_TRF_FOR_NS` is 0), and a trap to EL3 would end the boot without a word.
//! `sysregs` tries all that EL0 could name.

#![allow(unsafe_code, reason = "reads system registers")]

/// Calls a macro with the table. A row is the register's name and how it is assembled; its value; the ID register and the
/// first bit of the field that says whether it exists; where given, the register whose bit 4 keeps it from EL1; and why.
macro_rules! registers {
    ($with:ident) => {
        $with! {
            // TDCC: EL0 has no debug channel (MDCCSR_EL0, DBGDTR_EL0). MDE, KDE, SS: no breakpoints, no single step.
            "MDSCR_EL1" "mdscr_el1", 0x1000, "id_aa64pfr0_el1" 0, "";
            // EL0VCTEN: EL0 may read the virtual counter, and nothing else of the timer; no event stream.
            "CNTKCTL_EL1" "cntkctl_el1", 0x2, "id_aa64pfr0_el1" 0, "";
            // EL0 reads no event counter: they count what the kernel does too.
            "PMUSERENR_EL0" "pmuserenr_el0", 0, "id_aa64dfr0_el1" 8, "";
            // EL0 reads no activity monitor, for the same reason.
            "AMUSERENR_EL0" "S3_3_C13_C2_3", 0, "id_aa64pfr0_el1" 44, "";
            // E0SPE, E1SPE, CX, PA, TS: no statistical profiling.
            "PMSCR_EL1" "S3_0_C9_C9_0", 0, "id_aa64dfr0_el1" 32, "S3_0_C9_C10_7";
            // They would modify TCR_EL1 and SCTLR_EL1.
            "TCR2_EL1" "S3_0_C2_C0_3", 0, "S3_0_C0_C7_3" 0, "";
            "SCTLR2_EL1" "S3_0_C1_C0_3", 0, "S3_0_C0_C7_3" 4, "";
        }
    };
}

/// `close_registers`: a line of assembly for each row.
macro_rules! as_assembly {
    ($($name:literal $register:literal, $value:literal, $id:literal $shift:literal, $unless:literal;)*) => {
        concat!(
            "    .macro  close_registers\n",
            $("    close   ", $register, ", ", $value, ", ", $id, ", ", $shift, ", ", $unless, "\n",)*
            "    .endm\n",
        )
    };
}

macro_rules! as_check {
    ($($name:literal $register:literal, $value:literal, $id:literal $shift:literal, $unless:tt;)*) => {
        /// The first register of the table that this CPU has and that is not as `entry.S` writes it.
        pub fn open_register() -> Option<&'static str> {
            $(
                if !matches!(read!($id) >> $shift & 0xf, 0 | 0xf)
                    && !as_check!(@kept $unless)
                    && read!($register) != $value
                {
                    return Some($name);
                }
            )*
            None
        }
    };
    (@kept "") => { false };
    (@kept $unless:literal) => { read!($unless) & 1 << 4 != 0 };
}

/// Reads a register that this CPU has.
macro_rules! read {
    ($register:literal) => {{
        let value: u64;
        // SAFETY: the ID registers define it, and reading it changes nothing.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $register), out(reg) value, options(nomem, nostack)) };
        value
    }};
}

registers!(as_check);

pub(crate) use {as_assembly, registers};
