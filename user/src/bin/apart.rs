//! Threads that map, write, protect, give up and unmap memory of their own at once, with every page's contents known:
//! `apart SEED STEPS THREADS`.
//!
//! Each thread has addresses of its own, far from the others', and memory where the kernel chooses. A kernel may keep
//! what different CPUs change apart: now and then a call over the addresses of all threads, or a fork, brings it
//! together.

#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "system calls and memory that the program tests on purpose")]

use granule_user::known::Known;
use granule_user::prelude::*;
use granule_user::thread::MOST_AT_ONCE;

entry!(run);
own!(call);

/// Where the first thread's addresses begin, and bytes from there to the next one's.
const FIRST: u64 = 0x30_0000_0000;
const APART: u64 = 64 << 20;
/// Areas of a thread, and bytes from one to the next.
const AREAS: usize = 8;
const STRIDE: u64 = APART / AREAS as u64;
/// The most pages of an area.
const PAGES: usize = 12;
/// In place of what was stored in a page that is not mapped.
const HOLE: u64 = u64::MAX;

fn run(start: Start) -> u8 {
    let Some([seed, steps, threads @ 1..=u64::MAX]) = start.numbers() else { return 2 };
    let threads = MOST_AT_ONCE.min(threads as usize);
    all_at_once(threads, |index| thread(index as u64, seed, steps));
    println!("apart: {threads} threads, {steps} steps each, ok");
    0
}

/// Some pages of a thread, and what was stored in each, or [`HOLE`].
#[derive(Clone, Copy)]
struct Area(Known<PAGES>);

impl Area {
    const NONE: Self = Self(Known { start: 0, stored: [HOLE; PAGES] });

    fn address(&self, page: usize) -> u64 {
        self.0.start + page as u64 * PAGE
    }

    /// Maps `pages` pages, at `start` or, where that is 0, where the kernel chooses. Another thread may have been given
    /// `start`.
    fn map(&mut self, start: u64, pages: usize) {
        let flags = PRIVATE | if start == 0 { 0 } else { MAP_FIXED_NOREPLACE };
        match call(MMAP, [start, pages as u64 * PAGE, RW, flags, u64::MAX, 0]) {
            Ok(at) => {
                assert!(start == 0 || at == start, "{at:#x} for {start:#x}");
                self.0.start = at;
                self.0.stored[..pages].fill(0);
            }
            Err(error) => assert!(start != 0 && error == EEXIST, "{pages} pages at {start:#x}: {error:?}"),
        }
    }

    /// Some pages that are mapped and follow one another: their first, their number and their bytes.
    fn some(&self, random: &mut Random) -> Option<(usize, usize, u64)> {
        let first = random.below(PAGES);
        let mapped = self.0.stored[first..].iter().take_while(|&&number| number != HOLE).count();
        (mapped != 0).then(|| {
            let count = 1 + random.below(mapped);
            (first, count, count as u64 * PAGE)
        })
    }

    #[track_caller]
    fn check(&self) {
        (0..PAGES).filter(|&page| self.0.stored[page] != HOLE).for_each(|page| self.0.check(page));
    }

    /// Does something with some of its pages.
    fn change(&mut self, random: &mut Random) {
        let Some((first, count, bytes)) = self.some(random) else { return };
        let start = self.address(first);
        match random.below(8) {
            0..=2 => (first..first + count).for_each(|page| self.0.store(page, random.next() >> 1)),
            3 | 4 => {
                call(MPROTECT, [start, bytes, PROT_READ]).expect("pages to protect");
                self.check();
                call(MPROTECT, [start, bytes, RW]).expect("pages to write again");
            }
            5 => {
                call(MADVISE, [start, bytes, MADV_DONTNEED]).expect("pages to give up");
                self.0.stored[first..first + count].fill(0);
            }
            _ => self.unmap(first, count),
        }
    }

    fn unmap(&mut self, first: usize, count: usize) {
        call(MUNMAP, [self.address(first), count as u64 * PAGE]).expect("pages to unmap");
        self.0.stored[first..first + count].fill(HOLE);
    }

    fn is_gone(&self) -> bool {
        self.0.stored.iter().all(|&number| number == HOLE)
    }
}

fn thread(index: u64, seed: u64, steps: u64) {
    let mut random = Random(seed ^ (index + 1) << 32);
    let place = FIRST + index * APART;
    let mut areas = [Area::NONE; AREAS];
    for step in 0..steps {
        let number = random.below(AREAS);
        let area = &mut areas[number];
        if area.is_gone() {
            let chosen = random.below(3) == 0;
            area.map(if chosen { 0 } else { place + number as u64 * STRIDE }, 1 + random.below(PAGES));
        } else {
            area.change(&mut random);
            area.check();
        }
        match random.below(400) {
            0 => meet_all(&mut random),
            1 => {
                let copies = areas;
                let copy = || copies.iter().for_each(|area| area.check());
                assert_eq!(process::run(copy), exited(0), "step {step}");
            }
            _ => {}
        }
    }
    for mut area in areas {
        area.check();
        (0..PAGES).for_each(|page| {
            if area.0.stored[page] != HOLE {
                area.unmap(page, 1);
            }
        });
    }
}

/// A call over the addresses of all threads that changes no contents. They have holes.
fn meet_all(random: &mut Random) {
    let bytes = MOST_AT_ONCE as u64 * APART;
    let met = match random.below(2) {
        0 => call(MADVISE, [FIRST, bytes, MADV_NORMAL]),
        _ => call(MPROTECT, [FIRST, bytes, RW]),
    };
    assert_eq!(met, Err(ENOMEM));
}
