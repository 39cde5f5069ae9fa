//! The licences, sources and bans of deny.toml, checked with what `cargo metadata` reports.
//!
//! cargo-deny checks more (advisories, licence texts); this needs nothing but cargo.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use granule_tools::Tools;
use serde::Deserialize;

/// The part of deny.toml that is checked here.
#[derive(Debug, Deserialize)]
struct Policy {
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

/// A crate that only `wrappers` may depend on.
#[derive(Debug, Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    wrappers: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

/// The part of `cargo metadata` that is checked here.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    license: Option<String>,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
}

/// Checks every package that the host or the target compiles.
///
/// # Errors
/// Lists each package with a licence or a source that is not allowed, or with a dependency that is banned.
pub(crate) fn check(tools: &Tools) -> Result<()> {
    let path = tools.root.join("deny.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let policy: Policy = toml::from_str(&text).context("deny.toml")?;
    for platform in tools.platforms()? {
        let output = tools.metadata(&platform).output().context("cannot run cargo metadata")?;
        ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
        let wrong = findings(&policy, &metadata);
        if !wrong.is_empty() {
            bail!("deny.toml, for {platform}:\n  {}", wrong.join("\n  "));
        }
    }
    Ok(())
}

/// The packages that break the policy, each with the reason.
fn findings(policy: &Policy, metadata: &Metadata) -> Vec<String> {
    let bans: HashMap<&str, &[String]> =
        policy.bans.deny.iter().map(|ban| (ban.name.as_str(), ban.wrappers.as_slice())).collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let name = &package.name;
        match &package.license {
            Some(licence) if is_allowed(licence, &policy.licenses.allow) => {}
            Some(licence) => wrong.push(format!("{name}: licence {licence}")),
            None => wrong.push(format!("{name}: no licence")),
        }
        if let Some(source) = &package.source
            && !policy.sources.allow_registry.iter().any(|allowed| *source == format!("registry+{allowed}"))
        {
            wrong.push(format!("{name}: source {source}"));
        }
        for dependency in &package.dependencies {
            if bans.get(dependency.name.as_str()).is_some_and(|wrappers| !wrappers.contains(name)) {
                wrong.push(format!("{name}: depends on {}", dependency.name));
            }
        }
    }
    wrong
}

/// Whether an SPDX expression can be met with the licences of `allowed`: all parts of an AND, one of an OR. The old form
/// `MIT/Apache-2.0` is an OR.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    either(&mut words, allowed) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut any = both(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        any |= both(words, allowed);
    }
    any
}

fn both(words: &mut Words<'_>, allowed: &[String]) -> bool {
    let mut all = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        all &= one(words, allowed);
    }
    all
}

/// A licence, with its exception if it has one, or an expression in parentheses.
fn one(words: &mut Words<'_>, allowed: &[String]) -> bool {
    match words.next() {
        Some("(") => {
            let inner = either(words, allowed);
            words.next() == Some(")") && inner
        }
        Some(licence) => {
            let mut name = licence.to_owned();
            if words.next_if_eq(&"WITH").is_some() {
                name = format!("{name} WITH {}", words.next().unwrap_or_default());
            }
            allowed.contains(&name)
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{Metadata, Policy, findings, is_allowed};

    fn allowed(expression: &str) -> bool {
        is_allowed(expression, &["MIT".into(), "Apache-2.0".into(), "Unicode-3.0".into()])
    }

    #[test]
    fn one_licence_of_an_or_and_all_of_an_and_must_be_allowed() {
        for good in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "(MIT OR Apache-2.0) AND Unicode-3.0", "(GPL-3.0) OR MIT"]
        {
            assert!(allowed(good), "{good}");
        }
        for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0 WITH LLVM-exception", "(MIT", "MIT MIT", "MIT)"] {
            assert!(!allowed(bad), "{bad}");
        }
        // AND binds more tightly.
        assert!(allowed("MIT OR GPL-3.0 AND GPL-2.0") && !allowed("(MIT OR GPL-3.0) AND GPL-2.0"));
    }

    #[test]
    fn a_package_with_a_wrong_licence_source_or_dependency_is_named() {
        let policy: Policy = toml::from_str(include_str!("../../../deny.toml")).unwrap();
        let package = |name: &str, licence: &str, source: &str, dependency: &str| {
            format!(
                r#"{{"name": "{name}", "license": "{licence}", "source": "{source}", "dependencies": [{{"name": "{dependency}"}}]}}"#
            )
        };
        let registry = "registry+https://github.com/rust-lang/crates.io-index";
        let packages = [
            package("good", "MIT", registry, "spin"),
            package("granule-peers", "MIT", registry, "aarch64-paging"),
            package("copyleft", "GPL-2.0-only", registry, "spin"),
            package("elsewhere", "MIT", "git+https://example.org/x", "spin"),
            package("wrapper", "MIT", registry, "aarch64-paging"),
        ];
        let metadata: Metadata = serde_json::from_str(&format!(r#"{{"packages": [{}]}}"#, packages.join(","))).unwrap();
        assert_eq!(
            findings(&policy, &metadata),
            [
                "copyleft: licence GPL-2.0-only",
                "elsewhere: source git+https://example.org/x",
                "wrapper: depends on aarch64-paging",
            ]
        );
    }
}
