//! The state that the entry code leaves: registers, the permissions of each page of the image, pointers that are
//! relocated.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use core::sync::atomic::Ordering;

use aarch64_cpu::registers::{CNTKCTL_EL1, CPACR_EL1, CurrentEL, MAIR_EL1, Readable, SCTLR_EL1, TCR_EL1};
use arm_sysregs::el1::registers::{SctlrEl1, TcrEl1};
use granule::bootargs;
use granule::mm::kernel::image;
use granule::platform::errata::DirtyState;
use granule::smp::{self, Cpu, this_cpu};
use granule::trap::probe;
use granule_arch::addr::{PAGE_SIZE, VirtAddr};
use granule_arch::descriptor::{MAIR, MAIR_MTE};
use granule_arch::esr::FaultStatus;
use granule_arch::features::{CpuFeatures, HardwareUpdates, Mte, Pan};

use crate::harness::{Test, target_test};

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __relro_start: u8;
    static __relro_end: u8;
    static __data_start: u8;
    static __data_end: u8;
    static __bss_start: u8;
    static __bss_end: u8;
}

/// The first addresses of the pages from one symbol of the linker script up to another.
macro_rules! pages {
    ($start:ident, $end:ident) => {
        (VirtAddr::from_ptr(&raw const $start).0..VirtAddr::from_ptr(&raw const $end).0)
            .step_by(PAGE_SIZE)
            .map(VirtAddr)
    };
}

/// Whether the MMU would permit a write at EL1: by AT S1E1W, without an access.
fn is_writable(address: VirtAddr) -> bool {
    let result: u64;
    // SAFETY: a translation without an access. An interrupt in between could overwrite PAR_EL1 only by a spurious fault
    // of its own, of which the interrupt path has none.
    unsafe {
        core::arch::asm!(
            "at s1e1w, {0}",
            "isb",
            "mrs {1}, par_el1",
            in(reg) address.0,
            out(reg) result,
            options(nostack, preserves_flags)
        );
    }
    result & 1 == 0
}

fn refuses_execution(address: VirtAddr) -> bool {
    // SAFETY: nothing is executable there, or the test is about to fail.
    let fault = unsafe { probe::execute(address) }.err();
    fault.and_then(|fault| fault.syndrome.abort()).is_some_and(|abort| abort.status == FaultStatus::Permission)
}

target_test!(each_page_of_the_image_has_its_own_permissions);
fn each_page_of_the_image_has_its_own_permissions(t: &mut Test) {
    let is_readable = |page: &VirtAddr| probe::read::<u64>(*page).is_ok();
    t.check("text is readable", pages!(__text_start, __text_end).all(|page| is_readable(&page)));
    t.check("text is not writable", !pages!(__text_start, __text_end).any(is_writable));
    let open = bootargs::get("rodata") == Some("off");
    for (name, mut pages) in
        [("constants", pages!(__rodata_start, __rodata_end)), ("relro", pages!(__relro_start, __relro_end))]
    {
        t.check(name, pages.all(|page| is_readable(&page) && is_writable(page) == open && refuses_execution(page)));
    }
    for (name, mut pages) in [("data", pages!(__data_start, __data_end)), ("bss", pages!(__bss_start, __bss_end))] {
        t.check(name, pages.all(|page| is_readable(&page) && is_writable(page) && refuses_execution(page)));
    }
    let end = VirtAddr::from_ptr(&raw const __bss_end);
    t.check("nothing behind the image", probe::read::<u8>(end).is_err());
}

