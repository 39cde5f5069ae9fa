//! `./x audit layers`: which modules of a crate import which, compared with the layers in `xtask/audit/layers.toml`.
//!
//! A module may import its own layer and lower ones. Every path that begins with `crate`, `super`, `self` or the name of
//! a module below counts, in a `use`, in code and in the arguments of a macro; what is compiled for tests alone does not. The table lists
//! every module, so a new one fails until it has a layer.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use proc_macro2::{TokenStream, TokenTree};
use serde::Deserialize;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, ItemMacro, ItemMod, ItemUse, Macro, UseTree};

use super::circles::circles;
use super::modules::{self, ModuleFile, is_for_tests};
use super::tables;

/// The table.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Crates {
    #[serde(rename = "crate")]
    crates: Vec<Layers>,
}

/// The layers of one crate.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layers {
    /// The folder of its `lib.rs`, from the workspace's root.
    pub(super) source: String,
    /// Lowest first.
    #[serde(rename = "layer")]
    pub(super) layers: Vec<Layer>,
    /// Imports that go up, each with its reason.
    #[serde(rename = "upward", default)]
    pub(super) upward: Vec<Upward>,
    /// The most of these that may stand in the table.
    pub(super) most_upward: usize,
    /// The most files of one circle.
    pub(super) most_in_circle: usize,
}

/// One layer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Layer {
    pub(super) name: String,
    /// Paths from the crate's root, each with all below it unless a longer one stands elsewhere.
    pub(super) modules: Vec<String>,
    /// Lower layers that it does not import.
    #[serde(default)]
    pub(super) never: Vec<String>,
}

/// One import that goes up, and why.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Upward {
    pub(super) from: String,
    pub(super) to: String,
    reason: String,
}

#[cfg(test)]
impl Upward {
    pub(super) fn new(from: &str, to: &str, reason: &str) -> Self {
        Self { from: from.into(), to: to.into(), reason: reason.into() }
    }
}

/// A module that names an item of another one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Import {
    pub(super) from: String,
    pub(super) to: String,
}

/// Reads the sources of the table's crates and fails where an import goes up that the table does not list. `verbose`
/// prints the layers.
///
/// # Errors
/// Such an import; a module without a layer; an entry of the table that fits nothing; a file that cannot be parsed.
pub(super) fn audit(root: &Path, verbose: bool) -> Result<()> {
    let table: Crates = tables::read(&root.join("xtask/audit/layers.toml"))?;
    for layers in &table.crates {
        let Imports { files, imports } = imports(&root.join(&layers.source))?;
        let circles = circles(&files, &imports);
        if verbose {
            println!("{}", layers.source);
            for layer in &layers.layers {
                println!("  {:<8} {}", layer.name, layer.modules.join(" "));
            }
            for upward in &layers.upward {
                println!("  up: {} imports {}: {}", upward.from, upward.to, upward.reason);
            }
            println!("  {} imports between modules, {} of them go up", imports.len(), layers.upward.len());
            println!(
                "  {} files, {} circles of them, at most {} may be in one",
                files.len(),
                circles.len(),
                layers.most_in_circle
            );
            for circle in &circles {
                println!("  circle of {}: {}", circle.len(), circle.join(" "));
            }
        }
        judge(layers, &imports)
            .and_then(|()| judge_circles(layers, &circles))
            .with_context(|| layers.source.clone())?;
    }
    Ok(())
}

/// Fails where a circle is larger than the table allows, or all are smaller: then the table is out of date.
pub(super) fn judge_circles(layers: &Layers, circles: &[Vec<&str>]) -> Result<()> {
    let (most, largest) = (layers.most_in_circle, circles.first().map_or(1, Vec::len));
    match largest.cmp(&most) {
        Ordering::Less => bail!("layers.toml allows circles of {most} files, and the largest has {largest}"),
        Ordering::Equal => Ok(()),
        Ordering::Greater => {
            bail!("a circle of {largest} files, at most {most} may be in one: {}", circles[0].join(" "))
        }
    }
}

/// Fails where imports and table do not agree.
pub(super) fn judge(layers: &Layers, imports: &BTreeSet<Import>) -> Result<()> {
    if layers.upward.len() > layers.most_upward {
        bail!("layers.toml lists {} imports that go up, at most {} may", layers.upward.len(), layers.most_upward);
    }
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for import in imports {
        // The crate's root composes all layers; only what is named in it counts.
        if import.from.is_empty() {
            continue;
        }
        let (from, to) = (layers.of(&import.from)?, layers.of(&import.to)?);
        let (lower, upper) = (&layers.layers[from], &layers.layers[to]);
        if to <= from && !lower.never.contains(&upper.name) {
            continue;
        }
        match layers.upward.iter().position(|upward| upward.from == import.from && upward.to == import.to) {
            Some(index) => drop(used.insert(index)),
            None => wrong.push(format!("{} ({}) imports {} ({})", import.from, lower.name, import.to, upper.name)),
        }
    }
    if !wrong.is_empty() {
        bail!("imports that layers.toml does not allow:\n  {}", wrong.join("\n  "));
    }
    if let Some(index) = (0..layers.upward.len()).find(|index| !used.contains(index)) {
        let upward = &layers.upward[index];
        bail!("layers.toml lists an import that is gone: {} of {}", upward.to, upward.from);
    }
    Ok(())
}

