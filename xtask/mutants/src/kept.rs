//! `docs/MUTANTS.tsv`: mutants that have died, a line each. It goes with the sources, so that a run on another machine
//! goes on where the last one ended: `./x mutants --update` adds what has died and leaves out what is no mutant any more.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::draw::Mutant;
use super::record::{self, Verdict};

/// From the root of the tree.
pub(super) const FILE: &str = "docs/MUTANTS.tsv";

/// A mutant that has died: its file, its rule, and its killer.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Row {
    file: String,
    rule: String,
    by: String,
}

/// The lines, by the mutants' names.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Kept(BTreeMap<String, Row>);

impl Kept {
    /// Reads the file of a tree; nothing where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or a line has not four fields.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let path = root.join(FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {FILE}"))?;
        let row = |line: &str| {
            let mut fields = line.splitn(4, '\t').map(str::to_owned);
            let mut field = || fields.next().with_context(|| format!("{FILE}: {line:?} is not name, file, rule, by"));
            Ok((field()?, Row { file: field()?, rule: field()?, by: field()? }))
        };
        Ok(Self(text.lines().map(row).collect::<Result<_>>()?))
    }

    /// The killer of a mutant whose lines are still the same.
    pub(super) fn by(&self, mutant: &Mutant) -> Option<&str> {
        self.0.get(&mutant.id).map(|row| row.by.as_str())
    }

    /// Adds what has died in the tree at `tree`, and keeps of the rest what is among `names`.
    pub(super) fn update(&mut self, results: &[(Mutant, Verdict)], tree: &Path, names: &BTreeSet<String>) {
        let tree = format!("{}/", tree.display());
        self.0.retain(|name, _| names.contains(name));
        for (mutant, verdict) in results {
            let Verdict::Killed(by) = verdict else { continue };
            let by = by.replace(&tree, "").replace(['\t', '\n'], " ");
            let (file, rule) = (mutant.source.path.clone(), mutant.change.rule.name().to_owned());
            self.0.insert(mutant.id.clone(), Row { file, rule, by });
        }
    }

    /// Writes the file of a tree: by files, so that a change of one is a change of neighbours.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, root: &Path) -> Result<()> {
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_by_key(|&(name, row)| (&row.file, &row.rule, name));
        let line = |(name, Row { file, rule, by }): (&String, &Row)| format!("{name}\t{file}\t{rule}\t{by}\n");
        record::replace(&root.join(FILE), &rows.into_iter().map(line).collect::<String>())
    }
}
