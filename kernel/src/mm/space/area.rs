//! Which addresses of a space are mapped, from which memory, and with which protection.
//!
//! Areas are nodes of an intrusive tree by address. A second tree has the same nodes by the free addresses below each,
//! so that a mapping finds the smallest gap that is large enough without visiting the others. Nodes are allocated
//! before a change begins ([`Spares`]); after that nothing here can fail.
//!
//! ```text
//!         window.start        SEARCH_START                                     window.end
//!         │ by request only   │ where the kernel chooses                        │
//!         ├───────┬──────┬────┼──────────────────┬──────┬────────┬─────────┬────┤
//!         │       │ area │    │    gap of B      │  B   │ gap of │   C     │    │
//! ```
//! Two areas that touch and are alike are one: [`Areas::merge`] is called wherever a change may have made them so.
//!
//! Where CPUs change areas in turn, their [part](super::parts) is [divided](divide) between them.

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

mod divide;

use core::cell::Cell;
use core::mem::MaybeUninit;
use core::ops::Range;
use core::ptr::{self, NonNull};

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::{Attributes, MemoryType, Protection};
use granule_pgtable::PageRange;
use intrusive_collections::rbtree::{Cursor, CursorMut};
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};

pub(super) use divide::ARENAS;
use divide::Turns;

use super::calls::{STACK_GUARD, Sharing};
use super::error::{Refusal, SpaceError};
use super::gather::pages;
use super::limits::Grants;
use super::parts::Divisible;
use super::shmem::{Mappers, Object};
use super::userfault::UserfaultfdNumber;
use super::{PAGE, Space};
use crate::mm::OutOfMemory;
use crate::mm::counted::Counted;
use crate::mm::frame::FrameAllocator;
use crate::mm::pool::{CpuPools, Pool, PoolBox};
use crate::sched::relax;
use crate::smp::Cpu;

/// The kernel chooses no address below this one: programs are linked there, and null pointers with an offset point
/// there.
pub(super) const SEARCH_START: VirtAddr = VirtAddr(1 << 32);

/// The protections that registers never have.
const OF_MEMORY: Protection = Protection::EXECUTE.and(Protection::TAGGED);

/// One area: the pages from `start` to `end`, all alike.
///
/// Readers hold the space's lock for reading. The `Cell`s change only under the lock for writing.
pub struct Area {
    by_address: RBTreeLink,
    by_gap: RBTreeLink,
    start: Cell<VirtAddr>,
    end: Cell<VirtAddr>,
    /// Free bytes below that the kernel may choose. The area is in the tree of gaps unless this is 0.
    gap: Cell<u64>,
    /// Free bytes below that the kernel does not choose: room for a stack to grow, and its guard. 0 for an area that is
    /// no stack.
    guard: Cell<u64>,
    flags: Cell<AreaFlags>,
    protection: Cell<Protection>,
    /// Of which object its pages are. Pages of none are zeros at first.
    mapping: Option<PoolBox<Mapping>>,
}

/// Properties of an area beside its protection and its object: flags, and above them the number of the userfaultfd
/// that it is registered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AreaFlags(u32);

impl AreaFlags {
    /// It must fit in memory to be writable.
    const RESERVED: Self = Self(1);
    /// Every area of its object sees what is stored to it.
    pub(super) const SHARED: Self = Self(1 << 1);
    /// A child does not have it (Linux: `VM_DONTCOPY`).
    pub(super) const NOT_IN_CHILDREN: Self = Self(1 << 2);
    /// Its pages are zeros in a child (Linux: `VM_WIPEONFORK`).
    pub(super) const ZEROS_IN_CHILDREN: Self = Self(1 << 3);
    /// Its pages are not given up (Linux: `VM_LOCKED`). A child's may be.
    pub(super) const LOCKED: Self = Self(1 << 4);
    /// They are brought by their first access (Linux: `VM_LOCKONFAULT`).
    pub(super) const LOCKED_ON_FAULT: Self = Self(1 << 5);
    /// Blocks are wanted (Linux: `VM_HUGEPAGE`).
    pub(super) const BLOCKS: Self = Self(1 << 6);
    /// Blocks are not wanted, which is the same here as nothing (Linux: `VM_NOHUGEPAGE`).
    pub(super) const NO_BLOCKS: Self = Self(1 << 7);
    /// Its page is [registers](super::device), and no memory.
    pub(super) const REGISTERS: Self = Self(1 << 8);
    /// The first access of a page that is missing asks a pager (Linux: `VM_UFFD_MISSING`).
    pub(super) const UFFD_MISSING: Self = Self(1 << 9);
    /// So does a store to a page that is write-protected (Linux: `VM_UFFD_WP`).
    pub(super) const UFFD_WP: Self = Self(1 << 10);
    /// It is registered with a userfaultfd.
    pub(super) const REGISTERED: Self = Self::UFFD_MISSING.with(Self::UFFD_WP);
    /// Advice does not take its pages away.
    pub(super) const KEPT: Self = Self::LOCKED.with(Self::REGISTERS);
    /// All that says how pages are locked.
    pub(super) const LOCKING: Self = Self::LOCKED.with(Self::LOCKED_ON_FAULT);
    /// Nothing.
    pub(super) const NONE: Self = Self(0);

