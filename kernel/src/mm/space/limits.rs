//! The limits of a program for its space, what cannot fit in memory, and stacks that grow.
//!
//! As on Linux (`may_expand_vm`, `__vm_enough_memory` with overcommit, `expand_downwards`): a call is refused for what
//! it would add, never for what is mapped already. Memory is not reserved: a call is refused for an area that private
//! stores could fill and that is larger than all memory, and for no other.

use granule_arch::addr::{PAGE, VirtAddr};
use granule_arch::descriptor::Protection;
use granule_pgtable::PageRange;

use super::address_space::Space;
use super::area::grants::{Amounts, Grants};
use super::area::tree::{Areas, Held};
use super::area::{Area, Commitment};
use super::error::{Refusal, SpaceError};
use super::mlock::Locking;
use super::range::{STACK_GUARD, USER_END, USER_START, pages};
use super::shmem::Object;
use crate::mm::counted::Counted;

/// The limits of the calling program, in bytes; `u64::MAX` for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpaceLimits {
    /// All its areas together (`RLIMIT_AS`).
    pub space: u64,
    /// Its private writable areas, stacks excepted (`RLIMIT_DATA`).
    pub data: u64,
    /// The limit up to which a program may raise `data`. It is used instead where `data` is 0, as on Linux.
    pub data_hard: u64,
    /// A stack (`RLIMIT_STACK`).
    pub stack: u64,
}

impl SpaceLimits {
    /// No limits.
    pub const NONE: Self = Self { space: u64::MAX, data: u64::MAX, data_hard: u64::MAX, stack: u64::MAX };

    /// The most bytes of data.
    fn most_data(&self) -> u64 {
        if self.data == 0 { self.data_hard } else { self.data }
    }
}

/// The conditions of a mapping, beside its [`MapRequest`](super::MapRequest).
#[derive(Clone, Copy)]
pub struct Terms<'a> {
    /// The program's limits.
    pub limits: SpaceLimits,
    /// How much memory it may take.
    pub commitment: Commitment,
    /// Whether accesses below it extend it (`MAP_GROWSDOWN`).
    pub grows: bool,
    /// Whether its pages are locked.
    pub locking: Locking,
    /// The file that is mapped; anonymous memory without one.
    pub file: Option<MappedFile<'a>>,
}

/// A file that is mapped.
#[derive(Clone, Copy)]
pub struct MappedFile<'a> {
    /// Its contents.
    pub object: &'a Counted<Object>,
    /// The first page that is mapped. With all pages it is below 2⁵².
    pub first_page: u64,
    /// Whether a change of protection may make the mapping writable. A private one always may be.
    pub may_write: bool,
}

impl Terms<'_> {
    /// For mappings of the kernel. The limit of a stack is not known here.
    pub const NONE: Self = Self {
        limits: SpaceLimits { stack: 0, ..SpaceLimits::NONE },
        commitment: Commitment::WITHIN_MEMORY,
        grows: false,
        locking: Locking::None,
        file: None,
    };
}

/// The least room to grow below a program's stack, as on Linux.
pub(super) const STACK_GAP: u64 = 128 << 20;
/// The most.
pub(super) const MOST_STACK_GAP: u64 = (1 << 48) / 6 * 5;

/// Bytes below a stack of `bytes` bytes that the kernel does not choose, where it may grow to `limit`.
pub(super) fn stack_guard(bytes: u64, limit: u64) -> u64 {
    let wanted = limit.saturating_add(STACK_GUARD).min(MOST_STACK_GAP);
    let gap = if wanted < STACK_GAP { STACK_GAP } else { wanted };
    // A limit may be any number of bytes, and what lies below begins at a page.
    (gap - gap % PAGE).saturating_sub(bytes).max(STACK_GUARD)
}

