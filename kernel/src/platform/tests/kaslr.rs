//! The seed for the place of the kernel.

use proptest::prelude::*;

use super::super::structure::check;
use super::super::tree_builder::{TreeBuilder, cells, text};
use super::super::{KaslrSeed, StructureError, kaslr_seed};

/// A tree with this seed and these arguments in a node of the root's.
fn tree(node: &str, seed: &[u8], arguments: &str) -> Vec<u8> {
    let mut tree = TreeBuilder::default();
    tree.node("", |root| {
        root.node("cpus", |cpus| {
            cpus.node("chosen", |other| other.property("kaslr-seed", &[1; 8]));
        });
        root.node(node, |chosen| {
            chosen.property("kaslr-seed", seed);
            chosen.property("kaslr-seed-of-another", &[2; 8]);
            chosen.property("bootargs", &text(&[arguments]));
            chosen.node("chosen", |below| below.property("kaslr-seed", &[3; 8]));
        });
        root.node("memory", |memory| memory.property("kaslr-seed", &[4; 8]));
    });
    tree.finish()
}

#[test]
fn the_seed_is_that_of_chosen() {
    let seed = cells(&[0x1122_3344, 0x5566_7788]);
    let blob = tree("chosen", &seed, "script");
    let KaslrSeed { value, offset } = kaslr_seed(&blob).unwrap().unwrap();
    assert_eq!((value, &blob[offset..offset + 8]), (0x1122_3344_5566_7788, &seed[..]));
    assert_eq!(kaslr_seed(&tree("chosen-too", &seed, "")), Ok(None));
}

#[test]
fn a_seed_of_zero_or_of_another_length_is_none() {
    for length in [0, 4, 7, 9, 16] {
        assert_eq!(kaslr_seed(&tree("chosen", &vec![5; length], "")), Ok(None), "{length} bytes");
    }
    assert_eq!(kaslr_seed(&tree("chosen", &[0; 8], "")), Ok(None));
}

#[test]
fn nokaslr_is_a_word_of_the_arguments() {
    for (arguments, is_taken) in
        [("nokaslr", false), ("a=b nokaslr script", false), ("nokaslrs xnokaslr", true), ("x=nokaslr", true)]
    {
        assert_eq!(kaslr_seed(&tree("chosen", &[5; 8], arguments)).unwrap().is_some(), is_taken, "{arguments:?}");
    }
}

#[test]
fn a_tree_that_is_not_sound_has_no_seed() {
    let mut blob = tree("chosen", &[5; 8], "");
    blob[0] = 0;
    assert_eq!(kaslr_seed(&blob), Err(StructureError::NoMagic));
}

/// Places of the header's words for offsets of the structure, the strings and the reservations, and the strings' length.
const OFFSETS: [usize; 4] = [8, 12, 16, 32];

fn set_word(blob: &mut [u8], at: usize, value: u32) {
    blob[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

/// Zeros after the seed, so that a block of reservations that begins at the seed ends.
fn with_zeros() -> (Vec<u8>, usize) {
    let mut tree = TreeBuilder::default();
    tree.node("", |root| {
        root.node("chosen", |chosen| {
            chosen.property("kaslr-seed", &[5; 8]);
            chosen.property("zeros", &[0; 48]);
        });
    });
    let blob = tree.finish();
    let seed = kaslr_seed(&blob).unwrap().unwrap();
    (blob, seed.offset)
}

#[test]
fn a_seed_that_another_block_has_a_part_of_is_none() {
    let (blob, seed) = with_zeros();
    // Both blocks of the empty list of reservations, with a byte of the seed or with none.
    for (first, is_taken) in [(seed - 16, false), (seed - 15, false), (seed + 7, false), (seed + 8, true)] {
        let mut blob = blob.clone();
        set_word(&mut blob, OFFSETS[2], first as u32);
        assert_eq!(
            kaslr_seed(&blob).unwrap().is_some(),
            is_taken,
            "reservations {} bytes on",
            first as i64 - seed as i64
        );
    }
    // Strings as far as the end: with what is before them in front.
    let end = blob.len();
    let strings = u32::from_be_bytes(blob[12..16].try_into().unwrap()) as usize;
    for first in [seed + 7, seed + 8] {
        let mut blob = blob.clone();
        let moved = (strings - first) as u32;
        for name in [seed - 4, seed + 16] {
            let offset = u32::from_be_bytes(blob[name..name + 4].try_into().unwrap());
            set_word(&mut blob, name, offset + moved);
        }
        set_word(&mut blob, OFFSETS[1], first as u32);
        set_word(&mut blob, OFFSETS[3], (end - first) as u32);
        assert_eq!(kaslr_seed(&blob).unwrap().is_some(), first == seed + 8, "strings {} bytes on", first - seed);
    }
}

#[test]
fn of_two_nodes_or_properties_the_first_counts() {
    let twice = |first: &[(&str, &[u8])], second: &[(&str, &[u8])]| {
        let mut tree = TreeBuilder::default();
        tree.node("", |root| {
            for properties in [first, second] {
                root.node("chosen", |chosen| properties.iter().for_each(|(name, value)| chosen.property(name, value)));
            }
        });
        kaslr_seed(&tree.finish()).unwrap().map(|seed| seed.value)
    };
    let [one, other] = [1_u64, 2].map(u64::to_be_bytes);
    let nokaslr = text(&["nokaslr"]);
    assert_eq!(twice(&[("kaslr-seed", &one), ("kaslr-seed", &other)], &[]), Some(1));
    assert_eq!(twice(&[("kaslr-seed", &one)], &[("kaslr-seed", &other)]), Some(1));
    assert_eq!(twice(&[], &[("kaslr-seed", &other)]), None);
    assert_eq!(twice(&[("kaslr-seed", &one), ("bootargs", &nokaslr), ("bootargs", b"\0")], &[]), None);
    assert_eq!(twice(&[("kaslr-seed", &one)], &[("bootargs", &nokaslr)]), Some(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The boot zeroes the seed and does not check again.
    #[test]
    fn a_tree_is_sound_without_its_seed(changes in prop::collection::vec((prop::sample::select(&OFFSETS), 0_u32..400), 1..3)) {
        let (mut blob, _) = with_zeros();
        for (at, value) in changes {
            set_word(&mut blob, at, value);
        }
        if let Ok(Some(KaslrSeed { offset, .. })) = kaslr_seed(&blob) {
            blob[offset..offset + 8].fill(0);
            prop_assert!(check(&blob).is_ok());
        }
    }
}
