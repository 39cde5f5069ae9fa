//! `./x audit unused`: functions, methods, constants and types of the kernel's crates that no code outside tests names.
//!
//! rustc reports private items that nothing uses, but not public ones. Items are matched **by name alone**: one of the
//! same name elsewhere counts as a use, so what is reported is unused, and some of what is unused is not reported. A
//! method or associated constant is used where a name follows `.` with a call, or a path (`Type::name`); anything else
//! is used where a path has its name. `pub use`, the body of the item itself and the headers of a type's own `impl`
//! blocks are no uses. Code for tests is what `#[cfg(test)]` and `#[test]` mark, what is compiled for the host alone, the
//! folders `tests` and `tests-qemu/guest`, and the checkers of `kernel/model` and `kernel/loom`.
//!
//! `xtask/audit/unused.toml` lists what stays, with the reason.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use granule_tools::files;
use proc_macro2::{TokenStream, TokenTree};
use serde::Deserialize;
use syn::visit::{self, Visit};
use syn::{Attribute, Ident, ImplItem, Item, Macro, UseTree, Visibility};

use super::modules::{self, is_unshipped};
use super::tables;

/// The crates whose items need a use: name and folder of `lib.rs`.
const CRATES: [(&str, &str); 4] = [
    ("granule_arch", "arch/src"),
    ("granule_pgtable", "kernel/pgtable/src"),
    ("granule_smmuv3", "kernel/smmuv3/src"),
    ("granule", "kernel/src"),
];

/// Other code that uses them.
const USERS: [&str; 3] = ["boot/src", "kernel/monitor/src", "tests-qemu/bench/src"];

/// `xtask/audit/unused.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Kept {
    #[serde(rename = "keep", default)]
    pub(super) entries: Vec<Keep>,
}

/// Items that stay.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Keep {
    /// Patterns of paths, as [`tables::matches`] has them; each fits an unused item.
    pub(super) items: Vec<String>,
    /// Why they stay.
    pub(super) reason: String,
}

/// Reads the sources and fails where an item has no use and no reason. `verbose` prints those with a reason, too.
///
/// # Errors
/// Such an item; an entry of the table that fits none; a file that cannot be parsed.
pub(super) fn audit(root: &Path, verbose: bool) -> Result<()> {
    let kept: Kept = tables::read(&root.join("xtask/audit/unused.toml"))?;
    let mut reader = Reader::default();
    for (name, source) in CRATES {
        for file in modules::files(&root.join(source), is_unshipped)? {
            reader.module = [&[name.to_owned()], file.module.as_slice()].concat();
            reader.visit_file(&file.parsed);
        }
    }
    reader.module.clear();
    for user in USERS {
        for path in files(&root.join(user), "rs")? {
            reader.visit_file(&modules::parse(&path)?);
        }
    }
    let unused = reader.unused();
    if verbose {
        unused.iter().for_each(|item| println!("{item}: {}", kept.reason(item).unwrap_or("NO REASON")));
    }
    kept.judge(&unused).context("xtask/audit/unused.toml")
}

impl Kept {
    fn reason(&self, item: &str) -> Option<&str> {
        let fits = |entry: &&Keep| entry.items.iter().any(|pattern| tables::matches(pattern, item));
        self.entries.iter().find(fits).map(|entry| entry.reason.as_str())
    }

    /// Fails where unused items and table do not agree.
    pub(super) fn judge(&self, unused: &BTreeSet<String>) -> Result<()> {
        for entry in &self.entries {
            ensure!(!entry.reason.trim().is_empty(), "{:?} has no reason", entry.items);
            for pattern in &entry.items {
                ensure!(unused.iter().any(|item| tables::matches(pattern, item)), "{pattern} fits no unused item");
            }
        }
        let without: Vec<&str> = unused.iter().map(String::as_str).filter(|item| self.reason(item).is_none()).collect();
        if !without.is_empty() {
            bail!("only tests use these items, and there is no reason for them:\n  {}", without.join("\n  "));
        }
        Ok(())
    }
}

/// An item that needs a use.
struct Definition {
    path: String,
    name: String,
    is_member: bool,
}

/// Reads the code of all crates.
#[derive(Default)]
pub(super) struct Reader {
    /// The module that is being read, from its crate on; empty in code whose items need no use.
    pub(super) module: Vec<String>,
    /// The items whose code is being read, and whether each is a member of a type.
    inside: Vec<(String, bool)>,
    definitions: Vec<Definition>,
    /// Last segments of paths, and names that are called as methods.
    members: HashSet<String>,
    /// All segments of paths.
    names: HashSet<String>,
}

impl Reader {
    /// The paths of the items without a use.
    pub(super) fn unused(&self) -> BTreeSet<String> {
        let is_used = |item: &Definition| if item.is_member { &self.members } else { &self.names }.contains(&item.name);
        self.definitions.iter().filter(|item| !is_used(item)).map(|item| item.path.clone()).collect()
    }

    fn define(&mut self, visibility: &Visibility, attributes: &[Attribute], owner: Option<&str>, name: &Ident) {
        let is_public = match visibility {
            Visibility::Public(_) => true,
            Visibility::Restricted(restricted) => restricted.path.is_ident("crate"),
            Visibility::Inherited => false,
        };
        if !is_public || self.module.is_empty() || is_named_elsewhere(attributes) {
            return;
        }
        let name = name.to_string();
        let path = self.module.iter().map(String::as_str).chain(owner).chain([name.as_str()]);
        let path = path.collect::<Vec<_>>().join("::");
        self.definitions.push(Definition { path, name, is_member: owner.is_some() });
    }

