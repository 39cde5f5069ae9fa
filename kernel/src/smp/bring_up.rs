//! Starting the other CPUs: PSCI CPU_ON or a store to a spin table for each, and the way of each to its idle loop.
//!
//! ```text
//! boot CPU      starts it ── waits for ARRIVED ─── reads what all can do, patches text ─── RELEASED ── waits for ONLINE
//! secondary       entry.S, arrive() ── ARRIVED ── held in WFE ──────────────────────────────── ISB, interrupts on, idle
//! ```
//!
//! A CPU is held between the two because features are the least of all CPUs', and code that is patched for them must
//! not be running anywhere during that. One that does not arrive in time is given up: it is not waited for again, and
//! should it come later, it finds itself given up and stops.
//!
//! A CPU in a spin table waits, its MMU off, for an address at its release address (`cpu-release-addr`; Devicetree
//! Specification v0.4, 3.8.1, and Linux's arm64 boot protocol). Several may have one release address: then all of them
//! come at once, and those whose turn it is not wait in `boot/src/entry.S` for their records.

#![allow(unsafe_code, reason = "starts CPUs, and vouches for registers of theirs")]

use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use core::time::Duration;

use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
use granule_arch::psci::{self, Conduit};
use granule_arch::tag_check::{Registers, TagCheck};
use granule_arch::tlbi::Instruction;
use granule_arch::{barrier, cache, interrupts, wait};
use linkme::distributed_slice;
use spin::Once;

use super::cpu::{own_affinity, set_user_root};
use super::{CPUS, Cpu, CpuId, CpuSet, MAX_CPUS, ONLINE, SecondaryBoot, connect, park};
use crate::bootargs::{self, PARAMETERS, Parameter, Refused};
use crate::chip::interrupt::{self, InterruptError};
use crate::chip::timer::Deadline;
use crate::mmio;
use crate::platform::{CpuNode, EnableMethod, Platform, Psci, PsciFunctions};
use crate::sched;
use crate::trap::probe::{self, ProbeFault};

/// From its start to `ARRIVED`. An emulator with fewer host CPUs than it emulates needs its time.
const PATIENCE: Duration = Duration::from_secs(5);

#[distributed_slice(PARAMETERS)]
static MAXCPUS: Parameter = Parameter {
    name: "maxcpus",
    help: "the most CPUs to run, 1 to 16",
    check: |value| parse_maxcpus(value).map(drop).ok_or_else(|| Refused::because("1 to 16")),
};

/// The CPUs that are not the boot CPU: number 1 is the first. The image has no room for them.
static SECONDARIES: [Once<Cpu>; MAX_CPUS - 1] = [const { Once::new() }; MAX_CPUS - 1];
/// Their records, for the entry code.
pub static SECONDARY_BOOTS: [SecondaryBoot; MAX_CPUS - 1] = [const { SecondaryBoot::new() }; MAX_CPUS - 1];
/// A bit for each CPU about which it is decided whether it came in time: by itself, or by the boot CPU's giving it up.
static DECIDED: AtomicU32 = AtomicU32::new(0);
/// Those that came and cannot be used, because the interrupt controller does not know them.
static USELESS: AtomicU32 = AtomicU32::new(0);
static RELEASED: AtomicBool = AtomicBool::new(false);
static STEPS: Once<Secondaries> = Once::new();
static EMPTY_ROOT: Once<PhysAddr> = Once::new();

/// The entry of the other CPUs, and their work on the way.
#[derive(Clone, Copy)]
pub struct Secondaries {
    /// Where they start: `BootInfo::secondary_entry`.
    pub entry: PhysAddr,
    /// Runs on each CPU first of all, MMU on, interrupts masked: vectors, and its ID registers.
    pub arrive: fn(&'static Cpu),
}

/// Memory for CPUs that start.
pub struct SecondaryMemory<'a> {
    /// Makes a stack with a guard page and returns its top.
    pub stack: &'a mut dyn FnMut() -> Option<VirtAddr>,
    /// Where the word at a release address can be written; `None` where it cannot be mapped.
    pub release_word: &'a mut dyn FnMut(PhysRange) -> Option<VirtAddr>,
    /// Memory that the kernel uses itself, in which there can be no release address.
    pub image: PhysRange,
}

/// Sets the identity of the boot CPU, this one. Before anything else in this module and in `chip::interrupt`.
pub fn init(cpu: &'static Cpu) {
    cpu.mpidr.store(own_affinity(), Ordering::Relaxed);
    CPUS.insert(cpu);
}

