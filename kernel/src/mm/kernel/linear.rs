//! The linear map: all memory, at one offset, with the largest leaves that its edges allow, or by pages where single
//! pages will change and no leaf may be split then ([`super::policy`]).
//!
//! It is made once, piece by piece: a piece is memory between edges at which permission or presence changes. The tables
//! for the first two come from a handful of pages inside the image, because nothing else is mapped yet: the one with
//! the image's own tables, and the one with most free memory, as a rule the same. All further tables come from the
//! latter, through the part of the map that then exists, so the number of pieces does not matter. Memory is
//! writable and never executable here; the alias of the image's text and constants is read-only, at 4 KiB exactness, so
//! that what is not writable there is not writable here either.
//!
//! By pages each 2 MiB takes a table, so the handful of pages is soon used up. Then the first two pieces are small: the
//! image's variables, and a [nursery](Nurseries) of free memory whose frames are the tables for a greater one, whose
//! frames are the tables for the rest.

#![allow(unsafe_code, reason = "builds tables in memory that nothing else uses yet")]

use granule_arch::addr::{PAGE, PAGE_SIZE, PhysAddr, PhysRange, VirtAddr};
use granule_arch::descriptor::{Attributes, MemoryType};
use granule_pgtable::metal::{Platform, Trusted};
use granule_pgtable::{
    Error, Execution, Granule4K, Lazy, Leaves, PageRange, PageTables, Shape, Stores, Table, TableSource,
};
use thiserror::Error;

use super::image;
use super::mmu::{LinearView, Metal};
use crate::boot_info::BootInfo;
use crate::mm::early::MemoryMap;
use crate::mm::{OutOfMemory, layout};

/// Tables that the image carries. A piece needs at most two of each of the three levels below the root, for its two
/// ends, and one more of level 1 for each 512 GiB that it crosses. By pages the image's variables take as many, and the
/// first nursery three of level 3 more.
const EARLY_TABLES: usize = 16;
/// Bytes of the first nursery: room for 2,048 tables.
const FIRST_NURSERY: u64 = 8 << 20;
/// Bytes of the second: half of what the tables in the first can map by pages, and room for the tables of a TiB.
const SECOND_NURSERY: u64 = 2 << 30;

/// Through the image's own mapping: only tables that lie in the image. For building the linear map.
#[derive(Clone, Copy, Debug)]
struct ImageView {
    /// Virtual minus physical address of the image; added with wrap-around.
    offset: u64,
}

// SAFETY: the image is mapped for ever; what is not in it ends the boot.
unsafe impl Platform for ImageView {
    type Geometry = Granule4K;

    fn address(&self, table: PhysAddr) -> VirtAddr {
        let address = VirtAddr(table.0.wrapping_add(self.offset));
        assert!(image::contains(address), "an early table lies outside the image");
        address
    }
}

// SAFETY: `linear` makes the one machine of it, and maps by it where nothing is mapped yet.
unsafe impl Trusted for ImageView {}

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

/// The plan of the linear map.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// Memory that the device tree marks `no-map`: left out.
    pub no_map: &'a [PhysRange],
    /// The part of the image that is read-only here.
    pub read_only: PhysRange,
    /// The leaves.
    pub leaves: Leaves,
    /// Memory that is made of pages whatever `leaves` is: single ones of it change in any context.
    pub pages: Option<PhysRange>,
}

/// Free memory whose frames become tables of a map by pages; the first is the end of the second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Nurseries {
    first: PhysRange,
    second: PhysRange,
}

impl Nurseries {
    /// In the largest of the `free` ranges, at its end: there frames for tables are taken first.
    fn choose(free: &[PhysRange]) -> Option<Self> {
        let largest = free.iter().copied().max_by_key(|range| range.size())?;
        let last = |bytes: u64| PhysRange::new(PhysAddr(largest.end().0 - bytes.min(largest.size())), largest.end());
        Some(Self { first: last(FIRST_NURSERY)?, second: last(SECOND_NURSERY)? })
    }

    /// Where pieces are to be cut, so that each nursery is whole pieces.
    fn edges(self) -> [PhysAddr; 3] {
        [self.second.start(), self.first.start(), self.first.end()]
    }
}

