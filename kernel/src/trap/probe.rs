//! Access that may fault: reads, writes or executes at any address, and gives a fault back as a value.
//!
//! Each access is one instruction with an entry in the exception table. The fault comes back in registers, not in
//! memory, so that every CPU may probe at the same time, interrupts included. A spurious translation fault is retried
//! before it gets here: an `Err` is the tables' answer.

#![allow(unsafe_code, reason = "vectors, stack frames and accesses that may fault, in assembly")]

use core::fmt;

use granule_arch::addr::VirtAddr;
use granule_arch::cache::CodeCaches;
use granule_arch::esr::{Access, Syndrome};
use granule_arch::mte::Tag;

/// A synchronous exception that an access took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProbeFault {
    /// ESR_EL1: what happened.
    pub syndrome: Syndrome,
    /// FAR_EL1: the address that it happened at.
    pub address: VirtAddr,
}

impl ProbeFault {
    /// The level of the walk at which the fault was found, where it is a fault that has one.
    pub fn level(&self) -> Option<i8> {
        self.syndrome.abort()?.level
    }

    /// Whether the access was a write.
    pub fn is_write(&self) -> bool {
        self.syndrome.abort().is_some_and(|abort| abort.access == Access::Write)
    }
}

/// "permission fault, level 3, on a write to 0xffff800100001000".
impl fmt::Display for ProbeFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let preposition = match self.syndrome.abort().map(|abort| abort.access) {
            Some(Access::Read) => "of",
            Some(Access::Write) => "to",
            Some(Access::Fetch) => "from",
            Some(Access::Maintenance) | None => "at",
        };
        write!(f, "{} {preposition} {}", self.syndrome, self.address)
    }
}

impl core::error::Error for ProbeFault {}

mod sealed {
    pub trait Sealed {}
}

/// An integer that one instruction loads or stores: `u8`, `u16`, `u32`, `u64`.
pub trait Width: Copy + sealed::Sealed {
    #[doc(hidden)]
    fn load(address: VirtAddr) -> Result<Self, ProbeFault>;

    /// # Safety
    /// The contract of [`write`].
    #[doc(hidden)]
    unsafe fn store(address: VirtAddr, value: Self) -> Result<(), ProbeFault>;
}

/// Reads a `T` at `address` by a single load.
///
/// Any address is allowed: what nothing answers at comes back as an error. A read of a device's register has whatever
/// effect that register gives it.
///
/// # Errors
/// The fault that the load took.
pub fn read<T: Width>(address: VirtAddr) -> Result<T, ProbeFault> {
    T::load(address)
}

/// Reads the tag of the granule at `address` (LDG).
///
/// Any address is allowed, as for [`read`]. Where memory has no tags the instruction is undefined, which is an error too.
///
/// # Errors
/// The fault that the load took.
pub fn load_tag(address: VirtAddr) -> Result<Tag, ProbeFault> {
    machine::load_tag(address)
}

/// Writes the cache lines of the `bytes` bytes at `start`, of one page, back to memory and drops them (DC CIVAC). Complete
/// behind a DSB.
///
/// Any address is allowed, as for [`read`]. The host notes the instructions and refuses none.
///
/// # Errors
/// The fault that an access took; lines before it are dropped.
pub fn drop_lines(start: VirtAddr, bytes: u64) -> Result<(), ProbeFault> {
    let line = CodeCaches::of_this_cpu().data_line;
    // A load faults under an emulator as well, whose maintenance translates nothing.
    machine::touch(start)?;
    (start.align_down(line).0..start.0.saturating_add(bytes))
        .step_by(line as usize)
        .map(VirtAddr)
        .try_for_each(machine::drop_line)
}

/// Writes `value` at `address` by a single store.
///
/// # Safety
/// Where the address is mapped writable, the caller must be entitled to change what lies there.
///
/// # Errors
/// The fault that the store took; nothing was written then.
pub unsafe fn write<T: Width>(address: VirtAddr, value: T) -> Result<(), ProbeFault> {
    // SAFETY: the caller's promise is the same.
    unsafe { T::store(address, value) }
}

