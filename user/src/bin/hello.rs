//! Prints what the kernel hands to a program.

#![no_std]
#![no_main]

use granule_user::prelude::*;

entry!(run);

fn run(start: Start) {
    println!("hello from process {}, child of {}", process::id(), process::parent_id());
    for argument in start.arguments() {
        println!("argument {argument:?}");
    }
    for variable in start.environment() {
        println!("environment {variable:?}");
    }
    let keys = [
        ("page size", AT_PAGESZ),
        ("program headers", AT_PHDR),
        ("of which", AT_PHNUM),
        ("entry", AT_ENTRY),
        ("hwcap", AT_HWCAP),
        ("random bytes", AT_RANDOM),
    ];
    for (name, key) in keys {
        match start.auxiliary(key) {
            Some(value) => println!("{name} {value:#x}"),
            None => println!("{name} is not there"),
        }
    }
    assert!(start.stack_pointer().is_multiple_of(16), "SP is a multiple of 16");
}