impl Areas {
    /// Whether the limits permit so many bytes of areas.
    #[inline(always)]
    fn may_have(&self, bytes: u64, limits: &SpaceLimits) -> bool {
        if self.is_whole() {
            return bytes <= limits.space;
        }
        self.grants.of.space <= limits.space && bytes <= self.grants.most.space
    }

    /// Whether the limits permit so many bytes of areas that are data.
    #[inline(always)]
    fn may_have_data(&self, bytes: u64, limits: &SpaceLimits) -> bool {
        if self.is_whole() {
            return bytes <= limits.most_data();
        }
        self.grants.of.data <= limits.most_data() && bytes <= self.grants.most.data
    }

    /// Called before they are divided by a program with these limits.
    pub(super) fn grant(&mut self, limits: &SpaceLimits) {
        if self.is_whole() {
            let all = Amounts { space: limits.space, data: limits.most_data() };
            self.grants = Grants { of: all, most: all };
        }
    }

    /// Whether the limits permit `bytes` bytes more, which are data or not.
    #[inline(always)]
    pub(super) fn fits(&self, bytes: u64, is_data: bool, limits: &SpaceLimits) -> bool {
        self.may_have(self.total.saturating_add(bytes), limits)
            && (!is_data || self.may_have_data(self.data.saturating_add(bytes), limits))
    }

    /// Whether the limits permit an area in `range`, in place of the areas there.
    pub(super) fn may_add(&self, range: PageRange, is_data: bool, limits: &SpaceLimits) -> bool {
        let fits = |bytes: u64| self.fits(bytes, is_data, limits);
        let bytes = range.end() - range.start();
        // The areas that it replaces are visited only where they matter. Whether they are data matters to a part.
        fits(bytes) || self.is_whole() && fits(bytes - self.walk(range).map(|area| area.bytes_in(range)).sum::<u64>())
    }

    /// Whether `bytes` more may become data, as far as that is known without the other parts.
    #[inline(always)]
    pub(super) fn may_add_data(&self, bytes: u64, limits: &SpaceLimits) -> bool {
        self.is_whole() || self.may_have_data(self.data.saturating_add(bytes), limits)
    }

    /// The start of the first area in `range`, which is covered, that may not get `protection`, and why; the end of `range`
    /// where all may. They are of `space`. A part has the [whole range's](Self::may_add_data) bytes.
    pub(super) fn may_protect_until(
        &self,
        range: PageRange,
        protection: Protection,
        limits: &SpaceLimits,
        space: &Space,
    ) -> (VirtAddr, SpaceError) {
        let (mut data, memory, settings) = (self.data, space.memory(), space.settings());
        for area in self.walk(range) {
            let is_denied = settings.deny(area.protection(), protection);
            if is_denied || !area.may_have(protection) {
                let is_access = is_denied || !area.may_have(protection.accesses());
                let error = if is_access { SpaceError::NotAllowed } else { SpaceError::Invalid };
                return (area.part_in(range).start(), error);
            }
            if area.is_sealed() {
                return (area.part_in(range).start(), SpaceError::NotPermitted);
            }
            if !area.becomes_writable(protection) {
                continue;
            }
            let bytes = area.bytes_in(range);
            // As on Linux, which checks whether the area could be added again.
            let new_data = area.becomes_data(protection) && self.total.saturating_add(bytes) <= limits.space;
            if new_data && !self.may_have_data(data.saturating_add(bytes), limits)
                || area.is_reserved() && bytes > memory
            {
                return (area.part_in(range).start(), SpaceError::NoMemory);
            }
            if area.becomes_data(protection) {
                data = data.saturating_add(bytes);
            }
        }
        // If the range was cut, at a hole.
        (range.end(), SpaceError::NoMemory)
    }

    /// The area that an access at `page`, which is in none, extends.
    fn extended_by(&self, page: VirtAddr) -> Result<Held, Refusal> {
        match self.first_from(page) {
            Some(above) if above.grows() => Ok(above),
            // The one that was seen is another part's now.
            None if !self.is_whole() => Err(Refusal::ByPart),
            _ => Err(SpaceError::NoArea.into()),
        }
    }
}

