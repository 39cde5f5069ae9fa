//! The race of two CPUs over one contiguous group, held at its worst place, and what helps against it.
//!
//! The entries are as they stand in a table, but in no table: nothing here depends on a TLB. CPU A splits the group: it
//! clears the contiguous bit of all entries, in ascending order. Between the load and the store of [`PAGE`]'s entry it
//! stops, until CPU B has made that page read-only, or shows that it will not before A goes on.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use granule::smp::{self, Cpu, CpuId, CpuSet};
use granule_arch::addr::{PAGE_SIZE, PhysAddr};
use granule_arch::descriptor::{Attributes, Descriptor, MemoryType, bits};
use granule_arch::wait;

/// Pages of a group.
const PAGES: usize = 16;
/// B's page.
const PAGE: usize = 9;
/// Yields for which A stops: far more than B takes.
const PATIENCE: u32 = 50;

/// What is done about the race.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Remedy {
    /// Nothing: A reads and writes; B takes the group for split when its first entry is.
    Nothing,
    /// Whoever looks at the group, to split it or to see whether it is split, holds a lock.
    Lock,
    /// Both clear the bit by an atomic, and only where it is set.
    AtomicClear,
    /// B goes on when it has seen every entry clear.
    CheckEvery,
    /// B looks at its own entry again, until the bit is clear there.
    Retry,
}

/// All of them, in the order of the mail.
pub(super) const REMEDIES: [Remedy; 5] =
    [Remedy::Nothing, Remedy::Lock, Remedy::AtomicClear, Remedy::CheckEvery, Remedy::Retry];

/// What came of some races.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Outcome {
    /// The page is writable, although B has made it read-only.
    pub(super) lost: u32,
    /// An entry is not what the two together have made of it: the contiguous bit included.
    pub(super) wrong: u32,
    /// B had to wait.
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
pub(super) fn run(other: CpuId, remedy: Remedy, rounds: u32) -> Result<Outcome, smp::NotIdle> {
    let mut outcome = Outcome::default();
    WAITED.store(0, Ordering::Relaxed);
    ATOMICS.store(0, Ordering::Relaxed);
    for _ in 0..rounds {
        for (page, entry) in ENTRIES.iter().enumerate() {
            entry.store(writable(page).contiguous().0, Ordering::Relaxed);
        }
        CHANGED.store(false, Ordering::Relaxed);
        smp::run_on(other, split, remedy as usize)?;
        change(remedy);
        smp::wait_for(CpuSet::of(other));
        let entries = || ENTRIES.iter().map(|entry| Descriptor(entry.load(Ordering::Relaxed))).enumerate();
        outcome.lost += u32::from(entries().any(|(page, entry)| page == PAGE && entry.is_writable()));
        let right = |page: usize| if page == PAGE { read_only(writable(page)) } else { writable(page) };
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

/// CPU A.
fn split(_: &Cpu, remedy: usize) {
    let remedy = REMEDIES[remedy];
    let locked = remedy == Remedy::Lock && lock();
    for (page, entry) in ENTRIES.iter().enumerate() {
        let read = entry.load(Ordering::Relaxed);
        if read & bits::CONTIGUOUS == 0 {
            continue;
        }
        if page == PAGE {
            stop();
        }
        clear(remedy, entry, read);
    }
    if locked {
        LOCK.store(false, Ordering::Release);
    }
}

/// CPU B. It comes when A is on its way through the group, and wants the group split as well: one of them is first.
fn change(remedy: Remedy) {
    while is_contiguous(&ENTRIES[0]) {
        wait::relax();
    }
    match remedy {
        // "A split is done from the first entry to the last, so the first tells": not if it is still being done.
        Remedy::Nothing => {}
        Remedy::Lock => {
            lock();
            LOCK.store(false, Ordering::Release);
        }
        Remedy::AtomicClear => {
            for entry in ENTRIES.iter().filter(|entry| is_contiguous(entry)) {
                clear(remedy, entry, entry.load(Ordering::Relaxed));
            }
        }
        Remedy::CheckEvery => wait_while(|| ENTRIES.iter().any(is_contiguous)),
        Remedy::Retry => wait_while(|| is_contiguous(&ENTRIES[PAGE])),
    }
    // The change itself is plain with every remedy: from here on the entry is B's alone.
    let entry = &ENTRIES[PAGE];
    entry.store(read_only(Descriptor(entry.load(Ordering::Relaxed))).0, Ordering::Relaxed);
    CHANGED.store(true, Ordering::Release);
}

fn is_contiguous(entry: &AtomicU64) -> bool {
    entry.load(Ordering::Acquire) & bits::CONTIGUOUS != 0
}

/// Clears the bit of an entry that was `read` as it is.
fn clear(remedy: Remedy, entry: &AtomicU64, read: u64) {
    if remedy == Remedy::AtomicClear {
        ATOMICS.fetch_add(1, Ordering::Relaxed);
        entry.fetch_and(!bits::CONTIGUOUS, Ordering::Release);
    } else {
        entry.store(read & !bits::CONTIGUOUS, Ordering::Release);
    }
}

/// The window.
fn stop() {
    for _ in 0..PATIENCE {
        if CHANGED.load(Ordering::Acquire) {
            return;
        }
        wait::relax();
    }
}

fn lock() -> bool {
    wait_while(|| LOCK.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err());
    true
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
