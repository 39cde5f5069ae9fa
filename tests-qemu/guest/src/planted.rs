//! Panics that are planted for `./x audit panics`, whose test (xtask/audit/src/tests.rs) follows calls from [`root`]:
//! it must find each of them but the one that nothing calls. Nothing here runs.

use core::hint::black_box;

/// A table of operations.
struct Operations {
    listed: fn(usize) -> usize,
    unlisted: fn(usize) -> usize,
}

/// Something with a vtable.
trait Planted: Sync {
    fn act(&self, number: usize) -> usize;
}

struct Plant;

#[used]
static ROOT: fn(usize) -> usize = root;
#[used]
static NOT_CALLED: fn(usize) -> usize = not_called;
static OPERATIONS: Operations = Operations { listed: by_table, unlisted: by_pointer };
static PLANT: &dyn Planted = &Plant;

#[inline(never)]
fn root(number: usize) -> usize {
    let operations = black_box(&OPERATIONS);
    let plant = black_box(PLANT);
    inlined(number) + calls(number) + (operations.listed)(number) + (operations.unlisted)(number) + plant.act(number)
}

#[inline(always)]
fn inlined(number: usize) -> usize {
    assert!(number != 1, "planted: inlined");
    number
}

#[inline(never)]
fn calls(number: usize) -> usize {
    is_called(number) * 2
}

#[inline(never)]
fn is_called(number: usize) -> usize {
    black_box([1, 2, 3])[number]
}

#[inline(never)]
fn by_table(number: usize) -> usize {
    black_box(Some(number)).unwrap()
}

#[inline(never)]
fn by_pointer(number: usize) -> usize {
    7 / number
}

impl Planted for Plant {
    #[inline(never)]
    fn act(&self, number: usize) -> usize {
        black_box(Some(number)).expect("planted: behind a vtable")
    }
}

#[inline(never)]
fn not_called(number: usize) -> usize {
    assert!(number != 2, "planted: not called");
    number
}
