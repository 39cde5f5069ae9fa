//! The device tree that the kernel gets: the firmware's, with the memory of the memory map in place of its own, and
//! with what the stub found in `/chosen`. Where the firmware has no tree, one with these two and the place of ACPI's
//! tables.
//!
//! Devicetree Specification v0.4: 3.4 (`/memory`), 3.6 (`/chosen`), 5.3 (memory reservation block).

use alloc::string::ToString as _;
use alloc::vec::Vec;
use core::ops::Range;

use dtoolkit::error::{FdtParseError, ModelError};
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node as _, Property as _};
use thiserror::Error;

use crate::memory::{Banks, MAX_BANKS};

/// The largest device tree that the kernel takes, in bytes.
pub const LARGEST_TREE: usize = 2 << 20;
/// The node that is written, and the property that has the address of the RSDP.
const MEMORY: &str = "memory";
const RSDP: &str = "granule,acpi-rsdp";

/// Why there is no tree for the kernel.
#[derive(Debug, Error)]
pub enum TreeError {
    /// The firmware's is none.
    #[error("the firmware's device tree: {0}")]
    Parse(#[from] FdtParseError),
    /// A node or a property cannot be made.
    #[error("the device tree: {0}")]
    Model(#[from] ModelError),
    /// `#address-cells` or `#size-cells` of the root, neither 1 nor 2.
    #[error("the firmware's device tree: {0} is neither 1 nor 2")]
    Cells(&'static str),
    /// More than [`LARGEST_TREE`].
    #[error("the device tree would have {0} bytes, more than {LARGEST_TREE}")]
    TooLarge(usize),
}

/// `/chosen` `kaslr-seed` of the firmware's tree; `None` where there is none, or zero: a firmware without entropy
/// leaves that.
#[must_use]
pub fn kaslr_seed(firmware: &[u8]) -> Option<u64> {
    let fdt = Fdt::new(firmware).ok()?;
    let chosen = fdt.root().children().find(|node| node.name() == "chosen")?;
    let seed = u64::from_be_bytes(chosen.property("kaslr-seed")?.value().try_into().ok()?);
    (seed != 0).then_some(seed)
}

/// The properties to write to `/chosen`.
#[derive(Clone, Debug, Default)]
pub struct Chosen<'a> {
    /// Boot arguments; `None` leaves the tree's.
    pub bootargs: Option<&'a str>,
    /// The initrd, by physical addresses.
    pub initrd: Option<Range<u64>>,
    /// Random bytes of the firmware's; `None` leaves the tree's.
    pub seeds: Option<Seeds>,
    /// The physical address of ACPI's RSDP, where it is to be named.
    pub rsdp: Option<u64>,
}

/// Random bytes for the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    /// `rng-seed`.
    pub rng: [u8; 32],
    /// `kaslr-seed`.
    pub kaslr: u64,
}

/// A flattened tree with room for memory: `/memory` `reg`, zero so far.
#[derive(Debug)]
pub struct Tree {
    /// The tree.
    pub blob: Vec<u8>,
    /// Where in it the ranges of memory go.
    pub memory: MemoryProperty,
}

/// Where in a blob the ranges of memory go, and their form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryProperty {
    offset: usize,
    address_cells: usize,
    size_cells: usize,
}

