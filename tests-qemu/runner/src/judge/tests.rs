//! Honest guests, and every way of lying.

use std::time::Duration;

use granule_protocol::{Event, Frame, Nonce};
use proptest::prelude::{Strategy, any, prop, prop_assert, proptest};

use super::{Boot, Ending, Judge, Lie, Verdict};

const NONCE: Nonce = Nonce(0x5eed);

fn frame(sequence: u32, event: Event) -> String {
    let mut line = String::new();
    Frame { sequence, event }.encode(NONCE, &mut line).unwrap();
    line
}

/// The frames of a boot that runs tests 0 and 1, both of which pass.
fn honest() -> Vec<String> {
    [
        Event::Hello { tests: 2 },
        Event::Begin { index: 0 },
        Event::Pass { index: 0, checks: 3 },
        Event::Begin { index: 1 },
        Event::Pass { index: 1, checks: 1 },
        Event::End { passed: 2, failed: 0, skipped: 0 },
    ]
    .into_iter()
    .zip(0..)
    .map(|(event, sequence)| frame(sequence, event))
    .collect()
}

/// Judges these lines; a lie ends the boot there.
fn judge(lines: &[String], ending: Ending) -> Boot {
    let mut judge = Judge::new(NONCE, [0, 1]);
    for line in lines {
        if let Err(lie) = judge.line(line, Duration::ZERO) {
            return judge.end(&Ending::Lied(lie));
        }
    }
    judge.end(&ending)
}

fn verdicts(boot: &Boot) -> Vec<(u32, bool)> {
    boot.outcomes.iter().map(|(index, outcome)| (*index, matches!(outcome.verdict, Verdict::Passed(_)))).collect()
}

#[track_caller]
fn reason(boot: &Boot, index: u32) -> String {
    match &boot.outcomes.iter().find(|(i, _)| *i == index).unwrap().1.verdict {
        Verdict::Failed(reason) => reason.clone(),
        Verdict::Passed(_) => panic!("test {index} passed"),
    }
}

#[test]
fn an_honest_boot_passes_and_each_test_has_its_output() {
    let mut lines = honest();
    lines.insert(2, "of test 0".into());
    lines.insert(4, "of its audit".into());
    let boot = judge(&lines, Ending::Exited(Some(0)));
    assert_eq!(verdicts(&boot), [(0, true), (1, true)]);
    assert_eq!(boot.outcomes[0].1.output, "of test 0\nof its audit\n");
    assert_eq!(boot.outcomes[1].1.output, "");
    assert_eq!(boot.failure, None);
}

#[test]
fn exit_0_before_the_verdict_fails_the_running_test() {
    let boot = judge(&honest()[..4], Ending::Exited(Some(0)));
    assert_eq!(verdicts(&boot), [(0, true), (1, false)]);
    assert!(reason(&boot, 1).contains("exited early, with status 0"));
}

#[test]
fn exit_before_the_totals_fails_the_last_test() {
    let boot = judge(&honest()[..5], Ending::Exited(Some(0)));
    assert_eq!(verdicts(&boot), [(0, true), (1, false)]);
}

#[test]
fn an_exit_status_that_disagrees_with_the_totals_fails_the_last_test() {
    for status in [Some(1), Some(2), None] {
        let boot = judge(&honest(), Ending::Exited(status));
        assert_eq!(verdicts(&boot), [(0, true), (1, false)], "{status:?}");
    }
}

#[test]
fn a_hang_after_the_totals_fails_the_last_test() {
    let boot = judge(&honest(), Ending::TimedOut(Duration::from_secs(5)));
    assert!(reason(&boot, 1).contains("hung"));
}

#[test]
fn a_death_between_tests_fails_the_one_before() {
    let boot = judge(&honest()[..3], Ending::Exited(Some(1)));
    assert_eq!(verdicts(&boot), [(0, false)]);
    assert!(reason(&boot, 0).starts_with("passed, and then"));
}

#[test]
fn a_panic_is_named() {
    let mut lines = honest()[..2].to_vec();
    lines.push("kernel panic on CPU 0: it was enough".into());
    assert_eq!(reason(&judge(&lines, Ending::Exited(Some(1))), 0), "the kernel panicked");
}

#[test]
fn of_output_without_an_end_the_beginning_and_the_end_are_kept() {
    let mut judge = Judge::new(NONCE, [0]);
    judge.line("the first", Duration::ZERO).unwrap();
    (0..40).for_each(|_| judge.line(&"ä".repeat(1 << 19), Duration::ZERO).unwrap());
    judge.line("the last", Duration::ZERO).unwrap();
    let (_, output) = judge.end(&Ending::Closed).failure.unwrap();
    assert!(output.len() <= super::MAX_OUTPUT + 100, "{}", output.len());
    assert!(output.starts_with("the first\n") && output.ends_with("\nthe last\n"));
    assert_eq!(output.matches(super::CUT).count(), 1);
}

#[test]
fn a_boot_that_dies_before_hello_blames_no_test() {
    let boot = judge(&["early words".into()], Ending::Exited(Some(1)));
    assert!(boot.outcomes.is_empty());
    let (reason, output) = boot.failure.unwrap();
    assert!(reason.contains("status 1"), "{reason}");
    assert_eq!(output, "early words\n");
}

