//! The source files of a crate, found by the `mod` items of its `lib.rs`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::TokenStream;
use syn::{Attribute, File, Item, ItemMod};

/// One file.
pub struct ModuleFile {
    pub path: PathBuf,
    /// The path of its module from the crate's root.
    pub module: Vec<String>,
    pub parsed: File,
}

/// The files of the crate whose `lib.rs` is in `source`, without the modules with attributes that `skip` selects.
pub fn files(source: &Path, skip: fn(&[Attribute]) -> bool) -> Result<Vec<ModuleFile>> {
    let mut found = Vec::new();
    let mut declared = vec![(source.join("lib.rs"), source.to_owned(), Vec::new())];
    while let Some((path, directory, module)) = declared.pop() {
        let parsed = parse(&path)?;
        declare(&parsed.items, &directory, &module, skip, &mut declared);
        found.push(ModuleFile { path, module, parsed });
    }
    Ok(found)
}

/// Parses one file.
pub(super) fn parse(path: &Path) -> Result<File> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    syn::parse_file(&text).with_context(|| format!("cannot parse {}", path.display()))
}

/// Whether an item is compiled for tests alone.
pub(crate) fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
    })
}

/// Whether an item is compiled for tests, or for the host alone, where the kernel's code runs in tests only.
pub fn is_unshipped(attributes: &[Attribute]) -> bool {
    is_for_tests(attributes)
        || attributes.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute.parse_args::<TokenStream>().is_ok_and(|condition| {
                    condition.to_string().split_whitespace().collect::<String>() == r#"not(target_os="none")"#
                })
        })
}

/// Adds the files of the modules that `items`, in module `module`, declare: the file, the directory of its own modules,
/// its path.
fn declare(
    items: &[Item],
    directory: &Path,
    module: &[String],
    skip: fn(&[Attribute]) -> bool,
    declared: &mut Vec<(PathBuf, PathBuf, Vec<String>)>,
) {
    for item in items {
        let Item::Mod(item) = item else { continue };
        if skip(&item.attrs) {
            continue;
        }
        let name = item.ident.to_string();
        let (below, path) = (directory.join(&name), [module, std::slice::from_ref(&name)].concat());
        match &item.content {
            Some((_, items)) => declare(items, &below, &path, skip, declared),
            None => declared.push((file_of(item, directory), below, path)),
        }
    }
}

/// The file of a module that is declared in a file whose modules are in `directory`.
pub(super) fn file_of(item: &ItemMod, directory: &Path) -> PathBuf {
    if let Some(file) = path_attribute(&item.attrs) {
        return directory.join(file);
    }
    let file = directory.join(format!("{}.rs", item.ident));
    if file.exists() { file } else { directory.join(item.ident.to_string()).join("mod.rs") }
}

/// The file that `#[path]` names.
fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("path")).find_map(|attribute| {
        let value = &attribute.meta.require_name_value().ok()?.value;
        match value {
            syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) => Some(text.value()),
            _ => None,
        }
    })
}
