//! Stream table entries and context descriptors as the SMMU understands them: a second reading of the specification,
//! which shares nothing with the driver's.
//!
//! A decoded entry has only what counts. Two entries that decode to the same do the same, however their other bits
//! differ.

use super::hardware::Hardware;

/// Bits `high..=low` of `word`.
const fn bits(word: u64, high: u32, low: u32) -> u64 {
    word >> low & (u64::MAX >> (63 - (high - low)))
}

const fn bit(word: u64, at: u32) -> bool {
    word >> at & 1 != 0
}

/// How memory is read: inner and outer cacheability, shareability, by their codes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ReadAs {
    /// Inner cacheability.
    pub inner: u8,
    /// Outer cacheability.
    pub outer: u8,
    /// Shareability.
    pub share: u8,
}

impl ReadAs {
    /// Normal, write-back, inner shareable: what is coherent with CPUs.
    pub const WRITE_BACK: Self = Self { inner: 1, outer: 1, share: 3 };

    const fn new(word: u64, inner: u32) -> Self {
        Self {
            inner: bits(word, inner + 1, inner) as u8,
            outer: bits(word, inner + 3, inner + 2) as u8,
            share: bits(word, inner + 5, inner + 4) as u8,
        }
    }
}

/// A stream table entry, decoded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Entry {
    /// It ends in C_BAD_STE, for this reason.
    Bad(&'static str),
    /// Refused, and nothing recorded.
    Abort,
    /// Passes, with these attributes in place of its own (word 1, as far as it counts).
    Bypass(u64),
    /// Stage 1.
    Translate(Stage1),
    /// Stage 2, by what counts in words 1 to 3.
    Stage2([u64; 3]),
    /// Both.
    Nested(Stage1, [u64; 3]),
}

/// The stage 1 half of a stream table entry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Stage1 {
    /// Where the context descriptor is.
    pub context: u64,
    /// How it is read.
    pub read_as: ReadAs,
    /// PRIVCFG: 0 by the transaction, 2 unprivileged, 3 privileged. 0 where privilege cannot be overridden (5.2).
    pub privilege: u8,
    /// INSTCFG.
    pub instruction: u8,
    /// STRW.
    pub world: u8,
    /// S1STALLD.
    pub never_stalls: bool,
    /// The other fields that count: MEV and EATS, S1DSS, and with bypass of it the attributes; the VMID.
    pub rest: [u64; 2],
}

/// Attributes of transactions that are not translated at stage 1: DRE, DCP, memory type, allocation, shareability,
/// security, privilege, instruction.
const OWN_ATTRIBUTES: u64 = 1 << 12 | 1 << 17 | 0x1ff << 32 | 0b11 << 44 | 0b11 << 46 | 0b11 << 48 | 0b11 << 50;

impl Entry {
    /// `words` as `hardware` decodes them.
    pub fn decode(words: &[u64; 8], hardware: &Hardware) -> Self {
        let [first, second, third, fourth, ..] = *words;
        if !bit(first, 0) {
            return Self::Bad("STE.V is 0");
        }
        let config = bits(first, 3, 1);
        if config & 0b100 == 0 {
            return Self::Abort;
        }
        if config == 0b100 {
            return Self::Bypass(second & OWN_ATTRIBUTES);
        }
        let stage2 = [second & (OWN_ATTRIBUTES | 1 << 25 | 0xf << 8 | 0b11 << 28 | 1 << 19), third, fourth];
        if config == 0b110 {
            return Self::Stage2(stage2);
        }
        if bits(first, 63, 59) != 0 {
            return Self::Bad("STE.S1CDMax is not 0, and there are no substreams");
        }
        let never_stalls = bit(second, 27);
        if never_stalls && hardware.stall_model != 0 {
            return Self::Bad("STE.S1STALLD is 1 where nothing stalls");
        }
        let dss = bits(second, 1, 0);
        let own = if dss == 1 { OWN_ATTRIBUTES } else { 0 };
        let stage1 = Stage1 {
            context: first & ((1 << 52) - 1) & !0x3f,
            read_as: ReadAs::new(second, 2),
            privilege: if hardware.overrides_privilege { bits(second, 49, 48) as u8 } else { 0 },
            instruction: bits(second, 51, 50) as u8,
            world: bits(second, 31, 30) as u8,
            never_stalls,
            // S1DSS, PPAR, MEV, S1MPAM, EATS and what bypass adds; the VMID.
            rest: [second & (0b11 | 1 << 18 | 1 << 19 | 1 << 26 | 0b11 << 28 | own), third & 0xffff],
        };
        if config == 0b101 { Self::Translate(stage1) } else { Self::Nested(stage1, stage2) }
    }
}

