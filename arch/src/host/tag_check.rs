//! The host has no tags: each function records its name.

use crate::recorded;
use crate::tag_check::TagCheck;

pub(crate) fn set_el0(_check: TagCheck, _excluded: u16) {
    recorded::note("msr sctlr_el1.tcf0");
}

pub(crate) fn has_recorded() -> bool {
    recorded::note("mrs tfsre0_el1");
    false
}

pub(crate) fn clear_recorded() {
    recorded::note("msr tfsre0_el1");
}

pub(crate) fn set_el1(_check: TagCheck) {
    recorded::note("msr sctlr_el1.tcf");
}

pub(crate) fn take_recorded_of_el1() -> bool {
    recorded::note("mrs tfsr_el1");
    false
}

pub(crate) fn resume() {
    recorded::note("msr tco, #0");
}

pub(crate) fn suspend() {
    recorded::note("msr tco, #1");
}
