//! `entry.S`, and the numbers that it is given. None of them is written twice.

#![allow(unsafe_code, reason = "the entry code, in assembly")]

use core::mem::offset_of;

use crate::closed::{as_assembly, registers};
use aarch64_cpu::registers::{CPACR_EL1, ID_AA64DFR0_EL1, ID_AA64MMFR1_EL1, ID_AA64PFR1_EL1, SCTLR_EL1, TCR_EL1};
use arm_sysregs::el0::registers::{CtrEl0, PmcrEl0};
use arm_sysregs::el1::registers::{GcrEl1, IdAa64pfr1El1, RgsrEl1, SctlrEl1, TcrEl1};
use granule::boot_info::BootInfo;
use granule::chip::log::{RING, Ring};
use granule::mm::kernel::image;
use granule::mm::layout;
use granule::mm::layout::STACK_SIZE;
use granule::smp::bring_up::SECONDARY_BOOTS;
use granule::smp::{AFFINITY, BOOT_CPU, SecondaryBoot};
use granule_arch::addr::{PAGE_SIZE, PhysAddr};
use granule_arch::descriptor::{Attributes, Descriptor, MAIR, MAIR_MTE, MemoryType, bits};
use granule_arch::sysreg::EVENT_INST_RETIRED;
use granule_arch::{el2, mmu};
use granule_pgtable::{Geometry, Granule4K};

/// Room for the headers of a PE/COFF file after the header of the Image, in bytes: the rest of the page, of which
/// firmware loads nothing else (`xtask/image/src/pe.rs`).
const PE_HEADERS: usize = PAGE_SIZE - 64;

/// Level 3 tables of the early map: the image may take 2 MiB for each.
const EARLY_MAP_TABLES: usize = 4;

/// SCTLR_EL1 as the kernel runs. entry.S adds SPAN where there is no PAN, [`SCTLR_TAGS`] where there is MTE, BT0 where
/// there is BTI. EL0 may do what it may do under Linux: cache maintenance by address, DC ZVA, reading CTR_EL0, WFE. WXN
/// stays off because the tables keep that rule, seen by the audit.
const SCTLR_EL1_MMU_ON: u64 = mmu::SCTLR_MMU_ON & !SctlrEl1::SPAN.bits()
    | SCTLR_EL1::UCI::DontTrap.value
    | SCTLR_EL1::UCT::DontTrap.value
    | SCTLR_EL1::DZE::DontTrap.value
    | SCTLR_EL1::NTWE::DontTrap.value;

/// CPACR_EL1: floating point traps at EL0 alone, since the kernel moves a program's registers; SVE and SME trap. The ISB
/// after the MMU is on synchronizes it.
const CPACR: u64 = CPACR_EL1::FPEN::TrapEl0.value;

/// ESR_EL2 of the HVC of [`mmu::leave`]: its exception class, IL, the immediate.
const HVC_LEAVE_EL1: u64 = 0x16 << 26 | 1 << 25 | mmu::LEAVE_EL1 as u64;

/// TCR_EL1 but for what the ID registers add: both halves 48 bits, 4 KiB granule, the top byte ignored in the lower half
/// alone.
const TCR: u64 = mmu::tcr(Granule4K::HALF, Granule4K::HALF) | TCR_EL1::TBI0::Ignored.value;

/// MTE's bits of TCR_EL1: the top byte is ignored in the addresses of data in the upper half too, not in those of
/// fetches, and an address whose tag is 0xf is not checked: see [`granule_arch::mte`].
const TCR_TAGS: u64 = TcrEl1::TBI1.union(TcrEl1::TBID1).union(TcrEl1::TCMA1).bits();

/// MTE's bits of SCTLR_EL1: EL1 and EL0 may access tags, and mismatches of EL0 that are recorded are so at each entry
/// to EL1. Nothing is checked yet.
const SCTLR_TAGS: u64 = SctlrEl1::ATA.union(SctlrEl1::ATA0).union(SctlrEl1::ITFSB).bits();

/// GCR_EL1: IRG finds a random tag, and for EL0 none but zero until a program includes more.
const GCR: u64 = GcrEl1::RRND.bits() | GcrEl1::EXCLUDE_MASK << GcrEl1::EXCLUDE_SHIFT;

/// PMCR_EL0: counting, from zero.
const PMCR: u64 = PmcrEl0::E.union(PmcrEl0::P).union(PmcrEl0::C).union(PmcrEl0::LC).bits();

/// A page descriptor without its address. The image's memory is of the type that can carry tags.
const fn page(attributes: Attributes) -> u64 {
    attributes.bits() | bits::TABLE
}

