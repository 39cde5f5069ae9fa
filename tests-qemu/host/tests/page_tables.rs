//! The kernel's page tables as they lie in memory, against what the kernel says of them.
//!
//! A machine is brought to its prompt and asked for `ptdump`; then it is stopped through QEMU's gdb stub, and the
//! tables are walked from TTBR1_EL1 in physical memory by code that shares nothing with the kernel.

use granule_host_tests::leaves::{self, Leaf};
use granule_host_tests::session::Session;
use granule_host_tests::{built, ptdump};
use granule_runner::gdb::{Gdb, Socket};
use granule_runner::machine;

/// What the kernel lists and what is there, after a few commands.
fn both(machine: &str, append: &str, commands: &[&str]) -> (Vec<Leaf>, Vec<Leaf>) {
    let socket = Socket::new();
    let machine = machine::named(machine).unwrap();
    let mut session = Session::start(&machine, &built("granule.img"), append, &socket.arguments()).unwrap();
    session.prompt().unwrap();
    for command in commands {
        session.command(command).unwrap();
    }
    let listed = ptdump::parse(&session.command("ptdump").unwrap()).unwrap();
    let walked = leaves::read(&mut Gdb::connect(&socket).unwrap()).unwrap();
    (listed, walked)
}

/// Leaves that break W^X.
fn writable_and_executable(leaves: &[Leaf]) -> Vec<Leaf> {
    leaves.iter().copied().filter(|leaf| leaf.writable && leaf.executable).collect()
}

#[track_caller]
fn assert_true_to_memory(machine: &str, commands: &[&str]) {
    let (listed, walked) = both(machine, "", commands);
    assert!(walked.len() > 10 && walked.iter().any(|leaf| leaf.executable), "{machine}: hardly a kernel: {walked:x?}");
    for (said, found) in listed.iter().zip(&walked) {
        assert_eq!(said, found, "{machine}: ptdump says the first, memory the second");
    }
    assert_eq!(listed.len(), walked.len(), "{machine}: ptdump lists more or fewer leaves than there are");
    assert_eq!(writable_and_executable(&walked), [], "{machine}");
}

#[test]
fn ptdump_is_true_on_default() {
    assert_true_to_memory("default", &["vmalloc 20", "set_memory ro $ 3"]);
}

#[test]
fn ptdump_is_true_on_a53() {
    assert_true_to_memory("a53", &["vmalloc 20", "set_memory ro $ 3"]);
}

#[test]
fn ptdump_is_true_on_el2() {
    assert_true_to_memory("el2", &["vmalloc 20", "set_memory rox $ 3"]);
}

/// The witness: the check above can fail.
#[test]
fn a_writable_and_executable_leaf_is_found() {
    let (listed, walked) = both("el2", "lab=wx-leaf", &["vmalloc 1"]);
    assert_ne!(writable_and_executable(&walked), []);
    assert_eq!(writable_and_executable(&listed), writable_and_executable(&walked));
}
