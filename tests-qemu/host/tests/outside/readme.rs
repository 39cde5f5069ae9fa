//! The pages show what happens: each session at the prompt is typed again, and prints what is shown.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use granule_host_tests::built;
use granule_runner::qemu::{Qemu, Reset, Serial};
use granule_runner::serial::Limit;
use granule_runner::{machine, script};

/// How a line begins that starts a session; `--append` and boot arguments may follow. The first needs none.
const START: &str = "$ ./x run";

/// Lines typed, each with what it prints.
type Session<'a> = Vec<(&'a str, Vec<&'a str>)>;

fn add<'a>(session: &mut Session<'a>, line: &'a str) {
    match (line.strip_prefix(script::PROMPT), session.last_mut()) {
        (Some(command), _) => session.push((command, Vec::new())),
        (None, Some((_, printed))) => printed.push(line),
        // A line that the boot prints.
        (None, None) => {}
    }
}

/// README, the pages of docs with those of the reference, and the monitor's page.
fn pages() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = |name: &str| fs::read_dir(root.join(name)).unwrap().map(|entry| entry.unwrap().path());
    let pages = ["docs", "docs/ref"].into_iter().flat_map(folder);
    let pages = pages.chain(["README.md", "kernel/monitor/README.md"].map(|page| root.join(page)));
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    pages.filter(is_page).map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// The sessions of a block with their boot arguments.
fn sessions(block: &str) -> Vec<(&str, Session<'_>)> {
    let mut sessions = vec![("", Session::new())];
    for line in block.lines() {
        match line.strip_prefix(START).map(str::trim) {
            Some(options) => sessions.push((options.strip_prefix("--append ").unwrap_or(options), Session::new())),
            None => add(&mut sessions.last_mut().unwrap().1, line),
        }
    }
    sessions.retain(|(_, session)| !session.is_empty());
    sessions
}

/// The text with each kernel address as its number in the order of appearance: addresses may be others, and one that
/// comes twice does so in both.
fn without_addresses(session: &Session<'_>) -> String {
    let mut numbers = HashMap::new();
    let mut text = String::new();
    for line in session.iter().flat_map(|(command, printed)| std::iter::once(command).chain(printed)) {
        for word in line.split(' ') {
            let next = numbers.len();
            let is_address = word.starts_with("0xffff") && word.len() == "0xffff800100000000".len();
            match is_address.then(|| *numbers.entry(word).or_insert(next)) {
                Some(number) => text += &format!("<address {number}> "),
                None => text += &format!("{word} "),
            }
        }
        text.push('\n');
    }
    text
}

#[test]
fn sessions_in_the_pages_print_what_is_shown() {
    let pages = pages();
    let blocks = pages.iter().flat_map(|page| page.split("\n```").skip(1).step_by(2));
    let shown: Vec<_> = blocks.filter(|block| block.contains(script::PROMPT)).flat_map(sessions).collect();
    assert!(shown.iter().any(|(bootargs, _)| bootargs.starts_with("lab=")), "a fix taken away is shown");
    for (bootargs, shown) in shown {
        let commands: Vec<&str> = shown.iter().map(|(command, _)| *command).collect();
        let bootargs = format!("{} {bootargs}", script::BOOTARGS);
        let machine = machine::named("default").unwrap();
        let qemu = Qemu::new(&machine, &built("granule.img"), Serial::Pipes, Reset::Ends, bootargs.trim(), &[]);
        let mut output = Vec::new();
        let wrong = script::run(&qemu, &script::commands(&commands.join("\n")), Limit::work(60), &mut output).unwrap();
        let output = String::from_utf8_lossy(&output).replace('\r', "");
        assert!(wrong.is_empty(), "{wrong:?}\n{output}");
        let mut printed = Session::new();
        output.lines().for_each(|line| add(&mut printed, line));
        printed.retain(|(command, _)| *command != "poweroff");
        assert_eq!(without_addresses(&printed), without_addresses(&shown), "{output}");
    }
}