    /// These and `others`.
    pub(super) const fn with(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    /// These but `others`.
    pub(super) const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    const fn when(self, condition: bool) -> Self {
        if condition { self } else { Self(0) }
    }

    /// The attributes of the pages of such an area, which are `of_memory` where they are no registers.
    #[inline(always)]
    pub(super) const fn attributes(self, of_memory: Attributes) -> Attributes {
        if self.has_any(Self::REGISTERS) { of_memory.of_memory(MemoryType::DeviceNGnRE) } else { of_memory }
    }

    /// Whether it has one of `others`.
    pub(super) const fn has_any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }

    /// With which userfaultfd of its space it is [registered](Self::REGISTERED).
    pub(super) const fn userfaultfd(self) -> UserfaultfdNumber {
        UserfaultfdNumber((self.0 >> Self::NUMBER) as u16)
    }

    /// These flags, registered with userfaultfd `number`, by `modes` of [`Self::REGISTERED`].
    pub(super) const fn registered(self, number: UserfaultfdNumber, modes: Self) -> Self {
        Self(self.unregistered().0 | modes.0 | (number.0 as u32) << Self::NUMBER)
    }

    /// These flags, registered with no userfaultfd.
    pub(super) const fn unregistered(self) -> Self {
        Self(self.without(Self::REGISTERED).0 & ((1 << Self::NUMBER) - 1))
    }

    /// Above the flags.
    const NUMBER: u32 = 16;
}

// SAFETY: what it points to is used under the lock of the tree that it is in, and lives while it is in it.
unsafe impl Send for Mapping {}

/// The pages of an object that an area maps, and how it maps them.
pub(super) struct Mapping {
    object: Counted<Object>,
    /// The space that the area is in.
    space: NonNull<Space>,
    /// The page of the object that the area begins with.
    first_page: Cell<u64>,
    sharing: Sharing,
    /// Whether a change of protection may make it writable (Linux: `VM_MAYWRITE`).
    may_write: bool,
    /// In the tree of the object's [`Mappers`].
    pub(super) by_page: RBTreeLink,
    /// The area, while it is in that tree.
    pub(super) area: Cell<*const Area>,
}

impl Mapping {
    /// Of `object` in `space`; `None` where `object` must not be written and this would.
    pub(super) fn new(
        object: Counted<Object>,
        first_page: u64,
        space: &Space,
        sharing: Sharing,
        may_write: bool,
    ) -> Option<Self> {
        let is_writer = sharing == Sharing::Shared && may_write;
        let is_possible = !is_writer || object.begin_writer();
        is_possible.then(|| Self::of(object, first_page, space.into(), sharing, may_write))
    }

    const fn of(
        object: Counted<Object>,
        first_page: u64,
        space: NonNull<Space>,
        sharing: Sharing,
        may_write: bool,
    ) -> Self {
        let (by_page, area) = (RBTreeLink::new(), Cell::new(ptr::null()));
        Self { object, space, first_page: Cell::new(first_page), sharing, may_write, by_page, area }
    }

    /// The first page of the object that the area has.
    pub(super) fn first_page(&self) -> u64 {
        self.first_page.get()
    }

    /// The space that the area is in.
    pub(super) const fn space(&self) -> NonNull<Space> {
        self.space
    }

    fn is_writer(&self) -> bool {
        self.sharing == Sharing::Shared && self.may_write
    }

    /// This mapping from `first_page` of the object on, for an area of `space`.
    #[inline(never)]
    fn copy(&self, first_page: u64, space: NonNull<Space>) -> Self {
        if self.is_writer() {
            let begun = self.object.begin_writer();
            debug_assert!(begun, "this is a writer, so there may be others");
        }
        Self::of(self.object.clone(), first_page, space, self.sharing, self.may_write)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.is_writer() {
            self.object.end_writer();
        }
    }
}

impl Area {
    /// An area in no space, for tests of code that shows areas.
    #[cfg(not(target_os = "none"))]
    pub fn sample(range: PageRange, protection: Protection) -> Self {
        Self::new(range, protection, None)
    }

    /// An area of `range`, in no tree, of anonymous memory or of `mapping`.
    pub(super) fn new(range: PageRange, protection: Protection, mapping: Option<PoolBox<Mapping>>) -> Self {
        let is_shared = mapping.as_ref().is_some_and(|mapping| mapping.sharing == Sharing::Shared);
        let flags = AreaFlags::RESERVED.with(AreaFlags::SHARED.when(is_shared));
        Self::of(range.start(), range.end(), protection, 0, flags, mapping)
    }

    /// This area, with `bytes` free bytes below that the kernel does not choose.
    pub(super) fn guarded(self, bytes: u64) -> Self {
        Self { guard: Cell::new(bytes), ..self }
    }

    /// This area; unless `reserved`, it may be larger than all memory.
    pub(super) fn reserved(self, reserved: bool) -> Self {
        let others = self.flags().without(AreaFlags::RESERVED);
        Self { flags: Cell::new(others.with(AreaFlags::RESERVED.when(reserved))), ..self }
    }

    /// Registers it with no userfaultfd, before it is inserted.
    pub(super) fn unregister(&mut self) {
        self.flags.set(self.flags().unregistered());
    }

    /// Gives it `more` flags, before it is inserted.
    pub(super) fn add_flags(&mut self, more: AreaFlags) {
        self.flags.set(self.flags().with(more));
    }

    /// A copy of its part from `start` to `end`, with `mapping`.
    #[inline(always)]
    fn piece(&self, start: VirtAddr, end: VirtAddr, mapping: Option<PoolBox<Mapping>>) -> Self {
        Self::of(start, end, self.protection(), self.guard_from(start), self.flags(), mapping)
    }

