//! Reading and comparing ID registers, with values of real cores.

extern crate std;
use std::string::ToString;

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

use super::{
    BreakBeforeMake, CpuFeatures, Granules, HardwareUpdates, IdAa64dfr0El1, Mte, Pan, Pmu, SIGNED_MMFR0, least_fields,
    with_pmu_of_arm,
};

/// Cortex-A53.
const A53: CpuFeatures = CpuFeatures {
    midr: 0x410f_d034,
    isar0: 0x0001_1120,
    mmfr0: 0x0000_1122,
    pfr0: 0x0000_0011_0000_2222,
    dfr0: 0x1030_5106,
    ctr: 0x8444_8004,
    dczid: 4,
    pmceid0: 0x67ff_bfff,
    isar1: 0,
    isar2: 0,
    mmfr1: 0,
    mmfr2: 0,
    mmfr3: 0,
    mmfr4: 0,
    pfr1: 0,
};

/// A core with about everything.
const RICH: CpuFeatures = CpuFeatures {
    midr: 0x000f_0510,
    isar0: 0x1221_1111_1021_2120,
    isar2: 0x0000_0000_0001_0000,
    mmfr0: 0x1000_0003_2211_0126 & !(0xff << 24) | 1 << 28,
    mmfr1: 0x0000_1020_1032_1122,
    mmfr2: 0x1221_0110_1101_1011,
    pfr1: 0x0000_0321,
    dfr0: 0x0600,
    ctr: 0x8444_c004 | 1 << 28,
    dczid: 7,
    pmceid0: 1 << 8,
    ..A53
};

#[test]
fn an_old_core_has_next_to_nothing() {
    assert_eq!(A53.pa_bits(), 40);
    assert_eq!(A53.va_bits(), 48);
    assert_eq!(A53.granules(), Granules { k4: true, k16: false, k64: true });
    assert_eq!(A53.asid_bits(), 16);
    assert_eq!(A53.hafdbs(), HardwareUpdates::None);
    assert_eq!(A53.pan(), Pan::None);
    assert_eq!(A53.bbm(), BreakBeforeMake::Required);
    assert_eq!(A53.mte(), Mte::None);
    assert!(!(A53.e0pd() || A53.cnp() || A53.ets2() || A53.tlb_range() || A53.ttl() || A53.lse() || A53.mops()));
    assert_eq!(A53.dc_zva(), Some(64));
    assert_eq!(A53.pmu(), Some(Pmu { version: 1, instructions: true }));
}

#[test]
fn a_pmu_that_is_not_arms_is_none() {
    for (read, seen) in [(0x1030_5f06, 0x1030_5006), (0x1030_5106, 0x1030_5106), (0x0e00, 0x0e00), (0, 0)] {
        assert_eq!(with_pmu_of_arm(IdAa64dfr0El1::from_bits_retain(read)).bits(), seen);
    }
}

#[test]
fn a_rich_core_has_them_all() {
    assert_eq!(RICH.pa_bits(), 52);
    assert_eq!(RICH.va_bits(), 52);
    assert_eq!(RICH.granules(), Granules { k4: true, k16: true, k64: true });
    assert_eq!(RICH.hafdbs(), HardwareUpdates::Dirty);
    assert_eq!(RICH.pan(), Pan::Epan);
    assert_eq!(RICH.bbm(), BreakBeforeMake::NotRequired);
    assert_eq!(RICH.mte(), Mte::Asymmetric);
    assert!(RICH.e0pd() && RICH.cnp() && RICH.ets2() && RICH.tlb_range() && RICH.ttl() && RICH.lse() && RICH.mops());
    assert_eq!(RICH.dc_zva(), Some(512));
}

#[test]
fn of_two_cores_the_least_wins_field_by_field() {
    let both = A53.least(&RICH);
    assert_eq!(both.midr, 0);
    assert_eq!(both.pa_bits(), 40);
    assert_eq!(both.pan(), Pan::None);
    assert_eq!(both.granules(), Granules { k4: true, k16: false, k64: true });
    // Different block sizes: neither can be counted on.
    assert_eq!(both.dc_zva(), None);
}

#[test]
fn a_granule_that_one_core_lacks_is_lacking() {
    // TGran4 = 0xf means "not there" and is less than 0.
    let without = CpuFeatures { mmfr0: 0xf << 28, ..A53 };
    assert!(!A53.least(&without).granules().k4);
    assert!(!without.least(&RICH).granules().k4);
    assert_eq!(least_fields(0xf << 28, 1 << 28, SIGNED_MMFR0), 0xf << 28);
    assert_eq!(least_fields(0xf << 28, 1 << 28, 0), 1 << 28);
}

#[test]
fn code_needs_maintenance_where_one_core_needs_it() {
    let needs_nothing = CpuFeatures { ctr: 0b11 << 28 | 4 << 16 | 4, ..RICH };
    let needs_both = CpuFeatures { ctr: 3 << 16 | 5, ..RICH };
    assert_eq!(needs_nothing.least(&needs_both).ctr, 3 << 16 | 4);
    assert_eq!(needs_nothing.least(&needs_nothing).ctr, needs_nothing.ctr);
}

#[test]
fn the_listing_has_a_line_for_each() {
    let text = RICH.to_string();
    assert_eq!(text.lines().count(), 18);
    assert!(text.contains("BBM        level 2\n"), "{text}");
    assert!(text.contains("granules   4K 16K 64K\n"), "{text}");
}

proptest! {
    #[test]
    fn least_is_a_meet(a in any::<[u64; 3]>(), b in any::<[u64; 3]>(), c in any::<[u64; 3]>()) {
        let cpu = |r: [u64; 3]| CpuFeatures { mmfr0: r[0], pfr0: r[1], ctr: r[2] & 0x3fff_000f, ..RICH };
        let (a, b, c) = (cpu(a), cpu(b), cpu(c));
        prop_assert_eq!(a.least(&b), b.least(&a));
        prop_assert_eq!(a.least(&b).least(&c), a.least(&b.least(&c)));
        prop_assert_eq!(a.least(&a), a);
        prop_assert!(a.least(&b).pa_bits() <= a.pa_bits().min(b.pa_bits()));
    }
}