/// Starts the other CPUs that the tree names, as many as `maxcpus=` allows, and holds them. The interrupt controller
/// runs already.
///
/// Returns the CPUs that are there, `cpu` included. One that does not start is named in the log and left out.
///
/// # Errors
/// The interrupts that CPUs send each other cannot be registered.
pub fn bring_up(
    cpu: &'static Cpu,
    platform: &Platform,
    steps: Secondaries,
    memory: &mut SecondaryMemory<'_>,
) -> Result<CpuSet, InterruptError> {
    connect(cpu)?;
    STEPS.call_once(|| steps);
    if platform.cpus_left_out > 0 {
        crate::log::warn!("{} CPUs more than the {MAX_CPUS} that can be run", platform.cpus_left_out);
    }
    let limit = bootargs::get("maxcpus").and_then(parse_maxcpus).unwrap_or(MAX_CPUS);
    let own = cpu.mpidr.load(Ordering::Relaxed);
    let others = platform.cpus.iter().filter(|node| node.mpidr != own).take(limit - 1);
    let mut started = CpuSet::EMPTY;
    // All are started before the first is waited for: they come up at the same time.
    for (node, (id, (secondary, record))) in others.zip((1..).zip(SECONDARIES.iter().zip(&SECONDARY_BOOTS))) {
        let secondary = secondary.call_once(|| Cpu::new(CpuId(id)));
        match start(platform, node, secondary, record, memory) {
            Ok(()) => started = started.with(secondary.id),
            Err(error) => crate::log::warn!("CPU {} ({:#x}) not started: {error}", secondary.id.0, node.mpidr),
        }
    }
    Ok(await_arrival(started).with(cpu.id))
}

/// Lets the CPUs that [`bring_up`] returned go, and waits until they take interrupts. `empty_root` is a level 0 table
/// without entries: it takes the place of the identity map in TTBR0_EL1.
pub fn release(cpus: CpuSet, empty_root: PhysAddr) {
    EMPTY_ROOT.call_once(|| empty_root);
    RELEASED.store(true, Ordering::Release);
    // The waiters read it after the event: the DSB has the store seen before.
    barrier::dsb_ishst();
    wait::sev();
    let deadline = Deadline::after(PATIENCE);
    while !cpus.minus(super::online()).is_empty() {
        if deadline.has_passed() {
            crate::log::warn!("CPUs {:?} were there and are lost", cpus.minus(super::online()));
            return;
        }
        wait::relax();
    }
}

/// Ends the identity map on this CPU: TTBR0_EL1 gets a table without entries, and nothing of the old one is cached.
pub fn leave_identity_map(empty_root: PhysAddr) {
    // Only with the new table is what is invalidated not filled in again.
    set_user_root(empty_root);
    Instruction::Vmalle1.execute();
    barrier::dsb_nsh();
    barrier::isb();
}

fn start(
    platform: &Platform,
    node: &CpuNode,
    cpu: &'static Cpu,
    record: &'static SecondaryBoot,
    memory: &mut SecondaryMemory<'_>,
) -> Result<(), CpuStartError> {
    let method = Method::of(platform, node, memory)?;
    let steps = STEPS.get().ok_or(CpuStartError::Method)?;
    let mut stack = || (memory.stack)().ok_or(CpuStartError::NoStack);
    let (stack_top, overflow_top) = (stack()?, stack()?);
    cpu.trap().set_stacks(stack_top.0, overflow_top.0);
    cpu.mpidr.store(node.mpidr, Ordering::Relaxed);
    CPUS.insert(cpu);
    record.mpidr.store(node.mpidr, Ordering::Relaxed);
    record.stack_top.store(stack_top.0, Ordering::Relaxed);
    record.cpu.store(VirtAddr::from_ptr(cpu).0, Ordering::Relaxed);
    let entry: extern "C" fn(&'static Cpu) -> ! = secondary_main;
    record.entry.store(entry as usize as u64, Ordering::Release);
    // The record is read with the other CPU's caches on, so it need not be cleaned; it must only be there in time.
    barrier::dsb_ishst();
    // SAFETY: 1. The entry code of the image expects this state and this record. 2. The image was in memory before it was
    // started, by the boot protocol. 3. Record and stacks are for this CPU alone.
    unsafe {
        match method {
            Method::Psci(conduit) => {
                psci::cpu_on(conduit, node.mpidr, steps.entry.0, 0).map_err(CpuStartError::Psci)?;
            }
            Method::Listed(conduit, cpu_on) => {
                psci::cpu_on_by_number(conduit, cpu_on, node.mpidr, steps.entry.0).map_err(CpuStartError::Psci)?;
            }
            Method::Release(word) => release_from_table(word, steps.entry),
        }
    }
    Ok(())
}

/// How a CPU is started, with what that takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Method {
    /// CPU_ON.
    Psci(Conduit),
    /// CPU_ON of PSCI 0.1, by its number.
    Listed(Conduit, u32),
    /// A store to the word at its release address, mapped here.
    Release(VirtAddr),
}

