//! `./x audit size`: how many lines the parts of the project have, and which functions and files are too long.
//!
//! A line with a token is code, one with nothing but a comment is a comment. Tests are all of `tests-qemu`, files below
//! folders `tests`, files `tests.rs`, and the modules that `#[cfg(test)]` marks; of them the lines of code are counted.
//! Only Rust is counted. `xtask/audit/size.toml` lists the functions and files that are too long and stay for now.

use std::collections::BTreeMap;
use std::fs;
use std::ops::AddAssign;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use granule_tools::files;
use serde::{Deserialize, Serialize};

use super::lines::{self, Function};
use super::tables;

/// The most lines of code of a function.
const FUNCTION: usize = 60;
/// The most lines of a file.
const FILE: usize = 800;

/// The parts, and how the paths of their files begin: a file is of the longest that fits.
const PARTS: [(&str, &[&str]); 22] = [
    ("arch", &["arch/"]),
    ("pgtable", &["kernel/pgtable/"]),
    ("mm", &["kernel/src/mm/"]),
    ("sched", &["kernel/src/sched/"]),
    ("smp", &["kernel/src/smp/"]),
    ("sync", &["kernel/src/sync/"]),
    ("trap", &["kernel/src/trap/"]),
    ("platform and chip", &["kernel/src/platform/", "kernel/src/chip/"]),
    ("iommu", &["kernel/src/iommu/"]),
    ("devices", &["kernel/src/devices/"]),
    ("linux", &["kernel/src/linux/"]),
    ("rest of the kernel", &["kernel/"]),
    ("monitor", &["kernel/monitor/"]),
    ("smmuv3", &["kernel/smmuv3/"]),
    ("boot", &["boot/"]),
    ("model and loom", &["kernel/model/", "kernel/loom/"]),
    ("user library", &["user/"]),
    ("user programs", &["user/src/bin/"]),
    ("tests-qemu", &[TESTS]),
    ("./x", &["xtask/src/"]),
    ("tools of ./x", &["xtask/"]),
    ("examples and linker", &[""]),
];
/// So many of them are the core.
const CORE: usize = 7;
/// The folder of which all is tests.
const TESTS: &str = "tests-qemu/";

/// Lines of a part.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize)]
pub struct Size {
    /// Lines of code outside tests.
    pub code: usize,
    /// Lines that are nothing but a comment, outside tests.
    pub comments: usize,
    /// Lines of code in tests.
    pub tests: usize,
}

impl AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.code += other.code;
        self.comments += other.comments;
        self.tests += other.tests;
    }
}

/// The count of a tree.
#[derive(Debug, Default)]
pub struct Count {
    /// Each part, the core behind its own, the sum last.
    pub parts: Vec<(&'static str, Size)>,
    long: Vec<Long>,
}

/// A function or a file outside tests that is longer than the others are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Long {
    pub(super) file: String,
    /// Its name; none for the file itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) function: Option<String>,
    /// Lines of code of a function, all lines of a file; in the table the most that it may have.
    pub(super) lines: usize,
}

/// `xtask/audit/size.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    #[serde(rename = "long", default)]
    pub(super) long: Vec<Long>,
}

/// Options of the count.
#[derive(Debug, Default, clap::Args)]
pub struct Options {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Count the sources below this folder, such as those of an earlier commit, and judge nothing
    #[arg(long, value_name = "FOLDER")]
    tree: Option<PathBuf>,
}

/// Counts, prints, and fails where something is too long.
///
/// # Errors
/// A function or file that is too long and not listed, or longer than it is listed; an entry that nothing needs.
pub(super) fn audit(root: &Path, options: &Options) -> Result<()> {
    let count = count(options.tree.as_deref().unwrap_or(root))?;
    if options.json {
        println!(
            "{:#}",
            serde_json::json!({ "parts": count.parts.iter().copied().collect::<BTreeMap<_, _>>(), "long": count.long })
        );
    } else {
        print!("{}", count.table());
    }
    if options.tree.is_some() { Ok(()) } else { check_count(root, &count) }
}

/// The judgement alone.
///
/// # Errors
/// As [`audit`].
pub(super) fn check(root: &Path) -> Result<()> {
    check_count(root, &count(root)?)
}

fn check_count(root: &Path, count: &Count) -> Result<()> {
    let kept: Kept = tables::read(&root.join("xtask/audit/size.toml"))?;
    kept.judge(&count.long).context("xtask/audit/size.toml")
}

/// Counts the sources below a folder.
///
/// # Errors
/// When one cannot be read or parsed.
pub fn count(root: &Path) -> Result<Count> {
    let mut sources = Vec::new();
    let mut for_tests = Vec::new();
    for path in files(root, "rs")? {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut source = lines::read(&path, &text)?;
        for_tests.append(&mut source.test_files);
        sources.push((path, text.lines().count(), source));
    }
    let mut sizes = [Size::default(); PARTS.len()];
    let mut long = Vec::new();
    for (path, all, source) in sources {
        let file = path.strip_prefix(root)?.to_string_lossy().into_owned();
        let size = &mut sizes[part(&file)];
        if is_test(&file) || for_tests.iter().any(|tests| path.starts_with(tests)) {
            size.tests += source.code + source.tests;
            continue;
        }
        *size += Size { code: source.code, comments: source.comments, tests: source.tests };
        if all > FILE {
            long.push(Long { file: file.clone(), function: None, lines: all });
        }
        let too_long = source.functions.into_iter().filter(|function| function.code > FUNCTION);
        long.extend(too_long.map(|Function { name, code, .. }| Long {
            file: file.clone(),
            function: Some(name),
            lines: code,
        }));
    }
    Ok(Count { parts: with_sums(&sizes), long })
}

