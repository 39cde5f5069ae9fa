//! Commands against two tables that were written from the specification, neither from the other nor from the code: by
//! fields of one number of 128 bits, and by the sixteen bytes in memory.

use std::format;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// A field: its lowest bit of 128, and its bits.
type Field = (u32, u32);

/// The first table: as the drawings of chapter 4 number bits, the upper word's from 64 on.
mod field {
    use super::Field;

    pub(super) const OPCODE: Field = (0, 8);
    pub(super) const SUBSTREAM: Field = (12, 20);
    pub(super) const NUM: Field = (12, 5);
    pub(super) const COMPLETION: Field = (12, 2);
    pub(super) const SCALE: Field = (20, 5);
    pub(super) const SHAREABILITY: Field = (22, 2);
    pub(super) const ATTRIBUTES: Field = (24, 4);
    pub(super) const STREAM: Field = (32, 32);
    pub(super) const DATA: Field = (32, 32);
    pub(super) const VMID: Field = (32, 16);
    pub(super) const ASID: Field = (48, 16);
    pub(super) const LEAF: Field = (64, 1);
    pub(super) const RANGE: Field = (64, 5);
    pub(super) const TTL: Field = (72, 2);
    pub(super) const TG: Field = (74, 2);
    pub(super) const PAGE: Field = (76, 52);
    pub(super) const WORD: Field = (66, 50);
}

#[allow(unsafe_code, reason = "bits that no SMMU gets")]
fn sync_with_store(at: PhysAddr, data: u32) -> Command {
    // SAFETY: it is not issued.
    unsafe { Command::sync_with_store(at, data) }
}

/// The command that these fields make.
fn fields(fields: &[(Field, u64)]) -> Command {
    let bits = fields.iter().fold(0u128, |bits, &((lowest, count), value)| {
        assert!(u128::from(value) < 1 << count, "{value:#x} has more than {count} bits");
        let place = ((1u128 << count) - 1) << lowest;
        assert_eq!(bits & place, 0, "two fields at {lowest}");
        bits | u128::from(value) << lowest
    });
    Command([bits as u64, (bits >> 64) as u64])
}

/// The command that these bytes are in memory.
fn bytes(bytes: [u8; 16]) -> Command {
    let [low, high] = [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()));
    Command([low, high])
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![Just(Scope::Leaves), Just(Scope::Tables)]
}

fn granule() -> impl Strategy<Value = Granule> {
    prop_oneof![Just(Granule::Size4K), Just(Granule::Size16K), Just(Granule::Size64K)]
}