impl Method {
    fn of(platform: &Platform, node: &CpuNode, memory: &mut SecondaryMemory<'_>) -> Result<Self, CpuStartError> {
        match node.enable_method {
            EnableMethod::Psci => {
                let Psci { conduit, functions } = platform.psci.ok_or(CpuStartError::NoPsci)?;
                match functions {
                    PsciFunctions::Standard => Ok(Self::Psci(conduit)),
                    PsciFunctions::Listed { cpu_on: Some(number) } => Ok(Self::Listed(conduit, number)),
                    PsciFunctions::Listed { cpu_on: None } => Err(CpuStartError::NoCpuOn),
                }
            }
            EnableMethod::SpinTable(address) => {
                let word = release_word(address, memory.image, platform.initrd)?;
                let mapped = (memory.release_word)(word).ok_or(CpuStartError::NotMapped(word))?;
                probe::read::<u64>(mapped).map_err(CpuStartError::NoAnswer)?;
                Ok(Self::Release(mapped))
            }
            EnableMethod::Unknown => Err(CpuStartError::Method),
        }
    }
}

/// The word at a release address, if it can be one.
fn release_word(address: PhysAddr, image: PhysRange, initrd: Option<PhysRange>) -> Result<PhysRange, CpuStartError> {
    let word = PhysRange::from_size(address, size_of::<u64>() as u64);
    let word = word.filter(|_| address.0 != 0 && address.is_aligned(size_of::<u64>() as u64));
    let word = word.ok_or(CpuStartError::BadRelease(address))?;
    match [Some(image), initrd].into_iter().flatten().find(|used| used.overlaps(word)) {
        Some(used) => Err(CpuStartError::ReleaseInUse(address, used)),
        None => Ok(word),
    }
}

/// Has the CPUs that wait for `word` go on at the physical address `entry`. They read it with their caches off.
///
/// # Safety
/// `word` is mapped, and the firmware's for this. The rest is the contract of [`psci::cpu_on`], but for its `context`.
unsafe fn release_from_table(word: VirtAddr, entry: PhysAddr) {
    // SAFETY: the caller's. It is little-endian, as the kernel.
    unsafe { mmio::write(word, entry.0) };
    // SAFETY: mapped, as it was just written.
    unsafe { cache::clean_to_memory(word, size_of::<u64>() as u64) };
    // They wait in WFE; the clean has ended with a DSB.
    wait::sev();
}

/// Why a CPU was not started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
enum CpuStartError {
    #[error("the device tree has no `enable-method` of it that is `psci` or `spin-table`")]
    Method,
    #[error("the device tree has no PSCI")]
    NoPsci,
    #[error("the device tree's PSCI is of version 0.1 and has no `cpu_on`")]
    NoCpuOn,
    #[error("the `cpu-release-addr` {0} is missing, zero, or no multiple of 8")]
    BadRelease(PhysAddr),
    #[error("the `cpu-release-addr` {0} is in {1:?}, the kernel's image or the initrd")]
    ReleaseInUse(PhysAddr, PhysRange),
    #[error("no room to map the `cpu-release-addr` in {0:?}")]
    NotMapped(PhysRange),
    #[error("its `cpu-release-addr`: {0}")]
    NoAnswer(ProbeFault),
    #[error("no memory for its stacks")]
    NoStack,
    #[error("PSCI: {0}")]
    Psci(psci::Error),
}

/// Waits for the CPUs in `started`, and returns those that can be used.
fn await_arrival(started: CpuSet) -> CpuSet {
    let deadline = Deadline::after(PATIENCE);
    let missing = || started.minus(CpuSet::from_bits(DECIDED.load(Ordering::Acquire)));
    while !missing().is_empty() && !deadline.has_passed() {
        wait::relax();
    }
    let mut given_up = CpuSet::EMPTY;
    for late in missing().iter() {
        // Unless it came just now, this decides it.
        if DECIDED.fetch_or(1 << late.0, Ordering::AcqRel) & 1 << late.0 == 0 {
            crate::log::warn!("CPU {} was started and did not come in {} s", late.0, PATIENCE.as_secs());
            given_up = given_up.with(late);
        }
    }
    started.minus(given_up).minus(CpuSet::from_bits(USELESS.load(Ordering::Acquire)))
}

