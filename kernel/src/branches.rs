//! Patching the branch sites of the text (`granule_arch::patched_branch`) by what the CPUs have, what the kernel's
//! mappings allow, and the lab.

#![allow(unsafe_code, reason = "patches the text of the kernel")]

use granule_arch::alternative;

use crate::mm::heap::guarded::guarded_heap;
use crate::mm::kernel::fixmap;
use crate::mm::maintenance;
use crate::platform::features::branch;
use crate::{Kernel, lab};

/// Switches the counting of [`maintenance`] on or off, the one branch that is patched while other CPUs run. This CPU
/// counts, or stops, at once; another may lag until its next exception. Not from two CPUs at once.
pub fn set_counting(kernel: &Kernel, on: bool) {
    maintenance::note_counting(on);
    patch(kernel);
}

/// Sets each branch site to what features, policy, lab and counting want now; returns how many instructions changed.
///
/// May run while other CPUs run, for counting alone, where a late CPU does no harm: each executes the old instruction or
/// the new one, and the caches of all of them are maintained.
pub fn patch(kernel: &Kernel) -> usize {
    let (features, policy, switches) = (kernel.features(), kernel.space.policy(), lab::active());
    alternative::apply(
        |identifier| {
            switches.has(identifier)
                || features.takes(identifier)
                || policy.takes(identifier)
                || maintenance::takes(identifier)
                || identifier == branch::TAG_STORAGE && kernel.frames.has_tag_storage()
                || identifier == branch::GUARDED_HEAP && guarded_heap().is_on()
        },
        features.cpus.code_caches(),
        // SAFETY: a branch site in the text. A CPU that executes it concurrently sees a NOP or a branch, both
        // whole words that may replace each other.
        |site, instruction| unsafe { fixmap::patch_word(kernel.boot, site, instruction) },
    )
}
