//! Demos: tests whose output is for people, on one screen. `./x demo NAME` runs one alone and prints it.
//!
//! What a demo says that happened it has checked, like any test.

mod race;

use granule::println;
use granule::smp::{self, this_cpu};

use self::race::{REMEDIES, Remedy};
use crate::harness::{Test, target_test};

target_test!(split, machine("icount"), limit(60));
fn split(t: &mut Test) {
    let Some(other) = smp::online().without(this_cpu().id).iter().next() else { return };
    the_race(t, other);
}

/// One contiguous group that one CPU splits while another changes a page of it.
fn the_race(t: &mut Test, other: smp::CpuId) {
    const ROUNDS: u32 = 100;
    println!(
        "CPU 1 splits a contiguous group: it clears the contiguous bit of 16 entries, from the first to the last."
    );
    println!("CPU 0 makes page 9 of it read-only, while CPU 1 is between the load and the store of entry 9.");
    println!("{:<45} {:>5} {:>7} {:>8}", "", "lost", "waited", "atomics");
    for remedy in REMEDIES {
        let what = match remedy {
            Remedy::Nothing => "nothing: the first entry is clear, so go on",
            Remedy::Lock => "1. a lock around every split",
            Remedy::AtomicClear => "2. an atomic clear, where the bit is set",
            Remedy::CheckEvery => "3. check every entry, not only the first",
            Remedy::Retry => "4. retry while the bit is set in one's own",
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
