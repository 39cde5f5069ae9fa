//! The demos: each shows what it announces, on one screen, the same in every boot; and one that does not fails.

use granule_host_tests::built;
use granule_runner::list::Test;
use granule_runner::session::{self, Plan};
use granule_runner::{demo, list, machine, qemu};

fn tests() -> Vec<Test> {
    list::read(&built("granule-tests.elf")).unwrap()
}

/// Runs a demo in these boots.
fn run_in(test: &Test, boots: &[&str]) -> (String, Option<String>) {
    demo::run(test, boots, |tests, bootargs| {
        let machine = machine::named(test.machines.first().map_or("default", String::as_str)).unwrap();
        let (image, bootargs) = (built("granule-tests.img"), bootargs.into());
        session::boot(&Plan { machine, image, seed: 0, bootargs, extra: Vec::new(), qemu: qemu::program() }, tests)
    })
}

/// As [`run_in`], in one boot.
fn run(test: &Test, bootargs: &str) -> (String, Option<String>) {
    run_in(test, &[bootargs])
}

#[test]
fn each_demo_shows_its_claim_and_repeats_it() {
    let tests = tests();
    let names: Vec<&str> = demo::names(&tests).collect();
    assert!(names.contains(&"split") && names.contains(&"upgrade"), "{names:?}");
    for name in names {
        let demo = demo::named(&tests, name).unwrap();
        let (output, wrong) = run_in(demo, demo::boots(demo));
        assert_eq!(wrong, None, "{name}:\n{output}");
        assert_eq!(run_in(demo, demo::boots(demo)), (output, None), "{name} printed something else in the second boot");
    }
}

#[test]
fn a_demo_of_what_does_not_happen_fails_with_what_it_printed() {
    let tests = tests();
    let fails = tests.iter().find(|test| test.name == "misbehaving::fails").unwrap();
    let (output, wrong) = run(fails, "");
    assert!(output.contains("one and one: found 2, wanted 3"), "{output}");
    assert!(wrong.unwrap().contains("what it shows did not happen"));
}

#[test]
fn a_demo_of_a_fix_fails_with_the_fix_away() {
    let tests = tests();
    let demo = demo::named(&tests, "split").unwrap();
    let (output, wrong) = run(demo, "lab=plain-split");
    assert!(wrong.is_some() && output.contains("pages that were not as they must be: found"), "{output}");
    let (output, wrong) = run(demo, "split=lockless");
    assert!(wrong.is_none() && output.contains("split lock taken 0 times"), "{output}");
}

#[test]
fn a_demo_of_a_bug_shows_it_by_events_as_well_and_fails_where_it_is_another() {
    let tests = tests();
    let demo = demo::named(&tests, "upgrade").unwrap();
    let (output, wrong) = run(demo, "smmu.notify=events lab=no-upgrade-event");
    assert!(wrong.is_none() && output.contains("given up after 128"), "{wrong:?}: {output}");
    let (output, wrong) = run(demo, "lab=wrong-asid");
    assert!(wrong.is_some() && output.contains("tries: found Err(Request(TooManyFaults(128)))"), "{output}");
}
