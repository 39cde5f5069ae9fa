//! Demos: tests whose output is for people, on one screen. `./x demo NAME` runs one alone and prints it.
//!
//! A demo checks all that it prints, like any test.

mod batch;
mod marker;
mod mte;
mod race;
mod upgrade;

use granule::println;
use granule::smp::{self, this_cpu};

use self::race::{REMEDIES, Remedy};
use crate::harness::{Test, target_test};
use crate::split::counts::split_by;
use crate::split::{Block, hand_over, space};

target_test!(split, machines("icount"), limit(60));
fn split(t: &mut Test) {
    let Some(other) = smp::online().without(this_cpu().id).iter().next() else { return };
    the_race(t, other);
    println!();
    the_kernel(t);
}

target_test!(upgrade, needs("smmuv3 virtio-blk"), limit(60));
fn upgrade(t: &mut Test) {
    upgrade::show(t);
}

target_test!(batch, needs("smmuv3 virtio-blk"), limit(60));
fn batch(t: &mut Test) {
    batch::show(t);
}

target_test!(mte, needs("tag-storage"), machines("mte"), limit(60));
fn mte(t: &mut Test) {
    mte::show(t);
}

target_test!(marker);
fn marker(t: &mut Test) {
    marker::show(t);
}

/// One contiguous group that one CPU splits while another changes a page of it.
fn the_race(t: &mut Test, other: smp::CpuId) {
    const ROUNDS: u32 = 100;
    println!(
        "Two CPUs own a page each of one contiguous group. Each splits it, by clearing the bit in all 16 entries, and"
    );
    println!(
        "makes its page read-only. CPU 1 is first, and halts between its look at CPU 0's entry and what it does to it."
    );
    println!("{:<45} {:>5} {:>7} {:>8}", "", "lost", "waited", "atomics");
    for remedy in REMEDIES {
        let what = match remedy {
            Remedy::Nothing => "nothing: loads and stores, first entry decides",
            Remedy::Lock => "1. a lock around it",
            Remedy::AtomicClear => "2. an atomic clear of every entry",
            Remedy::CheckEvery => "3. check every entry, atomic where it is set",
            Remedy::Retry => "4. retry until the last entry is clear",
        };
        let Some(outcome) = t.ok(what, race::run(other, remedy, ROUNDS)) else { return };
        println!("{what:<45} {:>5} {:>7} {:>8}", outcome.lost, outcome.waited, outcome.atomics);
        if remedy == Remedy::Nothing {
            t.equal("the race is lost each time", outcome.lost, ROUNDS);
        } else {
            t.equal("nothing is lost", outcome.lost, 0);
            t.equal("and nothing else is wrong", outcome.wrong, 0);
        }
    }
}

/// The kernel's own split, of a block that is in use.
fn the_kernel(t: &mut Test) {
    let Some(block) = Block::fresh(t) else { return };
    let mut wrong = 0;
    let counts = split_by(|| wrong = hand_over::share(t, &block));
    let split = space().policy().split;
    println!(
        "The kernel's own, split={split}: a block of 2 MiB in use. The CPUs take halves of each of its groups of pages"
    );
    println!(
        "away at once, page by page; each probes its page as soon as the call has returned, and both probe all behind."
    );
    println!("found as they must not be: {wrong} of 512 pages");
    println!("leaves split: {counts}");
    t.equal("blocks", counts.blocks, [0, 0, 1, 0]);
    t.equal("groups of pages", counts.groups[3], 32);
    println!();
    println!("./x demo split --append split=lockless     by remedy 3");
    println!("./x demo split --append lab=plain-split    with nothing: this demo then fails");
    block.free(t);
}
