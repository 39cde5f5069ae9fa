//! Results that are compared with Linux's: all are checked, and each that differs is printed.

use core::fmt::Debug;
use core::sync::atomic::{AtomicU32, Ordering};

use granule_abi::process::exited;

use crate::memory::{PAGE, mincore};
use crate::{probe, process};

static ASKED: AtomicU32 = AtomicU32::new(0);
static WRONG: AtomicU32 = AtomicU32::new(0);

/// Compares an answer with Linux's.
pub fn equal<T: PartialEq + Debug>(question: impl Debug, answer: T, linux: T) {
    ASKED.fetch_add(1, Ordering::Relaxed);
    if answer != linux {
        WRONG.fetch_add(1, Ordering::Relaxed);
        crate::println!("{question:?}: {answer:?}, Linux answers {linux:?}");
    }
}

/// Notes a statement that holds on Linux.
pub fn holds(statement: impl Debug, holds: bool) {
    equal(statement, holds, true);
}

/// 1 if an answer was not Linux's, else 0: for the exit status of a child.
pub fn wrong() -> u8 {
    u8::from(WRONG.load(Ordering::Relaxed) != 0)
}

/// Runs `child` in a copy of this process, and takes over whether an answer was wrong.
///
/// # Panics
/// When there can be no process.
pub fn apart(child: impl FnOnce()) {
    let child = process::spawn(|| {
        child();
        wrong()
    });
    equal("a copy of this process", process::wait(child), exited(0));
}

/// Which of up to 16 pages from `at` on are there, a bit for each.
///
/// # Panics
/// For more pages.
pub fn present(at: u64, pages: usize) -> u32 {
    let mut bytes = [0; 16];
    equal("mincore", mincore(at, &mut bytes[..pages]), Ok(()));
    bytes[..pages].iter().enumerate().map(|(page, byte)| u32::from(byte & 1) << page).sum()
}

/// The first bytes of pages from `at` on; 255 where an access faults.
pub fn bytes<const N: usize>(at: u64) -> [u8; N] {
    core::array::from_fn(|page| probe::read(at + page as u64 * PAGE).unwrap_or(255))
}

/// Prints how many answers were compared; the exit status: 0 if all of them are Linux's.
pub fn status(program: &str) -> u8 {
    let (asked, differ) = (ASKED.load(Ordering::Relaxed), WRONG.load(Ordering::Relaxed));
    crate::println!("{program}: {asked} answers, {differ} of them not Linux's");
    wrong()
}
