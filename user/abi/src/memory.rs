//! mmap and its kin: `linux/mman.h`, `asm-generic/mman*.h`.

/// Pages may be read.
pub const PROT_READ: u64 = 1;
/// Pages may be written.
pub const PROT_WRITE: u64 = 2;
/// Pages may be executed.
pub const PROT_EXEC: u64 = 4;
/// Loads and stores are checked against the tags of the memory (FEAT_MTE).
pub const PROT_MTE: u64 = 0x20;
/// Branches to it end at BTI instructions (arm64).
pub const PROT_BTI: u64 = 0x10;
/// Pages may not be accessed.
pub const PROT_NONE: u64 = 0;

/// Stores are visible to every process that maps it.
pub const MAP_SHARED: u64 = 1;
/// Stores are this mapping's own.
pub const MAP_PRIVATE: u64 = 2;
/// As [`MAP_SHARED`], and unknown flags are refused.
pub const MAP_SHARED_VALIDATE: u64 = 3;
/// Stores are this mapping's own, and the kernel may lose them where memory is short.
pub const MAP_DROPPABLE: u64 = 8;
/// The bits of the flags for the kind of sharing.
pub const MAP_TYPE: u64 = 0xf;
/// At exactly this address, in place of whatever is there.
pub const MAP_FIXED: u64 = 0x10;
/// No file behind it: zeroes.
pub const MAP_ANONYMOUS: u64 = 0x20;
/// A stack (of other architectures).
pub const MAP_GROWSDOWN: u64 = 0x100;
/// Without effect since long ago.
pub const MAP_DENYWRITE: u64 = 0x800;
/// Without effect since long ago.
pub const MAP_EXECUTABLE: u64 = 0x1000;
/// Kept in memory.
pub const MAP_LOCKED: u64 = 0x2000;
/// Not counted against what may be committed.
pub const MAP_NORESERVE: u64 = 0x4000;
/// With all its pages at once.
pub const MAP_POPULATE: u64 = 0x8000;
/// Together with [`MAP_POPULATE`]: without its pages.
pub const MAP_NONBLOCK: u64 = 0x1_0000;
/// It will be a stack.
pub const MAP_STACK: u64 = 0x2_0000;
/// Of large pages.
pub const MAP_HUGETLB: u64 = 0x4_0000;
/// At exactly this address, or not at all.
pub const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;

/// No advice.
pub const MADV_NORMAL: u64 = 0;
/// Accesses in no order.
pub const MADV_RANDOM: u64 = 1;
/// Accesses in order.
pub const MADV_SEQUENTIAL: u64 = 2;
/// Accesses soon.
pub const MADV_WILLNEED: u64 = 3;
/// The pages' contents are given up.
pub const MADV_DONTNEED: u64 = 4;
/// madvise: the contents are given up, now or later, unless a store comes first.
pub const MADV_FREE: u64 = 8;
/// madvise: the pages are not needed soon.
pub const MADV_COLD: u64 = 20;
/// madvise: the pages are not needed for a long time.
pub const MADV_PAGEOUT: u64 = 21;
/// madvise: as `MADV_DONTNEED`, locked pages too.
pub const MADV_DONTNEED_LOCKED: u64 = 24;
/// madvise: makes blocks of 2 MiB of the pages that are there.
pub const MADV_COLLAPSE: u64 = 25;
/// madvise: a child does not have the area.
pub const MADV_DONTFORK: u64 = 10;
/// madvise: bring 2 MiB at once where they can be.
pub const MADV_HUGEPAGE: u64 = 14;
/// madvise: bring pages.
pub const MADV_NOHUGEPAGE: u64 = 15;
/// madvise: a child has the area, as by default.
pub const MADV_DOFORK: u64 = 11;
/// madvise: the area is left out of core dumps.
pub const MADV_DONTDUMP: u64 = 16;
/// madvise: the area is in core dumps, as by default.
pub const MADV_DODUMP: u64 = 17;
/// madvise: the pages are zeros in a child.
pub const MADV_WIPEONFORK: u64 = 18;
/// madvise: the pages are the same in a child, as by default.
pub const MADV_KEEPONFORK: u64 = 19;
/// madvise: as a load from each page.
pub const MADV_POPULATE_READ: u64 = 22;
/// madvise: as a store to each page that changes nothing.
pub const MADV_POPULATE_WRITE: u64 = 23;
/// madvise: the pages go, and an access is SIGSEGV.
pub const MADV_GUARD_INSTALL: u64 = 102;
/// madvise: the pages can be used again.
pub const MADV_GUARD_REMOVE: u64 = 103;
/// madvise: the pages go out of the file, or out of the shared memory.
pub const MADV_REMOVE: u64 = 9;

/// mremap: to other addresses where it has to.
pub const MREMAP_MAYMOVE: u64 = 1;
/// mremap: to exactly these addresses.
pub const MREMAP_FIXED: u64 = 2;
/// mremap: the old addresses stay mapped, without contents.
pub const MREMAP_DONTUNMAP: u64 = 4;

/// mlock2: pages are locked once they are there.
pub const MLOCK_ONFAULT: u32 = 1;
/// mlockall: the areas that are there.
pub const MCL_CURRENT: u32 = 1;
/// mlockall: the areas that come.
pub const MCL_FUTURE: u32 = 2;
/// mlockall: their pages are locked once they are there.
pub const MCL_ONFAULT: u32 = 4;

