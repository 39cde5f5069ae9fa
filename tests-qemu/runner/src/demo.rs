//! A demo: a test on the target whose output is for people.
//!
//! It is a test of module `demo`, so what it prints was checked, and `./x test` runs it with the others;
//! [`run`] runs it alone and hands over what it printed, which fits on a screen. A demo of a bug is booted with the fix
//! away first: there the test checks that the bug shows.

use anyhow::{Result, bail};

use crate::judge::{Boot, Outcome, Verdict};
use crate::list::Test;

/// How the names of demos begin.
pub const AREA: &str = "demo::";
/// The most lines that a demo prints.
pub const LINES: usize = 30;

/// Demos of which one boot shows a part only: the boot arguments of each.
const BOOTS: [(&str, &[&str]); 4] = [
    ("upgrade", &["lab=no-secondary-tlb", "lab=no-secondary-tlb,trust-completion", ""]),
    ("batch", &["lab=notify-at-batch-flush", ""]),
    ("marker", &["lab=drop-marker-always", ""]),
    ("mte", &["lab=reserve-at-mprotect", "lab=no-replay-limit", ""]),
];

/// The boot arguments with which a demo is run, one boot each, where the user gives none.
pub fn boots(demo: &Test) -> &'static [&'static str] {
    let name = demo.name.strip_prefix(AREA);
    BOOTS.iter().find(|(of, _)| name == Some(of)).map_or(&[""], |(_, boots)| boots)
}

/// The names of all demos among `tests`.
pub fn names(tests: &[Test]) -> impl Iterator<Item = &str> {
    tests.iter().filter_map(|test| test.name.strip_prefix(AREA))
}

/// The demo of that name.
///
/// # Errors
/// When there is none: the message names all.
pub fn named<'a>(tests: &'a [Test], name: &str) -> Result<&'a Test> {
    match tests.iter().find(|test| test.name.strip_prefix(AREA) == Some(name)) {
        Some(test) => Ok(test),
        None => bail!("there is no demo `{name}`; there are: {}", names(tests).collect::<Vec<_>>().join(", ")),
    }
}

/// Runs a demo, in a boot for each of these boot arguments: what it printed, and what is wrong with it if something is.
pub fn run(demo: &Test, boots: &[&str], mut boot: impl FnMut(&[&Test], &str) -> Boot) -> (String, Option<String>) {
    let mut all = String::new();
    for bootargs in boots {
        let (output, wrong) = one(demo, |tests| boot(tests, bootargs));
        if boots.len() > 1 {
            all.push_str(&format!("---- {}\n", if bootargs.is_empty() { "as it is" } else { bootargs }));
        }
        all.push_str(&output);
        if wrong.is_some() {
            return (all, wrong);
        }
        all.push('\n');
    }
    let output = all.trim_end_matches('\n').to_owned();
    let lines = output.lines().count();
    let wrong = (lines > LINES).then(|| format!("it printed {lines} lines, more than {LINES}"));
    (output, wrong)
}

fn one(demo: &Test, boot: impl FnOnce(&[&Test]) -> Boot) -> (String, Option<String>) {
    let Boot { outcomes, failure } = boot(&[demo]);
    match outcomes.into_iter().next() {
        Some((_, outcome)) => judge(outcome),
        None => {
            let (why, output) = failure.unwrap_or_default();
            (output, Some(format!("the machine did not get as far as the demo: {why}")))
        }
    }
}

fn judge(outcome: Outcome) -> (String, Option<String>) {
    let output = outcome.output.trim_matches('\n').to_owned();
    let wrong = match outcome.verdict {
        Verdict::Failed(why) => Some(format!("what it shows did not happen: {why}")),
        Verdict::Passed(_) if output.is_empty() => Some("it printed nothing".into()),
        Verdict::Passed(_) => None,
    };
    (output, wrong)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{LINES, named, run};
    use crate::judge::{Boot, Outcome, Verdict};
    use crate::list::Test;

    fn test(name: &str) -> Test {
        Test {
            index: 0,
            name: name.into(),
            needs: Vec::new(),
            machines: Vec::new(),
            limit: 1,
            long: false,
            selftest: false,
        }
    }

    fn wrong(verdict: Verdict, lines: usize) -> Option<String> {
        let outcome = Outcome { verdict, output: "a line\n".repeat(lines), time: Duration::ZERO };
        let (output, wrong) =
            run(&test("demo::x"), &[""], |_, _| Boot { outcomes: vec![(0, outcome.clone())], failure: None });
        assert_eq!(output.lines().count(), lines);
        wrong
    }

    #[test]
    fn a_demo_that_passes_on_a_screen_is_good() {
        assert_eq!(wrong(Verdict::Passed(3), LINES), None);
    }

    #[test]
    fn a_demo_that_shows_nothing_or_too_much_or_did_not_happen_is_not() {
        assert!(wrong(Verdict::Failed("1 failed".into()), 3).unwrap().contains("1 failed"));
        assert!(wrong(Verdict::Passed(3), LINES + 1).unwrap().contains("31 lines"));
        assert!(wrong(Verdict::Passed(3), 0).is_some());
        let dead = Boot { outcomes: Vec::new(), failure: Some(("QEMU was killed".into(), "half".into())) };
        let (output, wrong) = run(&test("demo::x"), &[""], |_, _| dead.clone());
        assert!(output == "half" && wrong.unwrap().contains("QEMU was killed"));
    }

    #[test]
    fn a_demo_of_several_boots_says_which_is_which_and_ends_at_the_first_that_is_wrong() {
        let boot = |bootargs: &str| {
            let verdict = if bootargs == "b" { Verdict::Failed("1 failed".into()) } else { Verdict::Passed(1) };
            let outcome = Outcome { verdict, output: format!("\nwith {bootargs}\n"), time: Duration::ZERO };
            Boot { outcomes: vec![(0, outcome)], failure: None }
        };
        let (output, wrong) = run(&test("demo::x"), &["a", ""], |_, bootargs| boot(bootargs));
        assert_eq!((output.as_str(), wrong), ("---- a\nwith a\n---- as it is\nwith ", None));
        let (output, wrong) = run(&test("demo::x"), &["a", "b", "c"], |_, bootargs| boot(bootargs));
        assert!(wrong.is_some() && output.ends_with("---- b\nwith b"), "{output}");
        assert_eq!(super::boots(&test("demo::x")), [""]);
        assert!(super::boots(&test("demo::upgrade")).len() > 1);
    }

    #[test]
    fn an_unknown_demo_is_told_what_there_is() {
        let tests = [test("demo::x"), test("smp::y"), test("demo::z")];
        assert_eq!(named(&tests, "z").unwrap().name, "demo::z");
        assert_eq!(named(&tests, "y").unwrap_err().to_string(), "there is no demo `y`; there are: x, z");
    }
}
