//! The signal that a handler found last, and its frame.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use granule_abi::signal::{ESR_MAGIC, FPSIMD_MAGIC, SigInfo, UContext};

/// The fields that [`note`] stores.
#[derive(Debug)]
pub struct Seen {
    /// Signals since the last [`Self::take`].
    pub count: AtomicU32,
    /// The last one's number.
    pub signal: AtomicU32,
    /// `si_code`.
    pub code: AtomicU32,
    /// `si_addr`, or `si_pid` in its lower half.
    pub address: AtomicU64,
    /// `fault_address` of the frame.
    pub far: AtomicU64,
    /// ESR_EL1, of the frame's record; 0 where there is none.
    pub syndrome: AtomicU64,
    /// The PC that was interrupted.
    pub pc: AtomicU64,
    /// An address on the handler's stack.
    pub sp: AtomicU64,
}

/// Of this process.
pub static SEEN: Seen = Seen {
    count: AtomicU32::new(0),
    signal: AtomicU32::new(0),
    code: AtomicU32::new(0),
    address: AtomicU64::new(0),
    far: AtomicU64::new(0),
    syndrome: AtomicU64::new(0),
    pc: AtomicU64::new(0),
    sp: AtomicU64::new(0),
};

impl Seen {
    /// How many signals came since the last time, and the last one's number and code.
    pub fn take(&self) -> (u32, u32, i32) {
        let load = |word: &AtomicU32| word.load(Ordering::Relaxed);
        (self.count.swap(0, Ordering::Relaxed), load(&self.signal), load(&self.code) as i32)
    }
}

/// The word at an offset of a frame's records.
pub fn word(records: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([records[at], records[at + 1], records[at + 2], records[at + 3]])
}

/// A handler that notes its arguments and continues.
pub extern "C" fn note(signal: u32, info: &SigInfo, context: &mut UContext) {
    assert_eq!(info.signal as u32, signal, "si_signo");
    let records = &context.context.records.0;
    assert_eq!(word(records, 0), FPSIMD_MAGIC, "the first record");
    let (mut at, mut syndrome, local) = (0, 0, 0_u8);
    while word(records, at) != 0 {
        if word(records, at) == ESR_MAGIC {
            syndrome = u64::from(word(records, at + 8)) | u64::from(word(records, at + 12)) << 32;
        }
        at += word(records, at + 4) as usize;
    }
    for (place, word) in [(&SEEN.signal, signal), (&SEEN.code, info.code as u32)] {
        place.store(word, Ordering::Relaxed);
    }
    for (place, word) in [
        (&SEEN.address, info.address()),
        (&SEEN.far, context.context.fault_address),
        (&SEEN.syndrome, syndrome),
        (&SEEN.pc, context.context.pc),
        (&SEEN.sp, (&raw const local).addr() as u64),
    ] {
        place.store(word, Ordering::Relaxed);
    }
    SEEN.count.fetch_add(1, Ordering::Relaxed);
}

/// As [`note`]; goes on after the instruction.
pub extern "C" fn skip(signal: u32, info: &SigInfo, context: &mut UContext) {
    note(signal, info, context);
    context.context.pc += 4;
}

/// As [`note`]; goes on where a call that faulted at its target would have returned to.
pub extern "C" fn come_back(signal: u32, info: &SigInfo, context: &mut UContext) {
    note(signal, info, context);
    context.context.pc = context.context.registers[30];
}

/// As [`note`]; goes on after an access, as [`skip`], or where a call would have returned to, as [`come_back`].
pub extern "C" fn go_on(signal: u32, info: &SigInfo, context: &mut UContext) {
    // But for tags.
    let is_call = context.context.pc << 8 == info.address() << 8;
    if is_call { come_back(signal, info, context) } else { skip(signal, info, context) }
}
