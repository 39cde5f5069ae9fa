//! Features of the model's CPUs. All are alike.

use granule_arch::descriptor::bits;

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
    /// FEAT_HAFDBS: the hardware sets the access flag, at any moment.
    pub access_flag: bool,
    /// FEAT_HAFDBS with dirty state: the hardware makes a leaf with DBM writable, at any moment.
    pub dirty_state: bool,
}

impl Features {
    /// The least that portable code must assume.
    pub const BASE: Self =
        Self { bbml2: false, ets2: false, tlb_range: false, ttl: false, access_flag: false, dirty_state: false };
    /// Everything.
    pub const ALL: Self =
        Self { bbml2: true, ets2: true, tlb_range: true, ttl: true, access_flag: true, dirty_state: true };

    /// The leaf after the hardware's changes when it is used, for a load and a store: TLBs may hold that as well.
    pub(crate) const fn used(self, leaf: u64) -> u64 {
        let access = if self.access_flag { bits::AF } else { 0 };
        let dirty = if self.dirty_state && leaf & bits::WRITE != 0 { bits::RDONLY } else { 0 };
        (leaf | access) & !dirty
    }
}