    /// The [guard](Self::guard) of its part from `start` on. The room below a program's stack ends where it did, as Linux's
    /// `mmap_base` does; below any other area that grows, [`STACK_GUARD`] stays free wherever it begins.
    fn guard_from(&self, start: VirtAddr) -> u64 {
        let guard = self.guard.get();
        if guard > STACK_GUARD { guard.wrapping_add(start.0).wrapping_sub(self.start().0) } else { guard }
    }

    #[inline(always)]
    const fn of(
        start: VirtAddr,
        end: VirtAddr,
        protection: Protection,
        guard: u64,
        flags: AreaFlags,
        mapping: Option<PoolBox<Mapping>>,
    ) -> Self {
        Self {
            by_address: RBTreeLink::new(),
            by_gap: RBTreeLink::new(),
            start: Cell::new(start),
            end: Cell::new(end),
            gap: Cell::new(0),
            guard: Cell::new(guard),
            flags: Cell::new(flags),
            protection: Cell::new(protection),
            mapping,
        }
    }

    /// First address.
    #[inline(always)]
    pub fn start(&self) -> VirtAddr {
        self.start.get()
    }

    /// The address behind its last.
    #[inline(always)]
    pub fn end(&self) -> VirtAddr {
        self.end.get()
    }

    /// Bytes in it.
    pub fn size(&self) -> u64 {
        self.end() - self.start()
    }

    /// The lowest address that the heap may not reach: below the start of a stack by its guard.
    pub(super) fn guarded_start(&self) -> VirtAddr {
        let guard = if self.guard.get() == 0 { 0 } else { STACK_GUARD };
        VirtAddr(self.start().0.saturating_sub(guard))
    }

    /// The highest border below it: what may become part of the area, or must stay free below it, is not divided from it.
    fn highest_border(&self) -> VirtAddr {
        VirtAddr(self.start().0.saturating_sub(self.guard.get())).min(self.guarded_start())
    }

    /// Its pages.
    #[inline]
    pub fn range(&self) -> PageRange {
        PageRange::new(self.start(), self.size()).expect("an area is made of whole pages of the lower half")
    }

    /// Its pages in `range`, which it touches.
    #[inline(always)]
    pub(super) fn part_in(&self, range: PageRange) -> PageRange {
        pages(self.start().max(range.start()), self.end().min(range.end()))
    }

    /// How many ends of `range` lie strictly inside it.
    #[inline(always)]
    pub(super) fn cuts(&self, range: PageRange) -> usize {
        usize::from(self.start() < range.start()) + usize::from(range.end() < self.end())
    }

    /// The protection of its pages.
    #[inline(always)]
    pub fn protection(&self) -> Protection {
        self.protection.get()
    }

    /// The protection after a change to `protection`: no change takes the tags away (Linux: `VM_MTE`).
    #[inline(always)]
    pub(super) fn changed_to(&self, protection: Protection) -> Protection {
        protection.and(self.protection().common(Protection::TAGGED))
    }

    /// The object that its pages are of. Those of a private area are, until they are written, pages of the object;
    /// anonymous memory has none.
    #[inline(always)]
    pub fn object(&self) -> Option<&Object> {
        Some(&*self.mapping.as_ref()?.object)
    }

    /// As [`Self::object`], counted, for a caller that keeps it.
    pub(super) fn counted_object(&self) -> Option<Counted<Object>> {
        Some(self.mapping.as_ref()?.object.clone())
    }

    /// Whether every area of its object sees what is stored to it.
    #[inline(always)]
    pub fn is_shared(&self) -> bool {
        self.flags().has_any(AreaFlags::SHARED)
    }

    /// The flags, and the number of the userfaultfd.
    #[inline(always)]
    pub(super) fn flags(&self) -> AreaFlags {
        self.flags.get()
    }

    /// Whether it is writable, or a change of protection may make it so.
    #[inline(always)]
    pub(super) fn may_write(&self) -> bool {
        self.mapping.as_ref().is_none_or(|mapping| mapping.may_write)
    }

    /// Whether it may have `protection` ever (Linux: `VM_MAYWRITE`, `VM_MAYEXEC`, `VM_MTE_ALLOWED`).
    #[inline(always)]
    pub(super) fn may_have(&self, protection: Protection) -> bool {
        self.mapping.as_ref().is_none_or(|mapping| {
            let is_memory = !self.flags().has_any(AreaFlags::REGISTERS);
            (mapping.may_write || !protection.contains(Protection::WRITE))
                && (is_memory || protection.common(OF_MEMORY) == Protection::NONE)
        })
    }

    /// How many pages it has.
    pub(super) fn pages(&self) -> u64 {
        self.size() / PAGE
    }

    /// Has `change` change its place, with the reverse map of its object, which is not walked meanwhile.
    #[inline(always)]
    fn change_place(&self, change: impl FnOnce(Option<(&mut Mappers, &Mapping)>)) {
        match &self.mapping {
            None => change(None),
            Some(mapping) => mapping.object.change_mappers(|mappers| change(Some((mappers, mapping)))),
        }
    }

    /// Whether an access below it extends it.
    pub(super) fn grows(&self) -> bool {
        self.guard.get() != 0
    }

    /// See [`Self::reserved`].
    pub(super) fn is_reserved(&self) -> bool {
        self.flags().has_any(AreaFlags::RESERVED)
    }

    /// Bytes of it that count as data: private and writable, stacks excepted.
    #[inline(always)]
    pub(super) fn data(&self) -> u64 {
        if self.protection().contains(Protection::WRITE) { self.data_if_written() } else { 0 }
    }