/// A context descriptor, decoded.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Context {
    /// It ends in C_BAD_CD, for this reason.
    Bad(&'static str),
    /// It translates.
    Regime(Regime),
}

/// How addresses are translated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Regime {
    /// The tag of its translations.
    pub asid: u16,
    /// The tables of the lower half, if there is anything.
    pub tables: Option<Tables>,
    /// Bits of an output address.
    pub output_bits: u32,
    /// The memory types.
    pub memory_types: u64,
    /// AFFD: the access flag is not looked at.
    pub ignores_young: bool,
    /// R: faults are recorded.
    pub records: bool,
    /// A: a terminated transaction is aborted to the device.
    pub tells: bool,
    /// ASET, PAN, WXN, UWXN, TBI and EPD1, in place.
    pub rest: u64,
}

/// The tables of one half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Tables {
    /// Where the first is.
    pub root: u64,
    /// Bits of an input address.
    pub input_bits: u32,
    /// log2 of a page.
    pub page_shift: u32,
    /// How they are read.
    pub read_as: ReadAs,
}

impl Context {
    /// `words` as `hardware` decodes them, reached by an entry with `stage1`.
    pub fn decode(words: &[u64; 8], stage1: &Stage1, hardware: &Hardware) -> Self {
        let [first, second, third, fourth, rest @ ..] = *words;
        if !bit(first, 31) {
            return Self::Bad("CD.V is 0");
        }
        let illegal = [
            (!bit(first, 41), "CD.AA64 is 0"),
            (bit(first, 15), "CD.ENDI is 1 on a little-endian SMMU"),
            (bit(first, 42) || bit(first, 43), "CD.HA or CD.HD is set, and flags are not updated here"),
            (bit(first, 44) && hardware.stall_model == 1, "CD.S is 1 where nothing stalls"),
            (bit(first, 44) && stage1.never_stalls, "CD.S is 1, and STE.S1STALLD forbids it"),
            (!bit(first, 46) && hardware.term_model, "CD.A is 0 where transactions are always told"),
            (!bit(first, 30), "TTB1 translates, and nobody set it up"),
            (third != 0 || rest != [0; 4], "words that nobody set up are not 0"),
        ];
        if let Some((_, why)) = illegal.into_iter().find(|(is, _)| *is) {
            return Self::Bad(why);
        }
        let output_bits = match [32, 36, 40, 42, 44, 48, 52].get(bits(first, 34, 32) as usize) {
            Some(&bits) => u32::min(bits, hardware.output_bits()),
            None => return Self::Bad("CD.IPS is reserved"),
        };
        let tables = if bit(first, 14) {
            None
        } else {
            let page_shift = match bits(first, 7, 6) {
                0 => 12,
                1 => 16,
                2 => 14,
                _ => return Self::Bad("CD.TG0 is reserved"),
            };
            let t0sz = bits(first, 5, 0) as u32;
            if !(16..=39).contains(&t0sz) {
                return Self::Bad("CD.T0SZ is out of range");
            }
            let read_as = ReadAs::new(first, 8);
            let root = second & ((1 << 52) - 1) & !0xf;
            if root >> hardware.output_bits() != 0 {
                return Self::Bad("CD.TTB0 is larger than an address");
            }
            Some(Tables { root, input_bits: 64 - t0sz, page_shift, read_as })
        };
        Self::Regime(Regime {
            asid: bits(first, 63, 48) as u16,
            tables,
            output_bits,
            memory_types: fourth,
            ignores_young: bit(first, 35),
            records: bit(first, 45),
            tells: bit(first, 46),
            rest: first & (1 << 47 | 1 << 40 | 0b1111 << 36 | 1 << 30),
        })
    }
}
