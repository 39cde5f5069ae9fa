//! Branches that are decided once, at boot: a NOP in the instruction stream that `apply` may turn into a jump; in
//! assembly, into another instruction too.
//!
//! [`patched_branch!`](crate::patched_branch) is `false` until its site is patched. Each use leaves a [`Record`] in the
//! section `.alternatives`: where the NOP is, where the jump goes, and whose switch it is. All of it relative to the
//! record, so that a position-independent image needs no relocation there. A test in a hot path costs one NOP, and no
//! load.
//!
//! NOP and B may replace each other while other CPUs execute them (Arm ARM B2.2.5, concurrent modification and
//! execution of instructions), other instructions may not; still `apply` decides every feature before the other CPUs
//! run, so that all see one kernel. Later it may be called for what a CPU may see late. On the host there is nothing to
//! patch: a site reads a plain flag of its identifier.

use crate::addr::VirtAddr;
pub use crate::machine::alternative::*;

/// Identifiers below this are CPU features, those from here on lab switches.
pub const FIRST_LAB: u16 = 64;
/// One more than the greatest identifier.
pub const IDENTIFIERS: u16 = 128;

/// The kind of a [`Record`] with an instruction in it. Only what is decided before other CPUs run may be such a site.
pub const INSTRUCTION: u16 = 1;
/// The instruction of a site that is off.
const NOP: u32 = 0xd503_201f;

/// One site, as `patched_branch!` lays it down in `.alternatives`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record {
    /// From this field to the instruction.
    site: i32,
    /// From this field to where it jumps when on, or the instruction that it is when on.
    target: i32,
    /// Number of the switch that the site obeys.
    identifier: u16,
    /// 0 where it jumps; [`INSTRUCTION`] where not.
    kind: u16,
}

/// A branch site with absolute addresses: one of these per record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Site {
    /// Address of the instruction.
    pub address: VirtAddr,
    /// The effect of the site when on.
    pub when_on: WhenOn,
    /// Number of the switch that the site obeys.
    pub identifier: u16,
}

/// The instruction that a site has when on, in the place of the NOP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WhenOn {
    /// A jump.
    Jump(VirtAddr),
    /// This instruction.
    Instruction(u32),
}

impl Record {
    /// The site, in addresses. The record must be the one in the section, not a copy: its own place counts.
    pub fn site(&self) -> Site {
        let resolve = |field: &i32| VirtAddr(VirtAddr::from_ptr(field).0.wrapping_add_signed((*field).into()));
        let when_on = match self.kind {
            INSTRUCTION => WhenOn::Instruction(self.target.cast_unsigned()),
            _ => WhenOn::Jump(resolve(&self.target)),
        };
        Site { address: resolve(&self.site), when_on, identifier: self.identifier }
    }
}

impl Site {
    /// The instruction that belongs at the site.
    ///
    /// # Panics
    /// Where the target is out of a branch's reach (±128 MiB), which the linker has made impossible.
    pub fn instruction(&self, on: bool) -> u32 {
        let target = match self.when_on {
            _ if !on => return NOP,
            WhenOn::Instruction(instruction) => return instruction,
            WhenOn::Jump(target) => target,
        };
        let offset = target.0.wrapping_sub(self.address.0).cast_signed();
        let words = offset >> 2;
        assert!(offset & 3 == 0 && (-(1 << 25)..1 << 25).contains(&words), "branch of {offset:#x} bytes");
        0x1400_0000 | (words as u32 & 0x03ff_ffff)
    }
}

/// Whether the switch with this identifier (a constant, below [`IDENTIFIERS`]) is on:
/// a NOP or a jump, no load.
#[macro_export]
macro_rules! patched_branch {
    ($identifier:expr) => {{
        const IDENTIFIER: u16 = $identifier;
        const { assert!(IDENTIFIER < $crate::alternative::IDENTIFIERS) };
        #[cfg(target_os = "none")]
        {
            'site: {
                // SAFETY: the site is a NOP, or a jump to the label block; the record is data beside it.
                unsafe {
                    core::arch::asm!(
                        "7: nop",
                        ".pushsection .alternatives, \"a\", @progbits",
                        ".balign 4",
                        ".long 7b - .",
                        ".long {on} - .",
                        ".short {identifier}",
                        ".short 0",
                        ".popsection",
                        identifier = const IDENTIFIER,
                        on = label { break 'site true },
                        options(nomem, nostack, preserves_flags)
                    );
                }
                false
            }
        }
        #[cfg(not(target_os = "none"))]
        {
            $crate::alternative::host::is_on(IDENTIFIER)
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::{INSTRUCTION, NOP, Record, Site, WhenOn, host};
    use crate::addr::VirtAddr;

    fn site(address: u64, target: u64) -> Site {
        Site { address: VirtAddr(address), when_on: WhenOn::Jump(VirtAddr(target)), identifier: 3 }
    }

    #[test]
    fn records_are_relative_to_their_fields() {
        let mut records = [Record { site: 0, target: 0, identifier: 0, kind: 0 }; 3];
        let base = VirtAddr::from_ptr(&raw const records).0;
        for (index, record) in records.iter_mut().enumerate() {
            let here = 12 * index as i32;
            // Each site 4 KiB below the array, 8 bytes apart; each target 64 bytes after its site.
            record.site = -4096 + 8 * index as i32 - here;
            record.target = -4096 + 8 * index as i32 + 64 - (here + 4);
            record.identifier = 60 + index as u16;
        }
        for (index, record) in records.iter().enumerate() {
            let address = VirtAddr(base - 4096 + 8 * index as u64);
            let expected = Site { address, when_on: WhenOn::Jump(address + 64), identifier: 60 + index as u16 };
            assert_eq!(record.site(), expected);
        }
    }

    #[test]
    fn a_site_may_have_an_instruction_of_its_own() {
        const MSR_TCO: u32 = 0xd503_409f;
        let record = Record { site: 0, target: MSR_TCO.cast_signed(), identifier: 3, kind: INSTRUCTION };
        let site = record.site();
        assert_eq!(site.when_on, WhenOn::Instruction(MSR_TCO));
        assert_eq!((site.instruction(true), site.instruction(false)), (MSR_TCO, NOP));
    }

    #[test]
    fn a_site_that_is_off_is_a_nop() {
        assert_eq!(site(0x1000, 0x2000).instruction(false), NOP);
    }

    #[test]
    fn a_site_that_is_on_jumps_either_way() {
        assert_eq!(site(0x1000, 0x1040).instruction(true), 0x1400_0010);
        assert_eq!(site(0x1040, 0x1000).instruction(true), 0x17ff_fff0);
        assert_eq!(site(0x1000, 0x1000 + (128 << 20) - 4).instruction(true), 0x15ff_ffff);
    }

    #[test]
    #[should_panic(expected = "branch of")]
    fn a_target_out_of_reach_is_refused() {
        let _ = site(0x1000, 0x1000 + (128 << 20)).instruction(true);
    }

    #[test]
    fn on_the_host_a_flag_stands_for_the_sites() {
        host::with(&[5], || assert!(crate::patched_branch!(5) && !crate::patched_branch!(6)));
        host::with(&[6], || assert!(!crate::patched_branch!(5) && crate::patched_branch!(6)));
        host::with(&[], || {
            host::set(5, true);
            assert!(crate::patched_branch!(5));
        });
        host::with(&[], || assert!(!crate::patched_branch!(5)));
    }
}
