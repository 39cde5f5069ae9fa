//! A few return addresses of the calls that led to an allocation or a free.

#![cfg_attr(target_os = "none", allow(unsafe_code, reason = "reads frame records"))]

use granule_arch::addr::VirtAddr;

use crate::mm::layout::{FIXMAP_BASE, IMAGE_BASE};

/// The innermost return addresses, their low halves; 0 where the chain is shorter. All code lies in the image, and that
/// in 4 GiB with one upper half.
///
/// A vector's own functions take two or three of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(transparent)]
pub(super) struct Calls<const DEPTH: usize = 4>([u32; DEPTH]);

const _: () = assert!(IMAGE_BASE.0 >> 32 == (FIXMAP_BASE.0 - 1) >> 32);

impl<const DEPTH: usize> Calls<DEPTH> {
    /// None.
    pub(super) const NONE: Self = Self([0; DEPTH]);

    /// Notes those of the caller, the address that it returns to first. A record that is not on the stack in use ends
    /// the chain.
    #[cfg(target_os = "none")]
    #[inline(never)]
    pub(super) fn note(&mut self) {
        let (mut record, sp): (u64, u64);
        // SAFETY: reads two registers, and the record of this function, which begins with its caller's.
        unsafe {
            core::arch::asm!("ldr {0}, [x29]", "mov {1}, sp", out(reg) record, out(reg) sp,
                options(readonly, nostack, preserves_flags));
        }
        let above = crate::smp::this_cpu().trap().stack_top().wrapping_sub(sp);
        for call in &mut self.0 {
            if record.wrapping_sub(sp) >= above {
                *call = 0;
                break;
            }
            // SAFETY: a frame record (AAPCS64 6.4.6): two words, on the stack that is in use.
            let [next, pc] = unsafe { VirtAddr(record).as_ptr::<[u64; 2]>().read() };
            *call = pc as u32;
            record = next;
        }
    }

    /// None: the host's stack has other rules.
    #[cfg(not(target_os = "none"))]
    pub(super) fn note(&mut self) {
        *self = Self::NONE;
    }
}

/// A line for each call, by the address of its instruction.
impl<const DEPTH: usize> core::fmt::Display for Calls<DEPTH> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        show(&self.0, f)
    }
}

/// Out of line: chains of both lengths are shown by it.
#[inline(never)]
fn show(calls: &[u32], f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
    for low in calls.iter().take_while(|low| **low != 0) {
        let address = IMAGE_BASE.0 & !u64::from(u32::MAX) | u64::from(*low);
        writeln!(f, "    {}", crate::symbols::Named(VirtAddr(address - 4)))?;
    }
    Ok(())
}
