//! Exceptions that the kernel lives through: probing access and its faults, and the retry of a fault that is gone.
//!
//! Exceptions that end the kernel are last: guests for the tests on the host that read the report.

#![allow(unsafe_code, reason = "accesses that the hardware must allow or refuse, and contracts that the test keeps")]

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use granule::kernel;
use granule::mm::kernel::set_memory::Validity;
use granule::mm::layout::STACK_SIZE;
use granule::smp::{self, CpuId, CpuSet, this_cpu};
use granule::trap::{ProbeFault, is_spurious, probe};
use granule_arch::addr::VirtAddr;
use granule_arch::esr::{Access, Class, FaultStatus, Syndrome};

use crate::harness::{Test, patience, target_test};

/// A constant of the kernel image: mapped read-only.
static CONSTANT: u64 = 0x1122_3344_5566_7788;
/// A variable of the kernel image.
static VARIABLE: AtomicU64 = AtomicU64::new(0);

/// Where nothing is ever mapped: the page below the boot CPU's stack.
fn guard_page() -> VirtAddr {
    VirtAddr(this_cpu().trap().stack_top() - STACK_SIZE - 64)
}

/// Checks that `result` is a fault of this kind, at this address.
#[track_caller]
fn expect(t: &mut Test, result: Result<(), ProbeFault>, status: FaultStatus, access: Access, address: VirtAddr) {
    let found = result.err().and_then(|fault| Some((fault.syndrome.abort()?, fault.address)));
    let found = found.map(|(abort, address)| (abort.status, abort.access, address));
    t.equal("the fault", found, Some((status, access, address)));
}

target_test!(probes_of_every_width_read_and_write);
fn probes_of_every_width_read_and_write(t: &mut Test) {
    let address = VirtAddr::from_ptr(&raw const VARIABLE);
    VARIABLE.store(u64::MAX, Ordering::Relaxed);
    // SAFETY: only this test uses the variable.
    unsafe {
        t.equal("u8", probe::write(address + 7, 0x12u8), Ok(()));
        t.equal("u16", probe::write(address + 4, 0x3456u16), Ok(()));
        t.equal("u32", probe::write(address, 0x789a_bcdeu32), Ok(()));
    }
    t.equal("neighbours are left alone", VARIABLE.load(Ordering::Relaxed), 0x12ff_3456_789a_bcde);
    t.equal("u8", probe::read::<u8>(address + 7), Ok(0x12));
    t.equal("u16", probe::read::<u16>(address + 4), Ok(0x3456));
    t.equal("u32", probe::read::<u32>(address), Ok(0x789a_bcde));
    t.equal("u64", probe::read::<u64>(address), Ok(0x12ff_3456_789a_bcde));
    // SAFETY: as above.
    t.equal("u64", unsafe { probe::write(address, 5u64) }, Ok(()));
    t.equal("u64", VARIABLE.load(Ordering::Relaxed), 5);
}

target_test!(a_refused_probe_reports_why_and_where);
fn a_refused_probe_reports_why_and_where(t: &mut Test) {
    let constant = VirtAddr::from_ptr(&raw const CONSTANT);
    t.equal("constants are readable", probe::read::<u64>(constant), Ok(CONSTANT));
    // SAFETY: nothing is writable at these addresses.
    unsafe {
        expect(t, probe::write(constant, 0u64), FaultStatus::Permission, Access::Write, constant);
        expect(t, probe::write(constant + 3, 0u8), FaultStatus::Permission, Access::Write, constant + 3);
        t.equal("the level", probe::write(constant, 0u32).err().and_then(|fault| fault.level()), Some(3));
        let guard = guard_page();
        expect(t, probe::write(guard, 0u64), FaultStatus::Translation, Access::Write, guard);
        expect(t, probe::read::<u16>(guard).map(drop), FaultStatus::Translation, Access::Read, guard);
        t.equal("the level", probe::read::<u8>(guard).err().and_then(|fault| fault.level()), Some(3));
    }
    t.equal("constants stay constant", probe::read::<u64>(constant), Ok(0x1122_3344_5566_7788));
    // The first page of EL0's half, both holes between the halves, the last page.
    for address in [0, 1 << 48, 0xfffe_ffff_ffff_f000, 0xffff_ffff_ffff_f000].map(VirtAddr) {
        expect(t, probe::read::<u32>(address).map(drop), FaultStatus::Translation, Access::Read, address);
    }
}

