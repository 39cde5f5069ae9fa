//! The race of two CPUs over one contiguous group, held at its worst place, and what helps against it.
//!
//! The entries are in no table, so nothing here depends on a TLB. Each CPU owns one page of the group: it splits the
//! group, which clears the contiguous bit of every entry, and makes its own entry read-only. CPU A comes first. Between
//! its read of B's entry and its change, A stops until B has changed the entry, or cannot before A continues.
//!
//! `granule-loom` tries the same remedies in every order (`tests/every_order/remedies.rs`), with what is left of each
//! when half of it is forgotten.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::work::{self, NotIdle};
use granule::smp::{Cpu, CpuId, CpuSet};
use granule_arch::addr::{PAGE_SIZE, PhysAddr};
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType, bits};
use granule_arch::wait;

/// Pages of a group.
const PAGES: usize = 16;
/// The pages of A and B.
const PAGE_OF_A: usize = 2;
const PAGE_OF_B: usize = 9;
/// Yields for which A stops: far more than B takes.
const PATIENCE: u32 = 50;

/// A remedy for the race.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Remedy {
    /// Nothing. The first entry decides for the whole group; a bit is cleared by a load and a store.
    Nothing,
    /// A lock around the check of the first entry and the loads and stores.
    Lock,
    /// The bit is cleared by an atomic, in every entry.
    AtomicClear,
    /// Every entry is read, and the bit cleared by an atomic where it is set.
    CheckEvery,
    /// An atomic on the first entry decides which CPU splits, by loads and stores; the other looks until the last is
    /// clear.
    Retry,
}

/// All of them, in the order of the mail.
pub(super) const REMEDIES: [Remedy; 5] =
    [Remedy::Nothing, Remedy::Lock, Remedy::AtomicClear, Remedy::CheckEvery, Remedy::Retry];

/// The races that ended in each way, and their cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Outcome {
    /// A page is writable whose owner has made it read-only.
    pub(super) lost: u32,
    /// Something is not as the two together have made it: a lost page, a contiguous bit.
    pub(super) wrong: u32,
    /// A CPU had to wait for the other.
    pub(super) waited: u32,
    /// Atomic read-modify-writes, both CPUs'.
    pub(super) atomics: u32,
}

static ENTRIES: [AtomicU64; PAGES] = [const { AtomicU64::new(0) }; PAGES];
static LOCK: AtomicBool = AtomicBool::new(false);
static CHANGED: AtomicBool = AtomicBool::new(false);
static WAITED: AtomicU32 = AtomicU32::new(0);
static ATOMICS: AtomicU32 = AtomicU32::new(0);

/// Runs `rounds` races, with A on CPU `other` and B on this one.
pub(super) fn run(other: CpuId, remedy: Remedy, rounds: u32) -> Result<Outcome, NotIdle> {
    let mut outcome = Outcome::default();
    WAITED.store(0, Ordering::Relaxed);
    ATOMICS.store(0, Ordering::Relaxed);
    for _ in 0..rounds {
        for (page, entry) in ENTRIES.iter().enumerate() {
            entry.store(writable(page).contiguous().0, Ordering::Relaxed);
        }
        CHANGED.store(false, Ordering::Relaxed);
        work::run_on(other, a, remedy as usize)?;
        while is_contiguous(&ENTRIES[0]) {
            wait::relax();
        }
        make_read_only(remedy, PAGE_OF_B, || {});
        CHANGED.store(true, Ordering::Release);
        work::wait_for(CpuSet::of(other));
        let entries = || ENTRIES.iter().map(|entry| Descriptor(entry.load(Ordering::Relaxed))).enumerate();
        let is_owned = |page| matches!(page, PAGE_OF_A | PAGE_OF_B);
        let right = |page| if is_owned(page) { read_only(writable(page)) } else { writable(page) };
        outcome.lost += u32::from(entries().any(|(page, entry)| is_owned(page) && entry.is_writable()));
        outcome.wrong += u32::from(entries().any(|(page, entry)| entry != right(page)));
    }
    outcome.waited = WAITED.load(Ordering::Relaxed);
    outcome.atomics = ATOMICS.load(Ordering::Relaxed);
    Ok(outcome)
}

