//! Memory barriers (Arm ARM B2.3.12), each under its own name so that a reader sees which one is paid for.
//!
//! Which operation owes which barrier is decided in `granule-pgtable` (`lazy`) and `granule` (`mm::tlb`).
//! On the host they are recorded (module `recorded`) alone.

macro_rules! barrier {
    ($(#[$doc:meta])* $name:ident, $function:ident, $argument:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            #[cfg(target_os = "none")]
            aarch64_cpu::asm::barrier::$function(aarch64_cpu::asm::barrier::$argument);
            #[cfg(not(target_os = "none"))]
            crate::recorded::note(stringify!($name));
        }
    };
}

barrier!(
    /// DSB ISHST: all earlier stores are complete, and seen by every table walk, before anything later starts.
    dsb_ishst, dsb, ISHST
);
barrier!(
    /// DSB ISH: earlier accesses and TLB maintenance are complete in the inner-shareable domain.
    dsb_ish, dsb, ISH
);
barrier!(
    /// DSB NSH: earlier accesses and *local* TLB maintenance of this CPU are complete.
    dsb_nsh, dsb, NSH
);
barrier!(
    /// DSB SY: earlier accesses are complete for every observer, devices included.
    dsb_sy, dsb, SY
);
barrier!(
    /// DMB ISHST: earlier stores are seen before later ones; enough before a table is linked in.
    dmb_ishst, dmb, ISHST
);
barrier!(
    /// DMB ISH: earlier accesses are seen before later ones.
    dmb_ish, dmb, ISH
);
barrier!(
    /// DMB OSHST: earlier stores are seen before later ones, by devices too.
    dmb_oshst, dmb, OSHST
);
barrier!(
    /// DMB OSHLD: earlier reads, of devices' registers too, come before what follows.
    dmb_oshld, dmb, OSHLD
);
barrier!(
    /// DMB OSH: earlier accesses come before later ones, for devices too.
    dmb_osh, dmb, OSH
);
barrier!(
    /// ISB: what follows is fetched anew, under all earlier changes of context.
    isb, isb, SY
);
