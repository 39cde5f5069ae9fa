//! The kernel's page tables as they lie in memory, against what the kernel prints of them.
//!
//! A machine is brought to its prompt and runs `ptdump`; then it is stopped through QEMU's gdb stub, and the
//! tables are walked from TTBR1_EL1 in physical memory by code that shares nothing with the kernel.

use granule_host_tests::leaves::{self, Leaf};
use granule_host_tests::session::Session;
use granule_host_tests::{built, ptdump};
use granule_runner::gdb::{Gdb, Socket};
use granule_runner::machine;

/// The kernel's listing and the tables in memory, after a few commands.
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
        assert_eq!(said, found, "{machine}: ptdump prints the first, memory has the second");
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

/// Leaves of 1 GiB, of 2 MiB in groups and of pages in groups are split, at one end of a range and at both; what is
/// left of every group is a group, or none.
#[test]
fn ptdump_is_true_and_groups_are_whole_after_splits() {
    let splits = [
        "set_memory invalid 0xffff000093456000 1",
        "set_memory valid 0xffff000093456000 1",
        "set_memory invalid 0xffff0000a01ff000 1026",
        "set_memory invalid 0xffff0000b0000000 16",
        "set_memory valid 0xffff0000a0200000 3",
    ];
    assert_true_to_memory("default", &splits);
    assert_true_to_memory("lockless", &splits);
    let (_, walked) = both("default", "", &splits);
    let leaf_at = |address: u64| walked.iter().find(|leaf| leaf.start <= address && address - leaf.start < leaf.size);
    let size_at = |address| leaf_at(address).map_or(0, |leaf| leaf.size);
    let sizes =
        [0xffff_0000_9345_6000, 0xffff_0000_9346_0000, 0xffff_0000_9360_0000, 0xffff_0000_8000_0000].map(size_at);
    assert_eq!(sizes, [4 << 10, 64 << 10, 2 << 20, 32 << 20], "a page, and beside it the largest that fits");
    assert_eq!([0xffff_0000_a01f_f000, 0xffff_0000_b000_0000].map(size_at), [0; 2], "invalid leaves are none");
}

/// The check above can fail.
#[test]
fn a_writable_and_executable_leaf_is_found() {
    let (listed, walked) = both("el2", "lab=wx-leaf", &["vmalloc 1"]);
    assert_ne!(writable_and_executable(&walked), []);
    assert_eq!(writable_and_executable(&listed), writable_and_executable(&walked));
}

/// The kernel's own check of its tables, while some of its leaves are split.
#[test]
fn ptdump_finds_what_is_wrong_and_nothing_else() {
    for (append, is_wrong) in [("", false), ("lab=wx-leaf", true)] {
        let machine = machine::named("default").unwrap();
        let mut session = Session::start(&machine, &built("granule.img"), append, &[]).unwrap();
        session.prompt().unwrap();
        session.command("vmalloc 20").unwrap();
        session.command("set_memory invalid 0xffff0000a01ff000 1026").unwrap();
        let listing = session.command("ptdump").unwrap();
        let wrong: Vec<&str> = listing.lines().filter(|line| line.starts_with("wrong ")).collect();
        assert_eq!(!wrong.is_empty(), is_wrong, "{listing}");
        // The page is one of a group, whose entries then differ.
        let json = session.command("ptdump --json").unwrap();
        for kind in ["writable and executable at EL1", "contiguous and attributes differ"] {
            assert_eq!(
                (listing.contains(kind), json.contains(kind)),
                (is_wrong, is_wrong),
                "{kind}: {listing}\n{json}"
            );
        }
        for member in ["\"leaves\":[", "\"splits\":", "\"collapses\":0,\"cancelled\":0}"] {
            assert!(json.contains(member), "{member}: {json}");
        }
    }
}