fn writable(page: usize) -> Descriptor {
    Descriptor::page(PhysAddr((page * PAGE_SIZE) as u64), Attributes::kernel_data(MemoryType::Normal))
}

fn read_only(entry: Descriptor) -> Descriptor {
    Descriptor((entry.0 & !bits::WRITE) | bits::RDONLY)
}

/// CPU A's part: makes its page read-only, and stops in between until B has changed its own.
fn a(_: &Cpu, remedy: usize) {
    make_read_only(REMEDIES[remedy], PAGE_OF_A, || {
        for _ in 0..PATIENCE {
            if CHANGED.load(Ordering::Acquire) {
                return;
            }
            wait::relax();
        }
    });
}

/// Splits the group and makes entry `own` read-only; `window` runs before B's entry is cleared and after it was read.
fn make_read_only(remedy: Remedy, own: usize, window: impl Fn()) {
    let is_first_clear = || !is_contiguous(&ENTRIES[0]);
    match remedy {
        // "Entries are cleared from the first to the last, so the first one decides": not while that is under way.
        Remedy::Nothing if is_first_clear() => {}
        Remedy::Nothing => clear_all(|_, entry, read| clear_plainly(entry, read), window),
        Remedy::Lock => {
            wait_while(|| LOCK.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err());
            if !is_first_clear() {
                clear_all(|_, entry, read| clear_plainly(entry, read), window);
            }
            LOCK.store(false, Ordering::Release);
        }
        Remedy::AtomicClear => clear_all(
            |_, entry, _| {
                clear_atomically(entry);
            },
            window,
        ),
        Remedy::CheckEvery => clear_all(
            |_, entry, read| {
                if read & bits::CONTIGUOUS != 0 {
                    clear_atomically(entry);
                }
            },
            window,
        ),
        Remedy::Retry => {
            if clear_atomically(&ENTRIES[0]) & bits::CONTIGUOUS != 0 {
                let but_the_first = |page, entry: &_, read| {
                    if page != 0 {
                        clear_plainly(entry, read)
                    }
                };
                clear_all(but_the_first, window);
            }
            wait_while(|| is_contiguous(&ENTRIES[PAGES - 1]));
        }
    }
    // The change itself is plain with every remedy: from here on the entry is its owner's alone.
    let entry = &ENTRIES[own];
    entry.store(read_only(Descriptor(entry.load(Ordering::Relaxed))).0, Ordering::Relaxed);
}

/// Reads each entry, from the first to the last, and has `clear` deal with it; `window` runs in between at B's.
fn clear_all(clear: impl Fn(usize, &AtomicU64, u64), window: impl Fn()) {
    for (page, entry) in ENTRIES.iter().enumerate() {
        let read = entry.load(Ordering::Relaxed);
        if page == PAGE_OF_B {
            window();
        }
        clear(page, entry, read);
    }
}

fn is_contiguous(entry: &AtomicU64) -> bool {
    entry.load(Ordering::Acquire) & bits::CONTIGUOUS != 0
}

fn clear_plainly(entry: &AtomicU64, read: u64) {
    entry.store(read & !bits::CONTIGUOUS, Ordering::Release);
}

fn clear_atomically(entry: &AtomicU64) -> u64 {
    ATOMICS.fetch_add(1, Ordering::Relaxed);
    entry.fetch_and(!bits::CONTIGUOUS, Ordering::AcqRel)
}

/// Waits, and counts it where it takes more than a look.
fn wait_while(condition: impl Fn() -> bool) {
    let mut waited = false;
    while condition() {
        waited = true;
        wait::relax();
    }
    WAITED.fetch_add(u32::from(waited), Ordering::Relaxed);
}
