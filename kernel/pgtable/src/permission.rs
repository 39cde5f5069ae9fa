//! Changes of permission that are legal on a live entry, in Linux's vocabulary.
//!
//! Arm ARM D8.17.1 (break-before-make) lists what must not change while an entry is valid: output address, size, memory
//! type, global to non-global. A [`Change`] can only touch what is left, so no caller can ask for the rest.

use granule_arch::descriptor::{Descriptor, bits};

/// Bits that may change while the entry is live: valid, read-only and its DBM partner, execute-never, guarded page.
/// NG is among them for its second meaning alone: the mark of a present entry whose VALID is 0.
const LIVE_SAFE: u64 = bits::VALID | bits::PRESENT_INVALID | bits::RDONLY | bits::WRITE | bits::PXN | bits::GP;

/// The bits to clear and the bits to set in every leaf of a range.
///
/// Having one proves that it leaves address, size, memory type and contiguity alone. The two masks may overlap, because
/// the present-invalid mark and nG share a bit: **clearing comes first, then setting**.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    set: u64,
    clear: u64,
    /// Software bits that a leaf must have so that it may be changed at all.
    marked: u64,
    /// Bits that a leaf must have so that it does not become writable and executable, or writable at all
    /// ([`Change::of_writable`]).
    required: u64,
    /// Whether the TLBs may hold what a leaf was; not where all that may happen is that it becomes valid.
    leaves_stale: bool,
    /// See [`Change::may_make_code_of`].
    stays_data_if: u64,
}

impl Change {
    /// `set_memory_ro`: no more writes.
    pub const READ_ONLY: Self = Self::new(bits::RDONLY, bits::WRITE);
    /// `set_memory_rw`: writes again.
    pub const READ_WRITE: Self = Self::new(bits::WRITE, bits::RDONLY);
    /// `set_memory_x`: execution at EL1. UXN is never touched.
    pub const EXECUTABLE: Self = Self::new(0, bits::PXN);
    /// `set_memory_nx`: no execution at EL1.
    pub const NO_EXECUTE: Self = Self::new(bits::PXN, 0);
    /// `set_memory_rox`, as it is checked. No one store makes it, because TLBs may hold a leaf that was writable while
    /// others run what it has become: see [`crate::PageTables::update_to_code`].
    pub(crate) const READ_ONLY_EXECUTABLE: Self = Self::new(bits::RDONLY, bits::WRITE | bits::PXN);
    /// `set_memory_valid(…, 1)` of global mappings: a present-invalid leaf translates again.
    pub const VALID: Self = Self::new(bits::VALID, bits::PRESENT_INVALID);
    /// [`Change::VALID`] for mappings that belong to an ASID: valid entries carry nG.
    pub const VALID_NON_GLOBAL: Self = Self::new(bits::VALID | bits::NG, bits::PRESENT_INVALID);
    /// `set_memory_valid(…, 0)`: the hardware faults, every other field still describes the mapping.
    pub const INVALID: Self = Self::new(bits::PRESENT_INVALID, bits::VALID | bits::NG);

    const fn new(set: u64, clear: u64) -> Self {
        assert!((set | clear) & !LIVE_SAFE == 0);
        // Clearing both and setting neither would make any leaf writable and executable.
        let both = bits::RDONLY | bits::PXN;
        assert!(clear & both != both || set & both != 0);
        Self {
            set,
            clear,
            marked: 0,
            required: Self::requires(set, clear),
            leaves_stale: Self::takes_away(set, clear),
            stays_data_if: Self::data_bits(set, clear),
        }
    }

    /// No change clears RDONLY and PXN together, so one bit is all that can be missing.
    const fn requires(set: u64, clear: u64) -> u64 {
        if set & (bits::RDONLY | bits::PXN) != 0 {
            0
        } else if clear & bits::RDONLY != 0 {
            bits::PXN
        } else if clear & bits::PXN != 0 {
            bits::RDONLY
        } else {
            0
        }
    }

    const fn takes_away(set: u64, clear: u64) -> bool {
        let only_makes_valid = set & bits::VALID != 0 && (set | clear) & !(bits::VALID | bits::PRESENT_INVALID) == 0;
        !only_makes_valid
    }

    const fn data_bits(set: u64, clear: u64) -> u64 {
        if clear & bits::PXN != 0 {
            // No leaf has every bit set.
            u64::MAX
        } else if set & bits::VALID != 0 {
            bits::PXN
        } else {
            0
        }
    }

    /// This change, refused on any leaf that lacks one of the software bits `marks`: a caller can ask for what is
    /// not its own without a look at anything but the leaves.
    #[must_use]
    pub const fn require_bits(self, marks: u64) -> Self {
        assert!(marks & !bits::SOFTWARE == 0);
        Self { marked: marks, ..self }
    }

    /// This change, refused on any read-only leaf: where the frame may be executable at another address.
    #[must_use]
    pub const fn of_writable(self) -> Self {
        Self { required: self.required | bits::WRITE, ..self }
    }

    /// The software bits that each leaf must have: see [`Self::require_bits`].
    #[inline(always)]
    pub const fn required_bits(self) -> u64 {
        self.marked
    }

    /// Bits set in each leaf, after `clear_mask` was cleared.
    #[inline(always)]
    pub const fn set_mask(self) -> u64 {
        self.set
    }

    /// Bits cleared in each leaf.
    #[inline(always)]
    pub const fn clear_mask(self) -> u64 {
        self.clear
    }

    /// `old` changed.
    #[inline(always)]
    #[must_use]
    pub const fn apply(self, old: Descriptor) -> Descriptor {
        Descriptor((old.0 & !self.clear) | self.set)
    }

    /// Bits that each leaf must have already so that the change cannot make it writable and executable, and of
    /// [`Self::of_writable`]; 0 where any leaf will do.
    #[inline(always)]
    pub const fn required(self) -> u64 {
        self.required
    }

    /// Whether leaves become writable.
    #[inline(always)]
    pub const fn makes_writable(self) -> bool {
        self.clear & bits::RDONLY != 0
    }

    /// Whether leaves become executable at EL1.
    #[inline(always)]
    pub const fn makes_executable(self) -> bool {
        self.clear & bits::PXN != 0
    }

    /// Whether the hardware may run what it would not run before, once leaves that have all bits of `all` have changed:
    /// by permission, or because they become valid.
    #[inline(always)]
    pub(crate) const fn may_make_code_of(self, all: u64) -> bool {
        all & self.stays_data_if != self.stays_data_if
    }

    /// Whether a TLB may hold what is no longer true, once a leaf has changed. A change that only makes leaves valid
    /// leaves valid ones as they are. For any other a leaf that is not valid counts like one that is: it may have been
    /// made invalid by a `…_noflush` call, and be in TLBs still.
    #[inline(always)]
    pub(crate) const fn leaves_stale(self) -> bool {
        self.leaves_stale
    }

    /// Whether leaves become present-invalid, or stay so.
    #[inline(always)]
    pub(crate) const fn makes_invalid(self) -> bool {
        self.clear & bits::VALID != 0 && self.set & bits::VALID == 0
    }
}
