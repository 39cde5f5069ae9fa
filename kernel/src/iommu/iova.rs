//! The addresses of a device's own tables that are handed out for single transfers: a bit for each page.
//!
//! Transfers are short, so most ask for one page: that is the lowest free bit, found by two looks. A longer one
//! gets bits of one word, or whole words.

use granule_arch::addr::{PAGE_SIZE, PhysAddr, PhysRange, VirtAddr};

use crate::platform::{Pcie, Window, WindowKind};

const BITS: usize = u64::BITS as usize;
const WORDS: usize = 128;
/// Bytes of addresses: 32 MiB.
pub(super) const SIZE: u64 = (WORDS * BITS * PAGE_SIZE) as u64;

/// Where tables of devices have room above 4 GiB as well, whatever the SMMU's geometry: 39 bits.
const ADDRESSES: u64 = 1 << 39;

/// The first of the addresses for single transfers: not where the host bridge has windows, since what a device writes
/// there may never leave its bus; below 4 GiB if there is room, for devices that reach no further. `None` where the windows
/// leave none. Windows that are not known are neither where `memory` is nor where configuration space is: addresses of
/// the bus are those of the CPU then.
pub(super) fn place(host: Option<&Pcie>, memory: &[PhysRange]) -> Option<VirtAddr> {
    let low = (1..(1 << 32) / SIZE).rev();
    let high = (1 << 32) / SIZE..ADDRESSES / SIZE;
    let is_free = |start: u64| {
        let range = PhysRange::from_size(PhysAddr(start), SIZE)?;
        let on_bus = |window: &Window| PhysRange::from_size(PhysAddr(window.bus), window.cpu.size());
        // A window that wraps is everywhere.
        let is_apart = |window: &Window| on_bus(window).is_some_and(|window| !window.overlaps(range));
        let holds = |other: &PhysRange| other.start() <= range.start() && range.end() <= other.end();
        let apart = match host {
            None => true,
            Some(Pcie { windows: Some(windows), .. }) => {
                windows.iter().filter(|window| window.kind != WindowKind::Io).all(is_apart)
            }
            Some(Pcie { windows: None, ecam, .. }) => memory.iter().chain([ecam]).any(holds),
        };
        apart.then_some(VirtAddr(start))
    };
    low.chain(high).find_map(|index| is_free(index * SIZE))
}

/// Which pages of the addresses from `base` on are in use.
pub(super) struct Addresses {
    base: VirtAddr,
    used: [u64; WORDS],
    /// Which words of `used` have no free bit.
    full: [u64; WORDS / BITS],
}

impl Addresses {
    /// None in use.
    pub(super) const fn new(base: VirtAddr) -> Self {
        Self { base, used: [0; WORDS], full: [0; WORDS / BITS] }
    }

    /// Takes the addresses of `pages` pages, at least one, that follow one another; `None` where there are none.
    #[inline(always)]
    pub(super) fn take(&mut self, pages: usize) -> Option<VirtAddr> {
        let first = if pages == 1 { self.take_one() } else { self.take_more(pages) }?;
        Some(self.base + (first * PAGE_SIZE) as u64)
    }

    /// Gives back what [`Self::take`] gave.
    #[inline(always)]
    pub(super) fn give_back(&mut self, start: VirtAddr, pages: usize) {
        let mut page = (start - self.base) as usize / PAGE_SIZE;
        let mut left = pages;
        while left != 0 {
            let (word, bit) = (page / BITS, page % BITS);
            let count = left.min(BITS - bit);
            let mask = ones(count) << bit;
            debug_assert_eq!(self.used[word] & mask, mask, "addresses are given back that are free");
            self.used[word] &= !mask;
            self.full[word / BITS] &= !(1 << (word % BITS));
            (page, left) = (page + count, left - count);
        }
    }

    #[inline(always)]
    fn take_one(&mut self) -> Option<usize> {
        let group = self.full.iter().position(|&full| full != u64::MAX)?;
        let word = group * BITS + self.full[group].trailing_ones() as usize;
        let bit = self.used[word].trailing_ones() as usize;
        self.mark(word, 1 << bit);
        Some(word * BITS + bit)
    }

    #[inline(never)]
    fn take_more(&mut self, pages: usize) -> Option<usize> {
        let words = pages.div_ceil(BITS);
        if words == 1 {
            return (0..WORDS).find_map(|word| {
                let bit = (0..=BITS - pages).find(|bit| self.used[word] & ones(pages) << bit == 0)?;
                self.mark(word, ones(pages) << bit);
                Some(word * BITS + bit)
            });
        }
        let first = (0..(WORDS + 1).checked_sub(words)?)
            .find(|&first| self.used[first..first + words].iter().all(|&used| used == 0))?;
        for word in 0..words {
            self.mark(first + word, ones((pages - word * BITS).min(BITS)));
        }
        Some(first * BITS)
    }

    #[inline(always)]
    fn mark(&mut self, word: usize, mask: u64) {
        self.used[word] |= mask;
        if self.used[word] == u64::MAX {
            self.full[word / BITS] |= 1 << (word % BITS);
        }
    }
}

