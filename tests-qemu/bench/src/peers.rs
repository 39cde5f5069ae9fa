//! The same changes by two other crates, on tables of the same shape in the same boot.
//!
//! Four levels of 4 KiB, the pages of a vmalloc area of that many pages: as many tables are walked and entries written
//! as in [`set_memory`](crate::set_memory). The tables are in no TTBR, which neither crate knows: both take
//! them for live, and issue the barriers and invalidations of a live change. Nothing is mapped at the addresses but
//! what the kernel has there.

#![allow(unsafe_code, reason = "calls functions of the kernel whose contracts the bench keeps")]

use core::marker::PhantomData;
use core::ptr::NonNull;

use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El1Attributes, PagingAttributes, PhysicalAddress, UpdatableDescriptor};
use aarch64_paging::paging::{Constraints, El1And0, MemoryRegion, PageTable, Translation, VaRange};
use granule::mm::layout;
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE_SIZE, PhysAddr, VirtAddr};
use page_table_multiarch::aarch64::A64PageTable;
use page_table_multiarch::{MappingFlags, PagingHandler};

use crate::harness::{Bench, PAGES, bench};
use crate::set_memory::area;

/// What the tables map; it is never read.
const MEMORY: usize = 0x4000_0000;

/// Has `measure` measure a change of every size: it gets the bench, how many pages there are, and the first address.
fn row(bench: &mut Bench<'_>, measure: impl Fn(&mut Bench<'_>, u64, usize)) {
    for pages in PAGES {
        let area = area(pages);
        measure(bench, pages, area.start().0 as usize);
        granule::kernel().space.vfree(this_cpu(), area);
    }
}

fn table() -> PhysAddr {
    granule::kernel().frames.alloc_zeroed(this_cpu()).expect("memory for a table")
}

// ---- aarch64-paging ----------------------------------------------------------------------------------------------

/// Tables are frames, seen through the linear map.
struct Frames<A>(PhantomData<A>);

impl<A: PagingAttributes> Translation<A> for Frames<A> {
    fn allocate_table(&mut self) -> (NonNull<PageTable<A>>, PhysicalAddress) {
        let address = PhysicalAddress(table().0 as usize);
        (self.physical_to_virtual(address), address)
    }

    unsafe fn deallocate_table(&mut self, page_table: NonNull<PageTable<A>>) {
        let frame = PhysAddr(VirtAddr::from_ptr(page_table.as_ptr()) - layout::LINEAR_BASE);
        granule::kernel().frames.free(this_cpu(), frame);
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<A>> {
        NonNull::new(layout::linear(PhysAddr(pa.0 as u64)).as_ptr()).expect("the linear map begins above 0")
    }
}

type Paging = Mapping<Frames<El1Attributes>, El1And0>;

/// Changes that both crates make, as constants, which both compile into their loops.
const READ_ONLY: u8 = 0;
const READ_WRITE: u8 = 1;
const EXECUTABLE: u8 = 2;
const NO_EXECUTE: u8 = 3;

/// Makes the change `EDIT`.
fn modify<const EDIT: u8>(tables: &mut Paging, region: &MemoryRegion) {
    let edit = |_: &MemoryRegion, entry: &mut UpdatableDescriptor<'_, El1Attributes>| {
        let (set, clear) = const {
            match EDIT {
                READ_ONLY => (El1Attributes::READ_ONLY, El1Attributes::empty()),
                READ_WRITE => (El1Attributes::empty(), El1Attributes::READ_ONLY),
                EXECUTABLE => (El1Attributes::empty(), El1Attributes::PXN),
                _ => (El1Attributes::PXN, El1Attributes::empty()),
            }
        };
        entry.modify_flags(set, clear)
    };
    tables.modify_range(region, &edit).expect("pages that are mapped");
}

fn aarch64_paging<const FIRST: u8, const UNDO: u8, const EDIT: u8>(bench: &mut Bench<'_>) {
    row(bench, |bench, pages, start| {
        let region = MemoryRegion::new(start, start + pages as usize * PAGE_SIZE);
        let mut tables = Paging::with_asid_and_va_range(Frames(PhantomData), 0, 0, El1And0, VaRange::Upper);
        let attributes = El1Attributes::VALID
            | El1Attributes::ATTRIBUTE_INDEX_1
            | El1Attributes::INNER_SHAREABLE
            | El1Attributes::ACCESSED
            | El1Attributes::UXN
            | El1Attributes::PXN;
        let memory = PhysicalAddress(MEMORY);
        let constraints = Constraints::NO_BLOCK_MAPPINGS | Constraints::NO_CONTIGUOUS_HINT;
        tables.map_range(&region, memory, attributes, constraints).expect("tables for the pages");
        tables.mark_active();
        modify::<FIRST>(&mut tables, &region);
        let tables = core::cell::RefCell::new(tables);
        bench.point(
            pages,
            || {
                modify::<UNDO>(&mut tables.borrow_mut(), &region);
                tables.borrow_mut()
            },
            |mut tables| modify::<EDIT>(&mut tables, &region),
            drop,
        );
        tables.borrow().mark_inactive();
    });
}

