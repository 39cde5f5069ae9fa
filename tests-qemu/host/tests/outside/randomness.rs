//! The sources of programs' random numbers, on machines with each of them. The pool's own tests
//! (`kernel/src/random.rs`) show that whatever is absorbed counts.

use std::collections::BTreeSet;

use granule_host_tests::built;
use granule_host_tests::session::Session;
use granule_runner::machine::{self, Machine};

/// A machine without a source of random numbers but `devices`.
fn without_sources(devices: &[&str]) -> Machine {
    let mut machine = machine::named("a72").unwrap();
    machine.machine += ",dtb-randomness=off";
    machine.smp = 1;
    machine.devices = devices.iter().map(|&device| device.into()).collect();
    machine
}

/// Has a program print what it is given; what the kernel logged.
fn boot(machine: &Machine) -> String {
    let mut session = Session::start(machine, &built("granule.img"), "", &[]).unwrap();
    session.prompt().unwrap();
    let printed = session.command("run random").unwrap();
    let numbers: BTreeSet<_> = printed.lines().filter_map(|line| line.strip_prefix("random ")).collect();
    assert!(numbers.len() == 2 && numbers.iter().all(|number| number.len() == 32), "{printed}");
    session.command("log").unwrap()
}

#[test]
fn a_machine_without_a_source_warns() {
    let log = boot(&without_sources(&[]));
    assert!(log.contains("warning: random numbers from the counter's jitter alone"), "{log}");
}

#[test]
fn the_device_trees_seed_is_a_source() {
    let mut machine = without_sources(&[]);
    machine.machine = machine.machine.replace(",dtb-randomness=off", "");
    let log = boot(&machine);
    assert!(log.contains("random numbers from rng-seed, the counter's jitter") && !log.contains("warning"), "{log}");
}

#[test]
fn the_cpus_generator_is_a_source() {
    let mut machine = without_sources(&[]);
    machine.cpu = "max".into();
    let log = boot(&machine);
    assert!(log.contains("random numbers from RNDR, the counter's jitter") && !log.contains("warning"), "{log}");
}

/// It is used when numbers are needed, and only if neither of the others exists.
#[test]
fn a_virtio_generator_is_a_source_where_there_is_no_other() {
    let mut machine = without_sources(&["virtio-rng"]);
    let log = boot(&machine);
    assert!(log.contains("random numbers from the counter's jitter, and now from a virtio device"), "{log}");
    machine.cpu = "max".into();
    let log = boot(&machine);
    assert!(!log.contains("virtio device"), "{log}");
}
