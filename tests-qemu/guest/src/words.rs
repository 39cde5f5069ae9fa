//! Each wrapper of an instruction, alone in a function, for `./x build`: it compares the words that the compiler made of
//! it with a table by hand (xtask/image/src/words.rs). Nothing here runs.

#![allow(unsafe_code, reason = "calls of what must not run, under names that are found in the ELF")]

use core::sync::atomic::{AtomicU32, AtomicU64};

use granule::iommu::Port;
use granule_arch::addr::VirtAddr;
use granule_arch::cache::{self, CodeCaches};
use granule_arch::interrupts::Daif;
use granule_arch::mmu;
use granule_arch::sysreg;
use granule_arch::tlbi::{AddressOperand, Asid, RangeOperand};
use granule_arch::{barrier, interrupts, random, timer, tlbi, translate, wait};
use granule_pgtable::metal::{DirectMap, Metal};
use granule_pgtable::{Granule4K, Mmu as _, WalkWord};
use granule_smmuv3::Platform as _;

/// `name(arguments): expression`; the name is that of the row in the table, after `word_`.
macro_rules! words {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?: $body:expr;)*) => {$(
        #[unsafe(no_mangle)]
        #[inline(never)]
        fn $name($($argument: $type),*) $(-> $result)? {
            $body
        }
        const _: () = {
            #[used]
            static KEEP: fn($($type),*) $(-> $result)? = $name;
        };
    )*};
}

