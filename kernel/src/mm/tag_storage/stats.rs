//! The costs of using tag storage: the numbers that the proposal of Linux's tag storage asked for.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{Region, Unreserved};
use crate::sched::replays::Replays;

/// Steps of a histogram: 0, 1, 2 to 3, 4 to 7, ... and all above.
pub(super) const STEPS: usize = 24;

/// A histogram by powers of two.
type Histogram = [AtomicU64; STEPS];

/// Why an attempt did not get storage. A later one for the same fault may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The block is in use, or is too long to be claimed at once, or what lies there did not migrate.
    Occupied,
    /// Another CPU was at work on the block.
    Claimed,
    /// The page lies in tag storage itself.
    IsTagStorage,
    /// The page is on its way to another frame.
    Isolated,
    /// The page, which was to migrate, could not: mostly, something holds it.
    Pinned,
    /// There is no frame whose storage could be reserved.
    OutOfMemory,
}

/// The number of them.
const FAILURES: usize = Failure::OutOfMemory as usize + 1;

impl From<Unreserved> for Failure {
    fn from(error: Unreserved) -> Self {
        match error {
            Unreserved::Occupied => Self::Occupied,
            Unreserved::Claimed => Self::Claimed,
            Unreserved::IsTagStorage => Self::IsTagStorage,
            // Its pages are reserved for one by one.
            Unreserved::Divided => Self::Occupied,
        }
    }
}

#[derive(Default)]
pub(super) struct Counters {
    reservations: AtomicU64,
    releases: AtomicU64,
    claims: AtomicU64,
    returns: AtomicU64,
    lent: AtomicU64,
    migrations: AtomicU64,
    moved_pages: AtomicU64,
    failures: [AtomicU64; FAILURES],
    /// Faults that were served without a replay.
    at_once: AtomicU64,
    replays: Histogram,
    ticks: Histogram,
    instructions: Histogram,
}

/// Numbers so far, and what is there now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TagStorageStats {
    /// Frames of storage.
    pub frames: u64,
    /// Of these, frames of blocks that are reserved for tags.
    pub reserved: u64,
    /// Of these, frames that are lent as memory.
    pub borrowed: u64,
    /// Frames whose tags have storage now.
    pub users: u64,
    /// Pages, or 2 MiB blocks, that got storage.
    pub reservations: u64,
    /// Pages and 2 MiB blocks freed since: a block that was split counts for each of its pages.
    pub releases: u64,
    /// Blocks that were claimed for tags.
    pub claims: u64,
    /// Blocks that were given back.
    pub returns: u64,
    /// Frames that were lent.
    pub lent: u64,
    /// Pages that were migrated out of tag storage.
    pub migrations: u64,
    /// Pages that were migrated because their own storage could not be reserved.
    pub moved_pages: u64,
    /// Failures by [`Failure`].
    pub failures: [u64; FAILURES],
    /// Faults on access that were served, by their replays: in step 0 without, in step n after 2^(n-1) or more.
    pub replays: [u64; STEPS],
    /// As `replays`, by the ticks of CNTVCT_EL0 from the first replay on.
    pub ticks: [u64; STEPS],
    /// As `replays`, by the instructions that the CPU retired in that time, but for those where its PMU does not count
    /// them, or the thread moved to another CPU.
    pub instructions: [u64; STEPS],
}

