//! Sessions from a script: those in `tests-qemu/scripts`, on every machine, and scripts that must go wrong.

use std::path::{Path, PathBuf};
use std::time::Duration;

use granule_host_tests::built;
use granule_runner::machine::{self, Machine};
use granule_runner::qemu::{Qemu, Reset, Serial};
use granule_runner::script;

const LIMIT: Duration = Duration::from_secs(60);

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts")
}

/// Runs a script: what went wrong, and the session.
fn run(machine: &Machine, append: &str, text: &str) -> (Vec<String>, String) {
    let bootargs = format!("{} {append}", script::BOOTARGS);
    let qemu = Qemu::new(machine, &built("granule.img"), Serial::Pipes, Reset::Ends, bootargs.trim(), &[]);
    let mut session = Vec::new();
    let wrong = script::run(&qemu, &script::commands(text), LIMIT, &mut session).unwrap();
    (wrong, String::from_utf8_lossy(&session).replace('\r', ""))
}

/// Runs a script on the default machine.
fn run_default(append: &str, text: &str) -> (Vec<String>, String) {
    run(&machine::named("default").unwrap(), append, text)
}

#[test]
fn each_script_does_what_it_says_on_each_machine() {
    let scripts: Vec<PathBuf> = std::fs::read_dir(directory())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gran"))
        .collect();
    assert!(!scripts.is_empty(), "no scripts in {}", directory().display());
    for machine in machine::all().unwrap() {
        for path in &scripts {
            let (wrong, session) = run(&machine, "", &std::fs::read_to_string(path).unwrap());
            assert!(wrong.is_empty(), "{} on {}: {wrong:?}\n{session}", path.display(), machine.name);
        }
    }
}

#[test]
fn a_refused_write_is_printed_as_a_decoded_fault() {
    let (wrong, session) = run_default("", "vmalloc 1\nset_memory ro $ 1\n! poke $ 1\npeek $");
    assert!(wrong.is_empty(), "{wrong:?}\n{session}");
    assert!(session.contains("fault: permission fault, level 3, on a write to 0xffff8001"), "{session}");
}

#[test]
fn protection_that_does_not_reach_the_tlb_fails_the_script() {
    let text = std::fs::read_to_string(directory().join("readonly.gran")).unwrap();
    let (wrong, session) = run_default("lab=skip-tlbi", &text);
    assert!(wrong.iter().any(|line| line.contains("was to be refused, and was not")), "{wrong:?}\n{session}");
}

#[test]
fn a_line_that_does_not_go_well_fails_the_script() {
    for line in ["hlep", "vmalloc", "peek 0x1000", "! mem", "vfree 0x1000", "walk 0xzz"] {
        let (wrong, session) = run_default("", &format!("{line}\nmem"));
        assert!(!wrong.is_empty(), "{line}:\n{session}");
        assert!(session.contains("frames"), "the script goes on after {line}:\n{session}");
    }
}
