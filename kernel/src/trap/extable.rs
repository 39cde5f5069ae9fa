//! The exception table: instructions that may fault, and where to go on when they do.
//!
//! An entry is two 32-bit offsets, each relative to its own place, so that the table needs no relocation and lies in
//! read-only memory. **The rule of a fixup**: when the handler resumes there, x16 holds ESR_EL1 and x17 holds FAR_EL1;
//! every other register is as the faulting instruction left it. ESR_EL1 is never 0, so 0 in x16 can mean that nothing
//! happened.
//!
//! The table has a handful of entries, one for each probing instruction, so it is scanned as the linker left it.

#![allow(unsafe_code, reason = "vectors, stack frames and accesses that may fault, in assembly")]

/// One entry, as `probe` writes it in assembly.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ExtableEntry {
    /// The instruction that may fault, relative to this field.
    instruction: i32,
    /// Where to go on, relative to this field.
    fixup: i32,
}

/// Where to go on after a fault of the instruction at `pc`; `None` where a fault is not expected there.
pub(super) fn fixup(pc: u64) -> Option<u64> {
    unsafe extern "C" {
        static __extable_start: ExtableEntry;
        static __extable_end: ExtableEntry;
    }
    let start = &raw const __extable_start;
    let size = (&raw const __extable_end).addr() - start.addr();
    // SAFETY: the linker script lays the entries out between the two symbols, in memory that is never written.
    let entries = unsafe { core::slice::from_raw_parts(start, size / size_of::<ExtableEntry>()) };
    find(entries, start.addr() as u64, pc)
}

/// Looks `pc` up in a table that lies at `base`.
fn find(entries: &[ExtableEntry], base: u64, pc: u64) -> Option<u64> {
    entries.iter().zip((base..).step_by(size_of::<ExtableEntry>())).find_map(|(entry, at)| {
        let matches = at.wrapping_add_signed(i64::from(entry.instruction)) == pc;
        matches.then(|| (at + 4).wrapping_add_signed(i64::from(entry.fixup)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_count_from_their_own_place() {
        let base = 0xffff_8000_8010_0000;
        // Instructions at base − 0x1000 and base + 0x2000, fixups four bytes after each.
        let table = [
            ExtableEntry { instruction: -0x1000, fixup: -0x1004 + 4 },
            ExtableEntry { instruction: 0x2000 - 8, fixup: 0x2000 - 12 + 4 },
        ];
        assert_eq!(find(&table, base, base - 0x1000), Some(base - 0x1000 + 4));
        assert_eq!(find(&table, base, base + 0x2000), Some(base + 0x2004));
        assert_eq!(find(&table, base, base + 0x2004), None);
        assert_eq!(find(&[], base, base), None);
    }
}
