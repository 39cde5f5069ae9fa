//! The linear map: all memory, at one offset, with the largest leaves that its edges allow.
//!
//! It is made once, in two steps. The tables for the bank that holds the kernel's image come from a handful of pages
//! inside the image, because nothing else is mapped yet; all further ones come from that bank, through the part of the
//! map that then exists. Memory is writable and never executable here; the alias of the image's text and constants is
//! read-only, at 4 KiB exactness, so that what is not writable there is not writable here either.

use granule_arch::addr::{PAGE_SIZE, PhysAddr, PhysRange, VirtAddr};
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_pgtable::{Error, Lazy, Mmu, PageRange, PageTables, Shape, Table, TableSource};
use thiserror::Error;

use super::image;
use super::mmu::{ImageView, LinearView, Metal};
use crate::boot_info::BootInfo;
use crate::mm::early::MemoryMap;
use crate::mm::{OutOfMemory, layout};

/// Tables that the image carries. A bank needs at most three a level below the root for its two ends and the image's
/// edges inside it, and one more of level 1 for each 512 GiB that it crosses.
const EARLY_TABLES: usize = 16;

/// Why the linear map could not be made. Nothing can run without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum LinearMapError {
    /// The image does not lie in a bank of memory.
    #[error("the kernel was loaded at {0:?}, which is not memory according to the device tree")]
    ImageOutsideMemory(PhysRange),
    /// No frame for a table.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The page tables refused.
    #[error("linear map: {0}")]
    Tables(#[from] Error),
}

#[repr(C, align(4096))]
struct EarlyTables(core::cell::UnsafeCell<[[u8; PAGE_SIZE]; EARLY_TABLES]>);

// SAFETY: only `linear::map` looks at it, once, on the boot CPU; from then on its pages are tables and nothing else.
unsafe impl Sync for EarlyTables {}

static EARLY_TABLES_IN_IMAGE: EarlyTables = EarlyTables(core::cell::UnsafeCell::new([[0; PAGE_SIZE]; EARLY_TABLES]));

/// Maps all of `memory` and returns nothing but the certainty that it is mapped.
///
/// `no_map` ranges are left out, as the device tree demands.
///
/// # Errors
/// [`LinearMapError`]; some of it may then be mapped already, which is of no use to anyone: the boot ends.
#[inline(never)]
pub fn map(boot: &BootInfo, root: Table, memory: &mut MemoryMap, no_map: &[PhysRange]) -> Result<(), LinearMapError> {
    let image = image::physical_range(boot);
    let home = memory
        .memory()
        .iter()
        .copied()
        .find(|bank| bank.start() <= image.start() && image.end() <= bank.end())
        .ok_or(LinearMapError::ImageOutsideMemory(image))?;

    let early = Metal(ImageView { offset: image::start().0.wrapping_sub(boot.image_start) });
    let mut in_image = ImageSource::new(boot);
    map_bank(&early, root, boot, home, no_map, &mut in_image)?;

    let banks: heapless::Vec<PhysRange, { crate::mm::early::MAX_BANKS }> = memory.memory().iter().copied().collect();
    let mut from_home = BankSource { memory, mapped: home };
    for bank in banks.into_iter().filter(|&bank| bank != home) {
        map_bank(&Metal(LinearView {}), root, boot, bank, no_map, &mut from_home)?;
    }
    Ok(())
}

/// Maps one bank, in pieces between which permission or presence changes.
#[inline(never)]
fn map_bank<M: Mmu<Geometry = granule_pgtable::Granule4K>>(
    mmu: &M,
    root: Table,
    boot: &BootInfo,
    bank: PhysRange,
    no_map: &[PhysRange],
    source: &mut impl TableSource,
) -> Result<(), LinearMapError> {
    let read_only = image::read_only_range(boot);
    let lazy = Lazy::new(mmu);
    let tables = PageTables::new(mmu, root);
    let mut at = bank.start();
    while at < bank.end() {
        let hidden = no_map.iter().find(|range| range.contains(at));
        let edges = no_map.iter().chain(core::iter::once(&read_only)).flat_map(|range| [range.start(), range.end()]);
        let end = edges.filter(|&edge| edge > at).fold(bank.end(), core::cmp::min);
        if hidden.is_none() {
            let attributes = if read_only.contains(at) {
                Attributes::kernel_rodata(MemoryType::NormalTagged)
            } else {
                Attributes::kernel_data(MemoryType::NormalTagged)
            };
            let range = PageRange::new(layout::linear(at), end - at)?;
            tables.map(&lazy, range, at, attributes, Shape::LARGEST_DATA, source)?;
        }
        at = end;
    }
    Ok(())
}

/// The pages in the image, in order. None comes back to be used twice: the error that gives one back ends the boot.
struct ImageSource {
    first: PhysAddr,
    taken: usize,
}

impl ImageSource {
    fn new(boot: &BootInfo) -> Self {
        let first = image::physical(boot, VirtAddr::from_ptr(EARLY_TABLES_IN_IMAGE.0.get()));
        Self { first, taken: 0 }
    }
}

// SAFETY: pages of zeroed data in the image, each given once, which `ImageView` and later the linear map show.
unsafe impl TableSource for ImageSource {
    fn take(&mut self) -> Option<PhysAddr> {
        if self.taken == EARLY_TABLES {
            return None;
        }
        self.taken += 1;
        Some(self.first + ((self.taken - 1) * PAGE_SIZE) as u64)
    }

    fn give_back(&mut self, _table: PhysAddr) {}
}

/// Frames for tables, from what the linear map shows already.
pub(crate) struct BankSource<'a> {
    memory: &'a mut MemoryMap,
    mapped: PhysRange,
}

impl<'a> BankSource<'a> {
    /// Any frame, now that all memory is mapped.
    pub(crate) fn anywhere(memory: &'a mut MemoryMap) -> Self {
        let all = PhysRange::from_size(PhysAddr(0), layout::LINEAR_SIZE).expect("the linear map is smaller than 2^64");
        Self { memory, mapped: all }
    }
}

// SAFETY: the memory map gives each frame once, out of the bank that the linear map shows; it is zeroed here.
unsafe impl TableSource for BankSource<'_> {
    fn take(&mut self) -> Option<PhysAddr> {
        let frame = self.memory.take_within(self.mapped, 1, PAGE_SIZE as u64).ok()?;
        // SAFETY: a whole page, mapped writable by the linear map, and nobody else's.
        unsafe { granule_arch::memory::zero_page(layout::linear(frame)) };
        Some(frame)
    }

    fn give_back(&mut self, _table: PhysAddr) {}
}