impl Area {
    /// Bytes of it in `range`, which it touches.
    fn bytes_in(&self, range: PageRange) -> u64 {
        let part = self.part_in(range);
        part.end() - part.start()
    }

    /// Whether it cannot fit in `memory` bytes.
    pub(super) fn is_data_beyond(&self, memory: u64) -> bool {
        self.size() > memory && self.is_reserved() && !self.is_shared() && self.protection().contains(Protection::WRITE)
    }

    fn becomes_writable(&self, protection: Protection) -> bool {
        !self.is_shared() && protection.contains(Protection::WRITE) && !self.protection().contains(Protection::WRITE)
    }

    fn becomes_data(&self, protection: Protection) -> bool {
        self.becomes_writable(protection) && !self.grows()
    }
}

impl Space {
    /// Bytes of all memory.
    pub(super) fn memory(&self) -> u64 {
        self.common.frames.total() as u64 * PAGE
    }

    /// Whether the space is within `limits`.
    pub fn is_within(&self, limits: &SpaceLimits) -> bool {
        let areas = self.read_all_areas();
        areas.may_have(areas.total, limits) && areas.may_have_data(areas.data, limits)
    }

    /// Leaves `bytes` more bytes below the stack that begins at `start`, which the kernel does not choose.
    pub fn widen_guard(&self, start: VirtAddr, bytes: u64) {
        let mut areas = self.write_areas(pages(start, start + PAGE));
        if let Some(stack) = areas.first_from(start) {
            areas.widen_guard(&stack, bytes);
        }
    }

    /// Extends the stack above `address`, which is in no area, down to its page.
    ///
    /// # Errors
    /// [`SpaceError::NoArea`] (no stack is above), [`SpaceError::NotPermitted`] (too near to address 0),
    /// [`SpaceError::NoMemory`] (a limit, or too near to the area below). Nothing was changed.
    #[inline(never)]
    pub fn grow_stack(&self, address: VirtAddr, limits: &SpaceLimits) -> Result<(), SpaceError> {
        let page = address.align_down(PAGE);
        if page >= USER_END {
            return Err(SpaceError::NoArea);
        }
        // The area that ends above the page.
        let (mut start, mut grows) = (USER_END, false);
        self.areas.for_each(pages(page, USER_END), &mut |areas, piece| {
            let area = areas.first_touching(piece);
            if let Some(area) = &area {
                (start, grows) = (area.start(), area.grows());
            }
            area.is_none()
        });
        if start > page && !grows {
            return Err(SpaceError::NoArea);
        }
        // With what lies below in its guard.
        let lowest = VirtAddr(page.0.saturating_sub(STACK_GUARD));
        let areas = self.write_areas(pages(lowest, start.max(page + PAGE)));
        self.change_areas(areas, |areas| self.grow_stack_in(areas, page, limits)).map(drop)
    }

    fn grow_stack_in(&self, areas: &mut Areas, page: VirtAddr, limits: &SpaceLimits) -> Result<(), Refusal> {
        if areas.find(page).is_some() {
            // Another thread was faster.
            return Ok(());
        }
        let stack = areas.extended_by(page)?;
        if page < USER_START {
            return Err(SpaceError::NotPermitted.into());
        }
        let (size, more) = (stack.end() - page, stack.start() - page);
        let is_near =
            |below: &Area| !below.grows() && !below.protection().is_none() && page - below.end() < STACK_GUARD;
        if areas.last_below(page).is_some_and(is_near) || size > limits.stack || more > self.memory() {
            return Err(SpaceError::NoMemory.into());
        }
        if !areas.may_have(areas.total.saturating_add(more), limits) {
            return Err(areas.refusal());
        }
        areas.extend_down(&stack, page);
        Ok(())
    }
}
