//! Trees that are sound in form and wrong in what they say: parts of a tree changed, doubled, moved, exchanged, removed.

use granule_arch::addr::PhysRange;
use proptest::prelude::*;
use proptest::sample::Index;

use super::tests::{Machine, gic_v2, virt};
use super::tree_builder::{TreeBuilder, cells, text};
use super::{Platform, TagStorageRegion};

/// A part of the structure block.
#[derive(Clone, Debug)]
enum Item {
    Begin(String),
    Property(String, Vec<u8>),
    End,
}

/// The items of a tree that [`TreeBuilder`] made.
fn items(blob: &[u8]) -> Vec<Item> {
    let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
    let string =
        |at: usize| blob[at..].iter().take_while(|&&byte| byte != 0).map(|&byte| byte as char).collect::<String>();
    let (mut at, strings) = (word(8), word(12));
    let mut found = Vec::new();
    loop {
        at += 4;
        match word(at - 4) {
            1 => {
                let name = string(at);
                at += (name.len() + 1).next_multiple_of(4);
                found.push(Item::Begin(name));
            }
            2 => found.push(Item::End),
            3 => {
                let bytes = word(at);
                found.push(Item::Property(string(strings + word(at + 4)), blob[at + 8..][..bytes].to_vec()));
                at += 8 + bytes.next_multiple_of(4);
            }
            _ => return found,
        }
    }
}

fn build(items: &[Item]) -> Vec<u8> {
    let mut tree = TreeBuilder::default();
    for item in items {
        match item {
            Item::Begin(name) => tree.open(name),
            Item::Property(name, value) => tree.property(name, value),
            Item::End => tree.close(),
        }
    }
    tree.finish()
}

