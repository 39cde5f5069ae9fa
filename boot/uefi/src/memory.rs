//! Which memory the kernel gets, by the memory map of the firmware, and where in it the kernel lies.
//!
//! Memory is what the kernel may use once boot services have ended and may map as Normal, Write-Back: all else is the
//! firmware's, a device's, or must be mapped in another way (UEFI 7.2.3, `EFI_MEMORY_DESCRIPTOR`).

use core::ops::Range;

use heapless::Vec;
use uefi_raw::table::boot::{MemoryAttribute, MemoryDescriptor, MemoryType};

/// The kernel is placed at a multiple of this, in bytes (Linux, Documentation/arch/arm64/booting.rst).
pub const SLOT: u64 = 2 << 20;
/// Most ranges of memory that the kernel takes; the property `reg` has room for as many.
pub const MAX_BANKS: usize = 32;
/// The end of what the kernel's linear map shows, in bytes.
pub const END_OF_MEMORY: u64 = 1 << 47;
/// Most ranges of a memory map, before those that touch are joined.
const MAX_RANGES: usize = 512;
/// Bytes of a page of UEFI's.
pub const PAGE: u64 = 4096;

/// How wide the numbers of `/memory` `reg` are, in cells of 32 bits: 1 or 2 (Devicetree Specification v0.4, 2.3.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cells {
    /// `#address-cells` of the root.
    pub address: usize,
    /// `#size-cells` of the root.
    pub size: usize,
}

impl Cells {
    /// The end of the memory that an entry can name and the kernel's linear map shows, in bytes.
    #[must_use]
    pub const fn end(self) -> u64 {
        if self.address == 1 { 1 << 32 } else { END_OF_MEMORY }
    }

    /// The most bytes of an entry, a multiple of [`SLOT`].
    const fn largest(self) -> u64 {
        if self.size == 1 { (1 << 32) - SLOT } else { END_OF_MEMORY }
    }
}

/// Ranges of memory, ascending, without overlaps. Two touch only where one entry cannot have the size of both.
#[derive(Clone, Debug, Default)]
pub struct Banks {
    ranges: Vec<Range<u64>, MAX_RANGES>,
    /// Bytes of memory for which there was no room, or that no entry can name.
    pub left_out: u64,
}

impl Banks {
    /// The memory in `map`, in any order, in ranges that entries of `cells` can have. Where there are more than
    /// [`MAX_BANKS`] ranges, those that overlap one of `needed` stay, and the largest of the others. It allocates
    /// nothing, so it may run after boot services have ended.
    pub fn new<'a>(map: impl Iterator<Item = &'a MemoryDescriptor>, needed: &[Range<u64>], cells: Cells) -> Self {
        let mut banks = Self::default();
        for part in map.filter(|part| is_memory(part)) {
            let bytes = part.page_count.saturating_mul(PAGE);
            let range = range_of(part, cells.end()).unwrap_or_default();
            banks.leave_out(bytes - length(&range));
            if !range.is_empty() {
                banks.add(range, needed);
            }
        }
        banks.choose(needed);
        banks.split(cells.largest());
        banks.choose(needed);
        banks
    }

    /// The ranges: [`MAX_BANKS`] at most.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    fn leave_out(&mut self, bytes: u64) {
        self.left_out = self.left_out.saturating_add(bytes);
    }

    /// Adds a range, as one with all that it touches. Where there is no room, the smallest goes that is not needed.
    fn add(&mut self, mut range: Range<u64>, needed: &[Range<u64>]) {
        let at = self.ranges.partition_point(|bank| bank.end < range.start);
        while let Some(bank) = self.ranges.get(at).filter(|bank| bank.start <= range.end) {
            range = bank.start.min(range.start)..bank.end.max(range.end);
            self.ranges.remove(at);
        }
        if self.ranges.is_full() {
            let others = self.ranges.iter().enumerate().filter(|(_, bank)| !is_needed(bank, needed));
            let smallest = others.map(|(index, bank)| (length(bank), index)).min();
            if let Some((bytes, index)) =
                smallest.filter(|(bytes, _)| is_needed(&range, needed) || *bytes < length(&range))
            {
                self.ranges.remove(index);
                self.leave_out(bytes);
            }
        }
        let at = self.ranges.partition_point(|bank| bank.end < range.start);
        if let Err(range) = self.ranges.insert(at, range) {
            self.leave_out(length(&range));
        }
    }

    /// Leaves [`MAX_BANKS`] ranges: the needed, and the largest of the others.
    fn choose(&mut self, needed: &[Range<u64>]) {
        if self.ranges.len() > MAX_BANKS {
            self.ranges.sort_unstable_by_key(|bank| (!is_needed(bank, needed), u64::MAX - length(bank)));
            self.leave_out(self.ranges[MAX_BANKS..].iter().map(length).sum());
            self.ranges.truncate(MAX_BANKS);
            self.ranges.sort_unstable_by_key(|bank| bank.start);
        }
    }

    /// Makes several ranges of each that is longer than `largest`, as far as there is room.
    fn split(&mut self, largest: u64) {
        let mut index = 0;
        while let Some(bank) = self.ranges.get_mut(index) {
            index += 1;
            let rest = bank.start.saturating_add(largest)..bank.end;
            if rest.is_empty() {
                continue;
            }
            bank.end = rest.start;
            if let Err(rest) = self.ranges.insert(index, rest) {
                self.leave_out(length(&rest));
            }
        }
    }
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}