    /// Bytes of it that count as data once it is writable.
    #[inline(always)]
    fn data_if_written(&self) -> u64 {
        if self.is_shared() || self.grows() { 0 } else { self.size() }
    }

    /// The page of its object at `address`. Without meaning in anonymous memory.
    #[inline(always)]
    pub fn page_at(&self, address: VirtAddr) -> u64 {
        self.mapping.as_ref().map_or(0, |mapping| mapping.first_page()) + (address - self.start()) / PAGE
    }

    /// Whether `next` begins where this one ends, and is alike in everything.
    #[inline(always)]
    fn continues_in(&self, next: &Self) -> bool {
        // The most frequent difference first.
        self.protection() == next.protection() && self.end() == next.start() && self.is_like(next)
    }

    /// Whether `next`, which begins where this one ends, continues its object, and differs at most in its protection.
    #[inline(never)]
    fn is_like(&self, next: &Self) -> bool {
        let same_object = match (&self.mapping, &next.mapping) {
            (None, None) => true,
            (Some(mapping), Some(other)) => {
                mapping.may_write == other.may_write
                    && mapping.object.is(&other.object)
                    && self.page_at(self.end()) == other.first_page()
            }
            _ => false,
        };
        self.grows() == next.grows() && self.flags() == next.flags() && same_object
    }
}

mod adapters {
    #![allow(missing_docs, reason = "the macro writes items that take no comment")]
    use super::{Area, RBTreeLink, UnsafeRef, intrusive_adapter};
    intrusive_adapter!(pub ByAddress = UnsafeRef<Area>: Area { by_address => RBTreeLink });
    intrusive_adapter!(pub ByGap = UnsafeRef<Area>: Area { by_gap => RBTreeLink });
}
use adapters::{ByAddress, ByGap};

impl<'a> KeyAdapter<'a> for ByAddress {
    type Key = u64;
    fn get_key(&self, area: &'a Area) -> u64 {
        area.start().0
    }
}

impl<'a> KeyAdapter<'a> for ByGap {
    /// By size; gaps of one size by address.
    type Key = (u64, u64);
    fn get_key(&self, area: &'a Area) -> (u64, u64) {
        (area.gap.get(), area.start().0)
    }
}

/// The most areas of one space, as on Linux (`vm.max_map_count`).
pub(super) const MOST: usize = 65_530;

/// Room for nodes that was allocated before a change begins, for the areas that it adds.
pub(super) struct Spares {
    areas: [Option<PoolBox<MaybeUninit<Area>>>; 2],
    /// For those that are parts of areas with objects.
    mappings: [Option<PoolBox<MaybeUninit<Mapping>>>; 2],
}

/// Where areas come from.
pub(super) struct AreaPools {
    areas: CpuPools<Area>,
    mappings: Pool<Mapping>,
}

impl AreaPools {
    pub(super) fn new(cpu: &Cpu, frames: &'static FrameAllocator) -> Result<Self, OutOfMemory> {
        Ok(Self { areas: CpuPools::new(cpu, frames)?, mappings: Pool::new(frames) })
    }

    /// Areas in use.
    pub(super) fn objects(&self) -> usize {
        self.areas.objects()
    }

    /// Frames that the pools have.
    pub(super) fn frames(&self) -> usize {
        self.areas.frames() + self.mappings.stats().frames
    }

    /// The pool from which `cpu` takes areas.
    #[cfg(test)]
    pub(super) fn of(&self, cpu: &Cpu) -> &'static Pool<Area> {
        self.areas.of(cpu)
    }

    /// Room for what an area has of an object.
    pub(super) fn new_mapping(&'static self, mapping: Mapping) -> Result<PoolBox<Mapping>, OutOfMemory> {
        self.mappings.try_new(mapping)
    }
}

impl Spares {
    /// Takes `count` nodes, at most two; for parts of areas that have objects, if `have_objects`.
    ///
    /// # Errors
    /// [`OutOfMemory`]; no node stays allocated.
    #[inline]
    pub(super) fn take(
        cpu: &Cpu,
        source: &'static AreaPools,
        count: usize,
        have_objects: bool,
    ) -> Result<Self, OutOfMemory> {
        if count == 0 { Ok(Self::NONE) } else { Self::take_some(cpu, source, count, have_objects) }
    }

    const NONE: Self = Self { areas: [const { None }; 2], mappings: [const { None }; 2] };

    #[inline(never)]
    fn take_some(cpu: &Cpu, source: &'static AreaPools, count: usize, have_objects: bool) -> Result<Self, OutOfMemory> {
        let mut taken = Self::NONE;
        for (area, mapping) in taken.areas.iter_mut().zip(&mut taken.mappings).take(count) {
            *area = Some(source.areas.of(cpu).try_new_uninit()?);
            if have_objects {
                *mapping = Some(source.mappings.try_new_uninit()?);
            }
        }
        Ok(taken)
    }

    /// A node that holds `area`.
    pub(super) fn make(&mut self, area: Area) -> PoolBox<Area> {
        self.areas
            .iter_mut()
            .find_map(Option::take)
            .expect("as many nodes were taken as the change adds areas")
            .write(area)
    }

    /// The mapping of the part of an area that begins with `first_page` of the object of `mapping`.
    fn make_mapping(&mut self, mapping: &Mapping, first_page: u64) -> PoolBox<Mapping> {
        let room = self
            .mappings
            .iter_mut()
            .find_map(Option::take)
            .expect("as many nodes were taken as the change adds areas with objects");
        room.write(mapping.copy(first_page, mapping.space))
    }
}