/// Calls the code at `address`, which takes no arguments, follows the procedure call standard (AAPCS64) and returns.
///
/// # Safety
/// Where the address can be executed, whatever lies there must be code that may be run now.
///
/// # Errors
/// The exception that the *first* instruction took, be it the fetch or the instruction itself. An exception further on
/// is not the probe's any more: it is reported like any other of the kernel.
pub unsafe fn execute(address: VirtAddr) -> Result<(), ProbeFault> {
    // SAFETY: the caller's promise is the same.
    unsafe { machine::call(address) }
}

#[cfg(target_os = "none")]
pub(super) use machine::refused_call;

#[cfg(target_os = "none")]
mod machine {
    use core::arch::asm;

    use granule_arch::addr::VirtAddr;
    use granule_arch::esr::Syndrome;
    use granule_arch::mte::Tag;

    use super::super::extable;
    use super::super::frame::TrapFrame;
    use super::{ProbeFault, Width, sealed};

    /// The outcome, from x16 and x17 as the rule of a fixup leaves them.
    fn outcome(esr: u64, far: u64) -> Result<(), ProbeFault> {
        if esr == 0 { Ok(()) } else { Err(ProbeFault { syndrome: Syndrome(esr), address: VirtAddr(far) }) }
    }

    /// An exception table's entry: after a fault of the instruction at `1`, `2` is next.
    macro_rules! entry {
        () => {
            ".pushsection .extable, \"a\"\n.balign 4\n.long 1b - ., 2b - .\n.popsection"
        };
    }

    /// One load or store, of what is in `value` and to there.
    macro_rules! access {
        ($instruction:literal, $address:expr, $value:expr) => {{
            let mut value: u64 = $value;
            let (esr, far): (u64, u64);
            // SAFETY: a load changes no memory, and what lies where a store goes its caller may change; where either
            // faults the exception table ends it.
            unsafe {
                asm!(
                    concat!("1: ", $instruction),
                    "2:",
                    entry!(),
                    value = inout(reg) value,
                    address = in(reg) $address.0,
                    inout("x16") 0u64 => esr,
                    out("x17") far,
                    options(nostack, preserves_flags),
                );
            }
            outcome(esr, far).map(|()| value)
        }};
    }

    macro_rules! width {
        ($type:ty, $load:literal, $store:literal) => {
            impl sealed::Sealed for $type {}

            impl Width for $type {
                #[inline(never)]
                fn load(address: VirtAddr) -> Result<Self, ProbeFault> {
                    access!($load, address, 0).map(|value| value as $type)
                }

                #[inline(never)]
                unsafe fn store(address: VirtAddr, value: Self) -> Result<(), ProbeFault> {
                    access!($store, address, value.into()).map(drop)
                }
            }
        };
    }

    width!(u8, "ldrb {value:w}, [{address}]", "strb {value:w}, [{address}]");
    width!(u16, "ldrh {value:w}, [{address}]", "strh {value:w}, [{address}]");
    width!(u32, "ldr {value:w}, [{address}]", "str {value:w}, [{address}]");
    width!(u64, "ldr {value}, [{address}]", "str {value}, [{address}]");

    #[inline(never)]
    pub(super) fn load_tag(address: VirtAddr) -> Result<Tag, ProbeFault> {
        let word = access!(".arch_extension memtag\nldg {value}, [{address}]\n.arch_extension nomemtag", address, 0);
        word.map(|word| Tag::of(VirtAddr(word)))
    }

    pub(super) fn touch(address: VirtAddr) -> Result<(), ProbeFault> {
        u8::load(address).map(drop)
    }

    #[inline(never)]
    pub(super) fn drop_line(address: VirtAddr) -> Result<(), ProbeFault> {
        access!("dc civac, {address}\nmov {value}, xzr", address, 0).map(drop)
    }