/// Maps all of `memory` and returns nothing but the certainty that it is mapped.
///
/// # Errors
/// [`LinearMapError`]; some of it may then be mapped already, which does not matter: the boot ends.
#[inline(never)]
pub fn map(boot: &BootInfo, root: Table, memory: &mut MemoryMap, plan: Plan<'_>) -> Result<(), LinearMapError> {
    let image = image::physical_range(boot);
    let missing = LinearMapError::ImageOutsideMemory(image);
    let home = memory
        .memory()
        .iter()
        .copied()
        .find(|bank| bank.start() <= image.start() && image.end() <= bank.end())
        .ok_or(missing)?;

    let nurseries = match plan.leaves {
        Leaves::Largest => None,
        Leaves::Pages => Some(Nurseries::choose(memory.free()).ok_or(OutOfMemory)?),
    };
    // By pages the piece with the image's tables ends with the image.
    let cuts = nurseries.into_iter().flat_map(|both| both.edges().into_iter().chain([image.end()]));
    let is_hidden = move |at| plan.no_map.iter().any(|range| range.contains(at));
    let shown = |bank: PhysRange| {
        let ranges = plan.no_map.iter().copied().chain([plan.read_only]).chain(plan.pages);
        let edges = ranges.flat_map(|range| [range.start(), range.end()]);
        pieces(bank, edges.chain(cuts.clone())).filter(move |piece| !is_hidden(piece.start()))
    };
    let free_in = |piece: PhysRange| -> u64 { memory.free().iter().map(|free| common(piece, *free)).sum() };
    let tables_in_image = PhysAddr(boot.root_table);
    let first = shown(home).find(|piece| piece.contains(tables_in_image)).ok_or(missing)?;
    let supply = match nurseries {
        None => shown(home).max_by_key(|&piece| free_in(piece)).ok_or(missing)?,
        Some(both) => both.first,
    };

    let early = Metal(ImageView { offset: image::start().0.wrapping_sub(boot.image_start) });
    let mut in_image = ImageSource::new(boot);
    map_piece(&early, root, first, &plan, &mut in_image)?;
    if supply != first {
        map_piece(&early, root, supply, &plan, &mut in_image)?;
    }
    let banks: heapless::Vec<PhysRange, { crate::mm::early::MAX_BANKS }> = memory.memory().iter().copied().collect();
    let mut from_supply = BankSource { memory, mapped: supply };
    let in_second = |piece: &PhysRange| nurseries.is_some_and(|both| both.second.contains(piece.start()));
    let rest = || banks.iter().copied().flat_map(shown).filter(|&piece| piece != first && piece != supply);
    for piece in rest().filter(in_second) {
        map_piece(&Metal(LinearView {}), root, piece, &plan, &mut from_supply)?;
    }
    if let Some(both) = nurseries {
        from_supply.mapped = both.second;
    }
    for piece in rest().filter(|piece| !in_second(piece)) {
        map_piece(&Metal(LinearView {}), root, piece, &plan, &mut from_supply)?;
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
fn map_piece<M: Stores<Geometry = granule_pgtable::Granule4K>>(
    mmu: &M,
    root: Table,
    piece: PhysRange,
    plan: &Plan<'_>,
    source: &mut impl TableSource,
) -> Result<(), LinearMapError> {
    let attributes = if plan.read_only.contains(piece.start()) {
        Attributes::kernel_rodata(MemoryType::NormalTagged)
    } else {
        Attributes::kernel_data(MemoryType::NormalTagged)
    };
    let range = PageRange::new(layout::linear(piece.start()), piece.size())?;
    let lazy = Lazy::new(mmu);
    let is_by_pages = plan.pages.is_some_and(|pages| pages.contains(piece.start()));
    let leaves = if is_by_pages { Leaves::Pages } else { plan.leaves };
    let shape = Shape { leaves, execution: Execution::Forbidden };
    PageTables::new(mmu, root).map(&lazy, range, piece.start(), attributes, shape, source)?;
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

    unsafe fn give_back(&mut self, _table: PhysAddr) {}
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
        let frame = self.memory.take_within(self.mapped, 1, PAGE).ok()?;
        // SAFETY: a whole page, mapped writable by the linear map, with no other owner.
        unsafe { granule_arch::memory::zero_page(layout::linear(frame)) };
        Some(frame)
    }

    unsafe fn give_back(&mut self, _table: PhysAddr) {}
}
