//! The checked-in tables of `./x audit panics`: where it begins, what calls by pointer reach, which panics stay and why.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::image::Line;

/// The file of what has no line.
pub(crate) const ASSEMBLY: &str = "(assembly)";

/// `xtask/audit/calls.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Calls {
    /// Functions that programs, devices and firmware enter the kernel by.
    #[serde(rename = "root")]
    pub(crate) roots: Vec<Root>,
    /// The targets of calls by a pointer. The first entry that fits a call counts.
    #[serde(rename = "call")]
    pub(crate) calls: Vec<Call>,
}

/// Functions to begin at.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Root {
    /// Patterns of names; each fits some function.
    pub(crate) functions: Vec<String>,
    /// The origins of control that enters there.
    #[expect(dead_code, reason = "for the reader of the table")]
    pub(crate) what: String,
}

/// Calls by a pointer from one place.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    #[serde(flatten)]
    pub(crate) at: Source,
    /// A pattern of the name of the function that has the call, after inlining.
    pub(crate) within: Option<String>,
    /// Patterns of names of functions that may be called; each fits some function whose address is taken. None: what
    /// is called is followed elsewhere, or never runs. `section NAME`: the functions that the section points to.
    pub(crate) targets: Vec<String>,
    /// Why these.
    #[expect(dead_code, reason = "for the reader of the table")]
    pub(crate) reason: String,
}

/// `xtask/audit/panics.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Panics {
    /// Panics that may be reached.
    #[serde(rename = "panic", default)]
    pub(crate) panics: Vec<Panic>,
}

/// A panic that stays.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Panic {
    #[serde(flatten)]
    pub(crate) at: Source,
    /// Why no program, device or tree decides whether it is reached.
    pub(crate) reason: String,
}

impl Call {
    /// Whether this entry is about a call in a function of these names, with these places in the source.
    pub(crate) fn fits(&self, names: &[String], places: &[(Source, Line)]) -> bool {
        self.within.as_ref().is_none_or(|pattern| names.iter().any(|name| matches(pattern, name)))
            && places.iter().any(|(place, _)| self.at.fits(place))
    }
}

/// A place in the source that survives lines being added before it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Deserialize)]
pub struct Source {
    /// Path in the workspace; of a crate, its name and the path in it; `core/src/...`; [`ASSEMBLY`]. Of a table: a
    /// pattern, or any if empty.
    #[serde(default)]
    pub file: String,
    /// The name after `fn`; in assembly and the toolchain's own sources that of the symbol. Of a table: any if empty.
    #[serde(default)]
    pub function: String,
    /// The line without the space around it; empty where there is no source at hand, as of the toolchain's. Of a table: any if empty.
    #[serde(default)]
    pub text: String,
}

impl Source {
    /// Whether an entry of a table with this source means a place.
    pub fn fits(&self, place: &Self) -> bool {
        (self.file.is_empty() || matches(&self.file, &place.file))
            && (self.function.is_empty() || self.function == place.function)
            && (self.text.is_empty() || self.text == place.text)
    }
}

/// Reads one of the tables.
///
/// # Errors
/// When it cannot be read or is not of its form.
pub fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    toml::from_str(&text).with_context(|| path.display().to_string())
}

impl Panics {
    /// Refuses an entry without a reason, or without the line that it is about.
    ///
    /// # Errors
    /// Names the first.
    pub(crate) fn check(&self) -> Result<()> {
        for panic in &self.panics {
            let at = &panic.at;
            ensure!(!panic.reason.trim().is_empty(), "{}: `{}` has no reason", at.file, at.text);
            ensure!(!at.file.is_empty() && !at.function.is_empty(), "an entry names no file or no function: {at:?}");
        }
        Ok(())
    }
}

/// Whether a name fits a pattern, in which `*` stands for any text.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        let Some((_, after)) = name.split_once(part) else { return false };
        name = after;
    }
    name.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_fit_whole_names() {
        assert!(matches("a::b", "a::b") && !matches("a::b", "a::bc"));
        assert!(matches("<* as core::fmt::*>::fmt", "<a::B as core::fmt::Display>::fmt"));
        assert!(!matches("<* as core::fmt::*>::fmt", "<a::B as core::fmt::Display>::fmt::{{closure}}"));
        assert!(matches("a::*", "a::") && matches("*", "") && !matches("a*a", "a"));
    }
}
