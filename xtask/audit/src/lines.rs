//! The lines of one source: code, comments and tests, told apart by the tokens of the language.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use proc_macro2::{Span, TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, File, Item, Signature};

use super::modules::{file_of, is_for_tests};

/// A line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Blank,
    /// Nothing but a comment, or a part of one.
    Comment,
    /// A token, or a part of a string.
    Code,
}

/// A function outside tests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Function {
    /// Its name.
    pub(super) name: String,
    /// The number of its first line, from 1.
    pub(super) line: usize,
    /// Its lines of code, from `fn` to the closing brace.
    pub(super) code: usize,
}

/// The counts of a source.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// Lines of code outside tests.
    pub(super) code: usize,
    /// Lines that are nothing but a comment, outside tests.
    pub(super) comments: usize,
    /// Lines of code in `#[cfg(test)]` modules.
    pub(super) tests: usize,
    pub(super) functions: Vec<Function>,
    /// Files of `#[cfg(test)]` modules that it declares, and the folders of their own modules.
    pub(super) test_files: Vec<PathBuf>,
}

/// Reads the source that is at `path`.
///
/// # Errors
/// When it is not Rust.
pub(super) fn read(path: &Path, text: &str) -> Result<Source> {
    let tokens: TokenStream = text.parse().ok().with_context(|| format!("{} is not Rust", path.display()))?;
    let lines = Lines::new(text, tokens.clone());
    let file: File = syn::parse2(tokens).with_context(|| format!("cannot parse {}", path.display()))?;
    let mut reader = Reader { lines: &lines, functions: Vec::new(), tests: Vec::new() };
    reader.visit_file(&file);
    let Reader { functions, tests, .. } = reader;
    let mut source = Source { functions, ..Source::default() };
    for (number, kind) in (1..).zip(&lines.0) {
        let is_test = tests.iter().any(|(first, last)| (*first..=*last).contains(&number));
        match (kind, is_test) {
            (Kind::Code, true) => source.tests += 1,
            (Kind::Code, false) => source.code += 1,
            (Kind::Comment, false) => source.comments += 1,
            _ => {}
        }
    }
    declared(&file.items, &folder_of(path), &mut source.test_files);
    Ok(source)
}

/// The lines of a text, each with its kind.
struct Lines(Vec<Kind>);

impl Lines {
    fn new(text: &str, tokens: TokenStream) -> Self {
        let kind = |line: &str| if line.trim().is_empty() { Kind::Blank } else { Kind::Comment };
        let mut lines = Self(text.lines().map(kind).collect());
        lines.mark(tokens);
        lines
    }

    /// Marks the lines of tokens as code.
    fn mark(&mut self, tokens: TokenStream) {
        let mut tokens = tokens.into_iter();
        while let Some(token) = tokens.next() {
            match token {
                // A documentation comment is an attribute, whose tokens all have the place of the comment.
                TokenTree::Punct(punct) if is_longer(punct.span()) => {
                    tokens.find(|token| matches!(token, TokenTree::Group(_)));
                }
                TokenTree::Group(group) => {
                    self.mark_span(group.span_open());
                    self.mark(group.stream());
                    self.mark_span(group.span_close());
                }
                token => self.mark_span(token.span()),
            }
        }
    }

    fn mark_span(&mut self, span: Span) {
        let lines = span.start().line - 1..span.end().line;
        self.0[lines].iter_mut().filter(|kind| **kind != Kind::Blank).for_each(|kind| *kind = Kind::Code);
    }

    fn code(&self, first: usize, last: usize) -> usize {
        self.0[first - 1..last].iter().filter(|kind| **kind == Kind::Code).count()
    }
}

/// Whether a token has more than one character.
fn is_longer(span: Span) -> bool {
    let (start, end) = (span.start(), span.end());
    start.line != end.line || end.column - start.column > 1
}

/// Finds functions and modules of tests.
struct Reader<'a> {
    lines: &'a Lines,
    functions: Vec<Function>,
    /// The first and last lines of modules for tests.
    tests: Vec<(usize, usize)>,
}

impl Reader<'_> {
    fn function(&mut self, signature: &Signature, block: &syn::Block) {
        let (line, last) = (signature.span().start().line, block.span().end().line);
        self.functions.push(Function { name: signature.ident.to_string(), line, code: self.lines.code(line, last) });
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        } else if item.content.is_some() {
            self.tests.push((item.span().start().line, item.span().end().line));
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_for_tests(&item.attrs) {
            self.function(&item.sig, &item.block);
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            self.function(&item.sig, &item.block);
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.function(&item.sig, block);
            visit::visit_trait_item_fn(self, item);
        }
    }

    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

/// The folder of the modules that the file at `path` declares.
fn folder_of(path: &Path) -> PathBuf {
    let is_root = ["lib.rs", "main.rs", "mod.rs", "build.rs"].iter().any(|name| path.ends_with(name));
    if is_root { path.parent().map(Path::to_owned).unwrap_or_default() } else { path.with_extension("") }
}

/// Adds the files and folders of the modules for tests among `items`, whose own files are in `folder`.
fn declared(items: &[Item], folder: &Path, found: &mut Vec<PathBuf>) {
    for item in items {
        let Item::Mod(item) = item else { continue };
        let below = folder.join(item.ident.to_string());
        match &item.content {
            Some((_, items)) => declared(items, &below, found),
            None if is_for_tests(&item.attrs) => found.extend([file_of(item, folder), below]),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::read;

    const SOURCE: &str = r##"//! Head.

use a::b; // behind code

/* A block
   of two lines. */
/// Documentation.
#[doc = "An attribute is code."]
fn first(x: u8) -> u8 {
    // A comment in a function.
    let text = "two lines // no comment

/* nor this */";
    let raw = r#"// nor
this"#; /* behind code */
    text.len() / raw.len() + x
}

impl A {
    /** Documentation
     * too. */
    pub(crate) const fn second(
        &self,
    ) {}
}

#[cfg(test)]
mod tests {
    // A comment of tests.
    #[test]
    fn third() {}
}

#[cfg(test)]
mod doubles;
mod inner {
    #[cfg(test)]
    mod deep;
}
"##;

    #[test]
    fn lines_are_told_apart_by_tokens() {
        let source = read(Path::new("src/a.rs"), SOURCE).unwrap();
        // `use`, 8 of the first function but for the blank line, 5 of `impl`, 6 of the modules at the end.
        assert_eq!((source.code, source.comments, source.tests), (1 + 8 + 5 + 6, 7, 5));
        let functions: Vec<_> = source.functions.iter().map(|f| (f.name.as_str(), f.line, f.code)).collect();
        assert_eq!(functions, [("first", 9, 7), ("second", 22, 3)]);
        let files = ["src/a/doubles/mod.rs", "src/a/doubles", "src/a/inner/deep/mod.rs", "src/a/inner/deep"];
        assert_eq!(source.test_files, files.map(PathBuf::from));
        assert!(read(Path::new("a.rs"), "fn {").is_err());
    }
}
