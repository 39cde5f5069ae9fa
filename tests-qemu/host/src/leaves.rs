//! The kernel's page tables, walked from outside.
//!
//! Written from the Arm ARM (D8.3, "Translation table descriptor formats", 4 KiB granule) and from nothing of the
//! kernel: a mistake that both shared would not be found by comparing them.

use anyhow::{Result, bail, ensure};
use granule_runner::gdb::Gdb;

/// A block, a page, or a contiguous group of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// First virtual address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Whether EL1 may write.
    pub writable: bool,
    /// Whether EL1 may execute, tables on the way considered.
    pub executable: bool,
    /// Whether the memory type is one of Device.
    pub device: bool,
}

/// All leaves below TTBR1_EL1, in the order of their addresses; the machine must stand still.
///
/// # Errors
/// When the tables are not of the form that the kernel uses, or not in memory.
pub fn read(gdb: &mut Gdb) -> Result<Vec<Leaf>> {
    let (root, control) = (gdb.register("TTBR1_EL1")?, gdb.register("TCR_EL1")?);
    let mair = gdb.register("MAIR_EL1")?;
    let (bits, granule) = (64 - (control >> 16 & 0x3f), control >> 30 & 0b11);
    ensure!(granule == 0b10, "TCR_EL1.TG1 is {granule:#b}, not 4 KiB");
    ensure!(bits == 48, "TCR_EL1.T1SZ makes {bits} bits of address; this walks four levels of 48");
    let mut walk = Walk { gdb, mair, leaves: Vec::new() };
    walk.table(root & 0x0000_ffff_ffff_f000, 0, !0 << bits, Permitted { write: true, execute: true })?;
    merge_groups(walk.leaves)
}

/// The permissions that tables on the way leave to the leaves below them.
#[derive(Clone, Copy)]
struct Permitted {
    write: bool,
    execute: bool,
}

struct Walk<'a> {
    gdb: &'a mut Gdb,
    mair: u64,
    leaves: Vec<Entry>,
}

/// An entry that is a leaf.
#[derive(Clone, Copy)]
struct Entry {
    leaf: Leaf,
    physical: u64,
    contiguous: bool,
}

impl Walk<'_> {
    fn table(&mut self, table: u64, level: u32, start: u64, above: Permitted) -> Result<()> {
        let bytes = self.gdb.physical(table, 4096)?;
        let size = 1u64 << (39 - 9 * level);
        for (i, entry) in bytes.chunks_exact(8).enumerate() {
            let entry = u64::from_le_bytes(entry.try_into()?);
            let address = start + i as u64 * size;
            match (entry & 0b11, level) {
                (0b00 | 0b10, _) => {}
                (0b11, 0..=2) => {
                    // APTable[1] (bit 62) takes writes away, PXNTable (bit 59) execution at EL1.
                    let below = Permitted {
                        write: above.write && entry >> 62 & 1 == 0,
                        execute: above.execute && entry >> 59 & 1 == 0,
                    };
                    self.table(entry & 0x0000_ffff_ffff_f000, level + 1, address, below)?;
                }
                (0b01, 1..=2) | (0b11, 3) => self.leaf(entry, address, size, above),
                _ => bail!("the entry for {address:#x} at level {level}, {entry:#x}, is reserved"),
            }
        }
        Ok(())
    }

    fn leaf(&mut self, entry: u64, start: u64, size: u64, above: Permitted) {
        let attributes = self.mair >> (8 * (entry >> 2 & 0b111)) & 0xff;
        let leaf = Leaf {
            start,
            size,
            // AP[2] is bit 7, PXN bit 53.
            writable: above.write && entry >> 7 & 1 == 0,
            executable: above.execute && entry >> 53 & 1 == 0,
            // MAIR: a high nibble of 0 is Device.
            device: attributes >> 4 == 0,
        };
        let physical = entry & 0x0000_ffff_ffff_f000;
        self.leaves.push(Entry { leaf, physical, contiguous: entry >> 52 & 1 != 0 });
    }
}

/// Makes one leaf of the sixteen of a contiguous group.
///
/// A TLB may take any entry of a group for all of it (Arm ARM D8.7.1), and QEMU never does; so that a group is whole
/// and of one piece is found out here or nowhere.
fn merge_groups(entries: Vec<Entry>) -> Result<Vec<Leaf>> {
    const ENTRIES: usize = 16;
    let mut merged: Vec<Leaf> = Vec::new();
    let mut left = &entries[..];
    while let Some((first, rest)) = left.split_first() {
        if !first.contiguous {
            merged.push(first.leaf);
            left = rest;
            continue;
        }
        let size = first.leaf.size * ENTRIES as u64;
        let aligned = (first.leaf.start | first.physical).is_multiple_of(size);
        ensure!(aligned, "{:#x} is contiguous, and its group has no entry before it", first.leaf.start);
        ensure!(left.len() >= ENTRIES, "the group at {:#x} ends early", first.leaf.start);
        let (group, behind) = left.split_at(ENTRIES);
        for (entry, offset) in group.iter().zip((0..size).step_by(first.leaf.size as usize)) {
            let leaf = Leaf { start: first.leaf.start + offset, ..first.leaf };
            let like_the_first = entry.contiguous && entry.leaf == leaf && entry.physical == first.physical + offset;
            ensure!(
                like_the_first,
                "{:#x} does not go with its group, which begins at {:#x}",
                leaf.start,
                first.leaf.start
            );
        }
        merged.push(Leaf { size, ..first.leaf });
        left = behind;
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::{Entry, Leaf, merge_groups};

    const PAGE: u64 = 0x1000;

    /// Pages of a group and two after it.
    fn entries() -> Vec<Entry> {
        let leaf = |page| Leaf { start: page * PAGE, size: PAGE, writable: true, executable: false, device: false };
        let entry = |page| Entry { leaf: leaf(page), physical: (0x100 + page) * PAGE, contiguous: page < 16 };
        (0..18).map(entry).collect()
    }

    #[test]
    fn a_group_is_one_leaf() {
        let sizes: Vec<u64> = merge_groups(entries()).unwrap().iter().map(|leaf| leaf.size).collect();
        assert_eq!(sizes, [16 * PAGE, PAGE, PAGE]);
    }

    #[test]
    fn a_group_that_is_not_of_one_piece_is_refused() {
        let spoilt = |spoil: fn(&mut Vec<Entry>)| {
            let mut entries = entries();
            spoil(&mut entries);
            merge_groups(entries).unwrap_err().to_string()
        };
        assert!(spoilt(|entries| entries[9].contiguous = false).contains("does not go with its group"));
        assert!(spoilt(|entries| entries[9].leaf.writable = false).contains("does not go with its group"));
        assert!(spoilt(|entries| entries[9].physical += PAGE).contains("does not go with its group"));
        assert!(
            spoilt(|entries| entries.retain(|entry| entry.leaf.start != 9 * PAGE))
                .contains("does not go with its group")
        );
        assert!(spoilt(|entries| entries[0].contiguous = false).contains("no entry before it"));
        assert!(spoilt(|entries| entries.truncate(12)).contains("ends early"));
    }
}
