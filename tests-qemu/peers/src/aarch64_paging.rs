//! aarch64-paging's.

#![allow(unsafe_code, reason = "implements a trait whose method frees a table")]

use core::marker::PhantomData;
use core::ptr::NonNull;

use aarch64_paging::Mapping;
use aarch64_paging::descriptor::{El1Attributes, PagingAttributes, PhysicalAddress, UpdatableDescriptor};
use aarch64_paging::paging::{Constraints, El1And0, MemoryRegion, PageTable, Translation, VaRange};
use granule::mm::layout;
use granule::smp::this_cpu;
use granule_arch::addr::{PhysAddr, VirtAddr};

use crate::{MEMORY, table};

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

/// Tables that map a range by pages.
pub struct Tables {
    mapping: Mapping<Frames<El1Attributes>, El1And0>,
    region: MemoryRegion,
}

impl Tables {
    /// Maps `size` bytes at `start`, both multiples of the page, as data that may be written.
    pub fn new(start: usize, size: usize) -> Self {
        let region = MemoryRegion::new(start, start + size);
        let mut mapping = Mapping::with_asid_and_va_range(Frames(PhantomData), 0, 0, El1And0, VaRange::Upper);
        let attributes = El1Attributes::VALID
            | El1Attributes::ATTRIBUTE_INDEX_1
            | El1Attributes::INNER_SHAREABLE
            | El1Attributes::ACCESSED
            | El1Attributes::UXN
            | El1Attributes::PXN;
        let constraints = Constraints::NO_BLOCK_MAPPINGS | Constraints::NO_CONTIGUOUS_HINT;
        mapping.map_range(&region, PhysicalAddress(MEMORY), attributes, constraints).expect("tables for the pages");
        mapping.mark_active();
        Self { mapping, region }
    }

    /// As [`Self::new`], mapped read-only.
    pub fn constant(start: usize, size: usize) -> Self {
        let mut tables = Self::new(start, size);
        tables.read_only();
        tables
    }

    /// Makes the range read-only.
    pub fn read_only(&mut self) {
        self.modify(|_, entry| entry.modify_flags(El1Attributes::READ_ONLY, El1Attributes::empty()));
    }

    /// Makes the range writable.
    pub fn read_write(&mut self) {
        self.modify(|_, entry| entry.modify_flags(El1Attributes::empty(), El1Attributes::READ_ONLY));
    }

    /// Makes the range executable.
    pub fn executable(&mut self) {
        self.modify(|_, entry| entry.modify_flags(El1Attributes::empty(), El1Attributes::PXN));
    }

    /// Makes the range not executable.
    pub fn no_execute(&mut self) {
        self.modify(|_, entry| entry.modify_flags(El1Attributes::PXN, El1Attributes::empty()));
    }

    fn modify(&mut self, edit: impl Fn(&MemoryRegion, &mut UpdatableDescriptor<'_, El1Attributes>) -> Result<(), ()>) {
        self.mapping.modify_range(&self.region, &edit).expect("pages that are mapped");
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        self.mapping.mark_inactive();
    }
}