/// Makes the kernel's tree of the firmware's, if it has one.
///
/// Its nodes of memory and its reservation block go: firmware writes them before it has taken memory for itself, and
/// the memory map has both (as in Linux). `/reserved-memory` stays.
///
/// # Errors
/// The firmware's tree cannot be read, or the new one not be made.
pub fn build(firmware: Option<&[u8]>, chosen: &Chosen<'_>) -> Result<Tree, TreeError> {
    let mut tree = match firmware {
        Some(blob) => DeviceTree::from_fdt(&Fdt::new(blob)?),
        None => empty()?,
    };
    tree.memory_reservations.clear();
    let banks: Vec<_> = tree.root.children().filter(is_bank).map(|node| node.name().to_string()).collect();
    for name in banks {
        tree.root.remove_child(&name);
    }
    let (address_cells, size_cells) = (cells(&tree.root, "#address-cells", 2)?, cells(&tree.root, "#size-cells", 1)?);
    // A node of the same name that is no bank stays out of the way.
    tree.root.remove_child(MEMORY);
    let room = alloc::vec![0u8; MAX_BANKS * (address_cells + size_cells) * 4];
    let memory = DeviceTreeNode::builder(MEMORY)?
        .property(DeviceTreeProperty::new("device_type", "memory")?)
        .property(DeviceTreeProperty::new("reg", room.as_slice())?)
        .build();
    tree.root.add_child(memory);
    if tree.root.child_mut("chosen").is_none() {
        tree.root.add_child(DeviceTreeNode::new("chosen")?);
    }
    if let Some(node) = tree.root.child_mut("chosen") {
        choose(node, chosen)?;
    }
    let blob = tree.to_dtb();
    if blob.len() > LARGEST_TREE {
        return Err(TreeError::TooLarge(blob.len()));
    }
    let offset = offset_of_memory(&blob)?;
    Ok(Tree { blob, memory: MemoryProperty { offset, address_cells, size_cells } })
}

/// A tree for a machine that has ACPI's tables alone.
fn empty() -> Result<DeviceTree, TreeError> {
    let mut tree = DeviceTree::new();
    for name in ["#address-cells", "#size-cells"] {
        tree.root.add_property(DeviceTreeProperty::new(name, 2u32)?);
    }
    Ok(tree)
}

fn is_bank(node: &&DeviceTreeNode) -> bool {
    node.property("device_type").is_some_and(|property| property.value() == b"memory\0")
}

/// One of the root's properties of cells, or the specification's value for it.
fn cells(root: &DeviceTreeNode, name: &'static str, missing: usize) -> Result<usize, TreeError> {
    let Some(property) = root.property(name) else { return Ok(missing) };
    match property.value() {
        [0, 0, 0, count @ (1 | 2)] => Ok(usize::from(*count)),
        _ => Err(TreeError::Cells(name)),
    }
}

/// Fills `/chosen`. An earlier loader's initrd is removed: it would be in memory that is free now. So is a
/// seed that the stub has used.
fn choose(node: &mut DeviceTreeNode, chosen: &Chosen<'_>) -> Result<(), TreeError> {
    for name in ["linux,initrd-start", "linux,initrd-end", "kaslr-seed", RSDP] {
        node.remove_property(name);
    }
    if let Some(bootargs) = chosen.bootargs {
        node.add_property(DeviceTreeProperty::new("bootargs", bootargs)?);
    }
    if let Some(initrd) = &chosen.initrd {
        node.add_property(DeviceTreeProperty::new("linux,initrd-start", initrd.start)?);
        node.add_property(DeviceTreeProperty::new("linux,initrd-end", initrd.end)?);
    }
    if let Some(seeds) = &chosen.seeds {
        node.add_property(DeviceTreeProperty::new("rng-seed", seeds.rng.as_slice())?);
        node.add_property(DeviceTreeProperty::new("kaslr-seed", seeds.kaslr)?);
    }
    if let Some(rsdp) = chosen.rsdp {
        node.add_property(DeviceTreeProperty::new(RSDP, rsdp)?);
    }
    Ok(())
}

fn offset_of_memory(blob: &[u8]) -> Result<usize, TreeError> {
    let fdt = Fdt::new(blob)?;
    let reg = fdt.root().children().find(|node| node.name() == MEMORY).and_then(|node| node.property("reg"));
    let reg = reg.ok_or(TreeError::Cells("reg"))?;
    Ok(reg.value().as_ptr().addr() - blob.as_ptr().addr())
}

