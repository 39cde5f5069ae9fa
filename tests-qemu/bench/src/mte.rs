//! The suite `mte`: what tag checks cost a program. `user/src/bin/bench.rs` measures these at EL0.

use crate::harness::{Bench, bench};
use crate::mm::at_el0;

at_el0! { "mte":
    null_syscall_sync, "null_syscall/sync", "call";
    null_syscall_async, "null_syscall/async", "call";
    tag_fault_signal, "tag_fault_signal", "fault";
    late_tag_fault_signal, "late_tag_fault_signal", "fault";
}
