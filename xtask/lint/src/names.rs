//! Names in backticks, in comments and pages: each path of a file, and each item `a::b`, exists.
//!
//! A path is looked for at the end of every file's. Of an item the last two segments must each be a name in the code, or
//! that of a file, a folder or a package: one that no longer exists is found, another's of that name is not.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use granule_tools::{Tools, files};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use super::sentences::comment;

/// Files whose comments or text are read.
const KINDS: [&str; 4] = ["rs", "S", "toml", "md"];
/// Files that are looked for; Linux's have other endings.
const FILES: [&str; 6] = ["rs", "S", "toml", "md", "tsv", "ld"];
/// The page that names what there was.
const HISTORY: &str = "CHANGELOG.md";
/// Crates of the toolchain, of which the code need not use all that a comment names.
const TOOLCHAIN: [&str; 3] = ["std", "core", "alloc"];

/// Looks through all comments and pages of the project.
///
/// # Errors
/// The places that name what does not exist; a file that cannot be read.
pub(crate) fn check(tools: &Tools) -> Result<()> {
    let known = Known::read(&tools.root)?;
    let mut wrong = Vec::new();
    for kind in KINDS {
        for path in files(&tools.root, kind)? {
            let name = relative(&path, &tools.root);
            let text = fs::read_to_string(&path)?;
            let lines = text.lines().filter(|_| name != HISTORY).enumerate();
            wrong.extend(lines.flat_map(|(number, line)| {
                let at = format!("{name}:{}", number + 1);
                known.missing(prose(line, kind)).map(move |code| format!("{at}: {code}"))
            }));
        }
    }
    ensure!(wrong.is_empty(), "names in backticks of what does not exist:\n  {}", wrong.join("\n  "));
    Ok(())
}

fn relative(path: &Path, root: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// The part of a line that is no code.
fn prose<'a>(line: &'a str, kind: &str) -> &'a str {
    match kind {
        "md" => line,
        "toml" => line.split_once('#').map_or("", |(_, comment)| comment),
        _ => comment(line).unwrap_or_default(),
    }
}

/// Words before the name of what they define.
const DEFINING: [&str; 9] = ["fn", "struct", "enum", "union", "trait", "type", "mod", "const", "static"];

/// The names that exist.
#[derive(Default)]
struct Known {
    /// Paths from the root, with a slash before each.
    files: Vec<String>,
    names: HashSet<String>,
}

impl Known {
    fn read(root: &Path) -> Result<Self> {
        let mut known = Self::default();
        for kind in FILES {
            // Of the hidden folders pages name this one's files.
            for path in [files(root, kind)?, files(&root.join(".cargo"), kind)?].concat() {
                let text = || fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
                match kind {
                    "rs" => known
                        .add(text()?.parse().ok().with_context(|| format!("{} is not Rust", path.display()))?, false),
                    "S" => known.names.extend(text()?.split(|c| !is_of_name(c)).map(str::to_owned)),
                    "toml" => known.names.extend(text()?.lines().filter_map(package)),
                    _ => {}
                }
                let name = relative(&path, root);
                known.names.extend(name.split('/').map(|part| part.split('.').next().unwrap_or(part).to_owned()));
                known.files.push(format!("/{name}"));
            }
        }
        Ok(known)
    }

