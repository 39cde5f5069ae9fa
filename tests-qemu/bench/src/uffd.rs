//! The suite `uffd`: userfaultfd. `user/src/bin/bench.rs` measures it at EL0. Round trips are between two threads of one
//! process, on one CPU: both switches are in them.

use crate::harness::{Bench, bench};
use crate::mm::at_el0;

at_el0! { "uffd":
    wp_set, "wp_set", "page";
    wp_clear, "wp_clear", "page";
    wp_set_unpopulated, "wp_set/unpopulated", "page";
    wp_fault_roundtrip, "wp_fault_roundtrip", "fault";
    missing_fault_roundtrip, "missing_fault_roundtrip", "fault";
    marker_write_roundtrip, "marker_write_roundtrip", "fault";
    shared_dontneed, "shared_dontneed", "page";
    shared_dontneed_registered, "shared_dontneed/registered", "page";
    shared_dontneed_protected, "shared_dontneed/protected", "page";
}
