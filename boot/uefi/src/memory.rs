//! Which memory the kernel gets, by the memory map of the firmware, and where the kernel lies, in memory and in its own
//! address space.
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

/// Ranges of memory, ascending; no two touch.
#[derive(Clone, Debug, Default)]
pub struct Banks {
    ranges: Vec<Range<u64>, MAX_RANGES>,
    /// Bytes of memory for which there was no room.
    pub left_out: u64,
}

impl Banks {
    /// The memory in `map`, in any order. Where there are more than [`MAX_BANKS`] ranges, those that overlap one of
    /// `needed` stay, and the largest of the others. It allocates nothing, so it may run after boot services have
    /// ended.
    pub fn new<'a>(map: impl Iterator<Item = &'a MemoryDescriptor>, needed: &[Range<u64>]) -> Self {
        let mut banks = Self::default();
        for range in map.filter(|part| is_memory(part)).filter_map(range_of) {
            banks.add(range);
        }
        if banks.ranges.len() > MAX_BANKS {
            let is_needed =
                |bank: &Range<u64>| needed.iter().any(|part| part.start < bank.end && bank.start < part.end);
            banks.ranges.sort_unstable_by_key(|bank| (!is_needed(bank), u64::MAX - (bank.end - bank.start)));
            banks.left_out += banks.ranges[MAX_BANKS..].iter().map(|bank| bank.end - bank.start).sum::<u64>();
            banks.ranges.truncate(MAX_BANKS);
            banks.ranges.sort_unstable_by_key(|bank| bank.start);
        }
        banks
    }

    /// The ranges: [`MAX_BANKS`] at most.
    #[must_use]
    pub fn ranges(&self) -> &[Range<u64>] {
        &self.ranges
    }

    /// Adds a range, as one with those that it touches. Descriptors do not overlap, so each neighbour is one at most.
    fn add(&mut self, range: Range<u64>) {
        let at = self.ranges.partition_point(|bank| bank.end < range.start);
        if let Some(bank) = self.ranges.get_mut(at).filter(|bank| bank.start <= range.end) {
            *bank = bank.start.min(range.start)..bank.end.max(range.end);
            let end = bank.end;
            if let Some(next) = self.ranges.get(at + 1).filter(|next| next.start <= end).cloned() {
                self.ranges[at].end = end.max(next.end);
                self.ranges.remove(at + 1);
            }
        } else if let Err(range) = self.ranges.insert(at, range) {
            self.left_out += range.end - range.start;
        }
    }
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

/// The addresses of `part` that the kernel's linear map shows; `None` where there are none.
fn range_of(part: &MemoryDescriptor) -> Option<Range<u64>> {
    let end = part.page_count.saturating_mul(PAGE).saturating_add(part.phys_start).min(END_OF_MEMORY);
    (part.phys_start < end).then_some(part.phys_start..end)
}

/// Where an image of `size` bytes goes: a multiple of [`SLOT`] in memory that is free now. The lowest without `seed`,
/// else any of all, each with the same probability but for the remainder of the division. Never address 0.
pub fn place<'a>(map: impl Iterator<Item = &'a MemoryDescriptor> + Clone, size: u64, seed: Option<u64>) -> Option<u64> {
    let free = || {
        let free = map.clone().filter(|part| part.ty == MemoryType::CONVENTIONAL && is_ordinary(part));
        free.filter_map(range_of).filter_map(|range| {
            let first = range.start.next_multiple_of(SLOT).max(SLOT);
            let last = range.end.checked_sub(size)?;
            (first <= last).then(|| (first, (last - first) / SLOT + 1))
        })
    };
    let Some(seed) = seed else { return free().map(|(first, _)| first).min() };
    let mut left = seed.checked_rem(free().map(|(_, count)| count).sum())?;
    for (first, count) in free() {
        if left < count {
            return Some(first + left * SLOT);
        }
        left -= count;
    }
    None
}

/// Bytes of the kernel's address space that are the image's.
const WINDOW: u64 = 1 << 30;

