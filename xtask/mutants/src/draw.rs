//! Which mutants there are, and in which order a seed draws them.
//!
//! Mutants of one area and one rule form a group. The order takes one of each group, then a second one of each, so that
//! rules with few places, such as barriers, are not drowned by conditions. A mutant's place in its group depends on the
//! seed and its own patch alone: a change of one file leaves the order of the others' mutants.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail};

use super::rules::{self, Change, Rule};
use super::table::{AREAS, area_of};

/// The sources of the crates that areas are in.
const CRATES: [&str; 4] = ["arch/src", "kernel/pgtable/src", "kernel/smmuv3/src", "kernel/src"];
/// Lines of context in a patch.
const CONTEXT: usize = 3;

/// A file of the sources.
#[derive(Debug)]
pub(super) struct Source {
    /// From the root of the tree.
    pub(super) path: String,
    pub(super) text: String,
}

/// One change of one file.
#[derive(Clone, Debug)]
pub(super) struct Mutant {
    pub(super) source: Rc<Source>,
    pub(super) change: Change,
    /// Its name: the same as long as its lines are.
    pub(super) id: String,
}

impl Mutant {
    /// The first line that changes.
    pub(super) fn line(&self) -> usize {
        1 + self.source.text[..self.change.range.start].matches('\n').count()
    }

    /// `path:line`.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.source.path, self.line())
    }

    /// The file with the change.
    pub(super) fn text(&self) -> String {
        let (text, range) = (&self.source.text, &self.change.range);
        format!("{}{}{}", &text[..range.start], self.change.replacement, &text[range.end..])
    }

    /// As `git apply` and `patch -p1` take it.
    pub(super) fn patch(&self) -> String {
        let (text, Range { start, end }) = (&self.source.text, self.change.range.clone());
        // The lines that are in the hunk, and no others: a file has thousands of mutants.
        let first = text[..start].rmatch_indices('\n').nth(CONTEXT).map_or(0, |(newline, _)| newline + 1);
        let last = text[end..].match_indices('\n').nth(CONTEXT).map_or(text.len(), |(newline, _)| end + newline + 1);
        let changed = format!("{}{}{}", &text[first..start], self.change.replacement, &text[end..last]);
        patch(&self.source.path, text[..first].matches('\n').count(), &text[first..last], &changed)
    }

    /// The lines that change, and what becomes of them, each in one and without what indents them.
    pub(super) fn lines(&self) -> (String, String) {
        let (text, Range { start, end }) = (&self.source.text, self.change.range.clone());
        let first = text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let last = text[end..].find('\n').map_or(text.len(), |newline| end + newline);
        let plain = |lines: &str| lines.split_whitespace().collect::<Vec<_>>().join(" ");
        let changed = format!("{}{}{}", &text[first..start], self.change.replacement, &text[end..last]);
        (plain(&text[first..last]), plain(&changed))
    }

    fn group(&self) -> (usize, Rule) {
        let area = AREAS.iter().position(|area| self.source.path.starts_with(area.path));
        (area.unwrap_or(AREAS.len()), self.change.rule)
    }
}

/// The difference of two texts, which have so many lines in front of them, in one hunk.
fn patch(path: &str, before: usize, old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let shorter = old.len().min(new.len());
    let same = (0..shorter).take_while(|&line| old[line] == new[line]).count();
    let tail = (0..shorter - same).take_while(|&line| old[old.len() - 1 - line] == new[new.len() - 1 - line]).count();
    let first = same.saturating_sub(CONTEXT);
    let behind = tail.min(CONTEXT);
    let (old_end, new_end) = (old.len() - tail, new.len() - tail);
    let mut text = format!(
        "--- a/{path}\n+++ b/{path}\n@@ -{},{} +{},{} @@\n",
        before + first + 1,
        old_end + behind - first,
        before + first + 1,
        new_end + behind - first
    );
    let mut add = |sign: char, lines: &[&str]| lines.iter().for_each(|line| text += &format!("{sign}{line}\n"));
    add(' ', &old[first..same]);
    add('-', &old[same..old_end]);
    add('+', &new[same..new_end]);
    add(' ', &old[old_end..old_end + behind]);
    text
}

/// A number from text: FNV-1a, and the last step of splitmix64 so that every bit of it is as good as the others.
pub(super) fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash =
        bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// All mutants of a file.
