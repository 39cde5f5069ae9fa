//! New code: the contents of a frame must be visible to instruction fetches of every CPU before an entry permits them.
//!
//! Once for each frame, as on Linux (`PG_dcache_clean`). Maintenance for later stores is the program's own, from EL0.

#![allow(unsafe_code, reason = "cache maintenance by address")]

use core::sync::atomic::Ordering;

use granule_arch::addr::{PAGE, PhysAddr};
use granule_arch::descriptor::{Descriptor, Protection, bits};
use granule_pgtable::{Feature, Mmu};

use super::address_space::Space;
use crate::lab;
use crate::mm::frame::Frame;

/// In the flags of a frame's record: its contents were made visible to fetches when it first became executable.
pub(super) const CODE_VISIBLE: u32 = 1;

/// Whether the contents of a frame are visible to fetches.
#[inline(always)]
pub(super) fn is_visible(frame: &Frame) -> bool {
    frame.flags.load(Ordering::Acquire) & CODE_VISIBLE != 0
}

/// Whether `entry` may be stored only when its frame is prepared: see [`Space::prepared`].
#[inline(always)]
pub(super) const fn needs_frame(entry: Descriptor) -> bool {
    /// Of the index of `NormalTagged` the bit that no other memory of a program has.
    const TAGGED: u64 = 0b10 << bits::ATTR_INDEX.trailing_zeros();
    (entry.0 ^ bits::UXN) & (bits::UXN | TAGGED) != 0
}

/// Whether entries of an area with `protection` may need a prepared frame, by one test: the preparation looks at each.
#[inline(always)]
pub(super) const fn may_need_frame(protection: Protection) -> bool {
    protection.common(Protection::EXECUTE.and(Protection::TAGGED)).bits() != Protection::NONE.bits()
}

/// Whether accesses by `entry` are checked against tags.
#[inline(always)]
pub(super) const fn is_checked(entry: Descriptor) -> bool {
    entry.is_valid() && entry.is_tagged()
}

impl Space {
    /// The entry to store for `new`, whose frame is prepared for what it permits: its contents are visible to fetches, and
    /// it has [tags](super::tags). Complete before a store that comes next. Where tags need storage that is not reserved,
    /// the entry waits for an access ([`fault_on_access`](super::fault_on_access)).
    #[inline(always)]
    #[must_use]
    pub(super) fn prepared(&self, new: Descriptor) -> Descriptor {
        if needs_frame(new) { self.prepare(new) } else { new }
    }

    /// As [`Self::prepared`], for the first access of a page in an area with `protection`, with one test of it: tag
    /// storage that is at hand is reserved.
    #[inline(always)]
    #[must_use]
    pub(super) fn prepared_for_fault(&self, new: Descriptor, protection: Protection) -> Descriptor {
        if may_need_frame(protection) { self.prepare_for_fault(new) } else { new }
    }

    #[cold]
    #[inline(never)]
    fn prepare_for_fault(&self, new: Descriptor) -> Descriptor {
        if is_checked(new) {
            // If it fails, the entry waits.
            let _ = self.common.page(new.address()).reserve_now();
        }
        self.prepared(new)
    }

    /// Whether [`Self::prepared`] returns an entry that waits for `new`, whose frame is prepared.
    #[cold]
    #[inline(never)]
    pub(super) fn becomes_waiting(&self, new: Descriptor) -> bool {
        self.prepared(new) != new
    }

    #[inline(never)]
    fn prepare(&self, new: Descriptor) -> Descriptor {
        // The page of zeros has no code, and keeps its tags.
        if new.is_special() || !new.is_valid() {
            return new;
        }
        let record = self.common.record(new.address());
        if new.is_user_executable() && !is_visible(record) {
            self.maintain(new.address(), PAGE);
        }
        if new.is_tagged() && !self.common.tag(new.address()) { new.fault_on_access() } else { new }
    }

    /// Makes `bytes` bytes from `frame` on visible to fetches; the record of `frame` has the flag for all of them then.
    #[cold]
    pub(super) fn maintain(&self, frame: PhysAddr, bytes: u64) {
        if lab::is_on!(SKIP_ICACHE_USER) {
            return;
        }
        let mmu = self.mmu();
        if !mmu.has(Feature::Idc) {
            let start = self.common.frames.linear().address(frame);
            // SAFETY: 1. The linear map has each frame of memory. 2. The caller holds these: they stay mapped there.
            unsafe { mmu.clean_code(start, bytes) };
        }
        mmu.dsb_ish();
        if !mmu.has(Feature::Dic) {
            // Invalidation by address needs a mapping that permits fetches, and there is none.
            mmu.invalidate_all_code();
            mmu.dsb_ish();
        }
        // Two CPUs may both do it, which is harmless.
        self.common.record(frame).flags.fetch_or(CODE_VISIBLE, Ordering::Release);
    }
}
