//! Tag checks of programs: their modes, and the kernel's accesses for them.

use granule::kernel;
use granule::smp;
use granule_arch::features::Mte;

use crate::harness::{Test, target_test};
use crate::process::succeeds;

/// Checks that memory has tags: without them the program would have nothing to check.
pub(crate) fn has_tags(t: &mut Test) {
    t.check("tags in memory", kernel().features().cpus.mte() >= Mte::Tags);
}

/// Faults of the kernel's own accesses that have an entry in its table of exceptions, on all CPUs.
fn kernel_faults() -> u64 {
    let mut faults = 0;
    smp::for_each(|cpu| faults += cpu.trap().probe_faults());
    faults
}

target_test!(modes_are_as_on_linux, needs("mte"), limit(120));
fn modes_are_as_on_linux(t: &mut Test) {
    has_tags(t);
    succeeds(t, "mte control irg modes fill addresses handlers late exec");
}

target_test!(mappings_and_children_are_checked_as_on_linux, needs("mte"), limit(60));
fn mappings_and_children_are_checked_as_on_linux(t: &mut Test) {
    has_tags(t);
    succeeds(t, "mte mappings zero children");
}

target_test!(threads_keep_their_own_modes_and_tags, needs("mte"), limit(120));
fn threads_keep_their_own_modes_and_tags(t: &mut Test) {
    has_tags(t);
    succeeds(t, "mte threads");
}

target_test!(the_kernels_accesses_are_checked_as_on_linux, needs("mte"), limit(60));
fn the_kernels_accesses_are_checked_as_on_linux(t: &mut Test) {
    has_tags(t);
    succeeds(t, "mte strings");
    let before = kernel_faults();
    succeeds(t, "mte buffers");
    // The program makes 60 calls in the synchronous mode with a buffer that ends in another tag.
    t.check("mismatches faulted in the kernel", kernel_faults() - before >= 60);
}