/// msync: begins to write.
pub const MS_ASYNC: u32 = 1;
/// msync: and other mappings see it.
pub const MS_INVALIDATE: u32 = 2;
/// msync: waits until it is written.
pub const MS_SYNC: u32 = 4;

/// `/proc/PID/pagemap`: a page is there.
pub const PM_PRESENT: u64 = 1 << 63;
/// `/proc/PID/pagemap`: a marker, or a page on its way.
pub const PM_SWAP: u64 = 1 << 62;
/// `/proc/PID/pagemap`: a page of a file or of shared memory.
pub const PM_FILE: u64 = 1 << 61;
/// `/proc/PID/pagemap`: a guard page.
pub const PM_GUARD_REGION: u64 = 1 << 58;
/// `/proc/PID/pagemap`: write-protected by userfaultfd.
pub const PM_UFFD_WP: u64 = 1 << 57;
/// `/proc/PID/pagemap`: a page that is mapped once.
pub const PM_MMAP_EXCLUSIVE: u64 = 1 << 56;
/// `/proc/PID/pagemap`: the bits of a frame's number.
pub const PM_PFRAME: u64 = (1 << 55) - 1;

/// ioctl of `/proc/PID/pagemap`: [`PmScanArg`].
pub const PAGEMAP_SCAN: u32 = 0xc060_6610;
/// [`PmScanArg::flags`]: what is written in regions is write-protected.
pub const PM_SCAN_WP_MATCHING: u64 = 1;
/// [`PmScanArg::flags`]: fails where no userfaultfd permits that.
pub const PM_SCAN_CHECK_WPASYNC: u64 = 2;
/// A category of pages: a userfaultfd with [`UFFD_FEATURE_WP_ASYNC`](crate::userfaultfd::UFFD_FEATURE_WP_ASYNC) has them.
pub const PAGE_IS_WPALLOWED: u64 = 1;
/// A category of pages: not write-protected.
pub const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// A category of pages: of a file or of shared memory.
pub const PAGE_IS_FILE: u64 = 1 << 2;
/// A category of pages: there.
pub const PAGE_IS_PRESENT: u64 = 1 << 3;
/// A category of pages: a marker, or a page on its way.
pub const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// A category of pages: the page of zeros.
pub const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// A category of pages: in a block.
pub const PAGE_IS_HUGE: u64 = 1 << 6;
/// A category of pages: written since that was cleared; no page has it.
pub const PAGE_IS_SOFT_DIRTY: u64 = 1 << 7;
/// A category of pages: guards.
pub const PAGE_IS_GUARD: u64 = 1 << 8;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PmScanArg {
    /// Its own bytes.
    pub size: u64,
    /// `PM_SCAN_`.
    pub flags: u64,
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// Stored by the call: where it has ended.
    pub walk_end: u64,
    /// The address of [`PageRegion`]s.
    pub vec: u64,
    /// Regions that it has room for.
    pub vec_len: u64,
    /// The most pages in them; 0 for no limit.
    pub max_pages: u64,
    /// Categories that count where a page lacks them.
    pub category_inverted: u64,
    /// Pages have all of these.
    pub category_mask: u64,
    /// And one of these, if there are any.
    pub category_anyof_mask: u64,
    /// Categories that regions show.
    pub return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PageRegion {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// `PAGE_IS_`.
    pub categories: u64,
}

/// A policy for nodes: that of the thread, or none.
pub const MPOL_DEFAULT: u32 = 0;
/// From one node, if it has memory.
pub const MPOL_PREFERRED: u32 = 1;
/// From some nodes and no others.
pub const MPOL_BIND: u32 = 2;
/// From each in turn.
pub const MPOL_INTERLEAVE: u32 = 3;
/// From that of the CPU.
pub const MPOL_LOCAL: u32 = 4;
/// From some nodes, if they have memory.
pub const MPOL_PREFERRED_MANY: u32 = 5;
/// From each in turn, by weights.
pub const MPOL_WEIGHTED_INTERLEAVE: u32 = 6;
/// A flag of a mode: pages move to the node that uses them.
pub const MPOL_F_NUMA_BALANCING: u32 = 1 << 13;
/// A flag of a mode: nodes count from the first that the thread may use.
pub const MPOL_F_RELATIVE_NODES: u32 = 1 << 14;
/// A flag of a mode: nodes are what they are.
pub const MPOL_F_STATIC_NODES: u32 = 1 << 15;
/// get_mempolicy: a node and no mode.
pub const MPOL_F_NODE: u64 = 1;
/// get_mempolicy: of an address.
pub const MPOL_F_ADDR: u64 = 2;
/// get_mempolicy: the nodes that the thread may use.
pub const MPOL_F_MEMS_ALLOWED: u64 = 4;
/// mbind: fails where pages are on other nodes.
pub const MPOL_MF_STRICT: u32 = 1;
/// mbind, move_pages: pages move that no other process has.
pub const MPOL_MF_MOVE: u32 = 2;
/// mbind, move_pages: all pages move.
pub const MPOL_MF_MOVE_ALL: u32 = 4;