impl MemoryProperty {
    /// Writes the banks into the tree. It allocates nothing, so it may run after boot services have ended. A bank that
    /// needs more cells than the tree has is left out, and the rest of the room has size zero, which is no memory.
    pub fn write(self, blob: &mut [u8], banks: &Banks) {
        let size = (self.address_cells + self.size_cells) * 4;
        let room = &mut blob[self.offset..][..MAX_BANKS * size];
        room.fill(0);
        let fits = |value: u64, cells: usize| cells == 2 || u32::try_from(value).is_ok();
        let banks = banks.ranges().iter().map(|bank| (bank.start, bank.end - bank.start));
        let banks = banks.filter(|(start, size)| fits(*start, self.address_cells) && fits(*size, self.size_cells));
        for (entry, (start, size)) in room.chunks_exact_mut(size).zip(banks) {
            let (address, length) = entry.split_at_mut(self.address_cells * 4);
            let tail = |cells: usize| 8 - cells * 4;
            address.copy_from_slice(&start.to_be_bytes()[tail(self.address_cells)..]);
            length.copy_from_slice(&size.to_be_bytes()[tail(self.size_cells)..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use uefi_raw::table::boot::{MemoryAttribute, MemoryDescriptor, MemoryType};

    use super::*;

    fn property<T: dtoolkit::ToPropertyValue>(name: &str, value: T) -> DeviceTreeProperty {
        DeviceTreeProperty::new(name, value).unwrap()
    }

    fn node(name: &str, properties: impl IntoIterator<Item = DeviceTreeProperty>) -> DeviceTreeNode {
        let mut node = DeviceTreeNode::new(name).unwrap();
        properties.into_iter().for_each(|property| node.add_property(property));
        node
    }

    /// A firmware's tree with two banks of memory, a reservation of each kind and an earlier loader's `/chosen`.
    fn firmware(cells: [u32; 2]) -> Vec<u8> {
        let mut tree = DeviceTree::new();
        tree.root.add_property(property("#address-cells", cells[0]));
        tree.root.add_property(property("#size-cells", cells[1]));
        let bank = || [property("device_type", "memory"), property("reg", 7u64)];
        tree.root.add_child(node("memory@40000000", bank()));
        tree.root.add_child(node("memory@80000000", bank()));
        tree.root.add_child(node("memory-controller", []));
        let mut reserved = node("reserved-memory", []);
        reserved.add_child(node("firmware@41000000", [property("no-map", [0u8; 0].as_slice())]));
        tree.root.add_child(reserved);
        let chosen = [
            property("bootargs", "old"),
            property("stdout-path", "/serial"),
            property("linux,initrd-start", 1u32),
            property("linux,initrd-end", 2u32),
            property("kaslr-seed", 3u64),
        ];
        tree.root.add_child(node("chosen", chosen));
        tree.memory_reservations.push(dtoolkit::memreserve::MemoryReservation::new(0x4000_0000, 0x1000));
        tree.to_dtb()
    }

    fn banks(ranges: &[Range<u64>]) -> Banks {
        let map: Vec<_> = ranges
            .iter()
            .map(|range| MemoryDescriptor {
                ty: MemoryType::CONVENTIONAL,
                phys_start: range.start,
                page_count: (range.end - range.start) / 4096,
                att: MemoryAttribute::WRITE_BACK,
                ..MemoryDescriptor::default()
            })
            .collect();
        Banks::new(map.iter(), &[])
    }

    /// The value of a property of one of the root's children.
    fn value(blob: &[u8], node: &str, name: &str) -> Option<Vec<u8>> {
        let fdt = Fdt::new(blob).unwrap();
        let child = fdt.root().children().find(|child| child.name() == node)?;
        child.property(name).map(|property| property.value().to_vec())
    }

    #[test]
    fn memory_is_that_of_the_map_and_the_rest_of_the_tree_stays() {
        let mut tree = build(Some(&firmware([2, 2])), &Chosen::default()).unwrap();
        tree.memory.write(&mut tree.blob, &banks(&[0x4000_0000..0x4100_0000, 0x1_0000_0000..0x2_0000_0000]));
        let fdt = Fdt::new(&tree.blob).unwrap();
        let names: Vec<_> = fdt.root().children().map(|child| child.name().to_string()).collect();
        assert_eq!(names.iter().filter(|name| name.starts_with("memory")).count(), 2, "{names:?}");
        assert!(names.iter().any(|name| name == "memory-controller") && fdt.memory_reservations().next().is_none());
        assert!(fdt.find_node("/reserved-memory/firmware@41000000").is_some());
        let reg = value(&tree.blob, "memory", "reg").unwrap();
        let words: Vec<u64> = reg.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).collect();
        assert_eq!(words[..5], [0x4000_0000, 0x100_0000, 0x1_0000_0000, 0x1_0000_0000, 0]);
        assert!(words.len() == 2 * MAX_BANKS && words[5..].iter().all(|word| *word == 0));
        // A later write replaces all banks.
        tree.memory.write(&mut tree.blob, &banks(std::slice::from_ref(&(0x4000_0000..0x4000_1000))));
        let reg = value(&tree.blob, "memory", "reg").unwrap();
        assert_eq!(reg.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).filter(|word| *word != 0).count(), 2);
        let chosen = |name| value(&tree.blob, "chosen", name);
        assert_eq!(chosen("bootargs").unwrap(), b"old\0");
        assert_eq!(chosen("stdout-path").unwrap(), b"/serial\0");
        assert_eq!((kaslr_seed(&firmware([2, 2])), chosen("kaslr-seed")), (Some(3), None), "the stub has used it");
        assert_eq!((kaslr_seed(&tree.blob), kaslr_seed(&[0; 40])), (None, None));
        assert_eq!(chosen("linux,initrd-start"), None, "its memory may be free now");
    }

    #[test]
    fn chosen_has_what_the_stub_found() {
        let chosen = Chosen {
            bootargs: Some("script"),
            initrd: Some(0x4800_0000..0x4800_1234),
            seeds: Some(Seeds { rng: [9; 32], kaslr: 5 }),
            rsdp: Some(0x7fff_0018),
        };
        for blob in [Some(firmware([2, 2])), None] {
            let tree = build(blob.as_deref(), &chosen).unwrap();
            let value = |name| value(&tree.blob, "chosen", name).unwrap();
            assert_eq!(value("bootargs"), b"script\0");
            assert_eq!(value("linux,initrd-start"), 0x4800_0000u64.to_be_bytes());
            assert_eq!(value("linux,initrd-end"), 0x4800_1234u64.to_be_bytes());
            assert_eq!(value("rng-seed"), [9; 32]);
            assert_eq!(value("kaslr-seed"), 5u64.to_be_bytes());
            assert_eq!(value("granule,acpi-rsdp"), 0x7fff_0018u64.to_be_bytes());
        }
    }

    /// A tree of 32-bit cells cannot name memory above 4 GiB.
    #[test]
    fn addresses_have_the_cells_of_the_root() {
        let mut tree = build(Some(&firmware([1, 1])), &Chosen::default()).unwrap();
        tree.memory.write(&mut tree.blob, &banks(&[0x1000..0x3000, 0x8000_0000..0xc000_0000, 1 << 32..2 << 32]));
        let reg = value(&tree.blob, "memory", "reg").unwrap();
        let words: Vec<u32> = reg.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word)).collect();
        assert_eq!(words[..5], [0x1000, 0x2000, 0x8000_0000, 0x4000_0000, 0]);
        let refused = build(Some(&firmware([3, 1])), &Chosen::default()).unwrap_err();
        assert!(matches!(refused, TreeError::Cells("#address-cells")), "{refused}");
    }

    #[test]
    fn a_tree_that_is_none_or_too_large_is_refused() {
        assert!(matches!(build(Some(&[0; 64]), &Chosen::default()), Err(TreeError::Parse(_))));
        let whole = firmware([2, 2]);
        assert!(build(Some(&whole[..whole.len() / 2]), &Chosen::default()).is_err());
        let long = "a".repeat(LARGEST_TREE);
        let chosen = Chosen { bootargs: Some(&long), ..Chosen::default() };
        assert!(matches!(build(None, &chosen), Err(TreeError::TooLarge(_))));
    }
}