fn is_needed(bank: &Range<u64>, needed: &[Range<u64>]) -> bool {
    needed.iter().any(|part| part.start < bank.end && bank.start < part.end)
}

/// Whether the kernel may use it.
fn is_memory(part: &MemoryDescriptor) -> bool {
    let is_free = matches!(
        part.ty,
        MemoryType::CONVENTIONAL
            | MemoryType::LOADER_CODE
            | MemoryType::LOADER_DATA
            | MemoryType::BOOT_SERVICES_CODE
            | MemoryType::BOOT_SERVICES_DATA
    );
    is_free && is_ordinary(part)
}

/// Whether it is cached as memory is, is not set aside for a purpose of its own, and the firmware needs it no more.
fn is_ordinary(part: &MemoryDescriptor) -> bool {
    part.att.contains(MemoryAttribute::WRITE_BACK)
        && !part.att.intersects(MemoryAttribute::SPECIAL_PURPOSE | MemoryAttribute::RUNTIME)
}

/// The addresses of `part` below `limit`; `None` where there are none.
fn range_of(part: &MemoryDescriptor, limit: u64) -> Option<Range<u64>> {
    let end = part.page_count.saturating_mul(PAGE).saturating_add(part.phys_start).min(limit);
    (part.phys_start < end).then_some(part.phys_start..end)
}

/// Whether descriptors may lie so many bytes apart: each has the fields of a descriptor, and is aligned to 8 bytes.
#[must_use]
pub const fn is_stride(bytes: usize) -> bool {
    bytes >= size_of::<MemoryDescriptor>() && bytes.is_multiple_of(align_of::<MemoryDescriptor>())
}