/// An area that was found. Valid until the areas change otherwise.
pub(super) type Held = UnsafeRef<Area>;

/// The areas of one space, or of a part of it.
pub(super) struct Areas {
    tree: RBTree<ByAddress>,
    gaps: RBTree<ByGap>,
    /// Where areas may be. The page behind it is free, if another part follows.
    start: VirtAddr,
    end: VirtAddr,
    /// The addresses that the part owns. All are below `u64::MAX`.
    owned: Range<u64>,
    // For the rest of the space to read: they change with the trees.
    /// How many areas there are.
    pub(super) count: usize,
    /// Bytes of all areas.
    pub(super) total: u64,
    /// Bytes that count as data: [`Area::data`].
    pub(super) data: u64,
    /// It has fewer areas than this.
    room: usize,
    /// The part's share of the limits.
    pub(super) grants: Grants,
    turns: Turns,
}

// SAFETY: only the trees refer to their nodes, which come from a pool that every CPU may use, so they move together.
unsafe impl Send for Areas {}
// SAFETY: a shared reference changes nothing: each method that sets a `Cell` takes `&mut self`.
unsafe impl Sync for Areas {}

impl Areas {
    /// No areas, in the window from `start` to `end`.
    pub(super) const fn new(start: VirtAddr, end: VirtAddr) -> Self {
        Self::of(start, end, 0..u64::MAX)
    }

    /// Whether these are all addresses. A request that a part refuses may fit in all of them.
    #[inline(always)]
    pub(super) const fn is_whole(&self) -> bool {
        self.owned.end.wrapping_sub(self.owned.start) == u64::MAX
    }

    const fn of(start: VirtAddr, end: VirtAddr, owned: Range<u64>) -> Self {
        Self {
            tree: RBTree::new(ByAddress::NEW),
            gaps: RBTree::new(ByGap::NEW),
            start,
            end,
            owned,
            count: 0,
            total: 0,
            data: 0,
            room: MOST + 1,
            grants: Grants::ALL,
            turns: Turns::none(start),
        }
    }

    /// Fails if `more` areas by cuts would be too many.
    ///
    /// # Errors
    /// [`Refusal`], as for a shortage of nodes.
    #[inline]
    pub(super) fn room_for_cuts(&self, more: usize) -> Result<(), Refusal> {
        if more == 0 || self.count + more < self.room { Ok(()) } else { Err(self.refusal()) }
    }

    /// Fails if a mapping would be one area too many: as on Linux one more than by cuts, even if it replaces or joins
    /// others.
    ///
    /// # Errors
    /// [`Refusal`].
    #[inline]
    pub(super) fn room_for_mapping(&self) -> Result<(), Refusal> {
        if self.count < self.room { Ok(()) } else { Err(self.refusal()) }
    }

    /// The error where something is too much for these areas.
    #[cold]
    pub(super) fn refusal(&self) -> Refusal {
        if self.is_whole() { Refusal::Final(SpaceError::NoMemory) } else { Refusal::ByPart }
    }

