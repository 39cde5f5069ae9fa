//! Forks, stores, zaps and changes of protection at once on all CPUs, with every byte's value known: `stress SEED
//! ROUNDS [THREADS]`, of each process.
//!
//! Each worker is a process with threads. Each of its pages belongs to one thread, which records what it wrote there;
//! forks copy them while the others write, and each copy is compared, changed and given up without the original
//! noticing.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::known::Known;
use granule_user::prelude::*;

entry!(run);

/// Processes at once.
const WORKERS: usize = 3;
/// The most threads in each.
const THREADS: usize = 16;
/// Pages of one thread.
const PAGES: usize = 24;
/// Their bytes.
const SIZE: u64 = PAGES as u64 * PAGE;

fn run(start: Start) -> u8 {
    let Some([seed, rounds]) = start.numbers() else { return 2 };
    let threads = start.numbers().map_or(2, |[_, _, threads]| threads as usize).clamp(1, THREADS);
    // A page that all processes share: stores to it are never lost.
    let total = memory::shared::<AtomicU32>();
    let workers: [u32; WORKERS] = core::array::from_fn(|index| {
        process::spawn(|| {
            let seed = seed.wrapping_add(index as u64 * 0x1_0001);
            // The pages of one thread after those of the other: none is mapped while the threads run, so that a gap in
            // them belongs to no other thread.
            let base = memory::map(threads as u64 * SIZE, RW).expect("pages");
            all_at_once(threads, |index| {
                thread(base + index as u64 * SIZE, Random(seed ^ (index as u64) << 32), rounds, total);
            });
        })
    });
    for worker in workers {
        assert_eq!(process::wait(worker), exited(0));
    }
    let counted = total.load(Ordering::Relaxed);
    assert_eq!(u64::from(counted), (WORKERS * threads) as u64 * 2 * rounds, "rounds, of originals and of copies");
    println!("stress: {counted} rounds, ok");
    0
}

fn thread(start: u64, mut random: Random, rounds: u64, total: &AtomicU32) {
    let seed = random.next();
    let mut pages = Known::<PAGES>::new(start);
    for round in 0..rounds {
        pages.store_some(&mut random, 8);
        let child = process::spawn(|| copy(pages, Random(seed ^ round), total));
        // While the child compares its copy:
        pages.store_some(&mut random, 8);
        match random.below(3) {
            0 => pages.zap(&mut random),
            1 => pages.protect(&mut random),
            _ => {}
        }
        pages.check_all();
        assert_eq!(process::wait(child), exited(0), "seed {seed}, round {round}");
        total.fetch_add(1, Ordering::Relaxed);
    }
    pages.check_all();
}

/// Stores to a child's copy of the pages, and checks them.
fn copy(mut pages: Known<PAGES>, mut random: Random, total: &AtomicU32) {
    pages.check_all();
    pages.store_some(&mut random, 6);
    pages.zap(&mut random);
    pages.store_some(&mut random, 6);
    pages.check_all();
    total.fetch_add(1, Ordering::Relaxed);
}
