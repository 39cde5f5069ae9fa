//! The sites of the image.

#![allow(unsafe_code, reason = "the list of branch sites lies between symbols of the linker")]

use crate::addr::VirtAddr;
use crate::alternative::Record;
use crate::cache::CodeCaches;

/// The sites of this image.
pub fn records() -> &'static [Record] {
    unsafe extern "C" {
        static __alternatives_start: Record;
        static __alternatives_end: Record;
    }
    let start = &raw const __alternatives_start;
    let end = &raw const __alternatives_end;
    // SAFETY: linker/granule.ld puts the two symbols around the records that `patched_branch!` emits and nothing else;
    // the section is never written.
    unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Patches every site to what `enabled` returns for its identifier; returns how many instructions were changed.
///
/// `write` stores an instruction at an address of the text through some alias that may be written; the text itself need
/// not be. This CPU executes the new instructions once the function returns. Another CPU needs an ISB after that.
/// `caches` are those of all CPUs that run.
pub fn apply(enabled: impl Fn(u16) -> bool, caches: CodeCaches, mut write: impl FnMut(VirtAddr, u32)) -> usize {
    let mut changed = 0;
    for site in records().iter().map(Record::site) {
        let wanted = site.instruction(enabled(site.identifier));
        // SAFETY: the address is an instruction of the kernel's text, which is readable. Volatile: `write` changes it
        // by another address.
        let found = unsafe { site.address.as_ptr::<u32>().read_volatile() };
        if found == wanted {
            continue;
        }
        write(site.address, wanted);
        // SAFETY: the text is mapped readable.
        unsafe { crate::cache::sync_code(site.address, 4, caches) };
        changed += 1;
    }
    changed
}
