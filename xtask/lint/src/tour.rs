//! Checks docs/TOUR.md: each stop is a whole item of the sources, and the tour stays short.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;

use granule_tools::root;

const TOUR: &str = include_str!("../../../docs/TOUR.md");
/// The most files and lines that the tour leads through.
const MOST_FILES: usize = 12;
const MOST_LINES: usize = 1500;

/// A link of the tour: [`head`](../path#Lfirst-Llast).
struct Stop<'a> {
    head: &'a str,
    path: &'a str,
    lines: RangeInclusive<usize>,
}

impl<'a> Stop<'a> {
    /// The stop whose link ends in `target` and whose text is the last code of `before`.
    fn new(before: &'a str, target: &'a str) -> Option<Self> {
        let (path, lines) = target.strip_prefix("../")?.split_once("#L")?;
        let (first, last) = lines.split_once("-L")?;
        let head = before.strip_suffix("`]")?.rsplit_once("[`")?.1;
        Some(Self { head, path, lines: first.parse().ok()?..=last.parse().ok()? })
    }
}

fn stops() -> Vec<Stop<'static>> {
    let mut places = TOUR.match_indices("](");
    let stop = |(at, _): (usize, &str)| {
        let target = TOUR[at + 2..].split_once(')')?.0;
        Stop::new(&TOUR[..=at], target)
    };
    std::iter::from_fn(|| places.next()).filter_map(stop).collect()
}

/// The lines of the item that `head` begins (`fn name`, `impl … for …`), its documentation and attributes included;
/// `//!` is the file's own documentation. `None` where there is no such item, or several at one depth. For sources as rustfmt
/// leaves them.
fn item(source: &str, head: &str) -> Option<RangeInclusive<usize>> {
    let lines: Vec<&str> = source.lines().collect();
    if head == "//!" {
        let count = lines.iter().take_while(|line| line.starts_with("//!")).count();
        return (count != 0).then_some(1..=count);
    }
    let begins = |line: &&str| {
        const QUALIFIERS: [&str; 6] = ["pub", "pub(crate)", "pub(super)", "const", "unsafe", "extern"];
        line.split_once(head).is_some_and(|(before, after)| {
            before.split_whitespace().all(|word| QUALIFIERS.contains(&word))
                && !after.starts_with(|next: char| next.is_alphanumeric() || next == '_')
        })
    };
    let indent = |at: usize| lines[at].len() - lines[at].trim_start().len();
    let mut heads: Vec<usize> = (0..lines.len()).filter(|&at| begins(&lines[at])).collect();
    // An item of the file before a method of that name.
    let outermost = heads.iter().map(|&at| indent(at)).min()?;
    heads.retain(|&at| indent(at) == outermost);
    let [at] = heads[..] else { return None };
    let indent = outermost;
    let leads = |line: &str| ["///", "#["].iter().any(|start| line.trim_start().starts_with(start));
    let first = (0..at).rev().take_while(|&line| leads(lines[line])).last().unwrap_or(at);
    let opens = (at..lines.len()).find(|&line| lines[line].ends_with(['{', ';', '}']))?;
    let closes = |line: &&str| line[..indent.min(line.len())].trim().is_empty() && line[indent..].starts_with('}');
    let last = match lines[opens].ends_with('{') {
        true => (opens + 1..lines.len()).find(|&line| lines[line].len() > indent && closes(&lines[line]))?,
        false => opens,
    };
    Some(first + 1..=last + 1)
}

#[test]
fn each_stop_is_the_item_that_it_names() {
    let mut wrong = Vec::new();
    for Stop { head, path, lines } in stops() {
        let source = fs::read_to_string(root().join(path)).unwrap_or_default();
        match item(&source, head) {
            Some(found) if found == lines => {}
            Some(found) => wrong.push(format!("`{head}` is {path}#L{}-L{}", found.start(), found.end())),
            None => wrong.push(format!("{path} has no item `{head}`, or several")),
        }
    }
    assert!(wrong.is_empty(), "docs/TOUR.md: {wrong:#?}");
}

#[test]
fn the_tour_is_an_evening() {
    let stops = stops();
    let files: BTreeSet<&str> = stops.iter().map(|stop| stop.path).collect();
    let lines: usize = stops.iter().map(|stop| stop.lines.clone().count()).sum();
    println!("{} stops in {} files, {lines} lines", stops.len(), files.len());
    assert!(stops.len() > 12, "only {} links are stops", stops.len());
    assert!(files.len() <= MOST_FILES && lines <= MOST_LINES, "{} files, {lines} lines: {files:#?}", files.len());
    let ends = [stops.first(), stops.last()].map(|stop| stop.unwrap().path);
    assert_eq!(ends, ["kernel/monitor/src/memory.rs", "arch/src/tlbi.rs"]);
}

#[test]
fn an_item_is_found_with_its_documentation_to_its_last_line() {
    let source = "//! Head.\n//! More.\n\nuse a::b;\n\n/// Doc.\n#[inline]\npub(super) fn one(\n    x: u8,\n) {\n    if x {\n    }\n}\n\n\
                  impl A for B {\n    /// Two.\n    const fn two() -> u8 { 2 }\n\n    fn oneself() {\n    }\n}\n";
    assert_eq!(item(source, "//!"), Some(1..=2));
    assert_eq!(item(source, "fn one"), Some(6..=13));
    assert_eq!(item(source, "impl A for B"), Some(15..=21));
    assert_eq!(item(source, "fn two"), Some(16..=17));
    assert_eq!(item(source, "fn oneself"), Some(19..=20));
    assert_eq!(item(source, "fn ones"), None);
    assert_eq!(item("fn a() {}\nfn a() {}\n", "fn a"), None);
    assert_eq!(item("impl A {\n    fn a() {}\n}\nfn a() {}\n", "fn a"), Some(4..=4));
}