proptest! {
    #[test]
    fn each_field_is_where_the_table_says(
        stream: u32, substream in 0u32..1 << 20, asid: u16, vmid: u16, address: u64, data: u32,
        pages in 1u64..1 << 36, level in 0u8..4, scope in scope(), granule in granule(),
    ) {
        use field::{OPCODE, SUBSTREAM, NUM, SCALE, STREAM, VMID, ASID, LEAF, RANGE, TTL, TG, PAGE};
        let leaf = u64::from(scope == Scope::Leaves);
        let (asid64, page, stream64) = (u64::from(asid), address >> 12, u64::from(stream));
        let at = VirtAddr(address);
        let span = Span::largest(pages);
        let span_fields = [(NUM, u64::from(span.num())), (SCALE, u64::from(span.scale()))];
        let hint = LevelHint::new(level);
        // One page without a hint is no range.
        let ttl = u64::from(hint.map_or(0, LevelHint::level));
        let tg = if pages == 1 && hint.is_none() { 0 } else { granule as u64 };
        let table: [(Command, Vec<(Field, u64)>); 13] = [
            (Command::SYNC, [(OPCODE, 0x46)].into()),
            (Command::sync_with_event(), [(OPCODE, 0x46), (field::COMPLETION, 2)].into()),
            (
                sync_with_store(PhysAddr(address & ((1 << 52) - 4)), data),
                [
                    (OPCODE, 0x46), (field::COMPLETION, 1), (field::SHAREABILITY, 3), (field::ATTRIBUTES, 0xf),
                    (field::DATA, u64::from(data)), (field::WORD, (address & ((1 << 52) - 4)) >> 2),
                ].into(),
            ),
            (Command::CFGI_ALL, [(OPCODE, 4), (RANGE, 31)].into()),
            (Command::cfgi_ste(stream, scope), [(OPCODE, 3), (STREAM, stream64), (LEAF, leaf)].into()),
            (
                Command::cfgi_cd(stream, substream, scope),
                [(OPCODE, 5), (STREAM, stream64), (SUBSTREAM, u64::from(substream)), (LEAF, leaf)].into(),
            ),
            (Command::cfgi_cd_all(stream), [(OPCODE, 6), (STREAM, stream64)].into()),
            (Command::prefetch_config(stream), [(OPCODE, 1), (STREAM, stream64)].into()),
            (Command::tlbi_nh_all(vmid), [(OPCODE, 0x10), (VMID, u64::from(vmid))].into()),
            (Command::tlbi_nh_asid(asid), [(OPCODE, 0x11), (ASID, asid64)].into()),
            (Command::tlbi_nh_va(asid, at, scope), [(OPCODE, 0x12), (ASID, asid64), (LEAF, leaf), (PAGE, page)].into()),
            (Command::tlbi_nh_vaa(at, scope), [(OPCODE, 0x13), (LEAF, leaf), (PAGE, page)].into()),
            (
                Command::tlbi_nh_va_range(asid, at, span, granule, hint, scope),
                [(OPCODE, 0x12), (ASID, asid64), (LEAF, leaf), (PAGE, page), (TTL, ttl), (TG, tg)]
                    .into_iter().chain(span_fields).collect(),
            ),
        ];
        for (command, expected) in table {
            prop_assert_eq!(command, fields(&expected));
        }
        prop_assert_eq!(Command::tlbi_s12_vmall(vmid), fields(&[(OPCODE, 0x28), (VMID, u64::from(vmid))]));
        prop_assert_eq!(Command::TLBI_NSNH_ALL, fields(&[(OPCODE, 0x30)]));
    }

    #[test]
    fn a_span_is_the_largest_that_fits(pages in 1u64..1 << 36) {
        let span = Span::largest(pages);
        prop_assert!(span.num() < 32 && span.scale() < 32);
        prop_assert_eq!(span.pages(), (u64::from(span.num()) + 1) << span.scale());
        // By trying all.
        let all = (0u32..32).flat_map(|scale| (1u64..=32).map(move |count| count << scale));
        prop_assert_eq!(span.pages(), all.filter(|&all| all <= pages).max().unwrap());
        prop_assert!(2 * span.pages() > pages);
        prop_assert_eq!(Span::exact(pages), (span.pages() == pages).then_some(span));
    }
}

