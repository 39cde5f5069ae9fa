//! `xtask/audit/mutants.toml`: mutants that change nothing which can be seen, each with its reason, and mutants that were
//! written by hand.
//!
//! A row names its place by text, so that it survives lines added elsewhere. One that fits no code of today is an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::draw::{self, Mutant, Source};

/// The table, from the root of the tree.
pub(super) const TABLE: &str = "xtask/audit/mutants.toml";
/// How many mutants a listed place gives that says nothing of what becomes of it.
const EACH: usize = 3;

/// The rows.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Known {
    #[serde(default)]
    harmless: Vec<Harmless>,
    #[serde(default)]
    listed: Vec<Listed>,
}

/// Drawn mutants that change nothing which can be seen.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Harmless {
    file: String,
    /// The lines that change, in one, without what indents them.
    from: String,
    to: String,
    reason: String,
}

/// A place that must not survive.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    file: String,
    /// Text that the file has once.
    from: String,
    /// The text in its place; without one, the first mutants of the rules there.
    to: Option<String>,
    /// The failure that it causes.
    #[expect(dead_code, reason = "for the reader of the table")]
    what: String,
}

impl Known {
    /// Reads the table of a tree.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join(TABLE)).with_context(|| format!("cannot read {TABLE}"))?;
        toml::from_str(&text).with_context(|| format!("cannot read {TABLE}"))
    }

    /// Why a mutant is harmless.
    pub(super) fn reason(&self, mutant: &Mutant) -> Option<&str> {
        let row = self.harmless.iter().find(|row| row.fits(mutant))?;
        Some(&row.reason)
    }

    /// The mutants that are harmless by the table.
    ///
    /// # Errors
    /// When a row fits no mutant.
    pub(super) fn explained(&self, root: &Path) -> Result<Vec<Mutant>> {
        let mut files = BTreeMap::new();
        let mut found = Vec::new();
        for row in &self.harmless {
            if !files.contains_key(&row.file) {
                files.insert(&row.file, draw::of(read(root, &row.file)?)?);
            }
            let mutants = files[&row.file].iter().filter(|mutant| row.fits(mutant));
            let before = found.len();
            found.extend(mutants.cloned());
            ensure!(found.len() > before, "{TABLE}: no mutant of {} makes {:?} of {:?}", row.file, row.to, row.from);
        }
        Ok(found)
    }

    /// The mutants that were written by hand.
    ///
    /// # Errors
    /// When a file does not have a row's text, or has it more than once, or no rule breaks it.
    pub(super) fn listed(&self, root: &Path) -> Result<Vec<Mutant>> {
        let mut found = Vec::new();
        for row in &self.listed {
            let source = read(root, &row.file)?;
            let places: Vec<usize> = source.text.match_indices(&row.from).map(|(place, _)| place).collect();
            ensure!(places.len() == 1, "{TABLE}: {} has {:?} {} times", row.file, row.from, places.len());
            let range = places[0]..places[0] + row.from.len();
            match &row.to {
                Some(to) => found.push(draw::by_hand(source, range, to)?),
                None => {
                    let within = |mutant: &Mutant| {
                        mutant.change.range.start < range.end && range.start < mutant.change.range.end
                    };
                    let mutants: Vec<Mutant> = draw::of(source)?.into_iter().filter(within).take(EACH).collect();
                    ensure!(!mutants.is_empty(), "{TABLE}: no rule breaks {:?} of {}", row.from, row.file);
                    found.extend(mutants);
                }
            }
        }
        Ok(found)
    }
}

impl Harmless {
    fn fits(&self, mutant: &Mutant) -> bool {
        mutant.source.path == self.file && mutant.lines() == (self.from.clone(), self.to.clone())
    }
}

fn read(root: &Path, path: &str) -> Result<Source> {
    let text = fs::read_to_string(root.join(path)).with_context(|| format!("{TABLE}: cannot read {path}"))?;
    Ok(Source { path: path.to_owned(), text })
}
