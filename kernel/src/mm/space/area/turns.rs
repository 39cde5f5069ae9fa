//! Which CPUs change the areas of a part in turn: such a part should be divided.

use granule_arch::addr::VirtAddr;

use crate::smp::CpuId;

/// Which CPUs have changed the areas of a part.
pub(in crate::mm::space) struct Turns {
    last: Turn,
    /// The last of another CPU.
    before: Turn,
    /// Rises with each change by another CPU than the last, and falls with each by the same.
    heat: u32,
    /// The last one's number, where the heat is 0, and no CPU's otherwise.
    quiet: u32,
}

/// A CPU, and where it has changed areas.
#[derive(Clone, Copy)]
struct Turn {
    cpu: CpuId,
    at: VirtAddr,
}

/// By how much a change of another CPU raises [`Turns::heat`], and from where on the part should be divided: two or
/// three of them, with few others in between.
const TURN: u32 = 4;
const HOT: u32 = 8;

impl Turns {
    /// Of a part that begins at `start`, and that no CPU has changed yet.
    pub(super) const fn none(start: VirtAddr) -> Self {
        Self { heat: 0, ..Self::new(Turn { cpu: CpuId(0), at: start }) }
    }

    /// After one turn, of a part that CPUs may be changing in turn: the next one of another CPU shows it.
    const fn new(last: Turn) -> Self {
        Self { last, before: last, heat: HOT - TURN, quiet: u32::MAX }
    }

    /// Those of the parts below and above `at`, into which a part from `start` on is divided.
    pub(super) fn split(&self, start: VirtAddr, at: VirtAddr) -> (Self, Self) {
        let [low, high] = self.by_address();
        let below = Self::new(if low.at < at { low } else { Turn { at: start, ..low } });
        (below, Self::new(if high.at >= at { high } else { Turn { at, ..high } }))
    }

    /// Notes that `cpu` changes them at `at`. Returns whether CPUs do so in turn.
    #[inline(always)]
    pub(in crate::mm::space) fn note(&mut self, cpu: CpuId, at: VirtAddr) -> bool {
        // Nearly always.
        if self.quiet == cpu.0 { false } else { self.note_turn(Turn { cpu, at }) }
    }

    #[cold]
    #[inline(never)]
    fn note_turn(&mut self, turn: Turn) -> bool {
        if self.last.cpu == turn.cpu {
            self.heat = self.heat.saturating_sub(1);
        } else {
            self.before = self.last;
            self.heat = (self.heat + TURN).min(2 * HOT);
        }
        self.last = turn;
        self.quiet = if self.heat == 0 { turn.cpu.0 } else { u32::MAX };
        self.heat >= HOT
    }

    /// Whether CPUs change them in turn, and `cpu` was not the last.
    #[inline(always)]
    pub(in crate::mm::space) fn is_contended(&self, cpu: CpuId) -> bool {
        self.heat + TURN >= HOT && self.last.cpu != cpu
    }

    /// Called where they were divided, or cannot be: a few turns go by before the next attempt.
    pub(in crate::mm::space) fn cool(&mut self) {
        (self.heat, self.quiet) = (HOT - TURN, u32::MAX);
    }

    /// Where the last two CPUs have worked, the lower place first.
    pub(super) fn places(&self) -> [VirtAddr; 2] {
        self.by_address().map(|turn| turn.at)
    }

    /// The lower and the higher one.
    fn by_address(&self) -> [Turn; 2] {
        if self.last.at < self.before.at { [self.last, self.before] } else { [self.before, self.last] }
    }
}
