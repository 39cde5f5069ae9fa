//! Allocation tags (`PROT_MTE`) by single instructions, which no compiler moves or widens.

#![allow(unsafe_code, reason = "accesses to memory that the caller names")]

/// Bytes with one tag.
pub const GRANULE: u64 = 16;
/// All bits of a tag, as they are in an address.
pub const TAG_BITS: u64 = tag(0xf);

/// A tag, as it is in an address.
pub const fn tag(number: u64) -> u64 {
    number << 56
}

/// Instructions on x10, the address, and x9 and x11, values; one of them at least accesses memory.
#[macro_export]
macro_rules! instruction {
    ($text:literal, $address:expr) => {{
        let (mut x9, mut x10) = (0x5a5a_5a5a_5a5a_5a5a_u64, $address);
        #[cfg(target_arch = "aarch64")]
        // SAFETY: it accesses a page of the test; where that faults a handler continues after it.
        unsafe {
            core::arch::asm!(
                ".arch_extension memtag", ".arch_extension lse", $text, ".arch_extension nomemtag",
                inout("x9") x9, inout("x10") x10, inout("x11") 0x1111_1111_1111_1111_u64 => _, out("x12") _,
                options(nostack)
            );
        }
        let _: &mut u64 = &mut x10;
        let _: &mut u64 = &mut x9;
        (x9, x10)
    }};
}

/// The address with a random tag of those that the program has included.
pub fn irg(address: u64) -> u64 {
    instruction!("irg x10, x10", address).1
}

/// Gives the granule at an address the address's tag.
pub fn stg(address: u64) {
    instruction!("stg x10, [x10]", address);
}

/// The address with the tag of its granule.
pub fn ldg(address: u64) -> u64 {
    instruction!("ldg x10, [x10]", address).1
}

/// Gives all granules of a range the address's tag.
pub fn set_tags(address: u64, bytes: u64) {
    (0..bytes / GRANULE).for_each(|granule| stg(address + granule * GRANULE));
}

/// Loads the byte at an address.
pub fn load(address: u64) -> u8 {
    instruction!("ldrb w9, [x10]", address).0 as u8
}

/// Stores 0x5a to an address.
pub fn store(address: u64) {
    instruction!("strb w9, [x10]", address);
}

/// As [`store`], with PSTATE.TCO set: the access is not checked.
pub fn store_unchecked(address: u64) {
    instruction!("msr tco, #1\nstrb w9, [x10]\nmsr tco, #0", address);
}
