//! The shares of a program's limits that parts of its areas have.

use granule_arch::addr::PAGE;

/// The part of a gap that is an arena.
pub(in crate::mm::space) const ARENAS: u64 = 16;

/// The share of its program's limits that a part of the areas may use without asking the others. A part whose share is
/// too small is joined with the others, and all together are held against the limits: a refusal is exact.
#[derive(Clone, Copy)]
pub(in crate::mm::space) struct Grants {
    /// The limits of which parts got a share. Under lower ones the shares mean nothing.
    pub(in crate::mm::space) of: Amounts,
    /// The most that the part may use.
    pub(in crate::mm::space) most: Amounts,
}

/// Bytes of areas.
#[derive(Clone, Copy)]
pub(in crate::mm::space) struct Amounts {
    /// Of all.
    pub(in crate::mm::space) space: u64,
    /// Of those that are data.
    pub(in crate::mm::space) data: u64,
}

/// The share of the higher of two parts in what both do not use: by what they use, and little where they use little, as
/// the lower one may have to be divided for other CPUs. In which order parts are divided matters little then, and a
/// part that had too little gets more when it is divided again.
pub(super) fn share(unused: u64, low: u64, high: u64) -> u64 {
    let (own, all) = (u128::from(high) + 1, u128::from(low) + u128::from(high) + u128::from(ARENAS));
    // Less than `unused`.
    (u128::from(unused) * own / all) as u64
}

impl Amounts {
    const NO_LIMITS: Self = Self { space: u64::MAX, data: u64::MAX };
}

impl Grants {
    /// Of all areas, which have the program's limits.
    pub(super) const ALL: Self = Self { of: Amounts::NO_LIMITS, most: Amounts::NO_LIMITS };

    /// Those of `low` and of `high`, the two parts of these areas: what both do not use is [shared](share).
    pub(super) fn split(self, low: Amounts, high: Amounts) -> (Self, Self) {
        let split = |limit: u64, most: u64, low: u64, high: u64| {
            if limit == u64::MAX {
                return (u64::MAX, u64::MAX);
            }
            // Beyond a limit that was lowered, each asks the others for every byte.
            let Some(unused) = most.checked_sub(low + high) else { return (0, 0) };
            let high = high + share(unused, low / PAGE, high / PAGE);
            (most - high, high)
        };
        let space = split(self.of.space, self.most.space, low.space, high.space);
        let data = split(self.of.data, self.most.data, low.data, high.data);
        let of = |space, data| Self { of: self.of, most: Amounts { space, data } };
        (of(space.0, data.0), of(space.1, data.1))
    }

    /// The most bytes of all its areas, and of those that are data.
    #[cfg(test)]
    pub(in crate::mm::space) const fn most(&self) -> (u64, u64) {
        (self.most.space, self.most.data)
    }

    /// Takes what another part of the same areas has.
    pub(super) fn join(&mut self, other: &Self) {
        self.most.space = self.most.space.saturating_add(other.most.space);
        self.most.data = self.most.data.saturating_add(other.most.data);
    }
}