/// The second table: as a dump of memory shows them.
#[test]
fn each_byte_is_where_the_table_says() {
    let at = VirtAddr(0x0000_7654_3210_f000);
    #[rustfmt::skip]
    let table = [
        (Command::SYNC,                               [0x46, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0]),
        (Command::sync_with_event(),                  [0x46, 0x20, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0]),
        (sync_with_store(PhysAddr(0x8_4000_0124), 0x1122_3344),
                            [0x46, 0x10, 0xc0, 0x0f,  0x44, 0x33, 0x22, 0x11,  0x24, 0x01, 0x00, 0x40,  0x08, 0, 0, 0]),
        (Command::CFGI_ALL,                           [0x04, 0, 0, 0,  0, 0, 0, 0,  0x1f, 0, 0, 0,  0, 0, 0, 0]),
        (Command::cfgi_ste(0x0102_0304, Scope::Leaves), [0x03, 0, 0, 0,  4, 3, 2, 1,  1, 0, 0, 0,  0, 0, 0, 0]),
        (Command::cfgi_ste(8, Scope::Tables),         [0x03, 0, 0, 0,  8, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0]),
        (Command::cfgi_cd(8, 0x1_2345, Scope::Leaves), [0x05, 0x50, 0x34, 0x12,  8, 0, 0, 0,  1, 0, 0, 0,  0, 0, 0, 0]),
        (Command::cfgi_cd_all(0x10),                  [0x06, 0, 0, 0,  0x10, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0]),
        (Command::prefetch_config(0x18),              [0x01, 0, 0, 0,  0x18, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0]),
        (Command::tlbi_nh_all(0x0102),                [0x10, 0, 0, 0,  2, 1, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0]),
        (Command::tlbi_nh_asid(0x0102),               [0x11, 0, 0, 0,  0, 0, 2, 1,  0, 0, 0, 0,  0, 0, 0, 0]),
        (Command::tlbi_nh_va(5, at, Scope::Leaves),
                            [0x12, 0, 0, 0,  0, 0, 5, 0,  0x01, 0xf0, 0x10, 0x32,  0x54, 0x76, 0, 0]),
        (Command::tlbi_nh_vaa(at, Scope::Tables),
                            [0x13, 0, 0, 0,  0, 0, 0, 0,  0x00, 0xf0, 0x10, 0x32,  0x54, 0x76, 0, 0]),
        // 21 << 3 pages: NUM is 20, SCALE 3; TG is 1, TTL 3.
        (Command::tlbi_nh_va_range(5, at, Span::exact(168).unwrap(), Granule::Size4K, LevelHint::new(3), Scope::Leaves),
                            [0x12, 0x40, 0x31, 0,  0, 0, 5, 0,  0x01, 0xf7, 0x10, 0x32,  0x54, 0x76, 0, 0]),
        (Command::tlbi_nh_va_range(5, at, Span::exact(168).unwrap(), Granule::Size64K, None, Scope::Tables),
                            [0x12, 0x40, 0x31, 0,  0, 0, 5, 0,  0x00, 0xfc, 0x10, 0x32,  0x54, 0x76, 0, 0]),
        (Command::tlbi_s12_vmall(3),                  [0x28, 0, 0, 0,  3, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0]),
        (Command::TLBI_NSNH_ALL,                      [0x30, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0,  0, 0, 0, 0]),
    ];
    for (command, expected) in table {
        assert_eq!(command, bytes(expected));
    }
}

#[test]
fn a_command_says_what_it_is() {
    let at = VirtAddr(0x1_0000_0000);
    let range =
        |pages| Command::tlbi_nh_va_range(6, at, Span::exact(pages).unwrap(), Granule::Size4K, None, Scope::Leaves);
    for (command, text) in [
        (Command::SYNC, "CMD_SYNC"),
        (Command::sync_with_event(), "CMD_SYNC with an event"),
        (sync_with_store(PhysAddr(0x4000_0124), 7), "CMD_SYNC with a store at 0x40000124"),
        (Command::CFGI_ALL, "CMD_CFGI_STE_RANGE all"),
        (Command([COMMAND0::OPCODE::CfgiSteRange.value | 8 << 32, 3]), "CMD_CFGI_STE_RANGE 16 streams from 0x8"),
        (Command::cfgi_ste(8, Scope::Leaves), "CMD_CFGI_STE stream 0x8 leaf"),
        (Command::cfgi_cd(8, 0, Scope::Leaves), "CMD_CFGI_CD stream 0x8 substream 0x0 leaf"),
        (Command::cfgi_cd_all(9), "CMD_CFGI_CD_ALL stream 0x9"),
        (Command::tlbi_nh_asid(6), "CMD_TLBI_NH_ASID asid 6"),
        (range(1), "CMD_TLBI_NH_VA asid 6 address 0x100000000 leaf"),
        (range(48), "CMD_TLBI_NH_VA asid 6 address 0x100000000 48 pages of 4 KiB leaf"),
        (Command::tlbi_nh_vaa(at, Scope::Tables), "CMD_TLBI_NH_VAA address 0x100000000"),
        (Command::TLBI_NSNH_ALL, "CMD_TLBI_NSNH_ALL"),
        (Command([0xff, 0]), "no command, opcode 0xff"),
    ] {
        let [low, high] = command.0;
        assert_eq!(format!("{command}"), format!("{text} ({low:#018x} {high:#018x})"));
    }
}
