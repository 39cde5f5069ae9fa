//! Threads that store to a file's pages while one takes them away.

use granule_user::prelude::*;

use super::{blocks, call, file, shared};

const RACERS: usize = 3;
const RACE_PAGES: u64 = 24;
const ROUNDS: u32 = 400;

/// One thread takes pages away; the others store to them, through mappings that come and go. Once a page is taken away,
/// no store made before is seen again.
pub(super) fn races() {
    let file = file(RACE_PAGES);
    let here = shared(&file, RACE_PAGES);
    let ended = AtomicU32::new(0);
    interrupt_by(SIGUSR1, 0);
    all_at_once(RACERS + 1, |number| match number {
        0 => {
            take_away(&file, &here);
            ended.store(1, Ordering::Release);
        }
        _ => store(&file, &here, &ended, number as u64),
    });
    equal("punched", file.punch(0, RACE_PAGES * PAGE), Ok(0));
    equal("nothing is left", blocks(&file), 0);
    equal("zeros", (0..RACE_PAGES).all(|page| file.byte(page * PAGE) == Some(0)), true);
}

/// Each store is made by a program that may meet the end of the file.
fn store(file: &File, here: &Pages, ended: &AtomicU32, number: u64) {
    let mut random = Random(number);
    while ended.load(Ordering::Acquire) == 0 {
        let page = random.below(RACE_PAGES as usize / 2) as u64;
        let value = number as u8;
        match random.below(5) {
            0 => {
                let own = file.map(page, 4, RW, MAP_SHARED).expect("a mapping");
                // SAFETY: mapped, and the first half of the file is never cut off.
                unsafe { (*own as *mut u8).write_volatile(value) };
            }
            1 => {
                let own = file.map(page, 4, RW, MAP_PRIVATE).expect("a mapping");
                // SAFETY: as above.
                unsafe { (*own as *mut u8).write_volatile(value) };
                // SAFETY: as above.
                let read = unsafe { (*own as *const u8).read_volatile() };
                equal("a copy is the mapping's own", read, value);
            }
            2 => drop(file.write_at(&[value], page * PAGE)),
            3 => {
                let mut read = [0; 8];
                let at = (RACE_PAGES / 2 + page) * PAGE;
                holds("a read", call(PREAD64, [**file, read.as_mut_ptr() as u64, 8, at]).is_ok());
            }
            // SAFETY: as above, and mapped until all have ended.
            _ => unsafe { ((**here + page * PAGE) as *mut u8).write_volatile(value) },
        }
    }
}

fn take_away(file: &File, here: &Pages) {
    let mut random = Random(77);
    // The last page of the half is this thread's alone.
    let own = RACE_PAGES / 2 - 1 + 4;
    for round in 0..ROUNDS {
        let page = random.below(RACE_PAGES as usize / 2) as u64;
        match random.below(3) {
            0 => equal("punched", file.punch(page * PAGE, 2 * PAGE), Ok(0)),
            1 => {
                let end = RACE_PAGES / 2 + 4 + random.below(RACE_PAGES as usize / 2 - 4) as u64;
                equal("cut", file.resize(end * PAGE), Ok(0));
                equal("longer", file.resize(RACE_PAGES * PAGE), Ok(0));
            }
            _ => {
                equal("stored", file.write_at(&[200], own * PAGE), Ok(1));
                // SAFETY: mapped, and inside the file.
                let read = || unsafe { ((**here + own * PAGE) as *const u8).read_volatile() };
                equal("seen", read(), 200);
                equal("punched", file.punch(own * PAGE, PAGE), Ok(0));
                equal("gone", (read(), file.byte(own * PAGE)), (0, Some(0)));
            }
        }
        if round % 16 == 0 {
            process::sched_yield();
        }
    }
}
