//! The machine is as in machines.toml: else tests are skipped, or run, for the wrong reason.

use granule::bootargs;

use crate::harness::{KNOWN, Test, has, target_test};

target_test!(has_what_machines_toml_lists);
fn has_what_machines_toml_lists(t: &mut Test) {
    let promised = || bootargs::get("test.features").unwrap_or("").split(',').filter(|name| !name.is_empty());
    for name in promised() {
        t.equal(name, has(name), Some(true));
    }
    for (name, _) in KNOWN {
        t.equal(name, has(name), Some(promised().any(|promise| promise == name)));
    }
}
