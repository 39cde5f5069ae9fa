//! The numbers that tag address spaces in the SMMU's TLBs: its own, not the CPUs'.
//!
//! **Rule: a free number is in no TLB.** A number is invalidated before it is given back
//! ([`Smmu::invalidate_asid`](crate::Smmu::invalidate_asid)), when no context has it any more.

/// How many numbers are handed out at most, whatever the SMMU has: one for each device that translates at a time.
const MOST: usize = 1 << 10;

/// The allocator of numbers: 1 up to what the SMMU has, or `MOST`.
#[derive(Debug)]
pub struct Asids {
    /// A bit for each number: set where it is in use.
    used: [u64; MOST / 64],
    /// The first number that is not handed out.
    end: u16,
    /// Where to look first: numbers are not used again soon, so that a missing invalidation is found late, not masked.
    next: u16,
}

impl Asids {
    /// All of `bits` bits but 0, which an empty context would have.
    pub fn new(bits: u8) -> Self {
        let end = (1usize << bits.min(16)).min(MOST) as u16;
        Self { used: [0; MOST / 64], end, next: 1 }
    }

    /// A free number; `None` where there is none left.
    pub fn allocate(&mut self) -> Option<u16> {
        let asid = (self.next..self.end).chain(1..self.next).find(|&asid| !self.is_used(asid))?;
        self.flip(asid);
        self.next = if asid + 1 < self.end { asid + 1 } else { 1 };
        Some(asid)
    }

    /// Gives `asid` back.
    ///
    /// # Panics
    /// Where it is free already.
    pub fn free(&mut self, asid: u16) {
        assert!(self.is_used(asid), "ASID {asid} of the SMMU is given back, and was free");
        self.flip(asid);
    }

    /// Makes a number that is free one that is not, or the other way round.
    fn flip(&mut self, asid: u16) {
        self.used[usize::from(asid) / 64] ^= 1 << (asid % 64);
    }

    /// How many are in use.
    pub fn in_use(&self) -> usize {
        self.used.iter().map(|word| word.count_ones() as usize).sum()
    }

    fn is_used(&self, asid: u16) -> bool {
        asid != 0
            && asid < self.end
            && self.used.get(usize::from(asid) / 64).is_some_and(|word| word >> (asid % 64) & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn each_number_has_one_owner_and_zero_has_none() {
        let mut asids = Asids::new(8);
        let mut all: Vec<u16> = core::iter::from_fn(|| asids.allocate()).collect();
        assert_eq!(asids.in_use(), 255);
        all.sort_unstable();
        assert!(all.iter().copied().eq(1..256));
        asids.free(77);
        asids.free(3);
        assert_eq!([asids.allocate(), asids.allocate(), asids.allocate()], [Some(3), Some(77), None]);
        // The last one that is looked at: the search began after it.
        asids.free(77);
        assert_eq!(asids.allocate(), Some(77));
    }

    #[test]
    fn a_number_comes_back_last() {
        let mut asids = Asids::new(16);
        for round in 1..MOST as u16 {
            assert_eq!(asids.allocate(), Some(round));
            asids.free(round);
        }
        assert_eq!(asids.allocate(), Some(1));
    }

    #[test]
    #[should_panic(expected = "ASID 5 of the SMMU is given back, and was free")]
    fn nothing_is_given_back_twice() {
        let mut asids = Asids::new(8);
        asids.free(5);
    }
}