#[test]
fn a_pass_without_checks_fails() {
    let mut lines = honest();
    lines[2] = frame(2, Event::Pass { index: 0, checks: 0 });
    assert_eq!(reason(&judge(&lines, Ending::Exited(Some(0))), 0), "made no checks");
}

#[test]
fn a_skip_fails_since_only_machines_toml_may_skip() {
    let mut lines = honest();
    lines[2] = frame(2, Event::Skip { index: 0 });
    lines[5] = frame(5, Event::End { passed: 1, failed: 0, skipped: 1 });
    let boot = judge(&lines, Ending::Exited(Some(1)));
    assert_eq!(verdicts(&boot), [(0, false), (1, true)]);
}

#[test]
fn a_forged_verdict_fails_even_when_it_is_perfect() {
    // With a wrong nonce, at once.
    let mut wrong = String::new();
    Frame { sequence: 2, event: Event::Pass { index: 0, checks: 1 } }.encode(Nonce(1), &mut wrong).unwrap();
    let mut lines = honest();
    lines.insert(2, wrong);
    assert!(reason(&judge(&lines, Ending::Exited(Some(0))), 0).contains("nonce"));
    // With everything right, when the real one comes.
    let mut lines = honest();
    lines.insert(2, frame(2, Event::Pass { index: 0, checks: 1 }));
    let boot = judge(&lines, Ending::Exited(Some(0)));
    assert!(reason(&boot, 0).contains("out of sequence"));
}

#[test]
fn forged_totals_fail() {
    let mut lines = honest()[..2].to_vec();
    lines.push(frame(2, Event::End { passed: 2, failed: 0, skipped: 0 }));
    assert_eq!(verdicts(&judge(&lines, Ending::Exited(Some(0)))), [(0, false)]);
}

#[test]
fn a_frame_cut_short_fails_the_running_test() {
    let mut cut = honest()[2].clone();
    cut.truncate(20);
    let mut lines = honest()[..2].to_vec();
    lines.push(cut);
    assert!(reason(&judge(&lines, Ending::Exited(Some(0))), 0).contains("checksum"));
}

#[test]
fn a_machine_that_dies_in_mid_line_leaves_the_half_line_in_the_output() {
    let mut judge = Judge::new(NONCE, [0, 1]);
    for line in &honest()[..2] {
        judge.line(line, Duration::ZERO).unwrap();
    }
    judge.rest("I was about to s");
    let boot = judge.end(&Ending::Exited(Some(0)));
    assert_eq!(boot.outcomes[0].1.output, "I was about to s\n");
    assert_eq!(verdicts(&boot), [(0, false)]);
}

#[test]
fn the_wrong_number_of_tests_is_a_lie() {
    let mut judge = Judge::new(NONCE, [0]);
    assert!(matches!(judge.line(&honest()[0], Duration::ZERO), Err(Lie(_))));
}

#[test]
fn a_board_parts_behind_the_totals_and_not_before() {
    assert_eq!(verdicts(&judge(&honest(), Ending::Parted)), [(0, true), (1, true)]);
    assert_eq!(verdicts(&judge(&honest()[..5], Ending::Parted)), [(0, true), (1, false)]);
    assert_eq!(verdicts(&judge(&honest(), Ending::Closed)), [(0, true), (1, false)]);
}

proptest! {
    /// Both tests of an honest boot pass only if nothing happened to its frames.
    #[test]
    fn no_edit_of_an_honest_boot_passes_as_one(
        drop in prop::option::of(0usize..6),
        twice in prop::option::of(0usize..6),
        swap in prop::option::of((0usize..6, 0usize..6).prop_filter("another", |(a, b)| a != b)),
        status in prop::option::of(0i32..3),
    ) {
        let mut lines = honest();
        if let Some((a, b)) = swap { lines.swap(a, b) }
        if let Some(at) = twice { lines.insert(at, lines[at].clone()) }
        if let Some(at) = drop { lines.remove(at); }
        let untouched = lines == honest() && status == Some(0);
        let boot = judge(&lines, Ending::Exited(status));
        prop_assert!((verdicts(&boot) == [(0, true), (1, true)]) == untouched);
    }

    /// No test ever gets two verdicts, and no text makes the judge panic.
    #[test]
    fn each_test_has_at_most_one_verdict(
        lines in prop::collection::vec((0u32..8, any::<u32>(), 0usize..7, any::<String>()), 0..20),
    ) {
        let lines: Vec<String> = lines.into_iter().map(|(sequence, number, kind, text)| {
            let index = number % 3;
            frame(sequence, match kind {
                0 => Event::Hello { tests: index },
                1 => Event::Begin { index },
                2 => Event::Pass { index, checks: 1 },
                3 => Event::Fail { index, checks: 1, failures: 1 },
                4 => Event::Skip { index },
                5 => Event::End { passed: index, failed: 0, skipped: 0 },
                _ => return text,
            })
        }).collect();
        let mut indices: Vec<u32> = verdicts(&judge(&lines, Ending::Exited(Some(0)))).iter().map(|v| v.0).collect();
        let all = indices.len();
        indices.sort_unstable();
        indices.dedup();
        prop_assert!(all == indices.len());
    }
}
