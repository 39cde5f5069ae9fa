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
    Ok(merge_groups(walk.leaves))
}

/// What tables on the way leave to the leaves below them.
#[derive(Clone, Copy)]
struct Permitted {
    write: bool,
    execute: bool,
}

struct Walk<'a> {
    gdb: &'a mut Gdb,
    mair: u64,
    leaves: Vec<(Leaf, bool)>,
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
        self.leaves.push((leaf, entry >> 52 & 1 != 0));
    }
}

/// Makes one leaf of the sixteen of a contiguous group.
fn merge_groups(leaves: Vec<(Leaf, bool)>) -> Vec<Leaf> {
    let mut merged: Vec<Leaf> = Vec::new();
    let mut missing = 0;
    for (leaf, contiguous) in leaves {
        let group = leaf.size * 16;
        if contiguous && missing > 0 {
            missing -= 1;
        } else if contiguous && leaf.start % group == 0 {
            merged.push(Leaf { size: group, ..leaf });
            missing = 15;
        } else {
            merged.push(leaf);
        }
    }
    merged
}
