//! The instructions that wait.

#![allow(unsafe_code, reason = "issues YIELD, WFE, SEV and WFI")]

use core::sync::atomic::AtomicU32;

macro_rules! hint {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            // SAFETY: a hint; it changes no register and no memory. No `nomem`: a waiting loop must read anew after it.
            unsafe {
                core::arch::asm!($instruction, options(nostack, preserves_flags));
            }
        }
    };
}

hint!(
    /// YIELD: others may go first. An emulator switches to another CPU here.
    relax, "yield"
);
hint!(
    /// WFE: until an event, an interrupt, or another CPU's [`sev`].
    wfe, "wfe"
);
hint!(
    /// SEV: wakes every CPU in [`wfe`]. Owed after the store that the waiter looks for, with a DSB between.
    sev, "sev"
);
hint!(
    /// WFI: until an interrupt is pending, masked or not.
    wfi, "wfi"
);

/// Stores `here` to `at`, with release, and waits until `word` is no longer `value`, which another CPU follows with a
/// [`sev`]; acquires what that CPU has stored before.
///
/// From the store on, until the word has changed, there is no other access to memory and no exception is taken: nothing
/// need be mapped but this code and the two words.
pub fn park(at: &AtomicU32, here: u32, word: &AtomicU32, value: u32) {
    // SAFETY: accesses to the two words, as the atomics that they are; the masks are put back.
    unsafe {
        core::arch::asm!(
            "mrs {daif}, daif",
            "msr daifset, #15",
            "stlr {here:w}, [{at}]",
            "2: ldar {found:w}, [{word}]",
            "cmp {found:w}, {value:w}",
            "b.ne 3f",
            "wfe",
            "b 2b",
            // Instructions fetched ahead, and their translations, are from before.
            "3: isb",
            "msr daif, {daif}",
            daif = out(reg) _,
            found = out(reg) _,
            at = in(reg) at.as_ptr(),
            here = in(reg) here,
            word = in(reg) word.as_ptr(),
            value = in(reg) value,
            options(nostack),
        );
    }
}
