//! Inputs: their lines, how they change, and how a failure becomes small.

use granule_user::random::Random;

use super::input::{Input, Kind, Setting, Step};
use super::{parse, reduce};

/// As many characters as a line of the monitor has (`kernel/monitor/src/line.rs`).
const LINE: usize = 160;

fn some(count: usize) -> Vec<Input> {
    let mut random = Random(1);
    let mut inputs = vec![Input::draw(&mut random)];
    while inputs.len() < count {
        let [one, other] = [(); 2].map(|()| inputs[random.below(inputs.len())].clone());
        inputs.push(one.mutate(&other, &mut random));
    }
    inputs
}

#[test]
fn inputs_are_read_as_they_are_printed() {
    for input in some(2000) {
        assert_eq!(input.to_string().parse::<Input>().unwrap(), input);
        assert!((1..=64 * 8).contains(&input.calls()), "{input}");
        for command in input.commands(30_000) {
            assert!(command.len() <= LINE, "{command}");
        }
    }
    for bad in ["", "alone", "1r0-1", "alone 1x0-1", "alone 1r2-1", "alone 1r0", "alone 70000r0-1"] {
        assert!(bad.parse::<Input>().is_err(), "{bad}");
    }
    assert_eq!(parse("# a comment\n\nshort 1r0-1\n").unwrap().len(), 1);
}

#[test]
fn each_kind_of_call_and_each_setting_is_drawn() {
    let inputs = some(200);
    for setting in [Setting::Alone, Setting::Together, Setting::Short, Setting::Bound] {
        assert!(inputs.iter().any(|input| input.setting == setting), "{setting:?}");
    }
    for kind in [Kind::Raw, Kind::Structured] {
        assert!(inputs.iter().flat_map(|input| &input.steps).any(|step| step.kind == kind), "{kind:?}");
    }
}

#[test]
fn a_failure_becomes_the_one_call_that_fails() {
    let culprit = Step { seed: 7, kind: Kind::Structured, first: 10, last: 50 };
    let mut inputs: Vec<Input> = some(16);
    inputs[11].steps.push(culprit);
    let has_call = |step: &Step| step.seed == 7 && (step.first..=step.last).contains(&33);
    let mut tries = 0;
    let smallest = reduce(inputs, 60, |inputs| {
        tries += 1;
        Ok(inputs.iter().flat_map(|input| &input.steps).any(has_call))
    })
    .unwrap();
    assert_eq!(smallest.iter().map(Input::to_string).collect::<Vec<_>>(), ["alone 7s33-33"]);
    assert!(tries < 60, "{tries}");
}
