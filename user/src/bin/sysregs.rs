//! System registers that a program can read or write: those that are meant for it, and no other.
//!
//! All encodings of the space that EL0 has (Arm ARM D24: op1 = 3, both of op0 = 2, of debug, and op0 = 3), and those that
//! are IMPLEMENTATION DEFINED, are tried with MRS and MSR. [`OPEN`] is what the Arm ARM lists for EL0 and the kernel does not
//! withhold; all else raises SIGILL, whether the CPU has it or not.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "runs instructions that it makes")]

use granule_user::prelude::*;

entry!(run);
own!(protect);

/// op0, op1, CRn, CRm, op2.
type Encoding = [u32; 5];

/// Registers that a program may read, where the CPU has them.
const OPEN: [Encoding; 16] = [
    [3, 3, 0, 0, 1],  // CTR_EL0
    [3, 3, 0, 0, 7],  // DCZID_EL0
    [3, 3, 2, 4, 0],  // RNDR
    [3, 3, 2, 4, 1],  // RNDRRS
    [3, 3, 4, 2, 0],  // NZCV
    [3, 3, 4, 2, 5],  // DIT
    [3, 3, 4, 2, 6],  // SSBS
    [3, 3, 4, 2, 7],  // TCO
    [3, 3, 4, 4, 0],  // FPCR
    [3, 3, 4, 4, 1],  // FPSR
    [3, 3, 9, 14, 0], // PMUSERENR_EL0, which says that all else of the monitors is withheld
    [3, 3, 13, 0, 2], // TPIDR_EL0
    [3, 3, 13, 0, 3], // TPIDRRO_EL0
    [3, 3, 14, 0, 0], // CNTFRQ_EL0
    [3, 3, 14, 0, 2], // CNTVCT_EL0
    [3, 3, 14, 0, 6], // CNTVCTSS_EL0
];
/// Registers that a program may read, but not write.
const CONSTANT: [Encoding; 9] = [OPEN[0], OPEN[1], OPEN[2], OPEN[3], OPEN[10], OPEN[12], OPEN[13], OPEN[14], OPEN[15]];

const RET: u32 = 0xd65f_03c0;

/// MRS to x0.
fn mrs(encoding: Encoding) -> u32 {
    0xd530_0000 | fields(encoding)
}

/// MSR from XZR.
fn msr(encoding: Encoding) -> u32 {
    0xd510_001f | fields(encoding)
}

fn fields([op0, op1, crn, crm, op2]: Encoding) -> u32 {
    (op0 & 1) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5
}

/// All encodings that are tried.
fn encodings() -> impl Iterator<Item = Encoding> {
    let low = |op0, op1, crn| (0..16).flat_map(move |crm| (0..8).map(move |op2| [op0, op1, crn, crm, op2]));
    let of_el0 = [2, 3].into_iter().flat_map(move |op0| (0..16).flat_map(move |crn| low(op0, 3, crn)));
    let others = (0..8).filter(|op1| *op1 != 3);
    let defined = others.flat_map(move |op1| [11, 15].into_iter().flat_map(move |crn| low(3, op1, crn)));
    of_el0.chain(defined)
}

fn run(_: Start) -> u8 {
    probe::prepare();
    probe::prepare_for(&[SIGILL]);
    let bytes = encodings().count() as u64 * 16;
    let pages = bytes.div_ceil(PAGE);
    // SAFETY: the kernel finds a place.
    let code = unsafe { mmap(0, pages * PAGE, RW, PRIVATE) }.expect("memory");
    for (place, encoding) in (code..).step_by(16).zip(encodings()) {
        for (at, word) in (place..).step_by(4).zip([mrs(encoding), RET, msr(encoding), RET]) {
            // SAFETY: it was just mapped, for these.
            unsafe { (at as *mut u32).write(word) };
        }
    }
    protect(code, pages, PROT_READ | PROT_EXEC);
    for (place, encoding) in (code..).step_by(16).zip(encodings()) {
        // SAFETY: it changes x0 at most.
        let read = unsafe { probe::call(place) }.map_err(|fault| fault.signal);
        if !OPEN.contains(&encoding) {
            equal(("read", encoding), read, Err(SIGILL));
        }
        // TPIDR_EL0 is the program's own affair, and may hold an address that it needs.
        if !OPEN.contains(&encoding) || CONSTANT.contains(&encoding) {
            // SAFETY: it changes a register at most that no program is to reach.
            let written = unsafe { probe::call(place + 8) }.map_err(|fault| fault.signal);
            equal(("written", encoding), written, Err(SIGILL));
        }
        if encoding[2..] == [0, 0, 0] {
            process::sched_yield();
        }
    }
    status("system registers")
}
