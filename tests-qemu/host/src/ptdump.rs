//! The kernel's own listing of its page tables, as its monitor prints it, taken apart into leaves.

use anyhow::{Context, Result, ensure};

use crate::leaves::Leaf;

/// The leaves that `ptdump` lists, without those that are present but invalid, which no walk uses.
///
/// # Errors
/// When a line has not the form `0xSTART-0xEND SIZE LEAF x COUNT FLAGS... TYPE`, or its numbers contradict each other.
pub fn parse(listing: &str) -> Result<Vec<Leaf>> {
    let mut leaves = Vec::new();
    for line in listing.lines().filter(|line| line.starts_with("0x")) {
        leaves.extend(range(line).with_context(|| format!("ptdump printed {line:?}"))?);
    }
    Ok(leaves)
}

/// Where the kernel's image is: it begins with its text, and nothing below it is executable.
///
/// # Errors
/// As [`parse`], and when nothing is executable.
pub fn text(listing: &str) -> Result<u64> {
    parse(listing)?.iter().find(|leaf| leaf.executable).map(|leaf| leaf.start).context("nothing is executable")
}

fn range(line: &str) -> Result<Vec<Leaf>> {
    let mut words = line.split_whitespace();
    let mut word = || words.next().context("it is too short");
    let (start, end) = word()?.split_once('-').context("no range")?;
    let (start, end) = (address(start)?, address(end)?);
    let (total, size) = (bytes(word()?)?, bytes(word()?)?);
    ensure!(word()? == "x", "no count");
    let count: u64 = word()?.parse()?;
    // The last address of all has no successor, so an end of 0 is 2^64.
    ensure!(end.wrapping_sub(start) == total && size.checked_mul(count) == Some(total), "the sizes do not add up");
    let flags: Vec<&str> = words.collect();
    let has = |flag: &str| flags.contains(&flag);
    ensure!(has("RW") != has("ro") && has("NX") != has("x"), "no permissions");
    if has("F") {
        return Ok(Vec::new());
    }
    let leaf = Leaf {
        start,
        size,
        writable: has("RW"),
        executable: has("x") && !has("PXNTABLE"),
        device: flags.iter().any(|flag| flag.starts_with("DEVICE/")),
    };
    Ok((0..count).map(|i| Leaf { start: start.wrapping_add(i * size), ..leaf }).collect())
}

fn address(text: &str) -> Result<u64> {
    Ok(u64::from_str_radix(text.strip_prefix("0x").context("not hexadecimal")?, 16)?)
}

fn bytes(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        unit => anyhow::bail!("unknown unit {unit}"),
    };
    Ok(digits.parse::<u64>()? << shift)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn ranges_become_leaves() {
        let leaves = parse(
            "---[ vmalloc ]---\n\
             0xffff800100001000-0xffff800100003000       8K    4K x 2           RW NX SHD AF        UXN    MEM/NORMAL\n\
             0xffff800100003000-0xffff800100004000       4K    4K x 1     F     ro NX SHD AF        UXN    MEM/NORMAL\n\
             0xffff800200000000-0xffff800200200000       2M    2M x 1           ro x  SHD AF        UXN    DEVICE/nGnRE PXNTABLE\n\
             total 2060K: 3 x 4K, 1 x 2M\n",
        )
        .unwrap();
        assert_eq!(leaves.len(), 3);
        assert_eq!((leaves[1].start, leaves[1].size), (0xffff_8001_0000_2000, 0x1000));
        assert!(leaves[1].writable && !leaves[1].executable && !leaves[1].device);
        assert!(!leaves[2].writable && !leaves[2].executable && leaves[2].device);
    }

    #[test]
    fn numbers_that_contradict_each_other_are_refused() {
        assert!(parse("0x1000-0x3000 4K 4K x 1 RW NX MEM/NORMAL").is_err());
        assert!(parse("0x1000-0x2000 4K 4K x 1 RW MEM/NORMAL").is_err());
    }
}