/// The distance from where the kernel is linked to where an image of `size` bytes is mapped: a multiple of [`SLOT`]
/// that leaves it in its gigabyte, by `seed`.
#[must_use]
pub fn slide(size: u64, seed: u64) -> u64 {
    let last = WINDOW.saturating_sub(size) / SLOT;
    seed % (last + 1) * SLOT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slide_leaves_the_image_in_its_window() {
        use granule::mm::layout::{FIXMAP_BASE, IMAGE_BASE};
        assert_eq!(FIXMAP_BASE.0 - IMAGE_BASE.0, WINDOW);
        let size = 3 * SLOT - 4096;
        assert_eq!((slide(size, 0), slide(size, 7), slide(size, 509)), (0, 7 * SLOT, 509 * SLOT));
        assert_eq!(slide(size, 510), 0);
        assert!((0..2000).all(|seed| slide(size, seed) + size <= WINDOW));
        assert_eq!(slide(WINDOW + 1, 5), 0);
    }

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
        assert_eq!(pages(&Banks::new(map.iter(), &[])), [(16, 32), (33, 50), (57, 60)]);
        // In any order.
        assert_eq!(pages(&Banks::new(map.iter().rev(), &[])), [(16, 32), (33, 50), (57, 60)]);
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
            assert_eq!(Banks::new([part].iter(), &[]).ranges().len(), usize::from(is_memory), "{attributes:?}");
            assert_eq!(place([part].iter(), SLOT, None).is_some(), is_memory, "{attributes:?}");
        }
    }

    #[test]
    fn of_too_many_ranges_the_needed_and_the_largest_stay() {
        let map: std::vec::Vec<_> =
            (0..40).map(|index| part(MemoryType::CONVENTIONAL, index * 100..index * 100 + 10 + index)).collect();
        let needed = [PAGE * 205..PAGE * 206, 0..0];
        let banks = Banks::new(map.iter(), &needed);
        let mut expected: std::vec::Vec<_> = (9..40).map(|index| (index * 100, index * 100 + 10 + index)).collect();
        expected.insert(0, (200, 212));
        assert_eq!(pages(&banks), expected);
        let left_out: u64 = (0..9).filter(|index| *index != 2).map(|index| 10 + index).sum();
        assert_eq!(banks.left_out, left_out * PAGE);
        // More than there is room for at all.
        let map: std::vec::Vec<_> =
            (0..600).map(|index| part(MemoryType::CONVENTIONAL, index * 2..index * 2 + 1)).collect();
        let banks = Banks::new(map.iter(), &[]);
        assert_eq!((banks.ranges().len(), banks.left_out), (MAX_BANKS, (600 - MAX_BANKS as u64) * PAGE));
    }

    #[test]
    fn numbers_that_run_past_the_end_are_cut_off() {
        let end = END_OF_MEMORY / PAGE;
        let mut huge = part(MemoryType::CONVENTIONAL, end - 4..end + 4);
        assert_eq!(pages(&Banks::new([huge].iter(), &[])), [(end - 4, end)]);
        huge.page_count = u64::MAX;
        assert_eq!(pages(&Banks::new([huge].iter(), &[])), [(end - 4, end)]);
        huge.phys_start = u64::MAX - PAGE + 1;
        assert!(Banks::new([huge].iter(), &[]).ranges().is_empty());
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
        let place = |size, seed| place(map.iter(), size, seed).map(|address| address / SLOT);
        assert_eq!(place(SLOT, None), Some(1));
        assert_eq!(place(SLOT + 1, None), Some(9));
        assert_eq!(place(4 * SLOT, None), None);
        assert_eq!(place(4 * SLOT, Some(5)), None);
        let places: std::vec::Vec<_> = (0..5).map(|seed| place(SLOT, Some(seed)).unwrap()).collect();
        assert_eq!(places, [1, 9, 10, 11, 1]);
        assert_eq!(place(2 * SLOT, Some(u64::MAX)), Some(10));
    }
}