extern "C" fn returns() {
    VARIABLE.fetch_add(1, Ordering::Relaxed);
}

#[unsafe(naked)]
extern "C" fn undefined() {
    core::arch::naked_asm!("udf #0", "ret");
}

target_test!(execution_is_refused_as_a_value);
fn execution_is_refused_as_a_value(t: &mut Test) {
    let code = returns as extern "C" fn() as usize as u64;
    let data = VirtAddr::from_ptr(&raw const VARIABLE);
    let constant = VirtAddr::from_ptr(&raw const CONSTANT);
    let class = |result: Result<(), ProbeFault>| result.err().map(|fault| (fault.syndrome.class(), fault.address));
    VARIABLE.store(0, Ordering::Relaxed);
    // SAFETY: `returns` may be called; none of the others gets past its first instruction.
    unsafe {
        t.equal("code runs", probe::execute(VirtAddr(code)), Ok(()));
        t.equal("it ran", VARIABLE.load(Ordering::Relaxed), 1);
        expect(t, probe::execute(data), FaultStatus::Permission, Access::Fetch, data);
        expect(t, probe::execute(constant), FaultStatus::Permission, Access::Fetch, constant);
        expect(t, probe::execute(guard_page()), FaultStatus::Translation, Access::Fetch, guard_page());
        let odd = VirtAddr(code + 2);
        t.check("no code at odd addresses", class(probe::execute(odd)) == Some((Some(Class::PCAlignmentFault), odd)));
        let udf = VirtAddr(undefined as extern "C" fn() as usize as u64);
        t.check("an undefined instruction", class(probe::execute(udf)) == Some((Some(Class::Unknown), udf)));
    }
}

target_test!(all_cpus_probe_at_once, needs("smp"));
fn all_cpus_probe_at_once(t: &mut Test) {
    const ROUNDS: u64 = 2000;
    static WRONG: AtomicU32 = AtomicU32::new(0);
    WRONG.store(0, Ordering::Relaxed);
    // On the other CPUs this runs inside an interrupt.
    smp::call(
        smp::online(),
        |cpu, guard| {
            let before = cpu.trap().probe_faults();
            // Each CPU has its own address, so that its faults can be distinguished.
            let address = VirtAddr(guard as u64 - 64 * u64::from(cpu.id.0));
            let wrong = (0..ROUNDS)
                .filter(|_| probe::read::<u64>(address).err().is_none_or(|fault| fault.address != address))
                .count() as u64;
            let counted = cpu.trap().probe_faults() - before;
            if wrong != 0 || counted != ROUNDS {
                WRONG.fetch_or(1 << cpu.id.0, Ordering::Relaxed);
            }
        },
        guard_page().0 as usize,
    );
    t.equal("CPUs that got another fault than their own", WRONG.load(Ordering::Relaxed), 0);
}

target_test!(only_a_fault_that_is_gone_is_spurious);
fn only_a_fault_that_is_gone_is_spurious(t: &mut Test) {
    const TRANSLATION: Syndrome = Syndrome(0x9600_0007);
    const TRANSLATION_ON_WRITE: Syndrome = Syndrome(0x9600_0047);
    const PERMISSION: Syndrome = Syndrome(0x9600_004f);
    let mapped = VirtAddr::from_ptr(&raw const CONSTANT);
    t.check("now mapped", is_spurious(TRANSLATION, mapped));
    t.check(
        "now mapped, although not for a write: the retry will fault again",
        is_spurious(TRANSLATION_ON_WRITE, mapped),
    );
    t.check("still not mapped", !is_spurious(TRANSLATION, guard_page()));
    t.check("a refusal is no spurious fault", !is_spurious(PERMISSION, mapped));
}

