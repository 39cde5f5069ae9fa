//! Each field of the ID registers by its bits in the specification, whatever the other bits are.

extern crate std;

use std::format;

use super::{Features, Stall};

/// Which register: its place in [`Features::raw`].
const IDR0: usize = 0;
const IDR1: usize = 1;
const IDR3: usize = 3;
const IDR5: usize = 5;
const AIDR: usize = 7;

/// A field: its register, first bit and width, what is decoded from it, and the values with what they mean.
struct Field {
    name: &'static str,
    register: usize,
    first: u32,
    width: u32,
    decoded: fn(&Features) -> u8,
    values: &'static [(u32, u8)],
}

const FLAG: &[(u32, u8)] = &[(0, 0), (1, 1)];

const fn flag(name: &'static str, register: usize, first: u32, decoded: fn(&Features) -> u8) -> Field {
    Field { name, register, first, width: 1, decoded, values: FLAG }
}

const fn number(
    name: &'static str,
    register: usize,
    [first, width]: [u32; 2],
    decoded: fn(&Features) -> u8,
    values: &'static [(u32, u8)],
) -> Field {
    Field { name, register, first, width, decoded, values }
}

const FIELDS: [Field; 37] = [
    flag("S2P", IDR0, 0, |it| it.stage2.into()),
    flag("S1P", IDR0, 1, |it| it.stage1.into()),
    number("TTF", IDR0, [2, 2], |it| it.aarch64.into(), &[(0, 0), (1, 0), (2, 1), (3, 1)]),
    flag("COHACC", IDR0, 4, |it| it.coherent.into()),
    flag("BTM", IDR0, 5, |it| it.broadcast.into()),
    number("HTTU", IDR0, [6, 2], |it| it.access_flag.into(), &[(0, 0), (1, 1), (2, 1), (3, 1)]),
    number("HTTU of dirty state", IDR0, [6, 2], |it| it.dirty.into(), &[(0, 0), (1, 0), (2, 1), (3, 1)]),
    flag("ATS", IDR0, 10, |it| it.ats.into()),
    number("ASID16", IDR0, [12, 1], |it| it.asid_bits, &[(0, 8), (1, 16)]),
    flag("MSI", IDR0, 13, |it| it.msi.into()),
    flag("SEV", IDR0, 14, |it| it.event.into()),
    flag("PRI", IDR0, 16, |it| it.pri.into()),
    number("VMID16", IDR0, [18, 1], |it| it.vmid_bits, &[(0, 8), (1, 16)]),
    // 0 mixed, 1 reserved, 2 little, 3 big.
    number("TTENDIAN", IDR0, [21, 2], |it| it.little_endian.into(), &[(0, 1), (1, 0), (2, 1), (3, 0)]),
    number("STALL_MODEL", IDR0, [24, 2], |it| (it.stall == Stall::ByContext).into(), &[(0, 1), (1, 0), (2, 0), (3, 0)]),
    number("STALL_MODEL 1", IDR0, [24, 2], |it| (it.stall == Stall::Never).into(), &[(0, 0), (1, 1), (2, 0), (3, 1)]),
    number("STALL_MODEL 2", IDR0, [24, 2], |it| (it.stall == Stall::Always).into(), &[(0, 0), (1, 0), (2, 1), (3, 0)]),
    number("ST_LEVEL", IDR0, [27, 2], |it| it.two_levels.into(), &[(0, 0), (1, 1)]),
    number("SIDSIZE", IDR1, [0, 6], |it| it.stream_bits, &[(0, 0), (1, 1), (16, 16), (32, 32)]),
    number("SSIDSIZE", IDR1, [6, 5], |it| it.substream_bits, &[(0, 0), (1, 1), (20, 20)]),
    number("EVENTQS", IDR1, [16, 5], |it| it.event_queue_bits, &[(0, 0), (1, 1), (19, 19)]),
    number("CMDQS", IDR1, [21, 5], |it| it.command_queue_bits, &[(0, 0), (1, 1), (19, 19)]),
    flag("ATTR_PERMS_OVR", IDR1, 26, |it| it.privilege_override.into()),
    flag("REL", IDR1, 28, |it| it.relative.into()),
    flag("QUEUES_PRESET", IDR1, 29, |it| it.queues_preset.into()),
    flag("TABLES_PRESET", IDR1, 30, |it| it.tables_preset.into()),
    flag("RIL", IDR3, 10, |it| it.range_invalidation.into()),
    number("BBML", IDR3, [11, 2], |it| it.bbm_level, &[(0, 0), (1, 1), (2, 2), (3, 2)]),
    number(
        "OAS",
        IDR5,
        [0, 3],
        |it| it.output_bits,
        // 7 is reserved.
        &[(0, 32), (1, 36), (2, 40), (3, 42), (4, 44), (5, 48), (6, 52), (7, 48)],
    ),
    flag("GRAN4K", IDR5, 4, |it| it.granule_4k.into()),
    flag("GRAN16K", IDR5, 5, |it| it.granule_16k.into()),
    flag("GRAN64K", IDR5, 6, |it| it.granule_64k.into()),
    number("VAX", IDR5, [10, 2], |it| it.large_va.into(), &[(0, 0), (1, 1), (2, 0), (3, 0)]),
    flag("ArchMinorRev", AIDR, 0, |it| it.minor & 1),
    number("ArchMinorRev", AIDR, [0, 4], |it| it.minor, &[(0, 0), (1, 1), (2, 2), (15, 15)]),
    number("no implementer", 6, [0, 12], |it| (it.raw[6] & 0xfff != 0).into(), &[(0, 0), (0x43b, 1)]),
    number("ATTR_PERMS_OVR", IDR1, [26, 1], |it| u8::from(!it.ignores_privilege()), &[(1, 1)]),
];

