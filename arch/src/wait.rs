//! Ways to wait (Arm ARM C6: YIELD, WFE, SEV, WFI). Every loop that waits for another CPU or a device has one.

#![allow(unsafe_code, reason = "issues YIELD, WFE, SEV and WFI")]

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
    relax, "yield", core::hint::spin_loop()
);
hint!(
    /// WFE: until an event, an interrupt, or another CPU's [`sev`].
    wfe, "wfe", core::hint::spin_loop()
);
hint!(
    /// SEV: wakes every CPU in [`wfe`]. Owed after the store that the waiter looks for, with a DSB between.
    sev, "sev", ()
);
hint!(
    /// WFI: until an interrupt is pending, masked or not.
    wfi, "wfi", core::hint::spin_loop()
);