    /// Adds the names among tokens: of definitions, in paths, behind a dot; with `all` each identifier. A variable's, which
    /// no path has, is none of them.
    fn add(&mut self, tokens: TokenStream, all: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is = |at: Option<usize>, text: &str| {
            at.and_then(|at| tokens.get(at)).is_some_and(|token| match token {
                TokenTree::Ident(name) => name == text,
                TokenTree::Punct(punct) => text.starts_with(punct.as_char()),
                _ => false,
            })
        };
        let is_one = |at: Option<usize>, texts: &[&str]| texts.iter().any(|text| is(at, text));
        for (at, token) in tokens.iter().enumerate() {
            let (before, second) = (at.checked_sub(1), at.checked_sub(2));
            let is_in_path = is(before, ":") && is(second, ":");
            match token {
                TokenTree::Ident(name) => {
                    let goes_on = is(Some(at + 1), ":") && is(Some(at + 2), ":");
                    let is_macro = is(before, "!") && is(second, "macro_rules");
                    if all || is_in_path || goes_on || is_macro || is(before, ".") || is_one(before, &DEFINING) {
                        self.names.insert(name.to_string());
                    }
                }
                TokenTree::Group(group) => {
                    // Fields and variants, names of a `use`, and the own languages of macros that define.
                    let defines = is_one(second, &["struct", "enum", "union"]) || is(before, "!");
                    let is_body = group.delimiter() == Delimiter::Brace && defines;
                    self.add(group.stream(), all || is_body || is_in_path);
                }
                _ => {}
            }
        }
    }

    /// The pieces of code in a text that name what does not exist.
    fn missing<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let pieces: Vec<&str> = text.split('`').collect();
        // rustdoc checks links.
        let is_link = |around: &[&str]| around[0].ends_with('[') && around[2].starts_with(']');
        let code = pieces.windows(3).step_by(2).filter(move |around| !is_link(around)).map(|around| around[1]);
        code.filter(|code| !self.has(code)).collect::<Vec<_>>().into_iter()
    }

    fn has(&self, code: &str) -> bool {
        let is_path = code.chars().all(|c| is_of_name(c) || "-./".contains(c));
        if is_path && code.rsplit_once('.').is_some_and(|(stem, kind)| !stem.is_empty() && FILES.contains(&kind)) {
            let end = format!("/{}", code.trim_start_matches("../"));
            return self.files.iter().any(|file| file.ends_with(&end));
        }
        let segments: Vec<&str> = code.trim_end_matches("()").split("::").collect();
        let is_item = segments.iter().all(|segment| !segment.is_empty() && segment.chars().all(is_of_name));
        let [.., owner, item] = segments[..] else { return true };
        !is_item || TOOLCHAIN.contains(&segments[0]) || [owner, item].iter().all(|name| self.names.contains(*name))
    }
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The name that code has for the package of a manifest's line.
fn package(line: &str) -> Option<String> {
    Some(line.strip_prefix("name = \"")?.split('"').next()?.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::{Known, prose};

    #[test]
    fn names_that_do_not_exist_are_found() {
        let mut known = Known { files: vec!["/kernel/model/tests/model/barriers.rs".into()], ..Known::default() };
        let code = "mod trap { fn recurse() { let recurses = Error::Full; f(recurses) } } enum E { Empty(u8) }";
        known.add(code.parse().unwrap(), false);
        let missing = |line: &str, kind| known.missing(prose(line, kind)).map(str::to_owned).collect::<Vec<_>>();
        let none: [&str; 0] = [];
        for line in [
            "/// `tests/model/barriers.rs`, `barriers.rs`, `../model/barriers.rs`",
            "/// `crate::trap::recurse`, `trap::recurse()`, `core::any::thing`, `Error::Full`, `E::Empty`",
            "/// [`smccc::Error`], which rustdoc checks.",
            "/// `linux/file.c`, `a.b`, `<T as Trait>::f`, `recurses`, `.rs`, `x::<T>()`",
            "let text = \"`trap::recurses`\";",
        ] {
            assert_eq!(missing(line, "rs"), none, "{line}");
        }
        assert_eq!(
            missing("/// See `trap::recurses` and `tests/barriers.rs`.", "rs"),
            ["trap::recurses", "tests/barriers.rs"]
        );
        assert_eq!(missing("A page with `peers.md` and `traps::recurse`.", "md"), ["peers.md", "traps::recurse"]);
        assert_eq!(missing("key = \"`a.rs`\" # `b.rs`", "toml"), ["b.rs"]);
    }

    #[test]
    fn packages_are_names() {
        assert_eq!(super::package("name = \"granule-host-tests\""), Some("granule_host_tests".into()));
        assert_eq!(super::package("rename = \"a\""), None);
    }
}
