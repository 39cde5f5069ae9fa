//! The limits of a program for its space, what cannot fit in memory, and stacks that grow.
//!
//! As on Linux (`may_expand_vm`, `__vm_enough_memory` with overcommit, `expand_downwards`): a call is refused for what
//! it would add, never for what is mapped already. Memory is not reserved: a call is refused for an area that private
//! stores could fill and that is larger than all memory, and for no other.

use granule_arch::addr::VirtAddr;
use granule_arch::descriptor::Protection;
use granule_pgtable::PageRange;

use super::area::{Area, Areas, Held};
use super::calls::STACK_GUARD;
use super::{PAGE, Space, SpaceError, USER_START};

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

    fn allow_data(&self, bytes: u64) -> bool {
        bytes <= self.data || self.data == 0 && bytes <= self.data_hard
    }
}

/// The conditions of a mapping, beside its [`MapRequest`](super::MapRequest).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The program's limits.
    pub limits: SpaceLimits,
    /// Whether a mapping larger than all memory is refused (not with `MAP_NORESERVE`).
    pub fits_in_memory: bool,
    /// Whether accesses below it extend it (`MAP_GROWSDOWN`).
    pub grows: bool,
}

impl Terms {
    /// For mappings of the kernel. The limit of a stack is not known here.
    pub const NONE: Self =
        Self { limits: SpaceLimits { stack: 0, ..SpaceLimits::NONE }, fits_in_memory: true, grows: false };
}

/// The least room to grow below a program's stack, as on Linux.
pub(super) const STACK_GAP: u64 = 128 << 20;
/// The most.
const MOST_STACK_GAP: u64 = (1 << 48) / 6 * 5;

/// Bytes below a stack of `bytes` bytes that the kernel does not choose, where it may grow to `limit`.
pub(super) fn stack_guard(bytes: u64, limit: u64) -> u64 {
    let wanted = limit.saturating_add(STACK_GUARD).min(MOST_STACK_GAP);
    let gap = if wanted < STACK_GAP { STACK_GAP } else { wanted };
    gap.saturating_sub(bytes).max(STACK_GUARD)
}

impl Areas {
    /// Whether the limits permit an area in `range`, in place of the areas there.
    pub(super) fn may_add(&self, range: PageRange, is_data: bool, limits: &SpaceLimits) -> bool {
        let fits = |bytes: u64| {
            self.total.saturating_add(bytes) <= limits.space
                && (!is_data || limits.allow_data(self.data.saturating_add(bytes)))
        };
        let bytes = range.end() - range.start();
        // The areas that it replaces are visited only where they matter.
        fits(bytes) || fits(bytes - self.touching(range).map(|area| area.bytes_in(range)).sum::<u64>())
    }

    /// The start of the first area in `range`, which is covered, that may not get `protection`; the end of `range`
    /// where all may.
    pub(super) fn may_protect_until(
        &self,
        range: PageRange,
        protection: Protection,
        limits: &SpaceLimits,
        memory: u64,
    ) -> VirtAddr {
        let mut data = self.data;
        for area in self.touching(range).filter(|area| area.becomes_writable(protection)) {
            let bytes = area.bytes_in(range);
            // As on Linux, which checks whether the area could be added again.
            let new_data = area.becomes_data(protection) && self.total.saturating_add(bytes) <= limits.space;
            if new_data && !limits.allow_data(data.saturating_add(bytes)) || area.is_reserved() && bytes > memory {
                return area.part_in(range).start();
            }
            if area.becomes_data(protection) {
                data = data.saturating_add(bytes);
            }
        }
        range.end()
    }

    /// The area that an access at `page`, which is in none, extends.
    fn extended_by(&self, page: VirtAddr) -> Option<Held> {
        self.first_from(page).filter(|above| above.grows())
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
        (self.common.frames.total() as u64).saturating_mul(PAGE)
    }

    /// Whether the space is within `limits`.
    pub fn is_within(&self, limits: &SpaceLimits) -> bool {
        let areas = self.areas.read();
        areas.total <= limits.space && limits.allow_data(areas.data)
    }

    /// Extends the stack above `address`, which is in no area, down to its page.
    ///
    /// # Errors
    /// [`SpaceError::NoArea`] (no stack is above), [`SpaceError::NotPermitted`] (too near to address 0),
    /// [`SpaceError::NoMemory`] (a limit, or too near to the area below). Nothing was changed.
    pub fn grow_stack(&self, address: VirtAddr, limits: &SpaceLimits) -> Result<(), SpaceError> {
        let page = address.align_down(PAGE);
        if self.areas.read().extended_by(page).is_none() {
            return Err(SpaceError::NoArea);
        }
        let mut areas = self.areas.write();
        if areas.find(page).is_some() {
            // Another thread was faster.
            return Ok(());
        }
        let stack = areas.extended_by(page).ok_or(SpaceError::NoArea)?;
        if page < USER_START {
            return Err(SpaceError::NotPermitted);
        }
        let (size, more) = (stack.end() - page, stack.start() - page);
        let is_near =
            |below: &Area| !below.grows() && below.protection() != Protection::NONE && page - below.end() < STACK_GUARD;
        if areas.last_below(page).is_some_and(is_near)
            || areas.total.saturating_add(more) > limits.space
            || size > limits.stack
            || more > self.memory()
        {
            return Err(SpaceError::NoMemory);
        }
        areas.extend_down(&stack, page);
        Ok(())
    }
}