    /// All areas, by address.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Area> {
        self.tree.iter()
    }

    /// The area that holds `address`.
    #[inline]
    pub(super) fn find(&self, address: VirtAddr) -> Option<&Area> {
        let area = self.tree.upper_bound(Bound::Included(&address.0)).get()?;
        (address < area.end()).then_some(area)
    }

    /// The areas with an address of `range`, by address.
    pub(super) fn touching(&self, range: PageRange) -> impl Iterator<Item = &Area> {
        let mut cursor = self.ending_above(range.start());
        core::iter::from_fn(move || {
            let area = cursor.get().filter(|area| area.start() <= range.last())?;
            cursor.move_next();
            Some(area)
        })
    }

    /// As [`Self::touching`], for a walk over any number of areas: other threads may run in between, but not among the
    /// first 64, which the caller may read [for a moment](crate::sched::BriefGuard).
    pub(super) fn walk(&self, range: PageRange) -> impl Iterator<Item = &Area> {
        #[cold]
        #[inline(never)]
        fn pause() {
            relax();
        }
        self.touching(range).zip(1_u32..).map(|(area, count)| {
            if count.is_multiple_of(64) {
                pause();
            }
            area
        })
    }

    /// Whether one of those has an object.
    #[inline(never)]
    pub(super) fn has_objects(&self, range: PageRange) -> bool {
        self.walk(range).any(|area| area.object().is_some())
    }

    /// The first of those.
    #[inline]
    pub(super) fn first_touching(&self, range: PageRange) -> Option<Held> {
        self.ending_above(range.start()).clone_pointer().filter(|area| area.start() <= range.last())
    }

    /// The area that holds all of `range`.
    #[inline]
    pub(super) fn holding(&self, range: PageRange) -> Option<Held> {
        let cursor = self.tree.upper_bound(Bound::Included(&range.start().0));
        let holds = cursor.get().is_some_and(|area| range.last() < area.end());
        cursor.clone_pointer().filter(|_| holds)
    }

    /// The first area that ends above `address`.
    #[inline]
    fn ending_above(&self, address: VirtAddr) -> Cursor<'_, ByAddress> {
        let mut cursor = self.tree.upper_bound(Bound::Included(&address.0));
        if cursor.get().is_none_or(|area| area.end() <= address) {
            cursor.move_next();
        }
        cursor
    }

    /// Whether areas cover `range` without a hole.
    #[inline]
    pub(super) fn covers(&self, range: PageRange) -> bool {
        self.holding(range).is_some() || self.covered_until(range) == range.end()
    }

    /// Where the first hole in `range` begins; its end where there is none.
    #[inline(never)]
    pub(super) fn covered_until(&self, range: PageRange) -> VirtAddr {
        let mut until = range.start();
        for area in self.walk(range) {
            if area.start() > until {
                break;
            }
            until = area.end();
        }
        until.min(range.end())
    }

    /// Whether `range` lies in the window.
    pub(super) fn in_window(&self, range: PageRange) -> bool {
        range.start() >= self.start && range.last() < self.end
    }

    /// The address of `bytes` free bytes that the kernel may choose: at the top of the smallest gap that is large
    /// enough.
    pub(super) fn gap(&self, bytes: u64) -> Option<VirtAddr> {
        if let Some(above) = self.gaps.lower_bound(Bound::Included(&(bytes, 0))).get() {
            return Some(above.start() - above.guard.get() - bytes);
        }
        let last = self.tree.back().get().map_or(self.start, Area::end);
        let top = self.end.0.checked_sub(last.max(SEARCH_START).0)?;
        (top >= bytes).then(|| self.end - bytes)
    }

    /// Splits `area` at `at`; returns the upper part.
    fn cut(&mut self, area: &UnsafeRef<Area>, at: VirtAddr, spares: &mut Spares) -> UnsafeRef<Area> {
        let mapping = area.mapping.as_ref().map(|mapping| spares.make_mapping(mapping, area.page_at(at)));
        let upper = spares.make(area.piece(at, area.end(), mapping)).into_ref();
        area.change_place(|mapped| {
            area.end.set(at);
            if let (Some((mappers, _)), Some(mapping)) = (mapped, &upper.mapping) {
                mappers.insert(mapping, &upper);
            }
        });
        // The parts touch, so no gap changes.
        self.cursor(area).insert_after(upper.clone());
        self.count += 1;
        upper
    }

    /// [`Self::insert`], for calls that are not hot.
    #[inline(never)]
    pub(super) fn insert_elsewhere(&mut self, area: PoolBox<Area>) -> Held {
        self.insert(area)
    }

    /// Inserts `area`, whose addresses are free.
    #[inline(always)]
    pub(super) fn insert(&mut self, area: PoolBox<Area>) -> Held {
        debug_assert!(self.in_window(area.range()) && self.touching(area.range()).next().is_none());
        let node = area.into_ref();
        self.tree.insert(node.clone());
        self.count += 1;
        self.total += node.size();
        self.data += node.data();
        self.gap_changed(&node);
        self.gap_above_changed(&node);
        join_reverse_map(&node);
        node
    }

    /// A copy of `area` from `from` on, for `range`. Takes a spare.
    pub(super) fn copy_at(&self, area: &Held, from: VirtAddr, range: PageRange, spares: &mut Spares) -> PoolBox<Area> {
        let mapping = area.mapping.as_ref().map(|mapping| spares.make_mapping(mapping, area.page_at(from)));
        let guard = if area.grows() { STACK_GUARD } else { 0 };
        spares.make(area.piece(range.start(), range.end(), mapping).guarded(guard))
    }

    /// Whether the `bytes` bytes from `start` on are free, and in the window.
    pub(super) fn is_free(&self, start: VirtAddr, bytes: u64) -> bool {
        PageRange::new(start, bytes).is_ok_and(|range| self.in_window(range) && self.touching(range).next().is_none())
    }

    /// Inserts copies of all areas of another space into these, those of `space`, which is empty, and calls `copied` for
    /// each.
    ///
    /// # Errors
    /// [`OutOfMemory`], also that of `copied`. Some areas are missing then, and the caller drops the space.
    #[inline]
    pub(super) fn copy_all(
        &mut self,
        other: &Self,
        cpu: &Cpu,
        space: &Space,
        pools: &'static AreaPools,
        mut copied: impl FnMut(&Area) -> Result<(), OutOfMemory>,
    ) -> Result<(), OutOfMemory> {
        let pool = pools.areas.of(cpu);
        // The totals are those of the other space.
        (self.count, self.total, self.data) = (other.count, other.total, other.data);
        let mut last: Option<UnsafeRef<Area>> = None;
        for area in other.iter() {
            let mapping = match &area.mapping {
                None => None,
                Some(mapping) => Some(pools.new_mapping(mapping.copy(mapping.first_page(), space.into()))?),
            };
            let node = pool.try_new_with(|| area.piece(area.start(), area.end(), mapping))?.into_ref();
            match last {
                Some(last) => self.cursor(&last).insert_after(node.clone()),
                None => self.tree.front_mut().insert_before(node.clone()),
            }
            // The gap below it is the same.
            if area.gap.get() != 0 {
                self.set_gap(&node, area.gap.get());
            }
            join_reverse_map(&node);
            last = Some(node);
            copied(area)?;
        }
        Ok(())
    }

    /// Removes the areas that are not for children, and unlocks the others.
    pub(super) fn become_a_childs(&mut self) {
        let mut next = self.tree.front().clone_pointer();
        while let Some(area) = next {
            next = self.cursor(&area).peek_next().clone_pointer();
            if area.flags().has_any(AreaFlags::NOT_IN_CHILDREN) {
                drop(self.take(&area));
            } else {
                let flags = area.flags().without(AreaFlags::LOCKING);
                self.set_flags(&area, flags);
            }
            relax();
        }
    }

    /// Removes `range` from the areas that it touches, the first of which is `first`. Takes a spare where an area is
    /// cut in two.
    #[inline(never)]
    pub(super) fn remove(&mut self, first: Held, range: PageRange, spares: &mut Spares) {
        let mut next = Some(first);
        while let Some(area) = next {
            let part = area.part_in(range);
            next = None;
            if part.end() != range.end() {
                let above = self.cursor(&area).peek_next().clone_pointer();
                next = above.filter(|above| above.start() <= range.last());
            }
            drop(self.remove_part(&area, part, spares));
            if next.is_some() {
                // Areas are many, and one may be the last user of an object with many frames.
                relax();
            }
        }
    }

    /// Removes `range` from the area that holds all of it. Returns that area where nothing of it is left.
    #[inline(always)]
    pub(super) fn remove_part(&mut self, area: &Held, range: PageRange, spares: &mut Spares) -> Option<PoolBox<Area>> {
        let begins_inside = area.start() < range.start();
        if range.end() == area.end() {
            if !begins_inside {
                return Some(self.take(area));
            }
        } else if begins_inside {
            self.cut(area, range.end(), spares);
        }
        let gone = range.end() - range.start();
        self.total -= gone;
        if area.data() != 0 {
            self.data -= gone;
        }
        if begins_inside {
            area.change_place(|_| area.end.set(range.start()));
            self.gap_above_changed(area);
        } else {
            area.change_place(|mapped| {
                area.guard.set(area.guard_from(range.end()));
                let Some((mappers, mapping)) = mapped else { return area.start.set(range.end()) };
                mappers.remove(mapping);
                mapping.first_page.set(area.page_at(range.end()));
                area.start.set(range.end());
                mappers.insert(mapping, area);
            });
            self.gap_changed(area);
        }
        None
    }

    /// Takes all areas out of the reverse maps of their objects, before their tables go.
    pub(super) fn leave_reverse_maps(&self) {
        for area in self.iter() {
            leave_reverse_map(area);
            relax();
        }
    }

    /// Removes all areas, which are in no reverse map, and passes each to `removed`.
    pub(super) fn clear(&mut self, mut removed: impl FnMut(PoolBox<Area>)) {
        self.gaps.fast_clear();
        (self.count, self.total, self.data) = (0, 0, 0);
        while let Some(node) = self.tree.front_mut().remove() {
            removed(into_box(node));
        }
    }

    /// Removes one area.
    fn take(&mut self, area: &UnsafeRef<Area>) -> PoolBox<Area> {
        self.set_gap(area, 0);
        let mut cursor = self.cursor(area);
        cursor.remove();
        let next = cursor.as_cursor().clone_pointer();
        self.count -= 1;
        self.total -= area.size();
        self.data -= area.data();
        leave_reverse_map(area);
        if let Some(next) = next {
            self.gap_changed(&next);
        }
        into_box(area.clone())
    }

    /// The end of the last area below `range` and the start of the first above it, or the ends of the window, or of the
    /// part. No area is in `range`.
    pub(super) fn around(&self, range: PageRange) -> (VirtAddr, VirtAddr) {
        let above = self.tree.lower_bound(Bound::Included(&range.start().0));
        let below = if above.is_null() { self.tree.back() } else { above.peek_prev() };
        (below.get().map_or(self.start, Area::end), above.get().map_or(self.next().unwrap_or(self.end), Area::start))
    }

    /// Changes the protection of an area.
    #[inline]
    pub(super) fn protect(&mut self, held: &Held, protection: Protection) {
        let was_written = held.protection.replace(protection).contains(Protection::WRITE);
        match (was_written, protection.contains(Protection::WRITE)) {
            (false, true) => self.data += held.data_if_written(),
            (true, false) => self.data -= held.data_if_written(),
            _ => {}
        }
    }

    /// Sets an area apart from others, or no more.
    pub(super) fn set_flags(&mut self, held: &Held, flags: AreaFlags) {
        // A walk by the reverse map reads them.
        held.change_place(|_| held.flags.set(flags));
    }

    /// Makes `range`, which the area holds, an area of its own. Takes a spare for each end at which the area is cut.
    pub(super) fn cut_out(&mut self, mut area: Held, range: PageRange, spares: &mut Spares) -> Held {
        if area.start() < range.start() {
            area = self.cut(&area, range.start(), spares);
        }
        if range.end() < area.end() {
            self.cut(&area, range.end(), spares);
        }
        area
    }

    /// Joins `area` with the areas below and above it, where they touch and are alike.
    #[inline(always)]
    pub(super) fn merge(&mut self, mut area: Held) {
        let below = self.cursor(&area).peek_prev().clone_pointer();
        if let Some(below) = below
            && below.continues_in(&area)
        {
            drop(self.join(&below, area));
            area = below;
        }
        let next = self.cursor(&area).peek_next().clone_pointer();
        if let Some(next) = next
            && area.continues_in(&next)
        {
            drop(self.join(&area, next));
        }
    }

    /// Joins two areas that touch and are alike; returns the upper one's node.
    #[inline(never)]
    fn join(&mut self, below: &Area, above: UnsafeRef<Area>) -> PoolBox<Area> {
        below.change_place(|mapped| {
            below.end.set(above.end());
            if let (Some((mappers, _)), Some(mapping)) = (mapped, &above.mapping) {
                mappers.remove(mapping);
                mappers.note_length(below);
            }
        });
        // They touched: the upper one had no gap, and the gap above it does not change.
        debug_assert_eq!(above.gap.get(), 0);
        self.cursor(&above).remove();
        self.count -= 1;
        into_box(above)
    }

    /// The first area that begins at `address` or above.
    pub(super) fn first_from(&self, address: VirtAddr) -> Option<Held> {
        self.tree.lower_bound(Bound::Included(&address.0)).clone_pointer()
    }

    /// The last area that begins below `address`.
    pub(super) fn last_below(&self, address: VirtAddr) -> Option<&Area> {
        self.tree.upper_bound(Bound::Excluded(&address.0)).get()
    }

    /// Extends a stack down to `start`. The addresses in between are free.
    pub(super) fn extend_down(&mut self, stack: &Held, start: VirtAddr) {
        let more = stack.start() - start;
        stack.guard.set(stack.guard.get().saturating_sub(more).max(STACK_GUARD));
        stack.start.set(start);
        self.total += more;
        self.gap_changed(stack);
    }

    /// Leaves `more` bytes below a stack that the kernel does not choose.
    pub(super) fn widen_guard(&mut self, stack: &Held, more: u64) {
        stack.guard.set(stack.guard.get() + more);
        self.gap_changed(stack);
    }

    /// Extends an area by `more` bytes. The addresses behind it are free.
    pub(super) fn extend_up(&mut self, area: &Held, more: u64) {
        area.change_place(|mapped| {
            area.end.set(area.end() + more);
            if let Some((mappers, _)) = mapped {
                mappers.note_length(area);
            }
        });
        self.total += more;
        if area.data() != 0 {
            self.data += more;
        }
        self.gap_above_changed(area);
    }

    fn cursor(&mut self, area: &UnsafeRef<Area>) -> CursorMut<'_, ByAddress> {
        // SAFETY: references to areas come from the tree, and none is kept after the removal.
        unsafe { self.tree.cursor_mut_from_ptr(&raw const **area) }
    }

    /// Updates the gap below `area`.
    fn gap_changed(&mut self, area: &UnsafeRef<Area>) {
        let below = self.cursor(area).peek_prev().get().map(Area::end);
        let gap = area.start().0.saturating_sub(below.unwrap_or(self.start).max(SEARCH_START).0);
        self.set_gap(area, gap.saturating_sub(area.guard.get()));
    }

    /// Updates the gap above `area`.
    fn gap_above_changed(&mut self, area: &UnsafeRef<Area>) {
        let next = self.cursor(area).peek_next().clone_pointer();
        if let Some(next) = next {
            self.gap_changed(&next);
        }
    }

    fn set_gap(&mut self, area: &UnsafeRef<Area>, gap: u64) {
        if area.gap.get() != 0 {
            // SAFETY: a node with a gap is in the tree of gaps.
            unsafe { self.gaps.cursor_mut_from_ptr(&raw const **area) }.remove();
        }
        area.gap.set(gap);
        if gap != 0 {
            self.gaps.insert(area.clone());
        }
    }
}

