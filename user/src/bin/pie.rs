//! A program that is linked to run anywhere: it prints where, and checks that its constants were relocated.

#![no_std]
#![no_main]

use granule_user::prelude::*;

entry!(run);

static VALUE: u32 = 42;
/// An address in a constant: wrong unless the runtime has relocated it.
static POINTER: &u32 = &VALUE;

/// An object that is aligned to more than a page.
#[repr(align(0x1_0000))]
struct Aligned([u8; 16]);

static ALIGNED: Aligned = Aligned([1; 16]);

fn run(start: Start) {
    let entry = start.auxiliary(AT_ENTRY).expect("an entry in the auxiliary vector");
    assert_eq!(*core::hint::black_box(POINTER), 42, "what the pointer points to");
    let aligned = core::hint::black_box(&ALIGNED);
    assert!((&raw const *aligned).addr().is_multiple_of(0x1_0000) && aligned.0[15] == 1, "at {:p}", aligned);
    assert!(entry > 0x1_0000, "the entry is {entry:#x}");
    println!("pie: entry at {entry:#x}");
}
