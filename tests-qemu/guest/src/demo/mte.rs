//! Storage for tags: reserved at the first access, or for all pages at once; and in use as memory when a page needs it.
//!
//! The runner boots it with a switch first: `reserve-at-mprotect`, the way it is compared with, and `no-replay-limit`,
//! where a page whose storage is pinned waits for ever.

use granule::mm::tag_storage::FRAMES_PER_FRAME;
use granule::{kernel, lab, print, println};

use crate::harness::Test;
use crate::tag_storage::occupied::{Occupied, Pin, REPLAYS};
use crate::tag_storage::{PAGES, a_thousand_pages, mark, touch, users};

/// Faults after which a page is said to wait for ever.
const MANY: u32 = 1000;

pub(super) fn show(t: &mut Test) {
    if !lab::active().contains(&lab::NO_REPLAY_LIMIT) {
        mprotect_and_accesses(t);
    }
    if !lab::active().contains(&lab::RESERVE_AT_MPROTECT) {
        a_pinned_storage(t);
    }
}

fn mprotect_and_accesses(t: &mut Test) {
    let is_eager = lab::active().contains(&lab::RESERVE_AT_MPROTECT);
    println!(
        "mprotect gives {PAGES} pages in use PROT_MTE, then the process stores to some. What has storage for its tags:"
    );
    println!("{:>8} {:>24} {:>24}", "touched", "after mprotect", "after the stores");
    for touched in [0, 1, 10, 100, PAGES] {
        let Some(storage) = t.ok("tag storage", kernel().frames.tag_storage().ok_or("none")) else { return };
        let Some(space) = a_thousand_pages(t) else { return };
        let before = storage.stats();
        // Pages, and the blocks of 4 KiB for them.
        let reserved = || {
            let now = storage.stats();
            ((users(&now) - users(&before)) as u64, now.reserved - before.reserved)
        };
        mark(t, &space);
        let marked = reserved();
        touch(t, &space, touched);
        let after = reserved();
        print!("{touched:>8}");
        for (when, (pages, blocks)) in [("after mprotect", marked), ("after the stores", after)] {
            let wanted = if is_eager {
                PAGES
            } else if when == "after mprotect" {
                0
            } else {
                touched
            };
            t.equal(when, pages, wanted);
            t.check("its blocks", blocks <= wanted && blocks >= wanted / FRAMES_PER_FRAME as u64);
            // How many blocks are for them depends on which frames they have.
            print!(" {pages:>18} pages");
        }
        println!();
    }
    println!();
}

fn a_pinned_storage(t: &mut Test) {
    let Some(pages) = Occupied::new(t) else { return };
    println!("The storage for the tags of a page is in use as memory of another process, and something holds it.");
    let (frame, pin) = (pages.frame(), Pin::new(pages.other_frame()));
    let faults = pages.faults(MANY);
    if lab::active().contains(&lab::NO_REPLAY_LIMIT) {
        t.equal("faults", faults, MANY);
        t.check("it waits still", pages.is_waiting() && pages.frame() == frame);
        println!("A store to the page faults, and is replayed: it has faulted {faults} times, and waits still.");
    } else {
        t.check("replays, and then it moves", faults > REPLAYS && faults < 2 * REPLAYS);
        t.check("it is accessible, elsewhere", !pages.is_waiting() && pages.frame() != frame);
        println!("A store to the page faults, and is replayed {REPLAYS} times. Then the page itself moves to a frame");
        println!("whose storage is free: there it is accessible, and what is held lies where it was.");
    }
    drop(pin);
    if pages.is_waiting() {
        t.equal("a fault", pages.fault(), Ok(()));
        println!("Once nothing holds what lies in its storage, the next fault is the last.");
    }
    t.check("it is accessible", !pages.is_waiting());
}