#[cfg(test)]
impl Areas {
    /// Whether another part may begin at `at`: the page below is free, and no guard reaches down to it.
    pub(super) fn may_begin_at(&self, at: VirtAddr) -> bool {
        let is_guarded = |above: Held| above.highest_border() < at;
        self.owned.start < at.0 && self.find(at - PAGE).is_none() && !self.first_from(at - PAGE).is_some_and(is_guarded)
    }

    /// Checks what changes with the areas, and that they lie where the part may have them.
    pub(super) fn check(&self) {
        assert_eq!(self.count, self.iter().count());
        assert!(self.count <= self.room && (!self.is_whole() || self.room == MOST + 1));
        assert_eq!(self.total, self.iter().map(Area::size).sum());
        assert_eq!(self.data, self.iter().map(Area::data).sum());
        assert!(self.iter().all(|area| self.start <= area.start() && area.end() <= self.end));
        let mut below = self.start.max(SEARCH_START);
        for area in self.iter() {
            let gap = area.start().0.saturating_sub(below.0).saturating_sub(area.guard.get());
            assert_eq!((area.gap.get(), area.by_gap.is_linked()), (gap, gap != 0), "below {}", area.start());
            below = below.max(area.end());
        }
        if !self.is_whole() {
            assert!(self.next().is_none_or(|next| self.end + PAGE == next));
            assert!(self.grants.most().0 == 0 || self.total <= self.grants.most().0);
            assert!(self.iter().next().is_none_or(|area| self.owned.start <= area.highest_border().0));
        }
    }
}

impl Drop for Areas {
    fn drop(&mut self) {
        self.clear(drop);
    }
}

/// Has the object of an area know that the area maps it.
#[inline(always)]
fn join_reverse_map(area: &UnsafeRef<Area>) {
    if let Some(mapping) = &area.mapping {
        mapping.object.change_mappers(|mappers| mappers.insert(mapping, area));
    }
}

/// Has the object of an area forget it: a walk that has found it is over when this returns.
#[inline(always)]
fn leave_reverse_map(area: &Area) {
    if let Some(mapping) = &area.mapping {
        mapping.object.change_mappers(|mappers| mappers.remove(mapping));
    }
}

fn into_box(node: UnsafeRef<Area>) -> PoolBox<Area> {
    // SAFETY: all nodes were boxes, only the trees refer to them, and it is in neither.
    unsafe { PoolBox::from_ref(node) }
}