///
/// # Errors
/// When it cannot be parsed.
pub(super) fn of(source: Source) -> Result<Vec<Mutant>> {
    let changes = rules::changes(&source.text).with_context(|| source.path.clone())?;
    Ok(named(Rc::new(source), changes))
}

/// The mutant that puts `to` at `range` of a file.
///
/// # Errors
/// When the file cannot be parsed.
pub(super) fn by_hand(source: Source, range: Range<usize>, to: &str) -> Result<Mutant> {
    let change = rules::by_hand(&source.text, range, to).with_context(|| source.path.clone())?;
    named(Rc::new(source), vec![change]).pop().context("a mutant that changes nothing")
}

/// Changes of a file, each with its name.
fn named(source: Rc<Source>, changes: Vec<Change>) -> Vec<Mutant> {
    let mut names = BTreeSet::new();
    let mut mutants = Vec::new();
    for change in changes {
        let mut mutant = Mutant { source: Rc::clone(&source), change, id: String::new() };
        let patch = mutant.patch();
        // The line numbers of the hunk are no part of the name; where two changes read alike, their count is.
        let lines: String = patch.lines().filter(|line| !line.starts_with("@@")).collect();
        let named = |nth: usize| format!("{:016x}", hash(&[mutant.change.rule.name(), &lines, &nth.to_string()]));
        let Some(id) = (0..).map(named).find(|name| !names.contains(name)) else { continue };
        names.insert(id.clone());
        mutant.id = id;
        mutants.push(mutant);
    }
    mutants
}

/// The order in which `seed` draws.
pub(super) fn order(mutants: Vec<Mutant>, seed: u64) -> Vec<Mutant> {
    let seed = seed.to_string();
    let mut groups: BTreeMap<(usize, Rule), Vec<(u64, Mutant)>> = BTreeMap::new();
    for mutant in mutants {
        groups.entry(mutant.group()).or_default().push((hash(&[&seed, &mutant.id]), mutant));
    }
    let mut ordered = Vec::new();
    for ((area, rule), mut group) in groups {
        group.sort_by_key(|(key, _)| *key);
        let key = hash(&[&seed, rule.name(), &area.to_string()]);
        ordered.extend(group.into_iter().enumerate().map(|(round, (_, mutant))| ((round, key), mutant)));
    }
    ordered.sort_by_key(|(key, _)| *key);
    ordered.into_iter().map(|(_, mutant)| mutant).collect()
}

/// The mutants of the areas below `wanted`: a folder, a file or `file:line`, from the root; all without.
///
/// # Errors
/// When a file cannot be read or parsed, or there is no mutant at `wanted`.
pub(super) fn all(root: &Path, wanted: Option<&str>) -> Result<Vec<Mutant>> {
    let wanted = wanted.unwrap_or_default().trim_start_matches("./");
    let (path, line) = match wanted.rsplit_once(':') {
        Some((path, line)) => (path, Some(line.parse::<usize>().with_context(|| format!("no line: {line}"))?)),
        None => (wanted, None),
    };
    let mut mutants = Vec::new();
    for path in files(root)?.into_iter().filter(|file| Path::new(file).starts_with(path)) {
        let text = fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {path}"))?;
        mutants.extend(of(Source { path, text })?);
    }
    if let Some(line) = line {
        let lines = |mutant: &Mutant| {
            let changed = mutant.source.text[mutant.change.range.clone()].matches('\n').count();
            mutant.line()..=mutant.line() + changed
        };
        mutants.retain(|mutant| lines(mutant).contains(&line));
    }
    if mutants.is_empty() {
        let areas: Vec<&str> = AREAS.iter().map(|area| area.path).collect();
        bail!("no mutant at {wanted:?}; there are mutants of the files below {}", areas.join(", "));
    }
    Ok(mutants)
}

/// The files of the areas that are compiled for the target.
fn files(root: &Path) -> Result<Vec<String>> {
    let mut found = BTreeSet::new();
    for sources in CRATES {
        for file in granule_audit::files(&root.join(sources), granule_audit::is_unshipped)? {
            let path = file.path.strip_prefix(root).unwrap_or(&file.path).to_string_lossy().into_owned();
            if area_of(&path).is_some() {
                found.insert(path);
            }
        }
    }
    Ok(found.into_iter().collect())
}