/// Where an image of `size` bytes may go: each multiple of [`SLOT`] in memory that is free now, below `end`. Ascending
/// without `seed`; else the first is any of all, each with the same probability but for the remainder of the division,
/// and those after it in the map follow. Never address 0.
pub fn places<'a>(
    map: impl Iterator<Item = &'a MemoryDescriptor> + Clone,
    size: u64,
    end: u64,
    seed: Option<u64>,
) -> impl Iterator<Item = u64> {
    let runs = move || {
        let free = map.clone().filter(|part| part.ty == MemoryType::CONVENTIONAL && is_ordinary(part));
        free.filter_map(move |part| range_of(part, end)).filter_map(move |range| {
            let first = range.start.next_multiple_of(SLOT).max(SLOT);
            let last = range.end.checked_sub(size)?;
            (first <= last).then(|| (first, (last - first) / SLOT + 1))
        })
    };
    let count = runs().map(|(_, count)| count).sum();
    let mut lowest = 0;
    (0..count).filter_map(move |index| {
        let Some(seed) = seed else {
            let above = |(first, count)| {
                let next = (lowest + SLOT).max(first);
                (next < first + count * SLOT).then_some(next)
            };
            lowest = runs().filter_map(above).min()?;
            return Some(lowest);
        };
        let mut left = (seed % count + index) % count;
        for (first, count) in runs() {
            if left < count {
                return Some(first + left * SLOT);
            }
            left -= count;
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: Cells = Cells { address: 2, size: 2 };

    fn part(ty: MemoryType, pages: Range<u64>) -> MemoryDescriptor {
        MemoryDescriptor {
            ty,
            phys_start: pages.start * PAGE,
            page_count: pages.end - pages.start,
            att: MemoryAttribute::WRITE_BACK | MemoryAttribute::UNCACHEABLE,
            ..MemoryDescriptor::default()
        }
    }

    fn pages(banks: &Banks) -> std::vec::Vec<(u64, u64)> {
        banks.ranges().iter().map(|bank| (bank.start / PAGE, bank.end / PAGE)).collect()
    }

    #[test]
    fn the_kernels_bounds_are_the_same() {
        assert_eq!(MAX_BANKS, granule::platform::MAX_BANKS);
        assert_eq!(END_OF_MEMORY, granule::mm::layout::LINEAR_SIZE);
    }

    #[test]
    fn what_boot_services_used_is_memory_and_what_runtime_services_use_is_not() {
        let map = [
            part(MemoryType::CONVENTIONAL, 16..32),
            part(MemoryType::RUNTIME_SERVICES_DATA, 32..33),
            part(MemoryType::LOADER_CODE, 33..40),
            part(MemoryType::BOOT_SERVICES_DATA, 40..50),
            part(MemoryType::RUNTIME_SERVICES_CODE, 50..51),
            part(MemoryType::RESERVED, 51..52),
            part(MemoryType::ACPI_NON_VOLATILE, 52..53),
            part(MemoryType::ACPI_RECLAIM, 53..54),
            part(MemoryType::UNUSABLE, 54..55),
            part(MemoryType::MMIO, 55..56),
            part(MemoryType::PERSISTENT_MEMORY, 56..57),
            part(MemoryType::BOOT_SERVICES_CODE, 57..58),
            part(MemoryType::LOADER_DATA, 58..60),
        ];
        assert_eq!(pages(&Banks::new(map.iter(), &[], WIDE)), [(16, 32), (33, 50), (57, 60)]);
        // In any order.
        assert_eq!(pages(&Banks::new(map.iter().rev(), &[], WIDE)), [(16, 32), (33, 50), (57, 60)]);
    }

    #[test]
    fn memory_is_what_may_be_mapped_write_back_and_has_no_other_purpose() {
        for (attributes, is_memory) in [
            (MemoryAttribute::WRITE_BACK, true),
            (MemoryAttribute::WRITE_BACK | MemoryAttribute::EXECUTE_PROTECT, true),
            (MemoryAttribute::UNCACHEABLE | MemoryAttribute::WRITE_COMBINE | MemoryAttribute::WRITE_THROUGH, false),
            (MemoryAttribute::WRITE_BACK | MemoryAttribute::SPECIAL_PURPOSE, false),
            (MemoryAttribute::WRITE_BACK | MemoryAttribute::RUNTIME, false),
        ] {
            let part = MemoryDescriptor { att: attributes, ..part(MemoryType::CONVENTIONAL, 512..1536) };
            assert_eq!(Banks::new([part].iter(), &[], WIDE).ranges().len(), usize::from(is_memory), "{attributes:?}");
            assert_eq!(places([part].iter(), SLOT, END_OF_MEMORY, None).next().is_some(), is_memory, "{attributes:?}");
        }
    }

    #[test]
    fn of_too_many_ranges_the_needed_and_the_largest_stay() {
        let map: std::vec::Vec<_> =
            (0..40).map(|index| part(MemoryType::CONVENTIONAL, index * 100..index * 100 + 10 + index)).collect();
        let needed = [PAGE * 205..PAGE * 206, 0..0];
        let banks = Banks::new(map.iter(), &needed, WIDE);
        let mut expected: std::vec::Vec<_> = (9..40).map(|index| (index * 100, index * 100 + 10 + index)).collect();
        expected.insert(0, (200, 212));
        assert_eq!(pages(&banks), expected);
        let left_out: u64 = (0..9).filter(|index| *index != 2).map(|index| 10 + index).sum();
        assert_eq!(banks.left_out, left_out * PAGE);
        // More than there is room for at all.
        let map: std::vec::Vec<_> =
            (0..600).map(|index| part(MemoryType::CONVENTIONAL, index * 2..index * 2 + 1)).collect();
        let banks = Banks::new(map.iter(), &[], WIDE);
        assert_eq!((banks.ranges().len(), banks.left_out), (MAX_BANKS, (600 - MAX_BANKS as u64) * PAGE));
    }

    #[test]
    fn numbers_that_run_past_the_end_are_cut_off() {
        let end = END_OF_MEMORY / PAGE;
        let mut huge = part(MemoryType::CONVENTIONAL, end - 4..end + 4);
        assert_eq!(pages(&Banks::new([huge].iter(), &[], WIDE)), [(end - 4, end)]);
        huge.page_count = u64::MAX;
        assert_eq!(pages(&Banks::new([huge].iter(), &[], WIDE)), [(end - 4, end)]);
        huge.phys_start = u64::MAX - PAGE + 1;
        assert!(Banks::new([huge].iter(), &[], WIDE).ranges().is_empty());
    }

    #[test]
    fn the_kernel_goes_to_a_slot_that_is_free_and_large_enough() {
        let slot = SLOT / PAGE;
        let map = [
            part(MemoryType::CONVENTIONAL, 0..slot * 2),
            part(MemoryType::BOOT_SERVICES_DATA, slot * 2..slot * 8),
            part(MemoryType::CONVENTIONAL, slot * 9 - 1..slot * 12 + 1),
            part(MemoryType::CONVENTIONAL, slot * 20 + 1..slot * 21),
        ];
        let all = |size, end, seed| -> std::vec::Vec<_> {
            places(map.iter().rev(), size, end, seed).map(|address| address / SLOT).collect()
        };
        let places = |size, seed| all(size, END_OF_MEMORY, seed);
        assert_eq!(places(SLOT, None), [1, 9, 10, 11]);
        assert_eq!(places(SLOT + 1, None), [9, 10, 11]);
        assert!(places(4 * SLOT, None).is_empty() && places(4 * SLOT, Some(5)).is_empty());
        // Each once, whichever is the first: the firmware may refuse it.
        let firsts: std::vec::Vec<_> = (0..5).map(|seed| places(SLOT, Some(seed))[0]).collect();
        assert_eq!(firsts, [9, 10, 11, 1, 9]);
        assert_eq!(places(SLOT, Some(6)), [11, 1, 9, 10]);
        assert_eq!(places(2 * SLOT, Some(u64::MAX)), [10, 9]);
        assert_eq!(all(SLOT, 11 * SLOT, None), [1, 9, 10]);
        assert!(all(SLOT, 11 * SLOT, Some(2)).iter().all(|place| *place < 11));
    }

    #[test]
    fn a_needed_range_stays_in_whatever_order_there_are_too_many() {
        let map: std::vec::Vec<_> =
            (0..600).map(|index| part(MemoryType::CONVENTIONAL, index * 4..index * 4 + 2)).collect();
        let needed = [PAGE..PAGE * 2, 2397 * PAGE..2398 * PAGE];
        for reversed in [false, true] {
            let order = |index: usize| &map[if reversed { 599 - index } else { index }];
            let banks = Banks::new((0..600).map(order), &needed, WIDE);
            let ranges = pages(&banks);
            assert!(ranges.contains(&(0, 2)) && ranges.contains(&(2396, 2398)), "{ranges:?}");
            assert_eq!((ranges.len(), banks.left_out), (MAX_BANKS, (600 - MAX_BANKS as u64) * 2 * PAGE));
        }
        // A larger one is in the place of a smaller.
        let large = part(MemoryType::CONVENTIONAL, 10_000..20_000);
        assert!(pages(&Banks::new(map.iter().chain([&large]), &[], WIDE)).contains(&(10_000, 20_000)));
    }

    #[test]
    fn a_range_is_one_with_all_that_it_overlaps() {
        let map = [0..2, 4..6, 8..10, 20..21, 1..9].map(|pages| part(MemoryType::CONVENTIONAL, pages));
        assert_eq!(pages(&Banks::new(map.iter(), &[], WIDE)), [(0, 10), (20, 21)]);
    }

    /// A BCM2711's root has addresses of two cells and sizes of one.
    #[test]
    fn ranges_have_sizes_and_addresses_that_the_cells_can_have() {
        let gib = (1 << 30) / PAGE;
        let map = [part(MemoryType::CONVENTIONAL, 0..gib), part(MemoryType::CONVENTIONAL, 4 * gib..8 * gib)];
        let cells = |address, size| Banks::new(map.iter(), &[], Cells { address, size });
        let middle = 8 * gib - SLOT / PAGE;
        assert_eq!(pages(&cells(2, 1)), [(0, gib), (4 * gib, middle), (middle, 8 * gib)]);
        assert_eq!((pages(&cells(2, 2)).len(), cells(2, 1).left_out, cells(2, 2).left_out), (2, 0, 0));
        for size in [1, 2] {
            assert_eq!((pages(&cells(1, size)), cells(1, size).left_out), ([(0, gib)].to_vec(), 4 << 30));
        }
        // More entries than there are: the needed one stays.
        let huge = [part(MemoryType::CONVENTIONAL, 0..400 * gib)];
        let needed = [399 * gib * PAGE..399 * gib * PAGE + 1, 0..0];
        let banks = Banks::new(huge.iter(), &needed, Cells { address: 2, size: 1 });
        assert!(banks.ranges().iter().any(|bank| bank.contains(&needed[0].start)), "{banks:?}");
        let kept: u64 = banks.ranges().iter().map(length).sum();
        assert_eq!((banks.ranges().len(), kept + banks.left_out), (MAX_BANKS, 400 << 30));
    }

    #[test]
    fn descriptors_have_their_fields_and_their_alignment() {
        assert_eq!([0, 32, 40, 44, 48, 56].map(is_stride), [false, false, true, false, true, true]);
    }
}
