//! The copy of the sources in which mutants are built. The user's tree is only read.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::draw::hash;

/// Folders that no verdict depends on.
const SILENT: [&str; 3] = ["docs/", "xtask/audit/", "xtask/mutants/"];

/// The copy.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) root: PathBuf,
    /// A name for what all files hold that a verdict may depend on.
    pub(super) hash: String,
}

impl Tree {
    /// Brings the copy at `root` up to date with the files that git knows or would add in `from`. A file that is the
    /// same keeps its time, so that builds are reused.
    ///
    /// # Errors
    /// When `from` is no git repository, or a file cannot be read or written.
    pub(super) fn copy(from: &Path, root: &Path) -> Result<Self> {
        let listed = |directory: &Path| -> Result<BTreeSet<String>> {
            let mut git = Command::new("git");
            git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(directory);
            let listed = git.output().context("cannot run git")?;
            ensure!(listed.status.success(), "{} is no git repository, whose files could be copied", from.display());
            Ok(String::from_utf8(listed.stdout)?.split_terminator('\0').map(str::to_owned).collect())
        };
        let mut hashes = Vec::new();
        let mut kept = BTreeSet::new();
        for file in listed(from)? {
            let (old, new) = (from.join(&file), root.join(&file));
            // One that was deleted and is still in git's index, or a link.
            if !fs::symlink_metadata(&old).is_ok_and(|metadata| metadata.is_file()) {
                continue;
            }
            let bytes = fs::read(&old).with_context(|| format!("cannot read {}", old.display()))?;
            if !SILENT.iter().any(|folder| file.starts_with(folder)) {
                hashes.push(format!("{:x}", hash(&[&file, &String::from_utf8_lossy(&bytes)])));
            }
            if fs::read(&new).is_ok_and(|there| there == bytes) {
                kept.insert(new);
                continue;
            }
            fs::create_dir_all(new.parent().unwrap_or(root))?;
            // fs::copy keeps the permissions; the time is that of the copy, which is later than every build.
            fs::copy(&old, &new).with_context(|| format!("cannot write {}", new.display()))?;
            kept.insert(new);
        }
        remove_others(root, root, &kept)?;
        let hashes: Vec<&str> = hashes.iter().map(String::as_str).collect();
        Ok(Self { root: root.to_owned(), hash: format!("{:016x}", hash(&hashes)) })
    }

    /// Replaces a file's text.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, path: &str, text: &str) -> Result<()> {
        fs::write(self.root.join(path), text).with_context(|| format!("cannot write {path} of the copy"))
    }
}

/// Removes files that are in the copy and no longer in the sources, but not what was built.
fn remove_others(root: &Path, folder: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let is_built = folder == root && ["target", "build"].iter().any(|name| path.ends_with(name));
        if is_built {
            continue;
        }
        if path.is_dir() {
            remove_others(root, &path, kept)?;
        } else if !kept.contains(&path) {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}
