//! `./x audit speculation`: in the image, numbers of EL0's that index tables are masked, and nothing is speculated behind an
//! ERET.

use anyhow::{Result, ensure};
use granule_image::code::{AT_EL2, BARRIERS, Flow, flow};

use super::image::Image;

/// CSDB.
const CSDB: u32 = 0xd503_229f;
const ERET: u32 = 0xd69f_03e0;

/// The function that branches by a number of EL0's.
const CALLS: &str = "granule::linux::syscall::on_syscall";
/// The fewest masks of an image: of the calls, files, signals and resources.
const FEWEST: usize = 4;

/// Fails where the instructions are not those of `granule_arch::speculation`.
///
/// # Errors
/// Names the function.
pub(super) fn audit(image: &Image<'_>, verbose: bool) -> Result<()> {
    let (mut masks, mut returns) = (0, 0);
    for function in &image.functions {
        let (name, words): (_, Vec<(u64, u32)>) = (&function.names[0], image.instructions(function).collect());
        for (place, (at, word)) in words.iter().enumerate() {
            if *word == CSDB {
                let before = place.checked_sub(2).map(|first| [words[first].1, words[first + 1].1]);
                ensure!(before.is_some_and(is_mask), "{name}: the CSDB at {at:#x} follows no mask");
                masks += 1;
            }
            // Before the MMU is on there is nothing to speculate about, and no feature is known.
            if *word == ERET && name != AT_EL2 {
                let after = words.get(place + 1..place + 4).map(|words| [words[0].1, words[1].1, words[2].1]);
                ensure!(after == Some(BARRIERS), "{name}: no barriers behind the ERET at {at:#x}");
                returns += 1;
            }
        }
    }
    let calls = image.functions.iter().find(|function| function.names.iter().any(|name| name == CALLS));
    let words: Vec<(u64, u32)> = calls.into_iter().flat_map(|function| image.instructions(function)).collect();
    let branch =
        words.iter().position(|(at, word)| matches!(flow(*word, *at), Flow::CallRegister | Flow::JumpRegister(_)));
    let mask = words.iter().position(|(_, word)| *word == CSDB);
    ensure!(mask.is_some() && mask < branch, "{CALLS}: no mask before the branch by the number of a call");
    ensure!(masks >= FEWEST, "{masks} masks: fewer than there are tables that a number of EL0's indexes");
    if verbose {
        println!("{masks} numbers of EL0's are masked, barriers follow {returns} exception returns");
    }
    Ok(())
}

/// CMP (register or immediate) and CSEL of the register or zero if that is lower: 64 bits.
fn is_mask([cmp, csel]: [u32; 2]) -> bool {
    (cmp & 0xffe0_fc1f == 0xeb00_001f || cmp & 0xffc0_001f == 0xf100_001f)
        && csel & 0xffff_fc00 == 0x9a9f_3000
        && csel >> 5 & 31 == cmp >> 5 & 31
}

#[cfg(test)]
mod tests {
    use super::is_mask;

    #[test]
    fn a_mask_is_the_whole_sequence() {
        // cmp x8, x9 or cmp x8, #463; csel x10, x8, xzr, lo
        let masks = [[0xeb09_011f, 0x9a9f_310a], [0xf107_3d1f, 0x9a9f_310a]];
        assert!(masks.into_iter().all(is_mask));
        // Of another index, another condition, another register than zero, 32 bits.
        for (place, word) in [(1, 0x9a9f_30ea), (1, 0x9a9f_210a), (1, 0x9a89_310a), (0, 0x6b09_011f)] {
            let mut other = masks[0];
            other[place] = word;
            assert!(!is_mask(other), "{word:#x}");
        }
    }
}