impl Layers {
    /// The layer of what stands at `path`: that of the longest module in the table that it begins with.
    fn of(&self, path: &str) -> Result<usize> {
        let fits =
            |module: &str| path == module || path.strip_prefix(module).is_some_and(|rest| rest.starts_with("::"));
        self.layers
            .iter()
            .enumerate()
            .flat_map(|(index, layer)| layer.modules.iter().map(move |module| (index, module)))
            .filter(|(_, module)| fits(module))
            .max_by_key(|(_, module)| module.len())
            .map(|(index, _)| index)
            .ok_or_else(|| anyhow!("layers.toml has no layer for {path}"))
    }
}

/// A crate's files, and all imports between its modules.
pub(super) struct Imports {
    /// The paths of the modules with a file of their own; that of the crate's root is empty.
    files: BTreeSet<String>,
    pub(super) imports: BTreeSet<Import>,
}

/// Those of the crate whose `lib.rs` is in `source`. A macro that is exported, whose path is at the root, is an item of
/// the module that defines it; crates that the root declares are none of the modules.
pub(super) fn imports(source: &Path) -> Result<Imports> {
    let mut found = Imports { files: BTreeSet::new(), imports: BTreeSet::new() };
    let (mut macros, mut crates) = (BTreeMap::new(), BTreeSet::new());
    for ModuleFile { module, parsed, .. } in modules::files(source, is_for_tests)? {
        found.files.insert(module.join("::"));
        for item in &parsed.items {
            match item {
                Item::Macro(ItemMacro { attrs, ident: Some(name), .. })
                    if attrs.iter().any(|attribute| attribute.path().is_ident("macro_export")) =>
                {
                    macros.insert(name.to_string(), [&module[..], &[name.to_string()]].concat().join("::"));
                }
                Item::ExternCrate(item) => _ = crates.insert(item.ident.to_string()),
                _ => {}
            }
        }
        let children = parsed.items.iter().filter_map(|item| match item {
            Item::Mod(item) if !is_for_tests(&item.attrs) => Some(item.ident.to_string()),
            _ => None,
        });
        let mut reader = Reader { module, children: children.collect(), imports: Vec::new() };
        reader.visit_file(&parsed);
        found.imports.extend(reader.imports);
    }
    let imports = std::mem::take(&mut found.imports).into_iter();
    let of_modules = imports.filter(|import| !import.to.split("::").next().is_some_and(|name| crates.contains(name)));
    found.imports = of_modules
        .map(|import| match macros.get(&import.to) {
            Some(defined) => Import { to: defined.clone(), ..import },
            None => import,
        })
        .collect();
    Ok(found)
}

/// Reads one file.
struct Reader {
    /// The module that is being read.
    module: Vec<String>,
    /// The modules that are declared in its file, by their names.
    children: BTreeSet<String>,
    imports: Vec<Import>,
}

impl Reader {
    /// Notes a path: `segments` as they were written.
    fn note(&mut self, segments: &[String]) {
        let mut base = match segments.first().map(String::as_str) {
            Some("crate") => Vec::new(),
            Some("self") => self.module.clone(),
            Some("super") => self.module[..self.module.len().saturating_sub(1)].to_vec(),
            // The interface of programs is a crate of its own, and part of the personality all the same.
            Some(abi @ "granule_abi") => vec![abi.into()],
            Some(child) if self.children.contains(child) => [&self.module[..], &[child.into()]].concat(),
            _ => return,
        };
        let mut rest = &segments[1..];
        while let [first, tail @ ..] = rest
            && first == "super"
        {
            base.pop();
            rest = tail;
        }
        base.extend(rest.iter().filter(|segment| *segment != "self" && *segment != "*").cloned());
        if !base.is_empty() {
            self.imports.push(Import { from: self.module.join("::"), to: base.join("::") });
        }
    }

    fn note_tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.note_tree(&path.tree, &with(&path.ident)),
            UseTree::Group(group) => group.items.iter().for_each(|item| self.note_tree(item, before)),
            UseTree::Name(name) => self.note(&with(&name.ident)),
            UseTree::Rename(rename) => self.note(&with(&rename.ident)),
            UseTree::Glob(_) => self.note(before),
        }
    }

    /// Notes the paths among a macro's tokens.
    fn note_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Group(group) => self.note_tokens(group.stream()),
                TokenTree::Ident(first) if ["crate", "super"].contains(&first.to_string().as_str()) => {
                    let mut segments = vec![first.to_string()];
                    while let Some([TokenTree::Punct(a), TokenTree::Punct(b), TokenTree::Ident(next)]) =
                        tokens.get(at + 1..at + 4)
                        && a.as_char() == ':'
                        && b.as_char() == ':'
                    {
                        segments.push(next.to_string());
                        at += 3;
                    }
                    if segments.len() > 1 {
                        self.note(&segments);
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        if is_for_tests(&item.attrs) {
            return;
        }
        if item.content.is_some() {
            self.module.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.module.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        if !is_for_tests(&item.attrs) {
            self.note_tree(&item.tree, &[]);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    // Documentation may name what it likes.
    fn visit_attribute(&mut self, _: &'ast Attribute) {}

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1 {
            self.note(&segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        visit::visit_macro(self, item);
        self.note_tokens(item.tokens.clone());
    }

    // `pub(super)` and `pub(in crate::mm)` import nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}
}
