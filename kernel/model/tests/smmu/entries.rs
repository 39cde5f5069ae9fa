//! Stream table entries and context descriptors: what their bits mean to the SMMU, and every way from one to another.
//!
//! The SMMU of these tests reads an entry word by word, in any order, at any time: at each moment it may see any
//! mixture of what each word was since the last invalidation. Each must be the old entry or the new one; on ways that
//! are not hitless, or the invalid one.

use std::collections::BTreeSet;
use std::fmt::Debug;

use granule_arch::addr::PhysAddr;
use granule_arch::tlbi::Granule;
use granule_model::smmu::{Context, Entry, Hardware, ReadAs, Regime, Stage1, Tables};
use granule_smmuv3::hitless::{Entry as _, EntryStep, Update, Words};
use granule_smmuv3::{ContextDescriptor, EntryFormat, OutputSize, Privilege, StreamTableEntry, Translation};
use proptest::prelude::*;

/// An SMMU that can all that an entry may ask for.
const ABLE: Hardware = Hardware { overrides_privilege: true, ..Hardware::PLAIN };
const FORMAT: EntryFormat = EntryFormat { coherent: true, can_stall: false };
const CONTEXT: u64 = 0x4_5678_9a40;

const TRANSLATION: Translation = Translation {
    root: PhysAddr(0x8_1234_5000),
    address_bits: 39,
    granule: Granule::Size4K,
    output: OutputSize::Bits44,
    memory_types: 0xff44_0400,
    asid: 5,
    coherent: true,
};

fn stage1(context: u64, privilege: Privilege) -> StreamTableEntry {
    StreamTableEntry::translate(PhysAddr(context), privilege, FORMAT)
}

/// Entries that this driver does not make, and may find.
fn stage2(vmid: u64) -> StreamTableEntry {
    let second = 1 << 44 | 1 << 25;
    let third = vmid | 25 << 32 | 1 << 38 | 0b0101 << 40 | 0b11 << 44 | 4 << 48 | 1 << 51 | 1 << 58;
    StreamTableEntry([0b1101, second, third, 0x9_8765_4000, 0, 0, 0, 0])
}

fn nested() -> StreamTableEntry {
    let mut entry = stage2(0);
    entry.0[0] = 0b1111 | CONTEXT;
    entry.0[1] |= 0xd4;
    entry
}

/// S1DSS is bypass: transactions without a substream have attributes of their own.
fn stage1_bypassed(shareability: u64) -> StreamTableEntry {
    let mut entry = stage1(CONTEXT, Privilege::Incoming);
    entry.0[1] |= 0b01 | shareability << 44;
    entry
}

const INVALID: StreamTableEntry = StreamTableEntry([0; 8]);