/// The lowest `count` bits, at least one.
#[inline(always)]
const fn ones(count: usize) -> u64 {
    u64::MAX >> (BITS - count)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use granule_arch::addr::PAGE;
    use proptest::prelude::*;

    use super::*;
    use crate::platform::{IdMap, InterruptLines};

    const BASE: VirtAddr = VirtAddr(0x8000_0000);

    #[test]
    fn transfers_are_in_no_window_of_the_host_bridge() {
        let window = |kind, bus: u64, size: u64| {
            let cpu = PhysRange::from_size(PhysAddr(0), size).unwrap();
            Window { kind, prefetchable: false, bus, cpu }
        };
        let memory = |bus, size| window(WindowKind::Memory64, bus, size);
        let host = |windows: Option<&[Window]>| Pcie {
            ecam: PhysRange::from_size(PhysAddr(0x40_1000_0000), 0x1000_0000).unwrap(),
            buses: (0, 255),
            windows: windows.map(|windows| windows.iter().copied().collect()),
            streams: IdMap::default(),
            devices: IdMap::default(),
            lines: InterruptLines::default(),
            coherent: true,
            dma: heapless::Vec::new(),
        };
        let banks = [PhysRange::from_size(PhysAddr(0x4000_0000), SIZE * 3 + 0x1000).unwrap()];
        let unknown = host(None);
        assert_eq!(super::place(Some(&unknown), &banks), Some(VirtAddr(0x4000_0000 + 2 * SIZE)), "where memory is");
        let far = [PhysRange::from_size(PhysAddr(1 << 40), 1 << 30).unwrap()];
        assert_eq!(super::place(Some(&unknown), &far), Some(VirtAddr(0x40_1000_0000)), "or configuration space");
        let place = |windows: &[Window]| super::place(Some(&host(Some(windows))), &[]);
        assert_eq!(place(&[]), Some(VirtAddr((1 << 32) - SIZE)));
        assert_eq!(place(&[window(WindowKind::Io, 0, 1 << 32)]), Some(VirtAddr((1 << 32) - SIZE)), "ports are apart");
        assert_eq!(place(&[memory(0x1000_0000, (1 << 32) - 0x1000_0000)]), Some(VirtAddr(0x1000_0000 - SIZE)));
        assert_eq!(place(&[memory(0, 1 << 32)]), Some(VirtAddr(1 << 32)), "above, where there is no room below");
        assert_eq!(place(&[memory(0, 1 << 32), memory(1 << 32, SIZE * 3 + 1)]), Some(VirtAddr((1 << 32) + SIZE * 4)));
        assert_eq!(place(&[memory(0, 1 << 39)]), None);
    }

    fn pages(start: VirtAddr, count: usize) -> impl Iterator<Item = u64> {
        (0..count as u64).map(move |page| start.0 + page * PAGE)
    }

    #[test]
    fn all_are_handed_out_one_by_one_and_then_none() {
        let mut addresses = Addresses::new(BASE);
        let all: BTreeSet<u64> = core::iter::from_fn(|| addresses.take(1)).map(|at| at.0).collect();
        assert_eq!(all.len(), WORDS * BITS);
        assert_eq!((all.first(), all.last()), (Some(&BASE.0), Some(&(BASE.0 + SIZE - PAGE))));
        addresses.give_back(VirtAddr(BASE.0 + 0x7000), 1);
        assert_eq!([addresses.take(2), addresses.take(1)], [None, Some(VirtAddr(BASE.0 + 0x7000))]);
    }

    #[test]
    fn as_much_as_there_is_can_be_had_in_one_piece_and_no_more() {
        let mut addresses = Addresses::new(BASE);
        assert_eq!(addresses.take(WORDS * BITS + 1), None);
        assert_eq!(addresses.take(WORDS * BITS), Some(BASE));
        assert_eq!(addresses.take(1), None);
        addresses.give_back(BASE, WORDS * BITS);
        assert_eq!(addresses.take(65), Some(BASE));
    }

    proptest! {
        #[test]
        fn nobody_gets_what_somebody_has(steps in prop::collection::vec((1..200_usize, any::<prop::sample::Index>(), any::<bool>()), 1..200)) {
            let mut addresses = Addresses::new(BASE);
            let (mut taken, mut held) = (BTreeSet::new(), Vec::new());
            for (count, which, give) in steps {
                if give && !held.is_empty() {
                    let (start, count) = held.swap_remove(which.index(held.len()));
                    addresses.give_back(start, count);
                    pages(start, count).for_each(|page| assert!(taken.remove(&page)));
                } else if let Some(start) = addresses.take(count) {
                    prop_assert!(start >= BASE && start.0 + (count * PAGE_SIZE) as u64 <= BASE.0 + SIZE);
                    for page in pages(start, count) {
                        prop_assert!(taken.insert(page), "{:#x} has an owner", page);
                    }
                    held.push((start, count));
                }
            }
            for (start, count) in held {
                addresses.give_back(start, count);
            }
            prop_assert_eq!((addresses.used, addresses.full), ([0; WORDS], [0; WORDS / BITS]));
        }
    }
}
