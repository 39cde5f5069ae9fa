//! Ways to wait (Arm ARM C6: YIELD, WFE, SEV, WFI). Every loop that waits for another CPU or a device has one.

#![allow(unsafe_code, reason = "issues YIELD, WFE, SEV and WFI")]

#[cfg(not(target_os = "none"))]
extern crate std;

use core::sync::atomic::AtomicU32;

macro_rules! hint {
    ($(#[$doc:meta])* $name:ident, $instruction:literal, $host:expr) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            #[cfg(target_os = "none")]
            // SAFETY: a hint; it changes no register and no memory. No `nomem`: a waiting loop must read anew after it.
            unsafe {
                core::arch::asm!($instruction, options(nostack, preserves_flags));
            }
            #[cfg(not(target_os = "none"))]
            $host
        }
    };
}

hint!(
    /// YIELD: others may go first. An emulator switches to another CPU here.
    relax, "yield", std::thread::yield_now()
);
hint!(
    /// WFE: until an event, an interrupt, or another CPU's [`sev`].
    wfe, "wfe", std::thread::yield_now()
);
hint!(
    /// SEV: wakes every CPU in [`wfe`]. Owed after the store that the waiter looks for, with a DSB between.
    sev, "sev", crate::recorded::note("sev")
);
hint!(
    /// WFI: until an interrupt is pending, masked or not.
    wfi, "wfi", core::hint::spin_loop()
);

/// Stores `here` to `at`, with release, and waits until `word` is no longer `value`, which another CPU follows with a
/// [`sev`]; acquires what that CPU has stored before.
///
/// From the store on, until the word has changed, there is no other access to memory and no exception is taken: nothing
/// need be mapped but this code and the two words.
pub fn park(at: &AtomicU32, here: u32, word: &AtomicU32, value: u32) {
    #[cfg(target_os = "none")]
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
    #[cfg(not(target_os = "none"))]
    {
        use core::sync::atomic::Ordering;
        at.store(here, Ordering::Release);
        while word.load(Ordering::Acquire) == value {
            core::hint::spin_loop();
        }
    }
}
