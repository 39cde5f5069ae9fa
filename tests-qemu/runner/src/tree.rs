//! Device trees with tag storage, which QEMU's own do not have.
//!
//! QEMU writes the tree of the machine, a region is added at the end of memory, and `-dtb` gives the tree back. QEMU
//! replaces the memory node of such a tree by one without a phandle, so the region's node has no `tagged-memory`: it
//! tags the memory that it lies in.

use std::ffi::OsString;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use crate::machine::TagStorage;

/// Bytes of memory that have their tags in one byte.
const BYTES_PER_TAG_BYTE: u64 = 32;
/// The region's start and size are multiples of this.
const ALIGN: u64 = 2 << 20;

/// QEMU's options that change its tree and may stand among a caller's, each with a value.
const CHANGE_THE_TREE: [&str; 8] = ["-machine", "-M", "-cpu", "-smp", "-m", "-object", "-icount", "-seed"];

/// Writes the tree of the machine that `qemu` starts with `extra` after it, and with the region, beside `kernel`, and
/// returns the file's path. Another process may write it at the same time: both write the same, but for random seeds.
///
/// # Errors
/// When QEMU cannot be run, its tree is none, or the file cannot be written.
pub(crate) fn write(
    mut qemu: Command,
    extra: &[OsString],
    name: &str,
    storage: TagStorage,
    kernel: &Path,
) -> Result<PathBuf> {
    for option in extra.windows(2).filter(|pair| CHANGE_THE_TREE.iter().any(|option| pair[0] == *option)) {
        qemu.args(option);
    }
    // Boots of one machine run side by side with other CPUs and memory: a file for each.
    let mut hasher = DefaultHasher::new();
    qemu.get_args().for_each(|argument| argument.hash(&mut hasher));
    let file = kernel.with_file_name(format!("{name}-{:08x}.dtb", hasher.finish() as u32));
    let unfinished = unfinished(&file);
    // A comma in a value is written twice.
    let dump = format!("dumpdtb={}", unfinished.display().to_string().replace(',', ",,"));
    let ended = qemu.args(["-machine", &dump]).stdin(Stdio::null()).output().context("cannot start QEMU")?;
    ensure!(ended.status.success(), "QEMU wrote no tree: {}", String::from_utf8_lossy(&ended.stderr).trim());
    let tree = fs::read(&unfinished).with_context(|| format!("cannot read {}", unfinished.display()))?;
    fs::write(&unfinished, with_region(&tree, storage)?)?;
    fs::rename(&unfinished, &file)?;
    Ok(file)
}

/// The name that a file has until it is whole and renamed: of this call alone, whatever else writes the same file.
pub(crate) fn unfinished(file: &Path) -> PathBuf {
    static CALLS: AtomicU32 = AtomicU32::new(0);
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    file.with_extension(format!("{}-{call}", std::process::id()))
}

/// The tree with the region at the end of memory.
fn with_region(tree: &[u8], storage: TagStorage) -> Result<Vec<u8>> {
    let tree = Fdt::new(tree)?;
    let memory = tree.memory()?;
    let range = memory.reg()?.and_then(|mut ranges| ranges.next()).context("the memory node has no range")?;
    let (start, bytes) = (range.address::<u64>()?, range.size::<u64>()?);
    let size = bytes.div_ceil(BYTES_PER_TAG_BYTE).next_multiple_of(ALIGN);
    let place = (start + bytes - size) / ALIGN * ALIGN;

    let mut region = DeviceTreeNode::new(format!("tag-storage@{place:x}"))?;
    region.add_property(DeviceTreeProperty::new("compatible", "arm,mte-tag-storage")?);
    region.add_property(DeviceTreeProperty::new("reg", [place, size].map(u64::to_be_bytes).concat())?);
    region.add_property(DeviceTreeProperty::new("block-size", storage.block_size)?);
    region.add_property(DeviceTreeProperty::new("reusable", Vec::<u8>::new())?);
    let mut reserved = DeviceTreeNode::new("reserved-memory")?;
    for cells in ["#address-cells", "#size-cells"] {
        reserved.add_property(DeviceTreeProperty::new(cells, 2_u32)?);
    }
    reserved.add_property(DeviceTreeProperty::new("ranges", Vec::<u8>::new())?);
    reserved.add_child(region);
    let mut tree = DeviceTree::from_fdt(&tree);
    ensure!(tree.find_node("/reserved-memory").is_none(), "QEMU's tree has reserved memory of its own");
    tree.root.add_child(reserved);
    Ok(tree.to_dtb())
}

#[cfg(test)]
mod tests {
    use dtoolkit::fdt::Fdt;
    use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
    use dtoolkit::{Node as _, Property as _};

    use super::with_region;
    use crate::machine::TagStorage;

    /// A tree with a memory node and another one.
    fn tree(memory: [u64; 2]) -> Vec<u8> {
        let mut tree = DeviceTree::new();
        let property = |name: &str, value: &[u8]| DeviceTreeProperty::new(name, value).unwrap();
        for cells in ["#address-cells", "#size-cells"] {
            tree.root.add_property(property(cells, &2_u32.to_be_bytes()));
        }
        let mut node = DeviceTreeNode::new("memory@40000000").unwrap();
        node.add_property(property("reg", &memory.map(u64::to_be_bytes).concat()));
        tree.root.add_child(node);
        tree.root.add_child(DeviceTreeNode::new("cpus").unwrap());
        tree.to_dtb()
    }

    #[test]
    fn the_region_is_aligned_and_at_the_end_of_memory() {
        for (bytes, place, size) in [
            (0x8000_0000, 0xbc00_0000_u64, 0x400_0000_u64),
            (0x2_0000_0000, 0x2_3000_0000, 0x1000_0000),
            // 1111 MiB: neither its end nor its 32nd part is aligned.
            (0x4570_0000, 0x8320_0000, 0x240_0000),
        ] {
            let tree = with_region(&tree([0x4000_0000, bytes]), TagStorage { block_size: 0x4000 }).unwrap();
            let tree = Fdt::new(&tree).unwrap();
            let node = tree.find_node(&format!("/reserved-memory/tag-storage@{place:x}")).unwrap();
            assert_eq!(node.property("reg").unwrap().value(), [place, size].map(u64::to_be_bytes).concat());
            assert_eq!(node.property("block-size").unwrap().value(), [0, 0, 0x40, 0]);
            assert!(node.property("reusable").is_some() && node.property("tagged-memory").is_none());
            assert!(tree.find_node("/cpus").is_some(), "the other nodes stay");
        }
    }

    #[test]
    fn a_tree_that_is_none_is_an_error() {
        assert!(with_region(&[], TagStorage { block_size: 0x1000 }).is_err());
        assert!(with_region(&DeviceTree::new().to_dtb(), TagStorage { block_size: 0x1000 }).is_err());
        let twice = with_region(&tree([0x4000_0000, 0x8000_0000]), TagStorage { block_size: 0x1000 }).unwrap();
        assert!(with_region(&twice, TagStorage { block_size: 0x1000 }).is_err());
    }
}