impl Counters {
    pub(super) fn note(&self, failure: Failure) {
        self.failures[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_reservation(&self) {
        self.reservations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_release(&self) {
        self.releases.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_claim(&self) {
        self.claims.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_return(&self) {
        self.returns.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_lent(&self) {
        self.lent.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_migration(&self) {
        self.migrations.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_moved_page(&self) {
        self.moved_pages.fetch_add(1, Ordering::Relaxed);
    }

    #[inline(always)]
    pub(super) fn note_served(&self, replays: Option<Replays>) {
        match replays {
            None => _ = self.at_once.fetch_add(1, Ordering::Relaxed),
            Some(replays) => self.note_replayed(replays),
        }
    }

    #[cold]
    #[inline(never)]
    fn note_replayed(&self, replays: Replays) {
        self.replays[step(replays.count.into())].fetch_add(1, Ordering::Relaxed);
        self.ticks[step(replays.ticks)].fetch_add(1, Ordering::Relaxed);
        if let Some(instructions) = replays.instructions {
            self.instructions[step(instructions.into())].fetch_add(1, Ordering::Relaxed);
        }
    }

    #[cold]
    #[inline(never)]
    pub(super) fn stats(&self, regions: &[Region]) -> TagStorageStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut stats = TagStorageStats {
            reservations: load(&self.reservations),
            releases: load(&self.releases),
            claims: load(&self.claims),
            returns: load(&self.returns),
            lent: load(&self.lent),
            migrations: load(&self.migrations),
            moved_pages: load(&self.moved_pages),
            ..TagStorageStats::default()
        };
        load_all(&self.failures, &mut stats.failures);
        load_all(&self.replays, &mut stats.replays);
        load_all(&self.ticks, &mut stats.ticks);
        load_all(&self.instructions, &mut stats.instructions);
        let at_once = load(&self.at_once);
        for histogram in [&mut stats.replays, &mut stats.ticks, &mut stats.instructions] {
            histogram[0] += at_once;
        }
        for region in regions {
            stats.frames += region.storage().len() as u64;
            stats.borrowed += region.lent() as u64;
            for users in region.blocks().iter().filter_map(super::BlockUse::users) {
                stats.reserved += region.block_frames() as u64;
                stats.users += u64::from(users);
            }
        }
        stats
    }
}

/// Out of line, and for a slice: a loop, and not a load for each counter.
#[inline(never)]
fn load_all(counters: &[AtomicU64], values: &mut [u64]) {
    for (value, counter) in values.iter_mut().zip(counters) {
        *value = counter.load(Ordering::Relaxed);
    }
}

/// The step of a histogram for `value`.
fn step(value: u64) -> usize {
    ((u64::BITS - value.leading_zeros()) as usize).min(STEPS - 1)
}

/// A line for each number, and one for each histogram.
impl fmt::Display for TagStorageStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "tag storage  {} frames: {} reserved for the tags of {} frames, {} lent",
            self.frames, self.reserved, self.users, self.borrowed
        )?;
        writeln!(
            f,
            "so far       {} reservations ({} freed), {} blocks claimed, {} given back, {} frames lent",
            self.reservations, self.releases, self.claims, self.returns, self.lent
        )?;
        writeln!(
            f,
            "migrations   {} pages out of storage, {} for want of their own storage",
            self.migrations, self.moved_pages
        )?;
        let [occupied, claimed, is_storage, isolated, pinned, memory] = self.failures;
        writeln!(
            f,
            "failures     {occupied} occupied, {claimed} claimed, {is_storage} in storage themselves, {isolated} isolated, \
             {pinned} pinned, {memory} out of memory"
        )?;
        write!(f, "replays      ")?;
        histogram(f, &self.replays)?;
        write!(f, "\nticks        ")?;
        histogram(f, &self.ticks)?;
        write!(f, "\ninstructions ")?;
        histogram(f, &self.instructions)
    }
}

fn histogram(f: &mut fmt::Formatter<'_>, steps: &[u64; STEPS]) -> fmt::Result {
    let mut is_empty = true;
    for (step, count) in steps.iter().enumerate().filter(|&(_, &count)| count != 0) {
        let from = if step == 0 { 0 } else { 1_u64 << (step - 1) };
        write!(f, "{}{from}+: {count}", if is_empty { "" } else { ", " })?;
        is_empty = false;
    }
    if is_empty { write!(f, "none") } else { Ok(()) }
}

impl TagStorageStats {
    /// Writes these numbers as one JSON object.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_json(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let [occupied, claimed, is_tag_storage, isolated, pinned, out_of_memory] = self.failures;
        write!(
            out,
            "{{\"frames\":{},\"reserved\":{},\"borrowed\":{},\"users\":{},\"reservations\":{},\"releases\":{},\
             \"claims\":{},\"returns\":{},\"lent\":{},\"migrations\":{},\"moved_pages\":{},\"failures\":{{\
             \"occupied\":{occupied},\"claimed\":{claimed},\"is_tag_storage\":{is_tag_storage},\
             \"isolated\":{isolated},\"pinned\":{pinned},\"out_of_memory\":{out_of_memory}}},\
             \"replays\":[{}],\"ticks\":[{}],\"instructions\":[{}]}}",
            self.frames,
            self.reserved,
            self.borrowed,
            self.users,
            self.reservations,
            self.releases,
            self.claims,
            self.returns,
            self.lent,
            self.migrations,
            self.moved_pages,
            Elements(&self.replays),
            Elements(&self.ticks),
            Elements(&self.instructions)
        )
    }
}

/// The elements of a list. `Debug` of an array is 3 KiB of code.
struct Elements<'a>(&'a [u64]);

impl fmt::Display for Elements<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(place, element)| {
            let comma = if place == 0 { "" } else { "," };
            write!(f, "{comma}{element}")
        })
    }
}
