//! Each check of a feature, at its border. Tests of `granule-model` look at the registers.

extern crate std;

use super::check;
use crate::{Features, ProbeError};

/// IDR0.S1P, TTF, STALL_MODEL 1, and COHACC; IDR1.CMDQS 8, EVENTQS 7. All but COHACC is the least that fits.
const LEAST: [u32; 8] = [1 << 1 | 2 << 2 | 1 << 4 | 1 << 24, 8 << 21 | 7 << 16, 0, 0, 0, 0, 0, 0];

#[test]
fn each_thing_that_is_missing_is_the_error_that_names_it() {
    assert_eq!(check(&Features::decode(LEAST)), Ok(()));
    let short = |what, bits, needed| ProbeError::ShortQueue { what, bits, needed };
    // Bits of IDR0 or IDR1 that change.
    for (register, bits, error) in [
        (0, 1 << 1, ProbeError::NoStage1),
        (0, 2 << 2, ProbeError::NoStage1),
        (0, 3 << 21, ProbeError::BigEndian),
        (0, 1 << 21, ProbeError::BigEndian),
        (0, 3 << 24, ProbeError::AlwaysStalls),
        (1, 1 << 29, ProbeError::Preset("QUEUES_PRESET")),
        (1, 1 << 30, ProbeError::Preset("TABLES_PRESET")),
        (1, 1 << 28, ProbeError::Preset("REL")),
        (1, (8 ^ 7) << 21, short("command queue", 7, 8)),
        (1, (7 ^ 6) << 16, short("event queue", 6, 7)),
    ] {
        let mut raw = LEAST;
        raw[register] ^= bits;
        assert_eq!(check(&Features::decode(raw)), Err(error), "{bits:#x} of IDR{register}");
    }
    // An SMMU with more than the least fits too: faults that may stall, tables of both endiannesses, longer queues. So
    // does one that does not see the caches.
    for (register, bits) in
        [(0, 1 << 24), (0, 2 << 21), (0, 1), (1, 1 << 21), (1, (7 ^ 8) << 16), (1, 1 << 26), (0, 1 << 4)]
    {
        let mut raw = LEAST;
        raw[register] ^= bits;
        assert_eq!(check(&Features::decode(raw)), Ok(()), "{bits:#x} of IDR{register}");
    }
}
