//! page_table_multiarch's.

use granule::mm::layout;
use granule::smp::this_cpu;
use granule_arch::addr::{PAGE_SIZE, PhysAddr};
use page_table_multiarch::aarch64::A64PageTable;
use page_table_multiarch::{MappingFlags, PagingHandler};

use crate::{MEMORY, table};

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

const READ_WRITE: MappingFlags = MappingFlags::READ.union(MappingFlags::WRITE);
const EXECUTABLE: MappingFlags = MappingFlags::READ.union(MappingFlags::EXECUTE);

/// Tables that map a range by pages.
pub struct Tables {
    tables: A64PageTable<Handler>,
    start: usize,
    size: usize,
}

impl Tables {
    /// Maps `size` bytes at `start`, both multiples of the page, as data that may be written.
    pub fn new(start: usize, size: usize) -> Self {
        let mut tables = A64PageTable::<Handler>::try_new().expect("memory for a table");
        let memory = |address: memory_addr::VirtAddr| (MEMORY + (address.as_usize() - start)).into();
        tables.cursor().map_region(start.into(), memory, size, READ_WRITE, false).expect("tables for the pages");
        Self { tables, start, size }
    }

    /// Makes the range data that may only be read.
    pub fn read_only(&mut self) {
        self.protect(MappingFlags::READ);
    }

    /// Makes the range data that may be written.
    pub fn read_write(&mut self) {
        self.protect(READ_WRITE);
    }

    /// Makes the range code.
    pub fn executable(&mut self) {
        self.protect(EXECUTABLE);
    }

    /// The cursor flushes when it is dropped.
    fn protect(&mut self, flags: MappingFlags) {
        self.tables.cursor().protect_region(self.start.into(), self.size, flags).expect("pages that are mapped");
    }
}