/// Where `boot/src/entry.S` goes with each CPU that was started.
extern "C" fn secondary_main(cpu: &'static Cpu) -> ! {
    let Some(steps) = STEPS.get() else { super::halt() };
    (steps.arrive)(cpu);
    let interrupts = interrupt::init_cpu(cpu);
    if let Err(error) = interrupts {
        crate::log::warn!("CPU {}: {error}", cpu.id.0);
        USELESS.fetch_or(1 << cpu.id.0, Ordering::Relaxed);
    }
    let given_up = DECIDED.fetch_or(1 << cpu.id.0, Ordering::AcqRel) & 1 << cpu.id.0 != 0;
    if given_up || interrupts.is_err() {
        super::halt();
    }
    while !RELEASED.load(Ordering::Acquire) {
        wait::wfe();
    }
    // Text was patched while this waited: nothing that was fetched earlier may be executed.
    barrier::isb();
    let features = crate::kernel().features();
    features.dirty_state.enable();
    if features.kernel_tag_check != TagCheck::Off {
        // SAFETY: the heap's tags are checked only where all CPUs have tags.
        let registers = unsafe { Registers::new() };
        registers.set_el1(features.kernel_tag_check);
        registers.resume();
    }
    if let Some(&empty_root) = EMPTY_ROOT.get() {
        leave_identity_map(empty_root);
    }
    sched::init_cpu(cpu);
    ONLINE.fetch_or(1 << cpu.id.0, Ordering::Release);
    park::join(cpu);
    interrupts::enable();
    sched::idle(cpu)
}

fn parse_maxcpus(value: &str) -> Option<usize> {
    value.parse().ok().filter(|count| (1..=MAX_CPUS).contains(count))
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU64, Ordering};

    use granule_arch::addr::{PhysAddr, PhysRange, VirtAddr};
    use granule_arch::recorded;

    use super::{CpuStartError, release_from_table, release_word};

    fn range(start: u64, bytes: u64) -> PhysRange {
        PhysRange::from_size(PhysAddr(start), bytes).unwrap()
    }

    #[test]
    fn a_release_address_is_a_word_that_the_kernel_does_not_use() {
        let (image, initrd) = (range(0x20_0000, 0x40_0000), Some(range(0x800_0000, 0x1000)));
        let of = |address| release_word(PhysAddr(address), image, initrd);
        assert_eq!(of(0xd8), Ok(range(0xd8, 8)));
        assert_eq!(of(0x1f_fff8), Ok(range(0x1f_fff8, 8)));
        assert_eq!(of(0x60_0000), Ok(range(0x60_0000, 8)));
        for bad in [0, 0xdc, 0x60_0001, u64::MAX - 7] {
            assert_eq!(of(bad), Err(CpuStartError::BadRelease(PhysAddr(bad))), "{bad:#x}");
        }
        for (used, by) in [(0x20_0000, image), (0x5f_fff8, image), (0x800_0000, range(0x800_0000, 0x1000))] {
            assert_eq!(of(used), Err(CpuStartError::ReleaseInUse(PhysAddr(used), by)), "{used:#x}");
        }
        assert_eq!(release_word(PhysAddr(0x800_0000), image, None), Ok(range(0x800_0000, 8)));
    }

    /// The CPUs read it with their caches off, and wait for an event.
    #[test]
    fn the_entry_is_in_memory_before_the_event() {
        static WORD: AtomicU64 = AtomicU64::new(0);
        let seen = std::rc::Rc::new(core::cell::RefCell::new(Vec::new()));
        let note = seen.clone();
        let hook = move |instruction| note.borrow_mut().push((instruction, WORD.load(Ordering::Relaxed)));
        let word = VirtAddr::from_ptr(&WORD);
        // SAFETY: the word is the test's, and on the host no CPU waits for it.
        recorded::at_each(hook, || unsafe { release_from_table(word, PhysAddr(0x20_1000)) });
        let mut order: Vec<_> = seen.take();
        order.dedup();
        assert_eq!(order, [("dc cvac", 0x20_1000), ("dsb_sy", 0x20_1000), ("sev", 0x20_1000)]);
    }
}
