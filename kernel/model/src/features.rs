//! What the model's CPUs can do. All are alike.

/// Features of the architecture that change what is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Features {
    /// FEAT_BBM level 2: the size of a live translation may change, and entries of a contiguous group may differ in
    /// their contiguous bit.
    pub bbml2: bool,
    /// FEAT_ETS2: no access takes a translation fault that an earlier store has removed.
    pub ets2: bool,
    /// FEAT_TLBIRANGE: without it range operations are undefined.
    pub tlb_range: bool,
    /// FEAT_TTL: without it level hints in single operations are not looked at.
    pub ttl: bool,
}

impl Features {
    /// The least that portable code must assume.
    pub const BASE: Self = Self { bbml2: false, ets2: false, tlb_range: false, ttl: false };
    /// Everything.
    pub const ALL: Self = Self { bbml2: true, ets2: true, tlb_range: true, ttl: true };
}
