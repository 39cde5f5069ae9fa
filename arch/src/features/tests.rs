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

/// By the positions and numbers of the Arm ARM (D24.2): a feature is there from its first number on, whatever the rest of
/// the register has.
#[test]
fn each_feature_begins_at_its_number() {
    type Row = (&'static str, fn(&mut CpuFeatures) -> &mut u64, u32, u64, fn(&CpuFeatures) -> bool);
    const NONE: CpuFeatures =
        CpuFeatures { isar0: 0, isar1: 0, isar2: 0, mmfr0: 0, mmfr1: 0, mmfr2: 0, pfr0: 0, pfr1: 0, ..A53 };
    let rows: [Row; 15] = [
        ("ASIDs of 16 bits", |cpu| &mut cpu.mmfr0, 4, 2, |cpu| cpu.asid_bits() == 16),
        ("granules of 16 KiB", |cpu| &mut cpu.mmfr0, 20, 1, |cpu| cpu.granules().k16),
        ("FEAT_E0PD", |cpu| &mut cpu.mmfr2, 60, 1, CpuFeatures::e0pd),
        ("FEAT_TTCNP", |cpu| &mut cpu.mmfr2, 0, 1, CpuFeatures::cnp),
        ("FEAT_ETS2", |cpu| &mut cpu.mmfr1, 36, 2, CpuFeatures::ets2),
        ("FEAT_TLBIRANGE", |cpu| &mut cpu.isar0, 56, 2, CpuFeatures::tlb_range),
        ("FEAT_TTL", |cpu| &mut cpu.mmfr2, 48, 1, CpuFeatures::ttl),
        ("FEAT_LSE", |cpu| &mut cpu.isar0, 20, 2, CpuFeatures::lse),
        ("FEAT_RNG", |cpu| &mut cpu.isar0, 60, 1, CpuFeatures::rng),
        ("FEAT_MOPS", |cpu| &mut cpu.isar2, 16, 1, CpuFeatures::mops),
        ("FEAT_SB", |cpu| &mut cpu.isar1, 36, 1, CpuFeatures::sb),
        ("FEAT_CSV3", |cpu| &mut cpu.pfr0, 60, 1, CpuFeatures::csv3),
        ("FEAT_SSBS", |cpu| &mut cpu.pfr1, 4, 1, CpuFeatures::ssbs),
        ("FEAT_ECBHB", |cpu| &mut cpu.mmfr1, 60, 1, CpuFeatures::ecbhb),
        ("FEAT_BTI", |cpu| &mut cpu.pfr1, 0, 1, CpuFeatures::bti),
    ];
    for (name, register, shift, first, has) in rows {
        for value in 0..16 {
            for others in [0, !(0xf << shift)] {
                let mut cpu = NONE;
                *register(&mut cpu) = value << shift | others;
                assert_eq!(has(&cpu), value >= first, "{name}: {value}");
            }
        }
    }
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
