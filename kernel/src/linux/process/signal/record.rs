//! Signals as they are read from files.

use core::mem::offset_of;

use granule_abi::signal::{
    SI_KERNEL, SI_SIGIO, SI_TIMER, SI_USER, SIGBUS, SIGCHLD, SIGFPE, SIGILL, SIGSEGV, SIGSYS, SIGTRAP, SignalfdSiginfo,
};

use super::{Signal, SignalCause};

/// Bytes of a record.
pub const RECORD: usize = size_of::<SignalfdSiginfo>();

/// The meaning of the words after the code of a signal.
enum Layout {
    Sender,
    SenderWithValue,
    Timer,
    Child,
    Events,
    Address,
    /// With how much memory is gone there.
    AddressOfMemory,
    Call,
}

impl Layout {
    /// As Linux's `siginfo_layout`: a program may give itself any code.
    const fn of(signal: Signal, code: i32) -> Self {
        /// The codes of SIGIO, which each signal without codes of its own has.
        const EVENTS: i32 = 6;
        match (code, signal.number()) {
            (SI_TIMER, _) => Self::Timer,
            (SI_SIGIO, _) => Self::Events,
            (..SI_USER, _) => Self::SenderWithValue,
            (SI_USER | SI_KERNEL.., _) => Self::Sender,
            (4..=5, SIGBUS) => Self::AddressOfMemory,
            (..=3, SIGBUS) | (..=11, SIGILL) | (..=15, SIGFPE) | (..=10, SIGSEGV) | (..=6, SIGTRAP) => Self::Address,
            (..=6, SIGCHLD) => Self::Child,
            (..=2, SIGSYS) => Self::Call,
            (..=EVENTS, _) => Self::Events,
            _ => Self::Sender,
        }
    }
}

/// The record of a signal: the bytes of a [`SignalfdSiginfo`].
pub fn record(signal: Signal, cause: &SignalCause) -> [u8; RECORD] {
    let mut bytes = [0; RECORD];
    let mut put = |at: usize, value: &[u8]| {
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    };
    let [first, second] = cause.fields.map(u64::to_le_bytes);
    let ([low, high], [value, next]) = (halves(&first), halves(&second));
    put(offset_of!(SignalfdSiginfo, signo), &signal.number().to_le_bytes());
    put(offset_of!(SignalfdSiginfo, code), &cause.code.to_le_bytes());
    let layout = Layout::of(signal, cause.code);
    if matches!(layout, Layout::Sender | Layout::SenderWithValue | Layout::Child) {
        put(offset_of!(SignalfdSiginfo, pid), low);
        put(offset_of!(SignalfdSiginfo, uid), high);
    }
    if matches!(layout, Layout::SenderWithValue | Layout::Timer) {
        put(offset_of!(SignalfdSiginfo, int), value);
        put(offset_of!(SignalfdSiginfo, ptr), &second);
    }
    match layout {
        Layout::Sender | Layout::SenderWithValue => {}
        Layout::Timer => {
            put(offset_of!(SignalfdSiginfo, tid), low);
            put(offset_of!(SignalfdSiginfo, overrun), high);
        }
        Layout::Child => put(offset_of!(SignalfdSiginfo, status), value),
        Layout::Events => {
            put(offset_of!(SignalfdSiginfo, band), low);
            put(offset_of!(SignalfdSiginfo, fd), value);
        }
        Layout::Address => put(offset_of!(SignalfdSiginfo, addr), &first),
        Layout::AddressOfMemory => {
            put(offset_of!(SignalfdSiginfo, addr), &first);
            put(offset_of!(SignalfdSiginfo, addr_lsb), halves(value)[0]);
        }
        Layout::Call => {
            put(offset_of!(SignalfdSiginfo, call_addr), &first);
            put(offset_of!(SignalfdSiginfo, syscall), value);
            put(offset_of!(SignalfdSiginfo, arch), next);
        }
    }
    bytes
}

/// The lower bytes, and the upper ones.
fn halves(bytes: &[u8]) -> [&[u8]; 2] {
    bytes.split_at_checked(bytes.len() / 2).unwrap_or_default().into()
}
