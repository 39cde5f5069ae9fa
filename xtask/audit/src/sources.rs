//! From an address or a line to what the tables call it: file, function, text.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::Result;

use super::image::{Frame, Function, Image, Line};
use super::tables::{ASSEMBLY, Source};

/// The sources, read where they are needed.
pub struct Sources {
    root: PathBuf,
    files: RefCell<HashMap<String, Rc<Vec<String>>>>,
}

impl Sources {
    /// The sources of the workspace at `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), files: RefCell::default() }
    }

    /// The source of a panic's place. `frames` are those of an instruction that refers to it.
    pub fn of_place(&self, line: &Line, frames: &[Frame]) -> Source {
        let text = self.text(line);
        let function = if text.is_empty() {
            let by_line = frames.iter().find(|frame| (&frame.line.file, frame.line.line) == (&line.file, line.line));
            let frame = by_line.or_else(|| frames.iter().find(|frame| frame.line.file == line.file));
            frame.or(frames.first()).map_or_else(String::new, |frame| short_name(&frame.function).to_owned())
        } else {
            self.function(line)
        };
        Source { file: line.file.clone(), function, text }
    }

    /// The sources of an instruction: each line that is inlined there, from the innermost out to the first of the
    /// workspace or a crate. The last of them is the one to show. In assembly, the label.
    ///
    /// # Errors
    /// When the debug information cannot be read.
    pub fn of_instruction(&self, image: &Image<'_>, function: &Function, at: u64) -> Result<Vec<(Source, Line)>> {
        let frames = image.frames(at)?;
        let own = frames.iter().position(|frame| frame.line.line != 0 && !is_toolchain(&frame.line.file));
        let shown = frames.iter().take(own.map_or(frames.len(), |own| own + 1));
        let mut sources: Vec<(Source, Line)> =
            shown.map(|frame| (self.of_place(&frame.line, std::slice::from_ref(frame)), frame.line.clone())).collect();
        if sources.is_empty() {
            let source = Source { file: ASSEMBLY.into(), function: function.names[0].clone(), text: String::new() };
            sources.push((source, Line::new(ASSEMBLY, 0, 0)));
        }
        Ok(sources)
    }

    /// Whether a place is that of a call of the logger, which keeps it with the message. A panic among the arguments
    /// has another column.
    pub fn is_log(&self, line: &Line) -> bool {
        let lines = self.file(&line.path);
        let text = (line.line as usize).checked_sub(1).and_then(|index| lines.get(index));
        let text = text.and_then(|text| text.get((line.column as usize).checked_sub(1)?..));
        text.is_some_and(|text| text.starts_with("log::"))
    }

    /// The line, without the space around it.
    fn text(&self, line: &Line) -> String {
        let lines = self.file(&line.path);
        let index = (line.line as usize).checked_sub(1);
        index.and_then(|index| lines.get(index)).map_or_else(String::new, |text| text.trim().to_owned())
    }

    fn function(&self, line: &Line) -> String {
        let lines = self.file(&line.path);
        function(&lines[..(line.line as usize).min(lines.len())]).unwrap_or_default().to_owned()
    }

    fn file(&self, file: &str) -> Rc<Vec<String>> {
        let mut files = self.files.borrow_mut();
        let lines = files.entry(file.to_owned()).or_insert_with(|| {
            let text = fs::read_to_string(self.root.join(file)).unwrap_or_default();
            Rc::new(text.lines().map(str::to_owned).collect())
        });
        lines.clone()
    }
}

/// Whether a file is the toolchain's.
pub fn is_toolchain(file: &str) -> bool {
    ["core/src/", "alloc/src/", "compiler-builtins/"].iter().any(|start| file.starts_with(start))
}

/// The function that the last of these lines is in: the nearest before it with less space in front, the line's own, or
/// that whose end it is.
fn function(lines: &[String]) -> Option<&str> {
    let space = |text: &str| text.len() - text.trim_start().len();
    let (line, above) = lines.split_last()?;
    let depth = space(line);
    // Up to the end of what stands before it at the same depth.
    let mut is_end = line.trim() == "}";
    declared(line).or_else(|| {
        above.iter().rev().find_map(|text| {
            is_end &= text.trim() != "}" || space(text) != depth;
            declared(text).filter(|_| space(text) < depth || is_end && space(text) == depth)
        })
    })
}

/// The name of the function that a line declares.
fn declared(text: &str) -> Option<&str> {
    let text = text.trim_start();
    let (before, after) = text.split_once("fn ")?;
    let is_declaration = before.split_whitespace().all(|word| {
        word.starts_with("pub")
            || word.starts_with('"')
            || ["const", "async", "unsafe", "extern", "default", "in"].contains(&word)
            || word.ends_with(')')
    });
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(after.len());
    (is_declaration && end > 0).then(|| &after[..end])
}

/// The last part of a demangled name that is a function's, without closures and arguments.
fn short_name(name: &str) -> &str {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in name.char_indices() {
        match c {
            '<' | '{' | '(' | '[' => depth += 1,
            '>' | '}' | ')' | ']' => depth = depth.saturating_sub(1),
            ':' if depth == 0 => {
                parts.push(&name[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&name[start..]);
    let is_name = |part: &&&str| part.starts_with(|c: char| c.is_alphabetic() || c == '_');
    parts.iter().rev().find(is_name).map_or(name, |part| part.split('<').next().unwrap_or(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_of_functions_are_known() {
        assert_eq!(declared("    pub unsafe extern \"C\" fn read<T>(x: T)"), Some("read"));
        assert_eq!(declared("fn main() {"), Some("main"));
        assert_eq!(declared("    /// A fn of this"), None);
        assert_eq!(declared("    work: impl Fn(u8)"), None);
        assert_eq!(declared("    exit: extern \"C\" fn(u8)"), None);
    }

    #[test]
    fn lines_are_of_the_function_around_them() {
        let text =
            "fn first() {\n    fn inner() {\n        1\n    }\n    if inner() {\n    }\n}\n\nfn second() {\n}\nuse x;";
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let functions: Vec<&str> = (0..=lines.len()).map(|end| function(&lines[..end]).unwrap_or("")).collect();
        let expected = ["", "first", "inner", "inner", "inner", "first", "first", "first"];
        assert_eq!(functions[..8], expected);
        assert_eq!(functions[8..], ["", "second", "second", ""]);
    }

    #[test]
    fn names_are_shortened_to_the_function() {
        assert_eq!(short_name("core::fmt::write"), "write");
        assert_eq!(short_name("<a::B<C> as core::fmt::Display>::fmt"), "fmt");
        assert_eq!(short_name("core::slice::sort::merge::<a::B, c::{closure#0}>::{closure#1}"), "merge");
        assert_eq!(short_name("memcpy"), "memcpy");
    }
}
