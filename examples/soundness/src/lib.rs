//! What code that forbids `unsafe` cannot do with `granule-arch`, `granule-pgtable` and `granule-smmuv3`, however it is
//! given their values: reach memory that it does not own, itself or by way of a CPU, a page table or an SMMU. Each
//! example must not compile, for the reason that it names.
//!
//! # `granule-arch`
//! PSCI starts a CPU at any physical address:
//! ```compile_fail,E0133
//! granule_arch::psci::cpu_on(granule_arch::psci::Conduit::Hvc, 1, 0xdead_0000, 0);
//! ```
//! RNDR is UNDEFINED where a CPU does not have it, and so are the registers of tag checks; the values that prove that
//! they are there are not made without a contract:
//! ```compile_fail,E0133
//! granule_arch::random::Rndr::new().number();
//! ```
//! ```compile_fail,E0603
//! granule_arch::random::Rndr(()).number();
//! ```
//! ```compile_fail,E0133
//! granule_arch::tag_check::Registers::new().suspend();
//! ```

#![no_std]
#![forbid(unsafe_code)]
#![doc(test(attr(forbid(unsafe_code))))]
