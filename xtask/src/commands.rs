//! Tests that `.ci/run` runs what the pages name: a command that nothing runs breaks unseen.

use std::collections::BTreeSet;
use std::fs;

use clap::CommandFactory;
use granule_tools::{files, root};

use crate::Arguments;

/// Commands that CI does not run, and why.
const NOT_IN_CI: [(&str, &str, &str); 7] = [
    ("run", "--gdb", "waits for a debugger: tests-qemu/host and the runner speak to the same stub"),
    ("run", "--machine", "boots each machine as `./x test` does"),
    ("doc", "--open", "opens a browser"),
    ("bench", "--update", "writes the reference"),
    ("bench", "--sources", "a profile of one row, for a person"),
    ("test", "--update", "writes a page"),
    ("test", "--long", "hours: `--turn` runs one of them each time"),
];

/// The commands of `./x` in a text, each with the options that follow it in the same piece of code: (command, "") is the
/// command itself.
fn commands(text: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for rest in text.split("./x ").skip(1) {
        // Another command, a comment or the end of the code ends it.
        let piece = rest.split(['\n', '`', '|', '#', ';', ')']).next().unwrap_or_default();
        let piece = piece.split("  ").next().unwrap_or_default();
        let mut words = piece.split([' ', '[', ']']).filter(|word| !word.is_empty());
        let Some(command) = words.next().filter(|word| word.chars().all(|char| char.is_ascii_lowercase())) else {
            continue;
        };
        found.insert((command.to_owned(), String::new()));
        let is_option = |word: &&str| word.strip_prefix("--").is_some_and(|name| name.starts_with(char::is_alphabetic));
        let options = words.take_while(|word| *word != "--").filter(is_option);
        found.extend(options.map(|option| (command.to_owned(), option.to_owned())));
    }
    found
}

#[test]
fn ci_runs_each_command_and_option_of_the_pages() {
    let pages = files(&root(), "md").unwrap();
    let named: BTreeSet<_> = pages
        .iter()
        .filter(|page| !page.ends_with("CHANGELOG.md"))
        .flat_map(|page| commands(&fs::read_to_string(page).unwrap()))
        .collect();
    assert!(named.len() > 40, "{named:?}");
    let program = Arguments::command();
    for (command, option) in &named {
        let known = program.find_subcommand(command).unwrap_or_else(|| panic!("there is no ./x {command}"));
        let mut of_it = known.get_subcommands().flat_map(clap::Command::get_arguments).chain(known.get_arguments());
        let is_known = option.is_empty() || of_it.any(|arg| arg.get_long() == option.strip_prefix("--"));
        assert!(is_known, "./x {command} has no {option}");
    }
    let run = commands(&fs::read_to_string(root().join(".ci/run")).unwrap());
    let excepted: BTreeSet<_> =
        NOT_IN_CI.iter().map(|(command, option, _)| ((*command).to_owned(), (*option).to_owned())).collect();
    let missing: Vec<_> = named.difference(&run).filter(|pair| !excepted.contains(pair)).collect();
    assert!(missing.is_empty(), ".ci/run does not run {missing:?}");
    let stale: Vec<_> = excepted.iter().filter(|pair| run.contains(pair) || !named.contains(pair)).collect();
    assert!(stale.is_empty(), "not named by a page, or run by CI: {stale:?}");
}

#[test]
fn commands_are_found_in_prose_and_blocks() {
    let text = "`./x run --script FILE` types; (`./x bench scale`)\n./x test --long    all, ./x other --not\n\
                ./x fuzz [--seed N] [--calls N]\necho a | ./x run --script - -- --qemu";
    let found = commands(text);
    let pairs: Vec<_> = found.iter().map(|(command, option)| (command.as_str(), option.as_str())).collect();
    let expected = [
        ("bench", ""),
        ("fuzz", ""),
        ("fuzz", "--calls"),
        ("fuzz", "--seed"),
        ("other", ""),
        ("other", "--not"),
        ("run", ""),
        ("run", "--script"),
        ("test", ""),
        ("test", "--long"),
    ];
    assert_eq!(pairs, expected);
}