/// The specification's tables, 5.2 and 5.4, as whole words: written from its bit numbers, with no name of the driver's.
#[test]
fn entries_are_these_words() {
    assert_eq!(StreamTableEntry::ABORT.0, [0x1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(StreamTableEntry::BYPASS.0, [0x9, 0x1000_0000_0000, 0, 0, 0, 0, 0, 0]);
    for (privilege, coherent, can_stall, second) in [
        (Privilege::Incoming, true, false, 0xd4),
        (Privilege::Privileged, true, false, 0x0003_0000_0000_00d4),
        (Privilege::Incoming, true, true, 0x0800_00d4),
        (Privilege::Incoming, false, false, 0x80),
    ] {
        let entry = StreamTableEntry::translate(PhysAddr(CONTEXT), privilege, EntryFormat { coherent, can_stall });
        assert_eq!(entry.0, [0x4_5678_9a4b, second, 0, 0, 0, 0, 0, 0]);
        assert_eq!(entry.context(), Some(PhysAddr(CONTEXT)));
    }
    let context = ContextDescriptor::new(&TRANSLATION);
    assert_eq!(context.0, [0x0005_e204_c000_3519, 0x8_1234_5000, 0, 0xff44_0400, 0, 0, 0, 0]);
    assert_eq!(context.disabled().0, [0x0005_c204_c000_4000, 0, 0, 0xff44_0400, 0, 0, 0, 0]);
    for (granule, code) in [(Granule::Size4K, 0), (Granule::Size64K, 1 << 6), (Granule::Size16K, 2 << 6)] {
        let context = ContextDescriptor::new(&Translation { granule, ..TRANSLATION });
        assert_eq!(context.0[0], 0x0005_e204_c000_3519 | code);
    }
    let apart = ContextDescriptor::new(&Translation { coherent: false, ..TRANSLATION });
    assert_eq!(apart.0[0], 0x0005_e204_c000_2019);
}

/// The model's decoder, which has its own reading of every field, reads the same entries.
#[test]
fn the_smmu_reads_what_was_meant() {
    let read = |entry: &StreamTableEntry, hardware: &Hardware| Entry::decode(&entry.0, hardware);
    assert_eq!(read(&StreamTableEntry::ABORT, &Hardware::QEMU), Entry::Abort);
    assert_eq!(read(&StreamTableEntry::BYPASS, &Hardware::QEMU), Entry::Bypass(0b01 << 44));
    let meant = Stage1 {
        context: CONTEXT,
        read_as: ReadAs::WRITE_BACK,
        privilege: 0,
        instruction: 0,
        world: 0,
        never_stalls: false,
        rest: [0, 0],
    };
    let entry = stage1(CONTEXT, Privilege::Incoming);
    assert_eq!(read(&entry, &Hardware::QEMU), Entry::Translate(meant));
    let privileged = stage1(CONTEXT, Privilege::Privileged);
    assert_eq!(read(&privileged, &ABLE), Entry::Translate(Stage1 { privilege: 3, ..meant }));
    let format = EntryFormat { coherent: true, can_stall: true };
    let strict = StreamTableEntry::translate(PhysAddr(CONTEXT), Privilege::Incoming, format);
    assert_eq!(read(&strict, &ABLE), Entry::Translate(Stage1 { never_stalls: true, ..meant }));
    assert!(matches!(read(&strict, &Hardware::QEMU), Entry::Bad(why) if why.contains("S1STALLD")));

    let regime = Regime {
        asid: 5,
        tables: Some(Tables { root: 0x8_1234_5000, input_bits: 39, page_shift: 12, read_as: ReadAs::WRITE_BACK }),
        output_bits: 44,
        memory_types: 0xff44_0400,
        ignores_young: false,
        records: true,
        tells: true,
        rest: 1 << 47 | 1 << 30,
    };
    let context = ContextDescriptor::new(&TRANSLATION);
    for hardware in [Hardware::QEMU, ABLE] {
        assert_eq!(Context::decode(&context.0, &meant, &hardware), Context::Regime(regime));
        let quiet = Regime { tables: None, records: false, ..regime };
        assert_eq!(Context::decode(&context.disabled().0, &meant, &hardware), Context::Regime(quiet));
    }
}

/// The driver makes no entry that QEMU takes for illegal, as the architecture allows it to.
#[test]
fn the_smmu_refuses_what_it_has_not() {
    let refused = |bit: u32| {
        let mut words = ContextDescriptor::new(&TRANSLATION).0;
        words[0] ^= 1 << bit;
        let stage1 = Entry::decode(&stage1(CONTEXT, Privilege::Incoming).0, &Hardware::QEMU);
        let Entry::Translate(stage1) = stage1 else { panic!("{stage1:?}") };
        matches!(Context::decode(&words, &stage1, &Hardware::QEMU), Context::Bad(_))
    };
    // V, EPD1, AA64, HD, HA, S, A.
    for bit in [31, 30, 41, 42, 43, 44, 46] {
        assert!(refused(bit), "bit {bit}");
    }
    // AFFD, R and ASET are choices.
    for bit in [35, 45, 47] {
        assert!(!refused(bit), "bit {bit}");
    }
    let mut many = stage1(CONTEXT, Privilege::Incoming);
    many.0[0] |= 1 << 59;
    assert!(matches!(Entry::decode(&many.0, &Hardware::QEMU), Entry::Bad(why) if why.contains("S1CDMax")));
}

/// The values of an entry that the SMMU may see: each word as it was at some time since the last invalidation.
struct Seen([Vec<u64>; 8]);

impl Seen {
    fn new(words: &Words) -> Self {
        Self(words.map(|word| vec![word]))
    }

    fn now(&self) -> Words {
        std::array::from_fn(|word| *self.0[word].last().unwrap())
    }

    fn mixtures(&self) -> impl Iterator<Item = Words> {
        let count = self.0.iter().map(Vec::len).product::<usize>();
        (0..count).map(|mut which| {
            std::array::from_fn(|word| {
                let values = &self.0[word];
                let value = values[which % values.len()];
                which /= values.len();
                value
            })
        })
    }
}

/// Goes from `from` to `to` store by store, and returns the number of invalidations and whether it was hitless.
#[track_caller]
fn go<E: granule_smmuv3::hitless::Entry, V: Ord + Debug>(
    from: &E,
    to: &E,
    decode: impl Fn(&Words) -> V,
    invalid: &V,
) -> (usize, bool) {
    let ends = [decode(from.words()), decode(to.words())];
    let update = Update::new(from.words(), to);
    let hitless = update.is_hitless();
    let mut seen = Seen::new(from.words());
    let mut syncs = 0;
    for step in update {
        match step {
            EntryStep::Store { word, value } => seen.0[word].push(value),
            EntryStep::Invalidate => {
                seen = Seen::new(&seen.now());
                syncs += 1;
            }
        }
        let views: BTreeSet<V> = seen.mixtures().map(|words| decode(&words)).collect();
        let allowed = |view: &V| ends.contains(view) || !hitless && view == invalid;
        assert!(views.iter().all(allowed), "{ends:#x?} by {step:x?}: the SMMU may see {views:#x?}");
    }
    assert_eq!(seen.now(), *to.words(), "it arrives");
    assert!(seen.0.iter().all(|values| values.len() == 1), "and everything on the way is invalidated");
    (syncs, hitless)
}

fn stream_entry(from: &StreamTableEntry, to: &StreamTableEntry) -> (usize, bool) {
    go(from, to, |words| Entry::decode(words, &ABLE), &Entry::decode(&[0; 8], &ABLE))
}

#[test]
fn every_pair_of_stream_table_entries() {
    let abort = StreamTableEntry::ABORT;
    let bypass = StreamTableEntry::BYPASS;
    let table = stage1(CONTEXT, Privilege::Incoming);
    let other = stage1(CONTEXT + 64, Privilege::Incoming);
    let privileged = stage1(CONTEXT, Privilege::Privileged);
    let all = [
        INVALID,
        abort,
        bypass,
        table,
        other,
        privileged,
        stage2(0),
        stage2(7),
        nested(),
        stage1_bypassed(1),
        stage1_bypassed(2),
    ];
    for from in &all {
        for to in &all {
            let (syncs, hitless) = stream_entry(from, to);
            assert_eq!(syncs == 0, from == to);
            assert!(syncs <= 3 && (hitless || syncs == 3), "{from:?} to {to:?}: {syncs}");
        }
    }
    // As Linux's tests of the same count them.
    for (from, to, syncs, hitless) in [
        (&bypass, &abort, 2, true),
        (&abort, &bypass, 2, true),
        (&table, &abort, 2, true),
        (&abort, &table, 2, true),
        (&table, &bypass, 3, true),
        (&bypass, &table, 3, true),
        (&table, &other, 1, true),
        (&table, &privileged, 1, true),
        (&other, &privileged, 3, false),
        (&stage2(0), &abort, 2, true),
        (&abort, &stage2(0), 2, true),
        (&stage2(0), &bypass, 2, true),
        (&bypass, &stage2(0), 2, true),
        (&table, &stage2(0), 3, true),
        (&stage2(0), &table, 3, true),
        (&table, &stage2(7), 3, false),
        (&stage1_bypassed(1), &bypass, 2, true),
        (&bypass, &stage1_bypassed(1), 2, true),
        (&INVALID, &table, 2, true),
        (&table, &INVALID, 2, true),
    ] {
        assert_eq!(stream_entry(from, to), (syncs, hitless), "{from:?} to {to:?}");
    }
}

fn context(from: &ContextDescriptor, to: &ContextDescriptor) -> (usize, bool) {
    let Entry::Translate(stage1) = Entry::decode(&stage1(CONTEXT, Privilege::Incoming).0, &ABLE) else {
        panic!("an entry that translates")
    };
    let decode = |words: &Words| Context::decode(words, &stage1, &ABLE);
    go(from, to, decode, &decode(&[0; 8]))
}

/// An attribute with tags is reserved in a context.
#[test]
fn memory_with_tags_is_normal_for_a_device() {
    let types = |memory_types| ContextDescriptor::new(&Translation { memory_types, ..TRANSLATION }).0[3];
    assert_eq!(types(0xf044_04ff_f000_00f0), 0xff44_04ff_ff00_00ff);
    assert_eq!(types(0xff44_0400), 0xff44_0400);
}

#[test]
fn every_pair_of_context_descriptors() {
    let of = |translation| ContextDescriptor::new(&translation);
    let none = ContextDescriptor([0; 8]);
    let one = of(TRANSLATION);
    let asid = of(Translation { asid: 6, ..TRANSLATION });
    let root = of(Translation { root: PhysAddr(0x8_5555_5000), ..TRANSLATION });
    let both = of(Translation { asid: 6, root: PhysAddr(0x8_5555_5000), ..TRANSLATION });
    let wide = of(Translation { address_bits: 48, ..TRANSLATION });
    let types = of(Translation { memory_types: 0xff, ..TRANSLATION });
    let all = [none, one, asid, root, both, wide, types, one.disabled(), both.disabled()];
    for from in &all {
        for to in &all {
            let (syncs, hitless) = context(from, to);
            assert_eq!(syncs == 0, from == to);
            assert!(syncs <= 3 && (hitless || syncs == 3), "{from:?} to {to:?}: {syncs}");
        }
    }
    for (from, to, syncs, hitless) in [
        (&none, &one, 2, true),
        (&one, &none, 2, true),
        (&one, &asid, 1, true),
        (&one, &root, 1, true),
        (&one, &both, 3, false),
        (&one, &wide, 1, true),
        (&one, &types, 1, true),
        (&one, &one.disabled(), 2, true),
        (&one.disabled(), &one, 2, true),
        (&one.disabled(), &both.disabled(), 1, true),
    ] {
        assert_eq!(context(from, to), (syncs, hitless), "{from:?} to {to:?}");
    }
}

/// A way that stores the words of the new entry from first to last is seen through.
#[test]
fn the_check_of_mixtures_sees_a_torn_entry() {
    #[derive(Clone, Copy)]
    struct Careless(Words);
    impl granule_smmuv3::hitless::Entry for Careless {
        const VALID: u64 = 1;
        fn words(&self) -> &Words {
            &self.0
        }
        /// Nothing ever counts, so everything may be stored at once.
        fn used(_: &Words) -> Words {
            [0; 8]
        }
    }
    let (from, to) = (Careless(StreamTableEntry::BYPASS.0), Careless(stage1(CONTEXT, Privilege::Privileged).0));
    let torn = std::panic::catch_unwind(|| {
        go(&from, &to, |words| Entry::decode(words, &ABLE), &Entry::decode(&[0; 8], &ABLE))
    });
    assert!(torn.is_err(), "a bypass with the attributes of a translation, and the other way round");
}

/// Any of the entries that there are, with anything in the bits that do not count.
fn any_entry() -> impl Strategy<Value = StreamTableEntry> {
    let kind = prop_oneof![
        Just(StreamTableEntry::ABORT),
        Just(StreamTableEntry::BYPASS),
        (0u64..4).prop_map(|which| stage1(CONTEXT + which * 64, Privilege::Incoming)),
        (0u64..4).prop_map(|which| stage1(CONTEXT + which * 64, Privilege::Privileged)),
        (0u64..3).prop_map(stage2),
        Just(nested()),
        (0u64..4).prop_map(stage1_bypassed),
        Just(INVALID),
    ];
    (kind, any::<Words>()).prop_map(|(entry, junk)| {
        let used = StreamTableEntry::used(entry.words());
        StreamTableEntry(std::array::from_fn(|word| entry.0[word] & used[word] | junk[word] & !used[word]))
    })
}

proptest! {
    #[test]
    fn bits_that_do_not_count_make_no_difference(from in any_entry(), to in any_entry()) {
        let (syncs, hitless) = stream_entry(&from, &to);
        prop_assert!(syncs <= 3 && (hitless || syncs == 3));
    }

    /// The driver's masks against the model's decoder: flipping a bit that does not count changes nothing.
    #[test]
    fn what_is_not_used_is_not_read(entry in any_entry(), word in 0usize..8, bit in 0u32..64) {
        let used = StreamTableEntry::used(entry.words());
        let mut flipped = entry;
        flipped.0[word] ^= 1 << bit & !used[word];
        prop_assert_eq!(Entry::decode(&entry.0, &ABLE), Entry::decode(&flipped.0, &ABLE));
    }
}
