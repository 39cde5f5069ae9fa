//! Trees whose flattened form is sound, and others.

use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::{Node as _, Property as _};
use proptest::prelude::*;

use super::super::structure::{StructureError, check};
use super::super::tree_builder::TreeBuilder;

/// Reads all that there is in a tree, as deep as it goes.
fn read_all(fdt: Fdt<'_>) -> usize {
    fn read(node: FdtNode<'_>) -> usize {
        let properties: usize = node.properties().map(|property| property.name().len() + property.value().len()).sum();
        node.name().len() + properties + node.children().map(read).sum::<usize>()
    }
    fdt.memory_reservations().count() + read(fdt.root())
}

fn tree() -> Vec<u8> {
    let mut tree = TreeBuilder::default();
    tree.reserve(0x1000, 0x1000);
    tree.node("", |root| {
        root.property("#address-cells", &[0, 0, 0, 2]);
        root.node("a", |a| {
            a.property("reg", &[0; 16]);
            a.node("b@0", |b| b.property("compatible", b"x\0"));
        });
        root.node("c", |_| {});
    });
    tree.finish()
}

#[test]
fn names_may_be_longer_than_the_specification_recommends() {
    let long = "a-name-of-more-than-thirty-one-characters-as-real-trees-have";
    let mut tree = TreeBuilder::default();
    tree.node("", |root| {
        root.node(long, |node| node.property("qcom,vdd-micro-voltage-and-so-on-and-so-on", &[]));
    });
    let blob = tree.finish();
    assert!(Fdt::new(&blob).is_err(), "dtoolkit takes such names now: use its own check");
    let fdt = check(&blob).unwrap();
    let child = fdt.root().children().next().unwrap();
    assert_eq!(child.name(), long);
    assert_eq!(child.properties().next().unwrap().name(), "qcom,vdd-micro-voltage-and-so-on-and-so-on");
}

#[test]
fn properties_behind_child_nodes_are_refused() {
    let mut tree = TreeBuilder::default();
    tree.node("", |root| {
        root.node("a", |_| {});
        root.property("late", &[]);
    });
    assert!(matches!(check(&tree.finish()), Err(StructureError::Token { token: 3, .. })));
}

#[test]
fn every_length_is_checked() {
    let blob = tree();
    for length in 0..blob.len() {
        let mut cut = blob.get(..length).unwrap().to_vec();
        if let Some(size) = cut.get_mut(4..8) {
            size.copy_from_slice(&(length as u32).to_be_bytes());
        }
        assert!(check(&cut).is_err(), "cut off after {length} bytes");
    }
    assert!(check(&blob).is_ok());
}

proptest! {
    /// Accepted trees can be read to the end: no reader of dtoolkit panics. All that dtoolkit accepts is accepted.
    #[test]
    fn what_is_accepted_can_be_read(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![0_u32..12, any::<u32>(), !16_u32..=!0]), 0..4),
    ) {
        let mut blob = tree();
        for (at, value) in changes {
            let at = at.index(blob.len() / 4) * 4;
            blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        let checked = check(&blob);
        prop_assert!(checked.is_ok() || Fdt::new(&blob).is_err());
        if let Ok(fdt) = checked {
            read_all(fdt);
        }
    }
}
