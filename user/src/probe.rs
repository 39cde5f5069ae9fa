//! Accesses that may fault: the result is that of SIGSEGV or SIGBUS.

#![allow(unsafe_code, reason = "system calls, and memory that they map")]

use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};

use granule_abi::signal::{BUS_ADRERR, SEGV_ACCERR, SEGV_MAPERR, SIGBUS, SIGSEGV, SigInfo, UContext};

use crate::signal;

/// The fault of an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// SIGSEGV or SIGBUS; of code SIGILL as well.
    pub signal: u32,
    /// `si_code`.
    pub code: i32,
    /// `si_addr`.
    pub address: u64,
}

/// The fault of an access where nothing is mapped, or to a guard.
pub const fn not_mapped(address: u64) -> Fault {
    Fault { signal: SIGSEGV, code: SEGV_MAPERR, address }
}

/// The fault of an access that the mapping's protection does not allow.
pub const fn not_allowed(address: u64) -> Fault {
    Fault { signal: SIGSEGV, code: SEGV_ACCERR, address }
}

/// The fault of an access behind the end of the file that is mapped.
pub const fn behind_the_end(address: u64) -> Fault {
    Fault { signal: SIGBUS, code: BUS_ADRERR, address }
}

static SIGNAL: AtomicU32 = AtomicU32::new(0);
static CODE: AtomicI32 = AtomicI32::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);

/// Records the fault and continues: after a load or store, or where a call would have returned to.
extern "C" fn note(signal: u32, info: &SigInfo, context: &mut UContext) {
    SIGNAL.store(signal, Ordering::Relaxed);
    CODE.store(info.code, Ordering::Relaxed);
    ADDRESS.store(info.address(), Ordering::Relaxed);
    let registers = &mut context.context;
    registers.pc = if registers.pc == info.address() { registers.registers[30] } else { registers.pc + 4 };
}

/// Prepares for accesses that fault: the process's handlers are these from now on. One thread at a time may probe.
///
/// # Panics
/// When there can be no handlers.
pub fn prepare() {
    prepare_for(&[SIGSEGV, SIGBUS]);
}

/// As [`prepare`], for these signals alone: SIGILL is an outcome of [`call`] where code is refused.
///
/// # Panics
/// When there can be no handlers.
pub fn prepare_for(signals: &[u32]) {
    for &number in signals {
        // SAFETY: the handler touches atomics and its own frame.
        unsafe { signal::handle(number, note, 0, 0) }.expect("a handler");
    }
}

/// The signal that the last access raised, as an error, or `Ok`; clears it.
///
/// # Errors
/// The access faulted.
pub fn outcome() -> Result<(), Fault> {
    match SIGNAL.swap(0, Ordering::Relaxed) {
        0 => Ok(()),
        signal => Err(Fault { signal, code: CODE.load(Ordering::Relaxed), address: ADDRESS.load(Ordering::Relaxed) }),
    }
}

/// Reads a byte.
///
/// # Errors
/// The access faulted.
pub fn read(address: u64) -> Result<u8, Fault> {
    #[cfg_attr(not(target_arch = "aarch64"), expect(unused_mut))]
    let mut value = 0_u64;
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a load changes nothing, and where it faults the handler continues after it.
    unsafe {
        core::arch::asm!("ldrb {0:w}, [{1}]", inlateout(reg) value, in(reg) address, options(nostack))
    };
    #[cfg(not(target_arch = "aarch64"))]
    let _ = address;
    outcome().map(|()| value as u8)
}

/// Reads a word of a device, or of memory.
///
/// # Errors
/// The access faulted.
pub fn read_word(address: u64) -> Result<u32, Fault> {
    #[cfg_attr(not(target_arch = "aarch64"), expect(unused_mut))]
    let mut value = 0_u64;
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a load changes no memory, and where it faults the handler continues after it.
    unsafe {
        core::arch::asm!("ldr {0:w}, [{1}]", inlateout(reg) value, in(reg) address, options(nostack))
    };
    #[cfg(not(target_arch = "aarch64"))]
    let _ = address;
    outcome().map(|()| value as u32)
}

/// Writes a word of a device.
///
/// # Errors
/// The access faulted.
///
/// # Safety
/// Where it may be written, it is a device's.
pub unsafe fn write_word(address: u64, value: u32) -> Result<(), Fault> {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's promise; where it faults the handler continues after it.
    unsafe {
        core::arch::asm!("str {0:w}, [{1}]", in(reg) value, in(reg) address, options(nostack))
    };
    #[cfg(not(target_arch = "aarch64"))]
    let _ = (address, value);
    outcome()
}

/// Writes a byte.
///
/// # Errors
/// The access faulted.
///
/// # Safety
/// Where it may be written, it is the caller's, and there is no reference to it.
pub unsafe fn write(address: u64, value: u8) -> Result<(), Fault> {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's promise; where it faults the handler continues after it.
    unsafe {
        core::arch::asm!("strb {0:w}, [{1}]", in(reg) u32::from(value), in(reg) address, options(nostack))
    };
    #[cfg(not(target_arch = "aarch64"))]
    let _ = (address, value);
    outcome()
}

/// Calls the code at the address.
///
/// # Errors
/// The access faulted.
///
/// # Safety
/// Where it may be executed, a function is there that changes no registers but those that calls may change.
pub unsafe fn call(address: u64) -> Result<(), Fault> {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's promise; where the fetch faults the handler continues after the call.
    unsafe {
        core::arch::asm!("blr {}", in(reg) address, clobber_abi("C"))
    };
    #[cfg(not(target_arch = "aarch64"))]
    let _ = address;
    outcome()
}

/// One instruction that does what it may not do, with an address in x10.
#[macro_export]
macro_rules! offend {
    ($text:literal, $address:expr) => {{
        let address: u64 = $address;
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the instruction faults, and the handler continues after it.
        unsafe { core::arch::asm!($text, in("x10") address, lateout("x9") _, options(nostack)) };
        #[cfg(not(target_arch = "aarch64"))]
        let _: (&str, u64) = ($text, address);
    }};
}
