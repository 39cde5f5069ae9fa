//! The device tree that the kernel gets: the firmware's, with the memory of the memory map in place of its own, and
//! with what the stub found in `/chosen`. Where the firmware has no tree, one with these two and the place of ACPI's
//! tables.
//!
//! Devicetree Specification v0.4: 3.4 (`/memory`), 3.6 (`/chosen`), 5.3 (memory reservation block).

use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::ops::Range;

use dtoolkit::error::ModelError;
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use dtoolkit::{Node as _, Property as _};
use thiserror::Error;
use uefi_raw::table::boot::MemoryDescriptor;

use crate::memory::{Banks, Cells, MAX_BANKS, PAGE};
use crate::structure::{StructureError, check, check_and_find};

/// The largest device tree that the kernel takes, in bytes: the pages of its fixmap.
pub const LARGEST_TREE: usize = 508 * PAGE as usize;
/// The largest that a firmware may have: Linux, Documentation/arch/arm64/booting.rst. It may have gaps, which go.
const LARGEST_SOURCE: usize = 2 << 20;
/// Levels of nodes; reading and writing a tree takes stack for each.
const MAX_DEPTH: usize = 64;
/// The first word of a flattened tree.
const MAGIC: u32 = 0xd00d_feed;
/// The node that is written, and the property that has the address of the RSDP.
const MEMORY: &str = "memory";
const RSDP: &str = "granule,acpi-rsdp";

/// Why there is no tree for the kernel.
#[derive(Debug, Error)]
pub enum TreeError {
    /// Another first word than that of a flattened tree.
    #[error("the firmware's device tree: it begins with {0:#x}")]
    Magic(u32),
    /// More than the boot protocol allows.
    #[error("the firmware's device tree: {0} bytes, more than {LARGEST_SOURCE}")]
    SourceTooLarge(usize),
    /// Nodes below each other.
    #[error("the firmware's device tree: more than {MAX_DEPTH} levels of nodes")]
    TooDeep,
    /// The firmware's is none.
    #[error("the firmware's device tree: {0}")]
    Structure(#[from] StructureError),
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
    cells: Cells,
}

/// How many bytes a flattened tree has, by the first of its header.
///
/// # Errors
/// It is none, or larger than a firmware's may be.
pub fn size(header: [u8; 8]) -> Result<usize, TreeError> {
    let [magic, size] = [0, 4].map(|at| u32::from_be_bytes([0, 1, 2, 3].map(|byte| header[at + byte])));
    match (magic, size as usize) {
        (MAGIC, size) if size <= LARGEST_SOURCE => Ok(size),
        (MAGIC, size) => Err(TreeError::SourceTooLarge(size)),
        _ => Err(TreeError::Magic(magic)),
    }
}

/// A tree that the kernel's can be made from.
#[derive(Clone, Debug)]
pub struct Source {
    tree: DeviceTree,
    cells: Cells,
}

impl Source {
    /// The firmware's tree.
    ///
    /// # Errors
    /// It cannot be read, or is too deep, or the root's numbers of cells are neither 1 nor 2.
    pub fn read(blob: &[u8]) -> Result<Self, TreeError> {
        let fdt = check(blob)?;
        check_depth(&fdt)?;
        let tree = DeviceTree::from_fdt(&fdt);
        let cells =
            Cells { address: cells(&tree.root, "#address-cells", 2)?, size: cells(&tree.root, "#size-cells", 1)? };
        Ok(Self { tree, cells })
    }

    /// A tree for a machine that has ACPI's tables alone.
    ///
    /// # Errors
    /// A property cannot be made.
    pub fn empty() -> Result<Self, TreeError> {
        let mut tree = DeviceTree::new();
        for name in ["#address-cells", "#size-cells"] {
            tree.root.add_property(DeviceTreeProperty::new(name, 2u32)?);
        }
        Ok(Self { tree, cells: Cells { address: 2, size: 2 } })
    }

    /// The root's numbers of cells.
    #[must_use]
    pub const fn cells(&self) -> Cells {
        self.cells
    }

    fn chosen(&self, name: &str) -> Option<Vec<u8>> {
        let chosen = self.tree.root.children().find(|node| node.name() == "chosen")?;
        chosen.property(name).map(|property| property.value().to_vec())
    }