/// The part of a file.
fn part(file: &str) -> usize {
    let fits = |begins: &[&'static str]| {
        begins.iter().filter(|begin| file.starts_with(**begin)).map(|begin| begin.len()).max()
    };
    let parts = PARTS.iter().enumerate().filter_map(|(index, (_, begins))| Some((fits(begins)?, index)));
    parts.max().map_or(PARTS.len() - 1, |(_, index)| index)
}

/// Whether a file is one of tests by its path.
fn is_test(file: &str) -> bool {
    file.starts_with(TESTS) || file.split('/').any(|part| part == "tests" || part == "tests.rs")
}

/// The parts with their names, and the two sums.
fn with_sums(sizes: &[Size; PARTS.len()]) -> Vec<(&'static str, Size)> {
    let sum = |sizes: &[Size]| {
        let mut sum = Size::default();
        sizes.iter().for_each(|size| sum += *size);
        sum
    };
    let mut parts: Vec<_> = PARTS.iter().zip(sizes).map(|((name, _), size)| (*name, *size)).collect();
    parts.insert(CORE, ("core", sum(&sizes[..CORE])));
    parts.push(("sum", sum(sizes)));
    parts
}

impl Count {
    /// The count of a part, by its name.
    pub fn part(&self, name: &str) -> Option<Size> {
        self.parts.iter().find(|(part, _)| *part == name).map(|(_, size)| *size)
    }

    fn table(&self) -> String {
        let mut text = format!("{:<20}{:>8}{:>10}{:>8}\n", "part", "code", "comments", "tests");
        for (name, Size { code, comments, tests }) in &self.parts {
            text += &format!("{name:<20}{code:>8}{comments:>10}{tests:>8}\n");
        }
        for long in &self.long {
            text += &format!("long: {long}\n");
        }
        text
    }
}

impl Kept {
    /// Fails where what is too long and the table do not agree.
    pub(super) fn judge(&self, long: &[Long]) -> Result<()> {
        let named = |a: &Long, b: &Long| (&a.file, &a.function) == (&b.file, &b.function);
        let grown =
            long.iter().filter(|long| !self.long.iter().any(|kept| named(kept, long) && long.lines <= kept.lines));
        let grown: Vec<String> = grown.map(Long::to_string).collect();
        ensure!(
            grown.is_empty(),
            "functions of more than {FUNCTION} lines of code, or files of more than {FILE} lines, that are not listed or \
             have grown:\n  {}",
            grown.join("\n  ")
        );
        let gone = self.long.iter().find(|kept| !long.iter().any(|long| named(kept, long)));
        ensure!(gone.is_none(), "is no longer too long: {}", gone.map(Long::to_string).unwrap_or_default());
        Ok(())
    }
}

impl std::fmt::Display for Long {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let function = self.function.as_ref().map_or(String::new(), |name| format!(" fn {name}"));
        write!(f, "{}{function}: {} lines", self.file, self.lines)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Kept, Long, Size, count};

    fn long(file: &str, function: Option<&str>, lines: usize) -> Long {
        Long { file: file.into(), function: function.map(str::to_owned), lines }
    }

    #[test]
    fn files_are_counted_by_part_and_what_is_too_long_is_found() {
        let root = std::env::temp_dir().join(format!("granule-size-{}", std::process::id()));
        let write = |file: &str, text: &str| {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let body = "    f();\n".repeat(59);
        write("arch/src/lib.rs", "//! Head.\n\nuse a::b;\n#[cfg(test)]\nmod doubles;\nmod c;\n");
        write("arch/src/doubles.rs", &format!("fn double() {{\n{body}}}\n"));
        write("arch/src/c/tests.rs", "fn f() {}\n");
        write("kernel/src/mm/mod.rs", &format!("fn long() {{\n{body}}}\n"));
        write("kernel/src/mm/tests/one.rs", "fn f() {}\n");
        write("kernel/src/lib.rs", &"// A comment.\n".repeat(801));
        write("user/src/bin/a.rs", "fn main() {}\n");
        write("user/src/lib.rs", "fn f() {}\nfn g() {}\n");
        write("tests-qemu/host/src/lib.rs", "// A comment.\nfn f() {}\n");
        let count = count(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        let size = |code, comments, tests| Some(Size { code, comments, tests });
        assert_eq!(count.part("arch"), size(4, 1, 62));
        assert_eq!(count.part("mm"), size(61, 0, 1));
        assert_eq!(count.part("core"), size(65, 1, 63));
        assert_eq!(count.part("rest of the kernel"), size(0, 801, 0));
        assert_eq!([count.part("user programs"), count.part("user library")], [size(1, 0, 0), size(2, 0, 0)]);
        assert_eq!(count.part("tests-qemu"), size(0, 0, 1));
        assert_eq!(count.part("sum"), size(68, 802, 64));
        let expected = [long("kernel/src/lib.rs", None, 801), long("kernel/src/mm/mod.rs", Some("long"), 61)];
        assert_eq!(count.long, expected);
    }

    #[test]
    fn the_table_of_what_is_too_long_may_only_shrink() {
        let found = [long("a.rs", None, 900), long("a.rs", Some("f"), 70)];
        let judge = |kept: &[Long]| Kept { long: kept.to_vec() }.judge(&found).map_err(|error| error.to_string());
        assert_eq!(judge(&found), Ok(()));
        assert!(judge(&found[..1]).unwrap_err().contains("a.rs fn f: 70 lines"));
        assert!(judge(&[found[0].clone(), long("a.rs", Some("f"), 69)]).unwrap_err().contains("a.rs fn f: 70 lines"));
        let gone = [&found[..], &[long("b.rs", None, 900)]].concat();
        assert!(judge(&gone).unwrap_err().contains("b.rs: 900 lines"));
    }
}