/// The first register that is not as the entry code sets it on this CPU; `None`: each is.
fn wrong_registers() -> Option<&'static str> {
    const TAGS: SctlrEl1 = SctlrEl1::ATA.union(SctlrEl1::ATA0).union(SctlrEl1::ITFSB);
    let features = CpuFeatures::read();
    let (sctlr, tcr) = (SCTLR_EL1.get(), TCR_EL1.get());
    let tags = features.mte() >= Mte::Tags;
    let pan: u64;
    if features.pan() > Pan::None {
        // SAFETY: reads PSTATE.PAN, which exists by the ID register.
        unsafe { core::arch::asm!("mrs {0}, S3_0_C4_C2_3", out(reg) pan, options(nomem, nostack)) };
    } else {
        pan = 1 << 22;
    }
    let on = SCTLR_EL1::M::SET.value | SCTLR_EL1::C::SET.value | SCTLR_EL1::I::SET.value | SCTLR_EL1::SA::SET.value;
    let el0 =
        SCTLR_EL1::UCI::SET.value | SCTLR_EL1::UCT::SET.value | SCTLR_EL1::DZE::SET.value | SCTLR_EL1::NTWE::SET.value;
    let checks = [
        ("CurrentEL", CurrentEL.read(CurrentEL::EL) == 1),
        ("SCTLR_EL1: MMU, caches, stack alignment", sctlr & on == on),
        ("SCTLR_EL1: WXN, A, EE", sctlr & (1 << 19 | 1 << 1 | 1 << 25) == 0),
        (
            "SCTLR_EL1: ATA, ATA0, ITFSB",
            SctlrEl1::from_bits_retain(sctlr) & TAGS == if tags { TAGS } else { SctlrEl1::empty() },
        ),
        ("SCTLR_EL1.SPAN", SctlrEl1::from_bits_retain(sctlr).contains(SctlrEl1::SPAN) == (features.pan() == Pan::None)),
        ("PSTATE.PAN", pan != 0),
        ("MAIR_EL1", MAIR_EL1.get() == if tags { MAIR_MTE } else { MAIR }),
        ("TCR_EL1: 48 bits", TCR_EL1::T0SZ.read(tcr) == 16 && TCR_EL1::T1SZ.read(tcr) == 16),
        ("TCR_EL1.AS", TCR_EL1::AS.is_set(tcr) == (features.asid_bits() == 16)),
        ("TCR_EL1.HA", TCR_EL1::HA.is_set(tcr) == (features.hafdbs() > HardwareUpdates::None)),
        ("TCR_EL1.HD", TCR_EL1::HD.is_set(tcr) == (granule::kernel().features().dirty_state == DirtyState::Hardware)),
        ("TCR_EL1.E0PD1", TcrEl1::from_bits_retain(tcr).contains(TcrEl1::E0PD1) == features.e0pd()),
        (
            "TCR_EL1: the top byte of EL0's addresses is ignored, that of the kernel's where memory has tags",
            TCR_EL1::TBI0.is_set(tcr)
                && [TcrEl1::TBI1, TcrEl1::TBID1, TcrEl1::TCMA1]
                    .iter()
                    .all(|&bit| TcrEl1::from_bits_retain(tcr).contains(bit) == tags),
        ),
        // The kernel may save floating point registers, EL0 may use them after a trap; all else is trapped.
        ("CPACR_EL1", CPACR_EL1.get() | CPACR_EL1::FPEN::TrapNothing.value == CPACR_EL1::FPEN::TrapNothing.value),
        ("CPACR_EL1.FPEN", CPACR_EL1.read(CPACR_EL1::FPEN) & 1 == 1),
        ("CNTKCTL_EL1", CNTKCTL_EL1.get() == CNTKCTL_EL1::EL0VCTEN::SET.value),
        ("SCTLR_EL1: what EL0 may do", sctlr & el0 == el0 && sctlr & SCTLR_EL1::NTWI::SET.value == 0),
    ];
    checks.iter().find(|(_, holds)| !holds).map(|(name, _)| *name).or_else(granule_boot::open_register)
}

target_test!(every_cpu_runs_as_the_entry_code_sets_it);
fn every_cpu_runs_as_the_entry_code_sets_it(t: &mut Test) {
    use core::sync::atomic::AtomicU32;
    static WRONG: AtomicU32 = AtomicU32::new(0);
    WRONG.store(0, Ordering::Relaxed);
    t.equal("the boot CPU", wrong_registers(), None);
    let check = |cpu: &Cpu, _: usize| {
        if wrong_registers().is_some() || !core::ptr::eq(cpu, this_cpu()) {
            WRONG.fetch_or(1 << cpu.id.0, Ordering::Relaxed);
        }
    };
    smp::call(smp::online(), check, 0);
    t.equal("CPUs with a wrong register", WRONG.load(Ordering::Relaxed), 0);
}

target_test!(the_identity_map_is_gone);
fn the_identity_map_is_gone(t: &mut Test) {
    // Entry code and tables are in the image.
    let image = image::physical_range(granule::kernel().boot);
    let mut pages = (image.start().0..image.end().0).step_by(PAGE_SIZE);
    let mapped = pages.find(|page| probe::read::<u8>(VirtAddr(*page)).is_ok());
    t.equal("a physical address that is mapped", mapped, None);
}

target_test!(pointers_in_the_image_are_where_the_image_is);
fn pointers_in_the_image_are_where_the_image_is(t: &mut Test) {
    static FUNCTIONS: [fn() -> Option<&'static str>; 2] = [wrong_registers, wrong_registers];
    let text = VirtAddr::from_ptr(&raw const __text_start)..VirtAddr::from_ptr(&raw const __text_end);
    let stored = core::hint::black_box(&FUNCTIONS)[1] as usize as u64;
    t.check("a function", text.contains(&VirtAddr(stored)));
}
