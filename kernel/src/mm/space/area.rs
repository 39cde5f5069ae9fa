//! Which addresses of a space are mapped, from which memory, and with which protection.
//!
//! Areas are nodes of an intrusive tree by address. A second tree has the same nodes by the free addresses below each,
//! so that a mapping finds the smallest gap that is large enough without visiting the others. Nodes are allocated
//! before a change begins ([`Spares`](pools::Spares)); after that nothing here can fail.
//!
//! ```text
//!         window.start        SEARCH_START                                     window.end
//!         │ by request only   │ where the kernel chooses                        │
//!         ├───────┬──────┬────┼──────────────────┬──────┬────────┬─────────┬────┤
//!         │       │ area │    │    gap of B      │  B   │ gap of │   C     │    │
//! ```
//! Two areas that touch and are alike are one: [`merge`](tree::Areas::merge) is called wherever a change may have made
//! them so.
//!
//! Where CPUs change areas in turn, their [part](super::parts) is [divided](tree) between them.

#![allow(unsafe_code, reason = "user frames by their linear addresses, and intrusive nodes")]

pub(super) mod grants;
pub(super) mod pools;
pub(super) mod tree;
mod turns;

use core::cell::Cell;
use core::ptr::{self, NonNull};

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::{Attributes, MemoryType, Protection};
use granule_pgtable::PageRange;
use intrusive_collections::RBTreeLink;

use super::address_space::Space;
use super::node_policy::NodePolicy;
use super::range::{STACK_GUARD, pages};
use super::shmem::Object;
use super::shmem::mappers::Mappers;
use super::userfault::UserfaultfdNumber;
use crate::mm::counted::Counted;
use crate::mm::pool::PoolBox;

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
    /// The object of its pages. Pages of none are zeros at first.
    mapping: Option<PoolBox<Mapping>>,
}

/// Properties of an area beside its protection and its object: flags, and above them the number of the userfaultfd
/// that it is registered with, and its policy for nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct AreaFlags(u64);

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
    /// Blocks are not wanted, and a [collapse](Space::madvise_collapse) is refused (Linux: `VM_NOHUGEPAGE`).
    pub(super) const NO_BLOCKS: Self = Self(1 << 7);
    /// Its page is [registers](super::device), and no memory.
    pub(super) const REGISTERS: Self = Self(1 << 8);
    /// The first access of a page that is missing asks a pager (Linux: `VM_UFFD_MISSING`).
    pub(super) const UFFD_MISSING: Self = Self(1 << 9);
    /// So does that of a page that the object has, and the space not (Linux: `VM_UFFD_MINOR`).
    pub(super) const UFFD_MINOR: Self = Self(1 << 10);
    /// So does a store to a page that is write-protected (Linux: `VM_UFFD_WP`).
    pub(super) const UFFD_WP: Self = Self(1 << 11);
    /// No pager is asked about such a store: it ends the protection of its page (Linux: `userfaultfd_wp_async`).
    pub(super) const UFFD_WP_ASYNC: Self = Self(1 << 12);
    /// Its mapping and its protection [stay](super::seal) (Linux: `VM_SEALED`).
    pub(super) const SEALED: Self = Self(1 << 13);
    /// Its pages may go where memory is short (Linux: `VM_DROPPABLE`).
    pub(super) const DROPPABLE: Self = Self(1 << 14);
    /// A pager may serve the first access of a page: no other access brings it.
    pub(super) const UFFD_FIRST: Self = Self::UFFD_MISSING.with(Self::UFFD_MINOR);
    /// It is registered with a userfaultfd.
    pub(super) const REGISTERED: Self = Self::UFFD_FIRST.with(Self::UFFD_WP).with(Self::UFFD_WP_ASYNC);
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

    /// Whether a pager is asked about a store to a page that is write-protected.
    pub(super) const fn asks_about_stores(self) -> bool {
        self.has_any(Self::UFFD_WP) && !self.has_any(Self::UFFD_WP_ASYNC)
    }

    /// With which userfaultfd of its space it is [registered](Self::REGISTERED).
    pub(super) const fn userfaultfd(self) -> UserfaultfdNumber {
        UserfaultfdNumber((self.0 >> Self::NUMBER) as u16)
    }

    /// These flags, registered with userfaultfd `number`, by `modes` of [`Self::REGISTERED`].
    pub(super) const fn registered(self, number: UserfaultfdNumber, modes: Self) -> Self {
        Self(self.unregistered().0 | modes.0 | (number.0 as u64) << Self::NUMBER)
    }

    /// These flags, registered with no userfaultfd.
    pub(super) const fn unregistered(self) -> Self {
        Self(self.without(Self::REGISTERED).0 & !(0xffff << Self::NUMBER))
    }

    /// Its policy for nodes.
    pub(super) const fn policy(self) -> NodePolicy {
        NodePolicy::of_word((self.0 >> Self::POLICY) as u32)
    }

    /// These flags with another policy for nodes.
    pub(super) const fn with_policy(self, policy: NodePolicy) -> Self {
        Self(self.0 & ((1 << Self::POLICY) - 1) | (policy.word() as u64) << Self::POLICY)
    }

    /// Above the flags, 16 bits.
    const NUMBER: u32 = 16;
    /// Above both, 32 bits.
    const POLICY: u32 = 32;
}

/// How much memory a mapping may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Commitment(AreaFlags);

impl Commitment {
    /// No more than there is, or it is refused.
    pub const WITHIN_MEMORY: Self = Self(AreaFlags::RESERVED);
    /// Any (`MAP_NORESERVE`).
    pub const ANY: Self = Self(AreaFlags::NONE);
    /// Any, and its pages go where memory is short; a child has none of them (`MAP_DROPPABLE`).
    pub const DROPPABLE: Self = Self(AreaFlags::DROPPABLE.with(AreaFlags::ZEROS_IN_CHILDREN));

    /// Whether it is refused where it is larger than all memory.
    pub(super) const fn is_within_memory(self) -> bool {
        self.0.has_any(AreaFlags::RESERVED)
    }
}

/// Which processes see a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// This space alone (`MAP_PRIVATE`).
    Private,
    /// Every space that inherits it by a fork (`MAP_SHARED`).
    Shared,
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

    /// This area, which may take as much memory.
    pub(super) fn committed(self, commitment: Commitment) -> Self {
        let others = self.flags().without(AreaFlags::RESERVED);
        Self { flags: Cell::new(others.with(commitment.0)), ..self }
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

    /// The address after its last.
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

    /// Its protection and sharing as Linux shows them: `r`, `w`, `x`, or `-` for each; `s` or `p`.
    pub fn letters(&self) -> [char; 4] {
        let letter = |what, letter| if self.protection().contains(what) { letter } else { '-' };
        let sharing = if self.is_shared() { 's' } else { 'p' };
        [letter(Protection::READ, 'r'), letter(Protection::WRITE, 'w'), letter(Protection::EXECUTE, 'x'), sharing]
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

    /// Has `change` change its place, with the reverse map of its object, which is not walked concurrently.
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

    /// See [`Commitment::is_within_memory`].
    pub(super) fn is_reserved(&self) -> bool {
        self.flags().has_any(AreaFlags::RESERVED)
    }

    /// Whether its pages may go where memory is short.
    pub(super) fn is_droppable(&self) -> bool {
        self.flags().has_any(AreaFlags::DROPPABLE)
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