/// Where the node ends that begins at `from`: after its last item.
fn end_of(items: &[Item], from: usize) -> usize {
    let mut depth = 0;
    for (at, item) in items.iter().enumerate().skip(from) {
        match item {
            Item::Begin(_) => depth += 1,
            Item::End => depth -= 1,
            Item::Property(..) => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    items.len()
}

#[derive(Clone, Debug)]
enum Change {
    Cell(Index, u32),
    Length(Index, u8),
    ExchangeValues,
    Rename,
    Double,
    Remove,
    CopyNode,
    MoveNode,
    RemoveNode,
}

fn change() -> impl Strategy<Value = Change> {
    let bit = (0_u32..32).prop_flat_map(|bit| (0_u32..3).prop_map(move |less| (1_u32 << bit).wrapping_sub(less)));
    let value = prop_oneof![0_u32..8, bit, 0x8000_u32..0x8006, !4_u32..=!0, any::<u32>()];
    prop_oneof![
        6 => (any::<Index>(), value).prop_map(|(at, value)| Change::Cell(at, value)),
        2 => (any::<Index>(), 0_u8..40).prop_map(|(at, more)| Change::Length(at, more)),
        1 => Just(Change::ExchangeValues),
        1 => Just(Change::Rename),
        1 => Just(Change::Double),
        1 => Just(Change::Remove),
        1 => Just(Change::CopyNode),
        1 => Just(Change::MoveNode),
        1 => Just(Change::RemoveNode),
    ]
}

fn apply(items: &mut Vec<Item>, change: &Change, first: Index, second: Index) {
    let places = |wanted: fn(&Item) -> bool| {
        let at =
            items.iter().enumerate().skip(1).filter(|(_, item)| wanted(item)).map(|(at, _)| at).collect::<Vec<_>>();
        (!at.is_empty()).then(|| (at[first.index(at.len())], at[second.index(at.len())]))
    };
    let of_nodes = matches!(change, Change::CopyNode | Change::MoveNode | Change::RemoveNode);
    let wanted: fn(&Item) -> bool =
        if of_nodes { |item| matches!(item, Item::Begin(_)) } else { |item| matches!(item, Item::Property(..)) };
    let Some((one, other)) = places(wanted) else { return };
    let value_of = |item: &Item| match item {
        Item::Property(name, value) => (name.clone(), value.clone()),
        _ => unreachable!("only properties were asked for"),
    };
    match change {
        Change::CopyNode | Change::MoveNode | Change::RemoveNode => {
            let end = end_of(items, one);
            let node = items[one..end].to_vec();
            // A node that is moved into itself is doubled in place.
            let to = if (one..end).contains(&other) { one } else { other };
            if !matches!(change, Change::CopyNode) {
                items.drain(one..end);
            }
            let to = if to > one && !matches!(change, Change::CopyNode) { to - node.len() } else { to };
            if !matches!(change, Change::RemoveNode) {
                items.splice(to..to, node);
            }
        }
        Change::Remove => drop(items.remove(one)),
        Change::Double => items.insert(one, items[one].clone()),
        Change::Rename => {
            let ((name, _), (_, value)) = (value_of(&items[one]), value_of(&items[other]));
            items[other] = Item::Property(name, value);
        }
        Change::ExchangeValues => {
            let ((name, value), (other_name, other_value)) = (value_of(&items[one]), value_of(&items[other]));
            items[one] = Item::Property(name, other_value);
            items[other] = Item::Property(other_name, value);
        }
        Change::Cell(at, new) => {
            let Item::Property(_, value) = &mut items[one] else { return };
            if value.len() >= 4 {
                let at = at.index(value.len() / 4) * 4;
                value[at..at + 4].copy_from_slice(&new.to_be_bytes());
            }
        }
        Change::Length(at, more) => {
            let Item::Property(_, value) = &mut items[one] else { return };
            let length = at.index(value.len() + 1) + usize::from(*more);
            value.resize(length, *more);
        }
    }
}

/// Trees with reservations, two regions of tag storage, and an interrupt controller of each kind.
fn tree(gic_2: bool) -> Vec<Item> {
    let more = |tree: &mut TreeBuilder| {
        tree.node("reserved-memory", |tree| {
            tree.property("#address-cells", &cells(&[2]));
            tree.property("#size-cells", &cells(&[2]));
            tree.property("ranges", &[]);
            for at in [0x4700_0000, 0x4900_0000] {
                tree.node(&format!("firmware@{at:x}"), |tree| {
                    tree.property("reg", &cells(&[0, at, 0, 0x1000]));
                    tree.property("no-map", &[]);
                });
            }
            for (at, size, phandle) in
                [([0, 0xbc00_0000], 0x400_0000, None), ([8, 0x9000_0000], 0x100_0000, Some(0x9001))]
            {
                tree.node(&format!("tags@{:x}", at[1]), |tree| {
                    tree.property("compatible", &text(&["arm,mte-tag-storage"]));
                    tree.property("reg", &cells(&[at[0], at[1], 0, size]));
                    tree.property("block-size", &cells(&[0x1000]));
                    tree.property("reusable", &[]);
                    if let Some(phandle) = phandle {
                        tree.property("tagged-memory", &cells(&[phandle]));
                    }
                });
            }
        });
        tree.node("memory@880000000", |tree| {
            tree.property("device_type", &text(&["memory"]));
            tree.property("reg", &cells(&[8, 0x8000_0000, 0, 0x2000_0000]));
            tree.property("phandle", &cells(&[0x9001]));
        });
        tree.node("bus", |tree| {
            tree.property("#address-cells", &cells(&[1]));
            tree.property("#size-cells", &cells(&[1]));
            tree.property("ranges", &cells(&[0, 0, 0xa00_0000, 0x10_0000]));
            tree.node("serial@0", |tree| {
                tree.property("reg", &cells(&[0, 0x1000]));
                tree.property("compatible", &text(&["arm,pl011"]));
            });
        });
    };
    let machine = Machine { more, ..Machine::default() };
    items(&virt(&if gic_2 { Machine { gic: gic_v2, ..machine } } else { machine }))
}

#[test]
fn a_tree_that_is_taken_apart_and_built_again_says_the_same() {
    for gic_2 in [false, true] {
        let platform = Platform::parse(&build(&tree(gic_2))).unwrap();
        assert_eq!(platform.tag_storage.len(), 2);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Reading a tree of sound form gives an error, or a machine whose memory is what it ought to be, whatever it says.
    #[test]
    fn a_tree_that_says_nonsense_is_an_error_or_a_machine(
        gic_2: bool, changes in prop::collection::vec((change(), any::<Index>(), any::<Index>()), 1..12)
    ) {
        let mut items = tree(gic_2);
        changes.iter().for_each(|(change, first, second)| apply(&mut items, change, *first, *second));
        if let Ok(platform) = Platform::parse(&build(&items)) {
            prop_assert!(platform.memory.iter().all(|bank| bank.start().0 % 4096 == 0 && bank.end().0 % 4096 == 0));
            prop_assert!(platform.memory.windows(2).all(|two| two[0].end() < two[1].start()), "{:?}", platform.memory);
            if let Some(initrd) = platform.initrd {
                prop_assert!(platform.memory.iter().any(|bank| bank.start() <= initrd.start() && initrd.end() <= bank.end()));
                prop_assert!(platform.no_map.iter().all(|hidden| !hidden.overlaps(initrd)));
            }
            prop_assert!(!platform.cpus.is_empty());
            prop_assert!(tag_storage_is_sound(&platform), "{:?}", platform.tag_storage);
        }
    }
}

/// The invariants of [`TagStorageRegion`] hold.
fn tag_storage_is_sound(platform: &Platform) -> bool {
    let within = |inner: PhysRange, outer: &PhysRange| outer.start() <= inner.start() && inner.end() <= outer.end();
    let is_sound = |region: &TagStorageRegion| {
        let TagStorageRegion { storage, block_bytes, tagged } = *region;
        let others = || platform.tag_storage.iter().filter(|other| *other != region);
        (4096..=2 << 20).contains(&block_bytes)
            && block_bytes % 4096 == 0
            && !storage.is_empty()
            && storage.size() % block_bytes == 0
            && [storage.start(), storage.end(), tagged.start(), tagged.end()].iter().all(|end| end.is_aligned(4096))
            && platform.memory.iter().any(|bank| within(storage, bank))
            && u128::from(storage.size()) * 32 >= u128::from(tagged.size())
            && platform.reserved.iter().filter(|range| range.overlaps(storage)).eq([&storage])
            && !platform.no_map.iter().chain(&platform.initrd).any(|range| range.overlaps(storage))
            && others().all(|other| !other.tagged.overlaps(tagged) && !other.tagged.overlaps(storage))
    };
    platform.tag_storage.iter().all(is_sound)
}