bench!(aarch64_paging_x, "aarch64-paging/set_memory_x", "page");
fn aarch64_paging_x(bench: &mut Bench<'_>) {
    aarch64_paging::<READ_ONLY, NO_EXECUTE, EXECUTABLE>(bench);
}

bench!(aarch64_paging_nx, "aarch64-paging/set_memory_nx", "page");
fn aarch64_paging_nx(bench: &mut Bench<'_>) {
    aarch64_paging::<READ_ONLY, EXECUTABLE, NO_EXECUTE>(bench);
}

bench!(aarch64_paging_ro, "aarch64-paging/set_memory_ro", "page");
fn aarch64_paging_ro(bench: &mut Bench<'_>) {
    aarch64_paging::<READ_WRITE, READ_WRITE, READ_ONLY>(bench);
}

bench!(aarch64_paging_rw, "aarch64-paging/set_memory_rw", "page");
fn aarch64_paging_rw(bench: &mut Bench<'_>) {
    aarch64_paging::<READ_ONLY, READ_ONLY, READ_WRITE>(bench);
}

// ---- page_table_multiarch ----------------------------------------------------------------------------------------

/// Tables are frames, seen through the linear map.
struct Handler;

impl PagingHandler for Handler {
    fn alloc_frames(count: usize, align: usize) -> Option<memory_addr::PhysAddr> {
        assert!(count == 1 && align == PAGE_SIZE, "tables are single frames");
        Some((table().0 as usize).into())
    }

    fn dealloc_frames(frame: memory_addr::PhysAddr, _: usize) {
        granule::kernel().frames.free(this_cpu(), PhysAddr(frame.as_usize() as u64));
    }

    fn phys_to_virt(frame: memory_addr::PhysAddr) -> memory_addr::VirtAddr {
        (layout::linear(PhysAddr(frame.as_usize() as u64)).0 as usize).into()
    }
}

/// Makes the pages read-only, and more by the change that came last.
const fn flags(edit: u8) -> MappingFlags {
    match edit {
        READ_WRITE => MappingFlags::READ.union(MappingFlags::WRITE),
        EXECUTABLE => MappingFlags::READ.union(MappingFlags::EXECUTE),
        _ => MappingFlags::READ,
    }
}

fn protect<const EDIT: u8>(tables: &mut A64PageTable<Handler>, start: usize, size: usize) {
    // The cursor flushes when it is dropped.
    let flags = const { flags(EDIT) };
    tables.cursor().protect_region(start.into(), size, flags).expect("pages that are mapped");
}

fn page_table_multiarch<const UNDO: u8, const EDIT: u8>(bench: &mut Bench<'_>) {
    row(bench, |bench, pages, start| {
        let size = pages as usize * PAGE_SIZE;
        let mut tables = A64PageTable::<Handler>::try_new().expect("memory for a table");
        let memory = |address: memory_addr::VirtAddr| (MEMORY + (address.as_usize() - start)).into();
        tables.cursor().map_region(start.into(), memory, size, flags(UNDO), false).expect("tables for the pages");
        let tables = core::cell::RefCell::new(tables);
        bench.point(
            pages,
            || {
                protect::<UNDO>(&mut tables.borrow_mut(), start, size);
                tables.borrow_mut()
            },
            |mut tables| protect::<EDIT>(&mut tables, start, size),
            drop,
        );
    });
}

bench!(page_table_multiarch_x, "page_table_multiarch/set_memory_x", "page");
fn page_table_multiarch_x(bench: &mut Bench<'_>) {
    page_table_multiarch::<NO_EXECUTE, EXECUTABLE>(bench);
}

bench!(page_table_multiarch_nx, "page_table_multiarch/set_memory_nx", "page");
fn page_table_multiarch_nx(bench: &mut Bench<'_>) {
    page_table_multiarch::<EXECUTABLE, NO_EXECUTE>(bench);
}

bench!(page_table_multiarch_ro, "page_table_multiarch/set_memory_ro", "page");
fn page_table_multiarch_ro(bench: &mut Bench<'_>) {
    page_table_multiarch::<READ_WRITE, READ_ONLY>(bench);
}

bench!(page_table_multiarch_rw, "page_table_multiarch/set_memory_rw", "page");
fn page_table_multiarch_rw(bench: &mut Bench<'_>) {
    page_table_multiarch::<READ_ONLY, READ_WRITE>(bench);
}
