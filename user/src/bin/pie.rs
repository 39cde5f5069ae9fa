//! A program that is linked to run anywhere: it prints where, and checks that its constants were relocated.

#![cfg_attr(target_os = "none", no_std, no_main)]

use granule_user::abi::process::AT_ENTRY;
use granule_user::{Start, entry, println};

entry!(run);

static VALUE: u32 = 42;
/// An address in a constant: wrong unless the runtime has relocated it.
static POINTER: &u32 = &VALUE;

fn run(start: Start) -> u8 {
    let entry = start.auxiliary(AT_ENTRY).expect("an entry in the auxiliary vector");
    assert_eq!(*core::hint::black_box(POINTER), 42, "what the pointer points to");
    assert!(entry > 0x1_0000, "the entry is {entry:#x}");
    println!("pie: entry at {entry:#x}");
    0
}
