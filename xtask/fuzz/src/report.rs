//! The report: blocks that were reached, of how many, and the list of the rest.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use granule_audit::tables::{self, Source};
use serde::Deserialize;

use super::blocks::{Blocks, PARTS, Place, Reached};
use super::{Fuzzer, table};

/// `tests-qemu/fuzz/unreached.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Reasons {
    #[serde(rename = "unreached", default)]
    lines: Vec<Unreached>,
}

/// Lines that no program reaches.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unreached {
    #[serde(flatten)]
    at: Source,
    reason: String,
}

/// The table of reasons.
///
/// # Errors
/// When it cannot be read, or an entry has no reason.
pub(super) fn reasons(root: &Path) -> Result<Reasons> {
    let reasons: Reasons = tables::read(&table(root))?;
    for entry in &reasons.lines {
        ensure!(!entry.at.file.is_empty() && !entry.reason.trim().is_empty(), "an entry lacks a part: {:?}", entry.at);
    }
    Ok(reasons)
}

impl Reasons {
    fn of(&self, place: &Place) -> Option<&str> {
        self.lines.iter().find(|entry| entry.at.fits(&place.source)).map(|entry| entry.reason.as_str())
    }
}

/// Prints what each part has of blocks and how many were reached; writes the list of the others to `unreached.txt`.
pub(super) fn print(fuzzer: &Fuzzer<'_>, reasons: &Reasons) -> Result<()> {
    let all = fuzzer.reached();
    println!("{:<10} {:>6} {:>15} {:>15} {:>15} {:>15}", "", "blocks", "programs", "inputs", "both", "or a reason");
    for (part, (name, _)) in PARTS.iter().enumerate() {
        let places = || fuzzer.blocks.places.iter().filter(|place| place.part == part);
        let blocks: usize = places().map(Place::blocks).sum();
        let share = |count: usize| format!("{count} ({:.1} %)", 100.0 * count as f64 / blocks as f64);
        let count = |reached: &Reached| share(places().map(|place| place.reached(reached)).sum());
        let accounted = |place: &Place| if reasons.of(place).is_some() { place.blocks() } else { place.reached(&all) };
        println!(
            "{name:<10} {blocks:>6} {:>15} {:>15} {:>15} {:>15}",
            count(&fuzzer.by_programs),
            count(&fuzzer.by_inputs),
            count(&all),
            share(places().map(accounted).sum()),
        );
    }
    println!("{} blocks, {} reached, each copy of an inlined one counted", fuzzer.blocks.count(), all.count());
    let path = fuzzer.directory.join("unreached.txt");
    let text = unreached(fuzzer.blocks, &all, reasons);
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("lines of the blocks that were not reached: {}", path.display());
    Ok(())
}

/// Each place that has blocks that were not reached: how many of how many, and where; those without a reason first.
fn unreached(blocks: &Blocks, reached: &Reached, reasons: &Reasons) -> String {
    let missing = |place: &Place| place.blocks() - place.reached(reached);
    let mut found: Vec<&Place> = blocks.places.iter().filter(|place| missing(place) > 0).collect();
    found.sort_by_key(|place| reasons.of(place).is_some());
    let mut text = String::new();
    for place in found {
        let Source { file, function, text: line } = &place.source;
        let why = reasons.of(place).map_or(String::new(), |reason| format!("\n    {reason}"));
        let (missing, all) = (missing(place), place.blocks());
        let at: String = place.missing(blocks, reached).iter().map(|at| format!(" {at:x}")).collect();
        let place = format!("{file}:{}:{}", place.line.line, place.line.column);
        text += &format!("{place} {function} ({missing} of {all}): {line}\n   {at}{why}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use granule_tools::root;

    /// Else a reason would stay behind when its line goes.
    #[test]
    fn each_reason_is_of_lines_that_exist() {
        for entry in super::reasons(&root()).unwrap().lines {
            let at = &entry.at;
            let text = fs::read_to_string(root().join(&at.file)).expect(&at.file);
            assert!(text.lines().any(|line| at.text.is_empty() || line.trim() == at.text), "{at:?}");
            let named = |line: &str| line.split_once("fn ").is_some_and(|(_, rest)| rest.starts_with(&at.function));
            assert!(at.function.is_empty() || text.lines().any(named), "{at:?}");
            assert!(!at.function.is_empty() || !at.text.is_empty(), "a whole file: {at:?}");
        }
    }
}
