//! Whole lines, as a session sees them: what is printed, what counts as a failure.

extern crate std;
use std::string::{String, ToString};
use std::vec::Vec;

use proptest::prelude::{ProptestConfig, proptest};

use super::{Command, Session, Subject, complete};
use crate::drivers::power::Status;

/// A machine of which it is known how it ended.
#[derive(Default)]
struct Model {
    ended: Option<Status>,
    resets: usize,
}

impl Subject for Model {
    fn power_off(&mut self, status: Status) {
        self.ended = Some(status);
    }

    fn reset(&mut self) {
        self.resets += 1;
    }
}

/// Executes lines in one session: what was printed, and how many lines failed.
fn session(lines: &str) -> (String, u32) {
    session_with(&mut Model::default(), lines)
}

fn session_with(model: &mut Model, lines: &str) -> (String, u32) {
    let mut screen = String::new();
    let mut session = Session::new(&mut screen, model);
    lines.lines().for_each(|line| session.execute(line));
    let failures = session.failures;
    (screen, failures)
}

#[test]
fn blank_lines_and_comments_do_nothing() {
    assert_eq!(session("\n  \n# a comment\n   # another\n"), (String::new(), 0));
}

#[test]
fn an_unknown_command_fails_and_names_the_nearest() {
    let (screen, failures) = session("hlep\nxyzzy 1 2");
    assert_eq!(
        screen,
        "error: there is no command `hlep`; did you mean `help`?; `help` lists them\n\
         error: there is no command `xyzzy`; `help` lists them\n"
    );
    assert_eq!(failures, 2);
}

#[test]
fn a_wrong_argument_fails_with_the_commands_usage() {
    let (screen, failures) = session("help hepl\nhelp help more # too many");
    assert_eq!(
        screen,
        "error: COMMAND: `hepl` is none of the commands that `help` lists; did you mean `help`?\n\
         usage: help [COMMAND]\n\
         error: `more` is one argument too many\n\
         usage: help [COMMAND]\n"
    );
    assert_eq!(failures, 2);
}

#[test]
fn an_expected_refusal_that_does_not_come_is_a_failure() {
    let (screen, failures) = session("! help help");
    assert!(screen.ends_with("error: this was to be refused, and was not\n"), "{screen}");
    assert_eq!(failures, 1);
}

#[test]
fn a_line_that_is_wrong_is_no_expected_refusal() {
    assert_eq!(session("! hlep").1, 1);
    assert_eq!(session("!help hepl").1, 1);
    assert_eq!(session("!").1, 1);
    assert_eq!(session("! # nothing").1, 1);
}

#[test]
fn poweroff_says_whether_all_was_as_expected() {
    for (lines, status) in [
        ("help\npoweroff", Status::Success),
        ("hlep\nhelp\npoweroff", Status::Failure),
        ("! help\npoweroff", Status::Failure),
    ] {
        let mut model = Model::default();
        session_with(&mut model, lines);
        assert_eq!(model.ended, Some(status), "{lines}");
    }
}

#[test]
fn reboot_and_poweroff_insist_on_no_words() {
    let mut model = Model::default();
    assert_eq!(session_with(&mut model, "poweroff now\nreboot now").1, 2);
    assert_eq!((model.ended, model.resets), (None, 0));
    assert_eq!(session_with(&mut model, "reboot").1, 0);
    assert_eq!(model.resets, 1);
}

#[test]
fn help_tells_all_commands_and_each() {
    let (all, _) = session("help");
    for command in Command::all() {
        assert!(all.lines().any(|line| line.starts_with(&command.to_string())), "{command}");
        let (one, failures) = session(&std::format!("help {}", command.name));
        assert!(one.contains(command.help) && failures == 0, "{command}: {one}");
    }
    assert!(all.lines().all(|line| line.len() < 120), "{all}");
}

#[test]
fn names_are_typed_easily_and_once() {
    let mut names: Vec<_> = Command::all().map(|command| command.name).collect();
    for name in &names {
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
    }
    names.sort_unstable();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}

fn offered(line: &str) -> Vec<&'static str> {
    let mut words = Vec::new();
    complete(line, &mut |word| words.push(word));
    words
}

#[test]
fn commands_and_their_keywords_are_offered() {
    assert!(offered("").contains(&"help"));
    assert_eq!(offered(" ! "), offered(""));
    assert_eq!(offered("help "), offered(""));
    assert_eq!(offered("help help "), [""; 0]);
    assert_eq!(offered("xyzzy "), [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_line_has_an_outcome(line in "\\PC{0,40}") {
        let known = line.split(|character: char| !character.is_ascii_lowercase() && character != '_')
            .any(|word| Command::named(word).is_some());
        // What a real command does is the machine's business, not the parser's.
        if !known {
            session(&line);
            let _ = offered(&line);
        }
    }

    #[test]
    fn help_about_anything_has_an_outcome(line in "\\PC{0,40}") {
        session(&std::format!("help {line}"));
    }
}
