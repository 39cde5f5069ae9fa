//! The linear map: all memory, at one offset, with the largest leaves that its edges allow.
//!
//! It is made once, piece by piece: a piece is memory between edges at which permission or presence changes. The tables
//! for the first two come from a handful of pages inside the image, because nothing else is mapped yet: the one with
//! the image's own tables, and the one with most free memory, as a rule the same. All further tables come from the
//! latter, through the part of the map that then exists, so it matters to nobody how many pieces there are. Memory is
//! writable and never executable here; the alias of the image's text and constants is read-only, at 4 KiB exactness, so
//! that what is not writable there is not writable here either.

use granule_arch::addr::{PAGE_SIZE, PhysAddr, PhysRange, VirtAddr};
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_pgtable::{Error, Lazy, Mmu, PageRange, PageTables, Shape, Table, TableSource};
use thiserror::Error;

use super::image;
use super::mmu::{ImageView, LinearView, Metal};
use crate::boot_info::BootInfo;
use crate::mm::early::MemoryMap;
use crate::mm::{OutOfMemory, layout};

/// Tables that the image carries. A piece needs at most two of each of the three levels below the root, for its two
/// ends, and one more of level 1 for each 512 GiB that it crosses.
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
    let missing = LinearMapError::ImageOutsideMemory(image);
    let home = memory
        .memory()
        .iter()
        .copied()
        .find(|bank| bank.start() <= image.start() && image.end() <= bank.end())
        .ok_or(missing)?;

    let read_only = image::read_only_range(boot);
    let is_hidden = move |at| no_map.iter().any(|range| range.contains(at));
    let shown = |bank: PhysRange| {
        let edges = no_map.iter().copied().chain([read_only]).flat_map(|range| [range.start(), range.end()]);
        pieces(bank, edges).filter(move |piece| !is_hidden(piece.start()))
    };
    let free_in = |piece: PhysRange| -> u64 { memory.free().iter().map(|free| common(piece, *free)).sum() };
    let tables_in_image = PhysAddr(boot.root_table);
    let first = shown(home).find(|piece| piece.contains(tables_in_image)).ok_or(missing)?;
    let supply = shown(home).max_by_key(|&piece| free_in(piece)).ok_or(missing)?;

    let early = Metal(ImageView { offset: image::start().0.wrapping_sub(boot.image_start) });
    let mut in_image = ImageSource::new(boot);
    map_piece(&early, root, first, read_only, &mut in_image)?;
    if supply != first {
        map_piece(&early, root, supply, read_only, &mut in_image)?;
    }
    let banks: heapless::Vec<PhysRange, { crate::mm::early::MAX_BANKS }> = memory.memory().iter().copied().collect();
    let mut from_supply = BankSource { memory, mapped: supply };
    for piece in banks.into_iter().flat_map(shown).filter(|&piece| piece != first && piece != supply) {
        map_piece(&Metal(LinearView {}), root, piece, read_only, &mut from_supply)?;
    }
    Ok(())
}

/// Cuts `bank` at the `edges` inside it, which come in any order. Ascending.
fn pieces<E: Iterator<Item = PhysAddr> + Clone>(bank: PhysRange, edges: E) -> impl Iterator<Item = PhysRange> {
    let mut at = bank.start();
    core::iter::from_fn(move || {
        let end = edges.clone().filter(|&edge| edge > at).fold(bank.end(), core::cmp::min);
        let piece = PhysRange::new(at, end).filter(|piece| !piece.is_empty())?;
        at = end;
        Some(piece)
    })
}

/// Bytes that are in both.
fn common(one: PhysRange, other: PhysRange) -> u64 {
    one.end().min(other.end()).0.saturating_sub(one.start().max(other.start()).0)
}

/// Maps memory of one kind: that of the image that nothing may write, or any other.
#[inline(never)]
fn map_piece<M: Mmu<Geometry = granule_pgtable::Granule4K>>(
    mmu: &M,
    root: Table,
    piece: PhysRange,
    read_only: PhysRange,
    source: &mut impl TableSource,
) -> Result<(), LinearMapError> {
    let attributes = if read_only.contains(piece.start()) {
        Attributes::kernel_rodata(MemoryType::NormalTagged)
    } else {
        Attributes::kernel_data(MemoryType::NormalTagged)
    };
    let range = PageRange::new(layout::linear(piece.start()), piece.size())?;
    let lazy = Lazy::new(mmu);
    PageTables::new(mmu, root).map(&lazy, range, piece.start(), attributes, Shape::LARGEST_DATA, source)?;
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