    /// `/chosen` `bootargs`; `None` where there are none, or other bytes than a string's.
    #[must_use]
    pub fn bootargs(&self) -> Option<String> {
        let mut text = self.chosen("bootargs")?;
        text.pop().filter(|end| *end == 0)?;
        String::from_utf8(text).ok()
    }

    /// [`Self::bootargs`], and `more` after them: of two of one name the last holds.
    #[must_use]
    pub fn bootargs_and(&self, more: &str) -> String {
        [self.bootargs().as_deref().unwrap_or_default(), more].join(" ").trim().into()
    }

    /// `/chosen` `kaslr-seed`; `None` where there is none, or zero: a firmware without entropy leaves that.
    #[must_use]
    pub fn kaslr_seed(&self) -> Option<u64> {
        let seed = u64::from_be_bytes(self.chosen("kaslr-seed")?.try_into().ok()?);
        (seed != 0).then_some(seed)
    }

    /// Makes the kernel's tree.
    ///
    /// Nodes of memory and the reservation block go: firmware writes them before it has taken memory for itself, and
    /// the memory map has both (as in Linux). `/reserved-memory` stays.
    ///
    /// # Errors
    /// A node cannot be made, or the tree is too large.
    pub fn build(self, chosen: &Chosen<'_>) -> Result<Tree, TreeError> {
        let Self { mut tree, cells } = self;
        tree.memory_reservations.clear();
        let banks: Vec<_> = tree.root.children().filter(is_bank).map(|node| node.name().to_string()).collect();
        for name in banks {
            tree.root.remove_child(&name);
        }
        // A node of the same name that is no bank stays out of the way.
        tree.root.remove_child(MEMORY);
        // An earlier place of the tables.
        if let Some(node) = tree.root.child_mut("chosen") {
            node.remove_property(RSDP);
        }
        let room = alloc::vec![0u8; MAX_BANKS * (cells.address + cells.size) * 4];
        let memory = DeviceTreeNode::builder(MEMORY)?
            .property(DeviceTreeProperty::new("device_type", "memory")?)
            .property(DeviceTreeProperty::new("reg", room.as_slice())?)
            .build();
        tree.root.add_child(memory);
        let blob = Self { tree, cells }.choose(chosen)?;
        let offset = offset_of_memory(&blob)?;
        Ok(Tree { blob, memory: MemoryProperty { offset, cells } })
    }

