//! Regions that are used, and one test for each reason to refuse one.

use granule_arch::addr::{PhysAddr, PhysRange};

use super::super::tests::{Machine, Nodes, virt_with};
use super::super::tree::Root;
use super::super::tree_builder::{TreeBuilder, cells, text};
use super::super::{Platform, structure};
use super::{MAX_TAG_STORAGE, TagStorageError, TagStorageRegion, each_region};

const PHANDLE: u32 = 0x9001;
/// `reg` of the machine's memory, and of memory that some trees have beside it.
const NEAR: [u64; 2] = [0x4000_0000, 0x8000_0000];
const FAR: [u64; 2] = [0x8_8000_0000, 0x4000_0000];

fn range([start, size]: [u64; 2]) -> PhysRange {
    PhysRange::from_size(PhysAddr(start), size).unwrap()
}

fn reg(range: &[u64]) -> Vec<u8> {
    range.iter().flat_map(|word| word.to_be_bytes()).collect()
}

type Property = (&'static str, Vec<u8>);

/// A child of `/reserved-memory`.
#[derive(Clone)]
struct Child {
    name: &'static str,
    properties: Vec<Property>,
}

impl Child {
    /// A region at the end of the machine's memory, with the tags of all of it, as QEMU's tree has it.
    fn near() -> Self {
        Self::at("tags@bc000000", [0xbc00_0000, 0x400_0000])
    }

    /// As large as all tags of [`FAR`].
    fn far() -> Self {
        Self::at("tags@8be000000", [0x8_be00_0000, 0x200_0000])
    }

    fn at(name: &'static str, storage: [u64; 2]) -> Self {
        let properties = vec![
            ("compatible", text(&["arm,mte-tag-storage"])),
            ("reg", reg(&storage)),
            ("block-size", cells(&[0x1000])),
            ("reusable", Vec::new()),
        ];
        Self { name, properties }
    }

    fn with(mut self, name: &'static str, value: Vec<u8>) -> Self {
        self = self.without(name);
        self.properties.push((name, value));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.properties.retain(|property| property.0 != name);
        self
    }

    fn tagging(self, phandle: u32) -> Self {
        self.with("tagged-memory", cells(&[phandle]))
    }

    fn storage(&self) -> PhysRange {
        let reg = &self.properties.iter().find(|property| property.0 == "reg").unwrap().1;
        range([0, 8].map(|at| u64::from_be_bytes(reg[at..at + 8].try_into().unwrap())))
    }
}

/// A memory node with the phandle [`PHANDLE`].
fn memory(tree: &mut TreeBuilder, ranges: &[u64]) {
    tree.node("memory@880000000", |tree| {
        tree.property("device_type", &text(&["memory"]));
        tree.property("reg", &reg(ranges));
        tree.property("phandle", &cells(&[PHANDLE]));
    });
}

fn reserved(tree: &mut TreeBuilder, children: &[Child]) {
    tree.node("reserved-memory", |tree| {
        tree.property("#address-cells", &cells(&[2]));
        tree.property("#size-cells", &cells(&[2]));
        tree.property("ranges", &[]);
        for child in children {
            tree.node(child.name, |tree| child.properties.iter().for_each(|(name, value)| tree.property(name, value)));
        }
    });
}

/// The regions of a tree, and why other nodes are none, by name.
#[derive(PartialEq, Debug)]
struct Regions {
    used: Vec<TagStorageRegion>,
    refused: Vec<(String, TagStorageError)>,
}

fn read(front: Nodes<'_>, more: Nodes<'_>) -> Regions {
    let blob = virt_with(&Machine::default(), front, more);
    let mut platform = Platform::parse(&blob).unwrap();
    let used = core::mem::take(&mut platform.tag_storage).to_vec();
    // Once more, for the reasons.
    let root = Root::new(structure::check(&blob).unwrap());
    let [node] = root.named(["reserved-memory"]);
    let mut refused = Vec::new();
    each_region(&mut platform, &root, &node.unwrap(), &mut |name, error| refused.push((name.to_owned(), error)))
        .unwrap();
    assert_eq!(platform.tag_storage.as_slice(), used);
    Regions { used, refused }
}

/// Reads a tree with these children of `/reserved-memory` after the machine's memory, and with memory at [`FAR`].
fn read_children(children: &[Child]) -> Regions {
    let regions = read(&|_| {}, &|tree| {
        reserved(tree, children);
        memory(tree, &FAR);
    });
    // Memory of the first node after memory of the second, and the other way round: what they say is the same.
    let turned = read(
        &|tree| {
            memory(tree, &FAR);
            reserved(tree, children);
        },
        &|_| {},
    );
    assert_eq!(regions, turned);
    regions
}

#[track_caller]
fn assert_refused(child: Child, error: TagStorageError) {
    let name = child.name.to_owned();
    assert_eq!(read_children(&[child]), Regions { used: vec![], refused: vec![(name, error)] });
}

fn near_region() -> TagStorageRegion {
    TagStorageRegion { storage: Child::near().storage(), block_bytes: 0x1000, tagged: range(NEAR) }
}

fn far_region() -> TagStorageRegion {
    TagStorageRegion { storage: Child::far().storage(), block_bytes: 0x1000, tagged: range(FAR) }
}

#[test]
fn without_a_phandle_it_is_the_memory_around_it() {
    let regions = read_children(&[Child::near(), Child::far()]);
    assert_eq!(regions, Regions { used: vec![near_region(), far_region()], refused: vec![] });
}

#[test]
fn a_phandle_leads_to_memory_elsewhere() {
    // At the end of the other memory, and as large as its tags.
    let child = Child::at("tags@be000000", [0xbe00_0000, 0x200_0000]).tagging(PHANDLE);
    let region = TagStorageRegion { storage: child.storage(), ..far_region() };
    assert_eq!(read_children(&[child]), Regions { used: vec![region], refused: vec![] });
}

#[test]
fn of_several_ranges_it_is_the_first_or_the_one_around_it() {
    let (first, second) = ([0x8_0000_0000, 0x2000_0000], FAR);
    let regions = |child: &Child| {
        read(&|tree| memory(tree, &[first, second].concat()), &|tree| reserved(tree, std::slice::from_ref(child)))
    };
    let used =
        |tagged| Regions { used: vec![TagStorageRegion { tagged: range(tagged), ..far_region() }], refused: vec![] };
    assert_eq!(regions(&Child::far()), used(second));
    assert_eq!(regions(&Child::far().tagging(PHANDLE)), used(first));
}

#[test]
fn a_block_is_a_whole_number_of_pages() {
    for (given, bytes) in [
        (1, 0x1000),
        (64, 0x1000),
        (0x1000, 0x1000),
        (0x1800, 0x3000),
        (3, 0x3000),
        (0x3_0000, 0x3_0000),
        (0x20_0000, 0x20_0000),
    ] {
        // A multiple of each of these.
        let child = Child::at("tags@b4000000", [0xb400_0000, 0xc0_0000 * 6]).with("block-size", cells(&[given]));
        let region = TagStorageRegion { storage: child.storage(), block_bytes: bytes, ..near_region() };
        assert_eq!(read_children(&[child]), Regions { used: vec![region], refused: vec![] }, "{given:#x}");
    }
}

#[test]
fn a_block_that_makes_no_sense_is_refused() {
    let near = Child::near;
    assert_refused(near().without("block-size"), TagStorageError::BlockSize);
    for value in [cells(&[0]), cells(&[0, 0x1000]), vec![], vec![0x10, 0]] {
        assert_refused(near().with("block-size", value), TagStorageError::BlockSize);
    }
    for (given, bytes) in
        [(0x20_1000, 0x20_1000), (0x40_0000, 0x40_0000), (0x20_0001, 0x2_0000_1000), (!0, 0xfff_ffff_f000)]
    {
        assert_refused(near().with("block-size", cells(&[given])), TagStorageError::LargeBlocks(bytes));
    }
}

#[test]
fn what_may_not_hold_data_is_refused() {
    assert_refused(Child::near().without("reusable"), TagStorageError::NotReusable);
    assert_refused(Child::near().with("no-map", vec![]), TagStorageError::NoMap);
    assert_refused(Child::near().with("status", text(&["disabled"])), TagStorageError::Status);
}

#[test]
fn storage_is_one_range() {
    let storage = [0xbc00_0000, 0x400_0000];
    assert_refused(Child::near().without("reg"), TagStorageError::Registers);
    assert_refused(Child::near().with("reg", vec![]), TagStorageError::Registers);
    assert_refused(Child::near().with("reg", reg(&[0xbc00_0000, 0])), TagStorageError::Registers);
    assert_refused(
        Child::near().with("reg", reg(&[storage, [0x5000_0000, 0x1000]].concat())),
        TagStorageError::Registers,
    );
}

#[test]
fn storage_is_whole_blocks_of_memory() {
    let at = |start, size| Child::at("tags", [start, size]);
    assert_refused(at(0xbbff_f800, 0x400_0000), TagStorageError::Start(range([0xbbff_f800, 0x400_0000])));
    assert_refused(at(0xbbff_f000, 0x400_0800), TagStorageError::Size(range([0xbbff_f000, 0x400_0800]), 0x1000));
    let large = at(0xbbf0_0000, 0x410_0000).with("block-size", cells(&[0x20_0000]));
    assert_refused(large, TagStorageError::Size(range([0xbbf0_0000, 0x410_0000]), 0x20_0000));
    for place in [[0x3fff_f000, 0x400_0000], [0xbc00_1000, 0x400_0000], [0x1_0000_0000, 0x400_0000], [1 << 63, 1 << 62]]
    {
        assert_refused(Child::at("tags", place), TagStorageError::NotInMemory(range(place)));
    }
}

#[test]
fn memory_that_the_linear_map_does_not_show_is_refused() {
    let place = [1 << 47, 0x400_0000];
    let child = Child::at("tags", place);
    let regions = read(&|tree| memory(tree, &place), &|tree| reserved(tree, std::slice::from_ref(&child)));
    assert_eq!(regions.refused, [("tags".to_owned(), TagStorageError::NotInMemory(range(place)))]);
}

#[test]
fn storage_has_no_other_use() {
    let near = Child::near();
    let reserved = |child: &Child| (child.name.to_owned(), TagStorageError::Reserved(child.storage()));
    let firmware = Child { name: "firmware", properties: vec![("reg", reg(&[0xbfff_f800, 0x800]))] };
    for children in [[near.clone(), firmware.clone()], [firmware, near.clone()]] {
        assert_eq!(read_children(&children), Regions { used: vec![], refused: vec![reserved(&near)] });
    }
    // Two regions for one page: nothing says which of the two is right.
    let again = Child::at("tags@bbfff000", [0xbbff_f000, 0x400_1000]);
    assert_eq!(
        read_children(&[near.clone(), again.clone()]),
        Regions { used: vec![], refused: vec![reserved(&near), reserved(&again)] }
    );
    // The memory reservation block has the first pages of memory.
    let first = Child::at("tags@40000000", [0x4000_0000, 0x400_0000]);
    assert_refused(first.clone(), TagStorageError::Reserved(first.storage()));
}

#[test]
fn storage_with_the_initrd_in_it_is_left_out() {
    let regions = |start| {
        let child = Child::at("tags", [start, 0x400_0000]);
        let blob = virt_with(&Machine::default(), &|_| {}, &|tree| reserved(tree, std::slice::from_ref(&child)));
        Platform::parse(&blob).unwrap().tag_storage.len()
    };
    // From 0x48000000 to 0x48100000.
    assert_eq!([0x4400_0000, 0x4400_1000, 0x480f_f000, 0x4810_0000].map(regions), [1, 0, 0, 1]);
}

#[test]
fn storage_that_others_take_is_left_out() {
    let blob = virt_with(&Machine::default(), &|_| {}, &|tree| reserved(tree, &[Child::near()]));
    let mut platform = Platform::parse(&blob).unwrap();
    platform.leave_out_tag_storage(range([0xbbff_f000, 0x1000]), "a page in front of it");
    platform.leave_out_tag_storage(range([0xc000_0000, 0x1000]), "a page behind it");
    assert_eq!(platform.tag_storage, [near_region()]);
    platform.leave_out_tag_storage(range([0xbfff_f000, 0x1000]), "its last page");
    assert_eq!(platform.tag_storage, []);
    assert!(platform.reserved.contains(&Child::near().storage()));
}

#[test]
fn a_phandle_that_leads_to_no_memory_is_refused() {
    // The interrupt controller's, nothing's, and no phandles.
    for value in [cells(&[0x8002]), cells(&[0x77]), cells(&[PHANDLE, 0]), vec![]] {
        assert_refused(Child::near().with("tagged-memory", value), TagStorageError::TaggedMemory);
    }
    let nothing =
        read(&|tree| memory(tree, &[0x5000_0000, 0]), &|tree| reserved(tree, &[Child::near().tagging(PHANDLE)]));
    assert_eq!(nothing.refused, [(Child::near().name.to_owned(), TagStorageError::TaggedMemory)]);
}

#[test]
fn without_a_phandle_one_memory_node_has_all_of_it() {
    // Memory of two nodes that touch is one bank.
    let place = [0xbe00_0000, 0x400_0000];
    let child = Child::at("tags", place);
    let regions =
        read(&|tree| memory(tree, &[0xc000_0000, 0x4000_0000]), &|tree| reserved(tree, std::slice::from_ref(&child)));
    assert_eq!(regions.refused, [("tags".to_owned(), TagStorageError::NoMemoryNode(range(place)))]);
}

#[test]
fn tagged_memory_is_whole_pages() {
    for place in [[0x8_8000_0800, 0x4000_0000], [0x8_8000_0000, 0x4000_0800]] {
        let child = Child::near().tagging(PHANDLE);
        let regions = read(&|tree| memory(tree, &place), &|tree| reserved(tree, std::slice::from_ref(&child)));
        assert_eq!(regions.refused, [(child.name.to_owned(), TagStorageError::TaggedPages(range(place)))]);
    }
}

#[test]
fn storage_is_large_enough_for_all_tags() {
    let place = [0xbc00_0000, 0x3ff_f000];
    assert_refused(Child::at("tags", place), TagStorageError::TooSmall(range(place), range(NEAR)));
    let more = Child::at("tags", [0xb800_0000, 0x800_0000]);
    let region = TagStorageRegion { storage: more.storage(), ..near_region() };
    assert_eq!(read_children(&[more]), Regions { used: vec![region], refused: vec![] });
}

#[test]
fn regions_share_no_memory() {
    let shared = |child: &Child, with: TagStorageRegion| {
        (child.name.to_owned(), TagStorageError::Shared(with.storage, with.tagged))
    };
    // Two for the same memory; storage in the memory that the first tags; a first with storage in what the second tags.
    let twice = Child::at("tags@b8000000", [0xb800_0000, 0x400_0000]);
    let inside = Child::at("tags@b8000000", [0xb800_0000, 0x200_0000]).tagging(PHANDLE);
    for second in [twice, inside.clone()] {
        let refused = vec![shared(&second, near_region())];
        assert_eq!(read_children(&[Child::near(), second]), Regions { used: vec![near_region()], refused });
    }
    let first = TagStorageRegion { storage: inside.storage(), ..far_region() };
    let refused = vec![shared(&Child::near(), first)];
    assert_eq!(read_children(&[inside, Child::near()]), Regions { used: vec![first], refused });
}

#[test]
fn more_regions_than_there_is_room_for_are_refused() {
    let places = |index: u64| [0x10_0000_0000 + (index << 32), 0x100_0000];
    let children: Vec<Child> =
        (0..6).map(|index| Child::at("tags", places(index)).with("reg", reg(&[places(index)[0], 0x10_0000]))).collect();
    let regions = read(
        &|tree| {
            for index in 0..6 {
                memory(tree, &places(index));
            }
        },
        &|tree| reserved(tree, &children),
    );
    assert_eq!(regions.used.len(), MAX_TAG_STORAGE);
    let too_many = ("tags".to_owned(), TagStorageError::TooMany);
    assert_eq!(regions.refused, [too_many.clone(), too_many]);
}

#[test]
fn other_reservations_are_no_regions_and_no_refusals() {
    let pool = Child::near().with("compatible", text(&["shared-dma-pool"]));
    assert_eq!(read_children(&[pool]), Regions { used: vec![], refused: vec![] });
}

#[test]
fn a_refused_region_stays_reserved() {
    let child = Child::near().without("block-size");
    let platform =
        Platform::parse(&virt_with(&Machine::default(), &|_| {}, &|tree| reserved(tree, std::slice::from_ref(&child))));
    assert!(platform.unwrap().reserved.contains(&child.storage()));
}