    fn use_name(&mut self, name: &str) {
        if !self.inside.iter().any(|(inside, is_member)| inside == name && !is_member) {
            self.names.insert(name.to_owned());
        }
    }

    fn use_member(&mut self, name: &str) {
        if !self.inside.iter().any(|(inside, is_member)| inside == name && *is_member) {
            self.members.insert(name.to_owned());
        }
    }

    fn inside(&mut self, name: &Ident, is_member: bool, read: impl FnOnce(&mut Self)) {
        self.inside.push((name.to_string(), is_member));
        read(self);
        self.inside.pop();
    }

    fn use_tree(&mut self, tree: &UseTree) {
        match tree {
            UseTree::Path(path) => {
                self.use_name(&path.ident.to_string());
                self.use_tree(&path.tree);
            }
            UseTree::Group(group) => group.items.iter().for_each(|item| self.use_tree(item)),
            UseTree::Name(name) => self.use_name(&name.ident.to_string()),
            UseTree::Rename(rename) => self.use_name(&rename.ident.to_string()),
            UseTree::Glob(_) => {}
        }
    }

    /// Notes the names among a macro's tokens, which may be anything, and those in its format strings.
    fn use_tokens(&mut self, tokens: TokenStream) {
        let mut before = ' ';
        for token in tokens {
            match token {
                TokenTree::Group(group) => {
                    self.use_tokens(group.stream());
                    before = ' ';
                }
                TokenTree::Ident(name) => {
                    let name = name.to_string();
                    if ['.', ':'].contains(&before) {
                        self.use_member(&name);
                    }
                    self.use_name(&name);
                    before = ' ';
                }
                TokenTree::Punct(punct) => before = punct.as_char(),
                TokenTree::Literal(literal) => self.use_format(&literal.to_string()),
            }
        }
    }

    /// Notes the names in braces: `{NAME}`, `{NAME:#x}`.
    fn use_format(&mut self, text: &str) {
        for part in text.split('{').skip(1) {
            let name: String = part.chars().take_while(|char| char.is_alphanumeric() || *char == '_').collect();
            self.use_name(&name);
        }
    }
}

/// Whether the linker, the compiler or a collection of the linker's names the item.
fn is_named_elsewhere(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match attribute.path().segments.last() {
        Some(last) => {
            ["unsafe", "no_mangle", "panic_handler", "distributed_slice"].iter().any(|name| last.ident == name)
        }
        None => false,
    })
}

fn attributes_of(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = attributes_of(item);
        if is_unshipped(attributes) {
            return;
        }
        let (visibility, name) = match item {
            Item::Const(item) => (&item.vis, &item.ident),
            Item::Enum(item) => (&item.vis, &item.ident),
            Item::Fn(item) => (&item.vis, &item.sig.ident),
            Item::Static(item) => (&item.vis, &item.ident),
            Item::Struct(item) => (&item.vis, &item.ident),
            Item::Trait(item) => (&item.vis, &item.ident),
            Item::Type(item) => (&item.vis, &item.ident),
            Item::Union(item) => (&item.vis, &item.ident),
            _ => return visit::visit_item(self, item),
        };
        self.define(visibility, attributes, None, name);
        self.inside(name, false, |reader| visit::visit_item(reader, item));
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let depth = self.module.len();
        if depth > 0 {
            self.module.push(item.ident.to_string());
        }
        visit::visit_item_mod(self, item);
        self.module.truncate(depth);
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if matches!(item.vis, Visibility::Inherited) {
            self.use_tree(&item.tree);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        let owner = match &*item.self_ty {
            syn::Type::Path(path) => path.path.segments.last().map(|segment| &segment.ident),
            _ => None,
        };
        let Some(owner) = owner else { return visit::visit_item_impl(self, item) };
        let name = owner.to_string();
        for member in &item.items {
            match member {
                ImplItem::Fn(member) if !is_unshipped(&member.attrs) => {
                    self.define(&member.vis, &member.attrs, Some(&name), &member.sig.ident);
                }
                ImplItem::Const(member) if !is_unshipped(&member.attrs) => {
                    self.define(&member.vis, &member.attrs, Some(&name), &member.ident);
                }
                _ => {}
            }
        }
        self.inside(owner, false, |reader| visit::visit_item_impl(reader, item));
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        match item {
            ImplItem::Fn(member) if is_unshipped(&member.attrs) => {}
            ImplItem::Const(member) if is_unshipped(&member.attrs) => {}
            ImplItem::Fn(member) => self.inside(&member.sig.ident, true, |reader| visit::visit_impl_item(reader, item)),
            _ => visit::visit_impl_item(self, item),
        }
    }

    fn visit_expr_method_call(&mut self, call: &'ast syn::ExprMethodCall) {
        self.use_member(&call.method.to_string());
        visit::visit_expr_method_call(self, call);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        for segment in &path.segments {
            self.use_name(&segment.ident.to_string());
        }
        if let Some(last) = path.segments.last()
            && path.segments.len() > 1
        {
            self.use_member(&last.ident.to_string());
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, item: &'ast Macro) {
        visit::visit_macro(self, item);
        self.use_tokens(item.tokens.clone());
    }

    fn visit_item_macro(&mut self, item: &'ast syn::ItemMacro) {
        visit::visit_item_macro(self, item);
    }

    /// The arguments of an attribute, such as a format string; documentation uses nothing.
    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.use_tokens(list.tokens.clone());
        }
    }

    // `pub(in crate::mm)` uses nothing.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}