    /// # Safety
    /// The contract of [`super::execute`].
    #[inline(never)]
    pub(super) unsafe fn call(address: VirtAddr) -> Result<(), ProbeFault> {
        let (esr, far): (u64, u64);
        // SAFETY: by the caller's contract the code may run; it keeps the procedure call standard, and every register
        // that the standard lets it change is declared. The ISB makes this CPU fetch under the tables as they are now.
        unsafe {
            asm!(
                "isb",
                "1: blr x17",
                "mov x16, xzr",
                "2:",
                entry!(),
                out("x16") esr,
                inout("x17") address.0 => far,
                clobber_abi("C"),
            );
        }
        outcome(esr, far)
    }

    /// Where to go on if `frame` is the exception of a probe's call on the very instruction that it called.
    ///
    /// The exception is not at the BLR but at its target. It is the probe's exactly if the CPU is at the address in x17
    /// and x30 points after an instruction of the exception table: the only one of them that sets x30 is that BLR, and
    /// had the called code run on, the CPU would be elsewhere.
    pub(in super::super) fn refused_call(frame: &TrapFrame) -> Option<u64> {
        if frame.elr != frame.x[17] {
            return None;
        }
        extable::fixup(frame.x[30].wrapping_sub(4))
    }
}

/// On the host nothing is mapped: every probe is a translation fault at level 0.
#[cfg(not(target_os = "none"))]
mod machine {
    use granule_arch::addr::VirtAddr;
    use granule_arch::esr::Syndrome;
    use granule_arch::mte::Tag;

    use super::{ProbeFault, Width, sealed};

    fn fault(esr: u64, address: VirtAddr) -> ProbeFault {
        ProbeFault { syndrome: Syndrome(esr), address }
    }

    macro_rules! width {
        ($($type:ty)*) => {$(
            impl sealed::Sealed for $type {}

            impl Width for $type {
                fn load(address: VirtAddr) -> Result<Self, ProbeFault> {
                    Err(fault(0x9600_0004, address))
                }

                unsafe fn store(address: VirtAddr, _value: Self) -> Result<(), ProbeFault> {
                    Err(fault(0x9600_0044, address))
                }
            }
        )*};
    }

    width!(u8 u16 u32 u64);

    pub(super) fn load_tag(address: VirtAddr) -> Result<Tag, ProbeFault> {
        Err(fault(0x9600_0004, address))
    }

    pub(super) fn touch(_address: VirtAddr) -> Result<(), ProbeFault> {
        Ok(())
    }

    pub(super) fn drop_line(_address: VirtAddr) -> Result<(), ProbeFault> {
        granule_arch::recorded::note("dc civac");
        Ok(())
    }

    /// # Safety
    /// None: nothing is called.
    pub(super) unsafe fn call(address: VirtAddr) -> Result<(), ProbeFault> {
        Err(fault(0x8600_0004, address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_a_sentence() {
        let fault = |esr| ProbeFault { syndrome: Syndrome(esr), address: VirtAddr(0xffff_8001_0000_1000) }.to_string();
        assert_eq!(fault(0x9600_004f), "permission fault, level 3, on a write to 0xffff800100001000");
        assert_eq!(fault(0x9600_0007), "translation fault, level 3, on a read of 0xffff800100001000");
        assert_eq!(fault(0x8600_000f), "permission fault, level 3, on an instruction fetch from 0xffff800100001000");
        assert_eq!(fault(0x0200_0000), "undefined instruction at 0xffff800100001000");
    }

    #[test]
    fn the_host_refuses_every_probe() {
        let fault = read::<u32>(VirtAddr(0x1000)).unwrap_err();
        assert_eq!((fault.level(), fault.is_write()), (Some(0), false));
        assert_eq!(load_tag(VirtAddr(0x1000)).unwrap_err(), fault);
        // SAFETY: the host's probes touch nothing.
        let fault = unsafe { write(VirtAddr(0x1000), 1u8) }.unwrap_err();
        assert!(fault.is_write());
    }
}
