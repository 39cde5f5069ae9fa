//! Sentences in comments and pages: each has a component as its subject, so none begins with a word that stands for one.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use granule_tools::{Tools, files};

/// Words that no sentence begins with.
const WORDS: [&str; 4] = ["What", "Who", "That", "The same"];
/// Files with comments by `//`, and pages.
const KINDS: [&str; 4] = ["rs", "S", "c", "md"];
/// Marks before a sentence: of lists, tables, links and code. A quotation is another's sentence.
const MARKS: [char; 10] = ['-', '*', '|', '#', '>', '(', '[', '`', '_', ' '];
/// Marks between the end of a sentence and the space behind it.
const CLOSING: [char; 6] = [')', '`', '"', '*', '_', ']'];

/// Looks through all sources and pages of the project.
///
/// # Errors
/// The places where a sentence begins with one of the words; a file that cannot be read.
pub(crate) fn check(tools: &Tools) -> Result<()> {
    let mut wrong = Vec::new();
    for kind in KINDS {
        for path in files(&tools.root, kind)? {
            let name = path.strip_prefix(&tools.root).unwrap_or(&path).display().to_string();
            let text = fs::read_to_string(&path)?;
            wrong.extend(places(&text, &path).into_iter().map(|(line, text)| format!("{name}:{line}: {text}")));
        }
    }
    ensure!(wrong.is_empty(), "sentences that begin with one of {WORDS:?}:\n  {}", wrong.join("\n  "));
    Ok(())
}

/// The numbers of lines with such a beginning, from 1 on, and their texts.
fn places<'a>(text: &'a str, path: &Path) -> Vec<(usize, &'a str)> {
    let is_page = path.extension().is_some_and(|kind| kind == "md");
    let (mut found, mut is_code, mut before) = (Vec::new(), false, "");
    for (number, line) in text.lines().enumerate() {
        let words = if is_page { line.trim() } else { comment(line).unwrap_or_default() };
        is_code ^= words.starts_with("```");
        if words.is_empty() || is_code || words.starts_with("```") {
            before = "";
            continue;
        }
        let own = words.trim_start_matches(MARKS);
        // A mark begins a sentence of its own; without one the line may go on with the one before.
        let begins = before.is_empty() || own.len() < words.len() || ends(before);
        if begins && is_wrong(own) || sentences(words).any(|rest| is_wrong(rest.trim_start_matches(MARKS))) {
            found.push((number + 1, words));
        }
        before = if words.starts_with('#') { "" } else { words };
    }
    found
}

/// The text of a comment that is all of a line, or follows code.
pub(super) fn comment(line: &str) -> Option<&str> {
    let (code, text) = line.trim().split_once("//")?;
    // Of an address in a string.
    (code.is_empty() || code.ends_with(' ')).then(|| text.trim_start_matches(['/', '!']).trim())
}

/// Whether a line ends with its sentence.
fn ends(line: &str) -> bool {
    line.trim_end_matches(CLOSING).ends_with(['.', '!', '?'])
}

/// The rest of a line after each end of a sentence in it.
fn sentences(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices(' ').filter(|(at, _)| ends(&line[..*at])).map(|(at, _)| &line[at + 1..])
}

fn is_wrong(sentence: &str) -> bool {
    // A longer word, and the path of an item, are others.
    let is_word = |rest: &str| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_' || next == ':');
    WORDS.iter().any(|word| sentence.strip_prefix(word).is_some_and(is_word))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::places;

    fn lines(text: &str, path: &str) -> Vec<usize> {
        places(text, Path::new(path)).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn beginnings_of_sentences_are_found_in_comments() {
        let text = [
            "//! What a CPU has.",
            "/// A walk, as in (What follows) all.",
            "//  That is wrong.",
            "let page = 1;\u{20}// The same as above.",
            "/// A table, of which the descriptors are read once. Who reads them, waits.",
            "///",
            "/// # Errors",
            "/// That there is none.",
            "/// - What a list has",
        ];
        assert_eq!(lines(&text.join("\n"), "a.rs"), [1, 3, 4, 5, 8, 9]);
    }

    #[test]
    fn other_places_of_the_words_are_not() {
        let text = [
            "/// The descriptor",
            "/// That is no sentence of its own, nor is Whatever.",
            "/// Thatched roofs are not meant, nor an item:",
            "/// [`What::Code`]. Whose they are, neither.",
            "let text = \"What is this\";",
            "let link = \"http://What\";",
        ];
        assert_eq!(lines(&text.join("\n"), "a.rs"), [0; 0]);
        let page = "A page. What it says\n```\nWhat a session prints\n```\n| The same |\n| \"Who?\" |\n";
        assert_eq!(lines(page, "a.md"), [1, 5]);
    }
}