words! {
    word_dsb_ishst(): barrier::dsb_ishst();
    word_dsb_ish(): barrier::dsb_ish();
    word_dsb_nsh(): barrier::dsb_nsh();
    word_dsb_sy(): barrier::dsb_sy();
    word_dmb_ishst(): barrier::dmb_ishst();
    word_dmb_ish(): barrier::dmb_ish();
    word_dmb_oshst(): barrier::dmb_oshst();
    word_dmb_oshld(): barrier::dmb_oshld();
    word_dmb_osh(): barrier::dmb_osh();
    word_isb(): barrier::isb();
    word_execute_vmalle1is(): tlbi::Instruction::Vmalle1is.execute();
    word_execute_vmalle1(): tlbi::Instruction::Vmalle1.execute();
    word_execute_vaae1is(operand: AddressOperand): tlbi::Instruction::Vaae1is(operand).execute();
    word_execute_vaale1is(operand: AddressOperand): tlbi::Instruction::Vaale1is(operand).execute();
    word_execute_vaae1(operand: AddressOperand): tlbi::Instruction::Vaae1(operand).execute();
    word_execute_vaale1(operand: AddressOperand): tlbi::Instruction::Vaale1(operand).execute();
    word_execute_aside1is(asid: Asid): tlbi::Instruction::Aside1is(asid).execute();
    word_execute_vae1is(operand: AddressOperand): tlbi::Instruction::Vae1is(operand).execute();
    word_execute_vale1is(operand: AddressOperand): tlbi::Instruction::Vale1is(operand).execute();
    word_execute_vale1(operand: AddressOperand): tlbi::Instruction::Vale1(operand).execute();
    word_execute_rvaae1is(operand: RangeOperand): tlbi::Instruction::Rvaae1is(operand).execute();
    word_execute_rvaale1is(operand: RangeOperand): tlbi::Instruction::Rvaale1is(operand).execute();
    word_execute_rvae1is(operand: RangeOperand): tlbi::Instruction::Rvae1is(operand).execute();
    word_execute_rvale1is(operand: RangeOperand): tlbi::Instruction::Rvale1is(operand).execute();
    // SAFETY: as all of these, it does not run.
    word_clean_to_memory(start: VirtAddr, bytes: u64): unsafe { cache::clean_to_memory(start, bytes) };
    word_invalidate_tags_to_memory(start: VirtAddr, bytes: u64):
        // SAFETY: as above.
        unsafe { cache::invalidate_tags_to_memory(start, bytes) };
    word_clean_and_invalidate_to_memory(start: VirtAddr, bytes: u64):
        // SAFETY: as above.
        unsafe { cache::clean_and_invalidate_to_memory(start, bytes) };
    // SAFETY: as above.
    word_invalidate_to_memory(start: VirtAddr, bytes: u64): unsafe { cache::invalidate_to_memory(start, bytes) };
    // SAFETY: as above.
    word_clean_to_unification(start: VirtAddr, bytes: u64): unsafe { cache::clean_to_unification(start, bytes, 64) };
    word_invalidate_instructions(start: VirtAddr, bytes: u64):
        // SAFETY: as above.
        unsafe { cache::invalidate_instructions(start, bytes, 64) };
    word_invalidate_all_instructions(): cache::invalidate_all_instructions();
    // SAFETY: as above.
    word_sync_code(start: VirtAddr): unsafe { cache::sync_code(start, 64, LINES) };
    word_break_before_make(entries: *mut u64, count: usize, first: u64, step: u64, repeats: bool):
        // SAFETY: as above.
        unsafe { tlbi::break_before_make(entries, count, first, step, repeats) };
    word_park(at: &AtomicU32, here: u32, word: &AtomicU32, value: u32): wait::park(at, here, word, value);
    word_read_at_el1(address: VirtAddr) -> bool: translate::read_at_el1(address).is_ok();
    word_relax(): wait::relax();
    word_wfe(): wait::wfe();
    word_sev(): wait::sev();
    word_wfi(): wait::wfi();
    word_mask() -> Daif: interrupts::mask();
    word_restore(state: Daif): interrupts::restore(state);
    word_enable(): interrupts::enable();
    word_state() -> Daif: interrupts::state();
    word_rndr(rndr: random::Rndr) -> Option<u64>: rndr.number();
    word_count_unordered() -> u64: timer::count_unordered();
    word_count() -> u64: timer::count();
    word_own_frequency() -> u64: timer::own_frequency();
    word_set_deadline(deadline: u64): timer::set_deadline(deadline);
    word_stop(): timer::stop();
    word_dczid_el0() -> u64: sysreg::read_dczid_el0();
    word_pmceid0_el0() -> u64: sysreg::read_pmceid0_el0();
    word_walk_make_odd(word: &AtomicU64) -> u64: word.make_odd();
    word_walk_load_acquire(word: &AtomicU64) -> u64: word.load_acquire();
    word_walk_store_release(word: &AtomicU64, value: u64): word.store_release(value);
    word_walk_full_barrier(word: &AtomicU64): word.full_barrier();
    word_mmu_dmb_ishst(mmu: &Machine): mmu.dmb_ishst();
    word_mmu_dsb_ishst(mmu: &Machine): mmu.dsb_ishst();
    word_mmu_dsb_ish(mmu: &Machine): mmu.dsb_ish();
    word_mmu_dsb_nsh(mmu: &Machine): mmu.dsb_nsh();
    word_mmu_isb(mmu: &Machine): mmu.isb();
    word_mmu_complete_tlbi(mmu: &Machine): mmu.complete_tlbi();
    // SAFETY: as above.
    word_mmu_clean_code(mmu: &Machine, start: VirtAddr, bytes: u64): unsafe { mmu.clean_code(start, bytes) };
    word_mmu_invalidate_code(mmu: &Machine, start: VirtAddr, bytes: u64):
        // SAFETY: as above.
        unsafe { mmu.invalidate_code(start, bytes) };
    word_mmu_invalidate_all_code(mmu: &Machine): mmu.invalidate_all_code();
    // SAFETY: as above.
    word_turn_on(sctlr: u64): unsafe { mmu::turn_on(sctlr) };
    word_port_dmb_oshst(port: &Port): port.dmb_oshst();
    word_port_dmb_oshld(port: &Port): port.dmb_oshld();
}

/// Page tables of a machine, where every operation is issued.
type Machine = Metal<DirectMap<Granule4K>>;

/// Caches for which everything is done, in one line each.
const LINES: CodeCaches = CodeCaches { data_line: 64, instruction_line: 64, idc: false, dic: false };
