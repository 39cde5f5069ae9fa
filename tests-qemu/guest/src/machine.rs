//! The machine is as in machines.toml, the board as in boards.toml: else tests are skipped, or run, for the wrong reason.

use crate::harness::{KNOWN, Promised, Test, has, target_test};

target_test!(has_what_machines_toml_lists);
fn has_what_machines_toml_lists(t: &mut Test) {
    let promised = Promised::features();
    for name in promised.names() {
        t.equal(name, has(name), Some(true));
    }
    for (name, _) in KNOWN {
        t.equal(name, has(name), Some(promised.names().any(|promise| promise == name)));
    }
}