core::arch::global_asm!(
    registers!(as_assembly),
    include_str!("entry.S"),
    // Where things lie.
    IMAGE_BASE = const layout::IMAGE_BASE.0,
    PE_HEADERS = const PE_HEADERS,
    SLIDE = const image::SLIDE,
    FIXMAP_BASE = const layout::FIXMAP_BASE.0,
    BOOT_STACK_SIZE = const STACK_SIZE,
    EARLY_MAP_TABLES = const EARLY_MAP_TABLES,
    BOOT_CPU = sym BOOT_CPU,
    LOG = sym RING,
    LOG_END = const Ring::END,
    LOG_BYTES = const Ring::BYTES,
    TCR_OF_THIS_CPU = sym mmu::tcr_of_this_cpu,
    DROP_TO_EL1 = sym el2::drop_to_el1,
    TURN_ON = sym mmu::turn_on,
    // Descriptors.
    PAGE_TEXT = const page(Attributes::kernel_text(MemoryType::NormalTagged)),
    PAGE_RODATA = const page(Attributes::kernel_rodata(MemoryType::NormalTagged)),
    PAGE_DATA = const page(Attributes::kernel_data(MemoryType::NormalTagged)),
    TABLE = const Descriptor::kernel_table(PhysAddr(0), false).0,
    TABLE_PXN = const Descriptor::kernel_table(PhysAddr(0), true).0,
    // Values of registers.
    SCTLR_EL1_MMU_OFF = const mmu::SCTLR_MMU_OFF,
    SCTLR_EL1_MMU_ON = const SCTLR_EL1_MMU_ON,
    SCTLR_TAGS = const SCTLR_TAGS,
    SCTLR_ATA_SHIFT = const SctlrEl1::ATA_SHIFT,
    TCR_TAGS = const TCR_TAGS,
    GCR_EL1 = const GCR,
    RGSR_SEED = const RgsrEl1::SEED_SHIFT,
    SCTLR_BT0 = const SctlrEl1::BT0.bits(),
    SCTLR_EPAN = const SctlrEl1::EPAN_SHIFT,
    SCTLR_SPAN = const SctlrEl1::SPAN.bits(),
    CPACR_EL1 = const CPACR,
    HVC_LEAVE_EL1 = const HVC_LEAVE_EL1,
    PSTATE_PAN = const 1u64 << 22,
    MAIR = const MAIR,
    MAIR_MTE = const MAIR_MTE,
    TCR_EL1 = const TCR,
    PMCR = const PMCR,
    PMCR_LP = const PmcrEl0::LP.bits(),
    PMCR_N = const PmcrEl0::N_SHIFT,
    EVENT_INST_RETIRED = const EVENT_INST_RETIRED,
    CTR_DMINLINE = const CtrEl0::DMINLINE_SHIFT,
    // Where the fields of the ID registers begin.
    DFR0_PMUVER = const ID_AA64DFR0_EL1::PMUVer.shift,
    PFR1_MTE = const ID_AA64PFR1_EL1::MTE.shift,
    PFR1_BT = const IdAa64pfr1El1::BT_SHIFT,
    MMFR1_PAN = const ID_AA64MMFR1_EL1::PAN.shift,
    MMFR1_TIDCP1 = const 52,
    SCTLR_TIDCP = const 1u64 << 63,
    // The record that `kernel_main` is given, on a stack that stays aligned to 16.
    BOOT_INFO_SPACE = const size_of::<BootInfo>().next_multiple_of(16),
    INFO_DEVICE_TREE = const offset_of!(BootInfo, device_tree),
    INFO_IMAGE_START = const offset_of!(BootInfo, image_start),
    INFO_IMAGE_END = const offset_of!(BootInfo, image_end),
    INFO_ENTRY_LEVEL = const offset_of!(BootInfo, entry_level),
    INFO_ENTRY_COUNT = const offset_of!(BootInfo, entry_count),
    INFO_ROOT_TABLE = const offset_of!(BootInfo, root_table),
    INFO_IDENTITY_ROOT = const offset_of!(BootInfo, identity_root),
    INFO_SECONDARY_ENTRY = const offset_of!(BootInfo, secondary_entry),
    INFO_FIXMAP_TABLE = const offset_of!(BootInfo, fixmap_table),
    INFO_IS_TREE_SOUND = const offset_of!(BootInfo, is_tree_sound),
    // The records of secondary CPUs.
    SECONDARY_BOOTS = sym SECONDARY_BOOTS,
    SECONDARIES = const SECONDARY_BOOTS.len(),
    SECONDARY_SIZE = const size_of::<SecondaryBoot>(),
    AFFINITY = const AFFINITY,
    SECONDARY_MPIDR = const offset_of!(SecondaryBoot, mpidr),
    SECONDARY_STACK_TOP = const offset_of!(SecondaryBoot, stack_top),
    SECONDARY_CPU = const offset_of!(SecondaryBoot, cpu),
    SECONDARY_ENTRY = const offset_of!(SecondaryBoot, entry),
);