target_test!(a_fault_that_another_cpu_mends_is_retried, needs("smp"), limit(20));
fn a_fault_that_another_cpu_mends_is_retried(t: &mut Test) {
    /// While this CPU handles a fault, the other makes the page valid: some of many rounds.
    const WANTED: u64 = 3;
    static OVER: AtomicBool = AtomicBool::new(false);
    static OTHER_FAULTS: AtomicU64 = AtomicU64::new(0);
    OVER.store(false, Ordering::Relaxed);
    let cpu = this_cpu();
    let Some(area) = t.ok("a page", kernel().space.vmalloc(cpu, 1)) else { return };
    let before = cpu.trap().spurious_faults();
    smp::call(
        CpuSet::of(CpuId(0)).with(CpuId(1)),
        |cpu, page| {
            let page = VirtAddr(page as u64);
            if cpu.id == CpuId(1) {
                let set = |validity| kernel().space.set_memory_valid(page, 1, validity).expect("the area is there");
                while !OVER.load(Ordering::Relaxed) {
                    set(Validity::Invalid);
                    set(Validity::Valid);
                }
                return;
            }
            let patience = patience();
            let enough = cpu.trap().spurious_faults() + WANTED;
            while cpu.trap().spurious_faults() < enough && !patience.has_passed() {
                let abort = probe::read::<u64>(page).err().and_then(|fault| fault.syndrome.abort());
                if abort.is_some_and(|abort| abort.status != FaultStatus::Translation) {
                    OTHER_FAULTS.fetch_add(1, Ordering::Relaxed);
                }
            }
            OVER.store(true, Ordering::Relaxed);
        },
        area.start().0 as usize,
    );
    let retried = cpu.trap().spurious_faults() - before;
    t.check("faults were retried", retried >= WANTED);
    t.equal("faults of another kind", OTHER_FAULTS.load(Ordering::Relaxed), 0);
    t.check("the page is valid again", probe::read::<u64>(area.start()).is_ok());
    kernel().space.vfree(cpu, area);
}

#[inline(never)]
fn recurse(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 32]);
    if depth == 0 { 0 } else { recurse(depth - 1) + frame[1] }
}

target_test!(overflows_its_stack, selftest());
fn overflows_its_stack(t: &mut Test) {
    t.check("it comes back", recurse(1000) > 0);
}

target_test!(overflows_another_cpus_stack, selftest());
fn overflows_another_cpus_stack(t: &mut Test) {
    let other = smp::online().without(this_cpu().id);
    let overflow: smp::CallFunction = |_, depth| {
        core::hint::black_box(recurse(depth as u64));
    };
    smp::call(other, overflow, 1000);
    t.check("it comes back", true);
}

target_test!(writes_to_a_constant, selftest());
fn writes_to_a_constant(t: &mut Test) {
    // SAFETY: not sound at all; the store faults.
    unsafe { (&raw const CONSTANT).cast_mut().write_volatile(0) };
    t.check("it comes back", true);
}

target_test!(calls_where_no_code_is, selftest());
fn calls_where_no_code_is(t: &mut Test) {
    // SAFETY: not sound at all; the call faults.
    unsafe { core::mem::transmute::<u64, extern "C" fn()>(guard_page().0 & !3)() };
    t.check("it comes back", true);
}

target_test!(panics_on_all_cpus_at_once, selftest());
fn panics_on_all_cpus_at_once(t: &mut Test) {
    smp::call(smp::online(), |cpu, _| panic!("on CPU {}", cpu.id.0), 0);
    t.check("it comes back", true);
}

/// A value that panics when it is printed.
struct Unprintable;

impl core::fmt::Display for Unprintable {
    fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        panic!("while the console's lock is held")
    }
}

target_test!(panics_while_it_prints, selftest());
fn panics_while_it_prints(t: &mut Test) {
    granule::println!("this is {Unprintable}");
    t.check("it comes back", true);
}

target_test!(panics_while_it_panics, selftest());
fn panics_while_it_panics(_: &mut Test) {
    panic!("this is {Unprintable}");
}
