//! The windows of the suite `scale`: operations that the guest marks for QEMU's plugin `tests-qemu/plugin/lines.c`.

/// A window between the markers `hint #96` and `hint #97`; its number is in x0 at the second. `hint #98` adds
/// x1 to the events of the operations of window x0: the operation defines the meaning of an event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum ScaleWindow {
    /// Not counted: what comes later finds filled what this fills.
    WarmUp,
    /// An atomic on a word that the last CPU changed: 1 line, as for each of the next two.
    CheckAtomic,
    /// A load-exclusive and a store-exclusive to such a word.
    CheckExclusive,
    /// A store to a word of this CPU's own, in a line in which the last CPU stored.
    CheckNeighbour,
    /// A load from such a word, and a store to it: 2 lines.
    CheckLoadAndStore,
    /// A load from a word in a line of this CPU's own, and a store to it: no line, as for the next.
    CheckOwn,
    /// A load of a word that all load and none stores to.
    CheckShared,
    /// A write fault of a thread, in an area and a table of its own.
    FaultOwn,
    /// `madvise(MADV_DONTNEED)` of that area, of 16 pages.
    DontneedOwn,
    /// A write fault of a thread, in an area of 256 pages.
    FaultBig,
    /// `mprotect` of 16 pages in an area of its own.
    MprotectOwn,
    /// `mmap` of 16 pages at a place of the thread's own.
    MmapOwn,
    /// A write fault there.
    TouchOwn,
    /// `munmap` of them.
    MunmapOwn,
    /// A write fault of a thread, in an area and a table of all.
    FaultOneArea,
    /// `mmap` of 16 pages where the kernel chooses.
    MmapAny,
    /// A write fault there.
    TouchAny,
    /// `munmap` of them.
    MunmapAny,
    /// A write fault of a process, in an area of 256 pages.
    FaultProcess,
    /// `set_memory_ro` or `set_memory_rw` of 16 pages of the CPU's own.
    SetMemory,
    /// `vmalloc` of 16 pages.
    Vmalloc,
    /// `vfree` of them.
    Vfree,
    /// Unmapping a page of the CPU's own device, with a command and a sync of the SMMU.
    SmmuInvalidate,
    /// `set_memory_valid` of a page of the CPU's own, in the first contiguous group of a block, of which all CPUs
    /// change a page and none has before. As for the next two, an event is a wait for the split lock, or a retry
    /// without it.
    SplitBlock,
    /// `set_memory_valid` of the first page of a contiguous group of the CPU's own, in a block that was split.
    SplitGroup,
    /// `set_memory_valid` of a page of the CPU's own, in one contiguous group that all CPUs share.
    SplitOneGroup,
}

impl ScaleWindow {
    /// By which accesses of a known answer check the count itself: with how many lines that each one moves, among
    /// several CPUs.
    pub const CHECKS: [(Self, u64); 6] = [
        (Self::CheckAtomic, 1),
        (Self::CheckExclusive, 1),
        (Self::CheckNeighbour, 1),
        (Self::CheckLoadAndStore, 2),
        (Self::CheckOwn, 0),
        (Self::CheckShared, 0),
    ];
    /// Rounds that fill what later ones find filled, where nothing else is stated.
    pub const WARM: u32 = 6;
    /// Rounds that count.
    pub const ROUNDS: u32 = 12;
    /// Pages of an area, where nothing else is stated.
    pub const PAGES: u64 = 16;
    /// Pages of a big area.
    pub const BIG: u64 = 256;
}