    /// The tree with `chosen` in `/chosen`, and all else as it is: for a kernel that a loader starts in place of
    /// itself.
    ///
    /// # Errors
    /// A node cannot be made, or the tree is too large.
    pub fn choose(mut self, chosen: &Chosen<'_>) -> Result<Vec<u8>, TreeError> {
        let root = &mut self.tree.root;
        if root.child_mut("chosen").is_none() {
            root.add_child(DeviceTreeNode::new("chosen")?);
        }
        if let Some(node) = root.child_mut("chosen") {
            choose(node, chosen)?;
        }
        let blob = self.tree.to_dtb();
        if blob.len() > LARGEST_TREE { Err(TreeError::TooLarge(blob.len())) } else { Ok(blob) }
    }
}

/// Refuses a tree of more than [`MAX_DEPTH`] levels; it takes no stack for each.
fn check_depth(fdt: &Fdt<'_>) -> Result<(), TreeError> {
    let mut open = alloc::vec![fdt.root().children()];
    while let Some(children) = open.last_mut() {
        let Some(child) = children.next() else {
            open.pop();
            continue;
        };
        if open.len() == MAX_DEPTH {
            return Err(TreeError::TooDeep);
        }
        open.push(child.children());
    }
    Ok(())
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

/// Fills `/chosen`. An earlier loader's initrd is removed: it would be in memory that is free now.
fn choose(node: &mut DeviceTreeNode, chosen: &Chosen<'_>) -> Result<(), TreeError> {
    for name in ["linux,initrd-start", "linux,initrd-end"] {
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
    let (_, [reg]) = check_and_find(blob, MEMORY.as_bytes(), [c"reg"])?;
    reg.filter(|reg| reg.is_alone).map(|reg| reg.range.start).ok_or(TreeError::Cells("reg"))
}

impl MemoryProperty {
    /// The memory in `map` as the tree can name it; `needed` as in [`Banks::new`].
    pub fn banks<'a>(self, map: impl Iterator<Item = &'a MemoryDescriptor>, needed: &[Range<u64>]) -> Banks {
        Banks::new(map, needed, self.cells)
    }

    /// Writes [`Self::banks`] into the tree. It allocates nothing, so it may run after boot services have ended. The
    /// rest of the room has size zero, which is no memory.
    pub fn write<'a>(self, blob: &mut [u8], map: impl Iterator<Item = &'a MemoryDescriptor>, needed: &[Range<u64>]) {
        let banks = self.banks(map, needed);
        let size = (self.cells.address + self.cells.size) * 4;
        let room = &mut blob[self.offset..][..MAX_BANKS * size];
        room.fill(0);
        for (entry, bank) in room.chunks_exact_mut(size).zip(banks.ranges()) {
            let (address, length) = entry.split_at_mut(self.cells.address * 4);
            let tail = |cells: usize| 8 - cells * 4;
            address.copy_from_slice(&bank.start.to_be_bytes()[tail(self.cells.address)..]);
            length.copy_from_slice(&(bank.end - bank.start).to_be_bytes()[tail(self.cells.size)..]);
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

    /// [`Source::build`] of a blob, or of an empty tree.
    fn build(blob: Option<&[u8]>, chosen: &Chosen<'_>) -> Result<Tree, TreeError> {
        blob.map_or_else(Source::empty, Source::read)?.build(chosen)
    }

    fn write(tree: &mut Tree, ranges: &[Range<u64>]) {
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
        tree.memory.write(&mut tree.blob, map.iter(), &[]);
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
        write(&mut tree, &[0x4000_0000..0x4100_0000, 0x1_0000_0000..0x2_0000_0000]);
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
        write(&mut tree, std::slice::from_ref(&(0x4000_0000..0x4000_1000)));
        let reg = value(&tree.blob, "memory", "reg").unwrap();
        assert_eq!(reg.as_chunks().0.iter().map(|word| u64::from_be_bytes(*word)).filter(|word| *word != 0).count(), 2);
        let chosen = |name| value(&tree.blob, "chosen", name);
        assert_eq!(chosen("bootargs").unwrap(), b"old\0");
        assert_eq!(chosen("stdout-path").unwrap(), b"/serial\0");
        let source = Source::read(&firmware([2, 2])).unwrap();
        assert_eq!(source.kaslr_seed(), Some(3));
        assert_eq!(source.bootargs().as_deref(), Some("old"));
        assert_eq!([source.bootargs_and("new"), source.bootargs_and("")], ["old new", "old"], "the later one holds");
        assert_eq!(
            Source::read(&tree.blob).unwrap().kaslr_seed(),
            Some(3),
            "the kernel's, where the firmware has no other"
        );
        let empty = Source::empty().unwrap();
        assert_eq!((empty.kaslr_seed(), empty.bootargs()), (None, None));
        assert_eq!(empty.bootargs_and("new"), "new");
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
        write(&mut tree, &[0x1000..0x3000, 0x8000_0000..0xc000_0000, 1 << 32..2 << 32]);
        let reg = value(&tree.blob, "memory", "reg").unwrap();
        let words: Vec<u32> = reg.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word)).collect();
        assert_eq!(words[..5], [0x1000, 0x2000, 0x8000_0000, 0x4000_0000, 0]);
        assert_eq!(Source::read(&firmware([1, 1])).unwrap().cells().end(), 1 << 32);
        let refused = build(Some(&firmware([3, 1])), &Chosen::default()).unwrap_err();
        assert!(matches!(refused, TreeError::Cells("#address-cells")), "{refused}");
    }

    /// A Raspberry Pi 4 of 8 GB: sizes have 32 bits, and 4 GiB are one range.
    #[test]
    fn a_bank_of_4_gib_is_in_several_entries_where_sizes_have_one_cell() {
        let mut tree = build(Some(&firmware([2, 1])), &Chosen::default()).unwrap();
        write(&mut tree, &[0..0x3b40_0000, 0x4000_0000..0xfc00_0000, 0x1_0000_0000..0x2_0000_0000]);
        let reg = value(&tree.blob, "memory", "reg").unwrap();
        let words: Vec<u32> = reg.as_chunks().0.iter().map(|word| u32::from_be_bytes(*word)).collect();
        let entries: Vec<_> = words.as_chunks().0.iter().take_while(|[_, _, size]| *size != 0).collect();
        let expected =
            [[0, 0, 0x3b40_0000], [0, 0x4000_0000, 0xbc00_0000], [1, 0, 0xffe0_0000], [1, 0xffe0_0000, 0x20_0000]];
        assert_eq!(entries, expected.iter().collect::<Vec<_>>());
    }

    #[test]
    fn the_largest_tree_is_the_kernels() {
        let fixmap = include_str!("../../../kernel/src/mm/kernel/fixmap.rs");
        let pages = 512 - LARGEST_TREE / PAGE as usize;
        for line in ["const ENTRIES: usize = 512;".to_string(), std::format!("Self::DeviceTree => {pages},")] {
            assert!(fixmap.contains(&line), "{line}");
        }
    }

    #[test]
    fn a_tree_that_is_too_deep_is_refused() {
        let nested = |levels| {
            let mut inner = node("inner", []);
            for _ in 1..levels {
                let mut outer = node("outer", []);
                outer.add_child(inner);
                inner = outer;
            }
            let mut tree = DeviceTree::new();
            tree.root.add_child(inner);
            tree.to_dtb()
        };
        assert!(Source::read(&nested(MAX_DEPTH - 1)).is_ok());
        assert!(matches!(Source::read(&nested(MAX_DEPTH)), Err(TreeError::TooDeep)));
        // As deep as a blob can be.
        let levels = 100_000;
        let words: Vec<u32> = [1u32, 0].into_iter().chain((0..levels).flat_map(|_| [1, 0x6100_0000])).collect();
        let words: Vec<u32> = words.into_iter().chain((0..=levels).map(|_| 2)).chain([9]).collect();
        let (structure, strings) = (56, 56 + words.len() as u32 * 4);
        let header = [MAGIC, strings, structure, strings, 40, 17, 16, 0, 0, strings - structure, 0, 0, 0, 0];
        let deep: Vec<u8> = header.iter().chain(&words).flat_map(|word| word.to_be_bytes()).collect();
        assert!(matches!(Source::read(&deep), Err(TreeError::TooDeep)));
    }

    #[test]
    fn a_header_that_is_no_trees_is_refused() {
        let header = |words: [u32; 2]| size(*words.map(u32::to_be_bytes).as_flattened().first_chunk().unwrap());
        assert_eq!(header([MAGIC, 2 << 20]).unwrap(), 2 << 20);
        assert!(matches!(header([MAGIC, (2 << 20) + 1]), Err(TreeError::SourceTooLarge(_))));
        assert!(matches!(header([0xedfe_0dd0, 40]), Err(TreeError::Magic(0xedfe_0dd0))));
    }

    /// As the trees of real boards have them.
    #[test]
    fn names_may_be_longer_than_the_specification_recommends() {
        let long = "qcom,a-name-of-more-than-thirty-one-characters";
        let mut named = DeviceTreeNode::new_unchecked(long);
        named.add_property(DeviceTreeProperty::new_unchecked(long, 7u32));
        let mut tree = DeviceTree::new();
        tree.root.add_child(named);
        let mut tree = build(Some(&tree.to_dtb()), &Chosen::default()).unwrap();
        write(&mut tree, std::slice::from_ref(&(0x1000..0x3000)));
        let fdt = check(&tree.blob).unwrap();
        let node = fdt.root().children().find(|child| child.name() == long).unwrap();
        assert_eq!(node.property(long).unwrap().value(), 7u32.to_be_bytes());
    }

    #[test]
    fn a_tree_that_is_none_or_too_large_is_refused() {
        assert!(matches!(build(Some(&[0; 64]), &Chosen::default()), Err(TreeError::Structure(_))));
        let whole = firmware([2, 2]);
        assert!(build(Some(&whole[..whole.len() / 2]), &Chosen::default()).is_err());
        let long = "a".repeat(LARGEST_TREE);
        let chosen = Chosen { bootargs: Some(&long), ..Chosen::default() };
        assert!(matches!(build(None, &chosen), Err(TreeError::TooLarge(_))));
    }
}
