//! The seed for the place of the kernel.

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