#[test]
fn each_field_is_decoded_from_its_bits_alone() {
    for Field { name, register, first, width, decoded, values } in FIELDS {
        for others in [0, u32::MAX] {
            for &(value, expected) in values {
                let mut raw = [others; 8];
                let mask = (u32::MAX >> (32 - width)) << first;
                raw[register] = raw[register] & !mask | value << first;
                assert_eq!(decoded(&Features::decode(raw)), expected, "{name} {value}, others {others:#x}");
            }
        }
    }
}

#[test]
fn an_smmu_without_implementer_or_override_ignores_privilege() {
    let with = |idr1, iidr| {
        let mut raw = [0; 8];
        (raw[IDR1], raw[6]) = (idr1, iidr);
        Features::decode(raw).ignores_privilege()
    };
    assert_eq!([with(0, 0), with(1 << 26, 0), with(0, 0x43b), with(1 << 26, 0x43b)], [true, false, false, false]);
}

#[test]
fn every_feature_has_a_word_and_the_maker_is_named_where_there_is_one() {
    let line = |raw| format!("{}", Features::decode(raw));
    let nothing = line([0; 8]);
    assert!(!nothing.contains("implementer"));
    // Of each bit that has a word.
    for (register, bit, word) in [
        (IDR0, 0, " stage2"),
        (IDR0, 1, " stage1"),
        (IDR0, 4, " coherent"),
        (IDR0, 5, " broadcast"),
        (IDR0, 6, " access-flag"),
        (IDR0, 7, " dirty"),
        (IDR0, 10, " ats"),
        (IDR0, 13, " msi"),
        (IDR0, 14, " event"),
        (IDR0, 16, " pri"),
        (IDR0, 27, " 2-level"),
        (IDR1, 26, " privilege-override"),
        (IDR3, 10, " range-invalidation"),
        (IDR5, 4, " 4K"),
        (IDR5, 5, " 16K"),
        (IDR5, 6, " 64K"),
        (IDR0, 25, "faults stall"),
        (IDR0, 24, "faults end the transaction"),
        (6, 12, " (implementer 0x0, product 0x0 r0p1)"),
    ] {
        let mut raw = [0; 8];
        raw[register] = 1 << bit;
        let line = line(raw);
        assert!(line.contains(word) && !nothing.contains(word), "{word}: {line}");
    }
}
