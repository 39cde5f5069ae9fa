//! Cache maintenance is recorded.

#![allow(unsafe_code, reason = "the contracts of the machine's functions")]

use crate::recorded;

/// Notes the instruction for one line.
macro_rules! line_by {
    ($instruction:literal, $line:expr) => {{
        let _ = $line;
        crate::recorded::note($instruction);
    }};
}
pub(crate) use line_by;

/// Notes DC IGVAC.
///
/// # Safety
/// None: no tags are dropped.
pub(crate) unsafe fn invalidate_tag_line(_line: u64) {
    recorded::note("dc igvac");
}

/// Lines of 64 bytes.
pub(crate) fn tag_words() -> u8 {
    4
}

/// Lines of 4 bytes, and nothing that may be left out.
pub(crate) fn ctr() -> u64 {
    0
}

/// The host empties none.
pub fn invalidate_all_instructions() {}
